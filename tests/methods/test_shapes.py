"""What a config alone tells of a model's seams is what the model has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minipeft.interop import make_model
from minipeft.methods import shapes
from minipeft.methods.targets import block_paths, linear_paths
from minipeft.models import TransformerConfig
from minipeft.nn import AttentionCore, Join, LayerNorm, RMSNorm


@st.composite
def configs(draw):
    """A config of any family, with sizes that differ from each other."""
    family = draw(st.sampled_from(["bert", "gpt2", "llama", "t5"]))
    heads, groups, head_dim = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2])), 2 * draw(st.integers(1, 3))
    keys = heads // groups if family == "llama" and heads >= groups else heads
    biases = {"attention_bias": draw(st.booleans()), "attention_out_bias": draw(st.booleans()),
              "mlp_bias": draw(st.booleans())} if family in ("llama", "t5") else {}
    return TransformerConfig(
        model_type=family, vocab_size=draw(st.integers(5, 13)),
        hidden_size=heads * head_dim if family in ("bert", "gpt2") else 10, num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads, num_key_value_heads=keys, head_dim=head_dim, intermediate_size=draw(st.integers(3, 9)),
        max_position_embeddings=draw(st.integers(4, 9)), num_decoder_layers=draw(st.integers(1, 3)) if family == "t5" else 0,
        gated=family == "llama" or family == "t5" and draw(st.booleans()),
        type_vocab_size=draw(st.integers(1, 3)) if family == "bert" else 0, relative_attention_num_buckets=6,
        relative_attention_max_distance=9, **biases)


@given(configs())
def test_the_seams_and_their_sizes_are_the_models(config):
    model = make_model(config)
    assert shapes.linear_shapes(config) == {path: model.get(path).weight.shape for path in linear_paths(model)}
    assert list(shapes.linear_shapes(config)) == linear_paths(model)
    assert shapes.bias_sizes(config) == {path: model.get(path).bias.size for path in linear_paths(model)
                                         if model.get(path).bias is not None}
    assert shapes.join_paths(config) == block_paths(model, Join)
    assert shapes.core_widths(config) == {path: model.get(path[:-4] + "k").weight.shape[1]
                                          for path in block_paths(model, AttentionCore)}
    norms = {path: sum(p.size for p in module.parameters()) for path, module in model.named_modules()
             if isinstance(module, (LayerNorm, RMSNorm))}
    assert shapes.norm_sizes(config) == norms


@given(configs())
def test_the_sizes_of_blocks_and_of_the_whole(config):
    model = make_model(config)
    for block, _ in shapes.block_names(config):
        assert shapes.block_size(config, block) == sum(p.size for p in model.get(block).parameters())
        if config.model_type in ("bert", "gpt2"):
            d, f = config.hidden_size, config.intermediate_size
            assert shapes.block_size(config, block) == 4 * d * d + 2 * d * f + 9 * d + f
    assert shapes.body_size(config) == sum(p.size for p in model.parameters())
    assert np.sum([p.size for p in model.embed.parameters()]) <= shapes.body_size(config)
