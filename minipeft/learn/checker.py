"""Checks a learner's file: in a process of its own, with a limit of time and memory, whose word is only taken with its token."""

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .child import ENDLESS, fault

SECONDS, MEGABYTES = 10, 2000   # for reading the file and for each test; memory beyond what Python and the package take
# seconds after which a test that its own clock did not end is ended from outside: compiled code is not
GRACE = 2
START = 60                      # seconds that Python, the package and the grader may take in one go
COMPILING = 90                  # seconds for all that Numba compiles, during which the clock of a test stands still


@dataclass
class Outcome:
    """What came of a check. ``fault``: why the file could not be graded, or None; ``tests``: see `grader.Told.as_dict`."""

    id: str
    fault: dict = None
    tests: list = field(default_factory=list)
    diagnosis: dict = None
    trace: dict = None
    seconds: float = 0.0
    stage: str = ""   # of a kernel: "without the compiler", "compiled, 1 thread", "compiled, 2 threads"

    @property
    def passed(self):
        """Whether everything held."""
        return self.fault is None and bool(self.tests) and all(test["passed"] for test in self.tests)

    @property
    def unwritten(self):
        """Whether the file is still the stub."""
        return any(test["kind"] == "unwritten" for test in self.tests)

    @property
    def failed(self):
        """The first test that did not hold, None where there is none."""
        return next((test for test in self.tests if not test["passed"]), None)

    def as_dict(self):
        """What `minipeft learn check --json` prints."""
        return {"id": self.id, "passed": self.passed, "fault": self.fault, "tests": self.tests, "diagnosis": self.diagnosis,
                "trace": self.trace, "seconds": round(self.seconds, 3), "stage": self.stage}


STAGES = (("without the compiler", {"NUMBA_DISABLE_JIT": "1", "MINIPEFT_NUM_THREADS": "1"}),
          ("compiled, 1 thread", {"MINIPEFT_NUM_THREADS": "1"}), ("compiled, 2 threads", {"MINIPEFT_NUM_THREADS": "2"}))


def check(exercise, path, variant=0, progress=None, seconds=SECONDS, megabytes=MEGABYTES, trace=False):
    """The `Outcome` of a learner's file; of a kernel that of the first stage that failed.

    ``progress``: called with a line before what takes long. ``trace``: of an answer that fails, look for the first step
    that departs from the solution.
    """
    path, started = Path(path), time.monotonic()
    if not path.is_file():
        return Outcome(exercise.id,
                       fault("missing", f"there is no {path}; minipeft learn reset {exercise.id} makes it anew", str(path)))
    if not path.read_text(encoding="utf-8", errors="replace").strip():
        return Outcome(exercise.id,
                       fault("empty", f"the file is empty; minipeft learn reset {exercise.id} makes it anew", str(path)))
    outcome, said = None, []

    def compiling():
        if progress and not said:
            said.append(progress("compiling with Numba, which is outside the limit of time"))

    for stage, environment in STAGES if exercise.kernel else (("", {}),):
        job = {"variant": variant, "seconds": seconds, "megabytes": megabytes,
               "compiled": stage.startswith("compiled"), "trace": trace}
        outcome = _run(exercise, path, job, environment, compiling)
        outcome.stage, outcome.seconds = stage, time.monotonic() - started
        if not outcome.passed:
            break
    return outcome


def _run(exercise, path, job, environment, compiling):
    """One process."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="minipeft-check-") as folder:
        result = Path(folder) / "result.json"
        whole = {**job, "id": exercise.id, "path": str(path.resolve()), "lessons": str(exercise.lesson.folder.parent),
                 "result": str(result), "token": token}
        process = subprocess.Popen([sys.executable, "-m", "minipeft.learn.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True, env=environment_with(
                                       PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONDONTWRITEBYTECODE="1", **environment))
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(whole).encode())
            late = _late(process, job["seconds"], compiling)
        except BaseException:
            _kill(process)
            raise
        if late:
            _kill(process)
            return Outcome(exercise.id, fault("time", late, str(path)))
        try:
            told = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        if told.get("token") != token:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
            return Outcome(exercise.id,
                           fault("ended", f"the file ended the process before the grader was done ({how})", str(path)))
        return Outcome(exercise.id, told["fault"], told["tests"], told["diagnosis"], told.get("trace"))


def _late(process, seconds, compiling):
    """Wait until a process ends; returns None, or in words what it took too long for.
    ``compiling``: called when Numba compiles."""
    limits = {"grading": (START, f"minipeft itself took longer than {START} s; is the machine busy? check again"),
              "loading": (seconds, f"reading the file took longer than {seconds:g} s; "
                                   "is there a loop without an end at its top level?"),
              "testing": (seconds + GRACE, f"it ran longer than {seconds:g} s; {ENDLESS}"),
              "tracing": (START, f"following it step by step took longer than {START} s; minipeft learn check does without"),
              "compiling": (COMPILING, f"Numba compiled for longer than {COMPILING} s; what you wrote may be too long for it")}
    words, (left, said), kept = queue.Queue(), limits["grading"], None  # kept: what is left of what compiling interrupts
    threading.Thread(target=_listen, args=(process, words), daemon=True).start()
    while True:
        since = time.monotonic()
        try:
            word = words.get(timeout=max(left, 0))
        except queue.Empty:
            return said
        if word is None:
            return None
        rest = left - (time.monotonic() - since), said
        if word not in (*limits, "compiled"):  # somebody else's, as a sitecustomize that prints
            left = rest[0]
            continue
        if word == "compiling":
            compiling()
            kept = rest
        elif word == "compiled":
            limits["compiling"] = rest
        left, said = kept if word == "compiled" else limits[word]


def _listen(process, words):
    """Hand on what a process says; at its end None."""
    with process.stdout:
        for line in process.stdout:
            words.put(line.decode(errors="replace").strip())
    process.wait()
    words.put(None)


def environment_with(**more):
    """The environment of a process that imports this package, with one thread for BLAS."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **more}


def _kill(process):
    """End a process and what it has started."""
    try:
        os.killpg(process.pid, 9)
    except (AttributeError, OSError):
        process.kill()
    process.wait()
