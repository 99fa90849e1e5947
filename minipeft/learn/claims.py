"""What graders and lists of wrong answers are written with: marks, comparisons that say what they saw, named wrong answers.

    @exercise("08.2")
    def test_beside(impl, rng):
        '''h is x W + b + s (x U) V^T.'''            a claim, which a learner reads where it does not hold
        same(impl(...).forward(x), expected, "h")

    @mutant("08.2", "no_scale", "You left out s = alpha / rank.")
    def forward(self, x): ...
"""

from dataclasses import dataclass

import numpy as np
import pytest

from ..autograd import Tensor
from ..training.optim import AdamW

# Taken before an answer is loaded: what an answer may do to NumPy or to Tensor does not reach the comparison.
ABSOLUTE, ARRAY, FINITE, NAN, WHERE, QUIET, DATA = np.abs, np.asarray, np.isfinite, np.isnan, np.where, np.errstate, Tensor.data

exercise = pytest.mark.exercise  # made known to pytest by the grader


class Broken(AssertionError):
    """A claim that does not hold. ``what``: the name of the value; ``yours``, ``expected``: values or descriptions of them."""

    def __init__(self, message, what="", yours=None, expected=None, largest=None):
        super().__init__(message)
        self.what, self.yours, self.expected, self.largest = what, yours, expected, largest


@dataclass(frozen=True)
class Mutant:
    """A wrong answer: ``answer`` is the function or class, ``diagnosis`` what a learner who wrote it is told."""

    id: str
    name: str
    diagnosis: str
    answer: object


LISTED = []  # every `Mutant` that was made, in order; their functions share names


def mutant(id, name, diagnosis):
    """Make a `Mutant` of the function or class that follows."""
    def listed(answer):
        LISTED.append(Mutant(id, name, diagnosis, answer))
        return answer
    return listed


SEEN = []  # what `same` has compared in the test that runs: arrays, by which a wrong answer is recognised


def array_of(value):
    """The array in a Tensor, an array or a number."""
    if isinstance(value, Tensor):
        return ARRAY(DATA.__get__(value))
    return ARRAY(getattr(value, "data", value) if not isinstance(value, (np.ndarray, np.generic)) else value)


def same(yours, expected, what="the result", tolerance=1e-5, kind=None):
    """Claim that a value is the expected one: the kind of object, the shape, the type of its numbers and the numbers.

    The type is claimed of Tensors and arrays, and of NumPy's single numbers where the expected one is of NumPy too:
    1.0 has no type.

    Args:
        yours, expected: Tensor, array or number. what: its name. tolerance: of the largest entry (and at least of 1e-8); 0 for
            the same bits. kind: a class that ``yours`` must be of; by default a Tensor where ``expected`` is one.

    Raises `Broken`.
    """
    kind = kind or (Tensor if isinstance(expected, Tensor) else None)
    if kind is not None and not isinstance(yours, kind):
        SEEN.append(type(yours).__name__)
        raise Broken(f"{what} is {_a(type(yours).__name__)}; expected {_a(kind.__name__)}",
                     what, type(yours).__name__, kind.__name__)
    if yours is None or isinstance(yours, (str, bytes, dict, set)):
        SEEN.append(type(yours).__name__)
        raise Broken(f"{what} is {yours!r}; expected {describe(array_of(expected))}",
                     what, repr(yours), describe(array_of(expected)))
    a, b = array_of(yours), array_of(expected)
    SEEN.append(a.copy())
    if a.dtype.kind not in "fiub":
        raise Broken(f"{what} does not hold numbers but {a.dtype}", what, str(a.dtype), describe(b))
    if a.shape != b.shape:
        raise Broken(f"{what} has the shape {a.shape}; expected {b.shape}", what, describe(a), describe(b))
    numpys = isinstance(yours, np.generic) and isinstance(expected, (Tensor, np.ndarray, np.generic))
    if a.dtype != b.dtype and (isinstance(yours, (Tensor, np.ndarray)) or numpys):
        raise Broken(f"{what} is {a.dtype}; expected {b.dtype}", what, describe(a), describe(b))
    if not FINITE(a).all() and FINITE(b).all():
        raise Broken(f"{what} has entries that are not finite", what, a, b)
    with QUIET(invalid="ignore"):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        difference = WHERE((a == b) | (NAN(wide_a) & NAN(wide_b)), 0, ABSOLUTE(wide_a - wide_b))
    largest = float(difference.max()) if difference.size else 0.0
    limit = tolerance * max(1e-8 / max(tolerance, 1e-300), float(ABSOLUTE(b[FINITE(b)]).max()) if FINITE(b).any() else 1.0)
    if largest > limit * (tolerance > 0):
        raise Broken(f"{what} differs by up to {largest:.3g}", what, a, b, largest)


def holds(condition, message):
    """Claim something that is no comparison of numbers. Raises `Broken` with the message where it does not hold."""
    SEEN.append(bool(condition))
    if not condition:
        raise Broken(message)


def describe(array):
    """Shape and type of an array in words."""
    return f"{array.dtype}, shape {array.shape}" if array.ndim else f"{array.item()!r}"


def _a(name):
    """A name with its article."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def sizes(rng, count, low=2, high=6):
    """So many sizes from ``low`` to ``high``, drawn, no two of them equal: what a shape has wrong shows."""
    return [int(n) for n in low + rng.permutation(high - low + 1)[:count]]


def moves_only(attached, model, ids, rng):
    """Claim that a step of AdamW on all that has a gradient moves what is trained and leaves the rest of the model to the bit.

    ``attached()`` attaches the method, by the answer, and gives the attachment; ids (B, T).
    """
    before = {path: p.data.copy() for path, p in model.named_parameters()}
    attachment = attached()
    trained = attachment.named_parameters()
    start = {path: p.data.copy() for path, p in trained.items()}
    logits = model(ids).logits
    logits.backward(rng.standard_normal(logits.shape).astype(logits.dtype))
    AdamW([*model.parameters(), *trained.values()], lr=0.1, weight_decay=0.0).step()  # nothing but gradients moves it
    now = dict(model.named_parameters())
    for path in [path for path in before if path not in trained]:
        same(now[path].data, before[path], f"{path} after the step", 0)
    still = [path for path, p in trained.items() if not ABSOLUTE(p.data - start[path]).max() > 0]
    holds(not still, f"{', '.join(still[:2])} has not moved")
