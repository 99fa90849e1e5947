"""One fine-tuning run, from the model's folder and the data to a result: what ``minipeft finetune`` and a comparison do.

A run owns a folder: ``run.json`` (what was asked), ``checkpoint.safetensors`` (while it trains), then the adapter or
model, and last ``result.json`` (in a comparison behind ``analysis.json``). A folder with a result is finished; one with a
checkpoint can be resumed.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import numpy as np

from ..data import Tokenizer, files
from ..interop import load_pretrained, save_adapter, save_pretrained
from ..interop.adapter import HEAD
from ..kernels.backend import num_threads
from ..methods import GradualUnfreezing, attach, discriminative, quantise
from ..methods.attach import HEAD_PATHS
from ..methods.nf4 import summary, weights_in_4_bits
from ..training import (L2SP, METRICS, TEXT_METRICS, Classification, LanguageModelling, Sequence2Sequence, Settings, end_tokens,
                        fit, mixout)
from ..training.display import ProgressBar
from ..training.memory import peak_mb
from ..training.text_metrics import without_spaces
from .analysis import analyse
from .exits import KNOWN as METHODS_AND_BASE
from .exits import OFFERED as METHODS_OFFERED
from .exits import Leaving, models_of
from .measure import inference
from .rates import default_lr
from .sources import name_of, read
from .strategies import FEW_EPOCHS, GENTLE, PET, STRATEGIES, Strategy, ZeroShot, few, limited

RUN, RESULT, ANALYSIS, CHECKPOINT = "run.json", "result.json", "analysis.json", "checkpoint.safetensors"
EPOCHS = 3
HEAD_DRAW, METHOD_DRAW = 10, 11  # what a generator made of (seed, purpose) is for
OFFERED, KNOWN = METHODS_OFFERED | STRATEGIES, METHODS_AND_BASE | STRATEGIES  # what is offered, and what a run may be of
METRICS_OF = {"classify": tuple(METRICS), "lm": (), "seq2seq": TEXT_METRICS}  # the first is the default
# The tasks that have a use for a setting; those not named here serve all.
TASKS_OF = {"pooling": ("classify",), "shots": ("classify",), "template": ("classify",), "verbalizer": ("classify",),
            "unlabelled": ("classify",), "metric": ("classify", "seq2seq"), "label_smoothing": ("classify", "seq2seq"),
            "stride": ("lm",), "max_target_length": ("seq2seq",), "bleu_tokenizer": ("seq2seq",)}
# The settings that bear on training alone.
TRAINING = ("lr", "epochs", "accumulate", "optimizer", "schedule", "warmup", "weight_decay", "clip", "l2_sp", "mixout",
            "label_smoothing", "unfreeze", "layer_decay", "max_steps")


@dataclass
class Run:
    """What to do: everything that ``minipeft finetune --help`` and ``minipeft compare --help`` explain.

    ``options`` are settings of the method, {field: value}, and ``words`` a text whose tokens start its virtual tokens. ``lr``,
    ``epochs`` and ``metric`` may be given as None, which becomes the method's own learning rate (see ``rates.py``), `EPOCHS`
    (with few examples `FEW_EPOCHS`) and the task's first metric; None in the others stands for a default that depends on the
    model or means no limit. ``shots`` examples of each class are drawn by the seed, in place of all; ``template``, ``verbalizer``
    (lists) and ``unlabelled`` (a path) are for strategies.
    """

    model: str
    data: str
    method: str = "lora"
    task: str = "classify"
    options: dict = field(default_factory=dict)
    words: str | None = None
    lr: float | None = None
    epochs: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    l2_sp: float = 0.0
    mixout: float = 0.0
    label_smoothing: float = 0.0
    unfreeze: bool = False
    layer_decay: float = 1.0
    base_bits: int | None = None
    max_length: int = 128
    max_target_length: int = 64
    stride: int | None = None
    pooling: str | None = None
    metric: str | None = None
    bleu_tokenizer: str = "13a"
    seed: int = 0
    train_limit: int | None = None
    max_steps: int | None = None
    shots: int | None = None
    template: list | None = None
    verbalizer: list | None = None
    unlabelled: str | None = None

    def __post_init__(self):
        if self.method not in KNOWN:
            raise ValueError(f"method: expected one of {', '.join(OFFERED)}, got {self.method!r}")
        if self.task not in METRICS_OF:
            raise ValueError(f"task: expected one of {', '.join(METRICS_OF)}, got {self.task!r}")
        for name, least in (("max_length", 2), ("max_target_length", 2), ("train_limit", 1), ("stride", 1),
                            ("shots", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if self.base_bits not in (None, 4):
            raise ValueError(f"base_bits: expected 4, or None for weights as they are, got {self.base_bits}")
        metrics = METRICS_OF[self.task]
        self.metric = metrics[0] if metrics and self.metric is None else self.metric
        if metrics and self.metric not in metrics:
            raise ValueError(f"metric: task {self.task} is scored by one of {', '.join(metrics)}; got {self.metric!r}")
        if self.shots == 0 and self.method not in ("base", "zero_shot", "pet", "ipet"):
            raise ValueError(f"shots: {self.method} learns from labelled examples; expected at least 1 of each class, got 0")
        if self.lr is None:
            gentle = self.method == "prompt_based" and self.shots is not None
            self.lr = default_lr(self.trained_by(), self.model) * (GENTLE if gentle else 1)
        few_texts = self.shots is not None and not issubclass(KNOWN[self.method], PET)
        self.epochs = (FEW_EPOCHS if few_texts else EPOCHS) if self.epochs is None else self.epochs
        defaults = vars(KNOWN[self.method]())  # an option given as it is by default asks for nothing else
        self.options = {name: v for name, v in self.options.items() if name not in defaults or defaults[name] != v}

    def trained_by(self):
        """The name of the method whose learning rate it is."""
        kind = KNOWN[self.method]
        by = self.options.get("by", kind.by) if issubclass(kind, Strategy) else self.method
        return "base" if by is None or by not in KNOWN else by

    def strategy(self):
        """The `Strategy`, None for a method that classifies with a head."""
        kind = KNOWN[self.method]
        if not issubclass(kind, Strategy):
            return None
        return kind(**{name: value for name, value in self.options.items() if name in settings_of(kind)})

    def settings(self):
        """The training loop's part of it."""
        return Settings(self.lr, self.epochs, self.batch_size, self.accumulate, self.optimizer, self.schedule, self.warmup,
                        self.weight_decay, self.clip, self.seed, self.max_steps)

    def unused(self):
        """Names of the fields that were set and that this method and task have no use for."""
        defaults = {f.name: f.default for f in fields(self)}
        idle = [name for name, tasks in TASKS_OF.items() if self.task not in tasks and getattr(self, name) != defaults[name]]
        known = settings_of(KNOWN[self.method]) | settings_of(KNOWN[self.trained_by()])
        idle += [name for name in self.options if name not in known]
        idle += [name for name in ("template", "verbalizer") if getattr(self, name) and self.strategy() is None]
        idle += ["label_smoothing"] * bool(self.label_smoothing and self.strategy() is not None and "label_smoothing" not in idle)
        if self.method == "prompt_based" and not self.options.get("demonstrations"):
            idle += [name for name in ("sets", "similar") if name in self.options]
        idle += ["unlabelled"] * (self.unlabelled is not None and not issubclass(KNOWN[self.method], PET))
        own = self.strategy() is not None and self.trained_by() == "output"  # output tuning by prompting has the label words
        return idle + ["words"] * (self.words is not None and ("words" not in known or own))

    def hooks(self, attachment):
        """What acts on training besides the gradients: the method's own hooks, the regulariser, the unfreezing."""
        out = list(attachment.method.hooks(attachment))
        if self.l2_sp:
            out.append(L2SP(attachment.named_parameters(), self.l2_sp, self.l2_sp))
        return out + [GradualUnfreezing(attachment)] * self.unfreeze

    def lr_scale(self, attachment):
        """What a path's learning rate is multiplied by: the method's own factor times that of the layer."""
        by_layer = discriminative(attachment.model.config, self.layer_decay)
        return lambda path: attachment.method.lr_scale(path) * by_layer(path)

    def make_method(self, tokenizer=None):
        """The method with its settings; ``tokenizer`` turns ``words`` into token ids."""
        if self.strategy() is not None:
            return self.strategy().method(self, tokenizer)
        known, method = settings_of(KNOWN[self.method]), KNOWN[self.method]
        options = {name: value for name, value in self.options.items() if name in known}
        if self.words is not None and "words" in known and tokenizer is not None:
            ids = tokenizer.encode(self.words, add_special_tokens=False)
            if "num_virtual_tokens" in known:
                options.setdefault("initial", "words" if self.method == "prefix" else "labels")
                ids = ids[:options.get("num_virtual_tokens", method.num_virtual_tokens)]
            options["words"] = ids
        return method(**options)


def settings_of(method):
    """Names of the fields of a method's class."""
    return {f.name for f in fields(method)} if is_dataclass(method) else set()


def longest(max_length, config, taken=0, tokenizer=None):
    """Most tokens in one text: ``max_length``, or as many as the model has learned positions for, less those ``taken``; with
    the ``tokenizer`` of a model that is asked as it is, no more than it says that the model reads."""
    limits = [max_length]
    if config.learned_positions:
        limits.append(config.max_position_embeddings - taken)
    if tokenizer is not None and tokenizer.model_max_length is not None:
        limits.append(tokenizer.model_max_length)
    return min(limits)


def longest_of(run, tokenizer, config, method):
    """`longest` of a run that trains ``method``."""
    as_it_is = isinstance(run.strategy(), ZeroShot)
    return longest(run.max_length, config, method.positions_taken, tokenizer if as_it_is else None)


def option(name):
    """A field as the command line spells it."""
    return "--" + name.replace("_", "-")


def unused_note(runs):
    """What is said about settings that do nothing in any of the runs; empty where there are none."""
    idle = [name for name in runs[0].unused() if all(name in run.unused() for run in runs)]
    methods = " or ".join(dict.fromkeys(run.method for run in runs))
    return idle_note(idle, f"with method {methods} and task {runs[0].task}")


def idle_note(names, where):
    """What is said about fields that do nothing where they were given; empty for none."""
    return names and f"note: {', '.join(map(option, names))} {'does' if len(names) == 1 else 'do'} nothing {where}"


def cut_note(count, length, what="text"):
    """What is said about texts that were too long."""
    are, were = (f"{what} is", "was") if count == 1 else (f"{what}s are", "were")
    return f"note: {count} {are} longer than {length} tokens and {were} cut"


def left_out_note(work, length):
    """[what is said about demonstrations for which there is no room]; [] where all stand before every text."""
    demonstrations = getattr(work, "demonstrations", None)
    split = next((name for name in ("test", "dev") if name in getattr(work, "contexts", {})), None)
    if not demonstrations or split is None:
        return []
    asked = demonstrations.asked()
    shown = [len(context) for context in work.contexts[split]]
    if min(shown) >= asked:
        return []
    return [f"note: before a text of {split} stand {sum(shown) / len(shown):.2g} of {asked} solved examples on average; for the "
            f"others there is no room in {length} tokens"]


def notes_on_data(work, length):
    """What is said about the texts of a `work` whose inputs have at most ``length`` tokens: those cut, those BLEU cannot read."""
    out = [cut_note(work.truncated, length)] if work.truncated else []
    if work.task == "seq2seq":
        if work.truncated_targets:
            out.append(cut_note(work.truncated_targets, work.max_target_length, "reference"))
        if work.bleu_tokenizer == "13a" and any(without_spaces([s.references for s in part]) for part in work.sources.values()):
            out.append("note: the references are Chinese or Japanese, which BLEU's tokenizer 13a does not cut into words; use "
                       "--bleu-tokenizer zh (or char for Japanese)")
        elif work.bleu_tokenizer == "13a" and work.metric == "bleu":
            words = [len(reference.split()) for part in work.sources.values() for s in part for reference in s.references]
            if words and max(words) < 4:
                out.append(f"note: no reference has more than {max(words)} words, and BLEU counts four in a row; "
                           "use --metric exact or rouge_l")
    return out


def check_task(run, config):
    """Refuse a task that a model of this config cannot do, and a method that cannot do the task."""
    prompted = run.strategy() is not None and not isinstance(run.strategy(), PET)  # with the head that it was pre-trained with
    if run.strategy() is not None and run.task != "classify":
        raise ValueError(f"{run.method}: a strategy classifies texts; use --task classify")
    if config.encoder_decoder and run.strategy() is not None and not prompted:
        raise ValueError(f"{run.method}: its prompts teach a classifier, and {run.model} is T5, an encoder-decoder, which has no "
                         "classification head; use prompt_based (minipeft prompt --shots K --method full), "
                         "or an encoder or a decoder")
    if config.encoder_decoder and run.task != "seq2seq" and not prompted:
        raise ValueError(f"task {run.task}: {run.model} is T5, an encoder-decoder, which writes one text from another; use "
                         "--task seq2seq with it, or a model of another kind (BERT, GPT-2, LLaMA)")
    if run.task == "seq2seq" and not config.encoder_decoder:
        kind, other = ("a decoder", "classify or lm") if config.causal else ("an encoder", "classify")
        raise ValueError(f"task seq2seq: writing one text from another needs an encoder-decoder (T5), and {run.model} is {kind} "
                         f"({config.model_type}); use --task {other} with it, or a T5 folder")
    if run.method == "fisher_mask" and run.task != "classify":
        raise ValueError(f"fisher_mask: entries are weighed by a classifier's classes, and task {run.task} has none; use "
                         "random_mask, or --task classify")
    if run.method == "early_exit" and (run.task != "classify" or run.label_smoothing):
        what = f"task {run.task}" if run.task != "classify" else "--label-smoothing"
        raise ValueError(f"early_exit: each exit is a classifier and has the loss of one, which goes without {what}; use "
                         f"{'--task classify' if run.task != 'classify' else '--label-smoothing 0'}, or another method")


def make_work(run, tokenizer, config, check=False, told=None, place=None):
    """The `Classification`, `LanguageModelling` or `Sequence2Sequence` that a run trains on.

    ``check``: of a strategy only see that all fits, which leaves its long parts out, and give nothing. ``told``: a function that
    is told, in a line, what of it takes long; ``place``: a folder to keep what that gives.
    """
    method = run.make_method(tokenizer)
    method.check(config)
    limit = longest_of(run, tokenizer, config, method)
    if run.task == "classify":
        dataset, strategy = read(run.data, run.task), run.strategy()
        if run.shots is not None:
            dataset = few(dataset, run.shots, run.seed)
        if strategy is not None:
            given = run, tokenizer, config, limited(dataset, run.train_limit), limit
            return strategy.check(*given) if check else strategy.work(*given, told, place)
        return Classification(tokenizer, dataset, limit, run.batch_size, run.metric, run.train_limit,
                              label_smoothing=run.label_smoothing)
    texts = read(run.data, run.task)
    if "train" not in texts:
        raise ValueError(f"{run.data}: no train file; there are: {', '.join(texts)}")
    if run.task == "seq2seq":
        return Sequence2Sequence(tokenizer, texts, end_tokens(config, tokenizer), limit, run.max_target_length, run.batch_size,
                                 run.metric, run.train_limit, label_smoothing=run.label_smoothing,
                                 bleu_tokenizer=run.bleu_tokenizer)
    return LanguageModelling(tokenizer, texts, limit, run.batch_size, run.stride, run.train_limit)


def load_for(run, labels, seed):
    """The run's model with a head for its task."""
    if run.strategy() is not None:
        return run.strategy().load(run, labels, np.random.default_rng([seed, HEAD_DRAW]))
    if run.task != "classify":
        return load_pretrained(run.model, task=run.task, rng=np.random.default_rng([seed, HEAD_DRAW]))
    if run.pooling in ("cls", "pooler") and load_config(run.model).causal:
        raise ValueError(f"pooling: {run.pooling} reads the first token, which in a decoder sees none of the text; "
                         "use last or mean")
    return load_pretrained(run.model, task="classify", labels=labels, pooling=run.pooling,
                           rng=np.random.default_rng([seed, HEAD_DRAW]))


def check_writable(path):
    """Raise OSError where a file or folder of this name could not be made; leaves nothing behind."""
    if files.is_special(path) and os.access(path, os.W_OK):
        return
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent):
            pass
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None
    if not place.is_dir() and place != Path(path).absolute():
        raise OSError(f"{path}: cannot be written ({place} is a file, not a folder)")


def check_out(run, out):
    """Refuse a folder that a run cannot use, or whose files it would replace."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; expected a folder for the run in --out")
    if out.resolve() == files.model_folder(run.model).resolve():
        raise ValueError(f"{out}: is the --model itself, whose files a run would replace; choose another --out")
    others = sorted(path.name for path in out.glob("*.safetensors"))
    if others and not (out / RUN).is_file():
        raise ValueError(f"{out}: holds {others[0]}, which is not of a run of minipeft; choose another --out")
    check_writable(out)


def _flat(settings):
    """A run's fields with those of the method among them."""
    return {name: value for name, value in settings.items() if name != "options"} | (settings.get("options") or {})


def check_resume(run, out, resume):
    """Refuse to mix two runs in one folder; returns the finished result if there is one to give back."""
    asked = asdict(run)
    if (out / RUN).is_file() and ((out / RESULT).is_file() or (out / CHECKPOINT).is_file()):
        before = files.read_json(out / RUN, "run description")
        asked, before = _flat(asked), _flat(before)
        changed = [f"{option(name)} was {before.get(name)!r}, now {asked.get(name)!r}"
                   for name in asked | before if before.get(name) != asked.get(name)]
        if not resume:
            state = "a finished run" if (out / RESULT).is_file() else "an unfinished run"
            raise ValueError(f"{out}: holds {state}; pass --resume to go on with it, or choose another --out")
        if changed:
            raise ValueError(f"{out}: holds a run with other settings ({'; '.join(changed)}); choose another --out")
        if (out / RESULT).is_file():
            (out / CHECKPOINT).unlink(missing_ok=True)  # where a run was killed just before it did so itself
            return files.read_json(out / RESULT, "result")
    return None


def prepare(run, told=None, place=None):
    """(work, attachment, tokens of the longest text, what was stored in 4 bits) of a run.

    Raises ValueError where the data, the model and the method do not fit each other.
    """
    tokenizer, config = Tokenizer.from_folder(run.model), load_config(run.model)
    check_task(run, config)
    work = make_work(run, tokenizer, config, told=told, place=place)
    model = load_for(run, getattr(work, "labels", ()), run.seed)
    stored = quantise(model) if run.base_bits else None
    method, rng = run.make_method(tokenizer), np.random.default_rng([run.seed, METHOD_DRAW])
    method.prepare(model, work, rng)
    attachment = attach(model, method, rng=rng)
    return work, attachment, longest_of(run, tokenizer, config, method), stored


def execute(run, out, resume=False, title=None, quiet=False, notes=("unused", "data", "demonstrations"), display=None,
            measured=False):
    """Fine-tune, evaluate, save; returns the result, which is also written to ``result.json``.

    Args:
        run: a `Run`. out: folder. resume: go on with an unfinished run. title: what the progress bar says.
        quiet: show nothing.
        notes: what to speak of: settings that do nothing (``unused``), texts that are too long and the like (``data``), solved
            examples that are left out (``demonstrations``).
        display: what shows the progress instead of a bar.
        measured: also time inference and write ``analysis.json``, as a comparison wants it.

    Raises:
        ValueError, OSError: the user's faults, with one clear line. Interrupted: Ctrl-C.
    """
    out, started = Path(out), time.monotonic()
    check_out(run, out)
    done = check_resume(run, out, resume)
    if done is not None:
        return done
    settings = run.settings()
    display = display or (None if quiet else ProgressBar(title or run.method))
    work, attachment, length, stored = prepare(run, display and display.doing, out)
    said = ["unused" in notes and unused_note([run]), stored and f"note: {summary(stored)}"]
    said += notes_on_data(work, length) if "data" in notes else []
    said += left_out_note(work, length) if "demonstrations" in notes else []
    if resume and not (out / CHECKPOINT).is_file():
        said.append(f"note: {out} holds nothing to go on with; starting from the beginning")
    for line in filter(None, said if not quiet else ()):
        print(line, file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    if run.task == "seq2seq" and display is not None:
        work.progress = display.evaluating
    before = time.monotonic() - started
    history = train(run, attachment, work, settings, out, resume, display)
    started, (_, used) = time.monotonic(), models_of(attachment)
    result = {**describe(run, attachment, settings), **score(used, work, history, display), "step_ms": history["step_ms"],
              "steps": history["step"], "epochs": settings.epochs, "evaluations": history["evaluations"],
              "losses": history["losses"], "batch_length": batch_length(work)}
    size, result["format_note"] = save(run, attachment.model, attachment, out)
    result["size_mb"] = size / 1e6
    result["peak_mb"] = max(history["peak_mb"], peak_mb())  # of this process and of those before a stop
    if measured:
        result["inference"] = inference(attachment, used, work)
        files.write_json(out / ANALYSIS, analyse(run, attachment, work))
    result["seconds"] = before + history["seconds"] + time.monotonic() - started  # those before a stop included
    files.write_json(out / RESULT, result)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return result


def batch_length(work):
    """Tokens in a row of a training batch, padding included: the mean over one epoch; None where there are none."""
    lengths = [work.collate(indices).input_ids.shape[1] for indices in work.training_batches(np.random.default_rng(0))]
    return float(np.mean(lengths)) if lengths else None


def train(run, attachment, work, settings, out, resume, display):
    """What `fit` tells of the training of a run in the folder ``out``; the base has nothing to train."""
    try:
        files.write_json(out / RUN, asdict(run))
        model, parameters = models_of(attachment)[0], attachment.named_parameters()
        if not parameters:
            scores = work.evaluate(model.eval(), "dev")
            return {"step": 0, "losses": [], "evaluations": [{"epoch": 0, "step": 0, **scores}], "step_ms": None, "seconds": 0.0,
                    "peak_mb": 0.0}
        with mixout(attachment.model, run.mixout) if run.mixout else contextlib.nullcontext():
            return fit(model, parameters, work, settings, out / CHECKPOINT, resume, display, run.hooks(attachment),
                       run.lr_scale(attachment))
    except (ValueError, OSError):
        if not (out / CHECKPOINT).is_file():  # nothing was trained
            (out / RUN).unlink(missing_ok=True)
            if not any(out.iterdir()):
                out.rmdir()
        raise


def load_config(folder):
    """The TransformerConfig of a model folder, without its weights."""
    from ..interop.hf import config_from_hf

    path = files.model_folder(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    return config_from_hf(files.read_json(path, "config"), path)


def describe(run, attachment, settings):
    """The part of a result that does not depend on training."""
    added = attachment.trainable - sum(p.size for p in attachment.base.values())
    base = sum(p.size for p in attachment.model.parameters()) + weights_in_4_bits(attachment.model)
    if attachment.head is not None:
        added -= sum(p.size for p in attachment.head.own.parameters())  # it stands in for the base's own head
    return {"method": run.method, "task": run.task, "model": name_of(run.model), "data": name_of(run.data),
            "seed": run.seed, "lr": settings.lr if attachment.trainable else None, "trainable": attachment.trainable,
            "trainable_without_head": attachment.trainable_without_head, "total": base + added,
            "formula": formula(attachment), "threads": num_threads()}


def formula(attachment):
    """The number of trained parameters besides the head in closed form: of each seam, and of the base's own arrays by shape."""
    wrappers = attachment.wrappers
    seams = Counter(text for path, _, text in attachment.table() if path in wrappers and wrappers[path] is not attachment.head)
    base = Counter(" x ".join(map(str, p.shape)) for path, p in attachment.base.items() if not path.startswith(HEAD_PATHS))
    parts = [f"{times} x [{text}]" if times > 1 else text for each in (base, seams) for text, times in each.items() if text]
    return " = ".join(filter(None, (attachment.method.trains, " + ".join(parts))))


def score(model, work, history, display=None):
    """{"metric", "score", "split", "scores", "mean_layer"}: on test where there is one, else on dev (as the last epoch left it,
    unless the ``model`` that predicts is not the one that was trained), else None.

    ``display`` is taken away at the end, well or not.
    """
    leaving = isinstance(model, Leaving)
    try:
        scores, split = work.evaluate(model, "test"), "test"
        if not scores and leaving:
            scores, split = work.evaluate(model, "dev"), "dev"
    finally:
        if display is not None:
            display.stop()
    if not scores and not leaving:
        scores, split = {k: v for k, v in history["evaluations"][-1].items() if k not in ("epoch", "step")}, "dev"
    return {"metric": work.metric, "score": scores.get("score"), "split": split if scores else None, "scores": scores,
            "mean_layer": model.mean_layer() if leaving and scores else None}


def save(run, model, attachment, out):
    """Write the adapter, or the whole model after full fine-tuning.

    Returns the size of its tensors in bytes, and what is to be said of its format: why no other library reads it, or why the
    head is in a file of its own; None where there is nothing to say.
    """
    reason = None
    trained = attachment.method.name
    if trained == "base":
        return sum(p.stat().st_size for p in files.model_folder(run.model).glob("*.safetensors")), None
    if trained in ("full", "early_exit"):
        save_pretrained(model, out, tokenizer_from=run.model)
        if trained == "early_exit":
            attachment.method.model.save_exits(out)
    elif trained == "head":
        save_adapter(attachment, out, base=run.model)
    else:
        reason = save_adapter(attachment, out, base=run.model)
        if reason is None and (out / HEAD).is_file():
            reason = f"the head is in {HEAD}, because PEFT and transformers have none that pools as this one does"
    size = sum(p.stat().st_size for p in out.iterdir() if p.suffix == ".safetensors" and p.name != CHECKPOINT)
    return size, reason and reason.removeprefix("save: ")
