# %% [markdown]
# # Lesson 7. Patterns and raw text: PET
#
# **Why.** You have four labelled reviews, three prompts that came to your mind, and a few hundred reviews without labels. In
# lesson 6 a prompt learned a good deal from four labels. But which of the three? There are no labels left to choose by. And the
# raw reviews, of which you have as many as you like, did nothing.
#
# *Pattern-exploiting training* (PET) uses all of it. Every prompt learns from the four labels, all of them together label the raw
# text, and an ordinary classifier learns from what they say. Learning from labelled and from raw text at once is called
# *semi-supervised*.
#
# You need lesson 6 (templates, verbalizers, log q). 50 minutes.

# %% [markdown]
# ## The idea in a picture
#
#     labelled texts, a few                   raw text, much
#       │        │        │                       │
#     ┌─▼──┐   ┌─▼──┐   ┌─▼──┐                    │
#     │pair│   │pair│   │pair│◄───────────────────┤        1  each pair: the model, fine-tuned through
#     │ 1  │   │ 2  │   │ 3  │                    │           a template and a verbalizer of its own
#     └─┬──┘   └─┬──┘   └─┬──┘                    │
#     log q_1  log q_2  log q_3                   │
#       └────────┼────────┘                       │
#          weighted mean s                        │
#          t = softmax(s / 2) ────────────────────┤        2  soft labels of the raw text
#                                                 │
#                                    a classifier with a head    3  learns t from the raw text; the prompts can go
#
# A *pattern–verbalizer pair* is a template (pattern) with its label words. Several that answer together are an *ensemble*. A
# *soft label* is a probability for each class in the place of one class. Training a model on what another says is *distillation*:
# in the end there is one classifier, which needs no template and costs what a classifier costs.

# %% [markdown]
# ## The equations, derived
#
# **The mean.** Pair p has the scores s_p, the logits of its label words, and q_p = softmax(s_p). The paper averages the scores.
# The package averages log q_p, which is s_p less one number that is the same for all classes of a text, and such a number no
# softmax sees:
#
# $$s(l \mid x) = \frac{\sum_p w_p \log q_p(l \mid x)}{\sum_p w_p} .$$
#
# The weights w_p are all 1, or the accuracy of pair p on the labelled texts before it was trained. In probabilities this is a
# *geometric mean*, the product Π q_p^{w_p / w} with w the sum of all weights: a pair that is sure that a class is wrong has
# more to say than one that is undecided.
#
# **The temperature.** Soft labels are the softmax of s / T. From s / T follows t_l ∝ q_l^{1/T}: at T = 2 the odds of two classes
# become their square root, so that 99 : 1 becomes 10 : 1. A pair that was tuned on four texts is surer of itself than it has
# reason to be, and softer labels say so. They also say which class would come second.
#
# **The loss.** Where the label is one class, the loss is −log q of it. Where it is a distribution t, take the mean of that under
# t:
#
# $$L = -\frac{1}{B} \sum_i \sum_l t_{il} \log q_{il} =
# \frac{1}{B} \sum_i \Big( \log \sum_l e^{z_{il}} - \sum_l t_{il} z_{il} \Big), \qquad
# \frac{\partial L}{\partial z_{il}} = \frac{q_{il} - t_{il}}{B} .$$
#
# (The second form uses that t adds up to 1.) The gradient is zero where q = t. There L is not zero but −Σ t log t, the
# *entropy* of t, which is larger the more undecided t is: what cannot be known stays as loss.
#
# **The auxiliary loss.** A model that is fine-tuned on four texts may forget what it knew (lesson 5: *catastrophic forgetting*),
# and with it what made prompts work. So let it go on with its pre-training on the raw text meanwhile:
#
# $$L = (1 - \alpha)\, L_{task} + \alpha\, L_{language}, \qquad \alpha = 10^{-4} .$$

# %%
import numpy as np

from minipeft import Full, Settings, Tokenizer, attach, fit, load_pretrained
from minipeft.autograd import no_grad
from minipeft.data import Dataset, toy
from minipeft.learn import fast, predict, show
from minipeft.prompting import (RAW, SEEDS, ClozeClassification, Ensemble, PETSettings, Template, Verbalizer, WithLanguage,
                                distil, few_shot, language_work)
from minipeft.training import Classification

STEPS, LEARNING, COUNT = (2, 3, 60) if fast() else (40, 100, 400)  # steps of a pair, of the classifier; raw texts
tokenizer, words = Tokenizer.from_folder("toy:encoder"), Verbalizer({"negative": "bad", "positive": "good"})
PAIRS = [(Template(pattern), words) for pattern in ("{text} {mask}", "{text} answer : {mask} .", "is it {mask} ? {text}")]
drawn = toy.dataset("sentiment", seed=0, train=100 if fast() else 1000, dev=1, test=60 if fast() else 400)
truth = {example.text: example.label for example in drawn.splits["train"]}  # used for measuring, never for training


def dataset(shots, seed):
    """``shots`` labelled texts of each class, ``COUNT`` raw ones, and the test texts."""
    few = few_shot(drawn, shots, seed)
    used = {example.text for example in few.splits["train"]}
    raw = [example._replace(label=None) for example in drawn.splits["train"] if example.text not in used][:COUNT]
    return Dataset({"train": few.splits["train"], RAW: raw, "test": few.splits["test"]}, drawn.labels)


def ensemble_of(data, seed=0, **settings):
    """The three pairs on one model, each an attachment with a copy of all numbers of its own."""
    pair, classifier = (Settings(lr=lr, epochs=steps, max_steps=steps, batch_size=16, seed=seed)
                        for lr, steps in ((3e-4, STEPS), (1e-3, LEARNING)))
    return Ensemble(load_pretrained("toy:encoder"), tokenizer, data, PAIRS, lambda *pair: Full(), 96,
                    PETSettings(pair, classifier, **settings))


data = dataset(2, SEEDS[0])
ensemble = ensemble_of(data)
print(f"{len(data.splits['train'])} labelled texts, {len(data.splits[RAW])} raw ones; the first: {data.splits[RAW][0].text}")
odds = (0.99 / 0.01 * 0.4 / 0.6) ** 0.5
predict("Two pairs of equal weight, two classes: one says 0.99 to 0.01, the other 0.4 to 0.6. Which class does the mean of log q "
        "name, at what odds, and at what odds with temperature 2?",
        f"The first, at {odds:.1f} : 1, the root of 99 times 2/3: who is sure counts for more. With T = 2 it is "
        f"{odds**0.5:.1f} : 1.")

# %% [markdown]
# ## Exercises: an ensemble, its labels, and how they are learned

# %%
#@exercise 07.1 minipeft.prompting.pet:mean_score
#@ Return s (N, C): the weighted mean over the pairs of log q (P, N, C). `weights` (P,) are positive numbers that need not add up
#@ to 1; what is given stays as it is.
from minipeft.prompting.pet import mean_score

log_q, right = ensemble.log_q("test"), ensemble.works[0].targets["test"]  # (P, N, C), (N,)
each = [float((q.argmax(axis=1) == right).mean()) for q in log_q]
together = float((mean_score(log_q, ensemble.weights).argmax(axis=1) == right).mean())
predict(f"Before any training the three prompts are right on {', '.join(f'{a:.2f}' for a in each)} of the test texts. All "
        "together, with equal weights: as the worst, as the mean of the three, as the best, or above?",
        f"{together:.2f}; the mean of the three accuracies is {np.mean(each):.2f}")

# %% [markdown]
# Together they do better than they do on average, because they err on different texts. And nobody had to know which of them is
# the best.
#
# Now step 1: each pair is trained on the four labelled texts.

# %%
#@exercise 07.2 minipeft.prompting.pet:Ensemble.soft_labels
#@ Return t (N, C), the soft labels of the raw text: the softmax over the classes of the mean score, divided by the temperature.
#@ `self.log_q(RAW)` is log q (P, N, C) of all pairs, and `self.weights` and `self.settings.temperature` are w (P,) and T.
before = dict(zip(("null prompt", "answer :", "is it ?"), each))
ensemble.run()
each = [float((q.argmax(axis=1) == right).mean()) for q in ensemble.log_q("test")]
print("on test:", ", ".join(f"{name} {a:.2f} -> {b:.2f}" for (name, a), b in zip(before.items(), each)),
      f"; together {together:.2f} -> {ensemble.evaluate('test'):.2f}")
actual = np.array([truth[example.text] for example in data.splits[RAW]])
soft, sure = {}, {}
for temperature in (1.0, 2.0, 4.0, 8.0):
    ensemble.settings.temperature = temperature
    soft[temperature] = ensemble.soft_labels()
    sure[temperature] = soft[temperature].max(axis=1).mean()
ensemble.settings.temperature = 2.0
correct = (soft[2.0].argmax(axis=1) == actual).mean()
predict(f"The ensemble gives {correct:.0%} of the raw texts their right class. How sure of itself is it at temperature 1: what "
        "is the mean probability of the class that it names?",
        f"{sure[1.0]:.2f} at T = 1, {sure[2.0]:.2f} at T = 2, {sure[4.0]:.2f} at T = 4")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(list(sure), list(sure.values()), "o-", label="how sure")
axes.axhline(correct, color="grey", linestyle="--", label="how often right")
axes.set_xscale("log", base=2)
axes.set_xlabel("temperature T")
axes.set_ylabel("mean probability of the class named")
axes.legend()
show(figure, "temperature", "How sure the soft labels are against temperature: "
     + ", ".join(f"{s:.2f} at {t:g}" for t, s in sure.items()) + f"; they are right on {correct:.2f} of the texts at each.")

# %% [markdown]
# A pair that knew little has gained by four labels, and one that knew more may have lost (lesson 6 saw the same of the known
# prompt). Which of them will, nobody can say beforehand; together they are steadier than each alone.
#
# The temperature changes no class, only how sure the label is. If labels say 0.95, they ought to be right in 95 of 100 cases. At
# T = 1 the ensemble claims more than it keeps; T = 2, the paper's choice, is nearer to the truth. The best T can be found with
# labels that are held out, and just these one has not got.
#
# Step 3: the classifier.

# %%
#@exercise 07.3 minipeft.prompting.pet:SoftClassification.loss
#@ Return the loss of a batch, a Tensor with one number: -mean over the batch of sum over the classes of t log q. `batch.labels`
#@ are t (B, C); q is the softmax of `model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits` (B, C), a Tensor.
#@ Logits in the thousands must give no infinity, and the loss has the dtype of the logits.
classifier = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(0))
_, work = distil(ensemble, classifier, Full())
labelled = Dataset({"train": data.splits["train"], "test": data.splits["test"]}, data.labels)
alone = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(0))
plain = Classification(tokenizer, labelled, 96, 16)
fit(alone, attach(alone, Full()).named_parameters(), plain, ensemble.settings.classifier)
print(f"a head that learned from the {len(labelled.splits['train'])} labels: {plain.evaluate(alone, 'test')['accuracy']:.2f}")
print(f"PET's classifier, which never saw them: {work.evaluate(classifier, 'test')['accuracy']:.2f}")
print(f"the ensemble that it learned from: {ensemble.evaluate('test'):.2f}")

# %% [markdown]
# The classifier has the same head, drawn by lot, as the one that learned from four labels. What makes the difference is who
# taught it: the prompts brought what the model knows about words, and the raw text carried it over. It comes near its teachers,
# at a third of their cost, since it reads a text once and not three times.
#
# ## The auxiliary loss: who forgets what
#
# Train the null prompt on the four labels three times: with the task's loss alone, with the paper's α, and with a far larger α.
# The learning rate is three times as high as before and training takes half as many steps again, so that there is something to
# forget. Two things are measured: the accuracy on the task, and how well the model still fills in masked words of reviews that
# it has not seen (its loss there; lower is better).

# %%
#@exercise 07.4 minipeft.prompting.auxiliary:WithLanguage.loss
#@ Return (1 - alpha) L_task + alpha L_language, a Tensor. `self.work` and `self.language` each have loss(model, batch), a Tensor,
#@ `self.alpha` is alpha, and `batch` holds two batches: `batch.task` and `batch.language`.
unseen, raw_texts = [[example.text for example in data.splits[name]] for name in ("test", RAW)]


def language_of(model, texts, batch_size=16):
    """The pre-training of an encoder, to fill in masked words, on these texts."""
    return language_work(tokenizer, model.config, texts, batch_size, 96)


def forgetting(model):
    """The masked-word loss of a model on the test texts, always with the same masks."""
    language = language_of(model, unseen, len(unseen))
    (texts,) = language.training_batches(np.random.default_rng(1))
    with no_grad():
        return language.loss(model, language.collate(texts)).item()


print(f"{'before':14s}loss of masked words {forgetting(load_pretrained('toy:encoder')):.3f}")
for alpha in (0.0, 1e-4, 0.1):
    model = load_pretrained("toy:encoder")
    task = ClozeClassification(tokenizer, labelled, model.config, *PAIRS[0], 96, 16)
    high = Settings(lr=1e-3, epochs=3 * STEPS // 2, batch_size=16)  # one step an epoch: four texts, one batch
    fit(model, attach(model, Full()).named_parameters(), WithLanguage(task, language_of(model, raw_texts), alpha), high)
    score = task.evaluate(model, "test")["accuracy"]
    print(f"alpha {alpha:<8g}loss of masked words {forgetting(model):.3f}, accuracy {score:.2f}")

# %% [markdown]
# Without the auxiliary loss the model forgets what stands in a review, and the task suffers with it. The paper's α helps a little
# here, a larger one helps much. The paper's is so small because RoBERTa's language loss is far larger than that of a task that is
# nearly learned; in the toy world the two are of one size. α is a number to fit to the two losses, and not a constant of nature.

# %% [markdown]
# ## iPET: generations
#
# PET's pairs learn from four texts and never from each other. *iPET* repeats step 1. In a *generation* each pair is trained
# afresh, on the labelled texts and on raw text that some of the **other** pairs have labelled; in the next one on more of it.
# With c_0(l) labelled texts of class l and a growth d (5 in the paper), generation j has
#
# $$c_j(l) = d\,c_{j-1}(l) = d^{\,j} c_0(l)$$
#
# texts of class l for j = 1, 2, ... (the package counts from 0), so that the classes keep their proportion. Among the texts that
# get class l they are drawn with probability proportional to how sure the others are of it: what is sure is more often right, and
# what is drawn by lot is not always the same. Others label, because a pair that learned from its own answers would only become
# surer of its mistakes. Without any labelled text the first generation has 10 texts, as many of each class, that the untrained
# pairs have labelled.

# %%
predict("With 10 labelled texts and d = 5: how many generations does it take to 1,000 texts or more?",
        f"{PETSettings(None, None, generations=None).number_of_generations(10)}: 10, 50, 250, 1,250")

# %%
#@exercise 07.5 minipeft.prompting.pet:Ensemble._labelled_by_others
#@ Return a list of raw texts with their classes, `self.raw[i]._replace(label=l)`, from which pair `number` learns besides
#@ `self.labelled`. Draw with `rng` a part of the other pairs, round(share * how many) and at least one (it alone where there is
#@ no other); `log_q` (P, N, C) is theirs on the raw text. A text has the class where their q is largest. With the labelled texts,
#@ class l is to have growth^(generation + 1) times as many as are labelled; where none are, take FIRST / C times
#@ growth^generation. Where all classes together want more texts than there are in `self.raw`, each gets the same share of what it
#@ wants, rounded down. Draw these in proportion to q(l); where no more have class l, take those with the largest q(l).
#@ `self.settings` has `share` and `growth`; pairs count by `self.weights`; C is the number of `self.dataset.labels`.
examples = ensemble._labelled_by_others(ensemble.log_q(RAW), 0, 0, np.random.default_rng(0))
print(f"pair 0 would learn from {len(data.splits['train'])} labelled texts and {len(examples)} of which others say:")
for example in examples[:2] + examples[-2:]:
    print(f"  {data.labels[example.label]:9s}(it is {data.labels[truth[example.text]]}) {example.text[:80]}")

# %% [markdown]
# ## What the numbers show
#
# PET and iPET with two generations, from four labels and from none, beside the head that learns from the labels alone. Everything
# is measured on the same test texts.

# %%
results, DRAWS, GENERATIONS = {}, SEEDS[:1] if fast() else SEEDS[:2], 1 if fast() else 2


def distilled(data, seed, **settings):
    """Accuracy on test of the ensemble and of the classifier that learned from it."""
    pairs = ensemble_of(data, seed, **settings).run()
    head = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(seed))
    work = distil(pairs, head, Full())[1]
    return pairs.evaluate("test"), work.evaluate(head, "test")["accuracy"]


def head_alone(data, seed):
    """Accuracy on test of a classifier that learned from the labelled texts alone."""
    head = load_pretrained("toy:encoder", task="classify", labels=data.labels, rng=np.random.default_rng(seed))
    work = Classification(tokenizer, Dataset({name: data.splits[name] for name in ("train", "test")}, data.labels), 96, 16)
    fit(head, attach(head, Full()).named_parameters(), work, ensemble.settings.classifier)
    return work.evaluate(head, "test")["accuracy"]


for shots in (0, 2):
    for seed in DRAWS if shots else DRAWS[:1]:
        data = dataset(shots, seed)
        for name, settings in (("PET", {}), ("iPET", {"generations": GENERATIONS})):
            results.setdefault((name, shots), []).append(distilled(data, seed, **settings))
        if shots:
            results.setdefault(("head", shots), []).append((np.nan, head_alone(data, seed)))
for (name, shots), pairs in results.items():
    print(f"{name:5s}{2 * shots} labels: classifier {', '.join(f'{c:.2f}' for _, c in pairs)}"
          + ("" if name == "head" else f"; its ensemble {', '.join(f'{e:.2f}' for e, _ in pairs)}"))

# %%
figure, axes = plt.subplots(figsize=(5, 3))
names = [f"{name}, {2 * shots}" for name, shots in results]
means = [np.mean([c for _, c in pairs]) for pairs in results.values()]
axes.barh(names, means, color="lightsteelblue")
for place, pairs in enumerate(results.values()):
    axes.plot([c for _, c in pairs], [place] * len(pairs), "ko", markersize=4)
axes.axvline(0.5, color="grey", linestyle="--")
axes.set_xlabel("accuracy of the classifier (dashed: chance)")
show(figure, "generations", "Accuracy of the classifier, by method and number of labels: "
     + ", ".join(f"{name} labels {mean:.2f}" for name, mean in zip(names, means)) + "; chance is 0.50.")

# %% [markdown]
# From four labels the head alone is near chance. PET lifts the classifier to what its prompts know, and iPET goes on from there.
# Even without any label iPET improves on what the untrained prompts say: each pair learns from others what it could not know. Two
# draws are few, and single numbers here move by some hundredths; the order is what you should take from the figure.
#
# On real models it is the same order and a larger step. With ten labelled texts and RoBERTa-large, Schick and Schütze (EACL 2021,
# table 1) report for a head, PET and iPET 21.1, 52.9 and 57.6 % on Yelp's five classes, and 25.0, 87.5 and 89.3 % on AG's News.
# In the follow-up (NAACL 2021) a model of 223 million numbers passes GPT-3's 175 billion on SuperGLUE, eight hard tasks on
# English texts, with 32 examples of each.
#
# On a model that knows little the steps are small. bert-tiny (lesson 6), 16 labelled sentences of SST-2 in each class, a thousand
# raw ones and three prompts: PET's classifier is right on 63.1 % of dev (standard deviation over five draws 4.9), where the first
# prompt alone has 61.2 (3.5) and a head 59.3 (4.7). That is the order of the papers, and five draws cannot tell it from none.

# %% [markdown]
# ## Where it breaks
#
# - The raw text must be of the task. Raw text of other classes gets labels all the same.
# - If all prompts are wrong in the same way, the ensemble is too, and iPET learns the mistake by heart. Its generations see no
#   truth but the labelled texts.
# - PET's soft labels are as many as there is raw text; the pairs must read all of it once, and iPET in each generation.
# - With many labels nothing is gained: a head that learned from hundreds of texts knows what the prompts know (lesson 6's
#   figure).
# - Pairs are trained one after another on one model. If they do not keep copies of what they train, each goes on from where the
#   one before has stopped, and there is one model in the end and no ensemble. `Ensemble` sees to it that they do.
#
# ## Read the package's own file
#
# `minipeft/prompting/pet.py` is two hundred lines. Where does `Ensemble.train` make a pair forget what the last generation taught
# it? Why does `log_q` take the logarithm of at least 1e-30? Why is dev left out of what the pairs read? In `auxiliary.py`: what
# would happen if `WithLanguage.training_batches` drew one batch of raw text for the whole epoch?
#
# ## Sources
#
# - Schick and Schütze, *Exploiting Cloze Questions for Few-Shot Text Classification and Natural Language Inference*, EACL 2021,
#   arXiv:2001.07676: sections 3.2 (the auxiliary loss), 3.3 (the ensemble and its labels), 3.4 (iPET), table 1, appendix B.
# - Schick and Schütze, *It's Not Just Size That Matters: Small Language Models Are Also Few-Shot Learners*, NAACL 2021,
#   arXiv:2009.07118.
# - Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531, section 2: the temperature.
# - Chronopoulou, Baziotis and Potamianos, NAACL 2019, arXiv:1902.10547: a language-model loss beside a task's.
# - Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017, arXiv:1706.04599: how sure, and how
#   often right.
