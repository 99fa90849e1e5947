"""Watch mode: on each save the file is checked again, and keys ask for a hint, the list, a trace, the solution.

A check runs in a thread, so that keys and saves are taken while it does; what came of an older text is thrown away.
"""

import contextlib
import os
import queue
import sys
import threading

from rich.console import Console

from . import screens
from .checker import check


@contextlib.contextmanager
def single_keys():
    """Inside this block keys come one at a time, without Enter; where stdin is no terminal nothing changes."""
    try:
        import termios
        import tty

        saved = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError):
        yield False
        return
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


class Watch:
    """The loop.

    Args:
        workspace: a `Workspace`. console: where the screens go.
    """

    def __init__(self, workspace, console=None):
        self.workspace, self.console = workspace, console or Console()
        self.events, self.stop = queue.Queue(), threading.Event()
        self.exercise, self.number = workspace.current(), 0   # the number of the check that counts
        self.tracing = self.giving_up = False                 # what the last key asked for

    # ---- what happens ----

    def run(self):
        """Until q, Ctrl-C or the end of stdin; returns 0."""
        if self.exercise is None:
            self.exercise = self.workspace.exercises[-1]
        with single_keys():
            threads = [threading.Thread(target=self._files, daemon=True), threading.Thread(target=self._keys, daemon=True)]
            for thread in threads:
                thread.start()
            self._check()
            try:
                while self._handle(*self.events.get()):
                    pass
            except KeyboardInterrupt:
                pass
            finally:
                self.stop.set()
        self.console.print("The next minipeft learn goes on from here.")
        return 0

    def _files(self):
        """Tell of saves."""
        from watchfiles import watch

        for changes in watch(self.workspace.folder, stop_event=self.stop, debounce=100, step=30, rust_timeout=500,
                             yield_on_timeout=False, raise_interrupt=False):
            self.events.put(("saved", {str(path) for _, path in changes}))

    def _keys(self):
        """Tell of keys."""
        while not self.stop.is_set():
            key = sys.stdin.read(1)
            self.events.put(("key", key))
            if not key:
                return

    def _check(self, trace=False):
        """Start a check of the exercise in hand."""
        self.number, self.tracing = self.number + 1, trace
        self._show(screens.message("checking …", screens.SOFT))
        threading.Thread(target=self._checked, args=(self.number, self.exercise, trace), daemon=True).start()

    def _checked(self, number, exercise, trace):
        """One check, in a thread of its own."""
        tell = lambda line: self.events.put(("progress", (number, line)))
        self.events.put(("outcome", (number, check(exercise, self.workspace.path(exercise), self.workspace.variant,
                                                   tell, trace=trace))))

    # ---- what is done about it ----

    def _handle(self, kind, value):
        """Act on an event; returns whether to go on."""
        if kind == "saved" and str(self.workspace.path(self.exercise).resolve()) in {_real(path) for path in value}:
            self._check()
        elif kind == "progress" and value[0] == self.number:
            self._show(screens.message(value[1] + " …", screens.SOFT))
        elif kind == "outcome" and value[0] == self.number:
            self._came(value[1])
        elif kind == "key":
            return self._key(value)
        return True

    def _came(self, outcome):
        """Show what came of a check."""
        if self.tracing:
            screen = screens.outcome_screen if outcome.fault else screens.trace_screen
            self._show(screen(outcome, self.exercise))
            return
        self.workspace.note(self.exercise, outcome)
        self._show(screens.outcome_screen(outcome, self.exercise, self.workspace, self.workspace.path(self.exercise)))
        if outcome.passed and self.workspace.current() is None:
            self._print(screens.message("All exercises are solved.", screens.GOOD))
        elif outcome.passed:
            self._print(screens.message("n goes on to the next.", screens.SOFT))

    def _key(self, key):
        """Act on a key; returns whether to go on."""
        if key in ("q", "", "\x04"):
            return False
        try:
            if key == "n":
                self._next()
            elif key == "h":
                number, text = self.workspace.hint(self.exercise)
                self._show(screens.hint_screen(self.exercise, number, len(self.exercise.lesson.hints()[self.exercise.id]), text))
            elif key == "l":
                self._show(screens.list_screen(self.workspace))
            elif key == "t":
                self._check(trace=True)
            elif key == "s":
                self._show(screens.solution_screen(self.exercise, self.workspace.solution(self.exercise, self.giving_up)))
            elif key == "x":
                kept = self.workspace.write_stub(self.exercise)
                self._show(screens.message("the stub is there again" + (f"; what you wrote is in {kept}" if kept else "")))
            self.giving_up = False
        except ValueError as error:
            self.giving_up = "--give-up" in str(error)
            self._show(screens.message("It has not passed; s again gives up and shows the solution." if self.giving_up
                                       else str(error)))
        return True

    def _next(self):
        """Go on to the next exercise that is not solved, behind this one first."""
        exercises = self.workspace.exercises
        place = exercises.index(self.exercise)
        for exercise in [*exercises[place + 1:], *exercises[:place]]:
            if not self.workspace.solved(exercise):
                self.exercise = exercise
                self._check()
                return
        self._show(screens.message("There is no other that is still to be solved.", screens.GOOD))

    def _show(self, screen):
        """One screen."""
        if self.console.is_terminal:
            self.console.clear()
        self.console.print(screen)
        self.console.print()
        self.console.print(screens.KEYS, style=screens.SOFT, highlight=False)

    def _print(self, line):
        """A line below."""
        self.console.print(line)


def _real(path):
    """A path without links."""
    return os.path.realpath(path)
