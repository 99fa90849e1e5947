"""Meta-learning: MAML's gradient against finite differences through the inner steps, the other rules against their formulas."""

import numpy as np
import pytest

from minipeft import attach, load_pretrained
from minipeft import autograd as F
from minipeft.autograd import grad
from minipeft.methods import METHODS
from minipeft.nn import Linear, Module
from minipeft.prompting.meta import Episode, MetaSettings, adapt, meta_gradient, meta_train, places_of, substituted


class Small(Module):
    """A network with a nonlinearity whose Hessian is far from zero."""

    def __init__(self, rng):
        self.first, self.second = Linear(3, 4, True, rng, 0.7), Linear(4, 2, True, rng, 0.7)

    def forward(self, x):
        return self.second(F.tanh(self.first(x)))


def regression(rng):
    """An episode: fit random targets."""
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    u, v = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    loss = lambda a, b: lambda model: ((model(F.Tensor(a)) - b) ** 2).mean()
    return Episode(loss(x, y), loss(u, v))


@pytest.fixture
def small():
    model = Small(np.random.default_rng(0)).astype(np.float64)
    return model, dict(model.named_parameters())


def query_after_adapting(model, parameters, episode, settings):
    """The oracle: plain arrays, one step after another."""
    before = {path: p.data.copy() for path, p in parameters.items()}
    for _ in range(settings.inner_steps):
        found = grad(episode.support(model), list(parameters.values()))
        for p, g in zip(parameters.values(), found):
            p.data = p.data - settings.inner_lr * g
    loss, after = episode.query(model).item(), {path: p.data for path, p in parameters.items()}
    for path, p in parameters.items():
        p.data = before[path]
    return loss, after


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_is_the_derivative_through_the_inner_steps(small, steps):
    model, parameters = small
    settings, episode = MetaSettings("maml", inner_lr=0.2, inner_steps=steps), regression(np.random.default_rng(1))
    found, loss = meta_gradient(model, places_of(model, parameters), parameters, episode, settings)
    assert loss == pytest.approx(query_after_adapting(model, parameters, episode, settings)[0])
    rng = np.random.default_rng(2)
    for gradient, p in zip(found, parameters.values()):
        direction, before, values = rng.standard_normal(p.shape), p.data.copy(), []
        for step in (1e-5, -1e-5):
            p.data = before + step * direction
            values.append(query_after_adapting(model, parameters, episode, settings)[0])
        p.data = before
        assert (gradient * direction).sum() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_the_second_order_term_is_there(small):
    """First-order MAML leaves it out, and differs."""
    model, parameters = small
    episode, places = regression(np.random.default_rng(1)), places_of(model, parameters)
    of = lambda rule, lr: meta_gradient(model, places, parameters, episode, MetaSettings(rule, lr, 2))[0]
    full, first = of("maml", 0.2), of("fomaml", 0.2)
    assert any(np.abs(a - b).max() > 1e-2 * np.abs(a).max() for a, b in zip(full, first))
    tiny = [of(rule, 1e-9) for rule in ("maml", "fomaml")]
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*tiny))


def test_the_first_order_rules_are_their_formulas(small):
    model, parameters = small
    episode, settings = regression(np.random.default_rng(4)), MetaSettings("fomaml", 0.1, 3)
    places = places_of(model, parameters)
    _, after = query_after_adapting(model, parameters, episode, settings)
    reptile, _ = meta_gradient(model, places, parameters, episode, MetaSettings("reptile", 0.1, 3))
    for gradient, (path, p) in zip(reptile, parameters.items()):
        assert np.allclose(gradient, p.data - after[path])
    fomaml, _ = meta_gradient(model, places, parameters, episode, settings)
    before = {path: p.data for path, p in parameters.items()}
    for path, p in parameters.items():
        p.data = after[path]
    expected = grad(episode.query(model), list(parameters.values()))
    for path, p in parameters.items():
        p.data = before[path]
    assert all(np.allclose(a, b) for a, b in zip(fomaml, expected))


@pytest.mark.parametrize("rule", ["reptile", "fomaml", "maml"])
def test_nothing_but_the_result_is_left_behind(small, rule):
    model, parameters = small
    before = {path: (p, p.data.copy()) for path, p in parameters.items()}
    meta_gradient(model, places_of(model, parameters), parameters, regression(np.random.default_rng(0)), MetaSettings(rule))
    for path, p in model.named_parameters():
        assert p is before[path][0] and np.array_equal(p.data, before[path][1]) and p.grad is None


def test_the_parameters_come_back_when_something_fails(small):
    model, parameters = small
    places = places_of(model, parameters)
    with pytest.raises(RuntimeError), substituted(places, {path: F.Tensor(p.data * 2) for path, p in parameters.items()}):
        raise RuntimeError
    assert all(p is parameters[path] for path, p in model.named_parameters()) and len(list(model.named_parameters())) == 4


@pytest.mark.parametrize("method", ["lora", "houlsby", "ia3", "prefix", "prompt", "bitfit"])
@pytest.mark.parametrize("arch", ["encoder", "decoder"])
def test_maml_through_a_method_on_a_whole_model(method, arch):
    """In float64, against the difference quotient along one direction in all parameters at once."""
    model = load_pretrained(f"toy:{arch}")
    rng = np.random.default_rng(0)
    attachment = attach(model, METHODS[method](), rng=rng)
    parameters = attachment.named_parameters()
    model.astype(np.float64)
    for p in parameters.values():
        p.data = p.data + 0.05 * rng.standard_normal(p.shape)
    ids = rng.integers(5, model.config.vocab_size, (4, 3, 6))
    loss = lambda a: lambda m: m(ids[a], labels=ids[a + 1]).loss
    episode, settings = Episode(loss(0), loss(2)), MetaSettings("maml", inner_lr=0.05, inner_steps=2)
    found, _ = meta_gradient(model, places_of(model, parameters), parameters, episode, settings)
    directions, before, values = [rng.standard_normal(p.shape) for p in parameters.values()], {}, []
    for path, p in parameters.items():
        before[path] = p.data
    for step in (1e-5, -1e-5):
        for (path, p), d in zip(parameters.items(), directions):
            p.data = before[path] + step * d
        values.append(query_after_adapting(model, parameters, episode, settings)[0])
    slope = sum((g * d).sum() for g, d in zip(found, directions))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("rule, lr", [("reptile", 0.05), ("fomaml", 0.02), ("maml", 0.02)])
def test_a_start_is_learnt_from_which_a_few_steps_reach_further(rule, lr):
    """Linear tasks that share most of their slope: after meta-training two steps on five examples leave less error."""
    rng = np.random.default_rng(7)
    common = rng.standard_normal((3, 2))

    def draw(rng):
        slope = common + 0.1 * rng.standard_normal((3, 2))
        x, u = rng.standard_normal((5, 3)), rng.standard_normal((8, 3))
        loss = lambda a: lambda model: ((model(F.Tensor(a)) - a @ slope) ** 2).mean()
        return Episode(loss(x), loss(u))

    model = Linear(3, 2, True, np.random.default_rng(1), 0.1).astype(np.float64)
    settings = MetaSettings(rule, inner_lr=0.05, inner_steps=2, lr=lr, tasks=4, steps=150)
    seen = []
    losses = meta_train(model, dict(model.named_parameters()), draw, settings, lambda *said: seen.append(said))
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5])
    assert seen == list(zip(range(1, 151), losses))
    again = Linear(3, 2, True, np.random.default_rng(1), 0.1).astype(np.float64)
    assert meta_train(again, dict(again.named_parameters()), draw, settings) == losses


def test_an_outer_step_goes_by_the_mean_over_its_tasks(small):
    """Adam's first step, by hand."""
    model, parameters = small
    settings, episodes = MetaSettings("fomaml", 0.1, 1, lr=0.01, tasks=3, steps=1), []

    def draw(rng):
        episodes.append(regression(rng))
        return episodes[-1]

    before = {path: p.data.copy() for path, p in parameters.items()}
    meta_train(model, parameters, draw, settings)
    after = {path: p.data for path, p in parameters.items()}
    for path, p in parameters.items():
        p.data = before[path]
    found = [meta_gradient(model, places_of(model, parameters), parameters, e, settings)[0] for e in episodes]
    assert len(episodes) == 3
    for number, path in enumerate(parameters):
        g = np.mean([gradients[number] for gradients in found], axis=0)
        assert np.allclose(after[path], before[path] - 0.01 * g / (np.abs(g) + 1e-8), atol=1e-6)


def test_adapting_keeps_a_record_only_when_asked(small):
    model, parameters = small
    loss, places = regression(np.random.default_rng(0)).support, places_of(model, parameters)
    for second_order in (False, True):
        phi = adapt(model, places, parameters, loss, 0.1, 1, second_order)
        value = sum((p * p).sum() for p in phi.values())
        if second_order:
            assert all(np.abs(g).max() > 0 for g in grad(value, list(parameters.values())))
        else:
            assert all(p.node.leaf is not None for p in phi.values())


@pytest.mark.parametrize("rule", ["reptile", "fomaml", "maml"])
def test_a_plain_outer_step_is_the_rule_as_it_stands(small, rule):
    """phi + b mean of (phi_k - phi), or phi - b mean of the gradients: plain arrays against one step by "sgd"."""
    model, parameters = small
    settings = MetaSettings(rule, 0.2, 2, lr=0.3, tasks=3, steps=1, seed=5, optimizer="sgd")
    rng = np.random.default_rng([5, 0])
    found = [meta_gradient(model, places_of(model, parameters), parameters, regression(rng), settings)[0] for _ in range(3)]
    expected = {path: p.data - 0.3 * sum(each[number] for each in found) / 3
                for number, (path, p) in enumerate(parameters.items())}
    meta_train(model, parameters, regression, settings)
    for path, p in parameters.items():
        assert np.allclose(p.data, expected[path], rtol=1e-12)


@pytest.mark.parametrize("name, value, message", [
    ("rule", "mamel", "rule: expected one of reptile, fomaml, maml, got 'mamel'"),
    ("optimizer", "lion", "optimizer: expected one of sgd, adam, adamw, got 'lion'"), ("inner_steps", 0, "inner_steps: .* got 0"),
    ("inner_lr", -1.0, "inner_lr: expected more than 0, got -1.0"), ("tasks", 0, "tasks"), ("steps", 0, "steps"),
    ("lr", 0, "lr")])
def test_settings_that_make_no_sense(name, value, message):
    with pytest.raises(ValueError, match=message):
        MetaSettings(**{name: value})
