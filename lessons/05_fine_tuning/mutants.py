"""Wrong answers to lesson 5, and what a learner who wrote one is told."""

import math

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.nn import unwrap
from minipeft.training.regularise import HEAD

SCHEDULES, CUT, RATIO = ("linear", "cosine", "constant", "slanted"), 0.1, 32

# ---- 05.1 ----


def moments(gradient, m, v, beta1, beta2, gradient_scale):
    """The part that these wrong answers have right."""
    g = gradient * gradient_scale
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    return g


@mutant("05.1", "no_correction", "m and v start at zero and are too small at first: divide them by 1 - β^step before the step.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (np.sqrt(v) + eps) + decay * parameter)


@mutant("05.1", "l2_penalty", "That is Adam with an L2 penalty: you added decay · p to the gradient, so that √v̂ divides it. "
        "In AdamW it is taken from the parameter beside the step.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient * gradient_scale + decay * parameter, m, v, beta1, beta2, 1.0)
    parameter -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


@mutant("05.1", "decay_without_lr", "Decay is part of the step: it is multiplied by lr as well.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter *= 1 - decay
    parameter -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


@mutant("05.1", "no_decay", "The decay is missing: lr · decay · p must be taken away too.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


@mutant("05.1", "decay_after", "Nearly: decay is of the parameter as it was before the step. You shrank it after the step was "
        "taken.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    parameter *= 1 - lr * decay


@mutant("05.1", "eps_inside", "eps is added to the root, √v̂ + eps; you added it under the root.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (1 - beta1**step) / np.sqrt(v / (1 - beta2**step) + eps) + decay * parameter)


@mutant("05.1", "no_root", "The step is divided by the root of v̂; without the root its size depends on the gradient's again.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (1 - beta1**step) / (v / (1 - beta2**step) + eps) + decay * parameter)


@mutant("05.1", "corrected_in_place", "m and v must go on as plain running means. You stored them divided by 1 - β^step, and "
        "the next step would divide once more.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    m /= 1 - beta1**step
    v /= 1 - beta2**step
    parameter -= lr * (m / (np.sqrt(v) + eps) + decay * parameter)


@mutant("05.1", "from_zero", "step counts from 1 already: the correction of the first step is 1 - β, not 1 - β².")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter -= lr * (m / (1 - beta1 ** (step + 1)) / (np.sqrt(v / (1 - beta2 ** (step + 1))) + eps) + decay * parameter)


@mutant("05.1", "unclipped", "gradient_scale was not used: it multiplies the gradient before everything else.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, 1.0)
    parameter -= lr * (m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps) + decay * parameter)


@mutant("05.1", "rebound", "You made new arrays and left the given ones as they were. Write into them: *=, += and -=, or "
        "parameter[...] = .")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    g = gradient * gradient_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    parameter = parameter - lr * (m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps) + decay * parameter)


@mutant("05.1", "uphill", "You added the step: it goes against the gradient.")
def adam_step_reference(parameter, gradient, m, v, step, lr, beta1, beta2, eps, decay, gradient_scale):
    moments(gradient, m, v, beta1, beta2, gradient_scale)
    parameter += lr * (m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps) - decay * parameter)


# ---- 05.2 ----


def right(schedule, step, total, warmup):
    """The factor, as it should be."""
    if schedule == "slanted":
        cut = max(1, math.floor(CUT * total))
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / CUT - 1))
        return (1 + max(0.0, p) * (RATIO - 1)) / RATIO
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    return {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}[schedule]


def checked(schedule):
    """Refuse what is no schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(schedule)


@mutant("05.2", "first_step_lost", "The warm-up starts at 0, so that the first step teaches nothing. Step t (from 0) of w has "
        "the factor (t + 1) / w.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    return step / warmup if step < warmup and schedule != "slanted" else right(schedule, step, total, warmup)


@mutant("05.2", "falls_from_the_first_step", "Linear and cosine begin behind the warm-up: count both the step and the total "
        "from there.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    return right(schedule, step, total, warmup if step < warmup else 0)


@mutant("05.2", "zero_at_the_last_step", "You reach 0 at the last step, which then teaches nothing; linear and cosine would "
        "reach it one step later.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    if schedule in ("linear", "cosine") and step >= warmup:
        share = (step - warmup) / max(total - 1 - warmup, 1)
        return 1 - share if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
    return right(schedule, step, total, warmup)


@mutant("05.2", "whole_wave", "Cosine goes through half a wave: (1 + cos πx) / 2 falls from 1 to 0, with 2πx it comes back up.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    if schedule == "cosine" and step >= warmup:
        return (1 + math.cos(2 * math.pi * (step - warmup) / max(total - warmup, 1))) / 2
    return right(schedule, step, total, warmup)


@mutant("05.2", "cosine_below_zero", "cos goes from 1 to -1, and a rate below 0 climbs: use (1 + cos) / 2.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    if schedule == "cosine" and step >= warmup:
        return math.cos(math.pi * (step - warmup) / max(total - warmup, 1))
    return right(schedule, step, total, warmup)


@mutant("05.2", "slanted_from_zero", "The triangle of slanted stands on 1/32: its factor is (1 + 31 p) / 32, not p.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    value = right(schedule, step, total, warmup)
    return (value * RATIO - 1) / (RATIO - 1) if schedule == "slanted" else value


@mutant("05.2", "slanted_and_warm_up", "Slanted has its own rise, the first tenth; do not put the warm-up before it.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    return (step + 1) / warmup if step < warmup else right(schedule, step, total, warmup)


@mutant("05.2", "slanted_rises_for_nothing", "In a run of fewer than ten steps floor(T / 10) is 0: the rise takes one step at "
        "least.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    if schedule == "slanted":
        cut = math.floor(CUT * total)
        p = step / cut if step < cut else 1 - (step - cut) / max(total - cut, 1)
        return (1 + max(0.0, p) * (RATIO - 1)) / RATIO
    return right(schedule, step, total, warmup)


@mutant("05.2", "slanted_below_its_floor", "Where T is no multiple of ten the fall would go below 1/32 at the end: take no p "
        "below 0.")
def factor(schedule, step, total, warmup=0):
    checked(schedule)
    if schedule == "slanted":
        cut = max(1, math.floor(CUT * total))
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / CUT - 1))
        return (1 + p * (RATIO - 1)) / RATIO
    return right(schedule, step, total, warmup)


@mutant("05.2", "anything_goes", "A name that is no schedule must raise ValueError: a typing error would else train with a "
        "constant rate.")
def factor(schedule, step, total, warmup=0):
    return right(schedule if schedule in SCHEDULES else "constant", step, total, warmup)


# ---- 05.3 ----


def summed(hook, square, skipping=True):
    """The sum over the parameters of what ``square`` says of each, None where there is nothing."""
    total = 0.0
    for path, p in hook.parameters.items():
        strength, value = square(path, p, path.startswith(HEAD))
        if strength or not skipping:
            total = total + value * strength
    return None if isinstance(total, float) else total


def off(hook, path, p, head):
    """How far a parameter is from where it is pulled to."""
    return p if head else p - hook.start[path]


@mutant("05.3", "no_half", "The halves are missing: with a/2 |θ - θ₀|² the gradient is a (θ - θ₀), without it twice that.")
def penalty(self):
    return summed(self, lambda path, p, head: (self.beta if head else self.alpha, (off(self, path, p, head) ** 2).sum()))


@mutant("05.3", "towards_zero", "That is the distance from zero, plain weight decay: the body is pulled to self.start, where "
        "pre-training left it.")
def penalty(self):
    return summed(self, lambda path, p, head: ((self.beta if head else self.alpha) / 2, (p**2).sum()))


@mutant("05.3", "one_strength", "The head has a strength of its own: b, self.beta. You used a for everything.")
def penalty(self):
    return summed(self, lambda path, p, head: (self.alpha / 2, (off(self, path, p, head) ** 2).sum()))


@mutant("05.3", "no_head", "The head is missing: b/2 times its squared length belongs to the penalty.")
def penalty(self):
    return summed(self, lambda path, p, head: (0.0 if head else self.alpha / 2, (off(self, path, p, head) ** 2).sum()))


@mutant("05.3", "mean", "You took the mean of the squares; the squared length of a vector is their sum.")
def penalty(self):
    return summed(self, lambda path, p, head: ((self.beta if head else self.alpha) / 2, (off(self, path, p, head) ** 2).mean()))


@mutant("05.3", "length", "You took the root: the penalty is the squared distance, whose gradient grows with the distance.")
def penalty(self):
    return summed(self, lambda path, p, head: ((self.beta if head else self.alpha) / 2,
                                               ((off(self, path, p, head) ** 2).sum() + 1e-12) ** 0.5))


@mutant("05.3", "detached", "The number is right, but it was computed from arrays, so that no gradient reaches the "
        "parameters: stay with Tensors.")
def penalty(self):
    return summed(self, lambda path, p, head: ((self.beta if head else self.alpha) / 2,
                                               F.Tensor((off(self, path, p, head).data ** 2).sum())))


@mutant("05.3", "never_none", "With both strengths zero there is nothing to add: return None, so that the loop adds nothing.")
def penalty(self):
    return summed(self, lambda path, p, head: ((self.beta if head else self.alpha) / 2, (off(self, path, p, head) ** 2).sum()),
                  False)


# ---- 05.4 ----


@mutant("05.4", "late", "You are one epoch late: epochs count from 0, and epoch 0 trains the first group.")
def trained(self, epoch):
    on = set(self.order[:epoch // self.every])
    return [path for path, group in self.groups.items() if group in on]


@mutant("05.4", "one_group_alone", "You train one group alone in each epoch; what was unfrozen stays so, and one group joins.")
def trained(self, epoch):
    on = self.order[min(epoch // self.every, len(self.order) - 1)]
    return [path for path, group in self.groups.items() if group == on]


@mutant("05.4", "by_number", "A group without a parameter must not take an epoch: count places in self.order, not the numbers "
        "of the groups.")
def trained(self, epoch):
    return [path for path, group in self.groups.items() if group <= epoch // self.every]


@mutant("05.4", "every_epoch", "self.every says how many epochs go by before the next group joins; you let one join in each "
        "epoch.")
def trained(self, epoch):
    on = set(self.order[:1 + epoch])
    return [path for path, group in self.groups.items() if group in on]


@mutant("05.4", "from_the_bottom", "You start at the embeddings. Unfreezing starts at the top, with the head: what is general "
        "lies below and is spared longest.")
def trained(self, epoch):
    on = set(self.order[-1 - epoch // self.every:])
    return [path for path, group in self.groups.items() if group in on]


@mutant("05.4", "groups", "Return the paths of the parameters; you returned the numbers of the groups.")
def trained(self, epoch):
    return self.order[:1 + epoch // self.every]


# ---- 05.5 ----


def mixed_by(layer, x, weight):
    """The layer with a weight made from W, theta_0, the draw and p."""
    if not layer.training or layer.probability == 0:
        return layer.wrapped(x)
    root = unwrap(layer)
    drawn = layer.rng.random(layer.start.shape) < layer.probability
    return F.linear(x, weight(root.weight, layer.start, drawn, layer.probability), root.bias)


@mutant("05.5", "no_correction", "On average your weight is pθ₀ + (1 - p)θ, too near to the start: take pθ₀ away and divide "
        "by 1 - p.")
def forward(self, x):
    return mixed_by(self, x, lambda now, start, drawn, p: F.where(drawn, F.Tensor(start), now))


@mutant("05.5", "divided_alone", "You divide by 1 - p and do not take pθ₀ away before: mixed entries are then θ₀ / (1 - p) "
        "and not θ₀.")
def forward(self, x):
    return mixed_by(self, x, lambda now, start, drawn, p: F.where(drawn, F.Tensor(start), now) * (1 / (1 - p)))


@mutant("05.5", "dropout", "That is dropout of the weight: entries fall to zero. Mixout puts them back to their start, θ₀.")
def forward(self, x):
    return mixed_by(self, x, lambda now, start, drawn, p: F.where(drawn, F.Tensor(np.zeros_like(start)), now) * (1 / (1 - p)))


@mutant("05.5", "swapped", "You exchanged the two: an entry is put back to the start with probability p, and kept with 1 - p.")
def forward(self, x):
    return mixed_by(self, x, lambda now, start, drawn, p: (F.where(drawn, now, F.Tensor(start)) - start * p) * (1 / (1 - p)))


@mutant("05.5", "always", "Mixout is for training. In evaluation (self.training is false) the layer is self.wrapped(x).")
def forward(self, x):
    root, p, rng = unwrap(self), self.probability, self.rng or np.random.default_rng(0)
    weight = F.where(rng.random(self.start.shape) < p, F.Tensor(self.start), root.weight)
    return F.linear(x, (weight - self.start * p) * (1 / (1 - p)), root.bias)


@mutant("05.5", "by_column", "You drew one number for each output, so that whole columns are mixed; each entry of the weight "
        "is drawn on its own.")
def forward(self, x):
    if not self.training or self.probability == 0:
        return self.wrapped(x)
    root, p = unwrap(self), self.probability
    drawn = np.broadcast_to(self.rng.random(self.start.shape[1]) < p, self.start.shape)
    return F.linear(x, (F.where(drawn, F.Tensor(self.start), root.weight) - self.start * p) * (1 / (1 - p)), root.bias)


@mutant("05.5", "the_same_each_time", "You draw the same entries at each call: a generator made inside the function starts "
        "anew. Use self.rng.")
def forward(self, x):
    if not self.training or self.probability == 0:
        return self.wrapped(x)
    root, p = unwrap(self), self.probability
    drawn = np.random.default_rng(0).random(self.start.shape) < p
    return F.linear(x, (F.where(drawn, F.Tensor(self.start), root.weight) - self.start * p) * (1 / (1 - p)), root.bias)


@mutant("05.5", "no_bias", "The bias is missing: F.linear(x, weight, root.bias).")
def forward(self, x):
    if not self.training or self.probability == 0:
        return self.wrapped(x)
    root, p = unwrap(self), self.probability
    drawn = self.rng.random(self.start.shape) < p
    return F.linear(x, (F.where(drawn, F.Tensor(self.start), root.weight) - self.start * p) * (1 / (1 - p)))


@mutant("05.5", "detached", "No gradient reaches the weight: mix the Tensor root.weight itself, not its array.")
def forward(self, x):
    return mixed_by(self, x, lambda now, start, drawn, p: F.Tensor((np.where(drawn, start, now.data) - p * start) / (1 - p)))
