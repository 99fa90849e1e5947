"""Early exit in decoders: the walk against a slow one without caches, rules 36 to 38, the objective, and what is refused."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minipeft.autograd import Tensor, no_grad
from minipeft.interop import make_model
from minipeft.methods import METHODS, attach, mixed
from minipeft.methods.exit_rules import RULES, Confident, Margin, entropy, margin
from minipeft.methods.exit_training import Joint
from minipeft.methods.token_exit import TokenExit
from minipeft.models import TransformerConfig, generate
from minipeft.training import SGD

FAMILIES = {"gpt2": {"model_type": "gpt2"}, "llama": {"model_type": "llama", "num_key_value_heads": 2}}
ALL_RULES = RULES | {"confident": Confident}


def make(family="gpt2", layers=4, seed=0, dtype=np.float32):
    config = TransformerConfig(vocab_size=17, hidden_size=8, num_hidden_layers=layers, num_attention_heads=4,
                               intermediate_size=12, max_position_embeddings=40, initializer_range=0.7, **FAMILIES[family])
    return make_model(config, "lm", np.random.default_rng(seed)).eval().astype(dtype)


def prompts(seed, rows, length=5):
    """Ids and a mask with padding on the left."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 17, (rows, length)), np.arange(length) >= rng.integers(0, length, (rows, 1))


def slow(model, rule, prompt, count):
    """(ids, layers, least distance of a score from its threshold) of one text, with every state kept and nothing cached.

    ``entering[k]`` are the states (1, S, D) that enter block k, those of skipped tokens copied from where they left.
    """
    blocks, ids, layers, near = list(model.blocks), list(prompt), [len(model.blocks)], np.inf
    with no_grad():
        states = model(np.array([ids]), output_hidden_states=True).hidden_states
        entering = [s.data for s in states[:-1]]
        ids.append(int(model.head.project(states[-1][:, -1]).data.argmax()))
        for token in range(1, count):
            x, _, places, _ = model.enter(np.array([ids]))
            x, memory, left = x[:, -1:], None, None
            for number, block in enumerate(blocks, 1):
                entering[number - 1] = np.concatenate([entering[number - 1], x.data], axis=1)
                if left is not None:
                    continue
                x = block(Tensor(entering[number - 1]), None, places)[:, -1:]
                z = model.head.project(model.normalised(x)[:, -1]).data
                here = rule.at(token, count)
                if number < len(blocks):
                    near = min(near, distance(here, z))
                    leaves, memory = here(z, memory, len(blocks))
                    left = number if leaves[0] else None
            layers.append(left or len(blocks))
            ids.append(int(z.argmax()))
            near = min(near, np.diff(np.sort(z[0])[-2:])[0])
    return ids, layers, near


def distance(rule, z):
    """How near a score is to the place where the rule would decide otherwise."""
    if isinstance(rule, Margin):
        return abs(margin(z)[0] - (1 - rule.looseness))
    if isinstance(rule, RULES["entropy"]):
        return abs(entropy(z)[0] - rule.looseness)
    return np.diff(np.sort(z[0])[-2:])[0]


@pytest.mark.parametrize("rule", ALL_RULES)
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_each_row_is_written_as_by_a_slow_walk_that_keeps_all_states(family, rule, data):
    model = make(family, data.draw(st.integers(2, 5)), data.draw(st.integers(0, 99)))
    ids, mask = prompts(data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 4)))
    chosen, count = ALL_RULES[rule](data.draw(st.floats(0, 1))), 7
    got = TokenExit(model, trained=True).generate(chosen, ids, count, mask)
    for row in range(len(ids)):
        expected, layers, near = slow(model, chosen, ids[row][mask[row]], count)
        assume(near > 1e-5)
        assert got.ids[row, ids.shape[1]:].tolist() == expected[-count:]
        assert got.layers[row].tolist() == layers


@pytest.mark.parametrize("rule", ALL_RULES)
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 10**6), rows=st.integers(1, 4))
def test_36_at_looseness_0_the_text_is_the_full_models(rule, family, seed, rows):
    model, (ids, mask) = make(family, seed=seed % 50), prompts(seed, rows)
    got = TokenExit(model, trained=True).generate(ALL_RULES[rule](0.0), ids, 8, mask)
    assert (got.ids == generate(model, ids, 8, mask)).all() and (got.layers == 4).all()


@pytest.mark.parametrize("rule", ALL_RULES)
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 10**6),
       loosenesses=st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_38_a_larger_looseness_never_raises_the_layer_of_the_next_token(rule, family, seed, loosenesses):
    """Of the first token that may leave: the states of the later ones differ, once one before them has left elsewhere."""
    model, (ids, mask) = make(family, seed=seed % 50), prompts(seed, 3)
    exits = TokenExit(model, trained=True)
    layers = [exits.generate(ALL_RULES[rule](s), ids, 2, mask).layers[:, 1] for s in sorted(loosenesses)]
    assert all((after <= before).all() for before, after in zip(layers, layers[1:]))


def test_the_threshold_falls_as_the_text_grows():
    rule = Confident(0.4, tau=3.0)
    for token, length in ((1, 10), (5, 10), (10, 10)):
        threshold = 0.9 * 0.6 + 0.1 * np.exp(-3.0 * token / length)
        assert rule.at(token, length).looseness == pytest.approx(1 - threshold)
    assert Confident(0.0).at(9, 10).looseness == 0 and Confident(1.0, tau=0.0).at(1, 10).looseness == pytest.approx(0.9)
    with pytest.raises(ValueError, match="tau: expected a number of 0 or more, got -1"):
        Confident(0.5, -1)


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "ia3", "parallel", "bitfit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_attached_acts_here_too(family, method):
    model, (ids, mask) = make(family), prompts(3, 3)
    settings = {"lora": {"rank": 2}, "prefix": {"num_virtual_tokens": 3}, "prompt": {"num_virtual_tokens": 3},
                "bitfit": {"add_zero_biases": True}}.get(method, {})
    plain, rng = TokenExit(model, trained=True).generate(Margin(0.5), ids, 8, mask), np.random.default_rng(0)
    attachment = attach(model, METHODS[method](**settings))
    attachment.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) for p, a in attachment.arrays().items()})
    exits = TokenExit(model, trained=True)
    assert set(exits.trainable()) == set(attachment.named_parameters())
    assert (exits.generate(Margin(0.0), ids, 8, mask).ids == generate(model, ids, 8, mask)).all()
    together = exits.generate(Margin(0.6), ids, 8, mask)
    assert (together.ids != plain.ids).any()
    for row in range(len(ids)):
        alone = exits.generate(Margin(0.6), ids[row:row + 1, mask[row]], 8)
        assert (alone.ids[0, -8:] == together.ids[row, -8:]).all() and (alone.layers[0] == together.layers[row]).all()


def test_a_row_that_has_ended_is_filled_up():
    model, (ids, mask) = make(), prompts(0, 3)
    free = TokenExit(model, trained=True).generate(Margin(0.4), ids, 9, mask)
    end, seen = int(free.ids[0, 8]), []
    got = TokenExit(model, trained=True).generate(Margin(0.4), ids, 9, mask, eos_token_id=end, on_token=seen.append)
    assert (np.stack(seen, axis=1) == got.ids[:, 5:]).all() and got.layers.shape == got.ids[:, 5:].shape
    for row in range(3):
        written = free.ids[row, 5:].tolist()
        last = written.index(end) + 1 if end in written else 9
        assert got.ids[row, 5:5 + last].tolist() == written[:last] and (got.layers[row, :last] == free.layers[row, :last]).all()
        assert (got.ids[row, 5 + last:] == end).all() and (got.layers[row, last:] == 0).all()


@pytest.mark.parametrize("weights", ["depth", "equal", [0.0, 2.0, 0.0, 1.0]])
def test_the_objective_is_its_definition(weights):
    model, (ids, _) = make(dtype=np.float64), prompts(1, 3)
    labels = np.where(np.arange(5) < 4, ids, -100)
    exits = TokenExit(model, Joint(weights)).train(np.random.default_rng(0))
    got = exits(ids, labels=labels)
    w = {"depth": np.arange(1, 5) / 10, "equal": np.ones(4)}.get(weights if isinstance(weights, str) else None, weights)
    states, expected = model(ids, output_hidden_states=True).hidden_states, 0.0
    for i, share in enumerate(w):
        h = states[i + 1] if i == 3 else model.normalised(states[i + 1])
        z = model.head.project(h).data[:, :3]
        p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        expected += share * -np.log(np.take_along_axis(p, ids[:, 1:4, None], 2)).mean()
    assert got.loss.item() == pytest.approx(expected, rel=1e-9)
    assert len(got.exit_logits) == sum(share > 0 for share in w) and exits.trained.tolist() == [share > 0 for share in w]
    before = {path: p.data.copy() for path, p in model.named_parameters()}
    got.loss.backward()
    SGD(exits.trainable().values(), lr=0.1).step()
    assert all((p.data != before[path]).any() for path, p in model.named_parameters() if not path.endswith("attn.k.bias"))
    assert exits.eval()(ids, labels=labels).loss.item() == model(ids, labels=labels).loss.item()


def test_what_is_refused():
    model, (ids, mask) = make(), prompts(0, 2)
    with pytest.raises(ValueError, match="token exit: exit 1, 2, 3 of 4 was never trained"):
        TokenExit(model).generate(Margin(0.5), ids)
    half = TokenExit(model, Joint([0, 0, 1, 1])).train(np.random.default_rng(0))
    half(ids, labels=ids)
    with pytest.raises(ValueError, match="token exit: exit 1, 2 of 4 was never trained.*weighs every exit"):
        half.generate(Margin(0.5), ids)
    exits = TokenExit(model, trained=True)
    with pytest.raises(ValueError, match="the input is 45 tokens long, this model has positions for 40"):
        exits.generate(Margin(0.5), ids, 40)
    with pytest.raises(ValueError, match="token exit: expected at least one token of prompt"):
        exits.generate(Margin(0.5), np.zeros((1, 0), np.int64))
    attach(model, METHODS["lora"](rank=2), "a")
    with mixed(model, ["a", None]), pytest.raises(ValueError, match="token exit: the rows of this batch go through different"):
        exits.generate(Margin(0.5), ids)
    with pytest.raises(ValueError, match="token exit: expected a Decoder with 2 blocks or more and an LMHead, "
                                         "got Decoder with 1"):
        TokenExit(make(layers=1))
    model.head = None
    with pytest.raises(ValueError, match="load a decoder with task='lm'"):
        TokenExit(model)


