"""The layout of a queue root and of a pair in it, and the three files a device keeps in a pair.

Card, catalog and heartbeat are sealed: one line of JSON whose last member is the signature over
all bytes before it. Nothing is ever created below a root that does not carry its mark, so an
unmounted share stays empty. Format: docs/format.md, sections 2 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fedq import fs, ids
from fedq.errors import BadFile, BadSignature, Conflict, UnknownDevice, Unreachable
from fedq.fs import Buffer
from fedq.plan.codec import VERSION, Signer, parse_json, sha256
from fedq.plan.graph import Type, canonical
from fedq.plan.types import is_int
from fedq.queue.carrier import MOST_BYTES, Directory
from fedq.queue.message import Address, address_from_json, address_to_json, check_kind, is_time

MARK = ".fedq"
IN, OUT, BLOBS = "in", "out", "blobs"
ASKED = "asked"
"""In the place of a release rule: the reply of this id waits for the owner's word."""
STOPPED = "stopped"
"""In the place of a release rule: the call that makes a value is held, it ran when the device ended too often."""
ROOM, BLOCKED = "room", "blocked"
"""In the place of a release rule: a reply waits for room among the others; or for its place in ``out/``, which is taken
by something that the device may not remove."""
OWN = "own"
"""In the place of a release rule: the value is the requester's own."""
MOST_DAYS = 365_000
"""Of a question; before that many days there is still a calendar."""
MAX_ITEMS = 4_000_000
MAX_BYTES = {"card": 1 << 16, "catalog": 32 << 20, "heartbeat": 16 << 20}
"""The largest that are read: 400,000 values, 400,000 waiting messages; seconds to parse, whatever is in them."""

Count = tuple[int, int]
"""Which file of its kind a card, catalog or heartbeat is: the device's boot that wrote it, and a number that rises
with each. Of two files the one with the greater count is the later."""

Verify = Callable[[str, bytes, bytes], bytes]
"""`fedq.trust.keys.verify`: kind, SHA-256, public key and signature -> public key, or BadSignature."""

Sealed = TypeVar("Sealed", "Card", "Catalog", "Heartbeat")

_RUN = re.compile(r"[0-9a-f]{16}")
_REQUESTER = re.compile(r".+-[0-9a-f]{8}")
_TAIL = re.compile(rb',"sig":"([0-9a-f]{192})"}\n')
_TAIL_BYTES = 8 + 192 + 3


# -- roots and pairs -------------------------------------------------------------------------


def create_root(queue: Path, *, id: str, exact: bool = False) -> None:
    """Make a queue root and mark it; Conflict if it carries another id already. ``exact``: see `make_open`."""
    if not fs.is_folder(queue.parent):
        fs.make_dir(queue.parent, mode=0o755)
    make_open(queue, exact=exact)
    try:
        fs.put(queue / MARK, [canonical({"v": VERSION, "id": id}) + b"\n"], mode=0o644, exact=True)
    except FileExistsError:
        if root_id(queue) != id:
            raise Conflict(f"{queue.absolute()} is a queue root already") from None


def root_id(queue: Path) -> str:
    """The id of the root; Unreachable if it is not there, or not mounted."""
    try:
        body = parse_json(bytes(fs.read(queue / MARK, limit_bytes=4096)))
    except FileNotFoundError:
        raise Unreachable(
            f"no queue root in {queue.absolute()} (it holds no {MARK})",
            hint="is it mounted? 'fedq device init' makes a new root",
        ) from None
    match body:
        case {"v": 1, "id": str(id_)} if ids.is_id(id_):
            return id_
    raise BadFile(f"{(queue / MARK).absolute()} is no mark of a queue root")


def is_root(queue: Path) -> bool:
    """Whether a mark stands there, of whatever root."""
    return fs.fingerprint(queue / MARK) is not None


def devices_of(queue: Path) -> list[str]:
    """Devices that have a pair below this root, sorted."""
    return sorted(name for name in fs.names(queue) if ids.is_name(name) and pairs_of(queue, name))


def pairs_of(queue: Path, device: str) -> list[str]:
    """Requesters that have a pair with this device, sorted."""
    return sorted(n for n in _names(queue / device) if ids.is_name(n) and _REQUESTER.fullmatch(n))


def is_requester(name: str) -> bool:
    """Whether this is a name with the first digits of a key: ``alice-3f9a1c2e``."""
    return _REQUESTER.fullmatch(name) is not None


def _names(path: Path) -> list[str]:
    try:
        return fs.names(path)
    except Unreachable:  # a stray file beside the devices
        return []


@dataclass(frozen=True, slots=True)
class Pair:
    """The folder between one device and one requester."""

    device: str
    requester: str
    carrier: Directory

    @staticmethod
    def message_name(id: str) -> str:
        return f"{IN}/{id}.safetensors"

    @staticmethod
    def reply_name(id: str) -> str:
        return f"{OUT}/{id}.safetensors"

    def write(self, what: Sealed, signer: Signer) -> None:
        """Put card, catalog or heartbeat in the place of its last version."""
        self.carrier.replace(f"{what.KIND}.json", [seal_json(what.KIND, what.to_json(), signer)])

    def sweep(self, *, before: float) -> int:
        """Delete temporary files last written before a time; how many. What is behind a link in it is left."""
        swept = fs.sweep(self.carrier.path(""), before=before)
        for folder in (IN, OUT, BLOBS):
            with suppress(Unreachable):
                swept += fs.sweep(self.carrier.path(folder), before=before, follow=False)
        return swept

    def read_bytes(self, kind: str) -> Buffer:
        """Card, catalog or heartbeat as it stands; check and parse it by `fedq.trust.keys.unseal`.

        Raises:
            FileNotFoundError: there is none (yet).
        """
        return self.carrier.get(f"{kind}.json", MAX_BYTES[kind])


def make_open(folder: Path, *, exact: bool) -> None:
    """A folder above pairs, which all may list and only its owner writes in; one that is there stays as it is.

    Args:
        exact: whatever the umask.
    """
    if exact:
        fs.new_dir(folder, mode=0o755)
    else:
        fs.make_dir(folder, mode=0o755)


def create_pair(queue: Path, device: str, requester: str, *, durable: bool = True, group: int | None = None) -> Pair:
    """Make a pair's folders, whatever the umask; again is a no-op, and gives an older pair to the group.

    Args:
        group: may use the pair, too; else it is this user's alone.

    Raises:
        Unreachable: the root is not there, or another user made the device's folder.
    """
    root_id(queue)
    above = queue / _name(device)
    root = above / _name(requester)
    make_open(above, exact=group is not None)
    if other := fs.owner(above):
        raise Unreachable(f"{above.absolute()} belongs to {other}", hint="give the device another name")
    folders = (root, root / IN, root / OUT, root / BLOBS)
    for folder in folders:
        fs.new_dir(folder, mode=0o700 if group is None else 0o2770, group=group)
    if group is not None:
        for folder in folders:
            fs.share(folder, group, mode=0o2770, follow=folder is root)
            fs.share_all(folder, group, mode=0o660)
    return Pair(device, requester, Directory(root, durable=durable))


def open_pair(queue: Path, device: str, requester: str, *, durable: bool = True) -> Pair:
    """A pair that is there.

    Raises:
        Unreachable: the root is not there.
        UnknownDevice: it holds no such pair.
    """
    root_id(queue)
    if not fs.is_folder(queue / _name(device) / _name(requester)):
        known = ", ".join(devices_of(queue)) or "none"
        if pairs_of(queue, device):
            raise UnknownDevice(
                f"device {device!r} in {queue.absolute()} has no pair with {requester}",
                hint="ask its owner to let you in: they need your name and key",
            )
        raise UnknownDevice(f"no device {device!r} in {queue.absolute()} (there: {known})")
    return Pair(device, requester, Directory(queue / device / requester, durable=durable))


def _name(name: str) -> str:
    if not ids.is_name(name):
        raise UnknownDevice(f"{name[:80]!r} is no name of a device or requester")
    return name


# -- sealed JSON -----------------------------------------------------------------------------


def seal_json(kind: str, body: Mapping[str, Any], signer: Signer) -> bytes:
    """One line of JSON, signed: version and kind, then the body, then the signature."""
    head = canonical({"v": VERSION, "kind": kind, **body})[:-1]
    return b'%b,"sig":"%b"}\n' % (head, (signer.public + signer.sign(kind, sha256([head]))).hex().encode())


def open_json(kind: str, raw: Buffer, verify: Verify) -> tuple[dict[str, Any], bytes]:
    """The body, and the public key that signed it, which the caller must trust.

    Raises:
        BadSignature: unsigned, or any bit was changed.
        BadFile: signed, but malformed; BadVersion: of a later version.
    """
    data = bytes(raw)
    head, tail = data[:-_TAIL_BYTES], _TAIL.fullmatch(data[-_TAIL_BYTES:])
    if tail is None:
        raise BadSignature(f"not a sealed {kind}: unsigned, truncated, or changed after signing")
    public = verify(kind, sha256([head]), bytes.fromhex(tail[1].decode()))
    body = parse_json(head + b"}", max_items=MAX_ITEMS)
    if not isinstance(body, dict):
        raise BadFile(f"malformed {kind}")
    check_kind(body, kind)
    del body["v"], body["kind"]
    return body, public


# -- card, catalog, heartbeat ----------------------------------------------------------------


def _head_to_json(sealed: Card | Catalog | Heartbeat) -> dict[str, Any]:
    return {"device": sealed.device, "to": address_to_json(sealed.to), "count": list(sealed.count)}


def _head(kind: str, body: Mapping[str, Any]) -> tuple[str, Address, Count, dict[str, Any]]:
    """Who wrote it, to whom, which one it is; and the other members."""
    match body:
        case {"device": str(device), "to": to, "count": [int(boot), int(n)], **rest} if (
            type(boot) is type(n) is int and min(boot, n) >= 0 and max(boot, n) < 1 << 63
        ):
            return device, address_from_json(to), (boot, n), rest
    raise BadFile(f"malformed {kind}: from whom, to whom, or which")


@dataclass(frozen=True, slots=True)
class Card:
    """Who the device is, for this requester.

    Attributes:
        to: the requester. count: which card it is.
        key: the device's public key, 64 hex digits.
        keep_days: how long a question waits for its owner before it is answered as expired.
        most_bytes: the largest message that it takes.
    """

    KIND: ClassVar[str] = "card"

    device: str
    to: Address
    count: Count
    key: str
    fedq: str
    formats: tuple[int, ...]
    keep_days: float = 30
    most_bytes: int = MOST_BYTES

    def to_json(self) -> dict[str, Any]:
        return _head_to_json(self) | {
            "key": self.key, "fedq": self.fedq, "formats": list(self.formats), "keep_days": self.keep_days,
            "most_bytes": self.most_bytes,
        }  # fmt: skip

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Card:
        device, to, count, rest = _head(cls.KIND, body)
        match rest:
            case {"key": str(key), "fedq": str(fedq), "formats": list(formats), "keep_days": int() | float() as days,
                  "most_bytes": int(most), **more,
            } if not more and ids.is_plan_id(key) and all(type(f) is int for f in formats) and (
                _is_days(days) and is_int(most) and most > 0
            ):  # fmt: skip
                return cls(device, to, count, key, fedq, tuple(formats), days, most)
        raise BadFile("malformed card")


def _is_days(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= MOST_DAYS  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that a requester may refer to; ``release``: the owner's rule for what comes of it, or `OWN`."""

    id: str
    tag: str | None
    type: Type
    release: str
    note: str = ""

    @property
    def owners(self) -> bool:
        """Whether it is the device's owner's, not the requester's own."""
        return self.release != OWN

    @property
    def private(self) -> frozenset[str]:
        """Itself, if what comes of it leaves only with the owner's word."""
        return frozenset() if self.release in ("open", OWN) else frozenset([self.id])

    def to_json(self) -> list[Any]:
        return [self.id, self.tag, str(self.type), self.release, self.note]

    @classmethod
    def from_json(cls, row: Any) -> Entry:
        match row:
            case [str(id_), (str() | None) as tag, str(type_), str(release), str(note)] if ids.is_id(id_):
                return cls(id_, tag, Type.parse(type_), release, note)
        raise BadFile("malformed catalog: a value")


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a requester may find at a device. ``plans``: (plan id, name) of those it knows."""

    KIND: ClassVar[str] = "catalog"

    device: str
    to: Address
    count: Count
    values: tuple[Entry, ...] = ()
    plans: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return _head_to_json(self) | {"values": [e.to_json() for e in self.values], "plans": list(self.plans)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Catalog:
        device, to, count, rest = _head(cls.KIND, body)
        match rest:
            case {"values": list(values), "plans": list(plans), **more} if not more:
                entries, known = tuple(map(Entry.from_json, values)), tuple(map(_plan, plans))
                return cls(device, to, count, entries, known)
        raise BadFile("malformed catalog")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a device was doing at ``time`` (seconds since 1970, its clock).

    Attributes:
        run: tells one start of the device from another, also where both had the same number; 16 hex digits.
        state: ``up``, or ``down`` when it ended as it should.
        waiting, running: ids of this requester's messages.
        held: (reply id, `ASKED`) of what waits for the owner; (value id, `STOPPED`) of results whose call is held.
        refused: (message id, error code) of files that were not taken and have no reply.
        progress: (message id, step, steps) of folds that are running.
        trouble: what holds the device up for now: the code of an error, such as ``disk_full``; or "".
    """

    KIND: ClassVar[str] = "heartbeat"

    device: str
    to: Address
    count: Count
    run: str
    time: float
    state: str
    waiting: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    held: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    progress: tuple[tuple[str, int, int], ...] = ()
    trouble: str = ""

    def to_json(self) -> dict[str, Any]:
        body = _head_to_json(self) | {
            "run": self.run, "time": self.time, "state": self.state, "waiting": list(self.waiting),
            "running": list(self.running), "held": list(self.held), "refused": list(self.refused),
        }  # fmt: skip
        more = {"progress": list(self.progress), "trouble": self.trouble}
        return {**body, **{k: v for k, v in more.items() if v}}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Heartbeat:
        device, to, count, rest = _head(cls.KIND, body)
        match rest:  # fmt: skip
            case {
                "run": str(run),
                "time": int() | float() as time,
                "state": "up" | "down" as state,
                "waiting": list(waiting),
                "running": list(running),
                "held": list(held),
                "refused": list(refused),
                **more,
            } if (
                more.keys() <= {"progress", "trouble"}
                and all(map(ids.is_id, [*waiting, *running]))
                and is_time(time)
                and _RUN.fullmatch(run)
            ):
                return cls(
                    device, to, count, run, float(time), state, tuple(waiting), tuple(running),
                    tuple(map(_two_texts, held)), tuple(map(_two_texts, refused)),
                    _progress(more.get("progress", [])), _code(more.get("trouble", "")),
                )  # fmt: skip
        raise BadFile("malformed heartbeat")


def _code(text: Any) -> str:
    if text == "" or (ids.is_text(text) and text.isidentifier()):
        return str(text)
    raise BadFile("malformed heartbeat: trouble")


def _progress(progress: Any) -> tuple[tuple[str, int, int], ...]:
    rows = progress if isinstance(progress, list) else [None]
    for row in rows:
        match row:
            case [str(id_), int(step), int(steps)] if ids.is_id(id_) and is_int(step) and is_int(steps):
                continue
        raise BadFile("malformed heartbeat: progress")
    return tuple(map(tuple, rows))


def _plan(row: Any) -> tuple[str, str]:
    id_, name = _two_texts(row)
    if ids.is_plan_id(id_):
        return id_, name
    raise BadFile("malformed catalog: a plan")


def _two_texts(row: Any) -> tuple[str, str]:
    match row:
        case [str(first), str(second)]:
            return first, second
    raise BadFile("malformed file: two texts expected")
