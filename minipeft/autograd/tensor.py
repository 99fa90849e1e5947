"""A Tensor is an array that remembers how it was computed, and backward walks that memory from a loss to the parameters.

An operation y = f(a, b) records, for each input that needs a gradient, one vector-Jacobian product

    g  ->  g (dy/da),      g = dL/dy

Backward visits the recorded nodes from the loss downwards, each after everything that used it, adds up what arrives
and hands it on (reverse-mode differentiation; Baydin et al., JMLR 2018, section 3.2). An input that needs no gradient
leaves no record: a frozen weight never has its gradient computed, and the activation that only this gradient would
have needed is freed at once. The saving of parameter-efficient fine-tuning is these two sentences.
"""

import contextlib
import threading
import weakref

import numpy as np

_state = threading.local()


def _recording():
    return getattr(_state, "recording", True)


def building_graph():
    """Whether a backward pass is running that must itself be differentiable."""
    return getattr(_state, "building", False)


@contextlib.contextmanager
def no_grad():
    """Inside this block operations leave no record, so that nothing is kept for a backward pass."""
    previous, _state.recording = _recording(), False
    try:
        yield
    finally:
        _state.recording = previous


@contextlib.contextmanager
def _building(flag):
    """Mark a backward pass; one that builds a graph records, also when it is called under `no_grad`."""
    previous = building_graph(), _recording()
    _state.building, _state.recording = flag, flag or previous[1]
    try:
        yield
    finally:
        _state.building, _state.recording = previous


class Node:
    """What backward needs of one operation, and nothing more: the nodes below it with their products, never the values."""

    __slots__ = ("parents", "composition", "leaf", "operation", "used", "__weakref__")

    def __init__(self, parents=(), composition=None, leaf=None, operation="leaf"):
        self.parents = parents          # [(Node, vector-Jacobian product)]
        self.composition = composition  # a fused operation's value from elementary ones, for gradients of gradients
        self.leaf = leaf                # weak reference to the Tensor whose .grad is to be filled, for leaves
        self.operation = operation      # name, for messages
        self.used = False               # whether backward has been here and freed the products


class Tensor:
    """An n-dimensional array with an optional record of its computation.

    Args:
        data: array, or anything ``numpy.asarray`` takes.
        requires_grad: whether ``backward`` should leave the gradient in ``.grad``.
        parents: ``[(input Tensor, product)]`` for the result of an operation; ``product(g)`` maps the gradient of the
            result to the gradient of that input.
        composition: for a fused operation, a function without arguments that computes the same value from elementary
            operations; ``backward(create_graph=True)`` differentiates it instead.
        operation: name of the operation, for messages.

    ``.grad`` is an array of the shape of ``.data`` (a Tensor after ``backward(create_graph=True)``), or None.
    """

    __slots__ = ("data", "grad", "node", "__weakref__")
    __array_priority__ = 1000  # array + Tensor is a Tensor

    def __init__(self, data, requires_grad=False, parents=(), composition=None, operation="tensor"):
        self.data = data if isinstance(data, np.ndarray) else np.asarray(data)
        self.grad = None
        self.node = None
        if parents and _recording():
            kept = [(parent.node, product) for parent, product in parents if parent is not None and parent.node is not None]
            if kept:
                self.node = Node(kept, composition, operation=operation)
        if requires_grad:
            self.requires_grad = True

    # ---- what it is ----

    @property
    def requires_grad(self):
        """Whether a gradient reaches this Tensor."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, flag):
        if flag and self.node is None:
            if self.data.dtype.kind != "f":
                raise TypeError(f"requires_grad: only floating-point tensors have gradients, this one is {self.data.dtype}")
            self.node = Node(leaf=weakref.ref(self))
        elif not flag:
            if self.node is not None and self.node.leaf is None:
                raise ValueError("requires_grad: this tensor is the result of an operation; use .detach() for its value alone")
            self.node, self.grad = None, None

    @property
    def shape(self):
        return self.data.shape

    @property
    def ndim(self):
        return self.data.ndim

    @property
    def size(self):
        return self.data.size

    @property
    def dtype(self):
        return self.data.dtype

    def __len__(self):
        return len(self.data)

    def __repr__(self):
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, threshold=8, precision=4)}, {self.data.dtype}{grad})"

    def numpy(self):
        """The array itself, not a copy."""
        return self.data

    def item(self):
        """The value of a tensor with one element, as a Python number."""
        return self.data.item()

    def detach(self):
        """The same values (shared, not copied) without a record."""
        return Tensor(self.data)

    # ---- gradients ----

    def backward(self, gradient=None, create_graph=False):
        """Add dL/dp to ``.grad`` of every leaf p below this tensor L.

        Args:
            gradient: dL/d(self), an array of this shape; may be left out for a tensor with one element, where it is 1.
            create_graph: record the backward pass too, so that the gradients can be differentiated. The graph is
                then kept; otherwise it is freed as it is used.

        Raises:
            ValueError: the tensor has several elements and no gradient was given, the gradient has another shape,
                nothing below needs a gradient, or the graph was freed by an earlier call.
        """
        given = {id(gradient)}
        for node, grad in _run_backward(self, gradient, create_graph).items():
            leaf = node.leaf() if node.leaf is not None else None
            if leaf is not None:
                if not create_graph:
                    grad = _owned(grad, given)
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad


def grad(output, inputs, gradient=None, create_graph=False):
    """Gradients of ``output`` with respect to ``inputs``, returned instead of stored; zeros where there is no path.

    Args:
        output: Tensor; inputs: Tensors, leaves or results; gradient, create_graph: as in `Tensor.backward`.

    Returns:
        A list of arrays (of Tensors with ``create_graph``), one for each input, each of its shape.
    """
    found = _run_backward(output, gradient, create_graph, wanted=[t.node for t in inputs])
    zeros = (lambda t: Tensor(np.zeros_like(t.data))) if create_graph else (lambda t: np.zeros_like(t.data))
    return [found[t.node] if t.node in found else zeros(t) for t in inputs]


def _owned(array, given):
    """``array`` as one that nobody else holds, so that its owner may write into it; ``given`` collects what was handed out."""
    array = np.asarray(array)
    if array.base is not None or not array.flags.writeable or id(array) in given:
        array = array.copy()
    given.add(id(array))
    return array


def _seed(output, gradient):
    if output.node is None:
        raise ValueError("backward: nothing below this tensor requires a gradient "
                         "(are all parameters frozen, or was it made under no_grad?)")
    if gradient is None:
        if output.size != 1:
            raise ValueError(f"backward: a tensor of shape {output.shape} needs an explicit gradient of that shape")
        return np.ones_like(output.data)
    array = gradient.data if isinstance(gradient, Tensor) else np.asarray(gradient, dtype=output.dtype)
    if array.shape != output.shape:
        raise ValueError(f"backward: the gradient has shape {array.shape}, expected {output.shape}")
    return gradient if isinstance(gradient, Tensor) else array


def _parents(node, create_graph):
    """The node's parents; a fused operation whose gradient must be differentiable is replaced by its composition."""
    if node.used:
        raise ValueError(
            f"backward: the graph of this {node.operation!r} was freed by an earlier backward; compute the value again")
    if create_graph and node.composition is not None:
        composed = node.composition()
        return [(composed.node, lambda g: g)]
    return node.parents


def _order(root, create_graph):
    """Nodes below ``root``, each before everything it was computed from, with their parents; iterative, for deep graphs."""
    order, parents_of, stack = [], {}, [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in parents_of:
            parents_of[node] = _parents(node, create_graph)
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in parents_of[node] if parent not in parents_of)
    order.reverse()
    return order, parents_of


def _run_backward(output, gradient, create_graph, wanted=None):
    """Walk the graph below ``output``; returns {node: gradient} for the wanted nodes (default: the leaves)."""
    seed = _seed(output, gradient)
    if create_graph and not isinstance(seed, Tensor):
        seed = Tensor(seed)
    elif not create_graph and isinstance(seed, Tensor):
        seed = seed.data
    with _building(create_graph):
        order, parents_of = _order(output.node, create_graph)
    wanted = {node for node in order if node.leaf is not None} if wanted is None else set(wanted)
    arrived, own, found = {output.node: seed}, set(), {}  # own: nodes whose sum is ours to add to in place
    with _building(create_graph):
        for node in order:
            g = arrived.pop(node, None)
            own.discard(node)
            if g is None:
                continue
            if node in wanted:
                found[node] = g
            for parent, product in parents_of.pop(node):
                contribution = product(g)
                if parent not in arrived:
                    arrived[parent] = contribution
                elif parent in own:
                    arrived[parent] += contribution
                else:
                    arrived[parent] = arrived[parent] + contribution
                    if not create_graph:
                        own.add(parent)
            if not create_graph and node.leaf is None:
                node.parents, node.composition, node.used = (), None, True
    return found
