"""Every compiled kernel beside its NumPy definition and PyTorch's operation, at a small and a large size."""

import argparse
import statistics
import sys

from . import common

EXAMPLE = """examples:
  python -m benchmarks.kernels --json kernels.json
  python -m benchmarks.kernels --only softmax,gelu
"""
SHAPES = {"small": (1024, 64), "large": (512, 3072)}              # rows and width of the elementwise and row-wise kernels
ATTENTION = {"small": (4, 4, 32, 32), "large": (4, 12, 128, 128)}  # (B, H, T, S) of the attention weights
ROWS_OF_TABLE = 8192                                              # of the embedding


# ---- cases: for each kernel its arguments, and the same operation in PyTorch ------------------------------------
#
# A case is a function (size, rng) -> (arguments of the kernel, function without arguments that runs PyTorch's operation,
# or None). PyTorch's backward is timed as autograd runs it, for the one input whose gradient the kernel gives.


def _backward(output, wanted, gradient):
    """A call of autograd's backward pass from ``output`` to the one tensor ``wanted``."""
    import torch

    return lambda: torch.autograd.grad(output, wanted, gradient, retain_graph=True)


def _draw(rng, shape):
    """An array of normal float32 numbers, and the same as a PyTorch tensor of its own."""
    import numpy as np
    import torch

    array = rng.standard_normal(shape, np.float32)
    return array, torch.from_numpy(array.copy())


def activation_case(name):
    def case(size, rng):
        import torch
        from torch.nn import functional as F

        calls = {"erf": torch.erf, "gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
                 "silu": F.silu, "relu": F.relu}
        call = calls[name.removesuffix("_backward")]
        x, tx = _draw(rng, SHAPES[size])
        if not name.endswith("_backward"):
            return (x,), lambda: call(tx)
        g, tg = _draw(rng, SHAPES[size])
        return (x, g), _backward(call(tx.requires_grad_()), tx, tg)

    return case


def norm_case(size, rng):
    from torch.nn import functional as F

    (x, tx), (gain, tgain), (bias, tbias) = (_draw(rng, s) for s in (SHAPES[size], SHAPES[size][1:], SHAPES[size][1:]))
    return (x, gain, bias, 1e-5, True), lambda: F.layer_norm(tx, tx.shape[1:], tgain, tbias)


def norm_backward_input_case(size, rng):
    from torch.nn import functional as F

    (x, tx), (gain, tgain), (g, tg) = (_draw(rng, s) for s in (SHAPES[size], SHAPES[size][1:], SHAPES[size]))
    return (x, gain, g, 1e-5, True), _backward(F.layer_norm(tx.requires_grad_(), tx.shape[1:], tgain), tx, tg)


def norm_backward_gain_case(size, rng):
    from torch.nn import functional as F

    (x, tx), (_, tgain), (g, tg) = (_draw(rng, s) for s in (SHAPES[size], SHAPES[size][1:], SHAPES[size]))
    return (x, g, 1e-5, True), _backward(F.layer_norm(tx, tx.shape[1:], tgain.requires_grad_()), tgain, tg)


def attention_softmax_case(size, rng):
    import torch

    x, tx = _draw(rng, ATTENTION[size])
    hidden = torch.ones(ATTENTION[size][2:], dtype=torch.bool).triu(1)
    return (x, None, None, 0.125, True), lambda: torch.softmax((tx * 0.125).masked_fill(hidden, -torch.inf), -1)


def softmax_backward_case(size, rng):
    import torch

    (_, tx), (g, tg) = _draw(rng, ATTENTION[size]), _draw(rng, ATTENTION[size])
    weights = torch.softmax(tx.requires_grad_(), -1)
    return (weights.detach().numpy(), g, 1.0), _backward(weights, tx, tg)


def cross_entropy_case(backward):
    def case(size, rng):
        import numpy as np
        import torch
        from torch.nn import functional as F

        from minipeft import kernels

        x, tx = _draw(rng, SHAPES[size])
        labels = rng.integers(0, x.shape[1], len(x))
        tlabels = torch.from_numpy(labels)
        if not backward:
            return (x, labels), lambda: F.cross_entropy(tx, tlabels, reduction="none")
        g, tg = np.ones(len(x), np.float32), torch.ones(len(x))
        lse = kernels.cross_entropy(x, labels)[1]
        return (x, labels, lse, g), _backward(F.cross_entropy(tx.requires_grad_(), tlabels, reduction="none"), tx, tg)

    return case


def scatter_add_case(size, rng):
    import torch
    from torch.nn import functional as F

    g, tg = _draw(rng, SHAPES[size])
    ids = rng.integers(0, ROWS_OF_TABLE, len(g))
    table = torch.zeros(ROWS_OF_TABLE, g.shape[1], requires_grad=True)
    return (ids, g, ROWS_OF_TABLE), _backward(F.embedding(torch.from_numpy(ids), table), table, tg)


def adam_step_case(size, rng):
    import numpy as np
    import torch

    (p, tp), (g, tg) = _draw(rng, SHAPES[size]), _draw(rng, SHAPES[size])
    tp.requires_grad_().grad = tg
    optimizer = torch.optim.AdamW([tp], lr=1e-4, fused=True)
    return (p, g, np.zeros_like(p), np.zeros_like(p), 10, 1e-4, 0.9, 0.999, 1e-8, 0.01, 1.0), optimizer.step


CASES = {
    "norm": norm_case, "norm_backward_input": norm_backward_input_case, "norm_backward_gain": norm_backward_gain_case,
    "attention_softmax": attention_softmax_case, "softmax_backward": softmax_backward_case,
    "cross_entropy": cross_entropy_case(False), "cross_entropy_backward": cross_entropy_case(True),
    "scatter_add": scatter_add_case, "adam_step": adam_step_case, "erf": activation_case("erf"),
} | {name: activation_case(name) for base in ("gelu", "gelu_new", "silu", "relu") for name in (base, f"{base}_backward")}


# ---- measuring -------------------------------------------------------------------------------------------------


def measure(name, kernel, size, repeats, seconds):
    """Times of one kernel by turns with its definition and with PyTorch; returns a flat record."""
    import numpy as np

    arguments, theirs = CASES[name](size, np.random.default_rng(0))
    sides = {"compiled": lambda: kernel.compiled(*arguments), "reference": lambda: kernel.reference(*arguments)}
    if theirs is not None:
        sides["torch"] = theirs
    times = common.take_turns(sides, repeats, seconds)
    record = {"kernel": name, "size": size} | {f"{side}_us": 1e6 * statistics.median(t) for side, t in times.items()}
    for other in list(sides)[1:]:
        record[f"ratio_to_{other}"] = common.median_ratio(times["compiled"], times[other])
    return record


def report(records):
    """Print the table, the slowest beside PyTorch first."""
    columns = ["kernel", "size", "compiled us", "NumPy us", "PyTorch us", "/ NumPy", "/ PyTorch", ""]
    text = lambda r, key, digits: f"{r[key]:.{digits}f}" if key in r else "-"
    rows = [[r["kernel"], r["size"], text(r, "compiled_us", 1), text(r, "reference_us", 1), text(r, "torch_us", 1),
             text(r, "ratio_to_reference", 2), text(r, "ratio_to_torch", 2), "slower" if loses(r) else ""] for r in records]
    common.print_table("kernels (ratio: time of the compiled form / time of the other; below 1 it is faster)", columns, rows)


def loses(record):
    """Whether the compiled form is slower than its definition or than PyTorch."""
    return max(record["ratio_to_reference"], record.get("ratio_to_torch", 0)) > 1


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kernels whose names contain one of these words")
    parser.add_argument("--threads", type=int, default=2, help="threads of every pool on both sides (default: 2)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.03, help="shortest length of a turn (default: 0.03)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to this file")
    options = parser.parse_args(argv)
    common.set_threads(options.threads)

    import torch

    from minipeft import kernels

    torch.set_num_threads(options.threads)
    words = options.only.split(",")
    chosen = {name: k for name, k in kernels.REGISTRY.items() if any(word in name for word in words)}
    for name in [name for name in chosen if name not in CASES]:
        print(f"{name}: no case here yet, not timed", file=sys.stderr)
        del chosen[name]
    if not chosen:
        parser.error(f"--only: no kernel matches {options.only!r}; there are {', '.join(kernels.REGISTRY)}")
    records = [measure(name, kernel, size, options.repeats, options.seconds)
               for name, kernel in chosen.items() for size in SHAPES]
    records.sort(key=lambda r: -r.get("ratio_to_torch", 0))
    report(records)
    if options.json:
        common.write_json(options.json, {"conditions": common.conditions(options.threads), "kernels": records})


if __name__ == "__main__":
    with common.one_line("kernels"):
        main()
