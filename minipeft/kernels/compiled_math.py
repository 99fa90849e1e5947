"""Exponential, error function and maximum inside compiled loops, written so that LLVM can use vector instructions.

In float32 ``exp`` and ``erf`` are polynomials; calling libm once per element would be some forty times slower. In
float64 they are libm's.

exp(x) = 2^n exp(r),  n = round(x / ln 2),  r = x - n ln 2,  |r| <= 0.35: seven Taylor terms leave an error below
1e-8, and 2^n is written straight into the exponent bits. Largest relative error in float32: 2e-7.

erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2),  t = 1 / (1 + p x)  for x >= 0, error below 1.5e-7
(Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, formula 7.1.26).
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from .backend import jit

F = np.float32


def exp(x):
    """e^x of a scalar; in compiled code a polynomial for float32."""
    return math.exp(x)


def erf_from_exp(x, exp_minus_x2):
    """erf(x) of a scalar, given exp(-x^2), which the float32 polynomial needs and the derivative shares."""
    return math.erf(x)


@overload(exp, inline="always")
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp32(x):
        inside = min(max(x, F(-87.33)), F(88.72))
        n = np.floor(inside * F(1.44269504) + F(0.5))
        r = inside - n * F(0.69314718)
        p = F(1 / 5040)
        p = p * r + F(1 / 720)
        p = p * r + F(1 / 120)
        p = p * r + F(1 / 24)
        p = p * r + F(1 / 6)
        p = p * r + F(0.5)
        p = p * r + F(1)
        p = p * r + F(1)
        two_to_n = np.int32((np.int32(n) + 127) << 23).view(np.float32)
        y = p * two_to_n
        if x < F(-87.33):  # also -inf
            y = F(0)
        if x > F(88.72):
            y = F(np.inf)
        return y if x == x else x  # NaN stays NaN

    return exp32


@overload(erf_from_exp, inline="always")
def _erf_from_exp(x, exp_minus_x2):
    if x != types.float32:
        return lambda x, exp_minus_x2: math.erf(x)

    def erf32(x, exp_minus_x2):
        t = F(1) / (F(1) + F(0.3275911) * abs(x))
        p = F(1.061405429)
        p = p * t + F(-1.453152027)
        p = p * t + F(1.421413741)
        p = p * t + F(-0.284496736)
        p = p * t + F(0.254829592)
        y = F(1) - p * t * exp_minus_x2
        return y if x >= F(0) else -y

    return erf32


@jit
def largest(row, size):
    """Largest of the first ``size`` elements, -inf if there is none: eight running maxima, so that none waits for another."""
    low = row.dtype.type(-np.inf)
    a, b, c, d, e, f, g, h = low, low, low, low, low, low, low, low
    whole = size - size % 8
    for j in range(0, whole, 8):
        a, b, c, d = max(a, row[j]), max(b, row[j + 1]), max(c, row[j + 2]), max(d, row[j + 3])
        e, f, g, h = max(e, row[j + 4]), max(f, row[j + 5]), max(g, row[j + 6]), max(h, row[j + 7])
    for j in range(whole, size):
        a = max(a, row[j])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))
