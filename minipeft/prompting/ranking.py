"""Classifying by answers of any length: which of them would the model sooner write behind the prompt?

    l(c) = sum over t of log p(c_t | prompt, c_<t),      divided by the number of tokens of c where the length is not to count
    q = softmax of l,                 training: -mean over t of log p(right answer's t-th token | ...)

Maximum likelihood over the whole vocabulary, as T0 is trained; but the end of an answer is neither trained nor counted, so that
one answer may be the beginning of another. For causal models, which read the prompt and write on, and for sequence-to-sequence
models, which write what stands for the sentinel.

Sources: Sanh et al., ICLR 2022, arXiv:2110.08207, section 5 (rank classification); Liu et al., NeurIPS 2022, arXiv:2205.05638,
section 3.2 (length normalisation); Brown et al., NeurIPS 2020, arXiv:2005.14165, section 2.4.
"""

import numpy as np

from .. import autograd as F
from ..data import Encoding, collate
from .cloze import ClozeClassification
from .verbalizers import restricted_softmax, tokens_of


class RankClassification(ClozeClassification):
    """Texts with a class each, classified by which class's answer is the most probable.

    Args:
        as those of `ClozeClassification`, but that the verbalizer has one answer for each class, which may be many words.
        normalised: divide an answer's log probability by its number of tokens.

    Raises ValueError for a masked model, which writes one token and no answer, and for classes with several answers or the same.
    """

    def __init__(self, tokenizer, dataset, config, template, verbalizer, max_length, batch_size, normalised=True, **more):
        self.normalised = normalised
        super().__init__(tokenizer, dataset, config, template, verbalizer, max_length, batch_size, **more)

    def _words(self, tokenizer):
        """The tokens of each class's answer."""
        if self.kind == "masked":
            raise ValueError("ranking: a masked model fills in one token; expected a decoder or an encoder-decoder, "
                             "or classify by the gap")
        for label, words in self.verbalizer.words.items():
            if len(words) > 1:
                raise ValueError(f"ranking: expected one answer for each class, got {len(words)} for {label!r}: "
                                 f"{', '.join(words)}; give one of them, or several words at a gap, without ranking")
        answers = [word for (word,) in self.verbalizer.words.values()]
        found = tokens_of(tokenizer, answers, self.template.spaced)
        for i, tokens in enumerate(found):
            if not tokens or tokens in found[:i]:
                raise ValueError(f"ranking: the answer {answers[i]!r} is nothing for this model" if not tokens else
                                 f"ranking: {answers[found.index(tokens)]!r} and {answers[i]!r} are the same for this model, "
                                 f"{' '.join(map(tokenizer.piece_of, tokens))}; give each class an answer of its own")
        return found

    def add(self, split, tokenizer, examples, max_length, contexts=None):
        """Take the examples of one more split; room is left for the longest answer."""
        longest = max(map(len, self.words)) if self.kind == "causal" else 0
        super().add(split, tokenizer, examples, max_length - longest, contexts)

    def answers(self, model, batch, choices):
        """The logits of the tokens of answers, and these tokens.

        Args:
            batch: a `ClozeBatch` of B prompts. choices: (B,) the class whose answer is written behind each.

        Returns:
            (logits (N, V), tokens (N,), rows (N,): which prompt's each is), N tokens of answers in all.
        """
        words = [self.words[c] for c in choices]
        rows = np.repeat(np.arange(batch.size), [len(each) for each in words])  # (N,)
        steps = np.concatenate([np.arange(len(each)) for each in words])        # (N,)
        tokens = np.concatenate([np.asarray(each, np.int64) for each in words])
        if self.start is not None:
            written = [Encoding([*self.start, *each[:-1]], [0] * (len(self.start) + len(each) - 1)) for each in words]
            target = collate(written, None, np.arange(batch.size), self.pad_id)  # (B, S)
            states = model(batch.input_ids, batch.attention_mask, decoder_input_ids=target.input_ids,
                           decoder_attention_mask=target.attention_mask).last_hidden_state
            return model.head.project(states[rows, steps + len(self.start) - 1]), tokens, rows
        whole = [Encoding([*ids[:place + 1], *each], [0] * (place + 1 + len(each)))
                 for ids, place, each in zip(batch.input_ids, batch.places, words)]
        joined = collate(whole, None, np.arange(batch.size), self.pad_id)  # (B, T)
        states = model(joined.input_ids, joined.attention_mask).last_hidden_state  # (B, P + T, D)
        return model.head.project(states[rows, batch.places[rows] + steps + model.embed.tokens.virtual]), tokens, rows

    def loss(self, model, batch):
        """Mean cross-entropy of the right answers' tokens, a Tensor."""
        logits, tokens, _ = self.answers(model, batch, batch.labels)
        return F.cross_entropy(logits, tokens)

    def scores(self, model, batch):
        """l (B, C) of a batch, a Tensor: what `log_likelihoods` gives, with gradients."""
        columns = []
        for c, words in enumerate(self.words):
            logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
            shifted = logits - logits.data.max(axis=1, keepdims=True)  # (N, V)
            log_p = shifted[np.arange(len(tokens)), tokens] - F.log(F.sum(F.exp(shifted), axis=1))  # (N,)
            total = F.put(log_p, rows, (batch.size,))  # (B,), the sum over an answer's tokens
            columns.append((total / len(words) if self.normalised else total).reshape(batch.size, 1))  # (B, 1)
        return F.concatenate(columns, axis=1)  # (B, C)

    def log_likelihoods(self, model, batch):
        """l (B, C) of a batch, an array in float64."""
        out = np.zeros((batch.size, len(self.words)))
        for c, words in enumerate(self.words):
            logits, tokens, rows = self.answers(model, batch, np.full(batch.size, c))
            z = logits.data.astype(np.float64)  # (N, V)
            z -= z.max(axis=1, keepdims=True)
            np.add.at(out[:, c], rows, z[np.arange(len(tokens)), tokens] - np.log(np.exp(z).sum(axis=1)))
            out[:, c] /= len(words) if self.normalised else 1
        return out

    def probabilities(self, model, batch):
        """q (B, C), an array in float64."""
        return restricted_softmax(self.log_likelihoods(model, batch))
