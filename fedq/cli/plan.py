"""``fedq build``, ``show``, ``send`` and ``ops``: plans as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedq import spelling
from fedq.cli import show as draw
from fedq.cli.call import Call, Shown, command
from fedq.errors import UsageError

if TYPE_CHECKING:
    from fedq.client.pointer_plans import PointerPlan

app = typer.Typer(rich_markup_mode=None)

File = Annotated[str, typer.Argument(metavar="FILE", help="A plan file.")]


@command(
    app,
    examples=[
        "fedq build tour.py:double_abs -o double_abs.safetensors",
        'fedq build tour.py:mean -o mean.safetensors --args-shape "(-1,30)" --check',
    ],
)
def build(
    call: Call,
    source: Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="A function, module or plan in a file.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="The plan file to write.")],
    args_shape: Annotated[
        str | None, typer.Option("--args-shape", metavar="SHAPES", help="Input shapes if not built there; -1 is free.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also replay it in a fresh worker, and demand what the function gives.")
    ] = False,
) -> Shown:
    """Record a function as a plan file. Runs the Python file that it is in."""
    from fedq.cli import load, words

    load.check_suffix(out)
    path, name = words.file_and_name(source)
    file = load.plan_in(path, name, words.shapes(args_shape) if args_shape else None, check=check).file()
    load.save(out, file, call.key)
    count, label = len(file.graph.actions), file.about.name or name
    row = {"file": out, "name": label, "id": file.id, "actions": count}
    return Shown(row, f"{out}  {spelling.name(label)}  {draw.plural(count, 'action')}  {file.id[:12]}")


@command(
    app,
    examples=[
        "fedq show double_abs.safetensors",
        "fedq show device_1:double_abs",
        "fedq show net.safetensors --cost --at n=32",
        "fedq show net.safetensors --graph net.svg",
    ],
)
def show(
    call: Call,
    plan: Annotated[str, typer.Argument(metavar="FILE|DEVICE:PLAN", help="A plan file, or a plan you sent.")],
    cost: Annotated[bool, typer.Option("--cost", help="Tell FLOPs, peak memory and parameters, by a dry run.")] = False,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="SIZES", help="Free sizes of the dry run: n=32,m=7. Else 32.")
    ] = None,
    graph: Annotated[
        str | None, typer.Option("--graph", metavar="FILE", help="Draw it to a .svg, .png, .pdf or .dot file instead.")
    ] = None,
) -> Shown:
    """Print a plan. Shows inputs, actions with their source lines, state, outputs."""
    from fedq.cli import inspect, load, words
    from fedq.plan.graph import graph_to_json, show

    if at and not cost:
        raise UsageError("--at goes with --cost")

    def sent() -> PointerPlan:
        device, ref = words.reference(plan)
        return call.client.device(device).plan(ref)

    found = load.plan_file(plan) if words.is_tensor_file(plan) else sent()
    if graph is not None:
        inspect.draw(found.graph, found.about, graph)
        return Shown({"file": graph}, graph)
    row = {"id": found.id, "name": found.about.name, "graph": graph_to_json(found.graph)}
    text = show(found.graph, found.about)
    if cost:
        row["cost"], told = inspect.cost(found.graph, inspect.sizes(at or []))
        text = f"{text}\n{told}"
    return Shown(row, text)


@command(app, examples=["fedq diff old.safetensors new.safetensors"])
def diff(
    call: Call,
    first: Annotated[str, typer.Argument(metavar="A", help="A plan file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
) -> Shown:
    """Show how two plan files differ: their printed forms line by line, and whose state has other values."""
    from fedq.cli import inspect, load

    a, b = load.plan_file(first), load.plan_file(second)
    text = inspect.difference(a, b, (first, second))
    return Shown({"same": a.id == b.id, "same_graph": a.graph.id == b.graph.id, "diff": text.splitlines()}, text)


@command(
    app, examples=["fedq send double_abs.safetensors device_1 device_2", "fedq send net.safetensors device_1 --json"]
)
def send(
    call: Call,
    file: File,
    devices: Annotated[list[str], typer.Argument(metavar="DEVICE", help="Who gets it.")],
) -> Shown:
    """Send a plan to devices. Prints DEVICE:PLAN-ID for each."""
    from fedq.cli import load

    plan = load.plan_file(file)
    pointers = [call.client.device(name).send_plan(plan) for name in dict.fromkeys(devices)]
    rows = [{"device": p.device.name, "plan": p.id} for p in pointers]
    return Shown(rows, "\n".join(f"{r['device']}:{r['plan']}" for r in rows))


@command(app, examples=["fedq pull device_1:3f9a1c", "fedq pull device_1:net -o net.safetensors --timeout 1min"])
def pull(
    call: Call,
    plan: Annotated[str, typer.Argument(metavar="DEVICE:PLAN", help="A plan there: its id, 6 digits of it, its name.")],
    out: Annotated[str | None, typer.Option("-o", "--out", metavar="FILE", help="Default: NAME.safetensors.")] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Give up after 10s, 2h.")] = None,
) -> Shown:
    """Fetch a plan back, its state with it. Writes a plan file, signed by you."""
    from fedq.cli import load, words
    from fedq.client import pull as pulling

    name, ref = words.reference(plan)
    if out:
        load.check_suffix(out)
    device = call.client.device(name)
    id_ = pulling.find(device, ref)
    file = pulling.plan(device, id_, words.duration(timeout) if timeout else None, on_wait=call.say)
    path = out or f"{words.file_name(file.about.name or 'plan')}.safetensors"
    load.save(path, file, call.key, new=out is None)  # nobody else's name for a plan replaces a file here
    return Shown(
        {"file": path, "name": file.about.name, "id": id_}, f"{path}  {spelling.name(file.about.name)}  {id_[:12]}"
    )


@command(app, examples=["fedq ops", "fedq ops conv", "fedq ops --json"])
def ops(
    call: Call, text: Annotated[str, typer.Argument(metavar="TEXT", help="Only names that contain this.")] = ""
) -> Shown:
    """List the ops that a plan may use."""
    from fedq.plan import optable

    names = sorted(name for name in optable.names() if text in name)
    return Shown(names, "\n".join(names))
