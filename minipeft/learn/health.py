"""What keeps the course from rotting: checks of every lesson, each of which gives a list of what is wrong,
empty where all is well.

Tests run them over the course, and over a small broken course on which each of them must find its fault.
"""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .answers import load, mutants_of
from .checker import check, environment_with
from .course import GRADE, LESSON, Course
from .grader import Candidate, diagnosed, grade
from .notebook import notebook_of
from .order import TOUR, order_faults  # noqa: F401  one of the checks
from .reading import FAST
from .shortcuts import shortcuts
from .stubs import missing_names, mutant_file, solution_of, stub_of

LEAST_MUTANTS, LEAST_HINTS = 3, 3
LEAST_EXERCISES, LEAST_OF_A_LESSON, MOST_OF_A_LESSON = 65, 3, 6
# Seconds of one core, for the whole course: its lessons in their short form, and its wrong answers.
FAST_SECONDS, MUTANT_SECONDS = 300, 360


# ---- the answers -----------------------------------------------------------------------------------------------


def written(exercise, text, folder, name):
    """A `Candidate` from the text of a file."""
    from .answers import answer_in

    path = Path(folder) / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return Candidate(name, answer_in(load(path, name), exercise, path), path)


def canary(exercise, answer):
    """An answer that raises in the place of every result."""
    def raises(*args, **kwargs):
        raise RuntimeError("canary")

    if isinstance(answer, type):
        return type(answer.__name__, (answer,), {"__init__": raises})
    return raises


def answer_faults(exercise):
    """Of an exercise: its stub must fail with its own id, its solution pass, its canary fail,
    its wrong answers be refused and known.

    All are graded in one process.
    """
    wrong, out = mutants_of(exercise), []
    with tempfile.TemporaryDirectory() as folder:
        stub, solution = (written(exercise, text, folder, name)
                          for name, text in (("stub", stub_of(exercise)), ("solution", solution_of(exercise))))
        broken = [Candidate(mutant.name, mutant.answer, None, mutant.diagnosis) for mutant in wrong]
        told = grade(exercise, [stub, solution, Candidate("canary", canary(exercise, solution.answer)), *broken])
        if not told["solution"]:
            return [f"{exercise.id}: no test of it ran"]
        for each in told["solution"]:
            if not each.passed:
                out.append(f"{exercise.id}: the solution fails {each.name}: {each.message}")
        for each in told["stub"]:
            if each.passed or each.kind != "unwritten":
                out.append(f"{exercise.id}: the stub does not fail with its id in {each.name} but "
                           f"{'passes' if each.passed else each.message}")
        if all(each.passed for each in told["canary"]):
            out.append(f"{exercise.id}: an answer that raises passes every test")
        found = shortcuts(exercise, solution_of(exercise))
        out += [f"{exercise.id}: the solution counts as a shortcut: {said}" for _, said in found]
        return out + mutant_faults(exercise, wrong, {m.name: told[m.name] for m in wrong}, {c.name: c for c in broken})


def mutant_faults(exercise, wrong, told, candidates):
    """There are three or more wrong answers with a diagnosis; each fails, and is taken for itself and no other."""
    out = []
    if len(wrong) < LEAST_MUTANTS:
        out.append(f"{exercise.id}: {len(wrong)} wrong answers are known; expected {LEAST_MUTANTS} or more")
    if len({mutant.name for mutant in wrong}) < len(wrong):
        out.append(f"{exercise.id}: two wrong answers have one name")
    for mutant in wrong:
        if not mutant.diagnosis.strip():
            out.append(f"{exercise.id}: the wrong answer {mutant.name} has no diagnosis")
        out += [f"{exercise.id}: the wrong answer {mutant.name} counts as a shortcut, so that no learner can write it: {said}"
                for _, said in shortcuts(exercise, mutant_file(exercise, mutant))]
        missing = missing_names(mutant_file(exercise, mutant))
        if missing:
            out.append(f"{exercise.id}: the wrong answer {mutant.name} takes more from mutants.py than a learner's file "
                       f"would have: {', '.join(sorted(missing))}")
        if mutant.answer.__name__ != exercise.name:
            out.append(f"{exercise.id}: the wrong answer {mutant.name} is called {mutant.answer.__name__}, not {exercise.name}")
        if all(each.passed for each in told[mutant.name]):
            out.append(f"{exercise.id}: the wrong answer {mutant.name} passes")
            continue
        known = diagnosed(told[mutant.name], told, candidates)
        if known.name != mutant.name:
            out.append(f"{exercise.id}: the wrong answer {mutant.name} cannot be told from {known.name}")
    return out


def solution_file_faults(exercise):
    """The solution passes as a learner's file does: in a process of its own, a kernel with and without the compiler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exercise.filename
        path.write_text(solution_of(exercise), encoding="utf-8")
        outcome = check(exercise, path)
    if outcome.passed:
        return []
    said = outcome.fault["message"] if outcome.fault else outcome.failed["message"]
    return [f"{exercise.id}: the solution's file is refused{' ' + outcome.stage if outcome.stage else ''}: {said}"]


# ---- the texts -------------------------------------------------------------------------------------------------


def text_faults(lesson):
    """Exercises in order and no more than six, hints for each, what it needs before it."""
    out, exercises, hints = [], lesson.exercises(), lesson.hints()
    numbers, least = [int(exercise.id[3:]) for exercise in exercises], 1 if lesson.number == TOUR else LEAST_OF_A_LESSON
    if numbers != list(range(1, len(numbers) + 1)) or not least <= len(numbers) <= MOST_OF_A_LESSON:
        out.append(f"{lesson.folder.name}: exercises {', '.join(e.id for e in exercises) or 'none'}; expected {least} to "
                   f"{MOST_OF_A_LESSON} in order")
    for exercise in exercises:
        if not exercise.task:
            out.append(f"{exercise.id}: no line #@ says what to write")
        told = hints.get(exercise.id, [])
        if len(told) != LEAST_HINTS or not all(hint.strip() for hint in told):
            out.append(f"{exercise.id}: {len(told)} hints; expected a question, an equation and pseudocode")
    for id in sorted({*hints, *lesson.points, *lesson.stretch, *lesson.kernels} - {e.id for e in exercises}):
        out.append(f"{lesson.folder.name}: {id} is named, and is no exercise")
    late = [other for other in lesson.needs if other >= lesson.number]
    return out + [f"{lesson.folder.name}: needs {other}, which does not come before it" for other in late]


def size_faults(course, least=LEAST_EXERCISES):
    """The course has as many exercises as it is said to have, or more."""
    count = len(course.exercises)
    return [f"{course.folder}: {count} exercises; expected {least} or more"] if count < least else []


# What every lesson has, in this order: (how a line of it begins, what it is).
PARTS = (("# **Why.**", "a real problem to begin with"), ("# ## The idea in a picture", "the idea in a picture"),
         ("predict(", "a question to answer before the first exercise"), ("#@exercise", "an exercise"),
         ("# ## What the numbers show", "numbers of the toy world"), ("# ## Where it breaks", "where it breaks"),
         ("# ## Read the package", "the package's own file to read"), ("# ## Sources", "sources"))
ANYWHERE = ((r"\$\$", "an equation"), (r"\breal models?\b", "what a real model shows"),
            (r"`(minipeft/)?[\w/]+\.py`", "a file of the package, by name"))


def anatomy_faults(lesson):
    """A lesson's parts are all there and stand in their order, and it says in words what it needs and how long it takes."""
    text, out = lesson.path(LESSON).read_text(encoding="utf-8"), []
    lines, place = text.splitlines(), -1
    for begins, what in PARTS:
        found = [number for number, line in enumerate(lines) if line.startswith(begins)]
        if not found:
            out.append(f"{lesson.folder.name}: {what} is missing; expected a line {begins}")
        elif found[0] < place:
            out.append(f"{lesson.folder.name}: {what} comes too late or the part after it too early (line {place + 1})")
        place = max(place, found[0] if found else place)
    prose = _prose(text)
    out += [f"{lesson.folder.name}: {what} is missing" for pattern, what in ANYWHERE if not re.search(pattern, prose)]
    if lesson.number != TOUR:
        said = re.search(r"You need (.*?)(\d+) minutes\.", prose)
        needs = tuple(sorted({f"{int(n):02d}" for n in re.findall(r"\d+", said.group(1))})) if said else None
        expected = tuple(number for number in lesson.needs if number != TOUR)
        if needs != expected or int(said.group(2)) != lesson.minutes:
            out.append(f"{lesson.folder.name}: the text says {said.group() if said else 'nothing of what one needs'!r}; "
                       f"course.toml says {', '.join(expected) or 'no lesson'} and {lesson.minutes} minutes")
    return out + figure_faults(lesson)


def _prose(text):
    """What a lesson says beside its code and its exercises, in one line."""
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines()
                    if line.startswith("#") and not line.startswith("#@"))


def figure_faults(lesson):
    """A lesson has a figure, and each is shown with a text for those who do not see it."""
    calls = [node for node in ast.walk(ast.parse(lesson.path(LESSON).read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    made = [node.lineno for node in calls if ast.unparse(node.func) in ("plt.subplots", "plt.figure")]
    shown = [node for node in calls if ast.unparse(node.func) == "show"]
    out = [] if made else [f"{lesson.folder.name}: no figure"]
    if len(made) != len(shown):
        out.append(f"{lesson.folder.name}: {len(made)} figures are made and {len(shown)} are shown with `show`")
    return out + [f"{lesson.folder.name}: the figure shown in line {node.lineno} has no text" for node in shown
                  if len(node.args) != 3 or isinstance(node.args[2], ast.Constant) and not str(node.args[2].value).strip()]


def generated(course):
    """{name: text} of all that is made from the lessons: stubs, solutions and notebooks."""
    out = {f"{lesson.folder.name}.ipynb": notebook_of(lesson) for lesson in course.lessons}
    for exercise in course.exercises:
        out |= {f"{exercise.id} stub": stub_of(exercise), f"{exercise.id} solution": solution_of(exercise)}
    return out


def generating_faults(course):
    """What is made from the lessons is the same in every process, in whatever order Python keeps its sets there."""
    code = "from minipeft.learn import health; print(json.dumps(health.generated(health.Course(sys.argv[1]))))"
    first, second = (json.loads(_process(code, course.folder, PYTHONHASHSEED=seed).stdout) for seed in "12")
    return [f"{name}: it is another text in each process" for name in first if first[name] != second[name]]


# ---- words -----------------------------------------------------------------------------------------------------

TERM = re.compile(r"(?<![*\w])\*([^\W\d_(][^*]*?)\*(?![*\w])")  # *term*, and not **stressed**


def glossary_faults(course, stressed=()):
    """The glossary has every term that a lesson sets in italics, but for ``stressed`` words, and names no later lesson.

    Titles, below a lesson's "Sources", are no terms.
    """
    texts, first, rows, out = {}, {}, glossary(course), []
    for lesson in course.lessons:
        text = lesson.path(LESSON).read_text(encoding="utf-8").partition("# ## Sources")[0]
        texts[lesson.number] = _bare(" ".join(line.removeprefix("# ") for line in text.splitlines()))
        for term in TERM.findall(re.sub(r"\$\$?[^$]*\$\$?|`[^`]*`", "", _prose(text))):
            first.setdefault(_bare(term), (lesson.number, term))
    places = {name: number for names, number in rows for name in names}
    for name, (number, term) in first.items():
        if name not in places and name not in map(_bare, stressed):
            out.append(f"glossary.md: has no {term!r}, which lesson {number} sets in italics")
    for names, number in rows:
        earliest = min((first[name][0] for name in names if name in first), default=number)
        if number > earliest:
            out.append(f"glossary.md: {names[0]!r} is said to be of lesson {number}; lesson {earliest} has it in italics")
        elif not any(re.search(rf"\b{re.escape(name)}", texts.get(number, "")) for name in names):
            out.append(f"glossary.md: {names[0]!r} is said to be of lesson {number}, whose text does not have it")
    return out


def glossary(course):
    """[([names of a term], number of its lesson)] of glossary.md, the names as `_bare` gives them."""
    out = []
    for line in (course.folder / "glossary.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[3].isdigit():
            if not all(cells) or not re.search(r"[\u4e00-\u9fff]", cells[1]):
                raise ValueError(f"glossary.md: expected an English and a Chinese name, a meaning and a lesson, got {line!r}")
            names = [_bare(name) for name in re.split(r"\s*[(),]\s*", cells[0]) if name]
            out.append((names, f"{int(cells[3]):02d}"))
    return out


def _bare(words):
    """Words in small letters, nouns without the s of the plural, and no full stop behind."""
    return re.sub(r"(?<=\w\w)s\b", "", words.lower()).rstrip(" .")


# ---- running ---------------------------------------------------------------------------------------------------


def running_faults(lesson, seconds, fast=True):
    """The lesson's file runs from top to bottom; it is stopped when it has taken ``seconds`` of a core."""
    code = "import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
    with tempfile.TemporaryDirectory() as folder:
        done = _process(code, lesson.path(LESSON).resolve(), seconds=seconds, cwd=folder, MPLBACKEND="Agg",
                        **({FAST: "1"} if fast else {}))
    return _ended(lesson.folder.name, done, seconds)


def answers_faults(lesson, seconds):
    """`answer_faults` of all exercises of a lesson, in one process, which is stopped when it has taken ``seconds`` of a core."""
    code = "from minipeft.learn import health; lesson = health.Course(sys.argv[1]).lesson(sys.argv[2]); " \
           "print('\\n' + json.dumps([fault for each in lesson.exercises() for fault in health.answer_faults(each)]))"
    done = _process(code, lesson.folder.parent, lesson.number, seconds=seconds)
    return _ended(lesson.folder.name, done, seconds) or json.loads(done.stdout.splitlines()[-1])


def _process(code, *arguments, seconds=None, cwd=None, **more):
    """Run Python code in a process of its own on one core; it is ended when it has taken ``seconds`` of it. Unlike the clock's,
    they do not depend on what else the machine does."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds + 1})); " if seconds else ""
    return subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", f"import json, sys; {limit}{code}",
                           *map(str, arguments)],
                          cwd=cwd, env=environment_with(MINIPEFT_NUM_THREADS="1", **more), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)


def _ended(name, done, seconds):
    """[why a process did not end well]."""
    if done.returncode == -signal.SIGXCPU:
        return [f"{name}: it was stopped after {seconds} s of a core"]
    return [f"{name}: it stops with {(done.stderr.strip().splitlines() or ['no word'])[-1]}"] if done.returncode else []


def grader_faults(lesson):
    """Every test says in words what it claims, and is of an exercise that there is."""
    out, ids = [], {exercise.id for exercise in lesson.exercises()}
    tree = ast.parse(lesson.path(GRADE).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [d.args[0].value for d in node.decorator_list
                     if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "exercise"]
            if not ast.get_docstring(node):
                out.append(f"{lesson.folder.name}: {node.name} does not say what it claims")
            if not marks or not set(marks) <= ids:
                out.append(f"{lesson.folder.name}: {node.name} is of no exercise of this lesson")
    return out
