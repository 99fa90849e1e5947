"""A learner's folder: made, resumed, reset and updated without losing a line; hints and solutions in their order."""

import pytest
from small_course import LESSON, make_course

from minipeft.learn.checker import Outcome
from minipeft.learn.stubs import solution_of, stub_of
from minipeft.learn.workspace import Workspace, with_body_of

PASSED = [{"name": "t", "claim": "c", "passed": True, "kind": ""}]


def test_it_has_a_file_for_each_exercise_and_the_text(workspace, course):
    names = sorted(path.relative_to(workspace.folder).as_posix() for path in workspace.folder.rglob("*.py")
                   if ".minipeft" not in path.parts)
    assert names == ["01_small/01_1_multiply.py", "01_small/01_2_halve.py", "01_small/01_3_change.py", "01_small/lesson.py"]
    assert workspace.path(course.exercise("01.1")).read_text() == stub_of(course.exercise("01.1"))
    assert workspace.current().id == "01.1"


def test_a_stub_has_signature_imports_and_its_id(course):
    text = stub_of(course.exercise("01.3"))
    assert text.startswith('"""Exercise 01.3: `LoRALinear.change` of minipeft.methods.lora.\n\n'
                           'Return s U V^T. It is a method of `LoRALinear`')
    assert text.endswith('def change(self):\n    """s U V^T, (D_in, D_out)."""\n'
                         '    raise NotImplementedError("01.3: change is still to be written")\n')
    assert "BEGIN SOLUTION" not in stub_of(course.exercise("01.2")) + solution_of(course.exercise("01.2"))
    first, second = (line for line in stub_of(course.exercise("01.1")).splitlines() if line.startswith("from "))
    assert first == "from minipeft.autograd.tensor import Tensor"
    assert (second.startswith("from minipeft.autograd.ops import ")
            and {"use", "_pair", "unbroadcast"} == set(second.split("import ")[1].split(", ")))


def test_the_glossary_lies_beside_the_lessons_and_is_kept_up(course, tmp_path):
    (course.folder / "glossary.md").write_text("| loss | 损失 |\n", encoding="utf-8")
    workspace = Workspace.make(tmp_path / "mine", course)
    mine = tmp_path / "mine" / "glossary.md"
    assert mine.read_text(encoding="utf-8") == "| loss | 损失 |\n"
    (course.folder / "glossary.md").write_text("| loss | 损失（函数） |\n", encoding="utf-8")
    workspace.update()
    assert mine.read_text(encoding="utf-8") == "| loss | 损失（函数） |\n"


def test_it_is_found_from_inside_and_goes_on(workspace, course):
    exercise = course.exercise("01.1")
    workspace.note(exercise, Outcome("01.1", None, PASSED))
    again = Workspace.around(workspace.folder / "01_small", course)
    assert again.folder == workspace.folder.absolute() and again.solved(exercise) and again.current().id == "01.2"


def test_what_is_no_folder_of_the_course(tmp_path, course, workspace):
    with pytest.raises(ValueError, match="no folder of the course, nor in one; minipeft learn init DIR makes one"):
        Workspace.around(tmp_path, course)
    with pytest.raises(ValueError, match="is a folder of the course already; minipeft learn goes on there"):
        Workspace.make(workspace.folder, course)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match="there is something in it; choose a folder that is new"):
        Workspace.make(tmp_path / "full", course)
    (workspace.state_path).write_text('{"version": 7}')
    with pytest.raises(ValueError, match="version is 7; this minipeft reads 1"):
        Workspace(workspace.folder, course)


def test_tries_and_known_mistakes_are_counted(workspace, course):
    exercise = course.exercise("01.1")
    failed = [{"name": "t", "claim": "c", "passed": False, "kind": "claim"}]
    workspace.note(exercise, Outcome("01.1", None, [{**failed[0], "kind": "unwritten"}]))
    assert workspace.of(exercise)["attempts"] == 0
    for _ in range(2):
        workspace.note(exercise, Outcome("01.1", None, failed, {"name": "sum", "text": "That is a sum."}))
    assert workspace.of(exercise) == {"attempts": 2, "hints": 0, "passed": None, "solution": False, "mutants": {"sum": 2}}


def test_three_hints_and_then_the_solution(workspace, course):
    exercise = course.exercise("01.2")
    with pytest.raises(ValueError, match="solution: 01.2 has 3 more hints; minipeft learn hint 01.2"):
        workspace.solution(exercise, give_up=True)
    assert [workspace.hint(exercise) for _ in range(4)] == [(1, "q2"), (2, "e2"), (3, "p2"), (3, "p2")]
    with pytest.raises(ValueError, match="01.2 has not passed; minipeft learn solution 01.2 --give-up shows it all the same"):
        workspace.solution(exercise)
    assert "return x / 2" in workspace.solution(exercise, give_up=True) and workspace.of(exercise)["solution"]


def test_the_solution_after_a_pass(workspace, course):
    exercise = course.exercise("01.2")
    workspace.note(exercise, Outcome("01.2", None, PASSED))
    assert workspace.solution(exercise) == solution_of(exercise) and not workspace.of(exercise)["solution"]


def test_a_reset_keeps_what_was_written(workspace, course):
    exercise = course.exercise("01.2")
    path = workspace.path(exercise)
    assert workspace.write_stub(exercise) is None
    kept = []
    for text in ("mine, first\n", "mine, second\n"):
        path.write_text(text)
        kept.append(workspace.write_stub(exercise))
        assert path.read_text() == stub_of(exercise)
    assert [each.read_text() for each in kept] == ["mine, first\n", "mine, second\n"]


# ---- update ----------------------------------------------------------------------------------------------------

MINE = '''"""Exercise 01.2: notes of my own."""

import math


def helper(x):
    return x / 2


def halve(x):
    """x / 2"""
    # by a helper
    y = helper(x)

    return y
'''


def updated(tmp_path, workspace, change):
    """What an update to a changed course does: {id: what was done}."""
    course = make_course(tmp_path / "lessons", {"01_small/lesson.py": change})
    workspace.course = course
    return {exercise.id: done for exercise, done in workspace.update()}


def test_an_update_without_news_changes_nothing(workspace, course):
    workspace.path(course.exercise("01.2")).write_text(MINE)
    before = {path: path.read_text() for path in workspace.folder.rglob("*.py")}
    assert [done for _, done in workspace.update()] == ["as it was"] * 3
    assert {path: path.read_text() for path in workspace.folder.rglob("*.py")} == before


def test_a_new_signature_keeps_the_body_and_what_is_beside_it(workspace, course, tmp_path):
    path = workspace.path(course.exercise("01.2"))
    path.write_text(MINE)
    done = updated(tmp_path, workspace, ("def halve(x):", "def halve(x, by=2):"))
    text = path.read_text()
    assert done == {"01.1": "as it was", "01.2": "body kept", "01.3": "as it was"}
    assert "def halve(x, by=2):\n" in text and "    # by a helper\n    y = helper(x)\n\n    return y\n" in text
    assert "import math" in text and "def helper(x):\n    return x / 2" in text and "NotImplementedError" not in text
    compile(text, "halve", "exec")
    kept = list((workspace.folder / ".minipeft" / "before").iterdir())
    assert len(kept) == 1 and kept[0].read_text() == MINE


def test_a_new_name_keeps_the_body_by_the_id(workspace, course, tmp_path):
    old = workspace.path(course.exercise("01.2"))
    old.write_text(MINE)
    change = LESSON.replace("lesson:halve", "lesson:half").replace("def halve", "def half").replace("halve(3)", "half(3)")
    assert updated(tmp_path, workspace, change)["01.2"] == "body kept"
    new = workspace.folder / "01_small" / "01_2_half.py"
    assert not old.exists() and "def half(x):" in new.read_text() and "y = helper(x)" in new.read_text()


def test_an_untouched_stub_is_replaced_and_a_new_exercise_comes(workspace, course, tmp_path):
    change = LESSON.replace("Return half of x.", "Return a half of x.").replace("# %% [markdown]\n# ## Sources", '''# %%
#@exercise 01.4 minipeft.autograd.ops:exp
#@ Return e to the x.
# %% [markdown]
# ## Sources''')
    done = updated(tmp_path, workspace, change)
    assert done == {"01.1": "as it was", "01.2": "stub", "01.3": "as it was", "01.4": "new"}
    assert "a half of x" in workspace.path(course.exercise("01.2")).read_text()


def test_what_is_not_python_is_kept_as_a_comment():
    text = with_body_of("def f(x):\n    raise NotImplementedError\n", "def f(x:\n  oops\n", "", "f")
    assert text == "def f(x):\n    raise NotImplementedError\n\n\n# def f(x:\n#   oops\n"
