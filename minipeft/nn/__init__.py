"""Layers and blocks of a Transformer, as trees of named modules."""

from .attention import Attention, AttentionCore, Join, RelativeBias, Rotary
from .block import MLP, Block
from .layers import Activation, Dropout, Embedding, LayerNorm, Linear, RMSNorm
from .module import Module, ModuleList, Parameter, Wrapper, initial, unwrap

__all__ = ["Activation", "Attention", "AttentionCore", "Block", "Dropout", "Embedding", "Join", "LayerNorm", "Linear",
           "MLP", "Module", "ModuleList", "Parameter", "RMSNorm", "RelativeBias", "Rotary", "Wrapper", "initial", "unwrap"]
