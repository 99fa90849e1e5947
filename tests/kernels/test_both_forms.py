"""Every registered kernel: its definition in NumPy and its compiled loop give the same results, on every kind of input."""

import warnings

import numpy as np
import pytest

from minipeft.kernels import IGNORE, REGISTRY, backend, use_threads

# ---- inputs ----------------------------------------------------------------------------------------------------

SCALES = {"plain": 1, "huge": 1e4, "overflowing": 1e30, "tiny": 1e-30}
SPECIAL = {"minus infinity": -np.inf, "plus infinity": np.inf, "NaN": np.nan}
ROWS = {"several rows": (6, 5), "one row": (1, 5), "no rows": (0, 5), "one column": (6, 1), "no columns": (6, 0),
        "nothing": (0, 0), "wide": (3, 77)}
LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
}
# one thing varied at a time, in both precisions
CASES = [(values, "several rows", "contiguous") for values in (*SCALES, *SPECIAL)]
CASES += [("plain", rows, "contiguous") for rows in ROWS if rows != "several rows"]
CASES += [("plain", "several rows", layout) for layout in LAYOUTS if layout != "contiguous"]
CASES += [("minus infinity", "one row", "contiguous"), ("NaN", "wide", "strided"), ("huge", "wide", "contiguous")]


class Make:
    """Draws the arrays of one case."""

    def __init__(self, dtype, values, rows, layout):
        self.rng, self.dtype, self.values, self.layout = np.random.default_rng(3), dtype, values, LAYOUTS[layout]
        self.rows, self.columns = ROWS[rows]

    def plain(self, *shape):
        """Standard normal numbers in the case's layout: gains, biases, upstream gradients."""
        return self.layout(self.rng.standard_normal(shape).astype(self.dtype))

    def data(self, *shape):
        """The numbers that the case is about."""
        x = self.rng.standard_normal(shape) * SCALES.get(self.values, 1)
        if self.values in SPECIAL:
            x[self.rng.random(shape) < 0.15] = SPECIAL[self.values]
            x.reshape(-1)[:1] = SPECIAL[self.values]
        return self.layout(x.astype(self.dtype))

    def ids(self, count, below):
        return self.rng.integers(0, below, count) if below else np.zeros(count, np.int64)


# ---- name of a kernel -> the lists of positional arguments to call it with -------------------------------------


def _elementwise(make):
    return [[make.data(make.rows, make.columns)], [make.data(make.rows * make.columns)],
            [make.data(2, make.rows, make.columns)]]


def _elementwise_backward(make):
    return [[make.data(make.rows, make.columns), make.plain(make.rows, make.columns)]]


def _attention_softmax(make):
    out = []
    for causal in (False, True):
        if causal and make.values in ("NaN", "plus infinity"):
            continue  # test_a_causal_row_with_a_number_that_is_none
        for heads, keys in ((2, make.columns), (1, make.columns + 3), (3, max(make.columns - 2, 0))):
            scores = make.data(2, heads, make.rows, keys)
            mask = make.rng.random((2, keys)) < 0.6
            bias = make.plain(1, heads, make.rows, keys)
            own_bias = make.plain(2, heads, make.rows, keys)
            out += [[scores, None, None, 0.3, causal], [scores, mask, None, 1.7, causal],
                    [scores, None, bias, 1.0, causal], [scores, LAYOUTS["strided"](mask), own_bias, 0.3, causal]]
    return out


def _softmax_backward(make):
    return [[make.data(make.rows, make.columns), make.plain(make.rows, make.columns), 0.3],
            [make.data(2, 3, make.rows, make.columns), make.plain(2, 3, make.rows, make.columns), 2.0]]


def _norm(make):
    x, gain, bias = make.data(make.rows, make.columns), make.plain(make.columns), make.plain(make.columns)
    return [[x, gain, bias, 1e-5, True], [x, gain, None, 1e-5, False], [x, gain, bias, 1e-12, False],
            [make.data(2, make.rows, make.columns), gain, None, 1e-5, True]]


def _norm_backward_input(make):
    x, gain, g = make.data(make.rows, make.columns), make.plain(make.columns), make.plain(make.rows, make.columns)
    return [[x, gain, g, 1e-5, True], [x, gain, g, 1e-5, False]]


def _norm_backward_gain(make):
    x, g = make.data(make.rows, make.columns), make.plain(make.rows, make.columns)
    return [[x, g, 1e-5, True], [x, g, 1e-5, False]]


def _labels(make):
    labels = make.ids(make.rows, make.columns)
    labels[::3] = IGNORE
    return labels if make.columns else np.full(make.rows, IGNORE)


def _cross_entropy(make):
    z = make.data(make.rows, make.columns)
    return [[z, _labels(make)], [z, LAYOUTS["strided"](_labels(make))]]


def _cross_entropy_backward(make):
    z = make.data(make.rows, make.columns)
    with np.errstate(all="ignore"):
        lse = np.log(np.exp(z - z.max(axis=1, initial=-9, keepdims=True)).sum(axis=1)) + z.max(axis=1, initial=-9)
    return [[z, _labels(make), make.layout(lse), make.plain(make.rows)]]


def _scatter_add(make):
    rows = 4
    return [[make.ids(make.rows, rows), make.data(make.rows, make.columns), rows],
            [LAYOUTS["strided"](make.ids(make.rows, 1)), make.data(make.rows, make.columns), rows]]


def _adam_step(make):
    out = []
    for step, scale, decay in ((1, 1.0, 0.0), (7, 0.25, 0.1)):
        inside = [np.array(make.plain(make.rows, make.columns), order="C") for _ in range(3)]
        p, m, v = inside[0], inside[1] * make.dtype(0.01), np.abs(inside[2])
        out.append([p, make.data(make.rows, make.columns), m, v, step, 1e-2, 0.9, 0.999, 1e-8, decay, scale])
    return out


def _quantise_nf4(make):
    return [[make.data(make.rows * make.columns), block] for block in (64, 7, 1)]


def _dequantise_nf4(make):
    count, block = make.rows * make.columns, 7
    codes = make.rng.integers(0, 256, (count + 1) // 2).astype(np.uint8)
    return [[codes, make.layout(make.data(-(-count // block))), count, block]]


ARGUMENTS = {
    "quantise_nf4": _quantise_nf4, "dequantise_nf4": _dequantise_nf4,
    "attention_softmax": _attention_softmax, "softmax_backward": _softmax_backward,
    "norm": _norm, "norm_backward_input": _norm_backward_input, "norm_backward_gain": _norm_backward_gain,
    "cross_entropy": _cross_entropy, "cross_entropy_backward": _cross_entropy_backward,
    "scatter_add": _scatter_add, "adam_step": _adam_step, "erf": _elementwise,
}
for _name in ("gelu", "gelu_new", "silu", "relu"):
    ARGUMENTS |= {_name: _elementwise, f"{_name}_backward": _elementwise_backward}

IN_PLACE = {"adam_step": (0, 2, 3)}  # which arguments are changed instead of a result being returned
RESULTS = {"quantise_nf4": {0: np.uint8, 1: np.float32}, "dequantise_nf4": {0: np.float32}}  # types whatever came in
PRECISION = {np.float32: 1e-5, np.float64: 1e-11}


def meaningless(name, rows):
    """Cases without a defined result."""
    return name.startswith("cross_entropy") and rows == "no columns"  # texts to classify, and no class


def call(name, form, args):
    """The results of one form as a tuple of arrays, and the arguments it was given, copied beforehand in the same layout."""
    mine = [_same_layout(a) if isinstance(a, np.ndarray) else a for a in args]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of the mean of nothing
        result = form(*mine)
    if name in IN_PLACE:
        assert result is None
        result = tuple(mine[i] for i in IN_PLACE[name])
    return (result if isinstance(result, tuple) else (result,)), mine


def _same_layout(a):
    base = np.empty_like(a.base if isinstance(a.base, np.ndarray) else a)
    base[...] = a.base if isinstance(a.base, np.ndarray) else a
    if not isinstance(a.base, np.ndarray):
        return base
    offset = a.__array_interface__["data"][0] - a.base.__array_interface__["data"][0]
    return np.ndarray(a.shape, a.dtype, base, offset, a.strides)


def assert_close(got, expected, tolerance, scale, message):
    """Equal where not finite; elsewhere within ``tolerance`` of the entry, of the largest entry or of ``scale``."""
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=scale)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True, err_msg=message)


# ---- the tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("values,rows,layout", CASES, ids=["-".join(case).replace(" ", "_") for case in CASES])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_definition_equals_compiled_loop(name, values, rows, layout, dtype):
    assert name in ARGUMENTS, f"kernel {name!r} is registered, but this test has no inputs for it"
    if meaningless(name, rows):
        return
    kernel = REGISTRY[name]
    # with one column the true gradient is 0, the difference of terms of size 1 / sqrt(eps)
    scale = 300.0 if name == "norm_backward_input" and rows == "one column" else 0.0
    for number, args in enumerate(ARGUMENTS[name](Make(dtype, values, rows, layout))):
        expected, seen = call(name, kernel.reference, args)
        got, seen_compiled = call(name, kernel.compiled, args)
        assert len(got) == len(expected)
        for form, arrays, results in (("reference", seen, expected), ("compiled", seen_compiled, got)):
            for i, (before, after) in enumerate(zip(args, arrays)):
                if isinstance(before, np.ndarray) and i not in IN_PLACE.get(name, ()):
                    assert before.tobytes() == after.tobytes(), f"{form} changed argument {i}"
                    assert not any(np.shares_memory(after, r) for r in results), f"{form} returns a view of argument {i}"
        for i, (g, e) in enumerate(zip(got, expected)):
            assert g.dtype == e.dtype == RESULTS.get(name, {}).get(i, dtype) and g.shape == e.shape
            assert_close(g, e, PRECISION[dtype], scale, f"{name}, arguments {number}, result {i}")


def test_every_input_maker_belongs_to_a_kernel():
    assert set(ARGUMENTS) == set(REGISTRY)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_causal_row_with_a_number_that_is_none(value, rng):
    scores = rng.standard_normal((1, 1, 3, 3))
    scores[0, 0, 1, 0] = value
    kernel = REGISTRY["attention_softmax"]
    np.testing.assert_array_equal(np.isnan(kernel.compiled(scores, None, None, 1.0, True)),
                                  np.isnan(kernel.reference(scores, None, None, 1.0, True)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_same_bits_on_any_number_of_threads(name, dtype, monkeypatch):
    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)
    started = []
    pool = backend._thread_pool
    monkeypatch.setattr(backend, "_thread_pool", lambda: started.append(1) or pool())
    make = Make(dtype, "plain", "several rows", "contiguous")
    make.rows, make.columns = 700, 13
    for args in ARGUMENTS[name](make):
        bits = []
        for threads in (1, 2, 3):
            started.clear()
            with use_threads(threads):
                results, _ = call(name, REGISTRY[name].compiled, args)
            bits.append([r.tobytes() for r in results])
            # one row of the table may get a sum from several rows of the gradient, so this one is never cut
            assert bool(started) == (threads > 1 and name != "scatter_add")
        assert bits[0] == bits[1] == bits[2]
