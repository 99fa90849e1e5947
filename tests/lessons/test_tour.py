"""The lines of the tour run, and what they claim holds."""

import re
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "lessons" / "code_tour.md"


def blocks():
    """The Python in the tour, block by block."""
    return re.findall(r"```python\n(.*?)```", TOUR.read_text(encoding="utf-8"), re.DOTALL)


def test_the_tour_holds():
    names = {}
    for block in blocks():
        exec(compile(block, str(TOUR), "exec"), names)
    assert len(blocks()) == 8
    assert f"{sum(p.size for p in names['model'].parameters()):,} parameters" in TOUR.read_text(encoding="utf-8")


def test_its_claims_can_fail():
    spoilt = "\n".join(blocks()).replace("4 * 2 * (16 + 16)", "2 * (16 + 16)")
    with pytest.raises(AssertionError):
        exec(compile(spoilt, str(TOUR), "exec"), {})


def test_the_files_it_names_are_there():
    for line in re.findall(r"^## \d+\..*$", TOUR.read_text(encoding="utf-8"), re.MULTILINE):
        folder = None
        for name in re.findall(r"`([^`]+\.py)`", line):
            path = TOUR.parents[1] / name if "/" in name else folder / name
            folder = path.parent
            assert path.is_file(), name
