"""``minipeft plan``: what each method costs on a model, on paper, and how its tables are shown."""

import sys

# ---- numbers as text ---------------------------------------------------------------------------------------------


def scaled(value, units):
    """A number of three digits or more in the first unit, [(size, name)] from the largest, that it reaches."""
    size, name = next(((size, name) for size, name in units if value >= 0.9995 * size), units[-1])
    value = value / size
    return f"{value:,.0f} {name}" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f} {name}"


def bytes_text(value):
    """Bytes, in units of 10^3."""
    return scaled(value, ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))) if value else "0"


def time_text(seconds):
    """Seconds, in the unit that one speaks of."""
    return scaled(seconds, ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"),
                            (1e-6, "µs")))


def share_text(share):
    """A share from 0 to 1 in per cent."""
    percent = 100 * share
    return "0" if percent == 0 else f"{percent:.{3 if percent >= 1 else 2}g}" if percent >= 1e-4 else f"{percent:.0e}"


# ---- tables ------------------------------------------------------------------------------------------------------


class Page:
    """Standard output, 80 to 120 columns wide; a table without words is as wide as its numbers, of which none is cut off."""

    def __init__(self):
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False)
        self.console.width = min(max(self.console.width, 80), 120)

    def line(self, text=""):
        """A line of text, broken between words."""
        self.console.print(text)

    def table(self, columns, rows, title=None, words=()):
        """A table; the first column is to the left, those in ``words`` hold text that may wrap, the others are to the right."""
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        out = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=0, pad_edge=False,
                    show_edge=False)
        for place, name in enumerate(columns):
            wraps = name in words
            left = place == 0 or wraps or name in ("model", "order")
            out.add_column(name, justify="left" if left else "right", no_wrap=not wraps, overflow="fold")
        for row in rows:
            out.add_row(*row)
        width = self.console.width
        if not words:
            width = max(width, Measurement.get(self.console, self.console.options.update(width=1000), out).maximum)
        before, self.console.width = self.console.width, width
        self.console.print(out)
        self.console.width = before


def describe(shape, setting, length):
    """The model and its task, what a step is, and what is to be kept in mind; ``length``: the tokens that were asked for."""
    config = shape.config
    layers = f"{config.num_hidden_layers} + {config.num_decoder_layers}" if config.encoder_decoder else config.num_hidden_layers
    task = {"classify": f"classify into {len(config.labels)} classes", "lm": "model language",
            "seq2seq": "write one text from another"}
    yield f"{shape.name} ({shape.model_type}), to {task[shape.task]}: {shape.total:,} parameters, its head included"
    yield (f"width {config.hidden_size:,}, {layers} layers, {config.num_attention_heads} heads, inner width "
           f"{config.intermediate_size:,}, vocabulary {config.vocab_size:,}")
    target = f" to {setting.target_length}" if config.encoder_decoder else ""
    base = f"{setting.dtype}, the blocks' maps in 4 bits" if setting.base_bits else setting.dtype
    yield (f"a step: {setting.batch} x {setting.length}{target} tokens in {base}, at {setting.flops / 1e9:,.4g} billion "
           "operations a second")
    if setting.length < length:
        yield (f"note: {setting.length} tokens, and not {length}: as many as its {shape.positions} positions leave beside a "
               "method's virtual ones")
    if not shape.runs_here:
        yield (f"note: minipeft plans this {shape.model_type} and cannot run it; activations and time are those of its maps in "
               "blocks as they are here")


def show_rows(page, rows, setting):
    """The two tables of a plan: what is trained and stored, and what a step takes."""
    from .plan import TASKS as MANY

    page.table(("method", "without\nthe head", "its\nshare (%)", "with\nthe head", "one\ntask", f"{MANY:,}\ntasks"),
               [(r.method, f"{r.without_head:,}", share_text(r.share_without_head), f"{r.trainable:,}", bytes_text(r.task_bytes),
                 bytes_text(r.tasks_bytes)) for r in rows], "trained and stored")
    page.line(f"{MANY:,} whole models would take {bytes_text(rows[0].copies_bytes)}.")
    page.line()
    training = f"{setting.tokens / 1e6:g} M\ntokens" if setting.tokens >= 1e5 else f"{setting.tokens:,}\ntokens"
    memory = lambda r: map(bytes_text, (r.weights_bytes, r.gradients_bytes, r.moments_bytes, r.activations_bytes, r.peak_bytes))
    times = lambda r: map(time_text, (r.step_seconds, r.training_seconds, r.inference_seconds))
    page.table(("method", "weights", "gradi-\nents", "AdamW", "activa-\ntions", "at its\npeak", "a step", training,
                "infer-\nence"), [(r.method, *memory(r), *times(r)) for r in rows], "memory and time")
    page.line("Inference is of one batch, merged where the method merges. Time counts products of matrices only, and memory "
              "arrays only, not Python.")


def show_four(page, rows):
    """The four methods: counts, costs, words."""
    from .plan_four import bound_text, formula

    page.table(("method", "order", "count", "at", "is", "share (%)"),
               [(r.character.title, r.character.order, formula(r), f"{r.character.letter} = {r.size}", f"{r.row.without_head:,}",
                 share_text(r.row.share_without_head)) for r in rows], "four methods")
    page.line("d: width, L: layers, r: bottleneck or rank, n: virtual tokens; without the head, of the whole model.")
    page.line()
    page.table(("method", "usual\nbound", "holds for", "a task", "at its\npeak", "a step", "infer-\nence", "over\nthe base"),
               [(r.character.title, f"< {100 * r.character.bound:g} %", bound_text(r), bytes_text(r.row.task_bytes),
                 bytes_text(r.row.peak_bytes), time_text(r.row.step_seconds), time_text(r.row.inference_seconds),
                 f"+{100 * r.slower:.2g} %" if r.slower else "0") for r in rows])
    page.line()
    words = ("strengths", "drawbacks", "suitable models", "conditions of use")
    page.table(("method", *words), [(r.character.title, r.character.strengths, r.character.drawbacks, r.character.models,
                                     r.character.conditions) for r in rows], words=words)


def show_papers(page, rows):
    """The counts of the papers, computed."""
    def value(row):
        number = row.value()
        return f"{number:,}" if row.unit == "parameters" else f"{number:.4g} {row.unit}"

    words = ("what is trained", "why the paper prints another number")
    page.table(("paper", "model", words[0], "computed", words[1]),
               [(row.paper, row.model, row.what, value(row), row.misprint) for row in rows], words=words)
    page.line("Where the last column is empty the paper prints this number, to as many digits as it prints.")


# ---- the command -------------------------------------------------------------------------------------------------


def _planned(args):
    """Names of the methods in question."""
    from .exits import OFFERED
    from .plan_four import FOUR

    return [args.method] if args.method else [c.method for c in FOUR] if args.four else list(OFFERED)


def _setting(args, options, shape):
    """The `Setting` that was asked for; a length that is left at its default is no larger than all methods have room for."""
    from .plan import Setting, fitting_length, make_method

    length = args.length
    if length is None:
        length = Setting.length
        length = fitting_length([make_method(name, options, shape) for name in _planned(args)], shape, length)
    return Setting(args.batch_size, length, args.target_length, args.dtype, args.base_bits, args.flops, args.tokens)


def _say_unused(args, options):
    """A note on settings that none of the methods in question has; the counts of papers have none."""
    from .plan import unused

    idle = list(options) if args.papers else unused(options, _planned(args))
    idle += ["words"] * (args.words is not None)
    if idle:
        names = ", ".join("--" + name.replace("_", "-") for name in idle)
        print(f"note: {names} {'has' if len(idle) == 1 else 'have'} no part in this plan", file=sys.stderr)


def run(args, options):
    """Print what ``minipeft plan`` was asked for; returns what ``--json`` writes.

    Args:
        args: the parsed options. options: {field: value} of the settings of methods that were given.

    Raises ValueError where the model cannot be read, or a method does not go with it.
    """
    from . import plan as planning
    from . import plan_four, plan_papers
    from .plan_models import load_shape

    page = Page()
    if args.papers:
        _say_unused(args, options)
        show_papers(page, plan_papers.PAPERS)
        return [{"paper": row.paper, "model": row.model, "trained": row.what, "computed": row.value(), "unit": row.unit,
                 "misprint": row.misprint or None} for row in plan_papers.PAPERS]
    shape = load_shape(args.model, args.task, args.classes, args.pooling)
    setting, rows, refused, four = _setting(args, options, shape), [], {}, []
    if args.four:
        four = plan_four.four(shape, options, setting)
    elif args.method:
        rows = [planning.plan(planning.make_method(args.method, options, shape), shape, setting)]
    else:
        rows, refused = planning.plan_all(shape, options, setting)
        if not rows:
            raise ValueError(next(iter(refused.values())))
    _say_unused(args, options)
    for line in describe(shape, setting, args.length or planning.Setting.length):
        page.line(line)
    page.line()
    if four:
        show_four(page, four)
    else:
        show_rows(page, rows, setting)
    for name, reason in refused.items():
        page.line(f"not planned: {reason if reason.startswith(name) else f'{name}: {reason}'}")
    head = {"model": shape.name, "family": shape.model_type, "task": shape.task, "parameters": shape.total,
            "pretrained_parameters": shape.pretrained, "setting": vars(setting)}
    return head | ({"four": [plan_four.as_json(row) for row in four]} if four else
                   {"methods": [planning.as_json(row) for row in rows], "not_planned": refused})
