"""Verbalizers: words and classes, words that are no token, and a softmax that ignores every other word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.data import toy, train_wordpiece
from minipeft.prompting import Verbalizer, class_scores, restricted_softmax


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(toy.passages(500), 600)


def test_words_as_the_command_line_gives_them():
    verbalizer = Verbalizer.parse("great=positive, good = positive,terrible=negative")
    assert verbalizer.labels == ("positive", "negative") and verbalizer.words["positive"] == ["great", "good"]
    assert Verbalizer.parse("great=positive,terrible=negative", ("negative", "positive")).labels == ("negative", "positive")


@pytest.mark.parametrize("text, labels, message", [
    ("great=positive", None, "verbalizer: expected words for at least 2 classes, got 1"),
    ("great", None, "verbalizer: expected WORD=CLASS,WORD=CLASS,..., got 'great'"),
    ("great=a,=b", None, "verbalizer: expected WORD=CLASS,WORD=CLASS,..., got '=b'"),
    ("great=a,great=b", None, "verbalizer: the word 'great' stands twice, for 'a' and 'b'"),
    ("great=a,great=a,bad=b", None, "verbalizer: the word 'great' stands twice, for 'a' and 'a'"),
    ("great=a,bad=c", ("a", "b"), "verbalizer: the data has the classes a, b, got 'c'"),
    ("great=a", ("a", "b"), "verbalizer: the class 'b' has no word"),
])
def test_faults(text, labels, message):
    with pytest.raises(ValueError) as caught:
        Verbalizer.parse(text, labels)
    assert str(caught.value) == message


def test_words_that_are_not_one_token(tokenizer):
    with pytest.raises(ValueError) as caught:
        Verbalizer({"a": "wonderfully", "b": "bad"}).ids(tokenizer)
    assert str(caught.value) == ("verbalizer: 'wonderfully' is not one token of this model but wonderful ##ly; expected a word of "
                                 "its vocabulary, such as wonderful")
    with pytest.raises(ValueError, match=r"^verbalizer: '\$' is not one token of this model but \[UNK\]; expected a word of its "
                                         r"vocabulary; --search-words finds some that fit the classes$"):
        Verbalizer({"a": "$", "b": "bad"}).ids(tokenizer)
    assert [each.tolist() for each in Verbalizer({"a": ["good", "great"], "b": "bad"}).ids(tokenizer)] == [
        [tokenizer.id_of("good"), tokenizer.id_of("great")], [tokenizer.id_of("bad")]]


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(2, 4))
def test_the_restricted_softmax_sums_to_one_and_ignores_the_rest(seed, rows, classes):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, classes)
    chosen = rng.permutation(30)[:sizes.sum()]
    ids = np.split(chosen, np.cumsum(sizes)[:-1])
    logits = 5 * rng.standard_normal((rows, 30))
    q = restricted_softmax(class_scores(F.Tensor(logits), ids).data)
    assert q.shape == (rows, classes) and np.allclose(q.sum(axis=-1), 1)
    slow = np.exp([[np.mean([row[i] for i in each]) for each in ids] for row in logits])
    assert np.allclose(q, slow / slow.sum(axis=1, keepdims=True))
    others = np.setdiff1d(np.arange(30), chosen)
    logits[:, others] += 100 * rng.standard_normal((rows, len(others)))
    assert np.array_equal(q, restricted_softmax(class_scores(F.Tensor(logits), ids).data))
    assert np.allclose(restricted_softmax(np.array([[1e4, 0.0]])), [[1, 0]])
