"""What an answer to lesson 5 must do: AdamW's step, the schedules, the pull to the start, the groups that are trained, mixout."""

import math

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.learn.claims import exercise, holds, same, sizes
from minipeft.methods import Full, Head, TopK, attach
from minipeft.models import ClassificationHead, Decoder, Encoder, TransformerConfig
from minipeft.nn import Linear, Parameter

# ---- 05.1: one step of AdamW ------------------------------------------------------------------------------------


def by_hand(p, g, m, v, step, lr, beta1, beta2, eps, decay, scale):
    """(p, m, v) after a step, number by number."""
    out = [np.zeros(p.shape) for _ in range(3)]
    for place in np.ndindex(p.shape):
        x = scale * float(g[place])
        mean, square = beta1 * m[place] + (1 - beta1) * x, beta2 * v[place] + (1 - beta2) * x**2
        unbiased_mean, unbiased_square = mean / (1 - beta1**step), square / (1 - beta2**step)
        new = p[place] - lr * (unbiased_mean / (math.sqrt(unbiased_square) + eps) + decay * p[place])
        for array, value in zip(out, (new, mean, square)):
            array[place] = value
    return out


def drawn(rng, shape=None):
    """Parameter, gradient and moments of a run that is on its way; their shape too is drawn where none is given."""
    shape = shape or sizes(rng, 2)
    return (rng.standard_normal(shape), rng.standard_normal(shape), 0.3 * rng.standard_normal(shape), 0.1 + rng.random(shape))


@exercise("05.1")
def test_the_first_step_is_lr_long_whatever_the_gradient(impl, rng):
    """At the first step, without decay, every number moves by lr against its gradient's sign, however large the gradient is."""
    g = np.array([1e-3, -0.5, 40.0, -1e4])
    p, m, v = rng.standard_normal(4), np.zeros(4), np.zeros(4)
    before = p.copy()
    impl(p, g.copy(), m, v, 1, 0.01, 0.9, 0.999, 1e-10, 0.0, 1.0)
    same(p - before, -0.01 * np.sign(g), "the change of the parameter", 1e-4)


@exercise("05.1")
@pytest.mark.parametrize("step, eps", [(1, 1e-8), (3, 1e-8), (3, 0.2), (40, 0.2)])
def test_the_formula_without_decay(impl, rng, step, eps):
    """p becomes p - lr mhat / (sqrt(vhat) + eps), with both moments divided by 1 - beta^step."""
    p, g, m, v = drawn(rng)
    expected = by_hand(p, g, m, v, step, 0.03, 0.8, 0.95, eps, 0.0, 1.0)
    impl(p, g, m, v, step, 0.03, 0.8, 0.95, eps, 0.0, 1.0)
    same(p, expected[0], "the parameter", 1e-9)


@exercise("05.1")
def test_the_moments_are_kept_as_running_means(impl, rng):
    """m and v hold the running means themselves, in place; only the step uses them divided by 1 - beta^step."""
    p, g, m, v = drawn(rng)
    expected = by_hand(p, g, m, v, 2, 0.03, 0.8, 0.95, 1e-8, 0.0, 1.0)
    impl(p, g, m, v, 2, 0.03, 0.8, 0.95, 1e-8, 0.0, 1.0)
    same(m, expected[1], "m", 1e-9)
    same(v, expected[2], "v", 1e-9)


@exercise("05.1")
@pytest.mark.parametrize("shape", [None, (1,)])
def test_decay_is_apart_from_the_gradient(impl, rng, shape):
    """Decay takes lr decay p away, beside the gradient's step and not through the moments."""
    p, g, m, v = drawn(rng, shape)
    expected = by_hand(p, g, m, v, 3, 0.2, 0.8, 0.95, 1e-8, 0.6, 1.0)
    impl(p, g, m, v, 3, 0.2, 0.8, 0.95, 1e-8, 0.6, 1.0)
    same(p, expected[0], "the parameter", 1e-9)
    same(m, expected[1], "m", 1e-9)


@exercise("05.1")
def test_without_a_gradient_only_decay_is_left(impl, rng):
    """Where the gradient and the moments are zero, the parameter shrinks by the factor 1 - lr decay."""
    p = rng.standard_normal(sizes(rng, 2))
    expected = p * (1 - 0.1 * 0.5)
    impl(p, np.zeros(p.shape), np.zeros(p.shape), np.zeros(p.shape), 1, 0.1, 0.9, 0.999, 1e-8, 0.5, 1.0)
    same(p, expected, "the parameter", 1e-12)


@exercise("05.1")
def test_clipping_scales_the_gradient_first(impl, rng):
    """gradient_scale multiplies the gradient before anything else; the gradient's own array stays as it is."""
    p, g, m, v = drawn(rng)
    given, expected = g.copy(), by_hand(p, g, m, v, 5, 0.03, 0.8, 0.95, 1e-3, 0.1, 0.25)
    impl(p, g, m, v, 5, 0.03, 0.8, 0.95, 1e-3, 0.1, 0.25)
    for name, array, value in zip(("the parameter", "m", "v"), (p, m, v), expected):
        same(array, value, name, 1e-9)
    same(g, given, "the gradient", 0)


@exercise("05.1")
def test_three_steps_in_float32(impl, rng):
    """Step after step, arrays of float32 stay float32 and follow the formula."""
    p, _, _, _ = drawn(rng)
    gradients = rng.standard_normal((3, *p.shape)).astype(np.float32)
    mine = [p.astype(np.float32), np.zeros(p.shape, np.float32), np.zeros(p.shape, np.float32)]
    slow = [array.astype(np.float64) for array in mine]
    for step, g in enumerate(gradients, 1):
        impl(mine[0], g, mine[1], mine[2], step, 0.05, 0.9, 0.99, 1e-8, 0.1, 1.0)
        slow = by_hand(slow[0], g, slow[1], slow[2], step, 0.05, 0.9, 0.99, 1e-8, 0.1, 1.0)
    same(mine[0], slow[0].astype(np.float32), "the parameter", 1e-4)


# ---- 05.2: the schedules ----------------------------------------------------------------------------------------


def curve(impl, schedule, total, warmup=0):
    """The factors of a whole run."""
    return np.array([float(impl(schedule, t, total, warmup)) for t in range(total)])


def steps(rng):
    """(total, warmup) of a run that is drawn."""
    return int(rng.integers(9, 30)), int(rng.integers(2, 7))


@exercise("05.2")
@pytest.mark.parametrize("warmup", [None, 1, 10])
def test_warm_up_rises_to_one(impl, rng, warmup):
    """In the warm-up the factor is 1/w, 2/w, ..., 1: the first step is not lost, and the last has the whole rate."""
    total, warmup = steps(rng) if warmup is None else (12, warmup)
    for schedule in ("linear", "cosine", "constant"):
        same(curve(impl, schedule, total, warmup)[:warmup], np.arange(1, warmup + 1) / warmup,
             f"the first {warmup} factors of {schedule}", 1e-12)


@exercise("05.2")
@pytest.mark.parametrize("run", [None, (8, 0), (7, 6), (1, 0)])
def test_linear_falls_to_zero_behind_the_last_step(impl, rng, run):
    """After the warm-up, linear falls by equal amounts from 1 to 0, which it would reach one step behind the last."""
    total, warmup = run or steps(rng)
    expected = [1 - (t - warmup) / (total - warmup) for t in range(warmup, total)]
    same(curve(impl, "linear", total, warmup)[warmup:], np.array(expected), "the factors behind the warm-up", 1e-12)


@exercise("05.2")
@pytest.mark.parametrize("run", [None, (8, 0)])
def test_cosine_is_half_a_wave(impl, rng, run):
    """After the warm-up, cosine is half a wave: 1 at its start, 1/2 in the middle."""
    total, warmup = run or steps(rng)
    expected = [0.5 + 0.5 * math.cos(math.pi * (t - warmup) / (total - warmup)) for t in range(warmup, total)]
    same(curve(impl, "cosine", total, warmup)[warmup:], np.array(expected), "the factors behind the warm-up", 1e-12)


@exercise("05.2")
def test_constant_stays(impl, rng):
    """After the warm-up, constant is 1."""
    total, warmup = steps(rng)
    same(curve(impl, "constant", total, warmup)[warmup:], np.ones(total - warmup), "the factors behind the warm-up", 1e-12)


@exercise("05.2")
@pytest.mark.parametrize("tenth", [None, 10])
def test_the_slanted_triangle(impl, rng, tenth):
    """Slanted rises from 1/32 to 1 in the first tenth of the steps and falls slowly back to 1/32."""
    cut = tenth or int(rng.integers(3, 9))
    total = 10 * cut
    share = [t / cut if t < cut else (total - t) / (total - cut) for t in range(total)]
    same(curve(impl, "slanted", total), np.array([1 / 32 + (31 / 32) * p for p in share]), "the factors", 1e-9)


@exercise("05.2")
def test_the_slanted_triangle_has_a_warm_up_of_its_own(impl):
    """Slanted takes no notice of warmup."""
    expected = [1 / 32 + (31 / 32) * (t / 2 if t < 2 else (20 - t) / 18) for t in range(20)]
    same(curve(impl, "slanted", 20, 6), np.array(expected), "the factors of slanted with a warmup of 6", 1e-9)


@exercise("05.2")
@pytest.mark.parametrize("total", [3, 19])
def test_short_runs(impl, total):
    """The rise of slanted takes one step at least, and its fall stops at 1/32."""
    cut = max(1, math.floor(total / 10))
    share = [t / cut if t < cut else max(0.0, 1 - (t - cut) / (9 * cut)) for t in range(total)]
    same(curve(impl, "slanted", total), np.array([1 / 32 + (31 / 32) * p for p in share]), "the factors", 1e-9)


@exercise("05.2")
def test_all_of_it_warm_up(impl):
    """A run that is warm-up from its first step to its last only rises."""
    for schedule in ("linear", "cosine"):
        same(curve(impl, schedule, 5, 5), np.arange(1, 6) / 5, f"the factors of {schedule}", 1e-12)


@exercise("05.2")
def test_an_unknown_schedule_is_refused(impl):
    """A name that is no schedule raises ValueError."""
    try:
        impl("lineal", 0, 10, 0)
    except ValueError:
        holds(True, "")
    else:
        holds(False, "the schedule 'lineal' was not refused; raise ValueError for a name that is not in SCHEDULES")


# ---- 05.3: the distance from the start --------------------------------------------------------------------------


def moved(kind, rng, alpha, beta):
    """(an L2-SP whose parameters have moved, their starts, where they are)."""
    width, classes, d_in = sizes(rng, 3)
    start = {"blocks.0.attn.q.weight": rng.standard_normal((d_in, width)),
             "embed.norm.bias": rng.standard_normal(width),
             "head.classifier.weight": rng.standard_normal((width, classes)),
             "head.classifier.bias": rng.standard_normal(classes)}
    parameters = {path: Parameter(array.copy()) for path, array in start.items()}
    hook = kind(parameters, alpha, beta)
    for p in parameters.values():
        p.data = p.data + rng.standard_normal(p.shape)
    return hook, start, {path: p.data.copy() for path, p in parameters.items()}


def distance(start, now, alpha, beta):
    """a/2 times the body's squared distance from the start, and b/2 times the head's squared length."""
    total = 0.0
    for path, array in now.items():
        for place in np.ndindex(array.shape):
            if path.startswith("head."):
                total += beta / 2 * float(array[place]) ** 2
            else:
                total += alpha / 2 * (float(array[place]) - float(start[path][place])) ** 2
    return total


@exercise("05.3")
@pytest.mark.parametrize("alpha, beta", [(0.7, 0.2), (3.0, 5.0)])
def test_the_penalty(impl, rng, alpha, beta):
    """The penalty is a/2 times the squared distance of the body from its start, plus b/2 times the squared length of the head."""
    hook, start, now = moved(impl, rng, alpha, beta)
    same(hook.penalty(), Tensor(np.array(distance(start, now, alpha, beta))), "the penalty", 1e-10)


@exercise("05.3")
def test_the_gradients_pull_back(impl, rng):
    """The gradient is a (theta - theta_0) in the body and b theta in the head, times the gradient from above."""
    hook, start, now = moved(impl, rng, 0.7, 0.2)
    value = hook.penalty()
    holds(getattr(value, "requires_grad", False),
          "the penalty has no gradient; compute it from the Tensors p, not from their arrays")
    value.backward(np.array(1.9))
    for path, p in hook.parameters.items():
        pull = 0.2 * now[path] if path.startswith("head.") else 0.7 * (now[path] - start[path])
        same(p.grad, 1.9 * pull, f"the gradient of {path}", 1e-10)


@exercise("05.3")
def test_at_the_start_the_body_costs_nothing(impl, rng):
    """Before the first step the body has no penalty and no pull."""
    shape = tuple(sizes(rng, 2))
    body = {"blocks.1.mlp.up.weight": Parameter(rng.standard_normal(shape))}
    hook = impl(body, 2.0, 2.0)
    value = hook.penalty()
    same(value, Tensor(np.array(0.0)), "the penalty", 1e-12)
    value.backward()
    same(body["blocks.1.mlp.up.weight"].grad, np.zeros(shape), "the gradient", 1e-12)


@exercise("05.3")
@pytest.mark.parametrize("alpha, beta", [(0.0, 0.4), (0.6, 0.0)])
def test_either_strength_may_be_zero(impl, rng, alpha, beta):
    """With one of the strengths zero the other part alone is left."""
    hook, start, now = moved(impl, rng, alpha, beta)
    same(hook.penalty(), Tensor(np.array(distance(start, now, alpha, beta))), "the penalty", 1e-10)


@exercise("05.3")
def test_nothing_to_add(impl, rng):
    """With both strengths zero there is nothing to add to the loss: None."""
    hook, _, _ = moved(impl, rng, 0.0, 0.0)
    value = hook.penalty()
    holds(value is None, f"penalty gives {value!r} where both strengths are zero; expected None")


# ---- 05.4: gradual unfreezing -----------------------------------------------------------------------------------


def small(kind="bert", layers=3):
    """A small config."""
    return TransformerConfig(model_type=kind, vocab_size=11, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
                             intermediate_size=12, max_position_embeddings=9, type_vocab_size=2 if kind == "bert" else 0,
                             labels=("a", "b"), pooling="mean")


def unfrozen(kind, method, rng, layers=3, every=1):
    """Gradual unfreezing of a small classifier by a method."""
    config = small(layers=layers)
    model = Encoder(config, rng)
    model.head = ClassificationHead(config.hidden_size, 2, "mean", rng=rng)
    return kind(attach(model, method, rng=rng), every)


def layer_of(path, layers):
    """From the top: 0 the head, 1 the last block, ..., and behind the first block the embeddings."""
    if path.startswith("head."):
        return 0
    return layers - int(path.split(".")[1]) if path.startswith("blocks.") else layers + 1


def compare(hook, epoch, expected):
    """Which of the attachment's parameters are trained, in their order, against which should be."""
    paths, yours = list(hook.groups), hook.trained(epoch)
    holds(isinstance(yours, (list, tuple, set, dict)), f"trained gives {type(yours).__name__}; expected a list of paths")
    strange = [str(each) for each in yours if each not in hook.groups]
    holds(not strange, f"{strange[:2]} among what is trained; expected paths of parameters, as in self.groups")
    same(np.array([path in yours for path in paths]), np.array([path in expected for path in paths]),
         f"whether each parameter is trained in epoch {epoch}", 0)


@exercise("05.4")
@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 4, 9])
def test_one_group_more_in_each_epoch(impl, rng, epoch):
    """Epoch 0 trains the head, epoch 1 the head and the last block, and so on down to the embeddings; then all stay."""
    (layers,) = sizes(rng, 1, high=4)
    hook = unfrozen(impl, Full(), rng, layers)
    compare(hook, epoch, [path for path in hook.groups if layer_of(path, layers) <= epoch])


@exercise("05.4")
@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 5])
def test_several_epochs_a_group(impl, rng, epoch):
    """With epochs_a_group, so many epochs go by before the next group joins."""
    hook = unfrozen(impl, Full(), rng, layers=2, every=2)
    compare(hook, epoch, [path for path in hook.groups if layer_of(path, 2) <= epoch // 2])


@exercise("05.4")
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_groups_without_a_parameter_take_no_epoch(impl, rng, epoch):
    """Only groups in which something is trained count: where there is no head, epoch 0 already trains the last block."""
    (layers,) = sizes(rng, 1, low=3, high=5)
    model = Decoder(small("gpt2", layers).with_(labels=(), pooling=None), rng)
    hook = impl(attach(model, TopK(layers=2), rng=rng))
    compare(hook, epoch, [path for path in hook.groups if layer_of(path, layers) <= epoch + 1])


@exercise("05.4")
def test_one_group_is_all_there_is(impl, rng):
    """Where the head alone is trained, it is trained in every epoch."""
    hook = unfrozen(impl, Head(), rng)
    for epoch in (0, 3):
        compare(hook, epoch, list(hook.groups))


@exercise("05.4")
def test_the_step_freezes_the_others(impl, rng):
    """Inside a step of epoch 1 the gradient reaches the head and the last block alone."""
    hook = unfrozen(impl, Full(), rng, layers=2)
    hook.before_step(0, 10, 1, rng)
    hook_paths = [path for path, p in hook.parameters.items() if p.requires_grad]
    same(np.array([path in hook_paths for path in hook.groups]), np.array([layer_of(path, 2) <= 1 for path in hook.groups]),
         "which parameters take a gradient", 0)


# ---- 05.5: mixout -----------------------------------------------------------------------------------------------


def mixing(kind, rng, p=0.4, shape=None, seed=5):
    """(a mixout layer in training whose weight has moved, its start, how far it has moved, b);
    without a shape a large one is drawn."""
    shape = shape or (int(rng.integers(25, 35)), int(rng.integers(15, 24)))
    base = Linear(*shape, rng=rng, std=1.0).astype(np.float64)
    base.bias.data = rng.standard_normal(shape[1])
    layer = kind(base, p)
    start, off = base.weight.data.copy(), 0.5 + rng.random(shape)
    base.weight.data = start + off
    layer.train(np.random.default_rng(seed))
    return layer, start, off, base.bias.data.copy()


def weight_of(layer, b):
    """The weight that one call uses: what comes out for the rows of the unit matrix, less b."""
    return layer(Tensor(np.eye(layer.start.shape[0]))).data - b


@exercise("05.5")
def test_evaluation_does_not_mix(impl, rng):
    """Outside training the layer is x W + b with W as it is now."""
    layer, start, off, b = mixing(impl, rng)
    layer.eval()
    x = rng.standard_normal((3, len(start)))
    same(layer(Tensor(x)), Tensor(x @ (start + off) + b), "h in evaluation", 1e-10)


@exercise("05.5")
def test_probability_zero_does_not_mix(impl, rng):
    """With the probability 0 nothing is mixed in training either."""
    layer, start, off, b = mixing(impl, rng, 0.0)
    x = rng.standard_normal((2, 4, len(start)))
    same(layer(Tensor(x)), Tensor(x @ (start + off) + b), "h with p = 0", 1e-10)


@exercise("05.5")
@pytest.mark.parametrize("p", [0.4, 0.75])
def test_each_entry_is_the_start_or_further_from_it(impl, rng, p):
    """An entry of the weight is theta_0 where it is mixed, and else theta_0 + (theta - theta_0) / (1 - p)."""
    layer, start, off, b = mixing(impl, rng, p)
    share = (weight_of(layer, b) - start) * (1 - p) / off  # 0 where mixed, 1 elsewhere
    same(share, np.clip(np.round(share), 0, 1), "(1 - p) (weight - theta_0) / (theta - theta_0), which is 0 or 1,", 1e-6)


@exercise("05.5")
@pytest.mark.parametrize("p", [0.2, 0.75])
def test_how_many_are_mixed(impl, rng, p):
    """Each entry is mixed with probability p, on its own."""
    layer, start, off, b = mixing(impl, rng, p, (60, 50))
    mixed = np.abs(weight_of(layer, b) - start) < 1e-9  # (60, 50)
    share = mixed.mean()
    holds(abs(share - p) < 0.07, f"{share:.2f} of the entries have their start's value; expected about {p}")
    holds(0 < mixed.mean(axis=0).min() and mixed.mean(axis=0).max() < 1,
          "whole columns are mixed or left; each entry is drawn on its own")
    holds(0 < mixed.mean(axis=1).min() and mixed.mean(axis=1).max() < 1,
          "whole rows are mixed or left; each entry is drawn on its own")


@exercise("05.5")
def test_on_average_it_is_the_weight(impl, rng):
    """Over many calls the mean of the weight is theta itself, not nearer to the start."""
    layer, start, off, b = mixing(impl, rng, 0.5, (6, 4))
    mean = np.mean([weight_of(layer, b) for _ in range(400)], axis=0)
    ratio = float(((mean - start) / off).mean())
    holds(abs(ratio - 1) < 0.1, f"the mean weight has gone {ratio:.2f} of the way from theta_0 to theta; expected 1")


@exercise("05.5")
def test_gradients(impl, rng):
    """The gradient of an entry is 0 where it is mixed and x^T g / (1 - p) elsewhere; x and b have theirs."""
    rows, d_in, d_out = sizes(rng, 3)
    layer, start, off, b = mixing(impl, rng, 0.4, (d_in, d_out))
    used = weight_of(layer, b)
    layer.train(np.random.default_rng(5))  # the same draw once more
    x, g = Tensor(rng.standard_normal((rows, d_in)), requires_grad=True), rng.standard_normal((rows, d_out))
    layer(x).backward(g)
    kept = np.abs(used - start) > 1e-9
    same(layer.wrapped.weight.grad, np.where(kept, x.data.T @ g / 0.6, 0.0), "the gradient of the weight", 1e-9)
    same(x.grad, g @ used.T, "dx", 1e-9)
    same(layer.wrapped.bias.grad, g.sum(axis=0), "db", 1e-9)


@exercise("05.5")
def test_the_draws_are_the_layer_s_own(impl, rng):
    """The draws come from self.rng: a generator in the same state gives the same weight, and the next call another."""
    layer, _, _, b = mixing(impl, rng)
    first, second = weight_of(layer, b), weight_of(layer, b)
    layer.train(np.random.default_rng(5))
    again = weight_of(layer, b)
    holds(bool((first != second).any()), "two calls in a row use the same weight; draw anew in each")
    holds(bool((first == again).all()), "a generator in the same state gave another weight; draw from self.rng alone")
