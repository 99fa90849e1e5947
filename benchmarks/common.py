"""What both benchmarks share: threads, timing by turns, tables and JSON; nothing here imports NumPy."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time

PAUSE = 0.05  # seconds between two turns: the thread pools of one side spin for a while before they sleep


def set_threads(count):
    """Give every thread pool the same size; call it before NumPy, Numba or PyTorch is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "MINIPEFT_NUM_THREADS"):
        os.environ[name] = str(count)


@contextlib.contextmanager
def one_line(name):
    """What is wrong with what a user gave, or is not installed, as one line, and the end with code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f'{name}: {error.name} is not installed; in the project\'s folder run: pip install ".[peers]"', file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def _turn(step, seconds):
    """Median time in seconds of one call of ``step``, over a turn that lasts at least ``seconds``."""
    time.sleep(PAUSE)
    step()  # wakes the threads and brings the data back into the caches; not counted
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def take_turns(sides, repeats, seconds):
    """Time several functions by turns, A B B A A B ..., so that a change of the machine's speed meets all alike.

    Args:
        sides: {name: function without arguments}.
        repeats: turns of each. seconds: shortest length of a turn.

    Returns:
        {name: [time in seconds for each turn]}; the i-th turns of all sides stood beside each other.
    """
    times = {name: [] for name in sides}
    for i in range(repeats):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(_turn(sides[name], seconds))
    return times


def median_ratio(ours, theirs):
    """Median over the turns of ours / theirs, each divided by its neighbour in time."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def best_time(function, seconds=0.2):
    """Shortest time of a call, over at least ``seconds`` and three calls."""
    function()
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


def conditions(threads):
    """What a reader needs to judge the numbers: kind of machine, versions, threads."""
    import numba
    import numpy
    import torch

    features = numpy.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {"machine": f"{os.cpu_count()}-core {platform.machine()}", "simd": features, "system": platform.system(),
            "python": platform.python_version(), "numpy": numpy.__version__, "numba": numba.__version__,
            "blas": numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"],
            "torch": torch.__version__, "threads": threads}


def study_parser(name, about, example, short="a short form, whose numbers mean nothing"):
    """The command line of a study: where its runs lie, what else to write, and the short form that exercises every part."""
    folder = f"runs/{name.replace('_', '-')}"
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about, epilog=example,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", help=f"folder of what was run, which is not run twice ({folder}; with --fast "
                                                     f"{folder}-fast)")
    parser.add_argument("--fast", action="store_true", help=short)
    parser.add_argument("--json", metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table to FILE")
    return parser


def study_folder(name, args):
    """The folder that a study's arguments ask for."""
    return args.out or f"runs/{name.replace('_', '-')}" + "-fast" * args.fast


def print_table(title, columns, rows):
    """Print rows of texts under columns; with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(text) for text in column) for column in zip(columns, *rows)]
        print(title)
        for row in [columns, *rows]:
            print("  ".join(text.rjust(width) for text, width in zip(row, widths)))
        return
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, sum(len(c) + 4 for c in columns) + 40)).print(table)


def write_json(path, content):
    """Write ``content`` to ``path`` as indented JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
