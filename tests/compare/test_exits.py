"""Early exit and the base as runs: what is trained, saved, loaded, counted and scored."""

import json
from pathlib import Path

import numpy as np
import pytest

from minipeft import cli
from minipeft.compare.exits import EXITS_FACTOR, KNOWN, OFFERED, Base, EarlyExitTuning, Leaving, leaving_from, models_of
from minipeft.compare.run import Run, execute
from minipeft.interop import load_pretrained
from minipeft.methods import METHODS, EarlyExit, Joint, attach
from minipeft.training import Settings, fit


@pytest.fixture
def model(world):
    return load_pretrained(world / "bert", task="classify", labels=("a", "b", "c"), rng=np.random.default_rng(5))


def test_what_is_on_offer():
    assert OFFERED == {**METHODS, "early_exit": EarlyExitTuning} and KNOWN == {**OFFERED, "base": Base}


def test_everything_is_trained_and_the_exits_faster(model):
    size = sum(p.size for p in model.parameters())
    attachment = attach(model, EarlyExitTuning(), rng=np.random.default_rng(1))
    exits = [path for path in attachment.named_parameters() if path.startswith("head.exits.")]
    assert exits == ["head.exits.0.classifier.weight", "head.exits.0.classifier.bias"]
    assert attachment.trainable == size + 16 * 3 + 3 and attachment.trainable_without_head == attachment.trainable - 51
    assert [row for row in attachment.table() if row[0] == "head"] == [("head", 51, "1 x 51")]
    assert attachment.method.lr_scale(exits[0]) == EXITS_FACTOR and attachment.method.lr_scale("head.classifier.weight") == 1.0


def test_it_is_early_exit_as_the_methods_have_it(model, world):
    """The same bits as `EarlyExit` trained by itself."""
    other = load_pretrained(world / "bert", task="classify", labels=("a", "b", "c"), rng=np.random.default_rng(5))
    alone = EarlyExit(other, Joint("depth"), np.random.default_rng(1))
    attachment = attach(model, EarlyExitTuning(), rng=np.random.default_rng(1))
    train, used = models_of(attachment)
    assert isinstance(train, EarlyExit) and isinstance(used, Leaving)
    ids, labels = np.random.default_rng(2).integers(5, 60, (6, 7)), np.array([0, 1, 2, 0, 1, 2])

    class Work:
        task = "classify"
        number_of_batches = lambda self: 1
        training_batches = lambda self, rng: [np.arange(6)]
        collate = lambda self, indices, split="train": type("Batch", (), {"size": 6})
        weight = lambda self, batch: 6
        loss = lambda self, model, batch: model(ids, labels=labels).loss
        evaluate = lambda self, model, split: {}

    settings = Settings(lr=0.01, epochs=3)
    mine = fit(train, attachment.named_parameters(), Work(), settings, lr_scale=attachment.method.lr_scale)
    faster = lambda path: EXITS_FACTOR if path.startswith("exits.") else 1.0
    theirs = fit(alone, alone.trainable(), Work(), settings, lr_scale=faster)
    assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-5) and mine["losses"][0] > mine["losses"][-1]
    assert used(ids).logits.data.tolist() == train.predict(used.rule, ids).logits.tolist()


def test_leaving_counts_its_layers(model):
    attachment = attach(model, EarlyExitTuning(looseness=0.0))
    exits, used = models_of(attachment)
    for head in exits.exits:
        head.classifier.weight.data += 0.1
    assert used(np.ones((3, 4), int)).logits.shape == (3, 3) and used(np.ones((1, 4), int)) is not None
    assert used.mean_layer() == 2.0 and used.layers == []
    used.rule = type(used.rule)(1.0)
    used(np.arange(8).reshape(2, 4))
    assert used.mean_layer() == 1.0


@pytest.mark.parametrize("options, message", [
    ({"exit_rule": "doubt"}, "exit_rule: expected one of entropy, margin, patience, got 'doubt'"),
    ({"looseness": 2}, "looseness: expected a number from 0 (nobody leaves early) to 1, got 2"),
])
def test_faults_of_its_settings(options, message, world):
    with pytest.raises(ValueError) as caught:
        execute(Run(str(world / "bert"), str(world / "data"), method="early_exit", options=options), Path("nowhere"))
    assert str(caught.value) == message and not Path("nowhere").exists()


def test_a_run_and_what_predict_makes_of_it(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = f"finetune --model {world}/bert --data {world}/data --method early_exit --epochs 3 --lr 0.01 --out made"
    assert cli.main([*line.split(), "--looseness", "0.9"]) == 0
    out = capsys.readouterr().out
    result = json.loads(Path("made/result.json").read_text())
    assert 1 <= result["mean_layer"] < 2 and f"examples left at layer {result['mean_layer']:.2f} on average\n" in out
    assert result["size_mb"] == pytest.approx(sum(p.stat().st_size for p in Path("made").glob("*.safetensors")) / 1e6)
    assert result["evaluations"][-1]["accuracy"] >= 0  # of the full model, on dev

    predict = f"predict --model made --data {world}/data --json told.json"
    assert cli.main([*predict.split(), "--exit-rule", "entropy", "--looseness", "0.9"]) == 0
    err = capsys.readouterr().err
    told = json.loads(Path("told.json").read_text())
    assert told["scores"] == result["scores"]
    layers = [row["layer"] for row in told["predictions"]]
    assert np.mean(layers) == pytest.approx(result["mean_layer"]) and set(layers) <= {1, 2}
    assert f"left at layer {np.mean(layers):.2f} of 2 on average\n" in err
    assert cli.main([*predict.split(), "--looseness", "0"]) == 0
    nobody = json.loads(Path("told.json").read_text())
    assert {row.pop("layer") for row in nobody["predictions"]} == {2}
    assert cli.main(predict.split()) == 0 and json.loads(Path("told.json").read_text()) == nobody


def test_layers_are_those_of_their_texts(world, tmp_path, monkeypatch):
    """Texts go through the model sorted by length; what is told of each is its own."""
    monkeypatch.chdir(tmp_path)
    line = f"finetune --model {world}/bert --data {world}/data --method early_exit --epochs 4 --lr 0.01 --out made"
    assert cli.main(line.split()) == 0
    predict = ["predict", "--model", "made", "--looseness", "0.95", "--json", "told.json"]
    assert cli.main([*predict, "--data", f"{world}/data", "--batch-size", "3"]) == 0
    together = json.loads(Path("told.json").read_text())["predictions"]
    texts = [row.split("\t")[0] for row in (world / "data/test.tsv").read_text().splitlines()[1:]]
    for text, row in list(zip(texts, together))[::4]:
        assert cli.main([*predict, "--text", text]) == 0
        (alone,) = json.loads(Path("told.json").read_text())["predictions"]
        assert (alone["layer"], alone["label"]) == (row["layer"], row["label"])


def test_no_exits_in_the_folder(model, world):
    with pytest.raises(ValueError) as caught:
        leaving_from(model, world / "bert", "entropy", 0.3)
    assert str(caught.value) == (f"{world / 'bert'}: no exits.json, so this model has no exits; make one with finetune --method "
                                 "early_exit, or leave out --exit-rule and --looseness")


def test_exits_of_a_model_that_writes_text(world, capsys):
    assert cli.main(f"predict --model {world}/gpt2 --text a --looseness 0.5".split()) == 2
    assert capsys.readouterr().err == ("minipeft: --exit-rule and --looseness: texts leave early at classifiers, and this model "
                                       "has none; leave them out\n")


def test_the_base_is_scored_and_nothing_is_trained(world, tmp_path):
    run = Run(str(world / "gpt2"), str(world / "raw.txt"), method="base", task="lm", max_length=16)
    result = execute(run, tmp_path / "base", quiet=True)
    assert (result["trainable"], result["losses"], result["step_ms"], result["steps"]) == (0, [], None, 0)
    assert result["size_mb"] == (world / "gpt2/model.safetensors").stat().st_size / 1e6
    assert result["score"] > 1 and not list((tmp_path / "base").glob("*.safetensors"))
    assert execute(run, tmp_path / "base", resume=True, quiet=True) == result
