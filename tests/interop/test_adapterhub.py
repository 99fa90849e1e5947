"""AdapterHub's stored adapters, folders that cannot be followed, and what its format cannot hold."""

import re
from pathlib import Path

import numpy as np
import pytest

from minipeft.data import files
from minipeft.interop import load_peft, load_pretrained, load_with_adapter, make_model, save_adapter, save_peft
from minipeft.interop.adapterhub import CONFIG, HEAD_CONFIG, HEAD_WEIGHTS, WEIGHTS
from minipeft.interop.peft import NotRepresentable
from minipeft.methods import Compacter, Houlsby, Parallel, Pfeiffer, attach
from minipeft.models import TransformerConfig

# Every folder that is there is tested, a new one too; without ../shared one name is left, whose tests are skipped.
GOLDEN = sorted(path.name
                for path in (Path(__file__).resolve().parents[3] / "shared/golden/adapterhub").glob("*")) or ["none_there"]
SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 10,
         "max_position_embeddings": 24, "initializer_range": 0.3, "pad_token_id": 0}
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def make(task="classify"):
    labels = ("a", "b", "c") if task == "classify" else ()
    config = TransformerConfig(model_type="bert", type_vocab_size=2, labels=labels, pooling="pooler" if labels else None, **SHAPE)
    return make_model(config, task, np.random.default_rng(0)).eval()


def shake(attachment):
    rng = np.random.default_rng(2)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(np.float32) * np.float32(0.3)
                            for path, a in attachment.arrays().items()})
    return attachment


def test_the_golden_adapters_are_of_every_kind_on_both_families(shared):
    assert set(GOLDEN) >= {f"{family}_{kind}" for family in ("bert", "gpt2") for kind in ("houlsby", "parallel", "pfeiffer")}
    assert GOLDEN == sorted(path.name for path in (shared / "golden/adapterhub").iterdir())


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_adapters_give_the_expected_logits_and_are_written_as_they_were(name, shared, tmp_path, backend):
    family, kind = name.split("_")
    base, folder = shared / "golden" / family, shared / "golden/adapterhub" / name
    model, attachment = load_with_adapter(base, folder)
    inputs, expected = np.load(f"{base}.npz"), np.load(folder / "expected.npz")
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (family == "bert")
    got = model(**{n: inputs[n] for n in names if n in inputs.files}).logits.data
    assert np.abs(got - expected["logits"]).max() <= 5e-6 * np.abs(expected["logits"]).max()
    assert attachment.method.name == kind and (family == "gpt2" or model.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2"))

    attachment.name = "task"
    save_peft(attachment, tmp_path, family)
    stored, ours = (files.read_tensors(place / WEIGHTS) for place in (folder, tmp_path))
    assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in stored.items()}
    theirs, mine = (files.read_json(place / CONFIG, "config") for place in (folder, tmp_path))
    assert {**mine, "model_name": None} == {**theirs, "model_name": None}
    assert (tmp_path / HEAD_WEIGHTS).is_file() == (family == "bert")


@pytest.fixture
def stored(tmp_path):
    save_peft(shake(attach(make(), Houlsby(bottleneck=5))), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **changes):
    raw = files.read_json(folder / CONFIG, "config")
    for field, value in changes.items():
        (raw if field in raw else raw["config"])[field] = value
    files.write_json(folder / CONFIG, raw)


def refused(folder, message, model=None):
    model = model or make()
    before = {path: p.data.tobytes() for path, p in model.named_parameters()}
    with pytest.raises(ValueError) as error:
        load_peft(model, folder)
    assert message in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert {path: p.data.tobytes() for path, p in model.named_parameters()} == before and not vars(model).get("attachments")


@pytest.mark.parametrize("field,value,message", [
    ("use_gating", True, "use_gating is True, which is not supported; expected False in a houlsby adapter"),
    ("inv_adapter", "nice", "inv_adapter is 'nice', which is not supported"), ("ln_before", True, "ln_before is True"),
    ("adapter_residual_before_ln", True, "adapter_residual_before_ln is True"), ("phm_rank", 2, "phm_rank is 2"),
    ("non_linearity", "swiglu", "non_linearity is 'swiglu'; expected one of relu, gelu, swish, tanh"),
    ("scaling", "learned", "scaling is 'learned'; expected a positive number"),
    ("reduction_factor", {"default": 16}, "reduction_factor is {'default': 16}; expected a positive number"),
    ("leave_out", ["1"], "leave_out is ['1']; expected a list of layers' numbers"),
    ("leave_out", [0, 1, 2], "no place has an adapter"), ("leave_out", [1], "unexpected tensors: bert.encoder.layer.1."),
    ("model_type", "gpt2", "model_type is 'gpt2', and this model's is 'bert'; the adapter was made for another base"),
    ("hidden_size", 24, "hidden_size is 24, and this model's is 12; the adapter was made for another base"),
    ("mh_adapter", False, "unexpected tensors: bert.encoder.layer.0.attention.output.adapters.default"),
    ("reduction_factor", 3, "tensors of another shape: bert.encoder.layer.0"),
    ("name", "other", "missing tensors: bert.encoder")])
def test_what_cannot_be_followed_is_named(field, value, message, stored):
    edit(stored, **{field: value})
    refused(stored, message)


def test_missing_files_are_named(stored):
    head = stored / HEAD_WEIGHTS
    content = head.read_bytes()
    head.write_bytes(content[:-5])
    refused(stored, f"{head}: not a whole safetensors file")
    refused(stored, "this model has none of that kind", make("none")) if head.write_bytes(content) else None
    (stored / HEAD_CONFIG).unlink()
    with pytest.raises(ValueError, match="the trained head is missing; expected head_config.json and model_head.safetensors"):
        load_with_adapter("nowhere", stored)
    (stored / WEIGHTS).rename(stored / "pytorch_adapter.bin")
    refused(stored, f"{stored}: no {WEIGHTS} (pytorch_adapter.bin is a pickle and is not opened: it can run any program)")


@pytest.mark.parametrize("method", [Houlsby(bottleneck=5),
                                    Houlsby(bottleneck=7, activation="tanh", targets="blocks.0.*.join,blocks.2.*.join"),
                                    Pfeiffer(bottleneck=1), Parallel(bottleneck=11, scale=0.5),
                                    Houlsby(bottleneck=4, targets="attn.join"),
                                    Compacter(bottleneck=6, num_factors=3), Compacter(bottleneck=4, num_factors=2, scale=2.0)])
def test_any_sizes_and_places_go_there_and_back(method, tmp_path):
    model = make()
    attachment = shake(attach(model, method))
    save_peft(attachment, tmp_path)
    again = make()
    loaded = load_peft(again, tmp_path)
    assert (again(IDS).logits.data == model(IDS).logits.data).all()
    assert (loaded.trainable, list(loaded.wrappers)) == (attachment.trainable, list(attachment.wrappers))


@pytest.mark.parametrize("method,reason", [
    (Houlsby(train_norms=True), "the norms that were trained along have no place there"),
    (Houlsby(targets="blocks.0.attn.join,blocks.1.mlp.join"), "attention and feed-forward have adapters in different")])
def test_what_adapterhub_cannot_hold_has_our_own_format(method, reason, tmp_path):
    model = make()
    attachment = shake(attach(model, method))
    with pytest.raises(NotRepresentable, match=re.escape(reason)):
        save_peft(attachment, tmp_path / "theirs")
    assert reason in save_adapter(attachment, tmp_path / "ours")
    assert (sorted(p.name for p in (tmp_path / "ours").iterdir())
            == ["attachment.safetensors", "head.safetensors", "minipeft.json"])


def test_another_method_in_the_same_folder_leaves_nothing_behind(stored):
    from minipeft.methods import LoRA

    save_adapter(shake(attach(make(), LoRA(rank=2))), stored)
    assert sorted(p.name for p in stored.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "minipeft.json"]


def test_a_trained_language_model_head_is_not_taken_for_the_tied_one(shared, tmp_path):
    folder = shared / "golden/adapterhub/gpt2_pfeiffer"
    for path in folder.glob("adapter*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stored = files.read_tensors(folder / HEAD_WEIGHTS)
    files.write_tensors(tmp_path / HEAD_WEIGHTS, {name: a + 1 for name, a in stored.items()})
    with pytest.raises(ValueError, match="lm_head.weight is not this model's; the adapter was trained with another head"):
        load_peft(load_pretrained(shared / "golden/gpt2"), tmp_path)
