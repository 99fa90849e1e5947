"""What a comparison shows while it runs."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from minipeft.compare import board
from minipeft.compare.board import Board


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: ``clock[0]``."""
    now = [0.0]
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def job(name):
    return SimpleNamespace(folder=Path(name), label=f"{name} seed 0")


def ended(of, score=0.5, reason=None):
    result = {"score": score, "metric": "accuracy", "split": "test", "seconds": 2.0}
    return SimpleNamespace(job=of, result=None if reason else result, reason=reason)


def test_lines_without_a_terminal(clock):
    out = io.StringIO()
    jobs = [job(name) for name in "abcd"]
    with Board(4, Console(file=out, width=40)) as shown:
        for each in jobs:
            shown.name(each)
        shown.before(jobs[0])
        clock[0] = 6.0
        shown.listen(jobs[1], {"step": 5, "total": 10, "loss": 1.0})  # too soon after the line before
        clock[0] = 15.0
        shown.listen(jobs[2], {"step": 5, "total": 10, "loss": 0.25})
        shown.listen(jobs[2], {"step": 6, "total": 10, "loss": 0.25})
        clock[0] = 20.0
        shown.finished(ended(jobs[2]))
        shown.finished(ended(jobs[1], score=None))
        shown.finished(ended(jobs[3], reason="it was bad"))
    assert out.getvalue().splitlines() == [
        "[1/4] a seed 0: finished before",
        "[3/4] c seed 0: step 5 of 10, loss 0.2500; 0:00:30 left",  # half of b and half of c in 15 s, 2 runs of 3 to go
        "[3/4] c seed 0: accuracy 0.5000 on test, 2.0 s; 0:00:20 left",
        "[2/4] b seed 0: 2.0 s; 0:00:10 left",
        "[4/4] d seed 0: failed: it was bad; 0:00:00 left",
    ]


def test_nothing_is_known_at_first(clock):
    shown = Board(3, Console(file=io.StringIO()))
    assert shown.left() == "time left not known yet"
    clock[0] = 40.0
    shown.listen(job("a"), {"step": 49, "total": 100})  # most of these 40 s went to compiling
    assert shown.left() == "time left not known yet"
    shown.listen(job("a"), {"step": 50, "total": 100})
    assert shown.left() == "0:03:20 left"


def test_bars_in_a_terminal(clock):
    out = io.StringIO()
    with Board(2, Console(file=out, width=100, force_terminal=True)) as shown:
        one = job("one")
        shown.listen(one, {"step": 1, "total": 4, "loss": 0.5})
        assert [task.description for task in shown.bar.tasks] == ["all runs", "one seed 0"]
        assert shown.bar.tasks[0].completed == 0.25 and shown.bar.tasks[1].fields["words"] == "step 1 of 4, loss 0.5000"
        shown.listen(one, {"step": 4, "total": 4, "scores": {}})
        shown.finished(ended(one))
        assert [task.description for task in shown.bar.tasks] == ["all runs"]
    assert shown.bar is None and "[1/2] one seed 0: accuracy 0.5000 on test" in out.getvalue()


def test_what_a_run_is_doing_before_it_trains(capsys, monkeypatch):
    from minipeft.compare.child import Reports

    monkeypatch.setattr(board, "QUIET_SECONDS", 0)
    Reports().doing("prompt 1 of 3 trained on 8 texts")
    said = json.loads(capsys.readouterr().out)
    assert said == {"doing": "prompt 1 of 3 trained on 8 texts", "total": 0}
    shown = board.Board(2, Console(file=io.StringIO(), width=120))
    shown.listen(type("Job", (), {"folder": "a", "label": "pet seed 0"}), said)
    assert shown.console.file.getvalue() == "[1/2] pet seed 0: prompt 1 of 3 trained on 8 texts; time left not known yet\n"
