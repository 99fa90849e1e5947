"""The process in which one learner's file is graded: it reads a job from stdin, and leaves what came of it in a file.

    job: {"id", "path", "lessons", "variant", "seconds", "megabytes", "compiled", "trace", "result", "token"}
    result: {"token", "fault": {"kind", "message", "where", "line"} or None, "tests": [...],
             "diagnosis": {"name", "text"} or None, "trace": see `trace.divergence`}

The token is not known to the learner's file, so that a result which is not the grader's is none. What the file prints is thrown
away. On stdout stands what the process is about to do, a word in a line, by which whoever waits knows how long that may take:
"loading" the file, "testing" it, "tracing" it, "compiling", "compiled", and "grading" for what is the grader's own business.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

ENDLESS, TOO_LARGE = "is there a loop without an end?", "it took more memory than there is for it"


def memory():
    """(the module that limits memory, bytes of address space that this process has now); None where the system has not both."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            return resource, int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def limit_memory(megabytes):
    """Let this process take so much more memory than it has now; where the system has no such limit, do nothing."""
    found = memory()
    if found:
        resource, now = found
        with contextlib.suppress(OSError, ValueError):  # where less is allowed already
            resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 1_000_000, resource.RLIM_INFINITY))


def pause(say):
    """What Numba tells when it begins to compile and when it is done: the clock of the test that runs stands still in between."""
    from numba.core import event

    class Pause(event.Listener):
        depth, left = 0, 0.0  # compilations within each other; seconds that the test still has

        def on_start(self, _):
            self.depth += 1
            if self.depth == 1:
                say("compiling")
                self.left = alarm(0)

        def on_end(self, _):
            self.depth -= 1
            if self.depth == 0:
                alarm(self.left)
                say("compiled")

    return event.install_listener("numba:compile", Pause())


def alarm(seconds):
    """Set the clock by which pytest's timeout ends a test, 0 for none; returns the seconds that it had.
    Where there is none, 0."""
    return signal.setitimer(signal.ITIMER_REAL, seconds)[0] if hasattr(signal, "setitimer") else 0


def fault(kind, message, path="", number=0, line=""):
    """Why a file cannot be graded at all."""
    return {"kind": kind, "message": message, "where": f"{os.path.basename(path)}:{number}" if number else os.path.basename(path),
            "line": line}


def judge(job, say):
    """What comes of a job, without the token. ``say``: called with a word before each part of the work."""
    from .course import Course
    from .shortcuts import shortcuts

    exercise, path = Course(job["lessons"]).exercise(job["id"]), job["path"]
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return {"fault": fault("syntax", "not UTF-8 text; save the file as UTF-8", path), "tests": [], "diagnosis": None}
    try:
        found = shortcuts(exercise, text)
    except SyntaxError as error:
        return {"fault": fault("syntax", f"not Python: {error.msg}", path, error.lineno or 0, (error.text or "").strip()),
                "tests": [], "diagnosis": None}
    if found:
        number, said = found[0]
        return {"fault": fault("shortcut", said, path, number, text.splitlines()[number - 1].strip()),
                "tests": [], "diagnosis": None}
    from .answers import hidden

    with hidden(exercise, path), pause(say):
        return graded(exercise, path, job, say)


def graded(exercise, path, job, say):
    """Load the file and run the tests."""
    from .answers import NoAnswer, answer_in, load, mutants_of
    from .grader import YOURS, Candidate, diagnosed, grade, place_of
    from .shortcuts import Shortcut, attribute

    wrong = [Candidate(m.name, m.answer, None, m.diagnosis) for m in mutants_of(exercise)]
    limit_memory(job["megabytes"])
    say("loading")
    try:
        answer = answer_in(load(path, given={"getattr": attribute}), exercise, path)
    except BaseException as error:  # whatever a learner's file may do when it is read
        where, line = place_of(error, Candidate(YOURS, None, path))
        said = str(error) if isinstance(error, (NoAnswer, Shortcut)) else f"{type(error).__name__}: {error}".strip(": ")
        if isinstance(error, MemoryError):
            said = TOO_LARGE
        kind = "memory" if isinstance(error, MemoryError) else "load"
        return {"fault": {**fault(kind, said, path), "where": where, "line": line}, "tests": [], "diagnosis": None}
    say("grading")
    if job["compiled"] and not compiled(answer):
        return {"fault": fault("load", f"{exercise.name} is not compiled; write @jit above it, as in the stub", path),
                "tests": [], "diagnosis": None}

    @contextlib.contextmanager
    def test():
        say("testing")
        yield
        say("grading")

    told = grade(exercise, [Candidate(YOURS, answer, path), *wrong], job["variant"], job["seconds"], around=test)
    mine = told.pop(YOURS)
    if not mine:
        return {"fault": fault("untested",
                               f"no test of {exercise.id} ran; the lesson's grader has none, or cannot be read", path),
                "tests": [], "diagnosis": None}
    known = None if all(each.passed for each in mine) else diagnosed(mine, told, {c.name: c for c in wrong})
    failed, trace = next((each for each in mine if not each.passed), None), None
    if job["trace"] and failed and failed.kind != "time":
        say("tracing")
        trace = followed(exercise, Candidate(YOURS, answer, path), job, failed.name)
    return {"fault": None, "tests": [each.as_dict() for each in mine],
            "diagnosis": known and {"name": known.name, "text": known.diagnosis}, "trace": trace}


def compiled(answer):
    """Whether Numba compiles a function, and to machine code that does without Python."""
    from numba.core.registry import CPUDispatcher

    return isinstance(answer, CPUDispatcher) and not answer.targetoptions.get("forceobj")


def followed(exercise, mine, job, name):
    """The first step at which an answer departs from the solution, in the test with this name."""
    from .answers import answer_in, load
    from .grader import Candidate, grade
    from .stubs import solution_of
    from .trace import Record, divergence

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "solution.py"
        path.write_text(solution_of(exercise), encoding="utf-8")
        solution, records = Candidate("solution", answer_in(load(path), exercise, path), path), []
        for candidate in (mine, solution):
            record = Record(candidate.path)
            grade(exercise, [candidate], job["variant"], None, name, record.writing)
            records.append(record)
        return divergence(*records)


def main():
    """Read the job, judge, write the result."""
    job = json.load(sys.stdin)
    token, result = job.pop("token"), Path(job.pop("result"))
    sys.stdin.close()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout, sys.stderr = open(os.devnull, "w", encoding="utf-8"), open(os.devnull, "w", encoding="utf-8")
    try:
        judged = judge(job, lambda word: print(word, file=out, flush=True))
    except BaseException as error:
        judged = {"fault": fault("grader", f"the grader itself failed ({type(error).__name__}: {error})"),
                  "tests": [], "diagnosis": None}
    with tempfile.NamedTemporaryFile("w", dir=result.parent, delete=False, encoding="utf-8") as file:
        json.dump({"token": token, **judged}, file)
    os.replace(file.name, result)
    os._exit(0)  # threads that a file has left behind do not keep the process


if __name__ == "__main__":
    main()
