"""Comparisons: each run in its own process, one table whose numbers are right, and no finished run made twice."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import cli
from minipeft.compare import processes, rates
from minipeft.compare.comparison import MAIN, MODELS, Comparison, Variant, compare, main_methods
from minipeft.compare.processes import Job, in_own_process
from minipeft.compare.run import Run
from minipeft.compare.table import Table, cells, notes, size_text, summarise
from minipeft.training.memory import peak_mb

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
        if any("minipeft.compare.child" in str(each) for each in arguments):  # others start processes too
            out.append(Path(arguments[-1]).name)
        return popen(arguments, **kwargs)

    monkeypatch.setattr(processes.subprocess, "Popen", counting)
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
    names = [f"{method}-seed{seed}" for method in ("base", "head", "lora") for seed in (0, 1)]
    assert sorted(started) == names
    assert err.count("note: ") == 1 and "note: 1 text is longer than 40 tokens and was cut\n" in err  # for the whole comparison
    line = r"^\[(\d)/6\] (\w+) seed (\d): accuracy 0\.\d{4} on test, \d+\.\d s; .* left$"
    assert sorted(re.findall(line, err, re.MULTILINE)) == [
        (str(2 * i + seed + 1), method, str(seed)) for i, method in enumerate(("base", "head", "lora")) for seed in (0, 1)]

    rows, results = json.loads(Path("table.json").read_text()), results_of()
    written = json.loads(Path("runs/results.json").read_text())
    assert written == {
        "title": "bert on data", "model": "bert", "tasks": ["data"], "methods": ["head", "lora"], "seeds": 2, "threads": 1,
        "jobs": written["jobs"], "rows": rows, "sweeps": {}, "tuning": [], "failed": [],
        "runs": {name: {"label": name[:4], "method": name[:4], "task": "data", "seed": int(name[-1])} for name in names}}
    assert [row["label"] for row in rows] == ["base", "head", "lora"] and set(results) == set(names)
    for row in rows:
        check_row(row, results, out)
    assert [row["trainable"] for row in rows] == [0, 34, 34 + 4 * 2 * 32]
    assert "lora: 4 x [R (D_in + D_out) = 2 (16 + 16)]" in out
    assert "/" not in out and "Traceback" not in err

    before = {name: Path(f"runs/{name}/result.json").stat().st_mtime_ns for name in results}
    shutil.rmtree("runs/lora-seed0")
    started.clear()
    assert cli.main(LINE) == 0  # finished runs are not repeated, and the one that is gone is made again
    again, err = capfd.readouterr()
    assert started == ["lora-seed0"] and err.count("finished before\n") == 5
    assert results_of()["lora-seed0"]["losses"] == results["lora-seed0"]["losses"]
    assert all(
        Path(f"runs/{name}/result.json").stat().st_mtime_ns == when for name, when in before.items() if name != "lora-seed0"
    )
    assert again.split("±")[1].split()[0] == out.split("±")[1].split()[0]


def check_row(row, results, out):
    """A row is what its runs say, and the printed line is the row."""
    own = [results[f"{row['method']}-seed{seed}"] for seed in (0, 1)]
    scores = [result["score"] for result in own]
    assert KEYS <= set(row) and row["scores"] == scores and row["runs"] == [f"{row['method']}-seed{seed}" for seed in (0, 1)]
    assert row["method"] == "base" or own[0]["losses"] != own[1]["losses"]  # or the seeds do nothing
    assert row["score"] == pytest.approx(statistics.mean(scores)) and row["score_std"] == pytest.approx(statistics.stdev(scores))
    assert row["split"] == "test" and row["share"] == row["trainable"] / row["total"]
    times = [result["inference"] for result in own]
    for name in ("base_ms", "unmerged_ms", "unmerged_ratio"):
        assert row[name] > 0 and row[name] == pytest.approx(statistics.median(t[name] for t in times))
    assert (row["merged_ms"] is None) == (row["method"] != "lora")
    line = next(line for line in out.splitlines() if line.startswith(row["method"]))
    assert re.split(r"\s{2,}", line.strip()) == [
        row["method"],
        f"{row['trainable']:,}",
        f"{row['trainable_without_head']:,}",
        {0: "0", 34: "0.5", 290: "4.14"}[row["trainable"]],
        f"{row['score']:.4f} ± {row['score_std']:.4f}",
        "-" if row["method"] == "base" else f"{row['step_ms']:.1f}",
        f"{row['peak_mb']:.0f}",
        size_text(row["size_mb"]),
        f"{row['unmerged_ms']:.1f}" + ("" if row["method"] == "base" else f" ({row['unmerged_ratio']:.2f}x)"),
        "-" if row["merged_ms"] is None else f"{row['merged_ms']:.1f} ({row['merged_ratio']:.2f}x)",
    ]


def test_a_run_of_a_comparison_is_what_finetune_makes(at):
    row = compare("gpt2", "raw.txt", ["lora"], 1, "runs", {"task": "lm", "max_steps": 2, "max_length": 16}).rows[1]
    line = "finetune --model gpt2 --data raw.txt --task lm --max-steps 2 --max-length 16 --seed 0 --out alone"
    assert cli.main(line.split()) == 0
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
    assert set(results_of()) == {"base-seed0", "head-seed0", "lora-seed0"}


def numbers(folder):
    """What a comparison's runs computed, without what they took: {run: (losses, evaluations, scores)} and the saved bytes."""
    results = {name: (r["losses"], r["evaluations"], r["scores"]) for name, r in results_of(folder).items()}
    saved = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).glob("*/*.safetensors")}
    return results, saved


def test_the_same_bits_whatever_runs_beside(at, monkeypatch):
    """Runs at a time, and the threads that this process has, change nothing."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    line = ["compare", "--model", "bert", "--data", "data", "--methods", "full,early_exit", "--seeds", "1", "--epochs", "1"]
    assert cli.main([*line, "--jobs", "1", "--out", "one"]) == cli.main([*line, "--jobs", "2", "--out", "two"]) == 0
    assert numbers("one") == numbers("two") and len(numbers("one")[1]) >= 4
    assert {result["threads"] for result in results_of("two").values()} == {1}


def test_threads_of_a_run(at):
    wanted = processes.environment(3)
    assert {wanted[name] for name in processes.THREADS} == {"3"}
    assert {"OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"} <= set(processes.THREADS)
    outcome = in_own_process(Job(Run("bert", "data", "head", max_steps=1), Path("runs/x"), "a label"), threads=2)
    assert outcome.result["threads"] == 2


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
@pytest.mark.parametrize("number, jobs", [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)])
def test_a_stopped_comparison_goes_on(number, jobs, at, started, capfd):
    line = [*LINE[:-4], "--epochs", "40", "--out", "runs"]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", *line, "--jobs", str(jobs)],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    for said in process.stderr:
        if said.startswith("[3/6] head seed 0: accuracy "):
            break
    os.killpg(process.pid, number)  # as a terminal does: to the comparison and to its runs
    out, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130 and out == ""
        assert err.splitlines()[-1] == "minipeft: stopped; what is done is kept in runs. To go on, repeat the command"
        assert "Traceback" not in err
    before = results_of()
    assert 3 <= len(before) < 6 and not Path("runs/results.json").exists()
    times = {name: Path(f"runs/{name}/result.json").stat().st_mtime_ns for name in before}
    started.clear()
    capfd.readouterr()
    assert cli.main(line) == 0
    assert len(started) == 6 - len(before) and not set(started) & set(before)
    assert all(Path(f"runs/{name}/result.json").stat().st_mtime_ns == when for name, when in times.items())
    assert all(len(result["losses"]) == 200 for name, result in results_of().items() if "base" not in name)
    alone = "finetune --model bert --data data --method head --seed 1 --epochs 40 --out whole"
    assert cli.main(alone.split()) == 0
    assert results_of()["head-seed1"]["losses"] == json.loads(Path("whole/result.json").read_text())["losses"]
    assert Path("runs/head-seed1/head.safetensors").read_bytes() == Path("whole/head.safetensors").read_bytes()


def test_a_cluster(at, started, capfd):
    """The same bits on the workers of a Dask cluster, each run in a process of its own; they find what has been done as well."""
    distributed = pytest.importorskip("distributed", reason="needs the test extra: distributed")
    line = ["compare", "--model", "bert", "--data", "data", "--methods", "lora", "--seeds", "2", "--epochs", "1"]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        assert cli.main([*line, "--dask", cluster.scheduler_address, "--out", "there"]) == 0
        assert capfd.readouterr().err.count(" left\n") == 4
        assert (sorted(started) == sorted(results_of("there"))
                and json.loads(Path("there/results.json").read_text())["jobs"] is None)
        assert cli.main([*line, "--dask", cluster.scheduler_address, "--out", "there"]) == 0
        assert capfd.readouterr().err.count("finished before\n") == 4 == len(started)
    assert cli.main([*line, "--out", "here"]) == 0
    assert numbers("there") == numbers("here")


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_stopped_comparison_on_a_cluster_goes_on(at, capfd):
    """Ctrl-C reaches the runs on the workers, too: when the command ends none is left, and repeated at once it goes on."""
    distributed = pytest.importorskip("distributed", reason="needs the test extra: distributed")
    psutil = pytest.importorskip("psutil", reason="comes with distributed")
    line = [*LINE[:-8], "--seeds", "1", "--epochs", "100", "--out", "runs"]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        line += ["--dask", cluster.scheduler_address]
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen([sys.executable, "-m", "minipeft", *line], text=True, stderr=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})
        deadline = time.monotonic() + 120
        while not list(Path("runs").glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # to the comparison alone
        out, err = process.communicate(timeout=120)
        at_work = [p.pid for p in psutil.Process().children(recursive=True) if "minipeft.compare.child" in " ".join(p.cmdline())]
        assert process.returncode == 130 and at_work == []
        assert err.splitlines()[-1] == "minipeft: stopped; what is done is kept in runs. To go on, repeat the command"
        before = results_of()
        assert len(before) < 3 and list(Path("runs").glob("*/checkpoint.safetensors"))
        assert cli.main(line) == 0
    results = results_of()
    assert len(results) == 3 and all(results[name] == result for name, result in before.items())
    assert all(len(result["losses"]) == 500 for name, result in results.items() if "base" not in name)


# ---- several tasks, sweeps, tuning -----------------------------------------------------------------------------


def test_several_tasks(at, capsys):
    shutil.copytree("data", "other/data")
    line = "compare --model bert --data data --data one.tsv --data other/data --methods head --seeds 1 --epochs 1 --out runs"
    assert cli.main(line.split()) == 0
    out = capsys.readouterr().out
    written = json.loads(Path("runs/results.json").read_text())
    tasks = ["data", "one.tsv", "data-2"]
    assert written["tasks"] == tasks and written["title"] == "bert on data, one.tsv, data-2"
    assert [(row["task"], row["label"]) for row in written["rows"]] == [(t, label) for t in tasks for label in ("base", "head")]
    assert list(written["runs"]) == [f"{task}/{label}-seed0" for task in tasks for label in ("base", "head")]
    assert all(Path("runs", run, "result.json").is_file() for run in written["runs"])
    assert [f"bert on data, one.tsv, data-2: {task}\n" in re.sub(" +\n", "\n", out) for task in tasks] == [True] * 3
    assert Path("runs/results.md").read_text().count("| head |") == 3
    assert "<svg" in Path("runs/report.html").read_text()
    assert Path("runs/results.csv").read_text().splitlines()[0].startswith("task,label,method,lr,")


def test_a_task_of_the_toy_world(at, monkeypatch):
    toy = pytest.importorskip("minipeft.data.toy")
    small = toy.save
    monkeypatch.setattr(toy, "save", lambda *a, **more: small(*a, **more, train=40, dev=10, test=10))
    line = "compare --model bert --data toy:topic:easy --methods head --seeds 1 --epochs 1 --out runs"
    assert cli.main(line.split()) == 0
    made = Path("runs/data/topic-easy/train.tsv")
    when, written = made.stat().st_mtime_ns, json.loads(Path("runs/results.json").read_text())
    assert written["tasks"] == ["topic-easy"] and len(made.read_text().splitlines()) == 41
    shutil.rmtree("runs/head-seed0")
    assert cli.main(line.split()) == 0 and made.stat().st_mtime_ns == when


def test_a_sweep(at, capsys):
    line = "compare --model bert --data data --methods head --seeds 1 --epochs 1 --out runs"
    assert cli.main([*line.split(), "--sweep", "lora.rank=1,2", "--sweep", "lora.targets=q,q+v", "--sweep", "full.lr=0.001"]) == 0
    written = json.loads(Path("runs/results.json").read_text())
    labels = ["base", "head", "lora rank=1 targets=q", "lora rank=1 targets=q+v", "lora rank=2 targets=q",
              "lora rank=2 targets=q+v", "full lr=0.001"]
    assert [row["label"] for row in written["rows"]] == labels
    assert [row["trainable_without_head"] for row in written["rows"]][2:6] == [64, 128, 128, 256]
    assert written["rows"][3]["settings"] == {"rank": 1, "targets": "q,v"} and written["rows"][6]["lr"] == 0.001
    assert written["sweeps"] == {"lora.rank": [1, 2], "lora.targets": ["q", "q,v"], "full.lr": [0.001]}
    assert written["rows"][3]["runs"] == ["lora-rank=1-targets=q+v-seed0"] and Path("runs/lora-rank=1-targets=q+v-seed0").is_dir()


def test_tuning(at, capsys):
    line = "compare --model bert --data data --methods lora --seeds 2 --epochs 1 --tune --out runs"
    assert cli.main(line.split()) == 0
    written, results = json.loads(Path("runs/results.json").read_text()), results_of()
    (told,) = written["tuning"]
    assert (told["task"], told["label"]) == ("data", "lora") and [each["lr"] for each in told["tried"]] == [0.0015, 0.005, 0.015]
    for each in told["tried"]:
        assert each["dev"] == results[f"lora-lr={each['lr']:g}-seed0"]["evaluations"][-1]["score"]
    best = max(told["tried"], key=lambda each: each["dev"])["lr"]
    assert told["lr"] == best == written["rows"][1]["lr"] and written["rows"][1]["label"] == "lora"
    assert written["rows"][1]["runs"] == [f"lora-lr={best:g}-seed{seed}" for seed in (0, 1)]
    assert len(results) == 2 + 3 + 1  # seed 0 of the chosen rate was there already


@pytest.mark.parametrize("dev, lower, expected", [([0.2, 0.4, 0.3], False, 0.005), ([9.0, None, 7.0], True, 0.015)])
def test_the_best_rate_is_the_best_on_dev(dev, lower, expected, at, monkeypatch):
    told = iter(dev)
    monkeypatch.setattr(Comparison, "outcomes", lambda self, jobs, said=(): {
        job.folder: "failed" if (score := next(told)) is None else {"evaluations": [{"score": score}]} for job in jobs})
    settings = {"task": "lm"} if lower else {}
    comparison = Comparison("bert", ["data"], [Variant("lora")], 3, Path("runs"), settings, {"threads": 1})
    assert comparison.tune()[0]["lr"] == expected


def test_tuning_without_dev(at, refused_compare):
    Path("data/dev.tsv").unlink()
    refused_compare("--methods head --seeds 1 --epochs 1 --tune", "--tune: head has no score on dev of data; --tune needs a dev "
                    "split, and a run that ends well")


@pytest.fixture
def refused_compare(capfd):
    """``refused_compare(options, message)``: a comparison of bert on data ends with code 2 and this last line."""
    def check(options, message):
        assert cli.main(["compare", "--model", "bert", "--data", "data", "--out", "runs", *options.split()]) == 2
        assert capfd.readouterr().err.splitlines()[-1] == f"minipeft: {message}"
    return check


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
        ("--out data/dev.tsv", "data/dev.tsv/base-seed0: cannot be written"),
        ("--tune --lr 0.1", "--lr sets the learning rate that --tune would choose; leave out one of them"),
        ("--sweep lora.rank=1,1", "--sweep: lora.rank has a value twice"),
        ("--sweep lora.rank=1,99 --methods head", "--rank: the rank at blocks.0.attn.q must be a whole number from 1 to 16, got"),
        ("--methods early_exit --label-smoothing 0.1", "early_exit: each exit is a classifier and has the loss of one, which "
         "goes without --label-smoothing; use --label-smoothing 0, or another method"),
        ("--model gpt2 --data raw.txt --task lm --methods early_exit", "early_exit: each exit is a classifier and has the "
         "loss of one, which goes without task lm; use --task classify, or another method"),
        ("--methods head --dask tcp://127.0.0.1:1", "--dask: no scheduler answers at 'tcp://127.0.0.1:1' ("),
    ],
)
def test_what_cannot_go_well_fails_at_once(options, message, at, started, capsys):
    before, data = set(at.rglob("*")), [] if "--data" in options else ["--data", "data"]
    assert cli.main(["compare", "--model", "bert", *data, *options.split()]) == 2
    out, err = capsys.readouterr()
    assert started == [] and set(at.rglob("*")) == before
    assert out == "" and err.startswith("minipeft: ") and err.count("\n") == 1 and message in err


def test_half_of_a_model_and_its_data(capsys):
    assert cli.main(["compare", "--data", "data"]) == 2
    assert capsys.readouterr().err == ("minipeft: --model: is needed with data of your own; without it only toy: data are "
                                       "compared, on the package's models\n")
    with pytest.raises(ValueError, match="^seeds: expected at least 1, got 0$"):
        compare("bert", "data", ["head"], 0, "runs", {})
    with pytest.raises(ValueError, match="^jobs: expected at least 1, got 0$"):
        compare("bert", "data", ["head"], 1, "runs", {}, jobs=0)
    with pytest.raises(ValueError, match="^sweep: head has the settings lr; got 'head.rank'$"):
        compare("bert", "data", ["head"], 1, "runs", {}, sweeps={"head.rank": [1]})
    with pytest.raises(ValueError, match="^sweep: expected a method among full, .* before the dot, got 'rank'$"):
        compare("bert", "data", ["head"], 1, "runs", {}, sweeps={"rank": [1]})


def test_another_number_of_threads_is_another_comparison(at, capsys):
    line = "compare --model bert --data data --methods head --seeds 1 --epochs 1 --out runs"
    assert cli.main(line.split()) == 0
    capsys.readouterr()
    assert cli.main([*line.split(), "--threads", "2"]) == 2
    assert capsys.readouterr().err == (
        "minipeft: runs/base-seed0: holds a run with other settings (--threads was 1, now 2); choose another --out\n")


def test_other_settings_in_the_same_folder_fail_before_anything_is_run(at, started, capsys):
    assert cli.main([*LINE[:-2], "--methods", "lora", "--seeds", "1", "--out", "runs"]) == 0
    started.clear()
    capsys.readouterr()
    assert cli.main([*LINE, "--max-length", "20"]) == 2
    assert started == [] and not Path("runs/head-seed0").exists()
    assert capsys.readouterr().err == (
        "minipeft: runs/base-seed0: holds a run with other settings (--max-length was 128, now 20); choose another --out\n"
    )


def test_a_run_that_fails_names_itself_and_the_others_go_on(at, capfd):
    line = "compare --model bert --data data --methods head,lora --sweep head.lr=1e30 --seeds 1 --epochs 2 --out runs"
    assert cli.main([*line.split(), "--json", "table.json"]) == 2
    out, err = capfd.readouterr()
    *progress, fault, advice = err.splitlines()
    reason = r"training diverged at step \d+: .*"
    assert any(re.fullmatch(rf"\[\d/3\] head lr=1e\+30 seed 0: failed: {reason}; .* left", said) for said in progress)
    assert re.fullmatch(rf"minipeft: head lr=1e\+30 seed 0: {reason}", fault)
    assert advice == ("minipeft: 1 of the runs failed and are not in the table; the others are kept in runs. Repeat the command "
                      "to try the failed ones again")
    assert [row["label"] for row in json.loads(Path("table.json").read_text())] == ["base", "lora"] and "lora" in out
    (failed,) = json.loads(Path("runs/results.json").read_text())["failed"]
    assert re.fullmatch(reason, failed.pop("reason"))
    assert failed == {"folder": "head-lr=1e+30-seed0", "label": "head lr=1e+30", "method": "head", "task": "data", "seed": 0}


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_run_that_is_killed_by_the_system(at, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    outcome = in_own_process(Job(Run("bert", "data"), Path("runs/x"), "a label"))
    assert outcome.result is None and not outcome.stopped
    assert outcome.reason == "its process ended with code -9, killed by the system, perhaps for lack of memory"


class Process:
    """A run's process that ends with a code, and in the time that it takes."""

    stdout = ()

    def __init__(self, returncode=130, busy=0):
        self.returncode, self.busy, self.seen = returncode, busy, []

    def wait(self, timeout=None):
        if self.busy:
            self.busy -= 1
            raise subprocess.TimeoutExpired("run", timeout)

    def send_signal(self, number):
        self.seen.append(number)

    def kill(self):
        self.seen.append("kill")


def test_ctrl_c_that_reaches_only_the_run_stops_the_comparison(at, monkeypatch):
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *args, **kwargs: Process(130))
    jobs = [Job(Run("bert", "data", seed=seed), Path(f"runs/{seed}"), "a label") for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        processes.run_all(jobs, 1, 1)
    assert in_own_process(jobs[0]).stopped  # nothing begins any more
    processes._stop.clear()


@pytest.mark.parametrize("busy, seen", [(0, ["kill"]), (1, [signal.SIGINT, "kill"])])
def test_ctrl_c_waits_for_the_runs_in_hand(busy, seen, monkeypatch):
    """The same Ctrl-C has reached them and they write a checkpoint; where it has not, they are told."""
    process = Process(busy=busy)
    monkeypatch.setattr(processes, "_alive", {process: None})
    processes._wait_for_runs()
    assert process.seen == seen and not processes._alive


# ---- the table -------------------------------------------------------------------------------------------------


def result(score, **more):
    return {
        "method": "lora",
        "data": "data",
        "formula": "",
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
    assert row["label"] == "lora" and row["unmerged_ms"] is None and row["mean_layer"] is None


def test_times_and_layers_of_a_row():
    """Medians of the seeds that measured something; nothing merged leaves a dash."""
    times = [{"base_ms": b, "unmerged_ms": 2 * b, "merged_ms": None, "unmerged_ratio": r, "merged_ratio": None}
             for b, r in ((1.0, 2.0), (3.0, 2.2), (100.0, 1.9))]
    row = summarise("early_exit", [result(0.5, method="early_exit", inference=t, mean_layer=layer)
                                   for t, layer in zip(times, (1.0, 2.0, 4.5))])
    assert (row["base_ms"], row["unmerged_ms"], row["unmerged_ratio"]) == (3.0, 6.0, 2.0) and row["merged_ms"] is None
    assert row["mean_layer"] == 2.5 and cells(row)[-2:] == ["6.0 (2.00x)", "-"]
    assert notes([row]) == ["early_exit: examples left at layer 2.50 on average; its score and inference time are so"]


def test_csv_and_markdown():
    times = {"base_ms": 1.0, "unmerged_ms": 1.5, "merged_ms": 1.0, "unmerged_ratio": 1.5, "merged_ratio": 1.0}
    row = summarise("lora rank=4", [result(0.25, formula="R (D + D)", inference=times)])
    table = Table([row], "a title")
    (read,) = csv.DictReader(io.StringIO(table.csv()))
    assert read["label"] == "lora rank=4" and read["mean_layer"] == "" and read["trainable"] == "10"
    assert float(read["score"]) == 0.25
    assert table.markdown() == (
        "**a title**\n\n"
        "| method | trainable | without the head | share (%) | accuracy (dev) | step (ms) | peak (MB) | on disk | "
        "inference (ms) | merged (ms) |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| lora rank=4 | 10 | 4 | 1 | 0.2500 | 1.0 | 100 | 2 kB | 1.5 (1.50x) | 1.0 (1.00x) |\n\n- lora rank=4: R (D + D)\n")


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
    assert len(re.findall(r" -(?= )", out)) >= 4 and "no data" in out
    assert summarise("full", [result(0.5)])["others"] == {}


def test_learning_to_write_end_to_end(at, started, capfd):
    line = "compare --model t5 --data told --task seq2seq --methods full,prefix --seeds 1 --epochs 1 --out runs --json table.json"
    assert cli.main([*line.split(), "--max-target-length", "12", "--num-virtual-tokens", "3"]) == 0
    out, err = capfd.readouterr()
    rows, results = json.loads(Path("table.json").read_text()), results_of()
    assert sorted(started) == ["base-seed0", "full-seed0", "prefix-seed0"] and len(results) == 3
    for row in rows:
        scores = results[f"{row['method']}-seed0"]["scores"]
        assert row["metric"] == "bleu" and row["score"] == scores["bleu"]
        assert row["others"] == {name: [scores[name], 0.0] for name in ("rouge_l", "exact")}
    assert re.search(r"bleu +rouge_l +exact", out) and err.count("[2/3] full seed 0: bleu ") == 1


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
    assert max(map(len, out.splitlines())) < 110


def test_a_table_as_large_as_the_readmes_fits_into_105_columns(capsys):
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
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 105


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
    base, row = json.loads(Path("t.json").read_text())  # NaN would be no JSON
    assert base["score"] is row["score"] is None and row["split"] is None and "nan" not in capsys.readouterr().out


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
        from minipeft.training.memory import peak_mb
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


# ---- with nothing given ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What `compare` would run: {method: [Run]}; nothing is run."""
    jobs = []
    monkeypatch.setattr(Comparison, "outcomes", lambda self, all_jobs, said=(): jobs.extend(all_jobs) or {
        job.folder: "not run" for job in all_jobs})

    def asked(*args, **more):
        jobs.clear()
        table, runs = compare(*args, **more), {}
        for job in jobs:
            runs.setdefault(job.run.method, []).append(job.run)
        return table, runs

    return asked


def test_without_arguments_every_main_method_on_the_packages_encoder(asked, tmp_path):
    table, runs = asked(None, None, None, 3, tmp_path, {})
    assert list(runs) == ["base", *MAIN] and {len(same) for same in runs.values()} == {3}
    assert {run.model for same in runs.values() for run in same} == {"toy:encoder"}
    assert {run.data for same in runs.values() for run in same} == {str(tmp_path / "data" / "rating-medium")}
    assert {method: same[0].lr for method, same in runs.items() if method != "base"} == {name: rates.SMALL[name] for name in MAIN}
    assert table.title == "toy:encoder on rating-medium" and len(table.failed) == 3 * 11


@pytest.mark.parametrize("task, model, data", [("lm", "toy:decoder", "text-medium"),
                                               ("seq2seq", "toy:seq2seq", "describe-medium")])
def test_other_tasks_have_models_and_data_of_their_own(task, model, data, asked, tmp_path):
    _, runs = asked(None, None, ["lora"], 1, tmp_path, {"task": task})
    assert [(run.model, run.data) for run in runs["lora"]] == [(model, str(tmp_path / "data" / data))]


def test_toy_data_alone_and_a_model_alone(asked, world, tmp_path):
    _, runs = asked(None, ["toy:topic", "toy:truth"], ["lora"], 1, tmp_path, {"lr": 0.5, "epochs": 2})
    assert [(run.model, Path(run.data).name, run.lr, run.epochs) for run in runs["lora"]] == [
        ("toy:encoder", "topic-medium", 0.5, 2), ("toy:encoder", "truth-medium", 0.5, 2)]
    _, runs = asked(world / "bert", None, ["lora"], 1, tmp_path / "other", {})
    assert [(run.model, Path(run.data).name) for run in runs["lora"]] == [(str(world / "bert"), "rating-medium")]


def test_what_takes_longest_starts_first(tmp_path, monkeypatch):
    from minipeft.compare import comparison as module

    started = []
    monkeypatch.setattr(module, "run_all", lambda jobs, **settings: started.extend(job.run.method for job in jobs) or {})
    variants = module.variants_of(["lora", "full", "head", "early_exit"], {})
    chosen = module.Comparison("toy:encoder", [module.written("toy:rating", tmp_path)], variants, 1, tmp_path, {},
                               {"workers": 1, "threads": 1, "dask": None}, {})
    jobs = [chosen.job(next(iter(chosen.tasks)), variant, 0) for variant in variants]
    chosen.outcomes(jobs)
    assert (started[:2] == ["early_exit", "full"]
            and started[2:] == [job.run.method for job in jobs if job.run.method not in module.SLOW])


@pytest.mark.parametrize("task, left_out", [("lm", ["head", "early_exit"]), ("seq2seq", ["head", "bitfit", "early_exit"]),
                                            ("classify", [])])
def test_without_methods_those_are_compared_that_go_with_the_model(task, left_out):
    """The decoder's and T5's output maps are their word vectors, T5 has no biases, and exits are classifiers."""
    methods, said = main_methods(MODELS[task], task, {})
    assert methods == [name for name in MAIN if name not in left_out]
    assert len(said) == len(left_out) and all(line.startswith(f"note: without {name}: ") for line, name in zip(said, left_out))
    assert main_methods("nowhere", task, {}) == (list(MAIN), [])


@pytest.mark.parametrize("model, task, settings, left_out", [
    ("toy:seq2seq", "seq2seq", {"options": {"add_zero_biases": True}}, ["head", "early_exit"]),
    ("toy:encoder", "classify", {"base_bits": 4}, ["full", "top_k", "early_exit"]),
    ("toy:encoder", "classify", {"label_smoothing": 0.1}, ["early_exit"]),
    ("toy:encoder", "classify", {"options": {"rank": 999}}, [])])
def test_what_a_comparison_leaves_out_goes_by_its_settings(model, task, settings, left_out):
    """A size that is too large for one method is a fault that the run tells, and no reason to leave the method out."""
    methods, said = main_methods(model, task, settings)
    assert methods == [name for name in MAIN if name not in left_out] and len(said) == len(left_out)


def test_a_comparison_of_what_writes_says_what_it_leaves_out(tmp_path, capsys):
    table = compare(None, None, None, 1, tmp_path / "out", {"task": "lm", "max_steps": 1, "train_limit": 8}, jobs=2)
    assert (not table.failed
            and [row["label"] for row in table.rows][1:] == [name for name in MAIN if name not in ("head", "early_exit")])
    assert capsys.readouterr().err.startswith("note: without head: the output map is tied to the word vectors")
