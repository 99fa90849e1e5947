"""What an answer to lesson 16 must do: batches, a step, predictions, a score, and LoRAs written as one, each on small cases."""

from types import SimpleNamespace

import numpy as np
import pytest

from minipeft import autograd as F
from minipeft.autograd import Tensor
from minipeft.data import Dataset, Example
from minipeft.data.batching import POOL
from minipeft.data.tokenizer import Encoding, Encodings
from minipeft.learn.claims import exercise, holds, same
from minipeft.training import SGD

# ---- 16.1: batches of nearly equal length ----------------------------------------------------------------------


def encodings(lengths):
    """Encodings of these lengths."""
    return [Encoding([5] * int(n), [0] * int(n)) for n in lengths]


def joined(batches):
    """The indices of all batches, in their order."""
    return np.concatenate([np.asarray(batch, np.int64) for batch in batches]) if len(batches) else np.zeros(0, np.int64)


def of_length(batches, lengths):
    """The lengths in each batch, as text that can be compared whatever the order of the batches."""
    return sorted(sorted(int(lengths[i]) for i in batch) for batch in batches)


@exercise("16.1")
@pytest.mark.parametrize("random", [False, True])
def test_each_example_once(impl, rng, random):
    """Each example stands in just one batch, and all batches but one are full."""
    count, size = int(rng.integers(3, 6)) * 4 + 3, 4
    batches = impl(encodings(rng.integers(1, 30, count)), size, rng if random else None)
    same(np.sort(joined(batches)), np.arange(count), "all indices, sorted", 0)
    expected = np.sort([size] * (count // size) + [3])
    same(np.sort([len(batch) for batch in batches]), expected, "the sizes of the batches, sorted", 0)


@exercise("16.1")
def test_without_a_generator_all_are_sorted(impl, rng):
    """Without an rng the batches go from the shortest example to the longest."""
    lengths = rng.integers(1, 40, 23)
    same(lengths[joined(impl(encodings(lengths), 4))], np.sort(lengths), "the lengths, batch after batch", 0)


@exercise("16.1")
def test_in_training_a_batch_has_neighbours(impl, rng):
    """In training a batch holds examples that are neighbours when the examples of its pool are sorted by length."""
    lengths = rng.integers(1, 40, (POOL - 10) * 4)  # one pool, of more than POOL examples
    expected = of_length(np.argsort(lengths, kind="stable").reshape(-1, 4), lengths)
    same(np.array(of_length(impl(encodings(lengths), 4, rng), lengths)), np.array(expected),
         "the lengths in the batches, sorted", 0)


@exercise("16.1")
def test_in_training_the_batches_are_shuffled(impl, rng):
    """In training the batches come in a random order, and not the short ones first."""
    lengths = rng.permutation(60) + 1
    means = np.array([lengths[np.asarray(batch)].mean() for batch in impl(encodings(lengths), 3, rng)])
    holds((np.diff(means) > 0).any() and (np.diff(means) < 0).any(), "the batches come in the order of their lengths")


@exercise("16.1")
def test_the_company_changes(impl, rng):
    """From epoch to epoch an example meets others, for only POOL batches are sorted together."""
    lengths = rng.permutation(3 * POOL * 2) + 1  # three pools of batches of two; no two lengths are equal
    first, second = (of_length(impl(encodings(lengths), 2, np.random.default_rng([seed, int(lengths[0])])), lengths)
                     for seed in (1, 2))
    kept = sum(pair in second for pair in first)
    holds(kept < len(first) // 2, f"{kept} of {len(first)} batches are the same in two epochs")
    apart = np.mean([pair[-1] - pair[0] for pair in first])
    holds(apart < 15, f"two lengths from 1 to {len(lengths)} in one batch are {apart:.0f} apart on average; expected about 3")


@exercise("16.1")
def test_equal_lengths_are_shuffled_too(impl, rng):
    """Examples of one length come in a random order."""
    together = sorted(sorted(map(int, batch)) for batch in impl(encodings([7] * 40), 4, rng))
    holds(together != np.arange(40).reshape(-1, 4).tolist(), "examples of equal length go together as they stand in the data")


@exercise("16.1")
def test_the_seed_decides(impl, rng):
    """The same seed gives the same batches."""
    lengths = rng.integers(1, 30, 30)
    first, second = (joined(impl(encodings(lengths), 4, np.random.default_rng(3))) for _ in range(2))
    same(first, second, "the indices", 0)


@exercise("16.1")
def test_no_examples(impl, rng):
    """No examples make no batches."""
    same(len(impl([], 4)), 0, "the number of batches", 0)
    same(len(impl([], 4, rng)), 0, "the number of batches", 0)


# ---- 16.2: one step --------------------------------------------------------------------------------------------


class Lines:
    """Work on a straight line in several variables: the loss of a batch (x, y) is the mean of (x w + b - y)^2."""

    def loss(self, model, batch):
        x, y = batch
        return F.mean((F.linear(Tensor(x), model.w) + model.b - Tensor(y)) ** 2)

    def weight(self, batch):
        return len(batch[0])


def line(rng, sizes):
    """(a model, its parameters, batches of these sizes)"""
    w, b = Tensor(rng.standard_normal((3, 1)), requires_grad=True), Tensor(rng.standard_normal(1), requires_grad=True)
    return SimpleNamespace(w=w, b=b), [w, b], [(rng.standard_normal((n, 3)), rng.standard_normal((n, 1))) for n in sizes]


def slow(model, group):
    """(mean loss, dw, db) over all examples of some batches, example by example."""
    loss, dw, db, count = 0.0, np.zeros((3, 1)), np.zeros(1), 0
    for x, y in group:
        for row, target in zip(x, y):
            miss = sum(row[k] * model.w.data[k, 0] for k in range(3)) + model.b.data[0] - target[0]
            loss, count = loss + miss**2, count + 1
            dw += 2 * miss * row[:, None]
            db += 2 * miss
    return loss / count, dw / count, db / count


def stepped(impl, rng, sizes, clip, before=None):
    """Claims on one step: the loss it returns and where the parameters go."""
    model, parameters, group = line(rng, sizes)
    loss, dw, db = slow(model, group)
    w, b, lr = model.w.data.copy(), model.b.data.copy(), 0.25
    norm = (sum(v**2 for v in dw[:, 0]) + db[0] ** 2) ** 0.5
    limit = clip(norm)
    if before is not None:
        for p in parameters:
            p.grad = before * np.ones(p.shape)
    told = impl(Lines(), model, parameters, SGD(parameters, lr), group, limit)
    factor = min(1.0, limit / norm) if limit else 1.0
    same(model.w.data, w - lr * factor * dw, "w after the step", 1e-9)
    same(model.b.data, b - lr * factor * db, "b after the step", 1e-9)
    holds(isinstance(told, float), f"the loss is of the type {type(told).__name__}; expected a float")
    same(told, loss, "the loss", 1e-9)


@exercise("16.2")
def test_one_batch(impl, rng):
    """With one batch the step goes along the gradient of its mean loss, which is returned."""
    stepped(impl, rng, (5,), lambda norm: 0)


@exercise("16.2")
def test_several_batches_are_one(impl, rng):
    """Batches of different sizes make the step and the loss that they would make as one large batch."""
    stepped(impl, rng, (4, 1, 6), lambda norm: 0)


@exercise("16.2")
def test_old_gradients_are_forgotten(impl, rng):
    """What an earlier step has left in the gradients plays no part."""
    stepped(impl, rng, (3, 2), lambda norm: 0, before=10.0)


@exercise("16.2")
def test_a_long_gradient_is_shortened(impl, rng):
    """A gradient longer than c keeps its direction, over all parameters together, and gets the length c."""
    stepped(impl, rng, (3, 5), lambda norm: 0.3 * norm)


@exercise("16.2")
def test_a_short_gradient_stays(impl, rng):
    """A gradient shorter than c stays as it is."""
    stepped(impl, rng, (3, 5), lambda norm: 3.0 * norm)


@exercise("16.2")
def test_nothing_to_learn(impl, rng):
    """Where every gradient is zero nothing moves, and nothing is divided by zero."""
    model, parameters, ((x, _),) = line(rng, (4,))
    w, y = model.w.data.copy(), F.linear(Tensor(x), model.w).data + model.b.data
    with np.errstate(all="ignore"):
        told = impl(Lines(), model, parameters, SGD(parameters, 0.25), [(x, y)], 1.0)
    same(model.w.data, w, "w after the step", 1e-9)
    same(float(told), 0.0, "the loss", 1e-9)


# ---- 16.3: predictions -----------------------------------------------------------------------------------------


class Digits:
    """A tokenizer of texts that are numbers: one number, one token."""

    pad_id = 0

    def encode_pairs(self, texts, pairs, max_length):
        return Encodings(Encoding([int(w) for w in text.split()], [0] * len(text.split())) for text in texts)


class Sums:
    """A model whose logits are the mean of the tokens' rows in a table, times a factor."""

    def __init__(self, rng, classes, factor=1.0):
        self.table, self.factor = Tensor(rng.standard_normal((50, classes)), requires_grad=True), factor
        self.rows, self.recorded = 0, False

    def __call__(self, ids, mask, types):
        one_hot = (ids[:, :, None] == np.arange(50)) * mask[:, :, None]  # (B, T, 50)
        logits = F.linear(Tensor(one_hot.sum(axis=1) / mask.sum(axis=1, keepdims=True) * self.factor), self.table)
        self.rows, self.recorded = self.rows + len(ids), self.recorded or logits.requires_grad
        return SimpleNamespace(logits=logits)

    def probabilities(self, texts):
        """Softmax of each text's logits, one number at a time."""
        out = []
        for text in texts:
            ids = [int(w) for w in text.split()]
            z = [self.factor * sum(self.table.data[i, k] for i in ids) / len(ids) for k in range(self.table.shape[1])]
            e = [np.exp(v - max(z)) for v in z]
            out.append([v / sum(e) for v in e])
        return np.array(out).reshape(len(texts), self.table.shape[1])


def work_on(impl, rng, counts, classes=3):
    """(work, {split: texts}) on texts of different lengths."""
    texts = {split: [" ".join(map(str, rng.integers(1, 50, rng.integers(1, 9)))) for _ in range(n)]
             for split, n in counts.items()}
    splits = {split: [Example(text, None, 0) for text in part] for split, part in texts.items()}
    return impl(Digits(), Dataset(splits, tuple(f"class {i}" for i in range(classes))), 128, 4), texts


@exercise("16.3")
def test_each_row_is_of_its_text(impl, rng):
    """Row i is the softmax of the logits of text i, in whatever batch it was."""
    work, texts = work_on(impl, rng, {"train": 5, "dev": 21})
    model = Sums(rng, 3)
    same(work.predict(model, "dev"), model.probabilities(texts["dev"]), "the probabilities", 1e-6)
    same(model.rows, 21, "the number of texts that the model has read", 0)


@exercise("16.3")
def test_of_the_split_that_is_asked_for(impl, rng):
    """The texts are those of the split that is asked for."""
    work, texts = work_on(impl, rng, {"train": 9, "dev": 9, "test": 9})
    model = Sums(rng, 3)
    for split in ("test", "train"):
        same(work.predict(model, split), model.probabilities(texts[split]), f"the probabilities of {split}", 1e-6)


@exercise("16.3")
def test_large_logits(impl, rng):
    """Logits in the thousands give probabilities, and neither NaN nor infinity."""
    work, texts = work_on(impl, rng, {"train": 2, "dev": 6})
    model = Sums(rng, 4, factor=5000.0)
    work.labels = ("a", "b", "c", "d")
    with np.errstate(all="ignore"):
        same(work.predict(model, "dev"), model.probabilities(texts["dev"]), "the probabilities", 1e-6)


@exercise("16.3")
def test_nothing_is_recorded(impl, rng):
    """Nothing is recorded for a backward pass, which would keep the activations of every batch."""
    work, _ = work_on(impl, rng, {"train": 2, "dev": 5})
    model = Sums(rng, 3)
    work.predict(model, "dev")
    holds(not model.recorded, "the logits ask for a gradient; call the model inside no_grad()")


@exercise("16.3")
@pytest.mark.parametrize("count", [0, 1])
def test_one_text_or_none(impl, rng, count):
    """One text gives one row, none gives an array (0, C)."""
    work, texts = work_on(impl, rng, {"train": 3, "dev": count})
    model = Sums(rng, 3)
    same(work.predict(model, "dev"), model.probabilities(texts["dev"]), "the probabilities", 1e-6)


# ---- 16.4: Matthews correlation --------------------------------------------------------------------------------


def correlation(predicted, actual, classes):
    """Covariance over the root of both variances, of rows with a single 1, entry by entry."""
    p, a = ([[float(label == k) for k in range(classes)] for label in labels] for labels in (predicted, actual))
    n = len(p)

    def cov(x, y):
        out = 0.0
        for k in range(classes):
            mean_x, mean_y = sum(row[k] for row in x) / n, sum(row[k] for row in y) / n
            out += sum((x[i][k] - mean_x) * (y[i][k] - mean_y) for i in range(n))
        return out

    return cov(p, a) / (cov(p, p) * cov(a, a)) ** 0.5


def guesses(rng, classes, n=40):
    """(predicted, actual): unevenly frequent classes, about half of them guessed right."""
    weights = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    actual = np.concatenate([np.arange(classes), rng.choice(classes, n - classes, p=weights)])
    return np.where(rng.random(n) < 0.5, actual, rng.integers(0, classes, n)), actual


@exercise("16.4")
def test_two_classes(impl, rng):
    """With two classes it is the correlation of two rows of zeros and ones."""
    predicted, actual = guesses(rng, 2)
    same(float(impl(predicted, actual, 2)), float(np.corrcoef(predicted, actual)[0, 1]), "the correlation", 1e-9)


@exercise("16.4")
@pytest.mark.parametrize("classes", [3, 5])
def test_more_classes(impl, rng, classes):
    """With more classes it is the covariance summed over the classes, over the root of both variances."""
    predicted, actual = guesses(rng, classes)
    same(float(impl(predicted, actual, classes)), correlation(predicted, actual, classes), "the correlation", 1e-9)


@exercise("16.4")
def test_who_says_the_same_each_time(impl):
    """Where predictions or classes are all the same the correlation is 0, whatever the accuracy."""
    actual = [1] * 9 + [0]
    with np.errstate(all="ignore"):
        same(float(impl([1] * 10, actual, 2)), 0.0, "the correlation of a constant guess", 0)
        same(float(impl(actual, [1] * 10, 2)), 0.0, "the correlation with a constant truth", 0)
        same(float(impl([1] * 10, [1] * 10, 2)), 0.0, "the correlation of two constants", 0)


@exercise("16.4")
def test_all_right_and_all_wrong(impl, rng):
    """All right is 1; with two classes all wrong is -1."""
    labels = np.array([0, 1, 1, 0, 1, 1, 1])
    same(float(impl(labels, labels, 2)), 1.0, "the correlation of right answers", 1e-12)
    same(float(impl(1 - labels, labels, 2)), -1.0, "the correlation of wrong answers", 1e-12)


@exercise("16.4")
def test_a_class_that_does_not_occur(impl, rng):
    """A class that is neither predicted nor present changes nothing."""
    predicted, actual = guesses(rng, 3)
    same(float(impl(predicted, actual, 5)), correlation(predicted, actual, 3), "the correlation", 1e-9)


@exercise("16.4")
def test_many_examples(impl, rng):
    """A hundred thousand examples are counted without an overflow."""
    predicted, actual = (np.tile(labels, 2500) for labels in guesses(rng, 3))
    same(float(impl(predicted, actual, 3)), correlation(predicted[:40], actual[:40], 3), "the correlation", 1e-9)


# ---- 16.5: several LoRAs as one --------------------------------------------------------------------------------


def part(rng, rank, width, scale, d_in=5, kind=np.float64):
    """(U, V, scale) of one map, with numbers everywhere."""
    return rng.standard_normal((d_in, rank)).astype(kind), rng.standard_normal((width, rank)).astype(kind), scale


def change_of(parts, widths, d_in=5):
    """The change of the whole map as PEFT has it, (D_out, D_in), entry by entry."""
    out, row = np.zeros((sum(widths), d_in)), 0
    for each, width in zip(parts, widths):
        if each is not None:
            u, v, scale = each
            for i in range(width):
                for j in range(d_in):
                    out[row + i, j] = scale * sum(v[i, r] * u[j, r] for r in range(u.shape[1]))
        row += width
    return out


def fused(impl, parts, widths, rank):
    """Claims on what comes back: shapes, the scale, and the product."""
    told = impl(parts, widths)
    holds(isinstance(told, tuple) and len(told) == 3, "expected three things: A, B and the scale")
    a, b, scale = told
    first = next(each[2] for each in parts if each is not None)
    same(np.array(a.shape), np.array([rank, 5]), "the shape of A", 0)
    same(np.array(b.shape), np.array([sum(widths), rank]), "the shape of B", 0)
    same(float(scale), float(first), "the scale", 1e-12)
    same(scale * (b @ a), change_of(parts, widths), "scale B A", 1e-6)
    return a, b


@exercise("16.5")
def test_one_map(impl, rng):
    """Where the map is one here too, A is U transposed and B is V, bit for bit."""
    u, v, scale = part(rng, 3, 4, 1.5)
    a, b = fused(impl, [(u, v, scale)], [4], 3)
    same(a, u.T, "A", 0)
    same(b, v, "B", 0)


@exercise("16.5")
def test_separate_adapters(impl, rng):
    """Separate adapters are stacked: the ranks add up, and each changes its own outputs only."""
    widths = [4, 2, 3]
    parts = [part(rng, rank, width, 0.5) for rank, width in zip((2, 1, 3), widths)]
    a, b = fused(impl, parts, widths, 6)
    same(a, np.concatenate([u.T for u, _, _ in parts]), "A", 0)
    same(b[4:6, 2:3], parts[1][1], "the middle block of B", 0)


@exercise("16.5")
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_map_without_an_adapter(impl, rng, missing):
    """The outputs of a map without an adapter are not changed, and those behind it keep their place."""
    widths = [4, 2, 3]
    parts = [None if i == missing else part(rng, 2, width, 0.5) for i, width in enumerate(widths)]
    fused(impl, parts, widths, 4)


@exercise("16.5")
def test_scales_that_differ(impl, rng):
    """Where scales differ the product of each part stays what it was."""
    widths = [3, 3]
    fused(impl, [part(rng, 2, 3, 0.5), part(rng, 1, 3, 2.0)], widths, 3)


@exercise("16.5")
def test_a_shared_u(impl, rng):
    """Parts that all have the same U and scale are written with that U once: the rank does not grow."""
    u, _, _ = part(rng, 2, 3, 0.5)
    widths = [3, 4, 2]
    parts = [(u.copy(), rng.standard_normal((width, 2)), 0.5) for width in widths]
    a, b = fused(impl, parts, widths, 2)
    same(a, u.T, "A", 0)
    same(b, np.concatenate([v for _, v, _ in parts]), "B", 0)


@exercise("16.5")
def test_a_u_that_is_shared_in_part(impl, rng):
    """Where a part is missing, or a scale differs, a shared U does not help: blocks are needed."""
    u, _, _ = part(rng, 2, 3, 0.5)
    widths = [3, 4, 2]
    v = [rng.standard_normal((width, 2)) for width in widths]
    fused(impl, [(u, v[0], 0.5), None, (u.copy(), v[2], 0.5)], widths, 4)
    fused(impl, [(u, v[0], 0.5), (u.copy(), v[1], 0.5), (u.copy(), v[2], 1.5)], widths, 6)


@exercise("16.5")
def test_the_type_is_kept(impl, rng):
    """Arrays of float32 stay float32: a file of float64 would be twice as large."""
    widths = [3, 2]
    parts = [part(rng, 1, width, scale, kind=np.float32) for width, scale in zip(widths, (0.5, 2.0))]
    a, b, _ = impl(parts, widths)
    same(a, np.concatenate([u.T for u, _, _ in parts]), "A", 0)
    same(b[3:, 1:], (parts[1][1] * 4).astype(np.float32), "the second block of B", 1e-6)
