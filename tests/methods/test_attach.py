"""Attaching, naming, switching, merging and detaching, for every method that exists."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.autograd import Tensor
from minipeft.methods import METHODS, Full, Head, LoRA, activate, attach, match
from minipeft.methods.attach import OwnCopy, output_map
from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, MaskedLMHead, TransformerConfig
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


@pytest.mark.parametrize("method", [Full, Head, LoRA])
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


@pytest.mark.parametrize("method", [Full, Head, LoRA])
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
    with pytest.raises(ValueError, match=re.escape("here: no pattern is given. Seams: "
                                                   "blocks.*.attn.q, blocks.*.attn.k, blocks.*.mlp.up")):
        match([], paths, "here")


@given(st.lists(st.sampled_from(["q", "attn.k", "blocks.0.*", "blocks.1*.attn.q", "*.up", "attn.?", "blocks.10.attn.q"]),
                min_size=1))
def test_several_patterns_match_what_each_matches_in_the_paths_order(patterns):
    paths = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.10.attn.q", "blocks.0.mlp.up"]
    each = {p for pattern in patterns for p in match(pattern, paths)}
    assert match(patterns, paths) == match(" , ".join(patterns), paths) == [p for p in paths if p in each]


@pytest.mark.parametrize("pattern,suggested", [
    ("Q", None), ("atn.q", "blocks.*.attn.q"), ("mlp.dwon", "blocks.*.mlp.down"), ("otu", "blocks.*.attn.out"),
    ("blocks.*.attn.w", "blocks.*.attn."), ("blocks.7.attn.q", "blocks.*.attn.q")])
def test_a_slip_of_the_pen_gets_a_suggestion(pattern, suggested):
    with pytest.raises(ValueError) as error:
        attach(encoder(), LoRA(targets=["attn.q", pattern]))
    message = str(error.value)
    assert message.startswith(f"lora targets: no module matches {pattern!r}")
    assert f"; did you mean '{suggested}" in message if suggested else "did you mean" not in message
    assert message.endswith("Seams: blocks.*.attn.q, blocks.*.attn.k, blocks.*.attn.v, blocks.*.attn.out, blocks.*.mlp.up, "
                            "blocks.*.mlp.down")


def test_nan_refuses_to_merge_and_leaves_the_base():
    model = encoder()
    attachment = attach(model, LoRA(rank=2))
    bits = {p: v.data.tobytes() for p, v in model.named_parameters()}
    attachment.wrappers["blocks.1.attn.v"].U.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="merge: blocks.1.attn.v.U of attachment 'default' holds NaN or infinity; "
                                         "the base is unchanged"):
        attachment.merge()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == bits and not attachment.merged


def test_what_cannot_be_merged_or_disabled_says_so():
    model = encoder()
    full = attach(model, Full())
    with pytest.raises(ValueError, match="merge: full has nothing that can be merged"):
        full.merge()
    with pytest.raises(ValueError, match="disable: full trains the base itself"), full.disabled():
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


# ---- taking off, and all in between -------------------------------------------------------------------------------


THREE = {"lora": LoRA(rank=2, targets="attn.*"), "other": LoRA(rank=3, targets="q,mlp.up"), "head": Head()}


@pytest.mark.parametrize("order", list(itertools.permutations(["lora", "other", "head"])), ids="-".join)
@pytest.mark.parametrize("merged", [(), ("lora",), ("lora", "other")], ids=["unmerged", "one_merged", "two_merged"])
def test_detaching_in_any_order_restores_everything(order, merged):
    model = encoder(pooling="pooler")
    model.head.pooler.requires_grad_(False)  # was frozen before
    plain, bits = model(IDS).logits.data, {p: v.data.tobytes() for p, v in model.named_parameters()}
    flags, kinds = {p: v.requires_grad for p, v in model.named_parameters()}, [type(m) for m in model.modules()]
    attached = {name: attach(model, method, name) for name, method in THREE.items()}
    for name, attachment in attached.items():
        activate(model, name)
        train(model, attachment)
    activate(model, *attached)
    for name in merged:
        attached[name].merge()
    for i, name in enumerate(order):
        assert not any(v.requires_grad for v in model.parameters())
        attached[name].detach()
        attached[name].detach()  # a second time does nothing
        assert sorted(model.attachments) == sorted(order[i + 1:])
    assert (model(IDS).logits.data == plain).all() and {p: v.data.tobytes() for p, v in model.named_parameters()} == bits
    assert {p: v.requires_grad for p, v in model.named_parameters()} == flags and [type(m) for m in model.modules()] == kinds
    again = attach(model, LoRA(rank=2), "lora")  # the name is free again
    attached["lora"].detach()
    assert model.attachments == {"lora": again}


def test_detaching_one_leaves_the_others_outputs():
    model = encoder()
    outputs, attached = {}, {}
    for name, method in [("lora", LoRA(rank=2, targets="attn.*")), ("other", LoRA(rank=3, targets="q,mlp.up"))]:
        attached[name] = attach(model, method, name)
        train(model, attached[name])
        outputs[name] = model(IDS).logits.data
    attached["lora"].detach()
    assert (model(IDS).logits.data == outputs["other"]).all() and attached["other"].active


def test_the_active_ones_alone_are_trained_in_place():
    model = encoder()
    full = attach(model, Full(), "full")
    assert all(p.requires_grad for p in model.parameters())
    lora = attach(model, LoRA(rank=2), "lora")
    assert not any(p.requires_grad for p in model.parameters())
    activate(model, "full")
    assert all(p.requires_grad for p in model.parameters())
    train(model, full)
    assert all(p.grad is None for p in lora.named_parameters().values()) and any(p.grad is not None for p in model.parameters())
    attach(model, Full(), "more")
    for names in (["full"], ["more"], ["lora", "full"], ["full", "more"]):
        activate(model, *names)
        assert all(p.requires_grad for p in model.parameters()), names
    activate(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_none_active_is_the_base():
    model = encoder()
    plain = model(IDS).logits.data
    attachment = attach(model, LoRA(rank=2))
    train(model, attachment)
    learned = model(IDS).logits.data
    activate(model)
    assert (model(IDS).logits.data == plain).all() and not attachment.active
    activate(model, "default")
    assert (model(IDS).logits.data == learned).all() and attachment.active


def test_a_merged_one_stays_merged_whatever_is_activated():
    model = encoder()
    first = attach(model, LoRA(rank=2, targets="mlp.up"), "first")
    train(model, first)
    plain = first.wrappers["blocks.0.mlp.up"].wrapped.weight.data
    change = first.merge()
    changes = [np.abs(w.change()).max() for path, w in first.wrappers.items() if path != "head.classifier"]
    assert change == pytest.approx(max(changes), rel=1e-5) and change > 0
    second = attach(model, LoRA(rank=2, targets="mlp.up,q"), "second")
    assert first.merged and first.active and second.active
    activate(model, "second")
    expected = plain + first.wrappers["blocks.0.mlp.up"].change()
    assert first.merged and (first.wrappers["blocks.0.mlp.up"].wrapped.weight.data == expected).all()
    first.unmerge()
    assert first.wrappers["blocks.0.mlp.up"].wrapped.weight.data is plain


def test_an_error_inside_a_disabled_block_still_restores():
    model = encoder()
    attachment = attach(model, LoRA(rank=2))
    train(model, attachment)
    learned = model(IDS).logits.data
    attachment.merge()
    merged = model(IDS).logits.data
    with pytest.raises(KeyError), attachment.disabled() as base:
        assert base is model
        raise KeyError
    assert attachment.merged and (model(IDS).logits.data == merged).all()
    attachment.unmerge()
    assert (model(IDS).logits.data == learned).all()


def test_adding_one_never_changes_another():
    model = encoder()
    first = attach(model, LoRA(rank=2), "first")
    train(model, first)
    learned, weights = model(IDS).logits.data, {n: p.data.tobytes() for n, p in first.named_parameters().items()}
    train(model, attach(model, LoRA(rank=5, targets="attn.*,mlp.*"), "second"), 5)
    activate(model, "first")
    assert (model(IDS).logits.data == learned).all() and {n: p.data.tobytes() for n,
                                                          p in first.named_parameters().items()} == weights


# ---- the task's output map ----------------------------------------------------------------------------------------


def with_head(kind):
    """A model and its output map's path."""
    if kind == "classes":
        return encoder(), "head.classifier"
    if kind == "none" or kind == "masks":
        model = encoder()
        model.head = MaskedLMHead(model.config, model.embed.tokens.weight, np.random.default_rng(0)) if kind == "masks" else None
        return model, None
    config = TransformerConfig(model_type="gpt2", vocab_size=17, hidden_size=12, num_hidden_layers=1, num_attention_heads=3,
                               intermediate_size=8,
                               max_position_embeddings=16, tie_word_embeddings=kind == "tied words")
    model = Decoder(config, np.random.default_rng(0))
    model.head = LMHead(config, model.embed.tokens.weight, np.random.default_rng(0))
    return model, None if kind == "tied words" else "head.output"


@pytest.mark.parametrize("kind", ["classes", "words", "tied words", "masks", "none"])
def test_where_the_output_map_is_and_who_trains_it(kind):
    model, path = with_head(kind)
    assert output_map(model) == path
    lora = attach(model, LoRA(rank=1), "lora")
    assert (lora.head is not None) == (kind == "classes")  # a language model's output map is not the task's own
    assert output_map(model) == path  # wrappers are invisible
    if path is None:
        message = ("attach: this model has no output map of its own to train "
                   "(it has no head, or one that is tied to the word vectors)")
        with pytest.raises(ValueError, match=re.escape(message)):
            attach(model, Head(), "head")
        assert list(model.attachments) == ["lora"] and lora.active
    else:
        head = attach(model, Head(), "head")
        assert list(head.wrappers) == [path] and isinstance(head.head, OwnCopy)
        owned = list(head.named_parameters().values())
        assert not any(np.may_share_memory(p.data, q.data) for p in owned for q in model.parameters())
        assert all(name.startswith(path) and ".own" not in name for name in head.named_parameters())


# ---- several that act at one place ----------------------------------------------------------------------------------


def shaken(model, method, name, seed):
    """An attachment moved off its initial values."""
    attachment, rng = attach(model, method, name), np.random.default_rng(seed)
    attachment.load_arrays({path: a + rng.standard_normal(a.shape).astype(a.dtype) * np.float32(0.3)
                            for path, a in attachment.arrays().items()})
    return attachment


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_what_multiplies_stands_outside_what_adds_whatever_the_names(names):
    model = encoder()
    added = shaken(model, LoRA(rank=2, alpha=5, targets="k"), names[0], 0)
    scaled = shaken(model, METHODS["ia3"](targets="k", feedforward=None), names[1], 1)
    activate(model, *names)
    x, path = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32), "blocks.0.attn.k"
    base = dict(model.named_modules())[path]
    inside = x @ base.weight.data + x @ added.wrappers[path].change() + base.bias.data
    np.testing.assert_allclose(model.get(path)(Tensor(x)).data, inside * scaled.wrappers[path].l.data, rtol=1e-5, atol=1e-5)


def test_what_acts_first_is_merged_first_and_unmerged_last():
    model = encoder()
    added, scaled = shaken(model, LoRA(rank=2, alpha=5, targets="k,v"), "add", 0), shaken(model, METHODS["ia3"](), "scale", 1)
    activate(model, "add", "scale")
    unmerged, before = model(IDS).logits.data, {p: v.data.tobytes() for p, v in model.named_parameters()}
    with pytest.raises(ValueError, match="merge: at blocks.0.attn.k attachment 'add' acts before 'scale', so it must be merged "
                                         "first and unmerged last; or deactivate it"):
        scaled.merge()
    assert (model(IDS).logits.data == unmerged).all() and not scaled.merged
    added.merge(), scaled.merge()
    np.testing.assert_allclose(model(IDS).logits.data, unmerged, rtol=1e-3, atol=1e-4)
    merged = model(IDS).logits.data
    with pytest.raises(ValueError, match="attachment 'add' acts before 'scale'"):
        added.unmerge()
    assert (model(IDS).logits.data == merged).all() and added.merged
    scaled.unmerge(), added.unmerge()
    assert {p: v.data.tobytes() for p, v in model.named_parameters()} == before and (model(IDS).logits.data == unmerged).all()
    activate(model, "scale")
    scaled.merge()
    with pytest.raises(ValueError, match="attachment 'add' acts before 'scale'"):
        activate(model, "add")
    assert scaled.merged and not added.active


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_two_that_train_one_parameter_in_place_the_last_by_name_counts(order):
    model = encoder()
    base = {p: v.data.copy() for p, v in model.named_parameters()}
    for name in order:
        shaken(model, METHODS["bitfit"]() if name == "a" else METHODS["layernorm"](), name, len(name))
    both = model.attachments
    activate(model, "a", "b")
    now = dict(model.named_parameters())
    shared = set(both["a"].base) & set(both["b"].base)
    assert shared and all((now[p].data == both["b"].arrays()[p]).all() for p in shared)
    assert all((now[p].data == both["a"].arrays()[p]).all() for p in set(both["a"].base) - shared)
    activate(model, "a")
    assert all((now[p].data == both["a"].arrays()[p]).all() for p in both["a"].base)
    both["a"].detach(), both["b"].detach()
    assert all((v.data == base[p]).all() for p, v in model.named_parameters())


def test_nothing_is_merged_into_what_is_trained_in_place():
    model = encoder()
    scaled = shaken(model, METHODS["ia3"](), "scale", 0)
    shaken(model, METHODS["bitfit"](), "biases", 1)
    activate(model, "scale", "biases")
    before = model(IDS).logits.data
    message = ("merge: blocks.0.attn.k.bias is trained in place by attachment 'biases', so that nothing can be merged into it; "
               "deactivate that one, or unmerge")
    with pytest.raises(ValueError, match=re.escape(message)):
        scaled.merge()
    assert (model(IDS).logits.data == before).all() and not scaled.merged
    activate(model, "scale")
    scaled.merge()
    with pytest.raises(ValueError, match=re.escape(message)):
        activate(model, "biases")
    with pytest.raises(ValueError, match="is trained in place by attachment 'more'"):
        attach(model, METHODS["bitfit"](), "more")
    assert set(model.attachments) == {"scale", "biases"} and scaled.merged


def test_values_learned_in_place_stay_with_their_attachment():
    model = encoder()
    plain = model(IDS).logits.data
    outputs = {}
    for name in ("one", "two"):
        attachment = attach(model, METHODS["bitfit"](), name)
        assert (model(IDS).logits.data == plain).all()  # it starts from the base, not from the other
        train(model, attachment)
        outputs[name] = model(IDS).logits.data
    assert (outputs["one"] != plain).any() and not (model(IDS).logits.data == plain).all()
    for name in ("one", "two", "one"):
        activate(model, name)
        assert (model(IDS).logits.data == outputs[name]).all()
        with model.attachments[name].disabled():
            assert (model(IDS).logits.data == plain).all()
    model.attachments["one"].detach()
    assert (model(IDS).logits.data == plain).all()
    activate(model, "two")
    assert (model(IDS).logits.data == outputs["two"]).all()
