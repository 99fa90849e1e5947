"""The tree of modules: paths, wrappers that no path shows, finding, replacing, freezing, copying and switching."""

import re

import numpy as np
import pytest

from minipeft.autograd import Tensor
from minipeft.nn import Dropout, Linear, Module, ModuleList, Parameter, Wrapper, initial, unwrap


class Pair(Module):
    def __init__(self, rng):
        self.first = Linear(3, 4, rng=rng)
        self.drop = Dropout(0.5)
        self.second = Linear(4, 2, bias=False, rng=rng)

    def forward(self, x):
        return self.second(self.drop(self.first(x)))


class Net(Module):
    def __init__(self, rng):
        self.shift = Parameter(np.zeros(3, np.float32))
        self.layers = ModuleList(Pair(rng) for _ in range(2))
        self.nothing = None
        self.tied = self.layers[0].first.weight  # one Parameter, two places
        self.number = 3

    def forward(self, x):
        return self.layers[0](x + self.shift)


class Doubled(Wrapper):
    """Has a parameter and a module of its own."""

    def __init__(self, wrapped):
        super().__init__(wrapped)
        self.extra = Parameter(np.ones(1, np.float32))
        self.inner = Dropout(0.5)

    def forward(self, x):
        return self.wrapped(x) * 2


@pytest.fixture
def net(rng):
    return Net(rng)


NAMES = ["shift", "tied", "layers.0.first.bias", "layers.0.second.weight", "layers.1.first.weight", "layers.1.first.bias",
         "layers.1.second.weight"]
PLACES = ["layers.0", "layers.0.first", "layers.0.drop", "layers.1.second"]


# ---- names ------------------------------------------------------------------------------------------------------


def test_each_parameter_once_under_the_first_path_that_leads_to_it(net):
    assert [path for path, _ in net.named_parameters()] == NAMES
    assert len({id(p) for p in net.parameters()}) == len(NAMES)


def test_modules_in_the_order_in_which_they_were_set(net):
    paths = [path for path, _ in net.named_modules()]
    assert paths == ["", "layers", "layers.0", "layers.0.first", "layers.0.drop", "layers.0.second",
                     "layers.1", "layers.1.first", "layers.1.drop", "layers.1.second"]
    assert [name for name, _ in net.children()] == ["layers"]
    assert len(list(net.modules())) == len(paths)


@pytest.mark.parametrize("order", [PLACES, PLACES[::-1], PLACES + PLACES[1:3]])
def test_wrappers_leave_every_path_and_parameter_as_it_was(net, order):
    parameters, modules = list(net.named_parameters()), list(net.named_modules())
    for path in order:
        net.replace(path, Doubled(net.get(path)))
    assert [(path, id(p)) for path, p in net.named_parameters()] == [(path, id(p)) for path, p in parameters]
    assert [(path, id(m)) for path, m in net.named_modules()] == [(path, id(m)) for path, m in modules]
    assert sum(isinstance(m, Doubled) for m in net.modules()) == len(order)


# ---- finding and replacing --------------------------------------------------------------------------------------


def test_get_finds_through_lists_and_wrappers_and_gives_the_outermost(net):
    first = net.layers[0].first
    assert net.get("layers.0.first") is first and net.get("layers.0") is net.layers[0]
    inner = Doubled(first)
    net.replace("layers.0.first", inner)
    outer = Doubled(net.get("layers.0.first"))
    net.replace("layers.0.first", outer)
    net.replace("layers.0", Doubled(net.get("layers.0")))
    assert net.get("layers.0.first") is outer and outer.wrapped is inner and unwrap(outer) is first
    assert unwrap(first) is first and unwrap(None) is None


def test_replace_puts_a_module_in_the_place_of_another(net, rng):
    for path in ("layers.1", "layers.0.second", "layers"):
        new = Linear(4, 2, rng=rng)
        net.replace(path, new)
        assert net.get(path) is new
    assert [path for path, _ in net.named_modules()] == ["", "layers"]


@pytest.mark.parametrize("path,part", [("layer", "layer"), ("layers.2", "2"), ("layers.0.third", "third"),
                                       ("layers.0.first.weight", "weight"), ("", ""), ("nothing", "nothing"),
                                       ("layers.-1", "-1"), ("layers..first", "")])
def test_a_path_that_leads_nowhere(net, path, part):
    message = re.escape(f"no module at {path!r} (nothing named {part!r})")
    with pytest.raises(KeyError, match=message):
        net.get(path)
    with pytest.raises(KeyError, match=message):
        net.replace(path, Dropout(0.1))
    assert [path for path, _ in net.named_parameters()] == NAMES


def test_module_list(rng):
    modules = [Linear(2, 2, rng=rng) for _ in range(3)]
    many = ModuleList(iter(modules))
    assert len(many) == 3 and list(many) == modules and many[1] is modules[1] and many[-1] is modules[2]
    many.set_child("1", modules[0])
    assert many[1] is modules[0]


# ---- wrappers ---------------------------------------------------------------------------------------------------


def test_a_wrapper_acts_when_enabled_and_lends_its_attributes(net):
    x = Tensor(np.ones((1, 3), np.float32))
    plain = net(x).data
    net.replace("layers.0", Doubled(net.get("layers.0")))
    np.testing.assert_allclose(net(x).data, 2 * plain)
    wrapper = net.get("layers.0")
    assert wrapper.first is wrapper.wrapped.first and not hasattr(wrapper, "third")
    wrapper.enabled = False
    assert (net(x).data == plain).all()


def test_a_wrapper_without_anything_inside_fails_with_an_attribute_error():
    with pytest.raises(AttributeError, match="wrapped"):
        object.__new__(Doubled).weight


def test_a_module_without_forward_says_so():
    with pytest.raises(TypeError, match="ModuleList defines no forward"):
        ModuleList([])(1)


# ---- switching --------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module_inside_wrappers_too(net, rng):
    for path in PLACES:
        net.replace(path, Doubled(net.get(path)))
    assert not any(m.training for m in net.modules())
    assert net.train(rng) is net
    assert all(m.training and m.rng is rng for m in net.modules())
    assert net.get("layers.0.first").inner.training and net.layers[0].wrapped.drop.wrapped.training
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert not Dropout(0.5).training  # the switch belongs to the instance


def test_freezing_and_releasing(net):
    assert all(p.requires_grad for p in net.parameters())
    assert net.requires_grad_(False) is net and not any(p.requires_grad for p in net.parameters())
    assert not net(Tensor(np.ones((1, 3), np.float32))).requires_grad
    net.requires_grad_(True)
    net(Tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert net.shift.grad is not None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_astype_converts_everything_inside_wrappers_too(net):
    net.replace("layers.0.first", Doubled(net.get("layers.0.first")))
    net(Tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert net.astype(np.float64) is net
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float64)} and net.get("layers.0.first").extra.dtype == np.float64
    assert all(p.grad is None for p in net.parameters())
    assert net(Tensor(np.ones((1, 3)))).dtype == np.float64


def test_copy_has_values_of_its_own(rng):
    original = Pair(rng)
    copy = original.copy()
    assert [path for path, _ in copy.named_parameters()] == [path for path, _ in original.named_parameters()]
    for a, b in zip(original.parameters(), copy.parameters()):
        assert a is not b and (a.data == b.data).all() and not np.shares_memory(a.data, b.data)
    copy.first.weight.data[:] = 7
    assert not (original.first.weight.data == 7).any()


def test_copy_of_a_list_has_values_of_its_own(rng):
    original = ModuleList([Linear(2, 2, rng=rng)])
    assert original.copy()[0].weight is not original[0].weight


def test_copy_keeps_tied_weights_tied():
    holder = Module()
    holder.a = holder.b = Parameter(np.ones(2))
    copy = holder.copy()
    assert copy.a is copy.b


def test_copy_of_a_frozen_module_is_frozen(rng):
    assert not any(p.requires_grad for p in Linear(2, 2, rng=rng).requires_grad_(False).copy().parameters())


def test_zero_grad_reaches_what_a_wrapper_brought_along(net):
    net.replace("layers.0.first", Doubled(net.get("layers.0.first")))
    extra = net.get("layers.0.first").extra
    extra.grad = np.ones(1, np.float32)
    net.zero_grad()
    assert extra.grad is None


# ---- parameters and printing ------------------------------------------------------------------------------------


def test_initial_values_are_a_function_of_the_seed_with_the_asked_spread():
    a, b, c = (initial(np.random.default_rng(seed), (200, 300), 0.02).data for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any() and a.dtype == np.float32
    assert a.std() == pytest.approx(0.02, rel=0.02) and abs(a.mean()) < 0.0005
    assert (initial(None, (2, 3), 0.02).data == 0).all()


def test_printing_shows_the_tree_with_sizes(net):
    text = repr(net)
    assert "(layers): ModuleList(" in text and "(first): Linear(3 -> 4)" in text and "(drop): Dropout(0.5)" in text
