"""What a run knows beyond `methods.METHODS`: the base as it is, and early exit, full fine-tuning with an exit behind each block.

    early exit   trains   sum_i w_i l_i   on everything (joint);  predicts   with a rule and a looseness, each example from the
                 exit at which it leaves

The exits are drawn at random beside a pre-trained model, so their learning rate is `EXITS_FACTOR` times the model's.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..autograd import Tensor
from ..methods import METHODS, RULES, EarlyExit, Full, Joint, Method
from ..methods.early_exit import NOTE
from ..methods.shapes import pooler_sizes
from ..nn import Wrapper

EXITS_FACTOR = 20  # what the exits' learning rate is, in units of the model's
RULE, LOOSENESS = "entropy", 0.3


@dataclass
class Base(Method):
    """The pre-trained model as it is, the reference: nothing is trained, and a classifier's head is as it was drawn."""

    name = "base"
    trains_head = False

    def count(self, config):
        return 0


class ExitHeads(Wrapper):
    """The model's own head, with the heads of the other blocks beside it; what it computes is the own head's."""

    def __init__(self, wrapped, exits):
        super().__init__(wrapped)
        self.exits = exits

    def forward(self, *args):
        return self.wrapped(*args)


@dataclass
class EarlyExitTuning(Full):
    """Train everything with an exit behind each block, and let each example leave where the rule accepts its exit.

    Args:
        exit_weights: w_i, ``equal`` (1 each) or ``depth`` (i / sum j).
        exit_rule: ``entropy``, ``margin`` or ``patience``. looseness: from 0 (nobody leaves early) to 1.

    Count: all N parameters and (L - 1) (D C + C) for the exits (GPT-2's and LLaMA's heads have no bias; with BERT's pooler
    D^2 + D more for each).
    """

    exit_weights: str = "depth"
    exit_rule: str = RULE
    looseness: float = LOOSENESS

    name = "early_exit"
    trains = "N, every parameter, and (L - 1) heads"
    model = None  # the EarlyExit around the model, once it is attached

    def check(self, config):
        if self.exit_rule not in RULES:
            raise ValueError(f"exit_rule: expected one of {', '.join(RULES)}, got {self.exit_rule!r}")
        RULES[self.exit_rule](self.looseness)

    def wrappers(self, model, rng):
        self.model = EarlyExit(model, Joint(self.exit_weights), rng)
        return {"head": ExitHeads(model.get("head"), self.model.exits)}

    def count(self, config):
        width, classes, square = config.hidden_size, len(config.labels), pooler_sizes(config).values()
        head = (width + (not config.causal)) * classes + sum(d_in * d_out + d_out for d_in, d_out in square)
        return super().count(config) + (config.num_hidden_layers - 1) * head

    def formula(self, path, wrapper):
        own = [sum(p.size for p in head.parameters()) for head in wrapper.exits]
        return f"{len(own)} x {own[0]}"

    def lr_scale(self, path):
        return EXITS_FACTOR if path.startswith("head.exits.") else 1.0


# What ``finetune`` and ``compare`` offer, and what a run may be of.
OFFERED = METHODS | {EarlyExitTuning.name: EarlyExitTuning}
KNOWN = OFFERED | {Base.name: Base}


class Leaving:
    """A model with exits as it predicts: called like a model, it gives the logits of the exit at which each example left.

    ``layers``: for each batch that it has seen, the exits' numbers, from 1.
    """

    def __init__(self, exits, rule, looseness):
        self.exits, self.rule, self.layers = exits, RULES[rule](looseness), []

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
        out = self.exits.predict(self.rule, input_ids, attention_mask, token_type_ids)
        self.layers.append(out.layers)
        return SimpleNamespace(logits=Tensor(out.logits))

    def mean_layer(self):
        """The mean exit layer of all examples seen since the last call."""
        layers, self.layers = np.concatenate(self.layers), []
        return float(layers.mean())


def models_of(attachment):
    """(model to train, model to predict with) of an attachment: two faces of one model, and but for early exit the same."""
    method = attachment.method
    if not isinstance(method, EarlyExitTuning):
        return attachment.model, attachment.model
    return method.model, Leaving(method.model, method.exit_rule, method.looseness)


def leaving_from(model, folder, rule, looseness):
    """A loaded model as it predicts with the exits that lie in its folder. Raises ValueError where there are none."""
    if not (Path(folder) / NOTE).is_file():
        raise ValueError(f"{folder}: no {NOTE}, so this model has no exits; make one with finetune --method early_exit, or leave "
                         "out --exit-rule and --looseness")
    exits = EarlyExit(model)
    exits.load_exits(folder)
    return Leaving(exits, rule, looseness)
