"""Head only: the pre-trained model is a fixed function, and only the map from its states to the labels is trained.

    logits = pool(states) W + b,   states from the frozen model

Also called feature-based transfer or a linear probe: Devlin, Chang, Lee, Toutanova, NAACL 2019, arXiv:1810.04805, section 5.3.

Shapes: W (D, C), b (C,). Count: D C + C for C classes (D V for a language model whose output map is not tied); it is the head's
own, so that nothing is counted besides the head. Nothing need be merged.
"""

from dataclasses import dataclass

from .attach import Method


@dataclass
class Head(Method):
    """Train the task's output map alone; `attach` copies it, so that the base's own stays as it was."""

    name = "head"
    default_lr = 1e-2
    trains = "0, the head alone"

    def count(self, config):
        return 0  # besides the head
