"""Have a plan sent back by the device that holds it. Knows no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedq.client import fetch, look
from fedq.errors import Ambiguous, BadFile, FedqError, UnknownPlan, from_code
from fedq.plan.codec import decode
from fedq.plan.file import KIND, PlanFile, decode_plan
from fedq.queue import pair as pairs
from fedq.queue.message import Failure, decode_reply
from fedq.trust.keys import signer_of

if TYPE_CHECKING:
    from fedq.client.device import Device

log = logging.getLogger("fedq.client")


def find(device: Device, ref: str) -> str:
    """The id of the plan there that has this name, or whose id begins so (6 digits or more).

    Raises:
        UnknownPlan: there is none; lists the names that are. Ambiguous: there are several.
    """
    there = device.catalog().plans
    fits = [id_ for id_, name in there if name == ref or (len(ref) >= 6 and id_.startswith(ref))]
    if not fits:
        return device.plan(ref).id  # sent, and not in the catalog yet; or it says what is there
    if len(fits) > 1:
        raise Ambiguous(f"{ref!r} fits {len(fits)} plans on {device.name}: {look.some(fits)}", hint="use the id")
    return fits[0]


def plan(
    device: Device, id_: str, timeout_s: float | None = None, *, on_wait: Callable[[str], None] | None = None
) -> PlanFile:
    """The plan as the device holds it, its state with it; the device keeps it.

    Raises:
        UnknownPlan: it is not there. TimedOut: nothing came in time.
        NotAllowed, and others: why the device refused it.
    """
    until, told = None if timeout_s is None else time.monotonic() + timeout_s, ""
    client, reply = device.client, device.ask_plan(id_)
    client.watch.add(device.pair.carrier.path(pairs.OUT))
    while True:
        if client.pump:
            client.pump()
        if (came := _read(device, reply, id_)) is not None:
            return came
        left_s = fetch.SCAN_S if until is None else min(fetch.SCAN_S, until - time.monotonic())
        why, code, _ = fetch.reason(device, reply, id_)
        if left_s <= 0:
            raise from_code(code, f"plan {id_[:12]} did not come from {device.name}: {why}", device=device.name)
        if not client.watch.wait(left_s) and why != told:
            told = why
            (on_wait or log.warning)(f"waiting for {device.name}: {why}")


def _read(device: Device, reply: str, id_: str) -> PlanFile | None:
    """The plan, if it is there; raises what the device says instead. Other files are not there for us."""
    name, outbox = device.pair.reply_name(reply), device.client.outbox
    kept = device.client.history.kept(device.number, reply)
    try:
        copy = fetch.come(device, name) if kept is None else None
        if kept is None and copy is None:
            return None
        raw = memoryview(copy.data if copy is not None else kept or b"")
        if _is_signed(KIND, raw, device.key):
            found = decode_plan(decode(raw))
            if found.id == id_:
                _let_go(device, reply, raw, kept=kept is not None)
                return found
        elif _is_signed("reply", raw, device.key):
            said = decode_reply(decode(raw))
            if isinstance(why := said.values.get(reply), Failure) and (said.id, said.to) == (
                reply,
                device.client.address,
            ):
                outbox.ask_again(device.number, [id_])
                if why.code == UnknownPlan.code:
                    device.forget_plan(id_)
                raise _Said(fetch.as_error(why, device.name))
    except _Said as said_why:
        raise said_why.error from None
    except BadFile as error:
        device.tried.refuse(name, error)
        return None
    device.tried.refuse(name, BadFile("it is another file"))
    return None


def _let_go(device: Device, reply: str, raw: memoryview, *, kept: bool) -> None:
    """The device is told that this came; of what a block asked for that may be done again, a copy stays here."""
    client = device.client
    if device.lasting or client.outbox.lasting(device.number, (), [reply])[1]:
        if not kept:
            client.history.keep(device.number, reply, raw, code=None, durable=client.config.durability == "full")
    else:
        client.outbox.take(device.number, (), [reply])


class _Said(Exception):
    """What the device answered, which may be a BadFile itself."""

    def __init__(self, error: FedqError) -> None:
        self.error = error


def _is_signed(kind: str, raw: memoryview, key: bytes) -> bool:
    try:
        return signer_of(kind, raw) == key
    except BadFile:
        return False
