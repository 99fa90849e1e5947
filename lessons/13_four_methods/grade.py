"""What an answer to lesson 13 must do: counts, up to where a bound holds, costs of products, the front, the whole table."""

import numpy as np
import pytest

from minipeft.compare.plan import Setting
from minipeft.compare.plan_models import Shape
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.methods import METHODS
from minipeft.models import TransformerConfig


def shape_of(kind="bert", width=12, layers=3, inner=20, positions=40, labels=("a", "b", "c")):
    """A small model to plan for, that classifies by the mean of the states (BERT) or the last one (GPT-2)."""
    causal = kind == "gpt2"
    config = TransformerConfig(model_type=kind, vocab_size=17, hidden_size=width, num_hidden_layers=layers, num_attention_heads=3,
                               intermediate_size=inner, max_position_embeddings=positions, labels=labels,
                               type_vocab_size=0 if causal else 2, pooling="last" if causal else "mean")
    return Shape("small", kind, "classify", config, pre_norm=causal)


# ---- 13.1: the counts ------------------------------------------------------------------------------------------


@exercise("13.1")
@pytest.mark.parametrize("shape", [None, (7, 1, 1, 1), (30, 4, 8, 3)])
def test_the_arrays_added_up(impl, rng, shape):
    """The counts are the entries of all arrays that each method brings along."""
    d, layers, r, n = shape or sizes(rng, 4, high=12)
    adapter = [(d, r), (r,), (r, d), (d,)] * 2 * layers
    lora = [(d, r), (d, r)] * 2 * layers
    prefix = [(n, d)] * 2 * layers
    expected = [sum(np.zeros(shape).size for shape in arrays) for arrays in (adapter, lora, prefix, [(n, d)])]
    got = impl(d, layers, r, n)
    holds(len(got) == 4, f"{len(got)} numbers; expected four: adapter, LoRA, prefix, soft prompt")
    for name, yours, right in zip(("adapters", "LoRA", "the prefix", "the soft prompt"), got, expected):
        same(yours, right, f"the count of {name}", 0)


@exercise("13.1")
def test_they_are_the_package_s(impl, rng):
    """The counts are those of the package's methods on a model of this size."""
    third, layers, r, n = sizes(rng, 4)
    config, tokens = shape_of(width=3 * third, layers=layers).config, {"num_virtual_tokens": n}
    names = {"houlsby": {"bottleneck": r}, "lora": {"rank": r}, "prefix": tokens, "prompt": tokens}
    for (name, options), yours in zip(names.items(), impl(3 * third, layers, r, n)):
        same(yours, METHODS[name](**options).count(config), f"the count of {name}", 0)


# ---- 13.2: the bound -------------------------------------------------------------------------------------------


def of(slope, constant=0, total=1000):
    """A share that rises: (slope k + constant) over the whole."""
    return lambda k: (slope * k + constant) / (total + slope * k + constant)


def tried(bound, share, limit):
    """The answer, by trying every size."""
    sizes = [k for k in range(1, (limit or 5000) + 1) if share(k) < bound]
    return None if limit is not None and len(sizes) == limit else len(sizes)


def same_answer(yours, right, what):
    """Claim that an answer is the number, or None, that is right."""
    if right is None:
        holds(yours is None, f"{what}: got {yours!r}; expected None, as all sizes are below the bound")
    else:
        same(yours, right, what, 0)


@exercise("13.2")
@pytest.mark.parametrize("bound", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("line", [None, (1, 0)])
def test_the_largest_size(impl, rng, bound, line):
    """The answer is the largest size whose share is below the bound."""
    slope, constant = line or (int(rng.integers(2, 30)), int(rng.integers(1, 20)))
    same_answer(impl(bound, of(slope, constant), None), tried(bound, of(slope, constant), None), "the largest size")


@exercise("13.2")
def test_none_is_below(impl):
    """0 where the share of size 1 is not below the bound."""
    same_answer(impl(0.01, of(50), None), 0, "the largest size")
    same_answer(impl(0.01, of(50), 8), 0, "the largest size")


@exercise("13.2")
def test_equal_is_not_below(impl):
    """A size whose share equals the bound does not count."""
    same_answer(impl(0.75, lambda k: k / 8, None), 5, "the largest size where size 6 has the share 0.75")


@exercise("13.2")
@pytest.mark.parametrize("limit", [1, 5, 12, 13, 40])
def test_the_limit(impl, limit):
    """None where the limit itself is below the bound; and a size above the limit is never asked for."""
    def share(k):
        holds(1 <= k <= limit, f"share was asked for the size {k}; only sizes from 1 to {limit} fit")
        return of(10)(k)

    same_answer(impl(0.11, share, limit), tried(0.11, of(10), limit), f"the largest size up to {limit}")


@exercise("13.2")
@pytest.mark.parametrize("limit", [None, 10**7])
def test_millions(impl, limit):
    """An answer of millions takes no more than 200 questions to share."""
    asked = []

    def share(k):
        asked.append(k)
        holds(len(asked) <= 200, "share was asked more than 200 times; halve an interval")
        return k / 10**7

    same_answer(impl(0.3141592, share, limit), 3141591, "the largest size")


# ---- 13.3: what a product costs --------------------------------------------------------------------------------


def fresh_walk(impl):
    """A walk through a small model whose numbers are 0 again."""
    walk = impl(shape_of(), METHODS["head"](), 1, 2)
    walk.forward = walk.backward = walk.extra = 0
    return walk


@exercise("13.3")
@pytest.mark.parametrize("node, trained, times", [(False, False, 0), (True, False, 1), (False, True, 1), (True, True, 2),
                                                  (None, 3, 1)])
@pytest.mark.parametrize("own", [False, True])
def test_one_product(impl, rng, node, trained, times, own):
    """Forward 2 rows size operations, backward as many for dx where there is a gradient and as many for dW where W is trained."""
    walk, (rows, size) = fresh_walk(impl), sizes(rng, 2, low=3, high=30)
    walk.product(rows, size, node, trained, own=own)
    same(walk.forward, 2 * rows * size, "forward", 0)
    same(walk.backward, times * 2 * rows * size, "backward", 0)
    same(walk.extra, 2 * rows * size * own, "extra", 0)


@exercise("13.3")
def test_they_add_up(impl, rng):
    """Products add up."""
    walk, (a, b, c, d) = fresh_walk(impl), sizes(rng, 4, low=3, high=30)
    walk.product(a, b, True, False)
    walk.product(c, d, True, True, True)
    same(walk.forward, 2 * (a * b + c * d), "forward", 0)
    same(walk.backward, 2 * (a * b + 2 * c * d), "backward", 0)
    same(walk.extra, 2 * c * d, "extra", 0)


def base_forward(width, layers, inner, classes, batch, length):
    """Operations of BERT's forward pass, product by product."""
    total = 0
    for _ in range(layers):
        total += 4 * 2 * batch * length * width * width      # q, k, v, out
        total += 2 * 2 * batch * length * length * width     # scores and sums of values, all heads together
        total += 2 * 2 * batch * length * width * inner      # up and down
    total += 2 * batch * length * width                      # the mean over a text
    return total + 2 * batch * width * classes


@exercise("13.3")
def test_a_whole_model(impl, rng):
    """A walk with it counts a model's products: the base's forward pass, LoRA's own part, a head's backward pass."""
    third, layers, classes, batch, length = sizes(rng, 5)
    width, inner, r = 3 * third, int(rng.integers(16, 24)), 2
    shape = shape_of(width=width, layers=layers, inner=inner, labels=tuple("abcdef"[:classes]))
    head = impl(shape, METHODS["head"](), batch, length)
    same(head.forward, base_forward(width, layers, inner, classes, batch, length), "forward of the base", 0)
    same(head.backward, 2 * batch * width * classes, "backward of the head alone: dW of the classifier", 0)
    lora = impl(shape, METHODS["lora"](rank=r), batch, length)
    same(lora.extra, layers * 2 * 2 * batch * length * (width * r + r * width),
         "LoRA's own operations: x U and (x U) Vᵀ at q and v", 0)
    full = impl(shape, METHODS["full"](), batch, length)
    maps = 2 * full.forward - 2 * batch * length * width     # all products have dx and dW; the mean's weights are not trained
    same(full.backward, maps, "backward of full fine-tuning", 0)


# ---- 13.4: the front -------------------------------------------------------------------------------------------


def by_pairs(points, higher):
    """The front, by comparing every two points."""
    better = (lambda a, b: a >= b) if higher else (lambda a, b: a <= b)
    return [not any(c <= cost and better(s, score) and (c < cost or s != score) for c, s in points) for cost, score in points]


@exercise("13.4")
def test_an_example(impl):
    """A point stands where it scores more than all that cost no more; one that is behind another in both does not."""
    points = [(300, 0.9), (10, 0.5), (40, 0.4), (50, 0.8)]
    same(list(impl(points)), [True, True, False, True], "which points are on the front", 0)


@exercise("13.4")
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("number", [2, 7, 25])
def test_every_pair_compared(impl, rng, number, higher):
    """It agrees with comparing every two points, many of them with equal costs or equal scores."""
    for _ in range(20):
        points = [(int(c), float(s)) for c, s in zip(rng.integers(0, 6, number), rng.integers(0, 6, number) / 8)]
        same(list(impl(points, higher)), by_pairs(points, higher), "which points are on the front", 0)


@exercise("13.4")
def test_equal_points(impl):
    """Equal points stand or fall together."""
    same(list(impl([(3, 0.5), (1, 0.4), (3, 0.5), (5, 0.5), (5, 0.5)])), [True, True, True, False, False],
         "which points are on the front", 0)


@exercise("13.4")
def test_one_and_none(impl):
    """One point is on the front; without points the list is empty."""
    same(list(impl([(3, 0.5)], False)), [True], "which points are on the front", 0)
    same(len(impl([])), 0, "the length of the list for no points", 0)


@exercise("13.4")
def test_booleans(impl):
    """The answer is a list of booleans."""
    got = impl([(3, 0.5), (4, 0.4)])
    right = isinstance(got, list) and all(isinstance(on, (bool, np.bool_)) for on in got)
    holds(right, f"got {got!r}; expected a list of booleans")


# ---- 13.5: the table -------------------------------------------------------------------------------------------

def lines_of(width, layers):
    """Slope and constant of the four counts."""
    return (layers * 2 * (2 * width + 1), layers * 2 * width), (layers * 2 * 2 * width, 0), (layers * 2 * width, 0), (width, 0)


@exercise("13.5")
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_counts_as_functions_of_the_size(impl, rng, kind):
    """Each row has the size that was asked for, and a slope and a constant that give the count."""
    third, layers, bottleneck, r, n = sizes(rng, 5)
    options = {"bottleneck": bottleneck, "rank": r, "num_virtual_tokens": n}
    rows = impl(shape_of(kind, 3 * third, layers), options, Setting(batch=2, length=6))
    holds(len(rows) == 4, f"{len(rows)} rows; expected four")
    for row, size, (slope, constant) in zip(rows, (bottleneck, r, n, n), lines_of(3 * third, layers)):
        name = row.character.title
        same(row.size, size, f"the size of {name}", 0)
        same(row.slope, slope, f"the slope of {name}", 0)
        same(row.constant, constant, f"the constant of {name}", 0)
        same(row.row.without_head, slope * size + constant, f"the count of {name} as planned", 0)


@exercise("13.5")
@pytest.mark.parametrize("width", [12, 90, 240])
def test_up_to_where_the_bounds_hold(impl, width):
    """`largest` is the largest size with a share, of model and method together, below the bound."""
    shape = shape_of(width=width, inner=4 * width)
    limits = None, width, 39, 39
    rows = impl(shape, {"num_virtual_tokens": 2, "rank": 2}, Setting(batch=1, length=4))
    for row, limit, (slope, constant) in zip(rows, limits, lines_of(width, 3)):
        name, share = row.character.title, of(slope, constant, shape.total)
        same_answer(row.largest, tried(row.character.bound, share, limit), f"the largest size of {name}")
        holds(row.limit == limit, f"the limit of {name} is {row.limit}; expected {limit}")


@exercise("13.5")
def test_how_much_slower(impl, rng):
    """`slower` is by what share inference takes more operations than the base: nothing for LoRA, which merges."""
    batch, length, r, n = sizes(rng, 4, high=7)
    width, layers, inner, classes = 12, 3, 20, 3
    base = base_forward(width, layers, inner, classes, batch, length)
    longer = base_forward(width, layers, inner, classes, batch, length + n)
    adapter = 2 * layers * 2 * batch * length * 2 * width * r
    prefix = layers * 2 * 2 * batch * length * n * width
    rows = impl(shape_of(), {"bottleneck": r, "rank": 2, "num_virtual_tokens": n}, Setting(batch=batch, length=length))
    for row, expected in zip(rows, (adapter / base, 0.0, prefix / base, longer / base - 1)):
        same(float(row.slower), expected, f"slower of {row.character.title}", 1e-12)


@exercise("13.5")
def test_the_rows_are_of_the_four(impl):
    """The rows come in the order of FOUR: adapter, LoRA, prefix, soft prompt."""
    titles = [row.character.title for row in impl(shape_of(), {}, Setting(batch=1, length=4))]
    holds(titles == ["adapter", "LoRA", "prefix", "soft prompt"], f"the rows are of {', '.join(titles)}")
