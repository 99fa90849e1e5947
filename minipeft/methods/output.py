"""Output tuning: only what stands for each label at the output is trained, its vector or its bias.

    logit_c <- logit_c + h . d_c        (the label's vector w_c + d_c in place of w_c),      or   logit_c <- logit_c + b_c
    dd_c = sum of g_c h,                db_c = sum of g_c

On a classification head the labels are its classes; on a language model's they are label words, whose output vectors are
moved while their input vectors stay.

Label vectors: Hambardzumyan, Khachatrian, May, ACL 2021, arXiv:2101.00121, section 3; on the probe of a frozen model see
`head.py`.

Shapes: h (..., D), d (C, D), b (C,), logits (..., V or C). Count: C D, or C. Merges into an output map of its own; one that
is tied to the word vectors would change the input too.
"""

from dataclasses import dataclass

import numpy as np

from .. import autograd as F
from ..nn import Parameter, Wrapper
from .attach import HEAD_PATHS, Method
from .virtual import token_ids


class LabelOutput(Wrapper):
    """An output map of which some columns are moved, each by a vector or by a number; both start at zero."""

    def __init__(self, wrapped, part, columns, outputs, width, kind):
        super().__init__(wrapped)
        self.place = np.zeros((len(columns), outputs), kind)  # (C, V): which output each label is
        self.place[np.arange(len(columns)), columns] = 1
        self.d = Parameter(np.zeros((len(columns), width), kind)) if part == "embedding" else None  # (C, D)
        self.b = Parameter(np.zeros(len(columns), kind)) if part == "bias" else None  # (C,)

    def forward(self, h):
        """h (..., D) -> logits (..., V)."""
        place = F.Tensor(self.place)
        each = self.b.reshape(1, -1) if self.d is None else F.linear(h, F.swap_last(self.d))  # (1, C) or (..., C)
        return self.wrapped(h) + each @ place  # (..., V)

    def merged_arrays(self, weight, bias):
        """W with the labels' columns moved, and b."""
        if self.d is not None:
            return weight + self.d.data.T @ self.place, bias
        if bias is None:
            raise ValueError("merge: the output map has no bias to put the labels' into")
        return weight, bias + self.b.data @ self.place


@dataclass
class OutputTuning(Method):
    """Tune the labels' vectors, or biases, at the output.

    Args:
        part: ``embedding`` or ``bias``.
        words: token ids of the label words, with a language model; the labels of a classification head are its classes.
    """

    part: str = "embedding"
    words: object = None

    name = "output"
    default_lr = 1e-2
    trains_head = False

    def __post_init__(self):
        self.words = token_ids(self.words)

    def wrappers(self, model, rng):
        path = next((path for path in HEAD_PATHS if _exists(model, path)), None)
        if path is None:
            raise ValueError("output: this model has no head; load it with a task")
        if self.part not in ("embedding", "bias"):
            raise ValueError(f"output: part must be embedding or bias, got {self.part!r}")
        config, classes = model.config, path == "head.classifier"
        outputs = model.get(path).weight.shape[1] if classes else config.vocab_size
        columns = range(outputs) if classes else self.words
        if not columns or not all(0 <= c < outputs for c in columns) or len(set(columns)) < len(columns):
            raise ValueError(f"output: expected words, the label words, as different token ids below {outputs}; got "
                             f"{columns or 'none'}")
        return {path: LabelOutput(model.get(path), self.part, list(columns), outputs, config.hidden_size,
                                  model.embed.tokens.weight.dtype)}

    def formula(self, path, wrapper):
        return f"C = {wrapper.b.size}" if wrapper.d is None else "C D = {} x {}".format(*wrapper.d.shape)

    def count(self, config):
        labels = len(config.labels) or len(self.words or ())
        return labels * (config.hidden_size if self.part == "embedding" else 1)


def _exists(model, path):
    try:
        return bool(model.get(path))
    except KeyError:
        return False
