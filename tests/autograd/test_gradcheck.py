"""gradcheck itself: it must notice every kind of wrong gradient."""

import re

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck


def square_with(product):
    """y = x^2 with a given vector-Jacobian product (the right one is g * 2x)."""
    return lambda x: Tensor(x.data**2, parents=[(x, lambda g: product(g, x.data))])


X = np.array([[0.5, -1.0, 2.0]])


def test_a_right_gradient_passes_and_leaves_the_arrays_alone():
    x = X.copy()
    gradcheck(square_with(lambda g, x: g * 2 * x), x)
    assert (x == X).all()


@pytest.mark.parametrize("product", [
    lambda g, x: g * x,                               # a factor
    lambda g, x: -g * 2 * x,                          # a sign
    lambda g, x: g * 2 * x + 1e-4,                    # a little off everywhere
    lambda g, x: g * 2 * x * (x != 2),                # one entry
    lambda g, x: 2 * x,                               # the upstream gradient forgotten
    lambda g, x: (g * 2 * x)[:, ::-1].copy(),         # entries exchanged
    lambda g, x: g * np.where(x < 0, np.nan, 2 * x),  # NaN
], ids=["factor", "sign", "offset", "entry", "upstream", "order", "NaN"])
def test_a_wrong_gradient_fails(product):
    with pytest.raises(AssertionError, match=r"gradcheck: array 0 at \(0, \d\): got .*, finite differences give"):
        gradcheck(square_with(product), X.copy())


def test_the_message_names_the_array_the_entry_and_both_values():
    wrong = lambda a, b: Tensor(a.data * b.data, parents=[(a, lambda g: g * b.data), (b, lambda g: g * a.data * [1, 1, 2])])
    with pytest.raises(AssertionError) as error:
        gradcheck(wrong, X.copy(), X.copy())
    found = re.search(r"array 1 at \(0, 2\): got (\S+), finite differences give (\S+)", str(error.value))
    assert float(found[1]) == pytest.approx(2 * float(found[2]))


def test_a_missing_gradient_fails():
    with pytest.raises(AssertionError, match="gradcheck: array 1 received no gradient"):
        gradcheck(lambda a, b: a * 2 + Tensor(b.data), X.copy(), X.copy())


def test_a_gradient_of_another_shape_fails():
    with pytest.raises(AssertionError, match=re.escape("gradient of array 0 has shape (3,), expected (1, 3)")):
        gradcheck(square_with(lambda g, x: (g * 2 * x)[0]), X.copy())


def test_single_precision_is_refused():
    with pytest.raises(TypeError, match="gradcheck: array 1 is float32; finite differences need float64"):
        gradcheck(lambda a, b: a * b, X.copy(), X.astype(np.float32))


def test_the_upstream_gradient_is_random():
    """With an upstream gradient of ones an operation that mixes up entries of equal sum would pass."""
    transposed = lambda x: Tensor(x.data * 1.0, parents=[(x, lambda g: g.T)])
    with pytest.raises(AssertionError):
        gradcheck(transposed, np.ones((2, 2)))
