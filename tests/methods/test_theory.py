"""What theory says of the methods, checked on random models: identities, gradients, counts."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minipeft.autograd import Tensor, dropout, gradcheck
from minipeft.interop import make_model
from minipeft.methods import METHODS, attach
from minipeft.methods.adalora import Budget
from minipeft.methods.adapter import HoulsbyJoin, ParallelJoin, PfeifferJoin
from minipeft.methods.compacter import KroneckerLinear
from minipeft.methods.dora import DoRALinear
from minipeft.methods.pissa import principal_factors
from minipeft.methods.prefix import PrefixCore
from minipeft.models import TransformerConfig, generate
from minipeft.nn import AttentionCore, Join, LayerNorm, Linear, Parameter, Wrapper

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@st.composite
def configs(draw, families=("bert", "gpt2", "llama", "t5"), biases=None):
    """A config of any family whose widths 4 divides."""
    family, heads = draw(st.sampled_from(families)), draw(st.sampled_from([1, 2, 4]))
    head_dim = 4 * draw(st.integers(1, 2))
    keys = draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0])) if family == "llama" else heads
    flags = draw(st.booleans()) if biases is None else biases
    more = {"attention_bias": flags, "attention_out_bias": flags, "mlp_bias": flags} if family in ("llama", "t5") else {}
    return TransformerConfig(
        model_type=family, vocab_size=13, hidden_size=heads * head_dim if family != "t5" else 8,
        num_hidden_layers=draw(st.integers(1, 3)), num_attention_heads=heads, num_key_value_heads=keys, head_dim=head_dim,
        intermediate_size=4 * draw(st.integers(2, 5)), max_position_embeddings=40,
        num_decoder_layers=draw(st.integers(1, 3)) if family == "t5" else 0,
        gated=family == "llama" or family == "t5" and draw(st.booleans()), type_vocab_size=2 if family == "bert" else 0,
        relative_attention_num_buckets=6, relative_attention_max_distance=9, initializer_range=0.5, decoder_start_token_id=0,
        hidden_act="gelu", labels=("a", "b", "c") if family in ("bert", "gpt2") else (),
        pooling={"bert": draw(st.sampled_from(["mean", "cls", "pooler"])), "gpt2": "last"}.get(family), **more)


def make(config, dtype=np.float64):
    task = "classify" if config.labels else "seq2seq" if config.encoder_decoder else "lm"
    model, rng = make_model(config, task, np.random.default_rng(0)), np.random.default_rng(1)
    for path, p in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            p.data = p.data + rng.standard_normal(p.shape) * 0.2
    return model.eval().astype(dtype)


def outputs(model):
    return model(IDS, **({"decoder_input_ids": IDS} if model.config.encoder_decoder else {})).logits.data


def loss(model):
    return model(IDS, labels=np.array([0, 2]) if model.config.labels else IDS).loss


def shake(attachment, size=0.3, seed=2):
    rng = np.random.default_rng(seed)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape) * size for path, a in attachment.arrays().items()})
    return attachment


# ---- counts ---------------------------------------------------------------------------------------------------------

SETTINGS = {"bitfit": lambda config: {"add_zero_biases": True}, "top_k": lambda config: {"layers": 1},
            "adalora": lambda config: {"rank": 3},
            "output": lambda config: {} if config.labels else {"words": [3, 5, 7]},
            "random_mask": lambda config: {"share": 0.1}, "compacter": lambda config: {"bottleneck": 12},
            "fisher_mask": lambda config: {"share": 0.1, "importance": importance(config)}}
LOW_RANK = {name: (lambda config: {"rank": 2, "targets": "attn.*,mlp.up"})
            for name in ("lora", "rslora", "lora_plus", "dora", "pissa")}


def importance(config):
    """Any importance will do for a count."""
    return {path: p.data**2 for path, p in make(config).named_parameters()}


@pytest.mark.parametrize("name", METHODS)
@given(config=configs())
@settings(max_examples=15)
def test_counts_equal_their_closed_forms(name, config):
    if name == "head" and not config.labels:
        config = config.with_(tie_word_embeddings=False)  # else there is no output map of its own
    make_settings = (SETTINGS | LOW_RANK).get(name, lambda config: {})
    method = METHODS[name](**make_settings(config))
    model = make(config, np.float32)
    attachment = attach(model, method)
    assert method.count(config) == attachment.trainable_without_head
    if config.labels and name != "output":  # D C, and C more in BERT's, whose output map has a bias
        assert attachment.trainable == method.count(config) + 3 * config.hidden_size + 3 * (config.model_type == "bert")


@given(config=configs(), bottleneck=st.integers(1, 6), targets=st.sampled_from(["join", "attn.join", "mlp.join,attn.join"]))
@settings(max_examples=10)
def test_with_the_norms_trained_along_houlsby_counts_them(config, bottleneck, targets):
    """4 D L + 2 D more for BERT's LayerNorms, as the paper counts them."""
    method = METHODS["houlsby"](bottleneck=bottleneck, targets=targets, train_norms=True)
    model = make(config, np.float32)
    attachment = attach(model, method)
    norms = {path for path, _ in model.named_parameters() if "norm" in path.split(".")[-2]}
    assert set(attachment.base) == norms and method.count(config) == attachment.trainable_without_head
    d, layers = config.hidden_size, config.num_hidden_layers
    if config.model_type == "bert" and targets != "attn.join":
        assert method.count(config) == 2 * layers * (2 * d * bottleneck + bottleneck + d) + 4 * d * layers + 2 * d
    loss(model).backward()
    assert all(p.grad is not None for p in attachment.named_parameters().values())


@given(layers=st.integers(1, 4), heads=st.sampled_from([1, 2, 4]), inner=st.integers(1, 9), rank=st.integers(1, 4),
       n=st.integers(1, 9))
def test_counts_are_those_of_the_papers_for_an_encoder(layers, heads, inner, rank, n):
    d, f, r = 4 * heads, 4 * inner, rank
    config = TransformerConfig(model_type="bert", vocab_size=13, hidden_size=d, num_hidden_layers=layers,
                               num_attention_heads=heads, intermediate_size=f, max_position_embeddings=40, type_vocab_size=2)
    count = lambda name, **given: METHODS[name](**given).count(config)
    assert count("lora", rank=r) == 4 * d * r * layers
    assert count("dora", rank=r) == 4 * d * r * layers + 2 * d * layers
    assert count("houlsby", bottleneck=r) == 2 * layers * (2 * d * r + r + d)
    assert count("pfeiffer", bottleneck=r) == count("parallel", bottleneck=r) == layers * (2 * d * r + r + d)
    assert count("compacter", bottleneck=4 * r) == 2 * layers * (2 * (d + 4 * r) + d + 4 * r) + 4**3
    assert count("ia3") == layers * (2 * d + f)
    assert count("prefix", num_virtual_tokens=n) == 2 * n * d * layers and count("prompt", num_virtual_tokens=n) == n * d
    assert count("bitfit") == (7 * d + f) * layers + d and count("bitfit", terms="two") == (d + f) * layers
    assert count("layernorm") == 4 * d * layers + 2 * d
    assert count("top_k", layers=layers) == layers * (4 * d * d + 2 * d * f + 9 * d + f)
    assert count("task_embedding") == d


# ---- the key bias, and (IA)3 on keys --------------------------------------------------------------------------------


def bias_gradients(model):
    """(largest gradient of a key bias, of a query bias)."""
    model.requires_grad_(True)
    model.zero_grad()
    loss(model).backward()
    largest = {"k": 0.0, "q": 0.0}
    for path, p in model.named_parameters():
        if path.endswith((".k.bias", ".q.bias")):
            largest[path[-6]] = max(largest[path[-6]], np.abs(p.grad).max())
    return largest["k"], largest["q"]


@given(config=configs(families=("bert", "gpt2", "t5"), biases=True))
def test_the_key_bias_has_no_gradient_where_nothing_distinguishes_keys(config):
    of_keys, of_queries = bias_gradients(make(config))  # T5's relative bias does not depend on what the keys are
    assert of_keys < 1e-12 * of_queries and of_queries > 1e-6


@given(config=configs(families=("llama",), biases=True))
def test_the_key_bias_has_one_where_keys_are_rotated(config):
    of_keys, of_queries = bias_gradients(make(config))
    assert of_keys > 1e-6 * of_queries


@given(config=configs(families=("bert", "gpt2", "t5"), biases=True))
def test_the_key_bias_has_one_beside_a_prefix(config):
    model = make(config)
    shake(attach(model, METHODS["prefix"](num_virtual_tokens=3)))
    of_keys, of_queries = bias_gradients(model)
    assert of_keys > 1e-6 * of_queries


@given(config=configs(families=("bert", "gpt2", "t5")), seed=st.integers(0, 1000))
def test_scaling_keys_is_scaling_queries(config, seed):
    both = []
    for part in "kq":
        model = make(config)
        attachment = attach(model, METHODS["ia3"](targets=part, feedforward=None))  # T5: between its two sides too
        rng = np.random.default_rng(seed)
        for wrapper in attachment.wrappers.values():
            if hasattr(wrapper, "l"):
                wrapper.l.data = rng.standard_normal(wrapper.l.shape) + 1
        both.append(outputs(model))
    np.testing.assert_allclose(both[0], both[1], rtol=1e-9, atol=1e-9)
    with attachment.disabled():
        assert np.abs(outputs(model) - both[0]).max() > 1e-6


def test_with_rotary_positions_scaling_keys_is_something_else():
    config = TransformerConfig(model_type="llama", vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=8, max_position_embeddings=40, initializer_range=0.9)
    outputs = []
    for part in "kq":
        model = make(config)
        attachment = attach(model, METHODS["ia3"](targets=f"attn.{part}", feedforward=None))
        for wrapper in attachment.wrappers.values():
            wrapper.l.data = np.linspace(0.2, 3, 8)
        outputs.append(model(IDS).logits.data)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


# ---- prefixes -------------------------------------------------------------------------------------------------------


def attention(q, k, v, scale, visible):
    """Rows of softmax(scale q k^T) v by the definition, one query after the other; also the sums of exponentials."""
    out, sums = np.zeros((len(q), v.shape[1])), np.zeros(len(q))
    for i in range(len(q)):
        e = np.array([np.exp(scale * q[i] @ k[j]) if visible[i, j] else 0.0 for j in range(len(k))])
        sums[i] = e.sum()
        out[i] = sum(e[j] * v[j] for j in range(len(k))) / e.sum()
    return out, sums


@given(seed=st.integers(0, 10**6), heads=st.sampled_from([1, 2]), groups=st.sampled_from([1, 2]), n=st.integers(1, 4),
       causal=st.booleans())
def test_a_prefix_is_the_gated_mixture_of_two_attentions(seed, heads, groups, n, causal):
    rng, length, width, scale = np.random.default_rng(seed), 4, 3, 0.7
    q = rng.standard_normal((2, heads * groups, length, width))
    k, v = rng.standard_normal((2, 2, heads, length, width))
    mask = np.ones((2, length), bool)
    mask[1, 3] = False
    core = PrefixCore(AttentionCore(causal), rng.standard_normal((n, heads * width)), rng.standard_normal((n, heads * width)))
    got = core(Tensor(q), Tensor(k), Tensor(v), mask, None, scale).data
    for b in range(2):
        for h in range(heads * groups):
            own = h // groups
            keys, values = (p.data.reshape(n, heads, width)[:, own] for p in (core.keys, core.values))
            visible = mask[b][None] & (np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length), bool))
            words, sum_words = attention(q[b, h], k[b, own], v[b, own], scale, visible)
            prefix, sum_prefix = attention(q[b, h], keys, values, scale, np.ones((length, n), bool))
            gate = (sum_prefix / (sum_prefix + sum_words))[:, None]
            np.testing.assert_allclose(got[b, h], (1 - gate) * words + gate * prefix, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@given(data=st.data())
@settings(max_examples=8)
def test_in_a_causal_model_a_prefix_of_words_is_those_words_before(family, data):
    config = data.draw(configs(families=(family,))).with_(labels=(), pooling=None)
    model = make(config)
    words = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    expected = model(np.concatenate([np.tile(words, (2, 1)), IDS], axis=1)).logits.data[:, len(words):]
    attachment = attach(model, METHODS["prefix"](num_virtual_tokens=len(words), initial="words", words=words))
    np.testing.assert_allclose(model(IDS).logits.data, expected, rtol=1e-8, atol=1e-9)
    with attachment.disabled():
        assert np.abs(model(IDS).logits.data - expected).max() > 1e-6


@pytest.mark.parametrize("initial", ["random", "vocabulary"])
@pytest.mark.parametrize("name,family", [(n, f) for n in ("prefix", "prompt") for f in ("gpt2", "llama")])
@pytest.mark.parametrize("shift", [True, False])
def test_with_a_cache_the_text_is_the_same_and_padding_on_the_left_moves_nothing(name, family, shift, initial):
    if (name, initial) == ("prefix", "vocabulary"):
        return
    config = TransformerConfig(model_type=family, vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=12, max_position_embeddings=40, initializer_range=0.9, hidden_act="gelu")
    model = make(config)
    shake(attach(model, METHODS[name](num_virtual_tokens=3, shift_positions=shift, initial=initial)))
    prompts = [[3, 1, 4], [9, 2, 6, 5, 3]]
    ids, mask = np.zeros((2, 5), np.int64), np.zeros((2, 5), bool)
    for row, prompt in enumerate(prompts):
        ids[row, 5 - len(prompt):], mask[row, 5 - len(prompt):] = prompt, True
    together = generate(model, ids, 6, attention_mask=mask, eos_token_id=99)
    for row, prompt in enumerate(prompts):
        alone = list(prompt)
        for _ in range(6):
            alone.append(int(model(np.array([alone])).logits.data[0, -1].argmax()))
        assert (together[row, 5:].tolist() == alone[len(prompt):]
                == generate(model, np.array([prompt]), 6, eos_token_id=99)[0, len(prompt):].tolist())


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_the_network_that_makes_a_prefix_can_be_dropped(family):
    config = TransformerConfig(model_type=family, vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=12, max_position_embeddings=40, initializer_range=0.5,
                               num_decoder_layers=2 if family == "t5" else 0,
                               decoder_start_token_id=0, type_vocab_size=2 if family == "bert" else 0,
                               labels=() if family == "t5" else ("a", "b", "c"), pooling=None if family == "t5" else "mean")
    model = make(config)
    attachment = shake(attach(model, METHODS["prefix"](num_virtual_tokens=3, reparametrise=True, hidden=5)))
    loss(model).backward()
    assert all(p.grad is not None for p in attachment.named_parameters().values())
    target = {"decoder_input_ids": IDS} if family == "t5" else {}
    before, count, method = model(IDS, **target).logits.data, attachment.trainable_without_head, attachment.method
    assert count == method.count(config)
    method.finish(attachment)
    np.testing.assert_allclose(model(IDS, **target).logits.data, before, rtol=1e-12)
    layers = 2 if family != "t5" else 2 + 2 * 2
    assert attachment.trainable_without_head == 2 * 3 * 8 * layers == attachment.method.count(config) < count


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("n,shift,fits", [(39, True, True), (40, True, False), (50, True, False), (50, False, True)])
def test_more_virtual_tokens_than_positions(name, n, shift, fits):
    model = make(TransformerConfig(model_type="bert", vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=12, max_position_embeddings=40, type_vocab_size=2, labels=("a", "b", "c"),
                                   pooling="mean"))
    method = METHODS[name](num_virtual_tokens=n, shift_positions=shift)
    if not fits:
        with pytest.raises(ValueError, match=f"{name}: {n} virtual tokens leave none of this model's 40 positions to the words; "
                                             "take at most 39, or shift_positions=False"):
            attach(model, method)
        with pytest.raises(ValueError, match=f"{name}: {n} virtual tokens leave none"):
            method.check(model.config)  # known before a weight is read
        assert not model.attachments and not any(isinstance(m, Wrapper) for m in model.modules())
        return
    attach(model, method)
    if shift:
        with pytest.raises(ValueError, match="the input is 5 tokens long and 39 virtual ones come before it, "
                                             "this model has positions for 40; truncate it to 1"):
            model(IDS)
        assert model(IDS[:, :1]).logits.shape == (2, 3)
    else:
        assert model(IDS).logits.shape == (2, 3)


# ---- the gradients that the files state -----------------------------------------------------------------------------


@given(d_in=st.integers(1, 5), d_out=st.integers(1, 5), rank=st.integers(1, 3), scale=st.floats(0.2, 3),
       seed=st.integers(0, 10**6))
def test_doras_gradients_are_those_of_its_equation(d_in, d_out, rank, scale, seed):
    rng = np.random.default_rng(seed)
    base = Linear(d_in, d_out, True, rng, std=1.0).astype(np.float64)
    assume(np.linalg.norm(base.weight.data, axis=0).min() > 0.1)
    for detached in (False, True):
        dora = DoRALinear(base, rank, scale, 0.0, np.random.default_rng(1), detached)
        x, g = rng.standard_normal((4, d_in)), rng.standard_normal((4, d_out))
        assert (dora(Tensor(x)).data == base(Tensor(x)).data).all()
        dora.V.data, dora.m.data = rng.standard_normal(dora.V.shape), rng.standard_normal(d_out) + 2
        u, v, m = dora.U.data, dora.V.data, dora.m.data
        moved = base.weight.data + scale * u @ v.T
        c = np.linalg.norm(moved, axis=0)
        assume(c.min() > 1e-2)
        np.testing.assert_allclose(dora(Tensor(x)).data, x @ (m * moved / c) + base.bias.data, rtol=1e-7, atol=1e-8)
        dora(Tensor(x)).backward(g)
        dense = x.T @ g
        of_moved = m / c * (dense - (0 if detached else moved * (moved * dense).sum(axis=0) / c**2))
        np.testing.assert_allclose(dora.m.grad, (dense * moved).sum(axis=0) / c, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(dora.U.grad, scale * of_moved @ v, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dora.V.grad, scale * of_moved.T @ u, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dora.merged_arrays(base.weight.data, None)[0], m * moved / c, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [HoulsbyJoin, PfeifferJoin, ParallelJoin])
@pytest.mark.parametrize("post_norm", [True, False])
def test_adapters_compute_their_equations(kind, post_norm):
    rng = np.random.default_rng(0)
    network = METHODS["houlsby"](bottleneck=3, activation="tanh").make_network(8, rng)
    norm = LayerNorm(8, 1e-6) if post_norm else None
    wrapper = kind(Join(norm), network, 1.7)
    for module in wrapper.modules():
        for value in vars(module).values():
            if isinstance(value, Parameter):
                value.data = value.data.astype(np.float64) + rng.standard_normal(value.shape)
    x, h = rng.standard_normal((2, 3, 5, 8))
    D, b_D, E, b_E = (p.data for p in (network.down.weight, network.down.bias, network.up.weight, network.up.bias))

    def join(x, h):
        y = x + h
        if norm is None:
            return y
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        return y * norm.weight.data + norm.bias.data

    z = {HoulsbyJoin: h, PfeifferJoin: join(x, h), ParallelJoin: x}[kind]
    expected = join(x, h + 1.7 * (np.tanh(z @ D + b_D) @ E + b_E))
    np.testing.assert_allclose(wrapper(Tensor(x), Tensor(h)).data, expected, rtol=1e-9, atol=1e-9)

    # the gradients that the file states, of the network alone
    g, flat = rng.standard_normal((15, 8)), rng.standard_normal((15, 8))
    network.zero_grad()
    tensor = Tensor(flat, requires_grad=True)
    network(tensor).backward(g)
    Z = np.tanh(flat @ D + b_D)
    delta = (g @ E.T) * (1 - Z**2)
    for got, want in ((network.up.weight.grad, Z.T @ g), (network.up.bias.grad, g.sum(0)),
                      (network.down.weight.grad, flat.T @ delta), (network.down.bias.grad, delta.sum(0)),
                      (tensor.grad, delta @ D.T)):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel", "compacter"])
def test_dropout_of_an_adapter_is_on_what_enters_it(name):
    rng = np.random.default_rng(0)
    method = METHODS[name](bottleneck=4, activation="relu", dropout=0.4)
    method.A = Parameter(rng.standard_normal((4, 4, 4)))  # Compacter's
    network, z = method.make_network(8, rng), rng.standard_normal((3, 5, 8))
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, Parameter):
                value.data = rng.standard_normal(value.shape)
    down, up = (part.weight.data if isinstance(part, Linear) else part.weight().data for part in (network.down, network.up))
    for drawn in (None, 1):
        kept = np.ones_like(z) if drawn is None else dropout(Tensor(np.ones_like(z)), 0.4, np.random.default_rng(1)).data
        got = network(Tensor(z)) if drawn is None else network.train(np.random.default_rng(1))(Tensor(z))
        expected = np.maximum((z * kept) @ down + network.down.bias.data, 0) @ up + network.up.bias.data
        np.testing.assert_allclose(got.data, expected, rtol=1e-9, atol=1e-9)


@given(n=st.sampled_from([1, 2, 3]), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_compacters_matrix_is_the_sum_of_kronecker_products(n, rows, columns, seed):
    rng = np.random.default_rng(seed)
    A = Parameter(rng.standard_normal((n, n, n)))
    layer = KroneckerLinear(A, n * rows, n * columns, rng, 1.0)
    layer.s.data, layer.t.data = rng.standard_normal(layer.s.shape), rng.standard_normal(layer.t.shape)
    expected = sum(np.kron(A.data[i], layer.s.data[i] @ layer.t.data[i]) for i in range(n))
    np.testing.assert_allclose(layer.weight().data, expected, atol=1e-12)

    def run(a, s, t):
        layer.A, layer.s, layer.t = a, s, t
        return layer.weight()

    gradcheck(run, A.data, layer.s.data, layer.t.data, rng=rng)


@given(d_in=st.integers(1, 8), d_out=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_pissas_start_is_the_best_approximation_of_its_rank(d_in, d_out, seed):
    weight = np.random.default_rng(seed).standard_normal((d_in, d_out))
    for rank in range(1, min(d_in, d_out) + 1):
        u, v = principal_factors(weight, rank)
        singular = np.linalg.svd(weight, compute_uv=False)
        assert np.linalg.norm(weight - u @ v.T) == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), abs=1e-9)
        np.testing.assert_allclose(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=0), atol=1e-9)
        assert all(u[np.abs(u[:, i]).argmax(), i] > 0 for i in range(rank))


# ---- AdaLoRA's budget -----------------------------------------------------------------------------------------------


def test_adaloras_scores_and_budget_by_the_definition():
    config = TransformerConfig(model_type="bert", vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                               intermediate_size=12, max_position_embeddings=40, type_vocab_size=2, labels=("a", "b", "c"),
                               pooling="mean", initializer_range=0.5)
    model = make(config)
    method = METHODS["adalora"](rank=4, target_rank=2, interval=3, warmup=0.2, final=0.3, beta1=0.7, beta2=0.6)
    attachment = shake(attach(model, method))
    [hook] = method.hooks(attachment)
    assert isinstance(hook, Budget)
    wrappers = [w for w in attachment.wrappers.values() if hasattr(w, "lambdas")]
    total, smoothed, uncertainty, rng = 30, {}, {}, np.random.default_rng(0)
    expected_penalty = sum(np.sum((f.data.T @ f.data - np.eye(4)) ** 2) for w in wrappers for f in (w.U, w.V)) * 0.1
    assert hook.penalty().item() == pytest.approx(expected_penalty)
    kept = []
    for step in range(total):
        for number, w in enumerate(wrappers):
            for kind, p in (("U", w.U), ("l", w.lambdas), ("V", w.V)):
                p.grad = rng.standard_normal(p.shape)
                for index in np.ndindex(p.shape):  # the recursion, entry by entry
                    key = (number, kind, index)
                    now = abs(p.data[index] * p.grad[index])
                    smoothed[key] = 0.7 * smoothed.get(key, 0.0) + 0.3 * now
                    uncertainty[key] = 0.6 * uncertainty.get(key, 0.0) + 0.4 * abs(now - smoothed[key])
        hook.after_backward(step, total)
        scores = []
        for number, w in enumerate(wrappers):
            for i in range(4):
                s = lambda kind, index: smoothed[number, kind, index] * uncertainty[number, kind, index]
                scores.append(s("l", (i,)) + np.mean([s("U", (j, i)) for j in range(8)])
                              + np.mean([s("V", (j, i)) for j in range(8)]))
        np.testing.assert_allclose(hook.scores(), scores, rtol=1e-9)
        for w in wrappers:
            w.lambdas.data = w.lambdas.data + 0.1 * rng.standard_normal(4)  # the optimizer's step
        hook.after_step(step, total)
        begin, end = 6, 21
        budget = 16 if step < begin else 8 if step >= end else round(8 + 8 * (1 - (step - begin) / (end - begin)) ** 3)
        alive = np.concatenate([w.lambdas.data for w in wrappers]) != 0
        if step <= end and (step % 3 == 0 or step == end):
            best = set(np.argsort(-np.array(scores), kind="stable")[:budget])
            assert set(np.flatnonzero(alive)) == best and hook.budget(step, total) == budget
        if step >= end:
            kept.append(tuple(alive))
    assert len(set(kept)) == 1 and sum(kept[0]) == 8  # in the final phase the choice stands
