"""Several prompts for each labelled task of the toy world: patterns, and the word that stands for each class in them.

The first pattern of a task is close to what the world's raw text says; the others put the same question in other ways, as a
person might who has not seen that text.
"""

from ..data.toy import ATTRIBUTES, COLOURS, PEOPLE, RATINGS, ROOMS, SIZES, THINGS, TOPICS, TRUTHS
from .templates import Template
from .verbalizers import Verbalizer

_SAME = lambda names: {name: name for name in names}
_YES = {"wrong": "no", "right": "yes"}
_ABOUT = {attribute: "name" if attribute == "owner" else attribute for attribute in ATTRIBUTES}  # as the world's records call it


def _reading(answers):
    """The patterns of a question about facts."""
    forms = ("{text} {text2} {mask} .", "{text2} {text} {mask} .", "{text2} {text} the answer is {mask} .",
             "{text} {text2} answer : {mask}")
    return tuple((form, _SAME(answers)) for form in forms)


PATTERNS = {
    "sentiment": (("{text} it was {mask} .", {"negative": "bad", "positive": "good"}),
                  ("{text} all in all , it was {mask} .", {"negative": "terrible", "positive": "great"}),
                  ("{text} i {mask} it .", {"negative": "hated", "positive": "loved"}),
                  ("{text} is it true that it was good ? {mask} .", {"negative": "no", "positive": "yes"})),
    "rating": (("{text} it was {mask} .", _SAME(RATINGS)),
               ("{text} all in all , it was {mask} .", _SAME(RATINGS)),
               ("{text} i {mask} it .", dict(zip(RATINGS, ("hated", "disliked", "liked", "loved"))))),
    "topic": (("{text} this is about {mask} , and it was good .", _SAME(TOPICS)),
              ("{text} this is about {mask} .", _SAME(TOPICS)),
              ("{text} what is this about ? {mask} .", _SAME(TOPICS)),
              ("what is this about ? {text} answer : {mask} .", _SAME(TOPICS))),
    "question": (("{text} this is about the {mask} .", _ABOUT),
                 ("{text} what is this about ? {mask} .", _ABOUT)),
    "truth": (("{text} is it true that {text2} {mask} .", _SAME(TRUTHS)),
              ("{text} is it true that {text2} ? {mask} .", _SAME(TRUTHS)),
              ("{text} {text2} is it true ? {mask} .", _SAME(TRUTHS))),
    "same": (("{text} in other words , {text2} is it true ? {mask} .", {"different": "no", "same": "yes"}),
             ("{text} {text2} is this the same ? {mask} .", {"different": "no", "same": "yes"}),
             ("{text} is it true that {text2} ? {mask} .", {"different": "no", "same": "yes"})),
    "reading": _reading(COLOURS),
    "grammar": (("{text} is it true ? {mask} .", _YES),
                ("{text} is this right ? {mask} .", _YES)),
    "reading_size": _reading(SIZES), "reading_room": _reading(ROOMS), "reading_owner": _reading(PEOPLE),
    "reading_thing": _reading(THINGS),
}


def prompts(task):
    """[(`Template`, `Verbalizer`)] of a task of the toy world. Raises ValueError for a name that is none."""
    if task not in PATTERNS:
        raise ValueError(f"prompts: expected a task of the toy world among {', '.join(PATTERNS)}, got {task!r}")
    return [(Template(pattern), Verbalizer(words)) for pattern, words in PATTERNS[task]]
