"""From encoded texts to batches: grouping by length, padding, cutting a long text into blocks, and masking tokens."""

from dataclasses import dataclass

import numpy as np

from ..kernels import IGNORE

POOL = 50  # batches whose texts are sorted together


@dataclass(eq=False)
class Batch:
    """What a model is called with.

    ``input_ids`` (B, T) int64; ``attention_mask`` (B, T) bool, True where there is a token and not padding;
    ``token_type_ids`` (B, T) int64, 0 or 1 for the first or second text; ``labels`` int64, (B,) classes or (B, T)
    tokens, or None.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: "np.ndarray | None" = None

    @property
    def size(self):
        """Number of rows, B."""
        return len(self.input_ids)


def make_batches(encodings, batch_size, rng=None):
    """Which examples go together: each once, and in a batch those of nearly equal length, so that little is padding.

    Args:
        encodings: list of `Encoding`. batch_size: examples in a batch; the last may have fewer.
        rng: numpy.random.Generator for training: examples are shuffled, sorted by length within pools of 50 batches,
            and the batches shuffled again. None, for evaluation: all are sorted by length, the longest last.

    Returns:
        ceil(N / batch_size) arrays of indices. ``out[indices] = values`` puts a batch's results back in order.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    lengths = np.array([len(e.ids) for e in encodings], np.int64)
    if rng is None:
        order = np.argsort(lengths, kind="stable")
    else:
        order, pool = rng.permutation(len(lengths)), POOL * batch_size
        for start in range(0, len(order), pool):
            part = order[start:start + pool]
            order[start:start + pool] = part[np.argsort(lengths[part], kind="stable")]
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def collate(encodings, labels, indices, pad_id):
    """The batch of the examples at ``indices``, padded on the right to the longest among them.

    Args:
        encodings: list of `Encoding`. labels: (N,) class ids of all examples, or None.
        indices: which examples, in order. pad_id: id that fills the padding.

    Returns:
        `Batch`. A text without any token (an empty one, where the tokenizer adds no special tokens) becomes one
        padding token that is attended to: a row without anything to attend to has no softmax.
    """
    chosen = [encodings[i] for i in indices]
    shape = (len(chosen), max([1] + [len(e.ids) for e in chosen]))
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, bool), np.zeros(shape, np.int64)
    for row, e in enumerate(chosen):
        ids[row, :len(e.ids)] = e.ids
        types[row, :len(e.types)] = e.types
        mask[row, :max(1, len(e.ids))] = True
    return Batch(ids, mask, types, None if labels is None else np.asarray(labels, np.int64)[indices])


def blocks_of(ids, length, stride=None, pad_id=0):
    """Cut one long stream of tokens into blocks for language modelling.

    Args:
        ids: (N,) token ids, N >= 2. length: tokens in a block, at least 2.
        stride: tokens between the starts of two blocks, 1..length; default: length, blocks that do not overlap.
        pad_id: id that fills the last block.

    Returns:
        input_ids (M, length) and labels (M, length), int64. A label is the token itself, or IGNORE for padding and for
        tokens that an earlier block has scored already and that stand here as context only: each token of the stream
        is labelled once.

    The model compares place t with label t + 1, so a label in column 0 is not scored. With stride < length only the
    stream's very first token stands there; with stride = length one token of each block does (the price of training
    without overlap).
    """
    ids, stride = np.asarray(ids, np.int64), length if stride is None else stride
    if length < 2:
        raise ValueError(f"length: expected a block of at least 2 tokens, one to read and one to predict, got {length}")
    if not 1 <= stride <= length:
        raise ValueError(f"stride: expected 1 to {length}, the length of a block, got {stride}")
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"ids: expected at least 2 tokens in one row, got shape {ids.shape}")
    starts = stride * np.arange(1 + max(0, -(-(len(ids) - length) // stride)))  # (M,)
    scored = np.concatenate([[0], starts[:-1] + length])  # (M,), how far earlier blocks have come
    if scored[-1] == starts[-1] == len(ids) - 1:
        starts[-1] -= 1  # a last token alone in its block would have nothing to be predicted from
    places = starts[:, None] + np.arange(length)  # (M, length)
    real = places < len(ids)
    tokens = ids[np.minimum(places, len(ids) - 1)]
    return np.where(real, tokens, pad_id), np.where(real & (places >= scored[:, None]), tokens, IGNORE)


def block_mask(labels):
    """The attention mask (M, length) of `blocks_of`'s blocks: padding is what stands behind the last label of a row."""
    return np.cumsum((labels != IGNORE)[:, ::-1], axis=1)[:, ::-1] > 0


def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    """Choose tokens for a masked language model to restore.

    Each token that is neither special nor padding is chosen with ``probability``; of the chosen, 80 % become [MASK],
    10 % a random token, and 10 % stay as they are (Devlin et al., NAACL 2019, section 3.1).

    Args:
        input_ids: (B, T) ints. attention_mask: (B, T) bool. rng: numpy.random.Generator.
        mask_id: id of [MASK]. vocab_size: random tokens are drawn from 0..vocab_size-1.
        special_ids: ids that are never chosen. probability: in (0, 1].

    Returns:
        corrupted ids (B, T) and labels (B, T), int64: the token as it was where it was chosen, IGNORE elsewhere.
    """
    if mask_id is None:
        raise ValueError("mask_id: this tokenizer has no mask token; filling masks needs one, such as BERT's [MASK]")
    if not 0 < probability <= 1:
        raise ValueError(f"probability: expected a number in (0, 1], got {probability}")
    ids = np.asarray(input_ids, np.int64)
    candidates = np.asarray(attention_mask, bool) & ~np.isin(ids, np.asarray(sorted(special_ids), np.int64))
    chosen = candidates & (rng.random(ids.shape) < probability)
    lot, random_ids = rng.random(ids.shape), rng.integers(vocab_size, size=ids.shape)
    corrupted = np.where(chosen & (lot < 0.8), mask_id, ids)
    corrupted = np.where(chosen & (lot >= 0.9), random_ids, corrupted)
    return corrupted, np.where(chosen, ids, IGNORE)
