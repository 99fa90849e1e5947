"""What a finished run measures and tells of its model: inference by turns, the change of the weights, the prefix, the exits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.compare import analysis, measure
from minipeft.compare.analysis import exit_curves, layers_under, point, prefix_attention, singular_values, spread
from minipeft.compare.exits import models_of
from minipeft.compare.measure import batches_of, inference, take_turns
from minipeft.compare.run import Run, execute, prepare
from minipeft.data import make_batches
from minipeft.methods import RULES
from minipeft.nn import unwrap


def prepared(world, method, **more):
    """(run, work, attachment) of a method on the small world."""
    settings = {"model": str(world / "bert"), "data": str(world / "data"), **more}
    run = Run(method=method, **settings)
    work, attachment, _, _ = prepare(run)
    return run, work, attachment


def stir(attachment, size=0.3):
    """Change what an attachment trains."""
    rng = np.random.default_rng(0)
    for p in attachment.named_parameters().values():
        p.data += (size * rng.standard_normal(p.shape)).astype(p.dtype)


# ---- inference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, merges, why", [
    ("lora", True, None), ("ia3", True, None), ("full", False, "full has nothing that can be merged"),
    ("head", False, "head has nothing that can be merged"), ("top_k", False, "top_k has nothing"),
    ("houlsby", False, "houlsby cannot be merged into a weight: "), ("prompt", False, "prompt cannot be merged"),
    ("early_exit", False, "early_exit has nothing that can be merged"), ("base", False, "base has nothing that can be merged")])
def test_inference_is_timed_and_leaves_the_model_as_it_was(method, merges, why, world):
    options = {"options": {"num_virtual_tokens": 3}} if method == "prompt" else {}
    _, work, attachment = prepared(world, method, **options)
    stir(attachment)
    batch = batches_of(work)[0]
    used = models_of(attachment)[1]
    before = used(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data.copy()
    told = inference(attachment, used, work)
    assert (used(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits.data == before).all()
    assert json.loads(json.dumps(told)) == told and told["rounds"] >= measure.LEAST and told["batches"] == measure.TIMED
    assert told["base_ms"] > 0 and told["unmerged_ms"] > 0 and told["unmerged_ratio"] > 0
    assert (told["merged_ms"] is not None) == (told["merged_ratio"] is not None) == merges
    assert told["why_not"] is None if merges else told["why_not"].startswith(why)


def test_each_side_is_what_its_name_says(world, monkeypatch):
    """The base without the method, the method beside it, and merged the same logits as beside it."""
    _, work, attachment = prepared(world, "lora")
    stir(attachment)
    seen, original = {}, measure.forward

    def forward(work, model, batch):
        out = original(work, model, batch)
        seen.setdefault((attachment.enabled, attachment.merged), out.data.copy())
        return out

    monkeypatch.setattr(measure, "forward", forward)
    inference(attachment, attachment.model, work)
    base, beside, merged = (seen[key] for key in ((False, False), (True, False), (True, True)))
    assert set(seen) == {(False, False), (True, False), (True, True)}
    assert np.abs(beside - base).max() > 0.01 and merged == pytest.approx(beside, abs=1e-4)


def test_the_sides_take_turns(monkeypatch):
    """A different one comes first in each round, and the first round is not counted."""
    order, clock = [], iter(range(1000))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(measure, "SECONDS", 0)
    monkeypatch.setattr(measure, "forward", lambda work, model, batch: order.append(model))
    from contextlib import nullcontext

    times = take_turns({name: (name, nullcontext) for name in "abc"}, ["batch"], None)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", measure.LEAST)
    turns = "".join(order)[::2]  # each has a pass that warms up
    assert turns[:9] == "abcbcacab" and len(turns) == 3 * (measure.LEAST + 1)


def test_batches_are_of_dev_or_else_of_train(world):
    _, work, _ = prepared(world, "head", batch_size=2)
    assert len(batches_of(work)) == measure.BATCHES and sum(len(b.input_ids) for b in batches_of(work)) == 16
    groups = make_batches(work.encodings["dev"], 4)  # the shortest first
    chosen = [groups[i] for i in (len(groups) // 4, 3 * len(groups) // 4)]
    for batch, indices in zip(batches_of(work, 2), chosen, strict=True):
        assert (batch.labels == work.targets["dev"][indices]).all() and batch.input_ids.shape[1] == max(
            len(work.encodings["dev"][i].ids) for i in indices)
    del work.encodings["dev"]
    assert len(batches_of(work, 50)) == 20  # 80 examples in fours
    for task, model, data in (("lm", "gpt2", "raw.txt"), ("seq2seq", "t5", "told")):
        _, work, attachment = prepared(world, "lora", task=task, model=str(world / model), data=str(world / data), max_length=16)
        assert inference(attachment, attachment.model, work)["merged_ms"] > 0


# ---- the change of the weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method, count", [("lora", 3), ("rslora", 3), ("pissa", 6), ("dora", 16), ("adalora", 3), ("head", 0)])
def test_singular_values_are_those_of_the_merged_change(method, count, world):
    run, _, attachment = prepared(world, method, options={"rank": 3})
    stir(attachment)
    values = singular_values(run, attachment)
    assert set(values) == ({f"blocks.{i}.attn.{m}" for i in (0, 1) for m in "qv"} if count else set())
    before = {path: unwrap(attachment.model.get(path)).weight.data.astype(np.float64) for path in values}
    if values:
        attachment.merge()
    for path, own in values.items():
        change = unwrap(attachment.model.get(path)).weight.data - before[path]
        assert len(own) == count and own == sorted(own, reverse=True)
        assert own == pytest.approx(np.linalg.svd(change, compute_uv=False)[:count], abs=2e-5)


def test_full_fine_tuning_at_the_same_maps(world):
    run, _, attachment = prepared(world, "full", options={"targets": "mlp.up"})
    weight = attachment.model.get("blocks.1.mlp.up").weight
    weight.data += np.outer(np.ones(16), np.arange(32)).astype(np.float32)
    values = singular_values(run, attachment)
    assert list(values) == ["blocks.0.mlp.up", "blocks.1.mlp.up"] and values["blocks.0.mlp.up"] == [0.0] * 16
    assert values["blocks.1.mlp.up"][0] == pytest.approx(4 * np.linalg.norm(np.arange(32)), rel=1e-5)
    assert values["blocks.1.mlp.up"][1] < 1e-4


# ---- the prefix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, data, task", [("bert", "data", "classify"), ("llama", "raw.txt", "lm"),
                                               ("t5", "told", "seq2seq")])
def test_attention_paid_to_the_prefix(model, data, task, world):
    """A share for each head of each attention; keys that point away from the queries get less, and the model stays as it was."""
    _, work, attachment = prepared(world, "prefix", model=str(world / model), data=str(world / data), task=task, max_length=20,
                                   options={"num_virtual_tokens": 4})
    shares = prefix_attention(attachment, work)
    cores = {path: wrapper for path, wrapper in attachment.wrappers.items() if path.endswith("core")}
    assert set(shares) == set(cores) and all(len(heads) == 2 for heads in shares.values())
    assert all(0 < share < 1 + 1e-6 for heads in shares.values() for share in heads)
    assert not any(isinstance(wrapper.wrapped, analysis.Watcher) for wrapper in cores.values())
    for wrapper in cores.values():
        wrapper.keys.data *= 1e3  # a key of a thousand times the length is the first or the last for every query
    sharp = prefix_attention(attachment, work)
    assert all(min(heads) >= 0 and max(heads) <= 1 + 1e-6 for heads in sharp.values()) and sharp != shares


def test_the_share_of_the_prefix_is_that_of_its_keys(world):
    """Queries of zero look everywhere alike: P of P + T, for every text its own length."""
    _, work, attachment = prepared(world, "prefix", options={"num_virtual_tokens": 4})
    for block in attachment.model.blocks:
        for p in unwrap(block.attn.q).parameters():
            p.data[:] = 0
    lengths = [int(n) for batch in batches_of(work) for n in batch.attention_mask.sum(axis=1)]
    expected = sum(n * 4 / (4 + n) for n in lengths) / sum(lengths)
    for heads in prefix_attention(attachment, work).values():
        assert heads == pytest.approx([expected] * 2, rel=1e-5)


# ---- early exit ------------------------------------------------------------------------------------------------


def test_who_would_leave_is_who_leaves(world):
    """The layers worked out of all exits' logits are those of the walk itself, and the accuracy is its accuracy."""
    _, work, attachment = prepared(world, "early_exit")
    stir(attachment)
    exits = models_of(attachment)[0]
    logits, targets = analysis.all_exits(exits.eval(), work), work.targets["dev"]
    for name, rule in RULES.items():
        for looseness in (0.0, 0.5, 0.97, 1.0):
            layers, right = np.zeros(len(targets), int), 0
            for indices in np.array_split(np.arange(len(targets)), 3):
                batch = work.collate(indices, "dev")
                out = exits.predict(rule(looseness), batch.input_ids, batch.attention_mask, batch.token_type_ids)
                layers[indices], right = out.layers, right + (out.logits.argmax(axis=1) == targets[indices]).sum()
            assert layers_under(rule(looseness), logits).tolist() == layers.tolist()
            told = point(name, looseness, logits, targets)
            assert told["accuracy"] == right / len(targets) and told["mean_layer"] == layers.mean()
            assert told["leaving"] == [np.mean(layers == 1), np.mean(layers == 2)] and told["ideal"] == layers.mean() / 2


def test_curves_of_the_exits(world):
    _, work, attachment = prepared(world, "early_exit")
    stir(attachment)
    told = exit_curves(models_of(attachment)[0], work)
    assert json.loads(json.dumps(told)) == told and told["layers"] == 2 and len(told["accuracy"]) == 2
    assert set(told["curves"]) == set(RULES)
    for curve in told["curves"].values():
        layers = [p["mean_layer"] for p in curve]
        assert layers == sorted(layers, reverse=True) and layers[0] == 2.0 and curve[0]["accuracy"] == told["accuracy"][-1]
        assert all(sum(p["leaving"]) == pytest.approx(1) for p in curve)
    assert {p["rule"] for p in told["timed"]} == set(RULES) and all(p["ratio"] > 0 for p in told["timed"])


def test_points_that_are_timed_are_spread():
    curve = [{"looseness": s, "mean_layer": 4 - 3 * s} for s in np.linspace(0, 1, 21).tolist()]
    assert [p["mean_layer"] for p in spread(curve, 4)] == pytest.approx([4, 3, 2, 1], abs=0.08)
    assert spread([{"looseness": 0.0, "mean_layer": 4.0}], 5) == [{"looseness": 0.0, "mean_layer": 4.0}]


def test_what_a_run_of_a_comparison_writes(world, tmp_path):
    for method, key in (("lora", "singular_values"), ("prefix", "prefix_attention"), ("early_exit", "exits"), ("head", None)):
        options = {"num_virtual_tokens": 3} if method == "prefix" else {}
        run = Run(str(world / "bert"), str(world / "data"), method=method, epochs=1, max_steps=2, options=options)
        result = execute(run, tmp_path / method, quiet=True, measured=True)
        assert result["inference"]["base_ms"] > 0
        assert list(json.loads((tmp_path / method / "analysis.json").read_text())) == ([key] if key else [])
    execute(run, tmp_path / "alone", quiet=True)
    assert not (tmp_path / "alone/analysis.json").exists()
