"""``fedq search``, ``run``, ``fold``, ``get``: values on devices, what is computed from them, what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedq import spelling
from fedq.cli import show, words
from fedq.cli.call import Call, Shown, command
from fedq.errors import UsageError

if TYPE_CHECKING:
    from fedq.client.pointers import PointerTensor

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
    return Shown(rows, show.table([(r["id"], spelling.text(r["tag"] or ""), r["type"]) for r in rows]))


AskAgain = Annotated[
    bool,
    typer.Option("--ask-again", help="The token's request was denied, expired or replaced: ask anew, under new ids."),
]


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
    ask_again: AskAgain = False,
    out: Out = None,
) -> Shown:
    """Run a plan where the data is. Prints DEVICE:RESULT-ID at once, before it has run."""
    from fedq.cli import ask

    _check_waiting(wait, keep, timeout, out)
    _check_again(token, ask_again)
    made = ask.run(call.client, plan, args or [], arg or [], on=on, release=not keep, token=token, again=ask_again)
    return _promised(call, made, on=on, wait=wait, timeout=timeout, out=out)


@command(
    app,
    numbers=True,
    examples=[
        "fedq fold step.safetensors --carry w.npy,b.npy --data device_1:x,device_1:y --batch-size 32",
        "fedq fold step --carry device_1:w,device_1:b --data x,y --on device_1 --batch-size 32 --epochs 2 --shuffle",
        "fedq fold count.safetensors --carry zero.npy --data ward_1:patients --batch-size 1000 --drop-last --wait",
        "fedq fold step --carry w,b --data x,y --on device_1 --batch-size 32 --metrics mean --nonfinite error",
        "fedq fold train.safetensors --carry carry.safetensors --data device_1:x,device_1:y --batch-size 32",
    ],
)
def fold(
    call: Call,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan of one step: a file, or a name or id there.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="REFS", help="Tensors cut into batches together: a,b. Or repeat it.")
    ],
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Rows of a batch.", min=1)],
    carry: Annotated[
        list[str] | None,
        typer.Option(
            "--carry",
            metavar="REFS",
            help="The plan's first arguments: its first outputs are the next. Of a training plan, the file that "
            "plan.save_carry made.",
        ),
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="The same in every step. May be repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="How often to go through the data.", min=1)] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="In a new order each epoch.")] = False,
    drop_last: Annotated[bool, typer.Option("--drop-last", help="Leave out a last batch that is not full.")] = False,
    metrics: Annotated[
        str,
        typer.Option("--metrics", metavar="WHAT", help="steps (a row of each), last, sum, mean (by rows), or epochs."),
    ] = "steps",
    nonfinite: Annotated[
        str,
        typer.Option(
            "--nonfinite",
            metavar="WHAT",
            help="At the first step that is not finite: stop (only metrics say so), error, keep.",
        ),
    ] = "stop",
    on: Annotated[
        str | None, typer.Option("--on", metavar="DEVICES", help="Fold on each of these: device_1,device_2.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not ask for the results' release yet.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print the results as 'fedq get' does.")] = False,
    timeout: Timeout = None,
    token: Annotated[
        str | None, typer.Option("--token", help="A name for this very request: again gives the same results.")
    ] = None,
    ask_again: AskAgain = False,
    out: Out = None,
) -> Shown:
    """Replay a plan over mini-batches of data, where it is. Prints the ids of the last carry and the metrics."""
    from fedq.cli import ask
    from fedq.plan import fold as folds

    _check_waiting(wait, keep, timeout, out)
    _check_again(token, ask_again)
    folds.check_words(metrics, nonfinite)
    batches = folds.batches(batch_size, epochs, shuffle=shuffle, drop_last=drop_last)
    first, whole = words.items(",".join(carry or [])), words.items(",".join(data))
    loop = folds.Loop(len(first), len(whole), batches, metrics, nonfinite)  # a file may hold more of the carry
    made = ask.fold(
        call.client, plan, first, whole, arg or [], loop, on=on, release=not keep, token=token, again=ask_again
    )
    return _promised(call, made, on=on, wait=wait, timeout=timeout, out=out)


def _check_again(token: str | None, again: bool) -> None:
    if again and token is None:
        raise UsageError(
            "without --token every request is a new one", hint="leave out --ask-again, or name the --token"
        )


def _check_waiting(wait: bool, keep: bool, timeout: str | None, out: str | None) -> None:
    """UsageError for what would be found out only when the request is under way, or done."""
    from fedq.plan import arrays

    if ((timeout or out) and not wait) or (wait and keep):
        raise UsageError("--timeout and --out go with --wait, --keep without it")
    if timeout:
        words.duration(timeout)
    if out:
        arrays.check_place(out)


def _promised(
    call: Call, made: list[list[PointerTensor]], *, on: str | None, wait: bool, timeout: str | None, out: str | None
) -> Shown:
    """The ids of what is to come, or, if that is asked for, what came."""
    from fedq.cli import ask

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
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Send what was denied, expired or replaced again, under new ids.")
    ] = False,
    out: Out = None,
) -> Shown:
    """Wait for results and print them. May be repeated, from any process."""
    from fedq.cli import ask

    if ask_again:
        made = ask.again(call.client, refs)
        for p in made:
            call.say(f"asked again: {p.device.name}:{p.id}")
        return ask.fetch(call, made, timeout, out)
    return ask.fetch(call, ask.references(call.client, refs, hops=call, timeout=timeout), timeout, out)
