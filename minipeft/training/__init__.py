"""Training: kinds of work, optimizers, schedules, the loop, checkpoints and metrics.

The names below are imported at their first use, so that a method's hook needs NumPy alone.
"""

import importlib

_HOMES = {"Hook": "hooks", "Interrupted": "loop", "Settings": "loop", "fit": "loop", "METRICS": "metrics", "accuracy": "metrics",
          "f1": "metrics", "matthews": "metrics", "OPTIMIZERS": "optim", "SGD": "optim", "Adam": "optim", "AdamW": "optim",
          "decay_groups": "optim", "gradient_norm": "optim", "SCHEDULES": "schedules", "factor": "schedules",
          "L2SP": "regularise", "mixout": "regularise", "smoothed_cross_entropy": "regularise",
          "Classification": "work", "LanguageModelling": "work", "Sequence2Sequence": "seq2seq", "end_tokens": "seq2seq",
          "TEXT_METRICS": "text_metrics", "BLEU_TOKENIZERS": "text_metrics", "bleu": "text_metrics", "exact": "text_metrics",
          "rouge_l": "text_metrics", "text_scores": "text_metrics"}

__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
