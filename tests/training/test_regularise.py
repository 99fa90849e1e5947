"""The regularisers against their definitions, and together in a run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import Tensor, gradcheck
from minipeft.interop import make_model
from minipeft.methods import Full, LoRA, attach
from minipeft.models import TransformerConfig
from minipeft.nn import Linear, Parameter, Wrapper
from minipeft.training import L2SP, mixout, smoothed_cross_entropy
from minipeft.training.regularise import MixoutLinear

IDS, LABELS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]), np.array([0, 1])


def make():
    config = TransformerConfig(model_type="bert", type_vocab_size=2, vocab_size=13, hidden_size=12, num_hidden_layers=2,
                               num_attention_heads=3, intermediate_size=10, max_position_embeddings=24, initializer_range=0.3,
                               labels=("a", "b"), pooling="mean")
    return make_model(config, "classify", np.random.default_rng(0))


@given(alpha=st.floats(0, 3), beta=st.floats(0, 3), seed=st.integers(0, 10**6))
def test_l2_sp_is_the_distance_from_the_start(alpha, beta, seed):
    rng = np.random.default_rng(seed)
    parameters = {"blocks.0.w": Parameter(rng.standard_normal((2, 3))),
                  "head.classifier.weight": Parameter(rng.standard_normal(4))}
    start = {path: p.data.copy() for path, p in parameters.items()}
    hook = L2SP(parameters, alpha, beta)
    for p in parameters.values():
        p.data = p.data + rng.standard_normal(p.shape)
    off, head = parameters["blocks.0.w"].data - start["blocks.0.w"], parameters["head.classifier.weight"].data
    penalty = hook.penalty()
    if alpha == beta == 0:
        assert penalty is None
        return
    assert penalty.item() == pytest.approx(0.5 * alpha * (off**2).sum() + 0.5 * beta * (head**2).sum())
    penalty.backward()
    for path, expected, strength in (("blocks.0.w", off, alpha), ("head.classifier.weight", head, beta)):
        got = parameters[path].grad
        np.testing.assert_allclose(0 * expected if got is None else got, strength * expected, atol=1e-12)


def test_l2_sp_of_a_resumed_run_starts_where_the_first_did():
    parameter = Parameter(np.ones(3))
    first = L2SP({"w": parameter}, 2.0)
    parameter.data = parameter.data + 1
    second = L2SP({"w": parameter}, 2.0)
    second.load_arrays(first.arrays())
    assert second.penalty().item() == first.penalty().item() == pytest.approx(3.0)


@given(smoothing=st.floats(0, 0.99), classes=st.integers(1, 6), rows=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_smoothed_labels_are_a_target_and_the_gradient_is_p_minus_it(smoothing, classes, rows, seed):
    rng = np.random.default_rng(seed)
    z, labels = rng.standard_normal((rows, classes)) * 3, rng.integers(0, classes, rows)
    target = np.full((rows, classes), smoothing / classes)
    target[np.arange(rows), labels] += 1 - smoothing
    logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    logits = Tensor(z, requires_grad=True)
    loss = smoothed_cross_entropy(logits, labels, smoothing)
    assert loss.item() == pytest.approx(-(target * logp).sum(axis=1).mean(), abs=1e-10)
    loss.backward()
    np.testing.assert_allclose(logits.grad, (np.exp(logp) - target) / rows, atol=1e-10)
    gradcheck(lambda t: smoothed_cross_entropy(t, labels, smoothing), z, rng=rng)


@pytest.mark.parametrize("call,message", [
    (lambda: smoothed_cross_entropy(Tensor(np.ones((1, 2))), np.array([0]), 1.0),
     "label smoothing: expected a number from 0 to below 1, got 1.0"),
    (lambda: L2SP({}, -1), "L2-SP: alpha and beta must be 0 or more, got -1"),
    (lambda: mixout(make(), 1.0).__enter__(), r"mixout: the probability must lie in \[0, 1\), got 1.0")])
def test_bad_strengths_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("probability", [0.3, 0.9])
def test_mixout_mixes_in_training_only_and_is_right_on_average(probability):
    rng = np.random.default_rng(0)
    base = Linear(4, 3, True, rng, std=1.0).astype(np.float64)
    mixed = MixoutLinear(base, probability)
    base.weight.data = base.weight.data + 1.0
    start, now, x = mixed.start, base.weight.data, rng.standard_normal((2, 4))
    assert (mixed(Tensor(x)).data == base(Tensor(x)).data).all()
    mixed.training, mixed.rng = True, np.random.default_rng(1)
    draws = np.random.default_rng(1).random(start.shape) < probability
    expected = (np.where(draws, start, now) - probability * start) / (1 - probability)
    np.testing.assert_allclose(mixed(Tensor(x)).data, x @ expected + base.bias.data)
    many = np.mean([mixed(Tensor(np.eye(4))).data - base.bias.data for _ in range(20000)], axis=0)
    np.testing.assert_allclose(many, now, atol=0.15)
    mixed(Tensor(x)).backward(np.ones((2, 3)))
    assert ((base.weight.grad == 0) | (np.abs(base.weight.grad - (x.sum(axis=0)[:, None] / (1 - probability))) < 1e-9)).all()


def test_mixout_goes_on_and_off_and_changes_nothing_in_evaluation():
    model = make()
    attachment = attach(model, Full())
    before, names = model(IDS).logits.data, [p for p, _ in model.named_parameters()]
    with mixout(model, 0.5):
        assert sum(isinstance(m, MixoutLinear) for m in model.modules()) == 12
        assert (model(IDS).logits.data == before).all() and [p for p, _ in model.named_parameters()] == names
        for p in attachment.named_parameters().values():
            p.data = p.data + np.float32(0.1)
        seeds = [model.train(np.random.default_rng(seed))(IDS).logits.data for seed in (0, 0, 1)]
        assert (seeds[0] == seeds[1]).all() and (seeds[0] != seeds[2]).any()
    assert not any(isinstance(m, Wrapper) for m in model.modules())


@pytest.mark.parametrize("method,reason", [(LoRA(rank=2), "no weight of the blocks is trained in place"),
                                           (None, "has an attachment on it")])
def test_mixout_where_it_has_no_meaning_is_refused(method, reason):
    model = make()
    attach(model, LoRA(rank=2), "lora")
    if method is None:
        attach(model, Full(), "full")
    with pytest.raises(ValueError, match=reason), mixout(model, 0.5):
        pass
