"""Send a draft: outbox first, then the pair; so a send that returned is never lost.

A send that raised is not sent later, unless it carries a token: then the same call again
finishes it, or finds it done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedq import fs
from fedq.client.draft import Draft, Envelope, Sent, message, seal
from fedq.client.rest import collector_rests
from fedq.errors import Conflict
from fedq.plan.codec import Buffer
from fedq.queue.message import Ack, Drop, Fold, Message, Ref, Run

if TYPE_CHECKING:
    from fedq.client.device import Device

EXPIRES_S = 14 * 24 * 3600.0
FORGET_AT_MOST = 4000
"""Values and replies let go of in one message."""


@collector_rests()
def send(device: Device, draft: Draft, expires_s: float = EXPIRES_S) -> Message:
    """Send what the draft holds; returns the message, or the first of several.

    Raises:
        Conflict: its token stands for something else.
        Unreachable, DiskFull: not sent.
    """
    c = device.client
    c.check_root()
    now = c.now()
    envelope = Envelope(c.name, device.name, now, now + expires_s, c.key)
    if draft.token is None:
        _add_riders(device, draft)
    elif _was_asked(device, draft):
        finish(device)
        return message(draft.id, draft.token, tuple(draft.actions), envelope)
    sealed = seal(draft, envelope)
    parts = [sent for _, sent in sealed]
    try:
        _commit(device, draft, parts)
    except Conflict:
        if draft.token is None or not _was_asked(device, draft):
            raise  # else another process asked for the same at the same time
        finish(device)
    else:
        _put_all(device, parts, keep=draft.token is not None)
    return sealed[0][0]


def _add_riders(device: Device, draft: Draft) -> None:
    """What was taken away, or let go of, is dropped and acknowledged by the next message."""
    outbox = device.client.outbox
    if outbox.has_let_go:
        calls = (verb for verb in draft.actions if isinstance(verb, Run | Fold))
        used = {a.id for call in calls for a in call.given if isinstance(a, Ref)}
        outbox.take_gone(keep=used | draft.types.keys())
    values, after, replies = outbox.to_forget(device.number, FORGET_AT_MOST)
    if values:
        draft.actions.append(Drop(tuple(values), tuple(after)))
    if replies:
        draft.actions.append(Ack(tuple(replies)))


def _was_asked(device: Device, draft: Draft) -> bool:
    """Whether the same was asked for under this token; Conflict if something else was."""
    token = draft.token or ""
    known = device.client.outbox.token(device.number, token)
    if known is not None and known[0] != draft.content():
        raise Conflict(
            f"token {token!r} stands for another request to {device.name}",
            hint="the same token means the same plan, arguments and options; use a new one",
        )
    return known is not None


def _commit(device: Device, draft: Draft, parts: Sequence[Sent]) -> None:
    """Promise the messages; of the values they read, only this requester's own are ever dropped."""
    outbox, made = device.client.outbox, {id_ for part in parts for id_ in part.values}
    others = {id_ for part in parts for id_ in part.uses} - made
    mine = made | (outbox.own(device.number, others) if others else set())
    for part in parts:
        part.uses &= mine
    outbox.commit(device.number, parts, token=None if draft.token is None else (draft.token, draft.content()))


def _put_all(device: Device, parts: Sequence[Sent], *, keep: bool) -> None:
    """Put what stands in the outbox; a failure is a message not sent, unless it is to be kept."""
    for n, part in enumerate(parts):
        try:
            _put(device, part.id, part.chunks)
        except Exception:
            if not keep:
                device.client.outbox.forget(device.number, parts[n:])
            raise


def _put(device: Device, id_: str, chunks: Sequence[Buffer]) -> None:
    device.pair.carrier.put(device.pair.message_name(id_), chunks)
    device.client.outbox.was_put(device.number, id_, size_bytes=fs.size_bytes(chunks))


def finish(device: Device) -> None:
    """Put the messages that stand in the outbox and may not have been put; again is a no-op.

    Raises:
        Conflict: something else stands under the name of one; the others were put.
    """
    conflict: Conflict | None = None
    for id_, raw in device.client.outbox.unput(device.number, device.client.now()):
        try:
            _put(device, id_, [raw])
        except Conflict as error:
            conflict = error
    if conflict is not None:
        raise conflict
