"""What an answer may not do, found in its syntax tree: take the answer from the package, or go around the checker.

Only what is needed to write the answer can be imported: what the stub imports, NumPy, Numba, the engine's operations and a few
modules of Python's own. A module can be looked into and nothing else, ``np.exp`` and not ``np``, so that another name for it
hides nothing. The answer's own name, wherever it could be had ready-made, may not be used, nor may what runs text as a program,
reaches into the interpreter or changes what others use.
"""

import ast
import importlib
import types

from .stubs import stub_of

ENGINE = "minipeft.autograd"
MODULES = {"numpy", "numpy.linalg", "numpy.random", "numpy.fft", "numpy.lib", "numpy.lib.stride_tricks", "numpy.typing", "numba",
           "numba.core.types", "numba.typed", "math", "functools", "itertools", "collections", "collections.abc", "dataclasses",
           "typing", "operator", "__future__"}
BUILTINS = {"eval", "exec", "compile", "__import__", "open", "globals", "locals", "vars", "super", "input", "breakpoint", "exit",
            "quit", "setattr", "delattr", "memoryview", "help"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # what has variables of its own
ATTRIBUTES = {
    "sys", "_sys", "os", "_os", "inspect", "builtins", "importlib", "gc", "ctypes", "_getframe", "mro",  # the interpreter
    "gi_frame", "cr_frame", "ag_frame", "tb_frame", "f_back", "f_locals", "f_globals", "f_builtins",     # whoever calls
    "attrgetter", "methodcaller", "update_wrapper", "wraps",                                             # attributes by name
    "get_type_hints", "ForwardRef", "singledispatch", "singledispatchmethod",                            # these run text
    "load", "loadtxt", "genfromtxt", "fromfile", "fromregex", "memmap", "DataSource", "save", "savez", "savez_compressed",
    "savetxt", "tofile", "dump", "objmode"}                                                              # files

# What a class in an answer may define; with __eq__ a result could be the same as any other.
SPECIAL = {"__init__", "__post_init__", "__call__", "__enter__", "__exit__", "__iter__", "__next__", "__len__", "__getitem__",
           "__repr__", "__slots__"}


class Shortcut(Exception):
    """What could only be seen while the answer ran."""


def shortcuts(exercise, text):
    """[(line, what is wrong)] of a learner's file.

    Raises SyntaxError where it is not Python.
    """
    tree = ast.parse(text)
    names, found = _imports(exercise, tree)
    looked_into = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    carriers, own = {*names, *_other_names(tree, names)}, _own_names(tree)
    for node in ast.walk(tree):
        said = None if id(node) in own else _name(node, names, looked_into)
        said = said or _special(node) or _attribute(exercise, node, names, looked_into) or _change(node, carriers)
        if said:
            found.append((node.lineno, said))
    return sorted(set(found))


# ---- imports ---------------------------------------------------------------------------------------------------


def imports_of(node):
    """[(module, name)] of an import; the name is empty for a module as a whole."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    return [(("." * node.level) + (node.module or ""), alias.name) for alias in node.names]


def imported(tree):
    """{(module, name)} of all imports in a tree."""
    return {each for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for each in imports_of(node)}


def _imports(exercise, tree):
    """({name: the object that an import binds to it}, [(line, what is wrong)])."""
    of_stub = imported(ast.parse(stub_of(exercise)))
    names, found = {}, []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for (module, name), alias in zip(imports_of(node), node.names):
            value = _value(module, name) if (module, name) in of_stub or module in MODULES or _of_engine(module, name) else None
            said = None if (module, name) in of_stub else _import(exercise, module, name, value, of_stub)
            if said:
                found.append((node.lineno, f"imports {module}{'.' * bool(name)}{name}; {said}"))
            elif isinstance(node, ast.Import) and not alias.asname:
                names[module.partition(".")[0]] = _value(module.partition(".")[0], "")
            else:
                names[alias.asname or alias.name] = value
    return names, found


def _import(exercise, module, name, value, of_stub):
    """What is wrong with an import that the stub does not have, or None."""
    if module == exercise.module:
        return "that is where the answer stands"
    if _of_engine(module, name):
        if not engine_open(exercise, of_stub):
            return "the answer is written without the engine"
        return f"that {_taken(exercise, name)}" if ready_made(exercise, module, name) else None
    if module in MODULES and not closed(name) and not name.startswith(("_", "*")) and _known(value):
        return None
    return "only what the answer needs can be imported"


def _value(module, name):
    """The object that an import binds; None where there is none, as loading the file will say."""
    try:
        whole = importlib.import_module(module)
        return getattr(whole, name) if name else whole
    except (ImportError, AttributeError):
        return None


def _known(value):
    """Whether something is no module, or one that may be looked into."""
    return not isinstance(value, types.ModuleType) or value.__name__ in MODULES


# ---- the engine ------------------------------------------------------------------------------------------------


def _of_engine(module, name):
    """Whether an import is of the engine as a whole or of one of its operations."""
    return (module, name) == ("minipeft", "autograd") or module == ENGINE and (not name or name in _operations())


def _operations():
    """Names of what the engine offers."""
    return importlib.import_module(ENGINE).__all__


def engine_open(exercise, of_stub):
    """Whether an answer may use the engine: not where it is a part of the engine or of a kernel, or of the lesson that introduces
    the engine, and its stub does without. The engine's own backward pass would do such an exercise."""
    first = exercise.module == "lesson" and ENGINE in exercise.lesson.introduces
    below = first or exercise.module.startswith(("minipeft.kernels", ENGINE))
    return not below or any(module.startswith(ENGINE) or (module, name) == ("minipeft", "autograd") for module, name in of_stub)


def ready_made(exercise, module, name):
    """Whether an operation of the engine is the answer, or is made of it:
    F.attention_weights has attention_weights_composed in it."""
    if not module.startswith(ENGINE) or not exercise.module.startswith(ENGINE):
        return False
    todo, seen = [_value(module, name)], set()
    while todo:
        function = todo.pop()
        if not isinstance(function, types.FunctionType) or not function.__module__.startswith(ENGINE) or function in seen:
            continue
        seen.add(function)
        if (function.__module__, function.__name__) == (exercise.module, exercise.name):
            return True
        todo += [function.__globals__.get(used) for used in _used(function.__code__)]
    return False


def _taken(exercise, name):
    """What is wrong with an operation that is `ready_made`."""
    return f"{'is the answer itself' if name == exercise.name else 'has the answer in it'}; write it out"


def _used(code):
    """Names that a function takes from around it, and that the functions in it do."""
    return {*code.co_names, *(name for part in code.co_consts if isinstance(part, types.CodeType) for name in _used(part))}


# ---- names and attributes --------------------------------------------------------------------------------------


def closed(name):
    """Whether an attribute leads out of the answer."""
    return name in ATTRIBUTES or name.startswith("__") and name.endswith("__")


def attribute(value, name, *default):
    """``getattr`` as an answer has it: for what could be written as an attribute. Raises `Shortcut` for the rest."""
    if type(name) is not str or closed(name) or isinstance(value, types.ModuleType):
        raise Shortcut(f"getattr of {name!r}, which an answer has no need of")
    return getattr(value, name, *default)


def _own_names(tree):
    """Numbers (`id`) of the names that look like a built-in function's and stand for a variable of a function's own."""
    out = set()
    # may mean the built-in one
    doubtful = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}

    def walk(node, known):
        """``known``: the variables of the functions around a node."""
        if isinstance(node, ast.Name) and node.id in (known & BUILTINS) - doubtful:
            out.add(id(node))
        inside = node.body if isinstance(node, FUNCTIONS) else []  # defaults and decorators belong to what is around
        inside = inside if isinstance(inside, list) else [inside]
        for child in ast.iter_child_nodes(node):
            walk(child, known | _variables(node) if child in inside else known)

    walk(tree, frozenset())
    return out


def _variables(function):
    """The names that a function binds in its own scope: its arguments and what it assigns to."""
    args = function.args
    out = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg)))}
    todo = [] if isinstance(function, ast.Lambda) else list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        if not isinstance(node, SCOPES):
            todo += ast.iter_child_nodes(node)
    return frozenset(out)


def _name(node, names, looked_into):
    """What is wrong with a name that stands for itself, or None."""
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return None
    if node.id in BUILTINS or closed(node.id) and node.id.startswith("__") and node.id != "__name__":
        return f"uses {node.id}, which an answer has no need of"
    if isinstance(names.get(node.id), types.ModuleType) and id(node) not in looked_into:
        return f"uses {node.id} by itself; write {node.id}. and the name of what is meant"
    return None


def _special(node):
    """What is wrong with a definition that Python itself would call, or None."""
    name = getattr(node, "name", "") if isinstance(node, ast.FunctionDef) else ""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        name = node.id
    if name.startswith("__") and closed(name) and name not in SPECIAL:
        return f"defines {name}, which an answer has no need of"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "type" and len(node.args) + len(node.keywords) > 1:
        return "makes a class by type(), which an answer has no need of"
    return None


def _attribute(exercise, node, names, looked_into):
    """What is wrong with an attribute, or None."""
    if isinstance(node, ast.MatchClass):
        return next((f"uses {name} in a pattern, which an answer has no need of"
                     for name in node.kwd_attrs if closed(name)), None)
    if not isinstance(node, ast.Attribute):
        return None
    whole = ast.unparse(node)
    if closed(node.attr):
        return f"uses .{node.attr}, which an answer has no need of"
    base, value = _static(node.value, names), _static(node, names)
    if not isinstance(base, types.ModuleType):
        return None
    ours = base.__name__.startswith("minipeft")
    if ours and node.attr == exercise.qualname or ready_made(exercise, base.__name__, node.attr):
        return f"uses {whole}, which {_taken(exercise, node.attr)}"
    offered = getattr(base, "__all__", None) if ours else None
    if node.attr.startswith("_") or not _known(value) or offered is not None and node.attr not in offered:
        return f"uses {whole}, which an answer has no need of"
    if isinstance(value, types.ModuleType) and id(node) not in looked_into:
        return f"uses {whole} by itself; write {whole}. and the name of what is meant"
    return None


def _static(node, names):
    """The module, or what a module holds, that a name or a chain of attributes stands for; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    base = _static(node.value, names) if isinstance(node, ast.Attribute) else None
    return getattr(base, node.attr, None) if isinstance(base, types.ModuleType) else None


# ---- changes to what others use --------------------------------------------------------------------------------


def _change(node, carriers):
    """What is wrong with a value that is put into an attribute or an entry, or None."""
    if not isinstance(node, (ast.Attribute, ast.Subscript)) or isinstance(node.ctx, ast.Load):
        return None
    root = node
    while isinstance(root, (ast.Attribute, ast.Subscript)):
        root = root.value
    of_class = isinstance(root, ast.Call) and ast.unparse(root.func) == "type"
    method = isinstance(node, ast.Attribute) and node.attr in _methods() and ast.unparse(node.value) != "self"
    if of_class or method or isinstance(root, ast.Name) and root.id in carriers:
        return f"changes {ast.unparse(node)}, which others use as well"
    return None


def _methods():
    """Names of the methods of tensors and modules."""
    from ..autograd import Tensor
    from ..nn import Module

    return {name for kind in (Tensor, Module) for name in dir(kind) if callable(getattr(kind, name))} | {"forward"}


def _other_names(tree, names):
    """Names that are bound to something imported, as T by T = Tensor."""
    out, size = set(), -1
    while len(out) > size:
        size = len(out)
        for node in ast.walk(tree):
            value = getattr(node, "iter" if isinstance(node, (ast.For, ast.comprehension)) else "value", None)
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            if isinstance(value, ast.AST) and _itself(value) & {*names, *out}:
                out |= {n.id for t in targets if t for n in ast.walk(t)
                        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return out


def _itself(node):
    """Names of what a value is, or holds as it is: of a and b in (a, b.c), and of none in a(b)."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return {name for each in node.elts for name in _itself(each)}
    if isinstance(node, ast.IfExp):
        return _itself(node.body) | _itself(node.orelse)
    while isinstance(node, ast.Attribute):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
