"""Every parameter's gradient of whole models against finite differences in float64."""

import numpy as np
import pytest

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [5, 3, 5, 8, 9]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
TYPES = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
NEXT = np.where(MASK, IDS, -100)
CLASSES = np.array([2, 0, 1])
MODELS = [("bert", "classify", "pooler", CLASSES), ("bert", "classify", "mean", CLASSES), ("bert", "classify", "cls", CLASSES),
          ("bert", "mlm", None, np.where(IDS == 5, IDS, -100)), ("gpt2", "lm", None, NEXT), ("gpt2", "classify", "last", CLASSES),
          ("llama", "lm", None, NEXT), ("llama tied", "lm", None, NEXT), ("llama", "classify", "mean", CLASSES),
          ("t5", "seq2seq", None, NEXT[:, ::-1]), ("t5 tied", "seq2seq", None, NEXT[:, ::-1])]


@pytest.mark.parametrize("family,task,pooling,labels", MODELS,
                         ids=["-".join(filter(None, m[:3])).replace(" ", "_") for m in MODELS])
def test_gradient_of_every_parameter(family, task, pooling, labels, make, rng):
    model = make(family, task, pooling, np.float64)
    types = {} if model.config.encoder_decoder else {"token_type_ids": TYPES}
    loss = lambda: model(IDS, attention_mask=MASK, labels=labels, **types).loss
    loss().backward()
    assert all(p.grad is not None for p in model.parameters())
    for path, parameter in model.named_parameters():
        largest = np.abs(parameter.grad).max()
        if path.endswith("attn.k.bias") and not model.config.rotary:
            assert largest < 1e-12, path  # one number added to all scores of a query changes nothing
        else:
            assert largest > 1e-6, path  # else the comparison below would say nothing
        entries = [np.unravel_index(np.abs(parameter.grad).argmax(), parameter.shape)]
        entries += [tuple(rng.integers(0, n) for n in parameter.shape) for _ in range(2)]
        for entry in entries:
            kept, sides = parameter.data[entry], []
            for sign in (1, -1):
                parameter.data[entry] = kept + sign * 1e-5
                sides.append(loss().item())
            parameter.data[entry] = kept
            expected = (sides[0] - sides[1]) / 2e-5
            assert parameter.grad[entry] == pytest.approx(expected, abs=1e-6 * max(largest, 1e-2)), (path, entry)


def test_a_frozen_model_records_nothing_and_a_part_only_its_part(make):
    model = make("bert", "classify", "mean").requires_grad_(False)
    assert not model(IDS, labels=CLASSES).loss.requires_grad
    for path, parameter in model.named_parameters():
        parameter.requires_grad = path.startswith("blocks.1.mlp")
    model(IDS, labels=CLASSES).loss.backward()
    assert {path for path, p in model.named_parameters() if p.grad is not None} == {
        path for path, _ in model.named_parameters() if path.startswith("blocks.1.mlp")}
