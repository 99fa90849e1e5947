"""What every Transformer here has: the walk from token ids through embed and blocks to the head."""

import numpy as np

from ..nn import Module
from .embed import Embed, Positions
from .heads import Output, check_ids


class Transformer(Module):
    """Base of `Encoder` and `Decoder`.

    Children: ``embed``, ``positions``, ``blocks``, ``final_norm`` (decoders), ``head`` (or None).
    """

    def __init__(self, config, rng=None):
        self.config = config
        self.embed = Embed(config, rng)
        self.positions = Positions()
        self.blocks = config.make_blocks(rng)
        self.final_norm = config.make_norm() if config.pre_norm else None
        self.head = None

    def run(self, input_ids, attention_mask, token_type_ids, labels, output_hidden_states, cache=None):
        """The forward pass behind both models' ``forward``."""
        input_ids = np.asarray(input_ids)
        if input_ids.ndim != 2 or input_ids.dtype.kind not in "iu":
            raise ValueError("input_ids: expected integers of shape (batch, time), "
                             f"got {input_ids.dtype} of shape {input_ids.shape}")
        past = cache.length if cache is not None else 0
        batch, length = input_ids.shape
        mask = None
        if attention_mask is not None:
            mask = np.asarray(attention_mask).astype(bool)
            if mask.shape != (batch, past + length):
                raise ValueError(f"attention_mask: expected shape {(batch, past + length)}, got {mask.shape}")
        if token_type_ids is not None:
            token_type_ids = check_ids("token_type_ids", token_type_ids, (batch, length))
        vectors, mask, virtual = self.embed.tokens(input_ids, mask)  # (B, P + T, D)
        length = vectors.shape[1]
        self.check_length(past + length)
        position_ids = self.positions(length, mask, past)  # (1 or B, P + T)
        x = self.embed(vectors, position_ids, token_type_ids)  # (B, P + T, D)
        states = [x]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, position_ids, None if cache is None else cache.layers[i])
            if output_hidden_states:
                states.append(x)
        if self.final_norm is not None:
            x = self.final_norm(x)
            states[-1] = x
        return Output(self.head, x, mask, virtual, labels, states if output_hidden_states else None)

    def check_length(self, length):
        """Refuse more places than there are learned positions."""
        limit = self.config.max_position_embeddings
        if not self.config.rotary and length > limit:
            raise ValueError(f"the input is {length} tokens long, this model has positions for {limit}; truncate it")
