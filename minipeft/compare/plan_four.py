"""The classic table of four methods, adapter, LoRA, prefix and soft prompt, for one model: what each costs and where it fits.

    adapter      Theta(d r L)        LoRA     Theta(d r L)        d the width, L the layers, r a bottleneck or a rank,
    prefix       Theta(d n L)        prompt   Theta(d n)          n the virtual tokens

Each count is the method's own. The bounds that are usually told with the table (adapter < 5 %, LoRA < 0.1 %, prefix < 0.1 %,
soft prompt < 0.05 % of the model) are of large models and small r and n: against the weights of the blocks an adapter's or a
LoRA's share is about r / (3 d). So for each model the largest r or n is told for which they hold.

Houlsby et al., 2019, arXiv:1902.00751; Hu et al., 2022, arXiv:2106.09685; Li and Liang, 2021, arXiv:2101.00190; Lester et al.,
2021, arXiv:2104.08691.
"""

from dataclasses import asdict, dataclass, replace

from ..methods import METHODS
from ..methods.shapes import linear_shapes
from .plan import as_json as plan_as_json
from .plan import count, make_method, plan
from .plan_cost import Walk


@dataclass(frozen=True)
class Character:
    """What does not depend on the model: the order of the count, the usual bound of its share, and words.

    ``size`` is the field that grows, ``letter`` its letter.
    """

    method: str
    title: str
    order: str
    bound: float
    size: str
    letter: str
    strengths: str
    drawbacks: str
    models: str
    conditions: str


FOUR = (
    Character("houlsby", "adapter", "Θ(d r L)", 0.05, "bottleneck", "r",
              "close to full fine-tuning with few data and many; tasks stay apart and can be stacked or fused",
              "latency: two small products more, one after the other, in every sub-layer, and nothing merges",
              "encoders and encoder-decoders, of any size",
              "many tasks on one base, the model's code open at its joins, and time to spare at inference"),
    Character("lora", "LoRA", "Θ(d r L)", 0.001, "rank", "r",
              "merges into the weights, so that inference costs what the base costs; near full fine-tuning at small ranks",
              "integration: it must reach the maps inside attention; once merged, one batch serves one task; rank and places are "
              "to be chosen",
              "any, and large decoders above all; also on a base in 4 bits",
              "weights can be wrapped and rewritten; no latency may be added"),
    Character("prefix", "prefix", "Θ(d n L)", 0.001, "num_virtual_tokens", "n",
              "the weights stay as they are; every row of a batch may have its own prefix (in this package a batch has one); "
              "strong in writing from few data",
              "prefix length: n places of every cache, and of learned positions; training is touchy, more n does not always help",
              "decoders and encoder-decoders that write; encoders with n larger (P-tuning v2)",
              "keys and values can be put before those of the words in every layer"),
    Character("prompt", "soft prompt", "Θ(d n)", 0.0005, "num_virtual_tokens", "n",
              "the smallest file; only the input changes, so that the model is served as it is and tasks mix in a batch "
              "(not in this package)",
              "limited capacity: well behind on small models; n more tokens through all layers; slow to train",
              "very large ones, from about ten billion parameters on",
              "word vectors can be given in place of ids; high learning rates and long training"),
)


@dataclass
class FourRow:
    """One line of the table.

    Attributes:
        character: words and bound. size: r or n as planned. slope, constant: the count is slope size + constant.
        row: the `Row` of the plan. largest: the largest size with a share below the bound, 0 where none is, None where
            all that fit are. limit: the largest size that fits the model, None for no limit.
        slower: by what share of the base's operations inference takes more.
    """

    character: Character
    size: int
    slope: int
    constant: int
    row: object
    largest: int | None
    limit: int | None
    slower: float


def limit_of(method, shape):
    """The largest r or n that a model has room for; None for no limit."""
    if method.name == "lora":
        shapes = linear_shapes(shape.config)
        return min(min(shapes[path]) for path in method.places(list(shapes)))
    return None if method.name == "houlsby" or shape.positions is None else shape.positions - 1


def largest_below(bound, share, limit):
    """The largest size from 1 to ``limit`` for which share(size), which rises, is below ``bound``.

    0 where not even 1 is; None where the limit is.
    """
    below, above = 0, 1
    while share(above) < bound:
        if limit is not None and above >= limit:
            return None
        below, above = above, 2 * above if limit is None else min(2 * above, limit)
    while above - below > 1:  # share(below) < bound <= share(above)
        middle = (below + above) // 2
        below, above = (middle, above) if share(middle) < bound else (below, middle)
    return below


def four(shape, options, setting):
    """The four `FourRow`s of a shape; ``options`` and ``setting`` as in `plan.plan_all`."""
    out, base = [], Walk(shape, METHODS["head"](), setting.batch, setting.length, setting.target_length).forward
    for character in FOUR:
        method = make_method(character.method, options, shape)
        sized = lambda size, m=method, name=character.size: count(replace(m, **{name: size}), shape)
        share = lambda size, sized=sized: sized(size) / (shape.total + sized(size))
        limit, slope, row = limit_of(method, shape), sized(2) - sized(1), plan(method, shape, setting)
        out.append(FourRow(character, getattr(method, character.size), slope, sized(1) - slope, row,
                           largest_below(character.bound, share, limit), limit, row.inference_flops / base - 1))
    return out


def bound_text(row):
    """Up to which r or n the usual bound holds."""
    letter = row.character.letter
    if row.largest == 0:
        return f"no {letter}"
    return f"all {letter} <= {row.limit:,}" if row.largest is None else f"{letter} <= {row.largest:,}"


def formula(row):
    """The count as a function of r or n."""
    return f"{row.slope:,} {row.character.letter}" + (f" + {row.constant:,}" if row.constant else "")


def as_json(row):
    """A line as JSON takes it."""
    return {**asdict(row.character), "at": row.size, "formula": formula(row), "count": row.row.without_head,
            "share": row.row.share_without_head, "holds_up_to": row.largest, "limit": row.limit,
            "slower": row.slower, "plan": plan_as_json(row.row)}
