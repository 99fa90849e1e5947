"""Attaching, naming, switching, merging and detaching, for every method that exists."""

import numpy as np
import pytest

from minipeft.methods import METHODS, Full, Head, LoRA, activate, attach, match
from minipeft.models import ClassificationHead, Encoder, TransformerConfig
from minipeft.nn import Wrapper
from minipeft.training import SGD

IDS, LABELS = np.array([[1, 5, 2, 9], [3, 3, 0, 7]]), np.array([0, 2])


def encoder(seed=0, pooling="mean"):
    config = TransformerConfig(model_type="bert", vocab_size=17, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
                               intermediate_size=20, max_position_embeddings=16, type_vocab_size=2)
    rng = np.random.default_rng(seed)
    model = Encoder(config, rng)
    model.head = ClassificationHead(12, 3, pooling, rng=rng, std=0.5)
    return model


def train(model, attachment, steps=2):
    optimizer = SGD(attachment.named_parameters().values(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=LABELS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS.values())
def test_attaching_changes_neither_output_nor_bits_nor_names(method):
    model = encoder()
    before, names = model(IDS).logits.data, [p for p, _ in model.named_parameters()]
    bits = {p: v.data.tobytes() for p, v in model.named_parameters()}
    attachment = attach(model, method())
    assert (model(IDS).logits.data == before).all()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == bits
    assert [p for p, _ in model.named_parameters()] == names
    attachment.detach()
    assert not any(isinstance(m, Wrapper) for m in model.modules())
    assert [p for p, _ in model.named_parameters()] == names


@pytest.mark.parametrize("method", METHODS.values())
def test_every_trainable_parameter_gets_a_gradient_and_changes_and_no_other_does(method):
    model = encoder(pooling="pooler")
    attachment = attach(model, method())
    trained = attachment.named_parameters()
    if method is LoRA:
        for p in trained.values():
            p.data = p.data + np.float32(0.1)
    before = {p: v.data.copy() for p, v in (trained | dict(model.named_parameters())).items()}
    train(model, attachment, 1)
    own = {id(p) for p in trained.values()}
    for path, p in (trained | dict(model.named_parameters())).items():
        changed = (p.data != before[path]).any()
        if id(p) in own:
            assert p.grad is not None, path
            unused = path.endswith("attn.k.bias") or path in ("embed.types.weight",)  # zero or near-zero gradients
            assert changed or unused, path
        else:
            assert p.grad is None and not changed, path


def test_counts_with_and_without_the_head():
    total = sum(p.size for p in encoder().parameters())
    head = 12 * 3 + 3
    assert (attach(encoder(), Full()).trainable, attach(encoder(), Full()).trainable_without_head) == (total, total - head)
    assert (attach(encoder(), Head()).trainable, attach(encoder(), Head()).trainable_without_head) == (head, 0)
    lora = attach(encoder(), LoRA(rank=2))
    assert (lora.trainable, lora.trainable_without_head) == (2 * 24 * 2 * 2 + head, 2 * 24 * 2 * 2)


def test_the_head_belongs_to_its_attachment():
    model = encoder()
    base = model(IDS).logits.data
    one = attach(model, LoRA(rank=2), "one")
    train(model, one)
    after_one = model(IDS).logits.data
    two = attach(model, Head(), "two")
    assert (model(IDS).logits.data == base).all()
    train(model, two)
    after_two = model(IDS).logits.data
    activate(model, "one")
    assert (model(IDS).logits.data == after_one).all()
    activate(model, "two")
    assert (model(IDS).logits.data == after_two).all()
    with two.disabled():
        assert (model(IDS).logits.data == base).all()
        with two.disabled():
            assert (model(IDS).logits.data == base).all()
        assert (model(IDS).logits.data == base).all()
    assert (model(IDS).logits.data == after_two).all()
    one.detach()
    assert (model(IDS).logits.data == after_two).all()


def test_unknown_and_taken_names_change_nothing():
    model = encoder()
    attachment = attach(model, LoRA(rank=2), "one")
    train(model, attachment)
    before = model(IDS).logits.data
    with pytest.raises(ValueError, match="attach: the name 'one' is taken; attached: one"):
        attach(model, Head(), "one")
    with pytest.raises(ValueError, match="activate: no attachment is called 'tow'; attached: one"):
        activate(model, "tow")
    assert (model(IDS).logits.data == before).all() and attachment.active


def test_a_pattern_that_matches_nothing_lists_what_exists():
    with pytest.raises(ValueError, match=r"lora targets: no module matches 'blocks.\*.atn.q'; did you mean 'blocks.\*.attn.q'\? "
                                         r"Seams: blocks.\*.attn.q, blocks.\*.attn.k, blocks.\*.attn.v, blocks.\*.attn.out, "
                                         r"blocks.\*.mlp.up, blocks.\*.mlp.down"):
        attach(encoder(), LoRA(targets="blocks.*.atn.q"))


def test_patterns_match_whole_paths_and_endings_exactly():
    paths = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.10.attn.q", "blocks.0.mlp.up"]
    assert match("q", paths) == ["blocks.0.attn.q", "blocks.10.attn.q"]
    assert match("blocks.1*.attn.q", paths) == ["blocks.10.attn.q"]
    assert match(["mlp.up", "attn.k"], paths) == ["blocks.0.attn.k", "blocks.0.mlp.up"]
    assert match("attn.*, up", paths) == paths
    with pytest.raises(ValueError, match="no module matches 'p'"):
        match("p", paths)


def test_nan_refuses_to_merge_and_leaves_the_base():
    model = encoder()
    attachment = attach(model, LoRA(rank=2))
    bits = {p: v.data.tobytes() for p, v in model.named_parameters()}
    attachment.wrappers["blocks.1.attn.v"].U.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="merge: blocks.1.attn.v.U of attachment 'default' holds NaN or infinity; the base is unchanged"):
        attachment.merge()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == bits and not attachment.merged


def test_what_cannot_be_merged_or_disabled_says_so():
    model = encoder()
    full = attach(model, Full())
    with pytest.raises(ValueError, match="merge: full has nothing that can be merged"):
        full.merge()
    with pytest.raises(ValueError, match="disable: full trains the base itself"):
        with full.disabled():
            pass
    head = attach(model, Head(), "head")
    with pytest.raises(ValueError, match="merge: head has nothing that can be merged"):
        head.merge()
    lora = attach(model, LoRA(rank=1), "lora")
    activate(model, "head")
    with pytest.raises(ValueError, match="merge: attachment 'lora' is not active"):
        lora.merge()


def test_merging_stays_bounded_over_a_hundred_cycles():
    model = encoder()
    attachment = attach(model, LoRA(rank=2))
    train(model, attachment)
    before = model(IDS).logits.data
    for _ in range(100):
        attachment.merge()
        attachment.unmerge()
    assert (model(IDS).logits.data == before).all()
