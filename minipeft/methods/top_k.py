"""Top-k layers: the last k blocks are trained and everything below them is a fixed function.

    theta_l <- theta_l - eta dL/dtheta_l   for l > L - k,   and nothing for the others

The gradient need not be carried below block L - k + 1, which the engine sees by itself: nothing trainable lies there.

Houlsby et al., ICML 2019, arXiv:1902.00751 (as a baseline); Lee, Tang, Lin, 2019, arXiv:1911.03090.

Count: k (4 D^2 + 2 D F + 9 D + F) for BERT and GPT-2, which is k (12 D^2 + 13 D) at F = 4 D. A final norm, which
pre-norm models have above the last block, stays as it is. In an encoder-decoder the blocks are the decoder's. What is
trained stands in the model itself: inference costs what the base costs and nothing need be merged.
"""

from dataclasses import dataclass

from .attach import Method
from .shapes import block_names, block_size


def layers_top_down(names):
    """Paths of the blocks of one stack, the last first: an encoder-decoder's decoder, else all."""
    decoder = [name for name in names if name.startswith("decoder.")]
    return (decoder or list(names))[::-1]


@dataclass
class TopK(Method):
    """Train the last blocks in place.

    Args:
        layers: k, how many; from 1 to the number of blocks L.
    """

    layers: int = 2

    name = "top_k"
    full_precision = True
    default_lr = 1e-4
    trains = "all of k blocks"

    def blocks(self, config):
        """Paths of the blocks that are trained."""
        paths = layers_top_down([name for name, _ in block_names(config)])
        if not 1 <= self.layers <= len(paths):
            raise ValueError(f"top_k: layers must be a whole number from 1 to {len(paths)}, the number of this model's "
                             f"{'decoder ' if config.encoder_decoder else ''}blocks; got {self.layers}")
        return paths[:self.layers]

    def base_parameters(self, model):
        inside = tuple(f"{block}." for block in self.blocks(model.config))
        return {path: p for path, p in model.named_parameters() if path.startswith(inside)}

    def count(self, config):
        return sum(block_size(config, block) for block in self.blocks(config))
