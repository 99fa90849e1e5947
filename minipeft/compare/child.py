"""A run in a process of its own, as a comparison starts it: what it says on standard output is for the comparison to read."""

import json
import os
import time
from pathlib import Path

from ..data import files
from .run import CHECKPOINT, RESULT, Run, execute


class Reports:
    """A display for another process: each call is a line of JSON on standard output, a step's at most a few times a second."""

    def __init__(self, every=0.5):
        self.every, self.last, self.total, self.done = every, 0.0, 0, 0

    def doing(self, words):
        self._say(doing=words)

    def start(self, total, done):
        self.total, self.done = total, done
        self._say(step=done)

    def step(self, loss, examples):
        self.done += 1
        if time.monotonic() - self.last >= self.every or self.done == self.total:
            self._say(step=self.done, loss=loss)

    def evaluated(self, epoch, scores):
        self._say(epoch=epoch, step=self.done, scores=scores)

    def evaluating(self, done, total):
        pass

    def stop(self):
        pass

    def _say(self, **what):
        self.last = time.monotonic()
        print(json.dumps({**what, "total": self.total}), flush=True)


def main(arguments):
    """A run in a process of its own, for a comparison: ``arguments`` are the file that describes it and its folder.

    What it says on standard output, a line of JSON each, is for the comparison to read: progress (see `Reports`) and a user's
    error, ``{"error"}``.
    """
    spec, out = files.read_json(arguments[0], "run description"), Path(arguments[1])
    notes = spec.pop("notes")
    resume = any((out / name).is_file() for name in (CHECKPOINT, RESULT))
    try:
        execute(Run(**spec), out, resume, notes=notes, display=Reports(), measured=True)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("MINIPEFT_DEBUG") == "1":
            raise
        print(json.dumps({"error": " ".join(str(error).split()) or type(error).__name__}), flush=True)
        return 2
    return 0
