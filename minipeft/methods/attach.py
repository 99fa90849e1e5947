"""Attaching a fine-tuning method to a model: the base is frozen, the method's modules go on the seams, and all can be undone.

A method says where it acts and with what; everything that methods have in common (names, switching, merging, counting)
stands here once. Which modules a pattern means stands in ``targets.py``, which array a parameter holds in ``values.py``.
"""

import contextlib
import warnings

import numpy as np

from .. import autograd as F
from ..nn import Linear, Parameter, Wrapper, unwrap
from .targets import linear_paths
from .values import Values, check_order, insert, mergeable, remove

HEAD_PATHS = ("head.classifier", "head.output")  # the task's own output map, where the model has one


# ---- what a method is ------------------------------------------------------------------------------------------


class OwnCopy(Wrapper):
    """A copy of a module that an attachment trains in the module's place; it starts equal to it."""

    mixes_rows = True

    def __init__(self, wrapped):
        super().__init__(wrapped)
        self.own = unwrap(wrapped).copy()
        self.own.requires_grad_(True)

    def forward(self, *args):
        if self.rows is None:
            return self.own(*args)
        own = self.own(*args)
        return F.where(self.rows.reshape(-1, *[1] * (own.ndim - 1)), own, self.wrapped(*args))


class Method:
    """Base of the methods: what `attach` asks of one.

    ``name`` is its word on the command line; ``default_lr`` a learning rate that works on small pre-trained models;
    ``unmergeable`` says why it cannot be merged, where it cannot. ``trains`` says what is trained in words, where the
    `formula` of its seams does not: N all parameters, D the width, D_out a map's outputs, L all blocks and k some.
    """

    name = "method"
    default_lr = 1e-3
    positions_taken = 0  # how many of the learned positions its virtual tokens take from the words
    trains_head = True   # whether the task's output map is trained along
    known = None         # {name: array} of a saved attachment that is being loaded, for a method that chooses at random
    unsaved = ()         # names of settings that are not saved
    full_precision = False  # whether it trains weights that must not be stored in 4 bits
    keeps_base = True    # whether the base's own values are kept where the method trains in place
    unmergeable = None
    trains = ""

    def check(self, config):
        """Raise ValueError where the settings do not go with a `TransformerConfig`, as far as that alone tells."""

    def prepare(self, model, work, rng):
        """Look at the model and the training data before attaching; for a method that chooses by them what it trains."""

    def wrappers(self, model, rng):
        """{path: Wrapper} to put on the seams; each Wrapper is made around ``model.get(path)``."""
        return {}

    def base_parameters(self, model):
        """{path: Parameter} of the model's own parameters to train in place."""
        return {}

    def formula(self, path, wrapper):
        """The number of parameters at a seam in closed form, as text."""
        return ""

    def count(self, config):
        """The number of trained parameters without the head, in closed form from a `TransformerConfig` alone."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of its count")

    def lr_scale(self, path):
        """What the learning rate of the parameter at ``path`` is multiplied by."""
        return 1.0

    def finish(self, attachment):
        """Leave out what served training only, such as a network that made other parameters; called before saving."""

    def hooks(self, attachment):
        """What acts on the training loop besides the gradients (see `training.hooks`)."""
        return []


def own_parameters(wrapper):
    """[(name, Parameter)] that a wrapper brought along, without those of the module inside."""
    own = [(name, value) for name, value in vars(wrapper).items() if isinstance(value, Parameter)]
    for name, child in wrapper.children():
        if name != "wrapped":
            own += [(f"{name}.{path}", p) for path, p in child.named_parameters()]
    return own


# ---- what an attachment is -------------------------------------------------------------------------------------


class Attachment:
    """A method on a model: what it trains, and how to switch it off, merge it, and take it away.

    Attributes: ``model``, ``method``, ``name``, ``wrappers`` ({path: Wrapper}), ``base`` ({path: Parameter} trained in
    place), ``values`` ({path: array}, what it has put there), ``head`` (the OwnCopy of the task's output map, or None),
    ``merged``, ``note`` (what a person should know about how it was loaded, or empty).
    """

    note = ""

    def __init__(self, model, method, name, wrappers, base, head_path):
        self.model, self.method, self.name = model, method, name
        self.wrappers, self.base, self.values = wrappers, base, {}
        self.head = wrappers.get(head_path) if isinstance(wrappers.get(head_path), OwnCopy) else None
        self.merged = self.enabled = False
        for wrapper in wrappers.values():
            wrapper.attachment = name

    def named_parameters(self):
        """{path: Parameter} of everything this attachment trains, each once."""
        out, seen = dict(self.base), set()
        for path, wrapper in self.wrappers.items():
            for name, parameter in own_parameters(wrapper):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    out[f"{path}.{name.removeprefix('own.')}"] = parameter
        return out

    def arrays(self):
        """{path: array} of everything this attachment has learned, also while it is not active."""
        self.model.values.settle()
        held = {path: self.model.values.holder[path] == self.name for path in self.base}
        return {path: self.values[path] if path in self.base and not held[path] else parameter.data
                for path, parameter in self.named_parameters().items()}

    def load_arrays(self, arrays):
        """Take {path: array}, as `arrays` gives it, in place of what was learned."""
        self.model.values.settle()
        for path, parameter in self.named_parameters().items():
            if path in self.base:
                np.copyto(self.values[path], arrays[path])
            else:
                parameter.data = arrays[path].astype(parameter.dtype)
        self.model.values.settle()

    @property
    def trainable(self):
        """Number of trained parameters, the head included."""
        return sum(p.size for p in self.named_parameters().values())

    @property
    def trainable_without_head(self):
        """Number of trained parameters, without the task's output map."""
        head = self.head.own.parameters() if self.head is not None else []
        in_place = [p for path, p in self.base.items() if path.startswith(HEAD_PATHS)]
        return self.trainable - sum(p.size for p in [*head, *in_place])

    def table(self):
        """[(part, number of parameters, formula)] for each place where something is trained."""
        rows, counted = [], set()
        for path, wrapper in self.wrappers.items():
            own = [p for _, p in own_parameters(wrapper)]
            count = sum(p.size for p in own if id(p) not in counted)
            counted |= set(map(id, own))
            if wrapper is self.head:
                rows.append((path, count, " + ".join("x".join(map(str, p.shape)) for p in own)))
            elif own:
                rows.append((path, count, self.method.formula(path, wrapper)))
        rows += [(path, p.size, "x".join(map(str, p.shape))) for path, p in self.base.items()]
        return rows

    # ---- switching ----

    def _enable(self, flag):
        """Switch on or off; `Values.settle` must follow."""
        self.enabled = flag
        for wrapper in self.wrappers.values():
            wrapper.enabled = flag

    @property
    def active(self):
        """Whether the model's output goes through this attachment."""
        return self.merged or self.enabled

    @contextlib.contextmanager
    def disabled(self):
        """Inside this block the model is without this attachment, also where it is merged; nests."""
        if self.base and not self.method.keeps_base:
            raise ValueError(f"disable: {self.method.name} trains the base itself and keeps no copy of it; reload the model to "
                             "have it back")
        before = self._state()
        self._set_merged(False)
        self._enable(False)
        self.model.values.settle()
        try:
            yield self.model
        finally:
            self._restore(before)

    def _state(self):
        return self.merged, self.enabled, {path: (w.merged, w.enabled) for path, w in self.wrappers.items()}

    def _set_state(self, state):
        self.merged, self.enabled, wrappers = state
        for path, wrapper in self.wrappers.items():
            wrapper.merged, wrapper.enabled = wrappers[path]

    def _restore(self, state):
        self._set_state(state)
        self.model.values.settle()

    # ---- merging ----

    def _mergeable(self):
        return {path: w for path, w in self.wrappers.items() if w is not self.head}

    def _set_merged(self, flag):
        if flag != self.merged:
            for wrapper in self._mergeable().values():
                wrapper.merged, wrapper.enabled = flag, not flag
            self.merged = flag

    def check_mergeable(self):
        """Raise ValueError, saying why, where this attachment cannot be merged into the base."""
        wrappers, name = self._mergeable(), self.method.name
        if self.method.unmergeable:
            raise ValueError(f"merge: {name} cannot be merged into a weight: {self.method.unmergeable}; leave it attached")
        if self.base or not wrappers:
            raise ValueError(f"merge: {name} has nothing that can be merged into a weight; what it trains stands in the model "
                             "itself and costs what the base costs")
        for path, wrapper in wrappers.items():
            if mergeable(self.model, path):
                raise ValueError(f"merge: {mergeable(self.model, path)}")
            for part, parameter in own_parameters(wrapper):
                if not np.isfinite(parameter.data).all():
                    raise ValueError(f"merge: {path}.{part} of attachment {self.name!r} holds NaN or infinity; "
                                     "the base is unchanged")

    def merge(self):
        """Put the learned change into the base's weights, so that a forward pass costs what the base costs.

        Returns the largest change of a weight or bias. A second merge changes nothing, warns and returns 0. Raises ValueError
        when the method cannot be merged, is not active, or holds or makes NaN or infinity (the base is then left as it was).
        """
        if self.merged:
            warnings.warn(f"merge: attachment {self.name!r} is merged already; nothing was changed", stacklevel=2)
            return 0.0
        self.check_mergeable()
        if not self.active:
            raise ValueError(f"merge: attachment {self.name!r} is not active; activate it first")
        state, wrappers = self._state(), self._mergeable()
        before = {path: _weights(self.model, path) for path in wrappers}
        self._set_merged(True)
        try:
            check_order(self.model, wrappers)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # looked for below
                self.model.values.settle()
            for path in wrappers:
                if not all(np.isfinite(array).all() for array in _weights(self.model, path)):
                    raise ValueError(f"merge: {path}.weight would hold NaN or infinity; the base is unchanged")
        except ValueError:
            self._restore(state)
            raise
        return max(float(np.abs(new - old).max(initial=0)) for path in wrappers
                   for new, old in zip(_weights(self.model, path), before[path]))

    def unmerge(self):
        """Take the change out of the base's weights again; the base returns bit for bit. Does nothing if not merged."""
        if not self.merged:
            return
        state = self._state()
        self._set_merged(False)
        try:
            check_order(self.model, self._mergeable())
        except ValueError:
            self._restore(state)
            raise
        self.model.values.settle()

    def detach(self):
        """Take the method off the model: no wrapper is left, and the base is as it was (except where its values were not kept).

        With the last attachment the base is unfrozen as far as it was before the first. A second call does nothing.
        """
        model = self.model
        if model.attachments.get(self.name) is not self:
            return
        self._set_merged(False)
        self._enable(False)
        model.values.settle()
        for path, wrapper in self.wrappers.items():
            remove(model, path, wrapper)
        del model.attachments[self.name]
        model.values.settle()
        if not model.attachments:
            for parameter in model.trained_before_attaching:
                parameter.requires_grad = True


def _weights(model, path):
    """The arrays of a module's weight and bias."""
    root = unwrap(model.get(path))
    return [root.weight.data] + ([] if root.bias is None else [root.bias.data])


# ---- attaching -------------------------------------------------------------------------------------------------


def attach(model, method, name="default", rng=None):
    """Freeze ``model`` and attach ``method`` to it; the new attachment becomes the only active one.

    Args:
        model: an Encoder, Decoder or Seq2Seq.
        method: a `Method`, such as ``LoRA(rank=8)``.
        name: a name for this attachment; several can sit on one model.
        rng: numpy.random.Generator that draws what the method initialises at random; default: seed 0.

    Returns:
        An `Attachment`.

    Raises:
        ValueError: the name is taken, a pattern matches no module, or the method does not fit; nothing is changed.
    """
    attachments = vars(model).setdefault("attachments", {})
    if "values" not in vars(model):
        model.values = Values(model)
    if name in attachments:
        raise ValueError(f"attach: the name {name!r} is taken; attached: {', '.join(attachments)}; choose another name, or "
                         "detach that one first")
    stored = next((path for path in linear_paths(model) if not isinstance(unwrap(model.get(path)).weight, Parameter)), None)
    if method.full_precision and stored is not None:
        raise ValueError(f"attach: {method.name} trains weights, and {stored} is stored in 4 bits; dequantise the model first, "
                         "or attach LoRA, which trains beside them")
    with none_active(model):  # so that a method that looks at the base sees the base
        wrappers = method.wrappers(model, rng or np.random.default_rng(0))
        base = method.base_parameters(model)
        head_path = output_map(model)
        asked = method.trains_head and head_path == "head.classifier" or method.name == "head"
        if asked and not any(path.startswith(f"{head_path}.") for path in (*base, *(f"{w}." for w in wrappers))):
            if head_path is None:
                raise ValueError("attach: this model has no output map of its own to train (it has no head, or one that is tied "
                                 "to the word vectors); use another method, such as output for the vectors of some words")
            wrappers[head_path] = OwnCopy(model.get(head_path))
    if not attachments:
        model.trained_before_attaching = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)
    attachment = attachments[name] = Attachment(model, method, name, wrappers, base, head_path)
    model.values.add(attachment)
    for path, wrapper in wrappers.items():
        insert(model, path, wrapper)
    try:
        activate(model, name)
    except ValueError:
        attachment.detach()
        raise
    return attachment


def output_map(model):
    """The path of the task's own output map, or None: there is no head, or it is tied to the word vectors."""
    for path in HEAD_PATHS:
        with contextlib.suppress(KeyError):
            return path if isinstance(unwrap(model.get(path)), Linear) else None
    return None


# ---- several on one model --------------------------------------------------------------------------------------


def _known(model, names, where):
    """{name: Attachment} of a model, once every name is known to be among them."""
    attachments = vars(model).get("attachments", {})
    for name in names:
        if name not in attachments:
            raise ValueError(f"{where}: no attachment is called {name!r}; attached: {', '.join(attachments) or 'none'}")
    return attachments


def activate(model, *names):
    """Make the named attachments the active ones, and every other inactive (those that are merged stay as they are).

    Where several of them have a head, or train the same parameter in place, the last by name counts.

    Raises ValueError, and changes nothing, when a name is unknown, or one would act before another that is merged.
    """
    attachments = _known(model, names, "activate")
    states = {name: attachment._state() for name, attachment in attachments.items()}
    for name, attachment in attachments.items():
        if not attachment.merged:
            attachment._enable(name in names)
    try:
        check_order(model, {path for attachment in attachments.values() for path in attachment.wrappers})
        if attachments:
            model.values.settle()
    except ValueError:
        _restore_all(model, states)
        raise


def _restore_all(model, states):
    for name, state in states.items():
        model.attachments[name]._set_state(state)
    model.values.settle()


@contextlib.contextmanager
def all_or_nothing(model):
    """Where this block raises, what was attached in it is taken off, and those that were active before are active again."""
    before = {name: attachment._state() for name, attachment in vars(model).get("attachments", {}).items()}
    try:
        yield
    except BaseException:
        for name in [name for name in vars(model).get("attachments", {}) if name not in before]:
            model.attachments[name].detach()
        if before:
            _restore_all(model, before)
        raise


@contextlib.contextmanager
def none_active(model):
    """Inside this block no attachment of a model is active, except those that are merged."""
    if not vars(model).get("attachments"):
        yield
        return
    states = {name: attachment._state() for name, attachment in model.attachments.items()}
    activate(model)
    try:
        yield
    finally:
        _restore_all(model, states)


class CountedRows(Wrapper):
    """The word vectors of a batch that must have as many rows as there are names."""

    level, attachment = -1, ""

    def __init__(self, wrapped, names):
        super().__init__(wrapped)
        self.names = names

    def forward(self, ids, *others):
        if len(ids) != len(self.names):
            raise ValueError(f"mix: expected one name for each row, got {len(self.names)} names for a batch of {len(ids)} rows")
        return self.wrapped(ids, *others)


@contextlib.contextmanager
def mixed(model, names):
    """Inside this block row i of a batch goes through the attachment ``names[i]`` alone (None: through the base).

    Raises ValueError for a name that is unknown, an attachment that is merged, and a method that cannot tell rows apart; and
    inside, for a batch of another number of rows.
    """
    chosen = list(dict.fromkeys(name for name in names if name is not None))
    attachments = _known(model, chosen, "mix")
    for name in chosen:
        attachment = attachments[name]
        if attachment.merged:
            raise ValueError(f"mix: attachment {name!r} is merged, so every row goes through it; unmerge it first")
        if attachment.base or not all(w.mixes_rows for w in attachment.wrappers.values()):
            raise ValueError(f"mix: {attachment.method.name} (attachment {name!r}) cannot be mixed with others in one batch; "
                             "LoRA and its kin and (IA)³ can")
    states = {name: attachment._state() for name, attachment in attachments.items()}
    wrappers = [(name, w) for name in chosen for w in attachments[name].wrappers.values()]
    counted = CountedRows(model.get("embed.tokens"), names)
    model.replace("embed.tokens", counted)
    try:
        activate(model, *chosen)
        for name, wrapper in wrappers:
            wrapper.rows = np.array([given == name for given in names])  # (B,)
        yield model
    finally:
        for _, wrapper in wrappers:
            wrapper.rows = None
        remove(model, "embed.tokens", counted)
        _restore_all(model, states)
