"""What the exits of a model are trained on: all together, after the model, or on what the model itself says.

    joint            sum_i w_i l_i                  trains everything; w_i = 1, or w_i = i / sum j
    two stages       first l_L on the model, then   sum_{i<L} l_i on the exits, the model frozen
    self-distilled   likewise, then                 sum_{i<L} KL(p_i || p_L),   KL = sum_c p_i (log p_i - log p_L), no labels

    dCE/dz = p - onehot(y),      dKL/dz = p (a - sum_c p a) with a = log p - log p_L

Joint: Teerapittayanon, McDanel, Kung, ICPR 2016, arXiv:1709.01686, section III; the weights i / sum j: Zhou et al., NeurIPS
2020, arXiv:2006.04152, section 3.3. Two stages: Xin, Tang, Lee, Yu, Lin, ACL 2020, arXiv:2004.12993, section 3.2.
Self-distilled: Liu, Zhou, Zhao, Wang, Ju, Deng, Wang, ACL 2020, arXiv:2004.02178, section 3.3.

Shapes: z_i, an exit's logits, and p_i = softmax(z_i), (B, C); l_i = CE(p_i, y).
"""

import math
from dataclasses import dataclass

import numpy as np

from .. import autograd as F


@dataclass
class Joint:
    """sum_i w_i l_i. ``weights``: ``equal`` (1 each), ``depth`` (i / sum j), or L numbers, the first exit's first."""

    weights: object = "equal"

    trains_model = needs_labels = True

    def shares(self, count):
        """w_i of ``count`` exits, an array. Raises ValueError where the given weights are not as many, or no weights."""
        given = self.weights
        named = {"equal": np.ones(count), "depth": np.arange(1, count + 1) / (count * (count + 1) / 2)}
        weights = named.get(given) if isinstance(given, str) else np.asarray(given, np.float64)
        if weights is None or weights.shape != (count,) or not (weights >= 0).all() or not 0 < weights.sum() < math.inf:
            raise ValueError(f"joint: expected equal, depth or {count} weights of 0 or more, one for each exit, got {given!r}")
        return weights

    def __call__(self, logits, labels):
        return sum(F.cross_entropy(z, labels) * float(w) for z, w in zip(logits, self.shares(len(logits))) if w > 0)


@dataclass
class TwoStage:
    """sum_{i<L} l_i, the second stage; the first is the usual fine-tuning of the model alone."""

    trains_model, needs_labels = False, True

    def __call__(self, logits, labels):
        return sum(F.cross_entropy(z, labels) for z in logits[:-1])


@dataclass
class SelfDistilled:
    """sum_{i<L} KL(p_i || p_L): the exits learn to say what the model says, which takes texts and no labels."""

    trains_model = needs_labels = False

    def __call__(self, logits):
        teacher, rows = log_softmax(logits[-1].detach()), max(len(logits[-1]), 1)
        students = [log_softmax(z) for z in logits[:-1]]
        return sum((F.exp(a) * (a - teacher)).sum() for a in students) * (1 / rows)


def log_softmax(z):
    """log p = z - logsumexp(z) over the classes."""
    z = z - z.data.max(axis=-1, keepdims=True)
    return z - F.log(F.exp(z).sum(axis=-1, keepdims=True))  # (B, C)


OBJECTIVES = {"joint": Joint, "two_stage": TwoStage, "self_distilled": SelfDistilled}


@dataclass(eq=False)
class ExitsOutput:
    """``exit_logits``, a list of L Tensors (B, C); ``logits``, the last of them; ``loss``, the objective's, or None."""

    loss: object
    exit_logits: list

    @property
    def logits(self):
        return self.exit_logits[-1]
