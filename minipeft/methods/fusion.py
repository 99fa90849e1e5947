"""AdapterFusion: adapters trained on several tasks stay as they are, and a small attention in each block chooses among them.

    z_t = MLP_t(...)                                  what adapter t would add, t = 1 ... N
    a_t = softmax over t of (h Q) . (z_t K)
    o   = sum over t of a_t (z_t V)                   join(x, h + o)

V starts at the identity and Q and K so small that the a_t are nearly equal: at first o is the mean of the adapters' outputs.
Only Q, K and V are trained, on the task in hand; a shows which other tasks it draws upon.

Pfeiffer, Kamath, Rücklé, Cho, Gurevych, EACL 2021, arXiv:2005.00247, section 3.2.

Shapes: x, h, z_t (B, T, D), a (B, T, N), Q, K, V (D, D). Count: 3 D² at each place, of which Pfeiffer's
adapters have one in a block and Houlsby's two.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, Wrapper, initial
from .adapter import HoulsbyJoin
from .attach import Method


class FusedJoin(Wrapper):
    """A join before which the outputs of several adapters are mixed by attention.

    ``weights`` holds a (B, T, N) of the last call as an array.
    """

    level = 1  # outside the adapters, which it calls itself

    def __init__(self, wrapped, adapters, rng, std):
        self.adapters, self.weights = tuple(adapters), None  # a tuple, so that the adapters are not parts of this wrapper
        super().__init__(wrapped)
        width = adapters[0].mlp.down.weight.shape[0]
        self.Q, self.K = (initial(rng, (width, width), std) for _ in range(2))  # (D, D)
        self.V = Parameter(np.eye(width, dtype=np.float32))  # (D, D)

    @property
    def enabled(self):
        """Whether it acts; the adapters are frozen while it does."""
        return self.acts

    @enabled.setter
    def enabled(self, flag):
        self.acts = flag
        for adapter in self.adapters:
            adapter.mlp.requires_grad_(not flag)

    def forward(self, x, h):
        """join(x, h + o) of states x and the sub-layer's output h, all (B, T, D)."""
        outputs = [adapter.adapted(x, h) * adapter.scale for adapter in self.adapters]  # N of (B, T, D)
        z = F.concatenate([o.reshape(*o.shape[:2], 1, -1) for o in outputs], axis=2)  # (B, T, N, D)
        query = F.linear(h, self.Q).reshape(*h.shape[:2], 1, -1)  # (B, T, 1, D)
        s = (query * F.linear(z, self.K)).sum(axis=-1)  # (B, T, N)
        e = F.exp(s - s.data.max(axis=-1, keepdims=True))
        a = e / e.sum(axis=-1, keepdims=True)  # (B, T, N)
        self.weights = a.data
        o = (a.reshape(*a.shape, 1) * F.linear(z, self.V)).sum(axis=2)  # (B, T, D)
        return self.wrapped(x, h + o)  # (B, T, D)


@dataclass
class Fusion(Method):
    """Attention over adapters that are attached already; while it is active they themselves are not.

    Args:
        adapters: names of their attachments, two or more, all at the same places. initial_std: of Q and K.
    """

    adapters: object = ()
    initial_std: float = 1e-3

    name = "fusion"
    default_lr = 1e-3
    unmergeable = "its weights depend on the input"

    def wrappers(self, model, rng):
        """{path of a join: `FusedJoin`} wherever the adapters act. Raises ValueError where they do not fit each other."""
        names = self.adapters.split(",") if isinstance(self.adapters, str) else list(self.adapters)
        attached = vars(model).get("attachments", {})
        for name in names:
            if name not in attached:
                raise ValueError(f"fusion: no attachment is called {name!r}; attached: {', '.join(attached) or 'none'}")
        places = [{path: w for path, w in attached[name].wrappers.items() if isinstance(w, HoulsbyJoin)} for name in names]
        if len(names) < 2 or any(not own or list(own) != list(places[0]) for own in places):
            raise ValueError("fusion: expected two or more attached adapters at the same places, got "
                             f"{', '.join(names) or 'none'}")
        return {path: FusedJoin(model.get(path), [own[path] for own in places], rng, self.initial_std) for path in places[0]}

    def formula(self, path, wrapper):
        return f"3 D^2 = 3 x {wrapper.V.shape[0]}^2"

    def count(self, config):
        """With one adapter in each block."""
        return 3 * config.num_hidden_layers * config.hidden_size**2
