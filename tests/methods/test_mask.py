"""Masks: which entries are trained, that only they move, and the Fisher information against its definition."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.data import Batch
from minipeft.interop import make_model
from minipeft.methods import METHODS, Full, activate, attach, fisher_importance
from minipeft.methods.fisher import class_logits
from minipeft.methods.targets import linear_paths
from minipeft.models import TransformerConfig
from minipeft.training import SGD

IDS, LABELS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]), np.array([0, 2])


def make(dtype=np.float64, layers=2):
    config = TransformerConfig(model_type="bert", type_vocab_size=2, vocab_size=13, hidden_size=8, num_hidden_layers=layers,
                               num_attention_heads=2, intermediate_size=6, max_position_embeddings=24, initializer_range=0.5,
                               labels=("a", "b", "c"), pooling="mean")
    return make_model(config, "classify", np.random.default_rng(0)).eval().astype(dtype)


def without_classes():
    return make_model(replace(make().config, labels=()), rng=np.random.default_rng(0))


def flat(model):
    """All entries of the blocks' maps, weights and biases, in the order that the masks number them."""
    return np.concatenate([p.data.reshape(-1) for path in linear_paths(model)
                           for p in (model.get(path).weight, model.get(path).bias)])


@given(share=st.floats(0.001, 1), seed=st.integers(0, 10**6))
def test_a_random_mask_has_its_share_of_different_entries(share, seed):
    model = make()
    total = flat(model).size
    attachment = attach(model, METHODS["random_mask"](share=share), rng=np.random.default_rng(seed))
    wrappers = [w for w in attachment.wrappers.values() if hasattr(w, "indices")]
    assert sum(w.delta.size for w in wrappers) == max(1, round(share * total)) == attachment.trainable_without_head
    assert all((np.diff(w.indices) > 0).all() for w in wrappers)
    other = attach(make(), METHODS["random_mask"](share=share), rng=np.random.default_rng(seed))
    assert all((w.indices == o.indices).all() for w, o in zip(wrappers, other.wrappers.values()))


def test_one_step_is_the_masked_step_of_full_fine_tuning():
    whole, masked = make(), make()
    importance = {path: np.random.default_rng(len(path)).random(p.shape) for path, p in masked.named_parameters()}
    full = attach(whole, Full())
    attachment = attach(masked, METHODS["fisher_mask"](share=0.2, importance=importance))
    before = flat(whole)
    for model, one in ((whole, full), (masked, attachment)):
        model(IDS, labels=LABELS).loss.backward()
        SGD(one.named_parameters().values(), lr=0.3).step()
    moved = flat(whole) - before
    scores = np.concatenate([importance[f"{path}.{part}"].reshape(-1) for path in linear_paths(whole)
                             for part in ("weight", "bias")])
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:round(0.2 * len(scores))]] = True
    attachment.merge()
    np.testing.assert_allclose(flat_merged(masked) - before, np.where(chosen, moved, 0), atol=1e-12)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_theta_with_its_changes_is_what_is_merged(names, rng):
    """Alone on a map, where its entries stand in theta itself, and around another mask."""
    model = make()
    attachments = [attach(model, METHODS["random_mask"](share=0.3), rng=rng, name=name) for name in names]
    activate(model, *names)
    plain = model(IDS).logits.data.copy()
    for attachment in attachments:
        for parameter in attachment.named_parameters().values():
            parameter.data[...] += rng.normal(size=parameter.shape)
    logits = model(IDS).logits.data.copy()
    for attachment in attachments:
        attachment.merge()
    np.testing.assert_allclose(model(IDS).logits.data, logits, atol=1e-10)
    assert np.abs(logits - plain).max() > 0.1


def flat_merged(model):
    parameters = dict(model.named_parameters())
    return np.concatenate([parameters[f"{path}.{part}"].data.reshape(-1) for path in linear_paths(model)
                           for part in ("weight", "bias")])


@pytest.mark.parametrize("words", [False, True])
def test_fisher_information_is_the_expected_square_of_the_scores_gradient(words):
    """Of a classifier's classes, and of other scores, such as the label words of a prompt."""
    model, mix = make(layers=1), np.random.default_rng(3).normal(size=(3, 4))
    batches = [Batch(row[None], np.ones((1, 5), bool), np.zeros((1, 5), np.int64), np.array([0])) for row in IDS]
    got = (fisher_importance(model, batches, lambda model, batch: class_logits(model, batch) @ F.Tensor(mix)) if words
           else fisher_importance(model, batches))
    assert not any(p.requires_grad is False for p in model.parameters())
    path = "blocks.0.mlp.up"
    for part in ("weight", "bias"):
        parameter = getattr(model.get(path), part)
        expected, step = np.zeros(parameter.shape), 1e-6

        def log_p(row):
            z = model(row[None]).logits.data[0] @ (mix if words else np.eye(3))
            return z - np.log(np.exp(z).sum())

        for row in IDS:
            p = np.exp(log_p(row))
            for index in np.ndindex(parameter.shape):  # d log p(y) / d theta by finite differences
                logs = []
                for sign in (1, -1):
                    kept = parameter.data[index]
                    parameter.data[index] = kept + sign * step
                    logs.append(log_p(row))
                    parameter.data[index] = kept
                slope = (logs[0] - logs[1]) / (2 * step)
                expected[index] += (p * slope**2).sum() / len(IDS)
        np.testing.assert_allclose(got[f"{path}.{part}"], expected, rtol=1e-4, atol=1e-9)


def test_it_leaves_the_model_as_it_was():
    model = make(np.float32)
    attach(model, METHODS["lora"](rank=2), "lora")
    flags, bits = [p.requires_grad for p in model.parameters()], flat_merged(model).tobytes()
    fisher_importance(model, [Batch(IDS[:1], np.ones((1, 5), bool), np.zeros((1, 5), np.int64), LABELS[:1])])
    assert [p.requires_grad for p in model.parameters()] == flags and flat_merged(model).tobytes() == bits
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("call,message", [
    (lambda: attach(make(), METHODS["fisher_mask"]()),
     "fisher_mask: needs the importance of each parameter; give FisherMask(importance="),
    (lambda: attach(make(), METHODS["random_mask"](share=0)), "random_mask: share must be a number above 0, up to 1, got 0"),
    (lambda: attach(make(), METHODS["random_mask"](share=1.5)), "share must be a number above 0, up to 1, got 1.5"),
    (lambda: fisher_importance(make(), [Batch(IDS, np.ones((2, 5), bool), np.zeros((2, 5), np.int64), LABELS)]),
     "fisher_importance: expected batches of one example, got one of 2"),
    (lambda: fisher_importance(without_classes(), [Batch(IDS[:1], np.ones((1, 5), bool), np.zeros((1, 5), np.int64), None)]),
     "fisher_importance: expected a model with a classification head; load it with task='classify', or give the scores of a "
     "work that asks in words"),
    (lambda: METHODS["fisher_mask"]().prepare(make(), object(), np.random.default_rng(0)),
     "fisher_mask: entries are weighed by what the model says of classes, and this work has none; use random_mask")])
def test_faults(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_stored_mask_that_cannot_be_is_refused():
    method = METHODS["random_mask"]()
    for indices in ([3, 2], [0, 72], [-1], [[1]], [0.5]):
        method.known = {"blocks.0.attn.q.indices": np.array(indices)}
        with pytest.raises(ValueError, match="random_mask: blocks.0.attn.q.indices must be rising whole numbers from 0 to 71"):
            attach(make(), method)
