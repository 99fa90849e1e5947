"""Hugging Face model folders: ``load_pretrained`` reads one, ``save_pretrained`` writes one that transformers loads."""

import re
import shutil
from pathlib import Path

import numpy as np

from ..models import ClassificationHead, Decoder, Encoder, LMHead, MaskedLMHead, TransformerConfig
from ..nn import unwrap
from ..data import files
from .hf_names import ARCHITECTURES, FAMILIES, body_prefix, places, shapes_on_disk, to_ours, to_theirs

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt",
                   "vocab.json", "tokenizer.model", "added_tokens.json")
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new",
                    "silu": "silu", "swish": "silu", "relu": "relu", "tanh": "tanh"}
TASKS = ("classify", "lm", "mlm", "none")

# Tensors that some folders hold and that carry nothing we need: index buffers, and copies of tied weights.
HARMLESS = re.compile(r"(^|\.)(position_ids|masked_bias|attn\.bias|rotary_emb\.inv_freq)$|^cls\.seq_relationship\.|"
                      r"^cls\.predictions\.decoder\.")


# ---- config.json -----------------------------------------------------------------------------------------------


def _refuse(where, name, value, allowed):
    raise ValueError(f"{where}: {name} is {value!r}, which is not supported (supported: {allowed})")


def config_from_hf(raw, where="config.json"):
    """A TransformerConfig from the contents of a ``config.json``; ValueError names any field that we cannot honour."""
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{where}: unknown model_type {family!r}; known: {', '.join(FAMILIES)}")
    rename = ({"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_inner": "intermediate_size", "n_positions": "max_position_embeddings",
               "activation_function": "hidden_act", "layer_norm_epsilon": "layer_norm_eps", "attn_pdrop":
               "attention_probs_dropout_prob", "resid_pdrop": "hidden_dropout_prob"} if family == "gpt2" else {})
    known = {rename.get(name, name): value for name, value in raw.items()}
    if family == "gpt2" and known.get("intermediate_size") is None:
        known["intermediate_size"] = 4 * known.get("hidden_size", 0)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "max_position_embeddings"):
        if not isinstance(known.get(name), int) or known[name] < 1:
            raise ValueError(f"{where}: expected a whole number of at least 1 for {name}, got {known.get(name)!r}")
    act = known.get("hidden_act", {"bert": "gelu", "gpt2": "gelu_new", "llama": "silu"}[family])
    if act not in ACTIVATION_NAMES:
        _refuse(where, "the activation", act, ", ".join(ACTIVATION_NAMES))
    for name, supported in (("rope_scaling", None), ("position_embedding_type", "absolute"),
                            ("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True),
                            ("add_cross_attention", False), ("is_decoder", False)):
        if name in raw and raw[name] != supported and not _plain_rope(name, raw[name]):
            _refuse(where, name, raw[name], repr(supported))
    rope = raw.get("rope_parameters") or {}
    if not _plain_rope("rope_scaling", rope):
        _refuse(where, "rope_parameters", rope, "rope_type 'default'")
    labels = raw.get("id2label") or {}
    ours = raw.get("minipeft") or {}
    eos = known.get("eos_token_id")
    llama = family == "llama"
    return TransformerConfig(
        model_type=family, vocab_size=known["vocab_size"], hidden_size=known["hidden_size"],
        num_hidden_layers=known["num_hidden_layers"], num_attention_heads=known["num_attention_heads"],
        intermediate_size=known["intermediate_size"], max_position_embeddings=known["max_position_embeddings"],
        num_key_value_heads=known.get("num_key_value_heads"), head_dim=known.get("head_dim"),
        hidden_act=ACTIVATION_NAMES[act], type_vocab_size=known.get("type_vocab_size", 2) if family == "bert" else 0,
        norm_eps=known.get("rms_norm_eps", 1e-6) if llama else known.get("layer_norm_eps", 1e-12 if family == "bert" else 1e-5),
        rope_theta=float(rope.get("rope_theta", known.get("rope_theta", 10000.0))),
        attention_bias=bool(known.get("attention_bias", False)) if llama else True,
        attention_out_bias=bool(known.get("attention_bias", False)) if llama else True,
        mlp_bias=bool(known.get("mlp_bias", False)) if llama else True,
        tie_word_embeddings=bool(known.get("tie_word_embeddings", not llama)),
        hidden_dropout=0.0 if llama else float(known.get("hidden_dropout_prob", 0.1)),
        attention_dropout=float(known.get("attention_dropout", 0.0) if llama else known.get("attention_probs_dropout_prob", 0.1)),
        embedding_dropout=0.0 if llama else float(known.get("embd_pdrop", known.get("hidden_dropout_prob", 0.1))),
        initializer_range=float(known.get("initializer_range", 0.02)), pad_token_id=known.get("pad_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        labels=tuple(labels[key] for key in sorted(labels, key=int)), pooling=ours.get("pooling"), extra=dict(raw))


def _plain_rope(name, value):
    """Whether a rope setting is the plain one (newer transformers write it out)."""
    return name == "rope_scaling" and (not value or value.get("rope_type", value.get("type")) in (None, "default"))


def config_to_hf(config, kind):
    """The contents of a ``config.json``: the folder's own fields where it had one, and what this model is now."""
    head_class = ARCHITECTURES[(config.model_type, kind)]
    out = dict(config.extra)
    out.pop("torch_dtype", None)
    common = {"model_type": config.model_type, "architectures": [head_class], "dtype": "float32",
              "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_word_embeddings,
              "initializer_range": config.initializer_range, "pad_token_id": config.pad_token_id,
              "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id}
    if config.model_type == "gpt2":
        own = {"n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads,
               "n_inner": config.intermediate_size, "n_positions": config.max_position_embeddings,
               "activation_function": config.hidden_act, "layer_norm_epsilon": config.norm_eps,
               "attn_pdrop": config.attention_dropout, "resid_pdrop": config.hidden_dropout,
               "embd_pdrop": config.embedding_dropout}
    else:
        own = {"hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers,
               "num_attention_heads": config.num_attention_heads, "intermediate_size": config.intermediate_size,
               "max_position_embeddings": config.max_position_embeddings, "hidden_act": config.hidden_act}
        if config.model_type == "bert":
            own |= {"type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps,
                    "hidden_dropout_prob": config.hidden_dropout,
                    "attention_probs_dropout_prob": config.attention_dropout}
        else:
            own |= {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
                    "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
                    "attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias,
                    "attention_dropout": config.attention_dropout}
    out |= common | own
    if config.labels:
        out["id2label"] = {str(i): name for i, name in enumerate(config.labels)}
        out["label2id"] = {name: i for i, name in enumerate(config.labels)}
    out.pop("minipeft", None)
    if kind == "other":
        out["minipeft"] = {"pooling": config.pooling, "head": "head.safetensors"}
    return out


# ---- heads -----------------------------------------------------------------------------------------------------


def head_kind(model):
    """Which kind of head a model has, in the words of `hf_names.places`."""
    head = unwrap(model.head)
    if head is None:
        return "none"
    if isinstance(head, MaskedLMHead):
        return "masked_lm"
    if isinstance(head, LMHead):
        return "lm"
    plain = "pooler" if model.config.model_type == "bert" else "last"
    return "classification" if head.pooling == plain else "other"


def make_head(model, task, rng):
    """Put a fresh head on ``model``: ``classify`` (its config gives labels and pooling), ``lm``, ``mlm`` or ``none``."""
    config, table = model.config, model.embed.tokens.weight
    if task == "classify":
        model.head = ClassificationHead(config.hidden_size, len(config.labels), config.pooling,
                                        bias=config.model_type == "bert", dropout=config.hidden_dropout, rng=rng,
                                        std=config.initializer_range)
    elif task == "lm":
        model.head = LMHead(config, table, rng)
    elif task == "mlm":
        model.head = MaskedLMHead(config, table, rng)
    else:
        model.head = None
    return model


def make_model(config, task="none", rng=None):
    """A model of this config with a head for ``task``; ``rng`` draws the weights, None leaves zeros."""
    if task == "lm" and not config.causal:
        raise ValueError("task lm: BERT is an encoder and cannot continue text; use a decoder (GPT-2, LLaMA)")
    if task == "mlm" and config.causal:
        raise ValueError("task mlm: filling masks needs an encoder (BERT), this model is a decoder")
    return make_head((Decoder if config.causal else Encoder)(config, rng), task, rng)


def _task_of(architectures):
    name = (architectures or [""])[0]
    if name.endswith("ForSequenceClassification"):
        return "classify"
    if name.endswith("ForMaskedLM") or name.endswith("ForPreTraining"):
        return "mlm"
    if name.endswith("LMHeadModel") or name.endswith("ForCausalLM"):
        return "lm"
    return "none"


def _folder_pooling(folder, config, raw):
    """How a folder's states are pooled: its own classification head's way, else ``1_Pooling``, else the mean (decoders: last)."""
    if config.pooling:
        return config.pooling
    if config.causal:
        return "last"
    if _task_of(raw.get("architectures")) == "classify":
        return "pooler"
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        pooling = files.read_json(path, "pooling file")
        if pooling.get("pooling_mode_cls_token"):
            return "cls"
    return "mean"


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
        bare = name[len(own):] if name.startswith(own) else name
        if HARMLESS.search(bare):
            continue
        out[prefix + bare if body.match(bare) else bare] = array
    return out


def load_pretrained(folder, task=None, labels=None, pooling=None, rng=None):
    """Load a model from a Hugging Face folder (``config.json`` and ``model.safetensors``, whole or in shards).

    Args:
        folder: path.
        task: ``classify``, ``lm``, ``mlm``, ``none`` (no head), or None for what the folder itself is.
        labels: names of the classes for ``classify``. A folder that classifies into as many classes keeps its trained
            head; any other gets a fresh one.
        pooling: ``mean``, ``cls``, ``pooler`` or ``last``; default: the folder's own (see the README).
        rng: numpy.random.Generator that draws a fresh head; default: seed 0.

    Returns:
        An `Encoder` or `Decoder` in evaluation mode, its weights float32.

    Raises:
        ValueError: no config, an unknown or unsupported architecture, or tensors that are missing, unexpected,
            mis-shaped or unreadable; the message names them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected a Hugging Face model folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    raw = files.read_json(folder / "config.json", "config")
    config = config_from_hf(raw, folder / "config.json")
    own_task = _task_of(raw.get("architectures"))
    if config.pooling and (folder / "head.safetensors").is_file():
        own_task = "classify"
    task = task or own_task
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    own_pooling, own_labels = _folder_pooling(folder, config, raw), config.labels
    labels = tuple(labels) if labels else own_labels
    pooling = pooling or own_pooling
    config = config.with_(labels=labels if task == "classify" else own_labels, pooling=pooling if task == "classify" else None)
    keep_head = task == own_task and (task != "classify" or (pooling == own_pooling and len(labels) == len(own_labels)))
    return _filled(folder, make_model(config, task, None), keep_head, rng or np.random.default_rng(0)).eval()


def _filled(folder, model, keep_head, rng):
    """Fill ``model`` with the folder's tensors; a head that the folder does not have is drawn from ``rng``."""
    kind = head_kind(model)
    tensors = _canonical(read_folder_tensors(folder), model.config, kind)
    beside = {}  # the head that lies in a file of its own
    if kind == "other" and keep_head:
        path = folder / "head.safetensors"
        beside = {f"head.{name}": array.T for name, array in files.read_tensors(path).items()}
        files.check_tensors(path, {p: v.shape for p, v in model.named_parameters() if p.startswith("head.")}, beside)
    table = {path: place for path, place in places(model.config, kind).items()
             if keep_head or not path.startswith("head.") or (path.startswith("head.pooler") and place.key in tensors)}
    if kind == "masked_lm" and not keep_head:
        raise ValueError(f"{folder}: missing tensors: cls.predictions.* (this folder has no masked-LM head)")
    if not keep_head and kind != "none":
        make_head(model, {"lm": "lm"}.get(kind, "classify"), rng)
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
    """Take tensors of heads that this model does not use out of ``tensors``; returns the pooler's, which are written back on saving."""
    heads = re.compile(r"^(bert\.)?pooler\.|^cls\.|^classifier\.|^score\.|^lm_head\.")
    unused = {name: tensors.pop(name) for name in list(tensors) if name not in expected and heads.search(name)}
    return {name.removeprefix("bert."): array for name, array in unused.items() if "pooler." in name}


# ---- writing ---------------------------------------------------------------------------------------------------


def tensors_of(model):
    """{tensor name: array} of a model in Hugging Face's layout, without the heads that transformers has no class for."""
    kind = head_kind(model)
    table = places(model.config, kind)
    arrays = {path: p.data for path, p in model.named_parameters() if path in table}
    out = to_theirs(table, arrays)
    prefix = body_prefix(model.config, kind)
    for name, array in getattr(model, "unused", {}).items():
        out.setdefault(prefix + name, array)
    return out


def save_pretrained(model, folder, tokenizer_from=None):
    """Write a model as a Hugging Face folder that ``transformers`` loads.

    Args:
        model: Encoder or Decoder. Attached methods are not written; merge or save them.
        folder: created if missing; files in it are replaced one by one, each atomically, the config last.
        tokenizer_from: folder whose tokenizer files are copied along.

    A classification head that transformers has no class for (mean pooling) is written beside the bare model, as
    ``head.safetensors``; `load_pretrained` finds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = head_kind(model)
    files.write_tensors(folder / "model.safetensors", tensors_of(model))
    if kind == "other":
        head = {path[5:]: np.ascontiguousarray(p.data.T) for path, p in model.named_parameters() if path.startswith("head.")}
        files.write_tensors(folder / "head.safetensors", head)
    else:
        (folder / "head.safetensors").unlink(missing_ok=True)
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, folder)
    files.write_json(folder / "config.json", config_to_hf(model.config, kind))


def copy_tokenizer(source, folder):
    """Copy the tokenizer's files from one folder to another."""
    source, folder = Path(source), Path(folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            with files.atomic(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
