"""Span corruption: nothing is lost, spans stay apart, and the shares are those asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data.spans import corrupt_spans, parts

SENTINELS = list(range(1000, 1020))


def restored(source, target):
    """The text that a source and its target stand for, found without the sentinels' numbers being known beforehand."""
    spans, name = {}, None
    for token in target:
        if token >= 1000:
            name = token
            spans[name] = []
        else:
            spans[name].append(token)
    out = []
    for token in source:
        out += spans[token] if token >= 1000 else [token]
    return out


@given(st.integers(2, 120), st.integers(0, 2**32), st.floats(0.05, 0.9), st.floats(1, 6))
def test_source_and_target_together_are_the_text(length, seed, density, mean_length):
    ids = np.random.default_rng(seed).integers(0, 1000, length).tolist()
    source, target = corrupt_spans(ids, np.random.default_rng(seed), SENTINELS, density, mean_length)
    assert restored(source, target) == ids
    marks = [token for token in source if token >= 1000]
    assert marks == SENTINELS[:len(marks)] and target[-1] == SENTINELS[len(marks)] and target[0] == SENTINELS[0]
    assert all(a < 1000 or b < 1000 for a, b in zip(source, source[1:])), "spans that touch would be one"
    assert len(ids) - len([t for t in source if t < 1000]) == int(np.clip(round(length * density), 1, length - 1))


def test_the_number_of_spans_and_where_they_may_lie():
    """15 % in spans of 3: of 100 tokens five spans; first and last tokens are taken as often as chance has it."""
    first = last = 0
    for seed in range(400):
        source, target = corrupt_spans(list(range(100)), np.random.default_rng(seed), SENTINELS)
        assert sum(token >= 1000 for token in source) == 5 and sum(token < 1000 for token in target) == 15
        first, last = first + (source[0] >= 1000), last + (source[-1] >= 1000)
    assert 5 < first < 50 and 5 < last < 50  # 5 spans among 87 places for them: 23 expected


def test_two_tokens_and_few_sentinels():
    sources = {tuple(corrupt_spans([7, 8], np.random.default_rng(seed), SENTINELS)[0]) for seed in range(30)}
    assert sources == {(7, 1000), (1000, 8)}
    source, target = corrupt_spans(list(range(100)), np.random.default_rng(0), [1000, 1001, 1002], 0.5, 1.0)
    assert [token for token in source if token >= 1000] == [1000, 1001] and target[-1] == 1002


@given(st.integers(1, 60), st.data())
def test_parts_are_a_sum(total, data):
    count = data.draw(st.integers(1, total))
    out = parts(np.random.default_rng(data.draw(st.integers(0, 2**32))), total, count)
    assert len(out) == count and out.sum() == total and out.min() >= 1


def test_each_way_to_part_is_as_likely():
    drawn = [tuple(parts(np.random.default_rng(seed), 4, 2)) for seed in range(900)]
    assert {way: drawn.count(way) > 230 for way in set(drawn)} == {(1, 3): True, (2, 2): True, (3, 1): True}


@pytest.mark.parametrize("args, message", [
    (([1], SENTINELS), "ids: expected at least 2 tokens, got 1"),
    (([1, 2], [1000]), "sentinels: expected at least 2, got 1"),
    (([1, 2], SENTINELS, 0.0), "density: expected a share between 0 and 1, got 0.0"),
    (([1, 2], SENTINELS, 0.5, 0.5), "mean_length: expected at least 1, got 0.5"),
])
def test_faults(args, message):
    ids, *others = args
    with pytest.raises(ValueError) as caught:
        corrupt_spans(ids, np.random.default_rng(0), *others)
    assert str(caught.value) == message
