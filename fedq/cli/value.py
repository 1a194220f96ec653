"""``fedq search``, ``run`` and ``get``: values on devices, what is computed from them, and what comes back."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq.cli import show
from fedq.cli.call import Call, Shown, command
from fedq.errors import UsageError

app = typer.Typer(rich_markup_mode=None)

Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Give up after 10s, 5min, 2h. Default: never.")
]
Out = Annotated[
    str | None,
    typer.Option("-o", "--out", metavar="FILE", help="Write to a .safetensors, .npy, .npz or .csv file instead."),
]


@command(app, examples=["fedq search device_1", "fedq search device_1 input_data"])
def search(
    call: Call,
    device: Annotated[str, typer.Argument(metavar="DEVICE")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Only tags and notes that contain this.")] = "",
) -> Shown:
    """List values on a device that you may use. Prints id, tag, type; its catalog says, no one is asked."""
    found = call.client.device(device).search(text)
    rows = [{"device": device, "id": p.id, "tag": p.tag, "type": str(p.type)} for p in found]
    if not rows:
        call.say(f"nothing on {device} matches {text!r}" if text else f"{device} offers you nothing yet")
    return Shown(rows, show.table([(r["id"], r["tag"] or "", r["type"]) for r in rows]))


@command(
    app,
    numbers=True,
    examples=[
        "fedq run double_abs.safetensors device_1:input_data",
        "fedq run scale device_1:input_data -0.5",
        "fedq run step.safetensors device_1:input_data --arg rate=0.1",
        "fedq run mean.safetensors patients --on ward_1,ward_2",
        "fedq run mean.safetensors ward_1:patients --wait --timeout 2h --token nightly-2026-11-22 -o mean.npy",
    ],
)
def run(
    call: Call,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file, or the name or id of a plan there.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="ARG", help="DEVICE:TAG, DEVICE:ID, numbers, local tensor files.")
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="An argument by its name. May be repeated.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="DEVICES", help="Run on each of these: device_1,device_2.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not ask for the result's release yet.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print the result as 'fedq get' does.")] = False,
    timeout: Timeout = None,
    token: Annotated[
        str | None, typer.Option("--token", help="A name for this very request: again gives the same result.")
    ] = None,
    out: Out = None,
) -> Shown:
    """Run a plan where the data is. Prints DEVICE:RESULT-ID at once, before it has run."""
    from fedq.cli import ask

    if ((timeout or out) and not wait) or (wait and keep):
        raise UsageError("--timeout and --out go with --wait, --keep without it")
    made = ask.run(call.client, plan, args or [], arg or [], on=on, release=not keep, token=token)
    refs = [" ".join(f"{p.device.name}:{p.id}" for p in results) for results in made]
    run_id = call.client.name_run(*ask.run_of(made)) if on else None
    if wait:
        call.say("\n".join(refs))
        return ask.fetch(call, [p for results in made for p in results], timeout, out)
    rows = [{"device": p.device.name, "id": p.id, "type": p.type and str(p.type)} for results in made for p in results]
    return Shown({"results": rows, "run": run_id}, "\n".join([*refs, *([run_id] if run_id else [])]))


@command(
    app,
    examples=[
        "fedq get device_1:0197a3c4",
        "fedq get device_1:0197a3c4 device_2:0197a3c5 -o both.safetensors --timeout 10min",
        "fedq get 5d41402a    # all results of a run",
    ],
)
def get(
    call: Call,
    refs: Annotated[list[str], typer.Argument(metavar="REF", help="DEVICE:ID, DEVICE:TAG, or the id of a run.")],
    timeout: Timeout = None,
    out: Out = None,
) -> Shown:
    """Wait for results and print them. May be repeated, from any process."""
    from fedq.cli import ask

    return ask.fetch(call, ask.references(call.client, refs), timeout, out)
