"""Heartbeats: what a device says of itself to each requester, so that whoever waits knows why."""

from __future__ import annotations

import itertools
import os
from typing import Any

from fedq import fs
from fedq.device import boots
from fedq.device.home import Home, Requester
from fedq.device.peer import Peer, running
from fedq.queue.pair import ASKED, BLOCKED, ROOM, STOPPED, Heartbeat

BEAT_S = 5.0
PROGRESS_S = 1.0
"""How often it is told how far a fold is."""
SOON_S = 0.2
_FILE = f"{Heartbeat.KIND}.json"
TOLD = 100
"""Ids a heartbeat names at most, of each kind."""


class Beats:
    """The heartbeats of one device: every few seconds, sooner when something changed.

    Attributes:
        unsaid: whether something changed that is to be said soon.
    """

    def __init__(self, home: Home, boot: int) -> None:
        self._home, self._boot, self._run, self._count = home, boot, os.urandom(8).hex(), 0
        self._stands: dict[str, tuple[int, ...] | None] = {}
        self._told: dict[str, tuple[float, Any]] = {}
        self.unsaid = False

    def beat(self, peer: Peer, now: float, state: str, trouble: str) -> None:
        """Write one, if it is due.

        Raises:
            OldCopy: another copy of this device wrote the one that stands.
        """
        when, told = self._told.get(peer.name, (0.0, None))
        if when <= now < when + SOON_S and state == "up":
            self.unsaid = True
            return
        tell = (state, *_standing(peer), _progress(peer), trouble)
        wait_s = 0.0 if _but_progress(tell) != _but_progress(told) else PROGRESS_S if tell != told else BEAT_S
        if not when <= now < when + wait_s:
            self._look_for_twin(peer)
            self._count += 1
            beat = Heartbeat(self._home.name, peer.address, (self._boot, self._count), self._run, now, *tell)
            peer.pair.write(beat, self._home.key)
            self._stands[peer.name] = fs.fingerprint(peer.pair.carrier.path(_FILE))
            self._told[peer.name] = (now, tell)

    def _look_for_twin(self, peer: Peer) -> None:
        """Whether the heartbeat that stands is the one that was written last."""
        if fs.fingerprint(peer.pair.carrier.path(_FILE)) != self._stands.get(peer.name):
            twin = boots.twin(self._home, Requester(peer.name, peer.key), self._boot, self._run)
            if twin is not None:
                raise twin


def _progress(peer: Peer) -> tuple[tuple[str, int, int], ...]:
    """Of each fold that runs: its message, the step it is in, and how many there are."""
    folds = (lane for lane in peer.lanes if lane.calls and lane.calls[0].loop and not lane.sources)
    return tuple((lane.calls[0].message, *told) for lane in folds if (told := lane.worker.progress)[1])


def _but_progress(tell: tuple[Any, ...] | None) -> Any:
    """What a heartbeat says besides: that one comes soon, progress now and then."""
    return tell and (*tell[:-2], tell[-1])


def _standing(peer: Peer) -> tuple[Any, ...]:
    """What waits, runs, is held and was refused; for the heartbeat."""
    waiting = running(itertools.chain(peer.queue, peer.waiting.calls()), TOLD)
    stopped = ((result, STOPPED) for call in peer.stopped() for result in call.results)
    questions = ((reply, ASKED) for reply in sorted(peer.questions.open))
    roomless = ((reply, ROOM) for reply in peer.roomless)
    blocked = ((reply, BLOCKED) for reply in peer.blocked)
    held = tuple(itertools.islice(itertools.chain(questions, stopped, roomless, blocked), TOLD))
    return waiting, running(peer.running, TOLD), held, peer.inbox.told(TOLD)
