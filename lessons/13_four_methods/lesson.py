# %% [markdown]
# # Lesson 13. The four methods compared
#
# **Why.** You know four ways to fine-tune with few parameters: adapters, LoRA, prefixes, soft prompts. Now somebody gives you a
# model, a thousand customers and one server, and asks: which one, how large, and what will it cost? Lectures answer with a table:
# the order of the parameter count, a bound for its share ("LoRA: less than 0.1 %"), strengths, drawbacks, when to use it.
#
# This lesson makes that table itself. The counts are computed and not believed, each bound gets the size up to which it is true,
# and each word of praise or blame stands beside what was measured, or beside the remark that nobody has measured it here.
#
# You need lessons 8 (LoRA), 9 (adapters), 11 (prefixes) and 12 (soft prompts). 50 minutes.

# %% [markdown]
# ## The idea in a picture
#
# One frozen model, and the places where each method puts what it trains. d is the width, L the number of blocks, r a bottleneck
# or a rank, n the number of virtual tokens, T the tokens of a text:
#
#        [ p p p | x x x x x ]        soft prompt: n vectors before the words, once         n d
#             │  (n + T, d)
#        ┌────┴───────────────┐
#        │  q    k    v       │       LoRA: U (d, r) and V (d, r) beside q and v            2 · 2 d r
#        │     [p_K] [p_V]    │       prefix: n keys and n values before the words'         2 n d
#        │   attention, out   │
#        │      join          │       adapter: (d, r), (r, d), two biases                   2 d r + r + d
#        │   feed-forward     │
#        │      join          │       adapter: once more                                    2 d r + r + d
#        └────┬───────────────┘
#           L times                   (the soft prompt is the only one that is not in every block)

# %% [markdown]
# ## The equation, derived
#
# Add up the right side of the picture over the L blocks:
#
# $$\text{adapter } 2L(2dr + r + d), \qquad \text{LoRA } 4drL, \qquad \text{prefix } 2dnL, \qquad \text{soft prompt } dn .$$
#
# The table of the lectures writes Θ(d r L), Θ(d r L), Θ(d n L), Θ(d n). Θ (theta) means *grows in proportion to*: factors such as
# 4 and smaller terms such as the biases are left out.
#
# For the share, compare with the model. A block has four maps (d, d) in attention and two of d · 4d in the feed-forward network,
# 12 d² together. Against the 12 d² L weights of all blocks
#
# $$\frac{4drL}{12d^2L} = \frac{r}{3d} \ \text{(adapter, LoRA)}, \qquad
# \frac{2dnL}{12d^2L} = \frac{n}{6d} \ \text{(prefix)}, \qquad \frac{dn}{12d^2L} = \frac{n}{12dL} \ \text{(soft prompt)} .$$
#
# So a share is no property of a method: it falls with the width. A bound such as "less than 0.1 %" says r < 0.003 d, and that is
# a statement on the model as much as on the method.

# %%
import numpy as np

from minipeft.compare.plan import Setting
from minipeft.compare.plan_four import four
from minipeft.compare.plan_models import load_shape
from minipeft.learn import fast, predict, show
from minipeft.methods import METHODS

bert = load_shape("bert-base")  # the sizes that were published: 12 blocks of width 768; no weight is read
lora = METHODS["lora"](rank=8).count(bert.config)
predict("BERT-base has d = 768. LoRA of rank 8 is told to be less than 0.1 % of a model. Is it?",
        f"No: r / (3 d) = 8 / 2304 = {8 / 2304:.2%} of the blocks; {lora:,} of {bert.total:,} is {lora / bert.total:.2%} of the "
        "whole.")

# %% [markdown]
# ## Exercises
#
# First the counts. A model of this lesson's own: a plain encoder or decoder whose keys and values are as wide as its states.

# %%
#@exercise 13.1 lesson:four_counts
#@ Return how many numbers each of the four methods trains, as a tuple of four whole numbers in this order: adapters at both joins
#@ of every block (with their biases), LoRA on the query and value maps, a prefix in every block, a soft prompt. The head is left
#@ out.
### BEGIN SOLUTION
def four_counts(d, layers, r, n):
    """Trained parameters of (adapter, LoRA, prefix, soft prompt): width d, ``layers`` blocks, bottleneck or rank r, n tokens."""
    adapter = 2 * layers * (2 * d * r + r + d)
    lora = layers * 2 * r * (d + d)
    prefix = layers * 2 * n * d
    return adapter, lora, prefix, n * d
### END SOLUTION


NAMES = ("houlsby", "lora", "prefix", "prompt")
FIELDS = {"houlsby": "bottleneck", "lora": "rank", "prefix": "num_virtual_tokens", "prompt": "num_virtual_tokens"}
ours = four_counts(768, 12, 8, 20)
for name, count in zip(NAMES, ours):
    theirs = METHODS[name](**{FIELDS[name]: 8 if name in ("houlsby", "lora") else 20}).count(bert.config)
    print(f"{name:8s} {count:9,} by the formula, {theirs:9,} by the package: {count / bert.total:.3%} of BERT-base")

# %% [markdown]
# ### Up to which size is a bound true?
#
# The share rises with r or n. So there is a largest size with a share below the bound, and it can be found by halving: take an
# interval whose lower end is below the bound and whose upper end is not, look at the middle, and keep the half in which this
# stays so. A million sizes take twenty looks.

# %%
#@exercise 13.2 minipeft.compare.plan_four:largest_below
#@ Return the largest whole number k from 1 to `limit` with share(k) < bound; `share` is a function that rises with k. 0 where not
#@ even share(1) is below; None where share(limit) still is, so that all sizes are. `limit` is None where there is none. Answers
#@ can be millions, so halve an interval, and do not ask `share` for a size above `limit`.
shapes = {name: load_shape(name) for name in ("bert-base", "gpt2-medium", "t5-v1_1-xl", "llama-7b", "gpt3-175b")}
rows = {name: four(shape, {}, Setting()) for name, shape in shapes.items()}
heads = [f"{r.character.title} < {r.character.bound:.2%}" for r in rows["bert-base"]]
print(f"{'':12s} {'numbers':>16s}  " + "  ".join(head.ljust(20) for head in heads))
for name, found in rows.items():
    cells = [f"all, {r.character.letter} <= {r.limit:,}" if r.largest is None else f"{r.character.letter} <= {r.largest:,}"
             for r in found]
    print(f"{name:12s} {shapes[name].total:16,}  " + "  ".join(cell.ljust(20) for cell in cells))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.6))
totals = [shape.total for shape in shapes.values()]
for place, character in enumerate(r.character for r in rows["bert-base"]):
    shares = [100 * found[place].row.share_without_head for found in rows.values()]
    line, = axes.plot(totals, shares, "o-", label=f"{character.title}, {character.letter} = {rows['bert-base'][place].size}")
    axes.axhline(100 * character.bound, color=line.get_color(), linestyle=":", linewidth=1)
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlabel("parameters of the model")
axes.set_ylabel("share trained (%)")
axes.legend(fontsize=8)
kept = {name: [r.character.title for r in found if r.row.share_without_head < r.character.bound] for name, found in rows.items()}
show(figure, "shares", "Share of the parameters that is trained, against the size of the model, with the usual bound of each "
     "method as a dotted line. Below their bound lie, "
     + "; ".join(f"in {name}: {', '.join(k)}" for name, k in kept.items()) + ".")

# %% [markdown]
# Read a column of the table downwards. Adapters keep their bound of 5 % on every model here: it is fifty times looser than
# LoRA's, although both counts have the same leading term, 4 d r L. LoRA's 0.1 % is true at r = 8 for LLaMA-7B and GPT-3, and for
# no smaller model of this list. So is the prefix's at n = 20. A soft prompt of 20 keeps its bound everywhere. (T5 is an
# encoder-decoder: the blocks of its decoder have a second attention, at which a prefix stands as well.)
#
# ## What a thousand tasks take on disk

# %%
from minipeft.compare.plan_command import bytes_text

for name in ("bert-base", "gpt3-175b"):
    print(f"{name}: 1,000 whole models {bytes_text(rows[name][0].row.copies_bytes)}; 1,000 tasks by "
          + ", ".join(f"{r.character.title} {bytes_text(r.row.tasks_bytes)}" for r in rows[name]))

# %% [markdown]
# In float32, with the task's head where there is one. On BERT-base the head's 1,538 numbers are a tenth of what a soft prompt
# stores.
#
# ## What a step costs, and what inference costs
#
# Nearly all the time goes into products. A product of `rows` rows with a map of `size` entries takes 2 · rows · size operations
# (one multiplication and one addition for each). In the backward pass the same map asks for up to two more of the same cost
# (lesson 1):
#
# - dx = g Wᵀ, if something *below* it is trained, so that the gradient must go on;
# - dW = xᵀ g, if W *itself* is trained.
#
# Full fine-tuning does both: three products in all. With a frozen map there are two, and under a head alone only one. That is why
# no method of this lesson can halve the time of a step, however few numbers it trains.

# %%
predict("A method trains 0.01 % of the numbers, some in the first block. What share of full fine-tuning's operations is a step?",
        "About two thirds: the forward pass and dx remain, only dW goes. The number of trained parameters hardly matters.")

# %%
#@exercise 13.3 minipeft.compare.plan_cost:Walk.product
#@ Add the operations of one product to `self.forward` and `self.backward`: `rows` rows times a matrix of `size` entries. `node`
#@ is true where the rows have a gradient (something below is trained), `trained` where the matrix is. Where `own` is true the
#@ product is the method's own, and its forward operations also go into `self.extra`. Return nothing.
from minipeft.compare.plan_cost import Walk

walks = {name: Walk(bert, METHODS[name](), batch=16, length=128) for name in ("full", "head", *NAMES)}
whole = walks["full"].forward + walks["full"].backward
print("operations, with full fine-tuning's as 1:")
for name, walk in walks.items():
    print(f"{name:8s} a step {(walk.forward + walk.backward) / whole:.2f}, its forward pass alone "
          f"{walk.forward / walks['full'].forward:.3f}" + (", merged 1.000" if name == "lora" else ""))

# %% [markdown]
# Measured on MiniLM with SST-2 (README.md): a step of full fine-tuning takes 451 ms, of the head alone 139 (0.31), LoRA 326
# (0.72), adapters 328 (0.73), a prefix 332 (0.74), and a soft prompt 566 (1.25): its 20 virtual tokens are as many again as such
# a text has, so that every product has twice the rows. The two thirds are nearly there; what is above is the work that is not a
# product.

# %% [markdown]
# ## What the numbers show: score against parameters, on the toy world
#
# All four at three sizes each, on 1,000 reviews in four classes. Each method has the learning rate that suits it (`rates.py`):
# one rate for all would compare the rate and not the methods.

# %%
import tempfile

from minipeft.compare.rates import default_lr
from minipeft.compare.run import Run, execute
from minipeft.compare.sources import written

print("learning rates:", {name: default_lr(name, "toy:encoder") for name in ("full", "head", *NAMES)})
sizes = {name: (4,) if fast() else (1, 4, 16) for name in NAMES}
points = []
with tempfile.TemporaryDirectory() as folder:
    data = written("toy:rating", folder)
    for name in ("full", "head", *NAMES):
        for size in sizes.get(name, (None,)):
            run = Run("toy:encoder", data, name, options={FIELDS[name]: size} if size else {}, epochs=1 if fast() else 4,
                      train_limit=64 if fast() else None)
            result = execute(run, f"{folder}/{name}-{size}", quiet=True, measured=True)
            took = result["inference"]["merged_ratio"] or result["inference"]["unmerged_ratio"]
            points.append({"name": f"{name} {size or ''}".strip(), "method": name, "cost": result["trainable"],
                           "score": result["score"], "step": result["step_ms"], "inference": took})

# %%
#@exercise 13.4 minipeft.compare.report_facts:pareto
#@ Return a list of booleans, one for each of the `points` [(cost, score)] and in their order: whether it is on the Pareto front.
#@ A point is off the front where another costs no more and scores no worse, and is strictly better in one of the two. Equal
#@ points stand or fall together. Where `higher` is false lower scores are better. An empty list gives an empty one.
from minipeft.compare.report_facts import pareto

front = pareto([(p["cost"], p["score"]) for p in points])
predict(f"Six methods, {len(points)} runs. How many are on the front, and is full fine-tuning among them?",
        f"{sum(front)} of {len(points)}; full fine-tuning is "
        + ("on it." if front[0] else "off it: something smaller is as good."))
print(f"{'':12s} {'trained':>9s} {'accuracy':>9s} {'step':>9s} {'inference':>10s}")
for p, on in zip(points, front):
    print(f"{p['name']:12s} {p['cost']:9,} {p['score']:9.3f} {p['step']:6.1f} ms {p['inference']:9.2f}x {'front' if on else ''}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.6))
for name in ("full", "head", *NAMES):
    own = [p for p in points if p["method"] == name]
    axes.plot([p["cost"] for p in own], [p["score"] for p in own], "o", label=name)
edge = sorted((p["cost"], p["score"]) for p, on in zip(points, front) if on)
axes.step([cost for cost, _ in edge], [score for _, score in edge], where="post", color="grey", linewidth=1)
axes.set_xscale("log")
axes.set_xlabel("trained parameters, with the head")
axes.set_ylabel("accuracy")
axes.legend(fontsize=8)
best = sorted((p for p, on in zip(points, front) if on), key=lambda p: p["cost"])
show(figure, "front", "Accuracy against trained parameters; on the Pareto front, from the fewest parameters on: " + ", ".join(
    f"{p['name']} ({p['cost']:,}, {p['score']:.2f})" for p in best) + ".")

# %% [markdown]
# What is off the front is not worth having here: something smaller is as good. But look at the distances before you believe an
# order. This is one seed and 500 test texts: a difference of two points of accuracy is no difference, and a front of noisy points
# flatters the lucky. What is larger than the noise: LoRA and adapters are about level, a prefix needs more numbers for less, and
# a soft prompt is hardly above the head alone, however long it is. It learns slowly, and four epochs are few for it (finding 4 in
# benchmarks/README.md gives it ten).
#
# On a real model (README.md, MiniLM on SST-2, three seeds; early exit left aside) the front goes from the head, 0.648 with 770
# numbers, over the soft prompt, 0.726 with 8,450, (IA)³, 0.805 with 14,594, and LoRA, 0.843 with 74,498, to full fine-tuning,
# 0.844 with 22.7 million. Adapters (0.827 with 153,026) and the prefix (0.804 with 92,930) lie behind it there. On another task
# the order may be another.

# %% [markdown]
# ## What is told, and what was measured
#
# The words of the lectures stand in `plan_four.py`; `minipeft plan --four` prints them. Here they are once more, method by
# method, each beside what we know. *R*: README.md, MiniLM on SST-2. *B*: benchmarks/README.md, the section on inference. *F*: the
# numbered findings there, on small models. *here*: this lesson.

# %%
from minipeft.compare.plan_command import Page
from minipeft.compare.plan_four import FOUR


def scores_of(name):
    """What this lesson measured of a method."""
    return "here " + ", ".join(f"{p['score']:.2f}" for p in points if p["method"] == name)


def stored(name):
    """What a task takes on disk, on BERT-base."""
    return f"{next(r for r in rows['bert-base'] if r.character.method == name).row.task_bytes / 1e6:.2f} MB"


KINDS = ("strengths", "drawbacks", "models", "conditions")
MEASURED = {
    "houlsby": (
        ("partly", f"0.827, full 0.844 (R); {scores_of('houlsby')}, full {points[0]['score']:.2f}. With few data: not measured"),
        ("holds", "1.11 times the base's time at a batch of 1, 1.04 at 16 (B); at width 96 1.23 at 1 and 1.09 at 128 (F10)"),
        ("not tested", "only on encoders of 0.4 and 23 million numbers"),
        ("holds", f"a task on BERT-base takes {stored('houlsby')}, a copy 438 MB; two places in each block must be open")),
    "lora": (
        ("holds", f"merged 1.00 times the base's time (B, F10); 0.843, full 0.844 (R); {scores_of('lora')}"),
        ("holds", "q and v beat q alone by 5 points at the same count (F2); rank 1 has three quarters of what rank 32 adds to a "
                  "head (F1); not merged it takes 1.02 (B) to 1.18 (F10) times the base's time at a batch of 1"),
        ("not tested", "no large decoder was at hand; the 4-bit base is built (nf4.py)"),
        ("holds", "the base comes back bit for bit after unmerging (lesson 8)")),
    "prefix": (
        ("partly", f"6 points above a soft prompt of its length (F4); {scores_of('prefix')}. A prefix for each row is not built "
                   "here, and no large model that writes was at hand"),
        ("partly", "72.7 at n = 1, 76.0 at 32, and at 64 75.3, no lower than the noise (F5); "
                   "1.01 and 1.09 times the base's time (B)"),
        ("partly", "on an encoder 0.804 at n = 20, behind LoRA and adapters (R)"),
        ("holds", "it takes positions: at most n = 511 on BERT-base, and then one is left to the text")),
    "prompt": (
        ("holds", f"34 kB a task, LoRA 300 kB, a copy 91 MB (R); {stored('prompt')} on BERT-base"),
        ("holds", f"0.726, full 0.844 (R); {scores_of('prompt')}; 1.22 and 1.44 times the base's time at 64 tokens (B), 1.93 on "
                  "short texts (R)"),
        ("not tested", "LoRA is ahead by 5 points at width 48 and by 5 at 192 (F3): nothing closes at these sizes"),
        ("holds", "after three epochs it is where the head alone is, so that F3 and F4 give it ten; its learning rate is 20 "
                  "times full fine-tuning's (rates.py)")),
}
page = Page()
for character in FOUR:
    page.table((character.title, "what is told", "verdict", "what was measured"),
               [(kind, getattr(character, kind), *MEASURED[character.method][place]) for place, kind in enumerate(KINDS)],
               words=("what is told", "what was measured"))
    page.line()

# %% [markdown]
# The *verdict* is on what could be tried here; "not tested" is no "no". So which one? Where no time may be lost and one task runs
# at a time: LoRA, merged. Where many tasks share a batch: LoRA beside the maps (`mixed` in `attach.py` gives each row its own),
# or prompts, if the model is very large. Where tasks build on each other: adapters. Where nothing is known: LoRA first, with the
# head alone as a control.
#
# ## The whole table, by yourself

# %%
#@exercise 13.5 minipeft.compare.plan_four:four
#@ Return four `FourRow(character, size, slope, constant, row, largest, limit, slower)`, one for each `Character` in `FOUR`.
#@ `make_method(character.method, options, shape)` is the method, `character.size` the name of its field that holds r or n, and
#@ `size` the value of that field. count(replace(method, **{character.size: k}), shape) is the count at size k, which is slope k
#@ + constant. A share is the count over (`shape.total` + the count); `largest_below(character.bound, share, limit)`,
#@ `limit_of(method, shape)` and `plan(method, shape, setting)` give `largest`, `limit` and `row`. `slower`: by what share
#@ row.inference_flops is above the `forward` of the base, a `Walk(shape, METHODS["head"](), batch, length, target_length)` with
#@ the numbers of `setting`.
from minipeft.compare.plan_command import show_four

show_four(Page(), four(load_shape("gpt2-medium"), {"rank": 4}, Setting(batch=1, length=64)))

# %% [markdown]
# ## Where it breaks
#
# - **A share of what?** Of the blocks, of the whole model, with the head or without: for small models these differ by factors.
#   Papers do not always say which they print; `minipeft plan --papers` computes theirs from their own settings, and some do not
#   come out.
# - **Parameters are not memory.** In training the activations are most of what is added: MiniLM peaks at 526 MB with LoRA and at
#   613 MB with a soft prompt that trains a ninth of the numbers (README.md).
# - **Operations are not time.** At width 384 and 64 tokens the products predict 1.041 times the base's time for adapters, 1.008
#   for a prefix, 1.324 for a soft prompt; measured were 1.113, 1.006 and 1.222 at a batch of 1, and 1.044, 1.094 and 1.437 at 16
#   (benchmarks/README.md). And a soft prompt's cost depends on the text: 20 tokens are a sixth of 128, and as many again on 20.
# - **A comparison at one size** compares sizes: a prefix of 64 looks hopeless in finding 5, one of 8 does not. Tune each method's
#   size and learning rate with the same effort, on dev and not on test.
#
# ## Read the package's own file
#
# `minipeft/compare/plan_four.py`: a hundred lines, a third of them words. Why does `four` get the slope from two counts, and does
# not have a formula for each method? Why has LoRA a `limit` and adapters none? What would `largest_below` give if `share` fell?
# Then the head of `plan_cost.py`, which says what autograd keeps for each kind of module, and `Walk.join`: what does Pfeiffer's
# adapter keep twice?
#
# ## Sources
#
# - Houlsby et al., ICML 2019, arXiv:1902.00751: section 2.1; Hu et al., ICLR 2022, arXiv:2106.09685: sections 4.1 and 5.1 (counts
#   of adapters, prefixes and LoRA side by side); Li and Liang, ACL 2021, arXiv:2101.00190: sections 4 and 7; Lester, Al-Rfou and
#   Constant, EMNLP 2021, arXiv:2104.08691: sections 2 and 3.1 (the size of the model).
# - Liu, Ji, Fu, Tam, Du, Yang, Tang, *P-tuning v2*, ACL 2022, arXiv:2110.07602: prefixes for encoders.
# - He, Zhou, Ma, Berg-Kirkpatrick, Neubig, ICLR 2022, arXiv:2110.04366: what the four have in common.
# - Ding et al., *Parameter-efficient fine-tuning of large-scale pre-trained language models*, Nature Machine Intelligence 5,
#   2023: the four and others on a hundred tasks.
