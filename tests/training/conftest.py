"""The tiny runs that the tests of training share, and a work of one number whose every step can be computed by hand."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.nn import Module, Parameter
from minipeft.training import Settings, fit

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def small():
    """The module ``small.py``."""
    spec = importlib.util.spec_from_file_location("small", HERE / "small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Point(Module):
    """A model that is one vector."""

    def __init__(self, start):
        self.weight = Parameter(np.array(start, np.float32))


class Slope:
    """A work whose loss at step t (one batch is one step) is ``loss_at(t, w)``; by default 3 w_0 + 4 w_1, of gradient (3, 4)."""

    def __init__(self, batches, loss_at=lambda t, w: (w * np.array([3, 4], np.float32)).sum(), weights=None):
        self.batches, self.loss_at, self.weights, self.seen = batches, loss_at, weights, []

    def number_of_batches(self):
        return self.batches

    def training_batches(self, rng):
        return list(range(self.batches))

    def collate(self, i, split="train"):
        return SimpleNamespace(size=1, number=i)

    def weight(self, batch):
        return self.weights[batch.number] if self.weights else 1

    def loss(self, model, batch):
        self.seen.append(batch.number)
        return self.loss_at(batch.number, model.weight)

    def evaluate(self, model, split):
        return {"score": float(model.weight.data[0])}


@pytest.fixture
def slope():
    """``slope(batches, lr=..., loss_at=..., weights=..., start=...)``: trains a `Point`; returns (history, model)."""

    def train(batches, loss_at=None, weights=None, start=(1, 1), checkpoint=None, resume=False, display=None, **changes):
        model, work = Point(start), Slope(batches, *[loss_at] * (loss_at is not None), weights=weights)
        plain = {"lr": 0.5, "epochs": 1, "optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "clip": 0.0}
        chosen = Settings(**plain | changes)
        history = fit(model, {"weight": model.weight}, work, chosen, checkpoint, resume, display)
        return history, model

    return train
