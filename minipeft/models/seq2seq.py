"""The encoder-decoder T5: the encoder reads a text whole, the decoder writes another and attends to the encoder's states.

Raffel et al., JMLR 21, 2020, arXiv:1910.10683, section 2.1; gated feed-forward: Shazeer, 2020, arXiv:2002.05202.
"""

import numpy as np

from ..kernels import IGNORE
from ..nn import Dropout, Module, ModuleList, RelativeBias
from .embed import Embed, Positions
from .heads import Output
from .transformer import check_input


class Stack(Module):
    """The blocks of one side, between the embedded tokens and the normalised states.

    Children: ``relative`` (the bias for each distance, one table for all blocks), ``blocks``, ``final_norm``, ``dropout``.
    """

    def __init__(self, config, layers, decoder, rng):
        self.relative = RelativeBias(config.relative_attention_num_buckets, config.relative_attention_max_distance,
                                     config.num_attention_heads, decoder, rng,
                                     config.initializer_range * config.hidden_size**-0.5)
        self.blocks = ModuleList(config.make_block(rng, cross=decoder, causal=decoder) for _ in range(layers))
        self.final_norm = config.make_norm()
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, x, mask, position_ids, source=None, source_mask=None, cache=None):
        """States and all that were on the way to them.

        Args:
            x: (B, T, D). mask: (B, T) booleans or None. position_ids: (1 or B, T).
            source: the encoder's states (B, S, D), for the decoder. source_mask: (B, S) booleans or None.
            cache: a KVCache of the places before these, or None.

        Returns:
            (B, T, D), and the list of the states that enter each block, with the returned ones last.
        """
        keys = position_ids if cache is None else np.arange(cache.length + x.shape[1])[None]  # (1 or B, S)
        bias = self.relative(position_ids, keys)  # (1 or B, H, T, S)
        states = [x]
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            x = block(x, mask, position_ids, layer, bias, source, source_mask)
            states.append(x)
        states[-1] = self.dropout(self.final_norm(x))
        return states[-1], states


class Seq2Seq(Module):
    """T5. ``head`` is a `Seq2SeqLMHead` or None.

    Children: ``embed`` and ``decoder_embed`` (the same word vectors, so that what a method puts before the source text
    does not come before the written one), ``positions``, ``encoder``, ``decoder``, ``head``.
    """

    def __init__(self, config, rng=None):
        self.config = config
        self.embed = Embed(config, rng)
        self.decoder_embed = Embed(config, None)
        self.decoder_embed.tokens.weight = self.embed.tokens.weight
        self.positions = Positions()
        self.encoder = Stack(config, config.num_hidden_layers, False, rng)
        self.decoder = Stack(config, config.num_decoder_layers, True, rng)
        self.head = None

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, labels=None,
                output_hidden_states=False):
        """Run the model.

        Args:
            input_ids: (B, S) ints, the source.
            attention_mask: (B, S), 1 or True where a token of the source is real; default: all are.
            decoder_input_ids: (B, T) ints, the target behind the start token; default: made from ``labels``.
            decoder_attention_mask: (B, T), likewise; default: all are real.
            labels: (B, T) token ids, the target itself, -100 where not counted.
            output_hidden_states: also return the decoder's states, those that enter each block and the normalised last.

        Returns:
            Output with ``logits`` (B, T, V), ``loss``, ``last_hidden_state`` (the decoder's), ``hidden_states``.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids: an encoder-decoder needs them, or labels to make them from")
            decoder_input_ids = self.shift_right(labels)
        source, mask = self.encode(input_ids, attention_mask)
        x, states, own_mask, virtual = self.decode(decoder_input_ids, source, mask, decoder_attention_mask)  # (B, T, D)
        return Output(self.head, x, own_mask, virtual, labels, states if output_hidden_states else None)

    def decode(self, decoder_input_ids, source, source_mask, attention_mask=None, cache=None):
        """The decoder's states, given the encoder's.

        Args:
            decoder_input_ids: (B, T) ints; with a cache, which goes without a mask, only the new ones.
            source, source_mask: what `encode` gave. attention_mask: (B, T) or None. cache: a KVCache or None.

        Returns:
            (states (B, T, D), the list of those that enter each block, the mask, the number of leading virtual tokens).
        """
        ids, mask = check_input(decoder_input_ids, attention_mask, name="decoder_input_ids")
        if len(ids) != len(source.data):
            raise ValueError(f"decoder_input_ids: expected {len(source.data)} rows, as in input_ids, got {len(ids)}")
        past = 0 if cache is None else cache.length
        vectors, mask, virtual = self.decoder_embed.tokens(ids, mask, past)  # (B, T, D)
        position_ids = self.positions(vectors.shape[1], mask, past)  # (1 or B, T)
        x, states = self.decoder(self.decoder_embed(vectors, position_ids), mask, position_ids, source, source_mask, cache)
        return x, states, mask, virtual

    def start_ids(self, rows):
        """What a decoder reads before it writes: (rows, 1)."""
        start = self.config.decoder_start_token_id
        return np.full((rows, 1), (self.config.pad_token_id or 0) if start is None else start, np.int64)

    def encode(self, input_ids, attention_mask=None):
        """The encoder's states (B, P + S, D) of a source, and their mask (B, P + S) or None."""
        ids, mask = check_input(input_ids, attention_mask)
        vectors, mask, _ = self.embed.tokens(ids, mask)  # (B, P + S, D)
        position_ids = self.positions(vectors.shape[1], mask)  # (1 or B, P + S)
        states, _ = self.encoder(self.embed(vectors, position_ids), mask, position_ids)
        return states, mask

    def shift_right(self, labels):
        """What the decoder reads while it is to write ``labels`` (B, T): the start token, then all but their last."""
        labels, _ = check_input(labels, name="labels")
        ids = np.concatenate([self.start_ids(len(labels)), labels[:, :-1]], axis=1)  # (B, T)
        return np.where(ids == IGNORE, self.config.pad_token_id or 0, ids)
