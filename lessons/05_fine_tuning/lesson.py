# %% [markdown]
# # Lesson 5. Fine-tuning, and how much of it
#
# **Why.** You have a thousand reviews that people have labelled, from "terrible" to "great", and a Transformer that has read much
# raw text (lesson 4) but knows nothing of your four classes. A thousand texts are far too few to train a Transformer from
# nothing. So one starts from the pre-trained numbers and trains on: *fine-tuning*. Three questions come at once. Which of the
# model's numbers should be trained, all or a few? How large may a step be? And what becomes of what the model knew before?
#
# This lesson answers them for the plain case, in which the trained numbers are the model's own. Every later lesson is measured
# against what is reached here.
#
# You need lesson 3 (the parts of a Transformer) and lesson 4 (what pre-training leaves). 60 minutes.

# %% [markdown]
# ## The idea in a picture
#
# The *head* is the map from a text's state to the classes. It is new and starts from random numbers; everything below it was
# pre-trained and is called the *body*. A number that training does not touch is *frozen*.
#
#                       full    head only   top-k (k = 1)   gradual unfreezing
#                                                           epoch 1  2  3  4  5
#       head    W, b      x         x            x                x  x  x  x  x     x  trained
#       block 3           x         .            x                .  x  x  x  x     .  frozen
#       block 2           x         .            .                .  .  x  x  x
#       block 1           x         .            .                .  .  .  x  x
#       embeddings        x         .            .                .  .  .  .  x
#
# Gradients come from above. Where nothing below a block is trained, the walk back can end there: what is frozen below costs no
# backward pass.

# %% [markdown]
# ## The equation, derived: a step of AdamW
#
# Let θ be a trained number, g its gradient, the slope of the loss. The plainest step is θ ← θ - η g with a *learning rate* η. Its
# fault: gradients of word vectors, of matrices and of norms differ in size by factors of thousands, and one η cannot suit them
# all.
#
# Adam divides each number's step by how large its own gradients usually are. It keeps two running means for each number,
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\,g^2 .$$
#
# Both start at 0, so at first they are too small. How much? If g were the same at every step, then after t steps
#
# $$m = (1 - \beta_1)\,(1 + \beta_1 + \dots + \beta_1^{t-1})\,g = (1 - \beta_1^t)\,g ,$$
#
# and v in the same way (1 - β₂ᵗ) g². Divided by these factors they are right from the first step on: m̂ = m / (1 - β₁ᵗ) and v̂ =
# v / (1 - β₂ᵗ). Then
#
# $$\theta \leftarrow \theta - \eta\,\Big(\frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \lambda\,\theta\Big) .$$
#
# The last term is *weight decay*: it pulls θ towards 0 by a share η λ. It could be put into g instead, as the gradient of a
# penalty λ/2 θ². But then √v̂ would divide it too, and numbers with large gradients would be pulled least. AdamW keeps it apart:
# that is the W.
#
# ε is tiny and only keeps the division from failing.

# %%
import numpy as np

from minipeft import Full, Head, Settings, attach, fit, load_pretrained
from minipeft.data import Tokenizer, toy
from minipeft.learn import fast, predict, show
from minipeft.training import Classification

predict("At the first step m̂ is g and v̂ is g². One number has the gradient 0.001, another -40, and η is 0.01. How far does "
        "each move?",
        "m̂ / √v̂ is g / |g|: both move by 0.01, one down and one up. The size of a gradient says nothing at the first step.")
predict("BERT-base has 110 million numbers of 4 bytes. Each that is trained has a gradient as well, and AdamW keeps m and v "
        "for it. How much memory is that without the activations, for full fine-tuning and for a head of 1,538 numbers?",
        f"Full: 4 arrays of {4 * 110e6 / 1e9:.2f} GB, so {16 * 110e6 / 1e9:.2f} GB. Head: the weights, {4 * 110e6 / 1e9:.2f} GB.")

# %% [markdown]
# ## Exercise: the step
#
# `minipeft/kernels/adam.py` defines the step on one array in NumPy. (In lesson 2 the same step is a compiled loop, with the
# corrections worked out beforehand.) `gradient_scale` multiplies the gradient first. The training loop uses it to *clip*: where
# the gradient of all parameters together is longer than 1, it is scaled down to length 1, so that one strange batch cannot throw
# the model far.

# %%
#@exercise 05.1 minipeft.kernels.adam:adam_step_reference
#@ One step of AdamW: change the arrays parameter, m and v in place and return nothing. g is gradient_scale times gradient; m
#@ and v are the running means of g and g^2, and the step divides them by 1 - beta^step. Decay is computed from the parameter as
#@ it was before the step.
from minipeft.kernels.adam import adam_step_reference

theta, g = np.zeros(3), np.array([0.001, -40.0, 2.0])
m, v = np.zeros(3), np.zeros(3)
for step in range(1, 4):
    before = theta.copy()
    adam_step_reference(theta, g * (1, -1, 1)[step - 1], m, v, step, 0.01, 0.9, 0.999, 1e-8, 0.0, 1.0)
    print(f"step {step}: the numbers move by", (theta - before).round(5))

# %% [markdown]
# Step 1 is 0.01 long for all three numbers. At step 2 the gradient turns round, the mean m̂ nearly vanishes, and so does the
# step: where gradients disagree Adam goes slowly. That is its second merit.
#
# ## Schedules: how η changes in a run
#
# That the first step is η long, whatever the gradient, has its price. At the beginning the head is random, its gradient says
# little, and v̂ rests on a single batch. So one starts small: in the *warm-up*, the first w of T steps, η is multiplied by 1/w,
# 2/w, ..., 1. Afterwards it falls, because near a minimum long steps only jump about. With t = 0, ..., T - 1 the factor is
#
#     warm-up    (t + 1) / w                                      while t < w, in all but slanted
#     linear     (T - t) / (T - w)                                then
#     cosine     (1 + cos(π (t - w) / (T - w))) / 2               then
#     constant   1                                                then
#     slanted    (1 + 31 p) / 32    with p = t / c for t < c = ⌊T / 10⌋, and p = 1 - (t - c) / (9 c) behind
#
# *Slanted triangular* rises steeply in the first tenth and falls slowly; it belongs to gradual unfreezing, further below. All
# formulas must hold at the edges: c is at least 1, p never below 0, and T - w at least 1.

# %%
#@exercise 05.2 minipeft.training.schedules:factor
#@ Return the factor of the learning rate at `step` (from 0) of `total`, of which the first `warmup` rise; slanted takes no notice
#@ of warmup. CUT is 0.1, the share of the steps in which slanted rises, and RATIO is 32. In slanted take c = 1 where
#@ floor(T / 10) is 0, and no p below 0. Raise ValueError where `schedule` is not one of SCHEDULES.
import matplotlib.pyplot as plt

from minipeft.training import SCHEDULES, factor

T, w = 100, 6
figure, axes = plt.subplots(figsize=(6, 3))
for schedule in SCHEDULES:
    axes.plot([factor(schedule, t, T, w) for t in range(T)], label=schedule)
axes.set_xlabel("step")
axes.set_ylabel("factor of the learning rate")
axes.legend()
show(figure, "schedules", f"Factor of the learning rate over {T} steps with a warm-up of {w}; in the middle of the run it is "
     + ", ".join(f"{factor(s, T // 2, T, w):.2f} ({s})" for s in SCHEDULES))

# %% [markdown]
# ## What the numbers show: how much to train
#
# `toy:encoder` has three blocks and was pre-trained on raw text of the toy world. `toy:rating` has a thousand training texts in
# four classes. About 2 % of the labels are wrong, those of the test texts too, so that nobody can expect to be right on more
# than 98 %. `attach` freezes everything that a method does not train, and `fit` is the training loop: batch, loss, gradients,
# clipping, factor, step. An *epoch* is one pass over the data.

# %%
from minipeft.methods import TopK

task = toy.dataset("rating", **({"train": 64, "dev": 32, "test": 32} if fast() else {}))
tokenizer = Tokenizer.from_folder("toy:encoder")
work = Classification(tokenizer, task, max_length=64, batch_size=16)


def tuned(method, lr, epochs=1, hooks=lambda attachment: (), work=work, by_layer=None, **settings):
    """(the model after fine-tuning, its attachment, what `fit` tells); every run starts from the same numbers."""
    model = load_pretrained("toy:encoder", task="classify", labels=task.labels, rng=np.random.default_rng(0))
    attachment = attach(model, method)
    settings = Settings(lr=lr, epochs=1 if fast() else epochs, seed=0, **settings)
    told = fit(model, attachment.named_parameters(), work, settings, hooks=hooks(attachment), lr_scale=by_layer)
    return model, attachment, told


runs = {}
for name, method, lr in (("head", Head(), 5e-2), ("top 1", TopK(layers=1), 2e-3), ("top 2", TopK(layers=2), 2e-3),
                         ("full", Full(), 1e-3)):
    model, attachment, told = runs[name] = tuned(method, lr, epochs=3)
    print(f"{name:6s} {attachment.trainable:8,} numbers trained, {told['step_ms']:5.1f} ms a step, accuracy "
          f"{work.evaluate(model, 'test')['score']:.3f}")

# %% [markdown]
# The head alone beats guessing (0.25), but it is far behind. The states that pre-training left are good for filling gaps, and a
# linear map of them tells the four ratings apart only in part. So blocks must be trained. How many matters less: five hundred
# test texts carry a *standard error* of about 0.02 (that far a share of right answers strays by chance), so the last three rows
# cannot be ranked by one run each. Their costs can: a step of top-1 walks back through one block and that of full through all
# three.
#
# The learning rates differ on purpose. The head has no past to spoil and takes a large one; the more of the body is trained, the
# smaller it must be. For *full fine-tuning*, which trains everything, the usual ones are 2e-5 to 5e-5 with BERT (Devlin et al.,
# appendix A.3). This tiny model's numbers take 1e-3.
#
# On a real model: MiniLM on 2,000 sentences of SST-2, two epochs (the tables in README.md and benchmarks/README.md). Trained are
# the head alone, the last 2 of 6 blocks, or everything. A *seed* is the number from which the random numbers start, and ± the
# standard deviation of the scores over seeds. BERT's *pooler* is a map of the first token's state, which the head then reads.
#
# | | numbers trained | BERT's pooler, three seeds | mean of the tokens, three seeds |
# |---|--:|--:|--:|
# | head | 770 | 0.648 ± 0.009 | 0.800 ± 0.004 |
# | top 2 | 3,549,698 | 0.823 ± 0.005 | 0.832 ± 0.007 |
# | full | 22,713,986 | 0.844 ± 0.008 | 0.849 ± 0.007 |
#
# How good a head alone is depends on the states that it reads: this model was made for the mean of its tokens, and its pooler was
# never trained along. Lee, Tang and Lin (2019) found for BERT-base and RoBERTa that a quarter of the layers, the last ones, reach
# 90 % of the quality of all.

# %% [markdown]
# ## Forgetting
#
# The fine-tuned body began as a masked language model. Is it still one? Put the tuned body below the *old* language-model head
# and measure the loss on fresh raw text, with three tenths of the tokens hidden (lesson 4). If fine-tuning has spoilt what was
# known, that loss rises. This is called *catastrophic forgetting*.

# %%
from types import SimpleNamespace

from minipeft.training.pretraining import MaskedLanguageModelling

passages = SimpleNamespace(held_out=toy.passages(20 if fast() else 200, seed=1))
raw_text = MaskedLanguageModelling(tokenizer, passages, batch_size=32, per_round=1, max_length=64)


def loss_on_raw_text(model):
    """The masked-word loss of a model's body under the head that it was pre-trained with."""
    reader, body = load_pretrained("toy:encoder", task="mlm"), dict(model.named_parameters())
    for path, p in reader.named_parameters():
        if not path.startswith("head."):
            p.data = body[path].data
    return raw_text.evaluate(reader, "dev")["loss"]


known = loss_on_raw_text(load_pretrained("toy:encoder", task="classify", labels=task.labels))
predict("Which of the four runs above leaves this loss just as it was?", "The head's: it trained no number of the body.")
print(f"before fine-tuning the loss is {known:.3f}, after: "
      + ", ".join(f"{name} {loss_on_raw_text(model):.3f}" for name, (model, _, _) in runs.items()))

# %% [markdown]
# The loss rises wherever the body was trained, although nothing in the task asks for it. How far does not depend only on how
# *many* numbers are trained: top 2, at twice the learning rate of full, forgets more than full. So let us look at the rate by
# itself, with full fine-tuning and one epoch.

# %%
predict("Full fine-tuning at four learning rates: 0.0003, 0.001, 0.003, 0.01. Which learns the task best, which forgets most?",
        "Forgetting grows with the rate throughout; accuracy rises at first and breaks down at the end. See the figure.")
rates, accuracies, losses = (1e-3, 1e-2) if fast() else (3e-4, 1e-3, 3e-3, 1e-2), [], []
for rate in rates:
    model, _, _ = tuned(Full(), rate)
    accuracies.append(work.evaluate(model, "test")["score"])
    losses.append(loss_on_raw_text(model))
    print(f"learning rate {rate:6.4f}: accuracy {accuracies[-1]:.3f}, loss on raw text {losses[-1]:.3f}")

figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(rates, accuracies, "o-", label="accuracy on the task")
axes.set_xscale("log")
axes.set_xlabel("learning rate")
axes.set_ylabel("accuracy")
beside = axes.twinx()
beside.plot(rates, losses, "s--", color="tab:red", label="loss on raw text")
beside.axhline(known, color="tab:red", linewidth=0.5, label="the same, before")
beside.set_yscale("log")
beside.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
beside.minorticks_off()
beside.set_ylabel("loss on raw text")
figure.legend(loc="center left", bbox_to_anchor=(0.14, 0.55))
show(figure, "forgetting", f"Accuracy and loss on raw text (before fine-tuning {known:.2f}) against the learning rate: "
     + "; ".join(f"{a:.2f} and {b:.2f} at {r:g}" for r, a, b in zip(rates, accuracies, losses)))

# %% [markdown]
# At the highest rate everything is gone, the task as well: the accuracy is about that of guessing among four. Just below it the
# task is learned as well as ever, and the loss on raw text has about tripled: a model may be good at its task and spoilt for
# everything else. If only the task counts, that may be all the same. It is not when the model is to be tuned further, or serves
# other tasks beside, or meets texts unlike those it was tuned on.
#
# ## Regularisation towards the start
#
# A *regulariser* is something added to training against learning too much from too little. Weight decay is one; but it pulls
# every number to 0, a place that has no merit here. The place that has one is θ₀, where pre-training ended. L2-SP ("starting
# point") adds to the loss
#
# $$\frac{a}{2} \sum_{\text{body}} (\theta - \theta_0)^2 + \frac{b}{2} \sum_{\text{head}} \theta^2, \qquad
# \text{with the gradients } a\,(\theta - \theta_0) \text{ and } b\,\theta .$$
#
# The head has no pre-trained place, so it is pulled to 0 as usual. In the package this is a *hook*: `fit` asks it for a penalty
# at each step and adds that to the loss.

# %%
#@exercise 05.3 minipeft.training.regularise:L2SP.penalty
#@ Return the penalty, a Tensor without axes: a/2 times the squared distance of the body from its start, plus b/2 times the
#@ squared length of the head. `self.parameters` is {path: Parameter}, `self.start` {path: array} of the body's; `self.alpha` is
#@ a and `self.beta` b. The head's paths begin with HEAD. Where both strengths are 0, return None.
from minipeft.training import L2SP

begun = {path: p.data for path, p in load_pretrained("toy:encoder", task="none").named_parameters()}
for strength in (0.0, 0.1) if fast() else (0.0, 0.03, 0.1):
    model, _, _ = tuned(Full(), 3e-3, 2, lambda attachment: [L2SP(attachment.named_parameters(), strength, 0.01)])
    moved = sum(float(((p.data - begun[path]) ** 2).sum()) for path, p in model.named_parameters() if path in begun) ** 0.5
    print(f"a = {strength:4.2f}: accuracy {work.evaluate(model, 'test')['score']:.3f}, loss on raw text "
          f"{loss_on_raw_text(model):.3f} ({known:.3f} before), distance of the body from its start {moved:.1f}")

# %% [markdown]
# With a little pull most of the knowledge stays, and the task is learned as well as without, within the noise. Most of the way
# that the numbers went was not needed for the task.
#
# **Label smoothing** regularises the other end. Cross-entropy is least when the right class has probability 1, which needs an
# infinite lead of its logit; so training never stops pushing. Take instead the target (1 - e) for the right class, and e / C more
# for each of the C classes (`smoothed_cross_entropy`). With p = softmax(logits) the gradient for a text is
#
# $$\frac{\partial L}{\partial \text{logits}} = p - \text{target},$$
#
# which is zero at p = target, a finite place.

# %%
C, e = 4, 0.1
predict("With four classes and e = 0.1, by how much does the right logit lead the others where the loss is least?",
        f"p is 1 - e + e/C = {1 - e + e / C} against e/C = {e / C}; the lead is the log of their ratio, "
        f"{np.log((1 - e + e / C) / (e / C)):.2f}.")
smooth = Classification(tokenizer, task, max_length=64, batch_size=16, label_smoothing=e)
for name, model in (("hard", runs["full"][0]), ("smooth", tuned(Full(), 1e-3, 3, work=smooth)[0])):
    sure = work.predict(model, "test").max(axis=1).mean()  # the probability of the class that it chooses
    print(f"{name:6s} targets: on average the model is {sure:.3f} sure, and right on {work.evaluate(model, 'test')['score']:.3f}")

# %% [markdown]
# Trained on hard targets the model is surer than it is right; with smoothed ones it no longer is.
#
# ## From the top down: gradual unfreezing
#
# Lower layers hold what is general (letters, words, which words go together), upper ones what is nearer to the task. So ULMFiT
# (*universal language model fine-tuning*, Howard and Ruder) unfreezes from the top: the head in the first epoch, then one *group*
# more in each, the last block first and the embeddings at the end. It goes with two partners. *Discriminative* learning rates
# fall by a factor of 2.6 from each block to the one below,
#
# $$\eta_l = \eta / 2.6^{\,L - l}, \qquad l = 1, \dots, L,$$
#
# and the slanted triangle from above warms up briefly and cools down for long.

# %%
#@exercise 05.4 minipeft.methods.unfreezing:GradualUnfreezing.trained
#@ Return the list of the paths that are trained in `epoch` (from 0). `self.groups` is {path: number of its group}, `self.order`
#@ the numbers of the groups that there are, from the top, and `self.every` how many epochs go by before the next group joins.
from minipeft.methods import GradualUnfreezing, discriminative
from minipeft.methods.unfreezing import group_numbers

model = load_pretrained("toy:encoder", task="classify", labels=task.labels)
unfreezing, rate_of, number = GradualUnfreezing(attach(model, Full())), discriminative(model.config), group_numbers(model.config)
parts = {number(path): ".".join(path.split(".")[:1 + path.startswith("blocks.")]) for path in unfreezing.groups}
print("epoch      " + "".join(f"{parts[n]:>10s}" for n in unfreezing.order))
for epoch in range(5):
    on = {number(path): rate_of(path) for path in unfreezing.trained(epoch)}
    print(f"{epoch + 1:5d}      " + "".join(f"{on[n]:10.3f}" if n in on else "    frozen" for n in unfreezing.order))

# %%
curves = {}
for name, hooks, schedule, by_layer in (("plain", lambda attachment: [], "linear", None),
                                        ("unfreezing", lambda attachment: [GradualUnfreezing(attachment)], "slanted", rate_of)):
    model, _, told = tuned(Full(), 1e-3, 5, hooks, schedule=schedule, by_layer=by_layer)
    curves[name] = [each["score"] for each in told["evaluations"]]
    steps = np.array_split(np.array(told["durations"]), len(curves[name]))
    print(f"{name:10s} accuracy {work.evaluate(model, 'test')['score']:.3f}, loss on raw text {loss_on_raw_text(model):.3f}; "
          f"ms a step in each epoch: {', '.join(f'{1e3 * np.median(part):.0f}' for part in steps)}")

figure, axes = plt.subplots(figsize=(5, 3))
for name, scores in curves.items():
    axes.plot(range(1, len(scores) + 1), scores, "o-", label=name)
axes.set_xticks(range(1, len(scores) + 1))
axes.set_xlabel("epoch")
axes.set_ylabel("accuracy on dev")
axes.legend()
show(figure, "unfreezing", "Accuracy on dev behind each epoch: "
     + "; ".join(f"{name} {', '.join(f'{s:.2f}' for s in scores)}" for name, scores in curves.items()))

# %% [markdown]
# In the first epoch the head is alone and learns what it can; each group that joins makes a step dearer. At the end the two runs
# are close in accuracy, and gradual unfreezing has forgotten less. Is it worth it? In five seeds on these data
# (benchmarks/README.md, row 11) plain fine-tuning reached 78.6 ± 1.6 per cent, unfreezing alone 79.8 ± 2.0, and unfreezing with
# both partners 79.6 ± 1.9: no difference that five seeds can tell from none. ULMFiT was a recurrent network; with Transformers, a
# low rate and a warm-up have mostly taken its place. The thought has stayed: the upper layers first, the lower ones gently.

# %% [markdown]
# ## Stretch: mixout
#
# Dropout (lesson 3) sets random entries to zero in training. Around a pre-trained weight that is a rude place to be sent to.
# *Mixout* sends them back to where they started. With M = 1 with probability p, drawn for each entry at each step, and 0
# otherwise,
#
# $$\tilde\theta = \frac{M\,\theta_0 + (1 - M)\,\theta - p\,\theta_0}{1 - p} .$$
#
# The mean of the numerator is pθ₀ + (1 - p)θ - pθ₀ = (1 - p)θ, so on average θ̃ is θ. Put M = 1: the entry is θ₀. Put M = 0: it
# is θ₀ + (θ - θ₀) / (1 - p). So mixout is dropout of the *change* θ - θ₀, and with θ₀ = 0 it is dropout itself.

# %%
#@exercise 05.5 minipeft.training.regularise:MixoutLinear.forward
#@ Return x W~ + b with the mixed-out weight W~, for x (..., D_in). `self.start` is theta_0 as an array, `self.probability` is p,
#@ `unwrap(self)` the Linear with its Parameters `weight` and `bias`, `self.rng` the generator to draw from. Outside training
#@ (`self.training`), and where p is 0, return `self.wrapped(x)`.
from minipeft.autograd import Tensor
from minipeft.nn import Linear
from minipeft.training.regularise import MixoutLinear

base = Linear(2, 3, rng=np.random.default_rng(0), std=1.0)
layer = MixoutLinear(base, 0.5)
base.weight.data = base.weight.data + 1.0  # as if it had been trained
layer.train(np.random.default_rng(1))
print("how far each entry of the weight is from its start, in three calls (1 in evaluation):")
for _ in range(3):
    print((layer(Tensor(np.eye(2, dtype=np.float32))).data - base.bias.data - layer.start).round(3).tolist())

# %% [markdown]
# ## Where it breaks
#
# - A rate that is too high. Fine-tuning with the learning rate of pre-training or of a head wipes the body out, as the figure
#   shows. When a run ends at the accuracy of guessing, suspect the rate first.
# - Few texts and few steps. Runs that differ in the seed alone then differ by many points, and some fail altogether. Part of this
#   was a fault: BERT's own optimizer left the correction by 1 - βᵗ out (Zhang et al., 2021). A longer training with a small rate
#   and a warm-up helps too (Mosbach et al., 2021). Never judge a method by one seed.
# - A random head above a good body. Its first gradients are noise, and they reach the body at full step length. Training the head
#   first and everything after is the two-step form of unfreezing. On images it keeps a model better on pictures of another kind
#   (Kumar et al., 2022).
# - A pull to the start that is too strong. With a large a in L2-SP the task cannot be learned; and where the task needs something
#   that pre-training did not have, the start is no good place to stay near.
# - Warm-up as a cure. It protects the first steps and no more: the run at 0.01 above fails in the same way with
#   `Settings(warmup=0.3)`. Where a loss becomes infinite or NaN ("not a number"), `fit` stops and says which tensor was the
#   first.
# - One copy for each task. Full fine-tuning of a thousand tasks is a thousand models. That is where the next lessons begin.
#
# ## Read the package's own file
#
# `minipeft/training/loop.py`: in `_Run.step` and `_update`, in which order come the factor, the hooks, the gradients, clipping
# and the step? `optim.py`, `decay_groups`: which parameters have no weight decay? `methods/top_k.py`: why does a prefix test on
# "blocks.1" need the dot behind it? (Think of a model of twelve blocks.) `methods/unfreezing.py`: why does `after_step` release
# everything again?
#
# ## Sources
#
# - Devlin, Chang, Lee, Toutanova, *BERT*, NAACL 2019, arXiv:1810.04805: section 3.2 (fine-tuning), 5.3 (features of a frozen
#   model), appendix A.3 (learning rates).
# - Kingma, Ba, *Adam*, ICLR 2015, arXiv:1412.6980: algorithm 1 and section 3 (the correction). Loshchilov, Hutter, *Decoupled
#   Weight Decay Regularization*, ICLR 2019, arXiv:1711.05101: algorithm 2; *SGDR*, ICLR 2017, arXiv:1608.03983: equation 5
#   (cosine).
# - McCloskey, Cohen, *Catastrophic Interference in Connectionist Networks*, Psychology of Learning and Motivation 24, 1989.
# - Li, Grandvalet, Davoine, *Explicit Inductive Bias for Transfer Learning*, ICML 2018, arXiv:1802.01483: L2-SP. Lee, Cho, Kang,
#   *Mixout*, ICLR 2020, arXiv:1909.11299: section 3. Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv:1512.00567:
#   section 7 (label smoothing).
# - Howard, Ruder, *Universal Language Model Fine-tuning*, ACL 2018, arXiv:1801.06146: sections 3.2 and 3.3.
# - Lee, Tang, Lin, *What Would Elsa Do?*, 2019, arXiv:1911.03090.
# - Zhang, Wu, Katiyar, Weinberger, Artzi, *Revisiting Few-sample BERT Fine-tuning*, ICLR 2021, arXiv:2006.05987. Mosbach,
#   Andriushchenko, Klakow, *On the Stability of Fine-tuning BERT*, ICLR 2021, arXiv:2006.04884.
# - Kumar, Raghunathan, Jones, Ma, Liang, *Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution*, ICLR
#   2022, arXiv:2202.10054.
