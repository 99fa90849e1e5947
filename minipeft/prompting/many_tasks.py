"""Many tasks on one frozen model: batches of all of them in one training, each through what belongs to its task.

    min over shared, own_1 ... own_T of    sum over t of p_t E over D_t of loss_t(model with shared and own_t)
    p_t = min(|D_t|, K)^(1/tau) / sum over t' of the same        tau = 1: in proportion to size;  large tau: all tasks alike

With nothing shared, training together is training alone, task by task; what is shared (a LoRA, say, beside a task embedding for
each task) is where tasks help or hinder each other.

Sources: Raffel et al., JMLR 21, 2020, arXiv:1910.10683, section 3.5.2 (mixing by temperature, K); Sanh et al., ICLR 2022,
arXiv:2110.08207, section 5 (several prompts for each task).
"""

from typing import NamedTuple

import numpy as np

from ..methods import activate, attach


def shares(sizes, temperature=1.0, limit=None):
    """p (T,), how often each task is drawn; ``sizes``: examples of each.
    ``limit``: K, or one for each task (T,); None for none."""
    counts = np.minimum(np.asarray(sizes, np.float64), np.inf if limit is None else limit)
    if temperature <= 0 or not (counts > 0).all():
        raise ValueError(f"sampling: expected a temperature above 0 and examples of every task, got {temperature} and "
                         f"{list(sizes)}")
    weights = counts ** (1 / temperature)
    return weights / weights.sum()


def attach_tasks(model, tasks, own=None, shared=None, rng=None):
    """Attach what is each task's own, and what all share.

    Args:
        model: a model. tasks: names. own, shared: functions without arguments that make a `Method`, or None.
        rng: numpy.random.Generator for what starts at random.

    Returns:
        {task: names of the attachments that it goes through}.
    """
    if own is None and shared is None:
        raise ValueError("many tasks: expected a method for each task's own part, for what they share, or both")
    rng, names = rng or np.random.default_rng(0), []
    if shared is not None:
        attach(model, shared(), "shared", rng)
        names.append("shared")
    for task in tasks if own is not None else ():
        attach(model, own(), task, rng)
    return {task: (*names, task) if own is not None else tuple(names) for task in tasks}


def parameters_of(model, routes):
    """{path: Parameter} of all the attachments in ``routes``, a path beginning with the attachment's name."""
    names = dict.fromkeys(name for route in routes.values() for name in route)
    return {f"{name}:{path}": p for name in names for path, p in model.attachments[name].named_parameters().items()}


class TaskBatch(NamedTuple):
    """A batch of one task."""

    task: str
    batch: object

    @property
    def size(self):
        return self.batch.size


class ManyTasks:
    """Several works as one for `training.fit`; each batch is of one task, drawn with the probabilities p.

    Args:
        works: {task: a work such as `ClozeClassification`}. routes: {task: names of the attachments to go through}; default: the
            model as it is, for all.
        temperature, limit: tau and K, a number or one for each task in their order: T0 (section 5) gives a task that is put in
            several ways the same K for all of them together. batches: how many make an epoch;
            default: as many as the tasks have together.
    """

    metric = "mean"
    higher_is_better = True

    def __init__(self, works, routes=None, temperature=1.0, limit=None, batches=None):
        self.works, self.routes = works, routes
        self.names = list(works)
        self.p = shares([len(work.targets["train"]) for work in works.values()], temperature, limit)
        self.batches = batches or sum(work.number_of_batches() for work in works.values())

    def number_of_batches(self):
        """Batches in one epoch."""
        return self.batches

    def training_batches(self, rng):
        """The batches of an epoch: (task, indices), each task's own going round and round."""
        waiting, out = {name: [] for name in self.names}, []
        for number in rng.choice(len(self.names), self.batches, p=self.p):
            name = self.names[number]
            waiting[name] = waiting[name] or list(self.works[name].training_batches(rng))
            out.append((name, waiting[name].pop(0)))
        return out

    def collate(self, drawn, split="train"):
        """The batch of a task and the indices of its examples."""
        return TaskBatch(drawn[0], self.works[drawn[0]].collate(drawn[1], split))

    def weight(self, batch):
        """What a batch counts for when several make one step."""
        return self.works[batch.task].weight(batch.batch)

    def enter(self, model, task):
        """Make the attachments of a task the active ones."""
        if self.routes is not None:
            activate(model, *self.routes[task])

    def loss(self, model, batch):
        """The loss of a batch's own task, a Tensor."""
        self.enter(model, batch.task)
        return self.works[batch.task].loss(model, batch.batch)

    def evaluate(self, model, split):
        """{"score": the mean of the tasks' scores, and each task's}; {} where no task has this split."""
        scores = {}
        for task, work in self.works.items():
            self.enter(model, task)
            found = work.evaluate(model, split)
            scores |= {task: found["score"]} if found else {}
        return {"score": float(np.mean(list(scores.values()))), **scores} if scores else {}


def over_templates(model, works, split="test"):
    """{"scores", "median", "quartiles"} of one task put in several ways:
    ``works`` has one for each template (T0, section 6.1)."""
    scores = [work.evaluate(model, split)["score"] for work in works]
    low, median, high = np.percentile(scores, (25, 50, 75))
    return {"scores": scores, "median": float(median), "quartiles": (float(low), float(high))}
