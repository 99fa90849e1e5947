"""The training loop: batches in, gradients, one optimizer step after another, with checkpoints from which the very same run goes on."""

import contextlib
import math
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..autograd import Tensor, no_grad
from ..nn import Module
from .checkpoint import load_checkpoint, save_checkpoint
from .optim import OPTIMIZERS, decay_groups, gradient_norm
from .schedules import SCHEDULES, factor

ORDER, DROPOUT = 0, 1  # what a generator made of (seed, purpose, number) is for


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after a whole step; its checkpoint is written."""


@dataclass
class Settings:
    """How to train.

    ``lr`` learning rate at its highest; ``warmup`` the share of the steps in which it rises; ``accumulate`` how many
    batches make one step; ``clip`` the largest allowed gradient norm (0: none); ``max_steps`` ends early (None: after
    the epochs); ``checkpoint_seconds`` between checkpoints (one is also written after each epoch).
    """

    lr: float
    epochs: int = 3
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    max_steps: int | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self):
        for name, good, words in (
                ("lr", self.lr > 0 and math.isfinite(self.lr), "a number above 0"),
                ("epochs", self.epochs >= 1, "at least 1"), ("batch_size", self.batch_size >= 1, "at least 1"),
                ("accumulate", self.accumulate >= 1, "at least 1"), ("warmup", 0 <= self.warmup <= 1, "a share from 0 to 1"),
                ("clip", self.clip >= 0, "0 or more"), ("weight_decay", self.weight_decay >= 0, "0 or more"),
                ("seed", self.seed >= 0, "0 or more"), ("optimizer", self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS)),
                ("schedule", self.schedule in SCHEDULES, " or ".join(SCHEDULES)),
                ("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1")):
            if not good:
                raise ValueError(f"{name}: expected {words}, got {getattr(self, name)!r}")


class Silent:
    """A progress display that shows nothing; others have the same three methods."""

    def start(self, total, done):
        """Training of ``total`` steps begins, ``done`` of them are behind us."""

    def step(self, loss, examples):
        """One more step is done."""

    def evaluated(self, epoch, scores):
        """An epoch ended with these scores on dev."""

    def stop(self):
        """Training ended, well or not."""


# ---- the loop --------------------------------------------------------------------------------------------------


def fit(model, parameters, work, settings, checkpoint=None, resume=False, display=None):
    """Train ``parameters`` of ``model`` on ``work``.

    Args:
        model: a model; parameters: {path: Parameter} to train.
        work: a `Classification` or `LanguageModelling` (or anything with its methods).
        settings: a `Settings`.
        checkpoint: file to write checkpoints to, or None. resume: go on from that file if it exists.
        display: a progress display.

    Returns:
        History: ``{"step", "losses", "evaluations", "step_ms", "seconds"}``.

    Raises:
        ValueError: the loss or a gradient is not finite; the message says at which step and which tensor came first.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    display = display or Silent()
    optimizer = OPTIMIZERS[settings.optimizer](decay_groups(list(parameters.values()), settings.weight_decay), lr=settings.lr)
    history = {"step": 0, "losses": [], "evaluations": [], "durations": [], "seconds": 0.0}
    if resume and checkpoint is not None and Path(checkpoint).is_file():
        history = load_checkpoint(checkpoint, parameters, optimizer)
    per_epoch = -(-work.number_of_batches() // settings.accumulate)
    total = min(settings.epochs * per_epoch, settings.max_steps or math.inf)
    clock = _Clock(history["seconds"], settings.checkpoint_seconds)

    def save():
        history["seconds"] = clock.total()
        if checkpoint is not None:
            save_checkpoint(checkpoint, parameters, optimizer, history)
            clock.saved()

    display.start(total, history["step"])
    try:
        with _interrupt_flag() as interrupted:
            while history["step"] < total:
                epoch = history["step"] // per_epoch
                order = work.training_batches(np.random.default_rng([settings.seed, ORDER, epoch]))
                for i in range(history["step"] % per_epoch, per_epoch):
                    group = [work.collate(ids) for ids in order[i * settings.accumulate:(i + 1) * settings.accumulate]]
                    optimizer.lr = settings.lr * factor(settings.schedule, history["step"], total, round(settings.warmup * total))
                    start = time.perf_counter()
                    loss = _step(model, parameters, optimizer, work, group, settings, history["step"], checkpoint, save)
                    history["durations"].append(time.perf_counter() - start)
                    history["losses"].append(loss)
                    history["step"] += 1
                    display.step(loss, sum(batch.size for batch in group))
                    if interrupted.is_set():
                        save()
                        raise Interrupted(f"stopped after step {history['step']} of {total}")
                    if history["step"] == total:
                        break
                    if clock.due():
                        save()
                if history["step"] % per_epoch == 0 or history["step"] == total:
                    scores = work.evaluate(model.eval(), "dev")
                    history["evaluations"].append({"epoch": epoch + 1, "step": history["step"], **scores})
                    display.evaluated(epoch + 1, scores)
                    save()
    finally:
        display.stop()
        model.eval()
    counted = history["durations"][min(3, len(history["durations"]) // 2):]
    return {**history, "step_ms": 1e3 * float(np.median(counted)) if counted else 0.0, "seconds": clock.total()}


def _step(model, parameters, optimizer, work, group, settings, step, checkpoint, save):
    """One optimizer step on a group of batches; returns the loss."""
    model.train(np.random.default_rng([settings.seed, DROPOUT, step]))
    optimizer.zero_grad()
    weights = [work.weight(batch) for batch in group]
    loss = 0.0
    for batch, weight in zip(group, weights):
        share = weight / max(sum(weights), 1)
        part = work.loss(model, batch)
        value = part.item()
        if not math.isfinite(value):
            _diverged(f"the loss is {value}", first_bad_tensor(model, parameters, lambda: work.loss(model, batch)), step, checkpoint, save)
        part.backward(np.asarray(share, part.dtype))
        loss += value * share
    norm = gradient_norm(parameters.values())
    if not math.isfinite(norm):
        bad = next(path for path, p in parameters.items() if p.grad is not None and not np.isfinite(p.grad).all())
        _diverged(f"the gradient's norm is {norm}", f"the gradient of {bad}", step, checkpoint, save)
    optimizer.step(min(1.0, settings.clip / norm) if settings.clip and norm > 0 else 1.0)
    return loss


def _diverged(what, where, step, checkpoint, save):
    kept = ""
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            save()  # nothing has gone into the weights yet
        kept = f"; the last good checkpoint is kept: {checkpoint}"
    raise ValueError(f"training diverged at step {step + 1}: {what}; first bad: {where}{kept}. "
                     "Try a smaller --lr, or a longer warm-up")


def first_bad_tensor(model, parameters, forward):
    """Name of the first tensor that is not finite: a parameter, else the first output in the order of the forward pass."""
    for path, parameter in list(parameters.items()) + list(model.named_parameters()):
        if not np.isfinite(parameter.data).all():
            return f"the parameter {path}"
    names, bad = {id(module): path or "model" for path, module in model.named_modules()}, []
    original = Module.__call__

    def watched(module, *args, **kwargs):
        out = original(module, *args, **kwargs)
        if not bad and isinstance(out, Tensor) and not np.isfinite(out.data).all():
            bad.append(names.get(id(module), type(module).__name__))
        return out

    Module.__call__ = watched
    try:
        with no_grad():
            forward()
    finally:
        Module.__call__ = original
    return f"the output of {bad[0]}" if bad else "the loss itself"


class _Clock:
    """Seconds of the whole run, resumed parts included, and whether a checkpoint is due."""

    def __init__(self, before, interval):
        self.before, self.interval = before, interval
        self.started = self.last = time.monotonic()

    def total(self):
        return self.before + time.monotonic() - self.started

    def due(self):
        return time.monotonic() - self.last >= self.interval

    def saved(self):
        self.last = time.monotonic()


@contextlib.contextmanager
def _interrupt_flag():
    """A flag that Ctrl-C sets, so that the step in hand is finished first; a second Ctrl-C stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
