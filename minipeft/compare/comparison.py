"""The comparison: each method, with each seed, in a process of its own, and one table of what they cost and what they reach."""

import contextlib
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..data import files
from .run import RESULT, RUN, Run


@dataclass
class Table:
    """Rows of a comparison: one dictionary for each method, in the order given."""

    rows: list
    title: str

    def show(self):
        """Print the table to standard output."""
        from rich.console import Console
        from rich.table import Table as RichTable

        first = self.rows[0]
        table = RichTable(title=self.title)
        for name in ("method", "trainable", "without head", "share", f"{first['metric']} ({first['split']})", "step",
                     "peak memory", "on disk"):
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in self.rows:
            spread = f" ± {row['score_std']:.4f}" if row["seeds"] > 1 else ""
            table.add_row(row["method"], f"{row['trainable']:,}", f"{row['trainable_without_head']:,}",
                          f"{100 * row['trainable'] / row['total']:.3g} %", f"{row['score']:.4f}{spread}",
                          f"{row['step_ms']:.1f} ms", f"{row['peak_mb']:.0f} MB", f"{row['size_mb']:.2f} MB")
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 120)
        console.print(table)


def summarise(method, results):
    """One row from the results of one method's seeds: means, and the sample standard deviation of the score."""
    scores = np.array([r["score"] for r in results], np.float64)
    first = results[0]
    return {"method": method, "seeds": len(results), "metric": first["metric"], "split": first["split"],
            "score": float(scores.mean()), "score_std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "scores": scores.tolist(), "lr": first["lr"],
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
        ValueError: an unknown or repeated method, only one of model and data, or a run that failed (with its reason).
    """
    if (model is None) != (data is None):
        raise ValueError("compare: give both --model and --data, or neither for the built-in task")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods: {', '.join(methods)} names a method twice")
    out, title = Path(out), None
    for method in methods:  # fail before anything long begins
        Run(model or "-", data or "-", method=method, **settings).settings()
    rates = {}
    if model is None:
        from . import builtin

        model, data = builtin.prepare(out / "builtin")
        settings = {**settings, "epochs": settings.get("epochs") or builtin.EPOCHS}
        rates = builtin.LEARNING_RATES if settings.get("lr") is None else {}
        title = "a small encoder pre-trained here, on which section of CPython's documentation a paragraph is from"
    rows = []
    for number, method in enumerate(methods):
        results = []
        for seed in range(seeds):
            label = f"[{number * seeds + seed + 1}/{len(methods) * seeds}] {method} seed {seed}"
            run = Run(str(model), str(data), method=method, seed=seed, **{**settings, **({"lr": rates[method]} if method in rates else {})})
            results.append(in_own_process(run, out / f"{method}-seed{seed}", label))
        rows.append(summarise(method, results))
    table = Table(rows, title or f"{Path(model).name} on {Path(data).name}")
    files.write_json(out / "results.json", {"title": table.title, "rows": rows})
    return table


def in_own_process(run, folder, label):
    """The result of a run, made in a new process, so that its peak memory is its own; a finished one is read instead."""
    before = {}
    with contextlib.suppress(ValueError, OSError):
        before = files.read_json(folder / RUN, "run description")
    if before == asdict(run) and (folder / RESULT).is_file():
        print(f"{label}: finished before", file=sys.stderr)
        return files.read_json(folder / RESULT, "result")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "spec.json", {**asdict(run), "title": label})
    process = subprocess.run([sys.executable, "-m", "minipeft.compare.run", str(folder / "spec.json"), str(folder)],
                             stdout=subprocess.DEVNULL)
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        raise ValueError(f"{label} failed, for the reason above; the runs that finished are kept in {folder.parent}")
    return files.read_json(folder / RESULT, "result")
