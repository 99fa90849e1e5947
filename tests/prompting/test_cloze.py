"""Classifying by a gap: the same as reading the whole logits there, on each kind of model, with any method attached."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft.data import Dataset, Example, Tokenizer, toy
from minipeft.methods import METHODS
from minipeft.prompting import ClozeClassification, Template, Verbalizer
from minipeft.training import Settings, fit

WORDS = {"negative": ["bad", "terrible"], "positive": ["good", "great"]}
ARCHS = pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])


@pytest.fixture(scope="module")
def reviews():
    return toy.dataset("sentiment", "medium", seed=5, train=40, dev=60, test=10)


def load(arch):
    return load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")


def work_on(arch, dataset, pattern="{text} it was {mask} .", words=WORDS, length=60, **more):
    model, tokenizer = load(arch)
    return model, ClozeClassification(tokenizer, dataset, model.config, Template(pattern), Verbalizer(words), length, 8, **more)


@ARCHS
def test_zero_shot_is_far_above_chance(arch, reviews):
    model, work = work_on(arch, reviews)
    scores = work.evaluate(model, "dev")
    assert scores["accuracy"] > 0.8 and work.truncated == 0 and scores["score"] == scores["accuracy"]


@ARCHS
def test_the_scores_are_those_of_the_whole_logits(arch, reviews):
    """One text at a time, without padding, every place projected onto the whole vocabulary."""
    model, work = work_on(arch, reviews)
    tokenizer = Tokenizer.from_folder(f"toy:{arch}")
    p, expected = work.predict(model, "dev"), []
    for e in reviews.splits["dev"]:
        if arch == "encoder":
            ids = np.array([tokenizer.encode(f"{e.text} it was [MASK] .")])
            z = model(ids).logits.data[0, ids[0].tolist().index(tokenizer.mask_id)]
        elif arch == "decoder":
            z = model(np.array([tokenizer.encode(f"{e.text} it was")])).logits.data[0, -1]
        else:
            ids = np.array([tokenizer.encode(f"{e.text} it was <extra_id_0> .")])
            start = np.array([[model.config.decoder_start_token_id, tokenizer.id_of("<extra_id_0>")]])
            z = model(ids, decoder_input_ids=start).logits.data[0, -1]
        s = np.array([np.mean([z[tokenizer.id_of(word)] for word in each]) for each in WORDS.values()], np.float64)
        expected.append(np.exp(s) / np.exp(s).sum())
    assert np.allclose(p, expected, atol=2e-5)


@pytest.mark.parametrize("arch, method", [
    *((arch, method) for arch in ("encoder", "decoder", "seq2seq") for method in ("full", "lora", "prefix", "prompt")),
    ("encoder", "bitfit"), ("decoder", "houlsby")])
def test_any_method_trains_it_and_the_base_comes_back(arch, method, reviews):
    model, work = work_on(arch, reviews)
    before = work.predict(model, "dev")
    attachment = attach(model, METHODS[method](), rng=np.random.default_rng(0))
    lr = {"full": 1e-3, "bitfit": 1e-2, "prefix": 2e-2, "prompt": 2e-2}.get(method, 5e-3)
    history = fit(model, attachment.named_parameters(), work, Settings(lr=lr, epochs=6, batch_size=8))
    assert np.mean(history["losses"][-5:]) < 0.8 * np.mean(history["losses"][:3])
    assert not np.allclose(before, work.predict(model, "dev"), atol=1e-3)
    if attachment.method.keeps_base:
        with attachment.disabled():
            assert np.array_equal(before, work.predict(model, "dev"))


def test_virtual_tokens_move_the_gap(reviews):
    """A prompt of the vectors of words is those words written before the text, which take the first positions."""
    model, tokenizer = load("encoder")
    words = tokenizer.encode("the film was dull", add_special_tokens=False)
    ids = np.array([tokenizer.encode("the soup it was [MASK] .")])
    attach(model, METHODS["prompt"](num_virtual_tokens=4, initial="labels", words=words), rng=np.random.default_rng(0))
    dataset = Dataset({"dev": [Example("the soup", None, 0)]}, ("negative", "positive"))
    work = ClozeClassification(tokenizer, dataset, model.config, Template("{text} it was {mask} ."), Verbalizer(WORDS), 60, 8)
    batch, plain = work.collate(np.array([0]), "dev"), load("encoder")[0]
    z = plain(np.concatenate([[words], ids], axis=1)).logits.data[0, 4 + batch.places[0]]
    s = [np.mean([z[tokenizer.id_of(word)] for word in each]) for each in WORDS.values()]
    assert np.allclose(work.scores(model, batch).data[0], s, atol=1e-4)


def test_a_random_upstream_gradient_goes_through_the_label_words_only(reviews):
    model, work = work_on("encoder", reviews)
    scores = work.scores(model, work.collate(np.arange(8)))
    scores.backward(np.random.default_rng(0).standard_normal(scores.shape).astype(np.float32))
    g = model.head.output.bias.grad
    words = sorted(np.concatenate(work.words))
    assert sorted(np.nonzero(g)[0]) == words
    assert g[work.words[0]] == pytest.approx(g[work.words[0][0]], rel=1e-5)  # each word of a class has its share


@ARCHS
def test_output_tuning_moves_the_label_words(arch, reviews):
    model, work = work_on(arch, reviews)
    for part in ("embedding", "bias"):
        attachment = attach(model, METHODS["output"](part=part, words=[int(i) for i in np.concatenate(work.words)]), name=part)
        assert attachment.trainable == 4 * (model.config.hidden_size if part == "embedding" else 1)
        history = fit(model, attachment.named_parameters(), work, Settings(lr=0.01, epochs=6, batch_size=8))
        assert np.mean(history["losses"][-5:]) < np.mean(history["losses"][:5])
        attachment.detach()


@pytest.mark.parametrize("change, message", [
    ({"words": {"positive": "good", "negative": "bad"}},
     "verbalizer: expected words for the classes negative, positive, got words for positive, negative"),
    ({"pattern": "{text} {text2} {mask}"}, "template: '{text} {text2} {mask}' has {text2}, and the data no second text"),
    ({"metric": "bleu"}, "metric: expected one of accuracy, f1, matthews, got 'bleu'"),
])
def test_faults(change, message, reviews):
    with pytest.raises(ValueError) as caught:
        work_on("encoder", reviews, **change)
    assert str(caught.value) == message


def test_a_causal_model_is_not_asked_about_what_it_does_not_read(reviews):
    for arch in ("encoder", "seq2seq"):
        work_on(arch, reviews, pattern="is it {mask} ? {text}")
    with pytest.raises(ValueError) as caught:
        work_on("decoder", reviews, pattern="is it {mask} ? {text}")
    assert str(caught.value) == ("template: a causal model reads what stands before {mask} alone, "
                                 "and in 'is it {mask} ? {text}' {text} stands behind it; put {mask} last")
