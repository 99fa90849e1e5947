"""The loop: what one step does, stopping by Ctrl-C, divergence, reproducibility, and a whole run beside PyTorch's."""

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import minipeft.autograd as F
from minipeft.compare.run import Run, execute
from minipeft.data import files
from minipeft.interop import save_pretrained
from minipeft.kernels import backend as kernel_backend
from minipeft.methods import Head, LoRA, attach
from minipeft.nn import Module, Wrapper
from minipeft.training import Classification, Interrupted, LanguageModelling, Settings, factor, fit
from minipeft.training.checkpoint import load_checkpoint
from minipeft.training.loop import Silent, _module_names
from minipeft.training.optim import OPTIMIZERS, SGD, decay_groups

HERE = Path(__file__).resolve().parent


def whole(model):
    return dict(model.named_parameters())


def bits(parameters):
    return {name: p.data.tobytes() for name, p in parameters.items()}


# ---- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
    ({"lr": 0}, "lr: expected a number above 0, got 0"), ({"lr": math.nan}, "lr: expected a number above 0, got nan"),
    ({"lr": math.inf}, "lr: expected a number above 0, got inf"), ({"epochs": 0}, "epochs: expected at least 1, got 0"),
    ({"batch_size": 0}, "batch_size: expected at least 1, got 0"), ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
    ({"warmup": 1.5}, "warmup: expected a share from 0 to 1, got 1.5"), ({"clip": -1.0}, "clip: expected 0 or more, got -1.0"),
    ({"weight_decay": math.nan}, "weight_decay: expected 0 or more, got nan"), ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ({"optimizer": "lion"}, "optimizer: expected sgd or adam or adamw, got 'lion'"),
    ({"schedule": "step"}, "schedule: expected linear or cosine or constant or slanted, got 'step'"),
    ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
    ({"checkpoint_seconds": -1}, "checkpoint_seconds: expected 0 or more, got -1")])
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Settings(**{"lr": 0.1} | changes)


# ---- one step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_step_has_the_rate_of_the_schedule(slope, schedule):
    """With SGD and the constant gradient (3, 4) the weight shows each step's rate; 2 epochs of 5 steps, 3 of warm-up."""
    seen = []

    class Watch(Silent):
        def step(self, loss, examples):
            seen.append(loss)

    rates = [0.5 * factor(schedule, t, 10, 3) for t in range(10)]
    history, model = slope(5, epochs=2, warmup=0.3, schedule=schedule, display=Watch())
    w = np.array([1.0, 1.0])
    for rate, loss in zip(rates, seen, strict=True):
        assert loss == pytest.approx(3 * w[0] + 4 * w[1], rel=1e-5)
        w -= rate * np.array([3.0, 4.0])
    np.testing.assert_allclose(model.weight.data, w, rtol=1e-5)
    assert history["losses"] == seen and history["step"] == 10
    assert [(e["epoch"], e["step"]) for e in history["evaluations"]] == [(1, 5), (2, 10)]


def test_clipping_shortens_the_gradient_and_keeps_its_direction(slope):
    for clip, length in ((2.0, 2.0), (4.999, 4.999), (5.001, 5.0), (0.0, 5.0)):
        _, model = slope(1, clip=clip, schedule="constant")
        np.testing.assert_allclose(np.array([1, 1]) - model.weight.data, 0.5 * length * np.array([0.6, 0.8]), rtol=1e-5)


def test_the_norm_that_is_clipped_is_of_all_parameters_together(small):
    def step(clip):
        model = small.make("classify")
        before = {name: p.data.copy() for name, p in model.named_parameters()}
        fit(model, whole(model), small.make_work("classify"),
            small.settings(optimizer="sgd", weight_decay=0.0, schedule="constant", warmup=0.0, max_steps=1, clip=clip, lr=1.0))
        return {name: p.data - before[name] for name, p in model.named_parameters()}

    free, clipped = step(0.0), step(0.1)
    norm = math.sqrt(sum(float((d.astype(np.float64)**2).sum()) for d in free.values()))
    assert norm > 0.2
    for name in free:
        np.testing.assert_allclose(clipped[name], free[name] * (0.1 / norm), rtol=1e-3, atol=1e-6)


def test_max_steps_in_the_middle_of_an_epoch_ends_with_an_evaluation(slope):
    history, _ = slope(4, epochs=3, max_steps=6)
    assert [(e["epoch"], e["step"]) for e in history["evaluations"]] == [(1, 4), (2, 6)]
    assert history["step"] == len(history["losses"]) == len(history["durations"]) == 6


def test_the_epochs_have_different_orders_and_every_example(small):
    work, seen = small.make_work("classify"), []
    original = work.collate

    def noted(ids, split="train"):
        if split == "train":
            seen.append([int(i) for i in ids])
        return original(ids, split)

    work.collate = noted
    model = small.make("classify")
    fit(model, whole(model), work, small.settings(accumulate=1))
    first, second = [i for ids in seen[:4] for i in ids], [i for ids in seen[4:] for i in ids]
    assert sorted(first) == sorted(second) == list(range(14)) and first != second


def test_the_model_is_left_in_evaluation_and_is_evaluated_without_dropout(small):
    model, work = small.make("classify", dropout=0.5), small.make_work("classify")
    history = fit(model, whole(model), work, small.settings())
    assert not any(module.training for module in model.modules())
    last = {k: v for k, v in history["evaluations"][-1].items() if k not in ("epoch", "step")}
    assert last == work.evaluate(model, "dev")


def test_a_data_set_without_dev_gives_no_scores(small):
    work, model = small.make_work("classify"), small.make("classify")
    del work.encodings["dev"]
    assert fit(model, whole(model), work, small.settings())["evaluations"] == [{"epoch": 1, "step": 2}, {"epoch": 2, "step": 4}]


# ---- accumulation ----------------------------------------------------------------------------------------------


class Given:
    """A work whose batches are given and not drawn."""

    given = ()

    def training_batches(self, rng):
        return [np.array(b) for b in self.given]

    def number_of_batches(self):
        return len(self.given)


class GivenClassification(Given, Classification):
    pass


class GivenLanguageModelling(Given, LanguageModelling):
    pass


@pytest.mark.parametrize("parts", [[[0, 5], [7, 2], [9, 1]], [[0, 5, 7, 2], [9], [1]], [[0, 5, 7], [2, 9, 1]]])
@pytest.mark.parametrize("task", ["classify", "lm"])
def test_batches_that_make_one_step_equal_one_large_batch(small, task, parts):
    work = small.make_work(task, max_length=7)
    work.__class__ = {"classify": GivenClassification, "lm": GivenLanguageModelling}[task]
    if task == "lm":  # blocks with 1 to 6 predicted tokens
        ids, labels = work.blocks["train"]
        cut = np.arange(len(ids)) % 5
        labels = np.where(np.arange(7)[None] >= 7 - cut[:, None], -100, labels)
        work.blocks["train"] = ids, labels
        assert len({work.weight(work.collate(np.array(p))) for p in ([0], [1], [2], [9])}) > 2
    out = []
    for given in (parts, [np.concatenate(parts)]):
        work.given, model = given, small.make(task).astype(np.float64)
        history = fit(model, whole(model), work, small.settings(accumulate=len(given), epochs=1, optimizer="sgd", clip=1.0))
        out.append((history["losses"], {name: p.data for name, p in model.named_parameters()}))
    assert len(out[0][0]) == 1
    assert out[0][0] == pytest.approx(out[1][0], rel=1e-12)
    for name, value in out[0][1].items():
        np.testing.assert_allclose(value, out[1][1][name], rtol=1e-9, atol=1e-12)


def test_the_last_group_of_an_epoch_may_be_smaller(slope):
    """5 batches in steps of 2: the gradients of a step are averaged by weight, also that of the single batch at the end."""
    slopes, weights = np.array([1.0, 4.0, 2.0, 3.0, 7.0], np.float32), [1, 3, 1, 1, 5]
    history, model = slope(5, lambda t, w: (w * slopes[t]).sum(), weights, accumulate=2, schedule="constant", lr=1.0)
    steps = [(1 * 1 + 3 * 4) / 4, (2 + 3) / 2, 7]
    assert history["step"] == 3
    np.testing.assert_allclose(model.weight.data, 1 - sum(steps), rtol=1e-6)
    weights_before = [1, 1 - steps[0], 1 - steps[0] - steps[1]]
    assert history["losses"] == pytest.approx([2 * s * w for s, w in zip(steps, weights_before)])


# ---- the same bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classify", "lm"])
def test_same_seed_same_bits_on_any_number_of_threads(small, monkeypatch, task):
    monkeypatch.setattr(kernel_backend, "PARALLEL_THRESHOLD", 1)  # else nothing here is large enough for two threads

    def run(seed, threads):
        with kernel_backend.use_threads(threads):
            model = small.make(task, dropout=0.2)
            history = fit(model, whole(model), small.make_work(task), small.settings(seed=seed))
        return bits(whole(model)), history["losses"], history["evaluations"]

    first = run(0, 1)
    assert run(0, 1) == first and run(0, 2) == first and run(0, 5) == first
    other = run(1, 1)
    assert other[0] != first[0] and other[1] != first[1]


def test_the_seed_of_dropout_alone_makes_a_difference(small):
    """With a single example there is no order, and with this rate nothing is learnt; but dropout is drawn anew in each step."""
    work, losses = small.make_work("classify", train=1), []
    for dropout in (0.0, 0.3):
        model = small.make("classify", dropout)
        losses.append(fit(model, {"head.classifier.bias": model.head.classifier.bias}, work,
                          small.settings(accumulate=1, lr=1e-9, epochs=3))["losses"])
    assert losses[0] == pytest.approx([losses[0][0]] * 3, rel=1e-5)
    assert len({round(x, 4) for x in losses[1]}) == 3


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------


class Press(Silent):
    """Presses Ctrl-C after the given step (counted from 1 in this process)."""

    def __init__(self, at):
        self.at, self.count, self.stopped = at, 0, 0

    def step(self, loss, examples):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)

    def stop(self):
        self.stopped += 1


@pytest.mark.parametrize("at", range(1, 8))
def test_ctrl_c_after_any_step_and_going_on_gives_the_same_history(slope, tmp_path, at):
    """3 epochs of 2 steps and max_steps 5: among the steps are the last of an epoch, and of the whole run."""
    def run(path, resume=False, display=None):
        return slope(2, lambda t, w: (w * w).sum() * (t + 1), epochs=3, max_steps=5, lr=0.05, optimizer="adamw", checkpoint=path,
                     resume=resume, display=display, checkpoint_seconds=1e9)

    expected, model = run(tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    display = Press(at)
    if at <= 5:
        with pytest.raises(Interrupted, match=f"^stopped after step {at} of 5$"):
            run(tmp_path / "c", display=display)
        assert signal.getsignal(signal.SIGINT) is before and display.count == at and display.stopped == 1
        fresh = slope(1)[1]
        assert good(tmp_path / "c", {"weight": fresh.weight})["step"] == at
    history, resumed = run(tmp_path / "c", resume=True)
    for key in ("step", "losses", "evaluations"):
        assert history[key] == expected[key]
    assert [e["step"] for e in history["evaluations"]] == [2, 4, 5]
    assert bits(whole(resumed)) == bits(whole(model))


@pytest.mark.parametrize("marks, expected", [((700.0, 300.0), 700.0), ((300.0, 700.0), 700.0)])
def test_the_most_memory_of_all_parts_is_kept(marks, expected, slope, tmp_path, monkeypatch):
    """A run that goes on in another process has the larger mark of the two."""
    parts = iter(marks)
    settings = {"epochs": 2, "optimizer": "adamw", "checkpoint": tmp_path / "c"}
    monkeypatch.setattr("minipeft.training.loop.peak_mb", lambda mark=next(parts): mark)
    with pytest.raises(Interrupted):
        slope(2, display=Press(1), **settings)
    monkeypatch.setattr("minipeft.training.loop.peak_mb", lambda mark=next(parts): mark)
    history, _ = slope(2, resume=True, **settings)
    assert history["peak_mb"] == expected


def test_ctrl_c_during_the_last_evaluation_is_not_lost(small, tmp_path):
    work, model = small.make_work("classify"), small.make("classify")
    original = work.evaluate

    def interrupted(model, split):
        signal.raise_signal(signal.SIGINT)
        return original(model, split)

    work.evaluate = interrupted
    with pytest.raises(Interrupted, match="^stopped after step 2 of 2$"):
        fit(model, whole(model), work, small.settings(epochs=1), tmp_path / "c")
    work.evaluate = None  # the evaluation is in the checkpoint: it is not asked for again
    assert len(fit(model, whole(model), work, small.settings(epochs=1), tmp_path / "c", resume=True)["evaluations"]) == 1


def test_a_second_ctrl_c_stops_at_once(slope, tmp_path):
    seen, before = [], signal.getsignal(signal.SIGINT)

    def twice(t, w):
        if t == 2:
            signal.raise_signal(signal.SIGINT)
            seen.append("once")
            signal.raise_signal(signal.SIGINT)
            seen.append("never")
        return (w * w).sum()

    with pytest.raises(KeyboardInterrupt) as caught:
        slope(4, twice, checkpoint=tmp_path / "c", checkpoint_seconds=0.0, lr=0.1)
    assert not isinstance(caught.value, Interrupted) and seen == ["once"]
    assert signal.getsignal(signal.SIGINT) is before
    history, _ = slope(4, lambda t, w: (w * w).sum(), checkpoint=tmp_path / "c", resume=True, lr=0.1)
    assert history["losses"] == slope(4, lambda t, w: (w * w).sum(), lr=0.1)[0]["losses"]


def test_a_second_ctrl_c_while_a_checkpoint_is_written_leaves_the_one_before(slope, tmp_path, monkeypatch):
    calls, save = [], files.save_file

    def interrupted(arrays, path, metadata):
        calls.append(path)
        if len(calls) == 3:  # at the start, after the first step, after the second
            Path(path).write_bytes(b"half")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        save(arrays, path, metadata)

    monkeypatch.setattr(files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slope(4, checkpoint=tmp_path / "c", checkpoint_seconds=0.0)
    assert os.listdir(tmp_path) == ["c"]
    model = slope(1)[1]
    assert load_checkpoint(tmp_path / "c", {"weight": model.weight}, SGD([model.weight]))["step"] == 1


def test_the_handler_that_was_there_returns_after_any_end(slope):
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGINT, mine)
    try:
        slope(2)
        assert signal.getsignal(signal.SIGINT) is mine
        with pytest.raises(ValueError, match="training diverged"):
            slope(2, lambda t, w: (w * np.float32(np.nan)).sum())
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread_leaves_the_handlers_alone(slope):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(slope, 3).result()[0]["step"] == 3


CHILD = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, os.environ["HERE"])
    import small
    from minipeft.training import Interrupted, fit
    from minipeft.training.loop import Silent

    class Talk(Silent):
        count = 0

        def step(self, loss, examples):
            self.count += 1
            print("step", self.count, flush=True)
            sys.stdin.readline()

    model = small.make("classify", 0.2)
    try:
        fit(model, dict(model.named_parameters()), small.make_work("classify"), small.settings(checkpoint_seconds=1e9),
            sys.argv[1], resume=True, display=Talk())
    except Interrupted as stop:
        print(stop, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
""")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_a_real_ctrl_c_from_outside(small, tmp_path):
    environment = {**os.environ, "HERE": str(HERE)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "c"], env=environment, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as child:
        for step in (1, 2):
            assert child.stdout.readline() == f"step {step}\n"
            if step == 2:
                child.send_signal(signal.SIGINT)
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.stdout.read() == "stopped after step 2 of 4 True\n"
    assert child.returncode == 0
    out = []
    for path, resume in ((tmp_path / "c", True), (None, False)):
        model = small.make("classify", 0.2)
        history = fit(model, whole(model), small.make_work("classify"), small.settings(), path, resume)
        out.append((history["losses"], history["evaluations"], bits(whole(model))))
    assert out[0] == out[1]


# ---- divergence ------------------------------------------------------------------------------------------------


def good(path, parameters=None, optimizer="adamw"):
    """The progress of a checkpoint, whose every number must be finite; it is loaded into ``parameters``."""
    arrays = files.read_tensors(path)
    assert all(np.isfinite(a).all() for a in arrays.values())
    if parameters is not None:
        return load_checkpoint(path, parameters, OPTIMIZERS[optimizer](decay_groups(parameters, 0.01)))


ADVICE = "Try a smaller --lr, or a longer warm-up"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_huge_rate_stops_with_one_line_and_a_good_checkpoint(small, tmp_path, optimizer, seconds):
    model = small.make("classify")
    chosen = small.settings(lr=1e38, clip=0.0, warmup=0.0, optimizer=optimizer, epochs=50, checkpoint_seconds=seconds)
    message = r"^training diverged at step \d+: .*; first bad: the (parameter|output of|gradient of) "
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, whole(model), small.make_work("classify"), chosen, tmp_path / "c")
    assert str(caught.value).endswith(f"; the last good checkpoint is kept: {tmp_path / 'c'}. {ADVICE}")
    assert "\n" not in str(caught.value)
    fresh = whole(small.make("classify"))
    assert good(tmp_path / "c", fresh, optimizer)["step"] < int(re.search(r"step (\d+)", str(caught.value))[1])
    assert all(np.isfinite(p.data).all() for p in fresh.values())


@pytest.mark.filterwarnings("error")
def test_a_huge_rate_from_the_command_down(small, tmp_path, capsys):
    from minipeft.cli import main

    save_pretrained(small.make("classify"), tmp_path / "model")
    small.TOKENIZER.save(tmp_path / "model")
    rows = "".join(f"{e.text}\t{e.label}\n" for e in small.examples(20, 1))
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + rows)
    arguments = ["finetune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.tsv"), "--method", "full",
                 "--lr", "1e30", "--clip", "0", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"minipeft: training diverged at step \d+: [^\n]*\n", captured.err) and captured.out == ""
    assert sorted(os.listdir(tmp_path / "out")) == ["checkpoint.safetensors", "run.json"]
    good(tmp_path / "out" / "checkpoint.safetensors")


def test_the_step_and_the_parameter_are_named(slope, tmp_path):
    """The fourth batch is bad: steps 1 to 3 are fine, and their checkpoint is kept."""
    def loss_at(t, w):
        return (w * np.float32(np.inf if t == 3 else 1)).sum()

    message = ("training diverged at step 4: the loss is -inf; first bad: the loss itself; the last good checkpoint is kept: "
               f"{tmp_path / 'c'}. {ADVICE}")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        slope(5, loss_at, checkpoint=tmp_path / "c", checkpoint_seconds=0.0, schedule="constant", start=(-1, -1))
    model = slope(1)[1]
    assert load_checkpoint(tmp_path / "c", {"weight": model.weight}, SGD([model.weight]))["step"] == 3
    assert (model.weight.data == -2.5).all()


def test_without_a_checkpoint_none_is_promised(slope):
    message = f"training diverged at step 1: the loss is nan; first bad: the loss itself. {ADVICE}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        slope(2, lambda t, w: (w * np.float32(np.nan)).sum())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gradient, words", [(np.nan, "nan"), (np.inf, "inf"), (3e30, "inf")])
def test_a_gradient_that_is_not_finite_is_named(slope, gradient, words):
    """Also one whose entries are finite and whose square is not. The loss itself is finite, 0."""
    def loss_at(t, w):
        return F.Tensor(np.float32(0), parents=[(w, lambda g: np.array([0, gradient if t == 1 else 1], np.float32))])

    with pytest.raises(ValueError, match="^" + re.escape(
            f"training diverged at step 2: the gradient's norm is {words}; first bad: the gradient of weight. ")):
        slope(3, loss_at, optimizer="adamw")


@pytest.mark.filterwarnings("error")
def test_a_last_step_that_ruins_the_weights_is_noticed_before_they_are_evaluated_or_kept(slope, tmp_path):
    class Watch(Silent):
        def evaluated(self, epoch, scores):
            raise AssertionError("weights that are not finite were evaluated")

    with pytest.raises(ValueError, match="^" + re.escape(
            "training diverged at step 1: the weights are no longer finite; first bad: the parameter weight; the last good ")):
        slope(1, lr=3e38, checkpoint=tmp_path / "c", display=Watch())
    assert np.isfinite(files.read_tensors(tmp_path / "c")["parameter/weight"]).all()
    with pytest.raises(ValueError, match="the weights are no longer finite; first bad: the parameter weight. "):
        slope(1, lr=3e38)


def test_bad_weights_at_the_start_are_noticed_before_training(slope, tmp_path):
    with pytest.raises(ValueError, match="^the parameter weight holds NaN or infinity before training; nothing was trained$"):
        slope(1, start=(1, math.nan), checkpoint=tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_a_nan_in_one_row_of_the_frozen_word_vectors(small, tmp_path):
    """It is noticed in the first step whose batch has that word, and by name; the run of the steps before is kept."""
    work, model = small.make_work("classify"), small.make("classify")
    rare = small.TOKENIZER.encode("laugh", add_special_tokens=False)[0]
    order = work.training_batches(np.random.default_rng([0, 0, 0]))
    step = next(i for i, ids in enumerate(order, 1) if (work.collate(ids).input_ids == rare).any())
    attachment = attach(model, Head())
    model.embed.tokens.weight.data[rare] = np.nan
    message = (f"training diverged at step {step}: the loss is nan; first bad: the parameter embed.tokens.weight; "
               "the last good checkpoint is kept: ")
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fit(model, attachment.named_parameters(), work, small.settings(accumulate=1), tmp_path / "c")
    assert good(tmp_path / "c", attachment.named_parameters())["step"] == step - 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method, path, expected", [
    (None, "blocks.1.mlp.up", "blocks.1.mlp.up"), (LoRA(2, 4, "mlp.down,attn.q"), "blocks.0.mlp.down", "blocks.0.mlp.down"),
    (Head(), "head.classifier", "head.classifier")])
def test_the_first_output_that_overflows_is_named_by_its_path(small, method, path, expected):
    """Weights that are finite and too large: the product is not. Inside a wrapper the path is that of what it wraps."""
    model, work = small.make("classify"), small.make_work("classify")
    parameters = whole(model) if method is None else attach(model, method).named_parameters()
    for module in model.get(path).modules():
        if hasattr(module, "weight") and not isinstance(module, Wrapper):
            module.weight.data[:] = 3e38
    with pytest.raises(ValueError, match=re.escape(f"first bad: the output of {expected}. ")):
        fit(model, parameters, work, small.settings())
    assert Module.__call__.__qualname__ == "Module.__call__" and Wrapper.__call__.__qualname__ == "Wrapper.__call__"


@pytest.mark.filterwarnings("error")
def test_what_a_wrapper_computes_itself_is_named_too(small):
    model, work = small.make("classify"), small.make_work("classify")
    attachment = attach(model, LoRA(2, 4, "attn.v"))
    for name, parameter in attachment.named_parameters().items():
        if name.startswith("blocks.1.attn.v"):
            parameter.data[:] = 1e30
    with pytest.raises(ValueError, match=re.escape("first bad: the output of blocks.1.attn.v. ")):
        fit(model, attachment.named_parameters(), work, small.settings())


def test_every_module_has_a_path(small):
    model = small.make("classify")
    attach(model, LoRA(2, 4, "attn.q"))
    names = _module_names(model)
    assert {id(m) for m in model.modules()} == set(names)
    assert {names[id(m)] for m in model.get("blocks.0.attn.q").modules()} == {"blocks.0.attn.q"} and names[id(model)] == "model"


# ---- a run of the whole program --------------------------------------------------------------------------------


def test_a_run_stopped_at_its_very_last_step_still_has_its_score(small, tmp_path, monkeypatch):
    """A checkpoint of the last step is written before the last evaluation; what goes on from there has that evaluation too."""
    save_pretrained(small.make("classify"), tmp_path / "model")
    small.TOKENIZER.save(tmp_path / "model")
    rows = "".join(f"{e.text}\t{e.label}\n" for e in small.examples(30, 1))
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + rows)
    run = Run(str(tmp_path / "model"), str(tmp_path / "data.tsv"), options={"targets": "attn.q", "dropout": 0.2}, max_steps=3)
    monkeypatch.setattr("minipeft.compare.run.ProgressBar", lambda title: Press(3))
    with pytest.raises(Interrupted, match="^stopped after step 3 of 3$"):
        execute(run, tmp_path / "stopped")
    resumed = execute(run, tmp_path / "stopped", resume=True, quiet=True)
    straight = execute(run, tmp_path / "straight", quiet=True)
    for key in ("score", "scores", "losses", "evaluations", "steps", "split"):
        assert resumed[key] == straight[key]
    assert [e["step"] for e in resumed["evaluations"]] == [2, 3] and resumed["split"] == "dev"


# ---- PyTorch ---------------------------------------------------------------------------------------------------


def theirs(torch, model, work, chosen, forward):
    """The same run, written out in PyTorch: AdamW with decay on matrices, warm-up and linear decay, clipping, accumulation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": chosen.weight_decay},
              {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, lr=chosen.lr), []
    per_epoch = math.ceil(work.number_of_batches() / chosen.accumulate)
    total = chosen.epochs * per_epoch
    warm = round(chosen.warmup * total)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) / warm if t < warm else (total - t) / (total - warm))
    for epoch in range(chosen.epochs):
        order = work.training_batches(np.random.default_rng([chosen.seed, 0, epoch]))
        for start in range(0, len(order), chosen.accumulate):
            group = [work.collate(ids) for ids in order[start:start + chosen.accumulate]]
            count = sum(work.weight(b) for b in group)
            optimizer.zero_grad()
            loss = sum(forward(model, b) * (work.weight(b) / count) for b in group)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, chosen.clip)
            optimizer.step()
            rate.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("task, accumulate", [("classify", 1), ("lm", 2)])
def test_a_whole_run_beside_pytorch(small, peer, tmp_path, task, accumulate):
    torch, transformers = peer("torch"), peer("transformers")
    model = small.make(task, pooling="pooler" if task == "classify" else None)
    work = small.make_work(task, train=20 if task == "classify" else 30)
    save_pretrained(model, tmp_path)
    chosen = small.settings(lr=0.01, accumulate=accumulate, clip=0.7, weight_decay=0.1, warmup=0.2, epochs=3)

    def forward(reference, batch):
        names = ("input_ids", "attention_mask", "labels") + ("token_type_ids",) * (task == "classify")
        return reference(**{name: torch.tensor(getattr(batch, name).astype(np.int64)) for name in names}).loss

    kind = transformers.AutoModelForSequenceClassification if task == "classify" else transformers.AutoModelForCausalLM
    reference = kind.from_pretrained(tmp_path, attn_implementation="eager").train()
    expected = theirs(torch, reference, work, chosen, forward)
    got = fit(model, whole(model), work, chosen)["losses"]
    assert len(got) >= 9 and got[-1] < 0.9 * got[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
