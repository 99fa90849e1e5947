"""Unfreezing from the top changes exactly the promised set, epoch by epoch; it is rule 12 of the list in test_conformance.py."""

import numpy as np
import pytest

from minipeft.interop import make_model
from minipeft.methods import METHODS, GradualUnfreezing, attach, discriminative
from minipeft.methods.unfreezing import group_numbers
from minipeft.models import TransformerConfig
from minipeft.training import Settings, factor, fit

SHAPE = {"vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 10,
         "max_position_embeddings": 24, "initializer_range": 0.3}
FAMILIES = {"bert": {"model_type": "bert", "type_vocab_size": 2, "labels": ("a", "b"), "pooling": "mean"},
            "gpt2": {"model_type": "gpt2", "labels": ("a", "b"), "pooling": "last"},
            "t5": {"model_type": "t5", "num_decoder_layers": 2, "gated": True, "decoder_start_token_id": 0}}


def make(family):
    config = TransformerConfig(**SHAPE | FAMILIES[family])
    return make_model(config, "classify" if config.labels else "seq2seq", np.random.default_rng(0))


class Work:
    """Two batches an epoch of random tokens, every word of the vocabulary among them."""

    def __init__(self, classes):
        rng = np.random.default_rng(0)
        self.batches, self.classes = [rng.permutation(13)[None, :12].repeat(2, 0) for _ in range(2)], classes

    def number_of_batches(self):
        return 2

    def training_batches(self, rng):
        return [0, 1]

    def collate(self, index):
        return type("Batch", (), {"ids": self.batches[index], "size": 2})

    def weight(self, batch):
        return 2

    def loss(self, model, batch):
        return model(batch.ids, labels=np.array([0, 1]) if self.classes else batch.ids).loss

    def evaluate(self, model, split):
        return {}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "houlsby", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_every_epoch_exactly_the_promised_set_has_changed(family, name, optimizer):
    model = make(family)
    method = METHODS[name](**({"add_zero_biases": True} if (family, name) == ("t5", "bitfit") else {}))
    attachment = attach(model, method, rng=np.random.default_rng(1))
    rng = np.random.default_rng(2)
    attachment.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) * np.float32(0.1)
                            for p, a in attachment.arrays().items()})
    hook, seen = GradualUnfreezing(attachment), []
    parameters = attachment.named_parameters()

    class Watch(GradualUnfreezing):
        def before_step(self, step, total, epoch, rng):
            super().before_step(step, total, epoch, rng)
            self.before = {path: p.data.tobytes() for path, p in parameters.items()}

        def after_step(self, step, total):
            changed = {path for path, p in parameters.items() if p.data.tobytes() != self.before[path]}
            promised = set(self.trained(step // 2))
            assert changed <= promised, changed - promised
            assert len(changed) > 0.6 * len(promised)  # key biases and unused rows have no gradient
            seen.append(len(promised))
            super().after_step(step, total)

    fit(model, parameters, Work(bool(model.config.labels)),
        Settings(lr=0.01, epochs=len(hook.order) + 1, optimizer=optimizer, warmup=0.0), hooks=[Watch(attachment)])
    assert seen[-1] == seen[-3] == len(parameters) and sorted(seen) == seen and len(set(seen)) == len(hook.order)


def test_a_group_may_take_several_epochs():
    attachment = attach(make("bert"), METHODS["lora"]())
    hook = GradualUnfreezing(attachment, epochs_a_group=2)
    counts = [len(hook.trained(epoch)) for epoch in range(9)]
    assert counts == [1 + 1, 2, 6, 6, 10, 10, 14, 14, 14]  # the head's two, and four of each block: U and V of q and v


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_lora_pluss_second_matrix_learns_so_many_times_as_fast(ratio):
    attachment = attach(make("bert"), METHODS["lora_plus"](rank=2, lr_ratio=ratio), rng=np.random.default_rng(1))
    parameters, rng = attachment.named_parameters(), np.random.default_rng(2)
    attachment.load_arrays({p: a + rng.standard_normal(a.shape).astype(np.float32) * np.float32(0.1)
                            for p, a in attachment.arrays().items()})
    before, work = {path: p.data.copy() for path, p in parameters.items()}, Work(True)
    work.loss(attachment.model, work.collate(0)).backward()
    gradients = {path: p.grad.copy() for path, p in parameters.items()}
    attachment.model.zero_grad()
    fit(attachment.model, parameters, work,
        Settings(lr=0.01, epochs=1, optimizer="sgd", schedule="constant", warmup=0.0, weight_decay=0.0, clip=1e9, max_steps=1),
        lr_scale=attachment.method.lr_scale)
    for path, p in parameters.items():
        rate = 0.01 * (ratio if path.endswith(".V") else 1)
        np.testing.assert_allclose(p.data, before[path] - np.float32(rate) * gradients[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_the_groups_from_the_top():
    number = group_numbers(make("t5").config)
    paths = ["head.output.weight", "decoder.blocks.1.mlp.up.weight", "decoder.final_norm.weight", "decoder.blocks.0.cross.q.U",
             "encoder.blocks.2.attn.q.weight", "encoder.final_norm.weight", "encoder.blocks.0.attn.q.weight",
             "embed.tokens.weight", "encoder.relative.weight"]
    assert [number(path) for path in paths] == [0, 1, 1, 2, 3, 3, 5, 6, 6]
    number = group_numbers(make("gpt2").config)
    assert [number(p) for p in ("head.classifier.weight", "blocks.2.x", "final_norm.bias", "blocks.1.x", "blocks.0.x",
                                "embed.position.weight", "positions", "blocks.10.x")] == [0, 1, 1, 2, 3, 4, 4, 4]


def test_rates_fall_by_the_factor_from_block_to_block():
    scale = discriminative(make("bert").config)
    assert [scale(p) for p in ("head.classifier.bias", "blocks.2.a", "blocks.1.a", "blocks.0.a",
                               "embed.norm.weight")] == pytest.approx([1, 1, 1 / 2.6, 1 / 2.6**2, 1 / 2.6**3])
    with pytest.raises(ValueError, match="the factor must be at least 1, got 0.5"):
        discriminative(make("bert").config, 0.5)
    with pytest.raises(ValueError, match="epochs_a_group must be at least 1, got 0"):
        GradualUnfreezing(attach(make("bert"), METHODS["full"]()), 0)


@pytest.mark.parametrize("total", [1, 5, 10, 37, 200])
def test_the_slanted_triangle(total):
    got = [factor("slanted", t, total) for t in range(total)]
    cut = max(1, total // 10)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * 9)
        assert got[t] == pytest.approx((1 + max(p, 0) * 31) / 32)
    assert got[0] == (pytest.approx(1 / 32) if total >= 1 else None) and max(got) <= 1
    assert total < 10 or got[cut] == 1
