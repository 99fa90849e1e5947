"""What lessons use besides the package: a short form, questions to answer before the answer is read, figures with their text.

A lesson's file runs from top to bottom as a script, in a notebook, and in tests. ``fast()`` is true in tests, which run the same
code with smaller sizes.
"""

import base64
import io
import json
import os
import sys
import time
from pathlib import Path

FAST, FIGURES = "MINIPEFT_LESSON_FAST", "MINIPEFT_FIGURES"
PREDICTIONS = "predictions.json"


def fast():
    """Whether a lesson runs in its short form, whose numbers mean nothing."""
    return os.environ.get(FAST) == "1"


def real_model():
    """The folder of a real model, from the environment variable MINIPEFT_REAL_MODEL; None where none is given."""
    return os.environ.get("MINIPEFT_REAL_MODEL") or None


def predict(question, answer):
    """Ask for a guess, write it down, and only then tell the answer; where nobody can be asked, tell both.

    In a learner's folder the question, the guess and the answer are kept in .minipeft/predictions.json, and a guess of an earlier
    time is shown behind the answer.
    """
    print(f"? {question}")
    earlier = []
    if _in_notebook() or (sys.stdin is not None and sys.stdin.isatty() and not fast()):
        try:
            earlier = _keep(question, input("  your guess: "), answer)
        except (NotImplementedError, EOFError):  # a notebook that a program runs as a whole has nobody to ask
            pass
    print(f"  {answer}")
    if earlier:
        print(f"  (your guess before: {earlier[-1]})")


def _keep(question, guess, answer):
    """Write a guess down with its answer, in a learner's folder; returns the guesses that were made there before."""
    from ..data import files

    for place in (Path.cwd(), *Path.cwd().parents):
        if (place / ".minipeft").is_dir():
            path = place / ".minipeft" / PREDICTIONS
            try:
                known = files.read_json(path, "file of guesses", list) if path.is_file() else []
            except ValueError as error:
                print(f"  note: {error}; the guess is not kept")
                return []
            files.write_json(path, [*known, {"question": question, "guess": guess, "answer": answer,
                                             "at": time.strftime("%Y-%m-%dT%H:%M:%S")}])
            return [each["guess"] for each in known
                    if isinstance(each, dict) and each.get("question") == question and "guess" in each]
    return []


def show(figure, name, text):
    """Show a matplotlib figure: in a notebook as a picture with an alternative ``text``; elsewhere the text is printed, and the
    figure is written as ``name``.svg into the folder of the environment variable MINIPEFT_FIGURES, where there is one.

    Raises ValueError where the text is empty.
    """
    import matplotlib.pyplot as plt

    if not text.strip():
        raise ValueError(f"show: the figure {name} has no text; say in words what it shows, for those who do not see it")

    if os.environ.get(FIGURES):
        folder = Path(os.environ[FIGURES])
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight")
    if _in_notebook():
        from html import escape

        from IPython.display import HTML, display

        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
        display(HTML(f'<img src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}" alt="{escape(text)}">'))
    else:
        print(f"[figure {name}: {text}]")
    plt.close(figure)


def _in_notebook():
    """Whether a notebook's kernel is running this."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
