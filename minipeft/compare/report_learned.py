"""The report's sections on what was learned: early exit, singular values of ΔW, attention paid to a prefix.

Each takes one task's `View` and returns a `Section`, or None where its data is not there.
"""

import math

import numpy as np

from . import plots
from .report_facts import known, listed, name_of, number, percent
from .report_page import figure
from .report_sections import about, section

PANELS, ROWS = 6, 24  # panels of singular values; rows of a figure of tiles


def exits(view):
    """Early exit, each variant with figures of its own."""
    found = [(label, early) for label, early in view.analysis("exits").items() if exit_points(early)]
    shown = [exit_figures(view, label, early, order or "") for order, (label, early) in enumerate(found)]
    if not shown:
        return None
    seen = " ".join(f"{label}: {said}" if len(found) > 1 else said for (label, _), (said, _) in zip(found, shown))
    return section(view, "exits", "Early exit", seen, [part for _, parts in shown for part in parts])


def exit_points(early):
    """[(share of the full model's cost, point)] of an analysis: what was timed, or where nothing was,
    the points of the curves."""
    points = [(p["ratio"], p) for p in early.get("timed") or []]
    return points or [(p["ideal"], {**p, "rule": rule}) for rule, line in (early.get("curves") or {}).items() for p in line]


def exit_figures(view, label, early, order):
    """(what is seen, figures) of one row's exits; ``order`` tells their ids from another row's."""
    points, curves, timed = exit_points(early), early.get("curves") or {}, early.get("timed") or []
    each = early.get("accuracy") or []
    full, cost = each[-1] if each else None, "time" if timed else "blocks"
    goal = full if known(full) else max(p["accuracy"] for _, p in points)
    kept = [(share, p) for share, p in points if p["accuracy"] >= goal - 0.01]
    if kept:
        share, p = min(kept, key=lambda pair: pair[0])
        seen = (f"By the rule {p['rule']} accuracy is {number(p['accuracy'])} (full model: {number(goal)}) in {percent(share)} "
                f"of the full model’s {cost}; examples leave after {p['mean_layer']:.1f} of {early['layers']} layers on average.")
    else:
        share, p = max(points, key=lambda pair: pair[1]["accuracy"])
        seen = (f"No rule comes within 0.01 of the full model’s accuracy, {number(goal)}; {p['rule']} comes nearest with "
                f"{number(p['accuracy'])} in {percent(share)} of its {cost}.")
    marks = {}
    for p in timed:
        marks.setdefault(p["rule"], []).append((p["ratio"], p["accuracy"]))
    svg = plots.exits(about(view, f"exits{order}", f"Accuracy against cost with early exit, {label}", seen),
                      {rule: [(p["ideal"], p["accuracy"]) for p in line] for rule, line in curves.items() if line}, marks, full,
                      "accuracy on dev")
    rows = [[f"{p['rule']}, {p['looseness']:g}", number(p["accuracy"]), f"{p['mean_layer']:.2f}", percent(p["ideal"]),
             percent(p["ratio"]) if "ratio" in p else "–"] for _, p in points]
    caption = "Lines: the share of the blocks that are passed, were a block all that costs."
    caption += " Marks: the time that was measured." if timed else ""
    caption += f" The star: the full model. Run: {label}, first seed."
    heads = ["rule, looseness", "accuracy", "mean layer", "blocks", "time"]
    return seen, [figure(svg, caption, "Accuracy against cost", (heads, rows)), *leaving(view, label, curves, timed, order)]


def leaving(view, label, curves, timed, order=""):
    """The figure of who leaves where, at the loosenesses that were timed, else at a few; [] where the curves do not say."""
    chosen = []
    for rule, line in curves.items():
        line = [p for p in line if p.get("leaving")]
        asked = [p["looseness"] for p in timed if p["rule"] == rule]
        near = [min(line, key=lambda p: abs(p["looseness"] - looseness)) for looseness in asked if line]
        some = near or [line[i] for i in sorted({round(i * (len(line) - 1) / 4) for i in range(5)})] if line else []
        chosen += [(f"{rule}, {p['looseness']:g}", p) for p in sorted(some, key=lambda p: p["looseness"])]
    chosen = list(dict(chosen).items())[:ROWS]
    if not chosen:
        return []
    layers = [str(i + 1) for i in range(len(chosen[0][1]["leaving"]))]
    name, loose = min(chosen, key=lambda pair: pair[1]["mean_layer"])
    top = int(np.argmax(loose["leaving"]))
    seen = (f"At the loosest shown ({name}) {percent(loose['leaving'][top])} of the examples leave at layer {top + 1}, and "
            f"{percent(loose['leaving'][-1])} pass all {len(layers)}.")
    names, matrix = [name for name, _ in chosen], [p["leaving"] for _, p in chosen]
    title = f"Share of the examples leaving at each layer, {label}"
    svg = plots.heat(about(view, f"leaving{order}", title, seen), matrix, names, layers, "layer at which examples leave",
                     "rule, looseness")
    data = (["rule, looseness", *layers], [[name, *map(percent, line)] for name, line in zip(names, matrix)])
    return [figure(svg, f"{seen} Run: {label}, first seed.", title, data)]


def seam_of(path):
    """The kind of a map: ``attn.q`` of ``blocks.3.attn.q``, ``decoder.attn.q`` of ``decoder.blocks.3.attn.q``."""
    return ".".join(part for part in str(path).split(".") if not part.isdigit() and part != "blocks")


def rank_of(values):
    """How many singular values are above rounding."""
    return int((np.array(values, float) > 1e-6 * max(values)).sum()) if max(values) > 0 else 0


def spectra(view):
    """Singular values of what was learned."""
    found = {label: {path: v for path, v in maps.items() if v and all(map(math.isfinite, v)) and max(v) > 0}
             for label, maps in view.analysis("singular_values").items()}
    found = {label: maps for label, maps in found.items() if maps}
    if not found:
        return None
    method = {name_of(row): row["method"] for row in view.rows}
    distinct = len({method[label] for label in found}) == len(found) and not view.by_family
    looks = {label: view.look(method[label]) if distinct else plots.Look(i) for i, label in enumerate(found)}
    panels = {}
    for label, maps in found.items():
        for path, v in maps.items():
            panels.setdefault(seam_of(path), {}).setdefault(label, (looks[label], []))[1].append(v)
    ranks = {label: max(map(rank_of, maps.values())) for label, maps in found.items()}
    low, most = min(ranks, key=ranks.get), max(ranks, key=ranks.get)
    seen = f"The change ΔW of a map has rank up to {listed(f'{rank} with {label}' for label, rank in ranks.items())}"
    if ranks[most] > ranks[low]:
        held = [sum(x * x for x in v[:ranks[low]]) / sum(x * x for x in v) for v in found[most].values()]
        share = percent(float(np.mean(held)))
        first = f"{ranks[low]} directions of {most} hold" if ranks[low] > 1 else f"direction of {most} holds"
        seen += f"; the first {first} {share} of its squared norm on average"
    shown = dict(list(panels.items())[:PANELS])
    svg = plots.spectra(about(view, "spectra", "Singular values of ΔW", seen + "."), shown)
    body = [[f"{label}, {path}", number(max(v)), str(rank_of(v)), number(math.sqrt(sum(x * x for x in v)))]
            for label, maps in found.items() for path, v in maps.items()]
    caption = "Thin: each layer. Thick: their geometric mean. A line ends where the values fall below rounding. First seed."
    caption += f" {len(panels) - len(shown)} more kinds of map are in the table." if len(panels) > len(shown) else ""
    return section(view, "spectra", "What was learned: singular values of ΔW", seen + ".", [
        figure(svg, caption, "Singular values", (["method, map", "largest", "rank", "Frobenius norm"], body))])


def prefix_attention(view):
    """Attention paid to the prefix."""
    parts, said = [], []
    for order, (label, by_core) in enumerate(view.analysis("prefix_attention").items()):
        cores, shares = list(by_core), np.array(list(by_core.values()), float)  # (layers, heads)
        layer, head = np.unravel_index(shares.argmax(), shares.shape)
        kinds = {seam_of(core) for core in cores}
        names = [layer_name(core, len(kinds) > 1) for core in cores]
        said.append(f"with {label} words pay {percent(float(shares.mean()))} of their attention to the prefix on average, most "
                    f"in layer {names[layer]}, head {head + 1} ({percent(float(shares.max()))})")
        heads = [str(i + 1) for i in range(shares.shape[1])]
        title = f"Attention paid to the prefix, {label}"
        svg = plots.heat(about(view, f"prefix{order or ''}", title, said[-1] + "."), shares, names, heads, "head", "layer",
                         whole=max(float(shares.max()), 1e-9))
        data = (["layer", *(f"head {h}" for h in heads)],
                [[name, *(percent(float(share)) for share in line)] for name, line in zip(names, shares)])
        caption = (f"{label}, first seed: the share of attention that goes to the virtual tokens, mean over dev; "
                   "fullest: the largest.")
        parts.append(figure(svg, caption, title, data))
    if not parts:
        return None
    seen = "; ".join(said) + "."
    return section(view, "prefix", "Attention paid to the prefix", seen[0].upper() + seen[1:], parts)


def layer_name(core, with_kind):
    """``3`` of ``blocks.2.attn.core``: layers are counted from 1; with its kind where there are several."""
    index = next((int(part) + 1 for part in str(core).split(".") if part.isdigit()), str(core))
    return f"{index} ({seam_of(core)})" if with_kind else str(index)
