"""Prefix tuning: learned keys and values stand before those of the words in every attention.

    K = [P_K ; x W_k],   V = [P_V ; x W_v],   the queries unchanged
    attention = (1 - lambda) attention over the words + lambda attention over the prefix,     for each query and head
    lambda = sum_i exp(q . p_i / sqrt(K)) / (sum_i exp(q . p_i / sqrt(K)) + sum_j exp(q . k_j / sqrt(K)))

While training, P may be made by a small network, P = tanh(E W_a + b_a) W_b + b_b, which is dropped at the end. Started from
real words, P holds the keys and values that the frozen model has for them.

Li, Liang, ACL 2021, arXiv:2101.00190, section 4; gated mixture: He et al., ICLR 2022, arXiv:2110.04366, section 3.1. For
encoders with a classification head the same is called P-tuning v2: Liu et al., ACL 2022, arXiv:2110.07602.

Shapes: P_K, P_V (P, H' K) for each attention, E (P, D), W_a (D, hidden), W_b (hidden, 2 H' K). Count as stored: 2 P H' K for
each attention, 2 P D L in an encoder or decoder. Every query sees the prefix, which is never rotated and has no relative
position. It adds keys for the queries to choose among, which no weight can do: nothing merges.
"""

from dataclasses import dataclass, replace

import numpy as np

from .. import autograd as F
from ..nn import Linear, Module, Parameter, Wrapper, initial
from .attach import Method
from .shapes import core_widths
from .virtual import MovedPositions, activations, check_tokens, check_words, token_ids


class Network(Module):
    """The part that all layers share of what makes the virtual tokens: tanh(E W_a + b_a), (P, hidden)."""

    def __init__(self, num_virtual_tokens, width, hidden, rng):
        self.E = initial(rng, (num_virtual_tokens, width), 1.0)
        self.map = Linear(width, hidden, True, rng, width**-0.5)

    def forward(self):
        return F.tanh(self.map(self.E))


class PrefixCore(Wrapper):
    """An attention core with P more keys and values, which come first."""

    def __init__(self, wrapped, keys, values, network=None, rng=None):
        super().__init__(wrapped)
        self.keys, self.values, self.network = Parameter(keys), Parameter(values), network  # (P, H' K) each
        if network is not None:
            hidden = network.map.weight.shape[1]
            self.out = Linear(hidden, 2 * keys.shape[1], True, rng, hidden**-0.5).astype(keys.dtype)
            self.keys = self.values = None

    def prefix(self):
        """P_K and P_V, (P, H' K) each."""
        if self.network is None:
            return self.keys, self.values
        both = self.out(self.network())  # (P, 2 H' K)
        half = both.shape[1] // 2
        return both[:, :half], both[:, half:]

    def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
        """q (B, H, T, K), k and v (B, H', S, K) -> (B, H, T, K); mask (B, S), bias (1 or B, H, T, S)."""
        batch, heads, _, width = k.shape
        extra = [part.reshape(-1, heads, width).swapaxes(0, 1) for part in self.prefix()]  # (H', P, K) each
        k, v = (F.concatenate([F.broadcast_to(part, (batch, *part.shape)), words], axis=2)  # (B, H', P + S, K)
                for part, words in zip(extra, (k, v)))
        tokens = extra[0].shape[1]
        if mask is not None:
            mask = np.concatenate([np.ones((len(mask), tokens), bool), mask], axis=1)  # (B, P + S)
        if bias is not None:
            none = F.Tensor(np.zeros((*bias.shape[:3], tokens), bias.dtype))
            bias = F.concatenate([none, bias], axis=3)  # (1 or B, H, T, P + S)
        return self.wrapped(q, k, v, mask, bias, scale)


@dataclass
class Prefix(Method):
    """A prefix at every attention; in an encoder-decoder at the encoder's, the decoder's own, and the one between them.

    Args:
        num_virtual_tokens: P. initial: ``random``, or ``words``: from the activations of ``words``, P token ids.
        reparametrise: make the prefix by a network of width ``hidden`` while training (`finish` drops it).
        shift_positions: count the prefix in the words' positions, as HF PEFT does.
    """

    num_virtual_tokens: int = 20
    initial: str = "random"
    words: object = None
    reparametrise: bool = False
    hidden: int = 512
    shift_positions: bool = True

    name = "prefix"
    default_lr = 2e-2
    unmergeable = "it adds keys and values for the queries to choose among"

    def __post_init__(self):
        self.words = token_ids(self.words)

    @property
    def positions_taken(self):
        """How many of the learned positions the virtual tokens take."""
        return self.num_virtual_tokens if self.shift_positions else 0

    def check(self, config):
        n = self.num_virtual_tokens
        check_tokens("prefix", n, self.shift_positions, config)
        if self.initial not in ("random", "words"):
            raise ValueError(f"prefix: initial must be random or words, got {self.initial!r}")
        if self.initial == "words" and (self.words is None or len(self.words) != n):
            raise ValueError(f"prefix: initial='words' needs words, {n} token ids (one for each virtual token); got "
                             f"{'none' if self.words is None else len(self.words)}")
        check_words("prefix", self.words, config)
        if self.initial == "words" and self.reparametrise:
            raise ValueError("prefix: initial='words' sets the prefix itself; it goes without reparametrise")
        if self.reparametrise and not (isinstance(self.hidden, (int, np.integer)) and self.hidden >= 1):
            raise ValueError(f"prefix: hidden must be a whole number of at least 1, got {self.hidden}")

    def wrappers(self, model, rng):
        config, n = model.config, self.num_virtual_tokens
        self.check(config)
        kind = model.embed.tokens.weight.dtype.type
        draw = lambda width: rng.standard_normal((n, width)).astype(kind) * kind(0.5)
        known = activations(model, self.words) if self.initial == "words" else {}
        network = Network(n, config.hidden_size, self.hidden, rng).astype(kind) if self.reparametrise else None
        out = {}
        for path, width in core_widths(config).items():
            keys, values = known[path] if known else (draw(width), draw(width))
            out[path] = PrefixCore(model.get(path), keys, values, network, rng)
        if self.shift_positions and not config.encoder_decoder:  # whose positions are relative
            out["positions"] = MovedPositions(model.positions, n)
        return out

    def finish(self, attachment):
        """Drop the network: the keys and values that it makes stay, as parameters of their own."""
        for wrapper in attachment.wrappers.values():
            if isinstance(wrapper, PrefixCore) and wrapper.network is not None:
                wrapper.keys, wrapper.values = (Parameter(np.ascontiguousarray(part.data)) for part in wrapper.prefix())
                wrapper.network = wrapper.out = None
        attachment.method = replace(self, reparametrise=False)

    def formula(self, path, wrapper):
        if wrapper.network is not None:
            parts = [*wrapper.network.parameters(), *wrapper.out.parameters()]
            return " + ".join("x".join(map(str, p.shape)) for p in parts)
        return f"2 P H' K = 2 x {wrapper.keys.shape[0]} x {wrapper.keys.shape[1]}"

    def count(self, config):
        widths, n, hidden = sum(core_widths(config).values()), self.num_virtual_tokens, self.hidden
        if self.reparametrise:
            return n * config.hidden_size + (config.hidden_size + 1) * hidden + (hidden + 1) * 2 * widths
        return 2 * n * widths
