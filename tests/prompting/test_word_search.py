"""The search for label words: against trying every assignment one by one, on a model whose words are known."""

from itertools import product

import numpy as np
import pytest

from minipeft import load_pretrained
from minipeft.data import Tokenizer, toy
from minipeft.prompting import ClozeClassification, Template, Verbalizer
from minipeft.prompting import word_search as module
from minipeft.prompting.verbalizers import whole_words
from minipeft.prompting.word_search import gap_log_probabilities, null_verbalizer, search_words

ARCHS = pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])


def made(arch, task="sentiment", train=40, pattern="{text} it was {mask} ."):
    dataset = toy.dataset(task, "easy", seed=2, train=train, dev=100, test=5)
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    words = list(whole_words(tokenizer).values())[:len(dataset.labels)]
    verbalizer = Verbalizer(dict(zip(dataset.labels, words)))
    return model, tokenizer, ClozeClassification(tokenizer, dataset, model.config, Template(pattern), verbalizer, 80, 8)


@ARCHS
def test_the_words_that_are_found_classify_better_than_words_by_lot(arch):
    model, tokenizer, work = made(arch)
    found = search_words(model, work, tokenizer, per_class=10, keep=4)
    accuracies = [accuracy for _, accuracy in found]
    assert len(found) == 4 and accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.85
    dataset = toy.dataset("sentiment", "easy", seed=2, train=40, dev=100, test=5)
    on = lambda verbalizer: ClozeClassification(tokenizer, dataset, model.config, work.template, verbalizer, 80, 8)
    score = lambda verbalizer: on(verbalizer).evaluate(model, "dev")["accuracy"]
    known = [word for word in ("good", "bad", "great", "terrible", "nice", "awful", "poor")]
    null = [score(null_verbalizer(work.labels, tokenizer, np.random.default_rng(seed), avoid=known)) for seed in range(6)]
    assert score(found[0][0]) > 0.85 > np.mean(null) + 0.15


def test_it_is_the_best_of_all_assignments():
    model, tokenizer, work = made("encoder", train=30)
    found = search_words(model, work, tokenizer, per_class=6, keep=36)
    log_p, words, targets = gap_log_probabilities(model, work), whole_words(tokenizer), work.targets["train"]
    ids = np.array(list(words))
    best = [sorted(ids, key=lambda i: -log_p[targets == c, i].sum())[:6] for c in range(2)]
    by_hand = {}
    for a, b in product(*best):
        if a != b:
            right = [(log_p[n, b] > log_p[n, a]) == bool(t) for n, t in enumerate(targets)]
            by_hand[words[a], words[b]] = np.mean(right)
    assert {tuple(w[0] for w in v.words.values()): accuracy for v, accuracy in found} == pytest.approx(by_hand)
    assert found[0][1] == max(by_hand.values())


def test_with_many_classes_the_assignments_are_pruned(monkeypatch):
    monkeypatch.setattr(module, "MOST", 40)
    model, tokenizer, work = made("encoder", "topic", train=60, pattern="{text} this is about {mask} , and it was good .")
    ((verbalizer, accuracy),) = search_words(model, work, tokenizer, per_class=8, keep=1)
    assert accuracy > 0.9 and len({w[0] for w in verbalizer.words.values()}) == 6
    assert sum(words[0] == label for label, words in verbalizer.words.items()) >= 4


def test_gaps_are_those_of_the_whole_vocabulary():
    model, _, work = made("decoder", train=9)
    log_p = gap_log_probabilities(model, work)
    assert log_p.shape == (9, model.config.vocab_size) and np.allclose(np.exp(log_p).sum(axis=1), 1)


@ARCHS
def test_whole_words_are_one_token_each(arch):
    tokenizer = Tokenizer.from_folder(f"toy:{arch}")
    words = whole_words(tokenizer)
    assert {"good", "topic" if "topic" in words.values() else "great", "kitchen"} <= set(words.values())
    assert not any(word.startswith("#") or not word.isalpha() for word in words.values())
    assert all(tokenizer.encode(f" {word}", add_special_tokens=False) == [number] for number, word in words.items())


def test_a_null_verbalizer_is_drawn_by_its_generator_and_avoids_words():
    tokenizer = Tokenizer.from_folder("toy:encoder")
    first, again, other = (null_verbalizer("abc", tokenizer, np.random.default_rng(seed)).words for seed in (1, 1, 2))
    assert first == again != other
    few = set(list(whole_words(tokenizer).values())[:2])
    avoid = set(whole_words(tokenizer).values()) - few
    assert {w[0] for w in null_verbalizer("ab", tokenizer, np.random.default_rng(0), avoid=avoid).words.values()} == few
    with pytest.raises(ValueError, match="verbalizer: 3 classes need as many words, and this vocabulary has 2"):
        null_verbalizer("abc", tokenizer, np.random.default_rng(0), avoid=avoid)


def test_a_class_without_an_example_is_named():
    model, tokenizer, work = made("encoder", train=10)
    work.targets["train"][:] = 1
    with pytest.raises(ValueError, match="needs an example of every class, and there is none of negative"):
        search_words(model, work, tokenizer)


def test_the_works_own_words_do_not_matter():
    """The work's own verbalizer has no part in the search."""
    model, tokenizer, work = made("encoder", train=20)
    first = search_words(model, work, tokenizer, per_class=5, keep=3)
    work.words = [np.array([7]), np.array([9])]
    second = search_words(model, work, tokenizer, per_class=5, keep=3)
    assert [(v.words, a) for v, a in first] == [(v.words, a) for v, a in second]
