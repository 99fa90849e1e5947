"""What an answer to lesson 9 must do: the network number by number, its places, its count, dropping it, Compacter's matrices."""

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.learn.claims import exercise, holds, moves_only, same, sizes
from minipeft.methods import METHODS, attach
from minipeft.methods.adapter import Bottleneck, ParallelJoin, PfeifferJoin
from minipeft.models import Encoder, Seq2Seq, TransformerConfig
from minipeft.models.heads import ClassificationHead
from minipeft.nn import Join, LayerNorm, Parameter

ACTIVATIONS = {"relu": lambda x: x if x > 0 else 0.0, "silu": lambda x: x / (1 + np.exp(-x)), "tanh": np.tanh}
SLOPES = {"silu": lambda x: (1 + np.exp(-x) + x * np.exp(-x)) / (1 + np.exp(-x)) ** 2, "tanh": lambda x: 1 - np.tanh(x) ** 2}


def network(kind, rng, act="silu", dropout=0.0, width=None):
    """A network with numbers everywhere, in float64; R is drawn, and so is D where it is not given."""
    (inner,) = sizes(rng, 1, high=3)
    width = int(rng.integers(4, 8)) if width is None else width
    mlp = kind(width, inner, act, dropout, 0.0, rng).astype(np.float64)
    for parameter in mlp.parameters():
        parameter.data = rng.standard_normal(parameter.shape)
    return mlp


def by_numbers(mlp, z, act):
    """act(z W_down + b_down) W_up + b_up of rows z (N, D), number by number."""
    down, b_down, up, b_up = mlp.down.weight.data, mlp.down.bias.data, mlp.up.weight.data, mlp.up.bias.data
    out = np.zeros_like(z)
    for i in range(len(z)):
        hidden = [ACTIVATIONS[act](sum(z[i, k] * down[k, r] for k in range(len(down))) + b_down[r]) for r in range(len(b_down))]
        for j in range(len(b_up)):
            out[i, j] = sum(hidden[r] * up[r, j] for r in range(len(hidden))) + b_up[j]
    return out


def normalised(rows, norm):
    """A LayerNorm of rows (N, D), number by number."""
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        mean = sum(row) / len(row)
        spread = (sum((v - mean) ** 2 for v in row) / len(row) + norm.eps) ** 0.5
        out[i] = [(v - mean) / spread * g + b for v, g, b in zip(row, norm.weight.data, norm.bias.data)]
    return out


def made_join(rng, post_norm, width):
    """A join with a norm that has numbers everywhere or with none, in float64."""
    join = Join(LayerNorm(width) if post_norm else None).astype(np.float64)
    for parameter in join.parameters():
        parameter.data = rng.standard_normal(parameter.shape)
    return join


def joined(join, x, h):
    """join(x, h) of rows, number by number."""
    return x + h if join.norm is None else normalised(x + h, join.norm)


def config_of(kind="bert", layers=3, width=12, **more):
    """A small config."""
    fields = {"type_vocab_size": 2} if kind == "bert" else {"num_decoder_layers": 4, "decoder_start_token_id": 0}
    return TransformerConfig(model_type=kind, vocab_size=17, hidden_size=width, num_hidden_layers=layers, num_attention_heads=3,
                             intermediate_size=10, max_position_embeddings=16, **fields, **more)


def classifier(rng, layers=3):
    """An encoder with a head for two classes."""
    model = Encoder(config_of(layers=layers), rng)
    model.head = ClassificationHead(12, 2, "mean", rng=rng)
    return model.eval()


def moved(model, name, rng, **options):
    """An attachment whose every number was moved away from its start."""
    attachment = attach(model, METHODS[name](**options), rng=rng)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(a.dtype) for path, a in attachment.arrays().items()})
    return attachment


# ---- 09.1: the network -----------------------------------------------------------------------------------------


@exercise("09.1")
def test_a_fresh_one_gives_zero(impl, rng):
    """A fresh network, whose W_up and biases are zero, gives 0 for every z."""
    rows, width, inner = sizes(rng, 3)
    fresh = impl(width, inner, "relu", 0.0, 0.0, rng).astype(np.float64)
    same(fresh(Tensor(rng.standard_normal((rows, width)))), Tensor(np.zeros((rows, width))), "MLP(z)", 1e-12)


@exercise("09.1")
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_the_formula(impl, rng, act):
    """MLP(z) is act(z W_down + b_down) W_up + b_up."""
    mlp = network(impl, rng, act)
    z = rng.standard_normal((int(rng.integers(2, 6)), mlp.down.weight.shape[0]))
    same(mlp(Tensor(z)), Tensor(by_numbers(mlp, z, act)), "MLP(z)", 1e-10)


@exercise("09.1")
def test_leading_axes(impl, rng):
    """z may have several axes before the last, as (B, T, D)."""
    mlp = network(impl, rng)
    z = rng.standard_normal((2, 3, mlp.down.weight.shape[0]))
    same(mlp(Tensor(z)), Tensor(by_numbers(mlp, z.reshape(6, -1), "silu").reshape(z.shape)), "MLP(z)", 1e-10)


@exercise("09.1")
@pytest.mark.parametrize("act", ["silu", "tanh"])
def test_gradients(impl, rng, act):
    """The gradients of both matrices, both biases and z are those of the formula, for a random gradient from above."""
    mlp = network(impl, rng, act)
    z, g = rng.standard_normal((2, int(rng.integers(2, 6)), mlp.down.weight.shape[0]))
    z = Tensor(z, requires_grad=True)
    mlp(z).backward(g)
    before = z.data @ mlp.down.weight.data + mlp.down.bias.data
    delta = g @ mlp.up.weight.data.T * SLOPES[act](before)
    same(mlp.up.weight.grad, np.vectorize(ACTIVATIONS[act])(before).T @ g, "dW_up", 1e-10)
    same(mlp.up.bias.grad, g.sum(axis=0), "db_up", 1e-10)
    same(mlp.down.weight.grad, z.data.T @ delta, "dW_down", 1e-10)
    same(mlp.down.bias.grad, delta.sum(axis=0), "db_down", 1e-10)
    same(z.grad, delta @ mlp.down.weight.data.T, "dz", 1e-10)


@exercise("09.1")
def test_dropout_is_on_what_enters(impl, rng):
    """In training, dropout acts on z before W_down."""
    mlp, seen = network(impl, rng, dropout=0.5), []
    z = rng.standard_normal((4, mlp.down.weight.shape[0]))
    mlp.dropout.forward = lambda given: seen.append(given.data.copy()) or given * 0.0
    result = mlp(Tensor(z))
    same(seen[0] if seen else None, z, "what dropout was given", 0)
    same(result, Tensor(by_numbers(mlp, 0 * z, "silu")), "MLP(z) where dropout drops everything", 1e-12)


# ---- 09.2: the place -------------------------------------------------------------------------------------------


@exercise("09.2")
@pytest.mark.parametrize("scale", [1.0, 4.0, 0.3])
@pytest.mark.parametrize("post_norm", [True, False])
def test_at_the_join(impl, rng, post_norm, scale):
    """The sub-layer gives join(x, h + s MLP(h)), with a norm in the join and without."""
    rows, width = sizes(rng, 2, low=3)
    join, mlp = made_join(rng, post_norm, width), network(Bottleneck, rng, width=width)
    x, h = rng.standard_normal((2, rows, width))
    expected = joined(join, x, h + scale * by_numbers(mlp, h, "silu"))
    same(impl(join, mlp, scale)(Tensor(x), Tensor(h)), Tensor(expected), "the sub-layer's output", 1e-10)


@exercise("09.2")
@pytest.mark.parametrize("kind", ["pfeiffer", "parallel"])
def test_the_other_kinds(graft, rng, kind):
    """Pfeiffer's adapters, which read join(x, h), and parallel ones, which read x, work by the same function."""
    rows, width = sizes(rng, 2, low=3)
    join, mlp = made_join(rng, True, width), network(Bottleneck, rng, width=width)
    x, h = rng.standard_normal((2, rows, width))
    reads = joined(join, x, h) if kind == "pfeiffer" else x
    expected = joined(join, x, h + 2.5 * by_numbers(mlp, reads, "silu"))
    with graft():
        got = {"pfeiffer": PfeifferJoin, "parallel": ParallelJoin}[kind](join, mlp, 2.5)(Tensor(x), Tensor(h))
    same(got, Tensor(expected), "the sub-layer's output", 1e-10)


@exercise("09.2")
def test_a_fresh_one_changes_nothing(impl, rng):
    """With a fresh network the sub-layer gives join(x, h)."""
    join, mlp = made_join(rng, True, 5), Bottleneck(5, 3, "silu", 0.0, 0.0, rng).astype(np.float64)
    x, h = rng.standard_normal((2, 1, 2, 5))
    expected = joined(join, x[0], h[0])[None]
    same(impl(join, mlp, 4.0)(Tensor(x), Tensor(h)), Tensor(expected), "the sub-layer's output", 1e-10)


@exercise("09.2")
def test_gradients_reach_both(impl, rng):
    """Gradients reach x and h, by the join and by the adapter."""
    join, mlp = made_join(rng, True, 5), network(Bottleneck, rng, width=5)
    x, h = rng.standard_normal((2, 3, 5))
    layer, (a, b) = impl(join, mlp, 1.7), (Tensor(v, requires_grad=True) for v in (x, h))
    g, step = rng.standard_normal((3, 5)), 1e-6
    layer(a, b).backward(g)

    def value(x, h):
        return (joined(join, x, h + 1.7 * by_numbers(mlp, h, "silu")) * g).sum()

    for name, tensor in (("dx", a), ("dh", b)):
        slopes = np.zeros((3, 5))
        for place in np.ndindex(3, 5):
            e = np.zeros((3, 5))
            e[place] = step
            moves = (e, 0 * e) if name == "dx" else (0 * e, e)
            slopes[place] = (value(x + moves[0], h + moves[1]) - value(x - moves[0], h - moves[1])) / (2 * step)
        same(tensor.grad, slopes, name, 1e-6)


@exercise("09.2")
def test_a_step_leaves_the_base_as_it_was(graft, rng):
    """A step of AdamW on all that has a gradient moves the adapters and the head;
    every other array of the model keeps its bits."""
    model = classifier(rng)
    with graft():
        moves_only(lambda: moved(model, "houlsby", rng, bottleneck=2), model, rng.integers(0, 17, (2, 5)), rng)


# ---- 09.3: the count -------------------------------------------------------------------------------------------


@exercise("09.3")
@pytest.mark.parametrize("targets, joins", [("attn.join,mlp.join", 2), ("mlp.join", 1), ("blocks.1.*", None)])
def test_the_size_times_the_joins(impl, rng, targets, joins):
    """The count is 2 D R + R + D for each join that has an adapter."""
    layers, third, bottleneck = sizes(rng, 3)
    width, joins = 3 * third, 2 if joins is None else joins * layers
    entries = [np.zeros((width, bottleneck)), np.zeros(bottleneck), np.zeros((bottleneck, width)), np.zeros(width)]
    same(impl(bottleneck=bottleneck, targets=targets).count(config_of(layers=layers, width=width)),
         joins * sum(e.size for e in entries), "the count", 0)


@exercise("09.3")
def test_norms_trained_along(impl, rng):
    """With train_norms the gains and biases of all norms count, those of the embedding among them."""
    layers, third = sizes(rng, 2)
    width = 3 * third
    norms = (1 + 2 * layers) * 2 * width  # one behind the embedding, two in each block, each with D gains and D biases
    same(impl(bottleneck=2, train_norms=True).count(config_of(layers=layers, width=width)),
         2 * layers * (2 * width * 2 + 2 + width) + norms, "the count", 0)


@exercise("09.3")
def test_two_sides(impl):
    """In an encoder-decoder a block of the decoder has three joins."""
    joins = 3 * 2 + 4 * 3
    same(impl(bottleneck=2, targets="attn.join,cross.join,mlp.join").count(config_of("t5")), joins * (2 * 12 * 2 + 2 + 12),
         "the count", 0)


@exercise("09.3")
@pytest.mark.parametrize("options", [{"bottleneck": 3}, {"bottleneck": 2, "targets": "mlp.join", "train_norms": True}])
def test_the_count_is_what_is_trained(impl, rng, options):
    """The count equals the numbers that are trained when the method is attached."""
    model = classifier(rng, layers=2)
    attachment = attach(model, METHODS["houlsby"](**options), rng=rng)
    same(impl(**options).count(model.config), attachment.trainable_without_head, "the count", 0)


# ---- 09.4: dropping --------------------------------------------------------------------------------------------


def switches(attachment):
    """0 or 1 for each wrapper, in the order of the paths."""
    return np.array([int(wrapper.enabled) for _, wrapper in sorted(attachment.wrappers.items())])


def wanted(attachment, blocks, on=True):
    """What they should be, read off the paths."""
    return np.array([int(on and not any(f"blocks.{n}." in path for n in range(blocks))) for path in sorted(attachment.wrappers)])


@exercise("09.4")
@pytest.mark.parametrize("blocks", range(4))
def test_the_first_blocks_are_off(impl, rng, blocks):
    """The wrappers of blocks 0 to n - 1 are off, those of the others on; the head stays on."""
    attachment = moved(classifier(rng, int(rng.integers(3, 6))), "houlsby", rng, bottleneck=2)
    impl(attachment, blocks)
    same(switches(attachment), wanted(attachment, blocks), "which wrappers are on, by path", 0)


@exercise("09.4")
def test_the_states_are_the_base_s(impl, rng):
    """With n blocks dropped, the states that enter block n are those of the model without adapters."""
    attachment, ids = moved(classifier(rng), "pfeiffer", rng, bottleneck=2), rng.integers(0, 17, (2, 5))
    with attachment.disabled() as model:
        plain = model(ids, output_hidden_states=True).hidden_states
    impl(attachment, 2)
    got = attachment.model(ids, output_hidden_states=True).hidden_states
    same(got[2], plain[2], "what enters block 2", 0)
    holds((got[3].data != plain[3].data).any(), "block 2 has no adapter any more, although only two blocks were dropped")


@exercise("09.4")
def test_they_come_back(impl, rng):
    """A second call with a smaller number brings adapters back, and 0 brings all of them."""
    attachment = moved(classifier(rng), "parallel", rng, bottleneck=2)
    for blocks in (3, 1, 2, 0):
        impl(attachment, blocks)
        same(switches(attachment), wanted(attachment, blocks), f"which wrappers are on after dropping {blocks}", 0)


@exercise("09.4")
def test_what_is_off_stays_off(impl, rng):
    """Of an attachment that is switched off as a whole no adapter is switched on."""
    attachment = moved(classifier(rng), "houlsby", rng, bottleneck=2)
    adapters = [wrapper for path, wrapper in attachment.wrappers.items() if "blocks" in path]
    with attachment.disabled():
        impl(attachment, 1)
        same(sum(wrapper.enabled for wrapper in adapters), 0, "the number of adapters that are on", 0)


@exercise("09.4")
def test_both_sides(impl, rng):
    """In an encoder-decoder the first blocks of both sides are meant, and as many can be dropped as the longer side has."""
    attachment = moved(Seq2Seq(config_of("t5"), rng).eval(), "pfeiffer", rng, bottleneck=2)  # 3 and 4 blocks
    for blocks in (1, 4):
        impl(attachment, blocks)
        same(switches(attachment), wanted(attachment, blocks), f"which wrappers are on after dropping {blocks}", 0)


@exercise("09.4")
def test_what_cannot_be_dropped(impl, rng):
    """ValueError for a number outside 0 to L, for what is merged, and for what acts in no block."""
    adapters, lora = moved(classifier(rng), "houlsby", rng, bottleneck=2), moved(classifier(rng), "lora", rng, rank=1)
    lora.merge()
    prompt = moved(classifier(rng), "prompt", rng, num_virtual_tokens=2)
    for attachment, blocks, what in ((adapters, -1, "-1 blocks"), (adapters, 4, "4 blocks of 3"),
                                     (lora, 1, "a merged attachment"), (prompt, 1, "a soft prompt, which acts in no block")):
        try:
            impl(attachment, blocks)
            refused = False
        except ValueError:
            refused = True
        holds(refused, f"{what} was not refused; expected a ValueError")


# ---- 09.5: Compacter's matrices --------------------------------------------------------------------------------


def kronecker(impl, rng, n=3, rows=2, columns=4):
    """A map of n products with numbers everywhere, (n rows, n columns), in float64."""
    layer = impl(Parameter(rng.standard_normal((n, n, n))), n * rows, n * columns, rng, 1.0).astype(np.float64)
    for name, shape in (("s", (n, rows, 1)), ("t", (n, 1, columns))):
        getattr(layer, name).data = rng.standard_normal(shape)
    return layer


def entries(a, s, t):
    """W, entry by entry."""
    n, rows, columns = len(a), s.shape[1], t.shape[2]
    out = np.zeros((n * rows, n * columns))
    for i in range(n * rows):
        for j in range(n * columns):
            out[i, j] = sum(a[k, i // rows, j // columns] * s[k, i % rows, 0] * t[k, 0, j % columns] for k in range(n))
    return out


@exercise("09.5")
@pytest.mark.parametrize("n, rows, columns", [(3, 2, 4), (2, 5, 1), (4, 3, 2)])
def test_entry_by_entry(impl, rng, n, rows, columns):
    """W is the sum of the Kronecker products of A_i with s_i t_i, (D_in, D_out)."""
    layer = kronecker(impl, rng, n, rows, columns)
    same(layer.weight(), Tensor(entries(layer.A.data, layer.s.data, layer.t.data)), "W", 1e-10)


@exercise("09.5")
def test_one_product(impl, rng):
    """With n = 1, W is the number A times s t, of rank 1."""
    layer = kronecker(impl, rng, 1, 4, 3)
    same(layer.weight(), Tensor(layer.A.data[0, 0, 0] * layer.s.data[0] @ layer.t.data[0]), "W", 1e-10)


@exercise("09.5")
def test_gradients_of_the_factors(impl, rng):
    """Gradients reach A, s and t, and are those of the sum of products."""
    layer, g = kronecker(impl, rng), rng.standard_normal((6, 12))
    layer.weight().backward(g)
    a, s, t = layer.A.data, layer.s.data, layer.t.data
    four = g.reshape(3, 2, 3, 4)  # (a, p, b, q)
    same(layer.A.grad, np.einsum("apbq,ip,iq->iab", four, s[:, :, 0], t[:, 0]), "dA", 1e-10)
    same(layer.s.grad, np.einsum("apbq,iab,iq->ip", four, a, t[:, 0])[:, :, None], "ds", 1e-10)
    same(layer.t.grad, np.einsum("apbq,iab,ip->iq", four, a, s[:, :, 0])[:, None], "dt", 1e-10)


@exercise("09.5")
def test_finite_differences(impl, rng):
    """The gradients agree with finite differences."""
    layer = kronecker(impl, rng, 2, 2, 3)

    def through(a, s, t):
        layer.A, layer.s, layer.t = a, s, t
        return layer.weight()

    gradcheck(through, layer.A.data, layer.s.data, layer.t.data, rng=rng)


@exercise("09.5")
def test_the_layer_uses_it(impl, rng):
    """x W + b with this W is what the layer gives, and with t at zero it gives 0."""
    layer, x = kronecker(impl, rng), rng.standard_normal((4, 6))
    same(layer(Tensor(x)), Tensor(x @ entries(layer.A.data, layer.s.data, layer.t.data)), "x W", 1e-10)
    layer.t.data = np.zeros_like(layer.t.data)
    same(layer(Tensor(x)), Tensor(np.zeros((4, 12))), "x W with t at zero", 1e-12)
