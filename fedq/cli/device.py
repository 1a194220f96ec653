"""``fedq device``: make, start, stop and look after the devices on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedq import spelling
from fedq.cli import show
from fedq.cli.call import Call, Shown, command

app = typer.Typer(help="Make, start and stop devices. They live on this machine.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A device on this machine.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Worker processes at a time, for one requester too. Kept for later starts.", min=1),
]
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Devices; all on this machine if none.")]


@command(
    app,
    examples=[
        "fedq device init device_1",
        "fedq device init device_1 --deadline 10min",
        "fedq device init device_1 --requester bob --key 3f9a1c2e... --group lab    # 'fedq whoami' prints bob's",
    ],
)
def init(
    call: Call,
    name: Name,
    requester: Annotated[str | None, typer.Option("--requester", metavar="NAME", help="Who may ask: not you.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="HEX", help="The public key of that requester.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="A Unix group that shares this pair.")] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="How long one call may take. Default: 1h.")
    ] = None,
) -> Shown:
    """Make a device. Gives it a private home, and a pair with you, or with another requester."""
    from fedq.cli import words
    from fedq.client.session import trust_device
    from fedq.device import home

    config = call.config
    who = words.requester(requester, key) if requester or key else (config.user, call.key.public.hex())
    asks = home.Requester(f"{who[0]}-{who[1][:8]}", who[1])
    limit_s = words.duration(deadline) if deadline else None
    made = home.init(config, name, requester=asks, group=group, deadline_s=limit_s)
    public = made.key.public.hex()
    if requester:
        call.say(f"{asks.name} types: fedq device trust {name} {public}")
    else:
        trust_device(config, name, public, replace=True)
    if group:
        _warn_of(call, config.queue / name / asks.name, group)
    row = {"device": name, "home": str(made.path), "pair": str(config.queue / name / asks.name), "key": public}
    return Shown(row, f"{name}  home {row['home']}\n{' ' * len(name)}  pair {row['pair']}")


def _warn_of(call: Call, pair: Path, group: str) -> None:
    """What the owner of a shared pair should know: who else may use it, and who can not come in."""
    from fedq import fs

    call.say(f"everybody in {group} can read what travels in this pair, and write in it: one group for each requester")
    if closed := fs.closed_to(pair.parent, fs.group(group)):
        call.say(f"{group} may not be able to enter {closed[0]}: chmod o+x {closed[0]}")


@command(app, examples=["fedq device trust device_1 3f9a1c2e..."])
def trust(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A device that another user runs.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its public key, as 'fedq device init' printed it.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Although another key is known. What the other signed is not read.")
    ] = False,
) -> Shown:
    """Believe a device that someone else runs. Compare the key with its owner, not with the share."""
    from fedq.cli import words
    from fedq.client.session import trust_device

    trust_device(call.config, name, words.key(key), replace=replace)
    return Shown({"device": name, "key": key}, f"{name}  {key}")


@command(app, examples=["fedq device up device_1 device_2", "fedq device up device_1 --foreground"])
def up(
    call: Call,
    names: Names = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Serve here, until Ctrl-C.")] = False,
    workers: Workers = None,
) -> Shown:
    """Serve devices in the background, by one process for all; again is a no-op."""
    from fedq.cli import background
    from fedq.device import gate

    if workers:
        gate.set_workers(call.config, workers)
    wanted = background.mark(call.config, names, up=True)
    if foreground:
        background.serve_here(call.config, wanted)
        return Shown({"devices": wanted})
    pid = background.start(call.config, wanted)
    return Shown({"devices": wanted, "pid": pid}, "\n".join(f"{name}  up" for name in wanted))


@command(app, examples=["fedq device down", "fedq device down device_2"])
def down(call: Call, names: Names = None) -> Shown:
    """Stop serving devices; what is sent to them waits for the next start."""
    from fedq.cli import background

    ended = background.stop(call.config, background.mark(call.config, names, up=False))
    if not ended:
        call.say("nothing was up")
    return Shown({"devices": ended}, "\n".join(f"{name}  down" for name in ended))


@command(
    app,
    examples=[
        "fedq device step device_1",
        "*/10 * * * * cd /srv/fedq && fedq device step device_1 --for 9min    # instead of 'up', or beside it",
    ],
)
def step(
    call: Call,
    name: Name,
    seconds: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Serve so long; what runs then is finished.")
    ] = None,
) -> Shown:
    """Serve what waits for one device, then end: for cron. Where 'up' runs, there is nothing to do."""
    from fedq.cli import background, words
    from fedq.device import gate
    from fedq.errors import AlreadyRunning

    names = [call.home(name).name]
    try:
        if seconds is None:
            gate.serve_waiting(call.config, names)
        else:
            gate.serve_for(call.config, names, seconds=words.duration(seconds))
    except AlreadyRunning as error:
        call.say(f"nothing to do: {error}")
    row = background.state(call.config, name)
    return Shown(row, show.devices([row]))


@command(app, examples=["fedq device ls", "fedq device ls --json"])
def ls(call: Call) -> Shown:
    """List devices, who is up, when they were last seen, and what waits."""
    from fedq.cli import background

    rows = background.states(call.config)
    if not rows:
        call.say(f"no devices in {call.config.devices}")
    return Shown(rows, show.devices(rows))


@command(app, examples=["fedq device status", "fedq device status device_1 --json"])
def status(
    call: Call, name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one.")] = None
) -> Shown:
    """Say how devices are. Shows what waits, runs, is held, failed, was refused, and what holds them up."""
    from fedq.cli import background

    rows = [row for row in background.states(call.config) if name in (None, row["device"])]
    if not rows and name is not None:
        call.home(name)
    return Shown(rows, show.status(rows))


@command(
    app,
    examples=[
        "fedq device resume device_1",
        "fedq device resume device_1 0197a3c4",
        "fedq device resume device_1 --after-restore",
    ],
)
def resume(
    call: Call,
    name: Name,
    message: Annotated[
        str, typer.Argument(metavar="MESSAGE", help="Only this one; 6 or more digits of its id will do.")
    ] = "",
    after_restore: Annotated[
        bool, typer.Option("--after-restore", help="Go on from this home, a backup or copy, though it was seen later.")
    ] = False,
) -> Shown:
    """Let go on what is held. Calls that ran when the process ended five times; or a device that was restored."""
    from fedq.device import boots
    from fedq.errors import UsageError

    if after_restore:
        if message:
            raise UsageError(
                "--after-restore is for the whole device", hint=f"fedq device resume {name} --after-restore"
            )
        boots.after_restore(call.home(name), by=call.owner)
        text = f"{name}  goes on from this home; what was sent to it since the backup may have to be sent again"
        return Shown({"device": name, "restored": True}, text)
    rows = [{"device": name, "requester": who, "message": id_} for who, id_ in call.home(name).resume(message)]
    return Shown(rows, "\n".join(f"{name}  message {r['message']} of {r['requester']} goes on" for r in rows))


@command(app, examples=["fedq device requesters device_1"])
def requesters(call: Call, name: Name) -> Shown:
    """List who may ask a device. Shows name, key, questions that wait for you, and when it was last heard."""
    from fedq.device import review

    home = call.home(name)
    waiting = [row.sender for row in review.questions(home)]
    rows: list[dict[str, Any]] = [
        {
            "device": name, "requester": r.name, "key": r.key, "questions": waiting.count(r.name),
            "last_heard": home.journal.last_heard(r.name),
        }
        for r in home.trusted()
    ]  # fmt: skip
    cells = [(r["requester"], r["key"], r["questions"], show.when(r["last_heard"])) for r in rows]
    return Shown(rows, show.table([("requester", "key", "questions", "last heard"), *cells]) if rows else "")


@command(app, examples=["fedq device untrust device_1 alice-3f9a1c2e"])
def untrust(
    call: Call,
    name: Name,
    requester: Annotated[str, typer.Argument(metavar="REQUESTER", help="As 'fedq device requesters' lists it.")],
) -> Shown:
    """Let a requester ask no more, at once. What it asked is denied, its workers end, what it sends is not read."""
    from fedq.cli import background

    who = call.home(name).untrust(requester, by=call.owner)
    background.await_parted(call.config, name, who)
    return Shown({"device": name, "requester": who.name}, f"{name}  {who.name} may ask no more")


@command(app, examples=["fedq device rm device_1", "fedq device rm device_1 --yes"])
def rm(
    call: Call,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> Shown:
    """Delete a device that is not served. Its values, record, key and pairs go for good."""
    from fedq.cli import background
    from fedq.client.session import forget_device
    from fedq.errors import UsageError

    home = call.home(name)
    background.check_not_served(call.config, name)
    values, requesters = show.plural(len(home.values()), "value"), show.plural(len(home.trusted()), "requester")
    call.say(f"{name}: {values}, its record and key in {home.path}, and its pairs with {requesters}")
    if not yes and not call.can_ask:
        raise UsageError("nobody to ask whether it is meant", hint="add --yes")
    if not yes and call.ask(f"delete all that? type {name}:") != name:
        return Shown({"removed": None}, "nothing was deleted")
    forget_device(call.config, name, home.key.public)
    left = background.erase(call.config, home)
    for text in left:
        call.say(f"left where it is: {text}")
    return Shown({"removed": name, "left": left}, f"{name}  removed")


@command(
    app,
    examples=[
        "fedq device log device_1 --since 7d",
        "fedq device log device_1 --requester alice-3f9a1c2e --tag input_data",
        "fedq device log device_1 --process -n 200    # what the process that serves it says",
        "fedq device log --failed",
    ],
)
def log(
    call: Call,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A device; none: the process's log.")] = None,
    lines: Annotated[int, typer.Option("-n", help="At most so many, the newest.", min=1)] = 50,
    requester: Annotated[str | None, typer.Option("--requester", metavar="NAME", help="Only of this one.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only about values with this tag.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only the last 12h, 7d.")] = None,
    process: Annotated[bool, typer.Option("--process", help="The log of the process that serves devices.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only messages that failed or are held, and where they are kept.")
    ] = False,
) -> Shown:
    """Say who asked for what on which data, what was decided by whom, what left, what failed. By default all of it."""
    from fedq.cli import background
    from fedq.device.home import homes
    from fedq.errors import UsageError

    filters = requester is not None or tag is not None or since is not None
    if filters and (name is None or process or failed):
        raise UsageError("--requester, --tag and --since go with NAME alone", hint="fedq device log NAME --since 7d")
    if name is not None and not process and not failed:
        return _record(call, name, lines, requester or "", (tag or "").removeprefix("#"), since)
    if name is not None:
        call.home(name)
    if failed:
        rows = background.failed(call.config, homes(call.config) if name is None else [name])[-lines:]
        told = [
            (show.when(r["time"]), f"{r['device']}:", r["requester"], spelling.text(r["reason"]), r["file"])
            for r in rows
        ]
        return Shown(rows, show.table(told))
    text = background.log_lines(call.config, name, lines)
    return Shown({"log": str(background.log_file(call.config)), "lines": text}, "\n".join(text))


def _record(call: Call, name: str, most: int, requester: str, tag: str, since: str | None) -> Shown:
    from dataclasses import asdict

    from fedq import fs
    from fedq.cli import owner, words
    from fedq.device import record

    start = fs.clock() - words.duration(since) if since else 0.0
    found = record.entries(call.home(name), requester=requester, tag=tag, since=start)
    if len(found) > most:
        call.say(f"the newest {most} of {len(found)}: -n {len(found)} shows all")
    return Shown([asdict(e) for e in found[-most:]], owner.record(found[-most:]))
