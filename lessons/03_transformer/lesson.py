# %% [markdown]
# # Lesson 3. The Transformer: attention, block, encoder, decoder, encoder–decoder
#
# **Why.** "anna has a small red ball . ben has a large blue cup . what colour is the small ball of anna ?" The answer is eighteen
# words back, between others that look like it. A model that reads text must let any word ask any other for what it knows, however
# far away it stands, and must be fast enough to do it for all words at once. The Transformer does that with one operation,
# attention. Every method of this course acts at some place inside it, so you build it first.
#
# You need lesson 1 (Tensors and their gradients) and from lesson 2 the stable softmax. 90 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A text is cut into *tokens*, words or pieces of words, by a *tokenizer*. Each token has a number, its *id*, in the *vocabulary*,
# the list of all tokens that the model knows. Then, with B texts in a batch, T tokens in each, and vectors of D numbers:
#
#      ids (B, T) ──► embed: a vector for each token ──► x (B, T, D)
#                                                          │
#      ┌───────────── a block, L of them ──────────────────┼─────────────┐
#      │                   ┌───────────────────────────────┤             │
#      │      q, k, v of every token                       │ residual    │
#      │      core: who looks at whom, a weighted mean     │             │
#      │      out                                          │             │
#      │                   └────────── h ──────► join:   x + h           │
#      │                   ┌───────────────────────────────┤             │
#      │      up, act, down, at each token alone           │ residual    │
#      │                   └────────── h ──────► join:   x + h           │
#      └───────────────────────────────────────────────────┼─────────────┘
#                                                          ▼
#                                        states (B, T, D) ──► head ──► logits
#
# A token's vector is its *embedding*. Only `core` moves anything from one token to another. Everything else works on each token
# alone. The *head* makes *logits* of the states, scores that are no probabilities yet: one for each class, or one for each token
# of the vocabulary.

# %%
import numpy as np

from minipeft import Tokenizer, load_pretrained, no_grad
from minipeft import autograd as F
from minipeft.learn import fast, predict, show

encoder, tokenizer = load_pretrained("toy:encoder", task="mlm"), Tokenizer.from_folder("toy:encoder")
config, text = encoder.config, "anna has a red ball ."
D, H, K = config.hidden_size, config.num_attention_heads, config.head_dim
ids = np.array([tokenizer.encode(text)])  # (1, T)
print([tokenizer.piece_of(i) for i in ids[0]], "are the ids", ids[0])
vectors, _, _ = encoder.embed.tokens(ids)
print("as vectors:", vectors.shape)
predict(f"The table of word vectors has a row of {D} numbers for each of the {config.vocab_size} tokens. How many numbers does "
        "the token \"red\" take from it, and does it matter where in the text it stands?",
        f"{D}, its own row, the same wherever it stands. Where it stands must come in by another way (positions, below).")

# %% [markdown]
# [CLS] and [SEP] are *special tokens*: BERT's tokenizer puts them around every text.
#
# ## Attention, derived
#
# Each token makes three vectors by linear maps of its state h: a *query* q (what it asks for), a *key* k (what it can be asked
# for) and a *value* v (what it answers). A query meets a key by their product q·k, the larger the better they fit. *Softmax*
# makes weights of the products: positive, summing to 1 over the keys. The answer is the mean of the values with these weights:
#
# $$z_{ij} = s\, q_i \cdot k_j, \qquad w_{ij} = \frac{e^{z_{ij}}}{\sum_{j'} e^{z_{ij'}}}, \qquad a_i = \sum_j w_{ij} v_j .$$
#
# It is a look-up in a dictionary, made soft: with one weight at 1 and the others at 0 it returns the value of the key that fits.
#
# Why the scale s? Let the K entries of q and k be independent with mean 0 and variance 1. Then q·k is a sum of K terms of
# variance 1, so its variance is K, and its typical size √K. For K = 64 that is 8, and e⁸ is 3,000: one weight is nearly 1, the
# others nearly 0, and softmax there hardly moves when z moves, so that its gradient is nearly zero. The scale s = 1/√K brings the
# variance back to 1. (T5 leaves it out and starts with smaller query maps instead.)

# %%
rng = np.random.default_rng(0)
for width in (4, 64, 1024):
    q, keys = rng.standard_normal(width), rng.standard_normal((8, width))
    largest = [float(F.attention_weights(F.Tensor(q[None, None, None]), F.Tensor(keys[None, None]), scale=s).data.max())
               for s in (1.0, width**-0.5)]
    print(f"K = {width:4d}: largest of 8 weights {largest[0]:.3f} without the scale, {largest[1]:.3f} with 1/√K")

# %% [markdown]
# ## Exercises: heads, and attention with its masks
#
# One attention can look at one thing at a time. So D is cut into H *attention heads* of K = D / H numbers each. (They are not
# the head that makes the logits.) Every head attends on its own, and the results are put side by side again. The maps `q`, `k`
# and `v` give all heads at once, (B, T, H K); head number h has the columns h K to (h + 1) K.
#
# Tensors have `.reshape(...)` and `.swapaxes(i, j)`, which exchanges two axes.

# %%
#@exercise 03.1 minipeft.nn.attention:Attention.split
#@ Return x, a Tensor (B, T, H K), as (B, H, T, K): result[b, h, t, k] is x[b, t, h K + k]. `heads` is H, `self.head_width` is K.
attn = encoder.blocks[0].attn
print("all heads side by side", attn.q(vectors).shape, "and apart", attn.split(attn.q(vectors), H).shape)

# %% [markdown]
# Not every query may see every key:
#
# - *Padding.* The texts of a batch have different lengths; short ones are filled up with a token that means nothing. A *mask* (B,
#   S) is true where a key is real. What is hidden gets the weight 0, exactly.
# - *The causal mask.* A model that writes must not see what comes later. With T queries and S keys, query i is token i + S − T of
#   all that were read: extra keys come *before* the first query. So key j is visible where j ≤ i + S − T:
#
#       S = T = 4                     T = 2 queries behind 3 earlier keys, S = 5
#              keys 0 1 2 3                  keys 0 1 2 3 4
#      query 0      # . . .           query 0     # # # # .
#      query 1      # # . .           query 1     # # # # #
#      query 2      # # # .
#      query 3      # # # #
#
# The same line serves for a cache (below) and for prefixes (lesson 11), which are nothing but extra keys.
#
# Where lesson 2 computed softmax of arrays in a kernel, here it is written in Tensors, so that its gradient comes by itself, with
# the products and both masks around it. Two more things a good answer needs. e^z overflows for large z; softmax does not change
# when the largest z of a row is subtracted from all, and then no exponent is above 0. And some models share one key head among
# several query heads (*grouped-query attention*), which makes the cache smaller.

# %%
#@exercise 03.2 minipeft.autograd.fused:attention_weights_composed
#@ Return softmax(scale q k^T + bias) over the visible keys, (B, H, T, S), from elementary operations on Tensors. Key j is visible
#@ to query i where mask[b, j] is true (or mask is None) and, if causal, j <= i + S - T. Hidden keys weigh 0, even if all are. q
#@ is (B, H, T, K), k (B, H', S, K), each key head for H / H' consecutive query heads: `_by_key_head(x, H')` sees q as (B, H', H /
#@ H', T, K) and k as (B, H', 1, S, K). bias is (1 or B, H, T, S) or None, and is not scaled.
from minipeft.autograd.fused import attention_weights_composed

q, k = (F.Tensor(rng.standard_normal((1, 1, n, 4))) for n in (2, 5))
print("2 queries behind 3 earlier keys, causal, the first key padding:")
print(attention_weights_composed(q, k, np.array([[False, True, True, True, True]]), scale=0.5, causal=True).data[0, 0].round(2))

# %% [markdown]
# ## Positions
#
# Attention is a sum over keys, and a sum does not know the order of its terms.

# %%
blind = encoder.copy()
blind.embed.position.weight.data[:] = 0
other = np.array([tokenizer.encode("ball has a red anna .")])
state = lambda model, ids: model(ids).last_hidden_state.data[0, 4]  # that of "red", (D,)
moved = [float(np.abs(state(model, ids) - state(model, other)).max()) for model in (encoder, blind)]
predict("\"anna has a red ball\" or \"ball has a red anna\": by how much does the state of \"red\" change, with the model's "
        "positions and with all position vectors set to zero?",
        f"By up to {moved[0]:.2f} with positions. Without, by {moved[1]:.0e}, which is rounding: they are one bag of words.")

# %% [markdown]
# There are three usual ways to say where a token stands. Each model takes one of them.
#
# **Learned positions** (BERT, GPT-2): a second table, with a vector for each place (a *positional embedding*), added to the word
# vectors. Simple; but there is no vector for a place beyond the longest text of pre-training.
#
# **Rotary positions** (LLaMA): the query and the key are *turned*. Take two numbers of a head as a point in the plane and turn it
# by the angle p φ at position p. With the turning matrix R(α),
#
# $$(R(i\varphi)\,q) \cdot (R(j\varphi)\,k) = q \cdot R((j - i)\varphi)\,k ,$$
#
# because turning back by iφ undoes part of the turning by jφ. So the score depends on the distance j − i alone, and no vector
# gets longer. A head has K/2 such pairs, number c made of the entries c and c + K/2, with angles that range from fast to slow:
#
# $$\varphi_c = \theta^{-2c/K}, \quad c = 0, ..., K/2 - 1, \quad \theta = 10{,}000 .$$
#
# **Relative bias** (T5): nothing is added to the vectors; each head adds a learned number to the score, one for each *bucket*
# of distances. Near distances have a bucket each; far ones share buckets that grow in proportion to the distance; the last
# bucket takes all distances from 113 on (in an encoder, which has 16 buckets for each side, from 91 on). The model must learn
# 32 numbers a head, and they serve a text of any length.

# %%
#@exercise 03.3 minipeft.nn.attention:Rotary.forward
#@ Return x, a Tensor (B, H, T, K), with pair c of each vector, its entries c and c + K/2, turned by the angle p *
#@ self.inverse[c], where p is the vector's position in position_ids (B or 1, T); `self.inverse` is (K/2,). `F.rotate(x, cos,
#@ sin)` turns all pairs, given cosines and sines that broadcast to (B, H, T, K/2).
from minipeft.nn import RelativeBias, Rotary

rotary, (q, k) = Rotary(16, 10000.0), rng.standard_normal((2, 1, 1, 1, 16))
turned = lambda x, position: rotary(F.Tensor(x), np.array([[position]])).data.ravel()
for i, j in ((0, 3), (50, 53), (50, 57)):
    print(f"query at {i:2d}, key at {j:2d}: score {turned(q, i) @ turned(k, j):+.4f}")

# %%
import matplotlib.pyplot as plt

distances = np.arange(-160, 161)
figure, axes = plt.subplots(figsize=(6, 3))
for causal, name in ((False, "encoder"), (True, "decoder")):
    buckets = RelativeBias(32, 128, H, causal).bucket(distances)
    axes.step(distances, buckets, where="mid", label=name)
axes.set_xlabel("distance, key − query")
axes.set_ylabel("bucket")
axes.legend()
own = RelativeBias(32, 128, H, True).bucket(-np.arange(161))  # the decoder's, for keys 0, 1, 2, ... behind the query
show(figure, "buckets", f"T5's buckets against distance. In the decoder the first {int((np.bincount(own) == 1).sum())} distances "
     f"backward have a bucket each, distances 16 to 32 share {len(set(own[16:33]))}, and all from {int((own == 31).argmax())} on "
     f"share the last, number {own.max()}; all keys ahead are in bucket 0. In the encoder half of the 32 are for keys ahead.")

# %% [markdown]
# ## The block: residual, norm, feed-forward
#
# A sub-layer does not replace its input x; it *adds* to it: x + h. This *residual connection* leaves a straight way from the
# embedding to the head, on which gradients pass through every block unharmed.
#
# Sums grow from block to block, so they are *normalised*. *Layer norm* takes the mean of a vector's D numbers away, divides by
# their standard deviation, and gives each entry a learned scale and bias; *RMS norm* (LLaMA, T5) leaves the mean and the bias
# out. It stands at one of two places:
#
# $$\text{post-norm (BERT):}\ y = \text{norm}(x + f(x)) \qquad \text{pre-norm (GPT-2, LLaMA, T5):}\ y = x + f(\text{norm}(x))$$
#
# Pre-norm leaves the straight way free of norms, and one more norm comes at the very end (`final_norm`). It is easier to train:
# post-norm needs a learning rate that rises slowly at first (Xiong et al., 2020).
#
# The second sub-layer is the *feed-forward network*: a map to F numbers, usually 4 D, an *activation* that bends each number
# (GELU, ReLU), and a map back, at each token alone. It has two thirds of a block's parameters: 2 D F = 8 D² against 4 D² of q, k,
# v and out. LLaMA's is *gated*: one map's activation multiplies another map's output.
#
# In training some models set random entries to zero (*dropout*), so that no entry is relied upon too much.
#
# Two inputs of attention come up again below. A *cache* keeps the keys and values of earlier tokens. A *source* is the states
# of another stack of blocks: *cross-attention* makes its keys and values from them. They stay the same, so one makes them only
# once.

# %%
#@exercise 03.4 minipeft.nn.attention:Attention.forward
#@ Return the sub-layer's output (B, T, D). h is self.norm(x), or x without a norm. Queries: self.q(h), split, and turned by
#@ self.rotary(q, position_ids) if there is one. Keys and values: self.keys_values(h, position_ids), behind those of a cache with
#@ cache.append(k, v). With a source: self.keys_values(source), with a cache cache.once(function making them); q is not turned.
#@ Then self.core(q, k, v, mask, bias, self.scale), the heads side by side, self.out, self.dropout, and self.join with x itself.
def parts(block):
    """{sub-layer: number of parameters} of a block."""
    return {name: sum(p.size for p in child.parameters()) for name, child in block.children()}


print("post-norm:", encoder.blocks[0].attn(vectors).shape, "parameters of a block:", parts(encoder.blocks[0]))
predict(f"D is {D} here, and K is {K}. An attention's four maps have 4 (D² + D) numbers, and its norm 2 D. How many belong to "
        "one head?",
        f"K columns of q, k and v with their biases, and K rows of out: 4 D K + 3 K = {4 * D * K + 3 * K}. The norm and the bias "
        "of out belong to no head.")

# %% [markdown]
# ## Encoder, decoder, encoder–decoder
#
# From the same blocks come three kinds of model. They differ in who sees whom. Here that is measured: one input token is changed,
# and `#` marks the places whose last state changed.

# %%
def reach(states, ids):
    """(places, tokens) of booleans: whether the state of a place changes when a token of ids (1, T) does."""
    with no_grad():
        before, columns = states(ids), []
        for j in range(ids.shape[1]):
            changed = ids.copy()
            changed[0, j] = 20 if ids[0, j] != 20 else 21
            columns.append(np.abs(states(changed) - before).max(axis=-1) > 1e-6)  # (places,)
    return np.array(columns).T


def draw(name, seen):
    """Print a matrix of booleans."""
    print(name, *("   " + " ".join(".#"[int(mark)] for mark in row) for row in seen), sep="\n")


decoder, seq2seq = load_pretrained("toy:decoder"), load_pretrained("toy:seq2seq")
source, target = rng.integers(30, 100, (1, 6)), rng.integers(30, 100, (1, 4))
draw("encoder (BERT): every token sees all", reach(lambda x: encoder(x).last_hidden_state.data[0], source))
draw("decoder (GPT-2): those before it and itself", reach(lambda x: decoder(x).last_hidden_state.data[0], source))
both = lambda a, b: seq2seq(a, decoder_input_ids=b).last_hidden_state.data[0]
draw("encoder–decoder (T5), written tokens: the source, all of it", reach(lambda x: both(x, target), source))
draw("                      and what was written before", reach(lambda x: both(source, x), target))

# %% [markdown]
# - An *encoder* reads a whole text at once: good for classes and for filling gaps. For a class the states of all tokens must
#   become one vector; that is *pooling*: their mean, the first token's, or the last's.
# - A *decoder* may only look back, so that it can be asked at every place for the next token, and can write.
# - An *encoder–decoder*, or *sequence-to-sequence* model, reads a source and writes a target. Its decoder's blocks have a third
#   sub-layer, *cross-attention*: queries from what is being written, keys and values from the encoder's states.
#
# Padding must change nothing:

# %%
padded = np.concatenate([ids, np.full((1, 5), tokenizer.pad_id)], axis=1)
mask = np.arange(padded.shape[1])[None] < ids.shape[1]
alone, beside = encoder(ids).last_hidden_state.data, encoder(padded, mask).last_hidden_state.data
careless = encoder(padded).last_hidden_state.data
print(f"largest change of a real token's state by padding: {np.abs(beside[:, :ids.shape[1]] - alone).max():.0e} with the mask, "
      f"{np.abs(careless[:, :ids.shape[1]] - alone).max():.2f} when the mask is forgotten")

# %% [markdown]
# ## Writing with a cache
#
# To write, a decoder reads the text, its head gives logits for the next token, one token is chosen and put behind the text, and
# so on. Under the causal mask nothing that comes later changes the keys and values of earlier tokens. So they need not be
# computed again: a *cache* keeps them, and each step computes one token alone, which is one query over S keys. That is why the
# mask is written for S ≥ T.

# %%
#@exercise 03.5 minipeft.models.generation:LayerCache.append
#@ Store k and v, Tensors (B, H, T, K), behind the `self.length` places that are there, and return all keys and all values so far
#@ as Tensors (B, H, S, K). `self.reserve(k, needed)` makes room for `needed` places in the arrays `self.keys` and `self.values`
#@ (B, H, room, K), which may have more room than that; what is behind the last place means nothing. `self.length` must be right
#@ for the next call.
import time

from minipeft import generate

writer, words = Tokenizer.from_folder("toy:decoder"), 20 if fast() else 100
start = np.array([writer.encode("anna has a red ball . ben has a blue cup .")])


def without_cache(ids, count):
    """The most probable next token, count times, the whole text read anew for each."""
    with no_grad():
        for _ in range(count):
            ids = np.concatenate([ids, decoder(ids).logits.data[:, -1].argmax(axis=1)[:, None]], axis=1)
    return ids


written, seconds = {}, {}
with_cache = lambda ids, count: generate(decoder, ids, count, eos_token_id=-1)  # no token ends the text
for name, write in (("with", with_cache), ("without", without_cache)):
    write(start, words)  # once unmeasured: the first call makes arrays and compiles
    began = time.perf_counter()
    written[name] = write(start, words)
    seconds[name] = time.perf_counter() - began
print("the same text both ways:", np.array_equal(*written.values()))
print(writer.decode(written["with"][0, :40]), "...")
P = start.shape[1]
predict(f"{words} tokens are written behind {P}. Through how many tokens does each block go in all, with a cache and without?",
        f"With: {P} + {words - 1} = {P + words - 1}, each once. Without: {P} + {P + 1} + ... = {sum(range(P, P + words)):,}. "
        f"Measured: {1000 * seconds['with']:.0f} ms and {1000 * seconds['without']:.0f} ms; in so small a model what each call "
        "costs besides hides most of the difference.")

# %% [markdown]
# A cache takes memory: 2 L H' K numbers for each token. LLaMA 7B has 32 layers and 32 heads of 128 (Touvron et al., table 2):
# with 2 bytes a number that is half a megabyte for each token, a gigabyte for a text of 2,048. Sharing key heads among 8 query
# heads each (H' = 4) makes it an eighth.
#
# ## What the numbers show: attention and positions, each taken away
#
# A task that needs both: read eight digits and give them in reverse order. One block is trained from nothing, three times: whole;
# with its position vectors held at zero; and with a core that lets nothing through. `replace` puts another module in the place of
# a child, which is how every method of this course enters a model. AdamW takes the steps (lesson 2 has its formula, lesson 5
# derives it).

# %%
from minipeft.models import Encoder, MaskedLMHead, TransformerConfig
from minipeft.nn import Module
from minipeft.training import AdamW


class Nothing(Module):
    """A core of attention that hands nothing on."""

    def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
        return q * 0.0


def reverser(kind, steps):
    """The share of digits that are right at each step of training; every batch is new."""
    rng = np.random.default_rng(1)
    shape = TransformerConfig(model_type="bert", vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=64, max_position_embeddings=8, initializer_range=0.1)
    model = Encoder(shape, rng)
    model.head = MaskedLMHead(shape, model.embed.tokens.weight, rng)
    if kind == "no positions":
        model.embed.position.weight.data[:] = 0
        model.embed.position.requires_grad_(False)
    if kind == "no attention":
        model.replace("blocks.0.attn.core", Nothing())
    optimizer, right = AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3), []
    for _ in range(steps):
        digits = rng.integers(0, 10, (64, 8))  # (B, T)
        out = model(digits, labels=digits[:, ::-1])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        right.append(float((out.logits.data.argmax(axis=-1) == digits[:, ::-1]).mean()))
    return right


kinds, steps = ("whole", "no positions", "no attention"), 30 if fast() else 400
curves = {kind: reverser(kind, steps) for kind in kinds}
final = {kind: float(np.mean(curve[-20:])) for kind, curve in curves.items()}
predict("Without attention each place knows its own digit and its own place only. What share can it get right? And without "
        "positions?",
        f"Without attention a tenth, by guessing ({final['no attention']:.2f} measured). Without positions it knows which digits "
        f"there are, not which stands opposite: better than a tenth ({final['no positions']:.2f}). Whole: {final['whole']:.2f}.")
figure, axes = plt.subplots(figsize=(6, 3))
for kind in kinds:
    axes.plot(curves[kind], label=kind)
axes.set_xlabel("step")
axes.set_ylabel("digits right")
axes.legend()
show(figure, "reversal", f"Share of digits right over {steps} steps of learning to reverse eight digits; mean of the last 20: "
     + ", ".join(f"{kind} {share:.2f}" for kind, share in final.items()) + ".")

# %% [markdown]
# ## Looking inside a pre-trained model
#
# The same place can be used to watch. A *wrapper* goes around `attn.core`, writes the weights down and changes nothing.

# %%
from minipeft.nn import Wrapper


class Watch(Wrapper):
    """Around a core: remembers the attention weights."""

    def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
        self.weights = F.attention_weights(q, k, mask, bias, scale, self.wrapped.causal).data  # (B, H, T, S)
        return self.wrapped(q, k, v, mask, bias, scale)


story = "anna has a small red ball . ben has a large blue cup . what colour is the small ball of anna ? [MASK] ."
ids = np.array([tokenizer.encode(story)])
pieces = [tokenizer.piece_of(i) for i in ids[0]]
gap = pieces.index("[MASK]")
before = encoder(ids).logits.data
for layer in range(config.num_hidden_layers):
    encoder.replace(f"blocks.{layer}.attn.core", Watch(encoder.get(f"blocks.{layer}.attn.core")))
after = encoder(ids).logits.data
print("the wrappers change nothing:", np.array_equal(before, after))
weights = np.stack([block.attn.core.weights[0, :, gap] for block in encoder.blocks]).reshape(-1, len(pieces))  # (L H, T)
best = int(weights[:, pieces.index("red")].argmax())
guesses = np.argsort(-after[0, gap])[:3]
print("the model fills the gap with", ", ".join(tokenizer.piece_of(i) for i in guesses))

figure, axes = plt.subplots(figsize=(8, 3.5))
axes.imshow(weights, aspect="auto", cmap="Blues")
axes.set_xticks(range(len(pieces)), pieces, rotation=60)
axes.set_ylabel("layer × head")
show(figure, "attention", f"Attention weights from the gap to each token, a row for each of {len(weights)} heads. Layer "
     f"{best // H}, head {best % H}, gives the word red {weights[best, pieces.index('red')]:.2f}, the most of all heads, and the "
     f"word blue {weights[best, pieces.index('blue')]:.2f}.")

# %% [markdown]
# Such pictures are a beginning and no proof: a weight says where a head looked, not what the model made of it.
#
# On real models the same parts stand in larger numbers: BERT-base has 12 blocks with D = 768 and 12 heads, 110 million parameters
# (Devlin et al., section 3); all-MiniLM-L6-v2, which the README fine-tunes, has 6 blocks with D = 384, 22.7 million. Do several
# heads help? In the translation model of the first paper a single head of full width scored 0.9 points of BLEU (how many runs of
# words a translation shares with a person's, from 0 to 100) below the best number of heads, and too many heads were worse again
# (Vaswani et al., section 6.2 and table 3, rows A). Row E of the same table finds learned positions as good as the fixed waves of
# that paper.
#
# ## The seams
#
# A *seam* is a named child at which something can be wrapped or replaced. These are those of one block of each kind:

# %%
for name, model, block in (("BERT", load_pretrained("toy:encoder"), "blocks.0"), ("T5's decoder", seq2seq, "decoder.blocks.0")):
    paths = [path for path, _ in model.get(block).named_modules() if path.count(".") == 1]
    print(f"{name}: {', '.join(paths)}")

# %% [markdown]
# LoRA sits on `q` and `v`, adapters at `join`, prefixes at `core`, (IA)³ on `k`, `v` and `down`, soft prompts before
# `embed.tokens`. The model's code names none of them.
#
# ## Where it breaks
#
# - Attention compares every token with every other: T² scores for each head. Twice the text, four times the scores.
# - A text longer than the learned positions is refused. A model with relative or rotary positions takes it, and may still do
#   badly on distances that it never saw in pre-training.
# - A forgotten mask raises no error. The states are then a little wrong, and different in every batch, as above.
# - Rows with padding on the left need positions that do not count it (`positions_of` in `models/config.py`); else a decoder
#   writes from wrong places.
# - A token that may see no key has nothing to take the mean of. Softmax would give 0/0; here its weights are 0.
#
# ## Read the package's own files
#
# `minipeft/nn/attention.py`, then `block.py`, then `models/transformer.py`; about 300 lines in all. Where is the line that makes
# a model post-norm? Why does `AttentionCore` not know whether a key comes from a word, a cache or a prefix? In
# `models/seq2seq.py` there are two embedding modules with one weight: what would go wrong with a single module for both sides,
# once a soft prompt stands before its words?
#
# ## Sources
#
# - Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, NeurIPS 2017, arXiv:1706.03762: sections 3.2
#   (attention, the scale, heads), 3.3 (feed-forward), 6.2 (which parts matter).
# - Devlin, Chang, Lee, Toutanova, *BERT*, NAACL 2019, arXiv:1810.04805: section 3.
# - Radford, Wu, Child, Luan, Amodei, Sutskever, *GPT-2*, 2019: section 2.3 (pre-norm, one more norm at the end).
# - Raffel et al., *T5*, JMLR 21, 2020, arXiv:1910.10683: section 2.1 (relative bias, buckets).
# - Su et al., *RoFormer*, 2021, arXiv:2104.09864: sections 3.2 and 3.4 (rotary positions).
# - Touvron et al., *LLaMA*, 2023, arXiv:2302.13971: section 2.2 and table 2.
# - Shazeer, 2020, arXiv:2002.05202: gated feed-forward networks. Ainslie et al., EMNLP 2023, arXiv:2305.13245: grouped-query
#   attention.
# - Ba, Kiros, Hinton, *Layer normalization*, 2016, arXiv:1607.06450. Xiong et al., ICML 2020, arXiv:2002.04745: pre-norm against
#   post-norm.
