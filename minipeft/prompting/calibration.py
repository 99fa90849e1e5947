"""Contextual calibration: what a model would answer without having read anything is divided out of its answers.

    q_cf = the mean of q on inputs without content ("", "N/A", ...)
    q'_c = (q_c / q_cf,c) / sum over c' of (q_c' / q_cf,c')

so that an input without content is worth the same for every class. Nothing is trained. Behind demonstrations q_cf is that of the
same demonstrations, and each set of them is set right by itself. In the logits it is a bias,
s'_c = s_c - log q_cf,c, which is what output tuning would learn with ``part="bias"``.

Source: Zhao, Wallace, Feng, Klein, Singh, ICML 2021, arXiv:2102.09690, section 5 (the diagonal form).
"""

import numpy as np

from ..data import Example
from ..training import Classification

CONTENT_FREE = ("", "N/A", "[MASK]")  # section 5: the mean over several is steadier than one


def calibrated(q, q_cf):
    """q' (N, C) of probabilities q (N, C), and those of the content-free inputs (M, C) or their mean (C,)."""
    q_cf = np.atleast_2d(np.asarray(q_cf, np.float64)).mean(axis=0)  # (C,)
    if not (q_cf > 0).all():
        raise ValueError("calibration: an input without content has no probability of one class; there is nothing to divide by")
    ratio = np.asarray(q, np.float64) / q_cf
    return ratio / ratio.sum(axis=-1, keepdims=True)


class Calibration:
    """A work that classifies by prompting, with its answers calibrated.

    Args:
        work: a `ClozeClassification` or `RankClassification`. tokenizer: its `Tokenizer`. max_length: as it has.
        inputs: texts without content.
    """

    SPLIT, BEHIND = "content-free", "content-free behind demonstrations"

    def __init__(self, work, tokenizer, max_length, inputs=CONTENT_FREE):
        self.work, self.tokenizer, self.max_length = work, tokenizer, max_length
        self.inputs = [Example(text, text, None) for text in inputs]
        work.add(self.SPLIT, tokenizer, self.inputs, max_length)

    def __getattr__(self, name):  # called only for what is not set here: everything else is the work's own
        if name == "work":
            raise AttributeError(name)
        return getattr(self.work, name)

    def predict(self, model, split):
        """Calibrated probabilities (N, C), the mean over all sets of demonstrations."""
        if not self.work.demonstrations:
            return calibrated(self.work.predict(model, split), self.work.predict(model, self.SPLIT))
        return np.mean([self._behind(model, split, number) for number in range(self.work.sets)], axis=0)

    def _behind(self, model, split, number):
        """Calibrated probabilities (N, C) behind one set of demonstrations."""
        q, own = self.work.answers_behind(model, split, number), list(self.work.contexts[split])  # (N, C)
        contexts = list(dict.fromkeys(own))  # K, and behind each the M inputs without content
        self.work.add(self.BEHIND, self.tokenizer, self.inputs * len(contexts), self.max_length,
                      [list(context) for context in contexts for _ in self.inputs])
        q_cf = np.split(self.work.answers_as_filled(model, self.BEHIND), len(contexts))  # K times (M, C)
        q_cf = dict(zip(contexts, q_cf))
        return np.concatenate([calibrated(row[None], q_cf[context]) for row, context in zip(q, own)])

    def evaluate(self, model, split):
        """The scores of a split, as the work has them, of the calibrated probabilities."""
        return Classification.evaluate(self, model, split)
