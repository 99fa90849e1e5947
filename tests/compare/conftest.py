"""What the tests of runs and comparisons share: a small world of models and data."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world(tiny, tmp_path_factory):
    """A folder of small models and data, which no test changes."""
    return tiny.make(tmp_path_factory.mktemp("world"))
