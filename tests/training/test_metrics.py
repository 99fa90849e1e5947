"""Accuracy, F1 and Matthews correlation at their edges, and by definitions other than those of the code."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.training import METRICS, accuracy, f1, matthews
from minipeft.training.metrics import confusion

PAIRS = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 1), min_size=n, max_size=n)] * 2))


@given(PAIRS)
def test_two_classes_by_the_four_counts(pair):
    predicted, actual = pair
    seen = list(zip(predicted, actual))
    tp, tn, fp, fn = (seen.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1)))
    assert accuracy(predicted, actual, 2) == pytest.approx((tp + tn) / len(actual))
    precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
    assert f1(predicted, actual, 2) == pytest.approx(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert matthews(predicted, actual, 2) == pytest.approx((tp * tn - fp * fn) / math.sqrt(under) if under else 0.0)


@given(PAIRS)
def test_symmetries(pair):
    predicted, actual = map(np.array, pair)
    assert matthews(predicted, actual, 2) == pytest.approx(matthews(actual, predicted, 2))
    assert matthews(1 - predicted, actual, 2) == pytest.approx(-matthews(predicted, actual, 2))
    assert f1(predicted, actual, 2) == pytest.approx(f1(actual, predicted, 2))
    assert accuracy(1 - predicted, actual, 2) == pytest.approx(1 - accuracy(predicted, actual, 2))


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 999))
def test_renaming_the_classes_changes_only_binary_f1(classes, n, seed):
    rng = np.random.default_rng(seed)
    predicted, actual, names = rng.integers(classes, size=n), rng.integers(classes, size=n), rng.permutation(classes)
    for name, metric in METRICS.items():
        if name != "f1" or classes > 2:
            assert metric(names[predicted], names[actual], classes) == pytest.approx(metric(predicted, actual, classes))


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 999))
def test_confusion_counts_pairs(classes, n, seed):
    rng = np.random.default_rng(seed)
    predicted, actual = rng.integers(classes, size=n), rng.integers(classes, size=n)
    assert confusion(predicted, actual, classes).tolist() == [
        [sum((actual == a) & (predicted == p)) for p in range(classes)] for a in range(classes)]


def test_all_right_and_all_wrong():
    actual = [0, 1, 2, 2, 1, 0]
    assert [m(actual, actual, 3) for m in METRICS.values()] == [1, 1, pytest.approx(1)]
    wrong = [1, 2, 0, 0, 2, 1]
    assert accuracy(wrong, actual, 3) == f1(wrong, actual, 3) == 0 and matthews(wrong, actual, 3) == pytest.approx(-0.5)


def test_one_class_predicted_or_present():
    assert matthews([1, 1, 1], [0, 1, 0], 2) == matthews([0, 1, 0], [1, 1, 1], 2) == matthews([1, 1], [1, 1], 2) == 0
    assert f1([0, 0, 0], [0, 1, 0], 2) == 0 and f1([1, 1, 1], [0, 1, 0], 2) == pytest.approx(0.5)
    assert f1([0, 0], [0, 0], 2) == 0 and accuracy([0, 0], [0, 0], 2) == 1  # class 1 is neither predicted nor there
    assert f1([0, 0, 1], [0, 0, 1], 3) == pytest.approx(2 / 3)  # class 2 counts 0 in the mean


def test_none_at_all():
    assert [metric([], [], classes) for metric in METRICS.values() for classes in (2, 3)] == [0] * 6


def test_results_are_plain_numbers():
    """They go into JSON."""
    assert all(type(metric(np.array([0, 1]), np.array([1, 1]), 2)) is float for metric in METRICS.values())
