"""What an answer to lesson 2 must do: two definitions in NumPy, and three loops that are called as the package calls them, with
the rows cut into one block for each thread."""

import math

import numpy as np
import pytest

from minipeft import kernels
from minipeft.kernels.backend import PARALLEL_THRESHOLD, run_rows
from minipeft.kernels.norm import ROWS_IN_BLOCK
from minipeft.learn.claims import exercise, holds, same, sizes

# ---- 02.1: the definition of GELU's backward pass --------------------------------------------------------------


def gelu(x):
    """x Phi(x) of a number."""
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


@exercise("02.1")
def test_the_slope_by_finite_differences(impl, rng):
    """The result is g times the slope of x Phi(x), as small steps to both sides find it."""
    (x, g), h = rng.standard_normal((2, *sizes(rng, 2))), 1e-5
    slopes = np.array([[(gelu(n + h) - gelu(n - h)) / (2 * h) for n in row] for row in x])
    same(impl(x, g), g * slopes, "dx", 1e-8)


@exercise("02.1")
def test_at_zero_and_far_out(impl):
    """The slope is 1/2 at 0, 1 far to the right and 0 far to the left."""
    same(impl(np.array([0.0, 30.0, -30.0]), np.array([3.0, 3.0, 3.0])), np.array([1.5, 3.0, 0.0]), "dx", 1e-12)


@exercise("02.1")
def test_above_one(impl):
    """Near x = 1.4 the slope is larger than 1: the second term counts."""
    phi = math.exp(-0.98) / math.sqrt(2 * math.pi)
    expected = (1 + math.erf(1.4 / math.sqrt(2))) / 2 + 1.4 * phi
    same(impl(np.array([1.4]), np.array([1.0])), np.array([expected]), "dx", 1e-12)


@exercise("02.1")
def test_the_type_stays(impl, rng):
    """From float32 comes float32, and the shape stays."""
    x, g = rng.standard_normal((2, 1, 3)).astype(np.float32), rng.standard_normal((2, 1, 3)).astype(np.float32)
    same(impl(x, g), kernels.ACTIVATIONS["gelu"][1].compiled(x, g), "dx", 1e-5)


# ---- 02.2: the definition of softmax ---------------------------------------------------------------------------


def weights_of(scores, key_mask, bias, scale, causal):
    """The weights, number by number."""
    batch, heads, queries, keys = scores.shape
    out = np.zeros(scores.shape)
    for b, h, i in np.ndindex(batch, heads, queries):
        seen = [j for j in range(keys) if (key_mask is None or key_mask[b, j]) and not (causal and j > i + keys - queries)]
        z = {j: scale * scores[b, h, i, j] + (0 if bias is None else bias[b if len(bias) > 1 else 0, h, i, j]) for j in seen}
        top = max(z.values(), default=0)
        total = sum(math.exp(z[j] - top) for j in seen)
        for j in seen:
            out[b, h, i, j] = math.exp(z[j] - top) / total
    return out


def check_weights(impl, scores, key_mask=None, bias=None, scale=1.0, causal=False, what="the weights"):
    """Compare with `weights_of`."""
    same(impl(scores, key_mask, bias, scale, causal), weights_of(scores, key_mask, bias, scale, causal), what, 1e-10)


@exercise("02.2")
def test_softmax_over_the_keys(impl, rng):
    """Without a mask w_ij is exp(z_ij) over the sum of its row, z being scale times the scores."""
    check_weights(impl, rng.standard_normal(sizes(rng, 4)), scale=0.7)


@exercise("02.2")
def test_large_scores(impl, rng):
    """Scores of several thousands, of which exp would be infinite, give weights that are right."""
    check_weights(impl, 3000 * rng.standard_normal((1, 2, 3, 4)) + 5000, what="the weights of large scores")


@exercise("02.2")
def test_rows_far_apart(impl, rng):
    """A row whose scores all lie far below another row's has weights too."""
    scores = rng.standard_normal((1, 1, 3, 4))
    scores[0, 0, 1] -= 2000
    check_weights(impl, scores, what="the weights of rows far apart")


@exercise("02.2")
def test_padding(impl, rng):
    """A key that is no real one gets the weight 0, and the others of its row still add up to 1."""
    mask = np.array([[True, True, False, True], [False, True, True, False]])
    check_weights(impl, rng.standard_normal((2, 2, 3, 4)), mask, what="the weights behind a mask")


@exercise("02.2")
@pytest.mark.parametrize("queries, keys", [(4, 4), (2, 5), (1, 3)])
def test_causal(impl, rng, queries, keys):
    """Causal, query i sees the keys up to i + S - T and no others."""
    check_weights(impl, rng.standard_normal((1, 2, queries, keys)), causal=True, what="the causal weights")


@exercise("02.2")
def test_bias(impl, rng):
    """The bias is added after the scale; one with a batch axis of size 1 is for all."""
    shape = sizes(rng, 4)
    for batch in (1, shape[0]):
        bias = rng.standard_normal((batch, *shape[1:]))
        check_weights(impl, rng.standard_normal(shape), None, bias, 0.4, what="the weights with a bias")


@exercise("02.2")
def test_nothing_to_see(impl, rng):
    """A query that may see no key has weights of 0, and none that is no number."""
    mask = np.array([[False, False, False], [True, False, True]])
    check_weights(impl, rng.standard_normal((2, 1, 2, 3)), mask, what="the weights where no key may be seen")
    check_weights(impl, rng.standard_normal((1, 1, 4, 2)), causal=True, what="the weights of queries before the first key")


@exercise("02.2")
def test_all_together(impl, rng):
    """Scale, bias, mask and the causal rule at once; from float32 comes float32."""
    batch, heads, queries, keys = sizes(rng, 4)
    scores, mask = rng.standard_normal((batch, heads, queries, keys)), rng.random((batch, keys)) < 0.7
    bias = rng.standard_normal((1, heads, queries, keys))
    check_weights(impl, scores, mask, bias, 0.3, True)
    single = impl(scores.astype(np.float32), mask, bias.astype(np.float32), 0.3, True)
    same(single, weights_of(scores, mask, bias, 0.3, True).astype(np.float32), "the weights in float32", 1e-5)


# ---- 02.3: AdamW's loop ----------------------------------------------------------------------------------------

SETTINGS = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 0.02, "decay": 0.3, "gradient_scale": 0.5}


def stepped(impl, arrays, step, dtype=np.float64, **changed):
    """(p, m, v) after one step, by the loop, as `adam_step_compiled` calls it."""
    s = {**SETTINGS, **changed}
    p, g, m, v = (np.array(a, dtype) for a in arrays)
    numbers = (s["lr"] / (1 - s["beta1"]**step), 1 - s["lr"] * s["decay"], s["beta1"], s["beta2"],
               1 / math.sqrt(1 - s["beta2"]**step), s["eps"], s["gradient_scale"])
    run_rows(impl, p.size, PARALLEL_THRESHOLD, p, g, m, v, *map(dtype, numbers))
    return p, m, v


def by_hand(arrays, step, **changed):
    """(p, m, v) after one step, as algorithm 2 of Loshchilov and Hutter says it, number by number."""
    s, out = {**SETTINGS, **changed}, []
    for p, g, m, v in zip(*arrays):
        g = g * s["gradient_scale"]
        m = s["beta1"] * m + (1 - s["beta1"]) * g
        v = s["beta2"] * v + (1 - s["beta2"]) * g**2
        m_hat, v_hat = m / (1 - s["beta1"]**step), v / (1 - s["beta2"]**step)
        out.append((p - s["lr"] * (m_hat / (math.sqrt(v_hat) + s["eps"]) + s["decay"] * p), m, v))
    return [np.array(each) for each in zip(*out)]


def four(rng, size=None):
    """p, g, m and v, of a size that is drawn where none is given: v is not negative."""
    size = int(rng.integers(6, 13)) if size is None else size
    return [rng.standard_normal(size) for _ in range(3)] + [rng.random(size)]


@exercise("02.3")
@pytest.mark.parametrize("step", [1, 7])
def test_one_step(impl, rng, step):
    """p, m and v are what the algorithm makes of them."""
    arrays = four(rng)
    for mine, expected, name in zip(stepped(impl, arrays, step), by_hand(arrays, step), ("p", "m", "v")):
        same(mine, expected, name, 1e-10)


@exercise("02.3")
def test_two_steps(impl, rng):
    """The moments are kept: the second step goes on with those of the first."""
    first = four(rng)
    p, m, v = stepped(impl, first, 1)
    g = rng.standard_normal(p.shape)
    p, m, v = stepped(impl, (p, g, m, v), 2)
    a, b, c = by_hand(first, 1)
    same(p, by_hand((a, g, b, c), 2)[0], "p after two steps", 1e-10)


@exercise("02.3")
def test_decay_alone(impl, rng):
    """With a gradient and moments of 0 the parameter shrinks by lr times decay, and nothing else."""
    (size,) = sizes(rng, 1)
    p, zero = rng.standard_normal(size), np.zeros(size)
    same(stepped(impl, (p, zero, zero, zero), 3)[0], p * (1 - 0.1 * 0.3), "p", 1e-12)


@exercise("02.3")
def test_only_its_own_elements(impl, rng):
    """A call for start..stop-1 leaves all other elements as they are: they belong to another thread."""
    p, g, m, v = four(rng, 9)
    before, s = p.copy(), [0.5, 0.9, 0.8, 0.95, 1.5, 0.02, 0.5]
    impl(2, 5, p, g, m, v, *s)
    outside = np.array([0, 1, 5, 6, 7, 8])
    same(p[outside], before[outside], "p outside of start..stop-1", 0)
    holds((p[2:5] != before[2:5]).all(), "p[start:stop] is not changed")


# ---- 02.4: the rows of layer norm ------------------------------------------------------------------------------


def normed(impl, x, gain, bias, eps, centred):
    """The loop's result, as `norm_compiled` calls it; what it does not fill stays 7."""
    out = np.full_like(x, 7)
    run_rows(impl, len(x), PARALLEL_THRESHOLD, x, gain, gain[:0] if bias is None else bias, bias is not None, eps, centred, out)
    return out


def norm_by_hand(x, gain, bias, eps, centred):
    """y, number by number."""
    out = np.zeros(x.shape)
    for i, row in enumerate(x):
        mean = sum(row) / len(row) if centred else 0.0
        deviation = math.sqrt(sum((n - mean) ** 2 for n in row) / len(row) + eps)
        for j, n in enumerate(row):
            out[i, j] = (n - mean) / deviation * gain[j] + (0 if bias is None else bias[j])
    return out


@exercise("02.4")
@pytest.mark.parametrize("shape", [None, (1, 3), (4, 1)])
def test_layer_norm(impl, rng, shape):
    """Each row is moved to mean 0, divided by the root of its variance + eps, scaled by the gain and moved by the bias."""
    rows, width = shape or sizes(rng, 2)
    x, gain, bias = 3 * rng.standard_normal((rows, width)) + 2, rng.standard_normal(width), rng.standard_normal(width)
    same(normed(impl, x, gain, bias, 0.1, True), norm_by_hand(x, gain, bias, 0.1, True), "y", 1e-10)


@exercise("02.4")
def test_rms_norm(impl, rng):
    """Not centred and without a bias it is RMS norm."""
    rows, width = sizes(rng, 2)
    x, gain = rng.standard_normal((rows, width)) + 1, rng.standard_normal(width)
    same(normed(impl, x, gain, None, 0.1, False), norm_by_hand(x, gain, None, 0.1, False), "y", 1e-10)


@exercise("02.4")
def test_only_its_own_rows(impl, rng):
    """A call for start..stop-1 fills these rows and no other: they belong to another thread."""
    x, gain, bias = rng.standard_normal((6, 4)), rng.standard_normal(4), rng.standard_normal(4)
    out = np.full_like(x, 7)
    impl(2, 4, x, gain, bias, True, 0.1, True, out)
    expected = np.full_like(x, 7)
    expected[2:4] = norm_by_hand(x, gain, bias, 0.1, True)[2:4]
    same(out, expected, "the result of a call for rows 2 and 3, in an array of sevens", 1e-10)


@exercise("02.4")
def test_inputs_stay(impl, rng):
    """x, gain and bias are left as they are."""
    arrays = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal(4)
    kept = [a.copy() for a in arrays]
    normed(impl, *arrays, 0.1, True)
    for a, b, name in zip(arrays, kept, ("x", "gain", "bias")):
        same(a, b, f"{name} after the call", 0)


# ---- 02.5: a sum that does not depend on the number of threads -------------------------------------------------

ROWS = 2 * ROWS_IN_BLOCK + 30


def summed(impl, x, gradient, eps, centred, cuts=None):
    """The partial sums (blocks, D), filled as `norm_backward_gain_compiled` does, or by calls that end at the ``cuts``."""
    blocks = -(-len(x) // ROWS_IN_BLOCK)
    partial = np.full((blocks, x.shape[1]), 7.0)
    if cuts is None:
        run_rows(impl, blocks, PARALLEL_THRESHOLD, x, gradient, eps, centred, partial)
    else:
        for start, stop in zip([0, *cuts], [*cuts, blocks]):
            impl(start, stop, x, gradient, eps, centred, partial)
    return partial


def by_blocks(x, gradient, eps, centred):
    """The partial sums by NumPy, block by block."""
    mean = x.mean(axis=1, keepdims=True) if centred else 0.0
    xhat = (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=1, keepdims=True) + eps)
    return np.array([(gradient * xhat)[n:n + ROWS_IN_BLOCK].sum(axis=0) for n in range(0, len(x), ROWS_IN_BLOCK)])


@exercise("02.5")
@pytest.mark.parametrize("rows", [ROWS_IN_BLOCK, ROWS, 5])
def test_blocks(impl, rng, rows):
    """partial[b] is the sum of g times the normalised row over the rows of block b; the last block may be short."""
    (width,) = sizes(rng, 1)
    x, gradient = 2 * rng.standard_normal((rows, width)) + 1, rng.standard_normal((rows, width))
    expected = by_blocks(x, gradient, 0.1, True)  # before an answer has its hands on x
    same(summed(impl, x, gradient, 0.1, True), expected, "the partial sums", 1e-10)


@exercise("02.5")
def test_not_centred(impl, rng):
    """Not centred, the rows are only scaled."""
    x, gradient = rng.standard_normal((ROWS, 2)) + 1, rng.standard_normal((ROWS, 2))
    expected = by_blocks(x, gradient, 0.1, False)
    same(summed(impl, x, gradient, 0.1, False), expected, "the partial sums", 1e-10)


@exercise("02.5")
def test_the_same_bits(impl, rng):
    """However the blocks are handed out, the partial sums have the same bits."""
    x, gradient = rng.standard_normal((ROWS, 2)), rng.standard_normal((ROWS, 2))
    whole = summed(impl, x, gradient, 0.1, True, [])
    for cuts in ([1], [2], [1, 2]):
        same(summed(impl, x, gradient, 0.1, True, cuts), whole, f"the partial sums by {len(cuts) + 1} calls", 0)


@exercise("02.5")
def test_only_its_own_blocks(impl, rng):
    """A call for blocks start..stop-1 fills these and no other."""
    x, gradient = rng.standard_normal((ROWS, 2)), rng.standard_normal((ROWS, 2))
    partial, expected = np.full((3, 2), 7.0), np.full((3, 2), 7.0)
    expected[1] = by_blocks(x, gradient, 0.1, True)[1]
    impl(1, 2, x, gradient, 0.1, True, partial)
    same(partial, expected, "the result of a call for block 1, in an array of sevens", 1e-10)


@exercise("02.5")
def test_what_is_summed_stays(impl, rng):
    """x and the gradient are left as they are."""
    arrays = rng.standard_normal((ROWS, 2)), rng.standard_normal((ROWS, 2))
    kept = [a.copy() for a in arrays]
    summed(impl, *arrays, 0.1, True)
    for a, b, name in zip(arrays, kept, ("x", "the gradient")):
        same(a, b, f"{name} after the call", 0)
