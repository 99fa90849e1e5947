"""The models agree with PyTorch's: logits, losses, every gradient and greedy text, as the golden files hold them."""

import numpy as np
import pytest

from minipeft.interop import load_pretrained
from minipeft.interop.hf import head_kind
from minipeft.interop.hf_names import places, to_theirs
from minipeft.models import generate

TINY = ["bert", "gpt2", "llama", "t5"]


def relative(got, expected):
    """Largest difference, in units of the largest expected entry."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def golden(shared):
    """``golden("bert")``: the folder's arrays, and what they hold to call a model with."""

    def load(name):
        arrays = np.load(shared / "golden" / f"{name}.npz")
        inputs = {k: arrays[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in arrays.files}
        return arrays, inputs

    return load


@pytest.mark.parametrize("family", TINY)
def test_logits_loss_and_every_gradient(family, golden, shared, backend):
    arrays, inputs = golden(family)
    model = load_pretrained(shared / "golden" / family)
    output = model(**inputs, labels=arrays["labels"])
    assert relative(output.logits.data, arrays["logits"]) < 5e-6
    assert output.loss.item() == pytest.approx(float(arrays["loss"]), rel=1e-6)
    output.loss.backward()
    table = places(model.config, head_kind(model))
    gradients = to_theirs(table, {path: p.grad for path, p in model.named_parameters()})
    expected = {name.removeprefix("grad."): arrays[name] for name in arrays.files if name.startswith("grad.")}
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        if name.endswith("key.bias"):  # adds one number to all scores of a query: its true gradient is 0
            assert np.abs(gradient - expected[name]).max() < 1e-6, name
        else:
            assert relative(gradient, expected[name]) < 1e-5, name


def test_last_hidden_state(golden, shared, backend):
    arrays, inputs = golden("bert")
    states = load_pretrained(shared / "golden/bert")(**inputs).last_hidden_state.data
    real = arrays["attention_mask"][..., None]
    assert relative(states * real, arrays["last_hidden_state"] * real) < 5e-6


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_greedy_text(family, golden, shared, backend):
    arrays, inputs = golden(family)
    prompt = inputs["input_ids"][:1, :4]
    written = generate(load_pretrained(shared / "golden" / family), prompt, arrays["greedy"].shape[1] - 4)
    assert written.tolist() == arrays["greedy"].tolist()


def test_minilm(golden, shared):
    arrays, inputs = golden("minilm")
    states = load_pretrained(shared / "models/minilm")(**inputs).last_hidden_state.data
    real = arrays["attention_mask"].astype(bool)
    assert np.abs(states - arrays["last_hidden_state"])[real].max() < 1e-5
    pooled = (states * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert np.abs(pooled - arrays["sentence_embedding"]).max() < 1e-6


def test_bert_tiny_fills_masks(golden, shared, backend):
    arrays, inputs = golden("bert-tiny")
    rows, columns = np.nonzero(inputs["input_ids"] == 103)
    logits = load_pretrained(shared / "models/bert-tiny")(**inputs).logits.data
    assert np.abs(logits[rows, columns] - arrays["mask_logits"]).max() < 5e-5


def test_stories(golden, shared):
    arrays, _ = golden("stories260K")
    model = load_pretrained(shared / "models/stories260K")
    written = generate(model, arrays["prompt_ids"], arrays["greedy"].shape[1] - arrays["prompt_ids"].shape[1])
    assert written.tolist() == arrays["greedy"].tolist()
    loss = model(arrays["nll_ids"], labels=arrays["nll_ids"]).loss.item()
    assert loss == pytest.approx(float(arrays["nll"]), abs=1e-5)
