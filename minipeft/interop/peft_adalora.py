"""AdaLoRA in HF PEFT's format: lora_A = U^T (r, in), lora_E = lambda (r, 1), lora_B = V (out, r) for each module.

PEFT scales by alpha / (r + 0.00001); the alpha that is written makes that our alpha / r. Of GPT-2's ``c_attn`` the parts are
stacked in A and E and stand in blocks of B; reading gives each part a copy of A and E and its share of B's rows.
"""

from pathlib import Path

import numpy as np

from ..data import files
from ..methods import AdaLoRA, attach
from ..nn import unwrap
from .peft import (CONFIG, STEM, TARGETS, WEIGHTS, check_tensors, config_fields, fill_head, is_positive, is_whole, linear_modules,
                   read_config, read_weights, short_names, take_head, targeted)

TINY = 1e-5  # what PEFT adds to the rank before it divides by it


def files_of(attachment, base=None):
    """{file name: content} of an AdaLoRA attachment; ``base`` is noted as the base model's folder or name.

    The scale of a module whose rank is not ``init_r`` stands in its lambda, as PEFT has one rank and one alpha for all.
    """
    model, method, found = attachment.model, attachment.method, {}
    for module, paths in linear_modules(model).items():
        parts = [attachment.wrappers.get(path) for path in paths]
        if any(part is not None for part in parts):
            found[module] = parts, [unwrap(model.get(path)).weight.shape[1] for path in paths]
    ranks = {module: sum(part.lambdas.size for part in parts if part is not None) for module, (parts, _) in found.items()}
    rank, scale = max(ranks.values()), next(part.scale for parts, _ in found.values() for part in parts if part is not None)
    config, tensors = config_fields(attachment, "ADALORA", base)
    for module, (parts, widths) in found.items():
        present = [part for part in parts if part is not None]
        a, e, b = np.zeros((rank, present[0].U.shape[0]), np.float32), np.zeros((rank, 1), np.float32), np.zeros(
            (sum(widths), rank), np.float32)
        row = column = 0
        for part, width in zip(parts, widths):
            if part is not None:
                own = slice(column, column + part.lambdas.size)
                a[own], b[row:row + width, own] = part.U.data.T, part.V.data
                e[own, 0] = part.lambdas.data if part.scale == scale else part.lambdas.data * np.float32(part.scale / scale)
                column += part.lambdas.size
            row += width
        tensors |= {f"{STEM}{module}.lora_{name}": array for name, array in (("A", a), ("B", b), ("E", e))}
    config |= {"init_r": rank, "target_r": method.target_rank, "r": rank, "lora_alpha": scale * (rank + TINY),
               "lora_dropout": method.dropout, "target_modules": short_names(list(found), model), "bias": "none",
               "fan_in_fan_out": model.config.model_type == "gpt2", "beta1": method.beta1, "beta2": method.beta2, "tinit": 0,
               "tfinal": 0, "deltaT": method.interval, "total_step": 1, "orth_reg_weight": method.orthogonality}
    return {WEIGHTS: tensors, CONFIG: config}


FOLLOWED = {
    "init_r": (12, is_whole, "a whole number from 1 on"), "lora_alpha": (8, is_positive, "a positive number"),
    "lora_dropout": (0.0, lambda v: v == 0 or is_positive(v) and v < 1, "a number from 0 to below 1"), "target_modules": TARGETS,
    "bias": ("none", lambda v: v == "none", "'none'"),
    "rank_pattern": (None, lambda v: v is None or isinstance(v, dict), "an object or null"),
}
INDIFFERENT = {"r", "target_r", "tinit", "tfinal", "deltaT", "total_step", "beta1", "beta2", "orth_reg_weight", "fan_in_fan_out",
               "init_lora_weights", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "corda_config",
               "eva_config", "lora_ga_config", "layers_pattern", "ensure_weight_tying", "use_rslora", "use_dora"}


def load(model, folder, name="default", note=None):
    """Attach the AdaLoRA of a PEFT folder to ``model``.

    Raises ValueError for a value that cannot be followed, targets that match nothing, and tensors that are missing,
    unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note = Path(folder), note or {}
    config = read_config(folder, "ADALORA", FOLLOWED, INDIFFERENT, "AdaLoRA")
    tensors, modules = read_weights(folder), linear_modules(model)
    chosen = targeted(config["target_modules"], modules)
    if not chosen:
        raise ValueError(f"{folder / CONFIG}: target_modules {config['target_modules']!r} match no module of this "
                         f"{model.config.model_type} model")
    head = take_head(model, tensors, config, folder)
    ranks = {module: _rank(config, module) for module in chosen}
    check_tensors(folder / WEIGHTS, _expected(model, modules, ranks), tensors)
    factors, own = {}, note.get("ranks") or {}
    for module in chosen:
        a, b, e = (tensors[f"{STEM}{module}.lora_{part}"].astype(np.float32) for part in "ABE")
        start, scale = 0, config["lora_alpha"] / (ranks[module] + TINY)
        for path, share in zip(modules[module], np.split(b, len(modules[module]))):
            if own and path not in own:
                continue
            rows = slice(start, start + own[path]) if own else slice(None)
            factors[path] = a[rows].T, e[rows, 0], share[:, rows], scale
            start += own.get(path, 0)
    method = AdaLoRA(config["init_r"], 1.0, list(factors), config["lora_dropout"])
    method.rank_pattern = {path: len(weights) for path, (_, weights, _, _) in factors.items()}
    method.alpha_pattern = {path: scale * len(weights) for path, (_, weights, _, scale) in factors.items()}
    method.limited, method.trains_head = False, head is not None or note.get("head") is not None
    attachment = attach(model, method, name)
    for path, (u, weights, v, _) in factors.items():
        wrapper = attachment.wrappers[path]
        wrapper.U.data, wrapper.lambdas.data, wrapper.V.data = u.copy(), weights.copy(), v.copy()
    fill_head(attachment, head)
    return attachment


def _rank(config, module):
    """A module's rank: after pruning PEFT notes for each module a list of which triplets are left, or their number."""
    for key, kept in (config["rank_pattern"] or {}).items():
        if f"{module}." in f"{key}.":
            return sum(map(bool, kept)) if isinstance(kept, list) else int(kept)
    return config["init_r"]


def _expected(model, modules, ranks):
    """{tensor name: shape} of the three parts."""
    out = {}
    for module, rank in ranks.items():
        shapes = [unwrap(model.get(path)).weight.shape for path in modules[module]]
        out |= {f"{STEM}{module}.lora_A": (rank, shapes[0][0]), f"{STEM}{module}.lora_E": (rank, 1),
                f"{STEM}{module}.lora_B": (sum(shape[1] for shape in shapes), rank)}
    return out
