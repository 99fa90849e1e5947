"""What an answer to lesson 15 must do: the exits' logits and losses, the rules and the walk, beside slow ones, text by text."""

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.methods import RULES, EarlyExit, Joint, SelfDistilled, TwoStage
from minipeft.models import Decoder, Encoder, TransformerConfig
from minipeft.models.heads import ClassificationHead

LAYERS = 4
BOTH = pytest.mark.parametrize("kind", ["bert", "gpt2"])


def classifier(kind, rng, layers):
    """A model with a head, in float64, its width and number of classes drawn;
    a decoder has a final norm with numbers of its own."""
    quarter, classes = sizes(rng, 2, high=5)
    more = {"type_vocab_size": 2} if kind == "bert" else {}
    config = TransformerConfig(model_type=kind, vocab_size=13, hidden_size=4 * quarter, num_hidden_layers=layers,
                               num_attention_heads=2, intermediate_size=10, max_position_embeddings=24,
                               initializer_range=0.6, **more)
    model = (Encoder if kind == "bert" else Decoder)(config, rng)
    model.head = ClassificationHead(4 * quarter, classes, "mean", rng=rng, std=1.0)
    model.astype(np.float64)
    if kind != "bert":
        model.final_norm.weight.data = rng.uniform(0.5, 2, 4 * quarter)
    if kind == "gpt2":
        model.final_norm.bias.data = rng.standard_normal(4 * quarter)
    return model.eval()


def with_exits(kind, rng, make=EarlyExit, objective=None, layers=LAYERS):
    """A model with exits whose numbers are all drawn."""
    exits = make(classifier(kind, rng, layers), objective, rng)
    for head in exits.exits:
        for p in head.parameters():
            p.data = rng.standard_normal(p.shape)
    return exits


def classes_of(exits):
    """How many classes there are."""
    return exits.model.head.classifier.bias.size


def texts(rng, rows=None, left=False):
    """(ids, mask) of texts of two tokens and more, how many where it is not given; ``left``: with the padding on the left."""
    drawn, length = sizes(rng, 2, low=4, high=7)
    rows = rows or drawn
    mask = np.arange(length) < rng.integers(2, length + 1, (rows, 1))
    mask = mask[:, ::-1] if left else mask
    return rng.integers(1, 13, (rows, length)) * mask, mask


def softmax(z):
    """Row by row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def exits_by_hand(exits, ids, mask):
    """[logits (B, C) of each exit], from the states behind the blocks, text by text."""
    model, out = exits.model, []
    x, spread, position_ids, _ = model.enter(ids, mask)
    norm_bias = getattr(model.final_norm, "bias", None)
    for block, head in zip(model.blocks, [*exits.exits, model.head]):
        x = block(x, spread, position_ids)
        states, rows = x.data, []
        if model.final_norm is not None:
            centred = states - (states.mean(axis=-1, keepdims=True) if norm_bias is not None else 0)  # a LLaMA does not centre
            states = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + model.config.norm_eps)
            states = states * model.final_norm.weight.data + (0 if norm_bias is None else norm_bias.data)
        for state, real in zip(states, mask):
            mean = sum(s for s, there in zip(state, real) if there) / real.sum()
            rows.append(mean @ head.classifier.weight.data + head.classifier.bias.data)
        out.append(np.array(rows))
    return out


# ---- 15.1: a head behind every block ---------------------------------------------------------------------------


@exercise("15.1")
@BOTH
def test_what_each_exit_says(impl, rng, kind):
    """z_i is what head i makes of the states behind block i, through the final norm where the model has one."""
    layers = int(rng.integers(3, 6))
    exits = with_exits(kind, rng, impl, layers=layers)
    ids, mask = texts(rng)
    out = exits(ids, mask)
    holds(len(out.exit_logits) == layers, f"there are {len(out.exit_logits)} logits; expected {layers}, one for each block")
    for i, (yours, expected) in enumerate(zip(out.exit_logits, exits_by_hand(exits, ids, mask)), 1):
        same(yours, Tensor(expected), f"z_{i}", 1e-8)


@exercise("15.1")
@BOTH
def test_the_last_is_the_models_own(impl, rng, kind):
    """The last logits are those of the model without exits, bit for bit."""
    exits = with_exits(kind, rng, impl)
    ids, mask = texts(rng)
    same(exits(ids, mask).logits, exits.model(ids, attention_mask=mask).logits, "z_L", 0)


@exercise("15.1")
def test_the_loss(impl, rng):
    """The loss is the objective's, and None where the objective needs labels and there are none."""
    exits = with_exits("bert", rng, impl, Joint("depth"))
    ids, mask = texts(rng)
    labels = rng.integers(0, classes_of(exits), len(ids))
    each = [-np.mean([math.log(p[label]) for p, label in zip(softmax(z), labels)]) for z in exits_by_hand(exits, ids, mask)]
    holds(exits(ids, mask).loss is None, "without labels the loss is to be None")
    by_depth = sum(i / 10 * loss for i, loss in enumerate(each, 1))
    same(exits(ids, mask, labels=labels).loss, Tensor(np.asarray(by_depth)), "the loss by depth", 1e-8)
    exits.objective = TwoStage()
    same(exits(ids, mask, labels=labels).loss, Tensor(np.asarray(sum(each[:-1]))), "the loss of the second stage", 1e-8)
    exits.objective = SelfDistilled()
    holds(exits(ids, mask).loss is not None, "a self-distilled loss needs no labels")


@exercise("15.1")
def test_joint_training_reaches_the_model(impl, rng):
    """With a joint objective every parameter of the model and of the exits has a gradient."""
    exits = with_exits("bert", rng, impl, Joint())
    ids, mask = texts(rng)
    exits(ids, mask, np.zeros_like(ids), rng.integers(0, classes_of(exits), len(ids))).loss.backward()
    missing = [path for path, p in exits.named_parameters() if p.grad is None]
    holds(not missing, f"without a gradient: {', '.join(missing[:3])}")


@exercise("15.1")
@pytest.mark.parametrize("objective", [TwoStage(), SelfDistilled()], ids=["two_stage", "self_distilled"])
def test_a_frozen_model_keeps_no_record(impl, rng, objective):
    """Where the objective does not train the model, gradients reach the exits, and nothing of the model is recorded."""
    exits = with_exits("bert", rng, impl, objective)
    ids, mask = texts(rng)
    out = exits(ids, mask, labels=rng.integers(0, classes_of(exits), len(ids)) if objective.needs_labels else None)
    out.loss.backward()
    holds(all(p.grad is not None for p in exits.exits.parameters()), "an exit has no gradient")
    holds(all(p.grad is None for p in exits.model.parameters()), "a parameter of the frozen model has a gradient")
    holds(not out.logits.requires_grad, "the model's own logits were recorded")


# ---- 15.2: self-distillation -----------------------------------------------------------------------------------


def drawn_logits(rng, exits=3, rows=4, classes=5):
    """[(B, C)] of each exit."""
    return [2 * rng.standard_normal((rows, classes)) for _ in range(exits)]


def divergence(p, q):
    """KL(p || q) of two distributions, class by class."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


@exercise("15.2")
@pytest.mark.parametrize("shape", [None, (2, 1, 3)])
def test_the_sum_of_divergences(impl, rng, shape):
    """The loss is the sum over all exits but the last of the mean over the batch of KL(p_i || p_L)."""
    z = drawn_logits(rng, *(shape or sizes(rng, 3, low=3)))
    last = softmax(z[-1])
    expected = sum(np.mean([divergence(p, q) for p, q in zip(softmax(each), last)]) for each in z[:-1])
    same(impl([Tensor(each) for each in z]), Tensor(np.asarray(expected)), "the loss", 1e-10)


@exercise("15.2")
def test_who_agrees_has_no_loss(impl, rng):
    """Where all exits say what the model says, the loss is zero, also where they add a number to every logit."""
    z = drawn_logits(rng)[-1]
    same(impl([Tensor(z + 3.0), Tensor(z - 1.0), Tensor(z)]), Tensor(np.asarray(0.0)), "the loss", 1e-12)


@exercise("15.2")
def test_gradients_of_the_exits(impl, rng):
    """dKL/dz is p (a - sum of p a) with a = log p - log p_L, divided by the number of texts."""
    rows, classes = sizes(rng, 2, low=3)
    z, g = drawn_logits(rng, 3, rows, classes), float(rng.uniform(0.5, 2))
    students = [Tensor(each, requires_grad=True) for each in z[:-1]]
    loss = impl([*students, Tensor(z[-1])])
    holds(loss.requires_grad, "no gradient reaches the exits")
    loss.backward(np.asarray(g))
    for i, (student, each) in enumerate(zip(students, z), 1):
        p = softmax(each)
        a = np.log(p) - np.log(softmax(z[-1]))
        same(student.grad, g * p * (a - (p * a).sum(axis=1, keepdims=True)) / rows, f"the gradient of z_{i}", 1e-9)
    gradcheck(lambda one, two: impl([one, two, Tensor(z[-1])]), z[0], z[1], rng=rng)


@exercise("15.2")
def test_the_teacher_learns_nothing(impl, rng):
    """No gradient reaches the model's own logits: the exits go to the model, not the model to them."""
    z = [Tensor(each, requires_grad=True) for each in drawn_logits(rng)]
    impl(z).backward()
    holds(z[-1].grad is None or not np.abs(z[-1].grad).any(), "the teacher's logits have a gradient")


@exercise("15.2")
def test_large_logits(impl, rng):
    """Logits of a thousand and more overflow nowhere."""
    z = np.array([[1000.0, 999.0, -500.0], [-2000.0, -2001.0, -1999.0]])
    last = z + np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    expected = np.mean([sum(p * (math.log(p) - math.log(q)) for p, q in zip(ps, qs) if p > 0)
                        for ps, qs in zip(softmax(z), softmax(last))])
    same(impl([Tensor(z), Tensor(last)]), Tensor(np.asarray(expected)), "the loss", 1e-9)


# ---- 15.3: entropy ---------------------------------------------------------------------------------------------


@exercise("15.3")
@pytest.mark.parametrize("classes", [None, 2])
def test_entropy_class_by_class(impl, rng, classes):
    """U is - sum of p log p, divided by log C, for each row."""
    rows, several = sizes(rng, 2, low=3, high=8)
    classes = classes or several
    z = 2 * rng.standard_normal((rows, classes))
    expected = [-sum(p * math.log(p) for p in row) / math.log(classes) for row in softmax(z)]
    same(impl(z), np.array(expected), "U", 1e-10)


@exercise("15.3")
def test_the_ends(impl):
    """U is 1 where all classes are alike and 0 where one has everything, and never outside."""
    z = np.array([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [90.0, 0.0, 0.0], [-900.0, 0.0, -900.0]])
    found = impl(z)
    same(found, np.array([1.0, 1.0, 0.0, 0.0]), "U", 1e-12)
    holds((found >= 0).all(), f"U is {found}, below 0 somewhere: at looseness 0 such a row would leave")


@exercise("15.3")
def test_entropy_of_large_logits(impl, rng):
    """A number added to all logits of a row changes nothing, however large it is."""
    z = rng.standard_normal((3, 4))
    expected = [-sum(p * math.log(p) for p in row) / math.log(4) for row in softmax(z)]
    same(impl(z + np.array([[1e4], [-1e4], [700.0]])), np.array(expected), "U", 1e-7)


@exercise("15.3")
def test_float32_logits(impl, rng):
    """Logits in float32, as models give them, are computed with in float64."""
    z = rng.standard_normal((3, 4)).astype(np.float32)
    expected = [-sum(p * math.log(p) for p in row) / math.log(4) for row in softmax(z.astype(np.float64))]
    same(impl(z), np.array(expected), "U", 1e-10)


# ---- 15.4: patience --------------------------------------------------------------------------------------------


def one_by_one(named, patience):
    """The exit at which each text leaves, from 1, text by text."""
    out = []
    for row in np.asarray(named).T.tolist():
        agreed, leaves = 0, len(row)
        for i in range(1, len(row)):
            agreed = agreed + 1 if row[i] == row[i - 1] else 0
            if agreed >= patience:
                leaves = i + 1
                break
        out.append(leaves)
    return np.array(out)


@exercise("15.4")
def test_by_hand(impl):
    """Who has agreed twice in a row leaves at the third exit that names the class; a change of mind starts again at 0."""
    named = np.array([[1, 1, 0, 2], [1, 0, 1, 2], [1, 1, 1, 1], [0, 1, 1, 2], [0, 1, 0, 2]])  # five exits, four texts
    same(impl(named, 2), np.array([3, 5, 4, 5]), "the exits for patience 2", 0)


@exercise("15.4")
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_text_by_text(impl, rng, patience):
    """A text leaves at the first exit where enough in a row have agreed, and at the last where none is reached."""
    named = rng.integers(0, 2, (int(rng.integers(5, 9)), int(rng.integers(30, 50))))
    same(impl(named, patience), one_by_one(named, patience), f"the exits for patience {patience}", 0)


@exercise("15.4")
def test_nobody_is_patient_enough(impl, rng):
    """With a patience of as many as there are exits nobody leaves early, even where all name one class."""
    same(impl(np.zeros((4, 3), int), 4), np.full(3, 4), "the exits", 0)
    same(impl(np.zeros((4, 3), int), 3), np.full(3, 4), "the exits for patience 3, which only the fourth can reach", 0)


@exercise("15.4")
def test_nobody_leaves_at_the_first_exit(impl, rng):
    """The first exit has nothing before it to agree with; from the second on a patience of 1 can be reached."""
    same(impl(np.array([[2], [2], [2]]), 1), np.array([2]), "the exit", 0)
    same(impl(np.array([[2], [0]]), 1), np.array([2]), "the exit of one who never agrees", 0)


# ---- 15.5: the walk --------------------------------------------------------------------------------------------


def leaving(rule, each, exits):
    """(logits, layer) of one text with logits ``each`` (C,) at every exit."""
    agreed = 0
    for i, z in enumerate(each, 1):
        p = softmax(z[None])[0]
        if rule[0] == "entropy":
            leaves = -(p * np.log(p)).sum() / math.log(len(p)) < rule[1]
        else:
            agreed = agreed + 1 if i > 1 and z.argmax() == each[i - 2].argmax() else 0
            leaves = agreed >= 1 + math.floor((1 - rule[1]) * exits)
        if leaves or i == exits:
            return z, i


def expected_of(exits, rule, ids, mask):
    """(logits (B, C), layers (B,)), each text by itself."""
    each = exits_by_hand(exits, ids, mask)  # L of (B, C)
    found = [leaving(rule, [z[row] for z in each], len(each)) for row in range(len(ids))]
    return np.array([z for z, _ in found]), np.array([layer for _, layer in found])


def watched(model):
    """A list that gets, for each call of a block, (the block's number from 1, how many rows it was given)."""
    seen = []
    for number, block in enumerate(model.blocks, 1):
        def forward(x, *others, number=number, own=block.forward):
            seen.append((number, len(x)))
            return own(x, *others)
        block.forward = forward
    return seen


RULED = pytest.mark.parametrize("rule", [("entropy", 0.6), ("entropy", 0.9), ("patience", 0.8), ("patience", 0.55)],
                                ids=["entropy 0.6", "entropy 0.9", "patience 0.8", "patience 0.55"])


@exercise("15.5")
@pytest.mark.parametrize("kind", ["bert", "llama"])
@RULED
def test_as_if_alone(impl, rng, kind, rule):
    """Each text has the logits of the exit at which it would leave alone, in the order in which the texts came."""
    exits = with_exits(kind, rng)
    ids, mask = texts(rng, 12, left=kind == "llama")
    logits, layers = expected_of(exits, rule, ids, mask)
    yours = impl(exits.model, exits.heads(), RULES[rule[0]](rule[1]), ids, mask)
    holds(isinstance(yours, tuple) and len(yours) == 2, "two things are to be returned: logits and layers")
    same(np.asarray(yours[1]), layers, "the layers", 0)
    same(yours[0], logits, "the logits", 1e-8, np.ndarray)


@exercise("15.5")
@RULED
def test_who_has_left_costs_nothing(impl, rng, rule):
    """A block is given only the rows that have not left before it."""
    exits = with_exits("bert", rng)
    ids, mask = texts(rng, 12)
    _, layers = expected_of(exits, rule, ids, mask)
    seen = watched(exits.model)
    impl(exits.model, exits.heads(), RULES[rule[0]](rule[1]), ids, mask)
    rows = [sum(count for number, count in seen if number == block) for block in range(1, LAYERS + 1)]
    expected = [(layers >= block).sum() for block in range(1, LAYERS + 1)]
    same(np.array(rows), np.array(expected), "the rows that each block was given", 0)


@exercise("15.5")
@pytest.mark.parametrize("rule", list(RULES))
def test_at_looseness_0_it_is_the_model(impl, rng, rule):
    """At looseness 0 nobody leaves before the last exit, and the logits are the model's, bit for bit."""
    exits = with_exits("bert", rng)
    ids, mask = texts(rng)
    logits, layers = impl(exits.model, exits.heads(), RULES[rule](0.0), ids, mask)
    same(logits, exits.model(ids, attention_mask=mask).logits.data, "the logits", 0)
    same(np.asarray(layers), np.full(len(ids), LAYERS), "the layers", 0)


@exercise("15.5")
def test_one_text_and_everybody_at_once(impl, rng):
    """A single text is walked like others, and where all leave at one exit the walk ends there."""
    exits = with_exits("bert", rng)
    ids, mask = texts(rng, 1)
    logits, layers = expected_of(exits, ("entropy", 0.7), ids, mask)
    yours = impl(exits.model, exits.heads(), RULES["entropy"](0.7), ids, mask)
    same(np.asarray(yours[1]), layers, "the layer of one text", 0)
    same(yours[0], logits, "its logits", 1e-8)
    for p in exits.exits[0].parameters():
        p.data = p.data * 0 + 100.0 * (p.ndim == 1) * np.arange(p.shape[-1])  # the first exit is sure of the last class
    ids, mask = texts(rng, 3)
    logits, layers = impl(exits.model, exits.heads(), RULES["entropy"](0.5), ids, mask)
    same(np.asarray(layers), np.ones(3, int), "the layers where the first exit is sure of everything", 0)
    same(logits, np.tile(100.0 * np.arange(classes_of(exits)), (3, 1)), "the logits there", 1e-10)
