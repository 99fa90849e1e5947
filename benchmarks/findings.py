"""What papers found about fine-tuning, tried again on the package's toy models: eleven findings, each with its rule.

Every run is one of ``minipeft.compare.run``'s, made in this process and kept in a folder; the command goes on where it stopped.

Data. ``toy:rating``, a review in one of four classes: chance is 25 %, a head alone on toy:encoder reaches about 60, full
fine-tuning on 1,000 texts about 79, and Bayes' rule 98, so that there is room above and below. Other tasks of the toy world
leave none: on sentiment and grammar LoRA stands near the best possible, on "same" every method stands at chance, and on
reading soft prompts, LoRA and full fine-tuning all end at 78. Soft prompts learn slowly: after three epochs they are where a
head alone is, so that they and what is compared with them have ten (findings 3 and 4).

Seeds. Seed s draws texts of its own for train, dev and test, the head, the method's start and the order of the batches.
Scores are accuracies on 2,000 test texts, in per cent.

Learning rates. Each side has its own, the best on dev (mean of two seeds) of a third, one and three times the rate that the
package gives the method on a small model; while the best is at an edge, the next rate beyond it is tried. Only finding 8
sweeps a fixed row.

Widths (finding 3). The encoders of width 48 and 192 are pre-trained as toy:encoder was, at the learning rate of those tried
(1e-3, 2e-3, 4e-3) with the lowest loss on held-out text: 48 in 6,000 steps to 0.505, 192 in 3,000 to 0.474; toy:encoder has
0.461.

Rules, fixed before the runs. A difference d is paired by seed; e is its standard error, t the one-sided 95 % point of
Student's distribution.

    a above b       yes if d > t e;              no if d <= -t e;             else within the noise
    a as b          yes if |d| + t e < limit;    no if |d| - t e > limit;     else within the noise

A finding of several such checks is "yes" if all are, "partly" if some are, else "no" if one is a "no".
"""

import argparse
import contextlib
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, NamedTuple

from . import common

EXAMPLE = """examples:
  python -m benchmarks.findings --markdown findings.md      # all of it, about two hours on one core
  python -m benchmarks.findings --only 1,2 --seeds 3
  python -m benchmarks.findings --fast                      # exercises every part; its verdicts mean nothing
"""
STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)  # one-sided 95 %, 1 to 10 degrees of freedom
POINTS = 2.0         # up to so many points two accuracies count as the same,
RATIO = 0.05         # and up to so much two times
FACTOR = 3           # between two learning rates
START = {"random_mask": 1e-2}  # where a search for a rate started when the rules were fixed, if not at today's default
ENCODER, WIDTH, TASK = "toy:encoder", 96, "rating"


@dataclass(frozen=True)
class Scale:
    """The sizes of a study."""

    seeds: int = 5
    tuning: int = 2                    # seeds on whose dev texts a learning rate is chosen
    rates: tuple = (-1, 0, 1)          # powers of `FACTOR` that are tried first,
    most: int = 8                      # and how many rates at most
    train: int = 4000
    dev: int = 500
    test: int = 2000
    texts: int = 1000                  # of train that a run sees unless it says otherwise
    epochs: int = 3
    long: int = 10                     # epochs where soft prompts take part
    ranks: tuple = (1, 2, 4, 8, 16, 32)
    lengths: tuple = (1, 2, 4, 8, 16, 32, 64)
    tokens: int = 10                   # of a soft prompt, and of the prefix beside it
    octaves: tuple = tuple(range(-4, 5))
    sizes: tuple = ((16, 30, 4), (64, 30, 16), (250, 10, 16), (1000, 3, 16), (4000, 3, 16))  # texts, epochs, in a batch
    widths: tuple = ((48, 6000, 2e-3), (WIDTH, 0, 0), (192, 3000, 1e-3))  # D, steps and rate of pre-training
    unfreezing: tuple = (500, 8)       # texts, epochs
    batches: tuple = (1, 8, 32, 128)


FAST = Scale(seeds=2, tuning=1, rates=(0, 1), most=3, train=64, dev=16, test=32, texts=32, epochs=1, long=1, ranks=(4, 8),
             lengths=(1, 4, 16), tokens=4, octaves=(-4, 0, 4), sizes=((16, 2, 4), (64, 1, 16)),
             widths=((16, 10, 2e-3), (WIDTH, 0, 0)), unfreezing=(32, 5), batches=(1, 32))


# ---- numbers and verdicts --------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One rule applied: ``words`` say it, with the difference, its standard error and "yes", "no" or "within the noise"."""

    words: str
    difference: float
    error: float
    verdict: str


def paired(a, b):
    """Mean of a - b over the seeds, its standard error, and t times that."""
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return statistics.mean(gaps), error, STUDENT[min(len(gaps) - 1, len(STUDENT)) - 1] * error


def above(words, a, b):
    """The check that ``a`` is above ``b``."""
    mean, error, noise = paired(a, b)
    return Check(words, mean, error, "yes" if mean > noise else "no" if mean <= -noise else "within the noise")


def alike(words, a, b, limit=POINTS):
    """The check that ``a`` and ``b`` are no more than ``limit`` apart."""
    mean, error, noise = paired(a, b)
    return Check(words, mean, error,
                 "yes" if abs(mean) + noise < limit else "no" if abs(mean) - noise > limit else "within the noise")


def overall(checks):
    """The verdict on a finding from those on its checks."""
    found = {check.verdict for check in checks}
    return "yes" if found == {"yes"} else "partly" if "yes" in found else "no" if "no" in found else "within the noise"


def tolerance(octaves, scores, within=POINTS):
    """Over how many octaves of learning rate a curve stays within so many points of its best; crossings are interpolated."""
    best = max(range(len(scores)), key=scores.__getitem__)
    floor, ends = scores[best] - within, []
    for step in (-1, 1):
        i = best
        while 0 <= i + step < len(scores) and scores[i + step] >= floor:
            i += step
        end = octaves[i]
        if 0 <= i + step < len(scores):
            end += (octaves[i + step] - octaves[i]) * (scores[i] - floor) / (scores[i] - scores[i + step])
        ends.append(end)
    return ends[1] - ends[0]


# ---- runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a method, its options, fields of `Run`; without ``lr`` that is chosen on dev."""

    method: str
    options: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    model: str = ENCODER
    lr: float | None = None


@dataclass
class Measured:
    """What an arm reached: ``scores`` on test, one for each seed; ``dev`` the mean on dev; ``tried`` {rate: score on dev}."""

    scores: list
    dev: float | None = None
    lr: float | None = None
    tried: dict = field(default_factory=dict)


class Study:
    """The runs of a study, in the folder ``out``, at a `Scale`; ``board`` shows the progress."""

    def __init__(self, out, scale, board=None):
        self.out, self.scale, self.board, self.results = Path(out), scale, board, {}

    def data(self, seed):
        """The folder of a seed's texts, written once."""
        from minipeft.data import toy

        folder = self.out / "data" / f"{TASK}-{self.scale.train}-seed{seed}"
        if not (folder / "test.tsv").is_file():
            toy.save(TASK, folder, seed=seed, train=self.scale.train, dev=self.scale.dev, test=self.scale.test)
        return str(folder)

    def encoder(self, width):
        """The encoder of a width: the package's own, or the folder for one that `make` pre-trains."""
        return ENCODER if width == WIDTH else str(self.out / "models" / f"width{width}")

    def make(self, model):
        """Pre-train an encoder of the study's own, unless it was before; else as toy:encoder was."""
        from minipeft.compare.pretrain import RECIPES, Progress, pretrain

        for width, steps, lr in self.scale.widths:
            if steps and model == self.encoder(width):
                recipe = replace(RECIPES["encoder"], width=width, steps=steps, lr=lr)
                pretrain(recipe, model, resume=True, display=Progress(f"pre-training an encoder of width {width}"))

    def job(self, arm, lr, seed):
        """The `Job` of an arm at a learning rate with a seed; its folder is called after all that sets it apart."""
        from minipeft.compare.processes import Job
        from minipeft.compare.run import Run

        settings = {"epochs": self.scale.epochs, "train_limit": self.scale.texts, **arm.settings}
        run = Run(arm.model, self.data(seed), arm.method, options=arm.options, lr=lr, seed=seed, **settings)
        parts = [arm.method, *(f"{name}={value}" for name, value in (arm.options | settings | {"lr": lr}).items()), f"seed{seed}"]
        name, model = "-".join(parts).replace(",", "+"), Path(arm.model.replace(":", "-")).name
        return Job(run, self.out / "runs" / model / name, f"{model} {name}")

    def result(self, arm, lr, seed):
        """The result of a run, which is made unless it was before. Its weights are not kept."""
        from minipeft.compare.processes import Outcome
        from minipeft.compare.run import RESULT, execute

        job = self.job(arm, lr, seed)
        if job.folder not in self.results:
            before = (job.folder / RESULT).is_file()
            result = execute(job.run, job.folder, resume=True, quiet=True, display=told(self.board, job))
            self.results[job.folder] = result
            for path in job.folder.glob("*.safetensors"):
                path.unlink()
            if self.board is not None and before:
                self.board.done += 1
            elif self.board is not None:
                self.board.finished(Outcome(job, result))
        return self.results[job.folder]

    def tried(self, arm):
        """{learning rate: mean score on dev} of those among which an arm's is chosen, the lowest rate first."""
        start, dev, seeds = start_of(arm.method), {}, self.tuning()
        rate = lambda power: float(f"{start * FACTOR**power:.3g}")
        todo = list(self.scale.rates)
        while todo:
            for power in todo:
                dev[power] = statistics.mean(dev_score(self.result(arm, rate(power), seed)) for seed in seeds)
            best = max(sorted(dev), key=dev.get)
            todo = [best + step for step in (-1, 1) if best + step not in dev] if len(dev) < self.scale.most else []
            if self.board is not None:
                self.board.total += len(todo) * len(seeds)
        return {rate(power): dev[power] for power in sorted(dev)}

    def measured(self, arm):
        """The `Measured` of an arm."""
        tried = {} if arm.lr else self.tried(arm)
        lr = arm.lr or max(tried, key=tried.get)
        results = [self.result(arm, lr, seed) for seed in range(self.scale.seeds)]
        return Measured([100 * result["score"] for result in results], statistics.mean(map(dev_score, results)), lr, tried)

    def tuning(self):
        """The seeds on which a learning rate is chosen."""
        return range(min(self.scale.tuning, self.scale.seeds))

    def planned(self, arms):
        """How many runs arms take, unless a search for a learning rate goes on beyond its first row."""
        different = [arm for number, arm in enumerate(arms) if arm not in arms[:number]]
        more = (len(self.scale.rates) - 1) * len(self.tuning())
        return sum(self.scale.seeds + (0 if arm.lr else more) for arm in different)


def start_of(method):
    """Where the search for a method's learning rate starts."""
    from minipeft.compare.rates import default_lr

    return START.get(method) or default_lr(method, ENCODER)


def dev_score(result):
    """A run's accuracy on dev at its end, in per cent."""
    return 100 * result["evaluations"][-1]["score"]


def told(board, job):
    """A progress display that tells a `Board`; None without one."""
    from minipeft.compare.child import Reports

    class Told(Reports):
        """Reports to the board what others print."""

        def _say(self, **what):
            board.listen(job, {**what, "total": self.total})

    return None if board is None else Told()


# ---- the findings ----------------------------------------------------------------------------------------------
#
# Of each: the arms {label: Arm} of a study, and the checks on what they reached, {label: Measured}.


def rank_arms(study):
    """LoRA on q and v at growing ranks, alpha always 16, and the head alone, to show that there is something to learn."""
    return {"head alone": Arm("head")} | {f"rank {rank}": Arm("lora", {"rank": rank}) for rank in study.scale.ranks}


def rank_checks(of, study):
    """A small rank does what the largest does."""
    low, high = of["rank 4"].scores, of[f"rank {study.scale.ranks[-1]}"].scores
    return [alike(f"rank 4 as rank {study.scale.ranks[-1]}, to {POINTS:g}", low, high),
            above("rank 4 above head alone", low, of["head alone"].scores)]


def target_arms(study):
    """As many parameters in each: R (D + D) is the same for one map at rank 8 and for two at rank 4."""
    sides = {"q, rank 8": ("attn.q", 8), "v, rank 8": ("attn.v", 8), "q and v, rank 4": ("attn.q,attn.v", 4)}
    return {label: Arm("lora", {"targets": targets, "rank": rank}) for label, (targets, rank) in sides.items()}


def target_checks(of, study):
    return [above("q and v above q", of["q and v, rank 4"].scores, of["q, rank 8"].scores)]


def width_arms(study):
    """LoRA beside a soft prompt in encoders of several widths."""
    out, settings = {}, {"epochs": study.scale.long}
    for width, *_ in study.scale.widths:
        model = study.encoder(width)
        out[f"LoRA, width {width}"] = Arm("lora", {}, settings, model)
        out[f"prompt, width {width}"] = Arm("prompt", {"num_virtual_tokens": study.scale.tokens}, settings, model)
    return out


def width_checks(of, study):
    """LoRA is ahead at every width, and the more the narrower."""
    widths = [width for width, *_ in study.scale.widths]
    pairs = {width: (of[f"LoRA, width {width}"].scores, of[f"prompt, width {width}"].scores) for width in widths}
    gaps = {width: [a - b for a, b in zip(*pair)] for width, pair in pairs.items()}
    return [*(above(f"LoRA above prompt at {width}", *pair) for width, pair in pairs.items()),
            above(f"gap at {widths[0]} above gap at {widths[-1]}", gaps[widths[0]], gaps[widths[-1]])]


def prefix_arms(study):
    """As many virtual tokens in each; the prefix has 2 L times the parameters of the prompt, as in the paper."""
    options, settings = {"num_virtual_tokens": study.scale.tokens}, {"epochs": study.scale.long}
    return {method: Arm(method, options, settings) for method in ("prefix", "prompt")}


def prefix_checks(of, study):
    return [above("prefix above prompt", of["prefix"].scores, of["prompt"].scores)]


def length_arms(study):
    """Prefixes of growing length; the words keep their places, since those behind a long prefix were never trained."""
    return {f"length {n}": Arm("prefix", {"num_virtual_tokens": n, "shift_positions": False}) for n in study.scale.lengths}


def length_checks(of, study):
    """The best length, chosen on dev, is compared with both ends on test; there is no peak where it is an end itself."""
    best = max(of, key=lambda label: of[label].dev)  # chosen on dev, and then compared on test
    first, last = list(of)[0], list(of)[-1]
    return [above(f"best on dev ({best}) above {end}", of[best].scores, of[end].scores) for end in (first, last)]


def bias_arms(study):
    """The share of the blocks' maps that makes a random mask as large as all biases."""
    from minipeft.compare.run import load_config
    from minipeft.methods import BitFit
    from minipeft.methods.shapes import bias_sizes, linear_shapes

    config = load_config(ENCODER)
    entries = sum(d_in * d_out for d_in, d_out in linear_shapes(config).values()) + sum(bias_sizes(config).values())
    return {"BitFit": Arm("bitfit"), "random mask": Arm("random_mask", {"share": BitFit().count(config) / entries})}


def bias_checks(of, study):
    return [above("BitFit above random mask", of["BitFit"].scores, of["random mask"].scores)]


def layer_arms(study):
    """LoRA on q and v of one block alone. (The paper took trained adapters out of layers instead.)"""
    places = {"first block": 0, "middle block": 1, "last block": 2}
    return {label: Arm("lora", {"targets": f"blocks.{i}.attn.q,blocks.{i}.attn.v"}) for label, i in places.items()}


def layer_checks(of, study):
    return [above(f"last above {other}", of["last block"].scores, of[f"{other} block"].scores) for other in ("first", "middle")]


def rate_arms(study):
    """Learning rates in octaves around where a method's search starts."""
    return {f"{name}, rate x 2^{octave}": Arm(method, lr=start_of(method) * 2**octave)
            for name, method in (("adapters", "houlsby"), ("full", "full")) for octave in study.scale.octaves}


def rate_widths(of, study):
    """{what: octaves for each seed} over which a method stays within some points of its best."""
    octaves = study.scale.octaves
    curves = {name: [of[f"{name}, rate x 2^{octave}"].scores for octave in octaves] for name in ("adapters", "full")}
    return {f"octaves, {name}": Measured([tolerance(octaves, of_seed) for of_seed in zip(*curve)])
            for name, curve in curves.items()}


def rate_checks(of, study):
    """Wider in octaves, seed by seed."""
    widths = rate_widths(of, study)
    return [above("octaves of adapters above those of full", *(each.scores for each in widths.values()))]


def size_arms(study):
    """Few texts are seen more often, so that a run has at least 120 steps."""
    return {f"{name}, {texts} texts": Arm(name.lower(), {}, {"train_limit": texts, "epochs": epochs, "batch_size": batch})
            for texts, epochs, batch in study.scale.sizes for name in ("LoRA", "full")}


def size_checks(of, study):
    """Ahead with the two smallest sets, the same with the largest."""
    sizes = [texts for texts, _, _ in study.scale.sizes]
    pair = lambda texts: (of[f"LoRA, {texts} texts"].scores, of[f"full, {texts} texts"].scores)
    return [*(above(f"LoRA above full at {texts}", *pair(texts)) for texts in sizes[:2]),
            alike(f"LoRA as full at {sizes[-1]}, to {POINTS:g}", *pair(sizes[-1]))]


def times(study):
    """Finding 10: {label: time of a forward pass over the base's}; each "seed" is a session of turns of its own."""
    from minipeft.compare.measure import take_turns
    from minipeft.data import files, make_batches

    path, seeds = study.out / "times.json", study.scale.seeds
    out = files.read_json(path, "times") if path.is_file() else {}
    if out and min(map(len, out.values())) >= seeds:
        return {label: Measured(values[:seeds]) for label, values in out.items()}
    (work, sides), out = timed_sides(study), {}
    for size in study.scale.batches:
        groups = make_batches(work.encodings["dev"], size)
        chosen = sorted({len(groups) * i // 4 for i in range(4)})  # from the shortest texts to the longest
        batches = [work.collate(groups[i], "dev") for i in chosen]
        for _ in range(seeds):
            seconds = take_turns(sides, batches, work)
            for name in list(sides)[1:]:
                ratio = statistics.median(own / base for own, base in zip(seconds[name], seconds["base"]))
                out.setdefault(f"{name}, batch {size}", []).append(ratio)
    files.write_json(path, out)
    return {label: Measured(values) for label, values in out.items()}


def timed_sides(study):
    """The texts, and {name: (model, context)} as `take_turns` has them."""
    import numpy as np

    from minipeft.data import Tokenizer, read_dataset
    from minipeft.interop import load_pretrained
    from minipeft.methods import METHODS, attach
    from minipeft.training import Classification

    work = Classification(Tokenizer.from_folder(ENCODER), read_dataset(study.data(0)), 96, 16, train_limit=1)
    sides = {}
    for name, method in (("base", None), ("LoRA merged", "lora"), ("LoRA", "lora"), ("adapters", "houlsby")):
        model = load_pretrained(ENCODER, task="classify", labels=work.labels, rng=np.random.default_rng(0)).eval()
        attachment = attach(model, METHODS[method]()) if method else None
        if "merged" in name:
            attachment.merge()
        sides[name] = model, contextlib.nullcontext
    return work, sides


def time_checks(of, study):
    """The same time as the base's at every batch, and the adapters' share of it less in the largest than in the smallest."""
    first, last = study.scale.batches[0], study.scale.batches[-1]
    one = [1.0] * study.scale.seeds
    return [*(alike(f"merged as base, batch {size}, to {RATIO:g}", of[f"LoRA merged, batch {size}"].scores, one, RATIO)
              for size in study.scale.batches),
            above(f"adapters at batch {first} above batch {last}", *(of[f"adapters, batch {n}"].scores for n in (first, last)))]


def unfreezing_arms(study):
    """Full fine-tuning in 8 epochs, of which the fifth is the first to train all five groups."""
    texts, epochs = study.scale.unfreezing
    partners = {"schedule": "slanted", "layer_decay": 2.6}
    sides = {"plain": {}, "unfreezing alone": {"unfreeze": True}, "partners alone": partners,
             "unfreezing with partners": {"unfreeze": True, **partners}}
    return {label: Arm("full", {}, {"train_limit": texts, "epochs": epochs, **more}) for label, more in sides.items()}


def unfreezing_checks(of, study):
    return [above(f"with partners above {other}", of["unfreezing with partners"].scores, of[other].scores)
            for other in ("unfreezing alone", "plain")]


@dataclass(frozen=True)
class Finding:
    """What a paper found, and how it is tried.

    ``arms``: function of the study that gives {label: Arm}. ``checks``: function of ({label: Measured}, study), the rules
    applied. ``extra``: function of the study, what is measured besides runs. ``shown``: function of ({label: Measured}, study),
    the rows of the table where they are not the arms. ``why``: said where it was not found.
    """

    number: int
    claim: str
    source: str
    arms: Callable
    checks: Callable
    why: str = ""
    extra: Callable = lambda study: {}
    shown: Callable = lambda of, study: of
    digits: int = 1


FINDINGS = (
    Finding(1, "the rank saturates early", "Hu et al. 2022 (LoRA), 7.2, table 6", rank_arms, rank_checks),
    Finding(2, "q and v together beat q alone at an equal budget", "Hu et al. 2022 (LoRA), 7.1, table 5",
            target_arms, target_checks),
    Finding(3, "soft prompts trail, and the gap shrinks with width", "Lester et al. 2021, 3.1, figure 1, on full fine-tuning",
            width_arms, width_checks),
    Finding(4, "a prefix beats a soft prompt of its length", "Li and Liang 2021, 7.2, table 4", prefix_arms, prefix_checks),
    Finding(5, "an inverted U in the length of the prefix", "Li and Liang 2021, 7.1, figure 4", length_arms, length_checks),
    Finding(6, "BitFit beats a random mask of its size", "Ben Zaken et al. 2022, table 3", bias_arms, bias_checks),
    Finding(7, "upper layers matter more", "Houlsby et al. 2019, 3.6, figure 6", layer_arms, layer_checks),
    Finding(8, "adapters tolerate learning rates better than full fine-tuning",
            "Houlsby et al. 2019, appendix B, figure 7, and He et al. 2021, arXiv:2106.03164, abstract",
            rate_arms, rate_checks, shown=rate_widths),
    Finding(9, "LoRA equals full fine-tuning with much data and is ahead with little", "Hu et al. 2022 (LoRA), F.3, table 16",
            size_arms, size_checks),
    Finding(10, "merged costs nothing, and the adapters' overhead shrinks with the batch",
            "Hu et al. 2022 (LoRA), 3, table 1", lambda study: {}, time_checks, extra=times, digits=3),
    Finding(11, "gradual unfreezing needs its partners", "Howard and Ruder 2018, 5, table 7", unfreezing_arms, unfreezing_checks),
)


# ---- the study, and how it is shown ----------------------------------------------------------------------------


class Answer(NamedTuple):
    """A `Finding` with what was measured, {label: Measured}, the rows to show of it, its checks, and the verdict."""

    finding: Finding
    of: dict
    rows: dict
    checks: list
    verdict: str


def investigate(findings, study):
    """The `Answer` to each of the findings."""
    from minipeft.compare.board import Board

    arms = {finding.number: finding.arms(study) for finding in findings}
    every = [arm for of_one in arms.values() for arm in of_one.values()]
    for model in {arm.model: None for arm in every}:
        study.make(model)
    out = []
    with Board(study.planned(every)) as study.board:
        for finding in findings:
            of = {label: study.measured(arm) for label, arm in arms[finding.number].items()} | finding.extra(study)
            checks = finding.checks(of, study)
            out.append(Answer(finding, of, finding.shown(of, study), checks, overall(checks)))
    return out


def cells(answer):
    """The cells of an answer's line: number, claim and source, what was measured, the checks, the verdict."""
    finding, digits = answer.finding, answer.finding.digits
    values = {label: each.scores for label, each in answer.rows.items()}
    rows = "; ".join(f"{label}: {statistics.mean(each):.{digits}f} ± {statistics.stdev(each):.{digits}f}"
                     for label, each in values.items())
    checks = "; ".join(f"{c.words}: {c.difference:+.{digits}f} ± {c.error:.{digits}f}, {c.verdict}" for c in answer.checks)
    verdict = answer.verdict if answer.verdict == "yes" or not finding.why else f"{answer.verdict}: {finding.why}"
    return [str(finding.number), f"{finding.claim} ({finding.source})", rows, checks, verdict]


COLUMNS = ("", "what was found on large models", "measured, mean ± s.d.", "difference ± s.e.", "found here")


def show(answers):
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 150)
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name)
    for answer in answers:
        table.add_row(*(cell.replace("; ", "\n") for cell in cells(answer)))
    console.print(table, markup=False)


def markdown(answers):
    """The table as Markdown."""
    lines = [COLUMNS, ["--:", *["---"] * (len(COLUMNS) - 1)], *map(cells, answers)]
    return "".join(f"| {' | '.join(cell.replace('; ', '<br>') for cell in line)} |\n" for line in lines)


def as_json(answers, scale):
    """All that was measured, for ``--json``."""
    def of_one(answer):
        return {"number": answer.finding.number, "claim": answer.finding.claim, "source": answer.finding.source,
                "measured": {label: vars(each) for label, each in (answer.of | answer.rows).items()},
                "checks": [check._asdict() for check in answer.checks], "verdict": answer.verdict}
    return {"scale": vars(scale), "findings": [of_one(answer) for answer in answers]}


# ---- the command line ------------------------------------------------------------------------------------------


def numbers(text):
    """The type of --only: numbers of findings, separated by commas."""
    known = {str(finding.number): finding for finding in FINDINGS}
    wanted = text.split(",")
    if not set(wanted) <= set(known):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to {len(FINDINGS)}, separated by commas, got {text!r}")
    return [finding for finding in FINDINGS if str(finding.number) in wanted]


def seeds(text):
    """The type of --seeds."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2 (one has no standard error), got {text!r}")
    return int(text)


def make_parser():
    """The command line's parser."""
    parser = common.study_parser("findings", __doc__, EXAMPLE, "a short form, half a minute, whose verdicts mean nothing")
    parser.add_argument("--seeds", type=seeds, help="how many seeds (5; with --fast 2)")
    parser.add_argument("--only", type=numbers, default=FINDINGS, metavar="1,2,...", help="only these findings")
    return parser


def main(arguments=None):
    """The command line."""
    args = make_parser().parse_args(arguments)
    common.set_threads(1)
    scale = FAST if args.fast else Scale()
    scale = replace(scale, seeds=args.seeds or scale.seeds)
    study = Study(common.study_folder("findings", args), scale)
    try:
        answers = investigate(args.only, study)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"findings: {error}", file=sys.stderr)
        return 2
    show(answers)
    if args.fast:
        print("note: --fast only exercises the study; its verdicts mean nothing", file=sys.stderr)
    if args.markdown:
        Path(args.markdown).write_text(markdown(answers), encoding="utf-8")
    if args.json:
        common.write_json(args.json, as_json(answers, scale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
