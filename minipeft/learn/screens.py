"""What a learner sees: one screen for what came of a check, one for the list of exercises, one for a hint."""

from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

GOOD, BAD, SOFT, NAME = "green", "red", "dim", "bold"
KINDS = {"unwritten": "not written yet", "error": "it stopped with an error", "time": "it takes too long",
         "memory": "it takes too much memory"}
KEYS = "n next · h hint · l list · t trace · s solution · x reset · q quit"


def title(exercise, workspace=None):
    """``08.2 LoRALinear.forward``, its lesson, and how far the learner is."""
    lesson = exercise.lesson
    text = Text.assemble((f"{exercise.id} {exercise.qualname}", NAME), (f"   lesson {int(lesson.number)}, {lesson.title}", SOFT))
    if workspace is not None:
        done = sum(map(workspace.solved, workspace.exercises))
        text.append(f"   {done} of {len(workspace.exercises)} solved", SOFT)
    return text


def outcome_screen(outcome, exercise, workspace=None, path=None):
    """What came of a check."""
    parts = [title(exercise, workspace)]
    if path is not None:
        parts.append(Text(str(path), SOFT))
    parts.append(Text(""))
    if outcome.fault is not None:
        fault = outcome.fault
        parts += [Text(f"✗ {fault['message']}", BAD),
                  *([Text(f"  {outcome.stage}", SOFT)] if outcome.stage else []), *_place(fault)]
    elif outcome.passed:
        count = len(outcome.tests)
        parts.append(Text(f"✓ {count} claim{'s hold' if count > 1 else ' holds'}", GOOD))
        parts += [Text(f"  {test['claim']}", SOFT) for test in outcome.tests]
    else:
        parts += _broken(outcome)
    return Group(*parts)


def _broken(outcome):
    """The first claim that does not hold."""
    failed = outcome.failed
    if failed["kind"] == "unwritten":
        return [Text("○ not written yet", "yellow"), *[Text(f"  {test['claim']}", SOFT) for test in outcome.tests[:6]]]
    held = sum(test["passed"] for test in outcome.tests)
    parts = [Text(f"✗ {failed['claim']}", BAD)]
    if held:
        parts.append(Text(f"  ({held} of {len(outcome.tests)} claims hold)", SOFT))
    if outcome.stage:
        parts.append(Text(f"  {outcome.stage}", SOFT))
    parts.append(Text(""))
    if failed["kind"] != "claim":
        parts.append(Text(f"  {KINDS.get(failed['kind'], '')}: {failed['message']}".replace("  : ", "  ")))
    else:
        parts.append(Text(f"  {failed['message']}"))
    if failed["yours"] or failed["expected"]:
        parts += [Text(""), _beside(failed)]
    parts += _place(failed)
    if outcome.diagnosis is not None:
        parts += [Text(""), Text(f"  ➜ {outcome.diagnosis['text']}", "yellow")]
    return parts


def _beside(failed):
    """Yours and expected in two columns."""
    table = Table(box=None, padding=(0, 3, 0, 2), show_header=True, header_style=SOFT)
    table.add_column("yours")
    table.add_column("expected")
    sides = [failed["yours"] or {"about": "–", "values": ""}, failed["expected"] or {"about": "–", "values": ""}]
    table.add_row(*(Text(f"{side['about']}\n{side['values']}".rstrip()) for side in sides))
    return table


def _place(told):
    """The file and the line."""
    if not told.get("where"):
        return []
    line = told.get("line") or ""
    return [Text(""), Text.assemble((f"  {told['where']}", "cyan"), (f"   {line}" if line else "", ""))]


def trace_screen(outcome, exercise):
    """The first step that departs from the solution."""
    trace, parts = outcome.trace, [title(exercise), Text("")]
    if outcome.passed:
        return Group(*parts, Text("It passes: there is nothing to follow.", GOOD))
    if trace is None and outcome.failed is not None and outcome.failed["kind"] == "time":
        return Group(*parts, Text(f"It was not followed: {outcome.failed['message']}"))
    if trace is None:
        return Group(*parts, Text("No step was seen that departs from the solution: it stops with an error before, "
                                  "or writes the result without a step in between."))
    said = {"value": "The first step whose value the solution never has",
            "gradient": "The first step that gets, or hands on, another gradient than in the solution",
            "missing": "All your steps are right; what comes next in the solution has this value"}[trace["kind"]]
    parts += [Text(f"{said} ({trace['operation']}):"), *_place(trace), Text("")]
    table = Table(box=None, padding=(0, 3, 0, 2), header_style=SOFT)
    sides = [("yours", trace["yours"])] * (trace["kind"] != "missing") + [("the nearest in the solution", trace["nearest"])]
    for name, _ in sides:
        table.add_column(name)
    table.add_row(*(Text(f"{side['about']}\n{side['values']}".rstrip() if side else "–") for _, side in sides))
    return Group(*parts, table)


def list_screen(workspace):
    """Every lesson with its exercises."""
    table, current = Table(box=None, padding=(0, 2, 0, 0), header_style=SOFT), workspace.current()
    for name in ("", "exercise", "what", "tries", "hints"):
        table.add_column(name)
    for lesson in workspace.course.lessons:
        own = [exercise for exercise in workspace.exercises if exercise.lesson is lesson]
        if not own:
            continue
        table.add_row("", Text(lesson.number, NAME), Text(f"{lesson.title}  ({lesson.minutes} min)", NAME), "", "")
        for exercise in own:
            done = workspace.of(exercise)
            mark = Text("✓", GOOD) if done["passed"] else Text("▸" if exercise is current else "○",
                                                               "yellow" if exercise is current else SOFT)
            stretch = " · stretch" * (exercise.tier == "stretch")
            table.add_row(mark, exercise.id, Text.assemble(exercise.qualname, (stretch, SOFT)), str(done["attempts"] or ""),
                          str(done["hints"] or ""))
    return table


def hint_screen(exercise, number, count, text):
    """A hint."""
    return Group(title(exercise), Text(""), Text(f"hint {number} of {count}", SOFT), Padding(Text(text.strip()), (0, 2)))


def solution_screen(exercise, text):
    """The solution's text."""
    return Group(title(exercise), Text(""), Syntax(text, "python", background_color="default"))


def message(text, style=""):
    """One line."""
    return Text.from_markup(escape(text), style=style)
