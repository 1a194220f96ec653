"""Who gets a worker: lanes, shared fairly among the requesters of all devices of a gate.

A worker serves one requester and is never handed on: what one left in its memory is not for
another. So taking a lane from one and giving it to the next ends a process and starts one; that
is done for whoever has none, never more often than a turn lasts.

Who waits for a first lane longer than a turn is given one, whatever others run: it is taken from who
has several, in the middle of a call if need be, which is charged nothing and begins again later;
where each has one, there is one more, up to `OVER` times the limit. A first lane is never cut: else
two long calls could end each other for ever.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedq.device.batch import malformed
from fedq.device.calls import Call
from fedq.device.pool import IDLE_S, Answer, Died, Worker

if TYPE_CHECKING:
    from fedq.device.batch import Batch
    from fedq.device.peer import Peer
    from fedq.errors import OtherTorch

TURN_S = 5.0
"""How long a requester keeps its only lane while others have none."""
WAIT_S = 5.0
"""How long a requester without a lane waits before others' are cut for it, or it has one beyond the limit."""
OVER = 4
"""How many times the limit there may be lanes, for those who waited for a turn: a worker takes 0.3 GB."""
FIRST_CALLS = 32
"""Calls of a batch while nothing is known of how long they take."""
BATCH_S = 0.25
"""How long a batch should take: results come at its end, and a lane changes hands between batches."""


@dataclass(eq=False)
class Lane:
    """A worker, and the calls it does now.

    Attributes:
        sources: the owner's values, of those that are not open, that its worker may see.
        deadline_s: how long one of its calls may take.
        row: the number under which the journal has these calls as started.
        pace_s: how long a call of its last batch took; None before the first.
    """

    worker: Worker
    since: float
    deadline_s: float
    sources: frozenset[str] = frozenset()
    calls: list[Call] = field(default_factory=list)
    row: int = 0
    start: Batch | None = None
    dropped: list[str] = field(default_factory=list)
    pace_s: float | None = None

    def answer(self) -> tuple[Answer | Died, list[Call]] | None:
        """What its worker says, if it says something, and to which calls; it has none then."""
        if not self.calls or (said := self._said()) is None:
            return None
        calls, self.calls = self.calls, []
        if isinstance(said, Answer):
            if (wrong := malformed(said, calls)) is not None:
                return Died(*wrong), calls
            self.pace_s = said.took_s / len(calls)
        return said, calls

    def _said(self) -> Answer | Died | None:
        """Whatever goes wrong while an untrusted process is heard is its own end, and no other lane's."""
        try:
            return self.worker.poll()
        except Exception as error:
            return Died(0, f"the worker could not be heard ({type(error).__name__})")

    @property
    def most_calls(self) -> int:
        """How many calls its next batch should have."""
        if self.pace_s is None:
            return FIRST_CALLS
        return max(1, int(BATCH_S / self.pace_s)) if self.pace_s > 0 else 1 << 30


def _open(owner: Peer) -> list[Lane]:
    """A requester's lanes for open values: what runs on others takes none of their room."""
    return [lane for lane in owner.lanes if not lane.sources]


class Crew:
    """All lanes of a gate.

    Args:
        make: starts a worker.
        limit: workers at a time, over all requesters; None: as many as there are cores, at least 4.
            If it is given, one requester alone may have them all, else one.
    """

    def __init__(self, make: Callable[..., Worker], limit: int | None = None) -> None:
        self._make = make
        self.closing = False
        """Whether nothing more is to be started."""
        self.unfit: OtherTorch | None = None
        """Why nothing is started for now: another torch is installed than the ops of plans were judged for."""
        self.resize(limit)
        self._fresh: tuple[float, Worker] | None = None
        self._owners: dict[Peer, None] = {}
        self._wanting: dict[Peer, float] = {}
        """Who has no lane and asked for one, since when."""

    def resize(self, limit: int | None) -> None:
        """Change the limit; lanes that are too many now end as they become idle."""
        self.width = limit or 1
        self._limit = limit or max(4, os.cpu_count() or 1)

    def free(self, owner: Peer, *, deadline_s: float) -> Lane | None:
        """A lane of this requester that has nothing to do, a new one if it may have one more, or None."""
        if self.closing or self.unfit:
            return None
        lanes = _open(owner)
        for lane in [lane for lane in lanes if not lane.calls]:
            if not lane.worker.spoke:
                return lane
            self.close(owner, lane)  # nobody asked it, or it ended
            lanes.remove(lane)
        if len(lanes) >= self.width:
            return None
        if not lanes:
            self._wanting.setdefault(owner, time.monotonic())
        if not self._has_room(owner):
            return None
        self._wanting.pop(owner, None)
        return self._begin(owner, frozenset(), deadline_s)

    def private(self, owner: Peer, sources: frozenset[str], *, deadline_s: float) -> Lane | None:
        """The one lane of this requester for values that are not open; its worker saw no others."""
        if self.closing or self.unfit:
            return None
        for lane in [lane for lane in owner.lanes if lane.sources]:
            if lane.calls:
                return None
            if lane.sources == sources and not lane.worker.spoke:
                return lane
            self.close(owner, lane)
        return self._begin(owner, sources, deadline_s)

    def stand_by(self) -> None:
        """Where private calls are done, keep one started worker that was given nothing, for the next set of sources."""
        lanes = [lane for owner in self._owners for lane in owner.lanes if lane.sources]
        if lanes and self._fresh is None and not self.busy and not self.unfit:
            self._fresh = lanes[0].deadline_s, self._make(lanes[0].deadline_s)
        elif not lanes:
            self.end_fresh()

    def end_fresh(self) -> None:
        """Nobody needs the worker that stands by."""
        if self._fresh is not None:
            self._fresh[1].close()
            self._fresh = None

    def _worker(self, sources: frozenset[str], deadline_s: float) -> Worker:
        if not sources or self._fresh is None or self._fresh[0] != deadline_s:
            return self._make(deadline_s)
        (_, worker), self._fresh = self._fresh, None
        return worker

    def _begin(self, owner: Peer, sources: frozenset[str], deadline_s: float) -> Lane:
        lane = Lane(self._worker(sources, deadline_s), time.monotonic(), deadline_s, sources)
        owner.lanes.append(lane)
        self._owners[owner] = None
        return lane

    @property
    def _spare(self) -> int:
        return self._limit - sum(len(_open(o)) for o in self._owners)

    def may_start(self, owner: Peer) -> bool:
        """Whether a batch of this requester could be started at once."""
        if self.closing or self.unfit:
            return False
        lanes = _open(owner)
        if any(not lane.calls for lane in lanes):
            return True
        new = not lanes and owner not in self._wanting
        return len(lanes) < self.width and (self._spare > 0 or new or self._is_due(owner))

    def _has_room(self, owner: Peer) -> bool:
        """Whether one more worker may be started: those who have none come first, in their order."""
        self._wanting = {o: since for o, since in self._wanting.items() if o.queue or o is owner}
        line = list(self._wanting)
        if self._spare > (line.index(owner) if owner in line else len(line)):
            return True
        return owner in line and (self._end_an_idle_one() or (self._is_due(owner) and not self._several()))

    def _is_due(self, owner: Peer) -> bool:
        """Whether it waited for a turn, and something can be done about it."""
        waited_s = time.monotonic() - self._wanting.get(owner, math.inf)
        return waited_s > WAIT_S and (self._spare > -self._limit * (OVER - 1) or bool(self._several()))

    def _several(self) -> list[tuple[Peer, Lane]]:
        """Lanes beyond the first of who has several, those first that were begun last."""
        lanes = [(o, lane) for o in self._owners for lane in _open(o)[1:] if lane.calls]
        return sorted(lanes, key=lambda pair: -pair[1].since)

    def _end_an_idle_one(self) -> bool:
        idle = [(o, lane) for o in self._owners for lane in _open(o) if not lane.calls and not o.queue]
        if idle:
            self.close(*idle[0])
        return bool(idle)

    def give_way(self) -> None:
        """End lanes between two batches for those who have none: all but the last at once, the last after a turn.

        For those who waited for a turn, lanes of who has several are to be cut, whatever they do.
        """
        wanting = sum(bool(o.queue) for o in self._wanting)
        for owner in list(self._owners):
            for lane in [lane for lane in _open(owner) if not lane.calls]:
                if self._spare >= wanting:
                    return
                if len(_open(owner)) > 1 or self._had_its_turn(lane, wanting):
                    self.close(owner, lane)
        due = sum(self._is_due(o) for o in self._wanting if o.queue) - max(0, self._spare)
        for owner, lane in self._several()[: max(0, due)]:
            if lane not in owner.cut:
                owner.cut.append(lane)

    def _had_its_turn(self, lane: Lane, wanting: int) -> bool:
        """Whether an only lane is to end: for another, or, where there are more than the limit, since it is idle."""
        useful = wanting and self._spare >= 0
        return time.monotonic() - lane.since > TURN_S and (useful or lane.worker.idle_s > TURN_S)

    def close(self, owner: Peer, lane: Lane) -> None:
        """End a worker."""
        lane.worker.close()
        owner.lanes.remove(lane)
        if not owner.lanes:
            self._owners.pop(owner, None)

    def leave(self, owner: Peer) -> None:
        """End all workers of a requester."""
        self._wanting.pop(owner, None)
        for lane in list(owner.lanes):
            self.close(owner, lane)

    def close_idle(self) -> None:
        """End workers that had nothing to do for long, or that speak though nothing was asked."""
        for owner in list(self._owners):
            idle = [lane for lane in owner.lanes if not lane.calls]
            for lane in [n for n in idle if n.worker.idle_s > IDLE_S or n.worker.spoke]:
                self.close(owner, lane)

    @property
    def busy(self) -> list[Worker]:
        """Workers that will have an answer."""
        return [lane.worker for o in self._owners for lane in o.lanes if lane.calls]
