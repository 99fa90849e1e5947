"""What virtual tokens do to positions: those of a prefix and of a prompt take some, or leave them to the words."""

import numpy as np

from ..nn import Wrapper


class MovedPositions(Wrapper):
    """Position ids moved by a number: up by the virtual tokens that stand in no place, or down by those that stand in one.

    None falls below 0, so that virtual tokens whose positions are not counted are all at 0.
    """

    def __init__(self, wrapped, by):
        super().__init__(wrapped)
        self.by = by

    @property
    def shift(self):
        """How far positions are moved, by this and by what is inside."""
        return self.wrapped.shift + (self.by if self.enabled else 0)

    def forward(self, length, mask=None, past=0):
        return np.maximum(self.wrapped(length, mask, past) + self.by, 0)  # (1 or B, T)


def check_tokens(name, count, counted, config):
    """Raise ValueError unless ``count`` virtual tokens are a whole number that, where ``counted``, leaves positions to words."""
    limit = config.max_position_embeddings
    if not (isinstance(count, (int, np.integer)) and count >= 1):
        raise ValueError(f"{name}: num_virtual_tokens must be a whole number of at least 1, got {count}")
    if config.learned_positions and counted and count >= limit:
        raise ValueError(f"{name}: {count} virtual tokens leave none of this model's {limit} positions to the words; take at "
                         "most "
                         f"{limit - 1}, or shift_positions=False")
