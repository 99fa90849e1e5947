"""What the tests of the course share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def course(tmp_path):
    """The small course."""
    from small_course import make_course

    return make_course(tmp_path / "lessons")


@pytest.fixture
def workspace(tmp_path, course):
    """A learner's folder of it."""
    from minipeft.learn.workspace import Workspace

    return Workspace.make(tmp_path / "mine", course)
