"""The optimizers, in the order of growing complexity: SGD, Adam, AdamW.

    SGD     m <- mu m + g,                p <- p - lr m
    Adam    p <- p - lr mhat / (sqrt(vhat) + eps),     with decay * p added to g (an L2 penalty)
    AdamW   the same, with lr * decay * p subtracted from p instead (decoupled)

The moments and their corrections stand in ``kernels/adam.py``, with the sources.
"""

import numpy as np

from .. import kernels


class Optimizer:
    """Base: a list of groups of parameters, each with its own settings.

    Args:
        parameters: Parameters, or groups ``{"parameters": [...], "lr_scale": 1.0, "weight_decay": 0.0}``.
        lr: learning rate; a schedule sets ``optimizer.lr`` before each step.
        weight_decay: of the groups that do not give their own.
    """

    moments = ()  # names of the arrays kept for each parameter

    def __init__(self, parameters, lr, weight_decay=0.0):
        groups = list(parameters)
        if groups and not isinstance(groups[0], dict):
            groups = [{"parameters": groups}]
        defaults = {"lr_scale": 1.0, "weight_decay": weight_decay}
        self.groups = [defaults | g | {"parameters": list(g["parameters"])} for g in groups]
        self.lr, self.steps, self.state = lr, 0, {}

    def parameters(self):
        """Every parameter, in a fixed order."""
        return [p for group in self.groups for p in group["parameters"]]

    def step(self, gradient_scale=1.0):
        """Update every parameter that has a gradient, which is first multiplied by ``gradient_scale``."""
        self.steps += 1
        for group in self.groups:
            for parameter in group["parameters"]:
                if parameter.grad is not None:
                    moments = self.state.get(id(parameter))
                    if moments is None:
                        moments = self.state[id(parameter)] = [np.zeros(parameter.shape, parameter.dtype) for _ in self.moments]
                    self.update(parameter, moments, self.lr * group["lr_scale"], group["weight_decay"], gradient_scale)

    def zero_grad(self):
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def arrays(self):
        """{name: array} of the state, for a checkpoint; the names number the parameters."""
        return {f"{name}.{i}": self.state[id(p)][j] for i, p in enumerate(self.parameters()) if id(p) in self.state
                for j, name in enumerate(self.moments)}

    def load_arrays(self, arrays, steps):
        """Take the state back from a checkpoint."""
        self.steps = steps
        for i, parameter in enumerate(self.parameters()):
            if self.moments and f"{self.moments[0]}.{i}" in arrays:
                self.state[id(parameter)] = [np.ascontiguousarray(arrays[f"{name}.{i}"]) for name in self.moments]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak, 1964, as in PyTorch) and an L2 penalty."""

    moments = ("momentum",)

    def __init__(self, parameters, lr=1e-2, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr, weight_decay)
        self.momentum = momentum

    def update(self, parameter, moments, lr, decay, gradient_scale):
        """One parameter's step, in place."""
        g = parameter.grad * parameter.dtype.type(gradient_scale) + parameter.dtype.type(decay) * parameter.data
        moments[0] *= parameter.dtype.type(self.momentum)
        moments[0] += g
        parameter.data -= parameter.dtype.type(lr) * moments[0]


class Adam(Optimizer):
    """Adam; ``weight_decay`` is an L2 penalty, which Adam's division by sqrt(v) makes uneven (AdamW is the remedy)."""

    moments = ("m", "v")

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def update(self, parameter, moments, lr, decay, gradient_scale):
        """One parameter's step, in place."""
        gradient = parameter.grad
        if decay:
            gradient = gradient + parameter.dtype.type(decay / gradient_scale) * parameter.data
        kernels.adam_step(parameter.data, gradient, *moments, self.steps, lr, *self.betas, self.eps, 0.0, gradient_scale)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, parameter, moments, lr, decay, gradient_scale):
        """One parameter's step, in place."""
        kernels.adam_step(parameter.data, parameter.grad, *moments, self.steps, lr, *self.betas, self.eps, decay, gradient_scale)


OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def decay_groups(parameters, weight_decay, lr_scale=None):
    """Groups of {path: Parameter}: matrices with weight decay, vectors (biases, norm gains) without, as is usual here.

    ``lr_scale`` gives what a path's learning rate is multiplied by; each different value makes groups of its own.
    """
    groups = {}
    for path, parameter in parameters.items():
        scale, decay = 1.0 if lr_scale is None else lr_scale(path), weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, parameter.ndim > 1), {"parameters": [], "lr_scale": scale, "weight_decay": decay})[
            "parameters"].append(parameter)
    return list(groups.values())


def gradient_norm(parameters):
    """Euclidean length of all gradients together."""
    total = 0.0
    for parameter in parameters:
        if parameter.grad is not None:
            flat = np.ascontiguousarray(parameter.grad).reshape(-1)
            total += float(np.dot(flat, flat))
    return total**0.5
