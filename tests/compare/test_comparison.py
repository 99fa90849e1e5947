"""Comparisons: each run in its own process, one table whose numbers are right, and no finished run made twice."""

import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import cli
from minipeft.compare import comparison
from minipeft.compare.comparison import Table, compare, in_own_process, size_text, summarise
from minipeft.compare.run import Run, peak_mb

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = {"method", "trainable", "trainable_without_head", "total", "metric", "score", "step_ms", "peak_mb", "seconds"}


@pytest.fixture
def at(world, tmp_path, monkeypatch):
    """The small world in a folder of its own, which is the current one."""
    shutil.copytree(world, tmp_path / "at")
    monkeypatch.chdir(tmp_path / "at")
    return tmp_path / "at"


@pytest.fixture
def started(monkeypatch):
    """The folders of the runs for which a process was started."""
    popen, out = subprocess.Popen, []

    def counting(arguments, **kwargs):
        out.append(Path(arguments[-1]).name)
        return popen(arguments, **kwargs)

    monkeypatch.setattr(comparison.subprocess, "Popen", counting)
    return out


LINE = [
    "compare",
    "--model",
    "bert",
    "--data",
    "data",
    "--methods",
    "head,lora",
    "--seeds",
    "2",
    "--epochs",
    "2",
    "--rank",
    "2",
    "--out",
    "runs",
]


def results_of(folder="runs"):
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("*/result.json")}


def test_end_to_end(at, started, capfd, tiny):
    tiny.write_tsv(at / "data/dev.tsv", [*tiny.examples(20), ("good " * 20_000, "praise")])
    assert cli.main([*LINE, "--json", "table.json"]) == 0
    out, err = capfd.readouterr()
    assert started == ["head-seed0", "head-seed1", "lora-seed0", "lora-seed1"]
    assert err.count("note: ") == 1 and "note: 1 text is longer than 40 tokens and was cut\n" in err  # for the whole comparison
    assert re.findall(r"^\[\d/4\] \w+ seed \d: epoch \d", err, re.MULTILINE) == [
        f"[{2 * i + seed + 1}/4] {method} seed {seed}: epoch {epoch}"
        for i, method in enumerate(("head", "lora"))
        for seed in (0, 1)
        for epoch in (1, 2)
    ]

    rows, results = json.loads(Path("table.json").read_text()), results_of()
    assert json.loads(Path("runs/results.json").read_text()) == {"title": "bert on data", "rows": rows}
    assert [row["method"] for row in rows] == ["head", "lora"] and len(results) == 4
    for row in rows:
        scores = [results[f"{row['method']}-seed{seed}"]["score"] for seed in (0, 1)]
        assert KEYS <= set(row) and row["scores"] == scores and scores[0] != scores[1]  # or the seeds do nothing
        assert row["score"] == pytest.approx(statistics.mean(scores)) and row["score_std"] == pytest.approx(
            statistics.stdev(scores)
        )
        assert row["split"] == "test"
        line = next(line for line in out.splitlines() if line.startswith(row["method"]))
        cells = re.split(r"\s{2,}", line.strip())
        assert cells == [
            row["method"],
            f"{row['trainable']:,}",
            f"{row['trainable_without_head']:,}",
            {34: "0.5", 290: "4.14"}[row["trainable"]],
            f"{row['score']:.4f} ± {row['score_std']:.4f}",
            f"{row['step_ms']:.1f}",
            f"{row['peak_mb']:.0f}",
            size_text(row["size_mb"]),
        ]
    assert [row["trainable"] for row in rows] == [34, 34 + 4 * 2 * 32]
    assert "/" not in out and "Traceback" not in err

    before = {name: Path(f"runs/{name}/result.json").stat().st_mtime_ns for name in results}
    shutil.rmtree("runs/lora-seed0")
    started.clear()
    assert cli.main(LINE) == 0  # finished runs are not repeated, and the one that is gone is made again
    again, err = capfd.readouterr()
    assert started == ["lora-seed0"] and err.count("finished before\n") == 3
    assert results_of()["lora-seed0"]["losses"] == results["lora-seed0"]["losses"]
    assert all(
        Path(f"runs/{name}/result.json").stat().st_mtime_ns == when for name, when in before.items() if name != "lora-seed0"
    )
    assert again.split("±")[1].split()[0] == out.split("±")[1].split()[0]


def test_a_run_of_a_comparison_is_what_finetune_makes(at):
    (row,) = compare("gpt2", "raw.txt", ["lora"], 1, "runs", {"task": "lm", "max_steps": 2, "max_length": 16}).rows
    assert (
        cli.main("finetune --model gpt2 --data raw.txt --task lm --max-steps 2 --max-length 16 --seed 0 --out alone".split()) == 0
    )
    alone = json.loads(Path("alone/result.json").read_text())
    assert alone["losses"] == results_of()["lora-seed0"]["losses"]
    assert row["score"] == alone["score"] and row["score_std"] == 0.0 and row["metric"] == "perplexity"
    for name in ("adapter_model.safetensors", "minipeft.json"):
        assert Path("alone", name).read_bytes() == Path("runs/lora-seed0", name).read_bytes()


def test_runs_use_the_package_of_the_comparison(at, capfd):
    """Another copy of minipeft in the current folder, such as a clone beside an installed package, is not what runs."""
    Path("minipeft").mkdir()
    Path("minipeft/__init__.py").write_text("raise SystemExit('the wrong copy')\n")
    assert cli.main([*LINE[:-6], "--seeds", "1", "--epochs", "1", "--out", "runs"]) == 0
    assert set(results_of()) == {"head-seed0", "lora-seed0"}


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_comparison_goes_on(number, at, started, capfd):
    line = [*LINE[:-4], "--epochs", "40", "--out", "runs"]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", *line],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    for said in process.stderr:
        if said.startswith("[2/4] head seed 1: epoch 1 "):
            break
    os.killpg(process.pid, number)  # as a terminal does: to the comparison and to its run
    out, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130 and out == ""
        assert err.splitlines()[-1] == "minipeft: stopped; what is done is kept in runs. To go on, repeat the command"
    before = results_of()
    assert 1 <= len(before) < 4 and not Path("runs/results.json").exists()
    times = {name: Path(f"runs/{name}/result.json").stat().st_mtime_ns for name in before}
    started.clear()
    capfd.readouterr()
    assert cli.main(line) == 0
    assert len(started) == 4 - len(before) and not set(started) & set(before)
    assert all(Path(f"runs/{name}/result.json").stat().st_mtime_ns == when for name, when in times.items())
    assert all(len(result["losses"]) == 200 for result in results_of().values())
    assert (
        cli.main(
            [
                "finetune",
                "--model",
                "bert",
                "--data",
                "data",
                "--method",
                "head",
                "--seed",
                "1",
                "--epochs",
                "40",
                "--out",
                "whole",
            ]
        )
        == 0
    )
    assert results_of()["head-seed1"]["losses"] == json.loads(Path("whole/result.json").read_text())["losses"]
    assert Path("runs/head-seed1/head.safetensors").read_bytes() == Path("whole/head.safetensors").read_bytes()


# ---- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ("--methods full,doora", "--methods: expected some of full, head, top_k, "),
        ("--methods full,", "--methods: expected some of full, head, top_k, "),
        ("--methods head,lora,head", "--methods: head is named twice"),
        ("--methods full,lora --rank 99", "--rank: the rank at blocks.0.attn.q must be a whole number from 1 to 16, got 99"),
        ("--methods full,lora --targets x", "--targets: no module matches 'x'"),
        ("--model gpt2 --data raw.txt --task lm --methods full,head", "this model has no output map of its own"),
        ("--out data/dev.tsv", "data/dev.tsv/full-seed0: cannot be written"),
    ],
)
def test_what_cannot_go_well_fails_at_once(options, message, at, started, capsys):
    before = set(at.rglob("*"))
    assert cli.main(["compare", "--model", "bert", "--data", "data", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert started == [] and set(at.rglob("*")) == before
    assert out == "" and err.startswith("minipeft: ") and err.count("\n") == 1 and message in err


def test_half_of_a_model_and_its_data(capsys):
    for half in (["--model", "bert"], ["--data", "data"]):
        assert cli.main(["compare", *half]) == 2
        assert capsys.readouterr().err == "minipeft: compare: give both --model and --data, or neither for the built-in task\n"
    with pytest.raises(ValueError, match="^seeds: expected at least 1, got 0$"):
        compare("bert", "data", ["head"], 0, "runs", {})


def test_other_settings_in_the_same_folder_fail_before_anything_is_run(at, started, capsys):
    assert cli.main([*LINE[:-2], "--methods", "lora", "--seeds", "1", "--out", "runs"]) == 0
    started.clear()
    capsys.readouterr()
    assert cli.main([*LINE, "--max-length", "20"]) == 2
    assert started == [] and not Path("runs/head-seed0").exists()
    assert capsys.readouterr().err == (
        "minipeft: runs/lora-seed0: holds a run with other settings (--max-length was 128, now 20); choose another --out\n"
    )


def test_a_run_that_fails_is_one_line(at, capfd):
    assert (
        cli.main(
            ["compare", "--model", "bert", "--data", "data", "--methods", "head", "--rank", "3", "--lr", "1e30", "--out", "runs"]
        )
        == 2
    )
    out, err = capfd.readouterr()
    note, *progress, fault = err.splitlines()
    assert out == "" and note == "note: --rank does nothing with method head and task classify"
    assert all(line.startswith("[1/3] head seed 0: epoch") for line in progress)
    assert re.fullmatch(
        r"minipeft: \[1/3\] head seed 0: training diverged at step \d+: .*; the runs that finished are kept in runs", fault
    )


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_run_that_is_killed_by_the_system(at, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(
        ValueError,
        match="^a label: its process ended with code -9, killed by the system, perhaps for lack of memory; "
        "the runs that finished are kept in runs$",
    ):
        in_own_process(Run("bert", "data"), Path("runs/x"), "a label")


def test_ctrl_c_waits_for_the_run(tmp_path, monkeypatch):
    """The process gets the same Ctrl-C; it is waited for, because it writes a checkpoint, and only then ended."""
    seen = []

    class Process:
        returncode = None

        def __init__(self, *args, **kwargs):
            pass

        def communicate(self):
            raise KeyboardInterrupt

        def wait(self):
            seen.append("wait")

        def kill(self):
            seen.append("kill")

    monkeypatch.setattr(comparison.subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        in_own_process(Run("bert", "data"), tmp_path / "x", "a label")
    assert seen == ["wait", "kill"]


def test_ctrl_c_that_reaches_only_the_run_stops_the_comparison(at, tmp_path, monkeypatch):
    process = SimpleNamespace(communicate=lambda: ("", None), returncode=130)
    monkeypatch.setattr(comparison.subprocess, "Popen", lambda *args, **kwargs: process)
    with pytest.raises(KeyboardInterrupt):
        in_own_process(Run("bert", "data"), tmp_path / "x", "a label")


# ---- the table -------------------------------------------------------------------------------------------------


def result(score, **more):
    return {
        "score": score,
        "metric": "accuracy",
        "split": "dev",
        "lr": 0.1,
        "trainable": 10,
        "trainable_without_head": 4,
        "total": 1000,
        "step_ms": 1.0,
        "peak_mb": 100.0,
        "size_mb": 0.002,
        "seconds": 1.0,
        **more,
    }


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1e4), st.floats(1, 1e5), st.floats(0, 1e5)), min_size=1, max_size=6))
def test_a_row(values):
    row = summarise("lora", [result(s, step_ms=ms, peak_mb=mb, seconds=t) for s, ms, mb, t in values])
    scores, steps, peaks, seconds = zip(*values)
    assert row["score"] == pytest.approx(statistics.mean(scores)) and row["seeds"] == len(values)
    assert row["score_std"] == pytest.approx(statistics.stdev(scores) if len(scores) > 1 else 0.0, abs=1e-12)
    assert row["step_ms"] == pytest.approx(statistics.median(steps)) and row["peak_mb"] == max(peaks)
    assert row["seconds"] == pytest.approx(math.fsum(seconds)) and row["trainable"] == 10 and row["method"] == "lora"


def test_every_score_of_written_texts_is_a_column(capsys):
    """The chosen one first; the others with their own spread, and a dash where there was nothing to score."""

    def told(bleu, rouge, exact):
        return result(rouge, metric="rouge_l", scores={"bleu": bleu, "rouge_l": rouge, "exact": exact})

    rows = [summarise("full", [told(40.0, 0.5, 0.25), told(42.0, 0.75, 0.25)]), summarise("lora", [told(3.0, 0.1, 0.0)] * 2)]
    assert rows[0]["others"] == {"bleu": (41.0, pytest.approx(2**0.5)), "exact": (0.25, 0.0)} and rows[0]["score"] == 0.625
    Table(rows, "title").show()
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"rouge_l +bleu +exact", " ".join(lines[:3]))
    assert re.search(r"0\.6250 ± 0\.1768 +41\.0000 ± 1\.4142 +0\.2500 ± 0\.0000 ", next(line for line in lines if "full" in line))
    nothing = summarise("full", [told(1.0, 1.0, 1.0) | {"score": None, "split": None, "scores": {}}])
    assert nothing["others"] == {"bleu": (None, 0.0), "exact": (None, 0.0)}
    Table([nothing], "title").show()
    out = capsys.readouterr().out
    assert len(re.findall(r" - ", out)) == 3 and "no data" in out
    assert summarise("full", [result(0.5)])["others"] == {}


def test_learning_to_write_end_to_end(at, started, capfd):
    line = "compare --model t5 --data told --task seq2seq --methods full,prefix --seeds 1 --epochs 1 --out runs --json table.json"
    assert cli.main([*line.split(), "--max-target-length", "12", "--num-virtual-tokens", "3"]) == 0
    out, err = capfd.readouterr()
    rows, results = json.loads(Path("table.json").read_text()), results_of()
    assert started == ["full-seed0", "prefix-seed0"] and len(results) == 2
    for row in rows:
        scores = results[f"{row['method']}-seed0"]["scores"]
        assert row["metric"] == "bleu" and row["score"] == scores["bleu"]
        assert row["others"] == {name: [scores[name], 0.0] for name in ("rouge_l", "exact")}
    assert re.search(r"bleu +rouge_l +exact", out) and err.count("[1/2] full seed 0: epoch 1 ") == 1


def test_nothing_is_cut_off_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    big = {
        "trainable": 109_483_778,
        "trainable_without_head": 109_482_240,
        "total": 109_483_778,
        "size_mb": 438.01,
        "step_ms": 1586.4,
        "peak_mb": 12345.6,
    }
    Table(
        [summarise("full", [result(0.8541, **big), result(0.8425, **big)]), summarise("head", [result(0.7, trainable=1)])],
        "a title",
    ).show()
    out = capsys.readouterr().out
    assert "…" not in out and "a title" in out
    for cell in (
        "109,483,778",
        "109,482,240",
        "100",
        "0.8483 ± 0.0082",
        "1586.4",
        "12346",
        "438.01 MB",
        "0.7000",
        "0.1 ",
        "2 kB",
    ):
        assert cell in out
    assert max(map(len, out.splitlines())) < 90


def test_a_table_as_large_as_the_readmes_fits_into_80_columns(capsys):
    full = {
        "trainable": 22_566_146,
        "trainable_without_head": 22_565_376,
        "total": 22_566_146,
        "size_mb": 90.87,
        "step_ms": 158.6,
        "peak_mb": 814,
    }
    Table(
        [
            summarise("full", [result(0.8541, **full), result(0.8425, **full)]),
            summarise("head", [result(0.8, **full | {"trainable": 770}), result(0.9)]),
        ],
        "title",
    ).show()
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 80


def test_without_dev_and_test_there_is_no_score(at, capsys):
    Path("data/dev.tsv").unlink()
    Path("data/test.tsv").unlink()
    assert (
        cli.main(
            [
                "compare",
                "--model",
                "bert",
                "--data",
                "data",
                "--methods",
                "head",
                "--seeds",
                "2",
                "--epochs",
                "1",
                "--out",
                "runs",
                "--json",
                "t.json",
            ]
        )
        == 0
    )
    (row,) = json.loads(Path("t.json").read_text())  # NaN would be no JSON
    assert row["score"] is None and row["split"] is None and "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "megabytes, text",
    [
        (90.871, "90.87 MB"),
        (0.3, "0.30 MB"),
        (0.1, "0.10 MB"),
        (0.0946, "95 kB"),
        (0.0032, "3 kB"),
        (0.00034, "0.3 kB"),
        (1234.5, "1234.50 MB"),
        (0.0, "0.0 kB"),
    ],
)
def test_sizes_that_can_be_read(megabytes, text):
    assert size_text(megabytes) == text


@given(st.floats(1e-5, 1e4))
def test_a_size_is_never_shown_as_nothing(megabytes):
    number, unit = size_text(megabytes).split()
    assert float(number) * {"MB": 1, "kB": 1e-3}[unit] == pytest.approx(megabytes, rel=0.06, abs=5.1e-5)


# ---- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a program's own mark")
def test_peak_memory_is_the_runs_own(run_python):
    """What the comparison itself holds is not counted to its runs, and what a run once held is."""
    ballast = np.ones(40_000_000)  # 320 MB
    done = run_python("""
        from minipeft.compare.run import peak_mb
        import numpy as np
        before = peak_mb()
        np.ones(10_000_000)
        kilobytes = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(before, peak_mb(), kilobytes * 1024 / 1e6)
    """)
    before, after, exact = map(float, done.stdout.split())
    assert after == pytest.approx(exact, rel=0.01)  # MB of 10^6 bytes, as sizes on disk are
    assert 20 < before < 300 and 75 < after - before < 90, done.stderr
    assert peak_mb() > ballast.nbytes / 1e6


def test_peak_memory_elsewhere(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("builtins.open", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError(2, "no /proc")))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for platform, expected in (("linux", used * 1024 / 1e6), ("darwin", used / 1e6)):
        monkeypatch.setattr(sys, "platform", platform)
        assert peak_mb() == pytest.approx(expected, rel=0.05)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_mb() == 0.0
