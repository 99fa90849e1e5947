"""The encoder-decoder: what each side sees, what the decoder reads, and its losses and errors."""

import re

import numpy as np
import pytest

from minipeft import use_backend
from minipeft.interop import load_pretrained
from minipeft.models import generate
from minipeft.nn import Wrapper

SOURCE = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
TARGET = np.array([[2, 7, 1], [8, 2, 8]])
both = pytest.mark.parametrize("family", ["t5", "t5 tied"])


def logits(model, source=SOURCE, target=TARGET, **kwargs):
    return model(source, decoder_input_ids=target, **kwargs).logits.data


@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_source_changes_nothing(family, side, make, backend):
    model = make(family, "seq2seq")
    padding, mask = np.full((2, 3), 11), np.ones((2, 5), int)
    order = slice(None) if side == "right" else slice(None, None, -1)
    padded, real = (np.hstack([first, second][order]) for first, second in ((SOURCE, padding), (mask, 0 * padding)))
    np.testing.assert_allclose(logits(model, padded, attention_mask=real), logits(model), rtol=1e-4, atol=1e-4)
    assert np.abs(logits(model, padded) - logits(model)).max() > 1e-3  # unmasked it does


@both
def test_padding_of_the_target_changes_nothing(family, make):
    model = make(family, "seq2seq")
    padded, real = np.hstack([TARGET, TARGET]), np.hstack([np.ones((2, 3)), np.zeros((2, 3))])
    np.testing.assert_allclose(logits(model, target=padded, decoder_attention_mask=real)[:, :3], logits(model),
                               rtol=1e-4, atol=1e-4)
    left = logits(model, target=padded, decoder_attention_mask=real[:, ::-1])
    np.testing.assert_allclose(left[:, 3:], logits(model), rtol=1e-4, atol=1e-4)


@both
def test_the_decoder_sees_the_whole_source_and_the_target_only_behind_it(family, make):
    model, before = make(family, "seq2seq"), logits(make(family, "seq2seq"))
    for place in range(3):
        changed = TARGET.copy()
        changed[:, place] = 12
        difference = np.abs(logits(model, target=changed) - before).max(axis=(0, 2))
        assert (difference[:place] == 0).all() and (difference[place:] > 1e-4).all()
    for place in range(5):
        changed = SOURCE.copy()
        changed[0, place] = 12
        difference = np.abs(logits(model, changed) - before).max(axis=(1, 2))
        assert difference[0] > 1e-4 and difference[1] == 0


@both
def test_distances_matter_and_shifts_do_not(family, make):
    model = make(family)
    states, _ = model.encode(np.array([[3, 1, 4, 4], [1, 3, 4, 4]]))
    assert np.abs(states.data[0, 2] - states.data[1, 2]).max() > 1e-4
    model.encoder.relative.weight.data[:] = 0  # then an encoder cannot tell an order
    states, _ = model.encode(np.array([[3, 1, 4, 4], [1, 3, 4, 4]]))
    np.testing.assert_allclose(states.data[0, 2], states.data[1, 2], atol=1e-5)


def test_what_the_decoder_reads_and_the_loss_that_counts(make):
    model = make("t5", "seq2seq")
    labels = np.array([[2, 7, 1], [8, -100, -100]])
    ids = model.shift_right(labels)
    assert ids.tolist() == [[0, 2, 7], [0, 8, 0]] and labels[1, 1] == -100
    output = model(SOURCE, labels=labels)
    assert (output.logits.data == logits(model, target=ids)).all()
    z = output.logits.data.astype(np.float64)
    p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = -np.mean([p[0, 0, 2], p[0, 1, 7], p[0, 2, 1], p[1, 0, 8]])
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert make("t5", decoder_start_token_id=5).shift_right(labels).tolist() == [[5, 2, 7], [5, 8, 0]]
    assert make("t5", decoder_start_token_id=None, pad_token_id=4).shift_right(labels).tolist() == [[4, 2, 7], [4, 8, 4]]


@both
def test_word_vectors_are_one_table_for_both_sides(family, make):
    model = make(family, "seq2seq")
    assert [path for path, _ in model.named_parameters() if "tokens" in path] == ["embed.tokens.weight"]
    model.encoder.requires_grad_(False)
    output = model(SOURCE, labels=TARGET)
    output.loss.backward()
    read = model.embed.tokens.weight.grad.any(axis=1)
    assert read[SOURCE].all() and read[model.shift_right(TARGET)].all()
    copied = model.copy()
    assert copied.decoder_embed.tokens.weight is copied.embed.tokens.weight is not model.embed.tokens.weight


def test_what_stands_before_the_source_does_not_stand_before_the_target(make):
    """A wrapper that puts two virtual tokens before the text lengthens the source alone."""

    class Before(Wrapper):
        def forward(self, ids, mask=None):
            vectors, mask, _ = self.wrapped(np.hstack([np.full((len(ids), 2), 7), ids]))
            return vectors, mask, 2

    model = make("t5", "seq2seq")
    expected = logits(model, np.hstack([np.full((2, 2), 7), SOURCE]))
    model.replace("embed.tokens", Before(model.get("embed.tokens")))
    assert logits(model).shape == (2, 3, 13) and (logits(model) == expected).all()


def test_hidden_states_are_those_before_each_block_of_the_decoder_and_the_last(make):
    model = make("t5", "seq2seq")
    output = model(SOURCE, decoder_input_ids=TARGET, output_hidden_states=True)
    assert len(output.hidden_states) == 4 and output.hidden_states[-1] is output.last_hidden_state
    assert (output.hidden_states[0].data == model.embed.tokens.weight.data[TARGET]).all()
    assert make("t5")(SOURCE, decoder_input_ids=TARGET).logits is None


@pytest.mark.parametrize("where", ["hidden_dropout", "attention_dropout", "embedding_dropout"])
def test_dropout_is_a_function_of_the_seed_and_off_in_evaluation(where, make):
    model = make("t5", "seq2seq", **{where: 0.3})
    plain = logits(make("t5", "seq2seq"))
    draw = lambda seed: logits(model.train(np.random.default_rng(seed)))
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any() and (draw(1) != plain).any()
    assert (logits(model.eval()) == plain).all()


@both
def test_both_backends_agree(family, make):
    model = make(family, "seq2seq")
    answers = []
    for name in ("numpy", "numba"):
        with use_backend(name):
            answers.append(logits(model))
    np.testing.assert_allclose(*answers, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("call,message", [
    (lambda m: m(SOURCE), "decoder_input_ids: an encoder-decoder needs them, or labels to make them from"),
    (lambda m: m(SOURCE[0], labels=TARGET), "input_ids: expected integers of shape (batch, time), got int64 of shape (5,)"),
    (lambda m: m(SOURCE, decoder_input_ids=TARGET * 1.0),
     "decoder_input_ids: expected integers of shape (batch, time), got float64 of shape (2, 3)"),
    (lambda m: m(SOURCE, decoder_input_ids=TARGET[:1]), "decoder_input_ids: expected 2 rows, as in input_ids, got 1"),
    (lambda m: m(SOURCE, np.ones((2, 4)), labels=TARGET), "attention_mask: expected shape (2, 5), got (2, 4)"),
    (lambda m: m(SOURCE, decoder_input_ids=TARGET, decoder_attention_mask=np.ones((2, 5))),
     "decoder_attention_mask: expected shape (2, 3), got (2, 5)"),
    (lambda m: m(SOURCE, decoder_input_ids=TARGET, labels=TARGET[:, :2]),
     "labels: expected integers of shape (2, 3), got int64 of shape (2, 2)"),
    (lambda m: m(SOURCE, labels=TARGET[0]), "labels: expected integers of shape (batch, time), got int64 of shape (3,)"),
    (lambda m: generate((setattr(m, "head", None), m)[1], SOURCE),
     "generate: this model has no language-model head; load a decoder with task 'lm', T5 with task 'seq2seq'"),
])
def test_messages(call, message, make):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(make("t5", "seq2seq"))


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "t5 tied"])
@pytest.mark.parametrize("seed", range(4))
def test_with_a_cache_the_same_is_written_as_without(family, seed, make):
    model = make(family, "seq2seq", seed=seed, dtype=np.float64)
    rng = np.random.default_rng(seed)
    ids, mask = rng.integers(1, 13, (3, 6)), np.ones((3, 6), bool)
    mask[1, 4:], mask[2, :3] = False, False
    got = generate(model, ids, 7, attention_mask=mask, eos_token_id=99)
    written = model.start_ids(3)
    for _ in range(7):
        z = model(ids, attention_mask=mask, decoder_input_ids=written).logits.data[:, -1]
        written = np.concatenate([written, z.argmax(axis=1)[:, None]], axis=1)
    assert (got == written[:, 1:]).all()
    for row in range(3):
        alone = generate(model, ids[row:row + 1, mask[row]], 7, eos_token_id=99)
        assert (alone == got[row:row + 1]).all()


def test_a_row_ends_with_its_end_token_and_samples_come_from_the_generator(make):
    model = make("t5", "seq2seq")
    ids = np.array([[3, 4, 5], [6, 7, 8]])
    greedy = generate(model, ids, 6, eos_token_id=99)
    end = int(greedy[0, 2])
    short = generate(model, ids, 6, eos_token_id=end)
    stop = int(np.argmax(greedy[0] == end))
    assert (short[0, :stop + 1] == greedy[0, :stop + 1]).all() and (short[0, stop:] == end).all()
    samples = [generate(model, ids, 6, rng=np.random.default_rng(seed), eos_token_id=99) for seed in (0, 0, 1)]
    assert (samples[0] == samples[1]).all() and (samples[0] != samples[2]).any()


def test_greedy_text_is_transformers(shared, peer):
    torch, transformers = peer("torch"), peer("transformers")
    arrays = np.load(shared / "golden/t5.npz")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(shared / "golden/t5").eval()
    model = load_pretrained(shared / "golden/t5", task="seq2seq")
    expected = theirs.generate(torch.tensor(arrays["input_ids"]),
                               attention_mask=torch.tensor(arrays["attention_mask"]).long(), max_new_tokens=12,
                               do_sample=False, num_beams=1, use_cache=False).numpy()[:, 1:]
    got = generate(model, arrays["input_ids"], 12, attention_mask=arrays["attention_mask"])
    for row, want in zip(got, expected):
        stop = np.flatnonzero(want == model.config.eos_token_id)
        length = stop[0] + 1 if len(stop) else len(want)
        assert row[:length].tolist() == want[:length].tolist()


@pytest.mark.parametrize("name", ["prefix", "prompt", "lora", "houlsby", "ia3"])
def test_with_a_method_on_it_the_cache_changes_nothing(name, make):
    from minipeft.methods import METHODS, attach

    model = make("t5", "seq2seq", dtype=np.float64)
    attachment = attach(model, METHODS[name](**({"rank": 2} if name == "lora" else {})))
    rng = np.random.default_rng(3)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape) for path, a in attachment.arrays().items()})
    ids = rng.integers(1, 13, (2, 5))
    got, written = generate(model, ids, 6, eos_token_id=99), model.start_ids(2)
    for _ in range(6):
        z = model(ids, decoder_input_ids=written).logits.data[:, -1]
        written = np.concatenate([written, z.argmax(axis=1)[:, None]], axis=1)
    assert (got == written[:, 1:]).all()
