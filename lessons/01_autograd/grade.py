"""What an answer to lesson 1 must do: the chain rule on numbers, sums where something was repeated, the three gradients of a
linear map and what a frozen weight leaves behind, finite differences, and an order in which nobody hands on too early."""

import gc
import itertools
import weakref

import numpy as np
import pytest

from minipeft import autograd as F
from minipeft.autograd import Tensor
from minipeft.autograd.tensor import Node
from minipeft.learn.claims import exercise, holds, same, sizes

# ---- 01.1: the chain rule --------------------------------------------------------------------------------------


def over_all_paths(tape):
    """dL/dv_i as the sum over all ways from v_i to L of the products along them."""
    def ways(i, j):
        if i == j:
            return 1.0
        return sum(slope * ways(i, k) for k, slope in tape[j] if k >= i)

    return np.array([ways(i, len(tape) - 1) for i in range(len(tape))])


@exercise("01.1")
def test_a_chain(impl, rng):
    """Along a chain v_0 -> v_1 -> v_2 -> v_3 the small derivatives are multiplied."""
    p, q, r = rng.standard_normal(3)
    same(impl([[], [(0, p)], [(1, q)], [(2, r)]]), np.array([p * q * r, q * r, r, 1.0]), "dL/dv", 1e-12)


@exercise("01.1")
def test_two_ways_are_added(impl, rng):
    """Where two ways lead from a value to L, both count."""
    p, q, r, s = rng.standard_normal(4)
    tape = [[], [(0, p)], [(0, q)], [(1, r), (2, s)]]
    same(impl(tape), np.array([p * r + q * s, r, s, 1.0]), "dL/dv", 1e-12)


@exercise("01.1")
def test_twice_in_one_list(impl, rng):
    """L = v v uses v twice: dL/dv = 2 v."""
    v = float(rng.standard_normal())
    same(impl([[], [(0, v), (0, v)]]), np.array([2 * v, 1.0]), "dL/dv", 1e-12)


@exercise("01.1")
def test_a_tape_drawn_at_random(impl, rng):
    """On any tape dL/dv_i is the sum over all ways from v_i to L; a value that L does not depend on has 0."""
    tape = [[], [], []]
    for j in range(3, int(rng.integers(8, 12))):
        tape.append([(int(i), float(rng.standard_normal())) for i in rng.choice(j, size=2, replace=False)])
    same(impl(tape), over_all_paths(tape), "dL/dv", 1e-10)


@exercise("01.1")
def test_nothing_but_the_loss(impl):
    """On a tape with one value that value is L, and dL/dL = 1."""
    same(impl([[]]), np.array([1.0]), "dL/dv", 0)


# ---- 01.2: unbroadcast -----------------------------------------------------------------------------------------


def drawn_shapes(rng, *names):
    """Shapes by their letters, each of which is a size that is drawn, and 1: "a1" is (a, 1)."""
    size = dict(zip("abc", sizes(rng, 3))) | {"1": 1}
    return [tuple(size[letter] for letter in name) for name in names]


def summed(g, shape):
    """Every number of g added to the entry of the operand that was used for it."""
    out = np.zeros(shape)
    for index in np.ndindex(*g.shape):
        own = index[len(index) - len(shape):]
        out[tuple(0 if n == 1 else i for i, n in zip(own, shape))] += g[index]
    return out


@exercise("01.2")
def test_the_same_shape(impl, rng):
    """Where nothing was repeated g comes back as it is."""
    (shape,) = drawn_shapes(rng, "ab")
    g = rng.standard_normal(shape)
    same(impl(g, shape), g, "the gradient", 0)


@exercise("01.2")
@pytest.mark.parametrize("shape, result", [("b", "ab"), ("bc", "abc"), ("c", "abc")])
def test_axes_in_front(impl, rng, shape, result):
    """Axes that the operand does not have are summed over."""
    shape, result = drawn_shapes(rng, shape, result)
    g = rng.standard_normal(result)
    same(impl(g, shape), summed(g, shape), f"the gradient of shape {shape} from one of shape {result}", 1e-12)


@exercise("01.2")
@pytest.mark.parametrize("shape, result", [("a1", "ab"), ("1b", "ab"), ("a1c", "abc"), ("11", "ab")])
def test_axes_of_size_one(impl, rng, shape, result):
    """Axes of size 1 that were repeated are summed over, and stay."""
    shape, result = drawn_shapes(rng, shape, result)
    g = rng.standard_normal(result)
    same(impl(g, shape), summed(g, shape), f"the gradient of shape {shape} from one of shape {result}", 1e-12)


@exercise("01.2")
@pytest.mark.parametrize("shape, result", [((3, 1), (2, 3, 4)), ((1, 3), (2, 5, 3)), ((), (3, 4)), ((1,), (2, 3)),
                                           ((1, 4), (1, 4)), ((1, 4), (2, 1, 4)), ((4,), (4, 4)), ((1, 3), (0, 3))])
def test_both_and_the_edges(impl, rng, shape, result):
    """Both kinds together, a single number, axes of size 1 that were not repeated, and no rows at all."""
    g = rng.standard_normal(result)
    same(impl(g, shape), summed(g, shape), f"the gradient of shape {shape} from one of shape {result}", 1e-12)


@exercise("01.2")
def test_within_the_engine(impl, graft, rng):
    """In x * column + number, backward gives each operand the sum over its uses."""
    shapes = drawn_shapes(rng, "ab", "a1", "")
    arrays = [rng.standard_normal(shape) for shape in shapes]
    x, column, number = (Tensor(a, requires_grad=True) for a in arrays)
    g = rng.standard_normal(shapes[0])
    with graft():
        (x * column + number).backward(g)
    same(column.grad, (g * arrays[0]).sum(axis=1)[:, None], "the gradient of the column", 1e-12)
    same(number.grad, np.array(g.sum()), "the gradient of the number", 1e-12)


# ---- 01.3: the linear map --------------------------------------------------------------------------------------


def leaves(rng, lead=None, bias=True, trained=(True, True, True)):
    """x (*lead, D_in), W (D_in, D_out) and b (D_out,) or None, as Tensors of sizes that are drawn;
    ``lead`` too where it is None."""
    rows, d_in, d_out = sizes(rng, 3)
    shapes = [(*((rows,) if lead is None else lead), d_in), (d_in, d_out), (d_out,) if bias else None]
    return [None if s is None else Tensor(rng.standard_normal(s), requires_grad=t) for s, t in zip(shapes, trained)]


def forward(x, w, b):
    """x W + b, number by number, for rows x (N, D_in)."""
    b = np.zeros(w.shape[1]) if b is None else b
    return np.array([[sum(row[k] * w[k, j] for k in range(len(w))) + b[j] for j in range(w.shape[1])] for row in x])


@exercise("01.3")
@pytest.mark.parametrize("bias", [True, False])
def test_the_value(impl, rng, bias):
    """y is x W + b, and x W where there is no bias."""
    x, w, b = leaves(rng, bias=bias)
    same(impl(x, w, b) if bias else impl(x, w), Tensor(forward(x.data, w.data, b.data if bias else None)), "y", 1e-12)


@exercise("01.3")
@pytest.mark.parametrize("lead", [(2, 3), (2, 1, 3), (1, 1)])
def test_any_number_of_axes(impl, rng, lead):
    """All axes of x but the last are rows."""
    x, w, b = leaves(rng, lead)
    d_in, d_out = w.shape
    same(impl(x, w, b), Tensor(forward(x.data.reshape(-1, d_in), w.data, b.data).reshape(*lead, d_out)), "y", 1e-12)


@exercise("01.3")
@pytest.mark.parametrize("lead", [None, (2, 3)])
def test_the_gradients(impl, rng, lead):
    """dx, dW and db are those of the formula, for a random g, summed over all rows."""
    x, w, b = leaves(rng, lead)
    d_in, d_out = w.shape
    g = rng.standard_normal((*x.shape[:-1], d_out))
    impl(x, w, b).backward(g)
    rows, up = x.data.reshape(-1, d_in), g.reshape(-1, d_out)
    dx = np.array([[sum(up[n, j] * w.data[k, j] for j in range(d_out)) for k in range(d_in)] for n in range(len(rows))])
    dw = np.array([[sum(rows[n, k] * up[n, j] for n in range(len(rows))) for j in range(d_out)] for k in range(d_in)])
    same(x.grad, dx.reshape(x.shape), "dx", 1e-12)
    same(w.grad, dw, "dW", 1e-12)
    same(b.grad, np.array([sum(up[n, j] for n in range(len(rows))) for j in range(d_out)]), "db", 1e-12)


@exercise("01.3")
@pytest.mark.parametrize("trained", [t for t in itertools.product([True, False], repeat=3)])
def test_one_operation(impl, rng, trained):
    """The result is one operation; its record leads straight to those of x, W and b that need a gradient, and nowhere else."""
    x, w, b = leaves(rng, trained=trained)
    y = impl(x, w, b)
    node = y.node if isinstance(y, Tensor) else None
    found = [parent for parent, _ in node.parents] if node else []
    wanted = [each.node for each in (x, w, b) if each.requires_grad]
    holds(len(found) == len(wanted) and all(any(f is n for f in found) for n in wanted),
          f"the record leads to {len(found)} inputs; expected the {len(wanted)} of x, W and b that need a gradient, directly")


@exercise("01.3")
def test_a_frozen_weight_lets_x_go(impl, rng):
    """With a frozen W nothing keeps x in memory: only dW would have needed it."""
    rows, d_in, d_out = sizes(rng, 3)
    below, frozen = Tensor(rng.standard_normal((rows, d_in)), requires_grad=True), Tensor(rng.standard_normal((d_in, d_out)))
    x = below * 2.0
    alive = weakref.ref(x.data)
    y = impl(x, frozen, Tensor(rng.standard_normal(d_out)))
    del x
    if alive() is not None:
        gc.collect()
    holds(alive() is None, "x is still in memory although W is frozen: one of the other two products holds on to it")
    g = rng.standard_normal((rows, d_out))
    y.backward(g)
    same(below.grad, 2 * g @ frozen.data.T, "the gradient below x", 1e-12)


@exercise("01.3")
def test_a_gradient_of_a_gradient(impl, rng):
    """Gradients can be differentiated again: a product takes its operands through use()."""
    x, w, b = leaves(rng)
    (first,) = F.grad((impl(x, w, b) ** 2).sum(), [x], create_graph=True)       # 2 (x W + b) W^T
    same(first, Tensor(2 * (x.data @ w.data + b.data) @ w.data.T), "the gradient of x", 1e-10)
    u = rng.standard_normal(first.shape)
    (second,) = F.grad(first, [w], u)
    y = x.data @ w.data + b.data
    same(second, 2 * (x.data.T @ (u @ w.data)) + 2 * u.T @ y, "the gradient of W through the gradient of x", 1e-10)


# ---- 01.4: finite differences ----------------------------------------------------------------------------------


@exercise("01.4")
def test_a_linear_function(impl, rng):
    """For f(x) = x A the slopes are u A^T."""
    rows, d_in, d_out = sizes(rng, 3)
    x, a, u = (rng.standard_normal(shape) for shape in ((rows, d_in), (d_in, d_out), (rows, d_out)))
    same(impl(lambda x: x @ a, x, u, 1e-4), u @ a.T, "the slopes", 1e-8)


@exercise("01.4")
def test_a_cube(impl, rng):
    """For f(x) = x^3, central differences are u (3 x^2 + h^2), with h the step."""
    x, u = rng.standard_normal((2, *sizes(rng, 1)))
    same(impl(lambda x: x**3, x, u, 0.1), u * (3 * x**2 + 0.01), "the slopes with h = 0.1", 1e-9)


@exercise("01.4")
def test_entries_that_meet(impl, rng):
    """Each entry is moved alone: for f(x) = the product of all entries, the slope of one is u times the product of the others."""
    rows, columns = sizes(rng, 2, high=4)
    x, u = rng.uniform(0.5, 2, (rows, columns)), float(rng.standard_normal())
    expected = np.array([[u * np.prod(np.delete(x.ravel(), columns * i + j)) for j in range(columns)] for i in range(rows)])
    same(impl(lambda x: np.array(x.prod()), x, np.array(u), 1e-4), expected, "the slopes", 1e-8)


@exercise("01.4")
def test_x_is_left_as_it_was(impl, rng):
    """Afterwards x has the same bits as before."""
    x = rng.standard_normal(sizes(rng, 2))
    kept = x.copy()
    impl(np.sin, x, rng.standard_normal(x.shape), 1e-3)
    same(x, kept, "x after the call", 0)


@exercise("01.4")
def test_a_single_number(impl, rng):
    """x may be a single number, an array without axes."""
    x, u = np.array(0.7), rng.standard_normal(3)
    expected = np.array(u[0] + 1.4 * u[1] + np.cos(0.7) * u[2])
    same(impl(lambda x: np.array([x, x**2, np.sin(x)]), x, u, 1e-5), expected, "the slope", 1e-8)


# ---- 01.5: the order -------------------------------------------------------------------------------------------


def graph(edges):
    """[Node]: edges[j] lists the numbers of the nodes that node j was computed from."""
    nodes = []
    for below in edges:
        nodes.append(Node([(nodes[i], lambda g: g) for i in below]))
    return nodes


def judge(impl, nodes, reached, what):
    """Whether the order holds just the reached nodes, each once and before its parents."""
    order, parents_of = impl(nodes[-1], False)
    place = {id(node): i for i, node in enumerate(order)}
    same(len(order), len(reached), f"how many nodes the order of {what} has", 0)
    holds({id(nodes[i]) for i in reached} == set(place), f"the order of {what} does not hold the nodes below the root, each once")
    late = sum(place[id(parent)] < place[id(node)] for node in order for parent, _ in node.parents)
    same(late, 0, f"how often a node of {what} stands behind one of its parents", 0)
    right = all(list(parents_of.get(node, ())) == node.parents for node in order)
    holds(right, f"parents_of of {what} does not give each node its parents")


@exercise("01.5")
def test_a_short_chain(impl):
    """On a chain the root comes first and the leaf last."""
    judge(impl, graph([[], [0], [1], [2]]), range(4), "a chain")


@exercise("01.5")
def test_ways_of_different_length(impl):
    """A node waits for the longest way that leads to it."""
    judge(impl, graph([[], [0], [1], [0, 2]]), range(4), "a short and a long way, the short one first")
    judge(impl, graph([[], [0], [1], [2, 0]]), range(4), "a short and a long way, the long one first")


@exercise("01.5")
def test_ways_that_part_and_meet(impl):
    """Where ways part and meet again, and again, each node stands there once."""
    edges = [[]]
    for _ in range(5):
        edges += [[len(edges) - 1], [len(edges) - 1]]
        edges += [[len(edges) - 2, len(edges) - 1]]
    judge(impl, graph(edges), range(len(edges)), "five diamonds")


@exercise("01.5")
def test_a_graph_drawn_at_random(impl, rng):
    """On any graph the order holds what lies below the root, and nothing else."""
    count = int(rng.integers(10, 16))
    edges = [[]] + [[int(i) for i in rng.choice(j, size=min(j, 2), replace=False)] for j in range(1, count)]
    reached, todo = set(), [count - 1]
    while todo:
        j = todo.pop()
        reached.add(j)
        todo += edges[j]
    judge(impl, graph(edges), sorted(reached), "a random graph")


@exercise("01.5")
def test_deeper_than_calls_go(impl):
    """A chain of 3,000 nodes is no deeper than any other."""
    nodes = graph([[]] + [[i] for i in range(2999)])
    try:
        order, _ = impl(nodes[-1], False)
    except RecursionError:
        order = None
    holds(order is not None, "a chain of 3,000 nodes is too deep for a function that calls itself")
    holds([id(n) for n in order] == [id(n) for n in reversed(nodes)], "the order of a chain of 3,000 nodes is wrong")


@exercise("01.5")
def test_a_gradient_by_the_order(impl, graft, rng):
    """With this order, backward gives the right gradient where one value is used at several depths."""
    array, g = rng.standard_normal(3), rng.standard_normal(3)
    x = Tensor(array, requires_grad=True)
    square = x * x
    twice = False
    with graft():
        try:
            (x * (square * square + square) + square).backward(g)           # x^5 + x^3 + x^2
        except KeyError:  # a node whose products were taken already
            twice = True
    holds(not twice, "backward came to a node for the second time")
    same(x.grad, g * (5 * array**4 + 3 * array**2 + 2 * array), "dL/dx", 1e-10)


@exercise("01.5")
def test_create_graph(impl, rng):
    """Parents are taken from _parents, which sees create_graph, and once for each node."""
    leaf = Tensor(rng.standard_normal(2), requires_grad=True)
    calls = []

    def composition():
        calls.append(1)
        return leaf * 2.0

    fused = Node([(leaf.node, lambda g: g)], composition)
    root = Node([(fused, lambda g: g), (fused, lambda g: g)])
    order, parents_of = impl(root, True)
    same(len(order), 4, "how many nodes there are with create_graph, where one stands for two", 0)
    same(len(calls), 1, "how often _parents was asked for that one", 0)
