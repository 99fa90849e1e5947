"""Answers as objects: loaded from a learner's file, and put into the place of the package's own.

The answer to a method stands in a file as a function with ``self``; graders see it as a class, the package's own with that method
in the place of its own.
"""

import ast
import builtins
import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

from ..autograd import Tensor
from ..nn import Module
from .claims import LISTED, SEEN, Broken, array_of
from .course import MUTANTS
from .shortcuts import Shortcut
from .stubs import found


def load(path, name="learner", given=()):
    """The module of a Python file, read anew. ``given``: {name: object} of what its code has
    in the place of built-in functions."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # Numba's cache asks for a function's module by name
    if given:
        vars(module)["__builtins__"] = {**vars(builtins), **dict(given)}  # where no `del` of the file reaches
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


def keeping(exercise, answer):
    """An answer that claims to leave the arrays that it is given as they are, but for arguments that the solution writes into.

    Graders compute what they expect from the same arrays: one that is set to 0 would make 0 the right result. What a kernel
    leaves alone its own tests see.
    """
    if exercise.kernel or isinstance(answer, type):
        return answer
    into = written_into(exercise)

    @functools.wraps(answer)
    def kept(*args, **kwargs):
        named = [*zip(inspect.signature(answer).parameters, args), *kwargs.items()]
        given = _arrays([(name, value) for name, value in named if name not in into])
        before = [array_of(value).copy() for _, value in given]
        out = answer(*args, **kwargs)
        for (name, value), array in zip(given, before):
            now = array_of(value)
            if now.shape != array.shape or now.tobytes() != array.tobytes():
                SEEN.append(now.copy())
                raise Broken(f"{name} was changed; the answer must leave it as it is", name, now, array)
        return out

    return kept


def written_into(exercise):
    """{names} of the arguments that the solution writes into."""
    node, out = found(exercise)[1], set()
    for target in ast.walk(node):
        stored = isinstance(target, (ast.Attribute, ast.Subscript)) and isinstance(target.ctx, ast.Store)
        root = target.target if isinstance(target, ast.AugAssign) else target
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        if (stored or isinstance(target, ast.AugAssign)) and isinstance(root, ast.Name):
            out.add(root.id)
    return out


def _arrays(named):
    """[(name, Tensor or array)] of what is one, or is held by a list, a dictionary or ``self``, of a module all its parameters.

    Not of other objects, which have methods to change them, nor what is trained in a list, as parameters are by an optimizer.
    """
    out = []
    for name, value in named:
        if isinstance(value, (Tensor, np.ndarray)):
            out.append((name, value))
        elif isinstance(value, (list, tuple)):
            out += [(name, each) for each in value
                    if isinstance(each, np.ndarray) or isinstance(each, Tensor) and not each.requires_grad]
        elif isinstance(value, dict) or name == "self" and hasattr(value, "__dict__"):
            inner = value if isinstance(value, dict) else vars(value)
            inner = {**inner, **(dict(value.named_parameters()) if isinstance(value, Module) else {})}
            out += [(f"{name}.{key}", each) for key, each in inner.items() if isinstance(each, (Tensor, np.ndarray))]
    return out


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


@contextlib.contextmanager
def hidden(exercise, path):
    """Inside this block the package's own answer raises `Shortcut` where a line of the file at ``path`` calls it,
    by whatever name.

    Not of a compiled kernel, which only the kernels themselves can reach.
    """
    own = home(exercise)[1]
    plain = own.fget if isinstance(own, property) else getattr(own, "__func__", own)
    if not isinstance(plain, types.FunctionType):
        yield
        return

    @functools.wraps(plain)
    def watched(*args, **kwargs):
        if sys._getframe(1).f_code.co_filename == str(path):
            also = " (another module is called by itself, without .forward)" if exercise.name == "forward" else ""
            raise Shortcut(f"calls the package's own {exercise.qualname}, which is the answer itself; write it out{also}")
        return plain(*args, **kwargs)

    del watched.__wrapped__
    with grafted(exercise, watched):
        yield


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
