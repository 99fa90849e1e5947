"""LoRA+: LoRA whose V, the matrix that starts at zero, learns faster than U.

    h = x W + b + s (x U) V^T,      eta_V = lambda eta_U   with lambda > 1

In a wide model equal rates leave U's share of learning too large or V's too small; a ratio mends it. The paper's B is V.

Hayou, Ghosh, Yu, ICML 2024, arXiv:2402.12354, section 4.

Shapes, count and merging are LoRA's.
"""

from dataclasses import dataclass

from .lora import LoRA


@dataclass
class LoRAPlus(LoRA):
    """LoRA with two learning rates.

    Args (besides LoRA's):
        lr_ratio: lambda; the given learning rate is U's, and V's is so many times that.
    """

    lr_ratio: float = 16.0

    name = "lora_plus"
    default_lr = 2e-4

    def lr_scale(self, path):
        return self.lr_ratio if path.endswith(".V") else 1.0
