"""Every fine-tuning method, one short file each, and `attach`, which puts one on a model."""

from .attach import Attachment, Method, activate, attach, mixed
from .full import Full
from .head import Head
from .lora import LoRA
from .targets import match

METHODS = {method.name: method for method in (Full, Head, LoRA)}

__all__ = ["Attachment", "Full", "Head", "LoRA", "METHODS", "Method", "activate", "attach", "match", "mixed"]
