"""An auxiliary language-model loss, so that a model that learns from ten examples keeps its language.

    L = (1 - alpha) L_task + alpha L_language          alpha = 1e-4, because L_language is by far the larger

L_language is that of the model's own pre-training (masked words, the next word, or spans), on raw text of the task.

Source: Schick and Schütze, EACL 2021, arXiv:2001.07676, section 3.2 and appendix B.
"""

from typing import NamedTuple

from ..training.pretraining import CausalLanguageModelling, MaskedLanguageModelling, SpanCorruption
from .templates import SENTINEL, kind_of

ALPHA = 1e-4


class RawTexts:
    """A few raw texts as a corpus for the language-model loss."""

    def __init__(self, texts):
        self.texts, self.held_out = list(texts), list(texts[:1])

    def draw(self, rng, count):
        """``count`` texts, by ``rng``."""
        return [self.texts[i] for i in rng.integers(len(self.texts), size=count)]


def language_work(tokenizer, config, texts, batch_size, max_length):
    """The work of the pre-training of a model's kind, on ``texts``; its evaluation has no part here."""
    settings = {"tokenizer": tokenizer, "corpus": RawTexts(texts), "batch_size": batch_size, "per_round": 1,
                "max_length": max_length}
    kind = kind_of(config)
    if kind == "masked":
        return MaskedLanguageModelling(**settings, probability=0.15)  # the paper's
    if kind == "causal":
        return CausalLanguageModelling(**settings)
    names = [SENTINEL.replace("0", str(number)) for number in range(100)]
    return SpanCorruption(**settings, sentinels=[tokenizer.id_of(name) for name in names if tokenizer.id_of(name) is not None])


class BothBatches(NamedTuple):
    """A batch of the task, and one of raw text."""

    task: object
    language: object

    @property
    def size(self):
        return self.task.size


class WithLanguage:
    """A work with the auxiliary loss; everything else is the work's own.

    Args:
        work: such as a `ClozeClassification`. language: see `language_work`. alpha: what the auxiliary loss counts for.
    """

    def __init__(self, work, language, alpha=ALPHA):
        self.work, self.language, self.alpha = work, language, alpha

    def __getattr__(self, name):  # called only for what is not set here
        if name == "work":
            raise AttributeError(name)
        return getattr(self.work, name)

    def training_batches(self, rng):
        """The batches of an epoch, each with one of raw text."""
        out = []
        for indices in self.work.training_batches(rng):
            (drawn,) = self.language.training_batches(rng)
            out.append((indices, self.language.collate(drawn)))
        return out

    def collate(self, drawn, split="train"):
        """The batch of the task's examples, and the raw text drawn with them."""
        return BothBatches(self.work.collate(drawn[0], split), drawn[1])

    def weight(self, batch):
        """What a batch counts for when several make one step."""
        return self.work.weight(batch.task)

    def loss(self, model, batch):
        """(1 - alpha) L_task + alpha L_language, a Tensor."""
        return self.work.loss(model, batch.task) * (1 - self.alpha) + self.language.loss(model, batch.language) * self.alpha
