"""``fedq data``: what a device holds, by its owner."""

from __future__ import annotations

from typing import Annotated

import typer

from fedq import spelling
from fedq.cli import show, words
from fedq.cli.call import Call, Shown, command

app = typer.Typer(help="Add, list and remove a device's values. It lives on this machine.", rich_markup_mode=None)

Device = Annotated[str, typer.Argument(metavar="DEVICE", help="A device on this machine.")]


@command(
    app,
    examples=[
        "fedq data add device_1 readings.safetensors --tag input_data --release open",
        "fedq data add device_1 both.npz:weights --tag weights --replace",
        "fedq data add device_1 secret.npy --tag secret --allow alice-3f9a1c2e",
    ],
)
def add(
    call: Call,
    device: Device,
    file: Annotated[str, typer.Argument(metavar="FILE", help=".safetensors, .npy, .npz or .csv; FILE:NAME if many.")],
    tag: Annotated[str, typer.Option("--tag", help="The name by which requesters find it.")],
    release: Annotated[
        str | None, typer.Option("--release", help="What leaves unasked: 'open', or 'review' (the default).")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what has this tag.")] = False,
    note: Annotated[str, typer.Option("--note", help="A line for requesters to search in; #words are tags.")] = "",
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="NAME", help="Only this requester may know of it; repeat.")
    ] = None,
) -> Shown:
    """Put a tensor file's values on a device, under a tag."""
    from fedq.plan import arrays

    tensor = arrays.read_one(*words.tensor_file(file))
    id_ = call.home(device).add(
        tensor,
        tag=tag.removeprefix("#"),
        release=release,
        replace=replace,
        note=note,
        allow=allow or None,
        by=call.owner,
    )
    if release is None:
        call.say(f"release: review, so every result of {tag!r} waits for you: fedq approve")
    row = {"device": device, "tag": tag, "id": id_, "type": str(arrays.type_of(tensor)), "release": release or "review"}
    return Shown(row, f"{device}:{tag}  {row['type']}  {row['release']}  {id_}")


@command(app, examples=["fedq data ls device_1"])
def ls(call: Call, device: Device) -> Shown:
    """List a device's own values."""
    rows = [{"id": v.id, "tag": v.tag, "type": str(v.type), "release": v.release} for v in call.home(device).values()]
    return Shown(rows, show.table([(r["id"], spelling.text(r["tag"] or ""), r["type"], r["release"]) for r in rows]))


@command(app, examples=["fedq data rm device_1 input_data", "fedq data rm device_1 0197a3"])
def rm(
    call: Call,
    device: Device,
    ref: Annotated[str, typer.Argument(metavar="TAG|ID", help="A tag, an id, or 6 or more digits of one.")],
) -> Shown:
    """Forget a value; what was computed from it before stays."""
    gone = call.home(device).remove(ref, by=call.owner)
    return Shown({"device": device, "removed": gone}, "\n".join(gone))
