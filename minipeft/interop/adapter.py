"""Saving and loading what an attachment has learned: the tensors in the format of the library people use, and a note beside them.

The note, ``minipeft.json``, says what no PEFT file says: the labels' names, how states are pooled, the task. A head
that transformers has no class for lies in ``head.safetensors``.
"""

from pathlib import Path

import numpy as np

from ..methods import METHODS, attach
from ..data import files
from .hf import head_kind, load_pretrained
from .peft import CLASSIFIERS, CONFIG, STEM, WEIGHTS, load_lora, save_lora

NOTE, HEAD = "minipeft.json", "head.safetensors"


def save_adapter(attachment, folder, base=None):
    """Write an attachment into a folder, so that `load_adapter` and, for LoRA, HF PEFT load it.

    Args:
        attachment: one that trains nothing of the base in place (else save the model).
        folder: created if missing. base: the base model's folder or name, noted for readers.
    """
    folder, model = Path(folder), attachment.model
    if attachment.base:
        raise ValueError(f"save: {attachment.method.name} trained the base itself; save the model with save_pretrained")
    if attachment.merged:
        raise ValueError("save: this attachment is merged into the base; unmerge it first, or save the whole model")
    folder.mkdir(parents=True, exist_ok=True)
    kind, config = head_kind(model), model.config
    classify = kind in ("classification", "other")
    if attachment.method.name == "lora":
        save_lora(attachment, folder, base)
    if attachment.head is not None and not (attachment.method.name == "lora" and kind == "classification"):
        files.write_tensors(folder / HEAD, {n: p.data.T for n, p in attachment.head.own.named_parameters()})
    files.write_json(folder / NOTE, {
        "method": attachment.method.name, "task": "classify" if classify else "lm" if kind == "lm" else "none",
        "labels": list(config.labels) if classify else [], "pooling": config.pooling, "base": str(base) if base else None})


def read_note(folder):
    """What an adapter folder says of itself: {"method", "task", "labels", "pooling"}; worked out for one that PEFT wrote.

    Raises ValueError where the folder is no adapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected an adapter")
    if (folder / NOTE).is_file():
        note = {"labels": [], "pooling": None, **files.read_json(folder / NOTE, "note")}
        if note.get("method") not in METHODS:
            raise ValueError(f"{folder / NOTE}: unknown method {note.get('method')!r}; known: {', '.join(METHODS)}")
        return note
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: neither {NOTE} nor {CONFIG}; expected an adapter written by minipeft or PEFT")
    config = files.read_json(folder / CONFIG, "adapter config")
    task = {"SEQ_CLS": "classify", "CAUSAL_LM": "lm"}.get(config.get("task_type"), "none")
    labels = []
    if task == "classify" and (folder / WEIGHTS).is_file():
        tensors = files.read_tensors(folder / WEIGHTS)
        rows = [a.shape[0] for name, a in tensors.items() if name in {f"{STEM}{c}.weight" for c in CLASSIFIERS.values()}]
        labels = [f"LABEL_{i}" for i in range(rows[0])] if rows else []
    return {"method": "lora", "task": task, "labels": labels, "pooling": None}


def load_adapter(model, folder, name="default"):
    """Attach a saved adapter to ``model``, which must have the head that the adapter was trained with.

    Raises ValueError for anything missing, unexpected or mis-shaped.
    """
    folder, note = Path(folder), read_note(folder)
    if note["method"] == "lora":
        attachment = load_lora(model, folder, name, with_head=(folder / HEAD).is_file())
    else:
        attachment = attach(model, METHODS[note["method"]](), name)
    if attachment.head is not None and (folder / HEAD).is_file():
        stored, own = files.read_tensors(folder / HEAD), attachment.head.own
        expected = {n: p.shape[::-1] for n, p in own.named_parameters()}
        try:
            files.check_tensors(folder / HEAD, expected, stored)
        except ValueError:
            attachment.detach()
            raise
        for n, parameter in own.named_parameters():
            parameter.data = np.ascontiguousarray(stored[n].T).astype(np.float32)
    elif attachment.head is not None and note["method"] == "head":
        attachment.detach()
        raise ValueError(f"{folder}: no {HEAD}; the trained head is missing")
    return attachment


def load_with_adapter(model_folder, adapter_folder, rng=None):
    """The base model with the head that an adapter needs, and the adapter on it: (model, attachment)."""
    note = read_note(adapter_folder)
    task = None if note["task"] == "none" else note["task"]
    model = load_pretrained(model_folder, task=task, labels=note["labels"] or None, pooling=note["pooling"] if task == "classify" else None, rng=rng)
    return model, load_adapter(model, adapter_folder)
