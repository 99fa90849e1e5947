"""The elementary operations: each states its mathematics in one line and gives one vector-Jacobian product for each input.

A product is written with operators that mean the same on arrays and on Tensors, and takes its operands through
``use``: arrays in an ordinary backward pass, Tensors when the pass itself must be differentiable. It closes over only
what it needs, so that an activation which no product needs is freed.
"""

import math

import numpy as np

from .. import kernels
from .tensor import Tensor, building_graph


def use(tensor):
    """What a product computes with: the array, or the Tensor itself while a graph of the backward pass is built."""
    return tensor if building_graph() else tensor.data


def _operand(value, like):
    """``value`` as a Tensor of the type of ``like``."""
    return value if isinstance(value, Tensor) else Tensor(np.asarray(value, dtype=like.dtype))


def _pair(a, b):
    if not isinstance(a, Tensor):
        a = _operand(a, b)
    return a, _operand(b, a)


def unbroadcast(g, shape):
    """Sum ``g`` over the axes along which an operand of ``shape`` was repeated, so that the result has that shape."""
    if g.shape == tuple(shape):
        return g
    extra = len(g.shape) - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)


def swap_last(x):
    """The last two axes exchanged, of an array or a Tensor."""
    return x.swapaxes(-1, -2)


# ---- arithmetic ------------------------------------------------------------------------------------------------


def add(a, b):
    """y = a + b;   da = g,   db = g"""
    a, b = _pair(a, b)
    shape_a, shape_b = a.shape, b.shape
    return Tensor(a.data + b.data, operation="add", parents=[
        (a, lambda g: unbroadcast(g, shape_a)),
        (b, lambda g: unbroadcast(g, shape_b))])


def subtract(a, b):
    """y = a - b;   da = g,   db = -g"""
    a, b = _pair(a, b)
    shape_a, shape_b = a.shape, b.shape
    return Tensor(a.data - b.data, operation="subtract", parents=[
        (a, lambda g: unbroadcast(g, shape_a)),
        (b, lambda g: unbroadcast(-g, shape_b))])


def negative(a):
    """y = -a;   da = -g"""
    return Tensor(-a.data, operation="negative", parents=[(a, lambda g: -g)])


def multiply(a, b):
    """y = a b;   da = g b,   db = g a"""
    a, b = _pair(a, b)
    shape_a, shape_b = a.shape, b.shape
    return Tensor(a.data * b.data, operation="multiply", parents=[
        (a, lambda g: unbroadcast(g * use(b), shape_a)),
        (b, lambda g: unbroadcast(g * use(a), shape_b))])


def divide(a, b):
    """y = a / b;   da = g / b,   db = -g a / b^2"""
    a, b = _pair(a, b)
    shape_a, shape_b = a.shape, b.shape
    return Tensor(a.data / b.data, operation="divide", parents=[
        (a, lambda g: unbroadcast(g / use(b), shape_a)),
        (b, lambda g: unbroadcast(-(g * use(a)) / (use(b) * use(b)), shape_b))])


def power(a, exponent):
    """y = a^n for a number n;   da = g n a^(n-1)"""
    slope = (lambda: use(a) ** (exponent - 1) * exponent) if exponent != 0 else (lambda: 0.0)  # also at a = 0
    return Tensor(a.data**exponent, operation="power", parents=[(a, lambda g: g * slope())])


def exp(a):
    """y = e^a;   da = g y"""
    y = np.exp(a.data)
    return Tensor(y, operation="exp", parents=[(a, lambda g: g * (exp(a) if building_graph() else y))])


def log(a):
    """y = ln a;   da = g / a"""
    return Tensor(np.log(a.data), operation="log", parents=[(a, lambda g: g / use(a))])


def tanh(a):
    """y = tanh a;   da = g (1 - y^2)"""
    y = np.tanh(a.data)

    def product(g):
        value = tanh(a) if building_graph() else y
        return g * (1 - value * value)

    return Tensor(y, operation="tanh", parents=[(a, product)])


def erf(a):
    """y = erf a;   da = g 2/sqrt(pi) exp(-a^2)"""
    y = kernels.erf(a.data)

    def product(g):
        square = use(a) * use(a)
        return g * ((exp(-square) if building_graph() else np.exp(-square)) * (2 / math.sqrt(math.pi)))

    return Tensor(y, operation="erf", parents=[(a, product)])


def where(condition, a, b):
    """y = a where condition else b;   da = g where condition,   db = g elsewhere"""
    a, b = _pair(a, b)
    condition, shape_a, shape_b = np.asarray(condition, bool), a.shape, b.shape

    def choose(g, flag):
        return multiply(g, flag.astype(g.dtype)) if isinstance(g, Tensor) else np.where(flag, g, 0).astype(g.dtype)

    return Tensor(np.where(condition, a.data, b.data), operation="where", parents=[
        (a, lambda g: unbroadcast(choose(g, condition), shape_a)),
        (b, lambda g: unbroadcast(choose(g, ~condition), shape_b))])


# ---- sums ------------------------------------------------------------------------------------------------------


def broadcast_to(a, shape):
    """y = a repeated to shape;   da = g summed over the repeats"""
    shape_a = a.shape
    return Tensor(np.broadcast_to(a.data, shape), operation="broadcast_to", parents=[
        (a, lambda g: unbroadcast(g, shape_a))])


def _spread(g, shape):
    """``g`` repeated to ``shape``, of an array or a Tensor."""
    return broadcast_to(g, shape) if isinstance(g, Tensor) else np.broadcast_to(g, shape)


def sum(a, axis=None, keepdims=False):
    """y = sum of a over axis;   da = g repeated along it"""
    shape = a.shape
    kept = np.sum(np.empty(shape, bool), axis=axis, keepdims=True).shape  # (…, 1, …)
    return Tensor(np.sum(a.data, axis=axis, keepdims=keepdims), operation="sum", parents=[
        (a, lambda g: _spread(g.reshape(kept), shape))])


def mean(a, axis=None, keepdims=False):
    """y = mean of a over axis;   da = g / n repeated along it"""
    total = sum(a, axis=axis, keepdims=keepdims)
    return total * (max(total.size, 1) / max(a.size, 1))


# ---- shape -----------------------------------------------------------------------------------------------------


def reshape(a, *shape):
    """y = a in another shape;   da = g in a's shape"""
    shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    shape_a = a.shape
    return Tensor(a.data.reshape(shape), operation="reshape", parents=[(a, lambda g: g.reshape(shape_a))])


def swapaxes(a, i, j):
    """y = a with axes i and j exchanged;   da = g with them exchanged back"""
    return Tensor(a.data.swapaxes(i, j), operation="swapaxes", parents=[(a, lambda g: g.swapaxes(i, j))])


def concatenate(tensors, axis=0):
    """y = the tensors one after the other along axis;   d(each) = its part of g"""
    dimensions = tensors[0].ndim
    edges = np.cumsum([0] + [t.shape[axis] for t in tensors])

    def part(start, stop):
        index = [slice(None)] * dimensions
        index[axis] = slice(int(start), int(stop))
        return lambda g: g[tuple(index)]

    return Tensor(np.concatenate([t.data for t in tensors], axis=axis), operation="concatenate",
                  parents=[(t, part(edges[i], edges[i + 1])) for i, t in enumerate(tensors)])


def getitem(a, index):
    """y = a[index];   da = zeros with g added at index"""
    shape = a.shape
    return Tensor(a.data[index], operation="getitem", parents=[(a, lambda g: put(g, index, shape))])


def put(g, index, shape, distinct=False):
    """y = zeros of shape with g added at index (of an array or a Tensor);   dg = (gradient of y)[index]

    ``distinct`` says that the index names no element twice, so that g need not be added but only written.
    """
    value = g.data if isinstance(g, Tensor) else np.asarray(g)
    y = np.zeros(shape, value.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if distinct or all(isinstance(p, (int, slice, type(None), type(...))) for p in parts):
        y[index] = value  # a plain slice names each element at most once
    else:
        np.add.at(y, index, value)
    return Tensor(y, operation="put", parents=[(g, lambda h: h[index])]) if isinstance(g, Tensor) else y


# ---- products --------------------------------------------------------------------------------------------------


def matmul(a, b):
    """C = A B over the last two axes;   dA = dC B^T,   dB = A^T dC"""
    a, b = _pair(a, b)
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: both operands need two axes or more, got shapes {a.shape} and {b.shape}")
    shape_a, shape_b = a.shape, b.shape
    return Tensor(a.data @ b.data, operation="matmul", parents=[
        (a, lambda g: unbroadcast(g @ swap_last(use(b)), shape_a)),
        (b, lambda g: unbroadcast(swap_last(use(a)) @ g, shape_b))])


def sum_rows(g):
    """Sum over all axes but the last, as the product 1^T g: BLAS takes half the time of NumPy's sum."""
    rows = g.reshape(math.prod(g.shape[:-1]), g.shape[-1])  # (N, D)
    return np.ones(rows.shape[0], g.dtype) @ rows if isinstance(g, np.ndarray) else rows.sum(axis=0)  # (D,)


def linear(x, weight, bias=None):
    """y = x W + b;   dx = g W^T,   dW = x^T g,   db = sum over rows of g

    Args:
        x: (..., D_in); weight: (D_in, D_out); bias: (D_out,) or None.

    All leading axes are flattened into rows for the three products: left three-dimensional, NumPy would run one
    small product for each element of the batch, and the weight's gradient would first exist once for each of them.
    """
    shape, (d_in, d_out) = x.shape, weight.shape
    rows = math.prod(shape[:-1])
    y = x.data.reshape(rows, d_in) @ weight.data  # (N, D_out)
    if bias is not None:
        y += bias.data
    return Tensor(y.reshape(*shape[:-1], d_out), operation="linear", parents=[
        (x, lambda g: (g.reshape(rows, d_out) @ swap_last(use(weight))).reshape(shape)),
        (weight, lambda g: swap_last(use(x).reshape(rows, d_in)) @ g.reshape(rows, d_out)),
        (bias, sum_rows)])


def rotate(x, cos, sin):
    """y = (x1 cos - x2 sin, x2 cos + x1 sin) for the two halves x1, x2 of the last axis;   dx = g rotated back

    The rotary position embedding of Su et al., 2021, arXiv:2104.09864, section 3.4.2, in the half-split layout of LLaMA.

    Args:
        x: (..., T, K) array or Tensor; cos, sin: (..., T, K/2) arrays.
    """
    value = x.data if isinstance(x, Tensor) else x
    half = value.shape[-1] // 2
    x1, x2 = value[..., :half], value[..., half:]
    y = np.empty_like(value)
    y[..., :half] = x1 * cos - x2 * sin
    y[..., half:] = x2 * cos + x1 * sin
    return Tensor(y, operation="rotate", parents=[(x, lambda g: rotate(g, cos, -sin))]) if isinstance(x, Tensor) else y


# ---- operators -------------------------------------------------------------------------------------------------

Tensor.__add__ = add
Tensor.__radd__ = add
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda a, b: subtract(_operand(b, a), a)
Tensor.__mul__ = multiply
Tensor.__rmul__ = multiply
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda a, b: divide(_operand(b, a), a)
Tensor.__neg__ = negative
Tensor.__pow__ = power
Tensor.__matmul__ = matmul
Tensor.__getitem__ = getitem
Tensor.sum = sum
Tensor.mean = mean
Tensor.reshape = reshape
Tensor.swapaxes = swapaxes
Tensor.T = property(swap_last, doc="The last two axes exchanged.")
