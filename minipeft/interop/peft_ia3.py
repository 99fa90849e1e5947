"""(IA)3 in HF PEFT's format: one tensor ``ia3_l`` a module, (out, 1) where its output is scaled, (1, in) where its input is.

GPT-2's q, k and v are one module there, ``c_attn``, whose output is scaled as a whole: writing puts ones where we scale
nothing, and reading leaves a part out whose entries are all one.
"""

import re
from pathlib import Path

import numpy as np

from ..data import files
from ..methods import IA3, attach
from ..nn import unwrap
from .peft import (CONFIG, STEM, TARGETS, WEIGHTS, NotRepresentable, check_tensors, config_fields, fill_head, linear_modules,
                   read_config, read_weights, short_names, take_head, targeted)


def files_of(attachment, base=None):
    """{file name: content} of an (IA)3 attachment; ``base`` is noted as the base model's folder or name."""
    model = attachment.model
    config, tensors = config_fields(attachment, "IA3", base)
    outputs, inputs = [], []
    for module, paths in linear_modules(model).items():
        parts = [attachment.wrappers.get(path) for path in paths]
        kinds = {part.at_input for part in parts if part is not None}
        if kinds == {True}:
            if len(parts) > 1:
                raise NotRepresentable(f"save: PEFT cannot scale the input of parts of {module} alone")
            inputs.append(module)
            tensors[f"{STEM}{module}.ia3_l"] = parts[0].l.data[None]  # (1, in)
        elif kinds:
            if len(kinds) > 1:
                raise NotRepresentable(f"save: PEFT cannot scale the input and the output of {module} at once")
            outputs.append(module)
            scales = [np.ones(unwrap(model.get(path)).weight.shape[1], np.float32) if part is None else part.l.data
                      for path, part in zip(paths, parts)]
            tensors[f"{STEM}{module}.ia3_l"] = np.concatenate(scales)[:, None]  # (out, 1)
    config |= {"target_modules": short_names(outputs + inputs, model), "feedforward_modules": short_names(inputs, model),
               "fan_in_fan_out": model.config.model_type == "gpt2", "init_ia3_weights": True}
    return {WEIGHTS: tensors, CONFIG: config}


FOLLOWED = {"target_modules": TARGETS, "feedforward_modules": TARGETS}


def load(model, folder, name="default", note=None):
    """Attach the (IA)3 of a PEFT folder to ``model``.

    Raises ValueError for a value that cannot be followed, targets that match nothing, and tensors that are missing,
    unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note = Path(folder), note or {}
    config = read_config(folder, "IA3", FOLLOWED, {"fan_in_fan_out", "init_ia3_weights"}, "(IA)3")
    tensors, modules = read_weights(folder), linear_modules(model)
    chosen = targeted(config["target_modules"], modules)
    if not chosen:
        raise ValueError(f"{folder / CONFIG}: target_modules {config['target_modules']!r} match no module of this "
                         f"{model.config.model_type} model")
    inputs = {module for module in chosen if _is_input(config["feedforward_modules"], module)}
    head = take_head(model, tensors, config, folder)
    check_tensors(folder / WEIGHTS, _expected(model, modules, chosen, inputs), tensors)
    scales, fed = {}, []
    for module in chosen:
        flat = tensors[f"{STEM}{module}.ia3_l"].astype(np.float32).reshape(-1)
        if module in inputs:
            fed += modules[module]
            scales |= {path: flat for path in modules[module]}
        else:
            parts = np.split(flat, len(modules[module]))
            scales |= {path: part for path, part in zip(modules[module], parts) if len(parts) == 1 or (part != 1).any()}
    if note.get("method") == "ia3":
        method = IA3(**note["settings"])
        expected = method.places([path for paths in modules.values() for path in paths])
        scales |= {path: np.ones(unwrap(model.get(path)).weight.shape[1], np.float32) for path in expected if path not in scales}
    else:
        method = IA3([path for path in scales if path not in fed], fed)
    method.trains_head = head is not None or note.get("head") is not None
    attachment = attach(model, method, name)
    own = {path: w.l.shape for path, w in attachment.wrappers.items() if w is not attachment.head}
    check_tensors(folder / CONFIG, own, scales)
    for path, scale in scales.items():
        attachment.wrappers[path].l.data = scale.copy()
    fill_head(attachment, head)
    return attachment


def _is_input(feedforward, module):
    """PEFT's rule for ``feedforward_modules``: a regular expression, or a list of what the names may end with."""
    if isinstance(feedforward, str):
        return bool(re.fullmatch(feedforward, module))
    return any(module.endswith(name) for name in feedforward)


def _expected(model, modules, chosen, inputs):
    """{tensor name: shape} of the vectors."""
    out = {}
    for module in chosen:
        shapes = [unwrap(model.get(path)).weight.shape for path in modules[module]]
        out[f"{STEM}{module}.ia3_l"] = (1, shapes[0][0]) if module in inputs else (sum(shape[1] for shape in shapes), 1)
    return out
