"""What must hold: what was promised, what was seen, and the invariants between the two."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedq import fs
from fedq.client.fetch import as_error
from fedq.errors import BadFile, FedqError
from fedq.plan.codec import RawTensor, decode
from fedq.queue.message import Failure, Number, decode_message, decode_reply
from fedq.queue.pair import Pair
from fedq.trust.keys import signer_of

DICE = "dice"
"""Whatever a worker gives: but once given, the same for ever."""


PUBLIC = {"denied", "replaced", "removed", "cancelled", "expired", "unknown_value"}
"""What a question is answered with that tells nothing of private bytes."""
TELLING = {"failed", "worker_died"}
"""Failures that tell that a call ran."""


class Violation(AssertionError):
    """A promise was broken."""


def digest(outcome: Any) -> str:
    """Of a value's content; ``!code`` of a failure."""
    match outcome:
        case RawTensor():
            head = f"{outcome.dtype}{list(outcome.shape)}".encode()
            return hashlib.sha256(head + bytes(outcome.data)).hexdigest()[:20]
        case Number():
            return f"n{outcome.value!r}"
        case Failure() | FedqError():
            return f"!{outcome.code}"
    raise TypeError(outcome)


def outcome(pair: Pair, reply: str, value: str) -> Any:
    """What a reply in the pair says of a value: a RawTensor, a Number or an error; None while there is none."""
    try:
        file = decode(pair.carrier.get(pair.reply_name(reply)))
        what = decode_reply(file).values[value]
    except (FileNotFoundError, BadFile):
        return None
    if isinstance(what, Failure):
        return as_error(what, pair.device)
    return file.tensors[what] if isinstance(what, str) else what


@dataclass
class Expected:
    """What may come of a value: a digest, or ``DICE``, or one of these failures."""

    content: str
    failures: set[str]
    refs: tuple[str, ...] = ()
    """Arguments: what fails there fails here."""
    private: bool = False
    """Whether an owner's value that is not open is among the arguments, or is what was asked for."""


@dataclass
class Model:
    """All that one requester promised itself at one device."""

    values: dict[str, Expected] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    """Value -> digest of what came of it, as first seen."""
    gets: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Message -> reply -> values."""
    returned: set[str] = field(default_factory=set)
    raised: set[str] = field(default_factory=set)
    intended: set[str] = field(default_factory=set)
    maybe_dropped: set[str] = field(default_factory=set)
    maybe_cancelled: set[str] = field(default_factory=set)
    makers: dict[str, str] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    """Reply -> SHA-256 of its file, for ever."""
    fetched: set[str] = field(default_factory=set)
    owners: dict[str, str] = field(default_factory=dict)
    """Tag -> the owner's value that carries it, as its owner said last."""
    meant: dict[str, set[str]] = field(default_factory=dict)
    """Reply -> words that its owner may have said."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """Reply -> words whose command returned."""
    removed: bool = False
    """Whether its owner ever removed a value, or may have."""
    jumped: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, Any] = field(default_factory=dict)

    # -- what a role told

    def told(self, line: str) -> None:
        what, *rest = line.split(" ")
        match what:
            case "I":  # intends to send: message, then per get reply=value,value
                self.intended.add(rest[0])
                self.gets[rest[0]] = {r: tuple(v.split(",")) for r, _, v in (g.partition("=") for g in rest[1:])}
            case "V":  # may make a value: id, message, content, allowed failures, arguments
                failures, refs = (tuple(filter(None, text.split(","))) for text in rest[3:5])
                self.values[rest[0]] = Expected(rest[2], set(failures), refs, rest[5:] == ["private"])
                self.makers[rest[0]] = rest[1]
            case "S":
                self.returned.add(rest[0])
            case "R":
                self.raised.add(rest[0])
            case "D":
                self.maybe_dropped.add(rest[0])
            case "C":
                self.maybe_cancelled.add(rest[0])
            case "F":  # fetched: reply, value, digest
                self.fetched.add(rest[0])
                self.saw(rest[1], rest[2], rest[0])
            case "G":  # not taken: its token was forgotten here, years later, but not there
                if not self.jumped:
                    raise Violation(f"reply {rest[0]}: its message is in conflict with another of the same id")
                self.fetched.add(rest[0])
            case "O":  # an owner's value: tag, id
                self.owners[rest[0]] = rest[1]
            case "-":  # a tag that may be gone
                self.owners.pop(rest[0], None)
                self.removed = True
            case "W":  # an owner means to say: reply, word
                self.meant.setdefault(rest[0], set()).add(rest[1])
            case "w":  # and did
                self._was_said(*rest)
            case "B":  # a worker was given calls with these results
                for value in rest:
                    self._was_given(value)
            case "X":
                raise Violation(f"a role raised: {line}")

    # -- the owner's words

    def _was_said(self, reply: str, word: str) -> None:
        """A command returned: it was the only one, or came after a look."""
        words = self.said.setdefault(reply, [])
        if {"approve", "deny"}.intersection(words):
            raise Violation(f"question {reply}: {word} was taken after {words}")
        words.append(word)
        self.outcomes[f"word {word}"] += 1

    def is_private(self, value: str) -> bool:
        expected = self.values.get(value)
        return expected is not None and (expected.private or any(map(self.is_private, expected.refs)))

    def _was_given(self, value: str) -> None:
        """A private call was handed to a worker: some question that needs it had a word."""
        if not self.is_private(value):
            return
        self.outcomes["private calls given"] += 1
        asked = [r for gets in self.gets.values() for r, values in gets.items() if value in self._closure(values)]
        if not any(self.meant.get(reply, set()) & {"look", "approve"} for reply in asked):
            raise Violation(f"private value {value} was computed without a word")

    def _was_denied(self, value: str) -> bool:
        """Whether some question was, that needs a call which this value needs."""
        mine = self._closure([value])
        asked = [values for gets in self.gets.values() for r, values in gets.items() if "deny" in self.meant.get(r, ())]
        return any(mine & self._closure(values) for values in asked)

    def _closure(self, values: Iterable[str]) -> set[str]:
        found: set[str] = set()
        stack = list(values)
        while stack:
            if (value := stack.pop()) not in found:
                found.add(value)
                stack += self.values[value].refs if value in self.values else ()
        return found

    def _check_word(self, reply: str, value: str, content: str) -> None:
        """What leaves of a private value has its owner's word; a word that was said is kept."""
        if not self.is_private(value):
            return
        code, meant, said = content.removeprefix("!"), self.meant.get(reply, set()), self.said.get(reply, [])
        if (not content.startswith("!") or code in TELLING) and "approve" not in meant:
            raise Violation(f"LEFT without a word: {value} in reply {reply}: {content}")
        if code == "denied" and not self._was_denied(value):
            raise Violation(f"denied without a word: {value} in reply {reply}")
        if "deny" in said and (not content.startswith("!") or code in TELLING):
            raise Violation(f"LOST a denial: {value} in reply {reply}: {content}")
        if "approve" in said and code in {"denied", "replaced"} | ({"expired"} if not self.jumped else set()):
            raise Violation(f"LOST an approval: {value} in reply {reply}: {content}")
        if code == "removed" and not self.removed:
            raise Violation(f"removed, and nobody did: {value} in reply {reply}")

    def saw(self, value: str, content: str, reply: str = "") -> None:
        """Something came of a value: it must be allowed, and the same as before."""
        self._check_word(reply, value, content)
        expected = self.values.get(value)
        if expected is None:
            raise Violation(f"value {value} was never promised, {content} came")
        self.outcomes[content if content.startswith("!") else "ok"] += 1
        if content.startswith("!"):
            allowed = self._allowed(value)
            if content[1:] not in allowed:
                raise Violation(f"value {value}: {content}, allowed are {sorted(allowed)}")
            if value in self.maybe_dropped or content == "!missing_value":
                return  # may come later, or have gone since
            if self.is_private(value) and content[1:] in PUBLIC:
                return  # this question was answered so; another may be answered otherwise
        elif expected.content not in (DICE, content):
            raise Violation(f"value {value}: {content} came, {expected.content} was put")
        if self.jumped and content == "!expired":
            return
        if self.given.setdefault(value, content) != content:
            raise Violation(f"value {value} CHANGED: {self.given[value]}, then {content}")

    def _allowed(self, value: str) -> set[str]:
        expected = self.values[value]
        allowed = expected.failures | ({"missing_value"} if value in self.maybe_dropped else set())
        allowed |= {"missing_value"} if self.makers[value] not in self.returned else set()
        allowed |= {"cancelled"} if self.makers[value] in self.maybe_cancelled else set()
        allowed |= {"expired", "missing_value"} if self.jumped else set()
        allowed |= PUBLIC if self.is_private(value) else set()
        return allowed.union(*(self._allowed(ref) for ref in expected.refs if ref in self.values))

    # -- what lies in the pair

    def look(self, pair: Pair, requester: bytes, device: bytes) -> None:
        """Every visible file is whole and signed; no reply ever changes."""
        now_there = set()
        for folder, kind, key in (("in", "message", requester), ("out", "reply", device)):
            for name in pair.carrier.list(folder):
                path = pair.carrier.path(f"{folder}/{name}")
                mark = fs.fingerprint(path)
                now_there.add((folder, name))
                if mark is None or self._seen.get((folder, name)) == mark:
                    continue
                try:
                    raw = bytes(pair.carrier.get(f"{folder}/{name}"))
                except FileNotFoundError:
                    continue
                try:
                    if signer_of(kind, raw) != key:
                        raise Violation(f"{path} is signed by another")
                    file = decode(raw)
                    read: Any = decode_message(file) if kind == "message" else decode_reply(file)
                except FedqError as error:
                    raise Violation(f"TORN: {path}: {error}") from error
                if f"{read.id}.safetensors" != name:
                    raise Violation(f"{path} holds {read.id}")
                self._seen[folder, name] = mark
                sha = hashlib.sha256(raw).hexdigest()
                late = kind == "message" or all(getattr(v, "code", "") == "expired" for v in read.values.values())
                forgotten = self.jumped and late  # years later a token is free again, and what comes again is late
                if self.replies.setdefault(f"{folder}/{name}", sha) != sha and not forgotten:
                    raise Violation(f"CHANGED: {path}")
                if kind == "reply":
                    for value, what in read.values.items():
                        self.saw(value, digest(file.tensors[what] if isinstance(what, str) else what), read.id)
        for gone in self._seen.keys() - now_there:
            del self._seen[gone]

    def answered(self, reply: str) -> bool:
        return f"out/{reply}.safetensors" in self.replies or reply in self.fetched

    def lost(self, committed: Iterable[str]) -> list[str]:
        """Messages that returned, or that the outbox promised, with a get that was never answered."""
        due = (self.returned | set(committed)) - self.raised
        return [m for m in due for reply in self.gets.get(m, {}) if not self.answered(reply)]
