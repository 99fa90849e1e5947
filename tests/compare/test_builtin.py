"""The built-in comparison: its task, its pre-training, and that both are made once."""

import json
import sys

import numpy as np
import pytest

from minipeft.compare import builtin, comparison, rates
from minipeft.data import corpus, read_dataset, section_task, train_wordpiece
from minipeft.interop import load_pretrained, make_model
from minipeft.kernels import IGNORE
from minipeft.models import TransformerConfig


@pytest.fixture(scope="module")
def texts():
    return corpus()[:200]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_wordpiece(texts, 600)


def test_the_task_is_read_back_as_it_was(tmp_path):
    task = section_task(seed=0)
    builtin.write_task(task, tmp_path)
    assert read_dataset(tmp_path) == task and len(task.labels) >= 3
    assert {path.name for path in tmp_path.iterdir()} == {"train.tsv", "dev.tsv", "test.tsv", "labels.txt"}


def test_blocks_are_the_text_and_masks_restore_it(tokenizer, texts):
    work = builtin.MaskedLanguageModelling(tokenizer, texts, 32, 8, seed=0)
    stream = [i for text in texts for i in tokenizer.encode(text)]
    blocks = np.concatenate([work.blocks["train"], work.blocks["dev"]])
    assert blocks.ravel().tolist() == stream[: len(blocks) * 32] and len(work.blocks["dev"]) == len(blocks) // 20
    batches = work.training_batches(np.random.default_rng(0))
    assert len(batches) == work.number_of_batches() and sorted(np.concatenate(batches)) == list(range(len(work.blocks["train"])))
    every = np.concatenate(batches)
    batch, original = work.collate(every), work.blocks["train"][every]
    chosen = batch.labels != IGNORE
    assert (batch.labels[chosen] == original[chosen]).all() and (batch.input_ids[~chosen] == original[~chosen]).all()
    assert 0.08 < chosen.mean() < 0.2 and work.weight(batch) == len(original) == batch.size
    assert (batch.input_ids[chosen] == tokenizer.mask_id).mean() == pytest.approx(0.8, abs=0.06)
    assert not np.isin(original[chosen], tokenizer.special_ids).any()


def test_the_masks_are_a_function_of_the_epochs_generator(tokenizer, texts):
    """So that a resumed pre-training would draw the same."""
    work = builtin.MaskedLanguageModelling(tokenizer, texts, 32, 8, seed=0)
    drawn = []
    for seed in (3, 3, 4):
        batches = work.training_batches(np.random.default_rng(seed))
        drawn.append(work.collate(batches[0]).input_ids)
    assert (drawn[0] == drawn[1]).all() and not np.array_equal(drawn[0], drawn[2])


def test_held_out_loss_is_always_the_same(tokenizer, texts):
    work = builtin.MaskedLanguageModelling(tokenizer, texts, 32, 8, seed=0)
    config = TransformerConfig("bert", tokenizer.vocab_size, 16, 1, 2, 32, 40, type_vocab_size=2)
    model = make_model(config, "mlm", np.random.default_rng(0))
    first = work.evaluate(model, "dev")["loss"]
    work.collate(np.arange(3))
    assert (
        work.evaluate(model, "dev")["loss"] == first == pytest.approx(np.log(tokenizer.vocab_size), rel=0.05)
    )  # untrained: chance


def test_it_is_made_once_and_again_when_the_recipe_changes(tmp_path, texts, monkeypatch, capsys):
    fits = []
    monkeypatch.setattr(builtin, "corpus", lambda: texts)
    monkeypatch.setattr(builtin, "VOCABULARY", 600)
    monkeypatch.setattr(builtin, "fit", lambda model, *args, **kwargs: fits.append(model))
    model, data = builtin.prepare(tmp_path / "builtin")
    out, err = capsys.readouterr()
    assert out == "" and "pre-training a small encoder on CPython's documentation" in err
    assert read_dataset(data).labels == section_task(seed=0).labels
    loaded = load_pretrained(model, task="mlm")
    assert all((p.data == q.data).all() for p, q in zip(loaded.parameters(), fits[0].parameters()))
    assert builtin.prepare(tmp_path / "builtin") == (model, data) and len(fits) == 1 and capsys.readouterr().err == ""
    monkeypatch.setattr(builtin, "RECIPE", builtin.RECIPE + 1)
    builtin.prepare(tmp_path / "builtin")
    assert len(fits) == 2
    note = json.loads((tmp_path / "builtin" / "done.json").read_text())
    assert note["made"] == {"recipe": builtin.RECIPE, "python": list(sys.version_info[:2])}


def test_pre_training_that_was_stopped_is_made_again(tmp_path, texts, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "corpus", lambda: texts)
    monkeypatch.setattr(builtin, "VOCABULARY", 600)
    monkeypatch.setattr(builtin, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        builtin.prepare(tmp_path)
    assert not (tmp_path / "done.json").exists()


@pytest.fixture
def asked(world, monkeypatch):
    """{label: [Run]} of what `compare` without a model asks for; nothing is run."""
    jobs = []
    monkeypatch.setattr(builtin, "prepare", lambda folder: (world / "bert", world / "data"))
    monkeypatch.setattr(comparison.Comparison, "outcomes", lambda self, all_jobs: jobs.extend(all_jobs) or {
        job.folder: "not run" for job in all_jobs})

    def compare(*args, **more):
        jobs.clear()
        table = comparison.compare(None, None, *args, **more)
        runs = {}
        for job in jobs:
            runs.setdefault(job.run.method, []).append(job.run)
        return table, runs

    return compare


def test_its_settings_are_its_own_unless_given(asked, tmp_path):
    table, runs = asked(["full", "lora"], 2, tmp_path, {"lr": None, "epochs": None})
    assert list(runs) == ["base", "full", "lora"]
    for method in ("full", "lora"):
        assert [(run.lr, run.epochs, run.seed) for run in runs[method]] == [
            (rates.SMALL[method], builtin.EPOCHS, seed) for seed in (0, 1)]
    assert table.title == builtin.TITLE and table.rows == [] and len(table.failed) == 6
    _, runs = asked(["lora"], 1, tmp_path, {"lr": 0.5, "epochs": 2})
    assert [(run.lr, run.epochs) for run in runs["lora"]] == [(0.5, 2)]


def test_every_main_method_is_in_it(asked, tmp_path):
    _, runs = asked(None, 3, tmp_path, {})
    assert list(runs) == ["base", *comparison.MAIN] and {len(same) for same in runs.values()} == {3}


def test_the_built_in_task_is_no_language_modelling(tmp_path):
    with pytest.raises(ValueError, match="^task: the built-in task is to classify; for lm give --model and --data$"):
        comparison.compare(None, None, ["lora"], 1, tmp_path, {"task": "lm"})
    assert list(tmp_path.iterdir()) == []
