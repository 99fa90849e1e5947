"""The schedules against their formulas, written out once more, and against those of transformers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.training import factor


def written_out(name, t, total, warm):
    if t < warm:
        return (t + 1) / warm
    gone = (t - warm) / (total - warm)  # share of the way from the top to the end
    return {"constant": 1.0, "linear": 1 - gone, "cosine": 0.5 + 0.5 * math.cos(math.pi * gone)}[name]


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["linear", "cosine", "constant"]))
def test_every_value(total, share, name):
    warm = round(share * total)
    for t in range(total):
        assert factor(name, t, total, warm) == pytest.approx(written_out(name, t, total, warm), abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_the_top_is_reached_and_no_step_is_wasted(name):
    """The first step already learns, the last warm-up step and the next one are at the top, the last step still learns."""
    values = [factor(name, t, 20, 5) for t in range(20)]
    assert values[0] == pytest.approx(0.2) and values[4] == values[5] == 1 and values[-1] > 0
    assert [factor(name, t, 3, 3) for t in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_against_transformers_after_the_warm_up(name, peer):
    """Theirs begins the warm-up at 0, with a first step that learns nothing; from the top on the two are the same."""
    schedules = peer("transformers.optimization")
    inner = getattr(schedules, f"_get_{name}_schedule_with_warmup_lr_lambda")
    more = {"num_cycles": 0.5} if name == "cosine" else {}
    for t in range(4, 30):
        theirs = inner(t, num_warmup_steps=4, num_training_steps=30, **more)
        assert factor(name, t, 30, 4) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_beyond_the_end_there_is_nothing(name):
    assert [factor(name, t, 10, 2) for t in (10, 11, 50)] == pytest.approx([0, 0, 0])
