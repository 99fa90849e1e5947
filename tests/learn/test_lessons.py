"""The course itself: every lesson's stubs, solutions, wrong answers, hints, graders and texts."""

import pytest

from minipeft.learn import health
from minipeft.learn.course import Course

COURSE = Course()
LESSONS = pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.folder.name)
EXERCISES = pytest.mark.parametrize("exercise", COURSE.exercises, ids=lambda exercise: exercise.id)


@EXERCISES
def test_stub_solution_canary_and_wrong_answers(exercise):
    assert health.answer_faults(exercise) == []


@EXERCISES
def test_the_solution_passes_as_a_file(exercise):
    assert health.solution_file_faults(exercise) == []


@LESSONS
def test_texts_hints_and_notebooks(lesson):
    assert health.text_faults(lesson) == []


@LESSONS
def test_graders_say_what_they_claim(lesson):
    assert health.grader_faults(lesson) == []


@LESSONS
def test_the_lesson_runs(lesson):
    assert health.running_faults(lesson) == []


def test_no_lesson_uses_what_comes_later():
    assert health.order_faults(COURSE) == []
