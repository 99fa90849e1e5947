"""What an answer to lesson 10 must do: which biases, the scales and their merging, the labels' vectors,
and which numbers matter."""

from dataclasses import replace

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.data import Batch
from minipeft.interop import make_model
from minipeft.learn.claims import exercise, holds, same
from minipeft.methods import BitFit, FisherMask, attach
from minipeft.methods.ia3 import IA3
from minipeft.methods.fisher import class_logits
from minipeft.models import TransformerConfig
from minipeft.nn import Linear


def small(family="bert", layers=2, pooling="mean", labels=("a", "b", "c"), **more):
    """A small config; D = 12, F = 20."""
    shape = {"vocab_size": 17, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20,
             "max_position_embeddings": 16, "type_vocab_size": 2 if family == "bert" else 0, "initializer_range": 0.4}
    return TransformerConfig(model_type=family, num_hidden_layers=layers, labels=labels, pooling=pooling, **shape | more)


def classifier(rng, **more):
    """A small classifier with numbers everywhere."""
    model = make_model(small(**more), "classify", rng).eval()
    for path, p in model.named_parameters():
        if path.endswith(".bias"):
            p.data = rng.standard_normal(p.shape)
    return model.astype(np.float64)


IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [8, 9, 7, 9, 3]])

# ---- 10.1: which biases -----------------------------------------------------------------------------------------

BLOCK = ("attn.q", "attn.k", "attn.v", "attn.out", "attn.join.norm", "mlp.up", "mlp.down", "mlp.join.norm")


def compare(found, model, expected):
    """The paths in an answer against those that should be there, and whether each is the model's own Parameter."""
    holds(isinstance(found, dict), f"base_parameters gives {type(found).__name__}; expected a dict of path: Parameter")
    own = dict(model.named_parameters())
    strange = [path for path in found if path not in own]
    holds(not strange, f"{strange[:2]} are no paths of parameters; a path ends in .bias, as in blocks.0.attn.q.bias")
    same(np.array([path in found for path in own]), np.array([path in expected for path in own]),
         f"whether each of the {len(own)} parameters is trained", 0)
    holds(all(found[path] is own[path] for path in found),
          "the Parameters are copies; training them would leave the model as it is")


@exercise("10.1")
@pytest.mark.parametrize("layers", [1, 3])
def test_every_bias(impl, rng, layers):
    """All biases are trained: those of the maps of the blocks and those of the norms,
    but not the classifier's, which is the head's."""
    model = classifier(rng, layers=layers)
    compare(impl().base_parameters(model), model,
            ["embed.norm.bias", *(f"blocks.{i}.{name}.bias" for i in range(layers) for name in BLOCK)])


@exercise("10.1")
def test_the_pooler(impl, rng):
    """BERT's pooler is part of the pre-trained model: its bias is trained."""
    model = classifier(rng, pooling="pooler")
    compare(impl().base_parameters(model), model,
            ["embed.norm.bias", "head.pooler.bias", *(f"blocks.{i}.{name}.bias" for i in range(2) for name in BLOCK)])


@exercise("10.1")
def test_two_terms(impl, rng):
    """With terms="two" only the biases of the queries and of the feed-forward's first map are trained."""
    model = classifier(rng)
    compare(impl(terms="two").base_parameters(model), model,
            [f"blocks.{i}.{name}.bias" for i in range(2) for name in ("attn.q", "mlp.up")])


@exercise("10.1")
def test_a_decoder(impl, rng):
    """In GPT-2 the norms stand elsewhere; their biases are trained just so, and the last norm's too."""
    model = classifier(rng, family="gpt2", pooling="last")
    names = [name.replace(".join", "") for name in BLOCK]
    compare(impl().base_parameters(model), model,
            ["final_norm.bias", *(f"blocks.{i}.{name}.bias" for i in range(2) for name in names)])


@exercise("10.1")
def test_the_count_is_the_formula(impl, rng):
    """For BERT (7 D + F) L + D numbers are trained."""
    model = classifier(rng, layers=3)
    found = impl().base_parameters(model)
    same(sum(p.size for p in found.values()), (7 * 12 + 20) * 3 + 12, "how many numbers are trained", 0)


@exercise("10.1")
def test_everything_else_stays(impl, rng):
    """A step moves the biases and the head; every other array keeps its bits."""
    model = classifier(rng)
    before = {path: p.data.copy() for path, p in model.named_parameters()}
    attachment = attach(model, impl(), rng=rng)
    model(IDS).logits.backward(rng.standard_normal((3, 3)))
    for p in attachment.named_parameters().values():
        holds(p.grad is not None, "something that is trained got no gradient")
        p.data -= 0.1 * p.grad
    changed = [path for path, p in model.named_parameters() if not np.array_equal(p.data, before[path])]
    biases = [path for path in before if path.endswith(".bias") and not path.startswith("head.") and ".attn.k." not in path]
    same(np.array([path in changed for path in before if ".attn.k." not in path]),
         np.array([path in biases for path in before if ".attn.k." not in path]), "which arrays of the base have moved", 0)


@exercise("10.1")
def test_no_bias_at_all(impl, rng):
    """A model without a bias is refused with ValueError, unless biases of zeros are to be added;
    then the base has none to train."""
    model = make_model(small("llama", pooling="last", attention_bias=False, attention_out_bias=False, mlp_bias=False),
                       "classify", rng)
    added = impl(add_zero_biases=True).base_parameters(model)
    holds(isinstance(added, dict) and not added, "with add_zero_biases a model without biases should give an empty dict")
    try:
        impl().base_parameters(model)
    except ValueError:
        holds(True, "")
    else:
        holds(False, "a model without a bias was not refused; raise ValueError")


# ---- 10.2: the scales -------------------------------------------------------------------------------------------


def scaled(kind, rng, at_input, bias=True):
    """(a layer with scales everywhere, W, b, l): D_in 5 to 7, D_out 2 to 4."""
    d_in, d_out = int(rng.integers(5, 8)), int(rng.integers(2, 5))
    base = Linear(d_in, d_out, bias, rng=rng, std=1.0).astype(np.float64)
    if bias:
        base.bias.data = rng.standard_normal(d_out)
    base.requires_grad_(False)
    layer = kind(base, at_input)
    layer.l.data = 0.5 + rng.random(d_in if at_input else d_out)
    return layer, base.weight.data, base.bias.data if bias else None, layer.l.data


def by_hand(x, w, b, l, at_input):
    """The layer for rows x (N, D_in), number by number."""
    out = np.zeros((len(x), w.shape[1]))
    for n in range(len(x)):
        for j in range(w.shape[1]):
            total = b[j] + sum(x[n, i] * (l[i] if at_input else 1.0) * w[i, j] for i in range(w.shape[0]))
            out[n, j] = total if at_input else l[j] * total
    return out


@exercise("10.2")
@pytest.mark.parametrize("at_input", [False, True])
def test_a_fresh_one_changes_nothing(impl, rng, at_input):
    """Where every scale is 1, the layer gives what the map gave before."""
    layer, w, b, l = scaled(impl, rng, at_input)
    layer.l.data = np.ones_like(l)
    x = rng.standard_normal((3, w.shape[0]))
    same(layer(Tensor(x)), Tensor(x @ w + b), "h", 1e-12)


@exercise("10.2")
@pytest.mark.parametrize("at_input", [False, True])
def test_each_coordinate_has_its_scale(impl, rng, at_input):
    """Coordinate j is multiplied by l_j: of the output for keys and values, of the input for the feed-forward."""
    layer, w, b, l = scaled(impl, rng, at_input)
    x = rng.standard_normal((4, w.shape[0]))
    same(layer(Tensor(x)), Tensor(by_hand(x, w, b, l, at_input)), "h", 1e-10)


@exercise("10.2")
def test_leading_axes(impl, rng):
    """y may be (B, T, D): the same scales at every place of every text."""
    layer, w, b, l = scaled(impl, rng, False)
    y = rng.standard_normal((2, 3, w.shape[1]))
    same(layer.scale(Tensor(y)), Tensor(np.array([[[l[j] * v for j, v in enumerate(row)] for row in text] for text in y])),
         "l * y", 1e-12)


@exercise("10.2")
@pytest.mark.parametrize("at_input", [False, True])
def test_gradients(impl, rng, at_input):
    """dl sums over texts and places; dx goes through the scales; W gets none."""
    layer, w, b, l = scaled(impl, rng, at_input)
    x, g = Tensor(rng.standard_normal((2, 3, w.shape[0])), requires_grad=True), rng.standard_normal((2, 3, w.shape[1]))
    layer(x).backward(g)
    rows, up = x.data.reshape(6, -1), g.reshape(6, -1)
    dl = ((up @ w.T) * rows if at_input else up * (rows @ w + b)).sum(axis=0)
    dx = (up @ w.T) * l if at_input else (up * l) @ w.T
    same(layer.l.grad, dl, "dl", 1e-10)
    same(x.grad, dx.reshape(x.shape), "dx", 1e-10)
    holds(layer.wrapped.weight.grad is None, "the frozen W got a gradient; its map must stay frozen")


@exercise("10.2")
@pytest.mark.parametrize("shape", [(3, 2), (3,)])
def test_rows_that_the_scales_are_not_for(impl, rng, shape):
    """Rows of the batch whose entry in self.rows is False go through unchanged."""
    layer, w, b, l = scaled(impl, rng, False)
    y = rng.standard_normal((*shape, w.shape[1]))
    layer.rows = np.array([True, False, True])
    expected = y * l
    expected[1] = y[1]
    same(layer.scale(Tensor(y)), Tensor(expected), "l * y in its rows", 1e-12)


@exercise("10.2")
def test_those_rows_leave_no_gradient(impl, rng):
    """Only the rows that the scales are for count in dl; dy of the others is what came."""
    layer, w, b, l = scaled(impl, rng, False)
    y, g = Tensor(rng.standard_normal((3, 2, w.shape[1])), requires_grad=True), rng.standard_normal((3, 2, w.shape[1]))
    layer.rows = np.array([False, True, True])
    layer.scale(y).backward(g)
    dy = g * l
    dy[0] = g[0]
    same(layer.l.grad, (g * y.data)[1:].sum(axis=(0, 1)), "dl", 1e-10)
    same(y.grad, dy, "dy", 1e-10)


# ---- 10.3: merging ----------------------------------------------------------------------------------------------


@exercise("10.3")
def test_scaled_outputs(impl, rng):
    """Behind the map: column j of W and entry j of b are multiplied by l_j."""
    layer, w, b, l = scaled(impl, rng, False)
    weight, bias = layer.merged_arrays(w, b)
    same(weight, np.array([[w[i, j] * l[j] for j in range(len(l))] for i in range(len(w))]), "W'", 1e-12)
    same(bias, np.array([b[j] * l[j] for j in range(len(l))]), "b'", 1e-12)


@exercise("10.3")
def test_scaled_inputs(impl, rng):
    """Before the map: row i of W is multiplied by l_i, and b stays."""
    layer, w, b, l = scaled(impl, rng, True)
    weight, bias = layer.merged_arrays(w, b)
    same(weight, np.array([[l[i] * w[i, j] for j in range(w.shape[1])] for i in range(len(l))]), "W'", 1e-12)
    same(bias, b, "b'", 1e-12)


@exercise("10.3")
@pytest.mark.parametrize("at_input", [False, True])
def test_merged_equals_beside(impl, rng, at_input):
    """x W' + b' is what the layer gives with its scales beside the map."""
    layer, w, b, l = scaled(impl, rng, at_input)
    x = rng.standard_normal((4, w.shape[0]))
    weight, bias = layer.merged_arrays(w, b)
    same(x @ weight + bias, layer(Tensor(x)).data, "x W' + b'", 1e-10)


@exercise("10.3")
@pytest.mark.parametrize("at_input", [False, True])
def test_without_a_bias(impl, rng, at_input):
    """A map without a bias has none when merged: None."""
    layer, w, _, l = scaled(impl, rng, at_input, bias=False)
    weight, bias = layer.merged_arrays(w, None)
    same(weight, l[:, None] * w if at_input else w * l, "W'", 1e-12)
    holds(bias is None, "b' is not None although the map has no bias")


@exercise("10.3")
@pytest.mark.parametrize("at_input", [False, True])
def test_the_base_is_not_written_to(impl, rng, at_input):
    """The given arrays stay as they are, so that unmerging gives them back bit for bit."""
    layer, w, b, l = scaled(impl, rng, at_input)
    before = w.copy(), b.copy()
    layer.merged_arrays(w, b)
    same(w, before[0], "the given W", 0)
    same(b, before[1], "the given b", 0)


@exercise("10.3")
def test_a_whole_model(impl, rng, graft):
    """A whole model, merged, gives what it gave with the scales beside; unmerged it is the base again, bit for bit."""
    model = classifier(rng)
    base = model(IDS).logits.data
    attachment = attach(model, IA3(), rng=rng)
    for p in attachment.named_parameters().values():
        p.data = p.data.astype(np.float64) * (0.7 + 0.6 * rng.random(p.shape))
    beside = model(IDS).logits.data
    with graft():
        attachment.merge()
        same(model(IDS).logits.data, beside, "the merged logits", 1e-9)
        with attachment.disabled():
            same(model(IDS).logits.data, base, "the base's logits", 0)


# ---- 10.4: the labels' vectors ----------------------------------------------------------------------------------


def output(kind, rng, part, columns=(4, 1), outputs=6, width=5):
    """(a layer on an output map, W, b, what was learned)."""
    base = Linear(width, outputs, rng=rng, std=1.0).astype(np.float64)
    base.bias.data = rng.standard_normal(outputs)
    base.requires_grad_(False)
    layer = kind(base, part, list(columns), outputs, width, np.float64)
    own = layer.d if part == "embedding" else layer.b
    own.data = rng.standard_normal(own.shape)
    return layer, base.weight.data, base.bias.data, own.data


def logits(h, w, b, own, part, columns):
    """The logits of one state h (D,), number by number."""
    out = np.array([b[v] + sum(h[i] * w[i, v] for i in range(len(h))) for v in range(w.shape[1])])
    for c, v in enumerate(columns):
        out[v] += sum(h[i] * own[c, i] for i in range(len(h))) if part == "embedding" else own[c]
    return out


PARTS = pytest.mark.parametrize("part", ["embedding", "bias"])


@exercise("10.4")
@PARTS
def test_a_fresh_label_changes_nothing(impl, rng, part):
    """Where d or b is zero, the logits are those from before."""
    layer, w, b, own = output(impl, rng, part)
    for p in (layer.d, layer.b):
        if p is not None:
            p.data = np.zeros_like(p.data)
    h = rng.standard_normal((3, 5))
    same(layer(Tensor(h)), Tensor(h @ w + b), "the logits", 1e-12)


@exercise("10.4")
@PARTS
@pytest.mark.parametrize("columns", [(4, 1), (0,), (5, 2, 3)])
def test_only_the_labels_move(impl, rng, part, columns):
    """Label c's logit moves by h . d_c, or by b_c; every other logit stays."""
    layer, w, b, own = output(impl, rng, part, columns)
    h = rng.standard_normal((3, 5))
    same(layer(Tensor(h)), Tensor(np.array([logits(row, w, b, own, part, columns) for row in h])), "the logits", 1e-10)


@exercise("10.4")
@PARTS
def test_the_states_of_a_text(impl, rng, part):
    """h may be (B, T, D): the labels move at every place."""
    layer, w, b, own = output(impl, rng, part)
    h = rng.standard_normal((2, 3, 5))
    expected = np.array([[logits(row, w, b, own, part, (4, 1)) for row in text] for text in h])
    same(layer(Tensor(h)), Tensor(expected), "the logits", 1e-10)


@exercise("10.4")
@PARTS
def test_the_gradients_of_the_labels(impl, rng, part):
    """dd_c is the sum of g_c h, and db_c the sum of g_c; the state's gradient sees the moved vectors, and W gets none."""
    layer, w, b, own = output(impl, rng, part)
    h, g = Tensor(rng.standard_normal((2, 3, 5)), requires_grad=True), rng.standard_normal((2, 3, 6))
    layer(h).backward(g)
    rows, up = h.data.reshape(6, 5), g.reshape(6, 6)
    if part == "embedding":
        same(layer.d.grad, np.array([(up[:, v, None] * rows).sum(axis=0) for v in (4, 1)]), "dd", 1e-10)
        moved = w.copy()
        moved[:, 4], moved[:, 1] = moved[:, 4] + own[0], moved[:, 1] + own[1]
        same(h.grad, (up @ moved.T).reshape(2, 3, 5), "dh", 1e-10)
    else:
        same(layer.b.grad, np.array([up[:, v].sum() for v in (4, 1)]), "db", 1e-10)
        same(h.grad, (up @ w.T).reshape(2, 3, 5), "dh", 1e-10)
    holds(layer.wrapped.weight.grad is None, "the frozen W got a gradient; its map must stay frozen")


@exercise("10.4")
@PARTS
def test_merged_equals_the_layer(impl, rng, part):
    """h W' + b', with what the package merges, is what the layer gives."""
    layer, w, b, own = output(impl, rng, part)
    weight, bias = layer.merged_arrays(w, b)
    h = rng.standard_normal((4, 5))
    same(layer(Tensor(h)), Tensor(h @ weight + bias), "the logits", 1e-10)


# ---- 10.5: Fisher information -----------------------------------------------------------------------------------


def examples(rng, count, labels=3):
    """Batches of one text each, of different lengths."""
    out = []
    for _ in range(count):
        length = int(rng.integers(3, 7))
        ids = rng.integers(0, 17, (1, length))
        out.append(Batch(ids, np.ones_like(ids), np.zeros_like(ids), rng.integers(0, labels, 1)))
    return out


def from_the_logits(model, batches, scores=class_logits):
    """F by another way: d log p_y = dz_y - sum_c p_c dz_c, from the derivatives of each logit by itself."""
    maps = [f"blocks.{i}.{name}" for i in range(model.config.num_hidden_layers)
            for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")]
    own = dict(model.named_parameters())
    paths = [f"{path}.{part}" for path in maps for part in ("weight", "bias")]
    out = {path: np.zeros(own[path].shape) for path in paths}
    for batch in batches:
        slopes = []
        for c in range(scores(model, batch).shape[1]):
            model.zero_grad()
            z = scores(model, batch)
            z.backward(np.eye(z.shape[1])[[c]])
            slopes.append({path: own[path].grad.copy() for path in paths})
        p = np.exp(z.data[0]) / np.exp(z.data[0]).sum()
        for path in paths:
            mean = sum(p[c] * slopes[c][path] for c in range(len(p)))
            out[path] += sum(p[y] * (slopes[y][path] - mean) ** 2 for y in range(len(p))) / len(batches)
    model.zero_grad()
    return out


@exercise("10.5")
@pytest.mark.parametrize("count", [1, 3])
def test_the_definition(impl, rng, count):
    """F is the mean over texts of the squared slopes of log p(y|x), over all classes y, each weighed by p(y|x)."""
    model, batches = classifier(rng), examples(rng, count)
    expected, found = from_the_logits(model, batches), impl(model, batches)
    holds(isinstance(found, dict) and set(found) == set(expected),
          "F must have an entry for the weight and the bias of each map of the blocks, and no other")
    for path in ("blocks.0.attn.q.weight", "blocks.0.attn.v.bias", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.bias"):
        same(found[path], expected[path], f"F of {path}", 1e-7)


@exercise("10.5")
def test_two_classes(impl, rng):
    """Two classes and one block are the same case."""
    model, batches = classifier(rng, layers=1, labels=("no", "yes")), examples(rng, 2, 2)
    expected, found = from_the_logits(model, batches), impl(model, batches)
    for path in ("blocks.0.attn.out.weight", "blocks.0.mlp.up.bias"):
        same(found[path], expected[path], f"F of {path}", 1e-7)


@exercise("10.5")
def test_other_scores(impl, rng):
    """What is asked is what `scores` says, of as many classes as it has, and not the classifier alone."""
    model, batches = classifier(rng), examples(rng, 2)
    mix = Tensor(rng.normal(size=(3, 4)))
    scores = lambda model, batch: class_logits(model, batch) @ mix
    expected, found = from_the_logits(model, batches, scores), impl(model, batches, scores)
    for path in ("blocks.0.attn.v.weight", "blocks.1.mlp.down.bias"):
        same(found[path], expected[path], f"F of {path} under other scores", 1e-7)


@exercise("10.5")
def test_the_labels_are_not_read(impl, rng):
    """F asks the model what it would say, and not the data: other labels give the same F."""
    model, batches = classifier(rng), examples(rng, 2)
    other = [replace(batch, labels=(batch.labels + 1) % 3) for batch in batches]
    first, second = impl(model, batches), impl(model, other)
    same(second["blocks.1.attn.v.weight"], first["blocks.1.attn.v.weight"], "F with other labels", 1e-12)


@exercise("10.5")
def test_a_frozen_model(impl, rng):
    """A frozen model has an F as well, and what was frozen is frozen again afterwards."""
    model, batches = classifier(rng), examples(rng, 1)
    expected = from_the_logits(model, batches)
    model.requires_grad_(False)
    model.get("blocks.0.mlp.up").weight.requires_grad = True
    found = impl(model, batches)
    same(found["blocks.1.attn.out.weight"], expected["blocks.1.attn.out.weight"], "F of a frozen map", 1e-7)
    same(np.array([p.requires_grad for p in model.parameters()]),
         np.array([path == "blocks.0.mlp.up.weight" for path, _ in model.named_parameters()]), "what is released afterwards", 0)


@exercise("10.5")
def test_one_text_at_a_time(impl, rng):
    """A batch of several texts is refused with ValueError: the square of a mean gradient is not the mean of the squares."""
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    try:
        impl(classifier(rng), [Batch(ids, np.ones_like(ids), np.zeros_like(ids), np.array([0, 1]))])
    except ValueError:
        holds(True, "")
    else:
        holds(False, "a batch of two texts was not refused; raise ValueError where a batch has more than one")


@exercise("10.5")
def test_the_mask_takes_the_largest(impl, rng):
    """With this F the mask keeps the entries that matter most."""
    model, batches = classifier(rng), examples(rng, 2)
    expected, found = from_the_logits(model, batches), impl(model, batches)
    every = np.concatenate([array.reshape(-1) for array in expected.values()])
    attachment = attach(model, FisherMask(share=0.02, importance=found), rng=rng)
    kept = round(0.02 * every.size)
    mine = sum(expected[f"{path}.{part}"].reshape(-1)[place[inside]].sum() for path, wrapper in attachment.wrappers.items()
               if hasattr(wrapper, "indices") for part, place, inside in places(wrapper, expected[f"{path}.weight"].size))
    same(float(mine), float(np.sort(every)[-kept:].sum()), f"the sum of F over the {kept} entries kept", 1e-9)


def places(wrapper, size):
    """(part, places in it, which of the indices) of a masked map."""
    i = wrapper.indices
    return [("weight", i, i < size), ("bias", i - size, i >= size)]
