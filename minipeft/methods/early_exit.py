"""Early exit: every block gets a classifier of its own, so that an easy example need not pass all blocks.

    z_i = f_i(norm(h_i)),   p_i = softmax(z_i),   l_i = CE(p_i, y),        i = 1 .. L;  f_L is the model's own head

norm is the final norm of pre-norm models. What the exits are trained on stands in ``exit_training.py``, who may leave where in
``exit_rules.py``.

Teerapittayanon, McDanel, Kung, ICPR 2016, arXiv:1709.01686 (BranchyNet); Xin, Tang, Lee, Yu, Lin, ACL 2020, arXiv:2004.12993
(DeeBERT); Liu, Zhou, Zhao, Wang, Ju, Deng, Wang, ACL 2020, arXiv:2004.02178 (FastBERT).

Shapes: h_i (B, P + T, D), z_i and p_i (B, C).
Count: L (D C + C) with the model's own head; where the heads have a pooler, L (D C + C + D^2 + D).
"""

import contextlib
from pathlib import Path

import numpy as np

from .. import autograd as F
from ..models.heads import ClassificationHead, check_ids
from ..nn import Module, ModuleList, unwrap
from .exit_rules import walk
from .exit_training import ExitsOutput, Joint

WEIGHTS, NOTE = "exits.safetensors", "exits.json"


class EarlyExit(Module):
    """A model with a classification head, and a head of the same shape behind each of its blocks but the last.

    ``training.fit`` trains it like a model, on ``trainable()``. Whatever is attached to the model acts here too.

    Args:
        model: an Encoder or Decoder with a ClassificationHead and at least 2 blocks; it is changed only by training it.
        objective: a `Joint`, `TwoStage` or `SelfDistilled`; it may be replaced between two runs.
        rng: numpy.random.Generator that draws the exits; default: seed 0.
    """

    def __init__(self, model, objective=None, rng=None):
        own, blocks = unwrap(getattr(model, "head", None)), getattr(model, "blocks", ())
        if not isinstance(own, ClassificationHead) or len(blocks) < 2:
            raise ValueError("early exit: expected an Encoder or Decoder with 2 blocks or more and a ClassificationHead, got "
                             f"{type(model).__name__} with {len(blocks)} and {type(own).__name__}; load it with task='classify'")
        self.model, self.objective, rng = model, objective or Joint(), rng or np.random.default_rng(0)
        classifier = unwrap(own.classifier)
        if classifier.weight.shape[1] < 2:
            raise ValueError("early exit: expected a head for 2 classes or more, got 1: there is nothing to be sure of")
        shape = *classifier.weight.shape, own.pooling, classifier.bias is not None, own.dropout.probability
        heads = [ClassificationHead(*shape, rng, model.config.initializer_range) for _ in blocks[:-1]]
        self.exits = ModuleList(heads).astype(classifier.weight.dtype)
        self.drawn = [head.classifier.weight.data.copy() for head in self.exits]  # to tell who was never trained

    def heads(self):
        """All L heads, from the first block's on; the last is the model's own."""
        return [*self.exits, self.model.head]

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        """The logits of all exits and the loss; labels (B,). Where the objective freezes the model, no record of it is kept."""
        out = []
        with contextlib.nullcontext() if self.objective.trains_model else F.no_grad():
            x, mask, position_ids, virtual = self.model.enter(input_ids, attention_mask, token_type_ids)
            for block in self.model.blocks:
                x = block(x, mask, position_ids)  # (B, P + T, D)
                out.append(self.model.normalised(x))
            last = self.model.head(out.pop(), mask, virtual)
        logits = [head(h, mask, virtual) for head, h in zip(self.exits, out)] + [last]  # (B, C) each
        if not self.objective.needs_labels:
            return ExitsOutput(self.objective(logits), logits)
        labels = None if labels is None else check_ids("labels", labels, last.shape[:1])
        return ExitsOutput(None if labels is None else self.objective(logits, labels), logits)

    def predict(self, rule, input_ids, attention_mask=None, token_type_ids=None):
        """Classify a batch, each example leaving at the first exit that ``rule`` accepts; see `exit_rules.walk`.

        Raises ValueError where an exit was never trained, or as `walk` does.
        """
        self.check_trained()
        return walk(self.model, self.heads(), rule, input_ids, attention_mask, token_type_ids)

    def train(self, rng):
        """Dropout on; where the objective freezes the model, in the exits alone: they learn from the states they will see."""
        self.eval()
        if self.objective.trains_model:
            return super().train(rng)
        self.exits.train(rng)
        return self

    # ---- what is trained ----

    def trainable(self):
        """{path: Parameter} that the objective trains: the exits, and for a joint one what is not frozen in the model."""
        out = {}
        if self.objective.trains_model:
            out = {path: p for path, p in self.model.named_parameters() if p.requires_grad}
            for attachment in vars(self.model).get("attachments", {}).values():
                out |= attachment.named_parameters() if attachment.enabled else {}
        return out | {f"exits.{path}": p for path, p in self.exits.named_parameters()}

    def table(self):
        """[(part, number of parameters, formula)] for each head, the model's own included."""
        paths, rows = [*(f"exits.{i}" for i in range(len(self.exits))), "head"], []
        for path, head in zip(paths, self.heads()):
            own = unwrap(head).parameters()
            rows.append((path, sum(p.size for p in own), " + ".join("x".join(map(str, p.shape)) for p in own)))
        return rows

    def check_trained(self):
        """Raise ValueError where the weights of an exit are still those that were drawn for it."""
        fresh = [str(i) for i, (head, drawn) in enumerate(zip(self.exits, self.drawn), 1)
                 if np.array_equal(head.classifier.weight.data, drawn)]
        if fresh:
            raise ValueError(f"early exit: exit {', '.join(fresh)} of {len(self.heads())} was never trained, so that examples "
                             "would leave there at random; train with training.fit on trainable(), or use load_exits")

    # ---- files ----

    def save_exits(self, folder):
        """Write the exits, without the model's own head, into a folder. Raises ValueError where one was never trained."""
        from ..data import files  # here, so that early exit itself needs NumPy alone

        self.check_trained()
        arrays = {f"exits.{path}": p.data for path, p in self.exits.named_parameters()}
        files.write_folder(folder, {WEIGHTS: arrays, NOTE: self._note()})

    def load_exits(self, folder):
        """Take the exits from a folder written by `save_exits`. Raises ValueError, changing nothing, where they do not fit."""
        from ..data import files

        note, path = files.read_json(Path(folder) / NOTE, "note on exits"), Path(folder) / WEIGHTS
        for name, value in self._note().items():
            if note.get(name) != value:
                raise ValueError(f"{Path(folder) / NOTE}: these exits have {name} {note.get(name)!r}, this model has {value!r}")
        parameters, arrays = {f"exits.{p}": v for p, v in self.exits.named_parameters()}, files.read_tensors(path)
        files.check_tensors(path, {name: p.shape for name, p in parameters.items()}, arrays)
        for name, parameter in parameters.items():
            parameter.data = arrays[name].astype(parameter.dtype)

    def _note(self):
        """What the tensors do not say, and must be as it was."""
        return {"blocks": len(self.heads()), "pooling": unwrap(self.model.head).pooling, "labels": list(self.model.config.labels)}
