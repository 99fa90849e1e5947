"""The sizes and settings of the timed training step, the same for both sides, and its matrix FLOPs on paper."""

from dataclasses import dataclass

RANK, ALPHA = 8, 16
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


@dataclass(frozen=True)
class Row:
    """One size of the model and its batch: D, L, H, T, B, V; the feed-forward is 4 D wide."""

    width: int
    layers: int
    heads: int
    length: int
    batch: int
    vocabulary: int


ROWS = {row.width: row for row in (
    Row(width=64, layers=2, heads=4, length=32, batch=32, vocabulary=512),
    Row(width=128, layers=4, heads=4, length=64, batch=32, vocabulary=1024),
    Row(width=384, layers=6, heads=12, length=64, batch=16, vocabulary=4096),
    Row(width=768, layers=12, heads=12, length=128, batch=4, vocabulary=8192),
)}


def matrix_flops(row, method):
    """Floating-point operations of the matrix products of one training step.

    With N = B T rows, 2 for a multiply-add, and one map (D_in, D_out) costing 2 N D_in D_out:

        blocks     m = 2 N 12 D^2       each block: q, k, v, out of D^2 and up, down of 4 D^2
        head       h = 2 N D V
        attention  a = 2 B T^2 D        each of its products, q k^T and w v, counted whole although half is masked
        LoRA       r = 2 N D R          each of the products with U or V

    Full: forward, dx and dW are one product each, also in attention:

        3 (L m + h + 2 L a)

    LoRA on q and v, all else frozen: no dW. The input of the first block needs no gradient, so there q, k and v have
    no dx (3/12 of m), q k^T hands nothing to k, and U hands nothing to x. Each of the 2 L adapted maps has two
    products forward and four backward, three in the first block:

        (2 L - 3/12) m + 2 h + (6 L - 1) a + (2 L 6 - 2) r
    """
    n, layers = row.batch * row.length, row.layers
    m = 2 * n * 12 * row.width**2
    h = 2 * n * row.width * row.vocabulary
    a = 2 * row.batch * row.length**2 * row.width
    r = 2 * n * row.width * RANK
    if method == "full":
        return 3 * (layers * m + h + 2 * layers * a)
    return (2 * layers - 3 / 12) * m + 2 * h + (6 * layers - 1) * a + (12 * layers - 2) * r
