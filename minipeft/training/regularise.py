"""Regularisers of fine-tuning, each a small piece that can be put together with the others.

    L2-SP             + a/2 |theta - theta_0|^2 + b/2 |head|^2              gradient a (theta - theta_0), b head
    mixout            theta~ = (M theta_0 + (1 - M) theta - p theta_0) / (1 - p),   M ~ Bernoulli(p) for each entry
                      on average theta itself
    label smoothing   target (1 - e) onehot(y) + e / C,                      dlogits = softmax(logits) - target

Weight decay stands in the optimizer (``optim.py``) and dropout in the layers (``nn/layers.py``).

Li, Grandvalet, Davoine, ICML 2018, arXiv:1802.01483, section 3.2 (L2-SP); Lee, Cho, Kang, ICLR 2020, arXiv:1909.11299, section 3
(mixout); Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv:1512.00567, section 7 (label smoothing).
"""

import contextlib

import numpy as np

from .. import autograd as F
from ..nn import Linear, Wrapper, unwrap
from .hooks import Hook

HEAD = "head."


class L2SP(Hook):
    """A penalty on the distance from where training starts, and for the head, which starts nowhere, from zero.

    Args:
        parameters: {path: Parameter} that are trained; those whose path begins with ``head.`` are the head's.
        alpha: a, of the distance from the start. beta: b, of the head.
    """

    def __init__(self, parameters, alpha=0.01, beta=0.01):
        if alpha < 0 or beta < 0:
            raise ValueError(f"L2-SP: alpha and beta must be 0 or more, got {alpha} and {beta}")
        self.parameters, self.alpha, self.beta = parameters, alpha, beta
        self.start = {path: p.data.copy() for path, p in parameters.items() if not path.startswith(HEAD)}

    def penalty(self):
        total = 0.0
        for path, p in self.parameters.items():
            off, strength = (p, self.beta) if path.startswith(HEAD) else (p - self.start[path], self.alpha)
            if strength:
                total = total + (off * off).sum() * (strength / 2)
        return None if isinstance(total, float) else total

    def arrays(self):
        return self.start

    def load_arrays(self, arrays):
        self.start = {path: arrays[path].copy() for path in self.start}


class MixoutLinear(Wrapper):
    """A Linear whose weight is mixed with the one it started from, entry by entry, in training."""

    def __init__(self, wrapped, probability):
        super().__init__(wrapped)
        self.start, self.probability = unwrap(wrapped).weight.data.copy(), probability  # (D_in, D_out)

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        if not self.training or self.probability == 0:
            return self.wrapped(x)
        root, p = unwrap(self), self.probability
        mixed = self.rng.random(self.start.shape) < p  # M
        weight = F.where(mixed, F.Tensor(self.start), root.weight)
        weight = (weight - self.start * self.start.dtype.type(p)) * (1 / (1 - p))
        return F.linear(x, weight, root.bias)  # (..., D_out)


@contextlib.contextmanager
def mixout(model, probability):
    """Inside this block every Linear of the blocks whose weight is trained is mixed out while training.

    Raises ValueError for a probability outside [0, 1) and where no weight of the blocks is trained in place.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"mixout: the probability must lie in [0, 1), got {probability}")
    paths = [path for path, m in model.named_modules() if isinstance(m, Linear) and "blocks" in path.split(".")
             and getattr(m.weight, "requires_grad", False)]
    wrapped = [path for path in paths if isinstance(model.get(path), Wrapper)]
    if not paths or wrapped:
        reason = (f"{wrapped[0]} has an attachment on it; mixout goes with training in place" if wrapped else
                  "no weight of the blocks is trained in place (it goes with methods such as full and top_k)")
        raise ValueError(f"mixout: {reason}")
    try:
        for path in paths:
            model.replace(path, MixoutLinear(model.get(path), probability))
        yield model
    finally:
        for path in paths:
            model.replace(path, model.get(path).wrapped)


def smoothed_cross_entropy(logits, labels, smoothing):
    """Mean cross-entropy against (1 - e) onehot(y) + e / C; logits (B, C), labels (B,), e = ``smoothing`` in [0, 1).

    (1 - e) CE(logits, y) + e (logsumexp(logits) - mean of logits), whose second term is written as a cross-entropy too.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing: expected a number from 0 to below 1, got {smoothing}")
    loss = F.cross_entropy(logits, labels)
    if smoothing == 0:
        return loss
    classes = logits.shape[1]
    own = logits[np.arange(len(labels)), labels]  # (B,)
    return loss + (own - logits.sum(axis=1) * (1 / classes)).mean() * smoothing
