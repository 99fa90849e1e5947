"""Wrong answers to lesson 14, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.autograd import Tensor, grad
from minipeft.learn.claims import mutant
from minipeft.prompting.meta import substituted

# ---- 14.1 ----


@mutant("14.1", "no_temperature", "The temperature does nothing in your answer: take the sizes to the power 1 / temperature.")
def shares(sizes, temperature=1.0, limit=None):
    counts = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
    return counts / counts.sum()


@mutant("14.1", "power_of_temperature", "The power is 1 / temperature: a high temperature must make the tasks more alike, and "
                                        "yours sets them apart.")
def shares(sizes, temperature=1.0, limit=None):
    counts = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
    weights = counts ** min(temperature, 60)
    return weights / weights.sum()


@mutant("14.1", "no_limit", "The limit K does nothing in your answer: a task of more than K examples counts as one of K.")
def shares(sizes, temperature=1.0, limit=None):
    weights = np.asarray(sizes, np.float64) ** (1 / temperature)
    return weights / weights.sum()


@mutant("14.1", "limit_after_the_root", "The limit is on the sizes, not on their roots: cut first, then take the power.")
def shares(sizes, temperature=1.0, limit=None):
    weights = np.minimum(np.asarray(sizes, np.float64) ** (1 / temperature), np.inf if limit is None else limit)
    return weights / weights.sum()


@mutant("14.1", "not_divided", "These are weights, not shares: divide by their sum.")
def shares(sizes, temperature=1.0, limit=None):
    counts = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
    return counts ** (1 / temperature)


@mutant("14.1", "softmax_of_sizes", "You took a softmax of size / temperature; the formula has a power of the size, which is a "
                                    "softmax of log(size) / temperature.")
def shares(sizes, temperature=1.0, limit=None):
    counts = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
    e = np.exp((counts - counts.max()) / temperature)
    return e / e.sum()


# ---- 14.2 ----


@mutant("14.2", "vectors_alone", "Return three things, as the module inside does: the vectors, the mask and the number of "
                                 "virtual tokens.")
def forward(self, ids, mask=None, past=0):
    return self.wrapped(ids, mask, past)[0] + self.e


@mutant("14.2", "times", "e is added to the words' vectors; you multiplied by it (and a fresh e is zero).")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    return vectors * self.e, mask, virtual


@mutant("14.2", "first_word_only", "You moved the first word alone; e is added at every place.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    first = np.zeros((vectors.shape[1], 1), vectors.dtype)
    first[0] = 1
    return vectors + self.e * first, mask, virtual


@mutant("14.2", "detached", "The numbers are right, but no gradient reaches e, which would never learn: add self.e, not "
                            "self.e.data.")
def forward(self, ids, mask=None, past=0):
    vectors, mask, virtual = self.wrapped(ids, mask, past)
    return vectors + self.e.data, mask, virtual


@mutant("14.2", "mask_forgotten", "Hand mask and past on to self.wrapped: without them padding is attended to and a cache is "
                                  "read at the wrong place.")
def forward(self, ids, mask=None, past=0):
    vectors, _, virtual = self.wrapped(ids)
    return vectors + self.e, mask, virtual


@mutant("14.2", "own_mask", "Give back the mask that self.wrapped returned, not the one you were given: virtual tokens inside "
                            "have made it longer.")
def forward(self, ids, mask=None, past=0):
    vectors, _, virtual = self.wrapped(ids, mask, past)
    return vectors + self.e, mask, virtual


# ---- 14.3 ----


def walk(model, places, start, loss, lr, steps, second_order=False):
    """phi_k, as it should be."""
    phi = start
    for _ in range(steps):
        with substituted(places, phi):
            value = loss(model)
        gradients = grad(value, list(phi.values()), create_graph=second_order)
        if second_order:
            phi = {path: p - g * lr for (path, p), g in zip(phi.items(), gradients)}
        else:
            phi = {path: Tensor(p.data - p.dtype.type(lr) * g, True) for (path, p), g in zip(phi.items(), gradients)}
    return phi


@mutant("14.3", "gradient_at_the_start", "Every step took the gradient at the start: substitute phi, as it stands by now, before"
                                         " the loss is computed.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    phi = start
    for _ in range(steps):
        with substituted(places, start):
            value = loss(model)
        gradients = grad(value, list(start.values()), create_graph=second_order)
        if second_order:
            phi = {path: p - g * lr for (path, p), g in zip(phi.items(), gradients)}
        else:
            phi = {path: Tensor(p.data - p.dtype.type(lr) * g, True) for (path, p), g in zip(phi.items(), gradients)}
    return phi


@mutant("14.3", "one_step", "Only one step was made: there are `steps` of them.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    return walk(model, places, start, loss, lr, 1, second_order)


@mutant("14.3", "uphill", "You went up the slope: subtract lr times the gradient.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    return walk(model, places, start, loss, -lr, steps, second_order)


@mutant("14.3", "always_first_order", "second_order does nothing in your answer: then phi_k must stay connected with the start "
                                      "(create_graph, and Tensors all the way).")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    return walk(model, places, start, loss, lr, steps, False)


@mutant("14.3", "always_second_order", "Without second_order the record must end at each step: make new Tensors of the arrays, "
                                       "with requires_grad=True.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    return walk(model, places, start, loss, lr, steps, True)


@mutant("14.3", "no_hessian", "phi_k is connected with the start, but the gradients are constants in it: the factor is I where "
                              "it should be I - a H. Ask grad for create_graph=True.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    phi = start
    for _ in range(steps):
        with substituted(places, phi):
            value = loss(model)
        gradients = grad(value, list(phi.values()))
        if second_order:
            phi = {path: p - g * p.dtype.type(lr) for (path, p), g in zip(phi.items(), gradients)}
        else:
            phi = {path: Tensor(p.data - p.dtype.type(lr) * g, True) for (path, p), g in zip(phi.items(), gradients)}
    return phi


@mutant("14.3", "in_place", "You changed the start itself: make new Tensors, because the start is what will be improved.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    end = walk(model, places, start, loss, lr, steps, second_order)
    for path, p in start.items():
        p.data = end[path].data.copy()
    return end


@mutant("14.3", "no_gradient_at_the_end", "phi_k needs no gradient, so that the query's loss could not be differentiated by it: "
                                          "requires_grad=True.")
def adapt(model, places, start, loss, lr, steps, second_order=False):
    end = walk(model, places, start, loss, lr, steps, second_order)
    return end if second_order else {path: Tensor(p.data) for path, p in end.items()}


# ---- 14.4 ----


def solved(model, places, parameters, episode, settings):
    """(start, phi_k, the query's loss at it, a Tensor)."""
    second = settings.rule == "maml"
    start = parameters if second else {path: Tensor(p.data.copy(), requires_grad=True) for path, p in parameters.items()}
    phi = walk(model, places, start, episode.support, settings.inner_lr, settings.inner_steps, second)
    with substituted(places, phi):
        return start, phi, episode.query(model)


@mutant("14.4", "reptile_away", "Reptile's sign is the other way round: the outer step goes against what you return, so return "
                                "phi - phi_k.")
def meta_gradient(model, places, parameters, episode, settings):
    start, phi, loss = solved(model, places, parameters, episode, settings)
    if settings.rule == "reptile":
        return [phi[path].data - p.data for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list((start if settings.rule == "maml" else phi).values()))], loss.item()


@mutant("14.4", "reptile_over_rate", "Reptile here is phi - phi_k. You divided by the inner rate, which some write too; under "
                                     "Adam it makes no difference, with plain descent it does.")
def meta_gradient(model, places, parameters, episode, settings):
    start, phi, loss = solved(model, places, parameters, episode, settings)
    if settings.rule == "reptile":
        return [(p.data - phi[path].data) / settings.inner_lr for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list((start if settings.rule == "maml" else phi).values()))], loss.item()


@mutant("14.4", "query_at_the_start", "You took the query's loss at phi, before the inner steps: substitute phi_k for it. As it "
                                      "is, the inner steps do nothing.")
def meta_gradient(model, places, parameters, episode, settings):
    start, phi, _ = solved(model, places, parameters, episode, settings)
    with substituted(places, start):
        loss = episode.query(model)
    if settings.rule == "reptile":
        return [p.data - phi[path].data for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list(start.values()))], loss.item()


@mutant("14.4", "support_for_query", "The outer gradient is of the query's loss, not of the support's: the start is to be judged"
                                     " by what was not learnt from.")
def meta_gradient(model, places, parameters, episode, settings):
    start, phi, _ = solved(model, places, parameters, episode, settings)
    with substituted(places, phi):
        loss = episode.support(model)
    if settings.rule == "reptile":
        return [p.data - phi[path].data for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list((start if settings.rule == "maml" else phi).values()))], loss.item()


@mutant("14.4", "maml_first_order", "Your MAML is first-order MAML: adapt with second_order=True from the parameters themselves,"
                                    " and differentiate by them, not by phi_k.")
def meta_gradient(model, places, parameters, episode, settings):
    start = {path: Tensor(p.data.copy(), requires_grad=True) for path, p in parameters.items()}
    phi = walk(model, places, start, episode.support, settings.inner_lr, settings.inner_steps)
    with substituted(places, phi):
        loss = episode.query(model)
    if settings.rule == "reptile":
        return [p.data - phi[path].data for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list(phi.values()))], loss.item()


@mutant("14.4", "all_second_order", "Your first-order MAML is MAML: its gradient is the one at phi_k, without the way back "
                                    "through the steps.")
def meta_gradient(model, places, parameters, episode, settings):
    phi = walk(model, places, parameters, episode.support, settings.inner_lr, settings.inner_steps, True)
    with substituted(places, phi):
        loss = episode.query(model)
    if settings.rule == "reptile":
        return [p.data - phi[path].data for path, p in parameters.items()], loss.item()
    return [np.asarray(g) for g in grad(loss, list(parameters.values()))], loss.item()


# ---- 14.5 ----


@mutant("14.5", "sums", "Those are sums: divide each by how many states its class has.")
def prototypes(states, labels, classes):
    members = np.equal.outer(np.arange(classes), np.asarray(labels)).astype(states.dtype)
    return F.matmul(members, states)


@mutant("14.5", "over_all", "You divided by the number of all states; each class has its own number.")
def prototypes(states, labels, classes):
    members = np.equal.outer(np.arange(classes), np.asarray(labels)).astype(states.dtype)
    return F.matmul(members / members.dtype.type(len(labels)), states)


@mutant("14.5", "detached", "The means are right, but they are constants: compute with Tensors, so that the gradient reaches the"
                            " states.")
def prototypes(states, labels, classes):
    return Tensor(np.stack([states.data[np.asarray(labels) == k].mean(axis=0) for k in range(classes)]))


@mutant("14.5", "first_of_each", "You took the first state of each class; a prototype is the mean of all of them.")
def prototypes(states, labels, classes):
    return states[np.array([int(np.argmax(np.asarray(labels) == k)) for k in range(classes)])]


@mutant("14.5", "order_of_appearance", "Row k must be class k. Yours stand in the order in which the classes first appear among "
                                       "the labels.")
def prototypes(states, labels, classes):
    labels = np.asarray(labels)
    order = np.array(list(dict.fromkeys(labels.tolist())))
    members = np.equal.outer(order, labels)
    return F.matmul((members / members.sum(axis=1, keepdims=True)).astype(states.dtype), states)
