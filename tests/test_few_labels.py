"""The study of few labels: its short form whole, what it shows and keeps, and that nothing is made twice."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import few_labels
from benchmarks.few_labels import FAST, SIDES, Study, advantages, markdown, picture, rows_of
from minipeft.compare.rates import grid

SMALL = replace(FAST, texts=(0, 4), seeds=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    told = []
    study = Study(tmp_path_factory.mktemp("few"), SMALL, told.append)
    return study, study.curves(), told


def test_every_side_is_scored_at_every_size(study):
    _, curves, told = study
    assert list(curves) == list(SIDES) and all([len(each) for each in columns] == [2, 2] for columns in curves.values())
    assert all(0 <= score <= 100 for columns in curves.values() for each in columns for score in each)
    trained = 2 * 2 * 2  # two more rates, of head and prompt, for each seed
    assert len(told) == len(SIDES) * 4 + trained and told[0].startswith("rating-head-0-seed0: ")


def test_head_and_prompt_take_the_rate_that_dev_prefers(study):
    done, curves, _ = study
    for side in ("head", "prompt"):
        rates = grid(done.run(side, 1, 0).lr)
        tried = [json.loads((done.out / "runs" / f"rating-{side}-1-seed0-lr{lr:g}" / "result.json").read_text()) for lr in rates]
        on_dev = [each["evaluations"][-1]["score"] for each in tried]
        assert curves[side][1][0] == 100 * tried[on_dev.index(max(on_dev))]["score"]


def test_a_second_time_nothing_is_made(study):
    done, curves, told = study
    count = len(told)
    assert done.curves() == curves and len(told) == count


def test_raw_and_labelled_texts_have_none_in_common(study):
    folder, raw = study[0].data()
    rows = lambda path: {line.split("\t")[0] for line in path.read_text().splitlines()[1:]}
    train, test, unlabelled = (rows(path) for path in (folder / "train.tsv", folder / "test.tsv", raw))
    assert len(train) == SMALL.train and len(unlabelled) == SMALL.raw and len(test) == SMALL.test
    assert not train & unlabelled and not train & test and not test & unlabelled


def test_what_is_shown(study):
    _, curves, _ = study
    lines = markdown(SMALL, curves).splitlines()
    assert lines[0] == "| labelled texts | 0 | 4 | labels saved |" and len(lines) == 2 + len(SIDES)
    assert rows_of(SMALL, curves)[0][0] == "head" and rows_of(SMALL, curves)[0][-1] == "–"
    text = picture(SMALL, curves)
    assert (text.startswith("<svg xmlns=") and "<title>Accuracy against labelled texts</title>" in text
            and all(s in text for s in SIDES))


def test_labels_saved_are_those_of_the_package():
    curves = {side: [[30.0, 32.0], [50.0, 52.0]] for side in SIDES} | {"prompt": [[50.0, 40.0], [70.0, 60.0]]}
    found = advantages(SMALL, curves)["prompt"]
    assert found[0] is None and found[1] == pytest.approx(4 * 0.7 - 4 * 0.3)  # at 46, the middle of 40 to 52: 0.7 of the way, 0.3


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_labels, "FAST", replace(SMALL, texts=(0,)))
    assert few_labels.main(["--fast", "--sides", "prompt", "head", "--json", "j.json", "--markdown", "m.md",
                            "--picture", "p.svg"]) == 0
    assert set(json.loads((tmp_path / "j.json").read_text())) == {"scale", "curves", "advantages"}
    assert (tmp_path / "m.md").read_text().startswith("| labelled texts | 0 |") and (tmp_path / "p.svg").is_file()
    assert "head" in capsys.readouterr().out


def test_a_part_of_the_study_with_several_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert few_labels.main(["--fast", "--sides", "iPET", "--task", "sentiment", "--texts", "2", "--models", "2",
                            "--json", "j.json"]) == 0
    assert json.loads((tmp_path / "j.json").read_text())["scale"]["pair_models"] == 2
    names = {path.name for path in tmp_path.rglob("sentiment-iPET*") if path.is_dir()}
    assert names == {"sentiment-iPET-1-seed0-models2", "sentiment-iPET-1-seed1-models2"}
    assert "head" not in capsys.readouterr().out
    assert few_labels.main(["--texts", "4", "6"]) == 2
    assert "few_labels: texts: expected a multiple of 4, as many of each class of rating, got 6" in capsys.readouterr().err


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=8), gap=st.floats(0.5, 10))
def test_names_are_apart_and_stay_where_they_can(values, gap):
    places = few_labels.apart(values, gap)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(places[b] - places[a] >= gap - 1e-6 for a, b in zip(order, order[1:]))
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)  # what one is moved up, others are moved down
    if all(values[b] - values[a] >= gap for a, b in zip(order, order[1:])):
        assert places == values


def test_three_names_at_one_height():
    assert few_labels.apart([50.0, 90.0, 90.0, 90.0], 3.0) == [50.0, 87.0, 90.0, 93.0]
