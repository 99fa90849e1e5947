"""Answers as objects: loaded from a learner's file, and put into the place of the package's own.

The answer to a method stands in a file as a function with ``self``; graders see it as a class, the package's own with that method
in the place of its own.
"""

import contextlib
import importlib
import importlib.util
import inspect
import sys
import tempfile
from pathlib import Path

from .claims import LISTED
from .course import MUTANTS


def load(path, name="learner"):
    """The module of a Python file, read anew."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Numba's cache asks for a function's module by name
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


class NoAnswer(ValueError):
    """A file that does not define what it must."""


def answer_in(module, exercise, path):
    """The function or class of an exercise in a module that was loaded from ``path``.

    Raises `NoAnswer` where it is not there or comes from another file.
    """
    answer = getattr(module, exercise.name, None)
    if answer is None:
        raise NoAnswer(f"there is no {exercise.name}; the file must define it")
    plain = inspect.unwrap(getattr(answer, "py_func", answer))
    try:
        source = inspect.getsourcefile(plain)
    except TypeError:
        source = None
    if source is None or Path(source).resolve() != Path(path).resolve():
        raise NoAnswer(f"{exercise.name} comes from elsewhere; the file must define it itself")
    return answer


def home(exercise):
    """(module or class that holds the package's own answer, the answer as it lies there); (None, None) of a lesson's own."""
    if exercise.module == "lesson":
        return None, None
    holder = importlib.import_module(exercise.module)
    *classes, name = exercise.qualname.split(".")
    for each in classes:
        holder = getattr(holder, each)
    return holder, inspect.getattr_static(holder, name)


def built(exercise, answer):
    """What graders get as ``impl``: the function, or the class with the method in its place."""
    holder, own = home(exercise)
    if "." not in exercise.qualname:
        return answer
    members = {exercise.name: type(own)(answer) if isinstance(own, (property, staticmethod, classmethod)) else answer}
    if hasattr(holder, "__slots__"):
        members["__slots__"] = ()
    return type(holder.__name__, (holder,), {**members, "__module__": holder.__module__})


@contextlib.contextmanager
def grafted(exercise, answer):
    """Inside this block the package itself uses the answer: wherever the package's own was known by its name."""
    holder, own = home(exercise)
    if own is None:  # a lesson's own, which the package does not use
        places = []
    elif "." in exercise.qualname:
        places = [(holder, exercise.name)]
        answer = type(own)(answer) if isinstance(own, (property, staticmethod, classmethod)) else answer
    else:
        places = [(module, name) for key, module in list(sys.modules.items()) if key.partition(".")[0] == "minipeft"
                  and not key.startswith("minipeft.learn") for name, value in list(vars(module).items()) if value is own]
    for place, name in places:
        setattr(place, name, answer)
    try:
        yield
    finally:
        for place, name in places:
            setattr(place, name, own)


def answer(id, folder="."):
    """The learner's answer to an exercise once it has passed, and the package's own before: what a notebook goes on with.

    ``folder``: the learner's, or one in it; without one the answer is the package's.
    """
    from .course import Course
    from .stubs import solution_of
    from .workspace import Workspace

    course = Course()
    exercise = course.exercise(id)
    with contextlib.suppress(ValueError):
        workspace = Workspace.around(folder, course)
        if workspace.solved(exercise):
            return answer_in(load(workspace.path(exercise)), exercise, workspace.path(exercise))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / exercise.filename
        path.write_text(solution_of(exercise), encoding="utf-8")
        return answer_in(load(path), exercise, path)


def mutants_of(exercise):
    """[`Mutant`] of an exercise, in the order of the file."""
    path = exercise.lesson.path(MUTANTS)
    if not path.is_file():
        return []
    LISTED.clear()
    load(path, f"mutants_{exercise.lesson.number}")
    return [mutant for mutant in LISTED if mutant.id == exercise.id]
