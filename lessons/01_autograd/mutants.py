"""Wrong answers to lesson 1, and what a learner who wrote one is told."""

import math

import numpy as np

from minipeft.autograd.ops import sum_rows, swap_last, use
from minipeft.autograd.tensor import Tensor, _parents
from minipeft.learn.claims import mutant

# ---- 01.1 ----


@mutant("01.1", "overwritten", "A second way overwrites what came by the first: add what arrives, with +=.")
def chain(tape):
    out = [0.0] * len(tape)
    out[-1] = 1.0
    for j in reversed(range(len(tape))):
        for i, slope in tape[j]:
            out[i] = out[j] * slope
    return out


@mutant("01.1", "forwards", "You went from the first value to the last: a value hands on before anything has reached it. Go from "
                            "the last to the first.")
def chain(tape):
    out = [0.0] * len(tape)
    out[-1] = 1.0
    for j in range(len(tape)):
        for i, slope in tape[j]:
            out[i] += out[j] * slope
    return out


@mutant("01.1", "small_ones_alone", "You added up the small derivatives alone; each must be multiplied by dL/dv_j, which arrived "
                                    "at v_j.")
def chain(tape):
    out = [0.0] * len(tape)
    out[-1] = 1.0
    for j in reversed(range(len(tape))):
        for i, slope in tape[j]:
            out[i] += slope
    return out


@mutant("01.1", "all_ones", "Only L starts with 1; all other values start with 0, and get what arrives.")
def chain(tape):
    out = [1.0] * len(tape)
    for j in reversed(range(len(tape))):
        for i, slope in tape[j]:
            out[i] += out[j] * slope
    return out


@mutant("01.1", "no_start", "Everything is 0: dL/dL = 1 is where it starts.")
def chain(tape):
    out = [0.0] * len(tape)
    for j in reversed(range(len(tape))):
        for i, slope in tape[j]:
            out[i] += out[j] * slope
    return out


@mutant("01.1", "once_per_value", "A value that stands twice in one list is used twice: both pairs count. (A dict keeps only one "
                                  "of them.)")
def chain(tape):
    out = [0.0] * len(tape)
    out[-1] = 1.0
    for j in reversed(range(len(tape))):
        for i, slope in dict(tape[j]).items():
            out[i] += out[j] * slope
    return out


# ---- 01.2 ----


@mutant("01.2", "in_front_only", "You summed over the axes in front; axes of size 1 that were repeated must be summed over as "
                                 "well.")
def unbroadcast(g, shape):
    return g.sum(axis=tuple(range(g.ndim - len(shape))))


@mutant("01.2", "ones_only", "You summed over axes of size 1; the axes that the operand does not have, in front, must be summed "
                             "over as well.")
def unbroadcast(g, shape):
    extra = g.ndim - len(shape)
    axes = tuple(i + extra for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=axes, keepdims=True)


@mutant("01.2", "axis_lost", "The sums are right, but an axis of size 1 must stay: the gradient has the operand's shape.")
def unbroadcast(g, shape):
    extra = g.ndim - len(shape)
    return g.sum(axis=(*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1)))


@mutant("01.2", "mean", "You took the mean; every use adds its part, so it is the sum.")
def unbroadcast(g, shape):
    extra = g.ndim - len(shape)
    axes = (*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1))
    return g.mean(axis=axes, keepdims=True).reshape(shape) if axes else g


@mutant("01.2", "first_use", "You took the gradient of one use and dropped the others: sum over the axis where you take its "
                             "first entry.")
def unbroadcast(g, shape):
    extra = g.ndim - len(shape)
    g = g[(0,) * extra]
    return g[tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)].copy()


@mutant("01.2", "from_the_left", "Shapes are compared from the right: an axis that is missing is missing in front, not behind.")
def unbroadcast(g, shape):
    padded = tuple(shape) + (1,) * (g.ndim - len(shape))
    return g.sum(axis=tuple(i for i, n in enumerate(padded) if n == 1), keepdims=True).reshape(shape)


# ---- 01.3 ----


def value(x, weight, bias):
    """x W + b, an array."""
    y = x.data.reshape(-1, x.shape[-1]) @ weight.data
    return (y if bias is None else y + bias.data).reshape(*x.shape[:-1], weight.shape[1])


def to_x(x, weight):
    """The right product for x."""
    shape = x.shape
    return lambda g: (g.reshape(-1, g.shape[-1]) @ swap_last(use(weight))).reshape(shape)


def to_weight(x):
    """The right product for the weight."""
    return lambda g: swap_last(use(x).reshape(-1, x.shape[-1])) @ g.reshape(-1, g.shape[-1])


@mutant("01.3", "weight_transposed", "dW has the shape of its transpose: it is xᵀ g, (D_in, rows) times (rows, D_out), and not "
                                     "gᵀ x.")
def linear(x, weight, bias=None):
    right = to_weight(x)
    return Tensor(value(x, weight, bias),
                  parents=[(x, to_x(x, weight)), (weight, lambda g: swap_last(right(g))), (bias, sum_rows)])


@mutant("01.3", "bias_not_summed", "The bias was added to every row, so its gradient is the sum of g over the rows; you handed "
                                   "on g itself.")
def linear(x, weight, bias=None):
    return Tensor(value(x, weight, bias), parents=[(x, to_x(x, weight)), (weight, to_weight(x)), (bias, lambda g: g)])


@mutant("01.3", "weight_for_each_element", "Flatten x and g to (rows, D) before dW: left with more axes, there is one dW for "
                                           "each element of the batch, and no sum of them.")
def linear(x, weight, bias=None):
    return Tensor(value(x, weight, bias),
                  parents=[(x, to_x(x, weight)), (weight, lambda g: swap_last(use(x)) @ g), (bias, sum_rows)])


@mutant("01.3", "mean_over_rows", "dW and db are sums over the rows, not means: how the loss weighs the rows is in g already.")
def linear(x, weight, bias=None):
    right, rows = to_weight(x), math.prod(x.shape[:-1])
    return Tensor(value(x, weight, bias), parents=[(x, to_x(x, weight)), (weight, lambda g: right(g) * (1 / rows)),
                                                   (bias, lambda g: sum_rows(g) * (1 / rows))])


@mutant("01.3", "input_is_constant", "x gets no gradient, so nothing below this map can learn: give a product for x too, g Wᵀ.")
def linear(x, weight, bias=None):
    return Tensor(value(x, weight, bias), parents=[(weight, to_weight(x)), (bias, sum_rows)])


@mutant("01.3", "holds_on_to_x", "All numbers are right, but the product for x reads x.shape and so keeps x itself in memory, "
                                 "frozen W or not. Take shape = x.shape before, and use that.")
def linear(x, weight, bias=None):
    back = lambda g: (g.reshape(-1, g.shape[-1]) @ swap_last(use(weight))).reshape(x.shape)
    return Tensor(value(x, weight, bias), parents=[(x, back), (weight, to_weight(x)), (bias, sum_rows)])


@mutant("01.3", "arrays_only", "Right for a first gradient. But a product must take its operands as use(x) and use(weight): with "
                               ".data they are constants when the gradient itself is differentiated.")
def linear(x, weight, bias=None):
    back = lambda g: (g.reshape(-1, g.shape[-1]) @ swap_last(weight.data)).reshape(shape)
    shape, rows = x.shape, lambda g: g.reshape(-1, g.shape[-1])
    return Tensor(value(x, weight, bias),
                  parents=[(x, back), (weight, lambda g: swap_last(rows(x.data)) @ rows(g)), (bias, sum_rows)])


@mutant("01.3", "composed", "The numbers are right, but that is two operations, a product and a sum: write one, with a product "
                            "for each of x, W and b.")
def linear(x, weight, bias=None):
    y = Tensor(value(x, weight, None), parents=[(x, to_x(x, weight)), (weight, to_weight(x))])
    return y if bias is None else y + bias


# ---- 01.4 ----


def number(function, x, upstream):
    """<u, f(x)>"""
    return (upstream * function(x)).sum()


@mutant("01.4", "one_sided", "You moved in one direction only: its error shrinks with h. Take f(x + h) − f(x − h), divided by "
                             "2h.")
def finite_differences(function, x, upstream, step):
    out, here = np.zeros(x.shape), number(function, x, upstream)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        out[index] = (number(function, x, upstream) - here) / step
        x[index] = kept
    return out


@mutant("01.4", "twice_as_steep", "From x − h to x + h it is 2h, and you divided by h: all slopes are twice too large.")
def finite_differences(function, x, upstream, step):
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = number(function, x, upstream)
        x[index] = kept - step
        out[index] = (above - number(function, x, upstream)) / step
        x[index] = kept
    return out


@mutant("01.4", "no_upstream", "You added up what function gives and left upstream out: weigh each entry with it before the sum.")
def finite_differences(function, x, upstream, step):
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function(x).sum()
        x[index] = kept - step
        out[index] = (above - function(x).sum()) / (2 * step)
        x[index] = kept
    return out


@mutant("01.4", "all_at_once", "You moved all entries of x together; move one at a time, or their slopes cannot be told apart.")
def finite_differences(function, x, upstream, step):
    return np.full(x.shape, (number(function, x + step, upstream) - number(function, x - step, upstream)) / (2 * step))


@mutant("01.4", "not_put_back", "After an entry has been moved it must get back the value that it had; you left it moved.")
def finite_differences(function, x, upstream, step):
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = number(function, x, upstream)
        x[index] = kept - step
        out[index] = (above - number(function, x, upstream)) / (2 * step)
    return out


# ---- 01.5 ----


@mutant("01.5", "calls_itself", "The order is right, but the function calls itself once for each level, and Python allows about "
                                "a thousand nested calls: keep the nodes still to be done on a stack of your own.")
def _order(root, create_graph):
    order, parents_of = [], {}

    def visit(node):
        parents_of[node] = _parents(node, create_graph)
        for parent, _ in parents_of[node]:
            if parent not in parents_of:
                visit(parent)
        order.append(node)

    visit(root)
    return order[::-1], parents_of


@mutant("01.5", "not_turned_round", "The nodes are in the order in which they were computed. Backward needs the reverse: the "
                                    "root first.")
def _order(root, create_graph):
    order, parents_of, stack = [], {}, [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in parents_of:
            parents_of[node] = _parents(node, create_graph)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in parents_of[node] if parent not in parents_of)
    return order, parents_of


@mutant("01.5", "when_first_seen", "You put a node on the list when it is taken from the stack for the first time. One that is "
                                   "also reached by a longer way then comes too early: put it on the list only after all of its "
                                   "parents, and turn the list round in the end.")
def _order(root, create_graph):
    order, parents_of, stack = [], {}, [root]
    while stack:
        node = stack.pop()
        if node not in parents_of:
            order.append(node)
            parents_of[node] = _parents(node, create_graph)
            stack.extend(parent for parent, _ in parents_of[node])
    return order, parents_of


@mutant("01.5", "level_by_level", "You went level by level. A node that is one step from the root on one way and three on "
                                  "another then comes too early: it must wait for the longest way.")
def _order(root, create_graph):
    order, parents_of, waiting = [], {}, [root]
    while waiting:
        node = waiting.pop(0)
        if node not in parents_of:
            order.append(node)
            parents_of[node] = _parents(node, create_graph)
            waiting.extend(parent for parent, _ in parents_of[node])
    return order, parents_of


@mutant("01.5", "every_way", "A node stands there once for each way that leads to it, and asks _parents each time: remember "
                             "which nodes you have met.")
def _order(root, create_graph):
    order, parents_of, stack = [], {}, [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        else:
            parents_of[node] = _parents(node, create_graph)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in parents_of[node])
    return order[::-1], parents_of


@mutant("01.5", "own_parents", "You read node.parents. _parents(node, create_graph) gives others when the backward pass itself "
                               "is to be differentiated.")
def _order(root, create_graph):
    order, parents_of, stack = [], {}, [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in parents_of:
            parents_of[node] = node.parents
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in parents_of[node] if parent not in parents_of)
    return order[::-1], parents_of
