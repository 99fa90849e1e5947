"""Checkpoints: everything a run needs to go on, in one file that is replaced in one step.

No random state is stored: the order of an epoch and the dropout of a step are drawn from generators made of the seed
and the number of the epoch or step, so a resumed run draws what the uninterrupted one drew.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..data import files


def save_checkpoint(path, parameters, optimizer, progress, hooks=()):
    """Write trained parameters, the state of optimizer and hooks, and progress.

    Args:
        path: file; its folder must exist. parameters: {path: Parameter}. progress: anything JSON can hold.
    """
    arrays = {f"parameter/{name}": p.data for name, p in parameters.items()}
    arrays |= {f"optimizer/{name}": a for name, a in optimizer.arrays().items()}
    arrays |= {f"hook/{i}/{name}": a for i, hook in enumerate(hooks) for name, a in hook.arrays().items()}
    files.write_tensors(path, arrays, {"progress": json.dumps(progress), "steps": str(optimizer.steps)})


def load_checkpoint(path, parameters, optimizer, hooks=()):
    """Fill parameters, optimizer and hooks from a file written by `save_checkpoint`; returns its progress.

    Raises ValueError, and changes nothing, when the file is damaged or does not hold exactly these parameters and a
    state of this optimizer and these hooks.
    """
    arrays, (progress, steps) = files.read_tensors(Path(path)), _read_progress(path)
    stored, state = ({name.removeprefix(kind): a for name, a in arrays.items() if name.startswith(kind)}
                     for kind in ("parameter/", "optimizer/"))
    files.check_tensors(path, {name: p.shape for name, p in parameters.items()}, stored)
    for name, parameter in parameters.items():
        if stored[name].dtype != parameter.dtype:
            raise ValueError(f"{path}: {name} is {stored[name].dtype} in this checkpoint, expected {parameter.dtype}")
    known = {name.rpartition(".")[2] for name in state}  # a parameter that never had a gradient has no state
    expected = {f"{moment}.{i}": p.shape for i, p in enumerate(optimizer.parameters()) if str(i) in known
                for moment in optimizer.moments}
    files.check_tensors(f"{path}: state of another optimizer or run", expected, state)
    of_hooks = [{name.removeprefix(f"hook/{i}/"): a for name, a in arrays.items() if name.startswith(f"hook/{i}/")}
                for i in range(len(hooks))]
    for hook, own in zip(hooks, of_hooks):
        files.check_tensors(f"{path}: state of another run", {name: a.shape for name, a in hook.arrays().items()}, own)
    for hook, own in zip(hooks, of_hooks):
        hook.load_arrays(own)
    for name, parameter in parameters.items():
        np.copyto(parameter.data, stored[name])  # keeps the array's layout in memory, on which the last bits of a product depend
    optimizer.load_arrays(state, steps)
    return progress


def _read_progress(path):
    """The progress, and the optimizer's number of steps, in the metadata of a checkpoint."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        return json.loads(metadata["progress"]), int(metadata["steps"])
    except (TypeError, KeyError, ValueError):  # no metadata, not this metadata, not JSON or no number
        raise ValueError(f"{path}: this safetensors file is not a checkpoint (it holds no progress of a run); "
                         "remove it to start again") from None
