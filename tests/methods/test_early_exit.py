"""Early exit: rules 36 to 38 of the list in test_conformance.py, the objectives, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.interop import make_model
from minipeft.methods import METHODS, attach, mixed
from minipeft.methods.early_exit import EarlyExit
from minipeft.methods.exit_rules import RULES, entropy, margin
from minipeft.methods.exit_training import OBJECTIVES, Joint, SelfDistilled, TwoStage
from minipeft.models import TransformerConfig
from minipeft.training import SGD

FAMILIES = {"bert": {"model_type": "bert", "type_vocab_size": 2}, "gpt2": {"model_type": "gpt2"},
            "llama": {"model_type": "llama"}}
POOLINGS = {"bert": ("mean", "cls", "pooler"), "gpt2": ("last", "mean"), "llama": ("last", "mean")}


def make(family="bert", pooling=None, layers=3, classes=3, seed=0):
    labels = tuple("abcde"[:classes])
    config = TransformerConfig(vocab_size=13, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
                               intermediate_size=10, max_position_embeddings=24, initializer_range=0.6, labels=labels,
                               pooling=pooling or POOLINGS[family][0], **FAMILIES[family])
    model = make_model(config, "classify", np.random.default_rng(seed)).eval()
    exits = EarlyExit(model, rng=np.random.default_rng(seed + 1))
    rng = np.random.default_rng(seed + 2)
    for head in exits.exits:
        for p in head.parameters():
            p.data = rng.standard_normal(p.shape).astype(np.float32)
    return exits


def batch(seed, rows=5, length=6):
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(1, length + 1, (rows, 1))
    return rng.integers(1, 13, (rows, length)) * mask, mask


@st.composite
def cases(draw):
    family = draw(st.sampled_from(list(FAMILIES)))
    exits = make(family, draw(st.sampled_from(POOLINGS[family])), draw(st.integers(2, 4)), draw(st.integers(2, 4)),
                 draw(st.integers(0, 99)))
    return exits, *batch(draw(st.integers(0, 10**6)), draw(st.integers(1, 6)))


@pytest.mark.parametrize("rule", RULES)
@given(case=cases())
def test_36_at_looseness_0_nothing_leaves_and_the_output_is_the_full_models(rule, case):
    exits, ids, mask = case
    got = exits.predict(RULES[rule](0.0), ids, mask)
    assert (got.layers == len(exits.heads())).all()
    assert (got.logits == exits.model(ids, attention_mask=mask).logits.data).all()


@pytest.mark.parametrize("rule", RULES)
@given(case=cases(), looseness=st.floats(0, 1))
def test_37_in_any_batch_an_example_leaves_where_it_leaves_alone(rule, case, looseness):
    exits, ids, mask = case
    together = exits.predict(RULES[rule](looseness), ids, mask)
    all_exits = [z.data for z in exits(ids, mask).exit_logits]
    score = {"entropy": lambda z: np.abs(entropy(z) - looseness), "margin": lambda z: np.abs(margin(z) - (1 - looseness)),
             "patience": lambda z: np.diff(np.sort(z, axis=1)[:, -2:])[:, 0]}[rule]
    near = np.any([score(z) < 1e-5 for z in all_exits], axis=0)
    for row in range(len(ids)):
        alone = exits.predict(RULES[rule](looseness), ids[row:row + 1], mask[row:row + 1])
        if not near[row]:
            assert alone.layers[0] == together.layers[row]
            np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(together.logits[row], all_exits[together.layers[row] - 1][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@given(case=cases(), loosenesses=st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_38_a_larger_looseness_never_raises_anyones_layer(rule, case, loosenesses):
    exits, ids, mask = case
    layers = [exits.predict(RULES[rule](s), ids, mask).layers for s in sorted(loosenesses)]
    assert all((after <= before).all() for before, after in zip(layers, layers[1:]))


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@given(case=cases(), weights=st.sampled_from(["equal", "depth"]))
def test_the_objectives_are_their_definitions(case, weights):
    exits, ids, mask = case
    labels = np.arange(len(ids)) % len(exits.model.config.labels)
    z = [t.data.astype(np.float64) for t in exits(ids, mask).exit_logits]
    each = [-np.log(softmax(one)[np.arange(len(ids)), labels]).mean() for one in z]
    w = np.ones(len(z)) if weights == "equal" else np.arange(1, len(z) + 1) / sum(range(1, len(z) + 1))
    teacher = np.log(softmax(z[-1]))
    kl = [(softmax(one) * (np.log(softmax(one)) - teacher)).sum(axis=1).mean() for one in z[:-1]]
    for objective, expected in ((Joint(weights), (w * each).sum()), (TwoStage(), sum(each[:-1])), (SelfDistilled(), sum(kl))):
        exits.objective = objective
        assert exits(ids, mask, labels=labels).loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert exits(ids, mask).loss is not None  # distillation needs no labels


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_each_objective_trains(name):
    exits, (ids, mask) = make(), batch(0)
    exits.objective = OBJECTIVES[name]()
    before = {path: p.data.tobytes() for path, p in exits.model.named_parameters()}
    parameters = exits.trainable()
    exits(ids, mask, labels=np.array([0, 1, 2, 0, 1])).loss.backward()
    SGD(parameters.values(), lr=0.1).step()
    moved = {path for path, p in exits.model.named_parameters() if p.data.tobytes() != before[path]}
    assert bool(moved) == (name == "joint")
    assert all(p.grad is None for p in exits.model.parameters()) == (name != "joint")
    assert all(p.grad is not None for p in exits.exits.parameters())


def test_counts_and_attachments():
    exits = make(layers=4)
    assert [row[1] for row in exits.table()] == [8 * 3 + 3] * 4  # L (D C + C)
    lora = attach(exits.model, METHODS["lora"](rank=2))
    rng = np.random.default_rng(0)
    ids, mask = batch(1)
    plain = exits.predict(RULES["entropy"](0.5), ids, mask).logits
    lora.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) for p, a in lora.arrays().items()})
    assert (exits.predict(RULES["entropy"](0.5), ids, mask).logits != plain).any()
    assert set(lora.named_parameters()) < set(exits.trainable())


def test_rows_with_different_attachments_are_refused():
    exits, (ids, mask) = make(), batch(0, rows=2)
    attach(exits.model, METHODS["lora"](rank=2), name="a")
    with mixed(exits.model, ["a", None]), pytest.raises(ValueError, match="early exit: the rows .* different attachments"):
        exits.predict(RULES["entropy"](0.5), ids, mask)


def test_an_exit_that_was_never_trained_is_refused(tmp_path):
    fresh = EarlyExit(make().model, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="early exit: .*exit 1, 2 of 3.* never trained"):
        fresh.predict(RULES["margin"](0.5), *batch(0))
    with pytest.raises(ValueError, match="never trained"):
        fresh.save_exits(tmp_path)
    trained = make()
    trained.save_exits(tmp_path)
    fresh.load_exits(tmp_path)
    ids, mask = batch(0)
    assert (fresh.predict(RULES["margin"](0.5), ids, mask).logits
            == trained.predict(RULES["margin"](0.5), ids, mask).logits).all()
    with pytest.raises(ValueError, match="blocks"):
        make(layers=4).load_exits(tmp_path)


@pytest.mark.parametrize("looseness", [-0.1, 1.1, float("nan")])
def test_looseness_lies_between_0_and_1(looseness):
    for rule in RULES.values():
        with pytest.raises(ValueError, match="looseness: expected a number from 0"):
            rule(looseness)


def test_other_models_are_refused():
    model = make().model
    model.head = None
    with pytest.raises(ValueError, match="early exit: expected a.*2 blocks or more"):
        EarlyExit(model)
