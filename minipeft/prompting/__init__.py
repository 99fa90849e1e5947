"""Prompting: asking a pre-trained model in words, with few labels or none."""

from .cloze import ClozeClassification, gap_logits
from .templates import Cloze, Template, kind_of
from .verbalizers import Verbalizer, class_scores, restricted_softmax

__all__ = ["Cloze", "ClozeClassification", "Template", "Verbalizer", "class_scores", "gap_logits", "kind_of", "restricted_softmax"]
