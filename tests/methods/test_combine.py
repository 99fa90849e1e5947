"""A weighted sum of LoRAs is the exact sum of their changes; it is rule 28 of the list in test_conformance.py."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.interop import make_model
from minipeft.methods import METHODS, activate, attach, combine
from minipeft.models import TransformerConfig

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
KIN = ["lora", "rslora", "lora_plus", "pissa", "adalora"]


def make():
    config = TransformerConfig(model_type="bert", type_vocab_size=2, vocab_size=13, hidden_size=12, num_hidden_layers=2,
                               num_attention_heads=3, intermediate_size=10, max_position_embeddings=24, initializer_range=0.3,
                               labels=("a", "b"), pooling="mean")
    return make_model(config, "classify", np.random.default_rng(0)).eval()


def shaken(model, method, name, seed):
    attachment, rng = attach(model, method, name), np.random.default_rng(seed)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(a.dtype) * np.float32(0.3)
                            for path, a in attachment.arrays().items()})
    return attachment


@given(data=st.data())
def test_the_sum_is_exact_whatever_the_ranks_scales_and_places(data):
    model, sums, weights = make(), {}, {}
    for i in range(data.draw(st.integers(1, 3))):
        name, targets = f"part {i}", data.draw(st.sampled_from(["q", "q,v", "attn.*,mlp.up"]))
        method = METHODS[data.draw(st.sampled_from(KIN))](rank=data.draw(st.integers(1, 4)),
                                                          alpha=data.draw(st.floats(0.5, 9)), targets=targets)
        weights[name] = data.draw(st.floats(-2, 2))
        for path, wrapper in shaken(model, method, name, i).wrappers.items():
            if hasattr(wrapper, "U"):
                sums[path] = sums.get(path, 0) + weights[name] * wrapper.change().astype(np.float64)
    attachment = combine(model, weights, "sum")
    assert set(attachment.wrappers) == set(sums) and attachment.head is None
    for path, wrapper in attachment.wrappers.items():
        np.testing.assert_allclose(wrapper.change(), sums[path], rtol=1e-4, atol=1e-5)
    output = model(IDS).logits.data
    activate(model)
    for path, total in sums.items():
        root = dict(model.named_modules())[path]
        root.weight.data = root.weight.data + total.astype(np.float32)
    np.testing.assert_allclose(model(IDS).logits.data, output, rtol=1e-3, atol=1e-4)


def test_adding_factors_each_for_themselves_is_something_else():
    model = make()
    one, two = (shaken(model, METHODS["lora"](rank=2, alpha=5), name, i) for i, name in enumerate("ab"))
    path = "blocks.0.attn.q"
    exact = combine(model, {"a": 0.7, "b": -0.3}, "sum").wrappers[path].change()
    naive = 2.5 * (0.7 * one.wrappers[path].U.data - 0.3 * two.wrappers[path].U.data) @ (
        0.7 * one.wrappers[path].V.data - 0.3 * two.wrappers[path].V.data).T
    assert np.abs(exact - naive).max() > 0.1


@pytest.mark.parametrize("rank", [1, 2, 3, 12])
def test_refactored_it_is_the_nearest_of_its_rank(rank):
    model = make()
    for i, name in enumerate("ab"):
        shaken(model, METHODS["lora"](rank=3, alpha=5), name, i)
    exact = combine(model, {"a": 1, "b": 0.5}, "exact")
    near = combine(model, {"a": 1, "b": 0.5}, "near", rank=rank)
    for path, wrapper in near.wrappers.items():
        full = exact.wrappers[path].change()
        singular = np.linalg.svd(full, compute_uv=False)
        assert wrapper.U.shape[1] == rank
        assert np.linalg.norm(wrapper.change() - full) == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), abs=1e-4)
    off = {path: np.linalg.norm(w.change() - exact.wrappers[path].change()) / np.linalg.norm(exact.wrappers[path].change())
           for path, w in near.wrappers.items()}
    got = re.fullmatch(rf"re-factored to rank {rank}: off the exact sum by (\S+) of its size on average, "
                       r"(\S+) at most \(at (\S+)\)", near.note)
    assert exact.note == "" and [float(got[1]), float(got[2])] == pytest.approx(
        [np.mean(list(off.values())), max(off.values())], rel=0.06, abs=1e-6)


@pytest.mark.parametrize("weights,name,rank,message", [
    ({"a": 1, "c": 1}, "sum", None, "combine: no attachment is called 'c'; attached: a, d"),
    ({"a": 1}, "a", None, "attach: the name 'a' is taken; attached: a, d"),
    ({}, "sum", None, "combine: expected at least one attachment"),
    ({"a": 1}, "sum", 0, "a rank of at least 1 or None; got 1 and 0"),
    ({"a": float("nan")}, "sum", None, "combine: the weight of 'a' must be a number, got nan"),
    ({"a": 1, "d": 1}, "sum", None,
     "combine: 'd' is dora, whose change is not a product that can be added; LoRA's kin but DoRA can")])
def test_what_cannot_be_added_is_refused(weights, name, rank, message):
    model = make()
    shaken(model, METHODS["lora"](rank=2), "a", 0), shaken(model, METHODS["dora"](rank=2), "d", 1)
    before = model(IDS).logits.data
    with pytest.raises(ValueError) as error:
        combine(model, weights, name, rank)
    assert message in str(error.value)
    assert (model(IDS).logits.data == before).all() and set(model.attachments) == {"a", "d"}
