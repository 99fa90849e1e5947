"""The engine behind `lessons/`: stubs, checks, hints, grading; ``minipeft learn`` and ``minipeft teach``."""

from .answers import answer
from .assignment import graded_cell
from .reading import fast, predict, real_model, show

__all__ = ["answer", "fast", "graded_cell", "predict", "real_model", "show"]
