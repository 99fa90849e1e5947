"""What models are pre-trained on: rows, what is hidden in them, rounds that can be resumed, and held-out losses that repeat."""

import numpy as np
import pytest

from minipeft.data import train_wordpiece
from minipeft.data.corpora import TextCorpus
from minipeft.data.tokenizer import SENTINELS
from minipeft.interop import make_model
from minipeft.kernels import IGNORE
from minipeft.models import TransformerConfig
from minipeft.training import Settings, fit
from minipeft.training.pretraining import CausalLanguageModelling, Draw, MaskedLanguageModelling, SpanCorruption

WORDS = "the cat sat on a mat while dogs ran over green hills and birds sang of old times".split()


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    sentence = lambda: " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(2, 9)))
    return TextCorpus("words", [" ".join(f"{sentence()} ." for _ in range(rng.integers(1, 4))) for _ in range(200)], "words")


@pytest.fixture(scope="module")
def make(corpus):
    """(tokenizer, work) of a family."""
    def make(family, length=24, batch_size=8, per_round=5):
        tokenizer = train_wordpiece(corpus.sample, 200, family)
        args = (tokenizer, corpus, batch_size, per_round, length)
        if family == "t5":
            return tokenizer, SpanCorruption(*args, [tokenizer.id_of(name) for name in SENTINELS])
        return tokenizer, (MaskedLanguageModelling if family == "bert" else CausalLanguageModelling)(*args)
    return make


FAMILIES = pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])


@FAMILIES
def test_a_round_has_its_batches_and_every_row_once(family, make):
    _, work = make(family)
    draws = work.training_batches(np.random.default_rng(1))
    assert len(draws) == work.number_of_batches() == 5
    assert sorted(np.concatenate([draw.rows for draw in draws])) == list(range(40)) and len(work.rows["train"]) == 40
    assert len({draw.seed for draw in draws}) == 5


@FAMILIES
def test_a_draw_is_the_same_batch_whenever_it_is_made(family, make):
    """A run that is resumed within a round makes the later batches alone."""
    _, work = make(family)
    first = work.training_batches(np.random.default_rng(1))
    one = [work.collate(draw) for draw in first]
    again = work.training_batches(np.random.default_rng(1))
    other = work.collate(again[4])
    assert all(np.array_equal(getattr(one[4], name), getattr(other, name)) for name in ("input_ids", "attention_mask", "labels"))
    other = work.collate(Draw(first[4].rows, first[4].seed + 1))
    assert family == "gpt2" or not np.array_equal(one[4].input_ids, other.input_ids)


def test_masked_words_are_restored_by_the_labels(make):
    tokenizer, work = make("bert")
    (draw, *_), rows = work.training_batches(np.random.default_rng(0)), work.rows["train"]
    batch = work.collate(Draw(np.arange(40), draw.seed))
    chosen, real = batch.labels != IGNORE, batch.attention_mask
    whole = np.where(chosen, batch.labels, batch.input_ids)
    assert all(whole[i, :len(e.ids)].tolist() == list(e.ids) and batch.token_type_ids[i, :len(e.ids)].tolist() == list(e.types)
               for i, e in enumerate(rows))
    plain = real & ~np.isin(whole, tokenizer.special_ids)
    assert 0.25 < chosen.sum() / plain.sum() < 0.35 and not (chosen & ~plain).any() and work.weight(batch) == chosen.sum()


def test_half_of_the_longer_texts_are_pairs_cut_between_sentences(make, corpus):
    tokenizer, work = make("bert", length=60)
    work._rows(corpus.sample, np.random.default_rng(0))
    texts = [text for text in corpus.sample if text.count(" .") > 1]
    rows = work._rows(texts, np.random.default_rng(0))
    paired = [e for e in rows if 1 in e.types]
    assert len(rows) == len(texts) and 0.35 < len(paired) / len(rows) < 0.65
    for e in paired:
        middle = e.types.index(1)
        before, after = tokenizer.decode(e.ids[:middle]), tokenizer.decode(e.ids[middle:])
        assert before.endswith(".") and any(text.startswith(before.replace(".", " .")[:9]) for text in texts) and after
        assert e.ids[middle - 1] == tokenizer.id_of("[SEP]") == e.ids[-1] and e.ids[0] == tokenizer.id_of("[CLS]")
    assert {tokenizer.decode(e.ids) for e in rows} == {tokenizer.decode(tokenizer.encode(text)) for text in texts}


def test_the_decoders_blocks_are_the_texts_with_ends_between_them(make, corpus):
    tokenizer, work = make("gpt2", length=10)
    rows = work._rows(corpus.held_out, None)
    stream = [i for e in rows for i in e.ids]
    texts = " ".join(f"{text} <|endoftext|>" for text in corpus.held_out)
    assert stream == tokenizer.encode(texts)[:len(stream)] and {len(e.ids) for e in rows} == {10}
    batch = work.collate(Draw(np.arange(len(rows)), 0), "dev")
    assert (batch.labels == batch.input_ids).all() and work.weight(batch) == 9 * len(rows)


def test_a_corpus_shorter_than_a_block_makes_one_short_block(make):
    _, work = make("gpt2", length=5000)
    (e,) = work.rows["dev"]
    batch = work.collate(Draw(np.array([0]), 0), "dev")
    assert len(e.ids) < 5000 and batch.input_ids.shape == (1, len(e.ids)) and batch.attention_mask.all()


def test_spans_and_what_is_left_are_the_text_and_both_end(make):
    tokenizer, work = make("t5")
    work.training_batches(np.random.default_rng(0))
    batch, sentinels = work.collate(Draw(np.arange(40), 9)), set(work.sentinels)
    for row, e in enumerate(work.rows["train"]):
        source = batch.input_ids[row][batch.attention_mask[row]].tolist()
        target = batch.labels[row][batch.labels[row] != IGNORE].tolist()
        assert source[-1] == target[-1] == tokenizer.eos_id
        spans, name = {}, None
        for token in target[:-1]:
            name = token if token in sentinels else name
            spans.setdefault(name, [])
            if token not in sentinels:
                spans[name].append(token)
        whole = [i for token in source[:-1] for i in (spans[token] if token in sentinels else [token])]
        assert whole == list(e.ids)
    assert work.weight(batch) == (batch.labels != IGNORE).sum()


def model_of(family, tokenizer):
    shape = {"model_type": family, "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_id}
    more = {"bert": {"type_vocab_size": 2}, "gpt2": {},
            "t5": {"num_decoder_layers": 1, "hidden_act": "relu", "attention_bias": False, "attention_out_bias": False,
                   "mlp_bias": False, "initializer_range": 1.0, "decoder_start_token_id": tokenizer.pad_id}}[family]
    task = {"bert": "mlm", "gpt2": "lm", "t5": "seq2seq"}[family]
    return make_model(TransformerConfig(**shape, **more), task, np.random.default_rng(0))


@FAMILIES
def test_the_loop_lowers_the_held_out_loss_and_a_resumed_run_has_the_same_bits(family, make, tmp_path, monkeypatch):
    tokenizer, work = make(family, per_round=10)
    settings = Settings(lr=5e-3, epochs=3, batch_size=8, max_steps=25)
    model = model_of(family, tokenizer)
    before = work.evaluate(model.eval(), "dev")
    history = fit(model, dict(model.named_parameters()), work, settings)
    assert before == work.evaluate(model_of(family, tokenizer).eval(), "dev") and len(history["evaluations"]) == 3
    assert history["evaluations"][-1]["loss"] < before["loss"] - 0.5

    class Stop(Exception):
        pass

    class Display:
        start = evaluated = stop = lambda self, *args: None

        def step(self, loss, examples):
            self.done = getattr(self, "done", 0) + 1
            if self.done == 14:  # within the second round
                raise Stop

    stopped, path = model_of(family, tokenizer), tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(stopped, dict(stopped.named_parameters()), work, Settings(**{**vars(settings), "checkpoint_seconds": 0}),
            checkpoint=path, display=Display())
    resumed = model_of(family, tokenizer)
    _, work = make(family, per_round=10)  # as in another process
    again = fit(resumed, dict(resumed.named_parameters()), work, settings, checkpoint=path, resume=True)
    assert again["losses"] == history["losses"]
    assert all((p.data == q.data).all() for p, q in zip(model.parameters(), resumed.parameters()))
