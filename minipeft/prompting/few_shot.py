"""K examples of each class, and as many to choose by: five fixed draws, so that results with few examples can be compared; and
how many examples a prompt is worth.

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
            raise ValueError(f"shots: the class {name!r} has {len(of_class)} training examples; {shots} for training and {shots} "
                             f"for choosing need {2 * shots}; give at most {len(of_class) // 2}")
        order = rng.permutation(len(of_class))
        train += [of_class[i] for i in order[:shots]]
        dev += [of_class[i] for i in order[shots:2 * shots]]
    test = dataset.splits.get("test", dataset.splits.get("dev"))
    mixed = [train[i] for i in rng.permutation(len(train))]
    return Dataset({"train": mixed, "dev": dev, **({"test": test} if test is not None else {})}, dataset.labels)


def data_advantage(sizes, head, prompt):
    """How many examples a prompt is worth: the mean, over the accuracies that both reach, of the examples that it saves.

        integral of N_head(a) - N_prompt(a) da / (a_max - a_min)

    N(a): examples needed for accuracy a, where a curve counts as the best so far and is linear between two sizes. Both curves
    reach the accuracies between the larger of their first values and the smaller of their last.

    Args:
        sizes: (M,) numbers of examples, rising. head, prompt: (M,) accuracies.

    Returns:
        Examples; None where there is no accuracy that both reach.

    Source: Le Scao, Rush, NAACL 2021, arXiv:2103.08493, section 3.
    """
    sizes, curves = np.asarray(sizes, np.float64), [np.maximum.accumulate(np.asarray(c, np.float64)) for c in (head, prompt)]
    low, high = max(c[0] for c in curves), min(c[-1] for c in curves)
    if not low < high:
        return None
    accuracies = np.unique(np.concatenate([[low, high], *curves]))
    accuracies = accuracies[(accuracies >= low) & (accuracies <= high)]
    total = 0.0
    for a, b in zip(accuracies[:-1], accuracies[1:]):  # both N are linear in here, so their mean is that of the two ends
        total += (b - a) * (_needed(sizes, curves[0], a, b) - _needed(sizes, curves[1], a, b))
    return total / (high - low)


def _needed(sizes, curve, a, b):
    """Mean of N over the accuracies from a to b, between which the curve has no corner."""
    right = int(np.searchsorted(curve, b))  # the first size at which b is reached
    slope = (sizes[right] - sizes[right - 1]) / (curve[right] - curve[right - 1])
    return sizes[right - 1] + slope * ((a + b) / 2 - curve[right - 1])
