"""Wrong answers to lesson 15, and what a learner who wrote one is told."""

import contextlib
import math

import numpy as np

from minipeft import autograd as F
from minipeft.autograd import Tensor, no_grad
from minipeft.learn.claims import mutant
from minipeft.methods.exit_training import ExitsOutput

# ---- 15.1 ----


def read(self, ids, mask, types, record, what=lambda model, x: model.normalised(x), before=False, masked=True):
    """Logits of all exits; ``what``: from the states behind a block to what a head reads."""
    with contextlib.nullcontext() if record else F.no_grad():
        x, mask, position_ids, virtual = self.model.enter(ids, mask, types)
        read, out = mask if masked else None, []
        for block in self.model.blocks:
            entered, x = x, block(x, mask, position_ids)
            out.append(what(self.model, entered if before else x))
        last = self.model.head(out.pop(), read, virtual)
    return [head(h, read, virtual) for head, h in zip(self.exits, out)] + [last]


def told(self, logits, labels):
    """The output for these logits."""
    if not self.objective.needs_labels:
        return ExitsOutput(self.objective(logits), logits)
    return ExitsOutput(None if labels is None else self.objective(logits, np.asarray(labels)), logits)


@mutant("15.1", "no_final_norm", "A pre-norm model's head reads its states through the final norm, and so must every exit: "
                                 "self.model.normalised(x).")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    logits = read(self, input_ids, attention_mask, token_type_ids, self.objective.trains_model, lambda model, x: x)
    return told(self, logits, labels)


@mutant("15.1", "before_the_block", "Exit i reads what comes out of block i; yours read what goes into it.")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    return told(self, read(self, input_ids, attention_mask, token_type_ids, self.objective.trains_model, before=True), labels)


@mutant("15.1", "mask_forgotten", "A head needs the mask, or padding is counted into the mean over the tokens: head(h, mask, "
                                  "virtual).")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    return told(self, read(self, input_ids, attention_mask, token_type_ids, self.objective.trains_model, masked=False), labels)


@mutant("15.1", "always_recorded", "Where self.objective.trains_model is false the model is frozen: run it under F.no_grad(), "
                                   "and only the exits outside.")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    return told(self, read(self, input_ids, attention_mask, token_type_ids, True), labels)


@mutant("15.1", "never_recorded", "A joint objective trains the model as well: run it under F.no_grad() only where "
                                  "self.objective.trains_model is false.")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    return told(self, read(self, input_ids, attention_mask, token_type_ids, False), labels)


@mutant("15.1", "exits_alone", "The last head is the model's own: its logits belong at the end of the list, for the joint loss, "
                               "as the teacher, and as the answer.")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    logits = read(self, input_ids, attention_mask, token_type_ids, self.objective.trains_model)[:-1]
    return told(self, logits, labels)


@mutant("15.1", "one_state_for_all", "All your exits read the last state; exit i must read the state behind block i, or nothing "
                                     "is saved by leaving there.")
def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
    with contextlib.nullcontext() if self.objective.trains_model else F.no_grad():
        x, mask, position_ids, virtual = self.model.enter(input_ids, attention_mask, token_type_ids)
        for block in self.model.blocks:
            x = block(x, mask, position_ids)
        x = self.model.normalised(x)
        last = self.model.head(x, mask, virtual)
    return told(self, [head(x, mask, virtual) for head in self.exits] + [last], labels)


# ---- 15.2 ----


def logs(z):
    """log p."""
    z = z - z.data.max(axis=-1, keepdims=True)
    return z - F.log(F.exp(z).sum(axis=-1, keepdims=True))


@mutant("15.2", "the_other_way", "You computed KL(p_L || p_i); here the exit's own p stands in front: KL(p_i || p_L). The two "
                                 "are not the same.")
def distilled(logits):
    teacher = logs(logits[-1].detach())
    return sum((F.exp(teacher) * (teacher - logs(z))).sum(axis=-1).mean() for z in logits[:-1])


@mutant("15.2", "teacher_learns", "The gradient reaches the model's own logits, which would then move towards the exits: detach "
                                  "them.")
def distilled(logits):
    teacher = logs(logits[-1])
    return sum((F.exp(a) * (a - teacher)).sum(axis=-1).mean() for a in map(logs, logits[:-1]))


@mutant("15.2", "sum_over_the_batch", "You summed over the texts: take their mean, or the learning rate would depend on the "
                                      "batch size.")
def distilled(logits):
    teacher = logs(logits[-1].detach())
    return sum((F.exp(a) * (a - teacher)).sum() for a in map(logs, logits[:-1]))


@mutant("15.2", "mean_over_classes", "KL is a sum over the classes; you took a mean over them.")
def distilled(logits):
    teacher = logs(logits[-1].detach())
    return sum((F.exp(a) * (a - teacher)).mean() for a in map(logs, logits[:-1]))


@mutant("15.2", "mean_over_exits", "The losses of the exits are summed; you took their mean.")
def distilled(logits):
    teacher = logs(logits[-1].detach())
    return sum((F.exp(a) * (a - teacher)).sum(axis=-1).mean() for a in map(logs, logits[:-1])) * (1 / (len(logits) - 1))


@mutant("15.2", "entropy_left_out", "That is - sum of p_i log p_L, a cross-entropy: the term with log p_i is missing, without "
                                    "which an exit becomes too sure of itself.")
def distilled(logits):
    teacher = logs(logits[-1].detach())
    return sum((F.exp(a) * teacher).sum(axis=-1).mean() for a in map(logs, logits[:-1])) * -1.0


@mutant("15.2", "overflows", "The formula is right for small logits; for large ones exp overflows. Subtract each row's largest "
                             "logit first, as its own constant.")
def distilled(logits):
    plain = lambda z: z - F.log(F.exp(z).sum(axis=-1, keepdims=True))
    teacher = plain(logits[-1].detach())
    return sum((F.exp(a) * (a - teacher)).sum(axis=-1).mean() for a in map(plain, logits[:-1]))


# ---- 15.3 ----


@mutant("15.3", "not_normalised", "That is H itself, which goes up to log C: divide by log C, so that one threshold does for any"
                                  " number of classes.")
def entropy(logits):
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1)
    return np.log(total) - (z * e).sum(axis=1) / total


@mutant("15.3", "over_classes", "You divided by C, the number of classes; the largest entropy is log C.")
def entropy(logits):
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1)
    return (np.log(total) - (z * e).sum(axis=1) / total) / z.shape[1]


@mutant("15.3", "sign", "The sign is lost: entropy is minus the sum of p log p, and never negative.")
def entropy(logits):
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1)
    return ((z * e).sum(axis=1) / total - np.log(total)) / math.log(z.shape[1])


@mutant("15.3", "overflows", "The formula is right, and exp overflows for large logits: subtract each row's largest first.")
def entropy(logits):
    z = logits.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        e = np.exp(z)
        total = e.sum(axis=1)
        return (np.log(total) - (z * e).sum(axis=1) / total) / math.log(z.shape[1])


@mutant("15.3", "log_of_zero", "p log p of a class without probability came out as NaN: its limit is 0. Use H = logsumexp(z) - "
                               "sum of z p, in which no log of p stands.")
def entropy(logits):
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -(p * np.log(p)).sum(axis=1) / math.log(z.shape[1])


@mutant("15.3", "over_the_batch", "You summed over the rows: the entropy is of each row, over its classes, axis 1.")
def entropy(logits):
    z = logits.astype(np.float64)
    z = z - z.max(axis=0, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=0)
    return (np.log(total) - (z * e).sum(axis=0) / total) / math.log(z.shape[1])


@mutant("15.3", "of_the_surest", "That is 1 - the largest probability. It falls and rises with the entropy for two classes, but "
                                 "the formula has all classes.")
def entropy(logits):
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return 1 - e.max(axis=1) / e.sum(axis=1)


# ---- 15.4 ----


@mutant("15.4", "from_0", "Exits are numbered from 1, as the first block's; yours count from 0.")
def leaving_by_patience(named, patience):
    layers, agreed = np.full(named.shape[1], len(named) - 1), np.zeros(named.shape[1], np.int64)
    for i in range(1, len(named)):
        agreed = np.where(named[i] == named[i - 1], agreed + 1, 0)
        layers[(agreed >= patience) & (layers == len(named) - 1)] = i
    return layers


@mutant("15.4", "counts_from_1", "The first exit has agreed with nobody: the counter starts at 0, and goes back to 0 when the "
                                 "class changes.")
def leaving_by_patience(named, patience):
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.ones(rows, np.int64)
    layers[agreed >= patience] = 1
    for i in range(1, exits):
        agreed = np.where(named[i] == named[i - 1], agreed + 1, 1)
        layers[(agreed >= patience) & (layers == exits)] = i + 1
    return layers


@mutant("15.4", "never_reset", "You counted all agreements; they must be in a row, so that a change of class puts the counter "
                               "back to 0.")
def leaving_by_patience(named, patience):
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.zeros(rows, np.int64)
    for i in range(1, exits):
        agreed = agreed + (named[i] == named[i - 1])
        layers[(agreed >= patience) & (layers == exits)] = i + 1
    return layers


@mutant("15.4", "the_last_chance", "You took the last exit at which the rule holds; a text leaves at the first.")
def leaving_by_patience(named, patience):
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.zeros(rows, np.int64)
    for i in range(1, exits):
        agreed = np.where(named[i] == named[i - 1], agreed + 1, 0)
        layers[agreed >= patience] = i + 1
    return layers


@mutant("15.4", "more_than", "A text leaves when the counter has reached the patience; you waited until it is above.")
def leaving_by_patience(named, patience):
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.zeros(rows, np.int64)
    for i in range(1, exits):
        agreed = np.where(named[i] == named[i - 1], agreed + 1, 0)
        layers[(agreed > patience) & (layers == exits)] = i + 1
    return layers


@mutant("15.4", "with_the_last", "You compared with the last exit, which nobody knows who has not gone there; an exit is "
                                 "compared with the one before it.")
def leaving_by_patience(named, patience):
    exits, rows = named.shape
    layers, agreed = np.full(rows, exits), np.zeros(rows, np.int64)
    for i in range(1, exits):
        agreed = np.where(named[i] == named[-1], agreed + 1, 0)
        layers[(agreed >= patience) & (layers == exits)] = i + 1
    return layers


# ---- 15.5 ----


def walked(model, heads, rule, ids, mask, remember=True, first=1, own_place=True, keep=(), only_last=False):
    """The walk, with one thing or another left out."""
    with no_grad():
        x, mask, position_ids, virtual = model.enter(ids, mask)
        here, memory, layers, logits = np.arange(len(x)), None, np.full(len(x), len(heads) - 1 + first), None
        for number, (block, head) in enumerate(zip(model.blocks, heads), first):
            x = block(x, mask, position_ids)
            z = head(model.normalised(x), mask, virtual).data
            logits = np.zeros_like(z) if logits is None else logits
            last = number == len(heads) - 1 + first
            if last or not only_last:
                logits[here] = z
            if last:
                break
            leaves, memory = rule(z, memory if remember else None, len(heads))
            layers[here[leaves] if own_place else np.flatnonzero(leaves)] = number
            stay = ~leaves
            if not stay.any():
                break
            x, here = Tensor(x.data[stay]), here[stay]
            mask = mask if "mask" in keep else mask[stay]
            position_ids = position_ids if "positions" in keep else position_ids[stay]
            memory = memory[stay] if memory is not None else None
    return logits, layers


@mutant("15.5", "nobody_goes", "The logits and layers are right, and nothing is saved: whoever has left must not be handed to "
                               "the next block.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    with no_grad():
        x, mask, position_ids, virtual = model.enter(input_ids, attention_mask)
        layers, memory, logits = np.full(len(x), len(heads)), None, None
        for number, (block, head) in enumerate(zip(model.blocks, heads), 1):
            x = block(x, mask, position_ids)
            z = head(model.normalised(x), mask, virtual).data
            logits = np.zeros_like(z) if logits is None else logits
            there = layers >= number
            logits[there] = z[there]
            leaves, memory = rule(z, memory, len(heads))
            layers[there & leaves] = number
    return logits, layers


@mutant("15.5", "layers_from_0", "Exits are numbered from 1, as the first block's; yours count from 0.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, first=0)


@mutant("15.5", "lost_places", "Once some have left, row i of the states is no longer text i: keep which texts the rows are, and"
                               " write to those.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, own_place=False)


@mutant("15.5", "mask_left_behind", "The states of those who left are gone, but the mask still has their rows: choose the same "
                                    "rows of everything.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, keep=("mask",))


@mutant("15.5", "positions_left_behind", "The position ids have a row for each text as well, and each block's rotary angles "
                                         "are made of them: choose the rows of who stays.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, keep=("positions",))


@mutant("15.5", "no_memory", "What the rule returned to be remembered must be given to it at the next exit; without it patience "
                             "is never reached.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, remember=False)


@mutant("15.5", "logits_of_the_last", "Only who reaches the last exit has logits in your answer: write them at every exit, for "
                                      "the rows that are there.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    return walked(model, heads, rule, input_ids, attention_mask, only_last=True)


@mutant("15.5", "no_final_norm", "The heads read the states through model.normalised, which is the final norm of a pre-norm "
                                 "model.")
def walk_and_leave(model, heads, rule, input_ids, attention_mask):
    class Plain:
        enter, blocks, normalised = model.enter, model.blocks, staticmethod(lambda x: x)
    return walked(Plain, heads, rule, input_ids, attention_mask)
