"""Values to forget, and what must come first: messages done, replies out. Pure; no IO, no clock.

A drop looks at one obstacle at a time and is looked at again only when that one is gone, so
however many wait, a step costs what happens in it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class DropRow:
    """Values to forget, once these messages are done and their replies are out.

    Attributes:
        row: its number in the journal.
        expires: till when messages that were not taken yet are waited for.
    """

    row: int
    values: list[str]
    after: list[str]
    expires: float


class Drops:
    """The drops of one requester that are still to be done.

    Args:
        undone: whether a message is not done; given whether one that never came counts.
    """

    def __init__(self, undone: Callable[[str, bool], bool]) -> None:
        self._undone = undone
        self._rows: dict[int, DropRow] = {}
        self._behind: dict[str, list[DropRow]] = {}
        self._due: list[DropRow] = []
        self._expiring: list[tuple[float, int]] = []
        self._open_values: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, drop: DropRow) -> None:
        """Enter it; again, after a restart, changes nothing."""
        if drop.row not in self._rows:
            self._rows[drop.row] = drop
            self._due.append(drop)
            heapq.heappush(self._expiring, (drop.expires, drop.row))

    def opened(self, values: tuple[str, ...]) -> None:
        """A reply with these values is to be published."""
        self._open_values.update(values)

    def closed(self, values: tuple[str, ...]) -> None:
        """It is out."""
        for id_ in values:
            self._open_values[id_] -= 1
            if self._open_values[id_] <= 0:
                del self._open_values[id_]
                self.passed(id_)

    def passed(self, id_: str) -> None:
        """Something happened to this message or value: who waited for it is looked at again."""
        self._due += self._behind.pop(id_, ())

    @property
    def due(self) -> bool:
        """Whether something happened to what one waits for."""
        return bool(self._due)

    def ready(self, now: float) -> bool:
        """Whether there is something to look at."""
        return bool(self._due) or bool(self._expiring and self._expiring[0][0] < now)

    def take_ready(self, now: float) -> list[DropRow]:
        """Remove and return the drops whose turn has come."""
        while self._expiring and self._expiring[0][0] < now:
            row = self._rows.get(heapq.heappop(self._expiring)[1])
            if row is not None:
                self._due.append(row)
        due, self._due = self._due, []
        ready = []
        for drop in due:
            if drop.row not in self._rows:
                continue
            obstacle = self._obstacle(drop, now)
            if obstacle is None:
                ready.append(self._rows.pop(drop.row))
            else:
                self._behind.setdefault(obstacle, []).append(drop)
        return ready

    def _obstacle(self, drop: DropRow, now: float) -> str | None:
        patient = now <= drop.expires
        for message in drop.after:
            if self._undone(message, patient):
                return message
        return next((v for v in drop.values if v in self._open_values), None)
