"""The on-disk formats of other libraries: Hugging Face model folders and HF PEFT adapters."""

from .adapter import load_adapter, load_with_adapter, save_adapter
from .hf import load_pretrained, make_head, make_model, save_pretrained
from .peft import load_lora, save_lora

__all__ = ["load_adapter", "load_lora", "load_pretrained", "load_with_adapter", "make_head", "make_model",
           "save_adapter", "save_lora", "save_pretrained"]
