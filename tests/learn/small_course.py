"""Courses of one lesson in a folder, for tests of what is done with any course; parts can be replaced by broken ones."""

from minipeft.learn.course import Course

COURSE = '''title = "small"

[[lessons]]
folder = "01_small"
title = "Small"
'''
LESSON = '''# %% [markdown]
# # Small
# %%
#@exercise 01.1 minipeft.autograd.ops:multiply
#@ Return the product, with its gradients.
from minipeft import autograd as F

print(F.matmul)

# %%
#@exercise 01.2 lesson:halve
#@ Return half of x.
### BEGIN SOLUTION
def halve(x):
    """x / 2"""
    return x / 2
### END SOLUTION


print(halve(3))

# %%
#@exercise 01.3 minipeft.methods.lora:LoRALinear.change
#@ Return s U V^T.
from minipeft.methods.lora import LoRALinear

# %% [markdown]
# ## Sources
#
# None.
'''
GRADE = '''"""Tests of the small lesson."""

import numpy as np

from minipeft.autograd import Tensor
from minipeft.learn.claims import exercise, same
from minipeft.nn import Linear


@exercise("01.1")
def test_product(impl, rng):
    """The product of a and b."""
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    same(impl(Tensor(a), Tensor(b)), Tensor(a * b), "a b", 1e-12)


@exercise("01.1")
def test_gradients(impl, rng):
    """da is g b and db is g a."""
    a, b = (Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
    g = rng.standard_normal(3)
    impl(a, b).backward(g)
    same(a.grad, g * b.data, "da", 1e-12)
    same(b.grad, g * a.data, "db", 1e-12)


@exercise("01.2")
def test_half(impl, rng):
    """Half of x."""
    x = rng.standard_normal(4)
    same(impl(x), x / 2, "x / 2", 1e-12)


@exercise("01.3")
def test_change(impl, rng):
    """The change is s U V^T."""
    layer = impl(Linear(4, 3, rng=rng), 2, 0.5, 0.0, rng)
    layer.V.data = rng.standard_normal((3, 2)).astype(np.float32)
    same(layer.change(), 0.5 * layer.U.data @ layer.V.data.T, "the change")
'''
MUTANTS = '''"""Wrong answers to the small lesson."""

from minipeft.autograd import Tensor
from minipeft.learn.claims import mutant


@mutant("01.1", "swapped", "da is g b: you have da = g a.")
def multiply(a, b):
    return Tensor(a.data * b.data, operation="multiply", parents=[(a, lambda g: g * a.data), (b, lambda g: g * b.data)])


@mutant("01.1", "sum", "That is a sum.")
def multiply(a, b):
    return Tensor(a.data + b.data, parents=[(a, lambda g: g), (b, lambda g: g)])


@mutant("01.1", "no_db", "b has no gradient.")
def multiply(a, b):
    return Tensor(a.data * b.data, parents=[(a, lambda g: g * b.data)])


@mutant("01.2", "twice", "That is twice x.")
def halve(x):
    return 2 * x


@mutant("01.2", "whole", "That is x.")
def halve(x):
    return x


@mutant("01.2", "rounded", "Half of x, with its fractions.")
def halve(x):
    return x // 2


@mutant("01.3", "unscaled", "s is missing.")
def change(self):
    return self.U.data @ self.V.data.T


@mutant("01.3", "transposed", "That is the transpose.")
def change(self):
    return (self.scale * self.U.data @ self.V.data.T).T


@mutant("01.3", "negative", "The sign is wrong.")
def change(self):
    return -self.U.data.dtype.type(self.scale) * self.U.data @ self.V.data.T
'''
HINTS = "".join(f'["01.{n}"]\nquestion = "q{n}"\nequation = "e{n}"\npseudocode = "p{n}"\n\n' for n in (1, 2, 3))
PARTS = {"course.toml": COURSE, "01_small/lesson.py": LESSON, "01_small/grade.py": GRADE, "01_small/mutants.py": MUTANTS,
         "01_small/hints.toml": HINTS}


# A course with one kernel.
KERNEL = {
    "course.toml": COURSE + 'kernels = ["01.1"]\n',
    "01_small/lesson.py": '''#@exercise 01.1 lesson:double
#@ Fill out[start:stop] with twice x.
from minipeft.kernels.backend import jit


### BEGIN SOLUTION
@jit
def double(start, stop, x, out):
    """2 x"""
    for i in range(start, stop):
        out[i] = 2 * x[i]
### END SOLUTION
''',
    "01_small/grade.py": '''"""Tests of the kernel."""

import numpy as np

from minipeft.kernels.backend import PARALLEL_THRESHOLD, run_rows
from minipeft.learn.claims import exercise, same


@exercise("01.1")
def test_twice(impl, rng):
    """Every entry is twice that of x."""
    x, out = rng.standard_normal(6), np.zeros(6)
    run_rows(impl, 6, PARALLEL_THRESHOLD, x, out)
    same(out, 2 * x, "2 x", 1e-12)
''',
    "01_small/mutants.py": '''"""Wrong answers to the kernel."""

from minipeft.learn.claims import mutant


@mutant("01.1", "once", "That is x.")
def double(start, stop, x, out):
    for i in range(start, stop):
        out[i] = x[i]
''',
    "01_small/hints.toml": '["01.1"]\nquestion = "q"\nequation = "e"\npseudocode = "p"\n',
}


def make_course(folder, changes=(), parts=PARTS):
    """The small `Course` in a folder, with ``changes``: {file: (text to replace, by what)} or {file: new text}."""
    for name, text in parts.items():
        change = dict(changes).get(name)
        if isinstance(change, str):
            text = change
        elif change is not None:
            assert change[0] in text, f"{name} has no {change[0]!r}"
            text = text.replace(*change)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Course(folder)
