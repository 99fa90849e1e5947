"""The course itself: every lesson's stubs, solutions, wrong answers, hints, graders, texts, and notebooks."""

import pytest

from minipeft.learn import health
from minipeft.learn.course import Course
from minipeft.learn.notebook import notebook_of
from minipeft.learn.reading import FAST

COURSE = Course()
LESSONS = pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.folder.name)
EXERCISES = pytest.mark.parametrize("exercise", COURSE.exercises, ids=lambda exercise: exercise.id)
# Words in italics that are no terms.
STRESSED = " ".join("""
added; all of its parents are on it; number; pre-trained; means; all; over; fixed; the causal mask; before; turned; adds;
normalised; source; written; old; many; group; change; good; bad; the; cake; i liked it; length; direction; into; reads;
entered; first; once; not; vectors; label's vector; terrible, bad, good, great; how few numbers suffice depends on what the
model knows already, and on whether one asks for it in its own words; is; at; share of the attention that goes to the prefix;
next; up; at the far end; behind a norm; by what is there; grows in proportion to; below; itself; R; B; F; here; verdict; limit;
generates; choose; a few steps on a few examples; near to solutions of all tasks; together; scratch; a task embedding alone;
sampling; rules; list; norm; the model itself says; result; ideal; Hugging Face folder; pools; evaluation; trained; one task;
memory; step; score; same; one; its; ends; their; of
""".split()).split("; ")


@LESSONS
def test_stubs_solutions_canaries_and_wrong_answers(lesson):
    assert health.answers_faults(lesson, health.MUTANT_SECONDS // len(COURSE.lessons)) == []


@EXERCISES
def test_the_solution_passes_as_a_file(exercise):
    assert health.solution_file_faults(exercise) == []


@LESSONS
def test_parts_exercises_and_hints(lesson):
    assert health.text_faults(lesson) + health.anatomy_faults(lesson) == []


@LESSONS
def test_graders_say_what_they_claim(lesson):
    assert health.grader_faults(lesson) == []


@LESSONS
def test_the_lesson_runs(lesson):
    assert health.running_faults(lesson, health.FAST_SECONDS // len(COURSE.lessons)) == []


def test_no_lesson_uses_what_comes_later():
    assert health.order_faults(COURSE) == []


def test_there_are_enough_exercises():
    assert health.size_faults(COURSE) == []


def test_making_stubs_and_notebooks_again_changes_nothing():
    assert health.generating_faults(COURSE) == []


def test_the_glossary_has_every_term():
    assert health.glossary_faults(COURSE, STRESSED) == []


def test_the_table_of_lessons_is_that_of_the_course():
    lines = (COURSE.folder / "README.md").read_text(encoding="utf-8").splitlines()
    for lesson in COURSE.lessons:
        row = (f"| {lesson.number} | [{lesson.title}]({lesson.folder.name}/lesson.py) | {lesson.minutes} | "
               f"{', '.join(lesson.needs)} |")
        assert row in lines, row


@pytest.mark.parametrize("number", ["00", "01", "03"])  # those that take least; all others run as scripts
def test_a_notebook_runs(number, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv(FAST, "1")
    notebook = nbformat.reads(notebook_of(COURSE.lesson(number)), as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output["data"]["text/html"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert pictures and all("<img src=" in each and 'alt=""' not in each and 'alt="' in each for each in pictures)
