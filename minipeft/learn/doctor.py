"""``minipeft learn doctor``: what the course needs, whether it is there, and what to do where it is not."""

import tempfile
from importlib import metadata
from pathlib import Path

from .checker import MEGABYTES, check
from .child import memory
from .course import Course
from .stubs import solution_of
from .workspace import Workspace

INSTALL = "pip install '.[learn]' in the project's folder"
LIBRARIES = {"pytest": "checks", "pytest-timeout": "checks", "watchfiles": "watching", "jupytext": "lessons",
             "nbformat": "notebooks", "nbclient": "notebooks", "ipykernel": "notebooks"}


def found(name, value, advice=""):
    """One line of the report: what was looked at, what was found, and what to do about it (empty when all is well)."""
    return name, value, advice


def examine(folder):
    """[(name, value, advice)] on the course and on a learner's folder, or one that it lies around; takes a few seconds."""
    findings, missing = [], False
    for name, purpose in LIBRARIES.items():
        try:
            findings.append(found(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(found(name, "not installed", f"{INSTALL}, for {purpose}"))
            missing = True
    try:
        course = Course()
    except (ValueError, OSError) as error:
        return [*findings, found("lessons", "none", str(error))]
    findings.append(found("lessons", f"{len(course.lessons)} with {len(course.exercises)} exercises in {course.folder}"))
    findings.extend(_of_folder(folder, course))
    findings.append(_memory())
    return findings if missing else [*findings, _one_check(course)]


def _memory():
    """Whether the system can limit what a check takes."""
    if memory() is None:
        return found("memory limit",
                     "none on this system; an answer that takes ever more memory is ended by the limit of time alone")
    return found("memory limit", f"{MEGABYTES} MB for each check")


def _of_folder(folder, course):
    """What a learner's folder is like."""
    try:
        workspace = Workspace.around(folder, course)
    except (ValueError, OSError) as error:
        none = "no folder of the course" in str(error)
        yield found("your folder", "none here; minipeft learn init DIR makes one" if none else "cannot be read",
                    "" if none else str(error))
        return
    solved = sum(map(workspace.solved, workspace.exercises))
    yield found("your folder", f"{workspace.folder}, {solved} of {len(workspace.exercises)} solved")
    for exercise in workspace.exercises:
        if not workspace.path(exercise).is_file():
            yield found(exercise.id, f"{workspace.path(exercise).name} is missing",
                        f"minipeft learn reset {exercise.id} makes it anew")


def _one_check(course):
    """Whether the solution of the first exercise passes, in a process of its own as a learner's file."""
    exercise = course.exercises[0]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / exercise.filename
        path.write_text(solution_of(exercise), encoding="utf-8")
        outcome = check(exercise, path)
    if outcome.passed:
        return found("a check", f"the solution of {exercise.id} passes in {outcome.seconds:.1f} s")
    said = outcome.fault["message"] if outcome.fault else outcome.failed["message"]
    return found("a check", f"the solution of {exercise.id} is refused: {said}", f"install the course anew: {INSTALL}")
