"""What early exit saves on an encoder: accuracy and measured time for each rule, beside the time that would be ideal."""

import argparse
import sys
from pathlib import Path

from . import common

EXAMPLE = """example (the first run trains for two minutes; with what it kept, another takes about five):
  python -m benchmarks.early_exit --model ../shared/models/minilm --data ../shared/data/sst2 --plot benchmarks/early_exit.svg
"""
EXAMPLES, EPOCHS, BATCH, LONGEST = 2000, 3, 16, 128  # training sentences, how often, in a batch, most tokens in one
MODEL_LR, EXITS_FACTOR, EXITS_LR = 5e-5, 20, 1e-2    # the model's rate; the exits' beside it, and by themselves
TARGETS = (1.5, 2.0, 3.0, 4.0)                       # mean exit layers to search a looseness for
FULL, EMBEDDING, NOBODY = "full model", "embedding", "nobody leaves"
COLOURS = {"entropy": "#0072b2", "margin": "#e69f00", "patience": "#009e73"}
MARKERS = {"entropy": "o", "margin": "s", "patience": "^"}
STYLES = {"entropy": ("-", 9), "margin": ("-", 4), "patience": (":", 6)}  # with two classes, entropy and margin coincide


# ---- the model and its exits -----------------------------------------------------------------------------------


def make_work(args):
    """The sentences and their classes."""
    from minipeft.data import Tokenizer, read_dataset
    from minipeft.training import Classification

    return Classification(Tokenizer.from_folder(args.model), read_dataset(args.data), LONGEST, BATCH, train_limit=EXAMPLES)


def trained(args, work):
    """The `EarlyExit` that ``args.out`` holds; where it holds none, one is trained and written there."""
    from minipeft.interop import load_pretrained
    from minipeft.methods import EarlyExit

    folder = Path(args.out or f"runs/early_exit-{args.objective}")
    if not (folder / "exits.json").is_file():
        train(args, work, folder)
    print(f"model and exits: {folder}", file=sys.stderr)
    exits = EarlyExit(load_pretrained(folder, task="classify").eval())
    exits.load_exits(folder)
    return exits


def train(args, work, folder):
    """Train all parameters of the model with its exits (joint), or first the model and then the exits; write both."""
    from minipeft.interop import load_pretrained, save_pretrained
    from minipeft.methods import EarlyExit
    from minipeft.methods.exit_training import OBJECTIVES
    from minipeft.training import Settings, fit
    from minipeft.training.display import ProgressBar

    model = load_pretrained(args.model, task="classify", labels=work.labels, pooling="mean")
    exits = EarlyExit(model, OBJECTIVES[args.objective]())
    settings = Settings(lr=MODEL_LR, epochs=EPOCHS, batch_size=work.batch_size)
    if exits.objective.trains_model:
        faster = lambda path: EXITS_FACTOR if path.startswith("exits.") else 1.0
        fit(exits, exits.trainable(), work, settings, display=ProgressBar("model and exits"), lr_scale=faster)
    else:
        fit(model, dict(model.named_parameters()), work, settings, display=ProgressBar("model"))
        settings.lr = EXITS_LR
        fit(exits, exits.trainable(), work, settings, display=ProgressBar("exits"))
    save_pretrained(model, folder)
    exits.save_exits(folder)


# ---- who would leave where -------------------------------------------------------------------------------------


def look(exits, work, size):
    """What every exit says of every sentence of dev (L, N, C), its class (N,), and the length (N,) its batch is padded to."""
    import numpy as np

    from minipeft.autograd import no_grad
    from minipeft.data import make_batches

    targets = work.targets["dev"]
    out, lengths = np.zeros((len(exits.heads()), len(targets), len(work.labels)), np.float32), np.zeros(len(targets))
    with no_grad():
        for indices in make_batches(work.encodings["dev"], size):
            batch = work.collate(indices, "dev")
            logits = exits(batch.input_ids, batch.attention_mask, batch.token_type_ids).exit_logits
            out[:, indices] = np.stack([z.data for z in logits])  # (L, B, C)
            lengths[indices] = batch.input_ids.shape[1]
    return out, targets, lengths


def layers_under(rule, logits):
    """The exit (N,), from 1, at which each example leaves by ``rule``, of all exits' logits (L, N, C)."""
    import numpy as np

    exits, memory = len(logits), None
    layers = np.full(logits.shape[1], exits)
    for number, z in enumerate(logits[:-1], 1):
        leaves, memory = rule(z, memory, exits)
        layers[leaves & (layers == exits)] = number
    return layers


def search(kind, target, logits):
    """The looseness of a rule whose mean exit layer is nearest to ``target``: by halving, as a larger one never raises it."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if layers_under(kind(middle), logits).mean() > target else (low, middle)
    return min((round(low, 4), round(high, 4)), key=lambda s: abs(layers_under(kind(s), logits).mean() - target))


def point(name, looseness, logits, targets, lengths):
    """What a rule at a looseness does on dev: {"rule", "looseness", "accuracy", "mean_layer", "leaving", "ideal", "by_tokens"}.

    ``by_tokens`` is the ideal with each sentence counted by its tokens, padding included: ``lengths`` (N,).
    """
    import numpy as np

    from minipeft.methods import RULES
    from minipeft.methods.exit_rules import ideal_cost

    layers = layers_under(RULES[name](looseness), logits)
    chosen = logits[layers - 1, np.arange(len(layers))].argmax(axis=1)  # (N,)
    return {"rule": name, "looseness": looseness, "accuracy": float((chosen == targets).mean()),
            "mean_layer": float(layers.mean()), "leaving": [float((layers == i + 1).mean()) for i in range(len(logits))],
            "ideal": ideal_cost(layers, len(logits)),
            "by_tokens": float((layers * lengths).sum() / (len(logits) * lengths.sum()))}


def points_of(name, logits, *more):
    """The points to time, one for each target; patience takes a few values only, so that the nearest must do."""
    from minipeft.methods import RULES

    kind, exits = RULES[name], len(logits)
    loosenesses = [search(kind, target, logits) for target in TARGETS]
    if name == "patience":
        few = [round(1 - (t - 0.5) / exits, 4) for t in range(1, exits + 1)]  # t agreements in a row
        reached = {s: layers_under(kind(s), logits).mean() for s in few}
        loosenesses = [min(few, key=lambda s: abs(reached[s] - target)) for target in TARGETS]
    return [point(name, s, logits, *more) for s in dict.fromkeys(loosenesses)]


def curve(name, logits, *more):
    """[(ideal, accuracy)] over many loosenesses, the least loose first."""
    found = [point(name, i / 400, logits, *more) for i in range(401)]
    return sorted({(p["ideal"], p["accuracy"]) for p in found}, reverse=True)


# ---- timing ----------------------------------------------------------------------------------------------------


def make_sides(exits, points):
    """{name: function of a batch}: the full model, its embedding alone, the walk that nobody leaves, and every point."""
    from minipeft.autograd import no_grad
    from minipeft.methods import RULES

    def alone(run):
        with no_grad():
            return run()

    walk = lambda rule: lambda *batch: exits.predict(rule, *batch)
    return {FULL: lambda *batch: alone(lambda: exits.model(*batch).logits),
            EMBEDDING: lambda *batch: alone(lambda: exits.model.enter(*batch)),
            NOBODY: walk(RULES["entropy"](0.0)),
            **{label(p): walk(RULES[p["rule"]](p["looseness"])) for p in points}}


def label(p):
    """The name of a point's side."""
    return f"{p['rule']} {p['looseness']}"


def shares_of_full(sides, groups, repeats, progress):
    """{side: its time for all batches divided by the full model's}, and the full model's milliseconds.

    Each of the groups, lists of batches, is run by all sides by turns, and the medians of the groups are added up.
    """
    import statistics

    total = dict.fromkeys(sides, 0.0)
    for number, group in enumerate(groups, 1):
        runs = {name: lambda run=run: [run(*batch) for batch in group] for name, run in sides.items()}
        for name, times in common.take_turns(runs, repeats, 0).items():
            total[name] += statistics.median(times)
        print(f"{progress}: {number} of {len(groups)} groups timed", file=sys.stderr)
    return {name: seconds / total[FULL] for name, seconds in total.items()}, 1e3 * total[FULL]


def batches_of(work, size, step=1):
    """The batches of dev as `Classification.predict` makes them, sentences of nearly one length; every ``step``-th of them."""
    from minipeft.data import make_batches

    batches = [work.collate(indices, "dev") for indices in make_batches(work.encodings["dev"], size)[::step]]
    return [(b.input_ids, b.attention_mask, b.token_type_ids) for b in batches]


def time_points(args, exits, work, points):
    """Add to each point its share of the full model's time, in batches and one by one; returns what else was timed."""
    sides, out = make_sides(exits, points), {}
    for name, batches in (("batch", batches_of(work, args.batch)), ("single", batches_of(work, 1, step=8))):
        size = args.batch if name == "batch" else 1
        many = -(-32 // size)  # in a group, so that a turn lasts long enough to be timed and its neighbours are near
        groups = [batches[i:i + many] for i in range(0, len(batches), many)]
        shares, full = shares_of_full(sides, groups, args.repeats, f"batch {size}")
        out[name] = {"size": size, "sentences": sum(len(batch[0]) for batch in batches), "full_ms": full,
                     "embedding": shares[EMBEDDING], "nobody_leaves": shares[NOBODY]}
        for p in points:
            p[name] = shares[label(p)]
    return out


# ---- what is shown ---------------------------------------------------------------------------------------------


def show(points, timed):
    """Print the tables."""
    rows = [[p["rule"], f"{p['looseness']:.4f}", f"{p['mean_layer']:.2f}", " ".join(f"{100 * s:.0f}" for s in p["leaving"]),
             f"{p['accuracy']:.4f}", f"{p['ideal']:.3f}", f"{p['by_tokens']:.3f}",
             *(text for name in timed for text in (f"{p[name]:.3f}", f"{p[name] / p['ideal']:.2f}"))] for p in points]
    sizes = [name for t in timed.values() for name in (f"batch {t['size']}", "/ ideal")]
    columns = ["rule", "looseness", "mean layer", "% leaving at each layer", "accuracy", "ideal", "by tokens", *sizes]
    common.print_table("early exit on dev: time divided by the full model's", columns, rows)
    rows = [[str(t["size"]), str(t["sentences"]), f"{t['full_ms']:.0f}", f"{t['embedding']:.3f}", f"{t['nobody_leaves']:.3f}"]
            for t in timed.values()]
    common.print_table("what the ideal leaves out", ["batch", "sentences", "full model, ms", EMBEDDING, NOBODY], rows)


def draw(path, curves, points, full_accuracy, size):
    """Draw accuracy over time: lines where time would be ideal, marks where it was measured."""
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "minipeft", "font.size": 10})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, line in curves.items():
        mine = [p for p in points if p["rule"] == name]
        style, size_of_mark = STYLES[name]
        axes.plot(*zip(*line), style, color=COLOURS[name], linewidth=size_of_mark / 3)
        axes.plot([p["batch"] for p in mine], [p["accuracy"] for p in mine], MARKERS[name], color=COLOURS[name],
                  markersize=size_of_mark, label=name)
    axes.plot([1], [full_accuracy], "k*", markersize=11, label="full model")
    axes.set(xlabel=f"time divided by the full model's (lines: ideal; marks: measured, batch {size})", ylabel="accuracy on dev",
             xlim=(0, 1.08))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None, dpi=120)
    pyplot.close(figure)


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early_exit", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a BERT model")
    parser.add_argument("--data", required=True, help="folder with train and dev, two columns: text, label")
    parser.add_argument("--objective", default="joint", choices=("joint", "two_stage", "self_distilled"),
                        help="how the exits are trained (joint)")
    parser.add_argument("--out", help="folder that keeps the trained model and exits, or holds them (runs/early_exit-OBJECTIVE)")
    parser.add_argument("--batch", type=int, default=32, help="sentences in a batch (32); batch 1 is timed too")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--plot", metavar="FILE", help="also draw the accuracy-speed curves (.svg or .png)")
    args = parser.parse_args()
    if args.batch < 1 or args.repeats < 1:
        parser.error("--batch and --repeats take numbers of at least 1")
    return args


def main():
    """Train or load, search, time, show."""
    args = parse()
    common.set_threads(args.threads)
    from minipeft.methods import RULES

    work = make_work(args)
    exits = trained(args, work)
    logits, targets, lengths = look(exits, work, args.batch)
    each = [float((z.argmax(axis=1) == targets).mean()) for z in logits]
    print("accuracy of each exit: " + "  ".join(f"{a:.4f}" for a in each))
    points = [p for name in RULES for p in points_of(name, logits, targets, lengths)]
    timed = time_points(args, exits, work, points)
    show(points, timed)
    curves = {name: curve(name, logits, targets, lengths) for name in RULES}
    if args.json:
        common.write_json(args.json, {"objective": args.objective, "threads": args.threads, "repeats": args.repeats,
                                      "accuracy_of_each_exit": each, "timed": timed, "points": points, "curves": curves})
    if args.plot:
        draw(args.plot, curves, points, each[-1], args.batch)


if __name__ == "__main__":
    with common.one_line("early_exit"):
        main()
