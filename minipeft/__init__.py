"""minipeft: parameter-efficient fine-tuning from scratch, in NumPy and Numba, to read, rebuild and trust.

>>> import minipeft
>>> model = minipeft.load_pretrained("path/to/a/bert", task="classify", labels=("bad", "good"))
>>> attachment = minipeft.attach(model, minipeft.LoRA(rank=8))

The names below are imported at their first use, so that ``import minipeft`` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Tensor": "autograd", "no_grad": "autograd", "grad": "autograd", "gradcheck": "autograd",
    "use_backend": "kernels", "use_threads": "kernels",
    "Decoder": "models", "Encoder": "models", "TransformerConfig": "models", "generate": "models",
    "Tokenizer": "data", "read_dataset": "data",
    "Settings": "training", "fit": "training",
    "Full": "methods", "Head": "methods", "LoRA": "methods", "activate": "methods", "attach": "methods",
    "load_adapter": "interop", "load_pretrained": "interop", "save_adapter": "interop", "save_pretrained": "interop",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'minipeft' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)
