# %% [markdown]
# # Lesson 2. Kernels: loop, NumPy, Numba
#
# **Why.** A training step is matrix products and, between them, small things done to every number: a bend, a norm, a softmax, the
# loss, the optimizer's update. The products are left to a library that does them as fast as the machine can. The small things are
# few operations, and yet, written as formulas in NumPy, they can take longer than the products. On 1.5 million numbers, one
# update of AdamW takes 2.7 ms in NumPy and 0.38 ms as the package does it; a layer norm 1.8 ms and 0.22 ms
# (benchmarks/README.md). The arithmetic is the same. What differs is how often the numbers travel.
#
# A *kernel* is a function on arrays that is worth being fast. This lesson writes some, in NumPy and as compiled loops, and says
# when which is right.
#
# You need lesson 1 for the backward passes. 60 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A formula such as `a * x + b` is two operations for NumPy, and each walks over whole arrays. What lies between them is an array
# too, and if it is large it goes out to main memory and comes back:
#
#      NumPy      x ──►[ times a ]──► t ──►[ plus b ]──► y      4 journeys: x in, t out, t in, y out
#
#      a loop     for each i:   x_i ──► times a ──► plus b ──► y_i      2 journeys: x in, y out
#
# In the loop t_i never leaves the processor. To put several operations into one loop is called *fusing* them. Python's own loops
# are out of the question: Python spends far longer on finding out what `*` means for two objects than the processor on
# multiplying. So the loop is *compiled*: Numba makes machine code of it when it is first called (*just in time*).

# %% [markdown]
# ## The equation, derived
#
# A processor computes and moves numbers at the same time, so what takes longer decides. For a kernel that moves M bytes and does
# C operations, on a machine that moves at most β bytes and does at most π operations a second,
#
# $$\text{time} \ge \max\left(\frac{M}{\beta}, \frac{C}{\pi}\right) .$$
#
# A product of two N × N matrices does 2 N³ operations on 3 N² numbers: computing decides. An elementwise kernel does a dozen
# operations a number: moving decides, and M is what one must count.
#
# Count for AdamW, the optimizer that this course trains with. For each parameter p with gradient g it keeps a running mean m of g
# and a running mean v of g². At step t, with the rate η, decay λ and ε against division by zero,
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
#   p \leftarrow p - \eta \left( \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \varepsilon} + \lambda p \right) .$$
#
# One pass must read p, g, m, v and write p, m, v: 7 arrays. The definition in NumPy (`kernels/adam.py`) is 15 operations, which
# together read and write 35 arrays; `m *= beta1` alone reads m and writes m.

# %%
import math
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

from minipeft import kernels
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
predict("If moving numbers is all that counts, how many times faster is the fused AdamW on a large array?",
        f"35 / 7 = {35 / 7:.0f} times. (The benchmark's figures above give {2.7 / 0.38:.0f}: memory for new arrays costs too.)")

# %% [markdown]
# ## The definition and the loop, side by side
#
# Each kernel of the package has two forms with one signature. `*_reference` is a few lines of NumPy: the definition, what the
# kernel *means*. `*_compiled` is what runs. A test compares the two on every kind of input, and `use_backend("numpy")` runs
# everything by the definitions. A fast loop without a definition beside it is a loop that nobody can check.

# %%
for name, kernel in sorted(kernels.REGISTRY.items()):
    print(f"{name:24s}{kernel.reference.__doc__.strip().splitlines()[0]}")

# %% [markdown]
# ## Exercises: two definitions
#
# An *activation function* bends every number between two linear maps: without a bend two maps would be one. GELU multiplies x by
# the probability Φ(x) that a normally distributed number lies below x: large x pass, very negative ones become 0. With the *error
# function* erf,
#
# $$\text{gelu}(x) = x\,\Phi(x), \qquad \Phi(x) = \tfrac12\left(1 + \text{erf}(x / \sqrt 2)\right), \qquad
#   \Phi'(x) = \varphi(x) = \frac{e^{-x^2/2}}{\sqrt{2\pi}} .$$
#
# Its backward pass is an elementwise vector–Jacobian product as in lesson 1: g times the slope, by the rule for products.

# %%
#@exercise 02.1 minipeft.kernels.activation:gelu_backward_reference
#@ x and gradient are arrays of one shape. Return the gradient of x: gradient times the slope of x Phi(x), in the shape and type
#@ of x. `_erf` is erf on arrays (it gives float64); ROOT_HALF is the root of 1/2, ROOT_1_OVER_2PI that of 1 over 2 pi.
x = np.array([-2.0, -0.5, 0.0, 0.5, 2.0], np.float32)
print("x      ", x)
print("gelu   ", kernels.ACTIVATIONS["gelu"][0].reference(x).round(3))
print("slope  ", kernels.ACTIVATIONS["gelu"][1].reference(x, np.ones_like(x)).round(3))

# %% [markdown]
# **Softmax** makes probabilities of scores (also called *logits*): w_j = exp(z_j) / Σ_k exp(z_k). Written like this it breaks,
# because in float32 exp is infinite from 89 on, and ∞/∞ is no number. But a constant c that is subtracted from all scores
# cancels,
#
# $$\frac{e^{z_j - c}}{\sum_k e^{z_k - c}} = \frac{e^{-c}\, e^{z_j}}{e^{-c} \sum_k e^{z_k}} = \frac{e^{z_j}}{\sum_k e^{z_k}},$$
#
# and with c the largest score of the row every exponent is 0 or less, and the sum is 1 or more. This is the *stable* softmax.
#
# Attention (lesson 3) makes such weights for each query over all keys, and hides some keys: those that only fill up a short
# text (*padding*), and, for a model that reads from left to right, those that come later (the *causal* rule). A hidden key has
# the score −∞: exp(−∞) is 0, in the sum too, so that the weights that are left add up to 1. Hiding a weight after the division
# would come too late. One case needs care: a query that may see nothing at all. There c is −∞ and −∞ − (−∞) is no number; its
# weights are set to 0.

# %%
#@exercise 02.2 minipeft.kernels.softmax:attention_softmax_reference
#@ scores is (B, H, T, S): B texts, H heads, T queries, S keys. z is scale times the scores, plus the bias where there is one.
#@ Return the stable softmax of z over the last axis. Key j is hidden where key_mask (B, S) is False and, if causal, where j is
#@ larger than i + S - T (np.tri(T, S, S - T) is 1 where query i sees it). Hidden keys, and queries that see none, have weights 0.
with np.errstate(over="ignore", invalid="ignore"):
    z = np.array([1.0, 2.0, 100.0], np.float32)
    print("as the formula says:", np.exp(z) / np.exp(z).sum())
print("stable:             ", kernels.attention_softmax.reference(z.reshape(1, 1, 1, 3), None, None, 1.0, False).ravel())
print("causal:\n", kernels.attention_softmax.reference(np.zeros((1, 1, 3, 3), np.float32), None, None, 1.0, True)[0, 0].round(3))

# %% [markdown]
# The *cross-entropy* loss uses the same trick. It is minus the logarithm of the probability that is given to the right class y,
#
# $$-\log w_y = \log \sum_k e^{z_k} - z_y = c + \log \sum_k e^{z_k - c} - z_y, \qquad dz_k = w_k - [k = y],$$
#
# and its kernel writes two numbers for each row: the loss, and the log of the sum. The probabilities themselves, an array as
# large as the logits, are never stored; the backward pass makes them again from the log of the sum.

# %%
losses, lse = kernels.cross_entropy(np.array([[2.0, 0.0, -1.0], [1000.0, 0.0, 0.0]]), np.array([0, 1]))
print("losses:", losses.round(3), " log-sum-exps:", lse.round(3))

# %% [markdown]
# ## Loop, NumPy, Numba
#
# The same GELU four times: a loop in Python; NumPy, where the error function hides a Python loop (`np.vectorize` is one); the
# very same loop compiled by `numba.njit`; and the package's, whose exp and erf are polynomials that the processor computes for
# eight or sixteen numbers at once.

# %%
def gelu_loop(x, out):
    """x Phi(x), one number after the other."""
    for i in range(x.size):
        out[i] = x[i] * 0.5 * (1.0 + math.erf(x[i] * 0.7071067811865476))


def seconds(call, repeats):
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


x = rng.standard_normal(2_000 if fast() else 200_000).astype(np.float32)
out, compiled_loop = np.empty_like(x), numba.njit(gelu_loop)
started = time.perf_counter()
compiled_loop(x, out)
print(f"Numba's first call, which compiles: {time.perf_counter() - started:.2f} s")
gelu = kernels.ACTIVATIONS["gelu"][0]
gelu.compiled(x)
for name, call, repeats in (("loop in Python", lambda: gelu_loop(x, out), 2), ("NumPy", lambda: gelu.reference(x), 2),
                            ("the loop, compiled", lambda: compiled_loop(x, out), 20),
                            ("the package's", lambda: gelu.compiled(x), 20)):
    print(f"{name:20s}{1e9 * seconds(call, repeats) / x.size:8.2f} ns a number")

# %% [markdown]
# ## Exercises: loops
#
# A compiled kernel of the package is a plain loop under `@jit`. It is called as `loop(start, stop, ...)` and fills the elements
# or rows start, ..., stop − 1 of its results, and touches no others: `run_rows` calls it once for everything, or, when there is
# much to do, once in each thread with a part of its own. A loop returns nothing; it writes into arrays that it is given.
#
# Two habits. Indices are not checked in compiled code, where an index too large reads what happens to lie there: run it as plain
# Python first (`NUMBA_DISABLE_JIT=1`), as the checker does with your answers. And a constant like `0.5` is float64, which drags a
# float32 loop up to float64 and makes it slower: the package writes `p.dtype.type(0.5)`.

# %%
#@exercise 02.3 minipeft.kernels.adam:_adam_elements
#@ One step of AdamW on the elements start..stop-1 of p, g, m and v (N,), in one pass; change p, m and v in place. x = scale g
#@ is the gradient that counts (scale is for clipping, lesson 5: it shortens a gradient that is too long). What is the same for
#@ all elements is given: rate = lr / (1 - beta1^t), keep = 1 - lr decay, root = 1 / sqrt(1 - beta2^t), so that p becomes keep p
#@ - rate m / (sqrt(v) root + eps), with the new m and v.
p, g, m, v = rng.standard_normal(3), np.array([1.0, -2.0, 0.001]), np.zeros(3), np.zeros(3)
before = p.copy()
kernels.adam_step(p, g, m, v, 1, 0.01, 0.9, 0.999, 1e-8, 0.0, 1.0)
print("gradients", g, "-> steps", (p - before).round(4))

# %% [markdown]
# The first step is 0.01 for all three, whatever the size of the gradient. At step 1 the corrected means m / (1 − β₁) and v / (1
# − β₂) are g and g², and g / √g² is the sign of g. That is why one learning rate serves numbers whose gradients differ by
# thousands.
#
# **Layer norm** is a kernel of the second kind: something must be known of a whole row before its first number can be written.
# With the mean μ and the variance σ² of a row of width D,
#
# $$y_j = \frac{x_j - \mu}{\sqrt{\sigma^2 + \varepsilon}}\;\text{gain}_j + \text{bias}_j .$$
#
# A loop passes over each row three times, for the mean, for the variance, and to write. But a row of some thousand numbers stays
# in the *cache*, the small fast memory beside the processor, and from main memory it comes once. In NumPy the first pass runs
# over *all* rows before the second begins, and by then the first rows are gone from the cache.

# %%
#@exercise 02.4 minipeft.kernels.norm:_norm_rows
#@ Fill the rows start..stop-1 of out (N, D) with the normalised rows of x (N, D), times gain (D,), plus bias (D,) where has_bias
#@ is true (else bias is empty). `_row_statistics(row, eps, centred)` gives a row's mean (0 if not centred) and 1 / sqrt(variance
#@ + eps).
x = rng.standard_normal((4, 6)) * 5 + 3
y = kernels.norm(x, np.ones(6), np.zeros(6), 1e-5, True)
print("means", y.mean(axis=1).round(6), " variances", y.var(axis=1).round(4))

# %% [markdown]
# ## Threads, and the same bits
#
# Two cores can share the rows of a layer norm: each row is computed by the same instructions, whoever does it, and so the result
# has the same bits with any number of threads. That is worth having: a run can be repeated exactly.
#
# A sum *over* rows is another matter, and the gain's gradient is one: gain_j was used in every row, so
#
# $$d\,\text{gain}_j = \sum_i g_{ij}\, \hat x_{ij}, \qquad \hat x_{ij} = (x_{ij} - \mu_i) / \sqrt{\sigma_i^2 + \varepsilon} .$$
#
# Two threads must not add into one place (both read 5, both add 1, both write 6). Give each thread a sum of its own, and they do
# not collide; but then the number of threads decides which numbers are added first, and in floating point (a + b) + c is not a +
# (b + c).

# %%
tail = (np.float32(1e8), np.float32(-1e8), np.float32(1))
print("(a + b) + c =", (tail[0] + tail[1]) + tail[2], "  a + (b + c) =", tail[0] + (tail[1] + tail[2]))
numbers = rng.standard_normal(50_000).astype(np.float32)
for threads in (1, 2, 3, 4):
    parts = [np.cumsum(part)[-1] for part in np.array_split(numbers, threads)]  # each part from left to right, as a loop would
    print(f"{threads} partial sums: {np.cumsum(np.array(parts, np.float32))[-1]:.6f}")

# %% [markdown]
# The way out: cut the rows into blocks of a *fixed* size, 128 here, with a sum for each block. Threads share the blocks. Which
# rows are added together no longer depends on who does it, and in the end the few block sums are added in their order.

# %%
#@exercise 02.5 minipeft.kernels.norm:_norm_backward_gain_blocks
#@ For each block start..stop-1: fill the row partial[block] of partial (blocks, D) with the sum of gradient times the normalised
#@ row over the rows of x (N, D) that belong to it. Block b has the rows ROWS_IN_BLOCK b up to ROWS_IN_BLOCK (b + 1) - 1, the last
#@ one may have fewer. gradient is (N, D); what stands in partial before is rubbish; `_row_statistics` is as in 02.4.
x, g = (rng.standard_normal((1024 if fast() else 16_384, 512)).astype(np.float32) for _ in range(2))
results = []
for count in (1, 2, 3):
    with kernels.use_threads(count):
        results.append(kernels.norm_backward_gain(x, g, 1e-5, True))
print("the same bits with 1, 2 and 3 threads:", all(np.array_equal(results[0], other) for other in results))

# %% [markdown]
# ## What the numbers show: one pass against fifteen
#
# AdamW's two forms on arrays from a thousand to four million numbers, in nanoseconds a number.

# %%
sizes = [2**k for k in ((10, 14) if fast() else range(10, 23))]
curves = {"NumPy": [], "compiled": []}
for size in sizes:
    p, g, m = (rng.standard_normal(size).astype(np.float32) for _ in range(3))
    v = rng.random(size).astype(np.float32)
    step = (p, g, m, v, 3, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0)
    for name, form in (("NumPy", kernels.adam_step.reference), ("compiled", kernels.adam_step.compiled)):
        form(*step)
        curves[name].append(1e9 * seconds(lambda: form(*step), 3 if fast() else max(5, 2_000_000 // size)) / size)

figure, axes = plt.subplots(figsize=(5, 3))
for name, times in curves.items():
    axes.loglog(sizes, times, "o-", label=name)
axes.set_xlabel("numbers in the array")
axes.set_ylabel("ns a number")
axes.legend()
show(figure, "adam", "Time of AdamW for each number against the size of the array: " + "; ".join(
    f"{name} {times[0]:.2f} ns at {sizes[0]:,}, {min(times):.2f} ns at best, {times[-1]:.2f} ns at {sizes[-1]:,}"
    for name, times in curves.items()) + "; NumPy's time over the loop's: " + ", ".join(
    f"{a / b:.1f} at {size:,}" for size, a, b in list(zip(sizes, *curves.values()))[::4]) + ".")

# %% [markdown]
# Three stretches. On the left the fixed cost of a call is shared by few numbers, and the two are close. In the middle the arrays
# lie in the caches, and the ratio comes near the 35 / 7 of the count: a cache, too, moves only so many bytes a second. On the
# right they no longer fit, and both curves rise, NumPy's sooner, because its intermediate arrays need room as well.
#
# And a whole training, once with the loops and once with the definitions: a network that reads the counts of a review's words
# (those of lesson 1) through four maps of width 128, with a layer norm and a GELU behind each, a fifth to the two classes, and
# cross-entropy at the end. The numbers agree up to rounding, the time does not. (Most of the difference is the error function in
# GELU's definition, a loop in Python in disguise.)

# %%
from minipeft import autograd as F
from minipeft.data import toy

data = toy.dataset("sentiment", "easy", train=64 if fast() else 1000).splits["train"]
words = sorted({word for each in data for word in each.text.split()})
counts = F.Tensor(np.array([[each.text.split().count(word) for word in words] for each in data], np.float32))  # (N, V)
labels = np.array([each.label for each in data])


def trained(steps, width=128, depth=4):
    """The loss at each step of a training on all reviews at once, always from the same numbers."""
    draw, losses, sizes = np.random.default_rng(0), [], [len(words)] + [width] * depth + [2]
    maps = [F.Tensor(draw.standard_normal(shape, np.float32) / shape[0] ** 0.5, requires_grad=True)
            for shape in zip(sizes, sizes[1:])]
    gain, bias = F.Tensor(np.ones(width, np.float32)), F.Tensor(np.zeros(width, np.float32))
    means = [(np.zeros_like(W.data), np.zeros_like(W.data)) for W in maps]  # AdamW's m and v
    for step in range(1, steps + 1):
        x = counts
        for W in maps[:-1]:
            x = F.activation(F.layer_norm(F.linear(x, W), gain, bias), "gelu")  # (N, width)
        loss = F.cross_entropy(F.linear(x, maps[-1]), labels)
        loss.backward()
        for W, (m, v) in zip(maps, means):
            kernels.adam_step(W.data, W.grad, m, v, step, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0)
            W.grad = None
        losses.append(loss.item())
    return np.array(losses)


losses = {}
for backend in ("numba", "numpy"):
    with kernels.use_backend(backend):
        trained(1)  # once unmeasured: it compiles
        started = time.perf_counter()
        losses[backend] = trained(3 if fast() else 20)
    print(f"{backend}: {time.perf_counter() - started:5.1f} s, loss {losses[backend][0]:.5f} -> {losses[backend][-1]:.5f}")
print(f"largest difference of a loss: {np.abs(losses['numba'] - losses['numpy']).max():.0e}")

# %% [markdown]
# At the size of a real model the same loops keep up with a library that is written in C++: a training step of a decoder of width
# 768 with 12 layers takes 0.89 times PyTorch's time where all numbers are trained, and 0.88 where few are (benchmarks/README.md,
# two cores). Most of it is matrix products, which both leave to a library.
#
# ## Where it breaks
#
# - **Matrix products.** A hand-written loop over a product is many times slower than the library's, which keeps blocks of both
#   matrices in the cache. Leave it alone.
# - **Small arrays.** A thread must be woken, which takes some 50 microseconds. Below a threshold (`PARALLEL_THRESHOLD` in
#   `kernels/backend.py`) one core is faster.
# - **Compiling** takes a second or so for each loop and each type of its arguments. The package keeps the machine code on disk.
# - **Fast maths.** A compiler may be allowed to reorder sums, and also to assume that there is no NaN and no ∞. The second would
#   break the mask of −∞, and the package does not allow it.
# - **Several writers.** The gradient of an embedding adds rows into a table, several of them into one row: such a loop must not
#   be cut into threads by its input rows (`kernels/embedding.py` runs it on one).
# - **A formula that is right and breaks.** exp(z) / Σ exp(z), or a variance as mean(x²) − mean(x)², which subtracts two large
#   numbers that are nearly equal when the mean is large. Correct on paper is not correct in floating point.
#
# ## Read the package's own file
#
# `minipeft/kernels/norm.py`, then `backend.py`. Why does `_row_statistics` make two passes and not add up x and x² in one? Why do
# `norm_backward_input` and `norm_backward_gain` exist apart? (Think of lesson 1: which of the two does a frozen layer norm need?)
# And what does `run_rows` do before it hands a loop to several threads for the first time?
#
# ## Sources
#
# - Williams, Waterman, Patterson, *Roofline*, Communications of the ACM 52(4), 2009: computing or moving, which takes longer.
# - Lam, Pitrou, Seibert, *Numba: a LLVM-based Python JIT Compiler*, LLVM-HPC 2015.
# - Goldberg, *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM Computing Surveys 23(1), 1991.
# - Kingma, Ba, *Adam*, ICLR 2015, arXiv:1412.6980, algorithm 1; Loshchilov, Hutter, *Decoupled Weight Decay Regularization*, ICLR
#   2019, arXiv:1711.05101, algorithm 2.
# - Hendrycks, Gimpel, *Gaussian Error Linear Units*, 2016, arXiv:1606.08415.
# - Ba, Kiros, Hinton, *Layer Normalization*, 2016, arXiv:1607.06450, section 3.
# - Milakov, Gimelshein, *Online Normalizer Calculation for Softmax*, 2018, arXiv:1805.02867: the stable softmax with one pass
#   less.
