"""Wrong answers to lesson 7, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.prompting.pet import FIRST, RAW
from minipeft.prompting.verbalizers import restricted_softmax

# ---- 07.1 ----


@mutant("07.1", "unweighted", "The weights have no part in it; each pair counts for its weight.")
def mean_score(log_q, weights):
    return log_q.mean(axis=0)


@mutant("07.1", "sum", "You took the weighted sum: divide by the sum of the weights, or the scores grow with the number of "
        "pairs and the labels become too sure.")
def mean_score(log_q, weights):
    return (weights[:, None, None] * log_q).sum(axis=0)


@mutant("07.1", "by_their_number", "You divided by the number of pairs; the weights need not have the mean 1, so divide by "
        "their sum.")
def mean_score(log_q, weights):
    return (weights[:, None, None] * log_q).mean(axis=0)


@mutant("07.1", "mean_of_probabilities", "You averaged the probabilities. Averaged are their logarithms, which is what the "
        "logits stand for.")
def mean_score(log_q, weights):
    return np.log(np.tensordot(weights / weights.sum(), np.exp(log_q), axes=1))


@mutant("07.1", "softmax_of_weights", "The weights are used as they are, over their sum; no softmax over the pairs.")
def mean_score(log_q, weights):
    e = np.exp(weights - weights.max())
    return np.tensordot(e / e.sum(), log_q, axes=1)


@mutant("07.1", "in_place", "The numbers are right, but you changed the weights in place: the next call would find others.")
def mean_score(log_q, weights):
    weights /= weights.sum()
    return np.tensordot(weights, log_q, axes=1)


# ---- 07.2 ----


def _mean(log_q, weights):
    return np.tensordot(weights / weights.sum(), log_q, axes=1)


@mutant("07.2", "no_temperature", "The temperature is missing: divide the scores by it before the softmax.")
def soft_labels(self):
    return restricted_softmax(_mean(self.log_q(RAW), self.weights))


@mutant("07.2", "times", "You multiplied by the temperature, which makes the labels harder; divide.")
def soft_labels(self):
    return restricted_softmax(_mean(self.log_q(RAW), self.weights) * self.settings.temperature)


@mutant("07.2", "always_2", "You wrote 2 for the temperature; it is a setting, self.settings.temperature.")
def soft_labels(self):
    return restricted_softmax(_mean(self.log_q(RAW), self.weights) / 2)


@mutant("07.2", "behind_the_softmax", "You divided the probabilities by the temperature, and they no longer add up to 1; divide "
        "the scores.")
def soft_labels(self):
    return restricted_softmax(_mean(self.log_q(RAW), self.weights)) / self.settings.temperature


@mutant("07.2", "unweighted", "The pairs have weights, self.weights; you gave all the same.")
def soft_labels(self):
    return restricted_softmax(self.log_q(RAW).mean(axis=0) / self.settings.temperature)


@mutant("07.2", "mean_of_softmaxes", "You made each pair's answer a soft label and averaged those. First the mean of the "
        "scores, then one softmax.")
def soft_labels(self):
    each = restricted_softmax(self.log_q(RAW) / self.settings.temperature)
    return np.tensordot(self.weights / self.weights.sum(), each, axes=1)


@mutant("07.2", "test_texts", "Those are labels of the test texts. The raw text is the split RAW; test is for measuring and for "
        "nothing else.")
def soft_labels(self):
    return restricted_softmax(_mean(self.log_q("test"), self.weights) / self.settings.temperature)


# ---- 07.3 ----


def _log_q(model, batch):
    z = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    z = z - z.data.max(axis=1, keepdims=True)
    return z - F.log(F.exp(z).sum(axis=1, keepdims=True)), batch.labels.astype(z.dtype)


@mutant("07.3", "hardened", "You took the most probable class as if it were the label; all that the label says of the other "
        "classes is lost.")
def loss(self, model, batch):
    logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    return F.cross_entropy(logits, batch.labels.argmax(axis=1))


@mutant("07.3", "sum_over_the_batch", "You summed over the batch: take the mean, or the learning rate depends on the batch size.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    return -(log_q * t).sum()


@mutant("07.3", "mean_over_classes", "You took the mean over the classes too. Over the classes it is a sum, over the batch a "
        "mean.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    return -(log_q * t).mean()


@mutant("07.3", "divergence", "You subtracted the entropy of the labels as well: that is the divergence of q from t. Its "
        "gradient is the same; asked for is the cross-entropy.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    entropy = -(t * np.log(np.maximum(t, 1e-30))).sum(axis=1).mean()
    return -(log_q * t).sum(axis=1).mean() - entropy.astype(t.dtype)


@mutant("07.3", "other_way_round", "You exchanged the two: the logarithm is that of the classifier's q, and t weighs it.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    return -(F.exp(log_q) * np.log(np.maximum(t, 1e-30)).astype(t.dtype)).sum(axis=1).mean()


@mutant("07.3", "squares", "You took squared differences of probabilities; asked for is the cross-entropy, -sum of t log q.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    return ((F.exp(log_q) - t) ** 2).sum(axis=1).mean()


@mutant("07.3", "overflow", "exp of large logits is infinite: subtract each row's largest logit first; the loss does not change "
        "by it.")
def loss(self, model, batch):
    z = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    t = batch.labels.astype(z.dtype)
    return (F.log(F.exp(z).sum(axis=1)) - (z * t).sum(axis=1)).mean()


@mutant("07.3", "detached", "The number is right and has no gradient: stay with Tensors.")
def loss(self, model, batch):
    log_q, t = _log_q(model, batch)
    return F.Tensor(-(log_q.data * t).sum(axis=1).mean())


# ---- 07.4 ----


@mutant("07.4", "task_in_full", "The task's loss counts for 1 - α; you gave it the full weight.")
def loss(self, model, batch):
    return self.work.loss(model, batch.task) + self.language.loss(model, batch.language) * self.alpha


@mutant("07.4", "exchanged", "α and 1 - α are exchanged: the language model's loss is the one that counts for little.")
def loss(self, model, batch):
    return self.work.loss(model, batch.task) * self.alpha + self.language.loss(model, batch.language) * (1 - self.alpha)


@mutant("07.4", "task_alone", "The auxiliary loss is missing.")
def loss(self, model, batch):
    return self.work.loss(model, batch.task) * (1 - self.alpha)


@mutant("07.4", "one_batch", "Both losses were given the task's batch; the language model has its own, batch.language.")
def loss(self, model, batch):
    return self.work.loss(model, batch.task) * (1 - self.alpha) + self.language.loss(model, batch.task) * self.alpha


@mutant("07.4", "no_gradient", "The number is right, but no gradient comes from the language model's loss, so that it keeps "
        "nothing: do not take .data or .item().")
def loss(self, model, batch):
    return self.work.loss(model, batch.task) * (1 - self.alpha) + self.language.loss(model, batch.language).item() * self.alpha


@mutant("07.4", "half_and_half", "You took the plain mean of the two; α says what each counts for.")
def loss(self, model, batch):
    return (self.work.loss(model, batch.task) + self.language.loss(model, batch.language)) * 0.5


# ---- 07.5 ----


def _labelling(self, log_q, number, generation, rng, others=None, count=None, wanted=None, picked=None, most=None, few=None):
    """The right answer, of which any part may be put otherwise."""
    others = others or (lambda: [i for i in range(len(self.works)) if i != number] or [number])
    count = count or (lambda left: max(1, round(self.settings.share * len(left))))
    picked = picked or (lambda given, p, n: rng.choice(given, n, replace=False, p=p / p.sum()))
    left = others()
    chosen = rng.choice(left, count(left), replace=False)
    q = restricted_softmax(_mean(log_q[chosen], self.weights[chosen]))
    wants = []
    for label in range(len(self.dataset.labels)):
        have = sum(e.label == label for e in self.labelled)
        start = have if self.labelled else FIRST / len(self.dataset.labels)
        n = round(start * self.settings.growth ** (generation + bool(self.labelled))) - have
        wants.append(n if wanted is None else wanted(have, start, n))
    most = min(1.0, len(self.raw) / max(sum(wants), 1)) if most is None else most
    out = []
    for label, n in enumerate(int(n * most) for n in wants):
        given = np.flatnonzero(q.argmax(axis=1) == label)
        if len(given) <= n:
            rows = np.argsort(-q[:, label], kind="stable")[:n] if few is None else few(given)
        else:
            rows = picked(given, q[given, label], n)
        out += [self.raw[i]._replace(label=label) for i in rows]
    return out


@mutant("07.5", "own_labels", "A pair must not label for itself: choose among the other pairs, or it learns its own mistakes.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, others=lambda: list(range(len(self.works))))


@mutant("07.5", "all_others", "All the other pairs labelled; draw a share of them, self.settings.share and at least one, or in "
        "the next generation all pairs think alike.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, count=len)


@mutant("07.5", "labelled_twice", "The caller adds the labelled texts: they are part of d times as many, so take as many fewer.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, wanted=lambda have, start, n: n + have)


@mutant("07.5", "no_growth", "Every generation had as many texts: the factor is d to the power of the generation plus one.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng,
                      wanted=lambda have, start, n: round(start * (self.settings.growth if self.labelled else 1)) - have)


@mutant("07.5", "one_behind", "With labelled texts the first generation (number 0) has d times as many already: the power is "
        "generation + 1. Only where nothing is labelled does it start at the power 0.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng,
                      wanted=lambda have, start, n: round(start * self.settings.growth ** generation) - have)


@mutant("07.5", "surest", "You took the texts of which the pairs are surest, always the same easy ones. Draw by lot, with "
        "probability proportional to the confidence.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, picked=lambda given, p, n: given[np.argsort(-p, kind="stable")[:n]])


@mutant("07.5", "evenly", "You drew all texts of a class with the same probability; those of which the pairs are surer come "
        "more often.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, picked=lambda given, p, n: rng.choice(given, n, replace=False))


@mutant("07.5", "twice_the_same", "You drew with replacement, so that a text may come twice: replace=False.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, picked=lambda given, p, n: rng.choice(given, n, p=p / p.sum()))


@mutant("07.5", "more_than_there_are", "Together the classes got more texts than there are in self.raw, so that one text was "
        "given to several: where they want more, each gets the same share of what it wants.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, most=1.0)


@mutant("07.5", "as_few_as_there_are", "Where too few texts are given a class, fill up with those to which it is the most "
        "probable, or the classes lose their proportion.")
def _labelled_by_others(self, log_q, number, generation, rng):
    return _labelling(self, log_q, number, generation, rng, few=lambda given: given)
