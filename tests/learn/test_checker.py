"""Checking a learner's file: what passes, what is refused and in which words, and that nothing fools it."""

import io
import json
import os

import numpy as np
import pytest
from rich.console import Console
from small_course import KERNEL, make_course

from minipeft.learn import doctor, screens
from minipeft.learn.answers import hidden, home, mutants_of, written_into
from minipeft.learn.checker import check
from minipeft.learn.claims import Broken, moves_only, same
from minipeft.learn.course import Course
from minipeft.learn.grader import YOURS, Candidate, grade
from minipeft.learn.shortcuts import Shortcut, shortcuts
from minipeft.learn.stubs import solution_of, stub_of
from minipeft.methods import LoRA, attach
from minipeft.models import Decoder, LMHead, TransformerConfig
from minipeft.nn import Linear


def outcome_of(exercise, text, folder, **settings):
    """What comes of a text as a learner's file."""
    path = folder / exercise.filename
    path.write_text(text)
    return check(exercise, path, **settings)


def said_of(outcome):
    """What is wrong with an answer, in words."""
    assert not outcome.passed
    return outcome.fault["message"] if outcome.fault else outcome.failed["message"]


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
    assert (failed["yours"]["about"] == failed["expected"]["about"] == "float64, shape (4,)"
            and failed["yours"]["values"][0] == "[")
    assert failed["where"] == "01_2_halve.py:1" and failed["largest"] > 0 and outcome.diagnosis is None
    assert json.loads(json.dumps(outcome.as_dict()))["tests"][0]["passed"] is False


@pytest.mark.parametrize("id, text, name", [
    ("01.2", "def halve(x):\n    return x + x\n", "twice"), ("01.2", "def halve(number):\n    return 1 * number\n", "whole"),
    ("01.1", RIGHT.replace("lambda g: g * b.data), (b, lambda g: g * a.data", "lambda g: a.data * g), (b, lambda g: b.data * g"),
     "swapped"),
    ("01.3", "import numpy as np\n\n\ndef change(self):\n    return np.einsum('ir,jr->ij', self.U.data, self.V.data)\n",
     "unscaled")])
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


@pytest.mark.parametrize("yours, expected, message", [
    (np.float32(0.5), np.float64(0.5), "x is float32; expected float64"),
    (np.int64(2), np.array(2.0), "x is int64; expected float64"),
    (np.zeros(2, np.float32), np.zeros(2), "x is float32; expected float64"),
    (np.float32(0.5), 0.5, None), (0.5, np.float32(0.5), None), (np.float64(0.5), np.array(0.5), None)])
def test_the_type_of_a_number_counts_where_both_are_numpys(yours, expected, message):
    if message is None:
        same(yours, expected, "x")
    else:
        with pytest.raises(Broken, match=message):
            same(yours, expected, "x")


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
    "prints passed and exits": ("print('passed')\nraise SystemExit(0)\n", "SystemExit: 0"),
    "exits when called": ("def halve(x):\n    raise SystemExit(0)\n", "SystemExit: 0"),
    "a limit by its word": ("def halve(x):\n    raise ValueError('Timeout is 3, expected 4')\n",
        "ValueError: Timeout is 3, expected 4"),
    "keyboard": ("def halve(x):\n    raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "not python": ("def halve(x)\n    return x\n", "not Python: "),
    "imports os": ("import os\n\n\ndef halve(x):\n    os._exit(0)\n", "imports os; only what the answer needs can be imported"),
    "eval": ("def halve(x):\n    return eval('x / 2')\n", "uses eval, which an answer has no need of"),
    "getattr": ("def halve(x):\n    return getattr(x, '__cla' + 'ss__')\n",
        "getattr of '__class__', which an answer has no need of"),
    "input changed": ("def halve(x):\n    x[:] = 0\n    return 0 * x\n", "x was changed; the answer must leave it as it is"),
    "reaches around": ("def halve(x):\n    return x.__class__(x / 2)\n", "uses .__class__, which an answer has no need of"),
    "not utf-8": (b"def halve(x):\n    return '\xff'\n", "not UTF-8"),
}


@pytest.mark.parametrize("name", FOOLING)
def test_nothing_fools_it(name, course, tmp_path):
    text, message = FOOLING[name]
    path = tmp_path / "01_2_halve.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = check(course.exercise("01.2"), path)
    assert said_of(outcome).startswith(message)


# What is seen in the text needs no process.
SHORTCUTS = {
    "builtins": ("def halve(x):\n    return __builtins__['eval']('x / 2')\n",
        "uses __builtins__, which an answer has no need of"),
    "pattern": ("def halve(x):\n    match x:\n        case object(__class__=kind):\n            return kind\n",
        "uses __class__ in a pattern"),
    "getattr of a module": ("import numpy as np\n\n\ndef halve(x):\n    return getattr(np, 'divide')(x, 2)\n",
        "uses np by itself; write np. and"),
    "attrgetter": ("import operator\n\n\ndef halve(x):\n    return operator.attrgetter('T')(x)\n", "uses .attrgetter, which an"),
    "methodcaller": ("from operator import methodcaller\n\n\ndef halve(x):\n    return x\n",
        "imports operator.methodcaller; only"),
    "whoever calls": ("def halve(x):\n    return (n for n in x).gi_frame\n", "uses .gi_frame, which an answer has no need of"),
    "text in annotations": ("import typing\n\n\ndef halve(x: 'print(1)'):\n    return typing.get_type_hints(halve)\n",
        "uses .get_type_hints, which"),
    "sys": ("import dataclasses\n\n\ndef halve(x):\n    return dataclasses.sys.modules\n",
        "uses .sys, which an answer has no need of"),
    "_sys": ("import collections\n\n\ndef halve(x):\n    return collections._sys.modules\n",
        "uses ._sys, which an answer has no need of"),
    "sys by name": ("from typing import sys as s\n\n\ndef halve(x):\n    return s\n",
        "imports typing.sys; only what the answer needs"),
    "a module's module": ("import dataclasses\n\n\ndef halve(x):\n    return dataclasses.keyword.kwlist\n",
        "uses dataclasses.keyword, which"),
    "a file": ("import numpy as np\n\n\ndef halve(x):\n    return np.load('x.npy', allow_pickle=True)\n",
        "uses .load, which an answer"),
    "all names": ("from numpy import *\n\n\ndef halve(x):\n    return x / 2\n", "imports numpy.*; only what the answer needs"),
    "numpy changed": ("import numpy as np\n\nnp.abs = lambda x: 0 * x\n\n\ndef halve(x):\n    return x\n",
        "changes np.abs, which others use"),
    "numpy added to": ("import numpy as np\n\nnp.pi += 1\n\n\ndef halve(x):\n    return x\n", "changes np.pi, which others use"),
    "numpy taken from": ("import numpy as np\n\ndel np.abs\n\n\ndef halve(x):\n    return x\n",
        "changes np.abs, which others use"),
    "numpy by another name": ("import numpy as np\n\nn = np\nn.abs = len\n\n\ndef halve(x):\n    return x\n",
        "uses np by itself; write np. and"),
    "Tensor changed": ("from minipeft.autograd import Tensor\n\nT, x = Tensor, 3\nT.data = x\n\n\ndef halve(x):\n    return x\n",
        "changes T.data, which"),
    "a method changed": ("def halve(x):\n    x.backward = len\n    return x\n", "changes x.backward, which others use as well"),
    "equal to all": ("class All:\n    def __eq__(self, other):\n        return True\n\n\ndef halve(x):\n    return All()\n",
        "defines __eq__, which"),
    "equal by a name": ("class All:\n    __eq__ = max\n\n\ndef halve(x):\n    return All()\n",
        "defines __eq__, which an answer has no need of"),
    "equal by type": ("def halve(x):\n    return type('All', (), {'__eq__': max})()\n",
        "makes a class by type(), which an answer has no need"),
    "a class changed": ("def halve(x):\n    type(x).T = 3\n    return x\n", "changes type(x).T, which others use as well"),
}


@pytest.mark.parametrize("text, line", [
    ("def halve(input):\n    return input / 2\n", None), ("def halve(x):\n    vars = x / 2\n    return vars\n", None),
    ("def halve(x):\n    open = [x]\n    return [each / 2 for each in open][0]\n", None),
    ("halve = lambda input: input / 2\n", None),
    ("def halve(x, y=vars):\n    vars = y\n    return x / 2\n", 1),
    ("def halve(x):\n    [0 for vars in [x]]\n    return vars(x)\n", 3),
    ("def halve(x):\n    global vars\n    vars = vars\n    return x\n", 3),
    ("def halve(x):\n    vars = 1\n    def inner():\n        global vars\n        return vars(x)\n    return inner()\n", 5),
    ("def halve(x):\n    vars = 1\n    class A:\n        global vars\n        found = vars(x)\n    return A.found\n", 5),
    ("vars = 3\n\n\ndef halve(x):\n    return vars\n", 5),
    ("def halve(x):\n    class A:\n        vars = x\n    return vars(A)\n", 4)])
def test_a_variable_of_ones_own_may_be_called_like_a_built_in_function(text, line, course):
    """Where a function's own scope has it; what it stands for elsewhere, it stands for."""
    found = [at for at, said in shortcuts(course.exercise("01.2"), text) if "which an answer has no need of" in said]
    assert found == ([] if line is None else [line])


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_is_seen_in_the_text(name, course):
    text, message = SHORTCUTS[name]
    assert shortcuts(course.exercise("01.2"), text)[0][1].startswith(message)


@pytest.mark.parametrize("text, message", [
    ("from minipeft.autograd.ops import multiply\n", "imports minipeft.autograd.ops.multiply; that is where the answer stands"),
    ("from minipeft.autograd import multiply\n",
     "imports minipeft.autograd.multiply; only what the answer needs can be imported"),
    ("from minipeft import autograd as F\n\n\ndef multiply(a, b):\n    return F.multiply(a, b)\n",
     "uses F.multiply, which is the answer itself; write it out"),
    ("from minipeft import autograd as G\n\n\ndef multiply(a, b):\n    return G.multiply(a, b)\n",
     "uses G.multiply, which is the answer itself; write it out"),
    ("from minipeft import autograd as F\n\nG = F\n\n\ndef multiply(a, b):\n    return G.multiply(a, b)\n",
     "uses F by itself; write F. and"),
    ("from minipeft import autograd as F\n\n\ndef multiply(a, b):\n    return F.ops.multiply(a, b)\n",
     "uses F.ops, which an answer has no need of"),
    ("import minipeft\n", "imports minipeft; only what the answer needs can be imported"),
    ("import importlib\n", "imports importlib; only")])
def test_the_answer_cannot_be_imported(text, message, course):
    assert shortcuts(course.exercise("01.1"), text)[0][1].startswith(message)


def test_a_shortcut_is_a_fault_with_its_line(course, tmp_path):
    fault = outcome_of(course.exercise("01.1"), "from minipeft.autograd.ops import multiply\n", tmp_path).fault
    assert fault["kind"] == "shortcut" and fault["message"].endswith("that is where the answer stands")
    assert (fault["where"], fault["line"]) == ("01_1_multiply.py:1", "from minipeft.autograd.ops import multiply")


@pytest.mark.parametrize("code, message", [
    ("super(type(self), self).change()", "uses super, which an answer has no need of"),
    ("type(self).mro()[1].change(self)", "uses .mro, which an answer has no need of"),
    ("type(self).__base__.change(self)", "uses .__base__, which an answer has no need of"),
    ("getattr(type(self), '__ba' + 'se__').change(self)", "getattr of '__base__', which an answer has no need of")])
def test_a_method_cannot_ask_the_class_above(code, message, course, tmp_path):
    assert said_of(outcome_of(course.exercise("01.3"), f"def change(self):\n    return {code}\n", tmp_path)) == message


def test_a_method_leaves_self_as_it_is(course, tmp_path):
    text = "def change(self):\n    self.U.data[...] = 0\n    return self.U.data @ self.V.data.T\n"
    assert said_of(outcome_of(course.exercise("01.3"), text, tmp_path)) == "self.U was changed; the answer must leave it as it is"


def test_what_a_solution_writes_into_an_answer_may():
    assert written_into(Course().exercise("05.1")) == {"parameter", "m", "v"} and written_into(Course().exercise("08.2")) == set()


def test_the_answer_is_refused_by_whatever_name_it_is_called(course, tmp_path):
    """What no look at the text finds: the class above, as an object that another layer holds."""
    exercise, path = course.exercise("01.3"), str(tmp_path / "mine.py")
    above = home(exercise)[0]
    code = compile("def change(self, kind):\n    return kind.change(self)\n", path, "exec")
    space = {}
    exec(code, space)
    layer = above(Linear(4, 3, rng=np.random.default_rng(0)), 2, 0.5, 0.0, np.random.default_rng(0))
    with hidden(exercise, path):
        with pytest.raises(Shortcut, match="calls the package's own LoRALinear.change, which is the answer itself; write it out"):
            space["change"](layer, above)
        assert layer.change().shape == (4, 3)  # everybody else may
    assert space["change"](layer, above).shape == (4, 3)


@pytest.mark.parametrize("id, text, message", [
    ("01.1", "from minipeft.autograd import Tensor\n\n\ndef chain(tape):\n    return tape\n",
     "imports minipeft.autograd.Tensor; the answer is written"),
    ("01.2", "from minipeft import autograd as F\n\n\ndef unbroadcast(g, shape):\n    return F.sum(g)\n",
     "imports minipeft.autograd; the answer is written"),
    ("01.3", "from minipeft.autograd import linear\n",
     "imports minipeft.autograd.linear; that is the answer itself; write it out"),
    ("02.1", "from minipeft import autograd as F\n\n\ndef gelu_backward_reference(x, gradient):\n    y = F.Tensor(x, True)\n"
     "    F.activation(y, 'gelu').backward(gradient)\n    return y.grad\n",
     "imports minipeft.autograd; the answer is written without the engine"),
    ("02.2", "from minipeft.autograd import attention_weights\n",
     "imports minipeft.autograd.attention_weights; the answer is written without"),
    ("03.2", "from minipeft import autograd as F\n\n\ndef attention_weights_composed(q, k, mask, bias, scale, causal):\n"
     "    return F.attention_weights(q, k, mask, bias, scale, causal)\n",
     "uses F.attention_weights, which has the answer in it; write it out"),
    ("08.2", "import numpy as np\n\nnp.abs = lambda x: 0 * x\n\n\ndef change(self):\n    return self.U.data\n",
     "changes np.abs, which others"),
    ("08.2", "def change(self):\n    return type(self).mro()[1].change(self)\n", "uses .mro, which an answer has no need of")])
def test_the_courses_answers_are_not_to_be_had_ready_made(id, text, message):
    assert shortcuts(Course().exercise(id), text)[0][1].startswith(message)


def test_what_claims_compare_with_is_not_the_learners(monkeypatch):
    monkeypatch.setattr(np, "abs", lambda x: 0 * np.asarray(x))
    monkeypatch.setattr(np, "where", lambda *parts: np.zeros(1))
    with pytest.raises(Broken, match="x differs by up to 1"):
        same(np.zeros(2), np.ones(2), "x")


def test_a_step_moves_what_is_trained_and_nothing_else():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 17, (2, 5))

    def claimed(spoil=lambda model, attachment: None, away=1):
        config = TransformerConfig("gpt2", vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=12, max_position_embeddings=8)
        model = Decoder(config, rng)
        model.head = LMHead(config, model.embed.tokens.weight, rng)

        def attached():
            attachment = attach(model, LoRA(rank=2), rng=rng)
            for path, parameter in attachment.named_parameters().items():
                parameter.data += away  # V of zeros keeps U where it is
            spoil(model, attachment)
            return attachment
        moves_only(attached, model, ids, rng)

    claimed()
    with pytest.raises(Broken, match="U has not moved|U, .* has not moved"):
        claimed(away=0)
    with pytest.raises(Broken, match="final_norm.weight after the step differs"):
        claimed(lambda model, attachment: model.final_norm.requires_grad_(True))
    with pytest.raises(Broken, match="embed.tokens.weight after the step differs"):
        claimed(lambda model, attachment: model.embed.tokens.weight.data.fill(0))
    with pytest.raises(Broken, match="has not moved"):
        claimed(lambda model, attachment: next(iter(attachment.wrappers.values())).requires_grad_(False))


# ---- what takes too much ---------------------------------------------------------------------------------------

ENDLESS, EATING = "    while True:\n        pass\n", "    parts = []\n    while True:\n        parts.append(np.ones(10**7))\n"


def test_a_loop_without_end_is_ended(course, tmp_path):
    outcome = outcome_of(course.exercise("01.2"), f"def halve(x):\n{ENDLESS}", tmp_path, seconds=2)
    assert not outcome.passed and outcome.failed["kind"] == "time" and outcome.failed["where"].startswith("01_2_halve.py:")
    assert outcome.failed["message"] == "it ran longer than 2 s; is there a loop without an end?"


def test_a_loop_that_does_not_let_itself_be_ended_is(course, tmp_path):
    text = ("def halve(x):\n    try:\n        while True:\n            pass\n"
            "    except BaseException:\n        while True:\n            pass\n")
    fault = outcome_of(course.exercise("01.2"), text, tmp_path, seconds=1).fault
    assert (fault["kind"], fault["message"]) == ("time", "it ran longer than 1 s; is there a loop without an end?")


def test_a_loop_outside_of_functions_is_ended(course, tmp_path):
    fault = outcome_of(course.exercise("01.2"), "while True:\n    pass\n", tmp_path, seconds=0.5).fault
    assert fault["kind"] == "time"
    assert fault["message"] == "reading the file took longer than 0.5 s; is there a loop without an end at its top level?"


def test_one_loop_without_end_is_enough(course, tmp_path):
    """Every test of 01.1 would run into it: it is ended in the first."""
    outcome = outcome_of(course.exercise("01.1"), f"def multiply(a, b):\n{ENDLESS}", tmp_path, seconds=1)
    assert [test["name"] for test in outcome.tests] == ["test_product", "the end"] and outcome.tests[0]["kind"] == "time"


def test_what_eats_memory_is_ended(course, tmp_path):
    outcome = outcome_of(course.exercise("01.2"), f"import numpy as np\n\n\ndef halve(x):\n{EATING}", tmp_path,
                         seconds=60, megabytes=400)
    assert not outcome.passed and outcome.failed["kind"] == "memory"
    assert outcome.failed["message"] == "it took more memory than there is for it"


def test_what_eats_memory_when_it_is_read_is_ended(course, tmp_path):
    text = f"import numpy as np\n\nif True:\n{EATING}"
    fault = outcome_of(course.exercise("01.2"), text, tmp_path, seconds=60, megabytes=400).fault
    assert ((fault["kind"], fault["message"]) == ("memory", "it took more memory than there is for it")
            and fault["where"] == "01_2_halve.py:6")


def test_the_doctor_says_where_memory_has_no_limit(monkeypatch):
    assert doctor._memory() == ("memory limit", "2000 MB for each check", "")
    monkeypatch.setattr(doctor, "memory", lambda: None)
    name, said, advice = doctor._memory()
    assert (said.startswith("none on this system; an answer that takes ever more memory is ended by the limit of time alone")
            and not advice)


HOSTILE = {
    "raises": ("def change(self):\n    raise RuntimeError('canary')\n", "RuntimeError: canary"),
    "empty": ("", "the file is empty; minipeft learn reset 08.2 makes it anew"),
    "imports the answer": ("from minipeft.methods.lora import LoRALinear\n\nchange = LoRALinear.change\n",
                           "imports minipeft.methods.lora.LoRALinear; that is where the answer stands"),
    "sets to zero what its module holds": ("def change(self):\n    for p in self.wrapped.parameters():\n        p.data[...] = 0\n"
        "    return 0 * self.U.data @ self.V.data.T\n",
        "self.wrapped.weight was changed; the answer must leave it as it is"),
    "without its own getattr": ("del getattr\n\n\ndef change(self):\n"
        "    own = getattr(getattr(type(self), '__ba' + 'se__'), 'change')\n    return own(self)\n",
        "NameError: name 'getattr' is not defined"),
    "getattr of an error": ("try:\n    raise ValueError\nexcept ValueError as getattr:\n    pass\n\n\ndef change(self):\n"
        "    own = getattr(getattr(type(self), '__ba' + 'se__'), 'change')\n    return own(self)\n",
        "getattr of '__base__', which an answer has no need of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_course_itself_is_not_fooled(name, tmp_path):
    text, message = HOSTILE[name]
    assert said_of(outcome_of(Course().exercise("08.2"), text, tmp_path, seconds=3)) == message


def test_the_course_itself_ends_what_eats_memory(tmp_path):
    text = f"import numpy as np\n\n\ndef change(self):\n{EATING}"
    outcome = outcome_of(Course().exercise("08.2"), text, tmp_path, seconds=60, megabytes=400)
    assert said_of(outcome) == "it took more memory than there is for it"


def test_the_courses_kernels_are_not_fooled(tmp_path):
    exercise = Course().exercise("02.4")
    outcome = outcome_of(exercise, "def _norm_rows(*everything):\n    raise RuntimeError('canary')\n", tmp_path)
    assert said_of(outcome) == "RuntimeError: canary" and outcome.stage == "without the compiler"


# ---- kernels ---------------------------------------------------------------------------------------------------

JIT = "from minipeft.kernels.backend import jit\n\n\n@jit\n"
DOUBLE = "def double(start, stop, x, out):\n    for i in range(start, stop):\n        out[i] = 2 * x[i]\n"
HEADLINE = "def double(start, stop, x, out):\n"
KERNELS = {
    "wrong": (JIT + DOUBLE.replace("2 *", "3 *"), "without the compiler", "2 x differs by up to"),
    "right, not compiled": (DOUBLE, "compiled, 1 thread", "double is not compiled; write @jit above it, as in the stub"),
    "object mode": ("import numba\n\n\n@numba.jit(forceobj=True)\n" + DOUBLE, "compiled, 1 thread",
                    "double is not compiled; write @jit"),
    # 2^62 + 2^62 is below 0 in 64 bits
    "wrong when compiled": (JIT + HEADLINE + "    big = 2**62\n    big += big\n    for i in range(start, stop):\n"
                            "        out[i] = 2 * x[i] if big > 0 else x[i]\n", "compiled, 1 thread", "2 x differs by up to"),
    "not to be compiled": (JIT + HEADLINE + "    for i in range(start, stop):\n        out[i] = sum([x, x])[i]\n",
                           "compiled, 1 thread", "TypingError: "),
    # twice as large until it is 0 in 64 bits
    "without end when compiled": (JIT + HEADLINE + "    n = 1\n    while n < 1e19:\n        n *= 2\n"
                                  "    out[start:stop] = 2 * x[start:stop]\n",
                                  "compiled, 1 thread", "it ran longer than 5 s; is there a loop without an end?"),
    "wrong with two threads": (JIT + HEADLINE + "    for i in range(stop - start):\n        out[i] = 2 * x[i]\n",
                               "compiled, 2 threads", "2 x differs by up to"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_stage_in_which_a_kernel_fails_is_told(name, tmp_path):
    text, stage, message = KERNELS[name]
    exercise = make_course(tmp_path / "lessons", parts=KERNEL).exercise("01.1")
    outcome = outcome_of(exercise, text, tmp_path, seconds=5)
    assert outcome.stage == stage and said_of(outcome).startswith(message)
    if outcome.fault is None:
        console = Console(file=io.StringIO(), width=120)
        console.print(screens.outcome_screen(outcome, exercise))
        assert f"\n  {stage}\n" in console.file.getvalue()


def test_compiling_is_announced_once_and_only_where_something_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    exercise, said = make_course(tmp_path / "lessons", parts=KERNEL).exercise("01.1"), []
    outcome = outcome_of(exercise, JIT + DOUBLE, tmp_path, progress=said.append)
    assert outcome.passed and outcome.stage == "compiled, 2 threads" and said == [COMPILES]
    assert check(exercise, tmp_path / exercise.filename, progress=said.append).passed and said == [COMPILES]  # kept on disk


def test_what_others_print_into_the_graders_process_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nos.write(1, b'hello\\n\\n\\xff\\n')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    exercise = Course().exercise("08.2")
    assert outcome_of(exercise, solution_of(exercise), tmp_path).passed


def test_a_trace_that_was_not_made_says_so(tmp_path):
    exercise = Course().exercise("08.2")
    outcome = outcome_of(exercise, f"def change(self):\n{ENDLESS}", tmp_path, seconds=1, trace=True)
    console = Console(file=io.StringIO(), width=120)
    console.print(screens.trace_screen(outcome, exercise))
    assert "It was not followed: it ran longer than 1 s; is there a loop without an end?" in console.file.getvalue()


COMPILES = "compiling with Numba, which is outside the limit of time"


def test_the_packages_own_kernels_compile_outside_the_limit(tmp_path, monkeypatch):
    """On a fresh machine, in an exercise that is no kernel: the first compilation takes longer than a test may."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    slow = ("    import time\n\n    from minipeft import autograd as F\n    from numba.core import compiler\n"
            "    real = compiler.compile_extra\n"
            "    compiler.compile_extra = lambda *args, **more: time.sleep(4) or real(*args, **more)\n"
            "    F.activation(Tensor(np.ones(3)), 'relu')\n    compiler.compile_extra = real\n")
    course = make_course(tmp_path / "lessons", {"01_small/grade.py": ("    x = rng.standard_normal(4)\n",
                                                                      slow + "    x = rng.standard_normal(4)\n")})
    exercise, said = course.exercise("01.2"), []
    outcome = outcome_of(exercise, solution_of(exercise), tmp_path, seconds=1, progress=said.append)
    assert outcome.passed and said == [COMPILES]


# ---- what is not the learner's fault ---------------------------------------------------------------------------


def test_no_test_at_all_is_a_failure(tmp_path):
    course = make_course(tmp_path / "lessons", {"01_small/grade.py": ('@exercise("01.2")', '@exercise("01.8")')})
    outcome = outcome_of(course.exercise("01.2"), solution_of(course.exercise("01.2")), tmp_path)
    assert not outcome.passed and outcome.fault["kind"] == "untested"
    assert outcome.fault["message"] == "no test of 01.2 ran; the lesson's grader has none, or cannot be read"


def test_a_grader_that_cannot_be_read_is_a_failure(tmp_path):
    course = make_course(tmp_path / "lessons", {"01_small/grade.py": ("import numpy as np", "import numpy as")})
    outcome = outcome_of(course.exercise("01.2"), solution_of(course.exercise("01.2")), tmp_path)
    assert not outcome.passed and outcome.fault["kind"] == "untested"


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


def traced(exercise, text, folder):
    """The trace of an answer that fails."""
    outcome = outcome_of(exercise, text, folder, trace=True)
    assert not outcome.passed
    return outcome.trace


def test_a_wrong_gradient_that_is_handed_on_is_named(course, tmp_path):
    """All values are right, and so is da; db is not."""
    trace = traced(course.exercise("01.1"), RIGHT.replace("lambda g: g * a.data)", "lambda g: g * b.data)"), tmp_path)
    assert trace["kind"] == "gradient" and trace["where"] == "01_1_multiply.py:5" and trace["operation"] == "tensor"
    assert trace["yours"]["values"] != trace["nearest"]["values"]


def test_a_wrong_gradient_that_arrives_is_named(course, tmp_path):
    """The product is right; what is done to it behind turns the sign of its gradient."""
    text = "import numpy as np\n" + RIGHT.replace("    return Tensor(a", "    product = Tensor(a")
    trace = traced(course.exercise("01.1"), text + "    return Tensor(product.data, parents=[(product, np.negative)])\n",
                   tmp_path)
    assert (trace["kind"] == "gradient" and trace["where"] == "01_1_multiply.py:6"
            and trace["line"].startswith("product = Tensor(a.data * b.data"))


def test_nothing_is_followed_where_all_is_well(course, tmp_path):
    assert outcome_of(course.exercise("01.2"), solution_of(course.exercise("01.2")), tmp_path, trace=True).trace is None
