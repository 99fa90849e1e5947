# %% [markdown]
# # Lesson 11. Prefix tuning
#
# **Why.** A model is asked better with a few words before the text: "Summarise this for a child:" changes what comes out, and no
# weight has changed. Every request may carry words of its own, in one batch, through one model. But words are a coarse tool.
# There is a finite number of them, nobody knows which will work, and a search over words has no gradient to follow.
#
# What does a word before the text do inside the model? In each layer it becomes a *key* and a *value*, which the words behind it
# look at (lesson 3). So leave the word out and learn the keys and values themselves, as numbers. They can be anything, also what
# no word would ever give, and they have a gradient. That is *prefix tuning*.
#
# You need lesson 3 (attention: queries, keys, values, masks, positions) and lesson 5 (what fine-tuning everything reaches). 50
# minutes.

# %% [markdown]
# ## The idea in a picture
#
# Attention in one layer and one *head* (one of several attentions beside each other). Each word has a query q, which is compared
# with all keys; the better a key fits, the more of its value goes into the result. A prefix of n *virtual tokens* puts n rows
# before:
#
#                keys K                  values V
#            ┌────────────┐           ┌────────────┐
#            │ P_K  (n,K) │           │ P_V  (n,K) │      trained: the only numbers that are
#            ├────────────┤           ├────────────┤
#      q ──► │ x W_k      │  weights  │ x W_v      │ ──►  result (T, K)
#            │      (S,K) │ ────────► │      (S,K) │      frozen: W_q, W_k, W_v and all the rest
#            └────────────┘ (T, n+S)  └────────────┘
#
# T is the number of queries, S that of the words' keys, K the width of a head. There are no queries for the prefix: nothing is
# computed *at* a virtual token, and the result has a row for each word, as before. Every layer has a prefix of its own.

# %% [markdown]
# ## The equation, derived
#
# Take one query. Its scores are $s_i$ with the prefix's keys and $z_j$ with the words' (products times 1/√K). Softmax makes
# weights of all of them together. With u the values of the prefix, v those of the words, and $A = \sum_i e^{s_i}$,
# $B = \sum_j e^{z_j}$, the result is
#
# $$\frac{\sum_i e^{s_i} u_i + \sum_j e^{z_j} v_j}{A + B}
#   = \lambda \underbrace{\sum_i \frac{e^{s_i}}{A} u_i}_{\text{attention over the prefix}}
#   + (1 - \lambda) \underbrace{\sum_j \frac{e^{z_j}}{B} v_j}_{\text{attention over the words, as it was}},
#   \qquad \lambda = \frac{A}{A + B} .$$
#
# λ, between 0 and 1, is the *share of the attention that goes to the prefix*. It is a gate, another one for each query and head.
# Three things can be read off (He et al., section 3.1, have the equation):
#
# - **What a prefix can do:** move each result along a straight line, from what attention gave before towards a mean of the values
#   P_V, which are free. Such a combination, whose weights add up to 1, is called *affine*.
# - **What it cannot do:** change how the attention is divided among the words. Two words' weights have the ratio
#   $e^{z_j} / e^{z_k}$, and no s is in it. A query that looked at the wrong word still does. (In the *next* layer queries and
#   keys are made of other states, and there the ratios do change.)
# - **It is not the identity at the start.** λ is never 0: n random keys take attention away from the words before anything is
#   learned.

# %%
import numpy as np

from minipeft import attach, load_pretrained
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
predict("A prefix has 20 virtual tokens with random keys, a text has 10 words. What share of the attention goes to the prefix "
        "before anything is learned, if all scores are about equal?",
        "Each key gets about the same, so 20 of 30: two thirds. The words are left with a third of what they had.")

# %% [markdown]
# ## Exercise 1: the share
#
# The equation in NumPy. Mind the exponents: scores of a few hundred occur while training, and $e^{710}$ is too large for a
# float64. As $e^{s - m} / \sum e^{s - m}$ is the same for every m, subtract the largest score first.

# %%
#@exercise 11.1 lesson:prefix_share
#@ Return lambda (T,), an array: the share of each query's attention that goes to the prefix. `queries` is (T, K), `prefix_keys`
#@ (n, K) and `keys` (S, K) are those of the prefix and of the words; a score is their product times `scale`. Large scores must
#@ not overflow.
### BEGIN SOLUTION
def prefix_share(queries, prefix_keys, keys, scale):
    """lambda = sum_i exp(s_i) / (sum_i exp(s_i) + sum_j exp(z_j))"""
    scores = scale * queries @ np.concatenate([prefix_keys, keys]).T  # (T, n + S)
    parts = np.exp(scores - scores.max(axis=1, keepdims=True))
    return parts[:, :len(prefix_keys)].sum(axis=1) / parts.sum(axis=1)
### END SOLUTION


def attention(q, k, v):
    """Plain attention of one head, and its weights."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)  # (T, S)
    return weights @ v, weights


q, k, v = (rng.standard_normal((5, 4)) for _ in "qkv")
p_k, p_v = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
whole, weights = attention(q, np.concatenate([p_k, k]), np.concatenate([p_v, v]))
words, before = attention(q, k, v)
share = prefix_share(q, p_k, k, 0.5)[:, None]
print("largest difference between the two sides of the equation:",
      np.abs(whole - (share * attention(q, p_k, p_v)[0] + (1 - share) * words)).max())
print("word 0's weight over word 1's, for each query, without a prefix:", (before[:, 0] / before[:, 1]).round(3))
print("                                                and with one:   ", (weights[:, 3] / weights[:, 4]).round(3))

# %% [markdown]
# The straight line is worth a look. Here values are points in a plane. A prefix of one virtual token sits at a value far off, and
# its key is made longer step by step, in a direction that both queries like.

# %%
import matplotlib.pyplot as plt

points, queries = np.array([[0.0, 0.0], [2.0, 0.3], [0.6, 1.8]]), np.array([[1.5, 0.2], [0.3, 1.5]])
keys, target, scales = np.array([[0.2, 0.1], [1.0, 0.0], [0.0, 1.0]]), np.array([[3.5, 2.5]]), np.linspace(-3, 5, 9)
figure, axes = plt.subplots(figsize=(5, 3.4))
axes.fill(*points.T, alpha=0.15, label="all that the words alone can give")
shares = []
for number, query in enumerate(queries[:, None]):
    longer = [s * np.array([[0.8, 0.6]]) for s in scales]
    values = np.concatenate([target, points])
    results = np.concatenate([attention(query, np.concatenate([key, keys]), values)[0] for key in longer])
    shares.append([float(prefix_share(query, key, keys, 2**-0.5)[0]) for key in longer])
    axes.plot(*results.T, "o-", markersize=4, label=f"query {number + 1}")
axes.plot(*points.T, "k^", label="values of the words")
axes.plot(*target.T, "r*", markersize=12, label="value of the prefix")
axes.set_xlabel("first number of a value")
axes.set_ylabel("second")
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
show(figure, "line", "Results of two queries move on straight lines from inside the triangle of the words' values to the value "
     "of the prefix: " + "; ".join(f"query {i + 1}, share {s[0]:.2f} to {s[-1]:.2f}" for i, s in enumerate(shares)) + ".")

# %% [markdown]
# Each query has a line of its own and is at another place on it. With n virtual tokens the far end of the line is not one point
# but a mean of n values, and the query chooses which.
#
# **Nothing merges.** LoRA's change disappears into W. Could a prefix disappear into W_k and W_v? Take a text of a single word x.
# It has only itself to look at, so whatever the weights are, attention gives its value x W_v, which is linear in x. With a prefix
# it gives a mixture of that and of P_V, with a λ that depends on x through an exponential. No W_v does that: the prefix adds keys
# to choose among, and weights do not add keys. So it costs at inference: n more keys and values, about 4 n d operations for each
# word and layer (d the model's width), and n places more in the cache of a decoder.

# %% [markdown]
# ## Exercise 2: the keys before the words'
#
# In the package a prefix is wrapped around `attn.core`, the place where softmax happens: q (B, H, T, K), k and v (B, H', S, K),
# with B texts, H heads, and H' heads of keys (in some models several heads of queries share one of keys; else H' = H).
#
# Two more things come along. The **mask** (B, S) tells which keys are words and which padding. The prefix is nobody's padding:
# its n columns are true for all rows. The **causal mask** of a decoder, by which a word does not see those behind it, is made
# inside the core from T and S: query i sees the keys j ≤ i + S − T. With n more keys that is j ≤ i + n + S − T: all of the
# prefix, and no later word. It needs no line of yours, provided the prefix stands first.

# %%
predict("Two texts of 5 and 3 words are padded to 5, so the mask is (2, 5) with 8 entries true. A prefix of 4 comes before. What "
        "is the mask's shape then, and how many entries are true?", "(2, 9), and 8 + 2 · 4 = 16: every row sees the prefix.")

# %%
#@exercise 11.2 minipeft.methods.prefix:PrefixCore.forward
#@ Return what `self.wrapped(q, k, v, mask, bias, scale)` gives when the prefix's keys and values stand before k and v in every
#@ row of the batch. `self.prefix()` gives P_K and P_V, Tensors (n, H' K): the first K columns are head 0's. The mask (B, S) and
#@ T5's bias, a Tensor (1 or B, H, T, S), get n columns before theirs: True, and 0. Either may be None. `F.concatenate` and
#@ `F.broadcast_to` help.
from minipeft.autograd import Tensor
from minipeft.methods.prefix import PrefixCore
from minipeft.nn import AttentionCore

core = PrefixCore(AttentionCore(causal=True), rng.standard_normal((3, 8)), rng.standard_normal((3, 8)))
q, k, v = (Tensor(rng.standard_normal((1, 2, 5, 4))) for _ in "qkv")
print("one text, two heads of width 4, five words:", core(q, k, v, None, None, 0.5).shape, "as without a prefix")
for what, module in (("without", core.wrapped), ("with", core)):
    first = module(q, k, v, scale=0.5).data[0, 0, 0]
    print(f"what the first word, which sees no other word, gets in head 0 {what:>7s} a prefix:", first.round(3))

# %% [markdown]
# ## Exercise 3: a small network makes the prefix
#
# Trained directly, a prefix is touchy: its numbers enter through exponentials, and one step too far leaves a softmax with all its
# weight on one key, where gradients are nearly zero. Li and Liang (section 4.3) found direct training unstable and a little
# worse. They train a small network instead, which makes the prefix of all layers out of one small matrix E (n, D):
#
# $$[P_K ; P_V]_l = \tanh(E W_a + b_a)\, W_{b,l} + b_{b,l}, \qquad W_a\,(D, h), \quad W_{b,l}\,(h, 2 d) .$$
#
# This is called *reparametrisation*: the same P, made of other numbers, so that gradients take another way. tanh keeps what
# enters the second map between −1 and 1, and as E and W_a are shared, what one layer learns moves the prefix of the others. At
# the end P is computed once and kept; the network is thrown away. (Later work finds that it helps on some tasks and not on
# others: Liu et al., section 3.3. In the package it is off unless asked for.)

# %%
#@exercise 11.3 minipeft.methods.prefix:PrefixCore.prefix
#@ Return P_K and P_V, Tensors (n, H' K), through which gradients go. Where `self.network` is None they are the parameters
#@ `self.keys` and `self.values`. Else `self.network()` gives the inner states tanh(E W_a + b_a) (n, h), and `self.out` maps them
#@ to 2 H' K columns, of which the first half are keys.
from minipeft.methods.prefix import Prefix

model = load_pretrained("toy:encoder", task="classify", labels=("terrible", "bad", "good", "great"), rng=rng)
attachment = attach(model, Prefix(num_virtual_tokens=4, reparametrise=True, hidden=32), rng=rng)
ids = rng.integers(5, model.config.vocab_size, (2, 9))
while_training, logits = attachment.trainable_without_head, model(ids).logits.data
attachment.method.finish(attachment)
print(f"{while_training:,} numbers while training, {attachment.trainable_without_head:,} that are kept")
print("largest difference in the logits without the network:", np.abs(model(ids).logits.data - logits).max())
attachment.detach()

# %% [markdown]
# ## Exercise 4: the count
#
# A prefix is n keys and n values in each attention. In an encoder or decoder of L layers and width d that is
#
# $$2\, n\, d\, L ,$$
#
# and T5 has three groups: the encoder's attention, the decoder's, and the one with which the decoder looks at the encoder. Where
# heads share keys, a key is narrower than d.

# %%
#@exercise 11.4 minipeft.methods.prefix:Prefix.count
#@ Return how many numbers are trained on a model of this config. `core_widths(config)` is {path: H' K} of all attentions, the
#@ width of a key there, and `self.num_virtual_tokens` is n. Where `self.reparametrise` is true, the network is what is trained: E
#@ (n, D), W_a (D, h) and b_a once, and for each attention W_b (h, 2 H' K) and b_b, with D `config.hidden_size` and h
#@ `self.hidden`.
from minipeft.models import TransformerConfig

medium = TransformerConfig(model_type="gpt2", vocab_size=50257, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                           intermediate_size=4096, max_position_embeddings=1024)
predict("GPT-2 medium has width 1,024 and 24 layers. A prefix of 5 virtual tokens: how many numbers are stored? And is the "
        "network that makes it, with h = 512, smaller or larger than that?",
        f"2 · 5 · 1,024 · 24 = {Prefix(num_virtual_tokens=5).count(medium):,} are stored; while training there are "
        f"{Prefix(num_virtual_tokens=5, reparametrise=True).count(medium):,}, a hundred times as many, nearly all in the W_b.")

# %% [markdown]
# ## What the numbers show: how long, and who looks at it
#
# `toy:rating` are short reviews in four classes; the head is trained along. The first line is the head alone. Beside the scores
# stands the share λ that the words pay to the prefix, a mean over all words, heads and layers.
#
# One choice must be known to read the table. **Places:** the model adds to each word a vector for its place in the text. Do the
# words count from place 0, or behind the prefix, from place n? The prefix itself stands in no place (its keys are what they
# are), so either is possible. By default words start at n. HF PEFT, the library that most people use for these methods, does
# so, and trained prefixes can then be exchanged with it; `shift_positions=False` leaves them at 0.

# %%
from minipeft.compare.analysis import prefix_attention
from minipeft.compare.run import Run, prepare
from minipeft.training import fit


def trained(method, **options):
    """(accuracy on test, attachment, what it was trained on) of a run on toy:rating."""
    run = Run("toy:encoder", "toy:rating", method, options=options, epochs=1 if fast() else 3, train_limit=64 if fast() else None)
    work, attachment, *_ = prepare(run)
    fit(attachment.model, attachment.named_parameters(), work, run.settings())
    return work.evaluate(attachment.model.eval(), "test")["score"], attachment, work


alone, rows, heat = trained("head")[0], [], None
lengths = [(1, True), (4, True), (64, False)] if fast() else [(1, True), (4, True), (16, True), (64, True), (64, False)]
for length, shift in lengths:
    score, attachment, work = trained("prefix", num_virtual_tokens=length, shift_positions=shift)
    shares = np.array(list(prefix_attention(attachment, work).values()))  # (layers, heads)
    heat = shares if heat is None or length == 16 else heat
    rows.append((length, shift, score, shares.mean(), attachment.trainable_without_head))

predict("1, 4, 16 and 64 virtual tokens are trained for three epochs. Longer ones have more numbers. Does the score keep rising?",
        "It rises, and then falls off a cliff:" if rows[-2][2] < max(score for _, _, score, *_ in rows[:-2]) - 0.05 else "Look:")
print(f"                                       head alone: accuracy {alone:.3f}")
for length, shift, score, share, count in rows:
    print(f"{length:2d} virtual tokens, words from place {length if shift else 0:2d} on: accuracy {score:.3f}, "
          f"share of attention {share:.2f}, {count:,} parameters")

places = model.embed.position.weight.data
print(f"spread (standard deviation) of the vectors of places 0 to 63: {places[:64].std():.3f}, of places from 64 on: "
      f"{places[64:].std():.3f}; before pre-training: {model.config.initializer_range:.3f}")

# %% [markdown]
# The fall at 64 is not the prefix's fault, as the line below it shows: with as many virtual tokens, but words from place 0 on, it
# is among the best. The last line tells why. The model has vectors for 128 places, but the texts that it was pre-trained on were
# short: from place 64 on the vectors are as they were drawn, and a word with such a vector is something that the model has never
# seen. Two causes came together in one number, as they often do. Whoever only turned `num_virtual_tokens` would have concluded
# that long prefixes are bad.
#
# benchmarks/README.md has the words from place 0 on, with five seeds: accuracy 72.7 at length 1, 76.0 at 32, and 75.3 at 64,
# which is level with 32 within the noise. In Li and Liang's experiments (section 7.1) the score rises up to a length that depends
# on the task, 10 for tables and 200 for summaries, and then falls a little.
#
# Who looks at the prefix?

# %%
figure, axes = plt.subplots(figsize=(4.5, 2.6))
picture = axes.imshow(heat, vmin=0, vmax=1, cmap="viridis")
axes.set_xlabel("head")
axes.set_ylabel("layer")
axes.set_xticks(range(heat.shape[1]))
axes.set_yticks(range(heat.shape[0]))
figure.colorbar(picture, label="share of attention")
least, most = (np.unravel_index(at, heat.shape) for at in (heat.argmin(), heat.argmax()))
show(figure, "heads", f"Share of the attention that goes to the prefix, by layer and head: mean {heat.mean():.2f}, least "
     f"{heat.min():.2f} in layer {least[0]}, head {least[1]}, most {heat.max():.2f} in layer {most[0]}, head {most[1]}.")

# %% [markdown]
# Some heads hardly notice it, and others look there more than at all words together. Nothing in the training asks for that. But
# each head has a part of each key to itself, so training is free to turn the prefix away from the queries of a head where it is
# of no use.
#
# **On a real model.** MiniLM on SST-2 (2,000 sentences, two epochs, the pooler; the README has the whole table): a prefix of 20
# reaches 0.804 ± 0.005 with 92,930 trained numbers, the head's among them, LoRA of rank 8 0.843 ± 0.004 with 74,498. A forward
# pass costs 1.06 times the base's with the prefix, and 1.00 with LoRA merged.

# %% [markdown]
# ## Starting from real words
#
# A prefix of random keys is a disturbance. Better to start as something that the model knows: read a few words with the frozen
# model, and take the keys and values that it has for them, in every layer. In a decoder such a prefix *is* these words. No word
# sees what comes behind it, so the keys and values of the first n do not depend on the text, and the text sees in them exactly
# what it would see. (In an encoder the words would look at the text as well; there it is only nearly so.) Anything that words
# before a text can do, a prefix can.

# %%
#@exercise 11.5 minipeft.methods.virtual:activations
#@ Return {path of a core: (keys, values)}, arrays (P, H' K) each, that the model has for the token ids `words` (P,), read as
#@ one text. `block_paths(model, AttentionCore)` are the paths; `model.get(path)` and `model.replace(path, module)` read and set
#@ what is there; a `Recorder(core)` passes everything on to its core and keeps the arrays (1, H', P, K) in `seen`. Read without
#@ gradients and dropout, and leave the model as it was, in training (`model.training`, `model.rng`) or not. T5 gets the same
#@ ids once more, as `decoder_input_ids`.
from minipeft.data import Tokenizer, toy

decoder, tokenizer = load_pretrained("toy:decoder"), Tokenizer.from_folder("toy:decoder")
words = tokenizer.encode("there is a small lamp .", add_special_tokens=False)
texts = [np.array([tokenizer.encode(text, add_special_tokens=False)]) for text in toy.passages(5 if fast() else 40, seed=9)]


def surprise():
    """The decoder's mean loss for a token of the texts."""
    return np.mean([float(decoder(ids, labels=ids).loss.data) for ids in texts])


losses = {"no prefix": surprise()}
attachment = attach(decoder, Prefix(num_virtual_tokens=len(words)), rng=rng)
losses["random"] = surprise()
attachment.detach()
attachment = attach(decoder, Prefix(num_virtual_tokens=len(words), initial="words", words=words), rng=rng)
losses["words"], as_prefix = surprise(), decoder(texts[0]).logits.data
attachment.detach()
as_words = decoder(np.concatenate([np.array([words]), texts[0]], axis=1)).logits.data[:, len(words):]
print("a prefix of words against the words themselves, largest difference in the logits:", np.abs(as_prefix - as_words).max())
print("loss of toy texts before any training:", ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))

# %% [markdown]
# The random prefix does much harm before it has learned anything, the words far less. With much data that is soon made up for.
# With few examples the start matters: Li and Liang (section 7.4) find a random start with low data worse and less steady than one
# of real words, even of words that have nothing to do with the task.
#
# ## Where it breaks
#
# - A new division of attention. If a task needs a word to look at another one than it does, the prefix of that layer cannot say
#   so; only layers below can, by changing the states (Petrov et al. show what follows: a prefix brings out what a model can do,
#   and hardly teaches what it cannot).
# - Places. With learned places a prefix takes n of them by default. Near the end of the table words fall off, and beyond the
#   lengths of pre-training they stand where nothing was learned, as above.
# - The learning rate. Prefixes want a high one, and small models a higher one: the package's default is 0.02, and 0.1 for the toy
#   models, against 0.001 and 0.005 for LoRA. (Lesson 12 looks at what happens with a low one.)
# - It never becomes part of the weights. Every call pays for n more keys, and a cache for n more places.
#
# ## Read the package's own file
#
# `minipeft/methods/prefix.py`, and `virtual.py` for what it shares with lesson 12. Why does `PrefixCore.forward` ask k for the
# number of heads, and not q? T5 adds a bias to each score for the distance of two words: why may the prefix get 0? `finish`
# replaces the method's settings by `reparametrise=False`: what would go wrong on loading the saved prefix if it did not?
#
# ## Sources
#
# - Li, Liang, *Prefix-Tuning*, ACL 2021, arXiv:2101.00190: sections 4.2 (the method), 4.3 (the network), 7.1 (length), 7.4 (the
#   start).
# - He, Zhou, Ma, Berg-Kirkpatrick, Neubig, *Towards a Unified View of Parameter-Efficient Transfer Learning*, ICLR 2022,
#   arXiv:2110.04366, section 3.1: the equation with λ.
# - Liu, Ji, Fu, Tam, Du, Yang, Tang, *P-Tuning v2*, ACL 2022, arXiv:2110.07602: the same for encoders with a head; section 3.3 on
#   the network.
# - Petrov, Torr, Bibi, *When Do Prompting and Prefix-Tuning Work?*, ICLR 2024, arXiv:2310.19698: what a prefix cannot do.
