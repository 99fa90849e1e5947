"""The layers: values against plain loops and PyTorch, dropout by seed, initial weights."""

import math
import re

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.nn import MLP, Activation, Dropout, Embedding, Join, LayerNorm, Linear, RMSNorm, Rotary


def fill(module, rng):
    """Random values, in float64, in place of the initial ones and zeros."""
    for parameter in module.parameters():
        parameter.data = rng.standard_normal(parameter.shape)
    return module


def with_gradients(module, x, rng):
    """Output, gradient of x, {path: gradient} for a random upstream gradient, which is returned too."""
    x = Tensor(x, requires_grad=True)
    y = module(x)
    g = rng.standard_normal(y.shape)
    y.backward(g)
    return y.data, x.grad, {path: p.grad for path, p in module.named_parameters()}, g


def compare(peer, module, theirs, names, x, rng, transposed=("weight",)):
    """Our module and PyTorch's with the same weights: values and every gradient. ``names``: {our path: their path}."""
    torch = peer("torch")
    theirs = theirs(torch).double()
    for path, parameter in module.named_parameters():
        value = parameter.data.T if path in transposed else parameter.data
        theirs.get_parameter(names[path]).data = torch.tensor(np.ascontiguousarray(value))
    y, dx, gradients, g = with_gradients(module, x, rng)
    theirs_x = torch.tensor(x, requires_grad=True)
    expected = theirs(theirs_x)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), rtol=1e-8, atol=1e-9)
    for path, gradient in gradients.items():
        wanted = theirs.get_parameter(names[path]).grad.numpy()
        np.testing.assert_allclose(gradient, wanted.T if path in transposed else wanted, rtol=1e-8, atol=1e-9)


SAME = {"weight": "weight", "bias": "bias"}


def test_linear_against_torch(peer, rng):
    compare(peer, fill(Linear(4, 6), rng), lambda torch: torch.nn.Linear(4, 6), SAME, rng.standard_normal((2, 3, 4)), rng)
    compare(peer, fill(Linear(4, 6, bias=False), rng), lambda torch: torch.nn.Linear(4, 6, bias=False), SAME,
            rng.standard_normal((5, 4)), rng)


def test_norms_against_torch(peer, backend, rng):
    x = rng.standard_normal((2, 3, 8)) * 3 + 1
    compare(peer, fill(LayerNorm(8, 1e-3), rng), lambda torch: torch.nn.LayerNorm(8, 1e-3), SAME, x, rng, transposed=())
    compare(peer, fill(RMSNorm(8, 1e-3), rng), lambda torch: torch.nn.RMSNorm(8, 1e-3), SAME, x, rng, transposed=())


def test_fresh_norms_normalise(rng):
    x = Tensor(rng.standard_normal((50, 64)).astype(np.float32) * 5 + 3)
    y = LayerNorm(64)(x).data
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose((RMSNorm(64)(x).data ** 2).mean(axis=1), 1, rtol=1e-4)


def test_sizes_dtypes_and_initial_weights(rng):
    linear, table = Linear(300, 200, rng=rng, std=0.1), Embedding(300, 200, rng=rng)
    assert (linear.weight.shape == (300, 200) and (linear.bias.data == 0).all()
            and linear.weight.data.std() == pytest.approx(0.1, rel=0.02))
    assert table.weight.shape == (300, 200) and table.weight.data.std() == pytest.approx(0.02, rel=0.02)
    assert {p.dtype for m in (linear, table, LayerNorm(3), RMSNorm(3)) for p in m.parameters()} == {np.dtype(np.float32)}
    assert (Linear(3, 2).weight.data == 0).all()  # to be loaded
    assert Linear(3, 2, bias=False).bias is None


def test_activation_by_name(rng):
    x = rng.standard_normal(5)
    np.testing.assert_allclose(Activation("silu")(Tensor(x)).data, x / (1 + np.exp(-x)))
    with pytest.raises(ValueError, match="activation: expected one of gelu, gelu_new, relu, silu, tanh, got 'mish'"):
        Activation("mish")(Tensor(x))


# ---- feed-forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_feed_forward_against_a_plain_loop(gated, bias, pre_norm, backend, rng):
    width, inner = 4, 6
    linear = lambda d_in, d_out, with_bias: Linear(d_in, d_out, with_bias)
    norms = (RMSNorm(width, 0.01), Join()) if pre_norm else (None, Join(RMSNorm(width, 0.01)))
    mlp = fill(MLP(linear, width, inner, bias, "silu", gated, *norms), rng)
    p = {path: parameter.data for path, parameter in mlp.named_parameters()}
    x = rng.standard_normal((2, 3, width))
    got = mlp(Tensor(x)).data

    def norm(row, gain):
        scale = math.sqrt(sum(v * v for v in row) / width + 0.01)
        return [v / scale * g for v, g in zip(row, gain)]

    def affine(row, name):
        weight, offset = p[f"{name}.weight"], p.get(f"{name}.bias")
        return [sum(row[i] * weight[i, j] for i in range(len(row))) + (0 if offset is None else offset[j])
                for j in range(weight.shape[1])]

    silu = lambda v: v / (1 + math.exp(-v))
    for b in range(2):
        for t in range(3):
            h = norm(x[b, t], p["norm.weight"]) if pre_norm else list(x[b, t])
            up = affine(h, "up")
            hidden = [silu(g) * u for g, u in zip(affine(h, "gate"), up)] if gated else [silu(u) for u in up]
            y = [r + o for r, o in zip(x[b, t], affine(hidden, "down"))]
            expected = y if pre_norm else norm(y, p["join.norm.weight"])
            np.testing.assert_allclose(got[b, t], expected, rtol=1e-9, atol=1e-10)


# ---- rotary positions -------------------------------------------------------------------------------------------


def test_rotary_turns_each_pair_by_its_angle(rng):
    x = rng.standard_normal((2, 3, 4, 6))
    positions = np.array([[0, 1, 5, 2], [3, 3, 0, 9]])
    got = Rotary(6, 100.0)(Tensor(x), positions).data
    for b, h, t, i in np.ndindex(2, 3, 4, 3):
        angle = positions[b, t] / 100.0 ** (2 * i / 6)
        turned = complex(x[b, h, t, i], x[b, h, t, i + 3]) * complex(math.cos(angle), math.sin(angle))
        assert got[b, h, t, i] == pytest.approx(turned.real) and got[b, h, t, i + 3] == pytest.approx(turned.imag)


def test_rotary_scores_depend_on_the_distance_only(rng):
    rotary = Rotary(8, 10000.0)
    q, k = rng.standard_normal((1, 1, 1, 8)), rng.standard_normal((1, 1, 1, 8))
    score = lambda i, j: float((rotary(Tensor(q), np.array([[i]])).data * rotary(Tensor(k), np.array([[j]])).data).sum())
    assert score(7, 3) == pytest.approx(score(104, 100))
    assert score(0, 0) == pytest.approx(float((q * k).sum()))
    assert abs(score(7, 3) - score(8, 3)) > 1e-3


def test_rotary_keeps_float32_and_far_positions_exact(rng):
    x = rng.standard_normal((1, 1, 1, 4)).astype(np.float32)
    got = Rotary(4, 10000.0)(Tensor(x), np.array([[100_000]])).data
    exact = Rotary(4, 10000.0)(Tensor(x.astype(np.float64)), np.array([[100_000]])).data
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=1e-5)


# ---- dropout ----------------------------------------------------------------------------------------------------


def test_dropout_is_off_unless_training():
    layer, x = Dropout(0.5), Tensor(np.ones((4, 5), np.float32))
    assert layer(x) is x
    layer.train(np.random.default_rng(0))
    assert (layer(x).data == 0).any()
    layer.eval()
    assert layer(x) is x
    assert Dropout(0.0).train(np.random.default_rng(0))(x) is x


def test_dropout_follows_the_generator_given_to_train():
    layer, x = Dropout(0.3), Tensor(np.ones((20, 30), np.float32))
    draws = [[layer.train(np.random.default_rng(seed))(x).data, layer(x).data] for seed in (0, 0, 1)]
    assert (draws[0][0] == draws[1][0]).all() and (draws[0][1] == draws[1][1]).all()
    assert (draws[0][0] != draws[2][0]).any() and (draws[0][0] != draws[0][1]).any()
    mean = np.mean([layer(x).data.mean() for _ in range(100)])
    assert mean == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5])
def test_dropout_refuses_what_is_no_probability(probability):
    with pytest.raises(ValueError, match=re.escape(f"Dropout: the probability must lie in [0, 1), got {probability}")):
        Dropout(probability)
