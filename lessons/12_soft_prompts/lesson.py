# %% [markdown]
# # Lesson 12. Soft prompts
#
# **Why.** In lesson 6 a model was asked in words, and the score hung on the wording. Which words are best? There is no slope to walk
# down: between "it was {mask}" and "overall {mask}" lies nothing. And perhaps the best thing to say has no words at all.
#
# But a model never sees words. It sees *vectors*, one row of a table for each word. So put a few vectors before the text that are in no
# table, and learn them: they have a gradient as any parameter has. These are *soft prompts*, and learning them is *prompt tuning*. The
# model stays a closed box: nothing inside is touched, no layer needs a place for anything new. What is stored for a task is a handful of
# vectors, a few dozen kilobytes.
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
#                     the head             looks at the T words alone
#
# Lesson 11's virtual tokens were keys and values, other ones in each layer, and nothing was computed at them. These here are input:
# they go through all layers as words do, and have queries too.

# %% [markdown]
# ## The equation, derived
#
# $$X' = [P ; X], \qquad \frac{\partial L}{\partial P} = \sum_{\text{rows of the batch}} \Big( \text{the first } n \text{ rows of }
#   \frac{\partial L}{\partial X'} \Big) .$$
#
# The sum is there because the same P stands before every text of a batch: what is copied forward is added up backward (lesson 1).
#
# Set it beside a prefix of the same length. In the first layer a soft prompt *is* a prefix, with keys P W_k and values P W_v, so
# that one vector fixes both. In the layers above its keys and values are whatever the frozen layers below make of it. A prefix sets them
# freely, in every layer. Hence the counts,
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
# In the package a soft prompt is wrapped around `embed.tokens`, the table. It gives three things: the vectors, the mask, and how many
# virtual tokens lead the vectors. All three change.
#
# - The **mask** tells which places are real. Virtual tokens are, in every row.
# - The **number** goes up to the heads. The one that takes the mean of a text's states leaves the first n out; the one that writes the
#   next word gives logits for the words alone.
# - A decoder that writes word by word keeps keys and values of what it has read in a **cache**, and is then called with the new word
#   alone. The prompt must enter once, at the first call. Later it is in the cache, and only the mask still has columns for it.

# %%
predict("A decoder reads 5 words with a prompt of 3, and then writes on, one word at a call. At the second call, how many vectors go in, "
        "and how long is the mask?", "One vector, the new word's. The mask covers all places so far: 3 + 5 + 1 = 9.")

# %%
#@exercise 12.1 minipeft.methods.soft_prompt:PromptedTokens.forward
#@ Return (vectors, mask, number of virtual tokens that lead the vectors). `self.wrapped(ids, mask, past)` gives the three without this
#@ prompt: a Tensor (B, T, D), the mask over the words so far (B, S) or None, and a number. `self.prompt` is P (n, D). `past` is the
#@ number of places in the cache; where it is not 0 no vector comes before the words and the number stays, but the mask gets its n
#@ columns all the same.
from minipeft.methods.soft_prompt import PromptedTokens, SoftPrompt

tokens = PromptedTokens(model.embed.tokens, rng.uniform(-0.5, 0.5, (3, 96)).astype(np.float32))
ids, mask = rng.integers(5, model.config.vocab_size, (2, 4)), np.array([[True] * 4, [True, True, False, False]])
vectors, longer, virtual = tokens(ids, mask)
print("ids", ids.shape, "-> vectors", vectors.shape, "mask", longer.shape, "virtual", virtual)

# %% [markdown]
# Words are a special case: a prompt that holds the vectors of words is read as those words. So the best soft prompt of a length is at
# least as good as the best words of that length, on the texts that it was trained on.

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
# - `vocabulary`: the vectors of words that are drawn at random, so that the prompt starts where the model has seen vectors before;
# - `labels`: the vectors of the words for the classes first, and drawn ones for the rest, so that it starts near what it is to say.

# %%
#@exercise 12.2 minipeft.methods.soft_prompt:SoftPrompt.start
#@ Return the first values (n, D), an array of the table's type; n is `self.num_virtual_tokens`, `self.words` are token ids or None. By
#@ `self.initial`: "random": uniform between -0.5 and 0.5. "labels": the rows of `self.words` in their order, cut at n, then rows drawn from
#@ the whole table. "vocabulary": rows drawn among `self.words`, or among all where it is None. Draw with `rng` (its `choice` helps), no
#@ row twice while there are enough.
table = model.embed.tokens.weight.data
for initial, words in (("random", None), ("vocabulary", None), ("labels", [40, 41, 42, 43])):
    start = SoftPrompt(num_virtual_tokens=6, initial=initial, words=words).start(table, rng)
    print(f"{initial:10s} {start.shape}, spread of the entries {start.std():.3f} (the table's: {table.std():.3f})")

# %% [markdown]
# ## Exercise 3: the places of the words
#
# With learned places the model adds to each vector one for its place, 0, 1, 2, … Virtual tokens are places 0 to n − 1, and the words go
# on at n: so it is in HF PEFT, and by default here. The other way is to leave the words the places that they would have alone. All
# positions go down by n, and as there is no place −1, all virtual tokens share place 0.
#
# For a prefix, whose tokens stand in no place, it is the other way round: the words are at 0 unless they are moved *up* by n. The same
# wrapper serves both, around `positions`, which counts the real places (padding is not counted, cached places are).

# %%
#@exercise 12.3 minipeft.methods.virtual:MovedPositions.forward
#@ Return the position ids (1 or B, T) moved by `self.by`, a number above or below 0; none may fall below 0.
#@ `self.wrapped(length, mask, past)` gives the positions without this method.
from minipeft.methods.virtual import MovedPositions
from minipeft.models.embed import Positions

padded = np.array([[True] * 8, [True] * 5 + [False] * 3])
for by, what in ((0, "a prompt of 3, counted"), (-3, "a prompt of 3, not counted"), (3, "a prefix of 3, counted")):
    print(f"{what:27s}", MovedPositions(Positions(), by)(8 if by <= 0 else 5, None if by <= 0 else padded[:, :5], 0)[0])
