"""The study of findings: its rules on made-up numbers, both ways, and its short form from end to end."""

import json

import pytest

from benchmarks import findings
from benchmarks.findings import FINDINGS, Check, Measured, Scale, Study, above, alike, main, overall, tolerance

NOISE = [0.4, -0.3, 0.1, 0.0, -0.2]


# ---- rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gaps, verdict",
    [
        ([1.0, 1.2, 0.8, 1.1, 0.9], "yes"),
        ([-1.0, -1.2, -0.8, -1.1, -0.9], "no"),
        ([3.0, -2.0, 1.0, 0.0, 0.5], "within the noise"),
        ([0.0] * 5, "no"),
    ],
)
def test_above(gaps, verdict):
    assert above("", [70 + gap for gap in gaps], [70.0] * 5).verdict == verdict


def test_above_is_students_test():
    """By hand: gaps 1, 2, 3 have mean 2 and standard error 1 / sqrt 3;
    the one-sided 95 % point at 2 degrees of freedom is 2.92."""
    assert above("words", [1, 2, 3], [0, 0, 0]) == Check("words", 2, pytest.approx(3**-0.5), "yes")
    assert above("", [1 - 0.32, 2 - 0.32, 3 - 0.32], [0, 0, 0]).verdict == "within the noise"  # 1.68 < 2.92 / sqrt 3 = 1.686
    assert above("", [1 - 0.31, 2 - 0.31, 3 - 0.31], [0, 0, 0]).verdict == "yes"


@pytest.mark.parametrize(
    "gaps, verdict",
    [
        ([0.3, -0.3, 0.1, 0.2, 0.0], "yes"),
        ([5.0, 5.2, 4.8, 5.1, 4.9], "no"),
        ([-5.0, -5.2, -4.8, -5.1, -4.9], "no"),
        ([1.8, 2.2, 1.0, 3.0, 1.5], "within the noise"),
    ],
)
def test_alike(gaps, verdict):
    assert alike("", [70 + gap for gap in gaps], [70.0] * 5, 2).verdict == verdict


@pytest.mark.parametrize(
    "verdicts, verdict",
    [
        (["yes", "yes"], "yes"),
        (["yes", "no"], "partly"),
        (["yes", "within the noise"], "partly"),
        (["no", "within the noise"], "no"),
        (["within the noise"], "within the noise"),
    ],
)
def test_overall(verdicts, verdict):
    assert overall([Check("", 0, 0, each) for each in verdicts]) == verdict


def test_tolerance_interpolates_where_the_curve_leaves():
    assert tolerance([-2, -1, 0, 1, 2], [60, 76, 80, 79, 70]) == pytest.approx(0.5 + 1 + 1 / 9)
    assert tolerance([-1, 0, 1], [80, 80, 80]) == 2  # the ends of the row, where it is never left
    assert tolerance([-1, 0, 1], [0, 0, 80]) == pytest.approx(2 / 80)


# ---- findings on made-up numbers -------------------------------------------------------------------------------

# Of each finding: what an arm reaches if the papers are right, and the verdict if all is the other way round.
MADE_UP = {
    1: (lambda label: 60 if label == "head alone" else 80, "partly"),  # ranks alike, and all below the head
    2: (lambda label: 80 if label.startswith("q and v") else 75, "no"),
    3: (lambda label: 80 if "LoRA" in label else {"48": 60, "96": 70, "192": 75}[label.split()[-1]], "no"),
    4: (lambda label: 80 if label == "prefix" else 75, "no"),
    5: (lambda label: 80 if label == "length 8" else 75, "no"),
    6: (lambda label: 80 if label == "BitFit" else 75, "no"),
    7: (lambda label: 80 if label == "last block" else 75, "no"),
    8: (lambda label: 80 - abs(int(label.split("^")[1])) * (1 if "adapters" in label else 3), "no"),
    9: (lambda label: 80 if "4000" in label else 75 if "LoRA" in label else 70, "partly"),
    10: (lambda label: 1.0 if "merged" in label else 1.3 if label.endswith("batch 1") else 1.1, "no"),
    11: (lambda label: 80 if label == "unfreezing with partners" else 75, "no"),
}


def made_up(finding, score, sign=1):
    """{label: Measured} of a finding, in which every seed's scores are moved by the same noise."""
    study = Study("unused", Scale())
    labels = list(finding.arms(study))
    if finding.number == 10:
        labels = [f"{name}, batch {size}" for name in ("LoRA merged", "LoRA", "adapters") for size in study.scale.batches]
    noise = NOISE if finding.number != 10 else [each / 1000 for each in NOISE]
    return {label: Measured([sign * score(label) + each for each in noise], dev=sign * score(label)) for label in labels}, study


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: str(finding.number))
def test_a_finding_is_found_where_it_holds(finding):
    of, study = made_up(finding, MADE_UP[finding.number][0])
    assert overall(finding.checks(of, study)) == "yes"
    rows = finding.shown(of, study)
    assert rows and all(len(each.scores) == 5 for each in rows.values())


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: str(finding.number))
def test_a_finding_is_not_found_where_the_opposite_holds(finding):
    score, verdict = MADE_UP[finding.number]
    if finding.number == 8:
        of, study = made_up(finding, lambda label: score({"a": "full", "f": "adapters"}[label[0]] + label[label.index(","):]))
    elif finding.number == 10:
        of, study = made_up(finding, lambda label: 1.3 if "merged" in label or label.endswith("batch 128") else 1.1)
    else:
        of, study = made_up(finding, score, sign=-1)
    assert overall(finding.checks(of, study)) == verdict


# ---- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def fast(tmp_path, monkeypatch):
    """Runs the short form on some findings; gives its exit code, and the folder where all lies."""
    monkeypatch.setattr(findings.common, "set_threads", lambda count: None)  # not those of the other tests

    def run(only):
        out = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "f.json"), "--markdown", str(tmp_path / "f.md")]
        return main(["--fast", "--only", only, *out]), tmp_path

    return run


def test_end_to_end(fast, capsys):
    code, folder = fast("6,8,10")
    assert code == 0
    out, err = capsys.readouterr()
    assert "BitFit beats a random mask" in out and "its verdicts mean nothing" in err and "left" in err
    told = json.loads((folder / "f.json").read_text())
    assert [each["number"] for each in told["findings"]] == [6, 8, 10] and told["scale"]["seeds"] == 2
    six = told["findings"][0]["measured"]
    assert set(six) == {"BitFit", "random mask"} and len(six["BitFit"]["scores"]) == 2
    assert len(six["BitFit"]["tried"]) == 3 and str(six["BitFit"]["lr"]) in six["BitFit"]["tried"]
    results = sorted(folder.rglob("result.json"))
    counts = {json.loads(path.read_text())["trainable_without_head"] for path in results if "houlsby" not in str(path)}
    assert 3264 in counts and len(counts) == 2, "a random mask of BitFit's size, and full fine-tuning"
    assert len((folder / "f.md").read_text().splitlines()) == 2 + 3
    assert not list((folder / "out" / "runs").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in results], (folder / "out" / "times.json").stat().st_mtime_ns
    assert fast("6,8,10")[0] == 0
    assert before == ([path.stat().st_mtime_ns for path in results], (folder / "out" / "times.json").stat().st_mtime_ns)
    assert json.loads((folder / "f.json").read_text()) == told, "finished runs are read, and say the same"


def test_the_mean_on_dev_chooses_the_rate(monkeypatch):
    """While the best rate is at an edge the next one beyond is tried, and not beyond the best."""
    study, asked = Study("unused", Scale()), []

    def result(arm, lr, seed):
        asked.append(lr)
        return {"evaluations": [{"score": {0.045: 0.8, 0.015: 0.7, 0.135: 0.75}.get(lr, 0.5) + seed / 100}], "score": lr}

    monkeypatch.setattr(study, "result", result)
    measured = study.measured(findings.Arm("lora"))
    assert measured.tried == pytest.approx({0.00167: 50.5, 0.005: 50.5, 0.015: 70.5, 0.045: 80.5, 0.135: 75.5})
    assert measured.lr == 0.045 and measured.scores == [4.5] * 5 and measured.dev == pytest.approx(82)
    assert len(asked) == 5 * 2 + 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--only", "12"], "expected numbers from 1 to 11"),
        (["--only", "1,x"], "expected numbers from 1 to 11"),
        (["--seeds", "1"], "at least 2 (one has no standard error)"),
    ],
)
def test_refusals(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_place_that_is_no_folder_is_refused_in_one_line(fast, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert fast("6")[0] == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("findings: ")


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m benchmarks.findings --only 1,2" in capsys.readouterr().out
