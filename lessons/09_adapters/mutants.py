"""Wrong answers to lesson 9, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.methods.adapter_drop import _block_number
from minipeft.methods.shapes import join_paths, norm_sizes

# ---- 09.1 ----


@mutant("09.1", "residual",
        "You added z itself. The sum with what the adapter reads is made at the join; a fresh adapter must give 0 here.")
def forward(self, z):
    return z + self.up(self.act(self.down(self.dropout(z))))


@mutant("09.1", "no_activation",
        "The activation between the two maps, self.act, is missing: two linear maps in a row are only one linear map.")
def forward(self, z):
    return self.up(self.down(self.dropout(z)))


@mutant("09.1", "activation_last", "The activation stands between the two maps, in the bottleneck; you put it behind the second.")
def forward(self, z):
    return self.act(self.up(self.down(self.dropout(z))))


@mutant("09.1", "activation_first", "The activation stands between the two maps; you applied it to z before the first.")
def forward(self, z):
    return self.up(self.down(self.act(self.dropout(z))))


@mutant("09.1", "no_dropout", "The formula is right, but z must go through self.dropout before self.down.")
def forward(self, z):
    return self.up(self.act(self.down(z)))


@mutant("09.1", "dropout_inside", "Dropout is for what enters the adapter, z; you applied it in the bottleneck.")
def forward(self, z):
    return self.up(self.dropout(self.act(self.down(z))))


# ---- 09.2 ----


@mutant("09.2", "h_left_out",
        "The sub-layer's own output h is missing: the adapter's part is added to h and does not replace it.")
def forward(self, x, h):
    return self.wrapped(x, self.adapted(x, h) * self.scale)


@mutant("09.2", "no_scale", "You left out s: multiply what the adapter gives by self.scale (parallel adapters have 4).")
def forward(self, x, h):
    return self.wrapped(x, h + self.adapted(x, h))


@mutant("09.2", "scaled_all", "s is for the adapter's part alone; you multiplied h as well.")
def forward(self, x, h):
    return self.wrapped(x, (h + self.adapted(x, h)) * self.scale)


@mutant("09.2", "after_the_join",
        "You added the adapter's part behind the join. In a post-norm model it must be in the sum before the norm.")
def forward(self, x, h):
    return self.wrapped(x, h) + self.adapted(x, h) * self.scale


@mutant("09.2", "reads_h",
        "Right for Houlsby's adapters, but the other two kinds read something else: call self.adapted(x, h), not self.mlp(h).")
def forward(self, x, h):
    return self.wrapped(x, h + self.mlp(h) * self.scale)


@mutant("09.2", "no_join", "x is missing: the residual and the norm are in self.wrapped(x, ...), which you did not call.")
def forward(self, x, h):
    return h + self.adapted(x, h) * self.scale


# ---- 09.3 ----


@mutant("09.3", "no_biases", "You counted the two matrices; each adapter has two biases as well, R and D numbers.")
def count(self, config):
    norms = sum(norm_sizes(config).values()) if self.train_norms else 0
    return len(self._joins(join_paths(config))) * 2 * config.hidden_size * self.bottleneck + norms


@mutant("09.3", "down_only", "You counted W_down and its bias; W_up (R, D) and b_up (D,) are trained as well.")
def count(self, config):
    norms = sum(norm_sizes(config).values()) if self.train_norms else 0
    return len(self._joins(join_paths(config))) * (config.hidden_size * self.bottleneck + self.bottleneck) + norms


@mutant("09.3", "every_join",
        "You counted an adapter at every join of the model; self._joins says at which of them this method has one.")
def count(self, config):
    norms = sum(norm_sizes(config).values()) if self.train_norms else 0
    size = 2 * config.hidden_size * self.bottleneck + self.bottleneck + config.hidden_size
    return len(join_paths(config)) * size + norms


@mutant("09.3", "one_a_block",
        "You counted one adapter for each block; Houlsby's stand at two joins of a block, and in a T5 decoder at three.")
def count(self, config):
    norms = sum(norm_sizes(config).values()) if self.train_norms else 0
    size = 2 * config.hidden_size * self.bottleneck + self.bottleneck + config.hidden_size
    return config.num_hidden_layers * size + norms


@mutant("09.3", "never_norms", "With self.train_norms the norms are trained along: add the sum of norm_sizes(config).")
def count(self, config):
    size = 2 * config.hidden_size * self.bottleneck + self.bottleneck + config.hidden_size
    return len(self._joins(join_paths(config))) * size


@mutant("09.3", "always_norms", "The norms count only where self.train_norms is true.")
def count(self, config):
    size = 2 * config.hidden_size * self.bottleneck + self.bottleneck + config.hidden_size
    return len(self._joins(join_paths(config))) * size + sum(norm_sizes(config).values())


# ---- 09.4 ----


def _checked(attachment, blocks):
    """{path: number of its block} of wrappers in blocks, once the ValueErrors are raised."""
    config = attachment.model.config
    inside = {path: number for path in attachment.wrappers if (number := _block_number(path)) is not None}
    if not 0 <= blocks <= max(config.num_hidden_layers, config.num_decoder_layers) or not inside or attachment.merged:
        raise ValueError("adapter drop")
    return inside


@mutant("09.4", "one_too_many",
        "One block too many: blocks are numbered from 0, so that with n dropped the first that is on is number n.")
def set_dropped(attachment, blocks):
    for path, number in _checked(attachment, blocks).items():
        attachment.wrappers[path].enabled = attachment.enabled and number > blocks


@mutant("09.4", "last_blocks", "You dropped the last blocks. It is the first ones whose adapters are passed over.")
def set_dropped(attachment, blocks):
    layers = attachment.model.config.num_hidden_layers
    for path, number in _checked(attachment, blocks).items():
        attachment.wrappers[path].enabled = attachment.enabled and number < layers - blocks


@mutant("09.4", "never_back",
        "You switch wrappers off and never on again: a second call with a smaller number must bring some back.")
def set_dropped(attachment, blocks):
    for path, number in _checked(attachment, blocks).items():
        if number < blocks:
            attachment.wrappers[path].enabled = False


@mutant("09.4", "wakes",
        "You switched wrappers on although the whole attachment is off: attachment.enabled must be true as well.")
def set_dropped(attachment, blocks):
    for path, number in _checked(attachment, blocks).items():
        attachment.wrappers[path].enabled = number >= blocks


@mutant("09.4", "head_too", "The head's wrapper stands in no block (its number is None) and must stay as it is.")
def set_dropped(attachment, blocks):
    inside = _checked(attachment, blocks)
    for path, wrapper in attachment.wrappers.items():
        wrapper.enabled = attachment.enabled and inside.get(path, -1) >= blocks


@mutant("09.4", "unchecked",
        "The switching is right, but the ValueErrors are missing: a number outside 0 to L, what is merged, what acts in no "
        "block.")
def set_dropped(attachment, blocks):
    for path, wrapper in attachment.wrappers.items():
        number = _block_number(path)
        if number is not None:
            wrapper.enabled = attachment.enabled and number >= blocks


# ---- 09.5 ----


def _parts(self):
    """n, D_in / n, D_out / n."""
    return len(self.A.data), self.s.shape[1], self.t.shape[2]


@mutant("09.5", "other_order",
        "That is (s t) ⊗ A. In A ⊗ (s t) the entries of A are the outer pattern: each block of W is an A[a, b] times s t.")
def weight(self):
    n, rows, columns = _parts(self)
    product = (self.s * self.t).reshape(n, rows, 1, columns, 1) * self.A.reshape(n, 1, n, 1, n)
    return product.sum(axis=0).reshape(n * rows, n * columns)


@mutant("09.5", "transposed", "You took A_i transposed: the first index of A_i counts rows of W, the second columns.")
def weight(self):
    n, rows, columns = _parts(self)
    product = self.A.swapaxes(1, 2).reshape(n, n, 1, n, 1) * (self.s * self.t).reshape(n, 1, rows, 1, columns)
    return product.sum(axis=0).reshape(n * rows, n * columns)


@mutant("09.5", "first_only", "That is the first of the n products; W is the sum of all n.")
def weight(self):
    n, rows, columns = _parts(self)
    product = self.A.reshape(n, n, 1, n, 1) * (self.s * self.t).reshape(n, 1, rows, 1, columns)
    return product[0].reshape(n * rows, n * columns)


@mutant("09.5", "mean", "You took the mean of the n products; it is their sum.")
def weight(self):
    n, rows, columns = _parts(self)
    product = self.A.reshape(n, n, 1, n, 1) * (self.s * self.t).reshape(n, 1, rows, 1, columns)
    return product.mean(axis=0).reshape(n * rows, n * columns)


@mutant("09.5", "sums_first",
        "You summed the A and the s t first. The product comes first, for each i with its own A_i and s_i t_i, then the sum.")
def weight(self):
    n, rows, columns = _parts(self)
    left, right = self.A.sum(axis=0), (self.s * self.t).sum(axis=0)
    return (left.reshape(n, 1, n, 1) * right.reshape(1, rows, 1, columns)).reshape(n * rows, n * columns)


@mutant("09.5", "detached",
        "The numbers are right, but no gradient reaches A, s and t: stay with Tensors, and do not go through .data.")
def weight(self):
    return F.Tensor(sum(np.kron(a, s @ t) for a, s, t in zip(self.A.data, self.s.data, self.t.data)))
