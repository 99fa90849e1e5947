"""What each method costs at inference: measured beside the base model by turns, and predicted from its extra FLOPs."""

import argparse

from . import common

EXAMPLE = """example, about three minutes:
  python -m benchmarks.inference --json inference.json
"""
RANK, BOTTLENECK, VIRTUAL, FACTORS = 8, 48, 20, 4
WIDTH, LAYERS, HEADS, INNER, VOCABULARY = 384, 6, 12, 1536, 1000  # the blocks of MiniLM-L6

# What is timed: (row, name of the method, its settings, merged first)
ROWS = (("lora, merged", "lora", {"rank": RANK}, True), ("dora, merged", "dora", {"rank": RANK}, True),
        ("ia3, merged", "ia3", {}, True),
        ("bitfit", "bitfit", {}, False), ("lora", "lora", {"rank": RANK}, False), ("dora", "dora", {"rank": RANK}, False),
        ("ia3", "ia3", {}, False), ("houlsby", "houlsby", {"bottleneck": BOTTLENECK}, False),
        ("pfeiffer", "pfeiffer", {"bottleneck": BOTTLENECK}, False),
        ("parallel", "parallel", {"bottleneck": BOTTLENECK}, False),
        ("compacter", "compacter", {"bottleneck": BOTTLENECK, "num_factors": FACTORS}, False),
        ("prefix", "prefix", {"num_virtual_tokens": VIRTUAL}, False),
        ("prompt", "prompt", {"num_virtual_tokens": VIRTUAL}, False))


def base_flops(length):
    """FLOPs for one text of ``length`` tokens: twice the entries of the maps for each token, and attention's two products."""
    maps = 4 * WIDTH * WIDTH + 2 * WIDTH * INNER
    return length * LAYERS * (2 * maps + 4 * length * WIDTH)


def extra_flops(name, length, batch):
    """FLOPs that a method adds to one text of ``length`` tokens in a batch of ``batch``, when it is not merged."""
    if name == "prompt":
        return base_flops(length + VIRTUAL) - base_flops(length)
    for_each_token = {"lora": 8 * WIDTH * RANK,             # q and v: x U and (x U) V^T
                      "dora": 8 * WIDTH * RANK,
                      "houlsby": 8 * WIDTH * BOTTLENECK, "compacter": 8 * WIDTH * BOTTLENECK,
                      "pfeiffer": 4 * WIDTH * BOTTLENECK, "parallel": 4 * WIDTH * BOTTLENECK,
                      "prefix": 4 * VIRTUAL * WIDTH}        # scores and sums over n more keys
    for_a_batch = {"dora": 2 * 2 * WIDTH * WIDTH * RANK,    # q and v: W^T U, for the lengths of the columns
                   "compacter": 4 * 2 * FACTORS * WIDTH * BOTTLENECK}  # four maps, each a sum of n Kronecker products
    return LAYERS * (length * for_each_token.get(name, 0) + for_a_batch.get(name, 0) / batch)


def make_side(name, settings, merge, ids, mask):
    """A function that runs the model with the method once; the base where ``name`` is None."""
    import numpy as np

    from minipeft.autograd import no_grad
    from minipeft.interop import make_model
    from minipeft.methods import METHODS, attach
    from minipeft.models import TransformerConfig

    config = TransformerConfig(
        model_type="bert", vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=512, type_vocab_size=2, labels=("a", "b"), pooling="mean")
    model = make_model(config, "classify", np.random.default_rng(0)).eval()
    if name is not None:
        attachment, rng = attach(model, METHODS[name](**settings)), np.random.default_rng(1)
        moved = {path: array + 0.01 * rng.standard_normal(array.shape) for path, array in attachment.arrays().items()}
        attachment.load_arrays(moved)
        if merge:
            attachment.merge()

    def run():
        with no_grad():
            return model(ids, mask).logits.data

    return run


def measure(args, batch):
    """[{"row", "ms", "measured", "predicted"}] for one batch size, the base first."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (batch, args.length))
    mask = np.ones_like(ids)
    sides = {"base": make_side(None, {}, False, ids, mask)}
    sides |= {row: make_side(name, settings, merge, ids, mask) for row, name, settings, merge in ROWS}
    times = common.take_turns(sides, args.repeats, args.seconds)
    rows = []
    for row, name, _, merged in (("base", None, {}, False), *ROWS):
        predicted = 1 + (0 if merged else extra_flops(name, args.length, batch)) / base_flops(args.length)
        rows.append({"row": row, "ms": 1e3 * min(times[row]), "measured": common.median_ratio(times[row], times["base"]),
                     "predicted": predicted})
    return rows


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="how many texts in a batch (1 and 16)")
    parser.add_argument("--length", type=int, default=64, help="tokens in a text (64)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (7)")
    parser.add_argument("--seconds", type=float, default=0.5, help="shortest length of a turn (0.5)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    if min(args.batches) < 1:
        parser.error(f"--batches: expected numbers from 1 on, got {min(args.batches)}")
    common.set_threads(args.threads)
    out = {}
    for batch in args.batches:
        out[batch] = measure(args, batch)
        common.print_table(
            f"forward pass, D {WIDTH}, {LAYERS} layers, batch {batch}, {args.length} tokens, {args.threads} threads",
            ["method", "ms", "measured / base", "predicted / base"],
            [[r["row"], f"{r['ms']:.2f}", f"{r['measured']:.3f}", f"{r['predicted']:.3f}"] for r in out[batch]])
    if args.json:
        common.write_json(args.json, {"rows": out, "length": args.length, "threads": args.threads})


if __name__ == "__main__":
    with common.one_line("inference"):
        main()
