"""The progress bar of a training run: loss, examples a second, time left, on standard error."""

import sys
import time


class ProgressBar:
    """Shows a run's progress: a live bar in a terminal, one line for each epoch elsewhere.

    ``title`` is what stands before the bar.
    """

    def __init__(self, title="training"):
        self.title, self.bar = title, None

    def start(self, total, done):
        """Training of ``total`` steps begins, ``done`` of them are behind us."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.average, self.examples, self.started = None, 0, time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s"),
                                TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=total, completed=done, loss="-", rate="-")
        elif done:
            print(f"{self.title}: going on after step {done} of {total}", file=sys.stderr)

    def step(self, loss, examples):
        """One more step is done."""
        self.average = loss if self.average is None else 0.95 * self.average + 0.05 * loss
        self.examples += examples
        if self.bar is not None:
            rate = self.examples / max(time.monotonic() - self.started, 1e-9)
            self.bar.update(self.task, advance=1, loss=f"{self.average:.4f}", rate=f"{rate:.0f}")

    def evaluated(self, epoch, scores):
        """An epoch ended with these scores on dev."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "score")
        rate = self.examples / max(time.monotonic() - self.started, 1e-9)
        line = f"{self.title}: epoch {epoch}  training loss {self.average or 0:.4f}  {rate:.0f} examples/s"
        print(line + (f"  dev: {shown}" if shown else ""), file=sys.stderr)

    def stop(self):
        """Training ended, well or not."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
