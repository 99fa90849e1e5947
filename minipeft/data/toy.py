"""A toy world and its language: a small grammar from which raw text and labelled tasks are drawn without end.

The world has people who own things, in colours, sizes and rooms, and six topics about which people say what they think.

    review     clause [("and" | "but") clause] "." ...               clause: the NOUN was [not] [ADVERB] ADJECTIVE
    fact       PERSON has a [SIZE] [COLOUR] THING [in the ROOM] .    and two other wordings of the same
    question   what colour | how large | where | who | what          each about one attribute of a fact
    record     name[PERSON], thing[THING], colour[COLOUR], ...       the same fact as data

What a review is worth follows from its words alone:

    clause = strength(ADJECTIVE) x factor(ADVERB) x (-1/2 if negated);     review = sum of its clauses, behind "but" twice

so "not terrible" is +1 and "good but not great" is 1 + 2 (-1) = -1. A statement about facts is true (yes), false (no) or not
known (maybe). Raw text shows how the words hang together: reviews are followed by one to three verdicts ("all in all , it was
great . anna left happy ."), facts by questions and answers.

Every label is a function of the text, except that a share ``noise`` of the labels is changed to another class, drawn evenly: the
best possible accuracy, Bayes' rule, is 1 - noise. Which split a text belongs to is a function of the text too (see `split_of`),
so that train, dev and test never share one, whatever the sizes and seeds, and raw text never has the verdicts on a review of dev
or test. Only reviews are kept apart so. In 384,000 passages, as many as the encoder was pre-trained on, stand up to 8 % of dev's
and test's pairs of `same` and the `reading` tasks, up to 20 % of the sources of `answer`, and 67 % of those of `describe`, 24 %
of the sentences of `grammar` and 79 % of the questions of `question`.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import files
from .readers import Dataset, Example
from .sources import Source

# ---- words -----------------------------------------------------------------------------------------------------

TOPICS = {
    "food": ("soup", "bread", "salad", "cake", "cheese", "waiter", "menu", "dinner"),
    "film": ("plot", "actor", "scene", "ending", "script", "camera", "cinema", "trailer"),
    "music": ("song", "singer", "guitar", "drummer", "concert", "album", "chorus", "violin"),
    "sport": ("match", "player", "goal", "coach", "team", "race", "stadium", "referee"),
    "travel": ("hotel", "train", "beach", "flight", "island", "guide", "airport", "harbour"),
    "school": ("lesson", "teacher", "exam", "pupil", "homework", "library", "classroom", "lecture"),
}
ADJECTIVES = {"great": 2, "wonderful": 2, "excellent": 2, "good": 1, "nice": 1, "pleasant": 1,
              "bad": -1, "poor": -1, "dull": -1, "terrible": -2, "awful": -2, "horrible": -2}
ADVERBS = {"": 1.0, "very": 1.5, "really": 1.5, "slightly": 0.5, "somewhat": 0.5}
STRONGER = ("", "very", "really")  # the adverbs that go with "not"
NEGATED, BEHIND_BUT = -0.5, 2.0
PEOPLE = ("anna", "ben", "clara", "david", "emma", "felix", "grace", "henry", "ida", "jonas", "lena", "max")
THINGS = ("ball", "cup", "hat", "coat", "box", "lamp", "chair", "book", "bag", "clock", "kite", "key")
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
SIZES = ("small", "large", "tiny", "huge")
ROOMS = ("kitchen", "garden", "attic", "cellar", "hall", "bedroom")
ATTRIBUTES = {"owner": PEOPLE, "thing": THINGS, "colour": COLOURS, "size": SIZES, "room": ROOMS}
TRUTHS = ("no", "maybe", "yes")
RATINGS = ("terrible", "bad", "good", "great")  # below -2, below 0, up to 2, above 2
FEELINGS = {"terrible": ("hated", "angry"), "bad": ("disliked", "sad"), "good": ("liked", "glad"), "great": ("loved", "happy")}


@dataclass(frozen=True)
class Difficulty:
    """How hard a task is.

    ``clauses``: most clauses in a review. ``coherence``: share of its sentences that say what its writer feels. ``negation``:
    share of the clauses that are negated. ``but``: share of the sentences with two clauses that say "but", between opposites.
    ``facts``: most facts in a text. ``noise``: share of the labels that are changed.
    """

    clauses: int
    coherence: float
    negation: float
    but: float
    facts: int
    noise: float


DIFFICULTIES = {"easy": Difficulty(3, 0.95, 0.1, 0.2, 1, 0.0), "medium": Difficulty(4, 0.8, 0.25, 0.4, 2, 0.02),
                "hard": Difficulty(6, 0.65, 0.4, 0.6, 4, 0.1)}


def _pick(rng, values):
    """One of the values, each as likely."""
    return values[int(rng.integers(len(values)))]


# ---- reviews ---------------------------------------------------------------------------------------------------


def _clause(rng, noun, hard, mood):
    """(words, worth) of one clause about a noun, whose worth has the sign ``mood`` (1 or -1)."""
    negated = rng.random() < hard.negation
    adjective = _pick(rng, [word for word, strength in ADJECTIVES.items() if strength * mood * (-1 if negated else 1) > 0])
    adverb = _pick(rng, STRONGER if negated else list(ADVERBS))
    phrase = " ".join(filter(None, ("not" if negated else "", adverb, adjective)))
    person = _pick(rng, PEOPLE)
    words = _pick(rng, (f"the {noun} was {phrase}", f"the {noun} seemed {phrase}", f"{person} found the {noun} {phrase}"))
    return words, ADJECTIVES[adjective] * ADVERBS[adverb] * (NEGATED if negated else 1.0)


class Review(NamedTuple):
    """A review's ``text``, its ``topic`` and its ``score``, which is never 0."""

    text: str
    topic: str
    score: float


def review(rng, hard):
    """Draw a `Review` of a given `Difficulty`: somebody in a good or bad mood, most of whose clauses say so."""
    topic = _pick(rng, list(TOPICS))
    while True:
        mood, left, sentences, score = _pick(rng, (1, -1)), int(rng.integers(1, hard.clauses + 1)), [], 0.0
        while left > 0:
            own = mood if rng.random() < hard.coherence else -mood
            words, worth = _clause(rng, _pick(rng, TOPICS[topic]), hard, own)
            left -= 1
            if left > 0 and rng.random() < 0.5:
                but = rng.random() < hard.but
                more, other = _clause(rng, _pick(rng, TOPICS[topic]), hard, -own if but else own)
                words, left = f"{words} {'but' if but else 'and'} {more}", left - 1
                worth += other * (BEHIND_BUT if but else 1.0)
            sentences.append(f"{words} .")
            score += worth
        if score:
            return Review(" ".join(sentences), topic, score)


def rating(score):
    """The class of a review's score among `RATINGS`."""
    return RATINGS[0 if score < -2 else 1 if score < 0 else 2 if score <= 2 else 3]


# ---- facts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """Somebody owns a thing; what is not said of it is None."""

    owner: str
    thing: str
    colour: "str | None" = None
    size: "str | None" = None
    room: "str | None" = None

    def noun(self):
        """The thing with its attributes, as in "small red ball"."""
        return " ".join(filter(None, (self.size, self.colour, self.thing)))

    def wordings(self):
        """The ways to say this fact, each a sentence."""
        place = f" in the {self.room}" if self.room else ""
        return (f"{self.owner} has a {self.noun()}{place} .", f"there is a {self.noun()}{place} , and {self.owner} owns it .",
                f"the {self.noun()}{place} belongs to {self.owner} .")

    def record(self):
        """The fact as data: ``name[anna], thing[ball], colour[red]``."""
        fields = {"name": self.owner, "thing": self.thing, "colour": self.colour, "size": self.size, "room": self.room}
        return ", ".join(f"{name}[{value}]" for name, value in fields.items() if value)

    def question(self, attribute):
        """The question whose answer is one of this fact's attributes; it tells the others."""
        noun, place = replace(self, **{attribute: None}).noun(), f" in the {self.room}" if self.room else ""
        return {"colour": f"what colour is the {noun} of {self.owner}{place} ?",
                "size": f"how large is the {noun} of {self.owner}{place} ?",
                "room": f"where is the {noun} of {self.owner} ?", "owner": f"who has the {noun}{place} ?",
                "thing": f"what {noun} thing does {self.owner} have{place} ?".replace("  ", " ")}[attribute]

    def known(self):
        """Names of the attributes that are said."""
        return [name for name in ATTRIBUTES if getattr(self, name)]


def facts(rng, count, complete=False):
    """Draw ``count`` facts with different owners and things; unless ``complete``, other attributes may be left out."""
    owners, things = rng.permutation(PEOPLE)[:count], rng.permutation(THINGS)[:count]
    said = lambda values: _pick(rng, values) if complete or rng.random() < 0.7 else None
    return [Fact(str(owner), str(thing), said(COLOURS), said(SIZES), said(ROOMS)) for owner, thing in zip(owners, things)]


def tell(rng, known):
    """The facts in a text, each in one of its wordings."""
    return " ".join(_pick(rng, fact.wordings()) for fact in known)


def statement(rng, known, truth):
    """A `Fact` that is true ("yes"), false ("no") or not known ("maybe") given the facts ``known``, of which one has a colour."""
    fact = _pick(rng, [f for f in known if f.colour])
    if truth == "yes":  # some of what is said is left out
        drop = [name for name in ("colour", "size", "room") if rng.random() < 0.5]
        return replace(fact, **dict.fromkeys(drop))
    if truth == "no":  # the colour is another one
        other = _pick(rng, [c for c in COLOURS if c != fact.colour])
        return replace(fact, colour=other, size=None, room=fact.room if rng.random() < 0.5 else None)
    taken = {f.thing for f in known}  # nothing is said of this thing
    return replace(fact, thing=_pick(rng, [t for t in THINGS if t not in taken]), size=None, room=None)


# ---- splits ----------------------------------------------------------------------------------------------------


def split_of(text, text2=None):
    """"train" (70 % of all texts), "dev" (10 %) or "test" (20 %): a function of the text alone."""
    number = hashlib.sha256(f"{text}\t{text2 or ''}".encode()).digest()[0]
    return "dev" if number < 26 else "test" if number < 77 else "train"


# ---- raw text --------------------------------------------------------------------------------------------------


def _reviewed(rng, hard):
    said = review(rng, hard)
    verdict = rating(said.score)
    verb, mood = FEELINGS[verdict]
    endings = (f"it was {verdict} .", f"all in all , it was {verdict} .", f"this is about {said.topic} , and it was {verdict} .",
               f"i {verb} it .", f"{_pick(rng, PEOPLE)} left {mood} .")
    chosen = rng.permutation(len(endings))[:int(rng.integers(1, 4))]
    return said.text, " ".join([said.text, *(endings[i] for i in chosen)])


def _asked(rng, hard):
    known = facts(rng, int(rng.integers(1, hard.facts + 1)))
    fact, text = _pick(rng, known), tell(rng, known)
    attribute = _pick(rng, fact.known())
    return text, f"{text} {fact.question(attribute)} {getattr(fact, attribute)} ."


def _checked(rng, hard):
    known = [replace(f, colour=f.colour or _pick(rng, COLOURS)) for f in facts(rng, int(rng.integers(1, hard.facts + 1)))]
    truth, text = _pick(rng, TRUTHS), tell(rng, known)
    return text, f"{text} is it true that {_pick(rng, statement(rng, known, truth).wordings()[:1])[:-2]} ? {truth} ."


def _reworded(rng, hard):
    (fact,) = facts(rng, 1)
    one, other = rng.permutation(fact.wordings())[:2]
    return str(one), f"{one} in other words , {other}" if rng.random() < 0.5 else f"{fact.record()} : {one}"


PASSAGES = (_reviewed, _reviewed, _asked, _checked, _reworded)


def passages(count, seed=0, difficulty="medium"):
    """``count`` passages of raw text; ``seed`` may be a Generator.

    What a passage begins with, which is all that is known of it by `split_of`, is of train: the review before its verdicts, but
    not the facts together with the question, statement or rewording behind them.
    """
    rng, hard, out = np.random.default_rng(seed), DIFFICULTIES[difficulty], []
    while len(out) < count:
        text, passage = _pick(rng, PASSAGES)(rng, hard)
        if split_of(text) == "train":
            out.append(passage)
    return out


# ---- tasks -----------------------------------------------------------------------------------------------------


def _sentiment(rng, hard):
    said = review(rng, hard)
    return said.text, None, "positive" if said.score > 0 else "negative"


def _rating(rng, hard):
    wanted = _pick(rng, RATINGS)
    while True:
        said = review(rng, hard)
        if rating(said.score) == wanted:
            return said.text, None, wanted


def _topic(rng, hard):
    said = review(rng, hard)
    return said.text, None, said.topic


def _question(rng, hard):
    (fact,) = facts(rng, 1, complete=True)
    attribute = _pick(rng, list(ATTRIBUTES))
    return fact.question(attribute), None, attribute


def _truth(rng, hard):
    known, truth = facts(rng, int(rng.integers(1, hard.facts + 1)), complete=True), _pick(rng, TRUTHS)
    return tell(rng, known), _pick(rng, statement(rng, known, truth).wordings()), truth


def _same(rng, hard):
    (fact,), label = facts(rng, 1, complete=True), _pick(rng, ("different", "same"))
    other = fact
    if label == "different":
        name = _pick(rng, ("owner", "colour", "size", "room"))
        other = replace(fact, **{name: _pick(rng, [v for v in ATTRIBUTES[name] if v != getattr(fact, name)])})
    i, j = rng.permutation(3)[:2]
    return fact.wordings()[i], other.wordings()[j], label


def _reading(attribute):
    """A task: what a text says of one attribute of a fact."""
    def draw(rng, hard):
        known = facts(rng, int(rng.integers(1, hard.facts + 1)), complete=True)
        fact = _pick(rng, known)
        return tell(rng, known), fact.question(attribute), getattr(fact, attribute)
    return draw


def _grammar(rng, hard):
    text, label = tell(rng, facts(rng, 1, complete=True)), _pick(rng, ("wrong", "right"))
    words = text.split()
    if label == "wrong":
        i = int(rng.integers(len(words) - 2))
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words), None, label


class Task(NamedTuple):
    """A labelled task: ``draw(rng, difficulty)`` gives (text, text2 or None, class); ``labels`` are the classes in order."""

    draw: object
    labels: tuple


TASKS = {"sentiment": Task(_sentiment, ("negative", "positive")), "rating": Task(_rating, RATINGS),
         "topic": Task(_topic, tuple(TOPICS)), "question": Task(_question, tuple(ATTRIBUTES)), "truth": Task(_truth, TRUTHS),
         "same": Task(_same, ("different", "same")), "reading": Task(_reading("colour"), COLOURS),
         "grammar": Task(_grammar, ("wrong", "right")), "reading_size": Task(_reading("size"), SIZES),
         "reading_room": Task(_reading("room"), ROOMS), "reading_owner": Task(_reading("owner"), PEOPLE),
         "reading_thing": Task(_reading("thing"), THINGS)}


def _answer(rng, hard):
    known = facts(rng, int(rng.integers(1, hard.facts + 1)))
    fact = _pick(rng, known)
    attribute = _pick(rng, fact.known())
    return f"{tell(rng, known)} {fact.question(attribute)}", (getattr(fact, attribute),)


def _describe(rng, hard):
    (fact,) = facts(rng, 1)
    return fact.record(), fact.wordings()


TEXT = "text"  # the name of the raw text, which is no task
WRITING = {"answer": _answer, "describe": _describe}  # (rng, difficulty) -> (source, references)
FIRST_WRITING = 8  # the first of their numbers, which are what a generator made of (seed, number) is for


# ---- samplers --------------------------------------------------------------------------------------------------

PATIENCE = 5000  # draws in a row that bring nothing new, after which a task is said to have no more


def _difficulty(name):
    if name not in DIFFICULTIES:
        raise ValueError(f"difficulty: expected one of {', '.join(DIFFICULTIES)}, got {name!r}")
    return DIFFICULTIES[name]


def _drawn(draw, rng, hard, counts, full):
    """{split: rows} of distinct rows of a task; ``full(split, row)`` says whether a row is one too many of its kind."""
    out, seen, misses = {split: [] for split in counts}, set(), 0
    while any(len(out[split]) < count for split, count in counts.items()):
        row = draw(rng, hard)
        split, key = split_of(*row[:2]) if len(row) == 3 else split_of(row[0]), row[:-1]
        if key in seen or len(out[split]) >= counts[split] or full(split, row):
            misses += 1
            if misses > PATIENCE:
                raise ValueError("toy: this task has not as many different texts as asked for, "
                                 f"{' + '.join(map(str, counts.values()))}; ask for fewer, or a higher difficulty")
            continue
        misses = 0
        seen.add(key)
        out[split].append(row)
    return out


def _changed(rng, label, labels, noise):
    """The label, or with probability ``noise`` another one; nothing is drawn without noise."""
    return _pick(rng, [other for other in labels if other != label]) if noise and rng.random() < noise else label


def dataset(name, difficulty="medium", seed=0, train=1000, dev=250, test=500, shots=None):
    """Draw a labelled task.

    Args:
        name: one of `TASKS`. difficulty: ``easy``, ``medium`` or ``hard``. seed: draws everything.
        train, dev, test: how many examples in each split; no text is in two.
        shots: K, for train and dev with just K examples of each class instead (few-shot), counted as they are labelled.

    Returns:
        `Dataset`.

    Raises:
        ValueError: an unknown task or difficulty, or more examples than there are different texts.
    """
    if name not in TASKS:
        raise ValueError(f"toy: expected a task among {', '.join(TASKS)}, got {name!r}")
    task, hard, rng = TASKS[name], _difficulty(difficulty), np.random.default_rng([seed, list(TASKS).index(name)])
    counts, of_class = {"train": train, "dev": dev, "test": test}, {}
    if shots is not None:
        counts |= {"train": shots * len(task.labels), "dev": shots * len(task.labels)}

    def full(split, row):
        if shots is None or split == "test":
            return False
        of_class[split, row[2]] = of_class.get((split, row[2]), 0) + 1
        return of_class[split, row[2]] > shots

    changed = lambda row: (*row[:2], _changed(rng, row[2], task.labels, hard.noise))
    if shots is None:
        rows = {split: list(map(changed, part)) for split, part in _drawn(task.draw, rng, hard, counts, full).items()}
    else:  # changed first, so that K of each class are K as they are labelled
        rows = _drawn(lambda *given: changed(task.draw(*given)), rng, hard, counts, full)
    example = lambda row: Example(row[0], row[1], task.labels.index(row[2]))
    return Dataset({split: [example(row) for row in part] for split, part in rows.items()}, task.labels)


def bayes_accuracy(difficulty="medium"):
    """The best accuracy that any classifier can expect: 1 - noise."""
    return 1 - _difficulty(difficulty).noise


def sources(name, difficulty="medium", seed=0, train=1000, dev=100, test=200):
    """Draw a task of writing one text from another: {split: list of `Source`}; the best exact match is 1.

    Args and errors are those of `dataset`; ``name`` is one of `WRITING`.
    """
    if name not in WRITING:
        raise ValueError(f"toy: expected a task among {', '.join(WRITING)}, got {name!r}")
    rng = np.random.default_rng([seed, FIRST_WRITING + list(WRITING).index(name)])
    counts = {"train": train, "dev": dev, "test": test}
    rows = _drawn(WRITING[name], rng, _difficulty(difficulty), counts, lambda split, row: False)
    return {split: [Source(text, tuple(references)) for text, references in part] for split, part in rows.items()}


def texts(difficulty="medium", seed=0, train=2000, dev=200, test=400):
    """Raw text to model: {split: passages, one a line}; no passage of dev or test is in train."""
    _difficulty(difficulty)
    rng, out, known = np.random.default_rng(seed), {}, set()
    for split, count in (("test", test), ("dev", dev), ("train", train)):
        drawn = []
        while len(drawn) < count:
            drawn += [text for text in passages(count - len(drawn), rng, difficulty) if text not in known]
        out[split] = "".join(f"{text}\n" for text in drawn)
        known |= set(drawn)
    return out


def save(name, folder, **settings):
    """Write a task as files, which `read_dataset`, `read_sources` and `read_texts` read; ``settings`` are those of the sampler.

    The file of test is written last: where it is, all are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name == TEXT:
        drawn = texts(**settings)
        for split in ("train", "dev", "test"):
            _write(folder / f"{split}.txt", drawn[split].splitlines())
        return
    if name in WRITING:
        drawn, header = sources(name, **settings), "text\ttext2"
        rows = {split: [(s.text, r) for s in part for r in s.references] for split, part in drawn.items()}
    else:
        drawn = dataset(name, **settings)
        pair = drawn.has_pairs
        header = "text\ttext2\tlabel" if pair else "text\tlabel"
        rows = {split: [(*((e.text, e.text2) if pair else (e.text,)), drawn.labels[e.label]) for e in part]
                for split, part in drawn.splits.items()}
        _write(folder / "labels.txt", drawn.labels)
    for split, part in rows.items():
        _write(folder / f"{split}.tsv", [header, *("\t".join(row) for row in part)])


def _write(path, lines):
    with files.atomic(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
