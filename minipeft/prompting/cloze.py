"""Classifying by a gap: a text in a template, the model's logits where the gap is, and of these only the label words'.

    h = the state at the gap,   z = h E^T (and what else the head has),   s_c = mean of z over the words of c,   q = softmax of s
    training:  -mean log q(right class)

Nothing is added to the model and its own head is used, so that it classifies before any training (zero-shot), and any attached
method trains it. For masked, causal and sequence-to-sequence models.

Sources: Schick and Schütze, EACL 2021, arXiv:2001.07676, section 3.1; Gao, Fisch, Chen, ACL 2021, arXiv:2012.15723, section 4.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..autograd import no_grad
from ..data import Batch, Encoding, collate, make_batches
from ..training.metrics import METRICS
from ..training.work import Classification
from .templates import SENTINEL, kind_of
from .verbalizers import class_scores, restricted_softmax


@dataclass(eq=False)
class ClozeBatch(Batch):
    """A `Batch` whose rows are read at ``places`` (B,): indices of tokens."""

    places: "np.ndarray | None" = None


def gap_logits(model, batch, start=None):
    """The model's logits (B, V) at the gap of each row, a Tensor.

    Args:
        model: an encoder or decoder with a language-model head, or an encoder-decoder. batch: a `ClozeBatch`.
        start: (tokens,) what an encoder-decoder's decoder has written before the gap, the start token first.
    """
    if start is not None:
        written = np.tile(np.asarray(start, np.int64), (batch.size, 1))  # (B, S)
        states = model(batch.input_ids, batch.attention_mask, decoder_input_ids=written).last_hidden_state  # (B, S, D)
        return model.head.project(states[:, len(start) - 1])  # (B, V)
    virtual = model.embed.tokens.virtual
    states = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).last_hidden_state  # (B, P + T, D)
    return model.head.project(states[np.arange(batch.size), batch.places + virtual])  # (B, V)


class ClozeClassification(Classification):
    """Texts with a class each, classified by what the model would write into a gap.

    Args:
        tokenizer: a `Tokenizer`. dataset: a `Dataset`, whose classes are the verbalizer's. config: the model's.
        template: a `Template`. verbalizer: a `Verbalizer`.
        max_length: longest prompt in tokens; longer texts are cut, the template never.
        batch_size, metric: as in `Classification`.
        demonstrations: `Demonstrations`, which stand before every text; default: none.

    Raises ValueError where template, verbalizer, data and model do not fit each other.
    """

    def __init__(self, tokenizer, dataset, config, template, verbalizer, max_length, batch_size, metric="accuracy",
                 demonstrations=None):
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        if tuple(dataset.labels) != verbalizer.labels:
            raise ValueError(f"verbalizer: expected words for the classes {', '.join(dataset.labels)}, got words for "
                             f"{', '.join(verbalizer.labels)}")
        if not dataset.has_pairs and any(name == "text2" for _, name in template.parts):
            raise ValueError(f"template: {template.pattern!r} has {{text2}}, and the data no second text")
        self.template, self.verbalizer, self.kind = template, verbalizer, kind_of(config)
        template.check(self.kind)
        self.words = self._words(tokenizer)
        self.start = self._start(tokenizer, config)
        self.labels, self.metric, self.batch_size, self.pad_id = dataset.labels, metric, batch_size, tokenizer.pad_id
        self.demonstrations, self.sources = demonstrations, {}
        self.encodings, self.places, self.targets, self.contexts, self.truncated = {}, {}, {}, {}, 0
        for split, examples in dataset.splits.items():
            self.add(split, tokenizer, examples, max_length)

    def add(self, split, tokenizer, examples, max_length, contexts=None):
        """Take the examples of one more split; ``contexts``: what stands before each in place of its demonstrations."""
        self.sources[split] = tokenizer, examples, max_length
        self.targets[split] = np.array([-1 if e.label is None else e.label for e in examples], np.int64)
        self.truncated += self.fill(split, contexts=contexts)

    def fill(self, split, number=0, contexts=None):
        """Fill the template with the texts of a split, behind the demonstrations of this number; returns how many were cut."""
        tokenizer, examples, max_length = self.sources[split]
        if self.demonstrations and contexts is None:
            contexts = self.demonstrations.draw(examples, self.template, self.verbalizer, number)
        rows, cut = self.template.encode(tokenizer, examples, max_length, self.kind, contexts)
        self.contexts[split] = [row.context for row in rows]  # what of them there was room for
        self.encodings[split] = [Encoding(row.ids, row.types) for row in rows]
        self.places[split] = np.array([row.place for row in rows], np.int64)
        return cut

    def _words(self, tokenizer):
        """What stands for each class: the ids of its words."""
        return self.verbalizer.ids(tokenizer, self.template.spaced)

    def _start(self, tokenizer, config):
        """What an encoder-decoder has written before the gap; None for other models."""
        return [config.decoder_start_token_id, tokenizer.id_of(SENTINEL)] if self.kind == "seq2seq" else None

    def training_batches(self, rng):
        """The batches of an epoch, as arrays of indices, behind demonstrations drawn anew."""
        if self.demonstrations:
            self.fill("train", int(rng.integers(self.demonstrations.sets, 2**31)))
        return super().training_batches(rng)

    def collate(self, indices, split="train"):
        """The batch of these examples, padded to its longest."""
        batch = collate(self.encodings[split], self.targets[split], indices, self.pad_id)
        return ClozeBatch(batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels, self.places[split][indices])

    def scores(self, model, batch):
        """s (B, C), a Tensor."""
        return class_scores(gap_logits(model, batch, self.start), self.words)

    def loss(self, model, batch):
        """Mean cross-entropy over the classes, a Tensor."""
        return F.cross_entropy(self.scores(model, batch), batch.labels)

    def probabilities(self, model, batch):
        """q (B, C), an array in float64."""
        return restricted_softmax(self.scores(model, batch).data)

    def predict(self, model, split):
        """Probabilities (N, C) of a split's examples, in their order; the mean over all sets of demonstrations."""
        return np.mean([self.answers_behind(model, split, number) for number in range(self.sets)], axis=0)

    @property
    def sets(self):
        """How many sets of demonstrations a prediction is averaged over."""
        return self.demonstrations.sets if self.demonstrations else 1

    def answers_behind(self, model, split, number):
        """Probabilities (N, C) of a split's examples behind the demonstrations of this number."""
        if self.demonstrations:
            self.fill(split, number)
        return self.answers_as_filled(model, split)

    def answers_as_filled(self, model, split):
        """Probabilities (N, C) of a split's examples behind what stands before them now."""
        out = np.zeros((len(self.targets[split]), len(self.labels)))
        with no_grad():
            for indices in make_batches(self.encodings[split], 2 * self.batch_size):
                out[indices] = self.probabilities(model, self.collate(indices, split))
        return out
