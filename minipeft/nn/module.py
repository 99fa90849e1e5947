"""A Module is a tree of named parts: parameters at the leaves, and every part can be found, frozen or wrapped by its path.

There is no registration: the children of a module are the attributes that are modules, in the order they were set.
"""

import numpy as np

from ..autograd import Tensor


class Parameter(Tensor):
    """A Tensor that belongs to a module and is trained unless frozen."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


def initial(rng, shape, std, dtype=np.float32):
    """A Parameter drawn from N(0, std^2), or of zeros when ``rng`` is None (weights that will be loaded)."""
    if rng is None:
        return Parameter(np.zeros(shape, dtype))
    return Parameter(rng.standard_normal(shape, dtype) * dtype(std))


class Module:
    """Base of every layer and model: subclasses set parameters and modules as attributes and define ``forward``."""

    training = False

    def forward(self, *args, **kwargs):
        """What the module computes; subclasses define it and callers call the module itself."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    # ---- the tree ----

    def children(self):
        """(name, module) of each direct child, wrappers included."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]

    def modules(self):
        """This module and all below it, wrappers and what they hold included."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_modules(self, path=""):
        """(path, module) of this module and all below it; a wrapper is passed over in favour of what it wraps."""
        yield path, self
        for name, child in self.children():
            yield from unwrap(child).named_modules(f"{path}.{name}" if path else name)

    def named_parameters(self):
        """(path, Parameter) of every parameter, each once; the paths are the same whatever wraps the modules."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def parameters(self):
        """Every parameter, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def get(self, path):
        """The outermost module at a dotted path (a wrapper, where there is one).

        Raises KeyError if nothing is there.
        """
        module = self
        for name in path.split("."):
            module = dict(unwrap(module).children()).get(name)
            if module is None:
                raise KeyError(f"no module at {path!r} (nothing named {name!r})")
        return module

    def replace(self, path, module):
        """Put ``module`` at a dotted path, in the place of what is there."""
        self.get(path)
        parent, _, name = path.rpartition(".")
        unwrap(self.get(parent) if parent else self).set_child(name, module)

    def set_child(self, name, module):
        """Set a direct child by its name."""
        setattr(self, name, module)

    # ---- state ----

    def copy(self, made=None):
        """A module of the same shape with parameters of its own; everything else is shared.

        What is frozen stays frozen, and weights that are tied within it stay tied (``made`` remembers them).
        """
        made = {} if made is None else made
        new = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(new, name, _copied(value, made))
        return new

    def train(self, rng):
        """Switch dropout on, drawing from ``rng``, a numpy.random.Generator."""
        for module in self.modules():
            module.training = True
            module.rng = rng
        return self

    def eval(self):
        """Switch dropout off."""
        for module in self.modules():
            module.training = False
        return self

    def requires_grad_(self, flag):
        """Freeze (False) or release (True) every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = flag
        return self

    def zero_grad(self):
        """Forget the gradients of the parameters, those of wrappers included."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.grad = None

    def astype(self, dtype):
        """Convert every parameter in place (float64 for gradient checks)."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.data, value.grad = value.data.astype(dtype), None
        return self

    def __repr__(self):
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        return f"{type(self).__name__}({self.describe()}" + "".join(f"\n  {line}" for line in lines) + ("\n)" if lines else ")")

    def describe(self):
        """The sizes shown by ``print(model)``."""
        return ""


def _copied(value, made):
    """A copy of an attribute, for `Module.copy`."""
    if isinstance(value, list):
        return [_copied(item, made) for item in value]
    if not isinstance(value, (Module, Parameter)):
        return value
    if id(value) not in made:
        if isinstance(value, Module):
            made[id(value)] = value.copy(made)
        else:
            made[id(value)] = Parameter(value.data.copy())
            made[id(value)].requires_grad = value.requires_grad
    return made[id(value)]


class ModuleList(Module):
    """Modules in a row, named by their positions."""

    def __init__(self, modules):
        self.items = list(modules)

    def children(self):
        return [(str(i), module) for i, module in enumerate(self.items)]

    def set_child(self, name, module):
        self.items[int(name)] = module

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


class Wrapper(Module):
    """A module around another, invisible in paths: ``wrapped`` keeps its name, and its parameters keep theirs.

    When ``enabled`` is False a call goes straight to ``wrapped``. Attributes that the wrapper does not have are
    those of ``wrapped``. Of several wrappers around one module those of a lower ``level`` are nearer to it.
    """

    level = 0
    additive = False    # whether it adds something to the output that depends on the input alone
    merged = False      # whether what the wrapper does stands in the wrapped weight instead
    mixes_rows = False  # whether it can act on some rows of a batch only: those where ``rows`` (B,) is True
    rows = None

    def __init__(self, wrapped):
        self.wrapped = wrapped
        self.enabled = True

    def __getattr__(self, name):  # called only for what the wrapper itself does not have
        if name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs) if self.enabled else self.wrapped(*args, **kwargs)


def unwrap(module):
    """The module inside all its wrappers."""
    while isinstance(module, Wrapper):
        module = module.wrapped
    return module
