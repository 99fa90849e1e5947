"""What a method costs on a model, from the model's shape and the method's own formula: parameters, bytes, operations, seconds.

    trainable    the method's `count`, which stands beside its module, and the task's head where it is trained along
    weights      the base, what the method adds, and a copy of what it trains in place (also PiSSA's fixed factors, and the places
                 of a mask's entries);  4-bit: `nf4`'s bits for the blocks' maps
    gradients    one number for each trained parameter;      AdamW: two moments for each, in float32 or wider
    activations  what autograd keeps for the backward pass (`plan_cost`)
    at its peak  weights + moments + the larger of gradients and (activations + temporaries), as gradients come where the
                 activations go;  Python and its libraries, some 150 MB, are not in it
    time         operations of matrix products / a stated rate
"""

import math
from dataclasses import asdict, dataclass, fields, replace

from ..methods import BitFit, Compacter, Full, LayerNormTuning, LoRA, PiSSA, Prefix, RandomMask, TopK
from ..methods.nf4 import BLOCK, GROUP
from ..methods.shapes import linear_shapes
from .exits import OFFERED, EarlyExitTuning
from .plan_cost import Walk

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
TASKS = 1000  # for which storage is told


# ---- methods ---------------------------------------------------------------------------------------------------


def make_method(name, options, shape):
    """A method with those of the ``options`` {field: value} that it has; ``output`` has two label words where no classes are."""
    known = {f.name for f in fields(OFFERED[name])}
    chosen = {field: value for field, value in options.items() if field in known}
    if name == "output" and shape.task != "classify":
        chosen["words"] = [0, 1]  # two label words: which does not matter
    chosen.pop("initial", None)  # how virtual tokens start costs nothing, and may need words
    return OFFERED[name](**chosen)


def check_fit(method, shape, number, length=0, base_bits=None):
    """Raise ValueError where a method that trains ``number`` parameters does not go with a shape, in the words of `attach`."""
    config, name = shape.config, method.name
    if isinstance(method, LoRA):
        shapes = linear_shapes(config)
        for path, (rank, _) in method.places(list(shapes)).items():
            if method.limited and rank > min(shapes[path]):
                raise ValueError(f"{name}: the rank at {path} must be a whole number from 1 to {min(shapes[path])}, got {rank}")
    width = config.hidden_size
    if isinstance(method, Compacter) and (width % method.num_factors or method.bottleneck % method.num_factors):
        raise ValueError(f"compacter: num_factors must be a whole number that divides the width {width} and the bottleneck "
                         f"{method.bottleneck}, got {method.num_factors}")
    if isinstance(method, BitFit) and number == 0:
        raise ValueError(f"bitfit: this {shape.model_type} model has no bias to train; --add-zero-biases adds biases of zeros")
    if name == "head" and shape.head == 0:
        raise ValueError("head: the output map is tied to the word vectors, so that there is none of its own to train")
    if isinstance(method, EarlyExitTuning) and (shape.task != "classify" or config.encoder_decoder
                                                or config.num_hidden_layers < 2):
        raise ValueError(f"{name}: expected an encoder or a decoder with 2 blocks or more that classifies, got a "
                         f"{shape.model_type} with {config.num_hidden_layers} blocks, for {shape.task}; see --task")
    if base_bits and method.full_precision:
        raise ValueError(f"{name}: trains weights, which must not be stored in 4 bits; leave --base-bits out, or take lora")
    taken = method.positions_taken
    if shape.positions is not None and length + taken > shape.positions:
        virtual = f" and {taken} virtual ones come before them" if taken else ""
        raise ValueError(f"length: {length} tokens{virtual}, and {shape.name} has {shape.positions} positions; take at most "
                         f"{max(shape.positions - taken, 0)}")


def fitting_length(methods, shape, most):
    """The tokens of an example for which there is room, at most ``most``, with any of the methods that have room for a word."""
    if shape.positions is None:
        return most
    taken = max((m.positions_taken for m in methods if m.positions_taken < shape.positions), default=0)
    return min(most, shape.positions - taken)


def beside(method, shape):
    """How many of the parameters that the config has not (`Shape.beside`) a method trains, which it does in place."""
    if isinstance(method, Full):
        chosen = list(shape.beside)
    elif isinstance(method, TopK):
        chosen = [path for path in shape.beside if path.startswith(tuple(f"{block}." for block in method.blocks(shape.config)))]
    elif isinstance(method, LayerNormTuning) or getattr(method, "train_norms", False):
        chosen = [path for path in shape.beside if path.split(".")[-2].endswith("norm")]
    elif isinstance(method, BitFit) and method.terms == "all":
        chosen = [path for path in shape.beside if path.endswith(".bias")]
    else:
        chosen = []
    return sum(shape.beside[path] for path in chosen)


def count(method, shape):
    """The number of trained parameters without the head."""
    exits = (shape.config.num_hidden_layers - 1) * shape.square if isinstance(method, EarlyExitTuning) else 0
    return method.count(shape.config) + beside(method, shape) + exits


def head_count(method, shape):
    """The number of those of the head: of the classifier, or for full and head-only tuning of the map to the vocabulary."""
    return shape.head if shape.task == "classify" and method.trains_head or method.name in ("full", "head") else 0


def in_place(method, shape, number):
    """How many of the ``number`` trained parameters without the head are the base's own."""
    if isinstance(method, Full):
        return shape.body + shape.pooler
    if isinstance(method, (TopK, LayerNormTuning)):
        return number
    if isinstance(method, BitFit):
        return count(replace(method, add_zero_biases=False), shape)
    if getattr(method, "train_norms", False):
        return number - count(replace(method, train_norms=False), shape)
    return 0


def stored(method, shape, number):
    """What a task's file holds besides the head: (numbers, further bytes)."""
    if isinstance(method, Prefix):
        number = count(replace(method, reparametrise=False), shape)  # the network is dropped
    return number, 8 * number if isinstance(method, RandomMask) else 0  # where each entry stands


# ---- one row ---------------------------------------------------------------------------------------------------


@dataclass
class Setting:
    """What a plan is made for.

    Attributes:
        batch, length: rows and tokens of a step. target_length: of an encoder-decoder's targets.
        dtype: of weights, gradients and activations (minipeft itself trains in float32). base_bits: 4, or None.
        flops: operations a second. tokens: of the whole training.
    """

    batch: int = 16
    length: int = 128
    target_length: int = 64
    dtype: str = "float32"
    base_bits: int | None = None
    flops: float = 200e9
    tokens: int = 1_000_000


@dataclass
class Row:
    """One method on one shape: parameters, bytes, operations and seconds; all shares are from 0 to 1.

    ``task_bytes`` is one task's file with its head, ``tasks_bytes`` of `TASKS` tasks, ``copies_bytes`` of as many whole models.
    ``merges``: whether inference costs what the base costs. Of early exit it is told as though nobody left early.
    """

    method: str
    settings: dict
    without_head: int
    trainable: int
    total: int
    share_without_head: float
    share: float
    weights_bytes: int
    gradients_bytes: int
    moments_bytes: int
    activations_bytes: int
    temporary_bytes: int
    peak_bytes: int
    task_bytes: int
    tasks_bytes: int
    copies_bytes: int
    merges: bool
    forward_flops: int
    backward_flops: int
    inference_flops: int
    step_seconds: float
    inference_seconds: float
    steps: int
    training_seconds: float


def nf4_bytes(size):
    """Bytes of so many weights in 4 bits: two in a byte, an 8-bit scale for each 64, a float32 for 256 scales, and their mean."""
    blocks = -(-size // BLOCK)
    return -(-size // 2) + blocks + 4 * -(-blocks // GROUP) + 4


def weights_bytes(method, shape, setting, number, own):
    """Bytes of the model with a method on it that trains ``number`` parameters, of which ``own`` are the base's."""
    copies = own if method.keeps_base else 0  # so that it can be switched off
    head = 0 if isinstance(method, Full) else head_count(method, shape)  # the base's stays beside it
    numbers, packed = shape.total + number - own + copies + head, 0
    numbers += number * isinstance(method, PiSSA)
    packed += 8 * number * isinstance(method, RandomMask)
    if setting.base_bits:
        maps = [d_in * d_out for d_in, d_out in linear_shapes(shape.config).values()]
        numbers, packed = numbers - sum(maps), packed + sum(map(nf4_bytes, maps))
    return BYTES[setting.dtype] * numbers + packed


def plan(method, shape, setting=None):
    """The `Row` of a method on a `Shape`. Raises ValueError where they do not go together."""
    setting = setting or Setting()
    method.check(shape.config)
    size, without = BYTES[setting.dtype], count(method, shape)
    check_fit(method, shape, without, setting.length, setting.base_bits)
    own, trainable = in_place(method, shape, without), without + head_count(method, shape)
    total = shape.total + without - own
    walk = Walk(shape, method, setting.batch, setting.length, setting.target_length)
    largest = max(d_in * d_out for d_in, d_out in linear_shapes(shape.config).values()) if setting.base_bits else 0
    weights, gradients = weights_bytes(method, shape, setting, without, own), size * trainable
    moments, kept, temporary = 2 * max(size, 4) * trainable, size * walk.kept, size * (walk.temporary + largest)
    numbers, more = stored(method, shape, without)
    task = size * (numbers + trainable - without) + more
    merges = not (method.unmergeable or setting.base_bits or isinstance(method, EarlyExitTuning))
    inference = walk.forward - (walk.extra if merges else 0)
    step = (walk.forward + walk.backward) / setting.flops
    steps = math.ceil(setting.tokens / (setting.batch * setting.length))
    settings = {f.name: getattr(method, f.name) for f in fields(method)}
    return Row(method.name, settings, without, trainable, total, without / total, trainable / total, weights, gradients, moments,
               kept, temporary, weights + moments + max(gradients, kept + temporary), task, TASKS * task,
               TASKS * size * shape.total, merges, walk.forward, walk.backward, inference, step, inference / setting.flops, steps,
               steps * step)


def plan_all(shape, options, setting):
    """([Row] of every method that goes with a shape, {method: why not} of the others)."""
    rows, refused = [], {}
    for name in OFFERED:
        try:
            rows.append(plan(make_method(name, options, shape), shape, setting))
        except ValueError as error:
            refused[name] = str(error)
    return rows, refused


def as_json(row):
    """A row as JSON takes it; settings without a value are left out."""
    out = asdict(row)
    out["settings"] = {name: value for name, value in out["settings"].items() if value is not None and value != {}}
    return out


def unused(options, methods):
    """Names of the options that none of the methods has."""
    known = set().union(*({f.name for f in fields(OFFERED[name])} for name in methods))
    return [name for name in options if name not in known]
