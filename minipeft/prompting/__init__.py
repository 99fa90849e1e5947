"""Prompting: asking a pre-trained model in words, with few labels or none."""

from .calibration import Calibration, calibrated
from .cloze import ClozeClassification, gap_logits
from .few_shot import SEEDS, few_shot
from .ranking import RankClassification
from .templates import Cloze, Template, kind_of
from .verbalizers import Verbalizer, class_scores, restricted_softmax

__all__ = ["SEEDS", "Calibration", "Cloze", "ClozeClassification", "RankClassification", "Template", "Verbalizer", "calibrated",
           "class_scores", "few_shot", "gap_logits", "kind_of", "restricted_softmax"]
