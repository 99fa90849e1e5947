"""The commands, as a person uses them: what they print and where, what they write, and one line for each fault."""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minipeft
from minipeft import cli
from minipeft.arguments import ABOVE_0, BELOW_1, FROM_0, SHARE, UP_TO_1, whole
from minipeft.autograd import no_grad
from minipeft.compare import run as run_module
from minipeft.compare.comparison import size_text
from minipeft.data import Tokenizer, files, toy
from minipeft.interop import load_pretrained, make_model, save_pretrained
from minipeft.models import TransformerConfig
from minipeft.training import Classification, Sequence2Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = ("step_ms", "seconds", "peak_mb")  # what differs between two equal runs


@pytest.fixture(scope="session")
def tiny():
    """The module compare/tiny.py."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "compare" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world(tiny, tmp_path_factory):
    """A folder of small models and data, which no test changes."""
    return tiny.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def at(world, tmp_path, monkeypatch):
    """The same in a folder of its own, which is the current one: tests may spoil it, and name files as a person does."""
    shutil.copytree(world, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    return tmp_path / "at"


@pytest.fixture
def command(capsys):
    """``command("predict --model bert ...")``: (exit code, standard output, standard error)."""

    def call(line, *more):
        capsys.readouterr()
        try:
            code = cli.main([*shlex.split(line), *map(str, more)])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(command):
    """``refused(line, message)``: the command ends with code 2, prints one line with the message, and writes nothing."""

    def call(line, message, *more):
        before = set(Path().rglob("*"))
        code, out, err = command(line, *more)
        assert (code, out) == (2, ""), err
        assert err.startswith("minipeft: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert message in err
        assert set(Path().rglob("*")) == before, "something was written"

    return call


TELL = "finetune --model t5 --data told --task seq2seq --max-target-length 16 --out runs"
TRAIN = "finetune --model bert --data data --method lora --rank 2 --lr 0.03 --epochs 4 --out runs/a"


# ---- the parser ------------------------------------------------------------------------------------------------


def subparsers():
    return next(a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_an_example_that_can_be_pasted(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    code, out, err = command(f"{name} --help")
    assert (code, err) == (0, "")
    assert f"example:\n  {cli.EXAMPLES[name]}\n" in out
    assert cli.make_parser().parse_args(shlex.split(cli.EXAMPLES[name])[1:]).command == name


def test_examples_of_the_readme_are_understood():
    lines = re.findall(r"^minipeft .*$", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {shlex.split(line, comments=True)[1] for line in lines} == set(cli.COMMANDS)
    for line in lines:
        cli.make_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_snippets_of_the_readme_run(tmp_path, monkeypatch):
    """In Python, one after the other, on the toy world in place of the folders that they name."""
    monkeypatch.chdir(tmp_path)
    toy.save("sentiment", "data/sst2", train=40, dev=8, test=8)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block.replace('"models/minilm"', '"toy:encoder"'), names)
        attachment = names.get("attachment")
        if attachment is not None and attachment.merged:
            attachment.detach()  # the second block's model is the base
    assert len(blocks) == 2 and names["logits"].shape == (3, 2) and len(names["layers"]) == 3


def test_help_shows_every_default_but_none():
    text = subparsers()["generate"].format_help()
    assert "(default: 0.0)" in text and "(default: 0)" in text and "(default: None)" not in text
    assert "(default: False)" not in subparsers()["finetune"].format_help()


def test_version(command):
    assert command("--version") == (0, f"minipeft {minipeft.__version__}\n", "")


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "the following arguments are required: COMMAND (see minipeft --help)"),
        ("tune", "invalid choice: 'tune'"),
        ("finetune --model bert", "the following arguments are required: --data, --out (see minipeft finetune --help)"),
        ("finetune --model bert --data data --out x --method doora", "--method: invalid choice: 'doora'"),
        ("predict --model bert", "one of the arguments --data --text is required"),
        ("predict --model bert --data data --text a", "--text: not allowed with argument --data"),
        ("compare --model bert --data data --seed 5", "unrecognized arguments: --seed 5"),  # not taken for --seeds
        ("generate --model gpt2", "the following arguments are required: --prompt"),
    ],
)
def test_faults_of_usage(line, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(line, message)


@pytest.mark.parametrize("line, message", [
    ("finetune --model bert --data data --out ''", "--out: expected a path, got nothing"),
    ("finetune --model '' --data data --out x", "--model: expected a path, got nothing"),
    ("compare --model bert --data data --data ''", "--data: expected a path, got nothing"),
    ("predict --model bert --adapter '' --text a", "--adapter: expected a path, got nothing")])
def test_an_empty_path_is_none(line, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(line, message)


def test_a_path_that_is_called_as_an_option_is_no_option(at, refused):
    Path("model").mkdir()
    refused("predict --model model --text a", "minipeft: model: no tokenizer.json")
    refused("predict --model data --text a", "minipeft: data: no tokenizer.json")
    refused("predict --model bert --adapter data --text a", "minipeft: data: neither minipeft.json")
    refused("predict --model data/train.tsv --text a", "data/train.tsv: is a file; expected a folder with a tokenizer.json")
    refused("predict --model nowhere --text a", "nowhere: no such folder; expected a folder with a tokenizer.json")
    refused("predict --model bert --adapter data/train.tsv --text a", "data/train.tsv: is a file; expected an adapter")


NUMERIC = [
    (name, action.option_strings[0])
    for name, parser in subparsers().items()
    for action in parser._actions
    if action.type not in (None, str)
]


@pytest.mark.parametrize("name, option", NUMERIC)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "two", "", "1e400", "99999999999999999999", "-1e9"])
def test_absurd_numbers(name, option, value, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if value == "99999999999999999999" and not subparsers()[name]._option_string_actions[option].type.__qualname__.startswith(
        "whole"
    ):
        return  # a real number, if a large one
    needed = {
        "finetune": "--model m --data d --out o",
        "compare": "",
        "predict": "--model m --text t",
        "generate": "--model m --prompt p",
        "plan": "",
        "pretrain": "--arch encoder --out o",
        "prompt": "--model m --text t",
    }
    refused(f"{name} {needed[name]}", f"{option}: expected ", f"{option}={value}")


def test_numeric_options_are_those():
    """Every option that takes a number checks it."""
    found = {option for _, option in NUMERIC}
    free = {
        a.option_strings[0]
        for p in subparsers().values()
        for a in p._actions
        if a.option_strings and a.type is None and a.choices is None and a.nargs is None
    }
    assert len(found) == 64
    assert free == {
        "--model",
        "--data",
        "--out",
        "--words",
        "--json",
        "--adapter",
        "--text",
        "--text2",
        "--methods",
        "--dask",
        "--prompt",
        "--corpus",
        "--unlabelled",
        "--template",
        "--verbalizer",
        "--dir",
        "--student",
        "--students",
        "--lessons",
        "--gradescope",
        "--csv",
    }


@given(st.integers(-(10**17), 10**17), st.integers(0, 3))
def test_whole_numbers(value, least):
    if value >= least:
        assert whole(least)(str(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=f"expected a whole number of at least {least}, got '{value}'"):
            whole(least)(str(value))


@given(st.floats())
def test_real_numbers(value):
    for kind, good in (
        (ABOVE_0, 0 < value),
        (FROM_0, 0 <= value),
        (SHARE, 0 <= value <= 1),
        (BELOW_1, 0 <= value < 1),
        (UP_TO_1, 0 < value <= 1),
    ):
        if good and value < float("inf"):
            assert kind(repr(value)) == value
        else:
            with pytest.raises(argparse.ArgumentTypeError, match="expected a "):
                kind(repr(value))


# ---- finetune --------------------------------------------------------------------------------------------------


def stored(folder):
    """Number of values in a model folder."""
    return sum(a.size for a in files.read_tensors(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    "family, method",
    [
        ("bert", "full"),
        ("bert", "head"),
        ("bert", "lora"),
        ("gpt2", "full"),
        ("gpt2", "lora"),
        ("gpt2", "head"),
        ("llama", "full"),
        ("llama", "lora"),
    ],
)
def test_classification_end_to_end(family, method, at, command):
    rate = {"full": 0.01, "head": 0.1, "lora": 0.03}[method]
    rank = "--rank 2" if method == "lora" else ""
    code, out, err = command(
        f"finetune --model {family} --data data --method {method} {rank} --lr {rate} --epochs 12 --out runs/a --json r/b/a.json"
    )
    assert code == 0, err
    result = json.loads(Path("r/b/a.json").read_text())
    assert result == json.loads(Path("runs/a/result.json").read_text())

    bias = family == "bert"  # transformers' heads of decoders have none
    words = Tokenizer.from_folder(family).vocab_size
    head, body = (
        2 * 16 + 2 * bias,
        stored(at / family) - (words * 16 if family == "llama" else 0),
    )  # llama's lm_head is not part of it
    lora = 4 * 2 * (16 + 16) - (2 * 2 * 8 if family == "llama" else 0)  # 2 layers of q and v; llama has one key-value head of 8
    without = {"full": body, "head": 0, "lora": lora}[method]
    assert result["trainable"] == without + head and result["trainable_without_head"] == without
    assert result["total"] == body + head + (lora if method == "lora" else 0)
    assert (result["method"], result["metric"], result["split"]) == (method, "accuracy", "test")
    assert 0.5 < result["score"] <= 1 and result["lr"] == rate
    assert result["step_ms"] > 0 and result["seconds"] > 0 and 20 < result["peak_mb"] < 2e4 and result["size_mb"] > 0

    assert out.splitlines() == [
        f"method      {method}",
        "data        data",
        (
            f"trainable   {result['trainable']:,} of {result['total']:,} parameters "
            f"({100 * result['trainable'] / result['total']:.3g} %), {without:,} without the head"
        ),
        f"accuracy    {result['score']:.4f} on test",
        f"step        {result['step_ms']:.1f} ms, peak memory {result['peak_mb']:.0f} MB, {result['seconds']:.1f} s in all",
        f"saved       runs/a ({size_text(result['size_mb'])})",
        *(["note        the head is in head.safetensors, because PEFT and transformers have none that pools as this one does"]
          if (family, method) == ("bert", "lora") else []),
    ]
    assert len(err.splitlines()) == 12 and f"{method}: epoch 12  training loss" in err  # progress, and not in the results
    assert not Path("runs/a/checkpoint.safetensors").exists()

    trained = "--model runs/a" if method == "full" else f"--model {family} --adapter runs/a"
    code, out, err = command(f"predict {trained} --data data --json p.json")
    assert code == 0 and len(out.splitlines()) == 20
    assert err == f"accuracy {result['score']:.4f} on the 20 texts of test\n"
    assert json.loads(Path("p.json").read_text())["scores"]["accuracy"] == pytest.approx(result["score"])
    right = [row.split("\t")[1] for row in Path("data/test.tsv").read_text().splitlines()[1:]]
    assert np.mean([row.split("\t")[0] == label for row, label in zip(out.splitlines(), right)]) == pytest.approx(result["score"])


@pytest.mark.parametrize("family, method", [("gpt2", "full"), ("gpt2", "lora"), ("llama", "head"), ("llama", "lora")])
def test_language_modelling_end_to_end(family, method, at, command):
    Path("texts").mkdir()
    text = Path("raw.txt").read_text()
    for name, part in (("train", text[:3000]), ("dev", text[3000:4000]), ("test", text[4000:])):
        Path(f"texts/{name}.txt").write_text(part)
    code, out, err = command(
        f"finetune --model {family} --data texts --task lm --method {method} --lr 0.01 --max-length 16 --epochs 2 --out runs/a"
    )
    assert code == 0, err
    result = json.loads(Path("runs/a/result.json").read_text())
    assert (result["metric"], result["split"]) == ("perplexity", "test")
    assert f"perplexity  {result['score']:.4f} on test" in out
    trained = "--model runs/a" if method == "full" else f"--model {family} --adapter runs/a"
    code, out, err = command(f"predict {trained} --data texts --max-length 16")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"perplexity\t{result['score']:.4f}"
    before = command(f"predict --model {family} --data texts/test.txt --max-length 16")[1]
    assert float(before.split()[1]) > result["score"]
    assert before == command(f"predict --model {family} --data texts --max-length 16")[1]  # one file is taken as a whole


def test_language_model_of_one_text_is_its_perplexity(at, command):
    tokenizer, model = Tokenizer.from_folder("gpt2"), load_pretrained("gpt2", task="lm")
    ids = np.array([tokenizer.encode("the film is warm")])
    with no_grad():
        z = model(ids).logits.data[0].astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    nats = -np.mean(np.log(p[np.arange(ids.shape[1] - 1), ids[0, 1:]]))
    code, out, _ = command("predict --model gpt2 --json p.json", "--text", "the film is warm")
    assert code == 0 and out.splitlines()[1] == f"nats a token\t{nats:.4f}"
    assert json.loads(Path("p.json").read_text())["score"] == pytest.approx(np.exp(nats), rel=1e-5)


def test_every_kind_of_file_gives_the_same_run(at, command):
    losses = []
    for name in ("one.tsv", "one.csv", "one.jsonl"):
        assert command(f"finetune --model bert --data {name} --epochs 1 --out runs/{name}")[0] == 0
        losses.append(json.loads(Path(f"runs/{name}/result.json").read_text())["losses"])
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 7  # 108 of 120 texts, 16 in a batch


def test_pairs(at, command):
    assert command("finetune --model bert --data pairs.tsv --epochs 8 --lr 0.03 --metric f1 --out runs/a --json a.json")[0] == 0
    result = json.loads(Path("a.json").read_text())
    assert (result["metric"], result["split"]) == ("f1", "dev") and result["score"] == result["evaluations"][-1]["f1"]
    code, out, _ = command("predict --model bert --adapter runs/a --data pairs.tsv")
    first, second, _ = Path("pairs.tsv").read_text().splitlines()[1].split("\t")
    assert code == 0 and out.splitlines()[0].split("\t")[2:] == [first, second]
    code, out, _ = command("predict --model bert --adapter runs/a --text good --text2 fine")
    assert code == 0 and out.endswith("\tgood\tfine\n")
    assert command("predict --model bert --adapter runs/a --text good")[1].split("\t")[1] != out.split("\t")[1]


def test_seeds_and_options_reach_the_run(at, command):
    """Each option changes the losses, so that none is forgotten on its way."""
    seen = {}
    for option in (
        "--seed 0",
        "--seed 1",
        "--rank 3",
        "--alpha 3",
        "--targets mlp.up",
        "--dropout 0.5",
        "--lr 0.02",
        "--batch-size 8",
        "--accumulate 2",
        "--optimizer sgd",
        "--schedule constant",
        "--warmup 0.5",
        "--weight-decay 5",
        "--clip 0.01",
        "--max-length 4",
        "--pooling cls",
        "--train-limit 40",
    ):
        assert command(f"finetune --model bert --data data --epochs 2 --out runs/a {option}")[0] == 0
        losses = tuple(json.loads(Path("runs/a/result.json").read_text())["losses"])
        assert losses not in seen, (option, seen.get(losses))
        seen[losses] = option
        shutil.rmtree("runs")
    for option, steps in (("--max-steps 3", 3), ("--epochs 1", 5), ("--epochs 3", 15)):
        assert command(f"finetune --model bert --data data --out runs/a {option}")[0] == 0
        assert json.loads(Path("runs/a/result.json").read_text())["steps"] == steps
        shutil.rmtree("runs")


def test_options_that_do_nothing_are_named(at, command):
    code, _, err = command("finetune --model bert --data data --method head --rank 4 --stride 2 --epochs 1 --out runs/a")
    assert code == 0 and err.startswith("note: --stride, --rank do nothing with method head and task classify\n")
    code, _, err = command("finetune --model llama --data raw.txt --task lm --metric f1 --epochs 1 --out runs/b")
    assert code == 0 and err.startswith("note: --metric does nothing with method lora and task lm\n")
    assert not command("finetune --model bert --data data --rank 4 --epochs 1 --out runs/c")[2].startswith("note")


def test_without_dev_and_test(at, command):
    shutil.copytree("data", "only")
    Path("only/dev.tsv").unlink()
    Path("only/test.tsv").unlink()
    code, out, _ = command("finetune --model bert --data only --epochs 1 --out runs/a --json a.json")
    result = json.loads(Path("a.json").read_text())
    assert code == 0 and "score       no dev or test split" in out and result["score"] is None and result["split"] is None


# ---- writing one text from another -----------------------------------------------------------------------------


def told(split):
    """{source: [references]} of a split, in the order of the file."""
    out = {}
    for line in Path(f"told/{split}.tsv").read_text().splitlines()[1:]:
        text, reference = line.split("\t")
        out.setdefault(text, []).append(reference)
    return out


@pytest.mark.parametrize("method", ["full", "prefix"])
def test_writing_end_to_end(method, at, command):
    """What is learnt, what is printed, and that the saved model or adapter writes what the run was scored by."""
    rate = {"full": "--lr 0.02", "prefix": "--num-virtual-tokens 4 --reparametrise --hidden 8"}[method]
    code, out, err = command(f"{TELL}/a --method {method} {rate} --epochs 10 --json a.json")
    assert code == 0, err
    result = json.loads(Path("a.json").read_text())
    scores = result["scores"]
    assert (result["metric"], result["split"], result["task"], result["score"]) == ("bleu", "test", "seq2seq", scores["bleu"])
    assert list(scores) == ["score", "bleu", "rouge_l", "exact", "loss"]
    assert result["losses"][-1] < (0.4 if method == "full" else 0.95) * result["losses"][0]
    assert scores["bleu"] > 40 or method == "prefix"
    assert result["steps"] == 10 * -(-sum(map(len, told("train").values())) // 16)
    assert out.splitlines()[3:6] == [f"bleu        {scores['bleu']:.4f} on test", f"rouge_l     {scores['rouge_l']:.4f} on test",
                                     f"exact       {scores['exact']:.4f} on test"]
    epochs = [line for line in err.splitlines() if "epoch" in line]
    last = result["evaluations"][-1]
    said = "  ".join(f"{name} {last[name]:.4f}" for name in ("bleu", "rouge_l", "exact", "loss"))
    assert len(epochs) == 10 and epochs[-1].endswith(f"dev: {said}")

    trained = "--model runs/a" if method == "full" else "--model t5 --adapter runs/a"
    code, out, err = command(f"predict {trained} --data told --max-target-length 16 --json p.json")
    written, lines = json.loads(Path("p.json").read_text()), out.splitlines()
    assert code == 0 and len(lines) == len(told("test")) == len(written["predictions"])
    which = f"on the sources of test ({len(lines)})"
    assert err.splitlines() == [f"{name} {scores[name]:.4f} {which}" for name in ("bleu", "rouge_l", "exact")]
    assert written["scores"] == {name: value for name, value in scores.items() if name != "loss"}
    assert written["predictions"] == [{"source": source, "text": line, "references": references}
                                      for line, (source, references) in zip(lines, told("test").items())]
    for source, line in [*zip(told("test"), lines)][:3]:  # alone, and by the other command
        assert command(f"predict {trained} --max-target-length 16 --text", source) == (0, f"{line}\n", "")
        assert command(f"generate {trained} --max-new-tokens 16 --prompt", source)[1].strip() == line


def test_references_are_optional_in_predicting(at, command):
    line = "predict --model t5 --max-target-length 5"
    alone = command(f"{line} --data told --split dev")[1]
    first, *others = told("dev")
    Path("some.tsv").write_text(f"text\ttext2\n{first}\tx\n" + "".join(f"{source}\t\n" for source in others))
    code, out, err = command(f"{line} --data some.tsv --json s.json")
    assert (code, out) == (0, alone) and err.splitlines()[-1] == "exact 0.0000 on 1 of the 15 sources of test"
    Path("none.tsv").write_text("text\n" + "".join(f"{source}\n" for source in told("dev")))
    said = "not scored: the sources of test have no reference\n"
    assert command(f"{line} --data none.tsv --json n.json") == (0, alone, said)
    assert "scores" not in json.loads(Path("n.json").read_text())
    text = alone.splitlines()[0]
    code, _, err = command(f"{line} --json t.json --text", next(iter(told("dev"))), "--text2", text)
    assert code == 0 and "exact 1.0000 on the sources of test (1)\n" in err
    assert json.loads(Path("t.json").read_text())["predictions"][0]["references"] == [text]


def test_the_settings_of_writing_reach_the_run(at, command):
    """Each changes the losses; a single file is held out by source."""
    seen = {}
    for option in ("", "--max-target-length 4", "--max-length 4", "--label-smoothing 0.2", "--train-limit 40", "--batch-size 8",
                   "--seed 1"):
        assert command(f"{TELL} --data told.tsv --max-steps 3 {option}")[0] == 0
        result = json.loads(Path("runs/result.json").read_text())
        assert tuple(result["losses"]) not in seen and result["split"] == "dev" and result["steps"] == 3
        seen[tuple(result["losses"])] = option
        shutil.rmtree("runs")
    for metric in ("bleu", "rouge_l", "exact"):
        code, out, _ = command(f"{TELL} --metric {metric} --max-steps 1")
        result = json.loads(Path("runs/result.json").read_text())
        assert code == 0 and (result["metric"], result["score"]) == (metric, result["scores"][metric])
        others = [name for name in ("bleu", "rouge_l", "exact") if name != metric]
        assert [line.split()[0] for line in out.splitlines()[3:6]] == [metric, *others]
        shutil.rmtree("runs")
    Path("told/dev.tsv").unlink()
    Path("told/test.tsv").unlink()
    assert "score       no dev or test split\n" in command(f"{TELL} --max-steps 1")[1]


METHODS_ON_T5 = {"full": "", "head": "", "top_k": "--layers 1", "bitfit": "--add-zero-biases", "layernorm": "",
                 "random_mask": "--share 0.2", "lora": "", "adalora": "--target-rank 1 --interval 1", "ia3": "",
                 "houlsby": "--bottleneck 4", "compacter": "", "prefix": "", "prompt": "", "task_embedding": "",
                 "output": "--words 'the film is' --lr 1"}


@pytest.mark.parametrize("method", METHODS_ON_T5)
def test_every_kind_of_method_learns_to_write_and_is_loaded_again(method, at, command, tiny, monkeypatch):
    """On a T5 whose output map is its own, so that the head can be trained and a fresh model writes something."""
    tiny.make_t5(at / "t5", Tokenizer.from_folder("t5"), tied=False)
    write, texts = Sequence2Sequence.write, []
    monkeypatch.setattr(Sequence2Sequence, "write", lambda *args, **kwargs: (texts.append(write(*args, **kwargs)), texts[-1])[1])
    code, _, err = command(f"{TELL} --method {method} --lr 0.05 --max-steps 4 --train-limit 40 {METHODS_ON_T5[method]}")
    assert code == 0, err
    result = json.loads(Path("runs/result.json").read_text())
    trained = "--model runs" if method == "full" else "--model t5 --adapter runs"
    assert command(f"predict {trained} --data told --max-target-length 16 --json p.json")[0] == 0
    again = json.loads(Path("p.json").read_text())
    assert texts[-1] == texts[-2]
    assert again["scores"] == {name: value for name, value in result["scores"].items() if name != "loss"}
    assert command("predict --model t5 --data told --max-target-length 16")[0] == 0
    assert texts[-1] != texts[-2]  # the base alone writes something else


# ---- resuming --------------------------------------------------------------------------------------------------


def contents(folder):
    """{name: bytes} of a finished run's folder; of the result all but the times."""
    out = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = json.loads(out["result.json"])
    out["result.json"] = {k: v for k, v in result.items() if k not in TIMES}
    return out


@pytest.mark.parametrize("step", [2, 5])
def test_ctrl_c_and_resume_while_learning_to_write(step, at, command, monkeypatch):
    """Stopped within an epoch, and in the evaluation at the end of one, it ends with the bits of a run that was not."""
    line = f"{TELL}/part --method full --train-limit 40 --epochs 3 --accumulate 2"
    assert command(line.replace("/part", "/whole"))[0] == 0
    write, collate, calls = Sequence2Sequence.write, Sequence2Sequence.collate, []

    def stop():
        calls.append(0)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)

    def writing(self, *args, **kwargs):
        if step == 5:
            stop()
        return write(self, *args, **kwargs)

    def collating(self, indices, split="train"):
        if split == "train":
            stop()
        return collate(self, indices, split)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence2Sequence, "write", writing)
        patch.setattr(Sequence2Sequence, "collate", collating)
        code, out, err = command(line)
    assert (code, out) == (130, "") and err.endswith("the checkpoint is kept. To go on, repeat the command with --resume\n")
    assert {path.name for path in Path("runs/part").iterdir()} == {"run.json", "checkpoint.safetensors"}
    code, out, err = command(f"{line} --resume")
    assert code == 0 and "full: going on after step" in err and "bleu " in out
    assert contents(at / "runs/part") == contents(at / "runs/whole")


@pytest.mark.parametrize("method, step", [("lora", 1), ("lora", 7), ("full", 11), ("head", 20)])
def test_ctrl_c_and_resume(method, step, at, command, monkeypatch):
    line = f"finetune --model bert --data data --method {method} --rank 2 --epochs 4 --out runs/"
    assert command(line + "whole")[0] == 0
    collate, calls = Classification.collate, []

    def interrupting(self, indices, split="train"):
        if split == "train":
            calls.append(0)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
        return collate(self, indices, split)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "collate", interrupting)
        code, out, err = command(line + "parts")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"minipeft: stopped after step {step} of 20; the checkpoint is kept. To go on, repeat the command with --resume"
    )
    assert {path.name for path in Path("runs/parts").iterdir()} == {"run.json", "checkpoint.safetensors"}
    code, out, err = command(line + "parts --resume")
    assert code == 0 and f"{method}: going on after step {step} of 20" in err and "accuracy" in out
    assert contents(at / "runs/parts") == contents(at / "runs/whole")


def test_ctrl_c_outside_the_loop(at, command, monkeypatch):
    """While the last results are written the checkpoint is there, too; before training there is none."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save", stop)
        code, _, err = command(TRAIN)
    assert code == 130 and err.endswith("minipeft: stopped; the checkpoint is kept. To go on, repeat the command with --resume\n")
    shutil.rmtree("runs")
    monkeypatch.setattr(run_module, "make_work", stop)
    assert command(TRAIN) == (130, "", "minipeft: stopped\n") and not Path("runs").exists()


KILLED = """
    import os, shutil, signal, sys
    os.chdir({at!r})
    from minipeft import cli
    line = {line!r}.split()
    assert cli.main(line + ["--out", "runs/warm-up"]) == 0  # the kernels are loaded once, and not in each child

    def in_child(arguments, kill_at=None):
        pid = os.fork()
        if pid == 0:
            replace, calls = os.replace, []

            def killing(source, target):
                calls.extend([target] if str(target).startswith("runs") else [])
                if len(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            os.replace = killing
            sys.stdout = open(os.devnull, "w")
            code = cli.main(arguments)
            os._exit(code if kill_at is None else 99)  # 99: there are not so many files to write
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert in_child(line + ["--out", "runs/whole"]) == 0
    for moment in range(1, 40):
        out = ["--out", "runs/killed-" + str(moment)]
        code = in_child(line + out, moment)
        if code == 99:
            break
        assert code == -signal.SIGKILL, code
        assert in_child(line + out + ["--resume"]) == 0
    print(moment)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("method", [
    "lora", "full", "adalora --interval 1 --target-rank 1",
    "full --mixout 0.3 --l2-sp 0.1 --unfreeze --layer-decay 2 --label-smoothing 0.1 --schedule slanted",
    "prefix --reparametrise --hidden 6"])
def test_killed_at_any_moment(method, at, run_python):
    """Killed with -9 in the middle of each write of a file: what --resume makes is what an uninterrupted run makes."""
    line = f"finetune --model bert --data data --method {method} --rank 2 --max-length 16 --epochs 2"
    done = run_python(KILLED.format(at=str(at), line=line))
    assert done.returncode == 0, done.stdout + done.stderr
    moments = int(done.stdout.split()[-1])
    assert moments > 1 + 3 + 4 + 1  # run.json, 3 checkpoints, 4 or more files of what was trained, result.json
    whole = contents(at / "runs/whole")
    for moment in range(1, moments):
        assert contents(at / f"runs/killed-{moment}") == whole, moment


def test_a_finished_run_gives_its_result_again(at, command, refused):
    first = command(TRAIN)
    before = contents(at / "runs/a")
    refused(TRAIN, "runs/a: holds a finished run; pass --resume to go on with it, or choose another --out")
    code, out, err = command(TRAIN + " --resume --json again.json")
    assert (code, out, err) == (0, first[1], "note: runs/a holds this run, finished before; its result again:\n")
    assert json.loads(Path("again.json").read_text()) == json.loads(Path("runs/a/result.json").read_text())
    assert contents(at / "runs/a") == before
    refused(
        TRAIN + " --rank 3 --max-length 9 --resume",
        "runs/a: holds a run with other settings (--max-length was 128, now 9; --rank was 2, now 3); choose another --out",
    )


def test_defaults_given_by_hand_are_the_same_run(at, command):
    assert command("finetune --model bert --data data --max-steps 2 --out runs/a")[0] == 0
    assert command("finetune --model bert --data data --max-steps 2 --out runs/a --resume --lr 0.005 --epochs 3")[0] == 0


def test_resume_with_nothing_there(at, command):
    assert command(TRAIN.replace("runs/a", "runs/b"))[0] == 0
    code, _, err = command(TRAIN + " --resume")
    assert code == 0 and err.splitlines()[0] == "note: runs/a holds nothing to go on with; starting from the beginning"
    assert contents(at / "runs/a") == contents(at / "runs/b")


def test_an_unfinished_run_is_not_overwritten(at, command, refused):
    assert command(TRAIN + " --lr 1e30")[0] == 2
    refused(TRAIN, "runs/a: holds an unfinished run; pass --resume")
    refused(TRAIN + " --resume", "runs/a: holds a run with other settings (--lr was 1e+30, now 0.03)")
    Path("runs/a/run.json").write_text("{")
    refused(TRAIN + " --resume", "runs/a/run.json: this run description is not JSON")


# ---- where results go ------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written_are_seen_before_training(at, refused, monkeypatch):
    monkeypatch.setattr(run_module, "fit", lambda *a: pytest.fail("training began"))
    Path("file").write_text("mine")
    base = "finetune --model bert --data data "
    refused(base + "--out file", "file: is a file; expected a folder for the run in --out")
    refused(base + "--out file/below", "file/below: cannot be written")
    refused(base + "--out bert", "bert: is the --model itself, whose files a run would replace")
    refused(base + "--out gpt2", "gpt2: holds model.safetensors, which is not of a run of minipeft")
    refused(base + "--out runs/a --json data", "--json data: is a folder")
    refused(base + "--out runs/a --json file/a.json", "file/a.json: cannot be written")
    for other in (
        "predict --model bert --data data --json data",
        "generate --model gpt2 --prompt a --json data",
        "doctor --json data",
        "compare --model bert --data data --json data",
    ):
        refused(other, "--json data: is a folder")
    assert Path("file").read_text() == "mine"


def test_a_folder_without_permission(at, refused, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_module.tempfile, "TemporaryFile", denied)
    refused(TRAIN, "runs/a: cannot be written (Permission denied)")
    refused(TRAIN + " --json b/c.json", "b/c.json: cannot be written (Permission denied)")


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 8, 9, 11])
def test_a_full_disk_loses_nothing(number, at, command, monkeypatch):
    """Whichever write fails, the message names the file, and --resume ends with the bits of a run without the fault."""
    assert command(TRAIN.replace("runs/a", "runs/whole"))[0] == 0
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, out, err = command(TRAIN)
    name = {1: "run.json", 11: "result.json"}.get(number, "checkpoint.safetensors" if number < 7 else "")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"minipeft: runs/a/\S*{name}: cannot be written \(No space left on device\)", err.splitlines()[-1])
    assert Path("runs/a").exists() == (number > 2)  # run.json and the first checkpoint come before training
    assert command(TRAIN + " --resume")[0] == 0
    assert contents(at / "runs/a") == contents(at / "runs/whole")


# ---- standard output -------------------------------------------------------------------------------------------


def start(arguments, at, **environment):
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "minipeft", *arguments],
        cwd=at,
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


@pytest.mark.parametrize(
    "arguments", [["finetune", "--help"], ["generate", "--model", "gpt2", "--prompt", "film", "--max-new-tokens", "3"]]
)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_away(arguments, buffered, at):
    process = start(arguments, at, PYTHONUNBUFFERED=buffered)
    process.stdout.close()  # before anything is written: starting Python takes longer
    assert process.stderr.read() == "" and process.wait() == 0


def test_a_terminal_without_the_letters(at, command):
    assert command(TRAIN)[0] == 0
    line = ["predict", "--model", "bert", "--adapter", "runs/a", "--text", "café"]
    out, err = start(line, at, PYTHONIOENCODING="ascii", PYTHONUTF8="0").communicate()
    assert err == "" and out.split("\t")[2] == "caf\\xe9\n"
    _, err = start([*line, "--adapter", "café"], at, PYTHONIOENCODING="ascii", PYTHONUTF8="0").communicate()
    assert err == "minipeft: caf\\xe9: no such folder; expected an adapter\n"


def test_debug_shows_the_traceback(at, monkeypatch):
    monkeypatch.setenv("MINIPEFT_DEBUG", "1")
    with pytest.raises(ValueError, match="nothere: no such folder"):
        cli.main(["generate", "--model", "nothere", "--prompt", "a"])


@pytest.mark.parametrize(
    "error, message",
    [
        (
            MemoryError("Unable to allocate 9 EiB"),
            "not enough memory (Unable to allocate 9 EiB); try a smaller --batch-size or --max-length",
        ),
        (MemoryError(), "not enough memory; try a smaller --batch-size or --max-length"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), "rich is not installed; run: pip install rich"),
        (ModuleNotFoundError("No module named 'pytest'", name="pytest"),
         'pytest is not installed; in the project\'s folder run: pip install ".[learn]"'),
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (ValueError("two\n  lines"), "two lines"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_other_faults_are_one_line_too(error, message, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)
    assert cli.main(["doctor"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert capsys.readouterr().err == f"minipeft: {message}\n"


# ---- bad models ------------------------------------------------------------------------------------------------


def spoil_tensors(folder, change):
    tensors = files.read_tensors(folder / "model.safetensors")
    change(tensors)
    files.write_tensors(folder / "model.safetensors", tensors)


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def lie_about_sizes(path, change):
    """Change the header of a safetensors file, and its length with it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])


ENCODER_DECODER = ("an encoder-decoder, which writes one text from another; use --task seq2seq with it, or a model of another "
                   "kind (BERT, GPT-2, LLaMA)")


def test_a_base_in_4_bits(at, command, refused):
    line = "--model bert --data data --epochs 1 --max-length 16"
    code, out, err = command(f"finetune {line} --method lora --rank 2 --base-bits 4 --json r.json --out runs/four")
    assert code == 0 and "note: 4-bit base: 12 maps of " in err and " bits a weight; error |W - W~| / |W| " in err
    total = json.loads(Path("r.json").read_text())["total"]
    command(f"finetune {line} --method lora --rank 2 --json s.json --out runs/plain")
    assert json.loads(Path("s.json").read_text())["total"] == total
    kept = json.loads(Path("runs/four/minipeft.json").read_text())
    assert kept["quantised"] == {"targets": None, "double": True}
    score = json.loads(Path("r.json").read_text())["score"]
    assert f"accuracy {score:.4f}" in command("predict --model bert --adapter runs/four --data data --max-length 16")[2]
    message = "attach: full trains weights, and blocks.0.attn.q is stored in 4 bits; dequantise the model first, or attach LoRA"
    refused(f"finetune {line} --method full --base-bits 4 --out runs/full", message)
    refused(f"compare {line} --methods lora,full --rank 2 --base-bits 4 --out runs/all", message)
    refused(f"finetune {line} --base-bits 8 --out x", "--base-bits: expected 4, got '8'; left out, weights stay as they are")


def test_drafts(at, command, refused):
    line = "generate --model llama --max-new-tokens 12 --prompt film"
    plain = command(line)[1]
    code, out, err = command(f"{line} --draft-layers 1 --draft-tokens 3 --json d.json")
    told = json.loads(Path("d.json").read_text())
    assert (code, out) == (0, plain) and err == f"note: {told['accepted']} of {told['drafted']} drafted tokens were accepted\n"
    assert 0 <= told["accepted"] <= told["drafted"] and told["drafted"] >= 3
    refused(f"{line} --draft-layers 2",
            "--draft-layers: expected a Decoder with an LMHead, and 1 to 1 of its 2 blocks to draft; got")
    refused(f"{line} --draft-layers 1 --temperature 1", "--draft-layers: what is drafted is verified against the most probable")
    refused("generate --model t5 --prompt film --draft-layers 1", "--draft-layers: expected a Decoder with an LMHead")


def test_more_virtual_tokens_than_positions(at, refused):
    for method in ("prefix", "prompt"):
        refused(f"finetune --model bert --data data --method {method} --num-virtual-tokens 999 --out runs",
                f"{method}: 999 virtual tokens leave none of this model's ")


@pytest.mark.parametrize(
    "line,message",
    [
        ("finetune --model t5 --data told --out runs", f"--task classify: t5 is T5, {ENCODER_DECODER}"),  # not: no labels
        ("finetune --model t5 --data raw.txt --task lm --out runs", f"--task lm: t5 is T5, {ENCODER_DECODER}"),
        ("compare --model t5 --data told --out runs", f"--task classify: t5 is T5, {ENCODER_DECODER}"),
        ("finetune --model bert --data told --task seq2seq --out runs",
         "--task seq2seq: writing one text from another needs an encoder-decoder (T5), and bert is an encoder (bert); "
         "use --task classify with it, or a T5 folder"),
        ("compare --model gpt2 --data told --task seq2seq --out runs",
         "--task seq2seq: writing one text from another needs an encoder-decoder (T5), and gpt2 is a decoder (gpt2); "
         "use --task classify or lm with it, or a T5 folder"),
        (f"{TELL} --metric accuracy", "--metric: task seq2seq is scored by one of bleu, rouge_l, exact; got 'accuracy'"),
        ("finetune --model bert --data data --metric bleu --out runs",
         "--metric: task classify is scored by one of accuracy, f1, matthews; got 'bleu'"),
        (f"{TELL} --data data",
         "data/train.tsv: line 1: no column 'text2' in the header; expected text, text2, got: 'text', 'label'"),
        (f"{TELL} --method head",
         "attach: this model has no output map of its own to train (it has no head, or one that is tied to the word vectors)"),
        (f"{TELL} --method output", "output: expected words, the label words, as different token ids below 45; got none"),
        (f"{TELL} --method bitfit", "bitfit: this t5 model has no bias to train; --add-zero-biases adds biases of zeros"),
        (f"{TELL} --method fisher_mask",
         "fisher_mask: entries are weighed by a classifier's classes, and task seq2seq has none; use random_mask, or --task "
         "classify"),
        ("finetune --model gpt2 --data raw.txt --task lm --method fisher_mask --out runs",
         "fisher_mask: entries are weighed by a classifier's classes, and task lm has none"),
        ("predict --model t5 --data raw.txt", "raw.txt: unknown kind of file '.txt'; expected .tsv, .csv, .jsonl"),
    ],
)
def test_what_does_not_fit_an_encoder_decoder(line, message, at, refused):
    refused(line, message)


def test_data_and_models_without_what_writing_needs(at, refused):
    Path("told/train.tsv").unlink()
    refused(TELL, "told: no train file; there are: dev, test")
    spoil_config(at / "t5", eos_token_id=None)
    settings = json.loads(Path("t5/tokenizer_config.json").read_text())
    Path("t5/tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    for line in (f"{TELL} --data told.tsv", "predict --model t5 --data told"):
        refused(line, "--task seq2seq: there is no end token, so that no text would end; expected an eos_token_id in the model's "
                      "config.json, a number below 45, or an eos_token in its tokenizer_config.json")


def test_a_library_for_scores_that_is_missing_is_missed_before_training(at, refused, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    message = ("sacrebleu: the library is not installed, and texts are not scored without it; in the project's folder run: "
               'pip install ".[seq2seq]"')
    refused(TELL, message)
    refused("compare --model t5 --data told --task seq2seq --out runs", message)
    refused("predict --model t5 --data told", message)
    assert command("predict --model t5 --max-target-length 3", "--text", "film[good]")[0] == 0  # nothing to score


WORDS = "embeddings.word_embeddings.weight"
MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "bert: no config.json; expected a Hugging Face model folder"),
    "unknown kind": (
        lambda f: spoil_config(f, model_type="electra"),
        "bert/config.json: unknown model_type 'electra'; known: bert, gpt2, llama, t5",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "bert: no tokenizer.json"),
    "no folder": (shutil.rmtree, "bert: no such folder"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "not a whole safetensors file",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "missing": (lambda f: spoil_tensors(f, lambda t: t.pop(WORDS)), f"missing tensors: {WORDS}"),
    "extra": (lambda f: spoil_tensors(f, lambda t: t.update(surplus=np.zeros(3, np.float32))), "unexpected tensors: surplus"),
    "mis-shaped": (
        lambda f: spoil_tensors(f, lambda t: t.update({WORDS: t[WORDS][1:]})),
        f"{WORDS} (expected (98, 16), got (97, 16))",
    ),
    "lying shape": (
        lambda f: lie_about_sizes(f / "model.safetensors", lambda h: h[WORDS].update(shape=[10**6, 16])),
        "not a whole safetensors file",
    ),
    "lying offsets": (
        lambda f: lie_about_sizes(f / "model.safetensors", lambda h: h[WORDS].update(data_offsets=[0, 10**12])),
        "not a whole safetensors file",
    ),
    "lying header": (
        lambda f: (f / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        "not a whole safetensors file",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, and opening a pickle can run any program",
    ),
}


@pytest.mark.parametrize("fault", MODELS)
def test_bad_models(fault, at, refused):
    spoil, message = MODELS[fault]
    spoil(at / "bert")
    refused(TRAIN, message)
    refused("compare --model bert --data data --out runs/c", message)
    refused("predict --model bert --text a", message)


# ---- bad data --------------------------------------------------------------------------------------------------

DATA = {
    "empty": (b"", "train.tsv: the file is empty"),
    "no column": (b"text\tclass\na\tpraise\n", "line 1: no column 'label' in the header"),
    "not UTF-8": (b"text\tlabel\na\tpraise\nb\xff\tblame\n", "line 3: not UTF-8 text (byte 0xff)"),
    "too many fields": (b"text\tlabel\na\tpraise\nb\tc\tblame\n", "line 3: expected 2 cells (text, label), got 3"),
    "one class": (b"text\tlabel\na\tpraise\nb\tpraise\n", "only one class ('praise') in train"),
}


@pytest.mark.parametrize("fault", DATA)
def test_bad_data(fault, at, refused):
    content, message = DATA[fault]
    Path("bad").mkdir()
    Path("bad/train.tsv").write_bytes(content)
    refused(TRAIN.replace("--data data", "--data bad"), message)
    refused("compare --model bert --data bad --out runs/c", message)


def test_data_that_is_not_there_or_of_another_kind(at, refused):
    refused(TRAIN.replace("--data data", "--data nothere"), "nothere: no such file or folder")
    refused(TRAIN.replace("--data data", "--data raw.txt"), "raw.txt: unknown kind of file '.txt'")
    Path("data/train.tsv").unlink()
    refused(TRAIN, "data: no train file, from which the classes are learnt; there are: dev.tsv, test.tsv")
    refused("finetune --model gpt2 --data data --task lm --out runs/a", "data: no train file; there are: dev, test")


def test_a_label_unknown_at_prediction(at, command, refused):
    assert command(TRAIN)[0] == 0
    Path("new.tsv").write_text("text\tlabel\nfine\tpraise\nfine\tindifferent\n")
    refused(
        "predict --model bert --adapter runs/a --data new.tsv",
        "new.tsv: line 3: unknown label 'indifferent'; known: 'blame', 'praise'",
    )


def test_a_very_long_text(at, command, tiny):
    tiny.write_tsv(at / "data/train.tsv", [*tiny.examples(80), ("good " * 20_000, "praise")])
    code, _, err = command(TRAIN + " --max-length 16")
    assert code == 0 and err.count("note: ") == 1 and err.startswith("note: 1 text is longer than 16 tokens and was cut\n")
    code, out, err = command("predict --model bert --adapter runs/a --text", "good " * 20_000)  # cut at the model's 40 positions
    assert code == 0 and out.startswith("praise\t") and err == "note: 1 text is longer than 40 tokens and was cut\n"
    assert command("finetune --model llama --data data --max-steps 1 --max-length 50 --out runs/b")[2].startswith(
        "note: 1 text is longer than 50 tokens"
    )


# ---- options that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ("--rank 17", "--rank: the rank at blocks.0.attn.q must be a whole number from 1 to 16, got 17"),
        ("--targets attn.w", "--targets: no module matches 'attn.w'"),
        ("--targets attn.q,", "--targets: no module matches ''"),
        ("--max-length 2", "--max-length: 2 tokens leave no room for text beside 2 special tokens"),
        ("--task lm", "--task lm: BERT is an encoder and cannot continue text"),
        ("--model gpt2 --pooling cls", "--pooling: cls reads the first token, which in a decoder sees none of the text"),
        ("--model llama --pooling pooler", "--pooling: pooler reads the first token"),
        ("--model gpt2 --task lm --method head", "this model has no output map of its own to train"),
        ("--model gpt2 --task lm --max-length 8 --stride 9", "--stride: expected 1 to 8, the length of a block, got 9"),
    ],
)
def test_options_that_do_not_fit_the_model(options, message, at, refused):
    refused(TRAIN + " " + options, message)
    if "--method" not in options:
        refused(f"compare --model bert --data data --methods head,lora --out runs/c {options}", message)


def test_a_loss_that_is_not_a_number(at, command):
    code, out, err = command(TRAIN + " --lr 1e30")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"minipeft: training diverged at step \d+: .*; first bad: (the output of|the parameter|the gradient of) "
        r"(blocks|head|embed)\S*; the last good checkpoint is kept: runs/a/checkpoint\.safetensors\. "
        r"Try a smaller --lr, or a longer warm-up",
        err.splitlines()[-1],
    )
    kept = files.read_tensors(Path("runs/a/checkpoint.safetensors"))
    assert kept and all(np.isfinite(a).all() for a in kept.values())


# ---- predict ---------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(at, command):
    assert command(TRAIN)[0] == 0
    return "--model bert --adapter runs/a"


def test_texts_without_labels(adapter, command):
    code, out, err = command(f"predict {adapter} --data unlabelled.tsv --json p.json")
    written = json.loads(Path("p.json").read_text())
    rows = [row.split("\t") for row in out.splitlines()]
    assert (code, len(rows)) == (0, 7) and "scores" not in written
    assert err == "not scored: the 7 texts of test have no label\n"
    for row, found, text in zip(rows, written["predictions"], Path("unlabelled.tsv").read_text().splitlines()[1:]):
        p = found["probabilities"]
        assert row == [found["label"], f"{max(p.values()):.4f}", text] and p[found["label"]] == max(p.values())
        assert set(p) == {"blame", "praise"} and sum(p.values()) == pytest.approx(1)


def test_a_text_without_a_label_leaves_the_rest_unscored_and_says_so(adapter, command):
    Path("some.tsv").write_text("text\tlabel\ngood\tpraise\nbad\t\n", encoding="utf-8")
    assert command(f"predict {adapter} --data some.tsv")[2] == "not scored: 1 of the 2 texts of test has no label\n"
    Path("one_text.tsv").write_text("text\tlabel\ngood\tpraise\n", encoding="utf-8")
    assert command(f"predict {adapter} --data one_text.tsv")[2].endswith("on the 1 text of test\n")


def test_a_text_alone_is_what_it_is_among_others(adapter, command):
    among = command(f"predict {adapter} --data unlabelled.tsv")[1].splitlines()
    alone = [command(f"predict {adapter} --text", row.split("\t")[2])[1].strip() for row in among]
    assert [(a.split("\t")[0], a.split("\t")[2]) for a in alone] == [(b.split("\t")[0], b.split("\t")[2]) for b in among]
    for a, b in zip(alone, among):
        assert float(a.split("\t")[1]) == pytest.approx(float(b.split("\t")[1]), abs=2e-4)


def test_parts_of_a_folder(adapter, command, refused):
    for split, count in (("train", 80), ("dev", 20), ("test", 20)):
        assert f"on the {count} texts of {split}\n" in command(f"predict {adapter} --data data --split {split}")[2]
    Path("data/test.tsv").unlink()
    assert "on the 20 texts of dev\n" in command(f"predict {adapter} --data data")[2]
    refused(f"predict {adapter} --data data --split test", "data: no test split; there are: train, dev")
    Path("data/dev.tsv").unlink()
    assert "on the 80 texts of train\n" in command(f"predict {adapter} --data data")[2]
    refused(f"predict {adapter} --data one.tsv --split dev", "--split chooses a part of a folder")
    refused(f"predict {adapter} --text a --split dev", "--split chooses a part of a folder")
    refused(f"predict {adapter} --data one.tsv --text2 b", "--text2 is the second text of a pair; give the first with --text")
    code, out, _ = command("predict --model gpt2 --data data")  # a language model reads the parts of a folder in the same order
    assert code == 0 and out == command("predict --model gpt2 --data data --split train")[1]
    refused("predict --model gpt2 --data data --split dev", "data: no dev split; there are: train")
    refused("predict --model gpt2 --text a --text2 b", "--text2: a language model reads one text, not a pair")


def test_a_text_of_several_lines_is_one_row(adapter, command):
    Path("lines.csv").write_text('text,label\n"a\nwarm\tfilm",praise\nb,blame\n')
    out = command(f"predict {adapter} --data lines.csv")[1]
    assert [row.split("\t")[2] for row in out.splitlines()] == ["a warm film", "b"]


def test_models_and_adapters_that_do_not_fit(adapter, refused, command):
    refused(
        "predict --model bert --data data",
        "bert: this model has no classification or language-model head; give the --adapter that brings one",
    )
    refused("predict --model bert --adapter bert --data data", "bert: neither minipeft.json nor adapter_config.json")
    refused("predict --model gpt2 --adapter runs/a --data data",
            "runs/a: the adapter was made for a bert model, and this is a gpt2 model")
    tensors = files.read_tensors(Path("runs/a/adapter_model.safetensors"))
    files.write_tensors(Path("runs/a/adapter_model.safetensors"), {name: a[..., 1:] for name, a in tensors.items()})
    refused("predict --model bert --adapter runs/a --data data", "tensors of another shape: base_model.model.")
    shutil.copytree("bert", "other")
    assert command("finetune --model gpt2 --data raw.txt --task lm --max-steps 1 --out runs/lm")[0] == 0
    refused("predict --model llama --adapter runs/lm --data raw.txt",
            "runs/lm: the adapter was made for a gpt2 model, and this is a llama model")


# ---- generate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_greedy_text(family, at, command):
    """The most probable token each time, found here without a cache."""
    tokenizer, model = Tokenizer.from_folder(family), load_pretrained(family, task="lm")
    ids = tokenizer.encode("the film")
    count = len(ids)
    with no_grad():
        for _ in range(9):
            ids.append(int(model(np.array([ids])).logits.data[0, -1].argmax()))
    code, out, err = command(f"generate --model {family} --max-new-tokens 9 --json g.json", "--prompt", "the film")
    assert (code, err) == (0, "") and out == tokenizer.decode(ids) + "\n"
    assert (
        json.loads(Path("g.json").read_text()) == {"prompt": "the film", "text": tokenizer.decode(ids), "ids": ids}
        and len(ids) == count + 9
    )


def test_sampled_text(at, command):
    line = "generate --model llama --max-new-tokens 12 --prompt film --temperature 1.5"
    texts = [command(f"{line} --seed {seed}")[1] for seed in (0, 1, 2)]
    assert len(set(texts)) == 3 and command(f"{line} --seed 1")[1] == texts[1]
    greedy = command("generate --model llama --max-new-tokens 12 --prompt film")[1]
    assert command(f"{line} --top-k 1")[1] == command(f"{line} --top-p 1e-9")[1] == greedy


def test_an_adapter_changes_the_text(at, command):
    assert command("finetune --model gpt2 --data raw.txt --task lm --lr 0.05 --max-length 16 --out runs/a")[0] == 0
    line = "generate --model gpt2 --prompt film --max-new-tokens 12"
    assert command(line + " --adapter runs/a")[1] != command(line)[1]


def test_faults_of_generating(at, command, refused):
    refused("generate --model bert --prompt a", "--task lm: BERT is an encoder and cannot continue text")
    refused(
        "generate --model gpt2 --prompt a",
        "--max-new-tokens: this model has 40 positions and the prompt takes 3; expected at most 37, got 100",
    )
    refused(
        "generate --model gpt2 --max-new-tokens 1 --prompt",
        "this model has 40 positions and the prompt takes 52; shorten the prompt",
        "good " * 50,
    )
    refused("generate --model gpt2 --prompt a --top-k 5", "--top-k and --top-p choose among samples; set a --temperature above 0")
    refused("generate --model nothere --prompt a", "nothere: no such folder")
    assert command("generate --model gpt2 --prompt a --max-new-tokens 37")[0] == 0
    assert command(TRAIN)[0] == 0
    refused("generate --model bert --adapter runs/a --prompt a --max-new-tokens 3", "this model has no language-model head")


def test_an_empty_prompt_where_the_tokenizer_adds_nothing(at, refused):
    tokenizer = json.loads(Path("gpt2/tokenizer.json").read_text())
    Path("gpt2/tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    refused("generate --model gpt2 --prompt", "--prompt: there is no token in this text", "")


def test_t5_writes_a_text_for_another(at, command):
    config = TransformerConfig(
        "t5", 200, 16, 1, 2, 8, 512, num_decoder_layers=1, attention_bias=False, attention_out_bias=False, mlp_bias=False
    )
    save_pretrained(make_model(config, "seq2seq", np.random.default_rng(0)), "t5", tokenizer_from="bert")
    code, out, err = command("generate --model t5 --prompt good --max-new-tokens 4 --json t5.json")
    assert (code, err) == (0, "") and len(json.loads(Path("t5.json").read_text())["ids"]) <= 4
