"""The owner's word: which questions are meant, whether that is sure, who acts on it, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedq.cli.call import Call, Shown
from fedq.errors import FedqError, TimedOut, UnknownValue, UsageError

if TYPE_CHECKING:
    from fedq.device.home import Home
    from fedq.device.journal import QuestionRow

Chosen = list[tuple["Home", "list[QuestionRow]"]]


def decide(
    call: Call, refs: list[str] | None, requester: str | None, plan: str | None, word: str, *, why: str = "",
    again: bool, yes: bool, wait: bool = False, timeout: str | None = None,
) -> Shown:  # fmt: skip
    from fedq.cli import words

    timeout_s = words.duration(timeout) if timeout else None
    named = [r for r in refs or [] if ":" in r]
    if not named and not (requester or plan):
        raise _names_none(refs or [])
    if named:
        if plan or len(named) != len(refs or []):
            raise UsageError("name questions, or devices with --requester and --plan, not both")
        chosen = _named(call, named, requester or "")
    else:
        chosen = _filtered(call, refs or [], requester or "", plan or "", word, again=again)
        if (left := _unless_sure(call, chosen, word, yes)) is not None:
            return left
    if again:
        return _next(call, chosen, word, why)
    shown = say(call, chosen, word, why)
    if not wait:
        _say_when(call, chosen, word)
        return shown
    for home, rows in chosen:
        until_done(call, home, rows, word, timeout_s)
    return _came(call, shown, chosen, word)


def _names_none(refs: Sequence[str]) -> UsageError:
    """A tag or a device alone names no question: several may wait on each."""
    what = f"{refs[0]!r} names no question" if refs else "no question is named"
    return UsageError(what, hint="DEVICE:ID, as 'fedq review' prints it; or --requester NAME, or --plan ID")


def _named(call: Call, refs: Sequence[str], requester: str) -> Chosen:
    """The questions of these references, once each, by device."""
    from fedq.cli import words
    from fedq.device import review

    homes: dict[str, Home] = {}
    rows: dict[str, dict[tuple[str, str], QuestionRow]] = {}
    for ref in refs:
        device, id_ = words.reference(ref)
        home = homes[device] if device in homes else homes.setdefault(device, call.home(device))
        row = review.find(home, id_, requester=requester)
        rows.setdefault(device, {})[row.sender, row.reply] = row
    return [(homes[device], list(found.values())) for device, found in rows.items()]


def _filtered(call: Call, devices: Sequence[str], requester: str, plan: str, word: str, *, again: bool) -> Chosen:
    """The questions that filters find; of those that miss something only what can be said to them."""
    from fedq.device import review
    from fedq.device.home import homes

    if plan and (len(plan) < review.SHORTEST or not set(plan) <= set("0123456789abcdef")):
        raise UsageError(f"{plan[:80]!r} is not the id of a plan", hint="6 or more digits, as 'fedq review' shows them")
    chosen = []
    for name in devices or homes(call.config):
        home = call.home(name)
        rows = home.journal.questions(ended=True) if again else review.questions(home)
        rows = [r for r in rows if review.is_of(r.sender, requester) and (not again or r.state == "ended")]
        rows = [r for r in rows if any(p.startswith(plan) for p in r.about["plans"])] if plan else rows
        if again:
            rows = list({(r.sender, r.about["same"]): r for r in rows}.values())
        else:
            incomplete = [r for r in rows if r.about["misses"]] if word != review.DENY else []
            rows = [r for r in rows if r not in incomplete and r.word != word]
            if incomplete:
                call.say(f"{name}: {len(incomplete)} incomplete and left out")
        if rows:
            chosen.append((home, rows))
    return chosen


def _unless_sure(call: Call, chosen: Chosen, word: str, yes: bool) -> Shown | None:
    """Print how many are meant, and ask; what is shown if it is not to be done."""
    from fedq.cli import show

    total = sum(len(rows) for _, rows in chosen)
    if not total:
        raise UnknownValue("no question fits", hint="'fedq review' shows what waits")
    senders = sorted({row.sender for _, rows in chosen for row in rows})
    where = ", ".join(f"{len(rows)} on {home.name}" for home, rows in chosen)
    call.say(f"{show.plural(total, 'question')} of {', '.join(senders)}: {where}")
    if yes:
        return None
    if not call.can_ask:
        raise UsageError(f"{show.plural(total, 'question')} found by filters, and nobody to ask", hint="add --yes")
    if call.ask(f"{_VERBS[word]} {'it' if total == 1 else 'them all'}? (yes/no)").lower() in ("y", "yes"):
        return None
    return Shown([], "nothing was said")


_VERBS = {"approve": "approve", "look": "look at", "deny": "deny"}
_PAST = {"approve": "approved", "look": "to be run and held for a second word,", "deny": "denied"}


def say(call: Call, chosen: Chosen, word: str, why: str = "") -> Shown:
    """Say the word to all, or, if one does not take it, to none."""
    from fedq import spelling
    from fedq.device import review

    for home, rows in chosen:
        review.check(home, rows, word)
    lines, told = [], list[Any]()
    for home, rows in chosen:
        for row in review.decide(home, rows, word, why=why, by=call.owner):
            told.append({"device": home.name, "reply": row.reply, "requester": row.sender, "word": row.word})
            lines.append(f"{home.name}:{row.reply}  {_PAST[word]} for {spelling.name(row.sender)}")
    return Shown(told, "\n".join(lines))


def _next(call: Call, chosen: Chosen, word: str, why: str) -> Shown:
    from fedq import spelling
    from fedq.device import review

    lines, told = [], list[Any]()
    for home, rows in chosen:
        review.decide_next(home, rows, word, why=why, by=call.owner)
        for row in rows:
            told.append({"device": home.name, "reply": row.reply, "requester": row.sender, "word": f"{word} the next"})
            who = spelling.name(row.sender)
            lines.append(f"{home.name}:{row.reply}  the next question of {who} on the same: {_PAST[word]}")
    return Shown(told, "\n".join(lines))


def _say_when(call: Call, chosen: Chosen, word: str) -> None:
    """Who acts on it, where no daemon does."""
    from fedq.cli import background

    does = "tells its requester" if word == "deny" else "runs it"
    for home, _ in chosen:
        if not background.is_served(call.config, home.name):
            call.say(f"{home.name} is not up: the next 'fedq device step {home.name}' {does}")


# -- waiting for it ----------------------------------------------------------------------------


def until_done(call: Call, home: Home, rows: Sequence[QuestionRow], word: str, timeout_s: float | None) -> None:
    """Until what the word is for is done; where no daemon serves the device, by doing it here.

    Raises:
        TimedOut: it was not done in time.
    """
    from fedq.cli import background
    from fedq.device import gate
    from fedq.errors import AlreadyRunning

    end = None if timeout_s is None else time.monotonic() + timeout_s
    if not background.is_served(call.config, home.name):
        try:
            gate.serve_waiting(call.config, [home.name])
        except AlreadyRunning:
            call.say(f"waiting for {home.name}: another process serves it")
    while any(_waits(home, row, word) for row in rows):
        if end is not None and time.monotonic() > end:
            raise TimedOut(f"{home.name} has not run it after {timeout_s:g} s", hint=f"fedq review {home.name}")
        time.sleep(0.05)


def _waits(home: Home, row: QuestionRow, word: str) -> bool:
    """Whether a word still stands that was not acted on."""
    now = home.journal.question(row.sender, row.reply)
    return now is not None and now.word == word and now.state == "waits"


def _came(call: Call, shown: Shown, chosen: Chosen, word: str) -> Shown:
    """What came of it, below what was said."""
    from fedq.cli import owner
    from fedq.device.evidence import Reader

    texts, error = [shown.text], None
    for home, rows in chosen:
        for row in rows:
            now = home.journal.question(row.sender, row.reply) or row
            if word == "look" and now.state == "looked":
                texts.append(owner.outcome(home.name, Reader(home, None), now))
            elif word == "look" or now.word != word:
                said = owner.WORDS.get(now.word, "it waits again: it is about something else now")
                error = FedqError(f"{home.name}:{row.reply}: {said}")
            else:
                texts += [f"{home.name}:{id_}  {what}" for id_, what in left(home, now)]
    return Shown(shown.data, "\n".join(texts), error)


def left(home: Home, row: QuestionRow) -> list[tuple[str, str]]:
    """What left under a reply: each value's type, or its failure."""
    from fedq import spelling
    from fedq.queue.message import Failure

    reply = home.journal.reply(row.sender, row.reply)
    found = []
    for id_, allowed in (reply.allowed or {}).items() if reply is not None else ():
        value = home.journal.once("" if id_ in row.about["owners"] else row.sender, id_)
        if isinstance(allowed, Failure):
            found.append((id_, f"released as {allowed.code}: {spelling.text(allowed.text)}"))
        else:
            found.append((id_, f"released  {value.type if value is not None else ''}".rstrip()))
    return found
