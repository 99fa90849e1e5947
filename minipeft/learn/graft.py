"""Graft mode: a real fine-tuning in which the learner's solved parts stand in the place of the package's own."""

import contextlib
import sys
import tempfile
from pathlib import Path

from .answers import answer_in, grafted, load

LESSONS_OWN = "lesson"


def solved_answers(workspace):
    """[(exercise, the learner's function)] of what has passed and is part of the package."""
    out = []
    for exercise in workspace.exercises:
        if workspace.solved(exercise) and exercise.module != LESSONS_OWN:
            path = workspace.path(exercise)
            out.append((exercise, answer_in(load(path, f"learner_{exercise.id.replace('.', '_')}"), exercise, path)))
    return out


def train(workspace, out=None):
    """Fine-tune toy:encoder by LoRA on a toy task, and say what it reached; returns the exit code.

    ``out``: the folder of the run; by default one that goes away.
    """
    from ..compare.run import Run, execute

    answers = solved_answers(workspace)
    if not answers:
        raise ValueError("graft: nothing is solved yet that is part of the package; solve an exercise first")
    print(f"yours: {', '.join(f'{exercise.id} {exercise.qualname}' for exercise, _ in answers)}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        for exercise, answer in answers:
            stack.enter_context(grafted(exercise, answer))
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from ..compare.sources import written

        data = written("toy:rating", folder / "data")
        result = execute(Run("toy:encoder", data, "lora", epochs=1), folder / "run", title="your LoRA")
    print(f"accuracy {result['score']:.4f} on {result['split']} after {result['steps']} steps; "
          f"{result['trainable']:,} parameters trained")
    return 0
