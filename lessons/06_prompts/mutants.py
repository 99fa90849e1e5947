"""Wrong answers to lesson 6, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.prompting.few_shot import _needed

# ---- 06.1 ----


@mutant("06.1", "cut_at_the_word", "You filled in the texts and then looked for {mask}: a text that holds these letters itself, "
        "or a doubled brace, is cut at the wrong place. Walk along self.parts; a field whose name is mask is the gap.")
def halves(self, text, text2, context=""):
    whole = context + self.pattern.replace("{text}", text).replace("{text2}", text2 or "")
    before, _, behind = whole.partition("{mask}")
    return [before, behind]


@mutant("06.1", "no_context", "The context is missing: it stands before everything else, so start the first side with it.")
def halves(self, text, text2, context=""):
    fields, out, side = {"text": text, "text2": text2 or ""}, ["", ""], 0
    for words, name in self.parts:
        out[side] += words
        if name == "mask":
            side = 1
        elif name:
            out[side] += fields[name]
    return out


@mutant("06.1", "context_at_the_gap", "The context must stand before everything; you put it directly before the mask.")
def halves(self, text, text2, context=""):
    fields, out, side = {"text": text, "text2": text2 or ""}, ["", ""], 0
    for words, name in self.parts:
        out[side] += words
        if name == "mask":
            side, out[0] = 1, out[0] + context
        elif name:
            out[side] += fields[name]
    return out


@mutant("06.1", "too_early", "The words of a part stand before its field: those in front of the mask belong to the first side. "
        "You changed sides before you added them.")
def halves(self, text, text2, context=""):
    fields, out, side = {"text": text, "text2": text2 or ""}, [context, ""], 0
    for words, name in self.parts:
        if name == "mask":
            side = 1
        out[side] += words
        if name and name != "mask":
            out[side] += fields[name]
    return out


@mutant("06.1", "texts_before", "A text may stand behind the mask, as in \"is it {mask} ? {text}\": add it to the side on which "
        "you are.")
def halves(self, text, text2, context=""):
    fields, out, side = {"text": text, "text2": text2 or ""}, [context, ""], 0
    for words, name in self.parts:
        out[side] += words
        if name == "mask":
            side = 1
        elif name:
            out[0] += fields[name]
    return out


@mutant("06.1", "the_word_none", "Without a second text its place is empty; you wrote the word None there.")
def halves(self, text, text2, context=""):
    fields, out, side = {"text": text, "text2": str(text2)}, [context, ""], 0
    for words, name in self.parts:
        out[side] += words
        if name == "mask":
            side = 1
        elif name:
            out[side] += fields[name]
    return out


# ---- 06.2 ----


@mutant("06.2", "sum", "You took the sum over a class's words: a class with more words would win by their number. Take the mean.")
def class_scores(logits, ids):
    return F.concatenate([F.sum(logits[..., each], axis=-1, keepdims=True) for each in ids], axis=-1)


@mutant("06.2", "first_word", "You looked at the first word of each class only; all its words count, by their mean.")
def class_scores(logits, ids):
    return F.concatenate([logits[..., each[:1]] for each in ids], axis=-1)


@mutant("06.2", "detached", "The numbers are right, but no gradient comes through: stay with Tensors and do not take "
        "logits.data.")
def class_scores(logits, ids):
    return F.Tensor(np.stack([logits.data[..., each].mean(axis=-1) for each in ids], axis=-1))


@mutant("06.2", "log_probabilities", "You took log p over the whole vocabulary before the mean. Asked for are the logits; other "
        "words have no part in the scores. (The softmax over the classes would hide the difference: it is the same for all.)")
def class_scores(logits, ids):
    log_p = logits - F.log(F.sum(F.exp(logits), axis=-1, keepdims=True))
    return F.concatenate([F.mean(log_p[..., each], axis=-1, keepdims=True) for each in ids], axis=-1)


@mutant("06.2", "softmax_already", "Those are the probabilities of the classes. Scores are asked for; the softmax comes after "
        "them.")
def class_scores(logits, ids):
    s = F.concatenate([F.mean(logits[..., each], axis=-1, keepdims=True) for each in ids], axis=-1)
    return F.exp(s) / F.sum(F.exp(s), axis=-1, keepdims=True)


@mutant("06.2", "rows", "You took rows of the batch where columns of the vocabulary are asked for: index the last axis, "
        "logits[..., ids].")
def class_scores(logits, ids):
    return F.concatenate([F.mean(logits[each % logits.shape[0]], axis=-1, keepdims=True) for each in ids], axis=-1)


# ---- 06.3 ----


def _mean(q_cf):
    return np.atleast_2d(np.asarray(q_cf, np.float64)).mean(axis=0)


def _checked(q_cf):
    if not (np.asarray(q_cf) > 0).all():
        raise ValueError("an input without content has no probability of one class")
    return q_cf


@mutant("06.3", "not_divided_by_the_sum", "After the division the classes do not add up to 1 any more: divide each row by its "
        "sum.")
def calibrated(q, q_cf):
    return np.asarray(q, np.float64) / _checked(_mean(q_cf))


@mutant("06.3", "times", "You multiplied by q_cf, which makes the preference twice as strong; divide it out.")
def calibrated(q, q_cf):
    ratio = np.asarray(q, np.float64) * _checked(_mean(q_cf))
    return ratio / ratio.sum(axis=-1, keepdims=True)


@mutant("06.3", "whole_table", "You divided by the sum of the whole table; each row is a distribution of its own, so sum over "
        "the last axis.")
def calibrated(q, q_cf):
    ratio = np.asarray(q, np.float64) / _checked(_mean(q_cf))
    return ratio / ratio.sum()


@mutant("06.3", "first_input", "Only the first of the inputs without content was used; take the mean over all of them.")
def calibrated(q, q_cf):
    ratio = np.asarray(q, np.float64) / _checked(np.atleast_2d(np.asarray(q_cf, np.float64))[0])
    return ratio / ratio.sum(axis=-1, keepdims=True)


@mutant("06.3", "mean_of_logs", "You averaged the logarithms of the inputs without content. The mean is that of the "
        "probabilities.")
def calibrated(q, q_cf):
    rows = _checked(np.atleast_2d(np.asarray(q_cf, np.float64)))
    ratio = np.asarray(q, np.float64) / np.exp(np.log(rows).mean(axis=0))
    return ratio / ratio.sum(axis=-1, keepdims=True)


@mutant("06.3", "subtracted", "You subtracted q_cf from q. The correction is a difference of logarithms: a division of the "
        "probabilities.")
def calibrated(q, q_cf):
    mean = _checked(_mean(q_cf))
    return np.asarray(q, np.float64) - mean + 1 / len(mean)


@mutant("06.3", "unchecked", "The formula is right, but a class whose probability without content is 0 must be a ValueError.")
def calibrated(q, q_cf):
    with np.errstate(all="ignore"):
        ratio = np.asarray(q, np.float64) / _mean(q_cf)
        return ratio / ratio.sum(axis=-1, keepdims=True)


# ---- 06.4 ----


def _log_p(logits, tokens):
    z = logits.data.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z[np.arange(len(tokens)), tokens] - np.log(np.exp(z).sum(axis=1))


@mutant("06.4", "never_normalised", "You never divide by the length of the answer; where self.normalised is true that is asked "
        "for.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        np.add.at(out[:, c], rows, _log_p(logits, tokens))
    return out


@mutant("06.4", "always_normalised", "You always divide by the length of the answer; only where self.normalised is true is that "
        "asked for.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        np.add.at(out[:, c], rows, _log_p(logits, tokens) / len(words))
    return out


@mutant("06.4", "longest", "You divided every class by the length of the longest answer, which changes no order; divide by its "
        "own.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        np.add.at(out[:, c], rows, _log_p(logits, tokens) / (max(map(len, self.words)) if self.normalised else 1))
    return out


@mutant("06.4", "logits", "You added up the logits of the answer's tokens. They are no log probabilities yet: subtract log of "
        "the sum of exp z.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        z = logits.data.astype(np.float64)[np.arange(len(tokens)), tokens]
        np.add.at(out[:, c], rows, z / (len(words) if self.normalised else 1))
    return out


@mutant("06.4", "first_token", "You looked at the first token of each answer only; its probability is the product over all its "
        "tokens.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        first = np.searchsorted(rows, np.arange(batch.size))
        out[:, c] = _log_p(logits, tokens)[first]
    return out


@mutant("06.4", "not_added_up", "out[rows, c] += ... with a row that stands there several times adds only once and keeps the "
        "last token. Use np.add.at, np.bincount or a loop.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        out[rows, c] += _log_p(logits, tokens)
        out[:, c] /= len(words) if self.normalised else 1
    return out


@mutant("06.4", "overflow", "exp of large logits is infinite: subtract the largest logit of each row before exp; the result is "
        "the same.")
def log_likelihoods(self, model, batch):
    out = np.zeros((batch.size, len(self.words)))
    for c, words in enumerate(self.words):
        logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
        z = logits.data.astype(np.float64)
        np.add.at(out[:, c], rows, z[np.arange(len(tokens)), tokens] - np.log(np.exp(z).sum(axis=1)))
        out[:, c] /= len(words) if self.normalised else 1
    return out


# ---- 06.5 ----


def _area(sizes, head, prompt, low, high):
    """The integral of N_head - N_prompt over the accuracies from low to high."""
    accuracies = np.unique(np.concatenate([[low, high], head, prompt]))
    accuracies = accuracies[(accuracies >= low) & (accuracies <= high)]
    pieces = zip(accuracies[:-1], accuracies[1:])
    return sum((b - a) * (_needed(sizes, head, a, b) - _needed(sizes, prompt, a, b)) for a, b in pieces)


def _read(sizes, head, prompt):
    sizes, head, prompt = (np.asarray(c, np.float64) for c in (sizes, head, prompt))
    return sizes, np.maximum.accumulate(head), np.maximum.accumulate(prompt)


@mutant("06.5", "not_divided", "You integrated and did not divide by a_max - a_min: the mean over the accuracies is asked for.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = _read(sizes, head, prompt)
    low, high = max(head[0], prompt[0]), min(head[-1], prompt[-1])
    return _area(sizes, head, prompt, low, high) if low < high else None


@mutant("06.5", "other_way", "The sign is turned round: what the head needs minus what the prompt needs, so that a good prompt "
        "is worth more than 0.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = _read(sizes, head, prompt)
    low, high = max(head[0], prompt[0]), min(head[-1], prompt[-1])
    return -_area(sizes, head, prompt, low, high) / (high - low) if low < high else None


@mutant("06.5", "accuracy_won", "You averaged the accuracy that the prompt wins at a number of examples: the vertical distance. "
        "Asked for are the examples that it saves at an accuracy: the horizontal one.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = _read(sizes, head, prompt)
    if not max(head[0], prompt[0]) < min(head[-1], prompt[-1]):
        return None
    gain = prompt - head
    return float(((gain[1:] + gain[:-1]) / 2 * np.diff(sizes)).sum() / (sizes[-1] - sizes[0]))


@mutant("06.5", "curves_that_fall", "A curve that falls needs its best so far: np.maximum.accumulate before anything else.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = (np.asarray(c, np.float64) for c in (sizes, head, prompt))
    low, high = max(head[0], prompt[0]), min(head[-1], prompt[-1])
    if not low < high:
        return None
    between = low + (high - low) * (np.arange(2000) + 0.5) / 2000
    return float(np.mean(np.interp(between, head, sizes) - np.interp(between, prompt, sizes)))


@mutant("06.5", "never_none", "Where the curves share no accuracy there is no mean to take: the answer is None.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = _read(sizes, head, prompt)
    low, high = max(head[0], prompt[0]), min(head[-1], prompt[-1])
    return _area(sizes, head, prompt, low, high) / (high - low) if low < high else 0.0


@mutant("06.5", "all_accuracies", "You went over all accuracies that either curve reaches. Below the larger of the two first "
        "values, and above the smaller of the two last ones, one of the curves has nothing to say.")
def data_advantage(sizes, head, prompt):
    sizes, head, prompt = _read(sizes, head, prompt)
    if not max(head[0], prompt[0]) < min(head[-1], prompt[-1]):
        return None
    low, high = min(head[0], prompt[0]), max(head[-1], prompt[-1])
    between = low + (high - low) * (np.arange(2000) + 0.5) / 2000
    return float(np.mean(np.interp(between, head, sizes) - np.interp(between, prompt, sizes)))
