"""What a training step keeps in memory and multiplies, walked through a model's shape block by block; nothing is allocated.

What autograd keeps for the backward pass. "Has a gradient" says of an array that something trained lies below it; n is the
number of rows B T, S the number of keys, H heads of width K, H' key heads, and numbers are counted, not bytes.

    norm        its input, n D, where its output has a gradient
    Linear      its input, n D_in, only where its own weight is trained: a frozen map keeps nothing
    attention   q, n H K, and k, B S H' K, where either has a gradient; v, B S H' K; the weights, B H T S, and with dropout on
                them the mask and the dropped weights too
    activation  its input, n F; with a gate the gate's input and output and what they multiply, 3 n F
    dropout     its mask, as large as what it drops;   a sum keeps nothing
    logits      n V, for a language model
    LoRA        the map's input, once for all that read it (with its own dropout a copy and a mask for each), and n R;
                DoRA n (R + 2 D_out), AdaLoRA 2 n R
    (IA)3       what it multiplies: n D_out, or n D_in
    adapters    what they read, n D, and 2 n R;   Compacter its matrices too
    prefix      P more keys everywhere;   prompt: P more rows everywhere
    masks       the map's input, and a dense copy of the map
    early exit  what full fine-tuning keeps, and what the head keeps for each exit besides the states, which are there

So a method that acts early keeps norms, q, k, v, attention and activations of every block, and full fine-tuning the inputs of
the maps as well. Gradients, which are freed as they are used, peak at ``temporary`` numbers beside that.

What is multiplied: a product of n rows with a map costs 2 n D_in D_out operations forward, as much again where its input has a
gradient, and as much again where its weight is trained; attention costs 2 B H T S K for the scores and for the values each, and
twice that backward. Only products of matrices are counted: at small widths norms, softmax and activations take as long again.
"""

from dataclasses import dataclass, field

from ..methods import (IA3, AdaLoRA, BitFit, Compacter, DoRA, Full, Houlsby, LayerNormTuning, LoRA, OutputTuning, Parallel,
                       Pfeiffer, PiSSA, Prefix, RandomMask, SoftPrompt, TaskEmbedding, TopK)
from ..methods.bitfit import TERMS
from ..methods.shapes import block_names, join_paths, linear_shapes
from ..methods.targets import match
from .exits import EarlyExitTuning


@dataclass
class Extra:
    """What a method has at one map or join.

    Attributes:
        input: whether it keeps what enters, shared with others that keep the same. dropped: whether a copy under dropout instead.
        rows: numbers kept for each row. fixed: numbers kept besides; ``dense``: those kept only where the input has a gradient.
        products: [(entries of a matrix, whether the rows are the map's input, whether the matrix is trained)].
        steps: operations of a step besides, whatever the batch, forward and backward.
        whole: whether all of the map's weight has a gradient, of which the method takes what it needs.
    """

    input: bool = False
    dropped: bool = False
    rows: int = 0
    fixed: int = 0
    dense: int = 0
    products: tuple = ()
    steps: tuple = (0, 0)
    whole: bool = False


@dataclass
class Effects:
    """Where in a model a method acts, for `Walk`.

    Attributes:
        maps, joins: {path: Extra}. trained: paths of the maps trained whole. biases: of those whose bias is.
        norms: whether all norms are; blocks: paths of blocks trained whole. embedding: whether the word vectors are.
        tokens, keys: virtual tokens before the words and in each attention. network: width of what makes the latter, or 0.
        shifts: whether something is added to the word vectors. labels: how many labels' outputs are tuned.
        head: whether the task's output map is trained. exits: how many more there are of it behind lower blocks.
    """

    maps: dict = field(default_factory=dict)
    joins: dict = field(default_factory=dict)
    trained: set = field(default_factory=set)
    biases: set = field(default_factory=set)
    blocks: set = field(default_factory=set)
    norms: bool = False
    embedding: bool = False
    tokens: int = 0
    keys: int = 0
    network: int = 0
    shifts: bool = False
    labels: int = 0
    head: bool = False
    exits: int = 0


def low_rank(method, d_in, d_out, rank):
    """A LoRA's, or its kin's, at one map."""
    products = [(d_in * rank, True, True), (rank * d_out, False, True)]
    extra = Extra(not method.dropout, bool(method.dropout), rank, products=tuple(products))
    if isinstance(method, AdaLoRA):
        extra.rows = 2 * rank
    elif isinstance(method, PiSSA):
        extra.products += ((d_in * rank, True, False), (rank * d_out, True, False))
    elif isinstance(method, DoRA):
        once = 2 * rank * (d_in * d_out + rank * d_in + rank * d_out)  # the lengths: W^T U, U^T U, V (U^T U)
        twice = 0 if method.detach_norm else once + 2 * rank * rank * (d_in + d_out)
        extra.rows, extra.steps = rank + 2 * d_out, (once, twice)
        extra.fixed = 2 * d_out * (1 if method.detach_norm else rank + 2)
    return extra


def bottleneck(method, width):
    """An adapter's at one join."""
    size = width * method.bottleneck
    extra = Extra(not method.dropout, bool(method.dropout), 2 * method.bottleneck)
    extra.products = (size, True, True), (size, False, True)
    if isinstance(method, Compacter):
        extra.fixed, extra.dense = size + 2 * size // method.num_factors, size
    return extra


def effects(method, shape):
    """The `Effects` of a method on a `Shape`."""
    config, maps = shape.config, linear_shapes(shape.config)
    out = Effects(head=shape.task == "classify" and method.trains_head or method.name in ("head", "full"))
    if isinstance(method, LoRA):
        out.maps = {path: low_rank(method, *maps[path], rank) for path, (rank, _) in method.places(list(maps)).items()}
    elif isinstance(method, IA3):
        out.maps = {path: Extra(input=True) if at_input else Extra(rows=maps[path][1])
                    for path, at_input in method.places(list(maps)).items()}
    elif isinstance(method, Houlsby):
        paths = match(method.targets, join_paths(config), f"{method.name} targets")
        out.joins, out.norms = {path: bottleneck(method, config.hidden_size) for path in paths}, method.train_norms
    elif isinstance(method, RandomMask):
        out.maps = {path: Extra(True, fixed=round(2 * method.share * d_in * d_out), dense=d_in * d_out, whole=True)
                    for path, (d_in, d_out) in maps.items()}
    elif isinstance(method, BitFit):
        ends = TERMS[method.terms]
        out.biases = {path for path in maps if ends is None or path.endswith(ends)}
        out.norms = ends is None and layer_norms(shape)
    elif isinstance(method, (Full, TopK)):
        out.embedding = isinstance(method, Full)
        out.exits = config.num_hidden_layers - 1 if isinstance(method, EarlyExitTuning) else 0
        out.blocks = {path for path, _ in block_names(config)} if out.embedding else set(method.blocks(config))
        out.trained, out.norms = {path for path in maps if path.startswith(tuple(f"{b}." for b in out.blocks))}, out.embedding
    elif isinstance(method, Prefix):
        out.keys, out.network = method.num_virtual_tokens, method.hidden if method.reparametrise else 0
    elif isinstance(method, SoftPrompt):
        out.tokens = method.num_virtual_tokens
    elif isinstance(method, OutputTuning):
        out.labels = len(config.labels) or len(method.words or ())
    out.shifts, out.norms = isinstance(method, TaskEmbedding), out.norms or isinstance(method, LayerNormTuning)
    return out


def layer_norms(shape):
    """Whether the norms of a model have biases."""
    return shape.family not in ("llama", "t5")


class Walk:
    """One training step of a method on a shape.

    Args:
        shape: a `Shape`. method: a fine-tuning method. batch, length: B and T. target_length: of an encoder-decoder's target.

    Attributes:
        kept: numbers kept for the backward pass. temporary: numbers that it needs beside them at its peak, roughly.
        forward, backward: operations of a step. extra: those of ``forward`` that are the method's own and go when it merges.
    """

    def __init__(self, shape, method, batch, length, target_length=64):
        self.shape, self.config, self.batch = shape, shape.config, batch
        self.effects, self.kind, self.maps = effects(method, shape), type(method), linear_shapes(shape.config)
        self.kept = self.temporary = self.forward = self.backward = self.extra = 0
        words = length + self.effects.tokens
        blocks = block_names(self.config)
        starts = bool(self.effects.embedding or self.effects.tokens or self.effects.shifts)
        if not self.config.encoder_decoder:
            states = self.stack("", blocks, words, starts)
            self.head(length, states)
            for _ in range(self.effects.exits):
                self.head(length, states, inner=True)
            return
        source = self.stack("encoder.", [b for b in blocks if b[0].startswith("encoder.")], words, starts)
        states = self.stack("decoder.", [b for b in blocks if b[0].startswith("decoder.")], target_length, self.effects.embedding,
                            (words, source))
        self.head(target_length, states)

    # ---- products and what stands at a map ----

    def product(self, rows, size, node, trained, own=False):
        """Rows times a matrix of so many entries; ``own`` where it is the method's."""
        self.forward += 2 * rows * size
        self.extra += 2 * rows * size * own
        self.backward += 2 * rows * size * (bool(node) + bool(trained))

    def at(self, extra, rows, node):
        """What a method has at one place."""
        self.kept += rows * extra.rows + extra.fixed + extra.dense * bool(node)
        for size, of_input, trained in extra.products:
            self.product(rows, size, node if of_input else True, trained, own=True)
        self.forward, self.backward = self.forward + extra.steps[0], self.backward + extra.steps[1]
        self.extra += extra.steps[0]

    def linear(self, path, rows, node):
        """One map of the blocks; returns whether its output has a gradient."""
        (d_in, d_out), extra = self.maps[path], self.effects.maps.get(path)
        self.product(rows, d_in * d_out, node, path in self.effects.trained or extra is not None and extra.whole)
        if extra is not None:
            self.at(extra, rows, node)
        return node or extra is not None or path in self.effects.trained or path in self.effects.biases

    def keeps(self, *paths):
        """Whether one of these maps keeps its input as it is."""
        extras = self.effects.maps
        return any(path in self.effects.trained or path in extras and extras[path].input for path in paths)

    def copies(self, paths, rows, width, node):
        """Inputs of maps that are kept under a dropout of their own, and its masks."""
        extras = [self.effects.maps[path] for path in paths if path in self.effects.maps]
        self.kept += sum(e.dropped for e in extras) * rows * width * (1 + bool(node))

    def trains_norm(self, block=None):
        """Whether the norms of a block are trained, or those outside of all."""
        return self.effects.norms or block in self.effects.blocks

    # ---- the model ----

    def stack(self, side, blocks, length, node, source=None):
        """Embedding and blocks of one side; returns whether the states that leave it have a gradient."""
        config, rows = self.config, self.batch * length
        wide, dropped = rows * config.hidden_size, bool(config.hidden_dropout)
        if not self.shape.pre_norm:
            node = node or self.trains_norm()
            self.kept += wide * node
        self.kept += wide * bool(config.embedding_dropout and node)
        bias = False
        for block, attentions in blocks:
            for attention in attentions:
                keys = source if attention == "cross" else None
                node, scored = self.attention(f"{block}.{attention}", block, length, node, keys)
                bias = bias or scored and keys is None
            node = self.mlp(f"{block}.mlp", block, rows, node)
        if self.shape.pre_norm:
            self.kept += wide * bool(node or self.trains_norm())
            node = node or self.trains_norm()
        if self.shape.family == "t5":
            self.kept += wide * bool(dropped and node)
            each = (self.batch if side == "encoder." else 1) * config.num_attention_heads * length
            self.kept += each * (length + self.effects.keys) * (len(blocks) if self.effects.keys else 1) * bool(bias)
            self.kept += 2 * each // config.num_attention_heads * length * self.effects.embedding  # 8-byte numbers of its rows
        if side == "encoder.":
            paths = [path for path in self.maps if ".cross." in path and path.endswith((".k", ".v"))]
            self.kept += wide * self.keeps(*paths)
        return node

    def attention(self, path, block, length, node, source=None):
        """An attention; returns whether its sum has a gradient, and whether its scores have."""
        config, batch, rows, width = self.config, self.batch, self.batch * length, self.config.hidden_size
        keys, key_node = source or (length, None)
        inner = node or self.shape.pre_norm and self.trains_norm(block)  # whether what enters the maps has a gradient
        key_node = inner if source is None else key_node
        reading = [f"{path}.{name}" for name in ("q" if source else "qkv")]
        self.residual(rows * width, inner, self.keeps(*reading), self.beside(path))
        self.copies(reading, rows, width, inner)
        if source is not None:
            self.copies([f"{path}.k", f"{path}.v"], batch * keys, width, key_node)
        q = self.linear(f"{path}.q", rows, inner)
        k, v = (self.linear(f"{path}.{name}", batch * keys, key_node) for name in "kv")
        scored = self.core(length, keys, q, k, v, self.effects.embedding and config.encoder_decoder and source is None)
        q_wide = config.num_attention_heads * config.head_dim
        if config.rotary:
            self.kept += rows * config.head_dim * (bool(q) + bool(k))  # the angles' cosines and sines
        inside = scored or v or self.effects.keys > 0
        self.kept += rows * q_wide * self.keeps(f"{path}.out")
        self.copies([f"{path}.out"], rows, q_wide, inside)
        out = self.linear(f"{path}.out", rows, inside)
        return self.join(path, block, rows, node, out), scored

    def beside(self, path):
        """Whether an adapter beside a sub-layer keeps what enters it, as it is."""
        return self.kind is Parallel and f"{path}.join" in self.effects.joins and not self.effects.joins[f"{path}.join"].dropped

    def residual(self, size, inner, wanted, parallel):
        """What enters a sub-layer: kept by the norm before it, by its maps, and by an adapter beside it, each array once."""
        if self.shape.pre_norm:
            self.kept += size * (bool(inner or parallel) + bool(wanted))
        else:
            self.kept += size * bool(wanted or parallel)

    def core(self, length, keys, q, k, v, bias):
        """Scores, softmax and values; returns whether the weights have a gradient."""
        config, batch, more = self.config, self.batch, self.effects.keys
        key_width, heads, width = config.num_key_value_heads * config.head_dim, config.num_attention_heads, config.head_dim
        keys, k, v = keys + more, k or more > 0, v or more > 0
        if self.effects.network:  # each core has its rows made anew
            self.product(more, config.hidden_size * self.effects.network, True, True, own=True)
            self.product(more, self.effects.network * 2 * key_width, True, True, own=True)
            self.kept += more * self.effects.network
        scored, square = bool(q or k or bias), batch * heads * length * keys
        self.kept += scored * (batch * length * heads * width + 2 * batch * keys * key_width)  # q, k, and v
        if config.attention_dropout:
            self.kept += square * (2 * scored + bool(v))
        else:
            self.kept += square * bool(scored or v)
        self.product(square, width, q, k)
        self.product(square, width, scored, v)
        self.temporary = max(self.temporary, scored * (1 if config.attention_dropout else 2) * square
                             - batch * length * config.intermediate_size)  # the feed-forward above is done
        return scored

    def mlp(self, path, block, rows, node):
        """A feed-forward; returns whether its sum has a gradient."""
        config, width, wide = self.config, self.config.hidden_size, rows * self.config.intermediate_size
        inner = node or self.shape.pre_norm and self.trains_norm(block)
        reading = [f"{path}.gate", f"{path}.up"] if config.gated else [f"{path}.up"]
        self.residual(rows * width, inner, self.keeps(*reading), self.beside(path))
        self.copies(reading, rows, width, inner)
        nodes = [self.linear(name, rows, inner) for name in reading]
        inside, gates = any(nodes), config.gated
        self.kept += wide * (2 * nodes[0] + nodes[1] if gates else nodes[0])  # gated: its own input and up's, and its output
        dropped = bool(config.hidden_dropout and config.encoder_decoder and self.shape.family == "t5")
        self.kept += wide * (bool(dropped and inside) + self.keeps(f"{path}.down"))
        self.copies([f"{path}.down"], rows, config.intermediate_size, inside)
        out = self.linear(f"{path}.down", rows, inside)
        before = self.kept
        node = self.join(path, block, rows, node, out)
        down = f"{path}.down"
        free = self.kept - before + wide * ((down in self.effects.trained) - (down in self.effects.maps))
        # what is free is gone when the gradients of what is inside come; a method at the map has a gradient of its own
        self.temporary = max(self.temporary, inside * ((3 if gates else 2) * wide + rows * width - free))
        return node

    def join(self, path, block, rows, x, h):
        """A join of residual x and output h, with an adapter; returns whether the sum has a gradient."""
        extra, size = self.effects.joins.get(f"{path}.join"), rows * self.config.hidden_size
        self.kept += size * bool(self.config.hidden_dropout and h)
        pre_norm, trained = self.shape.pre_norm, self.trains_norm(block)
        if extra is not None:
            first = bool(x or h or not pre_norm and trained) if self.kind is Pfeiffer else bool(x if self.kind is Parallel else h)
            if self.kind is Pfeiffer and not pre_norm:
                self.kept += size * first  # the first of the two norms
            if self.kind is not Parallel or extra.dropped:
                self.kept += size * (1 + (extra.dropped and first))
            self.at(extra, rows, first)
        node = bool(x or h or extra is not None)
        if not pre_norm:
            node = node or trained
            self.kept += size * node
        return node

    def head(self, length, states, inner=False):
        """The task's head and the loss; an ``inner`` one reads states that the block above it keeps."""
        config, batch, width, labels = self.config, self.batch, self.config.hidden_size, self.effects.labels
        places = length + self.effects.tokens * (not config.encoder_decoder)
        if self.shape.task == "classify":
            for square in (config.pooling == "pooler", self.shape.dense_head):
                trained = self.effects.embedding or square and self.shape.dense_head and self.effects.head
                self.product(batch * square, width * width, states, trained)
                self.kept += 2 * batch * width * bool(square and (states or trained))
            if config.pooling == "mean":
                self.product(batch * places, width, states, False)
            view = config.pooling == "cls" or config.pooling == "pooler" and self.effects.embedding  # which keeps all states
            self.kept += batch * width * ((not inner) * places if view else 1)
            self.product(batch, width * len(config.labels), states, self.effects.head)
            self.product(batch, width * labels, states, True, own=True)
            self.product(batch, labels * len(config.labels), True, False, own=True)
            return
        rows, outputs = batch * length, config.vocab_size
        self.product(rows, width * outputs, states, self.effects.head)
        node = states or self.effects.head or labels
        self.kept += rows * outputs * bool(node) + rows * width * bool(self.effects.head or labels)
        logits, weight = rows * outputs * bool(node), width * outputs * self.effects.head
        self.temporary = max(logits, weight, self.temporary - logits)  # the blocks' come when the logits are gone
        if labels:
            self.product(rows, width * labels, states, True, own=True)
            self.product(rows, labels * outputs, True, False, own=True)
