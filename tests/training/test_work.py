"""The two kinds of work: what is in a batch, which examples are drawn, and scores against slow definitions."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import no_grad
from minipeft.data import Dataset, Example
from minipeft.training import Classification, LanguageModelling


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def classification(small, count=13, **options):
    dataset = Dataset({"train": small.examples(30, 1), "dev": small.examples(count, 2)}, ("no", "yes", "perhaps"))
    return Classification(small.TOKENIZER, dataset, **{"max_length": 10, "batch_size": 4} | options)


# ---- classification --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 40])
def test_probabilities_are_in_the_order_of_the_examples(small, batch_size):
    """Whatever goes into one batch: each text alone, without padding, gives the same row."""
    model, work = small.make("classify").astype(np.float64), classification(small, batch_size=batch_size)
    got = work.predict(model, "dev")
    assert len({len(e.ids) for e in work.encodings["dev"]}) > 4  # or the batches would need no padding
    for e, row in zip(work.encodings["dev"], got, strict=True):
        with no_grad():
            alone = model(np.array([e.ids]), None, np.array([e.types])).logits.data
        np.testing.assert_allclose(row, softmax(alone)[0], rtol=1e-9)
    np.testing.assert_allclose(got.sum(axis=1), 1)


def test_scores_by_their_definitions(small):
    model, work = small.make("classify"), classification(small, metric="f1")
    p, actual = work.predict(model, "dev"), [e.label for e in small.examples(13, 2)]
    scores = work.evaluate(model, "dev")
    assert scores["accuracy"] == pytest.approx(np.mean([int(np.argmax(row)) == a for row, a in zip(p, actual)]))
    assert scores["loss"] == pytest.approx(np.mean([-math.log(row[a]) for row, a in zip(p, actual)]))
    assert scores["score"] == scores["f1"] and set(scores) == {"score", "accuracy", "f1", "matthews", "loss"}
    assert classification(small, metric="matthews").evaluate(model, "dev")["score"] == scores["matthews"]


def test_the_size_of_a_batch_changes_no_score(small):
    model = small.make("classify")
    one, other = (classification(small, batch_size=size).evaluate(model, "dev") for size in (1, 7))
    assert one == pytest.approx(other, rel=1e-5)


def test_the_evaluation_loss_is_the_training_loss_of_the_split(small):
    model, work = small.make("classify").astype(np.float64), classification(small)
    batches = [work.collate(np.arange(i, min(i + 5, 13)), "dev") for i in (0, 5, 10)]
    parts = [(work.loss(model, batch).item(), work.weight(batch)) for batch in batches]
    assert [w for _, w in parts] == [5, 5, 3]
    assert work.evaluate(model, "dev")["loss"] == pytest.approx(sum(v * w for v, w in parts) / 13)


def test_a_very_wrong_answer_has_a_finite_loss(small):
    model = small.make("classify")
    model.head.classifier.bias.data[:] = [0, 0, 500]
    scores = classification(small).evaluate(model, "dev")
    assert math.isfinite(scores["loss"]) and scores["loss"] > 10


def test_splits_that_cannot_be_scored(small):
    model = small.make("classify")
    assert classification(small).evaluate(model, "test") == {}
    test = [Example("good", None, 1), Example("bad")]
    dataset = Dataset({"train": small.examples(4, 1), "dev": [], "test": test}, ("a", "b", "c"))
    work = Classification(small.TOKENIZER, dataset, 10, 4)
    assert work.evaluate(model, "dev") == {} and work.evaluate(model, "test") == {}
    assert work.predict(model, "test").shape == (2, 3) and work.predict(model, "dev").shape == (0, 3)


def test_cut_texts_are_counted_in_every_split(small):
    texts = {"train": ["good", "bad " * 8, "bad " * 9], "dev": ["good " * 9], "test": ["bad"]}
    dataset = Dataset({split: [Example(t, None, 0) for t in ts] for split, ts in texts.items()}, ("a", "b"))
    work = Classification(small.TOKENIZER, dataset, 10, 2)  # [CLS] and [SEP] leave 8
    assert work.truncated == 2
    assert [len(e.ids) for e in work.encodings["train"]] == [3, 10, 10] and len(work.encodings["dev"][0].ids) == 10


def test_pairs_are_read_as_pairs(small):
    dataset = Dataset({"train": [Example("good", "bad film", 0), Example("bad", "good", 1)]}, ("a", "b"))
    work = Classification(small.TOKENIZER, dataset, 10, 2)
    batch = work.collate(np.array([1, 0]))
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]] and batch.labels.tolist() == [1, 0]


def test_an_unknown_metric(small):
    with pytest.raises(ValueError, match="^" + re.escape("metric: expected one of accuracy, f1, matthews, got 'recall'") + "$"):
        classification(small, metric="recall")


# ---- which examples --------------------------------------------------------------------------------------------


@given(limit=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_has_each_example_once(small, limit, size, seed):
    work = classification(small, batch_size=size, train_limit=limit)
    batches = work.training_batches(np.random.default_rng(seed))
    assert len(batches) == work.number_of_batches()
    assert sorted(np.concatenate(batches).tolist()) == list(range(min(limit, 30)))
    assert all(1 <= len(b) <= size for b in batches)


@pytest.mark.parametrize("task", ["classify", "lm"])
def test_a_limit_draws_the_same_examples_every_time(small, task):
    """The seed of a run plays no part; only the seed of the draw, which runs leave alone, does."""
    def chosen(**options):
        work = small.make_work(task, train=40, **options)
        if task == "classify":
            return [[e.ids for e in work.encodings[split]] for split in ("train", "dev")]
        return [work.blocks[split][0].tolist() for split in ("train", "dev")]

    everything, held = chosen()
    some, held_too = chosen(train_limit=9)
    assert [some, held_too] == chosen(train_limit=9) and held_too == held and len(some) == 9
    rest = iter(everything)
    assert all(row in rest for row in some)  # each is found behind the one before: none twice, and in their order
    assert some != everything[:9] and chosen(train_limit=9, seed=1)[0] != some
    assert chosen(train_limit=1000)[0] == everything == chosen(train_limit=len(everything))[0]


def test_a_limit_keeps_texts_and_classes_together(small):
    work, known = classification(small, train_limit=12), {}
    for e in small.examples(30, 1):
        known.setdefault(tuple(small.TOKENIZER.encode(e.text)[:-1][:9]), set()).add(e.label)
    for e, label in zip(work.encodings["train"], work.targets["train"], strict=True):
        assert label in known[tuple(e.ids[:-1])]


# ---- language modelling ----------------------------------------------------------------------------------------

TEXT = "the film is a good bad long dull warm story of people who never laugh again and a film of a story"


def modelling(small, length=7, batch_size=3, stride=None, text=TEXT, **options):
    return LanguageModelling(small.TOKENIZER, {"train": text, "dev": text}, length, batch_size, stride, **options)


def slow_loss(model, ids, length, stride):
    """(nats a token, tokens predicted): each token by a pass over just its own context, with no padding and no batch.

    Blocks begin at 0, stride, 2 stride, ...; a token is predicted in the first block that reaches it.
    """
    losses = []
    for i in range(1, len(ids)):
        start = 0 if i < length else stride * math.ceil((i - length + 1) / stride)
        if start == i and i == len(ids) - 1:
            start -= 1  # a last block of one token is moved back
        if start == i:
            continue  # the first token of a block that overlaps with none
        with no_grad():
            z = model(ids[None, start:i]).logits.data[0, -1]
        losses.append(-math.log(softmax(z)[ids[i]]))
    return float(np.mean(losses)), len(losses)


@pytest.mark.parametrize("length, stride", [(7, None), (7, 7), (7, 3), (7, 1), (16, 5), (2, 1), (2, 2), (5, 4), (12, 11)])
def test_perplexity_token_by_token(small, length, stride):
    model, work = small.make("lm").astype(np.float64), modelling(small, length, stride=stride)
    ids = np.array(small.TOKENIZER.encode(TEXT))
    expected, count = slow_loss(model, ids, length, stride or length)
    scores = work.evaluate(model, "dev")
    assert scores["loss"] == pytest.approx(expected, rel=1e-9) and scores["score"] == pytest.approx(math.exp(expected), rel=1e-9)
    predicted = work.weight(work.collate(np.arange(len(work.blocks["dev"][0])), "dev"))
    assert predicted == count
    assert (stride or length) == length or predicted == len(ids) - 1  # with an overlap, every token but the first


@given(st.integers(2, 60), st.integers(2, 9), st.data())
def test_with_a_stride_each_token_is_predicted_once_and_has_its_context(small, n, length, data):
    stride = data.draw(st.integers(1, length - 1))
    work = modelling(small, length, stride=stride)
    ids = np.arange(n)  # every token is its own place
    from minipeft.data import blocks_of

    work.blocks["dev"] = blocks_of(ids, length, stride)
    batch = work.collate(np.arange(len(work.blocks["dev"][0])), "dev")
    rows, columns = np.nonzero(batch.labels[:, 1:] != -100)
    assert sorted(batch.labels[rows, columns + 1].tolist()) == list(range(1, n))
    context = dict(zip(batch.labels[rows, columns + 1].tolist(), (columns + 1).tolist()))
    assert all(context[i] >= min(i, length - stride) for i in context)


def test_the_size_of_a_batch_changes_no_perplexity(small):
    model = small.make("lm")
    values = [modelling(small, batch_size=size, stride=3).evaluate(model, "dev")["score"] for size in (1, 2, 100)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


def test_padding_has_no_effect_on_a_loss(small):
    model, work = small.make("lm").astype(np.float64), modelling(small, 8)
    last = work.collate(np.array([len(work.blocks["train"][0]) - 1]))
    real = int(last.attention_mask.sum())
    assert real < 8
    before = work.loss(model, last).item()
    alone = model(last.input_ids[:, :real], labels=last.labels[:, :real]).loss.item()
    last.input_ids[:, real:] = 5
    assert work.loss(model, last).item() == pytest.approx(before, rel=1e-12) == pytest.approx(alone, rel=1e-12)
    both = work.collate(np.array([0, len(work.blocks["train"][0]) - 1]))
    first = work.collate(np.array([0]))
    expected = (work.loss(model, first).item() * work.weight(first) + before * work.weight(last)) / work.weight(both)
    assert work.loss(model, both).item() == pytest.approx(expected, rel=1e-12)


def test_training_blocks_do_not_overlap_whatever_the_stride(small):
    work, ids = modelling(small, 6, stride=2), small.TOKENIZER.encode(TEXT)
    rows, labels = work.blocks["train"]
    assert labels[labels != -100].tolist() == ids and len(rows) == -(-len(ids) // 6)
    assert len(work.blocks["dev"][0]) > len(rows)
    batches = work.training_batches(np.random.default_rng(0))
    assert len(batches) == work.number_of_batches() and sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))


def test_a_hopeless_model_has_a_finite_perplexity(small):
    model, work = small.make("lm"), modelling(small)
    for parameter in model.parameters():
        parameter.data *= 300
    scores = work.evaluate(model, "dev")
    assert scores["loss"] > 700 and scores["score"] == math.exp(700)


def test_texts_that_are_too_short(small):
    class Bare:
        def encode(self, text):
            return [3] * len(text)

    with pytest.raises(ValueError, match="^dev: the text has 1 tokens; at least 2 are needed$"):
        LanguageModelling(Bare(), {"train": "abc", "dev": "a"}, 4, 2)
    assert LanguageModelling(Bare(), {"train": "ab"}, 4, 2).evaluate(None, "dev") == {}
    with pytest.raises(ValueError, match="^" + re.escape("stride: expected 1 to 4, the length of a block, got 5")):
        LanguageModelling(Bare(), {"train": "abcdef", "dev": "abcdef"}, 4, 2, stride=5)
