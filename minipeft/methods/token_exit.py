"""Early exit in a decoder: each new token passes only as many blocks as it takes to be confident of the next word.

    z_i = project(norm(h_i)),   l_i = CE(z_i, next token),        i = 1 .. L;  all exits share the model's one output map
    training     sum_i w_i l_i,   w_i = i / sum j
    writing      a token leaves behind the first block where p_first - p_second > lambda'(t),   p = softmax(z_i)
                 lambda'(t) = clip(0.9 lambda + 0.1 e^(-tau t / N), 0, 1),   lambda = 1 - s,  for the t-th of N tokens
    filling in   h_k := h_j for the blocks k > j that a token skips; each of them makes keys and values of it with its own maps

Copying the keys and values of block j instead, so that no map is applied, ruins the text (see section 5.2 there). What is
filled in waits until a later token comes as far as block k: several tokens then pass its maps in one product.

Schuster, Fisch, Gupta, Dehghani, Bahri, Tran, Tay, Metzler, NeurIPS 2022, arXiv:2207.07061, sections 3.2 to 3.5.

Shapes: h_i (B, T, D), z_i (B, T, V). It acts on no seam: it is another walk over the model's blocks. Count: 0, the output map is
the model's own. Nothing merges.
"""

from typing import NamedTuple

import numpy as np

from .. import autograd as F
from ..models.generation import KVCache, check_text, chooser, end_ids, extended, write
from ..models.heads import LMHead, check_ids, following
from ..nn import Module, unwrap
from .exit_training import ExitsOutput, Joint


class Written(NamedTuple):
    """``ids`` (B, T + N), the prompt and what was written; ``layers`` (B, N), how many blocks each written token took.

    The first written token is read off the prompt, which passes all L blocks. Behind a row's end ``layers`` is 0.
    """

    ids: np.ndarray
    layers: np.ndarray


class TokenExit(Module):
    """A decoder with an exit behind every block, all through its own output map.

    ``training.fit`` trains it like a model, on ``trainable()``; in evaluation it is the model itself.

    Args:
        model: a Decoder with an LMHead and at least 2 blocks; it is changed only by training it.
        objective: what weighs the exits: ``shares(L)`` gives a number for each, the first block's first.
        trained: whether the exits of this model were trained before, so that all may be used as they are.
    """

    def __init__(self, model, objective=None, trained=False):
        blocks = getattr(model, "blocks", ())
        if not isinstance(unwrap(getattr(model, "head", None)), LMHead) or len(blocks) < 2:
            raise ValueError("token exit: expected a Decoder with 2 blocks or more and an LMHead, got "
                             f"{type(model).__name__} with {len(blocks)}; load a decoder with task='lm'")
        self.model, self.objective = model, objective or Joint("depth")
        self.trained = np.full(len(blocks), trained)
        self.trained[-1] = True  # the model's own

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        """In training the logits of the exits that have a weight, and their loss; else the model's output. labels (B, T)."""
        if not self.training:
            return self.model(input_ids, attention_mask=attention_mask, labels=labels)
        weights = self.objective.shares(len(self.model.blocks))
        x, mask, position_ids, virtual = self.model.enter(input_ids, attention_mask)  # (B, P + T, D)
        logits, loss, targets = [], None, None
        for block, weight in zip(self.model.blocks, weights):
            x = block(x, mask, position_ids)
            if not weight > 0:
                continue
            logits.append(self.model.head(self.model.normalised(x), mask, virtual))  # (B, T, V)
            if labels is not None:
                targets = following(check_ids("labels", labels, logits[-1].shape[:2])) if targets is None else targets
                term = F.cross_entropy(logits[-1], targets) * float(weight)
                loss = term if loss is None else loss + term
        self.trained |= labels is not None and weights > 0
        return ExitsOutput(loss, logits)

    def trainable(self):
        """{path: Parameter} of what is not frozen in the model, attachments included."""
        out = {path: p for path, p in self.model.named_parameters() if p.requires_grad}
        for attachment in vars(self.model).get("attachments", {}).values():
            out |= attachment.named_parameters() if attachment.enabled else {}
        return out

    def generate(self, rule, input_ids, max_new_tokens=50, attention_mask=None, rng=None, temperature=1.0, top_k=0, top_p=1.0,
                 eos_token_id=None, on_token=None):
        """Continue each row of ``input_ids``, every token leaving behind the first block whose exit ``rule`` accepts.

        Args:
            rule: a `Rule`, such as ``Confident(0.5)``. The others are those of `models.generate`.

        Returns:
            `Written`. At looseness 0 the ids are those of `models.generate`.

        Raises:
            ValueError: exits that were never trained, rows that go through different attachments, or a prompt that does not fit.
        """
        model, ids = self.model, check_text(input_ids, "token exit")
        self._check(ids.shape[1] + max_new_tokens)
        walk = _Walk(model, rule, ids, attention_mask, max_new_tokens)
        ends = end_ids(model, eos_token_id)
        new = write(walk.step, ids, max_new_tokens, chooser(rng, temperature, top_k, top_p), ends, on_token)  # (B, N)
        layers = np.stack(walk.layers, axis=1) if walk.layers else np.zeros_like(new)
        ended = np.cumsum(np.isin(new, ends), axis=1) - np.isin(new, ends) > 0  # behind the end of its row
        return Written(np.concatenate([ids, new], axis=1), np.where(ended, 0, layers))

    def _check(self, length):
        fresh = [str(number) for number, trained in enumerate(self.trained, 1) if not trained]
        if fresh:
            raise ValueError(f"token exit: exit {', '.join(fresh)} of {len(self.trained)} was never trained, so that tokens "
                             "would leave there at random; train with training.fit on trainable() and an objective that weighs "
                             "every exit, or say trained=True if this was done before")
        if any(getattr(module, "rows", None) is not None for module in self.model.modules()):
            raise ValueError("token exit: the rows of this batch go through different attachments; write with each by itself")
        self.model.check_length(length)


class _Walk:
    """The steps of one `TokenExit.generate`: caches, what waits to be filled in, and which blocks each token took."""

    def __init__(self, model, rule, ids, mask, length):
        self.model, self.rule, self.length, self.layers = model, rule, length, []
        self.prompt, self.mask = ids, None if mask is None else np.asarray(mask).astype(bool)
        self.cache = KVCache(len(model.blocks))
        self.waiting = [[] for _ in model.blocks]  # for each block the states (B, 1, D) of tokens that no row took there

    def step(self, new):
        """The newest ids (B, T) -> the logits (B, V) of what follows them."""
        model, exits = self.model, len(self.model.blocks)
        if new is self.prompt:
            states = model(new, attention_mask=self.mask, cache=self.cache).last_hidden_state  # (B, P + T, D)
            self.layers.append(np.full(len(new), exits))
            return model.head.project(states[:, -1]).data
        self.mask, rule = extended(self.mask, new), self.rule.at(len(self.layers), self.length)
        x, mask, position_ids, _ = model.enter(new, self.mask, cache=self.cache)  # (B, 1, D)
        held, here, layers = x.data.copy(), np.arange(len(new)), np.full(len(new), exits)  # held: each row's last state
        memory, logits = None, None
        for number, block in enumerate(model.blocks, 1):
            if not len(here):
                self.waiting[number - 1].append((held, position_ids))
                continue
            x = self.block(block, number - 1, x, held, here, mask, position_ids)  # (B', 1, D)
            held[here] = x.data
            z = model.head.project(model.normalised(x)[:, -1]).data  # (B', V)
            logits = np.empty((len(new), z.shape[1]), z.dtype) if logits is None else logits
            logits[here] = z  # of those that go on a later exit writes again
            leaves, memory = rule(z, memory, exits)
            if number < exits and leaves.any():
                layers[here[leaves]] = number
                x, here, memory = F.Tensor(x.data[~leaves]), here[~leaves], None if memory is None else memory[~leaves]
        self.layers.append(layers)
        return logits

    def block(self, block, index, x, held, here, mask, position_ids):
        """One block on the rows ``here``, with the states of those that have left filled in."""
        layer, rows = self.cache.layers[index], len(held)
        if self.waiting[index]:
            states, places = zip(*self.waiting[index])
            block.attn.store(F.Tensor(np.concatenate(states, axis=1)), np.concatenate(places, axis=1), layer)  # (B, m, D)
            self.waiting[index] = []
        if len(here) == rows:
            return block(x, mask, position_ids, layer)
        gone = np.setdiff1d(np.arange(rows), here)
        chosen = lambda array, which: array if array is None or len(array) != rows else array[which]
        block.attn.store(F.Tensor(held[gone]), chosen(position_ids, gone), layer.rows(gone))
        out = block(x, chosen(mask, here), chosen(position_ids, here), layer.rows(here))  # (B', 1, D)
        layer.length += x.shape[1]
        return out
