"""Softmax over the last axis of attention scores, with scale, bias, padding mask and causal mask, and its backward pass.

    w_ij = exp(z_ij) / sum_j' exp(z_ij'),   z = scale * scores + bias   over the keys j that query i may see
    dz_ij = w_ij (g_ij - sum_j' g_ij' w_ij'),   dscores = scale * dz

A key is hidden when the padding mask says so, or, under a causal mask, when ``j > i + S - T``: with more keys than
queries (a cache, a prefix) the last query still sees every key. A query that may see no key gets weights of 0.
"""

import numpy as np

from .backend import Kernel, jit, run_rows
from .compiled_math import exp, largest


def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    """Attention weights from scores.

    Args:
        scores: (B, H, T, S).
        key_mask: (B, S) booleans, True where a key is real, or None.
        bias: (B or 1, H, T, S) added after the scale, or None.
        scale: number that multiplies the scores.
        causal: whether query i is kept from the keys j > i + S - T.

    Returns:
        (B, H, T, S), each row summing to 1 (or to 0, where no key may be seen).
    """
    queries, keys = scores.shape[-2:]
    z = scores * scores.dtype.type(scale)
    if bias is not None:
        z = z + bias
    visible = np.ones((1, 1, queries, keys), bool)
    if causal:
        visible = np.tri(queries, keys, keys - queries, dtype=bool)[None, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    z = np.where(visible, z, -np.inf)
    top = z.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(z - np.where(top == -np.inf, 0, top))
        total = e.sum(axis=-1, keepdims=True)
        weights = e / np.where(total == 0, 1, total)
        return np.where(visible, weights, 0).astype(scores.dtype)  # hidden keys get 0, even beside a NaN


@jit
def _softmax_rows(start, stop, scores, key_mask, has_mask, bias, has_bias, scale, causal, out):
    heads, queries, keys = scores.shape[1:]
    for row in range(start, stop):
        b, h, i = row // (heads * queries), row // queries % heads, row % queries
        seen = min(keys, max(0, i + 1 + keys - queries)) if causal else keys
        out[b, h, i, seen:] = 0
        z, w = scores[b, h, i, :seen], out[b, h, i, :seen]
        for j in range(w.size):
            w[j] = z[j] * scale
        if has_bias:
            added = bias[b if bias.shape[0] > 1 else 0, h, i]
            for j in range(w.size):
                w[j] += added[j]
        if has_mask:
            real, hidden = key_mask[b], w.dtype.type(-np.inf)
            for j in range(w.size):
                w[j] = w[j] if real[j] else hidden
        top = largest(w, w.size)
        if top == -np.inf:
            top = w.dtype.type(0)
        total = w.dtype.type(0)
        for j in range(w.size):
            e = exp(w[j] - top)
            w[j] = e
            total += e
        inverse = w.dtype.type(1) / total if total != 0 else w.dtype.type(0)
        for j in range(w.size):
            w[j] *= inverse
        if has_mask:
            real, nothing = key_mask[b], w.dtype.type(0)
            for j in range(w.size):  # 0 already, unless a NaN stands in the row
                w[j] = w[j] if real[j] else nothing


def attention_softmax_compiled(scores, key_mask, bias, scale, causal):
    """The compiled form of `attention_softmax_reference`."""
    scores = np.ascontiguousarray(scores)
    batch, heads, queries, keys = scores.shape
    mask = np.zeros((0, 0), bool) if key_mask is None else np.ascontiguousarray(key_mask, dtype=bool)
    added = np.zeros((0, 0, 0, 0), scores.dtype) if bias is None else np.ascontiguousarray(bias, dtype=scores.dtype)
    out = np.empty_like(scores)
    run_rows(_softmax_rows, batch * heads * queries, scores.size, scores, mask, key_mask is not None,
             added, bias is not None, scores.dtype.type(scale), bool(causal), out)
    return out


def softmax_backward_reference(weights, gradient, scale):
    """Gradient of the scores: ``scale * w (g - sum_j g_j w_j)``.

    Args:
        weights: (..., S), what the softmax gave.
        gradient: (..., S), the gradient that arrives at the weights.
        scale: the number that multiplied the scores.
    """
    inner = (gradient * weights).sum(axis=-1, keepdims=True)
    return weights * (gradient - inner) * weights.dtype.type(scale)


@jit
def _softmax_backward_rows(start, stop, weights, gradient, scale, out):
    keys = weights.shape[1]
    for row in range(start, stop):
        w, g, o = weights[row], gradient[row], out[row]
        inner = w.dtype.type(0)
        for j in range(keys):
            inner += g[j] * w[j]
        for j in range(keys):
            o[j] = w[j] * (g[j] - inner) * scale


def softmax_backward_compiled(weights, gradient, scale):
    """The compiled form of `softmax_backward_reference`."""
    keys = weights.shape[-1]
    w = np.ascontiguousarray(weights).reshape(-1, keys) if weights.size else weights.reshape(0, max(keys, 1))
    g = np.ascontiguousarray(gradient).reshape(w.shape)
    out = np.empty_like(w)
    run_rows(_softmax_backward_rows, w.shape[0], w.size, w, g, w.dtype.type(scale), out)
    return out.reshape(weights.shape)


attention_softmax = Kernel("attention_softmax", attention_softmax_reference, attention_softmax_compiled)
softmax_backward = Kernel("softmax_backward", softmax_backward_reference, softmax_backward_compiled)
