"""The ``config.json`` of a Hugging Face folder: read into a `TransformerConfig` with every field checked, and written back."""

from ..models import TransformerConfig
from .hf_names import ARCHITECTURES, FAMILIES

ACTIVATION_NAMES = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new",
                    "silu": "silu", "swish": "silu", "relu": "relu", "tanh": "tanh"}

# transformers' names of the same field in GPT-2's configs
GPT2_FIELDS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_inner": "intermediate_size", "n_positions": "max_position_embeddings", "activation_function": "hidden_act",
               "layer_norm_epsilon": "layer_norm_eps", "attn_pdrop": "attention_probs_dropout_prob",
               "resid_pdrop": "hidden_dropout_prob"}

# ... and in T5's
T5_FIELDS = {"d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "d_ff":
             "intermediate_size", "d_kv": "head_dim", "n_positions": "max_position_embeddings",
             "layer_norm_epsilon": "rms_norm_eps", "dropout_rate": "hidden_dropout_prob",
             "initializer_factor": "initializer_range"}

# what a config leaves out, it means as transformers' own default
DEFAULTS = {"bert": {"hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12},
            "gpt2": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
            "llama": {"hidden_act": "silu", "tie_word_embeddings": False},
            "t5": {"head_dim": 64, "max_position_embeddings": 512, "feed_forward_proj": "relu", "initializer_range": 1.0,
                   "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}}
SHARED_DEFAULTS = {"tie_word_embeddings": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
                   "attention_dropout": 0.0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
                   "mlp_bias": False, "initializer_range": 0.02}

# fields that change what a model computes, with the one value that we compute
FIXED = {"position_embedding_type": "absolute", "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True,
         "add_cross_attention": False, "is_decoder": False}


def refuse(where, name, value, allowed):
    """Raise the ValueError of a field whose value would change what the model computes."""
    raise ValueError(f"{where}: {name} is {value!r}, which is not supported (supported: {allowed})")


class _Fields:
    """The fields of a ``config.json``, each read with its type checked; the faults name the file and the field."""

    def __init__(self, raw, family, where):
        names = {"gpt2": GPT2_FIELDS, "t5": T5_FIELDS}.get(family, {})
        self.values = SHARED_DEFAULTS | DEFAULTS[family] | {names.get(name, name): value for name, value in raw.items()}
        self.where, self.spelling = where, {ours: theirs for theirs, ours in names.items() if theirs in raw}

    def read(self, name, kinds, words, good=lambda value: True, optional=False):
        """The value of a field of one of these types (a bool counts as no number) for which ``good`` holds."""
        value = self.values.get(name)
        if optional and value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool) or not good(value):
            raise ValueError(f"{self.where}: expected {words} for {self.spelling.get(name, name)}, got {value!r}")
        return value

    def count(self, name, least=1, optional=False):
        """A whole number."""
        return self.read(name, int, f"a whole number of at least {least}", lambda value: value >= least, optional)

    def number(self, name, words="a number above 0", good=lambda value: 0 < value < float("inf")):
        """A real number."""
        return float(self.read(name, (int, float), words, good))

    def share(self, name):
        """A probability of dropping something."""
        return self.number(name, "a number from 0 to below 1", lambda value: 0 <= value < 1)

    def flag(self, name):
        """True or false."""
        return self.read(name, bool, "true or false")

    def table(self, name):
        """An object, empty where there is none."""
        return self.read(name, dict, "an object", optional=True) or {}


def config_from_hf(raw, where="config.json"):
    """A TransformerConfig from the contents of a ``config.json``; ValueError names any field that we cannot honour."""
    family = raw.get("model_type")
    if family not in list(FAMILIES):  # a list, because what came may have no hash
        raise ValueError(f"{where}: unknown model_type {family!r}; known: {', '.join(FAMILIES)}")
    fields = _Fields(raw, family, where)
    for name, supported in FIXED.items():
        if name in raw and raw[name] != supported:
            refuse(where, name, raw[name], repr(supported))
    own = {"bert": _bert_fields, "gpt2": _gpt2_fields, "llama": _llama_fields, "t5": _t5_fields}[family](fields)
    act = fields.read("hidden_act", str, "the name of an activation")
    if act not in ACTIVATION_NAMES:
        refuse(where, "the activation", act, ", ".join(ACTIVATION_NAMES))
    return TransformerConfig(
        model_type=family, vocab_size=fields.count("vocab_size"), hidden_size=fields.count("hidden_size"),
        num_hidden_layers=fields.count("num_hidden_layers"), num_attention_heads=fields.count("num_attention_heads"),
        intermediate_size=fields.count("intermediate_size"), max_position_embeddings=fields.count("max_position_embeddings"),
        hidden_act=ACTIVATION_NAMES[act], tie_word_embeddings=fields.flag("tie_word_embeddings"),
        initializer_range=fields.number("initializer_range", "a number of 0 or more", lambda value: value >= 0),
        pad_token_id=_pad_token(fields), eos_token_id=_end_tokens(fields), labels=_class_names(fields, where),
        pooling=fields.table("minipeft").get("pooling"), extra=dict(raw), **own)


def _bert_fields(fields):
    """The fields of a TransformerConfig that only BERT reads in this way."""
    dropout = fields.share("hidden_dropout_prob")
    return {"type_vocab_size": fields.count("type_vocab_size"), "norm_eps": fields.number("layer_norm_eps"),
            "hidden_dropout": dropout, "embedding_dropout": dropout,
            "attention_dropout": fields.share("attention_probs_dropout_prob")}


def _gpt2_fields(fields):
    """Those of GPT-2, whose feed-forward is 4 D wide where the config does not say."""
    if fields.values.get("intermediate_size") is None:
        fields.values["intermediate_size"] = 4 * fields.count("hidden_size")
    return {"norm_eps": fields.number("layer_norm_eps"), "hidden_dropout": fields.share("hidden_dropout_prob"),
            "embedding_dropout": fields.share("embd_pdrop" if "embd_pdrop" in fields.values else "hidden_dropout_prob"),
            "attention_dropout": fields.share("attention_probs_dropout_prob")}


def _llama_fields(fields):
    """Those of LLaMA; the theta of its rotary positions stands in one of three places."""
    for name in ("rope_scaling", "rope_parameters"):  # the older and the newer spelling
        rope = fields.table(name)
        if rope.get("rope_type", rope.get("type")) not in (None, "default"):
            refuse(fields.where, name, rope, "rope_type 'default'")
        if "rope_theta" in rope:
            fields.values["rope_theta"] = rope["rope_theta"]
    bias = fields.flag("attention_bias")
    return {"num_key_value_heads": fields.count("num_key_value_heads", optional=True),
            "head_dim": fields.count("head_dim", optional=True), "norm_eps": fields.number("rms_norm_eps"),
            "rope_theta": fields.number("rope_theta"), "attention_bias": bias, "attention_out_bias": bias,
            "mlp_bias": fields.flag("mlp_bias"), "attention_dropout": fields.share("attention_dropout")}


def _t5_fields(fields):
    """Those of T5; its feed-forward is "relu", or "gated-gelu" and the like, by which it means GELU's approximation by tanh."""
    form = fields.read("feed_forward_proj", str, "the name of an activation, perhaps with gated- before it")
    fields.values["hidden_act"] = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
    dropout = fields.share("hidden_dropout_prob")
    return {"num_decoder_layers": fields.count("num_decoder_layers", optional=True) or fields.count("num_hidden_layers"),
            "head_dim": fields.count("head_dim"), "gated": form.startswith("gated-"), "norm_eps": fields.number("rms_norm_eps"),
            "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
            "hidden_dropout": dropout, "embedding_dropout": dropout, "attention_dropout": dropout,
            "relative_attention_num_buckets": fields.count("relative_attention_num_buckets", 4),
            "relative_attention_max_distance": fields.count("relative_attention_max_distance"),
            "decoder_start_token_id": fields.count("decoder_start_token_id", 0, optional=True)}


def _pad_token(fields):
    """The padding token; older LLaMA folders write -1 for none."""
    token = fields.read("pad_token_id", int, "a token id", optional=True)
    return None if token is None or token < 0 else token


def _end_tokens(fields):
    """The token, or the tokens, that end a text."""
    ids = fields.read("eos_token_id", (int, list), "a token id or a list of them",
                      lambda value: isinstance(value, int) or all(isinstance(i, int) for i in value), optional=True)
    return tuple(ids) if isinstance(ids, list) else ids


def task_of(architectures):
    """What the folder's transformers class is for, in the words of `load_pretrained`."""
    name = str((architectures or [""])[0])
    if name.endswith("ForSequenceClassification"):
        return "classify"
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        return "mlm"
    if name.endswith(("LMHeadModel", "ForCausalLM")):
        return "lm"
    if name.endswith("ForConditionalGeneration"):
        return "seq2seq"
    return "none"


def _class_names(fields, where):
    """Names of the classes in their order; transformers leaves out ``id2label`` where it has its default, two classes."""
    names = fields.table("id2label")
    architectures = fields.read("architectures", list, "a list of class names", optional=True)
    if not names and task_of(architectures) == "classify":
        return ("LABEL_0", "LABEL_1")
    if set(names) != {str(i) for i in range(len(names))} or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{where}: expected names for the classes 0 to {len(names) - 1} in id2label, got {names!r}")
    return tuple(names[str(i)] for i in range(len(names)))


def config_to_hf(config, kind):
    """The contents of a ``config.json``: the folder's own fields where it had one, and what this model is now."""
    head_class = ARCHITECTURES[(config.model_type, kind)]
    out = dict(config.extra)
    out.pop("torch_dtype", None)
    common = {"model_type": config.model_type, "architectures": [head_class], "dtype": "float32",
              "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_word_embeddings,
              "initializer_range": config.initializer_range, "pad_token_id": config.pad_token_id,
              "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id}
    own = {"bert": _bert_out, "gpt2": _gpt2_out, "llama": _llama_out, "t5": _t5_out}[config.model_type](config)
    out |= common | own
    if config.labels:
        out["id2label"] = {str(i): name for i, name in enumerate(config.labels)}
        out["label2id"] = {name: i for i, name in enumerate(config.labels)}
    out.pop("minipeft", None)
    if kind == "other":
        out["minipeft"] = {"pooling": config.pooling, "head": "head.safetensors"}
    return out


def _sizes_out(config):
    """The fields of a ``config.json`` that BERT and LLaMA spell alike."""
    return {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads",
                                                     "intermediate_size", "max_position_embeddings", "hidden_act")}


def _bert_out(config):
    return _sizes_out(config) | {"type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps,
                                 "hidden_dropout_prob": config.hidden_dropout,
                                 "attention_probs_dropout_prob": config.attention_dropout}


def _gpt2_out(config):
    return {"n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads,
            "n_inner": config.intermediate_size, "n_positions": config.max_position_embeddings,
            "activation_function": config.hidden_act, "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": config.attention_dropout, "resid_pdrop": config.hidden_dropout,
            "embd_pdrop": config.embedding_dropout}


def _llama_out(config):
    return _sizes_out(config) | {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
                                 "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
                                 "attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias,
                                 "attention_dropout": config.attention_dropout}


def _t5_out(config):
    if config.gated and config.hidden_act == "gelu":
        raise ValueError("save: a T5 config cannot say a gated feed-forward with the exact GELU; use hidden_act 'gelu_new'")
    act = "gelu" if config.gated and config.hidden_act == "gelu_new" else config.hidden_act
    return {"d_model": config.hidden_size, "num_layers": config.num_hidden_layers, "num_heads": config.num_attention_heads,
            "num_decoder_layers": config.num_decoder_layers, "d_ff": config.intermediate_size, "d_kv": config.head_dim,
            "n_positions": config.max_position_embeddings, "feed_forward_proj": f"gated-{act}" if config.gated else act,
            "layer_norm_epsilon": config.norm_eps, "dropout_rate": config.hidden_dropout, "is_encoder_decoder": True,
            "initializer_factor": config.initializer_range, "decoder_start_token_id": config.decoder_start_token_id,
            "relative_attention_num_buckets": config.relative_attention_num_buckets,
            "relative_attention_max_distance": config.relative_attention_max_distance}
