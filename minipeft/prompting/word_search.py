"""Finding label words: which words does the model itself write into the gap for the texts of a class?

    of each class c, V_c: the k words w with the highest    sum over x in D_c of log p(gap = w | T(x))    D_c: its training texts
    of V_1 x V_2 x ... x V_C, a word of each: the n with the best accuracy on the training texts, without any training
    and of these the one that is best on dev after fine-tuning with it, which takes a training each

The last is what ``minipeft prompt --search-words N --method M`` does; without a method it ends before.

Where k^C assignments are too many to try, classes are taken one after another, and of the assignments to the classes so far those
with the best accuracy among the texts of these classes go on. As a control there are null verbalizers: words drawn by lot, which
mean nothing for the task, so that what good words add can be measured.

Sources: Gao, Fisch, Chen, ACL 2021, arXiv:2012.15723, section 5.1 (search); Le Scao and Rush, NAACL 2021, arXiv:2103.08493,
section 5 (null verbalizers).
"""

import numpy as np

from ..autograd import no_grad
from ..data import make_batches
from .cloze import gap_logits
from .verbalizers import Verbalizer, whole_words

MOST = 20_000  # assignments that are tried at a time


def gap_log_probabilities(model, work, split="train"):
    """log p (N, V) of every word at the gaps of a split of a `ClozeClassification`, in float64."""
    out = None
    with no_grad():
        for indices in make_batches(work.encodings[split], 2 * work.batch_size):
            z = gap_logits(model, work.collate(indices, split), work.start).data.astype(np.float64)  # (B, V)
            z -= z.max(axis=1, keepdims=True)
            out = np.zeros((len(work.targets[split]), z.shape[1])) if out is None else out
            out[indices] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def search_words(model, work, tokenizer, per_class=20, keep=5, split="train"):
    """The best verbalizers of one word a class.

    Args:
        model: with its language-model head. work: a `ClozeClassification` on it; its own verbalizer has no part in the search.
        tokenizer: a `Tokenizer`. per_class: k. keep: n. split: the examples that are searched with.

    Returns:
        [(`Verbalizer`, accuracy)], the best first; among equals the one whose words are more probable in their classes.

    Raises ValueError for a class without an example, and for a vocabulary with fewer words than there are classes.
    """
    labels, targets = work.labels, work.targets[split]
    missing = [name for c, name in enumerate(labels) if not (targets == c).any()]
    if missing:
        raise ValueError(f"verbalizer: the search needs an example of every class, and there is none of {', '.join(missing)}")
    words = enough_words(tokenizer, labels, work.template.spaced)
    ids = np.array(list(words))
    log_p = gap_log_probabilities(model, work, split)[:, ids]  # (N, words)
    fit = np.stack([log_p[targets == c].sum(axis=0) for c in range(len(labels))])  # (C, words)
    best = np.argsort(-fit, axis=1, kind="stable")[:, :per_class]  # (C, k)
    rows = np.zeros((1, 0), np.int64)  # (assignments, classes so far): which word
    for c in range(len(labels)):
        rows = np.concatenate([np.repeat(rows, best.shape[1], axis=0), np.tile(best[c], len(rows))[:, None]], axis=1)
        rows = rows[[len(set(row)) == c + 1 for row in rows.tolist()]]  # no word stands for two classes
        accuracy = _accuracy(log_p[targets <= c], targets[targets <= c], rows)
        probable = fit[np.arange(c + 1), rows].sum(axis=1)
        rows = rows[np.lexsort((-probable, -accuracy))[:max(keep, MOST // per_class)]]
    accuracy = _accuracy(log_p, targets, rows[:keep])
    found = [Verbalizer({label: words[ids[w]] for label, w in zip(labels, row)}) for row in rows[:keep]]
    return [(verbalizer, float(a)) for verbalizer, a in zip(found, accuracy)]


def _accuracy(log_p, targets, rows):
    """Accuracy of each assignment (A,): ``rows`` (A, C) are columns of ``log_p`` (N, words)."""
    return np.array([(log_p[:, row].argmax(axis=1) == targets).mean() for row in rows])


def enough_words(tokenizer, labels, spaced, avoid=()):
    """`whole_words` but those to ``avoid``. Raises ValueError where there are fewer than ``labels``."""
    words = {number: word for number, word in whole_words(tokenizer, spaced).items() if word not in avoid}
    if len(words) < len(labels):
        raise ValueError(f"verbalizer: {len(labels)} classes need as many words, and this vocabulary has {len(words)}")
    return words


def null_verbalizer(labels, tokenizer, rng, spaced=True, avoid=()):
    """A `Verbalizer` of one word a class drawn by lot; ``avoid``: words that are not to be drawn."""
    words = list(enough_words(tokenizer, labels, spaced, avoid).values())
    return Verbalizer({label: words[i] for label, i in zip(labels, rng.choice(len(words), len(labels), replace=False))})
