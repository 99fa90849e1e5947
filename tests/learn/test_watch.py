"""Watch mode at a terminal: saves are seen, keys do what they say, and the next time it goes on where it was left."""

import pytest
from play import play
from small_course import make_course
from terminal import Terminal

from minipeft.cli import main
from minipeft.learn.course import FOLDER, Course
from minipeft.learn.stubs import solution_of, stub_of

pytest.importorskip("pty")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A learner's folder of the small course."""
    make_course(tmp_path / "lessons")
    monkeypatch.setenv(FOLDER, str(tmp_path / "lessons"))
    assert main(["learn", "init", str(tmp_path / "mine")]) == 0
    return tmp_path / "mine"


def test_a_learner_at_work(mine):
    exercises = {exercise.id: exercise for exercise in Course().exercises}
    path = {id: mine / "01_small" / exercise.filename for id, exercise in exercises.items()}
    terminal = Terminal(["learn"], mine)
    try:
        terminal.wait("not written yet")
        terminal.wait("q quit")
        path["01.1"].write_text(stub_of(exercises["01.1"]).replace(
            'raise NotImplementedError("01.1: multiply is still to be written")', "return a + b"))
        shown = terminal.wait("That is a sum.")
        assert "The product of a and b." in shown and "yours" in shown and "expected" in shown
        terminal.send("h")
        assert "q1" in terminal.wait("q1")
        terminal.send("s")
        terminal.wait("01.1 has 2 more hints")
        terminal.send("t")
        terminal.wait("whose value the solution never has")
        path["01.1"].write_text(solution_of(exercises["01.1"]))
        terminal.wait("2 claims hold")
        terminal.wait("n goes on to the next.")
        terminal.send("n")
        terminal.wait("01.2 halve")
        terminal.wait("not written yet")
        path["01.2"].write_text("def halve(x):\n    return 2 * x\n")
        terminal.wait("That is twice x.")
        terminal.send("l")
        terminal.wait("LoRALinear.change")
        terminal.send("hhhs")
        terminal.wait("s again gives up and shows the solution")
        terminal.send("s")
        terminal.wait("return x / 2")
        terminal.send("x")
        terminal.wait("what you wrote is in")
        terminal.send("q")
        terminal.wait("goes on from here")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    again = Terminal(["learn"], mine / "01_small")
    try:
        assert "1 of 3 solved" in again.wait("01.2 halve") + again.wait("not written yet")
        path["01.2"].write_text(solution_of(exercises["01.2"]))
        again.wait("1 claim holds")
        again.send("n")
        again.wait("01.3 LoRALinear.change")
        path["01.3"].write_text(solution_of(exercises["01.3"]))
        again.wait("All exercises are solved.")
        again.send("\x03")
        again.wait("goes on from here")
        assert again.close() == 0
    finally:
        again.process.kill()


def test_a_learner_plays_through(tmp_path, monkeypatch):
    """Every wrong answer is refused with its diagnosis, every solution is green; and the player sees where that is not so."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "lessons"))
    assert play(tmp_path / "mine", make_course(tmp_path / "lessons"), every=True) == []
    wrong = {"01_small/mutants.py": ("    return 2 * x", "    return 2 * x + len(__name__)"),  # other values as a file
             "01_small/lesson.py": ("    return x / 2\n### END", "    return x\n### END")}
    faults = play(tmp_path / "other", make_course(tmp_path / "lessons", wrong), every=True)
    assert [fault.split(": ")[:2] for fault in faults] == [
        ["01.2", "the wrong answer twice was not answered by its diagnosis"], ["01.2", "the solution was refused"]]
