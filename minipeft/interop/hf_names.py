"""Which tensor of a Hugging Face folder is which parameter here, for BERT, GPT-2, LLaMA and T5.

Our weights are (in, out) and q, k and v are separate. Hugging Face stores a Linear as (out, in), and GPT-2's
``c_attn`` as one (D, 3 D) map whose three parts are q, k and v. Only this table knows.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a parameter stands on disk: the tensor's name, whether it is transposed, and which third of it is meant."""

    key: str
    transposed: bool = False
    third: int | None = None


def _linear(table, ours, theirs, bias):
    table[f"{ours}.weight"] = Place(f"{theirs}.weight", transposed=True)
    if bias:
        table[f"{ours}.bias"] = Place(f"{theirs}.bias")


def _conv1d(table, ours, theirs, third=None):  # GPT-2's linear map, stored (in, out)
    table[f"{ours}.weight"] = Place(f"{theirs}.weight", third=third)
    table[f"{ours}.bias"] = Place(f"{theirs}.bias", third=third)


def _norm(table, ours, theirs, bias=True):
    table[f"{ours}.weight"] = Place(f"{theirs}.weight")
    if bias:
        table[f"{ours}.bias"] = Place(f"{theirs}.bias")


def _bert(config):
    table = {"embed.tokens.weight": Place("embeddings.word_embeddings.weight"),
             "embed.position.weight": Place("embeddings.position_embeddings.weight"),
             "embed.types.weight": Place("embeddings.token_type_embeddings.weight")}
    _norm(table, "embed.norm", "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
        for name, long in (("q", "query"), ("k", "key"), ("v", "value")):
            _linear(table, f"{ours}.attn.{name}", f"{theirs}.attention.self.{long}", True)
        _linear(table, f"{ours}.attn.out", f"{theirs}.attention.output.dense", True)
        _norm(table, f"{ours}.attn.join.norm", f"{theirs}.attention.output.LayerNorm")
        _linear(table, f"{ours}.mlp.up", f"{theirs}.intermediate.dense", True)
        _linear(table, f"{ours}.mlp.down", f"{theirs}.output.dense", True)
        _norm(table, f"{ours}.mlp.join.norm", f"{theirs}.output.LayerNorm")
    return table


def _gpt2(config):
    table = {"embed.tokens.weight": Place("wte.weight"), "embed.position.weight": Place("wpe.weight")}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        _norm(table, f"{ours}.attn.norm", f"{theirs}.ln_1")
        for third, name in enumerate("qkv"):
            _conv1d(table, f"{ours}.attn.{name}", f"{theirs}.attn.c_attn", third)
        _conv1d(table, f"{ours}.attn.out", f"{theirs}.attn.c_proj")
        _norm(table, f"{ours}.mlp.norm", f"{theirs}.ln_2")
        _conv1d(table, f"{ours}.mlp.up", f"{theirs}.mlp.c_fc")
        _conv1d(table, f"{ours}.mlp.down", f"{theirs}.mlp.c_proj")
    _norm(table, "final_norm", "ln_f")
    return table


def _llama(config):
    table = {"embed.tokens.weight": Place("embed_tokens.weight")}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        _norm(table, f"{ours}.attn.norm", f"{theirs}.input_layernorm", bias=False)
        for name in "qkv":
            _linear(table, f"{ours}.attn.{name}", f"{theirs}.self_attn.{name}_proj", config.attention_bias)
        _linear(table, f"{ours}.attn.out", f"{theirs}.self_attn.o_proj", config.attention_out_bias)
        _norm(table, f"{ours}.mlp.norm", f"{theirs}.post_attention_layernorm", bias=False)
        for name in ("gate", "up", "down"):
            _linear(table, f"{ours}.mlp.{name}", f"{theirs}.mlp.{name}_proj", config.mlp_bias)
    _norm(table, "final_norm", "norm", bias=False)
    return table


def _t5(config):
    table = {"embed.tokens.weight": Place("shared.weight")}
    for side, layers in (("encoder", config.num_hidden_layers), ("decoder", config.num_decoder_layers)):
        table[f"{side}.relative.weight"] = Place(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        attentions = (("attn", "SelfAttention"), ("cross", "EncDecAttention"))[:1 if side == "encoder" else 2]
        for i in range(layers):
            ours, theirs = f"{side}.blocks.{i}", f"{side}.block.{i}.layer"
            for number, (name, long) in enumerate(attentions):
                _norm(table, f"{ours}.{name}.norm", f"{theirs}.{number}.layer_norm", bias=False)
                for part, short in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
                    _linear(table, f"{ours}.{name}.{part}", f"{theirs}.{number}.{long}.{short}", False)
            last = f"{theirs}.{len(attentions)}"
            _norm(table, f"{ours}.mlp.norm", f"{last}.layer_norm", bias=False)
            for name, long in (("gate", "wi_0"), ("up", "wi_1")) if config.gated else (("up", "wi"),):
                _linear(table, f"{ours}.mlp.{name}", f"{last}.DenseReluDense.{long}", False)
            _linear(table, f"{ours}.mlp.down", f"{last}.DenseReluDense.wo", False)
        _norm(table, f"{side}.final_norm", f"{side}.final_layer_norm", bias=False)
    return table


# model_type -> (table of the body, prefix of the body in models that have a head, name of the classification map)
FAMILIES = {"bert": (_bert, "bert.", "classifier"), "gpt2": (_gpt2, "transformer.", "score"),
            "llama": (_llama, "model.", "score"), "t5": (_t5, "", "classification_head")}

# (model_type, kind of head) -> transformers' class; heads of the kind "other" have no class and lie in a file beside
ARCHITECTURES = {
    ("bert", "none"): "BertModel", ("bert", "other"): "BertModel",
    ("bert", "classification"): "BertForSequenceClassification", ("bert", "masked_lm"): "BertForMaskedLM",
    ("gpt2", "none"): "GPT2Model", ("gpt2", "other"): "GPT2Model",
    ("gpt2", "classification"): "GPT2ForSequenceClassification", ("gpt2", "lm"): "GPT2LMHeadModel",
    ("llama", "none"): "LlamaModel", ("llama", "other"): "LlamaModel",
    ("llama", "classification"): "LlamaForSequenceClassification", ("llama", "lm"): "LlamaForCausalLM",
    ("t5", "none"): "T5Model", ("t5", "seq2seq"): "T5ForConditionalGeneration",
}


def body_prefix(config, kind):
    """Prefix of the body's tensors: empty in a bare model, ``bert.`` and so on in one with a head."""
    return "" if kind in ("none", "other") else FAMILIES[config.model_type][1]


def places(config, kind):
    """{our parameter's path: Place} of a whole model whose head is of ``kind``.

    The kinds: ``none``, ``classification`` (the one that transformers has), ``other`` (one that it has not: not in
    the table), ``masked_lm``, ``lm``, ``seq2seq``.
    """
    make, _, classifier = FAMILIES[config.model_type]
    prefix = body_prefix(config, kind)
    table = {path: Place(prefix + p.key, p.transposed, p.third) for path, p in make(config).items()}
    if kind == "classification":
        if config.model_type == "bert":
            _linear(table, "head.pooler", prefix + "pooler.dense", True)
        _linear(table, "head.classifier", classifier, config.model_type == "bert")
    elif kind == "masked_lm":
        _linear(table, "head.dense", "cls.predictions.transform.dense", True)
        _norm(table, "head.norm", "cls.predictions.transform.LayerNorm")
        table["head.output.bias"] = Place("cls.predictions.bias")
    elif kind in ("lm", "seq2seq") and not config.tie_word_embeddings:
        _linear(table, "head.output", "lm_head", config.head_bias)
    return table


def to_ours(place, tensor):
    """A tensor from disk as one of our parameters: contiguous, and copied only where its layout changes."""
    if place.third is not None:
        width = tensor.shape[-1] // 3
        tensor = tensor[..., place.third * width:(place.third + 1) * width]
    return np.ascontiguousarray(tensor.T if place.transposed else tensor)


def to_theirs(table, arrays):
    """{our path: array} (weights, or their gradients) as {tensor name: array} in Hugging Face's layout."""
    out, thirds = {}, {}
    for path, array in arrays.items():
        place = table[path]
        if place.third is not None:
            thirds.setdefault(place.key, {})[place.third] = array
        else:
            out[place.key] = np.ascontiguousarray(array.T) if place.transposed else array
    for key, parts in thirds.items():
        out[key] = np.concatenate([parts[i] for i in range(3)], axis=-1)
    return out


def shapes_on_disk(table, arrays):
    """{tensor name: shape} that a folder must hold for the parameters ``arrays`` ({our path: array})."""
    out = {}
    for path, place in table.items():
        shape = arrays[path].shape
        if place.transposed:
            shape = shape[::-1]
        if place.third is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        out[place.key] = shape
    return out
