"""The third kind of work: what is in a batch, where a target ends, what is written and its scores, against slow definitions."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import no_grad
from minipeft.data import Source
from minipeft.models import TransformerConfig
from minipeft.training import Sequence2Sequence, end_tokens, fit, text_scores
from minipeft.training.seq2seq import limited

END = 3


def work_on(small, sources, max_length=10, max_target_length=7, batch_size=4, ends=(END,), **options):
    return Sequence2Sequence(small.TOKENIZER, sources, ends, max_length, max_target_length, batch_size, **options)


def plain(small, text):
    return small.TOKENIZER.encode(text, add_special_tokens=False)


def pairs_of(sources):
    return [(source.text, reference) for source in sources for reference in source.references]


# ---- batches ---------------------------------------------------------------------------------------------------


def test_a_batch_of_sources_and_targets(small):
    splits = {"train": [Source("good film", ("a film", "good")), Source("bad", ("a good film",))]}
    batch = work_on(small, splits).collate(np.array([2, 1, 0]))
    encode, cls, sep = (lambda text: plain(small, text)), *small.TOKENIZER.encode("")
    assert batch.input_ids.tolist() == [[cls, *encode("bad"), sep, 0], *[[cls, *encode("good film"), sep]] * 2]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1] * 4, [1] * 4]
    assert batch.labels.tolist() == [[*encode("a good film"), END], [*encode("good"), END, -100, -100],
                                     [*encode("a film"), END, -100]]
    assert work_on(small, splits).weight(batch) == 4 + 2 + 3


@given(text=st.lists(st.sampled_from("good bad film the never laughing".split()), max_size=9).map(" ".join),
       longest=st.integers(2, 8))
def test_every_target_ends_and_is_the_text_before_it(small, text, longest):
    work = work_on(small, {"train": [Source("a", (text,))]}, max_target_length=longest)
    (target,), ids = work.targets["train"], plain(small, text)
    assert target.ids == [*ids[:longest - 1], END] and len(target.types) == len(target.ids) <= longest
    assert work.truncated_targets == (len(ids) >= longest)


def test_a_target_is_what_t5s_own_tokenizer_makes_of_it(tmp_path):
    """</s> stands behind a text once, whether the tokenizer puts it there or not."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "compare" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    made = []
    for ending in (True, False):
        tokenizer = tiny.t5_tokenizer(["film[good]", "the film is good"], ending)
        work = Sequence2Sequence(tokenizer, {"train": [Source("film[good]", ("the film is good",))]}, [1], 20, 20, 4)
        made.append((work.encodings["train"][0].ids, work.targets["train"][0].ids))
    (with_end, target), (without, same) = made
    assert target == same == tiny.t5_tokenizer(["film[good]", "the film is good"]).encode("the film is good")
    assert target.count(1) == 1 and with_end == [*without, 1]


def test_cut_texts_are_counted_once_a_source(small):
    train = [Source("good " * 9, ("bad",) * 3), Source("good " * 8, ("bad " * 6, "bad " * 7))]
    splits = {"train": train, "dev": [Source("bad " * 9, ())]}
    work = work_on(small, splits)  # 10 tokens with [CLS] and [SEP]; 7 with the end
    assert (work.truncated, work.truncated_targets) == (2, 1)
    assert [len(e.ids) for e in work.targets["train"]] == [2, 2, 2, 7, 7] and len(work.encodings["train"]) == 5


@given(limit=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_has_each_pair_once(small, limit, size, seed):
    work = work_on(small, {"train": small.sources(14, 1)}, batch_size=size, train_limit=limit)
    count, batches = min(limit, len(pairs_of(small.sources(14, 1)))), work.training_batches(np.random.default_rng(seed))
    assert len(batches) == work.number_of_batches() == -(-count // size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))


def test_a_limit_counts_pairs_and_draws_the_same_every_time(small):
    sources = small.sources(14, 1)
    few = limited(sources, 6)
    assert few == limited(sources, 6) != limited(sources, 6, seed=1) and len(pairs_of(few)) == 6
    rest = iter(pairs_of(sources))
    assert all(pair in rest for pair in pairs_of(few)) and all(source.references for source in few)
    assert limited(sources, 1000) == limited(sources, None) == sources
    work = work_on(small, {"train": sources, "dev": small.sources(8, 2)}, train_limit=6)
    assert len(work.targets["train"]) == 6 and len(work.targets["dev"]) == len(pairs_of(small.sources(8, 2)))


# ---- losses and scores -----------------------------------------------------------------------------------------


def slow_loss(small, model, source, reference):
    """Nats of each token of a target, one pass for each, with no padding and no batch."""
    ids, target, losses = np.array([small.TOKENIZER.encode(source)]), [*plain(small, reference), END], []
    for i, token in enumerate(target):
        with no_grad():
            z = model(ids, decoder_input_ids=np.array([[0, *target[:i]]])).logits.data[0, -1]
        losses.append(math.log(np.exp(z - z[token]).sum()))
    return losses


def test_the_evaluation_loss_token_by_token(small):
    model, sources = small.make("seq2seq").astype(np.float64), small.sources(6, 2)
    losses = sum((slow_loss(small, model, *pair) for pair in pairs_of(sources)), [])
    for size in (1, 3, 50):
        work = work_on(small, {"dev": sources}, 40, 40, batch_size=size, label_smoothing=0.3)
        assert work.evaluate(model, "dev")["loss"] == pytest.approx(np.mean(losses), rel=1e-9)  # smoothing is for training


def test_label_smoothing_spreads_over_the_vocabulary(small):
    model, work = small.make("seq2seq").astype(np.float64), small.make_work("seq2seq", label_smoothing=0.2)
    batch = work.collate(np.arange(5))
    z = model(batch.input_ids, batch.attention_mask, labels=batch.labels).logits.data
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    each = [0.8 * log_p[r, c, batch.labels[r, c]] + 0.2 * log_p[r, c].mean() for r, c in zip(*np.nonzero(batch.labels != -100))]
    assert work.loss(model, batch).item() == pytest.approx(-np.mean(each), rel=1e-9)


def slow_text(small, model, source, most, ends=(END,)):
    """What is written for one source alone, token by token, without a cache."""
    ids, written = np.array([small.TOKENIZER.encode(source)]), []
    while len(written) < most:
        with no_grad():
            token = int(model(ids, decoder_input_ids=np.array([[0, *written]])).logits.data[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return small.TOKENIZER.decode(written)


@pytest.fixture(scope="module")
def writer(small):
    """A model that has learnt enough to write different texts of different lengths."""
    model = small.make("seq2seq")
    settings = small.settings(epochs=6, accumulate=1, lr=0.03)
    fit(model, dict(model.named_parameters()), small.make_work("seq2seq", train=60), settings)
    return model.astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_each_source_is_written_for_once_and_in_order(small, writer, batch_size):
    model, sources = writer, [*small.sources(9, 2), Source("never")]
    expected = [slow_text(small, model, source.text, 7) for source in sources]
    work = work_on(small, {"test": sources}, 40, batch_size=batch_size)
    assert work.write(model, "test") == expected and len(set(expected)) > 4
    assert any(len(plain(small, text)) < 7 for text in expected) and any(len(plain(small, text)) == 7 for text in expected)


def test_any_of_several_end_tokens_ends_a_text(small, writer):
    model, sources = writer, small.sources(9, 2)
    longest = max((plain(small, slow_text(small, model, source.text, 7)) for source in sources), key=len)
    ends = (END, longest[2])
    work = work_on(small, {"test": sources}, 40, ends=ends)
    assert work.write(model, "test") == [slow_text(small, model, source.text, 7, ends) for source in sources]
    assert all(target.ids[-1] == END for target in work.targets["test"])


def test_scores_are_over_all_references_of_the_sources_that_have_some(small):
    sources = [Source("a", ("good film", "the film")), Source("b"), Source("c", ("bad",))]
    work = work_on(small, {"test": sources}, metric="exact")
    written = ["the film", "whatever", "dull"]
    scores = work.scores(written, "test")
    assert scores == {"score": 0.5, **text_scores(["the film", "dull"], [("good film", "the film"), ("bad",)])}
    other = work_on(small, {"test": sources}, metric="rouge_l").scores(written, "test")
    assert scores["exact"] == 0.5 and other["score"] == scores["rouge_l"]
    with pytest.raises(ValueError, match="zip"):
        work.scores(written[:2], "test")


def test_an_evaluation_is_of_what_is_written(small):
    model, work = small.make("seq2seq"), small.make_work("seq2seq")
    scores = work.evaluate(model, "dev")
    expected = text_scores(work.write(model, "dev"), [source.references for source in small.sources(8, 2)])
    assert list(scores) == ["score", "bleu", "rouge_l", "exact", "loss"] and {**scores, **expected} == scores
    assert scores["score"] == scores["bleu"] and math.isfinite(scores["loss"])
    assert work.evaluate(model, "test") == {} == work_on(small, {"test": [Source("a")]}).evaluate(model, "test")


def test_progress_counts_every_text(small):
    work, seen = small.make_work("seq2seq", batch_size=2), []
    work.progress = lambda done, total: seen.append((done, total))
    work.evaluate(small.make("seq2seq"), "dev")
    sources = small.sources(8, 2)
    total, pairs = len(pairs_of(sources)) + len(sources), len(pairs_of(sources))
    counts = [done for done, _ in seen]
    assert counts[0] == 0 and counts[-1] == total and counts == sorted(counts) and pairs in counts
    assert {each for _, each in seen} == {total}
    assert len(seen) == -(-pairs // 2) + 1 + -(-len(sources) // 4)
    seen.clear()
    work.write(small.make("seq2seq"), "dev")
    assert seen[0] == (0, len(sources)) and seen[-1] == (len(sources), len(sources))


# ---- faults ----------------------------------------------------------------------------------------------------


def test_where_a_text_ends():
    config = lambda eos: TransformerConfig("t5", 9, 8, 1, 1, 8, 40, eos_token_id=eos, num_decoder_layers=1)
    tokenizer = lambda eos: SimpleNamespace(eos_id=eos)
    assert end_tokens(config(1), tokenizer(5)) == [1] and end_tokens(config((4, 2)), tokenizer(None)) == [4, 2]
    assert end_tokens(config(None), tokenizer(5)) == end_tokens(config(9), tokenizer(5)) == [5]
    for eos, other in ((None, None), (9, None), (-1, 30)):
        with pytest.raises(ValueError, match="^" + re.escape(
                "task seq2seq: there is no end token, so that no text would end; expected an eos_token_id in the model's "
                "config.json, a number below 9, or an eos_token in its tokenizer_config.json") + "$"):
            end_tokens(config(eos), tokenizer(other))


@pytest.mark.parametrize("options, message", [
    ({"metric": "f1"}, "metric: expected one of bleu, rouge_l, exact, got 'f1'"),
    ({"bleu_tokenizer": "spm"}, "bleu_tokenizer: expected one of 13a, intl, zh, char, none, got 'spm'"),
    ({"max_target_length": 1}, "max_target_length: expected at least 2, a token and the end token, got 1"),
    ({"max_length": 2}, "max_length: 2 tokens leave no room for text beside 2 special tokens"),
])
def test_settings_that_cannot_be(small, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        work_on(small, {"train": [Source("a", ("b",))]}, **options)


def test_libraries_are_missed_before_training_and_only_where_something_is_scored(small, monkeypatch):
    from minipeft.training import seq2seq

    def missing():
        raise ValueError("missing")

    monkeypatch.setattr(seq2seq, "check_libraries", missing)
    work_on(small, {"train": [Source("a", ("b",))], "test": [Source("a")]})
    with pytest.raises(ValueError, match="^missing$"):
        work_on(small, {"train": [Source("a", ("b",))], "dev": [Source("a", ("b",))]})
