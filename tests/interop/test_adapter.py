"""Saved adapters: what was trained predicts the same after loading, the note beside it is checked,
and a failure changes nothing."""

import dataclasses
import itertools
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minipeft.data import files
from minipeft.interop import load_adapter, load_pretrained, load_with_adapter, make_model, save_adapter, save_pretrained
from minipeft.interop.adapter import read_note
from minipeft.methods import METHODS as EVERY
from minipeft.methods import Full, Head, LoRA, attach, quantise
from minipeft.methods.nf4 import quantised, weights_in_4_bits
from minipeft.models import TransformerConfig
from minipeft.nn import Wrapper
from minipeft.training import AdamW

IDS = np.array([[3, 1, 4, 1, 5, 0, 0], [9, 2, 6, 5, 3, 5, 8], [7, 11, 0, 0, 0, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]])
LABELS = ("no", "yes", "perhaps")
NOTE, HEAD, CONFIG, WEIGHTS = "minipeft.json", "head.safetensors", "adapter_config.json", "adapter_model.safetensors"

SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
         "max_position_embeddings": 24, "initializer_range": 0.3, "pad_token_id": 0}
FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2, "hidden_dropout": 0.1, "embedding_dropout": 0.1,
             "attention_dropout": 0.1},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new", "hidden_dropout": 0.1},
    "gpt2 untied": {"model_type": "gpt2", "hidden_act": "gelu_new", "tie_word_embeddings": False},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    "t5": {"model_type": "t5", "num_decoder_layers": 3, "head_dim": 5, "hidden_act": "relu", "hidden_dropout": 0.1,
           "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
           "initializer_range": 1.0},
}
METHODS = {"lora": LoRA(rank=3, alpha=7, dropout=0.1), "head": Head(),
           "lora everywhere": LoRA(rank=2, alpha=0.7, targets="attn.*,mlp.*", rank_pattern={"up": 5}, alpha_pattern={"out": 0.3},
                                   rank_stabilised=True)}


def make(family, task, pooling=None, labels=LABELS, seed=0):
    """A tiny model with weights large enough to matter."""
    config = TransformerConfig(**SHAPE | FAMILIES[family], labels=labels if task == "classify" else (), pooling=pooling)
    return make_model(config, task, np.random.default_rng(seed)).eval()


def base_folder(folder, family, pooling):
    """A base model on disk whose own classes are others (BERT: with a pooler, which only a classifier's folder has)."""
    model = (make(family, "classify", "pooler", ("a", "b")) if pooling == "pooler"
             else make(family, {"bert": "none", "t5": "seq2seq"}.get(family, "lm")))
    save_pretrained(model, folder / "base")
    return folder / "base"


def train(model, attachment, steps=3):
    """A few steps with dropout."""
    classify = model.config.pooling is not None
    optimizer, rng = AdamW(attachment.named_parameters().values(), lr=0.05), np.random.default_rng(3)
    labels = np.array([0, 2, 1]) if classify else IDS
    for _ in range(steps):
        optimizer.zero_grad()
        model.train(rng)(IDS, attention_mask=MASK, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    return attachment


def logits(model):
    target = {"decoder_input_ids": IDS[:, :4]} if model.config.encoder_decoder else {}
    return model(IDS, attention_mask=MASK, **target).logits.data


def bits(model):
    return {path: p.data.tobytes() for path, p in model.named_parameters()}


def trained(folder, family="bert", task="classify", pooling="mean", method="lora"):
    """A base on disk, and an attachment trained on it."""
    base = base_folder(folder, family, pooling)
    model = load_pretrained(base, task=task, labels=LABELS if task == "classify" else None, pooling=pooling,
                            rng=np.random.default_rng(4))
    return base, train(model, attach(model, METHODS[method] if isinstance(method, str) else method, rng=np.random.default_rng(5)))


CASES = [(family, task, pooling, method)
         for family, task, pooling in [("bert", "classify", "mean"), ("bert", "classify", "pooler"), ("bert", "classify", "cls"),
                                       ("gpt2", "classify", "last"),
                                       ("gpt2", "classify", "mean"), ("llama", "classify", "last"), ("llama", "lm", None),
                                       ("gpt2 untied", "lm", None), ("t5", "seq2seq", None)]
         for method in METHODS] + [("gpt2", "lm", None, "lora"), ("gpt2", "lm", None, "lora everywhere")]
every_case = pytest.mark.parametrize("family,task,pooling,method", CASES)


# ---- there and back -------------------------------------------------------------------------------------------------


@every_case
def test_predictions_are_restored_bit_for_bit(family, task, pooling, method, tmp_path):
    base, attachment = trained(tmp_path, family, task, pooling, method)
    expected = logits(attachment.model)
    with attachment.disabled():
        assert np.abs(logits(attachment.model) - expected).max() > 1e-3  # training moved something
    save_adapter(attachment, tmp_path / "adapter", base)
    model, loaded = load_with_adapter(base, tmp_path / "adapter")
    assert (logits(model) == expected).all() and not model.training
    assert model.config.pooling == pooling and (model.config.labels == LABELS if task == "classify" else not model.config.labels)
    before, after = attachment.named_parameters(), loaded.named_parameters()
    assert {n: (p.dtype, p.shape, p.data.tobytes()) for n,
            p in after.items()} == {n: (p.dtype, p.shape, p.data.tobytes()) for n, p in before.items()}
    assert (loaded.table() == attachment.table()
            and (loaded.trainable, loaded.trainable_without_head) == (attachment.trainable, attachment.trainable_without_head))
    assert all(p.data.flags.c_contiguous and p.data.flags.writeable and p.requires_grad for p in after.values())
    assert not any(p.requires_grad for p in model.parameters())
    assert bits(model).items() >= {path: b for path, b in bits(attachment.model).items() if not path.startswith("head.c")}.items()

    save_adapter(loaded, tmp_path / "again", base)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in (tmp_path / "adapter").iterdir())
    for path in (tmp_path / "adapter").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("family,task,pooling,method,names", [
    ("bert", "classify", "pooler", "lora", {WEIGHTS, CONFIG, NOTE}),
    ("bert", "classify", "mean", "lora", {WEIGHTS, CONFIG, NOTE, HEAD}),
    ("gpt2", "lm", None, "lora", {WEIGHTS, CONFIG, NOTE}), ("llama", "classify", "last", "head", {NOTE, HEAD}),
    ("llama", "lm", None, "head", {NOTE, HEAD})])
def test_what_lies_in_the_folder(family, task, pooling, method, names, tmp_path):
    base, attachment = trained(tmp_path, family, task, pooling, method)
    save_adapter(attachment, tmp_path / "some" / "where", base)
    assert {path.name for path in (tmp_path / "some" / "where").iterdir()} == names
    note = files.read_json(tmp_path / "some" / "where" / NOTE, "note")
    settings = dataclasses.asdict(attachment.method) if method == "lora" else {}
    assert note == {"method": method, "settings": settings, "format": "library" if method == "lora" else "own",
                    "model_type": family, "task": task, "labels": list(LABELS) if task == "classify" else [], "pooling": pooling,
                    "head": HEAD if HEAD in names else None, "base": str(base), "quantised": None,
                    "words_crc32": f"{zlib.crc32(attachment.model.embed.tokens.weight.data.tobytes()):08x}",
                    "shape": {"hidden_size": 12, "num_hidden_layers": 2, "num_decoder_layers": 0,
                              "num_attention_heads": 4 if family == "llama" else 3,
                              "num_key_value_heads": 2 if family == "llama" else 3, "head_dim": 4, "intermediate_size": 10},
                    "ranks": {} if method == "head" else {f"blocks.{i}.attn.{seam}": 3 for i in range(2) for seam in "qv"}}
    if HEAD in names:
        head = files.read_tensors(tmp_path / "some" / "where" / HEAD)
        assert (head["weight"] == attachment.head.own.weight.data.T).all()  # as transformers stores a Linear: (out, in)


@pytest.mark.parametrize("name", ["lora", "prompt", "top_k", "bitfit", "random_mask"])
def test_a_base_with_other_word_vectors_is_spoken_of(name, tmp_path):
    """Of the same sizes, so that every array fits."""
    method = EVERY[name](num_virtual_tokens=3) if name == "prompt" else EVERY[name]()
    base, attachment = trained(tmp_path, "bert", "classify", "mean", method)
    save_adapter(attachment, folder := tmp_path / "adapter", base)
    model = load_pretrained(base, task="classify", labels=LABELS, pooling="mean")
    full = attach(model, Full(keeps_base=True), "full")  # what trains in the place of the base is not the base
    full.named_parameters()["embed.tokens.weight"].data += 1
    assert load_adapter(model.astype(np.float64), folder).note == ""
    other = load_pretrained(base, task="classify", labels=LABELS, pooling="mean")
    other.embed.tokens.weight.data[2, 5] += 1e-3
    assert load_adapter(other, folder).note == (f"{folder} was trained on a base with other word vectors than this model's, "
                                                "for which its numbers may mean nothing")


@pytest.mark.parametrize("targets", ["blocks.1.attn.v", "q,k,v"])
def test_separate_adapters_on_gpt2_come_back_apart_untrained_too(targets, tmp_path):
    base = base_folder(tmp_path, "gpt2", None)
    attachment = attach(load_pretrained(base), LoRA(rank=9, alpha=5, targets=targets))  # 3 x 9 rows for a matrix of 12
    save_adapter(attachment, tmp_path / "adapter")
    loaded = load_with_adapter(base, tmp_path / "adapter")[1]
    assert ({n: p.data.tobytes() for n, p in loaded.named_parameters().items()}
            == {n: p.data.tobytes() for n, p in attachment.named_parameters().items()})
    assert loaded.table() == attachment.table()


def test_scales_that_differ_within_c_attn_come_back_as_the_same_product(tmp_path):
    base, attachment = trained(tmp_path, "gpt2", "lm", None,
                               LoRA(rank=2, alpha=5, targets="q,k,v", rank_pattern={"v": 3}, alpha_pattern={"k": 0.3}))
    save_adapter(attachment, tmp_path / "adapter")
    model, loaded = load_with_adapter(base, tmp_path / "adapter")
    for path, wrapper in attachment.wrappers.items():
        assert loaded.wrappers[path].U.data.tobytes() == wrapper.U.data.tobytes()
        np.testing.assert_allclose(loaded.wrappers[path].change(), wrapper.change(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(logits(model), logits(attachment.model), rtol=1e-4, atol=1e-5)
    assert loaded.table() == attachment.table()


def test_a_note_that_no_longer_fits_the_tensors_is_not_believed(tmp_path):
    base, attachment = trained(tmp_path, "gpt2", "lm", None)
    save_adapter(attachment, tmp_path / "adapter")
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    tensors = files.read_tensors(tmp_path / "adapter" / WEIGHTS)
    tensors[key] = np.ones_like(tensors[key])  # trained on in PEFT, say
    files.write_tensors(tmp_path / "adapter" / WEIGHTS, tensors)
    loaded = load_with_adapter(base, tmp_path / "adapter")[1]
    assert [path for path in loaded.wrappers if "blocks.0" in path] == [f"blocks.0.attn.{seam}" for seam in "qkv"]
    assert loaded.wrappers["blocks.0.attn.k"].V.shape == (12, 6) and (loaded.wrappers["blocks.0.attn.k"].V.data == 1).all()
    assert [path for path in loaded.wrappers if "blocks.1" in path] == ["blocks.1.attn.q", "blocks.1.attn.v"]


def test_masks_and_bare_states_need_no_head(tmp_path):
    for task in ("mlm", "none"):
        model = make("bert", task)
        save_pretrained(model, tmp_path / "base")
        attachment = attach(model, LoRA(rank=2), rng=np.random.default_rng(0))
        for p in attachment.named_parameters().values():
            p.data = p.data + np.float32(0.1)
        save_adapter(attachment, tmp_path / task)
        again, _ = load_with_adapter(tmp_path / "base", tmp_path / task)
        assert read_note(tmp_path / task)["task"] == task
        assert (again(IDS).last_hidden_state.data == model(IDS).last_hidden_state.data).all()
        assert (again.head is None) == (task == "none")


def test_a_second_adapter_replaces_all_of_the_first(tmp_path):
    base, mean = trained(tmp_path, "bert", "classify", "mean")
    save_adapter(mean, tmp_path / "adapter")
    model = load_pretrained(base, task="classify", labels=LABELS, pooling="mean")
    head = train(model, attach(model, Head()))
    save_adapter(head, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {NOTE, HEAD}  # PEFT would load what LoRA left
    (tmp_path / "other").mkdir()
    pooler_base, pooler = trained(tmp_path / "other", "bert", "classify", "pooler")
    save_adapter(pooler, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {NOTE, CONFIG, WEIGHTS}  # the mean head is no longer there
    assert (logits(load_with_adapter(pooler_base, tmp_path / "adapter")[0]) == logits(pooler.model)).all()


def test_what_is_not_an_adapter_is_not_saved(tmp_path):
    model = make("bert", "classify", "mean")
    with pytest.raises(ValueError, match="save: full trained the base itself; save the model with save_pretrained"):
        save_adapter(attach(model, Full()), tmp_path / "full")
    lora = attach(make("bert", "classify", "mean"), LoRA(rank=2))
    lora.merge()
    with pytest.raises(ValueError, match="save: this attachment is merged into the base; unmerge it first, "
                                         "or save the whole model"):
        save_adapter(lora, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("targets,double", [(None, True), (["blocks.0.mlp.up", "blocks.1.attn.v"], False)])
@pytest.mark.parametrize("name", ["lora", "dora", "prefix", "houlsby", "bitfit", "head"])
def test_an_adapter_trained_on_a_base_in_4_bits_comes_back_on_one(name, targets, double, tmp_path):
    base = base_folder(tmp_path, "bert", "mean")
    model = load_pretrained(base, task="classify", labels=LABELS, pooling="mean", rng=np.random.default_rng(4))
    plain = logits(model)
    quantise(model, targets, double)
    method = EVERY[name](**{"num_virtual_tokens": 3} if name == "prefix" else {})
    attachment = train(model, attach(model, method, rng=np.random.default_rng(5)))
    save_adapter(attachment, tmp_path / "adapter", base)
    again, loaded = load_with_adapter(base, tmp_path / "adapter")
    assert (logits(again) == logits(model)).all() and loaded.table() == attachment.table()
    with attachment.disabled(), loaded.disabled():
        assert (logits(again) != plain).any()
    stored = files.read_json(tmp_path / "adapter" / NOTE, "note")["quantised"]
    assert stored == {"targets": targets, "double": double} == quantised(again)
    assert weights_in_4_bits(again) == (2 * (4 * 144 + 240) if targets is None else 120 + 144)


# ---- folders that PEFT wrote ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,task,labels,pooling", [
    ("bert_lora_qv", "classify", ["LABEL_0", "LABEL_1", "LABEL_2"], "pooler"), ("gpt2_lora_mlp", "lm", [], None),
    ("llama_lora_qkvo", "lm", [], None)])
def test_a_golden_folder_needs_no_note(name, task, labels, pooling, shared):
    folder, base = shared / "golden/peft" / name, shared / "golden" / name.split("_")[0]
    assert read_note(folder) == {"method": None, "settings": {}, "format": "library", "model_type": None, "task": task,
                                 "labels": labels, "pooling": pooling, "head": None, "ranks": {}, "shape": {},
                                 "words_crc32": None, "quantised": None}
    model = load_with_adapter(base, folder)[0]
    arrays = np.load(f"{base}.npz")
    inputs, expected = {n: arrays[n] for n in ("input_ids", "attention_mask")
                        if n in arrays.files}, np.load(folder / "expected.npz")
    if expected["token_type_ids_used"]:
        inputs["token_type_ids"] = arrays["token_type_ids"]
    got = model(**inputs).logits.data
    assert np.abs(got - expected["logits"]).max() < 5e-6 * np.abs(expected["logits"]).max()


def test_an_adapter_of_peft_tells_the_task_of_t5(shared):
    arrays, folder = np.load(shared / "golden/t5.npz"), shared / "golden/peft/t5_lora_qv"
    model, attachment = load_with_adapter(shared / "golden/t5", folder)
    got = model(arrays["input_ids"], arrays["attention_mask"], labels=arrays["labels"]).logits.data
    expected = np.load(folder / "expected.npz")["logits"]
    assert np.abs(got - expected).max() < 5e-6 * np.abs(expected).max() and attachment.method.targets == [
        path for path in attachment.wrappers if path.rpartition(".")[2] in "qv"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT corrects fan_in_fan_out itself, and says so
@pytest.mark.parametrize("family", ["BERT", "GPT2", "Llama"])
def test_a_classifier_of_peft_on_a_bare_base(family, peer, tmp_path):
    torch, transformers, peft = peer("torch"), peer("transformers"), peer("peft")
    shape = {"BERT": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
                      "max_position_embeddings": 24},
             "GPT2": {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 24, "eos_token_id": 1, "bos_token_id": 1},
             "Llama": {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10}}[family]
    name = {"BERT": "Bert"}.get(family, family)
    torch.manual_seed(0)  # transformers and PEFT draw from torch's own generator
    bare = getattr(transformers, f"{name}Model")(getattr(transformers,
                                                         f"{name}Config")(vocab_size=13, pad_token_id=0, initializer_range=0.3,
                                                                          **shape))
    bare.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "1_Pooling").mkdir()
    # which a classifier of PEFT does not use
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=4)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=7, init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()
    ours, attachment = load_with_adapter(tmp_path / "base", tmp_path / "adapter")
    assert np.abs(logits(ours) - expected).max() < 5e-6 * np.abs(expected).max()
    assert ours.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3") and attachment.head is not None


def test_the_classes_of_peft_are_called_as_the_base_calls_them(tmp_path):
    model = make("bert", "classify", "pooler")
    save_pretrained(model, tmp_path / "base")
    save_adapter(attach(model, LoRA(rank=2)), tmp_path / "adapter")
    (tmp_path / "adapter" / NOTE).unlink()
    assert load_with_adapter(tmp_path / "base", tmp_path / "adapter")[0].config.labels == LABELS


def test_a_folder_of_peft_is_checked_before_the_base_is_loaded(tmp_path):
    save_adapter(attach(make("bert", "classify", "pooler"), LoRA(rank=2)), tmp_path / "adapter")
    (tmp_path / "adapter" / NOTE).unlink()
    config = files.read_json(tmp_path / "adapter" / CONFIG, "config")
    tensors = files.read_tensors(tmp_path / "adapter" / WEIGHTS)
    for changes, message in [({"task_type": "TOKEN_CLS"},
                              "task_type is 'TOKEN_CLS'; expected SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, FEATURE_EXTRACTION or null"),
                             ({"task_type": {}}, "task_type is {}; expected")]:
        files.write_json(tmp_path / "adapter" / CONFIG, config | changes)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_with_adapter(tmp_path / "nowhere", tmp_path / "adapter")
    files.write_json(tmp_path / "adapter" / CONFIG, config)
    files.write_tensors(tmp_path / "adapter" / WEIGHTS, {n: a for n, a in tensors.items() if "classifier" not in n})
    with pytest.raises(ValueError, match=re.escape("the trained head is missing; "
                                                   "expected base_model.model.classifier.weight or")):
        load_with_adapter(tmp_path / "nowhere", tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        load_with_adapter(tmp_path / "nowhere", tmp_path / "adapter")


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["lora", "head"])
def stored(request, tmp_path):
    """The folder of a trained adapter for a BERT with a mean-pooled head; once LoRA, once the head alone."""
    base, attachment = trained(tmp_path, method=request.param)
    save_adapter(attachment, tmp_path / "adapter", base)
    return tmp_path / "adapter"


def edit(folder, name=NOTE, **changes):
    raw = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({field: value for field, value in raw.items() if value is not ...}))


def refused(folder, message, model=None):
    """Loading gives one line that holds ``message``; the model, with another attachment that is active, stays as it was."""
    model = model or make("bert", "classify", "mean")
    first = attach(model, LoRA(rank=1, targets="attn.out"), "first")
    for p in first.named_parameters().values():
        p.data = p.data + np.float32(0.2)
    model.blocks[0].attn.q.weight.requires_grad = True
    states, before, flags = model(IDS).last_hidden_state.data, bits(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_adapter(model, folder)
    assert "\n" not in str(error.value) and list(model.attachments) == ["first"] and first.active
    assert ((model(IDS).last_hidden_state.data == states).all() and bits(model) == before
            and [p.requires_grad for p in model.parameters()] == flags)
    assert sum(isinstance(m, Wrapper) for m in model.modules()) == len(first.wrappers)


@pytest.mark.parametrize("field,value,expected", [(field, value, expected) for field, expected, values in [
    ("method", "one of head, top_k, bitfit, layernorm,", ["full", "loraa", None, [], ..., 3]),
    ("task", "classify, lm, mlm or none", ["translate", None, ..., {}]),
    ("labels", "a list of names", ["no,yes", {"0": "no"}, [0, 1], None, [["no"]]]),
    ("pooling", "mean, cls, pooler, last or null", ["max", 3, ["mean"], True]),
    ("head", "'head.safetensors' or null", ["../head.safetensors", True, []]),
    ("quantised", "null or the targets and double of a base in 4 bits", [True, {"double": True}, {"targets": 3, "double": True}]),
    ("shape", "an object of hidden_size, num_hidden_layers,", [[3], {"width": 3}, None, "12"]),
    ("words_crc32", "a checksum of the base's word vectors or null", [3, ["4ff9b4a0"], True]),
    ("ranks", "an object of paths and whole numbers from 1 on",
     [[3], {"blocks.0.attn.q": 0}, {"blocks.0.attn.q": "3"}, {"blocks.0.attn.q": True}, None]),
] for value in values])
def test_a_bad_field_of_the_note_is_named(field, value, expected, stored):
    edit(stored, **{field: value})
    refused(stored, f"{stored / NOTE}: {field} is {None if value is ... else value!r}; expected {expected}")


@pytest.mark.parametrize("content,message", [("{", "this note is not JSON (Expecting property name"),
                                             ("[]", "expected a JSON object in this note, got list"),
                                             (b"\xff{}", "this note is not UTF-8 text")])
def test_a_note_that_is_not_json(content, message, stored):
    (stored / NOTE).write_bytes(content.encode() if isinstance(content, str) else content)
    refused(stored, f"{stored / NOTE}: {message}")


def test_the_pooling_must_be_the_models(stored):
    refused(stored, f"{stored}: the adapter was trained with the pooling 'mean', and this model has 'cls'",
            make("bert", "classify", "cls"))
    refused(stored, f"{stored}: the adapter was trained with the pooling 'mean', and this model has None", make("bert", "none"))


def test_heads_that_are_missing_or_do_not_fit(stored):
    tensors = files.read_tensors(stored / HEAD)
    for change, message in [({"bias": None}, "missing tensors: bias"), ({"scale": np.ones(1)}, "unexpected tensors: scale"),
                            ({"weight": np.ones((2, 12))}, "tensors of another shape: weight (expected (3, 12), got (2, 12))")]:
        files.write_tensors(stored / HEAD, {n: a for n, a in (tensors | change).items() if a is not None})
        refused(stored, f"{stored / HEAD}: {message}")
    refused_labels = make("bert", "classify", "mean", labels=("a", "b", "c", "d"))
    files.write_tensors(stored / HEAD, tensors)
    refused(stored, "weight (expected (4, 12), got (3, 12))", refused_labels)
    (stored / HEAD).write_bytes((stored / HEAD).read_bytes()[:-1])
    refused(stored, f"{stored / HEAD}: not a whole safetensors file")
    (stored / HEAD).unlink()
    refused(stored, f"{stored}: no head.safetensors; the trained head is missing")


def test_a_model_without_a_head_cannot_take_one(stored):
    edit(stored, task="none", pooling=None)
    refused(stored, f"{stored}: the adapter holds a trained head (head.safetensors) and this model has none; "
                    "load the model with task 'none'", make("bert", "none"))


def test_a_lora_that_fails_after_its_head_was_read_changes_nothing(tmp_path):
    base, attachment = trained(tmp_path)
    save_adapter(attachment, tmp_path / "adapter")
    tensors = files.read_tensors(tmp_path / "adapter" / WEIGHTS)
    files.write_tensors(tmp_path / "adapter" / WEIGHTS, {n: a for n, a in tensors.items() if "layer.1" not in n})
    refused(tmp_path / "adapter", "missing tensors: base_model.model.encoder.layer.1")
    with pytest.raises(ValueError, match="missing tensors"):
        load_with_adapter(base, tmp_path / "adapter")


def test_no_adapter_there(tmp_path):
    refused(tmp_path / "nowhere", f"{tmp_path / 'nowhere'}: no such folder; expected an adapter")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", f"{tmp_path / 'empty'}: neither minipeft.json nor adapter_config.json; expected an adapter "
                                "written by minipeft or PEFT")
    edit_target = tmp_path / "note_only"
    edit_target.mkdir()
    files.write_json(edit_target / NOTE, {"method": "lora", "task": "none"})
    refused(edit_target, f"{edit_target}: no adapter_config.json", make("bert", "none"))


def test_a_taken_name_changes_nothing(stored):
    model = make("bert", "classify", "mean")
    first = load_adapter(model, stored, "mine")
    before = logits(model)
    with pytest.raises(ValueError, match="attach: the name 'mine' is taken; attached: mine"):
        load_adapter(model, stored, "mine")
    assert (logits(model) == before).all() and first.active


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from([NOTE, HEAD]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_gives_an_adapter_or_one_line(where, bit, name, stored):
    content = (stored / name).read_bytes()
    damaged = bytearray(content)
    damaged[where % min(len(content), 400)] ^= 1 << bit
    (stored / name).write_bytes(damaged)
    try:
        load_adapter(make("bert", "classify", "mean"), stored)
    except ValueError as error:
        assert "\n" not in str(error)
    finally:
        (stored / name).write_bytes(content)


# ---- disks that fail --------------------------------------------------------------------------------------------------


def fails_at(monkeypatch, number):
    """The disk is full at the ``number``-th file that is flushed to it."""
    calls, flush = itertools.count(1), files.os.fsync

    def full(handle):
        if next(calls) == number:
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", full)


@pytest.mark.parametrize("number,name", [(1, WEIGHTS), (2, CONFIG), (3, HEAD), (4, NOTE)])
def test_a_full_disk_leaves_no_half_an_adapter(number, name, tmp_path, monkeypatch):
    _, attachment = trained(tmp_path)
    fails_at(monkeypatch, number)
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'adapter' / name}: cannot be written "
                                                "(No space left on device)")) as error:
        save_adapter(attachment, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").iterdir()) and "unfinished" not in str(error.value)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_adapter_that_was_there(number, tmp_path, monkeypatch):
    base, attachment = trained(tmp_path)
    save_adapter(attachment, tmp_path / "adapter", base)
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    train(attachment.model, attachment)
    fails_at(monkeypatch, number)
    with pytest.raises(OSError, match="No space left on device"):
        save_adapter(attachment, tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    monkeypatch.undo()
    save_adapter(attachment, tmp_path / "adapter", base)
    assert (logits(load_with_adapter(base, tmp_path / "adapter")[0]) == logits(attachment.model)).all()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    attachment = attach(make("bert", "classify", "mean"), LoRA(rank=2))
    for folder in (tmp_path / "file", tmp_path / "file" / "adapter"):
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
            save_adapter(attachment, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_shared_c_attn_says_that_the_count_grows(shared):
    golden = shared / "golden"
    attachment = load_with_adapter(golden / "gpt2", golden / "peft/gpt2_lora_c_attn")[1]
    stored = sum(a.size for name, a in files.read_tensors(golden / "peft/gpt2_lora_c_attn" / WEIGHTS).items() if "lora_" in name)
    assert attachment.trainable_without_head > stored
    assert attachment.note == ("the adapter's c_attn is three maps here, each with a U of its own: "
                               f"{attachment.trainable_without_head:,} parameters, {stored:,} in the file")
    assert not load_with_adapter(golden / "gpt2", golden / "peft/gpt2_lora_mlp")[1].note
