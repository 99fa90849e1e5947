"""Verbalizers: which words at the gap of a template stand for which class.

    s(c) = mean over the words w of class c of z_w            z: the model's logits at the gap, over the vocabulary
    q(c) = exp s(c) / sum over the classes c' of exp s(c')    a softmax over the classes alone: other words have no part in it

Sources: Schick and Schütze, EACL 2021, arXiv:2001.07676, section 3.1; several words a class: Schick, Schmid, Schütze,
COLING 2020, arXiv:2010.13641.
"""

import difflib
import re

import numpy as np

from .. import autograd as F

MARKS = "Ġ▁ "  # how vocabularies write the space before a word
BEFORE = "."    # some text before a word: many tokenizers put a space of their own before the first word of all


class Verbalizer:
    """Words for each class.

    Args:
        words: {class: word or list of words}; the classes are numbered in this order.

    Raises ValueError for fewer than 2 classes, a class without a word, and a word that stands for two.
    """

    def __init__(self, words):
        self.words = {label: [each] if isinstance(each, str) else list(each) for label, each in words.items()}
        if len(self.words) < 2:
            raise ValueError(f"verbalizer: expected words for at least 2 classes, got {len(self.words)}")
        owner = {}
        for label, listed in self.words.items():
            if not listed or not all(word.strip() for word in listed):
                raise ValueError(f"verbalizer: the class {label!r} has no word")
            for word in listed:
                if owner.setdefault(word, label) != label or listed.count(word) > 1:
                    raise ValueError(f"verbalizer: the word {word!r} stands twice, for {owner[word]!r} and {label!r}")

    @classmethod
    def parse(cls, text, labels=None):
        """A verbalizer from ``"great=positive,good=positive,terrible=negative"``.

        ``labels``: the classes that there are, in order; each needs a word. Default: those named, in that order.
        """
        words = {label: [] for label in labels or ()}
        for part in re.split(r",(?=[^,=]*=)", text):  # not at the commas of a class's name
            word, equals, label = (piece.strip() for piece in part.partition("="))
            if not word or not equals or not label or label.endswith(","):
                raise ValueError(f"verbalizer: expected WORD=CLASS,WORD=CLASS,..., got {part.strip()!r}")
            if labels is not None and label not in words:
                raise ValueError(f"verbalizer: the data has the classes {', '.join(labels)}, got {label!r}")
            words.setdefault(label, []).append(word)
        return cls(words)

    @property
    def labels(self):
        """The classes, in order."""
        return tuple(self.words)

    def ids(self, tokenizer, spaced=True):
        """[array of the ids of a class's words], for each class; ``spaced``: a space stands before the gap.

        Raises:
            ValueError: a word that is not one token there; the message gives its pieces, and words that are. Two words that
                are the same token.
        """
        out = [np.array([self._id(tokenizer, word, spaced) for word in listed], np.int64) for listed in self.words.values()]
        owner = {}
        for word, number in zip((word for listed in self.words.values() for word in listed), np.concatenate(out).tolist()):
            if number in owner:
                raise ValueError(f"verbalizer: {owner[number]!r} and {word!r} are one token of this model, "
                                 f"{tokenizer.piece_of(number)}; leave one of them out")
            owner[number] = word
        return out

    @staticmethod
    def _id(tokenizer, word, spaced):
        (ids,) = tokens_of(tokenizer, [word], spaced)
        if len(ids) == 1 and ids[0] not in tokenizer.special_ids:
            return ids[0]
        pieces = " ".join(map(tokenizer.piece_of, ids)) or "nothing"
        known = sorted(whole_words(tokenizer, spaced).values())
        close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
        words = close or difflib.get_close_matches(word, [each for each in known if len(each) > 2], n=3, cutoff=0.0)
        raise ValueError(f"verbalizer: {word!r} is not one token of this model but {pieces}; expected a word of its vocabulary"
                         + (f", such as {', '.join(words)}" if words else "")
                         + ("" if close else "; --search-words finds some that fit the classes, given labelled data"))


def tokens_of(tokenizer, words, spaced=True):
    """[ids of each word where text stands before it]; ``spaced``: with a space between the two."""
    front = tokenizer.encode(BEFORE, add_special_tokens=False)
    out = []
    for word, (ids, _) in zip(words, tokenizer.encode_pairs([BEFORE + " " * spaced + word for word in words],
                                                            add_special_tokens=False)):
        apart = ids[:len(front)] == front  # else the word has grown together with what stands before it
        out.append(list(ids[len(front):]) if apart else tokenizer.encode(" " * spaced + word, add_special_tokens=False))
    return out


def whole_words(tokenizer, spaced=True):
    """{id: word} of the pieces of a vocabulary that are words by themselves where a gap is; ``spaced``: behind a space."""
    pieces = [(number, (tokenizer.piece_of(number) or "").lstrip(MARKS)) for number in range(tokenizer.vocab_size)]
    pieces = [(number, word) for number, word in pieces if word.isalpha() and number not in tokenizer.special_ids]
    found = tokens_of(tokenizer, [word for _, word in pieces], spaced)
    return {number: word for (number, word), ids in zip(pieces, found) if ids == [number]}


def class_scores(logits, ids):
    """s (..., C) of logits (..., V) at the gap, a Tensor; ``ids``: see `Verbalizer.ids`."""
    return F.concatenate([F.mean(logits[..., each], axis=-1, keepdims=True) for each in ids], axis=-1)


def restricted_softmax(scores):
    """q (..., C) of the class scores (..., C), as an array in float64."""
    s = np.asarray(scores, np.float64)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
