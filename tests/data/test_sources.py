"""Sources with references: what is written is read back grouped, no source is in two parts,
and faults are named with their line."""

import csv
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import Source, by_source, read_sources

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=6)
filled = cell.filter(lambda text: text.strip())
row_lists = st.lists(st.tuples(st.sampled_from(["a", "b", "c d", ""]) | cell, filled), min_size=1, max_size=12)


def write(path, rows, header=("text", "text2")):
    if path.suffix == ".tsv":
        path.write_bytes("".join("\t".join(row) + "\n" for row in (header, *rows)).encode())
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    else:
        path.write_bytes("".join(json.dumps(dict(zip(header, row))) + "\n" for row in rows).encode())
    return path


def pairs_of(sources):
    return [(source.text, reference) for source in sources for reference in source.references]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@given(rows=row_lists)
def test_every_row_is_one_reference_of_its_source(suffix, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    write(folder / f"train{suffix}", rows)
    sources = read_sources(folder)["train"]
    assert [source.text for source in sources] == list(dict.fromkeys(text for text, _ in rows))
    for source in sources:
        assert list(source.references) == [reference for text, reference in rows if text == source.text]
    assert read_sources(folder / f"train{suffix}", split=False) == {"test": sources}
    assert by_source(pairs_of(sources)) == sources


@given(rows=row_lists, seed=st.integers(0, 3), fraction=st.sampled_from([0.1, 0.5, 0.9]))
def test_a_single_file_is_held_out_by_source(rows, seed, fraction, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("s") / "one.tsv", rows)
    distinct = len({text for text, _ in rows})
    if distinct == 1:
        with pytest.raises(ValueError, match="1 different sources are too few to hold some out for dev; add different sources, "
                                             "or give a folder with a train and a dev file$"):
            read_sources(path, seed, fraction)
        return
    parts = read_sources(path, seed, fraction)
    train, dev = ([source.text for source in parts[name]] for name in ("train", "dev"))
    assert set(parts) == {"train", "dev"} and not set(train) & set(dev)
    assert len(dev) == min(distinct - 1, max(1, round(fraction * distinct)))
    assert Counter(pairs_of(parts["train"]) + pairs_of(parts["dev"])) == Counter(rows)  # no row is lost
    assert parts == read_sources(path, seed, fraction)


def test_the_seed_draws_the_sources_that_are_held_out(tmp_path):
    path = write(tmp_path / "one.tsv", [(f"s{i}", "r") for i in range(30)])
    assert len({tuple(read_sources(path, seed)["dev"]) for seed in range(4)}) == 4


def test_rows_of_one_source_may_stand_apart_and_other_columns_are_ignored(tmp_path):
    write(tmp_path / "dev.csv", [("1", "x", "A"), ("2", "y", "B"), ("3", "x", "C"), ("4", "x", "A")], ("label", "text", "text2"))
    write(tmp_path / "test.jsonl", [("x", "A", 1.5), ("y", "B", None)], ("text", "text2", "label"))
    assert read_sources(tmp_path) == {"dev": [Source("x", ("A", "C", "A")), Source("y", ("B",))],
                                      "test": [Source("x", ("A",)), Source("y", ("B",))]}


def test_references_that_need_not_be_there(tmp_path):
    path = write(tmp_path / "a.tsv", [("x", "A"), ("y", ""), ("x", " "), ("z", "B")])
    expected = [Source("x", ("A",)), Source("y"), Source("z", ("B",))]
    assert read_sources(path, need_references=False, split=False) == {"test": expected}
    path = write(tmp_path / "b.tsv", [("x", "1"), ("x", "2")], ("text", "label"))
    assert read_sources(path, need_references=False, split=False) == {"test": [Source("x")]}


@pytest.mark.parametrize("name, content, message", [
    ("a.tsv", "text\tlabel\nx\ty\n",
     "a.tsv: line 1: no column 'text2' in the header; expected text, text2, got: 'text', 'label'"),
    ("a.csv", "source,text2\nx,y\n",
     "a.csv: line 1: no column 'text' in the header; expected text, text2, got: 'source', 'text2'"),
    ("a.tsv", "text\ttext2\ttext2\nx\ty\tz\n", "a.tsv: line 1: the column 'text2' stands 2 times in the header"),
    ("a.tsv", "text\ttext2\nx\ty\nx\t \n", "a.tsv: line 3: text2 is empty; expected the text to write for this source"),
    ("a.tsv", "text\ttext2\nx\ty\tz\n", "a.tsv: line 2: expected 2 cells (text, text2), got 3; TSV has no quoting"),
    ("a.tsv", "text\ttext2\n", "a.tsv: the file has a header and no rows"),
    ("a.tsv", "", "a.tsv: the file is empty"),
    ("a.jsonl", '{"text": "x"}\n', "a.jsonl: line 1: no 'text2' in this object; it has: 'text'"),
    ("a.jsonl", '{"text": "x", "text2": ["y", "z"]}\n', "a.jsonl: line 1: expected a string for 'text2', got list"),
    ("a.jsonl", "[]\n", "a.jsonl: line 1: expected a JSON object with text and text2, got list"),
    ("a.txt", "x", "a.txt: unknown kind of file '.txt'; expected .tsv, .csv, .jsonl"),
])
def test_faults_of_a_file_are_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_sources(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_faults_of_a_path(tmp_path):
    with pytest.raises(ValueError, match="nothere: no such file or folder$"):
        read_sources(tmp_path / "nothere")
    with pytest.raises(ValueError, match="no train, dev or test file"):
        read_sources(tmp_path)
    with pytest.raises(ValueError, match="^dev_fraction: expected a number between 0 and 1, got 1$"):
        read_sources(tmp_path, dev_fraction=1)


def test_the_real_data(shared):
    counts = {name: {split: (len(part), len(pairs_of(part))) for split, part in read_sources(shared / "data" / name).items()}
              for name in ("e2e_nlg", "tatoeba_en_zh")}
    assert counts == {"e2e_nlg": {"train": (547, 4672), "dev": (157, 1127), "test": (473, 3566)},
                      "tatoeba_en_zh": {"train": (19878, 20538), "dev": (485, 500), "test": (970, 1000)}}
