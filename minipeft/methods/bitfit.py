"""BitFit: only the biases are trained, all of them or the two that matter most.

    y = x W + b,      db = sum of g over batch and time, g the gradient of y;      W stays as it is

With softmax attention the key bias cannot matter: q_i . (k_j + b_k) = q_i . k_j + (a number without j), which the softmax
takes out; so db_k = 0 exactly, except where keys are rotated after the bias is added, or others stand beside them.

Ben Zaken, Ravfogel, Goldberg, ACL 2022, arXiv:2106.10199, sections 2 and 3.

Shapes: b as wide as its map, D or F. Count for BERT: (7 D + F) L + D, and D more of the pooler where the head reads it; two
terms: (D + F) L. Trained in place: inference costs what the base costs.
"""

from dataclasses import dataclass

import numpy as np

from ..nn import Parameter, Wrapper, unwrap
from .attach import Method
from .shapes import bias_sizes, linear_shapes, norm_sizes, pooler_sizes
from .targets import linear_paths

TERMS = {"all": None, "two": ("attn.q", "cross.q", "mlp.up", "mlp.gate")}


class AddedBias(Wrapper):
    """A bias for a Linear that has none: y = x W + b, b (D_out,), zero at first."""

    additive = True

    def __init__(self, wrapped):
        super().__init__(wrapped)
        weight = unwrap(wrapped).weight
        self.b = Parameter(np.zeros(weight.shape[1], weight.dtype))

    def forward(self, x):
        """x (..., D_in) -> (..., D_out)."""
        return self.wrapped(x) + self.b  # (..., D_out)


@dataclass
class BitFit(Method):
    """Train the biases in place.

    Args:
        terms: ``all`` additive biases, those of the norms included; or ``two``: of the query maps and of the maps that
            enter the feed-forward (b_q and b_1).
        add_zero_biases: give every Linear map of the blocks that has no bias one of zeros, and train it; for models such as
            LLaMA and T5. Other libraries cannot hold these.

    Raises ValueError where there is no bias to train.
    """

    terms: str = "all"
    add_zero_biases: bool = False

    name = "bitfit"
    default_lr = 1e-3

    @property
    def trains(self):
        """What is trained, in words."""
        maps = "map" if self.terms == "all" else "query map and map into the feed-forward"
        return (f"D_out of each {maps}" + " with a bias" * (not self.add_zero_biases)
                + ", D of each norm with one" * (self.terms == "all"))

    @property
    def unmergeable(self):
        """Why this cannot be merged, where biases were added."""
        return "the maps to which biases were added have no place for them" if self.add_zero_biases else None

    def _chosen(self, paths):
        """Those of the paths of biased modules that are trained."""
        if self.terms not in TERMS:
            raise ValueError(f"bitfit: terms must be all or two, got {self.terms!r}")
        ends = TERMS[self.terms]
        return [path for path in paths if ends is None or path.endswith(ends)]

    def wrappers(self, model, rng):
        if not self.add_zero_biases:
            return {}
        bare = [path for path in linear_paths(model) if unwrap(model.get(path)).bias is None]
        return {path: AddedBias(model.get(path)) for path in self._chosen(bare)}

    def base_parameters(self, model):
        task_map = ("head.classifier.", "head.output.")  # trained whole where it is trained
        biases = {path.removesuffix(".bias"): p for path, p in model.named_parameters()
                  if path.endswith(".bias") and not path.startswith(task_map)}
        chosen = {f"{path}.bias": biases[path] for path in self._chosen(biases)}
        if not chosen and not self.add_zero_biases:
            raise ValueError(f"bitfit: this {model.config.model_type} model has no bias to train; BitFit(add_zero_biases=True) "
                             "adds biases of zeros to the maps of its blocks and trains those (PEFT has no place for them)")
        return chosen

    def formula(self, path, wrapper):
        return f"D_out = {wrapper.b.size}"

    def count(self, config):
        sizes = bias_sizes(config)
        if self.add_zero_biases:
            sizes = {path: d_out for path, (_, d_out) in linear_shapes(config).items()}
        if config.model_type in ("bert", "gpt2"):  # whose norms have biases
            sizes = sizes | {path: size // 2 for path, size in norm_sizes(config).items()}
        sizes = sizes | {path: d_out for path, (_, d_out) in pooler_sizes(config).items()}
        return sum(sizes[path] for path in self._chosen(sizes))
