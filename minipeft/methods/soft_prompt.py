"""Prompt tuning: learned vectors stand before the words' vectors, and nothing else is trained.

    X' = [P ; X],      dP = the first P rows of dX', summed over the batch

Lester, Al-Rfou, Constant, EMNLP 2021, arXiv:2104.08691, section 2 (initialisation: section 2.1).

Shapes: P (P, D), X (B, T, D). Count: P D. The virtual tokens pass through all layers, so that a forward pass costs what P
more words would; with a cache they enter once, at its first call. They are input and no weight: nothing merges. In an
encoder-decoder they stand before the source.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, Wrapper
from .attach import Method
from .virtual import MovedPositions, check_tokens, check_words, token_ids

INITIAL = ("vocabulary", "random", "labels")


class PromptedTokens(Wrapper):
    """Word vectors with virtual tokens before them."""

    level = 1

    def __init__(self, wrapped, prompt):
        super().__init__(wrapped)
        self.prompt = Parameter(prompt)  # (P, D)

    @property
    def virtual(self):
        """How many virtual tokens come before the words, these and those inside."""
        return self.wrapped.virtual + (len(self.prompt.data) if self.enabled else 0)

    def forward(self, ids, mask=None, past=0):
        """ids and mask (B, T) -> vectors (B, P + T, D), mask (B, P + T), and how many places are virtual."""
        vectors, mask, virtual = self.wrapped(ids, mask, past)  # (B, T, D)
        tokens, width = self.prompt.shape
        if mask is not None:
            mask = np.concatenate([np.ones((len(mask), tokens), bool), mask], axis=1)  # (B, P + S)
        if past:
            return vectors, mask, virtual
        prompt = F.broadcast_to(self.prompt, (len(ids), tokens, width))  # (B, P, D)
        return F.concatenate([prompt, vectors], axis=1), mask, virtual + tokens  # (B, P + T, D)


@dataclass
class SoftPrompt(Method):
    """Virtual tokens before the input.

    Args:
        num_virtual_tokens: P.
        initial: ``vocabulary``: rows of the word vectors, drawn among ``words`` or among all; ``labels``: the vectors of
            ``words``, then drawn ones; ``random``: uniform in [-0.5, 0.5].
        words: token ids.
        shift_positions: count the virtual tokens in the words' positions, as HF PEFT does. An encoder-decoder's positions
            are relative, and the words' distances the same either way.
    """

    num_virtual_tokens: int = 20
    initial: str = "vocabulary"
    words: object = None
    shift_positions: bool = True

    name = "prompt"
    default_lr = 1e-2
    unmergeable = "its virtual tokens are input, and no weight"

    def __post_init__(self):
        self.words = token_ids(self.words)

    @property
    def positions_taken(self):
        """How many of the learned positions the virtual tokens take."""
        return self.num_virtual_tokens if self.shift_positions else 0

    def check(self, config):
        check_tokens("prompt", self.num_virtual_tokens, self.shift_positions, config)
        if self.initial not in INITIAL:
            raise ValueError(f"prompt: initial must be one of {', '.join(INITIAL)}, got {self.initial!r}")
        if self.initial == "labels" and not self.words:
            raise ValueError("prompt: initial='labels' needs words, the token ids of the label words")
        check_words("prompt", self.words, config)

    def start(self, table, rng):
        """The first values (P, D), from the word vectors ``table`` (V, D)."""
        n, first = self.num_virtual_tokens, []
        if self.initial == "random":
            return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
        if self.initial == "labels":
            first, candidates = self.words[:n], np.arange(len(table))
        else:
            candidates = np.asarray(self.words or np.arange(len(table)))
        missing = n - len(first)
        drawn = rng.choice(candidates, missing, replace=missing > len(candidates))
        return table[[*first, *drawn]]

    def wrappers(self, model, rng):
        self.check(model.config)
        tokens = model.embed.tokens
        out = {"embed.tokens": PromptedTokens(tokens, self.start(tokens.weight.data, rng))}
        if not self.shift_positions and not model.config.encoder_decoder:
            out["positions"] = MovedPositions(model.positions, -self.num_virtual_tokens)
        return out

    def formula(self, path, wrapper):
        return "P D = {} x {}".format(*wrapper.prompt.shape)

    def count(self, config):
        return self.num_virtual_tokens * config.hidden_size
