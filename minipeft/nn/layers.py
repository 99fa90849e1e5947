"""The layers a Transformer is made of: Linear, Embedding, the two norms, activation and dropout."""

import numpy as np

from .. import autograd as F
from .module import Module, Parameter, initial


class Linear(Module):
    """y = x W + b, with W (D_in, D_out) and b (D_out,).

    Args:
        d_in, d_out: widths.
        bias: whether there is a b.
        rng: generator of the initial W ~ N(0, std^2); None leaves zeros, for weights that will be loaded.
    """

    def __init__(self, d_in, d_out, bias=True, rng=None, std=0.02):
        self.weight = initial(rng, (d_in, d_out), std)
        self.bias = Parameter(np.zeros(d_out, np.float32)) if bias else None

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        return F.linear(x, self.weight, self.bias)  # (..., D_out)

    def describe(self):
        return " -> ".join(map(str, self.weight.shape))


class Embedding(Module):
    """y = E[ids], with E (rows, D)."""

    def __init__(self, rows, width, rng=None, std=0.02):
        self.weight = initial(rng, (rows, width), std)

    def forward(self, ids):
        """ids (...) -> (..., D)."""
        return F.embedding(self.weight, ids)  # (..., D)

    def describe(self):
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"


class LayerNorm(Module):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, over the last axis."""

    def __init__(self, width, eps=1e-5):
        self.weight = Parameter(np.ones(width, np.float32))
        self.bias = Parameter(np.zeros(width, np.float32))
        self.eps = eps

    def forward(self, x):
        """x (..., D) -> (..., D)."""
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width, eps=1e-5):
        self.weight = Parameter(np.ones(width, np.float32))
        self.eps = eps

    def forward(self, x):
        """x (..., D) -> (..., D)."""
        return F.rms_norm(x, self.weight, self.eps)


class Activation(Module):
    """y = f(x) elementwise; f is named as in Hugging Face's ``hidden_act``."""

    def __init__(self, name):
        self.name = name

    def forward(self, x):
        """x of any shape -> the same shape."""
        return F.activation(x, self.name)

    def describe(self):
        return self.name


class Dropout(Module):
    """In training each element is zeroed with probability p and the others are divided by 1 - p; otherwise y = x.

    The random draws come from the generator given to ``model.train(rng)``.
    """

    rng = None

    def __init__(self, probability):
        if not 0 <= probability < 1:
            raise ValueError(f"Dropout: the probability must lie in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, x):
        """x of any shape -> the same shape."""
        if not self.training or self.probability == 0:
            return x
        return F.dropout(x, self.probability, self.rng)

    def describe(self):
        return str(self.probability)
