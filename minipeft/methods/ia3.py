"""(IA)3: learned vectors multiply keys, values and the feed-forward's inner activations, and nothing else is trained.

    k <- l_k * (x W_k + b_k),   v <- l_v * (x W_v + b_v),   feed-forward: (l_f * act(u W_1)) W_2        all l start at 1
    dl = sum of g * y over batch and time, for a scaled output l * y;    dl = sum of (g W^T) * x, for a scaled input

Scaling the keys by l_k equals scaling the queries by l_k (where nothing rotates them), so that one of the two is enough.
In a gated feed-forward l_f multiplies the product that enters W_2. The vectors are "virtual parameters": rows of one batch
may each have their own.

Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel, NeurIPS 2022, arXiv:2205.05638, section 3.3.

Shapes: l_k, l_v (D_out,) of their maps, l_f (F,). Count: L (D_k + D_v + F); a decoder with cross-attention L (2 D_k + 2 D_v + F).
Merges: W_k diag(l_k) and b_k l_k, likewise v, and diag(l_f) W_2.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, Wrapper, unwrap
from .attach import Method
from .shapes import linear_shapes
from .targets import linear_paths, match


class Scaled(Wrapper):
    """A Linear whose output, or input, is multiplied by a vector ``l``, which starts at one."""

    level = 2
    mixes_rows = True

    def __init__(self, wrapped, at_input):
        super().__init__(wrapped)
        self.at_input = at_input
        weight = unwrap(wrapped).weight
        self.l = Parameter(np.ones(weight.shape[0 if at_input else 1], weight.dtype))  # (D_in,) or (D_out,)

    def scale(self, y):
        """l * y, in the rows that this attachment has."""
        if self.rows is None:
            return y * self.l
        return F.where(self.rows.reshape(-1, *[1] * (y.ndim - 1)), y * self.l, y)

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        return self.wrapped(self.scale(x)) if self.at_input else self.scale(self.wrapped(x))

    def merged_arrays(self, weight, bias):
        """diag(l) W and b, or W diag(l) and l b."""
        if self.at_input:
            return self.l.data[:, None] * weight, bias
        return weight * self.l.data, None if bias is None else bias * self.l.data


@dataclass
class IA3(Method):
    """(IA)3 on every Linear that the patterns name.

    Args:
        targets: patterns of the maps whose output is scaled. feedforward: of those whose input is.
    """

    targets: object = "k,v"
    feedforward: object = "mlp.down"

    name = "ia3"
    default_lr = 5e-3

    def places(self, paths):
        """{path: whether the input is scaled} of the maps among ``paths``."""
        at_input = match(self.feedforward, paths, "ia3 feedforward") if self.feedforward else []
        at_output = match(self.targets, paths, "ia3 targets") if self.targets else []
        both = sorted(set(at_input) & set(at_output))
        if both or not at_input and not at_output:
            raise ValueError("ia3: expected each map in targets or in feedforward, "
                             + (f"{both[0]} is in both" if both else "and at least one"))
        return {path: path in at_input for path in paths if path in at_input or path in at_output}

    def wrappers(self, model, rng):
        return {path: Scaled(model.get(path), at_input) for path, at_input in self.places(linear_paths(model)).items()}

    def formula(self, path, wrapper):
        return f"{'D_in' if wrapper.at_input else 'D_out'} = {wrapper.l.size}"

    def count(self, config):
        shapes = linear_shapes(config)
        return sum(shapes[path][0 if at_input else 1] for path, at_input in self.places(list(shapes)).items())
