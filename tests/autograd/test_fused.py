"""The fused operations against their compositions, against plain loops and against PyTorch; their errors."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.autograd import Tensor, fused
from minipeft.kernels import IGNORE


def close(got, expected, tolerance=1e-10):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


# ---- value: the kernel and the composition ----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("queries,keys", [(3, 5), (5, 3), (1, 1)])
def test_attention_equals_its_composition_and_a_plain_loop(groups, causal, masked, biased, queries, keys, backend, rng):
    q = rng.standard_normal((2, 2 * groups, queries, 4))
    k, v = rng.standard_normal((2, 2, keys, 4)), rng.standard_normal((2, 2, keys, 3))
    mask = rng.random((2, keys)) < 0.6 if masked else None
    bias = rng.standard_normal((1, 2 * groups, queries, keys)) if biased else None
    args = (Tensor(q), Tensor(k), mask, None if bias is None else Tensor(bias), 0.7, causal)
    weights = fused.attention_weights(*args)
    close(weights.data, fused.attention_weights_composed(*args).data)
    output = fused.attend(weights, Tensor(v)).data
    for b in range(2):
        for h in range(2 * groups):
            for i in range(queries):
                seen = [j for j in range(keys) if (mask is None or mask[b, j]) and (not causal or j <= i + keys - queries)]
                e = {j: math.exp(0.7 * sum(q[b, h, i, c] * k[b, h // groups, j, c] for c in range(4))
                                 + (0 if bias is None else bias[0, h, i, j])) for j in seen}
                for c in range(3):
                    expected = sum(e[j] * v[b, h // groups, j, c] for j in seen) / sum(e.values()) if seen else 0
                    assert output[b, h, i, c] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 7), (0, 3)])
def test_norms_equal_their_composition(shape, backend, rng):
    x, gain, bias = (Tensor(rng.standard_normal(s)) for s in (shape, shape[-1:], shape[-1:]))
    close(F.layer_norm(x, gain, bias, 1e-3).data, fused.norm_composed(x, gain, bias, 1e-3, True).data)
    close(F.rms_norm(x, gain, 1e-3).data, fused.norm_composed(x, gain, None, 1e-3, False).data)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "relu"])
def test_activations_equal_their_composition(name, backend, rng):
    x = Tensor(rng.standard_normal((4, 5)) * 3)
    close(F.activation(x, name).data, fused.activation_composed(x, name).data)


@given(seed=st.integers(0, 99), rows=st.integers(0, 4), classes=st.integers(1, 5), share=st.sampled_from([0, 0.5, 1]))
def test_cross_entropy_equals_its_composition_and_is_a_mean_over_the_labelled(seed, rows, classes, share):
    rng = np.random.default_rng(seed)
    z, labels = rng.standard_normal((rows, classes)) * 5, rng.integers(0, classes, rows)
    labels[rng.random(rows) < share] = IGNORE
    loss = F.cross_entropy(Tensor(z), labels)
    close(loss.data, fused.cross_entropy_composed(Tensor(z), labels).data)
    losses = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(z, labels) if y != IGNORE]
    assert loss.shape == () and loss.item() == pytest.approx(sum(losses) / max(len(losses), 1))


def test_cross_entropy_of_a_large_batch_is_summed_exactly():
    z = np.zeros((200_000, 2), np.float32)
    assert F.cross_entropy(Tensor(z), np.zeros(len(z), int)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_embedding_looks_rows_up(rng):
    table = rng.standard_normal((5, 3))
    ids = np.array([[4, 0, 4], [1, 1, 2]])
    assert (F.embedding(Tensor(table), ids).data == table[ids]).all()
    assert F.embedding(Tensor(table), np.zeros((0, 2), int)).shape == (0, 2, 3)


def test_attend_is_laid_out_so_that_joining_heads_copies_nothing(rng):
    y = F.attend(Tensor(rng.random((2, 4, 3, 5))), Tensor(rng.random((2, 2, 5, 6))))
    joined = y.swapaxes(1, 2).reshape(2, 3, 24)
    assert np.shares_memory(joined.data, y.data)


# ---- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_scales_what_stays(probability):
    x = Tensor(np.ones((200, 500), np.float32), requires_grad=True)
    y = F.dropout(x, probability, np.random.default_rng(0))
    kept = y.data != 0
    assert kept.mean() == pytest.approx(1 - probability, abs=0.01)
    np.testing.assert_allclose(y.data[kept], 1 / (1 - probability), rtol=1e-6)
    assert y.data.mean() == pytest.approx(1, abs=0.02)
    y.backward(np.full(y.shape, 2, np.float32))
    np.testing.assert_allclose(x.grad, 2 * y.data)  # the same elements, the same factor


def test_dropout_is_a_function_of_the_generator():
    x = Tensor(np.ones((30, 30)))
    first, again, other = (F.dropout(x, 0.5, np.random.default_rng(seed)).data for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


# ---- PyTorch ----------------------------------------------------------------------------------------------------


def compare_with_torch(peer, ours, theirs, *arrays):
    """Values and gradients of the same function in both, in float64 and with a random upstream gradient."""
    torch = peer("torch")
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    yours = [torch.tensor(a, requires_grad=True) for a in arrays]
    output, expected = ours(*mine), theirs(torch, *yours)
    close(output.data, expected.detach().numpy())
    g = np.random.default_rng(7).standard_normal(output.shape)
    output.backward(g)
    expected.backward(torch.tensor(g))
    for a, b in zip(mine, yours):
        close(a.grad, b.grad.numpy(), 1e-9)


def test_attention_against_torch(peer, backend, rng):
    mask = np.array([[True, True, True, False, True], [True, False, True, True, True]])
    theirs = lambda torch, q, k, v: torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1),
        attn_mask=torch.tensor(mask)[:, None, None] & torch.ones(3, 5).tril(2).bool(), scale=0.4)
    compare_with_torch(peer, lambda q, k, v: F.attend(F.attention_weights(q, k, mask, None, 0.4, True), v), theirs,
                       rng.standard_normal((2, 4, 3, 6)), rng.standard_normal((2, 2, 5, 6)), rng.standard_normal((2, 2, 5, 6)))


def test_norms_against_torch(peer, backend, rng):
    x, gain, bias = rng.standard_normal((2, 3, 8)), rng.standard_normal(8), rng.standard_normal(8)
    compare_with_torch(peer, lambda x, g, b: F.layer_norm(x, g, b, 1e-5),
                       lambda torch, x, g, b: torch.nn.functional.layer_norm(x, (8,), g, b, 1e-5), x, gain, bias)
    compare_with_torch(peer, lambda x, g: F.rms_norm(x, g, 1e-5),
                       lambda torch, x, g: torch.nn.functional.rms_norm(x, (8,), g, 1e-5), x, gain)


@pytest.mark.parametrize("name,theirs", [
    ("gelu", lambda torch, x: torch.nn.functional.gelu(x)),
    ("gelu_new", lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh")),
    ("silu", lambda torch, x: torch.nn.functional.silu(x)),
    ("relu", lambda torch, x: torch.relu(x)),
    ("tanh", lambda torch, x: torch.tanh(x)),
])
def test_activations_against_torch(name, theirs, peer, backend, rng):
    compare_with_torch(peer, lambda x: F.activation(x, name), theirs, rng.standard_normal((5, 7)) * 4)


def test_losses_and_look_ups_against_torch(peer, backend, rng):
    labels = np.array([1, IGNORE, 4, 0])
    compare_with_torch(peer, lambda z: F.cross_entropy(z, labels) * 1.0,
                       lambda torch, z: torch.nn.functional.cross_entropy(z, torch.tensor(labels)), rng.standard_normal((4, 5)))
    ids = np.array([[0, 2, 2], [1, 0, 2]])
    compare_with_torch(peer, lambda e: F.embedding(e, ids), lambda torch, e: torch.nn.functional.embedding(torch.tensor(ids), e),
                       rng.standard_normal((4, 3)))
    compare_with_torch(peer, F.linear, lambda torch, x, w, b: torch.nn.functional.linear(x, w.T, b),
                       rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5)), rng.standard_normal(5))


# ---- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call,message", [
    (lambda: F.activation(Tensor(np.ones(2)), "swiglu"),
     "activation: expected one of gelu, gelu_new, relu, silu, tanh, got 'swiglu'"),
    (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), [0, 3]),
     "cross_entropy: label 3 is outside 0..2 (use -100 to leave a row out)"),
    (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), [-1, 0]), "cross_entropy: label -1 is outside 0..2"),
    (lambda: F.cross_entropy(Tensor(np.ones((2, 3))), [0]),
     "cross_entropy: labels have shape (1,), logits (2, 3); expected (2,)"),
    (lambda: F.embedding(Tensor(np.ones((4, 3))), [0, 4]), "embedding: id 4 is outside the table's 0..3"),
    (lambda: F.embedding(Tensor(np.ones((4, 3))), [[-1, 0]]), "embedding: id -1 is outside the table's 0..3"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("mask,bias", [((1, 5), None), ((2, 4), None), (None, (1, 1, 3, 5)), (None, (1, 2, 3, 1))])
def test_a_mask_or_bias_of_another_shape_is_refused(mask, bias, rng):
    q, k = Tensor(rng.standard_normal((2, 2, 3, 4))), Tensor(rng.standard_normal((2, 2, 5, 4)))
    with pytest.raises(ValueError):
        F.attention_weights(q, k, None if mask is None else np.ones(mask, bool), None if bias is None else Tensor(np.ones(bias)))
