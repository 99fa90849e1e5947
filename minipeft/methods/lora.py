"""LoRA: the change of a weight matrix is learned as a product of two thin matrices, and can be merged into it.

    h = x W + b + s (x U) V^T,        W' = W + s U V^T,        s = alpha / rank  (rank-stabilised: alpha / sqrt(rank))
    dU = s x^T (g V),   dV = s g^T (x U),   dx = g W^T + s (g V) U^T

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022, arXiv:2106.09685, section 4.1; the second scale is
Kalajdzievski, 2023, arXiv:2312.03732. In the paper's letters A = U^T and B = V.

Shapes: x (..., D_in), W (D_in, D_out), U (D_in, R), V (D_out, R). Count: R (D_in + D_out) for each map. Merges: W' takes
W's place.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .. import autograd as F
from ..nn import Dropout, Parameter, Wrapper, unwrap
from .attach import Method
from .shapes import linear_shapes
from .targets import linear_paths, match


class LoRALinear(Wrapper):
    """A Linear with a low-rank change beside it. U starts Gaussian and V at zero, so that a fresh one changes nothing."""

    additive = mixes_rows = True

    def __init__(self, wrapped, rank, scale, dropout, rng):
        super().__init__(wrapped)
        d_in, d_out = unwrap(wrapped).weight.shape
        kind = unwrap(wrapped).weight.dtype.type
        self.U = Parameter(rng.standard_normal((d_in, rank)).astype(kind) * kind(d_in**-0.5))  # (D_in, R)
        self.V = Parameter(np.zeros((d_out, rank), kind))  # (D_out, R)
        self.scale = scale
        self.dropout = Dropout(dropout)

    def forward(self, x):
        """h (..., D_out) of x (..., D_in)."""
        low = F.linear(self.dropout(x), self.U) * self.scale  # (..., R); U V^T itself is never formed in training
        if self.rows is not None:
            low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
        return self.wrapped(x) + F.linear(low, F.swap_last(self.V))  # (..., D_out)

    def factors(self):
        """s U (D_in, R) and V (D_out, R), whose product is the change."""
        return self.U.data * self.U.dtype.type(self.scale), self.V.data

    def change(self):
        """s U V^T, (D_in, D_out)."""
        u, v = self.factors()
        return u @ v.T

    def merged_arrays(self, weight, bias):
        """W + s U V^T, and b."""
        return weight + self.change(), bias


@dataclass
class LoRA(Method):
    """LoRA on every Linear that ``targets`` names.

    Args:
        rank: R, the width of the bottleneck, from 1 to the smaller side of the matrix.
        alpha: the change is scaled by alpha / rank; a positive number.
        targets: patterns of paths (see `attach.match`); the paper adapts the query and value maps.
        dropout: probability with which an entry of x is dropped on its way to U, in training.
        rank_pattern, alpha_pattern: {pattern: value} that take precedence at the modules they match; of several
            patterns that match one module the last counts.
        rank_stabilised: scale by alpha / sqrt(rank) instead.

    Count: R (D_in + D_out) for each map; 4 D R L for the query and value maps of L layers of width D.
    """

    rank: int = 8
    alpha: float = 16
    targets: object = "attn.q,attn.v"
    dropout: float = 0.0
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    rank_stabilised: bool = False

    name = "lora"
    default_lr = 1e-3
    limited = True  # whether ranks above the smaller side of a matrix, which gain nothing, are refused

    def divisor(self, rank):
        """What alpha is divided by: the rank, or its square root."""
        return math.sqrt(rank) if self.rank_stabilised else rank

    def scale(self, rank, alpha):
        """s, by which U V^T is multiplied, for a rank and an alpha."""
        return alpha / self.divisor(rank)

    def places(self, paths):
        """{path: (rank, alpha)} of the maps to adapt among the ``paths`` of all maps."""
        paths = match(self.targets, paths, f"{self.name} targets")
        ranks = {p: r for pattern, r in self.rank_pattern.items() for p in match(pattern, paths, f"{self.name} rank_pattern")}
        alphas = {p: a for pattern, a in self.alpha_pattern.items() for p in match(pattern, paths, f"{self.name} alpha_pattern")}
        return {path: (ranks.get(path, self.rank), alphas.get(path, self.alpha)) for path in paths}

    def count(self, config):
        shapes = linear_shapes(config)
        return sum(rank * sum(shapes[path]) for path, (rank, _) in self.places(list(shapes)).items())  # R (D_in + D_out)

    def wrappers(self, model, rng):
        out = {}
        for path, (rank, alpha) in self.places(linear_paths(model)).items():
            limit = min(unwrap(model.get(path)).weight.shape) if self.limited else math.inf
            if not (isinstance(rank, (int, np.integer)) and 1 <= rank <= limit):
                raise ValueError(f"{self.name}: the rank at {path} must be a whole number from 1 to {limit}, got {rank}")
            if not 0 < alpha < math.inf:
                raise ValueError(f"{self.name}: alpha at {path} must be a positive number, got {alpha}")
            out[path] = self.make(model.get(path), rank, self.scale(rank, alpha), rng)
        return out

    def make(self, wrapped, rank, scale, rng):
        """The wrapper for one map."""
        return LoRALinear(wrapped, rank, scale, self.dropout, rng)

    def formula(self, path, wrapper):
        (d_in, rank), d_out = wrapper.U.shape, wrapper.V.shape[0]
        return f"R (D_in + D_out) = {rank} ({d_in} + {d_out})"
