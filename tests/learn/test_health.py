"""Each check that keeps the course from rotting finds nothing in a small sound course, and its fault in a broken one."""

import pytest
from small_course import COURSE, LESSON as TEXT, make_course

from minipeft.compare.run import OFFERED
from minipeft.learn import health, order
from minipeft.methods import METHODS

LESSON, GRADE, MUTANTS, HINTS = (f"01_small/{name}" for name in ("lesson.py", "grade.py", "mutants.py", "hints.toml"))
SOUND = 'return Tensor(a.data + b.data, parents=[(a, lambda g: g), (b, lambda g: g)])'
RIGHT = 'return Tensor(a.data * b.data, parents=[(a, lambda g: g * b.data), (b, lambda g: g * a.data)])'


# A lesson with all its parts: the small course's, and what stands around its exercises.
WHOLE = TEXT.replace("# # Small\n# %%\n", '''# # Lesson 1. Small
#
# **Why.** A cake for two: each gets a *half* of it.
#
# You need nothing but numbers. 45 minutes.
#
# ## The idea in a picture
#
# $$y = x / 2$$

# %%
import matplotlib.pyplot as plt

from minipeft.learn import predict, show

predict("Half of 4?", "2")

# %%
''').replace("# ## Sources", '''# ## What the numbers show
#
# On a real model it is the same.

# %%
figure, axes = plt.subplots()
axes.plot([0, 2], [0, 1])
show(figure, "half", "A straight line: half of x against x.")

# %% [markdown]
# ## Where it breaks
#
# Nowhere.
#
# ## Read the package
#
# `minipeft/autograd/ops.py`
#
# ## Sources''')
WORDS = "| English | 中文 | What it is | Lesson |\n|---|---|---|---|\n| half | 一半 | one of two equal parts | 1 |\n"


def whole_course(folder, change=("", ""), words=WORDS, toml=COURSE):
    """The small course with a lesson that has all parts, and with a glossary;
    ``change``: (text to replace in the lesson, by what)."""
    assert change[0] in WHOLE
    course = make_course(folder, {LESSON: WHOLE.replace(*change), "course.toml": toml})
    (folder / "glossary.md").write_text(words, encoding="utf-8")
    return course


def test_a_sound_course_has_no_faults(tmp_path):
    course = whole_course(tmp_path, toml=COURSE + 'introduces = ["minipeft"]\n')
    lesson = course.lessons[0]
    assert [health.answer_faults(exercise) for exercise in course.exercises] == [[], [], []]
    assert [health.solution_file_faults(exercise) for exercise in course.exercises] == [[], [], []]
    assert health.text_faults(lesson) == health.anatomy_faults(lesson) == health.grader_faults(lesson) == []
    assert health.running_faults(lesson, 60) == health.answers_faults(lesson, 60) == []
    assert health.order_faults(course) == health.generating_faults(course) == health.glossary_faults(course) == []
    assert health.size_faults(course, 3) == []


@pytest.mark.parametrize("file, change, check, expected", [
    # answers
    (MUTANTS, (SOUND, RIGHT), "answer", "01.1: the wrong answer sum passes"),
    (MUTANTS, ('"That is a sum."', '" "'), "answer", "01.1: the wrong answer sum has no diagnosis"),
    (MUTANTS, ('@mutant("01.1", "no_db", "b has no gradient.")', ""), "answer",
     "01.1: 2 wrong answers are known; expected 3 or more"),
    (MUTANTS, ("parents=[(a, lambda g: g * b.data)])",
               "operation='x', parents=[(a, lambda g: g * a.data), (b, lambda g: g * b.data)])"), "answer",
     "01.1: the wrong answer no_db cannot be told from swapped"),
    (MUTANTS, ('"sum", "That', '"swapped", "That'), "answer", "01.1: two wrong answers have one name"),
    (MUTANTS, ("def multiply(a, b):\n    return Tensor(a.data + b", "def product(a, b):\n    return Tensor(a.data + b"), "answer",
     "01.1: the wrong answer sum is called product, not multiply"),
    (MUTANTS, ("    return Tensor(a.data + b.data",
               "    from minipeft.autograd.ops import multiply as right\n    return 0 + right(a, a)\n"
               "    return Tensor(a.data + b.data"), "answer",
     "01.1: the wrong answer sum counts as a shortcut, so that no learner can write it: imports minipeft.autograd.ops.multiply"),
    (MUTANTS, ("    return Tensor(a.data + b.data", "    return none_of_it + Tensor(a.data + b.data"), "answer",
     "01.1: the wrong answer sum takes more from mutants.py than a learner's file would have: none_of_it"),
    (GRADE, ('Tensor(a * b), "a b"', 'Tensor(a - b), "a b"'), "answer",
     "01.1: the solution fails test_product: a b differs by up to"),
    (GRADE, ('same(impl(Tensor(a), Tensor(b)), Tensor(a * b), "a b", 1e-12)', "pass"), "answer",
     "01.1: the stub does not fail with its id in test_product but passes"),
    (GRADE, ("    impl(a, b).backward(g)",
             "    try:\n        impl(a, b).backward(g)\n    except Exception:\n        return"), "answer",
     "01.1: the stub does not fail with its id in test_gradients but passes"),
    (GRADE, ('@exercise("01.1")', '@exercise("01.7")'), "answer", "01.1: no test of it ran"),
    # the solution as a file
    (LESSON, ("return x / 2\n### END", "return eval('x / 2')\n### END"), "file",
     "01.2: the solution's file is refused: uses eval"),
    (LESSON, ("    return x / 2\n### END", "    return 2 * x\n### END"), "file",
     "01.2: the solution's file is refused: x / 2 differs by"),
    # texts
    (LESSON, ("01.3 minipeft", "01.4 minipeft"), "text", "01_small: exercises 01.1, 01.2, 01.4; expected 3 to 6 in order"),
    (LESSON, ("#@exercise 01.3 minipeft.methods.lora:LoRALinear.change\n#@ Return s U V^T.\n", ""), "text",
     "01_small: exercises 01.1, 01.2; expected 3 to 6 in order"),
    (LESSON, ("#@ Return half of x.\n", ""), "text", "01.2: no line #@ says what to write"),
    (HINTS, ('question = "q2"\n', ""), "text", "01.2: 2 hints; expected a question, an equation and pseudocode"),
    (HINTS, ('"e2"', '"  "'), "text", "01.2: 3 hints; expected a question, an equation and pseudocode"),
    (HINTS, ('["01.3"]', '["01.5"]'), "text", "01_small: 01.5 is named, and is no exercise"),
    ("course.toml", ('title = "Small"', 'title = "Small"\npoints = {"01.9" = 2}'), "text",
     "01_small: 01.9 is named, and is no exercise"),
    ("course.toml", ('title = "Small"', 'title = "Small"\nneeds = ["01"]'), "text",
     "01_small: needs 01, which does not come before it"),
    # graders
    (GRADE, ('    """Half of x."""\n', ""), "grader", "01_small: test_half does not say what it claims"),
    (GRADE, ('@exercise("01.2")', '@exercise("01.8")'), "grader", "01_small: test_half is of no exercise of this lesson"),
    # running
    (LESSON, ("print(halve(3))", "print(halve('three'))"), "running", "01_small: it stops with TypeError"),
])
def test_each_check_finds_its_fault(file, change, check, expected, tmp_path):
    course = make_course(tmp_path, {file: change})
    lesson, number = course.lessons[0], expected.split(":")[0]
    found = {"answer": lambda: health.answer_faults(course.exercise(number)),
             "file": lambda: health.solution_file_faults(course.exercise(number)),
             "text": lambda: health.text_faults(lesson),
             "grader": lambda: health.grader_faults(lesson), "running": lambda: health.running_faults(lesson, 60)}[check]()
    assert any(fault.startswith(expected) for fault in found), found


def test_a_canary_that_passes_is_found(tmp_path):
    course = make_course(tmp_path, {GRADE: ("same(impl(x), x / 2, \"x / 2\", 1e-12)",
                                            "\n    try:\n        impl(x)\n    except RuntimeError:\n        pass")})
    found = health.answer_faults(course.exercise("01.2"))
    assert "01.2: an answer that raises passes every test" in found


def test_a_stub_that_fails_with_another_id_is_found(course, monkeypatch):
    plain = health.stub_of
    monkeypatch.setattr(health, "stub_of", lambda exercise: plain(exercise).replace('Error("01.2', 'Error("01.3'))
    found = health.answer_faults(course.exercise("01.2"))
    assert found == ["01.2: the stub does not fail with its id in test_half "
                     "but NotImplementedError: 01.3: halve is still to be written"]


def test_too_few_exercises_in_all_are_found(course):
    assert health.size_faults(course) == [f"{course.folder}: 3 exercises; expected 65 or more"]


def test_what_never_ends_is_stopped(tmp_path):
    course = make_course(tmp_path, {LESSON: ("print(halve(3))", "while True:\n    pass")})
    assert health.running_faults(course.lessons[0], 2) == ["01_small: it was stopped after 2 s of a core"]
    course = make_course(tmp_path, {GRADE: ("    x = rng.standard_normal(4)\n", "    while True:\n        pass\n")})
    assert health.answers_faults(course.lessons[0], 2) == ["01_small: it was stopped after 2 s of a core"]


def test_the_faults_of_a_lesson_come_out_of_its_process(tmp_path):
    course = make_course(tmp_path, {MUTANTS: ('"That is a sum."', '" "')})
    assert health.answers_faults(course.lessons[0], 60) == ["01.1: the wrong answer sum has no diagnosis"]
    course = make_course(tmp_path, {MUTANTS: ("from minipeft", "from nowhere")})
    assert health.answers_faults(course.lessons[0], 60) == [
        "01_small: it stops with ModuleNotFoundError: No module named 'nowhere'"]


# ---- the parts of a lesson -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, expected", [
    (("**Why.** A", "A"), "a real problem to begin with is missing; expected a line # **Why.**"),
    (("The idea in a picture", "The idea"), "the idea in a picture is missing; expected a line # ## The idea in a picture"),
    (("# $$y = x / 2$$", "# y is half of x"), "an equation is missing"),
    (('predict("Half of 4?", "2")', ""), "a question to answer before the first exercise is missing; expected a line predict("),
    (("print(halve(3))", 'print(halve(3))\npredict("Half of 3?", "1.5")'), None),  # another question is welcome
    (("## What the numbers show", "## Numbers"),
     "numbers of the toy world is missing; expected a line # ## What the numbers show"),
    (("a real model", "another"), "what a real model shows is missing"),
    (("## Where it breaks", "## Limits"), "where it breaks is missing; expected a line # ## Where it breaks"),
    (("## Read the package", "## Read"), "the package's own file to read is missing; expected a line # ## Read the package"),
    (("`minipeft/autograd/ops.py`", "The engine."), "a file of the package, by name is missing"),
    (("## Sources", "## Nothing"), "sources is missing; expected a line # ## Sources"),
    (("You need", "One needs"), "the text says 'nothing of what one needs'; course.toml says no lesson and 45 minutes"),
    (("45 minutes", "4 minutes"),
     "the text says 'You need nothing but numbers. 4 minutes.'; course.toml says no lesson and 45 minutes"),
    (("nothing but numbers", "lesson 7"),
     "the text says 'You need lesson 7. 45 minutes.'; course.toml says no lesson and 45 minutes"),
    (("figure, axes = plt.subplots()\n", ""), "no figure"),
    (('show(figure, "half"', '(figure, "half"'), "1 figures are made and 0 are shown with `show`"),
    (('"A straight line: half of x against x."', '" "'), "the figure shown in line 51 has no text"),
    ((', "A straight line: half of x against x."', ""), "the figure shown in line 51 has no text"),
])
def test_a_part_that_is_missing_is_found(change, expected, tmp_path):
    found = health.anatomy_faults(whole_course(tmp_path, change).lessons[0])
    assert f"01_small: {expected}" in found if expected else found == [], found


def test_parts_in_another_order_are_found(tmp_path):
    question = 'predict("Half of 4?", "2")\n'
    text = WHOLE.replace(question, "").replace("print(halve(3))", f"print(halve(3))\n{question}")  # behind the first exercise
    (fault,) = health.anatomy_faults(make_course(tmp_path, {LESSON: text}).lessons[0])
    assert fault.startswith("01_small: an exercise comes too late or the part after it too early")


# ---- what is made from the lessons -----------------------------------------------------------------------------

UNSTEADY = """import minipeft.learn.{module} as module

plain = module.{name}
module.{name} = lambda *args: plain(*args) + "# " + " ".join({{"one", "two", "three", "four", "five"}}) + "\\n"
"""


@pytest.mark.parametrize("module, name, expected", [
    ("stubs", "heading", ["01.1 stub", "01.1 solution", "01.2 stub", "01.2 solution", "01.3 stub", "01.3 solution"]),
    ("notebook", "lesson_with_stubs", ["01_small.ipynb"])])
def test_a_text_that_hangs_on_the_order_of_a_set_is_found(module, name, expected, course, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(UNSTEADY.format(module=module, name=name))  # Python runs it as it starts
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = health.generating_faults(course)
    assert set(found) >= {f"{each}: it is another text in each process" for each in expected}, found


# ---- the order of the course -----------------------------------------------------------------------------------

LESSONS = {"00_tour": 'introduces = ["minipeft.interop"]',
           "01_first": 'introduces = ["minipeft.compare", "minipeft.methods.full"]',
           "02_lora": 'introduces = ["minipeft.methods.lora"]', "03_last": 'needs = ["01"]'}
LORA = "uses minipeft.methods.lora, which lesson 02 introduces"


def in_order(folder, lesson, text):
    """The faults in the order of a course of four lessons, one of which has this text and the others none."""
    for name in LESSONS:
        (folder / name).mkdir()
        (folder / name / "lesson.py").write_text(text if name == lesson else "", encoding="utf-8")
    (folder / "course.toml").write_text("".join(f'[[lessons]]\nfolder = "{name}"\ntitle = "{name}"\n{more}\n'
                                                for name, more in LESSONS.items()), encoding="utf-8")
    return health.order_faults(health.Course(folder))


@pytest.mark.parametrize("lesson, text, expected", [
    ("01_first", "from minipeft.methods.lora import LoRALinear", [LORA]),
    ("01_first", "from minipeft.methods import lora", [LORA]),
    ("01_first", "import minipeft.methods.lora", [LORA]),
    ("01_first", "from minipeft import LoRA as L", [LORA]),                         # under another roof
    ("01_first", "from minipeft.methods import LoRA", [LORA]),
    ("01_first", "import minipeft\nmethod = minipeft.LoRA(rank=2)", [LORA]),
    ("01_first", "import minipeft as mp\nmethod = mp.methods.lora.LoRA(rank=2)", [LORA]),
    ("01_first", 'from minipeft.compare.run import Run\nrun = Run("toy:encoder", "toy:rating", "lora")', [LORA]),  # by name
    ("01_first", 'names = ("full", "lora")', [LORA]),
    ("01_first", "from minipeft.data import toy", ["uses minipeft.data.toy, which no lesson introduces"]),
    ("01_first", "from minipeft.prompting import SEEDS", ["uses minipeft.prompting.few_shot, which no lesson introduces"]),
    ("03_last", "from minipeft import LoRA", ["uses minipeft.methods.lora of lesson 02, which is not among what it needs"]),
    ("03_last", 'from minipeft import Full, load_pretrained\nfrom minipeft.learn import fast\nby = {"full": 1}', []),
    ("02_lora", "from minipeft import LoRA", []),
    ("00_tour", "from minipeft import LoRA", []),
])
def test_what_comes_later_is_found(lesson, text, expected, tmp_path):
    assert in_order(tmp_path, lesson, text) == [f"{lesson}: {each}" for each in expected]


def test_what_an_exercise_uses_counts_too(tmp_path):
    found = in_order(tmp_path, "01_first", "#@exercise 01.1 minipeft.methods.lora:LoRALinear.forward\n")
    assert f"01.1: {LORA}" not in found and "01.1: uses minipeft.autograd.ops, which no lesson introduces" in found


def test_a_name_that_is_nowhere_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="minipeft.methods: has no LaRO"):
        in_order(tmp_path, "01_first", "from minipeft.methods import LaRO")


# ---- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, words, expected", [
    (("*half*", "*quarter*"), WORDS, "glossary.md: has no 'quarter', which lesson 01 sets in italics"),
    (("*half*", "**part**"), WORDS.replace("half", "third"),
     "glossary.md: 'third' is said to be of lesson 01, whose text does not have it"),
    (("", ""), WORDS.replace("| 1 |", "| 3 |"), "glossary.md: 'half' is said to be of lesson 03; lesson 01 has it in italics"),
])
def test_a_word_that_the_glossary_has_not_is_found(change, words, expected, tmp_path):
    assert expected in health.glossary_faults(whole_course(tmp_path, change, words))


def test_a_word_that_is_only_stressed_is_no_term(tmp_path):
    assert health.glossary_faults(whole_course(tmp_path, ("*half*", "*two* halves, each a *half*")), ["Two"]) == []


@pytest.mark.parametrize("cell", ["", "half"])
def test_a_row_without_chinese_is_refused(cell, tmp_path):
    with pytest.raises(ValueError, match="expected an English and a Chinese name, a meaning and a lesson, got '| half |"):
        health.glossary_faults(whole_course(tmp_path, words=WORDS.replace("一半", cell)))


def test_the_order_knows_every_method_by_its_name():
    assert {*METHODS, *order.BY_NAME} == set(OFFERED)
