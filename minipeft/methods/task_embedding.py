"""Task embedding: one learned vector for the task is added to the vector of every word.

    X' = X + 1 e,      de = sum of dX' over batch and time

It moves every position alike, so that unlike a virtual token it cannot be attended to more by one word than by another; what
that costs is a question for measurement. The generating form, in which such a vector makes adapters: Karimi Mahabadi,
Ruder, Dehghani, Henderson, ACL 2021, arXiv:2106.04489.

Shapes: X (B, T, D), e (D,). Count: D for each task. Words of the target of an encoder-decoder, and virtual tokens, are left
as they are.
"""

from dataclasses import dataclass

import numpy as np

from ..nn import Parameter, Wrapper
from .attach import Method


class ShiftedTokens(Wrapper):
    """Word vectors with the task's vector added; e starts at zero."""

    def __init__(self, wrapped):
        super().__init__(wrapped)
        self.e = Parameter(np.zeros(wrapped.weight.shape[1], wrapped.weight.dtype))  # (D,)

    def forward(self, ids, mask=None, past=0):
        """ids and mask (B, T) -> vectors (B, T, D), the mask, and how many places are virtual."""
        vectors, mask, virtual = self.wrapped(ids, mask, past)
        return vectors + self.e, mask, virtual  # (B, T, D)


@dataclass
class TaskEmbedding(Method):
    """A vector for the task, added at the input."""

    name = "task_embedding"
    default_lr = 1e-2
    unmergeable = "added to every word vector it would also change an output map that is tied to them"

    def wrappers(self, model, rng):
        return {"embed.tokens": ShiftedTokens(model.embed.tokens)}

    def formula(self, path, wrapper):
        return f"D = {wrapper.e.size}"

    def count(self, config):
        return config.hidden_size
