"""Naming places in a model by patterns: which modules a method's targets mean, and a helpful refusal where they mean none."""

import difflib
import fnmatch

from ..nn import Linear


def match(patterns, paths, where="attach"):
    """The paths that the patterns name, in the paths' order.

    A pattern (with ``*`` and ``?``) matches a whole dotted path or its end: ``q`` and ``attn.q`` both match
    ``blocks.0.attn.q``. Several patterns come as a sequence or separated by commas.

    Raises ValueError when there is no pattern, or one matches nothing; the message lists what exists.
    """
    patterns = [p.strip() for p in patterns.split(",")] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(f"{where}: no pattern is given. Seams: {', '.join(seam_names(paths))}")
    found = set()
    for pattern in patterns:
        hits = [p for p in paths if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, f"*.{pattern}")]
        if not hits:
            raise ValueError(f"{where}: no module matches {pattern!r}{_suggestion(pattern, paths)} "
                             f"Seams: {', '.join(seam_names(paths))}")
        found.update(hits)
    return [p for p in paths if p in found]


def seam_names(paths):
    """Paths with the number of the block replaced by ``*``, each once."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths))


def _suggestion(pattern, paths):
    names = seam_names(paths)
    known = {ending: name for name in names for ending in (name, name.split(".", 2)[-1], name.rpartition(".")[2])}
    close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]!r}?" if close else "."


def block_paths(model, kind, name="*"):
    """Paths of the modules of a ``kind`` (a class, or several) inside the blocks, whose last part is ``name``."""
    return [path for path, module in model.named_modules()
            if isinstance(module, kind) and "blocks" in path.split(".") and fnmatch.fnmatchcase(path.rpartition(".")[2], name)]


def linear_paths(model):
    """Paths of the Linear maps inside the blocks."""
    return block_paths(model, Linear)
