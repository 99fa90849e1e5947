"""The on-disk formats of other libraries: Hugging Face model folders and HF PEFT adapters."""

from .hf import load_pretrained, make_head, make_model, save_pretrained
from .peft import load_lora, save_lora

__all__ = ["load_lora", "load_pretrained", "make_head", "make_model", "save_lora", "save_pretrained"]
