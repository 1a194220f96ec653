"""What arrives from one requester: files of ``in/``, read and checked, a few at a time.

A folder is in other people's hands. A listing is worked off before the next one is made, and none is made while
nothing comes or goes; a file is tried once per version; of what is refused no more is remembered than lies
there, and a step looks at a few of it. So a hundred thousand files, of whatever kind, cost the others nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from fedq import fs
from fedq.device.intake import SUFFIX, Arrival, check
from fedq.errors import BadFile, BadSignature, Conflict, Failed, FedqError, Unreachable

if TYPE_CHECKING:
    from fedq.device.peer import Peer

log = logging.getLogger("fedq.device")

LOOKS = 50
"""Files that are no message and are looked at in one step, of one requester: a millisecond."""
LIST_S = 10.0
"""How often a folder is listed though nothing seems to have come or gone."""
STRANGE_S = 1e-4
"""For each file that is no message, how much longer it takes until the next listing that nobody asked for."""
LARGE_BYTES = 8 << 20
REFUSED_BYTES_PER_S = 50 << 20
"""How fast refused files are read, over time: while those of one requester are over it, no large ones are read."""
NAMED, NAMED_S = 20, 3600.0
"""Refused files that are named to the owner, in so much time."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not taken.

    Attributes:
        mark: of the version that was tried; None: it may be read another time.
        code, text: of the error.
    """

    mark: tuple[int, ...] | None
    code: str
    text: str


class Inbox:
    """The ``in/`` of one pair, as the device reads it.

    Args:
        poison: digests of messages that the device stumbled over; they are not taken.
    """

    def __init__(self, peer: Peer, device: str, poison: set[str]) -> None:
        self._peer, self._device, self._poison = peer, device, poison
        self._refused: dict[str, Refused] = {}
        self._signed: dict[str, None] = {}
        """Those of them that the requester signed: it is told of them first."""
        self._stays: dict[str, tuple[int, ...]] = {}
        """Files that were taken and may not be deleted."""
        self._names: deque[str] = deque()
        self._again: deque[str] = deque()
        """Of the refused, those that are to be looked at again."""
        self._due = False
        self._still: tuple[int, ...] | None = None
        self._now = self._listed = self._looked = self._large_at = self._named_since = 0.0
        self._named = 0
        self.taken: list[str] = []
        """Messages that are in the journal, and whose shared copies are still to be deleted."""
        self.unnoted: list[tuple[str, str]] = []
        """Id and reason of refused files that the owner's record is to name."""

    @property
    def more(self) -> bool:
        """Whether files of the last listing are left, or another is due."""
        return self._due or bool(self._names)

    # -- what is there

    def scan(self, now: float, *, names: Collection[str] | None = None, due: bool = True) -> None:
        """Look at these names, and list the folder if that is due, as soon as what was listed before is worked off.

        Args:
            names: what was heard of; None: anything may have come, so that it is listed at once.

        Ids begin with a time, as it happens; so what was sent first mostly comes first.
        """
        since, self._now = now - self._listed, now
        own = [n for n in names or () if self._peer.pair.carrier.is_own("in", n)]
        self._names.extend(sorted(own))
        pause = 0.0 if names is None else STRANGE_S * len(self._refused)
        self._due |= due and not 0 <= since < pause
        if self._due and not self._names:
            self.clear()
            self._due = False
            if self._still is None or not 0 <= since < LIST_S or self._still != self._mark():
                self._list()
            self._look_again()

    def _mark(self) -> tuple[int, ...] | None:
        return fs.still(self._peer.pair.carrier.path("in"))

    def _list(self) -> None:
        mark, self._listed = self._mark(), self._now
        there = set(self._peer.pair.carrier.list("in"))
        self._still = mark
        self._refused = {name: refused for name, refused in self._refused.items() if name in there}
        self._signed = {name: None for name in self._signed if name in there}
        self._stays = {name: mark for name, mark in self._stays.items() if name in there}
        self._names.extend(sorted(there - self._refused.keys() - self._stays.keys()))

    def _look_again(self) -> None:
        """What was refused may be whole by now: it is looked at again, of much of it a few a second, in turns."""
        if len(self._refused) > LOOKS and 0 <= self._now - self._looked < 1.0:
            return
        self._looked = self._now
        if not self._again:
            self._again.extend((*self._refused, *self._stays))
        for _ in range(min(LOOKS, len(self._again))):
            self._names.append(self._again.popleft())

    def take(self, most: int, most_bytes: int) -> list[Arrival]:
        """The next messages: so many, or as many bytes and one more; of what is none a few are looked at."""
        arrivals: list[Arrival] = []
        looks = LOOKS
        while self._names and len(arrivals) < most and most_bytes > 0 and looks > 0:
            arrival = self._read(self._names.popleft())
            if arrival is not None:
                arrivals.append(arrival)
                most_bytes -= len(arrival.raw)
            else:
                looks -= 1
        return arrivals

    # -- one file

    def _read(self, name: str) -> Arrival | None:
        """The message in a file, or None: not there any more, not whole yet, or not a message.

        A file that is no message stays where it is: it may still be arriving. It is looked at
        again when it changes, and the heartbeat names it.
        """
        peer, mark, signed = self._peer, None, False
        try:
            mark = peer.pair.carrier.mark(f"in/{name}")
            if mark is None:
                raise FileNotFoundError
            if self._is_known(name, mark) or self._is_put_off(name, mark):
                return None
            limit, to = peer.home.limits.message_bytes, peer.home.address
            copy = peer.pair.carrier.get_hashed(f"in/{name}", limit, key=bytes.fromhex(peer.key))
            try:
                message, file = check(
                    copy.data, name=name, requester=peer.name, key=peer.key, to=to, signed=copy.signed
                )
            except BadFile as error:
                signed = not isinstance(error, BadSignature)
                self._large_at = max(self._large_at, self._now) + len(copy.data) / REFUSED_BYTES_PER_S
                raise
            signed = True
            arrival = Arrival(message, file, copy.data, copy.digest, self._came_before(message.id, copy.digest))
        except FileNotFoundError:
            self._forget(name)
            return None
        except FedqError as error:
            self._refuse(name, None if isinstance(error, Unreachable) else mark, error, signed=signed)
            return None
        self._forget(name)
        return arrival

    def _forget(self, name: str) -> None:
        self._refused.pop(name, None)
        self._signed.pop(name, None)

    def _is_known(self, name: str, mark: tuple[int, ...]) -> bool:
        """Whether this version was tried."""
        refused = self._refused.get(name)
        return self._stays.get(name) == mark or (refused is not None and refused.mark == mark)

    def _is_put_off(self, name: str, mark: tuple[int, ...]) -> bool:
        """Whether a large file has to wait, because so much of this requester's was read in vain."""
        if mark[2] <= LARGE_BYTES or not self._now < self._large_at < self._now + 3600:
            return False
        self._refused[name] = Refused(None, BadFile.code, "so much was read in vain that large files wait")
        return True

    def _came_before(self, id_: str, digest: str) -> bool:
        seen = self._peer.journal.seen(self._peer.name, id_)
        if seen not in (None, digest):
            raise Conflict(f"message {id_} came before with other content")
        if digest in self._poison:
            raise Failed("the device can not do it")
        return seen is not None

    def _refuse(self, name: str, mark: tuple[int, ...] | None, error: FedqError, *, signed: bool) -> None:
        before = self._refused.get(name)
        self._refused[name] = Refused(mark, error.code, str(error))
        if signed:
            self._signed[name] = None
        if before is None or (before.code, before.text) != (error.code, str(error)):
            self._tell(name, str(error))

    def _tell(self, name: str, text: str) -> None:
        """Name a refused file to the owner; of many, the first of an hour."""
        if not 0 <= self._now - self._named_since < NAMED_S:
            self._named_since, self._named = self._now, 0
        self._named += 1
        if self._named > NAMED + 1:
            return
        if self._named > NAMED:
            name, text = "", f"more than {NAMED} files in an hour are not taken; they are counted, not named"
        log.warning("%s: file %s of %s is not taken: %s", self._device, name or "?", self._peer.name, text)
        self.unnoted.append((name.removesuffix(SUFFIX), text))

    def told(self, most: int) -> tuple[tuple[str, str], ...]:
        """Id and code of so many files that are not taken; first those that the requester signed."""
        others = (name for name in self._refused if name not in self._signed)
        found = islice((*islice(self._signed, most), *islice(others, most)), most)
        return tuple((name.removesuffix(SUFFIX), self._refused[name].code) for name in found)

    # -- what was taken

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
            mark = self._peer.pair.carrier.mark(f"in/{name}")
            if mark is not None:
                self._stays[name] = mark
            log.info("%s: in/%s stays: %s", self._device, name, error)
