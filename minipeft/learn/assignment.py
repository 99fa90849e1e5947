"""A lesson as an assignment in the forms of nbgrader and of otter: its text, a cell for each answer, and a cell that grades it.

Both tools take a notebook with the solutions in it and make the student's from it: nbgrader cuts what stands between
``### BEGIN SOLUTION`` and ``### END SOLUTION``, otter what stands between raw cells that say so. The cell that grades calls
`graded_cell`, which checks an answer as ``minipeft learn check`` does.
"""

import inspect
import tempfile
from pathlib import Path

from .checker import check
from .course import LESSON, MARK, Course
from .stubs import BEGIN, END, imports_of_stub, solution_code

FORMS = ("nbgrader", "otter")


def assignment_of(lesson, form):
    """The text of a notebook (JSON). Raises ValueError for a form that is none of `FORMS`."""
    import nbformat
    from nbformat import v4

    if form not in FORMS:
        raise ValueError(f"export: expected one of {', '.join(FORMS)}, got {form!r}")
    notebook = v4.new_notebook()
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.cells = _otter(lesson) if form == "otter" else _nbgrader(lesson)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{lesson.number}-{number}"
    return nbformat.writes(notebook) + "\n"


def parts_of(lesson):
    """[("text", markdown) or ("exercise", `Exercise`) or ("code", source)] of a lesson, in order; its own solutions are left
    to the exercise's cell."""
    import jupytext

    exercises, out = {e.id: e for e in lesson.exercises()}, []
    notebook = jupytext.reads(lesson.path(LESSON).read_text(encoding="utf-8"), fmt="py:percent")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            out.append(("text", cell.source))
            continue
        lines, code, hidden = cell.source.splitlines(), [], False
        for line in lines:
            found = MARK.match(line)
            hidden = hidden or line.strip() == BEGIN
            if found:
                out.append(("exercise", exercises[found.group(1)]))
            elif not hidden and not line.startswith(("#@ ", "# @ ")):
                code.append(line)
            if line.strip() == END:
                hidden = False
        if any(line.strip() for line in code):
            out.append(("code", "\n".join(code).strip()))
    return out


def _answer(exercise, begin, end):
    """The code of an answer's cell, with the solution between two lines."""
    head, body = solution_code(exercise)
    pad = "    " if head else ""
    return "\n".join([*imports_of_stub(exercise), "", "", *head, pad + begin, *body, pad + end])


def _grading(exercise, more=""):
    """The code of a cell that grades."""
    return f'from minipeft.learn import graded_cell\n\ngraded_cell("{exercise.id}", {exercise.name}{more})'


def _nbgrader(lesson):
    """Cells with nbgrader's metadata."""
    from nbformat import v4

    cells = []
    for kind, part in parts_of(lesson):
        if kind == "text":
            cells.append(v4.new_markdown_cell(part))
        elif kind == "code":
            cells.append(v4.new_code_cell(part))
        else:
            name = part.id.replace(".", "_")
            cells.append(v4.new_markdown_cell(f"**Exercise {part.id}.** {part.task}"))
            cells.append(v4.new_code_cell(_answer(part, BEGIN, END), metadata={"nbgrader": {
                "grade": False, "grade_id": f"answer_{name}", "locked": False, "schema_version": 3, "solution": True,
                "task": False}}))
            cells.append(v4.new_code_cell(_grading(part), metadata={"nbgrader": {
                "grade": True, "grade_id": f"test_{name}", "locked": True, "points": part.points, "schema_version": 3,
                "solution": False, "task": False}}))
    return cells


def _otter(lesson):
    """Cells between the raw cells that otter looks for."""
    from nbformat import v4

    raw = v4.new_raw_cell
    cells = [raw("# ASSIGNMENT CONFIG\nrequirements: []\nexport_cell: true")]
    for kind, part in parts_of(lesson):
        if kind == "text":
            cells.append(v4.new_markdown_cell(part))
        elif kind == "code":
            cells.append(v4.new_code_cell(part))
        else:
            cells += [raw(f"# BEGIN QUESTION\nname: e{part.id.replace('.', '_')}\npoints: {part.points}"),
                      v4.new_markdown_cell(f"**Exercise {part.id}.** {part.task}"), raw("# BEGIN SOLUTION"),
                      v4.new_code_cell(_answer(part, "# BEGIN SOLUTION", "# END SOLUTION")), raw("# END SOLUTION"),
                      raw("# BEGIN TESTS"), v4.new_code_cell(_grading(part, ", quiet=True")), raw("# END TESTS"),
                      raw("# END QUESTION")]
    return cells


def graded_cell(id, answer, quiet=False):
    """Check an answer that was written in a notebook, and say what holds unless ``quiet`` (otter takes a cell that prints for a
    wrong answer). Raises AssertionError, which says what does not hold, where it is not right."""
    from .teach import said_of

    exercise = Course().exercise(id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exercise.filename
        path.write_text("\n".join(imports_of_stub(exercise)) + "\n\n\n" + inspect.getsource(answer), encoding="utf-8")
        outcome = check(exercise, path)
    assert outcome.passed, said_of(outcome)
    if not quiet:
        print(said_of(outcome))
