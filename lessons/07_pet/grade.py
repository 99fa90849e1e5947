"""What an answer to lesson 7 must do: the mean score, soft labels, their loss, the auxiliary loss, a generation's examples."""

from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.data import Batch, Dataset, Example
from minipeft.learn.claims import exercise, holds, same, sizes


def logs(rng, *shape):
    """log q of distributions over the last axis."""
    z = 2 * rng.standard_normal(shape)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(s):
    """Row by row, number by number."""
    out = np.zeros(s.shape)
    for place in np.ndindex(s.shape[:-1]):
        e = [np.exp(v - max(s[place])) for v in s[place]]
        out[place] = [v / sum(e) for v in e]
    return out


def averaged(log_q, weights):
    """sum of w_p log q_p / sum of w_p, number by number."""
    out = np.zeros(log_q.shape[1:])
    for n, c in np.ndindex(out.shape):
        out[n, c] = sum(w * log_q[p, n, c] for p, w in enumerate(weights)) / sum(weights)
    return out


# ---- 07.1: the mean score --------------------------------------------------------------------------------------


@exercise("07.1")
def test_the_weighted_mean(impl, rng):
    """s(l | x) is the sum of w_p log q_p(l | x) over the pairs, divided by the sum of w_p."""
    pairs, texts, classes = sizes(rng, 3)
    log_q, weights = logs(rng, pairs, texts, classes), rng.uniform(0.4, 1, pairs)
    same(impl(log_q, weights), averaged(log_q, weights), "s", 1e-12)


@exercise("07.1")
def test_equal_weights(impl, rng):
    """Where all weigh the same, s is the mean over the pairs, whatever the weight is."""
    log_q = logs(rng, *sizes(rng, 3))
    for weight in (1.0, 0.25):
        same(impl(log_q, np.full(len(log_q), weight)), log_q.mean(axis=0), f"s where every weight is {weight}", 1e-12)


@exercise("07.1")
def test_one_pair(impl, rng):
    """Of one pair s is its own log q; of two pairs, one of which weighs nothing, that of the other."""
    log_q = logs(rng, 2, 3, 4)
    same(impl(log_q[:1], np.array([0.3])), log_q[0], "s of one pair", 1e-12)
    same(impl(log_q, np.array([0.0, 2.0])), log_q[1], "s where the first pair weighs nothing", 1e-12)


@exercise("07.1")
def test_nothing_is_changed(impl, rng):
    """The arrays that are given stay as they are."""
    log_q, weights = logs(rng, 3, 2, 2), np.array([2.0, 1.0, 3.0])
    before = log_q.copy(), weights.copy()
    impl(log_q, weights)
    holds(np.array_equal(log_q, before[0]) and np.array_equal(weights, before[1]), "log q or the weights were changed in place")


# ---- 07.2: soft labels -----------------------------------------------------------------------------------------


def ensemble(impl, log_q, weights, temperature):
    """An `Ensemble` whose pairs have answered already: ``log_q`` is {split: (P, N, C)}."""
    out = impl.__new__(impl)
    out.weights, out.settings, out.log_q = weights, SimpleNamespace(temperature=temperature), lambda split: log_q[split]
    return out


@exercise("07.2")
@pytest.mark.parametrize("temperature", [2.0, 0.7, 5.0])
def test_the_softmax_at_a_temperature(impl, rng, temperature):
    """t is the softmax of s / T over the classes, with s the weighted mean of log q."""
    shape = sizes(rng, 3)
    log_q, weights = logs(rng, *shape), rng.uniform(0.4, 1, shape[0])
    of = {"unlabelled": log_q, "test": logs(rng, *shape), "train": logs(rng, *shape)}
    same(ensemble(impl, of, weights, temperature).soft_labels(), softmax(averaged(log_q, weights) / temperature), "t", 1e-10)


@exercise("07.2")
def test_at_temperature_1_and_one_pair(impl, rng):
    """One pair at temperature 1 says just what it thinks: t is q."""
    log_q = logs(rng, 1, 4, 3)
    same(ensemble(impl, {"unlabelled": log_q}, np.ones(1), 1.0).soft_labels(), np.exp(log_q[0]), "t", 1e-10)


@exercise("07.2")
def test_a_high_temperature(impl, rng):
    """The higher the temperature, the more alike the classes; which one is the most probable stays."""
    texts, classes = sizes(rng, 2, low=3)
    log_q, weights = logs(rng, 2, texts, classes), np.ones(2)
    cold, warm = (ensemble(impl, {"unlabelled": log_q}, weights, t).soft_labels() for t in (1.0, 3.0))
    expected = softmax(averaged(log_q, weights))
    holds((warm.max(axis=1) < cold.max(axis=1)).all(), "at temperature 3 some label is no softer than at temperature 1")
    holds((warm.argmax(axis=1) == expected.argmax(axis=1)).all(), "at temperature 3 another class became the most probable")


# ---- 07.3: the loss of soft labels -----------------------------------------------------------------------------


def soft_work(impl, classes=3):
    """A `SoftClassification` without any data."""
    work = impl.__new__(impl)
    work.soft, work.labels, work.label_smoothing = {}, tuple("abcdef"[:classes]), 0.0
    return work


class Fixed:
    """A model that gives these logits, and remembers what it was asked."""

    def __init__(self, logits):
        self.logits, self.asked = logits, []

    def __call__(self, *given, **named):
        self.asked.append((*given, *named.values()))
        return SimpleNamespace(logits=self.logits)


def soft_batch(rng, rows=4, classes=3, dtype=np.float64):
    """(model with logits, batch with soft labels, z, t)."""
    z, t = 2 * rng.standard_normal((rows, classes)), rng.dirichlet(np.ones(classes), rows)
    batch = Batch(rng.integers(5, 20, (rows, 6)), np.ones((rows, 6), bool), np.zeros((rows, 6), np.int64), t)
    return Fixed(Tensor(z.astype(dtype), requires_grad=True)), batch, z, t


def soft_cross_entropy(z, t):
    """-mean over rows of sum over classes of t log q, number by number."""
    rows = []
    for i in range(len(z)):
        top = max(z[i])
        norm = top + np.log(sum(np.exp(v - top) for v in z[i]))
        rows.append(-sum(t[i, c] * (z[i, c] - norm) for c in range(z.shape[1])))
    return sum(rows) / len(rows)


@exercise("07.3")
def test_the_cross_entropy(impl, rng):
    """The loss is -mean over the batch of sum over the classes of t log q, a Tensor with one number."""
    rows, classes = sizes(rng, 2)
    model, batch, z, t = soft_batch(rng, rows, classes)
    same(soft_work(impl, classes).loss(model, batch), Tensor(np.array(soft_cross_entropy(z, t))), "the loss", 1e-10)


@exercise("07.3")
def test_hard_labels(impl, rng):
    """Where all of t is on one class, it is the ordinary cross-entropy; and one text is a batch as well."""
    for rows in (5, 1):
        model, batch, z, _ = soft_batch(rng, rows)
        labels = rng.integers(3, size=rows)
        batch.labels = np.eye(3)[labels]
        q = softmax(z)
        expected = -sum(np.log(q[i, c]) for i, c in enumerate(labels)) / rows
        same(soft_work(impl).loss(model, batch), Tensor(np.array(expected)), f"the loss of {rows} hard labels", 1e-10)


@exercise("07.3")
def test_the_gradient(impl, rng):
    """dL/dz is (q - t) / B, times the gradient from above: it is zero where the classifier says just what the soft label says."""
    rows, classes = sizes(rng, 2)
    model, batch, z, t = soft_batch(rng, rows, classes)
    g = rng.uniform(0.5, 2)
    loss = soft_work(impl, classes).loss(model, batch)
    holds(isinstance(loss, Tensor) and loss.requires_grad, "the loss is no Tensor with a gradient")
    loss.backward(np.array(g))
    same(model.logits.grad, g * (softmax(z) - t) / len(z), "dL/dz", 1e-9)


@exercise("07.3")
def test_large_logits_and_single_precision(impl, rng):
    """Logits in the thousands give no infinity, and a model in float32 has a loss in float32."""
    model, batch, z, t = soft_batch(rng, dtype=np.float32)
    model.logits.data *= np.float32(1000)
    with np.errstate(all="ignore"):
        expected = soft_cross_entropy(model.logits.data.astype(np.float64), t)
        same(soft_work(impl).loss(model, batch), Tensor(np.array(expected, np.float32)), "the loss", 1e-4)


@exercise("07.3")
def test_what_the_model_reads(impl, rng):
    """The model is called with the batch's ids and its mask, so that padding is not read."""
    model, batch, _, _ = soft_batch(rng)
    batch.attention_mask[1, 3:] = False
    soft_work(impl).loss(model, batch)
    for given, name in ((batch.input_ids, "the ids"), (batch.attention_mask, "the attention mask")):
        holds(any(each is given for each in model.asked[0]), f"the model was called without {name} of the batch")


# ---- 07.4: the auxiliary loss ----------------------------------------------------------------------------------


class Work:
    """A work whose loss is the sum of the model's numbers times a factor of the batch's."""

    def __init__(self, power):
        self.power, self.seen = power, []

    def loss(self, model, batch):
        self.seen.append(batch)
        return (model**self.power * batch).sum()


def both(impl, alpha):
    """A work of both kinds."""
    return impl(Work(2), Work(3), alpha)


@exercise("07.4")
@pytest.mark.parametrize("alpha", [1e-4, 0.3, 0.0])
def test_the_weighted_sum(impl, rng, alpha):
    """L is (1 - alpha) L_task + alpha L_language."""
    from minipeft.prompting.auxiliary import BothBatches

    x, a, b = rng.standard_normal((3, *sizes(rng, 1)))
    expected = (1 - alpha) * sum(x**2 * a) + alpha * sum(x**3 * b)
    same(both(impl, alpha).loss(Tensor(x), BothBatches(a, b)), Tensor(np.array(expected)), f"L for alpha {alpha}", 1e-10)


@exercise("07.4")
def test_each_has_its_own_batch(impl, rng):
    """The task's loss is of batch.task, the language model's of batch.language."""
    from minipeft.prompting.auxiliary import BothBatches

    work, a, b = both(impl, 0.5), rng.standard_normal(3), rng.standard_normal(3)
    work.loss(Tensor(rng.standard_normal(3)), BothBatches(a, b))
    for part, batch, name in (("work", a, "task"), ("language", b, "language")):
        seen = [id(each) for each in getattr(work, part).seen]
        holds(seen == [id(batch)], f"the loss of self.{part} was not asked for once, with batch.{name}")


@exercise("07.4")
def test_gradients_of_both(impl, rng):
    """Gradients come from both losses, in the same proportion."""
    from minipeft.prompting.auxiliary import BothBatches

    x, a, b = rng.standard_normal((3, *sizes(rng, 1)))
    x = Tensor(x, requires_grad=True)
    g = rng.uniform(0.5, 2)
    both(impl, 0.2).loss(x, BothBatches(a, b)).backward(np.array(g))
    same(x.grad, g * (0.8 * 2 * x.data * a + 0.2 * 3 * x.data**2 * b), "dL/dx", 1e-10)


# ---- 07.5: what a generation learns from -----------------------------------------------------------------------

RAW_TEXTS = 120


def growing(impl, pairs, have=(), share=1.0, growth=3.0, weights=None, classes=2):
    """An `Ensemble` with so many labelled texts of each class, and `RAW_TEXTS` raw ones."""
    out = impl.__new__(impl)
    labels = ("negative", "positive", "neither")[:classes]
    out.labelled = [Example(f"labelled {label} {i}", None, label) for label, count in enumerate(have) for i in range(count)]
    out.raw = [Example(f"raw {i}", None, None) for i in range(RAW_TEXTS)]
    out.works, out.weights = [None] * pairs, np.ones(pairs) if weights is None else np.array(weights)
    out.dataset, out.settings = Dataset({}, labels), SimpleNamespace(share=share, growth=growth)
    return out


def sure(classes, confidence=0.9, count=2):
    """log q (N, C) of a pair that gives text i the class ``classes[i]``."""
    q = np.full((len(classes), count), (1 - confidence) / (count - 1))
    q[np.arange(len(classes)), classes] = confidence
    return np.log(q)


def numbers(examples, label):
    """Which raw texts have this class, by number."""
    return [int(e.text.split()[1]) for e in examples if e.label == label]


def check(examples):
    """The answer is a list of examples from the raw text, each of which has a class now, and none twice in a class."""
    examples = list(examples)
    holds(all(isinstance(e, Example) and e.label is not None for e in examples), "expected examples that have a class")
    holds(all(e.text.startswith("raw ") for e in examples), "expected raw texts only; the labelled ones are added by the caller")
    holds(len({(e.text, e.label) for e in examples}) == len(examples), "a text stands there twice with the same class")
    return examples


@exercise("07.5")
@pytest.mark.parametrize("generation", [0, 1])
def test_each_class_grows(impl, rng, generation):
    """With the labelled texts, a class has d^(j+1) times as many texts in generation j as it has labelled ones."""
    have = sizes(rng, 2, high=5)
    log_q = np.array([sure(np.arange(RAW_TEXTS) % 2)] * 3)
    out = check(growing(impl, 3, have)._labelled_by_others(log_q, 0, generation, rng))
    for label in (0, 1):
        same(float(len(numbers(out, label))), float(have[label] * 3 ** (generation + 1) - have[label]),
             f"the raw texts of class {label} in generation {generation}", 0)


@exercise("07.5")
def test_without_labels(impl, rng):
    """Where nothing is labelled, the first generation has 10 texts, as many of each class, and the next one d times as many."""
    log_q = np.array([sure(np.arange(RAW_TEXTS) % 2)] * 3)
    for generation, expected in ((0, 5), (1, 15)):
        out = check(growing(impl, 3)._labelled_by_others(log_q, 1, generation, rng))
        for label in (0, 1):
            count = len(numbers(out, label))
            same(float(count), float(expected), f"the raw texts of class {label} in generation {generation}", 0)


@exercise("07.5")
def test_the_class_is_that_which_is_given(impl, rng):
    """A text has the class to which the chosen pairs give the most, by their weighted mean."""
    classes = np.arange(RAW_TEXTS) % 2
    log_q = np.array([sure(classes), sure(classes, 0.7), sure(1 - classes, 0.8)])
    out = check(growing(impl, 3, (2, 2), weights=[1.0, 5.0, 1.0])._labelled_by_others(log_q, 0, 0, rng))
    for label in (0, 1):
        holds(all(classes[i] == label for i in numbers(out, label)), "a text has not the class that the others give it")


@exercise("07.5")
def test_a_pair_has_no_part_in_its_own_labels(impl, rng):
    """What a pair itself says has no part in what it learns from; a pair that is alone labels for itself."""
    classes = np.arange(RAW_TEXTS) % 2
    log_q = np.array([sure(1 - classes, 0.999), sure(classes, 0.7), sure(classes, 0.7)])
    out = check(growing(impl, 3, (2, 2))._labelled_by_others(log_q, 0, 0, rng))
    holds(all(classes[i] == label for label in (0, 1) for i in numbers(out, label)), "pair 0 labelled texts for itself")
    alone = check(growing(impl, 1, (2, 2))._labelled_by_others(log_q[:1], 0, 0, rng))
    holds(all(classes[i] != label for label in (0, 1) for i in numbers(alone, label)), "the only pair did not label for itself")


@exercise("07.5")
def test_a_part_of_the_others(impl, rng):
    """Of the other pairs a share is drawn, at least one: of four others and a share of a quarter one, and not always the same."""
    of_block = lambda p: (np.arange(RAW_TEXTS) // 24 != p).astype(int)  # pair p: block p is of class 0
    log_q = np.array([sure(of_block(p), 0.9 - 0.01 * p) for p in range(5)])
    blocks = []
    for _ in range(12):
        out = check(growing(impl, 5, (2, 2), share=0.25)._labelled_by_others(log_q, 4, 0, rng))
        blocks.append({i // 24 for i in numbers(out, 0)})
    one = all(len(each) == 1 and each < {0, 1, 2, 3} for each in blocks)
    holds(one, f"the texts of class 0 were labelled by the pairs {blocks}; expected one of the pairs 0 to 3 each time")
    holds(len(set(map(tuple, blocks))) > 1, "it is always the same pair that labels")


@exercise("07.5")
def test_by_confidence(impl, rng):
    """The texts of a class are drawn by lot, those of which the pairs are surer more often: in proportion to the confidence."""
    q0 = np.where(np.arange(RAW_TEXTS) < 60, 0.01, np.where(np.arange(RAW_TEXTS) < 90, 0.95, 0.55))
    log_q, counts = np.log(np.array([np.stack([q0, 1 - q0], axis=1)] * 2)), np.zeros(RAW_TEXTS)
    work = growing(impl, 2, (3, 3))
    for _ in range(300):
        for i in numbers(check(work._labelled_by_others(log_q, 0, 0, rng)), 0):
            counts[i] += 1
    sure_ones, others = counts[60:90].mean(), counts[90:].mean()
    holds(counts[60:].min() > 0, "some texts of the class are never drawn, although all have a chance")
    ratio = sure_ones / max(others, 1e-9)
    holds(1.35 < ratio < 2.15, f"texts of confidence 0.95 were drawn {ratio:.2f} times as often as those of 0.55, not 1.7 times")


@exercise("07.5")
def test_too_few_texts_of_a_class(impl, rng):
    """Where fewer texts are given a class than are wanted, those are taken to which the class is the most probable."""
    q0 = 0.45 - 0.003 * rng.permutation(RAW_TEXTS)  # no text is of class 0
    log_q = np.log(np.array([np.stack([q0, 1 - q0], axis=1)] * 2))
    out = check(growing(impl, 2, (4, 4))._labelled_by_others(log_q, 1, 0, rng))
    expected = sorted(np.argsort(-q0)[:8].tolist())
    holds(sorted(numbers(out, 0)) == expected, "expected the eight texts of which class 0 is the most probable")


@exercise("07.5")
@pytest.mark.parametrize("have, generation, expected", [((30, 30), 1, (60, 60)), ((20, 10), 1, (80, 40))])
def test_no_more_than_there_is(impl, rng, have, generation, expected):
    """Where the classes together want more texts than there are raw ones, each gets the same share of what it wants."""
    log_q = np.array([sure(np.arange(RAW_TEXTS) % 3 // 2)] * 3)
    out = check(growing(impl, 3, have)._labelled_by_others(log_q, 0, generation, rng))
    for label in (0, 1):
        same(float(len(numbers(out, label))), float(expected[label]), f"the raw texts of class {label}, of {RAW_TEXTS} in all", 0)
