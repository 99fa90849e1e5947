"""The course on disk: its lessons in their order, and the exercises that the lessons name.

    lessons/course.toml             lessons: folder, title, what they need, minutes, tier, points
    lessons/08_lora/lesson.py       the text and its code; an exercise is named by a comment,
                                    #@exercise 08.2 minipeft.methods.lora:LoRALinear.forward
                                    #@ What to write, in a sentence or two.
    lessons/08_lora/grade.py        tests of what a learner wrote
    lessons/08_lora/mutants.py      wrong answers by name, with what is wrong with them
    lessons/08_lora/hints.toml      three hints for each exercise

An exercise is a function, a method or a class of the package, or of the lesson itself (``lesson:name``), between
``### BEGIN SOLUTION`` and ``### END SOLUTION``.
"""

import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COURSE, LESSON, GRADE, MUTANTS, HINTS = "course.toml", "lesson.py", "grade.py", "mutants.py", "hints.toml"
MARK, TASK = re.compile(r"#\s?@exercise\s+(\S+)\s+(\S+)\s*$"), re.compile(r"#\s?@ (.*)$")
ID = re.compile(r"\d\d\.\d")
TIERS = ("core", "stretch")
FOLDER = "MINIPEFT_LESSONS"  # environment variable: a folder of lessons in place of the package's own


@dataclass(frozen=True)
class Exercise:
    """What a learner writes: ``symbol`` is "module:name", "module:Class.method" or "lesson:name"."""

    id: str
    symbol: str
    task: str
    lesson: "Lesson"

    @property
    def module(self):
        """The name of the module that holds the answer; "lesson" for the lesson itself."""
        return self.symbol.partition(":")[0]

    @property
    def qualname(self):
        """The name in the module, with its class."""
        return self.symbol.partition(":")[2]

    @property
    def name(self):
        """The name of the function or class."""
        return self.qualname.rpartition(".")[2]

    @property
    def tier(self):
        """Whether everybody does it ("core") or who has the time ("stretch")."""
        return "stretch" if self.id in self.lesson.stretch else self.lesson.tier

    @property
    def points(self):
        """What it counts in grading."""
        return self.lesson.points.get(self.id, 1)

    @property
    def kernel(self):
        """Whether it is checked without the compiler first, and then with it on one and on two threads."""
        return self.id in self.lesson.kernels

    @property
    def filename(self):
        """The name of the learner's file, in the lesson's folder."""
        return f"{self.id.replace('.', '_')}_{self.name.strip('_')}.py"


@dataclass(frozen=True, eq=False)
class Lesson:
    """One lesson: a folder with its text, its grader, its wrong answers and its hints."""

    folder: Path
    title: str
    needs: tuple = ()      # numbers of lessons that come before it
    minutes: int = 45
    tier: str = "core"
    points: dict = None    # {exercise id: points}; 1 where it is not there
    stretch: tuple = ()    # ids of exercises for who has the time
    kernels: tuple = ()    # ids of exercises that Numba compiles
    introduces: tuple = () # modules of the package that lessons before this one do not use
    solved: tuple = ()     # ids of exercises that a learner finds solved

    @property
    def number(self):
        """Its place in the course, as two digits."""
        return self.folder.name[:2]

    def path(self, name):
        """One of the lesson's files."""
        return self.folder / name

    def exercises(self):
        """[`Exercise`], in the order in which the lesson names them. Raises ValueError where a mark is not understood."""
        lines, out = self.path(LESSON).read_text(encoding="utf-8").splitlines(), []
        for place, line in enumerate(lines):
            found = MARK.match(line)
            if found is None:
                if re.match(r"#\s?@exercise", line):
                    raise ValueError(f"{self.path(LESSON)}:{place + 1}: expected #@exercise ID MODULE:NAME, got {line!r}")
                continue
            id, symbol = found.groups()
            if not ID.fullmatch(id) or id[:2] != self.number or ":" not in symbol:
                raise ValueError(f"{self.path(LESSON)}:{place + 1}: "
                                 f"expected an id such as {self.number}.1 and MODULE:NAME, got {line!r}")
            task = []
            for after in lines[place + 1:]:
                said = TASK.match(after)
                if said is None:
                    break
                task.append(said.group(1).strip())
            out.append(Exercise(id, symbol, " ".join(task), self))
        twice = {e.id for e in out if sum(o.id == e.id for o in out) > 1}
        if twice:
            raise ValueError(f"{self.path(LESSON)}: the id {', '.join(sorted(twice))} stands there twice")
        return out

    def hints(self):
        """{exercise id: [three hints]}."""
        return {id: [told[name] for name in ("question", "equation", "pseudocode") if told.get(name)]
                for id, told in read_toml(self.path(HINTS)).items()}


class Course:
    """All lessons.

    Args:
        folder: of the lessons; default: that of `find_lessons`.

    Raises ValueError where the course's files do not say what they must, and OSError where they are missing.
    """

    def __init__(self, folder=None):
        self.folder = find_lessons() if folder is None else Path(folder)
        raw = read_toml(self.folder / COURSE)
        self.title, self.lessons = raw.get("title", "minipeft"), []
        for told in raw.get("lessons", []):
            lesson = Lesson(self.folder / told["folder"], told["title"], tuple(told.get("needs", ())), told.get("minutes", 45),
                            told.get("tier", "core"), told.get("points", {}), tuple(told.get("stretch", ())),
                            tuple(told.get("kernels", ())), tuple(told.get("introduces", ())), tuple(told.get("solved", ())))
            if lesson.tier not in TIERS:
                raise ValueError(f"{self.folder / COURSE}: tier of {told['folder']} is {lesson.tier!r}; "
                                 f"expected {' or '.join(TIERS)}")
            self.lessons.append(lesson)
        self.exercises = [exercise for lesson in self.lessons for exercise in lesson.exercises()]

    def exercise(self, id):
        """The `Exercise` with an id. Raises ValueError where there is none."""
        for exercise in self.exercises:
            if exercise.id == id:
                return exercise
        lessons = ", ".join(dict.fromkeys(e.id for e in self.exercises if e.id[:2] == str(id)[:2]))
        raise ValueError(f"exercise: there is no {id}; " + (f"lesson {str(id)[:2]} has {lessons}" if lessons
                                                            else "minipeft learn list shows all"))

    def lesson(self, number):
        """The `Lesson` with a number, given as 8 or "08". Raises ValueError where there is none."""
        for lesson in self.lessons:
            if lesson.number == str(number).zfill(2):
                return lesson
        raise ValueError(f"lesson: there is no {number}; expected one of {', '.join(lesson.number for lesson in self.lessons)}")


def find_lessons():
    """The folder of the lessons: that of the environment variable `FOLDER`, beside the package, or installed with it.

    Raises FileNotFoundError where there is none.
    """
    own = Path(__file__).resolve().parents[2] / "lessons"
    installed = Path(sysconfig.get_path("data")) / "share" / "minipeft" / "lessons"
    places = [Path(os.environ[FOLDER])] if os.environ.get(FOLDER) else [own, installed]
    for place in places:
        if (place / COURSE).is_file():
            return place
    raise FileNotFoundError(f"lessons: no {COURSE} in {' or '.join(map(str, places))}; set {FOLDER} to the folder of the lessons")


def read_toml(path):
    """The content of a TOML file. Raises ValueError where it is none, and OSError where there is no such file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
