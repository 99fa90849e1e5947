"""The shape of a Transformer, in the words of the field; the three families differ only in these fields."""

from dataclasses import dataclass, field, replace

import numpy as np

from ..nn import MLP, Attention, Block, Join, LayerNorm, Linear, ModuleList, RMSNorm, Rotary


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes a model's shape and arithmetic. Names are Hugging Face's where it has one.

    ``model_type`` is ``"bert"`` (post-norm encoder, learned positions), ``"gpt2"`` (pre-norm decoder, learned
    positions) or ``"llama"`` (pre-norm decoder, RMS norm, rotary positions, gated feed-forward). Raises ValueError
    where fields contradict each other.
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
    hidden_act: str = "gelu"
    type_vocab_size: int = 0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
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
    labels: tuple = ()                      # names of the classes, for classification
    pooling: str | None = None              # how classification reads the states: mean, cls, pooler or last
    extra: dict = field(default_factory=dict, compare=False)  # the other fields of the folder, for writing it back

    def __post_init__(self):
        fill = lambda name, value: object.__setattr__(self, name, value)
        if self.num_key_value_heads is None:
            fill("num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"config: hidden_size {self.hidden_size} is not a multiple of "
                                 f"num_attention_heads {self.num_attention_heads}")
            fill("head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                             f"num_key_value_heads {self.num_key_value_heads}")
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"config: rotary positions need an even head_dim, got {self.head_dim}")

    @property
    def causal(self):
        """Whether a position sees only earlier ones (decoders)."""
        return self.model_type != "bert"

    @property
    def pre_norm(self):
        """Whether a sub-layer normalises its input (decoders) or its sum with the residual (BERT)."""
        return self.model_type != "bert"

    @property
    def rotary(self):
        """Whether positions enter as rotations of queries and keys, and not as learned vectors."""
        return self.model_type == "llama"

    @property
    def gated(self):
        """Whether the feed-forward has a gate."""
        return self.model_type == "llama"

    def with_(self, **changes):
        """A copy with some fields changed."""
        return replace(self, **changes)

    def make_norm(self):
        """A norm of this model's kind."""
        kind = RMSNorm if self.model_type == "llama" else LayerNorm
        return kind(self.hidden_size, self.norm_eps)

    def make_blocks(self, rng):
        """The stack of blocks; ``rng`` draws the weights, None leaves zeros for weights that will be loaded."""
        linear = lambda d_in, d_out, bias: Linear(d_in, d_out, bias, rng, self.initializer_range)
        before = self.make_norm if self.pre_norm else lambda: None
        join = (lambda: Join()) if self.pre_norm else (lambda: Join(self.make_norm()))
        rotary = Rotary(self.head_dim, self.rope_theta) if self.rotary else None
        return ModuleList(
            Block(Attention(linear, self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim,
                            self.attention_bias, self.attention_out_bias, self.causal, before(), join(), rotary,
                            self.hidden_dropout, self.attention_dropout),
                  MLP(linear, self.hidden_size, self.intermediate_size, self.mlp_bias, self.hidden_act, self.gated,
                      before(), join(), self.hidden_dropout))
            for _ in range(self.num_hidden_layers))


def positions_of(length, mask, past):
    """Position ids (1 or B, T) of the last ``length`` of ``past + length`` places: padding is not counted.

    Without a mask the positions are past, past + 1, ...; with one, a token's position is the number of real tokens
    before it, so that padding on the left moves nothing.
    """
    if mask is None:
        return np.arange(past, past + length)[None]  # (1, T)
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -length:]  # (B, T)
