"""Wrong answers to lesson 12, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant

# ---- 12.1 ----


def _longer(mask, tokens, flag=True):
    return None if mask is None else np.concatenate([np.full((len(mask), tokens), flag), mask], axis=1)


def _together(self, vectors, ids):
    prompt = F.broadcast_to(self.prompt, (len(ids), *self.prompt.shape))
    return F.concatenate([prompt, vectors], axis=1)


@mutant("12.1", "behind_the_words", "The prompt stands behind the words: put it before them, along the axis of places.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    tokens, width = self.prompt.shape
    mask = _longer(mask, tokens)
    if past:
        return vectors, mask, virtual
    return F.concatenate([vectors, F.broadcast_to(self.prompt, (len(ids), tokens, width))], axis=1), mask, virtual + tokens


@mutant("12.1", "mask_forgotten",
        "There are n places more, and the mask has no columns for them: put n columns of True before its own.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), mask, virtual + len(self.prompt.data)


@mutant("12.1", "mask_of_padding", "The new columns of the mask are False, by which nobody sees the prompt. They are True.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    mask = _longer(mask, len(self.prompt.data), False)
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), mask, virtual + len(self.prompt.data)


@mutant("12.1", "mask_at_the_end",
        "The mask's new columns stand behind the old ones; the virtual tokens come first, and so do their columns.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    tokens = len(self.prompt.data)
    mask = None if mask is None else np.concatenate([mask, np.ones((len(mask), tokens), bool)], axis=1)
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), mask, virtual + tokens


@mutant("12.1", "at_every_call",
        "With a cache the prompt would come again before every new word. Where `past` is not 0 it is in the cache already.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    return _together(self, vectors, ids), _longer(mask, len(self.prompt.data)), virtual + len(self.prompt.data)


@mutant("12.1", "mask_of_first_call",
        "At a later call the prompt is in the cache, so that the mask needs columns for it as well: extend it before you look at "
        "`past`.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), _longer(mask, len(self.prompt.data)), virtual + len(self.prompt.data)


@mutant("12.1", "not_counted",
        "The number of virtual tokens has not grown, so the heads would take the prompt for words. Add n to it.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    mask = _longer(mask, len(self.prompt.data))
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), mask, virtual


@mutant("12.1", "only_its_own",
        "You gave n as the number of virtual tokens. There may be others inside: add n to what self.wrapped gives.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    mask = _longer(mask, len(self.prompt.data))
    if past:
        return vectors, mask, virtual
    return _together(self, vectors, ids), mask, len(self.prompt.data)


@mutant("12.1", "detached", "No gradient reaches the prompt: use the Parameter self.prompt itself, not its array.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    tokens, width = self.prompt.shape
    mask = _longer(mask, tokens)
    if past:
        return vectors, mask, virtual
    prompt = F.Tensor(np.broadcast_to(self.prompt.data, (len(ids), tokens, width)))
    return F.concatenate([prompt, vectors], axis=1), mask, virtual + tokens


# ---- 12.2 ----


def _drawn(n, first, candidates, table, rng, twice=None):
    missing = n - len(first)
    drawn = rng.choice(candidates, missing, replace=missing > len(candidates) if twice is None else twice)
    return table[[*first, *drawn]]


@mutant("12.2", "normal", "The random start is drawn from a normal distribution; it is uniform, from -0.5 to 0.5.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.standard_normal((n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "only_positive", "The random start goes from 0 to 1; it must go from -0.5 to 0.5.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(0, 1, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "float64",
        "The random start is float64 and the model float32: make it of the table's type with astype(table.dtype).")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1]))
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "labels_drawn",
        "For `labels` you drew the label words as they came. They must come first, in their order, each once.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "labels_repeated",
        "You repeated the label words until all virtual tokens had one. Each comes once; the rest is drawn from the whole table.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return table[[self.words[i % len(self.words)] for i in range(n)]]
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "words_ignored", "For `vocabulary` with words given, draw among these and not from the whole table.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    return _drawn(n, self.words[:n] if self.initial == "labels" else [], np.arange(len(table)), table, rng)


@mutant("12.2", "twice",
        "A word may come twice although there are enough: draw with replace=False while there are as many words as are needed.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng, True)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng, True)


@mutant("12.2", "never_twice", "Where fewer words are given than are needed, some must come twice: draw with replace=True then.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng, False)
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng, False)


@mutant("12.2", "all_label_words", "There may be more label words than virtual tokens: take the first n of them.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        drawn = rng.choice(len(table), max(n - len(self.words), 0), replace=n - len(self.words) > len(table))
        return table[[*self.words, *drawn]]
    return _drawn(n, [], np.asarray(self.words or np.arange(len(table))), table, rng)


@mutant("12.2", "first_rows",
        "You took the first rows of the table. Draw them with rng; the first rows of a vocabulary are its special tokens, and a "
        "slice shares its numbers with the model.")
def start(self, table, rng):
    n = self.num_virtual_tokens
    if self.initial == "random":
        return rng.uniform(-0.5, 0.5, (n, table.shape[1])).astype(table.dtype)
    if self.initial == "labels":
        return _drawn(n, self.words[:n], np.arange(len(table)), table, rng)
    return table[:n] if self.words is None else _drawn(n, [], np.asarray(self.words), table, rng)


# ---- 12.3 ----


@mutant("12.3", "below_zero",
        "Some positions are negative, which would take vectors from the other end of the table: none may be below 0.")
def forward(self, length, mask=None, past=0):
    return self.wrapped(length, mask, past) + self.by


@mutant("12.3", "other_way", "You moved the positions by -self.by: add it.")
def forward(self, length, mask=None, past=0):
    return np.maximum(self.wrapped(length, mask, past) - self.by, 0)


@mutant("12.3", "mask_forgotten", "Padding is counted as if it were words: pass the mask on to self.wrapped.")
def forward(self, length, mask=None, past=0):
    return np.maximum(self.wrapped(length, None, past) + self.by, 0)


@mutant("12.3", "past_forgotten", "With places in a cache the positions start at 0 again: pass `past` on to self.wrapped.")
def forward(self, length, mask=None, past=0):
    return np.maximum(self.wrapped(length, mask, 0) + self.by, 0)


@mutant("12.3", "counted_anew",
        "You counted the places yourself, and lost what is inside: other methods' movements and padding. Move what self.wrapped "
        "gives.")
def forward(self, length, mask=None, past=0):
    return np.maximum(np.arange(past, past + length)[None] + self.by, 0)


@mutant("12.3", "mirrored", "You took the absolute value, so that a negative position becomes a positive one. It must become 0.")
def forward(self, length, mask=None, past=0):
    return np.abs(self.wrapped(length, mask, past) + self.by)


# ---- 12.4 ----


@mutant("12.4", "products", "You compared products, in which long vectors win. A cosine is the product divided by both lengths.")
def nearest_words(prompt, table, count):
    return np.argsort(-(prompt @ table.T), axis=1, kind="stable")[:, :count]


@mutant("12.4", "distances", "You compared distances, in which lengths count. The cosine compares directions alone.")
def nearest_words(prompt, table, count):
    distances = ((prompt[:, None] - table[None]) ** 2).sum(axis=2)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


@mutant("12.4", "farthest",
        "np.argsort puts the smallest first, so you have the words that are farthest: sort the cosines with a minus.")
def nearest_words(prompt, table, count):
    lengths = np.linalg.norm(prompt, axis=1)[:, None] * np.linalg.norm(table, axis=1)
    cosines = np.where(lengths > 0, (prompt @ table.T) / np.where(lengths > 0, lengths, 1), 0)
    return np.argsort(cosines, axis=1, kind="stable")[:, :count]


@mutant("12.4", "reversed", "The right words, but the nearest comes last.")
def nearest_words(prompt, table, count):
    lengths = np.linalg.norm(prompt, axis=1)[:, None] * np.linalg.norm(table, axis=1)
    cosines = np.where(lengths > 0, (prompt @ table.T) / np.where(lengths > 0, lengths, 1), 0)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count][:, ::-1]


@mutant("12.4", "not_a_number", "A row of zeros has the length 0, and 0 / 0 is not a number. Divide by 1 where the length is 0.")
def nearest_words(prompt, table, count):
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (prompt @ table.T) / (np.linalg.norm(prompt, axis=1)[:, None] * np.linalg.norm(table, axis=1))
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


@mutant("12.4", "columns", "You divided by the lengths of columns. The length of a vector is that of a row: sum over axis 1.")
def nearest_words(prompt, table, count):
    a, b = (x / np.maximum(np.linalg.norm(x, axis=0), 1e-12) for x in (prompt, table))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :count]


@mutant("12.4", "for_each_word",
        "You sorted the virtual tokens for each word. For each virtual token the words are wanted: sort along axis 1 of (n, V).")
def nearest_words(prompt, table, count):
    lengths = np.linalg.norm(prompt, axis=1)[:, None] * np.linalg.norm(table, axis=1)
    cosines = np.where(lengths > 0, (prompt @ table.T) / np.where(lengths > 0, lengths, 1), 0)
    return np.argsort(-cosines, axis=0, kind="stable")[:, :count]
