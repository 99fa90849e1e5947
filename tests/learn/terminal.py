"""A learner at a terminal: `minipeft learn` in a pseudo-terminal, keys sent to it, and what it shows."""

import os
import re
import select
import subprocess
import sys
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-B0-9]")


class Terminal:
    """A command in a terminal of 40 lines and 130 columns."""

    def __init__(self, arguments, folder, **environment):
        import fcntl
        import pty
        import termios

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-m", "minipeft", *arguments], cwd=folder,
                                        stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
                                        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "130", "LINES": "40",
                                             **environment})
        os.close(slave)
        self.seen, self.took = "", 0.0   # all that was shown since the last `wait`, and the seconds that this one took

    def send(self, keys):
        """Press keys."""
        os.write(self.master, keys.encode())

    def wait(self, text, seconds=60):
        """What was shown up to ``text``; the seconds it took are in ``took``. Raises AssertionError where it does not come."""
        return self.either(text, text, seconds)

    def either(self, one, other, seconds=60):
        """The same for whichever of two texts comes first."""
        started, text = time.monotonic(), one if one == other else f"{one} or {other}"
        while one not in self.seen and other not in self.seen:
            left = started + seconds - time.monotonic()
            assert left > 0, f"{text!r} did not come; shown was: {self.seen[-2000:]}"
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                try:
                    more = os.read(self.master, 65536)
                except OSError:
                    more = b""
                assert more, f"{text!r} did not come before the end; shown was: {self.seen[-2000:]}"
                self.seen += ESCAPES.sub("", more.decode("utf-8", "replace")).replace("\r\n", "\n")
        self.took = time.monotonic() - started
        end = min(self.seen.index(text) + len(text) for text in (one, other) if text in self.seen)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    def close(self):
        """End it, if it has not ended; returns the exit code."""
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        os.close(self.master)
        return code
