"""What the one answer of lesson 0 must do."""

from minipeft.learn.claims import exercise, same


@exercise("00.1")
def test_a_part_of_the_whole(impl, rng):
    """The share is what is trained over all there is."""
    sizes = [int(n) for n in rng.integers(1, 50, 6)]
    expected = (sizes[1] + sizes[4]) / (sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4] + sizes[5])
    same(float(impl([sizes[1], sizes[4]], sizes)), expected, "the share", 1e-12)


@exercise("00.1")
def test_nothing_and_everything(impl):
    """Nothing trained is a share of 0, everything 1."""
    same(float(impl([], [3, 4])), 0.0, "the share of nothing", 1e-12)
    same(float(impl([3, 4], [3, 4])), 1.0, "the share of everything", 1e-12)


@exercise("00.1")
def test_a_model_without_numbers(impl):
    """Where there are no numbers at all the share is 0."""
    same(float(impl([], [])), 0.0, "the share", 1e-12)
