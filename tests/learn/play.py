"""A learner who works through the whole course at a terminal: each exercise first with a wrong answer, then with the right one.

    python tests/learn/play.py              one wrong answer for each exercise (another in turn), then its solution
    python tests/learn/play.py --all        every wrong answer of every exercise
    python tests/learn/play.py --only 08    one lesson
"""

import argparse
import sys
import tempfile
from pathlib import Path

from terminal import Terminal

from minipeft.learn.answers import mutants_of
from minipeft.learn.course import Course
from minipeft.learn.stubs import mutant_file, solution_of
from minipeft.learn.workspace import Workspace


def words_of(text):
    """The first words of a text, as far as no line of a screen is broken there."""
    return " ".join(text.split()[:6])


def play(folder, course, every=False, only=None, told=lambda line: None):
    """Work through a course in a new folder; returns [what went wrong].

    ``every``: paste all wrong answers, and not one for each exercise. ``only``: the number of one lesson; the others are taken as
    solved.
    """
    workspace, faults = Workspace.make(folder, course), []
    exercises = [exercise for exercise in workspace.exercises if only in (None, exercise.lesson.number)]
    for exercise in workspace.exercises:
        if exercise not in exercises:
            workspace.of(exercise)["passed"] = "before"
    workspace.save()
    terminal = Terminal(["learn"], folder)
    try:
        for number, exercise in enumerate(exercises):
            terminal.wait(f"{exercise.id} {exercise.qualname}")
            terminal.wait("q quit")
            path, wrong, slowest = workspace.path(exercise), mutants_of(exercise), 0.0
            for mutant in wrong if every else wrong[number % len(wrong):][:1]:
                path.write_text(mutant_file(exercise, mutant), encoding="utf-8")
                terminal.wait("checking …")
                said = terminal.either("✗", "✓", 120)
                slowest = max(slowest, terminal.took)
                said += terminal.wait("q quit")
                if f"➜ {words_of(mutant.diagnosis)}" not in said:
                    faults.append(f"{exercise.id}: the wrong answer {mutant.name} was not answered by its diagnosis: {said}")
            path.write_text(solution_of(exercise), encoding="utf-8")
            terminal.wait("checking …")
            if not terminal.either("✗", "✓", 300).endswith("✓"):
                faults.append(f"{exercise.id}: the solution was refused: {terminal.wait('q quit')}")
                return faults
            told(f"{exercise.id} is green in {terminal.took:.1f} s; its slowest wrong answer took {slowest:.1f} s")
            if number < len(exercises) - 1:
                terminal.wait("n goes on to the next.")
                terminal.send("n")
        terminal.wait("All exercises are solved.")
        terminal.send("q")
        terminal.wait("goes on from here")
        if terminal.close() != 0:
            faults.append("it did not end with 0")
    finally:
        terminal.process.kill()
    return faults


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every wrong answer of every exercise")
    parser.add_argument("--only", metavar="LESSON", help="one lesson")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = play(Path(folder) / "mine", Course(), args.all, args.only, lambda line: print(line, flush=True))
    print("\n".join(faults) or "everything is green")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
