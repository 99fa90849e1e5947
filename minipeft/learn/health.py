"""What keeps the course from rotting: checks of every lesson, each of which gives a list of what is wrong, empty where all is well.

Tests run them over the course, and over a small broken course on which each of them must find its fault.
"""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .answers import load, mutants_of
from .checker import check
from .course import GRADE, LESSON
from .grader import Candidate, diagnosed, grade
from .notebook import notebook_of
from .reading import FAST
from .shortcuts import imported, shortcuts
from .stubs import missing_names, mutant_file, solution_of, stub_of

LEAST_MUTANTS, LEAST_HINTS = 3, 3
FAST_SECONDS = 20  # of a lesson in its short form


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
    """Of an exercise: its stub must fail with its own id, its solution pass, its canary fail, its wrong answers be refused and known.

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
                out.append(f"{exercise.id}: the stub does not fail with its id in {each.name} but {'passes' if each.passed else each.message}")
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
            out.append(f"{exercise.id}: the wrong answer {mutant.name} takes more from mutants.py than a learner's file would have: "
                       f"{', '.join(sorted(missing))}")
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
    """Exercises in order and no more than six, hints for each, what it needs before it, a source, and the same notebook twice."""
    out, exercises, hints = [], lesson.exercises(), lesson.hints()
    numbers = [int(exercise.id[3:]) for exercise in exercises]
    if numbers != list(range(1, len(numbers) + 1)) or not 1 <= len(numbers) <= 6:
        out.append(f"{lesson.folder.name}: exercises {', '.join(e.id for e in exercises) or 'none'}; expected 1 to 6 in order")
    for exercise in exercises:
        if not exercise.task:
            out.append(f"{exercise.id}: no line #@ says what to write")
        told = hints.get(exercise.id, [])
        if len(told) != LEAST_HINTS or not all(hint.strip() for hint in told):
            out.append(f"{exercise.id}: {len(told)} hints; expected a question, an equation and pseudocode")
    for id in sorted({*hints, *lesson.points, *lesson.stretch, *lesson.kernels} - {e.id for e in exercises}):
        out.append(f"{lesson.folder.name}: {id} is named, and is no exercise")
    out += [f"{lesson.folder.name}: needs {other}, which does not come before it" for other in lesson.needs if other >= lesson.number]
    text = lesson.path(LESSON).read_text(encoding="utf-8")
    if "## Sources" not in text:
        out.append(f"{lesson.folder.name}: no section Sources")
    if notebook_of(lesson) != notebook_of(lesson) or any(stub_of(e) != stub_of(e) for e in exercises):
        out.append(f"{lesson.folder.name}: generating twice gives two texts")
    return out


def order_faults(course):
    """No lesson uses a module that a later one introduces (course.toml's ``introduces``): not in its text, stubs or solutions."""
    later, out = {}, []
    for lesson in course.lessons:
        later.update(dict.fromkeys(lesson.introduces, lesson))
    for lesson in course.lessons:
        texts = {lesson.folder.name: lesson.path(LESSON).read_text(encoding="utf-8")}
        texts |= {exercise.id: solution_of(exercise) for exercise in lesson.exercises()}
        for name, text in texts.items():
            for module, what in sorted(imported(ast.parse(text))):
                for whole in (module, f"{module}.{what}"):
                    if whole in later and later[whole].number > lesson.number:
                        out.append(f"{name}: uses {whole}, which lesson {later[whole].number} introduces")
    return out


def running_faults(lesson, fast=True, seconds=FAST_SECONDS):
    """The lesson's file runs from top to bottom, in its short form within ``seconds`` of one core."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1", "MINIPEFT_NUM_THREADS": "1", **({FAST: "1"} if fast else {})}
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    before = _spent()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", str(lesson.path(LESSON).resolve())], cwd=folder, env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"{lesson.folder.name}: it stops with {done.stderr.strip().splitlines()[-1]}"]
    took = _spent() - before
    return [f"{lesson.folder.name}: it took {took:.0f} s; expected {seconds} at most"] if took > seconds else []


def _spent():
    """Seconds that a core has spent on processes which this one started and which have ended; unlike the clock's they do not
    depend on what else the machine does. 0 where the system does not tell."""
    spent = os.times()
    return spent.children_user + spent.children_system


def grader_faults(lesson):
    """Every test says in words what it claims, and is of an exercise that there is."""
    out, ids = [], {exercise.id for exercise in lesson.exercises()}
    tree = ast.parse(lesson.path(GRADE).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [d.args[0].value for d in node.decorator_list if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "exercise"]
            if not ast.get_docstring(node):
                out.append(f"{lesson.folder.name}: {node.name} does not say what it claims")
            if not marks or not set(marks) <= ids:
                out.append(f"{lesson.folder.name}: {node.name} is of no exercise of this lesson")
    return out
