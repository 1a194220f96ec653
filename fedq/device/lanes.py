"""Who gets a worker: lanes, shared fairly among the requesters of all devices of a gate.

A worker serves one requester and is never handed on: what one left in its memory is not for
another. So taking a lane from one and giving it to the next ends a process and starts one; that
is done for whoever has none, never more often than a turn lasts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedq.device.calls import Call
from fedq.device.pool import IDLE_S, Worker

if TYPE_CHECKING:
    from fedq.device.batch import Batch

log = logging.getLogger("fedq.device")

TURN_S = 5.0
"""How long a requester keeps its only lane while others have none."""
FIRST_CALLS = 32
"""Calls of a batch while nothing is known of how long they take."""
BATCH_S = 0.25
"""How long a batch should take: results come at its end, and a lane changes hands between batches."""


@dataclass(eq=False)
class Lane:
    """A worker, and the calls it does now.

    Attributes:
        pace_s: how long a call of its last batch took; None before the first.
    """

    worker: Worker
    since: float
    calls: list[Call] = field(default_factory=list)
    start: Batch | None = None
    pace_s: float | None = None

    @property
    def most_calls(self) -> int:
        """How many calls its next batch should have."""
        if self.pace_s is None:
            return FIRST_CALLS
        return max(1, int(BATCH_S / self.pace_s)) if self.pace_s > 0 else 1 << 30


class Crew:
    """All lanes of a gate.

    Args:
        make: starts a worker.
        limit: workers at a time, over all requesters; None: as many as there are cores, at least 4.
            If it is given, one requester alone may have them all, else one.
    """

    def __init__(self, make: Callable[..., Worker], limit: int | None = None) -> None:
        self._make = make
        self.width = limit or 1
        self._limit = limit or max(4, os.cpu_count() or 1)
        self._lanes: dict[Any, list[Lane]] = {}
        self._wanting: dict[Any, None] = {}

    def of(self, owner: Any) -> list[Lane]:
        """The lanes of a requester at a device."""
        return self._lanes.get(owner, [])

    def free(self, owner: Any, *, deadline_s: float) -> Lane | None:
        """A lane of this requester that has nothing to do, a new one if it may have one more, or None."""
        own = self.of(owner)
        for lane in [lane for lane in own if not lane.calls]:
            if not self._must_yield(owner, lane):
                return lane
            self.close(owner, lane)
        if len(own) >= self.width or not self._has_room(owner):
            return None
        self._wanting.pop(owner, None)
        lane = Lane(self._make(deadline_s), time.monotonic())
        self._lanes.setdefault(owner, []).append(lane)
        return lane

    def _has_room(self, owner: Any) -> bool:
        """Whether one more worker may be started, by ending one that idles, if it must be."""
        if sum(map(len, self._lanes.values())) < self._limit:
            return not self._wanting or owner in self._wanting or not self.of(owner)
        idle = [(o, lane) for o, lanes in self._lanes.items() for lane in lanes if not lane.calls and o is not owner]
        spare = [(o, lane) for o, lane in idle if not o.queue]
        if not self.of(owner):
            self._wanting[owner] = None
        if not spare or self.of(owner):
            return False
        self.close(*spare[0])
        return True

    def _must_yield(self, owner: Any, lane: Lane) -> bool:
        """Whether this lane goes to one who has none: all but the last at once, the last after a turn."""
        self._wanting = {o: None for o in self._wanting if o.queue and not self.of(o)}
        others = [o for o in self._wanting if o is not owner]
        if not others:
            return False
        return len(self.of(owner)) > 1 or time.monotonic() - lane.since > TURN_S

    def close(self, owner: Any, lane: Lane) -> None:
        """End a worker."""
        lane.worker.close()
        lanes = self._lanes.get(owner, [])
        if lane in lanes:
            lanes.remove(lane)
        if not lanes:
            self._lanes.pop(owner, None)

    def leave(self, owner: Any) -> None:
        """End all workers of a requester."""
        self._wanting.pop(owner, None)
        for lane in list(self.of(owner)):
            self.close(owner, lane)

    def close_idle(self) -> None:
        """End workers that had nothing to do for long."""
        for owner, lanes in list(self._lanes.items()):
            for lane in [n for n in lanes if not n.calls and getattr(n.worker, "idle_s", 0.0) > IDLE_S]:
                self.close(owner, lane)
