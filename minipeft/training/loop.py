"""The training loop: batches in, gradients, one step after another, and checkpoints from which the very same run goes on."""

import contextlib
import math
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..autograd import Tensor, no_grad
from ..data.files import remove_unfinished
from ..nn import Module, Wrapper
from .checkpoint import load_checkpoint, save_checkpoint
from .memory import peak_mb
from .optim import OPTIMIZERS, decay_groups, gradient_norm
from .schedules import SCHEDULES, factor

ORDER, DROPOUT, HOOKS = 0, 1, 2  # what a generator made of (seed, purpose, number) is for


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after a whole step; its checkpoint is written."""


@dataclass
class Settings:
    """How to train.

    ``lr`` learning rate at its highest; ``warmup`` the share of the steps in which it rises; ``accumulate`` how many
    batches make one step; ``clip`` the largest allowed gradient norm (0: none); ``max_steps`` ends early (None: after
    the epochs); ``checkpoint_seconds`` between checkpoints (one is also written at the start and after each epoch).
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
                ("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1"),
                ("checkpoint_seconds", self.checkpoint_seconds >= 0, "0 or more")):
            if not good:
                raise ValueError(f"{name}: expected {words}, got {getattr(self, name)!r}")


class Silent:
    """A progress display that shows nothing; others have the same methods."""

    def doing(self, words):
        """Something before the training is done, or goes on."""

    def start(self, total, done):
        """Training of ``total`` steps begins, ``done`` of them are behind us."""

    def step(self, loss, examples):
        """One more step is done."""

    def evaluated(self, epoch, scores):
        """An epoch ended with these scores on dev."""

    def stop(self):
        """Training ended, well or not."""


# ---- the loop --------------------------------------------------------------------------------------------------


def fit(model, parameters, work, settings, checkpoint=None, resume=False, display=None, hooks=(), lr_scale=None):
    """Train ``parameters`` of ``model`` on ``work``.

    Args:
        model: a model; parameters: {path: Parameter} to train.
        work: a `Classification`, `LanguageModelling` or `Sequence2Sequence` (or anything with its methods).
        settings: a `Settings`.
        checkpoint: file to write checkpoints to, or None; its folder must exist. resume: go on from that file if it
            exists (with the same settings and work); otherwise it is replaced.
        display: a progress display.
        hooks: `Hook`s, which may add to the loss and act around each step.
        lr_scale: function from a parameter's path to what its learning rate is multiplied by; default: 1 for all.

    Returns:
        History: ``{"step", "losses", "evaluations", "step_ms", "seconds", "peak_mb"}``; the last is the most memory of this
        process and of those that it goes on from, as far as their checkpoints tell.

    Raises:
        ValueError: the loss, a gradient or a weight is not finite; the message says at which step and which tensor came
            first. Also a checkpoint that is damaged, or of other parameters.
        OSError: a checkpoint cannot be written.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    display, run = display or Silent(), _Run(model, parameters, work, settings, checkpoint, hooks, lr_scale)
    going_on = resume and checkpoint is not None and Path(checkpoint).is_file()
    if going_on:
        run.history |= load_checkpoint(checkpoint, parameters, run.optimizer, hooks)
    clock = _Clock(run.history["seconds"], settings.checkpoint_seconds)
    display.start(run.total, run.history["step"])
    try:
        with _interrupt_flag() as interrupted, np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # see _diverged
            if not going_on:
                run.save(clock)
            while run.evaluation_due() or run.history["step"] < run.total:
                evaluate = run.evaluation_due()
                if evaluate:
                    run.evaluate(display)
                else:
                    run.step(display)
                stop = interrupted.is_set()
                if stop or evaluate or clock.due():
                    run.save(clock)
                if stop:
                    raise Interrupted(f"stopped after step {run.history['step']} of {run.total}")
    finally:
        display.stop()
        model.eval()
    durations = run.history["durations"]
    counted = durations[min(3, len(durations) // 2):]
    return {**run.history, "step_ms": 1e3 * float(np.median(counted)) if counted else 0.0, "seconds": clock.total()}


class _Run:
    """What `fit` works on, and what it does with it: one step, one evaluation, one checkpoint."""

    def __init__(self, model, parameters, work, settings, checkpoint, hooks, lr_scale):
        self.model, self.parameters, self.work, self.settings, self.checkpoint = model, parameters, work, settings, checkpoint
        self.hooks = hooks
        groups = decay_groups(parameters, settings.weight_decay, lr_scale)
        self.optimizer = OPTIMIZERS[settings.optimizer](groups, lr=settings.lr)
        self.history = {"step": 0, "losses": [], "evaluations": [], "durations": [], "seconds": 0.0, "peak_mb": 0.0}
        self.per_epoch = -(-work.number_of_batches() // settings.accumulate)
        self.total = min(settings.epochs * self.per_epoch, settings.max_steps or math.inf)
        self.epoch, self.order = None, None  # the epoch whose batches were drawn, and these
        if checkpoint is not None:
            remove_unfinished(Path(checkpoint).parent)

    def evaluation_due(self):
        """Whether an epoch, or the run, has ended and its evaluation is still to come (a resumed run may begin with it)."""
        step, done = self.history["step"], self.history["evaluations"]
        ended = step > 0 and (step % self.per_epoch == 0 or step == self.total)
        return ended and not (done and done[-1]["step"] == step)

    def evaluate(self, display):
        """Evaluate on dev at the end of an epoch."""
        step = self.history["step"]
        _check_weights(self.parameters, step, self.checkpoint)
        epoch, scores = -(-step // self.per_epoch), self.work.evaluate(self.model.eval(), "dev")
        self.history["evaluations"].append({"epoch": epoch, "step": step, **scores})
        display.evaluated(epoch, scores)

    def step(self, display):
        """One optimizer step on the next group of batches."""
        settings, step = self.settings, self.history["step"]
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.work.training_batches(np.random.default_rng([settings.seed, ORDER, epoch]))
        group = [self.work.collate(ids) for ids in self.order[i * settings.accumulate:(i + 1) * settings.accumulate]]
        self.optimizer.lr = settings.lr * factor(settings.schedule, step, self.total, round(settings.warmup * self.total))
        start = time.perf_counter()
        for number, hook in enumerate(self.hooks):
            hook.before_step(step, self.total, epoch, np.random.default_rng([settings.seed, HOOKS, step, number]))
        loss = self._update(group, step)
        for hook in self.hooks:
            hook.after_step(step, self.total)
        self.history["durations"].append(time.perf_counter() - start)
        self.history["losses"].append(loss)
        self.history["step"] += 1
        display.step(loss, sum(batch.size for batch in group))

    def save(self, clock):
        """Write a checkpoint, of good weights only."""
        _check_weights(self.parameters, self.history["step"], self.checkpoint)
        self.history |= {"seconds": clock.total(), "peak_mb": max(self.history["peak_mb"], peak_mb())}
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.parameters, self.optimizer, self.history, self.hooks)
        clock.saved()

    def _update(self, group, step):
        """Gradients of a group of batches and one step of the optimizer; returns the loss, penalties included."""
        model, parameters, work, settings = self.model, self.parameters, self.work, self.settings
        model.train(np.random.default_rng([settings.seed, DROPOUT, step]))
        self.optimizer.zero_grad()
        weights = [work.weight(batch) for batch in group]
        loss = 0.0
        for batch, weight in zip(group, weights):
            share = weight / max(sum(weights), 1)
            part = self._objective(batch)
            value = part.item()
            if not math.isfinite(value):
                where = first_bad_tensor(model, parameters, lambda bad=batch: work.loss(model, bad))
                _diverged(f"the loss is {value}", where, step + 1, self.checkpoint)
            part.backward(np.asarray(share, part.dtype))
            loss += value * share
        for hook in self.hooks:
            hook.after_backward(step, self.total)
        norm = gradient_norm(parameters.values())
        if not math.isfinite(norm):
            _diverged(f"the gradient's norm is {norm}", f"the gradient of {_first_bad_gradient(parameters)}", step + 1,
                      self.checkpoint)
        self.optimizer.step(min(1.0, settings.clip / norm) if settings.clip and norm > 0 else 1.0)
        return loss

    def _objective(self, batch):
        """The loss of a batch and the hooks' penalties, a Tensor."""
        loss = self.work.loss(self.model, batch)
        for penalty in filter(lambda term: term is not None, (hook.penalty() for hook in self.hooks)):
            loss = loss + penalty
        return loss


def _diverged(what, where, step, checkpoint):
    """The one line about NaN and infinity, in place of NumPy's warnings."""
    kept = f"; the last good checkpoint is kept: {checkpoint}" if checkpoint is not None else ""
    raise ValueError(f"training diverged at step {step}: {what}; first bad: {where}{kept}. "
                     "Try a smaller --lr, or a longer warm-up")


def _check_weights(parameters, step, checkpoint):
    """Refuse to evaluate or to keep weights that ``step`` (from 1; 0: before training) has left with NaN or infinity."""
    bad = next((path for path, p in parameters.items() if not np.isfinite(p.data).all()), None)
    if bad is not None and step == 0:
        raise ValueError(f"the parameter {bad} holds NaN or infinity before training; nothing was trained")
    if bad is not None:
        _diverged("the weights are no longer finite", f"the parameter {bad}", step, checkpoint)


def _first_bad_gradient(parameters):
    """The first parameter whose gradient is not finite; where all are, and only their squares are too large, the largest's."""
    largest = {path: float(np.abs(p.grad).max(initial=0)) for path, p in parameters.items() if p.grad is not None}
    return next((path for path, value in largest.items() if not math.isfinite(value)), None) or max(largest, key=largest.get)


def first_bad_tensor(model, parameters, forward):
    """Name of the first tensor that is not finite: a parameter, else the first output in the order of the forward pass."""
    for path, parameter in list(parameters.items()) + list(model.named_parameters()):
        if not np.isfinite(parameter.data).all():
            return f"the parameter {path}"
    names, bad, originals = _module_names(model), [], {kind: kind.__call__ for kind in (Module, Wrapper)}

    def watched(kind):
        def call(module, *args, **kwargs):
            out = originals[kind](module, *args, **kwargs)
            if not bad and isinstance(out, Tensor) and not np.isfinite(out.data).all():
                bad.append(names.get(id(module), type(module).__name__))
            return out
        return call

    try:
        for kind in originals:
            kind.__call__ = watched(kind)
        with no_grad():
            forward()
    finally:
        for kind, original in originals.items():
            kind.__call__ = original
    return f"the output of {bad[0]}" if bad else "the loss itself"


def _module_names(model):
    """{id: path} of every module; a wrapper, and what it brings along, has the path of what it wraps."""
    names = {}
    for path, _ in reversed(list(model.named_modules())):  # the inner ones first
        for module in (model.get(path) if path else model).modules():
            names.setdefault(id(module), path or "model")
    return names


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
