# %% [markdown]
# # Lesson 6. Prompts and verbalizers: no labels, or a few
#
# **Why.** You have ten thousand reviews, and want to know which are kind. You have no labels, or eight, because somebody must
# read a text to label it. With eight labels a new classification head, which starts from random numbers, learns next to nothing.
# But the model has read a great deal, and in what it read, words such as *good* and *bad* stood in their places. So do not build
# a head: put the review into a sentence with a gap, and look which word the model would write there.
#
# A text that a model is asked with is a *prompt*. *Zero-shot* means without any labelled example, *few-shot* with a few.
#
# You need lesson 4 (what a masked and a causal language model learn). Lesson 5's fine-tuning is used and not explained again.
# 60 minutes.

# %% [markdown]
# ## The idea in a picture
#
#     text        the cake was dull .
#                     │
#     template    "{text} it was {mask} ."              a pattern with a gap
#                     │
#     prompt      [CLS] the cake was dull . it was [MASK] . [SEP]
#                                                     │
#                                 the model, and the head it was pre-trained with
#                                                     │
#     logits z          it 6.7 | dull 7.5 | good 10.9 | bad 15.3 | terrible 9.9 | ...    one for each word of the vocabulary
#                                                │          │
#     verbalizer                            positive     negative                         a word (or some words) for each class
#                                                │          │
#     scores s                                 10.9       15.3                            all other words have no part in it
#                                                │          │
#     q = softmax of s                         0.01       0.99
#
# A *template* (or *pattern*) says where the text and the gap stand. A *verbalizer* says which *label words* stand for which
# class. Nothing is added to the model, so it can answer before any training.

# %% [markdown]
# ## The equation
#
# Let h (D) be what the head's last map reads at the gap: in GPT-2 the state itself, in BERT the state behind one more map, an
# activation and a norm. Let e_w and b_w be the output vector and bias that the head has for word w, and W_c the label words of
# class c. Then
#
# $$z_w = h\cdot e_w + b_w, \qquad s_c = \frac{1}{|W_c|}\sum_{w \in W_c} z_w, \qquad
# q_c = \frac{\exp s_c}{\sum_{c'} \exp s_{c'}} .$$
#
# The sum in q goes over the classes and not over the vocabulary: a *restricted softmax*. What the model thinks of *the* or *cake*
# at the gap cancels out. With several words a class the mean keeps a class from winning by the number of its words.
#
# Compare that with a head. A head has a matrix of its own, one column for each class, and it is drawn by lot. Here the column of
# class c is the mean of its words' output vectors, which pre-training has shaped. **A prompt is a head that does not start at
# random**, on a state that the template has asked for.
#
# To train it, take −log q of the right class y. As with any softmax,
#
# $$\frac{\partial L}{\partial s_c} = q_c - [c = y], \qquad
# \frac{\partial L}{\partial z_w} = \frac{1}{|W_c|}\frac{\partial L}{\partial s_c} \text{ for } w \in W_c, \text{ else } 0 .$$

# %%
import numpy as np

from minipeft import Full, Settings, Tokenizer, attach, fit, load_pretrained
from minipeft.data import Dataset, Example, toy
from minipeft.learn import fast, predict, show
from minipeft.prompting import (SEEDS, Calibration, ClozeClassification, Demonstrations, RankClassification, Template, Verbalizer,
                                class_scores, data_advantage, few_shot, gap_logits, null_verbalizer, restricted_softmax,
                                separator_of)
from minipeft.training import Classification

KNOWN, NULL = "{text} it was {mask} .", "{text} {mask}"
example = Example("the cake was dull .")
predict("\"negative\" has the label words bad and dull, \"positive\" has good alone. At a gap the logits are 4 for bad, 2 for "
        "dull and 4 for good. Which class has the higher score, and which would have it if a class's logits were added up?",
        "positive: 4 against a mean of 3. Added up it would be negative, 6 against 4, for no better reason than its two words.")

# %% [markdown]
# ## Exercises: template and verbalizer
#
# A masked model reads both sides of the gap. A causal model reads what stands before it, and answers with the next word. A
# sequence-to-sequence model reads both sides with a *sentinel* between them, a token in the place of what was cut out, and writes
# what stands for the sentinel. All three need the same thing first: what stands before the gap, and what behind it.

# %%
#@exercise 06.1 minipeft.prompting.templates:Template.halves
#@ Return [what stands before the mask, what stands behind it], two texts. `self.parts` are the parts of the pattern in order,
#@ each (words, field): first come the words, then the field, which is "text", "text2", "mask" or, behind the last words, None.
#@ `context` stands before everything; a second text that is None is an empty one. The parts of "{mask} ? {text}" are ("", "mask")
#@ and (" ? ", "text").
for kind, name in (("masked", "toy:encoder"), ("causal", "toy:decoder"), ("seq2seq", "toy:seq2seq")):
    tokenizer = Tokenizer.from_folder(name)
    (cloze,), _ = Template(KNOWN).encode(tokenizer, [example], 64, kind)
    place = "in the decoder, behind the sentinel" if kind == "seq2seq" else f"at {tokenizer.piece_of(cloze.ids[cloze.place])!r}"
    print(f"{kind:8s}{' '.join(map(tokenizer.piece_of, cloze.ids)):55s}read {place}")

# %%
#@exercise 06.2 minipeft.prompting.verbalizers:class_scores
#@ Return s (..., C), a Tensor, of the logits (..., V) at the gap, a Tensor: for each class the mean of the logits of its words.
#@ `ids` is a list of C arrays, the ids of each class's words; classes may have different numbers of words. Gradients must come
#@ through.
model, tokenizer = load_pretrained("toy:encoder"), Tokenizer.from_folder("toy:encoder")
words = Verbalizer({"negative": "bad", "positive": "good"})
data = toy.dataset("sentiment", seed=0, train=200 if fast() else 1000, dev=1, test=60 if fast() else 400)
test = Dataset({"test": data.splits["test"]}, data.labels)
asked = ClozeClassification(tokenizer, Dataset({"test": [example]}, data.labels), model.config, Template(KNOWN), words, 96, 16)
z = gap_logits(model, asked.collate(np.array([0]), "test"))  # (1, V)
print("the likeliest words:", ", ".join(f"{tokenizer.piece_of(i)} {z.data[0, i]:.1f}" for i in np.argsort(-z.data[0])[:6]))
s = class_scores(z, words.ids(tokenizer))
print("s", s.data.round(2), " q", restricted_softmax(s.data).round(3), "for", words.labels)

# %% [markdown]
# ## Zero-shot, and what a prompt is worth before any training
#
# `toy:sentiment` are reviews in two classes, half of them positive; 2 % of the labels are wrong on purpose, so 98 % is the most
# that anybody can reach. The raw text on which the toy models were trained has reviews that end in "it was good .". Four prompts:

# %%
PROMPTS = (KNOWN, "{text} answer : {mask} .", "is it {mask} ? {text}", NULL)
works = {pattern: ClozeClassification(tokenizer, test, model.config, Template(pattern), words, 96, 16) for pattern in PROMPTS}
zero = {pattern: work.evaluate(model, "test")["accuracy"] for pattern, work in works.items()}
predict(f"The model and the two words are the same for all four: {' | '.join(PROMPTS)}. The first stands word for word in the "
        "raw text, the last is no more than a text and a gap (a null prompt). Which accuracy has the best, and which the worst?",
        " | ".join(f"{pattern} {accuracy:.2f}" for pattern, accuracy in zero.items()))

# %% [markdown]
# Same model, same words, and the accuracy is anything from little better than chance to what hundreds of labels teach a head (see
# below). A prompt works as far as it looks like text in which the answer would have stood. That is also the danger of a zero-shot
# result: somebody has chosen the prompt, often by looking at labels (Perez, Kiela and Cho, 2021).
#
# ## Calibration: what it says without having read anything
#
# Part of the trouble is a preference. Some label words are likelier than others at this gap whatever the text is: because they
# are common, or because of the words around the gap. Suppose the model's answer is the one you want, times a preference of its
# own:
#
# $$q_c(x) \propto p_c(x)\,\pi_c .$$
#
# Where x says nothing ("", "N/A"), p should be the same for all classes, so q(x) ∝ π. Measure it there, call it q_cf (for
# *content-free*; the mean over several such inputs is steadier than one), and divide:
#
# $$q'_c = \frac{q_c / q_{cf,c}}{\sum_{c'} q_{c'} / q_{cf,c'}} .$$
#
# In the scores that is $s'_c = s_c - \log q_{cf,c}$: a bias for each class, found without any label. This is *contextual
# calibration*.

# %%
#@exercise 06.3 minipeft.prompting.calibration:calibrated
#@ Return q' (N, C), an array in float64: each row of q (N, C) divided by q_cf, class by class, and then by its own sum. `q_cf` is
#@ (C,), or (M, C) for M inputs without content, whose mean is meant. Raise ValueError where a class has the probability 0 there.
after, shares = {}, {}
for pattern, work in works.items():
    steady = Calibration(work, tokenizer, 96)
    after[pattern] = steady.evaluate(model, "test")["accuracy"]
    shares[pattern] = [(p.predict(model, "test").argmax(axis=1) == 1).mean() for p in (work, steady)]
    print(f"{pattern:26s}accuracy {zero[pattern]:.2f} -> {after[pattern]:.2f}    answers 'positive' {shares[pattern][0]:.2f} -> "
          f"{shares[pattern][1]:.2f}    without content {work.predict(model, Calibration.SPLIT).mean(axis=0).round(2)}")

# %% [markdown]
# Half of the texts are positive. Where a prompt says "positive" far too often, calibration helps. Where a prompt is even-handed
# to begin with, it can do harm: the inputs without content are texts that the model has never seen the like of, and what it says
# of them need not be its preference on real reviews. So look at the share of each answer first; it needs no labels.
#
# ## Answers of several words: rank classification
#
# One gap holds one token. A model that writes (a decoder, or an encoder–decoder) can be asked how probable a whole answer is:
#
# $$l(c) = \sum_t \log p(c_t \mid \text{prompt}, c_{<t}) .$$
#
# Every token multiplies the probability by a number below 1. So each further token makes l smaller, and a long answer is at a
# disadvantage against a short one, right or not. *Length normalisation* divides l(c) by the number of tokens of c: the mean of
# log p for each token.

# %%
#@exercise 06.4 minipeft.prompting.ranking:RankClassification.log_likelihoods
#@ Return l (B, C), an array in float64. `self.words[c]` are the tokens of class c's answer, and `self.normalised` says whether l
#@ is divided by their number. `self.answers(model, batch, choices)` takes the class that is written behind each of the B prompts,
#@ and gives the logits (N, V), a Tensor, the tokens (N,) they are to predict, and which prompt's each is, rows (N,): N tokens in
#@ all, in the order of the prompts.
decoder, d_tokenizer = load_pretrained("toy:decoder"), Tokenizer.from_folder("toy:decoder")
some = Dataset({"test": data.splits["test"][:200]}, data.labels)
ANSWERS = (("bad", "good"), ("bad .", "good . anna left glad ."), ("bad", "good . i liked it ."))
ranked = {}
for bad, good in ANSWERS:
    for normalised in (False, True):
        work = RankClassification(d_tokenizer, some, decoder.config, Template("{text} it was {mask}"),
                                  Verbalizer({"negative": bad, "positive": good}), 64, 16, normalised=normalised)
        p = work.predict(decoder, "test")
        ranked[good, normalised] = (p.argmax(axis=1) == work.targets["test"]).mean(), (p.argmax(axis=1) == 1).mean()
predict("The answers 'bad .' and 'good . anna left glad .' have two tokens and six. Not normalised, which one wins too often?",
        f"the short one: 'positive' is answered for {ranked[ANSWERS[1][1], False][1]:.0%} of the texts, and half of them are")
for bad, good in ANSWERS:
    for normalised in (False, True):
        accuracy, share = ranked[good, normalised]
        print(f"{bad!r:8} or {good!r:26}{'l / length' if normalised else 'l':12}accuracy {accuracy:.2f}, positive {share:.2f}")

# %% [markdown]
# With one word each there is nothing to normalise. In the second pair it sets the balance right. In the third it tips it to the
# other side: behind *good .* the words *i liked it .* are nearly certain, they cost next to nothing, and their number makes the
# mean look good. Length normalisation is a rule of thumb. Where you can, choose answers of equal length.
#
# ## Demonstrations: solved examples before the question
#
# Without training anything, one may put solved examples before the question, each the filled template: *in-context learning*. The
# prompt is then the *demonstrations*, parted from each other, and the question last.
#
# $$\text{prompt} = T(x_1, w_{y_1}) \mid \dots \mid T(x_K, w_{y_K}) \mid T(x, \text{gap})$$
#
# `Demonstrations` draws them; where the whole is too long the first are left out, and the question's own answer is never among
# them.

# %%
shown = {}
for pattern in (KNOWN, "{text} answer : {mask} ."):
    for shots in (0, 1) if fast() else (0, 1, 2):
        scores, stand = [], []
        for seed in SEEDS[:1] if fast() or not shots else SEEDS[:3]:
            train = few_shot(data, max(shots, 1), seed).splits["train"]
            before = Demonstrations(train, separator=separator_of(d_tokenizer, "causal")) if shots else None
            work = ClozeClassification(d_tokenizer, some, decoder.config, Template(pattern), words, 64, 16, demonstrations=before)
            scores.append((work.predict(decoder, "test").argmax(axis=1) == work.targets["test"]).mean())
            stand.append(np.mean([len(context) for context in work.contexts["test"]]))  # for the others there was no room
        shown[pattern, shots] = np.mean(scores)
        print(f"{pattern:26s}{2 * shots} demonstrations, {np.mean(stand):.1f} of them in 64 tokens: "
              f"accuracy {np.mean(scores):.2f}, {min(scores):.2f} to {max(scores):.2f}")

# %% [markdown]
# They change next to nothing here: a prompt that the toy decoder does not understand stays one, and one that it understands is
# near its best without them. (With ratings, in four classes, where it is not, they raise it from 78 to 85 in a hundred, and
# the prompt that is not understood stays at 22; `benchmarks/README.md`.) They show the model how to answer, and teach it no
# new task. Brown et al. (2020, figure 1.2) found that the gain from demonstrations grows with the model; theirs had up to 175
# billion parameters. Even then it depends on the order of the examples, from near the state of the art to no better than
# guessing (Lu et al., 2022), and wrong labels in them do surprisingly little harm (Min et al., 2022).
#
# ## What the numbers show: a few labels
#
# Now train. Four sides learn from the same K texts of each class, each with all of the model's numbers and for the same 40 steps:
#
# - **head**: a classification head beside the model (lesson 5);
# - **null prompt**: the text and a gap, with the words *bad* and *good*;
# - **random words**: the same gap, with two words drawn by lot (a *null verbalizer*);
# - **known prompt**: the one that the raw text has.
#
# The seeds of the draws are the first three of the five that Gao et al. (2021) fixed, so that results with few labels can be
# compared. Nothing is chosen on a large *dev set* (labelled texts kept apart to choose settings by): that would be labels that
# one has not got. The learning rates were fixed before: 1e-3 for the head, whose new numbers have a long way to go, and 3e-4
# for the prompts.

# %%
STEPS, DRAWS = (3, SEEDS[:1]) if fast() else (40, SEEDS[:3])
SHOTS = (0, 1, 4) if fast() else (0, 2, 4, 8, 32, 128)
SIDES = ("head", "null prompt", "random words", "known prompt")


def accuracy(side, shots, seed):
    """Accuracy on test after training a side on ``shots`` texts of each class."""
    drawn, rng = few_shot(data, shots, seed), np.random.default_rng(seed)
    parts = Dataset({"test": drawn.splits["test"], **({"train": drawn.splits["train"]} if shots else {})}, data.labels)
    if side == "head":
        own = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=rng)
        work = Classification(tokenizer, parts, 96, 16)
    else:
        own, by_lot = load_pretrained("toy:encoder"), null_verbalizer(data.labels, tokenizer, rng, avoid=("bad", "good"))
        work = ClozeClassification(tokenizer, parts, own.config, Template(KNOWN if side == "known prompt" else NULL),
                                   by_lot if side == "random words" else words, 96, 16)
    if shots:
        settings = Settings(lr=1e-3 if side == "head" else 3e-4, epochs=STEPS, max_steps=STEPS, batch_size=16, seed=seed)
        fit(own, attach(own, Full(), rng=rng).named_parameters(), work, settings)
    return work.evaluate(own, "test")["accuracy"]


sizes = [2 * shots for shots in SHOTS]
curves = {side: np.array([[accuracy(side, shots, seed) for shots in SHOTS] for seed in DRAWS]) for side in SIDES}  # (draws, M)
known = curves["known prompt"].mean(axis=0)
predict(f"The known prompt has an accuracy of {known[0]:.2f} without any label. Trained on {sizes[1]} texts, does it rise?",
        f"{known[1]:.2f}. So few texts have little to teach it; they can pull it away from what it had read.")
print(f"{'labelled texts':16s}" + "".join(f"{size:>7d}" for size in sizes))
for side, rows in curves.items():
    print(f"{side:16s}" + "".join(f"{mean:7.2f}" for mean in rows.mean(axis=0)))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for side, rows in curves.items():
    axes.plot(range(len(sizes)), rows.mean(axis=0), "o-", label=side)
    axes.fill_between(range(len(sizes)), rows.min(axis=0), rows.max(axis=0), alpha=0.12)
axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
axes.set_xlabel("labelled texts")
axes.set_ylabel("accuracy")
axes.legend()
show(figure, "labels", f"Accuracy against labelled texts ({', '.join(map(str, sizes))}), mean of {len(DRAWS)} draws: "
     + "; ".join(f"{side} {', '.join(f'{a:.2f}' for a in rows.mean(axis=0))}" for side, rows in curves.items()) + ".")

# %% [markdown]
# Read the figure from the left. Without labels only prompts with good words can say anything. With a few labels the head is still
# near chance. The null prompt, which knew little at first, has found its feet, and that is what null prompts are for: where the
# model is trained anyway, the wording matters less (Logan et al., 2022). Drawn words learn far more slowly than *bad* and *good*:
# the gain is in the words and not in the gap. With many labels all come together, because a hundred texts can teach a head too
# where it must point.
#
# **How many labels is a prompt worth?** Take an accuracy that both curves reach, and ask how many labels each needs for it. The
# difference is a horizontal distance in the figure; its mean over all such accuracies is
#
# $$\frac{1}{a_{max} - a_{min}} \int_{a_{min}}^{a_{max}} \big(N_{head}(a) - N_{prompt}(a)\big)\, da .$$

# %%
#@exercise 06.5 minipeft.prompting.few_shot:data_advantage
#@ Return what a prompt is worth in examples. `sizes`, `head` and `prompt` are sequences of M numbers: how many examples (rising),
#@ and the accuracies there. A curve counts as the best so far, and is straight between two sizes. Both reach the accuracies from
#@ the larger of the first values to the smaller of the last; return None where there are none. A mean over a thousand accuracies
#@ will do. (For an exact one, `_needed(sizes, curve, a, b)` is the mean of N over a piece from a to b without a corner.)
worth = {}
for side in SIDES[1:]:
    saved = [data_advantage(sizes, head, prompt) for head, prompt in zip(curves["head"], curves[side])]
    worth[side] = ", ".join("no accuracy in common" if each is None else f"{each:.0f}" for each in saved)
predict("Draw a few horizontal lines between the head's curve and the null prompt's. How many labels does the null prompt save?",
        f"{worth['null prompt']} (one number for each draw of texts)")
print("random words save:", worth["random words"], "| the known prompt saves:", worth["known prompt"])

# %% [markdown]
# The known prompt may share no accuracy with the head at all: it starts where the head ends. The measure then says nothing, which
# is not the same as worth nothing.
#
# On real models and data: Le Scao and Rush (2021, section 1) find a prompt worth about 3,500 labels on MNLI, up to 750 on BoolQ
# and 280 on RTE, three tasks on pairs of texts. Gao et al. (2021, table 3) tune RoBERTa-large on 16 film reviews a class (SST-2):
# the head reaches 81.4 % (standard deviation over the draws 3.8), the prompt 92.7 % (0.9), and the prompt without any training
# 83.6 %. A model that fills gaps poorly has less to give. bert-tiny (two blocks, 4.4 million numbers, trained further for another
# purpose), asked "{text} it was {mask} ." with *good* and *bad* about SST-2's 872 sentences of dev, is right on 61.5 % without
# training, and on 53.2 % calibrated. Tuned on 16 of each class it has 61.2 % (3.5) by the prompt and 59.3 % (4.7) by a head: over
# five draws no difference. (`minipeft prompt` and `minipeft compare` with `--shots 16`.)

# %% [markdown]
# ## Where it breaks
#
# - A label word must be one token of the model, in the form in which it stands at the gap (GPT-2 has one token for " good" and
#   another for "good"). `Verbalizer.ids` refuses others and offers words that are near.
# - Where the raw text never had the answer in such a place, the words at the gap mean little: without training, such a prompt
#   is hardly better than one with random words.
# - A prompt takes tokens. A long text must be cut, and what is cut must be the text and not the template.
# - Prompts that were tried on many labels and then reported as zero-shot are not zero-shot.
# - A masked model fills one gap with one token; two gaps are filled each for itself, as if the other were not there.
#
# ## Read the package's own file
#
# `minipeft/prompting/cloze.py` classifies by the gap. Which line would have to change if the gap had to be read one token further
# left? Why does `ClozeClassification` have a `loss` and no parameters? In `templates.py`, `_cloze`: what would go wrong with a
# review that holds the word [MASK] itself, if the first mask were taken? `word_search.py` finds label words: what does it need
# that zero-shot does not?
#
# ## Sources
#
# - Schick and Schütze, *Exploiting Cloze Questions for Few-Shot Text Classification and Natural Language Inference*, EACL 2021,
#   arXiv:2001.07676, section 3: patterns, verbalizers, the restricted softmax.
# - Gao, Fisch and Chen, *Making Pre-trained Language Models Better Few-shot Learners*, ACL 2021, arXiv:2012.15723, sections 4 to
#   6.
# - Zhao, Wallace, Feng, Klein and Singh, *Calibrate Before Use*, ICML 2021, arXiv:2102.09690, sections 4 and 5.
# - Sanh et al., ICLR 2022, arXiv:2110.08207, section 5 (rank classification); Liu et al., NeurIPS 2022, arXiv:2205.05638, section
#   3.2 (length normalisation).
# - Le Scao and Rush, *How Many Data Points is a Prompt Worth?*, NAACL 2021, arXiv:2103.08493: sections 3 (the measure) and 5
#   (null verbalizers).
# - Logan, Balažević, Wallace, Petroni, Singh and Riedel, *Cutting Down on Prompts and Parameters*, Findings of ACL 2022,
#   arXiv:2106.13353: null prompts.
# - Brown et al., NeurIPS 2020, arXiv:2005.14165 (in-context learning); Lu et al., ACL 2022, arXiv:2104.08786 (their order); Min
#   et al., EMNLP 2022, arXiv:2202.12837 (their labels).
# - Perez, Kiela and Cho, *True Few-Shot Learning with Language Models*, NeurIPS 2021, arXiv:2105.11447.
