"""Saving and loading what an attachment has learned: the tensors in the format of the library people use, and a note beside them.

The note, ``minipeft.json``, says what no PEFT file says: the labels' names, how states are pooled, the task. A head
that transformers has no class for lies in ``head.safetensors``.
"""

from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, attach
from ..methods.attach import output_map
from ..models.heads import POOLINGS
from ..nn import unwrap
from .hf import head_kind, load_pretrained
from .hf_config import config_from_hf
from .hf_names import FAMILIES
from .peft import CONFIG, STEM, WEIGHTS, load_lora, lora_files, read_config, read_weights, write_files

NOTE, HEAD = "minipeft.json", "head.safetensors"
TASKS = {"classification": "classify", "other": "classify", "lm": "lm", "masked_lm": "mlm", "seq2seq": "seq2seq",
         "none": "none"}
SAVED = [name for name in METHODS if name != "full"]  # the methods whose result is an adapter and not a model


# ---- writing ---------------------------------------------------------------------------------------------------


def save_adapter(attachment, folder, base=None):
    """Write an attachment into a folder, so that `load_adapter` and, for LoRA, HF PEFT load it.

    Args:
        attachment: one that trains nothing of the base in place (else save the model).
        folder: created if missing; an adapter that was there before is replaced as a whole.
        base: the base model's folder or name, noted for readers.

    Raises ValueError while merged or where the base was trained, and OSError where the folder cannot be written.
    """
    folder, model = Path(folder), attachment.model
    if attachment.base:
        raise ValueError(f"save: {attachment.method.name} trained the base itself; save the model with save_pretrained")
    kind, config, contents = head_kind(model), model.config, {}
    if attachment.method.name == "lora":
        contents = lora_files(attachment, base)
    if attachment.head is not None and not (attachment.method.name == "lora" and kind == "classification"):
        contents[HEAD] = {n: p.data.T for n, p in attachment.head.own.named_parameters()}
    contents[NOTE] = {
        "method": attachment.method.name, "model_type": config.model_type, "task": TASKS[kind],
        "labels": list(config.labels) if TASKS[kind] == "classify" else [],
        "pooling": _pooling(model), "head": HEAD if HEAD in contents else None,
        "ranks": {path: w.U.shape[1] for path, w in attachment.wrappers.items() if hasattr(w, "U")},
        "base": str(base) if base else None}
    write_files(folder, contents)
    for name in {WEIGHTS, CONFIG, HEAD} - set(contents):
        (folder / name).unlink(missing_ok=True)


def _pooling(model):
    """How the model's classification head reads the states; None without one."""
    return getattr(unwrap(model.head), "pooling", None)


# ---- reading ---------------------------------------------------------------------------------------------------

# What a note may say: {field: (default, test of the value, what is expected)}.
FIELDS = {
    "method": (None, lambda v: v in SAVED, f"one of {', '.join(SAVED)}"),
    "model_type": (None, lambda v: v is None or isinstance(v, str), "the base model's type or null"),
    "task": (None, lambda v: v in list(TASKS.values()), "classify, lm, mlm or none"),
    "labels": ([], lambda v: isinstance(v, list) and all(isinstance(label, str) for label in v), "a list of names"),
    "pooling": (None, lambda v: v is None or v in POOLINGS, f"{', '.join(POOLINGS)} or null"),
    "head": (None, lambda v: v in (None, HEAD), f"{HEAD!r} or null"),
    "ranks": ({}, lambda v: isinstance(v, dict) and all(type(rank) is int and rank > 0 for rank in v.values()),
              "an object of paths and whole numbers from 1 on"),
}


def read_note(folder):
    """What an adapter folder says of itself: {"method", "model_type", "task", "labels", "pooling", "head", "ranks"}.

    For a folder that PEFT wrote it is worked out; the task is None where the adapter fits whatever the base folder is.

    Raises ValueError where the folder is no adapter, or the note says what cannot be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected an adapter")
    if not (folder / NOTE).is_file():
        return _note_of_peft(folder)
    raw, note = files.read_json(folder / NOTE, "note"), {}
    for field, (default, fits, expected) in FIELDS.items():
        note[field] = raw.get(field, default)
        if not fits(note[field]):
            raise ValueError(f"{folder / NOTE}: {field} is {note[field]!r}; expected {expected}")
    return note


def _note_of_peft(folder):
    """The note that a folder written by PEFT would have; transformers' classifiers read BERT's pooler or the last token."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: neither {NOTE} nor {CONFIG}; expected an adapter written by minipeft or PEFT")
    note = {"method": "lora", "model_type": None, "task": None, "labels": [], "pooling": None, "head": None, "ranks": {}}
    task_type = read_config(folder)["task_type"]
    if task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        note["task"] = "lm" if task_type == "CAUSAL_LM" else "seq2seq"
    elif task_type == "SEQ_CLS":
        tensors = read_weights(folder)
        weight = next((name for _, _, c in FAMILIES.values() if (name := f"{STEM}{c}.weight") in tensors), None)
        if weight is None:
            raise ValueError(f"{folder}: the trained head is missing; expected {STEM}classifier.weight or {STEM}score.weight "
                             f"in {WEIGHTS}, as task_type 'SEQ_CLS' says")
        note |= {"task": "classify", "labels": [f"LABEL_{i}" for i in range(len(tensors[weight]))],
                 "pooling": "pooler" if "classifier" in weight else "last"}
    return note


def load_adapter(model, folder, name="default"):
    """Attach a saved adapter to ``model``, which must have the head that the adapter was trained with.

    Raises ValueError for anything missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note = Path(folder), read_note(folder)
    if note["model_type"] not in (None, model.config.model_type):
        raise ValueError(f"{folder}: the adapter was made for a {note['model_type']} model, "
                         f"and this is a {model.config.model_type} model")
    if note["task"] == "classify" and _pooling(model) != note["pooling"]:
        raise ValueError(f"{folder}: the adapter was trained with the pooling {note['pooling']!r}, "
                         f"and this model has {_pooling(model)!r}")
    head = _read_head(model, folder, note)
    if note["method"] == "lora":
        attachment = load_lora(model, folder, name, with_head=head is not None, ranks=note["ranks"])
    else:
        attachment = attach(model, METHODS[note["method"]](), name)
    if head is not None:
        for n, parameter in attachment.head.own.named_parameters():
            parameter.data = np.ascontiguousarray(head[n].T).astype(np.float32)
    return attachment


def _read_head(model, folder, note):
    """{name: array} of the trained head that lies in a file of its own, checked against the model's; None without one."""
    if note["head"] is None and note["method"] != "head":
        return None
    if not (folder / HEAD).is_file():
        raise ValueError(f"{folder}: no {HEAD}; the trained head is missing")
    path = output_map(model)
    if path is None:
        raise ValueError(f"{folder}: the adapter holds a trained head ({HEAD}) and this model has none; load the model with "
                         f"task {note['task']!r}")
    stored = files.read_tensors(folder / HEAD)
    files.check_tensors(folder / HEAD, {n: p.shape[::-1] for n, p in unwrap(model.get(path)).named_parameters()}, stored)
    return stored


def load_with_adapter(model_folder, adapter_folder, rng=None):
    """The base model with the head that an adapter needs, and the adapter on it: (model, attachment)."""
    note, config = read_note(adapter_folder), Path(model_folder) / "config.json"
    task, labels = note["task"], note["labels"]
    if task == "classify" and not (Path(adapter_folder) / NOTE).is_file() and config.is_file():
        own = config_from_hf(files.read_json(config, "config"), config).labels  # PEFT leaves the classes' names to the base
        labels = own if len(own) == len(labels) else labels
    model = load_pretrained(model_folder, task=task, labels=labels or None, pooling=note["pooling"], rng=rng)
    return model, load_adapter(model, adapter_folder)
