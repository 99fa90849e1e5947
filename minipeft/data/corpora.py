"""Corpora for pre-training: short raw texts, drawn round by round, from the toy world without end or from a finite collection."""

import re
import sys

import numpy as np

from . import toy
from .pydocs import corpus as manual
from .readers import read_text

HELD = 500         # texts held out, at most,
HELD_SHARE = 0.05  # and of a finite collection at most this share
FEWEST = 20        # texts in a collection that something can be learned from
CHUNK = 5000       # passages of the toy world that a tokenizer is trained on
NAMES = ("toy", "python-docs")


class ToyCorpus:
    """Passages of the toy world, half of them easy, half of medium difficulty; none is ever drawn twice but by chance.

    ``sample``: texts to train a tokenizer on. ``held_out``: texts that training does not draw (see `toy.passages`).
    """

    name = "toy"
    note = "passages of the toy world"

    def __init__(self):
        self.sample = self._drawn(np.random.default_rng([0, 0]), CHUNK)
        self.held_out = self._drawn(np.random.default_rng([0, 1]), HELD)
        self._known = set(self.held_out)

    def draw(self, rng, count):
        """``count`` texts, by ``rng``."""
        out = []
        while len(out) < count:
            out += [text for text in self._drawn(rng, count - len(out)) if text not in self._known]
        return out

    @staticmethod
    def _drawn(rng, count):
        mixed = toy.passages(count // 2, rng, "easy") + toy.passages(count - count // 2, rng, "medium")
        return [mixed[i] for i in rng.permutation(count)]


class TextCorpus:
    """A finite collection of texts: every 20th is held out, the others are drawn in a random order, again and again.

    Args:
        name: what it is called. texts: strings. note: one line on what it is.

    Raises ValueError where there are fewer than 20 texts.
    """

    def __init__(self, name, texts, note):
        if len(texts) < FEWEST:
            raise ValueError(f"corpus: expected at least {FEWEST} texts (lines, or paragraphs between empty lines) in {name}, "
                             f"got {len(texts)}; give a longer file")
        self.name, self.note = name, note
        every = max(round(1 / HELD_SHARE), -(-len(texts) // HELD))
        self.held_out = texts[::every]
        self.sample = [text for number, text in enumerate(texts) if number % every]

    def draw(self, rng, count):
        """``count`` texts, by ``rng``: no text twice before all were drawn once."""
        orders = [rng.permutation(len(self.sample)) for _ in range(-(-count // len(self.sample)))]
        return [self.sample[i] for i in np.concatenate(orders)[:count]]


def split_texts(text):
    """The texts in a file: paragraphs where empty lines part them, each as one line; else its lines."""
    blocks = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip())
    if len(blocks) < FEWEST:
        blocks = text.splitlines()
    return [line for line in (" ".join(block.split()) for block in blocks) if line]


def read_corpus(name):
    """The corpus of a name among `NAMES`, or of a UTF-8 text file.

    Raises:
        ValueError: no such file, not UTF-8, too few texts, or a Python without its documentation.
    """
    if name == "toy":
        return ToyCorpus()
    if name == "python-docs":
        version = ".".join(map(str, sys.version_info[:2]))
        return TextCorpus(name, manual(), f"CPython's manual as Python {version} has it; other versions have other text")
    return TextCorpus(str(name), split_texts(read_text(name)), f"the texts in {name}")
