"""Prototypical networks: a class is the mean of its few examples, and a text belongs to the nearest.

    c_k = mean of f(x) over the support of class k,       p(k | x) = softmax over k of -|f(x) - c_k|²
    training, by episodes:  -mean over the query of log p(right class | x)

f is the model's own state of a text, the mean over its tokens; nothing is added to the model, and adapting to a new task is one
forward pass. What is trained by episodes is f, through any attached method.

Source: Snell, Swersky, Zemel, NeurIPS 2017, arXiv:1703.05175, section 2.

Shapes: f (N, D), prototypes (C, D), distances (N, C).
"""

import numpy as np

from .. import autograd as F


def text_states(model, batch):
    """f (B, D), a Tensor: the mean of the last states over each text's tokens; of an encoder-decoder, the encoder's."""
    if model.config.encoder_decoder:
        states, _ = model.encode(batch.input_ids, batch.attention_mask)  # (B, P + T, D)
    else:
        states = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).last_hidden_state
    states = states[:, states.shape[1] - batch.input_ids.shape[1]:]  # (B, T, D), without virtual tokens
    share = batch.attention_mask / batch.attention_mask.sum(axis=1, keepdims=True)  # (B, T)
    return (states * share[..., None].astype(states.dtype)).sum(axis=1)  # (B, D)


def prototypes(states, labels, classes):
    """c (C, D), a Tensor: the mean of the states (N, D) of each class; every class needs an example."""
    members = np.equal.outer(np.arange(classes), np.asarray(labels))  # (C, N)
    if not members.any(axis=1).all():
        raise ValueError(f"prototypes: expected an example of each of {classes} classes, got labels "
                         f"{sorted(set(map(int, labels)))}")
    mean = (members / members.sum(axis=1, keepdims=True)).astype(states.dtype)
    return F.matmul(mean, states)  # (C, D)


def prototype_logits(states, centres):
    """-|f - c_k|² (N, C), a Tensor, of states (N, D) and prototypes (C, D)."""
    difference = states.reshape(states.shape[0], 1, -1) - centres  # (N, C, D)
    return -(difference * difference).sum(axis=-1)


def episode_loss(model, support, query, classes):
    """The loss of an episode, a Tensor; support and query are `Batch`es with classes as labels."""
    centres = prototypes(text_states(model, support), support.labels, classes)
    return F.cross_entropy(prototype_logits(text_states(model, query), centres), query.labels)
