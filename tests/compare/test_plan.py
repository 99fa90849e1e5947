"""The planner's counts are those of really made models, of transformers' models, and of the papers."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minipeft
from minipeft.compare import plan, plan_papers
from minipeft.compare.exits import OFFERED
from minipeft.compare.plan_models import PUBLISHED, Shape, load_shape, shape_of
from minipeft.data import files
from minipeft.interop import make_model
from minipeft.methods import METHODS, attach
from minipeft.methods.nf4 import Quantised
from minipeft.models import TransformerConfig
from minipeft.nn import Parameter

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# ---- the published sizes are transformers' own ---------------------------------------------------------------------


def peers_model(peer, raw, **more):
    """transformers' model of a config, on the meta device: shapes without memory."""
    torch, transformers = peer("torch"), peer("transformers")
    if raw["model_type"] == "bart":
        more = {"decoder_ffn_dim": raw["encoder_ffn_dim"], "decoder_attention_heads": raw["encoder_attention_heads"], **more}
    config = transformers.AutoConfig.for_model(**raw, **more)
    causal, writing = ("gpt2", "llama", "mistral", "qwen2"), ("t5", "mt5", "bart")
    name = raw["model_type"]
    kind = "AutoModelForCausalLM" if name in causal else "AutoModelForSeq2SeqLM" if name in writing else "AutoModel"
    with torch.device("meta"):
        return getattr(transformers, kind).from_config(config)


def number_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_in_transformers(name, peer):
    assert load_shape(name).pretrained == number_of(peers_model(peer, PUBLISHED[name]))


BART = {"model_type": "bart", "vocab_size": 50, "d_model": 24, "encoder_layers": 3, "decoder_layers": 2,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 36, "max_position_embeddings": 30}
DEBERTA = {"model_type": "deberta-v2", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
           "intermediate_size": 36, "max_position_embeddings": 30, "type_vocab_size": 0, "relative_attention": True,
           "position_buckets": 6, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
           "position_biased_input": False}
ROBERTA = {"model_type": "roberta", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
           "intermediate_size": 36, "max_position_embeddings": 30, "type_vocab_size": 1}
FOREIGN = [BART, BART | {"decoder_layers": 4, "encoder_layers": 1}, ROBERTA, DEBERTA, DEBERTA | {"conv_kernel_size": 5},
           DEBERTA | {"share_att_key": False, "type_vocab_size": 2}, DEBERTA | {"share_att_key": False, "pos_att_type": "c2p"},
           DEBERTA | {"norm_rel_ebd": "none", "position_buckets": -1, "max_relative_positions": 7},
           DEBERTA | {"position_biased_input": True, "relative_attention": False, "pos_att_type": None}]


@pytest.mark.parametrize("raw", FOREIGN, ids=lambda raw: raw["model_type"])
def test_shapes_that_are_not_run_here_are_counted_part_by_part(raw, peer):
    shape, model = shape_of(raw), peers_model(peer, raw)
    sizes = {name: p.numel() for name, p in model.named_parameters() if ".pooler." not in f".{name}"}
    assert shape.pretrained == number_of(model) and shape.body == sum(sizes.values())
    count = lambda name, **given: plan.count(METHODS[name](**given), shape)
    norms = {name: n for name, n in sizes.items() if re.search("norm", name, re.IGNORECASE)}
    assert count("full") == shape.body and count("layernorm") == sum(norms.values())
    assert count("bitfit") == sum(n for name, n in sizes.items() if name.endswith(".bias"))
    assert count("houlsby", train_norms=True) == count("houlsby") + sum(norms.values())
    top = {"bart": "decoder.layers.", "roberta": "encoder.layer.", "deberta-v2": "encoder.layer."}[raw["model_type"]]
    last = raw.get("decoder_layers", raw.get("num_hidden_layers")) - 1
    assert count("top_k", layers=1) == sum(n for name, n in sizes.items() if f"{top}{last}." in name)


DECODER = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 36,
           "max_position_embeddings": 30}
QWEN2, MT5 = DECODER | {"model_type": "qwen2", "num_key_value_heads": 2}, {"model_type": "mt5", "vocab_size": 50, "d_model": 24,
                                                                           "d_ff": 36, "num_layers": 3, "num_heads": 4, "d_kv": 5}
RELATED = [ROBERTA | {"model_type": "xlm-roberta"}, ROBERTA | {"model_type": "camembert", "type_vocab_size": 2},
           DECODER | {"model_type": "mistral", "sliding_window": 8, "num_attention_heads": 16}, QWEN2,
           DECODER | {"model_type": "qwen2", "hidden_size": 128, "num_attention_heads": 64},
           QWEN2 | {"tie_word_embeddings": True}, MT5,
           MT5 | {"num_decoder_layers": 2, "feed_forward_proj": "relu", "tie_word_embeddings": True},
           DECODER | {"model_type": "mistral", "num_key_value_heads": 4, "head_dim": 6, "rope_theta": 1e6}]


@pytest.mark.parametrize("raw", RELATED, ids=lambda raw: raw["model_type"])
def test_what_counts_as_a_family_counts_as_transformers_says(raw, peer):
    """What the config leaves out is what transformers means by that."""
    shape, model = shape_of(raw), peers_model(peer, raw)
    sizes = {name: p.numel() for name, p in model.named_parameters() if not re.search("(^|[.])pooler[.]|^lm_head", name)}
    assert shape.pretrained == number_of(model) and shape.body == sum(sizes.values())
    assert plan.count(METHODS["layernorm"](), shape) == sum(n for name, n in sizes.items()
                                                            if re.search("norm", name, re.IGNORECASE))
    assert plan.count(METHODS["bitfit"](), shape) == sum(n for name, n in sizes.items() if name.endswith(".bias"))
    queries, values = (sum(n for name, n in sizes.items() if re.search(f"({long}|{long[0]}_proj|[.]{long[0]})[.]weight", name))
                       for long in ("query", "value"))
    maps = plan.linear_shapes(shape.config)
    assert [sum(a * b for path, (a, b) in maps.items() if path.endswith(f".{end}")) for end in "qv"] == [queries, values]
    assert not shape.runs_here and shape.model_type == raw["model_type"]


def test_fields_that_change_no_count_are_not_asked_for():
    llama = DECODER | {"model_type": "llama"}
    for raw, more in ((llama, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "hidden_act": "relu2"}),
                      (ROBERTA, {"position_embedding_type": "absolute", "hidden_act": "quick_gelu", "is_decoder": True}),
                      (PUBLISHED["gpt2"], {"activation_function": "gelu_10", "scale_attn_by_inverse_layer_idx": True})):
        assert shape_of(raw | more).total == shape_of(raw).total
        assert not shape_of(raw | more).runs_here  # it computes something else
    assert shape_of(llama).runs_here and shape_of(PUBLISHED["gpt2"]).runs_here and not shape_of(ROBERTA).runs_here


def test_a_related_decoder_classifies_by_its_last_token(tmp_path, peer):
    torch, transformers = peer("torch"), peer("transformers")
    files.write_json(tmp_path / "config.json", QWEN2)
    shape = load_shape(tmp_path, "classify", 5)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(**QWEN2, num_labels=5))
    assert shape.config.pooling == "last" and shape.total == number_of(model)


@pytest.mark.parametrize("raw, kind", [(ROBERTA, "Roberta"), (DEBERTA, "DebertaV2"), (BART, "Bart")],
                         ids=["roberta", "deberta", "bart"])
def test_their_classifiers_have_a_square_map(raw, kind, peer, tmp_path):
    torch, transformers = peer("torch"), peer("transformers")
    files.write_json(tmp_path / "config.json", raw)
    shape = load_shape(tmp_path, "classify", classes=5)
    config = transformers.AutoConfig.for_model(
        **raw, **({"decoder_ffn_dim": 36, "decoder_attention_heads": 4} if raw is BART else {}), num_labels=5)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    assert shape.total == number_of(model)
    width = shape.config.hidden_size
    assert shape.head == width * width + width + 5 * width + 5
    assert (plan.plan(METHODS["lora"](), shape, plan.Setting(length=8)).trainable
            == plan.count(METHODS["lora"](), shape) + shape.head)


# ---- the papers' counts ---------------------------------------------------------------------------------------------

OURS = {"RoBERTa-base": "roberta-base", "RoBERTa-large": "roberta-large", "DeBERTa-XXL": "deberta-xxl", "GPT-2 M": "gpt2-medium",
        "GPT-2 L": "gpt2-large", "GPT-3": "gpt3-175b", "BERT-base": "bert-base", "BERT-large": "bert-large", "T0-3B": "t0-3b",
        "T0-11B": "t0-11b", **{f"T5.1.1-{size}": f"t5-v1_1-{size.lower()}" for size in ("Small", "Base", "Large", "XL", "XXL")}}


def printed(value, like):
    """A number as a paper writes it that wrote ``like``: 786432 like 0.8M is 0.8M."""
    digits = re.match(r"[0-9,]*\.?([0-9]*)", like)[1]
    unit = {"M": 1e6, "K": 1e3, "%": 1}.get(like[-1])
    return f"{value:,}" if unit is None else f"{value / unit:.{len(digits)}f}{like[-1]}"


def test_how_papers_write_numbers():
    assert [printed(786432, "0.8M"), printed(249856, "250K"), printed(77037952, "77,037,952"), printed(0.013074, "0.01907%")] == [
        "0.8M", "250K", "77,037,952", "0.01307%"]


@pytest.fixture(scope="module")
def published(shared):
    """{(paper, model, what is trained): row} of the table of published counts, in our names of the models."""
    path = shared / "published_counts.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/published_counts.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["paper"], OURS[row["model"]], re.sub(' ".*"$', "", row["method"])): row for row in rows}


def key(row):
    return row.paper, row.model, row.what


@pytest.mark.parametrize("row", plan_papers.PAPERS, ids=lambda row: " ".join(key(row)))
def test_a_count_of_a_paper_comes_out_as_printed_or_is_a_known_misprint(row, published):
    there, value = published[key(row)], row.value()
    assert value == pytest.approx(float(there["computed"].replace(",", "")), rel=0, abs=0 if row.unit == "parameters" else 1e-6)
    if there["verdict"] == "DIFF":
        assert row.misprint and printed(value, there["published"].removesuffix("B")) != there["published"].removesuffix("B")
    else:
        assert there["verdict"] in ("MATCH", "MATCH*") and not row.misprint
        assert printed(value, there["published"]) == there["published"]


def test_every_published_row_is_there_once(published):
    assert sorted(map(key, plan_papers.PAPERS)) == sorted(published)


def test_no_published_figure_stands_in_the_package(published):
    package = Path(minipeft.__file__).parent
    text = "".join(path.read_text(encoding="utf-8")
                   for path in (package / "compare").glob("plan*.py")).replace(",", "").replace("_", "")
    figures = {row[column].replace(",", "") for row in published.values() for column in ("published", "computed")}
    long = {figure for figure in figures if len(re.sub("[^0-9]", "", figure)) > 5}  # shorter ones may be widths
    assert len(long) > 40 and not [figure for figure in long if figure in text]


def test_an_adapter_behind_a_trained_norm():
    shape = load_shape("gpt2-medium")
    assert plan_papers.adapter_l(7)(shape) == 24 * (2 * 1024 * 7 + 7 + 1024) + 24 * 2 * 1024


# ---- random shapes against models that are really made --------------------------------------------------------------

SETTINGS = {"bitfit": {"add_zero_biases": True}, "top_k": {"layers": 1}, "adalora": {"rank": 3}, "compacter": {"bottleneck": 12},
            "random_mask": {"share": 0.1}, "fisher_mask": {"share": 0.1}, "prefix": {"num_virtual_tokens": 3},
            "prompt": {"num_virtual_tokens": 3},
            **{name: {"rank": 2, "targets": "attn.*,mlp.up"} for name in ("lora", "rslora", "lora_plus", "dora", "pissa")}}


@st.composite
def shapes(draw):
    """A shape that runs here, with a task."""
    family, heads = draw(st.sampled_from(["bert", "gpt2", "llama", "t5"])), draw(st.sampled_from([1, 2, 4]))
    head_dim, flags = 4 * draw(st.integers(1, 2)), draw(st.booleans())
    task = {"bert": "classify", "t5": "seq2seq"}.get(family) or draw(st.sampled_from(["lm", "classify"]))
    pooling = draw(st.sampled_from(["mean", "cls", "pooler"])) if family == "bert" else "last"
    config = TransformerConfig(
        model_type=family, vocab_size=draw(st.integers(9, 20)), hidden_size=heads * head_dim if family != "t5" else 8,
        num_hidden_layers=draw(st.integers(1, 3)), num_attention_heads=heads, head_dim=head_dim, max_position_embeddings=40,
        num_key_value_heads=draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0])) if family == "llama" else heads,
        intermediate_size=4 * draw(st.integers(2, 5)), num_decoder_layers=draw(st.integers(1, 3)) if family == "t5" else 0,
        gated=family == "llama" or family == "t5" and draw(st.booleans()), type_vocab_size=2 if family == "bert" else 0,
        tie_word_embeddings=draw(st.booleans()), relative_attention_num_buckets=6, relative_attention_max_distance=9,
        labels=tuple("abc") if task == "classify" else (), pooling=pooling if task == "classify" else None,
        **({"attention_bias": flags, "attention_out_bias": flags, "mlp_bias": flags} if family in ("llama", "t5") else {}))
    return Shape("made", family, task, config, pre_norm=config.pre_norm)


def attached(name, shape):
    """A really made model of a shape with a method on it, the method, and the attachment."""
    model = make_model(shape.config, shape.task, np.random.default_rng(0))
    method = plan.make_method(name, SETTINGS.get(name, {}), shape)
    if name == "fisher_mask":
        real = METHODS[name](**SETTINGS[name], importance={path: p.data**2 for path, p in model.named_parameters()})
        return model, method, attach(model, real)
    return model, method, attach(model, method)


@pytest.mark.parametrize("name", OFFERED)
@given(data=st.data())
@settings(max_examples=12)
def test_counts_of_random_shapes_are_those_of_made_models(name, data):
    leaves = lambda shape: shape.task == "classify" and shape.config.num_hidden_layers > 1
    shape = data.draw(shapes().filter(leaves) if name == "early_exit" else shapes())
    if name == "head" and shape.head == 0:
        shape = dataclasses.replace(shape, config=shape.config.with_(tie_word_embeddings=False))
    bare = make_model(shape.config, shape.task)
    assert shape.total == sum(p.size for p in bare.parameters())
    model, method, attachment = attached(name, shape)
    row = plan.plan(method, shape, plan.Setting(2, 5, 4))
    assert (row.without_head, row.trainable) == (attachment.trainable_without_head, attachment.trainable)
    parameters = {id(v): v for m in model.modules() for v in vars(m).values() if isinstance(v, Parameter)}
    own_head = sum(p.size for p in attachment.head.own.parameters()) if attachment.head else 0
    assert row.total == sum(p.size for p in parameters.values()) - own_head
    assert row.share == attachment.trainable / row.total and row.share_without_head <= row.share
    assert row.gradients_bytes == 4 * attachment.trainable and row.moments_bytes == 8 * attachment.trainable
    arrays = {id(p.data): p.data for p in parameters.values()} | {id(a): a for a in model.values.base.values()}
    fixed = 4 * row.without_head if name == "pissa" else 8 * row.without_head if name.endswith("mask") else 0
    assert row.weights_bytes == sum(a.nbytes for a in arrays.values()) + fixed


def test_early_exit_is_all_of_the_model_and_a_head_behind_each_block_but_the_last():
    for name, classes, head in (("gpt2", 3, 768 * 3), ("bert-base", 3, 768 * 769 + 769 * 3),
                                ("roberta-base", 5, 768 * 769 + 769 * 5)):
        shape = load_shape(name, "classify", classes)
        row = plan.plan(plan.make_method("early_exit", {}, shape), shape)
        assert shape.head + shape.pooler == head and row.trainable == row.total == shape.total + 11 * head
        full = plan.plan(METHODS["full"](), shape)
        assert row.without_head == row.trainable - shape.head and not row.merges and row.inference_flops > full.inference_flops
        assert row.weights_bytes == 4 * row.total and row.task_bytes == 4 * row.total


@pytest.mark.parametrize("name, task", [("gpt2", "lm"), ("t5-v1_1-small", "seq2seq"), ("bart-large", "classify")])
def test_early_exit_needs_classes_and_one_stack(name, task):
    shape = load_shape(name, task)
    with pytest.raises(ValueError, match=f"^early_exit: expected an encoder or a decoder with 2 blocks or more that classifies, "
                                         f"got a {shape.family} with {shape.config.num_hidden_layers} blocks, for {task}; "
                                         "see --task$"):
        plan.plan(plan.make_method("early_exit", {}, shape), shape, plan.Setting(length=8))


@given(st.integers(1, 100_000))
def test_bytes_in_4_bits_are_those_that_are_stored(size):
    assert plan.nf4_bytes(size) == Quantised(np.ones((1, size), np.float32), True).nbytes


def test_a_base_in_4_bits():
    shape, four = load_shape("llama-7b"), plan.Setting(base_bits=4)
    row, whole = plan.plan(METHODS["lora"](), shape, four), plan.plan(METHODS["lora"](), shape)
    maps = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert (whole.weights_bytes - row.weights_bytes
            == 4 * maps - 32 * (4 * plan.nf4_bytes(4096**2) + 3 * plan.nf4_bytes(4096 * 11008)))
    assert 4.126 < 8 * (row.weights_bytes - 4 * (row.total - maps)) / maps < 4.128
    # a change cannot be merged into 4 bits
    assert whole.merges and not row.merges and row.inference_flops > whole.inference_flops


def test_what_is_stored_for_tasks():
    shape = load_shape("bert-base", classes=3)
    row = plan.plan(METHODS["lora"](), shape)
    assert row.task_bytes == 4 * row.trainable == 4 * (row.without_head + 3 * 768 + 3)
    assert row.tasks_bytes == 1000 * row.task_bytes and row.copies_bytes == 4000 * shape.total
    half = plan.plan(METHODS["lora"](), shape, plan.Setting(dtype="bfloat16"))
    assert ((half.task_bytes, half.gradients_bytes, half.moments_bytes)
            == (row.task_bytes // 2, row.gradients_bytes // 2, row.moments_bytes))
    plain, network = (plan.plan(METHODS["prefix"](reparametrise=flag), shape) for flag in (False, True))
    assert network.trainable > 20 * plain.trainable and network.task_bytes == plain.task_bytes  # the network is dropped
    mask = plan.plan(METHODS["random_mask"](), shape)
    assert mask.task_bytes == 4 * mask.trainable + 8 * mask.without_head  # and where each entry stands


def test_time_is_operations_over_the_rate():
    shape = load_shape("gpt2")
    row = plan.plan(METHODS["lora"](), shape, plan.Setting(4, 100, flops=1e9, tokens=1001))
    assert row.step_seconds == (row.forward_flops + row.backward_flops) / 1e9 and row.steps == 3
    assert row.training_seconds == 3 * row.step_seconds and row.inference_seconds == row.inference_flops / 1e9
    rows = 400  # the usual estimate of a forward pass: 2 N for each token, with N the weights, and attention
    forward = 2 * rows * (12 * 12 * 768**2 + 768 * 50257) + 12 * 4 * 4 * 100 * 100 * 768
    assert row.inference_flops == forward < row.forward_flops


# ---- reading configs ------------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_a_name(tmp_path, shared):
    folder = shared / "models" / "minilm"
    by_folder, by_file = load_shape(folder), load_shape(folder / "config.json")
    assert by_folder.config == by_file.config and by_folder.total == 22_566_146  # the README's
    assert load_shape("T5-v1_1-small".lower()).task == "seq2seq" and load_shape("gpt2", "classify").head == 2 * 768
    files.write_json(tmp_path / "config.json", PUBLISHED["bert-base"] | {"architectures": ["BertForSequenceClassification"]})
    assert load_shape(tmp_path).config.pooling == "pooler" == load_shape("bert-base").config.pooling
    assert load_shape("bert-base", pooling="mean").total == load_shape("bert-base").total - 768 * 769


@pytest.mark.parametrize("raw, message", [
    ({}, "no plan for model_type None; known: bert, roberta, deberta-v2, gpt2, llama, t5, bart, xlm-roberta, camembert, "
         "mistral, mt5, qwen2"),
    (ROBERTA | {"model_type": "xlm-roberta", "position_embedding_type": "relative_key"},
     "position_embedding_type is 'relative_key', which is not supported"),
    ({"model_type": ["bert"]}, "no plan for model_type ['bert']"),
    ({"model_type": "bert"}, "expected a whole number of at least 1 for vocab_size, got None"),
    (ROBERTA | {"hidden_size": "wide"}, "expected a whole number of at least 1 for hidden_size, got 'wide'"),
    (BART | {"d_model": True}, "expected a whole number of at least 1 for d_model, got True"),
    (BART | {"decoder_ffn_dim": 40},
     "decoder_ffn_dim is 40 and the encoder's 36; only models with two like sides can be planned"),
    (BART | {"dropout": 1}, "expected a number from 0 to below 1 for dropout, got 1"),
    (DEBERTA | {"intermediate_size": 0}, "expected a whole number of at least 1 for intermediate_size, got 0"),
])
def test_configs_that_cannot_be_planned(raw, message, tmp_path):
    files.write_json(tmp_path / "config.json", raw)
    with pytest.raises(ValueError, match=re.escape(f"config.json: {message}")):
        load_shape(tmp_path / "config.json")
