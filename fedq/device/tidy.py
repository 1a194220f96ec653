"""What nobody waits for: values dropped, shared files deleted, what is out noted, what is old let go of.

When nothing else is to be done, and now and then if there always is.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedq import fs
from fedq.device.collect import Collector
from fedq.device.home import Home
from fedq.device.journal import OWNER
from fedq.device.peer import Peer
from fedq.device.publish import Publisher
from fedq.device.times import Time

MAX_UNTIDY = 10
"""Steps in which everything else may come before."""
NOTE_TIME_S = 600.0
"""How far the time in the journal may be behind."""


class Tidier:
    """Tidies up after one device.

    Args:
        time: the device's; what it believes is noted, so that the next gate goes on from there.
    """

    def __init__(self, home: Home, publisher: Publisher, time: Time) -> None:
        self._home, self._publisher, self._time = home, publisher, time
        self._collector = Collector(home)
        self._noted = time.high, time.leapt
        self._skipped = 0

    def untidy(self, peers: Mapping[str, Peer]) -> bool:
        """Whether steps left something to be done."""
        return self._publisher.unnoted or any(p.untidy for p in peers.values())

    def due(self, now: float) -> bool:
        """Whether there may be something to do because time went by."""
        return self._must_note_time or self._collector.due(now)

    @property
    def _must_note_time(self) -> bool:
        high, leapt = self._noted
        return leapt != self._time.leapt or not 0 <= self._time.high - high < NOTE_TIME_S

    def turn(self, free: bool) -> bool:
        """Whether it is its turn in this step; ``free``: nothing else is to be done."""
        self._skipped = 0 if free or self._skipped >= MAX_UNTIDY else self._skipped + 1
        return self._skipped == 0

    def has_rows(self, peers: Mapping[str, Peer], now: float) -> bool:
        """Whether something of it is in the journal."""
        due = any(p.drops.ready(now) or p.versions_due for p in peers.values())
        return self._publisher.unnoted or self.due(now) or due

    def record(self, peers: dict[str, Peer], now: float) -> None:
        """Do that, inside a transaction of the journal."""
        self._publisher.note(self._time.high)
        for peer in peers.values():
            peer.record_shares()
            peer.drop(now)
            peer.let_versions_go()
        if self._collector.due(now):
            self._collector.step(peers, now)
        if self._must_note_time:
            self._noted = self._time.high, self._time.leapt
            self._home.journal.set_time(*self._noted)

    def delete_files(self, peer: Peer) -> None:
        """Delete what is not needed any more, after the commit that says so."""
        peer.inbox.clear()
        while peer.delete:
            self._publisher.take_back(peer, peer.delete[-1])
            peer.delete.pop()
        if peer.forget:
            self._home.store.forget(peer.name, tuple(peer.forget))
            peer.forget.clear()
        if peer.forget_versions:
            self._home.store.forget(OWNER, tuple(peer.forget_versions))
            peer.forget_versions.clear()
        while peer.unspool:
            fs.delete(self._home.spool(peer.name) / peer.unspool[-1])
            peer.unspool.pop()
