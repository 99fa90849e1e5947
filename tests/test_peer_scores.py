"""benchmarks/peer_scores.py: other libraries train the same parameters by the same steps as minipeft, and results are kept."""

import json
from importlib import metadata

import numpy as np
import pytest

from benchmarks import peer_scores
from minipeft.compare.run import Run, load_config, make_work, models_of, prepare
from minipeft.data import Tokenizer, files
from minipeft.interop import make_model, save_pretrained
from minipeft.training import fit

DATA, LABELS = "toy:sentiment", ("negative", "positive")
STARTS_ALIKE = ("full", "head", "top_k", "bitfit", "ia3", "layernorm", "pissa")  # methods that draw nothing at random


@pytest.fixture(autouse=True)
def peers(peer):
    """Skip where a library is missing."""
    for name in ("torch", "transformers", "peft", "adapters"):
        peer(name)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a tiny random BERT with a pooler, without dropout."""
    folder, toy = tmp_path_factory.mktemp("bert"), "toy:encoder"
    config = load_config(toy).with_(labels=LABELS, pooling="pooler")
    save_pretrained(make_model(config, "classify", np.random.default_rng(0)), folder, tokenizer_from=files.model_folder(toy))
    return str(folder)


def make_run(bert, method, **settings):
    return Run(bert, DATA, method, pooling="pooler", train_limit=48, batch_size=8, epochs=2, **settings)


def command(bert, *more):
    return ["--model", bert, "--data", DATA, "--train-limit", "16", "--seeds", "1", *more]


@pytest.mark.parametrize("method", peer_scores.METHODS)
def test_a_peer_trains_as_many_parameters_as_the_plan_says(method, bert):
    run, config = make_run(bert, method), load_config(bert)
    model = peer_scores.make_peer(run, LABELS, total=100)
    planned = run.make_method().count(config.with_(pooling="pooler")) + (config.hidden_size + 1) * len(LABELS)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == planned


def test_another_number_of_parameters_is_refused(monkeypatch, bert):
    import peft

    monkeypatch.setitem(peer_scores.PEFT, "ia3", lambda *given: peft.IA3Config(task_type="SEQ_CLS"))  # PEFT's own placement
    with pytest.raises(ValueError, match=r"ia3: PEFT trains [\d,]+ parameters, minipeft [\d,]+"):
        peer_scores.make_peer(make_run(bert, "ia3"), LABELS, total=100)


@pytest.mark.parametrize("method", STARTS_ALIKE)
def test_the_losses_of_every_step_are_minipefts(method, bert):
    run = make_run(bert, method, weight_decay=0.3)
    work, attachment, _, _ = prepare(run)
    ours = fit(models_of(attachment)[0], attachment.named_parameters(), work, run.settings(), lr_scale=run.lr_scale(attachment))
    model = peer_scores.make_peer(run, work.labels, total=12)
    theirs = peer_scores.train(model, run.make_method(), work, run.settings())
    assert theirs == pytest.approx(ours["losses"], rel=2e-4)
    assert len(theirs) == 12
    assert work.evaluate(peer_scores.AsOurs(model), "dev")["score"] == pytest.approx(ours["evaluations"][-1]["score"], abs=0.005)


@pytest.mark.parametrize("method", [name for name in peer_scores.METHODS if name not in STARTS_ALIKE])
def test_every_parameter_that_is_to_be_trained_moves_and_no_other(method, bert):
    run = make_run(bert, method)
    work = make_work(run, Tokenizer.from_folder(bert), load_config(bert))
    model = peer_scores.make_peer(run, work.labels, total=12)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    peer_scores.train(model, run.make_method(), work, run.settings())
    for name, p in model.named_parameters():
        assert p.requires_grad != bool((p == before[name]).all()), name


def test_finished_runs_are_kept_and_other_settings_refused(bert, tmp_path, capsys):
    asked = command(bert, "--methods", "head", "--out", str(tmp_path / "out"))
    peer_scores.main([*asked, "--epochs", "1", "--json", str(tmp_path / "scores.json")])
    assert "[1/1] head seed 0: accuracy" in capsys.readouterr().err
    row, = json.loads((tmp_path / "scores.json").read_text())["rows"]
    kept = files.read_json(tmp_path / "out" / "head-seed0" / "result.json", "result")
    assert row["peer_scores"] == [kept["score"]] and row["ours"] is row["below"] is None
    peer_scores.main([*asked, "--epochs", "1"])
    assert "finished before" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--epochs is 1 there and 2 here.*choose another --out"):
        peer_scores.main([*asked, "--epochs", "2"])


def test_a_comparison_stands_beside_and_what_is_below_is_marked(bert, tmp_path):
    jobs = peer_scores.make_jobs(peer_scores.arguments(command(bert, "--methods", "head,lora", "--out", str(tmp_path))))
    for job in jobs:
        job.folder.mkdir()
        files.write_json(job.folder / "run.json", peer_scores.asdict(job.run))
    row = {"label": "head", "task": peer_scores.described(jobs[0].run)["data"], "split": "dev", "metric": "accuracy",
           "scores": [0.7], "runs": ["head-seed0"]}
    files.write_json(tmp_path / "results.json", {"rows": [row]})
    ours = peer_scores.our_scores(tmp_path / "results.json", jobs)
    assert ours == {"head": [0.7]}
    theirs = {("head", 0): {"score": 0.72}, ("lora", 0): {"score": 0.8}}
    facts = {"library": "x", "lr": 1.0, "trainable": 1}
    rows = peer_scores.summarise(jobs, {key: {**facts, **result} for key, result in theirs.items()}, ours)
    assert [(r["method"], r["below"]) for r in rows] == [("head", True), ("lora", None)]
    files.write_json(tmp_path / "head-seed0" / "run.json", {**peer_scores.asdict(jobs[0].run), "lr": 7.0})
    with pytest.raises(ValueError, match="--lr is 7.0 there"):
        peer_scores.our_scores(tmp_path / "results.json", jobs)


@pytest.mark.parametrize("arguments,said", [
    (["--methods", "lora,early_exit"], "--methods: expected some of"), (["--seeds", "0"], "--seeds: expected at least 1")])
def test_what_cannot_be_run_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        peer_scores.main(command("folder", *arguments))
    assert said in capsys.readouterr().err


def test_what_is_missing_is_said_in_one_line(bert, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="^peer_scores: .*nowhere: no config.json"):
        peer_scores.main(command(str(tmp_path / "nowhere")))
    with pytest.raises(SystemExit, match="^peer_scores: .*nowhere"):
        peer_scores.main(["--model", bert, "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])

    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(SystemExit, match="needs torch and transformers and peft and adapters; run: pip install"):
        peer_scores.main(command(bert, "--methods", "houlsby"))
