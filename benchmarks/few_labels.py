"""How far a few labels go: head fine-tuning, prompts, PET, iPET and demonstrations, on 0 to 1,000 labelled texts.

Data. ``toy:rating``, a review in one of four classes from terrible to great, or ``toy:sentiment``, in one of two (chance 25 and
50 %, Bayes' rule 98); for each seed, K texts of each class are drawn from the same 8,000, and 2,000 others are the raw text that
PET and iPET label. Scores are accuracies on 1,000 test texts, in per cent; five seeds, mean and sample standard deviation.

Prompts. Three that somebody might try first, none of which stands in the text that the models were trained on. (The package's
own, such as "{text} it was {mask} .", stand there word for word: they answer as well without any label as these do with a
hundred, and labels teach them nothing, so there would be nothing to see.)

Sides. All train everything (full fine-tuning) on toy:encoder.

    head         a classification head beside the pre-trained model
    prompt       prompt-based fine-tuning through the first of the prompts
    PET, iPET    all three, raw text, and at the end a classification head; three models of each prompt, as in the papers
    in context   solved examples before each text, as many as fit into the 64 tokens that toy:decoder was trained on; nothing is
                 trained; through the first of the prompts, and through one that the raw text has ("known prompt")

Head and prompt are trained with 0.3, 1 and 3 times the learning rate that the package takes, and the best on dev counts, which
has K texts of each class, no more than train (the lowest of equals). PET and iPET choose nothing. Without labels: a head that was
drawn, the prompt as it is, PET and iPET on what the untrained prompts say.

How many texts a prompt is worth: the mean, over the accuracies that both reach, of the labels that the prompt saves a head
(`prompting.data_advantage`).
"""

import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from . import common

EXAMPLE = """examples:
  python -m benchmarks.few_labels --json few.json --markdown few.md --picture few.svg
  python -m benchmarks.few_labels --task sentiment --sides head prompt        # two classes
  python -m benchmarks.few_labels --sides PET iPET --texts 8 16 --models 1    # one model of each prompt in the place of three
  python -m benchmarks.few_labels --fast            # exercises every part; its numbers mean nothing
"""
PROMPTS = ("{text} {mask}", "{text} answer : {mask} .", "is it {mask} ? {text}")
WORDS = {"rating": "terrible=terrible,bad=bad,good=good,great=great", "sentiment": "bad=negative,good=positive"}
SIDES = {"head": "full", "prompt": "prompt_based", "PET": "pet", "iPET": "ipet", "in context": "in_context",
         "in context, known prompt": "in_context"}


@dataclass(frozen=True)
class Scale:
    """The sizes of a study: ``texts`` with labels, as many of each class; ``raw`` texts without."""

    task: str = "rating"
    seeds: int = 5
    texts: tuple = (0, 4, 8, 12, 16, 32, 100, 1000)
    train: int = 8000
    raw: int = 2000
    test: int = 1000
    pair_steps: int = 100  # of each model of PET and iPET
    pair_models: int = 3   # of each prompt
    sides: tuple = tuple(SIDES)

    @property
    def shots(self):
        """The texts of each class. Raises ValueError where they do not come out even."""
        classes = len(WORDS[self.task].split(","))
        for count in self.texts:
            if count < 0 or count % classes:
                raise ValueError(f"texts: expected a multiple of {classes}, as many of each class of {self.task}, got {count}")
        return [count // classes for count in self.texts]


FAST = Scale(seeds=2, texts=(0, 4, 8), train=60, raw=30, test=20, pair_steps=2, pair_models=1)
KNOWN = "{text} it was {mask} ."
WITHOUT = {"full": "base", "prompt_based": "zero_shot", "in_context": "zero_shot"}  # what a method is where there are no labels


class Study:
    """The runs of a study in the folder ``out``; those that are finished are not made again."""

    def __init__(self, out, scale, told=lambda line: None):
        self.out, self.scale, self.told = Path(out), scale, told

    def data(self):
        """(folder of the labelled texts, file of the raw ones), written once; no text is in both."""
        from minipeft.data import files, toy

        folder = self.out / "data" / f"{self.scale.task}-{self.scale.train}"
        raw = folder / "raw.tsv"
        if not raw.is_file():
            toy.save(self.scale.task, folder, seed=0, train=self.scale.train + self.scale.raw, dev=1, test=self.scale.test)
            header, *rows = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()
            parts = {"train.tsv": [header, *rows[self.scale.raw:]],
                     raw.name: ["text", *(row.split("\t")[0] for row in rows[:self.scale.raw])]}
            for name, lines in parts.items():
                with files.atomic(folder / name) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder, raw

    def run(self, side, shots, seed, lr=None):
        """The `Run` of a side, at the package's learning rate or another."""
        from minipeft.compare.run import Run

        method, (folder, raw) = SIDES[side], self.data()
        decoder, method = method == "in_context", method if shots else WITHOUT.get(method, method)
        templates = [KNOWN] if "known" in side else list(PROMPTS)
        asked = {} if method in ("full", "base") else {"template": templates, "verbalizer": [WORDS[self.scale.task]]}
        options = {"pair_steps": self.scale.pair_steps,
                   "pair_models": self.scale.pair_models} if method in ("pet", "ipet") else {}
        return Run("toy:decoder" if decoder else "toy:encoder", str(folder), method, options=options, lr=lr, shots=shots,
                   seed=seed, max_length=64 if decoder else 96, unlabelled=str(raw) if options else None, **asked)

    def result(self, run, name):
        """What comes of a run, which is made unless it was before."""
        from minipeft.compare.run import RESULT, execute

        folder = self.out / "runs" / f"{self.scale.task}-{name}"
        before = (folder / RESULT).is_file()
        result = execute(run, folder, resume=True, quiet=True)
        for path in folder.glob("*.safetensors"):
            path.unlink()
        if not before:
            self.told(f"{folder.name}: {100 * result['score']:.1f}")
        return result

    def score(self, side, shots, seed):
        """Accuracy on test, in per cent; of a side that is trained on labelled texts at the rate that dev prefers."""
        from minipeft.compare.rates import grid

        name, run = f"{side.replace(', ', '-').replace(' ', '-')}-{shots}-seed{seed}", self.run(side, shots, seed)
        if "pair_models" in run.options:
            name += f"-models{run.options['pair_models']}"
        if SIDES[side] not in ("full", "prompt_based") or not shots:
            return 100 * self.result(run, name)["score"]
        tried = [self.result(self.run(side, shots, seed, lr), f"{name}-lr{lr:g}") for lr in grid(run.lr)]
        return 100 * max(tried, key=lambda r: r["evaluations"][-1]["score"])["score"]  # the first of equals, which has the lowest

    def curves(self):
        """{side: [[score of each seed] for each number of texts]}."""
        out = {side: [] for side in self.scale.sides}
        for shots in self.scale.shots:
            for side in out:
                out[side].append([self.score(side, shots, seed) for seed in range(self.scale.seeds)])
        return out


def advantages(scale, curves):
    """{side: [examples that it saves a head, with each seed]}; None where the two share no accuracy."""
    from minipeft.prompting import data_advantage

    out = {}
    for side in curves:
        if side != "head" and "head" in curves:
            out[side] = [data_advantage(scale.texts, [c[seed] for c in curves["head"]], [c[seed] for c in curves[side]])
                         for seed in range(scale.seeds)]
    return out


# ---- how it is shown -----------------------------------------------------------------------------------------------


def rows_of(scale, curves):
    """The table: one row for each side, a column for each number of texts, and what the side saves."""
    saved, rows = advantages(scale, curves), []
    for side, columns in curves.items():
        cells = [f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" for each in columns]
        known = [value for value in saved.get(side, []) if value is not None]
        worth = "–" if len(known) < 2 else f"{statistics.mean(known):.0f} ± {statistics.stdev(known):.0f}"
        rows.append([side, *cells, worth])
    return rows


def columns_of(scale):
    """The heads of the table."""
    return ["labelled texts", *map(str, scale.texts), "labels saved"]


def markdown(scale, curves):
    """The table as Markdown."""
    lines = [columns_of(scale), ["---", *["--:"] * (len(scale.texts) + 1)], *rows_of(scale, curves)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def apart(values, gap):
    """Places for names beside values: each as near its own as may be, and no two closer than ``gap``."""
    groups = []  # [mean of the values, which of them], from the lowest up; a group that reaches into the one below joins it
    for i in sorted(range(len(values)), key=values.__getitem__):
        groups.append([values[i], [i]])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (len(groups[-1][1]) + len(groups[-2][1])) / 2:
            members = groups[-2][1] + groups[-1][1]
            groups[-2:] = [[statistics.mean(values[m] for m in members), members]]
    out = list(values)
    for middle, members in groups:
        for place, i in enumerate(members):
            out[i] = middle + gap * (place - (len(members) - 1) / 2)
    return out


def picture(scale, curves):
    """The curves as an SVG that stands by itself."""
    from minipeft.compare.report_page import alone
    from minipeft.compare.svg import SERIES, drawing, freeze, to_svg

    places = list(range(len(scale.texts)))  # evenly spaced: 0 has no logarithm
    with drawing(400) as figure:
        axes = figure.subplots()
        names = apart([statistics.mean(columns[-1]) for columns in curves.values()], 3.2)
        for number, (side, columns) in enumerate(curves.items()):
            means = [statistics.mean(each) for each in columns]
            spread = [statistics.stdev(each) for each in columns]
            colour, marker = SERIES[number], "osD^vP"[number]
            axes.plot(places, means, marker + "-", color=colour, markersize=5)
            axes.fill_between(places, [m - s for m, s in zip(means, spread)], [m + s for m, s in zip(means, spread)],
                              color=colour, alpha=0.12, linewidth=0)
            axes.annotate(side, (places[-1] + 0.12, names[number]), va="center", color=colour, annotation_clip=False)
        axes.set_xticks(places, [str(size) for size in scale.texts])
        axes.set_xlim(-0.3, len(places) - 0.1)
        axes.set_xlabel("labelled texts")
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")
        freeze(figure)
        said = "; ".join(f"{side}: {', '.join(f'{statistics.mean(each):.0f}' for each in columns)}"
                         for side, columns in curves.items())
        return alone(to_svg(figure, "few", "Accuracy against labelled texts",
                            f"Accuracy in per cent at {', '.join(map(str, scale.texts))} labelled texts. {said}."))


# ---- the command line ------------------------------------------------------------------------------------------


def make_parser():
    """The command line's parser."""
    parser = common.study_parser("few_labels", __doc__, EXAMPLE)
    parser.add_argument("--picture", metavar="FILE", help="also draw the curves, as SVG")
    parser.add_argument("--sides", nargs="+", choices=SIDES, metavar="SIDE", help=f"only these: {'; '.join(SIDES)}")
    parser.add_argument("--task", choices=WORDS, default="rating", help="rating (four classes, the default) or sentiment (two)")
    parser.add_argument("--texts", nargs="+", type=int, metavar="N",
                        help="only with so many labelled texts, as many of each class")
    parser.add_argument("--models", type=int, choices=range(1, 10), metavar="N",
                        help="of each prompt of PET and iPET, 1 to 9 (default: 3)")
    return parser


def main(arguments=None):
    """The command line."""
    args = make_parser().parse_args(arguments)
    common.set_threads(1)
    given = {"task": args.task, "sides": args.sides, "texts": args.texts, "pair_models": args.models}
    scale = replace(FAST if args.fast else Scale(), **{name: value for name, value in given.items() if value})
    study = Study(common.study_folder("few_labels", args), scale,
                  lambda line: print(line, file=sys.stderr, flush=True))
    try:
        curves = study.curves()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"few_labels: {error}", file=sys.stderr)
        return 2
    common.print_table("accuracy (%)", columns_of(scale), rows_of(scale, curves))
    if args.markdown:
        Path(args.markdown).write_text(markdown(scale, curves), encoding="utf-8")
    if args.picture:
        Path(args.picture).write_text(picture(scale, curves), encoding="utf-8")
    if args.json:
        common.write_json(args.json, {"scale": vars(scale), "curves": curves, "advantages": advantages(scale, curves)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
