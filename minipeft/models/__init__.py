"""Pre-trained Transformers: BERT, GPT-2 and LLaMA, their heads, and generation."""

from .config import TransformerConfig
from .decoder import Decoder
from .encoder import Encoder
from .generation import KVCache, generate
from .heads import ClassificationHead, LMHead, MaskedLMHead, Output
from .transformer import Transformer

__all__ = ["ClassificationHead", "Decoder", "Encoder", "KVCache", "LMHead", "MaskedLMHead", "Output", "Transformer",
           "TransformerConfig", "generate"]
