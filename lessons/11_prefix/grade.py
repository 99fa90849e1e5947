"""What an answer to lesson 11 must do: attention with a prefix, number by number, with masks, shared heads and a bias; what makes
the prefix, what it counts, and what it starts from."""

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.learn.claims import exercise, holds, moves_only, same
from minipeft.methods import attach
from minipeft.methods.prefix import Network, Prefix, PrefixCore
from minipeft.methods.shapes import core_widths
from minipeft.models import Decoder, Encoder, LMHead, Seq2Seq, TransformerConfig
from minipeft.nn import AttentionCore


def weights_of(scores):
    """Softmax of a list of numbers; minus infinity where a key is not seen."""
    largest = max(scores)
    parts = [math.exp(score - largest) for score in scores]
    return [part / sum(parts) for part in parts]


def one_head(q, k, v, scale, seen=None, bias=None):
    """(results (T, K), weights (T, S)) of one head's attention, number by number. seen (T, S): which keys a query sees."""
    weights = np.zeros((len(q), len(k)))
    for t in range(len(q)):
        scores = [scale * sum(a * b for a, b in zip(q[t], key)) for key in k]
        scores = scores if bias is None else [score + added for score, added in zip(scores, bias[t])]
        weights[t] = weights_of([score if seen is None or seen[t, s] else -math.inf for s, score in enumerate(scores)])
    return np.array([[sum(w * row[c] for w, row in zip(line, v)) for c in range(v.shape[1])] for line in weights]), weights


def with_prefix(p_k, p_v, q, k, v, scale, mask=None, bias=None, causal=False):
    """(results (B, H, T, K), weights (B, H, T, n + S)) with the prefix (n, H' K) before the words, head by head."""
    (batch, heads, queries, width), key_heads, n, words = q.shape, k.shape[1], len(p_k), k.shape[2]
    out, weights = np.zeros(q.shape), np.zeros((batch, heads, queries, n + words))
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // key_heads)
            keys = np.array([*p_k[:, g * width:(g + 1) * width], *k[b, g]])
            values = np.array([*p_v[:, g * width:(g + 1) * width], *v[b, g]])
            seen, added = np.ones((queries, n + words), bool), np.zeros((queries, n + words))
            for t in range(queries):
                for s in range(words):
                    seen[t, n + s] = (mask is None or mask[b, s]) and (not causal or s <= t + words - queries)
                    added[t, n + s] = 0.0 if bias is None else bias[b % len(bias), h, t, s]
            out[b, h], weights[b, h] = one_head(q[b, h], keys, values, scale, seen, added)
    return out, weights


def drawn(rng, key_heads=2, heads=2, queries=3, words=3, batch=2, width=3):
    """(P_K, P_V, q, k, v), arrays with numbers everywhere; n is 2 to 4."""
    n = int(rng.integers(2, 5))
    of_keys, of_words = (n, key_heads * width), (batch, key_heads, words, width)
    return [rng.standard_normal(shape) for shape in (of_keys, of_keys, (batch, heads, queries, width), of_words, of_words)]


def called(impl, p_k, p_v, q, k, v, scale, mask=None, bias=None, causal=False):
    """What a core of the answer's gives."""
    core = impl(AttentionCore(causal), p_k, p_v)
    return core(*map(Tensor, (q, k, v)), mask, None if bias is None else Tensor(bias), scale)


def config_of(family, **more):
    """A small config: width 12; llama shares keys, so that they are 6 wide; t5's heads are 5 wide."""
    own = {"llama": {"num_key_value_heads": 1, "num_attention_heads": 2},
           "t5": {"num_decoder_layers": 3, "head_dim": 5, "decoder_start_token_id": 0},
           "bert": {"type_vocab_size": 2}}.get(family, {})
    shape = {"vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
             "max_position_embeddings": 24, "initializer_range": 0.6}
    return TransformerConfig(model_type=family, **shape | own | more)


def model_of(family, rng, **more):
    """A random model in float64 with a head where it needs one."""
    config = config_of(family, **more)
    model = {"bert": Encoder, "t5": Seq2Seq}.get(family, Decoder)(config, rng)
    if config.causal:
        model.head = LMHead(config, model.embed.tokens.weight, rng)
    return model.eval().astype(np.float64)


# ---- 11.1: the share -------------------------------------------------------------------------------------------


@exercise("11.1")
@pytest.mark.parametrize("scale", [1.0, 0.35])
def test_the_share_number_by_number(impl, rng, scale):
    """lambda is the sum of exp(score) over the prefix, divided by that over the prefix and the words."""
    q, p, k = (rng.standard_normal((rows, 4)) for rows in (3, 2, 5))
    exps = lambda row, keys: sum(math.exp(scale * sum(a * b for a, b in zip(row, key))) for key in keys)
    same(impl(q, p, k, scale), np.array([exps(row, p) / (exps(row, p) + exps(row, k)) for row in q]), "lambda", 1e-12)


@exercise("11.1")
@pytest.mark.parametrize("prefix, words", [(1, 1), (6, 2), (2, 7)])
def test_equal_scores(impl, rng, prefix, words):
    """Where all scores are equal, the share is n / (n + S)."""
    q, key = rng.standard_normal((2, 3)), rng.standard_normal(3)
    expected = np.full(2, prefix / (prefix + words))
    same(impl(q, np.tile(key, (prefix, 1)), np.tile(key, (words, 1)), 0.5), expected, "lambda", 1e-12)


@exercise("11.1")
def test_large_scores(impl):
    """Scores of a thousand give a share between 0 and 1, and no overflow."""
    q, p, k = np.array([[1000.0, 0.0], [-1000.0, 0.0]]), np.array([[1.0, 0.0], [0.999, 0.0]]), np.array([[1.001, 2.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        share = impl(q, p, k, 1.0)
    first = (1 + math.exp(-1)) / (1 + math.exp(-1) + math.exp(1))  # the scores are 1000, 999 and 1001
    second = (1 + math.exp(1)) / (1 + math.exp(1) + math.exp(-1))
    same(share, np.array([first, second]), "lambda", 1e-9)


@exercise("11.1")
def test_it_is_the_gate_of_the_equation(impl, rng):
    """lambda times attention over the prefix plus (1 - lambda) times attention over the words is attention over both."""
    q, p_k, p_v, k, v = (rng.standard_normal((rows, 3)) for rows in (4, 2, 2, 3, 3))
    share = np.asarray(impl(q, p_k, k, 0.7), np.float64).reshape(-1, 1)
    mixed = share * one_head(q, p_k, p_v, 0.7)[0] + (1 - share) * one_head(q, k, v, 0.7)[0]
    same(mixed, one_head(q, np.array([*p_k, *k]), np.array([*p_v, *v]), 0.7)[0], "the mixture with your lambda", 1e-10)


# ---- 11.2: attention with a prefix -----------------------------------------------------------------------------


@exercise("11.2")
def test_attention_over_both(impl, rng):
    """Each query of each head attends to the prefix's keys and the words' together."""
    p_k, p_v, q, k, v = drawn(rng, queries=2, words=3)
    same(called(impl, p_k, p_v, q, k, v, 0.6), Tensor(with_prefix(p_k, p_v, q, k, v, 0.6)[0]), "the result", 1e-10)


@exercise("11.2")
def test_causal(impl, rng):
    """In a decoder every query sees the whole prefix, and of the words only those up to its own place."""
    p_k, p_v, q, k, v = drawn(rng, queries=4, words=4)
    expected = with_prefix(p_k, p_v, q, k, v, 0.6, causal=True)[0]
    same(called(impl, p_k, p_v, q, k, v, 0.6, causal=True), Tensor(expected), "the result", 1e-10)


@exercise("11.2")
def test_padding(impl, rng):
    """The mask hides padding among the words, and nothing of the prefix."""
    p_k, p_v, q, k, v = drawn(rng, queries=4, words=4)
    mask = np.array([[True, True, True, False], [False, True, True, True]])
    same(called(impl, p_k, p_v, q, k, v, 0.6, mask), Tensor(with_prefix(p_k, p_v, q, k, v, 0.6, mask)[0]), "the result", 1e-10)


@exercise("11.2")
def test_shared_key_heads(impl, rng):
    """Where several heads of queries share one of keys, the prefix has as many heads as the keys."""
    p_k, p_v, q, k, v = drawn(rng, key_heads=2, heads=4)
    same(called(impl, p_k, p_v, q, k, v, 0.6), Tensor(with_prefix(p_k, p_v, q, k, v, 0.6)[0]), "the result", 1e-10)


@exercise("11.2")
@pytest.mark.parametrize("rows", [1, 2])
def test_the_bias(impl, rng, rows):
    """T5's bias is added to the scores of the words; the scores of the prefix get 0."""
    p_k, p_v, q, k, v = drawn(rng)
    bias = rng.standard_normal((rows, 2, 3, 3)) * 2
    expected = with_prefix(p_k, p_v, q, k, v, 1.0, bias=bias)[0]
    same(called(impl, p_k, p_v, q, k, v, 1.0, bias=bias), Tensor(expected), "the result", 1e-10)


@exercise("11.2")
def test_gradients(impl, rng):
    """Gradients reach P_K and P_V, summed over the batch."""
    p_k, p_v, q, k, v = drawn(rng, queries=2, words=2)
    core, g = impl(AttentionCore(False), p_k.copy(), p_v.copy()), rng.standard_normal(q.shape)
    core(*map(Tensor, (q, k, v)), None, None, 0.6).backward(g)
    value = lambda: (with_prefix(p_k, p_v, q, k, v, 0.6)[0] * g).sum()
    for array, parameter, name in ((p_k, core.keys, "dP_K"), (p_v, core.values, "dP_V")):
        expected = np.zeros(array.shape)
        for place in np.ndindex(*array.shape):
            kept = array[place]
            array[place] = kept + 1e-5
            above = value()
            array[place] = kept - 1e-5
            expected[place] = (above - value()) / 2e-5
            array[place] = kept
        same(parameter.grad, expected, name, 1e-6)


@exercise("11.2")
def test_a_step_leaves_the_base_as_it_was(graft, rng):
    """A step of AdamW on all that has a gradient moves the prefix; every array of the model keeps its bits."""
    model = model_of("gpt2", rng)
    with graft():
        moves_only(lambda: attach(model, Prefix(num_virtual_tokens=3), rng=rng), model, rng.integers(0, 17, (2, 5)), rng)


@exercise("11.2")
def test_the_prefix_may_be_made_by_a_network(impl, rng):
    """The keys and values are those of self.prefix(), which a network may make."""
    p_k, p_v, q, k, v = drawn(rng)
    core = impl(AttentionCore(False), p_k, p_v)
    core.prefix = lambda: (Tensor(p_v), Tensor(2 * p_k))
    core.keys = core.values = None
    same(core(*map(Tensor, (q, k, v)), None, None, 0.6), Tensor(with_prefix(p_v, 2 * p_k, q, k, v, 0.6)[0]), "the result", 1e-10)


@exercise("11.2")
def test_two_prefixes(impl, rng):
    """Around a core that has a prefix already, a second one comes before it: what is called is self.wrapped."""
    p_k, p_v, q, k, v = drawn(rng)
    inner = PrefixCore(AttentionCore(True), p_k[:1], p_v[:1])
    outer = impl(inner, p_k[1:], p_v[1:])
    expected = with_prefix(p_k, p_v, q, k, v, 0.6, causal=True)[0]
    same(outer(*map(Tensor, (q, k, v)), np.ones((2, 3), bool), None, 0.6), Tensor(expected), "the result", 1e-10)


# ---- 11.3: what makes the prefix -------------------------------------------------------------------------------


def networked(impl, rng):
    """(core whose prefix a network makes, E, W_a, b_a, W_b, b_b): n 2 to 4, D 5, h 7, 3 columns of keys."""
    n = int(rng.integers(2, 5))
    network = Network(n, 5, 7, rng).astype(np.float64)
    network.map.bias.data = rng.standard_normal(7)
    core = impl(AttentionCore(False), np.zeros((n, 3)), np.zeros((n, 3)), network, rng)
    core.out.bias.data = rng.standard_normal(6)
    return core, network.E.data, network.map.weight.data, network.map.bias.data, core.out.weight.data, core.out.bias.data


def columns(e, w_a, b_a, w_b, b_b, wanted):
    """The wanted columns of tanh(E W_a + b_a) W_b + b_b, number by number."""
    inner = [[math.tanh(b_a[j] + sum(row[d] * w_a[d, j] for d in range(len(row)))) for j in range(len(b_a))] for row in e]
    return np.array([[b_b[c] + sum(state[j] * w_b[j, c] for j in range(len(b_a))) for c in wanted] for state in inner])


@exercise("11.3")
def test_without_a_network(impl, rng):
    """Without a network the prefix is the parameters themselves, and their gradients are those of the prefix."""
    core, g = impl(AttentionCore(False), rng.standard_normal((3, 4)), rng.standard_normal((3, 4))), rng.standard_normal((2, 3, 4))
    keys, values = core.prefix()
    same(keys, Tensor(core.keys.data), "P_K", 0)
    same(values, Tensor(core.values.data), "P_V", 0)
    (keys * g[0] + values * g[1]).sum().backward()
    same(core.keys.grad, g[0], "dP_K", 1e-12)
    same(core.values.grad, g[1], "dP_V", 1e-12)


@exercise("11.3")
def test_with_a_network(impl, rng):
    """With a network the first half of the columns of tanh(E W_a + b_a) W_b + b_b are keys, the second half values."""
    core, *numbers = networked(impl, rng)
    keys, values = core.prefix()
    same(keys, Tensor(columns(*numbers, range(3))), "P_K", 1e-12)
    same(values, Tensor(columns(*numbers, range(3, 6))), "P_V", 1e-12)


@exercise("11.3")
def test_gradients_reach_the_network(impl, rng):
    """Gradients reach E, W_a and W_b."""
    core, e, w_a, b_a, w_b, b_b = networked(impl, rng)
    keys, values = core.prefix()
    g = rng.standard_normal((len(e), 6))
    (keys * g[:, :3] + values * g[:, 3:]).sum().backward()
    inner = np.tanh(e @ w_a + b_a)
    d_sum = (g @ w_b.T) * (1 - inner**2)
    same(core.out.weight.grad, inner.T @ g, "dW_b", 1e-10)
    same(core.network.map.weight.grad, e.T @ d_sum, "dW_a", 1e-10)
    same(core.network.E.grad, d_sum @ w_a.T, "dE", 1e-10)


@exercise("11.3")
def test_the_network_can_be_dropped(graft, rng):
    """When training ends, the prefix that the network makes is kept, and the model says what it said before."""
    model, ids = model_of("bert", rng), rng.integers(0, 17, (2, 4))
    with graft():
        attachment = attach(model, Prefix(num_virtual_tokens=3, reparametrise=True, hidden=4), rng=rng)
        model.astype(np.float64)
        before = model(ids).last_hidden_state.data
        attachment.method.finish(attachment)
        same(model(ids).last_hidden_state.data, before, "the states without the network", 1e-10)
        same(attachment.trainable_without_head, 2 * 3 * 12 * 2, "the number of parameters that are kept", 0)


# ---- 11.4: the count -------------------------------------------------------------------------------------------


@exercise("11.4")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("n", [1, 7])
def test_encoders_and_decoders(impl, family, n):
    """In an encoder or a decoder a prefix counts 2 n d L."""
    same(impl(num_virtual_tokens=n).count(config_of(family)), 2 * n * 12 * 2, f"the count for n = {n}, d = 12, L = 2", 0)


@exercise("11.4")
def test_shared_keys(impl):
    """Where two heads share their keys, a key is half as wide as the model."""
    same(impl(num_virtual_tokens=5).count(config_of("llama")), 2 * 5 * 6 * 2, "the count for n = 5, keys 6 wide, L = 2", 0)


@exercise("11.4")
def test_three_groups(impl):
    """T5 has a prefix at the encoder's attention, at the decoder's, and at the one between them; its keys may be wider than d."""
    same(impl(num_virtual_tokens=4).count(config_of("t5")), 2 * 4 * 15 * (2 + 3 + 3), "the count for n = 4, keys 15 wide", 0)


@exercise("11.4")
@pytest.mark.parametrize("family, widths", [("bert", [12] * 2), ("llama", [6] * 2), ("t5", [15] * 8)])
def test_while_a_network_makes_it(impl, family, widths):
    """With a network the count is that of E, W_a and b_a once, and of W_b and b_b for each attention."""
    n, d, h = 3, 12, 7
    expected = n * d + d * h + h + sum(h * 2 * width + 2 * width for width in widths)
    same(impl(num_virtual_tokens=n, reparametrise=True, hidden=h).count(config_of(family)), expected, "the count with h = 7", 0)


@exercise("11.4")
@pytest.mark.parametrize("reparametrise", [False, True])
def test_the_count_is_what_is_trained(impl, rng, reparametrise):
    """The count equals the numbers that are trained when the method is attached."""
    model = model_of("gpt2", rng, num_hidden_layers=3)
    method = Prefix(num_virtual_tokens=2, reparametrise=reparametrise, hidden=5)
    expected = attach(model, method, rng=rng).trainable_without_head
    same(impl(num_virtual_tokens=2, reparametrise=reparametrise, hidden=5).count(model.config), expected, "the count", 0)


# ---- 11.5: what words would give -------------------------------------------------------------------------------


WORDS = [7, 2, 11]


def heads_side_by_side(x):
    """(1, H', P, K) -> (P, H' K), number by number."""
    heads, n, width = x.shape[1:]
    return np.array([[x[0, column // width, p, column % width] for column in range(heads * width)] for p in range(n)])


@exercise("11.5")
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_keys_and_values_of_words(impl, rng, family):
    """At each core: the keys and values, (P, H' K) each, that the model has there when it reads the words one after the other."""
    model = model_of(family, rng)
    states = model(np.array([WORDS]), output_hidden_states=True).hidden_states
    told = impl(model, WORDS)
    holds(isinstance(told, dict), f"the result is {type(told).__name__}; expected a dict")
    paths = sorted(core_widths(model.config))
    holds(sorted(told) == paths, f"the paths are {sorted(told)}; expected {paths}")
    for i, block in enumerate(model.blocks):
        h = states[i] if block.attn.norm is None else block.attn.norm(states[i])
        k, v = (part.data for part in block.attn.keys_values(h, np.arange(3)[None]))
        for yours, expected, name in zip(told[f"blocks.{i}.attn.core"], (k, v), ("keys", "values")):
            same(yours, heads_side_by_side(expected), f"the {name} of block {i}", 1e-10)


@exercise("11.5")
def test_every_attention_of_t5(impl, rng):
    """In T5 the decoder reads the words as well, so that its attentions have something to keep."""
    model = model_of("t5", rng)
    told = impl(model, WORDS)
    paths = sorted(core_widths(model.config))
    holds(sorted(told) == paths, f"the paths are {sorted(told)}; expected {paths}")
    x = model.embed(model.embed.tokens(np.array([WORDS]))[0], np.arange(3)[None])
    for side, block in (("encoder", model.encoder.blocks[0]), ("decoder", model.decoder.blocks[0])):
        expected = heads_side_by_side(block.attn.split(block.attn.v(block.attn.norm(x)), 3).data)
        same(told[f"{side}.blocks.0.attn.core"][1], expected, f"the values of the {side}'s first block", 1e-10)


@exercise("11.5")
def test_words_are_read_without_dropout(impl, rng):
    """A model in training reads the words without dropout, and is in training afterwards."""
    model = model_of("gpt2", rng, hidden_dropout=0.5, embedding_dropout=0.5)
    plain = model(np.array([WORDS]), output_hidden_states=True).hidden_states[1]
    expected = heads_side_by_side(model.blocks[1].attn.keys_values(model.blocks[1].attn.norm(plain))[1].data)
    model.train(rng)
    same(impl(model, WORDS)["blocks.1.attn.core"][1], expected, "the values of block 1", 1e-10)
    holds(model.training and model.blocks[0].attn.core.training and model.rng is rng,
          "the model was in training and is not any more, or draws from another generator")


@exercise("11.5")
def test_nothing_is_left_behind(impl, rng):
    """The model's cores are the same objects as before, and the model says what it said."""
    model = model_of("gpt2", rng)
    paths, ids = list(core_widths(model.config)), rng.integers(0, 17, (2, 5))
    before, said = [model.get(path) for path in paths], model(ids).logits.data
    impl(model, WORDS)
    holds(all(model.get(path) is core for path, core in zip(paths, before)), "a core is not the one that was there before")
    holds(not model.training, "the model was not in training, and is now")
    same(model(ids).logits.data, said, "what the model says afterwards", 0)


@exercise("11.5")
def test_a_prefix_of_words_is_those_words_before_the_text(graft, rng):
    """A decoder with a prefix that was made of words goes on as if these words stood before the text."""
    model, ids = model_of("gpt2", rng), rng.integers(0, 17, (2, 5))
    expected = model(np.concatenate([np.tile(WORDS, (2, 1)), ids], axis=1)).logits.data[:, 3:]
    with graft():
        attach(model, Prefix(num_virtual_tokens=3, initial="words", words=WORDS), rng=rng)
        same(model(ids).logits.data, expected, "the logits of the text's words", 1e-9)
