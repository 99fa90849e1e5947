"""The package as a whole: what importing it costs, what it needs, and what it never does."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minipeft

PACKAGE = Path(minipeft.__file__).parent
REPOSITORY = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"numpy", "numba", "llvmlite", "safetensors", "tokenizers", "rich", "matplotlib", "joblib", "scipy", "sacrebleu",
         "rouge_score", "nltk"}


def setup():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


# ---- importing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import minipeft",
        "import minipeft; dir(minipeft); minipeft.__version__",
        "from minipeft.cli import make_parser; make_parser().format_help()",
        "from minipeft.cli import main\ntry: main(['compare', '--help'])\nexcept SystemExit: pass",
        "from minipeft.cli import main\ntry: main(['finetune', '--rank', '0'])\nexcept SystemExit: pass",
        "import minipeft.doctor",
    ],
)
def test_importing_and_asking_for_help_load_nothing_heavy(code, run_python):
    done = run_python(f"{code}\nimport sys\nprint('loaded:', sorted({HEAVY!r} & set(sys.modules)))")
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


def test_nothing_is_compiled_at_import(run_python, tmp_path):
    """Every room is imported; nothing is in the cache of compiled kernels, nor compiled in memory."""
    done = run_python(
        """
        import pkgutil, minipeft
        from importlib import import_module
        names = [m.name for m in pkgutil.walk_packages(minipeft.__path__, "minipeft.") if m.name != "minipeft.__main__"]
        for name in names:
            import_module(name)
        import numba.core.registry, gc
        loops = [o for o in gc.get_objects() if isinstance(o, numba.core.registry.CPUDispatcher)]
        print(len(names) > 40, len(loops) > 10, [str(loop) for loop in loops if loop.signatures])
    """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert done.stdout == "True True []\n" and done.stderr == "", done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.nb?"))


def test_the_rooms_of_a_command_load_no_plots(run_python):
    done = run_python(
        "import sys, minipeft.compare.run, minipeft.compare.comparison, minipeft.compare.predict\n"
        "print(sorted({'matplotlib', 'rich', 'joblib', 'torch', 'transformers', 'sacrebleu', 'rouge_score'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_module_is_the_command(run_python):
    done = subprocess.run(
        [sys.executable, "-m", "minipeft", "--version"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"minipeft {minipeft.__version__}\n")


ALONE = """
    import importlib.abc, sys

    class OnlyThese(importlib.abc.MetaPathFinder):
        known = {"minipeft", "numpy", "numba", "llvmlite", *sys.stdlib_module_names}

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] not in self.known and not name.startswith(("_distutils_hack", "__editable__")):
                raise ModuleNotFoundError(f"{name} is made absent", name=name)

    sys.meta_path.insert(0, OnlyThese())
"""


def test_a_step_of_lora_with_numpy_and_numba_alone(run_python):
    """A list of what is allowed, where nn/test_layering.py has one of what is absent: nothing at all may be needed beside."""
    done = run_python(
        ALONE
        + """
    try:
        import safetensors
        sys.exit("the finder does not work")
    except ModuleNotFoundError:
        pass
    import numpy as np
    from minipeft import LoRA, TransformerConfig, attach
    from minipeft.kernels import adam_step
    from minipeft.models import ClassificationHead, Encoder

    rng = np.random.default_rng(0)
    model = Encoder(TransformerConfig("bert", 11, 8, 2, 2, 12, 16, type_vocab_size=2), rng)
    model.head = ClassificationHead(8, 2, "mean", rng=rng)
    frozen = {path: p.data.copy() for path, p in model.named_parameters()}
    attachment = attach(model, LoRA(rank=2))
    ids, labels, losses = rng.integers(0, 11, (4, 5)), np.array([0, 1, 1, 0]), []
    state = [(p, np.zeros_like(p.data), np.zeros_like(p.data)) for p in attachment.named_parameters().values()]
    for step in range(1, 9):
        loss = model(ids, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        for p, m, v in state:
            adam_step(p.data, p.grad, m, v, step, 0.05, 0.9, 0.999, 1e-8, 0.0, 1.0)
            p.grad = None
    attachment.detach()
    assert losses[-1] < 0.9 * losses[0], losses
    assert all((frozen[path] == p.data).all() for path, p in model.named_parameters())
    print("learnt")
    """
    )
    assert done.stdout.split() == ["learnt"], done.stderr


@pytest.mark.parametrize(
    "module, missing",
    [("minipeft.data", "safetensors"), ("minipeft.interop", "safetensors"), ("minipeft.training.loop", "safetensors")],
)
def test_the_rooms_at_the_edge_say_what_they_need(module, missing, run_python):
    done = run_python(ALONE + f"\n    import {module}")
    assert done.returncode == 1 and f"{missing}" in done.stderr.splitlines()[-1]


def test_a_missing_library_is_one_line_on_the_command_line(run_python):
    done = run_python(
        ALONE + "\n    from minipeft.cli import main\n    sys.exit(main(['generate', '--model', 'm', '--prompt', 'p']))"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "minipeft: safetensors is not installed; run: pip install safetensors\n"


# ---- names -----------------------------------------------------------------------------------------------------


def test_every_name_is_offered_and_found(run_python):
    assert minipeft.__all__ == ["__version__", *minipeft._HOMES] and dir(minipeft) == sorted(minipeft.__all__)
    done = run_python("from minipeft import *\nprint(LoRA.name, __version__, attach.__module__)")
    assert done.stdout.split() == ["lora", minipeft.__version__, "minipeft.methods.attach"], done.stderr
    with pytest.raises(AttributeError, match="^module 'minipeft' has no attribute 'lora'$"):
        minipeft.lora


def test_a_room_is_found_after_its_own_import():
    import minipeft.kernels

    assert minipeft.kernels.REGISTRY and minipeft.use_backend is minipeft.kernels.use_backend


# ---- packaging -------------------------------------------------------------------------------------------------


def test_the_version_is_one():
    assert setup()["metadata"]["version"] == minipeft.__version__


def test_requirements_are_ranges():
    options = setup()["options"]
    required = options["install_requires"].split()
    names = [re.split("[<>=]", line)[0] for line in required]
    assert names == ["numpy", "numba", "safetensors", "tokenizers", "rich", "matplotlib", "joblib"]
    extras = {name: setup()["options.extras_require"][name].strip().splitlines()
              for name in ("seq2seq", "dask", "learn", "test", "peers")}
    assert all(re.fullmatch(r'[a-z-]+>=[0-9.]+(; python_version < "3.11")?', line)
               for line in required + sum(extras.values(), []))
    asked = extras["seq2seq"] + extras["dask"] + extras["learn"]
    assert set(asked) <= set(extras["test"])  # or tests of scores, of clusters and of the course would be skipped
    assert options["python_requires"] == ">=3.10"


def test_every_library_that_is_imported_is_required():
    extras = setup()["options.extras_require"]
    lines = setup()["options"]["install_requires"] + extras["seq2seq"] + extras["dask"] + extras["learn"]
    required = {re.split("[<>=]", line)[0].replace("-", "_") for line in lines.strip().splitlines()}
    found = {
        alias.name.split(".")[0]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found |= {
        node.module.split(".")[0]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert {name.lower() for name in found - set(sys.stdlib_module_names) - {"minipeft"}} - {"tomllib"} <= required


# ---- what the package never does -------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "yaml"}
SAFE_NAMES = {"joblib": {"Parallel", "delayed", "parallel_config"}}  # what runs things; joblib.load would read pickles
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "np.load",
    "numpy.load",
    "np.save",
    "np.savez",
    "torch.load",
    "joblib.load",
    "os.system",
}


def unsafe(text):
    """What in a file opens or writes a pickle, or runs text as a program."""
    out = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in UNSAFE_MODULES:
            if not {alias.name for alias in node.names} <= SAFE_NAMES.get(node.module, set()):
                out.append(node.module)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            out.append(node.arg)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            out.append(ast.unparse(node.func))
        elif isinstance(node, ast.Attribute) and node.attr in ("fromfile", "memmap"):
            out.append(node.attr)
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_and_no_text_is_run(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


def test_the_search_finds_every_form():
    text = (
        "import pickle\nfrom joblib import load, delayed\nfrom joblib import Parallel, delayed\nimport numpy as np\nnp.load(f)\n"
        "np.fromfile(f)\nx(allow_pickle=True)\neval('1')\n"
        "import torch.serialization\nre.compile('x')\nfrom .pickles import y\n"
    )
    assert sorted(unsafe(text)) == sorted(
        ["pickle", "joblib", "np.load", "fromfile", "allow_pickle", "eval", "torch.serialization"]
    )


def test_every_file_opens_with_a_sentence():
    for path in FILES:
        first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert first and re.search(r"[.:](\s|$)", first), path


def test_no_line_is_longer_than_the_rule():
    longest = int(setup()["flake8"]["max-line-length"])
    parts = ("minipeft", "lessons", "tests", "benchmarks")
    files = [path for part in parts for path in sorted((REPOSITORY / part).rglob("*.py"))]
    lines = [f"{path.relative_to(REPOSITORY)}:{number}: {len(line)} characters" for path in files
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > longest]
    assert len(files) > 200 and not lines, "\n".join(lines)


def test_functions_are_short_and_public_ones_explained():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name} is long"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name} is not explained"
