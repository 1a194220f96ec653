"""``fedq review``, ``approve`` and ``deny``: what waits for the owner, and the owner's word."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedq.cli.call import Call, Shown, command
from fedq.errors import FedqError, TimedOut, UsageError

if TYPE_CHECKING:
    from fedq.device.evidence import Evidence, Reader
    from fedq.device.home import Home
    from fedq.device.journal import QuestionRow

app = typer.Typer(rich_markup_mode=None)

Refs = Annotated[
    list[str] | None,
    typer.Argument(metavar="REF", help="DEVICE:ID; 6 or more digits will do. With filters: DEVICE."),
]
Requester = Annotated[
    str | None, typer.Option("--requester", metavar="NAME", help="Only questions of this requester: alice-3f9a1c2e.")
]
PlanId = Annotated[
    str | None, typer.Option("--plan", metavar="ID", help="Only questions that run this plan; 6 or more digits.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether all that the filters find is meant.")]
Again = Annotated[
    bool, typer.Option("--again", help="It was answered: this is the word for the next question on the same.")
]


@command(
    app,
    examples=[
        "fedq review",
        "fedq review device_1 --requester alice-3f9a1c2e",
        "fedq review device_1:0197a3c4",
        "fedq review device_1:0197a3c4 -o looked.npy    # after 'fedq approve --look'",
    ],
)
def review(
    call: Call,
    ref: Annotated[
        str | None, typer.Argument(metavar="DEVICE|REF", help="A device, or one question: DEVICE:ID.")
    ] = None,
    requester: Requester = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Write what was looked at to a tensor file.")
    ] = None,
) -> Shown:
    """Show what waits for your word. Of one question all that is known; at a terminal it then asks for the word."""
    if ref is not None and ":" in ref:
        return _one(call, ref, requester or "", out)
    if out is not None:
        raise UsageError("-o goes with one question", hint="fedq review DEVICE:ID -o FILE")
    return _list(call, ref, requester or "")


@command(
    app,
    examples=[
        "fedq approve device_1:0197a3c4",
        "fedq approve device_1:0197a3c4 --look    # run it, and show me first",
        "fedq approve device_1:0197a3c4 --wait",
        "fedq approve --plan 8918cc8b --requester alice-3f9a1c2e --yes",
    ],
)
def approve(
    call: Call,
    refs: Refs = None,
    requester: Requester = None,
    plan: PlanId = None,
    look: Annotated[
        bool, typer.Option("--look", help="Run it and hold the outcome for a second word; nothing leaves.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it ran; where no daemon serves the device, run it now.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="With --wait: give up after 10min, 2h.")
    ] = None,
    again: Again = False,
    yes: Yes = False,
) -> Shown:
    """Run what was asked, and release exactly the values asked for."""
    from fedq.trust import policy

    if timeout and not wait:
        raise UsageError("--timeout goes with --wait")
    word = policy.LOOK if look else policy.APPROVE
    return _decide(call, refs, requester, plan, word, again=again, yes=yes, wait=wait, timeout=timeout)


@command(
    app,
    examples=[
        'fedq deny device_1:0197a3c4 --why "the mean of three patients"',
        "fedq deny --requester mallory-3f9a1c2e --yes",
    ],
)
def deny(
    call: Call,
    refs: Refs = None,
    requester: Requester = None,
    plan: PlanId = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="The requester is told this.")] = "",
    again: Again = False,
    yes: Yes = False,
) -> Shown:
    """Decline what was asked. It does not run, or what it gave when you looked is dropped; its requester is told."""
    return _decide(call, refs, requester, plan, "deny", why=why, again=again, yes=yes)


# -- what waits --------------------------------------------------------------------------------


def _list(call: Call, device: str | None, requester: str) -> Shown:
    from fedq import fs
    from fedq.cli import background, owner, show
    from fedq.device import review as words
    from fedq.device.evidence import Reader, Typist
    from fedq.device.home import homes

    lines, rows, more, now = [], [], list[str](), fs.clock()
    for name in [device] if device is not None else homes(call.config):
        home = call.home(name)
        with Typist(home) as typist:
            reader = Reader(home, typist)
            found = [reader.of(row) for row in words.questions(home, requester=requester)]
            more += owner.unasked(name, reader.unasked())
        lines += [owner.line(name, each, now) for each in found]
        rows += [owner.as_json(name, each) for each in found]
        if new := background.not_taken(home):
            call.say(f"{name}: {show.plural(new, 'message')} not read yet: fedq device step {name}")
    if not rows:
        call.say("nothing waits for your word")
    return Shown(rows, "\n".join(filter(None, [show.table(lines), *more])))


def _one(call: Call, ref: str, requester: str, out: str | None) -> Shown:
    from fedq import fs
    from fedq.cli import owner, words
    from fedq.device import review
    from fedq.device.evidence import Reader, Typist

    device, id_ = words.reference(ref)
    home = call.home(device)
    row = review.find(home, id_, requester=requester)
    with Typist(home) as typist:
        reader = Reader(home, typist)
        found = reader.of(row)
    data, text = owner.page_json(device, found), owner.page(device, found, fs.clock())
    looked = _looked(call, device, reader, row, out)
    if looked is not None:
        data, text = {**data, "outcome": looked.data}, f"{text}\n\n{looked.text}"
    if not call.can_ask or row.state == "ended" or row.word == "approve":
        return Shown(data, text)
    call.show(text)
    return _ask(call, home, found)


def _looked(call: Call, device: str, reader: Reader, row: QuestionRow, out: str | None) -> Shown | None:
    """The outcome of a question that was looked at, which is nobody's but the owner's yet."""
    from fedq.cli import owner, show
    from fedq.plan import arrays

    if row.state != "looked":
        if out is not None:
            raise UsageError(
                f"{device}:{row.reply} was not looked at", hint=f"fedq approve {device}:{row.reply} --look"
            )
        return None
    outcome = reader.outcome(row)
    if out is not None:
        arrays.write(out, {f"{device}:{id_}": raw for id_, _, raw in outcome if raw is not None})
        return Shown({"file": out}, f"its outcome: {out}")
    told = [
        show.outcome_json(f"{device}:{id_}", raw) if raw is not None
        else {"device": device, "id": id_, "failure": value.failure and [value.failure.code, value.failure.text],
              "value": None if value.failure else value.type.value} if value is not None
        else {"device": device, "id": id_}
        for id_, value, raw in outcome
    ]  # fmt: skip
    return Shown(told, f"its outcome, which only you see:\n{owner.outcome(device, reader, row)}")


_CHOICES = {"release": "approve", "look": "look", "deny": "deny", "later": ""}


def _ask(call: Call, home: Home, found: Evidence) -> Shown:
    """Ask for the word, as long as it takes; after a look, again."""
    row = found.row
    choices = [c for c in _CHOICES if not (c == "look" and row.word == "look")]
    choices = [c for c in choices if c in ("deny", "later")] if row.about["misses"] else choices
    said = ""
    while len(fits := [c for c in choices if said and c.startswith(said)]) != 1:
        said = call.ask(f"{', '.join(choices[:-1])} or {choices[-1]}?").lower()
        if not said:
            fits = ["later"]
            break
    word = _CHOICES[fits[0]]
    if not word:
        return Shown({"word": ""}, "")
    why = call.ask("why? (told to the requester; may be empty)") if word == "deny" else ""
    shown = _say(call, [(home, [row])], word, why)
    call.show(shown.text)
    if word != "look":
        return Shown(shown.data)
    _await(call, home, [row], word, None)
    return _one(call, f"{home.name}:{row.reply}", row.sender, None)


# -- the word ----------------------------------------------------------------------------------

Chosen = list[tuple["Home", "list[QuestionRow]"]]


def _decide(
    call: Call, refs: list[str] | None, requester: str | None, plan: str | None, word: str, *, why: str = "",
    again: bool, yes: bool, wait: bool = False, timeout: str | None = None,
) -> Shown:  # fmt: skip
    from fedq.cli import words

    timeout_s = words.duration(timeout) if timeout else None
    named = [r for r in refs or [] if ":" in r]
    if not named and not (requester or plan):
        for ref in refs or []:
            words.reference(ref)
        raise UsageError("no question is named", hint="DEVICE:ID, or --requester NAME, or --plan ID")
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
    shown = _say(call, chosen, word, why)
    if not wait:
        _say_when(call, chosen, word)
        return shown
    for home, rows in chosen:
        _await(call, home, rows, word, timeout_s)
    return _came(call, shown, chosen, word)


def _named(call: Call, refs: Sequence[str], requester: str) -> Chosen:
    """The questions of these references, once each, by device."""
    from fedq.cli import words
    from fedq.device import review

    homes: dict[str, Home] = {}
    rows: dict[str, dict[tuple[str, str], QuestionRow]] = {}
    for ref in refs:
        device, id_ = words.reference(ref)
        home = homes.setdefault(device, call.home(device) if device not in homes else homes[device])
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
        call.say("no question fits")
        return Shown([])
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


def _say(call: Call, chosen: Chosen, word: str, why: str = "") -> Shown:
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


def _await(call: Call, home: Home, rows: Sequence[QuestionRow], word: str, timeout_s: float | None) -> None:
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
