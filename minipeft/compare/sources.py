"""Where a run's data comes from: a file, a folder, a task of the toy world by its name, as in ``toy:sentiment:hard``, or
``python-docs``, CPython's manual: from which of its sections is a paragraph, or its raw text."""

import sys
from pathlib import Path

from ..data import Dataset, corpus, files, read_dataset, read_sources, read_texts, section_task

TOY, MANUAL = files.TOY, "python-docs"
DIFFICULTY = "medium"
HELD = 10  # every so many paragraphs of the manual's raw text one is dev, and one test


def toy_task(data):
    """(task, difficulty) of ``toy:NAME[:DIFFICULTY]``; None for a path. Raises ValueError for a name that is none."""
    if not str(data).startswith(TOY):
        return None
    from ..data import toy

    name, _, difficulty = str(data).removeprefix(TOY).partition(":")
    known = (*toy.TASKS, *toy.WRITING, toy.TEXT)
    if name not in known or (difficulty or DIFFICULTY) not in toy.DIFFICULTIES:
        raise ValueError(f"data: expected toy:NAME or toy:NAME:DIFFICULTY with a NAME among {', '.join(known)} and a DIFFICULTY "
                         f"among {', '.join(toy.DIFFICULTIES)}, got {str(data)!r}")
    return name, difficulty or DIFFICULTY


def read(data, task, **settings):
    """What a task reads from ``data``: a `Dataset`, {split: list of `Source`}, or {split: text}; settings are the reader's."""
    if str(data) == MANUAL:
        return _numbered(_manual(task), data, settings)
    toy_name = toy_task(data)
    if toy_name is None:
        return {"classify": read_dataset, "seq2seq": read_sources, "lm": read_texts}[task](data, **settings)
    from ..data import toy

    name, difficulty = toy_name
    fits = {"classify": toy.TASKS, "seq2seq": toy.WRITING, "lm": (toy.TEXT,)}[task]
    if name not in fits:
        raise ValueError(f"data: {data} is not for --task {task}; expected toy: with one of {', '.join(fits)}")
    if task == "lm":
        return toy.texts(difficulty)
    return _numbered((toy.dataset if task == "classify" else toy.sources)(name, difficulty), data, settings)


def _numbered(drawn, data, settings):
    """A `Dataset` whose classes are numbered as a reader's ``labels`` are, where such are given; other things as they are."""
    labels = settings.get("labels")
    if labels is None or not isinstance(drawn, Dataset):
        return drawn
    unknown = next((label for label in drawn.labels if label not in labels), None)
    if unknown is not None:
        raise ValueError(f"{data}: unknown label {unknown!r}; known: {', '.join(map(repr, labels))}")
    numbers = [labels.index(label) for label in drawn.labels]
    return Dataset({split: [e._replace(label=numbers[e.label]) for e in part] for split, part in drawn.splits.items()},
                   tuple(labels))


def _manual(task):
    """CPython's manual for a task."""
    if task == "classify":
        return section_task(seed=0)
    if task == "seq2seq":
        raise ValueError(f"data: {MANUAL} is not for --task seq2seq; expected toy: with one of answer, describe, or a file")
    split = lambda number: {1: "dev", 2: "test"}.get(number % HELD, "train")
    texts = [(split(number), text) for number, text in enumerate(corpus())]
    return {name: "\n\n".join(text for kind, text in texts if kind == name) for name in ("train", "dev", "test")}


def name_of(path):
    """What data or a model is called in a result: the last part of its path, also of ``.``; the manual with Python's version."""
    if str(path) == MANUAL:
        return f"{MANUAL}-{sys.version_info.major}.{sys.version_info.minor}"
    return Path(path).resolve().name


def manual_line(path):
    """[a line for people that names the manual with Python's version, whose text it is]; none for other data."""
    return [f"data {name_of(path)}"] if str(path) == MANUAL else []


def written(data, folder):
    """The path that a comparison's runs read: a toy task is written once, into a folder in ``folder``; a path stays as it is."""
    toy_name = toy_task(data)
    if toy_name is None:
        return str(data)
    from ..data import toy

    name, difficulty = toy_name
    path = Path(folder) / f"{name}-{difficulty}"
    if not any((path / f"test.{kind}").is_file() for kind in ("tsv", "txt")):  # the last that is written
        toy.save(name, path, difficulty=difficulty)
    return str(path)
