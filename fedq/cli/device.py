"""``fedq device``: make, start, stop and look after the devices on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq.cli import show
from fedq.cli.call import Call, Shown, command

app = typer.Typer(help="Make, start and stop devices. They live on this machine.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A device on this machine.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Devices; all on this machine if none.")]


@command(app, examples=["fedq device init device_1"])
def init(call: Call, name: Name) -> Shown:
    """Make a device. Gives it a private home, and a pair with you."""
    from fedq.client.session import trust_device
    from fedq.device import home

    config, key = call.config, call.key
    requester = home.Requester(f"{config.user}-{key.fingerprint}", key.public.hex())
    made = home.init(config, name, requester=requester)
    trust_device(config, name, made.key.public.hex())
    row = {"device": name, "home": str(made.path), "pair": str(config.queue / name / requester.name)}
    return Shown(row, f"{name}  home {row['home']}\n{' ' * len(name)}  pair {row['pair']}")


@command(app, examples=["fedq device up device_1 device_2", "fedq device up device_1 --foreground"])
def up(
    call: Call,
    names: Names = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Serve here, until Ctrl-C.")] = False,
) -> Shown:
    """Serve devices in the background, by one process for all; again is a no-op."""
    from fedq.cli import background

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


@command(app, examples=["fedq device step device_1", "*/10 * * * * cd /srv/fedq && fedq device step device_1"])
def step(call: Call, name: Name) -> Shown:
    """Serve what waits for one device, then end: for cron."""
    from fedq.cli import background
    from fedq.device import gate

    gate.serve_waiting(call.config, [call.home(name).name])
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


@command(app, examples=["fedq device log", "fedq device log device_1 -n 200"])
def log(
    call: Call,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only lines about this device.")] = None,
    lines: Annotated[int, typer.Option("-n", help="At most so many lines, the newest.", min=1)] = 50,
) -> Shown:
    """Print the log of the process that serves devices."""
    from fedq.cli import background

    if name is not None:
        call.home(name)
    text = background.log_lines(call.config, name, lines)
    return Shown({"log": str(background.log_file(call.config)), "lines": text}, "\n".join(text))
