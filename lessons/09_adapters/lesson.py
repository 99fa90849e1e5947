# %% [markdown]
# # Lesson 9. Adapters, and LoRA against adapters
#
# **Why.** A service answers questions for many customers, and a new one comes every week. Each wants the model to learn a task of
# its own. Tuning one copy for all means training on everybody's data again each time, or forgetting the old tasks; a copy for
# each is a thousand models. What is wanted is one frozen model, and for each task a small part that disturbs no other task.
#
# An *adapter* is such a part: a small network that is put *into* the frozen model, at each place where a sub-layer ends (Houlsby
# et al., 2019, two years before LoRA). With 3.6 % more numbers for each task it came within 0.4 % of full fine-tuning on GLUE, a
# collection of tasks on English sentences (their abstract). Then why do so many take LoRA? The second half of this lesson sets
# the two side by side: what can be merged, how long one answer takes, how touchy the learning rate is.
#
# You need lesson 3 (what a block is), lesson 5 (what fine-tuning everything reaches) and lesson 8 (LoRA). 55 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A block of a Transformer has two *sub-layers*, attention and the feed-forward network. Each one ends in a *join*: its output h
# is added to what entered it, x (the residual), and in BERT the sum is normalised. At the join an adapter may change h.
#
#         x (B, T, D) ──────────┐                       one adapter, MLP(z)
#             │                 │
#         sub-layer             │                  z (..., D)      D is 96 to thousands
#             │ h               │                      │
#        ┌─ adapter ─┐          │                  W_down (D, R)   R is 8 to 64: the bottleneck
#        │ h + MLP(h)│          │                      │ + b_down
#        └─────┬─────┘          │                  act             a nonlinearity, such as ReLU
#              │                │                      │ (..., R)
#             join:  norm(x + ..)                  W_up (R, D)     starts at 0
#              │                                       │ + b_up
#         (B, T, D)                                (..., D)
#
# A *bottleneck* is a narrow middle: what the adapter has to say must fit into R numbers for each token. That is where the saving
# is.

# %% [markdown]
# ## The equation, derived
#
# Two linear maps with an *activation function* between them, a nonlinearity such as ReLU that acts on each number alone:
#
# $$Z = \mathrm{act}(z\,W_{down} + b_{down}), \qquad \mathrm{MLP}(z) = Z\,W_{up} + b_{up} .$$
#
# For the backward pass let g be the gradient of the loss with respect to MLP(z). The rule for products (lesson 1), twice:
#
# $$dW_{up} = Z^\top g, \quad db_{up} = \textstyle\sum g, \qquad \delta = (g\,W_{up}^\top) \odot \mathrm{act}',
# \qquad dW_{down} = z^\top \delta, \quad db_{down} = \textstyle\sum \delta, \qquad dz = \delta\,W_{down}^\top .$$
#
# Here ⊙ multiplies entry by entry, act' is the slope of act at z W_down + b_down, and the sums go over all rows.
#
# **The identity at the start.** W_up and both biases start at zero. Then MLP(z) = 0 whatever z is, and the model with its fresh
# adapters is the pre-trained model, bit for bit. (Houlsby et al. start W_up very near zero instead; section 3.6 shows that it
# gets worse when the start is farther off.)

# %%
import tempfile

import numpy as np

from minipeft import load_pretrained
from minipeft.autograd import Tensor, no_grad
from minipeft.learn import fast, predict, show
from minipeft.methods import METHODS, attach

LABELS = ("terrible", "bad", "good", "great")


def fresh():
    """A toy encoder with a new head: D = 96, three blocks."""
    return load_pretrained("toy:encoder", task="classify", labels=LABELS, rng=np.random.default_rng(0)).eval()


def attached(name, options, noise=0.0):
    """A method on a fresh encoder; ``noise`` moves all its numbers away from their start."""
    attachment, rng = attach(fresh(), METHODS[name](**options), rng=np.random.default_rng(1)), np.random.default_rng(2)
    moved = {path: (a + noise * rng.standard_normal(a.shape)).astype(a.dtype) for path, a in attachment.arrays().items()}
    attachment.load_arrays(moved)
    return attachment


rng = np.random.default_rng(3)
ids = rng.integers(5, 400, (2, 9))  # (B, T)
before = fresh()(ids).logits.data
print("a fresh adapter changes nothing:", np.array_equal(attached("houlsby", {"bottleneck": 8}).model(ids).logits.data, before))

# %%
first = attached("houlsby", {"bottleneck": 8})
logits = first.model(ids).logits
logits.backward(rng.standard_normal(logits.shape).astype(np.float32))
largest = {path.rpartition("mlp.")[2]: float(np.abs(p.grad).max())
           for path, p in first.named_parameters().items() if path.startswith("blocks.0.attn")}
predict("W_up is zero at the first step. Which of the two matrices has a gradient of zero there?",
        "W_down: its gradient is zᵀ δ, and δ goes through W_up. Largest entries of the gradients: "
        + ", ".join(f"{name} {size:.2g}" for name, size in largest.items()) + ". The same as with U and V in LoRA.")

# %% [markdown]
# ## Exercises
#
# First the network itself. It is a module: `self.down` and `self.up` are its two linear maps, biases included, `self.act` is the
# activation, and `self.dropout` sets random entries to zero in training (lesson 3).

# %%
#@exercise 09.1 minipeft.methods.adapter:Bottleneck.forward
#@ Return MLP(z) for z (..., D), a Tensor of the same shape. `self.down` and `self.up` are the two maps with their biases,
#@ `self.act` is the activation, and `self.dropout` is for what enters the adapter; all are called like functions. What the
#@ adapter is added to is not the business of this function.
network = attached("houlsby", {"bottleneck": 8}, 0.1).wrappers["blocks.0.mlp.join"].mlp
z = Tensor(rng.standard_normal((2, 9, 96)).astype(np.float32))
print("down", network.down.weight.shape, "up", network.up.weight.shape, "MLP(z)", network(z).shape)

# %% [markdown]
# ### Where it stands: three placements
#
# The join puts x and h together: in post-norm models such as BERT join(x, h) = norm(x + h), in pre-norm ones such as GPT-2 it is
# x + h. Three papers put the same network at this place, and differ in what it *reads*:
#
# | | at | reads | output of the sub-layer |
# |---|---|---|---|
# | Houlsby et al., 2019 | attention and feed-forward | h | join(x, h + MLP(h)) |
# | Pfeiffer et al., 2021 | feed-forward only | join(x, h) | join(x, h + MLP(join(x, h))) |
# | parallel: He et al., 2022 | feed-forward only | x | join(x, h + s MLP(x)) |
#
# Pfeiffer's has half as many adapters. A parallel one reads what *entered* the sub-layer, as LoRA does at a map: it does not wait
# for h, so that the two could be computed at the same time. The scale s, 4 in the paper, is a constant.

# %%
#@exercise 09.2 minipeft.methods.adapter:HoulsbyJoin.forward
#@ Return what the sub-layer gives with the adapter at its join. `self.wrapped(x, h)` is the model's own join, `self.adapted(x,
#@ h)` is MLP of what this kind of adapter reads (each of the three kinds has its own `adapted`), and `self.scale` is s. x and h
#@ are (B, T, D).
x, h = (Tensor(rng.standard_normal((2, 9, 96)).astype(np.float32)) for _ in range(2))
for name in ("houlsby", "pfeiffer", "parallel"):
    wrapper = attached(name, {"bottleneck": 8}, 0.1).wrappers["blocks.0.mlp.join"]
    join, reads = wrapper.wrapped, {"houlsby": h, "pfeiffer": wrapper.wrapped(x, h), "parallel": x}[name]
    by_hand = join(x, h + wrapper.mlp(reads) * wrapper.scale).data
    print(f"{name:9s} s = {wrapper.scale}: differs from the table's formula by {np.abs(wrapper(x, h).data - by_hand).max():.1e}, "
          f"from the plain join by {np.abs(by_hand - join(x, h).data).max():.2f}")

# %% [markdown]
# ### How many numbers
#
# One adapter has W_down, W_up and the two biases. LoRA of rank R on the query and value maps of L layers has 4 D R L (lesson 8).

# %%
D, L, R = 96, 3, 8
predict(f"Adapters with R = {R} on both joins, and LoRA with rank {R} on q and v, in {L} layers of width {D}: which trains more?",
        f"Nearly the same. Adapters: 2 L (2 D R + R + D) = {2 * L * (2 * D * R + R + D):,}, LoRA: 4 D R L = {4 * D * R * L:,}. "
        "The matrices have exactly as many entries; the difference is the adapters' biases.")

# %%
#@exercise 09.3 minipeft.methods.adapter:Houlsby.count
#@ Return how many numbers are trained on a model of this config: the size of one adapter (write it out from the shapes: D is
#@ `config.hidden_size`, R is `self.bottleneck`) for each join it stands at, and, where `self.train_norms` is true, all numbers of
#@ the norms. `join_paths(config)` are all joins, `self._joins(paths)` those it stands at, `norm_sizes(config)` is {path: size of
#@ a norm}.
for name in ("houlsby", "pfeiffer"):
    one = attached(name, {"bottleneck": R})
    print(f"{name}: {METHODS[name](bottleneck=R).count(one.model.config):,} by formula, {one.trainable_without_head:,} counted")

# %% [markdown]
# ## What the numbers show: AdapterDrop, on the toy world
#
# Each adapter costs time. AdapterDrop (Rücklé et al., 2021) passes over those of the *first* n blocks, since the lower ones
# matter least (Houlsby et al., section 3.6). With several tasks on one text there is more to win: the text goes through the first
# n blocks only *once* for all tasks, for there is nothing of any task in them. With n = 5 of 12 blocks the paper found eight
# tasks 39 % faster.
#
# Robust training makes up for the loss: at each step n is drawn anew, so that the upper adapters learn to do without the lower
# ones.

# %%
#@exercise 09.4 minipeft.methods.adapter_drop:set_dropped
#@ Switch each wrapper in `attachment.wrappers` ({path: wrapper}) that stands in a block: `enabled` is True from block number
#@ `blocks` on and False before; none is on where `attachment.enabled` is False. Those outside of the blocks (the head) stay as
#@ they are. `_block_number(path)` is the block's number, or None outside. L is `attachment.model.config.num_hidden_layers`, or
#@ `num_decoder_layers` where that is more. Return nothing; raise the ValueErrors that the docstring names.
from minipeft.compare.run import Run, prepare
from minipeft.compare.sources import written
from minipeft.methods import AdapterDrop, adapter_drop
from minipeft.training import fit

SMALL = {"train_limit": 64} if fast() else {}
place = tempfile.TemporaryDirectory()
data = written("toy:rating", place.name)  # short reviews in four classes


def adapters(robust):
    """(work, attachment) of adapters trained on toy:rating, at each step without those of 0 to ``robust`` blocks."""
    run = Run("toy:encoder", data, "houlsby", epochs=1 if fast() else 3, **SMALL)
    work, attachment, *_ = prepare(run)
    hooks = [AdapterDrop(attachment, robust)] if robust else []
    fit(attachment.model, attachment.named_parameters(), work, run.settings(), hooks=hooks)
    return work, attachment


curves = {}
for name, robust in (("plain", 0), ("robust", 3)):
    work, attachment = adapters(robust)
    curves[name] = []
    for n in range(4):
        with adapter_drop(attachment, n) as model:
            curves[name].append(work.evaluate(model, "test")["score"])
    print(f"{name:7s} accuracy without the adapters of 0, 1, 2, 3 blocks: " + ", ".join(f"{s:.3f}" for s in curves[name]))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3))
for name, scores in curves.items():
    axes.plot(range(4), scores, "o-", label=name)
axes.set_xlabel("blocks without adapters")
axes.set_ylabel("accuracy")
axes.set_xticks(range(4))
axes.legend()
show(figure, "dropped", "Accuracy against the number of first blocks without adapters. " + " ".join(
    f"Trained {name}: " + ", ".join(f"{s:.2f}" for s in scores) + "." for name, scores in curves.items()))

# %% [markdown]
# Without the adapters of the first block little is lost, without those of the first two much. Robust training pays with some
# accuracy where nothing is dropped, and gains where much is. At n = 3 no adapter is left: what remains is the head, which was
# trained along.
#
# ## LoRA against adapters
#
# ### 1. Merging
#
# Suppose there were no nonlinearity. In front of the join stands the last linear map of the sub-layer, h = a W_o + b_o, and then
#
# $$h + (h W_{down} + b_{down}) W_{up} + b_{up} = a\,W_o (I + W_{down} W_{up}) + \text{a constant},$$
#
# one matrix and one vector, which would fit into W_o's place. With it that does not work: which of the R numbers are cut off by
# ReLU depends on the token, so that no single matrix does the same for all tokens. LoRA gave up the nonlinearity, and merging is
# what it got for it.

# %%
wide = attached("houlsby", {"bottleneck": 8}, 0.2)
try:
    wide.merge()
except ValueError as error:
    print(error)

# %%
out, mlp = wide.model.get("blocks.0.attn.out"), wide.wrappers["blocks.0.attn.join"].mlp
a = Tensor(rng.standard_normal((50, 96)).astype(np.float32))  # what 50 tokens bring to W_o
h = out(a)
narrow = mlp.down.weight.data @ mlp.up.weight.data
W = out.weight.data @ (np.eye(96, dtype=np.float32) + narrow)
b = out.bias.data + out.bias.data @ narrow + mlp.down.bias.data @ mlp.up.weight.data + mlp.up.bias.data
for words, added in (("without a nonlinearity", mlp.up(mlp.down(h))), ("as it is", mlp(h))):
    wrong = np.abs(a.data @ W + b - (h + added).data).max()
    print(f"an adapter {words}: one matrix for all tokens is wrong by up to {wrong:.1g}")

# %% [markdown]
# ### 2. The time of one answer
#
# An adapter is two more products in each sub-layer, and they come one after the other: nothing else can go on meanwhile. How much
# time is that? The products alone say: a share of about R / (3 D), whatever the size of the batch. But a small product takes
# longer than its multiplications: it has to be called, and its few rows do not fill the processor.

# %%
import time


def seconds(models, ids, rounds):
    """{name: time of a forward pass}: the models take turns; the fastest round counts, which other programs disturbed least."""
    times, names = {name: [] for name in models}, list(models)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            with no_grad():
                models[name](ids)
            times[name].append(time.perf_counter() - started)
    return {name: min(values[1:]) for name, values in times.items()}  # the first round warms up


merged = attached("lora", {"rank": 8}, 0.01)
merged.merge()
models = {"base": fresh(), "LoRA, merged": merged.model, "LoRA": attached("lora", {"rank": 8}, 0.01).model,
          "adapters": attached("houlsby", {"bottleneck": 8}, 0.01).model}
batches, slower = (1, 4) if fast() else (1, 2, 4, 8), {name: [] for name in models}
for size in batches:
    took = seconds(models, rng.integers(5, 400, (size, 16)), 5 if fast() else 120)
    for name in models:
        slower[name].append(took[name] / took["base"])
    print(f"batch {size:3d}: " + ", ".join(f"{name} {1e3 * took[name]:.2f} ms" for name in models))
more = [f"batch {size}: {100 * (ratio - 1):+.0f} %" for size, ratio in zip(batches, slower["adapters"])]
predict("Adapters of R = 8 at D = 96: the products say 8 / (3 · 96), 2.8 % more time. At a batch of 1, more or less than that?",
        f"Measured: {'; '.join(more)}.")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
for name in list(models)[1:]:
    axes.plot(batches, slower[name], "o-", label=name)
axes.axhline(1, color="grey", linewidth=1)
axes.set_xscale("log", base=2)
axes.set_xlabel("texts in a batch")
axes.set_ylabel("time / time of the base")
axes.legend()
show(figure, "latency", f"Time of a forward pass over the base's, for batches of {', '.join(map(str, batches))}. " + " ".join(
    f"{name}: " + ", ".join(f"{r:.2f}" for r in slower[name]) + "." for name in list(models)[1:]))

# %% [markdown]
# On larger models the same, less of it. Six layers of width 384, 64 tokens (benchmarks/README.md): adapters of R = 48 take 1.11
# times the base's time at a batch of 1 and 1.04 times at 16, where the products alone say 1.04; merged LoRA 1.00 and 0.99. On a
# GPU, GPT-2 medium (Hu et al., 2022, table 1): at a batch of 1 and 128 tokens the base takes 19.8 ms, with one adapter a block
# 23.9, with two 25.8 (30 % more); at a batch of 32 and 512 tokens two adapters cost 3 % more. (Theirs are larger at the small
# batch, 11 million numbers against half a million, which is part of the difference.)
#
# LoRA that is *not* merged pays as well: it too is two small products more, at each map. Merging is what saves the time, and a
# merged LoRA serves one task only. Where each text of a batch belongs to another task, nothing can be merged.
#
# ### 3. The learning rate
#
# Adapters are said to forgive a wrong learning rate better than full fine-tuning (Houlsby et al., 2019, appendix B; He et al.,
# 2021). And LoRA? The same training at eight rates, each twice the last, around the one that the package takes for a model of
# this size.

# %%
from minipeft.compare.run import execute

factors = (0.25, 4) if fast() else (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
by_rate = {name: [] for name in ("full", "lora", "houlsby")}
for name in by_rate:
    usual = Run("toy:encoder", data, name).lr
    for factor in factors:
        run = Run("toy:encoder", data, name, lr=usual * factor, epochs=1 if fast() else 2, **SMALL)
        by_rate[name].append(execute(run, f"{place.name}/{name}-{factor}", quiet=True)["score"])
    near = sum(s >= max(by_rate[name]) - 0.05 for s in by_rate[name])
    print(f"{name:8s} around {usual:g}: " + ", ".join(f"{s:.3f}" for s in by_rate[name]) + f"; near its best at {near} rates")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
for name, scores in by_rate.items():
    axes.plot(factors, scores, "o-", label=name)
axes.set_xscale("log", base=2)
axes.set_xlabel("learning rate / the method's usual one")
axes.set_ylabel("accuracy")
axes.legend()
tried = ", ".join(f"{factor:g}" for factor in factors)
show(figure, "rates", f"Accuracy against the learning rate, at {tried} times the usual one. " + " ".join(
    f"{name}: " + ", ".join(f"{s:.2f}" for s in scores) + "." for name, scores in by_rate.items()))
place.cleanup()

# %% [markdown]
# No method is the tolerant one here: each stays within five points of its best over three or four of the eight rates. They differ
# in the side on which they forgive. At eight times the usual rate adapters are still well above chance (one in four), where full
# fine-tuning and LoRA have fallen to it; at a sixteenth full fine-tuning has learned most. Part of that is the length of the
# runs, 126 steps: a low rate fails for want of steps. With five seeds and 189 steps (benchmarks/README.md, finding 8) adapters
# stay within two points of their best over 1.8 ± 0.6 doublings of the rate, full fine-tuning over 2.3 ± 0.4: the reverse of what
# the papers found on larger models and longer runs. What holds for all three: the rate must be looked for, for each method anew.
#
# ### 4. The score
#
# On a real model, MiniLM on SST-2 (2,000 sentences, two epochs, three seeds; README.md): full fine-tuning 0.844 ± 0.008, LoRA of
# rank 8 with 74,498 numbers 0.843 ± 0.004, Houlsby's adapters of R = 16 with 153,026 numbers 0.827 ± 0.005. The library
# AdapterHub, given the same adapters, sentences and rate, reached 0.833 ± 0.007 (benchmarks/README.md). One data set decides
# nothing; but nothing here says that the nonlinearity, for which merging is given up, buys accuracy.
#
# ## Compacter: matrices out of Kronecker products
#
# The *Kronecker product* A ⊗ B puts a copy of B in the place of each entry of A, times that entry:
#
#     A = [ 1  2 ]        A ⊗ B = [ 1·B  2·B ]        (n, n) ⊗ (p, q) has the shape (n p, n q)
#         [ 3  4 ]                [ 3·B  4·B ]
#
# Compacter (Karimi Mahabadi et al., 2021) makes both matrices of each adapter as a sum of n of these, with B of rank 1, B = s t:
#
# $$W = \sum_{i=1}^{n} A_i \otimes (s_i t_i), \qquad A_i\,(n, n), \quad s_i\,(D_{in}/n, 1), \quad t_i\,(1, D_{out}/n) .$$
#
# All s together are D_in numbers, all t D_out. The n small matrices A are learned once, and every adapter of the model uses the
# same.

# %%
n = 4
predict(f"W_down (96, 16) has {96 * 16:,} entries. How many numbers make it with n = {n}, besides the A, and how many are the A?",
        f"s and t: 96 + 16 = {96 + 16}. The A: n³ = {n**3}, once for the whole model.")

# %%
#@exercise 09.5 minipeft.methods.compacter:KroneckerLinear.weight
#@ Return W (D_in, D_out), a Tensor through which gradients reach `self.A` (n, n, n), `self.s` (n, D_in/n, 1) and `self.t` (n, 1,
#@ D_out/n): the sum over i of the Kronecker products of A_i with s_i t_i. Reshaping, broadcasting and `.sum(axis=...)` of Tensors
#@ are enough; there is no Kronecker product among the operations.
small = attached("compacter", {"bottleneck": 16, "num_factors": n}, 0.1)
maps = small.wrappers["blocks.0.attn.join"].mlp
W = maps.down.weight().data
print(f"W_down {W.shape} out of {maps.down.s.size + maps.down.t.size} numbers has rank {np.linalg.matrix_rank(W)}; "
      f"its plain form would be {W.size:,} numbers")
print(f"trained: compacter {small.trainable_without_head:,}, "
      f"houlsby {METHODS['houlsby'](bottleneck=16).count(small.model.config):,}")

# %% [markdown]
# Few numbers need not mean a low rank: the rank of A ⊗ B is the rank of A times that of B, so that n products, each with A of
# rank n and B of rank 1, can have the rank n². With 0.047 % of T5-base's numbers Compacter did as well as full fine-tuning on
# GLUE (their abstract). The price is time: the matrices are put together anew at each call, which took 1.30 times the base's time
# at a batch of 1 (benchmarks/README.md).
#
# ## Where it breaks
#
# - **No merging.** An adapter costs time at every call, for ever. AdapterDrop makes that less and does not make it nothing.
# - **A start that is not the identity.** With W_up drawn as large as usual, the frozen layers above get states that they have
#   never seen, and the first steps go into repairing that.
# - **A bottleneck is no rank.** A rank above D is refused, a bottleneck is not. Already at R = 64 and D = 96 the two matrices
#   of one adapter have 2 · 96 · 64 = 12,288 entries, a third more than a full matrix: more numbers than LoRA would ever need
#   here.
# - **The norms.** Houlsby et al. train the norms along (`train_norms`); leave that out and a count, or a score, will differ from
#   theirs. Papers differ in such details more than in their ideas.
#
# What adapters have that LoRA has not: they can reshape what a sub-layer says by a nonlinearity, one can be put on top of
# another, and a small attention can choose among the outputs of several (AdapterFusion, lesson 14). And they need only the places
# where sub-layers end, not the maps inside attention.
#
# ## Read the package's own file
#
# `minipeft/methods/adapter.py`: three kinds of adapter are three classes, and two of them are four lines long. Which line makes
# the identity at the start? Why does `forward` test for `scale == 1.0` where a product with 1 would give the same? In `Parallel`
# nothing is said about pre-norm models: what does the adapter read there, normalised states or not? Then `adapter_drop.py`: why
# does `set_dropped` look at `attachment.enabled`?
#
# ## Sources
#
# - Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly, *Parameter-Efficient Transfer Learning for
#   NLP*, ICML 2019, arXiv:1902.00751: sections 2.1 (the adapter), 3.6 (the start, which layers), appendix B (learning rates).
# - Pfeiffer, Kamath, Rücklé, Cho, Gurevych, *AdapterFusion*, EACL 2021, arXiv:2005.00247: section 3.
# - He, Zhou, Ma, Berg-Kirkpatrick, Neubig, *Towards a Unified View of Parameter-Efficient Transfer Learning*, ICLR 2022,
#   arXiv:2110.04366: section 4 (parallel placement and scale).
# - Rücklé, Geigle, Glockner, Beck, Pfeiffer, Reimers, Gurevych, *AdapterDrop*, EMNLP 2021, arXiv:2010.11918: section 3.
# - Karimi Mahabadi, Henderson, Ruder, *Compacter*, NeurIPS 2021, arXiv:2106.04647: sections 3.1 and 3.2.
# - Hu et al., *LoRA*, ICLR 2022, arXiv:2106.09685: section 3 and table 1 (latency).
# - He, Liu, Ye, Tan, Ding, Cheng, Low, Bing, Si, *On the Effectiveness of Adapter-based Tuning*, ACL 2021, arXiv:2106.03164: the
#   learning rate.
