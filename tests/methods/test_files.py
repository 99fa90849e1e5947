"""Each method is one short file in the order of the house, and the README's table has them all."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import minipeft.methods
from minipeft.methods import METHODS

FOLDER = Path(minipeft.methods.__file__).parent
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
FILES = sorted({Path(__import__(method.__module__, fromlist=["x"]).__file__) for method in METHODS.values()})
OTHERS = [FOLDER / f"{name}.py"
          for name in ("nf4", "combine", "adapter_drop", "unfreezing", "virtual", "targets", "shapes", "values",
                       "early_exit", "exit_rules", "exit_training", "token_exit", "layer_skip")]
BLANK = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(text):
    """Number of lines that hold code: not blank, no comment, no docstring."""
    prose, code = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def test_the_counter_counts_code_only():
    assert lines_of_code('"""A.\n\nB."""\n\nx = 1  # one\n# no\n\n\n'
                         'def f():\n    """Doc."""\n    return (1,\n            2)\n') == 4


@pytest.mark.parametrize("path", [*FILES, *OTHERS], ids=lambda path: path.name)
def test_a_method_has_120_lines_of_code_or_fewer(path):
    assert lines_of_code(path.read_text(encoding="utf-8")) <= 120


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_method_opens_with_a_sentence_its_source_and_its_count(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    first = doc.split("\n")[0]
    assert first.endswith(".") and ":" in first and len(first) <= 130
    assert re.search(r"(19|20)\d\d", doc) and "ount" in doc, "a source with its year, and the count"
    assert "=" in doc or "<-" in doc


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_class_stands_below_its_modules_and_says_what_it_takes(method):
    text = Path(__import__(method.__module__, fromlist=["x"]).__file__).read_text(encoding="utf-8")
    classes = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    assert method.__name__ in classes and method.__doc__ and method.default_lr > 0
    assert method.count is not METHODS["head"].__mro__[1].count, "a count in closed form"


def test_the_readme_has_every_method_with_its_file():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+\.py)` \| (.+?) \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    assert [row[0] for row in rows] == list(METHODS)
    for name, file, count, merges, where in rows:
        assert Path(__import__(METHODS[name].__module__, fromlist=["x"]).__file__).name == file
        assert merges == "in place" or merges.startswith("no" if METHODS[name].unmergeable else "yes"), name
