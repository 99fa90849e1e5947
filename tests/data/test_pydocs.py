"""CPython's manual as a corpus: plain sentences, each once, and a task whose splits do not meet."""

import re
import sys
from collections import Counter

import pytest

from minipeft.data import corpus, paragraphs, pydocs, section_task


@pytest.fixture
def topics(monkeypatch):
    """``topics(name=text, ...)``: put other topics in the manual's place."""
    return lambda **texts: monkeypatch.setattr(pydocs, "_topics", lambda: texts)


def sentences(subject, count):
    """As many paragraphs about a subject, all different."""
    return "\n\n".join(f"The {subject} of number {i} is explained by this sentence." for i in range(count))


# ---- paragraphs of this Python ---------------------------------------------------------------------------------


def test_paragraphs_are_clean():
    found = paragraphs()
    assert len(found) > 600  # 1273 in Python 3.11
    for topic, text in found:
        assert 40 <= len(text) <= 600 and topic
        assert text == " ".join(text.split())  # one line, single spaces
        assert not re.search(r">>>|::=|\*\*\*\*|====|----|^[+|]", text), text
        assert len(re.findall("[A-Za-z]{2,}", text)) >= 6
        assert sum(c.isalpha() or c.isspace() for c in text) > 0.6 * len(text), text
    prose = sum(bool(re.search(r"[.:?!][\"'”’)\]]*(\s*\[\d+\])*$", text)) for _, text in found)
    assert prose == len(found)


def test_each_paragraph_is_listed_once_and_the_order_is_fixed():
    found = paragraphs()
    assert len({text for _, text in found}) == len(found)
    assert found == paragraphs() and corpus() == [text for _, text in found]


def test_a_part_of_a_larger_topic_is_listed_under_the_larger_one():
    by_topic = Counter(topic for topic, _ in paragraphs())
    assert by_topic["compound"] > 50 and by_topic["if"] == by_topic["while"] == by_topic["customization"] == 0


# ---- cleaning, on texts made for it ----------------------------------------------------------------------------


def test_lines_are_joined_and_marks_removed(topics):
    topics(one='The "one" statement\n*******************\n\nIt has *special* read-\nonly values, and *see\nthe end* of **PEP 1** '
               'for  more\non "*args" and "**kwargs".\n')
    assert corpus() == ['It has special read-only values, and see the end of PEP 1 for more on "*args" and "**kwargs".']


def test_items_of_a_list_are_paragraphs(topics):
    topics(one="* The first item says something, and it says it\n  on two lines.\n"
               "* The second item says something else in one line.\n\n"
               "1. The third item has a number and not a star.\n\n[1] The footnote explains what the text left open.\n")
    assert corpus() == ["The first item says something, and it says it on two lines.",
                        "The second item says something else in one line.",
                        "The third item has a number and not a star.", "The footnote explains what the text left open."]


@pytest.mark.parametrize("block", [
    "A heading of several words that ends in a full stop.\n====================================================",
    ">>> print(the, words, of, a, session, and, more)\nThe words of a session and more.",
    'if_stmt ::= "if" assignment_expression ":" suite and then some more words.',
    'if_stmt: "if" assignment_expression ":" suite ("elif" assignment_expression ":" suite)',  # Python 3.14's form
    "+------------------+-----------+\n| A table of words | and more. |\n+------------------+-----------+",
    "class pdb.Pdb(completekey='tab', stdin=None, stdout=None, skip=None)",
    "   def function_of_some_kind(first, second, third):\n       return first of them all.",
    "   for item in sequence:\n       print(item, end='', flush=True)",
    "alpha = [1, 2]; beta = {3: 4}; gamma = (5, 6); delta += sum(alpha) * max(beta) ** 2.",
    "Six words of text, hardly more.",  # 31 characters
])
def test_what_is_no_prose_is_left_out(topics, block):
    kept = "This paragraph is here to show that other paragraphs are read."
    topics(one=f"{block}\n\n{kept}\n")
    assert corpus() == [kept]


def test_a_long_paragraph_is_cut_between_sentences(topics):
    sentence = "This sentence is repeated {} times, so that the paragraph becomes far too long for one."
    text = " ".join(sentence.format(i) for i in range(20))
    topics(one=text)
    assert len(corpus()) > 2 and " ".join(corpus()) == text
    assert all(len(piece) <= 600 and piece.endswith("one.") for piece in corpus())


# ---- the task --------------------------------------------------------------------------------------------------


def test_sections_of_this_python():
    task = section_task(0)
    assert 2 <= len(task.labels) <= 8 and len(set(task.labels)) == len(task.labels)
    assert all(title and title[0].isalnum() and "*" not in title for title in task.labels)
    assert "Compound statements" in task.labels and "Basic customization" not in task.labels  # a part of "Special method names"
    texts = {split: [e.text for e in examples] for split, examples in task.splits.items()}
    everything = sum(texts.values(), [])
    assert set(texts) == {"train", "dev", "test"} and len(set(everything)) == len(everything)
    assert len(texts["train"]) > 250 and len(texts["dev"]) > 50 and len(texts["test"]) > 80
    assert not task.has_pairs


def test_sections_are_labelled_rightly_and_balanced_enough():
    task = section_task(3)
    where, starts = dict((text, topic) for topic, text in paragraphs()), {}
    for examples in task.splits.values():
        counts = Counter(e.label for e in examples)
        assert sorted(counts) == list(range(len(task.labels)))
        assert max(counts.values()) <= 3.5 * min(counts.values())
        for e in examples:
            starts.setdefault(e.label, set()).add(where[e.text])
    assert all(len(topic) == 1 for topic in starts.values()) and len(set(map(frozenset, starts.values()))) == len(task.labels)


def test_the_seed_draws_the_splits():
    assert section_task(1) == section_task(1)
    assert {e.text for e in section_task(1).splits["test"]} != {e.text for e in section_task(2).splits["test"]}


def test_a_short_manual_gives_a_smaller_task(topics):
    topics(big="Big \"topic\"\n***********\n\n" + sentences("lion", 300) + "\n\n" + sentences("cub", 40),
           part="Part\n****\n\n" + sentences("cub", 40),  # stands in "big" as well
           second="\nSecond\n******\n\n" + sentences("mouse", 30), small="Small\n*****\n\n" + sentences("ant", 23))
    task = section_task(0)
    assert task.labels == ("Big topic", "Second")
    sizes = Counter(e.label for examples in task.splits.values() for e in examples)
    assert sizes == {0: 90, 1: 30}  # at most three times the smallest
    assert {s: len(e) for s, e in task.splits.items()} == {"train": 78, "dev": 18, "test": 24}


def test_too_short_a_manual(topics):
    topics(one="One\n***\n\n" + sentences("lion", 30), two="Two\n***\n\n" + sentences("ant", 5))
    with pytest.raises(ValueError, match="pydoc_data: expected at least 2 sections with 24 paragraphs, got 1"):
        section_task(0)


def test_a_python_without_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"pydoc_data: this Python has no documentation text \(the module pydoc_data.topics\)"):
        corpus()
