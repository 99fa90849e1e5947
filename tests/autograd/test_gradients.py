"""Every operation: its gradients, and the gradients of its gradients, against finite differences."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from minipeft.autograd import Tensor, fused, grad, gradcheck, ops

LABELS = np.array([[0, 3, -100], [2, -100, 1]])
MASK = np.array([[True, True, False, True, False], [False, True, True, True, True]])
BLIND = np.array([[True, False, True], [False, False, False]])


class Case:
    """A function of Tensors, and the shapes of its inputs; ``positive`` keeps them away from 0."""

    def __init__(self, function, *shapes, positive=False):
        self.function, self.shapes, self.positive = function, shapes, positive

    def arrays(self, rng, layout=np.ascontiguousarray):
        draw = (lambda s: rng.uniform(0.5, 2.0, s)) if self.positive else rng.standard_normal
        return [layout(draw(shape)) for shape in self.shapes]


def binary(f, **kwargs):
    return [Case(f, (3, 4), (3, 4), **kwargs), Case(f, (2, 3, 4), (4,), **kwargs), Case(f, (3, 1), (2, 1, 4), **kwargs),
            Case(f, (), (2, 3), **kwargs), Case(f, (0, 3), (1, 3), **kwargs), Case(f, (1, 1), (1,), **kwargs)]


def unary(f, **kwargs):
    return [Case(f, (3, 4), **kwargs), Case(f, (2, 1, 5), **kwargs), Case(f, (0, 3), **kwargs), Case(f, (), **kwargs)]


def rotation(T, K):
    angles = np.arange(T)[:, None] * 0.7 ** np.arange(K // 2)
    return lambda x: ops.rotate(x, np.cos(angles), np.sin(angles))


def attention(**kwargs):
    return lambda q, k, *bias: fused.attention_weights(q, k, bias=bias[0] if bias else None, **kwargs)


CHOICE = np.array([[True, False, True, False], [False, True, True, True], [False, False, False, True]])

CASES = {
    "add": binary(ops.add) + [Case(lambda a: a + 2, (2, 3)), Case(lambda a: np.ones((4, 1)) + a, (3,))],
    "subtract": binary(ops.subtract) + [Case(lambda a: 2 - a, (2, 3)), Case(lambda a: np.ones((4, 1)) - a, (3,))],
    "negative": unary(ops.negative),
    "multiply": binary(ops.multiply) + [Case(lambda a: 3 * a, (2, 3)), Case(lambda a: a * a, (2, 3))],
    "divide": binary(ops.divide, positive=True) + [Case(lambda a: 2 / a, (2, 3), positive=True),
                                                   Case(lambda a: a / 3, (2, 3))],
    "power": unary(lambda a: a**3) + unary(lambda a: a**-0.5, positive=True) + unary(lambda a: a**1, positive=True),
    "exp": unary(ops.exp), "log": unary(ops.log, positive=True), "tanh": unary(ops.tanh), "erf": unary(ops.erf),
    "where": [Case(lambda a, b: ops.where(CHOICE, a, b), (3, 4), (3, 4)),
              Case(lambda a, b: ops.where(CHOICE, a, b), (4,), (3, 1)),
              Case(lambda a: ops.where(CHOICE, a, 0.5), (1, 4)), Case(lambda b: ops.where(CHOICE, 0.5, b), ()),
              Case(lambda a, b: ops.where(np.ones((0, 4), bool), a, b), (0, 4), (4,))],
    "broadcast_to": [Case(lambda a: ops.broadcast_to(a, (2, 3, 4)), (3, 1)), Case(lambda a: ops.broadcast_to(a, (0, 3)), (1, 3)),
                     Case(lambda a: ops.broadcast_to(a, (2, 3)), ())],
    "sum": [Case(lambda a, x=axis, k=keep: ops.sum(a, axis=x, keepdims=k), shape)
            for axis in (None, 0, -1, (0, 2)) for keep in (False, True) for shape in ((2, 3, 4), (1, 0, 3), (3, 1, 1))],
    "mean": [Case(lambda a, x=axis, k=keep: ops.mean(a, axis=x, keepdims=k), shape)
             for axis in (None, 0, -1, (0, 2)) for keep in (False, True) for shape in ((2, 3, 4), (1, 0, 3))],
    "reshape": [Case(lambda a: ops.reshape(a, 6, 2), (3, 4)), Case(lambda a: a.reshape((2, -1)), (3, 4)),
                Case(lambda a: a.reshape(0, 7), (3, 0))],
    "swapaxes": [Case(lambda a: ops.swapaxes(a, 0, 2), (2, 3, 4)), Case(lambda a: a.swapaxes(0, 1), (0, 3))],
    "swap_last": [Case(ops.swap_last, (2, 3, 4)), Case(lambda a: a.T, (3, 4))],
    "concatenate": [Case(lambda a, b, c: ops.concatenate([a, b, c], axis=1), (2, 3), (2, 1), (2, 0)),
                    Case(lambda a, b: ops.concatenate([a, b], axis=-2), (3, 4), (1, 4)),
                    Case(lambda a: ops.concatenate([a, a]), (3,))],
    "getitem": [Case(lambda a, i=index: a[i], (3, 4)) for index in
                (1, slice(None, None, 2), (slice(None), slice(1, 3)), (Ellipsis, -1), (None, 0), (1, 2), slice(2, 2), [2, 0, 2],
                 np.array([[0, 1], [1, 1]]), (np.array([0, 2, 0]), np.array([1, 1, 1])), CHOICE, (slice(None), [3, 3, 0]))],
    "put": [Case(lambda g: ops.put(g, (slice(None), 1), (3, 4)), (3,)), Case(lambda g: ops.put(g, [0, 2, 0], (3, 4)), (3, 4)),
            Case(lambda g: ops.put(g, CHOICE, (3, 4)), (6,))],
    "matmul": [Case(ops.matmul, (3, 4), (4, 2)), Case(ops.matmul, (2, 3, 4), (4, 5)), Case(ops.matmul, (2, 1, 3, 4), (5, 4, 2)),
               Case(ops.matmul, (3, 4), (2, 4, 1)), Case(ops.matmul, (0, 4), (4, 2)), Case(ops.matmul, (3, 0), (0, 2)),
               Case(lambda a: a @ ops.swap_last(a), (3, 4)), Case(lambda b: Tensor(np.eye(3, dtype=b.dtype)) @ b, (3, 2))],
    "linear": [Case(ops.linear, (2, 3, 4), (4, 5), (5,)), Case(ops.linear, (3, 4), (4, 2)), Case(ops.linear, (4,), (4, 3), (3,)),
               Case(ops.linear, (0, 4), (4, 2), (2,)), Case(ops.linear, (2, 1, 1), (1, 1), (1,)),
               Case(ops.linear, (3, 2), (2, 0), (0,)), Case(lambda x, w: ops.linear(x, ops.swap_last(w)), (2, 3, 4), (5, 4))],
    "rotate": [Case(rotation(3, 4), (2, 1, 3, 4)), Case(rotation(1, 2), (1, 2)), Case(rotation(2, 6), (0, 2, 6))],
    "attention_weights": [
        Case(attention(scale=0.5), (2, 2, 3, 4), (2, 2, 5, 4)),
        Case(attention(mask=MASK, scale=0.7, causal=True), (2, 4, 3, 2), (2, 2, 5, 2), (1, 4, 3, 5)),
        Case(attention(mask=MASK, scale=0.7), (2, 2, 1, 2), (2, 1, 5, 2), (2, 2, 1, 5)),
        Case(attention(mask=BLIND, causal=True), (2, 1, 3, 2), (2, 1, 3, 2)),
        Case(attention(causal=True), (1, 2, 4, 3), (1, 2, 2, 3)), Case(attention(), (1, 1, 2, 3), (1, 1, 0, 3))],
    "attend": [Case(fused.attend, (2, 3, 4, 5), (2, 3, 5, 2)), Case(fused.attend, (1, 4, 3, 2), (1, 2, 2, 3)),
               Case(fused.attend, (2, 2, 1, 1), (2, 1, 1, 1)), Case(fused.attend, (2, 2, 3, 0), (2, 1, 0, 2))],
    "layer_norm": [Case(lambda x, g, b: fused.layer_norm(x, g, b, 0.1), (2, 3, 5), (5,), (5,)),
                   Case(lambda x, g, b: fused.layer_norm(x, g, b, 0.1), (1, 4), (4,), (4,)),
                   Case(lambda x, g, b: fused.layer_norm(x, g, b, 0.1), (0, 4), (4,), (4,)),
                   Case(lambda x, g, b: fused.layer_norm(x, g, b, 0.1), (3, 1), (1,), (1,))],
    "rms_norm": [Case(lambda x, g: fused.rms_norm(x, g, 0.1), (2, 3, 5), (5,)),
                 Case(lambda x, g: fused.rms_norm(x, g, 0.1), (3, 1), (1,)),
                 Case(lambda x, g: fused.rms_norm(x, g, 0.1), (0, 4), (4,))],
    "activation": [Case(lambda x, n=name: fused.activation(x, n), shape)
                   for name in ("gelu", "gelu_new", "silu", "relu", "tanh") for shape in ((3, 4), (0, 2), (1,))],
    "cross_entropy": [Case(lambda z: fused.cross_entropy(z, LABELS), (2, 3, 4)),
                      Case(lambda z: fused.cross_entropy(z, LABELS[0]), (3, 5)),
                      Case(lambda z: fused.cross_entropy(z, LABELS[0, :0]), (0, 5)),
                      Case(lambda z: fused.cross_entropy(z, [0, 0]), (2, 1)),
                      Case(lambda z: fused.cross_entropy(z, [-100, -100]), (2, 3))],
    "embedding": [Case(lambda e: fused.embedding(e, np.array([[0, 2], [2, 2]])), (3, 4)),
                  Case(lambda e: fused.embedding(e, np.zeros((0,), int)), (3, 4)),
                  Case(lambda e: fused.embedding(e, np.array(1)), (3, 1))],
    "dropout": [Case(lambda x: fused.dropout(x, 0.4, np.random.default_rng(5)), (3, 4)),
                Case(lambda x: fused.dropout(x, 0.0, np.random.default_rng(5)), (2, 1))],
}

# taken apart elsewhere: helpers that are no operations, and the compositions (test_fused.py)
NOT_OPERATIONS = {"use", "unbroadcast", "sum_rows", "attention_weights_composed", "norm_composed", "activation_composed",
                  "cross_entropy_composed"}

LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1] if a.ndim else a,
}
PARAMETERS = [pytest.param(case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]


def test_every_operation_has_cases():
    defined = {name for module in (ops, fused) for name, f in inspect.getmembers(module, inspect.isfunction)
               if f.__module__ == module.__name__ and not name.startswith("_")}
    assert defined - NOT_OPERATIONS == set(CASES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", PARAMETERS)
def test_gradient(case, layout, rng):
    gradcheck(case.function, *case.arrays(rng, LAYOUTS[layout]), rng=rng)


def sensitivity(function, parts):
    """u -> sum over the inputs x of <u_x, d<w, f>/dx>, itself a function of Tensors: its gradient is f's second derivative."""

    def scalar(*tensors):
        inputs, w = tensors[:-1], tensors[-1]
        gradients = grad(function(*inputs), inputs, gradient=w, create_graph=True)
        total = Tensor(0.0)
        for tensor, part, g in zip(inputs, parts, gradients):
            total = total + (g * part).sum() + (tensor * 0).sum()  # so that linear functions, whose g is constant, get zeros
        return total

    return scalar


@pytest.mark.parametrize("case", PARAMETERS)
def test_gradient_of_the_gradient(case, rng):
    arrays = case.arrays(rng)
    parts = [rng.standard_normal(a.shape) for a in arrays]
    w = rng.standard_normal(case.function(*[Tensor(a) for a in arrays]).shape)
    gradcheck(sensitivity(case.function, parts), *arrays, w, rng=rng, step=1e-5, tolerance=1e-6)


@pytest.mark.parametrize("case", PARAMETERS)
def test_gradients_with_and_without_a_graph_agree(case, rng):
    """In particular a fused operation's kernel and its composition."""
    inputs = [Tensor(a, requires_grad=True) for a in case.arrays(rng)]
    w = rng.standard_normal(case.function(*inputs).shape)
    plain = grad(case.function(*inputs), inputs, gradient=w)
    differentiable = grad(case.function(*inputs), inputs, gradient=w, create_graph=True)
    for tensor, g, graph in zip(inputs, plain, differentiable):
        assert isinstance(g, (np.ndarray, np.generic)) and isinstance(graph, Tensor)
        assert g.shape == graph.shape == tensor.shape
        np.testing.assert_allclose(g, graph.data, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", PARAMETERS)
def test_values_and_gradients_keep_float32(case, rng):
    inputs = [Tensor(a.astype(np.float32), requires_grad=True) for a in case.arrays(rng)]
    output = case.function(*inputs)
    assert output.dtype == np.float32
    output.backward(np.ones(output.shape, np.float32))
    assert [t.grad.dtype for t in inputs] == [np.float32] * len(inputs)


@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=4), seed=st.integers(0, 99),
       name=st.sampled_from(["add", "subtract", "multiply", "divide", "where"]))
def test_broadcasting_in_every_way(shapes, seed, name):
    rng = np.random.default_rng(seed)
    condition = rng.random(shapes.result_shape) < 0.5
    f = (lambda a, b: ops.where(condition, a, b)) if name == "where" else getattr(ops, name)
    gradcheck(f, *[rng.uniform(0.5, 2, s) for s in shapes.input_shapes], rng=rng)


@given(data=st.data(), seed=st.integers(0, 99))
def test_matmul_over_any_batch(data, seed):
    rng = np.random.default_rng(seed)
    batch = data.draw(mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=2)).input_shapes
    rows, inner, columns = (data.draw(st.integers(0, 3)) for _ in range(3))
    gradcheck(ops.matmul, rng.standard_normal((*batch[0], rows, inner)), rng.standard_normal((*batch[1], inner, columns)),
              rng=rng)


# ---- the edges --------------------------------------------------------------------------------------------------


def test_linear_from_nothing(rng):
    gradcheck(ops.linear, np.zeros((3, 0)), np.zeros((0, 2)), rng.standard_normal(2))


def test_where_with_integers_as_condition(rng):
    gradcheck(lambda a, b: ops.where(np.array([1, 0, 1]), a, b), rng.standard_normal(3), rng.standard_normal(3))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power_zero_at_zero():
    x = Tensor(np.zeros(2), requires_grad=True)
    (x**0).sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_second_derivative_of_the_loss_of_very_negative_logits(rng):
    z = Tensor(rng.standard_normal((2, 3)) - 1000, requires_grad=True)
    plain = grad(fused.cross_entropy(z, [0, 2]), [z])[0]
    np.testing.assert_allclose(grad(fused.cross_entropy(z, [0, 2]), [z], create_graph=True)[0].data, plain, rtol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", [Case(fused.layer_norm, (3, 0), (0,), (0,)),
                                  Case(lambda e: fused.embedding(e, np.array([1, 2])), (3, 0))])
def test_width_zero(case, rng):
    gradcheck(case.function, *case.arrays(rng))
