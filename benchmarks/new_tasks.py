"""What other tasks teach a model about a new one: prompted multi-task training (T0), and meta-learning.

T0. toy:seq2seq is trained to write the answers of several tasks of the toy world, each through all its templates
(`prompting.toy_prompts`), and asked about a task that was held out. Scores are accuracies by rank classification on test texts,
the median over the templates with its quartiles; before, and after training on others, always in as many steps, every task as
often as any other. Each of the 12 tasks is held out in turn, after one, four and all eleven others, in an order that the seed
draws. Five tasks are of one kind, questions about what a text tells (what colour, size, room, owner or thing): for them it is
also told how many of their kind were among the others, and the whole kind is held out at once. The number of steps and of texts
was chosen in trials with seeds 0 to 2, which are not among those of the table.

Meta-learning. A new task is to tell two classes apart, in an order of its own, from 1, 5 or 20 examples of each. Two kinds are
asked: new classes of topics, questions and colours, after meta-training on other classes of the same; and each toy task in turn,
two of its classes, after meta-training on all others, with at most four classes of each, which the seed draws; there first-order
MAML stands for the three rules. LoRA and a head on toy:encoder are all that is trained; gradient descent adapts, by 5 steps, as
many as in meta-training, or by 50

    scratch      a new head, and LoRA at zero; the learning rate that is best among several on the same test tasks,
                 for each number of steps and examples, to its advantage
    Reptile, first-order MAML, MAML      the start that was meta-learned, with the learning rate of its inner steps
    prototypes   no step at all: the nearest mean; before and after training by episodes

Scores are accuracies on 100 other texts, mean and sample standard deviation over draws of the whole. The outer learning rate for
whole tasks was chosen in trials with seed 0, which is not among those of its table.
"""

import functools
import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from . import common

EXAMPLE = """examples:
  python -m benchmarks.new_tasks --json new.json --markdown new.md
  python -m benchmarks.new_tasks --only meta
  python -m benchmarks.new_tasks --fast            # exercises every part; its numbers mean nothing
"""
QUESTIONS = ("reading", "reading_size", "reading_room", "reading_owner", "reading_thing")
COLOURS, ASKED = ("red", "blue", "green", "yellow", "black", "white"), ("owner", "thing", "colour", "size", "room")
TOPICS = ("food", "film", "music", "sport", "travel", "school")
NEW_CLASSES = ({"topic": TOPICS[:4], "question": ASKED[:3], "reading": COLOURS[:4]},  # of meta-training: {toy task: classes}
               {"topic": TOPICS[4:], "question": ASKED[3:], "reading": COLOURS[4:]})  # adapted to
RULES = {"reptile": 0.3, "fomaml": 0.1, "maml": 0.1}  # with the learning rate of their inner steps
SCRATCH_RATES = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Scale:
    """The sizes of a study."""

    seeds: int = 5
    t0_seeds: tuple = (10, 11, 12)  # and of meta-learning for new tasks
    counts: tuple = (1, 4, 11)    # of the tasks that are trained on
    held: tuple = None            # tasks that are held out in turn, None for all
    t0_steps: int = 1600
    t0_lr: float = 3e-4
    train: int = 2400             # texts of each task
    test: int = 300
    shots: tuple = (1, 5, 20)
    meta_steps: int = 150
    inner_steps: int = 5
    query: int = 100
    steps: tuple = (5, 50)        # of adapting to a new task
    draws: int = 2                # of examples, for each two classes
    classes_lr: float = 5e-3      # of the outer steps, before new classes
    tasks_lr: float = 2e-3        # and before new tasks
    most_classes: int = 4         # of a task, in meta-training for new tasks


FAST = Scale(seeds=2, t0_seeds=(0, 1), counts=(1,), held=("reading", "topic"), t0_steps=3, train=24, test=12,
             shots=(1,), meta_steps=2, inner_steps=1, query=10, steps=(1, 2), draws=1)


# ---- T0 --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=40)
def works_of(task, scale, seed, part):
    """[one `RankClassification` for each template] of a task's train or test split."""
    from minipeft import load_pretrained
    from minipeft.data import Dataset, Tokenizer, toy
    from minipeft.prompting import RankClassification
    from minipeft.prompting.toy_prompts import prompts

    config, tokenizer = load_pretrained("toy:seq2seq").config, Tokenizer.from_folder("toy:seq2seq")
    sizes = {"train": scale.train, "dev": 1, "test": scale.test}
    drawn = toy.dataset(task, "easy", seed=seed, **sizes)
    dataset = Dataset({part: drawn.splits[part]}, drawn.labels)
    return [RankClassification(tokenizer, dataset, config, template, verbalizer, 96, 16)
            for template, verbalizer in prompts(task)]


def others(held, seed):
    """All other tasks than the held-out one, in the seed's order."""
    import numpy as np

    from minipeft.data import toy

    rng = np.random.default_rng([seed, list(toy.TASKS).index(held)])
    return rng.permutation([task for task in toy.TASKS if task != held]).tolist()


def prompted(trained, scale, seed):
    """toy:seq2seq after training on the tasks ``trained`` (none: before)."""
    from minipeft import load_pretrained
    from minipeft.prompting import ManyTasks
    from minipeft.training import Settings, fit

    model = load_pretrained("toy:seq2seq")
    if trained:
        of_task = {task: works_of(task, scale, seed, "train") for task in trained}
        works = {f"{task} {number}": work for task, each in of_task.items() for number, work in enumerate(each)}
        # the same for a task, however many templates it has
        limit = [scale.train / len(each) for each in of_task.values() for _ in each]
        model.requires_grad_(True)
        fit(model, dict(model.named_parameters()), ManyTasks(works, limit=limit, batches=scale.t0_steps),
            Settings(lr=scale.t0_lr, epochs=1, seed=seed))
    return model


def t0_scores(held, trained, scale, seed):
    """{held-out task: its `over_templates`} after training on the tasks ``trained``."""
    from minipeft.prompting import over_templates

    model = prompted(trained, scale, seed)
    return {task: over_templates(model, works_of(task, scale, seed, "test")) for task in held}


def t0(scale, kept):
    """{held-out task: {number of others: [`over_templates` of each seed]}}."""
    from minipeft.data import toy

    def score(held, count, seed):
        return kept(f"t0 {held} after {count}, seed {seed}",
                    lambda: t0_scores([held], others(held, seed)[:count], scale, seed)[held])

    return {held: {count: [score(held, count, seed) for seed in scale.t0_seeds] for count in (0, *scale.counts)}
            for held in scale.held or sorted(toy.TASKS, key=lambda task: task not in QUESTIONS)}


def kind(scale, kept):
    """{question: [`over_templates` of each seed]} after training on all tasks but the questions."""
    from minipeft.data import toy

    rest = [task for task in toy.TASKS if task not in QUESTIONS]
    found = [kept(f"kind, seed {seed}", lambda: t0_scores(QUESTIONS, rest, scale, seed)) for seed in scale.t0_seeds]
    return {held: [of_seed[held] for of_seed in found] for held in QUESTIONS}


def spread(found):
    """The median over templates, mean and standard deviation over seeds, and the mean quartiles."""
    (low, high), medians = zip(*(each["quartiles"] for each in found)), [100 * each["median"] for each in found]
    return f"{of_seeds(medians)} ({100 * statistics.mean(low):.0f} to {100 * statistics.mean(high):.0f})"


def average(found, tasks):
    """The cells of a row of `t0`: the mean of the medians over these held-out tasks, mean and standard deviation over seeds."""
    columns = zip(*(found[task].values() for task in tasks))  # of each number of others: [a task's results, of each seed]
    return [of_seeds([100 * statistics.mean(each["median"] for each in of_seed) for of_seed in zip(*asked)]) for asked in columns]


def by_kin(found, scale):
    """[(others, how many of them are questions, held-out questions, the mean of their medians in per cent)], as text."""
    groups = {}
    for held in [task for task in found if task in QUESTIONS]:
        for count, of_seeds in found[held].items():
            for seed, each in zip(scale.t0_seeds, of_seeds):
                kin = sum(task in QUESTIONS for task in others(held, seed)[:count])
                groups.setdefault((count, kin), []).append(100 * each["median"])
    return [[*map(str, group), str(len(each)), f"{statistics.mean(each):.1f}"] for group, each in sorted(groups.items())]


# ---- meta-learning ---------------------------------------------------------------------------------------------


class Tasks:
    """Texts of every class, and episodes from them; ``classes`` is {toy task: names}."""

    def __init__(self, classes, seed, each, tokenizer):
        from minipeft.data import toy

        self.tokenizer, self.texts = tokenizer, {}
        for task, names in classes.items():
            drawn = toy.dataset(task, "easy", seed=seed, dev=1, test=1, shots=each)
            for name in names:
                label = drawn.labels.index(name)
                self.texts[task, name] = [e for e in drawn.splits["train"] if e.label == label]
        self.pairs = [(task, a, b) for task, names in classes.items() for a, b in itertools.permutations(names, 2)]

    def draw(self, rng, shots, query, pair=None):
        """(support, query): `Batch`es of two classes, 0 and 1, ``shots`` examples and half of ``query`` of each."""
        task, *names = pair or self.pairs[int(rng.integers(len(self.pairs)))]
        parts = ([], [])
        for label, name in enumerate(names):
            texts = self.texts[task, name]
            order = rng.permutation(len(texts))[:shots + query // 2]
            for number, i in enumerate(order):
                parts[number >= shots].append((texts[i], label))
        return tuple(self._batch(part) for part in parts)

    def _batch(self, part):
        import numpy as np

        from minipeft.data import collate

        pairs = [e.text2 for e, _ in part] if part[0][0].text2 is not None else None
        encodings = self.tokenizer.encode_pairs([e.text for e, _ in part], pairs, 96)
        return collate(encodings, [label for _, label in part], np.arange(len(part)), self.tokenizer.pad_id)


def learner(seed):
    """(model, its parameters): LoRA and a head of two classes on toy:encoder."""
    import numpy as np

    from minipeft import attach, load_pretrained
    from minipeft.methods import METHODS

    model = load_pretrained("toy:encoder", task="classify", labels=("0", "1"), rng=np.random.default_rng(seed))
    return model, attach(model, METHODS["lora"](), rng=np.random.default_rng(seed)).named_parameters()


def loss_on(batch):
    """A function from the model to its loss on a batch."""
    return lambda model: model(batch.input_ids, batch.attention_mask, batch.token_type_ids, labels=batch.labels).loss


def accuracy(logits, batch):
    """Of logits (B, 2), an array."""
    return float((logits.argmax(axis=1) == batch.labels).mean())


def adapted(model, parameters, tasks, scale, shots, lr, seed):
    """{steps: mean accuracy, in per cent, on the new tasks after as many from where the parameters stand}."""
    import numpy as np

    from minipeft.prompting.meta import adapt, places_of, substituted

    places, scores = places_of(model, parameters), {steps: [] for steps in scale.steps}
    for number, (task, *names) in enumerate(tasks.pairs):
        for draw in range(scale.draws):
            support, query = tasks.draw(np.random.default_rng([seed, number, draw]), shots, scale.query, (task, *names))
            phi, done = parameters, 0
            for steps in scale.steps:
                phi, done = adapt(model, places, phi, loss_on(support), lr, steps - done), steps
                with substituted(places, phi):
                    logits = model(query.input_ids, query.attention_mask, query.token_type_ids).logits
                scores[steps].append(accuracy(logits.data, query))
    return {steps: 100 * statistics.mean(each) for steps, each in scores.items()}


def nearest(model, tasks, scale, shots, seed):
    """The same for prototypes, which take no step."""
    import numpy as np

    from minipeft.autograd import no_grad
    from minipeft.prompting import prototype_logits, prototypes, text_states

    scores = []
    with no_grad():
        for number, (task, *names) in enumerate(tasks.pairs):
            for draw in range(scale.draws):
                support, query = tasks.draw(np.random.default_rng([seed, number, draw]), shots, scale.query, (task, *names))
                centres = prototypes(text_states(model, support), support.labels, 2)
                scores.append(accuracy(prototype_logits(text_states(model, query), centres).data, query))
    return 100 * statistics.mean(scores)


def classes_of(held, scale, seed):
    """({toy task: classes} of meta-training, the same of what is adapted to); ``held``: a toy task, or None for new classes."""
    import numpy as np

    from minipeft.data import toy

    if held is None:
        return NEW_CLASSES
    drawn = {}
    for number, task in enumerate(toy.TASKS):
        labels = toy.dataset(task, "easy", seed=seed, train=1, dev=1, test=1).labels
        drawn[task] = np.random.default_rng([seed, number]).permutation(labels).tolist()
    return {task: each[:scale.most_classes] for task, each in drawn.items() if task != held}, {held: drawn[held][:2]}


def meta_scores(start, held, scale, seed):
    """{row of the table: [accuracy from each number of examples]}; ``start``: "scratch", one of `RULES`, "prototypes" or
    "prototypes, trained"; ``held``: as in `classes_of`."""
    from minipeft.data import Tokenizer
    from minipeft.prompting import Episode, MetaSettings, episode_loss, meta_train
    from minipeft.training.optim import OPTIMIZERS

    import numpy as np

    tokenizer, each = Tokenizer.from_folder("toy:encoder"), max(scale.shots) + scale.query // 2
    before, after = classes_of(held, scale, seed)
    new, (model, parameters) = Tasks(after, seed + 100, each, tokenizer), learner(seed)
    seen = Tasks(before, seed, each, tokenizer) if start in (*RULES, "prototypes, trained") else None
    if start in RULES:
        def draw(rng):
            support, query = seen.draw(rng, 5, 20)
            return Episode(loss_on(support), loss_on(query))

        lr = scale.classes_lr if held is None else scale.tasks_lr
        meta_train(model, parameters, draw, MetaSettings(start, RULES[start], scale.inner_steps, lr, 4, scale.meta_steps, seed))
    if start == "prototypes, trained":
        optimizer = OPTIMIZERS["adam"]([{"parameters": list(parameters.values())}], lr=2e-3)
        for step in range(scale.meta_steps):
            support, query = seen.draw(np.random.default_rng([seed, step]), 5, 20)
            optimizer.zero_grad()
            episode_loss(model, support, query, 2).backward()
            optimizer.step()
    if start.startswith("prototypes"):
        return {start: [nearest(model, new, scale, shots, seed) for shots in scale.shots]}
    rates = SCRATCH_RATES if start == "scratch" else (RULES[start],)
    found = [[adapted(model, parameters, new, scale, shots, lr, seed) for lr in rates] for shots in scale.shots]
    return {f"{start}, {steps} steps": [max(of_rate[steps] for of_rate in each) for each in found] for steps in scale.steps}


STARTS = ("scratch", *RULES, "prototypes", "prototypes, trained")
OF_TASKS = ("scratch", "fomaml", "prototypes", "prototypes, trained")  # before whole tasks: one rule stands for the three


def meta(scale, kept):
    """{held-out task, or "new classes": {row: {number of examples: [accuracy of each seed]}}}."""
    from minipeft.data import toy

    out = {}
    for held in (None, *(scale.held or toy.TASKS)):
        name = held or "new classes"
        starts, seeds = (OF_TASKS, scale.t0_seeds) if held else (STARTS, range(scale.seeds))
        for start, seed in itertools.product(starts, seeds):
            found = kept(f"meta {name}: {start} {seed}", functools.partial(meta_scores, start, held, scale, seed))
            for row, scores in found.items():
                for shots, score in zip(scale.shots, scores):
                    out.setdefault(name, {}).setdefault(row, {}).setdefault(shots, []).append(score)
    return out


def over_tasks(found):
    """{row: {number of examples: [mean over the held-out tasks, of each seed]}}."""
    return {row: {shots: [statistics.mean(each) for each in zip(*(of_task[row][shots] for of_task in found.values()))]
                  for shots in columns} for row, columns in next(iter(found.values())).items()}


# ---- how it is shown, and the command line ---------------------------------------------------------------------


def of_seeds(values):
    """Mean and sample standard deviation over seeds."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table(found, corner, columns, cell=of_seeds):
    """(heads, rows) of {row: {column: what ``cell`` turns into text}}."""
    return [corner, *columns], [[name, *map(cell, values.values())] for name, values in found.items()]


def tables(found, scale):
    """{title: (heads, rows)} of what was found."""
    out = {}
    if "t0" in found:
        columns = [f"after {count} other{'s' * (count > 1)}" if count else "before" for count in (0, *scale.counts)]
        heads, rows = table(found["t0"], "held out", columns, spread)
        rows += [[name, *average(found["t0"], tasks)] for name, tasks in (
            ("mean of the questions", [task for task in found["t0"] if task in QUESTIONS]),
            ("mean of the others", [task for task in found["t0"] if task not in QUESTIONS]), ("mean of all", list(found["t0"])))]
        out["held-out task: accuracy (%), median over templates (and quartiles)"] = heads, rows
        heads = ["tasks trained on", "questions among them", "questions held out", "accuracy (%)"]
        out["held-out questions, by how many of their kind were trained on"] = heads, by_kin(found["t0"], scale)
    if "kind" in found:
        heads = ["question", "after all tasks but the questions"]
        rows = [[held, spread(each)] for held, each in found["kind"].items()]
        rows.append(["mean", of_seeds([100 * statistics.mean(each["median"] for each in of_seed)
                                       for of_seed in zip(*found["kind"].values())])])
        out["all five questions held out: accuracy (%), median over templates (and quartiles)"] = heads, rows
    if "meta" in found:
        of_tasks = {name: rows for name, rows in found["meta"].items() if name != "new classes"}
        columns = [f"{shots} of each class" for shots in scale.shots]
        out["new classes: accuracy (%)"] = table(found["meta"]["new classes"], "start", columns)
        out["a new task: accuracy (%), mean over the tasks"] = table(over_tasks(of_tasks), "start", columns)
        for shots in scale.shots[:2]:  # where a start could save labels
            by_task = {task: {row: columns[shots] for row, columns in rows.items()} for task, rows in of_tasks.items()}
            out[f"a new task, {shots} of each class: accuracy (%)"] = table(
                by_task, "task", list(next(iter(by_task.values()))), lambda values: f"{statistics.mean(values):.0f}")
    return out


class Kept:
    """Results by name in a JSON file, so that none is made twice; ``told`` is called with a line on each new one.

    Raises ValueError where the file holds results of other ``settings``.
    """

    def __init__(self, path, settings, told):
        from minipeft.data import files

        self.path, self.told = Path(path), told
        self.known = files.read_json(self.path, "results") if self.path.is_file() else {}
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        before = self.known.setdefault("settings", settings)
        changed = [f"{name} was {before.get(name)}, now {settings.get(name)}" for name in settings | before
                   if before.get(name) != settings.get(name)]
        if changed:
            raise ValueError(f"{path}: holds results of other settings ({'; '.join(changed)}); choose another --out")

    def __call__(self, name, make):
        from minipeft.data import files

        if name not in self.known:
            self.known[name] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, self.known)
            self.told(f"{name}: {self.known[name]}")
        return self.known[name]


PARTS = {"t0": t0, "kind": kind, "meta": meta}


def make_parser():
    """The command line's parser."""
    parser = common.study_parser("new_tasks", __doc__, EXAMPLE)
    parser.add_argument("--only", choices=PARTS, help="one part (default: all)")
    return parser


def main(arguments=None):
    """The command line."""
    args = make_parser().parse_args(arguments)
    common.set_threads(1)
    scale = FAST if args.fast else Scale()
    try:
        kept = Kept(Path(common.study_folder("new_tasks", args)) / "found.json", vars(scale),
                    lambda line: print(line, file=sys.stderr, flush=True))
        found = {name: part(scale, kept) for name, part in PARTS.items() if args.only in (None, name)}
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"new_tasks: {error}", file=sys.stderr)
        return 2
    shown = tables(found, scale)
    for title, (heads, rows) in shown.items():
        common.print_table(title, heads, rows)
    if args.markdown:
        text = "\n".join("".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---", *["--:"] * (len(heads) - 1)], *rows])
                         for heads, rows in shown.values())
        Path(args.markdown).write_text(text, encoding="utf-8")
    if args.json:
        common.write_json(args.json, {"scale": vars(scale), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
