"""LayerSkip: drafting and verifying against a slow definition, layer dropout, the weights of the exits, and what is refused."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minipeft.interop import make_model
from minipeft.methods import METHODS, attach
from minipeft.methods.layer_skip import ExitLoss, SkippedBlock, draft_and_verify, layer_dropout
from minipeft.methods.token_exit import TokenExit
from minipeft.models import TransformerConfig, generate
from minipeft.nn import Wrapper
from minipeft.training import SGD

FAMILIES = {"gpt2": {"model_type": "gpt2"}, "llama": {"model_type": "llama", "num_key_value_heads": 2}}


def make(family="gpt2", layers=4, seed=0, dtype=np.float32, std=0.8):
    config = TransformerConfig(vocab_size=17, hidden_size=8, num_hidden_layers=layers, num_attention_heads=4,
                               intermediate_size=12, max_position_embeddings=60, initializer_range=std,
                               tie_word_embeddings=False, **FAMILIES[family])
    return make_model(config, "lm", np.random.default_rng(seed)).eval().astype(dtype)


# ---- writing ---------------------------------------------------------------------------------------------------


def next_word(model, ids, blocks):
    """The most probable next word of a text by the first ``blocks`` blocks, computed anew; and how far ahead it is."""
    states = model(np.array([ids]), output_hidden_states=True).hidden_states
    x = states[blocks] if blocks == len(model.blocks) else model.normalised(states[blocks])
    z = model.head.project(x[:, -1]).data[0]
    return int(z.argmax()), float(np.diff(np.sort(z)[-2:])[0])


def slow(model, prompt, exit_layer, draft_tokens, count, end=None):
    """(words, drafted, accepted, least lead) by the definition, without any cache."""
    word, near = next_word(model, prompt, len(model.blocks))
    text, drafted, accepted, leads = [*prompt, word], 0, 0, [near]
    done = lambda: len(text) - len(prompt) >= count or text[-1] == end
    while not done():
        draft = []
        while len(draft) < min(draft_tokens, count - (len(text) - len(prompt))) and (not draft or draft[-1] != end):
            word, near = next_word(model, text + draft, exit_layer)
            draft.append(word)
            leads.append(near)
        drafted += len(draft)
        for i, word in enumerate(draft):
            right, near = next_word(model, text, len(model.blocks))
            leads.append(near)
            if right == word:
                accepted += 1
            if not done():
                text.append(right)
            if right != word:
                break
    return text[len(prompt):], drafted, accepted, min(leads)


@given(family=st.sampled_from(list(FAMILIES)), layers=st.integers(2, 5), seed=st.integers(0, 50), data=st.data())
def test_draft_and_verify_by_the_definition(family, layers, seed, data):
    model, exit_layer = make(family, layers, seed), data.draw(st.integers(1, layers - 1))
    ids = np.random.default_rng(seed).integers(0, 17, (1, data.draw(st.integers(1, 5))))
    plain = generate(model, ids, 12)[0, ids.shape[1]:].tolist()
    end = data.draw(st.sampled_from([None, plain[0], plain[4], plain[-1]]))
    draft_tokens = data.draw(st.integers(1, 6))
    words, drafted, accepted, lead = slow(model, ids[0].tolist(), exit_layer, draft_tokens, 12, end)
    assume(lead > 1e-5)
    seen = []
    got = draft_and_verify(model, ids, exit_layer, draft_tokens, 12, end, on_token=lambda column: seen.append(int(column[0])))
    assert got.ids[0].tolist() == ids[0].tolist() + words and seen == words
    assert (got.drafted, got.accepted) == (drafted, accepted)
    assert (got.ids == generate(model, ids, 12, eos_token_id=end)).all()


@pytest.mark.parametrize("method,settings", [("lora", {"rank": 2}), ("prefix", {"num_virtual_tokens": 3}),
                                             ("prompt", {"num_virtual_tokens": 3, "shift_positions": False}), ("parallel", {})])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_attached_acts_here_too(family, method, settings):
    model, ids, rng = make(family), np.array([[3, 1, 4]]), np.random.default_rng(0)
    plain = generate(model, ids, 15)
    attachment = attach(model, METHODS[method](**settings))
    attachment.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) for p, a in attachment.arrays().items()})
    expected = generate(model, ids, 15)
    assert (expected != plain).any()
    for exit_layer in (1, 3):
        assert (draft_and_verify(model, ids, exit_layer, 3, 15).ids == expected).all()


def test_a_model_whose_last_blocks_do_nothing_has_every_word_accepted():
    model, ids = make(layers=4), np.array([[3, 1, 4]])
    for block in list(model.blocks)[2:]:
        for part in (block.attn.out, block.mlp.down):
            part.weight.data[:], part.bias.data[:] = 0, 0
    got = draft_and_verify(model, ids, 2, 4, 21)
    assert got.drafted == got.accepted == 20 and (got.ids == generate(model, ids, 21)).all()


def test_what_is_refused():
    model, ids = make(), np.array([[3, 1, 4]])
    for layer in (0, 4, -1):
        with pytest.raises(ValueError, match="draft: expected a Decoder with an LMHead, and 1 to 3 of its 4 blocks to draft; "
                                             f"got Decoder and {layer}"):
            draft_and_verify(model, ids, layer)
    with pytest.raises(ValueError, match="draft: expected one text and draft_tokens of at least 1, got 2 and 4"):
        draft_and_verify(model, np.ones((2, 3), int), 1)
    with pytest.raises(ValueError, match="got 1 and 0"):
        draft_and_verify(model, ids, 1, 0)
    with pytest.raises(ValueError, match="draft: expected at least one token of prompt"):
        draft_and_verify(model, np.zeros((1, 0), int), 1)
    with pytest.raises(ValueError, match="the input is 63 tokens long, this model has positions for 60"):
        draft_and_verify(model, ids, 1, 4, 60)


# ---- training --------------------------------------------------------------------------------------------------


@given(count=st.integers(2, 8), scale=st.floats(0, 1), step=st.integers(0, 99), total=st.integers(100, 200),
       curriculum=st.sampled_from(["gradual", "rotational", None]), every=st.integers(1, 4))
def test_the_weights_of_the_exits_by_the_definition(count, scale, step, total, curriculum, every):
    loss = ExitLoss(scale, curriculum, every)
    loss.before_step(step, total, 0, None)
    e = [scale * sum(range(l + 1)) for l in range(count - 1)] + [count - 1 + scale * sum(range(count - 1))]
    on = {"gradual": lambda l: l >= count - 1 - step // (total / (2 * count)), "rotational": lambda l: (l + step) % every == 0,
          None: lambda l: True}[curriculum]
    e = [w if l == count - 1 or on(l) else 0.0 for l, w in enumerate(e)]
    np.testing.assert_allclose(loss.shares(count), np.array(e) / sum(e), rtol=1e-12)
    assert loss.shares(count).sum() == pytest.approx(1)


def test_all_exits_are_on_in_the_second_half_of_a_gradual_curriculum():
    loss = ExitLoss()
    for step in range(10):
        loss.before_step(step, 10, 0, None)
        assert (loss.shares(5)[1:] > 0).sum() == min(4, 1 + step)
    assert loss.shares(5)[0] == 0  # the first exit has no weight: e(0) = 0


def test_exit_loss_is_refused():
    for settings in ({"scale": 1.5}, {"curriculum": "sudden"}, {"every": 0}):
        with pytest.raises(ValueError, match="exit loss: expected a scale from 0 to 1"):
            ExitLoss(**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_passes_just_the_blocks_it_is_not_dropped_from(family):
    model, rng = make(family, dtype=np.float64), np.random.default_rng(0)
    ids, mask = rng.integers(0, 17, (6, 5)), np.arange(5) >= rng.integers(0, 4, (6, 1))
    seen = []
    with layer_dropout(model, 0.8):
        wrappers = [model.get(f"blocks.{i}") for i in range(4)]
        for wrapper in wrappers:
            wrapper.wrapped = Watched(wrapper.wrapped, seen)
        got = model.train(np.random.default_rng(3))(ids, attention_mask=mask).logits
        assert [w.probability for w in wrappers] == pytest.approx([0.8 * (2 ** (i / 3) - 1) for i in range(4)])
        for wrapper in wrappers:
            wrapper.wrapped = wrapper.wrapped.wrapped
    assert len(seen[0]) == 6 and min(map(len, seen)) < 6  # block 0 is never dropped
    draw = np.random.default_rng(3)
    away = [draw.random(6) < w.probability if w.probability else np.zeros(6, bool) for w in wrappers]
    for row in range(6):
        x, own, places, _ = model.enter(ids[row:row + 1], mask[row:row + 1])
        for block, out in zip(model.blocks, away):
            x = x if out[row] else block(x, own, places)
        real = mask[row]
        np.testing.assert_allclose(got.data[row][real], model.head.project(model.normalised(x)).data[0][real],
                                   rtol=1e-9, atol=1e-12)


class Watched(Wrapper):
    """Remembers what comes in."""

    def __init__(self, wrapped, seen):
        super().__init__(wrapped)
        self.seen = seen

    def forward(self, x, *rest):
        self.seen.append(x.data)
        return self.wrapped(x, *rest)


def test_gradients_of_dropped_samples_match_finite_differences():
    model, ids = make(dtype=np.float64, std=0.5), np.random.default_rng(1).integers(0, 17, (5, 4))
    with layer_dropout(model, 0.9):
        loss = lambda: model.train(np.random.default_rng(2))(ids, labels=ids).loss
        loss().backward()
        rng = np.random.default_rng(4)
        for path, p in list(model.named_parameters())[::5]:
            direction, kept = rng.standard_normal(p.shape), p.data
            slope = 0.0 if p.grad is None else float((p.grad * direction).sum())  # none where a block was dropped from all
            values = []
            for sign in (1, -1):
                p.data = kept + sign * 1e-6 * direction
                values.append(loss().item())
            p.data = kept
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-8), path


def test_layer_dropout_is_for_training_and_leaves_nothing_behind():
    model, ids = make(), np.array([[1, 2, 3], [4, 5, 6]])
    plain, paths = model(ids).logits.data, [path for path, _ in model.named_parameters()]
    with layer_dropout(model, 0.5):
        assert (model(ids).logits.data == plain).all() and [path for path, _ in model.named_parameters()] == paths
        assert isinstance(model.get("blocks.0"), SkippedBlock)
        everything_out = model.get("blocks.3")
        everything_out.probability = 1.0
        model.train(np.random.default_rng(0))
        x = model.embed.tokens(ids)[0]
        assert everything_out(x) is x
    assert not any(isinstance(m, Wrapper) for m in model.modules()) and (model.eval()(ids).logits.data == plain).all()
    for most in (-0.1, 1.0):
        with pytest.raises(ValueError,
                           match=r"layer dropout: the probability must lie in \[0, 1\), got"), layer_dropout(model, most):
            pass


def test_a_model_trained_so_drafts_better():
    model, rng = make("llama", layers=4, std=0.3), np.random.default_rng(0)
    table, ids = rng.permutation(17), rng.integers(0, 17, (32, 1))  # each word has one successor
    for _ in range(11):
        ids = np.concatenate([ids, table[ids[:, -1:]]], axis=1)  # (32, 12)
    before, objective = draft_and_verify(model, ids[:1, :1], 2, 4, 11), ExitLoss(1.0, "gradual")
    exits = TokenExit(model, objective)
    with layer_dropout(model, 0.1):
        for step in range(60):
            objective.before_step(step, 60, 0, rng)
            exits.train(np.random.default_rng(step))
            model.zero_grad()
            exits(ids, labels=ids).loss.backward()
            SGD(exits.trainable().values(), lr=0.5).step()
    after = draft_and_verify(exits.eval().model, ids[:1, :1], 2, 4, 11)
    assert after.accepted / after.drafted > 0.9 > 0.4 > before.accepted / before.drafted
    assert (after.ids == generate(model, ids[:1, :1], 11)).all() and exits.trained.tolist() == [False, True, True, True]
