"""What a comparison shows while it runs, on standard error: each run as it ends, the runs in hand, and the time that is left."""

import threading
import time
from datetime import timedelta

QUIET_SECONDS = 10  # between two lines about runs in hand, where there is no terminal
SETTLED = 0.5       # of a run: before so much is done the kernels' compilation is most of the time that went by


class Board:
    """The progress of ``total`` runs.

    In a terminal there is a bar for each run in hand and one for all; elsewhere a line for each run that ends, and one every ten
    seconds about the one that speaks. ``console``: a ``rich.console.Console``, by default standard error.
    """

    def __init__(self, total, console=None):
        from rich.console import Console

        self.console, self.total = console or Console(stderr=True), total
        self.done, self.shares, self.numbers, self.tasks = 0, {}, {}, {}  # shares: of each run in hand that is done
        self.started = self.said = time.monotonic()
        self.gained, self.lock, self.bar = 0.0, threading.RLock(), None

    def open(self):
        """Begin."""
        from rich.progress import BarColumn, Progress, TextColumn

        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"),
                                console=self.console, transient=True)
            self.whole = self.bar.add_task("all runs", total=self.total, words="")
            self.bar.start()
        return self

    __enter__ = open

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def name(self, job):
        """What a run is called: its number and its label."""
        return f"[{self.numbers.setdefault(job.folder, len(self.numbers) + 1)}/{self.total}] {job.label}"

    def before(self, job):
        """A run that was finished before."""
        with self.lock:
            self.done += 1
            self._print(f"{self.name(job)}: finished before")

    def listen(self, job, said):
        """A run in hand says how far it is, {"step", "total", "loss" or "scores"}, or in words what it is ``doing``."""
        with self.lock:
            share = said.get("step", 0) / max(said.get("total", 1), 1)
            self.gained += share - self.shares.get(job.folder, 0.0)
            self.shares[job.folder] = share
            words = f"step {said.get('step', 0)} of {said.get('total', 0)}"
            words += f", loss {said['loss']:.4f}" if said.get("loss") is not None else ""
            words = said.get("doing", words)
            if self.bar is not None:
                if job.folder not in self.tasks:
                    self.tasks[job.folder] = self.bar.add_task(job.label, total=1.0, words=words)
                self.bar.update(self.tasks[job.folder], completed=share, words=words)
                self.bar.update(self.whole, completed=self.done + sum(self.shares.values()), words=self.left())
            elif time.monotonic() - self.said >= QUIET_SECONDS:
                self._print(f"{self.name(job)}: {words}; {self.left()}")

    def finished(self, outcome):
        """A run ended."""
        with self.lock:
            job, result = outcome.job, outcome.result
            self.gained += 1 - self.shares.pop(job.folder, 0.0)
            self.done += 1
            if self.bar is not None and job.folder in self.tasks:
                self.bar.remove_task(self.tasks.pop(job.folder))
            if result is None:
                what = f"failed: {outcome.reason}"
            elif result["score"] is None:
                what = f"{result['seconds']:.1f} s"
            else:
                what = f"{result['metric']} {result['score']:.4f} on {result['split']}, {result['seconds']:.1f} s"
            self._print(f"{self.name(job)}: {what}; {self.left()}")

    def left(self):
        """The time left, in words: what is still to do at the rate so far."""
        remaining = self.total - self.done - sum(self.shares.values())
        seconds = (time.monotonic() - self.started) * remaining / self.gained if self.gained >= SETTLED else None
        return "time left not known yet" if seconds is None else f"{timedelta(seconds=round(seconds))} left"

    def _print(self, line):
        self.said = time.monotonic()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
