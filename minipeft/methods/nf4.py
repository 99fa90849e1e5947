"""A 4-bit base: the frozen maps are stored in 4 bits a weight and read anew at each use, so that LoRA needs little memory.

    h = x W~ + b,    W~ = dequantise(codes, scales),    dx = g W~^T;      with LoRA on top  h = x W~ + b + s (x U) V^T

Gradients reach x, and through it U and V, and never W~. In blocks of 64 weights each is one of sixteen levels times the
block's scale. The scales themselves are stored in 8 bits ("double quantisation"): less their mean, in groups of 256 with
one scale a group. Together 4 + 8/64 + 32/(64 x 256) = 4.127 bits a weight.

Dettmers, Pagnoni, Holtzman, Zettlemoyer, NeurIPS 2023, arXiv:2305.14314, sections 2 and 3. The levels stand in
``kernels/nf4.py``; our 8-bit code is the plain linear one, -127 ... 127.

A conversion made before attaching, not an attachment: `quantise`, then `attach`. A change cannot be merged into 4 bits.
"""

import math

import numpy as np

from .. import autograd as F
from ..kernels import dequantise_nf4, quantise_nf4
from ..nn import Linear, Parameter, Wrapper, unwrap
from .targets import linear_paths, match

BLOCK, GROUP = 64, 256  # weights that share a scale, and scales that share one


class Quantised:
    """A matrix in 4 bits: ``shape``, ``dtype``, ``size``, and ``data``, which is read anew each time."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, weight, double):
        self.shape, self.size, self.double = weight.shape, weight.size, double
        self.codes, scales = quantise_nf4(weight.reshape(-1), BLOCK)
        self.mean = np.float32(scales.mean()) if double else np.float32(0)
        self.scales, self.group_scales = scales, None
        if double:
            padded = np.zeros(-(-len(scales) // GROUP) * GROUP, np.float32)
            padded[:len(scales)] = scales - self.mean
            groups = padded.reshape(-1, GROUP)
            self.group_scales = np.maximum(np.abs(groups).max(axis=1), np.float32(1e-30)) / np.float32(127)  # (groups,)
            self.scales = np.rint(groups / self.group_scales[:, None]).astype(np.int8).reshape(-1)[:len(scales)]

    @property
    def data(self):
        """The float32 matrix."""
        scales = self.scales
        if self.double:
            scales = scales * np.repeat(self.group_scales, GROUP)[:len(scales)] + self.mean
        return dequantise_nf4(self.codes, scales, self.size, BLOCK).reshape(self.shape)

    @property
    def nbytes(self):
        """Bytes that are stored."""
        return self.codes.nbytes + self.scales.nbytes + (self.group_scales.nbytes + self.mean.nbytes if self.double else 0)


class Linear4bit(Linear):
    """y = x W~ + b with a matrix that is stored in 4 bits, and that no gradient reaches."""

    def __init__(self, linear, double):
        self.weight, self.bias = Quantised(linear.weight.data, double), linear.bias

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        shape, (d_in, d_out), weight = x.shape, self.weight.shape, self.weight
        rows = math.prod(shape[:-1])
        y = (x.data.reshape(rows, d_in) @ weight.data).reshape(*shape[:-1], d_out)  # (..., D_out)
        y = F.Tensor(y, operation="linear_4bit",
                     parents=[(x, lambda g: (g.reshape(rows, d_out) @ weight.data.T).reshape(shape))])
        return y if self.bias is None else y + self.bias


def quantise(model, targets=None, double=True):
    """Store the Linear maps of the blocks in 4 bits, in place.

    Args:
        model: a model without attachments. targets: patterns of the maps; None: all in the blocks.
        double: store the scales in 8 bits too.

    Returns:
        A list of {"path", "weights", "bytes", "bits", "error"} for each map, error being |W - W~| / |W| (Frobenius).

    Raises:
        ValueError: attachments on the model, a map that is in 4 bits already, a pattern that matches nothing, or a weight that
            is not finite; nothing is changed.
    """
    if vars(model).get("attachments"):
        raise ValueError(f"quantise: attached: {', '.join(model.attachments)}; quantise the base before attaching to it")
    paths = linear_paths(model)
    paths = paths if targets is None else match(targets, paths, "quantise targets")
    for path in paths:
        linear = model.get(path)
        if isinstance(linear, Linear4bit):
            raise ValueError(f"quantise: {path} is in 4 bits already; dequantise the model first")
        if isinstance(linear, Wrapper) or not np.isfinite(linear.weight.data).all():
            fault = "is wrapped" if isinstance(linear, Wrapper) else "holds NaN or infinity"
            raise ValueError(f"quantise: {path}.weight {fault}")
    report = []
    for path in paths:
        weight = model.get(path).weight.data
        model.replace(path, Linear4bit(model.get(path), double))
        stored = model.get(path).weight
        off, size = np.linalg.norm(weight - stored.data), np.linalg.norm(weight)
        report.append({"path": path, "weights": weight.size, "bytes": stored.nbytes, "bits": 8 * stored.nbytes / weight.size,
                       "error": float(off / size) if size else 0.0})
    return report


def summary(report):
    """What `quantise` reported, on one line: memory before and after (MB of 10^6 bytes), bits a weight, and the error."""
    weights, stored = sum(row["weights"] for row in report), sum(row["bytes"] for row in report)
    worst = max(report, key=lambda row: row["error"])
    mean = sum(row["error"] for row in report) / len(report)
    return (f"4-bit base: {len(report)} maps of {weights:,} weights in {stored / 1e6:.2f} MB instead of "
            f"{4 * weights / 1e6:.2f} MB, {8 * stored / weights:.3f} bits a weight; error |W - W~| / |W| {mean:.3f} on average, "
            f"{worst['error']:.3f} at most (at {worst['path']})")


def dequantise(model):
    """Make the maps that are in 4 bits ordinary ones again, with the values that the 4 bits stand for."""
    if vars(model).get("attachments"):
        raise ValueError(f"dequantise: attached: {', '.join(model.attachments)}; save and detach them first")
    for path in linear_paths(model):
        stored = model.get(path)
        if isinstance(stored, Linear4bit):
            linear = object.__new__(Linear)
            linear.weight, linear.bias = Parameter(stored.weight.data), stored.bias
            model.replace(path, linear)
    return model


def quantised(model):
    """The settings with which `quantise` makes another model as this one is: {"targets", "double"}; None without 4 bits.

    An adapter is saved with them, because it was trained beside these weights and no others.
    """
    maps = {path: unwrap(model.get(path)) for path in linear_paths(model)}
    stored = [path for path, linear in maps.items() if isinstance(linear, Linear4bit)]
    if not stored:
        return None
    return {"targets": None if len(stored) == len(maps) else stored, "double": maps[stored[0]].weight.double}


def weights_in_4_bits(model):
    """How many weights of a model are in 4 bits; they are no Parameters, so that no other count has them."""
    return sum(module.weight.size for _, module in model.named_modules() if isinstance(module, Linear4bit))
