"""Prefixes and soft prompts in HF PEFT's formats: one tensor ``prompt_embeddings``, and the head under ``base_model.``.

A prefix is stored as (P, 2 L H' K): for each layer its keys and then its values. A prompt is (P, D); of an encoder-decoder
(2 P, D), of which the first half stands before the source and the other is not used.
"""

from pathlib import Path

import numpy as np

from ..data import files
from ..methods import METHODS, attach
from ..methods.shapes import core_widths
from .peft import (CONFIG, WEIGHTS, NotRepresentable, check_tensors, config_fields, fill_head, is_whole, read_config,
                   read_raw_config, read_weights, take_head)

TENSOR, STEM = "prompt_embeddings", "base_model."
TYPES = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}


def files_of(attachment, base=None):
    """{file name: content} of a prefix or a soft prompt; ``base`` is noted as the base model's folder or name."""
    model, method = attachment.model, attachment.method
    config = model.config
    if not method.shift_positions and not config.encoder_decoder:
        raise NotRepresentable("save: PEFT counts the virtual tokens in the words' positions, and this attachment does not")
    if method.name == "prefix" and config.encoder_decoder:
        raise NotRepresentable("save: in an encoder-decoder PEFT's prefix acts on the decoder's self-attention only; this one "
                               "acts on the encoder and on cross-attention too")
    fields, tensors = config_fields(attachment, "PREFIX_TUNING" if method.name == "prefix" else "PROMPT_TUNING", base, STEM)
    fields |= {"num_virtual_tokens": method.num_virtual_tokens, "num_layers": config.num_hidden_layers,
               "num_transformer_submodules": 2 if config.encoder_decoder else 1}
    if method.name == "prefix":
        parts = [part.data for path in core_widths(config) for part in attachment.wrappers[path].prefix()]
        tensors[TENSOR] = np.concatenate(parts, axis=1)  # (P, 2 L H' K)
        fields |= {"token_dim": config.num_key_value_heads * config.head_dim, "num_attention_heads": config.num_key_value_heads,
                   "encoder_hidden_size": config.hidden_size, "prefix_projection": False}
    else:
        prompt = attachment.wrappers["embed.tokens"].prompt.data
        tensors[TENSOR] = np.concatenate([prompt, np.zeros_like(prompt)]) if config.encoder_decoder else prompt
        fields |= {"token_dim": config.hidden_size, "num_attention_heads": config.num_attention_heads,
                   "prompt_tuning_init": "RANDOM"}
    return {WEIGHTS: tensors, CONFIG: fields}


WHOLE_OR_NONE = (None, lambda v: v is None or is_whole(v), "a whole number from 1 on, or null")
FOLLOWED = {"num_virtual_tokens": (None, is_whole, "a whole number from 1 on"), "num_layers": WHOLE_OR_NONE,
            "token_dim": WHOLE_OR_NONE}
# How a prompt was started, and that a network made a prefix in training, matters no more.
INDIFFERENT = {"encoder_hidden_size", "num_attention_heads", "num_transformer_submodules", "prefix_projection",
               "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"}


def load(model, folder, name="default", note=None):
    """Attach the prefix or soft prompt of a PEFT folder to ``model``.

    Raises ValueError for a prefix on an encoder-decoder (PEFT's acts elsewhere than ours), and for tensors that are
    missing, unexpected or mis-shaped; the model is then unchanged.
    """
    folder, note, config = Path(folder), note or {}, model.config
    kind = read_raw_config(folder)["peft_type"]
    fields = read_config(folder, kind, FOLLOWED, INDIFFERENT, f"a {TYPES[kind]}")
    tensors, tokens = read_weights(folder), fields["num_virtual_tokens"]
    if kind == "PREFIX_TUNING" and config.encoder_decoder:
        raise ValueError(f"{folder / CONFIG}: in an encoder-decoder PEFT's prefix acts on the decoder's self-attention only; "
                         "ours acts on every attention, and cannot hold this one")
    width = config.num_key_value_heads * config.head_dim if kind == "PREFIX_TUNING" else config.hidden_size
    for field, ours in (("num_layers", config.num_hidden_layers), ("token_dim", width)):  # else another shape might fit by chance
        if fields[field] not in (None, ours):
            raise ValueError(f"{folder / CONFIG}: {field} is {fields[field]}, and this model's is {ours}; the adapter was made "
                             "for another base")
    head = take_head(model, tensors, fields, folder, STEM)
    widths = core_widths(config)
    shape = (tokens, 2 * sum(widths.values())) if kind == "PREFIX_TUNING" else (tokens * (2 if config.encoder_decoder else 1),
                                                                                config.hidden_size)
    check_tensors(folder / WEIGHTS, {TENSOR: shape}, tensors)
    values = tensors[TENSOR].astype(np.float32)
    method = _method(folder, note, kind, tokens)
    if method.num_virtual_tokens != tokens:
        raise ValueError(f"{folder / CONFIG}: num_virtual_tokens is {tokens}, and the note beside it says "
                         f"{method.num_virtual_tokens}")
    method.trains_head = head is not None or note.get("head") is not None
    attachment = attach(model, method, name)
    if kind == "PREFIX_TUNING":
        parts = np.split(values, 2 * len(widths), axis=1)  # keys, values, keys, values, ...
        for i, path in enumerate(widths):
            wrapper = attachment.wrappers[path]
            wrapper.keys.data, wrapper.values.data = parts[2 * i].copy(), parts[2 * i + 1].copy()
    else:
        attachment.wrappers["embed.tokens"].prompt.data = values[:tokens].copy()
    fill_head(attachment, head)
    return attachment


def _method(folder, note, kind, tokens):
    """The method of a folder: with the settings of the note beside it, where there is one."""
    name = TYPES[kind]
    if note.get("method") not in (None, name):
        raise ValueError(f"{folder / CONFIG}: peft_type is {kind!r}, and the note beside it says {note['method']}")
    try:
        return METHODS[name](**note["settings"]) if note.get("method") else METHODS[name](tokens)
    except TypeError as error:
        raise ValueError(f"{folder}: the note's settings {note['settings']!r} do not fit {name} ({error})") from None
