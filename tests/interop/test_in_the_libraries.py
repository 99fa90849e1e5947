"""Every method that PEFT or AdapterHub has: trained here, saved, loaded there, and the logits compared; then the way back.

A method is here by being registered in ``minipeft.methods.METHODS``. It is the part of rule 34 of the list in test_conformance.py
that needs the libraries.
"""

import contextlib
import io
import warnings

import numpy as np
import pytest

from minipeft.data import files
from minipeft.interop import load_peft, load_pretrained, make_model, save_peft, save_pretrained
from minipeft.interop.peft import NotRepresentable
from minipeft.methods import METHODS, attach
from minipeft.models import TransformerConfig
from minipeft.training import AdamW

SHAPE = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
NO_BIASES = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
BASES = {  # the shape, the task, and transformers' class
    "bert": ({"model_type": "bert", "type_vocab_size": 2, "norm_eps": 1e-6}, "classify", "BertForSequenceClassification"),
    "gpt2": ({"model_type": "gpt2", "hidden_act": "gelu_new"}, "lm", "GPT2LMHeadModel"),
    "gpt2 classes": ({"model_type": "gpt2", "hidden_act": "gelu_new"}, "classify", "GPT2ForSequenceClassification"),
    "llama": ({"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 2, **NO_BIASES}, "lm", "LlamaForCausalLM"),
    "llama with biases": ({"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 2, "tie_word_embeddings": False},
                          "lm", "LlamaForCausalLM"),
    "t5": ({"model_type": "t5", "num_decoder_layers": 2, "hidden_act": "gelu_new", "gated": True, "norm_eps": 1e-6,
            "decoder_start_token_id": 0, "initializer_range": 1.0, **NO_BIASES}, "seq2seq", "T5ForConditionalGeneration"),
}
# GPT-2's classifier finds the end by the padding's id
IDS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 0], [9, 7, 9, 3, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
SETTINGS = {"adalora": lambda model: {"rank": 5, "alpha": 7}, "top_k": lambda model: {"layers": 1},
            "bitfit": lambda model: {"add_zero_biases": not model.config.attention_bias},
            "output": lambda model: {} if model.config.labels else {"words": [3, 5]},
            "fisher_mask": lambda model: {"importance": {path: p.data**2 for path, p in model.named_parameters()}}}
NO_PLACE = "the biases were added to a base that has none, and PEFT trains only those that exist"
# What no other library can hold, on which bases (None: on all), and the reason that is given.
NOT_THERE = {("prefix", "t5"): "in an encoder-decoder PEFT's prefix acts on the decoder's self-attention only",
             ("bitfit", "llama"): NO_PLACE, ("bitfit", "t5"): NO_PLACE} | {
    (name, None): f"neither PEFT nor AdapterHub has a format for {name}"
    for name in ("head", "random_mask", "fisher_mask", "task_embedding", "output")}
# Where the two of us give different logits, or they lose something, on purpose: what, and why.
DIFFERENT = {("prompt", "gpt2 classes"): "given vectors and no ids, transformers' classifier reads the last place, padded or not",
             ("compacter", "t5"): "AdapterHub 1.3 leaves the shared matrices out when it saves a T5's"}
# LLaMA's config may have biases; nothing but BitFit is another with them.
CASES = [(name, base) for name in METHODS if name != "full" for base in BASES
         if (base == "llama with biases") <= (name in ("bitfit", "lora"))
         and not (name == "head" and BASES[base][1] == "lm" and "gpt2" in base)]


def make(base, seed=0):
    shape, task, _ = BASES[base]
    labels = ("a", "b", "c") if task == "classify" else ()
    pooling = {"bert": "pooler", "gpt2": "last"}.get(shape["model_type"]) if labels else None
    model = make_model(TransformerConfig(**SHAPE | shape, labels=labels, pooling=pooling), task, np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    for path, parameter in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.2)
    return model.eval()


def outputs(model, labels=False):
    """The model's output on the three examples."""
    targets = np.array([0, 2, 1]) if model.config.labels else np.where(MASK, IDS, -100)
    extra = {"labels": targets} if labels else {"decoder_input_ids": IDS[:, :4]} if model.config.encoder_decoder else {}
    return model(IDS, attention_mask=MASK, **extra)


def trained(base, name):
    """A model with the method on it, trained for a few steps and then moved off every zero."""
    model = make(base)
    attachment = attach(model, METHODS[name](**SETTINGS.get(name, lambda model: {})(model)), rng=np.random.default_rng(5))
    optimizer = AdamW(attachment.named_parameters().values(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        outputs(model, labels=True).loss.backward()
        optimizer.step()
    rng = np.random.default_rng(6)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(np.float32) * np.float32(0.1)
                            for path, a in attachment.arrays().items()})
    assert all((a != 0).all() for a in attachment.arrays().values())
    return attachment


class Theirs:
    """The base in transformers with an adapter folder on it, in PEFT or AdapterHub, whichever the folder is for."""

    def __init__(self, peer, base, base_folder, adapter_folder):
        self.torch, transformers = peer("torch"), peer("transformers")
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            self.model = getattr(transformers, BASES[base][2]).from_pretrained(base_folder).eval()
            if "peft_type" in files.read_json(adapter_folder / "adapter_config.json", "config"):
                self.model = peer("peft").PeftModel.from_pretrained(self.model, str(adapter_folder)).eval()
                self.save = self.model.save_pretrained
            else:
                peer("adapters").init(self.model)
                name = self.model.load_adapter(str(adapter_folder), use_safetensors=True)
                self.model.set_active_adapters(name)
                self.model.eval()
                self.save = lambda folder: self.model.save_adapter(str(folder), name, use_safetensors=True)

    def logits(self):
        """Of the three examples; a causal model's without those of virtual tokens."""
        ids, mask = self.torch.tensor(IDS), self.torch.tensor(MASK)
        extra = {"decoder_input_ids": ids[:, :4]} if self.model.config.is_encoder_decoder else {}
        with self.torch.no_grad():
            z = self.model(input_ids=ids, attention_mask=mask, **extra).logits.numpy()
        return z[:, -IDS.shape[1]:] if z.ndim == 3 else z


def assert_close(got, expected, share=5e-6):
    """Equal within a share of the largest expected entry."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("name,base", [case for case in CASES if {case, (case[0], None)} & set(NOT_THERE)])
def test_what_no_library_can_hold_is_refused_with_the_reason(name, base, tmp_path):
    attachment = trained(base, name)
    with pytest.raises(NotRepresentable, match=NOT_THERE.get((name, base)) or NOT_THERE[name, None]):
        save_peft(attachment, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name,base", [case for case in CASES if not {case, (case[0], None)} & set(NOT_THERE)])
def test_what_we_save_the_library_loads_and_what_it_saves_we_load(name, base, peer, tmp_path):
    attachment = trained(base, name)
    model = attachment.model
    save_pretrained(make(base), tmp_path / "base")
    save_peft(attachment, tmp_path / "ours", tmp_path / "base")
    expected = outputs(model).logits.data
    with attachment.disabled():
        assert np.abs(outputs(model).logits.data - expected).max() > 0.01 * np.abs(expected).max()
    theirs = Theirs(peer, base, tmp_path / "base", tmp_path / "ours")
    real = MASK.astype(bool) if expected.ndim == 3 and expected.shape[1] == IDS.shape[1] else slice(None)
    if (name, base) == ("prompt", "gpt2 classes"):
        assert (MASK[0] == 1).all() and np.abs(theirs.logits()[1:] - expected[1:]).max() > 1e-3, DIFFERENT[name, base]
        real = slice(0, 1)  # the text without padding
    assert_close(theirs.logits()[real], expected[real])

    theirs.save(tmp_path / "theirs")
    task = BASES[base][1]
    again = load_pretrained(tmp_path / "base", task=task, labels=("a", "b", "c") if task == "classify" else None,
                            pooling=model.config.pooling, rng=np.random.default_rng(0))
    if (name, base) == ("compacter", "t5"):
        assert not [n for n in files.read_tensors(tmp_path / "theirs/adapter.safetensors")
                    if "phm_rule" in n], DIFFERENT[name, base]
        with pytest.raises(ValueError, match="missing tensors: shared_parameters.default.phm_rule; load the adapter"):
            load_peft(again, tmp_path / "theirs")
        return
    loaded = load_peft(again, tmp_path / "theirs")
    assert_close(outputs(again).logits.data, expected)
    assert loaded.active and set(loaded.model.attachments) == {"default"}
