"""``minipeft teach``: what an instructor does with the course: hand it out, grade it, take it elsewhere, see how a class gets on.

    release   a folder for each student, with sizes and numbers of the student's own, without solutions
    grade     every exercise of a folder, or of a folder of folders, as a table, as Gradescope's results.json
    export    a lesson as an assignment for nbgrader or otter
    report    tries, hints and the commonest wrong answers of a class, from the folders that it handed in

Nothing is sent anywhere.
"""

import csv
import io
import json
import re
import sys
import zlib
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..data import files
from .checker import check
from .commands import check_installed, note
from .course import TIERS, Course
from .workspace import FOLDER, STATE, Workspace


def run(args):
    """The command that ``args.action`` names; returns the exit code. Raises ValueError and OSError with one clear line."""
    check_installed()
    return {"release": release, "grade": grade, "export": export, "report": report}[args.action](args)


def variant_of(student):
    """A student's variant, the same on every machine."""
    return zlib.crc32(student.strip().encode()) or 1


def students_of(args):
    """Names from --students, a text file with one in a line, or one named by --student.
    Raises ValueError for none or for two alike."""
    lines = Path(args.students).read_text(encoding="utf-8").splitlines() if args.students else [args.student or ""]
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError("release: expected --student NAME, or --students FILE with a name in each line")
    folders = [folder_of(name) for name in names]
    twice = [name for name, folder in zip(names, folders) if folders.count(folder) > 1]
    if twice:
        raise ValueError(f"release: {', '.join(twice)} would share a folder; give each student a name of their own")
    return names


def folder_of(student):
    """A student's name as a folder's."""
    return re.sub(r"[^\w.-]+", "_", student).strip("._") or "student"


def tiers_of(args):
    """What --tier asks for."""
    return TIERS[:1] if args.tier == "core" else TIERS


def release(args):
    """A folder for each student."""
    course, names = Course(), students_of(args)
    tiers = tiers_of(args)
    taken = [name for name in names if (Path(args.folder) / folder_of(name)).exists()]
    if taken:
        raise ValueError(f"release: {args.folder} has a folder for {', '.join(taken)} already; choose another, or leave them out")
    for name in names:
        workspace = Workspace.make(Path(args.folder) / folder_of(name), course, variant_of(name), name, tiers)
    print(f"{len(names)} folder{'s' * (len(names) > 1)} with {len(workspace.exercises)} exercises each in {args.folder}")
    return 0


def workspaces_in(folder, course):
    """[`Workspace`]: the folder itself, or those in it. Raises ValueError where there is none."""
    folder = Path(folder)
    places = [folder] if (folder / FOLDER / STATE).is_file() else sorted(
        path.parent.parent for path in folder.glob(f"*/{FOLDER}/{STATE}"))
    if not places:
        raise ValueError(f"{folder}: neither a folder of the course nor a folder of such folders")
    return [Workspace(place, course) for place in places]


# ---- grading ---------------------------------------------------------------------------------------------------


def grade(args):
    """Check every exercise of one folder or of many; 0 whatever was reached.

    Which tiers count is the instructor's word (--tier) and not the folder's; where the folder says otherwise the result says so.
    """
    course, tiers = Course(), tiers_of(args)
    chosen = [lesson.number for lesson in map(course.lesson, args.lessons.split(","))] if args.lessons else None
    exercises = [exercise for exercise in course.exercises
                 if exercise.tier in tiers and (chosen is None or exercise.lesson.number in chosen)]
    workspaces = workspaces_in(args.folder, course)
    if args.gradescope and len(workspaces) > 1:
        raise ValueError(f"grade: --gradescope is for one student's folder; {args.folder} has {len(workspaces)}")
    rows, remarks = [], []
    for workspace in workspaces:
        name = workspace.state.get("student") or workspace.folder.name
        variant = variant_of(name) if workspace.state.get("student") else workspace.variant
        remarks += [f"{workspace.folder.name}: {remark}" for remark in remarks_on(workspace, tiers, [name for name, _ in rows])]
        outcomes = []
        for exercise in exercises:
            print(f"{name}: {exercise.id}", file=sys.stderr)
            outcomes.append((exercise, check(exercise, workspace.path(exercise), variant, note)))
        rows.append((name, outcomes))
    if args.gradescope:
        files.write_json(args.gradescope, gradescope(rows[0][1], remarks))
    if args.csv:
        with files.atomic(args.csv) as temporary:
            temporary.write_text(as_csv(rows), encoding="utf-8")
    table = Table("student", "points", "of", "not passed")
    for name, outcomes in rows:
        failed = [exercise.id for exercise, outcome in outcomes if not outcome.passed]
        table.add_row(name, f"{points_of(outcomes):g}", str(sum(e.points for e, _ in outcomes)), ", ".join(failed) or "–")
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    return 0


def remarks_on(workspace, tiers, names):
    """[what a folder says of itself that the instructor did not]: other tiers,
    or a name that another folder bears (``names``)."""
    said, student, out = workspace.state.get("tiers", list(TIERS)), workspace.state.get("student"), []
    said = list(map(str, said)) if isinstance(said, list) else [repr(said)]  # anything at all may stand in a student's file
    if set(said) != set(tiers):
        out.append(f"the folder has the tiers {', '.join(said)}; graded were {', '.join(tiers)}")
    if student and student in names:
        out.append(f"another folder is {student}'s as well")
    return out


def points_of(outcomes):
    """Points of what passed."""
    return sum(exercise.points for exercise, outcome in outcomes if outcome.passed)


def said_of(outcome):
    """What a student reads of an outcome, in plain text."""
    if outcome.passed:
        return "\n".join(f"holds: {test['claim']}" for test in outcome.tests)
    if outcome.fault is not None:
        return f"{outcome.fault['message']} ({outcome.fault['where']})"
    failed = outcome.failed
    lines = [f"does not hold: {failed['claim']}", failed["message"], failed["where"]]
    return "\n".join([*filter(None, lines), *([outcome.diagnosis["text"]] if outcome.diagnosis else [])])


def gradescope(outcomes, remarks=()):
    """Gradescope's results.json."""
    tests = [{"name": f"{exercise.id} {exercise.qualname}", "number": exercise.id, "max_score": exercise.points,
              "score": exercise.points if outcome.passed else 0, "status": "passed" if outcome.passed else "failed",
              "output": said_of(outcome), "tags": [exercise.tier], "visibility": "visible"} for exercise, outcome in outcomes]
    return {"output": "\n".join(remarks), "tests": tests,
            "execution_time": round(sum(outcome.seconds for _, outcome in outcomes), 1), "visibility": "visible",
            "stdout_visibility": "hidden"}


def as_csv(rows):
    """A row for each student, a column for each exercise."""
    out = io.StringIO()
    ids = [exercise.id for exercise, _ in rows[0][1]]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", "points", *ids])
    for name, outcomes in rows:
        writer.writerow([name, f"{points_of(outcomes):g}",
                         *(exercise.points if outcome.passed else 0 for exercise, outcome in outcomes)])
    return out.getvalue()


# ---- elsewhere -------------------------------------------------------------------------------------------------


def export(args):
    """Write a lesson's assignment as a notebook for nbgrader or otter."""
    from .assignment import assignment_of

    course = Course()
    lessons = [course.lesson(number) for number in args.lessons.split(",")] if args.lessons else course.lessons
    for lesson in lessons:
        path = Path(args.folder) / lesson.folder.name / f"{lesson.folder.name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            temporary.write_text(assignment_of(lesson, args.to), encoding="utf-8")
        print(path)
    return 0


# ---- how a class gets on ---------------------------------------------------------------------------------------


def report(args):
    """Tries, hints and commonest wrong answers of a class."""
    course = Course()
    told = cohort(course, workspaces_in(args.folder, course))
    if args.as_json:
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return 0
    if not told["exercises"]:
        print(f"nobody of {told['students']} has begun an exercise in {args.folder}")
        return 0
    table = Table("exercise", "solved", "tries", "hints", "gave up", "commonest wrong answers")
    for id, row in told["exercises"].items():
        known = ", ".join(f"{name} ({count})" for name, count in row["mutants"][:3])
        table.add_row(f"{id} {course.exercise(id).qualname}", f"{row['solved']} of {told['students']}", f"{row['tries']:.1f}",
                      f"{row['hints']:.1f}", str(row["gave_up"]), known or "–")
    Console().print(table)
    return 0


def cohort(course, workspaces):
    """{"students", "exercises": {id: {"solved", "tries" and "hints" (means over who has begun), "gave_up", "mutants"}}}."""
    out = {}
    for exercise in course.exercises:
        states = [workspace.state["exercises"].get(exercise.id) for workspace in workspaces]
        begun = [state for state in states if state and (state["attempts"] or state["hints"] or state["passed"])]
        if not begun:
            continue
        mutants = Counter()
        for state in begun:
            mutants.update(state["mutants"])
        out[exercise.id] = {"solved": sum(bool(state["passed"]) for state in begun),
                            "tries": sum(state["attempts"] for state in begun) / len(begun),
                            "hints": sum(state["hints"] for state in begun) / len(begun),
                            "gave_up": sum(bool(state["solution"]) for state in begun),
                            "mutants": sorted(mutants.items(), key=lambda item: (-item[1], item[0]))}
    return {"students": len(workspaces), "exercises": out}
