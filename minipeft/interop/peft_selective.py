"""Selective fine-tuning in HF PEFT's formats: biases and top layers as a LoRA that changes nothing, norms as LN_TUNING.

PEFT has no type for BitFit and for training the top layers. It has, though, a LoRA with trained biases (``bias: all``) and
one with modules saved whole (``modules_to_save``): with matrices of zeros on one module only the rest remains.
"""

import re
from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, attach
from .hf import head_kind
from .hf_names import places, shapes_on_disk, to_ours, to_theirs
from .peft import (CONFIG, STEM, TARGETS, WEIGHTS, NotRepresentable, check_tensors, config_fields, fill_head, is_whole,
                   linear_modules, read_config, read_raw_config, read_weights, take_head, targeted)
from .peft_lora import INDIFFERENT as LORA_INDIFFERENT

BLOCK = re.compile(r"(.*?\b(?:layer|layers|h|block)\.\d+)\.")  # the name of a block, before what is inside it
NORM = ".ln_tuning_layers."
HEADS = ("classifier", "score")


def _table(model):
    """{our path: Place} of everything but the classification head, which every format has a place of its own for."""
    table = places(model.config, head_kind(model))
    return {path: place for path, place in table.items() if not path.startswith("head.classifier")}


def _block_of(key):
    """The name of the block that a tensor is in, or None."""
    found = BLOCK.match(key)
    return found and found.group(1)


def _select(table, fits):
    """The part of a table of places whose names on disk fit."""
    return {path: place for path, place in table.items() if fits(place.key)}


def _base_arrays(model):
    """{our path: array} of the base's own parameters."""
    return {path: model.values.base.get(path, p.data) for path, p in model.named_parameters()}


# ---- writing ---------------------------------------------------------------------------------------------------


def files_of(attachment, base=None):
    """{file name: content} of a BitFit, top-k or LayerNorm attachment in PEFT's format.

    Raises `NotRepresentable` for biases that the base does not have, and where every layer is trained.
    """
    if attachment.method.name == "bitfit" and any(path not in ("head.classifier", "head.output") for path in attachment.wrappers):
        raise NotRepresentable("save: the biases were added to a base that has none, and PEFT trains only those that exist")
    write = {"bitfit": _biases, "top_k": _layers, "layernorm": _norms}[attachment.method.name]
    return write(attachment, base, _table(attachment.model), _base_arrays(attachment.model) | attachment.arrays())


def _no_lora(attachment, base, module, **fields):
    """(config, tensors) of a LoRA of rank 1 on one module whose matrices are zero."""
    model = attachment.model
    config, tensors = config_fields(attachment, "LORA", base)
    shapes = [model.get(path).weight.shape for path in linear_modules(model)[module]]
    tensors[f"{STEM}{module}.lora_A.weight"] = np.zeros((1, shapes[0][0]), np.float32)
    tensors[f"{STEM}{module}.lora_B.weight"] = np.zeros((sum(shape[1] for shape in shapes), 1), np.float32)
    config |= {"r": 1, "lora_alpha": 1, "lora_dropout": 0.0, "target_modules": [module], "bias": "none",
               "fan_in_fan_out": model.config.model_type == "gpt2", "use_rslora": False, "use_dora": False, "rank_pattern": {},
               "alpha_pattern": {}} | fields
    return config, tensors


def _biases(attachment, base, table, arrays):
    """Every bias of the model, trained or not; that of the module with the LoRA is called otherwise."""
    module = next(iter(linear_modules(attachment.model)))
    config, tensors = _no_lora(attachment, base, module, bias="all")
    chosen = _select(table, lambda key: key.endswith(".bias"))
    for key, array in to_theirs(chosen, {path: arrays[path] for path in chosen}).items():
        tensors[STEM + _bias_name(key, [module])] = array
    return {WEIGHTS: tensors, CONFIG: config}


def _bias_name(key, modules):
    """The name of a bias; those of the modules that have a LoRA are called otherwise."""
    return f"{key.removesuffix('.bias')}.base_layer.bias" if key.removesuffix(".bias") in modules else key


def _layers(attachment, base, table, arrays):
    """The trained blocks whole, and the LoRA on a module outside them."""
    saved = sorted({_block_of(table[path].key) for path in attachment.base})
    free = next((module for module in linear_modules(attachment.model) if _block_of(f"{module}.") not in saved), None)
    if free is None:
        raise NotRepresentable("save: every layer is trained, and PEFT needs one outside them; save the whole model instead")
    config, tensors = _no_lora(attachment, base, free)
    config["modules_to_save"] = saved + (config["modules_to_save"] or [])
    chosen = _select(table, lambda key: _block_of(key) in saved)
    tensors |= {STEM + key: array for key, array in to_theirs(chosen, {path: arrays[path] for path in chosen}).items()}
    return {WEIGHTS: tensors, CONFIG: config}


def _norms(attachment, base, table, arrays):
    """The trained norms, each as a module of its own."""
    config, tensors = config_fields(attachment, "LN_TUNING", base)
    chosen = {path: table[path] for path in attachment.base}
    for key, array in to_theirs(chosen, {path: arrays[path] for path in chosen}).items():
        tensors[STEM + NORM.join(key.rsplit(".", 1))] = array
    config["target_modules"] = sorted({place.key.rpartition(".")[0] for place in chosen.values()})
    return {WEIGHTS: tensors, CONFIG: config}


# ---- reading ---------------------------------------------------------------------------------------------------

LORA_FIELDS = {"r": (8, is_whole, "a whole number from 1 on"), "target_modules": TARGETS,
               "bias": ("none", lambda v: v in ("none", "all"), "'none' or 'all'"),
               "lora_dropout": (0.0, lambda v: isinstance(v, (int, float)), "a number")}
NO_MATTER = LORA_INDIFFERENT | {"lora_alpha", "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern"}


def recognises(raw):
    """Whether a PEFT config is of selective fine-tuning: norms, or a LoRA beside which biases or whole blocks are stored."""
    saved = raw.get("modules_to_save") or []
    blocks = isinstance(saved, list) and any(isinstance(name, str) and _block_of(f"{name}.") == name for name in saved)
    return raw.get("peft_type") == "LN_TUNING" or raw.get("peft_type") == "LORA" and (raw.get("bias") == "all" or blocks)


def load(model, folder, name="default", note=None):
    """Attach the BitFit, top-k or LayerNorm tuning of a PEFT folder to ``model``.

    Raises ValueError for a LoRA that does change something beside them, for blocks that are not the last ones, and for
    tensors that are missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note, tensors = Path(folder), note or {}, _without_copies(read_weights(folder))
    is_lora, expected, table, modules = read_raw_config(folder).get("peft_type") == "LORA", {}, _table(model), []
    if is_lora:
        config = read_config(folder, "LORA", LORA_FIELDS, NO_MATTER, "a LoRA beside trained biases or layers")
        modules = targeted(config["target_modules"], linear_modules(model))
        expected = _lora_shapes(model, modules, config["r"])
    else:
        config = read_config(folder, "LN_TUNING", {"target_modules": TARGETS}, set(), "LN_TUNING")
    saved = [m for m in config["modules_to_save"] or [] if _block_of(f"{m}.") == m]
    head = take_head(model, tensors, config | {"modules_to_save": [m for m in config["modules_to_save"] or [] if m not in saved]},
                     folder)
    if not is_lora:
        norms = targeted(config["target_modules"], [place.key.rpartition(".")[0] for place in table.values()])
        chosen, method = _select(table, lambda key: key.rpartition(".")[0] in norms), METHODS["layernorm"]()
        disk = {place.key: STEM + NORM.join(place.key.rsplit(".", 1)) for place in chosen.values()}
    elif config["bias"] == "all":
        chosen, method = _select(table, lambda key: key.endswith(".bias")), METHODS["bitfit"]()
        disk = {place.key: STEM + _bias_name(place.key, modules) for place in chosen.values()}
    else:
        chosen = _select(table, lambda key: any((_block_of(key) or "").endswith(m) for m in saved))
        method = METHODS["top_k"](layers=len({_block_of(place.key) for place in chosen.values()}) or 1)
        disk = {place.key: STEM + place.key for place in chosen.values()}
    if note.get("method"):
        method = METHODS[note["method"]](**note["settings"])
    method.trains_head = head is not None or note.get("head") is not None
    parameters = {path: p.data for path, p in model.named_parameters()}
    shapes = shapes_on_disk(chosen, parameters)
    expected |= {disk[key]: shape for key, shape in shapes.items()}
    check_tensors(folder / WEIGHTS, expected, tensors)
    _check_zero(tensors, folder)
    arrays = {path: to_ours(place, tensors[disk[place.key]].astype(np.float32)) for path, place in chosen.items()}
    attachment = attach(model, method, name)
    _check_selection(attachment, arrays, folder)
    attachment.load_arrays(attachment.arrays() | {path: a for path, a in arrays.items() if path in attachment.base})
    fill_head(attachment, head)
    return attachment


def _lora_shapes(model, modules, rank):
    """{tensor name: shape} of a LoRA's matrices on the modules."""
    shapes = {m: [model.get(path).weight.shape for path in linear_modules(model)[m]] for m in modules}
    return ({f"{STEM}{m}.lora_A.weight": (rank, of[0][0]) for m, of in shapes.items()}
            | {f"{STEM}{m}.lora_B.weight": (sum(shape[1] for shape in of), rank) for m, of in shapes.items()})


def _check_zero(tensors, folder):
    """Refuse a LoRA that changes something."""
    for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
        other = name.replace(".lora_A.", ".lora_B.")
        if other in tensors and tensors[name].any() and tensors[other].any():
            raise ValueError(f"{folder / WEIGHTS}: {name} and its lora_B are not zero; a LoRA together with trained biases or "
                             "layers are two methods, which are attached one after the other here")


def _without_copies(tensors):
    """The tensors without the copies of a trained head that PEFT adds where it saves all biases."""
    copies = tuple(f"{STEM}{head}.{kind}." for head in HEADS for kind in ("modules_to_save", "original_module"))
    return {name: array for name, array in tensors.items() if not name.startswith(copies)}


def _check_selection(attachment, arrays, folder):
    """Refuse a file that changes what the method does not train, or lacks what it does."""
    base, lacking = _base_arrays(attachment.model), [path for path in attachment.base if path not in arrays]
    if lacking:
        raise ValueError(f"{folder / WEIGHTS}: missing tensors for {files.listed(lacking)}, which {attachment.method.name} "
                         "trains")
    changed = [path for path, a in arrays.items() if path not in attachment.base and not np.array_equal(a, base[path])]
    if changed:
        raise ValueError(f"{folder / WEIGHTS}: holds changed values of {files.listed(changed)}, which {attachment.method.name} "
                         "does not train (of layers only the last ones can be loaded)")
