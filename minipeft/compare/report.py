"""The report: one self-contained page of a comparison, ``report.html``, made of numbers alone; nothing is trained or timed here.

`write_report` takes what a comparison leaves: ``results.json`` and each run's ``result.json`` and ``analysis.json``, whose layout
`comparison` describes. Only ``rows`` have to be there; every section appears where its data is there:

    table, score against parameters, time and memory    rows
    learning curves                                     evaluations and losses of the runs
    score against rank, length, bottleneck              sweeps
    early exit, singular values, attention to prefixes  exits, singular_values, prefix_attention of the analyses
    learning rates tried, runs that failed              tuning, failed
    on paper and measured                               plan: {label: `plan.as_json`}
    four classic methods                                four: [`plan_four.as_json`]

The last two keys may be left out: then the plans are made here, from each run's run.json and the config.json of its model, where
these can still be read. Where there are several tasks, ``plan`` and ``four`` may be {task: the same}.
"""

from pathlib import Path

from ..data import files
from .report_facts import views
from .report_learned import exits, prefix_attention, spectra
from .report_page import alone, page
from .report_plan import four, on_paper, planned
from .report_sections import costs, failures, learning, overview, sweeps, the_table, tradeoff, tuning

REPORT, PICTURE, PARTS = "report.html", "score.svg", ("result", "analysis", "run")
PER_TASK = (the_table, tradeoff, learning, costs, sweeps, tuning, exits, spectra, prefix_attention, on_paper, four)


def write_report(results, folder, runs=None):
    """Write ``report.html`` into ``folder``, and ``score.svg``, its drawing of score against parameters (of several tasks the
    first's); the same results give the same bytes.

    Args:
        results: the content of ``results.json``. folder: where the report goes; it is made if need be.
        runs: {folder of a run as ``results`` names it: {"result", "analysis", "run": content of its result.json, analysis.json
            and run.json}}, None for one that is not there; default: read from ``folder``.

    Returns:
        The report's path.

    Raises:
        ValueError: there are no rows, or a file of a run is not JSON. OSError: the report cannot be written.
    """
    folder = Path(folder)
    runs = read_runs(results, folder) if runs is None else runs
    written = {REPORT: report_html(results, runs)}
    drawn = tradeoff(views(results, runs)[0])
    if drawn is not None:
        written[PICTURE] = alone(drawn.html())
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        with files.atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / REPORT


def read_runs(results, folder):
    """{folder of a run: {"result", "analysis", "run"}} of those that ``results`` names; None for a file that is not there."""
    names = [name for row in results["rows"] for name in row.get("runs") or ()]
    read = lambda path, what: files.read_json(path, what) if path.is_file() else None
    return {name: {what: read(folder / name / f"{what}.json", what) for what in PARTS} for name in names}


def report_html(results, runs):
    """The report as a string; the arguments are those of `write_report`."""
    tasks = views(results, runs) if results.get("rows") else []
    if not tasks:
        raise ValueError("report: expected at least one row of a method in results['rows'], got none; run a comparison first")
    for view in tasks:
        if not view.plan and not view.four:
            view.plan, view.four = planned(view)
    makers = [(overview, tasks)] * (len(tasks) > 1) + [(make, view) for view in tasks for make in PER_TASK]
    makers.append((failures, results.get("failed") or []))
    sections = [section for make, given in makers if (section := make(given)) is not None]
    return page(results.get("title") or "A comparison", summary(results, tasks), sections)


def summary(results, tasks):
    """The line under the title: how much was compared, and how it was scored."""
    rows = [row for view in tasks for row in view.rows]
    labels, seeds = {row.get("label") or row["method"] for row in rows}, sorted({row["seeds"] for row in rows})
    said = [f"{len(labels)} method{'s' * (len(labels) > 1)}"]
    if len(tasks) > 1:
        said.append(f"{len(tasks)} tasks")
    said.append(f"{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seed{'s' * (seeds[-1] != 1)} each")
    if len(tasks) == 1 and rows[0]["split"]:
        said.append(f"scored by {rows[0]['metric']} on {rows[0]['split']}")
    if results.get("threads"):
        said.append(f"{results['threads']} thread{'s' * (results['threads'] != 1)} a run")
    return " · ".join(said)
