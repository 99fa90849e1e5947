"""Generation: the cache changes nothing, padding changes nothing, and sampling draws from the promised distribution."""

import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minipeft.models import KVCache, generate
from minipeft.models.generation import next_token_distribution

DECODERS = ["gpt2", "llama", "llama tied"]
PROMPT = np.array([[3, 1, 4, 1], [9, 2, 6, 5]])


def slowly(model, ids, count):
    """Greedy text with the whole forward pass at every step."""
    for _ in range(count):
        ids = np.concatenate([ids, model(ids).logits.data[:, -1].argmax(-1)[:, None]], axis=1)
    return ids


# ---- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("pieces", [[1] * 10, [4, 6], [3, 1, 1, 5]])
def test_logits_with_a_cache_equal_those_without(family, pieces, make, backend, rng):
    model, ids = make(family, "lm"), rng.integers(0, 13, (2, 10))
    mask = np.ones((2, 10), bool)
    mask[1, :2] = False  # padding on the left
    whole, whole_masked = model(ids).logits.data, model(ids, attention_mask=mask).logits.data
    for given_mask, expected in ((None, whole), (mask, whole_masked)):
        cache, start = KVCache(model.config.num_hidden_layers), 0
        for size in pieces:
            stop = start + size
            got = model(ids[:, start:stop], attention_mask=None if given_mask is None else given_mask[:, :stop],
                        cache=cache).logits.data
            np.testing.assert_allclose(got, expected[:, start:stop], rtol=2e-4, atol=2e-5)
            start = stop
            assert cache.length == stop
    assert KVCache(0).length == 0


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_equals_the_slow_way(family, make, backend):
    model = make(family, "lm")
    written = generate(model, PROMPT, 8)
    assert written.dtype == np.int64 and written.tolist() == slowly(model, PROMPT, 8).tolist()


@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_equals_each_alone(family, make):
    model = make(family, "lm")
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6]]
    ids, mask = np.full((3, 5), 7), np.zeros((3, 5), int)
    for row, prompt in enumerate(prompts):
        ids[row, 5 - len(prompt):], mask[row, 5 - len(prompt):] = prompt, 1
    together = generate(model, ids, 6, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        assert together[row, 5:].tolist() == generate(model, [prompt], 6)[0, len(prompt):].tolist()


def test_nothing_is_recorded_and_nothing_is_trained(make):
    model = make("gpt2", "lm")
    generate(model, PROMPT, 3)
    assert all(p.grad is None for p in model.parameters())


# ---- ends -------------------------------------------------------------------------------------------------------


def test_a_row_ends_at_its_end_token_and_is_filled_with_it(make):
    model = make("gpt2", "lm", seed=3)
    free = generate(model, PROMPT, 10)
    ends = {int(t) for t in free[0, 4:]}
    for end in ends:
        written = generate(model, PROMPT, 10, eos_token_id=end)
        for row in range(2):
            new = free[row, 4:].tolist()
            stop = new.index(end) + 1 if end in new else 10
            got = written[row, 4:].tolist()
            assert got[:stop] == new[:stop] and set(got[stop:]) <= {end}
        longest = max((free[r, 4:].tolist() + [end]).index(end) + 1 for r in range(2))
        assert written.shape[1] - 4 == min(10, longest)


def test_several_end_tokens_and_those_of_the_config(make):
    model = make("gpt2", "lm")
    new = generate(model, PROMPT[:1], 6)[0, 4:].tolist()
    never = next(t for t in range(13) if t not in new)
    assert generate(model, PROMPT[:1], 6, eos_token_id=[never, new[2]]).shape[1] - 4 == new.index(new[2]) + 1
    model.config = model.config.with_(eos_token_id=(never, new[2]))
    assert generate(model, PROMPT[:1], 6).shape[1] - 4 == new.index(new[2]) + 1
    model.config = model.config.with_(eos_token_id=new[0])
    assert generate(model, PROMPT[:1], 6).shape[1] - 4 == 1
    assert generate(model, PROMPT[:1], 6, eos_token_id=never).shape[1] - 4 == 6


def test_no_new_tokens_and_a_listener(make):
    model, heard = make("gpt2", "lm"), []
    assert generate(model, PROMPT, 0).tolist() == PROMPT.tolist()
    written = generate(model, PROMPT, 5, on_token=lambda column: heard.append(column.tolist()))
    assert np.array(heard).T.tolist() == written[:, 4:].tolist()


# ---- sampling ---------------------------------------------------------------------------------------------------


def test_sampling_is_a_function_of_the_seed(make):
    model = make("llama", "lm")
    draws = [generate(model, PROMPT, 12, rng=np.random.default_rng(seed), temperature=2.0).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}, {"temperature": 5e-324}])
def test_sampling_from_one_token_is_greedy(narrow, make):
    model = make("llama", "lm")
    assert generate(model, PROMPT, 8, rng=np.random.default_rng(0), **narrow).tolist() == generate(model, PROMPT, 8).tolist()


def test_samples_follow_the_distribution(make):
    model = make("gpt2", "lm")
    p = next_token_distribution(model(PROMPT[:1]).logits.data[:, -1], 3.0, 5)[0]
    drawn = generate(model, np.repeat(PROMPT[:1], 4000, axis=0), 1, rng=np.random.default_rng(0), temperature=3.0, top_k=5)[:, -1]
    share = np.bincount(drawn, minlength=13) / 4000
    assert (share[p == 0] == 0).all()
    np.testing.assert_allclose(share, p, atol=4 * 0.5 / math.sqrt(4000))


def naive_distribution(row, temperature, top_k, top_p):
    """The definition, token by token; also how near the threshold of top_p a sum came."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    weight = {i: math.exp((row[i] - max(row)) / temperature) for i in order}
    kept = order[:top_k] if top_k else order
    total = math.fsum(weight[i] for i in kept)
    nucleus, so_far, margin = [], 0.0, 1.0
    for i in kept:
        margin = min(margin, abs(so_far - top_p))
        if so_far >= top_p:
            break
        nucleus.append(i)
        so_far += weight[i] / total
    total = math.fsum(weight[i] for i in nucleus)
    return [weight[i] / total if i in nucleus else 0.0 for i in range(len(row))], margin


@given(rows=st.integers(1, 3), classes=st.integers(1, 8), seed=st.integers(0, 999), ties=st.booleans(),
       temperature=st.sampled_from([0.1, 1.0, 2.5]), top_k=st.integers(0, 10), top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]))
def test_distribution_against_the_definition(rows, classes, seed, ties, temperature, top_k, top_p):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, classes)) * 3
    if ties:
        logits = logits.round()
    got = next_token_distribution(logits, temperature, top_k, top_p)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got.sum(axis=1), 1)
    for row, p in zip(logits, got):
        expected, margin = naive_distribution(row.tolist(), temperature, top_k, top_p)
        assume(margin > 1e-9 or top_p == 1)  # rounding may decide either way on the threshold itself
        np.testing.assert_allclose(p, expected, atol=1e-12)


def test_distribution_with_hidden_and_huge_logits():
    got = next_token_distribution(np.array([[-np.inf, 1e4, 1e4, -1e30]], np.float32), 0.5)
    assert got.tolist() == [[0, 0.5, 0.5, 0]]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log([[0.5, 0.25, 0.125, 0.125]])
    keeps = lambda p: int((next_token_distribution(logits, top_p=p)[0] > 0).sum())
    assert [keeps(p) for p in (0.1, 0.49, 0.51, 0.74, 0.76, 0.874, 0.876, 1.0)] == [1, 1, 2, 2, 3, 3, 4, 4]


# ---- messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs,message", [
    ({"temperature": 0}, "temperature: expected a number above 0, got 0 (for the most probable token, do not sample)"),
    ({"temperature": -1.0}, "temperature: expected a number above 0, got -1.0"),
    ({"top_k": -1}, "top_k: expected 0 (all) or a number of tokens, got -1"),
    ({"top_p": 0.0}, "top_p: expected a number in (0, 1], got 0.0"),
    ({"top_p": 1.1}, "top_p: expected a number in (0, 1], got 1.1"),
])
def test_settings_outside_their_range(kwargs, message, make):
    with pytest.raises(ValueError, match=re.escape(message)):
        next_token_distribution(np.zeros((1, 3)), **kwargs)
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(make("gpt2", "lm"), PROMPT, 1, rng=np.random.default_rng(0), **kwargs)


@pytest.mark.parametrize("prompt,shape", [(np.zeros((1, 0), int), "(1, 0)"), ([1, 2], "(2,)"), ([], "(0,)")])
def test_an_empty_prompt(prompt, shape, make):
    message = f"generate: expected at least one token of prompt, as (batch, time), got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(make("gpt2", "lm"), prompt, 3)


def test_a_length_beyond_the_learned_positions_is_refused_before_anything_is_written(make):
    heard = []
    with pytest.raises(ValueError, match="the input is 25 tokens long, this model has positions for 24; truncate it"):
        generate(make("gpt2", "lm"), PROMPT, 21, on_token=heard.append)
    assert heard == [] and generate(make("gpt2", "lm"), PROMPT, 20).shape == (2, 24)
    assert generate(make("llama", "lm"), PROMPT, 40).shape == (2, 44)


@pytest.mark.parametrize("task", [None, "classify"])
def test_a_model_that_cannot_write_says_so(task, make):
    with pytest.raises(ValueError, match="generate"):
        generate(make("gpt2", task, "last" if task else None), PROMPT, 1)
