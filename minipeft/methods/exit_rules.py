"""When an example may leave early: three rules, and the walk in which the examples that have left cost nothing any more.

    entropy      U(z) < s,                    U = H / log C in [0, 1],   H = logsumexp(z) - sum z e^z / sum e^z
    margin       p_first - p_second > 1 - s,  p = softmax(z)
    confident    the same for the t-th of N words, with 1 - min(1, 0.9 (1 - s) + 0.1 e^(-tau t / N)) in the place of s > 0
    patience     t agreements in a row,       t = 1 + floor((1 - s) L);  exits agree where their largest logits are of one class

z (B, C) are an exit's logits and s, the looseness, lies in [0, 1]. At s = 0 no example leaves before the last of the L
exits, and a larger s never makes one leave later.

Entropy: Teerapittayanon, McDanel, Kung, ICPR 2016, arXiv:1709.01686, section III, divided by log C as in Liu et al., ACL
2020, arXiv:2004.02178, section 3.4. Margin: Schuster et al., NeurIPS 2022, arXiv:2207.07061, section 3.3. Patience: Zhou et
al., NeurIPS 2020, arXiv:2006.04152, section 3.2. What is saved: Xin et al., ACL 2020, arXiv:2004.12993, section 4.1.
"""

import math
from typing import NamedTuple

import numpy as np

from ..autograd import Tensor, no_grad

# ---- rules -----------------------------------------------------------------------------------------------------


def entropy(logits):
    """U = H / log C for each row, in [0, 1]: 0 where one class has all the probability, 1 where all have the same."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)  # so that no term of H is negative
    e = np.exp(z)
    total = e.sum(axis=1)  # (B,)
    return (np.log(total) - (z * e).sum(axis=1) / total) / math.log(z.shape[1])  # (B,)


def margin(logits):
    """The largest probability of each row minus the second largest, in [0, 1]."""
    z = logits.astype(np.float64)
    e = np.sort(np.exp(z - z.max(axis=1, keepdims=True)), axis=1)  # (B, C)
    return (e[:, -1] - e[:, -2]) / e.sum(axis=1)  # (B,)


class Rule:
    """Base of the rules. ``looseness`` s is a number from 0 (nobody leaves early) to 1."""

    def __init__(self, looseness):
        if not 0 <= looseness <= 1:
            raise ValueError(f"looseness: expected a number from 0 (nobody leaves early) to 1, got {looseness}")
        self.looseness = looseness

    def __repr__(self):
        return f"{type(self).__name__}({self.looseness})"

    def __call__(self, logits, memory, exits):
        """Who leaves at this exit.

        Args:
            logits: (B, C) array. memory: what this rule returned of these rows at the exit before, None at the first.
            exits: L, the number of exits.

        Returns:
            (B,) booleans, True for a row that leaves; and what to remember, an array with a row for each, or None.
        """
        raise TypeError(f"{type(self).__name__} does not say who leaves")

    def at(self, token, length):
        """The rule for the ``token``-th of at most ``length`` written tokens; the same for all, unless a rule says otherwise."""
        return self


class Entropy(Rule):
    """Leave where the distribution over the classes is sharp enough."""

    def __call__(self, logits, memory, exits):
        return entropy(logits) < self.looseness, None


class Margin(Rule):
    """Leave where the first class is far enough ahead of the second."""

    def __call__(self, logits, memory, exits):
        return margin(logits) > 1 - self.looseness, None


class Confident(Margin):
    """The margin rule with a threshold that falls from token to token, because an early mistake spoils all that follows.

    Args:
        looseness: s, from 0 (every token passes all blocks) to 1. tau: how fast the threshold falls.
    """

    def __init__(self, looseness, tau=4.0):
        super().__init__(looseness)
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau: expected a number of 0 or more, got {tau}")
        self.tau = tau

    def at(self, token, length):
        if self.looseness == 0:
            return self
        threshold = 0.9 * (1 - self.looseness) + 0.1 * math.exp(-self.tau * token / length)
        return Margin(1 - min(1.0, threshold))


class Patience(Rule):
    """Leave where enough exits in a row have named the same class."""

    def patience(self, exits):
        """t, from L + 1, which is never reached, down to 1."""
        return 1 + math.floor((1 - self.looseness) * exits)

    def __call__(self, logits, memory, exits):
        named = logits.argmax(axis=1)  # (B,)
        agreed = np.zeros_like(named) if memory is None else np.where(named == memory[:, 0], memory[:, 1] + 1, 0)
        return agreed >= self.patience(exits), np.stack([named, agreed], axis=1)  # (B,), (B, 2)


RULES = {"entropy": Entropy, "margin": Margin, "patience": Patience}


# ---- the walk --------------------------------------------------------------------------------------------------


class Exited(NamedTuple):
    """``logits`` (B, C) of the exit at which each example left, and ``layers`` (B,), that exit's number from 1."""

    logits: np.ndarray
    layers: np.ndarray


def walk(model, heads, rule, input_ids, attention_mask=None, token_type_ids=None):
    """Run a batch through the blocks, and after each leave behind the examples whose exit the rule accepts.

    Args:
        model: an Encoder or Decoder. heads: L of them, the last one the model's own. rule: a `Rule`.
        input_ids, attention_mask, token_type_ids: as the model takes them, (B, T).

    Returns:
        `Exited`. The blocks that follow an exit see only the rows that went on: states, mask and position ids alike.

    Raises:
        ValueError: the rows go through different attachments, which would not notice that some rows have left.
    """
    attached = [wrapper for attachment in vars(model).get("attachments", {}).values() for wrapper in attachment.wrappers.values()]
    if any(getattr(wrapper, "rows", None) is not None for wrapper in attached):
        raise ValueError("early exit: the rows of this batch go through different attachments, but the exits were trained for "
                         "one; predict with each attachment by itself")
    with no_grad():
        x, mask, position_ids, virtual = model.enter(input_ids, attention_mask, token_type_ids)
        here, memory, logits = np.arange(len(x)), None, None  # here: which examples the rows of x are
        layers = np.full(len(x), len(heads))
        for number, (block, head) in enumerate(zip(model.blocks, heads), 1):
            x = block(x, mask, position_ids)
            z = head(model.normalised(x), mask, virtual).data  # (B', C)
            logits = np.empty_like(z) if logits is None else logits
            logits[here] = z  # of those that go on a later exit writes again
            if number == len(heads):
                break
            leaves, memory = rule(z, memory, len(heads))
            if leaves.any():
                layers[here[leaves]] = number
                x, mask, position_ids, here, memory = _rows(~leaves, x, mask, position_ids, here, memory)
            if not len(here):
                break
    return Exited(logits, layers)


def _rows(stay, x, mask, position_ids, here, memory):
    """The rows that go on, of everything that has a row for each example."""
    choose = lambda array: array if array is None or len(array) != len(stay) else array[stay]
    return Tensor(x.data[stay]), choose(mask), choose(position_ids), here[stay], choose(memory)


def ideal_cost(layers, exits):
    """The share of the full model's blocks that examples pass which leave at ``layers``: sum i N_i / (L sum N_i)."""
    return float(np.mean(layers)) / exits
