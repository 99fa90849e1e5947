"""Few examples: K of each class twice, never the same, and five draws that are fixed."""

from collections import Counter

import pytest

from minipeft.data import Dataset, toy
from minipeft.prompting.few_shot import SEEDS, few_shot


@pytest.fixture(scope="module")
def reviews():
    return toy.dataset("rating", seed=0, train=200, dev=30, test=40)


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_k_of_each_class_in_train_and_dev(shots, reviews):
    drawn = few_shot(reviews, shots, 13)
    for split in ("train", "dev"):
        assert Counter(e.label for e in drawn.splits[split]) == Counter({label: shots for label in range(4)} if shots else {})
        assert set(drawn.splits[split]) <= set(reviews.splits["train"])
    assert not set(drawn.splits["train"]) & set(drawn.splits["dev"])
    assert drawn.splits["test"] == reviews.splits["test"] and drawn.labels == reviews.labels


def test_the_draws_are_five_and_fixed(reviews):
    assert SEEDS == (13, 21, 42, 87, 100)
    drawn = [few_shot(reviews, 4, seed) for seed in (*SEEDS, 13)]
    assert drawn[0] == drawn[5] and len({tuple(each.splits["train"]) for each in drawn}) == 5


def test_dev_is_test_where_there_is_no_test(reviews):
    without = Dataset({split: reviews.splits[split] for split in ("train", "dev")}, reviews.labels)
    assert few_shot(without, 2, 21).splits["test"] == reviews.splits["dev"]
    alone = Dataset({"train": reviews.splits["train"]}, reviews.labels)
    assert set(few_shot(alone, 2, 21).splits) == {"train", "dev"}


def test_too_few(reviews):
    fewest = min(Counter(e.label for e in reviews.splits["train"]).values())
    with pytest.raises(ValueError, match=rf"^shots: the class '\w+' has \d+ training examples; 90 for training and 90 for choosing "
                                         r"need 180; give at most \d+$"):
        few_shot(reviews, 90, 13)
    assert few_shot(reviews, fewest // 2, 13)
