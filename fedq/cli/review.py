"""``fedq review``, ``approve`` and ``deny``: what waits for the owner, and the owner's word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fedq.cli import decide
from fedq.cli.call import Call, Shown, command
from fedq.errors import UsageError

if TYPE_CHECKING:
    from fedq.device.evidence import Evidence, Reader
    from fedq.device.home import Home
    from fedq.device.journal import QuestionRow

MOST_NAMED = 10
"""Files that are not taken and are named."""

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
    return decide.decide(call, refs, requester, plan, word, again=again, yes=yes, wait=wait, timeout=timeout)


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
    return decide.decide(call, refs, requester, plan, "deny", why=why, again=again, yes=yes)


# -- what waits --------------------------------------------------------------------------------


def _list(call: Call, device: str | None, requester: str) -> Shown:
    from fedq import fs
    from fedq.cli import owner, show
    from fedq.device import review as words
    from fedq.device.evidence import Reader
    from fedq.device.foreseen import Typist
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
        for line in _not_read(home):
            call.say(f"{name}: {line}")
    if not rows:
        call.say("nothing waits for your word")
    return Shown(rows, "\n".join(filter(None, [show.table(lines), *more])))


def _not_read(home: Home) -> Iterator[str]:
    """What lies in its queue: files that are not taken and why, and messages that were not read yet."""
    from fedq import spelling
    from fedq.cli import background, show
    from fedq.device.beat import TOLD

    odd, new = background.refused(home), background.not_taken(home)
    if odd:
        told = ", ".join(f"{id_[:12]} of {spelling.name(who)} ({code})" for who, id_, code in odd[:MOST_NAMED])
        more = "" if len(odd) <= MOST_NAMED else ", and more"
        yield f"not taken: {told}{more}: fedq device log {home.name}"
    if new > len(odd) and len(odd) < TOLD:
        yield f"{show.plural(new - len(odd), 'message')} not read yet: fedq device step {home.name}"


def _one(call: Call, ref: str, requester: str, out: str | None) -> Shown:
    from fedq import fs
    from fedq.cli import owner, words
    from fedq.device import review
    from fedq.device.evidence import Reader
    from fedq.device.foreseen import Typist

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
    shown = decide.say(call, [(home, [row])], word, why)
    call.show(shown.text)
    if word != "look":
        return Shown(shown.data)
    decide.until_done(call, home, [row], word, None)
    return _one(call, f"{home.name}:{row.reply}", row.sender, None)
