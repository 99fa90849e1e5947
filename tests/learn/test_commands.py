"""``minipeft learn`` and ``minipeft teach`` from the command line, wrong uses first."""

import json
import shutil
from types import SimpleNamespace

import pytest
from small_course import COURSE, KERNEL, make_course

from minipeft.cli import main
from minipeft.learn.course import FOLDER, Course, find_lessons
from minipeft.learn.stubs import solution_of
from minipeft.learn.teach import remarks_on, variant_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A place in which the small course is the course."""
    make_course(tmp_path / "lessons")
    monkeypatch.setenv(FOLDER, str(tmp_path / "lessons"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def solve(folder, *ids):
    """Put the solutions into a learner's folder."""
    for exercise in Course().exercises:
        if exercise.id in ids:
            (folder / "01_small" / exercise.filename).write_text(solution_of(exercise))


# ---- learn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    (["learn"], ".: no folder of the course, nor in one; minipeft learn init DIR makes one"),
    (["learn", "init"], "init: expected a folder; minipeft learn init DIR"),
    (["learn", "chekc"], "ACTION: invalid choice: 'chekc'"),
    (["learn", "check", "--dir", "nowhere"], "nowhere: no folder of the course")])
def test_wrong_uses(arguments, message, here, capsys):
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2 and said.startswith(f"minipeft: {message}") and said.count("\n") == 1


def test_from_the_folder_to_a_green_exercise(here, capsys, monkeypatch):
    assert main(["learn", "init", "mine"]) == 0
    assert "Lessons: 1, exercises: 3, in mine." in capsys.readouterr().out
    monkeypatch.chdir(here / "mine")
    assert main(["learn", "check"]) == 1 and "not written yet" in capsys.readouterr().out
    assert main(["learn", "check", "01.9"]) == 2 and "there is no 01.9; lesson 01 has 01.1, 01.2, 01.3" in capsys.readouterr().err
    solve(here / "mine", "01.1")
    assert main(["learn", "check"]) == 0
    out = capsys.readouterr().out
    assert "✓ 2 claims hold" in out and "1 of 3 solved" in out
    assert main(["learn", "check", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["id"] == "01.2" and told["passed"] is False and told["tests"][0]["kind"] == "unwritten"
    assert main(["learn", "list"]) == 0 and "✓  01.1" in capsys.readouterr().out


def test_hints_solution_reset_trace_update_notebook(here, capsys, monkeypatch):
    main(["learn", "init", "mine"])
    capsys.readouterr()
    folder = ["--dir", "mine"]
    assert main(["learn", "solution", *folder]) == 2 and "01.1 has 3 more hints" in capsys.readouterr().err
    for text in ("q1", "e1", "p1"):
        assert main(["learn", "hint", *folder]) == 0 and text in capsys.readouterr().out
    assert main(["learn", "solution", *folder]) == 2 and "--give-up shows it all the same" in capsys.readouterr().err
    assert main(["learn", "solution", "--give-up", *folder]) == 0
    assert capsys.readouterr().out == solution_of(Course().exercise("01.1"))
    path = here / "mine" / "01_small" / "01_2_halve.py"
    path.write_text("def halve(x):\n    y = x - 1\n    return y\n")
    assert main(["learn", "trace", "01.2", *folder]) == 1 and "01_2_halve.py:2   y = x - 1" in capsys.readouterr().out
    assert main(["learn", "reset", *folder]) == 2 and "reset: expected an exercise" in capsys.readouterr().err
    assert main(["learn", "reset", "01.2", *folder]) == 0 and "what you wrote is in" in capsys.readouterr().out
    assert main(["learn", "update", *folder]) == 0 and capsys.readouterr().out == "3 as it was\n"
    assert main(["learn", "notebook", "1", *folder]) == 0
    notebook = json.loads((here / "mine" / "01_small" / "lesson.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    assert 'raise NotImplementedError("01.2: halve' in text and 'halve = answer("01.2")' in text and "BEGIN SOLUTION" not in text


def test_the_course_of_the_package_is_found(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    assert (find_lessons() / "course.toml").is_file() and len(Course().lessons) == 17
    monkeypatch.setenv(FOLDER, "nowhere")
    with pytest.raises(FileNotFoundError,
                       match="lessons: no course.toml in nowhere; set MINIPEFT_LESSONS to the folder of the lessons"):
        find_lessons()


def test_graft_uses_what_was_solved(here, capsys):
    main(["learn", "init", "mine"])
    assert main(["learn", "graft", "--dir", "mine"]) == 2 and "nothing is solved yet" in capsys.readouterr().err
    (here / "mine" / "01_small" / "01_3_change.py").write_text(
        "import numpy as np\n\n\ndef change(self):\n    u, v = self.factors()\n    return np.matmul(u, v.T)\n")
    assert main(["learn", "check", "01.3", "--dir", "mine"]) == 0
    capsys.readouterr()
    assert main(["learn", "graft", "train", "--dir", "mine"]) == 0
    said = capsys.readouterr()
    assert "yours: 01.3 LoRALinear.change" in said.err and said.out.startswith("accuracy 0.")


# ---- teach -----------------------------------------------------------------------------------------------------


def test_a_report_before_anybody_has_begun(here, capsys):
    (here / "names.txt").write_text("Ann\nBen\n")
    assert main(["teach", "release", "class", "--students", "names.txt"]) == 0
    capsys.readouterr()
    assert main(["teach", "report", "class"]) == 0
    assert capsys.readouterr().out == "nobody of 2 has begun an exercise in class\n"


def test_release_grade_and_report(here, capsys):
    (here / "names.txt").write_text("Ada Lovelace\n\nGrace Hopper\n")
    assert main(["teach", "release", "class", "--students", "names.txt"]) == 0
    assert capsys.readouterr().out == "2 folders with 3 exercises each in class\n"
    state = json.loads((here / "class" / "Ada_Lovelace" / ".minipeft" / "state.json").read_text())
    assert state["student"] == "Ada Lovelace" and state["variant"] == variant_of("Ada Lovelace") != variant_of("Grace Hopper")
    everything = "".join(path.read_text() for path in (here / "class").rglob("*") if path.is_file())
    assert "x / 2\n" not in everything.replace('"""x / 2"""', "") and "BEGIN SOLUTION" not in everything
    solve(here / "class" / "Ada_Lovelace", "01.1", "01.2")
    wrong = here / "class" / "Grace_Hopper" / "01_small" / "01_2_halve.py"
    wrong.write_text("def halve(x):\n    return x\n")
    for _ in range(2):
        main(["learn", "check", "01.2", "--dir", "class/Grace_Hopper"])
    capsys.readouterr()
    assert main(["teach", "grade", "class", "--csv", "points.csv"]) == 0
    out = capsys.readouterr().out
    assert "Ada Lovelace" in out and (here / "points.csv").read_text() == (
        "student,points,01.1,01.2,01.3\nAda Lovelace,2,1,1,0\nGrace Hopper,0,0,0,0\n")
    assert main(["teach", "grade", "class", "--gradescope", "r.json"]) == 2
    assert "--gradescope is for one student's folder; class has 2" in capsys.readouterr().err
    assert main(["teach", "grade", "class/Grace_Hopper", "--gradescope", "r.json", "--lessons", "1"]) == 0
    tests = {test["number"]: test for test in json.loads((here / "r.json").read_text())["tests"]}
    assert tests["01.2"]["score"] == 0 and tests["01.2"]["max_score"] == 1 and "That is x." in tests["01.2"]["output"]
    capsys.readouterr()
    assert main(["teach", "report", "class", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"students": 2, "exercises": {"01.2": {"solved": 0, "tries": 2.0, "hints": 0.0, "gave_up": 0,
                                                          "mutants": [["whole", 2]]}}}


@pytest.fixture
def with_stretch(here):
    """The same place, with 01.3 for those who have the time."""
    make_course(here / "lessons", {"course.toml": COURSE + 'stretch = ["01.3"]\npoints = {"01.3" = 5}\n'})
    return here


def test_release_of_the_core_has_no_stretch_exercise(with_stretch, capsys):
    assert main(["teach", "release", "class", "--student", "Ada", "--tier", "core"]) == 0
    assert capsys.readouterr().out == "1 folder with 2 exercises each in class\n"
    names = sorted(path.name for path in (with_stretch / "class" / "Ada" / "01_small").iterdir())
    assert names == ["01_1_multiply.py", "01_2_halve.py", "lesson.py"]
    assert main(["learn", "check", "--all", "--dir", "class/Ada"]) == 1
    assert "01.2" in (said := capsys.readouterr().out) and "01.3" not in said
    assert main(["teach", "release", "class", "--student", "Grace"]) == 0  # all by default
    assert (with_stretch / "class" / "Grace" / "01_small" / "01_3_change.py").is_file()


def test_which_tiers_count_is_not_the_students_word(with_stretch, capsys):
    main(["teach", "release", "class", "--student", "Ada"])
    solve(with_stretch / "class" / "Ada", "01.1", "01.2")
    state = with_stretch / "class" / "Ada" / ".minipeft" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"tiers": ["core"]}))  # 01.3 dropped
    capsys.readouterr()
    remark = "Ada: the folder has the tiers core; graded were core, stretch"
    assert main(["teach", "grade", "class", "--csv", "points.csv"]) == 0 and remark in capsys.readouterr().out
    assert (with_stretch / "points.csv").read_text() == "student,points,01.1,01.2,01.3\nAda,2,1,1,0\n"
    assert main(["teach", "grade", "class/Ada", "--gradescope", "r.json"]) == 0
    told = json.loads((with_stretch / "r.json").read_text())
    assert told["output"] == remark and [(test["number"], test["score"], test["max_score"]) for test in told["tests"]] == [
        ("01.1", 1, 1), ("01.2", 1, 1), ("01.3", 0, 5)]
    capsys.readouterr()
    # the instructor released the core alone
    assert main(["teach", "grade", "class", "--tier", "core", "--csv", "points.csv"]) == 0
    assert "the folder has the tiers" not in capsys.readouterr().out
    assert (with_stretch / "points.csv").read_text() == "student,points,01.1,01.2\nAda,2,1,1\n"


@pytest.mark.parametrize("tiers, said", [("core", "'core'"), (None, "None"), (["core", 3], "core, 3"),
                                         (["stretch", "core"], None)])
def test_whatever_stands_for_tiers_in_a_students_file(tiers, said):
    folder = SimpleNamespace(state={"tiers": tiers, "student": "Ada"})
    assert remarks_on(folder, ("core", "stretch"), {}) == (
        [f"the folder has the tiers {said}; graded were core, stretch"] if said else [])


def test_two_folders_of_one_student_are_remarked_on(here, capsys):
    main(["teach", "release", "class", "--student", "Ada"])
    shutil.copytree(here / "class" / "Ada", here / "class" / "Bob")  # handed in by another
    assert main(["teach", "grade", "class", "--lessons", "1"]) == 0
    assert "Bob: another folder is Ada's as well" in capsys.readouterr().out


def test_compiling_is_announced_in_grading_and_tracing(here, capsys):
    make_course(here / "lessons", parts=KERNEL)
    main(["learn", "init", "mine"])
    solve(here / "mine", "01.1")
    for command in (["learn", "trace", "01.1", "--dir", "mine"], ["teach", "grade", "mine", "--lessons", "1"]):
        with (here / "mine" / "01_small" / "01_1_double.py").open("a") as file:
            file.write("# a change, so that it is compiled anew\n")
        capsys.readouterr()
        assert main(command) == 0
        assert "note: compiling with Numba, which is outside the limit of time\n" in capsys.readouterr().err, command


@pytest.mark.parametrize("arguments, message", [
    (["teach", "release", "class"], "release: expected --student NAME, or --students FILE"),
    (["teach", "release", "class", "--students", "none.txt"], "none.txt: No such file or directory"),
    (["teach", "grade", "lessons"], "lessons: neither a folder of the course nor a folder of such folders"),
    (["teach", "export", "out", "--lessons", "9"], "lesson: there is no 9; expected one of 01")])
def test_wrong_uses_of_teach(arguments, message, here, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"minipeft: {message}") and said.count("\n") == 1


def test_two_students_do_not_share_a_folder(here, capsys):
    (here / "names.txt").write_text("A B\nA_B\n")
    assert main(["teach", "release", "class", "--students", "names.txt"]) == 2
    assert "A B, A_B would share a folder" in capsys.readouterr().err and not (here / "class").exists()
    main(["teach", "release", "class", "--student", "A"])
    assert main(["teach", "release", "class", "--student", "A"]) == 2 and "has a folder for A already" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["nbgrader", "otter"])
def test_an_assignment_has_a_cell_to_write_in_and_one_that_grades(form, here, capsys):
    assert main(["teach", "export", "out", "--to", form]) == 0
    notebook = json.loads((here / "out" / "01_small" / "01_small.ipynb").read_text())
    codes = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    answers = [code for code in codes if "BEGIN SOLUTION" in code]
    assert len(answers) == 3 and sum('graded_cell("01.' in code for code in codes) == 3
    # otter takes what is printed for a fault
    assert sum("quiet=True" in code for code in codes) == {"nbgrader": 0, "otter": 3}[form]
    assert ("    return x / 2\n" in answers[1]
            and answers[1].splitlines()[-1].strip() == {"nbgrader": "### END SOLUTION", "otter": "# END SOLUTION"}[form])


def test_a_cell_is_graded_as_a_file_is(here, capsys):
    from minipeft.learn import graded_cell

    path = here / "cell.py"
    path.write_text("def halve(x):\n    return x / 2\n\n\ndef wrong(x):\n    return x\n")
    from minipeft.learn.answers import load

    space = vars(load(path))
    graded_cell("01.2", space["halve"])
    assert capsys.readouterr().out == "holds: Half of x.\n"
    graded_cell("01.2", space["halve"], quiet=True)
    assert capsys.readouterr().out == ""
    space["wrong"].__name__ = "halve"
    with pytest.raises(AssertionError, match="there is no halve"):
        graded_cell("01.2", space["wrong"])


# ---- learn doctor ----------------------------------------------------------------------------------------------


def test_doctor_when_all_is_well(here, capsys):
    assert main(["learn", "doctor"]) == 0
    out = capsys.readouterr().out
    assert "!!" not in out and out.endswith("all is well\n")
    assert "1 with 3 exercises in " in out and "none here; minipeft learn init DIR makes one" in out
    assert "the solution of 01.1 passes in" in out
    assert main(["learn", "init", "mine"]) == 0
    solve(here / "mine", "01.2")
    assert main(["learn", "check", "01.2", "--dir", "mine"]) == 0
    assert main(["learn", "doctor", "--dir", "mine"]) == 0
    assert f"{here / 'mine'}, 1 of 3 solved" in capsys.readouterr().out


@pytest.mark.parametrize("break_it, name, value, advice", [
    (lambda here, patch: (here / "mine/01_small/01_2_halve.py").unlink(), "01.2", "01_2_halve.py is missing",
     "minipeft learn reset 01.2 makes it anew"),
    (lambda here, patch: (here / "mine/.minipeft/state.json").write_text("{"), "your folder", "cannot be read",
     "state of the course"),
    (lambda here, patch: patch.setenv(FOLDER, str(here / "nowhere")), "lessons", "none", "nowhere"),
    (lambda here, patch: patch.setattr("minipeft.learn.doctor.LIBRARIES", {"no-such-thing": "notebooks"}),
     "no-such-thing", "not installed", "pip install '.[learn]' in the project's folder, for notebooks"),
    (lambda here, patch: patch.setattr("minipeft.learn.doctor.solution_of",
                                       lambda exercise: "def multiply(a, b):\n    return a\n"),
     "a check", "the solution of 01.1 is refused: ", "install the course anew")])
def test_doctor_finds_what_is_wrong(break_it, name, value, advice, here, monkeypatch, capsys):
    assert main(["learn", "init", "mine"]) == 0
    break_it(here, monkeypatch)
    capsys.readouterr()
    assert main(["learn", "doctor", "--dir", "mine"]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [(line, after) for line, after in zip(lines, lines[1:]) if line.startswith("!!")]
    assert (len(wrong) == 1 and wrong[0][0].split()[1:3] == f"{name} {value}".split()[:2]
            and value in wrong[0][0] and advice in wrong[0][1])
    assert lines[-1] == "1 thing to look at"


def test_a_notebook_that_a_program_runs_asks_nobody(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell('from minipeft.learn import predict\npredict("How many?", "Three.")')
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert notebook.cells[0].outputs[0]["text"] == "? How many?\n  Three.\n"
