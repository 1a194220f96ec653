"""Calls that wait for their arguments: which are ready, which can never be. Pure; no IO, no clock.

A call is ready when every argument has a content or will have one before it in the queue of
the same worker.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fedq.plan.fold import Loop
from fedq.plan.graph import About, Type
from fedq.plan.spec import argument
from fedq.queue.message import OwnerRef, Ref, RunArg

PATIENCE_S = 3600.0
"""How long an argument is waited for that no known message promises."""


GATE_ENDS = 5
"""A call is held when the gate ended so often while it ran."""
SUSPECT = 2
"""After so many ends of the gate a call runs while no other such call of the device does: only one is to blame."""


@dataclass(slots=True)
class Ends:
    """What ended while a call ran.

    Attributes:
        workers: how often its worker ended, or was ended past its deadline.
        gates: how often the gate ended; `GATE_ENDS` of them hold the call.
        time: when that was last, seconds since 1970.
        kind, why: of the last worker's end: a word of `kinds.KINDS`, and for the owner.
    """

    workers: int = 0
    gates: int = 0
    time: float = 0.0
    kind: str = ""
    why: str = ""


@dataclass(slots=True)
class Call:
    """One ``run`` or ``fold`` of a message.

    Attributes:
        sender, message, action: whose, and the number of the action in the message.
        plan, args, results: as in the message; of a fold, carry and data come first in ``args``.
        seed: the message's.
        received, expires: seconds since 1970, device's clock and sender's word.
        ends: what ended while it ran, and how often.
        words: names that arguments were given by, which is not allowed.
        missing: ids that have no content yet and are not in the worker's queue.
        loop: of a fold, how its arguments are gone through.
        refs: ids of the requester's own values among the arguments; owners: of the owner's.
        sources: owner's values, by id, that its arguments come from.
        types: of its results, as far as declared types tell.
        word: what the owner said to a question that needs it.
    """

    sender: str
    message: str
    action: int
    plan: str
    args: tuple[RunArg, ...]
    results: tuple[str, ...]
    seed: int
    received: float
    expires: float
    ends: Ends = field(default_factory=Ends)
    missing: set[str] = field(default_factory=set)
    loop: Loop | None = None
    words: tuple[str, ...] = ()
    sources: frozenset[str] = frozenset()
    types: tuple[Type | None, ...] = ()
    word: str = ""
    refs: tuple[str, ...] = field(init=False)
    owners: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.refs = tuple([a.id for a in self.args if isinstance(a, Ref)])
        self.owners = tuple([a.id for a in self.args if isinstance(a, OwnerRef)])

    @property
    def key(self) -> tuple[str, int]:
        """Which call of its sender's it is."""
        return self.message, self.action

    def argument(self, id_: str, about: About, *, digits: int) -> str:
        """What an argument is called for people: its name or path in the plan, where that is known, and its id."""
        at = next(
            (n for n, arg in enumerate(self.args) if isinstance(arg, Ref | OwnerRef) and arg.id == id_),
            len(about.params),
        )
        path = argument(about, at)
        return f"argument {path} ({id_[:digits]})" if path else f"argument {id_[:digits]}"

    @property
    def name(self) -> str:
        """The same, as it stands in the record of what happened."""
        return f"{self.message}:{self.action}"

    @property
    def held(self) -> bool:
        """Whether it runs only when the device's owner says so."""
        return self.ends.gates >= GATE_ENDS

    @property
    def suspect(self) -> bool:
        """Whether the gate may have ended because of it."""
        return self.ends.gates >= SUSPECT

    @property
    def hold(self) -> str:
        """What it misses while it is held: its owner's word, as if that were a value."""
        return f"word/{self.message}/{self.action}"


class Waiting:
    """Calls of one requester that wait, by what they wait for and by how long."""

    def __init__(self) -> None:
        self._by_missing: defaultdict[str, list[Call]] = defaultdict(list)
        self._makers: dict[str, Call] = {}
        self._calls: dict[int, Call] = {}
        self._due: list[tuple[float, int, Call]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._calls)

    def calls(self) -> Iterable[Call]:
        """In the order in which they came."""
        return self._calls.values()

    def add(self, call: Call) -> bool:
        """Wait for ``call.missing``; False if it would wait for itself, directly or around."""
        if self._reaches(call.missing, set(call.results)):
            return False
        self._calls[id(call)] = call
        for result in call.results:
            self._makers[result] = call
        for id_ in call.missing:
            self._by_missing[id_].append(call)
        self._look_at(call, min(call.expires, call.received + PATIENCE_S))
        return True

    def _look_at(self, call: Call, time: float) -> None:
        heapq.heappush(self._due, (time, next(self._count), call))

    def _reaches(self, missing: Iterable[str], targets: set[str]) -> bool:
        seen: set[str] = set()
        stack = list(missing)
        while stack:
            id_ = stack.pop()
            if id_ in targets:
                return True
            if id_ not in seen and id_ in self._makers:
                stack += self._makers[id_].missing
            seen.add(id_)
        return False

    def arrived(self, id_: str) -> list[Call]:
        """Calls that miss nothing more, now that this id has a content or a place in the queue."""
        ready: list[Call] = []
        for call in self._by_missing.pop(id_, ()):
            call.missing.discard(id_)
            if not call.missing:
                self._forget(call)
                ready.append(call)
        return ready

    def _forget(self, call: Call) -> None:
        self._calls.pop(id(call), None)
        for result in call.results:
            self._makers.pop(result, None)

    def maker(self, id_: str) -> Call | None:
        """The waiting call that promises this id."""
        return self._makers.get(id_)

    def makes(self, id_: str) -> bool:
        """Whether a waiting call promises this id."""
        return id_ in self._makers

    def take_out(self, wanted: Callable[[Call], bool]) -> list[Call]:
        """Remove and return the calls for which this holds."""
        return self._remove([c for c in self._calls.values() if wanted(c)])

    def _remove(self, calls: list[Call]) -> list[Call]:
        gone = {id(c) for c in calls}
        for call in calls:
            self._forget(call)
        for id_ in {i for c in calls for i in c.missing}:
            left = [c for c in self._by_missing.pop(id_) if id(c) not in gone]
            if left:
                self._by_missing[id_] = left
        return calls

    def late(self, now: float) -> bool:
        """Whether it is time to look for calls that waited too long."""
        while self._due and id(self._due[0][2]) not in self._calls:
            heapq.heappop(self._due)
        return bool(self._due) and self._due[0][0] < now

    def take_late(self, now: float) -> list[Call]:
        """Remove and return the calls for which nothing will come."""
        late: list[Call] = []
        while self.late(now):
            _, _, call = heapq.heappop(self._due)
            if self.hopeless(call, now):
                late.append(call)
            else:
                self._look_at(call, call.expires)
        return self._remove(late)

    def set_back(self, now: float) -> None:
        """The clock was set back: patience begins anew, it would last for years."""
        for call in self._calls.values():
            call.received = min(call.received, now)
            self._look_at(call, min(call.expires, call.received + PATIENCE_S))

    def hopeless(self, call: Call, now: float) -> bool:
        """Whether nothing will come: expired, or its missing ids stayed unpromised for an hour.

        One that is held waits for a word, as long as it has a meaning.
        """
        if call.held:
            return now > call.expires
        if now <= min(call.expires, call.received + PATIENCE_S):
            return False
        return now > call.expires or not all(id_ in self._makers for id_ in call.missing)
