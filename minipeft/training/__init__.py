"""Training: optimizers, schedules, the loop, checkpoints and metrics."""

from .hooks import Hook
from .loop import Interrupted, Settings, fit
from .metrics import METRICS, accuracy, f1, matthews
from .optim import OPTIMIZERS, SGD, Adam, AdamW, decay_groups, gradient_norm
from .schedules import SCHEDULES, factor
from .work import Classification, LanguageModelling

__all__ = ["Adam", "AdamW", "Classification", "Hook", "Interrupted", "LanguageModelling", "METRICS", "OPTIMIZERS", "SCHEDULES",
           "SGD", "Settings", "accuracy", "decay_groups", "f1", "factor", "fit", "gradient_norm", "matthews"]
