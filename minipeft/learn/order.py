"""The order of the course: what a lesson uses must be introduced by it or before it, by a lesson that it needs.

course.toml says of each lesson what it ``introduces``: modules, and packages for all their modules that are not named themselves.
What a text imports is looked up where it is defined: ``from minipeft import LoRA`` is of minipeft.methods.lora.
"""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

from .course import LESSON
from .stubs import solution_of

TOUR = "00"  # looks around in everything
PACKAGE, OWN = "minipeft", "minipeft.learn"  # the course's own tools belong to no lesson
# Methods that are asked for by name and are not of `METHODS`.
BY_NAME = {"zero_shot": "minipeft.prompting.cloze", "prompt_based": "minipeft.prompting.cloze",
           "in_context": "minipeft.prompting.demonstrations", "pet": "minipeft.prompting.pet", "ipet": "minipeft.prompting.pet",
           "early_exit": "minipeft.methods.early_exit"}
DOTTED = re.compile(r"\w+(\.\w+)+")


def order_faults(course):
    """No lesson uses what a later one introduces, or one that it does not need: not in its text, stubs or solutions."""
    introduced = {name: lesson.number for lesson in course.lessons for name in lesson.introduces}
    before, out = {}, []
    for lesson in course.lessons:
        before[lesson.number] = {lesson.number}.union(*(before.get(number, ()) for number in lesson.needs))
        if lesson.number == TOUR:
            continue
        text = lesson.path(LESSON).read_text(encoding="utf-8")
        used = {lesson.folder.name: uses(text) | named(text)} | {e.id: uses(solution_of(e)) for e in lesson.exercises()}
        for name, modules in used.items():
            for module in sorted(modules):
                where = next((introduced[part] for part in _around(module) if part in introduced), None)
                if where is None:
                    out.append(f"{name}: uses {module}, which no lesson introduces")
                elif where > lesson.number:
                    out.append(f"{name}: uses {module}, which lesson {where} introduces")
                elif where not in before[lesson.number] | {TOUR}:
                    out.append(f"{name}: uses {module} of lesson {where}, which is not among what it needs")
    return out


def uses(text):
    """{modules of the package} that code takes something from, each where the thing is defined."""
    tree, modules, out = ast.parse(text), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _ours(alias.name):
                    modules[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
                    out.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
            for alias in node.names:
                place = home(node.module, alias.name)
                out.add(place)
                if place == f"{node.module}.{alias.name}":
                    modules[alias.asname or alias.name] = place
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and DOTTED.fullmatch(ast.unparse(node)):
            out |= _taken(ast.unparse(node).split("."), modules)
    return {name for name in out if _ours(name) and name != PACKAGE and not f"{name}.".startswith(f"{OWN}.")}


def _taken(names, modules):
    """{where it is defined} of what a dotted name such as F.linear takes from a module; empty where it starts from none."""
    place = modules.get(names[0])
    for name in names[1:] if place else ():
        inner = home(place, name)
        if inner != f"{place}.{name}":
            return {inner}
        place = inner
    return set()


def named(text):
    """{modules} of the methods that a text asks for by their name, as ``Run(model, data, "lora")`` does."""
    from ..methods import METHODS

    known = {name: method.__module__ for name, method in METHODS.items()} | BY_NAME
    return {known[node.value] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and node.value in known}


def home(module, name):
    """The module in which a name that another has is defined; of a module its own name. Raises ValueError where there is none."""
    whole = importlib.import_module(module)
    try:
        found = getattr(whole, name) if hasattr(whole, name) else importlib.import_module(f"{module}.{name}")
    except ImportError:
        raise ValueError(f"{module}: has no {name}") from None
    if inspect.ismodule(found):
        return found.__name__
    if inspect.isclass(found) or inspect.isfunction(found):
        return found.__module__
    for node in ast.parse(Path(whole.__file__).read_text(encoding="utf-8")).body:  # a constant: follow the imports
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    package = module if hasattr(whole, "__path__") else module.rpartition(".")[0]
                    return home(importlib.util.resolve_name("." * node.level + (node.module or ""), package), alias.name)
    return module


def _ours(name):
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def _around(module):
    """A module's name, then those of the packages that it lies in, from the inside out."""
    while module:
        yield module
        module = module.rpartition(".")[0]
