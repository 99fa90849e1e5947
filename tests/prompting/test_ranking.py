"""Rank classification: the log likelihoods are those of a plain loop, in training and prediction, with virtual tokens or not."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft import autograd as F
from minipeft.data import Dataset, Example, Tokenizer, toy
from minipeft.methods import METHODS
from minipeft.methods.targets import linear_paths
from minipeft.prompting import RankClassification, Template, Verbalizer
from minipeft.training import Settings, fit

ANSWERS = {"no": "bad . no", "yes": "good", "maybe": "not very good ."}
EXAMPLES = [Example("the soup was good .", None, 1), Example("the match seemed very dull and the goal was poor .", None, 0),
            Example("", None, 2)]
ARCHS = pytest.mark.parametrize("arch", ["decoder", "seq2seq"])


def work_on(arch, examples=EXAMPLES, answers=ANSWERS, pattern="{text} it was {mask}", length=40, **more):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    dataset = Dataset({"train": examples, "dev": examples}, tuple(answers))
    return model, tokenizer, RankClassification(tokenizer, dataset, model.config, Template(pattern), Verbalizer(answers),
                                                length, 2, **more)


def slow(model, tokenizer, arch, text, answer):
    """[log p of each token of an answer], one forward pass for each, without padding."""
    out, written = [], []
    for token in tokenizer.encode(answer, add_special_tokens=False):
        if arch == "decoder":
            z = model(np.array([tokenizer.encode(f"{text} it was".strip()) + written])).logits.data[0, -1]
        else:
            start = [model.config.decoder_start_token_id, tokenizer.id_of("<extra_id_0>"), *written]
            source = np.array([tokenizer.encode(f"{text} it was <extra_id_0>".strip())])
            z = model(source, decoder_input_ids=np.array([start])).logits.data[0, -1]
        z = z.astype(np.float64)
        out.append(z[token] - np.log(np.exp(z - z.max()).sum()) - z.max())
        written.append(token)
    return out


@ARCHS
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("method", [None, "prompt", "lora"])
def test_likelihoods_are_those_of_a_plain_loop(arch, normalised, method):
    model, tokenizer, work = work_on(arch, normalised=normalised)
    if method:
        attachment = attach(model, METHODS[method](), rng=np.random.default_rng(0))
        for path, parameter in attachment.named_parameters().items():  # non-zero V, too
            parameter.data += 0.05 * np.random.default_rng(len(path)).standard_normal(parameter.shape).astype(np.float32)
    expected = np.array([[(np.mean if normalised else np.sum)(slow(model, tokenizer, arch, e.text, answer))
                          for answer in ANSWERS.values()] for e in EXAMPLES])
    found = work.log_likelihoods(model, work.collate(np.arange(3), "dev"))
    assert np.allclose(found, expected, atol=1e-4)
    q = np.exp(expected - expected.max(axis=1, keepdims=True))
    assert np.allclose(work.predict(model, "dev"), q / q.sum(axis=1, keepdims=True), atol=1e-4)


@ARCHS
@pytest.mark.parametrize("normalised", [True, False])
def test_scores_are_the_likelihoods_with_gradients(arch, normalised, rng):
    """Against finite differences, by a random upstream gradient."""
    model, _, work = work_on(arch, normalised=normalised)
    model.astype(np.float64)
    batch, weight = work.collate(np.arange(3), "dev"), model.get(linear_paths(model)[-1]).weight
    g, step, index = rng.normal(size=(3, 3)), 1e-5, (5, 7)
    scores = work.scores(model, batch)
    assert np.allclose(scores.data, work.log_likelihoods(model, batch), atol=1e-10)
    (found,) = F.grad(scores, [weight], g)
    kept, ends = weight.data[index], []
    for sign in (1, -1):
        weight.data[index] = kept + sign * step
        ends.append((g * work.log_likelihoods(model, batch)).sum())
    assert found[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5) and abs(found[index]) > 1e-4


@ARCHS
def test_the_loss_is_the_mean_over_the_right_answers_tokens(arch):
    model, tokenizer, work = work_on(arch)
    every = [value for e in EXAMPLES for value in slow(model, tokenizer, arch, e.text, list(ANSWERS.values())[e.label])]
    assert work.loss(model, work.collate(np.arange(3))).item() == pytest.approx(-np.mean(every), abs=1e-4)


@ARCHS
def test_training_makes_the_right_answers_the_most_probable(arch):
    texts = toy.dataset("sentiment", seed=2, train=48, dev=40, test=10)
    model, _, work = work_on(arch, texts.splits["train"], {"negative": "bad . no", "positive": "good . yes"}, length=70)
    attachment = attach(model, METHODS["lora"](), rng=np.random.default_rng(0))
    before = work.evaluate(model, "train")["loss"]
    fit(model, attachment.named_parameters(), work, Settings(lr=5e-3, epochs=4, batch_size=8))
    after = work.evaluate(model, "train")
    assert after["accuracy"] > 0.9 and after["loss"] < before


def test_room_is_left_for_the_longest_answer():
    long = [Example("the soup was good . " * 20, None, 0), *EXAMPLES]
    _, _, work = work_on("decoder", long, length=20)
    assert max(len(e.ids) for e in work.encodings["dev"]) == 20 - 4 and work.truncated == 2  # train and dev
    _, _, work = work_on("seq2seq", long, length=20)
    assert max(len(e.ids) for e in work.encodings["dev"]) == 20


def test_masked_models_write_no_answers():
    with pytest.raises(ValueError) as caught:
        work_on("encoder")
    assert str(caught.value) == ("ranking: a masked model fills in one token; expected a decoder or an encoder-decoder, "
                                 "or classify by the gap")


@pytest.mark.parametrize("answers, message", [
    ({"a": ["very good", "great"], "b": "bad"}, "ranking: expected one answer for each class, got 2 for 'a': very good, great; "
     "give one of them, or several words at a gap, without ranking"),
    ({"a": "very good", "b": "bad", "c": "Very  good"}, "ranking: 'very good' and 'Very  good' are the same for this model, very "
     "good; give each class an answer of its own")])
def test_answers_that_cannot_be_told_apart(answers, message):
    with pytest.raises(ValueError) as caught:
        work_on("decoder", [Example("a", None, 0)], answers)
    assert str(caught.value) == message
