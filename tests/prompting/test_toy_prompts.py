"""The toy world's prompts: each fits its task on each of the three models, and the first of a task says what raw text says."""

import numpy as np
import pytest

from minipeft import load_pretrained
from minipeft.data import Tokenizer, toy
from minipeft.prompting import ClozeClassification
from minipeft.prompting.toy_prompts import PATTERNS, prompts


def test_every_task_has_several():
    assert list(PATTERNS) == list(toy.TASKS) and all(len(prompts(task)) >= 2 for task in PATTERNS)
    for task in PATTERNS:
        assert all(verbalizer.labels == toy.TASKS[task].labels for _, verbalizer in prompts(task))
    with pytest.raises(ValueError, match="prompts: expected a task of the toy world among sentiment, .*, got 'answer'"):
        prompts("answer")


@pytest.mark.parametrize("arch", ["encoder", "decoder", "seq2seq"])
def test_they_go_with_every_model_and_some_need_no_training(arch):
    model, tokenizer, best = load_pretrained(f"toy:{arch}"), Tokenizer.from_folder(f"toy:{arch}"), {}
    for task in PATTERNS:
        dataset = toy.dataset(task, "medium", seed=2, train=2, dev=80, test=2)
        works = [ClozeClassification(tokenizer, dataset, model.config, *pair, 96, 16) for pair in prompts(task)]
        best[task] = works[0].evaluate(model, "dev")["accuracy"]
        assert all(len(np.unique(work.predict(model, "dev"), axis=0)) > 1 for work in works)  # each reads the text
    assert best["sentiment"] > 0.8 and best["topic"] > 0.9 and best["rating"] > 0.55 and best["reading"] > 0.45
