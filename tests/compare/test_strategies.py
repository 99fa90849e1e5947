"""Strategies as runs: what each trains on and with, what it is scored as, and what it says where something is missing."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from minipeft import load_pretrained
from minipeft.compare.comparison import compare
from minipeft.compare.exits import OFFERED as METHODS_AND_EXITS
from minipeft.compare.rates import default_lr
from minipeft.compare.run import OFFERED, RESULT, Run, execute, load_config, make_work, prepare
from minipeft.compare.strategies import FEW_EPOCHS, GENTLE, SOFT, STRATEGIES, few, pairs_of, toy_prompts, with_its_head
from minipeft.data import Example, Tokenizer, read_dataset, toy
from minipeft.interop import save_pretrained
from minipeft.methods import METHODS, fisher_importance
from minipeft.methods.nf4 import quantised
from minipeft.prompting import SEEDS, ClozeClassification, Demonstrations, RankClassification, Template, Verbalizer, few_shot
from minipeft.prompting.toy_prompts import PATTERNS

TEMPLATE, WORDS = "{text} it was {mask} .", "bad=negative,good=positive"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews")
    toy.save("sentiment", path / "data", train=80, dev=10, test=40)
    toy.save("sentiment", path / "raw", seed=9, train=60, dev=1, test=1)
    return path


def run_of(folder, method, **more):
    given = {"shots": 4, "template": [TEMPLATE], "verbalizer": [WORDS], "max_length": 80,
             "unlabelled": str(folder / "raw"), "epochs": 2}
    return Run(**{"model": "toy:encoder", "data": str(folder / "data"), "method": method, **given, **more})


def test_they_stand_beside_the_methods():
    assert OFFERED == {**METHODS_AND_EXITS, **STRATEGIES} and not set(METHODS) & set(STRATEGIES)
    assert list(STRATEGIES) == ["zero_shot", "in_context", "prompt_based", "pet", "ipet"]


def test_a_few_examples_are_those_of_the_seeds(folder):
    dataset = read_dataset(folder / "data")
    for seed, expected in ((0, SEEDS[0]), (4, SEEDS[4]), (5, 105), (13, 113)):
        assert few(dataset, 3, seed).splits["train"] == few_shot(dataset, 3, expected).splits["train"]
    none = few(dataset, 0, 0)
    assert set(none.splits) == {"train", "test"} and none.splits["train"] == []


def test_zero_shot_is_the_model_as_it_is(folder, tmp_path):
    result = execute(run_of(folder, "zero_shot", shots=None), tmp_path / "r", quiet=True)
    model, tokenizer, dataset = (load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder"),
                                 read_dataset(folder / "data"))
    work = ClozeClassification(tokenizer, dataset, model.config, Template(TEMPLATE), Verbalizer.parse(WORDS), 80, 16)
    assert result["score"] == work.evaluate(model, "test")["accuracy"] > 0.7
    assert (result["trainable"], result["split"], result["steps"]) == (0, "test", 0)
    calibrated = execute(run_of(folder, "zero_shot", options={"calibrate": True}, shots=0), tmp_path / "c", quiet=True)
    assert calibrated["scores"]["loss"] != result["scores"]["loss"] and calibrated["batch_length"] is None


def test_in_context_stands_behind_examples_of_the_draw(folder):
    run = run_of(folder, "in_context", options={"per_class": 1, "sets": 2}, seed=3)
    work, attachment, _, _ = prepare(run)
    shown = few(read_dataset(folder / "data"), 4, 3).splits["train"]
    assert isinstance(work.demonstrations, Demonstrations) and work.demonstrations.examples == shown
    assert (work.demonstrations.per_class, work.demonstrations.sets, attachment.trainable) == (1, 2, 0)
    similar, *_ = prepare(run_of(folder, "in_context", options={"similar": True}))
    assert similar.demonstrations.own_vectors.shape == (8, 96) and similar.demonstrations.per_class is None


@pytest.mark.parametrize("by", ["full", "lora", "prefix", "output"])
def test_prompt_based_trains_by_any_method(by, folder, tmp_path):
    run = run_of(folder, "prompt_based", options={"by": by})
    result = execute(run, tmp_path / "r", quiet=True)
    assert (result["lr"] == pytest.approx(GENTLE * default_lr(by, "toy:encoder")) and result["steps"] == 2
            and result["score"] > 0.6)
    model = load_pretrained("toy:encoder")
    expected = sum(p.size for p in model.parameters()) if by == "full" else (
        METHODS[by](words=[5, 6]) if by == "output" else METHODS[by]()).count(model.config)
    assert result["trainable"] == expected
    if by == "output":
        tokenizer = Tokenizer.from_folder("toy:encoder")
        assert prepare(run)[1].method.words == [tokenizer.id_of("bad"), tokenizer.id_of("good")]


def test_the_methods_own_settings_reach_it(folder):
    _, attachment, _, _ = prepare(run_of(folder, "prompt_based", options={"by": "lora", "rank": 3}))
    assert attachment.method.rank == 3
    work, *_ = prepare(run_of(folder, "prompt_based", options={"ranking": False, "demonstrations": 2}))
    assert (work.demonstrations.per_class, work.demonstrations.sets, work.demonstrations.vectors) == (2, 1, None)
    similar, *_ = prepare(run_of(folder, "prompt_based", options={"demonstrations": 2, "sets": 3, "similar": True}))
    assert similar.demonstrations.sets == 3 and similar.demonstrations.own_vectors.shape == (8, 96)
    assert (run_of(folder, "prompt_based", options={"by": "lora", "rank": 3, "bottleneck": 4}).unused()
            == ["bottleneck", "unlabelled"])
    assert run_of(folder, "lora").unused() == ["template", "verbalizer", "unlabelled"]
    assert run_of(folder, "pet").unused() == [] and run_of(folder, "pet", label_smoothing=0.1).unused() == ["label_smoothing"]


def test_ranking_goes_with_models_that_write(folder):
    kind = lambda model: type(prepare(replace(run_of(folder, "zero_shot", options={"ranking": True}), model=model))[0])
    assert kind("toy:decoder") is kind("toy:seq2seq") is RankClassification
    with pytest.raises(ValueError, match="ranking: a masked model fills in one token"):
        kind("toy:encoder")


def test_what_is_looked_at_first_is_what_runs(folder, tmp_path):
    """Answers of two words go with ranking, and a second template counts only where it is asked with."""
    words, settings = "very good=positive,bad=negative", {"out": tmp_path / "c", "seeds": 1, "jobs": 1}
    given = {"shots": 4, "verbalizer": [words], "max_length": 80, "epochs": 1, "max_steps": 1}
    asked = {**given, "template": ["{text} it was {mask}", "it was {mask} . {text}"], "options": {"ranking": True}}
    table = compare("toy:decoder", str(folder / "data"), ["prompt_based"], settings=asked, **settings)
    assert not table.failed and table.rows[-1]["method"] == "prompt_based"
    for model, more, message in (("toy:decoder", {"template": ["{text} it was {mask}"]}, "'very good' is not one token"),
                                 ("toy:encoder", {**asked, "verbalizer": [WORDS]}, "ranking: a masked model fills in one token")):
        with pytest.raises(ValueError, match=message):
            compare(model, str(folder / "data"), ["prompt_based"], settings={**given, **more},
                    **{**settings, "out": tmp_path / "no"})
        assert not list(tmp_path.glob("no/*/result.json"))


def test_pet_trains_a_classifier_on_raw_text(folder, tmp_path):
    run = run_of(folder, "pet", options={"pair_steps": 3}, template=[TEMPLATE, "{text} i {mask} it ."],
                 verbalizer=[WORDS, "hated=negative,loved=positive"])
    work, attachment, _, _ = prepare(run)
    assert (len(work.encodings["train"]) == 60 and work.soft["train"].shape == (60, 2)
            and set(work.encodings) == {"train", "dev", "test"})
    assert np.allclose(work.soft["train"].sum(axis=1), 1) and attachment.head is None and attachment.method.name == "full"
    result = execute(run, tmp_path / "r", quiet=True)
    again = execute(run, tmp_path / "again", quiet=True)
    assert json.loads((tmp_path / "r" / SOFT).read_text())["soft"] == work.soft["train"].tolist()
    assert result["losses"] == again["losses"] and result["steps"] == 8 and result["lr"] == default_lr("full", "toy:encoder")
    assert (Run("toy:encoder", "d", "pet", shots=4).epochs == 3
            and Run("toy:encoder", "d", "prompt_based", shots=4).epochs == FEW_EPOCHS)


@pytest.mark.parametrize("by", ["output", "lora_plus", "adalora"])
def test_pet_by_other_methods(by, folder, tmp_path):
    """Output tuning moves each pair's own label words, and of the classifier the vectors of its classes."""
    run = run_of(folder, "pet", options={"by": by, "pair_steps": 2}, epochs=1, template=[TEMPLATE, "{text} i {mask} it ."],
                 verbalizer=[WORDS, "hated=negative,loved=positive"])
    result = execute(run, tmp_path / "r", quiet=True)
    if by == "output":
        tokenizer = Tokenizer.from_folder("toy:encoder")
        of = lambda pair: run.strategy().method(run, tokenizer, pair).words
        assert ([of(pair) for pair in pairs_of(run, None)]
                == [[tokenizer.id_of(w) for w in words] for words in (("bad", "good"), ("hated", "loved"))])
        assert result["trainable"] == 2 * 96 and prepare(run)[1].method.words is None
    assert result["steps"] == 4 and 0 <= result["score"] <= 1


@pytest.mark.parametrize("model, ranking", [("toy:encoder", False), ("toy:seq2seq", False), ("toy:decoder", True)])
def test_a_fisher_mask_is_chosen_by_what_is_asked(model, ranking, folder, tmp_path):
    """By the label words or the answers, before anything is trained; the model needs no classifier."""
    run = run_of(folder, "prompt_based", model=model, template=["{text} it was {mask}"],
                 options={"by": "fisher_mask", "share": 0.001, "ranking": ranking})
    work, attachment, _, _ = prepare(run)
    expected = fisher_importance(with_its_head(model), [work.collate([i]) for i in range(8)], work.scores)
    entries = np.concatenate([array.reshape(-1) for array in expected.values()])
    kept = [(path, wrapper.indices) for path, wrapper in attachment.wrappers.items() if hasattr(wrapper, "indices")]
    reached = sum(np.concatenate([expected[f"{path}.{part}"].reshape(-1) for part in ("weight", "bias")
                                  if f"{path}.{part}" in expected])[indices].sum() for path, indices in kept)
    assert attachment.trainable == round(0.001 * len(entries)) == sum(len(indices) for _, indices in kept)
    assert reached == pytest.approx(np.sort(entries)[-attachment.trainable:].sum(), rel=1e-4)
    result = execute(run, tmp_path / "r", quiet=True)
    assert result["trainable"] == attachment.trainable and result["losses"][-1] < result["losses"][0]


@pytest.mark.parametrize("method", ["pet", "ipet"])
def test_pet_by_a_fisher_mask(method, folder, tmp_path):
    """The prompts and the classifier, which has a head of its own; iPET begins with no label at all."""
    shots = 0 if method == "ipet" else 4
    run = run_of(folder, method, shots=shots, epochs=1, options={"by": "fisher_mask", "pair_steps": 2, "examples": 4})
    result = execute(run, tmp_path / "r", quiet=True)
    kept = METHODS["fisher_mask"]().count(load_config("toy:encoder"))
    assert result["trainable"] == kept + 2 * 97 and 0 <= result["score"] <= 1


def test_output_tuning_of_whole_answers_moves_all_their_tokens(folder, tmp_path):
    run = run_of(folder, "prompt_based", model="toy:decoder", template=["{text} it was {mask}"],
                 verbalizer=["very bad=negative,very good=positive"], options={"by": "output", "ranking": True}, epochs=3)
    tokenizer, (_, attachment, _, _) = Tokenizer.from_folder("toy:decoder"), prepare(run)
    assert attachment.method.words == sorted(tokenizer.id_of(word) for word in ("very", "bad", "good"))
    result = execute(run, tmp_path / "r", quiet=True)
    assert result["trainable"] == 3 * 96 and result["losses"][-1] < result["losses"][0]


def test_pet_needs_a_model_with_a_head(folder):
    with pytest.raises(ValueError, match="^pet: its prompts teach a classifier, and toy:seq2seq is T5, an encoder-decoder, which "
                                         "has no classification head; use prompt_based"):
        prepare(run_of(folder, "pet", model="toy:seq2seq"))


def test_a_pet_that_was_stopped_goes_on_behind_its_prompts(folder, tmp_path, monkeypatch):
    """The prompts are not trained again, and the end is the same to the bit; other settings start afresh."""
    from minipeft.compare import strategies

    run = run_of(folder, "pet", options={"pair_steps": 2}, epochs=1)
    whole = execute(run, tmp_path / "whole", quiet=True)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / SOFT).write_bytes((tmp_path / "whole" / SOFT).read_bytes())
    trained = []
    monkeypatch.setattr(strategies.Ensemble, "train", lambda self, number, examples: trained.append(number))
    went_on = execute(run, tmp_path / "stopped", resume=True, quiet=True)
    assert went_on["losses"] == whole["losses"] and went_on["score"] == whole["score"] and not trained
    prepare(replace(run, batch_size=8), place=tmp_path / "stopped")
    assert trained == [0]
    prepare(replace(run, options={"pair_steps": 2, "pair_models": 3}))
    assert trained == [0, 0, 1, 2]


def test_raw_text_that_is_labelled_is_left_out(folder):
    """PET on the data's own train split: what the draw has labelled is not raw any more."""
    run = run_of(folder, "pet", unlabelled=str(folder / "data"), shots=4)
    dataset = few(read_dataset(folder / "data"), 4, run.seed)
    raw = run.strategy()._raw(run, dataset)
    labelled = {e.text for part in ("train", "dev", "test") for e in dataset.splits[part]}
    every = {e.text for e in read_dataset(folder / "data").splits["train"]}
    assert {e.text for e in raw} == every - labelled and len(raw) == 80 - 16 and all(e.label is None for e in raw)
    with pytest.raises(ValueError) as caught:
        run.strategy()._raw(run, read_dataset(folder / "data"))
    assert str(caught.value) == (f"unlabelled: {folder / 'data'} has no text that the labelled data has not; "
                                 "expected raw text to label")


def test_solved_examples_that_find_no_room_are_counted(folder, tmp_path, capsys):
    execute(run_of(folder, "in_context", max_length=60), tmp_path / "a")
    assert re.search(r"^note: before a text of test stand \d(\.\d)? of 8 solved examples on average; for the others there is "
                     r"no room in 60 tokens$", capsys.readouterr().err, re.MULTILINE)
    execute(run_of(folder, "in_context", max_length=60), tmp_path / "b", notes=("unused", "data"))
    execute(run_of(folder, "in_context", shots=1, options={"per_class": 1}), tmp_path / "c")
    assert "solved examples" not in capsys.readouterr().err
    for settings, expected in (({}, 8), ({"per_class": 1}, 2), ({"vectors": lambda texts: np.ones((len(texts), 2))}, 4),
                               ({"vectors": lambda texts: np.ones((len(texts), 2)), "per_class": 1}, 2)):
        train = few(read_dataset(folder / "data"), 4, 0).splits["train"]
        assert Demonstrations(train, **settings).asked() == expected == len(Demonstrations(train, **settings).draw(
            [Example("a")], Template(TEMPLATE), Verbalizer.parse(WORDS), 0)[0])


@pytest.mark.parametrize("method, name", [("in_context", "per_class"), ("prompt_based", "demonstrations")])
def test_of_similar_ones_there_are_half(method, name, folder):
    run = run_of(folder, method, shots=3, options={name: 3, "similar": True})
    with pytest.raises(ValueError) as caught:
        make_work(run, Tokenizer.from_folder("toy:encoder"), load_config("toy:encoder"), check=True)
    assert str(caught.value) == (f"{name}: expected at most 2, as many training examples as there are of the class 'negative', "
                                 "the more similar half, got 3")


def test_a_limit_of_the_training_texts_is_one_for_every_strategy(folder):
    """None sees labels that the others are not given, as examples to solve or to train on."""
    given = {"train_limit": 5, "shots": None}
    train = read_dataset(folder / "data").splits["train"]
    expected = [train[i] for i in np.sort(np.random.default_rng(0).choice(80, 5, replace=False))]
    shown = prepare(run_of(folder, "in_context", **given))[0].demonstrations.examples
    work = prepare(run_of(folder, "prompt_based", options={"demonstrations": 1}, **given))[0]
    assert shown == expected == work.demonstrations.examples and len(work.encodings["train"]) == 5
    seen = []
    run = run_of(folder, "pet", options={"pair_steps": 1}, **given)
    prepare(run, seen.append)
    assert seen == ["prompt 1 of 1 trained on 5 texts"]


@pytest.mark.parametrize("method", ["prompt_based", "pet"])
def test_a_method_that_does_not_fit_the_model_is_refused_beforehand(method, folder):
    run = run_of(folder, method, options={"by": "head"})
    with pytest.raises(ValueError, match=r"^attach: this model has no output map of its own to train \(it has no head, or one "
                                         r"that is tied to the word vectors\); use another method, such as output"):
        make_work(run, Tokenizer.from_folder("toy:encoder"), load_config("toy:encoder"), check=True)


def test_the_prompts_of_pet_stand_on_a_base_in_4_bits_too(folder, monkeypatch):
    from minipeft.compare import strategies

    seen, train = [], strategies.Ensemble.train
    monkeypatch.setattr(strategies.Ensemble, "train",
                        lambda self, *args: seen.append(quantised(self.model)) or train(self, *args))
    prepare(run_of(folder, "pet", options={"by": "lora", "pair_steps": 1}, base_bits=4))
    prepare(run_of(folder, "pet", options={"by": "lora", "pair_steps": 1}))
    assert seen[0] is not None and seen[1] is None


@pytest.mark.parametrize("method, name", [("in_context", "per_class"), ("prompt_based", "demonstrations")])
def test_too_few_to_show_is_said_beforehand(method, name, folder):
    run = run_of(folder, method, shots=2, options={name: 3})
    with pytest.raises(ValueError) as caught:
        make_work(run, Tokenizer.from_folder("toy:encoder"), load_config("toy:encoder"), check=True)
    assert str(caught.value) == (f"{name}: expected at most 2, as many training examples as there are of the class 'negative', "
                                 "got 3")
    make_work(replace(run, options={name: 2}), Tokenizer.from_folder("toy:encoder"), load_config("toy:encoder"), check=True)


def test_what_prompting_by_output_tuning_has_no_use_for(folder):
    assert "words" in run_of(folder, "prompt_based", options={"by": "output"}, words="good bad").unused()
    assert "words" not in run_of(folder, "prompt_based", options={"by": "prompt"}, words="good bad").unused()


def test_ipet_goes_on_in_generations(folder, monkeypatch):
    from minipeft.compare import strategies

    seen = []
    monkeypatch.setattr(strategies.Ensemble, "run", lambda self: seen.append(self.settings.generations) or self)
    monkeypatch.setattr(strategies.Ensemble, "soft_labels", lambda self: np.full((len(self.raw), 2), 0.5))
    for options in ({}, {"generations": 2}):
        run = run_of(folder, "ipet", options=options)
        run.strategy().work(run, Tokenizer.from_folder("toy:encoder"), load_pretrained("toy:encoder").config,
                            few(read_dataset(folder / "data"), 4, 0), 80)
    assert seen == [None, 2]


def test_a_comparison_with_strategies(tmp_path):
    """Toy data has prompts of its own; every method learns from the same few examples."""
    (tmp_path / "raw.tsv").write_text("text\n" + "it was good .\nit was bad .\n" * 8, encoding="utf-8")
    table = compare(None, "toy:sentiment", ["head", "zero_shot", "in_context", "prompt_based", "pet", "ipet"], 2,
                    tmp_path / "out", {"shots": 2, "epochs": 2, "unlabelled": str(tmp_path / "raw.tsv"),
                                       "options": {"pair_steps": 2, "generations": 1}},
                    sweeps={"prompt_based.by": ["lora", "bitfit"]}, jobs=2)
    assert not table.failed
    rows = {row["label"]: row for row in table.rows}
    assert list(rows) == ["base", "head", "zero_shot", "in_context", "prompt_based by=lora", "prompt_based by=bitfit",
                          "pet", "ipet"]
    assert rows["in_context"]["trainable"] == 0 < rows["pet"]["trainable"] == rows["ipet"]["trainable"]
    assert rows["zero_shot"]["trainable"] == 0 and rows["zero_shot"]["score_std"] == 0
    assert rows["prompt_based by=lora"]["trainable"] == 9216 and rows["prompt_based by=lora"]["merged_ms"]
    spec = json.loads((tmp_path / "out" / "prompt_based-by=lora-seed1" / "run.json").read_text())
    assert spec["template"][0] == PATTERNS["sentiment"][0][0] and spec["shots"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "head-seed0" / RESULT).read_text())["steps"] == 2


def test_tuning_leaves_out_what_trains_nothing(tmp_path):
    table = compare(None, "toy:sentiment", ["zero_shot", "prompt_based"], 1, tmp_path / "out", {"shots": 2, "epochs": 1},
                    tune=True, jobs=2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not table.failed and [each["label"] for each in results["tuning"]] == ["prompt_based"]
    middle = GENTLE * default_lr("full", "toy:encoder")  # the rates are around the run's own
    assert [each["lr"] for each in results["tuning"][0]["tried"]] == pytest.approx([0.3 * middle, middle, 3 * middle])


def test_a_strategy_that_is_only_swept_has_the_toy_tasks_prompts_too(tmp_path):
    table = compare(None, "toy:sentiment", ["head"], 1, tmp_path / "out", {"shots": 1, "epochs": 1},
                    sweeps={"prompt_based.by": ["output"]}, jobs=2)
    assert not table.failed and [row["label"] for row in table.rows] == ["base", "head", "prompt_based by=output"]


def test_templates_and_verbalizers_are_paired():
    run = lambda t, v: Run("m", "d", "pet", template=t, verbalizer=v)
    assert [(t.pattern, v.words) for t, v in pairs_of(run(["{mask}"], ["a=x,b=y", "c=x,d=y"]), None)] == [
        ("{mask}", {"x": ["a"], "y": ["b"]}), ("{mask}", {"x": ["c"], "y": ["d"]})]
    assert [t.pattern for t, _ in pairs_of(run(["{mask}", "{mask} !"], ["a=x,b=y"]), None)] == ["{mask}", "{mask} !"]
    with pytest.raises(ValueError, match="verbalizer: 2 templates go with 1 verbalizer or with 2, got 3"):
        pairs_of(run(["{mask}", "{mask} !"], ["a=x,b=y"] * 3), None)
    templates, verbalizers = toy_prompts("rating")
    assert len(templates) == len(verbalizers) == 3 and verbalizers[0] == "terrible=terrible,bad=bad,good=good,great=great"
    with pytest.raises(ValueError, match="template: there are prompts of the package's own for sentiment, .*; for text give"):
        toy_prompts("text")


@pytest.mark.parametrize("method, change, message", [
    ("zero_shot", {"template": None}, "template: zero_shot asks through a template and reads the answer by a verbalizer"),
    ("pet", {"verbalizer": None}, "verbalizer: pet asks through a template"),
    ("pet", {"unlabelled": None}, "unlabelled: pet learns from raw text; give --unlabelled PATH"),
    ("ipet", {"unlabelled": "nowhere"}, "nowhere: no such file or folder"),
    ("prompt_based", {"options": {"by": "loora"}}, "by: expected a method among full, .*, got 'loora'"),
    ("zero_shot", {"verbalizer": ["bad=negative"]}, "verbalizer: the class 'positive' has no word"),
    ("zero_shot", {"verbalizer": ["bad=negative,wonderfully=positive"]}, "verbalizer: 'wonderfully' is not one token"),
    ("prompt_based", {"shots": 999}, "shots: the class 'negative' has .* training examples"),
    ("zero_shot", {"task": "lm"}, "zero_shot: a strategy classifies texts; use --task classify"),
    ("zero_shot", {"model": "headless"}, "template: headless has no language-model head, which fills in the gap"),
    ("pet", {"model": "headless"}, "template: headless has no language-model head"),
])
def test_what_is_missing_is_said_before_anything_is_trained(method, change, message, folder, tmp_path):
    if "model" in change:
        save_pretrained(load_pretrained("toy:encoder", task="none"), tmp_path / "headless", tokenizer_from="toy:encoder")
        change = {"model": str(tmp_path / "headless")}
    with pytest.raises(ValueError, match=message):
        execute(run_of(folder, method, **change), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_no_examples_leave_nothing_to_learn():
    for method in ("lora", "prompt_based", "in_context"):
        with pytest.raises(ValueError, match=f"shots: {method} learns from labelled examples; "
                                             "expected at least 1 of each class, got 0"):
            Run("m", "d", method, shots=0)
    assert Run("toy:encoder", "d", "pet", shots=0).shots == 0
