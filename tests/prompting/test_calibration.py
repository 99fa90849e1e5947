"""Calibration: an input without content is worth the same for every class, and what is equal stays equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import load_pretrained
from minipeft.data import Dataset, Example, Tokenizer, toy
from minipeft.prompting import ClozeClassification, Demonstrations, RankClassification, Template, Verbalizer
from minipeft.prompting.calibration import Calibration, calibrated
from minipeft.prompting.toy_prompts import prompts


def drawn(rng, *shape):
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 4))
def test_the_content_free_input_becomes_uniform(seed, classes, inputs):
    rng = np.random.default_rng(seed)
    q_cf = drawn(rng, inputs, classes) + 1e-3
    assert np.allclose(calibrated(q_cf.mean(axis=0)[None], q_cf), 1 / classes)
    q = drawn(rng, 7, classes)
    out = calibrated(q, q_cf)
    assert np.allclose(out.sum(axis=1), 1) and np.allclose(calibrated(q, np.ones(classes) / classes), q)
    slow = [[a / b for a, b in zip(row, q_cf.mean(axis=0))] for row in q]
    assert np.allclose(out, [np.array(row) / sum(row) for row in slow])


def test_it_is_a_bias_in_the_logits():
    rng = np.random.default_rng(0)
    s, q_cf = rng.standard_normal((5, 3)), drawn(rng, 3)
    q = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    moved = np.exp(s - np.log(q_cf))
    assert np.allclose(calibrated(q, q_cf), moved / moved.sum(axis=1, keepdims=True))


def test_nothing_to_divide_by():
    with pytest.raises(ValueError, match="^calibration: an input without content has no probability of one class; "
                                         "there is nothing to divide by$"):
        calibrated(np.ones((1, 2)) / 2, [1.0, 0.0])


def test_a_biased_model_is_set_right():
    """A bias on one label word pushes all to its class; calibration takes it away again."""
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    dataset = toy.dataset("sentiment", seed=1, train=10, dev=80, test=10)
    work = ClozeClassification(tokenizer, dataset, model.config, Template("{text} it was {mask} ."),
                               Verbalizer({"negative": "bad", "positive": "good"}), 60, 16)
    right = work.evaluate(model, "dev")["accuracy"]
    model.head.output.bias.data[tokenizer.id_of("good")] += 12
    pushed, set_right = work.evaluate(model, "dev")["accuracy"], Calibration(work, tokenizer, 60)
    assert pushed < 0.65 < 0.8 < right and set_right.evaluate(model, "dev")["score"] > pushed + 0.15
    p = set_right.predict(model, Calibration.SPLIT)
    assert p.shape == (3, 2) and not np.allclose(p, 0.5)  # of three inputs the mean is set right, and none by itself


@pytest.mark.parametrize("arch, kind", [("encoder", ClozeClassification), ("decoder", ClozeClassification),
                                        ("seq2seq", ClozeClassification), ("decoder", RankClassification),
                                        ("seq2seq", RankClassification)])
def test_the_models_own_content_free_input_becomes_uniform(arch, kind):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    dataset = toy.dataset("rating", seed=1, train=3, dev=4, test=2)
    work = kind(tokenizer, dataset, model.config, *prompts("rating")[2], 60, 2)
    before, set_right = work.predict(model, "dev"), Calibration(work, tokenizer, 60, inputs=("N/A",))
    assert (np.allclose(set_right.predict(model, Calibration.SPLIT), 0.25)
            and not np.allclose(work.predict(model, Calibration.SPLIT), 0.25, atol=0.02))
    ratio = set_right.predict(model, "dev") / before  # the same for every text, but for what makes the sum one
    assert np.allclose(ratio / ratio[:, :1], ratio[0] / ratio[0, 0])


@pytest.mark.parametrize("arch, kind", [("encoder", ClozeClassification), ("decoder", RankClassification)])
@pytest.mark.parametrize("settings", [{}, {"sets": 2}, {"per_class": 1, "sets": 2}])
def test_what_is_divided_out_stands_behind_the_same_demonstrations(arch, kind, settings):
    """The slow way: one text at a time, and behind its own demonstrations each input without content."""
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    dataset = toy.dataset("sentiment", "easy", seed=1, train=6, dev=5, test=1)
    template, verbalizer = Template("{text} it was {mask}"), Verbalizer({"negative": "bad", "positive": "good"})
    inputs = ("", "N/A")
    shown = Demonstrations(dataset.splits["train"], separator=" ", seed=3, **settings)
    work = kind(tokenizer, Dataset({"dev": dataset.splits["dev"]}, dataset.labels), model.config, template, verbalizer, 60, 4,
                demonstrations=shown)
    found, expected = Calibration(work, tokenizer, 60, inputs).predict(model, "dev"), []
    for number in range(shown.sets):
        work.fill("dev", number)
        for example, context in zip(dataset.splits["dev"], list(work.contexts["dev"])):
            assert len(context) in (1, 2, 3, 4)
            q = []
            for text in (example.text, *inputs):
                words = "".join(context) + f"{text} it was {{mask}}"
                one = kind(tokenizer, Dataset({"dev": [Example("", None, None)]}, dataset.labels), model.config, Template(words),
                           verbalizer, 100, 1)
                q.append(one.predict(model, "dev")[0])
            ratio = q[0] / np.mean(q[1:], axis=0)
            expected.append(ratio / ratio.sum())
    expected = np.mean(np.reshape(expected, (shown.sets, 5, 2)), axis=0)
    assert np.allclose(found, expected, atol=2e-5) and not np.allclose(found, work.predict(model, "dev"), atol=1e-2)
