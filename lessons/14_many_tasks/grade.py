"""What an answer to lesson 14 must do: shares, task embeddings, inner steps, the rules and class means, by slow formulas."""

import numpy as np
import pytest

from minipeft.autograd import Tensor, gradcheck
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.models import Encoder, TransformerConfig
from minipeft.nn import Module, Parameter
from minipeft.prompting.meta import Episode, MetaSettings, places_of

# ---- 14.1: how often each task is drawn ------------------------------------------------------------------------


def by_formula(sizes, temperature, limit):
    """p, task by task."""
    powers = [(size if limit is None else min(size, limit)) ** (1 / temperature) for size in sizes]
    return np.array([power / sum(powers) for power in powers])


@exercise("14.1")
def test_by_size(impl):
    """With temperature 1 and no limit a task is drawn as often as its share of all examples."""
    same(impl([100, 300, 600]), np.array([0.1, 0.3, 0.6]), "p", 1e-12)


@exercise("14.1")
@pytest.mark.parametrize("temperature", [2.0, 5.0, 0.5])
def test_temperature(impl, rng, temperature):
    """p is in proportion to size to the power 1 / temperature."""
    tasks = [int(n) for n in rng.integers(2, 2000, int(rng.integers(3, 7)))]
    same(impl(tasks, temperature), by_formula(tasks, temperature, None), f"p for sizes {tasks}, temperature {temperature}", 1e-10)


@exercise("14.1")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_limit(impl, rng, temperature):
    """A task of more than K examples counts as one of K, and only then is the root taken."""
    tasks, limit = [4, *(int(n) for n in rng.integers(400, 90_000, 2))], int(rng.integers(40, 70))
    expected = by_formula(tasks, temperature, limit)
    same(impl(tasks, temperature, limit), expected, f"p for sizes {tasks}, K {limit}, temperature {temperature}", 1e-10)


@exercise("14.1")
def test_a_high_temperature(impl):
    """At a very high temperature all tasks are drawn alike, and the shares sum to 1."""
    p = impl([3, 50, 70_000], 1e9)
    same(p, np.full(3, 1 / 3), "p", 1e-6)
    holds(abs(float(np.sum(p)) - 1) < 1e-12, f"the shares sum to {float(np.sum(p))}; expected 1")


@exercise("14.1")
def test_one_task(impl):
    """A task that is alone is always drawn."""
    same(impl([7], 3.0, 5), np.array([1.0]), "p", 1e-12)


# ---- 14.2: the task's vector -----------------------------------------------------------------------------------


def tokens_of(rng):
    """(the word vectors of a small encoder, frozen, in float64; ids of texts (B, T)); all sizes are drawn."""
    half, rows, length = sizes(rng, 3)
    config = TransformerConfig(model_type="bert", vocab_size=int(rng.integers(9, 14)), hidden_size=2 * half, num_hidden_layers=1,
                               num_attention_heads=2, intermediate_size=8, max_position_embeddings=12, type_vocab_size=2)
    tokens = Encoder(config, rng).embed.tokens
    tokens.weight.data = rng.standard_normal(tokens.weight.shape)
    return tokens.requires_grad_(False), rng.integers(0, config.vocab_size, (rows, length))


class Asked(Module):
    """Word vectors behind two virtual tokens; remembers what it was asked for."""

    def __init__(self, rng):
        self.weight, self.seen = Parameter(rng.standard_normal((11, 6))), None
        self.words, self.longer = rng.standard_normal((2, 5, 6)), np.ones((2, 9), bool)

    def forward(self, ids, mask=None, past=0):
        self.seen = (ids, mask, past)
        return Tensor(self.words), self.longer, 2


@exercise("14.2")
def test_a_fresh_one_changes_nothing(impl, rng):
    """Where e is zero, the vectors are the words' own."""
    tokens, ids = tokens_of(rng)
    vectors, _, _ = impl(tokens)(ids)
    same(vectors, Tensor(tokens.weight.data[ids]), "X'", 0)


@exercise("14.2")
def test_every_word_is_moved_alike(impl, rng):
    """X' is X + e at every place of every text."""
    tokens, ids = tokens_of(rng)
    layer, width = impl(tokens), tokens.weight.shape[1]
    layer.e.data = rng.standard_normal(width)
    expected = np.array([[[tokens.weight.data[i][d] + layer.e.data[d] for d in range(width)] for i in row] for row in ids])
    same(layer(ids)[0], Tensor(expected), "X'", 1e-12)


@exercise("14.2")
def test_the_gradient(impl, rng):
    """de is the sum of dX' over texts and places, and the frozen word vectors have no gradient."""
    tokens, ids = tokens_of(rng)
    layer, g = impl(tokens), rng.standard_normal((*ids.shape, tokens.weight.shape[1]))
    layer.e.data = rng.standard_normal(g.shape[-1])
    vectors, _, _ = layer(ids)
    holds(vectors.requires_grad, "no gradient reaches e from X'")
    vectors.backward(g)
    same(layer.e.grad, sum(g[place] for place in np.ndindex(ids.shape)), "de", 1e-10)
    holds(tokens.weight.grad is None, "the frozen word vectors got a gradient")


@exercise("14.2")
def test_mask_and_virtual_tokens_go_through(impl, rng):
    """ids, mask and past are handed on as they came, and the mask and the number of virtual tokens come back as they are."""
    wrapped = Asked(rng)
    layer, ids, mask = impl(wrapped), rng.integers(0, 11, (2, 3)), np.ones((2, 7), bool)
    layer.e.data = rng.standard_normal(6)
    out = layer(ids, mask, 4)
    holds(isinstance(out, tuple) and len(out) == 3, "three things are to be returned: vectors, mask, number of virtual tokens")
    given = wrapped.seen[0] is ids and wrapped.seen[1] is mask and wrapped.seen[2] == 4
    holds(given, "the wrapped module was not given ids, mask and past")
    holds(out[1] is wrapped.longer, "the mask that the wrapped module gave did not come back")
    same(out[2], 2, "the number of virtual tokens", 0)
    same(out[0], Tensor(wrapped.words + layer.e.data), "X'", 1e-12)


# ---- 14.3 and 14.4: two tasks whose inner steps have a closed form ---------------------------------------------


class Point(Module):
    """A model that is nothing but its parameters: a vector w and a matrix m, of sizes that are drawn."""

    def __init__(self, rng, dtype=np.float64):
        size, *shape = sizes(rng, 3)
        self.w, self.m = Parameter(rng.standard_normal(size).astype(dtype)), Parameter(rng.standard_normal(shape).astype(dtype))

    def forward(self):
        return self.w, self.m


class Bowl:
    """loss = 1/2 (w - c)^T A (w - c) + s/2 |m - d|^2 of a `Point`, whose Hessian is A for w and s for m."""

    def __init__(self, rng, model):
        (size,) = model.w.shape
        root = rng.standard_normal((size, size))
        self.A, self.c = root @ root.T / size + 0.3 * np.eye(size), rng.standard_normal(size)
        self.s, self.d = 0.7, rng.standard_normal(model.m.shape)

    def __call__(self, model):
        w, m = model()
        a, b = (w - self.c).reshape(-1, 1), m - self.d
        return (a * (Tensor(self.A) @ a)).sum() * 0.5 + (b * b).sum() * (0.5 * self.s)

    def value(self, w, m):
        return 0.5 * (w - self.c) @ self.A @ (w - self.c) + 0.5 * self.s * ((m - self.d) ** 2).sum()

    def slope(self, w, m):
        return self.A @ (w - self.c), self.s * (m - self.d)

    def walked(self, w, m, lr, steps):
        """phi_k: c + (I - a A)^k (w - c), and the same with s for m."""
        shrink = np.linalg.matrix_power(np.eye(len(self.A)) - lr * self.A, steps)
        return self.c + shrink @ (w - self.c), self.d + (1 - lr * self.s) ** steps * (m - self.d)

    def factors(self, lr, steps):
        """d phi_k / d phi, for w a matrix and for m a number."""
        return np.linalg.matrix_power(np.eye(len(self.A)) - lr * self.A, steps), (1 - lr * self.s) ** steps


def made(rng, dtype=np.float64):
    """(model, its parameters, their places, a Bowl, another Bowl)."""
    model = Point(rng, dtype)
    parameters = dict(model.named_parameters())
    return model, parameters, places_of(model, parameters), Bowl(rng, model), Bowl(rng, model)


@exercise("14.3")
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_descent(impl, rng, steps, second_order):
    """phi_k is where k steps of gradient descent lead, each from where the one before it ended."""
    model, parameters, places, loss, _ = made(rng)
    phi = impl(model, places, parameters, loss, 0.2, steps, second_order)
    holds(isinstance(phi, dict) and list(phi) == ["w", "m"], f"expected {{path: Tensor}} of w and m, got {phi!r}")
    for path, expected in zip(phi, loss.walked(model.w.data, model.m.data, 0.2, steps)):
        same(phi[path], Tensor(expected), f"{path} after {steps} steps", 1e-9)


@exercise("14.3")
@pytest.mark.parametrize("second_order", [False, True])
def test_the_start_is_left_as_it_was(impl, rng, second_order):
    """The start and the model's own parameters are the same numbers as before, and the model holds them again."""
    model, parameters, places, loss, _ = made(rng)
    before = [p.data.copy() for p in parameters.values()]
    impl(model, places, parameters, loss, 0.2, 2, second_order)
    holds(model.w is parameters["w"] and model.m is parameters["m"], "the model no longer holds its own parameters")
    for (path, p), array in zip(parameters.items(), before):
        same(p.data, array, f"the start's {path}", 0)


@exercise("14.3")
@pytest.mark.parametrize("steps", [1, 3])
def test_through_the_steps(impl, rng, steps):
    """With second_order, phi_k can be differentiated by the start, and the derivative has the factors (I - a H)."""
    model, parameters, places, loss, _ = made(rng)
    g, h = rng.standard_normal(model.w.shape), rng.standard_normal(model.m.shape)
    phi = impl(model, places, parameters, loss, 0.2, steps, True)
    ((phi["w"] * g).sum() + (phi["m"] * h).sum()).backward()
    for_w, for_m = loss.factors(0.2, steps)
    holds(parameters["w"].grad is not None, "no gradient reaches the start")
    same(parameters["w"].grad, for_w @ g, "the gradient at the start's w", 1e-9)
    same(parameters["m"].grad, for_m * h, "the gradient at the start's m", 1e-9)


@exercise("14.3")
def test_first_order_ends_the_record(impl, rng):
    """Without second_order, phi_k are new Tensors that need a gradient, and nothing leads from them to the start."""
    model, parameters, places, loss, _ = made(rng)
    phi = impl(model, places, parameters, loss, 0.2, 2)
    holds(all(p.requires_grad for p in phi.values()), "phi_k needs no gradient, so that nothing can be learnt from there")
    g = rng.standard_normal(model.w.shape)
    (phi["w"] * g).sum().backward()
    same(phi["w"].grad, g, "the gradient at phi_k's w", 1e-12)
    holds(parameters["w"].grad is None or not np.abs(parameters["w"].grad).any(), "the gradient went on to the start")


@exercise("14.3")
@pytest.mark.parametrize("second_order", [False, True])
def test_the_type_of_numbers_stays(impl, rng, second_order):
    """Parameters in float32 stay in float32."""
    model, parameters, places, _, _ = made(rng, np.float32)
    c = rng.standard_normal(model.w.shape).astype(np.float32)
    loss = lambda m: ((m()[0] - c) ** 2).sum() + (m()[1] ** 2).sum()
    phi = impl(model, places, parameters, loss, 0.25, 1, second_order)
    same(phi["w"], Tensor((0.5 * model.w.data + 0.5 * c).astype(np.float32)), "w after one step", 1e-5)
    same(phi["m"], Tensor((0.5 * model.m.data).astype(np.float32)), "m after one step", 1e-5)


def expected_of(rule, support, query, w, m, lr, steps):
    """What the outer step goes against, and the query's loss, in closed form."""
    end = support.walked(w, m, lr, steps)
    slope = query.slope(*end)
    if rule == "reptile":
        return [w - end[0], m - end[1]], query.value(*end)
    if rule == "maml":
        for_w, for_m = support.factors(lr, steps)
        slope = for_w @ slope[0], for_m * slope[1]
    return list(slope), query.value(*end)


@exercise("14.4")
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rule", ["reptile", "fomaml", "maml"])
def test_the_rule(impl, rng, rule, steps):
    """Reptile gives phi - phi_k, first-order MAML the query's gradient at phi_k, MAML that gradient times the (I - a H)."""
    model, parameters, places, support, query = made(rng)
    found, _ = impl(model, places, parameters, Episode(support, query), MetaSettings(rule, 0.2, steps))
    expected, _ = expected_of(rule, support, query, model.w.data, model.m.data, 0.2, steps)
    holds(len(found) == 2, f"expected an array for each of 2 parameters, got {len(found)}")
    for name, yours, array in zip("wm", found, expected):
        same(yours, array, f"{rule}'s gradient of {name}, {steps} step{'s' * (steps > 1)}", 1e-9, np.ndarray)


@exercise("14.4")
@pytest.mark.parametrize("rule", ["reptile", "fomaml", "maml"])
def test_the_loss_that_is_told(impl, rng, rule):
    """The second value is the query's loss at phi_k, a number."""
    model, parameters, places, support, query = made(rng)
    _, loss = impl(model, places, parameters, Episode(support, query), MetaSettings(rule, 0.15, 2))
    holds(isinstance(loss, (float, np.floating)), f"the loss is {type(loss).__name__}; expected a number")
    same(float(loss), float(expected_of(rule, support, query, model.w.data, model.m.data, 0.15, 2)[1]), "the loss", 1e-9)


@exercise("14.4")
@pytest.mark.parametrize("rule", ["reptile", "fomaml", "maml"])
def test_phi_is_left_as_it_was(impl, rng, rule):
    """The parameters hold the same numbers as before, and the model holds them."""
    model, parameters, places, support, query = made(rng)
    before = [p.data.copy() for p in parameters.values()]
    impl(model, places, parameters, Episode(support, query), MetaSettings(rule, 0.2, 2))
    holds(model.w is parameters["w"] and model.m is parameters["m"], "the model no longer holds its own parameters")
    for (path, p), array in zip(parameters.items(), before):
        same(p.data, array, path, 0)


@exercise("14.4")
def test_maml_is_the_slope_of_the_whole(impl, rng):
    """MAML's gradient is the slope of the query's loss after the inner steps, as small changes of phi show."""
    model, parameters, places, *_ = made(rng)
    c, d = rng.standard_normal((2, *model.w.shape))
    bent = lambda target: lambda m: ((m()[0] * m()[0] * m()[0] * 0.2 - target) ** 2).sum() + (m()[1] ** 2).sum() * 0.1
    gradient, _ = impl(model, places, parameters, Episode(bent(c), bent(d)), MetaSettings("maml", 0.05, 2))

    def after(w):
        for _ in range(2):
            w = w - 0.05 * 2 * (0.2 * w**3 - c) * 0.6 * w**2
        return ((0.2 * w**3 - d) ** 2).sum()

    w, steps = model.w.data, 1e-5 * np.eye(model.w.size)
    same(gradient[0], np.array([(after(w + s) - after(w - s)) / 2e-5 for s in steps]), "the gradient of w", 1e-5)


# ---- 14.5: a class is a mean -----------------------------------------------------------------------------------


def groups(rng):
    """(states, labels, the number of classes): one to five of each class, mixed up."""
    classes, width = sizes(rng, 2, low=3)
    labels = rng.permutation(np.repeat(np.arange(classes), sizes(rng, classes, low=1, high=classes)))
    return rng.standard_normal((len(labels), width)), labels, classes


@exercise("14.5")
def test_the_mean_of_each_class(impl, rng):
    """c_k is the mean of the states of class k, whatever the others are and in whatever order."""
    states, labels, classes = groups(rng)
    expected = []
    for k in range(classes):
        mine = [states[i] for i in range(len(states)) if labels[i] == k]
        expected.append(sum(mine) / len(mine))
    same(impl(Tensor(states), labels, classes), Tensor(np.array(expected)), "c", 1e-12)


@exercise("14.5")
def test_one_example_each(impl, rng):
    """With one example of each class the prototypes are the examples, in the order of the classes."""
    states = rng.standard_normal((4, 5))
    same(impl(Tensor(states), [2, 0, 3, 1], 4), Tensor(states[[1, 3, 0, 2]]), "c", 1e-12)


@exercise("14.5")
def test_gradients_of_the_mean(impl, rng):
    """A state's gradient is that of its class's prototype, divided by how many states the class has."""
    states, labels, classes = groups(rng)
    x, g = Tensor(states, requires_grad=True), rng.standard_normal((classes, states.shape[1]))
    centres = impl(x, labels, classes)
    holds(centres.requires_grad, "no gradient reaches the states through the prototypes, so that f could not be trained")
    centres.backward(g)
    same(x.grad, np.array([g[k] / (labels == k).sum() for k in labels]), "the states' gradient", 1e-10)
    gradcheck(lambda s: impl(s, labels, classes), states, rng=rng)


@exercise("14.5")
def test_float32(impl, rng):
    """States in float32 have prototypes in float32."""
    states, labels, classes = groups(rng)
    expected = np.array([states[labels == k].mean(axis=0) for k in range(classes)]).astype(np.float32)
    same(impl(Tensor(states.astype(np.float32)), labels, classes), Tensor(expected), "c", 1e-5)
