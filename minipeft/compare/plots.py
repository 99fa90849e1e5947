"""The report's drawings, one function each: plain numbers in, an ``<svg>`` element out.

Every function takes the ``name``, ``title`` and ``description`` of `svg.to_svg` first. A `Look` gives a method its colour and its
marker, so that no drawing depends on colour alone; names stand beside what they name, and no legend has to be looked up.
"""

import math
from dataclasses import dataclass

import numpy as np

from .svg import INK, LINE, PAPER, SERIES, SOFT, WIDTH, drawing, freeze, to_svg

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (7, 1.5, 1.5, 1.5)))
LONGEST = 26  # letters of a name in a drawing; the tables have all of them


@dataclass(frozen=True)
class Look:
    """How a method is drawn: a number of the palette, and a marker."""

    number: int

    @property
    def colour(self):
        return SERIES[self.number % len(SERIES)]

    @property
    def marker(self):
        return MARKERS[self.number % len(MARKERS)]


def cut(name, length=LONGEST):
    """A name of at most ``length`` letters: of a longer one its beginning and its end."""
    end = length // 3
    return name if len(name) <= length else name[:length - end - 1].rstrip() + "…" + name[-end:].lstrip()


def si(value, _=None):
    """A count or a size with a plain letter: 770, 74.5k, 22.6M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.12f}".rstrip("0")


def decimals(limits):
    """A formatter with as many decimals as an axis of this extent needs."""
    from matplotlib.ticker import StrMethodFormatter

    span = max(limits) - min(limits)
    places = 0 if span <= 0 else min(4, max(0, math.ceil(1.3 - math.log10(span))))
    return StrMethodFormatter(f"{{x:,.{places}f}}")


def plain_log_axis(axis, low, high):
    """Make a log axis from ``low`` to ``high`` whose ticks are 1k, 10k, 100k, and 2 and 5 times these where there is room."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in steps]
    axis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(si))


# ---- names beside what they name -----------------------------------------------------------------------------------


def overlap(a, b):
    """The area two boxes (x0, y0, x1, y1) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def places(point, size):
    """Boxes of ``size`` around a ``point``, the nearest first, in rings that grow."""
    (x, y), (w, h) = point, size
    for gap in (8, 16, 28, 42, 58, 76, 96, 120, 150):
        spots = [(x + gap, y - h / 2), (x - gap - w, y - h / 2), (x - w / 2, y + gap), (x - w / 2, y - gap - h)]
        spots += [(x + 0.7 * gap, y + 0.7 * gap), (x + 0.7 * gap, y - 0.7 * gap - h),
                  (x - 0.7 * gap - w, y + 0.7 * gap), (x - 0.7 * gap - w, y - 0.7 * gap - h)]
        for left, low in spots:
            yield gap, (left, low, left + w, low + h)


def along(axes, points, half=2):
    """Boxes in pixels that cover a line through ``points`` (data coordinates), ``half`` a pixel's width to each side."""
    spots = axes.transData.transform(np.array(points, float))
    steps = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 8)) for a, b in zip(spots[:-1], spots[1:])] or [spots]
    return [(x - half, y - half, x + half, y + half) for part in steps for x, y in part]


def name_points(axes, points, names, renderer, taken=(), colours=None):
    """Write each name beside its point (data coordinates) so that none covers another, a point or a box of ``taken`` (pixels).

    Returns the names' boxes. A name that is not right beside its point has a thin line to it. ``colours``: one for each name.
    """
    spots = axes.transData.transform(np.array(points, float))
    frame = axes.get_window_extent(renderer).extents
    taken = list(taken) + [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    out = []
    for i in sorted(range(len(names)), key=lambda i: -spots[i][1]):
        text = axes.text(*spots[i], names[i], transform=None, fontsize=11.5, color=colours[i] if colours else INK, zorder=6,
                         fontweight="bold" if colours else "normal")
        box = text.get_window_extent(renderer)
        best = None
        for gap, place in places(spots[i], (box.width + 4, box.height + 1)):
            outside = (place[2] - place[0]) * (place[3] - place[1]) - overlap(place, frame)
            cost = sum(overlap(place, other) for other in taken) + 3 * outside
            if best is None or cost < best[0]:
                best = cost, gap, place
            if cost == 0:
                break
        _, gap, place = best
        text.set_position((place[0] + 2, place[1] + box.height * 0.22))
        if gap > 8:
            near = (min(max(spots[i][0], place[0]), place[2]), min(max(spots[i][1], place[1]), place[3]))
            to_data = axes.transData.inverted().transform
            axes.plot(*zip(to_data(spots[i]), to_data(near)), color=SOFT, linewidth=0.7, zorder=2)
        taken.append(place)
        out.append(place)
    return out


def name_line(axes, y, name, renderer, taken):
    """Write a name on a level line, where along it least of ``taken`` (boxes in pixels) is covered; returns its box."""
    frame, height = axes.get_window_extent(renderer), axes.transData.transform((1, y))[1]
    text = axes.text(0, height + 3, name, transform=None, va="bottom", fontsize=11, color=SOFT)
    width, tall = text.get_window_extent(renderer).width, text.get_window_extent(renderer).height
    boxes = [(x, height + 1, x + width, height + 3 + tall) for x in np.linspace(frame.x1 - width - 4, frame.x0 + 4, 40)]
    best = min(boxes, key=lambda box: sum(overlap(box, other) for other in taken))  # the first of equals: to the right
    text.set_x(best[0])
    return best


def spread(values, gap, low, high):
    """Places as near to ``values`` as can be, in the same order, ``gap`` apart and within ``low`` and ``high``.

    Where they do not fit, the gap is as large as it can be.
    """
    if not values:
        return []
    gap = min(gap, (high - low) / max(1, len(values) - 1)) if len(values) > 1 else gap
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups = []  # [sum of (value - rank * gap), how many]: neighbours that touch move as one, to the mean of what they want
    for rank, i in enumerate(order):
        groups.append([values[i] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    shifts = [total / count for total, count in groups for _ in range(count)]
    out = [0.0] * len(values)
    for rank, (i, shift) in enumerate(zip(order, shifts)):
        out[i] = rank * gap + min(max(shift, low), high - (len(values) - 1) * gap)
    return out


def name_ends(axes, ends, renderer, gap=13.5):
    """Write names to the right of an axes, at the heights of the lines' ends: (x, y, name, colour), apart and in order."""
    if not ends:
        return
    frame = axes.get_window_extent(renderer)
    spots = axes.transData.transform([(x, y) for x, y, *_ in ends])
    heights = spread([float(y) for _, y in spots], gap, frame.y0 + 4, frame.y1 - 4)
    for (x, y), height, (_, _, name, colour) in zip(spots, heights, ends):
        axes.annotate("", (x, y), (frame.x1 + 12, height), xycoords="figure pixels", textcoords="figure pixels",
                      annotation_clip=False, arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8, "shrinkA": 0,
                                                         "shrinkB": 3})
        axes.text(frame.x1 + 15, height, name, transform=None, va="center", fontsize=11.5, color=colour, fontweight="bold")


# ---- the drawings --------------------------------------------------------------------------------------------------


def tradeoff(about, points, score_name, higher=True, untrained=()):
    """Score against trained parameters: a mark for each method, its deviation, and the Pareto front as a staircase.

    Args:
        points: [{"name", "parameters", "score", "std", "look", "front"}], parameters at least 1. untrained: [(name, score,
            whether it is on the front)] of what trains nothing, drawn as lines: a logarithm has no place for 0.
    """
    with drawing(min(620, 400 + 8 * len(points))) as figure:
        axes = figure.add_subplot(xscale="log")
        counts, scores = [p["parameters"] for p in points], [p["score"] for p in points]
        low, high = min(counts) / 2.5, max(counts) * 2.5
        axes.set_xlim(low, high)
        ends = [s + sign * p["std"] for p, s in zip(points, scores) for sign in (-1, 1)] + [score for _, score, _ in untrained]
        room = 0.08 * (max(ends) - min(ends)) or abs(scores[0]) * 0.05 or 0.05
        axes.set_ylim(min(ends) - room, max(ends) + room)
        front = sorted((p for p in points if p["front"]), key=lambda p: p["parameters"])
        starts = [score for _, score, on_front in untrained if on_front]
        xs, ys = [low] * len(starts) + [p["parameters"] for p in front], starts + [p["score"] for p in front]
        axes.step(xs + [high], ys + ys[-1:], where="post", color=SOFT, linewidth=1.3, linestyle=(0, (4, 2)), zorder=1)
        for p in points:
            axes.errorbar(p["parameters"], p["score"], p["std"] or None, color=p["look"].colour, marker=p["look"].marker,
                          markersize=8 if p["front"] else 7, markerfacecolor=p["look"].colour if p["front"] else PAPER,
                          markeredgewidth=1.6, elinewidth=1.3, capsize=3, zorder=4)
        for _, score, _ in untrained:
            axes.axhline(score, color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.set(xlabel="parameters trained, the head included (log scale)",
                 ylabel=f"{score_name}{'' if higher else ' (lower is better)'}")
        axes.grid(axis="y")
        plain_log_axis(axes.xaxis, low, high)
        axes.yaxis.set_major_formatter(decimals(axes.get_ylim()))
        renderer = freeze(figure)
        bars = [axes.transData.transform([(p["parameters"], p["score"] + s * p["std"]) for s in (-1, 1)]) for p in points]
        taken = [(a[0] - 4, min(a[1], b[1]) - 2, b[0] + 4, max(a[1], b[1]) + 2) for a, b in bars]
        corners = axes.transData.transform([(x, y) for x, y in zip(xs, ys)] + [(high, ys[-1])])
        for (x0, y0), (x1, y1) in zip(corners[:-1], corners[1:]):
            taken += [(x0, y0 - 1.5, x1, y0 + 1.5), (x1 - 1.5, min(y0, y1), x1 + 1.5, max(y0, y1))]
        for name, score, _ in untrained:
            taken.append(name_line(axes, score, name, renderer, taken))
        name_points(axes, list(zip(counts, scores)), [cut(p["name"]) for p in points], renderer, taken)
        return to_svg(figure, *about)


def curves(about, groups, score_name):
    """Training loss at each step beside the score after each epoch, a row of panels for each group of methods.

    Args:
        groups: {title: [{"name", "look", "epochs", "mean", "std", "steps", "loss"}]}; ``epochs`` or ``steps`` may be empty.
    """
    lines = [line for group in groups.values() for line in group]
    scores, losses = any(line["epochs"] for line in lines), any(line["steps"] for line in lines)
    heights = [max(260 if len(groups) == 1 else 150, 40 + 14 * len(group)) for group in groups.values()]
    with drawing(sum(heights) + 40) as figure:
        margin = 26 + 7.3 * max(len(cut(line["name"])) for line in lines)  # for the names at the ends
        figure.get_layout_engine().set(rect=(0, 0, 1 - margin / WIDTH, 1))
        grid = figure.subplots(len(groups), scores + losses, squeeze=False, sharex="col", sharey="col", height_ratios=heights,
                               width_ratios=[1, 1.25] if scores and losses else [1])
        for row, (title, group) in zip(grid, groups.items()):
            for order, line in enumerate(group):
                draw_line(row, line, scores, losses, LINES[order % len(LINES)])
            row[0].set_title(title or ("training loss" if losses else score_name))
            if not title and scores and losses:
                row[1].set_title(f"{score_name} on dev")
            for axes in row:
                axes.grid(axis="y")
            if title:
                row[0].set_ylabel("training loss" if losses else score_name)
                row[-1].set_ylabel(score_name if scores else "training loss")
        if losses:
            grid[-1][0].set_xlabel("step")
        if scores:
            whole_numbers(grid[-1][-1], sorted({epoch for line in lines for epoch in line["epochs"]}))
            grid[-1][-1].set_xlabel("epoch")
            grid[-1][-1].yaxis.set_major_formatter(decimals(grid[-1][-1].get_ylim()))
        renderer = freeze(figure)
        x, y = ("epochs", "mean") if scores else ("steps", "loss")
        for row, group in zip(grid, groups.values()):
            name_ends(row[-1], [(line[x][-1], line[y][-1], cut(line["name"]), line["look"].colour) for line in group if line[x]],
                      renderer)
        return to_svg(figure, *about)


def draw_line(row, line, scores, losses, style):
    """One method in a row of panels: its loss, and its score with a band of ± one standard deviation."""
    look = line["look"]
    if losses and line["steps"]:
        row[0].plot(line["steps"], line["loss"], color=look.colour, linewidth=1.4, linestyle=style)
    if scores and line["epochs"]:
        mean, std = np.array(line["mean"]), np.array(line["std"])
        row[-1].plot(line["epochs"], mean, color=look.colour, marker=look.marker, markersize=4.5, linestyle=style)
        if std.any():
            row[-1].fill_between(line["epochs"], mean - std, mean + std, color=look.colour, alpha=0.13, linewidth=0)


def whole_numbers(axes, values):
    """Ticks of the x axis at whole numbers only, of which ``values`` are drawn."""
    from matplotlib.ticker import MaxNLocator

    if len(values) == 1:
        axes.set_xticks(values)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def bars(about, names, looks, panels):
    """Horizontal bars in the methods' colours, a panel for each measure, with the value at the end of each bar.

    Args:
        names, looks: of the rows, from the top. panels: [{"title", "text": value → string, "values", "line": a value to mark, or
            None}], values None where there is none.
    """
    with drawing(50 + 24 * len(names)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(grid, panels):
            largest = max((v for v in panel["values"] if v is not None), default=1) or 1
            for place, (value, look) in enumerate(zip(panel["values"], looks)):
                if value is not None:
                    axes.barh(place, value, 0.64, color=look.colour, alpha=0.8, linewidth=0)
                    beyond = max(value, panel["line"] or 0) if panel.get("line") else value  # the name is not crossed by the line
                    axes.text(beyond + largest * 0.03, place, panel["text"](value), va="center", fontsize=11, color=INK)
            if panel.get("line") is not None:
                axes.axvline(panel["line"], color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.set_xlim(0, largest * 1.45)
            axes.set_title(panel["title"])
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(left=False)
        grid[0].set_yticks(np.arange(len(names)), [cut(name) for name in names], color=INK)
        grid[0].set_ylim(len(names) - 0.5, -0.5)
        return to_svg(figure, *about)


def exits(about, curves, marks, full, score_name):
    """Early exit: score against the share of the full model's cost, a line for each rule, and the full model as a star.

    Args:
        curves: {rule: [(share of the blocks, score)]}. marks: {rule: [(share of the time as measured, score)]}. full: the full
            model's score, or None.
    """
    with drawing(380) as figure:
        axes, rules = figure.add_subplot(), list(dict.fromkeys([*curves, *marks]))
        for order, rule in enumerate(rules):
            look = Look(order)
            if curves.get(rule):
                axes.plot(*zip(*sorted(curves[rule])), color=look.colour, linestyle=LINES[order % len(LINES)], linewidth=2)
            if marks.get(rule):
                axes.plot(*zip(*sorted(marks[rule])), color=look.colour, marker=look.marker, markersize=8, markerfacecolor=PAPER,
                          markeredgewidth=1.7, linestyle="none", zorder=4)
        if full is not None:
            axes.axhline(full, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
            axes.plot(1, full, marker="*", color=INK, markersize=14, linestyle="none", zorder=5)
        every = [p for lines in (curves, marks) for points in lines.values() for p in points] + [(1, full)] * (full is not None)
        low, high = min(y for _, y in every), max(y for _, y in every)
        room = 0.14 * (high - low) or 0.02
        axes.set_xlim(0, max(1.08, 1.05 * max(x for x, _ in every)))
        axes.set_ylim(low - room, high + room)
        axes.set(xlabel="share of the full model's cost", ylabel=score_name)
        axes.grid()
        axes.yaxis.set_major_formatter(decimals(axes.get_ylim()))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        renderer = freeze(figure)
        taken = [box for points in curves.values() for box in along(axes, sorted(points))]
        taken += [box for points in marks.values() for x, y in points for box in along(axes, [(x, y)], 6)]
        ends = [min(curves.get(rule) or marks[rule]) for rule in rules] + [(1, full)] * (full is not None)
        name_points(axes, ends, [cut(rule) for rule in rules] + ["full model"] * (full is not None), renderer, taken,
                    [Look(order).colour for order in range(len(rules))] + [INK])
        return to_svg(figure, *about)


def heat(about, matrix, rows, columns, xlabel, ylabel, whole=1.0):
    """A table of shares as tiles, the fuller the larger the share, with the percentage in each where there is room.

    Args:
        matrix: (rows, columns) shares. whole: the share that is drawn fullest.
    """
    from matplotlib.patches import Rectangle

    matrix = np.array(matrix, float)
    with drawing(70 + min(34, max(20, 700 // len(rows))) * len(rows)) as figure:
        axes = figure.add_subplot(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        for (i, j), value in np.ndenumerate(matrix):
            axes.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=SERIES[0], linewidth=0,
                                     alpha=float(np.clip(0.03 + 0.52 * value / whole, 0.03, 0.55))))
            if len(columns) <= 16:
                said = "0" if value < 0.0005 else f"{100 * value:.{0 if value >= 0.0995 else 1}f} %"
                axes.text(j, i, said, ha="center", va="center", fontsize=11, color=INK)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), [cut(str(name), 34) for name in rows])
        if len(columns) > 24:
            axes.set_xticks(range(0, len(columns), 4), columns[::4])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return to_svg(figure, *about)


def spectra(about, panels):
    """Singular values, the largest first, on two log axes: a thin line for each layer and a thick one for their geometric mean.

    Args:
        panels: {title: {method: (look, [values of each layer])}}.
    """
    rows = -(-len(panels) // 2)
    with drawing(30 + 280 * rows) as figure:
        grid = figure.subplots(rows, min(2, len(panels)), squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(panels):]:
            axes.set_visible(False)
        highest = max(max(v) for panel in panels.values() for _, layers in panel.values() for v in layers)
        longest = max(len(v) for panel in panels.values() for _, layers in panel.values() for v in layers)
        for number, (axes, (title, panel)) in enumerate(zip(grid, panels.items())):
            axes.set(xscale="log", yscale="log", title=title)
            for order, (look, layers) in enumerate(panel.values()):
                for values in layers if len(layers) > 1 else ():
                    axes.plot(*visible(values, highest), color=look.colour, linewidth=0.7, alpha=0.45)
                ranks, mean = visible(geometric_mean(layers), highest)
                axes.plot(ranks, mean, color=look.colour, linewidth=2.4, linestyle=LINES[order % len(LINES)], marker=look.marker,
                          markevery=[len(ranks) - 1], markersize=6)
            axes.grid()
            if number >= len(panels) - 2:
                axes.set_xlabel("number of the singular value")
                axes.xaxis.set_tick_params(labelbottom=True)
        for axes in grid[::2]:
            axes.set_ylabel("singular value of ΔW")
        grid[0].set_xlim(0.85, longest * 3.2)
        for axes in grid[:len(panels)]:
            plain_log_axis(axes.xaxis, 1, longest)
            plain_log_axis(axes.yaxis, *axes.get_ylim())
        renderer = freeze(figure)
        for axes, panel in zip(grid, panels.values()):
            means = {name: list(zip(*visible(geometric_mean(layers), highest))) for name, (_, layers) in panel.items()}
            taken = [box for points in means.values() for box in along(axes, points)]
            name_points(axes, [points[-1] for points in means.values()], [cut(name, 20) for name in means], renderer, taken,
                        [look.colour for look, _ in panel.values()])
        return to_svg(figure, *about)


def geometric_mean(layers):
    """The geometric mean of each singular value over layers, as far as all have it."""
    count = min(len(values) for values in layers)
    return np.exp(np.mean([np.log(np.maximum(np.array(values[:count], float), 1e-300)) for values in layers], axis=0))


def visible(values, highest, most=60):
    """(numbers from 1, values) of those above rounding, at most ``most`` of them, evenly on a log axis."""
    values = np.array(values, float)
    count = max(1, int((values > 1e-6 * highest).sum()))
    ranks = np.unique(np.round(np.geomspace(1, count, most)).astype(int))
    return ranks, np.maximum(values[ranks - 1], 1e-6 * highest)


def sweeps(about, panels, score_name):
    """Score against a size of a method, one panel for each sweep, with ± one standard deviation.

    Args:
        panels: [{"title", "xlabel", "look", "points": [(size, score, std)]}]; sizes that are not numbers stand side by side.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with drawing(40 + 270 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes in grid[len(panels):]:
            axes.set_visible(False)
        for axes, panel in zip(grid, panels):
            sizes, scores, stds = zip(*panel["points"])
            numbers = all(isinstance(size, (int, float)) for size in sizes)
            places = sizes if numbers else range(len(sizes))
            axes.set_title(cut(panel["title"]))
            if numbers and min(sizes) > 0 and max(sizes) / min(sizes) > 4:
                axes.set_xscale("log", base=2)
            axes.errorbar(places, scores, stds if any(stds) else None, color=panel["look"].colour, marker=panel["look"].marker,
                          markersize=7, capsize=3, elinewidth=1.3, linestyle="-" if numbers else "none")
            axes.set_xticks(places, [f"{size:g}" if numbers else cut(str(size), 12) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel(panel["xlabel"])
            axes.grid(axis="y")
        for axes in grid[:len(panels):columns]:
            axes.set_ylabel(score_name)
            axes.yaxis.set_major_formatter(decimals(axes.get_ylim()))
        return to_svg(figure, *about)
