"""Ask for values and wait for the replies: read, check the signature, say why nothing comes.

Events are hints: a reply is looked for at least every second. A file that the device did not
sign, or that is another reply, is not there for us: the wait goes on.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedq import errors, spelling
from fedq.client.rest import collector_rests
from fedq.errors import BadFile, BadSignature, FedqError, Quota, TimedOut, UnknownPlan, WaitingForApproval
from fedq.fs import Copy
from fedq.plan.codec import Buffer, RawTensor, decode
from fedq.queue import pair as pairs
from fedq.queue.message import Failure, Number, Reply, decode_reply
from fedq.queue.pair import Heartbeat
from fedq.queue.watch import spin
from fedq.trust import keys

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.pointers import PointerTensor

log = logging.getLogger("fedq.client")

SCAN_S = 1.0
STEPS_S = 5.0
"""How often who waits is told how far a fold is."""
SILENT_S = 30.0
"""A device that was not heard of for so long is not running, whatever it said last."""
ASKED = "it waits for its owner"
HELD = "held: the device's daemon ended five times while it ran; it goes on when its owner says so"
HOLDS = {
    "disk_full": "its disk is full; it goes on by itself",
    "unreachable": "it can not use its queue or disk; it goes on by itself",
    "other_torch": "its torch is not the one that plans were judged for; its owner has to see to it",
    "quota": "it holds as many of your messages as its owner allows (limits.messages), and reads on as some are done",
    "old_copy": "a later copy of it was seen; its owner has to see to it",
}
"""What holds a device up, by the code that its heartbeat tells."""
_HELD = {
    pairs.ROOM: "its reply waits for room: replies of yours that were not acknowledged take it all; read some",
    pairs.BLOCKED: "something stands in out/ at its reply's name that the device may not remove; its owner's log says",
}
MOST_TEXT = 2000
"""Characters of a device's text that are shown."""
GAP = "   "
"""Stands in a text before a line, or a step."""
ASK_AGAIN = ("missing_value", "quota")
"""Failures that may be over when the value is asked for again."""

Outcome = RawTensor | Number | FedqError
OnWait = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A reply that was checked, with its tensors."""

    reply: Reply
    tensors: dict[str, RawTensor]

    def outcome(self, device: str, id_: str) -> Outcome:
        value = self.reply.values[id_]
        if isinstance(value, Failure):
            return as_error(value, device)
        return value if isinstance(value, Number) else self.tensors[value]


def as_error(failure: Failure, device: str) -> FedqError:
    """What a device says went wrong, as the exception it names; its texts cannot look like anybody else's."""
    facts = {name: _said(fact) for name, fact in failure.fields.items()}
    error = errors.from_code(failure.code, f"{_said(failure.text)} (on {device})", **facts)
    if isinstance(hint := facts.get("hint"), str):
        error.hint = hint
    return error


def _said(fact: Any) -> Any:
    """A fact whose texts are spelled."""
    match fact:
        case str():
            return GAP.join(spelling.text(part, most=MOST_TEXT) for part in fact.split(GAP))
        case list() | tuple():
            return type(fact)(map(_said, fact))
    return fact


def outcomes(
    pointers: Sequence[PointerTensor],
    timeout_s: float | None = None,
    *,
    take: bool = False,
    on_wait: OnWait | None = None,
    each: Callable[[RawTensor | Number], Any] | None = None,
) -> list[Any]:
    """What came of each value, in order, an `Outcome`; all are asked for before any is waited for.

    Args:
        timeout_s: for all together; what did not come by then is a TimedOut or WaitingForApproval.
        take: if all came, take them away: this requester's own values are dropped with a later message.
        on_wait: told why nothing comes, when a second has passed, and when the reason changes.
        each: makes of a tensor or number what is given back, while others are still on their way.

    Raises:
        UnknownValue: a value was never promised; nothing was asked for.
        Unreachable: the queue can not be used.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    wanted: dict[Device, list[PointerTensor]] = {}
    with collector_rests():
        for p in pointers:
            wanted.setdefault(p.device, []).append(p)
        for device, some in wanted.items():
            device.check_known(some)
        asked = {device: device.ask(some) for device, some in wanted.items()}
        for device in wanted:
            device.flush()
        asked = {
            device: device.asked_last(replies, {p.address: p for p in wanted[device]})
            for device, replies in asked.items()
        }
    found: list[Any] = [None] * len(pointers)
    for (device, reply), places in _by_reply(pointers, asked).items():
        keep = not take or _stays(device, reply, [pointers[n].address for n in places])
        came = _wait(device, reply, pointers[places[0]].address, until, on_wait or log.warning, keep)
        _read_out(pointers, places, came, each, found)
    _forget(pointers, found, asked, take=take)
    return found


def _stays(device: Device, reply: str, values: Sequence[str]) -> bool:
    """Whether the reply must be there when a block is done again."""
    return device.lasting or any(device.client.outbox.lasting(device.number, values, [reply]))


@collector_rests()
def _by_reply(
    pointers: Sequence[PointerTensor], asked: dict[Device, dict[str, str]]
) -> dict[tuple[Device, str], list[int]]:
    """Which replies are to be waited for, and which of the pointers' values come in each."""
    places: dict[tuple[Device, str], list[int]] = {}
    for n, p in enumerate(pointers):
        places.setdefault((p.device, asked[p.device][p.address]), []).append(n)
    return places


@collector_rests()
def _read_out(
    pointers: Sequence[PointerTensor],
    places: Sequence[int],
    came: Arrived | FedqError,
    each: Callable[[RawTensor | Number], Any] | None,
    found: list[Any],
) -> None:
    """What came in one reply, to the places of its values."""
    for n in places:
        p = pointers[n]
        outcome = came if isinstance(came, FedqError) else came.outcome(p.device.name, p.address)
        found[n] = outcome if each is None or isinstance(outcome, FedqError) else each(outcome)


@collector_rests()
def _forget(
    pointers: Sequence[PointerTensor], found: list[Any], asked: dict[Device, dict[str, str]], *, take: bool
) -> None:
    """Take away what came, if all did; let go of replies that may be different next time."""
    for device, replies in asked.items():
        mine = [(p, o) for p, o in zip(pointers, found, strict=True) if p.device == device]
        for p, o in mine:
            p.told = p.told or isinstance(o, FedqError)  # errors name the id: it may be asked for elsewhere
        again = [p.address for p, o in mine if isinstance(o, FedqError) and o.code in ASK_AGAIN]
        if again:
            for reply in {replies[a] for a in again}:
                device.client.outbox.acknowledge(device.number, reply)
            device.client.outbox.ask_again(device.number, again)
        for o in (o for _, o in mine if isinstance(o, UnknownPlan | Quota)):
            device.forget_plan(str(o.fields.get("plan", o.fields.get("id", ""))))
        if take and not device.lasting and not any(isinstance(o, FedqError) for o in found):
            device.take([p for p, _ in mine], set(replies.values()))


def _wait(
    device: Device, reply: str, value: str, until: float | None, on_wait: OnWait, keep: bool
) -> Arrived | FedqError:
    """One reply of one device, or why it did not come."""
    client, told, said = device.client, "", 0.0
    client.watch.add(device.pair.carrier.path(pairs.OUT))
    while True:
        if client.pump:
            client.pump()
        if (came := _read(device, reply, value, keep=keep) or kept(device, reply, value)) is not None:
            return came
        if device.is_asked(reply):
            return _waits_for_owner(device, reply, value)
        client.outbox.settle()
        left_s = SCAN_S if until is None else min(SCAN_S, until - time.monotonic())
        if left_s <= 0:
            return _late(device, reply, value)
        spin(lambda: select.select([client.watch], [], [], 0)[0])
        if client.watch.wait(left_s):
            continue
        why, now = reason(device, reply, value)[0], time.monotonic()
        if why != told and (why.partition(": step ")[0] != told.partition(": step ")[0] or now >= said + STEPS_S):
            told, said = why, now
            on_wait(f"waiting for {device.name}: {why}")


def _read(device: Device, reply: str, value: str, *, keep: bool) -> Arrived | None:
    """The reply, if it is there and is what it says it is; ``keep`` a copy, so that it can be read again."""
    name = device.pair.reply_name(reply)
    copy = come(device, name)
    if copy is None:
        return None
    raw = copy.data
    try:
        found = _checked(device, reply, value, raw, copy.signed)
    except BadFile as error:
        device.tried.refuse(name, error)
        return None
    if keep and not any(_may_change(v) for v in found.reply.values.values()):
        durable = device.client.config.durability == "full"
        codes = [v.code for v in found.reply.values.values() if isinstance(v, Failure)]
        device.client.history.keep(device.number, reply, raw, code=codes[0] if codes else None, durable=durable)
    return found


def come(device: Device, name: str) -> Copy | None:
    """A copy of what lies at a reply's name, if it names the device as its signer and was not tried before."""
    carrier = device.pair.carrier
    if (mark := carrier.mark(name)) is None or not device.tried.is_new(name, mark):
        return None
    try:
        return carrier.get_hashed(name, device.client.config.reply_bytes, key=device.key)
    except FileNotFoundError:
        return None
    except BadFile as error:
        hint = "reply_bytes in fedq.toml says how much is read" if "size_bytes" in error.fields else ""
        device.tried.refuse(name, error, hint)
        return None


def _may_change(value: str | Number | Failure) -> bool:
    return isinstance(value, Failure) and value.code in ASK_AGAIN


def kept(device: Device, reply: str, value: str) -> Arrived | None:
    """The reply as it was kept, if it came before."""
    raw = device.client.history.kept(device.number, reply)
    try:
        return None if raw is None else _checked(device, reply, value, raw)
    except BadFile as error:
        log.warning("the copy of %s is not taken for a reply: %s", reply, error)
        return None


@collector_rests()
def _checked(device: Device, reply: str, value: str, data: Buffer, signed: bytes = b"") -> Arrived:
    """The reply in these bytes; BadFile if they are not the device's, or it is not the one that was asked for."""
    raw = memoryview(data)
    if keys.signer_of("reply", raw, signed) != device.key:
        raise BadSignature("signed by a key that is not the device's")
    file = decode(raw)
    found = decode_reply(file)
    if (found.id, found.device, found.to) != (reply, device.name, device.client.address) or value not in found.values:
        raise BadFile("it is another one")
    return Arrived(found, dict(file.tensors))


# -- why nothing comes -----------------------------------------------------------------------


def _late(device: Device, reply: str, value: str) -> FedqError:
    """What it is that nothing came, now that time is up."""
    why, code, id_ = reason(device, reply, value)
    error = errors.from_code(code, f"{id_} did not come from {device.name}: {why}", device=device.name, id=id_)
    if isinstance(error, WaitingForApproval):
        stopped = f"fedq cancel {device.name}:{id_}, or its owner says: fedq device resume {device.name}"
        error.hint = stopped if why == HELD else f"its owner says: fedq review {device.name}:{reply}"
    return error


def _waits_for_owner(device: Device, reply: str, value: str) -> FedqError:
    return WaitingForApproval(
        f"{value} did not come from {device.name}: {ASKED}",
        hint="worker.approve(pointer) releases it, worker.review() shows what waits",
        device=device.name, id=value,
    )  # fmt: skip


def reason(device: Device, reply: str, value: str) -> tuple[str, str, str]:
    """Why a reply is not there, from the device's heartbeat.

    Returns:
        the reason; the code of the error that it is when time is up; the value it is about.
    """
    beat, late = heartbeat(device), TimedOut.code
    if beat is None:
        return f"{device.name} was never started", late, value
    outbox, number = device.client.outbox, device.number
    makers, coming = outbox.messages_of(number, value, reply), {value} | outbox.asked_in(number, reply)
    for message, code in beat.refused:
        if message in makers:
            return f"{device.name} does not take the message ({spelling.name(code)})", code, value
    for id_, what in beat.held:
        if id_ in coming and what == pairs.STOPPED:
            return HELD, WaitingForApproval.code, id_
        if id_ == reply and what == pairs.ASKED:
            return ASKED, WaitingForApproval.code, value
        if id_ == reply and what in _HELD:
            return _HELD[what], late, value
    if there := device.tried.why(device.pair.reply_name(reply)):
        return there, late, value
    if beat.trouble and beat.state == "up":
        return f"{device.name} holds: {HOLDS.get(beat.trouble) or spelling.name(beat.trouble)}", late, value
    seen = f"last seen {spelling.time(beat.time)}"
    if beat.state == "down" or device.client.now() - beat.time > SILENT_S:
        return f"{device.name} is not running, {seen}", late, value
    if makers & set(beat.running):
        steps = next((f": step {at} of {steps}" for id_, at, steps in beat.progress if id_ in makers), "")
        return f"it is running{steps}", late, value
    if makers & set(beat.waiting):
        return "it waits for its turn or its arguments", late, value
    return f"{device.name} runs and has not answered", late, value


def heartbeat(device: Device) -> Heartbeat | None:
    """The device's own word on what it was doing, if there is one."""
    try:
        return device.sealed(Heartbeat)
    except FileNotFoundError:
        return None
    except BadFile as error:
        log.warning("%s is not believed: %s", device.pair.carrier.path("heartbeat.json"), error)
        return None
