"""Wrong answers to lesson 16, and what a learner who wrote one is told."""

import numpy as np

from minipeft.autograd import no_grad
from minipeft.data import make_batches as batches_of
from minipeft.data.batching import POOL
from minipeft.learn.claims import mutant
from minipeft.training import gradient_norm
from minipeft.training.metrics import confusion

# ---- 16.1 ----


def sorted_within(order, lengths, pool):
    """Each slice of so many places of ``order`` in the order of the lengths."""
    parts = [order[start:start + pool] for start in range(0, len(order), max(1, pool))]
    return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts] or [order])


def cut(order, batch_size, rng=None):
    """``order`` in batches, and these shuffled where there is a generator."""
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def lengths_of(encodings):
    """Their numbers of tokens."""
    return np.array([len(e.ids) for e in encodings], np.int64)


def drawn(lengths, rng):
    """The examples in a random order, or in that of the data where there is no generator."""
    return np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))


@mutant("16.1", "never_random", "You sort all examples also where an rng is given; in training their order must be drawn.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(np.argsort(lengths, kind="stable"), batch_size)


@mutant("16.1", "unsorted", "In training you shuffle and do not sort: a batch then holds short and long texts, and much padding.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(np.argsort(lengths, kind="stable") if rng is None else rng.permutation(len(lengths)), batch_size)


@mutant("16.1", "short_first",
        "The batches of a pool still come in the order of their lengths: shuffle the batches too, after they are cut.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(sorted_within(drawn(lengths, rng), lengths, len(lengths) if rng is None else POOL * batch_size), batch_size)


@mutant("16.1", "one_pool",
        "You sort all examples at once in training: the same texts meet in every epoch. Sort within pools of POOL * batch_size.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(sorted_within(drawn(lengths, rng), lengths, len(lengths)), batch_size, rng)


@mutant("16.1", "examples_in_place",
        "You shuffle the batches and not the examples: pools of the data as it lies there are the same in every epoch.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(sorted_within(np.arange(len(lengths)), lengths, len(lengths) if rng is None else POOL * batch_size),
               batch_size, rng)


@mutant("16.1", "pool_of_examples",
        "Your pools hold POOL examples; they should hold POOL batches, which is POOL * batch_size examples.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    return cut(sorted_within(drawn(lengths, rng), lengths, len(lengths) if rng is None else POOL), batch_size, rng)


@mutant("16.1", "rest_dropped", "The last batch may be smaller than the others; you left its examples out.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    order = sorted_within(drawn(lengths, rng), lengths, len(lengths) if rng is None else POOL * batch_size)
    return cut(order[:len(order) // batch_size * batch_size], batch_size, rng)


@mutant("16.1", "longest_first", "Without an rng the shortest examples come first; you began with the longest.")
def make_batches(encodings, batch_size, rng=None):
    lengths = lengths_of(encodings)
    if rng is None:
        return cut(np.argsort(-lengths, kind="stable"), batch_size)
    return cut(sorted_within(rng.permutation(len(lengths)), lengths, POOL * batch_size), batch_size, rng)


# ---- 16.2 ----


def accumulated(work, model, group, share):
    """The losses of a group after backward; ``share(batch, N)`` multiplies each."""
    total, losses = sum(work.weight(batch) for batch in group), []
    for batch in group:
        part = work.loss(model, batch)
        (part * share(batch, total)).backward()
        losses.append((part.item(), work.weight(batch) / total))
    return losses


def mean_of(losses):
    """The mean loss of all examples."""
    return float(sum(loss * share for loss, share in losses))


def limited(parameters, clip):
    """What the gradients are multiplied by."""
    norm = gradient_norm(parameters)
    return min(1.0, clip / norm) if clip and norm > 0 else 1.0


@mutant("16.2", "gradients_kept", "The gradients of the step before are still there: call optimizer.zero_grad() first.")
def train_step(work, model, parameters, optimizer, group, clip):
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    optimizer.step(limited(parameters, clip))
    return mean_of(losses)


@mutant("16.2", "equal_shares",
        "You gave every batch the same share; a batch with few examples then counts too much. Its share is n_b / N.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: 1 / len(group))
    optimizer.step(limited(parameters, clip))
    return float(np.mean([loss for loss, _ in losses]))


@mutant("16.2", "summed", "You added the batches' losses up; each must first be multiplied by its share n_b / N.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: 1.0)
    optimizer.step(limited(parameters, clip))
    return float(sum(loss for loss, _ in losses))


@mutant("16.2", "a_step_each", "You made a step after each batch; all of them together make one step.")
def train_step(work, model, parameters, optimizer, group, clip):
    losses, total = [], sum(work.weight(batch) for batch in group)
    for batch in group:
        optimizer.zero_grad()
        part = work.loss(model, batch)
        part.backward()
        optimizer.step(limited(parameters, clip))
        losses.append((part.item(), work.weight(batch) / total))
    return mean_of(losses)


@mutant("16.2", "no_clipping", "Where the gradients together are longer than clip, the step must be multiplied by clip / |g|.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    optimizer.step()
    return mean_of(losses)


@mutant("16.2", "one_by_one",
        "You clipped each parameter by its own length, which turns the direction; |g| is the length of all of them together.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    for p in parameters:
        p.grad = p.grad * limited([p], clip)
    optimizer.step()
    return mean_of(losses)


@mutant("16.2", "always_clip", "You made short gradients longer: the factor is clip / |g|, but never more than 1.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    norm = gradient_norm(parameters)
    optimizer.step(clip / norm if clip and norm > 0 else 1.0)
    return mean_of(losses)


@mutant("16.2", "zero_stops", "With clip 0 nothing is to be clipped; you multiplied every gradient by 0.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    norm = gradient_norm(parameters)
    optimizer.step(min(1.0, clip / norm) if norm > 0 else 1.0)
    return mean_of(losses)


@mutant("16.2", "divided_by_zero", "Where all gradients are zero |g| is 0, and you divided by it: look at it first.")
def train_step(work, model, parameters, optimizer, group, clip):
    optimizer.zero_grad()
    losses = accumulated(work, model, group, lambda batch, total: work.weight(batch) / total)
    optimizer.step(min(1.0, clip / gradient_norm(parameters)) if clip else 1.0)
    return mean_of(losses)


# ---- 16.3 ----


def softmax(z):
    """Of each row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def predicted(self, model, split, turn=softmax, of=None):
    """Probabilities in the order of the data; ``turn`` makes them of logits, ``of`` is the split that is read."""
    out = np.zeros((len(self.encodings[split]), len(self.labels)))
    with no_grad():
        for indices in batches_of(self.encodings[split], self.batch_size):
            out[indices] = turn(self.scores(model, self.collate(indices, of or split)).data.astype(np.float64))
    return out


@mutant("16.3", "batch_order",
        "The rows come in the order of the batches, which is that of the lengths; "
        "out[indices] = ... puts them where they belong.")
def predict(self, model, split):
    parts = [np.zeros((0, len(self.labels)))]
    with no_grad():
        for indices in batches_of(self.encodings[split], self.batch_size):
            parts.append(softmax(self.scores(model, self.collate(indices, split)).data.astype(np.float64)))
    return np.concatenate(parts)


@mutant("16.3", "training_texts",
        "self.collate takes the training texts unless it is told the split: self.collate(indices, split).")
def predict(self, model, split):
    return predicted(self, model, split, of="train")


@mutant("16.3", "logits", "Those are the logits; probabilities are their softmax.")
def predict(self, model, split):
    return predicted(self, model, split, lambda z: z)


@mutant("16.3", "overflow", "exp of a large logit overflows: subtract the largest logit of each row first.")
def predict(self, model, split):
    return predicted(self, model, split, lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


@mutant("16.3", "over_texts", "You normalised over the texts of a batch; each row must sum to 1, over the classes.")
def predict(self, model, split):
    return predicted(self, model, split, lambda z: np.exp(z - z.max(axis=0)) / np.exp(z - z.max(axis=0)).sum(axis=0))


@mutant("16.3", "recorded",
        "Each batch keeps its activations for a backward pass that never comes: put the loop inside no_grad().")
def predict(self, model, split):
    out = np.zeros((len(self.encodings[split]), len(self.labels)))
    for indices in batches_of(self.encodings[split], self.batch_size):
        out[indices] = softmax(self.scores(model, self.collate(indices, split)).data.astype(np.float64))
    return out


# ---- 16.4 ----


def counts(predicted, actual, classes):
    """(p, a, c, s) as the equation has them."""
    table = confusion(predicted, actual, classes).astype(np.float64)
    return table.sum(axis=0), table.sum(axis=1), np.trace(table), table.sum()


@mutant("16.4", "undefined", "0 / 0 where nothing varies: look at the root first, and return 0 where it is 0.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    return float((c * s - (p * a).sum()) / np.sqrt((s**2 - (p**2).sum()) * (s**2 - (a**2).sum())))


@mutant("16.4", "no_root", "The product of the two variances stands under a root; you left the root out.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    under = (s**2 - (p**2).sum()) * (s**2 - (a**2).sum())
    return float((c * s - (p * a).sum()) / under) if under > 0 else 0.0


@mutant("16.4", "one_variance",
        "You divided by the variance of the actual classes; it is the root of that times the predictions' variance.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    under = s**2 - (a**2).sum()
    return float((c * s - (p * a).sum()) / under) if under > 0 else 0.0


@mutant("16.4", "kappa", "That is Cohen's kappa: its numerator is the same, and it divides by s^2 - sum p_k a_k.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    under = s**2 - (p * a).sum()
    return float((c * s - (p * a).sum()) / under) if under > 0 else 0.0


@mutant("16.4", "accuracy", "That is the accuracy, the share that is right.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    return float(c / s)


@mutant("16.4", "two_classes",
        "You used the formula for two classes, with TP, TN, FP and FN of class 1; there may be more of them.")
def matthews(predicted, actual, classes):
    table = confusion(predicted, actual, classes).astype(np.float64)
    tn, fp, fn, tp = table[0, 0], table[0, 1], table[1, 0], table[1, 1]
    under = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return float((tp * tn - fp * fn) / under) if under > 0 else 0.0


@mutant("16.4", "not_centred", "What the guesses share by chance alone is not taken off: the numerator is c s - sum p_k a_k.")
def matthews(predicted, actual, classes):
    p, a, c, s = counts(predicted, actual, classes)
    under = np.sqrt((s**2 - (p**2).sum()) * (s**2 - (a**2).sum()))
    return float(c * s / under) if under > 0 else 0.0


# ---- 16.5 ----


def blocks(parts, widths, ratio):
    """A that stacks, B with a block for each part; ``ratio(s, first)`` multiplies a block."""
    present = [part for part in parts if part is not None]
    first, kind = present[0][2], present[0][1].dtype
    b = np.zeros((sum(widths), sum(u.shape[1] for u, _, _ in present)), kind)
    row = column = 0
    for part, width in zip(parts, widths):
        if part is not None:
            u, v, scale = part
            b[row:row + width, column:column + u.shape[1]] = v * kind.type(ratio(scale, first))
            column += u.shape[1]
        row += width
    return np.concatenate([u.T for u, _, _ in present]), b, first


def one_u(parts):
    """Whether all parts are there and share U and scale."""
    return all(part is not None for part in parts) and all(
        part[2] == parts[0][2] and np.array_equal(part[0], parts[0][0]) for part in parts)


def shared(parts):
    """A, B and scale of parts with one U."""
    return parts[0][0].T, np.concatenate([v for _, v, _ in parts]), parts[0][2]


@mutant("16.5", "not_transposed", "A is (R, D_in): U transposed. You wrote U itself.")
def _fuse(parts, widths):
    a, b, scale = shared(parts) if one_u(parts) else blocks(parts, widths, lambda s, first: s / first)
    return a.T, b, scale


@mutant("16.5", "scales_ignored", "There is one scale for all; a part with another scale needs the ratio in its block of B.")
def _fuse(parts, widths):
    return shared(parts) if one_u(parts) else blocks(parts, widths, lambda s, first: 1.0)


@mutant("16.5", "ratio_inverted", "The ratio is upside down: a part with a larger scale needs a larger block.")
def _fuse(parts, widths):
    return shared(parts) if one_u(parts) else blocks(parts, widths, lambda s, first: first / s)


@mutant("16.5", "scaled_in",
        "You multiplied each block by its whole scale, and the scale that you return multiplies it once more.")
def _fuse(parts, widths):
    if one_u(parts):
        a, b, scale = shared(parts)
        return a, b * b.dtype.type(scale), scale
    return blocks(parts, widths, lambda s, first: s)


@mutant("16.5", "always_blocks",
        "Parts with the same U and scale need no blocks: A is that U transposed, once, and the rank stays what it was.")
def _fuse(parts, widths):
    return blocks(parts, widths, lambda s, first: s / first)


@mutant("16.5", "gaps_closed",
        "A part without an adapter still has outputs: its rows of B are zeros, and the next block comes behind them.")
def _fuse(parts, widths):
    there = [(part, width) for part, width in zip(parts, widths) if part is not None]
    parts, widths = [part for part, _ in there], [width for _, width in there]
    return shared(parts) if one_u(parts) else blocks(parts, widths, lambda s, first: s / first)


@mutant("16.5", "first_u_for_all", "You used the first part's U for all; parts with a U of their own need a block of their own.")
def _fuse(parts, widths):
    u, v, scale = next(part for part in parts if part is not None)
    rows = [np.zeros((width, u.shape[1]), v.dtype) if part is None else np.resize(part[1], (width, u.shape[1]))
            for part, width in zip(parts, widths)]
    return u.T, np.concatenate(rows), scale
