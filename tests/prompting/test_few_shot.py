"""Few examples: K of each class twice, never the same, and five draws that are fixed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import Dataset, toy
from minipeft.prompting.few_shot import SEEDS, data_advantage, few_shot


@pytest.fixture(scope="module")
def reviews():
    return toy.dataset("rating", seed=0, train=200, dev=30, test=40)


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_k_of_each_class_in_train_and_dev(shots, reviews):
    drawn = few_shot(reviews, shots, 13)
    for split in ("train", "dev"):
        assert Counter(e.label for e in drawn.splits[split]) == Counter({label: shots for label in range(4)} if shots else {})
        assert set(drawn.splits[split]) <= set(reviews.splits["train"])
    assert not set(drawn.splits["train"]) & set(drawn.splits["dev"])
    assert drawn.splits["test"] == reviews.splits["test"] and drawn.labels == reviews.labels


def test_the_draws_are_five_and_fixed(reviews):
    assert SEEDS == (13, 21, 42, 87, 100)
    drawn = [few_shot(reviews, 4, seed) for seed in (*SEEDS, 13)]
    assert drawn[0] == drawn[5] and len({tuple(each.splits["train"]) for each in drawn}) == 5


def test_dev_is_test_where_there_is_no_test(reviews):
    without = Dataset({split: reviews.splits[split] for split in ("train", "dev")}, reviews.labels)
    assert few_shot(without, 2, 21).splits["test"] == reviews.splits["dev"]
    alone = Dataset({"train": reviews.splits["train"]}, reviews.labels)
    assert set(few_shot(alone, 2, 21).splits) == {"train", "dev"}


def test_too_few(reviews):
    fewest = min(Counter(e.label for e in reviews.splits["train"]).values())
    with pytest.raises(ValueError, match=rf"^shots: the class '\w+' has \d+ training examples; 90 for training and 90 for "
                                         r"choosing need 180; give at most \d+$"):
        few_shot(reviews, 90, 13)
    assert few_shot(reviews, fewest // 2, 13)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.lists(st.floats(0, 1), min_size=2, max_size=7))
def test_the_advantage_is_the_area_between_the_curves(head, prompt):
    """Against a sum over thousands of accuracies; random curves, which may fall and stand still."""
    count = min(len(head), len(prompt))
    sizes, head, prompt = np.cumsum(np.arange(count) + 1.0), np.round(head[:count], 2), np.round(prompt[:count], 2)
    found = data_advantage(sizes, head, prompt)
    curves = [np.maximum.accumulate(c) for c in (head, prompt)]
    low, high = max(c[0] for c in curves), min(c[-1] for c in curves)
    if low >= high:
        assert found is None
        return
    total, points = 0.0, low + (high - low) * (np.arange(4000) + 0.5) / 4000
    for a in points:
        needed = []
        for curve in curves:
            i = next(i for i in range(count) if curve[i] >= a)
            needed.append(sizes[i] if i == 0 else sizes[i - 1] + (sizes[i] - sizes[i - 1]) * (a - curve[i - 1])
                          / (curve[i] - curve[i - 1]))
        total += needed[0] - needed[1]
    assert found == pytest.approx(total / 4000, abs=0.02 * sizes[-1])


def test_the_advantage_of_two_lines():
    assert data_advantage([0, 10, 20], [0.5, 0.6, 0.7], [0.6, 0.7, 0.8]) == pytest.approx(10)
    assert data_advantage([0, 100], [0.2, 0.6], [0.3, 0.9]) == pytest.approx(100 * (0.45 - 0.2) / 0.4 - 100 * (0.45 - 0.3) / 0.6)
    assert data_advantage([0, 100], [0.2, 0.3], [0.9, 0.95]) is None
