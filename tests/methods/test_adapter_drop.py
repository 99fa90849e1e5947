"""Dropping the adapters of the first blocks: at inference, and drawn at each training step."""

import numpy as np
import pytest

from minipeft.interop import make_model
from minipeft.methods import METHODS, AdapterDrop, adapter_drop, attach
from minipeft.models import TransformerConfig

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def make(layers=3, **more):
    fields = {"model_type": "bert", "type_vocab_size": 2, "labels": ("a", "b"), "pooling": "mean"} | more
    config = TransformerConfig(vocab_size=13, hidden_size=12, num_hidden_layers=layers, num_attention_heads=3,
                               intermediate_size=10, max_position_embeddings=24, initializer_range=0.3, **fields)
    return make_model(config, "seq2seq" if config.encoder_decoder else "classify", np.random.default_rng(0)).eval()


def shaken(model, method):
    attachment, rng = attach(model, method), np.random.default_rng(1)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(a.dtype) * np.float32(0.3)
                            for path, a in attachment.arrays().items()})
    return attachment


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel", "compacter", "lora", "ia3"])
@pytest.mark.parametrize("blocks", range(4))
def test_the_first_blocks_are_as_in_a_model_whose_adapters_there_are_zero(name, blocks):
    model = make()
    attachment = shaken(model, METHODS[name](**({"bottleneck": 8} if hasattr(METHODS[name], "bottleneck") else {})))
    learned = model(IDS).logits.data
    with adapter_drop(attachment, blocks):
        got = model(IDS, output_hidden_states=True)
    assert (model(IDS).logits.data == learned).all() and all(w.enabled for w in attachment.wrappers.values())
    plain = make()(IDS, output_hidden_states=True)
    for i in range(blocks + 1):
        assert (got.hidden_states[i].data == plain.hidden_states[i].data).all()
    if blocks < 3:
        assert (got.hidden_states[blocks + 1].data != plain.hidden_states[blocks + 1].data).any()
    other = attach(make(), METHODS[name](targets=[p for p in attachment.wrappers
                                                  if p.startswith("blocks") and int(p.split(".")[1]) >= blocks],
                                         **({"bottleneck": 8} if hasattr(METHODS[name], "bottleneck") else {})), "fewer") if (
        blocks < 3 and name in ("houlsby", "lora", "compacter")) else None
    if other is not None:
        other.load_arrays({path: attachment.arrays()[path] for path in other.arrays()} if name != "compacter" else
                          {path: attachment.arrays()[path.replace(f"blocks.{blocks}", "blocks.0")
                                                     if path.endswith(".A") else path]
                           for path in other.arrays()})
        assert (other.model(IDS).logits.data == got.logits.data).all()


def test_dropping_switches_nothing_on():
    model = make()
    attachment = shaken(model, METHODS["pfeiffer"]())
    with attachment.disabled():
        base = model(IDS).logits.data
        with adapter_drop(attachment, 1):
            assert (model(IDS).logits.data == base).all()
    assert (model(IDS).logits.data != base).any()


def test_both_sides_of_an_encoder_decoder():
    model = make(model_type="t5", type_vocab_size=0, labels=(), pooling=None, num_decoder_layers=2, gated=True,
                 decoder_start_token_id=0)
    attachment = shaken(model, METHODS["pfeiffer"]())
    with adapter_drop(attachment, 1):
        on = {path for path, w in attachment.wrappers.items() if w.enabled}
    assert on == {"encoder.blocks.1.mlp.join", "encoder.blocks.2.mlp.join", "decoder.blocks.1.mlp.join"}


def test_training_draws_how_many_and_restores_all():
    attachment = shaken(make(), METHODS["pfeiffer"]())
    hook, seen = AdapterDrop(attachment, 2), []
    for step in range(40):
        hook.before_step(step, 40, 0, np.random.default_rng([0, step]))
        on = [w.enabled for path, w in attachment.wrappers.items() if path.startswith("blocks")]
        seen.append(on.count(False))
        assert on == sorted(on)
        hook.after_step(step, 40)
        assert all(w.enabled for w in attachment.wrappers.values())
    assert set(seen) == {0, 1, 2}
    again = []
    for step in range(40):
        hook.before_step(step, 40, 0, np.random.default_rng([0, step]))
        again.append([w.enabled for path, w in attachment.wrappers.items() if path.startswith("blocks")].count(False))
    assert again == seen  # a function of the step's generator alone, so that a resumed run draws the same


@pytest.mark.parametrize("blocks", [-1, 4])
def test_numbers_outside_the_blocks_are_refused(blocks):
    attachment = shaken(make(), METHODS["pfeiffer"]())
    with pytest.raises(ValueError, match=f"adapter drop: blocks must be a whole number from 0 to 3, got {blocks}"), adapter_drop(
            attachment, blocks):
        pass
    with pytest.raises(ValueError, match="from 0 to 3"):
        AdapterDrop(attachment, blocks)


def test_what_is_merged_or_acts_in_no_block_is_refused():
    lora = shaken(make(), METHODS["lora"](rank=2))
    lora.merge()
    with pytest.raises(ValueError, match="attachment 'default' is merged; unmerge it first"), adapter_drop(lora, 1):
        pass
    with pytest.raises(ValueError,
                       match="attachment 'default' acts in no block"), adapter_drop(shaken(make(), METHODS["prompt"]()), 1):
        pass
