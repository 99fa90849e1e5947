"""CPython's own manual as a corpus: text that every Python installation has, so that lessons need no download."""

import re

import numpy as np

from .readers import Dataset, Example

SHORTEST, LONGEST = 40, 600  # characters in a paragraph
SECTIONS, FEWEST, RATIO = 8, 24, 3  # classes of the task; paragraphs in one: at least 24, at most 3 times the smallest's
DEV, TEST = 0.15, 0.2  # shares of a section's paragraphs

BULLET = re.compile(r"^\s*([*\-•]|\d+\.|\[\d+\]|\(\d+\))\s+")
ENDED = re.compile(r"[.:?!][\"'”’)\]]*(\s*\[\d+\])*$")
STRONG = re.compile(r"(?<![\w\"*])\*\*([A-Za-z][^*\"]*)\*\*(?![\w\"*])")
EMPHASIS = re.compile(r"(?<![\w\"'*(,\[])\*([A-Za-z_][^*\"]*?)\*(?![\w*\"])")
CODE = re.compile(r">>>|::=|^\s*\.\.\. |^[+|][-=+| ]|^\s*@\w|^\s*(async )?(def|class) \w+.*:$|"
                  r"^\s*(import|from) \w+( import\b.*)?$")


def _topics():
    """{topic: text} of the standard library's module ``pydoc_data.topics``."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("pydoc_data: this Python has no documentation text (the module pydoc_data.topics); "
                         "install your system's full Python standard library") from None
    return topics


def _joined(lines):
    """Lines of one paragraph as one line: words broken at a hyphen together again, marks of emphasis gone."""
    text = re.sub(r"(?<=[A-Za-z])-\n(?=[a-z])", "-", "\n".join(line.strip() for line in lines))
    text = EMPHASIS.sub(r"\1", STRONG.sub(r"\1", re.sub(r"\s+", " ", text)))
    return text.strip()


def _is_prose(lines, text):
    """Whether a block is a sentence or more, and not a heading, a table, grammar, code or a signature."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    return (len(words) >= 6 and ENDED.search(text) is not None and not any(CODE.search(line) for line in lines)
            and sum(c.isalpha() or c.isspace() for c in text) >= 0.75 * len(text))


def _blocks(text):
    """The blocks between blank lines, as lists of lines; the items of a list are blocks of their own."""
    for block in re.split(r"\n\s*\n", text):
        lines = []
        for line in block.split("\n"):
            if BULLET.match(line) and lines:
                yield lines
                lines = []
            lines.append(BULLET.sub("", line))
        if lines:
            yield lines


def _pieces(text):
    """A paragraph of more than LONGEST characters as several, cut between sentences."""
    piece = ""
    for sentence in re.split(r"(?<=[.?!]) (?=[A-Z\"(])", text):
        if piece and len(piece) + 1 + len(sentence) > LONGEST:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".lstrip()
    yield piece


def _cleaned(text):
    """The paragraphs of prose in one topic's text."""
    out = []
    for lines in _blocks(text):
        joined = _joined(lines)
        if _is_prose(lines, joined):
            out += [piece for piece in _pieces(joined) if SHORTEST <= len(piece) <= LONGEST]
    return out


def paragraphs():
    """(topic, paragraph) of all prose in the manual: plain sentences, one line each, 40 to 600 characters.

    Headings, tables, grammar and code are left out. Many topics repeat parts of larger ones ("if" stands in "compound"
    as well): a paragraph is listed once, under the topic with the most paragraphs.
    """
    cleaned = {topic: _cleaned(text) for topic, text in _topics().items()}
    seen, out = set(), []
    for topic in sorted(cleaned, key=lambda topic: (-len(cleaned[topic]), topic)):
        for paragraph in cleaned[topic]:
            if paragraph not in seen:
                seen.add(paragraph)
                out.append((topic, paragraph))
    return out


def corpus():
    """The paragraphs alone: text to train a tokenizer and a language model on."""
    return [paragraph for _, paragraph in paragraphs()]


def section_task(seed):
    """A classification task: which section of the manual is a paragraph from?

    Args:
        seed: draws which paragraphs of a large section are used, and which go into train, dev and test.

    Returns:
        `Dataset` with the splits train, dev and test (65, 15 and 20 % of each section, no paragraph in two); its classes
        are the (at most 8) sections with the most paragraphs, none of which contains another. Sizes differ between
        versions of Python.

    Raises:
        ValueError: this Python has no documentation text, or too little.
    """
    sections = {}
    for topic, paragraph in paragraphs():
        sections.setdefault(topic, []).append(paragraph)
    large = [topic for topic in sections if len(sections[topic]) >= FEWEST]
    chosen = sorted(large, key=lambda topic: (-len(sections[topic]), topic))[:SECTIONS]
    if len(chosen) < 2:
        raise ValueError(f"pydoc_data: expected at least 2 sections with {FEWEST} paragraphs, got {len(chosen)}")
    most, rng = RATIO * len(sections[chosen[-1]]), np.random.default_rng(seed)
    splits = {"train": [], "dev": [], "test": []}
    for label, topic in enumerate(chosen):
        shuffled = [sections[topic][i] for i in rng.permutation(len(sections[topic]))][:most]
        dev = round(DEV * len(shuffled))
        test = dev + round(TEST * len(shuffled))
        for split, part in (("dev", shuffled[:dev]), ("test", shuffled[dev:test]), ("train", shuffled[test:])):
            splits[split] += [Example(text, None, label) for text in part]
    titles = tuple(_topics()[topic].strip().split("\n")[0].replace('"', "") for topic in chosen)
    return Dataset({split: [part[i] for i in rng.permutation(len(part))] for split, part in splits.items()}, titles)
