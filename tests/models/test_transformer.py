"""What holds for every model: padding, poolings, dropout, positions, hidden states, heads and messages."""

import re

import numpy as np
import pytest

from minipeft.kernels import IGNORE
from minipeft.models import ClassificationHead, Encoder, TransformerConfig
from minipeft.models.config import positions_of

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
KINDS = [("bert", None, None), ("bert", "mlm", None), ("gpt2", "lm", None), ("llama", "lm", None), ("llama tied", "lm", None)]
POOLED = [("bert", "mean"), ("bert", "cls"), ("bert", "pooler"), ("bert", "last"), ("gpt2", "last"), ("gpt2", "mean"),
          ("llama", "last")]


def what(output):
    return (output.logits if output.logits is not None else output.last_hidden_state).data


# ---- padding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family,task,pooling", KINDS + [(f, "classify", p) for f, p in POOLED])
@pytest.mark.parametrize("padding", [1, 7])
def test_padding_on_the_right_changes_nothing(family, task, pooling, padding, make, backend):
    model = make(family, task, pooling)
    alone = what(model(IDS))
    padded = np.concatenate([IDS, np.full((2, padding), 7)], axis=1)  # ids that mean something, hidden by the mask
    mask = np.concatenate([np.ones_like(IDS), np.zeros((2, padding), int)], axis=1)
    got = what(model(padded, attention_mask=mask))
    if task != "classify":
        got = got[:, :5]
    np.testing.assert_allclose(got, alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family,task,pooling", KINDS[2:] + [("gpt2", "classify", "last"), ("llama", "classify", "mean")])
def test_padding_on_the_left_changes_nothing_in_decoders(family, task, pooling, make):
    model = make(family, task, pooling)
    alone = what(model(IDS))
    padded, mask = np.concatenate([np.full((2, 3), 7), IDS], axis=1), np.array([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    got = what(model(padded, attention_mask=mask))
    np.testing.assert_allclose(got if task == "classify" else got[:, 3:], alone, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family,pooling", POOLED)
def test_examples_in_a_batch_do_not_see_each_other(family, pooling, make):
    model = make(family, "classify", pooling)
    ids = np.array([[3, 1, 4, 0, 0], [9, 2, 6, 5, 3], [7, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    together = model(ids, attention_mask=mask).logits.data
    for row, length in enumerate((3, 5, 1)):
        np.testing.assert_allclose(model(ids[row:row + 1, :length]).logits.data[0], together[row], rtol=2e-5, atol=2e-5)


def test_masks_of_every_type_are_the_same_mask(make):
    model, mask = make("bert", "classify", "mean"), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    outputs = [model(IDS, attention_mask=kind).logits.data
               for kind in (mask, mask.astype(bool), mask.astype(float), mask.tolist())]
    assert all((o == outputs[0]).all() for o in outputs)
    assert (model(IDS, attention_mask=np.ones_like(IDS)).logits.data == model(IDS).logits.data).all()


def test_a_decoder_sees_only_what_came_before_and_an_encoder_everything(make):
    later = IDS.copy()
    later[:, 3] = 8
    for family, task in (("gpt2", "lm"), ("llama", "lm"), ("bert", "mlm")):
        model = make(family, task)
        moved = np.abs(model(IDS).logits.data - model(later).logits.data).max(axis=(0, 2)) > 1e-4
        assert moved.tolist() == ([True] * 5 if family == "bert" else [False] * 3 + [True] * 2)


# ---- poolings ---------------------------------------------------------------------------------------------------


def test_poolings_by_a_plain_loop(make, rng):
    states, mask = rng.standard_normal((3, 4, 12)).astype(np.float32), np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]])
    from minipeft.autograd import Tensor
    for virtual in (0, 1):
        for pooling in ("mean", "cls", "pooler", "last"):
            head = make("bert", "classify", pooling).head
            got = head.pool(Tensor(states), mask, virtual).data
            for b in range(3):
                real = [t for t in range(virtual, 4) if mask[b, t]]
                p = dict(head.named_parameters())
                expected = {"mean": states[b, real].mean(axis=0), "cls": states[b, virtual], "last": states[b, real[-1]],
                            "pooler": np.tanh(states[b, 0] @ p["pooler.weight"].data + p["pooler.bias"].data)
                            if pooling == "pooler" else None}
                np.testing.assert_allclose(got[b], expected[pooling], rtol=1e-5, atol=1e-6)
            without_mask = head.pool(Tensor(states), None, virtual).data
            np.testing.assert_allclose(without_mask, head.pool(Tensor(states), np.ones((3, 4)), virtual).data, rtol=1e-6)


def test_virtual_tokens_are_skipped_by_every_head(make, rng):
    """Two places in front that carry no text: loss and logits are those of the states behind them."""
    from minipeft.autograd import Tensor
    states = rng.standard_normal((2, 7, 12)).astype(np.float32)
    for family, task, labels in (("gpt2", "lm", IDS), ("bert", "mlm", IDS)):
        head = make(family, task).head
        full, cut = Tensor(states), Tensor(states[:, 2:].copy())
        np.testing.assert_allclose(head(full, None, 2).data, head(cut, None, 0).data, rtol=1e-5)
        assert head.loss(full, head(full, None, 2), labels, 2).item() == pytest.approx(
            head.loss(cut, head(cut, None, 0), labels, 0).item(), rel=1e-5)


# ---- losses -----------------------------------------------------------------------------------------------------


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def test_language_model_loss_is_that_of_the_next_token(make):
    model = make("gpt2", "lm", dtype=np.float64)
    labels = IDS.copy()
    labels[0, 2] = IGNORE
    output = model(IDS, labels=labels)
    log_p = log_softmax(output.logits.data)
    terms = [-log_p[b, t, labels[b, t + 1]] for b in range(2) for t in range(4) if labels[b, t + 1] != IGNORE]
    assert len(terms) == 7 and output.loss.item() == pytest.approx(np.mean(terms))


def test_masked_loss_counts_the_labelled_places_and_logits_come_when_read(make, monkeypatch):
    model = make("bert", "mlm", dtype=np.float64)
    labels = np.full_like(IDS, IGNORE)
    labels[0, 1], labels[1, 4] = 6, 2
    projected = []
    project = type(model.head).project
    monkeypatch.setattr(type(model.head), "project", lambda self, states: projected.append(states.shape) or project(self, states))
    output = model(IDS, labels=labels)
    assert projected == [(2, 12)]  # two places out of ten
    log_p = log_softmax(output.logits.data)
    assert projected == [(2, 12), (2, 5, 12)]
    assert output.logits is output.logits and len(projected) == 2
    assert output.loss.item() == pytest.approx(-(log_p[0, 1, 6] + log_p[1, 4, 2]) / 2)
    assert model(IDS, labels=np.full_like(IDS, IGNORE)).loss.item() == 0


def test_an_untouched_head_is_never_computed(make, monkeypatch):
    model = make("bert", "classify", "mean")
    monkeypatch.setattr(model.head, "forward", lambda *args: 1 / 0)
    output = model(IDS)
    assert output.last_hidden_state.shape == (2, 5, 12) and output.loss is None
    with pytest.raises(ZeroDivisionError):
        output.logits


def test_a_model_without_a_head_has_no_logits(make):
    output = make("bert")(IDS)
    assert output.logits is None and output.loss is None and output.hidden_states is None


def test_tied_output_map_is_the_table_of_word_vectors(make):
    for family in ("gpt2", "llama tied"):
        model = make(family, "lm")
        assert (model.head.output.tied is model.embed.tokens.weight
                and not [p for p, _ in model.named_parameters() if p.startswith("head")])
        states = model(IDS).last_hidden_state.data
        np.testing.assert_allclose(model(IDS).logits.data, states @ model.embed.tokens.weight.data.T, rtol=1e-5, atol=1e-5)
    assert [p for p, _ in make("llama", "lm").named_parameters() if p.startswith("head")] == ["head.output.weight"]


# ---- hidden states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_hidden_states_are_those_before_each_block_and_the_last(family, make):
    model = make(family)
    output = model(IDS, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert output.hidden_states[-1] is output.last_hidden_state
    positions = model.positions(5)
    x = model.embed(model.embed.tokens(IDS)[0], positions)
    for i, block in enumerate(model.blocks):
        assert (output.hidden_states[i].data == x.data).all()
        x = block(x, None, positions)
    np.testing.assert_allclose(output.last_hidden_state.data, (x if family == "bert" else model.final_norm(x)).data)


def test_sentence_types_matter_and_default_to_the_first(make):
    model = make("bert")
    plain = model(IDS).last_hidden_state.data
    assert (model(IDS, token_type_ids=np.zeros_like(IDS)).last_hidden_state.data == plain).all()
    assert np.abs(model(IDS, token_type_ids=np.ones_like(IDS)).last_hidden_state.data - plain).max() > 0.01
    decoder = make("gpt2")
    assert (decoder(IDS, token_type_ids=np.ones_like(IDS)).last_hidden_state.data == decoder(IDS).last_hidden_state.data).all()


# ---- positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask,past,expected", [
    (None, 0, [[0, 1, 2]]), (None, 4, [[4, 5, 6]]),
    ([[1, 1, 1], [1, 1, 0]], 0, [[0, 1, 2], [0, 1, 1]]),
    ([[0, 0, 1], [0, 1, 1]], 0, [[0, 0, 0], [0, 0, 1]]),
    ([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], 2, [[1, 2, 3], [2, 3, 4]]),
])
def test_positions_count_real_tokens(mask, past, expected):
    assert positions_of(3, None if mask is None else np.array(mask), past).tolist() == expected


# ---- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family,task,labels", [("bert", "classify", np.array([0, 2])), ("gpt2", "lm", IDS),
                                                ("llama", "lm", IDS)])
@pytest.mark.parametrize("where", ["hidden_dropout", "attention_dropout", "embedding_dropout"])
def test_dropout_is_a_function_of_the_seed_and_off_in_evaluation(family, task, labels, where, make):
    model = make(family, task, "mean" if task == "classify" else None, **{where: 0.3})
    plain = model(IDS, labels=labels).loss.item()
    losses = [model.train(np.random.default_rng(seed))(IDS, labels=labels).loss.item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and losses[0] != plain
    assert model.eval()(IDS, labels=labels).loss.item() == plain


def test_without_dropout_training_is_evaluation(make):
    model = make("gpt2", "lm")
    assert (model.train(np.random.default_rng(0))(IDS).logits.data == model.eval()(IDS).logits.data).all()


# ---- the config -------------------------------------------------------------------------------------------------


def fields(**changes):
    return {"model_type": "llama", "vocab_size": 5, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3,
            "intermediate_size": 4, "max_position_embeddings": 6} | changes


@pytest.mark.parametrize("changes,message", [
    ({"num_attention_heads": 5}, "config: hidden_size 12 is not a multiple of num_attention_heads 5"),
    ({"num_key_value_heads": 2}, "config: num_attention_heads 3 is not a multiple of num_key_value_heads 2"),
    ({"head_dim": 5}, "config: rotary positions need an even head_dim, got 5"),
])
def test_a_config_that_contradicts_itself(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformerConfig(**fields(**changes))


def test_config_defaults_and_families():
    llama, bert, gpt2 = (TransformerConfig(**fields(model_type=name)) for name in ("llama", "bert", "gpt2"))
    assert (llama.num_key_value_heads, llama.head_dim) == (3, 4)
    assert (llama.causal, llama.pre_norm, llama.rotary, llama.gated) == (True, True, True, True)
    assert (gpt2.causal, gpt2.pre_norm, gpt2.rotary, gpt2.gated) == (True, True, False, False)
    assert (bert.causal, bert.pre_norm, bert.rotary, bert.gated) == (False, False, False, False)
    assert llama.with_(vocab_size=9).vocab_size == 9 and llama.vocab_size == 5


def test_initial_weights_are_a_function_of_the_seed(make):
    a, b, c = (dict(make("llama", "lm", seed=seed).named_parameters()) for seed in (0, 0, 1))
    assert all((a[path].data == b[path].data).all() for path in a)
    assert any((a[path].data != c[path].data).any() for path in a)


# ---- messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call,message", [
    (lambda make: make("bert")(IDS, labels=[0, 1]), "labels: this model has no head to compute a loss with; load it with a task"),
    (lambda make: make("gpt2", "lm")(np.zeros((1, 25), int)),
     "the input is 25 tokens long, this model has positions for 24; truncate it"),
    (lambda make: make("bert")(np.zeros((1, 25), int)),
     "the input is 25 tokens long, this model has positions for 24; truncate it"),
    (lambda make: make("bert")(IDS, attention_mask=np.ones((2, 4))), "attention_mask: expected shape (2, 5), got (2, 4)"),
    (lambda make: make("bert")(IDS, attention_mask=np.ones(5)), "attention_mask: expected shape (2, 5), got (5,)"),
    (lambda make: make("bert")(IDS, token_type_ids=IDS[:, :3]),
     "token_type_ids: expected integers of shape (2, 5), got int64 of shape (2, 3)"),
    (lambda make: make("bert")(IDS[0]), "input_ids: expected integers of shape (batch, time), got int64 of shape (5,)"),
    (lambda make: make("bert")(IDS * 1.0), "input_ids: expected integers of shape (batch, time), got float64 of shape (2, 5)"),
    (lambda make: make("bert")(IDS + 10), "embedding: id 19 is outside the table's 0..12"),
    (lambda make: make("bert")(-IDS), "embedding: id -9 is outside the table's 0..12"),
    (lambda make: make("bert", "classify", "mean")(IDS, labels=[0, 3]), "cross_entropy: label 3 is outside 0..2"),
    (lambda make: make("bert", "classify", "mean")(IDS, labels=[0, 1, 2]),
     "labels: expected integers of shape (2,), got int64 of shape (3,)"),
    (lambda make: make("bert", "classify", "mean")(IDS, labels=[0.0, 1.0]),
     "labels: expected integers of shape (2,), got float64 of shape (2,)"),
    (lambda make: make("gpt2", "lm")(IDS, labels=[0, 1]), "labels: expected integers of shape (2, 5), got int64 of shape (2,)"),
    (lambda make: make("bert", "mlm")(IDS, labels=IDS[:, 1:]),
     "labels: expected integers of shape (2, 5), got int64 of shape (2, 4)"),
    (lambda make: ClassificationHead(4, 2, "max"), "pooling: expected one of mean, cls, pooler, last, got 'max'"),
])
def test_messages(call, message, make):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(make)


def test_rotary_models_take_any_length_and_an_empty_batch_passes(make):
    assert make("llama", "lm")(np.zeros((1, 60), int)).logits.shape == (1, 60, 13)
    assert make("bert", "classify", "mean")(np.zeros((0, 5), int)).logits.shape == (0, 3)


def test_encoders_take_no_cache(make):
    with pytest.raises(TypeError):
        make("bert")(IDS, cache=object())
    assert isinstance(make("bert"), Encoder)
