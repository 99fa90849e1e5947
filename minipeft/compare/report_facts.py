"""What the report's sections share: the rows of one task, who is on the Pareto front, and numbers as words."""

import math
from dataclasses import dataclass, field

from .plots import Look

LOWER_IS_BETTER = ("perplexity", "loss")
FAMILIES = {
    "whole model and chosen weights": ("full", "head", "top_k", "bitfit", "layernorm", "random_mask", "fisher_mask", "output"),
    "low rank": ("lora", "rslora", "lora_plus", "dora", "pissa", "adalora"),
    "adapters": ("houlsby", "pfeiffer", "parallel", "compacter"),
    "vectors, prefixes, prompts": ("ia3", "prefix", "prompt", "task_embedding"),
}
OTHERS, APART = "other methods", 7  # so many methods have a colour each; more share those of their families
BASE = "base"  # the method's name in the row of the model before fine-tuning


@dataclass
class View:
    """One task's part of the results.

    Attributes:
        task: its name, empty where there is one task. tag: what makes the ids of its sections differ from another task's.
        rows: those of methods. base: the row of the model before fine-tuning, or None.
        runs: {folder: {"result", "analysis"}}. sweeps, plan, four, tuning: as `report` describes them, of this task.
    """

    task: str
    tag: str
    rows: list
    base: dict | None = None
    runs: dict = field(default_factory=dict)
    sweeps: dict = field(default_factory=dict)
    plan: dict = field(default_factory=dict)
    four: list = field(default_factory=list)
    tuning: list = field(default_factory=list)

    @property
    def metric(self):
        return self.rows[0]["metric"] or "score"

    @property
    def higher(self):
        """Whether larger scores are better ones."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def scored(self):
        """The rows that have a score."""
        return [row for row in self.rows if known(row["score"])]

    @property
    def front(self):
        """The rows on the Pareto front of trained parameters and score, the smallest first."""
        rows = self.scored
        on = pareto([(row["trainable"], row["score"]) for row in rows], self.higher)
        return sorted((row for row, is_on in zip(rows, on) if is_on), key=lambda row: row["trainable"])

    @property
    def by_family(self):
        """Whether there are too many methods for a colour each."""
        return len({row["method"] for row in self.rows}) > APART

    def look(self, method):
        """A method's colour and marker, the same in the whole report of a task."""
        if self.by_family:
            return Look([*FAMILIES, OTHERS].index(family_of(method)))
        return Look(list(dict.fromkeys(row["method"] for row in self.rows)).index(method))

    def results_of(self, row):
        """The results of a row's runs, in the order of the seeds."""
        return [self.runs[name]["result"] for name in row.get("runs") or () if self.runs.get(name, {}).get("result")]

    def analysis(self, key):
        """{label: what the analysis of a row's first run that has it says under ``key``}."""
        out = {}
        for row in self.rows:
            found = [a[key] for name in row.get("runs") or () if (a := self.runs.get(name, {}).get("analysis") or {}).get(key)]
            if found:
                out[name_of(row)] = found[0]
        return out


def views(results, runs):
    """A `View` for each task of the results."""
    rows, out = results["rows"], []
    tasks = list(dict.fromkeys(row.get("task") for row in rows))
    for number, task in enumerate(tasks):
        own = [row for row in rows if row.get("task") == task]
        base = next((row for row in own if row["method"] == BASE), None)
        own = [row for row in own if row["method"] != BASE]
        if own:
            of_task = lambda value: value.get(task, value) if isinstance(value, dict) else value
            out.append(View(str(task) if len(tasks) > 1 else "", f"-{number + 1}" if len(tasks) > 1 else "", own, base, runs,
                            results.get("sweeps") or {}, of_task(results.get("plan") or {}), of_task(results.get("four") or []),
                            [t for t in results.get("tuning") or () if t.get("task") == task]))
    return out


def pareto(points, higher=True):
    """Which (cost, score) no other point dominates: none costs at most as much and scores at least as well, one of them strictly.

    Equal points stand or fall together. Returns a list of booleans.
    """
    signed = [(cost, score if higher else -score) for cost, score in points]
    out, best = [False] * len(points), None
    for i in sorted(range(len(points)), key=lambda i: (signed[i][0], -signed[i][1])):
        if best is None or signed[i][1] > best[1]:
            best = signed[i]
        out[i] = signed[i] == best
    return out


def family_of(method):
    """The title of a method's family."""
    return next((title for title, methods in FAMILIES.items() if method in methods), OTHERS)


def name_of(row):
    """What a row is called."""
    return str(row.get("label") or row["method"])


def short_name(row):
    """The same for a drawing, where there is less room."""
    return name_of(row).replace("num_virtual_tokens=", "tokens=")


def ordered(rows, higher):
    """Rows, the best score first."""
    return sorted(rows, key=lambda row: -row["score"] if higher else row["score"])


def as_good(row, best):
    """Whether a row's mean is within one standard deviation of the best one's (within 1 % where there is none)."""
    return abs(row["score"] - best["score"]) <= (best["score_std"] or 0.01 * abs(best["score"]))


# ---- numbers as words ----------------------------------------------------------------------------------------------


def known(value):
    """Whether a number is there and finite."""
    return value is not None and math.isfinite(value)


def number(value, beside=None):
    """A score with four decimals, or two from 10 on; a deviation with as many as the score ``beside`` it."""
    large = abs(value if beside is None else beside) >= 10 if known(value) else None
    return "–" if large is None else f"{value:,.2f}" if large else f"{value:.4f}"


def score_text(row):
    """A row's score, with its deviation where there were several seeds."""
    several = row["seeds"] > 1 and known(row["score"])
    return number(row["score"]) + (f" ± {number(row['score_std'], row['score'])}" if several else "")


def percent(share):
    """A share as a percentage with the two or three digits that count."""
    return f"{100 * share:.{3 if share >= 0.01 else 2}g}\u00a0%"


def milliseconds(value):
    """A time in ms."""
    return "–" if not known(value) else f"{value:,.{1 if value < 100 else 0}f}\u00a0ms"


def megabytes(value):
    """A size in MB."""
    return "–" if not known(value) else f"{value:,.0f}\u00a0MB"


def times(value):
    """A ratio."""
    return "–" if not known(value) else f"{value:.2f}×" if value < 10 else f"{value:.0f}×"


def listed(parts, most=6):
    """Parts of a sentence with commas and an "and", the rest counted."""
    parts = list(parts)
    if len(parts) > most:
        parts = parts[:most - 1] + [f"{len(parts) - most + 1} more"]
    return " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:])
