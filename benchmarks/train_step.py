"""Time and memory of one training step, ours beside PyTorch eager's, with full fine-tuning and LoRA at four sizes."""

import argparse
import json
import statistics
import subprocess
import sys

from . import common
from .settings import ROWS, matrix_flops

EXAMPLE = """example, about a minute:
  python -m benchmarks.train_step --rows 64,128 --repeats 7 --json step.json
"""
TOLERANCE = 1e-4  # of losses and gradients, relative to the largest entry
MEMORY_STEPS = 5


# ---- agreement -------------------------------------------------------------------------------------------------


def disagreement(ours, theirs):
    """What differs between the two sides' losses and gradients, as a sentence; None where they agree.

    Args:
        ours, theirs: (loss, {path: gradient}).
    """
    import numpy as np

    (loss, gradients), (other_loss, others) = ours, theirs
    if not abs(loss - other_loss) <= TOLERANCE * abs(other_loss):
        return f"the losses differ: ours {loss:.7f}, PyTorch {other_loss:.7f}"
    if gradients.keys() != others.keys():
        return f"only one side trains {sorted(gradients.keys() ^ others.keys())[0]}"
    for path, gradient in gradients.items():
        other = others[path]
        if gradient is None or gradient.shape != other.shape:
            return f"the gradient of {path} is {'missing' if gradient is None else gradient.shape}, PyTorch's is {other.shape}"
        scale = 1.0 if path.endswith("attn.k.bias") else np.abs(other).max()  # a key bias has a gradient of zero
        error = np.abs(gradient - other).max()
        if not error <= TOLERANCE * scale:
            return f"the gradient of {path} differs by {error:.3g}, its largest entry is {scale:.3g}"
    return None


def check(ours, theirs, name):
    """Both sides at the same weights: stop the program unless losses and gradients agree, and the losses of three steps."""
    theirs.load({path: p.data for path, p in ours.parameters().items()})
    problem = disagreement(ours.gradients(), theirs.gradients())
    if problem is None:
        for i in range(3):
            loss, other = ours(), theirs()
            if not abs(loss - other) <= TOLERANCE * abs(other):
                problem = f"the losses differ after {i} steps: ours {loss:.7f}, PyTorch {other:.7f}"
                break
    if problem is not None:
        sys.exit(f"train_step: {name}: {problem}")


# ---- speed -----------------------------------------------------------------------------------------------------


def token_ids(row):
    """A batch (B, T) of random token ids, always the same."""
    import numpy as np

    return np.random.default_rng(1).integers(0, row.vocabulary, (row.batch, row.length))


def matrix_rate(shapes):
    """GFLOP/s of the fastest float32 ``numpy.matmul`` among these shapes (N, D_in, D_out)."""
    import numpy as np

    best = 0.0
    for n, d_in, d_out in shapes:
        a, b, out = np.ones((n, d_in), np.float32), np.ones((d_in, d_out), np.float32), np.empty((n, d_out), np.float32)
        best = max(best, 2 * n * d_in * d_out / common.best_time(lambda: np.matmul(a, b, out=out)) / 1e9)
    return best


def measure_speed(row, method, threads, repeats, seconds):
    """Times of both sides by turns; returns a flat record."""
    from .our_step import OurStep
    from .torch_step import TorchStep

    ids, n, d = token_ids(row), row.batch * row.length, row.width
    ours, theirs = OurStep(row, method, ids), TorchStep(row, method, ids, threads)
    check(ours, theirs, f"{method}, d = {d}")
    rate = matrix_rate([(1024, 1024, 1024), (n, d, d), (n, d, 4 * d), (n, 4 * d, d), (n, d, row.vocabulary)])
    times = common.take_turns({"ours": ours, "torch": theirs}, repeats, seconds)
    milliseconds = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    gflops = matrix_flops(row, method) / milliseconds["ours"] / 1e6
    return {"d": d, "layers": row.layers, "length": row.length, "batch": row.batch, "vocabulary": row.vocabulary,
            "method": method, "ours_ms": milliseconds["ours"], "torch_ms": milliseconds["torch"],
            "ratio": common.median_ratio(times["ours"], times["torch"]),
            "best_ratio": min(times["ours"]) / min(times["torch"]),
            "matrix_gflop": matrix_flops(row, method) / 1e9, "ours_gflops": gflops, "matmul_gflops": rate,
            "percent_of_matmul": 100 * gflops / rate, "turns_ms": {k: [1e3 * x for x in t] for k, t in times.items()}}


# ---- memory ----------------------------------------------------------------------------------------------------


def high_water_mark():
    """Largest resident memory this process has had, in bytes.

    Linux says it in /proc too, and there it starts afresh with the program: getrusage would also count the process
    that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rise_of_one_side(side, row, method, threads):
    """In a process of its own: bytes by which a few steps raise the high-water mark above where the imports left it."""
    if side == "ours":
        from .our_step import OurStep
        build = lambda ids: OurStep(row, method, ids)
    else:
        from .torch_step import TorchStep
        build = lambda ids: TorchStep(row, method, ids, threads)
    ids = token_ids(row)
    before = high_water_mark()
    step = build(ids)
    for _ in range(MEMORY_STEPS):
        step()
    return high_water_mark() - before


def measure_memory(row, method, threads):
    """Start one process for each side; returns a flat record."""
    rises = {}
    for side in ("ours", "torch"):
        command = [sys.executable, "-m", "benchmarks.train_step", "--measure-memory", side, "--rows", str(row.width),
                   "--methods", method, "--threads", str(threads)]
        rises[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {"ours_mb": rises["ours"] / 1e6, "torch_mb": rises["torch"] / 1e6, "memory_ratio": rises["ours"] / rises["torch"]}


# ---- command ---------------------------------------------------------------------------------------------------


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="64,128,384,768", help="widths of the models, a choice of 64,128,384,768")
    parser.add_argument("--methods", default="full,lora", help="a choice of full,lora")
    parser.add_argument("--threads", type=int, default=2, help="threads of every pool on both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each side (default: 15)")
    parser.add_argument("--seconds", type=float, default=0.2, help="shortest length of a turn (default: 0.2)")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure peak memory")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to this file")
    parser.add_argument("--measure-memory", choices=("ours", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        options.rows = [ROWS[int(width)] for width in options.rows.split(",")]
    except (KeyError, ValueError):
        parser.error(f"--rows: expected some of {','.join(map(str, ROWS))}, got {options.rows!r}")
    options.methods = options.methods.split(",")
    if not set(options.methods) <= {"full", "lora"}:
        parser.error(f"--methods: expected full, lora or both, got {','.join(options.methods)!r}")
    return options


def main(argv=None):
    options = arguments(argv)
    common.set_threads(options.threads)
    if options.measure_memory:
        print(rise_of_one_side(options.measure_memory, options.rows[0], options.methods[0], options.threads))
        return
    records = []
    for row in options.rows:
        for method in options.methods:
            record = measure_speed(row, method, options.threads, options.repeats, options.seconds)
            if options.memory:
                record |= measure_memory(row, method, options.threads)
            records.append(record)
            print(f"d={row.width} {method}: ratio {record['ratio']:.2f}", file=sys.stderr)
    report(records, options.threads)
    if options.json:
        common.write_json(options.json, {"conditions": common.conditions(options.threads), "rows": records})


def report(records, threads):
    """Print the table."""
    columns = ["d  L  T  batch  method", "ours ms", "PyTorch ms", "ratio", "GFLOP/s", "matmul", "%"]
    with_memory = "memory_ratio" in records[0]
    columns += ["ours MB", "PyTorch MB", "ratio"] if with_memory else []
    rows = []
    for r in records:
        rows.append([f"{r['d']}  {r['layers']}  {r['length']}  {r['batch']}  {r['method']}", f"{r['ours_ms']:.2f}",
                     f"{r['torch_ms']:.2f}", f"{r['ratio']:.2f}", f"{r['ours_gflops']:.0f}", f"{r['matmul_gflops']:.0f}",
                     f"{r['percent_of_matmul']:.0f}"])
        if with_memory:
            rows[-1] += [f"{r['ours_mb']:.0f}", f"{r['torch_mb']:.0f}", f"{r['memory_ratio']:.2f}"]
    common.print_table(f"one training step, {threads} threads (ratio: ours / PyTorch eager)", columns, rows)


if __name__ == "__main__":
    with common.one_line("train_step"):
        main()
