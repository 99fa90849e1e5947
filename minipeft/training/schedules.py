"""Learning-rate schedules: the factor that multiplies the learning rate at each step.

With w warm-up steps of T in all, at step t = 0 ... T - 1:

    warm-up    (t + 1) / w                              while t < w
    linear     (T - t) / (T - w)                        then
    cosine     (1 + cos(pi (t - w) / (T - w))) / 2      then (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, equation 5)
    constant   1                                        then
"""

import math

SCHEDULES = ("linear", "cosine", "constant")


def factor(schedule, step, total, warmup=0):
    """The factor at ``step`` (from 0) of ``total``, the first ``warmup`` of which rise from 0.

    Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    left = max(total - warmup, 1)
    if schedule == "linear":
        return max(0.0, (total - step) / left)
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / left))) / 2
