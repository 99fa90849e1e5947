"""The table of a comparison: its rows, and how they look in a terminal, as CSV and as Markdown."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from .run import METRICS_OF

FIELDS = ("task", "label", "method", "lr", "seeds", "trainable", "trainable_without_head", "total", "share", "formula", "metric",
          "split", "score", "score_std", "step_ms", "peak_mb", "size_mb", "base_ms", "unmerged_ms", "merged_ms", "unmerged_ratio",
          "merged_ratio", "mean_layer", "seconds")  # columns of the CSV


# ---- rows ------------------------------------------------------------------------------------------------------


def mean_and_std(values):
    """Mean and sample standard deviation of a score over the seeds; (None, 0) where there was nothing to score."""
    return (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0) if len(values) else (None, 0.0)


def middle(values):
    """The median of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def other_metrics(result):
    """Names of the scores that are shown besides the chosen one: written texts are judged by all of theirs."""
    family = METRICS_OF["seq2seq"]
    return [name for name in family if name != result["metric"]] if result["metric"] in family else []


def summarise(label, results, settings=None, runs=()):
    """One row from the results of one method's seeds; what it holds stands in ``comparison.py``."""
    first, scores = results[0], [r["score"] for r in results if r["score"] is not None]
    mean, std = mean_and_std(scores)
    others = {name: mean_and_std([r["scores"][name] for r in results if r["score"] is not None]) for name in other_metrics(first)}
    times = [r.get("inference") or {} for r in results]
    return {"label": label, "method": first["method"], "task": first["data"], "settings": settings or {}, "runs": list(runs),
            "seeds": len(results), "metric": first["metric"], "split": first["split"], "score": mean, "score_std": std,
            "scores": scores, "others": others, "lr": first["lr"],
            **{name: first[name] for name in ("trainable", "trainable_without_head", "total")},
            "share": first["trainable"] / first["total"], "formula": first["formula"],
            "step_ms": middle([r["step_ms"] for r in results]), "peak_mb": float(np.max([r["peak_mb"] for r in results])),
            "size_mb": first["size_mb"],
            **{name: middle([t.get(name) for t in times])
               for name in ("base_ms", "unmerged_ms", "merged_ms", "unmerged_ratio", "merged_ratio")},
            "mean_layer": mean_and_std([r["mean_layer"] for r in results if r.get("mean_layer") is not None])[0],
            "seconds": float(np.sum([r["seconds"] for r in results]))}


# ---- cells -----------------------------------------------------------------------------------------------------


def size_text(megabytes):
    """A size in MB of 10^6 bytes, a small one in kB."""
    return f"{megabytes:.2f} MB" if megabytes >= 0.095 else f"{1000 * megabytes:.{0 if megabytes >= 0.00095 else 1}f} kB"


def score_text(mean, std, seeds):
    """A score as the table shows it."""
    return "-" if mean is None else f"{mean:.4f}" + (f" ± {std:.4f}" if seeds > 1 else "")


def share_text(share):
    """A share in per cent, with three digits from 1 on and two below."""
    return f"{100 * share:.{3 if 100 * share >= 1 else 2}g}"


def time_text(ms, ratio=None):
    """A time in ms, and how many times the base's it is."""
    return "-" if ms is None else f"{ms:.1f}" + ("" if ratio is None else f" ({ratio:.2f}x)")


def headings(first):
    """The names of the columns, in a list, of a table whose first row is ``first``."""
    scores = [f"{name} ({first['split'] or 'no data'})" for name in (first["metric"] or "score", *first["others"])]
    return ["method", "trainable", "without the head", "share (%)", *scores, "step (ms)", "peak (MB)", "on disk",
            "inference (ms)", "merged (ms)"]


def cells(row):
    """The cells of a row, as text."""
    return [row["label"], f"{row['trainable']:,}", f"{row['trainable_without_head']:,}", share_text(row["share"]),
            score_text(row["score"], row["score_std"], row["seeds"]),
            *(score_text(*pair, row["seeds"]) for pair in row["others"].values()),
            time_text(row["step_ms"]), f"{row['peak_mb']:.0f}", size_text(row["size_mb"]),
            time_text(row["unmerged_ms"], row["unmerged_ratio"] if row["method"] != "base" else None),
            time_text(row["merged_ms"], row["merged_ratio"])]


def notes(rows):
    """What is said below a table: how many parameters, by formula, and at which layer examples left."""
    out = [f"{row['label']}: {row['formula']}" for row in rows if row["formula"]]
    left = "examples left at layer {:.2f} on average; its score and inference time are so"
    return out + [f"{row['label']}: {left.format(row['mean_layer'])}" for row in rows if row["mean_layer"] is not None]


# ---- the table -------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Rows of a comparison, task by task; ``failed``: the runs that are not in it, and why."""

    rows: list
    title: str
    failed: list = ()

    def parts(self):
        """[(title, rows)] of each task."""
        tasks = list(dict.fromkeys(row["task"] for row in self.rows))
        return [(self.title if len(tasks) == 1 else f"{self.title}: {task}", [row for row in self.rows if row["task"] == task])
                for task in tasks]

    def show(self):
        """Print the table to standard output."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        console = Console()
        console.width = max(console.width, 240)  # a narrow terminal wraps a line, and no number is cut off
        for title, rows in self.parts():
            table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
                              show_edge=False)
            for name in headings(rows[0]):
                name = name.replace("without the head", "without\nthe head").replace(" (", "\n(")
                table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
            for row in rows:
                table.add_row(*cells(row))
            console.print(table)
            for line in notes(rows):
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    def csv(self):
        """The table as CSV, numbers in full; a dictionary's worth of other scores is left to ``results.json``."""
        out = io.StringIO()
        writer = csv.DictWriter(out, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def markdown(self):
        """The table as Markdown."""
        blocks = []
        for title, rows in self.parts():
            names, lines = headings(rows[0]), [cells(row) for row in rows]
            rule = ["---", *["---:"] * (len(names) - 1)]
            blocks.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in (names, rule, *lines)))
            blocks += ["\n".join(f"- {line}" for line in notes(rows))] if notes(rows) else []
        return "\n\n".join(blocks) + "\n"
