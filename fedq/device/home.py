"""A device's private home: its key, whom it trusts, its values; and what the owner does with them.

``devices/<name>/`` holds ``device.json``, ``key``, ``trust/<requester>.json``,
``journal.sqlite``, ``values/``, ``spool/`` and ``failed/``; ``devices/.gate/`` is shared by the
devices of one root: lock, log, and ``poke``, which wakes a running gate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fedq
from fedq import fs, ids
from fedq.config import Config
from fedq.device import boots
from fedq.device.journal import OWNER, Journal, Value
from fedq.device.limits import Limits
from fedq.device.store import Store
from fedq.errors import Ambiguous, Conflict, UnknownDevice, UnknownValue, Unreachable, UsageError
from fedq.plan.codec import RawTensor
from fedq.queue import pair as pairs
from fedq.queue.message import Address
from fedq.queue.pair import OWN, Card, Catalog, Entry, Pair
from fedq.trust import keys, policy

Told = TypeVar("Told", Card, Catalog)

GATE = ".gate"
PRIVATE = ("key", "journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "values", "spool", "failed")
"""What of a home nobody else may even read."""
OWN_FILES = ("device.json", "trust", "up")
"""What of a home nobody else may write: it says whom the device trusts, and what it does."""
DEVICE = "device.json"
"""The file that makes a folder the home of a device: what is deleted last."""
DEADLINE_S = 3600.0
"""How long one call may take, if the owner says nothing else."""
KEEP_DAYS = 30
"""How long a question waits for the owner, if they say nothing else."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who may ask: ``alice-3f9a1c2e`` and the public key (hex) behind it."""

    name: str
    key: str


def init(
    config: Config,
    name: str,
    *,
    requester: Requester,
    new_id: ids.NewId = ids.new_id,
    group: str | None = None,
    deadline_s: float | None = None,
) -> Home:
    """Make a device's home, its pair with this requester, card and catalog; again is a no-op.

    Args:
        group: may use the pair, too: for a requester who is another user of this machine.
        deadline_s: how long one call may take from now on, > 0; a running call keeps the one it began with.

    Raises:
        UsageError: no directory can have this name, or there is no such group; nothing was made.
        Unreachable: a folder that shall be private is another user's, or open to others.
    """
    _check_words(name, requester, deadline_s)
    number = None if group is None else fs.group(group)
    path = config.devices / name
    check_private(path)
    if not pairs.is_root(config.queue):
        pairs.create_root(config.queue, id=new_id(), exact=group is not None)
    fs.make_dir(path / "trust")
    said = _said(path) if (path / DEVICE).exists() else {}
    said |= {"v": 1, "device": name, "queue": pairs.root_id(config.queue)}
    if deadline_s is not None:
        said["deadline_s"] = deadline_s
    home = Home(path, config, said=said)
    home.trust(requester, group=number)
    fs.replace(path / DEVICE, [_line(said)])  # last: until then no device is there, and `init` makes it again
    home.poke()
    return home


def _check_words(name: str, requester: Requester, deadline_s: float | None) -> None:
    if not ids.is_name(name):
        raise UsageError(f"{name!r} can not name a device", hint="use letters, digits, '_', '-', '.'; at most 64")
    if not (ids.is_name(requester.name) and pairs.is_requester(requester.name)):
        raise UsageError(f"{requester.name!r} is no name of a requester", hint="'fedq whoami' prints it")
    if deadline_s is not None and deadline_s <= 0:
        raise UsageError("a deadline of 0 s lets no call run", hint="--deadline 10min, or leave it out for 1h")


def check_private(path: Path) -> None:
    """Unreachable if anything of a device's home that is there is another user's, or open to others.

    What is told is mended by its owner: a key that was open for a day has been copied.
    """
    folder = path.parent / GATE
    fs.check_home(path, private=PRIVATE, own=OWN_FILES)
    fs.check_home(path / "trust", own=fs.names(path / "trust"))
    fs.check_home(folder, private=("log",), own=("lock", "poke", "workers"))


def _said(path: Path) -> dict[str, Any]:
    """What ``device.json`` says."""
    found: dict[str, Any] = json.loads(bytes(fs.read(path / "device.json", limit_bytes=1 << 16)))
    return found


def homes(config: Config) -> list[str]:
    """Names of the devices at home here."""
    return sorted(
        n for n in fs.names(config.devices) if ids.is_name(n) and (config.devices / n / "device.json").exists()
    )


def _unknown(name: str, config: Config) -> UnknownDevice:
    known = ", ".join(homes(config))
    hint = f"devices here: {known}" if known else f"fedq device init {name}"
    return UnknownDevice(f"no device {name!r} in {config.devices} (there: {known or 'none'})", hint=hint)


def _line(body: object) -> bytes:
    return json.dumps(body, indent=1).encode() + b"\n"


class Home:
    """An existing device's home.

    Args:
        said: what ``device.json`` will say, of one that is being made.

    Raises:
        UnknownDevice: no device of this name lives here.
        Unreachable: it is another user's, or others can write or read in it.
    """

    def __init__(self, path: Path, config: Config, *, said: dict[str, Any] | None = None) -> None:
        if said is None and not (path / DEVICE).exists():
            raise _unknown(path.name, config)
        check_private(path)
        self.path, self.config, self.name = path, config, path.name
        self.durable = config.durability == "full"
        self.key = keys.load_or_create(path / "key")
        self._take_over(_said(path) if said is None else said)
        self.journal = Journal(path / "journal.sqlite", durable=self.durable)
        self.store = Store(path, self.journal, self.key, durable=self.durable)
        self._written: dict[tuple[str, str], tuple[Card | Catalog, tuple[int, ...] | None]] = {}
        self.is_latest = False
        """Whether it was looked whether a later copy of this device was seen."""
        self.changed = False
        """Whether this very process changed something that its gate, if it has one, did not look at."""

    def reread(self) -> None:
        """Take over what ``device.json`` says now."""
        self._take_over(_said(self.path))

    def _take_over(self, said: Mapping[str, Any]) -> None:
        self.address = Address(self.name, self.key.public.hex(), said["queue"])
        """Where what is sent to this device goes."""
        self.deadline_s = float(said.get("deadline_s", DEADLINE_S))
        self.keep_days = float(said.get("review", {}).get("keep_days", KEEP_DAYS))
        self.limits = Limits.of(said)

    def to(self, requester: Requester) -> Address:
        """Where what is written for a requester goes."""
        return Address(requester.name, requester.key, self.address.root)

    @property
    def keep_s(self) -> float:
        """How long a question waits for the owner."""
        return 86_400.0 * self.keep_days

    def close(self) -> None:
        self.journal.close()

    def check_root(self) -> None:
        """That the queue root is there, and the one this device was made for."""
        if pairs.root_id(self.config.queue) != self.address.root:
            raise Unreachable(
                f"{self.config.queue} is another queue root than the one {self.name!r} was made for",
                hint=f"fedq device init {self.name}",
            )

    # -- whom it trusts

    def trust(self, requester: Requester, *, group: int | None = None) -> None:
        """Let this requester ask: keep its key, make the pair; ``group``: as in `pairs.create_pair`.

        Raises:
            Conflict: another key was trusted under this name, whose digits are the same: what is stored here is its.
        """
        for known in self._ever_trusted():
            if known.name == requester.name and known.key != requester.key:
                raise Conflict(
                    f"{requester.name} is, or was, somebody else here: its key is {known.key}, not {requester.key}",
                    hint="a key that begins with other digits has a name of its own: that requester makes a new one",
                )
        self._check_latest()
        self._say_trusted(requester, trusted=True)
        pairs.create_pair(self.config.queue, self.name, requester.name, durable=self.durable, group=group)
        self.tell()

    def _say_trusted(self, requester: Requester, *, trusted: bool) -> None:
        body = {"v": 1, "name": requester.name, "key": requester.key} | ({} if trusted else {"trusted": False})
        fs.replace(self.path / "trust" / f"{requester.name}.json", [_line(body)])

    def trusted(self) -> list[Requester]:
        """Requesters by name, as their files in ``trust/`` say."""
        return [requester for requester, trusted in self._ever_trusted().items() if trusted]

    def _ever_trusted(self) -> dict[Requester, bool]:
        """All that are or were trusted, and whether they are."""
        found = {}
        for name in sorted(fs.names(self.path / "trust")):
            if name.endswith(".json"):
                body = json.loads(bytes(fs.read(self.path / "trust" / name, limit_bytes=1 << 16)))
                found[Requester(body["name"], body["key"])] = bool(body.get("trusted", True))
        return found

    def _check_latest(self) -> None:
        """That no later copy of this device was seen, before anything is written over what it wrote."""
        if not self.is_latest:
            boots.check(self)
            self.is_latest = True

    def untrust(self, who: str, *, by: str = "") -> Requester:
        """Let this requester ask no more: a name, or the beginning of it before the key's digits.

        At once, also where a gate serves the device: what it asked is denied, its workers end.

        Raises:
            UnknownValue: nobody of this name is trusted. Ambiguous: two are.
        """
        known = {r.name: r for r in self.trusted()}
        fits = [r for r in known.values() if who in (r.name, r.name.rpartition("-")[0])]
        if not fits:
            raise UnknownValue(f"{self.name} trusts no {who[:80]!r}", hint=f"trusted: {', '.join(known) or 'nobody'}")
        if len(fits) > 1:
            raise Ambiguous(f"{who!r} fits {', '.join(r.name for r in fits)}", hint="give the digits of the key, too")
        (gone,) = fits
        self._say_trusted(gone, trusted=False)
        with self.journal.transaction():
            now = fs.clock()
            for question in [q for q in self.journal.questions() if q.sender == gone.name]:
                self.journal.say(question, "deny", "its requester is not trusted any more", now=now)
            self.journal.record("untrusted", gone.name, "", now=now, by=by)
        self.poke()
        return gone

    def erase(self) -> list[str]:
        """Delete the device: its values, its record, its key, and its pairs with what lies in them.

        Returns:
            What of the pairs could not be deleted: other users' files.
        """
        self.close()
        boots.forget(self)
        left = []
        try:
            fs.remove(self.config.queue / self.name)
        except Unreachable as error:
            left.append(str(error))
        for name in fs.names(self.path):
            if name != DEVICE:
                fs.remove(self.path / name)
        fs.remove(self.path)
        return left

    def pair(self, requester: str) -> Pair:
        return pairs.open_pair(self.config.queue, self.name, requester, durable=self.durable)

    def spool(self, requester: str) -> Path:
        """Where large messages of a requester are kept until they are done."""
        return self.path / "spool" / requester

    def failed(self, requester: str) -> Path:
        """Where messages of a requester are kept that ended their workers too often."""
        return self.path / "failed" / requester

    # -- the owner's values

    def add(
        self,
        raw: RawTensor,
        *,
        tag: str,
        release: str | None = None,
        replace: bool = False,
        id: str = "",
        note: str = "",
        allow: Sequence[str] | None = None,
        by: str = "",
    ) -> str:
        """Store an owner's tensor under a tag; returns its id.

        Args:
            replace: take the place of the values that carry the tag now.
            note: for requesters to search in; words with ``#`` are further tags.
            allow: the requesters (``alice-3f9a1c2e``) who alone may know of it; None: all who are trusted.
            by: who adds it, for the record.

        Raises:
            Conflict: the tag is taken and ``replace`` is not said.
            UsageError: a name without its key is allowed.
        """
        self._check_latest()
        self._check_names(allow or ())
        rule, there = policy.check_rule(release or policy.DEFAULT), self.journal.tagged(OWNER, tag)
        if there and not replace:
            raise Conflict(f"{self.name} has a value tagged {tag!r} already ({there[0].id})", hint="add --replace")
        if not tag or len(tag) > 200:
            raise UsageError("a tag has 1 to 200 characters")
        if id and self.journal.exists(OWNER, id):
            raise Conflict(f"{self.name} has, or had, a value {id} already: an id has one meaning")
        value = self.store.keep(OWNER, id or ids.new_id(), raw, release=rule, tag=tag)
        with self.journal.transaction():
            gone = self.journal.replace([v.id for v in there], value.id, now=fs.clock())
            self.journal.add([value], message=None, now=fs.clock())
            if note or allow is not None:
                self.journal.annotate(OWNER, value.id, note, allow)
            instead = f", instead of {', '.join(v.id for v in there)}" if there else ""
            self._record("data replaced" if there else "data added", value, f"{value.type} {rule}{instead}", by)
        self.store.forget(OWNER, tuple(gone))
        self._changed()
        return value.id

    def _check_names(self, names: Sequence[str]) -> None:
        """That each is a requester's name with its key: anybody may call themselves alice."""
        for name in names:
            if not (ids.is_name(name) and pairs.is_requester(name)):
                known = [r.name for r in self.trusted()]
                like = ", ".join([n for n in known if n.startswith(f"{name}-")] or known)
                raise UsageError(
                    f"{name!r} can not be allowed: a requester is a name and the first digits of its key",
                    hint=f"trusted here: {like or 'nobody'}",
                )

    def _record(self, what: str, value: Value, text: str, by: str) -> None:
        self.journal.record(what, OWNER, value.id, json.dumps([value.tag, text]), now=fs.clock(), by=by)

    def remove(self, ref: str, *, by: str = "") -> list[str]:
        """Forget the owner's values with this tag, or the one with this id."""
        self._check_latest()
        ref = ref.removeprefix("#")
        found = self.journal.tagged(OWNER, ref) or [v for v in self.journal.find(ref) if v.scope == OWNER]
        if not found:
            raise UnknownValue(f"{self.name} has no value {ref!r}{self._tags()}")
        with self.journal.transaction():
            gone = self.journal.remove([v.id for v in found], now=fs.clock())
            for value in found:
                self._record("data removed", value, str(value.type), by)
        for scope, id_ in gone:
            self.store.forget(scope, (id_,))
        self._changed()
        return [v.id for v in found]

    def values(self) -> list[Value]:
        """The owner's values, oldest first."""
        return self.journal.tagged(OWNER)

    def _tags(self) -> str:
        tags = ", ".join(sorted({v.tag or "" for v in self.values()}))
        return f" (tags: {tags})" if tags else ""

    # -- the owner's word

    def stopped(self) -> list[tuple[str, str, int, float]]:
        """(requester, message, action, when last) of calls that are held: the gate ended five times while they ran."""
        return [(*key, ends.time) for key, ends in self.journal.stopped().items()]

    def resume(self, prefix: str = "") -> list[tuple[str, str]]:
        """Let held calls go on: all, or those of the message named by its id or a prefix of 6 and more digits.

        Returns:
            (requester, message) of what goes on.
        """
        there = list(dict.fromkeys((sender, message) for sender, message, _, _ in self.stopped()))
        fits = [key for key in there if key[1].startswith(prefix)] if not 0 < len(prefix) < 6 else []
        if not fits:
            held = ", ".join(message for _, message in there) or "nothing"
            if not prefix:
                raise UnknownValue(f"{self.name} holds nothing: there is nothing to let go on")
            raise UnknownValue(
                f"{self.name} holds no message {prefix!r} (held: {held})",
                hint="6 or more digits of an id, or none for all",
            )
        if prefix and len(fits) > 1:
            raise Ambiguous(f"{prefix!r} fits {', '.join(message for _, message in fits)}", hint="give more digits")
        with self.journal.transaction():
            for sender, message in fits:
                self.journal.resume(sender, message)
                self.journal.record("resumed", sender, message, now=fs.clock())
        self.poke()
        return fits

    # -- what others may see

    def tell(self, only: Iterable[str] | None = None) -> None:
        """Write each requester's card and catalog.

        One that stands as it was written last is left alone: when it was written tells what its owner does.
        """
        self._check_latest()
        only = None if only is None else set(only)
        for requester in (r for r in self.trusted() if only is None or r.name in only):
            self._write(requester.name, self.card(requester))
            self._write(requester.name, self.catalog(requester))

    def _write(self, requester: str, told: Told) -> None:
        pair, key = self.pair(requester), (requester, told.KIND)
        path = pair.carrier.path(f"{told.KIND}.json")
        if self._written.get(key) != (told, fs.fingerprint(path)):
            with self.journal.transaction():  # of two processes, the one with the greater count writes last
                pair.write(dataclasses.replace(told, count=self.journal.next_count()), self.key)
            self._written[key] = told, fs.fingerprint(path)

    def card(self, asks: Requester) -> Card:
        """Who the device is, under no count yet."""
        key, most = self.key.public.hex(), self.limits.message_bytes
        return Card(self.name, self.to(asks), (0, 0), key, fedq.__version__, (1,), self.keep_days, most)

    def catalog(self, asks: Requester) -> Catalog:
        """What a requester may find, under no count yet: the owner's tagged values, its own, its plans."""
        requester = asks.name
        seen = (v for v in self.journal.tagged(OWNER) if self.journal.may_see(requester, v.id))
        values: Sequence[Value] = [*seen, *self.journal.tagged(requester)]
        entries = tuple(Entry(v.id, v.tag, v.type, v.release or OWN, self.journal.note(v.scope, v.id)) for v in values)
        return Catalog(self.name, self.to(asks), (0, 0), entries, tuple(self.journal.plans(requester)))

    def sweep(self, *, before: float) -> int:
        """Delete temporary files of crashes, last written before a time: here, and in the pairs; how many."""
        inside = ("", "trust", "values", "spool", "failed")
        beside = [self.config.devices / GATE, boots.beside(self).parent]
        folders = [self.path / name for name in inside] + beside
        requesters = [requester.name for requester in self.trusted()]
        folders += [self.path / name / who for name in ("values", "spool", "failed") for who in requesters]
        swept = sum(fs.sweep(folder, before=before) for folder in folders)
        swept += fs.sweep(self.path / "values", before=before, also=self._is_left)
        return swept + sum(self.pair(who).sweep(before=before) for who in requesters)

    def _is_left(self, name: str) -> bool:
        """Whether this is a file of an owner's value that is not there: its command was killed before the end."""
        id_, _, suffix = name.partition(".")
        return bool(suffix) and ids.is_id(id_) and self.journal.kept(id_) is None

    def _changed(self) -> None:
        self.tell()
        self.poke()

    def poke(self) -> None:
        """Wake the gate, if one runs: something changed that is not in a queue."""
        self.changed = True
        fs.make_dir(self.config.devices / GATE)
        fs.replace(self.config.devices / GATE / "poke", [ids.new_id().encode()], durable=False)
