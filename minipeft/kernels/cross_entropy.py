"""Cross-entropy of logits against class ids, and its backward pass, without ever storing the probabilities.

    loss_i = log sum_k exp(z_ik) - z_{i, y_i}          dz_ik = g_i (exp(z_ik - lse_i) - [k = y_i])

A row whose label is IGNORE (-100, as in PyTorch) has loss 0 and gradient 0.
"""

import numpy as np

from .backend import Kernel, jit, run_rows
from .compiled_math import exp, largest

IGNORE = -100


def cross_entropy_reference(logits, labels):
    """Loss and log-sum-exp of each row.

    Args:
        logits: (N, V).
        labels: (N,) int64, each in 0..V-1 or IGNORE.

    Returns:
        losses (N,) and log-sum-exps (N,), which the backward pass needs.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        top = logits.max(axis=1, keepdims=True, initial=-np.inf)
        shift = np.where(np.isinf(top), 0, top)
        lse = (np.log(np.exp(logits - shift).sum(axis=1, keepdims=True)) + shift)[:, 0]
    kept = labels != IGNORE
    chosen = logits[np.arange(len(labels)), np.where(kept, labels, 0)]
    return np.where(kept, lse - chosen, 0).astype(logits.dtype), lse.astype(logits.dtype)


@jit
def _cross_entropy_rows(start, stop, logits, labels, losses, lse):
    for i in range(start, stop):
        z = logits[i]
        top = largest(z, z.size)
        if np.isinf(top):
            top = z.dtype.type(0)
        total = z.dtype.type(0)
        for k in range(z.size):
            total += exp(z[k] - top)
        lse[i] = np.log(total) + top
        losses[i] = lse[i] - z[labels[i]] if labels[i] != IGNORE else z.dtype.type(0)


def cross_entropy_compiled(logits, labels):
    """The compiled form of `cross_entropy_reference`."""
    logits, labels = np.ascontiguousarray(logits), np.ascontiguousarray(labels, dtype=np.int64)
    losses, lse = np.empty(len(logits), logits.dtype), np.empty(len(logits), logits.dtype)
    run_rows(_cross_entropy_rows, len(logits), 4 * logits.size, logits, labels, losses, lse)
    return losses, lse


def cross_entropy_backward_reference(logits, labels, lse, gradient):
    """Gradient of the logits, (N, V), given the gradient (N,) of the rows' losses."""
    kept = labels != IGNORE
    with np.errstate(invalid="ignore", over="ignore"):
        dz = np.exp(logits - lse[:, None])
        dz[np.arange(len(labels)), np.where(kept, labels, 0)] -= 1
        return np.where(kept[:, None], dz * gradient[:, None], 0).astype(logits.dtype)


@jit
def _cross_entropy_backward_rows(start, stop, logits, labels, lse, gradient, out):
    for i in range(start, stop):
        z, o, g = logits[i], out[i], gradient[i]
        if labels[i] == IGNORE:
            o[:] = 0
        else:
            shift = lse[i]
            for k in range(z.size):
                o[k] = exp(z[k] - shift) * g
            o[labels[i]] -= g


def cross_entropy_backward_compiled(logits, labels, lse, gradient):
    """The compiled form of `cross_entropy_backward_reference`."""
    logits, labels = np.ascontiguousarray(logits), np.ascontiguousarray(labels, dtype=np.int64)
    out = np.empty_like(logits)
    run_rows(_cross_entropy_backward_rows, len(logits), 4 * logits.size, logits, labels, lse,
             np.ascontiguousarray(gradient), out)
    return out


cross_entropy = Kernel("cross_entropy", cross_entropy_reference, cross_entropy_compiled)
cross_entropy_backward = Kernel(
    "cross_entropy_backward", cross_entropy_backward_reference, cross_entropy_backward_compiled)
