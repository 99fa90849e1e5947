"""Adding LoRAs: a weighted sum of several attachments' changes, as a new attachment, exactly or of a lower rank.

    Delta W = sum_k w_k Delta W_k = [w_1 s_1 U_1, w_2 s_2 U_2, ...] [V_1, V_2, ...]^T          of rank R_1 + R_2 + ...

The sum of products is not the product of sums: adding the U and the V each for themselves gives something else. Re-factored to
a lower rank by the singular value decomposition Delta W = P S Q^T, U = P_r S_r^(1/2), V = Q_r S_r^(1/2) is the nearest there
is (Eckart and Young, Psychometrika 1, 1936); its error is the root of the sum of the squares of the other singular values.
"""

import numpy as np

from .attach import activate, attach
from .lora import LoRA, LoRALinear


def combine(model, weights, name, rank=None):
    """Attach the weighted sum of LoRA attachments under a new name; it becomes the active one.

    Args:
        model: the model that they are on.
        weights: {name of an attachment: number}. LoRA and its kin that add to a weight will do: all but DoRA.
        name: the new attachment's.
        rank: None for the exact sum; else the highest rank of each map's change.

    Returns:
        The new `Attachment`, of the method LoRA. With a rank its ``note`` says how far each map is from the exact sum. It has
        no head of its own: the base's counts, because a sum of changes says nothing of heads.

    Raises:
        ValueError: an unknown name, a taken one, no attachment, a weight that is no number, or an attachment that is no LoRA;
            nothing is changed.
    """
    attachments = vars(model).get("attachments", {})
    for given, weight in weights.items():
        if given not in attachments:
            raise ValueError(f"combine: no attachment is called {given!r}; attached: {', '.join(attachments) or 'none'}")
        if not np.isfinite(weight):
            raise ValueError(f"combine: the weight of {given!r} must be a number, got {weight}")
        kind = attachments[given].method.name
        own = [w for w in attachments[given].wrappers.values() if w is not attachments[given].head]
        if not own or not all(isinstance(w, LoRALinear) and w.additive for w in own):
            raise ValueError(f"combine: {given!r} is {kind}, whose change is not a product that can be added; LoRA's kin but "
                             "DoRA can")
    if not weights or rank is not None and rank < 1:
        raise ValueError(f"combine: expected at least one attachment, and a rank of at least 1 or None; got {len(weights)} and "
                         f"{rank}")
    factors, far = {}, {}
    for path in dict.fromkeys(path for given in weights for path in attachments[given].wrappers):
        parts = [(weight, attachments[given].wrappers[path]) for given, weight in weights.items()
                 if isinstance(attachments[given].wrappers.get(path), LoRALinear)]
        if parts:
            factors[path], far[path] = _sum(parts, rank)
    method = LoRA(rank=1, alpha=1.0, targets=list(factors), rank_pattern={path: u.shape[1] for path, (u, _) in factors.items()},
                  alpha_pattern={path: float(u.shape[1]) for path, (u, _) in factors.items()})
    method.trains_head, method.limited = False, False
    attachment = attach(model, method, name)
    for path, (u, v) in factors.items():
        attachment.wrappers[path].U.data, attachment.wrappers[path].V.data = u, v
    if rank is not None:
        worst = max(far, key=far.get)
        attachment.note = (f"re-factored to rank {rank}: off the exact sum by {np.mean(list(far.values())):.2g} of its size on "
                           f"average, {far[worst]:.2g} at most (at {worst})")
    activate(model, name)
    return attachment


def _sum(parts, rank):
    """((U, V), relative error) of the weighted sum of changes at one map; parts are (weight, wrapper)."""
    pairs = [wrapper.factors() for _, wrapper in parts]
    u = np.concatenate([u * u.dtype.type(weight) for (weight, _), (u, _) in zip(parts, pairs)], axis=1)  # (D_in, R_1 + R_2 + ...)
    v = np.concatenate([v for _, v in pairs], axis=1)  # (D_out, R_1 + R_2 + ...)
    if rank is None:
        return (u, v), 0.0
    left, singular, right = np.linalg.svd(u.astype(np.float64) @ v.T.astype(np.float64), full_matrices=False)
    roots, kept = np.sqrt(singular[:rank]), min(rank, len(singular))
    size = np.sqrt((singular**2).sum())
    error = float(np.sqrt((singular[kept:] ** 2).sum()) / size) if size else 0.0
    return ((left[:, :kept] * roots).astype(u.dtype), (right[:kept].T * roots).astype(u.dtype)), error
