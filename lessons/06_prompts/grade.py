"""What an answer to lesson 6 must do: the two sides of a gap, scores of label words, calibration, likelihoods, labels saved."""

import functools

import numpy as np
import pytest

from minipeft import load_pretrained
from minipeft.autograd import Tensor, no_grad
from minipeft.data import Dataset, Example, Tokenizer
from minipeft.learn.claims import SEEN, Broken, exercise, holds, same, sizes
from minipeft.prompting import Template, Verbalizer


def reads(yours, expected, what):
    """Claim that a text is the expected one, to the letter."""
    SEEN.append(repr(yours))
    if yours != expected:
        raise Broken(f"{what} is {yours!r}; expected {expected!r}", what, repr(yours), repr(expected))


def drawn(rng, *shape):
    """Distributions over the last axis, none of whose entries is near 0."""
    p = rng.uniform(0.2, 1, shape)
    return p / p.sum(axis=-1, keepdims=True)


# ---- 06.1: the two sides of the gap ----------------------------------------------------------------------------


WORDS = ("the", "cake", "was", "very", "dull", "anna", "liked", "a", "long", "film", ".")


def said(rng):
    """A text of three to six words."""
    return " ".join(rng.choice(WORDS, int(rng.integers(3, 7))))


def sides(impl, pattern, *given, **more):
    """What stands before the mask and what behind it, as (str, str)."""
    out = impl(pattern).halves(*given, **more)
    holds(isinstance(out, (list, tuple)) and len(out) == 2, f"expected two texts, before the mask and behind it; got {out!r}")
    return out


@exercise("06.1")
@pytest.mark.parametrize("pattern, before, behind", [
    ("{text} it was {mask} .", "{} it was ", " ."), ("is it {mask} ? {text}", "is it ", " ? {}"), ("{text} {mask}", "{} ", ""),
    ("{mask} : {text} !", "", " : {} !")])
def test_one_text(impl, rng, pattern, before, behind):
    """Words and text before the mask come first, words and text behind it second, all in the order of the pattern."""
    text = said(rng)
    first, second = sides(impl, pattern, text, None)
    reads(first, before.format(text), f"what stands before the mask of {pattern!r}")
    reads(second, behind.format(text), f"what stands behind the mask of {pattern!r}")


@exercise("06.1")
def test_two_texts(impl, rng):
    """A pair has its second text where the pattern says {text2}; without a second text nothing stands there."""
    pattern, text, other = "{text2} ? {mask} , {text} .", said(rng), said(rng)
    for second, before in ((other, f"{other} ? "), (None, " ? "), ("", " ? ")):
        first, behind = sides(impl, pattern, text, second)
        reads(first, before, f"what stands before the mask where the second text is {second!r}")
        reads(behind, f" , {text} .", "what stands behind the mask")


@exercise("06.1")
def test_context(impl):
    """What is given as context stands before everything else, also where the pattern begins with its mask."""
    shown = "the film was good . it was great . "
    for pattern, before in (("{text} it was {mask} .", shown + "dull . it was "), ("{mask} : {text}", shown)):
        first, _ = sides(impl, pattern, "dull .", None, context=shown)
        reads(first, before, f"what stands before the mask of {pattern!r}")


@exercise("06.1")
def test_texts_are_taken_as_they_are(impl):
    """A text may hold braces, or the very word {mask}: the gap is the template's own. Doubled braces become single ones."""
    first, behind = sides(impl, "{{a}} {text} it was {mask} .", "write {mask} or {x}", None)
    reads(first, "{a} write {mask} or {x} it was ", "what stands before the mask")
    reads(behind, " .", "what stands behind the mask")


@exercise("06.1")
def test_the_gap_can_be_filled(impl):
    """Both sides with a word between them are the filled template, once and again."""
    template = impl("{text} all in all , it was {mask} .")
    for word in ("good", "bad"):
        expected = f"the cake was dull . all in all , it was {word} ."
        reads(template.fill("the cake was dull .", word=word), expected, "the filled template")


# ---- 06.2: scores of label words -------------------------------------------------------------------------------


def words_of(rng, vocabulary):
    """Ids for three classes, of one, two and three words in an order that is drawn; no word stands for two."""
    first, second, _ = sizes(rng, 3, low=1, high=3)
    return np.split(rng.permutation(vocabulary)[:6], [first, first + second])


def means(z, ids):
    """Mean logit of each class's words, number by number, over the last axis of z."""
    out = np.zeros((*z.shape[:-1], len(ids)))
    for place in np.ndindex(z.shape[:-1]):
        for c, words in enumerate(ids):
            out[(*place, c)] = sum(float(z[(*place, w)]) for w in words) / len(words)
    return out


@exercise("06.2")
def test_the_mean_over_a_classs_words(impl, rng):
    """s_c is the mean of the logits of the words that stand for class c, however many these are."""
    rows, vocabulary = int(rng.integers(2, 6)), int(rng.integers(8, 14))
    ids, z = words_of(rng, vocabulary), 2 * rng.standard_normal((rows, vocabulary))
    same(impl(Tensor(z), ids), Tensor(means(z, ids)), "s", 1e-12)


@exercise("06.2")
def test_one_word_a_class(impl, rng):
    """Where every class has one word, s are the logits of these words, in the order of the classes."""
    z = rng.standard_normal((3, 7))
    same(impl(Tensor(z), [np.array([5]), np.array([0])]), Tensor(z[:, [5, 0]]), "s", 1e-12)


@exercise("06.2")
@pytest.mark.parametrize("shape", [(9,), (2, 3, 9), (1, 9)])
def test_other_axes_stay(impl, rng, shape):
    """Only the last axis, the vocabulary, becomes the classes; there may be any axes before it."""
    ids, z = words_of(rng, 9), rng.standard_normal(shape)
    same(impl(Tensor(z), ids), Tensor(means(z, ids)), "s", 1e-12)


@exercise("06.2")
def test_the_gradient_reaches_label_words_alone(impl, rng):
    """dL/dz of a word is dL/ds of its class over the number of the class's words, and 0 for a word of no class."""
    rows, vocabulary = int(rng.integers(2, 6)), int(rng.integers(8, 14))
    ids, g = words_of(rng, vocabulary), rng.standard_normal((rows, 3))
    z = Tensor(rng.standard_normal((rows, vocabulary)), requires_grad=True)
    s = impl(z, ids)
    holds(isinstance(s, Tensor) and s.requires_grad, "s is no Tensor with a gradient; a prompt could not be trained")
    s.backward(g)
    expected = np.zeros((rows, vocabulary))
    for c, words in enumerate(ids):
        for w in words:
            expected[:, w] = g[:, c] / len(words)
    same(z.grad, expected, "dL/dz", 1e-12)


# ---- 06.3: calibration -----------------------------------------------------------------------------------------


def divided(q, shares):
    """q over the shares, each row divided by its sum, number by number."""
    out = np.zeros(q.shape)
    for i, row in enumerate(q):
        ratio = [float(a) / float(b) for a, b in zip(row, shares)]
        out[i] = [r / sum(ratio) for r in ratio]
    return out


@exercise("06.3")
def test_the_formula(impl, rng):
    """q' is q / q_cf, each row divided by its sum."""
    rows, classes = sizes(rng, 2)
    q, q_cf = drawn(rng, rows, classes), drawn(rng, classes)
    same(impl(q, q_cf), divided(q, q_cf), "q'", 1e-10)


@exercise("06.3")
def test_several_inputs_without_content(impl, rng):
    """Of several inputs without content (M, C), the mean over them is divided out."""
    rows, classes, inputs = sizes(rng, 3)
    q, q_cf = drawn(rng, rows, classes), drawn(rng, inputs, classes)
    q_cf[0] = np.where(np.arange(classes) == 0, 0.9, 0.1 / (classes - 1))
    mean = [sum(q_cf[m, c] for m in range(inputs)) / inputs for c in range(classes)]
    same(impl(q, q_cf), divided(q, mean), "q'", 1e-10)
    same(impl(q, q_cf[:1]), divided(q, q_cf[0]), "q' where there is one such input, (1, C)", 1e-10)


@exercise("06.3")
def test_without_content_no_class_is_preferred(impl, rng):
    """The input without content itself becomes 1 / C for every class."""
    q_cf = drawn(rng, 4)
    same(impl(q_cf[None], q_cf), np.full((1, 4), 0.25), "q' of the input without content", 1e-10)


@exercise("06.3")
def test_where_there_is_nothing_to_correct(impl, rng):
    """Where the input without content prefers no class, q' is q."""
    q = drawn(rng, 6, 3)
    same(impl(q, np.ones(3) / 3), q, "q'", 1e-10)


@exercise("06.3")
def test_it_is_a_bias(impl, rng):
    """In the scores it is a bias: q' is the softmax of s - log q_cf, in float64 even where q is float32."""
    s, q_cf = rng.standard_normal((4, 3)), drawn(rng, 3)
    q = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    moved = np.exp(s - np.log(q_cf))
    same(impl(q.astype(np.float32), q_cf), moved / moved.sum(axis=1, keepdims=True), "q'", 1e-5)


@exercise("06.3")
def test_nothing_to_divide_by(impl):
    """A class that has no probability without content is a ValueError."""
    try:
        impl(np.array([[0.3, 0.7]]), np.array([1.0, 0.0]))
    except ValueError:
        holds(True, "")
    except ZeroDivisionError:
        holds(False, "a class with probability 0 without content raised ZeroDivisionError; expected ValueError")
    else:
        holds(False, "a class with probability 0 without content raised nothing; expected ValueError")


# ---- 06.4: likelihoods of answers ------------------------------------------------------------------------------

class Prompts:
    """A batch that has a size and nothing else."""

    def __init__(self, size):
        self.size = size


def ranking(impl, rng, normalised, scale=1.0):
    """(a `RankClassification` whose answers have logits drawn by lot,
    {class: (logits (B, T, V), tokens)}, a batch of prompts)."""
    work, told, (size, vocabulary) = impl.__new__(impl), {}, sizes(rng, 2, high=7)
    lengths = sizes(rng, 3, low=1, high=3)  # of each class's answer, in tokens
    work.words = [[int(i) for i in rng.integers(vocabulary, size=length)] for length in lengths]
    work.normalised, work.start, work.labels, work.kind = normalised, None, ("a", "b", "c"), "causal"
    for c, words in enumerate(work.words):
        told[c] = (scale * rng.standard_normal((size, len(words), vocabulary)), words)

    def answers(model, batch, choices):
        rows = [row for row, c in enumerate(choices) for _ in work.words[c]]
        steps = [step for c in choices for step in range(len(work.words[c]))]
        logits = np.array([told[int(choices[row])][0][row, step] for row, step in zip(rows, steps)])
        return Tensor(logits), np.array([work.words[choices[row]][step] for row, step in zip(rows, steps)]), np.array(rows)

    work.answers = answers
    return work, told, Prompts(size)


def likelihoods(told, normalised):
    """l (B, C), token by token: log p = z_t - log of the sum of exp z."""
    out = np.zeros((len(told[0][0]), len(told)))
    for c, (z, words) in told.items():
        for row in range(len(z)):
            for step, token in enumerate(words):
                top = z[row, step].max()
                out[row, c] += z[row, step, token] - top - np.log(sum(np.exp(v - top) for v in z[row, step]))
            out[row, c] /= len(words) if normalised else 1
    return out


@exercise("06.4")
def test_sums(impl, rng):
    """Where self.normalised is false, l is the sum of log p over the answer's tokens."""
    work, told, prompts = ranking(impl, rng, normalised=False)
    same(work.log_likelihoods(None, prompts), likelihoods(told, False), "l", 1e-10)


@exercise("06.4")
def test_means(impl, rng):
    """Where self.normalised is true, l is divided by the number of the answer's tokens, so that long answers can win."""
    work, told, prompts = ranking(impl, rng, normalised=True)
    same(work.log_likelihoods(None, prompts), likelihoods(told, True), "l", 1e-10)


@exercise("06.4")
def test_large_logits(impl, rng):
    """Logits in the thousands give no infinity: the largest is taken away before exp."""
    work, told, prompts = ranking(impl, rng, normalised=True, scale=1000.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        same(work.log_likelihoods(None, prompts), likelihoods(told, True), "l", 1e-9)


@functools.lru_cache
def toy():
    """The toy decoder and its tokenizer."""
    return load_pretrained("toy:decoder"), Tokenizer.from_folder("toy:decoder")


@exercise("06.4")
def test_on_a_model(impl):
    """On toy:decoder l is what a plain loop gives, one pass for each token of each answer, without padding."""
    model, tokenizer = toy()
    answers = {"negative": "not good .", "positive": "great"}
    examples = [Example("the cake was dull .", None, 0), Example("anna found the very long and good film really nice .", None, 1)]
    data = Dataset({"dev": examples}, tuple(answers))
    work = impl(tokenizer, data, model.config, Template("{text} it was {mask}"), Verbalizer(answers), 40, 2)
    expected = np.zeros((2, 2))
    with no_grad():
        for row, example in enumerate(examples):
            for c, answer in enumerate(answers.values()):
                written = tokenizer.encode(f"{example.text} it was")
                tokens = tokenizer.encode(f" {answer}", add_special_tokens=False)
                for token in tokens:
                    z = model(np.array([written])).logits.data[0, -1].astype(np.float64)
                    expected[row, c] += (z[token] - z.max() - np.log(np.exp(z - z.max()).sum())) / len(tokens)
                    written = [*written, token]
        found = work.log_likelihoods(model, work.collate(np.arange(2), "dev"))
    same(found, expected, "l", 1e-4)


# ---- 06.5: how many labels a prompt is worth -------------------------------------------------------------------


def best_so_far(curve):
    """Each value, or the largest before it."""
    return [max(curve[:i + 1]) for i in range(len(curve))]


def needed(sizes, curve, accuracy):
    """How many examples a curve, which does not fall, needs to reach an accuracy."""
    i = next(i for i, a in enumerate(curve) if a >= accuracy)
    if i == 0:
        return sizes[0]
    return sizes[i - 1] + (sizes[i] - sizes[i - 1]) * (accuracy - curve[i - 1]) / (curve[i] - curve[i - 1])


def saved(sizes, head, prompt, count=1500):
    """The mean, over many accuracies that both reach, of what the head needs more."""
    head, prompt = best_so_far(head), best_so_far(prompt)
    low, high = max(head[0], prompt[0]), min(head[-1], prompt[-1])
    between = [low + (high - low) * (i + 0.5) / count for i in range(count)]
    return sum(needed(sizes, head, a) - needed(sizes, prompt, a) for a in between) / count


@exercise("06.5")
def test_two_straight_lines(impl):
    """Where the head needs ten examples more for every accuracy, the prompt is worth ten."""
    same(float(impl([0, 10, 20, 30], [0.5, 0.6, 0.7, 0.8], [0.6, 0.7, 0.8, 0.9])), 10.0, "what the prompt is worth", 1e-2)


@exercise("06.5")
def test_rising_curves(impl, rng):
    """It is the area between the curves, counted in examples, over the range of accuracies that both reach."""
    sizes = np.cumsum(rng.integers(1, 30, 7))
    head, prompt = np.cumsum(rng.uniform(0.05, 0.1, 7)), 0.15 + np.cumsum(rng.uniform(0.03, 0.12, 7))
    same(float(impl(sizes, head, prompt)), saved(sizes, head, prompt), "what the prompt is worth", 1e-2)


@exercise("06.5")
def test_curves_that_fall(impl):
    """A curve counts as the best that was reached so far: one that falls and rises again has not forgotten."""
    sizes, head, prompt = [0, 4, 8, 16, 40], [0.50, 0.56, 0.53, 0.70, 0.80], [0.55, 0.70, 0.66, 0.78, 0.75]
    same(float(impl(sizes, head, prompt)), saved(sizes, head, prompt), "what the prompt is worth", 1e-2)


@exercise("06.5")
def test_a_prompt_that_harms(impl):
    """A prompt that needs more examples than the head is worth less than nothing."""
    same(float(impl([0, 10, 20], [0.6, 0.7, 0.8], [0.5, 0.6, 0.7])), -10.0, "what the prompt is worth", 1e-2)


@exercise("06.5")
def test_nothing_in_common(impl):
    """Where there is no accuracy that both reach, the answer is None."""
    for head, prompt in (([0.2, 0.3], [0.9, 0.95]), ([0.9, 0.95], [0.2, 0.3])):
        out = impl([0, 100], head, prompt)
        holds(out is None, f"the curves {head} and {prompt} share no accuracy; expected None, got {out!r}")
