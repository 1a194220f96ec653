"""A build leaves modules, closures, lists, dicts and globals as they were; what is remembered may not matter."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedq.errors import CannotRecord
from fedq.plan.plan import Plan, func2plan

COUNT = 0
LOG: list = []
CACHE: dict = {}


class Positions(nn.Module):
    """Keeps a tensor made of a size until the size changes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.cached = None

    def forward(self, x):
        if self.cached is None or self.cached.shape[0] != x.shape[0]:
            self.cached = torch.arange(x.shape[0]).float()[:, None]
        return x * self.scale + self.cached


class ByLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.masks = {}

    def forward(self, x):
        n = x.shape[1]
        if n not in self.masks:
            self.masks[n] = torch.ones(n, n).tril()
        return x @ self.masks[n]


class Hooked(nn.Module):
    """Features caught by a hook, in a list."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.feats = []
        self.fc.register_forward_hook(lambda module, given, out: self.feats.append(out))

    def forward(self, x):
        self.feats.clear()
        self.fc(x)
        return self.feats[-1] * 2


class Leaves(nn.Module):
    """Leaves something everywhere one level deep, and changes its mode."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4).eval()
        self.last, self.rows, self.by_name, self.seen = None, [1], {"a": 1}, {1}
        self.recent, self.order = deque([1]), OrderedDict(a=1)

    def forward(self, x):
        self.train()
        self.last = F.dropout(self.fc(x), 0.0)
        self.rows.append(x)
        self.by_name["b"] = x
        self.by_name["a"] = x
        self.seen.add(x.shape[0])
        self.recent.append(x)
        self.order["b"] = self.fc.latest = x
        self.order.move_to_end("a")
        return self.last * 1


class ClassLevel:
    shared: ClassVar[dict] = {}
    latest = None

    def __call__(self, x):
        ClassLevel.latest = self.shared["x"] = x * 2
        return ClassLevel.latest + 1


class Slotted:
    __slots__ = ("last",)

    def __call__(self, x):
        self.last = x * 2
        return self.last


@functools.lru_cache
def positions(n):
    return torch.arange(n) * 1.0


def closure():
    calls, last = [], None

    def f(x):
        nonlocal last
        last = x.sum()
        calls.append(last)
        return x - last

    return f


def with_globals(x):
    global COUNT, FRESH
    COUNT = FRESH = x.shape[0]
    LOG.append(x)
    CACHE["x"] = x
    return x * 2


def with_default(x, kept=[]):  # noqa: B006
    kept.append(x)
    return kept[-1] * 2


def with_lru_cache(x):
    return x + positions(x.shape[-1])


def takes_a_gradient(x):
    CACHE["w"] = x.detach().requires_grad_()
    return torch.autograd.grad((CACHE["w"] ** 2).sum(), CACHE["w"])[0]


def fails(x):
    LOG.append(x)
    CACHE[1] = x
    if x.sum() > 0:
        return x
    return -x


def method_of(made):
    return made.__call__


KEEPING = {
    "a cached tensor": Positions,
    "a dict of masks": ByLength,
    "a hook's list": Hooked,
    "attributes and containers": Leaves,
    "a class": ClassLevel,
    "a bound method": lambda: method_of(ClassLevel()),
    "a partial": lambda: functools.partial(ClassLevel.__call__, ClassLevel()),
    "slots": Slotted,
    "a closure": closure,
    "globals": lambda: with_globals,
    "a default": lambda: with_default,
    "lru_cache": lambda: with_lru_cache,
    "under a gradient": lambda: takes_a_gradient,
}


def state_of(value, depth=5):
    """All it holds, as far as a build could reach it, by identity."""
    if depth == 0:
        return id(value)
    if isinstance(value, functools.partial):
        return state_of((value.func, value.args), depth)
    if hasattr(value, "__func__"):
        return state_of((value.__self__, value.__func__), depth)
    if isinstance(value, dict):
        return [(k, state_of(v, depth - 1)) for k, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [state_of(v, depth - 1) for v in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    if hasattr(value, "__closure__"):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        return state_of([*cells, value.__defaults__ or ()], depth - 1)
    if isinstance(value, Slotted):
        return hasattr(value, "last")
    own = getattr(value, "__dict__", None)
    return id(value) if own is None else (id(value), state_of(dict(own), depth - 1))


def everything(made):
    named = (COUNT, "FRESH" in globals(), list(LOG), dict(CACHE), ClassLevel.shared.copy(), ClassLevel.latest)
    return state_of(made), named, positions.cache_info().currsize


@pytest.mark.parametrize("name", KEEPING)
def test_a_build_leaves_all_as_it_was_and_the_plan_is_right(name):
    made = KEEPING[name]()
    before = everything(made)
    plan = func2plan()(made).build(torch.randn(3, 4))
    assert everything(made) == before
    for rows in (3, 6, 2):
        x = torch.randn(rows, 4)
        got = plan.compiled()(x)
        assert torch.equal(got, made(x))
        LOG.clear()
        CACHE.clear()
        positions.cache_clear()
        globals().pop("FRESH", None)
        ClassLevel.shared.clear()
        ClassLevel.latest = None


def test_a_build_that_fails_leaves_all_as_it_was():
    before = everything(fails)
    with pytest.raises(CannotRecord):
        func2plan()(fails).build(torch.randn(3, 4))
    assert everything(fails) == before


def test_a_class_plan_and_its_submodules_are_left_as_they_were():
    class Net(Plan):
        def __init__(self):
            super().__init__()
            self.inner = Leaves()
            self.outs = []

        def forward(self, x):
            self.outs.append(self.inner(x))
            return self.outs[-1]

    net = Net()
    before = state_of(net.inner), list(net.outs)
    net.build(torch.randn(3, 4))
    assert (state_of(net.inner), net.outs) == before
    assert torch.equal(net.compiled()(torch.ones(2, 4)), net.inner.fc(torch.ones(2, 4)))


def test_what_was_cached_before_the_build_stays_and_does_not_get_into_it():
    positions.cache_clear()
    positions(4)
    plan = func2plan([(-1, 4)])(with_lru_cache)
    assert torch.equal(plan.compiled()(torch.zeros(2, 4))[0], torch.arange(4.0))


# -- what the next call would give ----------------------------------------------------------------


class First(nn.Module):
    """Divides by the number of rows of its first batch."""

    def __init__(self):
        super().__init__()
        self.n = None

    def forward(self, x):
        if self.n is None:
            self.n = x.shape[0]
        return x / self.n


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.mean(0)
        return x - self.mean


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x):
        self.rows.append(x * 2)
        return self.rows


def counts(x):
    global COUNT
    COUNT += 1
    return x * COUNT


def sums_up(x):
    LOG.append(x)
    return sum(LOG)


def keeps_its_noise(x):
    if "noise" not in CACHE:
        CACHE["noise"] = torch.randn(4)
    return x + CACHE["noise"]


REMEMBERING = {
    "First.n": First,
    "Mean.mean": Mean,
    "Grows.rows": Grows,
    "COUNT": lambda: counts,
    "LOG": lambda: sums_up,
    "CACHE": lambda: keeps_its_noise,
}


@pytest.mark.parametrize("what", REMEMBERING)
def test_what_changes_the_next_result_is_refused_with_its_name_and_line(what):
    made = REMEMBERING[what]()
    before = everything(made)
    with pytest.raises(CannotRecord, match=r"changes what the next call gives") as caught:
        func2plan()(made).build(torch.randn(3, 4))
    assert f"({what})" in str(caught.value) and "test_untouched.py:" in str(caught.value)
    assert "register_buffer" in caught.value.hint
    assert everything(made) == before


def test_a_count_that_no_result_depends_on_is_fine():
    def counts_along(x):
        global COUNT
        COUNT += 1
        return x * 2

    before = COUNT
    plan = func2plan([(-1,)])(counts_along)
    assert before == COUNT and torch.equal(plan.compiled()(torch.ones(2)), torch.full((2,), 2.0))


def test_fresh_noise_beside_a_cache_is_drawn_in_each_call():
    def noisy(x):
        CACHE["noise"] = torch.randn(4)
        return x + CACHE["noise"] + torch.randn(4)

    plan = func2plan([(-1, 4)])(noisy)
    x = torch.zeros(1, 4)
    assert not torch.equal(plan.compiled()(x), plan.compiled()(x))


# -- lists and dicts that were given --------------------------------------------------------------


def pops(batch):
    y = batch.pop("y")  # here
    return batch["x"] + y


def puts(batch):
    batch["x"] = batch["x"] * 2  # here
    return batch["x"]


def appends_to_an_inner_list(batch):
    rows = [batch["x"]]
    batch["rows"].append(rows[0])  # here
    return rows[0] * 2


@pytest.mark.parametrize("function", [pops, puts, appends_to_an_inner_list])
def test_a_list_or_dict_that_was_given_may_not_be_changed(function):
    batch = {"x": torch.ones(3), "y": torch.ones(3), "rows": [torch.ones(3)]}
    with pytest.raises(CannotRecord, match="changes a list or dict that it was given") as caught:
        func2plan()(function).build(batch)
    marked = next(
        n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1)
        if line.endswith("# here") and n > function.__code__.co_firstlineno
    )  # fmt: skip
    assert f"test_untouched.py:{marked}" in str(caught.value)
    assert "dict(batch)" in caught.value.hint
    copied = func2plan()(lambda batch: pops(dict(batch))).build(batch)
    assert torch.equal(copied.compiled()(batch), torch.full((3,), 2.0))


def test_a_check_of_what_was_built_leaves_all_as_it_was_too():
    hooked, example = Hooked(), torch.randn(3, 4, requires_grad=True)
    before = everything(hooked)
    func2plan()(hooked).build(example, check=True)
    assert everything(hooked) == before and example.grad is None
