"""A learner's folder: a file for each exercise, and what has been done so far.

    DIR/glossary.md                  the terms, in English and Chinese
    DIR/08_lora/lesson.py            the lesson's text, to read and to run
    DIR/08_lora/08_2_forward.py      an exercise, first as a stub
    DIR/.minipeft/state.json         {"version", "variant", "student", "exercises": {id: {"attempts", "hints", "passed", ...}}}
    DIR/.minipeft/stubs/             the stubs as they were made, by which `update` tells what the learner wrote
    DIR/.minipeft/before/            what a file held before `reset`, `update` or a solution replaced it

Nothing of it leaves the machine.
"""

import ast
import time
from pathlib import Path

from ..data import files
from .course import LESSON, TIERS, Course
from .notebook import lesson_with_stubs
from .stubs import solution_of, stub_of

FOLDER, STATE, STUBS, BEFORE = ".minipeft", "state.json", "stubs", "before"
GLOSSARY = "glossary.md"
VERSION = 1
FRESH = {"attempts": 0, "hints": 0, "passed": None, "solution": False, "mutants": {}}
HINTS = 3


class Workspace:
    """A learner's folder. Raises ValueError where ``folder`` is none."""

    def __init__(self, folder, course=None):
        self.folder, self.course = Path(folder), course or Course()
        self.state_path = self.folder / FOLDER / STATE
        if not self.state_path.is_file():
            raise ValueError(f"{folder}: not a folder of the course; minipeft learn init {folder} makes one")
        self.state = files.read_json(self.state_path, "state of the course")
        if self.state.get("version") != VERSION:
            raise ValueError(f"{self.state_path}: version is {self.state.get('version')!r}; this minipeft reads {VERSION}")

    @classmethod
    def make(cls, folder, course=None, variant=0, student="", tiers=TIERS):
        """A new one, with all stubs. Raises ValueError where the folder has something in it."""
        folder, course = Path(folder), course or Course()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            known = (folder / FOLDER / STATE).is_file()
            raise ValueError(f"{folder}: " + ("is a folder of the course already; minipeft learn goes on there" if known else
                                              "there is something in it; choose a folder that is new"))
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        files.write_json(folder / FOLDER / STATE, {"version": VERSION, "variant": variant, "student": student,
                                                   "tiers": list(tiers), "exercises": {}})
        out = cls(folder, course)
        for exercise in out.exercises:
            out.write_stub(exercise)
            if exercise.id in exercise.lesson.solved:
                out._write(out.path(exercise), solution_of(exercise))
        out._copy_texts()
        return out

    @classmethod
    def around(cls, folder, course=None):
        """The one that a folder is, or lies in. Raises ValueError where there is none."""
        start = Path(folder).absolute()
        for place in (start, *start.parents):
            if (place / FOLDER / STATE).is_file():
                return cls(place, course)
        raise ValueError(f"{folder}: no folder of the course, nor in one; minipeft learn init DIR makes one")

    @property
    def exercises(self):
        """The exercises of the tiers that it has."""
        tiers = self.state.get("tiers", TIERS)
        return [exercise for exercise in self.course.exercises if exercise.tier in tiers]

    @property
    def variant(self):
        """Which sizes and numbers the grader draws."""
        return self.state.get("variant", 0)

    def path(self, exercise):
        """The learner's file."""
        return self.folder / exercise.lesson.folder.name / exercise.filename

    # ---- what has been done ----

    def of(self, exercise):
        """What has been done on an exercise."""
        return self.state["exercises"].setdefault(exercise.id, {**FRESH, "mutants": {}})

    def save(self):
        """Write the state."""
        files.write_json(self.state_path, self.state)

    def note(self, exercise, outcome):
        """Write down what came of a check; a stub that was not touched is no attempt."""
        done = self.of(exercise)
        if not outcome.unwritten:
            done["attempts"] += 1
        if outcome.diagnosis is not None:
            name = outcome.diagnosis["name"]
            done["mutants"][name] = done["mutants"].get(name, 0) + 1
        if outcome.passed:
            done["passed"] = done["passed"] or time.strftime("%Y-%m-%dT%H:%M:%S")
        self.save()

    def solved(self, exercise):
        """Whether it has passed."""
        return bool(self.of(exercise)["passed"])

    def current(self):
        """The first exercise that has not passed; None where all have."""
        return next((exercise for exercise in self.exercises if not self.solved(exercise)), None)

    def hint(self, exercise):
        """(number of the next hint, its text); the last again where all were given."""
        hints = exercise.lesson.hints().get(exercise.id, [])
        if not hints:
            raise ValueError(f"hint: {exercise.id} has none")
        done = self.of(exercise)
        done["hints"] = min(done["hints"] + 1, len(hints))
        self.save()
        return done["hints"], hints[done["hints"] - 1]

    def solution(self, exercise, give_up=False):
        """The solution's text, for who has passed, or gives up after the last hint. Raises ValueError for others."""
        done = self.of(exercise)
        if not self.solved(exercise):
            left = HINTS - done["hints"]
            if left > 0:
                raise ValueError(f"solution: {exercise.id} has {left} more hint{'s' * (left > 1)}; "
                                 f"minipeft learn hint {exercise.id}")
            if not give_up:
                raise ValueError(f"solution: {exercise.id} has not passed; "
                                 f"minipeft learn solution {exercise.id} --give-up shows it all the same")
            done["solution"] = True
            self.save()
        return solution_of(exercise)

    # ---- files ----

    def write_stub(self, exercise):
        """Write the stub; what stood there before is kept. Returns the path of what was kept, or None."""
        path, text = self.path(exercise), stub_of(exercise)
        kept = self._keep(path, text)
        self._write(path, text)
        self._write(self.folder / FOLDER / STUBS / exercise.filename, text)
        return kept

    def update(self):
        """Bring all files to the course as it is now; what the learner wrote is kept, by the exercise's id.

        Returns [(exercise, what was done: "new", "stub", "body kept", "as it was")].
        """
        out, old = [], self._by_id()
        for exercise in self.exercises:
            path, stub, before = self.path(exercise), stub_of(exercise), old.get(exercise.id)
            told_stub = self.folder / FOLDER / STUBS / (before.name if before else exercise.filename)
            earlier = told_stub.read_text(encoding="utf-8") if told_stub.is_file() else ""
            if before is None:
                done, text = "new", stub
            else:
                mine = before.read_text(encoding="utf-8")
                if mine == earlier:
                    done, text = ("stub", stub) if stub != earlier else ("as it was", mine)
                elif stub == earlier and before == path:
                    done, text = "as it was", mine
                else:
                    done, text = "body kept", with_body_of(stub, mine, earlier, exercise.name)
            if before is not None and before != path:
                self._keep(before, "")
                before.unlink()
                told_stub.unlink(missing_ok=True)
            if done != "as it was":
                self._keep(path, text)
                self._write(path, text)
            self._write(self.folder / FOLDER / STUBS / exercise.filename, stub)
            out.append((exercise, done))
        self._copy_texts()
        return out

    def _by_id(self):
        """{exercise id: path} of the files that are there, whatever their function is called now."""
        found = {}
        for path in sorted(self.folder.glob("[0-9][0-9]_*/[0-9][0-9]_[0-9]_*.py")):
            found.setdefault(f"{path.name[:2]}.{path.name[3]}", path)
        return found

    def _copy_texts(self):
        """Put the lessons' texts, without solutions, beside the exercises, and the glossary beside the lessons."""
        for lesson in self.course.lessons:
            self._write(self.folder / lesson.folder.name / LESSON, lesson_with_stubs(lesson))
        if (self.course.folder / GLOSSARY).is_file():
            self._write(self.folder / GLOSSARY, (self.course.folder / GLOSSARY).read_text(encoding="utf-8"))

    def _keep(self, path, text):
        """Keep what a file holds, where that is something else than ``text`` and than the stub it was made from."""
        stub = self.folder / FOLDER / STUBS / path.name
        known = {text, stub.read_text(encoding="utf-8") if stub.is_file() else text}
        if not path.is_file() or path.read_text(encoding="utf-8") in known:
            return None
        kept = self.folder / FOLDER / BEFORE / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}"
        number = 1
        while kept.exists():
            number += 1
            kept = kept.with_stem(f"{kept.stem.rpartition('_again')[0] or kept.stem}_again{number}")
        self._write(kept, path.read_text(encoding="utf-8"))
        return kept

    @staticmethod
    def _write(path, text):
        """Write a text as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def with_body_of(stub, mine, earlier, name):
    """A new stub with the body that a learner wrote, and with whatever else the learner's file has besides the earlier stub.

    A file that is not Python, or has no such function, is put behind the new stub as a comment.
    """
    try:
        tree = ast.parse(mine)
        nodes = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        own = next((n for n in nodes if n.name == name), None) or next(n for n in nodes)
        if isinstance(own, ast.ClassDef):
            raise ValueError("a class is taken as it is")
    except (SyntaxError, StopIteration, ValueError):
        return stub + "\n\n" + "".join(f"# {line}\n" for line in mine.splitlines())
    lines, new = mine.splitlines(), ast.parse(stub)
    target = next(n for n in new.body if isinstance(n, ast.FunctionDef) and n.name == name)
    body = lines[_head_end(own, lines):own.end_lineno]
    known = {ast.dump(n) for n in [*ast.parse(earlier or "").body, *new.body]}
    extra = [n for n in tree.body if n is not own and ast.dump(n) not in known and not (
        isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    imports = ["\n".join(lines[n.lineno - 1:n.end_lineno]) for n in extra if isinstance(n, (ast.Import, ast.ImportFrom))]
    others = ["\n".join(lines[min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", []))]) - 1:n.end_lineno])
              for n in extra if not isinstance(n, (ast.Import, ast.ImportFrom))]
    text = stub.splitlines()
    start = min([target.lineno, *(d.lineno for d in target.decorator_list)])
    last = target.body[-1]
    head, signature = text[:start - 1], text[start - 1:last.lineno - 1]
    while head and not head[-1].strip():
        head.pop()
    parts = head + imports + [""] + [line for other in others for line in ("", *other.splitlines(), "")] + [""] + signature + body
    return "\n".join(parts) + "\n"


def _head_end(node, lines):
    """The number of the last line of a function's signature and docstring; comments behind them are of the body."""
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        return node.body[0].end_lineno
    last = node.body[0].lineno - 1
    while last > node.lineno and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return last
