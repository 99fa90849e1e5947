"""What an answer to lesson 12 must do: vectors before the words with their mask, number and gradient, what they start from, which
places the words have, and which words a learned vector is near."""

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.learn.claims import exercise, holds, moves_only, same
from minipeft.methods import attach
from minipeft.methods.prefix import Prefix
from minipeft.methods.soft_prompt import PromptedTokens, SoftPrompt
from minipeft.methods.virtual import MovedPositions
from minipeft.models import Decoder, Encoder, LMHead, TransformerConfig
from minipeft.models.embed import Positions, TokenEmbedding

VOCABULARY, WIDTH = 17, 4


def prompted(impl, rng, inner=None):
    """(word vectors with a prompt before them, the table (V, D), the prompt (n, D)); n is 2 to 4."""
    table = TokenEmbedding(VOCABULARY, WIDTH, rng, 1.0).astype(np.float64) if inner is None else inner
    prompt = rng.standard_normal((int(rng.integers(2, 5)), WIDTH))
    return impl(table, prompt.copy()), table.weight.data, prompt


def expected_vectors(table, prompt, ids):
    """(B, n + T, D): in each row the prompt, then the words' vectors."""
    return np.array([[*(row.tolist() for row in prompt), *(table[i].tolist() for i in line)] for line in ids])


def config_of(family):
    """A small config of an encoder or a decoder."""
    return TransformerConfig(model_type=family, vocab_size=VOCABULARY, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
                             intermediate_size=20, max_position_embeddings=24, type_vocab_size=2 * (family == "bert"),
                             initializer_range=0.5)


def model_of(family, rng):
    """A random model in float64."""
    config = config_of(family)
    model = (Encoder if family == "bert" else Decoder)(config, rng)
    if config.causal:
        model.head = LMHead(config, model.embed.tokens.weight, rng)
    return model.eval().astype(np.float64)


# ---- 12.1: vectors before the words ----------------------------------------------------------------------------


@exercise("12.1")
@pytest.mark.parametrize("rows, words", [(3, 4), (1, 1)])
def test_the_prompt_comes_first_in_every_row(impl, rng, rows, words):
    """In every row the prompt stands before the vectors of the words."""
    tokens, table, prompt = prompted(impl, rng)
    ids = rng.integers(0, VOCABULARY, (rows, words))
    vectors, mask, virtual = tokens(ids)
    same(vectors, Tensor(expected_vectors(table, prompt, ids)), "the vectors", 0)
    holds(mask is None, "there was no mask, and there is one now; None means that all places are real")
    same(virtual, len(prompt), "the number of virtual tokens", 0)


@exercise("12.1")
def test_the_mask_grows(impl, rng):
    """The mask gets a column of True for each virtual token, before its own."""
    tokens, table, prompt = prompted(impl, rng)
    mask = np.array([[True, True, False], [False, True, True]])
    told = tokens(rng.integers(0, VOCABULARY, (2, 3)), mask)[1]
    same(told, np.array([[True] * len(prompt) + line.tolist() for line in mask]), "the mask", 0)


@exercise("12.1")
def test_it_enters_once(impl, rng):
    """With a cache the prompt enters at the first call only; later the words come alone, and the mask still covers it."""
    tokens, table, prompt = prompted(impl, rng)
    ids, mask = rng.integers(0, VOCABULARY, (2, 1)), np.array([[True, True, True, True], [True, False, True, True]])
    vectors, told, virtual = tokens(ids, mask, len(prompt) + 3)
    same(vectors, Tensor(table[ids]), "the vectors of a later call", 0)
    same(told, np.array([[True] * len(prompt) + line.tolist() for line in mask]), "the mask of a later call", 0)
    same(virtual, 0, "the number of virtual tokens that lead a later call's vectors", 0)


@exercise("12.1")
def test_the_gradient_is_summed_over_the_batch(impl, rng):
    """dP is the first n rows of the gradient, summed over the batch; the frozen table gets none."""
    tokens, table, prompt = prompted(impl, rng)
    tokens.wrapped.requires_grad_(False)
    vectors = tokens(rng.integers(0, VOCABULARY, (3, 2)))[0]
    g = rng.standard_normal(vectors.shape)
    vectors.backward(g)
    expected = np.array([[sum(g[b, p, d] for b in range(3)) for d in range(WIDTH)] for p in range(len(prompt))])
    same(tokens.prompt.grad, expected, "dP", 1e-12)
    holds(tokens.wrapped.weight.grad is None, "the frozen word vectors got a gradient")


@exercise("12.1")
def test_a_step_leaves_the_base_as_it_was(graft, rng):
    """A step of AdamW on all that has a gradient moves the prompt; every array of the model keeps its bits."""
    model = model_of("gpt2", rng)
    with graft():
        moves_only(lambda: attach(model, SoftPrompt(num_virtual_tokens=3), rng=rng), model,
                   rng.integers(0, VOCABULARY, (2, 5)), rng)


@exercise("12.1")
def test_two_prompts(impl, rng):
    """Around word vectors that have a prompt already, a second one comes before it, and both are counted."""
    inner, table, first = prompted(PromptedTokens, rng)
    outer, _, second = prompted(impl, rng, inner)
    ids = rng.integers(0, VOCABULARY, (2, 3))
    vectors, mask, virtual = outer(ids, np.ones((2, 3), bool))
    same(vectors, Tensor(expected_vectors(table, np.array([*second, *first]), ids)), "the vectors", 0)
    same(mask, np.ones((2, len(first) + len(second) + 3), bool), "the mask", 0)
    same(virtual, len(first) + len(second), "the number of virtual tokens", 0)


@exercise("12.1")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_prompt_of_words_is_those_words(graft, rng, family):
    """A model reads a prompt that holds the vectors of words as it reads these words."""
    model, ids, words = model_of(family, rng), rng.integers(0, VOCABULARY, (2, 4)), [7, 2, 11]
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    longer = np.concatenate([np.tile(words, (2, 1)), ids], axis=1), np.concatenate([np.ones((2, 3), int), mask], axis=1)
    real, expected = longer[1] == 1, model(longer[0], attention_mask=longer[1]).last_hidden_state.data
    with graft():
        attach(model, SoftPrompt(num_virtual_tokens=3, initial="labels", words=words), rng=rng)
        told = model(ids, attention_mask=mask).last_hidden_state.data
        same(told[real] if told.shape == expected.shape else told, expected[real], "the states of the real places", 1e-9)


# ---- 12.2: what they start from --------------------------------------------------------------------------------


def rows_of(start, table, n):
    """Which row of the table each virtual token is; raises the claim's failure where one is none."""
    holds(isinstance(start, np.ndarray) and start.shape == (n, table.shape[1]),
          f"the start is {type(start).__name__} of shape {np.shape(start)}; expected an array of shape {(n, table.shape[1])}")
    found = [np.flatnonzero((table == row).all(axis=1)) for row in start]
    holds(all(len(hits) == 1 for hits in found), "not every virtual token starts as a row of the table")
    return [int(hits[0]) for hits in found]


@exercise("12.2")
def test_random(impl, rng):
    """Random numbers are uniform from -0.5 to 0.5, and of the table's type."""
    table = rng.standard_normal((6, 40)).astype(np.float32)
    start = impl(num_virtual_tokens=50, initial="random").start(table, rng)
    same(np.zeros_like(start), np.zeros((50, 40), np.float32), "the start (its shape and type)", 0)
    holds(start.min() < 0, f"the smallest entry is {start.min():.3g}; expected some below 0")
    holds(np.abs(start).max() <= 0.5, f"the largest entry is {np.abs(start).max():.3g}; expected 0.5 at most")
    holds(abs(start.mean()) < 0.05 and 0.27 < start.std() < 0.31,
          f"mean {start.mean():.3f} and standard deviation {start.std():.3f}; a uniform draw has about 0 and 0.289")


@exercise("12.2")
def test_words_of_the_whole_vocabulary(impl, rng):
    """Without words given, the rows are drawn from the whole table, none twice while there are enough."""
    table = rng.standard_normal((12, 3))
    rows = rows_of(impl(num_virtual_tokens=12, initial="vocabulary").start(table, rng), table, 12)
    holds(len(set(rows)) == 12, f"12 rows were drawn of 12 words, and only {len(set(rows))} of them differ")
    holds(rows != sorted(rows), "the rows come in the order of the table; draw them")


@exercise("12.2")
def test_words_among_those_given(impl, rng):
    """With words given, the rows are drawn among these; where they are too few, some come twice."""
    table, words = rng.standard_normal((40, 3)), [31, 4, 15, 9, 26]
    rows = rows_of(impl(num_virtual_tokens=5, initial="vocabulary", words=words).start(table, rng), table, 5)
    holds(set(rows) == set(words), f"the rows are {rows}; expected each of {words} once")
    more = rows_of(impl(num_virtual_tokens=9, initial="vocabulary", words=words).start(table, rng), table, 9)
    holds(set(more) <= set(words), f"the rows are {more}; expected none but {words}")


@exercise("12.2")
def test_label_words_come_first(impl, rng):
    """The label words come first, in their order, each once; the rest is drawn from the whole table."""
    table, words = rng.standard_normal((60, 3)), [31, 4, 15]
    rows = rows_of(impl(num_virtual_tokens=30, initial="labels", words=words).start(table, rng), table, 30)
    same(np.array(rows[:3]), np.array(words), "the rows of the first virtual tokens", 0)
    holds(len(set(rows[3:])) == 27, f"27 rows were drawn of 60, and only {len(set(rows[3:]))} of them differ")


@exercise("12.2")
def test_more_label_words_than_virtual_tokens(impl, rng):
    """Where there are more label words than virtual tokens, the first ones are taken."""
    table, words = rng.standard_normal((20, 3)), [11, 4, 15, 9]
    start = impl(num_virtual_tokens=2, initial="labels", words=words).start(table, rng)
    same(start, table[[11, 4]], "the start", 0)


@exercise("12.2")
def test_it_is_a_copy_drawn_by_the_generator(impl, rng):
    """The start is a copy of the table's rows, and the same for the same generator."""
    table, seed = rng.standard_normal((20, 3)), int(rng.integers(1000))
    method = impl(num_virtual_tokens=6, initial="vocabulary")
    drawn = [method.start(table, np.random.default_rng(s)) for s in (seed, seed, seed + 1)]
    same(drawn[0], drawn[1], "what the same generator draws again", 0)
    holds(not np.array_equal(drawn[0], drawn[2]), "two generators with different seeds draw the same; draw with the given rng")
    shared = np.shares_memory(drawn[0], table)
    holds(not shared, "the start shares its numbers with the table, and training would change the model")


# ---- 12.3: places ----------------------------------------------------------------------------------------------


MASK = np.array([[True, True, True, True, True], [False, False, True, True, True]])  # padding on the left


def places(mask, past, length):
    """What the model counts without a method: the real places before each of the last ones."""
    mask = np.ones((1, past + length), bool) if mask is None else mask
    return np.array([[max(sum(line[:i + 1]) - 1, 0) for i in range(past, past + length)] for line in mask])


@exercise("12.3")
@pytest.mark.parametrize("by", [3, -3, 0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_moved_and_none_below_zero(impl, by, mask):
    """Every position is moved by self.by, and none falls below 0."""
    moved = impl(Positions(), by)(5, mask, 0)
    expected = [[p + by if p + by > 0 else 0 for p in line] for line in places(mask, 0, 5).tolist()]
    same(moved, np.array(expected), f"the positions moved by {by}", 0)


@exercise("12.3")
@pytest.mark.parametrize("by", [2, -4])
def test_places_in_a_cache(impl, by):
    """With places in a cache, the positions go on behind them."""
    same(impl(Positions(), by)(2, None, 5), np.array([[5 + by, 6 + by]]), "the positions behind 5 cached places", 0)
    mask = np.array([[True, False, True, True, True, True, True]])
    same(impl(Positions(), by)(2, mask, 5), np.array([[4 + by, 5 + by]]), "the positions behind 5 cached places, one padding", 0)


@exercise("12.3")
def test_two_methods(impl):
    """Around positions that are moved already, the two movements follow each other."""
    same(impl(MovedPositions(Positions(), -3), 2)(6, None, 0), np.array([[2, 2, 2, 2, 3, 4]]), "down by 3, then up by 2", 0)
    same(impl(MovedPositions(Positions(), 2), -3)(6, None, 0), np.array([[0, 0, 1, 2, 3, 4]]), "up by 2, then down by 3", 0)


@exercise("12.3")
def test_a_prompt_that_is_not_counted(graft, rng):
    """Where a prompt is not counted, the words have the places that they had, and all virtual tokens are at 0."""
    model = model_of("gpt2", rng)
    with graft():
        attach(model, SoftPrompt(num_virtual_tokens=3, shift_positions=False), rng=rng)
        same(model.enter(np.array([[5, 6, 7, 8]]))[2], np.array([[0, 0, 0, 0, 1, 2, 3]]), "the positions", 0)


@exercise("12.3")
def test_a_prefix_that_is_counted(graft, rng):
    """Where a prefix is counted, the words begin at n; nothing stands in the places before."""
    model = model_of("gpt2", rng)
    with graft():
        attach(model, Prefix(num_virtual_tokens=3, shift_positions=True), rng=rng)
        same(model.enter(np.array([[5, 6, 7, 8]]))[2], np.array([[3, 4, 5, 6]]), "the positions", 0)


# ---- 12.4: near words ------------------------------------------------------------------------------------------


def nearest(prompt, table, count):
    """The words in order of their cosine, pair by pair."""
    out = []
    for row in prompt:
        cosines = []
        for word in table:
            lengths = sum(a * a for a in row) ** 0.5 * sum(b * b for b in word) ** 0.5
            cosines.append(sum(a * b for a, b in zip(row, word)) / lengths if lengths else 0.0)
        out.append(sorted(range(len(table)), key=lambda i: -cosines[i])[:count])
    return np.array(out)


@exercise("12.4")
@pytest.mark.parametrize("count", [1, 4])
def test_in_order_of_the_cosine(impl, rng, count):
    """Of each virtual token the words with the largest cosine, the nearest first."""
    prompt, table = rng.standard_normal((3, 5)), rng.standard_normal((11, 5)) * rng.uniform(0.2, 5, (11, 1))
    told = impl(prompt, table, count)
    same(np.asarray(told).astype(np.int64), nearest(prompt, table, count), "the words", 0)


@exercise("12.4")
def test_lengths_do_not_matter(impl, rng):
    """A cosine compares directions: however long the vectors are, the words are the same."""
    prompt, table = rng.standard_normal((2, 5)), rng.standard_normal((9, 5))
    expected = nearest(prompt, table, 3)
    longer = impl(prompt * np.array([[100.0], [0.01]]), table * rng.uniform(0.01, 100, (9, 1)), 3)
    same(np.asarray(longer).astype(np.int64), expected, "the words", 0)


@exercise("12.4")
def test_a_word_is_nearest_to_itself(impl, rng):
    """A virtual token that is a word's vector is nearest to this word."""
    table = rng.standard_normal((8, 5)) * rng.uniform(0.1, 10, (8, 1))
    told = impl(table[[5, 0, 2]], table, 2)
    same(np.asarray(told).astype(np.int64)[:, 0], np.array([5, 0, 2]), "the nearest words", 0)


@exercise("12.4")
def test_a_word_without_a_direction(impl, rng):
    """A vector of zeros, as some padding tokens have, has the cosine 0 with everything, and nothing becomes not a number."""
    table = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 0.5, 0.0], [-2.0, -1.0, 0.3]])
    with np.errstate(invalid="ignore", divide="ignore"):
        told = impl(np.array([[2.0, 1.0, 0.0]]), table, 4)
    same(np.asarray(told).astype(np.int64), np.array([[1, 0, 2, 3]]), "the words", 0)
