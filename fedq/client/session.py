"""Client: who asks. Its key, whom it trusts, its outbox, and the devices it has a pair with.

``home`` (0700) holds ``key``, ``outbox.sqlite``, and ``trust/<root id>/<device>.json``: the same
device name under another root is another device.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fedq import config as configs
from fedq import fs, ids
from fedq.client import fetch, sending
from fedq.client.device import Device
from fedq.client.history import History
from fedq.client.outbox import Outbox
from fedq.client.pointers import PointerTensor
from fedq.config import Config
from fedq.errors import Ambiguous, BadFile, Conflict, FedqError, UnknownDevice, UnknownValue, Unreachable
from fedq.plan.codec import parse_json
from fedq.queue import pair as pairs
from fedq.queue.message import Address
from fedq.queue.pair import Card
from fedq.queue.watch import Watch
from fedq.trust import keys
from fedq.trust.keys import Key

log = logging.getLogger("fedq.client")

PRIVATE = ("key", "outbox.sqlite", "outbox.sqlite-wal", "outbox.sqlite-shm", "spool", "replies")
"""What of a home nobody else may even read."""
SWEEP_AGE_S = 24 * 3600.0
"""What a crash left in the home, and was not written to for so long, is swept at the next start."""


class Client:
    """A requester at one queue root.

    Args:
        now: seconds since 1970. new_id: how fresh ids are made. Tests give their own of both.
        key: the requester's, instead of the one in its home.
        pump: called before and while a value is waited for: a device that lives in this process
            does its work there.

    Raises:
        Unreachable: the queue root is not there; nothing was written.
    """

    def __init__(
        self,
        config: Config,
        *,
        now: Callable[[], float] = fs.clock,
        new_id: ids.NewId = ids.new_id,
        key: Key | None = None,
        pump: Callable[[], object] | None = None,
    ) -> None:
        self.config, self.now, self.new_id, self.pump = config, now, new_id, pump
        self.root = pairs.root_id(config.queue)
        self._mark: tuple[int, ...] | None = None
        fs.make_dir(config.home)
        fs.check_home(config.home, private=PRIVATE, own=("trust", f"trust/{self.root}"))
        self.key = key or keys.load_or_create(config.home / "key")
        self.name = f"{config.user}-{self.key.fingerprint}"
        self.address = Address(self.name, self.key.public.hex(), self.root)
        self.outbox = Outbox(config.home / "outbox.sqlite", durable=config.durability == "full")
        self.history = History(self.outbox)
        self._devices: dict[str, Device] = {}
        self._close = weakref.finalize(self, self.outbox.close)
        self.outbox.sweep(before=now() - SWEEP_AGE_S)
        self._finish_all()
        if self.history.due(now()):
            self.collect()

    def close(self) -> None:
        """Record what was taken away and let go of the outbox; also done when the process ends."""
        self._close()

    def device(self, name: str) -> Device:
        """The handle on a device; the same for the same name.

        Raises:
            UnknownDevice: it has no pair with this requester, or its key is not known here.
        """
        if name not in self._devices:
            self._devices[name] = Device(name, self)
        return self._devices[name]

    def devices(self) -> list[str]:
        """Names of the devices that have a pair with this requester."""
        return [d for d in pairs.devices_of(self.config.queue) if self.name in pairs.pairs_of(self.config.queue, d)]

    def check_root(self) -> None:
        """That the queue root is there, and still the same.

        Raises:
            Unreachable: it is not; nothing may be written.
        """
        seen = fs.fingerprint(self.config.queue / pairs.MARK)
        if seen is None or seen != self._mark:
            if pairs.root_id(self.config.queue) != self.root:
                raise Unreachable(f"{self.config.queue} is another queue root than before", hint="start again")
            self._mark = seen

    @functools.cached_property
    def watch(self) -> Watch:
        return Watch()

    # -- trust

    def trusted(self, name: str) -> bytes:
        """The public key of a device, as this requester's trust says."""
        path = self.config.home / "trust" / self.root / f"{name}.json"
        try:
            return _key(bytes(fs.read(path, limit_bytes=1 << 16)))
        except FileNotFoundError:
            raise UnknownDevice(
                f"device {name!r} in {self.config.queue} is not trusted: {path} is not there",
                hint=f"'fedq device init {name}' on its machine writes that file for who runs it",
            ) from None
        except BadFile:
            raise UnknownDevice(f'{path} is not of the form {{"key": "64 hex digits"}}') from None

    # -- values of many devices

    def find(self, ref: str) -> PointerTensor:
        """The one value that ``device:tag`` or ``device:id`` names.

        Raises:
            UnknownDevice, UnknownValue, Ambiguous.
        """
        name, colon, rest = ref.partition(":")
        if not colon or not rest:
            raise UnknownValue(f"{ref!r} names no device", hint="write device:tag or device:id")
        return self.device(name).find(rest)

    def outcomes(
        self,
        pointers: Sequence[PointerTensor],
        timeout_s: float | None = None,
        *,
        take: bool = False,
        on_wait: Callable[[str], None] | None = None,
    ) -> list[fetch.Outcome]:
        """What came of each value: a RawTensor, a Number, or the error. See `fetch.outcomes`."""
        return fetch.outcomes(pointers, timeout_s, take=take, on_wait=on_wait)

    def name_run(self, results: Sequence[PointerTensor], run_id: str | None = None) -> str:
        """One id for results at several devices."""
        run_id = run_id or self.new_id()
        self.history.add_run(run_id, [(p.device.number, p.id) for p in results])
        return run_id

    def run(self, ref: str) -> list[PointerTensor]:
        """The results that a run id, or the first 6 and more digits of one, names.

        Raises:
            UnknownValue: no run has this id. Ambiguous: several have.
        """
        found = self.history.run(ref) if len(ref) >= 6 else {}
        if len(found) > 1:
            raise Ambiguous(f"{ref!r} fits the runs {', '.join(found)}")
        for rows in found.values():
            if any(root != self.root for root, _, _ in rows):
                raise UnknownValue(f"run {ref!r} went to another queue root than {self.config.queue}")
            return [self.device(name).find(value) for _, name, value in rows]
        raise UnknownValue(f"no run {ref!r} was sent by you")

    # -- what a crash left

    def _finish_all(self) -> None:
        """Finish sends that a crash cut off; a device that can not be reached is left for later."""
        for name in self.outbox.interrupted(self.root, self.now()):
            try:
                sending.finish(self.device(name))
            except FedqError as error:
                log.warning("%s: a message of before is not sent yet: %s", name, error)

    # -- forgetting

    def collect(self) -> int:
        """Forget what expired a month ago, and plans that devices let go of; how many messages."""
        for name in self.devices():
            try:
                device = self.device(name)
                there = {id_ for id_, _ in device.catalog().plans}
                self.history.forget_plans(device.number, there, self.now())
                fs.sweep(device.pair.carrier.path(pairs.IN), before=self.now() - SWEEP_AGE_S, follow=False)
            except FedqError as error:
                log.info("%s: not looked at: %s", name, error)
        return self.history.collect(self.now())


def _key(raw: bytes) -> bytes:
    match parse_json(raw):
        case {"key": str(key)} if ids.is_plan_id(key):
            return bytes.fromhex(key)
    raise BadFile("no key")


def trust_device(config: Config, name: str, key_hex: str, *, replace: bool = False) -> None:
    """Note a device's key in the requester's home: its signed files are believed from now on.

    Args:
        replace: although another key was trusted before, or the device's card in the queue holds another.

    Raises:
        Conflict: so it is, and ``replace`` was not said.
    """
    folder = config.home / "trust" / pairs.root_id(config.queue)
    fs.make_dir(config.home)
    fs.make_dir(folder)
    fs.check_home(config.home, own=("trust", f"trust/{folder.name}"))
    if not replace:
        _check_key(config, folder / f"{name}.json", name, key_hex)
    body = {"v": 1, "device": name, "root": folder.name, "key": key_hex}
    fs.replace(folder / f"{name}.json", [json.dumps(body, indent=1).encode() + b"\n"])


def forget_device(config: Config, name: str, key: bytes) -> None:
    """Believe this device no more, if it is the one that was trusted: it is deleted."""
    with suppress(FileNotFoundError, FedqError):
        path = config.home / "trust" / pairs.root_id(config.queue) / f"{name}.json"
        if _key(bytes(fs.read(path, limit_bytes=1 << 16))) == key:
            fs.delete(path)


def _check_key(config: Config, path: Path, name: str, key_hex: str) -> None:
    """Conflict if another key is known for this device: it may be another device, or an impostor."""
    hint = f"ask its owner which is right; fedq device trust {name} {key_hex} --replace"
    with suppress(FileNotFoundError, BadFile):
        before = _key(bytes(fs.read(path, limit_bytes=1 << 16))).hex()
        if before != key_hex:
            raise Conflict(f"{name} was trusted with another key: {before}, not {key_hex}", hint=hint)
    key = keys.load_or_create(config.home / "key")
    requester = f"{config.user}-{key.fingerprint}"
    with suppress(FileNotFoundError, BadFile, UnknownDevice):
        raw = pairs.open_pair(config.queue, name, requester).read_bytes(Card.KIND)
        signer = pairs.open_json(Card.KIND, raw, keys.verify)[1].hex()
        if signer != key_hex:
            raise Conflict(f"the card of {name} in {config.queue} is signed by {signer}, not by {key_hex}", hint=hint)


def own_key() -> Key:
    """The key in this user's home; made if there is none. Signs the plan files they save."""
    return keys.load_or_create(configs.find().home / "key")


def here() -> Client:
    """The client of the roots found from here; one per process, thread and roots."""
    return _client(configs.find(), os.getpid(), threading.get_ident())


@functools.cache
def _client(config: Config, process: int, thread: int) -> Client:
    return Client(config)
