"""The seams of a model and their sizes, read off its config alone, so that a count needs no model."""


def block_names(config):
    """[(path of a block, the names of its attentions)]: ``attn``, and in an encoder-decoder's decoder ``cross`` too."""
    if not config.encoder_decoder:
        return [(f"blocks.{i}", ["attn"]) for i in range(config.num_hidden_layers)]
    return ([(f"encoder.blocks.{i}", ["attn"]) for i in range(config.num_hidden_layers)]
            + [(f"decoder.blocks.{i}", ["attn", "cross"]) for i in range(config.num_decoder_layers)])


def attention_shapes(config):
    """{name of a map of one attention: (D_in, D_out)}."""
    width, head = config.hidden_size, config.head_dim
    of_keys, of_queries = config.num_key_value_heads * head, config.num_attention_heads * head
    return {"q": (width, of_queries), "k": (width, of_keys), "v": (width, of_keys), "out": (of_queries, width)}


def linear_shapes(config):
    """{path: (D_in, D_out)} of the Linear maps inside the blocks, in the order of `targets.linear_paths`."""
    width, inner, out = config.hidden_size, config.intermediate_size, {}
    for block, attentions in block_names(config):
        for attention in attentions:
            out |= {f"{block}.{attention}.{name}": shape for name, shape in attention_shapes(config).items()}
        if config.gated:
            out[f"{block}.mlp.gate"] = (width, inner)
        out |= {f"{block}.mlp.up": (width, inner), f"{block}.mlp.down": (inner, width)}
    return out


def join_paths(config):
    """Paths of the joins, where a sub-layer's output meets the residual."""
    return [f"{block}.{part}.join" for block, attentions in block_names(config) for part in (*attentions, "mlp")]


def core_widths(config):
    """{path: width of its keys (and of its values)} of the attention cores."""
    width = config.num_key_value_heads * config.head_dim
    return {f"{block}.{attention}.core": width for block, attentions in block_names(config) for attention in attentions}


def bias_sizes(config):
    """{path: number of entries} of the biases of the Linear maps inside the blocks; only those that exist."""
    def has(name):
        part, _, last = name.rpartition(".")
        return config.mlp_bias if part.endswith("mlp") else config.attention_out_bias if last == "out" else config.attention_bias

    return {path: d_out for path, (_, d_out) in linear_shapes(config).items() if has(path)}


def norm_sizes(config):
    """{path: number of parameters} of all norms: D gains, and D biases where it is a LayerNorm (BERT, GPT-2)."""
    size = config.hidden_size * (2 if config.model_type in ("bert", "gpt2") else 1)
    out = {"embed.norm": size} if config.model_type == "bert" else {}
    for block, attentions in block_names(config):
        out |= {f"{block}.{part}.norm" if config.pre_norm else f"{block}.{part}.join.norm": size for part in (*attentions, "mlp")}
    if config.pre_norm:
        out |= {f"{side}final_norm": size for side in (("encoder.", "decoder.") if config.encoder_decoder else ("",))}
    return out


def block_size(config, block):
    """Number of parameters of the block at a path: 4 D^2 + 2 D F + 9 D + F for BERT and GPT-2."""
    sizes = {path: d_in * d_out for path, (d_in, d_out) in linear_shapes(config).items()}
    parts = (sizes, bias_sizes(config), norm_sizes(config))
    return sum(size for part in parts for path, size in part.items() if path.startswith(f"{block}."))


def embedding_size(config):
    """Number of parameters of the word, position and type vectors, and of T5's relative biases."""
    rows = config.vocab_size + config.type_vocab_size + (config.max_position_embeddings if config.learned_positions else 0)
    sides = 2 if config.encoder_decoder else 0
    return rows * config.hidden_size + sides * config.relative_attention_num_buckets * config.num_attention_heads


def pooler_sizes(config):
    """{path: (D_in, D_out)} of BERT's pooler, where the classification reads it."""
    return {"head.pooler": (config.hidden_size, config.hidden_size)} if config.pooling == "pooler" else {}


def body_size(config):
    """Number of parameters of a model without its head."""
    outside = sum(size for path, size in norm_sizes(config).items() if "blocks" not in path.split("."))
    return embedding_size(config) + outside + sum(block_size(config, block) for block, _ in block_names(config))
