"""A real model and a text in another style: what is learnt of it, and that the model is as it was once the method is off."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft.data import Tokenizer
from minipeft.methods import METHODS
from minipeft.training import LanguageModelling, Settings, fit

LR = {"lora": 2e-2, "prefix": 5e-2}


@pytest.fixture(scope="module")
def texts(shared):
    play = (shared / "data/tiny_shakespeare/input.txt").read_text(encoding="utf-8")
    stories = (shared / "data/tinystories_sample/tinystories.txt").read_text(encoding="utf-8")
    return {"train": play[:60_000], "dev": play[-12_000:]}, {"dev": stories[:12_000]}


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_the_style_is_learnt_beside_the_model(method, shared, texts):
    """stories260K on Shakespeare: perplexity on held-out verse falls by a quarter and more, and on stories, without the method,
    it is the same number to the last bit."""
    folder = shared / "models/stories260K"
    model, tokenizer = load_pretrained(folder, task="lm"), Tokenizer.from_folder(folder)
    play, stories = (LanguageModelling(tokenizer, part, 128, 8) for part in texts)
    before = {"play": play.evaluate(model, "dev")["perplexity"], "stories": stories.evaluate(model, "dev")["perplexity"]}
    attachment = attach(model, METHODS[method](), rng=np.random.default_rng(0))
    fit(model, attachment.named_parameters(), play, Settings(lr=LR[method], epochs=2, batch_size=8, max_steps=80))
    after = {"play": play.evaluate(model, "dev")["perplexity"], "stories": stories.evaluate(model, "dev")["perplexity"]}
    assert after["play"] < 0.75 * before["play"]
    assert after["stories"] > before["stories"]  # another style is what it speaks now
    with attachment.disabled():
        assert stories.evaluate(model, "dev")["perplexity"] == before["stories"]
        assert play.evaluate(model, "dev")["perplexity"] == before["play"]
