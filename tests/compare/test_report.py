"""The report: every section where its data is, numbers that are the data's, drawings that can be read without seeing them."""

import copy
import importlib.util
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import cli
from minipeft.compare import plots, report_facts, report_page, report_plan, svg
from minipeft.compare.report import report_html, write_report
from minipeft.compare.report_facts import pareto

ALL = ["table", "tradeoff", "learning", "costs", "sweeps", "tuning", "exits", "spectra", "prefix", "paper", "four", "failed"]
FIGURES = {"tradeoff", "learning", "costs", "sweeps", "exits", "leaving", "spectra", "prefix"}
VOID = {"meta", "link", "br", "hr", "img", "input"}
FEW = ("full", "head", "lora", "prefix", "houlsby")
NASTY = "<script>alert('x')</script>&\"$a$\" 中文"


@pytest.fixture(scope="module")
def examples():
    """The module report_examples.py."""
    spec = importlib.util.spec_from_file_location("report_examples", Path(__file__).parent / "report_examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def full(examples):
    """(results, runs, page) with all 22 methods, swept ones besides, and every section."""
    results, runs = examples.everything()
    return results, runs, report_html(results, runs)


class Page(HTMLParser):
    """What a page holds; complains of tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.headings, self.tables, self.svgs = [], [], [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs.items()]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append(attrs["id"])
        if tag == "svg":
            self.svgs.append({**attrs, "title": "", "desc": "", "text": []})
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open[-1:] and "svg" in self.open:
            if self.open[-1] in ("title", "desc"):
                self.svgs[-1][self.open[-1]] += data
            elif self.open[-1] == "text":
                self.svgs[-1]["text"].append(data)
        elif "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


# ---- sections --------------------------------------------------------------------------------------------------


def test_every_section_is_there_with_its_sentence(full):
    page = Page(full[2])
    assert page.headings == ALL
    assert full[2].count('<p class="seen">') == len(ALL)
    assert all(re.search(r"[.]</p>", part) for part in full[2].split('<p class="seen">')[1:])


def test_only_what_has_data_is_there(examples):
    page = Page(report_html(examples.basic(), {}))
    assert page.headings == ["table", "tradeoff", "costs"]
    assert len(page.svgs) == 2


@pytest.mark.parametrize("key, gone", [("sweeps", "sweeps"), ("tuning", "tuning"), ("plan", "paper"), ("four", "four"),
                                       ("failed", "failed")])
def test_a_section_goes_with_its_key(examples, key, gone):
    results, runs = examples.everything(FEW)
    del results[key]
    assert Page(report_html(results, runs)).headings == [name for name in ALL if name != gone]


@pytest.mark.parametrize("key, gone", [("singular_values", "spectra"), ("prefix_attention", "prefix"), ("exits", "exits")])
def test_a_section_goes_with_its_analysis(examples, key, gone):
    results, runs = examples.everything(FEW)
    for each in runs.values():
        each["analysis"].pop(key, None)
    assert Page(report_html(results, runs)).headings == [name for name in ALL if name != gone]


def test_results_without_rows_are_refused(examples):
    with pytest.raises(ValueError, match=r"report: expected at least one row of a method in results\['rows'\], got none"):
        report_html({"rows": []}, {})
    with pytest.raises(ValueError, match="got none"):
        report_html({"rows": [examples.base_row()]}, {})


def test_several_tasks_have_sections_of_their_own_and_one_table_over_all(examples):
    one, two = examples.basic(FEW, task="sst2"), examples.basic(FEW, task="trec6")
    page = Page(report_html({**one, "rows": one["rows"] + two["rows"]}, {}))
    assert page.headings == ["overview", "table-1", "tradeoff-1", "costs-1", "table-2", "tradeoff-2", "costs-2"]
    assert len(set(page.ids)) == len(page.ids)
    assert page.tables[0][0] == ["method", "sst2\naccuracy", "trec6\naccuracy", "mean\nrank"]


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_the_table_holds_the_numbers(examples):
    results = examples.basic(examples.NAMES)
    heads, *rows = Page(report_html(results, {})).tables[0]
    assert [row[0].removesuffix("\u00a0◆") for row in rows] == [row["label"] for row in results["rows"]]
    at = {name.replace("\n", " "): i for i, name in enumerate(heads)}
    for cells, row in zip(rows[1:], results["rows"][1:]):
        assert cells[at["trained parameters"]] == f"{row['trainable']:,}"
        assert cells[at["without the head"]] == f"{row['trainable_without_head']:,}"
        mean, std = map(float, cells[at["accuracy"]].split(" ± "))
        assert (mean, std) == (pytest.approx(row["score"], abs=5e-5), pytest.approx(row["score_std"], abs=5e-5))
        assert float(cells[at["share of the model"]].split()[0]) == pytest.approx(100 * row["share"], rel=0.06)
        assert float(cells[at["training step"]].split()[0]) == pytest.approx(row["step_ms"], rel=5e-3)
        assert float(cells[at["peak memory"]].split()[0]) == pytest.approx(row["peak_mb"], abs=0.5)


def test_sortable_cells_carry_the_number_itself(examples):
    results = examples.basic()
    found = re.findall(r'data-value="([^"]*)">[\d.]+ ± ', report_html(results, {}))
    assert [float(value) for value in found] == [row["score"] for row in results["rows"][1:]]


def test_what_the_table_says_of_the_best(examples):
    results = examples.basic()
    for row, score in zip(results["rows"][1:], (0.85, 0.80, 0.849)):
        row.update(score=score, score_std=0.002)
    words = Page(report_html(results, {})).words
    assert "The best score, accuracy 0.8500 ± 0.0020 on dev, is that of full; lora comes within one standard deviation" in words
    assert "Of 3 methods 3 are on the Pareto front" in words


def test_a_lower_perplexity_is_the_better_one(examples):
    results = examples.basic()
    for row, score in zip(results["rows"], (99.0, 12.5, 40.0, 13.25)):
        row.update(metric="perplexity", score=score, score_std=0.1)
    page = Page(report_html(results, {}))
    assert "The best score, perplexity 12.50 ± 0.10 on dev, is that of full" in page.words
    assert any("lower is better" in text for text in page.svgs[0]["text"])


def test_scores_that_are_missing_or_not_finite_are_dashes(examples):
    results = examples.basic(FEW)
    results["rows"][1]["score"], results["rows"][2]["score"] = None, math.nan
    page = Page(report_html(results, {}))
    assert [row[4] for row in page.tables[0][2:4]] == ["–", "–"]
    assert "Of 3 methods" in page.words
    for row in results["rows"]:
        row.update(score=None, metric="accuracy", split=None)
    assert "There was nothing to score" in Page(report_html(results, {})).words


points = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3).map(float)), max_size=12)


@given(points, st.booleans())
def test_the_pareto_front_is_that_of_the_definition(found, higher):
    def beats(a, b):
        at_least = a[0] <= b[0] and (a[1] >= b[1] if higher else a[1] <= b[1])
        return at_least and a != b

    assert pareto(found, higher) == [not any(beats(other, own) for other in found) for own in found]


@given(st.lists(st.floats(-50, 450), max_size=30), st.floats(1, 40))
def test_names_at_the_ends_keep_order_and_distance(values, gap):
    out = plots.spread(values, gap, 0, 400)
    assert all(-1e-6 <= place <= 400 + 1e-6 for place in out)
    order = sorted(range(len(values)), key=lambda i: values[i])
    apart = min(gap, 400 / max(1, len(values) - 1))
    assert all(out[b] - out[a] >= apart - 1e-6 for a, b in zip(order, order[1:]))


@given(st.lists(st.floats(10, 390), min_size=1, max_size=1), st.floats(1, 40))
def test_a_name_alone_stays_where_it_is(values, gap):
    assert plots.spread(values, gap, 0, 400) == pytest.approx(values)


def test_curves_are_means_over_the_seeds(examples):
    from minipeft.compare.report_sections import curve_of

    runs = [{"evaluations": [{"epoch": 1, "score": 0.5}, {"epoch": 2, "score": 0.7}], "losses": [1.0, 2.0, 3.0]},
            {"evaluations": [{"epoch": 1, "score": 0.7}, {"epoch": 2, "score": 0.9}], "losses": [3.0, 2.0]}]
    line = curve_of({"label": "x"}, runs, None)
    assert (line["epochs"], line["steps"], line["loss"]) == ([1, 2], [1.0, 2.0], [2.0, 2.0])
    assert line["mean"] == pytest.approx([0.6, 0.8])
    assert line["std"] == pytest.approx([math.sqrt(0.02)] * 2)


# ---- what the figures and their tables say is the data ----------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """{name: Figure} of what is drawn from here on."""
    out, before = {}, plots.to_svg
    monkeypatch.setattr(plots, "to_svg",
                        lambda figure, name, *words: out.setdefault(name, figure) and before(figure, name, *words))
    return out


def table_headed(page, *heads):
    """The rows below the first table of a page whose headings begin so."""
    return next(table for table in page.tables if tuple(table[0][:len(heads)]) == heads)[1:]


def shares(cells):
    """The shares that cells say in per cent, to two digits."""
    return pytest.approx([float(cell.split()[0]) / 100 for cell in cells], rel=0.051)


def check_tiles(figure, rows, columns, matrix):
    """Each tile stands in its row and column, says its share, and is the fuller the larger the share."""
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == rows and axes.yaxis_inverted()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == columns
    said = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    fullness = {(round(tile.get_x() + 0.48), round(tile.get_y() + 0.46)): tile.get_alpha() for tile in axes.patches}
    for (i, j), value in np.ndenumerate(np.array(matrix)):
        assert float(said[j, i].split()[0]) == pytest.approx(100 * value, abs=0.5 if value >= 0.0995 else 0.051)
    order = sorted(fullness, key=lambda place: matrix[place[1]][place[0]])
    assert len(fullness) == np.size(matrix) and [fullness[p] for p in order] == sorted(fullness.values())
    assert len(set(fullness.values())) > np.size(matrix) / 2


def test_early_exit_shows_its_points_and_who_leaves_where(examples, drawn):
    page = Page(report_html(*examples.everything(FEW, swept=False)))
    early = examples.early_exit()
    timed = table_headed(page, "rule, looseness", "accuracy")
    assert [row[0] for row in timed] == [f"{p['rule']}, {p['looseness']:g}" for p in early["timed"]]
    for row, p in zip(timed, early["timed"]):
        assert row[1:3] == [f"{p['accuracy']:.4f}", f"{p['mean_layer']:.2f}"] and [p["ideal"], p["ratio"]] == shares(row[3:])
    leaving = {f"{rule}, {p['looseness']:g}": p["leaving"] for rule, line in early["curves"].items() for p in line}
    rows = table_headed(page, "rule, looseness", "1", "2", "3", "4", "5", "6")
    assert [row[0] for row in rows] == [row[0] for row in timed] and all(leaving[row[0]] == shares(row[1:]) for row in rows)
    check_tiles(drawn["leaving"], [row[0] for row in rows], list("123456"), [leaving[row[0]] for row in rows])
    axes = drawn["exits"].axes[0]
    lines = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) > 2]
    for rule, curve in early["curves"].items():
        assert sorted([p["ideal"], p["accuracy"]] for p in curve) in lines
        assert sorted([p["ratio"], p["accuracy"]] for p in early["timed"] if p["rule"] == rule) in lines


def test_variants_of_early_exit_have_figures_of_their_own(examples, drawn):
    results, runs = examples.everything(FEW, swept=False)
    other = copy.deepcopy(examples.early_exit())
    other["accuracy"] = [value - 0.1 for value in other["accuracy"]]
    runs["lora-seed0"]["analysis"]["exits"] = other
    page = Page(report_html(results, runs))
    assert {"exits", "leaving", "exits1", "leaving1"} <= set(drawn) and page.headings == ALL[:4] + ALL[5:]
    assert [svg["title"] for svg in page.svgs if "early exit" in svg["title"]] == [
        f"Accuracy against cost with early exit, {name}" for name in ("full", "lora")]
    assert "full: By the rule" in page.words and "(full model: 0.8520)" in page.words and "lora: By the rule" in page.words
    assert "(full model: 0.7520)" in page.words
    assert [page.words.count(f"Run: {name}, first seed.") for name in ("full", "lora")] == [2, 2]


def test_attention_to_the_prefix_is_told_by_layer_and_head(examples, drawn):
    results, runs = examples.everything(FEW, swept=False)
    page = Page(report_html(results, runs))
    paid = list(runs["prefix-seed0"]["analysis"]["prefix_attention"].values())
    rows = table_headed(page, "layer", "head 1", "head 2")
    assert [row[0] for row in rows] == list("123456") and all(line == shares(row[1:]) for line, row in zip(paid, rows))
    check_tiles(drawn["prefix"], list("123456"), [str(head) for head in range(1, 13)], paid)
    layer, head = np.unravel_index(np.argmax(paid), (6, 12))
    assert f"most in layer {layer + 1}, head {head + 1} (" in page.words


def test_the_sides_of_an_encoder_decoder_are_kept_apart(examples, drawn):
    results, runs = examples.everything(FEW, swept=False)
    places = [f"{side}.blocks.{i}.{part}" for side, part in (("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross"))
              for i in range(2)]
    rng = np.random.default_rng(3)
    runs["prefix-seed0"]["analysis"]["prefix_attention"] = {f"{place}.core": rng.random(4).tolist() for place in places}
    for name in ("full", "lora"):
        runs[f"{name}-seed0"]["analysis"]["singular_values"] = {f"{place}.q": rng.random(5).tolist() for place in places}
    page = Page(report_html(results, runs))
    assert [row[0] for row in table_headed(page, "layer", "head 1")] == [
        f"{layer} ({part}.core)" for part in ("encoder.attn", "decoder.attn", "decoder.cross") for layer in (1, 2)]
    assert [axes.get_title(loc="left") for axes in drawn["spectra"].axes if axes.get_visible()] == [
        "encoder.attn.q", "decoder.attn.q", "decoder.cross.q"]
    for axes in drawn["spectra"].axes[:3]:  # of each method two layers, thin, and their mean
        assert sorted(line.get_linewidth() for line in axes.lines if line.get_color() in svg.SERIES) == [0.7] * 4 + [2.4] * 2


def test_singular_values_are_those_of_the_analysis(examples, drawn):
    results, runs = examples.everything(FEW, swept=False)
    page = Page(report_html(results, runs))
    rows = {row[0]: row[1:] for row in table_headed(page, "method, map", "largest")}
    assert len(rows) == 2 * 12
    for name, rank in (("full", "384"), ("lora", "8")):
        for path, values in runs[f"{name}-seed0"]["analysis"]["singular_values"].items():
            largest, ranks, norm = rows[f"{name}, {path}"]
            assert ((largest, ranks) == (f"{values[0]:.4f}", rank)
                    and float(norm) == pytest.approx(np.linalg.norm(values), abs=1e-4))
    for axes, seam in zip(drawn["spectra"].axes, ("attn.q", "attn.v")):
        assert (axes.get_title(loc="left"), axes.get_xscale(), axes.get_yscale()) == (seam, "log", "log")
        thick = [line.get_xydata() for line in axes.lines if line.get_linewidth() > 2]
        for line, name in zip(thick, ("full", "lora")):
            layers = [v for path, v in runs[f"{name}-seed0"]["analysis"]["singular_values"].items() if path.endswith(seam)]
            means = np.exp(np.log(layers).mean(axis=0))
            assert (line[:, 1] == pytest.approx(means[line[:, 0].astype(int) - 1])
                    and line[-1, 0] == (384 if name == "full" else 8))


def test_sweeps_show_each_size_with_its_score(examples, drawn):
    results, runs = examples.everything(FEW)
    page = Page(report_html(results, runs))
    (table,) = [table for table in page.tables if table[0] == ["method", "trained parameters", "accuracy", "standard deviation"]]
    rows = {row[0]: row[1:] for row in table[1:]}
    word = {"rank": "rank", "num_virtual_tokens": "virtual tokens", "bottleneck": "width of the bottleneck"}
    assert len(rows) == 4 + 3 + 4
    for axes, (key, sizes) in zip(drawn["sweeps"].axes, results["sweeps"].items()):
        method, option = key.split(".")
        own = [row for row in results["rows"] if row["method"] == method and row["settings"]]
        for row in own:
            assert rows[f"{method}, {word[option]} {row['settings'][option]}"] == [
                f"{row['trainable']:,}", f"{row['score']:.4f}", f"{row['score_std']:.4f}"]
        assert axes.get_title(loc="left") == method and axes.get_xlabel() == word[option]
        assert axes.lines[0].get_xydata().tolist() == [[size, row["score"]] for size, row in zip(sizes, own)]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(size) for size in sizes]


def test_score_against_parameters_has_a_log_axis_and_the_front(examples, drawn):
    results = examples.basic(examples.NAMES)
    page = Page(report_html(results, {}))
    (axes,) = drawn["tradeoff"].axes
    rows = results["rows"][1:]
    on = pareto([(row["trainable"], row["score"]) for row in rows])
    front = sorted((row["trainable"], row["score"]) for row, is_on in zip(rows, on) if is_on)
    assert axes.get_xscale() == "log" and 1 < len(front) < len(rows)
    (stairs,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert stairs.get_xydata()[:-1].tolist() == [list(point) for point in front] and stairs.get_xydata()[-1, 1] == front[-1][1]
    marks = [line for line in axes.lines if line.get_marker() in plots.MARKERS]
    filled = {tuple(line.get_xydata()[0]) for line in marks if line.get_markerfacecolor() != svg.PAPER}
    assert {tuple(line.get_xydata()[0]) for line in marks} == {(row["trainable"], row["score"]) for row in rows}
    assert filled == set(front)
    told = [row[0] for row in table_headed(page, "method", "trained parameters", "accuracy", "standard deviation", "Pareto front")
            if row[-1] == "yes"]
    assert told == [row["label"] for row, is_on in zip(rows, on) if is_on]


def test_every_method_has_its_formula_below_the_table(examples):
    results = examples.basic((*examples.NAMES,))
    for row in results["rows"][1:]:
        row["formula"] = f"formula of {row['method']}"
    told = {row[0]: row[1:]
            for row in table_headed(Page(report_html(results, {})), "method", "parameters without the head, by formula")}
    assert list(told) == [row["label"] for row in results["rows"][1:]]
    for row in results["rows"][1:]:
        assert told[row["label"]] == [row["formula"], f"{row['trainable_without_head']:,}"]
    results["rows"][1]["formula"] = ""
    assert "full" not in report_html(results, {}).split("The formulas")[1].split("</details>")[0]


def test_measurements_beside_the_four_are_of_the_sizes_planned(examples):
    """Of a sweep the row whose rank is the planned one, else none; other settings must be the planned ones too."""
    results, runs = examples.everything(FEW, swept=False)
    rng = np.random.default_rng(5)
    others = [row for row in results["rows"] if row["method"] != "lora"]

    def cells(*variants):
        rows = [examples.row("lora", rng, label=f"lora {i}", settings=each, score=0.5 + 0.01 * i)
                for i, each in enumerate(variants)]
        (view,) = report_facts.views({**results, "rows": others + rows}, runs)
        return {row[0]: row[9:] for row in table_headed(Page(report_plan.four(view).html()), "method", "order")}

    ranks = [{"rank": rank} for rank in (1, 2, 4, 8, 16)]
    assert cells(*ranks)["LoRA"][0].startswith("0.5300 ±")
    assert cells(*ranks[:3])["LoRA"] == ["–", "–", "–"] and cells(*ranks[:3])["prefix"][0] != "–"
    assert cells({"rank": 8, "targets": "q"}, {"rank": 8, "targets": "attn.q,attn.v"})["LoRA"][0].startswith("0.5100 ±")
    assert cells({"lr": 0.5}, {"lr": 0.001})["LoRA"][0].startswith("0.5000 ±")  # which the plan has nothing to say of


# ---- drawings --------------------------------------------------------------------------------------------------


def test_every_drawing_has_words_and_a_table(full):
    page = Page(full[2])
    assert len(page.svgs) == len(FIGURES)
    for drawing in page.svgs:
        assert drawing["role"] == "img"
        assert drawing["title"] and len(drawing["aria-label"]) > 30 and drawing["desc"] == drawing["aria-label"]
        assert re.search(r"\d", drawing["aria-label"])
    assert full[2].count("<details>") == len(FIGURES)
    assert full[2].count("<figcaption>") == len(FIGURES)


def test_ids_are_unique_and_every_reference_finds_its_own(full):
    page = Page(full[2])
    assert len(set(page.ids)) == len(page.ids)
    referred = [value[1:] for _, name, value in page.attributes if name == "href"]
    referred += [name for _, _, value in page.attributes for name in re.findall(r"url\(#([^)]*)\)", value or "")]
    assert set(referred) <= set(page.ids)


def test_drawings_follow_the_scheme_of_the_page(full):
    drawings = re.findall(r"<svg.*?</svg>", full[2], re.S)
    for drawing in drawings:
        assert not re.search(r"#[0-9a-fA-F]{6}", drawing)
        assert "var(--ink)" in drawing or "var(--soft)" in drawing
        assert "font-family" not in drawing
        ElementTree.fromstring(drawing)  # XML as well
    used = set(re.findall(r"var\((--\w+)\)", full[2]))
    light, dark = report_page.STYLE.split("prefers-color-scheme: dark")
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def luminance(colour):
    """The relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_colour_can_be_read_on_its_paper(scheme):
    part = report_page.STYLE.split("@media (prefers-color-scheme: dark)")[scheme]
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", part))
    paper = luminance(colours["--paper"])
    for name in ("--ink", "--soft", *(f"--c{i}" for i in range(7))):
        bright, dim = max(paper, luminance(colours[name])), min(paper, luminance(colours[name]))
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, name


def test_names_do_not_cover_each_other_or_a_mark():
    rng = np.random.default_rng(0)
    with svg.drawing(500) as figure:
        axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
        spots = [(5 + float(rng.normal(0, 0.3)), 5 + float(rng.normal(0, 1))) for _ in range(22)]
        boxes = plots.name_points(axes, spots, [f"method number {i}" for i in range(22)], svg.freeze(figure))
        marks = axes.transData.transform(spots)
    for i, a in enumerate(boxes):
        assert all(plots.overlap(a, b) == 0 for b in boxes[:i])
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in marks)


def test_ticks_of_a_log_axis_are_plain():
    with svg.drawing(200) as figure:
        axes = figure.add_subplot(xscale="log")
        axes.plot([500, 2e7], [0, 1])
        plots.plain_log_axis(axes.xaxis, 500, 2e7)
        labels = [axes.xaxis.get_major_formatter()(t) for t in axes.xaxis.get_majorticklocs()]
    assert labels == ["1k", "10k", "100k", "1M", "10M"]
    assert [plots.si(v) for v in (770, 999.9, 74_498, 22_566_146)] == ["770", "1k", "74.5k", "22.6M"]


def test_a_long_name_keeps_both_ends():
    assert plots.cut("a" * 40 + "=1").endswith("=1") and len(plots.cut("a" * 40 + "=1")) <= plots.LONGEST


def test_a_drawing_has_a_name_that_can_begin_an_id():
    with svg.drawing(100) as figure, pytest.raises(ValueError, match="name: expected lower-case letters"):
        svg.to_svg(figure, "Not a name", "t", "d")


# ---- the file --------------------------------------------------------------------------------------------------


def test_nothing_is_fetched(full):
    page = full[2]
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert not re.search(r"\bsrc\s*=|url\((?!#)|<link|<iframe|<object|fetch\(", page)


def test_what_users_name_is_escaped_everywhere(examples):
    results, runs = examples.everything(FEW)
    results["title"] = NASTY
    for row in results["rows"]:
        row["task"] = NASTY
        row["label"] = row["label"].replace("lora", f"lora {NASTY}")
    for key in ("tuning", "failed"):
        for each in results[key]:
            each.update(label=NASTY, task=NASTY, reason=NASTY)
    page = report_html(results, runs)
    assert page.count("<script>") == 1 and "alert('x')<" not in page
    assert NASTY in Page(page).words
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)


def test_names_that_look_like_svg_are_left_alone(examples):
    results = examples.basic()
    results["rows"][1]["label"] = ' id="q" #010101'
    page = Page(report_html(results, {}))
    assert any(' id="q" #010101' in text for text in page.svgs[0]["text"])


def test_the_same_results_give_the_same_bytes(examples, tmp_path):
    results, runs = examples.everything(FEW)
    before = copy.deepcopy((results, runs))
    first = write_report(results, tmp_path / "a", runs).read_bytes()
    assert write_report(json.loads(json.dumps(results)), tmp_path / "b", runs).read_bytes() == first
    assert (results, runs) == before


def test_settings_of_matplotlib_are_neither_used_nor_changed(examples):
    import matplotlib

    results = examples.basic()
    first = report_html(results, {})
    with matplotlib.rc_context({"font.size": 40, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert report_html(results, {}) == first
        assert matplotlib.rcParams["font.size"] == 40


def test_the_file_is_small(full):
    assert len(full[2].encode()) < 1.5e6


def test_runs_are_read_from_the_folder(examples, tmp_path):
    results, runs = examples.everything(FEW)
    for name, parts in runs.items():
        (tmp_path / name).mkdir(parents=True)
        for what, value in parts.items():
            (tmp_path / name / f"{what}.json").write_text(json.dumps(value))
    path = write_report(results, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == report_html(results, runs)
    (tmp_path / "lora-seed0" / "result.json").unlink()
    write_report(results, tmp_path)


def test_the_first_drawing_is_a_file_of_its_own_too(examples, tmp_path):
    """It is XML by itself, with a size, words for who cannot see it, and a value for each colour that it names."""
    results, runs = examples.basic(), {}
    write_report(results, tmp_path, runs)
    text = (tmp_path / "score.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["viewBox"] and root.attrib["aria-label"]
    named = set(re.findall(r"var\((--\w+)\)", text))
    assert {"--paper", "--ink"} <= named and all(text.count(f"{name}: #") == 2 for name in named)
    body = text[text.index("</style>"):].split("<title>", 1)[1]
    assert body[:200] in report_html(results, runs)
    write_report(results, tmp_path, runs)
    assert (tmp_path / "score.svg").read_text(encoding="utf-8") == text


def test_one_method_makes_no_drawing(examples, tmp_path):
    results = examples.basic()
    results["rows"] = [row for row in results["rows"] if row["method"] in ("base", "lora")]
    write_report(results, tmp_path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, minipeft.compare.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 3))
def test_any_scores_make_a_page(seed, count, seeds):
    from minipeft.methods import METHODS

    rng = np.random.default_rng(seed)
    rows = [{"method": str(name), "seeds": seeds, "metric": "accuracy", "split": "dev", "score": float(rng.choice([0, 0.5, 1])),
             "score_std": float(rng.choice([0, 0.1])), "others": {}, "lr": 0.1,
             "trainable": int(rng.integers(0, 10**6) * rng.integers(2)), "trainable_without_head": 0, "total": 10**7,
             "step_ms": float(rng.choice([0, 3.5])), "peak_mb": 0.0, "size_mb": 0.0, "seconds": 0.0}
            for name in rng.choice(list(METHODS), count, replace=False)]
    page = Page(report_html({"rows": rows}, {}))
    assert page.tables and all(row["method"] in page.words for row in rows)


def test_what_trains_nothing_is_a_line_and_not_a_mark_at_one_parameter(examples):
    results = examples.basic(["lora", "full"])
    asked = {**results["rows"][-1], "label": "zero_shot", "method": "zero_shot", "trainable": 0, "trainable_without_head": 0,
             "share": 0.0, "lr": None, "score": 0.6}
    results["rows"].append(asked)
    page = Page(report_html(results, {}))
    drawing = next(svg for svg in page.svgs if "trained parameters" in svg["title"])
    assert "zero_shot" in "".join(drawing["text"]) and "zero_shot (0, 0.6000)" in drawing["desc"]
    assert not {"1", "10", "100"} & {text.strip() for text in drawing["text"]}
    row = next(row for row in page.tables[0] if row[0].startswith("zero_shot"))
    assert row[page.tables[0][0].index("learning\nrate")].strip() == "–"
    results["rows"] = [row for row in results["rows"] if row["method"] in ("base", "zero_shot")]
    assert Page(report_html(results, {})).headings == ["table"]


def test_ties_share_the_front():
    assert report_facts.pareto([(1, 0.5), (1, 0.5), (2, 0.5)]) == [True, True, False]


def test_plans_are_made_from_what_the_runs_were_asked_for(examples, tmp_path):
    from dataclasses import asdict

    from minipeft.compare.run import Run

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(examples.CONFIG))
    results, runs = examples.everything(FEW, swept=False)
    given, four = results.pop("plan"), results.pop("four")
    for row in results["rows"][1:]:
        for name in row["runs"]:
            runs[name]["run"] = asdict(Run(str(model), "data", row["method"], pooling="mean"))
    page = Page(report_html(results, runs))
    assert page.headings[-3:] == ["paper", "four", "failed"]
    paper = next(table for table in page.tables if "parameters,\nplanned" in table[0])
    assert {row[0]: row[1] for row in paper[1:]} == {name: f"{given[name]['trainable']:,}" for name in FEW}
    assert all(row[1] == row[2] for row in paper[1:])
    classic = next(table for table in page.tables if "usual\nbound" in table[0])
    assert [row[4] for row in classic[1:]] == [f"{line['count']:,}" for line in four]
    for run in runs.values():  # with batches a quarter as long a step is planned to take about a quarter of the time
        run["result"]["batch_length"] = 31.7
    shorter = next(table for table in Page(report_html(results, runs)).tables if "parameters,\nplanned" in table[0])
    planned = [(float(long[5].split()[0]), float(short[5].split()[0])) for long, short in zip(paper[1:], shorter[1:])]
    assert paper[0][5] == "step,\nplanned" and all(0.2 < short / long < 0.3 for long, short in planned)
    (model / "config.json").unlink()
    assert "paper" not in Page(report_html(results, runs)).headings


# ---- a comparison that was really run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    """The folder of a comparison on the small world: one seed, LoRA with one rank after another."""
    out = tmp_path_factory.mktemp("compared") / "runs"
    line = (f"compare --model {world}/bert --data {world}/data --methods full,prefix,early_exit --seeds 1 --epochs 1 --jobs 2 "
            f"--out {out}")
    assert cli.main([*line.split(), "--num-virtual-tokens", "3", "--sweep", "lora.rank=2,8"]) == 0
    return out


def test_the_report_of_a_comparison_shows_what_its_runs_found(compared):
    page = Page((compared / "report.html").read_text(encoding="utf-8"))
    assert page.headings == ["table", "tradeoff", "learning", "costs", "sweeps", "exits", "spectra", "prefix", "paper", "four"]
    results = json.loads((compared / "results.json").read_text())
    analysis = {row["label"]: json.loads((compared / row["runs"][0] / "analysis.json").read_text()) for row in results["rows"]}

    early = analysis["early_exit"]["exits"]
    timed = table_headed(page, "rule, looseness", "accuracy")
    assert [row[:2] for row in timed] == [[f"{p['rule']}, {p['looseness']:g}", f"{p['accuracy']:.4f}"] for p in early["timed"]]
    found = {(rule, p["looseness"]): p["leaving"] for rule, line in early["curves"].items() for p in line}
    leaving = {row[0]: row[1:] for row in table_headed(page, "rule, looseness", "1", "2")}
    assert len(leaving) == len(timed)
    assert all(found[p["rule"], p["looseness"]] == shares(leaving[f"{p['rule']}, {p['looseness']:g}"]) for p in early["timed"])

    paid = analysis["prefix"]["prefix_attention"]
    rows = table_headed(page, "layer", "head 1", "head 2")
    assert list(paid) == ["blocks.0.attn.core", "blocks.1.attn.core"] and [row[0] for row in rows] == ["1", "2"]
    assert all(line == shares(row[1:]) for line, row in zip(paid.values(), rows))

    values = {label: analysis[label]["singular_values"] for label in ("full", "lora rank=2", "lora rank=8")}
    spectra = {row[0]: row[1:] for row in table_headed(page, "method, map", "largest")}
    assert set(spectra) == {f"{label}, {path}" for label, maps in values.items() for path in maps}
    assert len(spectra) == 3 * 4 and {row[1] for name, row in spectra.items() if name.startswith("lora rank=2")} == {"2"}
    assert all(spectra[f"{label}, {path}"][0] == report_facts.number(v[0])
               for label, maps in values.items() for path, v in maps.items())


def test_the_plan_of_a_comparison_counts_what_was_trained(compared):
    """Early exit too; and LoRA's measurements beside the four are those of the rank planned."""
    page = Page((compared / "report.html").read_text(encoding="utf-8"))
    rows = {row["label"]: row for row in json.loads((compared / "results.json").read_text())["rows"]}
    paper = {row[0]: row[1:] for row in table_headed(page, "method", "parameters,\nplanned")}
    assert set(paper) == {"full", "prefix", "early_exit", "lora rank=2", "lora rank=8"}
    assert all(cells[:2] == [f"{rows[label]['trainable']:,}"] * 2 for label, cells in paper.items())
    four = {row[0]: row for row in table_headed(page, "method", "order")}
    assert four["LoRA"][3] == "r = 8" and four["LoRA"][9] == f"{rows['lora rank=8']['score']:.4f}"
    assert four["prefix"][3] == "n = 3" and four["prefix"][9] == f"{rows['prefix']['score']:.4f}"
    assert four["adapter"][9:] == ["–", "–", "–"]
    told = {row[0]: row[1] for row in table_headed(page, "method", "parameters without the head, by formula")}
    assert told["early_exit"].startswith("N, every parameter, and (L - 1) heads = ") and told["early_exit"].endswith("+ 1 x 34")
    assert told["lora rank=2"] == "4 x [R (D_in + D_out) = 2 (16 + 16)]"
