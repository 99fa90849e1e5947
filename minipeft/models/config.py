"""The shape of a Transformer, in the words of the field; the four families differ only in these fields."""

from dataclasses import dataclass, field, replace

import numpy as np

from ..nn import MLP, Attention, Block, Join, LayerNorm, Linear, ModuleList, RMSNorm, Rotary


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes a model's shape and arithmetic. Names are Hugging Face's where it has one.

    ``model_type`` is ``"bert"`` (post-norm encoder, learned positions), ``"gpt2"`` (pre-norm decoder, learned
    positions), ``"llama"`` (pre-norm decoder, RMS norm, rotary positions, gated feed-forward) or ``"t5"`` (pre-norm
    encoder and decoder, RMS norm, relative positions). Raises ValueError where fields contradict each other.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None  # default: num_attention_heads
    head_dim: int | None = None             # default: hidden_size / num_attention_heads
    num_decoder_layers: int = 0             # of encoder-decoder models, whose encoder has num_hidden_layers
    hidden_act: str = "gelu"
    gated: bool | None = None               # whether the feed-forward has a gate; default: LLaMA's has
    type_vocab_size: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    attention_bias: bool = True
    attention_out_bias: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    head_bias: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    eos_token_id: int | tuple | None = None
    decoder_start_token_id: int | None = None
    labels: tuple = ()                      # names of the classes, for classification
    pooling: str | None = None              # how classification reads the states: mean, cls, pooler or last
    extra: dict = field(default_factory=dict, compare=False)  # the other fields of the folder, for writing it back

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)
        if self.num_key_value_heads is None:
            fill("num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                                 f"{self.num_attention_heads}; take a number of heads that divides it, or give head_dim")
            fill("head_dim", self.hidden_size // self.num_attention_heads)
        if self.gated is None:
            fill("gated", self.model_type == "llama")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"config: num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                             f"{self.num_key_value_heads}; each key head serves a whole number of query heads")
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"config: rotary positions need an even head_dim, got {self.head_dim}")
        if self.encoder_decoder and (self.relative_attention_num_buckets < 4 or self.relative_attention_max_distance
                                     <= self.relative_attention_num_buckets // 2):
            raise ValueError("config: relative positions need at least 4 buckets and a relative_attention_max_distance above "
                             f"half their number, got {self.relative_attention_num_buckets} and "
                             f"{self.relative_attention_max_distance}")

    @property
    def encoder_decoder(self):
        """Whether a decoder reads the states of an encoder."""
        return self.model_type == "t5"

    @property
    def causal(self):
        """Whether the whole model is a decoder, in which a position sees only earlier ones."""
        return self.model_type in ("gpt2", "llama")

    @property
    def pre_norm(self):
        """Whether a sub-layer normalises its input or, as in BERT, its sum with the residual."""
        return self.model_type != "bert"

    @property
    def rotary(self):
        """Whether positions enter as rotations of queries and keys, and not as learned vectors."""
        return self.model_type == "llama"

    @property
    def learned_positions(self):
        """Whether positions enter as learned vectors, of which there are ``max_position_embeddings``."""
        return self.model_type in ("bert", "gpt2")

    def with_(self, **changes):
        """A copy with some fields changed."""
        return replace(self, **changes)

    def make_norm(self):
        """A norm of this model's kind."""
        kind = RMSNorm if self.model_type in ("llama", "t5") else LayerNorm
        return kind(self.hidden_size, self.norm_eps)

    def make_blocks(self, rng):
        """The stack of blocks; ``rng`` draws the weights, None leaves zeros for weights that will be loaded."""
        return ModuleList(self.make_block(rng) for _ in range(self.num_hidden_layers))

    def make_block(self, rng, cross=False, causal=None):
        """One block, with cross-attention or without; ``causal`` is by default what the whole model is."""
        causal = self.causal if causal is None else causal
        return Block(self._make_attention(rng, causal), self._make_mlp(rng), self._make_attention(rng, False) if cross else None)

    def _make_attention(self, rng, causal):
        rotary = Rotary(self.head_dim, self.rope_theta) if self.rotary else None
        attention = Attention(self._linear(rng), self.hidden_size, self.num_attention_heads, self.num_key_value_heads,
                              self.head_dim, self.attention_bias, self.attention_out_bias, causal,
                              self._norm_before(), self._join(), rotary, self.hidden_dropout, self.attention_dropout,
                              scale=1.0 if self.encoder_decoder else None)
        if self.encoder_decoder:
            attention.q.weight.data *= self.head_dim**-0.5  # T5's scores have no 1 / sqrt(K): its initial queries have it
        return attention

    def _make_mlp(self, rng):
        return MLP(self._linear(rng), self.hidden_size, self.intermediate_size, self.mlp_bias, self.hidden_act, self.gated,
                   self._norm_before(), self._join(), self.hidden_dropout, self.hidden_dropout if self.encoder_decoder else 0.0)

    def _linear(self, rng):
        """What makes a Linear; T5's weights start with a variance of 1 / d_in, and a factor before it."""
        if self.encoder_decoder:
            return lambda d_in, d_out, bias: Linear(d_in, d_out, bias, rng, self.initializer_range * d_in**-0.5)
        return lambda d_in, d_out, bias: Linear(d_in, d_out, bias, rng, self.initializer_range)

    def _norm_before(self):
        return self.make_norm() if self.pre_norm else None

    def _join(self):
        return Join() if self.pre_norm else Join(self.make_norm())


def positions_of(length, mask, past):
    """Position ids (1 or B, T) of the last ``length`` of ``past + length`` places: padding is not counted.

    Without a mask the positions are past, past + 1, ...; with one, a token's position is the number of real tokens
    before it, so that padding on the left moves nothing.
    """
    if mask is None:
        return np.arange(past, past + length)[None]  # (1, T)
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -length:]  # (B, T)
