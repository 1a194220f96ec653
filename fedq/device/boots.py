"""Which start of a device this is; and whether a later one of it was seen: it was copied, or restored from a backup.

The number of the start stands in the journal, and, signed, in what the device writes to its pairs; the greatest is
kept beside the homes, too, in ``devices/.gate/boots/<key>``. A home that knows of fewer than these is an old copy: what
it would do was done, or is being done, by the later one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedq import fs
from fedq.errors import FedqError, OldCopy
from fedq.queue.pair import IN, Card, Catalog, Heartbeat, Sealed
from fedq.trust.keys import unseal

if TYPE_CHECKING:
    from fedq.device.home import Home, Requester

BOOTS = "boots"


def begin(home: Home) -> int:
    """A new start of the device, written down before anything is done; its number.

    Raises:
        OldCopy: a later one was seen.
    """
    check(home)
    with home.journal.transaction():
        boot = home.journal.begin_boot()
    fs.make_dir(beside(home).parent)
    fs.replace(beside(home), [str(boot).encode()], durable=home.durable)
    return boot


def check(home: Home) -> None:
    """That no start of the device was seen that its home does not know.

    Raises:
        OldCopy: one was.
    """
    seen, mine = _seen(home), home.journal.count()[0]
    if seen > mine:
        raise conflict(home, f"start {seen}, and this home knows of {mine}")


def conflict(home: Home, why: str) -> OldCopy:
    """Why nothing is done: another copy of the device is ahead of this one, or beside it."""
    return OldCopy(
        f"{home.name} was seen elsewhere, or later ({why}): this home was copied, or restored from a backup",
        hint=f"see that no other copy runs, then: fedq device resume {home.name} --after-restore",
    )


def after_restore(home: Home, *, by: str = "") -> None:
    """Go on from here, after whatever start was seen; what may have been done in between is not done again.

    A message that was sent before the last sign of life of the later copy, and does not wait in ``in/`` now, may have
    been done: if it comes again, from whoever kept it, it is answered as expired. Replies that are out stay.
    """
    beats = [beat for r in home.trusted() if (beat := _read(home, r, Heartbeat)) is not None]
    times = [beat.time for beat in beats]
    waiting = [(r.name, name.partition(".")[0]) for r in home.trusted() for name in home.pair(r.name).carrier.list(IN)]
    with home.journal.transaction():
        home.journal.set_boot(_seen(home))
        home.journal.set_fence(max(times, default=0.0), waiting)
        home.journal.record("restored", "", "", now=fs.clock(), by=by)
    home.poke()


def twin(home: Home, requester: Requester, boot: int, run: str) -> OldCopy | None:
    """The other copy that wrote the heartbeat that stands, if one did that runs now or started later."""
    beat = _read(home, requester, Heartbeat)
    if beat is None or beat.run == run or beat.count[0] < boot:
        return None
    return conflict(home, f"start {beat.count[0]} wrote a heartbeat, and this is start {boot}")


def forget(home: Home) -> None:
    """The device is deleted: so is what is kept of it beside its home."""
    fs.delete(beside(home))


def beside(home: Home) -> Path:
    """Where the number of the last start is kept, beside the home."""
    return home.config.devices / ".gate" / BOOTS / home.key.public.hex()


def _seen(home: Home) -> int:
    """The greatest number of a start that was written anywhere outside the home."""
    told = [found for r in home.trusted() for found in _written(home, r) if found]
    try:
        text = bytes(fs.read(beside(home), limit_bytes=100)).decode("ascii", "replace").strip()
    except FileNotFoundError:
        text = ""
    return max([*(found.count[0] for found in told), int(text) if text.isdecimal() else 0])


def _written(home: Home, to: Requester) -> tuple[Heartbeat | None, Card | None, Catalog | None]:
    return _read(home, to, Heartbeat), _read(home, to, Card), _read(home, to, Catalog)


def _read(home: Home, requester: Requester, what: type[Sealed]) -> Sealed | None:
    """What this device wrote to a requester, if that stands."""
    try:
        raw = home.pair(requester.name).read_bytes(what.KIND)
        return unseal(what, raw, home.key.public, home.name, home.to(requester))
    except (FileNotFoundError, FedqError):
        return None
