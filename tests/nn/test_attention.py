"""The attention sub-layer against three plain loops: grouped heads, masks, rotary positions, and a cache."""

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.models.generation import LayerCache
from minipeft.nn import Attention, Join, LayerNorm, Linear, RelativeBias, Rotary


def make(rng, heads=4, key_heads=2, causal=False, pre_norm=True, rotary=False, bias=True, width=6, head_width=4, **dropouts):
    linear = lambda d_in, d_out, with_bias: Linear(d_in, d_out, with_bias)
    norms = (LayerNorm(width, 0.01), Join()) if pre_norm else (None, Join(LayerNorm(width, 0.01)))
    attn = Attention(linear, width, heads, key_heads, head_width, bias, bias, causal, *norms,
                     Rotary(head_width, 50.0) if rotary else None, **dropouts)
    for parameter in attn.parameters():
        parameter.data = rng.standard_normal(parameter.shape) * 0.7
    return attn


def naive(attn, x, mask, positions):
    """The whole sub-layer, one number at a time."""
    p = {path: parameter.data for path, parameter in attn.named_parameters()}
    batch, length, width = x.shape
    K, group = attn.head_width, attn.heads // attn.key_heads

    def norm(row, name):
        mean = sum(row) / width
        scale = math.sqrt(sum((v - mean) ** 2 for v in row) / width + 0.01)
        return [(v - mean) / scale * g + b for v, g, b in zip(row, p[f"{name}.weight"], p[f"{name}.bias"])]

    def affine(row, name):
        weight = p[f"{name}.weight"]
        offset = p.get(f"{name}.bias", np.zeros(weight.shape[1]))
        return [sum(row[i] * weight[i, j] for i in range(len(row))) + offset[j] for j in range(weight.shape[1])]

    def head(row, h, position):
        part = list(row[h * K:(h + 1) * K])
        if attn.rotary is None or position is None:
            return part
        out = [0.0] * K
        for i in range(K // 2):
            angle = position / 50.0 ** (2 * i / K)
            out[i] = part[i] * math.cos(angle) - part[i + K // 2] * math.sin(angle)
            out[i + K // 2] = part[i + K // 2] * math.cos(angle) + part[i] * math.sin(angle)
        return out

    out = np.zeros_like(x)
    for b in range(batch):
        h_in = [norm(row, "norm") if attn.norm is not None else list(row) for row in x[b]]
        q, k, v = ([affine(row, name) for row in h_in] for name in "qkv")
        for i in range(length):
            joined = []
            for h in range(attn.heads):
                query = head(q[i], h, positions[b][i])
                seen = [j for j in range(length) if (mask is None or mask[b][j]) and (not attn.core.causal or j <= i)]
                e = [math.exp(sum(a * c for a, c in zip(query, head(k[j], h // group, positions[b][j]))) / math.sqrt(K))
                     for j in seen]
                joined += [sum(w * head(v[j], h // group, None)[c] for w, j in zip(e, seen)) / sum(e) if seen else 0.0
                           for c in range(K)]
            row = [r + o for r, o in zip(x[b, i], affine(joined, "out"))]
            out[b, i] = row if attn.norm is not None else norm(row, "join.norm")
    return out


@pytest.mark.parametrize("heads,key_heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pre_norm,rotary,bias", [(True, True, False), (False, False, True), (True, False, True)])
def test_attention_equals_plain_loops(heads, key_heads, causal, masked, pre_norm, rotary, bias, backend, rng):
    attn = make(rng, heads, key_heads, causal, pre_norm, rotary, bias)
    x = rng.standard_normal((2, 5, 6))
    mask = np.array([[False, True, True, False, True], [True, True, True, True, False]]) if masked else None
    positions = np.array([[0, 1, 2, 3, 4], [2, 0, 7, 1, 1]])
    np.testing.assert_allclose(attn(Tensor(x), mask, positions).data, naive(attn, x, mask, positions), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("pieces", [[5], [1, 1, 1, 1, 1], [2, 3], [3, 1, 1]])
@pytest.mark.parametrize("masked", [False, True])
def test_with_a_cache_the_pieces_equal_the_whole(pieces, masked, backend, rng):
    attn = make(rng, causal=True, rotary=True)
    x, positions = rng.standard_normal((2, 5, 6)), np.arange(5)[None].repeat(2, axis=0)
    mask = np.array([[False, True, True, True, True], [True, True, False, True, True]]) if masked else None
    whole = naive(attn, x, mask, positions)
    cache, start = LayerCache(), 0
    for size in pieces:
        stop = start + size
        got = attn(Tensor(x[:, start:stop]), None if mask is None else mask[:, :stop], positions[:, start:stop], cache).data
        np.testing.assert_allclose(got, whole[:, start:stop], rtol=1e-8, atol=1e-9)
        start = stop
        assert cache.length == stop


def test_a_cache_grows_beyond_its_first_buffer(rng):
    cache, keys = LayerCache(), rng.standard_normal((2, 3, 200, 4))
    for t in range(200):
        k, v = cache.append(Tensor(keys[:, :, t:t + 1]), Tensor(2 * keys[:, :, t:t + 1]))
        assert (k.data == keys[:, :, :t + 1]).all() and (v.data == 2 * keys[:, :, :t + 1]).all()


def test_splitting_heads_copies_nothing(rng):
    attn, x = make(rng), Tensor(rng.standard_normal((2, 3, 16)))
    parts = attn.split(x, 4)
    assert parts.shape == (2, 4, 3, 4) and np.shares_memory(parts.data, x.data)
    assert (parts.data[1, 2, 0] == x.data[1, 0, 8:12]).all()


def test_dropout_acts_on_the_weights_and_on_the_output(rng):
    x = Tensor(rng.standard_normal((1, 4, 6)))
    for kwargs in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        attn = make(np.random.default_rng(1), **kwargs)
        plain = attn(x).data
        trained = [attn.train(np.random.default_rng(seed))(x).data for seed in (0, 0, 1)]
        assert (trained[0] == trained[1]).all() and (trained[0] != trained[2]).any() and (trained[0] != plain).any()
        assert (attn.eval()(x).data == plain).all()


@pytest.mark.parametrize("buckets,farthest,causal", [(32, 128, True), (32, 128, False), (8, 20, False), (6, 9, True),
                                                     (4, 5, False)])
def test_buckets_of_distances(buckets, farthest, causal):
    """Each distance in the bucket that the definition gives: exact ones, then as many as share the logarithmic range."""
    distances = np.arange(-200, 201)
    got = RelativeBias(buckets, farthest, 2, causal).bucket(distances)
    half = buckets if causal else buckets // 2
    for distance, bucket in zip(distances.tolist(), got.tolist()):
        far = max(-distance, 0) if causal else abs(distance)
        share = math.log(max(far, 1) / (half // 2)) / math.log(farthest / (half // 2)) * (half - half // 2)
        if abs(share - round(share)) > 1e-6 or far < half // 2:  # on an edge the rounding of float32 decides
            expected = far if far < half // 2 else min(half // 2 + math.floor(share), half - 1)
            assert bucket == expected + (0 if causal or distance <= 0 else half), distance
    assert set(got) == set(range(buckets)) - ({0 + half} if not causal else set())  # no key ahead at distance 0


@pytest.mark.parametrize("buckets,farthest", [(32, 128), (8, 20), (64, 100), (6, 9)])
@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_transformers(buckets, farthest, causal, peer):
    torch, theirs = peer("torch"), peer("transformers").models.t5.modeling_t5.T5Attention._relative_position_bucket
    distances = np.arange(-1500, 1501)
    expected = theirs(torch.tensor(distances), bidirectional=not causal, num_buckets=buckets, max_distance=farthest).numpy()
    assert (RelativeBias(buckets, farthest, 2, causal).bucket(distances) == expected).all()


def test_relative_bias_is_added_for_each_pair_and_head(rng):
    relative = RelativeBias(8, 20, 3, False, rng, 1.0)
    queries, keys = rng.integers(0, 40, (2, 4)), rng.integers(0, 40, (2, 6))
    bias = relative(queries, keys).data
    assert bias.shape == (2, 3, 4, 6)
    for b, h, i, j in np.ndindex(*bias.shape):
        assert bias[b, h, i, j] == relative.weight.data[relative.bucket(keys[b, j] - queries[b, i]), h]


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_cross_attention_with_a_bias_and_a_scale(scale, backend, rng):
    """Queries from x, keys and values from another model's states, by einsum."""
    attn = make(rng, key_heads=4, scale=scale)
    x, source, bias = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 5, 6)), rng.standard_normal((1, 4, 3, 5))
    mask = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], bool)
    p = {path: parameter.data for path, parameter in attn.named_parameters()}
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.01) * p["norm.weight"] + p["norm.bias"]
    q, k, v = ((a @ p[f"{n}.weight"] + p[f"{n}.bias"]).reshape(2, -1, 4, 4) for n, a in (("q", h), ("k", source), ("v", source)))
    z = np.einsum("bihk,bjhk->bhij", q, k) * (0.5 if scale is None else scale) + bias
    e = np.exp(z) * mask[:, None, None, :]
    a = np.einsum("bhij,bjhk->bihk", e / e.sum(-1, keepdims=True), v).reshape(2, 3, 16)
    got = attn(Tensor(x), mask, bias=Tensor(bias), source=Tensor(source))
    np.testing.assert_allclose(got.data, x + a @ p["out.weight"] + p["out.bias"], rtol=1e-10, atol=1e-10)


def test_join():
    x, h = Tensor(np.array([[1.0, 2.0]])), Tensor(np.array([[3.0, -4.0]]))
    assert Join()(x, h).data.tolist() == [[4, -2]]
    assert Join(LayerNorm(2, 0.0).astype(np.float64))(x, h).data.tolist() == [[1, -1]]
