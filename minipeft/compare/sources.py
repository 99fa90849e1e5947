"""Where a run's data comes from: a file, a folder, or a task of the toy world by its name, as in ``toy:sentiment:hard``."""

from pathlib import Path

from ..data import read_dataset, read_sources, read_texts

TOY = "toy:"
DIFFICULTY = "medium"


def toy_task(data):
    """(task, difficulty) of ``toy:NAME[:DIFFICULTY]``; None for a path. Raises ValueError for a name that is none."""
    if not str(data).startswith(TOY):
        return None
    from ..data import toy

    name, _, difficulty = str(data).removeprefix(TOY).partition(":")
    known = (*toy.TASKS, *toy.WRITING)
    if name not in known or (difficulty or DIFFICULTY) not in toy.DIFFICULTIES:
        raise ValueError(f"data: expected toy:NAME or toy:NAME:DIFFICULTY with a NAME among {', '.join(known)} and a DIFFICULTY "
                         f"among {', '.join(toy.DIFFICULTIES)}, got {str(data)!r}")
    return name, difficulty or DIFFICULTY


def read(data, task, **settings):
    """What a task reads from ``data``: a `Dataset`, {split: list of `Source`}, or {split: text}; settings are the reader's."""
    toy_name = toy_task(data)
    if toy_name is None:
        return {"classify": read_dataset, "seq2seq": read_sources, "lm": read_texts}[task](data, **settings)
    from ..data import toy

    name, difficulty = toy_name
    fits = {"classify": toy.TASKS, "seq2seq": toy.WRITING, "lm": ()}[task]
    if name not in fits:
        raise ValueError(f"data: {data} is not for --task {task}; "
                         + (f"expected toy: with one of {', '.join(fits)}" if fits else "give a file of raw text"))
    return (toy.dataset if task == "classify" else toy.sources)(name, difficulty)


def written(data, folder):
    """The path that a comparison's runs read: a toy task is written once, into a folder in ``folder``; a path stays as it is."""
    toy_name = toy_task(data)
    if toy_name is None:
        return str(data)
    from ..data import toy

    name, difficulty = toy_name
    path = Path(folder) / f"{name}-{difficulty}"
    if not (path / "test.tsv").is_file():
        toy.save(name, path, difficulty=difficulty)
    return str(path)
