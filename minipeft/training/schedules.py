"""Learning-rate schedules: the factor that multiplies the learning rate at each step.

With w warm-up steps of T in all, at step t = 0 ... T - 1:

    warm-up    (t + 1) / w                              while t < w
    linear     (T - t) / (T - w)                        then
    cosine     (1 + cos(pi (t - w) / (T - w))) / 2      then (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, equation 5)
    constant   1                                        then
    slanted    (1 + 31 p) / 32, with p = t / c for t < c = floor(T / 10), then 1 - (t - c) / (9 c); it has its own warm-up
               (Howard and Ruder, ACL 2018, arXiv:1801.06146, section 3.2)
"""

import math

SCHEDULES = ("linear", "cosine", "constant", "slanted")
CUT, RATIO = 0.1, 32  # share of the steps in which the slanted triangle rises, and its highest rate over its lowest


def factor(schedule, step, total, warmup=0):
    """The factor at ``step`` (from 0) of ``total``, the first ``warmup`` of which rise from 0.

    Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if schedule == "slanted":
        cut = max(1, math.floor(CUT * total))
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / CUT - 1))
        return (1 + max(0.0, p) * (RATIO - 1)) / RATIO
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    left = max(total - warmup, 1)
    if schedule == "linear":
        return max(0.0, (total - step) / left)
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / left))) / 2
