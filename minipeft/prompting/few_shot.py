"""K examples of each class, and as many to choose by: five fixed draws, so that results with few examples can be compared.

Source: Gao, Fisch, Chen, ACL 2021, arXiv:2012.15723, section 4: train and dev of K a class, the seeds 13, 21, 42, 87 and 100, and
the mean and standard deviation over them. A dev set larger than train would be labels that one has not got (Perez, Kiela, Cho,
NeurIPS 2021, arXiv:2105.11447).
"""

import numpy as np

from ..data import Dataset

SEEDS = (13, 21, 42, 87, 100)


def few_shot(dataset, shots, seed):
    """A `Dataset` with ``shots`` examples of each class in train, and as many others in dev; its other splits as they are.

    Args:
        dataset: a `Dataset` with train; the whole of its dev becomes test where it has no test. shots: K, 0 for none.
        seed: of the draw; see `SEEDS`.

    Raises ValueError for a class with fewer than 2 K examples in train.
    """
    rng, train, dev = np.random.default_rng(seed), [], []
    examples = dataset.splits["train"]
    for label, name in enumerate(dataset.labels):
        of_class = [e for e in examples if e.label == label]
        if len(of_class) < 2 * shots:
            raise ValueError(f"shots: the class {name!r} has {len(of_class)} training examples; {shots} for training and {shots} for "
                             f"choosing need {2 * shots}; give at most {len(of_class) // 2}")
        order = rng.permutation(len(of_class))
        train += [of_class[i] for i in order[:shots]]
        dev += [of_class[i] for i in order[shots:2 * shots]]
    test = dataset.splits.get("test", dataset.splits.get("dev"))
    mixed = [train[i] for i in rng.permutation(len(train))]
    return Dataset({"train": mixed, "dev": dev, **({"test": test} if test is not None else {})}, dataset.labels)
