"""What models are pre-trained on: to fill in masked words, to continue a text, to write the spans that were taken out of one.

    encoder    masked LM         -mean log p(token | the text with [MASK]s)      Devlin et al., NAACL 2019, section 3.1
    decoder    causal LM         -mean log p(token | all tokens before it)       Radford et al., 2019
    seq2seq    span corruption   -mean log p(spans | the text without them)      Raffel et al., JMLR 2020, section 3.1.4

A corpus has ``draw(rng, count)``, which gives texts, and ``held_out``, texts that it never draws (see `data.corpora`). Training
goes in rounds: each draws its texts, and ends with the loss on those held out, whose masks and spans are always the same.
"""

import re
from typing import NamedTuple

import numpy as np

from ..autograd import no_grad
from ..data import Batch, Encoding, collate, make_batches, mask_tokens
from ..data.spans import corrupt_spans
from ..kernels import IGNORE

SENTENCE_ENDS = re.compile(r"(?<=[.?!:]) ")


class Draw(NamedTuple):
    """A batch that is still to be made: rows of the round's texts, and the seed of what is hidden in them."""

    rows: np.ndarray
    seed: int


class Pretraining:
    """Rounds of batches from a corpus; what is hidden in a text is the kinds' own (`collate`).

    Args:
        tokenizer: a `Tokenizer`. corpus: see above. batch_size: texts in a batch. per_round: batches in a round.
        max_length: longest text in tokens; longer ones are cut.
    """

    def __init__(self, tokenizer, corpus, batch_size, per_round, max_length):
        self.tokenizer, self.corpus, self.batch_size, self.per_round = tokenizer, corpus, batch_size, per_round
        self.max_length = max_length
        self.rows = {"train": [], "dev": self._rows(corpus.held_out, np.random.default_rng(0))}

    def number_of_batches(self):
        """Batches in one round, which the loop calls an epoch."""
        return self.per_round

    def training_batches(self, rng):
        """Draw the texts of a round; its batches, as `Draw`s."""
        self.rows["train"] = self._drawn(rng, self.per_round * self.batch_size)
        groups = make_batches(self.rows["train"], self.batch_size, rng)
        return [Draw(rows, int(seed)) for rows, seed in zip(groups, rng.integers(2**63, size=len(groups)))]

    def weight(self, batch):
        """What a batch counts for when several make one step: the tokens to be restored."""
        return int((batch.labels != IGNORE).sum())

    def loss(self, model, batch):
        """Mean cross-entropy at the tokens to be restored, a Tensor."""
        return model(batch.input_ids, batch.attention_mask, batch.token_type_ids, labels=batch.labels).loss

    def evaluate(self, model, split):
        """{"loss": nats a token} on the held-out texts."""
        total = count = 0
        with no_grad():
            for number, rows in enumerate(make_batches(self.rows[split], self.batch_size)):
                batch = self.collate(Draw(rows, number), split)
                total += self.loss(model, batch).item() * self.weight(batch)
                count += self.weight(batch)
        return {"loss": total / max(count, 1)}

    def _drawn(self, rng, count):
        """The rows of a round."""
        return self._rows(self.corpus.draw(rng, count), rng)


class MaskedLanguageModelling(Pretraining):
    """Masked words; half of the texts with several sentences are given as pairs, cut between two of them.

    Args (besides those of `Pretraining`):
        probability: share of the tokens that are to be restored. Devlin et al. take 0.15; a small model that is trained for
            minutes learns more from twice as many (Wettig et al., "Should you mask 15 %?", EACL 2023).
    """

    def __init__(self, tokenizer, corpus, batch_size, per_round, max_length, probability=0.3):
        self.probability = probability
        super().__init__(tokenizer, corpus, batch_size, per_round, max_length)

    def _rows(self, texts, rng):
        single, pairs = [], []
        for text in texts:
            ends = [match.end() for match in SENTENCE_ENDS.finditer(text)]
            if ends and rng.random() < 0.5:
                end = ends[int(rng.integers(len(ends)))]
                pairs.append((text[:end].strip(), text[end:]))
            else:
                single.append(text)
        first, second = [text for text, _ in pairs], [text for _, text in pairs]
        return [*self.tokenizer.encode_pairs(single, max_length=self.max_length),
                *self.tokenizer.encode_pairs(first, second, self.max_length)]

    def collate(self, draw, split="train"):
        """The batch of a `Draw`; a label is the token where one is to be restored, -100 elsewhere."""
        batch, tokenizer = collate(self.rows[split], None, draw.rows, self.tokenizer.pad_id), self.tokenizer
        ids, labels = mask_tokens(batch.input_ids, batch.attention_mask, np.random.default_rng(draw.seed), tokenizer.mask_id,
                                  tokenizer.vocab_size, tokenizer.special_ids, self.probability)  # (B, T), (B, T)
        return Batch(ids, batch.attention_mask, batch.token_type_ids, labels)


class CausalLanguageModelling(Pretraining):
    """Texts one after another, each with an end token behind it, in blocks of ``max_length`` tokens."""

    def _rows(self, texts, rng):
        stream = [i for e in self.tokenizer.encode_pairs(texts, add_special_tokens=False)
                  for i in (*e.ids, self.tokenizer.eos_id)]
        length = min(self.max_length, len(stream))
        return [Encoding(stream[k:k + length], [0] * length) for k in range(0, len(stream) - length + 1, length)]

    def _drawn(self, rng, count):
        rows = []
        while len(rows) < count:
            rows += self._rows(self.corpus.draw(rng, count), rng)
        return rows[:count]

    def collate(self, draw, split="train"):
        """The batch of a `Draw`; the labels are the tokens, which the model compares with those before them."""
        batch = collate(self.rows[split], None, draw.rows, self.tokenizer.pad_id)
        return Batch(batch.input_ids, batch.attention_mask, batch.token_type_ids,
                     np.where(batch.attention_mask, batch.input_ids, IGNORE))  # (B, T)

    def weight(self, batch):
        """What a batch counts for: its predicted tokens."""
        return int((batch.labels[:, 1:] != IGNORE).sum())


class SpanCorruption(Pretraining):
    """Texts without some spans, and the spans.

    Args (besides those of `Pretraining`):
        sentinels: ids of the sentinels. density: share of the tokens that are taken out. mean_length: of a span, in tokens.
            Raffel et al. take 0.15 and 3; more and shorter spans teach a small model more of texts as short as the toy world's.
    """

    def __init__(self, tokenizer, corpus, batch_size, per_round, max_length, sentinels, density=0.2, mean_length=2.0):
        self.sentinels, self.density, self.mean_length = sentinels, density, mean_length
        super().__init__(tokenizer, corpus, batch_size, per_round, max_length)

    def _rows(self, texts, rng):
        rows = self.tokenizer.encode_pairs(texts, max_length=self.max_length - 1, add_special_tokens=False)
        return [e for e in rows if len(e.ids) >= 2]

    def _drawn(self, rng, count):
        rows = []
        while len(rows) < count:
            rows += super()._drawn(rng, count)
        return rows[:count]

    def collate(self, draw, split="train"):
        """The batch of a `Draw`, both sides with an end token; a label is -100 where the target is padding."""
        rng, end, sides = np.random.default_rng(draw.seed), self.tokenizer.eos_id, ([], [])
        for row in draw.rows:
            parts = corrupt_spans(self.rows[split][row].ids, rng, self.sentinels, self.density, self.mean_length)
            for side, ids in zip(sides, parts):
                side.append(Encoding([*ids, end], [0] * (len(ids) + 1)))
        every = np.arange(len(draw.rows))
        source, target = (collate(side, None, every, self.tokenizer.pad_id) for side in sides)
        return Batch(source.input_ids, source.attention_mask, source.token_type_ids,
                     np.where(target.attention_mask, target.input_ids, IGNORE))  # (B, S)

    def loss(self, model, batch):
        """Mean cross-entropy of the targets' tokens, a Tensor."""
        return model(batch.input_ids, batch.attention_mask, labels=batch.labels).loss
