"""Prototypical networks: the formula text by text, its gradient, and tasks learnt in one pass."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft import autograd as F
from minipeft.autograd import gradcheck
from minipeft.data import Tokenizer, collate, toy
from minipeft.methods import METHODS
from minipeft.prompting.prototypes import episode_loss, prototype_logits, prototypes, text_states

ARCHS = pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])


def batch_of(tokenizer, texts, labels):
    encodings = tokenizer.encode_pairs(texts)
    return collate(encodings, labels, np.arange(len(texts)), tokenizer.pad_id)


@ARCHS
def test_the_state_of_a_text_is_its_mean_over_tokens(arch):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    texts = ["the soup was great .", "anna has a red ball in the hall ."]
    found = text_states(model, batch_of(tokenizer, texts, [0, 1])).data
    for text, state in zip(texts, found):
        ids = np.array([tokenizer.encode(text)])
        whole = (model.encode(ids)[0] if arch == "seq2seq" else model(ids).last_hidden_state).data[0]
        assert np.allclose(state, whole.mean(axis=0), atol=2e-5)
    attach(model, METHODS["prompt"](num_virtual_tokens=2), rng=np.random.default_rng(0))
    assert text_states(model, batch_of(tokenizer, texts, [0, 1])).shape == found.shape


def test_prototypes_and_distances_one_by_one():
    rng = np.random.default_rng(0)
    support, labels, query = rng.standard_normal((7, 5)), np.array([2, 0, 1, 0, 2, 2, 1]), rng.standard_normal((4, 5))
    centres = prototypes(F.Tensor(support), labels, 3)
    z = prototype_logits(F.Tensor(query), centres).data
    for k in range(3):
        centre = support[labels == k].mean(axis=0)
        assert np.allclose(centres.data[k], centre)
        for i in range(4):
            assert z[i, k] == pytest.approx(-((query[i] - centre) ** 2).sum())
    gradcheck(lambda s, q: prototype_logits(q, prototypes(s, labels, 3)), support, query, rng=rng)
    with pytest.raises(ValueError, match=r"prototypes: expected an example of each of 4 classes, got labels \[0, 1, 2\]"):
        prototypes(F.Tensor(support), labels, 4)


@ARCHS
def test_topics_are_told_apart_from_one_example_each(arch):
    model, tokenizer = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}")
    dataset = toy.dataset("topic", "easy", seed=1, dev=90, test=1, shots=3)
    dev = [e for e in toy.dataset("topic", "easy", seed=2, train=90, dev=1, test=1).splits["train"] if e.label < 3]
    of = lambda examples: batch_of(tokenizer, [e.text for e in examples], [e.label for e in examples])
    support = of([e for e in dataset.splits["train"] if e.label < 3])
    z = prototype_logits(text_states(model, of(dev)), prototypes(text_states(model, support), support.labels, 3)).data
    assert (z.argmax(axis=1) == [e.label for e in dev]).mean() > 0.5
    loss = episode_loss(model, support, of(dev), 3).item()
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(len(dev)), [e.label for e in dev]]).mean(), rel=1e-4)


def test_a_method_is_trained_by_episodes():
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    attachment = attach(model, METHODS["lora"](rank=2), rng=np.random.default_rng(0))
    examples = [e for e in toy.dataset("topic", "easy", seed=3, train=40, dev=1, test=1).splits["train"] if e.label < 2]
    half = len(examples) // 2
    of = lambda part: batch_of(tokenizer, [e.text for e in part], [e.label for e in part])
    episode_loss(model, of(examples[:half]), of(examples[half:]), 2).backward()
    moved = [path for path, p in attachment.named_parameters().items() if p.grad is not None and np.abs(p.grad).max() > 0]
    assert moved and all(path.endswith("V") for path in moved)  # U's gradient is zero while V is
