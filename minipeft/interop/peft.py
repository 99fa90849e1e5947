"""Adapters in HF PEFT's format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, read strictly.

PEFT stores LoRA's matrices as lora_A = U^T (r, in) and lora_B = V (out, r), under the names that the modules have in
transformers. GPT-2's q, k and v are one module there, ``c_attn``: reading gives each of the three a copy of A and a third
of B's rows, and writing puts separate adapters into one block-structured A and B, or writes the shared A back.
"""

import json
import math
import os
import re
from pathlib import Path

import numpy as np

from ..data import files
from ..methods import LoRA, attach
from ..nn import unwrap
from .hf import head_kind
from .hf_names import FAMILIES, places

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STEM = "base_model.model."


def _modules(model):
    """{name of a linear module in transformers: [our paths], in the order of its output columns}."""
    kind = head_kind(model)
    out = {}
    for path, place in places(model.config, kind).items():
        if "blocks" in path.split(".") and path.endswith(".weight") and ".norm." not in path:
            out.setdefault(place.key.removesuffix(".weight"), []).append(path.removesuffix(".weight"))
    return out


# ---- writing ---------------------------------------------------------------------------------------------------


def _fuse(parts, widths):
    """(A, B, scale) of one module in PEFT from the adapters of its parts; None stands for a part without one.

    Parts that share one U (and a module that is one part here) are written with that U as A. Otherwise A stacks the
    parts' and B holds each part's V in a block of its own. The scale is the first part's; where another part's differs,
    its block is multiplied by the ratio, so that the product stays what it was.
    """
    present = [p for p in parts if p is not None]
    first = present[0]
    if len(present) == len(parts) and all(p.scale == first.scale and np.array_equal(p.U.data, first.U.data) for p in present):
        return first.U.data.T, np.concatenate([p.V.data for p in parts]), first.scale  # (r, in), (out, r)
    b = np.zeros((sum(widths), sum(p.U.shape[1] for p in present)), first.V.dtype)
    row = column = 0
    for part, width in zip(parts, widths):
        if part is not None:
            rank = part.U.shape[1]
            b[row:row + width, column:column + rank] = part.V.data * b.dtype.type(part.scale / first.scale)
            column += rank
        row += width
    return np.concatenate([p.U.data.T for p in present]), b, first.scale


def lora_files(attachment, base=None):
    """{file name: content} of a LoRA attachment in PEFT's format; see `save_lora`."""
    if attachment.merged:
        raise ValueError("save: this attachment is merged into the base; unmerge it first, or save the whole model")
    model, method, kind = attachment.model, attachment.method, head_kind(attachment.model)
    tensors, ranks, alphas = {}, {}, {}
    for module, paths in _modules(model).items():
        parts = [attachment.wrappers.get(path) for path in paths]
        if any(part is not None for part in parts):
            a, b, scale = _fuse(parts, [unwrap(model.get(path)).weight.shape[1] for path in paths])
            tensors[f"{STEM}{module}.lora_A.weight"], tensors[f"{STEM}{module}.lora_B.weight"] = a, b
            ranks[module] = a.shape[0]
            alphas[module] = _plain(scale * method.divisor(a.shape[0]))
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config = {
        "peft_type": "LORA", "task_type": {"lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(kind, "FEATURE_EXTRACTION"),
        "base_model_name_or_path": str(base) if base else None, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": method.dropout, "target_modules": _short(list(ranks), model),
        "fan_in_fan_out": model.config.model_type == "gpt2", "bias": "none", "use_rslora": method.rank_stabilised,
        "use_dora": False, "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if not math.isclose(a, alpha)}, "modules_to_save": None}
    if attachment.head is not None and kind == "classification":  # PEFT expects a trained head with SEQ_CLS, and only there
        classifier = FAMILIES[model.config.model_type][2]
        config |= {"task_type": "SEQ_CLS", "modules_to_save": [classifier]}
        for name, parameter in attachment.head.own.named_parameters():
            tensors[f"{STEM}{classifier}.{name}"] = parameter.data.T
    return {WEIGHTS: tensors, CONFIG: config}


def save_lora(attachment, folder, base=None):
    """Write a LoRA attachment as a folder that ``peft.PeftModel.from_pretrained`` loads.

    ``base`` is noted as the base model's folder or name. A head that transformers has no class for (mean pooling) is
    not in this format; `save_adapter` writes it beside.

    Raises ValueError while merged, and OSError where the folder cannot be written.
    """
    write_files(folder, lora_files(attachment, base))


def write_files(folder, contents):
    """Write {file name: JSON value or tensors} into a folder, all of them or none.

    Each is first written beside its place, so that a full disk leaves the files that were there before.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = {name: folder / f".{name}{files.UNFINISHED}" for name in contents}
    try:
        for name, content in contents.items():
            write = files.write_json if name.endswith(".json") else files.write_tensors
            write(beside[name], content)
        for name, path in beside.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise OSError(str(error).replace(str(beside[name]), str(folder / name))) from None
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def _commonest(values):
    """The commonest value, the smallest of several."""
    counted = list(values.values())
    return max(sorted(set(counted)), key=counted.count)


def _plain(number):
    """A whole number as int, so that the file reads as PEFT writes it."""
    return round(number) if math.isclose(number, round(number)) else float(number)


def _short(names, model):
    """Last parts of module names where they name exactly these modules, else the whole names."""
    last = sorted({name.rpartition(".")[2] for name in names})
    hit = {name for name in _modules(model) if name.rpartition(".")[2] in last}
    outside = any(name.endswith(f".{ending}") for name in ("pooler.dense", "transform.dense") for ending in last)
    return last if hit == set(names) and not outside else sorted(names)


# ---- reading ---------------------------------------------------------------------------------------------------


def _is_whole(value):
    return type(value) is int and value >= 1


def _is_positive(value):
    return type(value) in (int, float) and 0 < value < math.inf


def _is_names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_regex(text):
    try:
        return bool(re.compile(text))
    except re.error:
        return False


def _are_patterns(value, fits):
    return value is None or isinstance(value, dict) and all(map(_is_regex, value)) and all(map(fits, value.values()))


# The initialisations that leave the base's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
INITIAL = [True, False, None, "gaussian", "eva", "orthogonal", "mica"]
TASKS = [None, "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]

# Fields of adapter_config.json that are followed: (default, test of the value, what is expected).
FOLLOWED = {
    "peft_type": (None, lambda v: v == "LORA", "'LORA'"),
    "task_type": (None, lambda v: v in TASKS, "SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, FEATURE_EXTRACTION or null"),
    "r": (8, _is_whole, "a whole number from 1 on"),
    "lora_alpha": (8, _is_positive, "a positive number"),
    "lora_dropout": (0.0, lambda v: v == 0 or _is_positive(v) and v < 1, "a number from 0 to below 1"),
    "use_rslora": (False, lambda v: v is None or isinstance(v, bool), "true or false"),
    "target_modules": (None, lambda v: _is_regex(v) if isinstance(v, str) else _is_names(v),
                       "a list of names or a regular expression"),
    "modules_to_save": (None, lambda v: v is None or _is_names(v), "a list of names or null"),
    "rank_pattern": (None, lambda v: _are_patterns(v, _is_whole), "an object of regular expressions and whole numbers from 1 on"),
    "alpha_pattern": (None, lambda v: _are_patterns(v, _is_positive), "an object of regular expressions and positive numbers"),
    "bias": ("none", lambda v: v == "none", "'none'"),
    "init_lora_weights": (True, lambda v: v in INITIAL,
                          "true, false, gaussian, eva, orthogonal or mica, which leave the base as it is"),
}

# Fields that make no difference to a trained adapter's arithmetic on our models. Any other field must be empty.
INDIFFERENT = {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
               "inference_mode", "layers_pattern", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
               "qalora_group_size", "revision", "runtime_config"}
EMPTY = ("null", "false", '""', "[]", "{}")


def read_config(folder):
    """{field: value} of what is followed in a folder's ``adapter_config.json``, defaults filled in.

    Raises ValueError, naming the field, for a value that cannot be followed and for a setting that plain LoRA lacks.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG}; expected a folder written by PEFT or minipeft")
    raw, out = files.read_json(path, "adapter config"), {}
    for field, (default, fits, expected) in FOLLOWED.items():
        out[field] = raw.get(field, default)
        if not fits(out[field]):
            raise ValueError(f"{path}: {field} is {out[field]!r}; expected {expected}")
    for field, value in raw.items():
        if field not in FOLLOWED and field not in INDIFFERENT and json.dumps(value) not in EMPTY:
            raise ValueError(f"{path}: {field} is {value!r}, which plain LoRA does not have (expected null, false or empty)")
    return out


def read_weights(folder):
    """{name: array} of a folder's ``adapter_model.safetensors``; a pickle is refused."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = " (adapter_model.bin is a pickle and is not opened: it can run any program)" if pickled else ""
        raise ValueError(f"{folder}: no {WEIGHTS}{reason}")
    return files.read_tensors(folder / WEIGHTS)


def _targeted(target, modules):
    """The modules that PEFT's ``target_modules`` names: a regular expression, ``all-linear``, or a list of endings."""
    if isinstance(target, list):
        return [m for m in modules if any(m == t or m.endswith(f".{t}") for t in target)]
    if target.lower() == "all-linear":
        return list(modules)
    return [m for m in modules if re.fullmatch(target, m)]


def _pattern(patterns, module, default):
    """PEFT's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def load_lora(model, folder, name="default", with_head=False, ranks=None):
    """Attach the LoRA adapter of a PEFT folder to ``model``.

    Args:
        model: an Encoder or Decoder with the head that the adapter was trained with.
        folder: path. name: the attachment's name.
        with_head: give the attachment a head of its own even where this file holds none.
        ranks: {path: rank} of the adapters that were written as one, from a note of ours; they are taken apart again.

    Returns:
        The `Attachment`. Its ``method`` holds the rank, alpha and paths found. Without ``ranks`` GPT-2's fused
        ``c_attn`` becomes separate adapters on q, k and v that share U's values, so that the count grows; ``note`` says so.

    Raises:
        ValueError: no adapter there, a pickle, a setting that plain LoRA does not have, targets that match nothing, or
            tensors that are missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder = Path(folder)
    config, tensors, modules = read_config(folder), read_weights(folder), _modules(model)
    chosen = _targeted(config["target_modules"], modules)
    if not chosen:
        raise ValueError(f"{folder / CONFIG}: target_modules {config['target_modules']!r} match no module of this "
                         f"{model.config.model_type} model")
    rank_of = {m: _pattern(config["rank_pattern"], m, config["r"]) for m in chosen}
    head = _take_head(model, tensors, config, folder)
    files.check_tensors(folder / WEIGHTS, _expected(model, modules, rank_of), tensors)
    method = LoRA(config["r"], config["lora_alpha"], [], config["lora_dropout"], rank_stabilised=bool(config["use_rslora"]))
    method.trains_head = with_head or head is not None
    factors = {}
    for module in chosen:
        a, b = (tensors[f"{STEM}{module}.lora_{x}.weight"].astype(np.float32) for x in "AB")  # (r, in), (out, r)
        alpha = _pattern(config["alpha_pattern"], module, config["lora_alpha"])
        for path, (u, v) in _split(a, b, modules[module], ranks or {}).items():
            factors[path] = u, v
            method.rank_pattern[path] = u.shape[1]
            method.alpha_pattern[path] = alpha * (method.divisor(u.shape[1]) / method.divisor(a.shape[0]))
    method.targets = list(factors)
    attachment = attach(model, method, name)
    for path, (u, v) in factors.items():
        wrapper = attachment.wrappers[path]
        wrapper.U.data, wrapper.V.data = u.copy(), v.copy()
    stored = sum(array.size for array in tensors.values())
    if attachment.trainable_without_head > stored:
        attachment.note = (f"the adapter's c_attn is three maps here, each with a U of its own: "
                           f"{attachment.trainable_without_head:,} parameters, {stored:,} in the file")
    if head is not None:
        for part, parameter in attachment.head.own.named_parameters():
            parameter.data = head[part].T.astype(np.float32).copy()
    return attachment


def _split(a, b, paths, ranks):
    """{path: (U, V)} from a module's A (r, in) and B (out, r), whose rows belong to the ``paths`` in equal shares.

    Each path gets a copy of A and its share of B's rows, except where A was stacked from theirs. So it was where ``ranks``
    says so and B is indeed zero outside the blocks: then each gets its own rows of A and its own block. And so it was
    where A has more rows than a path may have: then each gets those that B uses for it.
    """
    shares = np.split(b, len(paths))  # (out / parts, r) each
    ends = np.cumsum([ranks.get(path, 0) for path in paths])
    if len(paths) > 1 and ends[-1] == a.shape[0]:
        rows = {path: slice(end - ranks.get(path, 0), end) for path, end in zip(paths, ends)}
        blocks = {path: share[:, rows[path]] for path, share in zip(paths, shares)}
        if sum(map(np.count_nonzero, blocks.values())) == np.count_nonzero(b):
            return {path: (a[rows[path]].T, blocks[path]) for path in paths if path in ranks}
    if len(paths) > 1 and a.shape[0] > min(a.shape[1], len(shares[0])):
        used = {path: share.any(axis=0) for path, share in zip(paths, shares)}  # (r,) each
        return {path: (a[used[path]].T, share[:, used[path]]) for path, share in zip(paths, shares) if used[path].any()}
    return {path: (a.T, share) for path, share in zip(paths, shares)}


def _expected(model, modules, ranks):
    """{tensor name: shape} of the LoRA matrices."""
    out = {}
    for module, rank in ranks.items():
        shapes = [unwrap(model.get(path)).weight.shape for path in modules[module]]
        out[f"{STEM}{module}.lora_A.weight"] = (rank, shapes[0][0])
        out[f"{STEM}{module}.lora_B.weight"] = (sum(s[1] for s in shapes), rank)
    return out


def _take_head(model, tensors, config, folder):
    """Move the trained head out of ``tensors``: {"weight", "bias"} or None.

    A name in ``modules_to_save`` that neither the model nor the file has is ignored, as PEFT lists names that might
    be there; one that only one of them has is an error, and so is a module other than the classification head.
    """
    kind, classifier = head_kind(model), FAMILIES[model.config.model_type][2]
    saved = config["modules_to_save"] or []
    keys = [place.key for place in places(model.config, kind).values()]
    keys += ["lm_head.weight"] if kind in ("lm", "seq2seq") else []
    theirs = {key.rsplit(".", i)[0] for key in keys for i in range(1, key.count(".") + 1)}  # every module's name
    for name in saved:
        if name != classifier and any(module.endswith(name) for module in theirs):
            raise ValueError(f"{folder / CONFIG}: modules_to_save is {saved!r}; beside LoRA's matrices only the "
                             f"classification head is loaded, not {name!r}")
    prefix = f"{STEM}{classifier}."
    found = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    if kind != "classification":
        if found:
            raise ValueError(f"{folder}: the adapter holds a classification head and this model has none of that kind; load the "
                             "model with task 'classify' and the pooling that the adapter was trained with")
        return None
    if not found:
        if classifier in saved or config["task_type"] == "SEQ_CLS":  # which PEFT takes to name the classifier
            raise ValueError(f"{folder}: the trained head is missing; expected {prefix}weight beside LoRA's matrices, as "
                             f"modules_to_save {saved!r} and task_type {config['task_type']!r} say")
        return None
    own = dict(unwrap(model.get("head.classifier")).named_parameters())
    files.check_tensors(folder / WEIGHTS, {prefix + part: p.shape[::-1] for part, p in own.items()}, found)
    return {name.removeprefix(prefix): array for name, array in found.items()}
