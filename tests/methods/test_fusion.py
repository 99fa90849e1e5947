"""AdapterFusion: its formula written out, its gradients, its start, and what it leaves alone."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft import autograd as F
from minipeft.autograd import gradcheck
from minipeft.data import Tokenizer, toy
from minipeft.interop import load_adapter, save_adapter
from minipeft.methods import Fusion, Houlsby, LoRA, Pfeiffer, activate
from minipeft.methods.adapter import Bottleneck, HoulsbyJoin, ParallelJoin, PfeifferJoin
from minipeft.methods.fusion import FusedJoin
from minipeft.nn import Module
from minipeft.prompting import ClozeClassification
from minipeft.prompting.toy_prompts import prompts
from minipeft.training import Settings, fit


def with_adapters(kind=Pfeiffer, names=("a", "b", "c"), folder="toy:encoder"):
    model, rng = load_pretrained(folder), np.random.default_rng(3)
    for name in names:
        attachment = attach(model, kind(bottleneck=5), name, rng)
        for p in attachment.named_parameters().values():
            p.data = rng.standard_normal(p.shape).astype(p.dtype) * 0.3
    return model


def ids_of(model, rows=2, length=7):
    return np.random.default_rng(1).integers(5, model.config.vocab_size, (rows, length))


class PlainJoin(Module):
    """join(x, h) = tanh(x + h)."""

    def forward(self, x, h):
        return F.tanh(x + h)


def fused_join(kind, scale=1.7, width=5):
    """A `FusedJoin` over three adapters on a join of its own, in float64."""
    rng, inner = np.random.default_rng(6), PlainJoin()
    adapters = [kind(inner, Bottleneck(width, 2, "silu", 0.0, 0.5, rng), scale) for _ in range(3)]
    for adapter in adapters:
        adapter.mlp.down.bias.data = rng.standard_normal(2).astype(np.float32)
    wrapper = FusedJoin(inner, adapters, rng, 0.6)
    for module in (wrapper, *adapters):
        module.astype(np.float64)
    wrapper.V.data = rng.standard_normal((width, width))
    return wrapper, adapters


@pytest.mark.parametrize("kind", [PfeifferJoin, HoulsbyJoin, ParallelJoin])
def test_the_formula_place_by_place(kind):
    wrapper, adapters = fused_join(kind)
    rng = np.random.default_rng(8)
    x, h = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
    out = wrapper(F.Tensor(x), F.Tensor(h)).data
    reads = {PfeifferJoin: np.tanh(x + h), HoulsbyJoin: h, ParallelJoin: x}[kind]
    silu = lambda v: v / (1 + np.exp(-v))
    mlp = lambda m, v: silu(v @ m.down.weight.data + m.down.bias.data) @ m.up.weight.data + m.up.bias.data
    for b in range(2):
        for t in range(3):
            z = np.array([1.7 * mlp(adapter.mlp, reads[b, t]) for adapter in adapters])  # (N, D)
            s = np.array([(h[b, t] @ wrapper.Q.data) @ (each @ wrapper.K.data) for each in z])
            a = np.exp(s) / np.exp(s).sum()
            o = sum(a[n] * (z[n] @ wrapper.V.data) for n in range(3))
            assert np.allclose(out[b, t], np.tanh(x[b, t] + h[b, t] + o), atol=1e-12)
            assert np.allclose(wrapper.weights[b, t], a)
    assert wrapper.weights.std() > 0.01


def test_it_starts_at_the_mean_of_the_adapters():
    model = with_adapters(Houlsby)
    attachment = attach(model, Fusion("a,b,c"), "fusion")
    model(ids_of(model)).logits
    for wrapper in attachment.wrappers.values():
        if isinstance(wrapper, FusedJoin):
            assert np.allclose(wrapper.weights, 1 / 3, atol=1e-2)
    same = load_pretrained("toy:encoder")
    for name in "xy":  # two adapters that are equal: their mean is either
        one = attach(same, Pfeiffer(bottleneck=4), name, np.random.default_rng(0))
        for path, p in one.named_parameters().items():
            p.data = np.random.default_rng(len(path)).standard_normal(p.shape).astype(np.float32) * 0.2
    activate(same, "x")
    alone = same(ids_of(same)).logits.data
    attach(same, Fusion(["x", "y"]), "fusion")
    assert np.allclose(same(ids_of(same)).logits.data, alone, atol=2e-4)


def test_only_its_own_three_matrices_are_trained_and_counted():
    model = with_adapters()
    attachment = attach(model, Fusion(("a", "c")), "fusion")
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    assert {path.rsplit(".", 1)[1] for path in attachment.named_parameters()} == {"Q", "K", "V"}
    assert attachment.trainable_without_head == 3 * layers * width**2 == Fusion(("a", "c")).count(model.config)
    assert all(text == f"3 D^2 = 3 x {width}^2" for _, _, text in attachment.table())
    before = {name: {k: v.copy() for k, v in model.attachments[name].arrays().items()} for name in "abc"}
    labels = ids_of(model)
    model(ids_of(model), labels=labels).loss.backward()
    assert all(p.grad is not None and np.abs(p.grad).max() > 0 for p in attachment.named_parameters().values())
    for name in "abc":
        assert all(np.array_equal(before[name][path], array) for path, array in model.attachments[name].arrays().items())
        assert all(p.grad is None for p in model.attachments[name].named_parameters().values())
    trained = lambda name: {p.requires_grad for p in model.attachments[name].named_parameters().values()}
    assert trained("a") == trained("c") == {False} and trained("b") == {True}
    activate(model, "a")  # on with its training
    assert trained("a") == {True}
    activate(model, "fusion")
    assert trained("a") == {False}
    attachment.detach()
    assert trained("a") == trained("c") == {True}


@pytest.mark.parametrize("kind", [PfeifferJoin, HoulsbyJoin, ParallelJoin])
def test_gradients_against_finite_differences(kind):
    wrapper, _ = fused_join(kind)
    rng = np.random.default_rng(4)
    x, h = rng.standard_normal((2, 2, 5)), rng.standard_normal((2, 2, 5))

    def through(q, k, v, own_x, own_h):
        wrapper.Q, wrapper.K, wrapper.V = q, k, v
        return wrapper(own_x, own_h)

    gradcheck(through, *(p.data for p in (wrapper.Q, wrapper.K, wrapper.V)), x, h, rng=rng)


def test_adapters_that_were_trained_on_tasks_are_fused_for_another():
    """A new task draws on two that were learnt: its loss falls, and not a bit of the adapters moves."""
    model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
    def learn(task, method, name, lr):
        (template, verbalizer), *_ = prompts(task)
        dataset = toy.dataset(task, "easy", seed=4, train=48, dev=40, test=1)
        work = ClozeClassification(tokenizer, dataset, model.config, template, verbalizer, 80, 16)
        attachment = attach(model, method, name, np.random.default_rng(2))
        before = work.evaluate(model, "dev")["loss"]
        fit(model, attachment.named_parameters(), work, Settings(lr=lr, epochs=6, batch_size=16))
        return before, work.evaluate(model, "dev")["loss"], attachment

    for task in ("reading_size", "reading_room"):
        before, after, _ = learn(task, Pfeiffer(bottleneck=8), task, 3e-3)
        assert after < before
    kept = {name: {path: p.data.copy() for path, p in model.attachments[name].named_parameters().items()}
            for name in model.attachments}
    before, after, fusion = learn("reading", Fusion(adapters=["reading_size", "reading_room"]), "fused", 3e-3)
    assert after < before
    for name, values in kept.items():
        assert values and all(np.array_equal(p.data, values[path])
                              for path, p in model.attachments[name].named_parameters().items())
    for wrapper in fusion.wrappers.values():
        assert np.allclose(wrapper.weights.sum(axis=-1), 1, atol=1e-5) and wrapper.weights.std() > 0


def test_it_is_switched_off_and_taken_away_like_any_other():
    model = with_adapters()
    ids = ids_of(model)
    activate(model)
    base = model(ids).logits.data
    attachment = attach(model, Fusion(("a", "b")), "fusion")
    fused = model(ids).logits.data
    assert not np.allclose(fused, base, atol=1e-3)
    with attachment.disabled():
        assert np.array_equal(model(ids).logits.data, base)
    attachment.detach()
    activate(model)
    assert np.array_equal(model(ids).logits.data, base)
    with pytest.raises(ValueError, match="merge: fusion cannot be merged into a weight: its weights depend on the input"):
        attach(model, Fusion(("a", "b")), "again").merge()


def test_what_cannot_be_fused_is_named():
    model = with_adapters(names=("a",))
    attach(model, Houlsby(bottleneck=3), "both")
    attach(model, LoRA(rank=2), "lora")
    for names, message in ((("a", "zzz"), "no attachment is called 'zzz'; attached: a, both, lora"),
                           (("a",), "two or more attached adapters at the same places, got a"),
                           ((), "got none"), (("a", "both"), "at the same places, got a, both"), (("a", "lora"), "got a, lora")):
        with pytest.raises(ValueError, match=f"fusion: .*{message}"):
            attach(model, Fusion(names), "fusion")
        assert "fusion" not in model.attachments


def test_it_is_saved_and_comes_back_on_a_model_with_its_adapters(tmp_path, rng):
    model = with_adapters()
    ids = ids_of(model)
    attachment = attach(model, Fusion(("c", "a"), initial_std=0.5), "fusion")
    for p in attachment.named_parameters().values():
        p.data += 0.2 * rng.standard_normal(p.shape).astype(p.dtype)
    fused = model(ids).logits.data
    assert "neither PEFT nor AdapterHub has a format for fusion" in save_adapter(attachment, tmp_path / "fusion")
    assert sorted(path.name for path in (tmp_path / "fusion").iterdir()) == ["attachment.safetensors", "minipeft.json"]
    attachment.detach()
    back = load_adapter(model, tmp_path / "fusion", "back")
    assert back.method == Fusion(["c", "a"], initial_std=0.5) and np.array_equal(model(ids).logits.data, fused)
    bare = with_adapters(names=("a", "b"))
    with pytest.raises(ValueError, match="fusion: no attachment is called 'c'; attached: a, b"):
        load_adapter(bare, tmp_path / "fusion")
    assert list(bare.attachments) == ["a", "b"]
