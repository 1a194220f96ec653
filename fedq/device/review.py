"""What an owner is asked, and what they say to it: from any process of theirs, while a gate runs or none does.

A word is recorded in the journal with a digest of what it is about; the gate, or the next ``step``,
acts on it. Who comes second is told what was said.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedq import fs, ids
from fedq.device.home import Home
from fedq.device.journal import QuestionRow
from fedq.errors import Ambiguous, Conflict, UnknownValue, UsageError
from fedq.trust import policy

DENY = "deny"
WORDS = (policy.LOOK, policy.APPROVE, DENY)
SHORTEST = 6
"""Digits of a reply's id that name a question."""

MOST_TOLD = 10
"""Questions that a message names at most."""

_SAID = {
    "look": "is looked at already", "approve": "was approved", "deny": "was denied", "expired": "expired",
    "replaced": "was answered: a value that it reads was replaced",
    "removed": "was answered: a value that it reads was removed",
    "cancelled": "was cancelled by its sender",
}  # fmt: skip


def questions(home: Home, *, requester: str = "") -> list[QuestionRow]:
    """What waits for the owner, the oldest first; of one requester, by name or the beginning of it."""
    found = [row for row in home.journal.questions() if row.word in ("", policy.LOOK)]
    return [row for row in found if is_of(row.sender, requester)]


def is_of(sender: str, requester: str) -> bool:
    """Whether ``alice`` or ``alice-3f9a1c2e`` names this requester; "" names all."""
    return not requester or sender == requester or sender.rpartition("-")[0] == requester


def find(home: Home, ref: str, *, requester: str = "") -> QuestionRow:
    """The one question whose reply's id begins so, ended ones too: a requester chooses ids, and one that ended
    must not hand its digits to another.

    Raises:
        UnknownValue: there is none; lists what waits.
        Ambiguous: there are several, or two requesters use this id.
    """
    rows = home.journal.questions(ended=True) if len(ref) >= SHORTEST else []
    all_ = [row for row in rows if row.reply.startswith(ref) and is_of(row.sender, requester)]
    fits = [row for row in all_ if row.reply == ref] or all_
    fits = [row for row in fits if row.state != "ended"] or fits if len({row.reply for row in fits}) == 1 else fits
    if not fits:
        waiting = ", ".join(row.reply for row in questions(home)[:MOST_TOLD]) or "nothing"
        hint = f"6 or more digits of an id; 'fedq review {home.name}' shows what waits"
        raise UnknownValue(f"{home.name} was not asked {ref[:80]!r} (waiting for you: {waiting})", hint=hint)
    _check_one(fits, [row for row in all_ if row.reply == fits[0].reply], ref)
    return fits[0]


def _check_one(fits: Sequence[QuestionRow], same_id: Sequence[QuestionRow], ref: str) -> None:
    """Ambiguous if not one question is meant: an id that two requesters use names none."""
    several = fits if len(fits) > 1 else same_id
    if len(several) > 1:
        hint = "say whose: --requester NAME" if len({row.reply for row in several}) == 1 else "give more digits"
        told = ", ".join(f"{row.reply} of {row.sender}" for row in several[:MOST_TOLD])
        raise Ambiguous(f"{ref!r} fits {told}", hint=hint)


def decide(home: Home, rows: Sequence[QuestionRow], word: str, *, why: str = "", by: str = "") -> list[QuestionRow]:
    """Say a word to each of these questions, as they were shown, or to none.

    Args:
        word: ``look``, ``approve`` or ``deny``; ``why``: told to the requester, with a denial.
        by: who says it, for the record.

    Raises:
        Conflict: one was decided, or changed, since it was shown; says what was said.
        UsageError: one cannot be approved yet: it misses a value.
    """
    _check_word(word, why)
    with home.journal.transaction():
        for shown in rows:
            _check(home, shown, word)
        for shown in rows:
            home.journal.say(shown, word, why, now=fs.clock())
            home.journal.record(word, shown.sender, shown.reply, why, now=fs.clock(), by=by)
    home.poke()
    return [row for shown in rows if (row := home.journal.question(shown.sender, shown.reply)) is not None]


def decide_next(home: Home, rows: Sequence[QuestionRow], word: str, *, why: str = "", by: str = "") -> None:
    """Say a word to the next question on the same plans and values as each of these, which were answered.

    Raises:
        UsageError: one still waits: say the word to it.
    """
    _check_word(word, why)
    with home.journal.transaction():
        for shown in rows:
            now = home.journal.question(shown.sender, shown.reply)
            if now is None or now.state != "ended":
                raise UsageError(f"{home.name}:{shown.reply} still waits for you", hint="say it without --again")
            home.journal.set_again(now, word, why, now=fs.clock(), by=by)
            home.journal.record(f"{word} the next", now.sender, now.reply, why, now=fs.clock(), by=by)


def _check_word(word: str, why: str) -> None:
    if word not in WORDS:
        raise UsageError(f"{word!r} is not a word of an owner's", hint=f"use one of: {', '.join(WORDS)}")
    if why and not ids.is_text(why):
        raise UsageError("a reason has 1 to 300 printable characters")


def check(home: Home, rows: Sequence[QuestionRow], word: str) -> None:
    """Raise what `decide` would."""
    for shown in rows:
        _check(home, shown, word)


def _check(home: Home, shown: QuestionRow, word: str) -> None:
    now = home.journal.question(shown.sender, shown.reply)
    name = f"{home.name}:{shown.reply}"
    if now is None:
        raise UnknownValue(f"{name} is not there any more")
    if now.word not in ("", policy.LOOK) or (now.word == word) or now.state == "ended":
        said = _SAID.get(now.word, "was answered")
        raise Conflict(
            f"{name} {said}{f': {now.why}' if now.word == DENY and now.why else ''}", hint=f"fedq review {home.name}"
        )
    if now.bound != shown.bound:
        raise Conflict(f"{name} is about something else now", hint=f"fedq review {name}")
    if word != DENY and now.about["misses"]:
        raise UsageError(
            f"{name} is incomplete, misses {', '.join(now.about['misses'])}",
            hint="it can be approved when that is there; it can be denied now",
        )
