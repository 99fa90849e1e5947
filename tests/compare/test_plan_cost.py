"""What the planner says of memory and operations is what a real step keeps and multiplies.

Stated tolerances: arrays kept for the backward pass within 1 % (4 kB for what keeps almost nothing), the peak of a backward
pass within 10 %, operations of matrix products exactly.
"""

import tracemalloc

import numpy as np
import pytest

from minipeft import kernels
from minipeft.autograd import Tensor
from minipeft.compare import plan
from minipeft.compare.exits import OFFERED, models_of
from minipeft.compare.plan_cost import Walk
from minipeft.compare.plan_models import Shape, load_shape
from minipeft.interop import make_model
from minipeft.methods import METHODS, attach, quantise
from minipeft.models import TransformerConfig
from minipeft.nn import Parameter

BATCH, LENGTH, TARGET = 4, 32, 24
SIZES = {"vocab_size": 300, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 160, "num_hidden_layers": 3,
         "max_position_embeddings": 100}
FAMILIES = {
    "bert": {"type_vocab_size": 2}, "gpt2": {"hidden_act": "gelu_new"},
    "llama": {"num_key_value_heads": 2, "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
              "hidden_act": "silu", "tie_word_embeddings": False},
    "t5": {"num_decoder_layers": 2, "gated": True, "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
           "head_dim": 24, "decoder_start_token_id": 0, "tie_word_embeddings": False},
}
SETTINGS = {"compacter": {"bottleneck": 16}, "top_k": {"layers": 1}}
CASES = [("bert", "classify", "pooler", 0.1), ("bert", "classify", "mean", 0.0), ("bert", "classify", "cls", 0.0),
         ("gpt2", "lm", None, 0.1), ("gpt2", "classify", "last", 0.0), ("llama", "lm", None, 0.0), ("t5", "seq2seq", None, 0.1),
         ("t5", "seq2seq", None, 0.0)]


COSTS = [(name, case) for name in OFFERED for case in CASES if name != "early_exit" or case[1] == "classify"]
NAMED = {"argnames": "name, case", "argvalues": COSTS, "ids": ["-".join(map(str, (name, *case))) for name, case in COSTS]}


def shape_for(family, task, pooling, dropout, **more):
    labels = ("a", "b", "c") if task == "classify" else ()
    config = TransformerConfig(family, **SIZES | FAMILIES[family] | more, hidden_dropout=dropout, attention_dropout=dropout,
                               embedding_dropout=dropout, labels=labels, pooling=pooling)
    return Shape("made", family, task, config, pre_norm=config.pre_norm)


def shape_with_head(name, family, task, pooling, dropout):
    """A shape that has a head of its own where the method trains nothing else."""
    untied = {"tie_word_embeddings": False} if name == "head" and family == "gpt2" else {}
    return shape_for(family, task, pooling, dropout, **untied)


def method_for(name, shape, **more):
    settings = {"add_zero_biases": True} if name == "bitfit" and shape.family in ("llama", "t5") else SETTINGS.get(name, {})
    return plan.make_method(name, settings | more, shape)


def step(shape, method, four_bits=False):
    """(attachment, a function that runs a forward pass and returns its loss) of a really made model in training."""
    model = make_model(shape.config, shape.task, np.random.default_rng(0))
    if four_bits:
        quantise(model)
    if method.name == "fisher_mask":
        method.importance = {path: np.random.default_rng(1).random(p.shape) for path, p in model.named_parameters()}
    attachment = attach(model, method)
    model, _ = models_of(attachment)
    model.train(np.random.default_rng(0))
    ids, mask = np.random.default_rng(1).integers(3, 200, (BATCH, LENGTH)), np.ones((BATCH, LENGTH), bool)
    labels = {"classify": np.arange(BATCH) % 3, "lm": ids, "seq2seq": ids[:, :TARGET]}[shape.task]
    forward = lambda: model(ids, mask, labels=labels).loss
    forward().backward()  # so that what is made once is made
    for p in attachment.named_parameters().values():
        p.grad = None
    return attachment, forward


def arrays_now():
    """Bytes of all arrays that were made since tracing began."""
    only = [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(only).traces)


def measured(forward):
    """(bytes of the arrays that a loss holds, bytes at the peak of its backward pass, gradients included)."""
    tracemalloc.start()
    try:
        loss = forward()
        kept, others = arrays_now(), tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        loss.backward()
        return kept, tracemalloc.get_traced_memory()[1] - (others - kept)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(**NAMED)
def test_activations_and_peak_are_the_real_ones(name, case):
    shape = shape_with_head(name, *case)
    method = method_for(name, shape)
    attachment, forward = step(shape, method)
    kept, peak = measured(forward)
    row = plan.plan(method, shape, plan.Setting(BATCH, LENGTH, TARGET))
    assert row.activations_bytes == pytest.approx(kept, rel=0.01, abs=4096)
    expected = row.peak_bytes - row.weights_bytes - row.moments_bytes
    assert expected == pytest.approx(peak, rel=0.1, abs=16384)


@pytest.mark.parametrize("name, settings", [
    ("lora", {"dropout": 0.1, "targets": "q,v"}), ("lora", {"targets": "q,k,v,out,mlp.up,mlp.down"}),
    ("lora", {"targets": "blocks.1.mlp.*"}), ("dora", {"targets": "attn.out,mlp.up"}), ("dora", {"detach_norm": True}),
    ("adalora", {"targets": "k"}),
    ("ia3", {"targets": "q,mlp.up", "feedforward": "attn.out"}), ("houlsby", {"dropout": 0.2, "targets": "join"}),
    ("pfeiffer", {"targets": "attn.join"}), ("parallel", {"dropout": 0.2}), ("houlsby", {"train_norms": True}),
    ("prefix", {"num_virtual_tokens": 7, "reparametrise": True, "hidden": 40}), ("top_k", {"layers": 2}),
    ("bitfit", {"terms": "two"}), ("compacter", {"num_factors": 2, "bottleneck": 24})])
@pytest.mark.parametrize("family, task, pooling", [("bert", "classify", "pooler"), ("llama", "lm", None),
                                                   ("t5", "seq2seq", None)])
def test_settings_of_methods_are_followed(name, settings, family, task, pooling):
    shape = shape_for(family, task, pooling, 0.1)
    if name == "lora" and settings["targets"].startswith("blocks") and family == "t5":
        settings = {"targets": "decoder.blocks.1.mlp.*"}
    method = method_for(name, shape, **settings)
    _, forward = step(shape, method)
    kept, peak = measured(forward)
    row = plan.plan(method, shape, plan.Setting(BATCH, LENGTH, TARGET))
    assert row.activations_bytes == pytest.approx(kept, rel=0.015)
    assert row.peak_bytes - row.weights_bytes - row.moments_bytes == pytest.approx(peak, rel=0.12)
    assert (row.forward_flops, row.backward_flops) == counted(shape, method)


@pytest.mark.parametrize("sizes", [{"num_attention_heads": 16, "head_dim": 4}, {"intermediate_size": 500},
                                   {"num_hidden_layers": 6}, {"hidden_size": 96, "vocab_size": 900}])
@pytest.mark.parametrize("name", ["full", "lora", "houlsby", "prefix"])
def test_other_shapes(name, sizes):
    shape = shape_for("gpt2", "lm", None, 0.1, **sizes)
    method = method_for(name, shape)
    _, forward = step(shape, method)
    kept, peak = measured(forward)
    row = plan.plan(method, shape, plan.Setting(BATCH, LENGTH))
    assert row.activations_bytes == pytest.approx(kept, rel=0.01)
    assert row.peak_bytes - row.weights_bytes - row.moments_bytes == pytest.approx(peak, rel=0.1)


def test_a_base_in_4_bits_keeps_no_copy_of_its_maps():
    shape = shape_for("bert", "classify", "mean", 0.0)
    method = method_for("lora", shape)
    _, forward = step(shape, method, four_bits=True)
    kept, peak = measured(forward)
    row = plan.plan(method, shape, plan.Setting(BATCH, LENGTH, base_bits=4))
    assert row.activations_bytes == pytest.approx(kept, rel=0.01)
    assert peak <= 1.1 * (row.peak_bytes - row.weights_bytes - row.moments_bytes)


# ---- operations -----------------------------------------------------------------------------------------------------


class Counting(np.ndarray):
    """An array that counts the operations of every product of matrices it takes part in."""

    operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **more):
        plain = [np.asarray(x) if isinstance(x, Counting) else x for x in inputs]
        if out is not None:
            more["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **more)
        if ufunc is np.matmul and min(x.ndim for x in plain) > 1:  # a vector times a matrix is a sum over rows
            Counting.operations += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def counted(shape, method):
    """(operations forward, backward) of a really made model's step."""
    with pytest.MonkeyPatch.context() as patch, kernels.use_backend("numpy"):
        before = Tensor.__init__

        def counting(self, data, *others, **more):
            before(self, data, *others, **more)
            self.data = self.data.view(Counting)

        patch.setattr(Tensor, "__init__", counting)
        attachment, forward = step(shape, method)
        for module in attachment.model.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.data = value.data.view(Counting)
        Counting.operations = 0
        loss = forward()
        ahead = Counting.operations
        loss.backward(np.ones((), np.float32).view(Counting))
        return ahead, Counting.operations - ahead


@pytest.mark.parametrize(**NAMED)
def test_operations_are_the_real_ones(name, case):
    shape = shape_with_head(name, *case)
    method = method_for(name, shape)
    row = plan.plan(method, shape, plan.Setting(BATCH, LENGTH, TARGET))
    assert (row.forward_flops, row.backward_flops) == counted(shape, method)


def test_what_a_method_saves_is_in_the_numbers():
    shape = load_shape("bert-base")
    rows = {name: plan.plan(METHODS[name](), shape) for name in ("full", "lora", "top_k", "head", "houlsby", "prompt")}
    base = Walk(shape, METHODS["head"](), 16, 128).forward
    full, lora = rows["full"], rows["lora"]
    assert full.backward_flops == pytest.approx(2 * base, rel=0.02)  # the usual 1 : 2
    assert lora.backward_flops == pytest.approx(base, rel=0.02)  # no frozen weight has a gradient
    assert lora.inference_flops == base == full.inference_flops < rows["houlsby"].inference_flops < rows["prompt"].inference_flops
    assert (rows["head"].activations_bytes < 1e6 < rows["top_k"].activations_bytes < lora.activations_bytes
            < full.activations_bytes)
    assert lora.peak_bytes < 0.7 * full.peak_bytes
