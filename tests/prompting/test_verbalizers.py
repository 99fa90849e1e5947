"""Verbalizers: words and classes, words that are no token, and a softmax that ignores every other word."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.data import Tokenizer, toy, train_wordpiece
from minipeft.prompting import Verbalizer, class_scores, restricted_softmax, tokens_of, whole_words


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
    ("great=a,bad=b,", None, "verbalizer: expected WORD=CLASS,WORD=CLASS,..., got 'bad=b,'"),
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
    assert str(caught.value) == ("verbalizer: 'wonderfully' is not one token of this model but wonderful ##ly; expected a word "
                                 "of its vocabulary, such as wonderful")
    with pytest.raises(ValueError) as caught:
        Verbalizer({"a": "$", "b": "bad"}).ids(tokenizer)
    found = re.fullmatch(r"verbalizer: '\$' is not one token of this model but \[UNK\]; expected a word of its vocabulary, such "
                         r"as (\w+), (\w+), (\w+); --search-words finds some that fit the classes, given labelled data",
                         str(caught.value))
    assert set(found.groups()) <= set(whole_words(tokenizer).values()) and len(set(found.groups())) == 3
    assert [each.tolist() for each in Verbalizer({"a": ["good", "great"], "b": "bad"}).ids(tokenizer)] == [
        [tokenizer.id_of("good"), tokenizer.id_of("great")], [tokenizer.id_of("bad")]]


@pytest.mark.parametrize("words", [{"a": "Good", "b": "good"}, {"a": ["bad", "Good", "good"], "b": "great"}])
def test_words_that_are_one_token_together(tokenizer, words):
    with pytest.raises(ValueError) as caught:
        Verbalizer(words).ids(tokenizer)
    assert str(caught.value) == "verbalizer: 'Good' and 'good' are one token of this model, good; leave one of them out"


FOLDERS = pytest.mark.parametrize("folder", ["toy:encoder", "toy:decoder", "toy:seq2seq", "minilm", "bert-tiny", "stories260K"])


def tokenizer_of(folder, request):
    return Tokenizer.from_folder(folder if folder.startswith("toy:") else request.getfixturevalue("shared") / "models" / folder)


@FOLDERS
def test_a_words_tokens_are_those_it_has_behind_a_text(folder, request):
    tokenizer = tokenizer_of(folder, request)
    text = tokenizer.encode("it was", add_special_tokens=False)
    for word in ("good", "wonderfully", "bad", "day"):
        assert [*text, *tokens_of(tokenizer, [word])[0]] == tokenizer.encode(f"it was {word}", add_special_tokens=False)


@FOLDERS
def test_whole_words_are_one_token_there_and_so_are_the_words_that_are_offered(folder, request):
    tokenizer = tokenizer_of(folder, request)
    words = whole_words(tokenizer)
    assert len(words) > 80 and set(map(len, tokens_of(tokenizer, list(words.values())))) == {1}
    with pytest.raises(ValueError) as caught:
        Verbalizer({"a": "goodx" if folder != "stories260K" else "littles", "b": "good"}).ids(tokenizer)
    offered = str(caught.value).partition("such as ")[2].split(", ")
    assert "is not one token of this model but" in str(caught.value) and set(offered) <= set(words.values())


def test_words_of_a_llama(shared):
    """Its tokenizer puts a space before the first word of all, so that a space of ours would be one too many."""
    tokenizer = Tokenizer.from_folder(shared / "models/stories260K")
    ids = Verbalizer({"time": "day", "person": "friend"}).ids(tokenizer)
    assert [[tokenizer.piece_of(i) for i in each] for each in ids] == [["▁day"], ["▁friend"]]
    with pytest.raises(ValueError, match="verbalizer: 'Ж' is not one token of this model but"):
        Verbalizer({"time": "Ж", "person": "friend"}).ids(tokenizer)


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
