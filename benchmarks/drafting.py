"""Early exit in a decoder: words drafted by its first blocks and verified by all, and words that leave where they are certain."""

import argparse
import sys
from pathlib import Path

from . import common

EXAMPLE = """example, five to six minutes, half of them to train:
  python -m benchmarks.drafting --model ../shared/models/stories260K \\
      --data ../shared/data/tinystories_sample/tinystories.txt --out runs/drafting --json drafting.json
"""
PROMPTS = ("Once upon a time", "One day, a girl named Lily", "The dog was happy", "Tom and his mom went")
DRAFTS = (1, 2, 3, 4)  # how many words are drafted at a time
LOOSENESSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


def train(args, name):
    """The model after training with exit losses, kept in a folder of ``--out``.

    ``layer_skip``: with layer dropout and LayerSkip's weights, of which the first exit has none; ``confident``: every exit weighs
    in proportion to its depth.
    """
    from minipeft.data import Tokenizer, read_texts
    from minipeft.interop import load_pretrained, save_pretrained
    from minipeft.methods import ExitLoss, Joint, TokenExit, layer_dropout
    from minipeft.training import LanguageModelling, Settings, fit
    from minipeft.training.display import ProgressBar

    folder = Path(args.out) / name
    if (folder / "config.json").is_file():
        print(f"note: the model trained before in {folder} is used", file=sys.stderr)
        return load_pretrained(folder, task="lm")
    model = load_pretrained(args.model, task="lm")
    work = LanguageModelling(Tokenizer.from_folder(args.model), read_texts(args.data), 256, 16)
    skip = name == "layer_skip"
    objective = ExitLoss(args.scale, args.curriculum) if skip else Joint("depth")
    exits = TokenExit(model, objective)
    with layer_dropout(model, args.layer_dropout if skip else 0.0):
        fit(exits, exits.trainable(), work, Settings(lr=args.lr, epochs=args.epochs, batch_size=16),
            hooks=[objective] if skip else [], display=ProgressBar(name))
    save_pretrained(model, folder, tokenizer_from=args.model)
    return model


def exit_losses(model, work, np):
    """Mean loss a word on dev behind each block."""
    from minipeft.autograd import no_grad

    totals, words = np.zeros(len(model.blocks)), 0
    with no_grad():
        for start in range(0, len(work.blocks["dev"][0]), 16):
            batch = work.collate(np.arange(start, min(start + 16, len(work.blocks["dev"][0]))), "dev")
            states = model(batch.input_ids, batch.attention_mask, output_hidden_states=True).hidden_states[1:]
            words += work.weight(batch)
            for i, x in enumerate(states):
                x = x if i == len(states) - 1 else model.normalised(x)
                totals[i] += model.head.loss(x, model.head.project(x), batch.labels, 0).item() * work.weight(batch)
    return totals / words


def drafted_rows(model, prompts, full, args):
    """A row for each number of blocks that draft and of words at a time."""
    from minipeft.methods.layer_skip import draft_and_verify

    choices = [(blocks, words) for blocks in range(1, len(model.blocks)) for words in DRAFTS]
    rows, sides = [], {"full": full}
    for blocks, words in choices:
        run = lambda blocks=blocks, words=words: [draft_and_verify(model, ids, blocks, words, args.tokens, ()) for ids in prompts]
        out = run()
        same = all((one.ids == ids).all() for one, ids in zip(out, full()))
        drafted, accepted = (sum(getattr(one, name) for one in out) for name in ("drafted", "accepted"))
        rows.append({"blocks": blocks, "words": words, "identical": bool(same), "acceptance": accepted / drafted})
        sides[blocks, words] = run
    times = common.take_turns(sides, args.repeats, args.seconds)
    for row in rows:
        key = row["blocks"], row["words"]
        row |= {"tokens_per_second": args.tokens * len(prompts) / min(times[key]),
                "speed": common.median_ratio(times["full"], times[key])}
    return rows, args.tokens * len(prompts) / min(times["full"])


def confident_rows(model, prompts, full, args, np):
    """A row for each looseness of the confident exit: speed, mean layer, and how long its text is that of the full model."""
    from minipeft.methods import Confident, TokenExit

    exits, expected, rows = TokenExit(model, trained=True), full(), []
    sides = {"full": full}
    for looseness in LOOSENESSES:
        run = lambda s=looseness: [exits.generate(Confident(s), ids, args.tokens, eos_token_id=()) for ids in prompts]
        out = run()
        same = [int(np.cumprod(one.ids[0] == ids[0])[-args.tokens:].sum()) for one, ids in zip(out, expected)]
        rows.append({"looseness": looseness, "mean_layer": float(np.mean([one.layers.mean() for one in out])),
                     "same_words": float(np.mean(same))})
        sides[looseness] = run
    times = common.take_turns(sides, args.repeats, args.seconds)
    for row in rows:
        row["speed"] = common.median_ratio(times["full"], times[row["looseness"]])
    return rows


def show_drafts(name, losses, full_rate, rows, args):
    """Print what the blocks of one model know, and what drafting with it gains."""
    common.print_table(f"{name}: loss a word on dev behind each block", [str(i) for i in range(1, len(losses) + 1)],
                       [[f"{loss:.3f}" for loss in losses]])
    common.print_table(
        f"{name}: {args.tokens} words for each of {len(PROMPTS)} prompts, greedily, {args.threads} threads; all blocks: "
        f"{full_rate:.0f} tokens/s",
        ["blocks that draft", "words at a time", "identical ids", "acceptance", "tokens/s", "speed / all blocks"],
        [[str(r["blocks"]), str(r["words"]), "yes" if r["identical"] else "NO", f"{r['acceptance']:.2f}",
          f"{r['tokens_per_second']:.0f}", f"{r['speed']:.2f}"] for r in rows])


def show_confident(model, rows):
    """Print what leaving early gains, and how long the text stays the same."""
    common.print_table(f"confident exit, of {len(model.blocks)} blocks",
                       ["looseness", "mean block", "first words the same", "speed / all blocks"],
                       [[f"{r['looseness']:.2f}", f"{r['mean_layer']:.2f}", f"{r['same_words']:.0f}", f"{r['speed']:.2f}"]
                        for r in rows])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafting", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a decoder")
    parser.add_argument("--data", required=True, metavar="FILE", help="raw text to train the exits on")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the trained model, which is used again")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the text (8)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (1e-3)")
    parser.add_argument("--scale", type=float, default=1.0, help="e_scale of the exit loss (1)")
    parser.add_argument("--curriculum", choices=("gradual", "rotational"), help="which exits count at which step (all, always)")
    parser.add_argument("--layer-dropout", type=float, default=0.1, help="probability with which the last block is dropped (0.1)")
    parser.add_argument("--tokens", type=int, default=150, help="words to write (150)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side (5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="shortest length of a turn (0.3)")
    parser.add_argument("--threads", type=int, default=1, help="threads (1; more do not help a model as small as this)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    common.set_threads(args.threads)

    import numpy as np

    from minipeft.data import Tokenizer, read_texts
    from minipeft.models import generate
    from minipeft.training import LanguageModelling

    tokenizer = Tokenizer.from_folder(args.model)
    work = LanguageModelling(tokenizer, {"dev": read_texts(args.data)["dev"]}, 256, 16)
    prompts, out = [np.array([tokenizer.encode(text)]) for text in PROMPTS], {"tokens": args.tokens, "threads": args.threads}
    for name in ("layer_skip", "confident"):
        model = train(args, name)
        full = lambda model=model: [generate(model, ids, args.tokens, eos_token_id=()) for ids in prompts]
        losses, (rows, full_rate) = exit_losses(model, work, np), drafted_rows(model, prompts, full, args)
        show_drafts(name, losses, full_rate, rows, args)
        out[name] = {"losses": losses.tolist(), "full_tokens_per_second": full_rate, "drafted": rows}
    out["confident"]["rows"] = confident_rows(model, prompts, full, args, np)
    show_confident(model, out["confident"]["rows"])
    if args.json:
        common.write_json(args.json, out)


if __name__ == "__main__":
    with common.one_line("drafting"):
        main()
