"""The comparison: each method, with each seed, in a process of its own, and one table of what they cost and what they reach.

A comparison owns a folder:

    results.json    the table with all that stands below; results.csv and results.md, the table alone
    report.html     all of it drawn, one page that opens from disk; score.svg, its first drawing alone
    NAME-seedS/     a run: run.json (its settings), result.json, analysis.json, and the adapter or model. NAME is the method,
                    with what was swept or tuned behind it: lora, lora-rank=4, lora-lr=0.001. Where there are several tasks
                    (--data given more than once) the runs of each lie in a folder of the task's name
    data/TASK/      toy data, written once (--data toy:NAME)

results.json is {"title", "model", "tasks", "methods", "seeds", "threads", "jobs", "rows", "runs", "sweeps", "tuning", "failed"}:

    title     text                          model     the model's name
    tasks     names of the data             methods   as asked for, without the base
    seeds     how many                      threads, jobs   of each run, and runs at a time (None: as many as a Dask cluster has)
    rows      one for each task and each method (or variant of one), task by task; the first of each task is the base
    runs      {folder: {"label", "method", "task", "seed"}} of every run that finished, the folder relative to results.json
    sweeps    {"lora.rank": [1, 2, 4]}, {} without a sweep
    tuning    [{"task", "label", "tried": [{"lr", "dev"}], "lr"}], [] without --tune; "dev": score on dev, seed 0
    failed    [{"folder", "label", "task", "seed", "reason"}], [] where all went well

A row (times and memory in ms and MB of 10^6 bytes; None where there is nothing to say):

    label     what the table calls it: "lora", "lora rank=4"           method    "base" or a method's name
    task      name of the data                                         settings  {"rank": 4}: what was swept in this variant
    lr        learning rate, None where nothing is trained            seeds     how many of its runs finished
    runs      their folders, in the order of the seeds                 split, metric   what was scored, and how
    score, score_std, scores    mean, sample standard deviation, and each seed's; others: {metric: (mean, std)}
    trainable, trainable_without_head, total    numbers of parameters; share: trainable / total
    formula   the number without the head in closed form, or empty     size_mb   adapter (or model) on disk
    step_ms   median of the seeds                                      peak_mb   largest of the seeds
    base_ms, unmerged_ms, merged_ms    inference, ms for a batch, medians of the seeds; merged_ms is None where nothing merges
    unmerged_ratio, merged_ratio       the same divided by the base's time in the same process
    mean_layer    early exit: mean exit layer on the scored split; None for other methods
    seconds   of all its runs

A run's result.json has the same for one seed and besides: losses [one for each step], evaluations [{"epoch", "step", "score",
"loss", ...} on dev at the end of each epoch], steps, epochs, batch_length (tokens in a row of a batch, on average), scores {every
metric on the scored split}, seed, data, format_note, inference (see `measure.inference`). Its analysis.json has those of these
keys that apply:

    singular_values     {path of a map: [of the change of its weight, the largest first]}, for LoRA's family and full fine-tuning
                        (the same maps)
    prefix_attention    {path of an attention's core: [share of the attention that each head pays to the prefix]}, means on dev
    exits               {"layers": L, "accuracy": [of each exit on dev], "curves": {rule: [{"looseness", "accuracy", "mean_layer",
                        "leaving": [share at each layer], "ideal"}]}, "timed": [{"rule", "looseness", "accuracy", "mean_layer",
                        "ideal", "ratio"}]}; ideal and ratio: the share of the full model's blocks passed, and of its time taken
"""

import sys
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from ..data import Tokenizer, files
from ..kernels.backend import available_cores
from ..methods import attach, quantise
from .board import Board
from .exits import Base
from .plan import Setting, plan_all
from .plan_models import load_shape
from .processes import Job, run_all
from .rates import grid
from .report import write_report
from .run import OFFERED, Run, check_out, check_resume, check_task, load_config, load_for, make_work, unused_note
from .sources import name_of, toy_task, written
from .strategies import STRATEGIES, toy_prompts
from .table import Table, other_metrics, size_text, summarise  # the last two for the command line

MAIN = ("full", "head", "top_k", "bitfit", "ia3", "lora", "houlsby", "prefix", "prompt", "early_exit")
RESULTS = "results.json"
MODELS = {"classify": "toy:encoder", "lm": "toy:decoder", "seq2seq": "toy:seq2seq"}  # without --model, for each task,
DATA = {"classify": "toy:rating", "lm": "toy:text", "seq2seq": "toy:describe"}       # and without --data
SLOW = ("ipet", "pet", "early_exit", "fisher_mask", "random_mask", "full", "prompt")  # take longest: start first
MOST_JOBS = 4  # at a time unless asked for more: each holds a model


# ---- what is asked for -----------------------------------------------------------------------------------------


@dataclass
class Variant:
    """A method with what is special about it here: swept ``settings`` and, where it was tuned, its learning rate."""

    method: str
    settings: dict = field(default_factory=dict)
    lr: float | None = None

    @property
    def label(self):
        """What the table calls it."""
        return " ".join([self.method, *(f"{name}={_plain(value)}" for name, value in self.settings.items())])

    @property
    def name(self):
        """What its folders are called."""
        own = self.settings if self.lr is None else {**self.settings, "lr": self.lr}
        return "-".join([self.method, *(f"{name}={_plain(value)}" for name, value in own.items())])


def _plain(value):
    """A setting as text that can be part of a file's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "._-" else "+" for c in text)


def variants_of(methods, sweeps):
    """[Variant]: a method that is swept has one for each value (several sweeps of one method: for each combination).

    Args:
        methods: names. sweeps: {"lora.rank": values}; a method that is not among the names is added.
    """
    swept = {}
    for name, values in sweeps.items():
        method, _, setting = name.partition(".")
        swept.setdefault(method, {})[setting] = values
    out = []
    for method in dict.fromkeys([*methods, *swept]):
        names = list(swept.get(method, {}))
        out += [Variant(method, dict(zip(names, values))) for values in product(*swept.get(method, {}).values())]
    return out


def check_methods(methods, sweeps):
    """Raise ValueError for a method that is unknown or named twice, and for a sweep of what is no setting of its method."""
    for number, method in enumerate(methods):
        if method not in OFFERED:
            raise ValueError(f"methods: expected some of {', '.join(OFFERED)}, got {method!r}")
        if method in methods[:number]:
            raise ValueError(f"methods: {method} is named twice")
    for name, values in sweeps.items():
        method, _, setting = name.partition(".")
        if method not in OFFERED:
            raise ValueError(f"sweep: expected a method among {', '.join(OFFERED)} before the dot, got {name!r}")
        known = [*vars(OFFERED[method]()), "lr"]
        if setting not in known:
            raise ValueError(f"sweep: {method} has the settings {', '.join(known)}; got {name!r}")
        if len(set(map(str, values))) < len(values):
            raise ValueError(f"sweep: {name} has a value twice")


# ---- the comparison --------------------------------------------------------------------------------------------


class Comparison:
    """What is compared, and where: the model, the data of each task, variants, seeds, the folder."""

    def __init__(self, model, data, variants, seeds, out, settings, pool, prompts=None):
        self.model, self.variants, self.seeds, self.out, self.settings, self.pool = model, variants, seeds, out, settings, pool
        self.tasks, self.prompts = {}, prompts or {}  # {name: path}, {path: (templates, verbalizers)}
        for path in data:
            name, number = name_of(path), 2
            while name in self.tasks:
                name, number = f"{name_of(path)}-{number}", number + 1
            self.tasks[name] = path

    def run(self, task, variant, seed):
        """The `Run` of a variant."""
        settings = {**self.settings, "method": variant.method, "lr": variant.lr or self.settings.get("lr")}
        settings |= {name: value for name, value in variant.settings.items() if name == "lr"}
        if variant.method in STRATEGIES and not settings.get("template"):
            settings |= dict(zip(("template", "verbalizer"), self.prompts.get(self.tasks[task], ())))
        own = {name: value for name, value in variant.settings.items() if name != "lr"}
        options = {**(self.settings.get("options") or {}), **own}
        return Run(str(self.model), str(self.tasks[task]), seed=seed, **{**settings, "options": options})

    def job(self, task, variant, seed):
        """The `Job` of a variant."""
        place = self.out if len(self.tasks) == 1 else self.out / task
        label = f"{variant.name if variant.lr else variant.label} seed {seed}"
        return Job(self.run(task, variant, seed), place / f"{variant.name}-seed{seed}",
                   label if len(self.tasks) == 1 else f"{label} on {task}")

    def outcomes(self, jobs, said=()):
        """{folder: result, or the reason why there is none} of jobs; those that finished before are read.

        ``said``: lines for people, once it is known that all fits.
        """
        before = {}
        for job in jobs:  # fail before anything long begins
            check_out(job.run, job.folder)
            before[job.folder] = check_resume(job.run, job.folder, resume=True)
            check_threads(before[job.folder], job.folder, self.pool["threads"])
        todo = [job for job in jobs if before[job.folder] is None]
        check_fit([job.run for job in todo])
        for line in filter(None, said):
            print(line, file=sys.stderr)
        for run_data in {job.run.data: job for job in reversed(todo)}.values():
            run_data.notes = ("data",)  # which is the same for all
        for shown in {(job.run.data, job.run.method): job for job in reversed(todo)}.values():
            shown.notes = (*shown.notes, "demonstrations")  # of which a method shows as many in all its runs
        with Board(len(jobs)) as board:
            for job in jobs:
                board.name(job)
                if before[job.folder] is not None:
                    board.before(job)
            todo.sort(key=lambda job: SLOW.index(job.run.method) if job.run.method in SLOW else len(SLOW))
            ended = run_all(todo, board=board, **self.pool) if todo else {}
        return before | {folder: outcome.result or outcome.reason for folder, outcome in ended.items()}

    def tune(self, said=()):
        """Choose each variant's learning rate on dev with seed 0; returns what was tried, for ``results.json``.

        ``said``: as in `outcomes`. Raises ValueError where there is no score on dev, or no rate led to one.
        """
        untuned = [variant for variant in self.variants if "lr" not in variant.settings]
        runs = {variant.label: self.run(next(iter(self.tasks)), variant, 0) for variant in untuned}
        rates = {label: grid(run.lr) for label, run in runs.items() if run.trained_by() != Base.name}
        tried = {(task, variant.label, lr): self.job(task, replace(variant, lr=lr), 0) for task in self.tasks
                 for variant in self.variants for lr in rates.get(variant.label, ())}
        outcomes, out = self.outcomes(list(tried.values()), said), []
        for task, label in dict.fromkeys((task, label) for task, label, _ in tried):
            scores = [{"lr": lr, "dev": dev_score(outcomes[tried[task, label, lr].folder])} for lr in rates[label]]
            known = [each for each in scores if each["dev"] is not None]
            if not known:
                raise ValueError(f"tune: {label} has no score on dev of {task}; --tune needs a dev split, and a run that ends "
                                 "well")
            sign = -1 if self.settings.get("task") == "lm" else 1  # perplexity: the lower the better
            best = max(known, key=lambda each: sign * each["dev"])
            out.append({"task": task, "label": label, "tried": scores, "lr": best["lr"]})
        return out

    def all_jobs(self, tuning=()):
        """{(task, label): [Job of each seed]}, the base of each task first."""
        chosen = {(each["task"], each["label"]): each["lr"] for each in tuning}
        return {(task, variant.label): [self.job(task, replace(variant, lr=chosen.get((task, variant.label))), seed)
                                        for seed in range(self.seeds)]
                for task in self.tasks for variant in (Variant(Base.name), *self.variants)}


def dev_score(outcome):
    """The score on dev at the end of a run's training; None where there is none."""
    return outcome["evaluations"][-1].get("score") if isinstance(outcome, dict) and outcome["evaluations"] else None


def check_threads(result, folder, threads):
    """Refuse to put a run with another number of threads, whose times and last bits differ, into the same table."""
    if result is not None and result.get("threads") not in (None, threads):
        raise ValueError(f"{folder}: holds a run with other settings (--threads was {result['threads']}, now {threads}); choose "
                         "another --out")


def check_fit(runs):
    """Read each task's data and put each method on the model, so that what does not fit fails here."""
    works, seen = {}, []
    for run in runs:
        kind = replace(run, seed=0)
        if kind in seen:
            continue
        seen.append(kind)
        tokenizer, config = Tokenizer.from_folder(run.model), load_config(run.model)
        check_task(run, config)
        if run.strategy() is not None:
            make_work(run, tokenizer, config, check=True)
            run.make_method(tokenizer)
            continue
        if run.data not in works:
            works[run.data] = make_work(replace(run, train_limit=None if run.shots else 1), tokenizer, config)
        work = works[run.data]
        model, method = load_for(run, getattr(work, "labels", ()), run.seed), run.make_method(tokenizer)
        method.check(config)
        if run.base_bits:
            quantise(model)
        method.prepare(model, work, np.random.default_rng(0))
        attach(model, method)


def main_methods(model, task, settings):
    """(those of `MAIN` that go with a model, a task and ``settings``, a line on each of the others that says why).

    What a method's own options make impossible is not left out: the first run says it.
    """
    setting, options = Setting(length=1, base_bits=settings.get("base_bits")), settings.get("options") or {}
    try:
        shape = load_shape(str(model), task)
        without, refused = (plan_all(shape, each, setting)[1] for each in ({}, options))
    except (ValueError, OSError):  # no model, or not one for this task, which the first run says better
        return list(MAIN), []
    refused = {name: why.removeprefix(f"{name}: ") for name, why in refused.items() if name in without}
    if settings.get("label_smoothing"):
        refused.setdefault("early_exit", "its exits have a loss of their own, without --label-smoothing")
    return ([name for name in MAIN if name not in refused],
            [f"note: without {name}: {refused[name]}" for name in MAIN if name in refused])


def compare(model, data, methods, seeds, out, settings, sweeps=None, tune=False, jobs=None, threads=1, dask=None):
    """Run every method with every seed on every task, and make the table.

    Args:
        model: a folder, or ``toy:encoder`` and the like (None: see `MODELS`). data: a path, or a list of them, one for each
            task; ``toy:NAME[:DIFFICULTY]`` is a path, too (None: see `DATA`).
        methods: names; None for those of `MAIN` that go with the model and its task. seeds: how many, from 0. out: folder; a run
            that finished there is not repeated.
        settings: the other fields of `Run`, the same for all.
        sweeps: {"lora.rank": values}. tune: choose learning rates on dev.
        jobs: runs at a time; None: as many as there are cores, at most `MOST_JOBS`. threads: of each run.
        dask: address of a Dask scheduler, whose workers run them instead.

    Returns:
        A `Table`; what it holds is also in ``results.json``, ``results.csv`` and ``results.md``. Runs that failed are in its
        ``failed``.

    Raises:
        ValueError: an unknown or repeated method or sweep, data of one's own without a model, settings that do not fit the model
            or an earlier comparison in ``out``.
    """
    task = settings.get("task", "classify")
    data = [data] if isinstance(data, (str, Path)) else list(data or [DATA[task]])
    if model is None and not all(map(toy_task, data)):
        raise ValueError("model: is needed with data of your own; "
                         "without it only toy: data are compared, on the package's models")
    model = model or MODELS[task]
    for name, value in (("seeds", seeds), ("jobs", 1 if jobs is None else jobs), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if tune and settings.get("lr") is not None:
        raise ValueError("tune: --lr sets the learning rate that --tune would choose; leave out one of them")
    methods, said = main_methods(model, task, settings) if methods is None else (list(methods), [])
    sweeps, out = dict(sweeps or {}), Path(out)
    check_methods(methods, sweeps)
    variants = variants_of(methods, sweeps)
    for variant in variants:
        Run(model, "-", method=variant.method, **settings).settings()
    prompts = {}
    if any(map(toy_task, data)):  # looked at before anything is written
        named = [toy_task(path) for path in data]
        data = [written(path, out / "data") for path in data]
        if any(variant.method in STRATEGIES for variant in variants):
            prompts = {path: toy_prompts(name[0]) for path, name in zip(data, named) if name}
    pool = {"workers": min(available_cores(), MOST_JOBS) if jobs is None else jobs, "threads": threads, "dask": dask}
    comparison = Comparison(model, data, variants, seeds, out, settings, pool, prompts)
    return tabulate(comparison, sweeps, tune, said)


def tabulate(comparison, sweeps, tune, said=()):
    """Run a `Comparison`, and write and return its `Table`; ``said``: lines for people, before the runs."""
    said = [*said, unused_note([same[0].run for (_, label), same in comparison.all_jobs().items() if label != Base.name])]
    tuning = comparison.tune(said) if tune else []
    jobs = comparison.all_jobs(tuning)
    outcomes = comparison.outcomes([job for same in jobs.values() for job in same], [] if tune else said)
    rows, runs, failed = [], {}, []
    settings = {variant.label: variant.settings for variant in comparison.variants}
    for (task, label), same in jobs.items():
        folders = {job.folder: str(job.folder.relative_to(comparison.out).as_posix()) for job in same}
        good = [job for job in same if isinstance(outcomes[job.folder], dict)]
        facts = lambda job: {"label": label, "method": job.run.method, "task": task, "seed": job.run.seed}
        runs |= {folders[job.folder]: facts(job) for job in good}
        failed += [{"folder": folders[job.folder], **facts(job), "reason": outcomes[job.folder]} for job in same
                   if job not in good]
        if good:
            row = summarise(label, [outcomes[job.folder] for job in good], settings.get(label), [folders[j.folder] for j in good])
            rows.append({**row, "task": task})
    model = name_of(comparison.model)
    table = Table(rows, f"{model} on {', '.join(comparison.tasks)}", failed)
    results = {"title": table.title, "model": model, "tasks": list(comparison.tasks),
               "methods": list(dict.fromkeys(v.method for v in comparison.variants)), "seeds": comparison.seeds,
               "threads": comparison.pool["threads"], "jobs": None if comparison.pool["dask"] else comparison.pool["workers"],
               "rows": rows, "runs": runs, "sweeps": sweeps, "tuning": tuning, "failed": failed}
    write(table, results, comparison.out)
    return table


def write(table, results, out):
    """Write a comparison's ``results.json``, its table as CSV and Markdown, and its report, one page that opens from disk."""
    files.write_json(out / RESULTS, results)
    for name, text in (("results.csv", table.csv()), ("results.md", table.markdown())):
        with files.atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if any(row["method"] != "base" for row in results["rows"]):  # none where every run failed
        write_report(results, out)
