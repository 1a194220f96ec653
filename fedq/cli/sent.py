"""``fedq ls``, ``cancel``, ``retry`` and ``gc``: what you sent, and what becomes of it."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq.cli import show
from fedq.cli.call import Call, Shown, command

app = typer.Typer(rich_markup_mode=None)

Refs = Annotated[list[str], typer.Argument(metavar="REF", help="DEVICE:ID, or the id of a run.")]


@command(app, examples=["fedq ls", "fedq ls -n 500 --all --json"])
def ls(
    call: Call,
    most: Annotated[int, typer.Option("-n", help="At most so many, the newest.", min=1)] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Also what you took away or dropped.")] = False,
) -> Shown:
    """List the results you asked for. Shows state, age, and what each waits for."""
    from fedq.client.standing import standing

    now, found = call.client.now(), standing(call.client, most=most, everything=everything)
    rows = [
        {
            "device": s.sent.device, "id": s.sent.value, "type": s.sent.type, "state": s.state,
            "age_s": round(now - s.sent.created, 3), "message": s.sent.message, "why": s.why,
        }
        for s in found
    ]  # fmt: skip
    if not rows:
        call.say("you sent nothing that is not done with")
    cells = [(f"{s.sent.device}:{s.sent.value}", s.state, show.ago(now - s.sent.created), s.why) for s in found]
    return Shown(rows, show.table(cells))


@command(app, examples=["fedq cancel device_1:0197a3c4", "fedq cancel 5d41402a    # all of a run"])
def cancel(call: Call, refs: Refs) -> Shown:
    """Ask that a result not be computed. Cancels the whole message that makes it; ends what runs."""
    from fedq.cli import ask
    from fedq.client import again

    found = again.cancel(ask.references(call.client, refs))
    rows = [{"device": device, "message": message} for device, some in found.items() for message in some]
    return Shown(rows, "\n".join(f"{r['device']}  message {r['message']}" for r in rows))


@command(app, examples=["fedq retry device_1:0197a3c4"])
def retry(call: Call, refs: Refs) -> Shown:
    """Send again what failed, expired or was cancelled. Prints DEVICE:NEW-ID for each result."""
    from fedq.cli import ask
    from fedq.client import again

    made = [new for pointer in ask.references(call.client, refs) for new in again.retry(pointer)]
    rows = [{"device": p.device.name, "id": p.id, "type": p.type and str(p.type)} for p in made]
    return Shown(rows, "\n".join(f"{r['device']}:{r['id']}" for r in rows))


@command(app, examples=["fedq whoami"])
def whoami(call: Call) -> Shown:
    """Print your name and public key. Their owners need both to let you ask a device."""
    name, public = f"{call.config.user}-{call.key.fingerprint}", call.key.public.hex()
    return Shown({"requester": name, "key": public}, f"{name}  {public}")


@command(app, examples=["fedq gc"])
def gc(call: Call) -> Shown:
    """Forget what expired a month ago: its record, copies of results. Done by itself once a day, too."""
    client = call.client
    gone = client.collect()
    return Shown({"messages": gone}, f"{show.plural(gone, 'message')} forgotten")
