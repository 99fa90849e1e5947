"""Attaching a fine-tuning method to a model: the base is frozen, the method's modules go on the seams, and all can be undone.

A method says where it acts and with what; everything that methods have in common (names, switching, merging, counting)
stands here once.
"""

import contextlib
import difflib
import fnmatch

import numpy as np

from ..nn import Linear, Parameter, Wrapper, unwrap

HEAD_PATHS = ("head.classifier", "head.output")  # the task's own output map, where the model has one


# ---- where -----------------------------------------------------------------------------------------------------


def match(patterns, paths, where="attach"):
    """The paths that the patterns name, in the paths' order.

    A pattern (with ``*`` and ``?``) matches a whole dotted path or its end: ``q`` and ``attn.q`` both match
    ``blocks.0.attn.q``. Several patterns come as a sequence or separated by commas.

    Raises ValueError when there is no pattern, or one matches nothing; the message lists what exists.
    """
    patterns = [p.strip() for p in patterns.split(",")] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(f"{where}: no pattern is given. Seams: {', '.join(seam_names(paths))}")
    found = set()
    for pattern in patterns:
        hits = [p for p in paths if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, f"*.{pattern}")]
        if not hits:
            raise ValueError(f"{where}: no module matches {pattern!r}{_suggestion(pattern, paths)} "
                             f"Seams: {', '.join(seam_names(paths))}")
        found.update(hits)
    return [p for p in paths if p in found]


def seam_names(paths):
    """Paths with the number of the block replaced by ``*``, each once."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths))


def _suggestion(pattern, paths):
    names = seam_names(paths)
    known = {ending: name for name in names for ending in (name, name.split(".", 2)[-1], name.rpartition(".")[2])}
    close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]!r}?" if close else "."


def linear_paths(model):
    """Paths of the Linear maps inside the blocks."""
    return [path for path, module in model.named_modules() if isinstance(module, Linear) and "blocks" in path.split(".")]


# ---- what ------------------------------------------------------------------------------------------------------


class OwnCopy(Wrapper):
    """A copy of a module that an attachment trains in the module's place; it starts equal to it."""

    def __init__(self, wrapped):
        super().__init__(wrapped)
        self.own = unwrap(wrapped).copy()
        self.own.requires_grad_(True)

    def forward(self, *args):
        return self.own(*args)


class Method:
    """Base of the methods: what `attach` asks of one.

    ``name`` is its word on the command line; ``default_lr`` a learning rate that works on small pre-trained models.
    """

    name = "method"
    default_lr = 1e-3
    trains_head = True  # whether the task's output map is trained along

    def wrappers(self, model, rng):
        """{path: Wrapper} to put on the seams; each Wrapper is made around ``model.get(path)``."""
        return {}

    def base_parameters(self, model):
        """{path: Parameter} of the model's own parameters to train in place."""
        return {}

    def formula(self, path, wrapper):
        """The number of parameters at a seam in closed form, as text."""
        return ""


def _own_parameters(wrapper):
    """[(name, Parameter)] that a wrapper brought along, without those of the module inside."""
    own = [(name, value) for name, value in vars(wrapper).items() if isinstance(value, Parameter)]
    for name, child in wrapper.children():
        if name != "wrapped":
            own += [(f"{name}.{path}", p) for path, p in child.named_parameters()]
    return own


class Attachment:
    """A method on a model: what it trains, and how to switch it off, merge it, and take it away.

    Attributes: ``model``, ``method``, ``name``, ``wrappers`` ({path: Wrapper}), ``base`` ({path: Parameter} trained in
    place), ``head`` (the OwnCopy of the task's output map, or None), ``merged``, ``note`` (what a person should know
    about how it was loaded, or empty).
    """

    note = ""

    def __init__(self, model, method, name, wrappers, base, head_path):
        self.model, self.method, self.name = model, method, name
        self.wrappers, self.base = wrappers, base
        self.head = wrappers.get(head_path)
        self.merged = False

    def named_parameters(self):
        """{path: Parameter} of everything this attachment trains."""
        out = dict(self.base)
        for path, wrapper in self.wrappers.items():
            for name, parameter in _own_parameters(wrapper):
                out[f"{path}.{name.removeprefix('own.')}"] = parameter
        return out

    def _in_head(self, path):
        return path.startswith(HEAD_PATHS)

    @property
    def trainable(self):
        """Number of trained parameters, the head included."""
        return sum(p.size for p in self.named_parameters().values())

    @property
    def trainable_without_head(self):
        """Number of trained parameters, without the task's output map."""
        return sum(p.size for path, p in self.named_parameters().items() if not self._in_head(path))

    def table(self):
        """[(part, number of parameters, formula)] for each place where something is trained."""
        rows = []
        for path, wrapper in self.wrappers.items():
            count = sum(p.size for _, p in _own_parameters(wrapper))
            if wrapper is self.head:
                rows.append((path, count, " + ".join("x".join(map(str, p.shape)) for _, p in _own_parameters(wrapper))))
            else:
                rows.append((path, count, self.method.formula(path, wrapper)))
        rows += [(path, p.size, "x".join(map(str, p.shape))) for path, p in self.base.items()]
        return rows

    # ---- switching ----

    def _enable(self, flag):
        for wrapper in self.wrappers.values():
            wrapper.enabled = flag
        for parameter in self.base.values():
            parameter.requires_grad = flag

    @property
    def active(self):
        """Whether the model's output goes through this attachment."""
        return self.merged or bool(self.base) or any(w.enabled for w in self.wrappers.values())

    @contextlib.contextmanager
    def disabled(self):
        """Inside this block the model is the base again, also when the attachment is merged; nests."""
        if self.base:
            raise ValueError(f"disable: {self.method.name} trains the base itself; reload the model to have it back")
        was_merged, states = self.merged, {path: w.enabled for path, w in self.wrappers.items()}
        if was_merged:
            self.unmerge()
        self._enable(False)
        try:
            yield self.model
        finally:
            if was_merged:
                self._enable(True)
                self.merge()
            for path, wrapper in self.wrappers.items():
                wrapper.enabled = states[path]

    # ---- merging ----

    def _mergeable(self):
        return {path: w for path, w in self.wrappers.items() if w is not self.head}

    def merge(self):
        """Put the learned change into the base's weights, so that a forward pass costs what the base costs.

        Returns the largest change of a weight. A second merge changes nothing and returns 0. Raises ValueError when
        the method cannot be merged, is not active, or holds or makes NaN or infinity (the base is then left as it was).
        """
        if self.merged:
            return 0.0
        wrappers = self._mergeable()
        stuck = [path for path, w in wrappers.items() if not hasattr(type(w), "merged_weight")]
        if self.base or not wrappers or stuck:
            raise ValueError(f"merge: {self.method.name} has nothing that can be merged into a weight"
                             + (f" (at {stuck[0]})" if stuck else ""))
        if not self.active:
            raise ValueError(f"merge: attachment {self.name!r} is not active; activate it first")
        for path, wrapper in wrappers.items():
            for name, parameter in _own_parameters(wrapper):
                if not np.isfinite(parameter.data).all():
                    raise ValueError(f"merge: {path}.{name} of attachment {self.name!r} holds NaN or infinity; "
                                     "the base is unchanged")
        before = {path: unwrap(w).weight.data for path, w in wrappers.items()}
        for wrapper in wrappers.values():
            wrapper.merged, wrapper.enabled = True, False
        for path in wrappers:
            _weigh_again(self.model, path)
        self.merged = True
        for path, wrapper in wrappers.items():
            if not np.isfinite(unwrap(wrapper).weight.data).all():
                self.unmerge()
                raise ValueError(f"merge: {path}.weight would hold NaN or infinity; the base is unchanged")
        return max(float(np.abs(unwrap(w).weight.data - before[path]).max(initial=0)) for path, w in wrappers.items())

    def unmerge(self):
        """Take the change out of the base's weights again; the base returns bit for bit. Does nothing if not merged."""
        if not self.merged:
            return
        for wrapper in self._mergeable().values():
            wrapper.merged, wrapper.enabled = False, True
        for path in self._mergeable():
            _weigh_again(self.model, path)
        self.merged = False

    def detach(self):
        """Take the method off the model: no wrapper is left, and the base is as it was (except what was trained in place).

        With the last attachment the base is unfrozen as far as it was before the first. A second call does nothing.
        """
        model = self.model
        if model.attachments.get(self.name) is not self:
            return
        self.unmerge()
        self._enable(False)
        for path, wrapper in self.wrappers.items():
            _remove(model, path, wrapper)
        del model.attachments[self.name]
        if not model.attachments:
            for parameter in model.trained_before_attaching:
                parameter.requires_grad = True


def _stack(model, path):
    """The wrappers at a path, innermost first."""
    out, module = [], model.get(path)
    while isinstance(module, Wrapper):
        out.append(module)
        module = module.wrapped
    return out[::-1]


def _weigh_again(model, path):
    """Set a weight to the base's with every merged wrapper applied, innermost first.

    The base's own array is kept while anything is merged, so that unmerging restores it exactly and no order of
    merging and unmerging leaves a rounding error behind.
    """
    root = unwrap(model.get(path))
    kept = vars(model).setdefault("unmerged_weights", {})
    weight = kept.setdefault(path, root.weight.data)
    merged = [w for w in _stack(model, path) if w.merged]
    for wrapper in merged:
        weight = wrapper.merged_weight(weight)
    if not merged:
        del kept[path]
    root.weight.data = weight


def _remove(model, path, wrapper):
    """Take one wrapper out of the chain of wrappers at a path."""
    outer = model.get(path)
    if outer is wrapper:
        model.replace(path, wrapper.wrapped)
        return
    while outer.wrapped is not wrapper:
        outer = outer.wrapped
    outer.wrapped = wrapper.wrapped


# ---- attaching -------------------------------------------------------------------------------------------------


def attach(model, method, name="default", rng=None):
    """Freeze ``model`` and attach ``method`` to it; the new attachment becomes the only active one.

    Args:
        model: an Encoder or Decoder.
        method: a `Method`, such as ``LoRA(rank=8)``.
        name: a name for this attachment; several can sit on one model.
        rng: numpy.random.Generator that draws what the method initialises at random; default: seed 0.

    Returns:
        An `Attachment`.

    Raises:
        ValueError: the name is taken, a pattern matches no module, or the method does not fit; nothing is changed.
    """
    attachments = vars(model).setdefault("attachments", {})
    if name in attachments:
        raise ValueError(f"attach: the name {name!r} is taken; attached: {', '.join(attachments)}")
    wrappers = method.wrappers(model, rng or np.random.default_rng(0))
    base = method.base_parameters(model)
    head_path = output_map(model)
    if method.trains_head and not base and head_path == "head.classifier" or method.name == "head":
        if head_path is None:
            raise ValueError("attach: this model has no output map of its own to train (it has no head, or one that is tied to "
                             "the word vectors)")
        wrappers[head_path] = OwnCopy(model.get(head_path))
    if not attachments:
        model.trained_before_attaching = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    for path, wrapper in wrappers.items():
        model.replace(path, wrapper)
    attachments[name] = Attachment(model, method, name, wrappers, base, head_path)
    activate(model, name)
    return attachments[name]


def output_map(model):
    """The path of the task's own output map, or None: there is no head, or it is tied to the word vectors."""
    for path in HEAD_PATHS:
        with contextlib.suppress(KeyError):
            model.get(path)
            return path
    return None


def activate(model, *names):
    """Make the named attachments the active ones, and every other inactive (those that are merged stay as they are).

    Raises ValueError, and changes nothing, when a name is unknown.
    """
    attachments = vars(model).get("attachments", {})
    for name in names:
        if name not in attachments:
            raise ValueError(f"activate: no attachment is called {name!r}; attached: {', '.join(attachments) or 'none'}")
    unmerged = {name: attachment for name, attachment in attachments.items() if not attachment.merged}
    for attachment in unmerged.values():
        attachment._enable(False)
    for name in set(names) & set(unmerged):
        unmerged[name]._enable(True)
