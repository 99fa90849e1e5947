# %% [markdown]
# # Lesson 1. Autograd: from one number to a tensor
#
# **Why.** Training makes one number small, the *loss*, which says how wrong a model is. To take a step one must know for each
# number of the model: if it grew a little, would the loss grow or shrink, and how fast? That speed is the *derivative* of the
# loss with respect to this number, and all derivatives together are the *gradient*.
#
# One could try it out: change one number, run the model again, look at the loss. The small encoder of lesson 0 has 393 thousand
# numbers, so that one step would take 393 thousand runs. *Automatic differentiation* (short: autograd) gets all of them for the
# price of about two more runs. This lesson builds it. On the way one sees where parameter-efficient fine-tuning saves its time,
# and where it does not.
#
# You need the derivative of a product and of a function of a function, and NumPy's arrays. 75 minutes.

# %% [markdown]
# ## The idea in a picture
#
# Here is L = a b + a for a = 2 and b = 3. On the left the *forward pass*: values, from the top down. On the right the *backward
# pass*: the derivative of L with respect to each value, from the bottom up.
#
#      a = 2 ─────────┬─────┐            dL/da = 1·3 + 1 = 4     two ways lead from a to L, and both count
#                     ▼     │                    ▲     ▲
#      b = 3 ───► c = a·b   │            dL/dc = 1     │         dL/db = 1·2 = 2
#                     │     │                    ▲     │
#                     ▼     ▼                    │     │
#                    L = c + a           dL/dL = 1 ────┘         where it starts
#
# Every arrow knows one small derivative: dc/da = b = 3, dc/db = a = 2, dL/dc = 1. Backward multiplies along a way and adds where
# ways meet.

# %% [markdown]
# ## The equation, derived
#
# Number the values in the order in which they are computed, v_0, v_1, ... up to the last one, which is L. A small change δ of v_i
# changes L only through those values v_j that were computed from v_i directly. Each of them changes by δ ∂v_j/∂v_i, and each
# change of v_j goes on to L with its own speed. Added up, this is the *chain rule*:
#
# $$\frac{dL}{dv_i} = \sum_{j \text{ uses } i} \frac{dL}{dv_j}\,\frac{\partial v_j}{\partial v_i}, \qquad \frac{dL}{dL} = 1 .$$
#
# Two things can be read off. The derivative of v_j must be complete before it is handed on to v_i, so one goes through the values
# from the last to the first. And what arrives at v_i is *added*, because every use of v_i is one term of the sum.
#
# Why backward and not forward? From the top one would follow one input to the bottom, and would have to start again for the next:
# a pass for each input. There is one L and there are many inputs, so one pass from the bottom does it.

# %%
import time
import tracemalloc

import numpy as np

from minipeft import autograd as F
from minipeft.autograd import Tensor, gradcheck
from minipeft.learn import fast, predict, show

predict("With a = 2 and b = 3: L = a b + a is 8. By how much does L grow, roughly, when a grows by 0.01?",
        "By dL/da · 0.01 = 0.04.")

# %% [markdown]
# ## Exercises
#
# The first one is the whole of backward, for single numbers. What was computed is written on a *tape*: for each value the list of
# what it was computed from, each with its small derivative. `[(0, 3.0), (1, 2.0)]` says: computed from v_0, with the derivative
# 3, and from v_1, with the derivative 2.

# %%
#@exercise 01.1 lesson:chain
#@ Return the list of dL/dv_i for all values on the tape, L being the last. tape[j] is a list of (i, derivative of v_j with
#@ respect to v_i), one pair for each use, always with i < j; a value that was given, and not computed, has an empty list. One
#@ value may stand in a list twice, as in v * v.
### BEGIN SOLUTION
def chain(tape):
    """dL/dv_i = sum over the uses of v_i by a v_j of dL/dv_j dv_j/dv_i;   dL/dL = 1"""
    out = [0.0] * len(tape)
    out[-1] = 1.0
    for j in reversed(range(len(tape))):
        for i, slope in tape[j]:
            out[i] += out[j] * slope
    return out
### END SOLUTION


a, b = 2.0, 3.0
tape = [[], [], [(0, b), (1, a)], [(2, 1.0), (0, 1.0)]]  # v_0 = a, v_1 = b, v_2 = a b, v_3 = v_2 + a
print("dL/d(a, b, c, L) =", chain(tape))

# %% [markdown]
# ## From numbers to arrays: vector–Jacobian products
#
# A model has too many numbers for a tape of single ones. So a value on the tape becomes a whole array: a *tensor* is an array
# together with the record of how it was computed. An operation y = f(x) now has a table of derivatives, the *Jacobian* J, with an
# entry ∂y_i/∂x_j for each pair. With g = dL/dy, which arrives from the side of L and has the shape of y, the chain rule reads
#
# $$\frac{dL}{dx_j} = \sum_i g_i\, \frac{\partial y_i}{\partial x_j}, \qquad\text{in short}\quad dx = g\,J .$$
#
# This is a *vector–Jacobian product*, and it is all that an operation must be able to do. J itself is never made: for a map from
# 512 rows of 384 numbers to as many, it would have 196,608 times 196,608 entries. For each operation one works out by hand what g
# J comes to, and writes that down:
#
# | operation | its products |
# |---|---|
# | y = a + b | da = g, db = g |
# | y = a ⊙ b, entry by entry | da = g ⊙ b, db = g ⊙ a |
# | y = tanh a, entry by entry | da = g ⊙ (1 − y²) |
# | y = sum of a | da = g, repeated for each entry |
#
# In the package an operation gives its result with its products beside it, `Tensor(y, parents=[(a, product), (b, product)])`,
# where a product is a function that takes g.

# %%
def square(x):
    """y = x^2, entry by entry;   dx = g 2 x"""
    return Tensor(x.data**2, parents=[(x, lambda g: g * 2 * x.data)])


x = Tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)  # requires_grad: somebody wants to know dL/dx
square(x).backward(np.array([1.0, 1.0, 10.0]))              # this array is g
print("x.grad =", x.grad)

# %% [markdown]
# ## Broadcasting, and back
#
# In x + b with x (N, D) and b (D,), NumPy uses b for every row, as if it stood there N times: *broadcasting*. N uses of one
# number are N terms of the sum in the chain rule. So the gradient of b is the sum of g over the rows. In general:
#
# - axes of g that the operand does not have stand in front of its own: sum over them;
# - axes where the operand has size 1 and g has another size (0 rows count too): sum over them, and keep the axis.
#
# What is repeated on the way there is summed on the way back.

# %%
#@exercise 01.2 minipeft.autograd.ops:unbroadcast
#@ g is the gradient of a result, an array; `shape` is the shape of an operand that was broadcast to g's shape. Return the
#@ gradient of the operand: g summed over every axis along which the operand was repeated, in the shape `shape`.
x, column, number = (Tensor(np.ones(shape), requires_grad=True) for shape in ((4, 3), (4, 1), ()))
(x * column + number).backward(np.arange(12.0).reshape(4, 3))
print("gradients:", x.grad.shape, column.grad.ravel(), number.grad)

# %% [markdown]
# ## The product of two matrices
#
# Nearly all of a Transformer's time goes into products C = A B with A (N, K) and B (K, M). Entry by entry, C_ij = Σ_k A_ik B_kj.
# The number A_ik is used in row i of C only, once for each j, and there its derivative is B_kj. The number B_kj is used in column
# j, once for each i, with the derivative A_ik. So, with g = dL/dC,
#
# $$dA_{ik} = \sum_j g_{ij} B_{kj} = (g\,B^\top)_{ik}, \qquad dB_{kj} = \sum_i A_{ik}\, g_{ij} = (A^\top g)_{kj} .$$
#
# The shapes leave no choice: g is (N, M), and dA must be (N, K) like A.
#
# A *linear map* y = x W + b is this product with a bias b added to each row, for x of any shape (..., D_in). All axes before
# the last are only "many rows", so one flattens them first, and W's gradient sums over all of them. A *batch* is a number of
# examples that go through the model together, and a *token* is a piece of text, often a word. In a batch of 32 texts of 64
# tokens x is (32, 64, D_in), and there are 2,048 rows.

# %%
#@exercise 01.3 minipeft.autograd.ops:linear
#@ Return x W + b as one operation: Tensor(y, parents=[(x, product), (weight, product), (bias, product)]), each product a function
#@ of g. Tensor leaves out an input that needs no gradient, and one that is None. A product holds on to what it computes with and
#@ to nothing else (a frozen weight must not keep x in memory). x.data is x's array. Inside a product take use(x) in its place:
#@ like g it is an array or, for gradients of gradients, a Tensor; `swap_last` and `sum_rows` (a sum over all rows) take both.
rng = np.random.default_rng(0)
x = Tensor(rng.standard_normal((2, 5, 4)), requires_grad=True)                      # (B, T, D_in)
W, bias = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((4, 3), (3,)))
y = F.linear(x, W, bias)
y.backward(rng.standard_normal(y.shape))
print("y", y.shape, " dx", x.grad.shape, " dW", W.grad.shape, " db", bias.grad.shape)

# %% [markdown]
# ## Why a frozen weight costs nothing
#
# A weight is *frozen* when training does not touch it; then nobody asks for its gradient. A tensor keeps only those parents that
# need one. So the product xᵀ g is not skipped somewhere later: it was never written down. And x, which only this product would
# have read, can be forgotten at once.
#
# Count for N rows and a map from D_in to D_out. The forward product x W takes N D_in D_out multiplications, each with an
# addition. dx = g Wᵀ takes as many, and so does dW = xᵀ g. In units of the forward pass:
#
# | | forward | dx | dW | a step |
# |---|---|---|---|---|
# | the weight is trained, and so is something between it and the input | 1 | 1 | 1 | 3 |
# | the weight is trained, but nothing between it and the input | 1 | – | 1 | 2 |
# | the weight is frozen, but something between it and the input is trained | 1 | 1 | – | 2 |
# | neither the weight nor anything between it and the input is trained | 1 | – | – | 1 |
#
# The third line is the price that remains: dx must pass through a frozen map to reach what is trained on the other side of it.

# %%
frozen = Tensor(W.data)  # no requires_grad
y = F.linear(x, frozen, bias)
print("the record leads to", len(y.node.parents), "inputs: x and the bias")
predict("Of 12 equal maps all is frozen but one number of the first map's bias. What does a step cost, in forward passes?",
        "Nearly 2: dx must pass through 11 maps. One number is trained, and it costs as much as all the biases together.")

# %% [markdown]
# ## Is a gradient right? Ask the function
#
# A wrong product gives no error: training only goes worse. So every operation is checked against the definition of the
# derivative. Take one entry of x, move it by ±h, and see how much the result moves. The result is an array, and so one looks at a
# single number made of it, ⟨u, f(x)⟩ = Σ u_i f(x)_i, for random u; its gradient is what backward gives when it starts from u. By
# Taylor's formula
#
# $$\frac{f(x + h) - f(x)}{h} = f'(x) + \frac{h}{2} f''(x) + \dots, \qquad
#   \frac{f(x + h) - f(x - h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + \dots$$
#
# In the second form, the *central difference*, the terms with h cancel. Its error shrinks with h², not with h.

# %%
#@exercise 01.4 lesson:finite_differences
#@ Return an array of the shape of x: the derivative of the number <upstream, function(x)> with respect to each entry of x, by
#@ central differences. function takes and gives an array; upstream has the shape of what it gives; x is float64. x must be the
#@ same afterwards.
### BEGIN SOLUTION
def finite_differences(function, x, upstream, step):
    """(<u, f(x + h e_i)> - <u, f(x - h e_i)>) / 2h for every entry i of x, with u the upstream and h the step"""
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = (upstream * function(x)).sum()
        x[index] = kept - step
        below = (upstream * function(x)).sum()
        x[index] = kept
        out[index] = (above - below) / (2 * step)
    return out
### END SOLUTION


x, u = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
leaf = Tensor(x.copy(), requires_grad=True)
F.tanh(leaf).backward(u)
print("largest difference to backward:", np.abs(finite_differences(np.tanh, x, u, 1e-6) - leaf.grad).max())

# %% [markdown]
# How small should h be? Too large, and Taylor's next term is the error. Too small, and f(x + h) and f(x − h) agree in almost all
# digits: what is left of their difference is rounding. float64 has 16 digits, float32 has 7.

# %%
import matplotlib.pyplot as plt


def one_sided(x, h):
    """The slope of tanh by one step forward."""
    return (np.tanh(x + h) - np.tanh(x)) / h


def central(x, h):
    """The slope of tanh by central differences."""
    return (np.tanh(x + h) - np.tanh(x - h)) / (2 * h)


steps, points = 10.0 ** np.arange(-12, 0.1, 0.5), np.linspace(-1, 1, 21)
exact, lines = 1 - np.tanh(points) ** 2, {}
for name, slope, kind in (("one-sided, float64", one_sided, np.float64), ("central, float64", central, np.float64),
                          ("central, float32", central, np.float32)):
    lines[name] = [np.abs(slope(points.astype(kind), kind(h)) - exact).max() for h in steps]

figure, axes = plt.subplots(figsize=(5, 3))
for name, errors in lines.items():
    axes.loglog(steps, errors, label=name)
axes.set_xlabel("step h")
axes.set_ylabel("largest error of the slope")
axes.set_ylim(bottom=1e-14)
axes.legend(loc="lower right", fontsize="small")
show(figure, "step", "Error of a finite difference against the step h: from large steps to small each curve falls, then rises. "
     "Smallest error: " + "; ".join(f"{name} {min(errors):.0e} at h = {steps[int(np.argmin(errors))]:.0e}"
                                    for name, errors in lines.items()) + ".")

# %% [markdown]
# So: central differences, float64, h near 1e-6. `gradcheck` of the package does this for an operation with several inputs, and
# refuses float32. u is random, and must be: with u = 1 everywhere many wrong products pass, as "Where it breaks" shows.

# %%
def wrong_tanh(a):
    """tanh with a mistake in its product: 1 - y where 1 - y^2 belongs."""
    y = np.tanh(a.data)
    return Tensor(y, parents=[(a, lambda g: g * (1 - y))])


gradcheck(F.linear, *(rng.standard_normal(shape) for shape in ((2, 5, 4), (4, 3), (3,))), rng=rng)
print("F.linear: all three gradients hold")
try:
    gradcheck(wrong_tanh, rng.standard_normal((2, 3)), rng=rng)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## The walk
#
# On the tape of single numbers "from the last to the first" was easy: the list was in order. A tensor's record is a graph: each
# *node* knows the nodes it was computed from, its parents, and no list exists. Backward needs one, in which every node comes
# before all of its parents; then a node has received everything when its turn comes. Such an order is called *topological*.
#
# Going from L level by level does not give it. In the picture at the top both a and c are one step away from L. But a is also a
# parent of c: if its turn came first, it would hand on 1, and the 3 that c sends afterwards would be lost.
#
# The rule that works: put a node on the list when *all of its parents are on it*, and in the end turn the list round. Written as
# a function that calls itself it is a few lines, and a chain of a thousand operations breaks it, because Python allows about a
# thousand nested calls. So the nodes still to be done are kept on a *stack*, a list from whose end one takes. Each node is met
# there twice: the first time it is put back, and its parents on top of it; the second time the parents are done.

# %%
#@exercise 01.5 minipeft.autograd.tensor:_order
#@ Return (order, parents_of): a list of root and all nodes that it was computed from, each once and before all of its parents,
#@ and a dict from each of these nodes to the list that `_parents(node, create_graph)` gives for it: its parents, as pairs
#@ (parent, product). Call it once for each node. The graph may be far deeper than functions can call themselves.
x = Tensor(np.array(0.5), requires_grad=True)
y = x
for _ in range(5000):
    y = y * 1.0001
y.backward()
print(f"through 5,000 products: dL/dx = {x.grad:.6f}, and 1.0001^5000 = {1.0001**5000:.6f}")

# %% [markdown]
# ## What the numbers show: what is trained, and what it costs
#
# Eight maps of width 512 with a bend between them (ReLU: negative numbers become 0), and a batch of 512 rows. What is trained
# differs; the forward pass is the same. Below are the products of matrices that the table above predicts, the measured time, and
# the memory that is held between forward and backward.

# %%
depth, width, rows, repeats = (3, 64, 64, 2) if fast() else (8, 512, 512, 7)
maps = [(Tensor(rng.standard_normal((width, width), np.float32) * (2 / width) ** 0.5), Tensor(np.zeros(width, np.float32)))
        for _ in range(depth)]
batch = Tensor(rng.standard_normal((rows, width), np.float32))


def loss_of(maps, x):
    """The mean square of what comes out."""
    for W, b in maps:
        x = F.linear(x, W, b)
        x = F.where(x.data > 0, x, 0.0)
    return F.mean(x * x)


cases = {  # name: (what is trained, products of matrices in backward)
    "everything": ([each for pair in maps for each in pair], 2 * depth - 1),
    "all biases": ([b for _, b in maps], depth - 1),
    "the first bias": ([maps[0][1]], depth - 1),
    "the last map": ([maps[-1][0]], 1),
}
took = {}
for name, (trained, products) in cases.items():
    for pair in maps:
        for each in pair:
            each.requires_grad = any(each is other for other in trained)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        loss = loss_of(maps, batch)
        middle = time.perf_counter()
        loss.backward()
        times.append((middle - started, time.perf_counter() - middle))
        for each in trained:
            each.grad = None
    took[name] = [1000 * min(t) for t in zip(*times)]
    tracemalloc.start()
    loss = loss_of(maps, batch)
    held = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    print(f"{name:15s}{sum(each.size for each in trained):10,} numbers   products {depth} + {products:2d}   "
          f"forward {took[name][0]:6.1f} ms, backward {took[name][1]:6.1f} ms   held {held:5.1f} MB")

# %%
figure, axes = plt.subplots(figsize=(6, 2.5))
names = list(took)[::-1]
axes.barh(names, [took[n][0] for n in names], label="forward")
axes.barh(names, [took[n][1] for n in names], left=[took[n][0] for n in names], label="backward")
axes.set_xlabel("milliseconds")
axes.legend()
whole = sum(took["everything"])
show(figure, "cost", "Time of forward and backward, as a share of a step that trains everything: " + ", ".join(
    f"{name} {sum(took[name]) / whole:.2f}" for name in took) + ".")

# %% [markdown]
# Two lessons in one. To freeze the weights saves the products dW, about a third of a step, and most of the memory that is held.
# But it is not the *number* of trained numbers that decides: the bias of the first map alone costs as much time as all biases,
# because dx has to travel there. What lies near the output is cheaper.
#
# On a real model it is the same. The README has the time of one step of MiniLM (22.7 million numbers) on SST-2, sentences of film
# reviews, good or bad: training everything takes 451 ms and a peak of 799 MB. With the biases alone it is 296 ms (0.66 of that)
# and 518 MB; with LoRA, two thin matrices beside some of the frozen ones (lesson 8), 326 ms (0.72) and 526 MB; with the head
# alone, at the very end, 139 ms (0.31) and 326 MB. The count above said 2/3, a bit more than 2/3, and 1/3.
#
# ## And does it learn?
#
# The smallest fine-tuning there is: short reviews of the toy world, good or bad. The model is trained on one part of them,
# *train*, and judged on another, *dev*. A review becomes the counts of its words, a map E takes them to 16 numbers, and after a
# tanh a map w takes these to one number, which should be +1 or −1. A step of *gradient descent* is p ← p − η dL/dp with a small
# η, the *learning rate*.

# %%
from minipeft.data import toy

data = toy.dataset("sentiment", "easy", train=100 if fast() else 500)
words = sorted({word for each in data.splits["train"] for word in each.text.split()})
place = {word: i for i, word in enumerate(words)}


def counted(examples):
    """(counts of words (N, V), targets (N, 1) of +1 or -1)."""
    out = np.zeros((len(examples), len(words)))
    for row, each in zip(out, examples):
        for word in each.text.split():
            if word in place:
                row[place[word]] += 1
    return Tensor(out), np.array([[2.0 * each.label - 1] for each in examples])


def answer(x, E, w):
    """tanh(x E) w, one number for each review."""
    return F.linear(F.tanh(F.linear(x, E)), w)


def train(freeze, steps):
    """(E before, E after, losses, share of dev that is told right)."""
    draw = np.random.default_rng(1)
    E = Tensor(0.1 * draw.standard_normal((len(words), 16)), requires_grad=not freeze)
    w = Tensor(draw.standard_normal((16, 1)) / 4, requires_grad=True)
    x, target = counted(data.splits["train"])
    before, losses = E.data.copy(), []
    for _ in range(steps):
        loss = F.mean((answer(x, E, w) - target) ** 2)
        loss.backward()
        for p in (E, w):
            if p.requires_grad:
                p.data, p.grad = p.data - 0.1 * p.grad, None
        losses.append(loss.item())
    x, target = counted(data.splits["dev"])
    y = answer(x, E, w).data
    return before, E.data, losses, ((y > 0) == (target > 0)).mean()


for freeze in (False, True):
    before, after, losses, right = train(freeze, 20 if fast() else 300)
    print(f"E {'frozen ' if freeze else 'trained'}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, right on dev {right:.3f}, "
          f"E unchanged: {np.array_equal(before, after)}")

# %% [markdown]
# The frozen E costs no product in backward and stays the same bit for bit, and the 16 numbers of w still learn something. But E
# was drawn at random and says little about words, and so the loss stays high. In the lessons to come the frozen part is
# *pre-trained*: it knows a language already, and that is what makes freezing worth while.
#
# ## Where it breaks
#
# - **A kink.** ReLU has no derivative at 0. Finite differences give the mean of both sides, 1/2, and the package gives 0:
#   gradcheck fails although nothing is wrong. Check away from kinks.
# - **u = 1.** Softmax makes numbers that add up to 1 in each row, so with u = 1 the number ⟨u, f(x)⟩ never moves: every gradient
#   is 0, and a product that returns zeros passes. Hence random u, always.
# - **Changing an array in between.** A product reads its operands when backward comes by. Overwrite `x.data` between forward and
#   backward, and the gradient is silently that of another function.
# - **Memory.** What products need is held until backward has passed: with depth and batch this grows, and is often the limit.
#   Recomputing part of it on the way back trades time for memory (Chen et al., 2016).
# - **A second backward** over the same record is an error: it was freed as it was used.

# %%
def softmax_with_zeros(a):
    """Softmax with a product that is plainly wrong: it returns zeros."""
    e = np.exp(a.data)
    return Tensor(e / e.sum(axis=-1, keepdims=True), parents=[(a, lambda g: 0 * g)])


ones, z = np.ones((2, 3)), rng.standard_normal((2, 3))
slopes = finite_differences(lambda x: softmax_with_zeros(Tensor(x)).data, z, ones, 1e-6)
print(f"u = 1: the slopes are {np.abs(slopes).max():.0e} at most, and zeros look right")
slopes = finite_differences(lambda x: softmax_with_zeros(Tensor(x)).data, z, rng.standard_normal((2, 3)), 1e-6)
print(f"random u: {np.abs(slopes).max():.2f}")

# %% [markdown]
# ## Read the package's own file
#
# `minipeft/autograd/tensor.py`, then `ops.py`. In `Tensor.__init__`, which line makes a frozen weight cost nothing? In
# `_run_backward`, a gradient that arrives as the second one is added with `+`, a third one with `+=`: what would go wrong if the
# second were added in place? And why does `multiply` take its operands through `use(b)` and not `b.data`?
# (`backward(create_graph=True)`, for gradients of gradients, which lesson 14 needs.)
#
# ## Sources
#
# - Baydin, Pearlmutter, Radul, Siskind, *Automatic Differentiation in Machine Learning: a Survey*, JMLR 18(153), 2018,
#   arXiv:1502.05767: sections 2.1 (finite differences, their two errors) and 3.2 (reverse mode).
# - Rumelhart, Hinton, Williams, *Learning Representations by Back-Propagating Errors*, Nature 323, 1986.
# - Griewank, Walther, *Evaluating Derivatives*, 2nd edition, SIAM, 2008: why a gradient costs a small multiple of its function.
# - Kaplan et al., *Scaling Laws for Neural Language Models*, 2020, arXiv:2001.08361, section 2.1: backward counted as twice
#   forward.
# - Chen, Xu, Zhang, Guestrin, *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv:1604.06174.
