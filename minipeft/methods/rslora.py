"""Rank-stabilised LoRA: LoRA scaled by alpha over the square root of the rank.

    h = x W + b + s (x U) V^T,      s = alpha / sqrt(rank)

With s = alpha / rank the update shrinks as the rank grows; with the root its size does not depend on the rank.

Kalajdzievski, 2023, arXiv:2312.03732, section 3.

Shapes, gradients, count and merging are LoRA's.
"""

from dataclasses import dataclass

from .lora import LoRA


@dataclass
class RsLoRA(LoRA):
    """LoRA with ``rank_stabilised`` set."""

    rank_stabilised: bool = True

    name = "rslora"
