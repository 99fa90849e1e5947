"""Virtual tokens: what they start from, which positions they take, and that words among them are those words before the text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import Tensor
from minipeft.interop import make_model
from minipeft.methods import METHODS, activate, attach
from minipeft.methods.prefix import PrefixCore
from minipeft.methods.targets import block_paths
from minipeft.models import KVCache, TransformerConfig
from minipeft.nn import AttentionCore

SHAPE = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
         "max_position_embeddings": 40, "initializer_range": 0.9, "hidden_act": "gelu"}
FAMILIES = {"bert": {"model_type": "bert", "type_vocab_size": 2}, "gpt2": {"model_type": "gpt2"},
            "llama": {"model_type": "llama", "num_key_value_heads": 1},
            "t5": {"model_type": "t5", "num_decoder_layers": 2, "gated": True, "decoder_start_token_id": 0,
                   "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "head_dim": 3}}
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
WORDS = [7, 2, 11]


def make(family, **more):
    config = TransformerConfig(**SHAPE | FAMILIES[family] | more)
    model, rng = (make_model(config, {"bert": "none", "t5": "seq2seq"}.get(family, "lm"), np.random.default_rng(0)),
                  np.random.default_rng(1))
    for path, p in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            p.data = p.data + rng.standard_normal(p.shape) * 0.2
    return model.eval().astype(np.float64)


def states(model, ids=IDS, mask=MASK):
    """The states of the text's own places: an encoder's, a decoder's, or those that T5's decoder has with this source."""
    target = {"decoder_input_ids": np.array([[3, 1, 4, 1], [9, 6, 5, 3]])} if model.config.encoder_decoder else {}
    return model(ids, attention_mask=mask, **target).last_hidden_state.data


def before(words):
    """The text and its mask with words before it."""
    return np.concatenate([np.tile(words, (2, 1)), IDS], axis=1), np.concatenate([np.ones((2, len(words)), int), MASK], axis=1)


# ---- soft prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial,words", [("labels", WORDS), ("vocabulary", [7]), ("random", None)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_words_is_those_words_before_the_text(family, initial, words):
    model = make(family)
    attachment = attach(model, METHODS["prompt"](num_virtual_tokens=3, initial=initial, words=words))
    got, real = states(model), MASK.astype(bool) if family != "t5" else np.ones((2, 4), bool)
    first = 0 if family == "t5" else 3  # T5's decoder has no virtual tokens
    if initial == "random":  # vectors that are no word's: put into the table for a model that has none before its text
        plain = make(family)
        plain.embed.tokens.weight.data[WORDS] = attachment.arrays()["embed.tokens.prompt"]
        text = np.array([[3, 1, 4, 1, 5], [9, 6, 6, 5, 3]])  # without these words
        ids, mask = np.concatenate([np.tile(WORDS, (2, 1)), text], axis=1), before(WORDS)[1]
        got, expected = states(model, text), states(plain, ids, mask)
    else:
        ids, mask = before(WORDS if initial == "labels" else [7, 7, 7])
        with attachment.disabled():
            expected = states(model, ids, mask)
    np.testing.assert_allclose(got[:, first:][real], expected[:, first:][real], rtol=1e-9, atol=1e-9)
    with attachment.disabled():
        assert np.abs(states(model)[real] - got[:, first:][real]).max() > 1e-4


@given(n=st.integers(1, 20), given_=st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), seed=st.integers(0, 99))
def test_what_prompts_start_from(n, given_, seed):
    start = lambda **more: attach(model, METHODS["prompt"](num_virtual_tokens=n, **more), rng=np.random.default_rng(seed))
    model = make("gpt2")
    table = model.embed.tokens.weight.data

    def rows(attachment):
        """Which word each virtual token is."""
        prompt = attachment.arrays()["embed.tokens.prompt"]
        attachment.detach()
        found = [np.flatnonzero((table == row).all(axis=1)) for row in prompt]
        assert len(prompt) == n and all(len(hits) == 1 for hits in found)
        return [int(hits[0]) for hits in found]

    labels = rows(start(initial="labels", words=given_))
    assert labels[:len(given_)] == given_[:n]  # the label words first, in their order
    drawn = rows(start(initial="vocabulary", words=given_))
    assert set(drawn) <= set(given_) and len(set(drawn)) == min(n, len(given_)) or n > len(given_)
    anywhere = rows(start(initial="vocabulary"))
    assert n > 13 or len(set(anywhere)) == n  # each word once, as long as there are enough


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("words", [[13], [-1], [0, 99, 2]])
def test_words_outside_the_vocabulary_are_refused(name, words):
    model = make("gpt2")
    initial = "labels" if name == "prompt" else "words"
    with pytest.raises(ValueError, match=f"{name}: words must be token ids below 13, the size of the vocabulary; got (13|-1|99)"):
        attach(model, METHODS[name](num_virtual_tokens=len(words), initial=initial, words=words))
    assert not model.attachments


@pytest.mark.parametrize("name,settings,message", [
    ("prompt", {"initial": "words"}, "prompt: initial must be one of vocabulary, random, labels, got 'words'"),
    ("prompt", {"initial": "labels"}, "prompt: initial='labels' needs words, the token ids of the label words"),
    ("prefix", {"initial": "labels"}, "prefix: initial must be random or words, got 'labels'"),
    ("prefix", {"initial": "words", "words": [1, 2]},
     "prefix: initial='words' needs words, 20 token ids (one for each virtual token); got 2"),
    ("prefix", {"initial": "words"}, "20 token ids (one for each virtual token); got none"),
    ("prefix", {"initial": "words", "words": [1], "num_virtual_tokens": 1, "reparametrise": True},
     "it goes without reparametrise"),
    ("prefix", {"reparametrise": True, "hidden": 0}, "prefix: hidden must be a whole number of at least 1, got 0"),
    *[(name, {"num_virtual_tokens": n}, f"{name}: num_virtual_tokens must be a whole number of at least 1, got {n}")
      for name in ("prompt", "prefix") for n in (0, -1, 2.5)]])
def test_settings_that_cannot_be(name, settings, message):
    model = make("gpt2")
    with pytest.raises(ValueError) as error:
        attach(model, METHODS[name](**settings))
    assert message in str(error.value) and not model.attachments and "\n" not in str(error.value)


# ---- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("name,shift,expected,padded", [
    ("prompt", True, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 2, 2, 3, 4, 5]),
    ("prompt", False, [0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 0, 1, 2]),
    ("prefix", True, [3, 4, 5, 6, 7], [3, 3, 3, 4, 5]), ("prefix", False, [0, 1, 2, 3, 4], [0, 0, 0, 1, 2])])
def test_the_positions_are_pefts_by_default_and_can_be_the_texts_own(family, name, shift, expected, padded):
    model = make(family)
    attachment = attach(model, METHODS[name](num_virtual_tokens=3, shift_positions=shift))
    left = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])  # padding on the left
    assert model.enter(IDS)[2].tolist() == [expected]
    assert model.enter(IDS, left)[2].tolist() == [expected, padded]
    assert attachment.method.positions_taken == (3 if shift else 0)
    with attachment.disabled():
        assert model.enter(IDS)[2].tolist() == [[0, 1, 2, 3, 4]]


def test_the_positions_of_two_at_once_add_up():
    model = make("gpt2")
    (attach(model, METHODS["prefix"](num_virtual_tokens=2), "prefix"),
     attach(model, METHODS["prompt"](num_virtual_tokens=3), "prompt"))
    activate(model, "prefix", "prompt")
    vectors, mask, position_ids, virtual = model.enter(IDS, MASK)
    assert (position_ids[0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9] and virtual == 3 and vectors.shape == (2, 8, 8)
            and mask.shape == (2, 8))
    with pytest.raises(ValueError, match="the input is 36 tokens long and 5 virtual ones come before it, "
                                         "this model has positions for 40; truncate it to 35"):
        model(np.ones((1, 36), int))
    for other in (3, 4):
        attach(model, METHODS["prompt"](num_virtual_tokens=other), f"more {other}")
    activate(model, "prefix", "more 3", "more 4")
    assert model.enter(IDS, MASK)[3] == 7  # virtual tokens of both lead


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_tasks_vector_is_added_to_words_and_to_no_virtual_token(names):
    model = make("gpt2")
    prompt = attach(model, METHODS["prompt"](num_virtual_tokens=3), names[0])
    task = attach(model, METHODS["task_embedding"](), names[1])
    task.load_arrays({"embed.tokens.e": np.arange(8.0)})
    model.astype(np.float64)
    activate(model, *names)
    vectors = model.embed.tokens(IDS)[0].data
    assert (vectors[:, :3] == prompt.arrays()["embed.tokens.prompt"]).all()
    np.testing.assert_allclose(vectors[:, 3:], model.embed.tokens.weight.data[IDS] + np.arange(8.0))


# ---- prefixes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_words_holds_the_keys_and_values_that_the_frozen_model_has_for_them(family, training):
    model, ids = make(family, hidden_dropout=0.3), np.array([WORDS])
    rng = np.random.default_rng(0)
    if training:
        model.train(rng)
    attachment = attach(model, METHODS["prefix"](num_virtual_tokens=3, initial="words", words=WORDS))
    assert model.training == training and (not training or model.rng is rng)  # the words were read without dropout
    plain, config = make(family), model.config

    def expected(attention, h):
        """Keys and values (P, H' K) of states that enter an attention, positions applied."""
        k, v = (attention.split(part(Tensor(h)), attention.key_heads) for part in (attention.k, attention.v))
        k = k if attention.rotary is None else attention.rotary(k, np.arange(3)[None])
        return [part.data[0].swapaxes(0, 1).reshape(3, -1) for part in (k, v)]

    if family == "t5":
        source = plain.encode(ids)[0].data
        stacks = {"encoder": ids, "decoder": ids}
    for path in block_paths(plain, AttentionCore):
        side, part = path.split(".")[0], path.split(".")[-2]
        if family == "t5":
            vectors = plain.embed.tokens(stacks[side])[0]
            stack, x = plain.get(side), plain.embed(vectors, np.arange(3)[None])
            more = () if side == "encoder" else (Tensor(source), None)
            if part == "cross":
                h = source
            else:
                h = stack(x, None, np.arange(3)[None], *more)[1][int(path.split(".")[2])].data
        else:
            h = plain(ids, output_hidden_states=True).hidden_states[int(path.split(".")[1])].data
        attention = plain.get(path.rpartition(".")[0])
        if part != "cross" and attention.norm is not None:
            h = attention.norm(Tensor(h)).data
        keys, values = expected(attention, h)
        np.testing.assert_allclose(attachment.wrappers[path].keys.data, keys, rtol=1e-9, atol=1e-9, err_msg=path)
        np.testing.assert_allclose(attachment.wrappers[path].values.data, values, rtol=1e-9, atol=1e-9, err_msg=path)
    assert set(attachment.wrappers) - {"positions"} == set(block_paths(plain, AttentionCore)) and config.hidden_dropout == 0.3


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), rows=st.sampled_from([1, 2]))
def test_beside_a_relative_bias_a_prefix_is_at_no_distance(seed, n, rows):
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 2, 2, 4, 3))
    bias = rng.standard_normal((rows, 2, 4, 4))
    core = PrefixCore(AttentionCore(False), rng.standard_normal((n, 6)), rng.standard_normal((n, 6)))
    got = core(*map(Tensor, (q, k, v)), None, Tensor(bias), 0.7).data
    keys, values = (p.data.reshape(n, 2, 3).swapaxes(0, 1)[None].repeat(2, 0) for p in (core.keys, core.values))
    scores = np.concatenate([0.7 * q @ keys.swapaxes(2, 3), 0.7 * q @ k.swapaxes(2, 3) + bias], axis=3)
    weights = np.exp(scores) / np.exp(scores).sum(axis=3, keepdims=True)
    np.testing.assert_allclose(got, weights @ np.concatenate([values, v], axis=2), rtol=1e-9, atol=1e-11)


def test_the_network_makes_the_prefix_that_the_equation_says():
    model = make("gpt2")
    attachment = attach(model, METHODS["prefix"](num_virtual_tokens=3, reparametrise=True, hidden=5))
    for wrapper in attachment.wrappers.values():
        if isinstance(wrapper, PrefixCore):
            E, W_a, b_a = (p.data for p in (wrapper.network.E, wrapper.network.map.weight, wrapper.network.map.bias))
            both = np.tanh(E @ W_a + b_a) @ wrapper.out.weight.data + wrapper.out.bias.data
            for got, expected in zip(wrapper.prefix(), (both[:, :8], both[:, 8:])):  # keys, then values
                np.testing.assert_allclose(got.data, expected, rtol=1e-12)
    assert len({id(w.network) for w in attachment.wrappers.values() if isinstance(w, PrefixCore)}) == 1  # E and W_a are shared


def test_a_prompt_enters_once_when_the_cache_is_empty():
    model = make("gpt2")
    attach(model, METHODS["prompt"](num_virtual_tokens=3))
    whole, cache = model(IDS).logits.data, KVCache(model.config.num_hidden_layers)
    parts = [model(IDS[:, i:i + 1], cache=cache).logits.data for i in range(5)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-9, atol=1e-9)
    assert cache.length == 3 + 5
