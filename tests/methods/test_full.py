"""Full fine-tuning trains every parameter in place, each once, and says what it cannot do."""

import numpy as np
import pytest

from minipeft.methods import Full, attach
from minipeft.models import ClassificationHead, Decoder, Encoder, LMHead, TransformerConfig
from minipeft.training import SGD

IDS = np.array([[1, 5, 2, 9], [3, 3, 0, 7]])
SHAPE = {"vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
         "max_position_embeddings": 16}


def decoder(tied):
    config = TransformerConfig(model_type="gpt2", tie_word_embeddings=tied, **SHAPE)
    model = Decoder(config, np.random.default_rng(0))
    model.head = LMHead(config, model.embed.tokens.weight, np.random.default_rng(1))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_the_models_own_parameters_are_trained_each_once(tied):
    model = decoder(tied)
    attachment = attach(model, Full())
    own = dict(model.named_parameters())
    assert attachment.named_parameters() == own and all(p.requires_grad for p in own.values())  # the very same objects
    table, block = 17 * 12 + 16 * 12, 4 * 12**2 + 2 * 12 * 20 + 9 * 12 + 20  # 4 D^2 + 2 D f + 9 D + f
    head = 0 if tied else 12 * 17
    assert (attachment.trainable == table + 2 * block + 2 * 12 + head
            and attachment.trainable_without_head == attachment.trainable - head)
    rows = attachment.table()
    assert sum(count for _, count, _ in rows) == attachment.trainable and len(rows) == len(own)
    assert ("blocks.1.mlp.up.weight", 240, "12x20") in rows and ("final_norm.bias", 12, "12") in rows
    assert attachment.wrappers == {} and attachment.head is None


def test_a_step_follows_the_gradient_of_every_parameter():
    model, by_hand = decoder(True), decoder(True)
    attachment = attach(model, Full())
    optimizer = SGD(attachment.named_parameters().values(), lr=0.5)
    for m in (model, by_hand):
        m(IDS, labels=IDS).loss.backward()
    optimizer.step()
    for (path, p), (_, q) in zip(model.named_parameters(), by_hand.named_parameters()):
        np.testing.assert_allclose(p.data, q.data - np.float32(0.5) * q.grad, rtol=1e-6, atol=1e-7, err_msg=path)
        assert path.endswith("attn.k.bias") or path == "embed.position.weight" or (p.data != q.data).any(), path


def test_what_was_trained_stays_when_it_is_taken_off():
    config = TransformerConfig(model_type="bert", type_vocab_size=2, **SHAPE)
    model = Encoder(config, np.random.default_rng(0))
    model.head = ClassificationHead(12, 3, "mean", rng=np.random.default_rng(1))
    model.embed.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    attachment = attach(model, Full())
    assert attachment.active
    for p in attachment.named_parameters().values():
        p.data = p.data + np.float32(0.1)
    learned = model(IDS).logits.data
    attachment.detach()
    assert ((model(IDS).logits.data == learned).all() and not model.attachments
            and [p.requires_grad for p in model.parameters()] == flags)
    with pytest.raises(ValueError, match="disable: full trains the base itself and keeps no copy of it; "
                                         "reload the model to have it back"), attachment.disabled():
        pass
    with pytest.raises(ValueError, match="merge: full has nothing that can be merged into a weight"):
        attachment.merge()
