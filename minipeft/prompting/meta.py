"""Meta-learning: to find a start from which a new task is learnt in a few steps from a few examples.

An episode is a task with a few examples to learn from (support) and others to be judged by (query). phi: what is trained, which
is a method's few numbers; the model stays frozen. From phi, k steps on the support lead to phi_k:

    phi_{i+1} = phi_i - a grad l_support(phi_i)

    Reptile           phi <- phi + b mean over tasks of (phi_k - phi)
    first-order MAML  phi <- phi - b mean over tasks of (grad l_query)(phi_k)
    MAML              phi <- phi - b mean over tasks of d/dphi l_query(phi_k(phi))
                      = the same times the factors (I - a H_i), H_i the Hessian of l_support at phi_i

MAML's second-order term is exact: the inner steps are recorded with gradients that are themselves Tensors (``create_graph``),
and one backward pass goes through all of them.

Sources: Finn, Abbeel, Levine, ICML 2017, arXiv:1703.03400, section 3; Nichol, Achiam, Schulman, 2018, arXiv:1803.02999,
section 3.
"""

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..autograd import Tensor, grad
from ..training.optim import OPTIMIZERS

RULES = ("reptile", "fomaml", "maml")


class Episode(NamedTuple):
    """A task: the loss (a function from the model to a Tensor) on its ``support``, and on its ``query``."""

    support: object
    query: object


@dataclass
class MetaSettings:
    """How to meta-learn.

    ``rule``: one of `RULES`. ``inner_lr``: a, ``inner_steps``: k. ``optimizer``: of the outer steps, "sgd" for the rules as they
    stand above, or "adam", which is given what is behind b as a gradient, Reptile's too (Nichol et al., section 3); ``lr``: b.
    ``tasks``: episodes in an outer step; ``steps``: outer steps.
    """

    rule: str = "reptile"
    inner_lr: float = 0.1
    inner_steps: int = 3
    lr: float = 1e-2
    tasks: int = 4
    steps: int = 100
    seed: int = 0
    optimizer: str = "adam"

    def __post_init__(self):
        for name, known in (("rule", RULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("inner_lr", "lr", "inner_steps", "tasks", "steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")


def places_of(model, parameters):
    """{path: [(module, attribute)]}: where the model holds each of ``parameters`` ({path: Parameter}),
    tied ones several times."""
    held = {id(p): path for path, p in parameters.items()}
    out = {path: [] for path in parameters}
    for module in model.modules():
        for name, value in vars(module).items():
            if id(value) in held:
                out[held[id(value)]].append((module, name))
    return out


@contextlib.contextmanager
def substituted(places, values):
    """Inside this block the model computes with ``values`` ({path: Tensor}) in the place of its parameters."""
    before = [(module, name, getattr(module, name)) for each in places.values() for module, name in each]
    try:
        for path, value in values.items():
            for module, name in places[path]:
                setattr(module, name, value)
        yield
    finally:
        for module, name, parameter in before:
            setattr(module, name, parameter)


def adapt(model, places, start, loss, lr, steps, second_order=False):
    """phi_k of k = ``steps`` steps of gradient descent from ``start``.

    Args:
        model: a model. places: see `places_of`. start: {path: Tensor that needs a gradient}.
        loss: a function from the model to a Tensor. lr: a.
        second_order: keep the record from ``start`` to the result, so that it can be differentiated.

    Returns:
        {path: Tensor}.
    """
    phi = start
    for _ in range(steps):
        with substituted(places, phi):
            value = loss(model)
        gradients = grad(value, list(phi.values()), create_graph=second_order)
        if second_order:
            phi = {path: p - g * lr for (path, p), g in zip(phi.items(), gradients)}
        else:
            phi = {path: Tensor(p.data - p.dtype.type(lr) * np.asarray(g), requires_grad=True)
                   for (path, p), g in zip(phi.items(), gradients)}
    return phi


def meta_gradient(model, places, parameters, episode, settings):
    """([array for each parameter], the query's loss at phi_k) of one episode; the arrays are what the outer step goes against."""
    second_order = settings.rule == "maml"
    start = parameters if second_order else {path: Tensor(p.data.copy(), requires_grad=True) for path, p in parameters.items()}
    phi = adapt(model, places, start, episode.support, settings.inner_lr, settings.inner_steps, second_order)
    with substituted(places, phi):
        loss = episode.query(model)
    if settings.rule == "reptile":
        return [p.data - phi[path].data for path, p in parameters.items()], loss.item()
    wanted = parameters if second_order else phi
    return [np.asarray(g) for g in grad(loss, list(wanted.values()))], loss.item()


def meta_train(model, parameters, draw, settings, progress=None):
    """Meta-learn the values of ``parameters``.

    Args:
        model: a model with an attachment. parameters: {path: Parameter}, all of it that is trained.
        draw: a function from a numpy.random.Generator to an `Episode`. settings: a `MetaSettings`.
        progress: called with (step, mean loss on the queries) after each step.

    Returns:
        [mean loss on the queries of each step].
    """
    places, losses = places_of(model, parameters), []
    optimizer = OPTIMIZERS[settings.optimizer]([{"parameters": list(parameters.values())}], lr=settings.lr)
    model.eval()  # without dropout: the inner steps are to be the same function each time
    for step in range(settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        found = [meta_gradient(model, places, parameters, draw(rng), settings) for _ in range(settings.tasks)]
        for number, parameter in enumerate(parameters.values()):
            parameter.grad = np.mean([gradients[number] for gradients, _ in found], axis=0).astype(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(np.mean([loss for _, loss in found])))
        if progress is not None:
            progress(step + 1, losses[-1])
    return losses
