"""Calls that wait for their arguments: which are ready, which can never be. Pure; no IO, no clock.

A call is ready when every argument has a content or will have one before it in the queue of
the same worker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from fedq.queue.message import Ref, RunArg

PATIENCE_S = 3600.0
"""How long an argument is waited for that no known message promises."""


@dataclass(slots=True)
class Call:
    """One ``run`` of a message.

    Attributes:
        sender, message, action: whose, and the number of the action in the message.
        plan, args, results: as in the message.
        seed: the message's.
        received, expires: seconds since 1970, device's clock and sender's word.
        attempts: how often the message was started before.
        missing: ids that have no content yet and are not in the worker's queue.
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
    attempts: int = 0
    missing: set[str] = field(default_factory=set)

    @property
    def refs(self) -> Iterator[str]:
        return (a.id for a in self.args if isinstance(a, Ref))


class Waiting:
    """Calls of one requester that wait, by what they wait for."""

    def __init__(self) -> None:
        self._by_missing: defaultdict[str, list[Call]] = defaultdict(list)
        self._makers: dict[str, Call] = {}

    def __len__(self) -> int:
        return len(self.calls())

    def calls(self) -> list[Call]:
        return list({id(c): c for c in self._makers.values()}.values())

    def add(self, call: Call) -> bool:
        """Wait for ``call.missing``; False if it would wait for itself, directly or around."""
        if self._reaches(call.missing, set(call.results)):
            return False
        for result in call.results:
            self._makers[result] = call
        for id_ in call.missing:
            self._by_missing[id_].append(call)
        return True

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
        ready = []
        for call in self._by_missing.pop(id_, ()):
            call.missing.discard(id_)
            if not call.missing:
                self._forget(call)
                ready.append(call)
        return ready

    def _forget(self, call: Call) -> None:
        for result in call.results:
            self._makers.pop(result, None)

    def makes(self, id_: str) -> bool:
        """Whether a waiting call promises this id."""
        return id_ in self._makers

    def take_out(self, wanted: Callable[[Call], bool]) -> list[Call]:
        """Remove and return the calls for which this holds."""
        out = [c for c in self.calls() if wanted(c)]
        for call in out:
            self._forget(call)
            for id_ in call.missing:
                self._by_missing[id_] = [c for c in self._by_missing[id_] if c is not call]
        return out

    def hopeless(self, call: Call, now: float) -> bool:
        """Whether nothing will come: expired, or its missing ids stayed unpromised for an hour."""
        if now <= min(call.expires, call.received + PATIENCE_S):
            return False
        return now > call.expires or not all(id_ in self._makers for id_ in call.missing)
