"""The on-disk formats of other libraries: Hugging Face model folders and HF PEFT adapters."""

from .adapter import load_adapter, load_peft, load_with_adapter, save_adapter, save_peft
from .hf import load_pretrained, make_head, make_model, save_pretrained

__all__ = ["load_adapter", "load_peft", "load_pretrained", "load_with_adapter", "make_head", "make_model",
           "save_adapter", "save_peft", "save_pretrained"]
