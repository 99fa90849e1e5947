"""From token ids to the states that enter the first block: word vectors, then positions, types, norm and dropout."""

import numpy as np

from ..nn import Dropout, Embedding, Module
from .config import positions_of


class TokenEmbedding(Embedding):
    """Word vectors, and a place before which a method may put virtual tokens."""

    virtual = 0  # how many virtual tokens come before the words

    def forward(self, ids, mask=None, past=0):
        """Vectors of the ids (B, T), which follow ``past`` cached places; mask (B, words so far + T) or None.

        Returns the vectors (B, P + T, D), the mask over all places so far (B, past + P + T) or None, and P, the number
        of virtual tokens that lead these vectors (0 here, and with a cache at its first call only).
        """
        return super().forward(ids), mask, 0


class Positions(Module):
    """Position ids from the padding mask and the number of cached places (see `positions_of`)."""

    shift = 0  # how far a method moves the words' positions

    def forward(self, length, mask=None, past=0):
        """Positions (1 or B, T) of ``length`` words behind ``past`` others; mask (B, T)."""
        return positions_of(length, mask, past)


class Embed(Module):
    """tokens + position + type, normalised where the model does so, then dropout.

    Children: ``tokens``, ``position`` (learned position vectors, where the model has them), ``types`` (BERT's
    sentence A or B), ``norm`` (BERT's).
    """

    def __init__(self, config, rng):
        width, std = config.hidden_size, config.initializer_range
        self.tokens = TokenEmbedding(config.vocab_size, width, rng, std)
        self.position = Embedding(config.max_position_embeddings, width, rng, std) if config.learned_positions else None
        self.types = Embedding(config.type_vocab_size, width, rng, std) if config.type_vocab_size else None
        self.norm = config.make_norm() if config.model_type == "bert" else None
        self.dropout = Dropout(config.embedding_dropout)

    def forward(self, vectors, position_ids, token_type_ids=None):
        """vectors (B, T, D), position_ids (1 or B, T), token_type_ids (B, T) or None -> (B, T, D)."""
        x = vectors
        if self.position is not None:
            x = x + self.position(position_ids)
        if self.types is not None:
            types = np.zeros(x.shape[:2], np.int64)  # virtual tokens, and all tokens by default, are of type 0
            if token_type_ids is not None:
                types[:, x.shape[1] - token_type_ids.shape[1]:] = token_type_ids
            x = x + self.types(types)
        return self.dropout(x if self.norm is None else self.norm(x))
