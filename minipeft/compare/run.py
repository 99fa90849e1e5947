"""One fine-tuning run, from the model's folder and the data to a result: what ``minipeft finetune`` does, and each row of a comparison.

A run owns a folder: ``run.json`` (what was asked), ``checkpoint.safetensors`` (while it trains), then the adapter or
model, and last ``result.json``. A folder with a result is finished; one with a checkpoint can be resumed.
"""

import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from ..data import Tokenizer, read_dataset, read_texts
from ..data import files
from ..interop import load_pretrained, save_adapter, save_pretrained
from ..interop.hf import copy_tokenizer
from ..methods import METHODS, attach
from ..training import Classification, LanguageModelling, Settings, fit
from ..training.display import ProgressBar

RUN, RESULT, CHECKPOINT = "run.json", "result.json", "checkpoint.safetensors"
EPOCHS = 3
HEAD_DRAW, METHOD_DRAW = 10, 11  # what a generator made of (seed, purpose) is for


@dataclass
class Run:
    """What to do: everything that ``minipeft finetune --help`` explains. None stands for a default that depends on the rest."""

    model: str
    data: str
    method: str = "lora"
    task: str = "classify"
    rank: int = 8
    alpha: float = 16.0
    targets: str = "attn.q,attn.v"
    lora_dropout: float = 0.0
    lr: float | None = None
    epochs: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    max_length: int = 128
    stride: int | None = None
    pooling: str | None = None
    metric: str = "accuracy"
    seed: int = 0
    train_limit: int | None = None
    max_steps: int | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.task not in ("classify", "lm"):
            raise ValueError(f"task: expected classify or lm, got {self.task!r}")
        for name in ("max_length", "train_limit", "stride", "rank"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "max_length" else 1):
                raise ValueError(f"{name}: expected at least {2 if name == 'max_length' else 1}, got {value}")

    def settings(self):
        """The training loop's part of it."""
        lr = METHODS[self.method].default_lr if self.lr is None else self.lr
        return Settings(lr, EPOCHS if self.epochs is None else self.epochs, self.batch_size, self.accumulate, self.optimizer, self.schedule, self.warmup,
                        self.weight_decay, self.clip, self.seed, self.max_steps)

    def make_method(self):
        """The method with its settings."""
        if self.method == "lora":
            return METHODS["lora"](self.rank, self.alpha, self.targets, self.lora_dropout)
        return METHODS[self.method]()


def make_work(run, tokenizer, model_config=None):
    """The `Classification` or `LanguageModelling` that a run trains on."""
    limit = run.max_length
    if model_config is not None and not model_config.rotary:
        limit = min(limit, model_config.max_position_embeddings)
    if run.task == "lm":
        return LanguageModelling(tokenizer, read_texts(run.data), limit, run.batch_size, run.stride, run.train_limit)
    return Classification(tokenizer, read_dataset(run.data), limit, run.batch_size, run.metric, run.train_limit)


def load_for(run, labels, seed):
    """The run's model with a head for its task."""
    if run.task == "lm":
        return load_pretrained(run.model, task="lm")
    return load_pretrained(run.model, task="classify", labels=labels, pooling=run.pooling,
                           rng=np.random.default_rng([seed, HEAD_DRAW]))


def check_resume(run, out, resume):
    """Refuse to mix two runs in one folder; returns the finished result if there is one to give back."""
    asked = asdict(run)
    if (out / RUN).is_file() and ((out / RESULT).is_file() or (out / CHECKPOINT).is_file()):
        before = files.read_json(out / RUN, "run description")
        changed = [f"{k} was {before.get(k)!r}, now {v!r}" for k, v in asked.items() if before.get(k) != v]
        if not resume:
            state = "a finished run" if (out / RESULT).is_file() else "an unfinished run"
            raise ValueError(f"{out}: holds {state}; pass --resume to go on with it, or choose another --out")
        if changed:
            raise ValueError(f"{out}: holds a run with other settings ({'; '.join(changed)}); choose another --out")
        if (out / RESULT).is_file():
            return files.read_json(out / RESULT, "result")
    return None


def execute(run, out, resume=False, title=None, quiet=False):
    """Fine-tune, evaluate, save; returns the result, which is also written to ``result.json``.

    Args:
        run: a `Run`. out: folder. resume: go on with an unfinished run. title: what the progress bar says.
        quiet: show nothing.

    Raises:
        ValueError, OSError: the user's faults, with one clear line. Interrupted: Ctrl-C.
    """
    out, started = Path(out), time.monotonic()
    done = check_resume(run, out, resume)
    if done is not None:
        return done
    settings = run.settings()
    tokenizer = Tokenizer.from_folder(run.model)
    config = load_config(run.model)
    work = make_work(run, tokenizer, config)
    if work.truncated and not quiet:
        print(f"note: {work.truncated} texts are longer than {min(run.max_length, config.max_position_embeddings)} tokens "
              "and were cut", file=sys.stderr)
    model = load_for(run, getattr(work, "labels", ()), run.seed)
    attachment = attach(model, run.make_method(), rng=np.random.default_rng([run.seed, METHOD_DRAW]))
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / RUN, asdict(run))
    parameters = attachment.named_parameters()
    history = fit(model, parameters, work, settings, out / CHECKPOINT, resume, None if quiet else ProgressBar(title or run.method))
    result = {**describe(run, attachment, settings), **score(model, work, history), "step_ms": history["step_ms"],
              "steps": history["step"], "epochs": settings.epochs, "evaluations": history["evaluations"], "losses": history["losses"]}
    result["size_mb"] = save(run, model, attachment, out) / 1e6
    result["peak_mb"] = peak_mb()
    result["seconds"] = time.monotonic() - started
    files.write_json(out / RESULT, result)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return result


def load_config(folder):
    """The TransformerConfig of a model folder, without its weights."""
    from ..interop.hf import config_from_hf

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    return config_from_hf(files.read_json(path, "config"), path)


def describe(run, attachment, settings):
    """The part of a result that does not depend on training."""
    added = attachment.trainable - sum(p.size for p in attachment.base.values())
    base = sum(p.size for p in attachment.model.parameters())
    if attachment.head is not None:
        added -= sum(p.size for p in attachment.head.own.parameters())  # it stands in for the base's own head
    return {"method": run.method, "task": run.task, "model": Path(run.model).name, "data": Path(run.data).name,
            "seed": run.seed, "lr": settings.lr, "trainable": attachment.trainable,
            "trainable_without_head": attachment.trainable_without_head, "total": base + added}


def score(model, work, history):
    """{"metric", "score", "split", "scores"}: on test where there is one, else on dev (as the last epoch left it)."""
    scores = work.evaluate(model, "test")
    split = "test" if scores else "dev"
    if not scores:
        scores = {k: v for k, v in (history["evaluations"] or [{}])[-1].items() if k not in ("epoch", "step")}
    return {"metric": work.metric, "score": scores.get("score"), "split": split, "scores": scores}


def save(run, model, attachment, out):
    """Write the adapter, or the whole model where the base itself was trained; returns the size of its tensors in bytes."""
    if attachment.base:
        save_pretrained(model, out, tokenizer_from=run.model)
    else:
        save_adapter(attachment, out, base=run.model)
    return sum(p.stat().st_size for p in out.iterdir() if p.suffix == ".safetensors" and p.name != CHECKPOINT)


def peak_mb():
    """The process's high-water mark of memory so far, in MB (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1024


def main(arguments):
    """``python -m minipeft.compare.run SPEC.json OUT``: a run in a process of its own, for a comparison."""
    spec = files.read_json(arguments[0], "run description")
    title = spec.pop("title", None)
    known = {f.name for f in fields(Run)}
    try:
        execute(Run(**{k: v for k, v in spec.items() if k in known}), arguments[1], resume=True, title=title)
    except (ValueError, OSError) as error:
        print(f"minipeft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
