"""Pure functions on arrays, each defined in NumPy and compiled with Numba, behind one switch."""

from . import memory  # noqa: F401  first, so that every array profits
from .activation import ACTIVATIONS, erf
from .adam import adam_step
from .backend import REGISTRY, Kernel, current_backend, num_threads, use_backend, use_threads
from .cross_entropy import IGNORE, cross_entropy, cross_entropy_backward
from .embedding import scatter_add
from .nf4 import dequantise_nf4, quantise_nf4
from .norm import norm, norm_backward_gain, norm_backward_input
from .softmax import attention_softmax, softmax_backward

__all__ = [
    "ACTIVATIONS", "IGNORE", "Kernel", "REGISTRY", "adam_step", "attention_softmax", "cross_entropy",
    "cross_entropy_backward", "current_backend", "dequantise_nf4", "erf", "norm", "norm_backward_gain", "norm_backward_input",
    "num_threads", "quantise_nf4", "scatter_add", "softmax_backward", "use_backend", "use_threads",
]
