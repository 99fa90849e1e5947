"""What all adapters in HF PEFT's format have in common: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

Tensors stand under the names that the modules have in transformers, after ``base_model.model.``; a trained classification
head stands beside them. Everything is read strictly: PEFT itself ignores an extra tensor and only warns of a missing one.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from ..data import files
from ..nn import unwrap
from .hf import head_kind
from .hf_names import FAMILIES, places

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STEM = "base_model.model."


class NotRepresentable(ValueError):
    """An attachment that no other library's format can hold; the message says why."""


TASK_TYPES = [None, "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"]


def linear_modules(model):
    """{name of a linear module in transformers: [our paths], in the order of its output columns}."""
    kind = head_kind(model)
    out = {}
    for path, place in places(model.config, kind).items():
        if "blocks" in path.split(".") and path.endswith(".weight") and ".norm." not in path:
            out.setdefault(place.key.removesuffix(".weight"), []).append(path.removesuffix(".weight"))
    return out


# ---- writing ---------------------------------------------------------------------------------------------------


def config_fields(attachment, peft_type, base, stem=STEM):
    """(fields of ``adapter_config.json`` that every type has, {tensor name: array} of the trained head).

    The head is in PEFT's format where transformers has a class for it; ``stem`` comes before its name.
    """
    model = attachment.model
    kind, tensors = head_kind(model), {}
    fields = {"peft_type": peft_type,
              "task_type": {"lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(kind, "FEATURE_EXTRACTION"),
              "base_model_name_or_path": str(base) if base else None, "inference_mode": True, "modules_to_save": None}
    if attachment.head is not None and kind == "classification":  # PEFT expects a trained head with SEQ_CLS, and only there
        classifier = FAMILIES[model.config.model_type][2]
        fields |= {"task_type": "SEQ_CLS", "modules_to_save": [classifier]}
        tensors = {f"{stem}{classifier}.{name}": p.data.T for name, p in attachment.head.own.named_parameters()}
    return fields, tensors


def short_names(names, model):
    """Last parts of module names where they name exactly these modules, else the whole names."""
    last = sorted({name.rpartition(".")[2] for name in names})
    hit = {name for name in linear_modules(model) if name.rpartition(".")[2] in last}
    outside = any(name.endswith(f".{ending}") for name in ("pooler.dense", "transform.dense") for ending in last)
    return last if hit == set(names) and not outside else sorted(names)


# ---- reading ---------------------------------------------------------------------------------------------------


def is_whole(value):
    """Whether a value of a config is a whole number from 1 on."""
    return type(value) is int and value >= 1


def is_positive(value):
    """Whether a value of a config is a positive number."""
    return type(value) in (int, float) and 0 < value < math.inf


def is_names(value):
    """Whether a value of a config is a list of strings."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_regex(text):
    """Whether a string is a regular expression."""
    try:
        return bool(re.compile(text))
    except re.error:
        return False


# Fields that every type has: (default, test of the value, what is expected).
COMMON = {
    "task_type": (None, lambda v: v in TASK_TYPES, "SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, FEATURE_EXTRACTION or null"),
    "modules_to_save": (None, lambda v: v is None or is_names(v), "a list of names or null"),
}
TARGETS = (None, lambda v: is_regex(v) if isinstance(v, str) else is_names(v), "a list of names or a regular expression")

# Fields that make no difference to a trained adapter's arithmetic on our models.
INDIFFERENT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
EMPTY = ("null", "false", '""', "[]", "{}")


def read_config(folder, peft_type, followed, indifferent, what):
    """{field: value} of what is followed in a folder's ``adapter_config.json``, defaults filled in.

    Args:
        followed: {field: (default, test of the value, what is expected)} besides `COMMON`.
        indifferent: names of further fields that may hold anything; all others must be empty.
        what: the name of the method, for the message.

    Raises ValueError, naming the field, for a value that cannot be followed and for a setting that the method lacks.
    """
    path, raw = Path(folder) / CONFIG, read_raw_config(folder)
    followed = {"peft_type": (None, lambda v: v == peft_type, repr(peft_type))} | COMMON | followed
    out = checked(folder, raw, followed)
    for field, value in raw.items():
        if field not in followed and field not in INDIFFERENT | indifferent and json.dumps(value) not in EMPTY:
            raise ValueError(f"{path}: {field} is {value!r}, which {what} does not have (expected null, false or empty)")
    return out


def checked(folder, raw, followed):
    """{field: value} of a config's fields that are ``followed``; ValueError for a value that cannot be."""
    out = {field: raw.get(field, default) for field, (default, _, _) in followed.items()}
    for field, (_, fits, expected) in followed.items():
        if not fits(out[field]):
            raise ValueError(f"{Path(folder) / CONFIG}: {field} is {out[field]!r}; expected {expected}")
    return out


def read_raw_config(folder):
    """The JSON object in a folder's ``adapter_config.json``."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG}; expected a folder written by PEFT or minipeft")
    return files.read_json(path, "adapter config")


def read_weights(folder):
    """{name: array} of a folder's ``adapter_model.safetensors``; a pickle is refused."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = " (adapter_model.bin is a pickle and is not opened: it can run any program)" if pickled else ""
        raise ValueError(f"{folder}: no {WEIGHTS}{reason}")
    return files.read_tensors(folder / WEIGHTS)


def check_tensors(where, expected, found):
    """Raise ValueError, saying what to do, unless ``found`` has the names and shapes of ``expected`` and holds numbers."""
    try:
        files.check_tensors(where, expected, found)
    except ValueError as error:
        raise ValueError(f"{error}; load the adapter on the base that it was made for, or fetch or train it again") from None
    broken = [name for name, array in found.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"{where}: NaN or infinity in {files.listed(broken)}; expected numbers; fetch or train the adapter "
                         "again")


def targeted(target, modules):
    """The modules that PEFT's ``target_modules`` names: a regular expression, ``all-linear``, or a list of endings."""
    if isinstance(target, list):
        return [m for m in modules if any(m == t or m.endswith(f".{t}") for t in target)]
    if target.lower() == "all-linear":
        return list(modules)
    return [m for m in modules if re.fullmatch(target, m)]


def take_head(model, tensors, config, folder, stem=STEM):
    """Move the trained head, whose names begin with ``stem``, out of ``tensors``: {"weight", "bias"} or None.

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
            raise ValueError(f"{folder / CONFIG}: modules_to_save is {saved!r}; beside the method's own only the "
                             f"classification head is loaded, not {name!r}")
    prefix = f"{stem}{classifier}."
    found = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    if kind != "classification":
        if found:
            raise ValueError(f"{folder}: the adapter holds a classification head and this model has none of that kind; load the "
                             "model with task 'classify' and the pooling that the adapter was trained with")
        return None
    if not found:
        if classifier in saved or config["task_type"] == "SEQ_CLS":  # which PEFT takes to name the classifier
            raise ValueError(f"{folder}: the trained head is missing; expected {prefix}weight beside the method's own tensors, "
                             f"as modules_to_save {saved!r} and task_type {config['task_type']!r} say; fetch or train it again")
        return None
    own = dict(unwrap(model.get("head.classifier")).named_parameters())
    check_tensors(folder / WEIGHTS, {prefix + part: p.shape[::-1] for part, p in own.items()}, found)
    return {name.removeprefix(prefix): array for name, array in found.items()}


def fill_head(attachment, head):
    """Put {"weight", "bias"} as they stand on disk into an attachment's head; None leaves it."""
    if head is not None:
        for part, parameter in attachment.head.own.named_parameters():
            parameter.data = head[part].T.astype(parameter.dtype).copy()
