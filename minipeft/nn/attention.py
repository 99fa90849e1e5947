"""Multi-head attention as a residual sub-layer, every place where a fine-tuning method may act being a named child.

    q, k, v = h W_q + b_q, h W_k + b_k, h W_v + b_v        h = norm(x) in pre-norm models, x in post-norm ones
    a = softmax(scale q k^T) v  in each head,              y = join(x, a W_o + b_o)

Vaswani et al., NeurIPS 2017, arXiv:1706.03762, section 3.2.
"""

import numpy as np

from .. import autograd as F
from .layers import Dropout
from .module import Module


class Join(Module):
    """Where a sub-layer's output h meets the residual x: x + h (pre-norm), or norm(x + h) (post-norm)."""

    def __init__(self, norm=None):
        self.norm = norm

    def forward(self, x, h):
        return x + h if self.norm is None else self.norm(x + h)


class AttentionCore(Module):
    """softmax(scale q k^T + bias) v for each head, over S >= T keys.

    Under the causal mask query i sees the keys j <= i + S - T, so that keys which come before the first query (a
    cache, or anything a method puts there) are seen by all.
    """

    def __init__(self, causal, dropout=0.0):
        self.causal = causal
        self.dropout = Dropout(dropout)

    def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
        """q (B, H, T, K); k, v (B, H or fewer, S, K); mask (B, S) booleans or None; bias (1 or B, H, T, S) or None."""
        weights = F.attention_weights(q, k, mask, bias, scale, self.causal)  # (B, H, T, S)
        return F.attend(self.dropout(weights), v)  # (B, H, T, K)


class Rotary(Module):
    """Rotary position embedding: pairs of a head's coordinates turn by an angle proportional to the position.

    The angle of pair i at position p is p / theta^(2i / K). Su et al., 2021, arXiv:2104.09864, section 3.4.
    """

    def __init__(self, head_width, theta):
        self.inverse = theta ** -(np.arange(0, head_width, 2) / head_width)  # (K/2,)

    def forward(self, x, position_ids):
        """x (B, H, T, K); position_ids (B or 1, T)."""
        angles = position_ids[:, None, :, None] * self.inverse  # (B or 1, 1, T, K/2)
        return F.rotate(x, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))


class Attention(Module):
    """One attention sub-layer with its residual connection.

    Args:
        width: D. heads: H. key_heads: number of key and value heads, each shared by H / key_heads query heads.
        head_width: K.
        bias: whether q, k and v have biases. out_bias: whether the output projection has one.
        causal: whether a position is kept from seeing later ones.
        norm: module applied to x first (pre-norm), or None.
        join: the Join at the end.
        rotary: a Rotary, or None.
    """

    def __init__(self, linear, width, heads, key_heads, head_width, bias, out_bias, causal, norm, join, rotary=None,
                 dropout=0.0, attention_dropout=0.0):
        self.heads, self.key_heads, self.head_width = heads, key_heads, head_width
        self.scale = head_width**-0.5
        self.norm = norm
        self.q = linear(width, heads * head_width, bias)
        self.k = linear(width, key_heads * head_width, bias)
        self.v = linear(width, key_heads * head_width, bias)
        self.rotary = rotary
        self.core = AttentionCore(causal, attention_dropout)
        self.out = linear(heads * head_width, width, out_bias)
        self.dropout = Dropout(dropout)
        self.join = join

    def split(self, x, heads):
        """(B, T, H K) -> (B, H, T, K), without copying."""
        batch, length, _ = x.shape
        return x.reshape(batch, length, heads, self.head_width).swapaxes(1, 2)

    def forward(self, x, mask=None, position_ids=None, cache=None):
        """x (B, T, D); mask (B, S) booleans or None; position_ids (B or 1, T); cache: this layer's LayerCache or None."""
        batch, length, _ = x.shape
        h = x if self.norm is None else self.norm(x)
        q = self.split(self.q(h), self.heads)  # (B, H, T, K)
        k = self.split(self.k(h), self.key_heads)  # (B, H', T, K)
        v = self.split(self.v(h), self.key_heads)  # (B, H', T, K)
        if self.rotary is not None:
            q, k = self.rotary(q, position_ids), self.rotary(k, position_ids)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H', S, K)
        a = self.core(q, k, v, mask, None, self.scale)  # (B, H, T, K)
        a = a.swapaxes(1, 2).reshape(batch, length, self.heads * self.head_width)  # (B, T, H K)
        return self.join(x, self.dropout(self.out(a)))  # (B, T, D)
