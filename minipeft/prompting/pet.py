"""PET, pattern-exploiting training: a few labelled texts teach several prompts, these label raw text, and a classifier learns it.

    1  for each pattern-verbalizer pair p: fine-tune the model by prompting on the labelled texts                       q_p(l | x)
    2  on raw text:  s(l | x) = sum over p of w_p log q_p(l | x) / sum of w_p,      soft labels t = softmax(s / T), T = 2
    3  a classifier with an ordinary head is trained on the raw text:                -mean of sum over l of t_l log q(l | x)

w_p is 1, or the accuracy of pair p on the labelled texts before training. (The papers average logits; log q_p differs from them
by what is the same for every class, which step 2's softmax does not see.) The pairs are attachments of one model.

iPET goes through step 1 again, in generations: each pair is trained afresh on the labelled texts and on raw text that a part of
the other pairs has labelled, d times as much for each class in every generation,

    c_j(l) = d c_{j-1}(l),        drawn among the texts that they give class l, with probability proportional to their confidence,

as far as there is raw text for it: where there is less, every class gets the same share of what it should. (Else a small store of
raw text would give each text to every class.) Without any labelled text the first generation is labelled by the untrained pairs.

Sources: Schick and Schütze, EACL 2021, arXiv:2001.07676, sections 3.2 to 3.4; NAACL 2021, arXiv:2009.07118.
"""

from dataclasses import dataclass, replace

import numpy as np

from .. import autograd as F
from ..data import Dataset
from ..methods import activate, attach
from ..training import Classification, Settings, fit
from .auxiliary import ALPHA, WithLanguage, language_work
from .cloze import ClozeClassification
from .verbalizers import restricted_softmax

RAW = "unlabelled"  # the split of the raw text
FIRST = 10          # texts that iPET starts from where none are labelled, in all


@dataclass
class PETSettings:
    """How PET trains.

    ``training``: of each pair; ``classifier``: of the classifier. ``alpha``: of the auxiliary loss. ``temperature``: T.
    ``weighted``: weigh pairs by their accuracy before training. ``share``: of the other pairs, which label for one; ``growth``:
    d; ``until``: how many labelled texts the last generation reaches at least; ``generations``: how many, None for as many as
    that takes, 0 for PET. ``models``: of each pair, which differ by the seed of their training alone (the papers have three).
    """

    training: Settings
    classifier: Settings
    alpha: float = ALPHA
    temperature: float = 2.0
    weighted: bool = False
    share: float = 0.25
    growth: float = 5.0
    until: int = 1000
    generations: "int | None" = 0
    models: int = 1

    def number_of_generations(self, labelled):
        """k = ceil(log_d(until / labelled)); where nothing is labelled the first generation starts from `FIRST`, so one more."""
        if self.generations is not None:
            return self.generations
        k = int(np.ceil(np.log(self.until / (labelled or FIRST)) / np.log(self.growth) - 1e-9))
        return max(0, k) if labelled else max(0, k) + 1


class SoftClassification(Classification):
    """Texts with a probability for each class in the place of a class; ``soft``: {split: (N, C)}."""

    def __init__(self, *args, soft, **more):
        super().__init__(*args, **more)
        self.soft = soft

    def collate(self, indices, split="train"):
        """The batch, whose labels (B, C) are probabilities where the split has such."""
        batch = super().collate(indices, split)
        if split in self.soft:
            batch.labels = self.soft[split][indices]
        return batch

    def loss(self, model, batch):
        """-mean over the batch of sum over l of t_l log q_l, a Tensor."""
        z = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits  # (B, C)
        t = batch.labels.astype(z.dtype)
        z = z - z.data.max(axis=1, keepdims=True)
        return (F.log(F.exp(z).sum(axis=1)) - (z * t).sum(axis=1)).mean()


class Ensemble:
    """A model with an attachment for each pattern-verbalizer pair.

    Args:
        model: with its language-model head. tokenizer, dataset, max_length: as for `ClozeClassification`; the dataset has the
            splits train (the labelled texts, which may be none) and, where there is raw text, "unlabelled".
        pairs: [(`Template`, `Verbalizer`)]. method: a function from a pair's template and verbalizer
            to the `Method` that trains it.
        settings: `PETSettings`. progress: called with a line on what is done.
    """

    def __init__(self, model, tokenizer, dataset, pairs, method, max_length, settings, progress=None):
        self.model, self.tokenizer, self.dataset, self.method, self.settings = model, tokenizer, dataset, method, settings
        self.max_length, self.progress = max_length, progress or (lambda line: None)
        # nothing is chosen
        read = Dataset({name: part for name, part in dataset.splits.items() if name != "dev"}, dataset.labels)
        self.works = [ClozeClassification(tokenizer, read, model.config, template, verbalizer, max_length,
                                          settings.training.batch_size) for template, verbalizer in pairs] * settings.models
        self.names = [f"pair{number}" for number in range(len(self.works))]
        self.seeds = [settings.training.seed + number // len(pairs) for number in range(len(self.works))]
        self.labelled, self.raw = dataset.splits["train"], dataset.splits.get(RAW, [])
        self.trained = [False] * len(self.works)
        self.weights = np.ones(len(self.works))
        if settings.weighted and self.labelled:
            self.weights = np.array([max(work.evaluate(model, "train")["accuracy"], 1e-3) for work in self.works])
        texts = [" ".join(filter(None, (e.text, e.text2))) for e in (*self.labelled, *self.raw)]
        self.language = self.raw and language_work(tokenizer, model.config, texts, settings.training.batch_size, max_length)

    def train(self, number, examples):
        """Train a pair afresh, on these examples."""
        work, name, settings = self.works[number], self.names[number], self.settings
        if self.trained[number]:
            self.model.attachments[name].detach()
        work.add("train", self.tokenizer, examples, self.max_length)
        method = self.method(work.template, work.verbalizer)
        # or what trains the base itself would go on from the last pair's numbers, and leave all pairs alike
        method.keeps_base = True
        both = WithLanguage(work, self.language, settings.alpha) if self.language and settings.alpha else work
        train_by(self.model, method, work, both, replace(settings.training, seed=self.seeds[number]), name,
                 np.random.default_rng([settings.training.seed, number]))
        self.trained[number] = True

    def enter(self, number):
        """Make a pair's attachment the active one; one that is not trained is the model as it is."""
        if vars(self.model).get("attachments"):
            activate(self.model, *[self.names[number]] * self.trained[number])

    def log_q(self, split):
        """log q_p (P, N, C) of every pair on a split."""
        out = []
        for number, work in enumerate(self.works):
            self.enter(number)
            out.append(np.log(np.maximum(work.predict(self.model, split), 1e-30)))
        return np.array(out)

    def predict(self, split):
        """Probabilities (N, C) of all pairs together."""
        return restricted_softmax(mean_score(self.log_q(split), self.weights))

    def evaluate(self, split):
        """The accuracy of all pairs together on a split with classes."""
        return float((self.predict(split).argmax(axis=1) == self.works[0].targets[split]).mean())

    def run(self):
        """Steps 1 and, for iPET, its generations; returns self."""
        generations = self.settings.number_of_generations(len(self.labelled))
        if self.labelled:
            for number in range(len(self.works)):
                self.train(number, self.labelled)
                self.progress(f"prompt {number + 1} of {len(self.works)} trained on {len(self.labelled)} texts")
        for generation in range(generations if self.raw else 0):
            log_q = self.log_q(RAW)
            for number in range(len(self.works)):
                rng = np.random.default_rng([self.settings.training.seed, generation, number])
                examples = [*self.labelled, *self._labelled_by_others(log_q, number, generation, rng)]
                self.train(number, examples)
                self.progress(f"generation {generation + 1} of {generations}: "
                              f"prompt {number + 1} of {len(self.works)} trained on {len(examples)} texts")
        return self

    def _labelled_by_others(self, log_q, number, generation, rng):
        """Raw texts with the classes that a part of the other pairs gives them."""
        others = [i for i in range(len(self.works)) if i != number] or [number]
        chosen = rng.choice(others, max(1, round(self.settings.share * len(others))), replace=False)
        q = restricted_softmax(mean_score(log_q[chosen], self.weights[chosen]))  # (N, C)
        have = [sum(e.label == label for e in self.labelled) for label in range(len(self.dataset.labels))]
        start, power = (have, generation + 1) if self.labelled else ([FIRST / len(have)] * len(have), generation)
        wanted = [round(c * self.settings.growth**power) - n for c, n in zip(start, have)]
        most, out = min(1.0, len(self.raw) / max(sum(wanted), 1)), []  # no more in all than there is raw text
        for label, number in enumerate(int(n * most) for n in wanted):
            given = np.flatnonzero(q.argmax(axis=1) == label)
            if len(given) <= number:  # too few texts have this class: those that come nearest to it
                picked = np.argsort(-q[:, label], kind="stable")[:number]
            else:
                confidence = q[given, label]
                picked = rng.choice(given, number, replace=False, p=confidence / confidence.sum())
            out += [self.raw[i]._replace(label=label) for i in picked]
        return out

    def soft_labels(self):
        """t (N, C) of the raw text."""
        return restricted_softmax(mean_score(self.log_q(RAW), self.weights) / self.settings.temperature)


def mean_score(log_q, weights):
    """s (N, C), the weighted mean over the pairs of log q (P, N, C)."""
    return np.tensordot(weights / weights.sum(), log_q, axes=1)


def classifier_work(tokenizer, dataset, soft, max_length, batch_size, metric="accuracy"):
    """The `SoftClassification` of step 3: the raw text of a data set with its soft labels (N, C); the other splits but train as
    they are. Raises ValueError where there is no raw text."""
    if not dataset.splits.get(RAW):
        raise ValueError("PET: there is no raw text for a classifier to learn from; give some, or use the ensemble itself")
    splits = {name: part for name, part in dataset.splits.items() if name not in ("train", RAW)}
    return SoftClassification(tokenizer, Dataset({"train": dataset.splits[RAW], **splits}, dataset.labels), max_length,
                              batch_size, metric, soft={"train": np.asarray(soft)})


def train_by(model, method, work, trained_on, settings, name="default", rng=None):
    """Attach a method that may look at ``work`` first, and train it on ``trained_on``; returns the attachment."""
    method.prepare(model, work, rng)
    attachment = attach(model, method, name, rng)
    fit(model, attachment.named_parameters(), trained_on, settings, hooks=method.hooks(attachment), lr_scale=method.lr_scale)
    return attachment


def distil(ensemble, classifier, method, metric="accuracy"):
    """Step 3: train ``classifier``, a model with a classification head, by ``method`` on what an ensemble that has run labels.

    Returns:
        (the attachment on ``classifier``, the `SoftClassification`, whose other splits can be evaluated).
    """
    settings, soft = ensemble.settings.classifier, ensemble.soft_labels() if ensemble.raw else ()
    work = classifier_work(ensemble.tokenizer, ensemble.dataset, soft, ensemble.max_length, settings.batch_size, metric)
    return train_by(classifier, method, work, work, settings, rng=np.random.default_rng(settings.seed)), work
