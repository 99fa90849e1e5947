"""AdaLoRA: a low-rank change in the form of a singular value decomposition, whose rank is spent where it matters most.

    Delta W = s U diag(lambda) V^T,      h = x W + b + s ((x U) * lambda) V^T,      s = alpha / rank
    penalty = gamma sum (|U^T U - I|^2 + |V^T V - I|^2)          so that U and V stay near orthogonal columns

    sensitivity of an entry w   I = |w dL/dw|,   smoothed I' <- b1 I' + (1 - b1) I,   uncertainty Q <- b2 Q + (1 - b2) |I - I'|
    score of triplet i          S_i = (I' Q)(lambda_i) + mean of (I' Q) over column i of U + the same over column i of V
    budget at step t            b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3,   b_0 before t_i, b_T after T - t_f

Every so many steps the b(t) lambdas of all matrices with the highest scores are kept and the others set to zero; they may come
back, until the final phase, in which the choice stands.

Zhang, Chen, Bukharin, He, Cheng, Chen, Zhao, ICLR 2023, arXiv:2303.10512, sections 3.1 to 3.3.

Shapes: U (D_in, R), lambda (R,), V (D_out, R). Count: R (D_in + D_out + 1) for each map. Merges as LoRA does.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter
from ..training.hooks import Hook
from .lora import LoRA, LoRALinear
from .shapes import linear_shapes


class AdaLoRALinear(LoRALinear):
    """A Linear with a change of R weighted directions beside it. The weights, lambda, start at zero."""

    def __init__(self, wrapped, rank, scale, dropout, rng):
        super().__init__(wrapped, rank, scale, dropout, rng)
        kind = self.U.dtype.type
        columns = rng.standard_normal(self.V.shape).astype(kind)
        self.V = Parameter(columns * kind(self.V.shape[0] ** -0.5))  # (D_out, R), columns of length near 1
        self.lambdas = Parameter(np.zeros(rank, kind))  # (R,)

    def forward(self, x):
        """h (..., D_out) of x (..., D_in)."""
        low = F.linear(self.dropout(x), self.U) * self.lambdas * self.scale  # (..., R)
        if self.rows is not None:
            low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
        return self.wrapped(x) + F.linear(low, F.swap_last(self.V))  # (..., D_out)

    def factors(self):
        """s U diag(lambda) (D_in, R) and V (D_out, R), whose product is the change."""
        return self.U.data * (self.lambdas.data * self.U.dtype.type(self.scale)), self.V.data


class Budget(Hook):
    """Keeps the scores of all triplets, and the number of those that are not zero within the budget."""

    def __init__(self, method, wrappers):
        self.method, self.wrappers = method, wrappers
        kept = [(w.U, w.lambdas, w.V) for w in wrappers]
        self.smoothed = [[np.zeros(p.shape) for p in three] for three in kept]  # I'
        self.uncertainty = [[np.zeros(p.shape) for p in three] for three in kept]  # Q
        self.mask = np.ones(sum(w.lambdas.size for w in wrappers))

    def budget(self, step, total):
        """b(t): how many lambdas of all matrices may stay."""
        m, first = self.method, self.mask.size
        last, begin, end = m.target_rank * len(self.wrappers), round(m.warmup * total), total - round(m.final * total)
        if step < begin:
            return first
        left = max(0.0, 1 - (step - begin) / max(end - begin, 1))
        return min(first, round(last + (first - last) * left**3))

    def penalty(self):
        total = 0.0
        for wrapper in self.wrappers:
            for factor in (wrapper.U, wrapper.V):
                off = F.swap_last(factor) @ factor - np.eye(factor.shape[1], dtype=factor.dtype)  # (R, R)
                total = total + (off * off).sum()
        return total * self.method.orthogonality

    def after_backward(self, step, total):
        beta1, beta2 = self.method.beta1, self.method.beta2
        for wrapper, smoothed, uncertainty in zip(self.wrappers, self.smoothed, self.uncertainty):
            for i, p in enumerate((wrapper.U, wrapper.lambdas, wrapper.V)):
                sensitivity = np.abs(p.data * (0 if p.grad is None else p.grad)).astype(np.float64)
                smoothed[i] += (1 - beta1) * (sensitivity - smoothed[i])
                uncertainty[i] += (1 - beta2) * (np.abs(sensitivity - smoothed[i]) - uncertainty[i])

    def scores(self):
        """S of every triplet of every matrix, one after the other."""
        out = []
        for smoothed, uncertainty in zip(self.smoothed, self.uncertainty):
            u, weight, v = (a * b for a, b in zip(smoothed, uncertainty))
            out.append(weight + u.mean(axis=0) + v.mean(axis=0))  # (R,)
        return np.concatenate(out)

    def after_step(self, step, total):
        end = total - round(self.method.final * total)
        if step < end and step % self.method.interval == 0 or step == end:
            order = np.argsort(-self.scores(), kind="stable")
            self.mask = np.zeros(self.mask.size)
            self.mask[order[:self.budget(step, total)]] = 1
            self._apply()
        elif step > end:
            self._apply()

    def _apply(self):
        start = 0
        for wrapper in self.wrappers:
            wrapper.lambdas.data[self.mask[start:start + wrapper.lambdas.size] == 0] = 0
            start += wrapper.lambdas.size

    def arrays(self):
        state = {f"{name}.{i}.{j}": array for name in ("smoothed", "uncertainty")
                 for i, three in enumerate(getattr(self, name)) for j, array in enumerate(three)}
        return state | {"mask": self.mask}

    def load_arrays(self, arrays):
        self.mask = arrays["mask"].copy()
        for name in ("smoothed", "uncertainty"):
            for i, three in enumerate(getattr(self, name)):
                three[:] = [arrays[f"{name}.{i}.{j}"].copy() for j in range(3)]


@dataclass
class AdaLoRA(LoRA):
    """AdaLoRA on every Linear that ``targets`` names; ``rank`` is each matrix's at the start.

    Args (besides LoRA's):
        target_rank: average rank of a matrix at the end. orthogonality: gamma.
        warmup, final: shares of the steps before the budget falls and after it has. interval: steps between two choices.
        beta1, beta2: how much of the smoothed values stays at each step.
    """

    rank: int = 12
    target_rank: int = 8
    orthogonality: float = 0.1
    warmup: float = 0.1
    final: float = 0.3
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.85

    name = "adalora"
    default_lr = 2e-3

    def make(self, wrapped, rank, scale, rng):
        return AdaLoRALinear(wrapped, rank, scale, self.dropout, rng)

    def hooks(self, attachment):
        return [Budget(self, [w for w in attachment.wrappers.values() if isinstance(w, AdaLoRALinear)])]

    def formula(self, path, wrapper):
        return f"R (D_in + D_out + 1) = {wrapper.lambdas.size} ({wrapper.U.shape[0]} + {wrapper.V.shape[0]} + 1)"

    def count(self, config):
        return super().count(config) + sum(rank for rank, _ in self.places(list(linear_shapes(config))).values())
