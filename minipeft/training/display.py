"""The progress bar of a training run: loss, examples a second, time left, on standard error."""

import time
from datetime import timedelta

QUIET_SECONDS = 10  # between two lines about an evaluation, where there is no terminal


class ProgressBar:
    """Shows a run's progress: a live bar in a terminal; elsewhere one line for each epoch, and one every ten seconds while texts
    are evaluated.

    ``title`` is what stands before the bar; ``console`` a ``rich.console.Console``, by default standard error.
    """

    def __init__(self, title="training", console=None):
        self.title, self.console, self.bar = title, console, None
        self.training = self.evaluation = None  # the bar's tasks
        self.said = 0.0  # when the last line about an evaluation was printed

    def doing(self, words):
        """Something before the training is done, or goes on."""
        self._open()
        if self.bar is None:
            self._print(f"{self.title}: {words}")
        else:
            self.bar.console.print(f"{self.title}: {words}", markup=False, highlight=False, soft_wrap=True)

    def start(self, total, done):
        """Training of ``total`` steps begins, ``done`` of them are behind us."""
        self._open()
        self.average, self.examples, self.steps, self.left, self.started = None, 0, 0, total - done, time.monotonic()
        if self.bar is not None:
            self.training = self.bar.add_task(self.title, total=total, completed=done, words="loss -  - examples/s")
        elif done:
            self._print(f"{self.title}: going on after step {done} of {total}")

    def step(self, loss, examples):
        """One more step is done."""
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        self.examples, self.steps, self.left = self.examples + examples, self.steps + 1, self.left - 1
        if self.bar is not None:
            rate = f"{self.examples / self._seconds():.0f}"
            self.bar.update(self.training, advance=1, words=f"loss {self.average:.4f}  {rate} examples/s")

    def evaluating(self, done, total):
        """Of ``total`` texts ``done`` are evaluated; the first call is with 0, and the last with all. Training need not go on."""
        self._open()
        if self.bar is None:
            now = time.monotonic()
            if 0 < done < total and now - self.said >= QUIET_SECONDS:
                self._print(f"{self.title}: evaluating, {done} of {total} texts")
                self.said = now
            self.said = now if done == 0 else self.said
            return
        if self.evaluation is None:
            self.evaluation = self.bar.add_task(f"{self.title}: evaluating", total=total, words="texts")
        self.bar.update(self.evaluation, completed=done)
        if done == total:
            self.bar.remove_task(self.evaluation)
            self.evaluation = None
            if self.training is None:
                self.stop()

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
        """Training or an evaluation ended, well or not."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.training = self.evaluation = None

    def _open(self):
        """Make the console, and in a terminal the bar, where they are not there yet."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = self.console or Console(stderr=True)
        if self.console.is_terminal and self.bar is None:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                TextColumn("{task.fields[words]}"), TimeRemainingColumn(), TextColumn("left"),
                                console=self.console, transient=True)
            self.bar.start()

    def _seconds(self):
        return max(time.monotonic() - self.started, 1e-9)

    def _print(self, line):
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
