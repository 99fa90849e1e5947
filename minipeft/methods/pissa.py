"""PiSSA: LoRA that starts from a weight's principal components, so that training moves what matters most in it first.

    W = P S Q^T (singular values falling),   U_0 = P_r S_r^(1/2),   V_0 = Q_r S_r^(1/2)
    h = x W + b + (x U V^T - x U_0 V_0^T),      W' = W + U V^T - U_0 V_0^T         U, V start at U_0, V_0

The paper moves U_0 V_0^T out of W; here W keeps its bits and the fixed product is subtracted, which is the same function. It
is also a LoRA of rank 2 R with the factors [U, U_0] and [V, -V_0], which is how other libraries can hold it.

Meng, Wang, Zhang, NeurIPS 2024, arXiv:2404.02948, section 3.

Shapes: U, U_0 (D_in, R), V, V_0 (D_out, R); the scale is 1. Count: R (D_in + D_out) for each map, as in LoRA.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, unwrap
from .lora import LoRA, LoRALinear


def principal_factors(weight, rank):
    """U_0 and V_0 of a weight (D_in, D_out); the largest entry of each column of U_0 is positive, which fixes the signs."""
    left, singular, right = np.linalg.svd(weight, full_matrices=False)
    roots = np.sqrt(singular[:rank])
    u, v = left[:, :rank] * roots, right[:rank].T * roots  # (D_in, R), (D_out, R)
    signs = np.sign(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], 0)[0])
    signs[signs == 0] = 1
    return np.ascontiguousarray(u * signs), np.ascontiguousarray(v * signs)


class PiSSALinear(LoRALinear):
    """A Linear beside which a low-rank product moves away from the weight's own principal part. A fresh one changes nothing."""

    def __init__(self, wrapped, rank, dropout, rng):
        super().__init__(wrapped, rank, 1.0, dropout, rng)
        self.U0, self.V0 = principal_factors(unwrap(wrapped).weight.data, rank)
        self.U, self.V = Parameter(self.U0.copy()), Parameter(self.V0.copy())

    def forward(self, x):
        """h (..., D_out) of x (..., D_in)."""
        x_in = self.dropout(x)
        now = F.linear(F.linear(x_in, self.U), F.swap_last(self.V))  # (..., D_out)
        start = F.linear(F.linear(x_in, F.Tensor(self.U0)), F.Tensor(self.V0.T))  # (..., D_out)
        change = now - start
        if self.rows is not None:
            change = change * self.rows.reshape(-1, *[1] * (change.ndim - 1))
        return self.wrapped(x) + change

    def factors(self):
        """[U, U_0] (D_in, 2 R) and [V, -V_0] (D_out, 2 R), whose product is U V^T - U_0 V_0^T."""
        return np.hstack([self.U.data, self.U0]), np.hstack([self.V.data, -self.V0])


@dataclass
class PiSSA(LoRA):
    """PiSSA on every Linear that ``targets`` names; ``alpha`` has no part in it, the scale being 1."""

    name = "pissa"
    default_lr = 5e-4

    def scale(self, rank, alpha):
        return 1.0

    def make(self, wrapped, rank, scale, rng):
        return PiSSALinear(wrapped, rank, self.dropout, rng)
