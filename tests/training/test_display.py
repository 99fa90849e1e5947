"""The progress display: a live bar in a terminal, one line an epoch elsewhere, always on standard error."""

import io
import re

import pytest
from rich.console import Console

from minipeft.training import display, fit
from minipeft.training.display import ProgressBar

LINE = (r"lora \[x\]: epoch {epoch}  training loss \d\.\d{{4}}  \d+ examples/s  \d+:\d\d:\d\d left  "
        r"dev: accuracy [01]\.\d{{4}}  f1 [01]\.\d{{4}}  matthews -?[01]\.\d{{4}}  loss \d\.\d{{4}}")


def show(small, console, checkpoint=None, resume=False, **changes):
    model = small.make("classify")
    fit(model, dict(model.named_parameters()), small.make_work("classify"), small.settings(**changes), checkpoint, resume,
        ProgressBar("lora [x]", console))


def test_a_line_an_epoch_where_there_is_no_terminal(small):
    out = io.StringIO()
    show(small, Console(file=out, width=40))  # narrower than the line, which is not broken
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(LINE.format(epoch=epoch), line), line
    assert " 0:00:00 left " in lines[1]  # nothing is left


def test_standard_error_by_default(small, capsys):
    show(small, None, epochs=1)
    captured = capsys.readouterr()
    assert captured.out == "" and re.fullmatch(LINE.format(epoch=1) + "\n", captured.err)


def test_a_resumed_run_says_where_it_goes_on(small, tmp_path):
    class Stop(ProgressBar):
        def step(self, loss, examples):
            super().step(loss, examples)
            if self.steps == 2:
                raise KeyboardInterrupt

    model = small.make("classify")
    with pytest.raises(KeyboardInterrupt):
        fit(model, dict(model.named_parameters()), small.make_work("classify"), small.settings(), tmp_path / "c",
            display=Stop("run", Console(file=io.StringIO())))
    out = io.StringIO()
    show(small, Console(file=out), tmp_path / "c", resume=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == "lora [x]: going on after step 1 of 4" and len(lines) == 3
    assert re.fullmatch(LINE.format(epoch=1), lines[1])


def test_an_evaluation_before_any_step_shows_no_rate():
    out = io.StringIO()
    bar = ProgressBar("run", Console(file=out))
    bar.start(4, 2)
    bar.evaluated(1, {"score": 0.5, "accuracy": 0.5})
    bar.evaluated(1, {})
    bar.stop()
    lines = out.getvalue().splitlines()
    assert lines == ["run: going on after step 2 of 4", "run: epoch 1  dev: accuracy 0.5000", "run: epoch 1"]


def test_a_bar_in_a_terminal(small):
    """It shows steps, loss, examples a second and time left, and gives way to the lines of the epochs."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    bar = ProgressBar("lora", console)
    bar.start(20, 5)
    for _ in range(4):
        bar.step(1.25, 16)
    bar.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()[-1]
    assert re.search(r"lora .* 9/20 loss 1\.2500  \d+ examples/s (\d+:\d\d:\d\d|-:--:--) left", shown), shown
    bar.evaluated(1, {"score": 0.5, "accuracy": 0.5})
    bar.stop()
    assert bar.bar is None
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"lora: epoch 1  training loss 1\.2500  \d+ examples/s  \d+:\d\d:\d\d left  dev: accuracy 0\.5000", plain)
    bar.stop()  # a second time does no harm


def test_the_loss_shown_is_a_running_mean():
    bar = ProgressBar("run", Console(file=io.StringIO()))
    bar.start(3, 0)
    bar.step(2.0, 1)
    bar.step(1.0, 1)
    assert bar.average == pytest.approx(0.95 * 2 + 0.05 * 1) and bar.examples == 2 and bar.left == 1


def test_the_bar_is_taken_away_when_training_fails(small):
    bar = ProgressBar("run", Console(file=io.StringIO(), force_terminal=True))
    model = small.make("classify")
    with pytest.raises(ValueError, match="training diverged"):
        fit(model, dict(model.named_parameters()), small.make_work("classify"),
            small.settings(lr=1e38, warmup=0.0, clip=0.0, epochs=9), display=bar)
    assert bar.bar is None


# ---- evaluations that take long ---------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_where_there_is_no_terminal(clock):
    out = io.StringIO()
    bar = ProgressBar("run", Console(file=out))
    for done in [*range(41)] * 2:  # nothing is carried over from one evaluation to the next
        bar.evaluating(done, 40)
        clock[0] += 3
    assert out.getvalue().splitlines() == [f"run: evaluating, {done} of 40 texts" for done in range(4, 40, 4)] * 2
    out.truncate(0)
    for done in (0, 20, 40):
        bar.evaluating(done, 40)
        clock[0] += 4
    assert out.getvalue().strip("\0") == ""  # a short one says nothing


def shown(out):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n")


def test_a_bar_of_its_own_in_a_terminal_during_training_and_after_it():
    out = io.StringIO()
    bar = ProgressBar("lora", Console(file=out, force_terminal=True, width=120))
    bar.start(20, 5)
    bar.step(1.25, 16)
    bar.evaluating(0, 40)
    bar.evaluating(10, 40)
    bar.bar.refresh()
    last = shown(out).splitlines()[-2:]
    assert re.search(r"lora .* 6/20 ", last[0]) and re.search(r"lora: evaluating .* 10/40 texts .* left", last[1]), last
    bar.evaluating(40, 40)
    assert len(bar.bar.tasks) == 1 and bar.evaluation is None
    bar.step(1.0, 16)
    bar.stop()
    bar.evaluating(0, 3)  # training is over
    bar.bar.refresh()
    assert re.search(r"lora: evaluating .* 0/3 texts", shown(out).splitlines()[-1])
    bar.evaluating(3, 3)
    assert bar.bar is None
    bar.evaluating(0, 3)
    bar.stop()  # where it was interrupted
    assert bar.bar is None and bar.evaluation is None
