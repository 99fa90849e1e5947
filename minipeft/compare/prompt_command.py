"""What ``minipeft prompt`` does: ask a model in words, of one text or of a data set, with few labels or none."""

import contextlib
import statistics
import tempfile
from dataclasses import fields, replace
from pathlib import Path

from ..data import Dataset, Example, Tokenizer
from ..kernels.backend import available_cores
from ..prompting import Calibration, ClozeClassification, Template, Verbalizer, search_words
from .comparison import MOST_JOBS, Comparison, Variant
from .predict import load, score_line, shown, taken
from .run import TRAINING, Run, cut_note, few, idle_note, limited, load_config, longest, option, unused_note
from .sources import MANUAL, manual_line, name_of, read, toy_task, written
from .strategies import KINDS, toy_prompts, with_its_head

SPLITS = 5  # draws of a few examples


def strategy_of(args):
    """The name of the strategy that a command's options ask for."""
    if args.unlabelled:
        return "pet" if args.generations is None else "ipet"
    if args.method:
        return "prompt_based"
    return "in_context" if args.shots else "zero_shot"


def check(args):
    """Refuse options that do not go together."""
    if (args.data is None) == (args.text is None):
        raise ValueError("--data or --text: give one of them, a data set or a single text")
    toy = args.data is not None and toy_task(args.data) is not None
    for name in ("template", "verbalizer"):
        if not getattr(args, name) and not toy and not (name == "verbalizer" and args.search_words):
            raise ValueError(f'--{name}: is needed, as in --template "{{text}} It was {{mask}}." --verbalizer '
                             '"great=positive,terrible=negative"')
    if args.text is not None and (args.shots or args.method or args.unlabelled or args.search_words):
        raise ValueError("--text: a single text is asked about as the model is; examples to learn from come with --data")
    if args.adapter and (args.shots or args.method or args.unlabelled):
        raise ValueError("--adapter: is used as it is, on --text or --data; leave out --shots, --method and --unlabelled")
    if args.unlabelled and args.shots is None:
        raise ValueError("--unlabelled: raw text goes with a few labelled examples; say how many of each class with --shots K")
    if args.search_words and args.unlabelled:
        raise ValueError("--search-words: looks for words on labelled texts; leave out --unlabelled, "
                         "and give it with the words found")
    if args.generations is not None and not args.unlabelled:
        raise ValueError("--generations: are of iPET, which labels raw text; give it with --unlabelled PATH")


def run(args, settings):
    """Do what a command asks for.

    Args:
        args: its arguments. settings: the fields of `Run` among them.

    Returns:
        (rows, lines, json): rows of text for standard output, lines for people, and what ``--json`` writes.
    """
    check(args)
    notes = first_note(args)
    if args.data is not None and toy_task(args.data) and not args.template:
        args.template, args.verbalizer = toy_prompts(toy_task(args.data)[0])
    if args.text is not None or args.adapter or strategy_of(args) == "zero_shot" and as_it_stands(args):
        rows, lines, out = asked(args, settings["options"])
    else:
        rows, lines, out = searched(args, settings) if args.search_words else scored(args, settings)
        lines = [*lines, *manual_line(args.data)]
    return rows, [*notes, *lines], out


def first_note(args):
    """[what is said about templates or verbalizers behind the first, which only PET takes]."""
    several = [name for name in ("template", "verbalizer") if len(getattr(args, name) or ()) > 1 and not args.unlabelled]
    return [f"note: of {len(getattr(args, name))} times {option(name)} the first counts; several are for PET (--unlabelled)"
            for name in several]


# ---- the model as it is ------------------------------------------------------------------------------------------


def as_it_stands(args):
    """Whether the data are asked about as they stand, without a train split: one file, or texts that have no label."""
    if toy_task(args.data) or args.data == MANUAL or args.search_words:
        return False
    if Path(args.data).is_file():
        return True
    splits = read(args.data, "classify", need_labels=False, split=False).splits
    return "train" not in splits or all(e.label is None for part in splits.values() for e in part)


def given(args, *names):
    """Those of these fields of a `Run` that were not left as they are by default."""
    defaults = {each.name: each.default for each in fields(Run)}
    return [name for name in names if getattr(args, name) != defaults[name]]


def passed_over(args, options, template):
    """[what is said about settings that mean nothing where the model is asked as it is]."""
    idle = [name for name in options if name not in ("ranking", "calibrate")]
    idle += given(args, *TRAINING, "base_bits", "pooling", "train_limit", "metric", "seed")
    idle += [name for name in ("splits", "jobs", "out") if getattr(args, name) is not None]
    out = [idle_note(idle, "where the model is asked as it is")] if idle else []
    if args.text2 is not None and "text2" not in [name for _, name in template.parts]:
        out.append(f"note: --text2 is not read: {template.pattern!r} has no {{text2}}")
    return out


def asked(args, options):
    """Classes of one text, or of a data set through an adapter; ``options``: settings of strategies that were given."""
    tokenizer, config = Tokenizer.from_folder(args.model), load_config(args.model)
    model = load(args.model, args.adapter) if args.adapter else with_its_head(args.model)
    template, verbalizer = Template(args.template[0]), Verbalizer.parse(args.verbalizer[0])
    lines = passed_over(args, options, template)
    if args.text is not None:
        dataset = Dataset({"test": [Example(args.text, args.text2, None)]}, verbalizer.labels)
    else:
        dataset = read(args.data, "classify", labels=verbalizer.labels, need_labels=False, split=False)
    split = next(name for name in ("test", "dev", "train") if name in dataset.splits)
    dataset = Dataset({split: dataset.splits[split]}, dataset.labels)
    length = longest(args.max_length, config, taken(model), None if args.adapter else tokenizer)
    work = KINDS[bool(args.ranking)](tokenizer, dataset, config, template, verbalizer, length, args.batch_size)
    work = Calibration(work, tokenizer, length) if args.calibrate else work
    p = work.predict(model, split)  # (N, C)
    examples = dataset.splits[split]
    rows = [(verbalizer.labels[row.argmax()], f"{row.max():.4f}",
             *(shown(text) for text in (e.text, e.text2) if text is not None)) for row, e in zip(p, examples)]
    lines += [cut_note(work.truncated, length)] if work.truncated else []
    lines += [f"{template.fill(args.text, args.text2, '___')}"] if args.text is not None else []
    lines += [f"{label:<12} {value:.4f}  {', '.join(verbalizer.words[label])}" for label, value in zip(verbalizer.labels, p[0])
              ] if args.text is not None else []
    out = {"split": split, "predictions": [dict(zip(verbalizer.labels, map(float, row))) for row in p]}
    scores = work.evaluate(model, split)
    if args.data is not None:
        out |= {"data": name_of(args.data)} | ({"scores": scores} if scores else {})
        lines.append(score_line(examples, split, scores))
    return rows, lines, out


def searched(args, settings):
    """Verbalizers found by search, the best first: on train as the model is, or with ``--method`` on dev
    after fine-tuning by it."""
    tokenizer, config = Tokenizer.from_folder(args.model), load_config(args.model)
    dataset = read(args.data, "classify")
    if args.method and "dev" not in dataset.splits:
        raise ValueError(f"data: {args.data} has no dev split, on which --method would choose among the words")
    if args.shots is not None:
        dataset = few(dataset, args.shots, args.seed)
    elif "train" not in dataset.splits:
        raise ValueError(f"data: {args.data} has no train split to search with")
    model, limit = with_its_head(args.model), longest(args.max_length, config, tokenizer=tokenizer)
    any_words = Verbalizer({label: f"word{number}" for number, label in enumerate(dataset.labels)})
    train = Dataset({"train": limited(dataset, args.train_limit).splits["train"]}, dataset.labels)
    work = Gap(tokenizer, train, config, Template(args.template[0]), any_words, limit, args.batch_size)
    found = search_words(model, work, tokenizer, keep=args.search_words)
    words = [",".join(f"{words[0]}={label}" for label, words in verbalizer.words.items()) for verbalizer, _ in found]
    rows = [(each, f"{accuracy:.4f}") for each, (_, accuracy) in zip(words, found)]
    idle = [name for name in ("ranking", "calibrate") if name in settings["options"]]
    idle += [name for name in ("splits", *(() if args.method else ("out", "jobs"))) if getattr(args, name) is not None]
    idle += [] if args.method else given(args, *TRAINING, "base_bits", "pooling", "metric")
    lines = [idle_note(idle, "where words are searched for")] if idle else []
    lines += [f"accuracy on {len(work.targets['train'])} training texts, without any training"]
    out = [{"verbalizer": each, "accuracy": float(accuracy)} for each, accuracy in rows]
    if args.method:
        scores = tuned(args, settings, words)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])  # of equals the one that is better on train
        rows = [(*rows[i], f"{scores[i]:.4f}") for i in order]
        lines.append(f"behind it {args.metric or 'accuracy'} on dev after fine-tuning by {args.method}")
        out = [{**out[i], "dev": scores[i]} for i in order]
    return rows, lines, {"data": name_of(args.data), "found": out}


def tuned(args, settings, words):
    """The score on dev after fine-tuning with each verbalizer of ``words``."""
    with comparing(args, settings, "prompt_based") as comparison:
        job = next(jobs_of(comparison, args.seed, 1))
        jobs = [replace(job, run=replace(job.run, verbalizer=[each], template=job.run.template[:1]), label=each,
                        folder=job.folder.with_name(f"{job.folder.name}-words{number}")) for number, each in enumerate(words)]
        return [result["evaluations"][-1]["score"] for result in results_of(comparison, jobs)]


class Gap(ClozeClassification):
    """Texts in a template whose gap is read whole, so that no words have to stand for the classes."""

    def _words(self, tokenizer):
        return None


# ---- a strategy on a data set --------------------------------------------------------------------------------------


@contextlib.contextmanager
def comparing(args, settings, strategy):
    """A `Comparison` of one strategy, in ``--out`` or in a folder that is gone at the end."""
    by = {"by": args.method} if args.method and strategy != "zero_shot" else {}
    asked_with = {"template": args.template, "verbalizer": args.verbalizer, "options": {**settings["options"], **by}}
    pool = {"workers": min(available_cores(), MOST_JOBS) if args.jobs is None else args.jobs, "threads": 1, "dask": None}
    with contextlib.ExitStack() as stack:
        out = Path(args.out or stack.enter_context(tempfile.TemporaryDirectory(prefix="minipeft-")))
        data = written(args.data, out / "data") if toy_task(args.data) else args.data
        yield Comparison(args.model, [data], [Variant(strategy)], 1, out, {**settings, **asked_with}, pool)


def jobs_of(comparison, seed, draws):
    """The `Job` of each draw, from ``seed`` on."""
    (task,) = comparison.tasks
    return (comparison.job(task, comparison.variants[0], seed + number) for number in range(draws))


def results_of(comparison, jobs):
    """The results of jobs. Raises ValueError where one has none."""
    outcomes = comparison.outcomes(jobs, [unused_note([job.run for job in jobs])])
    for job in jobs:
        if isinstance(outcomes[job.folder], str):
            raise ValueError(f"{job.label}: {outcomes[job.folder]}")
    return [outcomes[job.folder] for job in jobs]


def scored(args, settings):
    """The score of a strategy, over draws of a few examples where such are asked for."""
    strategy = strategy_of(args)
    draws = 1 if strategy == "zero_shot" else args.splits or (1 if args.shots is None else SPLITS)
    with comparing(args, settings, strategy) as comparison:
        rows, lines, out = described(args, strategy, results_of(comparison, list(jobs_of(comparison, args.seed, draws))))
    notes = [idle_note(["splits"], "where nothing is drawn")] if strategy == "zero_shot" and args.splits else []
    idle = [name for name in given(args, *TRAINING) if name != "label_smoothing"]  # of which the run itself has spoken
    notes += [idle_note(idle, "where nothing is trained")] if idle and strategy in ("zero_shot", "in_context") else []
    return rows, notes + lines, out


def described(args, strategy, results):
    """Results as rows, lines and JSON."""
    metric, scores = results[0]["metric"], [result["score"] for result in results]
    rows = [(f"draw {args.seed + number}", f"{score:.4f}") for number, score in enumerate(scores)] if len(scores) > 1 else []
    rows.append((metric, f"{statistics.mean(scores):.4f}", *([f"± {statistics.stdev(scores):.4f}"] if len(scores) > 1 else [])))
    labels = "no labels" if strategy == "zero_shot" else "all of train" if args.shots is None else f"{args.shots} of each class"
    trained = f", {results[0]['trainable']:,} parameters trained by {args.method or 'full'}" if results[0]["trainable"] else ""
    lines = [f"{strategy} on {results[0]['split']} with {labels}{trained}"]
    if args.out:
        lines.append(f"saved {args.out}")
    return rows, lines, {"strategy": strategy, "data": name_of(args.data), "metric": metric, "scores": scores,
                         "mean": statistics.mean(scores), "split": results[0]["split"], "shots": args.shots,
                         "trainable": results[0]["trainable"]}
