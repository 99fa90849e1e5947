"""Where data comes from, and the learning rate that a model's size gives."""

import json
import sys
from pathlib import Path

import pytest

from minipeft import cli
from minipeft.compare import rates
from minipeft.compare.rates import SMALL, SMALL_WIDTH, default_lr, grid, width_of
from minipeft.compare.run import Run
from minipeft.compare.sources import name_of, read, toy_task, written
from minipeft.data import Tokenizer, corpus, read_dataset, read_sources, read_texts, section_task, toy
from minipeft.methods import METHODS
from minipeft.prompting import whole_words


PYTHON_DOCS = f"python-docs-{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("data, expected", [("toy:topic", ("topic", "medium")), ("toy:describe:easy", ("describe", "easy")),
                                            ("data", None), (Path("toy"), None)])
def test_names_of_toy_tasks(data, expected):
    assert toy_task(data) == expected


@pytest.mark.parametrize("data", ["toy:", "toy:weather", "toy:topic:none", "toy:topic:easy:1"])
def test_toy_tasks_that_are_none(data):
    with pytest.raises(ValueError) as caught:
        toy_task(data)
    assert str(caught.value) == ("data: expected toy:NAME or toy:NAME:DIFFICULTY with a NAME among sentiment, rating, topic, "
                                 "question, truth, same, reading, grammar, reading_size, reading_room, reading_owner, "
                                 f"reading_thing, answer, describe, text and a DIFFICULTY among easy, medium, hard, got '{data}'")


def test_paths_are_read_as_ever(world):
    assert read(world / "data", "classify") == read_dataset(world / "data")
    assert read(world / "told", "seq2seq") == read_sources(world / "told")
    assert read(world / "raw.txt", "lm", split=False) == read_texts(world / "raw.txt", split=False)


def test_a_toy_task_is_what_its_sampler_draws(tmp_path):
    assert read("toy:topic:easy", "classify") == toy.dataset("topic", "easy")
    assert read("toy:describe", "seq2seq") == toy.sources("describe", "medium")
    path = written("toy:topic:easy", tmp_path)
    assert path == str(tmp_path / "topic-easy") and read_dataset(path) == toy.dataset("topic", "easy")
    assert read("toy:text", "lm") == toy.texts("medium") == read_texts(written("toy:text", tmp_path))
    (tmp_path / "topic-easy/dev.tsv").unlink()
    assert written("toy:topic:easy", tmp_path) == path and not (tmp_path / "topic-easy/dev.tsv").exists()  # once
    assert written("some/path", tmp_path) == "some/path"


@pytest.mark.parametrize("name", ["topic", "describe", "text"])
def test_a_toy_task_whose_writing_was_stopped_is_written_again(name, tmp_path, monkeypatch):
    """Whichever file was the last one."""
    small = toy.save
    monkeypatch.setattr(toy, "save", lambda *a, **more: small(*a, **more, train=20, dev=5, test=5))
    whole = {path.name: path.read_bytes() for path in Path(written(f"toy:{name}", tmp_path / "whole")).iterdir()}
    write = toy._write
    for after in range(len(whole)):
        done = []

        def stopped(path, lines):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(write(path, lines))

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(toy, "_write", stopped)
            written(f"toy:{name}", tmp_path / str(after))
        again = Path(written(f"toy:{name}", tmp_path / str(after)))
        assert {path.name: path.read_bytes() for path in again.iterdir()} == whole


def test_classes_of_a_toy_task_are_numbered_as_a_model_numbers_them():
    own = read("toy:sentiment", "classify")
    other = read("toy:sentiment", "classify", labels=("other", "positive", "negative"), need_labels=False, split=False)
    assert other.labels == ("other", "positive", "negative")
    assert [e.label for e in other.splits["test"]] == [{0: 2, 1: 1}[e.label] for e in own.splits["test"]]
    with pytest.raises(ValueError, match="^toy:rating: unknown label 'terrible'; known: 'negative', 'positive'$"):
        read("toy:rating", "classify", labels=("negative", "positive"), need_labels=False)
    with pytest.raises(ValueError, match="^python-docs: unknown label .*; known: 'negative', 'positive'$"):
        read("python-docs", "classify", labels=("negative", "positive"))


@pytest.mark.parametrize("task, message", [
    ("seq2seq", "data: toy:topic is not for --task seq2seq; expected toy: with one of answer, describe"),
    ("lm", "data: toy:topic is not for --task lm; expected toy: with one of text")])
def test_a_toy_task_of_another_kind(task, message):
    with pytest.raises(ValueError) as caught:
        read("toy:topic", task)
    assert str(caught.value) == message


def test_the_manual_is_a_task_and_a_text(world, tmp_path, capsys):
    assert read("python-docs", "classify") == section_task(seed=0)
    parts = read("python-docs", "lm")
    assert sorted(text for part in parts.values() for text in part.split("\n\n")) == sorted(corpus())
    with pytest.raises(ValueError) as caught:
        read("python-docs", "seq2seq")
    assert str(caught.value) == ("data: python-docs is not for --task seq2seq; expected toy: with one of answer, describe, or a "
                                 "file")
    assert written("python-docs", tmp_path) == "python-docs" and list(tmp_path.iterdir()) == []
    line = f"finetune --model {world}/bert --data python-docs --method head --train-limit 16 --max-steps 1 --out {tmp_path}/a"
    assert cli.main(line.split()) == 0
    named = json.loads((tmp_path / "a/result.json").read_text())["data"]
    assert named == name_of("python-docs") == PYTHON_DOCS
    assert name_of("toy:encoder") == "toy:encoder" and name_of(tmp_path / "a" / "..") == tmp_path.name


def test_a_prediction_on_the_manual_states_the_version(world, tmp_path, capsys):
    line = f"finetune --model {world}/bert --data python-docs --method head --train-limit 16 --max-steps 1 --out {tmp_path}/a"
    assert cli.main(line.split()) == 0
    for model, more in (("bert", f" --adapter {tmp_path}/a"), ("gpt2", "")):
        capsys.readouterr()
        line = f"predict --model {world}/{model} --data python-docs --json {tmp_path}/told.json{more}"
        assert cli.main(line.split()) == 0
        assert f"data {PYTHON_DOCS}" in capsys.readouterr().err.splitlines()
        assert json.loads((tmp_path / "told.json").read_text())["data"] == PYTHON_DOCS
    assert cli.main(f"predict --model {world}/gpt2 --data {world}/raw.txt --json {tmp_path}/told.json".split()) == 0
    assert json.loads((tmp_path / "told.json").read_text())["data"] == "raw.txt" and "data" not in capsys.readouterr().err


def test_a_prompt_on_the_manual_states_the_version(tmp_path, capsys):
    words = list(whole_words(Tokenizer.from_folder("toy:encoder")).values())
    verbalizer = ",".join(f"{word}={label}" for word, label in zip(words, section_task(seed=0).labels))
    line = ["prompt", "--model", "toy:encoder", "--data", "python-docs", "--template", "{text} {mask}",
            "--verbalizer", verbalizer, "--json", str(tmp_path / "told.json"), "--max-length", "16", "--jobs", "1"]
    assert cli.main(line) == 0
    assert f"data {PYTHON_DOCS}" in capsys.readouterr().err.splitlines()
    assert json.loads((tmp_path / "told.json").read_text())["data"] == PYTHON_DOCS


def test_a_comparison_on_the_manual_states_the_version(world, tmp_path, capsys):
    line = (f"compare --model {world}/bert --data python-docs --methods head --seeds 1 --train-limit 16 --max-steps 1 "
            f"--out {tmp_path}/a")
    assert cli.main(line.split()) == 0
    assert f"bert on {PYTHON_DOCS}" in capsys.readouterr().out
    written = json.loads((tmp_path / "a/results.json").read_text())
    assert written["tasks"] == [PYTHON_DOCS] == list({row["task"] for row in written["rows"]})
    assert all(PYTHON_DOCS in (tmp_path / "a" / name).read_text() for name in ("results.csv", "results.md", "report.html"))


def test_the_commands_take_toy_tasks(world, tmp_path, capsys):
    line = f"finetune --model {world}/bert --data toy:topic:easy --method head --train-limit 16 --epochs 1 --out {tmp_path}/a"
    assert cli.main(line.split()) == 0
    line = f"predict --model {world}/bert --adapter {tmp_path}/a --data toy:topic:easy --split dev --json {tmp_path}/told.json"
    assert cli.main(line.split()) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["predictions"]) == 250 and set(told["predictions"][0]["probabilities"]) == set(toy.TOPICS)
    capsys.readouterr()
    assert cli.main(f"finetune --model {world}/bert --data toy:weather --out {tmp_path}/b".split()) == 2
    assert capsys.readouterr().err.startswith("minipeft: --data: expected toy:NAME or toy:NAME:DIFFICULTY with ")


# ---- learning rates --------------------------------------------------------------------------------------------


def test_a_small_model_has_rates_of_its_own(world, tmp_path):
    assert [width_of(world / name) for name in ("bert", "gpt2", "llama", "t5")] == [16] * 4
    for model in ("bert", "gpt2", "llama", "t5"):
        for method in METHODS:
            assert default_lr(method, world / model) == SMALL.get(method, METHODS[method].default_lr)
    for width, own in ((SMALL_WIDTH, True), (SMALL_WIDTH + 1, False)):
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": width}))
        assert default_lr("full", tmp_path) == (SMALL["full"] if own else METHODS["full"].default_lr)
    assert Run(str(world / "bert"), "d").lr == SMALL["lora"] and Run(str(world / "bert"), "d", lr=0.5).lr == 0.5


@pytest.mark.parametrize("text", ["", "[]", '{"hidden_size": "wide"}', "{}"])
def test_a_config_that_tells_nothing(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert width_of(tmp_path) is None and default_lr("full", tmp_path) == METHODS["full"].default_lr


def test_rates_are_of_methods_that_exist():
    from minipeft.compare.comparison import MAIN
    from minipeft.compare.exits import OFFERED

    assert set(MAIN) <= set(SMALL) <= set(OFFERED) and all(0 < lr < 1 for lr in SMALL.values())


def test_the_grid_is_around_the_default(world):
    assert grid(default_lr("lora", world / "bert")) == [float(f"{SMALL['lora'] * f:.3g}") for f in rates.FACTORS]
    assert grid(default_lr("full", "nowhere")) == [1.5e-05, 5e-05, 0.00015]
