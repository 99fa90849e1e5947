"""Corpora: what is held out is never drawn, a finite one is gone through in turn, and a file's texts are found."""

import sys

import numpy as np
import pytest

from minipeft.data import corpora, corpus, pydocs
from minipeft.data.corpora import TextCorpus, ToyCorpus, read_corpus, split_texts


def test_the_toy_world_has_no_end_and_holds_texts_out():
    toy = ToyCorpus()
    drawn = toy.draw(np.random.default_rng(3), 700)
    assert len(drawn) == 700 and drawn == toy.draw(np.random.default_rng(3), 700) != toy.draw(np.random.default_rng(4), 700)
    assert len(toy.held_out) == corpora.HELD and len(toy.sample) == corpora.CHUNK
    assert not set(toy.held_out) & set(drawn) and len(set(drawn)) > 650
    assert toy.held_out == ToyCorpus().held_out


def test_a_held_out_text_is_drawn_again_as_another(monkeypatch):
    toy = ToyCorpus()
    clean = ToyCorpus._drawn
    dirty = iter([[toy.held_out[0], "a", "b"], ["c"]])
    monkeypatch.setattr(ToyCorpus, "_drawn", staticmethod(lambda rng, count: next(dirty)))
    assert toy.draw(None, 3) == ["a", "b", "c"]
    monkeypatch.setattr(ToyCorpus, "_drawn", clean)


def test_a_finite_collection_is_gone_through_before_any_text_comes_again():
    texts = [f"text {number}" for number in range(50)]
    collection = TextCorpus("mine", texts, "some texts")
    assert collection.held_out == ["text 0", "text 20", "text 40"] and len(collection.sample) == 47
    drawn = collection.draw(np.random.default_rng(0), 100)
    assert sorted(drawn[:47]) == sorted(drawn[47:94]) == sorted(collection.sample) and drawn[:47] != drawn[47:94]
    assert len(drawn) == 100 and not set(drawn) & set(collection.held_out)


def test_of_a_large_collection_no_more_is_held_out_than_is_needed():
    large = TextCorpus("mine", ["x"] * 100_000, "")
    assert len(large.held_out) == corpora.HELD and len(large.held_out) + len(large.sample) == 100_000


def test_paragraphs_where_there_are_enough_else_lines():
    paragraphs = "\n\n".join(f"Line one of {n}\n  and two." for n in range(20))
    assert split_texts(paragraphs)[3] == "Line one of 3 and two." and len(split_texts(paragraphs)) == 20
    assert split_texts(paragraphs.replace("\n", "\r\n")) == split_texts(paragraphs)
    lines = "\n".join(f"line  {n} " for n in range(30)) + "\n\n\n"
    assert split_texts(lines) == [f"line {n}" for n in range(30)]


def test_corpora_by_name(tmp_path):
    manual = read_corpus("python-docs")
    assert sorted([*manual.held_out, *manual.sample]) == sorted(corpus())
    assert manual.note == (f"CPython's manual as Python {sys.version_info.major}.{sys.version_info.minor} has it; "
                           "other versions have other text")
    (tmp_path / "a.txt").write_text("\n".join(f"word {n}" for n in range(40)), encoding="utf-8")
    assert read_corpus(tmp_path / "a.txt").note == f"the texts in {tmp_path / 'a.txt'}"
    assert read_corpus("toy").name == "toy"


def test_faults(tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_corpus(tmp_path / "short.txt")
    assert str(caught.value) == (f"corpus: expected at least 20 texts (lines, or paragraphs between empty lines) in "
                                 f"{tmp_path / 'short.txt'}, got 2; give a longer file")
    monkeypatch.setattr(pydocs, "_topics", lambda: {})
    with pytest.raises(ValueError, match="^corpus: expected at least 20 texts"):
        read_corpus("python-docs")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="^pydoc_data: this Python has no documentation text"):
        read_corpus("python-docs")
