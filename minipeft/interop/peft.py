"""Adapters in HF PEFT's format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, read strictly.

PEFT stores LoRA's matrices as lora_A = U^T (r, in) and lora_B = V (out, r), under the names that the modules have in
transformers. GPT-2's q, k and v are one module there, ``c_attn``: reading gives each of the three a copy of A and a third
of B's rows, and writing puts separate adapters into one block-structured A and B, or writes the shared A back.
"""

import re
from pathlib import Path

import numpy as np

from ..methods import LoRA, attach
from ..nn import unwrap
from ..data import files
from .hf import head_kind
from .hf_names import places

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STEM = "base_model.model."
TASK_TYPES = {"classification": "SEQ_CLS", "lm": "CAUSAL_LM", "other": "FEATURE_EXTRACTION",
              "none": "FEATURE_EXTRACTION", "masked_lm": "FEATURE_EXTRACTION"}
CLASSIFIERS = {"bert": "classifier", "gpt2": "score", "llama": "score"}

# Fields of adapter_config.json that change the arithmetic in a way that plain LoRA here does not follow.
UNSUPPORTED = {"use_dora": False, "bias": "none", "lora_bias": False, "layer_replication": None, "use_qalora": False,
               "alora_invocation_tokens": None, "trainable_token_indices": None, "target_parameters": None,
               "use_bdlora": None, "arrow_config": None, "exclude_modules": None, "layers_to_transform": None}


def _modules(model):
    """{name of a linear module in transformers: [our paths], in the order of its output columns}."""
    kind = head_kind(model)
    out = {}
    for path, place in places(model.config, kind).items():
        if path.startswith("blocks.") and path.endswith(".weight") and ".norm." not in path:
            out.setdefault(place.key.removesuffix(".weight"), []).append(path.removesuffix(".weight"))
    return out


# ---- writing ---------------------------------------------------------------------------------------------------


def _fuse(parts, widths):
    """One (A, B, r, alpha) for a fused module from the adapters of its parts; None stands for a part without one.

    Parts that share one U are written with the shared A. Otherwise A stacks the parts' and B holds each part's V in a
    block of its own; every part's scale must then be the same, which the caller has made sure of.
    """
    present = [p for p in parts if p is not None]
    if len(present) == len(parts) and all(p.U.shape == present[0].U.shape and (p.U.data == present[0].U.data).all() for p in present):
        return present[0].U.data.T, np.concatenate([p.V.data for p in parts])  # (r, in), (out, r)
    rank = sum(p.U.shape[1] for p in present)
    b = np.zeros((sum(widths), rank), present[0].V.dtype)
    row = column = 0
    for part, width in zip(parts, widths):
        if part is not None:
            b[row:row + width, column:column + part.U.shape[1]] = part.V.data
            column += part.U.shape[1]
        row += width
    return np.concatenate([p.U.data.T for p in present]), b


def save_lora(attachment, folder, base=None):
    """Write a LoRA attachment as a folder that ``peft.PeftModel.from_pretrained`` loads.

    ``base`` is noted as the base model's folder or name. A head that transformers has no class for (mean pooling) is
    not in this format; `save_adapter` writes it beside.

    Raises ValueError while merged, and where a fused module's parts have different scales.
    """
    if attachment.merged:
        raise ValueError("save: this attachment is merged into the base; unmerge it first, or save the whole model")
    model, method, folder = attachment.model, attachment.method, Path(folder)
    kind, tensors, ranks, alphas = head_kind(model), {}, {}, {}
    for module, paths in _modules(model).items():
        parts = [attachment.wrappers.get(path) for path in paths]
        if all(p is None for p in parts):
            continue
        scales = {p.scale for p in parts if p is not None}
        if len(scales) > 1:
            raise ValueError(f"save: {module} is one module in PEFT, but its parts have the scales {sorted(scales)}; give them one rank and alpha")
        if len(parts) == 1:
            a, b = parts[0].U.data.T, parts[0].V.data
        else:
            a, b = _fuse(parts, [unwrap(model.get(path)).weight.shape[1] for path in paths])
        tensors[f"{STEM}{module}.lora_A.weight"], tensors[f"{STEM}{module}.lora_B.weight"] = a, b
        ranks[module] = a.shape[0]
        alphas[module] = scales.pop() * (ranks[module]**0.5 if method.rank_stabilised else ranks[module])
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config = {
        "peft_type": "LORA", "task_type": TASK_TYPES[kind], "base_model_name_or_path": str(base) if base else None, "inference_mode": True,
        "r": rank, "lora_alpha": _plain(alpha), "lora_dropout": method.dropout, "target_modules": _short(list(ranks), model),
        "fan_in_fan_out": model.config.model_type == "gpt2", "bias": "none", "use_rslora": method.rank_stabilised,
        "use_dora": False, "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if not np.isclose(a, alpha)}, "modules_to_save": None}
    folder.mkdir(parents=True, exist_ok=True)
    if attachment.head is not None and kind == "classification":
        classifier = CLASSIFIERS[model.config.model_type]
        config["modules_to_save"] = [classifier]
        tensors[f"{STEM}{classifier}.weight"] = attachment.head.own.weight.data.T
        if attachment.head.own.bias is not None:
            tensors[f"{STEM}{classifier}.bias"] = attachment.head.own.bias.data
    files.write_tensors(folder / WEIGHTS, tensors)
    files.write_json(folder / CONFIG, config)


def _commonest(values):
    """The commonest value, the smallest of several."""
    counted = list(values.values())
    return max(sorted(set(counted)), key=counted.count)


def _plain(number):
    """A whole number as int, so that the file reads as PEFT writes it."""
    return int(round(number)) if abs(number - round(number)) < 1e-9 * max(1, abs(number)) else float(number)


def _short(names, model):
    """Last parts of module names where they name exactly these modules, else the whole names."""
    last = sorted({name.rpartition(".")[2] for name in names})
    hit = {name for name in _modules(model) if name.rpartition(".")[2] in last}
    outside = any(name.endswith(f".{ending}") for name in ("pooler.dense", "transform.dense") for ending in last)
    return last if hit == set(names) and not outside else sorted(names)


# ---- reading ---------------------------------------------------------------------------------------------------


def _targeted(target, modules):
    """The modules that PEFT's ``target_modules`` names: a regular expression, ``all-linear``, or a list of endings."""
    if target == "all-linear":
        return list(modules)
    if isinstance(target, str):
        return [m for m in modules if re.fullmatch(target, m)]
    return [m for m in modules if any(m == t or m.endswith(f".{t}") for t in target)]


def _pattern(patterns, module, default):
    """PEFT's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def load_lora(model, folder, name="default", with_head=False):
    """Attach the LoRA adapter of a PEFT folder to ``model``.

    ``with_head`` gives the attachment a head of its own even where this file holds none.

    Returns:
        The `Attachment`. Its ``method`` holds the rank, alpha and paths found. On GPT-2 a fused ``c_attn`` becomes
        separate adapters on q, k and v that share U's values, so that the count grows.

    Raises:
        ValueError: no adapter there, a pickle, a setting that plain LoRA does not have, targets that match nothing, or
            tensors that are missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no {CONFIG}; expected a folder written by PEFT or minipeft")
    config = files.read_json(folder / CONFIG, "adapter config")
    where = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{where}: peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    for field, plain in UNSUPPORTED.items():
        if config.get(field, plain) not in (plain, None, False, [], {}):
            raise ValueError(f"{where}: {field} is {config[field]!r}, which plain LoRA does not have (expected {plain!r})")
    if not (folder / WEIGHTS).is_file():
        pickled = " (adapter_model.bin is a pickle and is not opened: it can run any program)" if (folder / "adapter_model.bin").is_file() else ""
        raise ValueError(f"{folder}: no {WEIGHTS}{pickled}")
    modules = _modules(model)
    chosen = _targeted(config.get("target_modules") or [], modules)
    if not chosen:
        raise ValueError(f"{where}: target_modules {config.get('target_modules')!r} match no module of this {model.config.model_type} model")
    ranks = {m: _pattern(config.get("rank_pattern"), m, config.get("r", 8)) for m in chosen}
    alphas = {m: _pattern(config.get("alpha_pattern"), m, config.get("lora_alpha", 8)) for m in chosen}
    tensors = files.read_tensors(folder / WEIGHTS)
    head = _take_head(model, tensors, config, folder)
    files.check_tensors(folder / WEIGHTS, _expected(model, modules, ranks), tensors)
    ours = {path: m for m in chosen for path in modules[m]}
    method = LoRA(rank=config.get("r", 8), alpha=config.get("lora_alpha", 8), targets=list(ours),
                  dropout=config.get("lora_dropout", 0.0), rank_stabilised=bool(config.get("use_rslora")),
                  rank_pattern={p: ranks[m] for p, m in ours.items()}, alpha_pattern={p: alphas[m] for p, m in ours.items()})
    method.trains_head = with_head or head is not None
    attachment = attach(model, method, name)
    for module in chosen:
        a, b = (tensors[f"{STEM}{module}.lora_{x}.weight"].astype(np.float32) for x in "AB")  # (r, in), (out, r)
        for part, path in zip(np.split(b, len(modules[module])), modules[module]):
            wrapper = attachment.wrappers[path]
            wrapper.U.data, wrapper.V.data = a.T.copy(), part.copy()  # (in, r), (out / parts, r)
    if head is not None:
        attachment.head.own.weight.data = head["weight"].T.astype(np.float32).copy()
        if "bias" in head:
            attachment.head.own.bias.data = head["bias"].astype(np.float32)
    return attachment


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
    be there; one that only one of them has is an error.
    """
    kind, classifier = head_kind(model), CLASSIFIERS[model.config.model_type]
    found = {n.rpartition(".")[2]: tensors.pop(n) for n in list(tensors) if re.match(rf"{re.escape(STEM)}(classifier|score)\.(weight|bias)$", n)}
    has_head = kind == "classification"
    if found and not has_head:
        raise ValueError(f"{folder}: the adapter holds a classification head and this model has none of that kind; load the "
                         "model with task 'classify' and the pooling that the adapter was trained with")
    if has_head and not found:
        if classifier in (config.get("modules_to_save") or []):
            raise ValueError(f"{folder}: modules_to_save names {classifier!r} but the file holds no such tensors (the trained head is missing)")
        return None
    if not found:
        return None
    own = unwrap(model.get("head.classifier"))
    expected = {"weight": own.weight.shape[::-1]} | ({"bias": own.bias.shape} if own.bias is not None else {})
    files.check_tensors(f"{folder} head", expected, found)
    return found
