"""Output tuning moves the labels' own columns and no other, and added biases are biases."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.interop import make_model
from minipeft.methods import METHODS, attach
from minipeft.models import TransformerConfig

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SHAPE = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
         "max_position_embeddings": 40, "initializer_range": 0.5}


def make(family="gpt2", task="lm", **more):
    config = TransformerConfig(model_type=family, type_vocab_size=2 if family == "bert" else 0,
                               labels=("a", "b", "c") if task == "classify" else (),
                               pooling="mean" if task == "classify" else None, **SHAPE | more)
    model, rng = make_model(config, task, np.random.default_rng(0)), np.random.default_rng(1)
    for path, p in model.named_parameters():
        if path.endswith("bias"):
            p.data = p.data + rng.standard_normal(p.shape)
    return model.eval().astype(np.float64)


def filled(model, seed=2, **settings):
    """Output tuning moved off zero."""
    attachment, rng = attach(model, METHODS["output"](**settings)), np.random.default_rng(seed)
    attachment.load_arrays({path: rng.standard_normal(a.shape) for path, a in attachment.arrays().items()})
    model.astype(np.float64)
    return attachment, *attachment.arrays().values()


@given(words=st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True), part=st.sampled_from(["embedding", "bias"]),
       tied=st.booleans(), seed=st.integers(0, 99))
def test_the_label_words_logits_move_and_no_others(words, part, tied, seed):
    model = make(tie_word_embeddings=tied)
    base, h = model(IDS).logits.data, model(IDS).last_hidden_state.data
    attachment, learned = filled(model, seed, words=words, part=part)
    expected = base.copy()
    for c, word in enumerate(words):
        expected[..., word] += h @ learned[c] if part == "embedding" else learned[c]
    np.testing.assert_allclose(model(IDS).logits.data, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(model(IDS).last_hidden_state.data, h)  # the words' input vectors stay
    assert (attachment.trainable == len(words) * (8 if part == "embedding" else 1)
            == attachment.method.count(model.config.with_(labels=())))
    model.zero_grad()
    logits = model(IDS).logits
    g = np.random.default_rng(seed).standard_normal(logits.shape)
    logits.backward(g)
    own = next(iter(attachment.named_parameters().values()))
    by_hand = [(g[..., word, None] * h).sum((0, 1)) if part == "embedding" else g[..., word].sum() for word in words]
    np.testing.assert_allclose(own.grad, by_hand, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("part", ["embedding", "bias"])
@pytest.mark.parametrize("family,task,more", [("bert", "classify", {}),
                                              ("gpt2", "lm", {"tie_word_embeddings": False, "head_bias": True}),
                                              ("llama", "lm", {"tie_word_embeddings": False, "head_bias": True})])
def test_it_merges_into_an_output_map_of_its_own(family, task, more, part):
    model = make(family, task, **more)
    base = {path: p.data.copy() for path, p in model.named_parameters()}
    attachment, learned = filled(model, part=part, words=None if task == "classify" else [4, 2])
    unmerged, path = model(IDS).logits.data, "head.classifier" if task == "classify" else "head.output"
    attachment.merge()
    np.testing.assert_allclose(model(IDS).logits.data, unmerged, rtol=1e-10, atol=1e-10)
    now, columns = dict(model.named_parameters()), [0, 1, 2] if task == "classify" else [4, 2]
    kind = "weight" if part == "embedding" else "bias"
    moved = now[f"{path}.{kind}"].data - base[f"{path}.{kind}"]
    np.testing.assert_allclose(moved[..., columns].T, learned, atol=1e-12)
    assert (np.delete(moved, columns, axis=-1) == 0).all()
    attachment.unmerge()
    assert all((p.data == base[p_]).all() for p_, p in model.named_parameters())


@pytest.mark.parametrize("more,part,message", [
    ({}, "embedding", "merge: head.output is a TiedOutput, which has no full-precision weight of its own to put the change into"),
    ({"tie_word_embeddings": False}, "bias", "merge: the output map has no bias to put the labels' into")])
def test_where_it_cannot_be_merged_it_says_why(more, part, message):
    model = make(**more)
    attachment, _ = filled(model, part=part, words=[4, 2])
    before, bits = model(IDS).logits.data, {path: p.data.tobytes() for path, p in model.named_parameters()}
    with pytest.raises(ValueError, match=re.escape(message)):
        attachment.merge()
    assert (model(IDS).logits.data == before).all() and {path: p.data.tobytes() for path, p in model.named_parameters()} == bits
    assert not attachment.merged and attachment.active


@pytest.mark.parametrize("settings,message", [
    ({}, "output: expected words, the label words, as different token ids below 13; got none"), ({"words": [13]}, "below 13"),
    ({"words": [-1]}, "got [-1]"), ({"words": [2, 2]}, "got [2, 2]"), ({"words": []}, "got none"),
    ({"words": [1], "part": "scale"}, "output: part must be embedding or bias, got 'scale'")])
def test_labels_that_cannot_be(settings, message):
    model = make()
    with pytest.raises(ValueError, match=re.escape(message)):
        attach(model, METHODS["output"](**settings))
    assert not model.attachments
    with pytest.raises(ValueError, match="output: this model has no head; load it with a task"):
        attach(make("bert", "none"), METHODS["output"](words=[1]))


@pytest.mark.parametrize("terms", ["all", "two"])
def test_added_biases_make_the_model_that_has_biases(terms):
    none = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False}
    model, with_biases = make("llama", **none), make("llama")
    attachment, rng = attach(model, METHODS["bitfit"](terms=terms, add_zero_biases=True)), np.random.default_rng(3)
    model.astype(np.float64)
    learned = {path: rng.standard_normal(a.shape) for path, a in attachment.arrays().items()}
    attachment.load_arrays(learned)
    weights = dict(model.named_parameters())
    for path, p in with_biases.named_parameters():
        p.data = weights[path].data if path in weights else learned.get(f"{path.removesuffix('.bias')}.b", np.zeros(p.shape))
    np.testing.assert_allclose(model(IDS).logits.data, with_biases(IDS).logits.data, rtol=1e-10, atol=1e-10)
    assert (len(learned) == 2 * (7 if terms == "all" else 3)
            and attachment.method.count(model.config) == sum(a.size for a in learned.values()))
