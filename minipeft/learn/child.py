"""The process in which one learner's file is graded: it reads a job from stdin, and leaves what came of it in a file.

    job: {"id", "path", "lessons", "variant", "seconds", "megabytes", "trace", "result", "token"}
    result: {"token", "fault": {"kind", "message", "where", "line"} or None, "tests": [...], "diagnosis": {"name", "text"} or None,
             "trace": see `trace.divergence`}

The token is not known to the learner's file, so that a result which is not the grader's is none. What the file prints is thrown
away.
"""

import json
import os
import sys
import tempfile
from pathlib import Path


def limit_memory(megabytes):
    """Let this process take so much more memory than it has now; where the system has no such limit, do nothing."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 1_000_000, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        pass


def fault(kind, message, path="", number=0, line=""):
    """Why a file cannot be graded at all."""
    return {"kind": kind, "message": message, "where": f"{os.path.basename(path)}:{number}" if number else os.path.basename(path),
            "line": line}


def judge(job):
    """What comes of a job, without the token."""
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
        return {"fault": fault("syntax", f"not Python: {error.msg}", path, error.lineno or 0, (error.text or "").strip()), "tests": [],
                "diagnosis": None}
    if found:
        number, said = found[0]
        return {"fault": fault("shortcut", said, path, number, text.splitlines()[number - 1].strip()), "tests": [], "diagnosis": None}
    return graded(exercise, path, job)


def graded(exercise, path, job):
    """Load the file and run the tests."""
    from .answers import NoAnswer, answer_in, load, mutants_of
    from .grader import YOURS, Candidate, diagnosed, grade, place_of

    wrong = [Candidate(m.name, m.answer, None, m.diagnosis) for m in mutants_of(exercise)]
    limit_memory(job["megabytes"])
    try:
        answer = answer_in(load(path), exercise, path)
    except BaseException as error:  # whatever a learner's file may do when it is read
        where, line = place_of(error, Candidate(YOURS, None, path))
        said = str(error) if isinstance(error, NoAnswer) else f"{type(error).__name__}: {error}".strip(": ")
        kind = "memory" if isinstance(error, MemoryError) else "load"
        return {"fault": {**fault(kind, said, path), "where": where, "line": line}, "tests": [], "diagnosis": None}
    told = grade(exercise, [Candidate(YOURS, answer, path), *wrong], job["variant"], job["seconds"])
    mine = told.pop(YOURS)
    if not mine:
        return {"fault": fault("untested", f"no test of {exercise.id} ran; the lesson's grader has none, or cannot be read", path), "tests": [],
                "diagnosis": None}
    known = None if all(each.passed for each in mine) else diagnosed(mine, told, {c.name: c for c in wrong})
    failed = next((each.name for each in mine if not each.passed), None)
    return {"fault": None, "tests": [each.as_dict() for each in mine],
            "diagnosis": known and {"name": known.name, "text": known.diagnosis},
            "trace": followed(exercise, Candidate(YOURS, answer, path), job, failed) if job.get("trace") and failed else None}


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
    out, sys.stdout, sys.stderr = sys.stdout, open(os.devnull, "w", encoding="utf-8"), open(os.devnull, "w", encoding="utf-8")
    try:
        judged = judge(job)
    except BaseException as error:
        judged = {"fault": fault("grader", f"the grader itself failed ({type(error).__name__}: {error})"), "tests": [], "diagnosis": None}
    sys.stdout = out
    with tempfile.NamedTemporaryFile("w", dir=result.parent, delete=False, encoding="utf-8") as file:
        json.dump({"token": token, **judged}, file)
    os.replace(file.name, result)
    os._exit(0)  # threads that a file has left behind do not keep the process


if __name__ == "__main__":
    main()
