"""Calls that wait: readiness, cycles, patience."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedq.device.calls import PATIENCE_S, Call, Waiting
from fedq.queue.message import Ref


def call(results, refs, *, plan="p", received=0.0, expires=1e9):
    made = Call("alice", "m", 0, plan, tuple(map(Ref, refs)), tuple(results), 1, received, expires)
    made.missing = set(refs)
    return made


def test_a_call_is_ready_when_its_last_argument_arrives():
    waiting, wanted = Waiting(), call(["c"], ["a", "b"])
    assert waiting.add(wanted)
    assert waiting.arrived("a") == []
    assert waiting.arrived("b") == [wanted]
    assert len(waiting) == 0


def test_a_call_that_needs_its_own_result_is_told_at_once():
    assert not Waiting().add(call(["a"], ["a"]))


def test_a_circle_of_calls_is_told_when_it_closes():
    waiting = Waiting()
    assert waiting.add(call(["b"], ["a"]))
    assert waiting.add(call(["c"], ["b"]))
    assert not waiting.add(call(["a"], ["c"]))


def test_an_argument_nobody_promised_is_waited_for_an_hour():
    waiting, orphan = Waiting(), call(["b"], ["a"])
    waiting.add(orphan)
    assert not waiting.hopeless(orphan, PATIENCE_S - 1)
    assert waiting.hopeless(orphan, PATIENCE_S + 1)


def test_an_argument_that_a_waiting_call_promises_is_waited_for_until_expiry():
    waiting, last = Waiting(), call(["c"], ["b"], expires=1e6)
    waiting.add(call(["b"], ["a"], expires=1e6))
    waiting.add(last)
    assert not waiting.hopeless(last, PATIENCE_S + 1)
    assert waiting.hopeless(last, 1e6 + 1)


def test_calls_taken_out_are_not_ready_later():
    waiting, gone = Waiting(), call(["c"], ["a"])
    waiting.add(gone)
    assert waiting.take_out(lambda c: c is gone) == [gone]
    assert waiting.arrived("a") == []


@given(st.permutations(range(8)))
def test_a_chain_is_released_once_each_whatever_the_order_of_arrival(order):
    """c0 <- x, c1 <- r0, c2 <- r1 ...: entered in any order, all run, each after its argument."""
    calls = [call([f"r{i}"], [f"r{i - 1}" if i else "x"]) for i in range(8)]
    waiting, there, done = Waiting(), set(), []

    def run(ready):
        done.append(ready)
        there.add(ready.results[0])
        for following in waiting.arrived(ready.results[0]):
            run(following)

    for i in order:
        calls[i].missing = {r for r in calls[i].missing if r not in there}
        if calls[i].missing:
            assert waiting.add(calls[i])
        else:
            run(calls[i])
    for ready in waiting.arrived("x"):
        run(ready)
    assert done == calls
