"""Checking a learner's file: what passes, what is refused and in which words, and that nothing fools it."""

import json
import os
import time

import pytest

from minipeft.learn.answers import mutants_of
from minipeft.learn.checker import check
from minipeft.learn.grader import YOURS, Candidate, grade
from minipeft.learn.stubs import solution_of, stub_of


def outcome_of(exercise, text, folder, **settings):
    """What comes of a text as a learner's file."""
    path = folder / exercise.filename
    path.write_text(text)
    return check(exercise, path, **settings)


HEAD = "from minipeft.autograd import Tensor\n\n\n"
RIGHT = HEAD + '''def multiply(a, b):
    return Tensor(a.data * b.data, parents=[(a, lambda g: g * b.data), (b, lambda g: g * a.data)])
'''


# ---- right, wrong, unwritten -----------------------------------------------------------------------------------


def test_solutions_pass_and_stubs_do_not(course, tmp_path):
    for exercise in course.exercises:
        assert outcome_of(exercise, solution_of(exercise), tmp_path).passed
        stub = outcome_of(exercise, stub_of(exercise), tmp_path)
        assert not stub.passed and stub.unwritten and stub.failed["message"].startswith(f"{exercise.id}: ")


def test_an_answer_in_other_words_passes(course, tmp_path):
    outcome = outcome_of(course.exercise("01.1"), RIGHT, tmp_path)
    assert outcome.passed and [test["claim"] for test in outcome.tests] == ["The product of a and b.", "da is g b and db is g a."]


def test_a_wrong_one_is_shown_beside_the_right_one(course, tmp_path):
    outcome = outcome_of(course.exercise("01.2"), "def halve(x):\n    y = 0.4 * x\n    return y\n", tmp_path)
    failed = outcome.failed
    assert not outcome.passed and failed["claim"] == "Half of x." and failed["message"].startswith("x / 2 differs by up to ")
    assert failed["yours"]["about"] == failed["expected"]["about"] == "float64, shape (4,)" and failed["yours"]["values"][0] == "["
    assert failed["where"] == "01_2_halve.py:1" and failed["largest"] > 0 and outcome.diagnosis is None
    assert json.loads(json.dumps(outcome.as_dict()))["tests"][0]["passed"] is False


@pytest.mark.parametrize("id, text, name", [
    ("01.2", "def halve(x):\n    return x + x\n", "twice"), ("01.2", "def halve(number):\n    return 1 * number\n", "whole"),
    ("01.1", RIGHT.replace("lambda g: g * b.data), (b, lambda g: g * a.data", "lambda g: a.data * g), (b, lambda g: b.data * g"), "swapped"),
    ("01.3", "import numpy as np\n\n\ndef change(self):\n    return np.einsum('ir,jr->ij', self.U.data, self.V.data)\n", "unscaled")])
def test_a_known_wrong_answer_in_other_words_has_its_diagnosis(id, text, name, course, tmp_path):
    outcome = outcome_of(course.exercise(id), text, tmp_path)
    assert not outcome.passed and outcome.diagnosis["name"] == name and outcome.diagnosis["text"]


def test_a_wrong_answer_is_run_beside_it_as_long_as_the_two_are_alike(course):
    exercise = course.exercise("01.1")
    swapped, of_sum, no_db = (Candidate(m.name, m.answer, None, m.diagnosis) for m in mutants_of(exercise))
    ran = lambda mine: {name: [told.name for told in each] for name, each in
                        grade(exercise, [Candidate(YOURS, mine.answer), swapped, of_sum, no_db]).items()}
    both = ["test_product", "test_gradients"]
    found = ran(of_sum)  # the product is right with the first, so it is known there that it is another
    assert found == {YOURS: both, "swapped": ["test_product", "the end"], "sum": both, "no_db": ["the end"]}
    found = ran(swapped)  # the first is it: the others are not asked
    assert found == {YOURS: both, "swapped": both, "sum": ["the end"], "no_db": ["the end"]}


@pytest.mark.parametrize("text, message", [
    ("def halve(x):\n    return None\n", "x / 2 is None; expected float64, shape (4,)"),
    ("def halve(x):\n    return x[:2] / 2\n", "x / 2 has the shape (2,); expected (4,)"),
    ("def halve(x):\n    return (x / 2).astype('float32')\n", "x / 2 is float32; expected float64"),
    ("def halve(x):\n    return x / 0\n", "x / 2 has entries that are not finite"),
    ("def halve(x):\n    return 'half'\n", "x / 2 is 'half'; expected float64, shape (4,)")])
def test_shape_kind_and_type_are_told_apart(text, message, course, tmp_path):
    assert outcome_of(course.exercise("01.2"), text, tmp_path).failed["message"] == message


def test_an_array_is_no_tensor(course, tmp_path):
    outcome = outcome_of(course.exercise("01.1"), "def multiply(a, b):\n    return a.data * b.data\n", tmp_path)
    assert outcome.failed["message"] == "a b is a ndarray; expected a Tensor"


def test_an_error_names_the_line(course, tmp_path):
    outcome = outcome_of(course.exercise("01.2"), "def halve(x):\n    y = 3\n    return y + [x]\n", tmp_path)
    failed = outcome.failed
    assert failed["kind"] == "error" and failed["message"].startswith("TypeError: ") and failed["where"] == "01_2_halve.py:3"
    assert failed["line"] == "return y + [x]"


# ---- what does not fool it -------------------------------------------------------------------------------------

FOOLING = {
    "canary": ("def halve(x):\n    raise RuntimeError('canary')\n", "RuntimeError: canary"),
    "empty": ("", "the file is empty; minipeft learn reset 01.2 makes it anew"),
    "blank": (" \n\n", "the file is empty"),
    "no function": ("x = 1\n", "there is no halve; the file must define it"),
    "another's function": ("from numpy import negative as halve\n", "halve comes from elsewhere; the file must define it itself"),
    "prints passed": ("print('passed')\n\n\ndef halve(x):\n    print('passed')\n    return x\n", "x / 2 differs by up to"),
    "exits at once": ("raise SystemExit(0)\n", "SystemExit: 0"),
    "exits when called": ("def halve(x):\n    raise SystemExit(0)\n", "SystemExit: 0"),
    "keyboard": ("def halve(x):\n    raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "not python": ("def halve(x)\n    return x\n", "not Python: "),
    "imports os": ("import os\n\n\ndef halve(x):\n    os._exit(0)\n", "imports os; only what the answer needs can be imported"),
    "eval": ("def halve(x):\n    return eval('x / 2')\n", "uses eval, which an answer has no need of"),
    "reaches around": ("def halve(x):\n    return x.__class__(x / 2)\n", "uses .__class__, which an answer has no need of"),
    "not utf-8": (b"def halve(x):\n    return '\xff'\n", "not UTF-8"),
}


@pytest.mark.parametrize("name", FOOLING)
def test_nothing_fools_it(name, course, tmp_path):
    text, message = FOOLING[name]
    path = tmp_path / "01_2_halve.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = check(course.exercise("01.2"), path)
    said = outcome.fault["message"] if outcome.fault else outcome.failed["message"]
    assert not outcome.passed and said.startswith(message)


@pytest.mark.parametrize("text, message", [
    ("from minipeft.autograd.ops import multiply\n", "imports minipeft.autograd.ops.multiply; that is where the answer stands"),
    ("from minipeft.autograd import multiply\n", "imports minipeft.autograd.multiply; only what the answer needs can be imported"),
    ("from minipeft import autograd as F\n\n\ndef multiply(a, b):\n    return F.multiply(a, b)\n",
     "uses F.multiply, which is the answer itself; write it out"),
    ("import minipeft\n", "imports minipeft; only what the answer needs can be imported"),
    ("import importlib\n", "imports importlib; only")])
def test_the_answer_cannot_be_imported(text, message, course, tmp_path):
    fault = outcome_of(course.exercise("01.1"), text, tmp_path).fault
    assert fault["kind"] == "shortcut" and fault["message"].startswith(message) and fault["where"].startswith("01_1_multiply.py:")


def test_a_method_cannot_ask_the_class_above(course, tmp_path):
    outcome = outcome_of(course.exercise("01.3"), "def change(self):\n    return super(type(self), self).change()\n", tmp_path)
    assert outcome.fault["message"] == "uses super, which an answer has no need of"


def test_a_loop_without_end_is_ended(course, tmp_path):
    started = time.monotonic()
    outcome = outcome_of(course.exercise("01.2"), "def halve(x):\n    while True:\n        pass\n", tmp_path, seconds=2)
    assert not outcome.passed and outcome.failed["kind"] == "time" and outcome.failed["where"].startswith("01_2_halve.py:")
    assert time.monotonic() - started < 40
    outcome = outcome_of(course.exercise("01.2"), "while True:\n    pass\n", tmp_path, seconds=0.1)
    assert "is there a loop without an end?" in outcome.fault["message"]


def test_what_eats_memory_is_ended(course, tmp_path):
    text = "import numpy as np\n\n\ndef halve(x):\n    parts = []\n    while True:\n        parts.append(np.ones(10**7))\n"
    outcome = outcome_of(course.exercise("01.2"), text, tmp_path, megabytes=400)
    assert not outcome.passed and outcome.failed["kind"] == "memory"
    assert outcome.failed["message"] == "it took more memory than there is for it"


def test_a_file_that_is_not_there(course, tmp_path):
    fault = check(course.exercise("01.2"), tmp_path / "none.py").fault
    assert fault["kind"] == "missing" and "minipeft learn reset 01.2 makes it anew" in fault["message"]


def test_a_result_without_the_token_is_none(course, tmp_path, monkeypatch):
    from minipeft.learn import checker

    real = checker.json.loads
    monkeypatch.setattr(checker.json, "loads", lambda text: {**real(text), "token": "guessed"})
    outcome = outcome_of(course.exercise("01.2"), "def halve(x):\n    return x / 2\n", tmp_path)
    assert not outcome.passed and outcome.fault["kind"] == "ended"


def test_another_variant_has_other_numbers(course, tmp_path):
    exercise, text = course.exercise("01.2"), "def halve(x):\n    return 3 * x\n"
    first, second, again = (outcome_of(exercise, text, tmp_path, variant=v).failed["expected"]["values"] for v in (0, 1, 0))
    assert first == again != second
    assert outcome_of(exercise, solution_of(exercise), tmp_path, variant=1).passed


def test_the_grader_is_the_lessons_whatever_lies_beside_the_file(course, tmp_path):
    (tmp_path / "conftest.py").write_text("raise SystemExit\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit\n")
    before = os.getcwd()
    assert outcome_of(course.exercise("01.2"), solution_of(course.exercise("01.2")), tmp_path).passed and os.getcwd() == before


# ---- the first divergence --------------------------------------------------------------------------------------


def test_the_first_wrong_step_is_named(course, tmp_path):
    text = "def change(self):\n    u, _ = self.factors()\n    v = 2 * self.V.data\n    return u @ v.T\n"
    trace = outcome_of(course.exercise("01.3"), text, tmp_path, trace=True).trace
    assert trace["kind"] == "value" and trace["where"] == "01_3_change.py:3" and trace["line"] == "v = 2 * self.V.data"


def test_a_wrong_gradient_is_named(course, tmp_path):
    text = '''from minipeft import autograd as F
from minipeft.autograd import Tensor


def multiply(a, b):
    first = a + 0.0
    return F.exp(F.log(first * first) * 0.0) * a.data * b
'''
    outcome = outcome_of(course.exercise("01.1"), text, tmp_path, trace=True)
    assert not outcome.passed and outcome.trace is not None and outcome.trace["where"].startswith("01_1_multiply.py:")


def test_nothing_is_followed_where_all_is_well(course, tmp_path):
    assert outcome_of(course.exercise("01.2"), solution_of(course.exercise("01.2")), tmp_path, trace=True).trace is None
