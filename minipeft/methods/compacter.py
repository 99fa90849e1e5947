"""Compacter: Houlsby's adapters whose matrices are sums of Kronecker products, the left factors of which all layers share.

    D = sum_{i=1..n} A_i (x) (s_i t_i),   E likewise with s, t of its own and the same A        (x) the Kronecker product
    MLP(z) = act(z D + b_D) E + b_E,      join(x, h + MLP(h))

The n matrices A_i are learned once for the whole model; the right factors have rank 1. E's t start at zero, so that a fresh
one changes nothing.

Karimi Mahabadi, Henderson, Ruder, NeurIPS 2021, arXiv:2106.04647, sections 3.1 and 3.2.

Shapes: A (n, n, n), s (n, D/n, 1), t (n, 1, R/n) for D (D, R); s (n, R/n, 1), t (n, 1, D/n) for E (R, D); n divides D and R.
Count: n^3 + 2 (D + R) + R + D for each adapter, two of which stand in a block. A nonlinearity stands between the two
matrices, so that they cannot be merged.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Activation, Dropout, Module, Parameter, initial
from .adapter import Houlsby


class KroneckerLinear(Module):
    """y = x W + b with W = sum_i A_i (x) (s_i t_i)."""

    def __init__(self, A, d_in, d_out, rng, std):
        n = len(A.data)
        self.A = A  # (n, n, n), the same Parameter everywhere
        self.s = initial(rng, (n, d_in // n, 1), 1.0)
        self.t = initial(rng, (n, 1, d_out // n), std) if std else Parameter(np.zeros((n, 1, d_out // n), np.float32))
        self.bias = Parameter(np.zeros(d_out, np.float32))

    def weight(self):
        """W (D_in, D_out): entry (a D_in/n + p, b D_out/n + q) is sum_i A_i[a, b] s_i[p] t_i[q]."""
        n, rows, columns = len(self.A.data), self.s.shape[1], self.t.shape[2]
        left = self.A.reshape(n, n, 1, n, 1)
        right = (self.s * self.t).reshape(n, 1, rows, 1, columns)
        return (left * right).sum(axis=0).reshape(n * rows, n * columns)  # (n, rows, n, columns) -> (D_in, D_out)

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        return F.linear(x, self.weight(), self.bias)


class KroneckerBottleneck(Module):
    """MLP(z) = act(z D + b_D) E + b_E with both matrices made of Kronecker products."""

    def __init__(self, A, width, bottleneck, activation, dropout, initial_std, rng):
        self.down = KroneckerLinear(A, width, bottleneck, rng, width**-0.5)
        self.act = Activation(activation)
        self.dropout = Dropout(dropout)
        self.up = KroneckerLinear(A, bottleneck, width, rng, initial_std)

    def forward(self, z):
        """z (B, T, D) -> (B, T, D)."""
        return self.up(self.act(self.down(self.dropout(z))))


@dataclass
class Compacter(Houlsby):
    """Compacter on the joins of attention and feed-forward.

    Args (besides Houlsby's):
        num_factors: n, the number of Kronecker products in a sum; it divides the model's width and the bottleneck.
    """

    activation: str = "gelu"
    num_factors: int = 4

    name = "compacter"

    def wrappers(self, model, rng):
        n, width = self.num_factors, model.config.hidden_size
        if not (isinstance(n, (int, np.integer)) and n >= 1 and width % n == 0 and self.bottleneck % n == 0):
            raise ValueError(f"compacter: num_factors must be a whole number that divides the width {width} and the bottleneck "
                             f"{self.bottleneck}, got {n}")
        self.A = initial(rng, (n, n, n), n**-0.5)
        return super().wrappers(model, rng)

    def make_network(self, width, rng):
        return KroneckerBottleneck(self.A, width, self.bottleneck, self.activation, self.dropout, self.initial_std, rng)

    def formula(self, path, wrapper):
        width, inner = wrapper.mlp.up.bias.size, wrapper.mlp.down.bias.size
        return f"3 (D + R) = 3 x ({width} + {inner}), and n^3 = {self.num_factors}^3 shared by all"

    def adapter_size(self, width):
        return 2 * (width + self.bottleneck) + self.bottleneck + width

    def count(self, config):
        return super().count(config) + self.num_factors**3
