"""The head alone is logistic regression on the frozen model's states."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.methods import Head, attach
from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, TransformerConfig
from minipeft.training import SGD

IDS = np.array([[1, 5, 2, 9], [3, 3, 0, 7], [4, 4, 4, 4]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
SHAPE = {"vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20,
         "max_position_embeddings": 16, "initializer_range": 0.4}


def classifier(classes=3, pooling="mean", seed=0):
    rng = np.random.default_rng(seed)
    model = Encoder(TransformerConfig(model_type="bert", type_vocab_size=2, **SHAPE), rng)
    model.head = ClassificationHead(12, classes, pooling, rng=rng, std=0.4)
    return model.astype(np.float64)


@given(classes=st.integers(2, 5), pooling=st.sampled_from(["mean", "cls", "pooler", "last"]), seed=st.integers(0, 1000))
def test_a_step_is_one_of_logistic_regression(classes, pooling, seed):
    model = classifier(classes, pooling, seed)
    labels = np.random.default_rng(seed).integers(0, classes, 3)
    base_w, base_b = model.head.classifier.weight.data.copy(), model.head.classifier.bias.data.copy()
    attachment = attach(model, Head())
    x = model.head.pool(model(IDS, attention_mask=MASK).last_hidden_state, MASK, 0).data  # (B, D)
    scores = np.exp(x @ base_w + base_b)
    off = scores / scores.sum(axis=1, keepdims=True) - np.eye(classes)[labels]  # p - y, (B, C)
    optimizer = SGD(attachment.named_parameters().values(), lr=0.7)
    frozen = {path: p.data.tobytes() for path, p in model.named_parameters()}
    model(IDS, attention_mask=MASK, labels=labels).loss.backward()
    optimizer.step()
    own = attachment.named_parameters()
    np.testing.assert_allclose(own["head.classifier.weight"].data, base_w - 0.7 * x.T @ off / 3, atol=1e-10)
    np.testing.assert_allclose(own["head.classifier.bias"].data, base_b - 0.7 * off.mean(axis=0), atol=1e-10)
    assert {path: p.data.tobytes() for path, p in model.named_parameters()} == frozen  # the base's own head too
    assert all(p.grad is None for p in model.parameters())


@given(classes=st.integers(2, 9))
def test_the_count_is_the_closed_form(classes):
    attachment = attach(classifier(classes), Head())
    assert (attachment.trainable, attachment.trainable_without_head) == (12 * classes + classes, 0)
    assert attachment.table() == [("head.classifier", 13 * classes, f"12x{classes} + {classes}")]


@pytest.mark.parametrize("bias", [False, True])
def test_a_language_models_own_output_map(bias):
    config = TransformerConfig(model_type="gpt2", tie_word_embeddings=False, head_bias=bias, **SHAPE)
    model = Decoder(config, np.random.default_rng(0))
    model.head = LMHead(config, model.embed.tokens.weight, np.random.default_rng(1))
    plain = model(IDS).logits.data
    attachment = attach(model, Head())
    assert attachment.table() == [("head.output", 12 * 17 + 17 * bias, "12x17 + 17"
                                   if bias else "12x17")] and attachment.trainable_without_head == 0
    optimizer = SGD(attachment.named_parameters().values(), lr=0.5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    with attachment.disabled():
        assert (model(IDS).logits.data == plain).all()
    attachment.detach()
    assert (model(IDS).logits.data == plain).all() and all(p.requires_grad for p in model.parameters())
