"""The 4-bit base: what it stores, what it loses, and that LoRA on it is LoRA on what it stands for."""

import re
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.interop import load_pretrained, make_model, save_pretrained
from minipeft.kernels import dequantise_nf4, quantise_nf4
from minipeft.kernels.nf4 import LEVELS
from minipeft.methods import METHODS, attach, dequantise, quantise
from minipeft.methods.nf4 import BLOCK, Linear4bit, Quantised, summary
from minipeft.models import TransformerConfig
from minipeft.nn import Linear
from minipeft.training import SGD

IDS, LABELS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]), np.array([0, 1])


def make(width=24, layers=2, inner=20):
    config = TransformerConfig(model_type="bert", type_vocab_size=2, vocab_size=13, hidden_size=width, num_hidden_layers=layers,
                               num_attention_heads=3, intermediate_size=inner, max_position_embeddings=24, initializer_range=0.3,
                               labels=("a", "b"), pooling="mean")
    return make_model(config, "classify", np.random.default_rng(0)).eval()


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """Sixteen levels from 8 quantiles below and 9 above 0 that share 0, scaled to [-1, 1]; and as the paper prints them."""
    quantile, offset = NormalDist().inv_cdf, (1 - 1 / 32 + 1 - 1 / 30) / 2  # appendix E: between those of 16 and of 15 levels
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    levels = np.sort([*below, 0.0, *above])
    np.testing.assert_allclose(LEVELS, levels / levels.max(), atol=2e-6)
    printed = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0, 0.0795803, 0.1609302, 0.2461123,
               0.3379152, 0.4407098, 0.5626170, 0.7229568, 1]
    np.testing.assert_allclose(LEVELS, printed, atol=1e-7)


@given(count=st.integers(1, 400), seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_every_weight_becomes_the_nearest_level(count, seed, size):
    w = (np.random.default_rng(seed).standard_normal(count) * size).astype(np.float32)
    got = dequantise_nf4(*quantise_nf4(w, BLOCK), count, BLOCK)
    for start in range(0, count, BLOCK):  # by the definition, one number after the other
        block = w[start:start + BLOCK]
        c = np.abs(block).max()
        for value, back in zip(block, got[start:start + BLOCK]):
            distances = np.abs(LEVELS.astype(np.float64) * c - value)
            assert abs(back - value) <= distances.min() * (1 + 1e-5) + 1e-6 * c


@given(seed=st.integers(0, 10**6))
def test_the_levels_are_exact_and_a_second_time_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    w = np.concatenate([LEVELS * np.float32(3.7), np.zeros(BLOCK - 16, np.float32), rng.standard_normal(70).astype(np.float32)])
    once = dequantise_nf4(*quantise_nf4(w, BLOCK), len(w), BLOCK)
    assert (once[:BLOCK] == w[:BLOCK]).all()
    assert (dequantise_nf4(*quantise_nf4(once, BLOCK), len(w), BLOCK) == once).all()


def test_blocks_of_zeros_and_odd_ends():
    w = np.zeros(BLOCK + 3, np.float32)
    codes, scales = quantise_nf4(w, BLOCK)
    assert (scales == 0).all() and codes.shape == (34,) and (dequantise_nf4(codes, scales, len(w), BLOCK) == 0).all()


@pytest.mark.parametrize("double,bits", [(True, 4 + 8 / 64 + 32 / (64 * 256)), (False, 4 + 32 / 64)])
def test_bits_a_weight_are_those_of_the_formula(double, bits):
    stored = Quantised(np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32), double)
    assert 8 * stored.nbytes / stored.size == pytest.approx(bits, abs=1e-4)  # the mean of the scales is one number a matrix


def test_double_quantisation_moves_the_scales_by_half_a_step_at_most():
    w = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    plain, double = Quantised(w, False), Quantised(w, True)
    _, scales = quantise_nf4(w.reshape(-1), BLOCK)
    again = double.scales * np.repeat(double.group_scales, 256)[:len(scales)] + double.mean
    assert np.abs(again - scales).max() <= 0.5001 * double.group_scales.max()
    largest = [np.abs(double.scales[i:i + 256].astype(int)).max() for i in range(0, len(scales), 256)]
    assert set(largest) == {127} and double.scales.dtype == np.int8  # all of the 8 bits are used
    assert np.linalg.norm(double.data - w) <= 1.02 * np.linalg.norm(plain.data - w)


@pytest.mark.parametrize("double", [True, False])
def test_the_model_is_that_of_the_dequantised_weights_in_outputs_and_gradients(double):
    model, plain = make(), make()
    report = quantise(model, double=double)
    for path in (row["path"] for row in report):
        dict(plain.named_modules())[path].weight.data = model.get(path).weight.data
    outputs = []
    for one in (model, plain):
        attachment = attach(one, METHODS["lora"](rank=2, alpha=5, targets="attn.*,mlp.*"))
        rng = np.random.default_rng(1)
        attachment.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) * np.float32(0.2)
                                for p, a in attachment.arrays().items()})
        out = one(IDS, labels=LABELS)
        out.loss.backward()
        outputs.append((out.logits.data, {p: v.grad for p, v in attachment.named_parameters().items()}))
    assert (outputs[0][0] == outputs[1][0]).all()
    assert all((outputs[0][1][p] == g).all() for p, g in outputs[1][1].items()) and len(outputs[0][1]) == 2 * 2 * 6 + 2


def test_training_moves_what_is_attached_and_not_one_code():
    model = make()
    quantise(model)
    codes = {p: m.weight.codes.copy() for p, m in model.named_modules() if isinstance(m, Linear4bit)}
    attachment = attach(model, METHODS["lora"](rank=2, alpha=5))
    optimizer, losses = SGD(attachment.named_parameters().values(), lr=0.02), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(IDS, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all((m.weight.codes == codes[p]).all() for p, m in model.named_modules() if isinstance(m, Linear4bit))
    assert len(codes) == 12


@pytest.mark.parametrize("name", ["dora", "pissa", "ia3", "houlsby", "prefix", "prompt", "bitfit", "layernorm", "lora",
                                  "adalora"])
def test_other_methods_sit_on_it_and_a_fresh_one_changes_nothing(name):
    model = make()
    quantise(model)
    before = model(IDS).logits.data
    attachment = attach(model, METHODS[name](**({"num_virtual_tokens": 3} if name in ("prefix", "prompt") else {})))
    if name not in ("prefix", "prompt"):
        assert (model(IDS).logits.data == before).all()
    model(IDS, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in attachment.named_parameters().values())
    attachment.detach()
    assert (model(IDS).logits.data == before).all()


def test_the_report_and_the_memory_are_true():
    model = make(width=96, inner=128)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        arrays = sum(model.get(path).weight.data.nbytes for path in (row["path"] for row in quantise(make(width=96, inner=128))))
        base = tracemalloc.get_traced_memory()[0]
        report = quantise(model)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    stored = sum(row["bytes"] for row in report)
    assert stored < 0.14 * arrays and after - base < 1.5 * stored + 40_000 and before <= base
    assert all(0.05 < row["error"] < 0.15 and 4.1 < row["bits"] < 4.3 for row in report)
    assert sum(row["weights"] for row in report) == 2 * (4 * 96 * 96 + 2 * 96 * 128)


def test_the_summary_says_what_the_report_says():
    model = make()
    weights = {path: p.data.copy() for path, p in model.named_parameters()}
    report = quantise(model, "attn.q,mlp.up")
    assert [row["path"] for row in report] == [f"blocks.{i}.{part}" for i in range(2) for part in ("attn.q", "mlp.up")]
    for row in report:  # error and memory, each once more by hand
        w, stored = weights[f"{row['path']}.weight"].astype(np.float64), model.get(row["path"]).weight
        assert row["error"] == pytest.approx(np.linalg.norm(w - stored.data) / np.linalg.norm(w), rel=1e-5)
        assert row["bytes"] == sum(a.nbytes for a in (stored.codes, stored.scales, stored.group_scales)) + 4
        assert row["weights"] == w.size and row["bits"] == 8 * row["bytes"] / w.size
    errors, total = [row["error"] for row in report], sum(row["bytes"] for row in report)
    worst = report[int(np.argmax(errors))]["path"]
    assert summary(report) == (f"4-bit base: 4 maps of 2,112 weights in {total / 1e6:.2f} MB instead of 0.01 MB, "
                               f"{8 * total / 2112:.3f} bits a weight; error |W - W~| / |W| {np.mean(errors):.3f} on average, "
                               f"{max(errors):.3f} at most (at {worst})")


def test_merging_into_four_bits_is_refused_and_dequantising_undoes_the_form():
    model = make()
    names = [p for p, _ in model.named_parameters()]
    quantise(model)
    after = model(IDS).logits.data
    attachment = attach(model, METHODS["lora"](rank=2))
    with pytest.raises(ValueError, match=re.escape("merge: blocks.0.attn.q is a Linear4bit, which has no full-precision weight "
                                                   "of its own to put the change into; dequantise the model first")):
        attachment.merge()
    with pytest.raises(ValueError, match="dequantise: attached: default; save and detach them first"):
        dequantise(model)
    attachment.detach()
    dequantise(model)
    assert [p for p, _ in model.named_parameters()] == names and (model(IDS).logits.data == after).all()
    assert not any(isinstance(m, Linear4bit) for m in model.modules()) and isinstance(model.get("blocks.0.attn.q"), Linear)


@pytest.mark.parametrize("name", ["full", "top_k", "random_mask"])
def test_what_trains_weights_says_that_it_cannot(name):
    model = make()
    quantise(model, targets="blocks.1.mlp.up")
    with pytest.raises(ValueError, match=f"attach: {name} trains weights, and blocks.1.mlp.up is stored in 4 bits; "
                                         "dequantise the model"):
        attach(model, METHODS[name]())
    assert not model.attachments


def test_faults_change_nothing():
    model = make()
    for call, message in (
            (lambda: quantise(model, targets="atn.q"), "quantise targets: no module matches 'atn.q'; did you mean"),
            (lambda: (quantise(model, "q"), quantise(model, "q,v")), "quantise: blocks.0.attn.q is in 4 bits already")):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert not isinstance(model.get("blocks.0.attn.v"), Linear4bit)
    dequantise(model)
    model.get("blocks.1.attn.q").weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="quantise: blocks.1.attn.q.weight holds NaN or infinity"):
        quantise(model)
    attach(model, METHODS["lora"](rank=2), "task")
    with pytest.raises(ValueError, match="quantise: attached: task; quantise the base before attaching to it"):
        quantise(model)


def test_a_real_model_keeps_its_meaning(shared):
    model, plain = (load_pretrained(shared / "models/minilm", task="none") for _ in range(2))
    report = quantise(model)
    ids = np.load(shared / "golden/minilm.npz")["input_ids"]
    got, expected = model(ids).last_hidden_state.data, plain(ids).last_hidden_state.data
    cosine = (got * expected).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.mean() > 0.95 and max(row["error"] for row in report) < 0.13


def test_a_model_in_four_bits_is_not_written_as_if_it_were_whole(tmp_path):
    model = make()
    quantise(model)
    with pytest.raises(ValueError, match="in 4 bits"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
