"""What a device lets go of by itself, so that a year of use does not grow, and what it puts back.

After a message expired, and a day, everything of it goes: its row, values, replies; the file of a
reply that nobody acknowledged when it was out for two weeks. What carries a tag stays until it is
dropped. Plans go when nothing that may still come can use them. A reply that vanished before it
was acknowledged is published again. All of it in slices, so that nobody waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq import fs
from fedq.device.intake import SUFFIX

if TYPE_CHECKING:
    from fedq.device.home import Home
    from fedq.device.peer import Peer

EVERY_S = 3600.0
LOOK_OUT_S = 60.0
"""How often ``out/`` is compared with what was published."""
GRACE_S = 86_400.0
"""How long after its expiry a message is remembered."""
REPLIES_S = 14 * 86_400.0
"""How long a reply that nobody acknowledged stays out, at least."""
PLANS_S = 30 * 86_400.0
FAILED_S = 30 * 86_400.0
"""How long messages in ``failed/`` are kept."""
LOOKS = 2000
"""Replies of one requester whose files are looked at when ``out/`` is compared."""
SLICE = 200
"""Messages let go of in one step."""


class Collector:
    """Collects at one device; ``step`` inside a transaction of its journal."""

    def __init__(self, home: Home) -> None:
        self._home, self._journal = home, home.journal
        self._collected = self._looked_out = 0.0
        self._going = True
        self._turn = 0

    def due(self, now: float) -> bool:
        """Whether there may be something to do."""
        every = ((self._collected, EVERY_S), (self._looked_out, LOOK_OUT_S))
        return self._going or any(not 0 <= now - last < wait for last, wait in every)

    def step(self, peers: dict[str, Peer], now: float) -> None:
        """One slice of what is due."""
        if self._going or not 0 <= now - self._collected < EVERY_S:
            self._collected, self._going = now, self._collect(peers, now)
        if not 0 <= now - self._looked_out < LOOK_OUT_S:
            self._looked_out = now
            for peer in peers.values():
                self._publish_again(peer)

    def _collect(self, peers: dict[str, Peer], now: float) -> bool:
        """Let go of a slice; whether there may be more."""
        needed = {(p.name, i) for p in peers.values() for i in p.needed()}
        gone = self._journal.collect(now - GRACE_S, now - REPLIES_S, needed, SLICE)
        for sender, reply in gone.replies:
            if sender in peers:
                peers[sender].delete.append(reply)
                peers[sender].free([reply])
        for sender, value in gone.values:
            if sender in peers:
                peers[sender].let_go([value], files=[value])
                peers[sender].quota.stale = True
        if not gone.messages:
            self._journal.collect_plans(now - PLANS_S, {(p.name, c.plan) for p in peers.values() for c in p.calls()})
            for sender, id_ in self._journal.collect_failed(now - FAILED_S):
                fs.delete(self._home.failed(sender) / f"{id_}{SUFFIX}")
        return bool(gone.messages)

    def _publish_again(self, peer: Peer) -> None:
        """Have what vanished from ``out/``, or is not what was put there, written again, if its values are there."""
        published = self._journal.unacknowledged(peer.name)
        if not published:
            return
        there = {name.removesuffix(SUFFIX) for name in peer.pair.carrier.list("out")}
        changed = self._changed(peer, [w.id for w in published if w.id in there])
        for wanted in published:
            out = wanted.id in there and wanted.id not in changed
            if out or wanted.id in peer.wants or peer.was_dropped(wanted.ids):
                continue
            taken = self._journal.message(peer.name, wanted.message)
            if taken is not None:
                peer.want(wanted, taken)

    def _changed(self, peer: Peer, replies: list[str]) -> set[str]:
        """Of some of these, in turns, those whose files are not the ones that were put, or were not looked at yet."""
        first = self._turn % max(1, len(replies))
        self._turn = first + LOOKS
        some = [*replies[first:], *replies[:first]][:LOOKS]
        marks, mark = peer.marks, peer.pair.carrier.mark
        known = {r for r in some if marks.get(r) is not None}
        return {r for r in known if mark(f"out/{r}{SUFFIX}") != marks[r]} | set(
            [r for r in some if r not in known][:SLICE]
        )
