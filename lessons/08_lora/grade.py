"""What an answer to lesson 8 must do: LoRA's and DoRA's formulas, place by place, on shapes that tell a transpose from none."""

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.learn.claims import exercise, holds, same
from minipeft.methods import LoRA, attach
from minipeft.models import Decoder, LMHead, TransformerConfig
from minipeft.nn import Linear
from minipeft.training.optim import AdamW


def made(kind, rng, scale=1.7, dropout=0.0, rank=2, **more):
    """(a layer of a kind of LoRA with numbers everywhere, its W, b, U, V): D_in 5 to 7, D_out 3 or 4."""
    d_in, d_out = int(rng.integers(5, 8)), int(rng.integers(3, 5))
    base = Linear(d_in, d_out, rng=rng, std=1.0).astype(np.float64)
    base.bias.data = rng.standard_normal(d_out)
    base.requires_grad_(False)
    layer = kind(base, rank, scale, dropout, rng, **more)
    layer.V.data = rng.standard_normal((d_out, rank))
    return layer, base.weight.data, base.bias.data, layer.U.data, layer.V.data


def product(x, w, u, v, s, b):
    """x W + b + s x U V^T for rows x (N, D_in), number by number."""
    n, d_in, d_out, rank = len(x), *w.shape, u.shape[1]
    out = np.zeros((n, d_out))
    for i in range(n):
        for j in range(d_out):
            out[i, j] = b[j] + sum(x[i, k] * w[k, j] for k in range(d_in))
            out[i, j] += s * sum(x[i, k] * u[k, r] * v[j, r] for k in range(d_in) for r in range(rank))
    return out


def small_config(layers=2, width=12):
    """A decoder's config."""
    return TransformerConfig(model_type="gpt2", vocab_size=17, hidden_size=width, num_hidden_layers=layers, num_attention_heads=3,
                             intermediate_size=20, max_position_embeddings=16, hidden_act="gelu_new", tie_word_embeddings=False)


# ---- 08.1: the forward pass ------------------------------------------------------------------------------------


@exercise("08.1")
def test_a_fresh_one_changes_nothing(impl, rng):
    """Where V is zero, h is what the map gave before."""
    layer, w, b, *_ = made(impl, rng)
    layer.V.data = np.zeros_like(layer.V.data)
    x = rng.standard_normal((3, w.shape[0]))
    same(layer(Tensor(x)), Tensor(x @ w + b), "h", 1e-12)


@exercise("08.1")
@pytest.mark.parametrize("scale", [1.7, 0.25])
def test_the_formula(impl, rng, scale):
    """h is x W + b + s (x U) V^T."""
    layer, w, b, u, v = made(impl, rng, scale)
    x = rng.standard_normal((4, w.shape[0]))
    same(layer(Tensor(x)), Tensor(product(x, w, u, v, scale, b)), "h", 1e-10)


@exercise("08.1")
def test_leading_axes(impl, rng):
    """x may have several axes before the last, as (B, T, D_in)."""
    layer, w, b, u, v = made(impl, rng)
    x = rng.standard_normal((2, 3, w.shape[0]))
    expected = product(x.reshape(6, -1), w, u, v, 1.7, b).reshape(2, 3, -1)
    same(layer(Tensor(x)), Tensor(expected), "h", 1e-10)


@exercise("08.1")
def test_gradients(impl, rng):
    """dU, dV and dx are those of the formula, for a random gradient from above."""
    layer, w, b, u, v = made(impl, rng)
    x, g = Tensor(rng.standard_normal((4, w.shape[0])), requires_grad=True), rng.standard_normal((4, w.shape[1]))
    layer(x).backward(g)
    same(layer.U.grad, 1.7 * x.data.T @ (g @ v), "dU", 1e-10)
    same(layer.V.grad, 1.7 * g.T @ (x.data @ u), "dV", 1e-10)
    same(x.grad, g @ w.T + 1.7 * (g @ v) @ u.T, "dx", 1e-10)
    holds(layer.wrapped.weight.grad is None, "the frozen W got a gradient; its map must stay frozen")


@exercise("08.1")
def test_a_step_leaves_the_base_as_it_was(impl, rng):
    """A step of AdamW on all that has a gradient moves U and V; W and b keep their bits."""
    layer, w, b, u, v = made(impl, rng)
    kept = [array.copy() for array in (w, b, u, v)]
    layer(Tensor(rng.standard_normal((4, w.shape[0])))).backward(rng.standard_normal((4, w.shape[1])))
    AdamW([layer.U, layer.V, *layer.wrapped.parameters()], lr=0.1, weight_decay=0.0).step()
    same(layer.wrapped.weight.data, kept[0], "W after the step", 0)
    same(layer.wrapped.bias.data, kept[1], "b after the step", 0)
    holds((layer.U.data != kept[2]).all() and (layer.V.data != kept[3]).all(), "U or V has not moved")


@exercise("08.1")
def test_dropout_is_on_the_narrow_way_only(impl, rng):
    """In training, dropout acts on x on its way to U, and not on x W."""
    layer, w, b, u, v = made(impl, rng, dropout=0.5)
    seen = []
    layer.dropout.forward = lambda x: seen.append(x.data.copy()) or x * 0.0
    x = rng.standard_normal((3, w.shape[0]))
    same(layer(Tensor(x)), Tensor(x @ w + b), "h where dropout drops everything", 1e-12)
    same(seen[0] if seen else None, x, "what dropout was given", 0)


@exercise("08.1")
def test_rows_that_the_change_is_not_for(impl, rng):
    """Rows of the batch whose entry in self.rows is false go through unchanged."""
    layer, w, b, u, v = made(impl, rng)
    x = rng.standard_normal((3, 2, w.shape[0]))
    layer.rows = np.array([True, False, True])
    expected = product(x.reshape(6, -1), w, u, v, 1.7, b).reshape(3, 2, -1)
    expected[1] = x[1] @ w + b
    same(layer(Tensor(x)), Tensor(expected), "h", 1e-10)


@exercise("08.1")
def test_float32_stays_float32(impl, rng):
    """In float32, as models are, h is float32, with and without rows that are left out."""
    base = Linear(6, 4, rng=rng)
    layer = impl(base, 2, 0.5, 0.0, rng)
    layer.V.data = rng.standard_normal((4, 2)).astype(np.float32)
    x = rng.standard_normal((2, 3, 6)).astype(np.float32)
    for rows in (None, np.array([True, False])):
        layer.rows = rows
        same(layer(Tensor(x)).dtype == np.float32, True, "whether h is float32", 0)


@exercise("08.1")
def test_the_product_of_u_and_v_is_never_formed(impl, rng):
    """Nothing of the size of U V^T is computed: x goes through U first."""
    layer, *_ = made(impl, rng)
    layer.U.data, layer.V.data = rng.standard_normal((300, 2)), rng.standard_normal((200, 2))
    layer.wrapped = lambda x: Tensor(np.zeros((1, 200)))
    sizes, original = [], Tensor.__init__

    def made_tensor(self, data, *args, **more):
        original(self, data, *args, **more)
        sizes.append(self.data.size)

    Tensor.__init__ = made_tensor
    try:
        layer(Tensor(rng.standard_normal((1, 300))))
    finally:
        Tensor.__init__ = original
    holds(max(sizes) < 300 * 200, "an array as large as W was computed; multiply x by U first, then by V transposed")


# ---- 08.2: the change ------------------------------------------------------------------------------------------


@exercise("08.2")
def test_the_change_entry_by_entry(impl, rng):
    """The change is s U V^T, (D_in, D_out)."""
    layer, w, b, u, v = made(impl, rng, 0.3, rank=3)
    expected = np.array([[0.3 * sum(u[i, r] * v[j, r] for r in range(3)) for j in range(len(v))] for i in range(len(u))])
    same(layer.change(), expected, "the change", 1e-12)


@exercise("08.2")
def test_merged_equals_beside(impl, rng):
    """x (W + change) + b is what the layer gives with the change beside it."""
    layer, w, b, *_ = made(impl, rng)
    x = rng.standard_normal((4, w.shape[0]))
    merged, bias = layer.merged_arrays(w, b)
    same(x @ merged + bias, layer(Tensor(x)).data, "x W' + b", 1e-10)


@exercise("08.2")
def test_the_rank(impl, rng):
    """The change of rank 1 has one direction only."""
    layer, *_ = made(impl, rng, rank=1)
    values = np.linalg.svd(layer.change(), compute_uv=False)
    holds(values[0] > 1e-3 and (values[1:] < 1e-10).all(),
          f"the singular values are {values.round(4)}; expected one that is not zero")


# ---- 08.3: the scale -------------------------------------------------------------------------------------------


@exercise("08.3")
@pytest.mark.parametrize("rank, alpha, expected", [(8, 16, 2.0), (16, 8, 0.5), (1, 3, 3.0), (6, 3, 0.5)])
def test_alpha_over_rank(impl, rank, alpha, expected):
    """s is alpha / R."""
    same(float(impl().scale(rank, alpha)), expected, f"s for rank {rank} and alpha {alpha}", 1e-12)


@exercise("08.3")
@pytest.mark.parametrize("rank, alpha, expected", [(16, 8, 2.0), (4, 3, 1.5), (9, 12, 4.0)])
def test_stabilised(impl, rank, alpha, expected):
    """Rank-stabilised, s is alpha / sqrt(R)."""
    same(float(impl(rank_stabilised=True).scale(rank, alpha)), expected, f"s for rank {rank} and alpha {alpha}", 1e-12)


@exercise("08.3")
def test_it_uses_what_it_is_given(impl):
    """Rank and alpha are those that are given, not those of the method's own fields:
    a pattern may ask for others at some maps."""
    same(float(impl(rank=2, alpha=100).scale(5, 10)), 2.0, "s for rank 5 and alpha 10", 1e-12)


# ---- 08.4: the count -------------------------------------------------------------------------------------------


@exercise("08.4")
@pytest.mark.parametrize("targets, maps", [("attn.q,attn.v", [(12, 12), (12, 12)]), ("mlp.up", [(12, 20)]),
                                           ("attn.out,mlp.down", [(12, 12), (20, 12)])])
def test_the_sum_over_maps(impl, targets, maps):
    """The count is R (D_in + D_out), summed over the adapted maps of all layers."""
    expected = 3 * 2 * sum(d_in + d_out for d_in, d_out in maps)  # R = 3, two layers
    same(impl(rank=3, targets=targets).count(small_config()), expected, f"the count for {targets}", 0)


@exercise("08.4")
def test_ranks_by_pattern(impl):
    """A map whose pattern asks for another rank counts with that rank."""
    expected = 2 * (2 * 24) + 2 * (5 * 24)  # q of rank 2 and v of rank 5, in two layers of width 12
    same(impl(rank=2, rank_pattern={"attn.v": 5}).count(small_config()), expected, "the count", 0)


@exercise("08.4")
def test_the_count_is_what_is_trained(impl, rng):
    """The count equals the numbers that are trained when the method is attached."""
    config = small_config(layers=3)
    model = Decoder(config, rng)
    model.head = LMHead(config, model.embed.tokens.weight, rng)
    attachment = attach(model, LoRA(rank=2, targets="attn.k,mlp.down"), rng=rng)
    same(impl(rank=2, targets="attn.k,mlp.down").count(config), attachment.trainable_without_head, "the count", 0)


# ---- 08.5: DoRA's lengths --------------------------------------------------------------------------------------


@exercise("08.5")
def test_lengths_of_columns(impl, rng):
    """c_j is the length of column j of W + s U V^T."""
    layer, w, b, u, v = made(impl, rng, 0.6)
    whole = w + 0.6 * u @ v.T
    expected = np.array([sum(whole[i, j] ** 2 for i in range(len(w))) ** 0.5 for j in range(w.shape[1])])
    same(layer.lengths(), Tensor(expected), "c", 1e-9)


@exercise("08.5")
def test_lengths_have_gradients(impl, rng):
    """Gradients reach U and V through c."""
    layer, w, *_ = made(impl, rng, 0.6)

    def through(u, v):
        layer.U, layer.V = u, v
        return layer.lengths()

    g = rng.standard_normal(w.shape[1])
    u, v = (Tensor(p.data.copy(), requires_grad=True) for p in (layer.U, layer.V))
    through(u, v).backward(g)
    whole = w + 0.6 * u.data @ v.data.T
    d_whole = whole / np.sqrt((whole**2).sum(axis=0)) * g  # of |column|: the column's direction
    same(u.grad, 0.6 * d_whole @ v.data, "dU", 1e-8)
    same(v.grad, 0.6 * d_whole.T @ u.data, "dV", 1e-8)
    gradcheck(through, u.data, v.data, rng=rng)


@exercise("08.5")
def test_detached(impl, rng):
    """With detach_norm the numbers are the same, and no gradient goes through them."""
    layer, w, b, u, v = made(impl, rng, 0.6, detach_norm=True)
    c = layer.lengths()
    same(c, Tensor(np.sqrt(((w + 0.6 * u @ v.T) ** 2).sum(axis=0))), "c", 1e-9)
    holds(not c.requires_grad, "c has a gradient although detach_norm is true")


@exercise("08.5")
def test_a_fresh_dora_changes_nothing(impl, rng):
    """With V at zero, m / c is 1 and h is what the map gave before."""
    layer, w, b, *_ = made(impl, rng)
    layer.V.data = np.zeros_like(layer.V.data)
    x = rng.standard_normal((3, w.shape[0]))
    same(layer(Tensor(x)), Tensor(x @ w + b), "h", 1e-12)


