"""What arrives from one requester: files of ``in/``, read and checked, a few at a time.

A listing is worked off before the next one is made, so that a folder with a hundred thousand
files costs one scan and not one for each that is taken.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from typing import TYPE_CHECKING

from fedq import fs
from fedq.device.intake import SUFFIX, Arrival, check
from fedq.errors import Conflict, Failed, FedqError, Unreachable

if TYPE_CHECKING:
    from fedq.device.peer import Peer

log = logging.getLogger("fedq.device")


class Inbox:
    """The ``in/`` of one pair, as the device reads it.

    Args:
        poison: digests of messages that the device stumbled over; they are not taken.
    """

    def __init__(self, peer: Peer, device: str, poison: set[str]) -> None:
        self._peer, self._device, self._poison = peer, device, poison
        self._skip: dict[str, tuple[int, ...]] = {}
        self._names: deque[str] = deque()
        self._due = False
        self.taken: list[str] = []
        """Messages that are in the journal, and whose shared copies are still to be deleted."""

    @property
    def more(self) -> bool:
        """Whether files of the last listing are left, or another is due."""
        return self._due or bool(self._names)

    def scan(self, *, heard: bool) -> None:
        """List the folder if something was heard of it, as soon as what was listed before is worked off.

        Ids begin with a time, as it happens; so what was sent first mostly comes first.
        """
        self._due |= heard
        if self._due and not self._names:
            self.clear()
            self._names.extend(sorted(self._peer.pair.carrier.list("in")))
            self._due = False

    def take(self, most: int, most_bytes: int) -> list[Arrival]:
        """The next messages: so many, or as many bytes and one more."""
        arrivals: list[Arrival] = []
        while self._names and len(arrivals) < most and most_bytes > 0:
            arrival = self._read(self._names.popleft())
            if arrival is not None:
                arrivals.append(arrival)
                most_bytes -= len(arrival.raw)
        return arrivals

    def _read(self, name: str) -> Arrival | None:
        """The message in a file, or None: not there any more, not whole yet, or not a message.

        A file that is no message stays where it is: it may still be arriving. It is looked at
        again when it changes, and the heartbeat names it.
        """
        peer, mark = self._peer, None
        try:
            mark = fs.fingerprint(peer.pair.carrier.path(f"in/{name}"))
            if mark is None or self._skip.get(name) == mark:
                return None
            raw = peer.pair.carrier.get(f"in/{name}")
            message, file = check(raw, name=name, requester=peer.name, key=peer.key, to=peer.home.address)
            digest = hashlib.sha256(raw).hexdigest()
            arrival = Arrival(message, file, raw, digest, self._came_before(message.id, digest))
        except FileNotFoundError:
            return None
        except Unreachable as error:  # it may be read another time
            self._refuse(name, None, error)
            return None
        except FedqError as error:
            self._refuse(name, mark, error)
            return None
        peer.refused.pop(message.id, None)
        self._skip.pop(name, None)
        return arrival

    def _came_before(self, id_: str, digest: str) -> bool:
        seen = self._peer.journal.seen(self._peer.name, id_)
        if seen not in (None, digest):
            raise Conflict(f"message {id_} came before with other content")
        if digest in self._poison:
            raise Failed("the device can not do it")
        return seen is not None

    def _refuse(self, name: str, mark: tuple[int, ...] | None, error: FedqError) -> None:
        id_ = name.removesuffix(SUFFIX)
        if mark is not None:
            self._skip[name] = mark
        elif self._peer.refused.get(id_) == error.code:
            return
        self._peer.refused[id_] = error.code
        log.warning("%s: file %s of %s is not taken: %s", self._device, name, self._peer.name, error)

    def clear(self) -> None:
        """Delete the shared copies of what was taken."""
        while self.taken:
            self._delete(self.taken[-1])
            self.taken.pop()

    def _delete(self, id_: str) -> None:
        """Delete a shared copy; where we may not, the journal knows the file and it is not read again."""
        name = f"{id_}{SUFFIX}"
        try:
            self._peer.pair.carrier.delete(f"in/{name}")
        except FedqError as error:
            mark = fs.fingerprint(self._peer.pair.carrier.path(f"in/{name}"))
            if mark is not None:
                self._skip[name] = mark
            log.info("%s: in/%s stays: %s", self._device, name, error)
