"""Demonstrations: solved examples stand before a question, and the model goes on in their manner without learning anything.

    prompt = T(x_1) with y_1's word | ... | T(x_K) with y_K's word | T(x) with the gap
    q(y | x) = mean over M such sets of q(y | prompt)

Either all examples stand before every question, in an order of each set's own (in-context learning), or each set has a few of
every class, drawn from those that are most similar to the question; fine-tuned so, a model learns to use what stands before it.

Sources: Brown et al., NeurIPS 2020, arXiv:2005.14165, section 2 (in context); Gao, Fisch, Chen, ACL 2021, arXiv:2012.15723,
section 6 (drawn from the more similar half, averaged over sets).
"""

import numpy as np

from ..autograd import no_grad
from ..data import collate, make_batches


class Demonstrations:
    """What stands before each question.

    Args:
        examples: solved `Example`s to draw from. per_class: how many of each class in a set; None for all there are.
        sets: M, how many sets are averaged in a prediction.
        vectors: a function from a list of texts to unit vectors (N, D), such as `text_vectors` makes; with it only the half of
            each class that is most similar to the question is drawn from.
        separator: what parts a demonstration from what follows.
        seed: of all draws; those for training are made anew in each epoch.

    A question that is an example itself, as in training, never stands before itself, so that one fewer of its class may.

    Raises ValueError for no examples, or fewer than ``per_class`` of a class to draw from.
    """

    def __init__(self, examples, per_class=None, sets=1, vectors=None, separator=" ", seed=0):
        self.examples, self.per_class, self.sets, self.separator, self.seed = list(examples), per_class, sets, separator, seed
        if not self.examples or sets < 1:
            raise ValueError(f"demonstrations: expected at least 1 example and 1 set, got {len(self.examples)} and {sets}")
        self.of_class = {}  # {class: [numbers of its examples]}
        for number, example in enumerate(self.examples):
            self.of_class.setdefault(example.label, []).append(number)
        self.vectors, self.known = vectors, {}  # {text of a question: its vector}
        pools = self._pools()
        fewest = min(pools, key=pools.get)
        if per_class is not None and not 1 <= per_class <= pools[fewest]:
            which = "there are of" if vectors is None else "the more similar half has of"
            raise ValueError(f"demonstrations: expected 1 to {pools[fewest]} of each class, as many as {which} class {fewest}, "
                             f"got {per_class}")
        self.own_vectors = None if vectors is None else vectors([_joined(e) for e in self.examples])  # (N, D)

    def _pools(self):
        """{class: how many examples are drawn from}."""
        return {label: len(numbers) if self.vectors is None else half(len(numbers)) for label, numbers in self.of_class.items()}

    def asked(self):
        """How many examples are to stand before a question."""
        return sum(pool if self.per_class is None else self.per_class for pool in self._pools().values())

    def draw(self, questions, template, verbalizer, number):
        """[texts to stand before each question], those of the set with this number."""
        words = {label: listed[0] for label, listed in enumerate(verbalizer.words.values())}
        shown = [template.fill(e.text, e.text2, words[e.label]) + self.separator for e in self.examples]
        closeness = None if self.vectors is None else self._closeness([_joined(q) for q in questions])  # (Q, N)
        alike = self.per_class is None and self.vectors is None  # all there are, before every question in the same order
        out = []
        for place, question in enumerate(questions):
            rng = np.random.default_rng([self.seed, number] if alike else [self.seed, number, place])
            chosen = self._chosen(rng, question, None if closeness is None else closeness[place])
            out.append([shown[i] for i in rng.permutation(chosen)])
        return out

    def _closeness(self, texts):
        """How close Q questions are to the examples (Q, N); each question is read once."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.vectors(new)))
        return np.array([self.known[text] for text in texts]) @ self.own_vectors.T

    def _chosen(self, rng, question, closeness):
        """Numbers of the examples for one question, which is never among them itself."""
        out = []
        for numbers in self.of_class.values():
            others = [i for i in numbers if self.examples[i] is not question]
            if closeness is not None:
                others = sorted(others, key=lambda i: -closeness[i])[:half(len(others))]
            count = len(others) if self.per_class is None else min(self.per_class, len(others))
            out += list(rng.choice(others, count, replace=False)) if count else []
        return np.array(out, np.int64)


def half(count):
    """Half of so many, rounded up."""
    return -(-count // 2)


def separator_of(tokenizer, kind):
    """What parts demonstrations from each other: for a causal model the end token that parts its texts in training,
    else a space."""
    return tokenizer.piece_of(tokenizer.eos_id) if kind == "causal" and tokenizer.eos_id is not None else " "


def _joined(example):
    """The texts of an example as one."""
    return " ".join(filter(None, (example.text, example.text2)))


def text_vectors(model, tokenizer, max_length, batch_size=32):
    """A function from texts to unit vectors (N, D): the mean of a model's last states over a text's tokens, of length 1."""
    def vectors(texts):
        """Unit vectors (N, D) of N texts."""
        encodings = tokenizer.encode_pairs(texts, max_length=max_length)
        out = np.zeros((len(texts), model.config.hidden_size))
        with no_grad():
            for indices in make_batches(encodings, batch_size):
                batch = collate(encodings, None, indices, tokenizer.pad_id)
                if model.config.encoder_decoder:
                    states = model.encode(batch.input_ids, batch.attention_mask)[0].data  # (B, T, D)
                else:
                    states = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).last_hidden_state.data
                states = states[:, states.shape[1] - batch.input_ids.shape[1]:]  # without virtual tokens
                out[indices] = (states * batch.attention_mask[..., None]).sum(axis=1)  # (B, D)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return vectors
