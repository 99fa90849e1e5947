"""The grader: runs a lesson's tests of one exercise on answers, in this process, and tells what came of each.

It is called by `child`, in a process that was started for one learner's file, and by the tests of the course, which grade many
answers in one process. A learner's answer that fails is set beside the wrong answers that are known: where it failed the same
claims with the same values, their diagnosis is the learner's.
"""

import contextlib
import io
import linecache
import os
import sys
import traceback
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from .answers import built, grafted, keeping
from .child import ENDLESS, TOO_LARGE
from .claims import SEEN, Broken, array_of, describe
from .course import GRADE
from .shortcuts import Shortcut

YOURS = "yours"
SHOWN = 40  # entries of an array that are told


@dataclass
class Candidate:
    """An answer that is graded. ``path``: its file, for the lines that an error names; ``diagnosis``: that of a wrong answer."""

    name: str
    answer: object
    path: object = None
    diagnosis: str = ""


@dataclass
class Told:
    """What a test told of an answer: `as_dict` is what the screen needs."""

    name: str
    claim: str
    passed: bool = True
    kind: str = ""        # "claim", "error", "unwritten", "shortcut", "time", "memory"
    message: str = ""
    where: str = ""       # file:line in the answer's own file
    line: str = ""        # that line
    what: str = ""
    yours: object = None
    expected: object = None
    largest: object = None
    seen: list = field(default_factory=list)

    def as_dict(self):
        """What JSON can hold."""
        out = {name: getattr(self, name)
               for name in ("name", "claim", "passed", "kind", "message", "where", "line", "what", "largest")}
        return out | {"yours": shown(self.yours), "expected": shown(self.expected)}

    def like(self, other):
        """Whether another answer came to the same: to the same values, or to the same error."""
        if self.passed != other.passed or self.kind != other.kind or len(self.seen) != len(other.seen):
            return False
        if self.kind == "error" and self.message != other.message:
            return False
        return all(_equal(a, b) for a, b in zip(self.seen, other.seen))


def _equal(a, b):
    """Whether two things that `same` saw are the same up to rounding."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b) and a == b
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return False
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-7, equal_nan=True)) if a.dtype.kind == "f" else bool((a == b).all())


def shown(value):
    """A value as the screen has it: {"about", "values"}; None for nothing."""
    if value is None or isinstance(value, str):
        return value and {"about": value, "values": ""}
    array = array_of(value)
    text = np.array2string(array, precision=4, suppress_small=True, threshold=SHOWN, edgeitems=3) if array.ndim else ""
    return {"about": describe(array), "values": text}


class Stopped(Exception):
    """An answer tried to end the program."""


class Plugin:
    """Gives tests their fixtures, keeps to one exercise, and writes down what they tell."""

    def __init__(self, exercise, candidates, variant=0, only=None, around=contextlib.nullcontext, seconds=None):
        self.exercise, self.candidates, self.variant = exercise, {c.name: c for c in candidates}, variant
        self.only, self.around, self.seconds = only, around, seconds
        self.told = {name: [] for name in self.candidates}
        self.planned = dict.fromkeys(self.candidates, 0)  # tests that must tell something, or the answer has not passed

    # ---- what tests take ----

    @pytest.fixture
    def rng(self, request):
        """A generator that is the same for every answer, and another for each student's variant."""
        name = request.node.originalname + str(sorted((k, repr(v)) for k, v in request.node.callspec.params.items()
                                                      if k != "candidate"))
        return np.random.default_rng([self.variant, zlib.crc32(name.encode())])

    @pytest.fixture
    def impl(self, candidate):
        """The answer: the function, or the class with the method in its place."""
        return built(self.exercise, keeping(self.exercise, self.candidates[candidate].answer))

    @pytest.fixture
    def graft(self, candidate):
        """``with graft():`` the package itself uses the answer."""
        return lambda: grafted(self.exercise, self.candidates[candidate].answer)

    # ---- pytest's hooks ----

    def pytest_configure(self, config):
        """Make the mark known."""
        config.addinivalue_line("markers", "exercise(id): what a test grades")

    def pytest_generate_tests(self, metafunc):
        """Every test runs on every candidate."""
        marks = [mark.args[0] for mark in metafunc.definition.iter_markers("exercise")]
        mine = self.exercise.id in marks
        metafunc.fixturenames += ["candidate"] * ("candidate" not in metafunc.fixturenames)
        metafunc.parametrize("candidate", list(self.candidates) if mine else [])

    def pytest_collection_modifyitems(self, session, config, items):
        """Only the tests of the exercise, the learner's answer first."""
        order = list(self.candidates)
        items[:] = [item for item in items if self.exercise.id in [m.args[0] for m in item.iter_markers("exercise")]
                    and "candidate" in item.callspec.params and self.only in (None, item.originalname)]
        items.sort(key=lambda item: order.index(item.callspec.params["candidate"]))
        for item in items:
            self.planned[item.callspec.params["candidate"]] += 1

    def pytest_runtest_protocol(self, item):
        """A wrong answer is only run beside a learner's that failed, and as long as the two came to the same."""
        SEEN.clear()
        name, mine = item.callspec.params["candidate"], self.told.get(YOURS)
        if name == YOURS or mine is None:
            return None
        known = any(other not in (name, YOURS) and len(told) == len(mine) and alike(mine, told)
                    for other, told in self.told.items())
        # True: it is dealt with
        return True if known or all(told.passed for told in mine) or not alike(mine, self.told[name]) else None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        """An answer that ends the program ends its test and no more."""
        with self.around():
            outcome = yield
        if outcome.excinfo is not None and issubclass(outcome.excinfo[0], (SystemExit, KeyboardInterrupt)):
            error = outcome.excinfo[1]
            outcome.force_exception(Stopped(f"{type(error).__name__}: {error}".strip(": ")).with_traceback(error.__traceback__))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Write down what a test told."""
        outcome = yield
        report = outcome.get_result()
        if report.skipped or report.passed and report.when != "call":
            return
        name = item.callspec.params["candidate"]
        claim = " ".join((item.function.__doc__ or item.originalname.replace("_", " ")).split())
        told = Told(item.originalname, claim, report.passed, seen=list(SEEN))
        if not report.passed:
            self._explain(told, call.excinfo.value, self.candidates[name])
        if told.kind == "time" and name == YOURS:
            item.session.shouldstop = "it would take as long in every test"
        self.told[name].append(told)

    def _explain(self, told, error, candidate):
        """What went wrong, and where in the answer's file."""
        told.kind, told.message = "error", f"{type(error).__name__}: {error}".strip(": ")
        if isinstance(error, Stopped):
            told.message = str(error)
        elif isinstance(error, Shortcut):
            told.kind, told.message = "shortcut", str(error)
        elif isinstance(error, Broken):
            told.kind, told.message = "claim", str(error)
            told.what, told.yours, told.expected, told.largest = error.what, error.yours, error.expected, error.largest
        elif isinstance(error, NotImplementedError) and str(error).startswith(self.exercise.id):
            told.kind, told.message = "unwritten", str(error)
        elif isinstance(error, MemoryError):
            told.kind, told.message = "memory", TOO_LARGE
        elif isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout"):  # pytest-timeout's
            told.kind, told.message = "time", f"it ran longer than {self.seconds:g} s; {ENDLESS}"
        elif isinstance(error, AssertionError):
            told.kind, told.message = "claim", str(error).split("\n")[0] or "the claim does not hold"
        told.where, told.line = place_of(error, candidate)


def place_of(error, candidate):
    """("file:line", the line) in a candidate's file at which an error came up; that of its definition where it did not there."""
    if candidate.path is None:
        return "", ""
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if os.path.realpath(f.filename) == os.path.realpath(candidate.path)]
    if frames:
        return f"{os.path.basename(candidate.path)}:{frames[-1].lineno}", (frames[-1].line or "").strip()
    code = getattr(getattr(candidate.answer, "py_func", candidate.answer), "__code__", None)
    number = code.co_firstlineno if code else 1
    return f"{os.path.basename(candidate.path)}:{number}", linecache.getline(str(candidate.path), number).strip()


def grade(exercise, candidates, variant=0, seconds=None, only=None, around=contextlib.nullcontext):
    """Run the tests of an exercise on every `Candidate`.

    Args:
        variant: another one has other sizes and numbers. seconds: that one test may take, None for no limit. only: the name of
            the one test to run. around: a function that makes the context in which each test runs.

    Returns:
        {candidate's name: [`Told` of each test]}. A candidate without a test has an empty list.
    """
    plugin = Plugin(exercise, candidates, variant, only, around, seconds)
    options = [str(exercise.lesson.path(GRADE)), "-q", "--tb=no", "--noconftest", "-c", os.devnull,
               "--rootdir", str(exercise.lesson.folder), "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
               "--import-mode=importlib", "-W", "ignore"]
    if seconds is not None:
        options += ["-p", "pytest_timeout", "--timeout", str(seconds)]
    _forget(exercise.lesson.path(GRADE))  # pytest knows files by name, and every lesson has a grade.py
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(options, plugins=[plugin])
    _forget(exercise.lesson.path(GRADE))
    mine = plugin.told.get(YOURS)
    for name, told in plugin.told.items():
        waited = name != YOURS and mine is not None and all(each.passed for each in mine)
        if len(told) < plugin.planned[name] and not waited:
            told.append(Told("the end", "The tests run to their end.", False, "error",
                             "the answer ended the tests before they were done"))
    return plugin.told


def _forget(path):
    """Take a file, and whatever else goes by its name, out of the modules that are loaded."""
    for name in [name for name in list(sys.modules) if name.rpartition(".")[2] == path.stem]:
        if (getattr(sys.modules[name], "__file__", None) or "").endswith(path.name):
            del sys.modules[name]


def alike(mine, theirs):
    """Whether two answers came to the same in the tests that both have had."""
    return all(a.name == b.name and a.like(b) for a, b in zip(mine, theirs))


def diagnosed(mine, others, candidates):
    """The `Candidate` among the wrong answers that came to the same as the learner's; None where none did.

    Args:
        mine: [`Told`] of the learner's answer. others: {name: [`Told`]}. candidates: {name: `Candidate`}.
    """
    for name, theirs in others.items():
        if len(theirs) == len(mine) and alike(mine, theirs):
            return candidates[name]
    return None
