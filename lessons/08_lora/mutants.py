"""Wrong answers to lesson 8, and what a learner who wrote one is told."""

import math

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.methods.shapes import linear_shapes

# ---- 08.1 ----


@mutant("08.1", "no_scale", "You left out s = α / R: multiply the narrow way by self.scale.")
def forward(self, x):
    low = F.linear(self.dropout(x), self.U)
    if self.rows is not None:
        low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
    return self.wrapped(x) + F.linear(low, F.swap_last(self.V))


@mutant("08.1", "scaled_all", "s multiplies the change alone; you multiplied x W + b as well.")
def forward(self, x):
    low = F.linear(self.dropout(x), self.U)
    if self.rows is not None:
        low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
    return (self.wrapped(x) + F.linear(low, F.swap_last(self.V))) * self.scale


@mutant("08.1", "change_alone", "That is the change only: the map that was there before, self.wrapped(x), is missing.")
def forward(self, x):
    low = F.linear(self.dropout(x), self.U) * self.scale
    if self.rows is not None:
        low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
    return F.linear(low, F.swap_last(self.V))


@mutant("08.1", "no_dropout", "The formula is right, but x must go through self.dropout on its way to U.")
def forward(self, x):
    low = F.linear(x, self.U) * self.scale
    if self.rows is not None:
        low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
    return self.wrapped(x) + F.linear(low, F.swap_last(self.V))


@mutant("08.1", "all_rows", "The formula is right, but self.rows was not looked at: a row with 0 there must not be changed.")
def forward(self, x):
    return self.wrapped(x) + F.linear(F.linear(self.dropout(x), self.U) * self.scale, F.swap_last(self.V))


@mutant("08.1", "dropout_everywhere", "Dropout is for the narrow way; what goes through W must not be dropped.")
def forward(self, x):
    x = self.dropout(x)
    low = F.linear(x, self.U) * self.scale
    if self.rows is not None:
        low = low * self.rows.reshape(-1, *[1] * (low.ndim - 1))
    return self.wrapped(x) + F.linear(low, F.swap_last(self.V))


@mutant("08.1", "formed", "Right, but x (U Vᵀ) forms a matrix as large as W. Take x U first: R numbers a row, then Vᵀ.")
def forward(self, x):
    change = F.linear(self.dropout(x), F.linear(self.U, F.swap_last(self.V))) * self.scale
    if self.rows is not None:
        change = change * self.rows.reshape(-1, *[1] * (change.ndim - 1))
    return self.wrapped(x) + change


# ---- 08.2 ----


@mutant("08.2", "unscaled", "The change is s U Vᵀ; s is missing. self.factors() gives s U, self.U does not.")
def change(self):
    return self.U.data @ self.V.data.T


@mutant("08.2", "transposed", "Shapes: U (D_in, R) times Vᵀ (R, D_out) is (D_in, D_out). You computed its transpose.")
def change(self):
    u, v = self.factors()
    return v @ u.T


@mutant("08.2", "scaled_twice", "s was there already: self.factors() gives s U, and you multiplied by s once more.")
def change(self):
    u, v = self.factors()
    return self.scale * (u @ v.T)


# ---- 08.3 ----


@mutant("08.3", "times", "You multiplied by the rank; s is α divided by it, so that a larger rank has a smaller scale.")
def scale(self, rank, alpha):
    return alpha * (math.sqrt(rank) if self.rank_stabilised else rank)


@mutant("08.3", "never_stabilised", "self.rank_stabilised asks for α / √R, and you always divide by R.")
def scale(self, rank, alpha):
    return alpha / rank


@mutant("08.3", "always_stabilised", "α / √R is for self.rank_stabilised only; else it is α / R.")
def scale(self, rank, alpha):
    return alpha / math.sqrt(rank)


@mutant("08.3", "own_fields",
        "Use the rank and alpha that are given: self.rank and self.alpha are only the defaults of the method.")
def scale(self, rank, alpha):
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


# ---- 08.4 ----


@mutant("08.4", "whole_matrices",
        "That is the number of entries of the matrices themselves times R; U and V together have R (D_in + D_out).")
def count(self, config):
    shapes = linear_shapes(config)
    return sum(rank * math.prod(shapes[path]) for path, (rank, _) in self.places(list(shapes)).items())


@mutant("08.4", "one_rank",
        "A pattern may ask for another rank at some maps: use the rank that self.places gives for each, not self.rank.")
def count(self, config):
    shapes = linear_shapes(config)
    return sum(self.rank * sum(shapes[path]) for path in self.places(list(shapes)))


@mutant("08.4", "every_map", "You counted all maps of the model; only those that self.places names are adapted.")
def count(self, config):
    return sum(self.rank * sum(shape) for shape in linear_shapes(config).values())


@mutant("08.4", "only_u", "You counted U alone; V (D_out, R) is trained as well.")
def count(self, config):
    shapes = linear_shapes(config)
    return sum(rank * shapes[path][0] for path, (rank, _) in self.places(list(shapes)).items())


# ---- 08.5 ----


@mutant("08.5", "rows", "You took the lengths of the rows; W' is scaled column by column, so c has D_out entries.")
def lengths(self):
    whole = F.Tensor(self.base_weight) + F.linear(self.U, F.swap_last(self.V)) * self.scale
    c = (whole**2).sum(axis=1) ** 0.5
    return F.Tensor(c.data) if self.detach_norm else c


@mutant("08.5", "unscaled", "The change is s U Vᵀ: self.scale is missing.")
def lengths(self):
    whole = F.Tensor(self.base_weight) + F.linear(self.U, F.swap_last(self.V))
    c = (whole**2).sum(axis=0) ** 0.5
    return F.Tensor(c.data) if self.detach_norm else c


@mutant("08.5", "squares", "Those are the squares of the lengths: take the root.")
def lengths(self):
    whole = F.Tensor(self.base_weight) + F.linear(self.U, F.swap_last(self.V)) * self.scale
    c = (whole**2).sum(axis=0)
    return F.Tensor(c.data) if self.detach_norm else c


@mutant("08.5", "never_detached", "With self.detach_norm the lengths must be a constant: F.Tensor(c.data).")
def lengths(self):
    whole = F.Tensor(self.base_weight) + F.linear(self.U, F.swap_last(self.V)) * self.scale
    return (whole**2).sum(axis=0) ** 0.5


@mutant("08.5", "always_detached",
        "No gradient reaches U and V: stay with Tensors, and detach only where self.detach_norm asks for it.")
def lengths(self):
    whole = self.base_weight + self.scale * self.U.data @ self.V.data.T
    return F.Tensor(np.sqrt((whole**2).sum(axis=0)))
