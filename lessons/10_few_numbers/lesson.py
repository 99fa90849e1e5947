# %% [markdown]
# # Lesson 10. Few numbers: biases, scales, words
#
# **Why.** A phone keeps one language model and must serve a hundred small tasks with it: sorting mail, rating reviews, spotting a
# question. A change of half a megabyte for each task is no burden. But tasks come mixed, a mail here, a review there, and whoever
# runs them in one batch needs every row of the batch to be changed in its own way. If a task's change were a few *vectors*, a row
# could simply carry its own. How little can a task's change be? A hundredth of a per cent? Four numbers? None?
#
# This lesson trains no matrix at all: only biases, or factors, or the vectors of a few words. You see what each can say, and what
# not.
#
# You need lesson 3 (the parts of a block), lesson 5 (what fine-tuning everything reaches, AdamW), lesson 6 (words in the place of
# classes) and, to compare with, lesson 8 (LoRA). 50 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A block of a Transformer, and the numbers in it that are no matrix. Every one is a vector, as wide as what flows past it.
#
#                      x (..., D)
#          ┌───────────────┼───────────────┐
#        W_q + b_q       W_k + b_k       W_v + b_v        b   biases: BitFit trains all of them
#          │             × l_k           × l_v            l   scales: (IA)³ adds and trains them
#          └── softmax(q kᵀ / √K) ── v ────┘
#                          W_o + b_o
#              (+) x, normalised, × γ + β                 γ β gains and biases of the norms: LayerNorm tuning
#                          W_1 + b_1
#                          act
#                          × l_f
#                          W_2 + b_2
#              (+) normalised, × γ + β
#                          ⋮
#          logit of label c:  h · (w_c + d_c)  or  h · w_c + b_c     d b of the labels: output tuning
#
# A *bias* is added: it shifts every token at this place in the same direction, whatever it is. A *scale* multiplies: coordinate j
# of every token counts l_j times as much. A *label's vector* is one column of the output map.

# %% [markdown]
# ## The equations, derived
#
# Let g be the gradient that arrives, a row for each token of each text. The sums below are over texts and places.
#
# | | forward | gradient | how many, for BERT |
# |---|---|---|---|
# | bias | y = x W + b | db = Σ g | (7 D + F) L + D |
# | scale of an output | y = l ⊙ (x W + b) | dl = Σ g ⊙ (x W + b) | 2 D L, for keys and values |
# | scale of an input | y = (l ⊙ x) W + b | dl = Σ (g Wᵀ) ⊙ x | F L, inside the feed-forward |
# | norm | y = γ ⊙ x̂ + β, x̂ the normalised x | dγ = Σ g ⊙ x̂, dβ = Σ g | 4 D L + 2 D |
# | label's vector, bias | z_c = h · (w_c + d_c) + b_c | dd_c = Σ g_c h, db_c = Σ g_c | C D, or C |
#
# ⊙ is the product entry by entry; D is the model's width, F the feed-forward's, L the number of blocks, C of the labels. Biases
# and norms are the model's own and are trained in place. Scales start at 1 and the labels' d at 0, so that at first nothing is
# changed.
#
# **Two biases that say nothing.** The query of token i meets the keys of all tokens j. With a bias on the keys,
#
# $$q_i \cdot (k_j + b_k) = q_i \cdot k_j + q_i \cdot b_k .$$
#
# The second term has no j in it: it raises the scores of all keys alike, and softmax takes out what all its inputs share. So b_k
# cannot matter, and its gradient is exactly zero. And since the softmax's weights a_ij sum to 1,
#
# $$\sum_j a_{ij}\,(v_j + b_v) = \sum_j a_{ij}\,v_j + b_v :$$
#
# the bias of the values passes through attention as it is and arrives as b_v W_o, a fixed vector beside b_o. What b_v can say,
# b_o could say as well (as long as no dropout acts on the weights).

# %%
import numpy as np

from minipeft import Settings, attach, fit, load_pretrained
from minipeft.data import Tokenizer, toy
from minipeft.learn import fast, predict, show
from minipeft.methods import BitFit, mixed
from minipeft.training import Classification

D, F, L = 768, 3072, 12
predict(f"BERT-base has D = {D}, F = {F}, L = {L} and 110 million numbers. How many does BitFit train, and which share is that?",
        f"(7 D + F) L + D = {(7 * D + F) * L + D:,}, which is {100 * ((7 * D + F) * L + D) / 110e6:.2f} per cent.")
predict("The 7 D in a block are: queries, keys, values, attention's output, the second map of the feed-forward, and β of two "
        "norms, D each. How many of them could be left out, and nothing would be lost?",
        "2 D: those of the keys, and those of the values beside b_o.")

# %% [markdown]
# ## Exercise: which numbers are the biases
#
# A method that trains in place says so by a dictionary from paths to the model's own Parameters: `base_parameters(model)`. What
# is not in it is frozen by `attach`. The task's own output map is no business of the method: `attach` trains it whole, as the
# *head*.

# %%
#@exercise 10.1 minipeft.methods.bitfit:BitFit.base_parameters
#@ Return {path: Parameter} of the model's biases that are trained: the parameters whose path ends in .bias, without those whose
#@ path begins with head.classifier. or head.output. . `self._chosen(paths)` takes paths of modules (a bias's, without .bias) and
#@ gives those that `self.terms` asks for. Where none is left and `self.add_zero_biases` is false, raise ValueError.
task = toy.dataset("rating", **({"train": 64, "dev": 32, "test": 32} if fast() else {}))
work = Classification(Tokenizer.from_folder("toy:encoder"), task, max_length=64, batch_size=16)
model = load_pretrained("toy:encoder", task="classify", labels=task.labels, rng=np.random.default_rng(0))
attachment = attach(model, BitFit())
start = {path: p.data.copy() for path, p in attachment.named_parameters().items()}
print(f"{BitFit().count(model.config):,} by formula, {attachment.trainable_without_head:,} counted, of "
      f"{sum(p.size for p in model.parameters()):,}; {BitFit(terms='two').count(model.config):,} with terms='two'")

work.loss(model, work.collate(np.arange(16))).backward()
for name in ("q", "k", "v", "out"):
    gradient = model.get(f"blocks.1.attn.{name}").bias.grad
    print(f"largest gradient of the bias of attn.{name:3s} in block 2: {np.abs(gradient).max():.1e}")
model.zero_grad()

# %% [markdown]
# The keys' gradient is zero up to float32's rounding. Now train, and look how far each kind of bias has gone.

# %%
rate, epochs = 2e-2, 1 if fast() else 2
fit(model, attachment.named_parameters(), work, Settings(lr=rate, epochs=epochs, seed=0))
gone = {}
for path, p in attachment.named_parameters().items():
    if path.startswith("blocks."):
        gone.setdefault(path.split(".", 2)[2].removesuffix(".bias"), []).append(float(np.abs(p.data - start[path]).mean()))
gone = {name: float(np.mean(each)) for name, each in gone.items()}

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3))
axes.barh(list(gone), list(gone.values()))
axes.invert_yaxis()
axes.set_xlabel("mean size of the change")
show(figure, "biases", "How far each kind of bias went in training: "
     + ", ".join(f"{name} {value:.3f}" for name, value in gone.items()))

before = work.evaluate(model, "test")
for path, p in attachment.named_parameters().items():
    if ".attn.k." in path:
        p.data = start[path].copy()
after = work.evaluate(model, "test")
print(f"accuracy {before['accuracy']:.3f}; with the keys' biases put back {after['accuracy']:.3f}, the loss differs by "
      f"{abs(after['loss'] - before['loss']):.0e}")

# %% [markdown]
# The queries' biases and those of the feed-forward's first map go furthest. Ben Zaken, Ravfogel and Goldberg saw the same in
# BERT, and found that these two kinds alone lose little: `BitFit(terms="two")`.
#
# But the keys' biases have moved a little. They should not have, with a gradient of zero! The cause is Adam (lesson 5): it
# divides a gradient by its own size, and where there is nothing but rounding, about 1e-10, it makes visible steps of rounding (ε
# = 1e-8 damps them). They do no harm, as the last line shows: put back, nothing changes. A number that moves is no proof of a
# number that matters.
#
# ## Exercise: scales
#
# (IA)³ puts a vector of factors on the keys, on the values, and on what enters the feed-forward's second map. In the package a
# `Scaled` is a wrapper around a map: its `forward` calls `scale` on the map's output, or on its input where `at_input` is true.
# In a batch of several tasks, `rows` says which rows a wrapper's factors are for.

# %%
#@exercise 10.2 minipeft.methods.ia3:Scaled.scale
#@ Return l * y for y (B, ..., D), a Tensor; `self.l` (D,) is the Parameter. Where `self.rows` (B,) is not None, it holds True for
#@ the rows of the batch that l is for; the others come out as they went in. F.where(condition, a, b) chooses between two Tensors.
from minipeft.methods import IA3

rng = np.random.default_rng(1)
model = load_pretrained("toy:encoder", task="classify", labels=task.labels, rng=rng)
ids = rng.integers(5, model.config.vocab_size, (3, 9))
base, single = model(ids).logits.data, {}
for name in ("mail", "reviews"):
    attachment = attach(model, IA3(), name)  # the new one is active, alone
    for path, p in attachment.named_parameters().items():
        if path.endswith(".l"):
            p.data = p.data + 0.3 * rng.standard_normal(p.shape).astype(p.dtype)
    single[name] = model(ids).logits.data
with mixed(model, ["mail", "reviews", None]):
    together = model(ids).logits.data
print(f"{attachment.trainable_without_head:,} numbers for each task; a batch has a row for each of two and one for the base")
print("largest difference to what each gives alone:",
      np.abs(together - np.stack([single["mail"][0], single["reviews"][1], base[2]])).max())

# %% [markdown]
# ## Exercise: merging
#
# When the model serves a single task the factors can go into the matrices and cost nothing. Write the two forms out:
#
# $$l \odot (x W + b) = x\,(W \operatorname{diag}(l)) + l \odot b, \qquad
# (l \odot x)\,W + b = x\,(\operatorname{diag}(l)\,W) + b .$$
#
# diag(l) is the matrix with l on its diagonal. On the right of W it multiplies columns, on the left rows; nobody forms it.

# %%
#@exercise 10.3 minipeft.methods.ia3:Scaled.merged_arrays
#@ Return (W', b') as new arrays, from weight (D_in, D_out) and bias (D_out,) or None: with them the map alone does what map and
#@ scale did together. The factors are the array `self.l.data`, (D_in,) where `self.at_input` is true and else (D_out,).
beside = model(ids).logits.data
attachment.merge()
print("largest difference merged against beside:", np.abs(model(ids).logits.data - beside).max())
attachment.unmerge()

predict("Why does (IA)³ have no scale for the queries?",
        "A score is the sum of q_j k_j over the coordinates j. With factors on both it is the sum of (l_q l_k)_j q_j k_j, and "
        "one vector of factors can be that product: a scale of the keys alone says as much.")

# %% [markdown]
# What can a scale say that a bias cannot? It depends on the input: coordinate j of a token that has much of it changes much. What
# can it not? W' = W diag(l) has the columns of W, longer or shorter, and no other directions. LoRA (lesson 8) adds to every
# column a mixture of the same few new directions; (IA)³ adds none, but sets every column by itself.
#
# **LayerNorm tuning** is both at once: γ are scales and β biases of what a norm gives, which is what the next maps take in.
#
# ## Exercise: the words
#
# A language model has an output vector for each word of its vocabulary, and a task's labels may be words. Put behind a review "it
# was [MASK] ." and compare the model's logits for *terrible, bad, good, great* at the gap: a classifier without any training, and
# without a new head (lesson 6 is about this). *Output tuning* moves only these words: their output vectors, C D numbers, or a
# bias for each, C numbers. The whole body stays, and so do the words' vectors at the input.

# %%
#@exercise 10.4 minipeft.methods.output:LabelOutput.forward
#@ Return the logits (..., V) for states h (..., D). `self.wrapped(h)` gives those from before; label c's moves by h . d_c where
#@ `self.d` (C, D) is not None, and else by b_c of `self.b` (C,). `self.place` is an array (C, V): row c has a 1 at the output
#@ that label c is, and 0 elsewhere.
import tempfile

from minipeft.compare.run import Run, execute


def scored(folder, data, method, lr=None, epochs=2, **more):
    """A run's result: fine-tuned on ``data``, scored on its test texts. Every run starts from the same numbers."""
    run = Run("toy:encoder", data, method, lr=lr, epochs=1 if fast() else epochs, **more)
    return execute(run, tempfile.mkdtemp(dir=folder), quiet=True)


with tempfile.TemporaryDirectory() as folder:
    toy.save("rating", f"{folder}/rating", **({"train": 64, "dev": 32, "test": 32} if fast() else {}))
    for words in ("terrible bad good great", "awful poor nice excellent"):
        asked = {"template": ["{text} it was {mask} ."],
                 "verbalizer": [",".join(f"{word}={label}" for word, label in zip(words.split(), toy.RATINGS))]}
        for name, method, options in (("nothing", "zero_shot", {}),
                                      ("a bias for each word", "prompt_based", {"by": "output", "part": "bias"}),
                                      ("a vector for each word", "prompt_based", {"by": "output"})):
            result = scored(folder, f"{folder}/rating", method, 5e-2, options=options, **asked)
            print(f"{words:28s} trained: {name:22s} {result['trainable']:4d} numbers, accuracy {result['score']:.3f}")

# %% [markdown]
# The words of the first row stand in the raw text just so, "it was great .", and the model knows the task before it has seen a
# label. The words of the second row mean the same, but the text that the model was pre-trained on does not end that way, so that
# it thinks some of them far less likely than others. Four numbers put much of that right, and four vectors all of it.
#
# Compare with a new head, `head` in the table below. It trains as many numbers (and four biases), and it reads the same body.
# What it lacks is a good start. *How few numbers suffice depends on what the model knows already, and on whether one asks for it
# in its own words.*
#
# ## What the numbers show
#
# Now all kinds on one task with a head, in the order of how many numbers they train. The last two are for comparison: LoRA and
# everything.

# %%
plan = [("head", "head", {}, None), ("layernorm", "layernorm", {}, None), ("bitfit, two terms", "bitfit", {"terms": "two"}, None),
        ("ia3", "ia3", {}, None), ("bitfit", "bitfit", {}, None), ("lora, rank 8", "lora", {}, None), ("full", "full", {}, None)]
found = {}
with tempfile.TemporaryDirectory() as folder:
    toy.save("rating", f"{folder}/rating", **({"train": 64, "dev": 32, "test": 32} if fast() else {}))
    for name, method, options, lr in plan[1::3] if fast() else plan:
        found[name] = result = scored(folder, f"{folder}/rating", method, lr, options=options)
        print(f"{name:18s} {result['trainable_without_head']:8,} numbers besides the head, {result['step_ms']:5.1f} ms a step, "
              f"accuracy {result['score']:.3f}")

figure, axes = plt.subplots(figsize=(6, 3.5))
for name, result in found.items():
    axes.plot(max(result["trainable"], 1), result["score"], "o")
    left = result["trainable"] < 3000  # names to both sides, so that they do not meet
    axes.annotate(name, (result["trainable"], result["score"]), textcoords="offset points", xytext=(-6 if left else 6, -3),
                  ha="right" if left else "left", fontsize=8)
axes.set_xscale("log")
axes.margins(x=0.2, y=0.1)
axes.set_xlabel("numbers trained, head included")
axes.set_ylabel("accuracy")
show(figure, "few", "Accuracy against numbers trained: "
     + ", ".join(f"{name} {result['score']:.2f} with {result['trainable']:,}" for name, result in found.items()))

# %% [markdown]
# A few thousand numbers close most of the gap between a head alone and everything, and (IA)³ with its 1,728 lies within the noise
# of full fine-tuning (a standard error of 0.02 on 500 test texts; one seed). The norms alone reach least. Fewer trained numbers
# do not mean as much less time: the walk back must still reach the lowest of them. What is saved is the gradients of the
# matrices, a third of a step's products, and AdamW's pass over them.
#
# On a real model: MiniLM on 2,000 sentences of SST-2, two epochs, three seeds (README.md and benchmarks/README.md).
#
# | | numbers besides the head | mean of the tokens | BERT's pooler |
# |---|--:|--:|--:|
# | head | 0 | 0.800 ± 0.004 | 0.648 ± 0.009 |
# | output tuning | 768, no head | 0.801 ± 0.005 | |
# | LayerNorm tuning | 9,984 | 0.830 ± 0.004 | |
# | (IA)³ | 13,824 | 0.839 ± 0.006 | 0.805 ± 0.009 |
# | BitFit | 25,728; with the pooler's 26,112 | 0.828 ± 0.006 | 0.771 ± 0.007 |
# | LoRA, rank 8 | 73,728 | 0.843 ± 0.001 | 0.843 ± 0.004 |
# | full | 22.7 million | 0.849 ± 0.007 | 0.844 ± 0.008 |
#
# Where the states are good for the task already, as this model's mean of the tokens is, all kinds that reach into the blocks
# come close to full fine-tuning. Output tuning, which does not, stays where the head alone is. Where the states must be made
# anew, as with the pooler, which was never trained along, biases stay 7 points behind, scales 4, and LoRA none. At its place a
# bias moves all texts alike: it brings out what is there and makes little that is new.

# %% [markdown]
# ## Stretch: which numbers, one by one
#
# Why biases and not others? As a control, train as many entries of the matrices, drawn at random. In five seeds on toy:rating
# (benchmarks/README.md, row 6) BitFit reached 77.7 ± 2.1 per cent and a random mask of its size 79.0 ± 0.8: no difference that
# can be told from noise. (On BERT-base the paper found the biases ahead, table 3.)
#
# One can also choose. *Fisher information* asks of each number how much the model's prediction depends on it,
#
# $$F_i = \frac{1}{N} \sum_x \sum_y p(y|x) \left(\frac{\partial \log p(y|x)}{\partial \theta_i}\right)^2 ,$$
#
# and the mask keeps the largest (Sung, Nair and Raffel). The sum over y is over all classes, not only the true one: F is about
# what the model would say. And the square is inside the sum: Σ_y p ∂ log p = Σ_y ∂p is the derivative of 1, which is zero.

# %%
#@exercise 10.5 minipeft.methods.fisher:fisher_importance
#@ Return {path: array of float64}, F in the parameter's shape, with the paths f"{path}.weight" and f"{path}.bias" for each path
#@ in `linear_paths(model)`; `unwrap(model.get(path))` is the map. The logits (1, C) of a batch are `scores(model, batch)`: those
#@ of the classifier, or whatever else the caller asks the model for. -log p(y|x) is F.cross_entropy(logits, np.array([y])).
#@ F.grad(loss, [Parameters]) is the list of their gradients, one array for each. A frozen Parameter must require a gradient
#@ meanwhile, and is frozen again afterwards. Raise ValueError where a batch has several texts.
from minipeft.methods import fisher_importance

model = load_pretrained("toy:encoder", task="classify", labels=task.labels, rng=np.random.default_rng(0))
importance = fisher_importance(model, [work.collate([i]) for i in range(2 if fast() else 16)])
kinds = {}
for path, values in importance.items():
    kinds.setdefault(path.split(".", 2)[2], []).append(values.mean())
print("mean Fisher information of      an entry of W       of b")
for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down"):
    print(f"{name:28s} {np.mean(kinds[f'{name}.weight']):16.1e} {np.mean(kinds[f'{name}.bias']):10.1e}")

with tempfile.TemporaryDirectory() as folder:
    toy.save("rating", f"{folder}/rating", **({"train": 64, "dev": 32, "test": 32} if fast() else {}))
    masks = (("random_mask", 1e-3), ("random_mask", 3e-2), ("fisher_mask", 3e-2))
    for method, lr in masks[:1] if fast() else masks:
        result = scored(folder, f"{folder}/rating", method, lr)
        print(f"{method:11s} with the learning rate {lr:5.3f}: {result['trainable_without_head']:,} numbers besides the head, "
              f"accuracy {result['score']:.3f}")

# %% [markdown]
# A bias has more Fisher information than an entry of its matrix, in most maps several times as much: one reason why so few of
# them do so much. The keys' biases have none. And yet the entries that were chosen so do no better here than those that chance
# chose, within the noise; nor on MiniLM, with half a per cent of the entries: 0.830 and 0.831 (benchmarks/README.md).
#
# See also the two rows of the random mask. Few numbers must each go far, so they need a high learning rate. At a rate that suits
# full fine-tuning they look hopeless. A method that seems bad may only have been given another's rate.
#
# ## Where it breaks: much data, much to learn
#
# BitFit and full fine-tuning once more, with a hundred texts and with three thousand.

# %%
sizes = (16, 64) if fast() else (100, 3000)
predict(f"BitFit against full fine-tuning, with {sizes[0]} texts and with {sizes[1]:,}. Where is the latter further ahead?",
        "With many: what few numbers can hold is soon full, and everything else that the texts could teach has no place.")
with tempfile.TemporaryDirectory() as folder:
    toy.save("rating", f"{folder}/many", train=sizes[1], **({"dev": 32, "test": 32} if fast() else {}))
    for size in sizes:
        scores = {method: scored(folder, f"{folder}/many", method, epochs=12 if size < 1000 else 3, train_limit=size)["score"]
                  for method in ("bitfit", "full")}
        print(f"{size:5,} texts: " + ", ".join(f"{method} {score:.3f}" for method, score in scores.items()))

# %% [markdown]
# - **Much data.** BitFit's own paper saw the same on SQuAD, a task of answering questions (figure 2): ahead of full fine-tuning
#   with few examples, behind it with many.
# - **A task unlike pre-training.** What no direction of the states holds, no shift and no factor brings out: the pooler's column
#   above.
# - **No bias to train.** LLaMA and T5 have none. `BitFit(add_zero_biases=True)` adds biases of zeros; they cannot be merged into
#   a map that has no place for them, and other libraries cannot hold them.
# - **Tied vectors.** Where a model's output map *is* its table of word vectors, as in most small ones, the moved words stay
#   beside it: merged they would change the input too.
# - **Keys that are rotated.** In models that rotate keys by their position after the bias is added (LLaMA's kind), the bias of a
#   key does depend on j, and matters.
# - **Norms alone.** In an ablation of Houlsby et al. on BERT, tuning only the norms fell well behind adapters: by about 3.5
#   points on CoLA (is a sentence grammatical?) and 4 on MNLI (does one sentence follow from another?).
#
# ## Read the package's own file
#
# `minipeft/methods/bitfit.py`, `ia3.py` and `output.py` are about a hundred lines each. In `bitfit.py`: why is there no
# `merged_arrays`? In `ia3.py`: which line keeps the base's bits safe when a scale is merged? In `output.py`: with `part="bias"`
# the wrapper reshapes b to (1, C); what would go wrong with (C,)? In `fisher.py`: why does `choose` sort with `kind="stable"`?
#
# ## Sources
#
# - Ben Zaken, Ravfogel, Goldberg, *BitFit*, ACL 2022, arXiv:2106.10199: section 3, figure 1 (which biases move), table 3 (the
#   random control), figure 2 (the size of the data).
# - Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel, *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
#   In-Context Learning*, NeurIPS 2022, arXiv:2205.05638: section 3.3, (IA)³ and batches of mixed tasks.
# - Hambardzumyan, Khachatrian, May, *WARP*, ACL 2021, arXiv:2101.00121: section 3, vectors for the labels.
# - Qi, Ruan, Zuo, Li, *Parameter-Efficient Tuning on Layer Normalization*, 2022, arXiv:2211.08682. Houlsby et al., ICML 2019,
#   arXiv:1902.00751 (norms alone, as an ablation).
# - Sung, Nair, Raffel, *Training Neural Networks with Fixed Sparse Masks*, NeurIPS 2021, arXiv:2111.09839: section 2.
