"""The report's sections, one function each: from one task's `View` to a heading, a sentence that says what is seen, and figures.

Each returns a `Section`, or None where its data is not there.
"""

import math

import numpy as np

from . import plots
from .report_facts import (as_good, family_of, known, listed, megabytes, milliseconds, name_of, number, ordered, percent,
                           score_text, short_name, times)
from .report_page import Cell, Html, Section, figure, safe, table, wide
from .table import size_text

SIZES = {"rank": ("rank", "rank {}"), "num_virtual_tokens": ("virtual tokens", "{} virtual tokens"),
         "bottleneck": ("width of the bottleneck", "a bottleneck of {}")}
BINS, TOGETHER = 60, 10  # means that a line of losses is made of; lines that share a panel


def section(view, name, heading, seen, parts):
    """A `Section` of a task: its ids and heading tell it from another task's."""
    return Section(name + view.tag, f"{view.task}: {heading[0].lower() + heading[1:]}" if view.task else heading, seen, parts)


def about(view, name, title, seen):
    """What `svg.to_svg` is told of a drawing."""
    return f"{name}{view.tag}", f"{title}{f', {view.task}' if view.task else ''}", seen


def values(*rows, text=str):
    """Cells that show numbers as ``text`` does and are sorted by them."""
    return [Cell("–" if not known(value) else text(value), value if known(value) else None) for value in rows]


# ---- over all tasks ------------------------------------------------------------------------------------------------


def overview(tasks):
    """Several tasks at a glance: each method's score on each, and the mean rank where all have one."""
    labels = list(dict.fromkeys(name_of(row) for view in tasks for row in view.rows))
    rows = {(name_of(row), view.task): row for view in tasks for row in view.scored}
    place = {}
    for view in tasks:
        for row in view.scored:
            better = [r for r in view.scored if (r["score"] > row["score"] if view.higher else r["score"] < row["score"])]
            place.setdefault(name_of(row), []).append(1 + len(better))
    mean = {name: float(np.mean(places)) for name, places in place.items() if len(places) == len(tasks)}
    least, body = min(mean.values(), default=None), []
    for name in labels:
        cells = [name]
        for view in tasks:
            row = rows.get((name, view.task))
            cells.append(Cell(score_text(row), row["score"], place[name] and row is ordered(view.scored, view.higher)[0])
                         if row else Cell("–"))
        cells.append(Cell(f"{mean[name]:.1f}", mean[name], mean[name] == least) if name in mean else Cell("–"))
        body.append(cells)
    heads = ["method", *(f"{view.task}\n{view.metric}" for view in tasks), "mean\nrank"]
    seen = "No method has a score on every task."
    if mean:
        first = listed(name for name in mean if mean[name] == least)
        seen = f"Over {len(tasks)} tasks the best mean rank is {least:.1f}, that of {first}."
    return Section("overview", "All tasks", seen, [wide(table(heads, body, sortable=True), "All tasks")])


def failures(failed):
    """Runs that failed, with their reasons."""
    if not failed:
        return None
    runs, them = ("runs", "them") if len(failed) > 1 else ("run", "it")
    seen = f"{len(failed)} {runs} did not finish; what is shown leaves {them} out."
    body = [[f["label"], str(f.get("task") or ""), str(f["seed"]), f["reason"]] for f in failed]
    heads = ["method", "task", "seed", "reason"]
    return Section("failed", "Runs that failed", seen, [wide(table(heads, body, words=(3,)), "Runs that failed")])


# ---- table and trade-off -------------------------------------------------------------------------------------------


def the_table(view):
    """Every method: what it trains, reaches and costs."""
    best = ordered(view.scored, view.higher)[0] if view.scored else None
    rows, front = [view.base] * (view.base is not None) + view.rows, view.front
    others = list(view.rows[0].get("others") or ())
    optional = {name: any(known(row.get(key)) for row in rows) for name, key in
                (("inference", "unmerged_ms"), ("inference,\nmerged", "merged_ms"), ("mean exit\nlayer", "mean_layer"))}
    heads = ["method", "trained\nparameters", "without\nthe head", "share of\nthe model", view.metric, *others, "learning\nrate",
             "training\nstep", *(name for name, there in optional.items() if there), "peak\nmemory", "on disk", "time\nin all"]
    body = []
    for row in rows:
        on_front = any(row is f for f in front)
        cells = [Html(safe(name_of(row)) + '&nbsp;<span class="mark" title="on the Pareto front">◆</span>' * on_front)]
        cells += values(row.get("trainable"), row.get("trainable_without_head"), text="{:,}".format)
        cells += values(row["trainable"] / row["total"] if row.get("total") else None, text=percent)
        cells.append(Cell(score_text(row), row["score"] if known(row["score"]) else None, row is best))
        for name in others:
            mean, std = (row.get("others") or {}).get(name, (None, 0))
            cells.append(Cell(score_text({**row, "score": mean, "score_std": std}), mean))
        cells += values(row.get("lr"), text="{:g}".format)
        cells += values(row.get("step_ms"), text=milliseconds)
        inference = row.get("base_ms") if row is view.base else row.get("unmerged_ms")
        shown = (values(inference, text=milliseconds), values(row.get("merged_ms"), text=milliseconds),
                 values(row.get("mean_layer"), text="{:.1f}".format))
        cells += [cell for each, there in zip(shown, optional.values()) if there for cell in each]
        cells += values(row.get("peak_mb"), text=megabytes) + values(row.get("size_mb"), text=size_text)
        cells += values(row.get("seconds"), text=lambda v: f"{v:,.0f}\u00a0s")
        body.append(cells)
    note = ('<p class="note">◆ on the Pareto front: no other method scores at least as well with as few trained parameters. '
            "The share counts the head. The step is the median over steps and seeds; peak memory is the largest of the runs’ own "
            "processes, Python and its libraries included; the time is that of all seeds together.</p>")
    return section(view, "table", "The table", what_won(view, best), [
        wide(table(heads, body, sortable=True), "The table"), note, *formulas(view)])


def formulas(view):
    """What is trained without the head, by formula, as a table of its own."""
    rows = [[name_of(row), row["formula"], f"{row['trainable_without_head']:,}"] for row in view.rows if row.get("formula")]
    inner = table(["method", "parameters without the head, by formula", "number"], rows, words=(1,))
    return [f'<details open><summary>The formulas</summary><div class="scroll">{inner}</div></details>'] if rows else []


def what_won(view, best):
    """The sentence on the table."""
    if best is None:
        return "There was nothing to score: the data has neither a test nor a dev split, so only costs are compared."
    small = min((row for row in view.scored if as_good(row, best)), key=lambda row: row["trainable"])
    said = f"The best score, {view.metric} {score_text(best)} on {best['split']}, is that of {name_of(best)}"
    near = "within one standard deviation of it" if best["score_std"] else "within 1\u00a0% of it"
    if small is best:
        return f"{said}; no method with fewer parameters comes {near}."
    return (f"{said}; {name_of(small)} comes {near} ({number(small['score'])}) and trains {small['trainable']:,} parameters, "
            f"{percent(small['trainable'] / small['total'])} of the model.")


def tradeoff(view):
    """Score against parameters."""
    rows, front = view.scored, view.front
    trained = [row for row in rows if row["trainable"]]
    if len(rows) < 2 or not trained:
        return None
    said = [f"{name_of(row)} ({plots.si(row['trainable'])}, {number(row['score'])})" for row in front]
    verb = f"{len(front)} are" if len(front) > 1 else "only one is"
    seen = f"Of {len(rows)} methods {verb} on the Pareto front, which no other beats in both: {listed(said)}."
    points = [{"name": short_name(row), "parameters": row["trainable"], "score": row["score"], "std": row["score_std"],
               "look": view.look(row["method"]), "front": any(row is f for f in front)} for row in trained]
    base = view.base["score"] if view.base and known(view.base["score"]) else None
    scores = [row["score"] for row in rows]
    far = base is not None and max(scores + [base]) - min(scores + [base]) > 2.5 * (max(scores) - min(scores))
    untrained = [] if base is None or far else [("before fine-tuning", base, False)]
    untrained += [(name_of(row), row["score"], any(row is f for f in front)) for row in rows if not row["trainable"]]
    svg = plots.tradeoff(about(view, "tradeoff", f"{view.metric} against trained parameters", seen), points, view.metric,
                         view.higher, untrained)
    data = (["method", "trained parameters", view.metric, "standard deviation", "Pareto front"],
            [[name_of(row), f"{row['trainable']:,}", number(row["score"]), number(row["score_std"], row["score"]),
              "yes" if any(row is f for f in front) else "no"] for row in rows])
    caption = "Filled marks and the dashed line: the Pareto front."
    if any(row["score_std"] for row in rows):
        caption += " Bars: ± one standard deviation over the seeds; where bars overlap, the order of two methods is not settled."
    elif max(row["seeds"] for row in rows) == 1:
        caption += " One seed each, so small differences may be chance."
    if view.by_family:
        caption += " Colour and shape: the family of the method."
    if far:
        caption += f" Before fine-tuning the model scores {number(base)}, too far away to be drawn."
    return section(view, "tradeoff", "Score against parameters", seen, [figure(svg, caption, "Score against parameters", data)])


# ---- training ------------------------------------------------------------------------------------------------------


def curve_of(row, runs, look):
    """A row's line: mean and deviation of the score after each epoch over its runs, and the mean loss in bins of steps."""
    scores = [{e["epoch"]: e["score"] for e in run.get("evaluations") or () if known(e.get("score"))} for run in runs]
    epochs = sorted(set.intersection(*map(set, scores)))
    by_epoch = np.array([[one[epoch] for epoch in epochs] for one in scores], float)  # (seeds, epochs)
    losses = [run.get("losses") or [] for run in runs]
    count = min(len(one) for one in losses)
    loss = np.mean([one[:count] for one in losses], axis=0) if count else np.zeros(0)
    bins = [part for part in np.array_split(np.arange(count), min(count, BINS) or 1) if len(part)]
    binned = [(float(part.mean()) + 1, float(loss[part].mean())) for part in bins]
    binned = [(step, value) for step, value in binned if math.isfinite(value)]
    std = by_epoch.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(epochs))
    return {"name": short_name(row), "look": look, "epochs": epochs, "mean": by_epoch.mean(axis=0).tolist(), "std": std.tolist(),
            "steps": [step for step, _ in binned], "loss": [value for _, value in binned]}


def learning(view):
    """Learning curves."""
    whole = {row["method"] for row in view.rows if not row.get("settings") and view.results_of(row)}
    rows = [row for row in view.rows if not row.get("settings") or row["method"] not in whole]  # variants have their own figure
    found = [(row, curve_of(row, runs, view.look(row["method"]))) for row in rows if (runs := view.results_of(row))]
    found = [(row, line) for row, line in found if line["epochs"] or line["steps"]]
    if not found:
        return None
    groups = {}
    for row, line in found:
        groups.setdefault(family_of(row["method"]) if len(found) > TOGETHER else "", []).append(line)
    lines = [line for _, line in found]
    scored = [line for line in lines if line["epochs"]]
    if scored:
        choose = max if view.higher else min
        first, last = (choose(scored, key=lambda line: line["mean"][at]) for at in (0, -1))
        seen = f"After the first epoch {first['name']} leads with {view.metric} {number(first['mean'][0])} on dev"
        if any(len(line["epochs"]) > 1 for line in scored):
            still = "it still does" if first is last else f"{last['name']} does"
            seen += f"; at the end {still}, with {number(last['mean'][-1])}"
        seen += "."
        data = (["method", "epoch", f"{view.metric} (dev)", "standard deviation"],
                [[line["name"], str(epoch), number(mean), number(std, mean)]
                 for line in scored for epoch, mean, std in zip(line["epochs"], line["mean"], line["std"])])
    else:
        low = min(lines, key=lambda line: line["loss"][-1])
        seen = f"The lowest training loss at the end, {number(low['loss'][-1])}, is that of {low['name']}."
        data = (["method", "step", "training loss"], [[line["name"], f"{line['steps'][-1]:.0f}", number(line["loss"][-1])]
                                                      for line in lines])
    caption = "Losses are means over seeds and neighbouring steps."
    if any(any(line["std"]) for line in lines):
        caption += " Scores: means over the seeds, with bands of ± one standard deviation."
    caption += " Variants of a sweep are left out." if len(rows) < len(view.rows) else ""
    svg = plots.curves(about(view, "learning", "Learning curves", seen), groups, view.metric)
    return section(view, "learning", "Learning curves", seen, [figure(svg, caption, "Learning curves", data)])


def costs(view):
    """Time and memory."""
    rows = [row for row in view.rows if known(row.get("step_ms")) and known(row.get("peak_mb"))]
    if len(rows) < 2:
        return None
    fast, slow = (choose(rows, key=lambda row: row["step_ms"]) for choose in (min, max))
    small, large = (choose(rows, key=lambda row: row["peak_mb"]) for choose in (min, max))
    seen = (f"A training step takes from {milliseconds(fast['step_ms'])} ({name_of(fast)}) to {milliseconds(slow['step_ms'])} "
            f"({name_of(slow)}), and memory peaks from {megabytes(small['peak_mb'])} ({name_of(small)}) to "
            f"{megabytes(large['peak_mb'])} ({name_of(large)}).")
    panels = [("training step", "step_ms", milliseconds, None), ("peak memory", "peak_mb", megabytes, None),
              ("inference ÷ base", "unmerged_ratio", times, 1), ("merged ÷ base", "merged_ratio", times, 1)]
    given = {key: [row.get(key) if known(row.get(key)) else None for row in rows] for _, key, *_ in panels}
    panels = [panel for panel in panels if any(value is not None for value in given[panel[1]])]
    svg = plots.bars(about(view, "costs", "Time and memory of each method", seen), [short_name(row) for row in rows],
                     [view.look(row["method"]) for row in rows],
                     [{"title": title, "values": given[key], "text": text, "line": line} for title, key, text, line in panels])
    shown = [(title, key, text) for title, key, text, _ in panels]
    shown += [(title, key, milliseconds) for title, key in (("inference", "unmerged_ms"), ("inference, merged", "merged_ms"))
              if any(known(row.get(key)) for row in rows)]
    data = (["method", *(title for title, *_ in shown)],
            [[name_of(row), *(text(row[key]) if known(row.get(key)) else "–" for _, key, text in shown)] for row in rows])
    caption = "Median time of a step; largest peak of a run’s own process, Python and its libraries included."
    if len(panels) > 2:
        caption += (" Inference: the time of a batch divided by the base model’s in the same process, with the method attached "
                    "and, where it merges, written into the weights.")
    return section(view, "costs", "Time and memory", seen, [figure(svg, caption, "Time and memory", data)])


def sweeps(view):
    """Score against rank, length and the like."""
    panels, said, body = [], [], []
    for key in view.sweeps:
        method, _, option = str(key).partition(".")
        rows = [row for row in view.scored if row["method"] == method and option in (row.get("settings") or {})]
        rest = lambda row, option=option: ", ".join(f"{k} {v}" for k, v in row["settings"].items() if k != option)
        for other in dict.fromkeys(map(rest, rows)):
            group = [row for row in rows if rest(row) == other]
            sizes = [row["settings"][option] for row in group]
            if all(isinstance(size, (int, float)) for size in sizes):
                group.sort(key=lambda row: row["settings"][option])
            word, phrase = SIZES.get(option, (option.replace("_", " "), option.replace("_", " ") + " {}"))
            title = method + (f" ({other})" if other else "")
            said.append(extremes(title, group, option, phrase, view.higher))
            panels.append({"title": title, "xlabel": word, "look": view.look(method),
                           "points": [(row["settings"][option], row["score"], row["score_std"]) for row in group]})
            body += [[f"{title}, {word} {row['settings'][option]}", f"{row['trainable']:,}", number(row["score"]),
                      number(row["score_std"], row["score"])] for row in group]
    if not panels:
        return None
    seen = listed(said) + "."
    svg = plots.sweeps(about(view, "sweeps", "Score against the size of a method", seen), panels, view.metric)
    several = any(row["score_std"] for row in view.rows)
    caption = "Means over the seeds; bars: ± one standard deviation." if several else "One seed each."
    return section(view, "sweeps", "How large should it be?", seen, [
        figure(svg, caption, "Score against size", (["method", "trained parameters", view.metric, "standard deviation"], body))])


def extremes(title, group, option, phrase, higher):
    """Which size was best and which worst, in words."""
    best, *_, worst = ordered(group, higher) * 2 if len(group) == 1 else ordered(group, higher)
    told = f"{title} is best with {phrase.format(best['settings'][option])} ({number(best['score'])})"
    return told if best is worst else f"{told} and worst with {worst['settings'][option]} ({number(worst['score'])})"


def tuning(view):
    """Learning rates that were tried."""
    if not view.tuning:
        return None
    rates = sorted({tried["lr"] for t in view.tuning for tried in t["tried"]})
    body = []
    for t in view.tuning:
        found = {tried["lr"]: tried["dev"] for tried in t["tried"]}
        body.append([t["label"], *(Cell(number(found[lr]), found[lr], lr == t["lr"]) if known(found.get(lr)) else Cell("–")
                                   for lr in rates)])
    edge = [t["label"] for t in view.tuning if len(t["tried"]) > 1 and
            t["lr"] in (min(x["lr"] for x in t["tried"]), max(x["lr"] for x in t["tried"]))]
    seen = "Each method runs with the learning rate that did best on dev with seed 0"
    seen += f"; for {listed(edge)} that was the smallest or largest tried, and a further one may do better." if edge else "."
    return section(view, "tuning", "Learning rates tried", seen, [
        wide(table(["method", *(f"{lr:g}" for lr in rates)], body, sortable=True), "Learning rates tried")])
