"""Saving and loading what an attachment has learned: the tensors in the format of the library people use, and a note beside them.

The note, ``minipeft.json``, says what no other library's file says: the method with its settings, the labels' names, how
states are pooled, the task. A head that transformers has no class for lies in ``head.safetensors``. What no other library
has a format for lies in ``attachment.safetensors``, under our own names.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, Fusion, attach
from ..methods.attach import all_or_nothing, none_active, output_map
from ..methods.nf4 import quantise, quantised
from ..models.heads import POOLINGS
from ..nn import unwrap
from . import adapterhub, peft_adalora, peft_ia3, peft_lora, peft_prompts, peft_selective
from .hf import head_kind, load_pretrained
from .hf_config import config_from_hf
from .hf_names import FAMILIES
from .peft import COMMON, CONFIG, STEM, WEIGHTS, NotRepresentable, check_tensors, checked, is_names, read_raw_config, read_weights

NOTE, HEAD, OWN = "minipeft.json", "head.safetensors", "attachment.safetensors"
SIZES = ("hidden_size", "num_hidden_layers", "num_decoder_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size")
TASKS = {"classification": "classify", "other": "classify", "lm": "lm", "masked_lm": "mlm", "seq2seq": "seq2seq",
         "none": "none"}
KINDS = METHODS | {Fusion.name: Fusion}               # a fusion needs its adapters on the model that it is loaded to
SAVED = [name for name in KINDS if name != "full"]    # the methods whose result is an adapter and not a model
# The module that knows a method's format in another library; the methods that are not here have our own.
WRITERS = ({name: peft_lora for name in ("lora", "rslora", "lora_plus", "dora", "pissa")}
           | {name: peft_selective for name in ("bitfit", "top_k", "layernorm")}
           | {name: adapterhub for name in ("houlsby", "pfeiffer", "parallel", "compacter")}
           | {"adalora": peft_adalora, "ia3": peft_ia3, "prefix": peft_prompts, "prompt": peft_prompts})
PEFT_READERS = {"LORA": peft_lora, "LN_TUNING": peft_selective, "ADALORA": peft_adalora, "IA3": peft_ia3,
                "PREFIX_TUNING": peft_prompts, "PROMPT_TUNING": peft_prompts}


# ---- writing ---------------------------------------------------------------------------------------------------


def save_adapter(attachment, folder, base=None):
    """Write an attachment into a folder, so that `load_adapter` and, where it has the method, HF PEFT or AdapterHub load it.

    Args:
        attachment: one whose base is kept (after full fine-tuning save the model).
        folder: created if missing; an adapter that was there before is replaced as a whole.
        base: the base model's folder or name, noted for readers.

    Returns the reason why no other library can hold this attachment, or None where one can.

    Raises ValueError while merged or after full fine-tuning, and OSError where the folder cannot be written.
    """
    folder, model, method = Path(folder), attachment.model, attachment.method
    if method.name == "full":
        raise ValueError("save: full trained the base itself; save the model with save_pretrained")
    kind, config = head_kind(model), model.config
    if not attachment.merged:
        method.finish(attachment)
        method = attachment.method
    try:
        contents, reason = exported(attachment, base), None
    except NotRepresentable as error:
        contents, reason = {OWN: _own_arrays(attachment)} if _own_arrays(attachment) else {}, str(error)
    if attachment.head is not None and (reason or kind != "classification"):
        contents[HEAD] = {n: p.data.T for n, p in attachment.head.own.named_parameters()}
    contents[NOTE] = {
        "method": method.name, "settings": _settings(method), "format": "own" if reason else "library",
        "model_type": config.model_type, "task": TASKS[kind],
        "labels": list(config.labels) if TASKS[kind] == "classify" else [],
        "pooling": _pooling(model), "head": HEAD if HEAD in contents else None, "shape": _shape(config),
        "quantised": quantised(model),
        "ranks": {path: w.U.shape[1] * (2 if hasattr(w, "U0") else 1) for path, w in attachment.wrappers.items()
                  if hasattr(w, "U")},
        "base": str(base) if base else None, "words_crc32": words_of(model)}
    files.write_folder(folder, contents)
    theirs = {WEIGHTS, CONFIG, adapterhub.WEIGHTS, adapterhub.HEAD_WEIGHTS, adapterhub.HEAD_CONFIG}
    for name in {HEAD, OWN, *theirs} - set(contents):
        (folder / name).unlink(missing_ok=True)
    return reason


def exported(attachment, base=None):
    """{file name: content} of an attachment in the format of the library that has its method.

    Raises `NotRepresentable`, a ValueError with the reason, where none has; ValueError while merged.
    """
    if attachment.merged:
        raise ValueError("save: this attachment is merged into the base; unmerge it first, or save the whole model")
    writer = WRITERS.get(attachment.method.name)
    if writer is None:
        raise NotRepresentable(f"save: neither PEFT nor AdapterHub has a format for {attachment.method.name}")
    return writer.files_of(attachment, base)


def save_peft(attachment, folder, base=None):
    """Write a folder that ``peft.PeftModel.from_pretrained`` (or AdapterHub, for adapters) loads, and nothing beside it.

    A head that transformers has no class for (mean pooling) is not in these formats; `save_adapter` writes it beside.

    Raises ValueError while merged or where the library cannot hold it, and OSError where the folder cannot be written.
    """
    files.write_folder(folder, exported(attachment, base))


def _settings(method):
    """A method's fields as JSON can hold them, with which `load_adapter` makes it again."""
    fields = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}
    return json.loads(json.dumps({name: value for name, value in fields.items() if name not in method.unsaved},
                                 default=lambda value: value.item() if isinstance(value, np.generic) else list(value)))


def _own_arrays(attachment):
    """{name: array} of everything that belongs to an attachment but the head: what is trained, and what is fixed with it."""
    head = {id(p) for p in attachment.head.own.parameters()} if attachment.head is not None else set()
    names = [path for path, p in attachment.named_parameters().items() if id(p) not in head]
    arrays = attachment.arrays()
    return {name: arrays[name] for name in names} | _fixed_arrays(attachment)


def _fixed_arrays(attachment):
    """{name: array} of what wrappers hold besides their parameters, such as which entries a mask has."""
    return {f"{path}.{name}": getattr(w, name) for path, w in attachment.wrappers.items() for name in getattr(w, "fixed", ())}


def _shape(config):
    """The sizes of a base that decide whether an adapter fits it; a mask's numbers, say, fit any larger matrix too."""
    return {name: getattr(config, name) for name in SIZES}


def words_of(model):
    """A CRC-32 of the base's word vectors, as float32: bases that were trained apart differ in it, but not one whose blocks
    alone were changed. No method whose result is an adapter trains them."""
    with none_active(model):
        return f"{zlib.crc32(np.ascontiguousarray(unwrap(model.embed.tokens).weight.data, np.float32)):08x}"


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
    "settings": ({}, lambda v: isinstance(v, dict), "an object of the method's settings"),
    "shape": ({}, lambda v: isinstance(v, dict) and set(v) <= set(SIZES), f"an object of {', '.join(SIZES)}"),
    "quantised": (None, lambda v: v is None or isinstance(v, dict) and set(v) == {"targets", "double"}
                  and (v["targets"] is None or is_names(v["targets"])) and isinstance(v["double"], bool),
                  "null or the targets and double of a base in 4 bits"),
    "format": ("library", lambda v: v in ("library", "own"), "'library' or 'own'"),
    "words_crc32": (None, lambda v: v is None or isinstance(v, str), "a checksum of the base's word vectors or null"),
    "ranks": ({}, lambda v: isinstance(v, dict) and all(type(rank) is int and rank > 0 for rank in v.values()),
              "an object of paths and whole numbers from 1 on"),
}


def read_note(folder):
    """What an adapter folder says of itself: the fields of `FIELDS`.

    For a folder that PEFT wrote it is worked out; the task is None where the adapter fits whatever the base folder is.

    Raises ValueError where the folder is no adapter, or the note says what cannot be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; expected an adapter")
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
    note = {field: default for field, (default, _, _) in FIELDS.items()}
    if adapterhub.recognises(read_raw_config(folder)):
        return note | adapterhub.note_of(folder)
    task_type = checked(folder, read_raw_config(folder), COMMON)["task_type"]
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

    The attachment's ``note`` says so where the model has other word vectors than the base that the adapter was trained on.

    Raises ValueError for anything missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note = Path(folder), read_note(folder)
    if note["model_type"] not in (None, model.config.model_type):
        raise ValueError(f"{folder}: the adapter was made for a {note['model_type']} model, "
                         f"and this is a {model.config.model_type} model; load it on the base that it was made for")
    for size, stored in note["shape"].items():
        if stored != getattr(model.config, size):
            raise ValueError(f"{folder}: the adapter was made for a base whose {size} is {stored}, and this model's is "
                             f"{getattr(model.config, size)}; load it on the base that it was made for")
    if note["task"] == "classify" and _pooling(model) != note["pooling"]:
        raise ValueError(f"{folder}: the adapter was trained with the pooling {note['pooling']!r}, "
                         f"and this model has {_pooling(model)!r}")
    head = _read_head(model, folder, note)
    with all_or_nothing(model):
        if note["format"] == "own" or note["method"] == "head":
            attachment = _load_own(model, folder, name, note)
        else:
            attachment = load_peft(model, folder, name, note)
            if note["method"] is not None:
                attachment.method = _method_of(folder, note)
    if head is not None:
        for n, parameter in attachment.head.own.named_parameters():
            parameter.data = np.ascontiguousarray(head[n].T).astype(np.float32)
    if note["words_crc32"] not in (None, words_of(model)):
        attachment.note = "; ".join([*filter(None, [attachment.note]), f"{folder} was trained on a base with other word vectors "
                                     "than this model's, for which its numbers may mean nothing"])
    return attachment


def load_peft(model, folder, name="default", note=None):
    """Attach the adapter of a folder that PEFT, AdapterHub or `save_peft` wrote to ``model``.

    ``note`` is what the folder says of itself (see `read_note`), where it was written by us.

    Raises ValueError for a type of adapter that is unknown and for anything missing, unexpected or mis-shaped; the model
    is then unchanged.
    """
    raw = read_raw_config(folder)
    if adapterhub.recognises(raw):
        with all_or_nothing(model):
            return adapterhub.load(model, folder, name, note)
    kind = raw.get("peft_type")
    if kind not in PEFT_READERS:
        raise ValueError(f"{Path(folder) / CONFIG}: peft_type is {kind!r}; expected one of {', '.join(PEFT_READERS)}")
    reader = peft_selective if peft_selective.recognises(raw) else PEFT_READERS[kind]
    with all_or_nothing(model):
        return reader.load(model, folder, name, note)


def _method_of(folder, note):
    """The method that a note tells of, with its settings."""
    try:
        method = KINDS[note["method"]](**note["settings"])
    except TypeError as error:
        raise ValueError(f"{folder / NOTE}: settings {note['settings']!r} do not fit {note['method']} ({error})") from None
    method.trains_head = note["head"] is not None or note["format"] == "library" and method.trains_head
    return method


def _load_own(model, folder, name, note):
    """Attach the method that a note tells of and fill it from our own file."""
    method = _method_of(folder, note)
    stored = files.read_tensors(folder / OWN) if note["method"] != "head" else {}
    method.known = stored  # what was drawn or chosen, such as which entries a mask has
    attachment = attach(model, method, name)
    expected = _own_arrays(attachment)
    check_tensors(folder / OWN, {key: array.shape for key, array in expected.items()}, stored)
    attachment.load_arrays(attachment.arrays() | stored)
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
    check_tensors(folder / HEAD, {n: p.shape[::-1] for n, p in unwrap(model.get(path)).named_parameters()}, stored)
    return stored


def load_with_adapter(model_folder, adapter_folder, rng=None):
    """The base model with the head that an adapter needs, and the adapter on it: (model, attachment)."""
    note, config = read_note(adapter_folder), Path(model_folder) / "config.json"
    task, labels = note["task"], note["labels"]
    if task == "classify" and not (Path(adapter_folder) / NOTE).is_file() and config.is_file():
        own = config_from_hf(files.read_json(config, "config"), config).labels  # PEFT leaves the classes' names to the base
        labels = own if len(own) == len(labels) else labels
    model = load_pretrained(model_folder, task=task, labels=labels or None, pooling=note["pooling"], rng=rng)
    if note["quantised"] is not None:  # it was trained beside a base in 4 bits
        quantise(model, **note["quantised"])
    return model, load_adapter(model, adapter_folder)
