"""Masks: a fixed small share of the entries of the blocks' maps is trained, here one that is drawn at random.

    theta = theta_0 + M * delta,      dL/ddelta = M * dL/dtheta         M in {0, 1}; only the entries with M = 1 are kept

Random entries are the control: what a method of the same size reaches that chooses nothing. ``fisher.py`` chooses.

Sung, Nair, Raffel, NeurIPS 2021, arXiv:2111.09839, section 2.1 (masks); random: Ben Zaken, Ravfogel, Goldberg, ACL 2022,
arXiv:2106.10199, table 3.

Shapes: delta (K,), the kept entries of one map's weight and bias. Count: round(share N) of the N entries of all Linear maps
in the blocks. Merges: theta takes theta_0's place.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, Wrapper, unwrap
from .attach import Method
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
