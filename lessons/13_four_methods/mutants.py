"""Wrong answers to lesson 13, and what a learner who wrote one is told."""

from dataclasses import replace

from minipeft.compare.plan import count, make_method, plan
from minipeft.compare.plan_cost import Walk
from minipeft.compare.plan_four import FOUR, FourRow, largest_below, limit_of
from minipeft.learn.claims import mutant
from minipeft.methods import METHODS

# ---- 13.1 ----


@mutant("13.1", "no_biases", "An adapter's two maps have biases, r and d numbers, which you left out.")
def four_counts(d, layers, r, n):
    return 2 * layers * 2 * d * r, 4 * d * r * layers, 2 * n * d * layers, n * d


@mutant("13.1", "one_adapter", "You counted one adapter for each block; these stand at both joins, two for each block.")
def four_counts(d, layers, r, n):
    return layers * (2 * d * r + r + d), 4 * d * r * layers, 2 * n * d * layers, n * d


@mutant("13.1", "one_map", "LoRA adapts two maps of each block here, query and value, each with U and V; you counted one map.")
def four_counts(d, layers, r, n):
    return 2 * layers * (2 * d * r + r + d), 2 * d * r * layers, 2 * n * d * layers, n * d


@mutant("13.1", "keys_only", "A prefix has keys and values, n vectors of each in every block; you counted one of the two.")
def four_counts(d, layers, r, n):
    return 2 * layers * (2 * d * r + r + d), 4 * d * r * layers, n * d * layers, n * d


@mutant("13.1", "prompt_everywhere", "A soft prompt stands before the words once, and not in every block.")
def four_counts(d, layers, r, n):
    return 2 * layers * (2 * d * r + r + d), 4 * d * r * layers, 2 * n * d * layers, n * d * layers


# ---- 13.2 ----


def _ends(bound, share, limit):
    """The answer for shares below a bound, and the size after it; None where the limit is below."""
    below, above = 0, 1
    while share(above) < bound:
        if limit is not None and above >= limit:
            return None
        below, above = above, 2 * above if limit is None else min(2 * above, limit)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if share(middle) < bound else (below, middle)
    return below, above


@mutant("13.2", "one_too_large",
        "You gave the first size whose share is not below the bound; the largest that is lies one before it.")
def largest_below(bound, share, limit):
    ends = _ends(bound, share, limit)
    return None if ends is None else ends[1]


@mutant("13.2", "at_the_bound", "A share equal to the bound is not below it: compare with <, not with <=.")
def largest_below(bound, share, limit):
    ends = _ends(bound * (1 + 1e-12), share, limit)
    return None if ends is None else ends[0]


@mutant("13.2", "the_limit", "Where the limit itself is still below the bound the answer is None (all sizes are), not the limit.")
def largest_below(bound, share, limit):
    ends = _ends(bound, share, limit)
    return limit if ends is None else ends[0]


@mutant("13.2", "past_the_limit",
        "You went past the limit: a method of such a size does not fit the model, and share must not be asked for it.")
def largest_below(bound, share, limit):
    size = _ends(bound, share, None)[0]
    return None if limit is not None and size >= limit else size


@mutant("13.2", "one_by_one",
        "The numbers are right, but you tried every size. An answer of millions takes too long that way: halve an interval.")
def largest_below(bound, share, limit):
    size = 0
    while share(size + 1) < bound:
        size += 1
        if size == limit:
            return None
        if size > 3000:  # long enough to be seen
            return 0
    return size


@mutant("13.2", "powers",
        "You stopped at a power of two: doubling finds an interval, and the answer is to be looked for inside it.")
def largest_below(bound, share, limit):
    below, above = 0, 1
    while share(above) < bound:
        if limit is not None and above >= limit:
            return None
        below, above = above, 2 * above if limit is None else min(2 * above, limit)
    return below


# ---- 13.3 ----


@mutant("13.3", "no_two", "Each entry takes a multiplication and an addition, which are two operations: the factor 2 is missing.")
def product(self, rows, size, node, trained, own=False):
    self.forward += rows * size
    self.extra += rows * size * own
    self.backward += rows * size * (bool(node) + bool(trained))


@mutant("13.3", "always_both",
        "You counted dx and dW always. dx is needed only where the rows have a gradient, dW only where the matrix is trained.")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size
    self.extra += 2 * rows * size * own
    self.backward += 4 * rows * size


@mutant("13.3", "no_dx",
        "dx is missing: the gradient must go on through a frozen map where something below it is trained (node).")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size
    self.extra += 2 * rows * size * own
    self.backward += 2 * rows * size * bool(trained)


@mutant("13.3", "no_dw", "dW is missing: a matrix that is trained needs a product of its own in the backward pass.")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size
    self.extra += 2 * rows * size * own
    self.backward += 2 * rows * size * bool(node)


@mutant("13.3", "one_or_the_other",
        "Where the rows have a gradient and the matrix is trained, both dx and dW are computed: the two add up.")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size
    self.extra += 2 * rows * size * own
    self.backward += 2 * rows * size * bool(node or trained)


@mutant("13.3", "all_extra", "self.extra is for the method's own products alone, those with own=True.")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size
    self.extra += 2 * rows * size
    self.backward += 2 * rows * size * (bool(node) + bool(trained))


@mutant("13.3", "not_forward",
        "The method's own products are part of the forward pass too: add them to self.forward as well as to self.extra.")
def product(self, rows, size, node, trained, own=False):
    self.forward += 2 * rows * size * (not own)
    self.extra += 2 * rows * size * own
    self.backward += 2 * rows * size * (bool(node) + bool(trained))


@mutant("13.3", "replaced", "You set the numbers anew at each product; they are sums over all products, so add with +=.")
def product(self, rows, size, node, trained, own=False):
    self.forward = 2 * rows * size
    self.extra = 2 * rows * size * own
    self.backward = 2 * rows * size * (bool(node) + bool(trained))


# ---- 13.4 ----


def _front(points, beats):
    """Whether no point beats a point, for each."""
    return [not any(beats(q, p) for q in points) for p in points]


def _signed(points, higher):
    """Points whose higher scores are better."""
    return [(cost, score if higher else -score) for cost, score in points]


@mutant("13.4", "both_strictly",
        "You drove a point off only where another is better in both. Better in one and equal in the other is enough.")
def pareto(points, higher=True):
    return _front(_signed(points, higher), lambda q, p: q[0] < p[0] and q[1] > p[1])


@mutant("13.4", "never_lower", "With higher=False lower scores are better, and you did not look at it.")
def pareto(points, higher=True):
    return _front(points, lambda q, p: q[0] <= p[0] and q[1] >= p[1] and q != p)


@mutant("13.4", "equals_lost", "Of equal points you kept one. Neither is better than the other: they stand or fall together.")
def pareto(points, higher=True):
    signed = _signed(points, higher)
    found = _front(signed, lambda q, p: q[0] <= p[0] and q[1] >= p[1] and q != p)
    return [on and p not in signed[:i] for i, (p, on) in enumerate(zip(signed, found))]


@mutant("13.4", "best_only",
        "You kept the best score alone; a point with a lower one is on the front where nothing cheaper or equal does as well.")
def pareto(points, higher=True):
    signed = _signed(points, higher)
    found = _front(signed, lambda q, p: q[0] <= p[0] and q[1] >= p[1] and q != p)
    return [on and p[1] == max(score for _, score in signed) for p, on in zip(signed, found)]


@mutant("13.4", "by_cost", "You gave the answers in the order of the costs; they must be in the order of the points.")
def pareto(points, higher=True):
    signed = sorted(_signed(points, higher))
    return _front(signed, lambda q, p: q[0] <= p[0] and q[1] >= p[1] and q != p)


@mutant("13.4", "costly_wins", "You took higher costs for better ones: here a cost is better the lower it is.")
def pareto(points, higher=True):
    return _front(_signed(points, higher), lambda q, p: q[0] >= p[0] and q[1] >= p[1] and q != p)


# ---- 13.5 ----


def _four(shape, options, setting, share_of=None, constant_of=None, slope_of=None, slower_of=None, asked=True):
    """The right answer, but for what is given."""
    out, base = [], Walk(shape, METHODS["head"](), setting.batch, setting.length, setting.target_length).forward
    for character in FOUR:
        method = make_method(character.method, options if asked else {}, shape)

        def sized(size, m=method, name=character.size):
            return count(replace(m, **{name: size}), shape)

        def share(size, sized=sized):
            return share_of(sized(size)) if share_of else sized(size) / (shape.total + sized(size))

        limit, row = limit_of(method, shape), plan(method, shape, setting)
        slope = slope_of(sized) if slope_of else sized(2) - sized(1)
        constant = constant_of(sized) if constant_of else 2 * sized(1) - sized(2)
        slower = slower_of(row, base) if slower_of else row.inference_flops / base - 1
        out.append(FourRow(character, getattr(method, character.size), slope, constant, row,
                           _largest(character.bound, share, limit), limit, slower))
    return out


def _largest(bound, share, limit):
    """The answer of 13.2."""
    ends = _ends(bound, share, limit)
    return None if ends is None else ends[0]


@mutant("13.5", "share_of_the_base",
        "What a method adds is part of the whole: a share is the count over shape.total and the count together.")
def four(shape, options, setting):
    return _four(shape, options, setting, share_of=lambda number: number / shape.total)


@mutant("13.5", "constant_with_slope",
        "The constant is what is left at size 0, count(1) less the slope; you took count(1) itself.")
def four(shape, options, setting):
    return _four(shape, options, setting, constant_of=lambda sized: sized(1))


@mutant("13.5", "no_constant",
        "You took count(1) for the slope. It has the constant in it (an adapter's second bias): take count(2) - count(1).")
def four(shape, options, setting):
    return _four(shape, options, setting, slope_of=lambda sized: sized(1), constant_of=lambda sized: 0)


@mutant("13.5", "ratio", "slower is by how much inference takes *more*: the ratio to the base less 1.")
def four(shape, options, setting):
    return _four(shape, options, setting, slower_of=lambda row, base: row.inference_flops / base)


@mutant("13.5", "not_merged",
        "You took the forward pass of training. Inference is row.inference_flops, where LoRA is merged and costs nothing.")
def four(shape, options, setting):
    return _four(shape, options, setting, slower_of=lambda row, base: row.forward_flops / base - 1)


@mutant("13.5", "defaults",
        "The options that were asked for are not used: make each method by make_method(character.method, options, shape).")
def four(shape, options, setting):
    return _four(shape, options, setting, asked=False)
