"""Adapters: a small bottleneck network at the joins, where a sub-layer's output h meets the residual x.

    MLP(z) = act(z D + b_D) E + b_E
    Houlsby    join(x, h + MLP(h))              after attention and after the feed-forward
    Pfeiffer   join(x, h + MLP(join(x, h)))     after the feed-forward
    parallel   join(x, h + s MLP(x))            beside the feed-forward

    with Z = act(z D + b_D), delta = (g E^T) * act'(z D + b_D):   dE = Z^T g,  db_E = sum g,  dD = z^T delta,  db_D = sum delta,
    and through the network  dz = delta D^T

join(x, h) is the model's own: norm(x + h) in post-norm models, x + h in pre-norm ones. E and the biases start at zero, so
that a fresh adapter changes nothing; the papers start E near zero instead (``initial_std``).

Houlsby et al., ICML 2019, arXiv:1902.00751, section 2.1; Pfeiffer et al., EACL 2021, arXiv:2005.00247, section 3; He et al.,
ICLR 2022, arXiv:2110.04366, section 4 (parallel).

Shapes: x, h (B, T, D), D (D, R), E (R, D). Count for each adapter: 2 D R + R + D. A nonlinearity stands between the two
matrices, so that they cannot be merged into a weight.
"""

from dataclasses import dataclass

import numpy as np

from ..nn import Activation, Dropout, Join, Linear, LayerNorm, Module, RMSNorm, Wrapper, initial
from .attach import Method
from .shapes import join_paths, norm_sizes
from .targets import block_paths, match


class Bottleneck(Module):
    """MLP(z) = act(z D + b_D) E + b_E, (..., D) -> (..., D)."""

    def __init__(self, width, bottleneck, activation, dropout, initial_std, rng):
        self.down = Linear(width, bottleneck, True, rng, width**-0.5)
        self.act = Activation(activation)
        self.dropout = Dropout(dropout)
        self.up = Linear(bottleneck, width, True)
        if initial_std:
            self.up.weight = initial(rng, self.up.weight.shape, initial_std)

    def forward(self, z):
        """z (B, T, D) -> (B, T, D)."""
        return self.up(self.act(self.down(self.dropout(z))))


class HoulsbyJoin(Wrapper):
    """A join before which the sub-layer's output passes through the adapter."""

    def __init__(self, wrapped, mlp, scale):
        super().__init__(wrapped)
        self.mlp, self.scale = mlp, scale

    def adapted(self, x, h):
        """MLP of what this kind of adapter reads."""
        return self.mlp(h)

    def forward(self, x, h):
        """x and h (B, T, D) -> (B, T, D)."""
        change = self.adapted(x, h)
        return self.wrapped(x, h + (change if self.scale == 1.0 else change * self.scale))  # (B, T, D)


class PfeifferJoin(HoulsbyJoin):
    """A join whose own result is what the adapter reads; the join, with its norm, then comes a second time."""

    def adapted(self, x, h):
        return self.mlp(self.wrapped(x, h))


class ParallelJoin(HoulsbyJoin):
    """A join beside whose sub-layer the adapter reads the residual that entered it."""

    def adapted(self, x, h):
        return self.mlp(x)


@dataclass
class Houlsby(Method):
    """Adapters on the joins of attention and feed-forward.

    Args:
        bottleneck: R. activation: act. dropout: on what enters the adapter, in training. scale: what multiplies its output.
        targets: patterns of the joins. initial_std: of E's Gaussian; 0 for zeros.
        train_norms: train all norms along, as Houlsby et al. do; in place.
    """

    bottleneck: int = 16
    activation: str = "silu"
    targets: object = "attn.join,mlp.join"
    scale: float = 1.0
    dropout: float = 0.0
    initial_std: float = 0.0
    train_norms: bool = False

    name = "houlsby"
    default_lr = 1e-3
    unmergeable = "a nonlinearity stands between its two matrices"
    wrapper = HoulsbyJoin

    @property
    def trains(self):
        """What is trained, in words, where that is more than the adapters."""
        return "adapters, and D of each norm, 2 D where it has a bias" if self.train_norms else ""

    def _joins(self, paths):
        return match(self.targets, paths, f"{self.name} targets")

    def wrappers(self, model, rng):
        width = model.config.hidden_size
        if not (isinstance(self.bottleneck, (int, np.integer)) and self.bottleneck >= 1):
            raise ValueError(f"{self.name}: the bottleneck must be a whole number of at least 1, got {self.bottleneck}")
        return {path: self.wrapper(model.get(path), self.make_network(width, rng), self.scale)
                for path in self._joins(block_paths(model, Join))}

    def make_network(self, width, rng):
        """The network of one adapter."""
        return Bottleneck(width, self.bottleneck, self.activation, self.dropout, self.initial_std, rng)

    def base_parameters(self, model):
        norms = [path for path, m in model.named_modules() if isinstance(m, (LayerNorm, RMSNorm)) and not path.startswith("head")]
        return {f"{norm}.{name}": p for norm in norms if self.train_norms for name, p in model.get(norm).named_parameters()}

    def formula(self, path, wrapper):
        width, inner = wrapper.mlp.down.weight.shape
        return f"2 D R + R + D = 2 x {width} x {inner} + {inner} + {width}"

    def adapter_size(self, width):
        """Number of parameters of one adapter."""
        return 2 * width * self.bottleneck + self.bottleneck + width

    def count(self, config):
        norms = sum(norm_sizes(config).values()) if self.train_norms else 0
        return len(self._joins(join_paths(config))) * self.adapter_size(config.hidden_size) + norms


@dataclass
class Pfeiffer(Houlsby):
    """Adapters on the joins of the feed-forward, reading what the join gives."""

    activation: str = "relu"
    targets: object = "mlp.join"

    name = "pfeiffer"
    wrapper = PfeifferJoin


@dataclass
class Parallel(Houlsby):
    """Adapters beside the feed-forward, reading the residual that enters it."""

    activation: str = "relu"
    targets: object = "mlp.join"
    scale: float = 4.0

    name = "parallel"
    wrapper = ParallelJoin
