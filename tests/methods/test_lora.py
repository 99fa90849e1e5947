"""LoRA's mathematics, on random shapes, ranks and scales."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import autograd as F
from minipeft.autograd import Tensor, gradcheck
from minipeft.methods import LoRA, activate, attach
from minipeft.methods.lora import LoRALinear
from minipeft.models import Decoder, LMHead, TransformerConfig
from minipeft.nn import Linear
from minipeft.training import SGD, Adam, AdamW

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


def decoder(seed=0, layers=2, width=12, inner=20):
    config = TransformerConfig(model_type="gpt2", vocab_size=17, hidden_size=width, num_hidden_layers=layers,
                               num_attention_heads=3, intermediate_size=inner, max_position_embeddings=16, hidden_act="gelu_new",
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
    np.testing.assert_allclose(lora.merged_arrays(base.weight.data, None)[0],
                               base.weight.data + scale * lora.U.data @ lora.V.data.T, atol=1e-12)


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
    np.testing.assert_allclose(tensor.grad, g @ lora.merged_arrays(base.weight.data, None)[0].T, atol=1e-10)


@given(rank=st.integers(1, 3), d_in=st.integers(1, 5), d_out=st.integers(1, 5), seed=st.integers(0, 10**6),
       scale=st.floats(0.1, 4))
@settings(max_examples=8)
def test_gradients_match_finite_differences(d_in, d_out, rank, seed, scale):
    _, lora, rng = make(d_in, d_out, rank, scale, seed)
    lora.U.data = rng.standard_normal((d_in, rank))

    def run(x, u, v):
        lora.U, lora.V = u, v
        return lora(x)

    gradcheck(run, rng.standard_normal((2, 3, d_in)), lora.U.data, lora.V.data, rng=rng)


def test_in_a_whole_model_the_gradients_are_projections_of_the_full_ones():
    model = decoder().astype(np.float64)
    attachment = attach(model, LoRA(rank=3, alpha=7, targets="attn.*,mlp.*", rank_pattern={"v": 2}))
    shake(attachment)
    model(IDS, labels=IDS).loss.backward()
    attachment.merge()  # the same function, written as one dense matrix
    dense = dict(model.requires_grad_(True).named_parameters())
    model(IDS, labels=IDS).loss.backward()
    for path, wrapper in attachment.wrappers.items():
        gradient, scale = dense[f"{path}.weight"].grad, 7 / wrapper.U.shape[1]
        np.testing.assert_allclose(wrapper.U.grad, scale * gradient @ wrapper.V.data, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(wrapper.V.grad, scale * gradient.T @ wrapper.U.data, rtol=1e-8, atol=1e-12)


@given(rank=st.integers(1, 9), d_in=st.integers(1, 9), d_out=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_the_change_has_at_most_rank_r(d_in, d_out, rank, seed):
    _, lora, _ = make(d_in, d_out, rank, 0.7, seed)
    assert np.linalg.matrix_rank(lora.change()) == min(rank, d_in, d_out)


@given(d_in=st.integers(1, 9), d_out=st.integers(1, 9), rank=st.integers(1, 9), seed=st.integers(0, 10**6),
       scale=st.floats(0.1, 4))
def test_the_best_change_of_rank_r_has_the_eckart_young_error_and_none_is_better(d_in, d_out, rank, seed, scale):
    _, lora, rng = make(d_in, d_out, rank, scale, seed)
    target = rng.standard_normal((d_in, d_out))
    left, singular, right = np.linalg.svd(target, full_matrices=False)
    best = np.sqrt((singular[rank:] ** 2).sum())  # 0 from full rank on: any target is reached
    assert np.linalg.norm(lora.change() - target) >= best
    kept = min(rank, len(singular))
    lora.U.data, lora.V.data = np.zeros((d_in, rank)), np.zeros((d_out, rank))
    lora.U.data[:, :kept], lora.V.data[:, :kept] = left[:, :kept] * singular[:kept] / scale, right[:kept].T
    assert np.linalg.norm(lora.change() - target) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("d_in,d_out,rank", [(7, 5, 1), (7, 5, 2), (7, 5, 5), (3, 6, 1), (3, 6, 3), (1, 4, 1)])
def test_training_reaches_the_eckart_young_error_and_full_rank_any_target(d_in, d_out, rank):
    base, lora, rng = make(d_in, d_out, rank, 1.5, 3, zero_v=True)
    target = rng.standard_normal((d_in, d_out))
    optimizer = Adam([lora.U, lora.V], lr=0.05)
    eye = Tensor(np.eye(d_in))
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
        with pytest.warns(UserWarning, match="merged already"):
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


@pytest.mark.parametrize("sign", [1, -1])
def test_merging_returns_the_largest_change_whatever_its_sign(sign):
    attachment = attach(decoder(), LoRA(rank=1, alpha=3, targets="blocks.1.attn.v"))
    wrapper = attachment.wrappers["blocks.1.attn.v"]
    wrapper.U.data, wrapper.V.data = (np.ones((12, 1), np.float32),
                                      np.linspace(0.1, 0.5, 12, dtype=np.float32)[:, None] * np.float32(sign))
    assert attachment.merge() == pytest.approx(1.5, rel=1e-5)


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


@given(seed=st.integers(0, 1000), rank=st.integers(1, 5), dropout=st.sampled_from([0.0, 0.3]),
       kind=st.sampled_from([SGD, Adam, AdamW]),
       targets=st.sets(st.sampled_from(["q", "k", "attn.v", "blocks.1.attn.out", "mlp.up", "down"]), min_size=1))
@settings(max_examples=15)
def test_frozen_bits_never_change_and_only_trainable_ones_do(seed, rank, dropout, kind, targets):
    model = decoder(seed)
    attachment = attach(model, LoRA(rank=rank, alpha=3, targets=sorted(targets), dropout=dropout))
    shake(attachment)
    model.train(np.random.default_rng(seed))
    frozen = {p: v.data.tobytes() for p, v in model.named_parameters()}
    before = {p: v.data.copy() for p, v in attachment.named_parameters().items()}
    optimizer = kind(attachment.named_parameters().values(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        assert all(v.grad is None for v in model.parameters())
        optimizer.step()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == frozen
    assert all((before[p] != v.data).any() for p, v in attachment.named_parameters().items())


def test_training_beats_the_base_and_the_first_step_moves_V_alone():
    model = decoder()
    attachment = attach(model, LoRA(rank=2, targets="attn.*,mlp.*"))
    optimizer = Adam(attachment.named_parameters().values(), lr=0.1)
    first = {p: v.data.copy() for p, v in attachment.named_parameters().items()}
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            assert {p[-1] for p, v in attachment.named_parameters().items() if (v.data != first[p]).any()} == {"V"}
    assert losses[-1] < losses[0] - 0.03  # the output map is frozen and small


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


def test_of_several_patterns_the_last_counts_and_one_for_nothing_is_refused():
    both = {"attn.*": 3, "blocks.1.*": 4, "blocks.1.attn.q,blocks.0.attn.v": 5}
    attachment = attach(decoder(), LoRA(rank=2, alpha=6, rank_pattern=both, alpha_pattern={"*": 60, "q": 30}))
    assert {p: (w.U.shape[1], w.scale) for p, w in attachment.wrappers.items()} == {
        "blocks.0.attn.q": (3, 10), "blocks.0.attn.v": (5, 12), "blocks.1.attn.q": (5, 6), "blocks.1.attn.v": (4, 15)}
    for field in ("rank_pattern", "alpha_pattern"):
        model = decoder()
        message = f"lora {field}: no module matches 'mlp.up'. Seams: blocks.*.attn.q, blocks.*.attn.v"  # it is not a target
        with pytest.raises(ValueError, match=re.escape(message)):
            attach(model, LoRA(**{field: {"mlp.up": 2}}))
        assert not model.attachments


@given(data=st.data(), heads=st.integers(1, 3), half=st.integers(1, 3), inner=st.integers(1, 9), layers=st.integers(1, 3),
       family=st.sampled_from(["bert", "gpt2", "llama"]))
def test_the_count_of_every_seam_is_the_closed_form(data, heads, half, inner, layers, family):
    width, key_heads = 2 * half * heads, data.draw(st.sampled_from([1, heads])) if family == "llama" else heads
    config = TransformerConfig(model_type=family, vocab_size=7, hidden_size=width, num_hidden_layers=layers,
                               num_attention_heads=heads,
                               num_key_value_heads=key_heads, intermediate_size=inner, max_position_embeddings=8,
                               hidden_act="silu" if family == "llama" else "gelu")
    shapes = {"attn.q": (width, width), "attn.k": (width, 2 * half * key_heads), "attn.v": (width, 2 * half * key_heads),
              "attn.out": (width, width), "mlp.up": (width, inner), "mlp.down": (inner, width)}
    if family == "llama":
        shapes["mlp.gate"] = (width, inner)
    seams = data.draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True))
    ranks = {seam: data.draw(st.integers(1, min(shapes[seam]))) for seam in seams}
    attachment = attach(Decoder(config, None), LoRA(targets=seams, rank_pattern=ranks))
    rows = {path: (count, formula) for path, count, formula in attachment.table()}
    assert len(rows) == layers * len(seams)
    for seam, rank in ranks.items():
        d_in, d_out = shapes[seam]
        for i in range(layers):
            assert rows[f"blocks.{i}.{seam}"] == (rank * (d_in + d_out), f"R (D_in + D_out) = {rank} ({d_in} + {d_out})")
    closed = layers * sum(rank * sum(shapes[seam]) for seam, rank in ranks.items())
    assert attachment.trainable == closed == sum(p.size for p in attachment.named_parameters().values())


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


@given(p=st.floats(0.05, 0.9), **SHAPES)
def test_dropout_drops_what_goes_to_U_and_nothing_else(p, d_in, d_out, rows, scale, seed):
    base, _, rng = make(d_in, d_out, 2, scale, seed)
    lora = LoRALinear(base, 2, scale, p, rng).astype(np.float64)
    lora.V.data = rng.standard_normal((d_out, 2))
    x = rng.standard_normal((rows, d_in))
    kept = F.dropout(Tensor(np.ones((rows, d_in))), p, np.random.default_rng(seed)).data  # 0 or 1 / (1 - p)
    expected = x @ base.weight.data + base.bias.data + scale * ((x * kept) @ lora.U.data) @ lora.V.data.T
    np.testing.assert_allclose(lora.train(np.random.default_rng(seed))(Tensor(x)).data, expected, atol=1e-10)


@pytest.mark.parametrize("rank", [0, -1, 13, 2.5, "2", None])
def test_a_rank_outside_the_matrix_is_refused(rank):
    model = decoder()
    with pytest.raises(ValueError, match=f"lora: the rank at blocks.0.attn.q must be a whole number from 1 to 12, got {rank}"):
        attach(model, LoRA(rank=rank))
    assert not model.attachments and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("settings_,message", [
    ({"rank": 11}, "lora: the rank at blocks.0.mlp.down must be a whole number from 1 to 10, got 11"),  # the smaller side counts
    ({"rank_pattern": {"blocks.1.mlp.down": 12}},
     "lora: the rank at blocks.1.mlp.down must be a whole number from 1 to 10, got 12"),
    ({"alpha": 0}, "lora: alpha at blocks.0.mlp.down must be a positive number, got 0"),
    ({"alpha": -1.5}, "lora: alpha at blocks.0.mlp.down must be a positive number, got -1.5"),
    ({"alpha": float("nan")}, "lora: alpha at blocks.0.mlp.down must be a positive number, got nan"),
    ({"alpha": float("inf")}, "lora: alpha at blocks.0.mlp.down must be a positive number, got inf"),
    ({"alpha_pattern": {"blocks.1.*": 0}}, "lora: alpha at blocks.1.mlp.down must be a positive number, got 0"),
    ({"dropout": 1.0}, "Dropout: the probability must lie in [0, 1), got 1.0"),
    ({"targets": []}, "lora targets: no pattern is given. Seams: blocks.*.attn.q, "),
    ({"targets": ""}, "lora targets: no module matches ''"),
])
def test_bad_settings_change_nothing(settings_, message):
    model = decoder(inner=10)
    names = [p for p, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=re.escape(message)):
        attach(model, LoRA(**{"targets": "mlp.down"} | settings_))
    assert not model.attachments and all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, LoRALinear) for m in model.modules()) and [p for p, _ in model.named_parameters()] == names


def test_a_change_that_overflows_refuses_to_merge_and_leaves_the_base():
    model = decoder()
    attachment = attach(model, LoRA(rank=2))
    plain = model(IDS).logits.data
    bits = {p: v.data.tobytes() for p, v in model.named_parameters()}
    wrapper = attachment.wrappers["blocks.1.attn.q"]
    wrapper.U.data[:], wrapper.V.data[:] = 1e30, 1e30  # both finite, their product is not
    message = re.escape("merge: blocks.1.attn.q.weight would hold NaN or infinity; the base is unchanged")
    with pytest.raises(ValueError, match=message), np.errstate(over="ignore"):
        attachment.merge()
    assert not attachment.merged and {p: v.data.tobytes() for p,
                                      v in model.named_parameters()} == bits and not model.values.base
    with attachment.disabled():
        assert (model(IDS).logits.data == plain).all()


@given(actions=st.lists(st.tuples(st.sampled_from(["merge", "unmerge", "disabled", "detach"]), st.sampled_from("abc")),
                        max_size=12))
def test_whatever_is_merged_disabled_or_detached_the_model_is_the_base_with_what_is_left(actions):
    model = decoder().astype(np.float64)
    bits = {p: v.data.tobytes() for p, v in model.named_parameters()}
    left = {name: attach(model, LoRA(rank=2, alpha=3, targets=targets), name) for name,
            targets in [("a", "q,v"), ("b", "q,up"), ("c", "v,up,down")]}
    for seed, attachment in enumerate(left.values()):
        shake(attachment, seed)
    activate(model, *left)

    def check(active):
        """The slow oracle: a base of its own, with the changes of the active ones added to its weights."""
        plain = decoder().astype(np.float64)
        for attachment in active:
            for path, wrapper in attachment.wrappers.items():
                plain.get(path).weight.data = plain.get(path).weight.data + wrapper.change()
        np.testing.assert_allclose(model(IDS).logits.data, plain(IDS).logits.data, rtol=1e-9, atol=1e-11)

    for action, name in actions:
        if name not in left:
            continue
        if action == "disabled":
            merged = left[name].merged
            with left[name].disabled():
                check([a for n, a in left.items() if n != name])
            assert left[name].merged == merged
        else:
            getattr(left[name], action)()
            if action == "detach":
                del left[name]
        check(left.values())
    for attachment in left.values():
        attachment.detach()
    assert ({p: v.data.tobytes() for p, v in model.named_parameters()} == bits
            and not any(isinstance(m, LoRALinear) for m in model.modules()))
