"""First divergence: the first step of a learner's answer whose value, or gradient, is none that the package's own answer has.

A test is run twice, on the learner's file and on the solution's. What is written down each time: every Tensor that a line of the
file makes, with the gradient that reaches it on the way back, the gradient that all of them hand on to each Tensor that came from
outside, and every array that a line binds to a name. Steps need not come in the same order, nor be the same: a value counts as
known where any step of the solution has it, a gradient where the solution hands it on to anything.
"""

import contextlib
import linecache
import os
import sys
from dataclasses import dataclass

import numpy as np

from ..autograd import Tensor
from .claims import array_of
from .grader import shown

MOST = 2000  # steps that are written down; a loop over single numbers has more than anybody reads


@dataclass
class Step:
    """One value: the line that made it, the operation or the name that it was given, the array,
    the gradient (later, or never)."""

    line: int
    name: str
    value: np.ndarray
    gradient: np.ndarray = None
    number: int = 0


@dataclass
class Outside:
    """A Tensor from outside the file: its node, its array where it is a leaf, the sums of gradients handed on to it,
    the last `Step` that did."""

    node: object
    value: np.ndarray
    sums: list
    step: Step = None


class Record:
    """What is written down of one file while `writing`."""

    def __init__(self, path):
        self.path, self.steps = os.path.realpath(path), []
        self.events = []     # ("value" or "gradient", `Step`) in the order in which values were made and gradients reached them
        self.made = {}       # {id: node} of the steps' Tensors
        self.outside = {}    # {id of a node: `Outside`}
        self._mine = {}      # {a code's file name: whether it is this file}

    def add(self, line, name, value):
        """Write a step down; returns it, or None where there are too many."""
        if len(self.steps) >= MOST:
            return None
        self.steps.append(Step(line, name, np.array(value, copy=True), number=len(self.steps)))
        self.events.append(("value", self.steps[-1]))
        return self.steps[-1]

    def hand_on(self, step, node, gradient):
        """Write down what a step hands on to a Tensor, if that came from outside."""
        if id(node) in self.made or gradient is None:
            return
        if id(node) not in self.outside:
            leaf = node.leaf() if node.leaf is not None else None
            self.outside[id(node)] = Outside(node, None if leaf is None else leaf.data.copy(), [])
        known = self.outside[id(node)]
        known.sums.append(array_of(gradient) + (known.sums[-1] if known.sums else 0))
        known.step = step

    def is_mine(self, frame):
        """Whether a frame executes a line of the file."""
        name = frame.f_code.co_filename
        if name not in self._mine:
            self._mine[name] = os.path.realpath(name) == self.path
        return self._mine[name]

    def line_in(self, frame):
        """The line of the file that is being executed in a frame or in those below it; None where none is."""
        for _ in range(12):
            if frame is None:
                return None
            if self.is_mine(frame):
                return frame.f_lineno
            frame = frame.f_back
        return None

    @contextlib.contextmanager
    def writing(self):
        """Inside this block what the lines of the file compute is written down."""
        original, before, record = Tensor.__init__, sys.gettrace(), self

        def made(self, data, requires_grad=False, parents=(), composition=None, operation="tensor"):
            original(self, data, requires_grad, parents, composition, operation)
            line = record.line_in(sys._getframe(1))
            step = record.add(line, operation, self.data) if line is not None and (parents or operation != "tensor") else None
            if step is not None and self.node is not None:
                record.made[id(self.node)] = self.node
                self.node.parents = [(parent, _watched(product, parent, step, record)) for parent, product in self.node.parents]

        Tensor.__init__ = made
        sys.settrace(lambda frame, event, argument: _Locals(record, frame) if record.is_mine(frame) else None)
        try:
            yield self
        finally:
            Tensor.__init__ = original
            sys.settrace(before)


class _Locals:
    """A trace function of one call: writes down the arrays that each line binds."""

    def __init__(self, record, frame):
        self.record, self.line = record, frame.f_lineno
        self.known = {name: id(value) for name, value in frame.f_locals.items()}

    def __call__(self, frame, event, argument):
        for name, value in frame.f_locals.items():
            number = isinstance(value, (float, np.floating))
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" or number:
                if number or self.known.get(name) != id(value):
                    if not number or self.known.get(name) != value:
                        self.record.add(self.line, name, value)
                self.known[name] = value if number else id(value)
        if event == "return" and isinstance(argument, np.ndarray):
            self.record.add(frame.f_lineno, "return", argument)
        self.line = frame.f_lineno
        return self


def _watched(product, parent, step, record):
    """A vector-Jacobian product that writes down the gradient which it is given, and the one that it hands on."""
    def through(g):
        if step.gradient is None:
            step.gradient = np.array(array_of(g), copy=True)
            record.events.append(("gradient", step))
        out = product(g)
        record.hand_on(step, parent, out)
        return out
    return through


def _close(a, b):
    """Whether two arrays are the same up to rounding."""
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-7 + 1e-5 * (np.abs(b).max() if b.size else 0),
                                              equal_nan=True)


def _alike(a, b):
    """Whether two Tensors from outside may be one: leaves of the same value, or neither a leaf."""
    return b is None if a is None else b is not None and _close(a, b)


def _nearest(array, others):
    """Of arrays the one of the same shape that is nearest; None where none is."""
    others = [other for other in others if other.shape == array.shape]
    return min(others, key=lambda other: float(np.abs(other - array).max()) if array.size else 0.0, default=None)


def divergence(mine, reference):
    """The first departure of a `Record` from another.

    Returns:
        {"kind": "value" or "gradient", "operation", "where", "line", "yours", "nearest"}, or {"kind": "missing", ...} where
        all steps are known and the solution has values that they lack, or None where there is nothing to tell.
    """
    partners = {}
    for kind, step in mine.events:
        if kind == "value":
            partners[step.number] = [other for other in reference.steps if _close(step.value, other.value)]
            if not partners[step.number]:
                return _told("value", mine, step, step.value, _nearest(step.value, [other.value for other in reference.steps]))
            continue
        others = [other for other in partners[step.number] if other.gradient is not None]
        if others and not any(_close(step.gradient, other.gradient) for other in others):
            return _told("gradient", mine, step, step.gradient, others[0].gradient)
    for given in mine.outside.values():
        known = [total for other in reference.outside.values() if _alike(given.value, other.value) for total in other.sums]
        if known and not any(_close(given.sums[-1], total) for total in known):
            return _told("gradient", mine, given.step, given.sums[-1], _nearest(given.sums[-1], known))
    lacking = [other for other in reference.steps if not any(_close(step.value, other.value) for step in mine.steps)]
    if lacking and mine.steps:
        return {**_told("missing", mine, mine.steps[-1], mine.steps[-1].value, None), "operation": lacking[0].name,
                "nearest": shown(lacking[0].value)}
    return None


def _told(kind, record, step, yours, nearest):
    """A departure as JSON can hold it."""
    return {"kind": kind, "operation": step.name, "where": f"{os.path.basename(record.path)}:{step.line}",
            "line": linecache.getline(record.path, step.line).strip(), "yours": shown(yours), "nearest": shown(nearest)}
