"""What a prefix and a prompt share: their virtual tokens take positions or leave them to the words, and may start from words."""

import numpy as np

from .. import autograd as F
from ..nn import AttentionCore, Wrapper
from .targets import block_paths


class MovedPositions(Wrapper):
    """Position ids moved by a number: up by the virtual tokens that stand in no place, or down by those that stand in one.

    None falls below 0, so that virtual tokens whose positions are not counted are all at 0.
    """

    def __init__(self, wrapped, by):
        super().__init__(wrapped)
        self.by = by

    @property
    def shift(self):
        """How far positions are moved, by this and by what is inside."""
        return self.wrapped.shift + (self.by if self.enabled else 0)

    def forward(self, length, mask=None, past=0):
        """Positions (1 or B, T) of ``length`` words, moved."""
        return np.maximum(self.wrapped(length, mask, past) + self.by, 0)  # (1 or B, T)


def check_tokens(name, count, counted, config):
    """Raise ValueError unless ``count`` virtual tokens are a whole number that, where ``counted``, leaves positions to words."""
    limit = config.max_position_embeddings
    if not (isinstance(count, (int, np.integer)) and count >= 1):
        raise ValueError(f"{name}: num_virtual_tokens must be a whole number of at least 1, got {count}")
    if config.learned_positions and counted and count >= limit:
        raise ValueError(f"{name}: {count} virtual tokens leave none of this model's {limit} positions to the words; take at "
                         f"most {limit - 1}, or shift_positions=False")


def check_words(name, words, config):
    """Raise ValueError unless ``words`` (a list, or None) are ids of the vocabulary."""
    bad = [word for word in words or [] if not 0 <= word < config.vocab_size]
    if bad:
        raise ValueError(f"{name}: words must be token ids below {config.vocab_size}, the size of the vocabulary; got {bad[0]}")


def token_ids(words):
    """A list of plain whole numbers of any sequence of token ids, which a file of settings can hold; None stays None."""
    return None if words is None else np.asarray(words, np.int64).tolist()


class Recorder(Wrapper):
    """A core that remembers the keys and values it was given."""

    def forward(self, q, k, v, *others):
        self.seen = k.data, v.data
        return self.wrapped(q, k, v, *others)


def activations(model, words):
    """{path of a core: (keys, values), (P, H' K) each} that the model has for token ids ``words`` (P,)."""
    cores, ids = {path: Recorder(model.get(path)) for path in block_paths(model, AttentionCore)}, np.asarray([words])
    training, rng = model.training, getattr(model, "rng", None)
    for path, core in cores.items():
        model.replace(path, core)
    try:
        with F.no_grad():
            model.eval()(ids, **({"decoder_input_ids": ids} if model.config.encoder_decoder else {}))
    finally:
        for path, core in cores.items():
            model.replace(path, core.wrapped)
        if training:
            model.train(rng)
    flat = lambda x: np.ascontiguousarray(x[0].swapaxes(0, 1)).reshape(len(words), -1)  # (1, H', P, K) -> (P, H' K)
    return {path: tuple(map(flat, core.seen)) for path, core in cores.items()}
