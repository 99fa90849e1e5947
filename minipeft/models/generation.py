"""Writing text with a decoder, one token at a time, with the keys and values of earlier tokens kept in a cache."""

import numpy as np

from ..autograd import Tensor, no_grad


class SourceCache:
    """Keys and values that a decoder's layer has of its source, which stays the same: made once and then remembered."""

    def __init__(self):
        self.made = None

    def once(self, make):
        """The keys and values (B, H, S, K) that ``make`` gives, from its first call."""
        if self.made is None:
            self.made = make()
        return self.made


class LayerCache:
    """Keys and values of one layer, (B, H, S, K) each, in buffers that double when they are full; ``source`` has the source's."""

    def __init__(self):
        self.length, self.keys, self.values, self.source = 0, None, None, SourceCache()

    def reserve(self, new, needed):
        """Make room for ``needed`` places; ``new`` (B, H, T, K), what comes next, gives the other sizes where nothing has yet."""
        if self.keys is not None and self.keys.shape[2] >= needed:
            return
        batch, heads, _, width = new.shape if self.keys is None else self.keys.shape
        keys, values = (np.empty((batch, heads, max(32, 2 * needed), width), new.dtype) for _ in range(2))
        if self.keys is not None:
            keys[:, :, :self.length] = self.keys[:, :, :self.length]
            values[:, :, :self.length] = self.values[:, :, :self.length]
        self.keys, self.values = keys, values

    def append(self, k, v):
        """Store k and v (B, H, T, K) behind what is there; returns all keys and all values, (B, H, S, K)."""
        needed = self.length + k.shape[2]
        self.reserve(k, needed)
        self.keys[:, :, self.length:needed] = k.data
        self.values[:, :, self.length:needed] = v.data
        self.length = needed
        return Tensor(self.keys[:, :, :needed]), Tensor(self.values[:, :, :needed])

    def rows(self, rows):
        """A view of some rows, indices (B',), to `append` to; each row is to get as many places as the others."""
        return RowsOfCache(self, rows)


class RowsOfCache:
    """Some rows of a `LayerCache`, for a call with these rows alone; its owner adds to ``length`` when all rows are there."""

    def __init__(self, layer, rows):
        self.layer, self.chosen = layer, rows

    def append(self, k, v):
        """Store k and v (B', H, T, K) of these rows; returns all their keys and values, (B', H, S, K)."""
        layer, needed = self.layer, self.layer.length + k.shape[2]
        layer.reserve(k, needed)
        layer.keys[self.chosen, :, layer.length:needed] = k.data
        layer.values[self.chosen, :, layer.length:needed] = v.data
        return Tensor(layer.keys[self.chosen, :, :needed]), Tensor(layer.values[self.chosen, :, :needed])


class KVCache:
    """One `LayerCache` for each layer of a decoder; ``virtual`` of the places hold virtual tokens."""

    def __init__(self, num_layers):
        self.layers, self.virtual = [LayerCache() for _ in range(num_layers)], 0

    @property
    def length(self):
        """Number of places cached."""
        return self.layers[0].length if self.layers else 0

    def cut(self, length):
        """Forget every place from ``length`` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)


def next_token_distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities from which the next token is drawn.

    Args:
        logits: (B, V).
        temperature: divides the logits; above 0.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: then keep the smallest set of most probable tokens whose probabilities reach p (nucleus sampling,
            Holtzman et al., ICLR 2020, arXiv:1904.09751, section 3.1); 1 keeps all.

    Returns:
        (B, V) float64, each row summing to 1.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature} "
                         "(for the most probable token, do not sample)")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (all) or a number of tokens, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    z = logits.astype(np.float64)
    order = np.argsort(-z, axis=1, kind="stable")  # (B, V), most probable first
    with np.errstate(over="ignore"):  # at a tiny temperature all but the largest become -inf
        p = np.exp((np.take_along_axis(z, order, 1) - z.max(axis=1, keepdims=True)) / temperature)  # (B, V), sorted
    if top_k:
        p[:, top_k:] = 0
    p /= p.sum(axis=1, keepdims=True)
    p[np.cumsum(p, axis=1) - p >= top_p] = 0  # what came before already reaches p
    p /= p.sum(axis=1, keepdims=True)
    out = np.zeros_like(p)
    np.put_along_axis(out, order, p, 1)
    return out


def chooser(rng=None, temperature=1.0, top_k=0, top_p=1.0):
    """A function from logits (B, V) to the next ids (B,): the most probable where ``rng`` is None, else drawn by ``rng``."""
    if rng is None:
        return lambda logits: logits.argmax(axis=1)

    def draw(logits):
        p = next_token_distribution(logits, temperature, top_k, top_p)
        return np.array([rng.choice(p.shape[1], p=row) for row in p])

    return draw


def write(step, ids, max_new_tokens, choose, ends=(), on_token=None):
    """The loop behind all writing: each row gets one token, which is then read to get the next.

    Args:
        step: function from the newest ids (B, T) to the logits (B, V) of what follows them.
        ids: (B, T), what is read first. max_new_tokens: how many to write at most.
        choose: function from logits (B, V) to ids (B,).
        ends: ids that end a row, which is then filled with the first of them. on_token: called with each new column (B,).

    Returns:
        (B, up to max_new_tokens) int64; it stops where all rows have ended.
    """
    finished, pieces = np.zeros(len(ids), bool), [np.zeros((len(ids), 0), np.int64)]
    with no_grad():
        for _ in range(max_new_tokens):
            chosen = choose(step(ids))
            if len(ends):
                chosen = np.where(finished, ends[0], chosen)
                finished |= np.isin(chosen, ends)
            ids = chosen[:, None].astype(np.int64)  # (B, 1)
            pieces.append(ids)
            if on_token is not None:
                on_token(chosen)
            if len(ends) and finished.all():
                break
    return np.concatenate(pieces, axis=1)  # (B, N)


def check_text(input_ids, where="generate"):
    """The prompt as int64 (B, T), with at least one token; else ValueError."""
    ids = np.asarray(input_ids, np.int64)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"{where}: expected at least one token of prompt, as (batch, time), got shape {ids.shape}")
    return ids


def end_ids(model, eos_token_id=None):
    """The ids that end a text, as a list: those given, else the model's own."""
    ends = model.config.eos_token_id if eos_token_id is None else eos_token_id
    return [] if ends is None else list(np.atleast_1d(ends))


def extended(mask, new):
    """A padding mask (B, S) or None with a real place for each of the ``new`` ids (B, T)."""
    return None if mask is None else np.concatenate([mask, np.ones_like(new, bool)], axis=1)  # (B, S + T)


def generate(model, input_ids, max_new_tokens=50, attention_mask=None, rng=None, temperature=1.0, top_k=0, top_p=1.0,
             eos_token_id=None, on_token=None):
    """Continue each row of ``input_ids``, or, with an encoder-decoder, write a target for it.

    Args:
        model: a Decoder, or a Seq2Seq, with a language-model head.
        input_ids: (B, T) ints; rows of different lengths are padded, with ``attention_mask`` (B, T): on the left for a
            Decoder, on either side for an encoder-decoder's source.
        max_new_tokens: how many tokens to add at most.
        rng: numpy.random.Generator to sample with; None takes the most probable token each time (greedy).
        temperature, top_k, top_p: see `next_token_distribution`; used when sampling.
        eos_token_id: id (or several) that ends a row; default: the model's own. The row is then filled with it.
        on_token: called with each new column (B,) of ids as it is written.

    Returns:
        (B, T + up to max_new_tokens) int64: the prompt and what was written; of an encoder-decoder what was written alone.

    Raises:
        ValueError: a model that cannot write, an empty prompt, or a length beyond the model's learned positions.
    """
    seq2seq = model.config.encoder_decoder
    if not (model.config.causal or seq2seq) or not hasattr(model.head, "project"):
        raise ValueError("generate: this model has no language-model head; load a decoder with task 'lm', T5 with task 'seq2seq'")
    ids = check_text(input_ids)
    mask = None if attention_mask is None else np.asarray(attention_mask).astype(bool)
    ends, choose = end_ids(model, eos_token_id), chooser(rng, temperature, top_k, top_p)
    cache = KVCache(model.config.num_decoder_layers if seq2seq else model.config.num_hidden_layers)
    if seq2seq:
        with no_grad():
            source = model.encode(ids, mask)
        step = lambda new: model.head.project(model.decode(new, *source, cache=cache)[0][:, -1]).data  # (B, V)
        return write(step, model.start_ids(len(ids)), max_new_tokens, choose, ends, on_token)
    model.check_length(ids.shape[1] + max_new_tokens)

    def step(new):
        nonlocal mask
        mask = mask if new is ids else extended(mask, new)
        states = model(new, attention_mask=mask, cache=cache).last_hidden_state
        return model.head.project(states[:, -1]).data  # (B, V): only the last place is projected

    return np.concatenate([ids, write(step, ids, max_new_tokens, choose, ends, on_token)], axis=1)
