"""Demonstrations: who is drawn, what the prompt reads, what is left out when it is too long, and how predictions are averaged."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft.data import Dataset, Example, Tokenizer, toy
from minipeft.methods import METHODS
from minipeft.prompting import (ClozeClassification, Demonstrations, RankClassification, Template, Verbalizer, kind_of,
                                separator_of, text_vectors)
from minipeft.training import Settings, fit

VERBALIZER = Verbalizer({"negative": ["bad", "terrible"], "positive": ["good", "great"]})
TEMPLATE = Template("{text} it was {mask} .")
ARCHS = pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])


@pytest.fixture(scope="module")
def reviews():
    return toy.dataset("sentiment", "easy", seed=8, train=12, dev=30, test=5)


def work_on(arch, dataset, demonstrations, length=250, kind=ClozeClassification, **more):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    verbalizer = Verbalizer({"negative": "bad", "positive": "good"}) if kind is RankClassification else VERBALIZER
    return model, tokenizer, kind(tokenizer, dataset, model.config, TEMPLATE, verbalizer, length, 8,
                                  demonstrations=demonstrations, **more)


@ARCHS
def test_the_model_reads_solved_examples_and_then_the_question(arch):
    train = [Example("the soup was dull .", None, 0), Example("the cake was nice .", None, 1)]
    dataset = Dataset({"train": train, "dev": [Example("the song was poor .", None, 0)]}, ("negative", "positive"))
    _, tokenizer, work = work_on(arch, dataset, Demonstrations(train, seed=3))
    read = tokenizer.decode(work.encodings["dev"][0].ids, skip_special_tokens=False)
    solved = ("the soup was dull. it was bad.", "the cake was nice. it was good.")
    assert all(each in read for each in solved)
    assert read.index("the song was poor. it was") > max(read.index(each) for each in solved)
    place = work.places["dev"][0]
    if arch == "encoder":
        assert work.encodings["dev"][0].ids[place] == tokenizer.mask_id
    if arch == "decoder":
        assert place == len(work.encodings["dev"][0].ids) - 1


def test_a_demonstration_with_the_mask_in_its_text_does_not_move_the_gap():
    train = [Example("the [MASK] was dull .", None, 0), Example("the cake was nice .", None, 1)]
    dataset = Dataset({"train": train, "dev": [Example("so [MASK] .", None, 0)]}, ("negative", "positive"))
    _, tokenizer, work = work_on("encoder", dataset, Demonstrations(train))
    ids = work.encodings["dev"][0].ids
    assert [i for i, number in enumerate(ids) if number == tokenizer.mask_id][-1] == work.places["dev"][0]
    assert ids.count(tokenizer.mask_id) == 3


def test_each_class_has_as_many_and_no_question_its_own_answer(reviews):
    train = reviews.splits["train"]
    drawn = Demonstrations(train, per_class=2, seed=1).draw(train, TEMPLATE, VERBALIZER, 0)
    for question, texts in zip(train, drawn):
        assert len(texts) == 4 and len(set(texts)) == 4
        assert sum(text.rstrip().endswith("bad .") for text in texts) == 2
        assert not any(text.startswith(question.text + " it was") for text in texts)


def test_without_a_number_all_stand_there_in_an_order_of_each_sets_own(reviews):
    train, question = reviews.splits["train"], reviews.splits["dev"][:1]
    demonstrations = Demonstrations(train, sets=2)
    first, second = (demonstrations.draw(question, TEMPLATE, VERBALIZER, number)[0] for number in (0, 1))
    assert sorted(first) == sorted(second) and first != second and len(first) == len(train)
    assert first == demonstrations.draw(question, TEMPLATE, VERBALIZER, 0)[0]
    each = demonstrations.draw(reviews.splits["dev"], TEMPLATE, VERBALIZER, 0)
    assert all(texts == first for texts in each)  # before every question, a text without content too, stands the same
    few = Demonstrations(train, per_class=3).draw(reviews.splits["dev"], TEMPLATE, VERBALIZER, 0)
    assert len({tuple(texts) for texts in few}) > 1  # while a few are drawn for each


def test_similar_ones_are_drawn_from_the_nearer_half():
    angle = {"q": 0.0, "a": 0.1, "b": 0.2, "c": 2.0, "d": 3.0, "e": 0.3, "f": 0.1, "g": 1.5, "h": 2.5}
    vectors = lambda texts: np.array([[np.cos(angle[t]), np.sin(angle[t])] for t in texts])
    train = [Example(t, None, int(t in "efgh")) for t in "abcdefgh"]
    for seed in range(12):
        (texts,) = Demonstrations(train, per_class=1, vectors=vectors, seed=seed).draw([Example("q")], TEMPLATE, VERBALIZER, 0)
        assert {text[0] for text in texts} <= set("abef")


def test_each_question_is_read_once():
    asked = []
    vectors = lambda texts: asked.append(list(texts)) or np.ones((len(texts), 2))
    demonstrations = Demonstrations([Example(t, None, int(t in "cd")) for t in "abcd"], per_class=1, sets=3, vectors=vectors)
    for number in range(3):
        demonstrations.draw([Example(t) for t in "xyx"], TEMPLATE, VERBALIZER, number)
    assert asked == [["a", "b", "c", "d"], ["x", "y"]]


def test_what_parts_them():
    for arch, expected in (("encoder", " "), ("decoder", "<|endoftext|>"), ("seq2seq", " ")):
        model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
        assert separator_of(tokenizer, kind_of(model.config)) == expected
    train = [Example("the soup was dull .", None, 0), Example("the cake was nice .", None, 1)]
    (texts,) = Demonstrations(train, separator="<|endoftext|>").draw([Example("q")], TEMPLATE, VERBALIZER, 0)
    tokenizer = Tokenizer.from_folder("toy:decoder")
    assert tokenizer.encode("".join(texts)).count(tokenizer.eos_id) == 2


@ARCHS
def test_vectors_are_the_means_of_the_states_one_text_at_a_time(arch):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    texts = ["the soup was great .", "anna has a red ball in the hall .", "no"]
    found = text_vectors(model, tokenizer, 40)(texts)
    for text, vector in zip(texts, found):
        ids = np.array([tokenizer.encode(text)])
        states = (model.encode(ids)[0] if arch == "seq2seq" else model(ids).last_hidden_state).data[0].mean(axis=0)
        assert np.allclose(vector, states / np.linalg.norm(states), atol=1e-5)
    attach(model, METHODS["prompt"](num_virtual_tokens=3), rng=np.random.default_rng(0))
    for text, vector in zip(texts, text_vectors(model, tokenizer, 40)(texts)):  # the words' states alone, behind virtual tokens
        ids = np.array([tokenizer.encode(text)])
        states = (model.encode(ids)[0] if arch == "seq2seq" else model(ids).last_hidden_state).data[0]
        mean = states[len(states) - ids.shape[1]:].mean(axis=0)
        assert len(states) == ids.shape[1] + 3 and np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_the_nearest_demonstrations_stay_longest():
    """What stands first is left out first, and each goes whole."""
    tokenizer = Tokenizer.from_folder("toy:decoder")
    contexts = [["the soup was dull . ", "the cake was nice . ", "the song was poor . "]]
    lengths = {}
    for room in range(30, 8, -1):
        (filled,), cut = TEMPLATE.encode(tokenizer, [Example("the plot was good .")], room, "causal", contexts)
        text = tokenizer.decode(filled.ids)
        shown = [c.strip().replace(" .", ".") for c in contexts[0] if c.split(" .")[0] in text]
        lengths[len(shown)] = (shown, cut)
        assert text.endswith("the plot was good. it was")
    assert lengths[2] == (["the cake was nice.", "the song was poor."], 0) and lengths[1] == (["the song was poor."], 0)
    assert lengths[0] == ([], 0)


@ARCHS
def test_whole_demonstrations_are_left_out_first_and_the_template_never(arch, reviews):
    _, tokenizer, work = work_on(arch, reviews, Demonstrations(reviews.splits["train"]), length=60)
    plain = work_on(arch, reviews, None, length=60)[2]
    assert work.truncated == plain.truncated == 0
    for with_them, alone in zip(work.encodings["dev"], plain.encodings["dev"]):
        assert len(alone.ids) <= len(with_them.ids) <= 60
        read = tokenizer.decode(with_them.ids, skip_special_tokens=False)
        assert read.count("it was") == read.count(". it was")
    assert any(len(a.ids) > len(b.ids) for a, b in zip(work.encodings["dev"], plain.encodings["dev"]))


def test_the_prediction_is_the_mean_over_the_sets(reviews):
    train = reviews.splits["train"]
    model, _, work = work_on("decoder", reviews, Demonstrations(train, per_class=1, sets=3, seed=5))
    each = []
    for number in range(3):
        single = Demonstrations(train, per_class=1, seed=5)
        single.draw = lambda *args, number=number, draw=single.draw: draw(*args[:3], number)
        each.append(work_on("decoder", reviews, single)[2].predict(model, "dev"))
    assert np.allclose(work.predict(model, "dev"), np.mean(each, axis=0), atol=1e-6)
    assert not np.allclose(each[0], each[1], atol=1e-3)


def test_ranking_has_demonstrations_too(reviews):
    train = reviews.splits["train"]
    model, _, work = work_on("seq2seq", reviews, Demonstrations(train, per_class=1), kind=RankClassification)
    assert work.predict(model, "dev").shape == (30, 2)
    assert min(len(e.ids) for e in work.encodings["dev"]) > 20


def test_training_draws_them_anew_in_each_epoch(reviews):
    model, _, work = work_on("encoder", reviews, Demonstrations(reviews.splits["train"], per_class=1))
    seen = []
    for epoch in range(2):
        work.training_batches(np.random.default_rng(epoch))
        seen.append([e.ids for e in work.encodings["train"]])
    assert seen[0] != seen[1]
    attachment = attach(model, METHODS["lora"](), rng=np.random.default_rng(0))
    history = fit(model, attachment.named_parameters(), work, Settings(lr=5e-3, epochs=8, batch_size=8))
    assert np.mean(history["losses"][-4:]) < np.mean(history["losses"][:4])


@pytest.mark.parametrize("settings, message", [
    ({"examples": []}, "expected at least 1 example and 1 set, got 0 and 1"), ({"sets": 0}, "got 2 and 0"),
    ({"per_class": 2}, "expected 1 to 1 of each class, as many as there are of class 0, got 2"), ({"per_class": 0}, "got 0"),
    ({"examples": [Example(text, None, 0) for text in "abc"], "per_class": 3, "vectors": lambda texts: np.ones((len(texts), 2))},
     "expected 1 to 2 of each class, as many as the more similar half has of class 0, got 3")])
def test_what_cannot_be_drawn_is_refused(settings, message):
    examples = [Example("a", None, 0), Example("b", None, 1)]
    with pytest.raises(ValueError, match=message):
        Demonstrations(**{"examples": examples, **settings})
