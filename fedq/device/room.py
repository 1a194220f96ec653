"""How much of its limits a requester uses: values, messages, plans, and replies before they are made.

Counts what its requester can know: its own and open values, declared types, released bytes. Here are the sums;
the rows they are made of are in the journal. Happens inside its transactions, as in `peer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedq.device.journal import VALUE_BYTES, Journal, Value
from fedq.device.limits import refused
from fedq.plan import typed
from fedq.plan.graph import Type
from fedq.queue.message import Failure

if TYPE_CHECKING:
    from fedq.device.home import Home

REPLY_BYTES = 1024
"""Of a reply besides its tensors, about."""
MOST = 1 << 50
"""Bytes that a value is taken to have at most, whatever is claimed of it."""
SPARE, SPARE_BYTES = 16, 1 << 20
"""Refusals have room for a 16th of the limit beyond it, or a MiB: who has no room left is told so."""

Sizes = Mapping[str, int | None]
"""Bytes by value; None where they are not known."""


def size_of(type_: Type | None) -> int | None:
    """Bytes of a value of this type; None if its type does not tell."""
    return None if type_ is None else typed.size_bytes(type_)


def size(value: Value) -> int:
    """Bytes that are kept of a value; a failure counts nothing, as it may tell of what is private."""
    return 0 if value.failure is not None else VALUE_BYTES + content_bytes(value)


def content_bytes(value: Value) -> int:
    """Bytes of a value's content, of a failure as of a number."""
    return len(value.data) if value.data is not None else size_of(value.type) or 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a reply takes: bytes in all, and of values that are in another reply; ids of its values."""

    size: int
    repeated: int
    values: tuple[str, ...]


class Room:
    """The room of one requester at a device."""

    def __init__(self, home: Home, requester: str) -> None:
        self._home, self._name = home, requester
        self._journal: Journal = home.journal
        self._replies: dict[str, Share] = {}
        self._copies: Counter[str] = Counter()
        self.published = self._repeated = self._undone = 0
        self._stored = home.journal.stored_bytes(requester)
        self._plans, self._plan_bytes = home.journal.plans_size(requester)
        self._messages: dict[str, int] = {}
        """Bytes by message, of those that are not done."""
        self.stale = False
        """Whether values or plans went that were not counted off: what is counted is the most there may be."""
        for id_, bytes_, repeated, values in home.journal.shares(requester):
            self._take(id_, Share(bytes_, repeated, values))

    # -- values, messages, plans

    @property
    def stored(self) -> int:
        """Bytes of values and of messages that are not done, at most."""
        return self._stored + self._undone

    def holds(self, message: str, size_bytes: int) -> None:
        """A message is kept until it is done: so many bytes."""
        self.lets_go(message)
        self._messages[message] = size_bytes
        self._undone += size_bytes

    def lets_go(self, message: str) -> None:
        """A message is done, if it was kept."""
        self._undone -= self._messages.pop(message, 0)

    def lacks(self, more: int) -> Failure | None:
        """Why so many more bytes cannot be stored; None if they can."""
        most = self._home.limits.stored_bytes
        if self._stored + self._undone + more <= most:
            return None
        if self.stale:
            self._count()
        return refused("stored_bytes", most, self.stored, more) if self.stored + more > most else None

    def _count(self) -> None:
        self.stale = False
        self._stored = self._journal.stored_bytes(self._name)
        self._plans, self._plan_bytes = self._journal.plans_size(self._name)

    def stores(self, size_bytes: int) -> None:
        """So many bytes came, or went."""
        self._stored = max(0, self._stored + size_bytes)

    def lacks_plan(self, size_bytes: int) -> Failure | None:
        """Why a plan has no room."""
        limits = self._home.limits
        if (self._plans >= limits.plans or self._plan_bytes + size_bytes > limits.plan_bytes) and self.stale:
            self._count()
        if self._plans >= limits.plans:
            return refused("plans", limits.plans, self._plans, 1)
        if self._plan_bytes + size_bytes > limits.plan_bytes:
            return refused("plan_bytes", limits.plan_bytes, self._plan_bytes, size_bytes)
        return None

    def keeps_plan(self, size_bytes: int) -> None:
        self._plans += 1
        self._plan_bytes += size_bytes

    # -- replies

    def _share(self, reply: str, sizes: Sizes) -> Share:
        """What a reply takes; one that has its room already is not counted as a repetition of those that came after."""
        own = self._replies.get(reply)
        known = {id_: min(size or 0, MOST) for id_, size in sizes.items()}
        whole = REPLY_BYTES + VALUE_BYTES * len(known) + sum(known.values())
        if own is not None and whole <= own.size:
            return Share(whole, min(own.repeated, whole), tuple(sizes))
        others = (id_ for id_ in sizes if self._copies[id_] > (own is not None and id_ in own.values))
        return Share(whole, sum(known[id_] for id_ in others), tuple(sizes))

    def lacks_reply(self, reply: str, sizes: Sizes) -> Failure | None:
        """Why a reply with these values has no room beside the others; one that takes no more than it has, has some."""
        return self._lacks(reply, self._share(reply, sizes), bool(any(sizes.values())))

    def admits(self, reply: str, sizes: Sizes) -> bool:
        """Whether a reply with these values has room; if so it takes it."""
        share = self._share(reply, sizes)
        if self._lacks(reply, share, bool(any(sizes.values()))) is not None:
            return False
        self._replace(reply, share)
        return True

    def _lacks(self, reply: str, share: Share, some: bool) -> Failure | None:
        limits = self._home.limits
        own = self._replies.get(reply, Share(0, 0, ()))
        if share.size <= own.size:
            return None
        before, repeated = self.published - own.size, self._repeated - own.repeated
        spare = 0 if some else max(SPARE_BYTES, limits.published_bytes // SPARE)
        most = limits.published_bytes + spare
        if before + share.size > most:
            return refused("published_bytes", limits.published_bytes, before, share.size)
        if share.repeated and repeated + share.repeated > limits.repeated_bytes:
            return refused("repeated_bytes", limits.repeated_bytes, repeated, share.repeated)
        return None

    def fits_at_all(self, sizes: Sizes) -> Failure | None:
        """Why a reply would have no room even if it were the only one."""
        most, size_bytes = self._home.limits.published_bytes, REPLY_BYTES
        size_bytes += sum(min(n or 0, MOST) for n in sizes.values())
        return refused("published_bytes", most, 0, size_bytes) if size_bytes > most else None

    def reserve(self, reply: str, sizes: Sizes) -> None:
        """A reply takes what its values are known to have, instead of what it took before."""
        self._replace(reply, self._share(reply, sizes))

    def _replace(self, reply: str, share: Share) -> None:
        if share != self._replies.get(reply):
            self.free(reply)
            self._take(reply, share)

    def _take(self, reply: str, share: Share) -> None:
        self._replies[reply] = share
        self._copies.update(share.values)
        self.published += share.size
        self._repeated += share.repeated

    def free(self, reply: str) -> None:
        """A reply was acknowledged, or let go of."""
        if (share := self._replies.pop(reply, None)) is not None:
            for id_ in share.values:
                self._copies[id_] -= 1
                if self._copies[id_] <= 0:
                    del self._copies[id_]
            self.published -= share.size
            self._repeated -= share.repeated

    def share(self, reply: str) -> tuple[int, int]:
        """Bytes in all and repeated ones, as they are recorded."""
        found = self._replies.get(reply)
        return (found.size, found.repeated) if found else (0, 0)

    def has(self, reply: str) -> bool:
        return reply in self._replies
