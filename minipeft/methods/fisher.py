"""The FISH mask: of the entries of the blocks' maps those are trained on which the prediction depends most.

    F_i = mean over x of E_{y ~ p(y|x)} (d log p(y|x) / d theta_i)^2
    theta = theta_0 + M * delta,      M = 1 on the largest F_i, else 0

F is the diagonal of the Fisher information: over what the model itself would say, whatever the data's labels are. How the
chosen entries are trained, stored and merged is ``mask.py``'s.

Sung, Nair, Raffel, NeurIPS 2021, arXiv:2111.09839, section 2.2.

Shapes: F as the parameter that it is of. Count: that of `RandomMask`.
"""

import math
from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..autograd import no_grad
from ..nn import unwrap
from .attach import none_active
from .mask import RandomMask
from .targets import linear_paths


@dataclass
class FisherMask(RandomMask):
    """Train the entries with the largest Fisher information.

    Args (besides RandomMask's):
        importance: {path of a parameter: array of its shape}, as `fisher_importance` gives it; `prepare` fills it in from
            training data. A mask that is read from a file needs none.
        examples: how many training examples `prepare` takes.
    """

    importance: object = None
    examples: int = 64

    name = "fisher_mask"
    unsaved = ("importance",)

    def prepare(self, model, work, rng):
        if not hasattr(work, "scores"):
            raise ValueError("fisher_mask: entries are weighed by what the model says of classes, and this work has none; use "
                             "random_mask")
        count = min(self.examples, len(work.targets["train"]))
        batches = [work.collate([i]) for i in rng.choice(len(work.targets["train"]), count, replace=False)]
        with none_active(model):  # as `attach` looks at the base
            self.importance = fisher_importance(model, batches, work.scores)

    def choose(self, model, sizes, rng):
        if self.importance is None:
            raise ValueError("fisher_mask: needs the importance of each parameter; give "
                             "FisherMask(importance=fisher_importance(model, batches)), or let prepare() compute it from "
                             "training data")
        scores = np.concatenate([self.importance[f"{path}.{name}"].reshape(-1) for path in sizes
                                 for name, _ in unwrap(model.get(path)).named_parameters()])
        return np.sort(np.argsort(-scores, kind="stable")[:self.kept(len(scores))])


def class_logits(model, batch):
    """The logits (B, C) of a model with a classification head, a Tensor."""
    if not model.config.labels:
        raise ValueError("fisher_importance: expected a model with a classification head; load it with task='classify', or give "
                         "the scores of a work that asks in words")
    return model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits


def fisher_importance(model, batches, scores=class_logits):
    """{path: F} of the parameters of the blocks' Linear maps, exactly: over all classes, weighted by p(y|x).

    Args:
        model: a model. batches: of one example each (a mean over several would mix their gradients).
        scores: a function of model and batch that gives (1, C), of which p(y|x) is the softmax; those of a prompt are
            `ClozeClassification.scores`.

    Each class costs a pass of ``scores`` and one back. Raises ValueError for batches of several examples and, where no
    ``scores`` are given, for a model without a classification head.
    """
    paths = linear_paths(model)
    parameters = {f"{path}.{name}": p for path in paths for name, p in unwrap(model.get(path)).named_parameters()}
    before = {path: p.requires_grad for path, p in parameters.items()}
    out = {path: np.zeros(p.shape) for path, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad = True
        for batch in batches:
            if len(batch.input_ids) != 1:
                raise ValueError(f"fisher_importance: expected batches of one example, got one of {len(batch.input_ids)}")
            with no_grad():
                classes = scores(model, batch).shape[1]
            for label in range(classes):
                loss = F.cross_entropy(scores(model, batch), np.array([label]))  # -log p(y|x)
                for path, gradient in zip(parameters, F.grad(loss, list(parameters.values()))):
                    out[path] += math.exp(-loss.item()) / len(batches) * gradient.astype(np.float64) ** 2
    finally:
        for path, p in parameters.items():
            p.requires_grad = before[path]
    return out
