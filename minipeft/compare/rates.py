"""The learning rate that a method has where none is given: its own, which suits real models, or that of a very small one.

A method's ``default_lr`` was found on MiniLM (width 384). A model of width 128 or less, such as the toy ones, has weights that
move less far for the same rate, and learns best with one that is several times as high; `SMALL` holds these.
"""

import json

from ..data import files
from .exits import KNOWN

SMALL_WIDTH = 128
SMALL = {"full": 1e-3, "early_exit": 1e-3, "top_k": 2e-3, "head": 5e-2, "bitfit": 2e-2, "ia3": 5e-2, "lora": 5e-3, "rslora": 3e-3,
         "lora_plus": 8e-4, "dora": 5e-3, "pissa": 3e-3, "adalora": 1.5e-2, "houlsby": 5e-3, "pfeiffer": 8e-3, "parallel": 5e-3,
         "compacter": 1e-2, "layernorm": 1e-2, "prefix": 1e-1, "prompt": 2e-2, "random_mask": 3e-2,
         "fisher_mask": 3e-2, "output": 5e-2}
FACTORS = (0.3, 1.0, 3.0)  # what --tune multiplies the default by


def width_of(model):
    """D of a model folder, or None where its config does not tell."""
    try:
        config = json.loads((files.model_folder(model) / "config.json").read_text(encoding="utf-8"))
        return next((int(config[name]) for name in ("hidden_size", "d_model", "n_embd") if name in config), None)
    except (OSError, ValueError, TypeError):
        return None  # whoever loads the model says what is wrong with it


def default_lr(method, model):
    """The learning rate of a method on the model in a folder."""
    width = width_of(model)
    small = width is not None and width <= SMALL_WIDTH
    return SMALL.get(method, KNOWN[method].default_lr) if small else KNOWN[method].default_lr


def grid(lr, factors=FACTORS):
    """The learning rates that are tried around a run's own."""
    return [float(f"{lr * factor:.3g}") for factor in factors]
