"""Random numbers in a plan: told by the seed of the run, the same again, wherever it runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

import fedq as fq
from fedq.errors import CannotRecord
from fedq.plan import replay
from fedq.plan.plan import func2plan
from fedq.plan.verify import verify

DRAWS = {
    "rand": lambda x: torch.rand(x.shape[0], 3),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn": lambda x: torch.randn(x.shape),
    "randn_like": lambda x: torch.randn_like(x) * x,
    "randint": lambda x: torch.randint(0, 1000, (x.shape[0], 9)),
    "randint_like": lambda x: torch.randint_like(x, 1000),
    "randperm": lambda x: torch.randperm(50)[: x.shape[0]],
    "a shuffle": lambda x: x[torch.randperm(x.shape[0])],
    "multinomial": lambda x: torch.multinomial(x.abs().repeat(1, 4) + 0.1, 6),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "normal": lambda x: torch.normal(x, 1.0),
    "normal_": lambda x: torch.zeros(3, 4).normal_(),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 1),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "poisson": lambda x: torch.poisson(x.abs() * 100),
    "dropout": lambda x: F.dropout(x, 0.5, True),
    "a layer": nn.Dropout(0.5).train(),
    "dropout of channels": lambda x: F.dropout2d(x[:, :, None, None], 0.5, True),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "gumbel": lambda x: F.gumbel_softmax(x, hard=False),
    "initialised": lambda x: nn.init.xavier_uniform_(torch.empty(3, 4)),
    "a distribution": lambda x: Normal(x, 1.0, validate_args=False).rsample(),
    "categories": lambda x: Categorical(logits=x.repeat(1, 9), validate_args=False).sample(),
}


def run(plan, x, seed):
    return replay.run(replay.compile(verify(plan.graph)), [x], plan.state_tensors(), seed=seed)[0]


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_tells_what_is_drawn_as_it_does_in_eager(name):
    plan = func2plan([(-1, 4)])(DRAWS[name])
    assert verify(plan.graph).random
    x = torch.linspace(-1, 1, 28).view(7, 4)
    first, other = run(plan, x, 7), run(plan, x, 8)
    torch.manual_seed(7)
    assert torch.equal(first, run(plan, x, 7)) and not torch.equal(first, other)
    torch.manual_seed(7)
    assert torch.equal(first, DRAWS[name](x))


def test_the_number_of_threads_changes_nothing():
    plan = func2plan([(-1, 4)])(lambda x: F.dropout(x, 0.5, True) + torch.randn_like(x))
    x, threads = torch.ones(100_000, 4), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(plan, x, 3)
        torch.set_num_threads(4)
        assert torch.equal(one, run(plan, x, 3))
    finally:
        torch.set_num_threads(threads)


def test_two_draws_of_one_plan_differ_also_when_one_is_not_used():
    both = func2plan([(-1, 4)])(lambda x: (torch.rand_like(x), torch.rand_like(x)))
    second = func2plan([(-1, 4)])(lambda x: [torch.rand_like(x), torch.rand_like(x)][1])
    x = torch.ones(3, 4)
    a, b = replay.run(replay.compile(verify(both.graph)), [x], [], seed=1)
    assert not torch.equal(a, b) and torch.equal(run(second, x, 1), b)


def test_each_action_of_a_message_draws_anew_and_a_second_replay_gives_the_same(tmp_path):
    plan = func2plan([(-1, 4)])(lambda x: torch.rand_like(x))
    x = torch.ones(3, 4)
    worker = fq.VirtualWorker("device_1", {"x": x}, root=tmp_path)
    pointer, found = plan.send(worker), worker.find("x")
    with worker.batch():
        drawn = [pointer(found), pointer(found)]
    first, second = (p.get(timeout_s=60) for p in drawn)
    assert not torch.equal(first, second)
    worker.client.close()


@pytest.mark.parametrize("seeding", [torch.manual_seed, torch.random.manual_seed, torch.default_generator.manual_seed])
def test_a_seed_set_inside_is_refused_with_the_line_and_what_to_do(seeding):
    def seeded(x):
        seeding(3)
        return torch.rand_like(x)

    with pytest.raises(CannotRecord, match=r"(?s)seeds torch.*test_random.py:\d+") as caught:
        func2plan([(3,)])(seeded)
    assert "give the run a seed" in caught.value.hint


def test_a_distribution_that_looks_at_its_parameters_is_refused_with_what_to_write():
    with pytest.raises(CannotRecord, match="distributions") as caught:
        func2plan([(3,)])(lambda x: Normal(x, 1.0, validate_args=True).sample())
    assert "validate_args=False" in caught.value.hint


def test_a_draw_after_a_seed_that_is_put_back_is_refused_and_a_seed_that_nothing_draws_from_is_not():
    def seeds_inside(x):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return x + torch.rand_like(x)

    with pytest.raises(CannotRecord, match=r"it seeds torch[\s\S]*test_random.py:\d+"):
        fq.func2plan()(seeds_inside).build(torch.ones(2))

    def seeds_and_draws_later(x):
        with torch.random.fork_rng():
            torch.manual_seed(3)
        return x + torch.rand_like(x)

    assert fq.func2plan()(seeds_and_draws_later).build(torch.ones(2)).is_built


def test_constants_are_compared_by_their_bits():
    plan = fq.func2plan()(lambda x: x * torch.tensor([float("nan"), -0.0, 1.0])).build(torch.ones(3))
    got = plan.compiled()(torch.ones(3))
    assert got.isnan().tolist() == [True, False, False] and got[1].signbit()
