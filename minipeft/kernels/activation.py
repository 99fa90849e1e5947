"""The activation functions of Transformers, elementwise, and their backward passes.

    gelu      x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2          Hendrycks and Gimpel, 2016, arXiv:1606.08415
    gelu_new  x (1 + tanh(u)) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3)   the same paper's approximation, as GPT-2 uses it
    silu      x sigmoid(x)                                           the same paper, section 2
    relu      max(x, 0)

Derivatives, with phi(x) = exp(-x^2/2) / sqrt(2 pi) and t = tanh(u):

    gelu'      Phi(x) + x phi(x)
    gelu_new'  (1 + t)/2 + x (1 - t^2)/2 * sqrt(2/pi) (1 + 3*0.044715 x^2)
    silu'      s (1 + x (1 - s)),  s = sigmoid(x)
"""

import math

import numpy as np

from .backend import Kernel, jit, run_rows
from .compiled_math import erf_from_exp, exp

ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
ROOT_HALF = math.sqrt(0.5)
ROOT_1_OVER_2PI = 1 / math.sqrt(2 * math.pi)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


# ---- the definitions -------------------------------------------------------------------------------------------


def erf_reference(x):
    """``erf(x)``, which a derivative of gelu's derivative is made of."""
    return _erf(x).astype(x.dtype)


def gelu_reference(x):
    """``x (1 + erf(x / sqrt 2)) / 2``."""
    with np.errstate(invalid="ignore"):
        return (x * (1 + _erf(x * ROOT_HALF)) / 2).astype(x.dtype)


def gelu_backward_reference(x, gradient):
    """``g (Phi(x) + x phi(x))``."""
    phi = np.exp(-x * x / 2) * ROOT_1_OVER_2PI
    with np.errstate(invalid="ignore"):
        return (gradient * ((1 + _erf(x * ROOT_HALF)) / 2 + x * phi)).astype(x.dtype)


def gelu_new_reference(x):
    """``x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2``."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (x * (1 + np.tanh(ROOT_2_OVER_PI * (x + 0.044715 * x**3))) / 2).astype(x.dtype)


def gelu_new_backward_reference(x, gradient):
    """``g ((1 + t)/2 + x (1 - t^2)/2 sqrt(2/pi) (1 + 3*0.044715 x^2))``."""
    with np.errstate(invalid="ignore", over="ignore"):
        t = np.tanh(ROOT_2_OVER_PI * (x + 0.044715 * x**3))
        slope = ROOT_2_OVER_PI * (1 + 3 * 0.044715 * x**2)
        return (gradient * ((1 + t) / 2 + x * (1 - t * t) / 2 * slope)).astype(x.dtype)


def silu_reference(x):
    """``x / (1 + exp(-x))``."""
    with np.errstate(invalid="ignore"):
        return x * _sigmoid(x)


def silu_backward_reference(x, gradient):
    """``g s (1 + x (1 - s))``."""
    s = _sigmoid(x)
    with np.errstate(invalid="ignore"):
        return gradient * s * (1 + x * (1 - s))


def relu_reference(x):
    """``max(x, 0)``."""
    return np.maximum(x, 0)


def relu_backward_reference(x, gradient):
    """``g`` where ``x > 0``, else 0."""
    return np.where(x > 0, gradient, 0).astype(x.dtype)


# ---- the compiled loops ----------------------------------------------------------------------------------------


@jit
def _tanh(x):
    """tanh(x) = 1 - 2 / (exp(2x) + 1), which is exact to the type's precision for the sums it is used in."""
    one = type(x)(1)
    return one - (one + one) / (exp(x + x) + one)


@jit
def _erf_loop(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    near, slope, third = x.dtype.type(1e-3), x.dtype.type(2 / math.sqrt(math.pi)), x.dtype.type(1 / 3)
    for i in range(x.size):
        square = x[i] * x[i]
        if abs(x[i]) < near:  # where the polynomial, good to so many places, has no digit that is right: x - x^3 / 3
            out[i] = slope * x[i] * (x.dtype.type(1) - third * square)
        else:
            out[i] = erf_from_exp(x[i], exp(-square))


@jit
def _gelu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    half, root = x.dtype.type(0.5), x.dtype.type(ROOT_HALF)
    for i in range(x.size):
        z = x[i] * root
        out[i] = half * x[i] * (x.dtype.type(1) + erf_from_exp(z, exp(-z * z)))


@jit
def _gelu_backward(start, stop, x, gradient, out):
    x, gradient, out = x[start:stop], gradient[start:stop], out[start:stop]
    half, root, density = x.dtype.type(0.5), x.dtype.type(ROOT_HALF), x.dtype.type(ROOT_1_OVER_2PI)
    for i in range(x.size):
        z = x[i] * root
        e = exp(-z * z)
        out[i] = gradient[i] * (half * (x.dtype.type(1) + erf_from_exp(z, e)) + x[i] * e * density)


@jit
def _gelu_new(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    half, root, cube = x.dtype.type(0.5), x.dtype.type(ROOT_2_OVER_PI), x.dtype.type(0.044715)
    one = x.dtype.type(1)
    for i in range(x.size):
        t = _tanh(root * x[i] * (one + cube * x[i] * x[i]))
        out[i] = half * x[i] * (one + t)


@jit
def _gelu_new_backward(start, stop, x, gradient, out):
    x, gradient, out = x[start:stop], gradient[start:stop], out[start:stop]
    half, root, cube = x.dtype.type(0.5), x.dtype.type(ROOT_2_OVER_PI), x.dtype.type(0.044715)
    one, three = x.dtype.type(1), x.dtype.type(3)
    for i in range(x.size):
        square = x[i] * x[i]
        t = _tanh(root * x[i] * (one + cube * square))
        slope = root * (one + three * cube * square)
        out[i] = gradient[i] * half * (one + t) * (one + x[i] * (one - t) * slope)


@jit
def _silu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    one = x.dtype.type(1)
    for i in range(x.size):
        out[i] = x[i] / (one + exp(-x[i]))


@jit
def _silu_backward(start, stop, x, gradient, out):
    x, gradient, out = x[start:stop], gradient[start:stop], out[start:stop]
    one = x.dtype.type(1)
    for i in range(x.size):
        s = one / (one + exp(-x[i]))
        out[i] = gradient[i] * s * (one + x[i] * (one - s))


@jit
def _relu(start, stop, x, out):
    x, out = x[start:stop], out[start:stop]
    zero = x.dtype.type(0)
    for i in range(x.size):
        out[i] = zero if x[i] < zero else x[i]  # written so that NaN stays NaN


@jit
def _relu_backward(start, stop, x, gradient, out):
    x, gradient, out = x[start:stop], gradient[start:stop], out[start:stop]
    zero = x.dtype.type(0)
    for i in range(x.size):
        out[i] = gradient[i] if x[i] > zero else zero


def _elementwise(loop, reference):
    """Wrap a compiled loop over flat arrays into a function of arrays of any shape."""

    def compiled(*arrays):
        shape = arrays[0].shape
        flat = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
        out = np.empty_like(flat[0])
        run_rows(loop, out.size, 4 * out.size, *flat, out)  # an exponential costs some four plain elements
        return out.reshape(shape)

    compiled.__doc__ = f"The compiled form of `{reference.__name__}`."
    compiled.__name__ = reference.__name__.replace("reference", "compiled")
    return compiled


def _kernel(name, reference, loop):
    return Kernel(name, reference, _elementwise(loop, reference))


erf = _kernel("erf", erf_reference, _erf_loop)

# name -> (forward, backward); the names are those of Hugging Face's ``hidden_act``
ACTIVATIONS = {
    "gelu": (_kernel("gelu", gelu_reference, _gelu),
             _kernel("gelu_backward", gelu_backward_reference, _gelu_backward)),
    "gelu_new": (_kernel("gelu_new", gelu_new_reference, _gelu_new),
                 _kernel("gelu_new_backward", gelu_new_backward_reference, _gelu_new_backward)),
    "silu": (_kernel("silu", silu_reference, _silu),
             _kernel("silu_backward", silu_backward_reference, _silu_backward)),
    "relu": (_kernel("relu", relu_reference, _relu),
             _kernel("relu_backward", relu_backward_reference, _relu_backward)),
}
