"""Optimizers against plain loops, schedules against their formulas, metrics against slow definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.nn import Parameter
from minipeft.training import METRICS, SGD, Adam, AdamW, decay_groups, factor, gradient_norm


def run(make, gradients, start):
    parameter = Parameter(np.array(start, np.float64))
    optimizer = make([parameter])
    for g in gradients:
        parameter.grad = np.array(g, np.float64)
        optimizer.step()
    return parameter.data


GRADIENTS = st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=6)
START = [0.5, -2.0, 1.25]


@given(GRADIENTS, st.floats(0, 0.95), st.floats(0, 0.3))
def test_sgd_with_momentum_and_decay(gradients, mu, decay):
    expected = []
    for i, p in enumerate(START):
        m = 0.0
        for g in gradients:
            m = mu * m + g[i] + decay * p
            p -= 0.1 * m
        expected.append(p)
    got = run(lambda ps: SGD(ps, lr=0.1, momentum=mu, weight_decay=decay), gradients, START)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(GRADIENTS, st.floats(0, 0.3), st.booleans())
def test_adam_and_adamw_by_their_equations(gradients, decay, decoupled):
    lr, b1, b2, eps = 0.05, 0.8, 0.95, 1e-6
    expected = []
    for i, p in enumerate(START):
        m = v = 0.0
        for t, g in enumerate(gradients, 1):
            g = g[i] + (0 if decoupled else decay * p)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            step = (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
            p = p - lr * (step + (decay * p if decoupled else 0))
        expected.append(p)
    kind = AdamW if decoupled else Adam
    got = run(lambda ps: kind(ps, lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay), gradients, START)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("ours, theirs", [(SGD, "SGD"), (Adam, "Adam"), (AdamW, "AdamW")])
def test_against_pytorch(ours, theirs, peer):
    torch = peer("torch")
    rng = np.random.default_rng(0)
    parameter, reference = Parameter(rng.standard_normal((5, 3)).astype(np.float32)), None
    reference = torch.nn.Parameter(torch.tensor(parameter.data.copy()))
    optimizer = ours([parameter], lr=0.02, weight_decay=0.1)
    other = getattr(torch.optim, theirs)([reference], lr=0.02, weight_decay=0.1)
    for _ in range(20):
        g = rng.standard_normal((5, 3)).astype(np.float32)
        parameter.grad, reference.grad = g, torch.tensor(g)
        optimizer.step(), other.step()
    np.testing.assert_allclose(parameter.data, reference.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_the_gradient_scale_is_a_smaller_gradient():
    for make in (lambda ps: SGD(ps, lr=0.1, weight_decay=0.2), lambda ps: Adam(ps, weight_decay=0.2), AdamW):
        one, two = Parameter(np.ones(4)), Parameter(np.ones(4))
        one.grad, two.grad = np.arange(4.0), 0.25 * np.arange(4.0)
        make([one]).step(0.25), make([two]).step()
        np.testing.assert_allclose(one.data, two.data, rtol=1e-12)


def test_groups_scale_the_rate_and_spare_vectors_from_decay():
    matrix, vector, frozen = Parameter(np.ones((2, 2))), Parameter(np.ones(2)), Parameter(np.ones(2))
    scale = {"matrix": 1.0, "vector": 10.0, "frozen": 1.0}.get
    groups = decay_groups({"matrix": matrix, "vector": vector, "frozen": frozen}, 0.5, scale)
    assert ([(len(g["parameters"]), g["lr_scale"], g["weight_decay"]) for g in groups]
            == [(1, 1.0, 0.5), (1, 10.0, 0.0), (1, 1.0, 0.0)])
    optimizer = AdamW(groups, lr=0.1)
    matrix.grad, vector.grad = np.zeros((2, 2)), np.full(2, 3.0)
    optimizer.step()
    assert matrix.data == pytest.approx(0.95)  # decay only
    assert vector.data == pytest.approx(1 - 0.1 * 10, abs=1e-6)  # Adam's first step has length lr
    assert (frozen.data == 1).all()


def test_state_round_trips():
    rng = np.random.default_rng(0)
    one, two = Parameter(np.ones((2, 3))), Parameter(np.ones((2, 3)))
    first = AdamW([one])
    for _ in range(3):
        one.grad = rng.standard_normal((2, 3))
        first.step()
    second, two.data = AdamW([two]), one.data.copy()
    second.load_arrays({k: v.copy() for k, v in first.arrays().items()}, first.steps)
    one.grad = two.grad = rng.standard_normal((2, 3))
    first.step(), second.step()
    assert (one.data == two.data).all()


def test_gradient_norm():
    a, b, c = Parameter(np.zeros((2, 2))), Parameter(np.zeros(1)), Parameter(np.zeros(3))
    a.grad, b.grad = np.full((2, 2), 2.0).T, np.array([3.0])
    assert gradient_norm([a, b, c]) == 5.0


@given(st.integers(1, 200), st.integers(0, 50), st.sampled_from(["linear", "cosine", "constant"]))
def test_schedules_rise_then_never_rise_again_and_stay_in_range(total, warmup, name):
    warmup = min(warmup, total)
    values = [factor(name, t, total, warmup) for t in range(total)]
    assert all(0 <= v <= 1 for v in values)
    assert values[:warmup] == [(t + 1) / warmup for t in range(warmup)]
    assert all(a >= b for a, b in zip(values[warmup:], values[warmup + 1:]))


def test_schedules_at_known_points():
    assert [factor("linear", t, 4) for t in range(4)] == [1, 0.75, 0.5, 0.25]
    assert factor("cosine", 5, 10) == pytest.approx(0.5)
    assert factor("constant", 9, 10, 3) == 1
    with pytest.raises(ValueError, match="schedule: expected one of linear, cosine, constant, slanted, got 'step'"):
        factor("step", 0, 1)


def naive_f1(predicted, actual, k):
    tp = sum(p == k == a for p, a in zip(predicted, actual))
    fp = sum(p == k != a for p, a in zip(predicted, actual))
    fn = sum(a == k != p for p, a in zip(predicted, actual))
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


@given(st.integers(2, 4), st.data())
def test_metrics_against_their_definitions(classes, data):
    n = data.draw(st.integers(1, 20))
    draw = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    predicted, actual = data.draw(draw), data.draw(draw)
    assert METRICS["accuracy"](predicted, actual, classes) == pytest.approx(sum(map(int.__eq__, predicted, actual)) / n)
    each = [naive_f1(predicted, actual, k) for k in range(classes)]
    assert METRICS["f1"](predicted, actual, classes) == pytest.approx(each[1] if classes == 2 else np.mean(each))
    one_hot = lambda v: np.eye(classes)[v] - np.eye(classes)[v].mean(axis=0)
    p, a = one_hot(predicted), one_hot(actual)
    under = math.sqrt((p * p).sum() * (a * a).sum())
    expected = (p * a).sum() / under if under > 1e-9 else 0.0
    assert METRICS["matthews"](predicted, actual, classes) == pytest.approx(expected, abs=1e-9)
