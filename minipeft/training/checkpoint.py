"""Checkpoints: everything a run needs to go on, in one file that is replaced in one step.

No random state is stored: the order of an epoch and the dropout of a step are drawn from generators made of the seed
and the number of the epoch or step, so a resumed run draws what the uninterrupted one drew.
"""

import json
from pathlib import Path

from ..data import files


def save_checkpoint(path, parameters, optimizer, progress):
    """Write trained parameters, optimizer state and progress.

    Args:
        path: file; its folder must exist. parameters: {path: Parameter}. progress: anything JSON can hold.
    """
    arrays = {f"parameter/{name}": p.data for name, p in parameters.items()}
    arrays |= {f"optimizer/{name}": a for name, a in optimizer.arrays().items()}
    files.write_tensors(path, arrays, {"progress": json.dumps(progress), "steps": str(optimizer.steps)})


def load_checkpoint(path, parameters, optimizer):
    """Fill parameters and optimizer from a file written by `save_checkpoint`; returns its progress.

    Raises ValueError when the file does not hold exactly these parameters.
    """
    from safetensors import safe_open

    arrays = files.read_tensors(Path(path))
    stored = {name.removeprefix("parameter/"): a for name, a in arrays.items() if name.startswith("parameter/")}
    files.check_tensors(path, {name: p.shape for name, p in parameters.items()}, stored)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    for name, parameter in parameters.items():
        parameter.data = stored[name]
    optimizer.load_arrays({name.removeprefix("optimizer/"): a for name, a in arrays.items() if name.startswith("optimizer/")},
                          int(metadata["steps"]))
    return json.loads(metadata["progress"])
