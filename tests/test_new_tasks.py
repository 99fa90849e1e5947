"""The study of new tasks: what is held out is never seen, episodes are what they should be, and the command in its short form."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import new_tasks
from benchmarks.new_tasks import (FAST, NEW, QUESTIONS, SEEN, Kept, Tasks, adapted, averages, learner, others, spread,
                                  t0_scores, table)
from minipeft.data import Tokenizer, toy
from minipeft.prompting import ManyTasks


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder("toy:encoder")


def test_classes_that_are_new_were_never_seen():
    assert set(NEW) == set(SEEN) and all(not set(NEW[task]) & set(SEEN[task]) for task in NEW)
    for seed in range(5):
        four = others("reading", 4, seed)
        assert set(four) == set(QUESTIONS) - {"reading"} and others("reading", 1, seed) == four[:1]
        assert set(others("reading", 11, seed)) == set(toy.TASKS) - {"reading"} and len(toy.TASKS) == 12
    assert len({others("reading", 1, seed)[0] for seed in range(9)}) > 1
    assert set(others("topic", 11, 0)) == set(toy.TASKS) - {"topic"}
    assert all(set((*NEW[task], *SEEN[task])) == set(toy.TASKS[task].labels) for task in ("topic", "reading", "question"))


def test_an_episode(tokenizer):
    tasks = Tasks({"topic": ("food", "film", "music"), "reading": ("red", "blue")}, 3, 12, tokenizer)
    assert len(tasks.pairs) == 6 + 2 and len(set(tasks.pairs)) == 8
    support, query = tasks.draw(np.random.default_rng(0), 2, 8, ("reading", "blue", "red"))
    assert sorted(support.labels.tolist()) == [0, 0, 1, 1] and query.labels.tolist().count(0) == 4
    texts = lambda batch: [tokenizer.decode(ids[mask]) for ids, mask in zip(batch.input_ids, batch.attention_mask)]
    assert not set(texts(support)) & set(texts(query)) and query.token_type_ids.max() == 1
    again, _ = tasks.draw(np.random.default_rng(0), 2, 8, ("reading", "blue", "red"))
    assert np.array_equal(support.input_ids, again.input_ids)
    other, _ = tasks.draw(np.random.default_rng(0), 2, 8, ("reading", "red", "blue"))
    assert set(texts(other)) != set(texts(support)) or other.labels.tolist() != support.labels.tolist()


def test_adapting_leaves_the_start_as_it_was(tokenizer):
    model, parameters = learner(0)
    before = {path: p.data.copy() for path, p in parameters.items()}
    tasks = Tasks({"topic": ("food", "film")}, 1, 8, tokenizer)
    scale = replace(FAST, query=8)
    first = adapted(model, parameters, tasks, scale, 2, 0.3, 0)
    assert first == adapted(model, parameters, tasks, scale, 2, 0.3, 0) and 0 <= first <= 100
    assert all(np.array_equal(before[path], p.data) for path, p in parameters.items())


def test_what_was_found_is_kept(tmp_path):
    told, made = [], []
    kept = Kept(tmp_path / "deep" / "found.json", told.append)
    make = lambda: made.append(1) or {"a": 2.5}
    assert kept("one", make) == kept("one", make) == {"a": 2.5} and len(made) == 1 and told == ["one: {'a': 2.5}"]
    assert Kept(tmp_path / "deep" / "found.json", told.append)("one", make) == {"a": 2.5} and len(made) == 1


def test_a_held_out_task_is_asked_and_not_trained(monkeypatch):
    seen, works_of = [], new_tasks.works_of
    monkeypatch.setattr(new_tasks, "works_of", lambda task, scale, seed, part, *more: seen.append((task, part)) or works_of(
        task, scale, seed, part, *more))
    found = t0_scores("reading_size", 11, replace(FAST, t0_steps=2), 0)
    assert [task for task, part in seen if part == "test"] == ["reading_size"]
    assert {task for task, part in seen if part == "train"} == set(toy.TASKS) - {"reading_size"}
    assert len(found["scores"]) == 4 and 0 <= found["median"] <= 1


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(new_tasks, "STARTS", ("scratch", "maml", "prototypes, trained"))
    assert new_tasks.main(["--fast", "--json", "j.json", "--markdown", "m.md"]) == 0
    found = json.loads((tmp_path / "j.json").read_text())
    assert set(found["meta"]) == {"scratch", "maml", "prototypes, trained"} and len(found["t0"]["reading"]["1"]) == 2
    assert list(found["t0"]) == ["reading", "topic"]
    text = (tmp_path / "m.md").read_text()
    assert "| held out | before | after 1 other |" in text and "| start | 1 of each class |" in text
    assert "maml" in capsys.readouterr().out
    assert table({"x": {1: [50.0, 60.0]}}, "c", ["d"]) == (["c", "d"], [["x", "55.0 ± 7.1"]])
    found = [{"median": 0.5, "quartiles": (0.4, 0.7)}, {"median": 0.6, "quartiles": (0.2, 0.9)}]
    assert spread(found) == "55.0 ± 7.1 (30 to 80)" and spread(None) == ""


def test_averages_are_over_what_was_asked_of_every_task():
    of = lambda *medians: [{"median": m, "quartiles": (m, m)} for m in medians]
    found = {"reading": {0: of(0.1, 0.3), 2: of(0.5, 0.9), 11: of(0.2, 0.2)},
             "reading_size": {0: of(0.3, 0.7), 2: of(0.7, 0.9), 11: of(0.4, 0.6)},
             "topic": {0: of(0.5, 0.8), 2: None, 11: of(0.6, 0.7)}}
    assert averages(found) == {"mean of the questions": ["35.0 ± 21.2", "75.0 ± 21.2", "35.0 ± 7.1"],
                               "mean of all": ["45.0 ± 21.2", "", "45.0 ± 7.1"]}


def test_a_step_is_over_several_batches(monkeypatch):
    seen = []
    monkeypatch.setattr("minipeft.training.fit", lambda model, parameters, work, settings: seen.append((work, settings)))
    t0_scores("topic", 2, replace(FAST, t0_steps=5, t0_batches=3), 0)
    ((work, settings),) = seen
    assert settings.accumulate == 3 and work.number_of_batches() == 15


def test_every_task_is_drawn_as_often_however_many_templates_it_has(monkeypatch):
    seen = []
    class Seen(ManyTasks):
        def __init__(self, works, **more):
            super().__init__(works, **more)
            seen.append(self)

    monkeypatch.setattr("minipeft.prompting.ManyTasks", Seen)
    t0_scores("reading", 11, replace(FAST, t0_steps=1), 0)
    (many,), share = seen, {}
    for name, p in zip(many.names, many.p):
        share[name.split()[0]] = share.get(name.split()[0], 0) + p
    assert len(share) == 11 and all(p == pytest.approx(1 / 11) for p in share.values())
