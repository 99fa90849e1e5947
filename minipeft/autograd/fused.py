"""The fused operations: one compiled kernel each, and beside it the same value composed of elementary operations.

The kernel is what runs. The composition is what ``backward(create_graph=True)`` differentiates, and what a test
compares the kernel with.
"""

import math

import numpy as np

from .. import kernels
from .ops import erf, exp, getitem, log, put, sum_rows, swap_last, tanh, unbroadcast, use, where
from .tensor import Tensor

# ---- attention -------------------------------------------------------------------------------------------------
#
# Grouped-query attention (Ainslie et al., EMNLP 2023, arXiv:2305.13245): G consecutive query heads share one key head.
# Query-side arrays are seen as (B, H/G, G, T, ...) and key-side arrays as (B, H/G, 1, S, ...), and broadcast.


def _by_key_head(x, key_heads):
    """(B, H, T, K) seen as (B, H/G, G, T, K), of an array or a Tensor."""
    batch, heads, rows, width = x.shape
    return x.reshape(batch, key_heads, heads // key_heads, rows, width)


def _sum_groups(x):
    """The sum over the query heads that share a key head: (B, H/G, G, S, K) -> (B, H/G, S, K); no copy where G = 1."""
    return x[:, :, 0] if x.shape[2] == 1 else x.sum(axis=2)


def _shared(product):
    """``product`` for two inputs whose gradients start with the same costly array: computed for one, handed to the other."""
    waiting = {}

    def call(g):
        if id(g) in waiting:
            return waiting.pop(id(g))
        waiting[id(g)] = result = product(g)
        return result

    return call


def attention_weights(q, k, mask=None, bias=None, scale=1.0, causal=False):
    """W = softmax(Z),  Z = scale q k^T + bias over the visible keys;   dq = scale dZ k,  dk = scale dZ^T q,  dbias = dZ

    Vaswani et al., NeurIPS 2017, arXiv:1706.03762, equation 1. Backward keeps W and not the scores.

    Args:
        q: (B, H, T, K); k: (B, H, S, K), or fewer heads, each shared by consecutive query heads.
        mask: (B, S) booleans, True where a key is real, or None.
        bias: Tensor (1 or B, H, T, S) or None.
        scale: number that multiplies the products.
        causal: whether query i is kept from the keys j > i + S - T.

    Returns:
        Tensor (B, H, T, S).
    """
    key_heads, shape_q, shape_k = k.shape[1], q.shape, k.shape
    if mask is not None and mask.shape != (shape_q[0], shape_k[2]):
        raise ValueError(f"attention: the mask has shape {mask.shape}, expected (batch, keys) = {(shape_q[0], shape_k[2])}")
    full = (*shape_q[:3], shape_k[2])  # (B, H, T, S)
    if bias is not None and bias.shape not in (full, (1, *full[1:])):
        raise ValueError(f"attention: the bias has shape {bias.shape}, expected {full} or {(1, *full[1:])}")
    groups = lambda x: _by_key_head(x, key_heads)                                        # (B, H/G, G, T, ...)
    one = lambda x: x[:, :, None]                                                        # (B, H/G, 1, S, K)
    scores = groups(q.data) @ swap_last(one(k.data))                                     # (B, H/G, G, T, S)
    scores = scores.reshape(full)                                                        # (B, H, T, S)
    weights = kernels.attention_softmax(scores, mask, None if bias is None else bias.data, scale, causal)
    del scores
    d_scores = lambda g: groups(kernels.softmax_backward(weights, g, scale))             # (B, H/G, G, T, S)
    if q.requires_grad and k.requires_grad:
        d_scores = _shared(d_scores)
    return Tensor(
        weights, operation="attention_weights",
        parents=[(q, lambda g: (d_scores(g) @ one(k.data)).reshape(shape_q)),
                 (k, lambda g: _sum_groups(swap_last(d_scores(g)) @ groups(q.data))),
                 (bias, lambda g: unbroadcast(kernels.softmax_backward(weights, g, 1.0), bias.shape))],
        composition=lambda: attention_weights_composed(q, k, mask, bias, scale, causal))


def attention_weights_composed(q, k, mask=None, bias=None, scale=1.0, causal=False):
    """`attention_weights` from elementary operations."""
    batch, heads, queries, _ = q.shape
    keys, key_heads = k.shape[2], k.shape[1]
    z = (_by_key_head(q, key_heads) @ swap_last(_by_key_head(k, key_heads))).reshape(batch, heads, queries, keys) * scale
    if bias is not None:
        z = z + bias
    visible = np.ones((1, 1, queries, keys), bool)
    if causal:
        visible = np.tri(queries, keys, keys - queries, dtype=bool)[None, None]
    if mask is not None:
        visible = visible & mask[:, None, None, :]
    z = where(visible, z, -1e9)
    e = exp(z - z.data.max(axis=-1, keepdims=True, initial=-1e9)) * visible.astype(q.dtype)
    total = e.sum(axis=-1, keepdims=True)
    return e / where(total.data == 0, 1.0, total)


def attend(weights, v):
    """Y = W v;   dW = g v^T,   dv = W^T g

    Args:
        weights: (B, H, T, S); v: (B, H, S, K), or fewer heads, each shared by consecutive query heads.

    Returns:
        Tensor (B, H, T, K), laid out in memory as (B, T, H, K), so that joining the heads copies nothing.
    """
    batch, heads, queries, keys = weights.shape
    key_heads, width = v.shape[1], v.shape[3]
    groups = lambda x: _by_key_head(x, key_heads)
    y = np.empty((batch, queries, heads, width), weights.dtype).swapaxes(1, 2)           # (B, H, T, K)
    np.matmul(groups(weights.data), groups(v.data), out=groups(y))
    return Tensor(y, operation="attend", parents=[
        (weights, lambda g: (groups(g) @ swap_last(groups(use(v)))).reshape(batch, heads, queries, keys)),
        (v, lambda g: _sum_groups(swap_last(groups(use(weights))) @ groups(g)))])


# ---- normalisation ---------------------------------------------------------------------------------------------


def _norm(x, gain, bias, eps, centred):
    return Tensor(
        kernels.norm(x.data, gain.data, None if bias is None else bias.data, eps, centred), operation="norm",
        parents=[(x, lambda g: kernels.norm_backward_input(x.data, gain.data, g, eps, centred)),
                 (gain, lambda g: kernels.norm_backward_gain(x.data, g, eps, centred)),
                 (bias, sum_rows)],
        composition=lambda: norm_composed(x, gain, bias, eps, centred))


def layer_norm(x, gain, bias, eps=1e-5):
    """y = (x - mean) / sqrt(variance + eps) * gain + bias;   the gradients stand in ``kernels/norm.py``

    Args:
        x: (..., D); gain, bias: (D,); eps: added to the variance.
    """
    return _norm(x, gain, bias, eps, True)


def rms_norm(x, gain, eps=1e-5):
    """y = x / sqrt(mean(x^2) + eps) * gain;   the gradients stand in ``kernels/norm.py``

    Args:
        x: (..., D); gain: (D,); eps: added to the mean square.
    """
    return _norm(x, gain, None, eps, False)


def norm_composed(x, gain, bias, eps, centred):
    """`layer_norm` and `rms_norm` from elementary operations."""
    deviation = x - x.mean(axis=-1, keepdims=True) if centred else x
    y = deviation * ((deviation * deviation).mean(axis=-1, keepdims=True) + eps) ** -0.5 * gain
    return y if bias is None else y + bias


# ---- activations -----------------------------------------------------------------------------------------------


def activation(x, name):
    """y = f(x) for f one of gelu, gelu_new, silu, relu, tanh;   dx = g f'(x), both in ``kernels/activation.py``"""
    if name == "tanh":
        return tanh(x)  # one pass in NumPy already: there is nothing to fuse
    if name not in kernels.ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(sorted([*kernels.ACTIVATIONS, 'tanh']))}, got {name!r}")
    forward, backward = kernels.ACTIVATIONS[name]
    return Tensor(forward(x.data), operation=name, parents=[(x, lambda g: backward(x.data, g))],
                  composition=lambda: activation_composed(x, name))


def activation_composed(x, name):
    """`activation` from elementary operations."""
    if name == "gelu":
        return x * (erf(x * math.sqrt(0.5)) + 1.0) * 0.5
    if name == "gelu_new":
        return x * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0) * 0.5
    if name == "silu":
        return x / (exp(-x) + 1.0)
    return where(x.data > 0, x, 0.0)


# ---- loss ------------------------------------------------------------------------------------------------------


def cross_entropy(logits, labels):
    """L = mean over the rows that have a label of (logsumexp(z) - z_y);   dz = (softmax(z) - onehot(y)) g / n

    Args:
        logits: (..., V).
        labels: (...) int ids, ``kernels.IGNORE`` (-100) in rows to leave out. With no row left the loss is 0.

    Raises:
        ValueError: a label lies outside 0..V-1, or the shapes do not fit.
    """
    classes = logits.shape[-1]
    labels = np.asarray(labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy: labels have shape {labels.shape}, logits {logits.shape}; expected {logits.shape[:-1]}")
    flat = np.ascontiguousarray(labels.reshape(-1), dtype=np.int64)                      # (N,)
    kept = flat != kernels.IGNORE
    wrong = kept & ((flat < 0) | (flat >= classes))
    if wrong.any():
        raise ValueError(f"cross_entropy: label {flat[wrong][0]} is outside 0..{classes - 1} "
                         f"(use {kernels.IGNORE} to leave a row out)")
    count = max(int(kept.sum()), 1)
    rows = logits.data.reshape(-1, classes)                                              # (N, V)
    losses, lse = kernels.cross_entropy(rows, flat)

    def product(g):
        each = np.full(len(flat), g / count, rows.dtype)
        return kernels.cross_entropy_backward(rows, flat, lse, each).reshape(logits.shape)

    return Tensor(np.asarray(losses.sum(dtype=np.float64) / count, dtype=rows.dtype), operation="cross_entropy",
                  parents=[(logits, product)], composition=lambda: cross_entropy_composed(logits, labels))


def cross_entropy_composed(logits, labels):
    """`cross_entropy` from elementary operations."""
    rows = logits.reshape(-1, logits.shape[-1])
    flat = np.asarray(labels).reshape(-1)
    kept = np.flatnonzero(flat != kernels.IGNORE)
    z = rows[kept]
    z = z - z.data.max(axis=1, keepdims=True, initial=-np.finfo(z.dtype).max)
    losses = log(exp(z).sum(axis=1)) - getitem(z, (np.arange(len(kept)), flat[kept]))
    return losses.sum() * (1 / max(len(kept), 1))


# ---- embedding -------------------------------------------------------------------------------------------------


def embedding(table, ids):
    """y = E[ids];   dE[v] = sum of the rows of g whose id is v

    Args:
        table: (V, D); ids: (...) int, each in 0..V-1.

    Raises:
        ValueError: an id lies outside the table.
    """
    ids = np.asarray(ids)
    rows, width = table.shape
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise ValueError(f"embedding: id {ids.max() if ids.max() >= rows else ids.min()} is outside the table's 0..{rows - 1}")
    product = lambda g: kernels.scatter_add(ids.reshape(-1), g.reshape(ids.size, width), rows)
    return Tensor(table.data[ids], operation="embedding", parents=[(table, product)],
                  composition=lambda: table[ids])


def dropout(x, probability, rng):
    """y = x m / (1 - p), each m is 0 with probability p, else 1;   dx = g m / (1 - p)

    Srivastava et al., JMLR 2014, section 4, with the scale moved to training.

    Args:
        probability: in [0, 1).
        rng: numpy.random.Generator that draws m.
    """
    keep = np.less(rng.random(x.shape, np.float32), 1 - probability)
    return x * Tensor(keep * x.dtype.type(1 / (1 - probability)))


__all__ = ["activation", "attend", "attention_weights", "cross_entropy", "dropout", "embedding", "layer_norm", "put",
           "rms_norm"]
