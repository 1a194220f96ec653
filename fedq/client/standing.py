"""Where each value stands that was asked for, read off the files: nobody is asked, nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedq import spelling
from fedq.client import fetch
from fedq.client.history import Sent
from fedq.errors import FedqError, UnknownDevice
from fedq.queue import pair as pairs
from fedq.queue.pair import Heartbeat

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.session import Client


@dataclass(frozen=True, slots=True)
class Standing:
    """A value and how far it is; ``why``: what it waits for, or "" when it waits for nothing."""

    sent: Sent
    state: str
    why: str = ""


def standing(client: Client, *, most: int = 50, everything: bool = False) -> list[Standing]:
    """The newest values that were promised, and where they stand."""
    client.outbox.settle()
    sent = client.history.sent(client.root, most=most, everything=everything)
    looks = {name: _Look(client, name) for name in dict.fromkeys(s.device for s in sent)}
    return [looks[s.device].at(s) for s in sent]


def of(device: Device, values: Sequence[str]) -> list[Standing]:
    """The same of some values."""
    look, found = _Look(device.client, device.name), (device.client.history.of(device.number, v) for v in values)
    return [look.at(s) for s in found if s is not None]


class _Look:
    """One look at a device's pair, for all its values."""

    def __init__(self, client: Client, name: str) -> None:
        self._now = client.now()
        self._device: Device | None = None
        self._beat: Heartbeat | None = None
        self._in = self._out = frozenset[str]()
        try:
            self._device = device = client.device(name)
            self._beat = fetch.heartbeat(device)
            self._in, self._out = (frozenset(device.pair.carrier.list(f)) for f in (pairs.IN, pairs.OUT))
        except UnknownDevice as error:
            self._gone = str(error)
        except FedqError as error:
            self._gone = str(error)
            self._device = None

    def at(self, s: Sent) -> Standing:
        if s.state:
            return Standing(s, s.state)
        if s.kept:
            return Standing(s, "failed" if s.code else "fetched", spelling.name(s.code or ""))
        if self._device is None:
            return Standing(s, "unknown", self._gone)
        if s.reply and f"{s.reply}.safetensors" in self._out:
            return Standing(s, "answered")
        if not s.put:
            return Standing(s, "not sent", "the queue could not be used; the next command sends it")
        if s.reply is None:
            return Standing(
                s, "done or under way" if not self._waits(s) else "waiting", "its release was not asked for"
            )
        why, code, _ = fetch.reason(self._device, s.reply, s.value)
        return Standing(s, self._state(s, code), why)

    def _waits(self, s: Sent) -> bool:
        return f"{s.message}.safetensors" in self._in

    def _state(self, s: Sent, code: str) -> str:
        if code == "waiting_for_approval":
            return "held"
        if code != "timed_out":
            return "refused"
        if self._beat is not None and s.message in self._beat.running:
            return "running"
        if self._waits(s):
            return "in the queue"
        return "expired" if self._now > s.expires else "waiting"
