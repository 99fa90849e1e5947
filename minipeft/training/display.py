"""The progress bar of a training run: loss, examples a second, time left, on standard error."""

import time
from datetime import timedelta


class ProgressBar:
    """Shows a run's progress: a live bar in a terminal, one line for each epoch elsewhere.

    ``title`` is what stands before the bar; ``console`` a ``rich.console.Console``, by default standard error.
    """

    def __init__(self, title="training", console=None):
        self.title, self.console, self.bar = title, console, None

    def start(self, total, done):
        """Training of ``total`` steps begins, ``done`` of them are behind us."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = self.console or Console(stderr=True)
        self.average, self.examples, self.steps, self.left, self.started = None, 0, 0, total - done, time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s"),
                                TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=total, completed=done, loss="-", rate="-")
        elif done:
            self._print(f"{self.title}: going on after step {done} of {total}")

    def step(self, loss, examples):
        """One more step is done."""
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        self.examples, self.steps, self.left = self.examples + examples, self.steps + 1, self.left - 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, loss=f"{self.average:.4f}", rate=f"{self.examples / self._seconds():.0f}")

    def evaluated(self, epoch, scores):
        """An epoch ended with these scores on dev."""
        parts = [f"{self.title}: epoch {epoch}"]
        if self.steps:  # none yet where a resumed run begins with an evaluation
            left = timedelta(seconds=round(self.left * self._seconds() / self.steps))
            parts += [f"training loss {self.average:.4f}", f"{self.examples / self._seconds():.0f} examples/s", f"{left} left"]
        if scores:
            parts.append("dev: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "score"))
        self._print("  ".join(parts))

    def stop(self):
        """Training ended, well or not."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _seconds(self):
        return max(time.monotonic() - self.started, 1e-9)

    def _print(self, line):
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
