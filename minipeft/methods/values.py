"""Which array each parameter of the base holds: its own, one trained in its place, or one with changes merged in.

Every array is kept while it is not in use, so that switching, unmerging and detaching give the base back bit for bit.
"""

from ..nn import Linear, Parameter, Wrapper, unwrap


def stack(model, path):
    """The wrappers at a path, innermost first."""
    out, module = [], model.get(path)
    while isinstance(module, Wrapper):
        out.append(module)
        module = module.wrapped
    return out[::-1]


class Values:
    """The arrays of a model's base parameters.

    ``base`` {path: array} holds the base's own arrays of those parameters that something else may stand in for, and
    ``holder`` {path: name} whose array the Parameter holds now: ``None`` the base's, a name that attachment's, and
    ``MERGED`` one that was computed from either.
    """

    MERGED = object()

    def __init__(self, model):
        self.model, self.base, self.holder = model, {}, {}

    def add(self, attachment):
        """Take in an attachment that trains in place: its values start as copies of the base's own."""
        parameters = dict(self.model.named_parameters())
        for path in attachment.base:
            if path not in self.base:
                self.base[path], self.holder[path] = parameters[path].data, None
            own = self.base[path]
            attachment.values[path] = own.copy(order="K") if attachment.method.keeps_base else own

    def settle(self):
        """Give every parameter the array that the attachments, as they are switched and merged now, ask for.

        Of several active attachments that train the same parameter the last by name counts. Raises ValueError where an
        active one trains a parameter into which another is merged; the callers then go back to what was before.
        """
        attachments = dict(sorted(self.model.attachments.items()))
        merged = self._merged_paths(attachments)
        parameters = dict(self.model.named_parameters())
        for path in list({*self.base, *(f"{seam}.{part}" for seam in merged for part in ("weight", "bias"))} & set(parameters)):
            parameter = parameters[path]
            self._store(path, parameter, attachments)
            owner = next((a for a in reversed(attachments.values()) if a.enabled and path in a.base), None)
            array = self.base[path] if owner is None else owner.values[path]
            parameter.data, self.holder[path] = array.astype(parameter.dtype, copy=False), owner and owner.name
            parameter.requires_grad = owner is not None
        for seam in merged:
            self._apply(seam, parameters)
        for path in [p for p in self.base if not any(p in a.base for a in attachments.values())]:
            if self.holder[path] is None:  # nothing stands in for it any more
                del self.base[path], self.holder[path]

    def _store(self, path, parameter, attachments):
        """Keep the array that a parameter holds with its owner, where it may have been replaced by a newer one."""
        if path not in self.base:
            self.base[path] = parameter.data
        elif self.holder[path] is None:
            self.base[path] = parameter.data
        elif self.holder[path] in attachments:
            attachment = attachments[self.holder[path]]
            attachment.values[path] = parameter.data
            if not attachment.method.keeps_base:
                self.base[path] = parameter.data

    def _merged_paths(self, attachments):
        """The seams at which something is merged."""
        return sorted({path for a in attachments.values() for path, w in a.wrappers.items() if w.merged})

    def _apply(self, seam, parameters):
        """Compute a module's weight and bias with every merged wrapper applied, innermost first."""
        weight, bias = parameters[f"{seam}.weight"], parameters.get(f"{seam}.bias")
        arrays = weight.data, None if bias is None else bias.data
        for wrapper in stack(self.model, seam):
            if wrapper.merged:
                arrays = wrapper.merged_arrays(*arrays)
        for name, parameter, array in ((f"{seam}.weight", weight, arrays[0]), (f"{seam}.bias", bias, arrays[1])):
            if parameter is not None and array is not parameter.data:
                if isinstance(self.holder[name], str):
                    raise ValueError(f"merge: {name} is trained in place by attachment {self.holder[name]!r}, so that nothing "
                                     "can be merged into it; deactivate that one, or unmerge")
                parameter.data, parameter.requires_grad, self.holder[name] = array, False, self.MERGED


def check_order(model, paths):
    """Raise ValueError where a merged wrapper stands around an unmerged active one with which it does not commute.

    What is merged acts on the weight itself, before everything that is not; only additions may come in any order.
    """
    for path in paths:
        inside = []
        for wrapper in stack(model, path):
            blocking = next((w for w in inside if not (w.additive and wrapper.additive)), None)
            if wrapper.merged and blocking is not None:
                raise ValueError(f"merge: at {path} attachment {blocking.attachment!r} acts before {wrapper.attachment!r}, so it "
                                 "must be merged first and unmerged last; or deactivate it")
            if wrapper.enabled and not wrapper.merged:
                inside.append(wrapper)


def insert(model, path, wrapper):
    """Put a wrapper among those at a path: of a lower level nearer to the module, of one level by the attachments' names."""
    key = lambda w: (w.level, w.attachment)
    outer, inner = None, model.get(path)
    while isinstance(inner, Wrapper) and key(inner) > key(wrapper):
        outer, inner = inner, inner.wrapped
    wrapper.wrapped = inner
    if outer is None:
        model.replace(path, wrapper)
    else:
        outer.wrapped = wrapper


def remove(model, path, wrapper):
    """Take one wrapper out of the chain of wrappers at a path."""
    outer = model.get(path)
    if outer is wrapper:
        model.replace(path, wrapper.wrapped)
        return
    while outer.wrapped is not wrapper:
        outer = outer.wrapped
    outer.wrapped = wrapper.wrapped


def mergeable(model, path):
    """None where the module at a path can take a merged change, else the reason why not."""
    root = unwrap(model.get(path))
    if isinstance(root, Linear) and isinstance(root.weight, Parameter):
        return None
    return (f"{path} is a {type(root).__name__}, which has no full-precision weight of its own to put the change into"
            + ("; dequantise the model first" if isinstance(root, Linear) else ""))
