"""Tiny models of every kind, made from a seed."""

import numpy as np
import pytest

from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, MaskedLMHead, TransformerConfig

FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new"},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    "llama tied": {"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 1, "head_bias": False},  # with every bias
}


@pytest.fixture(scope="session")
def make():
    """``make("bert", "classify", pooling="mean", dtype=np.float64)``: a model with weights large enough to matter."""

    def build(family, task=None, pooling=None, dtype=np.float32, seed=0, **changes):
        fields = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
                  "max_position_embeddings": 24, "initializer_range": 0.4, "norm_eps": 1e-3}
        config = TransformerConfig(**fields | FAMILIES[family] | changes)
        rng = np.random.default_rng(seed)
        model = (Decoder if config.causal else Encoder)(config, rng)
        table = model.embed.tokens.weight
        if task == "classify":
            model.head = ClassificationHead(config.hidden_size, 3, pooling, dropout=config.hidden_dropout, rng=rng, std=0.4)
        elif task is not None:
            model.head = {"lm": LMHead, "mlm": MaskedLMHead}[task](config, table, rng)
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or "norm" in path:  # not left at 0 and 1
                parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * 0.2
        return model.astype(dtype)

    return build
