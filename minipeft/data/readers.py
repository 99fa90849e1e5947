"""Reading labelled texts, and raw text, from the files people have: TSV, CSV, JSON lines and plain text.

Every fault of a file is a ValueError of one line that names the file and the line in it.
"""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

COLUMNS = ("text", "text2", "label")
SPLITS = {"train": ("train",), "dev": ("dev", "validation", "val"), "test": ("test",)}
TABULAR = (".tsv", ".csv", ".jsonl")
WHOLE_NUMBER = re.compile(r"-?[0-9]+")
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072


class Example(NamedTuple):
    """One text, or a pair of texts, and its class.

    ``text2`` is None where the data has no pairs; ``label`` is an index into `Dataset.labels`, None where unknown.
    """

    text: str
    text2: "str | None" = None
    label: "int | None" = None


@dataclass
class Dataset:
    """Examples by split.

    ``splits``: {"train", "dev" or "test": list of `Example`}. ``labels``: the class names in the order of their ids,
    empty where the data has no labels.
    """

    splits: dict
    labels: tuple = ()

    @property
    def has_pairs(self):
        """Whether each example is a pair of texts."""
        return next((e.text2 is not None for examples in self.splits.values() for e in examples), False)


class Row(NamedTuple):
    """One row of a file: the line it starts on (from 1) and its cells as written; None stands for a cell that is not there."""

    line: int
    text: str
    text2: "str | None"
    label: "str | None"


# ---- bytes to text to rows -------------------------------------------------------------------------------------


def read_text(path):
    """The text of a UTF-8 file, without the byte order mark that some editors put first.

    Raises:
        ValueError: the file cannot be read or is not UTF-8; the message gives line and byte.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); "
                         "save the file as UTF-8") from None


def shown(names, most=8):
    """Names in one line, in their order, with a count where some are left out."""
    names = [repr(name) for name in names]
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _filled_lines(path):
    """(number, line) of each line of a file; LF or CRLF ends a line; blank lines are allowed at the end only."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1}: the line is blank; remove it")
    return list(enumerate(lines, 1))


def _tsv_records(path):
    """(line, cells) of a TSV file, which has no quoting: each tab ends a cell, and a quotation mark is a character."""
    return [(number, line.split("\t")) for number, line in _filled_lines(path)]


def _csv_records(path):
    """(first line, cells) of a CSV file by RFC 4180: cells with commas, quotes or line ends stand in quotes."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    limit, records, line = csv.field_size_limit(LONGEST_FIELD), [], 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: line {line}: not CSV ({error}); a cell with quotation marks stands in quotes, "
                         "with each mark inside it doubled") from None
    finally:
        csv.field_size_limit(limit)
    while records and not records[-1][1]:
        records.pop()
    if not records:
        raise ValueError(f"{path}: the file is empty")
    for number, cells in records:
        if not cells:
            raise ValueError(f"{path}: line {number}: the line is blank; remove it")
    return records


def _table_rows(path, records, needed, columns):
    """Rows of a file with a header line."""
    header = records[0][1]
    for name in needed:
        if name not in header:
            names = "".join(f", {other}" if other in needed else f"[, {other}]" for other in columns).removeprefix(", ")
            raise ValueError(f"{path}: line 1: no column {name!r} in the header; expected {names}, got: {shown(header)}")
    for name in columns:
        if header.count(name) > 1:
            raise ValueError(f"{path}: line 1: the column {name!r} stands {header.count(name)} times in the header")
    if len(records) == 1:
        raise ValueError(f"{path}: the file has a header and no rows")
    place = {name: header.index(name) for name in columns if name in header}
    hint = ("; TSV has no quoting, so a text cannot hold a tab" if path.suffix.lower() == ".tsv"
            else "; a text with a comma stands in quotes")
    rows = []
    for line, cells in records[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{path}: line {line}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}"
                             + (hint if len(cells) > len(header) else ""))
        rows.append(Row(line, cells[place["text"]], cells[place["text2"]] if "text2" in place else None,
                        cells[place["label"]] if "label" in place else None))
    return rows


def _jsonl_rows(path, needed, columns):
    """Rows of a file with one JSON object on each line."""
    rows = []
    for number, line in _filled_lines(path):
        where = f"{path}: line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON that can be read ({type(error).__name__})") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a JSON object with {' and '.join(needed)}, got {type(value).__name__}")
        for name in needed:
            if name not in value:
                raise ValueError(f"{where}: no {name!r} in this object; it has: {shown(value) or 'nothing'}")
        value = {name: cell for name, cell in value.items() if name in columns}
        for name in ("text", "text2"):
            if name in value and not isinstance(value[name], str):
                raise ValueError(f"{where}: expected a string for {name!r}, got {type(value[name]).__name__}")
            if re.search("[\ud800-\udfff]", value.get(name, "")):
                raise ValueError(f"{where}: {name!r} holds half of a surrogate pair, which is no character")
        label = value.get("label")
        if isinstance(label, bool) or not isinstance(label, (str, int) if "label" in needed else (str, int, type(None))):
            raise ValueError(f"{where}: expected a string or a whole number for 'label', got {type(label).__name__}")
        rows.append(Row(number, value["text"], value.get("text2"), None if label is None else str(label)))
        if (rows[0].text2 is None) != (rows[-1].text2 is None):
            raise ValueError(f"{where}: {'no' if rows[-1].text2 is None else 'a'} 'text2', unlike on line 1; "
                             "give it on every line or on none")
    return rows


def read_rows(path, needed=("text",), columns=COLUMNS):
    """The rows of one file, by the ending of its name.

    Args:
        path: a .tsv, .csv or .jsonl file. needed: names of the columns that must be there.
        columns: names of those that are read at all; others are ignored.

    Returns a list of `Row`. Raises ValueError, naming file and line, for whatever is not as expected.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _jsonl_rows(path, needed, columns)
    if suffix not in TABULAR:
        raise ValueError(f"{path}: unknown kind of file {suffix!r}; expected {', '.join(TABULAR)}")
    return _table_rows(path, (_tsv_records if suffix == ".tsv" else _csv_records)(path), needed, columns)


# ---- labels ----------------------------------------------------------------------------------------------------


def _read_label_names(path):
    """The names in a ``labels.txt``: line i, counted from 0, names class i."""
    names = [line for _, line in _filled_lines(path)]
    for number, name in enumerate(names, 1):
        if name in names[:number - 1]:
            raise ValueError(f"{path}: line {number}: the name {name!r} stands on line {names.index(name) + 1} already")
    return tuple(names)


def _sorted_labels(cells):
    """Distinct cells as class names: by number where all are whole numbers, else by the alphabet."""
    distinct = set(cells)
    if all(WHOLE_NUMBER.fullmatch(cell) for cell in distinct):
        return tuple(sorted(distinct, key=lambda cell: (int(cell), cell)))
    return tuple(sorted(distinct))


def _label_id(cell, names):
    """The id that a cell stands for, None if none.

    A cell is a name or, unless some name is itself a whole number, an id.
    """
    if cell in names:
        return names.index(cell)
    if WHOLE_NUMBER.fullmatch(cell) and not any(WHOLE_NUMBER.fullmatch(name) for name in names) and 0 <= int(cell) < len(names):
        return int(cell)
    return None


def _resolver(path, labels, file_names):
    """A function from a row to its label id; ``file_names`` are those of ``labels.txt``, None where there is none."""
    known = {}

    def resolve(row):
        cell = row.label
        if cell not in known:
            found = _label_id(cell, labels)
            if file_names is not None and file_names != labels and cell not in labels:  # cell -> its name -> the model's id
                number = _label_id(cell, file_names)
                found = None if number is None or file_names[number] not in labels else labels.index(file_names[number])
            known[cell] = found
        if known[cell] is None:
            raise ValueError(f"{path}: line {row.line}: unknown label {cell!r}; known: {shown(labels)}")
        return known[cell]

    return resolve


def _examples(path, rows, labels, file_names, need_labels):
    """Rows as examples with label ids."""
    resolve, out = _resolver(path, labels, file_names), []
    for row in rows:
        if row.label is None or (row.label == "" and not need_labels):
            out.append(Example(row.text, row.text2, None))
        elif row.label == "":
            raise ValueError(f"{path}: line {row.line}: the label is empty")
        else:
            out.append(Example(row.text, row.text2, resolve(row)))
    return out


# ---- data sets -------------------------------------------------------------------------------------------------


def checked_path(path, dev_fraction):
    """The path of a data set; raises ValueError where there is none, or for a share of dev that is none."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not 0 < dev_fraction < 1:
        raise ValueError(f"dev_fraction: expected a number between 0 and 1, got {dev_fraction}")
    return path


def split_files(folder, suffixes=TABULAR):
    """{split: path} of the data files in a folder; raises ValueError for none, and for two of one split."""
    found = {}
    for split, stems in SPLITS.items():
        paths = [folder / (stem + suffix) for stem in stems for suffix in suffixes if (folder / (stem + suffix)).is_file()]
        if len(paths) > 1:
            raise ValueError(f"{folder}: {' and '.join(p.name for p in paths)} are both the {split} split; keep one")
        if paths:
            found[split] = paths[0]
    if not found:
        held = sorted(p.name for p in folder.iterdir())
        raise ValueError(f"{folder}: no train, dev or test file ({', '.join(suffixes)}) in this folder; "
                         + (f"it holds: {shown(held)}" if held else "it is empty"))
    return found


def held_out(examples, classes, fraction, seed, where, what="examples"):
    """(train, dev) of one list: dev is drawn by ``seed``, and each class keeps at least one example in train.

    ``classes`` are those of the examples, in their order. Raises ValueError, naming ``where``, for too few (of ``what``).
    """
    wanted, dev, left = max(1, round(fraction * len(examples))), set(), Counter(classes)
    for i in np.random.default_rng(seed).permutation(len(examples)):
        if len(dev) < wanted and left[classes[i]] > 1:
            left[classes[i]] -= 1
            dev.add(int(i))
    if not dev:
        raise ValueError(f"{where}: {len(examples)} {what} are too few to hold some out for dev; add {what}, "
                         "or give a folder with a train and a dev file")
    return [e for i, e in enumerate(examples) if i not in dev], [examples[i] for i in sorted(dev)]


def read_dataset(path, labels=None, seed=0, dev_fraction=0.1, need_labels=True, split=True):
    """Read a data set: a folder with train, dev and test files, or one file.

    Args:
        path: a folder with any of ``train``, ``dev`` (or ``validation``, ``val``) and ``test``, each a .tsv, .csv or
            .jsonl with ``text[, text2], label``; an optional ``labels.txt`` names class i on line i, counted from 0.
            Or a single such file.
        labels: class names of the model that the data is for. Without them they come from ``labels.txt``, else they
            are the distinct labels of train, sorted (as numbers where all are whole numbers).
        seed: draws which examples of a single file become dev; used for nothing else.
        dev_fraction: share of a single file that becomes dev, in (0, 1).
        need_labels: whether each example must have a label; otherwise it may have one.
        split: False keeps a single file in one piece, as the test split.

    Returns:
        `Dataset`.

    Raises:
        ValueError: naming file and line: a path, file type, encoding, header, row or label that is not as expected.
            Where the data sets the classes (``labels`` is None), also no train split, or one class only.
    """
    path = checked_path(path, dev_fraction)
    single = not path.is_dir()
    found = {"train" if split else "test": path} if single else split_files(path)
    needed = ("text", "label") if need_labels else ("text",)
    rows = {name: read_rows(file, needed) for name, file in found.items()}
    _check_pairs(found, rows)
    names_file = path / "labels.txt"
    file_names = _read_label_names(names_file) if not single and names_file.is_file() else None
    own_labels = labels is None
    if own_labels and need_labels and not single and "train" not in rows:
        raise ValueError(f"{path}: no train file, from which the classes are learnt; there are: "
                         f"{', '.join(file.name for file in found.values())}")
    if own_labels:
        cells = [[row.label for row in part if row.label] for part in (rows.get("train", []), sum(rows.values(), []))]
        labels = file_names or _sorted_labels(cells[0] or cells[1])
    labels = tuple(labels)
    splits = {name: _examples(found[name], rows[name], labels, file_names, need_labels) for name in rows}
    if own_labels and need_labels and len({e.label for e in splits.get("train", ())}) == 1:
        raise ValueError(f"{found['train']}: only one class ({labels[splits['train'][0].label]!r}) in train; "
                         "a classifier needs two or more")
    if single and split:
        splits["train"], splits["dev"] = held_out(splits["train"], [e.label for e in splits["train"]], dev_fraction, seed, path)
    return Dataset(splits, labels)


def _check_pairs(found, rows):
    """Raise ValueError where some splits have pairs and others do not."""
    pairs = {name: part[0].text2 is not None for name, part in rows.items()}
    if len(set(pairs.values())) == 2:
        having, lacking = (next(name for name in pairs if pairs[name] is flag) for flag in (True, False))
        raise ValueError(f"{found[lacking]}: no 'text2', but {found[having].name} has it; give it in every file or in none")


# ---- raw text --------------------------------------------------------------------------------------------------


def _read_plain(path):
    """All of a file's text: a .txt as it is, another kind's ``text`` column with a line end between the rows."""
    if path.suffix.lower() == ".txt":
        text = read_text(path).replace("\r\n", "\n")
    elif path.suffix.lower() in TABULAR:
        text = "\n".join(row.text for row in read_rows(path))
    else:
        raise ValueError(f"{path}: unknown kind of file {path.suffix.lower()!r}; expected .txt, {', '.join(TABULAR)}")
    if not text.strip():
        raise ValueError(f"{path}: there is no text in this file")
    return text


def _cut(text, fraction, where):
    """(train, dev): the last ``fraction`` of the characters is dev, from the next start of a line on.

    A text without a line end there is cut at a space.
    """
    near = round((1 - fraction) * len(text))
    for mark in "\n ":
        for cut in (text.find(mark, max(0, near - 1)) + 1, text.rfind(mark, 0, near) + 1):
            if text[:cut].strip() and text[cut:].strip():
                return text[:cut], text[cut:]
    raise ValueError(f"{where}: the text is too short to cut into train and dev")


def read_texts(path, dev_fraction=0.1, split=True):
    """Read raw text for language modelling.

    Args:
        path: a .txt file, a .tsv, .csv or .jsonl with a column ``text``, or a folder with any of ``train``, ``dev``
            (or ``validation``, ``val``) and ``test`` of these kinds.
        dev_fraction: share of a single file's characters, its last ones, that becomes dev, in (0, 1).
        split: False keeps a single file in one piece, as the test split.

    Returns:
        {split: str}; the rows of a table are joined by line ends.

    Raises:
        ValueError: naming the file: no such path, unknown kind, not UTF-8, no text.
    """
    path = checked_path(path, dev_fraction)
    if path.is_dir():
        return {name: _read_plain(file) for name, file in split_files(path, (".txt", *TABULAR)).items()}
    text = _read_plain(path)
    return dict(zip(("train", "dev"), _cut(text, dev_fraction, path))) if split else {"test": text}
