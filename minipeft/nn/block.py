"""The feed-forward sub-layer, and the block: attention, cross-attention where the model has it, then feed-forward.

    plain   y = join(x, act(h W_up + b_up) W_down + b_down)                Vaswani et al., 2017, section 3.3
    gated   y = join(x, (act(h W_gate) * (h W_up)) W_down)                 Shazeer, 2020, arXiv:2002.05202, section 2

with h = norm(x) in pre-norm models and h = x in post-norm ones.
"""

from .layers import Activation, Dropout
from .module import Module


class MLP(Module):
    """One feed-forward sub-layer with its residual connection, D -> F -> D.

    Args:
        width: D. inner: F. bias: whether the maps have biases. activation: name of act. gated: which of the two forms.
        norm: module applied to x first (pre-norm), or None. join: the Join at the end.
        dropout: after W_down. inner_dropout: before it (T5).
    """

    def __init__(self, linear, width, inner, bias, activation, gated, norm, join, dropout=0.0, inner_dropout=0.0):
        self.norm = norm
        self.gate = linear(width, inner, bias) if gated else None
        self.up = linear(width, inner, bias)
        self.act = Activation(activation)
        self.inner_dropout = Dropout(inner_dropout)
        self.down = linear(inner, width, bias)
        self.dropout = Dropout(dropout)
        self.join = join

    def forward(self, x):
        """x (B, T, D) -> (B, T, D)."""
        h = x if self.norm is None else self.norm(x)
        inner = self.act(self.up(h)) if self.gate is None else self.act(self.gate(h)) * self.up(h)  # (B, T, F)
        return self.join(x, self.dropout(self.down(self.inner_dropout(inner))))  # (B, T, D)


class Block(Module):
    """One layer of a Transformer: attention, cross-attention (decoders of encoder-decoder models), feed-forward."""

    def __init__(self, attn, mlp, cross=None):
        self.attn = attn
        self.cross = cross
        self.mlp = mlp

    def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None, source_mask=None):
        """x (B, T, D) -> (B, T, D); ``cross`` reads ``source`` (B, S, D); the others are those of `Attention.forward`."""
        x = self.attn(x, mask, position_ids, cache, bias)
        if self.cross is not None:
            x = self.cross(x, source_mask, source=source, cache=None if cache is None else cache.source)
        return self.mlp(x)
