"""Reverse-mode automatic differentiation on NumPy arrays: the gradient stands beside its forward."""

from .fused import activation, attend, attention_weights, cross_entropy, dropout, embedding, layer_norm, rms_norm
from .gradcheck import gradcheck
from .ops import (broadcast_to, concatenate, exp, linear, log, matmul, mean, put, reshape, rotate, sum, swap_last, tanh, use,
                  where)
from .tensor import Tensor, grad, no_grad

__all__ = [
    "Tensor", "activation", "attend", "attention_weights", "broadcast_to", "concatenate", "cross_entropy", "dropout", "embedding",
    "exp", "grad", "gradcheck", "layer_norm", "linear", "log", "matmul", "mean", "no_grad", "put", "reshape", "rms_norm",
    "rotate", "sum", "swap_last", "tanh", "use", "where",
]
