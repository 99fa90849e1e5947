"""Multi-head attention as a residual sub-layer, every place where a fine-tuning method may act being a named child.

    q, k, v = h W_q + b_q, h W_k + b_k, h W_v + b_v        h = norm(x) in pre-norm models, x in post-norm ones
    a = softmax(scale q k^T + bias) v  in each head,       y = join(x, a W_o + b_o)

In cross-attention k and v are made from another model's states instead of h.

Vaswani et al., NeurIPS 2017, arXiv:1706.03762, section 3.2.
"""

import numpy as np

from .. import autograd as F
from .layers import Dropout
from .module import Module, initial


class Join(Module):
    """Where a sub-layer's output h meets the residual x: x + h (pre-norm), or norm(x + h) (post-norm)."""

    def __init__(self, norm=None):
        self.norm = norm

    def forward(self, x, h):
        """x and h (B, T, D) -> (B, T, D)."""
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


class RelativeBias(Module):
    """What each head adds to a score for the distance from query to key: b = E[bucket(j - i)], E (buckets, H).

    Near distances have a bucket each, far ones share buckets whose widths grow in proportion to the distance, up to
    ``max_distance``, beyond which all fall into the last. Raffel et al., JMLR 21, 2020, arXiv:1910.10683, section 2.1.
    """

    def __init__(self, buckets, max_distance, heads, causal, rng=None, std=0.02):
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal
        self.weight = initial(rng, (buckets, heads), std)

    def bucket(self, distance):
        """Key's position minus query's, integers of any shape -> bucket numbers of the same shape.

        A causal model has keys behind the query alone; elsewhere half of the buckets are for the keys ahead.
        """
        buckets, ahead = self.buckets, 0
        if self.causal:
            distance = np.maximum(-distance, 0)
        else:
            buckets = buckets // 2
            ahead = np.where(distance > 0, buckets, 0)
            distance = np.abs(distance)
        exact = buckets // 2
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))  # float32, as the checkpoints were made
        far = exact + (ratio / np.float32(np.log(self.max_distance / exact)) * np.float32(buckets - exact)).astype(np.int64)
        return ahead + np.where(distance < exact, distance, np.minimum(far, buckets - 1))

    def forward(self, queries, keys):
        """Position ids of the queries (1 or B, T) and of the keys (1 or B, S) -> (1 or B, H, T, S)."""
        buckets = self.bucket(keys[:, None, :] - queries[:, :, None])  # (1 or B, T, S)
        return F.embedding(self.weight, buckets).swapaxes(1, 3).swapaxes(2, 3)  # (1 or B, H, T, S)

    def describe(self):
        return f"{self.buckets} buckets up to {self.max_distance}"


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
        scale: what multiplies the scores; default: 1 / sqrt(K).
    """

    def __init__(self, linear, width, heads, key_heads, head_width, bias, out_bias, causal, norm, join, rotary=None,
                 dropout=0.0, attention_dropout=0.0, scale=None):
        self.heads, self.key_heads, self.head_width = heads, key_heads, head_width
        self.scale = head_width**-0.5 if scale is None else scale
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

    def keys_values(self, h, position_ids=None):
        """k and v of normalised states (B, S, D), (B, H', S, K) each; the keys are turned where positions are rotary."""
        k, v = self.split(self.k(h), self.key_heads), self.split(self.v(h), self.key_heads)
        return k if self.rotary is None else self.rotary(k, position_ids), v

    def store(self, x, position_ids, cache):
        """Put the keys and values of states (B, T, D) into a LayerCache, and compute nothing else of this sub-layer."""
        cache.append(*self.keys_values(x if self.norm is None else self.norm(x), position_ids))

    def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
        """One call.

        Args:
            x: (B, T, D). mask: (B, S) booleans or None. position_ids: (B or 1, T).
            cache: this layer's LayerCache or None; in cross-attention what remembers the source's k and v, or None.
            bias: Tensor (1 or B, H, T, S) to add to the scores, or None.
            source: states (B, S, D) that k and v are made from, in cross-attention; None means x's own.
        """
        batch, length, _ = x.shape
        h = x if self.norm is None else self.norm(x)
        q = self.split(self.q(h), self.heads)  # (B, H, T, K)
        if source is not None:
            k, v = self.keys_values(source) if cache is None else cache.once(lambda: self.keys_values(source))  # (B, H', S, K)
        else:
            q = q if self.rotary is None else self.rotary(q, position_ids)
            k, v = self.keys_values(h, position_ids)  # (B, H', T, K)
            if cache is not None:
                k, v = cache.append(k, v)  # (B, H', S, K)
        a = self.core(q, k, v, mask, bias, self.scale)  # (B, H, T, K)
        a = a.swapaxes(1, 2).reshape(batch, length, self.heads * self.head_width)  # (B, T, H K)
        return self.join(x, self.dropout(self.out(a)))  # (B, T, D)
