"""Masks: a fixed small share of the entries of the blocks' maps is trained, drawn at random or by Fisher information.

    theta = theta_0 + M * delta,      dL/ddelta = M * dL/dtheta         M in {0, 1}; only the entries with M = 1 are kept
    Fisher:  F_i = mean over x of E_{y ~ p(y|x)} (d log p(y|x) / d theta_i)^2,       M = 1 on the largest F_i

Random entries are the control: what a method of the same size reaches that chooses nothing. Fisher information measures how
much the prediction depends on an entry.

Sung, Nair, Raffel, NeurIPS 2021, arXiv:2111.09839, sections 2.1 and 2.2 (FISH mask); random: Ben Zaken, Ravfogel, Goldberg,
ACL 2022, arXiv:2106.10199, table 3.

Shapes: delta (K,), the kept entries of one map's weight and bias. Count: round(share N) of the N entries of all Linear maps
in the blocks. Merges: theta takes theta_0's place.
"""

import math
from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..autograd import no_grad
from ..nn import Parameter, Wrapper, unwrap
from .attach import Method, none_active
from .shapes import bias_sizes, linear_shapes
from .targets import linear_paths


class MaskedLinear(Wrapper):
    """A Linear of which the entries ``indices`` (K,) are moved by ``delta``; they number the weight's, then the bias's."""

    additive = True
    fixed = ("indices",)

    def __init__(self, wrapped, indices):
        super().__init__(wrapped)
        self.indices = np.asarray(indices, np.int64)
        self.delta = Parameter(np.zeros(len(indices), unwrap(wrapped).weight.dtype))

    def parts(self):
        """delta at its places, as Tensors of the weight's shape and of the bias's (None without one)."""
        root = unwrap(self)
        size, out = root.weight.size, []
        for parameter, low in ((root.weight, 0), (root.bias, size)):
            if parameter is None:
                out.append(None)
                continue
            first, end = np.searchsorted(self.indices, (low, low + parameter.size))
            flat = F.put(self.delta[first:end], self.indices[first:end] - low, (parameter.size,), distinct=True)
            out.append(flat.reshape(*parameter.shape))
        return out

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        (weight, bias), inner = self.parts(), self.wrapped
        if inner is unwrap(self):  # theta_0 + M * delta itself, so that one product does
            return F.linear(x, inner.weight + weight, None if bias is None else inner.bias + bias)  # (..., D_out)
        return inner(x) + F.linear(x, weight, bias)  # (..., D_out)

    def merged_arrays(self, weight, bias):
        """W and b with delta added."""
        of_weight, of_bias = self.parts()
        return weight + of_weight.data, None if bias is None else bias + of_bias.data


@dataclass
class RandomMask(Method):
    """Train entries drawn at random.

    Args:
        share: how many of the entries of the blocks' Linear maps, from above 0 to 1.
    """

    share: float = 0.005

    name = "random_mask"
    full_precision = True
    default_lr = 1e-3

    def kept(self, total):
        """How many entries of so many are trained."""
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.name}: share must be a number above 0, up to 1, got {self.share}")
        return max(1, round(self.share * total))

    def choose(self, model, sizes, rng):
        """Sorted numbers of the trained entries among all, in the order of ``sizes`` {path: entries}."""
        total = sum(sizes.values())
        return np.sort(rng.choice(total, self.kept(total), replace=False))

    def wrappers(self, model, rng):
        sizes = {path: sum(p.size for p in unwrap(model.get(path)).parameters()) for path in linear_paths(model)}
        if self.known is not None:
            return {path: MaskedLinear(model.get(path), self._checked(self.known[f"{path}.indices"], path, size))
                    for path, size in sizes.items() if f"{path}.indices" in self.known}
        chosen, out, start = self.choose(model, sizes, rng), {}, 0
        for path, size in sizes.items():
            inside = chosen[np.searchsorted(chosen, start):np.searchsorted(chosen, start + size)]
            if len(inside):
                out[path] = MaskedLinear(model.get(path), inside - start)
            start += size
        return out

    def _checked(self, indices, path, size):
        """Stored indices, which must be rising numbers below ``size``."""
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices) or (np.diff(indices) <= 0).any() or not (
                0 <= indices[0] and indices[-1] < size):
            raise ValueError(f"{self.name}: {path}.indices must be rising whole numbers from 0 to {size - 1}")
        return indices

    def formula(self, path, wrapper):
        return f"some of {sum(p.size for p in unwrap(wrapper).parameters())}"

    @property
    def trains(self):
        """What is trained, in words."""
        return f"{self.share:g} of all numbers of the blocks' maps"

    def count(self, config):
        return self.kept(sum(d_in * d_out for d_in, d_out in linear_shapes(config).values()) + sum(bias_sizes(config).values()))


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
