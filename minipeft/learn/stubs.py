"""Stubs and solutions, made from the one place where the answer stands: the package, or the lesson's own marked code.

A stub is the answer's signature and docstring with ``raise NotImplementedError("08.2: ...")`` for a body, behind the imports that
the answer needs; the solution is the same file with the body.
"""

import ast
import builtins
import importlib.util
import symtable
import textwrap
from pathlib import Path

from .course import LESSON, MUTANTS

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WIDTH = 110


class Source:
    """A Python file, its tree and its text. ``package``: what relative imports in it start from, as "minipeft.methods"."""

    def __init__(self, path, module, package):
        self.path, self.module, self.package = Path(path), module, package
        self.text = self.path.read_text(encoding="utf-8")
        self.tree, self.lines = ast.parse(self.text), self.text.splitlines()

    def find(self, qualname):
        """(node of a function or class, [nodes of the classes around it]). Raises ValueError where there is none."""
        around, body = [], self.tree.body
        for name in qualname.split("."):
            node = next((n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name), None)
            if node is None:
                raise ValueError(f"{self.path}: no function or class {qualname}")
            around.append(node)
            body = node.body
        return around[-1], around[:-1]

    def helpers_of(self, node):
        """[nodes] of the file's own functions and assignments that a node uses, and that these use, in the order of the file."""
        found, todo = set(), [node]
        while todo:
            names = _used(todo.pop())
            for part in self.tree.body:
                bound = {part.name} if isinstance(part, ast.FunctionDef) and not part.decorator_list else {
                    n.id for t in part.targets for n in ast.walk(t) if isinstance(n, ast.Name)
                } if isinstance(part, ast.Assign) else set()
                if bound & names and part not in found and part is not node and getattr(part, "name", "") != node.name:
                    found.add(part)
                    todo.append(part)
        return [part for part in self.tree.body if part in found]

    def text_of(self, node):
        """A node's lines with its decorators, moved to the left."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        return textwrap.dedent("\n".join(self.lines[first - 1:node.end_lineno]))

    def imports(self, node):
        """[import lines] for the names that a node uses: absolute, in the order of the file; what the file defines comes last."""
        used = _used(node)
        used -= {getattr(node, "name", ""), *vars(builtins)} - self._shadowed()
        lines, known = [], set()
        for statement in self.tree.body:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    if bound in used:
                        lines.append(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
                        known.add(bound)
            elif isinstance(statement, ast.ImportFrom):
                taken = [a for a in statement.names if (a.asname or a.name) in used]
                if taken:
                    lines.append(f"from {self._absolute(statement)} import "
                                 + ", ".join(a.name + (f" as {a.asname}" if a.asname else "") for a in taken))
                    known |= {a.asname or a.name for a in taken}
        own = [name for name in self._defined() if name in used - known]
        return lines + ([f"from {self.module} import {', '.join(own)}"] if own and self.module != "lesson" else [])

    def _absolute(self, statement):
        """The module that an import is from."""
        if not statement.level:
            return statement.module
        return importlib.util.resolve_name("." * statement.level + (statement.module or ""), self.package)

    def _defined(self):
        """Names that the file's own top level defines, in order."""
        out = []
        for statement in self.tree.body:
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                out.append(statement.name)
            elif isinstance(statement, ast.Assign):
                out += [n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        return out

    def _shadowed(self):
        """Names of built-in functions that the file uses for something of its own, as ``sum``."""
        bound = {a.asname or a.name for s in self.tree.body if isinstance(s, (ast.Import, ast.ImportFrom)) for a in s.names}
        return (bound | set(self._defined())) & set(vars(builtins))


def _used(node):
    """Names that a node takes from around it: not its arguments, nor what it binds itself."""
    names, own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}, set()
    if isinstance(node, ast.FunctionDef):
        own = {a.arg for a in ast.walk(node) if isinstance(a, ast.arg)}
        own |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names - own


def source_of(exercise):
    """The `Source` in which the answer of an exercise stands."""
    if exercise.module == "lesson":
        return Source(exercise.lesson.path(LESSON), "lesson", "")
    found = importlib.util.find_spec(exercise.module)
    if found is None or not found.origin:
        raise ValueError(f"{exercise.id}: there is no module {exercise.module}")
    package = exercise.module if found.submodule_search_locations else exercise.module.rpartition(".")[0]
    return Source(found.origin, exercise.module, package)


def found(exercise):
    """(the `Source`, the answer's node, [nodes of the classes around it])."""
    source = source_of(exercise)
    node, classes = source.find(exercise.qualname)
    if classes:
        node.decorator_list = []  # property, staticmethod: what makes a method of the function is not the learner's business
    return source, node, classes


def heading(exercise, classes=()):
    """The docstring of a learner's file."""
    of = f" It is a method of `{classes[-1].name}`, and ``self`` is one." if classes else ""
    text = textwrap.fill(f"{exercise.task}{of}", WIDTH)
    place = "this lesson" if exercise.module == "lesson" else exercise.module
    return f'"""Exercise {exercise.id}: `{exercise.qualname}` of {place}.\n\n{text}\n"""\n'


def stub_of(exercise):
    """The text of a learner's file before anything was written."""
    return _file(exercise, lambda source, node: _emptied(exercise, source, node))


def solution_of(exercise):
    """The text of a learner's file with the answer in it."""
    return _file(exercise, lambda source, node: source.text_of(node))


def mutant_file(exercise, mutant):
    """The text of a learner's file with a wrong answer in it: a `Mutant` of the lesson's mutants.py."""
    source, plain = Source(exercise.lesson.path(MUTANTS), "mutants", ""), getattr(mutant.answer, "py_func", mutant.answer)
    nodes = [n for n in source.tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and any(
        isinstance(d, ast.Call) and [getattr(a, "value", None) for a in d.args[:2]] == [mutant.id, mutant.name]
        for d in n.decorator_list)]
    if not nodes:
        raise ValueError(f"{source.path}: no wrong answer {mutant.name} of {mutant.id} ({plain.__name__})")
    node = nodes[0]
    node.decorator_list = [d for d in node.decorator_list
                           if not (isinstance(d, ast.Call) and getattr(d.func, "id", "") == "mutant")]
    parts = [*source.helpers_of(node), node]
    imports = dict.fromkeys(line for part in parts for line in source.imports(part)
                            if not line.startswith("from mutants import "))
    return "\n".join([*imports, "", *(f"\n{source.text_of(part)}\n" for part in parts)])


def missing_names(text):
    """{names} that the code of a file takes from its top level, where nothing of the name is."""
    top = symtable.symtable(text, "file", "exec")
    there, used, todo = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}, set(), [top]
    while todo:
        table = todo.pop()
        used |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
        todo += table.get_children()
    return used - there - set(vars(builtins))


def imports_of_stub(exercise):
    """[import lines] of a stub."""
    source, node, _ = found(exercise)
    return source.imports(node)


def solution_code(exercise):
    """(lines up to the docstring, lines of the body) of the answer; of a class all lines are body."""
    source, node, _ = found(exercise)
    lines = source.text_of(node).split("\n")
    head = [] if isinstance(node, ast.ClassDef) else _head(source, node)
    return head, lines[len(head):] if len(head) < len(lines) or not head else [ast.get_source_segment(source.text, node.body[-1])]


def _file(exercise, code):
    """Heading, imports and code."""
    source, node, classes = found(exercise)
    imports = source.imports(node)
    parts = [heading(exercise, classes), "\n".join(imports) + "\n" if imports else None,
             "\n" + code(source, node).rstrip() + "\n"]
    text = "\n".join(part for part in parts if part is not None)
    return "\n".join(line for line in text.split("\n") if line.strip() not in (BEGIN, END))


def _emptied(exercise, source, node):
    """The text of a function, or of a class and each of its functions, without the bodies."""
    if isinstance(node, ast.FunctionDef):
        return _without_body(exercise, source, node)
    out, first = source.text_of(node).split("\n"), min([node.lineno, *(d.lineno for d in node.decorator_list)])
    for part in reversed([n for n in node.body if isinstance(n, ast.FunctionDef)]):
        start = min([part.lineno, *(d.lineno for d in part.decorator_list)])
        out[start - first:part.end_lineno - first + 1] = textwrap.indent(
            _without_body(exercise, source, part), "    ").split("\n")
    return "\n".join(out)


def _without_body(exercise, source, node):
    """A function's lines up to its docstring, and an error for the rest."""
    return "\n".join([*_head(source, node),
                      f'    raise NotImplementedError("{exercise.id}: {node.name} is still to be written")'])


def _head(source, node):
    """A function's lines up to its docstring."""
    lines, first = source.text_of(node).split("\n"), min([node.lineno, *(d.lineno for d in node.decorator_list)])
    documented = ast.get_docstring(node) is not None
    last = node.body[0].end_lineno if documented else node.body[0].lineno - 1  # the last line that is kept
    head = lines[:last - first + 1]
    if node.body[0].lineno == node.lineno:  # all on one line
        head = [*lines[:node.lineno - first], f"def {node.name}({ast.unparse(node.args)}):"]
    return head
