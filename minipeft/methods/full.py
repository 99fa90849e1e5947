"""Full fine-tuning: every parameter of the model is trained, the reference that all other methods are measured against.

    theta <- theta - eta dL/dtheta,   starting from the pre-trained theta_0

Devlin, Chang, Lee, Toutanova, NAACL 2019, arXiv:1810.04805, section 3.2. Count: all N parameters, BERT's pooler included
where the head reads it. Nothing is attached and nothing need be merged.
"""

from dataclasses import dataclass

from .attach import Method
from .shapes import body_size, pooler_sizes


@dataclass
class Full(Method):
    """Train everything in place.

    Args:
        keeps_base: keep a copy of the base, so that it can be switched back to; without one it is changed for good.
    """

    keeps_base: bool = False

    name = "full"
    full_precision = True
    default_lr = 5e-5
    trains = "N, every parameter"

    def base_parameters(self, model):
        return dict(model.named_parameters())

    def count(self, config):
        pooler = sum(d_in * d_out + d_out for d_in, d_out in pooler_sizes(config).values())
        return body_size(config) + pooler
