"""Scores of written texts: BLEU and ROUGE-L against slow definitions, references of different number, and other scripts."""

import math
import re
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import arguments
from minipeft.training import BLEU_TOKENIZERS, METRICS, TEXT_METRICS, bleu, exact, rouge_l, text_scores
from minipeft.training.text_metrics import Words, check_libraries, without_spaces

text = st.lists(st.sampled_from("a b c d".split()), max_size=9).map(" ".join)
told = st.tuples(text, st.lists(text, min_size=1, max_size=4))
corpora = st.lists(told, min_size=1, max_size=4).map(lambda rows: tuple(zip(*rows)))


def grams(words, n):
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def slow_bleu(written, references):
    """Papineni et al.'s equations, word by word; an order without a match counts 1 / 2, 1 / 4, ... of one (NIST's smoothing)."""
    words, nearest, right, total = 0, 0, [0] * 4, [0] * 4
    for out, own in zip(written, references):
        out, own = out.split(), [reference.split() for reference in own]
        words += len(out)
        nearest += min((abs(len(reference) - len(out)), len(reference)) for reference in own)[1]
        for n in range(4):
            for gram, count in grams(out, n + 1).items():
                total[n] += count
                right[n] += min(count, max(grams(reference, n + 1)[gram] for reference in own))
    if not right[0] or not total[3]:
        return 0.0
    unseen, product = 1, 1.0
    for n in range(4):
        unseen *= 1 if right[n] else 2
        product *= right[n] / total[n] if right[n] else 1 / (unseen * total[n])
    return 100 * min(1.0, math.exp(1 - nearest / words)) * product**0.25


def slow_rouge(written, references):
    def longest(a, b):  # by trying every subsequence
        return max(sum(bits) for bits in chosen(len(a)) if is_inside([w for w, bit in zip(a, bits) if bit], b))

    def chosen(n):
        return [[]] if n == 0 else [[bit, *rest] for rest in chosen(n - 1) for bit in (0, 1)]

    def is_inside(part, whole):
        rest = iter(whole)
        return all(word in rest for word in part)

    def f(out, reference):
        out, reference = out.split(), reference.split()
        common = longest(out, reference)
        return 2 * common / (len(out) + len(reference)) if common else 0.0

    return sum(max(f(out, reference) for reference in own) for out, own in zip(written, references)) / len(written)


@given(corpora)
def test_bleu_by_its_definition(corpus):
    assert bleu(*corpus) == pytest.approx(slow_bleu(*corpus), abs=1e-9)


@given(corpora)
def test_rouge_l_by_its_definition(corpus):
    written, references = corpus
    assert rouge_l(written, references) == pytest.approx(slow_rouge(written, references), abs=1e-12)


def test_a_reference_that_is_not_there_is_no_empty_reference():
    """A text of one word is nearer to an empty reference than to a long one: filled up with "" there would be no penalty."""
    written, references = ["a b c d", "a"], [("a b c d", "a b", "c"), ("a b c d e f",)]
    assert bleu(written, references) == pytest.approx(slow_bleu(written, references))
    filled = [references[0], (*references[1], "", "")]
    assert bleu(written, filled) > 1.1 * bleu(written, references)
    assert bleu(written[::-1], references[::-1]) == pytest.approx(bleu(written, references))


@given(corpora, st.randoms())
def test_the_order_of_texts_and_references_plays_no_part(corpus, random):
    rows = [(out, random.sample(own, len(own))) for out, own in zip(*corpus)]
    random.shuffle(rows)
    shuffled = text_scores([out for out, _ in rows], [own for _, own in rows])
    assert shuffled == pytest.approx(text_scores(*corpus))


def test_all_right_all_wrong_and_none():
    references = [("the film is very good", "good"), ("a story of it all",)]
    right = text_scores(["the film is very good", "a story of it all"], references)
    assert right == {"bleu": pytest.approx(100), "rouge_l": 1.0, "exact": 1.0}
    assert text_scores(["bad", ""], references) == text_scores([], []) == {"bleu": 0.0, "rouge_l": 0.0, "exact": 0.0}
    assert exact(["good"], [("the film", "good")]) == 1.0 and exact(["The  film ", "a"], [("The film",), ("A",)]) == 0.5
    assert exact(["it's red, i think.", "a b", "ab", "a."], [("it ' s red , i think .",), ("ab",), ("a b",), ("a",)]) == 0.25
    assert all(type(value) is float for value in text_scores(["a"], [("a",)]).values())  # they go into JSON


@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_words_of_ascii_are_the_librarys_own(text):
    from rouge_score.tokenizers import DefaultTokenizer

    assert Words().tokenize(text) == DefaultTokenizer().tokenize(text)


def test_words_of_other_scripts():
    assert Words().tokenize("Café, naïve!") == ["café", "naïve"] and Words().tokenize("Привет, мир") == ["привет", "мир"]
    assert Words().tokenize("我就是不能说no。") == list("我就是不能说") + ["no"] and Words().tokenize("カタcana") == ["カ", "タ", "cana"]
    assert Words().tokenize("हिन्दी cafe\u0301") == ["हिन्दी", "cafe\u0301"]  # marks belong to their letter
    assert rouge_l(["我不能说"], [("我就是不能说",)]) == pytest.approx(2 * 4 / (4 + 6))


def test_chinese_needs_its_own_tokenizer():
    written, references = ["我就是不能说是。"], [("我就是不能说不。", "再见")]
    assert bleu(written, references) == bleu(written, references, "none") == 0.0
    spaced = slow_bleu([" ".join(written[0])], [[" ".join(reference) for reference in references[0]]])
    assert [bleu(written, references, name) for name in ("zh", "char")] == pytest.approx([spaced] * 2) and spaced > 60
    assert without_spaces(references) and without_spaces([("これはペンです",)])
    assert not without_spaces([("a pen", "说")]) and not without_spaces([("12",)]) and not without_spaces([])


def test_an_unknown_tokenizer():
    with pytest.raises(ValueError, match="^bleu_tokenizer: expected one of 13a, intl, zh, char, none, got 'flores'$"):
        bleu(["a"], [("a",)], "flores")


@pytest.mark.parametrize("module, name", [("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")])
def test_a_library_that_is_missing(module, name, monkeypatch):
    check_libraries()
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    message = (f"{name}: the library is not installed, and texts are not scored without it; in the project's folder run: "
               'pip install ".[seq2seq]"')
    for call in (check_libraries, lambda: text_scores(["a"], [("a",)])):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


def test_the_command_line_offers_them_all():
    assert arguments.METRICS == (*METRICS, *TEXT_METRICS) and arguments.BLEU_TOKENIZERS == BLEU_TOKENIZERS
