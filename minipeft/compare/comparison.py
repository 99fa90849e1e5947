"""The comparison: each method, with each seed, in a process of its own, and one table of what they cost and what they reach."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..data import Tokenizer, files
from ..methods import METHODS, attach, quantise
from .run import (METRICS_OF, RESULT, Run, check_out, check_resume, check_task, load_config, load_for, make_work, name_of,
                  unused_note)


@dataclass
class Table:
    """Rows of a comparison: one dictionary for each method, in the order given."""

    rows: list
    title: str

    def show(self):
        """Print the table to standard output."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        first = self.rows[0]
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
                          show_edge=False)
        scores = [f"{name}\n({first['split'] or 'no data'})" for name in (first["metric"], *first["others"])]
        for name in ("method", "trainable", "without\nthe head", "share\n(%)", *scores, "step\n(ms)", "peak\nmemory\n(MB)",
                     "on\ndisk"):
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in self.rows:
            share = 100 * row["trainable"] / row["total"]
            scores = [score_text(row["score"], row["score_std"], row["seeds"])]
            scores += [score_text(*row["others"][name], row["seeds"]) for name in first["others"]]
            table.add_row(row["method"], f"{row['trainable']:,}", f"{row['trainable_without_head']:,}",
                          f"{share:.{3 if share >= 1 else 2}g}", *scores, f"{row['step_ms']:.1f}", f"{row['peak_mb']:.0f}",
                          size_text(row["size_mb"]))
        console = Console()
        console.width = max(console.width, 200)  # a narrow terminal wraps a line, and no number is cut off
        console.print(table)


def size_text(megabytes):
    """A size in MB of 10^6 bytes, a small one in kB."""
    return f"{megabytes:.2f} MB" if megabytes >= 0.095 else f"{1000 * megabytes:.{0 if megabytes >= 0.00095 else 1}f} kB"


def score_text(mean, std, seeds):
    """A score as the table shows it."""
    return "-" if mean is None else f"{mean:.4f}" + (f" ± {std:.4f}" if seeds > 1 else "")


def mean_and_std(values):
    """Mean and sample standard deviation of a score over the seeds; (None, 0) where there was nothing to score."""
    return (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0) if len(values) else (None, 0.0)


def other_metrics(result):
    """Names of the scores that are shown besides the chosen one: written texts are judged by all of theirs."""
    family = METRICS_OF["seq2seq"]
    return [name for name in family if name != result["metric"]] if result["metric"] in family else []


def summarise(method, results):
    """One row from the results of one method's seeds: means, and the sample standard deviation of each score.

    The score is None where there was nothing to score. ``others``: {name: (mean, standard deviation)} of `other_metrics`.
    """
    first, scores = results[0], [r["score"] for r in results if r["score"] is not None]
    mean, std = mean_and_std(scores)
    others = {name: mean_and_std([r["scores"][name] for r in results if r["score"] is not None]) for name in other_metrics(first)}
    return {"method": method, "seeds": len(results), "metric": first["metric"], "split": first["split"],
            "score": mean, "score_std": std, "scores": scores, "others": others, "lr": first["lr"],
            **{name: first[name] for name in ("trainable", "trainable_without_head", "total")},
            "step_ms": float(np.median([r["step_ms"] for r in results])),
            "peak_mb": float(np.max([r["peak_mb"] for r in results])),
            "size_mb": first["size_mb"], "seconds": float(np.sum([r["seconds"] for r in results]))}


def compare(model, data, methods, seeds, out, settings):
    """Run every method with every seed, and make the table.

    Args:
        model, data: folders, or both None for the built-in task on CPython's documentation.
        methods: names. seeds: how many, from 0. out: folder; a run that finished there is not repeated.
        settings: the other fields of `Run`, the same for all.

    Returns:
        A `Table`; its rows are also in ``results.json``.

    Raises:
        ValueError: an unknown or repeated method, only one of model and data, settings that do not fit the model or an
            earlier comparison in ``out``, or a run that failed (with its reason).
    """
    if (model is None) != (data is None):
        raise ValueError("compare: give both --model and --data, or neither for the built-in task")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    for number, method in enumerate(methods):
        if method not in METHODS:
            raise ValueError(f"methods: expected some of {', '.join(METHODS)}, got {method!r}")
        if method in methods[:number]:
            raise ValueError(f"methods: {method} is named twice")
        Run(model or "-", data or "-", method=method, **settings).settings()
    out, title, rates = Path(out), None, {}
    if model is None:
        from . import builtin

        if settings.get("task", "classify") != "classify":
            raise ValueError(f"task: the built-in task is to classify; for {settings['task']} give --model and --data")
        model, data = builtin.prepare(out / "builtin")
        settings = {**settings, "epochs": settings.get("epochs") or builtin.EPOCHS}
        rates = builtin.LEARNING_RATES if settings.get("lr") is None else {}
        title = "a small encoder pre-trained here, on which section of CPython's documentation a paragraph is from"
    runs = {}
    for method in methods:
        same = {**settings, "method": method, "lr": rates.get(method, settings.get("lr"))}
        runs[method] = [Run(str(model), str(data), seed=seed, **same) for seed in range(seeds)]
    results = run_all(runs, out)
    table = Table([summarise(method, results[method]) for method in methods], title or f"{name_of(model)} on {name_of(data)}")
    files.write_json(out / "results.json", {"title": table.title, "rows": table.rows})
    return table


def run_all(runs, out):
    """{method: [result of each seed]} of {method: [Run of each seed]}; those finished in ``out`` are read."""
    folders = {(method, run.seed): out / f"{method}-seed{run.seed}" for method, same in runs.items() for run in same}
    results, notes = {}, ["data"]
    for (method, seed), folder in folders.items():  # fail before anything long begins
        check_out(runs[method][seed], folder)
        results[method, seed] = check_resume(runs[method][seed], folder, resume=True)
    check_fit([same[0] for method, same in runs.items() if any(results[method, run.seed] is None for run in same)])
    said = unused_note([same[0] for same in runs.values()])
    if said:
        print(said, file=sys.stderr)
    for number, (method, seed) in enumerate(results):
        label = f"[{number + 1}/{len(results)}] {method} seed {seed}"
        if results[method, seed] is not None:
            print(f"{label}: finished before", file=sys.stderr)
            continue
        results[method, seed] = in_own_process(runs[method][seed], folders[method, seed], label, notes)
        notes = []  # the data is the same for all
    return {method: [results[method, run.seed] for run in same] for method, same in runs.items()}


def check_fit(runs):
    """Read the data, which is the same for all, and put each method on the model, so that what does not fit fails here."""
    work = None
    for run in runs:
        tokenizer, config = Tokenizer.from_folder(run.model), load_config(run.model)
        check_task(run, config)
        work = work or make_work(replace(run, train_limit=1), tokenizer, config)
        model, method = load_for(run, getattr(work, "labels", ()), run.seed), run.make_method(tokenizer)
        if run.base_bits:
            quantise(model)
        method.prepare(model, work, np.random.default_rng(0))
        attach(model, method)


CHILD = """import sys
sys.path[:] = {path}  # the same package as ours, whatever lies in the folder we are in
from minipeft.compare.run import main
sys.exit(main(sys.argv[1:]))
"""


def in_own_process(run, folder, label, notes=()):
    """The result of a run, made in a new process, so that its peak memory is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "spec.json", {**asdict(run), "title": label, "notes": list(notes)})
    arguments = [sys.executable, "-c", CHILD.format(path=sys.path), str(folder / "spec.json"), str(folder)]
    process = subprocess.Popen(arguments, text=True, encoding="utf-8", stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    try:
        said, _ = process.communicate()
    except KeyboardInterrupt:
        try:
            process.wait()  # the same Ctrl-C has reached it: it ends its step and writes a checkpoint
        finally:
            process.kill()
        raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        reason = said.strip() or f"its process ended with code {process.returncode}" + (
            ", killed by the system, perhaps for lack of memory" if process.returncode < 0 else "")
        raise ValueError(f"{label}: {reason}; the runs that finished are kept in {folder.parent}")
    return files.read_json(folder / RESULT, "result")
