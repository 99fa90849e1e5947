"""The house rules that a machine can hold: who imports whom, no fine-tuning method named in the base, and a light base."""

import ast
import importlib
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

import minipeft

PACKAGE = Path(minipeft.__file__).parent
# From the ground up: a package imports only from those before it. Modules beside the packages (cli and so on) are the roof.
ORDER = ["kernels", "autograd", "nn", "models", "data", "training", "methods", "prompting", "interop", "compare", "learn"]
BASE = ["kernels", "autograd", "nn", "models"]
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def files_of(package):
    return sorted((PACKAGE / package).rglob("*.py"))


def imports_of(path):
    """(full name of a module, number of the line) for every import in a file, inside functions too."""
    here = ("minipeft", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = list(here[:len(here) - node.level + 1]) if node.level else []
            stem += node.module.split(".") if node.module else []
            if len(stem) < 2 and stem[:1] == ["minipeft"]:  # from .. import autograd
                yield from ((f"minipeft.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield ".".join(stem), node.lineno


def test_every_package_has_its_place():
    assert not set(PACKAGES) - set(ORDER), "give the new package its place in ORDER and in DESIGN.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_those_below_it(package):
    allowed = {"minipeft." + name for name in ORDER[:ORDER.index(package) + 1]}
    wrong = [f"{path.relative_to(PACKAGE)}:{line} imports {module}"
             for path in files_of(package) for module, line in imports_of(path)
             if module.split(".")[0] == "minipeft" and ".".join(module.split(".")[:2]) not in allowed]
    assert not wrong


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "nn" / "deep").mkdir(parents=True)
    path = tmp_path / "nn" / "deep" / "x.py"
    path.write_text("import numpy.linalg\nfrom ... import autograd as F\nfrom ...methods.lora import LoRA\nfrom . import y\n"
                    "from ..module import Module\ndef f():\n    import minipeft.interop.hf\n    from minipeft import data\n")
    assert [name for name, _ in imports_of(path)] == [
        "numpy.linalg", "minipeft.autograd", "minipeft.methods.lora", "minipeft.nn.deep", "minipeft.nn.module",
        "minipeft.interop.hf", "minipeft.data"]


@pytest.mark.parametrize("package", [p for p in (*BASE, "methods") if p in PACKAGES])
def test_the_lower_packages_need_numpy_and_the_kernels_numba(package):
    allowed = {"minipeft", "numpy", *sys.stdlib_module_names} | ({"numba"} if package == "kernels" else set())
    wrong = [f"{path.name}:{line} imports {module}" for path in files_of(package) for module, line in imports_of(path)
             if module.split(".")[0] not in allowed]
    assert not wrong


# ---- the base names no method -----------------------------------------------------------------------------------

METHODS = re.compile(r"lora|dora|ia3|ia_3|adapter|prefix|prompt|bitfit|peft|houlsby|pfeiffer|compacter|soft_token|lo_re|unfreez|"
                     r"early_exit", re.I)
NOT_OURS = {"thread_name_prefix"}  # an argument of the standard library


def method_names(text):
    names = [(token.string, token.start[0]) for token in tokenize.generate_tokens(io.StringIO(text).readline)
             if token.type == tokenize.NAME and token.string not in NOT_OURS]
    return [(name, line) for name, line in names if METHODS.search(name)]


@pytest.mark.parametrize("package", BASE)
def test_the_base_names_no_method(package):
    wrong = [f"{path.name}:{line} {name}" for path in files_of(package)
             for name, line in method_names(path.read_text(encoding="utf-8"))]
    assert not wrong


def test_the_search_for_methods_reads_code_only():
    text = '"""A prefix, an adapter."""\nx = 1  # lora\ny = f(prefix_length, "prompt")\nfrom ..methods import LoRALinear as L\n'
    assert method_names(text) == [("prefix_length", 3), ("LoRALinear", 4)]


def test_every_module_opens_with_one_plain_sentence():
    for package in BASE:
        for path in files_of(package):
            first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]
            assert first.endswith(".") and len(first) <= 140, path


# ---- the base needs numpy and numba alone -----------------------------------------------------------------------

LIGHT = """
    import importlib.abc, sys

    class Refuse(importlib.abc.MetaPathFinder):
        absent = {"safetensors", "tokenizers", "rich", "matplotlib", "joblib", "scipy", "torch", "transformers", "peft", "yaml"}

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in self.absent:
                raise ImportError(f"{name} is made absent")

    sys.meta_path.insert(0, Refuse())
    try:
        import safetensors
        sys.exit("the finder does not work")
    except ImportError:
        pass

    import numpy as np
    from minipeft.kernels import adam_step
    from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, TransformerConfig, generate

    def config(model_type, **more):
        return TransformerConfig(model_type=model_type, vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=12, max_position_embeddings=16, **more)

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (2, 5))
    encoder = Encoder(config("bert", type_vocab_size=2), rng)
    encoder.head = ClassificationHead(8, 3, "mean", rng=rng)
    decoder = Decoder(config("llama"), rng)
    decoder.head = LMHead(decoder.config, decoder.embed.tokens.weight, rng)

    def train(model, labels, parameters):
        state = [(p, np.zeros_like(p.data), np.zeros_like(p.data)) for p in parameters]
        losses = []
        for step in range(1, 6):
            loss = model(ids, labels=labels).loss
            loss.backward()
            losses.append(loss.item())
            for p, m, v in state:
                adam_step(p.data, p.grad, m, v, step, 0.01, 0.9, 0.999, 1e-8, 0.0, 1.0)
                p.grad = None
        assert losses[-1] < losses[0], losses

    def base():
        train(encoder, np.array([0, 2]), encoder.parameters())
        train(decoder, ids, decoder.parameters())
        assert generate(decoder, ids, 3).shape == (2, 8)

    def methods():
        from minipeft.methods import LoRA, attach
        train(encoder, np.array([0, 2]), attach(encoder, LoRA(rank=2, targets="q,v")).named_parameters().values())
"""


@pytest.mark.parametrize("what", ["base", "methods"])
def test_trains_with_numpy_and_numba_alone(what, run_python):
    if what not in ("base", *PACKAGES):
        return  # not there yet
    done = run_python(LIGHT + f"\n    {what}()\n    print('done')")
    assert done.stdout.split() == ["done"], done.stderr


def test_import_minipeft_is_light(run_python):
    done = run_python("import sys, minipeft; print(sorted({'numpy', 'numba', 'safetensors', 'tokenizers'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_name_of_the_package_is_found():
    for name in minipeft.__all__:
        assert getattr(minipeft, name) is not None
    with pytest.raises(AttributeError, match="module 'minipeft' has no attribute 'Lora'"):
        minipeft.Lora


@pytest.mark.parametrize("package", BASE)
def test_what_a_package_offers_exists(package):
    module = importlib.import_module(f"minipeft.{package}")
    assert all(hasattr(module, name) for name in module.__all__)
