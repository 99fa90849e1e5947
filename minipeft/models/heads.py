"""The task heads: what turns a model's last states into logits and a loss.

Every head is called with the states (B, P + T, D), the padding mask (B, P + T) or None, and the number P of leading
virtual tokens, which carry no text and are skipped.
"""

import numpy as np

from .. import autograd as F
from ..kernels import IGNORE
from ..nn import Activation, Dropout, LayerNorm, Linear, Module, Parameter

POOLINGS = ("mean", "cls", "pooler", "last")


def check_ids(name, array, shape):
    """Array of integers of a given shape, or a ValueError that says what came instead."""
    array = np.asarray(array)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers of shape {shape}, got {array.dtype} of shape {array.shape}")
    return array


class ClassificationHead(Module):
    """logits = pool(states) W + b.

    Args:
        width: D. labels: number of classes.
        pooling: ``mean`` of the real tokens' states; ``cls``, the first token's state; ``pooler``, BERT's
            tanh(state_0 W_p + b_p) of position 0; ``last``, the last real token's state (decoders).
        bias: whether there is a b.
    """

    def __init__(self, width, labels, pooling, bias=True, dropout=0.0, rng=None, std=0.02):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pooling = pooling
        self.pooler = Linear(width, width, True, rng, std) if pooling == "pooler" else None
        self.act = Activation("tanh") if pooling == "pooler" else None
        self.dropout = Dropout(dropout)
        self.classifier = Linear(width, labels, bias, rng, std)

    def pool(self, states, mask, virtual):
        """One state for each text: (B, P + T, D) -> (B, D)."""
        batch, length, _ = states.shape
        if self.pooling == "pooler":
            return self.act(self.pooler(states[:, 0]))
        if self.pooling == "cls":
            return states[:, virtual]
        real = np.ones((batch, length), bool) if mask is None else np.array(mask, bool)  # (B, P + T)
        real[:, :virtual] = False
        if self.pooling == "mean":
            share = real / np.maximum(real.sum(axis=1, keepdims=True), 1)  # (B, P + T), rows sum to 1
            return (F.Tensor(share[:, None, :].astype(states.dtype)) @ states)[:, 0]  # (B, D)
        last = length - 1 - real[:, ::-1].argmax(axis=1)  # (B,)
        return states[np.arange(batch), last]

    def forward(self, states, mask, virtual):
        """states (B, P + T, D) -> logits (B, C); ``virtual``: P."""
        return self.classifier(self.dropout(self.pool(states, mask, virtual)))  # (B, C)

    def loss(self, states, logits, labels, virtual):
        """Mean cross-entropy; labels (B,)."""
        return F.cross_entropy(logits, check_ids("labels", labels, logits.shape[:1]))


class TiedOutput(Module):
    """y = h E^T + b, with the word vectors E (V, D) themselves: the Parameter's path is theirs. ``bias`` may be None."""

    def __init__(self, embedding_weight, bias=None):
        self.tied, self.bias = embedding_weight, bias

    def forward(self, h):
        """h (..., D) -> (..., V)."""
        return F.linear(h, F.swap_last(self.tied), self.bias)  # (..., V)


class LMHead(Module):
    """logits = states E^T (tied to the word vectors E) or states W + b; the loss compares each with the next token.

    Child: ``output``, the map to the vocabulary.
    """

    def __init__(self, config, embedding_weight, rng):
        if config.tie_word_embeddings:
            self.output = TiedOutput(embedding_weight)
        else:
            self.output = Linear(config.hidden_size, config.vocab_size, config.head_bias, rng, config.initializer_range)

    def project(self, states):
        """(..., D) -> (..., V)."""
        return self.output(states)

    def forward(self, states, mask, virtual):
        """states (B, P + T, D) -> logits (B, T, V); ``virtual``: P."""
        return self.project(states[:, virtual:] if virtual else states)  # (B, T, V)

    def loss(self, states, logits, labels, virtual):
        """Mean cross-entropy of token t + 1 given the tokens up to t; labels (B, T), IGNORE (-100) where not counted."""
        return F.cross_entropy(logits, following(check_ids("labels", labels, logits.shape[:2])))


def following(labels):
    """What each place is to predict, the label (B, T) of the place behind it; IGNORE for the last."""
    out = np.full_like(labels, IGNORE)
    out[:, :-1] = labels[:, 1:]
    return out  # (B, T)


class Seq2SeqLMHead(LMHead):
    """The head of an encoder-decoder: T5 scales the states by 1 / sqrt(D) where it is tied; the loss has no shift."""

    def __init__(self, config, embedding_weight, rng):
        super().__init__(config, embedding_weight, rng)
        self.scale = config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0

    def project(self, states):
        """(..., D) -> (..., V)."""
        return super().project(states * self.scale if self.scale != 1.0 else states)

    def loss(self, states, logits, labels, virtual):
        """Mean cross-entropy of each label given those before it; labels (B, T), IGNORE (-100) where not counted."""
        return F.cross_entropy(logits, check_ids("labels", labels, logits.shape[:2]))


class MaskedLMHead(Module):
    """logits = norm(act(states W + b)) E^T + c, with E the word vectors (Devlin et al., NAACL 2019, section 3.1).

    Children: ``dense``, ``act``, ``norm``, and ``output``, the map to the vocabulary.
    """

    def __init__(self, config, embedding_weight, rng):
        self.dense = Linear(config.hidden_size, config.hidden_size, True, rng, config.initializer_range)
        self.act = Activation(config.hidden_act)
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.output = TiedOutput(embedding_weight, Parameter(np.zeros(config.vocab_size, np.float32)))

    def project(self, states):
        """(..., D) -> (..., V)."""
        return self.output(self.norm(self.act(self.dense(states))))

    def forward(self, states, mask, virtual):
        """states (B, P + T, D) -> logits (B, T, V); ``virtual``: P."""
        return self.project(states[:, virtual:] if virtual else states)  # (B, T, V)

    def loss(self, states, logits, labels, virtual):
        """Mean cross-entropy at the places that have a label; only those are projected, the vocabulary being large."""
        labels = check_ids("labels", labels, (states.shape[0], states.shape[1] - virtual))
        rows, columns = np.nonzero(labels != IGNORE)
        chosen = states[rows, columns + virtual]  # (N, D)
        return F.cross_entropy(self.project(chosen), labels[rows, columns])


class Output:
    """What a model returns.

    ``loss`` (Tensor or None), ``logits`` (Tensor, computed at the first reading where the loss did not need them),
    ``last_hidden_state`` (Tensor (B, P + T, D)), ``hidden_states`` (list of Tensors, or None unless asked for).
    """

    def __init__(self, head, states, mask, virtual, labels, hidden_states):
        self.last_hidden_state, self.hidden_states, self.loss = states, hidden_states, None
        self._logits, self._compute = None, (lambda: head(states, mask, virtual)) if head is not None else None
        if labels is not None:
            if head is None:
                raise ValueError("labels: this model has no head to compute a loss with; load it with a task")
            needs_logits = not isinstance(head, MaskedLMHead)
            self.loss = head.loss(states, self.logits if needs_logits else None, labels, virtual)

    @property
    def logits(self):
        if self._logits is None and self._compute is not None:
            self._logits, self._compute = self._compute(), None
        return self._logits
