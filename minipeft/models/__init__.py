"""Pre-trained Transformers: BERT, GPT-2, LLaMA and T5, their heads, and generation."""

from .config import TransformerConfig
from .decoder import Decoder
from .encoder import Encoder
from .generation import KVCache, generate
from .heads import ClassificationHead, LMHead, MaskedLMHead, Output, Seq2SeqLMHead
from .seq2seq import Seq2Seq
from .transformer import Transformer

__all__ = ["ClassificationHead", "Decoder", "Encoder", "KVCache", "LMHead", "MaskedLMHead", "Output", "Seq2Seq",
           "Seq2SeqLMHead", "Transformer", "TransformerConfig", "generate"]
