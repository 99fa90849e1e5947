"""One step of Adam or AdamW on one array, in place and in a single pass over memory.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    p <- p - lr * ( (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + decay * p )

Kingma and Ba, ICLR 2015, arXiv:1412.6980, algorithm 1; the decoupled decay is Loshchilov and Hutter, ICLR 2019,
arXiv:1711.05101, algorithm 2. Adam's own decay, an L2 penalty, is added to g by the caller.
"""

import math
from functools import partial

import numpy as np

from .backend import Kernel, jit, run_rows


def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    """Update ``parameter``, ``m`` and ``v`` in place.

    Args:
        parameter, gradient, m, v: arrays of one shape.
        step: number of this step, from 1.
        lr: learning rate.
        beta1, beta2: decay rates of the two moments.
        eps: added to the root of the second moment.
        decay: decoupled weight decay.
        gradient_scale: number that multiplies the gradient first (clipping).
    """
    kind = parameter.dtype.type
    g = gradient * kind(gradient_scale)
    m *= kind(beta1)
    m += kind(1 - beta1) * g
    v *= kind(beta2)
    v += kind(1 - beta2) * g * g
    denominator = np.sqrt(v) * kind(1 / math.sqrt(1 - beta2**step)) + kind(eps)
    parameter *= kind(1 - lr * decay)
    parameter -= kind(lr / (1 - beta1**step)) * m / denominator


@partial(jit, fastmath={"contract"})  # regrouping (1 - b) x x would lose digits, and overflow, where x is large
def _adam_elements(start, stop, p, g, m, v, rate, keep, beta1, beta2, root, eps, scale):
    p, g, m, v = p[start:stop], g[start:stop], m[start:stop], v[start:stop]
    one = p.dtype.type(1)
    for i in range(p.size):
        x = g[i] * scale
        m[i] = beta1 * m[i] + (one - beta1) * x
        v[i] = beta2 * v[i] + (one - beta2) * x * x
        p[i] = p[i] * keep - rate * m[i] / (np.sqrt(v[i]) * root + eps)


def adam_step_compiled(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    """The compiled form of `adam_step_reference`; parameter, m and v must be C-contiguous."""
    if not all(a.flags.c_contiguous for a in (parameter, m, v)):
        raise ValueError("adam_step: the parameter and its moments must be C-contiguous to be updated in place; "
                         "store np.ascontiguousarray(...) in the parameter")
    kind = parameter.dtype.type
    flat = [a.reshape(-1) for a in (parameter, np.ascontiguousarray(gradient), m, v)]
    run_rows(_adam_elements, parameter.size, 4 * parameter.size, *flat, kind(lr / (1 - beta1**step)),
             kind(1 - lr * decay), kind(beta1), kind(beta2), kind(1 / math.sqrt(1 - beta2**step)), kind(eps),
             kind(gradient_scale))


adam_step = Kernel("adam_step", adam_step_reference, adam_step_compiled)
