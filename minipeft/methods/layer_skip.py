"""LayerSkip: a decoder trained so that its first blocks can draft a text, which the others then verify many words at a time.

    layer dropout   block l = 0 .. L-1 is left out of a sample with probability p_l = S(t) D(l) p_max,   S(t) = 1
                    D(l) = e^(l ln 2 / (L - 1)) - 1, from 0 to 1
    exit loss       sum_l w_l CE(project(norm(x_{l+1})), next token),   w_l = C(t, l) e(l) / sum_i C(t, i) e(i)
                    e(l) = e_scale sum_{i<=l} i  for l < L - 1,   e(L-1) = L - 1 + e_scale sum_{i<=L-2} i
    curriculum      C(t, l), 0 or 1: gradual, from the last exit down, one more every T / 2L of the T steps; rotational, every
                    r-th exit, one further at each step; the last exit always
    writing         E blocks draft K words one by one; the other L - E read them in one call; the words are kept up to the first
                    that all L blocks would not have written, in whose place stands theirs

So the words are those of the full model, whatever the drafts (up to a tie within the last bits of two logits: a product over
K places may round otherwise than one over a single place). Drafts leave their keys and values, those of wrong words are cut off.

Elhoushi, Shrivastava, Liskovich, Hosmer, Wasti, Lai, Mahmoud, Acun, Agarwal, Roman, Aly, Chen, Wu, ACL 2024, arXiv:2404.16710,
sections 4.1 (training) and 4.3 (writing); S(t) = 1 is theirs for models that are trained already.

Shapes: x (B, T, D). Training wraps ``blocks.l``; writing acts on no seam. Count: 0, all exits share the model's output map.
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np

from .. import autograd as F
from ..models.generation import KVCache, check_text, end_ids
from ..models.heads import LMHead
from ..nn import Wrapper, unwrap
from ..training.hooks import Hook

# ---- training --------------------------------------------------------------------------------------------------


class SkippedBlock(Wrapper):
    """A block that in training leaves out each sample of a batch with a probability; what is left out costs nothing."""

    rng = None

    def __init__(self, wrapped, probability):
        super().__init__(wrapped)
        self.probability = probability

    def forward(self, x, mask=None, position_ids=None, *rest):
        """x (B, T, D) -> (B, T, D); texts that skip the block come out as they went in."""
        if not self.training or self.probability == 0:
            return self.wrapped(x, mask, position_ids, *rest)
        out = self.rng.random(len(x)) < self.probability  # (B,)
        stay, away = np.flatnonzero(~out), np.flatnonzero(out)
        if not len(stay):
            return x
        rows = lambda array: array if array is None or len(array) != len(out) else array[stay]
        y = self.wrapped(x[stay], rows(mask), rows(position_ids), *rest)  # (B', T, D)
        return F.concatenate([y, x[away]], axis=0)[np.argsort(np.concatenate([stay, away]))]  # (B, T, D)


@contextlib.contextmanager
def layer_dropout(model, most=0.1):
    """Inside this block of code the blocks of an Encoder or Decoder are dropped in training, the last with probability ``most``.

    Raises ValueError for a probability outside [0, 1).
    """
    if not 0 <= most < 1:
        raise ValueError(f"layer dropout: the probability must lie in [0, 1), got {most}")
    count = len(model.blocks)
    paths = [f"blocks.{i}" for i in range(count)]
    for i, path in enumerate(paths):
        depth = math.exp(i * math.log(2) / max(count - 1, 1)) - 1
        model.replace(path, SkippedBlock(model.get(path), depth * most))
    try:
        yield model
    finally:
        for path in paths:
            model.replace(path, model.get(path).wrapped)


class ExitLoss(Hook):
    """How much each exit counts, by its depth and the step of the training: an objective of `TokenExit`, and a hook of ``fit``.

    Args:
        scale: e_scale, from 0 (the last exit alone) to 1. curriculum: ``gradual``, ``rotational`` or None (all exits always).
        every: r, of the rotational one.
    """

    def __init__(self, scale=1.0, curriculum="gradual", every=2):
        if not 0 <= scale <= 1 or curriculum not in ("gradual", "rotational", None) or every < 1:
            raise ValueError("exit loss: expected a scale from 0 to 1, a curriculum gradual, rotational or None, and every of at "
                             f"least 1, got {scale}, {curriculum!r} and {every}")
        self.scale, self.curriculum, self.every, self.step, self.total = scale, curriculum, every, 0, 1

    def before_step(self, step, total, epoch, rng):
        self.step, self.total = step, total

    def shares(self, count):
        """w_l of ``count`` exits at this step, an array whose sum is 1."""
        place, sums = np.arange(count), np.cumsum(np.arange(count))
        weights = self.scale * sums.astype(np.float64)
        weights[-1] = count - 1 + self.scale * sums[max(count - 2, 0)]
        enabled = np.ones(count, bool)
        if self.curriculum == "gradual":
            enabled = place >= count - 1 - self.step * 2 * count // self.total
        elif self.curriculum == "rotational":
            enabled = (place + self.step) % self.every == 0
        enabled[-1] = True
        return weights * enabled / (weights * enabled).sum()


# ---- writing ---------------------------------------------------------------------------------------------------


class Verified(NamedTuple):
    """``ids`` (1, T + N), prompt and text; how many words were ``drafted``, and how many of these ``accepted``."""

    ids: np.ndarray
    drafted: int
    accepted: int


def draft_and_verify(model, input_ids, exit_layer, draft_tokens=4, max_new_tokens=50, eos_token_id=None, on_token=None):
    """Continue a text greedily: the first ``exit_layer`` blocks draft, all blocks verify.

    Args:
        model: a Decoder with an LMHead; one trained as above is best at drafting, and any will do.
        input_ids: (1, T) ints. exit_layer: E, from 1 to L - 1. draft_tokens: K, how many words to draft at a time.
        max_new_tokens, eos_token_id, on_token: as in `models.generate`, whose greedy ids these are.

    Returns:
        `Verified`.

    Raises:
        ValueError: a model that cannot write, several rows, or numbers that do not fit.
    """
    ids = check_text(input_ids, "draft")
    cache, ends = _check(model, ids, exit_layer, draft_tokens), end_ids(model, eos_token_id)
    model.check_length(ids.shape[1] + max_new_tokens)
    written, drafted, accepted = [], 0, 0
    with F.no_grad():
        kept = _best(model, model(ids, cache=cache).last_hidden_state[:, -1:])  # (1,), the first word is read off the prompt
        while True:
            for word in kept:
                written.append(int(word))
                if on_token is not None:
                    on_token(np.array([word]))
                if word in ends or len(written) == max_new_tokens:
                    return Verified(np.concatenate([ids, [written]], axis=1), drafted, accepted)
            start, count = cache.length, min(draft_tokens, max_new_tokens - len(written))
            draft, states, position_ids = _draft(model, cache, exit_layer, written[-1], count, ends)  # (K,), (1, K, D), (1, K)
            states = _pass(model, cache, slice(exit_layer, None), states, position_ids)
            right = _best(model, model.normalised(states))  # (K,), what all blocks would have written
            agree = int(np.cumprod(right == draft).sum())
            kept, drafted, accepted = right[:agree + 1], drafted + len(draft), accepted + agree
            cache.cut(start + len(kept))


def _draft(model, cache, exit_layer, word, count, ends):
    """Up to ``count`` words (K,) that the first blocks write behind ``word``; an end of the text is the last of them.

    Also the states (1, K, D) and the position ids (1, K) of what was read: ``word``, and all but the last that were written.
    """
    words, states, places = [word], [], []
    while len(states) < count and (len(states) == 0 or words[-1] not in ends):
        x, _, position_ids, _ = model.enter(np.array([words[-1:]]), cache=cache)  # (1, 1, D)
        states.append(_pass(model, cache, slice(exit_layer), x, position_ids))
        places.append(position_ids)
        words.append(int(_best(model, model.normalised(states[-1]))[0]))
    return np.array(words[1:]), F.concatenate(states, axis=1), np.concatenate(places, axis=1)


def _pass(model, cache, which, x, position_ids):
    """States (1, T, D) through some of the blocks, whose caches take their keys and values."""
    for block, layer in zip(list(model.blocks)[which], cache.layers[which]):
        x = block(x, None, position_ids, layer)
    return x


def _best(model, states):
    """The most probable next word behind each of the normalised states (1, T, D): (T,)."""
    return model.head.project(states).data[0].argmax(axis=1)


def _check(model, ids, exit_layer, draft_tokens):
    """An empty cache for the model; ValueError where the arguments do not fit."""
    count = len(getattr(model, "blocks", ()))
    if not isinstance(unwrap(getattr(model, "head", None)), LMHead) or not 1 <= exit_layer < count:
        raise ValueError(f"draft: expected a Decoder with an LMHead, and 1 to {max(count - 1, 1)} of its {count} blocks "
                         f"to draft; got {type(model).__name__} and {exit_layer}")
    if len(ids) != 1 or draft_tokens < 1:
        raise ValueError(f"draft: expected one text and draft_tokens of at least 1, got {len(ids)} and {draft_tokens}")
    return KVCache(count)
