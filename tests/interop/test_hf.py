"""Hugging Face folders: what is loaded, saved and loaded again is the same, transformers agrees, and bad folders are named."""

import json
import re

import numpy as np
import pytest

from minipeft.data import files
from minipeft.interop import load_pretrained, make_model, save_pretrained
from minipeft.interop.hf import head_kind
from minipeft.interop.hf_config import config_from_hf
from minipeft.methods import LoRA, attach
from minipeft.models import ClassificationHead, TransformerConfig
from minipeft.nn import Linear, Wrapper, layers

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
         "max_position_embeddings": 24, "initializer_range": 0.3, "pad_token_id": 0}
FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2, "norm_eps": 1e-12, "hidden_dropout": 0.1, "embedding_dropout": 0.1,
             "attention_dropout": 0.2},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new", "hidden_dropout": 0.3, "embedding_dropout": 0.1,
             "attention_dropout": 0.2},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "rope_theta": 500.0, "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
              "tie_word_embeddings": False},
    "llama tied": {"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 1, "eos_token_id": (1, 2)},
    "t5": {"model_type": "t5", "num_decoder_layers": 3, "head_dim": 5, "hidden_act": "gelu_new", "gated": True, "norm_eps": 1e-6,
           "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
           "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "initializer_range": 1.0,
           "decoder_start_token_id": 0},
    "t5 tied": {"model_type": "t5", "num_decoder_layers": 1, "hidden_act": "relu", "norm_eps": 1e-6, "hidden_dropout": 0.2,
                "attention_dropout": 0.2, "embedding_dropout": 0.2, "attention_bias": False, "attention_out_bias": False,
                "mlp_bias": False, "initializer_range": 1.0},
}
CASES = [("bert", "none", None), ("bert", "mlm", None), ("bert", "classify", "pooler"), ("bert", "classify", "mean"),
         ("bert", "classify", "cls"), ("gpt2", "none", None), ("gpt2", "lm", None), ("gpt2", "classify", "last"),
         ("gpt2", "classify", "mean"), ("llama", "none", None), ("llama", "lm", None), ("llama", "classify", "last"),
         ("llama tied", "lm", None), ("llama tied", "classify", "last"),
         ("t5", "none", None), ("t5", "seq2seq", None), ("t5 tied", "seq2seq", None)]
IDENTIFIERS = ["-".join(filter(None, case)).replace(" ", "_") for case in CASES]
every_case = pytest.mark.parametrize("family,task,pooling", CASES, ids=IDENTIFIERS)


def make(family, task="none", pooling=None, labels=("bad", "meh", "good"), **changes):
    """A tiny model with weights large enough to matter."""
    config = TransformerConfig(**SHAPE | FAMILIES[family] | {"labels": labels if task == "classify" else (), "pooling": pooling}
                               | changes)
    rng = np.random.default_rng(0)
    model = make_model(config, task, rng)
    for path, parameter in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * 0.2
    return model


@pytest.fixture
def saved(tmp_path):
    """``saved("bert", "mlm")``: the folder of a tiny model."""

    def save(*args, **kwargs):
        folder = tmp_path / "saved"
        save_pretrained(make(*args, **kwargs), folder)
        return folder

    return save


def edit(folder, **changes):
    """Change fields of a folder's config; None removes one."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None or k in ("rope_scaling",)}))


def rewrite(folder, change, name="model.safetensors"):
    """Write a folder's tensors again after ``change(tensors)``."""
    tensors = files.read_tensors(folder / name)
    files.write_tensors(folder / name, change(tensors) or tensors)


def bits(model):
    return {path: p.data.tobytes() for path, p in model.named_parameters()}


def result(model, **kwargs):
    if model.config.encoder_decoder:
        kwargs = {"decoder_input_ids": IDS[::-1], **kwargs}
    output = model(IDS, **kwargs)
    return (output.logits if output.logits is not None else output.last_hidden_state).data


# ---- there and back ---------------------------------------------------------------------------------------------


@every_case
def test_save_and_load_are_exact(family, task, pooling, tmp_path):
    model = make(family, task, pooling)
    save_pretrained(model, tmp_path / "a" / "b")
    loaded = load_pretrained(tmp_path / "a" / "b")
    assert bits(loaded) == bits(model) and type(loaded) is type(model) and head_kind(loaded) == head_kind(model)
    assert loaded.config == model.config and loaded.config.pooling == pooling
    assert (result(loaded) == result(model)).all() and not loaded.training
    save_pretrained(loaded, tmp_path / "again")
    assert bits(load_pretrained(tmp_path / "again")) == bits(model)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()
    assert (tmp_path / "again" / "head.safetensors").exists() == (pooling in ("mean", "cls"))


@pytest.mark.parametrize("path", ["golden/bert", "golden/gpt2", "golden/llama", "golden/t5", "models/bert-tiny", "models/minilm",
                                  "models/stories260K"])
def test_real_folders_round_trip(path, shared, tmp_path):
    model = load_pretrained(shared / path)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert bits(again) == bits(model) and again.config == model.config
    theirs, ours = (files.read_tensors(folder / "model.safetensors") for folder in (shared / path, tmp_path))
    theirs = {re.sub("gamma$", "weight", re.sub("beta$", "bias", name)): array for name, array in theirs.items()
              if "position_ids" not in name}
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].shape == array.shape and ours[name].tobytes() == array.tobytes(), name
    fields, written = (files.read_json(folder / "config.json", "config") for folder in (shared / path, tmp_path))
    for name, value in fields.items():
        assert name == "torch_dtype" or written[name] == value, name


def test_loaded_weights_are_own_writable_float32_arrays(saved):
    for case in (("bert", "classify", "mean"), ("gpt2", "lm"), ("llama", "lm")):
        parameters = load_pretrained(saved(*case)).parameters()
        for i, a in enumerate(parameters):
            assert a.dtype == np.float32 and a.data.flags.c_contiguous and a.data.flags.writeable and a.requires_grad
            assert not any(np.may_share_memory(a.data, b.data) for b in parameters[i + 1:])


def test_wrappers_and_disabled_methods_are_not_written(tmp_path):
    class Around(Wrapper):
        def __init__(self, wrapped):
            super().__init__(wrapped)
            self.extra = Linear(12, 12)

        def forward(self, x):
            return self.wrapped(x) + self.extra(x)

    model = make("bert", "classify", "pooler")
    before = bits(model)
    for path in ("blocks.0.attn.q", "head.classifier", "head"):
        model.replace(path, Around(model.get(path)))
    save_pretrained(model, tmp_path)
    assert bits(load_pretrained(tmp_path)) == before


def test_saving_replaces_what_was_there(tmp_path):
    save_pretrained(make("bert", "classify", "mean"), tmp_path)
    assert (tmp_path / "head.safetensors").is_file()
    save_pretrained(make("bert", "mlm"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert head_kind(load_pretrained(tmp_path)) == "masked_lm"


def test_tokenizer_files_come_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "README.md", "model.safetensors"):
        (source / name).write_text(name)
    save_pretrained(make("bert"), tmp_path / "new", tokenizer_from=source)
    assert (sorted(p.name for p in (tmp_path / "new").iterdir())
            == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
    save_pretrained(make("bert"), tmp_path / "new", tokenizer_from=tmp_path / "new")  # onto itself
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "tokenizer.json"


def test_a_pooler_that_is_not_used_is_kept_for_others(saved, tmp_path):
    folder = saved("bert", "classify", "pooler")
    pooler = files.read_tensors(folder / "model.safetensors")["bert.pooler.dense.weight"]
    for number, kwargs in enumerate(({"task": "none"}, {"task": "classify", "pooling": "mean"})):
        target = tmp_path / str(number)
        save_pretrained(load_pretrained(folder, **kwargs), target)
        assert (files.read_tensors(target / "model.safetensors")["pooler.dense.weight"] == pooler).all()
    head = load_pretrained(tmp_path / "0", task="classify", labels=("a", "b"), pooling="pooler").head
    assert (head.pooler.weight.data == pooler.T).all()


# ---- transformers -----------------------------------------------------------------------------------------------


def theirs(peer, folder, **kwargs):
    """transformers' model of a folder, and what it reports about the loading."""
    transformers = peer("transformers")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True, **kwargs)
    return model.eval(), report


def their_result(peer, model, **kwargs):
    torch = peer("torch")
    if model.config.is_encoder_decoder:
        kwargs = {"decoder_input_ids": IDS[::-1].copy(), **kwargs}
    with torch.no_grad():
        output = model(torch.tensor(IDS), **{name: torch.tensor(value) for name, value in kwargs.items()})
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()


@every_case
def test_transformers_loads_what_we_save(family, task, pooling, peer, tmp_path):
    model = make(family, task, pooling)
    save_pretrained(model, tmp_path)
    loaded, report = theirs(peer, tmp_path)
    missing = {name for name in report["missing_keys"] if "pooler" not in name}  # a bare model of ours has none
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    expected = result(model) if pooling not in ("mean", "cls") else model(IDS).last_hidden_state.data
    np.testing.assert_allclose(their_result(peer, loaded), expected, rtol=2e-5, atol=2e-5)
    if task != "classify":
        ours, other = result(model, attention_mask=MASK), their_result(peer, loaded, attention_mask=MASK)
        np.testing.assert_allclose(other[MASK == 1], ours[MASK == 1], rtol=2e-5, atol=2e-5)
    if task == "classify" and pooling not in ("mean", "cls"):
        assert loaded.config.id2label == {0: "bad", 1: "meh", 2: "good"} and loaded.config.label2id["meh"] == 1


def test_training_mode_agrees_on_where_dropout_is(peer, tmp_path):
    """The same probabilities, read back from the fields that transformers reads."""
    save_pretrained(make("bert", "classify", "pooler"), tmp_path / "bert")
    save_pretrained(make("gpt2", "lm"), tmp_path / "gpt2")
    bert, gpt2 = theirs(peer, tmp_path / "bert")[0].config, theirs(peer, tmp_path / "gpt2")[0].config
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob) == (0.1, 0.2)
    assert (gpt2.resid_pdrop, gpt2.embd_pdrop, gpt2.attn_pdrop) == (0.3, 0.1, 0.2)


@pytest.mark.parametrize("family,task", [("bert", "mlm"), ("gpt2", "lm"), ("t5 tied", "seq2seq")])
def test_dropout_acts_in_the_places_of_transformers(family, task, peer, tmp_path, monkeypatch):
    """In training mode both sides drop from arrays of the same shapes, in the same order and with the same probabilities."""
    torch, seen = peer("torch"), []
    model = make(family, task, attention_dropout=0.2)
    save_pretrained(model, tmp_path)
    loaded = theirs(peer, tmp_path, attn_implementation="eager")[0].train()  # the other ways drop inside one fused operation
    drop, our_drop = torch.nn.functional.dropout, layers.F.dropout

    def watched(x, p=0.5, training=True, inplace=False):
        seen.append((tuple(x.shape), round(p, 6)))
        return drop(x, p, training, inplace)

    def ours_watched(x, p, rng):
        seen.append((x.shape, p))
        return our_drop(x, p, rng)

    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    their_result(peer, loaded)
    expected, seen = seen, []
    monkeypatch.setattr(layers.F, "dropout", ours_watched)
    result(model.train(np.random.default_rng(0)))
    assert seen == expected and len(expected) >= 7


BERT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": 13,
        "max_position_embeddings": 9}
GPT2 = {"n_embd": 12, "n_layer": 1, "n_head": 3, "vocab_size": 13, "n_positions": 9, "pad_token_id": 0}
LLAMA = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": 13,
         "pad_token_id": 0}
T5 = {"d_model": 12, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3, "d_ff": 10, "d_kv": 5, "vocab_size": 13,
      "decoder_start_token_id": 0}
FRESH = [("BertModel", BERT), ("BertForMaskedLM", BERT), ("BertForPreTraining", BERT),
         ("BertForSequenceClassification", BERT | {"num_labels": 3}), ("BertForSequenceClassification", BERT),
         ("GPT2Model", GPT2), ("GPT2LMHeadModel", GPT2),
         ("GPT2LMHeadModel", GPT2 | {"activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": False}),
         ("GPT2ForSequenceClassification", GPT2 | {"num_labels": 3}), ("GPT2ForSequenceClassification", GPT2),
         ("LlamaModel", LLAMA), ("LlamaForCausalLM", LLAMA | {"num_key_value_heads": 1, "rope_theta": 77.0}),
         ("LlamaForCausalLM", LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
         ("LlamaForSequenceClassification", LLAMA | {"num_labels": 3}), ("LlamaForSequenceClassification", LLAMA),
         ("T5Model", T5), ("T5ForConditionalGeneration", T5),
         ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-silu"}),
         ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gelu", "num_decoder_layers": None,
                                              "relative_attention_max_distance": 20}),
         ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
                                              "relative_attention_num_buckets": 5})]


def fresh_from_transformers(peer, architecture, fields, folder):
    """A random model of transformers in a folder as it writes it."""
    torch, transformers = peer("torch"), peer("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, architecture).config_class(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("number", range(len(FRESH)), ids=lambda i: f"{FRESH[i][0]}-{i}")
def test_we_load_what_transformers_saves(number, peer, tmp_path):
    model = fresh_from_transformers(peer, *FRESH[number], tmp_path)
    ours = load_pretrained(tmp_path)
    torch = peer("torch")
    target = {"decoder_input_ids": torch.tensor(IDS[::-1].copy())} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        output = model(torch.tensor(IDS), **target)
    expected = next(getattr(output, name) for name in ("logits", "prediction_logits", "last_hidden_state")
                    if hasattr(output, name)).numpy()
    np.testing.assert_allclose(result(ours), expected, rtol=2e-5, atol=2e-5)


def test_an_untied_masked_language_model_is_right_or_refused(peer, tmp_path):
    model = fresh_from_transformers(peer, "BertForMaskedLM", BERT | {"tie_word_embeddings": False}, tmp_path)
    try:
        got = result(load_pretrained(tmp_path))
    except ValueError:
        return
    np.testing.assert_allclose(got, their_result(peer, model), rtol=2e-5, atol=2e-5)


def test_dtypes_as_transformers_saves_them(peer, tmp_path):
    torch = peer("torch")
    model = fresh_from_transformers(peer, "LlamaForCausalLM", LLAMA, tmp_path / "single")
    for kind in (torch.float16, torch.bfloat16):
        half = model.to(kind)
        half.save_pretrained(tmp_path / str(kind))
        loaded = load_pretrained(tmp_path / str(kind))
        assert {p.dtype for p in loaded.parameters()} == {np.dtype(np.float32)}
        np.testing.assert_allclose(result(loaded), their_result(peer, half.float()), rtol=2e-5, atol=2e-5)


def test_shards_as_transformers_saves_them(peer, tmp_path):
    model = fresh_from_transformers(peer, "GPT2LMHeadModel", GPT2, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert bits(load_pretrained(tmp_path / "shards")) == bits(load_pretrained(tmp_path / "whole"))


# ---- precisions and shards, by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_folders(kind, saved):
    folder = saved("llama", "lm")
    whole = load_pretrained(folder)
    tensors = files.read_tensors(folder / "model.safetensors")
    header, data = {}, b""
    for name, array in tensors.items():
        part = array.astype(np.float16).tobytes() if kind == "F16" else (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    loaded = load_pretrained(folder)
    for a, b in zip(whole.parameters(), loaded.parameters()):
        cut = (a.data.astype(np.float16).astype(np.float32) if kind == "F16"
               else (a.data.view(np.uint32) & 0xFFFF0000).view(np.float32))
        assert b.dtype == np.float32 and (b.data == cut).all()


def into_shards(folder):
    tensors = files.read_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        files.write_tensors(folder / shard, {name: tensors[name] for name in names if where[name] == shard})
    files.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    (folder / "model.safetensors").unlink()
    return where


def test_shards(saved):
    folder = saved("gpt2", "lm")
    whole = bits(load_pretrained(folder))
    into_shards(folder)
    assert bits(load_pretrained(folder)) == whole


@pytest.mark.parametrize("spoil,message", [
    (lambda folder, where: (folder / sorted(set(where.values()))[1]).unlink(),
     "the shard model-00002-of-00002.safetensors named in model.safetensors.index.json is missing"),
    (lambda folder, where: files.write_json(folder / "model.safetensors.index.json",
                                            {"weight_map": where | {"extra": sorted(set(where.values()))[0]}}),
     "missing tensors: extra"),
    (lambda folder, where: files.write_json(folder / "model.safetensors.index.json",
                                            {"weight_map": dict.fromkeys(where, sorted(set(where.values()))[0])}),
     "missing tensors: transformer.h.0.attn.c_attn.weight"),
    (lambda folder, where: rewrite(folder, lambda t: t | {"stray": np.ones(1)}, sorted(set(where.values()))[0]),
     "tensor 'stray' is not where model.safetensors.index.json says"),
    (lambda folder, where: files.write_json(folder / "model.safetensors.index.json", {"metadata": {}}),
     "expected an object named weight_map"),
    (lambda folder, where: (folder / "model.safetensors.index.json").write_text("{"), "this index is not JSON"),
])
def test_shards_that_do_not_fit_their_index(saved, spoil, message):
    folder = saved("gpt2", "lm")
    spoil(folder, into_shards(folder))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pretrained(folder)


# ---- tasks, heads and poolings ----------------------------------------------------------------------------------


def head_of(model):
    return {path: p.data for path, p in model.named_parameters() if path.startswith("head.")}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and (a[k] == b[k]).all() for k in a)


@pytest.mark.parametrize("family,pooling", [("bert", "pooler"), ("bert", "mean"), ("gpt2", "last"), ("llama", "mean")])
def test_a_trained_head_is_kept_where_it_fits(family, pooling, saved):
    folder = saved(family, "classify", pooling)
    trained = head_of(load_pretrained(folder))
    for kwargs in ({"task": "classify"}, {"labels": ("x", "y", "z")}, {"pooling": pooling}):
        model = load_pretrained(folder, **kwargs)
        assert same(head_of(model), trained)
        assert model.config.labels == kwargs.get("labels", ("bad", "meh", "good"))
    another = {"pooler": "mean", "mean": "cls", "last": "mean"}[pooling]
    for kwargs in ({"labels": ("x", "y")}, {"pooling": another}):
        fresh = head_of(load_pretrained(folder, **kwargs))
        assert fresh["head.classifier.weight"].shape == (12, len(kwargs.get("labels", "abc")))
        assert not np.isin(fresh["head.classifier.weight"], trained["head.classifier.weight"]).any()
    assert head_of(load_pretrained(folder, task="none")) == {} and load_pretrained(folder, task="none").head is None


def test_a_fresh_classifier_keeps_the_trained_pooler(saved):
    folder = saved("bert", "classify", "pooler")
    trained, fresh = head_of(load_pretrained(folder)), head_of(load_pretrained(folder, labels=("x", "y")))
    assert (trained["head.pooler.weight"] == fresh["head.pooler.weight"]).all() and (fresh["head.classifier.bias"] == 0).all()


def test_fresh_heads_are_a_function_of_the_seed(saved):
    folder = saved("bert")
    load = lambda **kwargs: head_of(load_pretrained(folder, task="classify", labels=("x", "y"), **kwargs))
    assert same(load(), load()) and same(load(), load(rng=np.random.default_rng(0)))
    assert same(load(rng=np.random.default_rng(3)), load(rng=np.random.default_rng(3)))
    assert not same(load(), load(rng=np.random.default_rng(3)))
    assert load()["head.classifier.weight"].std() == pytest.approx(0.3, rel=0.5)  # the config's spread


def test_tasks(saved):
    assert isinstance(load_pretrained(saved("bert", "mlm"), task="classify", labels=("a", "b")).head, ClassificationHead)
    assert head_kind(load_pretrained(saved("gpt2"), task="lm")) == "lm"
    assert head_kind(load_pretrained(saved("gpt2", "lm"))) == "lm"
    assert head_kind(load_pretrained(saved("bert", "mlm"), task="none")) == "none"


@pytest.mark.parametrize("family,task,pooling,kwargs,expected", [
    ("bert", "none", None, {}, "mean"),                                     # a bare encoder: the mean
    ("bert", "mlm", None, {}, "mean"),
    ("bert", "classify", "pooler", {}, "pooler"),                           # transformers' own classifier
    ("bert", "classify", "cls", {}, "cls"), ("bert", "classify", "mean", {}, "mean"),  # ours, as noted
    ("gpt2", "none", None, {}, "last"), ("llama", "lm", None, {}, "last"), ("llama", "classify", "mean", {}, "mean"),
    ("bert", "none", None, {"pooling": "cls"}, "cls"), ("gpt2", "classify", "last", {"pooling": "mean"}, "mean"),  # as asked
])
def test_how_states_are_pooled(family, task, pooling, kwargs, expected, saved):
    model = load_pretrained(saved(family, task, pooling), task="classify", labels=("a", "b", "c"), **kwargs)
    assert model.head.pooling == model.config.pooling == expected


@pytest.mark.parametrize("fields,expected", [
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
])
def test_the_pooling_file_of_sentence_encoders(fields, expected, saved):
    folder = saved("bert")
    (folder / "1_Pooling").mkdir()
    files.write_json(folder / "1_Pooling" / "config.json", fields)
    assert load_pretrained(folder, task="classify", labels=("a", "b")).head.pooling == expected
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="this pooling file is not JSON"):
        load_pretrained(folder, task="classify", labels=("a", "b"))


def test_a_pooling_that_we_have_not_is_not_taken_for_the_mean(saved):
    folder = saved("bert")
    (folder / "1_Pooling").mkdir()
    files.write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True})
    with pytest.raises(ValueError, match="pooling_mode_max_tokens"):
        load_pretrained(folder, task="classify", labels=("a", "b"))


def test_class_names_keep_their_order_beyond_ten(tmp_path):
    labels = tuple(f"class {i}" for i in range(12))
    save_pretrained(make("bert", "classify", "pooler", labels=labels), tmp_path)
    # "10" before "2"
    edit(tmp_path, id2label=dict(sorted(json.loads((tmp_path / "config.json").read_text())["id2label"].items())))
    assert load_pretrained(tmp_path).config.labels == labels


@pytest.mark.parametrize("kwargs,message", [
    ({"task": "qa"}, "task: expected one of classify, lm, mlm, seq2seq, none, got 'qa'"),
    ({"task": "lm"}, "task lm: BERT is an encoder and cannot continue text; use a decoder (GPT-2, LLaMA)"),
    ({"task": "mlm"}, "missing tensors: cls.predictions.* (this folder has no masked-LM head)"),
    ({"task": "classify", "labels": ("a", "b"), "pooling": "max"}, "pooling: expected one of mean, cls, pooler, last, got 'max'"),
])
def test_what_a_bare_encoder_cannot_be(kwargs, message, saved):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pretrained(saved("bert"), **kwargs)


def test_a_decoder_fills_no_masks(saved):
    with pytest.raises(ValueError, match=re.escape("task mlm: filling masks needs an encoder (BERT), this model is a decoder")):
        load_pretrained(saved("gpt2", "lm"), task="mlm")


def test_classification_needs_class_names(saved):
    with pytest.raises(ValueError, match=re.escape("a classifier needs the names of at least 2 classes; labels are []")):
        load_pretrained(saved("bert"), task="classify")


@pytest.mark.parametrize("task", ["classify", "lm", "mlm"])
def test_what_an_encoder_decoder_cannot_be(task, saved):
    message = (f"task {task}: T5 is an encoder-decoder, which is loaded with task seq2seq or none; "
               "use an encoder (BERT) or a decoder")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pretrained(saved("t5", "seq2seq"), task=task, labels=("a", "b"))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_only_an_encoder_decoder_can_be(family, saved):
    with pytest.raises(ValueError, match=re.escape("task seq2seq: writing one text from another needs an encoder-decoder (T5)")):
        load_pretrained(saved(family), task="seq2seq")


def test_copies_and_relics_in_folders_of_t5_are_passed_over(saved):
    """Both stacks' copies of the word vectors, and the first release's table of distances in cross-attention."""
    folder = saved("t5 tied", "seq2seq")
    before = bits(load_pretrained(folder))
    rewrite(folder, lambda t: t.update({name: t["shared.weight"] for name in ("encoder.embed_tokens.weight",
                                                                              "decoder.embed_tokens.weight", "lm_head.weight")}
                                       | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight":
                                          np.ones((32, 3), np.float32)}))
    assert bits(load_pretrained(folder)) == before


def test_a_bare_t5_gets_a_fresh_output_map_from_the_generator(saved):
    folder = saved("t5")
    one, two = (load_pretrained(folder, task="seq2seq", rng=np.random.default_rng(seed)) for seed in (0, 1))
    differing = {path for path, array in bits(one).items() if array != bits(two)[path]}
    assert differing == {"head.output.weight"}


def test_a_t5_that_no_config_describes_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="save: a T5 config cannot say a gated feed-forward with the exact GELU; "
                                         "use hidden_act 'gelu_new'"):
        save_pretrained(make("t5", "seq2seq", hidden_act="gelu"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kwargs", [{}, {"task": "classify"}])
def test_a_missing_head_says_so(kwargs, saved):
    folder = saved("bert", "classify", "mean")
    (folder / "head.safetensors").unlink()
    with pytest.raises(ValueError, match="head.safetensors"):
        load_pretrained(folder, **kwargs)


def test_a_head_that_does_not_fit_its_folder(saved):
    folder = saved("bert", "classify", "mean")
    rewrite(folder, lambda t: {"classifier.weight": t["classifier.weight"][:2], "pooler.weight": np.ones(1)}, "head.safetensors")
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    message = str(error.value)
    assert ("head.safetensors: missing tensors: head.classifier.bias" in message
            and "unexpected tensors: head.pooler.weight" in message)
    assert "head.classifier.weight (expected (12, 3), got (12, 2))" in message


# ---- bad folders ------------------------------------------------------------------------------------------------


def test_no_folder_no_config_no_weights(tmp_path, saved):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'absent'}: no such folder; "
                                                   "expected a Hugging Face model folder")):
        load_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: no config.json; expected a Hugging Face model folder")):
        load_pretrained(tmp_path)
    folder = saved("bert")
    with pytest.raises(ValueError, match=r"config\.json: is a file; expected a Hugging Face model folder$"):
        load_pretrained(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder}: no model.safetensors and no model.safetensors.index.json")):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_a_pickle_is_never_opened(name, saved):
    folder = saved("bert")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=re.escape(f"{folder}: {name} is a pickle, and opening a pickle can run any program "
                                                   "hidden in it; convert it to model.safetensors first")):
        load_pretrained(folder)


UNSUPPORTED = [
    ("bert", {"model_type": "roberta"}, "unknown model_type 'roberta'; known: bert, gpt2, llama, t5"),
    ("bert", {"model_type": None}, "unknown model_type None; known: bert, gpt2, llama, t5"),
    ("bert", {"hidden_act": "gelu_10"}, "the activation is 'gelu_10', which is not supported (supported: gelu, gelu_new"),
    ("gpt2", {"activation_function": "mish"}, "the activation is 'mish', which is not supported"),
    ("bert", {"position_embedding_type": "relative_key"},
     "position_embedding_type is 'relative_key', which is not supported (supported: 'absolute')"),
    ("bert", {"is_decoder": True}, "is_decoder is True, which is not supported"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True},
     "scale_attn_by_inverse_layer_idx is True, which is not supported (supported: False)"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False, which is not supported (supported: True)"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True, which is not supported"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
     "rope_scaling is {'rope_type': 'llama3', 'factor': 8.0}, which is not supported"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}},
     "rope_scaling is {'type': 'linear', 'factor': 2.0}, which is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters is {'rope_type': 'yarn'"),
    ("bert", {"hidden_size": "12"}, "expected a whole number of at least 1 for hidden_size, got '12'"),
    ("bert", {"num_hidden_layers": 0}, "expected a whole number of at least 1 for num_hidden_layers, got 0"),
    ("bert", {"vocab_size": None}, "expected a whole number of at least 1 for vocab_size, got None"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "the activation is 'mish', which is not supported (supported: gelu, gelu_new"),
    ("t5", {"feed_forward_proj": 3},
     "expected the name of an activation, perhaps with gated- before it for feed_forward_proj, got 3"),
    ("t5", {"d_model": "12"}, "expected a whole number of at least 1 for d_model, got '12'"),
    ("t5", {"num_decoder_layers": 0}, "expected a whole number of at least 1 for num_decoder_layers, got 0"),
    ("t5", {"relative_attention_num_buckets": 3},
     "expected a whole number of at least 4 for relative_attention_num_buckets, got 3"),
    ("t5", {"relative_attention_max_distance": 3},
     "config: relative positions need at least 4 buckets and a relative_attention_max_distance above half their number, "
     "got 6 and 3"),
    ("t5", {"dropout_rate": 1}, "expected a number from 0 to below 1 for dropout_rate, got 1"),
    ("bert", {"num_attention_heads": 5}, "config: hidden_size 12 is not a multiple of num_attention_heads 5"),
]


@pytest.mark.parametrize("family,changes,message", UNSUPPORTED,
                         ids=["-".join([f, *c]) + f"-{i}" for i, (f, c, _) in enumerate(UNSUPPORTED)])
def test_a_config_that_we_cannot_honour(family, changes, message, saved):
    folder = saved(family)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_pretrained(folder)
    assert message.startswith("config:") or str(error.value).startswith(str(folder / "config.json"))


@pytest.mark.parametrize("changes", [{"rope_scaling": None}, {"rope_scaling": {"rope_type": "default"}},
                                     {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": None}])
def test_plain_rotary_positions_in_every_spelling(changes, saved):
    folder = saved("llama", "lm")
    before = result(load_pretrained(folder))
    edit(folder, **changes)
    assert (result(load_pretrained(folder)) == before).all()


@pytest.mark.parametrize("family,changes", [
    ("llama", {"num_key_value_heads": "2"}), ("llama", {"num_key_value_heads": 0}), ("llama", {"head_dim": "4"}),
    ("llama", {"rope_scaling": "linear"}), ("llama", {"rope_theta": [1]}), ("bert", {"hidden_act": ["gelu"]}),
    ("bert", {"minipeft": "mean"}), ("bert", {"hidden_dropout_prob": {}}), ("bert", {"layer_norm_eps": "small"}),
    ("bert", {"type_vocab_size": "2"}), ("bert", {"architectures": 3}),
])
def test_a_field_of_another_type_is_named(family, changes, saved):
    folder = saved(family)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        load_pretrained(folder)


def test_config_that_is_no_json(saved):
    folder = saved("bert")
    (folder / "config.json").write_text('{"model_type": "bert",')
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'config.json'}: this config is not JSON (")):
        load_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object in this config, got list"):
        load_pretrained(folder)


def test_a_truncated_file(saved):
    path = saved("bert") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a whole safetensors file")):
        load_pretrained(path.parent)


@every_case
def test_missing_extra_and_misshapen_tensors_are_named(family, task, pooling, saved):
    folder = saved(family, task, pooling)
    stored = files.read_tensors(folder / "model.safetensors")
    matrices = sorted(name for name, array in stored.items() if array.ndim == 2)
    gone, bent = matrices[0], matrices[-1]

    def spoil(tensors):
        del tensors[gone]
        tensors[bent] = tensors[bent][:-1]
        tensors["model.layers.7.extra"] = np.ones(2, np.float32)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    message = str(error.value)
    assert (message.startswith(f"{folder}: missing tensors: {gone};") and "unexpected tensors:" in message
            and "layers.7.extra" in message)
    assert re.search(rf"tensors of another shape: {re.escape(bent)} \(expected \(\d+, \d+\), got \(\d+, \d+\)\)", message)


def test_many_missing_tensors_are_counted(saved):
    folder = saved("bert")
    rewrite(folder, lambda tensors: {"embeddings.word_embeddings.weight": tensors["embeddings.word_embeddings.weight"]})
    with pytest.raises(ValueError, match=r"missing tensors: (embeddings\.\S+, ){4}(encoder\.\S+ ?){4}and \d+ more$"):
        load_pretrained(folder)


def test_a_config_of_other_sizes_than_the_tensors(saved):
    folder = saved("gpt2", "lm")
    edit(folder, n_layer=3)
    with pytest.raises(ValueError, match="missing tensors: transformer.h.2.attn.c_attn.bias"):
        load_pretrained(folder)
    edit(folder, n_layer=1)
    with pytest.raises(ValueError, match="unexpected tensors: transformer.h.1.attn.c_attn.bias"):
        load_pretrained(folder)


def test_harmless_tensors_are_passed_over(saved):
    folder = saved("gpt2", "lm")
    before = bits(load_pretrained(folder))
    rewrite(folder, lambda t: t | {"transformer.h.0.attn.bias": np.ones((1, 1, 4, 4)),
                                   "transformer.h.1.attn.masked_bias": np.array([1.0]),
                                   "lm_head.weight": t["transformer.wte.weight"]})
    assert bits(load_pretrained(folder)) == before


@pytest.mark.parametrize("rename", [lambda n: n.removeprefix("bert."),
                                    lambda n: n if n.startswith("bert.") or n.startswith("cls.") else "bert." + n,
                                    lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma")
                                               .replace("LayerNorm.bias", "LayerNorm.beta")])
def test_older_and_shorter_names(rename, saved):
    for case in (("bert", "mlm"), ("bert",)):
        folder = saved(*case)
        before = bits(load_pretrained(folder))
        rewrite(folder, lambda tensors: {rename(name): array for name, array in tensors.items()})
        assert bits(load_pretrained(folder)) == before


def test_an_interrupted_save_leaves_the_old_weights(saved, monkeypatch):
    folder = saved("bert")
    before = bits(load_pretrained(folder))

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError):
        save_pretrained(make("bert", "mlm"), folder)
    assert bits(load_pretrained(folder)) == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_config_read_from_a_dictionary_fills_in_transformers_defaults():
    small = {"vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 3,
             "max_position_embeddings": 6}
    bert, llama = (config_from_hf({"model_type": name, **small}) for name in ("bert", "llama"))
    gpt2 = config_from_hf({"model_type": "gpt2", "vocab_size": 5, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 6})
    assert ((bert.norm_eps, bert.hidden_act, bert.type_vocab_size, bert.hidden_dropout, bert.tie_word_embeddings)
            == (1e-12, "gelu", 2, 0.1, True))
    assert ((gpt2.norm_eps, gpt2.hidden_act, gpt2.intermediate_size, gpt2.attention_dropout, gpt2.tie_word_embeddings)
            == (1e-5, "gelu_new", 16, 0.1, True))
    assert ((llama.norm_eps, llama.hidden_act, llama.rope_theta, llama.hidden_dropout, llama.tie_word_embeddings)
            == (1e-6, "silu", 10000.0, 0.0, False))
    assert (llama.attention_bias, llama.mlp_bias, llama.num_key_value_heads, llama.head_dim) == (False, False, 2, 2)


def test_tokens_of_older_folders(saved):
    folder = saved("llama", "lm")
    edit(folder, pad_token_id=-1, eos_token_id=[3, 5])
    config = load_pretrained(folder).config
    assert config.pad_token_id is None and config.eos_token_id == (3, 5)


@pytest.mark.parametrize("changes", [{"pad_token_id": "0"}, {"eos_token_id": ["a"]}, {"id2label": {"0": "a", "2": "b"}},
                                     {"id2label": {"0": 1, "1": "b"}}, {"tie_word_embeddings": "yes"},
                                     {"hidden_dropout_prob": 1.0}, {"layer_norm_eps": 0}, {"initializer_range": -1}])
def test_more_fields_of_another_kind(changes, saved):
    folder = saved("bert")
    edit(folder, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: expected .* {next(iter(changes))}, got"):
        load_pretrained(folder)


@pytest.mark.parametrize("task", ["none", "mlm"])
def test_a_pooler_that_was_never_trained_is_not_made_up(task, saved):
    folder = saved("bert", task)
    with pytest.raises(ValueError, match=re.escape(f"{folder}: pooling pooler needs a trained pooler, and this folder has none")):
        load_pretrained(folder, task="classify", labels=("a", "b"), pooling="pooler")


@pytest.mark.parametrize("family, pooling", [("bert", "mean"), ("bert", "pooler"), ("gpt2", "last")])
def test_a_merged_model_is_written_with_the_head_that_was_trained(family, pooling, tmp_path):
    model, rng = make(family, "classify", pooling).eval(), np.random.default_rng(1)
    attachment = attach(model, LoRA(rank=2, targets="attn.v"), rng=rng)
    for p in attachment.named_parameters().values():
        p.data = p.data + rng.standard_normal(p.shape).astype(p.dtype)
    ids = rng.integers(1, model.config.vocab_size, (2, 5))
    attachment.merge()
    expected = model(ids).logits.data
    save_pretrained(model, tmp_path / "merged")
    back = load_pretrained(tmp_path / "merged", task="classify", labels=model.config.labels, pooling=pooling).eval()
    assert np.allclose(back(ids).logits.data, expected, atol=1e-5)
    attachment.unmerge()
    save_pretrained(model, tmp_path / "base")
    with attachment.disabled():
        base = model(ids).logits.data
    back = load_pretrained(tmp_path / "base", task="classify", labels=model.config.labels, pooling=pooling).eval()
    assert np.allclose(back(ids).logits.data, base, atol=1e-5) and not np.allclose(base, expected, atol=1e-2)
