"""Replies: what they hold, and how they come to lie in ``out/``, once and never otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace

from fedq import fs, ids
from fedq.device.home import Home
from fedq.device.intake import SUFFIX
from fedq.device.peer import Peer, Want
from fedq.errors import BadFile, Conflict, Unreachable
from fedq.plan.codec import Buffer, RawTensor, decode, sha256
from fedq.queue.carrier import MOST_BYTES
from fedq.queue.message import Failure, Number, Reply, decode_reply, encode_reply
from fedq.trust.keys import signer_of

log = logging.getLogger("fedq.device")

TRIES = 3
"""How often a place in ``out/`` is cleared before another reply has its turn."""
NOT_DECIDED = Failure("denied", "its owner has not released it")
TOO_LARGE = Failure("failed", "the reply is too large for one file", {"hint": "ask for fewer values at once"})


def missing(id_: str) -> Failure:
    return Failure("missing_value", f"{id_} was dropped", {"id": id_})


class Blocked(Exception):
    """The place of one reply cannot be had; the others are not concerned."""


class Publisher:
    """Publishes the replies of one device."""

    def __init__(self, home: Home) -> None:
        self._home, self._journal = home, home.journal
        self._out: list[tuple[str, str, str]] = []

    def publish(self, peer: Peer, want: Want) -> None:
        """Write a reply; doing it again writes the same bytes, and what was planted there is replaced.

        What was published once is never published otherwise: not after a value was dropped or
        released, not over a reply of ours that stands.
        """
        chunks, id_ = self._contents(peer, want), want.wanted.id
        name, digest = f"out/{id_}{SUFFIX}", sha256(chunks).hex()
        if not want.fresh and self._journal.published(peer.name, id_) not in (None, digest):
            self._out.append((peer.name, id_, digest))
            return
        if not self._put(peer, name, chunks, id_):
            self._out.append((peer.name, id_, digest))
        peer.marks[id_] = peer.pair.carrier.mark(name)

    def _put(self, peer: Peer, name: str, chunks: list[Buffer], id_: str) -> bool:
        """Whether a reply of ours stood there; whatever else does is cleared away.

        Raises:
            Blocked: it cannot be, or comes again each time.
        """
        for _ in range(TRIES):
            try:
                peer.pair.carrier.put(name, chunks)
                return False
            except Conflict:
                if self._is_ours(peer, name, id_):
                    return True
            log.warning("%s: another file stood at %s of %s; replaced", self._home.name, name, peer.name)
            try:
                peer.pair.carrier.clear(name)
            except Unreachable as error:
                raise Blocked(f"{name} of {peer.name} is taken by what may not be removed: {error}") from error
        raise Blocked(f"{name} of {peer.name} is taken again each time it is cleared")

    def take_back(self, peer: Peer, id_: str) -> None:
        """Delete a reply that is not needed any more; what else stands there and may not be removed is left."""
        carrier, name = peer.pair.carrier, f"out/{id_}{SUFFIX}"
        try:
            carrier.delete(name)
        except Unreachable as error:
            if not fs.is_folder(carrier.path(name)):
                raise
            log.info("%s: %s of %s stays: %s", self._home.name, name, peer.name, error)

    def _contents(self, peer: Peer, want: Want) -> list[Buffer]:
        """The bytes of a reply; for a plan that was asked for, its file."""
        tensors: dict[str, RawTensor] = {}
        values: dict[str, str | Number | Failure]
        if ids.is_plan_id(plan := want.wanted.ids[0]):
            file, why = self._journal.plan(peer.name, plan) or (None, None)
            if file is not None:
                return [file]
            unknown = Failure("unknown_plan", f"plan {plan[:12]} is not on the device", {"id": plan})
            values = {want.wanted.id: why or unknown}
        else:
            values = {i: self._answer(peer, want, i, tensors) for i in want.wanted.ids}
        reply = Reply(want.wanted.id, self._home.name, peer.address, want.wanted.message, values)
        try:
            return encode_reply(reply, tensors, self._home.key)
        except BadFile as error:  # its texts together are longer than a file may say
            log.warning("%s: reply %s of %s: %s", self._home.name, want.wanted.id, peer.name, error)
            return encode_reply(replace(reply, values=dict.fromkeys(values, TOO_LARGE)), {}, self._home.key)

    def _is_ours(self, peer: Peer, name: str, id_: str) -> bool:
        """Whether the reply of this id stands there already, though it would now be another."""
        try:
            most = max(MOST_BYTES, 2 * self._home.limits.published_bytes)
            copy = peer.pair.carrier.get_hashed(name, most, key=self._home.key.public)
            raw = memoryview(copy.data)
            signer_of("reply", raw, copy.signed)
            found = decode_reply(decode(raw))
            ours = (found.id, found.to) == (id_, peer.address)  # others get replies of this device under ids they chose
        except (FileNotFoundError, BadFile):
            return False
        if ours:
            self._out.append((peer.name, id_, copy.digest))
        return ours

    def _answer(self, peer: Peer, want: Want, id_: str, tensors: dict[str, RawTensor]) -> str | Number | Failure:
        """One value, by the row that lets it leave: nothing else is looked up, and no other content is sent."""
        allowed = (want.wanted.allowed or {}).get(id_, NOT_DECIDED)
        if isinstance(allowed, Failure):
            return allowed
        owners = id_ in want.wanted.owners
        value = self._journal.kept(id_) if owners else self._journal.value(peer.name, id_)
        if value is None:
            return peer.owners_failure(id_) if owners else missing(id_)
        if value.failure is not None:
            return value.failure
        try:
            raw = self._home.store.allowed(value, allowed)
        except BadFile as error:
            log.error("%s: %s", self._home.name, error)
            return Failure("failed", "the device lost this value", {"id": id_})
        if raw is None:
            return Number(value.type.value)  # type: ignore[arg-type]
        tensors[f"t{len(tensors)}"] = raw
        return f"t{len(tensors) - 1}"

    @property
    def unnoted(self) -> bool:
        return bool(self._out)

    def forget(self) -> None:
        """What was not noted: it is published again, as it was."""
        self._out = []

    def note(self, now: float) -> None:
        """Record what was published, in a transaction; lost in a crash, it is published again with the same bytes."""
        self._journal.set_published(self._out, now=now)
        self._out = []
