"""``minipeft pretrain``: models from raw text and a seed, the package's own among them."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minipeft import cli
from minipeft.compare import pretrain
from minipeft.compare.pretrain import FILES, MADE, RECIPES, Recipe, first_losses, sha256, shipped, verify
from minipeft.data import Tokenizer, files
from minipeft.interop import load_pretrained

ARCHS = pytest.mark.parametrize("arch", list(RECIPES))
SMALL = "--width 16 --heads 2 --layers 1 --steps 6 --batch-size 8 --length 16".split()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {n} says that {n % 7} is not {n % 5} and so on" for n in range(60)), encoding="utf-8")
    return path


# ---- the package's own models ----------------------------------------------------------------------------------

# What was committed; a change here means that every figure made with these models is to be made again.
SHA256 = {
    "encoder": "6dbcd3121165950b3a4d06f735c42ff822553b7d1f42e15762452b7e3227997a",
    "decoder": "194a9abc00f2228f2ee2cd0756bed96f00a198f802c2a04bd33236821513c21f",
    "seq2seq": "e002b0ff4e82e11a53cd7232937b7766f1c8bff6bcfe37a90ffa85d7104a4c4f",
}


@ARCHS
def test_the_packages_models_are_those_that_were_committed(arch):
    folder, recipe, made = shipped(arch)
    assert sha256(folder / "model.safetensors") == SHA256[arch]
    assert {path.name: sha256(path) for path in folder.iterdir() if path.name != MADE} == made["sha256"]
    assert recipe == RECIPES[arch] and set(made["sha256"]) == set(FILES)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000


@ARCHS
def test_the_recipes_first_steps_follow_the_recorded_losses(arch):
    _, recipe, made = shipped(arch)
    losses = first_losses(recipe)
    assert len(losses) == 50 and np.abs(np.array(losses) - made["losses"]).max() < 1e-3


@ARCHS
def test_the_held_out_loss_is_that_of_the_shipped_weights(arch):
    folder, recipe, made = shipped(arch)
    _, _, work = pretrain.start(recipe, pretrain.read_corpus(recipe.corpus))
    loss = work.evaluate(load_pretrained(f"toy:{arch}"), "dev")["loss"]
    assert loss == pytest.approx(made["held_out"][-1]["loss"], abs=1e-4)


def test_a_name_that_is_none():
    with pytest.raises(ValueError) as caught:
        load_pretrained("toy:encode")
    assert str(caught.value) == "model: expected toy:decoder, toy:encoder, toy:seq2seq or a folder, got 'toy:encode'"


def test_every_command_knows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main("finetune --model toy:encoder --data toy:topic:easy --max-steps 2 --out run".split()) == 0
    assert json.loads(Path("run/result.json").read_text())["model"] == "toy:encoder"
    assert cli.main("predict --model toy:encoder --adapter run --text".split() + ["the soup was good ."]) == 0
    assert cli.main("generate --model toy:decoder --max-new-tokens 3 --prompt".split() + ["the soup was"]) == 0
    assert cli.main("generate --model toy:seq2seq --max-new-tokens 3 --prompt".split() + ["the <extra_id_0> was good ."]) == 0
    assert cli.main("plan --model toy:encoder --method lora".split()) == 0
    assert cli.main("finetune --model toy:encoder --data toy:topic:easy --max-steps 2 --method full --out whole".split()) == 0
    assert {"config.json", "tokenizer.json"} <= {path.name for path in Path("whole").iterdir()}
    capsys.readouterr()
    assert cli.main("finetune --model toy:coder --data toy:topic --out other".split()) == 2
    assert capsys.readouterr().err == ("minipeft: --model: expected toy:decoder, toy:encoder, toy:seq2seq or a folder, got "
                                       "'toy:coder'\n")


# ---- making one ------------------------------------------------------------------------------------------------


@ARCHS
def test_a_model_is_made_and_loads(arch, text, tmp_path, capsys):
    out = tmp_path / "made"
    line = ["pretrain", "--arch", arch, "--corpus", str(text), "--out", str(out), *SMALL, "--json", str(tmp_path / "made.json")]
    assert cli.main(line) == 0
    said, progress = capsys.readouterr()
    made = json.loads((out / MADE).read_text())
    model, tokenizer = load_pretrained(out), Tokenizer.from_folder(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, MADE])
    assert made == json.loads((tmp_path / "made.json").read_text()) and len(made["losses"]) == 6
    assert made["parameters"] == sum(p.size for p in model.parameters()) and model.config.vocab_size == tokenizer.vocab_size
    assert made["held_out"] == [{"step": 6, "loss": pytest.approx(made["held_out"][0]["loss"])}]
    assert made["recipe"] == {**vars(replace(RECIPES[arch], corpus=str(text), vocabulary=3000)), "width": 16, "heads": 2,
                              "layers": 1, "steps": 6, "batch_size": 8, "length": 16}
    assert said == (f"made        {out}: 1 layers of width 16, {made['parameters']:,} parameters\n"
                    f"corpus      the texts in {text}\n"
                    f"held out    loss {made['held_out'][0]['loss']:.4f} after 6 steps\n")
    assert progress.startswith(f"pre-training the {arch}: step 6 of 6  training loss ") and "held-out loss" in progress
    again = tmp_path / "again"
    assert cli.main([*line[:6], str(again), *SMALL]) == 0
    assert json.loads((again / MADE).read_text()) == made, "the same seed, the same bits"
    assert cli.main([*line[:6], str(tmp_path / "other"), *SMALL, "--seed", "1"]) == 0
    assert json.loads((tmp_path / "other" / MADE).read_text())["losses"] != made["losses"]


def test_the_seed_draws_everything(monkeypatch, tmp_path):
    """The weights at the start, and by the loop's settings the texts, their order and what is hidden."""
    seen = []
    monkeypatch.setattr(pretrain, "fit", lambda model, parameters, work, settings, **where: seen.append(
        (settings.seed, model.embed.tokens.weight.data.copy())) or {"losses": [], "evaluations": []})
    for seed in (0, 3):
        pretrain.pretrain(Recipe("encoder", seed=seed, width=16, heads=2), tmp_path / str(seed))
    assert [seed for seed, _ in seen] == [0, 3] and not np.isclose(seen[0][1], seen[1][1]).any()


def test_results_on_the_manual_state_the_version_of_python(tmp_path, capsys):
    assert cli.main(["pretrain", "--arch", "encoder", "--corpus", "python-docs", "--out", str(tmp_path / "m"), *SMALL]) == 0
    version = ".".join(map(str, sys.version_info[:2]))
    assert f"corpus      CPython's manual as Python {version} has it" in capsys.readouterr().out
    assert version in json.loads((tmp_path / "m" / MADE).read_text())["corpus"]


def test_a_stopped_one_goes_on_with_the_same_bits(text, tmp_path, capsys, monkeypatch):
    line = ["pretrain", "--arch", "encoder", "--corpus", str(text), *SMALL, "--steps", "60"]
    assert cli.main([*line, "--out", str(tmp_path / "whole")]) == 0
    step = pretrain.Progress.step

    def stop(self, loss, examples):
        step(self, loss, examples)
        if self.left == 25:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pretrain.Progress, "step", stop)
    assert cli.main([*line, "--out", str(tmp_path / "stopped")]) == 130
    monkeypatch.undo()
    assert capsys.readouterr().err.endswith(
        "minipeft: stopped after step 35 of 60; the checkpoint is kept. To go on, repeat the command with --resume\n")
    assert cli.main([*line, "--out", str(tmp_path / "stopped")]) == 2
    where = f"minipeft: --out {tmp_path / 'stopped'}: "
    assert capsys.readouterr().err == f"{where}is not empty; give --resume to go on, or another folder\n"
    assert cli.main([*line, "--out", str(tmp_path / "stopped"), "--resume", "--lr", "0.1"]) == 2
    assert capsys.readouterr().err == (f"{where}holds a pre-training with other settings (lr was 0.002, now 0.1); choose another "
                                       "folder\n")
    assert cli.main([*line, "--out", str(tmp_path / "stopped"), "--resume"]) == 0
    assert "going on after step 35 of 60" in capsys.readouterr().err
    assert (tmp_path / "stopped" / MADE).read_text() == (tmp_path / "whole" / MADE).read_text()
    before = (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns
    assert cli.main([*line, "--out", str(tmp_path / "whole"), "--resume"]) == 0, "finished: said again, nothing repeated"
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("line, message", [
    ("--out x", "--arch: is needed, unless --verify is given (see minipeft pretrain --help)"),
    ("--arch encoder", "--out: is needed, unless --verify is given (see minipeft pretrain --help)"),
    ("--arch encoder --out x --heads 5", "--heads: expected a number that divides the width 96, got 5"),
    ("--arch encoder --out x --corpus none.txt", "none.txt: cannot be read (No such file or directory)"),
    ("--arch encoder --out x --vocabulary 20 --steps 1", "--vocabulary: expected at least 60, for 5 special tokens and the 55 "
     "pieces of one character in these texts, got 20"),
    ("--arch encoder --out full", "--out full: is not empty; expected a new folder for the model"),
    ("--arch encoder --out full/file", "--out full/file: is a file; expected a folder"),
    ("--verify --lr 1", "--verify: makes the package's own models as they were made; give --arch, or nothing"),
    ("--arch decoder --out x --length 7",
     "--length: expected a whole number of at least 8, got '7' (see minipeft pretrain --help)"),
])
def test_faults(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine", encoding="utf-8")
    try:
        code = cli.main(["pretrain", *line.split()])
    except SystemExit as stop:
        code = stop.code
    assert (code, capsys.readouterr().err) == (2, f"minipeft: {message}\n")
    assert not Path("x").exists() and Path("full/file").read_text() == "mine"


def test_unknown_archs():
    with pytest.raises(ValueError, match="^arch: expected one of encoder, decoder, seq2seq, got 'cnn'$"):
        Recipe("cnn")


# ---- verification ----------------------------------------------------------------------------------------------


@pytest.fixture
def own(text, tmp_path, monkeypatch):
    """A small model in place of the package's encoder."""
    folder = tmp_path / "pretrained" / "encoder"
    pretrain.pretrain(Recipe("encoder", str(text), width=16, layers=1, heads=2, steps=6, batch_size=8, length=16), folder)
    monkeypatch.setattr(files, "SHIPPED", folder.parent)
    return folder


def test_verification_makes_it_again(own, capsys):
    assert cli.main("pretrain --verify --arch encoder".split()) == 0
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()] == [
        ["files", "yes"], ["first", "losses"], ["held-out", "loss"], ["bits", "yes"]]
    assert [holds for _, holds, _ in verify("encoder")] == [True] * 4


def test_verification_finds_what_is_not_as_it_was(own, capsys):
    made = json.loads((own / MADE).read_text())
    (own / MADE).write_text(json.dumps({**made, "losses": [made["losses"][0] + 0.002, *made["losses"][1:]],
                                        "held_out": [{"step": 6, "loss": made["held_out"][0]["loss"] + 0.1}]}))
    shutil.copy(own / "config.json", own / "tokenizer_config.json")
    assert cli.main("pretrain --verify --arch encoder".split()) == 1
    out = capsys.readouterr().out
    assert "encoder   files          no   changed: tokenizer_config.json\n" in out
    assert "encoder   first losses   no   6 steps, differing by at most 2.0e-03 (limit 0.001)\n" in out
    assert "encoder   held-out loss  no " in out
    (own / MADE).write_text(json.dumps({**made, "sha256": {**made["sha256"], "model.safetensors": "0"}}))
    found = verify("encoder")
    assert found[3] == ("bits", None, "others, as on another machine or with other libraries")
