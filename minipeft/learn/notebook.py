"""A lesson as a notebook, made by jupytext: what an exercise asks is a cell with the stub in it."""

from .course import LESSON, MARK
from .stubs import BEGIN, END, stub_of


def notebook_of(lesson):
    """The text of a notebook (JSON). The same lesson gives the same text."""
    import jupytext
    import nbformat

    notebook = jupytext.reads(lesson_with_stubs(lesson), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{lesson.folder.name[:2]}-{number}"
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(notebook) + "\n"


def lesson_with_stubs(lesson):
    """The lesson's text with the stub of each exercise before its place.

    A solution that stands in the lesson itself is left out: the learner's own, once it passes, or else the hidden solution is
    called up in its place, so that the cells behind it run.
    """
    exercises, out, hidden, latest = {e.id: e for e in lesson.exercises()}, [], False, None
    for line in lesson.path(LESSON).read_text(encoding="utf-8").splitlines():
        found = MARK.match(line)
        if found:
            latest = exercises[found.group(1)]
            stub = [f"# {text}".rstrip() for text in stub_of(latest).splitlines()]
            out += ["# %% [markdown]",
                    f"# **Exercise {latest.id}.** Write it in `{latest.filename}`; `minipeft learn check {latest.id}` "
                    "looks at it. It starts as", "#", "# ```python", *stub, "# ```", "#", "# %%"]
        if line.strip() == BEGIN:
            hidden = True
            out += ["from minipeft.learn import answer", "", f'{latest.name} = answer("{latest.id}")  # yours, once it passes']
        if not hidden:
            out.append(line)
        if line.strip() == END:
            hidden = False
    return "\n".join(out) + "\n"
