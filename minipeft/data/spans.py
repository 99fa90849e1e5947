"""Span corruption, what T5 is pre-trained on: spans of a text are taken out, and are to be written in order.

    text      the red ball of anna is in the garden .
    input     the <0> of anna is <1> garden .               each span leaves one sentinel
    target    <0> red ball <1> in the <2>                   each sentinel, what it stands for, and one more as the end

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text Transformer", JMLR 2020, sections
3.1.4 and 3.3.4: 15 % of the tokens in spans of 3 on average. (Their program always ends a text with a span; here each
arrangement is as likely.)
"""

import numpy as np


def parts(rng, total, count):
    """``total`` as a sum of ``count`` whole numbers from 1 up, each way as likely: where the bars fall between the stars."""
    bars = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], bars, [total]]))  # (count,)


def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    """Take spans out of a sequence.

    Args:
        ids: the tokens, a list of N >= 2 ints, without special tokens. rng: numpy.random.Generator.
        sentinels: ids of the sentinels, in order. density: share of the tokens that are taken out, in (0, 1).
        mean_length: tokens in a span on average, at least 1.

    Returns:
        (input, target): lists of ids, as above, without an end token.

    Raises ValueError for fewer than 2 tokens or sentinels, or a density or length out of range.
    """
    for name, value, good, words in (("ids", len(ids), len(ids) >= 2, "at least 2 tokens"),
                                     ("sentinels", len(sentinels), len(sentinels) >= 2, "at least 2"),
                                     ("density", density, 0 < density < 1, "a share between 0 and 1"),
                                     ("mean_length", mean_length, mean_length >= 1, "at least 1")):
        if not good:
            raise ValueError(f"{name}: expected {words}, got {value}")
    taken = int(np.clip(round(len(ids) * density), 1, len(ids) - 1))
    count = int(np.clip(round(taken / mean_length), 1, min(taken, len(ids) - taken + 1, len(sentinels) - 1)))
    spans = parts(rng, taken, count)  # (count,)
    kept = parts(rng, len(ids) - taken + 2, count + 1)  # (count + 1,): what stands before, between and behind the spans,
    kept[[0, -1]] -= 1                                  # where before and behind may be nothing
    source, target, at = [], [], 0
    for number, (keep, span) in enumerate(zip(kept, spans)):
        source += [*ids[at:at + keep], sentinels[number]]
        target += [sentinels[number], *ids[at + keep:at + keep + span]]
        at += keep + span
    return [*source, *ids[at:]], [*target, sentinels[count]]
