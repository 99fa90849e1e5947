"""PET and iPET: what they reduce to, the soft labels by hand, who labels for whom and how many, and that raw text helps."""

from dataclasses import replace

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft.data import Dataset, Example, Tokenizer, toy
from minipeft.methods import METHODS
from minipeft.prompting import ClozeClassification, Template, Verbalizer
from minipeft.prompting.auxiliary import WithLanguage, language_work
from minipeft.prompting.pet import RAW, Ensemble, PETSettings, SoftClassification, distil, mean_score
from minipeft.training import Classification, Settings, fit

WORDS = Verbalizer({"negative": "bad", "positive": "good"})
PAIRS = [(Template("{text} it was {mask} ."), WORDS), (Template("{text} all in all , it was {mask} ."), WORDS),
         (Template("{text} it was {mask} ."), Verbalizer({"negative": "terrible", "positive": "great"}))]
ARCHS = pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])


def dataset(labelled=8, raw=40, test=60, seed=3):
    drawn = toy.dataset("sentiment", "medium", seed=seed, train=labelled + raw, dev=10, test=test)
    splits = {"train": drawn.splits["train"][:labelled], "test": drawn.splits["test"]}
    if raw:
        splits[RAW] = [e._replace(label=None) for e in drawn.splits["train"][labelled:]]
    return Dataset(splits, drawn.labels)


def settings(**more):
    training = Settings(lr=5e-3, epochs=3, batch_size=4)
    return PETSettings(training, replace(training, batch_size=8), **more)


def made(arch="encoder", data=None, pairs=PAIRS, method="lora", **more):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    return Ensemble(model, tokenizer, data or dataset(), pairs, lambda *pair: METHODS[method](), 80, settings(**more))


@ARCHS
def test_with_one_pair_and_no_raw_text_it_is_prompt_fine_tuning(arch):
    data = dataset(raw=0)
    ensemble = made(arch, data, PAIRS[:1]).run()
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    work = ClozeClassification(tokenizer, data, model.config, *PAIRS[0], 80, 4)
    attachment = attach(model, METHODS["lora"](), rng=np.random.default_rng([0, 0]))
    fit(model, attachment.named_parameters(), work, ensemble.settings.training)
    assert np.allclose(ensemble.predict("test"), work.predict(model, "test"), atol=1e-12)
    assert ensemble.evaluate("test") == work.evaluate(model, "test")["accuracy"]
    with pytest.raises(ValueError, match="PET: there is no raw text for a classifier to learn from"):
        distil(ensemble, None, None)


def test_soft_labels_are_the_softmax_of_the_mean_logits_at_temperature_2():
    ensemble = made(alpha=0.0)
    ensemble.weights = np.array([1.0, 3.0, 0.5])
    logits = []
    for work in ensemble.works:
        z = np.zeros((40, 2))
        for i in range(40):
            z[i] = work.scores(ensemble.model, work.collate(np.array([i]), RAW)).data
        logits.append(z)
    s = sum(w * z for w, z in zip(ensemble.weights, logits)) / 4.5
    expected = np.exp(s / 2) / np.exp(s / 2).sum(axis=1, keepdims=True)
    assert np.allclose(ensemble.soft_labels(), expected, atol=1e-5)
    assert np.allclose(mean_score(np.array(logits), ensemble.weights), s)


def test_weights_are_the_accuracies_before_training():
    ensemble, even = made(weighted=True), made()
    assert even.weights.tolist() == [1, 1, 1]
    before = [work.evaluate(ensemble.model, "train")["accuracy"] for work in ensemble.works]
    assert ensemble.weights.tolist() == before
    ensemble.train(0, ensemble.labelled)
    assert ensemble.weights.tolist() == before


def test_the_classifier_learns_the_soft_labels():
    data = dataset()
    ensemble = made(data=data).run()
    classifier = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(0))
    attachment, work = distil(ensemble, classifier, METHODS["lora"]())
    assert attachment.model is classifier and set(work.encodings) == {"train", "test"}
    t = ensemble.soft_labels()
    assert np.array_equal(work.collate(np.array([3, 1])).labels, t[[3, 1]])
    batch = work.collate(np.arange(5))
    z = classifier(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    assert work.loss(classifier, batch).item() == pytest.approx(-(t[:5] * log_p).sum(axis=1).mean(), rel=1e-5)
    with attachment.disabled():
        before = work.loss(classifier, work.collate(np.arange(40))).item()
    assert work.loss(classifier, work.collate(np.arange(40))).item() < 0.97 * before
    assert set(work.evaluate(classifier, "test")) >= {"accuracy", "score"}


def test_a_hard_soft_label_is_the_ordinary_loss():
    data = dataset(labelled=20, raw=0)
    model, tokenizer = load_pretrained("toy:encoder", task="classify", labels=data.labels), Tokenizer.from_folder("toy:encoder")
    hard = np.eye(2)[[e.label for e in data.splits["train"]]]
    soft = SoftClassification(tokenizer, data, 60, 8, soft={"train": hard})
    plain = Classification(tokenizer, data, 60, 8)
    indices = np.arange(7)
    losses = [work.loss(model, work.collate(indices)).item() for work in (soft, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_generations_grow_each_class_and_a_pair_is_labelled_by_others():
    ensemble, asked = made(data=dataset(labelled=8, raw=200), generations=2, growth=3.0, share=0.5), []
    lines, train = [], ensemble.train
    ensemble.progress = lines.append

    def watched(number, examples):
        asked.append((number, list(examples)))
        ensemble.trained[number] = False  # nothing is really trained: the untrained model labels

    ensemble.train = watched
    ensemble.run()
    assert [number for number, _ in asked] == [0, 1, 2] * 3 and train is not watched
    have = np.bincount([e.label for e in ensemble.labelled], minlength=2)
    for generation in range(3):
        for _, examples in asked[3 * generation:3 * generation + 3]:
            assert np.bincount([e.label for e in examples]).tolist() == (have * 3**generation).tolist()
            assert examples[:8] == ensemble.labelled
    raw = {e.text for e in ensemble.raw}
    assert all(e.text in raw for _, examples in asked[3:] for e in examples[8:])
    assert "generation 2 of 2: prompt 3 of 3 trained on 72 texts" in lines[-1]


def test_a_pair_has_no_part_in_its_own_labels():
    """Pair 0 is sure that every text is negative, the others think positive: for pair 0 all are positive, for pair 1 negative."""
    ensemble = made(data=dataset(raw=60))
    ensemble.settings.share = 1.0
    log_q = np.log(np.tile([0.2, 0.8], (3, 60, 1)))
    log_q[0] = np.log([0.999, 0.001])
    have = np.bincount([e.label for e in ensemble.labelled], minlength=2)
    # where no text has a class, those that come nearest: here all alike
    first = lambda count: [e.text for e in ensemble.raw[:count]]
    for number, without in ((0, 0), (1, 1), (2, 1)):
        chosen = ensemble._labelled_by_others(log_q, number, 0, np.random.default_rng(0))
        of = lambda label: [e.text for e in chosen if e.label == label]
        assert [len(of(label)) for label in (0, 1)] == (4 * have).tolist()
        assert of(without) == first(4 * have[without]) and of(1 - without) != first(4 * have[1 - without])


@pytest.mark.parametrize("method", ["lora", "fisher_mask"])
def test_each_generation_trains_the_pairs_afresh(method):
    """As if it were the first: from the model as it was, on the texts of that generation; a mask is chosen on the base."""
    ensemble = made(method=method, data=dataset(labelled=4, raw=30), pairs=PAIRS[:2], generations=1, growth=2.0)
    seen, train = [], ensemble.train

    def watched(number, examples):
        seen.append((number, list(examples)))
        train(number, examples)

    ensemble.train = watched
    ensemble.run()
    assert [(number, len(examples)) for number, examples in seen] == [(0, 4), (1, 4), (0, 8), (1, 8)]
    assert sorted(ensemble.model.attachments) == ["pair0", "pair1"]
    alone = made(method=method, data=dataset(labelled=4, raw=30), pairs=PAIRS[:2])
    alone.train(0, seen[2][1])
    assert np.array_equal(alone.log_q("test")[0], ensemble.log_q("test")[0])


def test_pairs_that_train_the_base_itself_have_numbers_of_their_own():
    """Each starts from the base, whatever the others have learned, and keeps what it has learned."""
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    data = dataset(raw=0)
    base = {path: p.data.copy() for path, p in model.named_parameters()}
    ensemble = Ensemble(model, tokenizer, data, PAIRS, lambda *pair: METHODS["full"](), 80, settings()).run()
    alone = load_pretrained("toy:encoder")
    only = Ensemble(alone, tokenizer, data, PAIRS, lambda *pair: METHODS["full"](), 80, settings())
    only.train(2, data.splits["train"])
    only.enter(2)
    ensemble.enter(2)
    last = {path: p.data for path, p in model.named_parameters()}
    assert all(np.array_equal(last[path], p.data) for path, p in alone.named_parameters())
    last = {path: array.copy() for path, array in last.items()}
    ensemble.enter(0)
    assert any(not np.array_equal(last[path], p.data) for path, p in model.named_parameters())
    ensemble.trained[1] = False
    ensemble.enter(1)
    assert all(np.array_equal(base[path], p.data) for path, p in model.named_parameters())


def test_texts_are_drawn_by_confidence():
    ensemble = made(data=dataset(labelled=8, raw=100), pairs=PAIRS[:2])
    q = np.full((100, 2), 0.0)
    q[:50] = [0.99, 0.01]
    q[50:, 1] = np.where(np.arange(50) < 25, 0.98, 0.52)
    q[50:, 0] = 1 - q[50:, 1]
    counts = np.zeros(100)
    for seed in range(300):
        for e in ensemble._labelled_by_others(np.log(np.stack([q, q])), 0, 0, np.random.default_rng(seed)):
            counts[[r.text for r in ensemble.raw].index(e.text)] += 1
    assert counts[50:75].mean() / counts[75:].mean() == pytest.approx(0.98 / 0.52, rel=0.25)


@pytest.mark.parametrize("raw, each", [(100, [40, 40]), (80, [40, 40]), (30, [15, 15]), (1, [0, 0])])
def test_no_more_is_drawn_than_there_is_raw_text(raw, each):
    """Of two classes that want 40 texts each; no text then has both classes if the pair is right about them."""
    ensemble = made(data=dataset(labelled=8, raw=raw), pairs=PAIRS[:2])
    ensemble.labelled = [e._replace(label=number % 2) for number, e in enumerate(ensemble.labelled)]  # four of each
    ensemble.settings.growth = 11.0
    q = np.where((np.arange(raw) % 2 == 0)[:, None], [0.9, 0.1], [0.2, 0.8])
    drawn = ensemble._labelled_by_others(np.log(np.stack([q, q])), 0, 0, np.random.default_rng(0))
    assert np.bincount([e.label for e in drawn], minlength=2).tolist() == each
    assert len({e.text for e in drawn}) == len(drawn)


def test_without_labels_it_starts_from_the_untrained_pairs():
    ensemble = made(data=dataset(labelled=0, raw=60), generations=1)
    seen = []
    ensemble.train = lambda number, examples: seen.append(examples)
    ensemble.run()
    assert [len(examples) for examples in seen] == [10, 10, 10]
    right = {e.text: e.label for e in toy.dataset("sentiment", "medium", seed=3, train=60, dev=10, test=60).splits["train"]}
    assert np.mean([right[e.text] == e.label for examples in seen for e in examples]) > 0.7


@pytest.mark.parametrize("labelled, generations", [(2, 4), (4, 4), (8, 3), (10, 3), (40, 2), (100, 2), (200, 1), (1000, 0),
                                                   (5000, 0), (0, 4)])
def test_the_number_of_generations(labelled, generations):
    """The last one has 1,000 texts or more, and the one before it has not; the first without labels has 10."""
    sizes = [(5 * labelled or 10) * 5**k for k in range(generations)]
    assert not sizes or sizes[-1] >= 1000 > max([labelled, *sizes[:-1]])
    assert settings(generations=None).number_of_generations(labelled) == generations
    assert settings(generations=7).number_of_generations(labelled) == 7 and settings().number_of_generations(labelled) == 0


def test_a_method_has_its_own_rates_and_hooks():
    """LoRA+ trains its two matrices at rates of their own, AdaLoRA spends its budget, in the pairs and in the classifier."""
    data = dataset(labelled=8, raw=10)
    states = {}
    for name in ("lora", "lora_plus"):
        ensemble = made(data=data, pairs=PAIRS[:1], method=name, alpha=0.0)
        ensemble.train(0, ensemble.labelled)
        states[name] = {path: p.data for path, p in ensemble.model.attachments["pair0"].named_parameters().items()}
    moved = [path for path in states["lora"] if not np.array_equal(states["lora"][path], states["lora_plus"][path])]
    assert any(path.endswith(".V") for path in moved)
    ensemble = made(data=data, pairs=PAIRS[:1], method="adalora", alpha=0.0)
    ensemble.train(0, ensemble.labelled)
    classifier = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(0))
    attachment, _ = distil(ensemble, classifier, METHODS["adalora"]())
    for each in (ensemble.model.attachments["pair0"], attachment):
        lambdas = np.concatenate([w.lambdas.data for w in each.wrappers.values() if hasattr(w, "lambdas")])
        assert ((lambdas == 0).sum()
                == len(lambdas) - METHODS["adalora"]().target_rank * sum(hasattr(w, "lambdas") for w in each.wrappers.values()))


@ARCHS
def test_the_auxiliary_loss_is_a_weighted_sum(arch):
    data, model, tokenizer = dataset(), load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    work = ClozeClassification(tokenizer, data, model.config, *PAIRS[0], 80, 4)
    language = language_work(tokenizer, model.config, [e.text for e in data.splits[RAW]], 4, 80)
    both = WithLanguage(work, language, 0.3)
    drawn = both.training_batches(np.random.default_rng(2))
    assert len(drawn) == both.number_of_batches() == 2
    batch = both.collate(drawn[0])
    expected = 0.7 * work.loss(model, batch.task).item() + 0.3 * language.loss(model, batch.language).item()
    assert both.loss(model, batch).item() == pytest.approx(expected, rel=1e-5) and batch.size == 4 == both.weight(batch)
    assert both.evaluate(model, "test") == work.evaluate(model, "test") and both.labels == data.labels
    again = both.training_batches(np.random.default_rng(2))
    assert all(np.array_equal(a[1].input_ids, b[1].input_ids) for a, b in zip(drawn, again))


def test_a_run_is_the_same_twice_and_raw_text_is_read():
    data = dataset()
    first, second, without = made(data=data).run(), made(data=data).run(), made(data=data, alpha=0.0).run()
    assert np.array_equal(first.predict("test"), second.predict("test"))
    assert not np.array_equal(first.predict("test"), without.predict("test"))


def test_empty_texts_are_no_trouble():
    data = Dataset({"train": [Example("", None, 0), Example("the soup was great .", None, 1)], RAW: [Example("")] * 3,
                    "test": [Example("", None, 1)]}, ("negative", "positive"))
    assert made(data=data).run().predict("test").shape == (1, 2)


def test_models_of_a_pair_differ_by_their_seed_alone():
    data = dataset(labelled=8, raw=10)
    ensemble, ordinary = made(data=data, pairs=PAIRS[:2], models=2).run(), made(data=data, pairs=PAIRS[:2]).run()
    log_q = ensemble.log_q("test")  # (4, N, C): pair 0, pair 1, pair 0 again, pair 1 again
    assert np.array_equal(log_q[:2], ordinary.log_q("test")) and len(ensemble.weights) == len(log_q) == 4
    assert not np.array_equal(log_q[2], log_q[0])
    assert [work.template for work in ensemble.works] == [pair[0] for pair in PAIRS[:2] * 2]
