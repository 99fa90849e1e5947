"""Readers: what is written is read back, every fault is named with its line, and the real data sets have their row counts."""

import csv
import json
import re
from collections import Counter
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import Dataset, Example, read_dataset, read_texts


@contextmanager
def fails(message):
    """The block raises a ValueError of one line that holds ``message``."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        yield
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """``folder(name=content, ...)``: write files (``train_tsv`` stands for train.tsv) into a new folder."""

    def write(**files):
        for name, content in files.items():
            stem, _, suffix = name.rpartition("_")
            raw = content if isinstance(content, bytes) else content.encode("utf-8")
            (tmp_path / f"{stem}.{suffix}").write_bytes(raw)
        return tmp_path

    return write


GOOD = "text\tlabel\nfine\tpos\nbad\tneg\n"


# ---- what is written is read back ------------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs"])
any_text = st.text(characters, max_size=20)
cell_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=20)
names = st.sampled_from(["neg", "neutral", "pos", "ja, nein", 'a "b"'])


def write_table(path, rows, pairs):
    header = ["text", "text2", "label"] if pairs else ["text", "label"]
    cells = [(a, b, c) if pairs else (a, c) for a, b, c in rows]
    if path.suffix == ".tsv":
        path.write_bytes("".join("\t".join(r) + "\n" for r in [header, *cells]).encode())
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *cells])
    else:
        path.write_bytes("".join(json.dumps(dict(zip(header, r)), ensure_ascii=False) + "\n" for r in cells).encode())


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
@given(data=st.data(), pairs=st.booleans())
def test_round_trip(suffix, data, pairs, tmp_path_factory):
    text = cell_text if suffix == ".tsv" else any_text
    rows = data.draw(st.lists(st.tuples(text, text, names), min_size=2, max_size=8).filter(lambda r: len({x[2] for x in r}) > 1))
    path = tmp_path_factory.mktemp("round")
    write_table(path / f"train{suffix}", rows, pairs)
    read = read_dataset(path)
    assert read.labels == tuple(sorted({r[2] for r in rows}))
    assert [(e.text, e.text2, read.labels[e.label]) for e in read.splits["train"]] == [
        (a, b if pairs else None, c) for a, b, c in rows]
    assert read.has_pairs is pairs
    with_test = read_dataset(path / f"train{suffix}", labels=read.labels, split=False)
    assert with_test.splits == {"test": read.splits["train"]}


def test_splits_and_their_other_names(folder):
    path = folder(train_csv="label,text\n1,a\n0,b\n", validation_tsv="text\tlabel\nc\t1\n",
                  test_jsonl='{"text": "d", "label": 0}\n')
    read = read_dataset(path)
    assert read == Dataset({"train": [Example("a", None, 1), Example("b", None, 0)], "dev": [Example("c", None, 1)],
                            "test": [Example("d", None, 0)]}, ("0", "1"))
    (path / "validation.tsv").rename(path / "val.tsv")
    assert read_dataset(path).splits["dev"] == [Example("c", None, 1)]


def test_byte_order_mark_and_windows_line_ends(folder):
    path = folder(train_tsv=b"\xef\xbb\xbftext\tlabel\r\nfine\tpos\r\nbad\tneg\r\n\r\n",
                  dev_csv=b"\xef\xbb\xbftext,label\r\nfine,pos\r\n\r\n",
                  test_jsonl=b'\xef\xbb\xbf{"text": "fine", "label": "pos"}\r\n', labels_txt=b"\xef\xbb\xbfneg\r\npos\r\n")
    read = read_dataset(path)
    assert read.labels == ("neg", "pos")
    assert all(examples[0] == Example("fine", None, 1) for examples in read.splits.values())


def test_a_quotation_mark_is_a_character_in_tsv(folder):
    read = read_dataset(folder(train_tsv='text\tlabel\n"never closed\t"a"\nb"c\tz\n'))
    assert [e.text for e in read.splits["train"]] == ['"never closed', 'b"c']
    assert read.labels == ('"a"', "z")


def test_line_separators_of_unicode_end_no_line(folder):
    read = read_dataset(folder(train_tsv="text\tlabel\na\u2028b\x85c\x0bd\t1\ne\t0\n"))
    assert [e.text for e in read.splits["train"]] == ["a\u2028b\x85c\x0bd", "e"]


def test_a_text_of_more_characters_than_the_csv_module_allows(folder):
    limit, text = 131_072, "word, " * 40_000
    csv.field_size_limit(limit)
    read = read_dataset(folder(train_csv=f'text,label\n"{text}",1\n,0\n'))
    assert read.splits["train"][0].text == text and read.splits["train"][1].text == ""
    assert csv.field_size_limit() == limit


def test_columns_in_any_order_and_extra_ones_ignored(folder):
    read = read_dataset(folder(train_tsv="source\tlabel\ttext2\ttext\nx\t1\tB\tA\ny\t0\tD\tC\n"))
    assert read.splits["train"] == [Example("A", "B", 1), Example("C", "D", 0)] and read.has_pairs


# ---- labels ----------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_as_numbers(folder):
    read = read_dataset(folder(train_tsv="text\tlabel\n" + "".join(f"t\t{i}\n" for i in (10, 9, 2, -1))))
    assert read.labels == ("-1", "2", "9", "10")
    assert [e.label for e in read.splits["train"]] == [3, 2, 1, 0]


def test_label_file_takes_ids_and_names(folder):
    read = read_dataset(folder(train_tsv="text\tlabel\na\t1\nb\tneg\nc\tpos\n", labels_txt="neg\npos\n\n"))
    assert read.labels == ("neg", "pos") and [e.label for e in read.splits["train"]] == [1, 0, 1]


def test_cells_are_no_ids_where_names_are_numbers(folder):
    """With the classes 1, 2 and 3 the cell 1 is the class 1, which has id 0; 0 is no class."""
    with fails("train.tsv: line 3: unknown label '0'; known: '1', '2', '3'"):
        read_dataset(folder(train_tsv="text\tlabel\na\t1\nb\t0\n", labels_txt="1\n2\n3\n"))


def test_labels_of_a_model(folder):
    path = folder(test_tsv="text\tlabel\na\t0\nb\tpos\n", labels_txt="pos\nneg\n")
    read = read_dataset(path, labels=["neg", "other", "pos"])
    assert read.labels == ("neg", "other", "pos")
    assert [e.label for e in read.splits["test"]] == [2, 2]  # cell 0 is pos in this folder, and id 2 of the model


def test_unknown_label_of_a_model(folder):
    with fails("test.csv: line 4: unknown label 'meh'; known: 'neg', 'pos'"):
        read_dataset(folder(test_csv='text,label\n"a\nb",pos\nc,meh\n'), labels=("neg", "pos"))
    with fails("many.jsonl: line 1: unknown label '8'; known: 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h' and 1 more"):
        path = folder(many_jsonl='{"text": "", "label": 8}\n') / "many.jsonl"
        assert read_dataset(path, labels=tuple("abcdefghi"), split=False).splits["test"] == [Example("", None, 8)]
        path.write_text('{"text": "", "label": "8"}\n')
        read_dataset(path, labels=tuple("abcdefgh") + ("7",), split=False)


def test_a_label_that_train_does_not_have(folder):
    with fails("dev.tsv: line 2: unknown label 'new'; known: 'neg', 'pos'"):
        read_dataset(folder(train_tsv=GOOD, dev_tsv="text\tlabel\nx\tnew\n"))


def test_without_labels(folder):
    read = read_dataset(folder(train_tsv="text\na\n", dev_tsv="text\tlabel\nb\tx\nc\t\n",
                               test_jsonl='{"text": "d", "label": null}'), need_labels=False)
    assert read == Dataset({"train": [Example("a")], "dev": [Example("b", None, 0), Example("c")], "test": [Example("d")]},
                           ("x",))
    assert (read_dataset(folder(raw_tsv="text\na\n") / "raw.tsv", need_labels=False, split=False)
            == Dataset({"test": [Example("a")]}))


def test_a_folder_for_a_model_may_have_one_class_and_no_train(folder):
    path = folder(dev_tsv="text\tlabel\na\tpos\n")
    assert read_dataset(path, labels=("neg", "pos")).splits["dev"][0].label == 1
    folder(train_tsv="text\tlabel\na\tpos\n")
    assert len(read_dataset(path, labels=("neg", "pos")).splits["train"]) == 1
    (path / "train.tsv").unlink()
    with fails("no train file, from which the classes are learnt; there are: dev.tsv"):
        read_dataset(path)


@pytest.mark.parametrize("content, message", [
    ("neg\n\npos\n", "labels.txt: line 2: the line is blank"),
    ("neg\npos\nneg\n", "labels.txt: line 3: the name 'neg' stands on line 1 already"),
    ("\n", "labels.txt: the file is empty"),
])
def test_faults_of_a_label_file(folder, content, message):
    with fails(message):
        read_dataset(folder(train_tsv=GOOD, labels_txt=content))


# ---- one file, cut in two --------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(1, 12), min_size=2, max_size=4), seed=st.integers(0, 5),
       fraction=st.sampled_from([0.1, 0.3, 0.9]))
def test_held_out_examples(counts, seed, fraction, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "all.tsv"
    rows = [(f"text {c} {i}", str(c)) for c, n in enumerate(counts) for i in range(n)]
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in rows))
    if max(counts) == 1:
        with fails(f"{len(rows)} examples are too few to hold some out for dev"):
            read_dataset(path, seed=seed, dev_fraction=fraction)
        return
    read = read_dataset(path, seed=seed, dev_fraction=fraction)
    train, dev = read.splits["train"], read.splits["dev"]
    assert sorted(train + dev) == sorted(Example(t, None, int(c)) for t, c in rows)
    assert len(dev) == min(max(1, round(fraction * len(rows))), len(rows) - len(counts))
    assert {e.label for e in train} == set(range(len(counts)))
    assert read == read_dataset(path, seed=seed, dev_fraction=fraction)


def test_the_seed_draws_the_held_out_examples(folder):
    path = folder(all_tsv="text\tlabel\n" + "".join(f"{i}\t{i % 2}\n" for i in range(200))) / "all.tsv"
    first, second = (read_dataset(path, seed=s).splits["dev"] for s in (0, 1))
    assert len(first) == len(second) == 20 and first != second
    assert [int(e.text) for e in first] == sorted(int(e.text) for e in first)  # in the order of the file


# ---- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, content, message", [
    ("train_tsv", "", "train.tsv: the file is empty"),
    ("train_tsv", "\n\n", "train.tsv: the file is empty"),
    ("train_csv", "\r\n", "train.csv: the file is empty"),
    ("train_jsonl", "", "train.jsonl: the file is empty"),
    ("train_tsv", "text\tlabel\n", "train.tsv: the file has a header and no rows"),
    ("train_csv", "text,label", "train.csv: the file has a header and no rows"),
    ("train_tsv", "sentence\tlabel\na\t1\n",
     "train.tsv: line 1: no column 'text' in the header; expected text[, text2], label, got: 'sentence', 'label'"),
    ("train_csv", "text,class\na,1\n",
     "train.csv: line 1: no column 'label' in the header; expected text[, text2], label, got: 'text', 'class'"),
    ("train_csv", "text, label\na,1\n", "got: 'text', ' label'"),
    ("train_tsv", "text\ttext\tlabel\na\tb\t1\n", "train.tsv: line 1: the column 'text' stands 2 times in the header"),
    ("train_tsv", "text\tlabel\na\t1\nb\tc\t0\n",
     "train.tsv: line 3: expected 2 cells (text, label), got 3; TSV has no quoting, so a text cannot hold a tab"),
    ("train_tsv", "text\tlabel\na\n", "train.tsv: line 2: expected 2 cells (text, label), got 1"),
    ("train_csv", 'text,label\n"a\n\nb",1\nc,d,1\n',
     "train.csv: line 5: expected 2 cells (text, label), got 3; a text with a comma stands in quotes"),
    ("train_csv", 'text,label\n"a\nb",1\n"c,1\n', "train.csv: line 4: not CSV (unexpected end of data)"),
    ("train_csv", 'text,label\n"a"b,1\n', "train.csv: line 2: not CSV (',' expected after '\"')"),
    ("train_tsv", "text\tlabel\na\t1\n\nb\t0\n", "train.tsv: line 3: the line is blank; remove it"),
    ("train_csv", 'text,label\n"a\nb",1\n\nb,0\n', "train.csv: line 4: the line is blank; remove it"),
    ("train_jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n', "train.jsonl: line 2: the line is blank"),
    ("train_tsv", "text\tlabel\na\t\nb\t1\n", "train.tsv: line 2: the label is empty"),
    ("train_tsv", b"text\tlabel\nfine\t1\ncaf\xe9\t0\n", "train.tsv: line 3: not UTF-8 text (byte 0xe9); save the file as UTF-8"),
    ("train_csv", b"\xff\xfet\x00e\x00", "train.csv: line 1: not UTF-8 text (byte 0xff)"),
    ("train_tsv", "text\tlabel\na\tpos\nb\tpos\n", "train.tsv: only one class ('pos') in train; a classifier needs two or more"),
    ("train_jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label"}\n',
     "train.jsonl: line 2: not JSON (Expecting ':' delimiter, column 22)"),
    ("train_jsonl", "[" * 100_000, "train.jsonl: line 1: not JSON that can be read (RecursionError)"),
    ("train_jsonl", '["a", 1]\n', "train.jsonl: line 1: expected a JSON object with text and label, got list"),
    ("train_jsonl", '{"text": "a"}\n', "train.jsonl: line 1: no 'label' in this object; it has: 'text'"),
    ("train_jsonl", "{}\n", "train.jsonl: line 1: no 'text' in this object; it has: nothing"),
    ("train_jsonl", '{"text": 5, "label": 1}\n', "train.jsonl: line 1: expected a string for 'text', got int"),
    ("train_jsonl", '{"text": "a", "text2": null, "label": 1}\n',
     "train.jsonl: line 1: expected a string for 'text2', got NoneType"),
    ("train_jsonl", '{"text": "a", "label": 0.5}\n',
     "train.jsonl: line 1: expected a string or a whole number for 'label', got float"),
    ("train_jsonl", '{"text": "a", "label": true}\n',
     "train.jsonl: line 1: expected a string or a whole number for 'label', got bool"),
    ("train_jsonl", '{"text": "a", "label": null}\n',
     "train.jsonl: line 1: expected a string or a whole number for 'label', got NoneType"),
    ("train_jsonl", '{"text": "\\ud83d", "label": 1}\n', "train.jsonl: line 1: 'text' holds half of a surrogate pair"),
    ("train_jsonl", '{"text": "a", "label": 1}\n{"text": "a", "text2": "b", "label": 0}\n',
     "train.jsonl: line 2: a 'text2', unlike on line 1"),
    ("train_jsonl", '{"text": "a", "text2": "b", "label": 1}\n{"text": "a", "label": 0}\n',
     "train.jsonl: line 2: no 'text2', unlike on line 1"),
])
def test_faults_of_a_file(folder, name, content, message):
    with fails(message):
        read_dataset(folder(**{name: content}))


def test_faults_of_a_path(folder, tmp_path):
    with fails("nowhere: no such file or folder"):
        read_dataset(tmp_path / "nowhere")
    with fails("no train, dev or test file (.tsv, .csv, .jsonl) in this folder; it is empty"):
        read_dataset(tmp_path)
    with fails("in this folder; it holds: 'notes.txt'"):
        read_dataset(folder(notes_txt="x"))
    with fails("notes.txt: unknown kind of file '.txt'; expected .tsv, .csv, .jsonl"):
        read_dataset(tmp_path / "notes.txt")
    with fails("train.tsv and train.csv are both the train split; keep one"):
        read_dataset(folder(train_tsv=GOOD, train_csv="text,label\n"))
    with fails("dev_fraction: expected a number between 0 and 1, got 0"):
        read_dataset(tmp_path / "train.tsv", dev_fraction=0)


def test_two_files_of_dev(folder):
    with fails("dev.tsv and val.tsv are both the dev split"):
        read_dataset(folder(train_tsv=GOOD, dev_tsv=GOOD, val_tsv=GOOD))


def test_pairs_in_one_split_only(folder):
    with fails("dev.tsv: no 'text2', but train.tsv has it; give it in every file or in none"):
        read_dataset(folder(train_tsv="text\ttext2\tlabel\na\tb\t1\nc\td\t0\n", dev_tsv="text\tlabel\na\t1\n"))


def test_a_file_that_cannot_be_opened(folder, monkeypatch):
    path = folder(train_tsv=GOOD)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with fails("train.tsv: cannot be read (Permission denied)"):
        read_dataset(path)


# ---- raw text --------------------------------------------------------------------------------------------------


def test_texts_of_a_folder(folder):
    path = folder(train_txt=b"\xef\xbb\xbfone\r\ntwo\r\n", val_tsv="text\tlabel\na\t1\nb\t1\n",
                  test_jsonl='{"text": "c"}\n{"text": "d"}\n')
    assert read_texts(path) == {"train": "one\ntwo\n", "dev": "a\nb", "test": "c\nd"}


@given(lines=st.lists(st.text("ab ", max_size=30), min_size=1, max_size=40), fraction=st.sampled_from([0.1, 0.5]))
def test_one_text_is_cut_at_a_line(lines, fraction, tmp_path_factory):
    text = "\n".join(lines)
    path = tmp_path_factory.mktemp("texts") / "all.txt"
    path.write_text(text)
    filled = sum(bool(line.strip()) for line in lines)
    if filled < 2:
        return
    parts = read_texts(path, fraction)
    assert parts["train"] + parts["dev"] == text and parts["train"].endswith("\n")
    assert parts["train"].strip() and parts["dev"].strip()
    assert read_texts(path, split=False) == {"test": text}


def test_share_of_a_text_that_is_held_out(folder):
    path = folder(all_txt="0123456789\n" * 1000, line_txt="word " * 1000, word_txt="word") / "all.txt"
    assert 0.09 < len(read_texts(path)["dev"]) / 11_000 <= 0.1
    assert len(read_texts(path.with_name("line.txt"))["dev"]) == 500  # no line ends: cut at a space
    with fails("word.txt: the text is too short to cut into train and dev"):
        read_texts(path.with_name("word.txt"))


def test_faults_of_texts(folder, tmp_path):
    with fails("nowhere: no such file or folder"):
        read_texts(tmp_path / "nowhere")
    with fails("no train, dev or test file (.txt, .tsv, .csv, .jsonl) in this folder; it is empty"):
        read_texts(tmp_path)
    with fails("blank.txt: there is no text in this file"):
        read_texts(folder(blank_txt=" \n") / "blank.txt")
    with fails("notes.md: unknown kind of file '.md'; expected .txt, .tsv, .csv, .jsonl"):
        read_texts(folder(notes_md="x") / "notes.md")
    with fails("bad.txt: line 2: not UTF-8 text (byte 0xe9)"):
        read_texts(folder(bad_txt=b"a\n\xe9\n") / "bad.txt")
    with fails("dev_fraction: expected a number between 0 and 1, got 1.5"):
        read_texts(tmp_path / "bad.txt", 1.5)


# ---- real data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, sizes, labels, first_counts", [
    ("sst2", {"train": 6920, "dev": 872}, ("negative", "positive"), [3310, 3610]),
    ("trec6", {"train": 4843, "dev": 538}, ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), [77, 1038, 1120, 1094, 742, 772]),
    ("med", {"train": 3763, "dev": 538}, ("entailment", "neutral"), [1935, 1828]),
    ("cola", {"train": 8551, "dev": 527}, ("unacceptable", "acceptable"), [2528, 6023]),
])
def test_real_data_sets(shared, name, sizes, labels, first_counts):
    read = read_dataset(shared / "data" / name)
    assert {split: len(read.splits[split]) for split in sizes} == sizes
    assert read.labels == labels and read.has_pairs is (name == "med")
    counts = Counter(e.label for e in read.splits["train"])
    assert [counts[i] for i in range(len(labels))] == first_counts


def test_real_pairs_without_labels_and_real_text(shared):
    read = read_dataset(shared / "data" / "tatoeba_en_zh", need_labels=False)
    assert len(read.splits["train"]) == 20538 and read.has_pairs and read.labels == ()
    texts = read_texts(shared / "data" / "tiny_shakespeare" / "input.txt")
    assert len(texts["train"]) + len(texts["dev"]) == 1115394 and texts["train"].endswith("\n")
    assert abs(len(texts["dev"]) - 111539) < 100
