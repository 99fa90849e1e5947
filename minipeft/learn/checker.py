"""Checks a learner's file: in a process of its own, with a limit of time and memory, whose word is only taken with its token."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from .child import fault

SECONDS, MEGABYTES = 10, 2000   # of one test, and beyond what Python and the package take
START = 20                      # seconds that Python and the package may take besides
COMPILING = 90                  # seconds for a kernel's first compilation


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
        return {"id": self.id, "passed": self.passed, "fault": self.fault, "tests": self.tests, "diagnosis": self.diagnosis, "trace": self.trace,
                "seconds": round(self.seconds, 3), "stage": self.stage}


STAGES = (("without the compiler", {"NUMBA_DISABLE_JIT": "1", "MINIPEFT_NUM_THREADS": "1"}),
          ("compiled, 1 thread", {"MINIPEFT_NUM_THREADS": "1"}), ("compiled, 2 threads", {"MINIPEFT_NUM_THREADS": "2"}))


def check(exercise, path, variant=0, progress=None, seconds=SECONDS, megabytes=MEGABYTES, trace=False):
    """The `Outcome` of a learner's file; of a kernel that of the first stage that failed.

    ``progress``: called with a line before a stage that takes long. ``trace``: of an answer that fails, look for the first step
    that departs from the solution.
    """
    path, started = Path(path), time.monotonic()
    if not path.is_file():
        return Outcome(exercise.id, fault("missing", f"there is no {path}; minipeft learn reset {exercise.id} makes it anew", str(path)))
    if not path.read_text(encoding="utf-8", errors="replace").strip():
        return Outcome(exercise.id, fault("empty", f"the file is empty; minipeft learn reset {exercise.id} makes it anew", str(path)))
    outcome = None
    for stage, environment in STAGES if exercise.kernel else (("", {}),):
        compiling = stage.startswith("compiled")
        if compiling and progress and stage.endswith("1 thread"):
            progress("compiling with Numba, which is outside the limit of time")
        outcome = _run(exercise, path, variant, COMPILING if compiling else seconds, megabytes, environment, trace)
        outcome.stage, outcome.seconds = stage, time.monotonic() - started
        if not outcome.passed:
            break
    return outcome


def _run(exercise, path, variant, seconds, megabytes, environment, trace):
    """One process."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="minipeft-check-") as folder:
        result = Path(folder) / "result.json"
        job = {"id": exercise.id, "path": str(path.resolve()), "lessons": str(exercise.lesson.folder.parent), "variant": variant,
               "seconds": seconds, "megabytes": megabytes, "trace": trace, "result": str(result), "token": token}
        process = subprocess.Popen([sys.executable, "-m", "minipeft.learn.child"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True, env=_environment(environment, folder))
        try:
            process.communicate(json.dumps(job).encode(), timeout=START + 2 * seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Outcome(exercise.id, fault("time", f"it ran longer than {seconds} s; is there a loop without an end?", str(path)))
        except BaseException:
            _kill(process)
            raise
        try:
            told = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        if told.get("token") != token:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
            return Outcome(exercise.id, fault("ended", f"the file ended the process before the grader was done ({how})", str(path)))
        return Outcome(exercise.id, told["fault"], told["tests"], told["diagnosis"], told.get("trace"))


def _environment(more, folder):
    """The environment of a process that grades."""
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, inherited])), "OPENBLAS_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}


def _kill(process):
    """End a process and what it has started."""
    try:
        os.killpg(process.pid, 9)
    except (AttributeError, OSError):
        process.kill()
    process.wait()
