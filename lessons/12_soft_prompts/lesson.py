# %% [markdown]
# # Lesson 12. Soft prompts
#
# **Why.** In lesson 6 a model was asked in words, and the score hung on the wording. Which words are best? There is no slope to
# walk down: between "it was {mask}" and "overall {mask}" lies nothing. And perhaps the best thing to say has no words at all.
#
# But a model never sees words. It sees *vectors*, one row of a table for each word. So put a few vectors before the text that are
# in no table, and learn them: they have a gradient as any parameter has. These are *soft prompts*, and learning them is *prompt
# tuning*. The model stays a closed box: nothing inside is touched, no layer needs a place for anything new. What is stored for a
# task is a handful of vectors, a few dozen kilobytes.
#
# You need lesson 6 (prompts) and lesson 11 (prefixes; masks and places with virtual tokens). 45 minutes.

# %% [markdown]
# ## The idea in a picture
#
#       learned              text ──► ids (T,)
#          │                              │  the table of word vectors, frozen
#       P (n, D)                       X (T, D)
#          └──────────────┬───────────────┘
#                 [P ; X] (n + T, D)       n virtual tokens first, then the words
#                         │  + vectors of their places
#                  block 1 … block L       frozen; words see virtual tokens and the other way round
#                         │
#                     the head             looks at the T words alone (BERT's pooler: at place 0)
#
# Lesson 11's virtual tokens were keys and values, other ones in each layer, and nothing was computed at them. These here are
# input: they go through all layers as words do, and have queries too.

# %% [markdown]
# ## The equation, derived
#
# $$X' = [P ; X], \qquad \frac{\partial L}{\partial P} = \sum_{b} \Big( \text{the first } n \text{ rows of }
#   \frac{\partial L}{\partial X'_b} \Big) .$$
#
# The sum over the texts b of a batch is there because the same P stands before each of them: what is copied forward is added up
# backward (lesson 1).
#
# Set it beside a prefix of the same length. In the first layer a soft prompt *is* a prefix, with keys P W_k and values P W_v
# (places, norm and biases left aside), so that one vector fixes both. In the layers above its keys and values are whatever the
# frozen layers below make of it. A prefix sets them freely, in every layer. Hence the counts,
#
# $$\text{soft prompt: } n\,d, \qquad \text{prefix: } 2\,n\,d\,L .$$

# %%
import numpy as np

from minipeft import attach, load_pretrained
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
model = load_pretrained("toy:encoder", task="classify", labels=("terrible", "bad", "good", "great"), rng=rng)
predict("MiniLM is 384 wide and has 6 layers. How many numbers are 20 virtual tokens as a soft prompt, and how many as a prefix?",
        "20 · 384 = 7,680, and 2 · 20 · 384 · 6 = 92,160: twelve times as many, 2 L.")

# %% [markdown]
# ## Exercise 1: vectors before the words
#
# In the package a soft prompt is wrapped around `embed.tokens`, the table. It gives three things: the vectors, the mask, and how
# many virtual tokens lead the vectors. All three change.
#
# - The **mask** tells which places are real. Virtual tokens are, in every row.
# - The **number** goes up to the heads. The one that takes the mean of a text's states leaves the first n out; the one that
#   writes the next word gives logits for the words alone.
# - A decoder that writes word by word keeps keys and values of what it has read in a **cache**, and is then called with the new
#   word alone. The prompt must enter once, at the first call. Later it is in the cache, and only the mask still has columns for
#   it.

# %%
predict("A decoder reads 5 words with a prompt of 3, and then writes on, one word at a call. At the second call, how many "
        "vectors go in, and how long is the mask?",
        "One vector, the new word's. The mask covers all places so far: 3 + 5 + 1 = 9.")

# %%
#@exercise 12.1 minipeft.methods.soft_prompt:PromptedTokens.forward
#@ Return (vectors, mask, number of virtual tokens that lead the vectors). `self.wrapped(ids, mask, past)` gives the three without
#@ this prompt: a Tensor (B, T, D), the mask over the words so far (B, S) or None, and a number. `self.prompt` is P (n, D). `past`
#@ is the number of places in the cache; where it is not 0 no vector comes before the words and the number stays, but the mask
#@ gets its n columns all the same.
from minipeft.methods.soft_prompt import PromptedTokens, SoftPrompt

tokens = PromptedTokens(model.embed.tokens, rng.uniform(-0.5, 0.5, (3, 96)).astype(np.float32))
ids, mask = rng.integers(5, model.config.vocab_size, (2, 4)), np.array([[True] * 4, [True, True, False, False]])
vectors, longer, virtual = tokens(ids, mask)
print("ids", ids.shape, "-> vectors", vectors.shape, "mask", longer.shape, "virtual", virtual)

# %% [markdown]
# Words are a special case: a prompt that holds the vectors of words is read as those words. So the best soft prompt of a length
# is at least as good as the best words of that length, on the texts that it was trained on.

# %%
words = [40, 41, 42]
expected = model(np.concatenate([np.tile(words, (2, 1)), ids], axis=1)).last_hidden_state.data
attachment = attach(model, SoftPrompt(num_virtual_tokens=3, initial="labels", words=words), rng=rng)
print("a prompt of three words against the words themselves, largest difference:",
      np.abs(model(ids).last_hidden_state.data - expected).max())
attachment.detach()

# %% [markdown]
# ## Exercise 2: where to start
#
# Three starts are in use (Lester et al., section 2.1):
#
# - `random`: numbers between −0.5 and 0.5, which are no word's vector;
# - `vocabulary`: the vectors of words that are drawn at random, so that the prompt starts where the model has seen vectors
#   before;
# - `labels`: the vectors of the words for the classes first, and drawn ones for the rest, so that it starts near what it is to
#   say.

# %%
#@exercise 12.2 minipeft.methods.soft_prompt:SoftPrompt.start
#@ Return the first values (n, D), an array of the table's type; n is `self.num_virtual_tokens`, `self.words` are token ids or
#@ None. By `self.initial`: "random": uniform between -0.5 and 0.5. "labels": the rows of `self.words` in their order, cut at n,
#@ then rows drawn from the whole table. "vocabulary": rows drawn among `self.words`, or among all where it is None. Draw with
#@ `rng` (its `choice` helps), no row twice while there are enough.
table = model.embed.tokens.weight.data
for initial, words in (("random", None), ("vocabulary", None), ("labels", [40, 41, 42, 43])):
    start = SoftPrompt(num_virtual_tokens=6, initial=initial, words=words).start(table, rng)
    print(f"{initial:10s} {start.shape}, spread of the entries {start.std():.3f} (the table's: {table.std():.3f})")

# %% [markdown]
# ## Exercise 3: the places of the words
#
# With learned places the model adds to each vector one for its place, 0, 1, 2, … Virtual tokens are places 0 to n − 1, and the
# words go on at n: so it is in HF PEFT, and by default here. The other way is to leave the words the places that they would have
# alone. All positions go down by n, and as there is no place −1, all virtual tokens share place 0.
#
# For a prefix, whose tokens stand in no place, it is the other way round: the words are at 0 unless they are moved *up* by n. The
# same wrapper serves both, around `positions`, which counts the real places (padding is not counted, cached places are).

# %%
#@exercise 12.3 minipeft.methods.virtual:MovedPositions.forward
#@ Return the position ids (1 or B, T) moved by `self.by`, a number above or below 0; none may fall below 0.
#@ `self.wrapped(length, mask, past)` gives the positions without this method.
from minipeft.methods.virtual import MovedPositions
from minipeft.models.embed import Positions

print("five words alone:                       ", Positions()(5)[0])
print("a prompt of 3, counted (places of all 8):", Positions()(8)[0])
print("a prompt of 3, not counted:              ", MovedPositions(Positions(), -3)(8)[0])
print("a prefix of 3, counted (places of all 5):", MovedPositions(Positions(), 3)(5)[0])

# %% [markdown]
# ## What the numbers show: ten vectors in the place of two words
#
# Lesson 6 asked the encoder for the class of a review by a gap: "{text} it was {mask} .", where the word that it would write
# tells the class. Now the two words that somebody thought of are left out: "{text} {mask} .". Nothing is trained but ten vectors
# before the text. There is no head either, as the label words are read where the model writes words.

# %%
from minipeft.compare.run import Run, prepare
from minipeft.data import Tokenizer
from minipeft.training import fit

tokenizer, labels = Tokenizer.from_folder("toy:encoder"), ("terrible", "bad", "good", "great")
label_ids = tokenizer.encode(" ".join(labels), add_special_tokens=False)
ASKED, BARE, N = "{text} it was {mask} .", "{text} {mask} .", 10
fixed = {"template": [BARE], "verbalizer": [",".join(f"{word}={word}" for word in labels)]}


def trained(by, lr=None, **options):
    """{"score" on test, "losses", "start", "end"} of N virtual tokens that are trained by a method; the last two are prompts."""
    run = Run("toy:encoder", "toy:rating", "prompt_based", options={"by": by, "num_virtual_tokens": N, **options}, lr=lr,
              epochs=1 if fast() else 3, train_limit=64 if fast() else None, **fixed)
    work, attachment, *_ = prepare(run)
    start = {path: array.copy() for path, array in attachment.arrays().items()}
    history = fit(attachment.model, attachment.named_parameters(), work, run.settings())
    score, path = work.evaluate(attachment.model.eval(), "test")["score"], "embed.tokens.prompt"
    return {"score": score, "losses": history["losses"], "start": start.get(path), "end": attachment.arrays().get(path)}


def untrained(template):
    """Accuracy on test of the model as it is."""
    work, attachment, *_ = prepare(Run("toy:encoder", "toy:rating", "zero_shot", **fixed | {"template": [template]}))
    return work.evaluate(attachment.model.eval(), "test")["score"]


asked, bare = untrained(ASKED), untrained(BARE)
rates = (5e-3, 2e-2) if fast() else (5e-4, 5e-3, 2e-2, 1e-1)
by_rate = {rate: trained("prompt", rate) for rate in rates}
predict(f"With the two words the model is right on {asked:.3f} of the reviews, without them on {bare:.3f} (chance is 0.25). How "
        f"far do {N} learned vectors, {N * 96} numbers, bring it without the words?", f"To {by_rate[2e-2]['score']:.3f}.")

# %% [markdown]
# About as far as the words. Somebody had to think of "it was"; the vectors were found by following a gradient, from 1,000
# labelled reviews.
#
# ## Slow learners
#
# A soft prompt wants a high learning rate. The package's default on small models is 0.02, where LoRA has 0.005 and full
# fine-tuning 0.001; Lester et al. (section 3) train T5 at 0.3 for 30,000 steps. Why?

# %%
predict("Ten vectors of words drawn at random are trained with Adam for 189 steps, at a rate of 0.0005 that falls to 0. Adam "
        "moves each number by about the rate at each step. The entries of the word vectors have a spread (standard deviation) of "
        f"{table.std():.2f}. Can the vectors become those of other words?",
        "No: 189 steps of 0.00025 on average are 0.05 at most, if all go the same way, which they never do.")
for rate, told in by_rate.items():
    moved = np.abs(told["end"] - told["start"]).mean()
    lengths = [np.linalg.norm(told[when], axis=1).mean() for when in ("start", "end")]
    print(f"rate {rate:6.4f}: accuracy {told['score']:.3f}; an entry has moved by {moved:.3f} on average, a vector's length from "
          f"{lengths[0]:.1f} to {lengths[1]:.1f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3.2))
ends = {}
for rate, told in by_rate.items():
    width = min(20, len(told["losses"]))
    smooth = np.convolve(told["losses"], np.ones(width) / width, "valid")  # a mean over 20 steps
    ends[rate] = smooth[-1]
    axes.plot(np.arange(len(smooth)) + width, smooth, label=f"rate {rate}")
axes.set_xlabel("step")
axes.set_ylabel("training loss, mean of 20 steps")
axes.legend(fontsize=8)
show(figure, "rates", "Training loss of a soft prompt against steps at several learning rates: " + ", ".join(
    f"{rate} ends at {loss:.2f}" for rate, loss in ends.items()) + ".")

# %% [markdown]
# The vectors must go far, compared with what they are, to be anything else than the words they were. That is one reason. The
# others lie in where they stand:
#
# - *At the far end.* Between a virtual token and the loss are all layers, and each passes on only what attention picks up of it.
#   A prefix acts in every layer, the last one too.
# - *Behind a norm.* BERT normalises vector + place before the first block, so that only directions count. The vectors grow as
#   they learn, and a step of the same size turns a longer one less: the further they have gone, the slower they go.
# - *By what is there.* Ten vectors at the input only choose among what the frozen model does already. A large model does much, a
#   small one little. Lester et al. (figure 1) find prompt tuning far behind full fine-tuning on small T5s and level with it at 11
#   billion parameters.
#
# On our widths of 48, 96 and 192 nothing of that can be seen yet: soft prompts with a head trail LoRA by 5.2, 7.1 and 5.3 points
# (benchmarks/README.md, finding 3). The paper's smallest model is 512 wide.

# %% [markdown]
# ## Starts, and a prefix of the same length

# %%
others = {"from words": by_rate[2e-2], "prefix": trained("prefix")}
if not fast():
    others |= {"random": trained("prompt", initial="random"), "from labels": trained("prompt", initial="labels", words=label_ids)}
for name, told in others.items():
    print(f"{name:12s} accuracy {told['score']:.3f}, loss in the first 20 steps {np.mean(told['losses'][:20]):.2f}")

# %% [markdown]
# With one seed each and 500 test reviews three or four points may be chance, so here neither the start nor the 2 L times as many
# numbers of a prefix make a difference that could be told. In the literature they do. Lester et al. (section 3.2) find a random
# start clearly behind the others on all but the largest model. Li and Liang (section 7.2) find that vectors at the input alone
# stay far behind a prefix in generation. With a head of its own the same comparison comes out so here too: on `toy:rating`, ten
# tokens, ten epochs, five seeds, the prefix has 79.7 ± 0.9 and the soft prompt 73.6 ± 1.3 (benchmarks/README.md, finding 4).
# Asked through a gap, the model does at once what it was pre-trained to do, and a prompt need only say which of its habits is
# wanted. A head reads states that nobody has trained for it, and there is more to be changed.
#
# **On a real model.** MiniLM on SST-2 (2,000 sentences, two epochs, the pooler; the README has the whole table): a soft prompt
# of 20 reaches 0.726 ± 0.018 with 8,450 trained numbers, the head's 770 among them, a prefix of 20 0.804 ± 0.005 with 92,930.
# And it is dear: a forward pass costs 1.93 times the base's, against 1.06 for the prefix. A sentence of SST-2 has about 20
# tokens, and 20 more go through every layer. The pooler of this MiniLM was never trained along with the rest. With the mean of
# the tokens, for which it was made, the two are level, at 0.818 and 0.822 (benchmarks/README.md): the more the model
# does already what is wanted, the less a prefix is ahead.

# %% [markdown]
# ## What does it say?
#
# The vectors are no words, but one can ask which words they are near: by the *cosine*, the product of two vectors divided by both
# lengths, which is 1 for the same direction and 0 for unrelated ones.

# %%
#@exercise 12.4 lesson:nearest_words
#@ Return (n, count) token ids, integers: for each row of `prompt` (n, D) the rows of `table` (V, D) with the largest cosine, the
#@ nearest first. The cosine with a row of zeros is 0.
### BEGIN SOLUTION
def nearest_words(prompt, table, count):
    """the ids of the largest p . e / (|p| |e|) for each p, in falling order"""
    lengths = np.linalg.norm(prompt, axis=1)[:, None] * np.linalg.norm(table, axis=1)  # (n, V)
    cosines = prompt @ table.T / np.where(lengths > 0, lengths, 1)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]
### END SOLUTION


told = by_rate[2e-2]
for row in range(5):
    words = [[tokenizer.decode([i]) for i in nearest_words(told[when][row:row + 1], table, 4)[0]] for when in ("start", "end")]
    moved = told["start"][row] @ told["end"][row] / (np.linalg.norm(told["start"][row]) * np.linalg.norm(told["end"][row]))
    print(f"virtual token {row}: began as {words[0][0]} (near {', '.join(words[0][1:])}), is now near {', '.join(words[1])}; "
          f"cosine with its start {moved:.2f}")

# %% [markdown]
# Most are still nearest to the word that they began as, and to nothing else in particular. It reads like no instruction, and it
# is none. On T5 Lester et al. (section 7) find neighbours that belong together, and label words that a prompt began with still
# among its neighbours. Do not read too much into them: Khashabi et al. find prompts that solve one task
# and are nearest to the words of a description of another.
#
# ## Where it breaks
#
# - Length is paid for at every call, in all layers, and takes places that the text could have. Beyond 20 tokens Lester et al.
#   (section 3.2) gain little.
# - Seeds differ. On MiniLM three runs of the same prompt tuning in HF PEFT reach 0.713, 0.577 and 0.742 (benchmarks/README.md).
#   Run more than one before you believe a score.
# - BERT's pooler reads place 0, and with a prompt that is a virtual token, here as in Hugging Face. A head that takes the mean
#   skips them by their number. So the choice of head changes what a prompt can do.
# - The vectors belong to one model. Another one, or the same one trained further, has another table, in which they mean nothing.
#
# ## Read the package's own file
#
# `minipeft/methods/soft_prompt.py`. Why does `virtual` ask `self.enabled`? Why does `wrappers` leave `positions` alone in T5?
# Where is it said that a soft prompt cannot be merged, and is the reason the same as a prefix's?
#
# ## Sources
#
# - Lester, Al-Rfou, Constant, *The Power of Scale for Parameter-Efficient Prompt Tuning*, EMNLP 2021, arXiv:2104.08691: sections
#   2.1 (starts), 3 (settings, figure 1), 3.2 (length, starts), 7 (nearest words).
# - Li, Liang, *Prefix-Tuning*, ACL 2021, arXiv:2101.00190, section 7.2: vectors at the input alone against a prefix.
# - Hambardzumyan, Khachatrian, May, *WARP*, ACL 2021, arXiv:2101.00121: learned vectors before and among the words, and at the
#   output.
# - Khashabi et al., *Prompt Waywardness*, NAACL 2022, arXiv:2112.08348: what near words do not tell.
