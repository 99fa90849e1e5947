# %% [markdown]
# # Lesson 15. Early exit
#
# **Why.** Sentence one: "the soup was wonderful." Sentence two: "the soup was not bad, but nobody would call the cake good." A
# model with twelve layers spends twelve layers on each. The first would have been clear after two. If most of what comes in is
# easy, most of the work is wasted, at every request, as long as the service runs.
#
# Early exit stops where the answer is clear. It needs three things: something that gives an answer at an inner layer, a rule that
# says when to trust it, and a way of running a batch in which some rows stop and others go on. And one must measure, because what
# is saved on paper and what is saved on the clock are two numbers.
#
# You need lesson 3 (the blocks of an encoder and its head) and lesson 5 (fine-tuning, freezing). 55 minutes.

# %% [markdown]
# ## The idea in a picture
#
# A *head* reads the states of a text and gives its logits, one number for each class. A model has one, behind its last block. Put
# one of the same shape behind every other block as well: these are the *exits*.
#
#     words ──▶ block 1 ──▶ block 2 ──▶ ... ──▶ block L
#                  │ h_1       │ h_2               │ h_L
#               head f_1    head f_2            head f_L, the model's own
#                  │ z_1       │ z_2               │ z_L
#               sure? ─ no ▶ sure? ─ no ▶  ...   answer
#                 yes         yes
#                  ▼           ▼
#               answer      answer            block 3 and all that follow never see these texts
#
# $$z_i = f_i(\mathrm{norm}(h_i)), \quad p_i = \mathrm{softmax}(z_i), \quad \ell_i = \mathrm{CE}(p_i, y), \quad i = 1 \dots L .$$
#
# h_i (B, T, D) are the states behind block i, y the right classes, CE the cross-entropy. *norm* is the final norm of models that
# have one (GPT-2 and its like); for BERT it is nothing. An exit costs D C + C numbers for C classes, which is next to
# nothing. (With BERT's pooler each exit has a pooler of its own, D² + D numbers more.)

# %%
import numpy as np

from minipeft import autograd as F
from minipeft import load_pretrained
from minipeft.autograd import Tensor, no_grad
from minipeft.data import Tokenizer, make_batches, toy
from minipeft.learn import fast, predict, show
from minipeft.methods import RULES, EarlyExit, Joint, SelfDistilled, TwoStage
from minipeft.training import Classification, Settings, fit

dataset = toy.dataset("sentiment", "medium", seed=0, train=64 if fast() else 2000, dev=20, test=60 if fast() else 1000)
work = Classification(Tokenizer.from_folder("toy:encoder"), dataset, 96, 16)


def fresh(objective):
    """toy:encoder with an exit behind each block."""
    model = load_pretrained("toy:encoder", task="classify", labels=work.labels, pooling="mean", rng=np.random.default_rng(0))
    return EarlyExit(model, objective, np.random.default_rng(1))


exits = fresh(Joint("depth"))
own, added = sum(p.size for p in exits.model.parameters()), sum(p.size for p in exits.exits.parameters())
predict(f"toy:encoder has {len(exits.heads())} blocks of width D = {exits.model.config.hidden_size}, {own:,} numbers in all; the "
        "task has 2 classes. How many numbers do the exits add?",
        f"{len(exits.exits)} (D C + C) = {added}; the last exit is the model's own head and was there.")

# %% [markdown]
# ## How to train the exits
#
# Three ways, in the order in which they were found.
#
# **Joint** (BranchyNet, 2016). Train everything on a weighted sum of all exits' losses, $\sum_i w_i \ell_i$. All weights equal to
# 1, or by depth, w_i = i / Σ j, so that the last exit counts most (PABEE, 2020). The lower blocks then serve two masters: the
# exit behind them, which wants the answer now, and the blocks above, which want good material. That may cost the last exit
# something.
#
# **Two stages** (DeeBERT, 2020). First fine-tune the model as if there were no exits. Then freeze it, and train the exits alone
# on $\sum_{i<L} \ell_i$. The model is exactly as good as before. But the lower blocks were never asked to give an answer.
#
# **Self-distilled** (FastBERT, 2020). As two stages, but what the exits learn is what *the model itself says*, not the labels:
#
# $$\sum_{i<L} \mathrm{KL}(p_i \,\|\, p_L), \qquad \mathrm{KL}(p \,\|\, q) = \sum_c p_c\,(\log p_c - \log q_c) .$$
#
# KL, the *Kullback–Leibler divergence*, is zero where the two distributions are equal and positive elsewhere. No labels are
# needed, so any raw text will do. p_L is a constant here: the pupil learns from the teacher, the teacher nothing from the pupil.
#
# Its gradient is worth deriving once. With $a_c = \log p_c - \log q_c$ and $\partial p_c / \partial z_j = p_c (\delta_{cj} -
# p_j)$, where δ is 1 for c = j and else 0,
#
# $$\frac{\partial\,\mathrm{KL}}{\partial z_j} = \sum_c (a_c + 1)\,p_c\,(\delta_{cj} - p_j) = p_j\,(a_j - \sum_c p_c a_c) .$$
#
# (The 1 goes away, because the sum over c of p_c (δ_cj - p_j) is p_j - p_j.)
#
# ## Exercises: exits and what they learn

# %%
#@exercise 15.1 minipeft.methods.early_exit:EarlyExit.forward
#@ Return ExitsOutput(loss, [z_1, ..., z_L]). `self.model.enter(ids, mask, types)` gives (x, mask, position_ids, virtual), a block
#@ is called as block(x, mask, position_ids), a head as head(self.model.normalised(x), mask, virtual); `self.exits` are the heads
#@ but the last. Run the model under F.no_grad() unless `self.objective.trains_model`. The loss is self.objective(logits, labels),
#@ None without labels, or self.objective(logits) where not `self.objective.needs_labels`.
batch = work.collate(np.arange(4), "train")
out = exits(batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels)
print(f"{len(out.exit_logits)} logits of shape {out.exit_logits[0].shape}; the loss by depth {out.loss.item():.3f}")


# %%
#@exercise 15.2 lesson:distilled
#@ Return the self-distilled loss, a scalar Tensor: the sum over all exits but the last of the mean over the batch of KL(p_i ||
#@ p_L). `logits` is a list of L Tensors (B, C), the last of them the teacher's, which gets no gradient. Large logits must not
#@ overflow. F.exp and F.log take Tensors, z.data is the array of a Tensor z, z.detach() the same without a record.
### BEGIN SOLUTION
def distilled(logits):
    """sum over i < L of KL(p_i || p_L), mean over the batch: a scalar Tensor. logits: [(B, C)] of L exits, the teacher's last."""
    def log_softmax(z):
        z = z - z.data.max(axis=-1, keepdims=True)
        return z - F.log(F.exp(z).sum(axis=-1, keepdims=True))  # (B, C)

    teacher, total = log_softmax(logits[-1].detach()), 0.0
    for z in logits[:-1]:
        a = log_softmax(z)
        total = total + (F.exp(a) * (a - teacher)).sum(axis=-1).mean()
    return total
### END SOLUTION


rng = np.random.default_rng(0)
some = [Tensor(rng.standard_normal((5, 3))) for _ in range(4)]
print(f"yours {distilled(some).item():.6f}, the package's {SelfDistilled()(some).item():.6f}")

# %% [markdown]
# ## What the numbers show: three ways to train
#
# `toy:sentiment`, 2,000 reviews of one to four clauses, some with "not" and "but". The model is fine-tuned once with all exits,
# and once alone; on the second, frozen, the exits are trained on the labels and on what the model says. The exits start at random
# beside a pre-trained model. So in joint training their rate is ten times the model's, and on the frozen model it is 0.01.

# %%
def look(exits, split="test"):
    """What every exit says of every text: logits (L, N, C)."""
    found = np.zeros((len(exits.heads()), len(work.targets[split]), len(work.labels)), np.float32)
    with no_grad():
        for indices in make_batches(work.encodings[split], 32):
            batch = work.collate(indices, split)
            found[:, indices] = [z.data for z in exits(batch.input_ids, batch.attention_mask, batch.token_type_ids).exit_logits]
    return found


epochs, logits = 1 if fast() else 2, {}
faster = lambda path: 10.0 if path.startswith("exits.") else 1.0
fit(exits, exits.trainable(), work, Settings(lr=5e-4, epochs=epochs), lr_scale=faster)
logits["joint"] = look(exits)

later = fresh(TwoStage())
fit(later.model, dict(later.model.named_parameters()), work, Settings(lr=5e-4, epochs=epochs))
for name, objective in (("two stages", TwoStage()), ("self-distilled", SelfDistilled())):
    staged = EarlyExit(later.model, objective, np.random.default_rng(1))
    fit(staged, staged.trainable(), work, Settings(lr=1e-2, epochs=epochs))
    logits[name] = look(staged)

right = work.targets["test"]
accuracy = {name: [float((z.argmax(axis=1) == right).mean()) for z in each] for name, each in logits.items()}

predict("At which exit do joint training and two stages differ most, and why?",
        f"At the inner ones: {accuracy['joint'][1]:.3f} against {accuracy['two stages'][1]:.3f} at exit 2, because joint "
        f"training lets the lower blocks learn to answer. At the last it is {accuracy['joint'][-1]:.3f} against "
        f"{accuracy['two stages'][-1]:.3f}.")
for name, each in accuracy.items():
    print(f"{name:<15} accuracy at exits 1 to {len(each)}: {', '.join(f'{a:.3f}' for a in each)}")

# %% [markdown]
# On 1,000 test texts a difference of a point and a half is none. So joint training costs the last exit nothing that could be told
# here, and gives exit 2 six points. Whether the exits of a frozen model learn the labels or what the model says makes no
# difference: what they lack is in the states that they read. Self-distillation is for where there are no labels.
#
# ## When to trust an exit: three rules
#
# Every rule has a *looseness* s from 0 to 1. At 0 nobody leaves before the last exit; a larger s lets more leave, and never makes
# anyone leave later.
#
# **Entropy.** How undecided is p? $H = -\sum_c p_c \log p_c$ is 0 where one class has everything and log C where all are alike.
# Divided by log C it is in [0, 1] for any number of classes. Leave where
#
# $$U(z) = H / \log C < s .$$
#
# As it stands the formula fails where a p_c is zero in floating point: 0 · log 0 is NaN. Put in log p_c = z_c - log Σ e^z, and
# there is no logarithm of a small number left:
#
# $$H = \log \sum_c e^{z_c} - \sum_c z_c\,e^{z_c} \Big/ \sum_c e^{z_c} .$$
#
# It does not change when a number is added to all z, so one may subtract the largest first, and no e^z overflows.
#
# **Margin.** How far is the first class ahead of the second? Leave where $p_{\text{first}} - p_{\text{second}} > 1 - s$.
#
# **Patience.** A single exit may be sure and wrong. Leave where the class has been the same for t agreements in a row, whatever
# the probabilities are; t = 1 + ⌊(1 - s) L⌋. It costs at least t + 1 exits.

# %%
#@exercise 15.3 minipeft.methods.exit_rules:entropy
#@ Return U = H / log C for each row of `logits` (B, C), an array: (B,), in float64, whatever the type and size of the logits.
from minipeft.methods.exit_rules import entropy

for z in ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [900.0, 0.0, 0.0]):
    print(f"logits {z}: U = {entropy(np.array([z]))[0]:.3f}")


# %%
#@exercise 15.4 lesson:leaving_by_patience
#@ Return layers (B,), ints: the exit, from 1 to L, at which each of B texts leaves. `named` (L, B), ints, is the class that each
#@ exit names. A counter starts at 0 at exit 1; it grows by one where an exit names the same class as the one before, else it goes
#@ back to 0. A text leaves at the first exit where its counter has reached `patience` (1 or more), and at exit L where none has.
### BEGIN SOLUTION
def leaving_by_patience(named, patience):
    """layers (B,): the exit, from 1, at which each text leaves. named (L, B): the class that each exit names; patience >= 1."""
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.zeros(rows, np.int64)
    for i in range(1, exits):
        agreed = np.where(named[i] == named[i - 1], agreed + 1, 0)  # (B,)
        layers[(agreed >= patience) & (layers == exits)] = i + 1
    return layers
### END SOLUTION


named = logits["joint"].argmax(axis=2)  # (L, N)
layers = leaving_by_patience(named, 1)
print(f"patience 1: {np.bincount(layers, minlength=4)[1:]} texts leave at exits 1 to 3; whose two exits agree is right in "
      f"{(named[1] == right)[layers == 2].mean():.3f}")

# %% [markdown]
# ## The batch that shrinks
#
# In a batch some rows leave and others go on. Masking those that have left out of the *result* saves nothing: the blocks would
# compute them all the same. They must be taken out of the arrays, so that block i + 1 is called with fewer rows. This is
# *compaction*:
#
#     exit 1:  rows 0 1 2 3 4     1 and 3 leave       here = [0 1 2 3 4]
#     exit 2:  rows 0 2 4         4 leaves            here = [0 2 4]       row 2 of the states is text 4
#     exit 3:  rows 0 2           the last            here = [0 2]
#
# All that has a row for each text must shrink alike: the states, the mask, the position ids, and what the rule remembers of each
# text (patience remembers the class and the counter); position ids may also have one row for all texts, which stays. And one must
# keep which texts the rows are, `here`, to write answers to the right place.

# %%
#@exercise 15.5 lesson:walk_and_leave
#@ Return (logits (B, C), an array: of the exit at which each text left; layers (B,), ints from 1). At each exit but the last,
#@ `rule(z, memory, L)` takes its logits z as an array and what it returned to be remembered at the exit before (None at the
#@ first), both for the rows that are there, and returns (who leaves (B',) booleans, what to remember: None or an array with a row
#@ for each). Later blocks get only the rows that stay. `model.enter(ids, mask)` etc. are as in 15.1; `heads` are all L. Record no
#@ gradients.
### BEGIN SOLUTION
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    """(logits (B, C), layers (B,)): a text leaves at the first exit that the rule accepts; blocks see only those that stay."""
    with no_grad():
        x, mask, position_ids, virtual = model.enter(input_ids, attention_mask)
        here, memory, logits, layers = np.arange(len(x)), None, None, np.full(len(x), len(heads))
        for number, (block, head) in enumerate(zip(model.blocks, heads), 1):
            x = block(x, mask, position_ids)
            z = head(model.normalised(x), mask, virtual).data  # (B', C)
            logits = np.empty_like(z) if logits is None else logits
            logits[here] = z  # of those that go on a later exit writes again
            if number == len(heads):
                break
            leaves, memory = rule(z, memory, len(heads))
            layers[here[leaves]] = number
            stay = ~leaves
            if not stay.any():
                break
            if len(position_ids) == len(x):  # else there is one row for all
                position_ids = position_ids[stay]
            x, mask, here = Tensor(x.data[stay]), mask[stay], here[stay]
            memory = None if memory is None else memory[stay]
    return logits, layers
### END SOLUTION


batch = work.collate(np.arange(16), "test")
for name in RULES:
    found, layers = walk_and_leave(exits.model, exits.heads(), RULES[name](0.7), batch.input_ids, batch.attention_mask)
    package = exits.predict(RULES[name](0.7), batch.input_ids, batch.attention_mask, batch.token_type_ids)
    print(f"{name:<9} leaving at {layers.tolist()}, as the package has it: {np.array_equal(layers, package.layers)}")

# %% [markdown]
# ## What the numbers show: accuracy against cost
#
# If N_i texts leave at exit i of L, the *ideal* cost is the share of all blocks that was run,
#
# $$\frac{\sum_i i\,N_i}{L \sum_i N_i} ,$$
#
# the mean exit divided by L. For every rule and many values of s we need only the logits of all exits, which are there.

# %%
import matplotlib.pyplot as plt

from minipeft.methods.exit_rules import ideal_cost, margin


def leaving(rule, each):
    """The exit (N,) at which each text leaves by a rule, from the logits (L, N, C) of all exits."""
    memory, layers = None, np.full(each.shape[1], len(each))
    for number, z in enumerate(each[:-1], 1):
        leaves, memory = rule(z, memory, len(each))
        layers[leaves & (layers == len(each))] = number
    return layers


def curve(name, each):
    """[(ideal cost, accuracy)] from the strictest to the loosest."""
    points = {}
    for s in np.linspace(0, 1, 101):
        layers = leaving(RULES[name](s), each)
        said = each[layers - 1, np.arange(each.shape[1])].argmax(axis=1)
        points[ideal_cost(layers, len(each))] = float((said == right).mean())
    return sorted(points.items(), reverse=True)


curves = {f"{rule}, {way}": curve(rule, logits[way]) for rule, way in
          (("entropy", "joint"), ("patience", "joint"), ("entropy", "two stages"), ("entropy", "self-distilled"))}
figure, axes = plt.subplots(figsize=(6, 3.5))
for name, points in curves.items():
    axes.plot(*zip(*points), "^" if "patience" in name else "-", label=name)
axes.set_xlabel("share of the blocks that are run")
axes.set_ylabel("accuracy")
axes.legend(fontsize=7)
near = lambda points, cost: min(points, key=lambda point: abs(point[0] - cost))
told = lambda name: ", ".join("{1:.3f} at {0:.2f}".format(*near(curves[name], cost)) for cost in (1.0, 0.8, 0.6, 0.4))
show(figure, "early_exit", "Accuracy against the share of blocks that are run. Entropy after joint training: "
     + told("entropy, joint") + "; after two stages: " + told("entropy, two stages") + "; patience after joint training: "
     + ", ".join(f"{a:.3f} at {cost:.2f}" for cost, a in curves["patience, joint"]) + ".")

points = [near(curves["entropy, joint"], cost) for cost in (1.0, 0.7, 0.0)]
predict("Does the accuracy fall evenly as more leave early?",
        "No: from {1:.3f} at a cost of {0:.2f} ".format(*points[0]) + "to {1:.3f} at {0:.2f} ".format(*points[1])
        + "and {1:.3f} at {0:.2f}. ".format(*points[2]) + "The easy texts go first, on which an inner exit is as good as any.")
by_entropy = np.argsort(entropy(logits["joint"][0]))
print("from the least to the largest entropy, margins only fall:", (np.diff(margin(logits["joint"][0])[by_entropy]) < 1e-9).all())

# %% [markdown]
# Joint training buys better inner exits, and so a curve that stays up longer: a fifth of the blocks can go for nothing here.
# Patience has a single point with three exits (t = 1: leave where two agree), and it lies below the entropy's curve. With two
# classes the entropy and the margin are both functions of the larger probability, so that they run on one curve; with three or
# more they do not.
#
# ## Ideal and measured
#
# The ideal counts blocks. The clock counts more: the embedding, the exits themselves, choosing the rows, and products of few
# rows, which are less efficient than products of many. Let us time it, the full model and the walk by turns, so that both see the
# same machine.

# %%
import time


def seconds(batches, rule):
    """Time of all batches: of the full model where rule is None, else of the walk."""
    started = time.perf_counter()
    with no_grad():
        for b in batches:
            if rule is None:
                exits.model(b.input_ids, b.attention_mask, b.token_type_ids).logits.data
            else:
                exits.predict(rule, b.input_ids, b.attention_mask, b.token_type_ids)
    return time.perf_counter() - started


def measured(size, s):
    """(ideal cost, measured cost) of the entropy rule, in batches of this size."""
    chosen = [work.collate(i, "test") for i in make_batches(work.encodings["test"], size)[:8 if fast() else 400 // size]]
    rule, times = RULES["entropy"](s), ([], [])
    layers = np.concatenate([exits.predict(rule, b.input_ids, b.attention_mask, b.token_type_ids).layers for b in chosen])
    for _ in range(1 if fast() else 7):
        times[0].append(seconds(chosen, rule))
        times[1].append(seconds(chosen, None))
    return ideal_cost(layers, len(exits.heads())), min(times[0]) / min(times[1])  # the least is the least disturbed


for size in (32, 1):
    for s in (0.0, 0.3, 0.9):
        ideal, real = measured(size, s)
        print(f"batches of {size:2d}, looseness {s}: ideal {ideal:.3f}, measured {real:.3f}, {real / ideal:.2f} times the ideal")

# %% [markdown]
# Where nobody leaves (s = 0) the walk costs a little more than the model: three exits in place of one. The more leave, the larger
# the measured cost is beside the ideal. This model is tiny, so that whatever is not a large product weighs much: in batches of 1,
# looseness 0.3 may save nothing on the clock, because asking and choosing take as long as the block that was spared.
#
# On a real model it weighs less. MiniLM (6 layers) on SST-2, trained jointly, in batches of 32 (benchmarks/README.md, "Early exit
# on an encoder"):
#
# | rule | mean layer of 6 | accuracy | ideal | measured | / ideal |
# |---|--:|--:|--:|--:|--:|
# | nobody leaves | 6.00 | 0.847 | 1.000 | 1.005 | 1.01 |
# | entropy, s = 0.426 | 4.00 | 0.846 | 0.667 | 0.696 | 1.04 |
# | entropy, s = 0.792 | 3.00 | 0.839 | 0.500 | 0.535 | 1.07 |
# | entropy, s = 0.958 | 2.00 | 0.818 | 0.333 | 0.368 | 1.10 |
# | patience, s = 0.750 | 3.33 | 0.829 | 0.555 | 0.574 | 1.03 |
#
# Three tenths of the time saved cost a tenth of a point, nearly half of it one point. Patience lies below entropy there too,
# until three quarters of the blocks are run; there it reaches 0.850. The exits reach 0.733, 0.767, 0.822, 0.852, 0.851, 0.847:
# two inner exits are no worse than the last, so that leaving early need not even cost anything. (That a model knows the answer
# halfway and loses it again is called *overthinking*; Kaya et al., 2019.)
#
# ## In decoders
#
# A decoder writes token by token, and each token can leave where it will. There is one new difficulty. The next tokens attend to
# the keys and values of this one in *all* blocks, also in those it has not passed. CALM (Schuster et al., 2022) takes the state
# with which the token left, hands it to the blocks that were skipped, and lets each make keys and values of it with its own maps;
# copying the keys and values themselves ruins the text (section 5.2). All exits share the one output map, so no numbers are
# added. An early mistake spoils all that follows, so its threshold starts strict and falls from token to token. Projecting to the
# whole vocabulary at each exit is not cheap. In a LLaMA of five small layers leaving early pays only where tokens take three
# blocks or fewer on average, and there the text is no longer the full model's (benchmarks/README.md, "Drafting and leaving early
# in a decoder"). The other way out is to *draft* a few tokens with the first blocks and let all blocks check them at once, which
# gives the full model's text (LayerSkip). In the package: `token_exit.py` and `layer_skip.py`.
#
# ## Where it breaks
#
# - An exit that was never trained says something too, and may be sure of it. The package refuses to predict with one.
# - Being sure is not being right. A rule compares exits with themselves; where the texts of tomorrow are not those of training,
#   the inner exits are sure of nonsense first. Choose s on data like those to come, and look at the accuracy again from time to
#   time.
# - One text that stays makes its whole batch wait for it: the mean time falls, the longest does not. And long texts tend to stay
#   longer, so that the saving by tokens is less than by texts.
# - With a final norm that is left out, or with states from before the block, exits can be trained all the same, and are a little
#   worse: such faults do not show in a loss curve. Compare the last exit with the model, bit for bit.
# - Attachments that treat the rows of a batch differently (lesson 14's tasks in one batch) would not notice that rows have left.
#
# ## Read the package's own files
#
# `minipeft/methods/early_exit.py`, `exit_rules.py`, `exit_training.py`. Why does `Joint` skip an exit of weight 0 instead of
# multiplying by it? Where would dropout act in two-stage training if `train` were not overridden? Which line of `walk` makes an
# example's answer the same in any batch? Why are the rules' computations in float64?
#
# ## Sources
#
# - Teerapittayanon, McDanel, Kung, *BranchyNet*, ICPR 2016, arXiv:1709.01686: section III.
# - Xin, Tang, Lee, Yu, Lin, *DeeBERT*, ACL 2020, arXiv:2004.12993: sections 3.1 and 3.2.
# - Liu, Zhou, Zhao, Wang, Ju, Deng, Wang, *FastBERT*, ACL 2020, arXiv:2004.02178: sections 3.3 and 3.4.
# - Zhou, Xu, Ge, McAuley, Xu, Wei, *BERT Loses Patience* (PABEE), NeurIPS 2020, arXiv:2006.04152: sections 3.2 and 3.3.
# - Schuster, Fisch, Gupta, Dehghani, Bahri, Tran, Tay, Metzler, *CALM*, NeurIPS 2022, arXiv:2207.07061: sections 3.2 to 3.5, 5.2.
# - Elhoushi et al., *LayerSkip*, ACL 2024, arXiv:2404.16710.
# - Kaya, Hong, Dumitras, *Shallow-Deep Networks*, ICML 2019, arXiv:1810.07052 (overthinking).
