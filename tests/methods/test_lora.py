"""LoRA's mathematics, on random shapes, ranks and scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import Tensor
from minipeft.methods import LoRA, activate, attach
from minipeft.methods.lora import LoRALinear
from minipeft.models import Decoder, LMHead, TransformerConfig
from minipeft.nn import Linear
from minipeft.training import Adam, SGD

SHAPES = {"d_in": st.integers(1, 9), "d_out": st.integers(1, 9), "rows": st.integers(1, 5), "seed": st.integers(0, 10**6),
          "scale": st.floats(0.1, 4)}


def make(d_in, d_out, rank, scale, seed, zero_v=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    base = Linear(d_in, d_out, True, rng, std=1.0).astype(dtype)
    base.bias.data = rng.standard_normal(d_out).astype(dtype)
    base.requires_grad_(False)
    lora = LoRALinear(base, rank, scale, 0.0, rng)
    if not zero_v:
        lora.V.data = rng.standard_normal(lora.V.shape).astype(dtype)
    return base, lora, rng


def decoder(seed=0, layers=2, width=12):
    config = TransformerConfig(model_type="gpt2", vocab_size=17, hidden_size=width, num_hidden_layers=layers,
                               num_attention_heads=3, intermediate_size=20, max_position_embeddings=16, hidden_act="gelu_new",
                               tie_word_embeddings=False)
    rng = np.random.default_rng(seed)
    model = Decoder(config, rng)
    model.head = LMHead(config, model.embed.tokens.weight, rng)
    return model


def shake(attachment, seed=1):
    """Move every trained weight off its initial value."""
    rng = np.random.default_rng(seed)
    for parameter in attachment.named_parameters().values():
        parameter.data = parameter.data + rng.standard_normal(parameter.shape).astype(parameter.dtype) * parameter.dtype.type(0.3)


IDS = np.array([[1, 5, 2, 9, 16], [3, 3, 0, 7, 11]])


@given(rank=st.integers(1, 4), **SHAPES)
def test_the_change_beside_equals_the_change_inside(d_in, d_out, rows, rank, scale, seed):
    base, lora, rng = make(d_in, d_out, rank, scale, seed)
    x = rng.standard_normal((2, rows, d_in))
    inside = x @ (base.weight.data + scale * lora.U.data @ lora.V.data.T) + base.bias.data
    np.testing.assert_allclose(lora(Tensor(x)).data, inside, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(lora.merged_weight(base.weight.data), base.weight.data + scale * lora.U.data @ lora.V.data.T, atol=1e-12)


@given(rank=st.integers(1, 4), **SHAPES)
def test_a_fresh_one_is_the_identity_and_only_V_moves_first(d_in, d_out, rows, rank, scale, seed):
    base, lora, rng = make(d_in, d_out, rank, scale, seed, zero_v=True)
    x = Tensor(rng.standard_normal((rows, d_in)))
    y = lora(x)
    assert (y.data == base(x).data).all()
    y.backward(rng.standard_normal(y.shape))
    assert (lora.U.grad == 0).all()
    assert (lora.V.grad != 0).any()
    assert base.weight.grad is None and base.bias.grad is None


@given(rank=st.integers(1, 4), **SHAPES)
def test_gradients_are_projections_of_the_dense_gradient(d_in, d_out, rows, rank, scale, seed):
    base, lora, rng = make(d_in, d_out, rank, scale, seed)
    x, g = rng.standard_normal((rows, d_in)), rng.standard_normal((rows, d_out))
    dense = np.zeros((d_in, d_out))  # dL/dW' = sum over rows of x^T g, by the slow definition
    for n in range(rows):
        dense += np.outer(x[n], g[n])
    tensor = Tensor(x, requires_grad=True)
    lora(tensor).backward(g)
    np.testing.assert_allclose(lora.U.grad, scale * dense @ lora.V.data, atol=1e-10)
    np.testing.assert_allclose(lora.V.grad, scale * dense.T @ lora.U.data, atol=1e-10)
    np.testing.assert_allclose(tensor.grad, g @ lora.merged_weight(base.weight.data).T, atol=1e-10)


@given(rank=st.integers(1, 4), d_in=st.integers(4, 9), d_out=st.integers(4, 9), seed=st.integers(0, 10**6))
def test_the_change_has_at_most_rank_r(d_in, d_out, rank, seed):
    _, lora, _ = make(d_in, d_out, rank, 0.7, seed)
    assert np.linalg.matrix_rank(lora.change()) == rank


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_training_reaches_the_eckart_young_error_and_full_rank_any_target(rank):
    base, lora, rng = make(7, 5, rank, 1.5, 3, zero_v=True)
    target = rng.standard_normal((7, 5))
    optimizer = Adam([lora.U, lora.V], lr=0.05)
    eye = Tensor(np.eye(7))
    for step in range(1500):
        optimizer.lr = 0.05 * (1 - step / 1500)
        optimizer.zero_grad()
        off = lora(eye) - Tensor(base.weight.data + base.bias.data + target)
        (off * off).sum().backward()
        optimizer.step()
    singular = np.linalg.svd(target, compute_uv=False)
    best = np.sqrt((singular[rank:] ** 2).sum())
    reached = np.linalg.norm(lora.change() - target)
    assert reached == pytest.approx(best, abs=1e-3)


@given(rank=st.integers(1, 4), alpha=st.floats(0.5, 30), seed=st.integers(0, 1000))
def test_merge_and_unmerge_return_the_base_to_the_bit(rank, alpha, seed):
    model = decoder(seed)
    before = {p: v.data.copy() for p, v in model.named_parameters()}
    plain = model(IDS).logits.data
    attachment = attach(model, LoRA(rank=rank, alpha=alpha, targets="q,v,mlp.up"), rng=np.random.default_rng(seed))
    shake(attachment)
    unmerged = model(IDS).logits.data
    for _ in range(3):
        assert attachment.merge() > 0
        np.testing.assert_allclose(model(IDS).logits.data, unmerged, rtol=1e-3, atol=1e-4)
        assert attachment.merge() == 0.0
        attachment.unmerge()
        assert all((before[p] == v.data).all() for p, v in model.named_parameters())
    with attachment.disabled():
        assert (model(IDS).logits.data == plain).all()
    attachment.merge()
    with attachment.disabled():
        assert (model(IDS).logits.data == plain).all()
    assert attachment.merged
    attachment.detach()
    assert (model(IDS).logits.data == plain).all()
    assert not model.attachments


def test_merged_equals_unmerged_in_float64():
    model = decoder().astype(np.float64)
    attachment = attach(model, LoRA(rank=3, alpha=5, targets="attn.*"))
    shake(attachment)
    unmerged = model(IDS).logits.data
    attachment.merge()
    np.testing.assert_allclose(model(IDS).logits.data, unmerged, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_two_merged_at_once_unmerge_in_any_order(order):
    model = decoder()
    before = {p: v.data.copy() for p, v in model.named_parameters()}
    both = {name: attach(model, LoRA(rank=2, alpha=3), name) for name in "ab"}
    for seed, attachment in enumerate(both.values()):
        shake(attachment, seed)
    activate(model, "a", "b")
    unmerged = model(IDS).logits.data
    both["a"].merge(), both["b"].merge()
    np.testing.assert_allclose(model(IDS).logits.data, unmerged, rtol=1e-3, atol=1e-4)
    for name in order:
        both[name].unmerge()
    assert all((before[p] == v.data).all() for p, v in model.named_parameters())


def test_frozen_bits_never_change_and_only_trainable_ones_do():
    model = decoder()
    attachment = attach(model, LoRA(rank=2, alpha=3, targets="q,mlp.down"))
    shake(attachment)
    frozen = {p: v.data.tobytes() for p, v in model.named_parameters()}
    before = {p: v.data.copy() for p, v in attachment.named_parameters().items()}
    optimizer = SGD(attachment.named_parameters().values(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        assert all(v.grad is None for v in model.parameters())
        optimizer.step()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == frozen
    assert all((before[p] != v.data).any() for p, v in attachment.named_parameters().items())


@pytest.mark.parametrize("stabilised, expected", [(False, 12 / 4), (True, 12 / 2)])
def test_the_scale_is_alpha_over_rank_or_its_root(stabilised, expected):
    model = decoder()
    attachment = attach(model, LoRA(rank=4, alpha=12, rank_stabilised=stabilised))
    assert {w.scale for w in attachment.wrappers.values()} == {expected}


def test_rank_and_alpha_patterns_take_precedence():
    model = decoder()
    attachment = attach(model, LoRA(rank=2, alpha=6, targets="q,v", rank_pattern={"blocks.1.attn.v": 5}, alpha_pattern={"q": 10}))
    ranks = {p: w.U.shape[1] for p, w in attachment.wrappers.items()}
    assert ranks == {"blocks.0.attn.q": 2, "blocks.0.attn.v": 2, "blocks.1.attn.q": 2, "blocks.1.attn.v": 5}
    assert attachment.wrappers["blocks.0.attn.q"].scale == 5 and attachment.wrappers["blocks.1.attn.v"].scale == 6 / 5


@given(rank=st.integers(1, 6), layers=st.integers(1, 3))
def test_the_count_is_the_closed_form(rank, layers):
    attachment = attach(decoder(layers=layers), LoRA(rank=rank))
    assert attachment.trainable == attachment.trainable_without_head == 4 * 12 * rank * layers
    assert sum(count for _, count, _ in attachment.table()) == attachment.trainable
    assert attachment.table()[0] == ("blocks.0.attn.q", 24 * rank, f"R (D_in + D_out) = {rank} (12 + 12)")


def test_initialisation_is_a_function_of_the_seed():
    draw = lambda seed: next(iter(attach(decoder(), LoRA(), rng=np.random.default_rng(seed)).wrappers.values())).U.data
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()


def test_dropout_acts_in_training_only():
    model = decoder()
    shake(attach(model, LoRA(rank=2, dropout=0.5)))
    still = model.eval()(IDS).logits.data
    assert (model(IDS).logits.data == still).all()
    moved = model.train(np.random.default_rng(0))(IDS).logits.data
    assert (moved != still).any()
    assert (model.train(np.random.default_rng(0))(IDS).logits.data == moved).all()


@pytest.mark.parametrize("rank", [0, -1, 13, 2.5])
def test_a_rank_outside_the_matrix_is_refused(rank):
    model = decoder()
    with pytest.raises(ValueError, match=r"lora: the rank at blocks.0.attn.q must be a whole number from 1 to 12, got"):
        attach(model, LoRA(rank=rank))
    assert not model.attachments and all(p.requires_grad for p in model.parameters())
