"""What a finished run tells of its model besides scores: how the weights changed, who leaves where, who looks at the prefix."""

import numpy as np

from .. import autograd as F
from ..data import make_batches
from ..interop import load_pretrained
from ..methods import RULES, LoRA
from ..methods.dora import DoRALinear
from ..methods.exit_rules import ideal_cost
from ..methods.lora import LoRALinear
from ..methods.prefix import PrefixCore
from ..methods.targets import linear_paths
from ..nn import Wrapper, unwrap
from .exits import Leaving
from .measure import batches_of, forward, take_turns

LOOSENESSES = 20  # points of a curve besides 0
TIMED = 5         # points of each curve that are timed,
ROUNDS, GROUPS = 2, 2  # in at least so many rounds over so many batches, or a real model would take minutes for it


def analyse(run, attachment, work):
    """{"singular_values", "prefix_attention", "exits"}, those that apply; what they are stands in ``comparison.py``."""
    out, values = {}, singular_values(run, attachment)
    if values:
        out["singular_values"] = values
    if any(isinstance(w, PrefixCore) for w in attachment.wrappers.values()):
        out["prefix_attention"] = prefix_attention(attachment, work)
    if attachment.method.name == "early_exit" and "dev" in work.encodings:
        out["exits"] = exit_curves(attachment.method.model, work)
    return out


# ---- the change of the weights ---------------------------------------------------------------------------------


def singular_values(run, attachment):
    """{path: [singular values of the change of W, the largest first]}: of LoRA's family, and of full fine-tuning at LoRA's maps.

    A low-rank change has as many as its rank; the others are zero and left out.
    """
    low_rank = {path: w for path, w in attachment.wrappers.items() if isinstance(w, LoRALinear)}
    ranks = {path: w.factors()[0].shape[1] for path, w in low_rank.items() if not isinstance(w, DoRALinear)}
    changes = {path: w.change() if path in ranks else _merged_change(w) for path, w in low_rank.items()}
    if attachment.method.name == "full":
        model, task = attachment.model, None if run.task == "classify" else run.task
        before = load_pretrained(run.model, task=task)
        places = LoRA(targets=run.options.get("targets", LoRA.targets)).places(linear_paths(model))
        changes = {path: unwrap(model.get(path)).weight.data - unwrap(before.get(path)).weight.data for path in places}
    return {path: np.linalg.svd(change.astype(np.float64), compute_uv=False)[:ranks.get(path)].tolist()
            for path, change in changes.items()}


def _merged_change(wrapper):
    """What merging a wrapper would add to its weight, (D_in, D_out)."""
    root = unwrap(wrapper)
    weight = root.weight.data
    return wrapper.merged_arrays(weight, None if root.bias is None else root.bias.data)[0] - weight


# ---- the prefix ------------------------------------------------------------------------------------------------


class Watcher(Wrapper):
    """An attention core that adds up the share of the attention that its first keys get."""

    def __init__(self, wrapped, tokens):
        super().__init__(wrapped)
        self.tokens, self.total, self.count = tokens, 0.0, 0

    def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
        weights = F.attention_weights(q, k, mask, bias, scale, unwrap(self.wrapped).causal).data  # (B, H, T, P + S)
        queries, real = q.shape[2], np.ones((len(weights), q.shape[2]), bool)
        if mask is not None and mask.shape[1] - self.tokens == queries:
            real = np.asarray(mask[:, self.tokens:], bool)  # (B, T): the queries are the words
        share = weights[..., :self.tokens].sum(axis=3, dtype=np.float64)  # (B, H, T)
        self.total = self.total + (share * real[:, None]).sum(axis=(0, 2))  # (H,)
        self.count += int(real.sum())
        return self.wrapped(q, k, v, mask, bias, scale)


def prefix_attention(attachment, work):
    """{path of a core: [share of its attention that each head pays to the prefix]}: means over the words of dev batches."""
    cores = {path: w for path, w in attachment.wrappers.items() if isinstance(w, PrefixCore)}
    for wrapper in cores.values():
        wrapper.wrapped = Watcher(wrapper.wrapped, attachment.method.num_virtual_tokens)
    try:
        with F.no_grad():
            for batch in batches_of(work):
                forward(work, attachment.model.eval(), batch)
        return {path: (w.wrapped.total / w.wrapped.count).tolist() for path, w in cores.items()}
    finally:
        for wrapper in cores.values():
            wrapper.wrapped = wrapper.wrapped.wrapped


# ---- early exit ------------------------------------------------------------------------------------------------


def all_exits(exits, work, split="dev"):
    """What every exit says of every example of a split: logits (L, N, C)."""
    out = np.zeros((len(exits.heads()), len(work.targets[split]), len(work.labels)), np.float32)
    with F.no_grad():
        for indices in make_batches(work.encodings[split], 2 * work.batch_size):
            batch = work.collate(indices, split)
            logits = exits(batch.input_ids, batch.attention_mask, batch.token_type_ids).exit_logits
            out[:, indices] = np.stack([z.data for z in logits])  # (L, B, C)
    return out


def layers_under(rule, logits):
    """The exit (N,), from 1, at which each example leaves by ``rule``, of all exits' logits (L, N, C)."""
    exits, memory = len(logits), None
    layers = np.full(logits.shape[1], exits)
    for number, z in enumerate(logits[:-1], 1):
        leaves, memory = rule(z, memory, exits)
        layers[leaves & (layers == exits)] = number
    return layers


def point(name, looseness, logits, targets):
    """What a rule does at a looseness: {"looseness", "accuracy", "mean_layer", "leaving", "ideal"}; targets (N,)."""
    layers = layers_under(RULES[name](looseness), logits)
    chosen = logits[layers - 1, np.arange(len(layers))].argmax(axis=1)  # (N,)
    return {"looseness": looseness, "accuracy": float((chosen == targets).mean()), "mean_layer": float(layers.mean()),
            "leaving": [float((layers == i + 1).mean()) for i in range(len(logits))], "ideal": ideal_cost(layers, len(logits))}


def spread(points, count=TIMED):
    """Up to ``count`` points of a curve whose mean layers are as evenly spread as they can be, the slowest first."""
    low, high = (f(p["mean_layer"] for p in points) for f in (min, max))
    wanted = np.linspace(high, low, count)
    near = [min(points, key=lambda p: abs(p["mean_layer"] - layer)) for layer in wanted]
    return list({p["looseness"]: p for p in near}.values())


def exit_curves(exits, work):
    """Accuracy and cost of each rule over its loosenesses on dev, and the measured time of some; see ``comparison.py``."""
    logits, targets = all_exits(exits.eval(), work), work.targets["dev"]
    steps = [i / LOOSENESSES for i in range(LOOSENESSES + 1)]
    curves = {name: [point(name, s, logits, targets) for s in steps] for name in RULES}
    chosen = [{"rule": name, **p} for name, curve in curves.items() for p in spread(curve)]
    sides = {"full": exits.model} | {str(i): Leaving(exits, p["rule"], p["looseness"]) for i, p in enumerate(chosen)}
    times = take_turns({name: (model, F.no_grad) for name, model in sides.items()}, batches_of(work, GROUPS), work, ROUNDS)
    ratio = lambda i: float(np.median(np.array(times[str(i)]) / np.array(times["full"])))
    timed = [{name: p[name] for name in ("rule", "looseness", "accuracy", "mean_layer", "ideal")} | {"ratio": ratio(i)}
             for i, p in enumerate(chosen)]
    return {"layers": len(logits), "accuracy": [float((z.argmax(axis=1) == targets).mean()) for z in logits], "curves": curves,
            "timed": timed}
