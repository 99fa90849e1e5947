# %% [markdown]
# # Lesson 16. A real model and real data
#
# **Why.** Somebody gives you a folder with a pre-trained model and a table of sentences with their classes, and asks five things.
# What will it cost? How good is it? How sure are you of that? Where is the result? And will my own program, which knows nothing
# of yours, load it? Each lesson so far has answered a part. Here you go the whole way, once, and at its end lies a file that HF
# PEFT, the library most people use for this, loads and runs.
#
# The way is the same for a model of 400 thousand numbers and for one of 22 million. If you do nothing, this lesson takes
# `toy:encoder` and a task of the toy world. To take a real model and real data, name their folders before you start:
#
#     MINIPEFT_REAL_MODEL=models/minilm MINIPEFT_REAL_DATA=data/sst2 python lessons/16_capstone/lesson.py
#
# The model is a *Hugging Face folder* of a BERT, GPT-2 or LLaMA model: `config.json` (its shape), `model.safetensors` (its
# numbers) and `tokenizer.json` (how a text becomes numbers). The data is a folder with `train.tsv` and `dev.tsv`, whose columns
# are `text` and `label` (`text2` between them, where the texts come in pairs). With MiniLM and SST-2 the whole lesson takes three
# and a half to seven minutes, on the toy world less than one.
#
# You need lesson 5 (what a step of fine-tuning is), lesson 8 (LoRA), and for the choice among methods lessons 10 (few numbers)
# and 13 (the others, and what they cost). 90 minutes.

# %% [markdown]
# ## The idea in a picture
#
#       a model's folder                                    texts with their classes
#       config.json ────────► plan: what will it cost?              │
#       tokenizer.json ───────────────────┬─────────────────────────┘
#       model.safetensors                 ▼
#              │              batches of nearly equal length
#              ▼                          │
#       base, frozen, and LoRA ◄── steps ─┘
#              │
#              ├────► predictions ────► a score, and how far to trust it
#              │
#              └────► adapter_config.json, adapter_model.safetensors ────► read back, bit for bit
#                                                                    └───► HF PEFT
#
# An *adapter* in this lesson is what the file holds: the trained numbers of a method, without the base.

# %%
import os
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np

from minipeft.compare.sources import read
from minipeft.data import Tokenizer, make_batches
from minipeft.learn import fast, predict, real_model, show
from minipeft.training import AdamW, Classification, decay_groups, factor, gradient_norm

MODEL = real_model() or "toy:encoder"
DATA = os.environ.get("MINIPEFT_REAL_DATA") or "toy:sentiment"
SEEDS, EPOCHS, TRAIN_LIMIT = ((0, 1), 1, 64) if fast() else ((0, 1, 2), 2, 2000)

dataset, tokenizer = read(DATA, "classify"), Tokenizer.from_folder(MODEL)
for split, examples in dataset.splits.items():
    shares = np.bincount([e.label for e in examples], minlength=len(dataset.labels)) / len(examples)
    print(f"{split:6s}{len(examples):6,} texts:", ", ".join(f"{s:.2f} {label}" for label, s in zip(dataset.labels, shares)))
print("the first:", repr(dataset.splits["train"][0].text), "is", dataset.labels[dataset.splits["train"][0].label])

# %% [markdown]
# Look at your data before anything else: the sizes of the classes, a few texts, how long they are. The split `train` is what
# the model learns from. `dev` is for choices: which method, which learning rate. `test` is for the score that you report, and
# is looked at once. Where there is no `test`, as in this form of SST-2, the score is on `dev`; that is honest only as long as
# nothing was chosen by it. Here nothing is chosen by the score: the number of epochs and the learning rate are fixed
# beforehand. (The rate is the package's default, which was found on MiniLM; with MiniLM the claim is a little weaker than it
# sounds.)

# %% [markdown]
# ## Batches, and what padding costs
#
# The texts of a batch stand in one array (B, T), and T is the longest of them. The rest is *padding*: places that the model
# computes and nobody reads. With lengths $n_1, \dots, n_B$ the share that is computed for nothing is
#
# $$1 - \frac{\sum_i n_i}{B \, \max_i n_i} .$$
#
# It is zero where all are equally long. So texts of nearly equal length should go together. But what is learned from should come
# in a random order, and the same texts should not meet in every epoch. The usual compromise: shuffle, cut the shuffled row into
# *pools* of many batches, sort within each pool by length, cut it into batches, and shuffle the batches.

# %%
from minipeft.compare.run import load_config, longest

LENGTH = 128  # tokens at most; a model with fewer positions allows fewer
work = Classification(tokenizer, dataset, longest(LENGTH, load_config(MODEL)), batch_size=16, train_limit=TRAIN_LIMIT)
lengths = np.array([len(e.ids) for e in work.encodings["train"]])
print(f"{len(lengths):,} texts to learn from, {lengths.min()} to {lengths.max()} tokens long, half of them at most "
      f"{np.median(lengths):.0f}; {work.truncated} of all texts were cut")


def padded(batches):
    """The share of padding in batches of indices."""
    return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)


rng = np.random.default_rng(0)
at_random = np.array_split(rng.permutation(len(lengths)), work.number_of_batches())
in_pools = make_batches(work.encodings["train"], 16, rng)
predict("Sixteen texts are drawn at random for each batch. Which share of what the model computes is padding?",
        f"{padded(at_random):.2f}; it is {padded(in_pools):.2f} where texts of nearly equal length go together.")

# %%
#@exercise 16.1 minipeft.data.batching:make_batches
#@ Return a list of index arrays, one for each batch; `encodings[i].ids` are the tokens of example i. With an rng: shuffle
#@ (rng.permutation), sort by length within each pool of POOL * batch_size examples, cut into batches, and put the batches in a
#@ random order. Without one: sort all, the shortest first, and keep the batches in that order.
for indices in in_pools[:3]:
    print("a batch with the lengths", lengths[indices])

# %%
figure, axes = plt.subplots(figsize=(6, 3))
sides = {"at random": at_random, "in pools": in_pools}
for place, (name, batches) in enumerate(sides.items()):
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    axes.barh(place, lengths.sum(), color="tab:blue", label="tokens" if place == 0 else None)
    axes.barh(place, computed - lengths.sum(), left=lengths.sum(), color="tab:orange", label="padding" if place == 0 else None)
axes.set_yticks(range(len(sides)), list(sides))
axes.set_xlabel("places that are computed in one epoch")
axes.legend()
told = (f"{lengths.sum() / (1 - padded(batches)):,.0f} places {name} ({padded(batches):.0%} padding)"
        for name, batches in sides.items())
show(figure, "padding", f"For {lengths.sum():,} tokens an epoch computes " + ", ".join(told))

# %% [markdown]
# In *evaluation* nothing is learned, the order is of no account, and all can be sorted at once. This has a price that exercise
# 16.3 makes you pay.

# %% [markdown]
# ## What will it cost? Plan before you train
#
# The shape of the model and the formula of the method say what is trained, stored and multiplied; no weight has to be read. For
# LoRA on maps (D_in, D_out), say, $\sum R\,(D_{in} + D_{out})$ numbers are trained. AdamW keeps two more for each. A step of n
# tokens costs 2 n operations (a product and a sum) for each entry of a map forward, as many again for the gradient of the map's
# input, and for a *trained* map as many once more for its own.
#
# How fast this computer multiplies can be measured in a moment; `flops` is that rate, operations a second.

# %%
from minipeft.compare.plan import Setting, make_method, plan
from minipeft.compare.plan_command import bytes_text, time_text
from minipeft.compare.plan_models import load_shape


def matrix_rate(repeats=5):
    """Operations a second of a product of two matrices in float32: the best of a few."""
    a, b, best = np.ones((512, 384), np.float32), np.ones((384, 1536), np.float32), np.inf
    for _ in range(repeats + 1):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 384 * 1536 / best


mean_length = round(np.mean([lengths[batch].max() for batch in sides["in pools"]]))
shape = load_shape(MODEL, "classify", len(dataset.labels))
setting = Setting(batch=16, length=mean_length, flops=matrix_rate(), tokens=EPOCHS * work.number_of_batches() * 16 * mean_length)
print(f"{os.path.basename(MODEL)}: {shape.total:,} numbers; a step is 16 x {mean_length} tokens, "
      f"at {setting.flops / 1e9:.0f} billion operations a second")
print(f"{'method':10s}{'trained':>12s}{'one task':>10s}{'memory':>10s}{'a step':>10s}{'training':>10s}  costs at inference")
rows = {}
for name in ("full", "head", "bitfit", "ia3", "lora", "houlsby", "prefix", "prompt"):
    try:
        rows[name] = row = plan(make_method(name, {}, shape), shape, setting)
    except ValueError as error:  # a LLaMA has no biases, for one
        print(f"{name:10s}{error}")
        continue
    cells = bytes_text(row.task_bytes), bytes_text(row.peak_bytes), time_text(row.step_seconds), time_text(row.training_seconds)
    after = "nothing" if row.merges else "something"
    print(f"{name:10s}{row.trainable:12,}" + "".join(f"{cell:>10s}" for cell in cells) + f"  {after}")

# %% [markdown]
# *One task* is the file for one task, its head included; *memory* counts arrays only; a *step* counts products of matrices only,
# so that the real one takes longer.
#
# Now choose. Somebody wants a thousand such adapters (small files) and the base's speed at inference (the method merges). Of what
# is left, the one with the most numbers to train has the most room to learn.

# %%
fits = {name: row for name, row in rows.items() if row.merges and row.task_bytes < 0.05 * rows["full"].task_bytes}
chosen = max(fits, key=lambda name: fits[name].trainable)
print(f"files below 5 % of the model, and nothing at inference: {', '.join(fits)}; the most to train: {chosen}")

# %% [markdown]
# A plan knows costs, not scores. That this choice is also a good one the tables of the package's benchmarks show; at the end you
# see it for your own data.

# %% [markdown]
# ## One step, on as many batches as you like
#
# The loss is the mean over N examples. Where they do not fit into memory at once they are cut into batches of $n_1, n_2, \dots$,
# and
#
# $$L = \frac{1}{N} \sum_b n_b L_b, \qquad \frac{dL}{dp} = \sum_b \frac{n_b}{N} \, \frac{dL_b}{dp}, \qquad N = \sum_b n_b .$$
#
# Backward *adds* to a parameter's gradient. So one calls backward for each batch with its share, and only then steps: *gradient
# accumulation*. With equal shares in place of $n_b / N$ a short last batch would count too much.
#
# Now and then a batch has a gradient many times longer than the others, and one step along it undoes a hundred. *Clipping by
# norm* (Pascanu et al., section 3.2) keeps the direction and bounds the length: with $|g|$ the length of **all** gradients
# together,
#
# $$g \leftarrow g \cdot \min(1, c / |g|) .$$

# %%
#@exercise 16.2 lesson:train_step
#@ Make one step on the batches of `group` as if they were one; return the mean loss over all their examples, a float.
#@ `work.loss(model, batch)` is a Tensor, the mean over the batch's examples; `work.weight(batch)` is their number.
#@ `gradient_norm(parameters)` is |g|, and `clip` is c, where 0 stands for no clipping. `optimizer.zero_grad()` forgets the
#@ gradients; `optimizer.step(scale)` multiplies each by `scale` and steps.
### BEGIN SOLUTION
def train_step(work, model, parameters, optimizer, group, clip):
    """L = sum_b (n_b / N) L_b;   g = dL/dp, times min(1, clip / |g|);   one step of the optimizer along it"""
    optimizer.zero_grad()
    total, mean = sum(work.weight(batch) for batch in group), 0.0
    for batch in group:
        share = work.loss(model, batch) * (work.weight(batch) / total)
        share.backward()
        mean += share.item()
    norm = gradient_norm(parameters)
    optimizer.step(min(1.0, clip / norm) if clip and norm > 0 else 1.0)
    return mean
### END SOLUTION


# %% [markdown]
# Everything else of a training loop stands around this function: epochs, a learning rate that rises in the first steps and then
# falls to zero (lesson 5), and a generator for every draw, so that the same seed gives the same adapter.

# %%
from minipeft import attach, load_pretrained
from minipeft.compare.rates import default_lr
from minipeft.methods import METHODS


def train(name, seed):
    """(model, attachment, losses, seconds of a step) of a fine-tuning by the method of this name."""
    rng = np.random.default_rng(seed)
    model = load_pretrained(MODEL, task="classify", labels=dataset.labels, rng=rng)
    attachment = attach(model, METHODS[name](), rng=rng)
    parameters, lr = attachment.named_parameters(), default_lr(name, MODEL)
    optimizer, losses, seconds = AdamW(decay_groups(parameters, weight_decay=0.01), lr), [], []
    total = EPOCHS * work.number_of_batches()
    for _ in range(EPOCHS):
        for indices in work.training_batches(rng):
            optimizer.lr = lr * factor("linear", len(losses), total, warmup=round(0.06 * total))
            model.train(rng)  # dropout on, drawn from rng
            started = time.perf_counter()
            losses.append(train_step(work, model, parameters.values(), optimizer, [work.collate(indices)], clip=1.0))
            seconds.append(time.perf_counter() - started)
    return model.eval(), attachment, losses, float(np.median(seconds))


model, attachment, losses, step = train(chosen, SEEDS[0])
print(f"{chosen}: loss {losses[0]:.3f} at the first step, {np.mean(losses[-8:]):.3f} over the last eight")
planned = rows[chosen]
predict(f"The plan: {chosen} trains {planned.trainable:,} numbers, and a step takes {time_text(planned.step_seconds)}. Which of "
        "the two is exact, and is the other too high or too low?",
        f"The count is exact: {attachment.trainable:,}. The time counts products of matrices alone and is too low: a step took "
        f"{time_text(step)}, {step / planned.step_seconds:.1f} times as long. The narrower the model, the larger that factor.")

# %% [markdown]
# ## What the numbers show: how good is it?
#
# A *score* is a number computed from predicted and actual classes. To predict, go through the texts in batches, turn the logits z
# into probabilities (softmax, in a form that no large logit breaks), and put each row where its text stands.

# %%
#@exercise 16.3 minipeft.training.work:Classification.predict
#@ Return probabilities (N, C), float64: row i is that of example i of `self.encodings[split]`, and C = len(self.labels). Take
#@ batches by make_batches without an rng, of any size. `self.collate(indices, split)` is a batch, `self.scores(model, batch)` its
#@ logits (B, C), a Tensor. Nothing may be recorded for a backward pass (`with no_grad():`).
split = "test" if "test" in dataset.splits else "dev"
actual = work.targets[split]
probabilities = work.predict(model, split)
print(f"{split}: {probabilities.shape[0]} rows of {probabilities.shape[1]} probabilities; "
      f"{np.mean(probabilities.argmax(axis=1) == actual):.3f} of them are right")

# %% [markdown]
# Which score suits? *Accuracy*, the share that is right, where the classes are about equally frequent and all errors equally bad.
# Of the sentences of CoLA (Warstadt et al.), 70 % are grammatical: who always says "grammatical" is right in 70 % of the cases
# and knows nothing. *F1* asks how well **one** class is found, say the defects among a thousand parts; it does not care how many
# of the others are recognised as such. *Matthews correlation* is the correlation of what is predicted with what is: 0 for anyone
# who says the same each time, or guesses blindly, and 1 for whoever is always right.
#
# Write each class as a row with a single 1, $P$ for the predicted and $A$ for the actual ones, N rows of C. With the covariance
# summed over the columns, $\mathrm{cov}(P, A) = \sum_k \sum_i (P_{ik} - \bar P_k)(A_{ik} - \bar A_k)$,
#
# $$\mathrm{MCC} = \frac{\mathrm{cov}(P, A)}{\sqrt{\mathrm{cov}(P, P)\,\mathrm{cov}(A, A)}}
#   = \frac{c\,s - \sum_k p_k a_k}{\sqrt{(s^2 - \sum_k p_k^2)(s^2 - \sum_k a_k^2)}} ,$$
#
# where of s examples c are right, and class k is predicted $p_k$ times and occurs $a_k$ times (Gorodkin, equation 8). The second
# form follows because $\sum_i P_{ik} A_{ik}$, summed over k, counts the right ones, and $\bar P_k = p_k / s$.

# %%
#@exercise 16.4 minipeft.training.metrics:matthews
#@ Return the Matthews correlation, a float. `predicted` and `actual` are sequences of N class numbers from 0 to classes - 1.
#@ `confusion(predicted, actual, classes)` is a table (C, C) of counts, row = actual class, column = predicted class. Where all
#@ predictions are the same, or all classes, nothing varies and the correlation is 0.
from minipeft.training import accuracy, f1, matthews

answers = np.array([1] * 70 + [0] * 30)
for name, guess in (("always yes", np.ones(100, int)), ("knows a little", np.array([1] * 60 + [0] * 10 + [1] * 20 + [0] * 10))):
    found = [f"{score.__name__} {score(guess, answers, 2):.2f}" for score in (accuracy, f1, matthews)]
    print(f"{name:15s}", "   ".join(found))

# %% [markdown]
# Accuracy sees no difference between the two, and F1 even prefers the one who knows nothing. Matthews tells them apart.
#
# ## How sure are you?
#
# Another seed draws another head, another U and another order of the texts, and gives another score. Over k seeds with the
# standard deviation $\sigma$ the mean is known to about $\sigma / \sqrt{k}$, its *standard error*. That is one source of doubt.
# The other is that the n texts of the test set are a sample themselves: a share p of right answers among n is known to about
# $\sqrt{p (1 - p) / n}$, however many seeds there were.
#
# For two methods on the *same* texts more can be said. Where both are right or both wrong the texts say nothing about which is
# better; what counts is b, the number of texts that only the first got right, and c, the number that only the second did. The
# difference of the scores is $(b - c) / n$, with the standard error $\sqrt{b + c - (b - c)^2 / n} \, / \, n$ (the idea of
# McNemar's test).
#
# The head alone, on the frozen model, is what any method must beat.

# %%
METRIC = "accuracy" if max(np.bincount(actual)) < 0.65 * len(actual) else "matthews"
runs = {name: [] for name in ("head", chosen)}  # [(scores, predicted classes)] for each seed
for name in runs:
    for seed in SEEDS:
        trained = (model, attachment, losses, step) if (name, seed) == (chosen, SEEDS[0]) else train(name, seed)
        predicted = work.predict(trained[0], split).argmax(axis=1)
        scores = {metric: score(predicted, actual, len(dataset.labels)) for metric, score in
                  (("accuracy", accuracy), ("f1", f1), ("matthews", matthews))}
        runs[name].append((scores, predicted))
        print(f"{name:6s} seed {seed}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items()))

# %%
n, reported = len(actual), {name: np.array([scores[METRIC] for scores, _ in of_seeds]) for name, of_seeds in runs.items()}
for name, values in reported.items():
    p = np.mean([scores["accuracy"] for scores, _ in runs[name]])
    deviation, by_texts = values.std(ddof=1), (p * (1 - p) / n) ** 0.5
    print(f"{name:6s} {METRIC} {values.mean():.3f} ± {deviation:.3f} over {len(SEEDS)} seeds (standard error "
          f"{deviation / len(SEEDS) ** 0.5:.3f}); {n} texts tell an accuracy to ± {by_texts:.3f}")
right = {name: of_seeds[0][1] == actual for name, of_seeds in runs.items()}  # of the first seed
b, c = int((right[chosen] & ~right["head"]).sum()), int((right["head"] & ~right[chosen]).sum())
difference, error = (b - c) / n, (b + c - (b - c) ** 2 / n) ** 0.5 / n
predict(f"{chosen} got {right[chosen].sum()} of {n} texts right, the head alone {right['head'].sum()}. Is that more than chance?",
        f"Only {chosen} is right on {b} texts, only the head on {c}: {difference:+.3f} ± {error:.3f}, "
        f"{abs(difference) / error if error else 0:.1f} standard errors. Beyond two it is hardly chance.")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
for place, (name, values) in enumerate(reported.items()):
    axes.plot([place - 0.15] * len(values), values, "o", color="tab:gray", label="one seed" if place == 0 else None)
    axes.errorbar(place, values.mean(), 2 * values.std(ddof=1) / len(values) ** 0.5, fmt="s", color="tab:blue", capsize=4,
                  label="mean ± 2 standard errors" if place == 0 else None)
axes.set_xticks(range(len(reported)), list(reported))
axes.set_xlim(-0.6, len(reported) - 0.4)
axes.set_ylabel(METRIC)
axes.legend()
show(figure, "seeds", f"{METRIC} on {split}: " + "; ".join(
    f"{name} {', '.join(f'{value:.3f}' for value in values)}, mean {values.mean():.3f}" for name, values in reported.items()))

# %% [markdown]
# **On a real model.** MiniLM (22.7 million numbers) on 2,000 sentences of SST-2, two epochs, the mean of the tokens, three seeds:
# the head alone reaches 0.800 on dev, LoRA 0.843, full fine-tuning 0.849 (benchmarks/README.md, "Every method on a real
# model"). With 872 sentences the head's score is known to ± 0.014 and the other two to ± 0.012, so that LoRA beats the head,
# and LoRA and full fine-tuning cannot be told apart. Through BERT's pooler, three seeds: LoRA 0.843 ± 0.004 here and 0.838 ±
# 0.007 in HF PEFT, which is the same within the noise.

# %% [markdown]
# ## The adapter as a file that others read
#
# HF PEFT keeps an adapter in two files. `adapter_model.safetensors` holds the arrays by name: the path of the module in HF's
# `transformers`, between `base_model.model.` and `lora_A.weight` or `lora_B.weight`. `adapter_config.json` says what they mean:
# the rank, α, which modules.
#
# There a linear map keeps its weight as (D_out, D_in), the transpose of ours, and its change is $(\alpha / R)\,B A$. Ours is
# $s\,U V^\top$. Transpose it:
#
# $$(s\,U V^\top)^\top = s\,V U^\top \quad\Longrightarrow\quad A = U^\top, \quad B = V, \quad \alpha = s R ,$$
#
# with A (R, D_in) and B (D_out, R).
#
# GPT-2 makes it harder. It computes queries, keys and values by *one* map, `c_attn`, (D, 3 D), and PEFT has one A and one B for
# it. Two separate adapters, of rank R_q on the queries and R_v on the values, become one of rank R_q + R_v:
#
#                       R_q    R_v
#                     ┌─────┬─────┐
#       A = ┌ U_qᵀ ┐   │ V_q │  0  │  D    queries
#           └ U_vᵀ ┘   │  0  │  0  │  D    keys: no adapter
#       (R_q+R_v, D)   │  0  │ V_v │  D    values
#                     └─────┴─────┘
#                           B
#
# There is one scale for both. PEFT computes it as α over *its* rank, which is larger now: the file's α grows with it. Where the
# two scales differ, B's second block takes the ratio in. Only where all three maps have an adapter, with one U and one scale,
# nothing need be stacked.

# %%
#@exercise 16.5 minipeft.interop.peft_lora:_fuse
#@ Return (A (R, D_in), B (D_out, R), scale) of a map that is one in PEFT and len(parts) maps here. A part is None, or (U (D_in,
#@ R_i), V (D_i, R_i), its scale), and widths[i] is D_i; the scale is that of the first part there is. Where all are there with
#@ the same U and scale, A is U transposed and B all V stacked; else stack the U and place blocks as pictured. Keep the type.
from minipeft import save_adapter
from minipeft.interop.peft_lora import _fuse

u, v = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
a, b_array, scale = _fuse([(u, v, 0.5), None, (u + 1, v, 1.5)], [4, 4, 4])
print("A", a.shape, "B", b_array.shape, "scale", scale, "and α in the file:", scale * a.shape[0])

# %%
place = tempfile.TemporaryDirectory()
reason = save_adapter(attachment, f"{place.name}/adapter", base=MODEL)
print("every library that has the method reads it" if reason is None else reason)
for name in sorted(os.listdir(f"{place.name}/adapter")):
    print(f"{name:30s}{os.path.getsize(os.path.join(place.name, 'adapter', name)):10,} bytes")

# %%
import json

from minipeft.data import files

with open(f"{place.name}/adapter/adapter_config.json", encoding="utf-8") as file:
    config = json.load(file)
stored = files.read_tensors(f"{place.name}/adapter/adapter_model.safetensors")
print({name: config[name] for name in ("peft_type", "task_type", "r", "lora_alpha", "target_modules")})
for name in sorted(stored)[:2]:
    print(name, stored[name].shape)

# %% [markdown]
# `task_type` is FEATURE_EXTRACTION where the classifier reads the mean of the tokens: `transformers` has no such classifier, so
# that the trained head lies in `head.safetensors` beside it. With a pooling that `transformers` has (BERT's pooler, a decoder's
# last token) it is SEQ_CLS, and the head is in the adapter's file. `minipeft.json` is a note for our own reader: the classes'
# names, the settings.
#
# `target_modules` deserves a look. Each word stands for every module whose name *ends* with it, between dots. "query" is
# unambiguous. "output.dense" in a BERT means the second map of the feed-forward, and the output map of attention as well.
#
# **Bit for bit.** An adapter that comes back nearly the same is one that you cannot debug. So: the same arrays, the same logits,
# to the last bit.

# %%
from minipeft.interop import load_with_adapter

again, loaded = load_with_adapter(MODEL, f"{place.name}/adapter")
before, after = attachment.arrays(), loaded.arrays()
batch = work.collate(np.arange(8), split)
logits = [m(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data for m in (model, again)]
print(f"{sum(np.array_equal(before[name], after[name]) for name in before)} of {len(before)} arrays the same bits;",
      "logits the same bits:", np.array_equal(*logits))

# %% [markdown]
# ## Or merged, for a program that knows no adapters
#
# $W' = W + s\,U V^\top$ can go into the model itself. Then any program that runs the base runs the result, and the file is as
# large as the base. While it is merged an adapter cannot be saved, for the base that it belongs to is not there: try, and read
# the message.

# %%
loaded.merge()
try:
    save_adapter(loaded, f"{place.name}/merged")
except ValueError as error:
    print(error)
merged = again(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data
print(f"merged: logits differ by {np.abs(merged - logits[0]).max():.1e} at most, for the sum is rounded in another order")
loaded.unmerge()
same_again = again(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data
print("unmerged: the same bits again:", np.array_equal(same_again, logits[0]))

# %% [markdown]
# ## In HF PEFT
#
# **This cell alone needs PyTorch, transformers and peft, and the lesson does not need the cell.** Where they are not installed it
# says so in one line. Where they are, it loads the folder with *their* code and compares what the last block gives.

# %%
import importlib.util

if not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
    print("not asked here: HF PEFT. It needs torch, transformers and peft, and nothing else in this lesson does.")
else:
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    kind = transformers.AutoModelForSequenceClassification if config["task_type"] == "SEQ_CLS" else transformers.AutoModel
    options = {"num_labels": len(dataset.labels)} if config["task_type"] == "SEQ_CLS" else {}
    theirs = kind.from_pretrained(files.model_folder(MODEL), **options)
    theirs.config.pad_token_id = tokenizer.pad_id  # a decoder's classifier looks for the last token that is none
    theirs = peft.PeftModel.from_pretrained(theirs, f"{place.name}/adapter").eval()
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor(batch.input_ids), attention_mask=torch.tensor(batch.attention_mask.astype(int)),
                     output_hidden_states=True).hidden_states[-1].numpy()
    ours = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).last_hidden_state.data
    with attachment.disabled():
        base = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).last_hidden_state.data
    real = batch.attention_mask
    print(f"HF PEFT {peft.__version__}: states differ from ours by {np.abs(out - ours)[real].max():.1e} at most, "
          f"and from the base without the adapter by {np.abs(out - base)[real].max():.1e}")

place.cleanup()

# %% [markdown]
# The two numbers belong together. The first alone would also be small if PEFT had ignored the file: it skips tensors whose names
# it does not know, and only warns of those that it misses. The second shows that the adapter is really in.
#
# ## Where it breaks
#
# - **The wrong base.** An adapter is a change *of* something. On a base of another shape it is refused; on one of the same shape
#   and with other numbers it loads without a word and is worthless. The config names the base for people to read, nobody compares
#   the numbers.
# - **The score on dev.** Try ten learning rates, report the best one's dev score, and you report the luckiest of ten. Dodge et
#   al. reached markedly better scores on GLUE by trying nothing but seeds. Choose on dev, report on test, say how many you tried.
# - **The wrong reading of a text.** MiniLM's folder was trained through the mean of its tokens. Through its pooler the head alone
#   falls from 0.80 to 0.65 (README.md), while LoRA repairs it (0.843): a poor score of a frozen model may say more of the pooling
#   than of the model.
# - **A pickle.** A `.bin` or `.pt` file may hold a program, which Python runs when it opens it. The package refuses it;
#   `safetensors` holds numbers only.
# - **A metric that cannot fail.** Before you believe a score compute it for the constant guess.
#
# ## Read the package's own file
#
# `minipeft/training/loop.py`: `_Run._update` is your `train_step` with three things more. Which? What would happen to the
# weights, and to the checkpoint, if the norm were NaN and nobody looked? Why is each batch's generator made of (seed, purpose,
# step) and not drawn from one generator that goes on, as in this lesson's `train`? Then `minipeft/interop/peft_lora.py`: `_split`
# undoes `_fuse`. What must it know that PEFT's files do not say, and where is that written down?
#
# ## Sources
#
# - Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, arXiv:1211.5063, section 3.2:
#   clipping by norm.
# - Matthews, Biochimica et Biophysica Acta 405, 1975 (two classes); Gorodkin, Computational Biology and Chemistry 28, 2004,
#   equation 8 (any number of classes).
# - Warstadt, Singh, Bowman, *Neural Network Acceptability Judgments*, TACL 7, 2019, arXiv:1805.12471: CoLA, scored by Matthews
#   correlation.
# - McNemar, Psychometrika 12, 1947: two proportions on the same sample.
# - Dodge, Ilharco, Schwartz, Farhadi, Hajishirzi, Smith, *Fine-Tuning Pretrained Language Models: Weight Initializations, Data
#   Orders, and Early Stopping*, 2020, arXiv:2002.06305: what seeds do.
# - Hu et al., *LoRA*, ICLR 2022, arXiv:2106.09685, section 4.1.
# - Wang et al., *MiniLM*, NeurIPS 2020, arXiv:2002.10957; Socher et al., EMNLP 2013: the treebank of SST-2.
# - Mangrulkar et al., *PEFT*, 2022, https://github.com/huggingface/peft: its documentation describes the format of a checkpoint.
