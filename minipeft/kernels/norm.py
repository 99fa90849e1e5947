"""Layer norm and RMS norm over the last axis, and one backward kernel for each input.

Layer norm (Ba, Kiros, Hinton, 2016, arXiv:1607.06450, section 3):

    xhat = (x - mean) / sqrt(variance + eps),    y = gain * xhat + bias
    dx = rstd * (gain*g - mean(gain*g) - xhat * mean(gain*g*xhat)),    rstd = 1 / sqrt(variance + eps)
    dgain = sum over rows of g * xhat,    dbias = sum over rows of g

RMS norm (Zhang and Sennrich, NeurIPS 2019, arXiv:1910.07467, section 4) is the same with the mean left at 0 and no bias.
"""

from functools import partial

import numpy as np

from .backend import Kernel, jit, run_rows

ROWS_IN_BLOCK = 128  # dgain sums fixed blocks of rows, so that its bits do not depend on the number of threads


def _statistics_reference(x, eps, centred):
    """Mean (0 if not centred) and 1 / sqrt(mean square deviation + eps) of each row, both (..., 1)."""
    mean = x.mean(axis=-1, keepdims=True) if centred else np.zeros_like(x[..., :1])
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return mean, rstd


def norm_reference(x, gain, bias, eps, centred):
    """Normalise each row of x, scale by gain and add bias.

    Args:
        x: (..., D).
        gain: (D,).
        bias: (D,) or None.
        eps: added to the variance.
        centred: True for layer norm, False for RMS norm.

    Returns:
        (..., D).
    """
    mean, rstd = _statistics_reference(x, eps, centred)
    y = (x - mean) * rstd * gain
    return y if bias is None else y + bias


@partial(jit, fastmath=False)  # the fast approximation would give NaN where x is infinite
def _inverse_root(x):
    return type(x)(1) / np.sqrt(x)


@jit
def _row_statistics(row, eps, centred):
    width = row.size
    mean = row.dtype.type(0)
    if centred:
        for j in range(width):
            mean += row[j]
        mean /= row.dtype.type(width)
    square = row.dtype.type(0)
    for j in range(width):
        square += (row[j] - mean) * (row[j] - mean)
    return mean, _inverse_root(square / row.dtype.type(width) + eps)


@jit
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    width = x.shape[1]
    for i in range(start, stop):
        row, o = x[i], out[i]
        mean, rstd = _row_statistics(row, eps, centred)
        for j in range(width):
            o[j] = (row[j] - mean) * rstd * gain[j]
        if has_bias:
            for j in range(width):
                o[j] += bias[j]


def _as_rows(x, width):
    return np.ascontiguousarray(x).reshape(x.size // width if width else 0, width)


def norm_compiled(x, gain, bias, eps, centred):
    """The compiled form of `norm_reference`."""
    rows = _as_rows(x, x.shape[-1])
    out = np.empty_like(rows)
    offset = gain[:0] if bias is None else np.ascontiguousarray(bias)
    run_rows(_norm_rows, rows.shape[0], 2 * rows.size, rows, np.ascontiguousarray(gain), offset, bias is not None,
             rows.dtype.type(eps), bool(centred), out)
    return out.reshape(x.shape)


def norm_backward_input_reference(x, gain, gradient, eps, centred):
    """Gradient of x: ``rstd * (gain*g - mean(gain*g) - xhat * mean(gain*g*xhat))``, the first mean only if centred."""
    mean, rstd = _statistics_reference(x, eps, centred)
    xhat, scaled = (x - mean) * rstd, gradient * gain
    dx = scaled - xhat * (scaled * xhat).mean(axis=-1, keepdims=True)
    if centred:
        dx = dx - scaled.mean(axis=-1, keepdims=True)
    return dx * rstd


@jit
def _norm_backward_input_rows(start, stop, x, gain, gradient, eps, centred, out):
    width = x.shape[1]
    for i in range(start, stop):
        row, g, o = x[i], gradient[i], out[i]
        mean, rstd = _row_statistics(row, eps, centred)
        first, second = row.dtype.type(0), row.dtype.type(0)
        for j in range(width):
            first += g[j] * gain[j]
            second += g[j] * gain[j] * ((row[j] - mean) * rstd)
        first = first / row.dtype.type(width) if centred else row.dtype.type(0)
        second /= row.dtype.type(width)
        for j in range(width):
            o[j] = rstd * (g[j] * gain[j] - first - (row[j] - mean) * rstd * second)


def norm_backward_input_compiled(x, gain, gradient, eps, centred):
    """The compiled form of `norm_backward_input_reference`."""
    rows = _as_rows(x, x.shape[-1])
    out = np.empty_like(rows)
    run_rows(_norm_backward_input_rows, rows.shape[0], 3 * rows.size, rows, np.ascontiguousarray(gain),
             _as_rows(gradient, x.shape[-1]), rows.dtype.type(eps), bool(centred), out)
    return out.reshape(x.shape)


def norm_backward_gain_reference(x, gradient, eps, centred):
    """Gradient of the gain, (D,): the sum over rows of ``g * xhat``."""
    mean, rstd = _statistics_reference(x, eps, centred)
    return ((x - mean) * rstd * gradient).sum(axis=tuple(range(x.ndim - 1)))


@jit
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        o = partial[block]
        o[:] = 0
        for i in range(block * ROWS_IN_BLOCK, min(x.shape[0], (block + 1) * ROWS_IN_BLOCK)):
            row, g = x[i], gradient[i]
            mean, rstd = _row_statistics(row, eps, centred)
            for j in range(row.size):
                o[j] += g[j] * ((row[j] - mean) * rstd)


def norm_backward_gain_compiled(x, gradient, eps, centred):
    """The compiled form of `norm_backward_gain_reference`."""
    rows = _as_rows(x, x.shape[-1])
    blocks = -(-rows.shape[0] // ROWS_IN_BLOCK)
    partial = np.empty((blocks, rows.shape[1]), rows.dtype)  # (blocks, D)
    run_rows(_norm_backward_gain_blocks, blocks, rows.size, rows, _as_rows(gradient, x.shape[-1]),
             rows.dtype.type(eps), bool(centred), partial)
    return partial.sum(axis=0)


norm = Kernel("norm", norm_reference, norm_compiled)
norm_backward_input = Kernel("norm_backward_input", norm_backward_input_reference, norm_backward_input_compiled)
norm_backward_gain = Kernel("norm_backward_gain", norm_backward_gain_reference, norm_backward_gain_compiled)
