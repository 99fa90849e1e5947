"""The backward pass of an embedding look-up: each row of the gradient is added to the row of the table it came from.

    y_n = E[ids_n]          dE[v] = sum over the n with ids_n = v of g_n
"""

import numpy as np

from .backend import Kernel, jit, run_rows


def scatter_add_reference(ids, gradient, rows):
    """Gradient of a table with ``rows`` rows.

    Args:
        ids: (N,) int64, each in 0..rows-1.
        gradient: (N, D).
        rows: number of rows of the table.

    Returns:
        (rows, D), zero in every row that no id names.
    """
    out = np.zeros((rows, gradient.shape[1]), gradient.dtype)
    np.add.at(out, ids, gradient)
    return out


@jit
def _scatter_add_all(start, stop, ids, gradient, out):
    for n in range(start, stop):  # several n may name one row: this loop is never cut into threads
        g, o = gradient[n], out[ids[n]]
        for j in range(g.size):
            o[j] += g[j]


def scatter_add_compiled(ids, gradient, rows):
    """The compiled form of `scatter_add_reference`."""
    out = np.zeros((rows, gradient.shape[1]), gradient.dtype)
    run_rows(_scatter_add_all, len(ids), 0, np.ascontiguousarray(ids, dtype=np.int64),
             np.ascontiguousarray(gradient), out)
    return out


scatter_add = Kernel("scatter_add", scatter_add_reference, scatter_add_compiled)
