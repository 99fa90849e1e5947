"""One run: its settings, what it says, and what it counts."""

import json
import re
import shutil
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from minipeft import arguments, cli
from minipeft.compare.run import (EPOCHS, METRICS_OF, OFFERED, RESULT, RUN, Run, batch_length, check_writable, cut_note, describe,
                                  execute, load_config, longest, make_work, notes_on_data, prepare, unused_note)
from minipeft.data import Tokenizer, files
from minipeft.interop import load_pretrained
from minipeft.compare.exits import EarlyExitTuning
from minipeft.methods import METHODS, BitFit, Full, Head, LayerNormTuning, LoRA, TopK, attach
from minipeft.models import TransformerConfig


def test_defaults_are_filled_in():
    for name, method in METHODS.items():
        run = Run("m", "d", method=name)
        assert (run.lr, run.epochs) == (method.default_lr, EPOCHS) == (run.settings().lr, run.settings().epochs)
    assert Run("m", "d", lr=0.5, epochs=7).settings().lr == 0.5 and Run("m", "d", epochs=7).settings().epochs == 7


def test_the_command_line_offers_every_task():
    assert arguments.TASKS == tuple(METRICS_OF)


def test_the_command_lines_defaults_are_the_runs():
    args = cli.make_parser().parse_args("finetune --model m --data d --out o".split())
    assert Run(**cli._run_fields(args)) == Run("m", "d")
    asked = {"shots", "template", "verbalizer", "unlabelled"}  # of compare and prompt
    assert set(cli._run_fields(args)) == {f.name for f in fields(Run)} - asked
    args = cli.make_parser().parse_args("compare --model m --data d".split())
    assert set(cli._run_fields(args)) == {f.name for f in fields(Run)} - {"method", "seed"}


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("method", "doora", f"method: expected one of {', '.join(OFFERED)}, got 'doora'"),
        ("task", "mlm", "task: expected one of classify, lm, seq2seq, got 'mlm'"),
        ("max_length", 1, "max_length: expected at least 2, got 1"),
        ("max_target_length", 1, "max_target_length: expected at least 2, got 1"),
        ("metric", "bleu", "metric: task classify is scored by one of accuracy, f1, matthews; got 'bleu'"),
        ("stride", 0, "stride: expected at least 1, got 0"),
        ("train_limit", 0, "train_limit: expected at least 1, got 0"),
    ],
)
def test_faults_of_settings(name, value, message):
    with pytest.raises(ValueError) as caught:
        Run("m", "d", **{name: value})
    assert str(caught.value) == message


def test_settings_that_do_nothing():
    run = lambda **more: Run("m", "d", **more)
    assert unused_note([run()]) == unused_note([run(options={"rank": 3}, metric="f1", pooling="cls")]) == []
    assert (
        unused_note([run(method="head", options={"rank": 3})])
        == "note: --rank does nothing with method head and task classify"
    )
    assert (
        unused_note([run(method="full", options={"dropout": 0.1}, stride=4)])
        == "note: --stride, --dropout do nothing with method full and task classify"
    )
    assert unused_note([run(task="lm", pooling="cls", stride=4)]) == "note: --pooling does nothing with method lora and task lm"
    assert (
        unused_note([run(method="full", options={"rank": 3}), run(method="head", options={"rank": 3})])
        == "note: --rank does nothing with method full or head and task classify"
    )
    assert unused_note([run(method="full", options={"rank": 3}), run(options={"rank": 3})]) == []
    shown = {"sets": 2, "similar": True}
    assert run(method="prompt_based", shots=4, options=shown).unused() == ["sets", "similar"]
    assert run(method="prompt_based", shots=4, options=shown | {"demonstrations": 1}).unused() == []


def test_a_metric_fits_its_task():
    assert [Run("m", "d", task=task).metric for task in ("classify", "lm", "seq2seq")] == ["accuracy", None, "bleu"]
    assert Run("m", "d", task="seq2seq", metric="exact").metric == "exact"
    assert Run("m", "d", task="seq2seq") == Run("m", "d", task="seq2seq", metric="bleu")
    for metric in ("accuracy", "perplexity"):
        with pytest.raises(ValueError, match=f"^metric: task seq2seq is scored by one of bleu, rouge_l, exact; got '{metric}'$"):
            Run("m", "d", task="seq2seq", metric=metric)
    run = Run("m", "d", task="seq2seq", pooling="cls", stride=2, label_smoothing=0.1, max_target_length=9, bleu_tokenizer="zh")
    assert unused_note([run]) == "note: --pooling, --stride do nothing with method lora and task seq2seq"
    run = Run("m", "d", metric="f1", max_target_length=9, bleu_tokenizer="zh")
    assert unused_note([run]) == "note: --max-target-length, --bleu-tokenizer do nothing with method lora and task classify"
    assert unused_note([Run("m", "d", task="lm", metric="f1")]) == "note: --metric does nothing with method lora and task lm"


def test_words_about_the_data(world, tmp_path):
    rows = [("a film[good]", "好看 的 电影")] + [(f"story[{i}]", "无聊 的 故事 ，冷") for i in range(3)]
    (tmp_path / "zh.tsv").write_text("".join("\t".join(row) + "\n" for row in [("text", "text2"), *rows]), encoding="utf-8")
    run = Run(str(world / "t5"), str(tmp_path / "zh.tsv"), task="seq2seq", max_length=4, max_target_length=3)
    tokenizer, config = Tokenizer.from_folder(world / "t5"), load_config(world / "t5")
    sources, references, chinese = notes_on_data(make_work(run, tokenizer, config), 4)
    assert (sources, references) == ("note: 4 texts are longer than 4 tokens and were cut",
                                     "note: 4 references are longer than 3 tokens and were cut")
    assert chinese == ("note: the references are Chinese or Japanese, which BLEU's tokenizer 13a does not cut into words; "
                       "use --bleu-tokenizer zh (or char for Japanese)")
    run = replace(run, bleu_tokenizer="zh", max_length=40, max_target_length=40)
    assert notes_on_data(make_work(run, tokenizer, config), 40) == []
    (tmp_path / "short.tsv").write_text("text\ttext2\nwho has it ?\tanna has\nwhere is it ?\tin the hall\n", encoding="utf-8")
    run = replace(run, data=str(tmp_path / "short.tsv"), bleu_tokenizer="13a")
    assert notes_on_data(make_work(run, tokenizer, config), 40) == [
        "note: no reference has more than 3 words, and BLEU counts four in a row; use --metric exact or rouge_l"]
    assert notes_on_data(make_work(replace(run, metric="exact"), tokenizer, config), 40) == []


def test_words_about_cut_texts():
    assert cut_note(1, 9) == "note: 1 text is longer than 9 tokens and was cut"
    assert cut_note(2, 9) == "note: 2 texts are longer than 9 tokens and were cut"
    assert cut_note(1, 9, "reference") == "note: 1 reference is longer than 9 tokens and was cut"
    learned = TransformerConfig("bert", 9, 8, 1, 1, 8, 40)
    assert (longest(128, learned), longest(9, learned)) == (40, 9)
    assert longest(128, TransformerConfig("llama", 9, 8, 1, 1, 8, 40)) == 128


@pytest.mark.parametrize(
    "family, task", [("bert", "classify"), ("gpt2", "classify"), ("gpt2", "lm"), ("llama", "classify"), ("llama", "lm")]
)
@pytest.mark.parametrize("method", [Full(), Head(), LoRA(rank=2)])
def test_total_counts_every_number_once(family, task, method, world):
    """The model with its head, and what the method adds; a head that stands in for another is one head."""
    if (family, task, method.name) == ("gpt2", "lm", "head"):
        return  # tied
    labels = ("a", "b", "c") if task == "classify" else None
    model = load_pretrained(world / family, task=task, labels=labels)
    alone = sum(p.size for p in {id(p): p for p in model.parameters()}.values())
    count = describe(
        Run(str(world / family), "d", method=method.name, task=task), attach(model, method), Run("m", "d").settings()
    )
    added = 4 * 2 * 32 - (2 * 2 * 8 if family == "llama" else 0) if method.name == "lora" else 0
    assert count["total"] == alone + added
    assert 0 <= count["trainable_without_head"] <= count["trainable"] <= count["total"]
    if method.name == "full":
        assert count["trainable"] == alone


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [Full(), Head(), TopK(1), BitFit(add_zero_biases=True), LayerNormTuning(), EarlyExitTuning()])
def test_the_formula_of_what_is_trained_in_place_gives_its_number(family, method, world):
    """Worked out as it stands, behind the words that say what is trained; of the head alone it is 0."""
    model = load_pretrained(world / family, task="classify", labels=("a", "b", "c"))
    run = Run(str(world / family), "d", method=method.name)
    told = describe(run, attach(model, method, rng=np.random.default_rng(0)), run.settings())
    words, _, sums = told["formula"].partition(" = ")
    assert words == method.trains
    sums = re.sub("[A-Z]_out = ", "", sums).replace("x", "*").replace("[", "(").replace("]", ")")
    assert re.fullmatch(r"[0-9*+() ]*", sums) and eval(sums or "0") == told["trainable_without_head"]


def test_every_method_has_a_formula(world):
    for name, method in METHODS.items():
        if name == "fisher_mask":  # looks at the training data first; its formula is random_mask's
            continue
        model = load_pretrained(world / "bert", task="classify", labels=("a", "b", "c"))
        run = Run(str(world / "bert"), "d", method=name)
        attached = attach(model, method(layers=1) if name == "top_k" else method(), rng=np.random.default_rng(0))
        assert describe(run, attached, run.settings())["formula"], name


def test_total_of_a_base_that_had_a_trained_head(world, tmp_path):
    """Classes other than the base's: its head is replaced, and only the new one counts."""
    execute(Run(str(world / "bert"), str(world / "data"), "full", max_steps=1), tmp_path / "two", quiet=True)
    lines = (world / "one.tsv").read_text().splitlines()
    three = tmp_path / "three.tsv"
    three.write_text("\n".join([*lines, *(line.replace("\tblame", "\tneither") for line in lines[2:9])]) + "\n")
    two, other = (
        execute(Run(str(tmp_path / "two"), str(data), "head", max_steps=1), tmp_path / f"{name}-head", quiet=True)
        for name, data in (("2", world / "data"), ("3", three))
    )
    assert (two["trainable"], other["trainable"]) == (34, 51) and other["total"] - two["total"] == 17


def test_seconds_and_memory_count_the_parts_before_a_stop(world, tmp_path, monkeypatch):
    from minipeft.compare import run as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def fit(*args):
        clock[0] += 5  # this part
        return {
            "step": 1,
            "losses": [1.0],
            "evaluations": [{"epoch": 1, "step": 1}],
            "step_ms": 1.0,
            "seconds": 105.0,
            "peak_mb": 1e6,
        }  # and one before

    monkeypatch.setattr(module, "fit", fit)
    result = execute(Run(str(world / "bert"), str(world / "data")), tmp_path / "a", quiet=True)
    assert result["seconds"] == 105 and result["peak_mb"] == 1e6


def test_a_run_may_be_quiet(world, tmp_path, capfd):
    run = Run(str(world / "bert"), str(world / "data"), method="head", options={"rank": 3}, max_steps=1, max_length=4)
    execute(run, tmp_path / "a", resume=True, quiet=True)
    assert capfd.readouterr() == ("", "")
    assert files.read_json(tmp_path / "a" / RUN, "run") == asdict(run)
    shutil.rmtree(tmp_path / "a")
    execute(run, tmp_path / "a", resume=True)
    assert [line[:12] for line in capfd.readouterr().err.splitlines()] == [
        "note: --rank",
        "note: 120 te",
        f"note: {tmp_path}"[:12],
        "head: epoch ",
    ]


def test_a_checkpoint_beside_a_result_is_removed(world, tmp_path):
    """A run killed just before it did so itself."""
    run = Run(str(world / "bert"), str(world / "data"), max_steps=1)
    first = execute(run, tmp_path, quiet=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"old")
    assert execute(run, tmp_path, resume=True, quiet=True) == first == json.loads((tmp_path / RESULT).read_text())
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(OSError, match=r"file/x/y: cannot be written \(.*file is a file, not a folder\)"):
        check_writable(tmp_path / "file" / "x" / "y")


def test_a_fresh_head_and_method_are_drawn_from_the_seed(world, tmp_path):
    losses = [
        execute(Run(str(world / "bert"), str(world / "data"), seed=seed, max_steps=1), tmp_path / f"{seed}{i}", quiet=True)[
            "losses"
        ]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]
    matrices = []
    for seed in (0, 1):  # a learning rate so small that what was drawn stays as it was
        execute(Run(str(world / "bert"), str(world / "data"), seed=seed, lr=1e-30, max_steps=1), tmp_path / f"u{seed}",
                quiet=True)
        tensors = files.read_tensors(tmp_path / f"u{seed}" / "adapter_model.safetensors")
        matrices.append(next(a for name, a in tensors.items() if "lora_A" in name))
    assert not np.isclose(*matrices).any()


def test_how_long_a_batch_is(world):
    """Each row of a batch is as long as the longest text in it: the mean over the batches of an epoch."""
    for settings in ({}, {"model": "llama", "data": "raw.txt", "task": "lm", "max_length": 7}, {"model": "t5", "data": "told",
                                                                                                "task": "seq2seq"}):
        run = Run(**{"model": "bert", "data": "data", "batch_size": 3, **settings})
        run.model, run.data = str(world / run.model), str(world / run.data)
        work = prepare(run)[0]
        lengths = [work.collate(draw).attention_mask.sum(axis=1).max()
                   for draw in work.training_batches(np.random.default_rng(0))]
        assert batch_length(work) == pytest.approx(np.mean(lengths)) and (run.task != "lm" or batch_length(work) == 7)


def test_a_model_that_holds_no_numbers(world, tmp_path):
    """NaN in the folder's own weights is said before training, and leaves nothing."""
    shutil.copytree(world / "bert", tmp_path / "bert")
    tensors = files.read_tensors(tmp_path / "bert" / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    files.write_tensors(tmp_path / "bert" / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="the parameter .* holds NaN or infinity before training; nothing was trained"):
        execute(Run(str(tmp_path / "bert"), str(world / "data"), "full"), tmp_path / "a", quiet=True)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(ValueError, match="nothing was trained"):
        execute(Run(str(tmp_path / "bert"), str(world / "data"), "full"), tmp_path / "b", quiet=True)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine"]
