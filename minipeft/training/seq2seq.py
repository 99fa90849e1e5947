"""The third kind of work, to write one text from another: sources and targets into batches, and written texts into scores."""

import numpy as np

from ..autograd import no_grad
from ..data import Batch, Encoding, by_source, collate, make_batches
from ..kernels import IGNORE
from ..models import generate
from .regularise import smoothed_cross_entropy
from .text_metrics import BLEU_TOKENIZERS, TEXT_METRICS, check_libraries, text_scores
from .work import subset


def end_tokens(config, tokenizer):
    """Ids of the tokens that end a written text: those of the model's config, else the tokenizer's.

    Raises ValueError where neither has one within the model's vocabulary: no text would ever end.
    """
    own = np.atleast_1d([] if config.eos_token_id is None else config.eos_token_id).tolist()
    for ids in (own, [tokenizer.eos_id] * (tokenizer.eos_id is not None)):
        known = [i for i in ids if 0 <= i < config.vocab_size]
        if known:
            return known
    raise ValueError("task seq2seq: there is no end token, so that no text would end; expected an eos_token_id in the model's "
                     f"config.json, a number below {config.vocab_size}, or an eos_token in its tokenizer_config.json")


def limited(sources, limit, seed=0):
    """Sources with only ``limit`` of their references in all, drawn by ``seed``; those left without one are left out."""
    rows = [(source.text, reference) for source in sources for reference in source.references]
    if limit is None or limit >= len(rows):
        return sources
    return by_source([rows[i] for i in subset(len(rows), limit, seed)])


class Sequence2Sequence:
    """Sources, each with any number of references: training takes every pair of the two, evaluation writes once for a source.

    Args:
        tokenizer: a `Tokenizer`. sources: {split: list of `Source`}.
        ends: ids that end a written text; the first is put behind every target.
        max_length: longest source in tokens; longer ones are cut, and ``truncated`` counts them.
        max_target_length: longest target in tokens, its end included (``truncated_targets``), and most tokens to write.
        batch_size: pairs in a batch. metric: which of the scores is the score: ``bleu``, ``rouge_l`` or ``exact``.
        train_limit: use only so many training pairs, drawn by ``seed``.
        label_smoothing: share of a target that is spread over the whole vocabulary, in training.
        bleu_tokenizer: see `text_metrics.bleu`.

    ``progress``, where it is set, is called with how many texts are done, and of how many, while a split is evaluated (a pair
    for its loss, and a source for what is written, count as one each) or texts are written.
    """

    task = "seq2seq"
    higher_is_better = True
    progress = None

    def __init__(self, tokenizer, sources, ends, max_length, max_target_length, batch_size, metric="bleu", train_limit=None,
                 seed=0, label_smoothing=0.0, bleu_tokenizer="13a"):
        for name, value, known in (("metric", metric, TEXT_METRICS), ("bleu_tokenizer", bleu_tokenizer, BLEU_TOKENIZERS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if max_target_length < 2:
            raise ValueError(f"max_target_length: expected at least 2, a token and the end token, got {max_target_length}")
        if any(source.references for split in ("dev", "test") for source in sources.get(split, ())):
            check_libraries()
        self.tokenizer, self.ends, self.metric, self.batch_size = tokenizer, list(ends), metric, batch_size
        self.max_target_length, self.label_smoothing, self.bleu_tokenizer = max_target_length, label_smoothing, bleu_tokenizer
        self.sources = {split: limited(listed, train_limit, seed) if split == "train" else listed
                        for split, listed in sources.items()}
        self.texts, self.encodings, self.targets, self.truncated, self.truncated_targets = {}, {}, {}, 0, 0
        for split, listed in self.sources.items():
            self.texts[split] = tokenizer.encode_pairs([source.text for source in listed], max_length=max_length)
            self.encodings[split] = [e for e, source in zip(self.texts[split], listed) for _ in source.references]
            targets = tokenizer.encode_pairs([text for source in listed for text in source.references],
                                             max_length=max_target_length - 1, add_special_tokens=False)
            self.targets[split] = [Encoding([*e.ids, self.ends[0]], [*e.types, 0]) for e in targets]
            self.truncated += self.texts[split].truncated
            self.truncated_targets += targets.truncated

    def number_of_batches(self):
        """Batches in one epoch."""
        return -(-len(self.encodings["train"]) // self.batch_size)

    def training_batches(self, rng):
        """The batches of an epoch, as arrays of indices of pairs."""
        return make_batches(self.encodings["train"], self.batch_size, rng)

    def collate(self, indices, split="train"):
        """The batch of these pairs, each side padded to its longest; a label is -100 where the target is padding."""
        source = collate(self.encodings[split], None, indices, self.tokenizer.pad_id)
        target = collate(self.targets[split], None, indices, self.tokenizer.pad_id)
        labels = np.where(target.attention_mask, target.input_ids, IGNORE)  # (B, T)
        return Batch(source.input_ids, source.attention_mask, source.token_type_ids, labels)

    def weight(self, batch):
        """What a batch counts for when several make one step: its target tokens."""
        return int((batch.labels != IGNORE).sum())

    def loss(self, model, batch, smoothing=None):
        """Mean cross-entropy of a batch's target tokens, a Tensor; ``smoothing`` is by default that of training."""
        smoothing = self.label_smoothing if smoothing is None else smoothing
        output = model(batch.input_ids, batch.attention_mask, labels=batch.labels)
        if not smoothing:
            return output.loss
        rows, columns = np.nonzero(batch.labels != IGNORE)
        return smoothed_cross_entropy(output.logits[rows, columns], batch.labels[rows, columns], smoothing)  # of (N, V)

    def write(self, model, split, before=0):
        """The texts that the model writes for a split's sources, in their order: the most probable token each time.

        ``before``: how many texts were done before these, for ``progress``.
        """
        out, done, total = [""] * len(self.texts[split]), before, before + len(self.texts[split])
        self._show(done, total)
        for indices in make_batches(self.texts[split], 2 * self.batch_size):
            batch = collate(self.texts[split], None, indices, self.tokenizer.pad_id)
            written = generate(model, batch.input_ids, self.max_target_length, batch.attention_mask, eos_token_id=self.ends)
            for i, ids in zip(indices, written):  # (T,)
                ended = np.isin(ids, self.ends)
                out[i] = self.tokenizer.decode(ids[:ended.argmax() if ended.any() else len(ids)]).strip()
            done += len(indices)
            self._show(done, total)
        return out

    def _show(self, done, total):
        if self.progress is not None:
            self.progress(done, total)

    def scores(self, written, split):
        """{"score", "bleu", "rouge_l", "exact"} of texts written for a split's sources, over those that have references."""
        pairs = zip(written, self.sources[split], strict=True)
        known = [(text, source.references) for text, source in pairs if source.references]
        scores = text_scores([text for text, _ in known], [own for _, own in known], self.bleu_tokenizer)
        return {"score": scores[self.metric], **scores}

    def evaluate(self, model, split):
        """{"score", "bleu", "rouge_l", "exact", "loss": nats a target token} on a split; {} where it has no reference."""
        if not self.targets.get(split):
            return {}
        pairs, sources, total, count = len(self.targets[split]), len(self.texts[split]), 0.0, 0
        with no_grad():
            for start in range(0, pairs, self.batch_size):
                self._show(start, pairs + sources)
                batch = self.collate(np.arange(start, min(start + self.batch_size, pairs)), split)
                total += self.loss(model, batch, smoothing=0.0).item() * self.weight(batch)
                count += self.weight(batch)
        return {**self.scores(self.write(model, split, before=pairs), split), "loss": total / count}
