"""The shape of a model as its ``config.json`` says it: the published sizes, and any file; no weight is made.

Four families are what `TransformerConfig` describes. Three more can be planned though not run, each as the family it stands
nearest to and a table ``beside`` of the parameters that this family has not:

    RoBERTa    BERT with two position vectors that no token reads and one type (Liu et al., 2019, arXiv:1907.11692)
    DeBERTa    BERT without types; vectors of relative distances in place of positions, with a norm; a convolution beside the
               first block; where they are not shared, a second q and k for the distances (He et al., 2021, arXiv:2006.03654)
    BART       T5's blocks with biases everywhere and LayerNorms behind the sums; learned positions on both sides, a norm
               behind each side's embedding in place of one at its end (Lewis et al., 2020, arXiv:1910.13461)

Others count as one of these does (`KIN`): XLM-R and CamemBERT as RoBERTa, mT5 as T5, Mistral as LLaMA, Qwen2 as LLaMA with
biases at q, k and v.
"""

import difflib
from dataclasses import dataclass, field, replace
from functools import cached_property

# What is published of each model is its shape, in the words of its config.json; every count is computed from it.
_BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
_T5 = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
PUBLISHED = {
    "bert-base": _BERT | _BASE,
    "bert-large": _BERT | _LARGE,
    "roberta-base": _ROBERTA | _BASE,
    "roberta-large": _ROBERTA | _LARGE,
    "deberta-xxl": {"model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 48,
                    "num_attention_heads": 24, "intermediate_size": 6144, "max_position_embeddings": 512, "type_vocab_size": 0,
                    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
                    "pos_att_type": "p2c|c2p", "conv_kernel_size": 3, "position_biased_input": False},
    "gpt2": _GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": _GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": _GPT2 | {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": _GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "gpt3-175b": _GPT2 | {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048},
    "t5-v1_1-small": _T5 | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "t5-v1_1-base": _T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "t5-v1_1-large": _T5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "t5-v1_1-xl": _T5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "t5-v1_1-xxl": _T5 | {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "llama-7b": {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "bart-large": {"model_type": "bart", "vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
                   "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "max_position_embeddings": 1024},
}
PUBLISHED |= {"t0-3b": PUBLISHED["t5-v1_1-xl"], "t0-11b": PUBLISHED["t5-v1_1-xxl"]}
TASKS_OF_FAMILY = {"bert": ("classify",), "roberta": ("classify",), "deberta-v2": ("classify",), "gpt2": ("lm", "classify"),
                   "llama": ("lm", "classify"), "t5": ("seq2seq",), "bart": ("seq2seq", "classify")}

# {model_type: the family it counts as, and what its config means by a field that it leaves out where this family means another}
KIN = {"xlm-roberta": ("roberta", {}), "camembert": ("roberta", {}), "mistral": ("llama", {"num_key_value_heads": 8}),
       "mt5": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
       "qwen2": ("llama", {"num_key_value_heads": 32})}
UNCOUNTED = ("rope_scaling", "rope_parameters", "hidden_act", "activation_function", "scale_attn_by_inverse_layer_idx",
             "scale_attn_weights", "is_decoder")  # fields that change what a model computes, and nothing that is counted


@dataclass(frozen=True)
class Shape:
    """A model to plan for.

    Attributes:
        name: as it was asked for. family: what it counts as. task: classify, lm or seq2seq.
        config: the `TransformerConfig` of the nearest family; its ``labels`` and ``pooling`` are the task's.
        beside: {path: number of parameters} that this config has not; a negative one is of a part that the model has not.
        idle_positions: rows of the position table that no token reads.
        dense_head: whether the classifier has a square map, trained with it, before its output (RoBERTa's, DeBERTa's, BART's).
        pre_norm: whether norms stand before the sub-layers. kin: the ``model_type`` of its config.json, where it is one of `KIN`.
        runs_here: whether minipeft has this model, and not only its shape.
    """

    name: str
    family: str
    task: str
    config: object
    beside: dict = field(default_factory=dict)
    idle_positions: int = 0
    dense_head: bool = False
    pre_norm: bool = False
    kin: str = ""
    runs_here: bool = False

    @property
    def model_type(self):
        """The ``model_type`` of its config.json."""
        return self.kin or self.family

    @property
    def positions(self):
        """How many positions there are for tokens; None where they are not learned."""
        learned = self.config.learned_positions or self.family == "bart"
        return self.config.max_position_embeddings - self.idle_positions if learned and self.family != "deberta-v2" else None

    @cached_property
    def body(self):
        """Number of parameters without pooler and head."""
        from ..methods.shapes import body_size

        return body_size(self.config) + sum(self.beside.values())

    @property
    def pooler(self):
        """Number of parameters of BERT's pooler, D D + D, where the task reads it."""
        from ..methods.shapes import pooler_sizes

        return sum(d_in * d_out + d_out for d_in, d_out in pooler_sizes(self.config).values())

    @property
    def square(self):
        """Number of parameters of the square map before a classifier's output, D D + D where there is one."""
        width = self.config.hidden_size
        return width * width + width if self.dense_head else 0

    @property
    def head(self):
        """Number of parameters of the task's own output map: D C (+ C), D V where it is not tied, 0 where it is."""
        config, width = self.config, self.config.hidden_size
        if self.task == "classify":
            biased = self.family not in ("gpt2", "llama")
            return self.square + width * len(config.labels) + biased * len(config.labels)
        return 0 if config.tie_word_embeddings else width * config.vocab_size + config.head_bias * config.vocab_size

    @property
    def total(self):
        """Number of parameters of the whole model, the task's head included."""
        return self.body + self.pooler + self.head

    @property
    def pretrained(self):
        """Number of parameters as published: with BERT's and RoBERTa's pooler and with an untied map to the vocabulary."""
        width = self.config.hidden_size
        pooler = width * width + width if self.family in ("bert", "roberta") else 0
        return self.body + pooler + (0 if self.config.tie_word_embeddings else width * self.config.vocab_size)


def load_shape(model="bert-base", task=None, classes=2, pooling=None):
    """The `Shape` of a published model, of a folder with a ``config.json``, or of such a file.

    Args:
        model: name or path. task: classify, lm or seq2seq; default: what the family is for.
        classes: number of classes, for classify. pooling: how BERT's states become one vector; default: as `load_pretrained`
            does for a folder, and ``pooler`` for a published model.

    Raises ValueError for a name that is neither published nor a file, and for a config that cannot be read.
    """
    from ..data import files

    path = files.model_folder(model)
    if model in PUBLISHED:
        raw, where = PUBLISHED[model], model
    elif path.is_dir() or path.is_file():
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{model}: no config.json; expected a Hugging Face model folder, a config.json, or one of "
                             f"{', '.join(PUBLISHED)}")
        raw, where = files.read_json(path, "config"), str(path)
    else:
        close = difflib.get_close_matches(model.lower(), PUBLISHED, n=1, cutoff=0.5)
        raise ValueError(f"model: no published model is called {model!r} and there is no such folder or file"
                         f"{f'; did you mean {close[0]!r}?' if close else '.'} Published: {', '.join(PUBLISHED)}")
    shape = shape_of(raw, where, task)
    config = shape.config.with_(labels=(), pooling=None)
    if shape.task == "classify":
        if pooling and (shape.dense_head or shape.config.causal) and pooling != ("cls" if shape.dense_head else "last"):
            place, word = ("first", "cls") if shape.dense_head else ("last", "last")
            raise ValueError(f"pooling: a {shape.model_type} classifier reads the {place} token, which is {word}; got {pooling}")
        pooling = pooling or (_published_pooling(shape) if model in PUBLISHED else _own_pooling(shape, raw))
        config = config.with_(labels=tuple(f"class {i}" for i in range(classes)), pooling=pooling)
    return replace(shape, name=model, config=config)


def _published_pooling(shape):
    """How the published models of a family are made to classify."""
    return {"bert": "pooler", "gpt2": "last", "llama": "last"}.get(shape.family, "cls")


def _own_pooling(shape, raw):
    """How `load_pretrained` pools the states of such a folder, as far as counts tell it apart (mean and first token are one)."""
    from ..interop.hf_config import task_of

    if shape.config.pooling or shape.config.causal:
        return shape.config.pooling or "last"
    if not shape.runs_here:
        return "cls"
    return "pooler" if task_of(raw.get("architectures")) == "classify" else "mean"


def shape_of(raw, where="config.json", task=None):
    """The `Shape` that the contents of a ``config.json`` describe. Raises ValueError, naming the file and the field."""
    from ..interop.hf_config import config_from_hf

    shape = _counted(raw, where, task)
    try:
        config_from_hf(raw, where)
    except ValueError:  # a relative of what there is, or one that computes otherwise
        return shape
    return replace(shape, runs_here=True)


def _counted(raw, where, task):
    """A `Shape` as far as it can be counted, with whatever minipeft does not compute passed over."""
    from ..interop.hf_config import config_from_hf

    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in (*TASKS_OF_FAMILY, *KIN):
        raise ValueError(f"{where}: no plan for model_type {kind!r}; known: {', '.join((*TASKS_OF_FAMILY, *KIN))}")
    family, defaults = KIN.get(kind, (kind, {}))
    tasks, kin = TASKS_OF_FAMILY[family], kind if kind in KIN else ""
    if task is not None and task not in tasks:
        raise ValueError(f"task {task}: {where} is a {kind} model; its tasks: {', '.join(tasks)}")
    raw = {name: value for name, value in (defaults | raw | {"model_type": family}).items() if name not in UNCOUNTED}
    if family == "roberta":
        config = config_from_hf({**raw, "model_type": "bert"}, where)
        return Shape(where, family, tasks[0], config, idle_positions=2, dense_head=True, kin=kin)
    if family in ("deberta-v2", "bart"):
        make = _deberta if family == "deberta-v2" else _bart
        return replace(make(raw, where), task=task or tasks[0])
    config = config_from_hf(raw, where)
    config = config.with_(attention_bias=True) if kind == "qwen2" else config  # at q, k and v, and not behind them
    return Shape(where, family, task or tasks[0], config, pre_norm=config.pre_norm, kin=kin)


def _whole(raw, where, name, least=1):
    """A field that is a whole number."""
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where}: expected a whole number of at least {least} for {name}, got {value!r}")
    return value


def _dropouts(raw, hidden, attention, where):
    """The two probabilities of dropping something, transformers' 0.1 where the config does not say."""
    values = [raw.get(hidden, 0.1), raw.get(attention, 0.1)]
    for name, value in zip((hidden, attention), values):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"{where}: expected a number from 0 to below 1 for {name}, got {value!r}")
    return {"hidden_dropout": values[0], "embedding_dropout": values[0], "attention_dropout": values[1]}


def _deberta(raw, where):
    """DeBERTa's: the first parameters ``beside`` are those of the relative distances, the last the convolution's."""
    from ..models import TransformerConfig

    width, layers = _whole(raw, where, "hidden_size"), _whole(raw, where, "num_hidden_layers")
    limit = _whole(raw, where, "max_position_embeddings")
    relative, beside = raw.get("relative_attention", False), {}
    rows = limit if raw.get("position_biased_input", True) else 0  # positions that are added to the words
    if relative:
        buckets, furthest = raw.get("position_buckets", -1), raw.get("max_relative_positions", -1)
        distances = buckets if buckets > 0 else furthest if furthest >= 1 else limit
        beside["relative.weight"] = 2 * distances * width
        kinds = raw.get("pos_att_type") or ""
        for block in range(0 if raw.get("share_att_key", False) else layers):
            for kind, name in (("c2p", "distance_k"), ("p2c", "distance_q")):
                if kind in kinds:
                    beside |= {f"blocks.{block}.attn.{name}.weight": width * width, f"blocks.{block}.attn.{name}.bias": width}
    if "layer_norm" in str(raw.get("norm_rel_ebd", "none")):  # which is there with or without what it normalises
        beside |= {"relative.norm.weight": width, "relative.norm.bias": width}
    kernel = raw.get("conv_kernel_size", 0)
    if kernel:
        beside |= {"convolution.weight": kernel * width * width, "convolution.bias": width,
                   "convolution.norm.weight": width, "convolution.norm.bias": width}
    if rows != limit:
        beside["embed.position.weight"] = (rows - limit) * width  # BERT's, which are not there
    config = TransformerConfig("bert", _whole(raw, where, "vocab_size"), width, layers, _whole(raw, where, "num_attention_heads"),
                               _whole(raw, where, "intermediate_size"), limit,
                               type_vocab_size=_whole(raw, where, "type_vocab_size", 0),
                               **_dropouts(raw, "hidden_dropout_prob", "attention_probs_dropout_prob", where))
    return Shape(where, "deberta-v2", "classify", config, beside, dense_head=True)


def _bart(raw, where):
    """BART's: both sides must be equally wide, as they are in every published one."""
    from ..methods.shapes import norm_sizes
    from ..models import TransformerConfig

    width, heads = _whole(raw, where, "d_model"), _whole(raw, where, "encoder_attention_heads")
    inner = _whole(raw, where, "encoder_ffn_dim")
    for name, value in (("decoder_attention_heads", heads), ("decoder_ffn_dim", inner)):
        if raw.get(name, value) != value:
            raise ValueError(f"{where}: {name} is {raw[name]!r} and the encoder's {value}; only models with two like sides can "
                             "be planned")
    rows = _whole(raw, where, "max_position_embeddings") + 2
    config = TransformerConfig(
        "t5", _whole(raw, where, "vocab_size"), width, _whole(raw, where, "encoder_layers"), heads, inner, rows,
        num_decoder_layers=_whole(raw, where, "decoder_layers"), gated=False,
        tie_word_embeddings=raw.get("tie_word_embeddings", True),
        **_dropouts(raw, "dropout", "attention_dropout", where))
    beside = {f"{path}.bias": size for path, size in norm_sizes(config).items()}  # T5's final norms stand for the embeddings'
    beside |= {f"{side}.position.weight": rows * width for side in ("embed", "decoder_embed")}
    beside["relative.weight"] = -2 * config.relative_attention_num_buckets * heads  # T5's, which BART has not
    return Shape(where, "bart", "seq2seq", config, beside, idle_positions=2, dense_head=True)
