"""``minipeft learn``: what a learner's commands do."""

import importlib.util
import json
import sys
from pathlib import Path

from rich.console import Console

from ..data import files
from . import screens
from .checker import check
from .course import LESSON, Course
from .doctor import INSTALL
from .workspace import HINTS, Workspace


NEEDED = {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "watchfiles": "watchfiles", "jupytext": "jupytext"}


def check_installed():
    """Raise ValueError where what the course needs besides the package is missing."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"learn: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; run: {INSTALL}")


def run(args):
    """The command that ``args.action`` names; returns the exit code.

    Raises ValueError and OSError with one clear line.
    """
    check_installed()
    if args.action == "init":
        return init(args)
    workspace = Workspace.around(args.dir or ".")
    return globals()[f"_{args.action}"](args, workspace)


def init(args):
    """Make a learner's folder."""
    if not args.item:
        raise ValueError("init: expected a folder; minipeft learn init DIR")
    course = Course()
    workspace = Workspace.make(args.item, course)
    first = workspace.exercises[0]
    path = workspace.path(first).relative_to(workspace.folder)
    print(f"Lessons: {len(course.lessons)}, exercises: {len(workspace.exercises)}, in {args.item}. Go on with:\n\n"
          f"  cd {args.item}\n"
          f"  minipeft learn\n\nThere the first lesson's text is {first.lesson.folder.name}/{LESSON}, and the first exercise "
          f"{path}" + (", which is solved already." if first.id in first.lesson.solved else "."))
    return 0


def _exercise(args, workspace):
    """The exercise that was named, or the one in hand."""
    if args.item:
        return workspace.course.exercise(args.item)
    return workspace.current() or workspace.exercises[-1]


def note(line):
    """Say on the way what takes long."""
    print(f"note: {line}", file=sys.stderr)


def _watch(args, workspace):
    from .watch import Watch

    return Watch(workspace).run()


def _check(args, workspace):
    """Check one exercise, or with --all every one; 0 where all pass."""
    chosen = workspace.exercises if args.all else [_exercise(args, workspace)]
    outcomes, console = [], Console()
    for exercise in chosen:
        outcome = check(exercise, workspace.path(exercise), workspace.variant, note)
        workspace.note(exercise, outcome)
        outcomes.append(outcome)
        if not args.as_json:
            if args.all:
                console.print(f"{'✓' if outcome.passed else '✗'} {exercise.id} {exercise.qualname}", highlight=False)
            else:
                console.print(screens.outcome_screen(outcome, exercise, workspace, workspace.path(exercise)), highlight=False)
    if args.as_json:
        told = [outcome.as_dict() for outcome in outcomes]
        print(json.dumps(told if args.all else told[0], ensure_ascii=False, indent=1))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _hint(args, workspace):
    exercise = _exercise(args, workspace)
    number, text = workspace.hint(exercise)
    Console().print(screens.hint_screen(exercise, number, HINTS, text))
    return 0


def _solution(args, workspace):
    exercise = _exercise(args, workspace)
    text = workspace.solution(exercise, args.give_up)
    console = Console()
    if console.is_terminal:
        console.print(screens.solution_screen(exercise, text))
    else:
        print(text, end="")
    return 0


def _list(args, workspace):
    Console().print(screens.list_screen(workspace))
    return 0


def _reset(args, workspace):
    if not args.item:
        raise ValueError("reset: expected an exercise; minipeft learn reset 08.2")
    exercise = _exercise(args, workspace)
    kept = workspace.write_stub(exercise)
    print(f"{workspace.path(exercise)} is the stub again" + (f"; what you wrote is in {kept}" if kept else ""))
    return 0


def _trace(args, workspace):
    exercise = _exercise(args, workspace)
    outcome = check(exercise, workspace.path(exercise), workspace.variant, note, trace=True)
    shown = screens.outcome_screen(outcome, exercise) if outcome.fault else screens.trace_screen(outcome, exercise)
    Console().print(shown, highlight=False)
    return 0 if outcome.passed else 1


def _update(args, workspace):
    counts = {}
    for exercise, done in workspace.update():
        counts[done] = counts.get(done, 0) + 1
        if done in ("new", "body kept"):
            print(f"{exercise.id}: {done}")
    print(", ".join(f"{count} {done}" for done, count in counts.items()))
    return 0


def _notebook(args, workspace):
    """Write a lesson, or all, as notebooks."""
    from .notebook import notebook_of

    lessons = [workspace.course.lesson(args.item)] if args.item else workspace.course.lessons
    for lesson in lessons:
        path = workspace.folder / lesson.folder.name / "lesson.ipynb"
        with files.atomic(path) as temporary:
            temporary.write_text(notebook_of(lesson), encoding="utf-8")
        print(path)
    return 0


def _graft(args, workspace):
    """Fine-tune with what was solved in the place of the package's own."""
    from .graft import train

    if args.item not in (None, "train"):
        raise ValueError(f"graft: expected train, got {args.item!r}")
    return train(workspace, Path(args.out) if args.out else None)
