"""How every method starts and where it stands: initial values, places and defaults,
each written down once more beside the code."""

import re

import numpy as np
import pytest

from minipeft.interop import make_model
from minipeft.methods import METHODS, attach
from minipeft.methods.attach import own_parameters
from minipeft.methods.targets import seam_names
from minipeft.models import TransformerConfig

D, F, N = 64, 80, 40  # width, feed-forward, vocabulary
SHAPE = {"vocab_size": N, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": F,
         "max_position_embeddings": 48, "initializer_range": 0.3}
NO_BIASES = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
FAMILIES = {"bert": {"model_type": "bert", "type_vocab_size": 2, "labels": ("a", "b", "c"), "pooling": "pooler"},
            "gpt2": {"model_type": "gpt2", "labels": ("a", "b", "c"), "pooling": "last"},
            "llama": {"model_type": "llama", "num_key_value_heads": 2, **NO_BIASES},
            "t5": {"model_type": "t5", "num_decoder_layers": 3, "gated": True, "decoder_start_token_id": 0, **NO_BIASES}}


def make(family):
    config = TransformerConfig(**SHAPE | FAMILIES[family])
    task = "classify" if config.labels else "seq2seq" if config.encoder_decoder else "lm"
    return make_model(config, task, np.random.default_rng(0))


# ---- initial values -------------------------------------------------------------------------------------------------


def is_normal(std):
    """Gaussian with mean 0: the mean, the spread, and the share within one spread that a Gaussian has."""
    def check(x):
        n = x.size
        assert abs(x.mean()) < 5 * std / n**0.5 and abs(x.std() / std - 1) < 5 / (2 * n) ** 0.5
        assert abs((np.abs(x) < std).mean() - 0.6827) < 4 * (0.22 / n) ** 0.5
    return check


def is_uniform(low, high):
    def check(x):
        assert low <= x.min() and x.max() < high and abs(x.mean() - (low + high) / 2) < 0.03
        assert abs((x < (low + high) / 2).mean() - 0.5) < 0.05 and abs(x.std() - (high - low) / 12**0.5) < 0.02
    return check


def is_all(value):
    def check(x):
        assert (x == value).all()
    return check


ZERO, ONE = is_all(0), is_all(1)
LOW_RANK = {"U": is_normal(D**-0.5), "V": ZERO}
BOTTLENECK = {"mlp.down.weight": is_normal(D**-0.5), "mlp.down.bias": ZERO, "mlp.up.weight": ZERO, "mlp.up.bias": ZERO}
SMALL = BOTTLENECK | {"mlp.up.weight": is_normal(0.01)}
COMPACTER = {"mlp.down.A": is_normal(4**-0.5), "mlp.down.s": is_normal(1), "mlp.down.t": is_normal(D**-0.5),
             "mlp.up.s": is_normal(1), "mlp.up.t": ZERO, "mlp.down.bias": ZERO, "mlp.up.bias": ZERO}
STARTS = [  # a method, its settings, and how each of its arrays starts: what stands in METHODS.md and in the files' own words
    *[(name, {}, LOW_RANK) for name in ("lora", "rslora", "lora_plus")],
    ("dora", {}, LOW_RANK | {"m": None}), ("pissa", {}, {"U": None, "V": None}),
    ("adalora", {}, {"U": is_normal(D**-0.5), "V": is_normal(D**-0.5), "lambdas": ZERO}), ("ia3", {}, {"l": ONE}),
    *[(name, {}, BOTTLENECK) for name in ("houlsby", "pfeiffer", "parallel")],
    *[(name, {"initial_std": 0.01}, SMALL) for name in ("houlsby", "pfeiffer", "parallel")],
    ("compacter", {"bottleneck": 32}, COMPACTER),
    ("compacter", {"bottleneck": 32, "initial_std": 0.01}, COMPACTER | {"mlp.up.t": is_normal(0.01)}),
    ("prefix", {}, {"keys": is_normal(0.5), "values": is_normal(0.5)}),
    ("prefix", {"reparametrise": True, "hidden": 50},
     {"network.E": is_normal(1), "network.map.weight": is_normal(D**-0.5), "network.map.bias": ZERO,
      "out.weight": is_normal(50**-0.5), "out.bias": ZERO}),
    ("prompt", {"initial": "random"}, {"prompt": is_uniform(-0.5, 0.5)}), ("prompt", {}, {"prompt": None}),
    ("task_embedding", {}, {"e": ZERO}), ("output", {}, {"d": ZERO}), ("output", {"part": "bias"}, {"b": ZERO}),
    ("random_mask", {}, {"delta": ZERO}), ("fisher_mask", {}, {"delta": ZERO}), ("head", {}, {}),
]


@pytest.mark.parametrize("name,settings,expected", STARTS, ids=[f"{n}-{'-'.join(s)}" for n, s, _ in STARTS])
def test_every_array_starts_as_it_is_said_to(name, settings, expected):
    model = make("bert")
    if name == "fisher_mask":
        settings = {"importance": {path: p.data**2 for path, p in model.named_parameters()}}
    attachment, found = attach(model, METHODS[name](**settings), rng=np.random.default_rng(3)), {}
    for wrapper in attachment.wrappers.values():
        if wrapper is not attachment.head:
            for part, parameter in own_parameters(wrapper):
                found.setdefault(part, {})[id(parameter)] = parameter.data.reshape(-1)
    assert set(expected) <= set(found) and all(part in expected or part == "mlp.up.A" for part in found)
    for part, check in expected.items():
        if check is not None:
            check(np.concatenate(list(found[part].values())).astype(np.float64))
    if attachment.head is not None:  # a head of its own starts as the base's
        assert (attachment.head.own.weight.data == attachment.head.wrapped.weight.data).all()


def test_every_method_that_draws_or_fills_is_in_the_table():
    in_place = {"full", "top_k", "bitfit", "layernorm"}  # they start from the base's own values: rules 1 and 2
    assert {name for name, *_ in STARTS} | in_place == set(METHODS)


def test_what_starts_from_the_base_starts_from_the_base():
    model = make("bert")
    dora = attach(model, METHODS["dora"](), "dora")
    for path, wrapper in dora.wrappers.items():
        if hasattr(wrapper, "m"):
            np.testing.assert_allclose(wrapper.m.data, np.linalg.norm(wrapper.base_weight, axis=0), rtol=1e-6)
    pissa = attach(model, METHODS["pissa"](rank=4), "pissa")
    for path, wrapper in pissa.wrappers.items():
        if hasattr(wrapper, "U0"):
            weight = dict(model.named_parameters())[f"{path}.weight"].data.astype(np.float64)
            singular = np.linalg.svd(weight, compute_uv=False)
            assert np.linalg.norm(weight - wrapper.U.data @ wrapper.V.data.T) == pytest.approx(
                np.sqrt((singular[4:] ** 2).sum()), rel=1e-4)


# ---- places ---------------------------------------------------------------------------------------------------------

MAPS = ("attn.q", "attn.k", "attn.v", "attn.out", "cross.q", "cross.k", "cross.v", "cross.out", "mlp.gate", "mlp.up", "mlp.down")
PLACES = {name: ("attn.q", "attn.v") for name in ("lora", "rslora", "lora_plus", "dora", "pissa", "adalora")} | {
    "ia3": ("attn.k", "attn.v", "cross.k", "cross.v", "mlp.down"), "houlsby": ("attn.join", "mlp.join"),
    "compacter": ("attn.join", "mlp.join"), "pfeiffer": ("mlp.join",), "parallel": ("mlp.join",),
    "prefix": ("attn.core", "cross.core"), "random_mask": MAPS, "fisher_mask": MAPS,
    "prompt": (), "task_embedding": (), "output": (), "head": (), "full": (), "top_k": (), "bitfit": (), "layernorm": ()}
OUTSIDE = {"prompt": ["embed.tokens"], "task_embedding": ["embed.tokens"]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_stands_where_it_is_said_to(name, family):
    model = make(family)
    settings = {"random_mask": {"share": 1.0}, "bitfit": {"add_zero_biases": not model.config.attention_bias},
                "fisher_mask": {"share": 1.0, "importance": {path: p.data**2 for path, p in model.named_parameters()}},
                "output": {} if model.config.labels else {"words": [3, 5]}}.get(name, {})
    attachment = attach(model, METHODS[name](**settings))
    parts = PLACES[name] if not (name == "bitfit" and settings["add_zero_biases"]) else MAPS
    expected = set(OUTSIDE.get(name, []))
    for part in parts:
        if part != "mlp.gate" or model.config.gated:
            if family != "t5":
                expected |= set() if part.startswith("cross") else {f"blocks.*.{part}"}
            else:
                expected |= {f"decoder.blocks.*.{part}"} | (set() if part.startswith("cross") else {f"encoder.blocks.*.{part}"})
    if name == "prefix" and family != "t5":
        expected.add("positions")
    if model.config.labels and name != "full" or name == "output" or name == "head":
        expected.add("head.classifier" if model.config.labels else "head.output")
    assert set(seam_names(list(attachment.wrappers))) == expected
    blocks = [path for path, _ in model.named_modules() if re.fullmatch(r"(.*\.)?blocks\.\d+", path)]
    for seam in {s for s in expected if "*" in s}:  # in every block
        assert (sum(seam_names([path]) == [seam] for path in attachment.wrappers)
                == sum(seam_names([b])[0] in seam for b in blocks))


def is_norm(path):
    return "norm" in path.split(".")[-2]


IN_PLACE = {  # which of the base's own parameters are trained where they stand
    "full": lambda path, family: True,
    "top_k": lambda path, family: re.match(r"(decoder\.)?blocks\.[12]\.", path),
    "bitfit": lambda path, family: path.endswith(".bias") and not path.startswith("head.classifier"),
    "layernorm": lambda path, family: is_norm(path),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_place_what_it_is_said_to(name, family):
    model = make(family)
    settings = {"bitfit": {"add_zero_biases": not model.config.attention_bias},
                "output": {} if model.config.labels else {"words": [3]},
                "fisher_mask": {"importance": {path: p.data**2 for path, p in model.named_parameters()}}}.get(name, {})
    attachment = attach(model, METHODS[name](**settings))
    chosen = IN_PLACE.get(name, lambda path, family: False)
    assert set(attachment.base) == {path for path, _ in model.named_parameters() if chosen(path, family)}


def test_the_two_terms_of_bitfit_are_the_queries_and_the_feed_forwards_first_map():
    for family in ("bert", "gpt2"):
        attachment = attach(make(family), METHODS["bitfit"](terms="two"))
        assert set(attachment.base) == {f"blocks.{i}.{part}.bias" for i in range(3) for part in ("attn.q", "mlp.up")}
    for family, stacks in (("llama", ("",)), ("t5", ("encoder.", "decoder."))):
        attachment = attach(make(family), METHODS["bitfit"](terms="two", add_zero_biases=True))
        parts = lambda stack: ("attn.q", "mlp.gate", "mlp.up") + (("cross.q",) if stack == "decoder." else ())
        assert set(attachment.wrappers) == {f"{stack}blocks.{i}.{part}"
                                            for stack in stacks for i in range(3) for part in parts(stack)}
        assert all((w.b.data == 0).all() for w in attachment.wrappers.values())
        model = make(family)
        with pytest.raises(ValueError, match=f"bitfit: this {family} model has no bias to train; "
                                             "BitFit\\(add_zero_biases=True\\) adds biases of zeros"):
            attach(model, METHODS["bitfit"](terms="two"))
        assert not model.attachments and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="bitfit: terms must be all or two, got 'three'"):
        attach(make("bert"), METHODS["bitfit"](terms="three"))


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_as_many_layers_as_there_are(layers):
    for family, side in (("bert", ""), ("t5", "decoder ")):
        model = make(family)
        with pytest.raises(ValueError, match="top_k: layers must be a whole number from 1 to 3, "
                                             f"the number of this model's {side}blocks; got {layers}"):
            attach(model, METHODS["top_k"](layers=layers))
        assert not model.attachments


# ---- defaults that are part of a method's definition ----------------------------------------------------------------


def test_the_scales_are_those_of_the_papers():
    scale = lambda name, **given: METHODS[name](**given).scale(4, 12)
    assert scale("lora") == scale("lora_plus") == scale("dora") == scale("adalora") == 12 / 4
    assert scale("rslora") == 12 / 4**0.5 and scale("pissa") == 1
    assert METHODS["parallel"]().scale == 4.0 and METHODS["houlsby"]().scale == METHODS["pfeiffer"]().scale == 1.0
    assert [METHODS[name]().activation
            for name in ("houlsby", "pfeiffer", "parallel", "compacter")] == ["silu", "relu", "relu", "gelu"]
    assert not METHODS["dora"]().detach_norm and METHODS["prefix"]().shift_positions and METHODS["prompt"]().shift_positions
    assert not METHODS["prefix"]().reparametrise and METHODS["prompt"]().initial == "vocabulary"


def test_only_lora_plus_has_rates_of_its_own():
    ratio = METHODS["lora_plus"](lr_ratio=20.0).lr_scale
    assert METHODS["lora_plus"]().lr_ratio == 16.0
    assert [ratio(f"blocks.0.attn.q.{part}") for part in "UV"] == [1.0, 20.0] and ratio("head.classifier.weight") == 1.0
    for name, method in METHODS.items():
        if name != "lora_plus":
            assert {method().lr_scale(path)
                    for path in ("blocks.0.attn.q.V", "blocks.0.attn.q.U", "head.classifier.weight")} == {1.0}
