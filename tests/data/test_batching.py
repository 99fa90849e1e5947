"""Batches: each example once, padding and mask in step; blocks: each token once; masking: the shares of the paper."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import IGNORE, Encoding, block_mask, blocks_of, collate, make_batches, mask_tokens
from minipeft.kernels import IGNORE as IGNORE_OF_KERNELS

lengths_of_texts = st.lists(st.integers(0, 30), max_size=60)


def encodings_of(lengths):
    """One encoding for each length, with ids and types that tell where they are from."""
    return [Encoding([100 * i + j + 1 for j in range(n)], [j % 2 for j in range(n)]) for i, n in enumerate(lengths)]


def test_the_ignored_label_is_that_of_the_loss():
    assert IGNORE == IGNORE_OF_KERNELS == -100


# ---- grouping --------------------------------------------------------------------------------------------------


@given(lengths=lengths_of_texts, size=st.integers(1, 9), seed=st.none() | st.integers(0, 3))
def test_batches_hold_each_index_once(lengths, size, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    batches = make_batches(encodings_of(lengths), size, rng)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert all(1 <= len(batch) <= size for batch in batches)


@given(lengths=lengths_of_texts, size=st.integers(1, 9))
def test_without_a_generator_batches_are_sorted_by_length_and_order_is_restored(lengths, size):
    encodings = encodings_of(lengths)
    batches = make_batches(encodings, size)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: lengths[i])  # sorted is stable
    back = np.zeros(len(lengths), int)
    for batch in batches:
        back[batch] = [lengths[i] for i in batch]
    assert back.tolist() == lengths


def test_with_a_generator_batches_are_even_in_length_and_differ_by_seed():
    lengths = np.random.default_rng(0).integers(1, 60, 3000)
    encodings = encodings_of(lengths)
    first, again, other = (make_batches(encodings, 16, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again))
    assert [b.tolist() for b in first] != [b.tolist() for b in other]
    padded = sum(len(b) * lengths[b].max() for b in first)
    assert padded < 1.05 * lengths.sum()  # in the order as it comes it is 1.9 times as much
    longest = [lengths[b].max() for b in first]
    assert np.mean(np.diff(longest) < 0) > 0.3  # batches do not come in the order of their length
    together = {tuple(sorted(b)) for b in first} & {tuple(sorted(b)) for b in other}
    assert len(together) < 5


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        make_batches([], 0)


# ---- padding ---------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), data=st.data())
def test_padding_and_mask_are_in_step(lengths, data):
    encodings = encodings_of(lengths)
    indices = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True)))
    labels = np.arange(len(lengths)) + 5
    batch = collate(encodings, labels, indices, pad_id=-7)
    assert batch.size == len(indices)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.token_type_ids.shape
    assert batch.input_ids.shape == (len(indices), max(lengths[i] for i in indices))
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == batch.labels.dtype == np.int64
    assert batch.attention_mask.dtype == bool
    for row, i in enumerate(indices):
        real = batch.attention_mask[row]
        assert real.tolist() == [j < lengths[i] for j in range(len(real))]
        assert batch.input_ids[row, real].tolist() == encodings[i].ids
        assert batch.token_type_ids[row, real].tolist() == encodings[i].types
        assert (batch.input_ids[row, ~real] == -7).all() and (batch.token_type_ids[row, ~real] == 0).all()
        assert batch.labels[row] == i + 5


def test_an_empty_text_becomes_one_token():
    batch = collate(encodings_of([0, 2]), None, np.array([0, 1]), pad_id=9)
    assert batch.input_ids.tolist() == [[9, 9], [101, 102]] and batch.labels is None
    assert batch.attention_mask.tolist() == [[True, False], [True, True]]
    alone = collate(encodings_of([0]), [3], [0], pad_id=9)
    assert alone.input_ids.tolist() == [[9]] and alone.attention_mask.tolist() == [[True]] and alone.labels.tolist() == [3]


# ---- blocks ----------------------------------------------------------------------------------------------------


@given(count=st.integers(2, 200), length=st.integers(2, 40), data=st.data())
def test_blocks_label_each_token_once(count, length, data):
    stride = data.draw(st.integers(1, length))
    stream = np.random.default_rng(count).permutation(1000)[:count] + 1
    ids, labels = blocks_of(stream, length, stride, pad_id=0)
    assert ids.shape == labels.shape and ids.shape[1] == length and ids.dtype == labels.dtype == np.int64
    assert labels[labels != IGNORE].tolist() == stream.tolist()  # each once, and in order
    assert (ids[labels != IGNORE] == labels[labels != IGNORE]).all()
    mask = block_mask(labels)
    assert ((ids != 0) == mask).all()  # padding, which is id 0 here, is exactly what the mask leaves out
    assert (labels[~mask] == IGNORE).all() and mask[:-1].all()
    for row, real in zip(ids, mask):  # the inputs of a block are a stretch of the stream
        start = stream.tolist().index(row[0])
        assert row[real].tolist() == stream[start:start + real.sum()].tolist()
    scored = (labels[:, 1:] != IGNORE).sum(axis=1)  # what the loss, which looks one token ahead, counts
    assert (scored >= 1).all()
    if stride < length:
        assert scored.sum() == count - 1 and (labels[1:, 0] == IGNORE).all()


def test_blocks_with_an_overlap():
    ids, labels = blocks_of(np.arange(10, 17), 4, 2, pad_id=0)
    assert ids.tolist() == [[10, 11, 12, 13], [12, 13, 14, 15], [14, 15, 16, 0]]
    assert labels.tolist() == [[10, 11, 12, 13], [IGNORE, IGNORE, 14, 15], [IGNORE, IGNORE, 16, IGNORE]]
    assert block_mask(labels).tolist() == [[True] * 4, [True] * 4, [True] * 3 + [False]]


def test_a_last_token_alone_keeps_one_token_of_context():
    ids, labels = blocks_of([1, 2, 3, 4, 5], 2)
    assert ids.tolist() == [[1, 2], [3, 4], [4, 5]]
    assert labels.tolist() == [[1, 2], [3, 4], [IGNORE, 5]]


@pytest.mark.parametrize("ids, length, stride, message", [
    ([1, 2], 1, 1, "length: expected a block of at least 2 tokens, one to read and one to predict, got 1"),
    ([1, 2], 4, 0, "stride: expected 1 to 4, the length of a block, got 0"),
    ([1, 2], 4, 5, "stride: expected 1 to 4, the length of a block, got 5"),
    ([1], 4, 2, "ids: expected at least 2 tokens in one row, got shape (1,)"),
    ([], 4, 2, "got shape (0,)"),
    ([[1, 2]], 4, 2, "got shape (1, 2)"),
])
def test_faults_of_blocks(ids, length, stride, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        blocks_of(ids, length, stride)


# ---- masking ---------------------------------------------------------------------------------------------------


def test_masking_has_the_shares_of_the_paper():
    rng, vocab = np.random.default_rng(0), 1000
    ids = rng.integers(5, vocab, (400, 500))
    real = rng.random(ids.shape) < 0.9
    corrupted, labels = mask_tokens(ids, real, np.random.default_rng(1), 4, vocab, range(5))
    chosen = labels != IGNORE
    assert (labels[chosen] == ids[chosen]).all() and (corrupted[~chosen] == ids[~chosen]).all()
    assert not chosen[~real].any()
    count = chosen.sum()
    assert abs(count / real.sum() - 0.15) < 0.005  # five standard deviations are 0.004
    masked, kept = (corrupted == 4) & chosen, (corrupted == ids) & chosen
    other = corrupted[chosen & ~masked & ~kept]
    assert abs(masked.sum() / count - 0.8) < 0.015
    assert abs(kept.sum() / count - 0.1) < 0.012
    assert abs(len(other) / count - 0.1) < 0.012
    assert other.min() < 20 and other.max() >= vocab - 20 and abs(other.mean() - vocab / 2) < 30  # uniform over the vocabulary


@given(seed=st.integers(0, 50), probability=st.sampled_from([0.01, 0.5, 1.0]))
def test_special_tokens_are_never_chosen(seed, probability):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (3, 20))
    before = ids.copy()
    corrupted, labels = mask_tokens(ids, np.ones(ids.shape, bool), rng, 3, 8, (0, 2, 3), probability)
    special = np.isin(ids, (0, 2, 3))
    assert (labels[special] == IGNORE).all() and (corrupted[special] == ids[special]).all()
    assert (ids == before).all()  # the input is left as it was
    if probability == 1:
        assert (labels[~special] == ids[~special]).all()


def test_masking_is_drawn_from_the_generator():
    ids = np.arange(5, 205).reshape(4, 50)
    draw = [mask_tokens(ids, ids > 0, np.random.default_rng(s), 4, 300, (4,))[1].tolist() for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_faults_of_masking():
    ids, rng = np.ones((1, 2), int), np.random.default_rng(0)
    with pytest.raises(ValueError, match=re.escape("mask_id: this tokenizer has no mask token; filling masks needs one")):
        mask_tokens(ids, ids > 0, rng, None, 5, ())
    for probability in (0, 1.1):
        with pytest.raises(ValueError, match=re.escape(f"probability: expected a number in (0, 1], got {probability}")):
            mask_tokens(ids, ids > 0, rng, 1, 5, (), probability)
