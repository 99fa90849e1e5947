"""Hugging Face model folders: ``load_pretrained`` reads one, ``save_pretrained`` writes one that transformers loads."""

import re
import shutil
from pathlib import Path

import numpy as np

from ..data import files
from ..methods.attach import output_map
from ..methods.nf4 import quantised
from ..models import ClassificationHead, Decoder, Encoder, LMHead, MaskedLMHead, Seq2Seq, Seq2SeqLMHead
from ..nn import unwrap
from .hf_config import config_from_hf, config_to_hf, refuse, task_of
from .hf_names import FAMILIES, body_prefix, places, shapes_on_disk, to_ours, to_theirs

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt",
                   "vocab.json", "tokenizer.model", "added_tokens.json")
TASKS = ("classify", "lm", "mlm", "seq2seq", "none")

# Tensors that some folders hold and that carry nothing we need: index buffers, and copies of tied weights.
HARMLESS = re.compile(r"(^|\.)(position_ids|masked_bias|attn\.bias|rotary_emb\.inv_freq)$|^cls\.seq_relationship\.|"
                      r"^cls\.predictions\.decoder\.|^(encoder|decoder)\.embed_tokens\.|"
                      r"\.EncDecAttention\.relative_attention_bias\.")


# ---- heads -----------------------------------------------------------------------------------------------------


def head_kind(model):
    """Which kind of head a model has, in the words of `hf_names.places`."""
    head = unwrap(model.head)
    if head is None:
        return "none"
    if isinstance(head, MaskedLMHead):
        return "masked_lm"
    if isinstance(head, Seq2SeqLMHead):
        return "seq2seq"
    if isinstance(head, LMHead):
        return "lm"
    plain = "pooler" if model.config.model_type == "bert" else "last"
    return "classification" if head.pooling == plain else "other"


def make_head(model, task, rng):
    """Put a fresh head on ``model``, for a task of `TASKS`; for ``classify`` its config gives labels and pooling."""
    config, table = model.config, model.embed.tokens.weight
    if task == "classify":
        model.head = ClassificationHead(config.hidden_size, len(config.labels), config.pooling,
                                        bias=config.model_type == "bert", dropout=config.hidden_dropout, rng=rng,
                                        std=config.initializer_range)
    elif task == "lm":
        model.head = LMHead(config, table, rng)
    elif task == "seq2seq":
        model.head = Seq2SeqLMHead(config, table, rng)
    elif task == "mlm":
        model.head = MaskedLMHead(config, table, rng)
    else:
        model.head = None
    return model


def make_model(config, task="none", rng=None):
    """A model of this config with a head for ``task``; ``rng`` draws the weights, None leaves zeros."""
    if config.encoder_decoder:
        if task not in ("seq2seq", "none"):
            raise ValueError(f"task {task}: T5 is an encoder-decoder, which is loaded with task seq2seq or none; "
                             "use an encoder (BERT) or a decoder (GPT-2, LLaMA)")
        return make_head(Seq2Seq(config, rng), task, rng)
    if task == "seq2seq":
        raise ValueError("task seq2seq: writing one text from another needs an encoder-decoder (T5)")
    if task == "lm" and not config.causal:
        raise ValueError("task lm: BERT is an encoder and cannot continue text; use a decoder (GPT-2, LLaMA)")
    if task == "mlm" and config.causal:
        raise ValueError("task mlm: filling masks needs an encoder (BERT), this model is a decoder")
    return make_head((Decoder if config.causal else Encoder)(config, rng), task, rng)


def _folder_pooling(folder, config, raw):
    """How a folder's states are pooled: its own classification head's way, else ``1_Pooling``, else the mean (decoders: last)."""
    if config.pooling:
        return config.pooling
    if config.causal:
        return "last"
    if task_of(raw.get("architectures")) == "classify":
        return "pooler"
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    modes = [name for name, on in files.read_json(path, "pooling file").items()
             if name.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise ValueError(f"{path}: expected one of {', '.join(known)} to be true, got {', '.join(modes) or 'none'}; "
                         "choose with --pooling mean, cls or pooler")
    return known[modes[0]]


# ---- reading ---------------------------------------------------------------------------------------------------


def read_folder_tensors(folder):
    """{name: array} of a folder's safetensors, whole or in shards, with a clear refusal of everything else."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return files.read_tensors(folder / "model.safetensors")
    if index.is_file():
        where = files.read_json(index, "index").get("weight_map")
        if not isinstance(where, dict):
            raise ValueError(f"{index}: expected an object named weight_map")
        out = {}
        for shard in sorted(set(where.values())):
            if not (folder / shard).is_file():
                raise ValueError(f"{folder}: the shard {shard} named in {index.name} is missing")
            for name, array in files.read_tensors(folder / shard).items():
                if where.get(name) != shard:
                    raise ValueError(f"{folder / shard}: tensor {name!r} is not where {index.name} says")
                out[name] = array
        missing = [name for name in where if name not in out]
        if missing:
            raise ValueError(f"{folder}: missing tensors: {files.listed(missing)}")
        return out
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if pickles:
        raise ValueError(f"{folder}: {files.listed(pickles)} is a pickle, and opening a pickle can run any program hidden "
                         "in it; convert it to model.safetensors first")
    raise ValueError(f"{folder}: no model.safetensors and no model.safetensors.index.json")


def _canonical(tensors, config, kind):
    """Tensor names as the table has them: today's names of norms, and the body's prefix as ``kind`` wants it."""
    prefix, own = body_prefix(config, kind), FAMILIES[config.model_type][1]
    body = re.compile(r"^(embeddings|encoder|pooler|wte|wpe|h|ln_f|embed_tokens|layers|norm)\.")
    out = {}
    for name, array in tensors.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        bare = name.removeprefix(own)
        if HARMLESS.search(bare):
            continue
        out[prefix + bare if body.match(bare) else bare] = array
    return out


def load_pretrained(folder, task=None, labels=None, pooling=None, rng=None):
    """Load a model from a Hugging Face folder (``config.json`` and ``model.safetensors``, whole or in shards).

    Args:
        folder: path; or one of the package's own models, ``toy:encoder``, ``toy:decoder``, ``toy:seq2seq``.
        task: ``classify``, ``lm``, ``mlm``, ``seq2seq``, ``none`` (no head), or None for what the folder itself is.
        labels: names of the classes for ``classify``. A folder that classifies into as many classes keeps its trained
            head; any other gets a fresh one.
        pooling: ``mean``, ``cls``, ``pooler`` or ``last``; default: the folder's own (see the README).
        rng: numpy.random.Generator that draws a fresh head; default: seed 0.

    Returns:
        An `Encoder`, `Decoder` or `Seq2Seq` in evaluation mode, its weights float32.

    Raises:
        ValueError: no config, an unknown or unsupported architecture, or tensors that are missing, unexpected,
            mis-shaped or unreadable; the message names them.
    """
    folder = files.model_folder(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; "
                         "expected a Hugging Face model folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    raw = files.read_json(folder / "config.json", "config")
    config = config_from_hf(raw, folder / "config.json")
    own_task = "classify" if config.pooling else task_of(raw.get("architectures"))  # a pooling is noted beside a head of ours
    task = task or own_task
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if own_task == task == "mlm" and not config.tie_word_embeddings:
        refuse(folder / "config.json", "tie_word_embeddings", False, "True, for filling masks")
    keep_head = task == own_task
    if task == "classify":
        own_labels, labels = config.labels, tuple(labels or config.labels)
        if len(labels) < 2:
            raise ValueError(f"{folder}: a classifier needs the names of at least 2 classes; labels are {list(labels)}")
        own_pooling = _folder_pooling(folder, config, raw) if pooling is None or keep_head else None
        keep_head = keep_head and pooling in (None, own_pooling) and len(labels) == len(own_labels)
        config = config.with_(labels=labels, pooling=pooling or own_pooling)
    else:
        config = config.with_(pooling=None)
    return _filled(folder, make_model(config, task, None), keep_head, rng or np.random.default_rng(0)).eval()


def _filled(folder, model, keep_head, rng):
    """Fill ``model`` with the folder's tensors; a head that the folder does not have is drawn from ``rng``."""
    kind = head_kind(model)
    tensors = _canonical(read_folder_tensors(folder), model.config, kind)
    beside = {}  # the head that lies in a file of its own
    if kind == "other" and keep_head:
        path = folder / "head.safetensors"  # files.read_tensors says so where it is missing
        beside = {f"head.{name}": array.T for name, array in files.read_tensors(path).items()}
        files.check_tensors(path, {p: v.shape for p, v in model.named_parameters() if p.startswith("head.")}, beside)
    table = {path: place for path, place in places(model.config, kind).items()
             if keep_head or not path.startswith("head.") or path.startswith("head.pooler")}
    if not keep_head and "head.pooler.weight" in table and table["head.pooler.weight"].key not in tensors:
        raise ValueError(f"{folder}: pooling pooler needs a trained pooler, and this folder has none; use pooling mean or cls")
    if kind == "masked_lm" and not keep_head:
        raise ValueError(f"{folder}: missing tensors: cls.predictions.* (this folder has no masked-LM head)")
    if not keep_head and kind != "none":
        make_head(model, kind if kind in ("lm", "seq2seq") else "classify", rng)
    parameters = dict(model.named_parameters())
    expected = shapes_on_disk(table, {path: p.data for path, p in parameters.items()})
    model.unused = _set_aside(tensors, expected)
    files.check_tensors(folder, expected, tensors)
    uses = {}  # a tensor is let go when its last user has it, so that a model is never in memory twice
    for path, place in table.items():
        uses[place.key] = uses.get(place.key, 0) + 1
    for path, place in table.items():
        uses[place.key] -= 1
        tensor = tensors[place.key] if uses[place.key] else tensors.pop(place.key)
        parameters[path].data = to_ours(place, tensor).astype(np.float32, copy=False)
    for path, array in beside.items():
        parameters[path].data = np.ascontiguousarray(array, dtype=np.float32)
    return model


def _set_aside(tensors, expected):
    """Take tensors of heads that this model does not use out of ``tensors``; returns the pooler's, to be written back."""
    heads = re.compile(r"^(bert\.)?pooler\.|^cls\.|^classifier\.|^score\.|^lm_head\.")
    unused = {name: tensors.pop(name) for name in list(tensors) if name not in expected and heads.search(name)}
    return {name.removeprefix("bert."): array for name, array in unused.items() if "pooler." in name}


# ---- writing ---------------------------------------------------------------------------------------------------


def arrays_of(model):
    """{path: array} of a model's parameters; where a merged attachment has trained an output map of its own, that map's."""
    out = {path: p.data for path, p in model.named_parameters()}
    for attachment in vars(model).get("attachments", {}).values():
        if attachment.merged and attachment.active and attachment.head is not None:
            out |= {f"{output_map(model)}.{name}": p.data for name, p in attachment.head.own.named_parameters()}
    return out


def tensors_of(model):
    """{tensor name: array} of a model in Hugging Face's layout, without the heads that transformers has no class for."""
    kind = head_kind(model)
    table = places(model.config, kind)
    arrays = {path: array for path, array in arrays_of(model).items() if path in table}
    out = to_theirs(table, arrays)
    prefix = body_prefix(model.config, kind)
    for name, array in getattr(model, "unused", {}).items():
        out.setdefault(prefix + name, array)
    return out


def save_pretrained(model, folder, tokenizer_from=None):
    """Write a model as a Hugging Face folder that ``transformers`` loads.

    Args:
        model: Encoder, Decoder or Seq2Seq. Attached methods are not written; merge or save them. Where one is merged, the head
            that it has trained is the one that is written.
        folder: created if missing; files in it are replaced one by one, each atomically, the config last.
        tokenizer_from: folder whose tokenizer files are copied along.

    A classification head that transformers has no class for (mean pooling) is written beside the bare model, as
    ``head.safetensors``; `load_pretrained` finds it.
    """
    folder, kind = Path(folder), head_kind(model)
    config = config_to_hf(model.config, kind)
    if quantised(model):
        raise ValueError(f"{folder}: this model is stored in 4 bits, which this format does not have; dequantise it first")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / "model.safetensors", tensors_of(model))
    if kind == "other":
        head = {path[5:]: np.ascontiguousarray(array.T) for path, array in arrays_of(model).items() if path.startswith("head.")}
        files.write_tensors(folder / "head.safetensors", head)
    else:
        (folder / "head.safetensors").unlink(missing_ok=True)
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, folder)
    files.write_json(folder / "config.json", config)


def copy_tokenizer(source, folder):
    """Copy the tokenizer's files from one folder to another."""
    source, folder = files.model_folder(source), Path(folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            with files.atomic(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
