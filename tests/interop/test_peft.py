"""LoRA adapters in HF PEFT's format: PEFT reads what we write, we read what PEFT writes,
and everything else is named and refused."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minipeft.data import files
from minipeft.interop import load_adapter, load_peft, load_pretrained, make_model, save_adapter, save_peft, save_pretrained
from minipeft.interop.peft import targeted as _targeted
from minipeft.interop.peft_lora import _pattern
from minipeft.methods import METHODS, LoRA, attach
from minipeft.models import TransformerConfig
from minipeft.nn import Wrapper

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STEM = "base_model.model."

SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
         "max_position_embeddings": 24, "initializer_range": 0.3, "pad_token_id": 0}
FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2, "norm_eps": 1e-12},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new"},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    "t5": {"model_type": "t5", "num_decoder_layers": 3, "head_dim": 5, "hidden_act": "gelu_new", "gated": True, "norm_eps": 1e-6,
           "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
           "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "initializer_range": 1.0,
           "decoder_start_token_id": 0},
}


def make(family, task, pooling=None, seed=0):
    """A tiny model with weights large enough to matter."""
    labels = ("bad", "meh", "good") if task == "classify" else ()
    model = make_model(TransformerConfig(**SHAPE | FAMILIES[family], labels=labels, pooling=pooling), task,
                       np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    for path, parameter in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * 0.2
    return model.eval()


def shake(attachment, seed=2):
    """Move everything trained off its initial value."""
    rng = np.random.default_rng(seed)
    for parameter in attachment.named_parameters().values():
        parameter.data = parameter.data + rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.3)
    return attachment


def bits(model):
    return {path: p.data.tobytes() for path, p in model.named_parameters()}


def result(model):
    """What a model says: logits where it has a head that transformers has, else its last states."""
    output = model(IDS, **({"decoder_input_ids": IDS[:, :4]} if model.config.encoder_decoder else {}))
    bare = output.logits is None or model.config.pooling in ("mean", "cls")
    return (output.last_hidden_state if bare else output.logits).data


def assert_close(got, expected, share=5e-6):
    """Equal within a share of the largest expected entry."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


# ---- PEFT's side --------------------------------------------------------------------------------------------------


def class_of(case):
    """The class of transformers that a case's base is; a mean-pooled head is not in it."""
    if case[2] in ("pooler", "last"):
        return "AutoModelForSequenceClassification"
    return {"mlm": "AutoModelForMaskedLM", "lm": "AutoModelForCausalLM",
            "seq2seq": "AutoModelForSeq2SeqLM"}.get(case[1], "AutoModel")


class Theirs:
    """A base model in transformers, and PEFT on it."""

    def __init__(self, peer, folder):
        self.torch, self.transformers, self.peft, self.folder = peer("torch"), peer("transformers"), peer("peft"), folder

    def base(self, case):
        """The saved base model of a case."""
        return getattr(self.transformers, class_of(case)).from_pretrained(self.folder / "base").eval()

    def load(self, case, adapter):
        """The base with an adapter folder on it."""
        return self.peft.PeftModel.from_pretrained(self.base(case), str(adapter)).eval()

    def make(self, case, seed=0, **config):
        """The base with a fresh adapter of random weights; ``config`` holds LoraConfig's fields."""
        model = self.peft.get_peft_model(self.base(case), self.peft.LoraConfig(**config)).eval()
        generator = self.torch.Generator().manual_seed(seed)
        with self.torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(self.torch.randn(parameter.shape, generator=generator) * 0.5)
        return model

    def result(self, model):
        """Logits, or the last states of a bare model."""
        with self.torch.no_grad():
            ids = self.torch.tensor(IDS)
            output = model(input_ids=ids, **({"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}))
        return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()

    def layers(self, model):
        """{module: (rank, scale, A, B)} of the adapter as PEFT understood it."""
        return {name: (m.r["default"], m.scaling["default"], m.lora_A["default"].weight.detach().numpy(),
                       m.lora_B["default"].weight.detach().numpy())
                for name, m in model.named_modules() if hasattr(m, "lora_A")}


@pytest.fixture
def theirs(peer, tmp_path):
    return Theirs(peer, tmp_path)


BERT, MEAN, BARE, MLM = ("bert", "classify", "pooler"), ("bert", "classify",
                                                         "mean"), ("bert", "none", None), ("bert", "mlm", None)
GPT2, GPT2_CLASSES, GPT2_MEAN = ("gpt2", "lm", None), ("gpt2", "classify", "last"), ("gpt2", "classify", "mean")
LLAMA, LLAMA_CLASSES, LLAMA_BARE = ("llama", "lm", None), ("llama", "classify", "last"), ("llama", "none", None)
T5 = ("t5", "seq2seq", None)
ALL = "attn.*,mlp.*"

OURS = {  # a case, and the LoRA that is written
    "bert": (BERT, {"rank": 3, "alpha": 7}),
    "bert, one seam": (BERT, {"rank": 2, "alpha": 3, "targets": "blocks.1.attn.out"}),
    "bert, every dense": (BERT, {"rank": 2, "alpha": 3, "targets": "attn.out,mlp.up,mlp.down"}),
    "bert, all seams with patterns": (BERT, {"rank": 2, "alpha": 0.7, "targets": ALL,
                                             "rank_pattern": {"attn.v": 5, "blocks.1.mlp.up": 1},
                                             "alpha_pattern": {"blocks.0.attn.*": 2.5, "down": 9}}),
    "bert, rank-stabilised": (BERT, {"rank": 3, "alpha": 5, "rank_stabilised": True, "rank_pattern": {"v": 6}}),
    "bert, mean": (MEAN, {"rank": 3, "alpha": 7, "targets": "q,k,mlp.down"}),
    "bert, bare": (BARE, {"rank": 3, "alpha": 7, "targets": ALL}),
    "bert, masks": (MLM, {"rank": 3, "alpha": 7, "targets": "attn.out,v"}),
    "gpt2, q and v": (GPT2, {"rank": 3, "alpha": 7}),
    "gpt2, v alone in one block": (GPT2, {"rank": 3, "alpha": 7, "targets": "blocks.1.attn.v"}),
    "gpt2, all seams": (GPT2, {"rank": 5, "alpha": 7, "targets": ALL}),
    "gpt2, mlp.down but not attn.out": (GPT2, {"rank": 2, "alpha": 3, "targets": "mlp.down,mlp.up"}),
    "gpt2, ranks and alphas that differ within c_attn": (GPT2,
                                                         {"rank": 2, "alpha": 7, "targets": "attn.*", "rank_pattern": {"v": 5},
                                                                "alpha_pattern": {"k": 0.3}}),
    "gpt2, rank-stabilised": (GPT2, {"rank": 3, "alpha": 5, "targets": "q,v,up", "rank_stabilised": True,
                                     "rank_pattern": {"v": 4}}),
    "gpt2, classes": (GPT2_CLASSES, {"rank": 3, "alpha": 7}),
    "gpt2, mean": (GPT2_MEAN, {"rank": 3, "alpha": 7}),
    "llama": (LLAMA, {"rank": 3, "alpha": 7}),
    "llama, all seams with patterns": (LLAMA, {"rank": 2, "alpha": 4, "targets": ALL,
                                               "rank_pattern": {"gate": 3, "blocks.0.mlp.down": 1}}),
    "llama, classes": (LLAMA_CLASSES, {"rank": 3, "alpha": 7, "targets": "attn.out,mlp.gate"}),
    "llama, bare": (LLAMA_BARE, {"rank": 3, "alpha": 7}),
    "t5": (T5, {"rank": 3, "alpha": 7}),
    "t5, all seams with patterns": (T5, {"rank": 2, "alpha": 4, "targets": "attn.*,cross.*,mlp.*",
                                         "rank_pattern": {"cross.k": 3, "decoder.blocks.2.mlp.down": 1}}),
}


# ---- the stored adapters of PEFT -------------------------------------------------------------------------------------

# Every folder that is there is tested, a new one too; without ../shared one name is left, whose tests are skipped.
STORED = {path.parent.name: files.read_json(path, "config")["peft_type"]
          for path in sorted((Path(__file__).resolve().parents[3] / "shared/golden/peft")
                             .glob(f"*/{CONFIG}"))} or {"none": "LORA"}
GOLDEN, LORAS = list(STORED), [name for name, kind in STORED.items() if kind == "LORA"]


def test_the_golden_adapters_are_of_every_kind_and_family(shared):
    assert sorted(path.name for path in (shared / "golden/peft").iterdir()) == sorted(GOLDEN) and len(GOLDEN) >= 13
    assert set(STORED.values()) >= {"LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING"}
    assert {name.split("_")[0] for name in LORAS} >= {"bert", "gpt2", "llama", "t5"}


def golden_logits(shared, name, model):
    family = name.split("_")[0]
    inputs, expected = np.load(shared / f"golden/{family}.npz"), np.load(shared / f"golden/peft/{name}/expected.npz")
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * bool(expected["token_type_ids_used"])
    names += ["labels"] * model.config.encoder_decoder  # what the decoder reads is made from them
    got = model(**{n: inputs[n] for n in names if n in inputs.files}).logits.data
    # PEFT's has those of virtual tokens too
    return got, expected["logits"][:, -got.shape[1]:] if got.ndim == 3 else expected["logits"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_adapters_give_the_expected_logits_also_when_merged_or_saved_again(name, shared, tmp_path, backend):
    base = shared / "golden" / name.split("_")[0]
    attachment = load_peft(load_pretrained(base), shared / "golden/peft" / name)
    assert_close(*golden_logits(shared, name, attachment.model))
    if attachment.method.unmergeable is None:
        attachment.merge()
        assert_close(*golden_logits(shared, name, attachment.model))
        attachment.unmerge()
    save_peft(attachment, tmp_path, base)
    stored, ours = (files.read_tensors(folder / WEIGHTS) for folder in (shared / "golden/peft" / name, tmp_path))
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in ours.items()} == {n: (a.dtype, a.shape, a.tobytes()) for n,
                                                                             a in stored.items()}
    assert (result(load_peft(load_pretrained(base), tmp_path).model) == result(attachment.model)).all()


@pytest.mark.parametrize("name", LORAS)
def test_golden_adapters_saved_again_read_the_same_in_peft(name, shared, peer, tmp_path):
    family = name.split("_")[0]
    case = {"bert": BERT, "gpt2": GPT2, "llama": LLAMA, "t5": T5}[family]
    save_peft(load_peft(load_pretrained(shared / "golden" / family), shared / "golden/peft" / name), tmp_path / "ours", "base")
    (tmp_path / "base").symlink_to(shared / "golden" / family)
    theirs = Theirs(peer, tmp_path)
    first, again = (theirs.layers(theirs.load(case, folder)) for folder in (shared / "golden/peft" / name, tmp_path / "ours"))
    assert set(first) == set(again) and len(first) >= 3
    for module, (rank, scale, a, b) in first.items():
        assert again[module][:2] == (rank, pytest.approx(scale, rel=1e-15))
        assert (again[module][2] == a).all() and (again[module][3] == b).all()
    before, after = (theirs.peft.PeftConfig.from_pretrained(folder)
                     for folder in (shared / "golden/peft" / name, tmp_path / "ours"))
    for field in ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "fan_in_fan_out",
                  "inference_mode"):
        assert getattr(after, field) == getattr(before, field), field


# ---- ours in PEFT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_what_we_write_and_we_load_what_it_writes_again(name, theirs, tmp_path):
    case, settings_ = OURS[name]
    model = make(*case)
    save_pretrained(model, tmp_path / "base")
    attachment = shake(attach(model, LoRA(**settings_)))
    save_peft(attachment, tmp_path / "ours", tmp_path / "base")
    loaded = theirs.load(case, tmp_path / "ours")
    assert_close(theirs.result(loaded), result(model))
    plain = make(*case)
    assert np.abs(result(model) - result(plain)).max() > 0.05  # the adapter does something

    loaded.save_pretrained(tmp_path / "theirs")
    # a head that transformers has no class for is not in PEFT's format: what is compared there are the states
    back = load_peft(plain, tmp_path / "theirs")
    assert_close(result(plain), result(model))
    assert bits(plain) == bits(model) and set(back.wrappers) >= set(attachment.wrappers) - {"head.classifier"}


@given(data=st.data(), stabilised=st.booleans(), same_u=st.booleans(), same_alpha=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_adapters_on_q_k_and_v_are_one_exact_product_on_c_attn(data, stabilised, same_u, same_alpha, tmp_path):
    seams = sorted(data.draw(st.sets(st.sampled_from(["q", "k", "v"]), min_size=1)))
    ranks = {seam: 4 if same_u else data.draw(st.integers(1, 6)) for seam in seams}
    alphas = {seam: 3 if same_alpha else data.draw(st.floats(0.1, 20)) for seam in seams}
    method = LoRA(2, 1, seams, rank_pattern=ranks, alpha_pattern=alphas, rank_stabilised=stabilised)
    attachment = shake(attach(make("gpt2", "lm"), method))
    if same_u:
        for path, wrapper in attachment.wrappers.items():
            wrapper.U.data = attachment.wrappers[path[:-1] + seams[0]].U.data.copy()
    shared = same_u and len(seams) == 3 and len(set(alphas.values())) == 1  # then one A does for all
    save_peft(attachment, tmp_path)
    tensors, config = files.read_tensors(tmp_path / WEIGHTS), files.read_json(tmp_path / CONFIG, "config")
    for i in range(2):
        a, b = (tensors[f"{STEM}transformer.h.{i}.attn.c_attn.lora_{x}.weight"].astype(np.float64) for x in "AB")
        assert config["target_modules"] == ["c_attn"] and config["r"] == len(a) == (4 if shared else sum(ranks.values()))
        # (D, 3 D), as PEFT adds it to c_attn's weight
        theirs = (config["lora_alpha"] / (math.sqrt(len(a)) if stabilised else len(a)) * b @ a).T
        ours = [np.zeros((12, 12)) for _ in range(3)]
        for seam in seams:
            u, v = (getattr(attachment.wrappers[f"blocks.{i}.attn.{seam}"], n).data.astype(np.float64) for n in "UV")
            ours["qkv".index(seam)] = alphas[seam] / (math.sqrt(ranks[seam]) if stabilised else ranks[seam]) * u @ v.T
        np.testing.assert_allclose(theirs, np.hstack(ours), rtol=1e-5, atol=1e-5)


def test_separate_q_and_v_have_the_layout_of_the_plan(tmp_path):
    attachment = shake(attach(make("gpt2", "lm"), LoRA(rank=3, alpha=7)))
    save_peft(attachment, tmp_path)
    tensors, config = files.read_tensors(tmp_path / WEIGHTS), files.read_json(tmp_path / CONFIG, "config")
    assert (config["r"], config["lora_alpha"], type(config["lora_alpha"]), config["fan_in_fan_out"]) == (6, 14, int, True)
    q, v = attachment.wrappers["blocks.0.attn.q"], attachment.wrappers["blocks.0.attn.v"]
    a, b = (tensors[f"{STEM}transformer.h.0.attn.c_attn.lora_{x}.weight"] for x in "AB")
    assert (a == np.vstack([q.U.data.T, v.U.data.T])).all()
    expected = np.zeros((36, 6), np.float32)
    expected[:12, :3], expected[24:, 3:] = q.V.data, v.V.data
    assert b.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case,task_type,saved", [
    (BERT, "SEQ_CLS", ["classifier"]), (MEAN, "FEATURE_EXTRACTION", None), (BARE, "FEATURE_EXTRACTION", None),
    (MLM, "FEATURE_EXTRACTION", None),
    (GPT2, "CAUSAL_LM", None), (GPT2_CLASSES, "SEQ_CLS", ["score"]), (LLAMA, "CAUSAL_LM", None),
    (LLAMA_CLASSES, "SEQ_CLS", ["score"]), (T5, "SEQ_2_SEQ_LM", None)])
def test_what_the_config_says(case, task_type, saved, tmp_path):
    attachment = attach(make(*case), LoRA(rank=2, alpha=3, dropout=0.25, targets="attn.q,attn.k,attn.v,attn.out"))
    save_peft(attachment, tmp_path, "models/base")
    config = files.read_json(tmp_path / CONFIG, "config")
    own = {"bert": ["key", "query", "value"], "gpt2": ["c_attn"], "llama": ["k_proj", "o_proj", "q_proj", "v_proj"],
           "t5": None}[case[0]]
    assert config["target_modules"] == own or case[0] in ("bert", "gpt2", "t5")
    assert {n: config[n] for n in ("peft_type", "task_type", "modules_to_save", "base_model_name_or_path", "inference_mode",
                                   "lora_dropout", "bias",
                                   "use_dora")} == \
        {"peft_type": "LORA", "task_type": task_type, "modules_to_save": saved, "base_model_name_or_path": "models/base",
         "inference_mode": True,
         "lora_dropout": 0.25, "bias": "none", "use_dora": False}
    heads = [n for n in files.read_tensors(tmp_path / WEIGHTS) if ".lora_" not in n]
    assert sorted(heads) == [f"{STEM}{name}.{part}" for name in saved or []
                             for part in (["bias", "weight"] if case[0] == "bert" else ["weight"])]
    assert "embed" not in "".join(files.read_tensors(tmp_path / WEIGHTS))  # none of the base's weights


def test_a_name_that_stands_for_other_modules_too_is_written_in_full(tmp_path):
    save_peft(attach(make("bert", "classify", "pooler"), LoRA(rank=2, targets="attn.out,mlp.up,mlp.down")), tmp_path)
    names = files.read_json(tmp_path / CONFIG, "config")["target_modules"]
    assert len(names) == 6 and "bert.encoder.layer.1.attention.output.dense" in names  # "dense" would be the pooler as well
    save_peft(attach(make("gpt2", "lm"), LoRA(rank=2, targets="mlp.down")), tmp_path)
    assert files.read_json(tmp_path / CONFIG, "config")["target_modules"] == ["transformer.h.0.mlp.c_proj",
                                                                              "transformer.h.1.mlp.c_proj"]
    save_peft(attach(make("gpt2", "lm"), LoRA(rank=2, targets="mlp.down,attn.out")), tmp_path)
    assert files.read_json(tmp_path / CONFIG, "config")["target_modules"] == ["c_proj"]


def test_merged_is_not_saved(tmp_path):
    attachment = shake(attach(make("gpt2", "lm"), LoRA(rank=2)))
    attachment.merge()
    with pytest.raises(ValueError, match="save: this attachment is merged into the base; unmerge it first, "
                                         "or save the whole model"):
        save_peft(attachment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    attachment.unmerge()
    save_peft(attachment, tmp_path / "out")


# ---- PEFT's in ours --------------------------------------------------------------------------------------------------

PEFTS = {
    "bert": (BERT, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7, "target_modules": ["query", "value"]}),
    "bert, float alpha, dropout, gaussian": (BERT, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 0.7, "target_modules": ["key"],
                                                    "lora_dropout": 0.3,
                                                    "init_lora_weights": "gaussian", "bias": "none"}),
    "bert, rsLoRA": (BERT, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 5, "target_modules": ["query", "output.dense"],
                            "use_rslora": True}),
    "bert, patterns are regular expressions": (BERT, {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 3,
                                                      "target_modules": ["query", "key", "intermediate.dense"],
                                                      "rank_pattern": {r"layer\.1\..*\.query": 5, "query": 4},
                                                      "alpha_pattern": {"query|key": 11}}),
    "bert, a regular expression": (BERT, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7,
                                          "target_modules": r".*layer\.[1-9]\..*\.(query|dense)"}),
    "bert, whole names": (BERT, {"task_type": "SEQ_CLS", "r": 3,
                                 "target_modules": ["bert.encoder.layer.0.attention.self.value"]}),
    "bert, no task": (BERT, {"r": 3, "lora_alpha": 7, "target_modules": ["value"]}),
    "bert, no task but a head": (BERT, {"r": 3, "lora_alpha": 7, "target_modules": ["value"], "modules_to_save": ["classifier"]}),
    "bert, classes without a trained head": (BERT, {"task_type": "FEATURE_EXTRACTION", "r": 3, "target_modules": ["value"]}),
    "bert, default targets": (BERT, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7}),
    "bert, bare": (BARE, {"task_type": "FEATURE_EXTRACTION", "r": 3, "lora_alpha": 7, "target_modules": ["query", "value"]}),
    "bert, masks": (MLM, {"r": 3, "lora_alpha": 7, "target_modules": ["query", "attention.output.dense"]}),
    "gpt2": (GPT2, {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2, rsLoRA and every c_proj": (GPT2, {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7,
                                             "target_modules": ["c_attn", "c_proj"], "use_rslora": True,
                                             "rank_pattern": {"mlp.c_proj": 4}}),
    "gpt2, all linear": (GPT2, {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7, "target_modules": "all-linear"}),
    "gpt2, classes": (GPT2_CLASSES, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7, "target_modules": ["c_attn", "c_fc"]}),
    "llama": (LLAMA, {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7,
                      "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    "llama, all linear": (LLAMA, {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7, "target_modules": "all-linear",
                                  "use_rslora": True}),
    "llama, even rank, orthogonal": (LLAMA, {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3,
                                             "target_modules": ["gate_proj", "down_proj"], "init_lora_weights": "orthogonal"}),
    "llama, classes": (LLAMA_CLASSES, {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7, "target_modules": ["up_proj"]}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT corrects fan_in_fan_out itself, and says so
@pytest.mark.parametrize("name", PEFTS)
def test_we_load_what_peft_writes(name, theirs, tmp_path):
    case, config = PEFTS[name]
    model = make(*case)
    save_pretrained(model, tmp_path / "base")
    before = result(model)
    trained = theirs.make(case, **config)
    trained.save_pretrained(tmp_path / "theirs")
    attachment = load_peft(model, tmp_path / "theirs")
    assert_close(result(model), theirs.result(trained))
    assert (attachment.head is not None) == ("SEQ_CLS" in str(config) or "classifier" in str(config))
    with attachment.disabled():
        assert (result(model) == before).all()
    save_peft(attachment, tmp_path / "again")
    again = theirs.load(case, tmp_path / "again")
    assert_close(theirs.result(again), theirs.result(trained), 1e-6)
    stored, ours = (files.read_tensors(tmp_path / folder / WEIGHTS) for folder in ("theirs", "again"))
    assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in stored.items()}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_adapters(kind, theirs, tmp_path):
    model = make(*BERT)
    save_pretrained(model, tmp_path / "base")
    trained = theirs.make(BERT, task_type="SEQ_CLS", r=3, target_modules=["query", "value"])
    half = getattr(theirs.torch, kind)
    for name, parameter in trained.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = parameter.data.to(half)
    trained.save_pretrained(tmp_path / "theirs")
    attachment = load_peft(model, tmp_path / "theirs")
    assert_close(result(model), theirs.result(trained.float()))
    assert {p.dtype for p in attachment.named_parameters().values()} == {np.dtype(np.float32)}


def test_a_fused_module_becomes_three_adapters_that_share_A(shared):
    attachment = load_peft(load_pretrained(shared / "golden/gpt2"), shared / "golden/peft/gpt2_lora_c_attn")
    stored = files.read_tensors(shared / "golden/peft/gpt2_lora_c_attn" / WEIGHTS)
    assert list(attachment.wrappers) == [f"blocks.{i}.attn.{seam}" for i in range(3) for seam in "qkv"]
    # the count grew
    assert sum(a.size for a in stored.values()) == 3 * 4 * (48 + 144) and attachment.trainable == 9 * 4 * (48 + 48)
    for path, wrapper in attachment.wrappers.items():
        a, b = (stored[f"{STEM}transformer.h.{path.split('.')[1]}.attn.c_attn.lora_{x}.weight"] for x in "AB")
        third = "qkv".index(path[-1])
        assert (wrapper.U.data == a.T).all() and (wrapper.V.data == b[48 * third:48 * third + 48]).all() and wrapper.scale == 3
    shares = list(attachment.wrappers.values())
    assert not any(np.may_share_memory(shares[0].U.data, w.U.data) for w in shares[1:])


def test_an_import_that_was_trained_on_is_written_in_blocks(shared, tmp_path):
    model = load_pretrained(shared / "golden/gpt2")
    attachment = shake(load_peft(model, shared / "golden/peft/gpt2_lora_c_attn"))
    save_peft(attachment, tmp_path)
    assert files.read_tensors(tmp_path / WEIGHTS)[f"{STEM}transformer.h.0.attn.c_attn.lora_A.weight"].shape == (12, 48)
    again = load_pretrained(shared / "golden/gpt2")
    load_peft(again, tmp_path)
    assert_close(again(IDS).logits.data, model(IDS).logits.data)


def test_several_names_on_one_model_and_the_head_of_each(tmp_path):
    expected = {}
    for seed, name in enumerate(["one", "two"]):
        model = make(*BERT)
        save_peft(shake(attach(model, LoRA(rank=2)), seed), tmp_path / name)
        expected[name] = result(model)
    model = make(*BERT)
    plain = result(model)
    loaded = {name: load_peft(model, tmp_path / name, name) for name in expected}
    assert (result(model) == expected["two"]).all()
    loaded["two"].detach()
    assert (result(model) == plain).all()
    with pytest.raises(ValueError, match="attach: the name 'one' is taken; attached: one"):
        load_peft(model, tmp_path / "two", "one")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """The folder of an adapter for a tiny BERT classifier, on query and value with rank 2."""
    save_peft(shake(attach(make(*BERT), LoRA(rank=2, alpha=3))), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **changes):
    """Change fields of an adapter's config; ... removes one."""
    raw = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}))


def refused(folder, message, case=BERT, load=load_peft):
    """Loading gives one line that holds ``message`` and leaves the model, with another attachment on it, as it was."""
    model = make(*case)
    first = shake(attach(model, LoRA(rank=1, targets="attn.out"), "first"))
    before, stored_bits, names = result(model), bits(model), [p for p, _ in model.named_parameters()]
    model.blocks[0].attn.q.weight.requires_grad = True
    flags = {path: p.requires_grad for path, p in model.named_parameters()}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(model, folder)
    assert "\n" not in str(error.value)
    assert list(model.attachments) == ["first"] and first.active
    assert (result(model) == before).all() and bits(model) == stored_bits and [p for p, _ in model.named_parameters()] == names
    assert {path: p.requires_grad for path, p in model.named_parameters()} == flags
    assert sum(isinstance(m, Wrapper) for m in model.modules()) == len(first.wrappers)


@pytest.mark.parametrize("field,value", [
    ("lora_bias", True), ("layers_to_transform", [1]), ("layers_to_transform", 0),
    ("layer_replication", [[0, 2]]),
    ("megatron_config", {"tensor_model_parallel_size": 2}), ("exclude_modules", ["key"]), ("exclude_modules", ".*key"),
    ("use_qalora", True),
    ("trainable_token_indices", [3]), ("trainable_token_indices", {"embed_tokens": [0]}), ("target_parameters", ["mlp.experts"]),
    ("alora_invocation_tokens", [1, 2]), ("use_bdlora", {"nblocks": 2}), ("arrow_config", {"top_k": 3}),
    ("kasa_config", {"beta": 1e-4}),
    ("monteclora_config", {"num_samples": 8}), ("velora_config", {"num_groups": 2}), ("a_field_of_tomorrow", "on"),
    ("a_field_of_tomorrow", 0)])
def test_a_setting_that_plain_lora_lacks_is_named(field, value, stored):
    edit(stored, **{field: value})
    refused(stored, f"{stored / CONFIG}: {field} is {value!r}, which plain LoRA does not have (expected null, false or empty)")


BAD = {
    "task_type": ("SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, FEATURE_EXTRACTION or null", ["TOKEN_CLS", "QUESTION_ANS", [], 3]),
    "r": ("a whole number from 1 on", [0, -1, 2.0, "2", True, None, [2]]),
    "lora_alpha": ("a positive number", [0, -3, "3", None, True, math.nan, math.inf]),
    "lora_dropout": ("a number from 0 to below 1", [1, -0.1, "0", None, math.nan]),
    "use_rslora": ("true or false", ["yes", 1]),
    "target_modules": ("a list of names or a regular expression", [None, ..., 3, [1], {"query": 2}, "que(ry"]),
    "modules_to_save": ("a list of names or null", ["classifier", {"classifier": 1}, [0]]),
    "rank_pattern": ("an object of regular expressions and whole numbers from 1 on",
                     [{"query": 0}, {"query": "4"}, {"que(ry": 4}, [4], 4]),
    "alpha_pattern": ("an object of regular expressions and positive numbers",
                      [{"query": 0}, {"query": None}, {"*": 4}, "query"]),
    "bias": ("'none'", ["lora_only", True]),
    "use_dora": ("true or false", ["yes", 1]),
    "init_lora_weights": ("true, false, gaussian, eva, orthogonal or mica, which leave the base as it is",
                          ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", ["gaussian"]]),
}


@pytest.mark.parametrize("kind", ["LOKR", None, 3])
def test_an_unknown_type_is_named(kind, stored):
    edit(stored, peft_type=kind)
    refused(stored, f"{stored / CONFIG}: peft_type is {kind!r}; expected one of LORA")


@pytest.mark.parametrize("field,value", [(field, value) for field, (_, values) in BAD.items() for value in values])
def test_a_bad_value_is_named(field, value, stored):
    edit(stored, **{field: value})
    refused(stored, f"{stored / CONFIG}: {field} is {None if value is ... else value!r}; expected {BAD[field][0]}")


@pytest.mark.parametrize("changes", [
    {"init_lora_weights": value} for value in (True, False, None, "gaussian", "eva", "orthogonal", "mica")] + [
    {"inference_mode": False}, {"fan_in_fan_out": True}, {"peft_version": "99"}, {"revision": "main"},
    {"base_model_name_or_path": "elsewhere"},
    {"megatron_core": "megatron.core"}, {"qalora_group_size": 16}, {"loftq_config": {"loftq_bits": 4}},
    {"eva_config": {"rho": 2.0}},
    {"runtime_config": {"ephemeral_gpu_offload": True}}, {"ensure_weight_tying": True}, {"layers_pattern": "layer"},
    {"auto_mapping": {"a": "b"}},
    {"target_parameters": []}, {"exclude_modules": ""}, {"layers_to_transform": []}, {"a_field_of_tomorrow": None},
    {"use_dora": None},
    {"task_type": None}, {"use_rslora": None}, {"rank_pattern": None, "alpha_pattern": None}, {"lora_dropout": ...},
    {"bias": ...},
    {"modules_to_save": ["classifier", "score", "qa_outputs"]}, {"modules_to_save": None},
    {"target_modules": ["query", "value", "nowhere"]},
    {"target_modules": r".*\.(query|value)"}, {"r": 7, "rank_pattern": {"(query|value)": 2}, "lora_alpha": 9,
                                               "alpha_pattern": {"attention.self..*": 3}}],
    ids=lambda changes: json.dumps(changes, default=str))
def test_what_makes_no_difference_makes_none(changes, stored):
    expected = make(*BERT)
    load_peft(expected, stored)
    edit(stored, **changes)
    model = make(*BERT)
    load_peft(model, stored)
    assert (result(model) == result(expected)).all()


def test_the_first_pattern_that_matches_counts_as_in_peft(stored):
    edit(stored, alpha_pattern={"layer.1.*query": 30, "query": 60, ".*": 90})
    attachment = load_peft(make(*BERT), stored)
    assert {path: w.scale for path, w in attachment.wrappers.items() if "attn" in path} == {
        "blocks.0.attn.q": 30, "blocks.0.attn.v": 45, "blocks.1.attn.q": 15, "blocks.1.attn.v": 45}


NAMES = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.query",
         "bert.encoder.layer.10.attention.self.value",
         "bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense", "transformer.h.1.attn.c_attn",
         "h.1.mlp.c_proj",
         "h.11.attn.c_proj", "query", "my_query"]
ENDINGS = ["query", "y", "dense", "output.dense", "attention.output.dense", "put.dense", "c_proj", "attn.c_proj",
           "h.1.mlp.c_proj", "1.mlp.c_proj",
           "", "encoder", "bert.encoder.layer.1.output.dense"]
REGEXES = [".*query", "query", r".*\.layer\.1\..*", "layer", r"(.*\.)?h\.\d+\.attn.*", ".*(query|dense)", r".*[^y]", "",
           r"layer.1.*dense", "self.value|c_attn"]


@given(target=st.one_of(st.lists(st.sampled_from(ENDINGS), min_size=1), st.sampled_from(REGEXES)))
@settings(max_examples=100)
def test_targets_match_as_in_peft(target, peer):
    exists = peer("peft.tuners.tuners_utils").check_target_module_exists
    config = peer("peft").LoraConfig(target_modules=target)
    assert _targeted(target, NAMES) == [name for name in NAMES if exists(config, name)]


@given(keys=st.lists(st.sampled_from([*ENDINGS, *REGEXES]), min_size=1, unique=True), name=st.sampled_from(NAMES))
@settings(max_examples=100)
def test_patterns_match_as_in_peft(keys, name, peer):
    patterns = dict(zip(keys, range(1, 100)))
    theirs = patterns.get(peer("peft.utils.other").get_pattern_key(patterns.keys(), name), 0)
    assert _pattern(patterns, name, 0) == theirs


@pytest.mark.parametrize("word", ["all-linear", "All-Linear"])
def test_all_linear_is_every_linear_map_of_the_blocks(word, tmp_path):
    attachment = shake(attach(make("llama", "lm"), LoRA(rank=2, targets=ALL)))
    save_peft(attachment, tmp_path)
    edit(tmp_path, target_modules=word)
    model = make("llama", "lm")
    assert list(load_peft(model, tmp_path).wrappers) == list(attachment.wrappers)
    assert (result(model) == result(attachment.model)).all()


def test_targets_that_match_nothing(stored):
    edit(stored, target_modules=["q_proj", "v_proj"])
    refused(stored, f"{stored / CONFIG}: target_modules ['q_proj', 'v_proj'] match no module of this bert model")
    edit(stored, target_modules=[])
    refused(stored, "target_modules [] match no module")
    edit(stored, target_modules=".*classifier")
    refused(stored, "target_modules '.*classifier' match no module")


def test_an_adapter_for_another_model(stored):
    refused(stored, "target_modules ['query', 'value'] match no module of this gpt2 model", GPT2)
    refused(stored, "the adapter holds a classification head and this model has none of that kind; load the model with task "
                    "'classify' and the pooling that the adapter was trained with", MEAN)
    refused(stored, "the adapter holds a classification head", BARE)


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


def rewrite(folder, change):
    tensors = files.read_tensors(folder / WEIGHTS)
    files.write_tensors(folder / WEIGHTS, change(tensors) or tensors)


Q0 = f"{STEM}bert.encoder.layer.0.attention.self.query"
V1 = f"{STEM}bert.encoder.layer.1.attention.self.value"
HEAD = f"{STEM}classifier"


@pytest.mark.parametrize("change,message", [
    (lambda t: without(t, f"{Q0}.lora_A.weight", f"{V1}.lora_B.weight"),
     f"missing tensors: {Q0}.lora_A.weight, {V1}.lora_B.weight"),
    (lambda t: t.update({f"{Q0}.lora_magnitude_vector": np.ones(12)}), f"unexpected tensors: {Q0}.lora_magnitude_vector"),
    (lambda t: t.update({f"{STEM}bert.pooler.dense.lora_A.weight": np.ones((2, 12))}),
     f"unexpected tensors: {STEM}bert.pooler.dense.lora_A.weight"),
    (lambda t: t.update({f"{STEM}score.weight": np.ones((3, 12))}), f"unexpected tensors: {STEM}score.weight"),
    (lambda t: t.update({f"{Q0}.lora_A.weight": np.ones((12, 2))}),
     f"tensors of another shape: {Q0}.lora_A.weight (expected (2, 12), got (12, 2))"),
    (lambda t: t.update({f"{V1}.lora_B.weight": np.ones((12, 3))}),
     f"tensors of another shape: {V1}.lora_B.weight (expected (12, 2), got (12, 3))"),
    (lambda t: {n.replace(STEM, ""): a for n, a in t.items()}, "the trained head is missing"),
    (lambda t: {n.replace(".weight", ".default.weight") if "lora_" in n else n: a for n, a in t.items()},
     f"unexpected tensors: {Q0}.lora_A.default.weight"),
    (lambda t: without(t, f"{HEAD}.bias"), f"missing tensors: {HEAD}.bias"),
    (lambda t: t.update({f"{HEAD}.scale": np.ones(1)}), f"unexpected tensors: {HEAD}.scale"),
    (lambda t: t.update({f"{HEAD}.weight": np.ones((2, 12))}),
     f"tensors of another shape: {HEAD}.weight (expected (3, 12), got (2, 12))"),
    (lambda t: without(t, f"{HEAD}.bias", f"{HEAD}.weight"),
     f"the trained head is missing; expected {HEAD}.weight beside the method's own tensors, as modules_to_save ['classifier'] "
     "and task_type 'SEQ_CLS' say"),
], ids=["missing", "magnitudes", "pooler", "another_family's_head", "transposed", "rank", "no_stem", "adapter's_name",
        "half_a_head", "more_of_a_head",
        "classes", "no_head"])
def test_tensors_that_do_not_fit_are_named(change, message, stored):
    rewrite(stored, change)
    refused(stored, message)


def test_fewer_and_more_layers(stored, tmp_path):
    config = TransformerConfig(**SHAPE | FAMILIES["bert"] | {"num_hidden_layers": 3}, labels=("a", "b", "c"), pooling="pooler")
    model = make_model(config, "classify", np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("missing tensors: "
                                                   "base_model.model.bert.encoder.layer.2.attention.self.query.lora_A.weight")):
        load_peft(model, stored)
    save_peft(attach(model, LoRA(rank=2)), tmp_path / "three")
    refused(tmp_path / "three", "unexpected tensors: base_model.model.bert.encoder.layer.2.attention.self.query.lora_A.weight")


def test_a_head_that_peft_would_expect_is_missed_whoever_names_it(stored):
    rewrite(stored, lambda t: {n: a for n, a in t.items() if "classifier" not in n})
    edit(stored, modules_to_save=None)
    refused(stored, "the trained head is missing")  # SEQ_CLS alone says that there is one
    edit(stored, modules_to_save=["classifier"], task_type=None)
    refused(stored, "the trained head is missing")
    edit(stored, modules_to_save=None, task_type=None)
    assert load_peft(make(*BERT), stored).head is None


@pytest.mark.parametrize("case,name", [(BERT, "pooler"), (BERT, "bert.embeddings"), (BERT, "word_embeddings"), (GPT2, "wte"),
                                       (GPT2, "lm_head"),
                                       (LLAMA, "embed_tokens"), (LLAMA, "lm_head"), (MLM, "cls")])
def test_another_module_to_save_is_refused(case, name, tmp_path):
    save_peft(attach(make(*case), LoRA(rank=2)), tmp_path)
    saved = [name] if case != BERT else ["classifier", name]
    edit(tmp_path, modules_to_save=saved)
    refused(tmp_path, f"{tmp_path / CONFIG}: modules_to_save is {saved!r}; beside the method's own only the classification head "
                      f"is loaded, not {name!r}", case)


def test_a_rank_above_the_matrix(stored, tmp_path):
    edit(stored, r=13)
    rewrite(stored, lambda t: {n: np.ones((13, 12) if "lora_A" in n else (12, 13), np.float32) if "lora_" in n else a for n,
                               a in t.items()})
    model = make(*BERT)
    wrapper = load_peft(model, stored).wrappers["blocks.0.attn.q"]  # which gains nothing, and is what the file says
    assert wrapper.U.shape == wrapper.V.shape == (12, 13) and wrapper.scale == pytest.approx(3 / 13)


@pytest.mark.parametrize("content,message", [
    ("{'r': 4}", "this adapter config is not JSON (Expecting property name enclosed in double quotes, line 1 column 2)"),
    ("", "this adapter config is not JSON"), ("[1]", "expected a JSON object in this adapter config, got list")])
def test_a_config_that_is_not_json(content, message, stored):
    (stored / CONFIG).write_text(content)
    refused(stored, f"{stored / CONFIG}: {message}")


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_a_truncated_file(cut, stored):
    whole = (stored / WEIGHTS).read_bytes()
    (stored / WEIGHTS).write_bytes(whole[:-cut])
    refused(stored, f"{stored / WEIGHTS}: not a whole safetensors file (")


def test_no_adapter_there_and_pickles(stored, tmp_path):
    (stored / WEIGHTS).unlink()
    refused(stored, f"{stored}: no adapter_model.safetensors")
    (stored / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    refused(stored,
            f"{stored}: no adapter_model.safetensors (adapter_model.bin is a pickle and is not opened: it can run any program)")
    shutil.rmtree(stored)
    refused(stored, f"{stored}: no adapter_config.json; expected a folder written by PEFT or minipeft")


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_either_file_gives_an_adapter_or_one_line(where, bit, stored, tmp_path_factory):
    for name in (CONFIG, WEIGHTS):
        damaged = tmp_path_factory.mktemp("damaged")
        shutil.copytree(stored, damaged, dirs_exist_ok=True)
        content = bytearray((stored / name).read_bytes())
        content[where % min(len(content), 3000)] ^= 1 << bit  # the header's part of the tensors' file
        (damaged / name).write_bytes(content)
        try:
            load_peft(make(*BERT), damaged)
        except ValueError as error:
            assert "\n" not in str(error) and str(error)


# ---- selective fine-tuning in LoRA's clothes ---------------------------------------------------------------------------


@pytest.fixture(params=["bitfit", "top_k"])
def selective(request, tmp_path):
    """The folder of trained biases, or of a trained last layer, of a tiny BERT classifier; its tensors."""
    method = METHODS[request.param](**{"layers": 1} if request.param == "top_k" else {})
    save_peft(shake(attach(make(*BERT), method)), tmp_path / "adapter")
    return tmp_path / "adapter", files.read_tensors(tmp_path / "adapter" / WEIGHTS)


def test_a_lora_that_changes_something_beside_them_is_refused(selective):
    folder, tensors = selective
    a = next(name for name in tensors if name.endswith(".lora_A.weight"))
    b = a.replace(".lora_A.", ".lora_B.")
    files.write_tensors(folder / WEIGHTS, tensors | {a: np.ones_like(tensors[a])})
    load_peft(make(*BERT), folder)  # one factor of zeros makes a change of zeros
    files.write_tensors(folder / WEIGHTS, tensors | {a: np.ones_like(tensors[a]), b: np.ones_like(tensors[b])})
    refused(folder, f"{folder / WEIGHTS}: {a} and its lora_B are not zero; "
                    "a LoRA together with trained biases or layers are two methods")


def test_what_the_method_does_not_train_must_be_the_bases(tmp_path):
    save_adapter(shake(attach(make(*BERT), METHODS["bitfit"](terms="two"))), tmp_path)
    tensors = files.read_tensors(tmp_path / WEIGHTS)
    load_adapter(make(*BERT), tmp_path)
    key = f"{STEM}bert.encoder.layer.0.attention.self.key.bias"  # stored, as every bias is, and not trained by the two terms
    files.write_tensors(tmp_path / WEIGHTS, tensors | {key: tensors[key] + 1})
    refused(tmp_path, f"{tmp_path / WEIGHTS}: holds changed values of blocks.0.attn.k.bias, which bitfit does not train",
            load=load_adapter)


def test_of_layers_only_the_last_ones_can_be_loaded(tmp_path):
    save_peft(shake(attach(make(*BERT), METHODS["top_k"](layers=1))), tmp_path)
    tensors, own = files.read_tensors(tmp_path / WEIGHTS), "bert.encoder.layer.1"
    swap = lambda name: name.replace("layer.1.", "layer.x.").replace("layer.0.", "layer.1.").replace("layer.x.", "layer.0.")
    files.write_tensors(tmp_path / WEIGHTS, {swap(name): a for name, a in tensors.items()})
    config = files.read_json(tmp_path / CONFIG, "config")
    assert own in config["modules_to_save"]
    edit(tmp_path, modules_to_save=["bert.encoder.layer.0", "classifier"],
         target_modules=[swap(f"{m}.")[:-1] for m in config["target_modules"]])
    refused(tmp_path, f"{tmp_path / WEIGHTS}: missing tensors for blocks.1.")
