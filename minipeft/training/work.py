"""Two kinds of work, to classify texts and to model language: data into batches, a batch into a loss, a model into scores.

The third, to write one text from another, stands in ``seq2seq.py``.
"""

import math

import numpy as np

from ..autograd import no_grad
from ..data import Batch, block_mask, blocks_of, collate, make_batches
from ..kernels import IGNORE
from .metrics import METRICS
from .regularise import smoothed_cross_entropy


def subset(count, limit, seed=0):
    """Numbers, rising, of at most ``limit`` of so many training examples, drawn by ``seed``; of all for None."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


class Classification:
    """Texts (or pairs) with a class each.

    Args:
        tokenizer: a `Tokenizer`. dataset: a `Dataset`.
        max_length: longest input in tokens; longer ones are cut, and ``truncated`` counts them.
        batch_size: examples in a batch. metric: ``accuracy``, ``f1`` or ``matthews``.
        train_limit: use only so many training examples, drawn by ``seed``.
        label_smoothing: share of a target that is spread over all classes, in training.
    """

    task = "classify"
    higher_is_better = True

    def __init__(self, tokenizer, dataset, max_length, batch_size, metric="accuracy", train_limit=None, seed=0,
                 label_smoothing=0.0):
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        self.labels, self.metric, self.batch_size, self.pad_id = dataset.labels, metric, batch_size, tokenizer.pad_id
        self.encodings, self.targets, self.truncated, self.label_smoothing = {}, {}, 0, label_smoothing
        for split, examples in dataset.splits.items():
            if split == "train":
                examples = [examples[i] for i in subset(len(examples), train_limit, seed)]
            pairs = [e.text2 for e in examples] if dataset.has_pairs else None
            encoded = tokenizer.encode_pairs([e.text for e in examples], pairs, max_length)
            self.truncated += encoded.truncated
            self.encodings[split] = list(encoded)
            self.targets[split] = np.array([-1 if e.label is None else e.label for e in examples], np.int64)

    def number_of_batches(self):
        """Batches in one epoch."""
        return -(-len(self.encodings["train"]) // self.batch_size)

    def training_batches(self, rng):
        """The batches of an epoch, as arrays of indices."""
        return make_batches(self.encodings["train"], self.batch_size, rng)

    def collate(self, indices, split="train"):
        """The batch of these examples, padded to its longest."""
        return collate(self.encodings[split], self.targets[split], indices, self.pad_id)

    def weight(self, batch):
        """What a batch counts for when several make one step: its examples."""
        return batch.size

    def scores(self, model, batch):
        """The logits (B, C) of a batch, a Tensor."""
        return model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits

    def loss(self, model, batch):
        """Mean cross-entropy of a batch, a Tensor."""
        if self.label_smoothing:
            logits = self.scores(model, batch)  # (B, C)
            return smoothed_cross_entropy(logits, batch.labels, self.label_smoothing)
        return model(batch.input_ids, batch.attention_mask, batch.token_type_ids, labels=batch.labels).loss

    def predict(self, model, split):
        """Probabilities (N, C) of a split's examples, in their order."""
        out = np.zeros((len(self.encodings[split]), len(self.labels)))
        with no_grad():
            for indices in make_batches(self.encodings[split], 2 * self.batch_size):
                batch = self.collate(indices, split)
                z = self.scores(model, batch).data.astype(np.float64)  # (B, C)
                e = np.exp(z - z.max(axis=1, keepdims=True))
                out[indices] = e / e.sum(axis=1, keepdims=True)  # (N, C)
        return out

    def evaluate(self, model, split):
        """{"score", "accuracy", "f1", "matthews", "loss"} on a split; {} where there is none, or an example without a class."""
        if split not in self.encodings or not len(self.targets[split]) or (self.targets[split] < 0).any():
            return {}
        p, actual = self.predict(model, split), self.targets[split]
        scores = {name: f(p.argmax(axis=1), actual, len(self.labels)) for name, f in METRICS.items()}
        loss = -np.log(np.maximum(p[np.arange(len(actual)), actual], 1e-30)).mean()
        return {"score": scores[self.metric], **scores, "loss": float(loss)}


class LanguageModelling:
    """Raw text, cut into blocks; the score is the perplexity, exp of the mean loss a token.

    Args:
        tokenizer: a `Tokenizer`. texts: {split: text}.
        max_length: tokens in a block. batch_size: blocks in a batch.
        stride: tokens between the starts of two blocks in evaluation; smaller ones give each token more context.
        train_limit: use only so many training blocks, drawn by ``seed``.
    """

    task = "lm"
    metric = "perplexity"
    higher_is_better = False
    truncated = 0

    def __init__(self, tokenizer, texts, max_length, batch_size, stride=None, train_limit=None, seed=0):
        self.batch_size, self.blocks = batch_size, {}
        for split, text in texts.items():
            step = max_length if split == "train" else stride or max_length
            ids = np.array(tokenizer.encode(text), np.int64)
            if len(ids) < 2:
                raise ValueError(f"{split}: the text has {len(ids)} tokens; at least 2 are needed")
            self.blocks[split] = blocks_of(ids, max_length, step)
        if train_limit is not None:
            chosen = subset(len(self.blocks["train"][0]), train_limit, seed)
            self.blocks["train"] = tuple(part[chosen] for part in self.blocks["train"])

    def number_of_batches(self):
        """Batches in one epoch."""
        return -(-len(self.blocks["train"][0]) // self.batch_size)

    def training_batches(self, rng):
        """The batches of an epoch, as arrays of indices."""
        order = rng.permutation(len(self.blocks["train"][0]))
        return [order[i:i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def collate(self, indices, split="train"):
        """The batch of these blocks."""
        ids, labels = self.blocks[split]
        ids, labels = ids[indices], labels[indices]
        return Batch(ids, block_mask(labels), np.zeros_like(ids), labels)

    def weight(self, batch):
        """What a batch counts for when several make one step: its predicted tokens."""
        return int((batch.labels[:, 1:] != IGNORE).sum())

    def loss(self, model, batch):
        """Mean cross-entropy a token of a batch, a Tensor."""
        return model(batch.input_ids, batch.attention_mask, labels=batch.labels).loss

    def evaluate(self, model, split):
        """{"score" and "perplexity", "loss": nats a token} on a split; {} where there is none."""
        if split not in self.blocks:
            return {}
        total = count = 0
        with no_grad():
            for start in range(0, len(self.blocks[split][0]), self.batch_size):
                batch = self.collate(np.arange(start, min(start + self.batch_size, len(self.blocks[split][0]))), split)
                total += self.loss(model, batch).item() * self.weight(batch)
                count += self.weight(batch)
        loss = total / max(count, 1)
        perplexity = math.exp(min(loss, 700))
        return {"score": perplexity, "perplexity": perplexity, "loss": loss}
