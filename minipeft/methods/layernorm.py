"""LayerNorm tuning: only the gains and biases of the norms are trained.

    y = gamma * (x - mean) / sqrt(variance + eps) + beta        gamma, beta trained (RMSNorm: gamma alone)
    dgamma = sum of g * normalised x,    dbeta = sum of g       over batch and time, g the gradient of y

Houlsby et al., ICML 2019, arXiv:1902.00751, section 3.4 (beside adapters); for language models with many tasks Qi, Ruan,
Zuo, Li, 2022, arXiv:2211.08682 [LN tuning].

Shapes: gamma, beta (D,). Count: 4 D L for the two norms of L blocks, + 2 D for BERT's embeddings or for the final norm
of pre-norm models (half of it with RMSNorm). Trained in place: inference costs what the base costs.
"""

from dataclasses import dataclass

from ..nn import LayerNorm, RMSNorm
from .attach import Method
from .shapes import norm_sizes


@dataclass
class LayerNormTuning(Method):
    """Train every norm in place."""

    name = "layernorm"
    default_lr = 1e-3
    trains = "D of each norm, 2 D where it has a bias"

    def base_parameters(self, model):
        norms = [path for path, module in model.named_modules()
                 if isinstance(module, (LayerNorm, RMSNorm)) and path.partition(".")[0] != "head"]
        return {f"{norm}.{name}": p for norm in norms for name, p in model.get(norm).named_parameters()}

    def count(self, config):
        return sum(norm_sizes(config).values())
