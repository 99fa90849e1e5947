"""What an answer may not do, found in its syntax tree: take the answer from the package, or go around the checker.

Only what is needed to write the answer can be imported: what the stub imports, NumPy, Numba, the engine's operations and a few
modules of Python's own. The answer's own name, wherever it could be had ready-made, may not be used, nor may what runs text as a
program or reaches into the interpreter.
"""

import ast

from .stubs import stub_of

MODULES = {"numpy", "numba", "math", "functools", "itertools", "collections", "dataclasses", "typing", "operator", "__future__"}
FORBIDDEN = {"eval", "exec", "compile", "__import__", "open", "globals", "locals", "vars", "super", "input", "breakpoint", "exit",
             "quit", "setattr", "delattr", "memoryview"}
OPERATIONS = "minipeft.autograd"


def shortcuts(exercise, text):
    """[(line, what is wrong)] of a learner's file.

    Raises SyntaxError where it is not Python.
    """
    tree, allowed = ast.parse(text), imported(ast.parse(stub_of(exercise)))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for module, name in imports_of(node):
                if module.partition(".")[0] in MODULES or (module, name) in allowed or module == OPERATIONS and name != exercise.name or (
                        module, name) == ("minipeft", "autograd"):
                    continue
                whole = f"{module}.{name}" if name else module
                why = "that is where the answer stands" if module == exercise.module else "only what the answer needs can be imported"
                found.append((node.lineno, f"imports {whole}; {why}"))
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN:
            found.append((node.lineno, f"uses {node.id}, which an answer has no need of"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr.endswith("__"):
            found.append((node.lineno, f"uses .{node.attr}, which an answer has no need of"))
        elif isinstance(node, ast.Attribute) and ready_made(exercise, node):
            found.append((node.lineno, f"uses {ast.unparse(node)}, which is the answer itself; write it out"))
    return sorted(set(found))


def imports_of(node):
    """[(module, name)] of an import; the name is empty for a module as a whole."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    return [(("." * node.level) + (node.module or ""), alias.name) for alias in node.names]


def imported(tree):
    """{(module, name)} of all imports in a tree."""
    return {each for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for each in imports_of(node)}


def ready_made(exercise, node):
    """Whether an attribute is the answer under another roof: F.softmax in an exercise on softmax."""
    return node.attr == exercise.name and isinstance(node.value, ast.Name) and node.value.id in ("F", "autograd", "ops", "kernels", "fused")
