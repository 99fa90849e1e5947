"""Prompting: asking a pre-trained model in words, with few labels or none; and what many tasks learn from each other."""

from .auxiliary import WithLanguage, language_work
from .calibration import Calibration, calibrated
from .cloze import ClozeClassification, gap_logits
from .demonstrations import Demonstrations, separator_of, text_vectors
from .few_shot import SEEDS, data_advantage, few_shot
from .many_tasks import ManyTasks, attach_tasks, over_templates, parameters_of, shares
from .meta import Episode, MetaSettings, adapt, meta_train
from .pet import RAW, Ensemble, PETSettings, SoftClassification, classifier_work, distil
from .prototypes import episode_loss, prototype_logits, prototypes, text_states
from .ranking import RankClassification
from .templates import Cloze, Template, kind_of
from .verbalizers import Verbalizer, class_scores, restricted_softmax, tokens_of, whole_words
from .word_search import null_verbalizer, search_words

__all__ = ["RAW", "SEEDS", "Calibration", "Cloze", "ClozeClassification", "Demonstrations", "Ensemble", "Episode", "ManyTasks",
           "MetaSettings", "PETSettings", "RankClassification", "SoftClassification", "Template", "Verbalizer", "WithLanguage",
           "adapt", "attach_tasks", "calibrated", "class_scores", "classifier_work",
           "data_advantage", "distil", "episode_loss", "few_shot", "gap_logits", "kind_of",
           "language_work", "meta_train", "null_verbalizer", "over_templates", "parameters_of", "prototype_logits", "prototypes",
           "restricted_softmax", "search_words", "separator_of", "shares", "text_states", "text_vectors", "tokens_of",
           "whole_words"]
