"""AdapterDrop: no adapters in the first blocks, which makes inference faster, and training that makes up for it.

    inference     the adapters of blocks 0 ... n - 1 are passed over
    training      at each step n is drawn from 0 ... N, each as likely, so that every choice up to N works afterwards

Rücklé, Geigle, Glockner, Beck, Pfeiffer, Reimers, Gurevych, EMNLP 2021, arXiv:2010.11918, section 3.

It works on any attachment that acts inside blocks. In an encoder-decoder the first n blocks of both sides are meant. Count:
what is dropped is not used, (L - n) of L shares are left.
"""

import contextlib

from ..training.hooks import Hook


def _block_number(path):
    """The number of the block that a path is in, or None."""
    parts = path.split(".")
    return int(parts[parts.index("blocks") + 1]) if "blocks" in parts else None


def set_dropped(attachment, blocks):
    """Pass over an attachment's wrappers in the first ``blocks`` blocks, and none of the others.

    Raises ValueError for a number outside 0 ... L, and for an attachment that is merged or acts in no block.
    """
    model, inside = attachment.model, {p: n for p in attachment.wrappers if (n := _block_number(p)) is not None}
    limit = max(model.config.num_hidden_layers, model.config.num_decoder_layers)
    if not 0 <= blocks <= limit:
        raise ValueError(f"adapter drop: blocks must be a whole number from 0 to {limit}, got {blocks}")
    if not inside or attachment.merged:
        raise ValueError(f"adapter drop: attachment {attachment.name!r} "
                         + ("is merged; unmerge it first" if attachment.merged else "acts in no block"))
    for path, number in inside.items():
        attachment.wrappers[path].enabled = attachment.enabled and number >= blocks


@contextlib.contextmanager
def adapter_drop(attachment, blocks):
    """Inside this block of code the attachment leaves the model's first ``blocks`` blocks alone."""
    before = {path: wrapper.enabled for path, wrapper in attachment.wrappers.items()}
    set_dropped(attachment, blocks)
    try:
        yield attachment.model
    finally:
        for path, wrapper in attachment.wrappers.items():
            wrapper.enabled = before[path]


class AdapterDrop(Hook):
    """Robust training: before each step n is drawn, after it all adapters are back.

    Args:
        attachment: its adapters. most: N, the most blocks that are to be dropped later.
    """

    def __init__(self, attachment, most):
        self.attachment, self.most = attachment, most
        with adapter_drop(attachment, most):  # to see that it can be done
            pass

    def before_step(self, step, total, epoch, rng):
        set_dropped(self.attachment, int(rng.integers(self.most + 1)))

    def after_step(self, step, total):
        set_dropped(self.attachment, 0)
