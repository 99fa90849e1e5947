"""The engine: what backward keeps, frees, adds up and refuses, on graphs of every form."""

import gc
import re
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.autograd import Tensor, grad, gradcheck, no_grad


def leaf(*values):
    return Tensor(np.array(values, float), requires_grad=True)


def owner(array):
    """The array that holds the memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# ---- deep graphs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10_000, 100_000])
def test_a_deep_chain_needs_no_recursion(depth):
    x = leaf(0.5)
    y = x
    for _ in range(depth):
        y = y * 1.00001
    y.backward()
    assert x.grad[0] == pytest.approx(1.00001**depth, rel=1e-9)
    del y
    gc.collect()


@pytest.mark.parametrize("step", [lambda y, w: y * w, lambda y, w: F.tanh(y), lambda y, w: y.reshape(1), lambda y, w: y + w])
def test_a_deep_chain_that_is_never_walked_is_collected(step):
    w, y = leaf(1.0), leaf(0.5)
    for _ in range(10_000):
        y = step(y, w)  # products that hold the Tensor before them
    last = weakref.ref(y.node)
    del y
    gc.collect()
    assert last() is None


def test_a_deep_chain_with_a_graph_of_its_backward():
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y * 1.0001
    (first,) = grad(y * y, [x], create_graph=True)
    (second,) = grad(first, [x])
    assert second[0] == pytest.approx(2 * 1.0001**6000, rel=1e-9)
    del y, first
    gc.collect()


# ---- what is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [F.linear, F.matmul])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_weight_lets_its_input_go(operation, frozen, rng):
    below = Tensor(rng.standard_normal((3, 4)), requires_grad=True)
    x = below * 2
    weight = Tensor(rng.standard_normal((4, 5)), requires_grad=not frozen)
    alive = weakref.ref(owner(x.data))
    loss = operation(x, weight).sum()
    del x
    gc.collect()
    assert (alive() is None) == frozen
    loss.backward()
    assert below.grad is not None and (weight.grad is None) == frozen


def test_a_frozen_input_lets_the_weight_go(rng):
    x, weight = Tensor(rng.standard_normal((3, 4))), Tensor(rng.standard_normal((4, 5)), requires_grad=True)
    copy = weight * 1
    alive = weakref.ref(owner(copy.data))
    loss = F.linear(x, copy).sum()
    del copy
    gc.collect()
    assert alive() is None
    loss.backward()
    assert weight.grad.shape == (4, 5)


class Counting(np.ndarray):
    """An array that counts the matrix products it enters."""

    count = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counting.count += ufunc is np.matmul
        plain = [x.view(np.ndarray) if isinstance(x, Counting) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs).view(Counting)


@pytest.mark.parametrize("train_x,train_w,products", [(True, True, 3), (True, False, 2), (False, True, 2), (False, False, 1)])
def test_only_the_products_that_are_needed_are_computed(train_x, train_w, products, rng):
    Counting.count = 0
    x = Tensor(rng.standard_normal((3, 4)).view(Counting), requires_grad=train_x)
    w = Tensor(rng.standard_normal((4, 5)).view(Counting), requires_grad=train_w)
    y = F.linear(x, w)
    if y.requires_grad:
        assert len(y.node.parents) == train_x + train_w
        y.backward(np.ones((3, 5)).view(Counting))
    assert Counting.count == products


@pytest.mark.parametrize("operation", [
    lambda x: F.layer_norm(x, Tensor(np.ones(4)), Tensor(np.ones(4))), lambda x: F.activation(x, "gelu"),
    lambda x: F.cross_entropy(x, [0, 1]), lambda x: F.embedding(x, [0, 1]), lambda x: x[0] + x.sum() * F.exp(x) - x.T.mean(),
    lambda x: F.attend(x.reshape(1, 1, 2, 4), Tensor(np.ones((1, 1, 4, 2)))),
])
def test_frozen_inputs_and_no_grad_leave_no_record(operation, rng):
    x = rng.standard_normal((2, 4))
    assert operation(Tensor(x)).node is None
    with no_grad():
        assert operation(Tensor(x, requires_grad=True)).node is None
    assert operation(Tensor(x, requires_grad=True)).node is not None


def test_no_grad_nests_is_undone_after_an_error_and_belongs_to_one_thread():
    x, seen = leaf(1.0), []
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2).requires_grad
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_backward_frees_what_it_used(rng):
    x = Tensor(rng.standard_normal((3, 4)), requires_grad=True)
    hidden = F.exp(x)
    alive = weakref.ref(owner(hidden.data))
    loss = (hidden * hidden).sum()
    del hidden
    gc.collect()
    assert alive() is not None
    loss.backward()
    gc.collect()
    assert alive() is None


def test_a_leaf_that_is_gone_gets_no_gradient_and_breaks_nothing():
    a, b = leaf(2.0), leaf(3.0)
    y = a * b
    del b
    gc.collect()
    y.backward()
    assert a.grad[0] == 3


# ---- what is refused --------------------------------------------------------------------------------------------

FREED = "backward: the graph of this 'sum' was freed by an earlier backward; compute the value again"


def test_a_second_backward_is_refused():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(ValueError, match=re.escape(FREED)):
        loss.backward()
    assert (x.grad == [2, 4]).all()


def test_a_second_backward_through_a_shared_part_is_refused_and_changes_nothing():
    x, w = leaf(1.0, 2.0), leaf(3.0)
    shared = F.exp(x)
    first, second = shared.sum(), (shared * w).sum()
    first.backward()
    before = x.grad.copy()
    with pytest.raises(ValueError, match=re.escape("the graph of this 'exp' was freed by an earlier backward")):
        second.backward()
    assert (x.grad == before).all() and w.grad is None


def test_with_create_graph_the_graph_stays():
    x = leaf(1.0, 2.0)
    loss = (x * x * x).sum()
    loss.backward(create_graph=True)
    assert isinstance(x.grad, Tensor) and x.grad.data.tolist() == [3, 12]
    x.grad = None
    loss.backward()
    assert x.grad.tolist() == [3, 12]


@pytest.mark.parametrize("call,error,message", [
    (lambda: Tensor(np.ones(2)).backward(), ValueError, "backward: nothing below this tensor requires a gradient"),
    (lambda: (leaf(1.0, 2.0) * 2).backward(), ValueError,
     "backward: a tensor of shape (2,) needs an explicit gradient of that shape"),
    (lambda: (leaf(1.0, 2.0) * 2).backward(np.ones(3)), ValueError, "backward: the gradient has shape (3,), expected (2,)"),
    (lambda: (leaf(1.0, 2.0) * 2).backward(1.0), ValueError, "backward: the gradient has shape (), expected (2,)"),
    (lambda: Tensor(np.arange(3), requires_grad=True), TypeError,
     "requires_grad: only floating-point tensors have gradients, this one is int64"),
    (lambda: setattr(leaf(1.0) * 2, "requires_grad", False), ValueError,
     "requires_grad: this tensor is the result of an operation; use .detach()"),
    (lambda: leaf(1.0, 2.0) @ leaf(1.0, 2.0), ValueError,
     "matmul: both operands need two axes or more, got shapes (2,) and (2,)"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# ---- adding up --------------------------------------------------------------------------------------------------


def test_gradients_add_up_over_several_calls():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad.tolist() == [2 + 3, 4 + 3]


def test_a_gradient_kept_from_before_is_not_written_into():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    kept = x.grad
    (x * x).sum().backward()
    assert kept.tolist() == [2, 4] and x.grad.tolist() == [4, 8]


@pytest.mark.parametrize("function,derivative", [
    (lambda x: x + x, lambda x: 2 + 0 * x), (lambda x: x * x, lambda x: 2 * x), (lambda x: x - x, lambda x: 0 * x),
    (lambda x: x + x + x * x + x, lambda x: 3 + 2 * x), (lambda x: (x + x) * (x + x), lambda x: 8 * x),
    (lambda x: F.concatenate([x, x, x * 2]), lambda x: 4 + 0 * x),
    (lambda x: x[:1].sum() + x.sum() + x * 0, lambda x: np.array([4.0, 2.0])),
])
def test_diamonds(function, derivative):
    x = leaf(0.7, -1.3)
    y = function(x)
    upstream = np.ones(y.shape)
    y.backward(upstream)
    np.testing.assert_allclose(x.grad, derivative(x.data))
    assert (upstream == 1).all()


def test_adding_up_touches_neither_the_upstream_gradient_nor_another_leaf():
    """Sums hand one array on to both operands; adding to it in place would reach the other operand."""
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = a + b
    z = y + a  # a gets a second and a third contribution, b only one
    w = z + a
    upstream = np.array([1.0, 10.0])
    w.backward(upstream)
    assert upstream.tolist() == [1, 10]
    assert a.grad.tolist() == [3, 30] and b.grad.tolist() == [1, 10]


@given(choices=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12))
def test_random_graphs(choices):
    """Operations picked at random, each on any two earlier values."""

    def function(*leaves):
        values = list(leaves)
        for kind, i, j in choices:
            a, b = values[i % len(values)], values[j % len(values)]
            values.append([lambda: a + b, lambda: a * b * 0.5, lambda: F.tanh(a) - b,
                           lambda: a.sum(axis=0, keepdims=True) + b][kind]())
        return values[-1] + values[0] * 0 + values[1] * 0

    rng = np.random.default_rng(1)
    gradcheck(function, rng.uniform(-1, 1, (2, 3)), rng.uniform(-1, 1, (1, 3)), tolerance=1e-5)


# ---- grad -------------------------------------------------------------------------------------------------------


def test_grad_returns_and_stores_nothing():
    x, y, unused = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0)
    gx, gu, gy = grad((x * y).sum(), [x, unused, y])
    assert gx.tolist() == [3, 4] and gy.tolist() == [1, 2] and gu.tolist() == [0]
    assert x.grad is None and y.grad is None and unused.grad is None


def test_grad_of_results_inside_the_graph():
    x = leaf(1.0, 2.0)
    hidden = x * x
    loss = (hidden * hidden + x).sum()
    gh, gx = grad(loss, [hidden, x])
    assert gh.tolist() == [2, 8] and gx.tolist() == [5, 33]


def test_grad_with_an_upstream_gradient_and_of_frozen_inputs():
    x, frozen = leaf(1.0, 2.0), Tensor(np.ones(2))
    gx, gf = grad(x * frozen, [x, frozen], gradient=np.array([1.0, -1.0]))
    assert gx.tolist() == [1, -1] and gf.tolist() == [0, 0]


def test_hessian_vector_products_of_a_small_network(rng):
    """H v by differentiating <gradient, v>, against differences of gradients along v."""
    ids = np.array([[1, 0, 3], [2, 2, 1]])
    shapes = [(4, 6), (6, 6), (6, 6), (6, 8), (8,), (8, 5), (6,), (6,)]
    start = [rng.standard_normal(s) * 0.5 for s in shapes]
    directions = [rng.standard_normal(s) for s in shapes]

    def loss(p):
        x = F.embedding(p[0], ids)  # (2, 3, 6)
        split = lambda h: h.reshape(2, 3, 2, 3).swapaxes(1, 2)
        q, k = split(F.linear(x, p[1])), split(F.linear(x, p[2]))
        a = F.attend(F.attention_weights(q, k, np.array([[1, 1, 0], [1, 1, 1]], bool), None, 0.6, True), split(x))
        x = F.layer_norm(x + a.swapaxes(1, 2).reshape(2, 3, 6), p[6], p[7], 1e-5)
        return F.cross_entropy(F.linear(F.activation(F.linear(x, p[3], p[4]), "gelu"), p[5]), np.array([[0, 1, -100], [4, 4, 2]]))

    def gradients(shift):
        p = [Tensor(a + shift * v, requires_grad=True) for a, v in zip(start, directions)]
        return grad(loss(p), p)

    p = [Tensor(a, requires_grad=True) for a in start]
    inner = Tensor(0.0)
    for g, v in zip(grad(loss(p), p, create_graph=True), directions):
        inner = inner + (g * v).sum()
    product = grad(inner, p)
    for above, below, got in zip(gradients(1e-5), gradients(-1e-5), product):
        np.testing.assert_allclose(got, (above - below) / 2e-5, rtol=1e-5, atol=1e-7)


def test_third_derivatives():
    x = leaf(0.8)
    y = F.activation(x, "tanh") * x**4
    first = grad(y, [x], create_graph=True)[0]
    second = grad(first, [x], create_graph=True)[0]
    third = grad(second, [x])[0]

    def f2(v, h=1e-4):
        return ((np.tanh(v + h) * (v + h)**4) - 2 * np.tanh(v) * v**4 + np.tanh(v - h) * (v - h)**4) / h**2

    assert third[0] == pytest.approx((f2(0.801) - f2(0.799)) / 0.002, rel=1e-4)


# ---- Tensor -----------------------------------------------------------------------------------------------------


def test_operators_with_arrays_and_numbers_on_either_side():
    x = leaf(2.0, 4.0)
    for value in (3, 3.0, np.float32(3), np.float64(3), np.array([3.0, 3.0])):
        for result, expected in ((value + x, [5, 7]), (value - x, [1, -1]), (value * x, [6, 12]), (value / x, [1.5, 0.75]),
                                 (x - value, [-1, 1]), (x / value, [2 / 3, 4 / 3]), (-x, [-2, -4])):
            assert isinstance(result, Tensor) and result.requires_grad
            np.testing.assert_allclose(result.data, expected)


def test_numbers_do_not_change_the_precision():
    x = Tensor(np.ones(2, np.float32))
    for result in (x * 0.1, 1.0 - x, x / 3, x + np.float64(1), x**2, x * np.ones(2), F.where(np.ones(2, bool), x, 0.5), x.mean()):
        assert result.dtype == np.float32


def test_what_a_tensor_says_of_itself():
    x = Tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((1, 3), 2, 3, 1, np.float64)
    assert x.numpy() is x.data and Tensor(2.5).item() == 2.5
    assert repr(x) == "Tensor([[1. 2. 3.]], float64, requires_grad=True)"
    detached = (x * 2).detach()
    assert not detached.requires_grad and np.shares_memory(x.detach().data, x.data)
    x.requires_grad = False
    assert not x.requires_grad and not (x * 2).requires_grad
    x.requires_grad = True
    assert (x * 2).requires_grad


def test_freezing_forgets_the_gradient():
    x = leaf(1.0)
    (x * 2).backward()
    x.requires_grad = False
    assert x.grad is None


def test_create_graph_under_no_grad():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    y = F.activation(x, "gelu").sum()
    with no_grad():
        (g,) = grad(y, [x], create_graph=True)
    assert g.shape == (2, 3)


def test_gradients_of_leaves_may_be_written_into():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (a + b).sum().backward()
    a.grad *= 0.5
    assert b.grad.tolist() == [1, 1]


def test_the_gradient_of_a_number_is_an_array():
    x = Tensor(np.array(2.0), requires_grad=True)
    (x * x).backward()
    assert isinstance(x.grad, np.ndarray)
