"""What an answer to lesson 4 must do: the shift, perplexity, masks and spans; what is drawn at random is judged by its shares."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.kernels import IGNORE
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.models import Decoder, LMHead, TransformerConfig


def small_config(kind="gpt2", vocabulary=13, width=8):
    """A small model's config, with weights that are not small."""
    return TransformerConfig(model_type=kind, vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1,
                             num_attention_heads=2, intermediate_size=12, max_position_embeddings=32, initializer_range=0.5)


def small_decoder(rng):
    """A decoder in float64 with a language-model head; how wide it is and how many words it knows are drawn."""
    model = Decoder(small_config(vocabulary=int(rng.integers(10, 17)), width=2 * int(rng.integers(3, 6))), rng)
    model.head = LMHead(model.config, model.embed.tokens.weight, rng)
    return model.astype(np.float64)


def nats(logits, token):
    """-log softmax(logits)[token], for logits (V,)."""
    top = max(logits)
    return math.log(sum(math.exp(z - top) for z in logits)) + top - logits[token]


# ---- 04.1: the shift -------------------------------------------------------------------------------------------


@exercise("04.1")
@pytest.mark.parametrize("shape", [None, (1, 2), (2, 1)])
def test_the_label_behind(impl, rng, shape):
    """Place t has the label of place t + 1, and the last place has IGNORE."""
    rows, length = shape or sizes(rng, 2, low=3)
    labels = rng.integers(0, 50, (rows, length))
    expected = np.array([[labels[b, t + 1] if t + 1 < length else IGNORE for t in range(length)] for b in range(rows)])
    same(impl(labels.copy()), expected, "what each place is to predict", 0)


@exercise("04.1")
def test_what_is_not_counted_stays_so(impl, rng):
    """A place before an IGNORE has nothing to predict, and the labels that were given stay as they are."""
    labels = rng.integers(0, 50, (2, 5))
    labels[0, 3:], labels[1, 0] = IGNORE, IGNORE
    given = labels.copy()
    expected = np.array([[labels[b, t + 1] if t < 4 else IGNORE for t in range(5)] for b in range(2)])
    same(impl(given), expected, "what each place is to predict", 0)
    holds((given == labels).all(), "the labels that were given have been changed; write into a new array")


@exercise("04.1")
def test_the_loss_of_a_decoder(graft, rng):
    """A decoder's loss is the mean of -log p(token t + 1) over the places t that have one."""
    model, (rows, length) = small_decoder(rng), sizes(rng, 2, low=3)
    ids = rng.integers(0, model.config.vocab_size, (rows, length))
    labels = ids.copy()
    labels[1, 2:] = IGNORE
    logits = model(ids).logits.data
    each = [nats(logits[b, t], labels[b, t + 1]) for b in range(rows) for t in range(length - 1) if labels[b, t + 1] != IGNORE]
    with graft():
        loss = model(ids, labels=labels).loss
    same(loss, Tensor(np.asarray(sum(each) / len(each))), "the loss", 1e-9)


# ---- 04.2: perplexity ------------------------------------------------------------------------------------------


def work_of(impl, ids, length=6, batch_size=2, stride=None):
    """The work of modelling one stream of ids, given as a text of numbers."""
    tokenizer = SimpleNamespace(encode=lambda text: [int(word) for word in text.split()])
    return impl(tokenizer, {"dev": " ".join(map(str, ids))}, length, batch_size, stride)


def mean_nats(model, ids, length, stride):
    """Nats a token of a stream, block by block and token by token: what an earlier block has scored is not scored again."""
    total, count, done, start = 0.0, 0, 0, 0
    while True:
        block = ids[start:start + length]
        logits = model(np.array([block])).logits.data[0]
        for t in range(1, len(block)):
            if start + t >= done:
                total, count = total + nats(logits[t - 1], block[t]), count + 1
        done = start + len(block)
        if done == len(ids):
            return total / count
        start += stride


class Telling:
    """A model of given losses, one for each call, that writes down whether gradients are recorded."""

    def __init__(self, losses):
        self.losses, self.recorded = iter(losses), []

    def __call__(self, input_ids, attention_mask=None, labels=None):
        self.recorded.append((Tensor(np.ones(1), requires_grad=True) * 2.0).requires_grad)
        return SimpleNamespace(loss=Tensor(np.asarray(next(self.losses))))


@exercise("04.2")
@pytest.mark.parametrize("stride", [None, 2])
def test_the_mean_over_tokens(impl, rng, stride):
    """The loss is the mean over all predicted tokens of the split, and the perplexity is e to it."""
    model, length = small_decoder(rng), int(rng.integers(5, 8))
    ids = rng.integers(0, model.config.vocab_size, length * int(rng.integers(3, 6)) + int(rng.integers(2, length))).tolist()
    expected = mean_nats(model, ids, length, stride or length)
    scores = work_of(impl, ids, length, stride=stride).evaluate(model, "dev")
    holds(isinstance(scores, dict) and set(scores) == {"score", "perplexity", "loss"},
          f"the result is {scores!r}; expected a dictionary with score, perplexity and loss")
    same(float(scores["loss"]), expected, "the loss", 1e-9)
    same(float(scores["perplexity"]), math.exp(expected), "the perplexity", 1e-9)
    same(float(scores["score"]), math.exp(expected), "the score", 1e-9)


@exercise("04.2")
def test_batches_count_for_their_tokens(impl, rng):
    """A batch with few tokens counts for few: 2 nats on 10 tokens and 5 nats on 4 make 40 / 14."""
    scores = work_of(impl, range(17), batch_size=2).evaluate(Telling([2.0, 5.0]), "dev")  # two blocks of 6, then one of 5
    same(float(scores["loss"]), (2.0 * 10 + 5.0 * 4) / 14, "the loss", 1e-9)
    same(float(scores["perplexity"]), math.exp(40 / 14), "the perplexity", 1e-9)


@exercise("04.2")
def test_a_split_that_is_not_there(impl, rng):
    """Of a split that is not there the result is empty."""
    holds(work_of(impl, range(9)).evaluate(Telling([]), "test") == {}, "the result is not {}")


@exercise("04.2")
def test_nothing_is_recorded(impl, rng):
    """The model runs under no_grad: nothing is kept for a backward pass."""
    model = Telling([1.0] * 5)
    work_of(impl, range(30)).evaluate(model, "dev")
    holds(len(model.recorded) == 3, f"the model was called {len(model.recorded)} times; expected 3, for 5 blocks in batches of 2")
    holds(not any(model.recorded), "gradients were recorded")


@exercise("04.2")
def test_a_very_bad_model(impl, rng):
    """A loss of a thousand nats is told as it is, beside a perplexity of e^700, and raises nothing."""
    scores = work_of(impl, range(6)).evaluate(Telling([1000.0]), "dev")
    same(float(scores["loss"]), 1000.0, "the loss", 1e-12)
    same(float(scores["perplexity"]), math.exp(700), "the perplexity", 1e-9)


# ---- 04.3: masks -----------------------------------------------------------------------------------------------
#
# Answers may draw in any order, so that only shares are judged. Each limit is more than five standard deviations away.

MASK, WORDS, SPECIALS = 4, 1000, (0, 2, 3, 4)


def masked(impl, rng, probability=0.15, rows=100, length=60):
    """(ids, mask, corrupted, labels): texts of words 10 to 999 between special tokens, padded on the right;
    some more of each size."""
    rows, length = rows + int(rng.integers(10)), length + int(rng.integers(10))
    ids = rng.integers(10, WORDS, (rows, length))
    ids[:, 0], ids[:, 7] = 2, 3
    mask = np.arange(length) < rng.integers(30, length + 1, rows)[:, None]
    ids[~mask] = rng.integers(10, WORDS, int((~mask).sum()))  # padding that looks like words: the mask says what is padding
    draws = np.random.default_rng(rng.integers(2**32))
    corrupted, labels = impl(ids.copy(), mask.copy(), draws, MASK, WORDS, SPECIALS, probability)
    return ids, mask, np.asarray(corrupted), np.asarray(labels)


@exercise("04.3")
def test_two_arrays(impl, rng):
    """Both results are int64 arrays of the shape of the ids."""
    ids, _, corrupted, labels = masked(impl, rng)
    for name, each in (("the corrupted ids", corrupted), ("the labels", labels)):
        holds(each.shape == ids.shape and each.dtype == np.int64,
              f"{name}: {each.dtype} of shape {each.shape}; expected int64 of {ids.shape}")


@exercise("04.3")
def test_labels_are_the_tokens_as_they_were(impl, rng):
    """Where something is to be restored the label is the original token."""
    ids, _, _, labels = masked(impl, rng)
    chosen = labels != IGNORE
    holds(chosen.any(), "no label asks for anything")
    holds((labels[chosen] == ids[chosen]).all(), "a label is not the token that stood there")


@exercise("04.3")
def test_what_is_not_chosen_stays(impl, rng):
    """Where nothing is to be restored the token stays as it was."""
    ids, _, corrupted, labels = masked(impl, rng)
    left = labels == IGNORE
    holds((corrupted[left] == ids[left]).all(), "tokens were changed that nobody is asked to restore")


@exercise("04.3")
def test_special_tokens_are_never_chosen(impl, rng):
    """A special token is never to be restored, whatever the probability."""
    ids, mask, _, labels = masked(impl, rng, 0.9)
    holds((labels[np.isin(ids, SPECIALS) & mask] == IGNORE).all(), "special tokens are to be restored")


@exercise("04.3")
def test_padding_is_never_chosen(impl, rng):
    """Padding is never to be restored, whatever the probability."""
    _, mask, _, labels = masked(impl, rng, 0.9)
    holds((labels[~mask] == IGNORE).all(), "padding is to be restored")


@exercise("04.3")
@pytest.mark.parametrize("probability", [0.15, 0.4, 1.0])
def test_the_share_that_is_chosen(impl, rng, probability):
    """Each token is chosen with the given probability."""
    ids, mask, _, labels = masked(impl, rng, probability)
    able = mask & ~np.isin(ids, SPECIALS)
    share, spread = (labels[able] != IGNORE).mean(), math.sqrt(probability * (1 - probability) / able.sum())
    holds(share <= probability + 5 * spread, f"{share:.3f} of the tokens are chosen; expected {probability}, not more")
    holds(share >= probability - 5 * spread, f"{share:.3f} of the tokens are chosen; expected {probability}, not less")


@exercise("04.3")
def test_eighty_ten_ten(impl, rng):
    """Of the chosen tokens 80 % become [MASK], 10 % stay, and 10 % become another token."""
    ids, _, corrupted, labels = masked(impl, rng, 0.9, rows=200)
    chosen = labels != IGNORE
    is_mask, stays = (corrupted == MASK)[chosen].mean(), (corrupted == ids)[chosen].mean()
    holds(is_mask < 0.83, f"{is_mask:.3f} of the chosen tokens are [MASK]; expected 0.8, not more")
    holds(is_mask > 0.77, f"{is_mask:.3f} of the chosen tokens are [MASK]; expected 0.8, not less")
    holds(stays < 0.13, f"{stays:.3f} of the chosen tokens stay; expected 0.1, not more")
    holds(stays > 0.07, f"{stays:.3f} of the chosen tokens stay; expected 0.1, not less")


@exercise("04.3")
def test_random_tokens_are_of_the_whole_vocabulary(impl, rng):
    """Each random token is drawn anew from the whole vocabulary."""
    ids, _, corrupted, labels = masked(impl, rng, 0.9, rows=200)
    drawn = corrupted[(labels != IGNORE) & (corrupted != MASK) & (corrupted != ids)]
    holds(len(set(drawn.tolist())) > 300, f"{len(drawn)} random tokens are only {len(set(drawn.tolist()))} different ones")
    holds(drawn.max(initial=0) > 950 and abs(drawn.mean() - 500) < 70, "the random tokens are not spread over the vocabulary")


@exercise("04.3")
def test_the_ids_that_were_given_stay(impl, rng):
    """The arrays that were given are not changed."""
    ids, mask = rng.integers(10, WORDS, (20, 30)), np.ones((20, 30), bool)
    given = ids.copy()
    impl(given, mask, np.random.default_rng(0), MASK, WORDS, SPECIALS, 0.5)
    holds((given == ids).all(), "the ids that were given have been changed; write into a new array")


@exercise("04.3")
def test_the_generator_decides(impl, rng):
    """The same generator gives the same result, another one another."""
    ids, mask = rng.integers(10, WORDS, (20, 30)), np.ones((20, 30), bool)
    once, again, other = (impl(ids, mask, np.random.default_rng(seed), MASK, WORDS, SPECIALS, 0.5)[0] for seed in (1, 1, 2))
    holds((once == again).all(), "two generators of one seed give two results")
    holds((once != other).any(), "two generators of different seeds give one result")


# ---- 04.4: the loss of a masked model --------------------------------------------------------------------------


def masked_head(impl, rng):
    """(a head in float64 with numbers everywhere, V, D)."""
    vocabulary, width = int(rng.integers(7, 12)), 2 * int(rng.integers(2, 6))
    config = small_config("bert", vocabulary=vocabulary, width=width)
    head = impl(config, Tensor(rng.standard_normal((vocabulary, width)), requires_grad=True), rng).astype(np.float64)
    for parameter in head.parameters():
        parameter.data = parameter.data + 0.5 * rng.standard_normal(parameter.shape)
    return head, vocabulary, width


def told(head, state):
    """The logits (V,) of a state (D,)."""
    x = state @ head.dense.weight.data + head.dense.bias.data
    x = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    x = (x - x.mean()) / math.sqrt(x.var() + head.norm.eps) * head.norm.weight.data + head.norm.bias.data
    return x @ head.output.tied.data.T + head.output.bias.data


def labels_of(rng, rows, length, vocabulary, share=0.4):
    """Labels (B, T), a share of them to be restored, at least two in the first row."""
    labels = np.where(rng.random((rows, length)) < share, rng.integers(0, vocabulary, (rows, length)), IGNORE)
    labels[0, :2] = rng.integers(0, vocabulary, 2)
    labels[-1, -1] = IGNORE
    return labels


@exercise("04.4")
def test_mean_over_the_gaps(impl, rng):
    """The loss is the mean of -log p(label) over the places that have a label."""
    (head, vocabulary, width), (rows, length) = masked_head(impl, rng), sizes(rng, 2, low=3)
    states, labels = rng.standard_normal((rows, length, width)), labels_of(rng, rows, length, vocabulary)
    each = [nats(told(head, states[b, t]), labels[b, t]) for b, t in np.ndindex(rows, length) if labels[b, t] != IGNORE]
    same(head.loss(Tensor(states), None, labels, 0), Tensor(np.asarray(sum(each) / len(each))), "the loss", 1e-6)


@exercise("04.4")
@pytest.mark.parametrize("virtual", [1, 3])
def test_virtual_tokens_are_skipped(impl, rng, virtual):
    """Label t belongs to the state behind the virtual tokens, number virtual + t."""
    head, vocabulary, width = masked_head(impl, rng)
    states, labels = rng.standard_normal((2, virtual + 4, width)), labels_of(rng, 2, 4, vocabulary)
    each = [nats(told(head, states[b, virtual + t]), labels[b, t]) for b, t in np.ndindex(2, 4) if labels[b, t] != IGNORE]
    same(head.loss(Tensor(states), None, labels, virtual), Tensor(np.asarray(sum(each) / len(each))), "the loss", 1e-6)


@exercise("04.4")
def test_only_gaps_are_projected(impl, rng):
    """Only the states of the chosen places go through the map to the vocabulary."""
    head, vocabulary, width = masked_head(impl, rng)
    states, labels, rows = rng.standard_normal((3, 6, width)), labels_of(rng, 3, 6, vocabulary), []
    project = head.project
    head.project = lambda x: rows.append(x.size // width) or project(x)
    head.loss(Tensor(states), None, labels, 0)
    wanted = int((labels != IGNORE).sum())
    holds(sum(rows) == wanted, f"{sum(rows)} states were projected; expected {wanted} of {states.size // width}")


@exercise("04.4")
def test_gradients_of_the_gaps(impl, rng):
    """The states of the chosen places have gradients, those of finite differences, and all others have 0."""
    head, vocabulary, width = masked_head(impl, rng)
    states, labels = rng.standard_normal((2, 4, width)), labels_of(rng, 2, 4, vocabulary)
    given = Tensor(states, requires_grad=True)
    head.loss(given, None, labels, 0).backward(np.asarray(1.7))
    count, step, expected = (labels != IGNORE).sum(), 1e-6, np.zeros(states.shape)
    for b, t, d in np.ndindex(*states.shape):
        if labels[b, t] != IGNORE:
            above, below = states[b, t].copy(), states[b, t].copy()
            above[d], below[d] = above[d] + step, below[d] - step
            rise = nats(told(head, above), labels[b, t]) - nats(told(head, below), labels[b, t])
            expected[b, t, d] = 1.7 * rise / (2 * step * count)
    same(given.grad, expected, "the gradient of the states", 1e-4)


# ---- 04.5: spans -----------------------------------------------------------------------------------------------

SENTINELS = tuple(range(900, 920))


def spans_in(target):
    """[(sentinel, [tokens behind it])] of a target or an input."""
    out = [[None, []]]
    for token in target:
        if token in SENTINELS:
            out.append([token, []])
        else:
            out[-1][1].append(int(token))
    return out[1:] if not out[0][1] else out


def drawn(impl, rng, length, density=0.3, mean_length=2.0, sentinels=SENTINELS):
    """(ids, input, target) of one draw; no token comes twice."""
    ids = rng.permutation(800)[:length].tolist()
    source, target = impl(list(ids), np.random.default_rng(rng.integers(2**32)), list(sentinels), density, mean_length)
    return ids, [int(i) for i in source], [int(i) for i in target]


@exercise("04.5")
def test_the_spans_put_back_give_the_text(impl, rng):
    """Put in the place of its sentinel, each span of the target makes the text whole again."""
    for length in (2, *rng.integers(5, 40, 3).tolist()):
        ids, source, target = drawn(impl, rng, length)
        filling, again = {sentinel: tokens for sentinel, tokens in spans_in(target)}, []
        for token in source:
            again += filling.get(token, []) if token in SENTINELS else [token]
        holds(again == ids, f"{length} tokens do not come back when the spans are put in their places")


@exercise("04.5")
def test_sentinels_in_order(impl, rng):
    """Input and target have the same sentinels in their order, and the target ends with one more, behind which nothing stands."""
    for length in (2, 11, 30):
        _, source, target = drawn(impl, rng, length)
        inside, written = ([token for token in side if token in SENTINELS] for side in (source, target))
        holds(inside == list(SENTINELS[:len(inside)]), "the input's sentinels are not the first ones in their order")
        holds(bool(target) and target[0] == SENTINELS[0], "the target does not begin with the first sentinel")
        holds(written[:len(inside)] == inside, "the target's sentinels are not those of the input")
        holds(written[len(inside):] == [SENTINELS[len(inside)]] and target[-1] == written[-1],
              "the target does not end with one more sentinel")


@exercise("04.5")
@pytest.mark.parametrize("length, density, mean_length, taken, count", [
    (20, 0.3, 2.0, 6, 3), (30, 0.15, 3.0, 4, 1), (100, 0.15, 3.0, 15, 5), (8, 0.05, 3.0, 1, 1), (9, 0.99, 2.0, 8, 2),
    (6, 0.8, 1.0, 5, 2)])
def test_how_many_are_taken(impl, rng, length, density, mean_length, taken, count):
    """round(N density) tokens are taken out, from 1 to N - 1, in round(n / mean_length) spans, as many as have room."""
    ids, source, target = drawn(impl, rng, length, density, mean_length)
    words = [token for token in target if token not in SENTINELS]
    same(len(words), taken, f"the number of tokens taken out of {length}", 0)
    same(sum(token in SENTINELS for token in source), count, "the number of spans", 0)
    holds(len(source) == length - taken + count,
          f"the input has {len(source)} tokens; expected {length - taken} and {count} sentinels")


@exercise("04.5")
def test_few_sentinels(impl, rng):
    """There are never more spans than sentinels less one."""
    _, source, target = drawn(impl, rng, 60, 0.5, 2.0, SENTINELS[:4])
    same(sum(token in SENTINELS for token in source), 3, "the number of spans with 4 sentinels", 0)
    same(sum(token in SENTINELS for token in target), 4, "the number of sentinels in the target", 0)


@exercise("04.5")
def test_spans_do_not_touch(impl, rng):
    """Between two spans at least one token stays, and every span has a token."""
    for _ in range(40):
        _, source, target = drawn(impl, rng, 12, 0.5, 1.5)
        holds(not any(a in SENTINELS and b in SENTINELS for a, b in zip(source, source[1:])),
              "two sentinels stand side by side in the input")
        holds(all(tokens for _, tokens in spans_in(target)[:-1]), "a span is empty")


@exercise("04.5")
def test_spans_may_stand_at_the_ends(impl, rng):
    """A span may be the first thing in the text, or the last, and need not be."""
    first, last = [], []
    for _ in range(150):
        _, source, _ = drawn(impl, rng, 6, 0.4, 1.0)
        first.append(source[0] in SENTINELS)
        last.append(source[-1] in SENTINELS)
    for name, seen in (("begins", first), ("ends", last)):
        holds(any(seen), f"no text of 150 {name} with a span")
        holds(not all(seen), f"every text of 150 {name} with a span")


@exercise("04.5")
def test_the_list_stays_and_the_generator_decides(impl, rng):
    """The list that was given is not changed, and the same generator gives the same spans."""
    ids = list(range(40))
    results = [impl(ids, np.random.default_rng(seed), list(SENTINELS), 0.3, 2.0) for seed in (1, 1, 2)]
    holds(ids == list(range(40)), "the list that was given has been changed")
    once, again, other = ([int(i) for i in source] for source, _ in results)
    holds(once == again, "two generators of one seed give two results")
    holds(once != other, "two generators of different seeds give one result")
