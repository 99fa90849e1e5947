"""Templates: what is filled where, that texts are cut and the template never, and where each kind of model is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import Example, Tokenizer, toy, train_wordpiece
from minipeft.data.tokenizer import DIALECTS
from minipeft.prompting import Template
from minipeft.prompting.templates import SENTINEL

PATTERN = "{text} it was {mask} ."
KIND = {"bert": "masked", "gpt2": "causal", "t5": "seq2seq"}
FAMILIES = pytest.mark.parametrize("family", list(DIALECTS))


@pytest.fixture(scope="module")
def tokenizers():
    texts = toy.passages(500)
    return {family: train_wordpiece(texts, 600, family) for family in DIALECTS}


def encode(tokenizers, family, pattern, text, text2=None, length=60):
    tokenizer = tokenizers[family]
    (row,), cut = Template(pattern).encode(tokenizer, [Example(text, text2, None)], length, KIND[family])
    return row, tokenizer.decode(row.ids, skip_special_tokens=False), cut


def test_what_each_kind_of_model_reads(tokenizers):
    row, shown, cut = encode(tokenizers, "bert", PATTERN, "the soup was good .")
    assert shown == "[CLS] the soup was good. it was [MASK]. [SEP]" and cut == 0
    assert row.ids[row.place] == tokenizers["bert"].mask_id and set(row.types) == {0}
    row, shown, _ = encode(tokenizers, "gpt2", PATTERN, "the soup was good .")
    assert shown == "the soup was good. it was" and row.place == len(row.ids) - 1
    row, shown, _ = encode(tokenizers, "t5", PATTERN, "the soup was good .")
    assert shown == f"the soup was good. it was {SENTINEL}. </s>" and row.place == 1


def test_a_pair_may_stand_in_any_order(tokenizers):
    _, shown, _ = encode(tokenizers, "bert", "{text2} ? {mask} , {text}", "the soup was good", "was it bad")
    assert shown == "[CLS] was it bad? [MASK], the soup was good [SEP]"
    assert Template("{{{text}}} {mask}").fill("a", word="b") == "{a} b"
    assert Template("{text2} / {mask} / {text}").fill("one", "two", "yes") == "two / yes / one"


@FAMILIES
def test_an_empty_text(family, tokenizers):
    row, shown, _ = encode(tokenizers, family, PATTERN, "")
    assert shown == {"bert": "[CLS] it was [MASK]. [SEP]", "gpt2": "it was", "t5": f"it was {SENTINEL}. </s>"}[family]
    row, shown, _ = encode(tokenizers, family, "{text}{mask}", "")
    assert len(row.ids) == {"bert": 3, "gpt2": 1, "t5": 2}[family] and 0 <= row.place < max(len(row.ids), 2)


@given(st.integers(0, 2**32), st.integers(8, 40), st.sampled_from(list(DIALECTS)), st.booleans())
def test_texts_are_cut_and_the_template_never(tokenizers, seed, length, family, pair):
    import numpy as np

    rng = np.random.default_rng(seed)
    words = lambda: " ".join(rng.choice(["soup", "good", "not", "waiter", "wonderful", "zzz", "."], rng.integers(0, 40)))
    pattern = "{text2} , {text} it was {mask} ?" if pair else "{text} it was {mask} ?"
    text, text2 = words(), words() if pair else None
    row, shown, cut = encode(tokenizers, family, pattern, text, text2, length)
    _, whole, _ = encode(tokenizers, family, pattern, text, text2, 10_000)
    tokenizer = tokenizers[family]
    assert len(row.ids) <= length and cut == (len(encode(tokenizers, family, pattern, text, text2, 10_000)[0].ids) > length)
    assert cut or shown == whole
    assert "it was" in shown and (family == "gpt2" or shown.removesuffix(" [SEP]").removesuffix(" </s>").endswith("?"))
    if cut:  # as much as fits stands there, but for a word that takes two tokens at the seam
        assert len(row.ids) >= length - 2
    if family == "bert":
        assert row.ids[row.place] == tokenizer.mask_id


def test_a_text_that_holds_a_mask_itself(tokenizers):
    mask = tokenizers["bert"].mask_id
    row, _, _ = encode(tokenizers, "bert", "{text} it was {mask} .", "a [MASK] and [MASK]")
    assert [i for i, number in enumerate(row.ids) if number == mask][2] == row.place
    row, _, _ = encode(tokenizers, "bert", "{mask} , {text}", "a [MASK]")
    assert row.place == 1


@pytest.mark.parametrize("pattern, message", [
    ("{text} it was", "template: expected {mask} once, got it 0 times in '{text} it was'"),
    ("{mask} or {mask}", "template: expected {mask} once, got it 2 times in '{mask} or {mask}'"),
    ("{text} {text} {mask}", "template: expected {text} once, got it 2 times in '{text} {text} {mask}'"),
    ("{sentence} {mask}", "template: expected the fields {text}, {text2} and {mask}, got {sentence} in '{sentence} {mask}'"),
    ("{} {mask}", "template: expected the fields {text}, {text2} and {mask}, got {} in '{} {mask}'"),
    ("{text!r} {mask}", "template: expected the fields {text}, {text2} and {mask}, got {text} in '{text!r} {mask}'"),
    ("{text} {mask", "template: '{text} {mask': expected '}' before end of string; write {text} and {mask}, and {{ for a brace"),
])
def test_patterns_that_are_none(pattern, message):
    with pytest.raises(ValueError) as caught:
        Template(pattern)
    assert str(caught.value) == message


def test_no_room_and_no_gap(tokenizers):
    with pytest.raises(ValueError) as caught:
        encode(tokenizers, "bert", PATTERN, "the soup", length=5)
    assert str(caught.value) == ("max_length: the template '{text} it was {mask} .' alone takes more than 5 tokens; "
                                 "give a larger one")
    with pytest.raises(ValueError, match="^template: this tokenizer has no mask token$"):
        Template(PATTERN).encode(tokenizers["gpt2"], [Example("a", None, 0)], 9, "masked")
    with pytest.raises(ValueError, match="^template: this tokenizer has no sentinel <extra_id_0>$"):
        Template(PATTERN).encode(tokenizers["bert"], [Example("a", None, 0)], 9, "seq2seq")


def test_the_tokenizer_shortens_behind_a_token(tokenizers):
    tokenizer: Tokenizer = tokenizers["bert"]
    assert tokenizer.shortened("the soup was", 2) == "the soup" and tokenizer.shortened("the soup", 9) == "the soup"
    assert tokenizer.shortened("the soup", 0) == "" == tokenizer.shortened("", 3)
    assert tokenizer.piece_of(tokenizer.mask_id) == "[MASK]" and tokenizer.id_of("[MASK]") == tokenizer.mask_id


@FAMILIES
def test_the_template_is_whole_where_the_tokenizer_would_cut_sooner(tokenizers, family):
    """A tokenizer that says it reads 12 tokens, and a prompt that may have 40."""
    tokenizer = tokenizers[family]
    limited = Tokenizer(tokenizer._inner, {**tokenizer.settings, "model_max_length": 12})
    text = "the soup was good and the cake was nice and the waiter was great ."
    assert Template(PATTERN).encode(limited, [Example(text)], 40, KIND[family]) == Template(PATTERN).encode(
        tokenizer, [Example(text)], 40, KIND[family])
    contexts = [["the song was very dull and the concert was poor and the album was bad . it was bad . "]]
    assert Template(PATTERN).encode(limited, [Example(text)], 60, KIND[family], contexts) == Template(PATTERN).encode(
        tokenizer, [Example(text)], 60, KIND[family], contexts)
