# %% [markdown]
# # Lesson 4. Pre-trained language models
#
# **Why.** You have sixteen labelled reviews and want a classifier. Sixteen texts cannot teach what the words mean; but there is
# no end of texts that nobody has labelled. *Pre-training* turns raw text into exercises that mark themselves: hide a part of a
# text, ask the model for it, compare. To do well it must learn what words mean, what agrees with what, who "she" is. What it has
# learned serves any task that comes later, and all methods of this course start from it.
#
# You need lesson 3 (encoder, decoder, encoder–decoder). 60 minutes.

# %% [markdown]
# ## The idea in a picture
#
# Three models, three ways to hide a part of a text:
#
#      text       the  red  ball  of  anna  is  in  the  garden  .
#
#      masked     the [MASK] ball of  anna  is  in  the  [MASK]  .      ──► encoder ──► red ... garden, at the gaps
#      (BERT)
#
#      causal     the  red  ball  of  anna  is  in  the  garden          ──► decoder ──► red ball of anna is in the garden .
#      (GPT)                                                                            each place tells the next token
#
#      spans      the  <0>  of  anna  is  <1>  garden  .                ──► encoder–decoder ──► <0> red ball <1> in the <2>
#      (T5)
#
# A *language model* says which token comes where: it gives a probability to each token of the vocabulary. A *masked language
# model*, an encoder, says it for gaps in the middle and sees both sides; a *causal language model*, a decoder, says it for the
# next token and sees the left side only.

# %% [markdown]
# ## The equation, derived
#
# How good is a language model? Ask which probability it gives to a text that people wrote. By the rule for joint probabilities
#
# $$p(x_1, ..., x_T) = \prod_t p(x_t \mid x_1, ..., x_{t-1}),$$
#
# so a model of the next token is a model of whole texts. Products of many small numbers vanish; take the logarithm, turn the
# sign, and divide by the number of tokens:
#
# $$L = -\frac{1}{T} \sum_t \log p(x_t \mid x_1, ..., x_{t-1}) .$$
#
# This is the *cross-entropy* for each token, in *nats* (units of the natural logarithm): 0 for a model that is always certain and
# right. It is the loss of pre-training. Masked models and T5 have the same loss with other tokens: those that were hidden, given
# what was left.
#
# *Perplexity* is e^L. A model that gives each of n tokens the probability 1/n has L = log n and the perplexity n. So perplexity
# is a number of choices: the model is as unsure as if it had to guess among so many equally likely tokens.

# %%
import math

import numpy as np

from minipeft import Tokenizer, load_pretrained
from minipeft.compare.pretrain import shipped
from minipeft.learn import fast, predict, show

rng = np.random.default_rng(0)
decoder, reader = load_pretrained("toy:decoder"), Tokenizer.from_folder("toy:decoder")
made = shipped("decoder")[2]  # how this model was made, with the losses that were measured then
V = decoder.config.vocab_size
predict(f"toy:decoder has a vocabulary of {V} tokens. What loss should it have had before its first step, and what perplexity?",
        f"Near log {V} = {math.log(V):.2f} nats and a perplexity near {V}; written down then: {made['losses'][0]:.2f}, that is "
        f"{math.exp(made['losses'][0]):.0f}. A first loss far above log V is a sign of weights that are too large.")

# %% [markdown]
# ## Exercises: the next token, and perplexity
#
# In batches the text itself serves as `labels` (B, T). Place t of the model's output is about token t + 1, so that the labels
# must move by one place before the two are compared. A label of −100 (`IGNORE`) means: nothing to predict here. Padding has it,
# and the last place, which has no token behind it.

# %%
#@exercise 04.1 minipeft.models.heads:following
#@ Return what each place is to predict: an array like labels (B, T) with labels[b, t + 1] at place t, and IGNORE in the last
#@ column. The labels that were given must stay as they are.
from minipeft.models.heads import following

words = np.array([reader.encode("the soup was very good .")])
for place, (read, told) in enumerate(zip(words[0], following(words)[0])):
    print(f"place {place} reads {reader.piece_of(read):6s} and is to tell {reader.piece_of(told) if told >= 0 else 'nothing'}")

# %% [markdown]
# To measure perplexity a long text is cut into *blocks* that fit into the model, and the blocks go through it in batches. The
# mean is over *tokens*: batches count for as many tokens as they predict, since the last one is smaller. And the logarithm is
# averaged first, e^ comes last.

# %%
#@exercise 04.2 minipeft.training.work:LanguageModelling.evaluate
#@ Return {"score": perplexity, "perplexity": perplexity, "loss": nats a token} of a split, floats; {} where self.blocks lacks it.
#@ self.blocks[split][0] is (N, length). `self.collate(indices, split)` is the batch of some blocks (self.batch_size at a time),
#@ `self.loss(model, batch)` its mean loss a token, a Tensor with .item(), `self.weight(batch)` how many tokens that mean is over.
#@ Record no gradients (no_grad). math.exp overflows above 709: take the exp of 700 for any larger loss.
from minipeft.data import toy
from minipeft.training import LanguageModelling

texts = toy.texts("easy", test=20 if fast() else 400)
end = reader.piece_of(reader.eos_id)  # stands between two texts
joined = {split: end.join(texts[split].splitlines()) for split in ("train", "test")}
scores = LanguageModelling(reader, {"test": joined["test"]}, 64, 16).evaluate(decoder, "test")
print(f"toy:decoder on new texts of its world: {scores['loss']:.3f} nats a token, perplexity {scores['perplexity']:.2f}")
counts = np.bincount(reader.encode(joined["train"]), minlength=V) + 1.0  # and one more: none is impossible
tokens = np.array(reader.encode(joined["test"]))
alone = math.exp(-np.log(counts / counts.sum())[tokens].mean())
print(f"a model that knows only how frequent each token is: perplexity {alone:.0f}")
by_length = {}
for length in (4, 8, 16, 64):
    work = LanguageModelling(reader, {"test": joined["test"]}, length, 1024 // length)
    by_length[length] = work.evaluate(decoder, "test")["perplexity"]
predict("The first token of a block has nothing before it, the second one token, and so on. The same text is cut into shorter "
        "blocks; what happens to the perplexity?",
        ", ".join(f"{p:.2f} with blocks of {length}" for length, p in by_length.items())
        + ". Same model, same text: a perplexity means little without the length of the context. (`stride` lets blocks overlap, "
        "so that every token has some context.)")

# %% [markdown]
# ## Exercises: masks
#
# A masked language model gets the text with some tokens chosen at random, 15 % in BERT. It must restore each chosen token. It
# would be simple to replace them all by [MASK]. But tasks that come later have no [MASK] in their texts, and a model that is
# asked only at [MASK]s need not make anything of the other tokens. So of the chosen tokens
#
#      80 %   become [MASK]                 the ball is [MASK]        → red
#      10 %   become a random token         the ball is kitchen      → red
#      10 %   stay                          the ball is red          → red
#
# and the model never knows which of the tokens that it sees it will be asked for. Special tokens and padding are never chosen.

# %%
#@exercise 04.3 minipeft.data.batching:mask_tokens
#@ Return (corrupted ids, labels), both int64 (B, T). Choose each token that is real (attention_mask) and not in special_ids with
#@ the given probability; of the chosen, 80 % become mask_id, 10 % a token drawn from 0 to vocab_size - 1, each anew, and 10 %
#@ stay. labels has the token as it was where it was chosen, IGNORE elsewhere. All draws come from `rng`: rng.random(shape) and
#@ rng.integers(n, size=shape). input_ids must stay as they are. You may leave out the checks of the arguments.
from minipeft.data import IGNORE, mask_tokens

encoder, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
text = ("there is a huge yellow lamp in the hall , and grace owns it . "
        "in other words , the huge yellow lamp in the hall belongs to grace .")
ids = np.array([tokenizer.encode(text)])
able = ids.size - 2
predict(f"At 15 %, how many of the {able} tokens of this text (its two special ones left aside) are to be restored on average, "
        "and how many [MASK]s will be seen?",
        f"0.15 · {able} = {0.15 * able:.1f}, and 80 % of them, {0.12 * able:.1f}, as [MASK].")
given, labels = mask_tokens(ids, np.ones_like(ids, bool), np.random.default_rng(5), tokenizer.mask_id, tokenizer.vocab_size,
                            tokenizer.special_ids, 0.3)
print("given   ", tokenizer.decode(given[0], skip_special_tokens=False))
print("restore ", {int(t): tokenizer.piece_of(labels[0, t]) for t in np.flatnonzero(labels[0] != IGNORE)})
best = encoder(given).logits.data[0].argmax(axis=-1)
print("told    ", {int(t): tokenizer.piece_of(best[t]) for t in np.flatnonzero(labels[0] != IGNORE)})

# %% [markdown]
# Only the chosen places have a loss. A real vocabulary has 30,000 tokens or more, so the map to the vocabulary is the dearest
# product of a small model; there is no need to compute it for the other 85 % of the places.

# %%
#@exercise 04.4 minipeft.models.heads:MaskedLMHead.loss
#@ Return the mean cross-entropy at the places whose label is not IGNORE, a Tensor. states are (B, P + T, D), where the first P =
#@ `virtual` places carry no text; labels are (B, T). `self.project(x)` maps states (N, D) to logits (N, V): give it the chosen
#@ places only. `F.cross_entropy(logits, labels)` is the mean loss of (N, V) against (N,). logits is not used.
loss = encoder(given, labels=labels).loss
print(f"{int((labels != IGNORE).sum())} places projected of {ids.size}: loss {loss.item():.3f}")

# %% [markdown]
# ## Exercise: spans
#
# T5 is an encoder–decoder, so what is hidden can be longer than one token and is *written*. In *span corruption* whole *spans*
# are taken out; each leaves a *sentinel*, a token that is no word, `<extra_id_0>`, `<extra_id_1>`, ... . The target has each
# sentinel, what it stands for, and one more sentinel as the end. Input and target together are little longer than the text, so
# that a step is cheap.

# %%
#@exercise 04.5 minipeft.data.spans:corrupt_spans
#@ Return two lists: the N tokens with sentinel i in the place of span i; and sentinel i, then span i, for each i, then one more
#@ sentinel. Take out n = round(N * density), 1 to N - 1, in m = round(n / mean_length) spans, 1 to the least of n, N - n + 1 and
#@ the sentinels less one. `parts(rng, total, m)` draws m lengths from 1 up, an array that sums to total. Between two spans a
#@ token or more stays; before the first and behind the last there may be none. Leave out the checks of the arguments.
from minipeft.data.spans import corrupt_spans

writer = Tokenizer.from_folder("toy:seq2seq")
sentinels = [writer.id_of(f"<extra_id_{number}>") for number in range(20)]
whole = writer.encode("the red ball of anna is in the garden .", add_special_tokens=False)
source, target = corrupt_spans(whole, np.random.default_rng(3), sentinels, 0.4, 2.0)
print("input ", writer.decode(source, skip_special_tokens=False))
print("target", writer.decode(target, skip_special_tokens=False))

# %% [markdown]
# ## A real corpus: CPython's manual
#
# Most Pythons carry a part of their own manual with them, as text (`pydoc_data.topics`). With headings, tables and code left
# out it is a corpus of real English prose, small, and a little different in each version of Python: your numbers will not be
# exactly those of your neighbour.

# %%
from minipeft.compare.pretrain import Recipe, start, train
from minipeft.data.corpora import read_corpus

try:
    corpus = read_corpus("python-docs")
except ValueError as error:  # some systems leave the module out
    print(f"{error}; the toy world's texts stand in for it here")
    corpus = read_corpus("toy")
print(f"{corpus.note}: {len(corpus.sample):,} texts to learn from, {len(corpus.held_out)} held out")
print("one of them:", corpus.held_out[3][:110], "...")

# %% [markdown]
# A tokenizer is trained first: it starts from single characters and joins the pairs that pay most until the vocabulary is full,
# so that frequent words are one piece and rare ones several (`##` marks a piece inside a word). Then a decoder of two blocks
# learns to continue the manual. After each round of 50 steps the perplexity on held-out paragraphs is measured.

# %%
recipe = Recipe("decoder", corpus.name, steps=20 if fast() else 800, batch_size=16, length=64, width=96, layers=2, lr=3e-3,
                vocabulary=400 if fast() else 2000)
pieces, model, work = start(recipe, corpus)
stream = pieces.encode(" ".join(corpus.sample[:4000]), add_special_tokens=False)
counts = np.bincount(stream, minlength=pieces.vocab_size) + 1.0
held = np.concatenate([row.ids for row in work.rows["dev"]])
frequency = math.exp(-np.log(counts / counts.sum())[held].mean())
untrained = math.exp(work.evaluate(model, "dev")["loss"])
history = train(recipe, model, work)
steps = [0] + [each["step"] for each in history["evaluations"]]
perplexities = [untrained] + [math.exp(each["loss"]) for each in history["evaluations"]]
print(f"{len(stream):,} tokens, {sum(p.size for p in model.parameters()):,} parameters, {history['seconds']:.0f} seconds")
print(f"perplexity on held-out paragraphs: {untrained:.0f} untrained, {frequency:.0f} by frequency alone, {perplexities[-1]:.1f} "
      f"after {steps[-1]} steps")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(steps, perplexities, "o-", label="the decoder")
axes.axhline(frequency, color="grey", linestyle="--", label="frequency of tokens alone")
axes.set_yscale("log")
axes.set_xlabel("step")
axes.set_ylabel("held-out perplexity")
axes.legend()
show(figure, "manual", "Held-out perplexity on the manual, on a logarithmic scale: " + ", ".join(
    f"{p:.0f} at step {s}" for s, p in list(zip(steps, perplexities))[::4])
     + f"; {frequency:.0f} by the frequency of tokens alone.")

# %% [markdown]
# Let it write. Each next token is drawn from the 20 most probable ones.

# %%
from minipeft import generate

for prompt in ("the value of the expression", "if an exception is raised"):
    beginning = np.array([pieces.encode(prompt, add_special_tokens=False)])
    told = generate(model, beginning, 12 if fast() else 40, rng=np.random.default_rng(1), top_k=20, eos_token_id=pieces.eos_id)
    print("*", pieces.decode(told[0]))

# %% [markdown]
# It has the sound of the manual and no sense: 800 steps on a hundred pages or so teach which words go together. (`minipeft
# pretrain --arch decoder --corpus python-docs --out FOLDER` goes on for 5,000.)
#
# ## What the numbers show on the toy world
#
# The three models of the package were pre-trained this way on texts of the toy world; `pretraining.json` in their folders has the
# losses of every round.

# %%
figure, axes = plt.subplots(figsize=(6, 3))
last = {}
for name, what in (("encoder", "masked words"), ("decoder", "next token"), ("seq2seq", "spans")):
    rounds = shipped(name)[2]["held_out"]
    axes.plot([each["step"] for each in rounds], [each["loss"] for each in rounds], "o-", markersize=3, label=f"{name}: {what}")
    last[what] = rounds[-1]["loss"]
axes.set_xlabel("step")
axes.set_ylabel("held-out loss, nats")
axes.legend()
show(figure, "made", "Held-out loss of the three models against steps; at the end " + ", ".join(
    f"{what} {value:.2f} nats" for what, value in last.items()) + ".")
predict(f"The encoder ends at {last['masked words']:.2f} nats a token and the decoder at {last['next token']:.2f}. Is the "
        "encoder the better language model?",
        "That cannot be said: they are asked different questions. At a gap both sides are seen, and some of the tokens that are "
        "to be restored were not even hidden.")

# %% [markdown]
# What is it good for? The same encoder with and without its pre-training is fine-tuned on few labelled reviews: with a new head
# all of its numbers are trained further, on the task (the method is called `full`; lesson 5 looks into it). Both get the same
# learning rate and the same six rounds (four classes, so that guessing has 0.25).

# %%
import tempfile

from minipeft import save_pretrained
from minipeft.compare.run import Run, execute
from minipeft.compare.sources import written
from minipeft.models import Encoder, MaskedLMHead

sizes, accuracy = (16,) if fast() else (64, 256, 1000), {"pre-trained": [], "fresh": []}
with tempfile.TemporaryDirectory() as folder:
    fresh = Encoder(encoder.config, rng)
    fresh.head = MaskedLMHead(encoder.config, fresh.embed.tokens.weight, rng)
    save_pretrained(fresh, f"{folder}/fresh")
    tokenizer.save(f"{folder}/fresh")
    data = written("toy:rating", folder)
    for size in sizes:
        for name, place in (("pre-trained", "toy:encoder"), ("fresh", f"{folder}/fresh")):
            run = Run(place, data, "full", train_limit=size, epochs=1 if fast() else 6)
            accuracy[name].append(execute(run, f"{folder}/{name}{size}", quiet=True)["score"])
        print(f"{size:4d} labelled reviews: accuracy", ", ".join(f"{scores[-1]:.3f} {name}" for name, scores in accuracy.items()))

# %% [markdown]
# On real models the same two things hold. More parameters lower the perplexity: GPT-2 on WikiText-103, a text that it was not
# trained on, has 37.50 with 117 million parameters, 26.37 with 345, 22.05 with 762 and 17.48 with 1,542 million (Radford et al.,
# 2019, table 3). And what was learned carries over: BERT, pre-trained on 3,300 million words, was the best of its time on eleven
# tasks with one output layer added to it (Devlin et al., section 3.1 and abstract). How much to mask is open: 40 % did better
# than 15 % for models of BERT-large's size (Wettig et al., 2023, abstract); the package takes 30 % for its small encoder. And the
# context counts there too: stories260K, a LLaMA of 260 thousand numbers, has on a sample of TinyStories, the kind of text that it
# was trained on, a perplexity of 9.5 with blocks of 16 tokens, 7.1 with 64 and 6.3 with 256 (its vocabulary has 512; measured
# with `LanguageModelling`, as above).
#
# ## Where it breaks
#
# - A decoder without its shift learns to copy: the loss soon falls to nearly 0, and the model knows nothing. A loss that is too
#   good is a fault.
# - Perplexities can be compared only for the same text, the same tokens and the same length of context. A tokenizer with longer
#   pieces has fewer and harder tokens, and a higher perplexity for the same knowledge.
# - Held-out text must be new. Raw text from the web holds many texts twice, and then the model recites.
# - What stands in no text cannot be learned from text; what stands there often is learned, true or not.
# - A model knows the places that it was trained on: toy:decoder saw blocks of 64 tokens, and places beyond mean nothing to it.
#
# ## Read the package's own files
#
# `minipeft/training/pretraining.py` has the three kinds of work, `minipeft/data/batching.py` masks and blocks,
# `minipeft/data/corpora.py` the corpora. Why are the masks of the held-out texts the same in every round, and those of training
# never? Where does a decoder's text get the end token that parts it from the next? In `LanguageModelling`, what does the label
# −100 in an overlapping block stand for?
#
# ## Sources
#
# - Devlin, Chang, Lee, Toutanova, *BERT*, NAACL 2019, arXiv:1810.04805: section 3.1 (masks, 80/10/10), appendix C.2 (other
#   shares).
# - Radford, Wu, Child, Luan, Amodei, Sutskever, *Language Models are Unsupervised Multitask Learners* (GPT-2), 2019: section 2,
#   table 3.
# - Raffel et al., *T5*, JMLR 21, 2020, arXiv:1910.10683: sections 3.1.4 and 3.3 (span corruption, and what it was compared with).
# - Wettig, Gao, Zhong, Chen, *Should You Mask 15% in Masked Language Modeling?*, EACL 2023, arXiv:2202.08005.
# - Jelinek, Mercer, Bahl, Baker, *Perplexity: a measure of the difficulty of speech recognition tasks*, JASA 62, 1977.
