"""Wrong answers to lesson 11, and what a learner who wrote one is told."""

import numpy as np

from minipeft import autograd as F
from minipeft.learn.claims import mutant
from minipeft.methods.shapes import core_widths
from minipeft.methods.targets import block_paths
from minipeft.methods.virtual import Recorder
from minipeft.nn import AttentionCore

# ---- 11.1 ----


@mutant("11.1", "no_scale", "A score is the product of query and key times `scale`, which you left out.")
def prefix_share(queries, prefix_keys, keys, scale):
    scores = queries @ np.concatenate([prefix_keys, keys]).T
    parts = np.exp(scores - scores.max(axis=1, keepdims=True))
    return parts[:, :len(prefix_keys)].sum(axis=1) / parts.sum(axis=1)


@mutant("11.1", "share_of_the_words", "That is 1 − λ, the share that the words keep.")
def prefix_share(queries, prefix_keys, keys, scale):
    scores = scale * queries @ np.concatenate([prefix_keys, keys]).T
    parts = np.exp(scores - scores.max(axis=1, keepdims=True))
    return parts[:, len(prefix_keys):].sum(axis=1) / parts.sum(axis=1)


@mutant("11.1", "ratio", "You divided the prefix's sum by that of the words. Below the line stand both: A / (A + B).")
def prefix_share(queries, prefix_keys, keys, scale):
    scores = scale * queries @ np.concatenate([prefix_keys, keys]).T
    parts = np.exp(scores - scores.max(axis=1, keepdims=True))
    return parts[:, :len(prefix_keys)].sum(axis=1) / parts[:, len(prefix_keys):].sum(axis=1)


@mutant("11.1", "overflow",
        "The formula is right, but exp of a large score is infinite. Subtract each query's largest score before exp.")
def prefix_share(queries, prefix_keys, keys, scale):
    a, b = (np.exp(scale * queries @ part.T).sum(axis=1) for part in (prefix_keys, keys))
    return a / (a + b)


@mutant("11.1", "means",
        "You took means where the equation has sums: a longer prefix has a larger share, since each of its keys adds.")
def prefix_share(queries, prefix_keys, keys, scale):
    scores = scale * queries @ np.concatenate([prefix_keys, keys]).T
    parts = np.exp(scores - scores.max(axis=1, keepdims=True))
    a, b = parts[:, :len(prefix_keys)].mean(axis=1), parts[:, len(prefix_keys):].mean(axis=1)
    return a / (a + b)


@mutant("11.1", "apart",
        "You subtracted another maximum from the prefix's scores than from the words', so the two sums cannot be compared: take "
        "one maximum over both.")
def prefix_share(queries, prefix_keys, keys, scale):
    sums = []
    for part in (prefix_keys, keys):
        scores = scale * queries @ part.T
        sums.append(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))
    return sums[0] / (sums[0] + sums[1])


# ---- 11.2 ----


def _spread(part, k):
    batch, heads, _, width = k.shape
    part = part.reshape(-1, heads, width).swapaxes(0, 1)
    return F.broadcast_to(part, (batch, *part.shape))


def _before(mask, bias, tokens, flag=True):
    if mask is not None:
        mask = np.concatenate([np.full((len(mask), tokens), flag), mask], axis=1)
    if bias is not None:
        bias = F.concatenate([F.Tensor(np.zeros((*bias.shape[:3], tokens), bias.dtype)), bias], axis=3)
    return mask, bias


@mutant("11.2", "behind_the_words",
        "The prefix stands behind the words, where the causal mask hides it from nearly all queries. Put it first.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([words, _spread(part, words)], axis=2) for part, words in zip(self.prefix(), (k, v)))
    tokens = self.prefix()[0].shape[0]
    if mask is not None:
        mask = np.concatenate([mask, np.ones((len(mask), tokens), bool)], axis=1)
    if bias is not None:
        bias = F.concatenate([bias, F.Tensor(np.zeros((*bias.shape[:3], tokens), bias.dtype))], axis=3)
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "heads_mixed",
        "You reshaped (n, H' K) straight into (H', n, K), which deals out the numbers in the wrong order. Reshape to (n, H', K), "
        "then exchange the first two axes.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    batch, heads, _, width = k.shape
    parts = [F.broadcast_to(p.reshape(heads, -1, width), (batch, heads, p.shape[0], width)) for p in self.prefix()]
    k, v = (F.concatenate([part, words], axis=2) for part, words in zip(parts, (k, v)))
    mask, bias = _before(mask, bias, parts[0].shape[2])
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "mask_forgotten",
        "The mask still has a column for each word only, while there are n keys more: put n columns of True first.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    bias = _before(None, bias, self.prefix()[0].shape[0])[1]
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "mask_of_padding",
        "The new columns of the mask are False, so that a batch with padding sees no prefix at all. They are True.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    mask, bias = _before(mask, bias, self.prefix()[0].shape[0], False)
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "mask_dropped",
        "You passed on no mask, so that padding is seen. The words' own columns must come along behind the new ones.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    bias = _before(None, bias, self.prefix()[0].shape[0])[1]
    return self.wrapped(q, k, v, None, bias, scale)


@mutant("11.2", "bias_forgotten",
        "T5's bias still has a column for each word only: put n columns of 0 before them, where there is a bias.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    mask = _before(mask, None, self.prefix()[0].shape[0])[0]
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "bias_dropped", "Where there is a prefix, T5's bias must still be added to the words' scores; you left it out.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    return self.wrapped(q, k, v, _before(mask, None, self.prefix()[0].shape[0])[0], None, scale)


@mutant("11.2", "keys_twice",
        "You put the prefix's keys before the values as well. self.prefix() gives two: P_K for the keys, P_V for the values.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    keys = self.prefix()[0]
    k, v = (F.concatenate([_spread(keys, words), words], axis=2) for words in (k, v))
    mask, bias = _before(mask, bias, keys.shape[0])
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "no_scale", "You left out `scale`: pass it on to self.wrapped.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    mask, bias = _before(mask, bias, self.prefix()[0].shape[0])
    return self.wrapped(q, k, v, mask, bias)


@mutant("11.2", "detached", "No gradient reaches the prefix: work on the Tensors that self.prefix() gives, not on their arrays.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(F.Tensor(part.data), words), words], axis=2) for part, words in zip(self.prefix(), (k, v)))
    mask, bias = _before(mask, bias, self.prefix()[0].shape[0])
    return self.wrapped(q, k, v, mask, bias, scale)


@mutant("11.2", "own_parameters",
        "You read self.keys and self.values, which are None where a network makes the prefix. self.prefix() is right in both "
        "cases.")
def forward(self, q, k, v, mask=None, bias=None, scale=1.0):
    k, v = (F.concatenate([_spread(part, words), words], axis=2) for part, words in zip((self.keys, self.values), (k, v)))
    mask, bias = _before(mask, bias, self.keys.shape[0])
    return self.wrapped(q, k, v, mask, bias, scale)


# ---- 11.3 ----


@mutant("11.3", "values_first", "The first half of the columns are keys, the second half values; you exchanged them.")
def prefix(self):
    if self.network is None:
        return self.keys, self.values
    both = self.out(self.network())
    half = both.shape[1] // 2
    return both[:, half:], both[:, :half]


@mutant("11.3", "every_other", "You dealt the columns out in turn. The first half of them are keys, the second half values.")
def prefix(self):
    if self.network is None:
        return self.keys, self.values
    both = self.out(self.network())
    return both[:, ::2], both[:, 1::2]


@mutant("11.3", "rows_cut",
        "You cut the rows in half, which are the virtual tokens. Cut the columns: (n, 2 H' K) into two of (n, H' K).")
def prefix(self):
    if self.network is None:
        return self.keys, self.values
    both = self.out(self.network())
    half = both.shape[0] // 2
    return both[:half], both[half:]


@mutant("11.3", "never_a_network",
        "Where self.network is not None, self.keys and self.values hold nothing: the network makes the prefix.")
def prefix(self):
    return self.keys, self.values


@mutant("11.3", "always_a_network",
        "Where self.network is None there is no network to call: the prefix is self.keys and self.values.")
def prefix(self):
    both = self.out(self.network())
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


@mutant("11.3", "tanh_again",
        "tanh is already in self.network(); what self.out gives is the prefix as it is, and may be larger than 1.")
def prefix(self):
    if self.network is None:
        return self.keys, self.values
    both = F.tanh(self.out(self.network()))
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


@mutant("11.3", "detached", "No gradient reaches the network: cut the Tensor in two, not its array.")
def prefix(self):
    if self.network is None:
        return self.keys, self.values
    both = self.out(self.network()).data
    half = both.shape[1] // 2
    return F.Tensor(both[:, :half]), F.Tensor(both[:, half:])


# ---- 11.4 ----


@mutant("11.4", "keys_alone", "You counted the keys; there are as many values.")
def count(self, config):
    widths, n, hidden = sum(core_widths(config).values()), self.num_virtual_tokens, self.hidden
    if self.reparametrise:
        return n * config.hidden_size + (config.hidden_size + 1) * hidden + (hidden + 1) * 2 * widths
    return n * widths


@mutant("11.4", "by_the_models_width",
        "A key is H' K wide, which is the model's width only where all heads have keys of their own and K is d / H. "
        "core_widths(config) tells.")
def count(self, config):
    widths, n, hidden = len(core_widths(config)) * config.hidden_size, self.num_virtual_tokens, self.hidden
    if self.reparametrise:
        return n * config.hidden_size + (config.hidden_size + 1) * hidden + (hidden + 1) * 2 * widths
    return 2 * n * widths


@mutant("11.4", "one_stack",
        "You counted num_hidden_layers attentions. T5 has a decoder too, with two attentions in each layer: sum over "
        "core_widths(config).")
def count(self, config):
    widths, n, hidden = config.num_hidden_layers * next(iter(core_widths(config).values())), self.num_virtual_tokens, self.hidden
    if self.reparametrise:
        return n * config.hidden_size + (config.hidden_size + 1) * hidden + (hidden + 1) * 2 * widths
    return 2 * n * widths


@mutant("11.4", "as_stored", "That is what is stored in the end. With self.reparametrise the network is what is trained.")
def count(self, config):
    return 2 * self.num_virtual_tokens * sum(core_widths(config).values())


@mutant("11.4", "no_biases", "The network's two maps have biases: h numbers in b_a, and 2 H' K in b_b for each attention.")
def count(self, config):
    widths, n, hidden = sum(core_widths(config).values()), self.num_virtual_tokens, self.hidden
    if self.reparametrise:
        return n * config.hidden_size + config.hidden_size * hidden + hidden * 2 * widths
    return 2 * n * widths


@mutant("11.4", "a_network_each",
        "E, W_a and b_a are shared by all attentions and count once; only W_b and b_b are each attention's own.")
def count(self, config):
    widths, n, hidden, cores = sum(core_widths(config).values()), self.num_virtual_tokens, self.hidden, len(core_widths(config))
    if self.reparametrise:
        return cores * (n * config.hidden_size + (config.hidden_size + 1) * hidden) + (hidden + 1) * 2 * widths
    return 2 * n * widths


# ---- 11.5 ----


def _read(model, words, arrange, ids=None, calm=True, back=True):
    """What most of these have in common."""
    cores = {path: Recorder(model.get(path)) for path in block_paths(model, AttentionCore)}
    ids = np.asarray([words]) if ids is None else ids
    training, rng = model.training, getattr(model, "rng", None)
    for path, core in cores.items():
        model.replace(path, core)
    with F.no_grad():
        (model.eval() if calm else model)(ids, **({"decoder_input_ids": ids} if model.config.encoder_decoder else {}))
    if back:
        for path, core in cores.items():
            model.replace(path, core.wrapped)
    if training and calm:
        model.train(rng)
    return {path: arrange(*core.seen) for path, core in cores.items()}


def _flat(x):
    return np.ascontiguousarray(x[0].swapaxes(0, 1)).reshape(x.shape[2], -1)


@mutant("11.5", "heads_mixed",
        "You reshaped (H', P, K) straight into (P, H' K), which puts numbers of one word into another's row. Exchange the first "
        "two axes before.")
def activations(model, words):
    return _read(model, words, lambda k, v: (k[0].reshape(len(words), -1), v[0].reshape(len(words), -1)))


@mutant("11.5", "exchanged", "You gave the values first; a Recorder's seen is (keys, values), and so is what is asked for.")
def activations(model, words):
    return _read(model, words, lambda k, v: (_flat(v), _flat(k)))


@mutant("11.5", "word_by_word",
        "You read each word as a text of its own. They are one text, in which a word stands at its place and sees the others: "
        "one row of ids, (1, P).")
def activations(model, words):
    side = lambda x: x[:, :, 0].reshape(len(words), -1)
    return _read(model, words, lambda k, v: (side(k), side(v)), ids=np.asarray(words)[:, None])


@mutant("11.5", "with_dropout",
        "A model in training reads the words with dropout. Call model.eval() before, and model.train(rng) afterwards.")
def activations(model, words):
    return _read(model, words, lambda k, v: (_flat(k), _flat(v)), calm=False)


@mutant("11.5", "left_in",
        "The Recorders are still in the model. Put back what was there: model.replace(path, recorder.wrapped).")
def activations(model, words):
    return _read(model, words, lambda k, v: (_flat(k), _flat(v)), back=False)


@mutant("11.5", "left_calm", "The model was in training and is not any more: switch dropout on again with model.train(rng).")
def activations(model, words):
    out = _read(model, words, lambda k, v: (_flat(k), _flat(v)))
    model.eval()
    return out


@mutant("11.5", "with_the_batch", "The shapes still have an axis for the batch: of (1, H', P, K) make (P, H' K).")
def activations(model, words):
    return _read(model, words, lambda k, v: (k, v))
