"""Adapters in AdapterHub's format: ``adapter_config.json`` and ``adapter.safetensors``, and a trained head in files of its own.

The tensors stand under the names that AdapterHub's places have in transformers' models, with the adapter's name inside.
Compacter's shared matrices stand once, outside the layers.
"""

from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, attach
from ..methods.attach import output_map
from ..methods.shapes import join_paths
from ..nn import unwrap
from .hf import head_kind
from .hf_names import ARCHITECTURES, FAMILIES, body_prefix
from .peft import CONFIG, NotRepresentable, check_tensors

WEIGHTS, HEAD_WEIGHTS, HEAD_CONFIG = "adapter.safetensors", "model_head.safetensors", "head_config.json"
VERSION = "adapters.1.3.0"  # the version whose format this is
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish", "tanh": "tanh"}

# What a config says of each kind of adapter, the rest being the same for all.
COMMON = {"adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True,
          "factorized_phm_rule": False, "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
          "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None, "is_parallel": False,
          "learn_phm": True, "leave_out": [], "ln_after": False, "ln_before": False, "mh_adapter": False,
          "non_linearity": "relu", "original_ln_after": True, "original_ln_before": False, "output_adapter": False,
          "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False, "phm_rank": 1,
          "reduction_factor": 16, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True,
          "stochastic_depth": 0.0, "use_gating": False}
KINDS = {"houlsby": {}, "pfeiffer": {"original_ln_before": True},
         "parallel": {"is_parallel": True, "init_weights": "mam_adapter"}, "compacter": {"phm_layer": True}}
# Fields that hold sizes and places, and those that make no difference to a trained adapter's arithmetic.
FREE = {"cross_adapter", "leave_out", "mh_adapter", "output_adapter", "non_linearity", "reduction_factor", "scaling", "phm_dim"}
INDIFFERENT = {"dropout", "init_weights", "init_weights_seed", "phm_c_init", "phm_init_range", "hypercomplex_nonlinearity",
               "learn_phm", "inv_adapter_reduction_factor", "stochastic_depth"}
SWITCHES = {"attn": "mh_adapter", "cross": "cross_adapter", "mlp": "output_adapter"}


def _places(model):
    """{our join: the name of its adapters' place in AdapterHub's model}."""
    config, out = model.config, {}
    prefix = body_prefix(config, head_kind(model))
    for join in join_paths(config):
        *side, _, number, part, _ = join.split(".")
        if config.model_type == "bert":
            out[join] = f"{prefix}encoder.layer.{number}.{'attention.' if part == 'attn' else ''}output.adapters"
        elif config.encoder_decoder:
            layer = ["attn", "cross", "mlp"].index(part) if side == ["decoder"] else ["attn", "mlp"].index(part)
            out[join] = f"{side[0]}.block.{number}.layer.{layer}.adapters"
        else:
            stack = "h" if config.model_type == "gpt2" else "layers"
            out[join] = f"{prefix}{stack}.{number}.{'attention' if part == 'attn' else 'output'}_adapters.adapters"
    return out


def _shared_name(model, name):
    """The name of Compacter's shared matrices."""
    prefix = body_prefix(model.config, head_kind(model))
    return f"{prefix}shared_parameters.{name}.phm_rule"


def _layer(model, join):
    """AdapterHub's number of a join's layer: an encoder-decoder's decoder goes on after its encoder."""
    number = int(join.split(".")[-3])
    return number + (model.config.num_hidden_layers if join.startswith("decoder.") else 0)


def _tensors(wrapper, stem):
    """{tensor name: (Parameter, whether it is transposed)} of one adapter."""
    down, up = wrapper.mlp.down, wrapper.mlp.up
    if hasattr(down, "s"):
        return {f"{stem}.{theirs}.{theirs_part}": (getattr(part, ours), False)
                for theirs, part in (("adapter_down.0", down), ("adapter_up", up))
                for theirs_part, ours in (("W_left", "s"), ("W_right", "t"), ("b", "bias"))}
    return {f"{stem}.{theirs}.{name}": (getattr(part, name), name == "weight")
            for theirs, part in (("adapter_down.0", down), ("adapter_up", up)) for name in ("weight", "bias")}


# ---- writing ---------------------------------------------------------------------------------------------------


def files_of(attachment, base=None):
    """{file name: content} of an attachment of adapters in AdapterHub's format, under the attachment's name.

    Raises `NotRepresentable` where norms are trained along, or attention and feed-forward have adapters in different layers.
    """
    model, method, name = attachment.model, attachment.method, attachment.name
    if attachment.base:
        raise NotRepresentable("save: AdapterHub stores adapters, and the norms that were trained along have no place there")
    wrappers = {path: w for path, w in attachment.wrappers.items() if w is not attachment.head}
    config, tensors = _config(model, method, wrappers), {}
    for join, wrapper in wrappers.items():
        for key, (parameter, transposed) in _tensors(wrapper, f"{_places(model)[join]}.{name}").items():
            tensors[key] = parameter.data.T if transposed else parameter.data
    if method.name == "compacter":
        tensors[_shared_name(model, name)] = next(iter(wrappers.values())).mlp.down.A.data
    kind, family = head_kind(model), model.config.model_type
    about = {"hidden_size": model.config.hidden_size, "model_class": ARCHITECTURES.get((family, kind), "PreTrainedModel"),
             "model_name": str(base) if base else None, "model_type": family, "version": VERSION}
    contents = {WEIGHTS: tensors, CONFIG: {"config": config, "name": name, **about}}
    if attachment.head is not None and kind == "classification":
        labels = {label: i for i, label in enumerate(model.config.labels)}
        contents[HEAD_CONFIG] = {"label2id": labels, "num_labels": len(labels), **about}
        contents[HEAD_WEIGHTS] = {f"{FAMILIES[family][2]}.{n}": p.data.T for n, p in attachment.head.own.named_parameters()}
    return contents


def _config(model, method, wrappers):
    """The inner config: which places have adapters, of which kind and size."""
    layers = {}
    for join in wrappers:
        layers.setdefault(join.split(".")[-2], set()).add(_layer(model, join))
    everywhere = {}
    for join in join_paths(model.config):
        everywhere.setdefault(join.split(".")[-2], set()).add(_layer(model, join))
    left = {part: everywhere[part] - layers[part] for part in layers}
    leave_out = set().union(*left.values())
    if any(left[part] != leave_out & everywhere[part] for part in layers):
        raise NotRepresentable("save: AdapterHub leaves out whole layers; here attention and feed-forward have adapters in "
                               "different ones")
    width, inner = model.config.hidden_size, method.bottleneck
    factor = width / inner
    factor = int(factor) if factor == int(factor) else factor if int(width // factor) == inner else width / (inner + 0.5)
    return COMMON | KINDS[method.name] | {
        **{SWITCHES[part]: True for part in layers}, "leave_out": sorted(leave_out), "reduction_factor": factor,
        "non_linearity": ACTIVATIONS.get(method.activation, method.activation), "scaling": float(method.scale),
        **({"phm_dim": method.num_factors} if method.name == "compacter" else {})}


# ---- reading ---------------------------------------------------------------------------------------------------


def recognises(raw):
    """Whether an ``adapter_config.json`` is AdapterHub's."""
    return isinstance(raw.get("config"), dict) and "peft_type" not in raw


def note_of(folder):
    """What a folder of AdapterHub tells of the task: {"task", "labels", "pooling", "model_type"}."""
    raw = files.read_json(Path(folder) / CONFIG, "adapter config")
    family, kind = raw.get("model_type"), str(raw.get("model_class"))
    if kind.endswith("ForSequenceClassification"):
        head = Path(folder) / HEAD_CONFIG
        if not head.is_file():
            raise ValueError(f"{folder}: the trained head is missing; expected {HEAD_CONFIG} and {HEAD_WEIGHTS}, as model_class "
                             f"{kind!r} says")
        ids = files.read_json(head, "head config").get("label2id") or {}
        return {"model_type": family, "task": "classify", "labels": sorted(ids, key=ids.get),
                "pooling": "pooler" if family == "bert" else "last"}
    task = {"GPT2LMHeadModel": "lm", "LlamaForCausalLM": "lm", "T5ForConditionalGeneration": "seq2seq"}.get(kind)
    return {"model_type": family, "task": task}


def _method(model, raw, path):
    """The method that a config describes. Raises ValueError, naming the field, for what ours do not have."""
    config = COMMON | raw["config"]
    kind = ("parallel" if config["is_parallel"] is True else "compacter" if config["phm_layer"] is True
            else "pfeiffer" if config["original_ln_before"] is True else "houlsby")
    for field, value in config.items():
        expected = (COMMON | KINDS[kind]).get(field)
        if field not in FREE | INDIFFERENT and value != expected:
            raise ValueError(f"{path}: {field} is {value!r}, which is not supported; expected {expected!r} in a {kind} adapter")
    names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if config["non_linearity"] not in names:
        raise ValueError(f"{path}: non_linearity is {config['non_linearity']!r}; expected one of {', '.join(names)}")
    for field in ("reduction_factor", "scaling"):
        if not (type(config[field]) in (int, float) and config[field] > 0):
            raise ValueError(f"{path}: {field} is {config[field]!r}; expected a positive number")
    if not (isinstance(config["leave_out"], list) and all(type(i) is int for i in config["leave_out"])):
        raise ValueError(f"{path}: leave_out is {config['leave_out']!r}; expected a list of layers' numbers")
    joins = [join for join in join_paths(model.config)
             if config[SWITCHES[join.split(".")[-2]]] and _layer(model, join) not in config["leave_out"]]
    if not joins:
        raise ValueError(f"{path}: no place has an adapter (mh_adapter, cross_adapter and output_adapter are false, or "
                         "leave_out names every layer)")
    inner = max(1, int(model.config.hidden_size // config["reduction_factor"]))
    more = {"num_factors": config["phm_dim"]} if kind == "compacter" else {}
    return METHODS[kind](bottleneck=inner, activation=names[config["non_linearity"]], targets=joins,
                         scale=float(config["scaling"]), **more)


def load(model, folder, name="default", note=None):
    """Attach the adapter of an AdapterHub folder to ``model``.

    Raises ValueError for another base, a setting that our adapters do not have, and for tensors that are missing, unexpected
    or mis-shaped; the model is then unchanged.
    """
    folder, note, path = Path(folder), note or {}, Path(folder) / CONFIG
    raw = files.read_json(path, "adapter config")
    for field, ours in (("model_type", model.config.model_type), ("hidden_size", model.config.hidden_size)):
        if raw.get(field) not in (None, ours):
            raise ValueError(f"{path}: {field} is {raw[field]!r}, and this model's is {ours!r}; the adapter was made for "
                             "another base")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "pytorch_adapter.bin").is_file()
        reason = " (pytorch_adapter.bin is a pickle and is not opened: it can run any program)" if pickled else ""
        raise ValueError(f"{folder}: no {WEIGHTS}{reason}")
    method, tensors, theirs = _method(model, raw, path), files.read_tensors(folder / WEIGHTS), raw.get("name") or "default"
    head = _head(model, folder)
    method.trains_head = head is not None or note.get("head") is not None
    if note.get("task") == "classify" and not method.trains_head:
        raise ValueError(f"{folder}: no {HEAD_WEIGHTS}; the trained head is missing")
    attachment = attach(model, method, name)
    wrappers = {join: w for join, w in attachment.wrappers.items() if w is not attachment.head}
    places, found = _places(model), {}
    for join, wrapper in wrappers.items():
        found |= _tensors(wrapper, f"{places[join]}.{theirs}")
    if method.name == "compacter":
        found[_shared_name(model, theirs)] = (next(iter(wrappers.values())).mlp.down.A, False)
    shapes = {key: p.shape[::-1] if transposed else p.shape for key, (p, transposed) in found.items()}
    check_tensors(folder / WEIGHTS, shapes, tensors)
    for key, (parameter, transposed) in found.items():
        array = tensors[key].astype(np.float32)
        parameter.data = array.T.copy() if transposed else array.copy()
    for part, parameter in (attachment.head.own.named_parameters() if head is not None else ()):
        parameter.data = head[part].T.astype(np.float32).copy()
    return attachment


def _head(model, folder):
    """{"weight", "bias"} of the trained classification head in a folder, or None where there is none.

    AdapterHub also stores a language model's head, which it does not train where it is tied to the word vectors: that must
    be the model's own.
    """
    if not (folder / HEAD_WEIGHTS).is_file():
        return None
    stored, kind = files.read_tensors(folder / HEAD_WEIGHTS), head_kind(model)
    if kind in ("lm", "seq2seq") and set(stored) <= {"lm_head.weight", "lm_head.bias"}:
        own = model.embed.tokens.weight.data if output_map(model) is None else unwrap(model.get("head.output")).weight.data.T
        if not np.array_equal(stored.get("lm_head.weight"), own):
            raise ValueError(f"{folder / HEAD_WEIGHTS}: lm_head.weight is not this model's; the adapter was trained with "
                             "another head")
        return None
    if kind != "classification":
        raise ValueError(f"{folder}: the adapter holds a classification head and this model has none of that kind; load the "
                         "model with task 'classify' and the pooling that the adapter was trained with")
    prefix = f"{FAMILIES[model.config.model_type][2]}."
    own = dict(unwrap(model.get("head.classifier")).named_parameters())
    check_tensors(folder / HEAD_WEIGHTS, {prefix + part: p.shape[::-1] for part, p in own.items()}, stored)
    return {name.removeprefix(prefix): array for name, array in stored.items()}
