"""What ``run`` and ``get`` mean by their words: devices, arguments, references, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.cli import carry as carries
from fedq.cli import load, show, words
from fedq.cli.call import Call, Shown
from fedq.cli.carry import CarryFile
from fedq.errors import FedqError, SpecMismatch, UnknownValue, UsageError
from fedq.plan.codec import RawTensor
from fedq.plan.fold import Loop

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.pointer_plans import PointerPlan
    from fedq.client.pointers import PointerTensor
    from fedq.client.session import Client
    from fedq.plan.file import PlanFile

Argument = str | int | float | bool | RawTensor
"""A reference still to be looked up, a number, or a tensor that is sent along."""


def where(on: str | None, args: Sequence[str]) -> list[str]:
    """The devices that a run is for: those of ``--on``, else the one that its arguments name."""
    if on is not None:
        if not words.names(on):
            raise UsageError("--on names no device", hint="--on device_1,device_2")
        return words.names(on)
    found = dict.fromkeys(words.reference(a)[0] for a in args if ":" in a and not words.is_tensor_file(a))
    if len(found) > 1:
        names = ", ".join(found)
        raise UsageError(f"the arguments lie on {names}; a run is on one device", hint="use --on with a tag they share")
    if not found:
        raise UsageError("no device is named", hint="write an argument as DEVICE:TAG, or add --on DEVICE")
    return list(found)


def argument(text: str) -> Argument:
    """A number, a local tensor file's tensor, or a reference as it was written."""
    if words.is_tensor_file(text):
        from fedq.plan import arrays

        return arrays.read_one(*words.tensor_file(text))
    number = words.number(text)
    if number is None and text.startswith("-"):
        raise UsageError(f"no such option: {text}", hint="'fedq run --help' shows how")
    return text if number is None else number


def on_device(device: Device, arg: Argument | CarryFile) -> Any:
    """What a device takes for it: references are looked up there."""
    if not isinstance(arg, str):
        return arg
    name, ref = words.reference(arg) if ":" in arg else (device.name, arg)
    if name != device.name:
        raise UsageError(f"{arg!r} does not lie on {device.name}", hint=f"write {ref!r} to mean that of each device")
    return device.find(ref)


def plan_on(device: Device, plan: PlanFile | str) -> PointerPlan:
    """A plan file's plan, sent if it is not there; or one that is there, by name or id."""
    return device.plan(plan) if isinstance(plan, str) else device.send_plan(plan)


def plan(text: str) -> PlanFile | str:
    """A plan file, or the name or id of a plan."""
    if words.is_tensor_file(text) or "/" in text:
        return load.plan_file(text)
    return words.reference(text)[1] if ":" in text else text


def run(
    client: Client,
    text: str,
    args: Sequence[str],
    named: Sequence[str] = (),
    *,
    on: str | None,
    release: bool,
    token: str | None,
    again: bool = False,
) -> list[list[PointerTensor]]:
    """Run a plan on each device it is for; the results of each, which may not exist yet.

    All is looked up before anything is sent: what one device does not have, no device runs.
    """
    by_name = words.by_name(named)
    given, names = [argument(a) for a in (*args, *by_name.values())], where(on, [*args, *by_name.values()])
    devices, wanted = [client.device(name) for name in names], plan(text)
    looked_up = [[on_device(device, arg) for arg in given] for device in devices]
    made = []
    for device, values in zip(devices, looked_up, strict=True):
        with device.batch(token=token, ask_again=again):
            there = plan_on(device, wanted)
            inputs = in_order(there, values[: len(args)], dict(zip(by_name, values[len(args) :], strict=True)))
            made.append(there.run(inputs, release=release))
    return made


def again(client: Client, refs: Sequence[str]) -> list[PointerTensor]:
    """Send what makes these again, under new ids; the new result for each of them."""
    from fedq.client import again as resend

    return [new for p in references(client, refs) for old, new in resend.pairs(p) if old == p.address]


def fold(
    client: Client,
    text: str,
    carry: Sequence[str],
    data: Sequence[str],
    named: Sequence[str],
    loop: Loop,
    *,
    on: str | None,
    release: bool,
    token: str | None,
    again: bool = False,
) -> list[list[PointerTensor]]:
    """Fold a plan over data on each device; the results of each, as of `run`."""
    by_name = words.by_name(named)
    texts = [*data, *by_name.values()]
    given, names = [argument(a) for a in texts], where(on, [*carry, *texts])
    first = [carried(a) for a in carry]
    devices, wanted = [client.device(name) for name in names], plan(text)
    looked_up = [([on_device(device, a) for a in first], [on_device(device, a) for a in given]) for device in devices]
    made = []
    for device, (some, values) in zip(devices, looked_up, strict=True):
        with device.batch(token=token, ask_again=again):
            there = plan_on(device, wanted)
            whole = carries.flat(there.about, some)
            by_path = dict(zip(by_name, values[len(data) :], strict=True))
            inputs = in_order(there, [*whole, *values[: len(data)]], by_path)
            made.append(there.fold_flat(inputs, replace(loop, carry=len(whole)), release=release))
    return made


def carried(text: str) -> Argument | CarryFile:
    """A part of a carry: an argument, or all tensors of a local file."""
    from fedq.plan import arrays

    path, name = words.tensor_file(text)
    if not words.is_tensor_file(text) or name is not None:
        return argument(text)
    tensors = arrays.read(path)
    return CarryFile(text, tensors) if len(tensors) > 1 else argument(text)


def in_order(plan: PointerPlan, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """The plan's inputs, from those given by position and by name."""
    from fedq.plan import params

    try:
        return params.bind_flat(plan.graph, args, named, about=plan.about)
    except SpecMismatch as error:
        error.hint = error.hint or carries.how(plan.about, str(error))
        raise


def run_of(made: Sequence[Sequence[PointerTensor]]) -> tuple[list[PointerTensor], str]:
    """The results of a run and its id: always the same for the same results."""
    results = [p for some in made for p in some]
    return results, ids.derive("run", *(p.id for p in results))


def references(
    client: Client, texts: Sequence[str], *, hops: Call | None = None, timeout: str | None = None
) -> list[PointerTensor]:
    """The values that these name, once each: ``device:tag``, ``device:id``, or all of a run.

    ``hops``: who is told, if a protocol's run is under way: its values are sent on, and waited for so long.
    """
    found: list[PointerTensor] = []
    for text in texts:
        found += [_one(client, text)] if ":" in text else _run(client, text, hops, timeout)
    return list({(p.device.name, p.id): p for p in found}.values())


def _run(client: Client, text: str, hops: Call | None, timeout: str | None) -> list[PointerTensor]:
    try:
        return client.run(text)
    except UnknownValue:
        from fedq.client.protocol import Protocol

        if hops is None or not ids.is_id(text) or not Protocol.knows(text, client):
            raise
        return Protocol.result(text, client).pointers(words.duration(timeout) if timeout else None, on_wait=hops.say)


def _one(client: Client, text: str) -> PointerTensor:
    device, ref = words.reference(text)
    return client.device(device).find(ref)


def fetch(call: Call, pointers: Sequence[PointerTensor], timeout: str | None, out: str | None) -> Shown:
    """Wait for values, then print them or write them to a file; what failed is told last.

    Values that came are shown even if others failed; a file is written only if all came.
    """
    from fedq.plan import arrays

    if out:
        arrays.check_place(out, len(pointers))
    timeout_s = words.duration(timeout) if timeout else None
    came = call.client.outcomes(pointers, timeout_s, on_wait=call.say)
    named = [(f"{p.device.name}:{p.id}", value) for p, value in zip(pointers, came, strict=True)]
    failed = [(name, value) for name, value in named if isinstance(value, FedqError)]
    for name, other in failed[1:]:
        call.say(f"{name}: {other}")
    error = failed[0][1] if failed else None
    if out and error is None:
        arrays.write(out, {name: show.as_raw(value) for name, value in named})
        return Shown({"file": out, "values": [name for name, _ in named]}, out)
    return Shown([show.outcome_json(*each) for each in named], show.outcomes(named), error)
