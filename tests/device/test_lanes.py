"""Who gets a worker, and who gives one up: no process needed."""

from __future__ import annotations

from collections import deque

import pytest

from fedq.device import lanes
from fedq.device.lanes import Crew
from fedq.device.pool import Held


class Worker:
    """Counts those that live."""

    alive = 0
    idle_s, spoke = 0.0, False

    def __init__(self, *_: object) -> None:
        self.held = Held()
        Worker.alive += 1

    def close(self) -> None:
        Worker.alive -= 1


class Owner:
    def __init__(self, *calls: str) -> None:
        self.queue, self.lanes, self.cut = deque(calls), [], []


@pytest.fixture(autouse=True)
def none():
    Worker.alive = 0


def busy(crew: Crew, owner: Owner):
    lane = crew.free(owner, deadline_s=1)
    if lane is not None:
        lane.calls = [owner.queue.popleft()]
    return lane


def test_one_requester_alone_may_have_all_workers_if_a_number_was_said_else_one():
    for limit, count in ((3, 3), (None, 1)):
        crew, alice = Crew(Worker, limit), Owner(*"abcdefgh")
        assert len([lane for lane in (busy(crew, alice) for _ in range(5)) if lane]) == count


def test_who_has_several_gives_one_up_at_once_to_one_who_has_none():
    crew, alice, bob = Crew(Worker, 2), Owner(*"aaaa"), Owner("b")
    first, _ = busy(crew, alice), busy(crew, alice)
    assert busy(crew, bob) is None
    first.calls = []
    crew.give_way()
    assert busy(crew, alice) is None
    assert busy(crew, bob) is not None
    assert (len(alice.lanes), len(bob.lanes), Worker.alive) == (1, 1, 2)


def test_who_has_the_only_one_keeps_it_for_a_turn(monkeypatch):
    crew, alice, bob = Crew(Worker, 1), Owner(*"aaaa"), Owner("b")
    lane = busy(crew, alice)
    assert busy(crew, bob) is None
    lane.calls = []
    crew.give_way()
    assert busy(crew, alice) is lane
    lane.calls = []
    monkeypatch.setattr(lanes, "TURN_S", 0.0)
    crew.give_way()
    assert busy(crew, alice) is None
    assert busy(crew, bob) is not None
    assert Worker.alive == 1


def test_those_who_wait_get_theirs_in_the_order_in_which_they_asked(monkeypatch):
    monkeypatch.setattr(lanes, "TURN_S", 0.0)
    crew, alice, bob, carol = Crew(Worker, 1), Owner(*"aa"), Owner("b"), Owner("c")
    lane = busy(crew, alice)
    assert busy(crew, bob) is busy(crew, carol) is None
    lane.calls = []
    crew.give_way()
    assert busy(crew, carol) is None
    assert busy(crew, bob) is not None


def test_an_idle_worker_of_one_makes_room_for_another():
    crew, alice, bob = Crew(Worker, 1), Owner("a"), Owner("b")
    busy(crew, alice).calls = []
    assert busy(crew, bob) is not None
    assert (alice.lanes, Worker.alive) == ([], 1)


def test_nobody_is_called_ready_who_can_not_start():
    crew, alice, bob = Crew(Worker, 1), Owner(*"aa"), Owner("b")
    busy(crew, alice)
    assert not crew.may_start(alice)
    assert busy(crew, bob) is None
    assert not crew.may_start(bob)
