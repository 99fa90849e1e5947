"""What a finished run measures on its model: the time of a forward pass with the base, with the method beside it, and merged.

The three take turns, so that whatever else the machine does falls on all alike; each figure is the median over the rounds.
"""

import contextlib
import statistics
import time

import numpy as np

from ..autograd import no_grad
from ..data import make_batches

BATCHES, TIMED = 4, 2                 # batches that are looked at, and that are timed in a round
LEAST, MOST, SECONDS = 5, 25, 0.5     # rounds, as many as fit into so many seconds


def batches_of(work, count=BATCHES, size=None):
    """Up to ``count`` batches of dev (where there is none, of train), spread evenly over what an evaluation goes through.

    ``size`` of a batch of texts: what an evaluation takes, unless given.
    """
    held = next(getattr(work, name) for name in ("encodings", "blocks") if hasattr(work, name))
    split = next(name for name in ("dev", "train", "test") if name in held and len(held[name]))
    if work.task == "lm":
        number = len(held[split][0])
        groups = [np.arange(i, min(i + work.batch_size, number)) for i in range(0, number, work.batch_size)]
    else:
        groups = make_batches(held[split], size or 2 * work.batch_size)
    chosen = sorted({len(groups) * (2 * i + 1) // (2 * count) for i in range(count)})
    return [work.collate(groups[i], split) for i in chosen]


def forward(work, model, batch):
    """One pass: to the logits of classes, or to the loss of a model that writes text."""
    if work.task == "classify":
        return work.scores(model, batch)
    return work.loss(model, batch)


def take_turns(sides, batches, work, least=LEAST):
    """{name: [seconds for all the batches, in each round]} of sides {name: (model, function that makes a context)}.

    The order turns from round to round, and the first round, which warms up, is not counted. There are ``least`` others, and
    more where they are short.
    """
    times, names, started, rounds = {name: [] for name in sides}, list(sides), time.perf_counter(), 0
    while rounds <= least or rounds <= MOST and time.perf_counter() - started < SECONDS:
        for name in names[rounds % len(names):] + names[:rounds % len(names)]:
            model, context = sides[name]
            with context(), no_grad():
                forward(work, model, batches[0])  # what switching has moved is in the caches again
                before = time.perf_counter()
                for batch in batches:
                    forward(work, model, batch)
                times[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: values[1:] for name, values in times.items()}


@contextlib.contextmanager
def merged(attachment):
    """Inside this block the attachment is merged into the base."""
    attachment.merge()
    try:
        yield
    finally:
        attachment.unmerge()


def inference(attachment, used, work):
    """Time a forward pass.

    Args:
        attachment: on the model. used: the model as it predicts (see `exits.models_of`). work: whose dev batches are run.

    Returns:
        {"examples", "batches", "rounds", "base_ms", "unmerged_ms", "merged_ms", "unmerged_ratio", "merged_ratio", "why_not"}: ms
        for a batch and ratios to the base; merged_ms and merged_ratio are None where nothing can be merged, and ``why_not``
        then says why. Where the method trains the base in place, and no copy of it is kept, the base is the model itself, whose
        time does not depend on the numbers in it.
    """
    model, batches, why = attachment.model.eval(), batches_of(work, TIMED, work.batch_size), None
    stays = attachment.base and not attachment.method.keeps_base
    sides = {"base": (model, contextlib.nullcontext if stays else attachment.disabled),
             "unmerged": (used, contextlib.nullcontext)}
    try:
        attachment.check_mergeable()
        sides["merged"] = model, lambda: merged(attachment)
    except ValueError as error:
        why = str(error).removeprefix("merge: ")
    times = take_turns(sides, batches, work)
    out = {"examples": sum(len(b.input_ids) for b in batches), "batches": len(batches), "rounds": len(times["base"])}
    for name in ("base", "unmerged", "merged"):
        known = name in times
        out[f"{name}_ms"] = 1e3 * statistics.median(times[name]) / len(batches) if known else None
        if name != "base":
            ratios = [own / base for own, base in zip(times[name], times["base"])] if known else []
            out[f"{name}_ratio"] = statistics.median(ratios) if known else None
    return {**out, "why_not": why}
