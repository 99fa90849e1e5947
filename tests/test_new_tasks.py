"""The study of new tasks: what is held out is never seen, episodes are what they should be, and the command in its short form."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import common, new_tasks
from benchmarks.new_tasks import (FAST, QUESTIONS, Kept, Tasks, adapted, average, classes_of, learner, others, over_tasks, spread,
                                  t0_scores, table)
from minipeft.data import Tokenizer, toy
from minipeft.prompting import ManyTasks


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder("toy:encoder")


def test_what_is_new_was_never_seen():
    seen, new = classes_of(None, FAST, 0)
    assert set(seen) == set(new) and all(not set(new[task]) & set(seen[task]) for task in new)
    for held in toy.TASKS:
        seen, new = classes_of(held, FAST, 3)
        assert list(new) == [held] and len(new[held]) == 2 and sorted([held, *seen]) == sorted(toy.TASKS)
        assert all(len(names) == min(FAST.most_classes, len(toy.TASKS[task].labels)) for task, names in seen.items())
        assert (seen, new) == classes_of(held, FAST, 3)
        for task, names in (*seen.items(), *new.items()):
            assert set(names) <= set(toy.TASKS[task].labels) and len(set(names)) == len(names)
    assert len({tuple(classes_of("topic", FAST, seed)[1]["topic"]) for seed in range(9)}) > 1


def test_the_tasks_to_train_on_are_all_but_the_one_in_an_order_of_the_seed():
    for seed in range(5):
        every = others("reading", seed)
        assert sorted(every) == sorted(set(toy.TASKS) - {"reading"}) and len(every) == 11 and every == others("reading", seed)
    assert len({others("reading", seed)[0] for seed in range(9)}) > 1
    assert QUESTIONS == tuple(task for task in toy.TASKS if task.startswith("reading"))


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
    first = adapted(model, parameters, tasks, replace(scale, steps=(2, 5)), 2, 0.3, 0)
    assert list(first) == [2, 5] and all(0 <= score <= 100 for score in first.values())
    for steps in (2, 5):  # going on gives what as many steps in one go give
        assert adapted(model, parameters, tasks, replace(scale, steps=(steps,)), 2, 0.3, 0) == {steps: first[steps]}
    assert all(np.array_equal(before[path], p.data) for path, p in parameters.items())


def test_what_was_found_is_kept(tmp_path):
    told, made, path = [], [], tmp_path / "deep" / "found.json"
    kept = Kept(path, {"steps": (1, 2), "seeds": 3}, told.append)
    make = lambda: made.append(1) or {"a": 2.5}
    assert kept("one", make) == kept("one", make) == {"a": 2.5} and len(made) == 1 and told == ["one: {'a': 2.5}"]
    assert Kept(path, {"steps": (1, 2), "seeds": 3}, told.append)("one", make) == {"a": 2.5} and len(made) == 1
    with pytest.raises(ValueError) as caught:
        Kept(path, {"steps": (1, 5), "seeds": 3}, told.append)
    assert str(caught.value) == f"{path}: holds results of other settings (steps was [1, 2], now [1, 5]); choose another --out"


def test_a_held_out_task_is_asked_and_not_trained(monkeypatch):
    seen, works_of = [], new_tasks.works_of
    monkeypatch.setattr(new_tasks, "works_of", lambda task, scale, seed, part: seen.append((task, part)) or works_of(
        task, scale, seed, part))
    found = t0_scores(["reading_size"], others("reading_size", 0), replace(FAST, t0_steps=2), 0)["reading_size"]
    assert [task for task, part in seen if part == "test"] == ["reading_size"]
    assert {task for task, part in seen if part == "train"} == set(toy.TASKS) - {"reading_size"}
    assert len(found["scores"]) == 4 and 0 <= found["median"] <= 1


def test_the_whole_kind_is_held_out(monkeypatch):
    seen = []
    monkeypatch.setattr(new_tasks, "t0_scores", lambda held, trained, scale, seed: seen.append((held, trained, seed)) or
                        {task: seed for task in held})
    found = new_tasks.kind(replace(FAST, t0_seeds=(3, 5)), lambda name, make: make())
    assert [(held, sorted(trained), seed) for held, trained, seed in seen] == [
        (QUESTIONS, sorted(set(toy.TASKS) - set(QUESTIONS)), seed) for seed in (3, 5)]
    assert found == {task: [3, 5] for task in QUESTIONS}


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(new_tasks, "STARTS", ("scratch", "maml", "prototypes, trained"))
    monkeypatch.setattr(new_tasks, "OF_TASKS", ("scratch", "prototypes"))
    assert new_tasks.main(["--fast", "--json", "j.json", "--markdown", "m.md"]) == 0
    found = json.loads((tmp_path / "j.json").read_text())
    rows = ["scratch, 1 steps", "scratch, 2 steps", "maml, 1 steps", "maml, 2 steps", "prototypes, trained"]
    assert {name: list(of_one) for name, of_one in found["meta"].items()} == {
        "new classes": rows, **{name: [*rows[:2], "prototypes"] for name in ("reading", "topic")}}
    assert len(found["t0"]["reading"]["1"]) == 2
    assert list(found["t0"]) == ["reading", "topic"]
    text = (tmp_path / "m.md").read_text()
    assert "| held out | before | after 1 other |\n" in text
    for row in ("mean of the questions", "mean of the others", "mean of all", "reading_thing", "mean"):
        assert text.count(f"| {row} |") == 1
    assert list(found["kind"]) == list(QUESTIONS) and len(found["kind"]["reading"]) == 2
    assert "| tasks trained on | questions among them | questions held out | accuracy (%) |\n" in text
    assert text.count("| start | 1 of each class |") == 2
    assert "maml" in capsys.readouterr().out
    assert table({"x": {1: [50.0, 60.0]}}, "c", ["d"]) == (["c", "d"], [["x", "55.0 ± 7.1"]])
    found = [{"median": 0.5, "quartiles": (0.4, 0.7)}, {"median": 0.6, "quartiles": (0.2, 0.9)}]
    assert spread(found) == "55.0 ± 7.1 (30 to 80)"


def test_an_average_is_over_tasks_and_its_deviation_over_seeds():
    of = lambda *medians: [{"median": m, "quartiles": (m, m)} for m in medians]
    found = {"reading": {0: of(0.1, 0.3), 11: of(0.2, 0.2)}, "reading_size": {0: of(0.3, 0.7), 11: of(0.4, 0.6)},
             "topic": {0: of(0.5, 0.8), 11: of(0.6, 0.7)}}
    assert average(found, ["reading", "reading_size"]) == ["35.0 ± 21.2", "35.0 ± 7.1"]
    assert average(found, list(found)) == ["45.0 ± 21.2", "45.0 ± 7.1"]


def test_a_mean_over_tasks_is_one_of_each_seed():
    found = {"topic": {"scratch": {1: [50.0, 60.0], 5: [70.0, 80.0]}}, "same": {"scratch": {1: [40.0, 70.0], 5: [60.0, 100.0]}}}
    assert over_tasks(found) == {"scratch": {1: [45.0, 65.0], 5: [65.0, 90.0]}}


def test_held_out_questions_by_how_many_of_their_kind_were_trained_on(monkeypatch):
    order = {"reading": ["reading_size", "topic", "reading_room"], "reading_size": ["topic", "reading", "reading_room"]}
    monkeypatch.setattr(new_tasks, "others", lambda held, seed: order[held])
    of = lambda *medians: [{"median": m} for m in medians]
    found = {"reading": {0: of(0.1), 2: of(0.5)}, "reading_size": {0: of(0.3), 2: of(0.9)}, "topic": {0: of(0.2), 2: of(0.2)}}
    assert new_tasks.by_kin(found, replace(FAST, t0_seeds=(7,))) == [["0", "0", "2", "20.0"], ["2", "1", "2", "70.0"]]


def test_every_task_is_drawn_as_often_however_many_templates_it_has(monkeypatch):
    seen = []
    class Seen(ManyTasks):
        def __init__(self, works, **more):
            super().__init__(works, **more)
            seen.append(self)

    monkeypatch.setattr("minipeft.prompting.ManyTasks", Seen)
    t0_scores(["reading"], others("reading", 0), replace(FAST, t0_steps=1), 0)
    (many,), share = seen, {}
    for name, p in zip(many.names, many.p):
        share[name.split()[0]] = share.get(name.split()[0], 0) + p
    assert len(share) == 11 and all(p == pytest.approx(1 / 11) for p in share.values())


@pytest.mark.parametrize("error, line", [
    (ValueError("nowhere: no such folder"), "x: nowhere: no such folder\n"),
    (ModuleNotFoundError("No module named 'torch'", name="torch"),
     "x: torch is not installed; in the project's folder run: pip install \".[peers]\"\n")])
def test_what_is_wrong_with_a_benchmarks_arguments_is_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as end, common.one_line("x"):
        raise error
    assert end.value.code == 2 and capsys.readouterr().err == line
