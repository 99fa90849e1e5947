"""Wrong answers to lesson 3, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.autograd import Tensor, exp, swap_last, where
from minipeft.autograd.fused import _by_key_head
from minipeft.learn.claims import mutant

# ---- 03.1 ----


@mutant("03.1", "reshaped_only", "The shape is right and the numbers are not: reshaped at once to (B, H, T, K), a head gets "
        "whole tokens in place of its columns. Reshape to (B, T, H, K) first, then exchange the axes T and H.")
def split(self, x, heads):
    batch, length, _ = x.shape
    return x.reshape(batch, heads, length, self.head_width)


@mutant("03.1", "not_swapped", "That is (B, T, H, K): the axes T and H are still to be exchanged.")
def split(self, x, heads):
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, self.head_width)


@mutant("03.1", "interleaved", "A head's columns lie next to each other, h K to (h + 1) K; you took every H-th one. The last "
        "axis splits into (H, K), in this order.")
def split(self, x, heads):
    batch, length, _ = x.shape
    return x.reshape(batch, length, self.head_width, heads).swapaxes(2, 3).swapaxes(1, 2)


@mutant("03.1", "own_heads", "Use the number of heads that is given: keys may have fewer heads than self.heads.")
def split(self, x, heads):
    batch, length, _ = x.shape
    return x.reshape(batch, length, self.heads, -1).swapaxes(1, 2)


@mutant("03.1", "detached", "The numbers are right, but no gradient can go back: reshape the Tensor itself, not its array "
        "x.data.")
def split(self, x, heads):
    batch, length, _ = x.shape
    return Tensor(x.data.reshape(batch, length, heads, self.head_width).swapaxes(1, 2))


# ---- 03.2 ----


def scores(q, k):
    """(B, H, T, S)"""
    batch, heads, queries, _ = q.shape
    keys, key_heads = k.shape[2], k.shape[1]
    return (_by_key_head(q, key_heads) @ swap_last(_by_key_head(k, key_heads))).reshape(batch, heads, queries, keys)


def visible_keys(z, mask, causal, offset=None, shift=0):
    """(1 or B, 1, T, S)"""
    queries, keys = z.shape[-2:]
    visible = np.ones((1, 1, queries, keys), bool)
    if causal:
        visible = np.tri(queries, keys, (keys - queries if offset is None else offset) + shift, dtype=bool)[None, None]
    return visible if mask is None else visible & mask[:, None, None, :]


def softmax(z, visible, axis=-1):
    """Over the visible ones."""
    z = where(visible, z, -1e9)
    e = exp(z - z.data.max(axis=axis, keepdims=True, initial=-1e9)) * visible.astype(z.dtype)
    total = e.sum(axis=axis, keepdims=True)
    return e / where(total.data == 0, 1.0, total)


@mutant("03.2", "no_scale", "The products are not multiplied by scale.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) if bias is None else scores(q, k) + bias
    return softmax(z, visible_keys(z, mask, causal))


@mutant("03.2", "scaled_bias", "The scale multiplies q kᵀ alone; you multiplied the bias as well. Add it afterwards.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = (scores(q, k) if bias is None else scores(q, k) + bias) * scale
    return softmax(z, visible_keys(z, mask, causal))


@mutant("03.2", "square_triangle", "Your causal mask is j <= i, which is right for as many keys as queries only. With more keys "
        "the queries are the last ones: j <= i + S - T.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    return softmax(z, visible_keys(z, mask, causal, offset=0))


@mutant("03.2", "not_itself", "A query sees itself too: j <= i + S - T, not j < i + S - T.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    return softmax(z, visible_keys(z, mask, causal, shift=-1))


@mutant("03.2", "over_queries", "You normalised over the queries. For each query the weights of its keys sum to 1: the axis is "
        "the last one.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    return softmax(z, visible_keys(z, mask, causal), axis=-2)


@mutant("03.2", "masked_afterwards", "You took softmax over all keys and then set hidden ones to 0, so that the rest no longer "
        "sums to 1. Hide them before the sum.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    visible = visible_keys(z, mask, causal)
    return softmax(z, np.ones_like(visible)) * visible.astype(z.dtype)


@mutant("03.2", "even_where_nothing_is_seen", "A query that sees no key must have weights of 0; yours are 1/S each, because all "
        "its scores are equally low. Multiply e by the visible ones before the sum, and do not divide by 0.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    z = where(visible_keys(z, mask, causal), z, -1e9)
    return softmax(z, np.ones_like(z.data, bool))


@mutant("03.2", "nan_where_nothing_is_seen", "A query that sees no key must have weights of 0; yours are not finite, because you "
        "divide by a sum of 0. Divide by 1 there.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    visible = visible_keys(z, mask, causal)
    z = where(visible, z, -1e9)
    e = exp(z - z.data.max(axis=-1, keepdims=True)) * visible.astype(z.dtype)
    with np.errstate(all="ignore"):
        return e / e.sum(axis=-1, keepdims=True)


@mutant("03.2", "overflow", "The formula is right, but exp overflows for large scores: subtract the largest of each row first.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    visible = visible_keys(z, mask, causal)
    e = exp(where(visible, z, 0.0)) * visible.astype(z.dtype)
    total = e.sum(axis=-1, keepdims=True)
    return e / where(total.data == 0, 1.0, total)


@mutant("03.2", "key_heads_in_turn", "Consecutive query heads share a key head (0 and 1 the first, 2 and 3 the second); you gave "
        "them out in turn. `_by_key_head` groups them the right way.")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = (q @ swap_last(F.concatenate([k] * (q.shape[1] // k.shape[1]), axis=1))) * scale
    z = z if bias is None else z + bias
    return softmax(z, visible_keys(z, mask, causal))


@mutant("03.2", "detached", "The numbers are right, but no gradient can go back: stay with Tensors, not with their arrays "
        "(.data).")
def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    z = scores(q, k) * scale
    z = z if bias is None else z + bias
    return Tensor(softmax(z, visible_keys(z, mask, causal)).data)


# ---- 03.3 ----


@mutant("03.3", "other_way", "You turn the other way: the first of a pair is x1 cos - x2 sin. F.rotate does that with the sine "
        "as it is.")
def forward(self, x, position_ids):
    angles = position_ids[:, None, :, None] * self.inverse
    return F.rotate(x, np.cos(angles).astype(x.dtype), -np.sin(angles).astype(x.dtype))


@mutant("03.3", "counted_anew", "You counted the places 0, 1, 2, ... anew. The positions are given in position_ids: behind a "
        "cache or padding they start elsewhere.")
def forward(self, x, position_ids):
    angles = np.arange(x.shape[2])[None, None, :, None] * self.inverse
    return F.rotate(x, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))


@mutant("03.3", "first_row", "Each row of the batch has positions of its own; you used those of the first row for all.")
def forward(self, x, position_ids):
    angles = position_ids[:1, None, :, None] * self.inverse
    return F.rotate(x, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))


@mutant("03.3", "one_speed", "All pairs turn equally fast in your answer; pair c has the angle p * self.inverse[c].")
def forward(self, x, position_ids):
    angles = position_ids[:, None, :, None] * np.ones_like(self.inverse)
    return F.rotate(x, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))


@mutant("03.3", "neighbours", "You paired neighbours, 2c and 2c + 1, as the paper draws it. LLaMA's layout, and F.rotate's, "
        "pairs c with c + K/2.")
def forward(self, x, position_ids):
    batch, heads, length, width = x.shape
    halves = x.reshape(batch, heads, length, width // 2, 2).swapaxes(3, 4).reshape(batch, heads, length, width)
    angles = position_ids[:, None, :, None] * self.inverse
    out = F.rotate(halves, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))
    return out.reshape(batch, heads, length, 2, width // 2).swapaxes(3, 4).reshape(batch, heads, length, width)


@mutant("03.3", "divided", "self.inverse is already what a position is multiplied by; you divided by it, so that the later pairs "
        "turn faster.")
def forward(self, x, position_ids):
    angles = position_ids[:, None, :, None] / self.inverse
    return F.rotate(x, np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype))


# ---- 03.4 ----


def sublayer(self, x, mask, position_ids, cache, bias, source, turn=True, scaled=True, remember=True, swap=True,
             read=lambda self, s: s):
    """(h, what self.out gives) of an attention sub-layer, with parts of it left out."""
    batch, length, _ = x.shape
    h = x if self.norm is None else self.norm(x)
    q = self.split(self.q(h), self.heads)
    if source is not None:
        make = lambda: self.keys_values(read(self, source))
        k, v = cache.once(make) if cache is not None and remember else make()
    else:
        q = self.rotary(q, position_ids) if self.rotary is not None and turn else q
        k, v = self.keys_values(h, position_ids)
        k, v = cache.append(k, v) if cache is not None and remember else (k, v)
    a = self.core(q, k, v, mask, bias, self.scale) if scaled else self.core(q, k, v, mask, bias)
    a = (a.swapaxes(1, 2) if swap else a).reshape(batch, length, self.heads * self.head_width)
    return h, self.out(a)


@mutant("03.4", "residual_of_h", "The residual is x as it came in, not its normalised form h: join(x, ...).")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    h, out = sublayer(self, x, mask, position_ids, cache, bias, source)
    return self.join(h, self.dropout(out))


@mutant("03.4", "no_residual", "The sub-layer's output is still to be joined with the residual: self.join(x, ...).")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source)[1])


@mutant("03.4", "heads_not_side_by_side", "The core gives (B, H, T, K). Reshaped at once to (B, T, H K) the tokens get mixed: "
        "exchange the axes H and T first.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source, swap=False)[1]))


@mutant("03.4", "query_not_turned", "Where there are rotary positions the queries must be turned as the keys are; keys_values "
        "has done the keys only.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source, turn=False)[1]))


@mutant("03.4", "no_scale", "self.scale was not handed to the core.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source, scaled=False)[1]))


@mutant("03.4", "no_mask", "The mask was not handed to the core: padding is attended to.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, None, position_ids, cache, bias, source)[1]))


@mutant("03.4", "no_bias", "The bias was not handed to the core.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, None, source)[1]))


@mutant("03.4", "no_cache", "The cache was not used: earlier tokens are forgotten, and a source is read at every call.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source, remember=False)[1]))


@mutant("03.4", "source_normalised", "The source's states are normalised already where they come from; keys and values are made "
        "of them as they are.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    read = lambda self, s: s if self.norm is None else self.norm(s)
    return self.join(x, self.dropout(sublayer(self, x, mask, position_ids, cache, bias, source, read=read)[1]))


@mutant("03.4", "no_dropout", "The formula is right, but what self.out gives must go through self.dropout before the join.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.join(x, sublayer(self, x, mask, position_ids, cache, bias, source)[1])


@mutant("03.4", "dropout_of_the_sum", "Dropout is for what the sub-layer adds; you dropped the residual as well.")
def forward(self, x, mask=None, position_ids=None, cache=None, bias=None, source=None):
    return self.dropout(self.join(x, sublayer(self, x, mask, position_ids, cache, bias, source)[1]))


# ---- 03.5 ----


@mutant("03.5", "overwritten", "Each call writes at the beginning, over what was there: the new places are self.length to "
        "self.length + T.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, :k.shape[2]] = k.data
    self.values[:, :, :k.shape[2]] = v.data
    self.length = needed
    return Tensor(self.keys[:, :, :needed]), Tensor(self.values[:, :, :needed])


@mutant("03.5", "not_counted", "self.length was not set: the next call will write over these places.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = v.data
    return Tensor(self.keys[:, :, :needed]), Tensor(self.values[:, :, :needed])


@mutant("03.5", "whole_room", "You returned the whole arrays, with room that nothing was written to yet; return the first "
        "self.length places.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = v.data
    self.length = needed
    return Tensor(self.keys), Tensor(self.values)


@mutant("03.5", "new_only", "You returned the new keys and values; the query must see those of all places so far.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = v.data
    self.length = needed
    return k, v


@mutant("03.5", "keys_as_values", "The keys were stored in the place of the values too.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = k.data
    self.length = needed
    return Tensor(self.keys[:, :, :needed]), Tensor(self.values[:, :, :needed])


@mutant("03.5", "room_for_the_new_only", "reserve must be told how many places are needed in all, self.length + T, not how many "
        "are new.")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, k.shape[2])
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = v.data
    self.length = needed
    return Tensor(self.keys[:, :, :needed]), Tensor(self.values[:, :, :needed])


@mutant("03.5", "arrays", "You returned arrays; the core works on Tensors: Tensor(...).")
def append(self, k, v):
    needed = self.length + k.shape[2]
    self.reserve(k, needed)
    self.keys[:, :, self.length:needed] = k.data
    self.values[:, :, self.length:needed] = v.data
    self.length = needed
    return self.keys[:, :, :needed], self.values[:, :, :needed]
