"""Results of comparisons that never ran, laid out as a comparison leaves them: what the tests of the report read."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from minipeft.methods import METHODS

NAMES = tuple(METHODS)
MERGES = ("lora", "rslora", "lora_plus", "dora", "pissa", "adalora", "ia3")
TOTAL, WIDTH, LAYERS, HEADS = 22_566_146, 384, 6, 12
CONFIG = {"model_type": "bert", "vocab_size": 30522, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
          "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH, "type_vocab_size": 2, "max_position_embeddings": 512}
TRAINED = {"full": 22_565_376, "head": 0, "top_k": 3_548_928, "bitfit": 25_728, "layernorm": 9_984, "random_mask": 53_188,
           "fisher_mask": 53_188, "lora": 73_728, "rslora": 73_728, "lora_plus": 73_728, "dora": 78_336, "pissa": 73_728,
           "adalora": 110_736, "ia3": 13_824, "houlsby": 152_256, "pfeiffer": 76_128, "parallel": 76_128, "compacter": 14_976,
           "prefix": 92_160, "prompt": 7_680, "task_embedding": 384, "output": 768}
REACHED = {"full": 0.854, "head": 0.798, "prompt": 0.801, "task_embedding": 0.799, "output": 0.7975}


def row(method, rng, seeds=3, task="sst2", label=None, **changes):
    """One row of a comparison."""
    label = label or method
    score = REACHED.get(method, 0.83 + 0.02 * math.tanh(math.log10(TRAINED[method] + 1) - 4)) + float(rng.normal(0, 0.003))
    scores = [score + float(rng.normal(0, 0.004)) for _ in range(seeds)]
    step = 50 if method == "head" else 151 if method == "full" else 90 + 10 * float(rng.random())
    ratio = 1 + 0.15 * float(rng.random())
    merged = 1 + 0.01 * float(rng.random()) if method in MERGES else None
    out = {"label": label, "method": method, "task": task, "settings": {}, "lr": METHODS[method].default_lr, "seeds": seeds,
           "runs": [f"{label.replace(' ', '-')}-seed{seed}" for seed in range(seeds)], "metric": "accuracy", "split": "dev",
           "score": float(np.mean(scores)), "score_std": float(np.std(scores, ddof=1)) if seeds > 1 else 0.0, "scores": scores,
           "others": {}, "trainable": TRAINED[method] + 770, "trainable_without_head": TRAINED[method],
           "total": TOTAL + (0 if method == "full" else TRAINED[method]), "formula": "", "step_ms": step,
           "peak_mb": 331 + 3.2 * (step - 50), "size_mb": 4 * (TRAINED[method] + 770) / 1e6, "seconds": 3 * 375 * step / 1000,
           "base_ms": 30.0, "unmerged_ms": 30 * ratio, "merged_ms": merged and 30 * merged, "unmerged_ratio": ratio,
           "merged_ratio": merged, "mean_layer": None} | changes
    out["share"] = out["trainable"] / out["total"]
    return out


def base_row(task="sst2"):
    """The row of the model before fine-tuning."""
    nothing = dict.fromkeys(("lr", "step_ms", "peak_mb", "size_mb", "unmerged_ms", "merged_ms", "unmerged_ratio", "merged_ratio",
                             "mean_layer"))
    return {"label": "base", "method": "base", "task": task, "settings": {}, "seeds": 1, "runs": [], "metric": "accuracy",
            "split": "dev", "score": 0.5092, "score_std": 0.0, "scores": [0.5092], "others": {}, "trainable": 0,
            "trainable_without_head": 0, "total": TOTAL, "share": 0.0, "formula": "", "base_ms": 30.0, "seconds": 4.0, **nothing}


def run(reached, rng, epochs=3, steps=375):
    """A run's result, as far as the report reads it."""
    evaluations = [{"epoch": e, "step": e * steps // epochs, "score": reached - 0.04 * 0.4**e + float(rng.normal(0, 0.004)),
                    "loss": 0.4} for e in range(1, epochs + 1)]
    losses = [0.35 + 0.35 * math.exp(-i / 80) + float(rng.normal(0, 0.06)) for i in range(steps)]
    return {"evaluations": evaluations, "losses": losses}


def basic(methods=("full", "head", "lora"), seeds=3, task="sst2"):
    """Only what every comparison has: a title and rows."""
    rng = np.random.default_rng(0)
    return {"title": "minilm on sst2", "model": "minilm", "tasks": [task], "methods": list(methods), "seeds": seeds, "threads": 1,
            "jobs": 2, "rows": [base_row(task)] + [row(method, rng, seeds, task) for method in methods], "runs": {}, "sweeps": {},
            "tuning": [], "failed": []}


def early_exit():
    """The analysis of a model that leaves early: three rules, a curve each, and what was timed."""
    curves, timed = {}, []
    for order, (rule, loss) in enumerate((("entropy", 0.030), ("margin", 0.036), ("patience", 0.050))):
        curves[rule] = []
        for looseness in np.linspace(0.05, 0.95, 19):
            weights = np.exp(-np.arange(LAYERS) * (looseness - 0.35 - 0.05 * order) * 2.4)
            leaving = weights / weights.sum()
            mean = float(leaving @ np.arange(1, LAYERS + 1))
            curves[rule].append({"looseness": round(float(looseness), 2), "accuracy": 0.852 - loss * (1 - mean / LAYERS) ** 2 * 3,
                                 "mean_layer": mean, "leaving": leaving.tolist(), "ideal": mean / LAYERS})
        for p in curves[rule][2::5]:
            timed.append({"rule": rule, "looseness": p["looseness"], "accuracy": p["accuracy"], "mean_layer": p["mean_layer"],
                          "ideal": p["ideal"], "ratio": 0.08 + 0.95 * p["ideal"]})
    return {"layers": LAYERS, "accuracy": [0.77, 0.8, 0.82, 0.84, 0.85, 0.852], "curves": curves, "timed": timed}


def singular_values(rank=None):
    """Those of ΔW of the maps q and v of every layer, of a rank or full."""
    out = {}
    for layer in range(LAYERS):
        for seam in ("attn.q", "attn.v"):
            fall = (0.3 + 0.05 * layer) / np.arange(1, WIDTH + 1) ** (0.55 if seam == "attn.q" else 0.7)
            low = 0.9 * np.exp(-0.35 * np.arange(rank or 1)) * (1 + 0.1 * layer)
            out[f"blocks.{layer}.{seam}"] = [*low.tolist(), *[1e-9] * (WIDTH - rank)] if rank else fall.tolist()
    return out


def prefix_attention(rng):
    """Shares of attention by layer and head."""
    return {f"blocks.{layer}.attn.core": rng.beta(1.2, 6, HEADS).tolist() for layer in range(LAYERS)}


def planned():
    """What the planner says of a model of MiniLM's shape: {method: its plan}, and the four classic lines."""
    from minipeft.compare import plan, plan_four
    from minipeft.compare.plan_models import load_shape

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(CONFIG))
        shape = load_shape(str(path), "classify", 2, "mean")
    rows, _ = plan.plan_all(shape, {}, plan.Setting())
    four = [plan_four.as_json(line) for line in plan_four.four(shape, {}, plan.Setting())]
    return {line.method: plan.as_json(line) for line in rows}, four


def everything(methods=NAMES, seeds=3, swept=True):
    """(results, runs) with every section that there is."""
    rng = np.random.default_rng(1)
    out = basic(methods, seeds)
    if swept:
        out["sweeps"] = {"lora.rank": [1, 2, 4, 16], "prefix.num_virtual_tokens": [1, 5, 10],
                         "houlsby.bottleneck": [4, 8, 32, 64]}
        for key, sizes in out["sweeps"].items():
            method, option = key.split(".")
            for size in sizes:
                out["rows"].append(row(method, rng, seeds, label=f"{method} {option}={size}", settings={option: size},
                                       score=0.82 + 0.03 * math.tanh(math.log2(size + 1) / 2) + float(rng.normal(0, 0.002)),
                                       trainable=TRAINED[method] * size // 16 + 770))
    runs = {name: {"result": run(each["score"], rng), "analysis": {}} for each in out["rows"] for name in each["runs"]}
    for each in out["rows"][1:]:
        first = runs[each["runs"][0]]["analysis"]
        if each["label"] in ("full", "lora"):
            first["singular_values"] = singular_values(8 if each["method"] == "lora" else None)
        if each["label"] == "prefix":
            first["prefix_attention"] = prefix_attention(rng)
        if each["label"] == "full":
            first["exits"] = early_exit()
    tried = [{"lr": 1e-4, "dev": 0.8}, {"lr": 3e-4, "dev": 0.82}, {"lr": 1e-3, "dev": 0.84}]
    out["tuning"] = [{"task": "sst2", "label": method, "tried": tried, "lr": 1e-3} for method in methods[:2]]
    out["failed"] = [{"folder": "ia3-seed1", "label": "ia3", "task": "sst2", "seed": 1,
                      "reason": "its process ended with code -9"}]
    out["plan"], out["four"] = planned()
    return out, runs
