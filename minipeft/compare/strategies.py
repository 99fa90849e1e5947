"""Strategies: runs that classify by prompting, with few labels or none; they stand among the methods of a comparison.

    zero_shot       the model as it is, asked through a template
    in_context      the same, behind solved examples
    prompt_based    fine-tuned through the template: everything, or by any attached method (``by``)
    pet, ipet       prompts that were fine-tuned so label raw text, from which a classifier learns (``by``)

All need a template and a verbalizer. Where several are given, PET makes an ensemble of them and the others take the first.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data import Dataset, files
from ..interop import load_pretrained
from ..methods import METHODS, attach, quantise
from ..nn import unwrap
from ..prompting import (RAW, SEEDS, Calibration, ClozeClassification, Demonstrations, Ensemble, PETSettings, RankClassification,
                         Template, Verbalizer, classifier_work, few_shot, kind_of, separator_of, text_vectors)
from ..prompting.demonstrations import half
from ..prompting.toy_prompts import PATTERNS
from ..prompting.verbalizers import tokens_of
from ..training.work import subset
from .exits import Base
from .sources import name_of, read

SOFT = "soft_labels.json"  # in a run's folder: what PET's prompts say of the raw text
FEW_EPOCHS = 30  # passes over a few examples
GENTLE = 0.1     # a prompt answers before any training, and learns from a few texts at so much of a method's learning rate
KINDS = (ClozeClassification, RankClassification)  # by one word at the gap, by whole answers


def toy_prompts(task):
    """([templates], [verbalizers as text]) of a task of the toy world, for those who give none."""
    if task not in PATTERNS:
        raise ValueError(f"template: there are prompts of the package's own for {', '.join(PATTERNS)}; "
                         f"for {task} give --template")
    words = [",".join(f"{word}={label}" for label, word in own.items()) for _, own in PATTERNS[task]]
    return [pattern for pattern, _ in PATTERNS[task]], words


def few(dataset, shots, seed):
    """A data set with K examples of each class for training and as many for dev; the first five seeds are those of LM-BFF."""
    drawn = few_shot(dataset, shots, SEEDS[seed] if seed < len(SEEDS) else max(SEEDS) + seed)  # none of the five once more
    return drawn if shots else Dataset({name: part for name, part in drawn.splits.items() if name != "dev"}, drawn.labels)


def limited(dataset, limit):
    """A data set with at most so many examples in train, those that `Classification` would take; None for all."""
    if limit is None or "train" not in dataset.splits:
        return dataset
    train = dataset.splits["train"]
    return Dataset({**dataset.splits, "train": [train[i] for i in subset(len(train), limit)]}, dataset.labels)


def pairs_of(run, labels):
    """[(`Template`, `Verbalizer`)] of a run; one verbalizer goes with all templates, and one template with all verbalizers."""
    for name in ("template", "verbalizer"):
        if not getattr(run, name):
            raise ValueError(f"{name}: {run.method} asks through a template and reads the answer by a verbalizer; "
                             "give --template and --verbalizer")
    templates = [Template(text) for text in run.template]
    verbalizers = [Verbalizer.parse(text, labels) for text in run.verbalizer]
    count = max(len(templates), len(verbalizers))
    if len(templates) not in (1, count) or len(verbalizers) not in (1, count):
        raise ValueError(f"verbalizer: {len(templates)} templates go with 1 verbalizer or with {len(templates)}, got "
                         f"{len(verbalizers)}")
    return [(templates[i % len(templates)], verbalizers[i % len(verbalizers)]) for i in range(count)]


class Strategy(Base):
    """Base of the strategies: the work that a run does, the model that it loads, and the method that it attaches."""

    by = None  # the method that trains, None for nothing
    ranking = False  # whether it asks by the probability of whole answers

    def method(self, run, tokenizer=None, pair=None):
        """What is attached: the method that trains, with those of the run's options that it has.

        Output tuning has the label words, or the tokens of the answers, of the ``pair``, a template and a verbalizer (default:
        the first).
        """
        if self.by is None:
            return Base()
        if self.by not in METHODS:
            raise ValueError(f"by: expected a method among {', '.join(METHODS)}, got {self.by!r}")
        known = vars(METHODS[self.by]())
        options = {name: value for name, value in run.options.items() if name in known}
        if self.by == "output" and tokenizer is not None:
            template, verbalizer = pair or pairs_of(run, None)[0]
            if self.ranking:  # every token of the answers
                answers = [word for listed in verbalizer.words.values() for word in listed]
                options["words"] = sorted({i for ids in tokens_of(tokenizer, answers, template.spaced) for i in ids})
            else:
                options["words"] = [int(i) for ids in verbalizer.ids(tokenizer, template.spaced) for i in ids]
        return METHODS[self.by](**options)

    def load(self, run, labels, rng):
        """The model of a run, with the head that it was pre-trained with."""
        return with_its_head(run.model)

    def work(self, run, tokenizer, config, dataset, length, told=None, place=None):
        """What a run trains and is scored on.

        ``told`` is called with a line on what takes long, and what that gives is kept in the folder ``place``.

        Raises ValueError where template, verbalizer, data and model do not fit.
        """
        raise NotImplementedError

    def check(self, run, tokenizer, config, dataset, length):
        """Raise ValueError where `work` would, without its long parts."""
        model = with_its_head(run.model)
        self.check_demonstrations(dataset)
        few_rows = Dataset({name: part[:1] for name, part in dataset.splits.items()}, dataset.labels)
        for number, pair in enumerate(self.pairs(run, dataset.labels)):
            KINDS[self.ranking](tokenizer, few_rows, config, *pair, length, run.batch_size, metric=run.metric)
            if self.by not in (None, "fisher_mask"):  # a mask fits every model, and would look at all training texts first
                attach(model, self.method(run, tokenizer, pair), f"pair{number}")

    def check_demonstrations(self, dataset):
        """Raise ValueError where train has too few examples of a class to show as many as are asked for."""
        name = next((name for name in ("per_class", "demonstrations") if getattr(self, name, 0)), None)
        if name is None or "train" not in dataset.splits:
            return
        counts = Counter(e.label for e in dataset.splits["train"])
        label = min(range(len(dataset.labels)), key=lambda label: counts[label])
        most, which = (half(counts[label]), ", the more similar half") if self.similar else (counts[label], "")
        if most < getattr(self, name):
            raise ValueError(f"{name}: expected at most {most}, as many training examples as there are of the class "
                             f"{dataset.labels[label]!r}{which}, got {getattr(self, name)}")

    def pairs(self, run, labels):
        """[(`Template`, `Verbalizer`)] that it asks with: the first of a run's."""
        return pairs_of(run, labels)[:1]


def with_its_head(folder):
    """A model with the head that it was pre-trained with. Raises ValueError where the folder has none that writes words."""
    model = load_pretrained(folder)
    if model.head is None or not hasattr(unwrap(model.head), "project"):
        raise ValueError(f"template: {name_of(folder)} has no language-model head, which fills in the gap; "
                         "expected a model for masked, causal or sequence-to-sequence language modelling")
    return model


@dataclass
class ZeroShot(Strategy):
    """The model as it is, asked through the template.

    Args:
        calibrate: divide out what it answers to a text without content.
        ranking: classify by which class's answer is the most probable, of however many words; else by one word at the gap.
    """

    calibrate: bool = False
    ranking: bool = False

    name = "zero_shot"

    def work(self, run, tokenizer, config, dataset, length, told=None, place=None):
        return self._asked(run, tokenizer, config, dataset, length)

    def _asked(self, run, tokenizer, config, dataset, length, demonstrations=None):
        kind, ((template, verbalizer),) = KINDS[self.ranking], self.pairs(run, dataset.labels)
        work = kind(tokenizer, dataset, config, template, verbalizer, length, run.batch_size, metric=run.metric,
                    demonstrations=demonstrations)
        return Calibration(work, tokenizer, length) if self.calibrate else work


@dataclass
class InContext(ZeroShot):
    """The model as it is, behind solved examples from train, drawn by the seed.

    Args:
        calibrate, ranking: as in `ZeroShot`. per_class: demonstrations of each class, 0 for all there are.
        sets: sets of demonstrations that a prediction is averaged over. similar: draw from the half that is most similar.
    """

    per_class: int = 0
    sets: int = 1
    similar: bool = False

    name = "in_context"

    def work(self, run, tokenizer, config, dataset, length, told=None, place=None):
        if "train" not in dataset.splits:
            raise ValueError(f"in_context: {run.data} has no train split to take demonstrations from")
        shown = drawn(self, self.per_class or None, run, tokenizer, config, dataset, length)
        return self._asked(run, tokenizer, config, dataset, length, shown)


def drawn(strategy, per_class, run, tokenizer, config, dataset, length):
    """The `Demonstrations` of a strategy with ``sets`` and ``similar``: from train, by the run's seed."""
    vectors = text_vectors(load_pretrained(run.model), tokenizer, length) if strategy.similar else None
    return Demonstrations(dataset.splits["train"], per_class, strategy.sets, vectors,
                          separator_of(tokenizer, kind_of(config)), run.seed)


@dataclass
class PromptBased(Strategy):
    """Fine-tuning through the template.

    Args:
        by: the method that trains. ranking: train it to write the class's whole answer; else the one word at the gap.
        demonstrations: so many solved examples of each class stand before every text, drawn anew in each epoch.
        sets, similar: as in `InContext`.
    """

    by: str = "full"
    ranking: bool = False
    demonstrations: int = 0
    sets: int = 1
    similar: bool = False

    name = "prompt_based"

    def work(self, run, tokenizer, config, dataset, length, told=None, place=None):
        kind, ((template, verbalizer),) = KINDS[self.ranking], self.pairs(run, dataset.labels)
        count = self.demonstrations
        shown = drawn(self, count, run, tokenizer, config, dataset, length) if count else None
        return kind(tokenizer, dataset, config, template, verbalizer, length, run.batch_size, metric=run.metric,
                    demonstrations=shown)


@dataclass
class PET(Strategy):
    """Prompts label raw text, and a classifier learns from it.

    Args:
        by: the method that trains, the prompts and the classifier; L2-SP, mixout, unfreezing and rates by layer bear on the
            classifier alone. weighted: weigh the prompts by their accuracy before training.
        pair_steps: steps in the training of each prompt, however many texts it learns from. pair_models: models of each prompt,
            trained with seeds of their own.
    """

    by: str = "full"
    weighted: bool = False
    pair_steps: int = 100
    pair_models: int = 1

    name = "pet"

    def pairs(self, run, labels):
        """All of a run's, each of which is trained."""
        return pairs_of(run, labels)

    def number(self):
        """How many generations, None for as many as are needed."""
        return 0

    def method(self, run, tokenizer=None, pair=None):
        """Of a ``pair``, or without one the classifier's, which has no label words."""
        return super().method(run, pair and tokenizer, pair)

    def load(self, run, labels, rng):
        """The classifier."""
        return load_pretrained(run.model, task="classify", labels=labels, pooling=run.pooling, rng=rng)

    def work(self, run, tokenizer, config, dataset, length, told=None, place=None):
        """The classifier's work: the prompts are trained and label the raw text, unless a run before this one had got so far."""
        dataset = Dataset({**dataset.splits, RAW: self._raw(run, dataset)}, dataset.labels)
        soft, kept = None, None if place is None else Path(place) / SOFT
        if kept is not None and kept.is_file():
            before = files.read_json(kept, "soft labels")
            soft = before["soft"] if before["run"] == asdict(run) else None
        if soft is None:
            classifier = run.settings()
            prompts = replace(classifier, lr=GENTLE * run.lr, epochs=self.pair_steps, max_steps=self.pair_steps)
            settings = PETSettings(prompts, classifier, weighted=self.weighted, generations=self.number(),
                                   models=self.pair_models)
            model = with_its_head(run.model)
            if run.base_bits:
                quantise(model)
            ensemble = Ensemble(model, tokenizer, dataset, self.pairs(run, dataset.labels),
                                lambda *pair: self.method(run, tokenizer, pair), length, settings, told)
            soft = ensemble.run().soft_labels().tolist()
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(kept, {"run": asdict(run), "soft": soft})
        return classifier_work(tokenizer, dataset, soft, length, run.batch_size, run.metric)

    def _raw(self, run, dataset):
        """The raw texts, as examples without a class; those that ``dataset`` has are left out."""
        if not run.unlabelled:
            raise ValueError(f"unlabelled: {run.method} learns from raw text; give --unlabelled PATH")
        parts = read(run.unlabelled, "classify", need_labels=False, split=False).splits
        known = {(e.text, e.text2) for part in dataset.splits.values() for e in part}
        raw = [e._replace(label=None) for e in parts.get("train", next(iter(parts.values()))) if (e.text, e.text2) not in known]
        if not raw:
            raise ValueError(f"unlabelled: {run.unlabelled} has no text that the labelled data has not; "
                             "expected raw text to label")
        return raw

    def check(self, run, tokenizer, config, dataset, length):
        self._raw(run, dataset)
        super().check(run, tokenizer, config, dataset, length)


@dataclass
class IPET(PET):
    """PET in generations.

    Args:
        as those of `PET`. generations: how many, 0 for as many as lead to 1,000 labelled texts.
    """

    generations: int = 0

    name = "ipet"

    def number(self):
        return self.generations or None


STRATEGIES = {strategy.name: strategy for strategy in (ZeroShot, InContext, PromptBased, PET, IPET)}
