# %% [markdown]
# # Lesson 8. LoRA: W + s U Vᵀ
#
# **Why.** You have one encoder and a thousand customers, and each wants it tuned to texts of their own. A fine-tuned copy for
# each is a thousand models: for BERT-base, 440 GB. What really differs between the copies? If the *change* of each weight
# matrix were simple, one could keep the model once and, for each customer, only the change.
#
# LoRA (*low-rank adaptation*) is that idea: the change of a matrix is a product of two thin ones. The copies shrink from 440
# megabytes to about one megabyte each, and at inference the product is added into the matrix, so that it costs nothing.
#
# You need lesson 1 (what a gradient of a product is), lesson 3 (where the maps of a Transformer are) and lesson 5 (what
# fine-tuning everything reaches). 50 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A *linear map* takes rows x of D_in numbers to rows of D_out numbers by a matrix W. Its *rank* is the number of directions
# that it really uses. LoRA leaves W frozen, which means that training does not touch it, and puts a narrow way beside it:
#
#                x (..., D_in)
#           ┌────────┴────────┐
#           │                 │
#        W frozen          U (D_in, R)      R is 1 to 16; D_in is hundreds
#      (D_in, D_out)          │ (..., R)
#           │              Vᵀ (R, D_out),  starts at 0
#           │                 │  times s = α / R
#           └────────(+)──────┘
#                h (..., D_out)
#
# Whatever goes through the narrow way has passed through R numbers. So the change of W that it stands for has rank R at most.

# %% [markdown]
# ## The equation, derived
#
# Fine-tuning changes W into W' = W + ΔW. Write the change as a product, ΔW = s U Vᵀ with U (D_in, R) and V (D_out, R). Then
#
# $$h = x W' + b = x W + b + s\,(x U)\,V^\top .$$
#
# The brackets matter: x U has R columns, so the product costs R (D_in + D_out) operations a row and not D_in D_out. U Vᵀ itself
# is never formed in training.
#
# With g = dL/dh, the rule for products (lesson 1) gives
#
# $$dU = s\,x^\top (g V), \qquad dV = s\,g^\top (x U), \qquad dx = g W^\top + s\,(g V)\,U^\top .$$
#
# Two things can be read off. If U and V both started at zero, both gradients would be zero and nothing would ever learn. So U
# starts Gaussian and V at zero: at first h is what it was before (the *identity at the start*), and dV is not zero. And no term
# asks for dW, which for full fine-tuning costs as much as dx: a third of the step (lesson 1) is never computed.
#
# The scale s = α / R keeps the size of the change about the same when R is changed, so that the learning rate need not be
# looked for again. (For large R it over-corrects: rank-stabilised LoRA divides by √R.)

# %%
import numpy as np

from minipeft import LoRA, attach, load_pretrained
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
model = load_pretrained("toy:encoder", task="classify", labels=("terrible", "bad", "good", "great"), rng=rng)
D = model.config.hidden_size
predict(f"The model has width D = {D}. A query map is (D, D). How many numbers does LoRA of rank 4 train on one such map?",
        f"R (D_in + D_out) = 4 ({D} + {D}) = {4 * 2 * D}, of {D * D} in W itself.")

# %% [markdown]
# ## Exercises
#
# Five functions of `minipeft/methods/lora.py` and `dora.py`. In 08.1, 08.2 and 08.5 ``self`` is the layer and holds what the
# picture names: `self.wrapped` is the map that was there before, `self.U`, `self.V` and `self.scale` are U, V and s, and
# `self.dropout` is applied to x on the narrow way. In 08.3 and 08.4 ``self`` is the method with its settings: `self.rank`,
# `self.alpha` and so on.
#
# `F` is the module of differentiable operations from lesson 1: `F.linear(x, W)` is x W, `F.swap_last(V)` is Vᵀ. On Tensors `@`,
# `+`, `*` and `.sum(axis=...)` work as on arrays, and a root is `** 0.5`.

# %%
#@exercise 08.1 minipeft.methods.lora:LoRALinear.forward
#@ Return h = x W + b + s (x U) V^T for x (..., D_in). `self.wrapped(x)` is x W + b; apply `self.dropout` to x on its way to U,
#@ and never form U V^T. Where `self.rows` (B,) is not None, it is true for the rows of the batch that the change is for and
#@ false for the others; true counts as 1 in a product.
from minipeft.autograd import Tensor
from minipeft.methods.lora import LoRALinear

layer = LoRALinear(model.blocks[0].attn.q, 4, 2.0, 0.0, rng)  # the map, rank, s, dropout, generator
x = Tensor(rng.standard_normal((2, 5, D), np.float32))  # (B, T, D_in)
print("a fresh LoRA changes nothing:", np.array_equal(layer(x).data, model.blocks[0].attn.q(x).data))

# %%
#@exercise 08.2 minipeft.methods.lora:LoRALinear.change
#@ Return the change of W as an array (D_in, D_out): s U V^T. `self.factors()` gives s U and V as arrays.
print("the change of a fresh LoRA:", layer.change().shape, "largest entry", np.abs(layer.change()).max())

# %%
#@exercise 08.3 minipeft.methods.lora:LoRA.scale
#@ Return s for a rank and an alpha, as derived above: LoRA's, or rank-stabilised LoRA's where `self.rank_stabilised` is true.
#@ `self.divisor(rank)` would be the package's own way to say so; write it out instead.
for rank in (1, 4, 16, 64):
    print(f"rank {rank:2d}: alpha / R = {LoRA(alpha=16).scale(rank, 16):6.3f}   alpha / sqrt(R) = "
          f"{LoRA(alpha=16, rank_stabilised=True).scale(rank, 16):6.3f}")

# %%
#@exercise 08.4 minipeft.methods.lora:LoRA.count
#@ Return how many numbers LoRA trains on a model of this config: R (D_in + D_out) summed over the maps it adapts.
#@ `linear_shapes(config)` is {path: (D_in, D_out)} of all maps, and `self.places(paths)` is {path: (rank, alpha)} of those that
#@ are adapted.
attachment = attach(model, LoRA(rank=4, alpha=8, targets="attn.q,attn.v"), rng=rng)
print(f"{LoRA(rank=4).count(model.config):,} by formula, {attachment.trainable_without_head:,} counted, of "
      f"{sum(p.size for p in model.parameters()):,}")

# %% [markdown]
# ## What the numbers show: rank, on the toy world
#
# The same training at four ranks. `toy:rating` are short reviews in four classes; the head is trained along in all of them.

# %%
from minipeft.compare.run import Run, execute
from minipeft.compare.sources import written

import tempfile

ranks, scores = (1, 4) if fast() else (1, 4, 16), {}
with tempfile.TemporaryDirectory() as folder:
    data = written("toy:rating", folder)
    for rank in ranks:
        run = Run("toy:encoder", data, "lora", options={"rank": rank, "alpha": 2 * rank}, epochs=1 if fast() else 3,
                  train_limit=64 if fast() else None)  # alpha = 2 R, so that s is 2 for all of them
        result = execute(run, f"{folder}/rank{rank}", quiet=True)
        scores[rank] = result["score"]
        print(f"rank {rank:2d}: accuracy {result['score']:.3f}, {result['trainable_without_head']:,} parameters besides the head")

least, most = min(ranks), max(ranks)
predict(f"From rank {least} to rank {most} there are {most // least} times as many numbers to train. "
        "How much does the accuracy rise?",
        f"By {scores[most] - scores[least]:+.3f}: " + ", ".join(f"rank {r} {s:.3f}" for r, s in scores.items()) + ".")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(list(scores), list(scores.values()), "o-")
axes.set_xscale("log", base=2)
axes.set_xlabel("rank R")
axes.set_ylabel("accuracy")
show(figure, "rank", "Accuracy against rank: " + ", ".join(f"{s:.2f} at {r}" for r, s in scores.items()) + ".")

# %% [markdown]
# One seed is noise of about two points, so do not read single steps. Over five seeds (benchmarks/README.md, "What small models
# show") the accuracy goes from 76.2 at rank 1 to 80.6 at rank 16: sixteen times the numbers for four points, most of them
# early. The change that this task asks for has few directions.
#
# On a real model it is the same. MiniLM on SST-2 (2,000 sentences, two epochs, the pooler; benchmarks/README.md has the whole
# table): full fine-tuning reaches 0.844 with 22.7 million trained numbers, LoRA of rank 8 on the query and value maps 0.843
# with 74 thousand.

# %% [markdown]
# ## Merging: nothing at inference
#
# W' = W + s U Vᵀ has the shape of W. Put it in W's place and the narrow way can go: the same result up to rounding, at the base's
# cost. Take it out again and W is W, bit for bit, because a copy was kept and nothing was subtracted.

# %%
ids = rng.integers(5, model.config.vocab_size, (2, 9))
for parameter in attachment.named_parameters().values():
    parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape).astype(parameter.dtype)
beside = model(ids).logits.data
before = model.blocks[0].attn.q.weight.data.copy()
attachment.merge()
merged = model(ids).logits.data
attachment.unmerge()
print("largest difference merged against beside:", np.abs(merged - beside).max())
print("W is W again, bit for bit:", np.array_equal(model.blocks[0].attn.q.weight.data, before))

# %% [markdown]
# ## DoRA: length and direction apart
#
# Liu et al. (figure 2) looked at how much the *length* of a column of W and its *direction* change in training: in LoRA both
# change much or both little, in full fine-tuning not so. DoRA gives the length a number of its own, m. With the sum Z = W + s U
# Vᵀ and c_j the length of its column j,
#
# $$W' = m \odot Z / c, \qquad m_j = |W_j| \text{ at the start.}$$

# %%
#@exercise 08.5 minipeft.methods.dora:DoRALinear.lengths
#@ Return c (D_out,), a Tensor: the lengths of the columns of W + s U V^T, through which gradients reach U and V.
#@ `self.base_weight` is the array W. Where `self.detach_norm` is true, return the same numbers as a constant, through which
#@ none do. (The package avoids forming U V^T; you may form it.)
from minipeft.methods import DoRA

other = load_pretrained("toy:encoder", task="classify", labels=("a", "b"), rng=rng)
dora = attach(other, DoRA(rank=2, alpha=4), rng=rng)
first = next(iter(dora.wrappers.values()))
print("lengths at the start equal m:", np.array_equal(first.lengths().data, first.m.data))

# %% [markdown]
# ## Where it breaks
#
# - A rank above what the task needs costs time and gains nothing; above the smaller side of the matrix it is refused.
# - α is not the scale. Doubling the rank and forgetting α halves s: a run that "got worse with a larger rank" often did just
#   that.
# - A change of low rank cannot teach everything. Where the model must learn much that is new (another language, say), full
#   fine-tuning is ahead (Biderman et al., 2024, on code and mathematics).
# - Adapted query maps alone learn less than query and value maps with half the rank each (Hu et al., section 7.1).
#
# ## Read the package's own file
#
# `minipeft/methods/lora.py` is about a hundred lines. Which line makes the identity at the start? Why does `merged_arrays`
# return the bias unchanged? What does `rows` have to do with rows of one batch that belong to different customers? Then
# `dora.py`: which functions of `LoRALinear` does `DoRALinear` keep as they are, and which must it write anew?
#
# ## Sources
#
# - Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, *LoRA*, ICLR 2022, arXiv:2106.09685: sections 4.1 (the method), 7.1 and 7.2
#   (which maps, which rank).
# - Kalajdzievski, 2023, arXiv:2312.03732: the scale α / √R.
# - Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, *DoRA*, ICML 2024, arXiv:2402.09353: sections 4.1 and 4.3.
# - Biderman et al., *LoRA Learns Less and Forgets Less*, TMLR 2024, arXiv:2405.09673.
