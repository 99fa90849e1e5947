"""Wrong answers to lesson 4, and what a learner who wrote one is told."""

import math

import numpy as np

from minipeft import autograd as F
from minipeft.autograd import no_grad
from minipeft.data.spans import parts
from minipeft.kernels import IGNORE
from minipeft.learn.claims import mutant

# ---- 04.1 ----


@mutant("04.1", "other_way", "You moved the labels the other way: place t would have to tell the token before it, which it has "
        "seen already.")
def following(labels):
    out = np.full_like(labels, IGNORE)
    out[:, 1:] = labels[:, :-1]
    return out


@mutant("04.1", "wrapped", "The last place got the first label, because np.roll goes around the end; it has nothing to predict: "
        "IGNORE.")
def following(labels):
    return np.roll(labels, -1, axis=1)


@mutant("04.1", "last_kept", "The last place kept its own label; it has nothing to predict: IGNORE.")
def following(labels):
    out = labels.copy()
    out[:, :-1] = labels[:, 1:]
    return out


@mutant("04.1", "not_moved", "The labels were not moved: a model would learn to copy the token that it reads.")
def following(labels):
    return labels.copy()


@mutant("04.1", "zero", "The last place got the label 0, which is a token; where there is nothing to predict the label is "
        "IGNORE.")
def following(labels):
    out = np.zeros_like(labels)
    out[:, :-1] = labels[:, 1:]
    return out


@mutant("04.1", "rows", "You moved the rows of the batch; the places are the second axis.")
def following(labels):
    out = np.full_like(labels, IGNORE)
    out[:-1] = labels[1:]
    return out


@mutant("04.1", "in_place", "The values are right, but you wrote into the labels that were given, which others still need; write "
        "into a copy.")
def following(labels):
    labels[:, :-1] = labels[:, 1:].copy()
    labels[:, -1] = IGNORE
    return labels


# ---- 04.2 ----


def batches(self, split):
    """The batches of a split."""
    blocks = len(self.blocks[split][0])
    for start in range(0, blocks, self.batch_size):
        yield self.collate(np.arange(start, min(start + self.batch_size, blocks)), split)


def both(loss, perplexity):
    """The result."""
    return {"score": perplexity, "perplexity": perplexity, "loss": loss}


@mutant("04.2", "mean_of_batches", "You took the mean over batches. The last one has fewer tokens: weigh each by "
        "self.weight(batch), and divide by their sum.")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    with no_grad():
        losses = [self.loss(model, batch).item() for batch in batches(self, split)]
    loss = sum(losses) / len(losses)
    return both(loss, math.exp(min(loss, 700)))


@mutant("04.2", "all_places", "You weighed by all places of a batch; padding, and tokens that an earlier block has scored, do "
        "not count: self.weight(batch).")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    with no_grad():
        for batch in batches(self, split):
            total += self.loss(model, batch).item() * batch.labels.size
            count += batch.labels.size
    loss = total / count
    return both(loss, math.exp(min(loss, 700)))


@mutant("04.2", "mean_of_perplexities", "You averaged the perplexities. Average the losses, and take e^ of the mean at the end.")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = choices = 0
    with no_grad():
        for batch in batches(self, split):
            loss, weight = self.loss(model, batch).item(), self.weight(batch)
            total, choices, count = total + loss * weight, choices + math.exp(min(loss, 700)) * weight, count + weight
    return both(total / count, choices / count)


@mutant("04.2", "base_two", "The loss is in nats, so that the perplexity is e^loss; 2^loss would be for bits.")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    with no_grad():
        for batch in batches(self, split):
            total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    return both(total / count, 2 ** min(total / count, 700))


@mutant("04.2", "whole_batches_only", "The last batch, which has fewer blocks, was left out.")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    blocks = len(self.blocks[split][0])
    with no_grad():
        for start in range(0, max(blocks - self.batch_size + 1, 1), self.batch_size):
            batch = self.collate(np.arange(start, min(start + self.batch_size, blocks)), split)
            total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    return both(total / count, math.exp(min(total / count, 700)))


@mutant("04.2", "recorded", "The numbers are right, but each call keeps a record for a backward pass that never comes: with "
        "no_grad().")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    for batch in batches(self, split):
        total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    return both(total / count, math.exp(min(total / count, 700)))


@mutant("04.2", "split_must_be_there", "Where self.blocks has no such split the result is {}: ask first.")
def evaluate(self, model, split):
    total = count = 0
    with no_grad():
        for batch in batches(self, split):
            total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    return both(total / count, math.exp(min(total / count, 700)))


@mutant("04.2", "overflow", "math.exp raises OverflowError for a very bad model: give it min(loss, 700).")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    with no_grad():
        for batch in batches(self, split):
            total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    return both(total / count, math.exp(total / count))


@mutant("04.2", "loss_capped", "The cap of 700 is for math.exp alone; the loss is told as it is.")
def evaluate(self, model, split):
    if split not in self.blocks:
        return {}
    total = count = 0
    with no_grad():
        for batch in batches(self, split):
            total, count = total + self.loss(model, batch).item() * self.weight(batch), count + self.weight(batch)
    loss = min(total / count, 700)
    return both(loss, math.exp(loss))


# ---- 04.3 ----


def draw(input_ids, attention_mask, rng, special_ids, probability, specials=True, padding=True):
    """(ids, chosen, lot): which tokens are chosen, and a number in [0, 1) for each."""
    ids = np.asarray(input_ids, np.int64)
    able = np.asarray(attention_mask, bool) if padding else np.ones(ids.shape, bool)
    if specials:
        able = able & ~np.isin(ids, list(special_ids))
    return ids, able & (rng.random(ids.shape) < probability), rng.random(ids.shape)


def replaced(ids, chosen, lot, rng, mask_id, vocab_size, below=0.8, above=0.9):
    """The corrupted ids."""
    out = np.where(chosen & (lot < below), mask_id, ids)
    return np.where(chosen & (lot >= above), rng.integers(vocab_size, size=ids.shape), out)


@mutant("04.3", "specials_too", "Special tokens are chosen as well: leave out the ids in special_ids, with np.isin.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability, specials=False)
    return replaced(ids, chosen, lot, rng, mask_id, vocab_size), np.where(chosen, ids, IGNORE)


@mutant("04.3", "padding_too", "Padding is chosen as well: only places where attention_mask is true hold a token.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability, padding=False)
    return replaced(ids, chosen, lot, rng, mask_id, vocab_size), np.where(chosen, ids, IGNORE)


@mutant("04.3", "always_mask", "Every chosen token becomes [MASK]; of ten, one must become a random token and one stay.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, _ = draw(input_ids, attention_mask, rng, special_ids, probability)
    return np.where(chosen, mask_id, ids), np.where(chosen, ids, IGNORE)


@mutant("04.3", "none_stays", "A fifth of the chosen become random tokens and none stays: draw the lot once for each token, and "
        "split it at 0.8 and at 0.9.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    return replaced(ids, chosen, lot, rng, mask_id, vocab_size, above=0.8), np.where(chosen, ids, IGNORE)


@mutant("04.3", "none_random", "A fifth of the chosen stay and none becomes a random token.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    return np.where(chosen & (lot < 0.8), mask_id, ids), np.where(chosen, ids, IGNORE)


@mutant("04.3", "kept_are_not_asked_for", "A chosen token that stays must be restored too; you gave a label only where the token "
        "was changed.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    corrupted = replaced(ids, chosen, lot, rng, mask_id, vocab_size)
    return corrupted, np.where(corrupted != ids, ids, IGNORE)


@mutant("04.3", "all_are_asked_for", "You gave every place a label; only chosen tokens are to be restored, the others have "
        "IGNORE.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    return replaced(ids, chosen, lot, rng, mask_id, vocab_size), ids.copy()


@mutant("04.3", "labels_of_the_corrupted", "The labels were taken from the corrupted ids: the model would be asked for [MASK]. "
        "They are the tokens as they were.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    corrupted = replaced(ids, chosen, lot, rng, mask_id, vocab_size)
    return corrupted, np.where(chosen, corrupted, IGNORE)


@mutant("04.3", "random_everywhere", "Random tokens were put in the place of tokens that were not chosen as well: every "
        "condition needs the chosen ones.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    out = np.where(chosen & (lot < 0.8), mask_id, ids)
    return np.where(lot >= 0.9, rng.integers(vocab_size, size=ids.shape), out), np.where(chosen, ids, IGNORE)


@mutant("04.3", "one_random_token", "All random tokens are the same one: draw one for each place, with size=.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    out = np.where(chosen & (lot < 0.8), mask_id, ids)
    return np.where(chosen & (lot >= 0.9), rng.integers(5, vocab_size), out), np.where(chosen, ids, IGNORE)


@mutant("04.3", "in_place", "The result is right, but you wrote into the ids that were given; write into a copy.")
def mask_tokens(input_ids, attention_mask, rng, mask_id, vocab_size, special_ids, probability=0.15):
    ids, chosen, lot = draw(input_ids, attention_mask, rng, special_ids, probability)
    labels, corrupted = np.where(chosen, ids, IGNORE), replaced(ids, chosen, lot, rng, mask_id, vocab_size)
    ids[...] = corrupted
    return corrupted, labels


# ---- 04.4 ----


@mutant("04.4", "all_projected", "The loss is right, but every state went through the map to the vocabulary; take the states of "
        "the chosen places first.")
def loss(self, states, logits, labels, virtual):
    return F.cross_entropy(self.project(states[:, virtual:]), labels)


@mutant("04.4", "virtual_forgotten", "The virtual tokens were forgotten: label t belongs to the state at place virtual + t.")
def loss(self, states, logits, labels, virtual):
    rows, columns = np.nonzero(labels != IGNORE)
    return F.cross_entropy(self.project(states[rows, columns]), labels[rows, columns])


@mutant("04.4", "summed", "That is the sum over the chosen places; the loss is their mean, which F.cross_entropy gives already.")
def loss(self, states, logits, labels, virtual):
    rows, columns = np.nonzero(labels != IGNORE)
    return F.cross_entropy(self.project(states[rows, columns + virtual]), labels[rows, columns]) * float(len(rows))


@mutant("04.4", "over_all_places", "You divided by all places; those without a label do not count.")
def loss(self, states, logits, labels, virtual):
    rows, columns = np.nonzero(labels != IGNORE)
    return F.cross_entropy(self.project(states[rows, columns + virtual]), labels[rows, columns]) * (len(rows) / labels.size)


@mutant("04.4", "shifted", "The labels of a masked model stand at their own places: the shift by one is for causal models.")
def loss(self, states, logits, labels, virtual):
    rows, columns = np.nonzero(labels != IGNORE)
    return F.cross_entropy(self.project(states[rows, np.maximum(columns + virtual - 1, 0)]), labels[rows, columns])


@mutant("04.4", "detached", "The number is right, but no gradient can go back: index the Tensor states itself, not its array.")
def loss(self, states, logits, labels, virtual):
    rows, columns = np.nonzero(labels != IGNORE)
    return F.cross_entropy(self.project(F.Tensor(states.data[rows, columns + virtual])), labels[rows, columns])


# ---- 04.5 ----


def cut(ids, rng, sentinels, density, mean_length, ends=True, touch=False, one=False, last=True, left_in=False, bare=False,
        tail=True, most=True, each_alone=False):
    """Spans taken out, with one thing wrong."""
    taken = int(np.clip(round(len(ids) * density), 1, len(ids) - 1))
    room = min(taken, len(ids) - taken + 1, len(sentinels) - 1) if most else taken
    count = int(np.clip(round(taken / mean_length), 1, room))
    if each_alone:
        count = min(taken, room)
    spans = parts(rng, taken, count)
    if touch:
        kept = parts(rng, len(ids) - taken + count + 1, count + 1) - 1
    elif ends or len(ids) - taken < count + 1:
        kept = parts(rng, len(ids) - taken + 2, count + 1)
        kept[[0, -1]] -= 1
    else:
        kept = parts(rng, len(ids) - taken, count + 1)
    source, target, at = [], [], 0
    for number, (keep, span) in enumerate(zip(kept, spans)):
        sentinel, end = sentinels[0 if one else number], at + keep + span
        source += [*ids[at:at + keep], sentinel, *(ids[at + keep:end] if left_in else [])]
        target += [*([] if bare else [sentinel]), *ids[at + keep:end]]
        at = end
    return source + list(ids[at:] if tail else []), target + ([sentinels[count]] if last else [])


@mutant("04.5", "no_end", "The last sentinel is missing, with which the target ends.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, last=False)


@mutant("04.5", "one_sentinel", "Every span has the same sentinel, so that nobody can tell which belongs where: sentinel number "
        "i for span i.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, one=True)


@mutant("04.5", "left_in", "The spans still stand in the input, behind their sentinels: there is nothing left to tell.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, left_in=True)


@mutant("04.5", "bare_target", "The target has the spans without their sentinels: each span comes behind its own.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, bare=True)


@mutant("04.5", "swapped", "The two lists are the wrong way round: (input, target), and the input is the text with sentinels.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length)[::-1]


@mutant("04.5", "never_at_the_ends", "No span can be at the beginning or at the end of the text: the first and the last of the "
        "parts that stay may be 0. Draw them with one more each, and take it off.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, ends=False)


@mutant("04.5", "touching", "Two spans may stand side by side in your answer; between two spans at least one token stays.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, touch=True)


@mutant("04.5", "rest_lost", "What stands behind the last span is missing in the input.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, tail=False)


@mutant("04.5", "mean_length_ignored", "Every token that is taken out makes a span of its own; there are round(n / mean_length) "
        "spans.")
def corrupt_spans(ids, rng, sentinels, density=0.15, mean_length=3.0):
    return cut(ids, rng, sentinels, density, mean_length, each_alone=True)
