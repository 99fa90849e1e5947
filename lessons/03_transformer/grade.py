"""What an answer to lesson 3 must do: heads, attention under its masks, rotary positions, the sub-layer, the cache."""

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.models import Decoder, KVCache, LMHead, TransformerConfig
from minipeft.models.generation import LayerCache, SourceCache
from minipeft.nn import Join, LayerNorm, Linear, Rotary


def seen(mask, causal, queries, keys, b, i, j):
    """Whether query i of row b may see key j."""
    return (mask is None or bool(mask[b, j])) and (not causal or j <= i + keys - queries)


def weights_of(q, k, mask=None, bias=None, scale=1.0, causal=False):
    """Attention weights (B, H, T, S), number by number."""
    batch, heads, queries, width = q.shape
    keys, shared = k.shape[2], heads // k.shape[1]
    out = np.zeros((batch, heads, queries, keys))
    for b, h, i in np.ndindex(batch, heads, queries):
        z = {}
        for j in range(keys):
            if seen(mask, causal, queries, keys, b, i, j):
                z[j] = scale * sum(q[b, h, i, c] * k[b, h // shared, j, c] for c in range(width))
                z[j] += 0.0 if bias is None else bias[b % len(bias), h, i, j]
        total = sum(math.exp(each - max(z.values())) for each in z.values())
        for j, each in z.items():
            out[b, h, i, j] = math.exp(each - max(z.values())) / total
    return out


def turned(x, position, inverse):
    """A vector (K,) with the pairs (c, c + K/2) turned."""
    half, out = len(x) // 2, np.zeros(len(x))
    for c in range(half):
        angle = position * inverse[c]
        out[c] = x[c] * math.cos(angle) - x[c + half] * math.sin(angle)
        out[c + half] = x[c + half] * math.cos(angle) + x[c] * math.sin(angle)
    return out


def arrays(rng, queries=3, keys=5, heads=2, key_heads=2, width=3, batch=2):
    """q (B, H, T, K) and k (B, H', S, K)."""
    return rng.standard_normal((batch, heads, queries, width)), rng.standard_normal((batch, key_heads, keys, width))


# ---- 03.1: the heads -------------------------------------------------------------------------------------------


def attention(kind, rng, heads=2, key_heads=None, width=3, size=7, pre=False, rotary=None, causal=False, dropout=0.0, scale=None):
    """An attention sub-layer in float64 with numbers everywhere, its biases and norms too."""
    linear = lambda d_in, d_out, bias: Linear(d_in, d_out, bias, rng, 0.6)
    norm = lambda: LayerNorm(size)
    layer = kind(linear, size, heads, key_heads or heads, width, True, True, causal, norm() if pre else None,
                 Join(None if pre else norm()), rotary, dropout, scale=scale).astype(np.float64)
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data + 0.5 * rng.standard_normal(parameter.shape)
    return layer


@exercise("03.1")
@pytest.mark.parametrize("shape", [None, (1, 5, 2, 3), (3, 1, 1, 4)])
def test_each_head_has_its_columns(impl, rng, shape):
    """Entry (b, h, t, k) is x[b, t, h K + k]."""
    batch, length, heads, width = shape or sizes(rng, 4)
    layer, x = attention(impl, rng, heads, width=width), rng.standard_normal((batch, length, heads * width))
    expected = np.zeros((batch, heads, length, width))
    for b, h, t, k in np.ndindex(*expected.shape):
        expected[b, h, t, k] = x[b, t, h * width + k]
    same(layer.split(Tensor(x), heads), Tensor(expected), "the heads", 0)


@exercise("03.1")
def test_the_number_of_heads_is_given(impl, rng):
    """The number of heads is the argument, since there may be fewer key heads than query heads."""
    batch, length, width = sizes(rng, 3)
    layer, x = attention(impl, rng, heads=4, key_heads=2, width=width), rng.standard_normal((batch, length, 2 * width))
    expected = np.zeros((batch, 2, length, width))
    for b, h, t, k in np.ndindex(*expected.shape):
        expected[b, h, t, k] = x[b, t, h * width + k]
    same(layer.split(Tensor(x), 2), Tensor(expected), "the key heads", 0)


@exercise("03.1")
def test_gradients_find_their_way_back(impl, rng):
    """The gradient of x is the gradient of the heads, put side by side."""
    batch, heads, length, width = sizes(rng, 4)
    layer, x = (attention(impl, rng, heads, width=width),
                Tensor(rng.standard_normal((batch, length, heads * width)), requires_grad=True))
    g = rng.standard_normal((batch, heads, length, width))
    layer.split(x, heads).backward(g)
    expected = np.zeros((batch, length, heads * width))
    for b, h, t, k in np.ndindex(*g.shape):
        expected[b, t, h * width + k] = g[b, h, t, k]
    same(x.grad, expected, "dx", 0)


# ---- 03.2: attention weights -----------------------------------------------------------------------------------


@exercise("03.2")
def test_softmax_of_scaled_products(impl, rng):
    """The weights are softmax(scale q k^T) over the keys, made of elementary operations."""
    queries, keys, heads, width, batch = sizes(rng, 5)
    q, k = arrays(rng, queries, keys, heads, heads, width, batch)
    out = impl(Tensor(q, requires_grad=True), Tensor(k), scale=0.7)
    same(out, Tensor(weights_of(q, k, scale=0.7)), "the weights", 1e-10)
    holds(out.node is None or out.node.operation != "attention_weights",
          "you called the ready-made operation; write it from products, exp, sums and where")


@exercise("03.2")
def test_bias_is_added_behind_the_scale(impl, rng):
    """bias, one for all rows of the batch or one for each, is added to the scaled scores."""
    queries, keys, heads, width, batch = sizes(rng, 5)
    q, k = arrays(rng, queries, keys, heads, heads, width, batch)
    for rows in (1, batch):
        bias = rng.standard_normal((rows, heads, queries, keys))
        same(impl(Tensor(q), Tensor(k), bias=Tensor(bias), scale=0.3), Tensor(weights_of(q, k, bias=bias, scale=0.3)),
             f"the weights with a bias of {rows} row{'s' * (rows > 1)}", 1e-10)


@exercise("03.2")
def test_padding_weighs_nothing(impl, rng):
    """A key that the mask hides weighs exactly 0, however well it fits, and the others still sum to 1."""
    q, k = arrays(rng)
    mask = np.array([[True, True, False, True, False], [False, True, True, True, True]])
    k[~mask.repeat(2, axis=0).reshape(2, 2, 5)] *= 50
    out = impl(Tensor(q), Tensor(k), mask, scale=0.7)
    same(out, Tensor(weights_of(q, k, mask, scale=0.7)), "the weights", 1e-10)
    hidden = np.broadcast_to(~mask[:, None, None, :], out.shape)
    holds((out.data[hidden] == 0).all(), "a hidden key weighs something; it must weigh exactly 0")


@exercise("03.2")
def test_a_query_that_sees_nothing(impl, rng):
    """Where no key may be seen all weights are 0, and nothing is NaN."""
    q, k = arrays(rng)
    mask = np.array([[False] * 5, [True] * 5])
    same(impl(Tensor(q), Tensor(k), mask), Tensor(weights_of(q, k, mask)), "the weights", 1e-10)


@exercise("03.2")
@pytest.mark.parametrize("extra", [0, 3])
def test_causal(impl, rng, extra):
    """Under the causal mask query i sees the keys j <= i + S - T, and exactly 0 of the others."""
    queries, width = sizes(rng, 2, low=3)
    q, k = arrays(rng, queries, queries + extra, width=width)
    out = impl(Tensor(q), Tensor(k), scale=0.5, causal=True)
    same(out, Tensor(weights_of(q, k, scale=0.5, causal=True)), f"the weights of {queries} queries over {queries + extra} keys",
         1e-10)
    same(impl(Tensor(q), Tensor(k), scale=0.5), Tensor(weights_of(q, k, scale=0.5)), "the weights where causal is false", 1e-10)


@exercise("03.2")
def test_shared_key_heads(impl, rng):
    """With fewer key heads, consecutive query heads share one."""
    q, k = arrays(rng, heads=4, key_heads=2)
    same(impl(Tensor(q), Tensor(k), scale=0.7), Tensor(weights_of(q, k, scale=0.7)), "the weights", 1e-10)


@exercise("03.2")
def test_large_scores(impl, rng):
    """Scores of thousands do not overflow: the largest of each row is subtracted before exp."""
    q, k = arrays(rng)
    with np.errstate(all="ignore"):
        same(impl(Tensor(60 * q), Tensor(60 * k)), Tensor(weights_of(60 * q, 60 * k)), "the weights", 1e-9)


@exercise("03.2")
def test_gradients_of_attention(impl, rng):
    """dq, dk and dbias are those of softmax, for a random gradient from above and under both masks."""
    q, k = (Tensor(x, requires_grad=True) for x in arrays(rng, queries=3, keys=4))
    bias, g = Tensor(rng.standard_normal((1, 2, 3, 4)), requires_grad=True), rng.standard_normal((2, 2, 3, 4))
    mask = np.array([[True, True, True, True], [True, False, True, True]])
    impl(q, k, mask, bias, 0.7, True).backward(g)
    w = weights_of(q.data, k.data, mask, bias.data, 0.7, True)
    dz = w * (g - (g * w).sum(axis=-1, keepdims=True))
    same(q.grad, 0.7 * np.einsum("bhij,bhjc->bhic", dz, k.data), "dq", 1e-8)
    same(k.grad, 0.7 * np.einsum("bhij,bhic->bhjc", dz, q.data), "dk", 1e-8)
    same(bias.grad, dz.sum(axis=0, keepdims=True), "dbias", 1e-8)


# ---- 03.3: rotary positions ------------------------------------------------------------------------------------


@exercise("03.3")
@pytest.mark.parametrize("shape", [None, (1, 1, 1)])
def test_every_pair_turns(impl, rng, shape):
    """The pair (c, c + K/2) turns by the angle p * inverse[c]."""
    heads, length, half = shape or sizes(rng, 3)
    width = 2 * half
    rotary, x = impl(width, 50.0), rng.standard_normal((2, heads, length, width))
    positions = rng.integers(0, 40, (2, length))
    expected = np.zeros(x.shape)
    for b, h, t in np.ndindex(2, heads, length):
        expected[b, h, t] = turned(x[b, h, t], positions[b, t], [50.0 ** (-2 * c / width) for c in range(width // 2)])
    same(rotary(Tensor(x), positions), Tensor(expected), "the turned vectors", 1e-9)


@exercise("03.3")
def test_one_row_of_positions_for_all(impl, rng):
    """position_ids of one row are those of all rows of the batch."""
    rotary, x, positions = impl(4, 100.0), rng.standard_normal((3, 2, 2, 4)), np.array([[5, 9]])
    expected = np.zeros(x.shape)
    for b, h, t in np.ndindex(3, 2, 2):
        expected[b, h, t] = turned(x[b, h, t], positions[0, t], [1.0, 0.1])
    same(rotary(Tensor(x), positions), Tensor(expected), "the turned vectors", 1e-9)


@exercise("03.3")
def test_only_the_distance_counts(impl, rng):
    """The product of a turned query and a turned key depends on the distance of their positions alone."""
    rotary, (q, k) = impl(8, 100.0), rng.standard_normal((2, 1, 1, 1, 8))
    score = lambda i, j: float((rotary(Tensor(q), np.array([[i]])).data * rotary(Tensor(k), np.array([[j]])).data).sum())
    same(score(30, 33), score(0, 3), "the score at the positions 30 and 33, against 0 and 3", 1e-8)
    holds(abs(score(0, 3) - score(0, 7)) > 1e-6, "the score is the same at two distances")


@exercise("03.3")
def test_position_zero_and_the_type(impl, rng):
    """At position 0 nothing turns, and float32 stays float32."""
    x = rng.standard_normal((1, 2, 1, 6)).astype(np.float32)
    same(impl(6, 10000.0)(Tensor(x), np.array([[0]])), Tensor(x), "the vectors", 1e-6)


@exercise("03.3")
def test_gradients_turn_back(impl, rng):
    """The gradient of x is the gradient from above, turned back."""
    rotary, x = impl(6, 50.0), Tensor(rng.standard_normal((1, 1, 2, 6)), requires_grad=True)
    g, positions = rng.standard_normal((1, 1, 2, 6)), np.array([[3, 8]])
    rotary(x, positions).backward(g)
    expected = np.zeros(g.shape)
    for t in range(2):
        expected[0, 0, t] = turned(g[0, 0, t], -positions[0, t], [50.0 ** (-c / 3) for c in range(3)])
    same(x.grad, expected, "dx", 1e-9)


# ---- 03.4: the sub-layer ---------------------------------------------------------------------------------------


def normalised(norm, x):
    """Layer norm of the rows of x; x itself where there is no norm."""
    if norm is None:
        return x
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + norm.eps) * norm.weight.data + norm.bias.data


def sublayer(layer, x, source=None, mask=None, bias=None, positions=None):
    """What an attention sub-layer gives for x (B, T, D), slowly."""
    h, causal = normalised(layer.norm, x), layer.core.causal
    read = h if source is None else source
    width, heads, key_heads = layer.head_width, layer.heads, layer.key_heads
    mapped = lambda map, y: y @ map.weight.data + map.bias.data
    apart = lambda map, y, n: np.stack([mapped(map, y)[..., c * width:(c + 1) * width] for c in range(n)], axis=1)
    q, k, v = apart(layer.q, h, heads), apart(layer.k, read, key_heads), apart(layer.v, read, key_heads)
    if positions is not None:
        for each in (q, k):
            for b, c, t in np.ndindex(each.shape[:3]):
                each[b, c, t] = turned(each[b, c, t], positions[b, t], layer.rotary.inverse)
    w = weights_of(q, k, mask, bias, layer.scale, causal)
    joined = np.concatenate([np.einsum("bij,bjc->bic", w[:, c], v[:, c // (heads // key_heads)]) for c in range(heads)], axis=-1)
    return normalised(layer.join.norm, x + joined @ layer.out.weight.data + layer.out.bias.data)


@exercise("03.4")
@pytest.mark.parametrize("pre", [False, True])
def test_attention_with_its_residual(impl, rng, pre):
    """The output is join(x, out(attention of norm(x))): pre-norm x + h, post-norm norm(x + h), with the heads side by side."""
    heads, width, size, length = sizes(rng, 4, high=7)
    layer, x = attention(impl, rng, heads, width=width, size=size, pre=pre), rng.standard_normal((2, length, size))
    same(layer(Tensor(x)), Tensor(sublayer(layer, x)), "y", 1e-9)


@exercise("03.4")
def test_masks_bias_and_scale_reach_the_core(impl, rng):
    """The core gets the mask, the bias and self.scale."""
    layer, x = attention(impl, rng, heads=2, width=3, causal=True, scale=0.9), rng.standard_normal((2, 3, 7))
    mask, bias = np.array([[True, True, True], [True, False, True]]), rng.standard_normal((1, 2, 3, 3))
    same(layer(Tensor(x)), Tensor(sublayer(layer, x)), "y", 1e-9)
    same(layer(Tensor(x), mask), Tensor(sublayer(layer, x, mask=mask)), "y with a mask", 1e-9)
    same(layer(Tensor(x), bias=Tensor(bias)), Tensor(sublayer(layer, x, bias=bias)), "y with a bias", 1e-9)


@exercise("03.4")
def test_rotary_and_shared_key_heads(impl, rng):
    """Queries are split into self.heads heads, keys into fewer, and both are turned by their positions."""
    layer = attention(impl, rng, heads=4, key_heads=2, width=4, rotary=Rotary(4, 20.0), pre=True)
    x, positions = rng.standard_normal((2, 3, 7)), np.array([[0, 1, 2], [4, 5, 9]])
    same(layer(Tensor(x), position_ids=positions), Tensor(sublayer(layer, x, positions=positions)), "y", 1e-9)


@exercise("03.4")
def test_token_by_token_with_a_cache(impl, rng):
    """With a cache, token by token gives what the whole text gives under the causal mask."""
    heads, half, size = sizes(rng, 3)
    layer = attention(impl, rng, heads, width=2 * half, size=size, causal=True, pre=True, rotary=Rotary(2 * half, 20.0))
    x = rng.standard_normal((2, 4, size))
    expected, cache = sublayer(layer, x, positions=np.array([[0, 1, 2, 3]] * 2)), LayerCache()
    for start, stop in ((0, 2), (2, 3), (3, 4)):
        y = layer(Tensor(x[:, start:stop]), position_ids=np.arange(start, stop)[None], cache=cache)
        same(y, Tensor(expected[:, start:stop]), f"y of the tokens {start} to {stop - 1}", 1e-9)


@exercise("03.4")
def test_cross_attention(impl, rng):
    """With a source, keys and values are made of its states as they are, queries of norm(x)."""
    layer, x, source = attention(impl, rng, pre=True), rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 5, 7))
    mask = np.array([[True] * 5, [True, True, False, True, False]])
    same(layer(Tensor(x), mask, source=Tensor(source)), Tensor(sublayer(layer, x, source, mask)), "y", 1e-9)


@exercise("03.4")
def test_the_source_is_read_once(impl, rng):
    """In cross-attention with a cache, keys and values are made at the first call, by cache.once, and kept."""
    layer, (first, second) = attention(impl, rng, pre=True), rng.standard_normal((2, 2, 1, 7))
    source, cache, calls = rng.standard_normal((2, 5, 7)), SourceCache(), []
    ready_made = layer.keys_values
    layer.keys_values = lambda *given: calls.append(1) or ready_made(*given)
    for x in (first, second):
        same(layer(Tensor(x), source=Tensor(source), cache=cache), Tensor(sublayer(layer, x, source)), "y", 1e-9)
    holds(len(calls) == 1, f"keys and values of the source were made {len(calls)} times; expected once")


@exercise("03.4")
def test_dropout_is_before_the_join(impl, rng):
    """self.dropout acts on what self.out gives, and the residual x goes around it."""
    layer, x = attention(impl, rng, pre=True), rng.standard_normal((2, 3, 7))
    layer.dropout.forward = lambda h: h * 0.0
    same(layer(Tensor(x)), Tensor(x), "y where dropout drops everything", 1e-12)


@exercise("03.4")
def test_gradients_reach_x_and_every_map(impl, rng):
    """dx and the gradients of the maps agree with finite differences, for a random gradient from above."""
    layer, x, g = attention(impl, rng, pre=True, causal=True), rng.standard_normal((1, 3, 7)), rng.standard_normal((1, 3, 7))
    given = Tensor(x, requires_grad=True)
    layer(given).backward(g)
    value, step = lambda: float((sublayer(layer, x) * g).sum()), 1e-6
    for name, array, grad in (("x", x, given.grad), *((name, getattr(layer, name).weight.data, getattr(layer, name).weight.grad)
                                                      for name in ("q", "v", "out"))):
        holds(grad is not None, f"no gradient reaches {name}")
        for _ in range(3):
            place = tuple(int(rng.integers(n)) for n in array.shape)
            kept = array[place]
            array[place] = kept + step
            above = value()
            array[place] = kept - step
            slope = (above - value()) / (2 * step)
            array[place] = kept
            same(np.asarray(grad[place]), np.asarray(slope), f"an entry of d{name}", 1e-4)


# ---- 03.5: the cache -------------------------------------------------------------------------------------------


def emptied(impl):
    """The class, with zeros in all room that is not written yet, so that whoever returns it returns the same in every run."""

    class Emptied(impl):
        def reserve(self, k, needed):
            super().reserve(k, needed)
            self.keys[:, :, self.length:] = self.values[:, :, self.length:] = 0

    return Emptied


@exercise("03.5")
@pytest.mark.parametrize("pieces", [(3,), (2, 1, 4), (1, 40, 2, 60)])
def test_all_that_was_stored_comes_back(impl, rng, pieces):
    """Each call returns everything stored so far, in order, however much that is."""
    batch, heads, width = sizes(rng, 3)
    cache, k, v = emptied(impl)(), *rng.standard_normal((2, batch, heads, sum(pieces), width))
    done = 0
    for size in pieces:
        given = (Tensor(x[:, :, done:done + size]) for x in (k, v))
        keys, values = cache.append(*given)
        done += size
        same(keys, Tensor(k[:, :, :done]), f"the keys after {done} places", 0)
        same(values, Tensor(v[:, :, :done]), f"the values after {done} places", 0)
        same(cache.length, done, "self.length", 0)


@exercise("03.5")
def test_after_a_cut(impl, rng):
    """Where self.length was set back, new places come behind what is left."""
    cache, (k, v) = emptied(impl)(), rng.standard_normal((2, 1, 2, 6, 3))
    cache.append(Tensor(k[:, :, :4]), Tensor(v[:, :, :4]))
    cache.length = 1
    keys, values = cache.append(Tensor(k[:, :, 4:]), Tensor(v[:, :, 4:]))
    same(keys, Tensor(k[:, :, [0, 4, 5]]), "the keys", 0)
    same(values, Tensor(v[:, :, [0, 4, 5]]), "the values", 0)


@exercise("03.5")
def test_a_decoder_with_a_cache(graft, rng):
    """A decoder that reads token by token with the cache gives the logits that it gives for the whole text."""
    config = TransformerConfig(model_type="llama", vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=12, max_position_embeddings=16, initializer_range=0.5)
    model = Decoder(config, rng)
    model.head = LMHead(config, model.embed.tokens.weight, rng)
    ids = rng.integers(0, 11, (2, 5))
    whole = model(ids).logits.data
    with graft():
        cache = KVCache(2)
        for layer in cache.layers:
            layer.keys, layer.values = np.zeros((2, 2, 2, 32, 4), np.float32)  # see `emptied`
        parts = [model(ids[:, start:stop], cache=cache).logits.data for start, stop in ((0, 3), (3, 4), (4, 5))]
    same(np.concatenate(parts, axis=1), whole, "the logits", 1e-4)
