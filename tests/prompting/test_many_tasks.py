"""Many tasks on one model: how often each is drawn, who trains on what, and training together against training alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import attach, load_pretrained
from minipeft.data import Tokenizer, toy
from minipeft.methods import METHODS, activate
from minipeft.prompting import (ClozeClassification, ManyTasks, Template, Verbalizer, attach_tasks, over_templates, parameters_of,
                                shares)
from minipeft.training import Settings, fit

PROMPTS = {"sentiment": ("{text} it was {mask} .", {"negative": "bad", "positive": "good"}),
           "topic": ("{text} this is about {mask} .", {topic: topic for topic in toy.TOPICS})}


def made(sizes=(24, 40), **more):
    model, tokenizer, works = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder"), {}
    for (name, (pattern, words)), size in zip(PROMPTS.items(), sizes):
        dataset = toy.dataset(name, "medium", seed=4, train=size, dev=20, test=30)
        works[name] = ClozeClassification(tokenizer, dataset, model.config, Template(pattern), Verbalizer(words), 80, 8)
    return model, works


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.floats(0.2, 50), st.none() | st.integers(1, 10**5))
def test_shares_follow_the_formula(sizes, temperature, limit):
    p = shares(sizes, temperature, limit)
    cut = [min(size, limit or size) for size in sizes]
    assert p.sum() == pytest.approx(1)
    for i in range(len(sizes)):
        for j in range(len(sizes)):
            assert np.log(p[i] / p[j]) == pytest.approx(np.log(cut[i] / cut[j]) / temperature, abs=1e-9)


def test_the_limits_of_the_temperature():
    assert shares([100, 300]).tolist() == [0.25, 0.75]
    assert np.allclose(shares([100, 300], 1e9), 0.5)
    assert shares([100, 300, 10**9], limit=300).tolist() == pytest.approx([1 / 7, 3 / 7, 3 / 7])
    # T0: two tasks, alike
    assert shares([600] * 6, limit=[150] * 4 + [300] * 2).tolist() == pytest.approx([1 / 8] * 4 + [1 / 4] * 2)
    for bad in ({"temperature": 0.0}, {"sizes": [3, 0]}):
        with pytest.raises(ValueError, match="expected a temperature above 0 and examples of every task"):
            shares(**{"sizes": [1, 2], **bad})


def test_an_epoch_has_batches_of_each_task_as_often_as_its_share():
    _, works = made((400, 100))
    many = ManyTasks(works, batches=2000)
    drawn = many.training_batches(np.random.default_rng(0))
    assert len(drawn) == many.number_of_batches() == 2000
    assert np.mean([name == "sentiment" for name, _ in drawn]) == pytest.approx(0.8, abs=0.03)
    seen = np.concatenate([indices for name, indices in drawn[:200] if name == "sentiment"])
    counts = np.bincount(seen, minlength=400)
    assert counts.max() - counts.min() <= 1  # round and round: each example once before any a second time
    assert ManyTasks(works).number_of_batches() == 50 + 13


def test_with_nothing_shared_training_together_is_training_alone():
    """SGD, so that a step of one task leaves no trace in the other; the same batches in the same order."""
    model, works = made()
    routes = attach_tasks(model, works, own=lambda: METHODS["lora"](rank=2), rng=np.random.default_rng(5))
    assert routes == {"sentiment": ("sentiment",), "topic": ("topic",)}
    before = {name: {k: v.copy() for k, v in model.attachments[name].arrays().items()} for name in works}
    many = ManyTasks(works, routes)
    settings = Settings(lr=0.5, epochs=1, batch_size=8, optimizer="sgd", schedule="constant", warmup=0.0, weight_decay=0.0,
                        clip=0.0)
    drawn = many.training_batches(np.random.default_rng(0))
    many.training_batches = lambda rng: drawn
    fit(model, parameters_of(model, routes), many, settings)
    for name, work in works.items():
        alone = load_pretrained("toy:encoder")
        attachment = attach(alone, METHODS["lora"](rank=2), name, np.random.default_rng(9))
        attachment.load_arrays(before[name])
        own = [indices for task, indices in drawn if task == name]
        assert own
        work.training_batches, work.number_of_batches = lambda rng, own=own: own, lambda own=own: len(own)
        fit(alone, attachment.named_parameters(), work, settings)
        together = model.attachments[name].arrays()
        for path, array in attachment.arrays().items():
            assert np.allclose(array, together[path], atol=1e-6), (name, path)
            assert not np.allclose(array, before[name][path], atol=1e-6) or path.endswith("U")


def test_a_shared_part_beside_a_vector_for_each_task():
    model, works = made()
    routes = attach_tasks(model, works, METHODS["task_embedding"], lambda: METHODS["lora"](rank=2), np.random.default_rng(0))
    assert routes == {"sentiment": ("shared", "sentiment"), "topic": ("shared", "topic")}
    parameters, width = parameters_of(model, routes), model.config.hidden_size
    own = [p.size for path, p in parameters.items() if not path.startswith("shared:")]
    assert own == [width, width] and len(parameters) == 2 + 4 * model.config.num_hidden_layers
    many = ManyTasks(works, routes)
    history = fit(model, parameters, many, Settings(lr=1e-2, epochs=2, batch_size=8))
    vectors = {task: model.attachments[task].arrays() for task in works}
    (first,), (second,) = (list(arrays.values()) for arrays in vectors.values())
    assert np.abs(first).max() > 0 and not np.allclose(first, second)
    assert set(history["evaluations"][-1]) >= {"score", "sentiment", "topic"}
    scores = history["evaluations"][-1]
    assert scores["score"] == pytest.approx((scores["sentiment"] + scores["topic"]) / 2)
    activate(model, *routes["topic"])
    assert works["topic"].evaluate(model, "dev")["score"] == scores["topic"]


def test_several_templates_have_a_median_and_quartiles():
    model, works = made()
    tokenizer, dataset = (Tokenizer.from_folder("toy:encoder"),
                          toy.dataset("sentiment", "medium", seed=4, train=8, dev=20, test=30))
    patterns = ("{text} it was {mask} .", "{text} all in all , it was {mask} .", "{text} {mask}", "{mask} . {text}")
    several = [ClozeClassification(tokenizer, dataset, model.config, Template(p), works["sentiment"].verbalizer, 80, 8)
               for p in patterns]
    found = over_templates(model, several)
    assert found["scores"] == [work.evaluate(model, "test")["score"] for work in several]
    assert found["median"] == pytest.approx(np.median(found["scores"]))
    assert found["quartiles"] == pytest.approx(tuple(np.percentile(found["scores"], (25, 75))))


def test_nothing_to_attach_is_refused():
    model, works = made()
    with pytest.raises(ValueError, match="expected a method for each task's own part, for what they share, or both"):
        attach_tasks(model, works)
    assert not vars(model).get("attachments")
    assert ManyTasks(works).evaluate(model, "nowhere") == {}
