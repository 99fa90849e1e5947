"""What holds whatever the method: one table of rules, each tried on every registered method and every kind of model.

A method is here by being registered in ``minipeft.methods.METHODS``; `SETTINGS` gives the few that need settings, or a
model with something, in order to be tried at all. The numbers are those of the plan's list of rules.
"""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from minipeft.data import files
from minipeft.interop import load_adapter, load_peft, load_pretrained, make_model, save_adapter, save_peft, save_pretrained
from minipeft.interop.adapter import WRITERS
from minipeft.interop.peft import NotRepresentable
from minipeft.methods import METHODS, GradualUnfreezing, activate, attach, combine, mixed
from minipeft.methods.early_exit import EarlyExit
from minipeft.methods.exit_rules import RULES as EXIT_RULES
from minipeft.methods.targets import match, seam_names
from minipeft.methods.values import stack
from minipeft.models import ClassificationHead, TransformerConfig
from minipeft.nn import AttentionCore, Join, Linear, Wrapper, unwrap
from minipeft.training import SGD

SHAPE = {"vocab_size": 19, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 48, "initializer_range": 0.3, "pad_token_id": 0}
NO_BIASES = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2, "norm_eps": 1e-6},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new"},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 2, **NO_BIASES},
    "t5": {"model_type": "t5", "num_decoder_layers": 3, "head_dim": 5, "hidden_act": "gelu_new", "gated": True, "norm_eps": 1e-6,
           "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "decoder_start_token_id": 0,
           "initializer_range": 1.0, **NO_BIASES},
}
TASKS = {"bert": ("classify", "mean"), "gpt2": ("classify", "last"), "llama": ("lm", None), "t5": ("seq2seq", None)}
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])


def make(family, seed=0, dtype=np.float32):
    """A tiny model with a head, its biases and gains off their initial values."""
    task, pooling = TASKS[family]
    config = TransformerConfig(**SHAPE | FAMILIES[family], labels=("a", "b", "c") if task == "classify" else (), pooling=pooling)
    model = make_model(config, task, np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    for path, parameter in model.named_parameters():
        if path.endswith("bias") or "norm" in path:
            parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * np.float32(0.2)
    return model.eval().astype(dtype)


def target(model):
    """The labels of the three examples."""
    return np.array([0, 2, 1]) if model.config.labels else np.where(MASK, IDS, -100)


def run(model, rows=slice(None), labels=True):
    """The model's output on some of the examples."""
    return model(IDS[rows], attention_mask=MASK[rows],
                 labels=target(model)[rows] if labels or model.config.encoder_decoder else None)


def logits(model, rows=slice(None)):
    return run(model, rows).logits.data


def bits(model):
    return {path: p.data.tobytes() for path, p in model.named_parameters()}


def shake(attachment, seed=2, size=0.2):
    """Move everything trained off its initial value."""
    rng = np.random.default_rng(seed)
    arrays = {path: a + rng.standard_normal(a.shape).astype(a.dtype) * a.dtype.type(size)
              for path, a in attachment.arrays().items()}
    attachment.load_arrays(arrays)
    return attachment


# What a method needs beyond its defaults on a model: a function from the model to its settings.
SETTINGS = {
    "full": lambda model: {"keeps_base": True},
    "bitfit": lambda model: {"add_zero_biases": not model.config.attention_bias},
    "output": lambda model: {} if model.config.labels else {"words": [3, 5]},
    "adalora": lambda model: {"rank": 6},
    "random_mask": lambda model: {"share": 0.05},
    "fisher_mask": lambda model: {"share": 0.05, "importance": fisher(make(model.config.model_type))},
}


def fisher(model):
    """Any importance will do for these rules: the squares of the weights."""
    return {path: parameter.data.astype(np.float64) ** 2 for path, parameter in model.named_parameters()}


def make_method(name, model, **changes):
    """The method with the settings that it needs on this model, and some of its fields changed."""
    return METHODS[name](**SETTINGS.get(name, lambda model: {})(model) | changes)


def attached(name, family, seed=2, dtype=np.float32, rng=5, **changes):
    """(model, attachment moved off its initial values); ``seed`` None leaves it fresh."""
    model = make(family, dtype=dtype)
    attachment = attach(model, make_method(name, model, **changes), "one", np.random.default_rng(rng))
    if dtype != np.float32:
        model.astype(dtype)
    return model, attachment if seed is None else shake(attachment, seed)


def has(name, *fields):
    """Whether a method has these settings."""
    return (set(fields) <= {f.name for f in dataclasses.fields(METHODS[name])}
            if dataclasses.is_dataclass(METHODS[name]) else False)


def cannot_attach(name, family):
    """Whether a method refuses this kind of model by what it is (a head where there is none of its own, say)."""
    return name == "head" and TASKS[family][0] != "classify" and make(family).config.tie_word_embeddings


def merges(name, family):
    """Whether a method can be merged on this kind of model."""
    try:
        attached(name, family)[1].check_mergeable()
    except ValueError:
        return False
    return True


RULES = []


def rule(number, words, applies=lambda name, family: True):
    """Register a rule: ``check(name, family)`` is run for every method and family to which it applies."""
    def register(check):
        RULES.append((number, words, applies, check))
        return check
    return register


# ---- at the start ---------------------------------------------------------------------------------------------------


@rule(1, "a fresh attachment gives the base's output", lambda name, family: name not in ("prefix", "prompt"))
def fresh_is_the_base(name, family):
    expected = logits(make(family))
    model, _ = attached(name, family, seed=None)
    assert (logits(model) == expected).all()


@rule(2, "attaching changes no bit of the base")
def attaching_leaves_the_base(name, family):
    before = bits(make(family))
    model, attachment = attached(name, family, seed=None)
    assert bits(model) == before
    shake(attachment)
    activate(model)
    assert bits(model) == before


@rule(3, "a perturbed attachment changes the output")
def perturbed_differs(name, family):
    model, _ = attached(name, family)
    assert np.abs(logits(model) - logits(make(family))).max() > 1e-3


def padded(attachment, times):
    """{path: array} of the trained arrays with ranks ``times`` as high, the added part being zero."""
    out = {}
    for path, array in attachment.arrays().items():
        rank = attachment.method.rank
        axes = [i for i, size in enumerate(array.shape) if size == rank]
        assert len(axes) < 2, path
        if path.startswith("head."):
            axes = []
        out[path] = np.pad(array, [(0, size * (times - 1)) if i in axes else (0, 0) for i, size in enumerate(array.shape)])
    return out


def scale_law(name, family, power):
    """The update is alpha / rank^power times its factors: zeros that pad the rank are made good by a larger alpha."""
    model, attachment = attached(name, family, rank=2, alpha=7.0)
    expected, times = logits(model), 4
    other, wide = attached(name, family, seed=None, rank=2 * times, alpha=7.0 * times**power)
    wide.load_arrays(padded(attachment, times))
    np.testing.assert_allclose(logits(other), expected, rtol=1e-4, atol=1e-4)
    assert {w.scale for w in attachment.wrappers.values() if hasattr(w, "U")} <= {7.0 / 2**power}


def is_stabilised(name):
    return has(name, "rank_stabilised") and METHODS[name]().rank_stabilised


def is_scaled(name):
    """Whether alpha and the rank set the scale (PiSSA's is 1 whatever they are)."""
    return has(name, "rank", "alpha") and METHODS[name]().scale(2, 6.0) != METHODS[name]().scale(2, 3.0)


@rule(4, "the scale is alpha / rank", lambda name, family: is_scaled(name) and not is_stabilised(name))
def scale_is_alpha_over_rank(name, family):
    scale_law(name, family, 1)


@rule(5, "rank-stabilised, the scale is alpha / sqrt(rank)", lambda name, family: is_stabilised(name))
def scale_is_alpha_over_root_of_rank(name, family):
    scale_law(name, family, 0.5)


# Methods that draw nothing: they start from the base's own values, from zeros and ones, or from what the data says.
NOT_DRAWN = ("full", "head", "top_k", "bitfit", "layernorm", "fisher_mask", "pissa", "ia3", "task_embedding", "output")


@rule(6, "initialisation is a function of the seed, and of the seed alone")
def the_seed_decides(name, family):
    def start(seed):
        attachment = attached(name, family, seed=None, rng=seed)[1]
        fixed = {path: w.indices for path, w in attachment.wrappers.items() if hasattr(w, "indices")}  # what a mask chose
        return {path: a.tobytes() for path, a in (attachment.arrays() | fixed).items()}

    assert start(5) == start(5)
    assert (start(5) == start(6)) == (name in NOT_DRAWN)
    model, again = attached(name, family, seed=3, rng=5), attached(name, family, seed=3, rng=5)
    assert (logits(model[0]) == logits(again[0])).all()


# ---- training -------------------------------------------------------------------------------------------------------


def backward(model):
    model.zero_grad()
    loss = run(model).loss
    loss.backward()
    return loss


@rule(7, "every trainable parameter gets a gradient, and no frozen one")
def gradients_where_they_belong(name, family):
    model, attachment = attached(name, family)
    backward(model)
    own = attachment.named_parameters()
    assert own and not [path for path, p in own.items() if p.grad is None or p.grad.shape != p.shape]
    mine = {id(p) for p in own.values()}
    assert not [path for path, p in model.named_parameters() if id(p) not in mine and p.grad is not None]


@rule(8, "after a step only trainable parameters have changed, bit for bit")
def only_trainable_move(name, family):
    model, attachment = attached(name, family)
    own, before = attachment.named_parameters(), bits(model)
    mine = {id(p) for p in own.values()}
    own_before = {path: p.data.copy() for path, p in own.items()}
    backward(model)
    SGD(own.values(), lr=0.1).step()
    assert all(p.data.tobytes() == before[path] for path, p in model.named_parameters() if id(p) not in mine)
    moved = [path for path, p in own.items() if (p.data != own_before[path]).any()]
    assert moved and len(moved) >= 0.8 * len(own)  # a key bias, or a word that does not occur, has no gradient
    activate(model)
    assert bits(model) == bits(make(family))


@rule(9, "gradients match finite differences")
def gradients_match_finite_differences(name, family):
    model, attachment = attached(name, family, dtype=np.float64)
    backward(model)
    own, rng = attachment.named_parameters(), np.random.default_rng(7)
    for path, p in list(own.items())[:: max(1, len(own) // 6)]:  # some of every kind, in random directions
        direction, kept, step = rng.standard_normal(p.shape), p.data, 1e-6
        slope = 0.0 if p.grad is None else float((p.grad * direction).sum())
        losses = []
        for sign in (1, -1):
            p.data = kept + sign * step * direction
            losses.append(run(model).loss.item())
        p.data = kept
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-4, abs=2e-7), path


@rule(10, "gradients of a low-rank change are the projections of the dense gradient",
      lambda name, family: has(name, "rank", "alpha") and name not in ("dora", "adalora"))
def gradients_are_projections(name, family):
    model, attachment = attached(name, family, dtype=np.float64)
    backward(model)
    kept = {path: (w.U.grad, w.V.grad) for path, w in attachment.wrappers.items() if hasattr(w, "U")}
    attachment.merge()  # the same function with the change inside the weight, whose gradient is the dense one
    for path in kept:
        model.get(path).wrapped.weight.requires_grad = True
    backward(model)
    for path, (of_u, of_v) in kept.items():
        wrapper, dense = attachment.wrappers[path], model.get(path).wrapped.weight.grad
        np.testing.assert_allclose(of_u, wrapper.scale * dense @ wrapper.V.data, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(of_v, wrapper.scale * dense.T @ wrapper.U.data, rtol=1e-6, atol=1e-10)


@rule(11, "dropout is off in evaluation, and drops nothing that the base says", lambda name, family: has(name, "dropout"))
def no_dropout_in_evaluation(name, family):
    fresh, _ = attached(name, family, seed=None, dropout=0.5)
    assert (logits(fresh.train(np.random.default_rng(0))) == logits(make(family))).all()
    model, attachment = attached(name, family, dropout=0.5)
    plain, same = attached(name, family)
    assert (logits(model) == logits(plain)).all()
    trained = [logits(model.train(np.random.default_rng(seed))) for seed in (0, 0, 1)]
    assert (trained[0] == trained[1]).all() and (trained[0] != trained[2]).any() and (trained[0] != logits(plain)).any()
    assert (logits(model.eval()) == logits(plain)).all()


def promised(paths, epoch, config):
    """Those of the paths that an epoch (from 0) trains, by a count of its own: head, blocks from the top, then the rest."""
    def height(path):
        side, block = re.match(r"((?:encoder|decoder)?)\.?(?:blocks\.(\d+)\.|final_norm\.)?", path).groups()
        if path.startswith("head."):
            return 0
        if block is None and "final_norm." not in path:
            return 99
        layers = config.num_decoder_layers if side == "decoder" else config.num_hidden_layers
        return (config.num_decoder_layers if side == "encoder" else 0) + (1 if block is None else layers - int(block))

    heights = sorted({height(path) for path in paths})  # a group in which nothing is trained takes no epoch
    return {path for path in paths if height(path) in heights[:epoch + 1]}


@rule(12, "an unfreezing schedule changes exactly the promised set")
def unfreezing_changes_what_it_promises(name, family):
    model, attachment = attached(name, family)
    own, hook = attachment.named_parameters(), GradualUnfreezing(attachment)
    sets, frozen = [], {path: p for path, p in model.named_parameters() if path not in own}
    for epoch in range(len(own) + 2):
        expected = promised(own, epoch, model.config)
        hook.before_step(epoch, len(own), epoch, np.random.default_rng(0))
        assert {path for path, p in own.items() if p.requires_grad} == expected
        before = {path: p.data.tobytes() for path, p in (own | frozen).items()}
        backward(model)
        with_gradient = {path for path, p in own.items() if p.grad is not None and p.grad.any()}
        SGD(own.values(), lr=0.1).step()
        changed = {path for path, p in (own | frozen).items() if p.data.tobytes() != before[path]}
        assert changed <= expected and with_gradient <= expected and len(changed) >= 0.8 * len(with_gradient)
        assert {path for path, p in own.items() if p.grad is not None} <= expected
        hook.after_step(epoch, len(own))
        assert all(p.requires_grad for p in own.values())
        sets.append(len(expected))
        if len(expected) == len(own):
            break
    assert sets == sorted(set(sets)) and sets[-1] == len(own)  # one group more in each epoch, until all are trained


# ---- disable and merge ----------------------------------------------------------------------------------------------


@rule(13, "disabled equals the base")
def disabled_is_the_base(name, family):
    model, attachment = attached(name, family)
    with attachment.disabled():
        assert (logits(model) == logits(make(family))).all() and not attachment.active


@rule(14, "leaving the block restores, nested too")
def leaving_restores(name, family):
    model, attachment = attached(name, family)
    learned, arrays = logits(model), attachment.arrays()
    with attachment.disabled():
        with attachment.disabled():
            base = logits(model)
        assert (logits(model) == base).all()
    assert (logits(model) == learned).all() and attachment.active
    with pytest.raises(KeyError), attachment.disabled():
        raise KeyError
    assert (logits(model) == learned).all()
    assert all((attachment.arrays()[path] == array).all() for path, array in arrays.items())


@rule(15, "merged equals unmerged", merges)
def merged_is_unmerged(name, family):
    model, attachment = attached(name, family, dtype=np.float64)
    unmerged = logits(model)
    assert attachment.merge() > 0 and attachment.merged
    np.testing.assert_allclose(logits(model), unmerged, rtol=1e-9, atol=1e-9)


@rule(16, "unmerging restores the base", merges)
def unmerging_restores(name, family):
    model, attachment = attached(name, family)
    before, learned = bits(model), logits(model)
    attachment.merge()
    assert bits(model) != before
    attachment.unmerge()
    assert bits(model) == before and (logits(model) == learned).all()


@rule(17, "a hundred cycles of merging stay bounded", merges)
def many_merges(name, family):
    model, attachment = attached(name, family)
    before, learned = bits(model), logits(model)
    for _ in range(100):
        attachment.merge()
        attachment.unmerge()
    assert bits(model) == before and (logits(model) == learned).all()


@rule(18, "a second merge does nothing, and says so", merges)
def merging_twice(name, family):
    model, attachment = attached(name, family)
    attachment.merge()
    merged = bits(model)
    with pytest.warns(UserWarning, match="merge: attachment 'one' is merged already; nothing was changed"):
        assert attachment.merge() == 0.0
    assert bits(model) == merged


@rule("18b", "what cannot be merged says why and changes nothing", lambda name, family: not merges(name, family))
def not_mergeable(name, family):
    model, attachment = attached(name, family)
    before, learned = bits(model), logits(model)
    with pytest.raises(ValueError, match=f"^merge: ({name} cannot be merged into a weight: .+; leave it attached|"
                                         f"{name} has nothing that can be merged into a weight; "
                                         "what it trains stands in the model itself and costs what the base costs|"
                                         "head.output is a TiedOutput, which has no full-precision weight of its own "
                                         "to put the change into)$"):
        attachment.merge()
    assert bits(model) == before and (logits(model) == learned).all() and not attachment.merged


@rule(19, "a NaN refuses to merge and leaves the base alone", merges)
def nan_is_refused(name, family):
    model, attachment = attached(name, family)
    before = bits(model)
    head = attachment.head.own.parameters() if attachment.head else []
    path = next(path for path, p in attachment.named_parameters().items() if not any(p is q for q in head))
    attachment.named_parameters()[path].data.flat[0] = np.nan
    with pytest.raises(ValueError, match=re.escape(f"merge: {path} of attachment 'one' holds NaN or infinity; "
                                                   "the base is unchanged")):
        attachment.merge()
    assert bits(model) == before and not attachment.merged


@rule(20, "disabling while merged works", merges)
def disabling_while_merged(name, family):
    model, attachment = attached(name, family)
    attachment.merge()
    merged = logits(model)
    with attachment.disabled():
        assert (logits(model) == logits(make(family))).all()
    assert attachment.merged and (logits(model) == merged).all()


@rule(21, "with zeros among what is learned, unmerging restores exactly", merges)
def zeros_are_no_loss(name, family):
    model, attachment = attached(name, family)
    for path, p in attachment.named_parameters().items():
        if not path.startswith("head.c"):
            p.data[...] = 0
    before = bits(model)
    try:
        attachment.merge()
    except ValueError as error:  # a magnitude over a length of zero, say
        assert "NaN or infinity; the base is unchanged" in str(error)
    attachment.unmerge()
    assert bits(model) == before


@rule(22, "detaching leaves no wrapper and the same keys")
def detaching_leaves_nothing(name, family):
    model, attachment = attached(name, family)
    attachment.detach()
    assert not any(isinstance(m, Wrapper) for m in model.modules())
    assert bits(model) == bits(make(family)) and (logits(model) == logits(make(family))).all()
    assert all(p.requires_grad for p in model.parameters()) and not model.attachments


@rule(23, "saving while merged is refused", merges)
def saving_while_merged(name, family, folder):
    model, attachment = attached(name, family)
    attachment.merge()
    with pytest.raises(ValueError, match="save: this attachment is merged into the base; unmerge it first"):
        save_adapter(attachment, folder / "adapter")
    assert not (folder / "adapter").exists()


# ---- several --------------------------------------------------------------------------------------------------------


@rule(24, "switching isolates outputs")
def switching_isolates(name, family):
    model, _ = attached(name, family)
    one = logits(model)
    shake(attach(model, make_method(name, model), "two"), seed=9)
    two = logits(model)
    assert (one != two).any()
    for expected, names in [(one, ["one"]), (two, ["two"]), (logits(make(family)), []), (one, ["one"])]:
        activate(model, *names)
        assert (logits(model) == expected).all()


@rule(25, "adding one never changes another")
def adding_changes_nothing_else(name, family):
    model, attachment = attached(name, family)
    learned, arrays = logits(model), {path: a.tobytes() for path, a in attachment.arrays().items()}
    other = attach(model, METHODS["lora"](rank=2, targets="attn.*,mlp.*"), "other")
    shake(other)
    backward(model)
    SGD(other.named_parameters().values(), lr=0.1).step()
    assert {path: a.tobytes() for path, a in attachment.arrays().items()} == arrays
    activate(model, "one")
    assert (logits(model) == learned).all()
    other.detach()
    assert (logits(model) == learned).all()


@rule(26, "unknown and duplicate names raise and change nothing")
def names_are_checked(name, family):
    model, attachment = attached(name, family)
    learned = logits(model)
    with pytest.raises(ValueError, match="^attach: the name 'one' is taken; attached: one; "
                                         "choose another name, or detach that one first$"):
        attach(model, make_method(name, model), "one")
    with pytest.raises(ValueError, match="activate: no attachment is called 'onne'; attached: one"):
        activate(model, "onne")
    assert (logits(model) == learned).all() and attachment.active and list(model.attachments) == ["one"]
    assert sum(isinstance(m, Wrapper) for m in model.modules()) == len(attachment.wrappers)


def rows_mix(name, family):
    attachment = attached(name, family)[1]
    return not attachment.base and all(w.mixes_rows for w in attachment.wrappers.values())


@rule(27, "a batch of mixed attachments equals each alone", rows_mix)
def mixed_rows(name, family):
    model, _ = attached(name, family)
    shake(attach(model, make_method(name, model), "two"), seed=9)
    alone = {}
    for names in (["one"], ["two"], []):
        activate(model, *names)
        alone[names[0] if names else None] = logits(model)
    for kind in ("lora", "ia3"):  # others may share the batch
        shake(attach(model, make_method(kind, model), kind), seed=11)
        alone[kind] = logits(model)
    activate(model)
    for names in (["one", "two", None], [None, "one", "one"], ["two", "two", "two"], [None] * 3, ["ia3", "one", "lora"],
                  ["lora", "ia3", "one"]):
        with mixed(model, names):
            got = logits(model)
        for i, given in enumerate(names):
            np.testing.assert_allclose(got[i], alone[given][i], rtol=2e-5, atol=2e-5)
    assert (logits(model) == alone[None]).all()
    for names in (["one"], ["one", "two"], ["one", "two", None, None]):
        with pytest.raises(ValueError, match=f"mix: expected one name for each row, got {len(names)} names "
                                             "for a batch of 3 rows"), mixed(model, names):
            logits(model)
    assert (logits(model) == alone[None]).all() and not isinstance(model.get("embed.tokens"), Wrapper)


@rule("27b", "what cannot tell rows apart says so", lambda name, family: not rows_mix(name, family))
def rows_cannot_mix(name, family):
    model, _ = attached(name, family)
    learned = logits(model)
    with pytest.raises(ValueError, match=f"mix: {name} \\(attachment 'one'\\) cannot be mixed with others in one batch"), mixed(
            model, ["one", None, "one"]):
        pass
    assert (logits(model) == learned).all()


def is_low_rank(name):
    """Whether a method's change is a product of two factors that can be added: LoRA's kin, without the one that divides."""
    return has(name, "rank", "alpha") and name != "dora"


@rule(28, "a weighted sum of LoRAs is the exact sum of their changes", lambda name, family: is_low_rank(name))
def sums_are_exact(name, family):
    model, one = attached(name, family, dtype=np.float64, targets="attn.*,mlp.*")
    two = shake(attach(model, make_method(name, model, rank=3, alpha=7.0, targets="attn.q,mlp.down"), "two"), seed=9)
    model.astype(np.float64)
    changes, arrays = {}, {n: {p: a.tobytes() for p, a in a_.arrays().items()} for n, a_ in model.attachments.items()}
    for attachment, weight in ((one, 0.7), (two, -1.3)):
        base = {p: p_.data for p, p_ in model.named_parameters()}
        activate(model, attachment.name)
        attachment.merge()  # what a LoRA adds to a weight, by its own merging
        for path, w in attachment.wrappers.items():
            if w is not attachment.head:
                now = dict(model.named_parameters())[f"{path}.weight"].data
                changes[path] = changes.get(path, 0) + weight * (now - base[f"{path}.weight"])
        attachment.unmerge()
    attachment = combine(model, {"one": 0.7, "two": -1.3}, "sum")
    assert set(attachment.wrappers) == set(changes) and attachment.active and not one.active and not two.active
    summed = logits(model)
    plain = make(family, dtype=np.float64)
    for path, change in changes.items():
        plain.get(path).weight.data = plain.get(path).weight.data + change
    np.testing.assert_allclose(summed, logits(plain), rtol=1e-9, atol=1e-9)
    assert np.abs(summed - logits(make(family, dtype=np.float64))).max() > 1e-3
    for other in ("one", "two"):
        assert {p: a.tobytes() for p, a in model.attachments[other].arrays().items()} == arrays[other]
    near = combine(model, {"one": 0.7, "two": -1.3}, "near", rank=2)  # re-factored on request
    for path, change in changes.items():
        singular = np.linalg.svd(change, compute_uv=False)
        assert near.wrappers[path].U.shape[1] == 2
        assert np.linalg.norm(near.wrappers[path].change() - change) == pytest.approx(
            np.sqrt((singular[2:] ** 2).sum()), rel=1e-6)


@rule("28b", "what is no sum of products says so", lambda name, family: not is_low_rank(name))
def no_sum_of_products(name, family):
    model, _ = attached(name, family)
    learned = logits(model)
    with pytest.raises(ValueError, match=f"combine: 'one' is {name}, whose change is not a product that can be added; "
                                         "LoRA's kin but DoRA can"):
        combine(model, {"one": 1.0}, "sum")
    assert (logits(model) == learned).all() and list(model.attachments) == ["one"]


# ---- targets and files ----------------------------------------------------------------------------------------------


@rule(29, "patterns match exactly the printed list; one that matches nothing raises and prints it",
      lambda name, family: has(name, "targets"))
def patterns_match_what_is_printed(name, family):
    model = make(family)
    before = bits(model)
    with pytest.raises(ValueError, match=r"no module matches 'atn.x'.* Seams: .*blocks\.\*\.") as error:
        attach(model, make_method(name, model, targets="atn.x"))
    assert bits(model) == before and not model.attachments and not any(isinstance(m, Wrapper) for m in model.modules())
    printed = str(error.value).partition("Seams: ")[2].split(", ")
    kind = Join if printed[0].endswith("join") else Linear
    exist = [path for path, m in model.named_modules() if isinstance(m, kind) and "blocks" in path.split(".")]
    assert printed == seam_names(exist) and len(printed) >= 2  # all that there are, each once, in the model's order
    more = {"feedforward": None} if has(name, "feedforward") else {}
    for seam in printed:
        attachment = attach(model, make_method(name, model, targets=seam, **more), seam)
        rows = [path for path, *_ in attachment.table() if path not in attachment.base and not path.startswith("head.")]
        expected = [path for path in exist if re.fullmatch(seam.replace(".", r"\.").replace("*", r"\d+"), path)]
        assert rows == expected and [p for p in attachment.wrappers if not p.startswith("head.")] == expected
        attachment.detach()
    everything = attach(model, make_method(name, model, targets=",".join(printed), **more))
    assert [p for p in everything.wrappers if not p.startswith("head.")] == exist


@rule(30, "rank and alpha patterns take precedence", lambda name, family: has(name, "rank_pattern", "alpha_pattern"))
def patterns_take_precedence(name, family):
    _, attachment = attached(name, family, rank=3, alpha=7.0, rank_pattern={"v": 5}, alpha_pattern={"attn.v": 2.0})
    for path, wrapper in attachment.wrappers.items():
        if hasattr(wrapper, "U"):
            v = path.endswith("attn.v")
            assert wrapper.U.shape[1] == (5 if path.endswith("v") else 3) and wrapper.scale == attachment.method.scale(
                wrapper.U.shape[1], 2.0 if v else 7.0), path


def saved(name, family, folder):
    """(base folder, model, attachment) with the adapter saved in ``folder / "adapter"``."""
    save_pretrained(make(family), folder / "base")
    task, pooling = TASKS[family]
    model = load(family, folder)
    attachment = shake(attach(model, make_method(name, model), "one", np.random.default_rng(5)))
    save_adapter(attachment, folder / "adapter", folder / "base")
    return model, attachment


def load(family, folder):
    task, pooling = TASKS[family]
    labels = ("a", "b", "c") if task == "classify" else None
    return load_pretrained(folder / "base", task=task, pooling=pooling, labels=labels, rng=np.random.default_rng(3))


@rule(31, "saving and loading give equal tensors and logits, with no weights of the base in the files",
      lambda name, family: name != "full")
def there_and_back(name, family, folder):
    model, attachment = saved(name, family, folder)
    again = load(family, folder)
    loaded = load_adapter(again, folder / "adapter", "one")
    assert (logits(again) == logits(model)).all()
    before, after = attachment.arrays(), loaded.arrays()
    assert {p: a.tobytes() for p, a in after.items()} == {p: a.tobytes() for p, a in before.items()}
    own = {a.tobytes() for a in before.values()} | {a.T.tobytes() for a in before.values() if a.ndim == 2}
    stored = [a for path in (folder / "adapter").glob("*.safetensors") for a in files.read_tensors(path).values()]
    base = {p.data.tobytes() for p in model.parameters() if p.size > 1 and np.unique(p.data).size > 1} - own
    assert stored and not [a for a in stored if a.tobytes() in base or a.T.tobytes() in base]


@rule(32, "missing, extra and mis-shaped tensors raise and list names", lambda name, family: name != "full")
def tensors_are_checked(name, family, folder):
    saved(name, family, folder)
    path = next(p for p in sorted((folder / "adapter").glob("*.safetensors")) if p.name != "head.safetensors" or name == "head")
    whole = files.read_tensors(path)
    victim = sorted(whole)[0]
    for damage in ({n: a for n, a in whole.items() if n != victim}, whole | {"surplus.weight": np.ones(3, np.float32)},
                   whole | {victim: np.ones((*whole[victim].shape, 2), np.float32)}, whole | {victim: whole[victim] * np.nan}):
        if whole[victim].dtype.kind != "f" and victim in damage and damage[victim].dtype.kind == "f":
            continue  # numbers of entries cannot be NaN
        files.write_tensors(path, damage)
        model = load(family, folder)
        before = bits(model)
        first = shake(attach(model, METHODS["lora"](rank=2, targets="attn.out"), "first"))  # is there, and stays active
        learned = logits(model)
        with pytest.raises(ValueError, match=f"({re.escape(victim)}|surplus.weight).*; "
                                             ".*fetch or train (it|the adapter) again$") as error:
            load_adapter(model, folder / "adapter")
        assert "\n" not in str(error.value)
        assert (logits(model) == learned).all() and list(model.attachments) == ["first"] and first.active
        assert sum(isinstance(m, Wrapper) for m in model.modules()) == len(first.wrappers) and bits(model) == before
    content = path.read_bytes()
    for cut in (b"", content[: len(content) // 2], content[:-1]):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_adapter(load(family, folder), folder / "adapter")


def trains_a_head(name, family):
    return attached(name, family)[1].head is not None


@rule(33, "the head is saved, and a missing one is missed", lambda name, family: name != "full" and trains_a_head(name, family))
def head_round_trips(name, family, folder):
    model, attachment = saved(name, family, folder)
    again = load(family, folder)
    head = load_adapter(again, folder / "adapter").head
    assert (head.own.weight.data == attachment.head.own.weight.data).all()
    for path in (folder / "adapter").glob("*head.safetensors"):
        path.unlink()
    for path in (folder / "adapter").glob("*.safetensors"):
        files.write_tensors(path, {n: a for n, a in files.read_tensors(path).items()
                                   if "classifier" not in n and "score" not in n})
    with pytest.raises(ValueError, match="the trained head is missing"):
        load_adapter(load(family, folder), folder / "adapter")


@rule("33b", "an adapter for another family, or another shape, is refused", lambda name, family: name != "full")
def another_base_is_refused(name, family, folder):
    saved(name, family, folder)
    other = make("llama" if family != "llama" else "gpt2")
    with pytest.raises(ValueError, match="the adapter was made for a .* model, and this is a .* model; "
                                         "load it on the base that it was made for$"):
        load_adapter(other, folder / "adapter")
    assert not vars(other).get("attachments")
    wider = FAMILIES[family] | {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 2}
    task, pooling = TASKS[family]
    config = TransformerConfig(**SHAPE | wider, labels=("a", "b", "c") if task == "classify" else (), pooling=pooling)
    model = make_model(config, task, np.random.default_rng(0))
    before, note = bits(model), files.read_json(folder / "adapter" / "minipeft.json", "note")
    of_tensors = r": .*tensors.*; load the adapter on the base that it was made for, or fetch or train it again$"
    of_sizes = r": (hidden_size|num_layers) is \d+, and this model's is \d+; the adapter was made for another base$"
    for shape, message in ((note["shape"], "made for a base whose hidden_size is 16, and this model's is 24; "
                                           "load it on the base that it was made for$"),
                           ({}, f"{of_tensors}|{of_sizes}|top_k: layers must be")):  # by the tensors alone
        files.write_json(folder / "adapter" / "minipeft.json", note | {"shape": shape})
        with pytest.raises(ValueError, match=message) as error:
            load_adapter(model, folder / "adapter")
        assert "\n" not in str(error.value) and not vars(model).get("attachments") and bits(model) == before
        assert not any(isinstance(m, Wrapper) for m in model.modules()) and all(p.requires_grad for p in model.parameters())


@rule(34, "what is written in another library's format comes back with the same logits, or it is said why none can hold it",
      lambda name, family: name != "full")
def there_and_back_in_another_format(name, family, folder):
    """PEFT and AdapterHub themselves read the same folders in tests/interop/test_in_the_libraries.py."""
    model, attachment = saved(name, family, folder)
    try:
        save_peft(attachment, folder / "theirs", folder / "base")
    except NotRepresentable as error:
        reasons = {"prefix": "acts on the decoder's self-attention only", "bitfit": "PEFT trains only those that exist"}
        assert re.search(reasons.get(name, f"neither PEFT nor AdapterHub has a format for {name}$"), str(error))
        assert (name not in WRITERS or (name, family) in [("prefix", "t5"), ("bitfit", "llama"), ("bitfit", "t5")])
        assert not (folder / "theirs").exists()
        return
    assert name in WRITERS
    again = load(family, folder)
    if attachment.head is not None and not list((folder / "theirs").glob("*head*")) and unwrap(model.head).pooling == "mean":
        head = attachment.head.own  # a head that transformers has no class for is not in these formats
        again.head.classifier.weight.data, again.head.classifier.bias.data = head.weight.data, head.bias.data
    load_peft(again, folder / "theirs")
    expected = logits(model)
    assert np.abs(logits(again) - expected).max() <= 5e-6 * np.abs(expected).max()
    assert np.abs(expected - logits(load(family, folder))).max() > 1e-3


@rule(35, "the parameter count equals the closed form and survives loading", lambda name, family: name != "full")
def counts(name, family, folder):
    model, attachment = saved(name, family, folder)
    assert attachment.trainable_without_head == make_method(name, make(family)).count(model.config)
    head = sum(p.size for p in attachment.head.own.parameters()) if attachment.head else 0
    assert attachment.trainable == attachment.trainable_without_head + head == sum(row[1] for row in attachment.table())
    loaded = load_adapter(load(family, folder), folder / "adapter")
    assert (loaded.trainable, loaded.table()) == (attachment.trainable, attachment.table())
    assert all(formula for _, _, formula in attachment.table())


# ---- early exit -----------------------------------------------------------------------------------------------------


def has_classes(name, family):
    return TASKS[family][0] == "classify"


def with_exits(name, family):
    """A model with a method on it, and with exits that were moved off what was drawn for them."""
    model, _ = attached(name, family)
    exits, rng = EarlyExit(model, rng=np.random.default_rng(1)), np.random.default_rng(4)
    for head in exits.exits:
        for p in head.parameters():
            p.data = rng.standard_normal(p.shape).astype(np.float32)
    return model, exits


@rule(36, "at looseness 0 nothing exits early, and the output is the full model's, bit for bit", has_classes)
def nobody_exits_at_looseness_0(name, family):
    model, exits = with_exits(name, family)
    expected = logits(model)
    assert (expected != logits(make(family))).any()
    for make_rule in EXIT_RULES.values():
        got = exits.predict(make_rule(0.0), IDS, MASK)
        assert (got.layers == 3).all() and (got.logits == expected).all()


LOOSENESSES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


@rule(37, "in any batch an example gets the prediction and the exit that it gets alone", has_classes)
def exits_alone_and_together(name, family):
    model, exits = with_exits(name, family)
    seen = set()
    for make_rule in EXIT_RULES.values():
        for looseness in LOOSENESSES:
            together = exits.predict(make_rule(looseness), IDS, MASK)
            for row in range(3):  # no score lies within 1e-5 of a threshold here
                alone = exits.predict(make_rule(looseness), IDS[row:row + 1], MASK[row:row + 1])
                assert alone.layers[0] == together.layers[row]
                np.testing.assert_allclose(alone.logits[0], together.logits[row], rtol=1e-5, atol=1e-5)
            seen |= set(together.layers)
    assert {1, 3} <= seen  # some left early and some did not


@rule(38, "a larger looseness never raises anyone's exit", has_classes)
def looser_is_never_later(name, family):
    model, exits = with_exits(name, family)
    for kind, make_rule in EXIT_RULES.items():
        layers = [exits.predict(make_rule(looseness), IDS, MASK).layers for looseness in LOOSENESSES]
        assert all((after <= before).all() for before, after in zip(layers, layers[1:]))
        assert (layers[0] == 3).all() and ((layers[-1] == 1).all() or kind == "patience")  # whose exits may never agree


# ---- two at once ----------------------------------------------------------------------------------------------------


def together(names, family):
    """{seam: who stands there} and the logits of a model with two methods, attached in this order, both active and moved."""
    model = make(family)
    for name in names:
        attachment = attach(model, make_method(name, model), f"{name} here", np.random.default_rng(5))
        shake(attachment, seed=len(name))
    activate(model, *model.attachments)
    seams = {path: [w.attachment for w in stack(model, path)] for path, _ in model.named_modules() if path}
    return {path: who for path, who in seams.items() if who}, logits(model), bits(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("one,two", list(itertools.combinations(METHODS, 2)))
def test_two_methods_in_either_order_match_the_same_seams_and_give_the_same_output(one, two, family):
    if cannot_attach(one, family) or cannot_attach(two, family):
        return
    seams, output, base = together([one, two], family)
    again, same, base_again = together([two, one], family)
    assert seams == again and (output == same).all() and base == base_again
    alone = attached(one, family)[1]
    assert {path for path, who in seams.items() if f"{one} here" in who} == set(alone.wrappers)


# ---- the table ------------------------------------------------------------------------------------------------------

CASES = [pytest.param(check, name, family, id=f"{number}-{check.__name__}-{name}-{family}")
         for number, _, applies, check in RULES for name in METHODS for family in FAMILIES
         if not cannot_attach(name, family) and applies(name, family)]


@pytest.mark.parametrize("check,name,family", CASES)
def test_rule(check, name, family, tmp_path):
    if "folder" in check.__code__.co_varnames[:check.__code__.co_argcount]:
        check(name, family, tmp_path)
    else:
        check(name, family)


def test_every_rule_of_the_plan_is_in_the_table_and_tried_on_what_it_is_about():
    assert [number for number, *_ in RULES if isinstance(number, int)] == list(range(1, 39))
    tried = {}
    for case in CASES:
        number, name = case.id.split("-")[0], case.values[1]
        tried.setdefault(number, set()).add(name)
    low_rank = {"lora", "rslora", "lora_plus", "dora", "pissa", "adalora"}
    merged = low_rank | {"ia3", "random_mask", "fisher_mask", "output"}
    everything, adapters = set(METHODS), {"houlsby", "pfeiffer", "parallel", "compacter"}
    expected = {"1": everything - {"prefix", "prompt"}, "4": low_rank - {"rslora", "pissa"}, "5": {"rslora"},
                "10": low_rank - {"dora", "adalora"}, "11": low_rank | adapters, "15": merged, "27": low_rank | {"ia3", "head"},
                "28": low_rank - {"dora"}, "29": low_rank | adapters | {"ia3"}, "30": low_rank,
                "33": everything - {"full", "top_k", "output"}}
    for number in map(str, range(1, 39)):
        if number in expected:
            assert tried[number] >= expected[number], number
        elif number in ("31", "32", "34", "35"):
            assert tried[number] == everything - {"full"}, number
        elif int(number) in range(16, 24) and number != "22":
            assert tried[number] == tried["15"], number
        else:
            assert tried[number] == everything, number
