"""Compare an operation's gradients with finite differences, in float64 and with a random upstream gradient.

    d/dx <u, f(x)> in direction e_i  ~  (<u, f(x + h e_i)> - <u, f(x - h e_i)>) / 2h
"""

import numpy as np

from .tensor import Tensor


def gradcheck(function, *arrays, rng=None, step=1e-6, tolerance=1e-6):
    """Check the gradient of ``function`` with respect to every array.

    Args:
        function: takes Tensors, returns a Tensor; must be smooth near the arrays and draw nothing at random.
        arrays: float64 arrays of any shape, the points at which to check.
        rng: generator of the upstream gradient u; a fixed one if left out.
        step: h above.
        tolerance: largest allowed difference, relative to the largest entry of the gradient (or to 1, if smaller).

    Raises:
        AssertionError: a gradient is missing, has another shape or another value; the message names the array, the
            entry, and both values.
        TypeError: an array is not float64.
    """
    for number, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck: array {number} is {array.dtype}; finite differences need float64")
    rng = rng or np.random.default_rng(0)
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    output = function(*inputs)
    upstream = rng.standard_normal(output.shape)
    output.backward(upstream)

    def value():
        return float((function(*[Tensor(t.data, requires_grad=True) for t in inputs]).data * upstream).sum())

    for number, tensor in enumerate(inputs):
        expected = np.zeros(tensor.shape)
        for index in np.ndindex(*tensor.shape):
            kept = tensor.data[index]
            tensor.data[index] = kept + step
            above = value()
            tensor.data[index] = kept - step
            expected[index] = (above - value()) / (2 * step)
            tensor.data[index] = kept
        if tensor.grad is None:
            raise AssertionError(f"gradcheck: array {number} received no gradient")
        if tensor.grad.shape != tensor.shape:
            raise AssertionError(f"gradcheck: the gradient of array {number} has shape {tensor.grad.shape}, "
                                 f"expected {tensor.shape}")
        if tensor.size == 0:
            continue
        error = np.abs(tensor.grad - expected)
        worst = np.unravel_index(error.argmax(), error.shape)
        if not error[worst] <= tolerance * max(1.0, np.abs(expected).max()):
            raise AssertionError(f"gradcheck: array {number} at {tuple(map(int, worst))}: got {tensor.grad[worst]:.8g}, "
                                 f"finite differences give {expected[worst]:.8g}")
