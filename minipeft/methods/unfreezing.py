"""Training layer by layer: gradual unfreezing from the top, and learning rates that fall towards the bottom.

    gradual unfreezing     epoch e (from 1) trains the top e groups;  groups: head, block L, block L - 1, ..., block 1, embeddings
    discriminative rates   eta of a group = eta / factor^(groups above it that are blocks)

Howard, Ruder, ACL 2018, arXiv:1801.06146, sections 3.2 and 3.3 (factor 2.6); the slanted triangular rate stands in
``training/schedules.py``. Which parameters there are to unfreeze is the attachment's choice: full fine-tuning's or LoRA's.
"""

from ..training.hooks import Hook
from .shapes import block_names

FACTOR = 2.6


def group_numbers(config):
    """A function from a parameter's path to the number of its group: 0 the head, then the blocks from the top, last the rest.

    The final norm goes with the top block. In an encoder-decoder the decoder's blocks come before the encoder's.
    """
    blocks = [name for name, _ in block_names(config)]
    decoder = [name for name in blocks if name.startswith("decoder.")]
    order = decoder[::-1] + [name for name in blocks if name not in decoder][::-1]
    numbers = {name: number for number, name in enumerate(order, 1)}

    def number(path):
        if path.startswith("head."):
            return 0
        inside = next((n for name, n in numbers.items() if path.startswith(f"{name}.")), None)
        if inside is not None:
            return inside
        if path.startswith(("final_norm.", "decoder.final_norm.")):
            return 1
        if path.startswith("encoder.final_norm."):
            return len(decoder) + 1
        return len(order) + 1

    return number


class GradualUnfreezing(Hook):
    """Trains the top groups of an attachment's parameters, one more in each epoch. The state follows from the epoch alone.

    Args:
        attachment: whose parameters are trained. epochs_a_group: epochs before the next group joins.
    """

    def __init__(self, attachment, epochs_a_group=1):
        if epochs_a_group < 1:
            raise ValueError(f"gradual unfreezing: epochs_a_group must be at least 1, got {epochs_a_group}")
        number = group_numbers(attachment.model.config)
        self.groups = {path: number(path) for path in attachment.named_parameters()}
        self.parameters, self.every = attachment.named_parameters(), epochs_a_group
        self.order = sorted(set(self.groups.values()))  # groups without a parameter take no epoch

    def trained(self, epoch):
        """Paths of the parameters that ``epoch`` (from 0) trains."""
        on = set(self.order[:1 + epoch // self.every])
        return [path for path, group in self.groups.items() if group in on]

    def before_step(self, step, total, epoch, rng):
        trained = set(self.trained(epoch))
        for path, parameter in self.parameters.items():
            parameter.requires_grad = path in trained

    def after_step(self, step, total):
        for parameter in self.parameters.values():
            parameter.requires_grad = True


def discriminative(config, factor=FACTOR):
    """What `training.fit` takes as ``lr_scale``: 1 for head and top block, and for each block below it 1 / factor of that.

    Raises ValueError for a factor below 1.
    """
    if not factor >= 1:
        raise ValueError(f"discriminative learning rates: the factor must be at least 1, got {factor}")
    number = group_numbers(config)
    return lambda path: factor ** -max(0, number(path) - 1)
