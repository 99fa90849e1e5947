"""Wrong answers to lesson 10, and what a learner who wrote one is told."""

import math

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.methods.fisher import class_logits
from minipeft.methods.targets import linear_paths
from minipeft.nn import unwrap

# ---- 10.1 ----

TASK_MAP = ("head.classifier.", "head.output.")


def biases(method, model, wanted, refuse=True):
    """The chosen biases among those for which ``wanted(path, parameter)`` holds."""
    found = {path.removesuffix(".bias"): p for path, p in model.named_parameters() if path.endswith(".bias") and wanted(path, p)}
    chosen = {f"{path}.bias": found[path] for path in method._chosen(found)}
    if refuse and not chosen and not method.add_zero_biases:
        raise ValueError("there is no bias to train")
    return chosen


@mutant("10.1", "with_the_head", "The classifier's bias is among yours. The task's own map is trained whole, as the head, by "
        "attach itself: leave out what begins with head.classifier. or head.output.")
def base_parameters(self, model):
    return biases(self, model, lambda path, p: True)


@mutant("10.1", "no_norms", "Norms have biases too (β): a bias is every parameter whose path ends in .bias, whatever module "
        "it belongs to.")
def base_parameters(self, model):
    return biases(self, model, lambda path, p: not path.startswith(TASK_MAP) and "norm" not in path)


@mutant("10.1", "blocks_only", "You took the blocks alone; the norm of BERT's embeddings, its pooler and GPT-2's last norm "
        "have biases as well.")
def base_parameters(self, model):
    return biases(self, model, lambda path, p: path.startswith("blocks."))


@mutant("10.1", "no_pooler", "You left out everything below head.; BERT's pooler stands there and is part of the pre-trained "
        "model. Only the task's own map is left out.")
def base_parameters(self, model):
    return biases(self, model, lambda path, p: not path.startswith("head."))


@mutant("10.1", "all_terms", "self.terms was not asked: self._chosen(paths) says which of the modules are trained.")
def base_parameters(self, model):
    found = {path: p for path, p in model.named_parameters() if path.endswith(".bias") and not path.startswith(TASK_MAP)}
    if not found and not self.add_zero_biases:
        raise ValueError("there is no bias to train")
    return found


@mutant("10.1", "vectors", "You took every vector, and so the gains of the norms too. They multiply; a bias is added, and its "
        "path ends in .bias.")
def base_parameters(self, model):
    found = {path: p for path, p in model.named_parameters() if p.ndim == 1 and not path.startswith(TASK_MAP)}
    chosen = {path: p for path, p in found.items()
              if path.rpartition(".")[0] in self._chosen([name.rpartition(".")[0] for name in found])}
    if not any(path.endswith(".bias") for path in chosen):
        if not self.add_zero_biases:
            raise ValueError("there is no bias to train")
        return {}
    return chosen


@mutant("10.1", "copies", "You made new Parameters. Give the model's own, or the model is not what is trained.")
def base_parameters(self, model):
    chosen = biases(self, model, lambda path, p: not path.startswith(TASK_MAP))
    return {path: type(p)(p.data.copy()) for path, p in chosen.items()}


@mutant("10.1", "nothing_is_fine", "A model without a bias must be refused with ValueError (unless zeros are added): training "
        "nothing in silence helps nobody.")
def base_parameters(self, model):
    return biases(self, model, lambda path, p: not path.startswith(TASK_MAP), refuse=False)


# ---- 10.2 ----


def by_rows(layer, y, changed):
    """``changed`` in the rows that the attachment has."""
    return changed if layer.rows is None else F.where(layer.rows.reshape(-1, *[1] * (y.ndim - 1)), changed, y)


@mutant("10.2", "added", "You added l. A scale multiplies: it is a factor for each coordinate, and a bias is what is added.")
def scale(self, y):
    return by_rows(self, y, y + self.l)


@mutant("10.2", "one_plus", "You multiply by 1 + l. Here l itself is the factor: it starts at 1, so that a fresh one changes "
        "nothing.")
def scale(self, y):
    return by_rows(self, y, y * (self.l + 1.0))


@mutant("10.2", "all_rows", "The product is right, but self.rows was not looked at: rows whose entry is False must go through "
        "unchanged.")
def scale(self, y):
    return y * self.l


@mutant("10.2", "zero_rows", "The rows that the scales are not for became zero; they must come out as they went in.")
def scale(self, y):
    if self.rows is None:
        return y * self.l
    return y * self.l * self.rows.reshape(-1, *[1] * (y.ndim - 1)).astype(y.dtype)


@mutant("10.2", "other_rows", "You exchanged the two: True in self.rows means that the scales are for this row.")
def scale(self, y):
    return y * self.l if self.rows is None else F.where(self.rows.reshape(-1, *[1] * (y.ndim - 1)), y, y * self.l)


@mutant("10.2", "detached", "The numbers are right, but self.l.data has no gradient: multiply by the Tensor self.l.")
def scale(self, y):
    return by_rows(self, y, y * self.l.data)


@mutant("10.2", "mean_scale", "There is one scale for each coordinate; you multiply all of them by the same number.")
def scale(self, y):
    return by_rows(self, y, y * self.l.mean())


# ---- 10.3 ----


@mutant("10.3", "bias_left", "Behind the map the scale multiplies b too: l (x W + b) = x (W diag l) + l b.")
def merged_arrays(self, weight, bias):
    return (self.l.data[:, None] * weight if self.at_input else weight * self.l.data), bias


@mutant("10.3", "bias_always", "A scale before the map does not reach b: (l x) W + b has b as it was.")
def merged_arrays(self, weight, bias):
    weight = self.l.data[:, None] * weight if self.at_input else weight * self.l.data
    return weight, None if bias is None else bias * (self.l.data.mean() if self.at_input else self.l.data)


@mutant("10.3", "always_columns", "Before the map it is the rows of W that are scaled: diag(l) W, with l (D_in,) as a column.")
def merged_arrays(self, weight, bias):
    return weight * self.l.data, bias if bias is None or self.at_input else bias * self.l.data


@mutant("10.3", "always_rows", "Behind the map it is the columns of W that are scaled: W diag(l), one factor for each output.")
def merged_arrays(self, weight, bias):
    return self.l.data[:, None] * weight, bias if bias is None or self.at_input else bias * self.l.data


@mutant("10.3", "divided", "You divided: that takes the scale out. Merging multiplies it in; unmerging is the package's "
        "business, which keeps the base.")
def merged_arrays(self, weight, bias):
    if self.at_input:
        return weight / self.l.data[:, None], bias
    return weight / self.l.data, None if bias is None else bias / self.l.data


@mutant("10.3", "in_place", "You wrote into the base's own arrays, so that it cannot come back bit for bit: make new ones.")
def merged_arrays(self, weight, bias):
    if self.at_input:
        weight *= self.l.data[:, None]
        return weight, bias
    weight *= self.l.data
    if bias is not None:
        bias *= self.l.data
    return weight, bias


@mutant("10.3", "no_bias", "Some maps have no bias: bias is then None, and None is what must come back.")
def merged_arrays(self, weight, bias):
    if self.at_input:
        return self.l.data[:, None] * weight, bias
    return weight * self.l.data, bias * self.l.data


# ---- 10.4 ----


def each_label(layer, h):
    """What each label's logit moves by."""
    return layer.b.reshape(1, -1) if layer.d is None else F.linear(h, F.swap_last(layer.d))


@mutant("10.4", "replaced", "You put h · d_c in the place of the label's logit. d_c starts at zero: it is added to what the "
        "map said before.")
def forward(self, h):
    others = F.Tensor(1.0 - self.place.sum(axis=0))
    return self.wrapped(h) * others + each_label(self, h) @ F.Tensor(self.place)


@mutant("10.4", "first_columns", "You moved the first outputs. Which output each label is stands in self.place: row c has its "
        "1 there.")
def forward(self, h):
    return self.wrapped(h) + each_label(self, h) @ F.Tensor(np.eye(*self.place.shape))


@mutant("10.4", "sorted_columns", "The labels' order was lost: label c belongs to the output in which row c of self.place has "
        "its 1.")
def forward(self, h):
    order = np.argsort(self.place.argmax(axis=1))
    return self.wrapped(h) + each_label(self, h) @ F.Tensor(self.place[order])


@mutant("10.4", "labels_alone", "You give the labels' logits alone; all outputs must come out, those that are no labels "
        "unchanged.")
def forward(self, h):
    return self.wrapped(h) @ F.Tensor(self.place.T.copy()) + each_label(self, h)


@mutant("10.4", "vectors_only", "Where self.d is None the labels have a bias each, self.b (C,), and nothing is multiplied "
        "with h.")
def forward(self, h):
    return self.wrapped(h) + F.linear(h, F.swap_last(self.d)) @ F.Tensor(self.place)


@mutant("10.4", "spread", "You added the sum of all labels' moves to every output: the place (C, V) must take each to its own.")
def forward(self, h):
    return self.wrapped(h) + each_label(self, h).sum(axis=-1, keepdims=True)


@mutant("10.4", "detached", "The logits are right, but d or b was taken as an array, through which no gradient goes.")
def forward(self, h):
    each = self.b.data.reshape(1, -1) if self.d is None else F.linear(h, F.Tensor(self.d.data.T.copy())).data
    return self.wrapped(h) + F.Tensor(each @ self.place)


# ---- 10.5 ----


def informed(model, batches, scores, contribution, divide=True):
    """What these wrong answers have right;
    ``contribution(gradients, p, label)`` of a text from [{path: gradient} of each class]."""
    paths = linear_paths(model)
    parameters = {f"{path}.{name}": p for path in paths for name, p in unwrap(model.get(path)).named_parameters()}
    before = {path: p.requires_grad for path, p in parameters.items()}
    out = {path: np.zeros(p.shape) for path, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad = True
        for batch in batches:
            if len(batch.input_ids) != 1:
                raise ValueError("one text at a time")
            slopes, p = [], []
            for label in range(scores(model, batch).shape[1]):
                loss = F.cross_entropy(scores(model, batch), np.array([label]))
                slopes.append(dict(zip(parameters, F.grad(loss, list(parameters.values())))))
                p.append(math.exp(-loss.item()))
            for path in out:
                out[path] += (contribution([s[path].astype(np.float64) for s in slopes], p, int(batch.labels[0]))
                              / (len(batches) if divide else 1))
    finally:
        for path, parameter in parameters.items():
            parameter.requires_grad = before[path]
    return out


@mutant("10.5", "true_labels", "That is the empirical Fisher information, with the label of the data. Sum over all classes, "
        "each weighed by the probability that the model gives it.")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: slopes[label] ** 2)


@mutant("10.5", "unweighed", "Every class counts alike in yours; weigh each with p(y|x), which is e to minus its loss.")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: sum(s**2 for s in slopes))


@mutant("10.5", "squared_mean", "You squared after summing over the classes. The weighed sum of the slopes is zero, whatever "
        "the model: square first.")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: sum(q * s for q, s in zip(p, slopes)) ** 2)


@mutant("10.5", "sizes", "You took the slopes' sizes; Fisher information has their squares.")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: sum(q * np.abs(s) for q, s in zip(p, slopes)))


@mutant("10.5", "squared_weights", "You weighed the slope before you squared, so that p counts twice: p g², not (p g)².")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: sum((q * s) ** 2 for q, s in zip(p, slopes)))


@mutant("10.5", "summed", "It is the mean over the texts: divide by their number, or F grows with how many you look at.")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, scores, lambda slopes, p, label: sum(q * s**2 for q, s in zip(p, slopes)), divide=False)


@mutant("10.5", "left_released", "F is right, but the maps are left released: what was frozen before must be frozen again, "
        "also after an error.")
def fisher_importance(model, batches, scores=class_logits):
    found = informed(model, batches, scores, lambda slopes, p, label: sum(q * s**2 for q, s in zip(p, slopes)))
    for path in found:
        dict(model.named_parameters())[path].requires_grad = True
    return found


@mutant("10.5", "the_classifiers", "You asked the classifier, whatever `scores` is: a prompt has logits of its own, over its "
        "label words. Take scores(model, batch).")
def fisher_importance(model, batches, scores=class_logits):
    return informed(model, batches, class_logits, lambda slopes, p, label: sum(q * s**2 for q, s in zip(p, slopes)))
