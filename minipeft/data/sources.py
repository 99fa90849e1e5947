"""Reading sources with their references: the texts to write another text for, and the texts that would be right.

A row of a file is one source (``text``) with one reference (``text2``); several rows may have the same source. Every fault of
a file is a ValueError of one line that names the file and the line in it.
"""

from typing import NamedTuple

from .readers import checked_path, held_out, read_rows, split_files

COLUMNS = ("text", "text2")


class Source(NamedTuple):
    """A text to write another for, and its references in the order of the file, none where none is known."""

    text: str
    references: tuple = ()


def by_source(rows):
    """[Source] of (text, reference or None) pairs: each distinct text once, where it first stands, with all its references."""
    references = {}
    for text, reference in rows:
        references.setdefault(text, []).extend([] if reference is None else [reference])
    return [Source(text, tuple(own)) for text, own in references.items()]


def _pairs(path, rows, need_references):
    """(text, reference or None) of each row; an empty reference is none, and a fault where there must be one."""
    out = []
    for row in rows:
        empty = row.text2 is None or not row.text2.strip()
        if empty and need_references:
            raise ValueError(f"{path}: line {row.line}: text2 is empty; expected the text to write for this source")
        out.append((row.text, None if empty else row.text2))
    return out


def read_sources(path, seed=0, dev_fraction=0.1, need_references=True, split=True):
    """Read a data set for writing one text from another: a folder with train, dev and test files, or one file.

    Args:
        path: a folder with any of ``train``, ``dev`` (or ``validation``, ``val``) and ``test``, each a .tsv, .csv or .jsonl
            with ``text, text2``. Or a single such file.
        seed: draws which sources of a single file become dev, with all their references; used for nothing else.
        dev_fraction: share of a single file's sources that becomes dev, in (0, 1).
        need_references: whether each row must have a reference; otherwise it may have one.
        split: False keeps a single file in one piece, as the test split.

    Returns:
        {split: list of `Source`}, each distinct source of a split once. A folder's splits are taken as they are.

    Raises:
        ValueError: naming file and line: a path, file type, encoding, header, row or reference that is not as expected.
    """
    path = checked_path(path, dev_fraction)
    single = not path.is_dir()
    found = {"train" if split else "test": path} if single else split_files(path)
    needed = COLUMNS if need_references else ("text",)
    splits = {name: by_source(_pairs(file, read_rows(file, needed, COLUMNS), need_references)) for name, file in found.items()}
    if single and split:
        sources = splits["train"]
        splits["train"], splits["dev"] = held_out(sources, [None] * len(sources), dev_fraction, seed, path,
                                                  "different sources")
    return splits
