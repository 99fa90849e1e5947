"""DoRA: the length and the direction of each column of a weight are learned apart, the direction with LoRA.

    V' = W + s U V^T,   c_j = |column j of V'|,   W' = m * V' / c,   h = x W' + b        m starts as the column lengths of W
    with G = x^T g:     dm_j = sum_i G_ij V'_ij / c_j,      dV' = (m / c) * (G - V' * (sum_i V'_i G_i) / c^2)
    and then            dU = s dV' V,   dV = s dV'^T U

The product U V^T is not formed in training:  c_j^2 = |W_j|^2 + 2 s (V (W^T U)^T)_jj + s^2 (V U^T U V^T)_jj. With
``detach_norm`` c counts as a constant in the backward pass, dV' = (m / c) * G, which saves memory and is what PEFT does.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, ICML 2024, arXiv:2402.09353, sections 4.1 and 4.3 (whose s is 1).

Shapes: W (D_in, D_out), U (D_in, R), V (D_out, R), m and c (D_out,). Merges: W' takes W's place.
"""

from dataclasses import dataclass

from .. import autograd as F
from ..nn import Parameter, unwrap
from .lora import LoRA, LoRALinear
from .shapes import linear_shapes


class DoRALinear(LoRALinear):
    """A Linear with a low-rank change of its columns' directions and a magnitude for each. A fresh one changes nothing."""

    level = 1
    additive = False

    def __init__(self, wrapped, rank, scale, dropout, rng, detach_norm=False):
        super().__init__(wrapped, rank, scale, dropout, rng)
        self.base_weight = unwrap(wrapped).weight.data  # W itself, frozen, of which the lengths are taken
        self.squares = (self.base_weight**2).sum(axis=0)  # (D_out,)
        self.detach_norm = detach_norm
        self.m = Parameter(self.squares**0.5)  # as `lengths` computes them, so that the ratio is exactly 1 at first

    def lengths(self):
        """c (D_out,), the lengths of the columns of W + s U V^T."""
        U, V, s = self.U, self.V, self.scale
        cross = (F.linear(F.Tensor(self.base_weight.T), U) * V).sum(axis=1)  # (D_out,): w_j . (U V^T)_j
        change = (F.linear(V, F.swap_last(U) @ U) * V).sum(axis=1)  # (D_out,): |(U V^T)_j|^2
        c = (F.Tensor(self.squares) + cross * (2 * s) + change * s**2) ** 0.5
        return F.Tensor(c.data) if self.detach_norm else c

    def forward(self, x):
        """h (..., D_out) of x (..., D_in)."""
        bias, y = unwrap(self).bias, self.wrapped(x)
        low = F.linear(self.dropout(x), self.U) * self.scale  # (..., R)
        plain, ratio = y if bias is None else y - bias, self.m / self.lengths()  # x W, and (D_out,)
        change = plain * (ratio - 1.0) + F.linear(low, F.swap_last(self.V)) * ratio  # (..., D_out): h - (x W + b)
        if self.rows is not None:
            change = change * self.rows.reshape(-1, *[1] * (y.ndim - 1))
        return y + change

    def merged_arrays(self, weight, bias):
        """m * (W + s U V^T) / c, and b."""
        return (self.m.data / self.lengths().data) * (weight + self.change()), bias


@dataclass
class DoRA(LoRA):
    """DoRA on every Linear that ``targets`` names.

    Args (besides LoRA's):
        detach_norm: treat c as a constant in the backward pass.

    Count: R (D_in + D_out) + D_out for each map.
    """

    detach_norm: bool = False

    name = "dora"

    def make(self, wrapped, rank, scale, rng):
        return DoRALinear(wrapped, rank, scale, self.dropout, rng, self.detach_norm)

    def formula(self, path, wrapper):
        return f"{super().formula(path, wrapper)} + {wrapper.m.size}"

    def count(self, config):
        shapes = linear_shapes(config)
        return super().count(config) + sum(shapes[path][1] for path in self.places(list(shapes)))
