"""Tiny models of every kind, made from a seed."""

import numpy as np
import pytest

from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, MaskedLMHead, Seq2Seq, Seq2SeqLMHead, TransformerConfig

FAMILIES = {
    "bert": {"model_type": "bert", "type_vocab_size": 2},
    "gpt2": {"model_type": "gpt2", "hidden_act": "gelu_new"},
    "llama": {"model_type": "llama", "hidden_act": "silu", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    "llama tied": {"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 1, "head_bias": False},  # with every bias
    "t5": {"model_type": "t5", "num_decoder_layers": 3, "head_dim": 5, "hidden_act": "gelu_new", "gated": True, "norm_eps": 1e-6,
           "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
           "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "initializer_range": 2.0,
           "decoder_start_token_id": 0},
    "t5 tied": {"model_type": "t5", "num_decoder_layers": 1, "hidden_act": "relu", "norm_eps": 1e-6, "attention_bias": False,
                "attention_out_bias": False, "mlp_bias": False, "initializer_range": 2.0},
}


@pytest.fixture(scope="session")
def make():
    """``make("bert", "classify", pooling="mean", dtype=np.float64)``: a model with weights large enough to matter."""

    def build(family, task=None, pooling=None, dtype=np.float32, seed=0, **changes):
        fields = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
                  "max_position_embeddings": 24, "initializer_range": 0.4, "norm_eps": 1e-3}
        config = TransformerConfig(**fields | FAMILIES[family] | changes)
        rng = np.random.default_rng(seed)
        model = (Seq2Seq if config.encoder_decoder else Decoder if config.causal else Encoder)(config, rng)
        table = model.embed.tokens.weight
        if task == "classify":
            model.head = ClassificationHead(config.hidden_size, 3, pooling, dropout=config.hidden_dropout, rng=rng, std=0.4)
        elif task is not None:
            model.head = {"lm": LMHead, "mlm": MaskedLMHead, "seq2seq": Seq2SeqLMHead}[task](config, table, rng)
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or "norm" in path:  # not left at 0 and 1
                parameter.data += rng.standard_normal(parameter.shape).astype(np.float32) * 0.2
        return model.astype(dtype)

    return build
