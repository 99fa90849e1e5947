"""``minipeft prompt``: each way of asking, what it prints and keeps, and what it refuses."""

import json
from pathlib import Path

import pytest

from minipeft import cli, load_pretrained
from minipeft.compare.prompt_command import strategy_of
from minipeft.compare.run import Run, execute
from minipeft.data import Dataset, Example, Tokenizer, read_dataset, toy
from minipeft.prompting import SEEDS, Calibration, ClozeClassification, Template, Verbalizer, few_shot

ASKED = ["--template", "{text} it was {mask} .", "--verbalizer", "bad=negative,good=positive"]


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.save("sentiment", "data", train=40, dev=8, test=20)
    return tmp_path


@pytest.fixture
def command(at, capsys):
    def call(*arguments):
        capsys.readouterr()
        try:
            code = cli.main(["prompt", "--model", "toy:encoder", *arguments])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()
    return call


def test_one_text(command):
    code, out, err = command("--text", "the soup was great .", *ASKED, "--json", "r.json")
    assert (code == 0
            and out == f"positive\t{json.loads(Path('r.json').read_text())['predictions'][0]['positive']:.4f}\t"
                       "the soup was great .\n")
    assert err.startswith("the soup was great . it was ___ .\n") and "negative" in err and "bad" in err


def test_zero_shot_on_data(command):
    code, out, err = command("--data", "data", *ASKED, "--json", "r.json")
    told = json.loads(Path("r.json").read_text())
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    work = ClozeClassification(tokenizer, read_dataset("data"), model.config, Template(ASKED[1]), Verbalizer.parse(ASKED[3]),
                               128, 16)
    expected = work.evaluate(model, "test")["accuracy"]
    assert (code, out) == (0, f"accuracy\t{expected:.4f}\n") and told["scores"] == [expected] and told["strategy"] == "zero_shot"
    assert "zero_shot on test with no labels" in err and not list(Path().glob("minipeft*"))


def test_a_few_examples_over_draws_and_what_is_kept(command):
    line = ("--data", "data", *ASKED, "--shots", "2", "--method", "lora", "--rank", "3", "--epochs", "1", "--splits", "2",
            "--seed", "1", "--out", "kept", "--jobs", "1")
    code, out, err = command(*line, "--json", "r.json")
    told = json.loads(Path("r.json").read_text())
    rows = [row.split("\t") for row in out.splitlines()]
    assert code == 0 and [row[0] for row in rows] == ["draw 1", "draw 2", "accuracy"] and rows[2][2].startswith("± ")
    assert "prompt_based on test with 2 of each class, 3,456 parameters trained by lora" in err and told["shots"] == 2
    assert sorted(p.name for p in Path("kept").iterdir()) == ["prompt_based-seed1", "prompt_based-seed2"]
    kept = json.loads(Path("kept/prompt_based-seed1/run.json").read_text())
    assert kept["options"] == {"rank": 3, "by": "lora"} and kept["template"] == [ASKED[1]]
    before = Path("kept/prompt_based-seed1/result.json").stat().st_mtime_ns
    assert command(*line)[1] == out and Path("kept/prompt_based-seed1/result.json").stat().st_mtime_ns == before
    code, one, err = command("--data", "data", *ASKED, "--adapter", "kept/prompt_based-seed1")
    assert code == 0 and len(one.splitlines()) == 20 and f"accuracy {told['scores'][0]:.4f} on the 20 texts of test" in err


def test_nothing_that_was_asked_for_is_passed_over_in_silence(command):
    _, plain, _ = command("--text", "the soup was great .", *ASKED)
    code, out, err = command("--text", "the soup was great .", *ASKED, "--calibrate", "--sets", "3", "--similar")
    assert code == 0 and out != plain and err.startswith("note: --sets, --similar do nothing where the model is asked as it is\n")
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    one = Dataset({"test": [Example("the soup was great .", None, None)]}, ("negative", "positive"))
    work = Calibration(ClozeClassification(tokenizer, one, model.config, Template(ASKED[1]), Verbalizer.parse(ASKED[3]), 128, 16),
                       tokenizer, 128)
    assert float(out.split("\t")[1]) == pytest.approx(work.predict(model, "test").max(), abs=1e-4)
    code, out, err = command("--data", "data", *ASKED, "--sets", "3", "--label-smoothing", "0.1")
    assert code == 0 and "note: --sets, --label-smoothing do nothing with method zero_shot and task classify\n" in err
    code, zero, err = command("--data", "data", *ASKED, "--shots", "0")
    assert code == 0 and zero == command("--data", "data", *ASKED)[1] and "zero_shot on test" in err


def test_settings_of_training_are_spoken_of_where_nothing_is_trained(command):
    more = "--lr", "1", "--epochs", "2"
    assert ("note: --lr, --epochs, --label-smoothing, --base-bits, --seed, --jobs do nothing where the model is asked as it is\n"
            in command("--text", "good", *ASKED, *more, "--label-smoothing", "0.2", "--base-bits", "4", "--seed", "4",
                       "--jobs", "2")[2])
    for shots in ((), ("--shots", "1", "--splits", "1")):
        assert "note: --lr, --epochs do nothing where nothing is trained\n" in command("--data", "data", *ASKED, *more, *shots)[2]
    words = "--data", "data", *ASKED[:2], "--search-words", "1"
    code, out, err = command(*words, *more, "--ranking", "--splits", "3", "--out", "kept")
    assert code == 0 and "note: --ranking, --splits, --out, --lr, --epochs do nothing where words are searched for\n" in err
    assert "note" not in command(*words)[2]


def test_words_are_searched_for_on_training_texts_that_are_drawn(command):
    """Not on the first of them, which in a sorted file are of one class."""
    header, *rows = Path("data/train.tsv").read_text().splitlines()
    Path("data/train.tsv").write_text("\n".join([header, *sorted(rows, key=lambda row: row.split("\t")[1])]) + "\n")
    code, out, err = command("--data", "data", *ASKED[:2], "--search-words", "1", "--train-limit", "8")
    assert code == 0 and "accuracy on 8 training texts, without any training\n" in err and "=negative," in out


def test_a_row_stays_a_row(command):
    """Tabs and line ends of a text are shown as spaces, and an empty text as nothing between tabs; what has no label is said."""
    texts = ["a\tb\nc", "", "good"]
    Path("odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    code, out, err = command("--data", "odd.jsonl", *ASKED)
    assert code == 0 and [row.split("\t")[2:] for row in out.splitlines()] == [["a b c"], [""], ["good"]]
    assert err == "not scored: the 3 texts of test have no label\n"
    Path("some.tsv").write_text("text\tlabel\ngood\tpositive\nbad\t\n", encoding="utf-8")
    assert command("--data", "some.tsv", *ASKED)[2] == "not scored: 1 of the 2 texts of test has no label\n"


def test_data_that_stand_for_themselves(command):
    """Without a train split, without labels, or as one file, all texts are asked about; the verbalizer names the classes."""
    whole = command("--data", "data", *ASKED)
    rows = Path("data/test.tsv").read_text().splitlines()
    Path("bare").mkdir()
    Path("bare/test.tsv").write_text("\n".join(rows) + "\n")
    Path("one.tsv").write_text("\n".join(rows) + "\n")
    Path("raw.tsv").write_text("\n".join(row.split("\t")[0] for row in rows) + "\n")
    accuracy = whole[1].split()[1]
    for data, scored in (("bare", True), ("one.tsv", True), ("raw.tsv", False)):
        code, out, err = command("--data", data, *ASKED)
        assert code == 0 and len(out.splitlines()) == 20 and ("accuracy" in err) == scored
        assert {line.split("\t")[0] for line in out.splitlines()} == {"negative", "positive"}
        assert not scored or f"accuracy {accuracy} on the 20 texts of test" in err
    assert command("--data", "one.tsv", *ASKED)[1] == command("--data", "raw.tsv", *ASKED)[1]
    code, out, err = command("--data", "one.tsv", *ASKED, "--splits", "3", "--out", "kept")
    assert code == 0 and "note: --splits, --out do nothing where the model is asked as it is" in err and not Path("kept").exists()
    code, out, err = command("--data", "one.tsv", *ASKED[:3], "bad=negative,good=fine")
    assert (code, out) == (2, "") and "unknown label 'positive'; known: 'negative', 'fine'" in err


def test_what_is_not_read_is_said(command):
    code, out, err = command("--text", "the soup was great . " * 30, *ASKED, "--max-length", "20")
    assert code == 0 and "note: 1 text is longer than 20 tokens and was cut\n" in err
    code, out, err = command("--text", "the soup was great .", *ASKED, "--text2", "and more")
    assert code == 0 and "note: --text2 is not read: '{text} it was {mask} .' has no {text2}\n" in err
    code, out, err = command("--text", "the soup was great .", *ASKED, "--template", "{text} {mask} .")
    assert code == 0 and "note: of 2 times --template the first counts; several are for PET (--unlabelled)\n" in err
    code, out, err = command("--data", "data", *ASKED, "--splits", "3")
    assert code == 0 and "note: --splits does nothing where nothing is drawn\n" in err and "draw" not in out
    assert "note" not in command("--data", "data", *ASKED)[2] and "note" not in command("--data", "toy:topic")[2]


def test_a_model_that_is_asked_as_it_is_reads_what_it_was_trained_on(command):
    """Its tokenizer says 96 tokens, and the default is 128."""
    code, out, err = command("--text", "the soup was great . " * 40, *ASKED)
    assert code == 0 and "note: 1 text is longer than 96 tokens and was cut\n" in err


def test_demonstrations_and_pet(command):
    code, out, err = command("--data", "data", *ASKED, "--shots", "1", "--splits", "1")
    assert code == 0 and "in_context on test with 1 of each class" in err and out.startswith("accuracy\t")
    code, out, err = command("--data", "data", *ASKED, "--template", "{text} i {mask} it .",
                             "--verbalizer", "hated=negative,loved=positive", "--shots", "1", "--unlabelled", "data",
                             "--splits", "1", "--pair-steps", "2", "--epochs", "1")
    assert code == 0 and "pet on test with 1 of each class, " in err and "parameters trained by full" in err


def test_a_toy_task_has_prompts_of_its_own(command):
    code, out, err = command("--data", "toy:topic:easy", "--json", "r.json")
    assert code == 0 and json.loads(Path("r.json").read_text())["mean"] > 0.9


def test_words_are_searched(command):
    code, out, err = command("--data", "data", "--template", ASKED[1], "--shots", "8", "--search-words", "3", "--json", "r.json")
    rows = [row.split("\t") for row in out.splitlines()]
    assert code == 0 and len(rows) == 3 and "accuracy on 16 training texts, without any training" in err
    for words, accuracy in rows:
        found = Verbalizer.parse(words, ("negative", "positive"))
        dataset = few_shot(read_dataset("data"), 8, SEEDS[0])
        model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
        work = ClozeClassification(tokenizer, dataset, model.config, Template(ASKED[1]), found, 128, 16)
        assert work.evaluate(model, "train")["accuracy"] == pytest.approx(float(accuracy), abs=1e-4)
    assert [each["verbalizer"] for each in json.loads(Path("r.json").read_text())["found"]] == [words for words, _ in rows]


def test_words_that_were_found_are_ranked_on_dev_after_fine_tuning(command):
    """LM-BFF's last step: each verbalizer has a training of its own, the same as prompt-based fine-tuning with it."""
    line = ("--data", "data", "--template", ASKED[1], "--shots", "4", "--search-words", "3")
    found = [row.split("\t") for row in command(*line)[1].splitlines()]
    code, out, err = command(*line, "--method", "bitfit", "--epochs", "2", "--json", "r.json")
    rows = [row.split("\t") for row in out.splitlines()]
    assert code == 0 and "behind it accuracy on dev after fine-tuning by bitfit" in err
    assert sorted(row[:2] for row in rows) == sorted(found)
    on_dev = {}
    for number, (words, _) in enumerate(found):
        run = Run("toy:encoder", "data", "prompt_based", options={"by": "bitfit"}, shots=4, epochs=2, template=[ASKED[1]],
                  verbalizer=[words])
        on_dev[words] = execute(run, f"own{number}", quiet=True)["evaluations"][-1]["score"]
    assert [row[2] for row in rows] == [f"{on_dev[row[0]]:.4f}" for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert [each["verbalizer"] for each in json.loads(Path("r.json").read_text())["found"]] == [row[0] for row in rows]


def test_what_was_found_is_kept_and_not_trained_again(command):
    line = ("--data", "data", "--template", ASKED[1], "--shots", "4", "--search-words", "2", "--method", "bitfit",
            "--epochs", "1", "--out", "o")
    code, out, _ = command(*line)
    times = {path: path.stat().st_mtime_ns for path in Path("o").glob("prompt_based-seed0-words*/result.json")}
    assert code == 0 and len(times) == 2
    assert command(*line)[1] == out and {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("more, expected", [
    ({}, "zero_shot"), ({"shots": 0}, "zero_shot"), ({"shots": 4}, "in_context"), ({"method": "lora"}, "prompt_based"),
    ({"shots": 4, "method": "full"}, "prompt_based"), ({"shots": 4, "unlabelled": "x"}, "pet"),
    ({"shots": 4, "unlabelled": "x", "method": "lora"}, "pet"),
    ({"shots": 4, "unlabelled": "x", "generations": 0}, "ipet")])
def test_what_is_asked_for(more, expected):
    args = type("Args", (), {"shots": None, "method": None, "unlabelled": None, "generations": None, **more})
    assert strategy_of(args) == expected


@pytest.mark.parametrize("line, message", [
    ([], "--data or --text: give one of them, a data set or a single text"),
    (["--data", "data", "--text", "x"], "--data or --text: give one of them"),
    (["--data", "data"], "--template: is needed, as in --template"),
    (["--data", "data", "--template", "{text} {mask}"], "--verbalizer: is needed"),
    (["--data", "data", "--template", "{text} {mask}", "--search-words", "2", "--shots", "4", "--unlabelled", "data"],
     "--search-words: looks for words on labelled texts; leave out --unlabelled"),
    (["--data", "data", "--template", "{text}", "--verbalizer", "a=b,c=d"],
     "--template: expected {mask} once, got it 0 times in '{text}'"),
    (["--data", "data", "--template", "{mask}", "--verbalizer", "bad"],
     "--verbalizer: expected WORD=CLASS,WORD=CLASS,..., got 'bad'"),
    (["--data", "data", "--template", "{mask}", "--verbalizer", "bad=negative,goodish=positive"],
     "--verbalizer: 'goodish' is not one token of this model but good ##i"),
    (["--data", "data", "--template", "{mask}", "--verbalizer", "bad=blame,good=praise"],
     "--verbalizer: the data has the classes negative, positive, got 'blame'"),
    (["--text", "x", *ASKED, "--shots", "2"], "--text: a single text is asked about as the model is"),
    (["--data", "data", *ASKED, "--adapter", "a", "--shots", "2"], "--adapter: is used as it is"),
    (["--data", "data", *ASKED, "--unlabelled", "data"], "--unlabelled: raw text goes with a few labelled examples"),
    (["--data", "data", *ASKED, "--generations", "2"], "--generations: are of iPET"),
    (["--data", "data", *ASKED, "--shots", "99"], "--shots: the class "),
    (["--data", "data", *ASKED, "--shots", "1", "--unlabelled", "nowhere"], "nowhere: no such file or folder"),
    (["--data", "nowhere", *ASKED], "nowhere: no such file or folder"),
])
def test_what_does_not_go_is_one_line(line, message, command):
    before = sorted(Path().rglob("*"))
    code, out, err = command(*line)
    assert (code, out) == (2, "") and err.startswith("minipeft: ") and err.count("\n") == 1 and message in err, err
    assert sorted(Path().rglob("*")) == before
