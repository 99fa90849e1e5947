"""LoRA and its kin in HF PEFT's format: lora_A = U^T (r, in) and lora_B = V (out, r) for each module, DoRA's magnitudes beside.

GPT-2's q, k and v are one module there, ``c_attn``: reading gives each of the three a copy of A and a third of B's rows,
and writing puts separate adapters into one block-structured A and B, or writes the shared A back. PiSSA is a LoRA of twice
the rank, whose second half subtracts what its first half started from.
"""

import math
import re
from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, DoRA, LoRA, attach
from ..nn import unwrap
from .peft import (CONFIG, STEM, TARGETS, WEIGHTS, check_tensors, config_fields, fill_head, is_positive, is_regex, is_whole,
                   linear_modules, read_config, read_weights, short_names, take_head, targeted)

# ---- writing ---------------------------------------------------------------------------------------------------


def _factors(wrapper):
    """(U, V, scale) of the low-rank change of a wrapper; None of None."""
    if wrapper is None:
        return None
    if hasattr(wrapper, "U0"):  # PiSSA: U V^T - U_0 V_0^T
        return *wrapper.factors(), 1.0
    return wrapper.U.data, wrapper.V.data, wrapper.scale


def _fuse(parts, widths):
    """(A, B, scale) of one module in PEFT from the (U, V, scale) of its parts; None stands for a part without one.

    Parts that share one U (and a module that is one part here) are written with that U as A. Otherwise A stacks the
    parts' and B holds each part's V in a block of its own. The scale is the first part's; where another part's differs,
    its block is multiplied by the ratio, so that the product stays what it was.
    """
    present = [p for p in parts if p is not None]
    u_first, v_first, first = present[0]
    if len(present) == len(parts) and all(scale == first and np.array_equal(u, u_first) for u, _, scale in present):
        return u_first.T, np.concatenate([v for _, v, _ in parts]), first  # (r, in), (out, r)
    b = np.zeros((sum(widths), sum(u.shape[1] for u, _, _ in present)), v_first.dtype)
    row = column = 0
    for part, width in zip(parts, widths):
        if part is not None:
            u, v, scale = part
            b[row:row + width, column:column + u.shape[1]] = v * b.dtype.type(scale / first)
            column += u.shape[1]
        row += width
    return np.concatenate([u.T for u, _, _ in present]), b, first


def _magnitudes(model, parts, paths):
    """DoRA's m of one module in PEFT, (out,); a part without one has the lengths of its columns."""
    lengths = lambda path: (unwrap(model.get(path)).weight.data ** 2).sum(axis=0) ** 0.5
    return np.concatenate([lengths(path) if part is None else part.m.data for part, path in zip(parts, paths)])


def files_of(attachment, base=None):
    """{file name: content} of a LoRA attachment in PEFT's format; ``base`` is noted as the base model's folder or name."""
    model, method = attachment.model, attachment.method
    tensors, ranks, alphas = {}, {}, {}
    for module, paths in linear_modules(model).items():
        parts = [attachment.wrappers.get(path) for path in paths]
        if any(part is not None for part in parts):
            a, b, scale = _fuse(list(map(_factors, parts)), [unwrap(model.get(path)).weight.shape[1] for path in paths])
            tensors[f"{STEM}{module}.lora_A.weight"], tensors[f"{STEM}{module}.lora_B.weight"] = a, b
            if method.name == "dora":
                tensors[f"{STEM}{module}.lora_magnitude_vector"] = _magnitudes(model, parts, paths)
            ranks[module] = a.shape[0]
            alphas[module] = _plain(scale * method.divisor(a.shape[0]))
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config, head = config_fields(attachment, "LORA", base)
    config |= {
        "r": rank, "lora_alpha": alpha, "lora_dropout": method.dropout, "target_modules": short_names(list(ranks), model),
        "fan_in_fan_out": model.config.model_type == "gpt2", "bias": "none", "use_rslora": method.rank_stabilised,
        "use_dora": method.name == "dora", "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if not math.isclose(a, alpha)}}
    return {WEIGHTS: tensors | head, CONFIG: config}


def _commonest(values):
    """The commonest value, the smallest of several."""
    counted = list(values.values())
    return max(sorted(set(counted)), key=counted.count)


def _plain(number):
    """A whole number as int, so that the file reads as PEFT writes it."""
    return round(number) if math.isclose(number, round(number)) else float(number)


# ---- reading ---------------------------------------------------------------------------------------------------


def _are_patterns(value, fits):
    return value is None or isinstance(value, dict) and all(map(is_regex, value)) and all(map(fits, value.values()))


# The initialisations that leave the base's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
INITIAL = [True, False, None, "gaussian", "eva", "orthogonal", "mica"]

FOLLOWED = {
    "r": (8, is_whole, "a whole number from 1 on"),
    "lora_alpha": (8, is_positive, "a positive number"),
    "lora_dropout": (0.0, lambda v: v == 0 or is_positive(v) and v < 1, "a number from 0 to below 1"),
    "use_dora": (False, lambda v: v is None or isinstance(v, bool), "true or false"),
    "use_rslora": (False, lambda v: v is None or isinstance(v, bool), "true or false"),
    "target_modules": TARGETS,
    "rank_pattern": (None, lambda v: _are_patterns(v, is_whole), "an object of regular expressions and whole numbers from 1 on"),
    "alpha_pattern": (None, lambda v: _are_patterns(v, is_positive), "an object of regular expressions and positive numbers"),
    "bias": ("none", lambda v: v == "none", "'none'"),
    "init_lora_weights": (True, lambda v: v in INITIAL,
                          "true, false, gaussian, eva, orthogonal or mica, which leave the base as it is"),
}

# Fields that make no difference to a trained LoRA.
INDIFFERENT = {"corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "layers_pattern", "loftq_config",
               "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config"}


def _pattern(patterns, module, default):
    """PEFT's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def load(model, folder, name="default", note=None):
    """Attach the LoRA adapter of a PEFT folder to ``model``.

    Args:
        model: a model with the head that the adapter was trained with.
        folder: path. name: the attachment's name.
        note: what the folder says of itself (see `adapter.read_note`), where it was written by us: ``ranks`` {path: rank} of
            the adapters that were written as one, which are taken apart again, and ``head``, where the head lies beside.

    Returns:
        The `Attachment`. Its ``method`` holds the rank, alpha and paths found. Without ``ranks`` GPT-2's fused
        ``c_attn`` becomes separate adapters on q, k and v that share U's values, so that the count grows; ``note`` says so.

    Raises:
        ValueError: no adapter there, a pickle, a setting that plain LoRA does not have, targets that match nothing, or
            tensors that are missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder = Path(folder)
    note = note or {}
    config = read_config(folder, "LORA", FOLLOWED, INDIFFERENT, "plain LoRA")
    tensors, modules = read_weights(folder), linear_modules(model)
    chosen = targeted(config["target_modules"], modules)
    if not chosen:
        raise ValueError(f"{folder / CONFIG}: target_modules {config['target_modules']!r} match no module of this "
                         f"{model.config.model_type} model")
    rank_of = {m: _pattern(config["rank_pattern"], m, config["r"]) for m in chosen}
    head = take_head(model, tensors, config, folder)
    check_tensors(folder / WEIGHTS, _expected(model, modules, rank_of, config["use_dora"]), tensors)
    method = (DoRA if config["use_dora"] else LoRA)(config["r"], config["lora_alpha"], [], config["lora_dropout"],
                                                    rank_stabilised=bool(config["use_rslora"]))
    method.limited = False
    method.trains_head = note.get("head") is not None or head is not None
    factors, magnitudes = {}, {}
    for module in chosen:
        a, b = (tensors[f"{STEM}{module}.lora_{x}.weight"].astype(np.float32) for x in "AB")  # (r, in), (out, r)
        alpha = _pattern(config["alpha_pattern"], module, config["lora_alpha"])
        for path, (u, v) in _split(a, b, modules[module], note.get("ranks") or {}).items():
            factors[path] = u, v
            method.rank_pattern[path] = u.shape[1]
            method.alpha_pattern[path] = alpha * (method.divisor(u.shape[1]) / method.divisor(a.shape[0]))
        if config["use_dora"]:
            m = tensors[f"{STEM}{module}.lora_magnitude_vector"].astype(np.float32)
            magnitudes |= dict(zip(modules[module], np.split(m, len(modules[module]))))
    method.targets = list(factors)
    if note.get("method") == "pissa":
        method = _pissa(method, note)
    attachment = attach(model, method, name)
    for path, (u, v) in factors.items():
        _fill(attachment.wrappers[path], u, v, magnitudes.get(path))
    stored = sum(array.size for array in tensors.values())
    if attachment.trainable_without_head > stored:
        attachment.note = (f"the adapter's c_attn is three maps here, each with a U of its own: "
                           f"{attachment.trainable_without_head:,} parameters, {stored:,} in the file")
    fill_head(attachment, head)
    return attachment


def _split(a, b, paths, ranks):
    """{path: (U, V)} from a module's A (r, in) and B (out, r), whose rows belong to the ``paths`` in equal shares.

    Each path gets a copy of A and its share of B's rows, except where A was stacked from theirs. So it was where ``ranks``
    says so and B is indeed zero outside the blocks: then each gets its own rows of A and its own block.
    """
    shares = np.split(b, len(paths))  # (out / parts, r) each
    ends = np.cumsum([ranks.get(path, 0) for path in paths])
    if len(paths) > 1 and ends[-1] == a.shape[0]:
        rows = {path: slice(end - ranks.get(path, 0), end) for path, end in zip(paths, ends)}
        blocks = {path: share[:, rows[path]] for path, share in zip(paths, shares)}
        if sum(map(np.count_nonzero, blocks.values())) == np.count_nonzero(b):
            return {path: (a[rows[path]].T, blocks[path]) for path in paths if path in ranks}
    return {path: (a.T, share) for path, share in zip(paths, shares)}


def _pissa(method, note):
    """The PiSSA that a LoRA of twice its rank came from."""
    pissa = METHODS["pissa"](**note["settings"] | {"targets": method.targets})
    pissa.rank_pattern = {path: rank // 2 for path, rank in method.rank_pattern.items()}
    pissa.alpha_pattern, pissa.trains_head, pissa.limited = {}, method.trains_head, False
    return pissa


def _fill(wrapper, u, v, m):
    """Put U (in, r), V (out, r) and DoRA's m (out,) or None into a wrapper."""
    if hasattr(wrapper, "U0"):
        half = u.shape[1] // 2
        wrapper.U0, wrapper.V0 = u[:, half:].copy(), -v[:, half:]
        u, v = u[:, :half], v[:, :half]
    wrapper.U.data, wrapper.V.data = u.copy(), v.copy()
    if m is not None:
        wrapper.m.data = m.copy()


def _expected(model, modules, ranks, magnitudes):
    """{tensor name: shape} of the LoRA matrices, and of DoRA's magnitudes."""
    out = {}
    for module, rank in ranks.items():
        shapes = [unwrap(model.get(path)).weight.shape for path in modules[module]]
        out[f"{STEM}{module}.lora_A.weight"] = (rank, shapes[0][0])
        out[f"{STEM}{module}.lora_B.weight"] = (sum(s[1] for s in shapes), rank)
        if magnitudes:
            out[f"{STEM}{module}.lora_magnitude_vector"] = (sum(s[1] for s in shapes),)
    return out
