"""The report's sections on the plan: what was counted on paper beside what was measured, and the four classic methods.

Each takes one task's `View` and returns a `Section`, or None where its data is not there.
"""

from ..methods import METHODS
from .report_facts import known, listed, megabytes, milliseconds, name_of, number, ordered, percent, score_text, times
from .report_page import table, wide
from .report_sections import section, values


def planned(view):
    """({label: plan}, [line of the four]) of a task's rows, from what the runs were asked for and the shape of their model.

    A row is left out whose method has no plan, or whose model cannot be read any more; only config.json is read.
    """
    from . import plan as planning
    from . import plan_four

    plans, options, shape, setting = {}, {}, None, None
    for row in view.rows:
        files = next((each for name in row.get("runs") or () if (each := view.runs.get(name, {})).get("run")), {})
        run, result = files.get("run"), files.get("result") or {}
        try:
            if run is None:
                continue
            shape = shape_of(run, row["trainable"] - row["trainable_without_head"])
            method = planning.make_method(row["method"], run["options"], shape)
            longest = planning.fitting_length([method], shape, run["max_length"])
            length = round(result["batch_length"]) if known(result.get("batch_length")) else longest
            setting = planning.Setting(run["batch_size"], length, run["max_target_length"], base_bits=run["base_bits"])
            plans[name_of(row)] = planning.as_json(planning.plan(method, shape, setting))
            options |= {name: value for name, value in run["options"].items() if name not in (row.get("settings") or {})}
        except (ValueError, OSError, KeyError):
            continue
    try:
        if not plans:
            return plans, []
        methods = [planning.make_method(each.method, options, shape) for each in plan_four.FOUR]
        setting.length = planning.fitting_length(methods, shape, setting.length)
        return plans, [plan_four.as_json(line) for line in plan_four.four(shape, options, setting)]
    except ValueError:  # one of the four does not go with this model
        return plans, []


def shape_of(run, head):
    """The `Shape` of a run's model, with as many classes as ``head`` parameters of the classifier are for."""
    from .plan_models import load_shape

    shape = load_shape(run["model"], run["task"], 2, run["pooling"])
    classes = round(2 * head / shape.head) if shape.task == "classify" and head else 2
    return load_shape(run["model"], run["task"], max(2, classes), run["pooling"])


def on_paper(view):
    """What the planner said beside what was measured."""
    plan = {name_of(row): view.plan.get(name_of(row)) for row in view.rows}
    rows = [row for row in view.rows if plan[name_of(row)] and known(row.get("step_ms"))]
    if not rows:
        return None
    ratios = [row["step_ms"] / 1000 / plan[name_of(row)]["step_seconds"] for row in rows]
    same = sum(plan[name_of(row)]["trainable"] == row["trainable"] for row in rows)
    seen = (f"The planned number of parameters is that of the run for {same} of {len(rows)} methods; a step took "
            f"{times(min(ratios))[:-1]} to {times(max(ratios))[:-1]} times as long as planned.")
    body = []
    for row, ratio in zip(rows, ratios):
        paper = plan[name_of(row)]
        body.append([name_of(row), *values(paper["trainable"], row["trainable"], text="{:,}".format),
                     *values(paper["peak_bytes"] / 1e6, row.get("peak_mb"), text=megabytes),
                     *values(1000 * paper["step_seconds"], row["step_ms"], text=milliseconds), *values(ratio, text=times)])
    heads = ["method", "parameters,\nplanned", "parameters,\ntrained", "peak,\nplanned", "peak,\nmeasured", "step,\nplanned",
             "step,\nmeasured", "measured ÷\nplanned"]
    note = ('<p class="note">On paper: arrays only, without Python and its libraries, and products of matrices only, for '
            "batches as long as those that were trained on, on average.</p>")
    return section(view, "paper", "On paper and measured", seen,
                   [wide(table(heads, body, sortable=True), "On paper and measured"), note])


def is_planned(row, line):
    """Whether a row is of the method of a line of the four, with what was swept as it is planned there (whatever its lr)."""
    planned = {**vars(METHODS[line["method"]]()), **line["plan"]["settings"], line["size"]: line["at"]}
    swept = {name: value for name, value in (row.get("settings") or {}).items() if name != "lr"}
    return row["method"] == line["method"] and all(planned[name] == value for name, value in swept.items())


def four(view):
    """The classic table of four methods, beside what was measured."""
    if not view.four:
        return None
    own = {line["method"]: row for line in view.four for row in reversed(view.rows) if is_planned(row, line)}
    within = [line["title"] for line in view.four if line["share"] < line["bound"]]
    within = listed(within) if within else "none of the four"
    seen = f"With the sizes planned here the usual bounds of the shares hold for {within}"
    ran = ordered([own[line["method"]] for line in view.four if line["method"] in own and known(own[line["method"]]["score"])],
                  view.higher)
    seen += f"; of those that were run, {name_of(ran[0])} did best ({number(ran[0]['score'])})." if len(ran) > 1 else "."
    body, words = [], []
    for line in view.four:
        row, letter, limit = own.get(line["method"]), line["letter"], line["holds_up_to"]
        holds = f"all {letter}" if limit is None else f"{letter} ≤ {limit:,}" if limit else "none"
        measured = [score_text(row), milliseconds(row.get("step_ms")), times(row.get("unmerged_ratio"))] if row else ["–"] * 3
        body.append([line["title"], line["order"], f"{line['formula']}", f"{letter} = {line['at']:,}", f"{line['count']:,}",
                     percent(line["share"]), f"<\u00a0{100 * line['bound']:g}\u00a0%", holds,
                     "0" if line["slower"] == 0 else f"+{percent(line['slower'])}", *measured])
        words.append([line["title"], line["strengths"], line["drawbacks"], line["models"], line["conditions"]])
    heads = ["method", "order", "count, without\nthe head", "at", "is", "share", "usual\nbound", "holds\nfor",
             "inference,\nplanned", f"{view.metric},\nmeasured", "step,\nmeasured", "inference,\nmeasured"]
    return section(view, "four", "Four classic methods", seen, [
        wide(table(heads, body), "Four classic methods in numbers"),
        '<p class="note">d: width, L: layers, r: bottleneck or rank, n: virtual tokens. Inference: operations more than the '
        "base’s, as planned, and time over the base’s, as measured with the method attached; a dash where no run was of the size "
        "that is planned here. The usual bounds are those told of large models and small r and n.</p>",
        wide(table(["method", "strengths", "drawbacks", "suitable models", "conditions of use"], words, words=(1, 2, 3, 4)),
             "Four classic methods in words")])
