"""Send a draft: outbox first, then the pair; so a send that returned is never lost.

A send that raised is not sent later, unless it carries a token: then it is recorded, and goes out
at the next start, or when the same is asked again. Of thousands of actions, which are several
messages, the first may have been sent: the device works on them while the next are put together.
What became of it stands in the hint of the error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedq import fs
from fedq.client import content as contents
from fedq.client.content import Content
from fedq.client.draft import PART_ACTIONS, Draft, Envelope, Sent, message, seal, seed_of, tensor_names
from fedq.client.rest import collector_rests
from fedq.errors import BadFile, Conflict, FedqError, Quota, Unreachable
from fedq.plan.codec import Buffer, decode, parse_json
from fedq.plan.graph import about_from_json
from fedq.queue.message import Ack, Drop, Fold, Message, Ref, Run, SendPlan, Verb, decode_message
from fedq.trust.keys import signer_of

if TYPE_CHECKING:
    from fedq.client.device import Device

log = logging.getLogger("fedq.client")

EXPIRES_S = 14 * 24 * 3600.0
FORGET_AT_MOST = 4000
"""Values and replies let go of in one message."""
NOT_SENT = "nothing was sent, nor will be: send it again"
RECORDED = (
    "it is recorded, and goes out by itself when fedq next starts here; the same under the same token sends it at once"
)
LEFT = "it could not be taken back from the outbox either, so it goes out by itself when fedq next starts here"


@collector_rests()
def send(device: Device, draft: Draft, expires_s: float = EXPIRES_S) -> Message:
    """Send what the draft holds; returns the message, or the first of several.

    Raises:
        Conflict: its token stands for something else.
        Unreachable, DiskFull: not sent, or not all of it; the hint says whether it will be.
    """
    c = device.client
    c.check_root()
    now = c.now()
    envelope = Envelope(c.name, device.address, now, now + expires_s, c.key)
    if draft.asks and draft.token is not None:
        return _send_once(device, draft, envelope)
    if draft.token is not None:
        draft = _only_plans(draft, draft.actions)
    _add_riders(device, draft)
    sent: list[Message] = []
    for made, part in seal(draft, envelope):
        _send_part(device, draft, part, _not_sent(len(sent)))
        sent.append(made)
    return sent[0]


def _not_sent(before: int) -> str:
    """``before``: how many messages of the same draft were sent."""
    some = f"the first {before} of its messages, of up to {PART_ACTIONS} actions each, were sent; the rest was not"
    return f"{some}, nor will be" if before else NOT_SENT


def _send_part(device: Device, draft: Draft, part: Sent, not_sent: str) -> None:
    _check_size(device, part)
    with _saying(not_sent):
        _commit(device, draft, [part])
    try:
        _put(device, part.id, part.chunks)
    except Exception as error:
        _say(error, not_sent if _is_taken_back(device, part) else LEFT)
        raise
    draft.begun = True


def _check_size(device: Device, part: Sent) -> None:
    """Quota if the device takes no message that large."""
    size, most = fs.size_bytes(part.chunks), device.most_bytes()
    if size > most:
        raise Quota(
            f"this message has {size:,} bytes, {device.name} takes at most {most:,}",
            hint="send less at a time: a large tensor in parts, or several messages; "
            f"or ask its owner to raise limits.message_bytes; {NOT_SENT}",
            which="message_bytes", most=most, there=0, more=size,
        )  # fmt: skip


def _is_taken_back(device: Device, part: Sent) -> bool:
    try:
        device.client.outbox.forget(device.number, [part])
    except Unreachable:
        return False
    return True


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """An error of a disk or a share that is raised inside says this, too."""
    try:
        yield
    except Unreachable as error:
        _say(error, what)
        raise


def _say(error: Exception, what: str) -> None:
    if isinstance(error, FedqError):
        error.hint = f"{error.hint}; {what}" if error.hint else what


def _send_once(device: Device, draft: Draft, envelope: Envelope) -> Message:
    """Send what has a token, all of it in one commit; the same again is finished, or found done."""
    asked = draft.content()
    if _was_asked(device, draft, asked):
        with _saying(RECORDED):
            finish(device)
        _send_missing_plans(device, draft)
    else:
        parts = [part for _, part in seal(draft, envelope)] if draft.actions else []
        for part in parts:
            _check_size(device, part)
        try:
            with _saying(NOT_SENT):
                _commit(device, draft, parts, asked)
        except Conflict:
            if not _was_asked(device, draft, asked):
                raise  # else another process asked for the same at the same time
            with _saying(RECORDED):
                finish(device)
        else:
            draft.begun = True
            with _saying(RECORDED):
                for part in parts:
                    _put(device, part.id, part.chunks)
    draft.begun = True
    return message(draft.id, draft.token, tuple(draft.actions), envelope, seed_of(draft.id))


def _send_missing_plans(device: Device, draft: Draft) -> None:
    """A request that was made before is not sent again; a plan that the device let go of since is."""
    plans = [a for a in draft.actions if isinstance(a, SendPlan)]
    missing = [a for a in plans if device.client.history.plan(device.number, a.id) is None]
    if missing:
        send(device, _only_plans(draft, missing))


def _only_plans(draft: Draft, plans: Sequence[Verb]) -> Draft:
    """A message of its own for plans of a draft: whether one is there already is no part of a request."""
    tensors = {name: draft.tensors[name] for a in plans for name in tensor_names(a)}
    return Draft(draft.fresh(), draft.fresh, actions=list(plans), tensors=tensors)


def _add_riders(device: Device, draft: Draft) -> None:
    """What was taken away, or let go of, is dropped and acknowledged by the next message."""
    outbox = device.client.outbox
    if outbox.has_let_go:
        calls = (verb for verb in draft.actions if isinstance(verb, Run | Fold))
        used = {a.id for call in calls for a in call.given if isinstance(a, Ref)}
        outbox.take_gone(keep=used | draft.types.keys())
    limit = max(FORGET_AT_MOST, min(len(draft.actions), 10 * FORGET_AT_MOST))  # or a device that is much used grows
    values, after, replies = outbox.to_forget(device.number, limit)
    if values:
        draft.actions.append(Drop(tuple(values), tuple(after)))
    if replies:
        draft.actions.append(Ack(tuple(replies)))


def _was_asked(device: Device, draft: Draft, asked: Content) -> bool:
    """Whether the same was asked for under this token; Conflict if something else was."""
    known = device.client.outbox.token(device.number, draft.name)
    if known is None:
        return False
    before = Content.parse(known)
    if before.digest != asked.digest:
        raise _conflict(device, draft, before, asked)
    return True


def _conflict(device: Device, draft: Draft, before: Content, asked: Content) -> Conflict:
    history = device.client.history
    rows = {id_: history.plan(device.number, id_) for id_ in contents.plans(before, asked)}
    called = {a.id: a.about for a in draft.actions if isinstance(a, SendPlan)}
    called |= {id_: about_from_json(parse_json(row.about)) for id_, row in rows.items() if row is not None}
    what, why = contents.difference(before, asked, called)
    after = f", after {draft.section} of its values came" if draft.section else ""
    return Conflict(
        f"token {draft.token!r} stands for another request to {device.name}: {what}{after}",
        hint=f"{f'{why}; ' if why else ''}the same token means the same block on the same values: "
        f"ask for something else under another token, such as {f'{draft.token}-2'!r}",
    )


def _commit(device: Device, draft: Draft, parts: Sequence[Sent], asked: Content | None = None) -> None:
    """Promise the messages; of the values they read, only this requester's own are ever dropped."""
    outbox, made = device.client.outbox, {id_ for part in parts for id_ in part.values}
    others = {id_ for part in parts for id_ in part.uses} - made
    mine = made | outbox.used(device.number, others)
    for part in parts:
        part.uses &= mine
    token = None if asked is None else (draft.name, str(asked), draft.id)
    outbox.commit(device.number, parts, token=token, lasting=draft.lasting)


def _put(device: Device, id_: str, chunks: Sequence[Buffer]) -> None:
    name, carrier = device.pair.message_name(id_), device.pair.carrier
    try:
        carrier.put(name, chunks)
    except Conflict:
        if _is_mine(device, name, id_):
            raise
        log.warning("another file stood at %s; replaced", carrier.path(name))
        carrier.clear(name)
        carrier.put(name, chunks)
    device.client.outbox.was_put(device.number, id_, chunks)


def _is_mine(device: Device, name: str, id_: str) -> bool:
    """Whether what stands there is a message of this requester under this id: then it means something else already.

    Anybody can copy another message of this requester to the name, if the name is known beforehand.
    """
    key = device.client.key.public
    try:
        copy = device.pair.carrier.get_hashed(name, key=key)
        if signer_of("message", copy.data, copy.signed) != key:
            return False
        found = decode_message(decode(copy.data))
    except (FileNotFoundError, BadFile):
        return False
    return (found.id, found.to) == (id_, device.address)


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
