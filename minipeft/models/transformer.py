"""What every Transformer here has: the walk from token ids through embed and blocks to the head."""

import numpy as np

from ..nn import Module
from .embed import Embed, Positions
from .heads import Output, check_ids


def check_input(input_ids, attention_mask=None, past=0, name="input_ids"):
    """Token ids (B, T) and their mask (B, past + T) as arrays (the mask may be None); ValueError where they do not fit."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers of shape (batch, time), got {ids.dtype} of shape {ids.shape}")
    if attention_mask is None:
        return ids, None
    mask, shape = np.asarray(attention_mask).astype(bool), (ids.shape[0], past + ids.shape[1])
    if mask.shape != shape:
        raise ValueError(f"{name.replace('input_ids', 'attention_mask')}: expected shape {shape}, got {mask.shape}")
    return ids, mask


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

    def enter(self, input_ids, attention_mask=None, token_type_ids=None, cache=None):
        """What enters the first block.

        Args:
            input_ids, attention_mask, token_type_ids: as ``forward`` takes them. cache: a `KVCache` or None.

        Returns:
            (states (B, P + T, D), mask (B, S) or None, position ids (1 or B, P + T), P, the number of leading virtual tokens).
        """
        past, before = (cache.length, cache.length - cache.virtual) if cache is not None else (0, 0)
        input_ids, mask = check_input(input_ids, attention_mask, before)
        if token_type_ids is not None:
            token_type_ids = check_ids("token_type_ids", token_type_ids, input_ids.shape)
        self.check_length(before + input_ids.shape[1])
        vectors, mask, virtual = self.embed.tokens(input_ids, mask, past)  # (B, P + T, D)
        if cache is not None:
            cache.virtual += virtual
        position_ids = self.positions(vectors.shape[1], mask, past)  # (1 or B, P + T)
        return self.embed(vectors, position_ids, token_type_ids), mask, position_ids, virtual

    def normalised(self, x):
        """What the head reads of states (B, T, D) behind a block: through the final norm where the model has one."""
        return x if self.final_norm is None else self.final_norm(x)

    def run(self, input_ids, attention_mask, token_type_ids, labels, output_hidden_states, cache=None):
        """The forward pass behind both models' ``forward``."""
        x, mask, position_ids, virtual = self.enter(input_ids, attention_mask, token_type_ids, cache)  # (B, P + T, D)
        states = [x]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, position_ids, None if cache is None else cache.layers[i])
            if output_hidden_states:
                states.append(x)
        states[-1] = x = self.normalised(x)
        return Output(self.head, x, mask, virtual, labels, states if output_hidden_states else None)

    def check_length(self, length):
        """Refuse more words than there are learned positions for, besides those that virtual tokens take."""
        limit, taken = self.config.max_position_embeddings, self.embed.tokens.virtual + self.positions.shift
        if self.config.learned_positions and length + taken > limit:
            virtual = f" and {taken} virtual ones come before it" if taken else ""
            raise ValueError(f"the input is {length} tokens long{virtual}, this model has positions for {limit}; truncate it"
                             + (f" to {limit - taken}" if 0 < taken < limit else ""))
