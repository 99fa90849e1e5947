"""Each check that keeps the course from rotting finds nothing in a small sound course, and its fault in a broken one."""

import pytest
from small_course import make_course

from minipeft.learn import health

LESSON, GRADE, MUTANTS, HINTS = (f"01_small/{name}" for name in ("lesson.py", "grade.py", "mutants.py", "hints.toml"))
SOUND = 'return Tensor(a.data + b.data, parents=[(a, lambda g: g), (b, lambda g: g)])'
RIGHT = 'return Tensor(a.data * b.data, parents=[(a, lambda g: g * b.data), (b, lambda g: g * a.data)])'


def test_a_sound_course_has_no_faults(course):
    lesson = course.lessons[0]
    assert [health.answer_faults(exercise) for exercise in course.exercises] == [[], [], []]
    assert [health.solution_file_faults(exercise) for exercise in course.exercises] == [[], [], []]
    assert health.text_faults(lesson) == health.grader_faults(lesson) == health.running_faults(lesson) == []
    assert health.order_faults(course) == []


@pytest.mark.parametrize("file, change, check, expected", [
    # answers
    (MUTANTS, (SOUND, RIGHT), "answer", "01.1: the wrong answer sum passes"),
    (MUTANTS, ('"That is a sum."', '" "'), "answer", "01.1: the wrong answer sum has no diagnosis"),
    (MUTANTS, ('@mutant("01.1", "no_db", "b has no gradient.")', ""), "answer", "01.1: 2 wrong answers are known; expected 3 or more"),
    (MUTANTS, ("parents=[(a, lambda g: g * b.data)])", "operation='x', parents=[(a, lambda g: g * a.data), (b, lambda g: g * b.data)])"),
     "answer", "01.1: the wrong answer no_db cannot be told from swapped"),
    (MUTANTS, ('"sum", "That', '"swapped", "That'), "answer", "01.1: two wrong answers have one name"),
    (MUTANTS, ("def multiply(a, b):\n    return Tensor(a.data + b", "def product(a, b):\n    return Tensor(a.data + b"), "answer",
     "01.1: the wrong answer sum is called product, not multiply"),
    (MUTANTS, ("    return Tensor(a.data + b.data", "    from minipeft.autograd.ops import multiply as right\n    return 0 + right(a, a)\n    return Tensor(a.data + b.data"),
     "answer", "01.1: the wrong answer sum counts as a shortcut, so that no learner can write it: imports minipeft.autograd.ops.multiply"),
    (MUTANTS, ("    return Tensor(a.data + b.data", "    return none_of_it + Tensor(a.data + b.data"), "answer",
     "01.1: the wrong answer sum takes more from mutants.py than a learner's file would have: none_of_it"),
    (GRADE, ('Tensor(a * b), "a b"', 'Tensor(a - b), "a b"'), "answer", "01.1: the solution fails test_product: a b differs by up to"),
    (GRADE, ('same(impl(Tensor(a), Tensor(b)), Tensor(a * b), "a b", 1e-12)', "pass"), "answer",
     "01.1: the stub does not fail with its id in test_product but passes"),
    (GRADE, ("    impl(a, b).backward(g)", "    try:\n        impl(a, b).backward(g)\n    except Exception:\n        return"), "answer",
     "01.1: the stub does not fail with its id in test_gradients but passes"),
    (GRADE, ('@exercise("01.1")', '@exercise("01.7")'), "answer", "01.1: no test of it ran"),
    # the solution as a file
    (LESSON, ("return x / 2\n### END", "return eval('x / 2')\n### END"), "file", "01.2: the solution's file is refused: uses eval"),
    (LESSON, ("    return x / 2\n### END", "    return 2 * x\n### END"), "file", "01.2: the solution's file is refused: x / 2 differs by"),
    # texts
    (LESSON, ("01.3 minipeft", "01.4 minipeft"), "text", "01_small: exercises 01.1, 01.2, 01.4; expected 1 to 6 in order"),
    (LESSON, ("#@ Return half of x.\n", ""), "text", "01.2: no line #@ says what to write"),
    (LESSON, ("## Sources", "## Nothing"), "text", "01_small: no section Sources"),
    (HINTS, ('question = "q2"\n', ""), "text", "01.2: 2 hints; expected a question, an equation and pseudocode"),
    (HINTS, ('"e2"', '"  "'), "text", "01.2: 3 hints; expected a question, an equation and pseudocode"),
    (HINTS, ('["01.3"]', '["01.5"]'), "text", "01_small: 01.5 is named, and is no exercise"),
    ("course.toml", ('title = "Small"', 'title = "Small"\npoints = {"01.9" = 2}'), "text", "01_small: 01.9 is named, and is no exercise"),
    ("course.toml", ('title = "Small"', 'title = "Small"\nneeds = ["01"]'), "text", "01_small: needs 01, which does not come before it"),
    # graders
    (GRADE, ('    """Half of x."""\n', ""), "grader", "01_small: test_half does not say what it claims"),
    (GRADE, ('@exercise("01.2")', '@exercise("01.8")'), "grader", "01_small: test_half is of no exercise of this lesson"),
    # running
    (LESSON, ("print(halve(3))", "print(halve('three'))"), "running", "01_small: it stops with TypeError"),
])
def test_each_check_finds_its_fault(file, change, check, expected, tmp_path):
    course = make_course(tmp_path, {file: change})
    lesson = course.lessons[0]
    found = {"answer": lambda: [f for e in course.exercises for f in health.answer_faults(e)],
             "file": lambda: [f for e in course.exercises for f in health.solution_file_faults(e)], "text": lambda: health.text_faults(lesson),
             "grader": lambda: health.grader_faults(lesson), "running": lambda: health.running_faults(lesson)}[check]()
    assert any(fault.startswith(expected) for fault in found), found


def test_a_canary_that_passes_is_found(tmp_path):
    course = make_course(tmp_path, {GRADE: ("same(impl(x), x / 2, \"x / 2\", 1e-12)", "\n    try:\n        impl(x)\n    except RuntimeError:\n        pass")})
    found = health.answer_faults(course.exercise("01.2"))
    assert "01.2: an answer that raises passes every test" in found


def test_a_lesson_that_takes_too_long_is_found(course):
    (fault,) = health.running_faults(course.lessons[0], seconds=0)
    assert "01_small: it took" in fault and "expected 0 at most" in fault


def test_generating_twice_is_compared(course, monkeypatch):
    count = iter(range(100))
    monkeypatch.setattr(health, "notebook_of", lambda lesson: str(next(count)))
    assert "01_small: generating twice gives two texts" in health.text_faults(course.lessons[0])


def test_what_comes_later_is_found(tmp_path):
    later = tmp_path / "02_later"
    later.mkdir()
    for name in ("lesson.py", "grade.py", "mutants.py", "hints.toml"):
        (later / name).write_text("# nothing\n")
    found = health.order_faults(make_course(tmp_path, {"course.toml": COURSE_OF_TWO}))
    assert "01_small: uses minipeft.methods.lora, which lesson 02 introduces" in found


COURSE_OF_TWO = '''[[lessons]]
folder = "01_small"
title = "Small"

[[lessons]]
folder = "02_later"
title = "Later"
introduces = ["minipeft.methods.lora"]
'''
