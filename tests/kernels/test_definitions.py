"""The kernels against slow oracles in plain Python loops, and their backward passes against finite differences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minipeft.kernels as kernels
from minipeft.kernels import ACTIVATIONS, IGNORE, REGISTRY

BOTH = pytest.mark.parametrize("form", ["reference", "compiled"])


def run(name, form, *args):
    return getattr(REGISTRY[name], form)(*args)


def close(got, expected, tolerance=1e-10):
    np.testing.assert_allclose(got, np.asarray(expected), rtol=tolerance, atol=tolerance)


# ---- oracles: one number at a time ------------------------------------------------------------------------------


def naive_attention_softmax(scores, key_mask, bias, scale, causal):
    batch, heads, queries, keys = scores.shape
    out = np.zeros(scores.shape)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                seen = [j for j in range(keys)
                        if (key_mask is None or key_mask[b][j]) and (not causal or j <= i + keys - queries)]
                z = {j: scale * float(scores[b, h, i, j]) + (0 if bias is None else float(bias[b % len(bias), h, i, j]))
                     for j in seen}
                total = math.fsum(math.exp(z[j] - max(z.values())) for j in seen)
                for j in seen:
                    out[b, h, i, j] = math.exp(z[j] - max(z.values())) / total
    return out


def naive_norm(row, gain, bias, eps, centred):
    mean = math.fsum(row) / len(row) if centred else 0.0
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row) + eps)
    return [(x - mean) / deviation * g + b for x, g, b in zip(row, gain, bias)]


NAIVE_ACTIVATIONS = {
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "relu": lambda x: x if x > 0 else 0.0,
    "erf": math.erf,
}


def naive_cross_entropy(row, label):
    top = max(row)
    lse = top + math.log(math.fsum(math.exp(z - top) for z in row))
    return (0.0 if label == IGNORE else lse - row[label]), lse


def naive_adam(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    g = g * scale
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * (m_hat / (math.sqrt(v_hat) + eps) + decay * p), m, v


# ---- forward ----------------------------------------------------------------------------------------------------


@BOTH
@given(seed=st.integers(0, 999), heads=st.integers(1, 3), queries=st.integers(1, 4), keys=st.integers(1, 6),
       causal=st.booleans(), masked=st.booleans(), biases=st.sampled_from([0, 1, 2]))
def test_attention_softmax(form, seed, heads, queries, keys, causal, masked, biases):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((2, heads, queries, keys)) * 3
    mask = rng.random((2, keys)) < 0.5 if masked else None
    bias = rng.standard_normal((biases, heads, queries, keys)) if biases else None
    got = run("attention_softmax", form, scores, mask, bias, 0.7, causal)
    close(got, naive_attention_softmax(scores, mask, bias, 0.7, causal))
    sums = got.sum(axis=-1)
    assert np.all(np.isclose(sums, 1) | (sums == 0))


@BOTH
@pytest.mark.parametrize("queries,keys", [(2, 5), (3, 3), (5, 2)])
def test_causal_rule_is_key_at_most_query_plus_keys_minus_queries(form, queries, keys):
    weights = run("attention_softmax", form, np.zeros((1, 1, queries, keys)), None, None, 1.0, True)[0, 0]
    for i in range(queries):
        seen = [j for j in range(keys) if j <= i + keys - queries]
        for j in range(keys):
            assert weights[i, j] == (pytest.approx(1 / len(seen)) if j in seen else 0)
    assert (weights[-1] > 0).all()  # the last query sees every key


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_sees_no_key_gets_exact_zeros(form, dtype, rng):
    scores = rng.standard_normal((2, 1, 3, 4)).astype(dtype)
    mask = np.array([[False] * 4, [True] * 4])
    weights = run("attention_softmax", form, scores, mask, None, 1.0, False)
    assert (weights[0] == 0).all() and np.allclose(weights[1].sum(-1), 1)
    all_hidden = np.full((1, 1, 1, 4), -np.inf, dtype)
    assert (run("attention_softmax", form, all_hidden, None, None, 1.0, False) == 0).all()


@BOTH
def test_what_a_hidden_key_holds_does_not_matter(form, rng):
    scores = rng.standard_normal((1, 2, 3, 4))
    mask = np.array([[True, False, True, True]])
    broken = scores.copy()
    broken[..., 1] = np.nan
    assert (run("attention_softmax", form, broken, mask, None, 1.0, False)
            == run("attention_softmax", form, scores, mask, None, 1.0, False)).all()
    broken, later = scores.copy(), np.triu(np.ones((3, 4), bool), 2)  # j > i + 1
    broken[..., later] = np.inf
    assert (run("attention_softmax", form, broken, None, None, 1.0, True)
            == run("attention_softmax", form, scores, None, None, 1.0, True)).all()


@BOTH
@given(seed=st.integers(0, 999), rows=st.integers(1, 4), width=st.integers(1, 9), centred=st.booleans(),
       eps=st.sampled_from([1e-12, 1e-5, 0.1]))
def test_norm(form, seed, rows, width, centred, eps):
    rng = np.random.default_rng(seed)
    x, gain, bias = rng.standard_normal((rows, width)), rng.standard_normal(width), rng.standard_normal(width)
    got = run("norm", form, x, gain, bias, eps, centred)
    if width > 1 or not centred:
        close(got, [naive_norm(row, gain, bias, eps, centred) for row in x], 1e-8)
    else:
        assert (got == bias).all()  # one number minus its mean
    close(run("norm", form, x, gain, None, eps, centred), got - bias, 1e-8)


@BOTH
@given(x=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20))
@pytest.mark.parametrize("name", sorted([*ACTIVATIONS, "erf"]))
def test_activation(form, name, x):
    close(run(name, form, np.array(x)), [NAIVE_ACTIVATIONS[name](v) for v in x])


@pytest.mark.parametrize("name", sorted([*ACTIVATIONS, "erf"]))
def test_float32_loops_are_exact_to_a_few_units_on_a_fine_grid(name):
    x = np.concatenate([np.linspace(-12, 12, 40001), np.linspace(-200, 200, 4001)]).astype(np.float32)
    expected = np.array([NAIVE_ACTIVATIONS[name](float(v)) for v in x])
    assert np.abs(REGISTRY[name].compiled(x) - expected).max() < 1e-6 * max(1, np.abs(expected).max() / 10)
    near = np.abs(x) < 5
    assert np.abs(REGISTRY[name].compiled(x) - expected)[near].max() < 1e-6


@BOTH
@given(seed=st.integers(0, 999), rows=st.integers(0, 5), classes=st.integers(1, 7), shift=st.sampled_from([0, -1e4, 1e4]))
def test_cross_entropy(form, seed, rows, classes, shift):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, classes)) * 4 + shift
    labels = np.where(rng.random(rows) < 0.3, IGNORE, rng.integers(0, classes, rows))
    losses, lse = run("cross_entropy", form, logits, labels)
    expected = [naive_cross_entropy(row, label) for row, label in zip(logits, labels)]
    close(losses, [loss for loss, _ in expected], 1e-9)
    close(lse, [total for _, total in expected], 1e-9)
    assert (losses[labels == IGNORE] == 0).all()


@BOTH
@given(seed=st.integers(0, 999), n=st.integers(0, 9), rows=st.integers(1, 5), width=st.integers(0, 4))
def test_scatter_add(form, seed, n, rows, width):
    rng = np.random.default_rng(seed)
    ids, gradient = rng.integers(0, rows, n), rng.standard_normal((n, width))
    expected = [[math.fsum(gradient[k, j] for k in range(n) if ids[k] == row) for j in range(width)] for row in range(rows)]
    got = run("scatter_add", form, ids, gradient, rows)
    assert got.shape == (rows, width)
    close(got, np.array(expected).reshape(rows, width))


@BOTH
@given(seed=st.integers(0, 999), steps=st.integers(1, 5), decay=st.sampled_from([0.0, 0.1]), scale=st.sampled_from([1.0, 0.2]))
def test_adam_over_several_steps(form, seed, steps, decay, scale):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal((2, 3))
    m, v = np.zeros_like(p), np.zeros_like(p)
    expected = [(float(x), 0.0, 0.0) for x in p.reshape(-1)]
    for step in range(1, steps + 1):
        g = rng.standard_normal((3, 2)).T  # not contiguous
        expected = [naive_adam(x, float(e), a, b, step, 0.01, 0.9, 0.99, 1e-8, decay, scale)
                    for (x, a, b), e in zip(expected, g.reshape(-1))]
        run("adam_step", form, p, g, m, v, step, 0.01, 0.9, 0.99, 1e-8, decay, scale)
    for i, array in enumerate((p, m, v)):
        close(array.reshape(-1), [e[i] for e in expected])


def test_adam_refuses_a_parameter_that_it_cannot_update_in_place():
    p, m, v = np.ones((3, 2)).T, np.zeros((2, 3)), np.zeros((2, 3))
    try:
        REGISTRY["adam_step"].compiled(p, np.ones((2, 3)), m, v, 1, 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)
    except ValueError:
        return
    assert (p != 1).all()


# ---- backward: finite differences of the forward pass ------------------------------------------------------------


def numerical_gradient(function, x, upstream, step=1e-6):
    """d <upstream, function(x)> / dx, entry by entry."""
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            sides.append(float((function(moved) * upstream).sum()))
        out[index] = (sides[0] - sides[1]) / (2 * step)
    return out


def _activation_backward(name):
    def check(rng, shape):
        x, g = rng.standard_normal(shape) * 2, rng.standard_normal(shape)
        x[np.abs(x) < 1e-3] = 0.5  # away from relu's corner
        forward, backward = ACTIVATIONS[name]
        return backward(x, g), numerical_gradient(forward, x, g)
    return check


def _softmax_backward(rng, shape):
    scores, g = rng.standard_normal((2, 1, *shape)), rng.standard_normal((2, 1, *shape))
    forward = lambda s: kernels.attention_softmax(s, None, None, 0.6, True)
    return kernels.softmax_backward(forward(scores), g, 0.6), numerical_gradient(forward, scores, g)


def _norm_backward(which, centred):
    def check(rng, shape):
        x, gain, g = rng.standard_normal(shape), rng.standard_normal(shape[1]), rng.standard_normal(shape)
        if which == "input":
            return (kernels.norm_backward_input(x, gain, g, 0.1, centred),
                    numerical_gradient(lambda v: kernels.norm(v, gain, None, 0.1, centred), x, g))
        return (kernels.norm_backward_gain(x, g, 0.1, centred),
                numerical_gradient(lambda v: kernels.norm(x, v, None, 0.1, centred), gain, g))
    return check


def _cross_entropy_backward(rng, shape):
    z, g = rng.standard_normal(shape), rng.standard_normal(shape[0])
    labels = rng.integers(0, shape[1], shape[0])
    labels[1::3] = IGNORE
    _, lse = kernels.cross_entropy(z, labels)
    return (kernels.cross_entropy_backward(z, labels, lse, g),
            numerical_gradient(lambda v: kernels.cross_entropy(v, labels)[0], z, g))


def _scatter_add(rng, shape):
    table, ids, g = rng.standard_normal((4, shape[1])), rng.integers(0, 4, shape[0]), rng.standard_normal(shape)
    return kernels.scatter_add(ids, g, 4), numerical_gradient(lambda v: v[ids], table, g)


BACKWARD = {"softmax_backward": [_softmax_backward], "cross_entropy_backward": [_cross_entropy_backward],
            "scatter_add": [_scatter_add],
            "norm_backward_input": [_norm_backward("input", True), _norm_backward("input", False)],
            "norm_backward_gain": [_norm_backward("gain", True), _norm_backward("gain", False)],
            **{f"{name}_backward": [_activation_backward(name)] for name in ACTIVATIONS}}


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1), (130, 2)])
@pytest.mark.parametrize("name", sorted(n for n in REGISTRY if "backward" in n or n == "scatter_add"))
def test_backward_equals_finite_differences(name, shape, backend, rng):
    for check in BACKWARD[name]:
        got, expected = check(rng, shape)
        assert np.abs(expected).max() > 0.01 or shape[1] == 1
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
