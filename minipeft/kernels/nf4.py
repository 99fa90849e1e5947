"""Weights in 4 bits: in each block of numbers the index of the nearest of sixteen levels, and one scale for the block.

    c = max |w| in the block,      code = number of the level nearest to w / c,      w ~ levels[code] c

The levels are quantiles of the normal distribution scaled to [-1, 1], with 0 among them: Dettmers, Pagnoni, Holtzman,
Zettlemoyer, NeurIPS 2023, arXiv:2305.14314, section 3 and appendix E. Half-way between two levels the lower one counts.
"""

from functools import partial

import numpy as np

from .backend import Kernel, jit, run_rows

LEVELS = np.array([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302,
                   0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)
MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
ZERO = 7  # the level 0


def quantise_nf4_reference(w, block):
    """Codes and scales of numbers.

    Args:
        w: (N,) numbers, taken as float32. block: how many share a scale.

    Returns:
        codes (ceil(N / 2),) uint8, two in a byte, the first in its upper half; scales (ceil(N / block),) float32.
    """
    blocks = -(-len(w) // block)
    padded = np.zeros(blocks * block, np.float32)
    padded[:len(w)] = w
    padded = padded.reshape(blocks, block)
    scales = np.abs(padded).max(axis=1, initial=0)  # (blocks,)
    with np.errstate(invalid="ignore"):
        x = padded / np.where(scales == 0, np.float32(1), scales)[:, None]
        codes = (x[:, :, None] > MIDDLES).sum(axis=2).reshape(-1)[:len(w)]  # (N,)
    even = np.full(len(w) + len(w) % 2, ZERO)
    even[:len(w)] = codes
    return (even[0::2] * 16 + even[1::2]).astype(np.uint8), scales


@partial(jit, fastmath=False)  # a reciprocal in place of the division could move a number across a border
def _quantise_blocks(start, stop, w, block, middles, codes, scales):
    for b in range(start, stop):
        low, high = b * block, min(len(w), (b + 1) * block)
        c = np.float32(0)
        for i in range(low, high):
            a = abs(w[i])
            if a > c or a != a:
                c = a
        scales[b] = c
        divisor = np.float32(1) if c == 0 else c
        for i in range(low, high):
            x, code = w[i] / divisor, 0
            for j in range(middles.size):
                code += x > middles[j]
            codes[i] = code


def quantise_nf4_compiled(w, block):
    """The compiled form of `quantise_nf4_reference`."""
    w = np.ascontiguousarray(w, dtype=np.float32)
    blocks = -(-len(w) // block)
    codes, scales = np.full(len(w) + len(w) % 2, ZERO, np.uint8), np.zeros(blocks, np.float32)
    run_rows(_quantise_blocks, blocks, 8 * len(w), w, block, MIDDLES, codes, scales)
    return codes[0::2] * np.uint8(16) + codes[1::2], scales


def dequantise_nf4_reference(codes, scales, count, block):
    """The numbers (count,) float32 that codes and scales stand for; see `quantise_nf4_reference`."""
    both = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:count]  # (count,)
    return LEVELS[both] * np.repeat(np.asarray(scales, np.float32), block)[:count]


@jit
def _dequantise_blocks(start, stop, codes, scales, block, levels, out):
    for b in range(start, stop):
        c = scales[b]
        for i in range(b * block, min(len(out), (b + 1) * block)):
            byte = np.int64(codes[i // 2])
            out[i] = levels[byte // 16 if i % 2 == 0 else byte % 16] * c


def dequantise_nf4_compiled(codes, scales, count, block):
    """The compiled form of `dequantise_nf4_reference`."""
    out = np.empty(count, np.float32)
    run_rows(_dequantise_blocks, -(-count // block), 2 * count, np.ascontiguousarray(codes),
             np.ascontiguousarray(scales, dtype=np.float32), block, LEVELS, out)
    return out


quantise_nf4 = Kernel("quantise_nf4", quantise_nf4_reference, quantise_nf4_compiled)
dequantise_nf4 = Kernel("dequantise_nf4", dequantise_nf4_reference, dequantise_nf4_compiled)
