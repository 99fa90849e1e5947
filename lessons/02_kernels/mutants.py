"""Wrong answers to lesson 2, and what a learner who wrote one is told. The loops are plain Python: nothing needs compiling."""

import math

import numpy as np

from minipeft.kernels.norm import ROWS_IN_BLOCK, _row_statistics
from minipeft.learn.claims import mutant

# ---- 02.1 ----

erf = np.vectorize(math.erf, otypes=[np.float64])


def both(x):
    """Phi(x) and phi(x)."""
    return (1 + erf(x / math.sqrt(2))) / 2, np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@mutant("02.1", "phi_alone", "You took Φ(x) alone. x Φ(x) is a product: its second term is x φ(x).")
def gelu_backward_reference(x, gradient):
    big, _ = both(x)
    return (gradient * big).astype(x.dtype)


@mutant("02.1", "no_x", "The second term is x φ(x): the factor x is missing.")
def gelu_backward_reference(x, gradient):
    big, small = both(x)
    return (gradient * (big + small)).astype(x.dtype)


@mutant("02.1", "no_gradient", "That is the slope; multiply it by the gradient that arrives.")
def gelu_backward_reference(x, gradient):
    big, small = both(x)
    return (big + x * small).astype(x.dtype)


@mutant("02.1", "no_root_two", "Φ(x) is (1 + erf(x / √2)) / 2: the root of 2 is missing.")
def gelu_backward_reference(x, gradient):
    _, small = both(x)
    return (gradient * ((1 + erf(x)) / 2 + x * small)).astype(x.dtype)


@mutant("02.1", "no_density_factor", "φ(x) is exp(−x²/2) divided by √(2π): the density of the normal distribution has an area of "
                                     "1.")
def gelu_backward_reference(x, gradient):
    big, _ = both(x)
    return (gradient * (big + x * np.exp(-x * x / 2))).astype(x.dtype)


@mutant("02.1", "double", "The numbers are right, but from float32 came float64: end with .astype(x.dtype), or all that follows "
                          "runs at half the speed.")
def gelu_backward_reference(x, gradient):
    big, small = both(x)
    return (gradient * (big + x * small)).astype(np.float64)


# ---- 02.2 ----


def scaled(scores, bias, scale):
    """scale times the scores, plus the bias."""
    z = scores * scores.dtype.type(scale)
    return z if bias is None else z + bias


def sight(scores, key_mask, causal, offset=None):
    """Which keys each query may see."""
    queries, keys = scores.shape[-2:]
    visible = np.ones((1, 1, queries, keys), bool)
    if causal:
        visible = np.tri(queries, keys, keys - queries if offset is None else offset, dtype=bool)[None, None]
    return visible if key_mask is None else visible & key_mask[:, None, None, :]


def finish(z, visible, dtype, axis=-1, top=None):
    """Softmax of z over the visible ones."""
    top = z.max(axis=axis, keepdims=True, initial=-np.inf) if top is None else top
    e = np.exp(z - np.where(top == -np.inf, 0, top))
    total = e.sum(axis=axis, keepdims=True)
    return np.where(visible, e / np.where(total == 0, 1, total), 0).astype(dtype)


@mutant("02.2", "not_stable", "exp of a large score is infinite, and ∞/∞ is no number: subtract the largest score of the row "
                              "first.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal)
    return finish(np.where(visible, scaled(scores, bias, scale), -np.inf), visible, scores.dtype, top=np.zeros(()))


@mutant("02.2", "largest_of_all", "You subtracted the largest score of all rows. In a row that lies far below it every exp is 0: "
                                  "take the largest of each row.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal)
    z = np.where(visible, scaled(scores, bias, scale), -np.inf)
    return finish(z, visible, scores.dtype, top=z.max(keepdims=True))


@mutant("02.2", "hidden_as_zero", "A hidden key's score became 0, and exp(0) is 1: it must become −∞, so that its exp is 0.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    z = np.where(sight(scores, key_mask, causal), scaled(scores, bias, scale), 0)
    return finish(z, True, scores.dtype)


@mutant("02.2", "very_negative", "A very negative score in the place of −∞ does, as long as some key is seen. Where none is, all "
                                 "scores are equal and so are the weights: set the weights of hidden keys to 0.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    return finish(np.where(sight(scores, key_mask, causal), scaled(scores, bias, scale), -1e9), True, scores.dtype)


@mutant("02.2", "hidden_too_late", "You set hidden weights to 0 after the division, so that a row no longer adds up to 1: hide "
                                   "the scores before exp.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    return finish(scaled(scores, bias, scale), sight(scores, key_mask, causal), scores.dtype)


@mutant("02.2", "over_the_queries", "You summed over the queries; the weights of one query over its keys, the last axis, add up "
                                    "to 1.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal)
    return finish(np.where(visible, scaled(scores, bias, scale), -np.inf), visible, scores.dtype, axis=-2)


@mutant("02.2", "causal_from_the_left", "With more keys than queries the last query must see every key: the rule is j <= i + S − "
                                        "T, and you left S − T out.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal, 0)
    return finish(np.where(visible, scaled(scores, bias, scale), -np.inf), visible, scores.dtype)


@mutant("02.2", "not_itself", "A query may see the key at its own place: j <= i + S − T, and not j < i + S − T.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal, scores.shape[-1] - scores.shape[-2] - 1)
    return finish(np.where(visible, scaled(scores, bias, scale), -np.inf), visible, scores.dtype)


@mutant("02.2", "bias_scaled", "The scale multiplies the scores alone; you multiplied the bias as well.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible, z = sight(scores, key_mask, causal), scores if bias is None else scores + bias
    return finish(np.where(visible, z * scores.dtype.type(scale), -np.inf), visible, scores.dtype)


@mutant("02.2", "no_scale", "You left out the scale.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    visible = sight(scores, key_mask, causal)
    return finish(np.where(visible, scaled(scores, bias, 1), -np.inf), visible, scores.dtype)


@mutant("02.2", "empty_rows", "Where a query may see no key, −∞ − (−∞) and 0/0 are no numbers: its weights must be 0.")
def attention_softmax_reference(scores, key_mask, bias, scale, causal):
    z = np.where(sight(scores, key_mask, causal), scaled(scores, bias, scale), -np.inf)
    with np.errstate(invalid="ignore"):
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return (e / e.sum(axis=-1, keepdims=True)).astype(scores.dtype)


# ---- 02.3 ----


@mutant("02.3", "old_moments", "p was changed with m and v as they were before this step: bring both up to date first.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * root + eps)
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x * x


@mutant("02.3", "moments_lost", "m and v must be written back: the next step goes on with them.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        first, second = beta1 * m[i] + (1 - beta1) * x, beta2 * v[i] + (1 - beta2) * x * x
        p[i] = p[i] * keep - rate * first / (np.sqrt(second) * root + eps)


@mutant("02.3", "not_squared", "v is a mean of the squared gradient; you took the gradient itself.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(abs(v[i])) * root + eps)


@mutant("02.3", "not_scaled", "You left scale out: the gradient is multiplied by it first, in m and in v.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        m[i] = beta1 * m[i] + (1 - beta1) * g[i]
        v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * root + eps)


@mutant("02.3", "eps_in_the_root", "eps is added to the root, not under it.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x * x
        p[i] = p[i] * keep - rate * m[i] / np.sqrt(v[i] * root * root + eps)


@mutant("02.3", "root_around_all", "root multiplies the root of v alone; you multiplied eps as well.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x * x
        p[i] = p[i] * keep - rate * m[i] / ((np.sqrt(v[i]) + eps) * root)


@mutant("02.3", "step_shrunk_too", "keep multiplies the old parameter alone; you shrank the new one, the step included.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(start, stop):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x * x
        p[i] = (p[i] - rate * m[i] / (np.sqrt(v[i]) * root + eps)) * keep


@mutant("02.3", "all_elements", "You went over all elements; this call is for start..stop-1 only, and another thread has the "
                                "others: each was stepped more than once.")
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    for i in range(p.size):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (1 - beta1) * x
        v[i] = beta2 * v[i] + (1 - beta2) * x * x
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * root + eps)


# ---- 02.4 ----


@mutant("02.4", "no_bias", "You left out the bias: where has_bias is true, add bias[j].")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) * rstd * gain[j]


@mutant("02.4", "bias_scaled", "The gain is for the normalised row alone; you multiplied the bias by it too.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = ((x[i, j] - mean) * rstd + (bias[j] if has_bias else 0)) * gain[j]


@mutant("02.4", "not_centred", "You divided the row and did not move it: subtract the mean first.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] * rstd * gain[j] + (bias[j] if has_bias else 0)


@mutant("02.4", "divided", "The second number of _row_statistics is 1 / √(variance + eps): multiply by it. You divided.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) / rstd * gain[j] + (bias[j] if has_bias else 0)


@mutant("02.4", "bias_forever", "Where has_bias is false there is no bias: its array is empty, and compiled code reads whatever "
                                "stands behind it.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) * rstd * gain[j] + bias[j]


@mutant("02.4", "all_rows", "You filled all rows. This call is for start..stop-1 only: with two threads every row would be "
                            "written twice.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(x.shape[0]):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) * rstd * gain[j] + (bias[j] if has_bias else 0)


@mutant("02.4", "from_the_first_row", "You started at row 0; start at the row start.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean) * rstd * gain[j] + (bias[j] if has_bias else 0)


@mutant("02.4", "in_place", "You moved the rows of x itself; x belongs to the caller, and backward needs it: write to out only.")
def _norm_rows(start, stop, x, gain, bias, has_bias, eps, centred, out):
    for i in range(start, stop):
        mean, rstd = _row_statistics(x[i], eps, centred)
        row = x[i]
        row -= mean
        for j in range(x.shape[1]):
            out[i, j] = row[j] * rstd * gain[j] + (bias[j] if has_bias else 0)


# ---- 02.5 ----


@mutant("02.5", "not_emptied", "partial comes with whatever was in its memory: set the block's sum to 0 before adding to it.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        for i in range(block * ROWS_IN_BLOCK, min(x.shape[0], (block + 1) * ROWS_IN_BLOCK)):
            mean, rstd = _row_statistics(x[i], eps, centred)
            partial[block] += gradient[i] * ((x[i] - mean) * rstd)


@mutant("02.5", "past_the_end", "The last block may have fewer rows: stop at the number of rows. Compiled code would not notice, "
                                "and add what lies behind x.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        partial[block] = 0
        for i in range(block * ROWS_IN_BLOCK, (block + 1) * ROWS_IN_BLOCK):
            mean, rstd = _row_statistics(x[i], eps, centred)
            partial[block] += gradient[i] * ((x[i] - mean) * rstd)


@mutant("02.5", "raw_rows", "You multiplied g by x itself; it is the normalised row, (x − mean) rstd, that the gain multiplied.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        partial[block] = 0
        for i in range(block * ROWS_IN_BLOCK, min(x.shape[0], (block + 1) * ROWS_IN_BLOCK)):
            partial[block] += gradient[i] * x[i]


@mutant("02.5", "one_sum_a_call", "You made one sum for each call, over all of its blocks. Then the order of the additions, and "
                                  "so the bits, depend on the number of threads: each block has a sum of its own.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    partial[start:stop] = 0
    for i in range(start * ROWS_IN_BLOCK, min(x.shape[0], stop * ROWS_IN_BLOCK)):
        mean, rstd = _row_statistics(x[i], eps, centred)
        partial[start] += gradient[i] * ((x[i] - mean) * rstd)


@mutant("02.5", "overwrites_x", "x is only read, and others read it after you: write the normalised row into an array of its "
                                "own, or into none.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        partial[block] = 0
        for i in range(block * ROWS_IN_BLOCK, min(x.shape[0], (block + 1) * ROWS_IN_BLOCK)):
            mean, rstd = _row_statistics(x[i], eps, centred)
            x[i] = (x[i] - mean) * rstd
            partial[block] += gradient[i] * x[i]


@mutant("02.5", "rows_for_blocks", "start and stop count blocks, not rows: block b has the rows from 128 b on.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        mean, rstd = _row_statistics(x[block], eps, centred)
        partial[block] = gradient[block] * ((x[block] - mean) * rstd)


@mutant("02.5", "last_row_left_out", "A block's rows go up to, and not including, the first row of the next: you left out its "
                                     "last one.")
def _norm_backward_gain_blocks(start, stop, x, gradient, eps, centred, partial):
    for block in range(start, stop):
        partial[block] = 0
        for i in range(block * ROWS_IN_BLOCK, min(x.shape[0], (block + 1) * ROWS_IN_BLOCK) - 1):
            mean, rstd = _row_statistics(x[i], eps, centred)
            partial[block] += gradient[i] * ((x[i] - mean) * rstd)
