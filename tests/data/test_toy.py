"""The toy world: its labels against a reader of the texts written for these tests, its splits, its samplers,
and what is refused."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data import read_dataset, toy
from minipeft.data.sources import read_sources

LEVELS = list(toy.DIFFICULTIES)


# ---- a reader of the language, which knows the documentation and none of the code ------------------------------

STRENGTH = {w: s for s, ws in {2: "great wonderful excellent", 1: "good nice pleasant", -1: "bad poor dull",
                               -2: "terrible awful horrible"}.items() for w in ws.split()}
FACTOR = {"very": 1.5, "really": 1.5, "slightly": 0.5, "somewhat": 0.5}


def worth(clause):
    words = clause.split()
    value = STRENGTH[words[-1]]
    value *= FACTOR.get(words[-2], 1.0)
    return value * (-0.5 if "not" in words else 1.0)


def score(text):
    total = 0.0
    for sentence in text.removesuffix(" .").split(" . "):
        first, link, second = re.fullmatch(r"(.+?)(?: (and|but) (.+))?", sentence).groups()
        total += worth(first) + (worth(second) * (2 if link == "but" else 1) if second else 0)
    return total


SAID = [r"(?P<owner>\w+) has a (?P<noun>[\w ]+?)(?: in the (?P<room>\w+))? \.",
        r"there is a (?P<noun>[\w ]+?)(?: in the (?P<room>\w+))? , and (?P<owner>\w+) owns it \.",
        r"the (?P<noun>[\w ]+?)(?: in the (?P<room>\w+))? belongs to (?P<owner>\w+) \."]


def fact(sentence):
    """{attribute: value} of one sentence about a thing."""
    found = next(m for m in (re.fullmatch(p, sentence) for p in SAID) if m).groupdict()
    words = found.pop("noun").split()
    said = {"owner": found["owner"], "thing": words[-1], "room": found["room"]}
    said |= {"colour": next((w for w in words if w in toy.COLOURS), None),
             "size": next((w for w in words if w in toy.SIZES), None)}
    return {name: value for name, value in said.items() if value}


def sentences(text):
    return [f"{s} ." for s in text.removesuffix(" .").split(" . ")]


def truth(text, statement):
    """What a text says of a statement, by the rules of the world: nobody owns two things of one kind."""
    known, claim = [fact(s) for s in sentences(text)], fact(statement)
    same = [f for f in known if (f["owner"], f["thing"]) == (claim["owner"], claim["thing"])]
    if not same:
        return "maybe"
    return "no" if any(same[0][name] != value for name, value in claim.items()) else "yes"


def read_label(name, text, text2):
    """The class that a text has by its words."""
    if name in ("sentiment", "rating"):
        value = score(text)
        if name == "sentiment":
            return "positive" if value > 0 else "negative"
        return "terrible" if value < -2 else "bad" if value < 0 else "good" if value <= 2 else "great"
    if name == "topic":
        return next(t for t, nouns in toy.TOPICS.items() if re.search(rf"the ({'|'.join(nouns)}) ", text))
    if name == "question":
        starts = {"what colour": "colour", "how large": "size", "where": "room", "who": "owner", "what ": "thing"}
        return next(kind for start, kind in starts.items() if text.startswith(start))
    if name == "truth":
        return truth(text, text2)
    if name == "same":
        return "same" if fact(text) == fact(text2) else "different"
    if name.startswith("reading"):
        asked = {"reading": "colour", "reading_size": "size", "reading_room": "room", "reading_owner": "owner",
                 "reading_thing": "thing"}[name]
        key, names = ("owner", toy.PEOPLE) if asked == "thing" else ("thing", toy.THINGS)  # what tells which fact is asked about
        known = next(word for word in text2.split() if word in names)
        (told,) = (f for f in map(fact, sentences(text)) if f[key] == known)
        assert all(told[attribute] in text2.split() for attribute in told if attribute != asked)
        assert told[asked] not in text2.replace("how large", "").split()
        assert asked in ("owner", "thing") or f"{known} of {told['owner']}" in text2
        return told[asked]
    grammatical = any(re.fullmatch(p, text) for p in SAID)
    if grammatical:
        words = re.search(r"\b(?:a|the) ([\w ]+?)(?: in the| ,| belongs| \.)", text)[1].split()
        grammatical = len(words) == 3 and words[0] in toy.SIZES and words[1] in toy.COLOURS and words[2] in toy.THINGS
        said = fact(text)
        grammatical &= said["owner"] in toy.PEOPLE and said.get("room") in toy.ROOMS
    return "right" if grammatical else "wrong"


# ---- labels and splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toy.TASKS)
@pytest.mark.parametrize("difficulty", LEVELS)
def test_labels_follow_from_the_words_but_for_the_noise(name, difficulty):
    data = toy.dataset(name, difficulty, seed=3, train=600, dev=100, test=100)
    noise, wrong, total = toy.DIFFICULTIES[difficulty].noise, 0, 0
    for examples in data.splits.values():
        for e in examples:
            wrong += read_label(name, e.text, e.text2) != data.labels[e.label]
            total += 1
    assert toy.bayes_accuracy(difficulty) == 1 - noise
    assert wrong == 0 if noise == 0 else abs(wrong / total - noise) < 4 * (noise * (1 - noise) / total) ** 0.5
    counts = Counter(e.label for e in data.splits["train"])
    assert len(counts) == len(data.labels) and max(counts.values()) < 3 * min(counts.values())


@pytest.mark.parametrize("name", toy.TASKS)
def test_no_text_is_in_two_splits_or_twice_whatever_the_sizes_and_seeds(name):
    one, other = toy.dataset(name, seed=0, train=300, dev=50, test=50), toy.dataset(name, seed=1, train=200, dev=90, test=60)
    keys = {split: [{e[:2] for e in data.splits[split]} for data in (one, other)] for split in one.splits}
    assert all(len(keys[split][i]) == len(data.splits[split]) for split in keys for i, data in enumerate((one, other)))
    together = {split: a | b for split, (a, b) in keys.items()}
    assert (not together["train"] & together["dev"] and not together["dev"] & together["test"]
            and not together["train"] & together["test"])
    assert keys["train"][0] != keys["train"][1]


def test_a_split_is_a_share_of_all_texts():
    counts = Counter(toy.split_of(f"text {i}") for i in range(20000))
    for split, share in {"train": 0.7, "dev": 0.1, "test": 0.2}.items():
        assert abs(counts[split] / 20000 - share) < 0.015
    assert {toy.split_of("a", f"b {i}") for i in range(50)} == {"train", "dev", "test"}


@given(seed=st.integers(0, 10**6), name=st.sampled_from(list(toy.TASKS)), difficulty=st.sampled_from(LEVELS))
def test_the_seed_decides(seed, name, difficulty):
    settings = {"train": 12, "dev": 3, "test": 3}
    assert toy.dataset(name, difficulty, seed, **settings) == toy.dataset(name, difficulty, seed, **settings)


@given(seed=st.integers(0, 10**6))
def test_a_review_is_worth_the_sum_of_its_clauses(seed):
    said = toy.review(np.random.default_rng(seed), toy.DIFFICULTIES["hard"])
    assert said.score == pytest.approx(score(said.text)) and said.score != 0
    assert read_label("topic", said.text, None) == said.topic


def test_what_the_documentation_says():
    assert worth("the soup was not terrible") == 1 and score("the soup was good but the bread was not great .") == -1
    assert toy.rating(-2.5) == "terrible" and toy.rating(-2) == "bad" and toy.rating(2) == "good" and toy.rating(2.5) == "great"


# ---- few examples, writing, raw text, files --------------------------------------------------------------------


@pytest.mark.parametrize("name", toy.TASKS)
@pytest.mark.parametrize("shots", [1, 4])
def test_few_shots_are_as_many_of_each_class(name, shots):
    data = toy.dataset(name, "easy", seed=5, shots=shots, test=20)
    for split in ("train", "dev"):
        assert Counter(e.label for e in data.splits[split]) == {label: shots for label in range(len(data.labels))}
    assert len(data.splits["test"]) == 20


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
@pytest.mark.parametrize("name", ["sentiment", "truth"])
def test_few_shots_are_counted_as_they_are_labelled(name, difficulty):
    """With labels that are changed, too, there are K of each class, and some of the K are wrong."""
    data, noise = toy.dataset(name, difficulty, seed=5, shots=100, test=600), toy.DIFFICULTIES[difficulty].noise
    wrong = {split: [read_label(name, e.text, e.text2) != data.labels[e.label] for e in part]
             for split, part in data.splits.items()}
    for split in ("train", "dev"):
        assert Counter(e.label for e in data.splits[split]) == {label: 100 for label in range(len(data.labels))}
    for part in wrong.values():
        assert abs(np.mean(part) - noise) < 4 * (noise * (1 - noise) / len(part)) ** 0.5
    assert any(wrong["train"]) and any(wrong["test"])


@pytest.mark.parametrize("difficulty", LEVELS)
def test_what_is_to_be_written(difficulty):
    for split in toy.sources("describe", difficulty, train=80, dev=10, test=10).values():
        for source in split:
            record = dict(re.findall(r"(\w+)\[(\w+)\]", source.text))
            record["owner"] = record.pop("name")
            assert len(set(source.references)) == 3 and all(fact(reference) == record for reference in source.references)
    for source in toy.sources("answer", difficulty, train=80, dev=10, test=10)["train"]:
        text, question = re.fullmatch(r"(.+ \.) (.+ \?)", source.text).groups()
        (answer,) = source.references
        assert any(answer in f.values() for f in map(fact, sentences(text))) and question.endswith("?")


# The kinds of verdict behind a review.
ENDINGS = (r"it was \w+ \.", r"all in all , it was \w+ \.", r"this is about \w+ , and it was \w+ \.", r"i \w+ it \.",
           r"\w+ left \w+ \.")


def test_raw_text_judges_no_review_of_dev_or_test_and_is_drawn_by_its_seed():
    drawn = toy.passages(400, seed=1)
    assert drawn == toy.passages(400, seed=1) != toy.passages(400, seed=2) and len(drawn) == 400
    seen = Counter()
    for passage in drawn:
        if "is it true that" in passage:
            text, claim, answer = re.fullmatch(r"(.+ \.) is it true that (.+) \? (\w+) \.", passage).groups()
            assert truth(text, f"{claim} .") == answer
        elif re.search(rf" (was|seemed|found) .*({'|'.join(ENDINGS)})", passage):
            text, endings = re.fullmatch(rf"(.+? \.)((?: (?:{'|'.join(ENDINGS)}))+)", passage).groups()
            label = read_label("rating", text, None)
            said = re.findall(rf" ({'|'.join(ENDINGS)})", endings)
            assert toy.split_of(text) == "train" and 1 <= len(said) <= 3
            for ending in said:
                (kind,) = [kind for kind in ENDINGS if re.fullmatch(kind, ending)]
                topic, verdict = re.fullmatch(r"(?:this is about (\w+) , and |all in all , )?\w+ \w+ (\w+) \.", ending).groups()
                if kind == "i \\w+ it \\.":
                    verdict = next(name for name, (verb, _) in toy.FEELINGS.items() if ending == f"i {verb} it .")
                elif "left" in kind:
                    verdict = next(name for name, (_, mood) in toy.FEELINGS.items() if mood == verdict)
                assert verdict == label and topic in (None, read_label("topic", text, None))
                seen[kind] += 1
    assert set(seen) == set(ENDINGS) and min(seen.values()) > 20


def test_raw_texts_share_no_passage():
    parts = {split: text.splitlines() for split, text in toy.texts("easy", 0, train=3000, dev=50, test=100).items()}
    assert {split: len(lines) for split, lines in parts.items()} == {"train": 3000, "dev": 50, "test": 100}
    drawn = toy.passages(3150, 0, "easy")  # the same draws, of which one came twice
    assert set(drawn[150:]) & set(drawn[:150])
    assert not set(parts["train"]) & {*parts["dev"], *parts["test"]} and not set(parts["dev"]) & set(parts["test"])
    assert toy.texts("easy", 3, 30, 5, 10) == toy.texts("easy", 3, 30, 5, 10) != toy.texts("easy", 4, 30, 5, 10)
    with pytest.raises(ValueError, match="^difficulty: expected one of easy, medium, hard, got 'none'$"):
        toy.texts("none")


@pytest.mark.parametrize("name", [*toy.TASKS, *toy.WRITING])
def test_a_task_is_written_and_read_again(name, tmp_path):
    settings = {"difficulty": "hard", "seed": 2, "train": 30, "dev": 5, "test": 5}
    toy.save(name, tmp_path, **settings)
    if name in toy.WRITING:
        assert read_sources(tmp_path) == toy.sources(name, **settings)
    else:
        assert read_dataset(tmp_path) == toy.dataset(name, **settings)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["topic", "describe", toy.TEXT])
def test_the_file_of_test_is_written_last(name, tmp_path, monkeypatch):
    write, order = toy._write, []
    monkeypatch.setattr(toy, "_write", lambda path, lines: order.append(path.stem) or write(path, lines))
    toy.save(name, tmp_path, train=20, dev=5, test=5)
    assert order[-3:] == ["train", "dev", "test"]


@pytest.mark.parametrize("call,message", [
    (lambda: toy.dataset("mood"), "toy: expected a task among sentiment, rating, topic.*, got 'mood'"),
    (lambda: toy.sources("sentiment"), "toy: expected a task among answer, describe, got 'sentiment'"),
    (lambda: toy.dataset("topic", "hardest"), "difficulty: expected one of easy, medium, hard, got 'hardest'"),
    (lambda: toy.bayes_accuracy("hardest"), "difficulty: expected one of easy, medium, hard, got 'hardest'"),
    (lambda: toy.sources("describe", train=10**6),
     r"toy: this task has not as many different texts as asked for, 1000000 \+ 100"),
])
def test_what_is_refused(call, message, monkeypatch):
    monkeypatch.setattr(toy, "PATIENCE", 20)
    with pytest.raises(ValueError, match=message):
        call()
