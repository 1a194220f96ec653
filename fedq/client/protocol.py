"""Protocol: plans on several devices, one after another; each result goes to the next plan.

Devices do not talk to each other. Plans that follow each other on one device are one hop: one
message, and what goes from plan to plan there are ids, nothing leaves. Between hops the value
leaves its device under the owner's rule, comes to the requester, and is sent on by whichever
process asks for the result: ids are derived from the run's, so a hop is sent once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from fedq import ids, spelling
from fedq.client import fetch
from fedq.client.pointer_plans import UNKNOWN, PointerPlan
from fedq.client.pointers import PointerTensor, gather
from fedq.errors import FedqError, NotBuilt, SpecMismatch, UnknownValue, UsageError
from fedq.plan import params, spec
from fedq.plan.file import PlanFile
from fedq.plan.graph import unflatten
from fedq.queue.message import Number

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.session import Client
    from fedq.plan.plan import Plan

OnWait = Callable[[str], None]


class Protocol:
    """``fq.Protocol([("hospital", mean), ("lab", scale)])``: roles, and the plans they run, in order.

    The values that a plan gives, in order, are what the next one takes.

    Raises:
        UsageError: no steps, or a step that is not (role, plan).
        NotBuilt: a plan was not recorded.
        SpecMismatch: a plan gives more or fewer values than the next one takes.
    """

    def __init__(self, steps: Sequence[tuple[str, Plan | PlanFile]]) -> None:
        self.steps = [_step(n, step) for n, step in enumerate(steps)]
        if not self.steps:
            raise UsageError("a protocol without steps", hint='fq.Protocol([("hospital", plan), ("lab", another)])')
        for (role, plan), (after, taker) in pairwise(self.steps):
            given, taken = len(plan.graph.output_vars), len(taker.graph.inputs)
            if given != taken:
                raise SpecMismatch(
                    f"{_told(plan)} of {role!r} gives {given} values, {_told(taker)} of {after!r} takes {taken}",
                    hint="the values of a plan, in order, are what the next one takes",
                )
        self.pointers: list[PointerPlan] = []

    @property
    def roles(self) -> list[str]:
        """Each once, in the order of their first step."""
        return list(dict.fromkeys(role for role, _ in self.steps))

    def __repr__(self) -> str:
        where = [f"{p.device.name}: {spelling.name(p.name)}" for p in self.pointers]
        return f"Protocol({', '.join(where or [f'{role}: {_told(plan)}' for role, plan in self.steps])})"

    def deploy(self, *devices: Device) -> Protocol:
        """Send the plans: to a role's device, one message with all its plans. A device may have several roles.

        Args:
            devices: one per role, in the order of `roles`.
        """
        roles = self.roles
        if len(devices) != len(roles):
            raise UsageError(f"this protocol has {len(roles)} roles ({', '.join(roles)}), {len(devices)} devices given")
        at = dict(zip(roles, devices, strict=True))
        sent: dict[int, PointerPlan] = {}
        for device in dict.fromkeys(devices):
            with device.batch():
                for n, (role, plan) in enumerate(self.steps):
                    if at[role] == device:
                        sent[n] = device.send_plan(plan)
        self.pointers = [sent[n] for n in range(len(self.steps))]
        return self

    def run(self, *args: Any, **kwargs: Any) -> ProtocolResult:
        """Start it; returns at once. What the first plan is given is checked through to the last, as far as is known.

        Args:
            args, kwargs: for the first plan: pointers of its device, tensors, numbers.

        Raises:
            SpecMismatch: a plan will not take what it gets; names the step; nothing was sent.
        """
        if not self.pointers:
            raise UsageError("the protocol is on no device", hint="protocol.deploy(device_1, device_2) first")
        first = self.pointers[0]
        inputs = params.bind(first.graph, args, kwargs, about=first.about)
        self._check([first.type_of(i) for i in inputs])
        result = ProtocolResult(first.device.client.new_id(), self.pointers)
        result.note()
        result.send(0, inputs)
        return result

    def _check(self, types: Sequence[Any]) -> None:
        for (role, _), pointer in zip(self.steps, self.pointers, strict=True):
            if UNKNOWN in types:
                return
            try:
                spec.match(pointer.graph, types, about=pointer.about)
                types = spec.output_types(pointer.graph, types)
            except SpecMismatch as error:
                raise SpecMismatch(f"{pointer.name!r} of {role!r}: {error}", hint=error.hint) from None

    @staticmethod
    def knows(id_: str, client: Client) -> bool:
        """Whether a protocol was started under this id."""
        return bool(client.history.run(_steps_id(id_)))

    @staticmethod
    def result(id_: str, client: Client | None = None) -> ProtocolResult:
        """The result of a run that was started before, also by another process.

        Raises:
            UnknownValue: no protocol was started by you under this id.
        """
        if client is None:
            from fedq.client.session import here

            client = here()
        rows = client.history.run(_steps_id(id_)).get(_steps_id(id_), ())
        if not rows or any(root != client.root for root, _, _ in rows):
            raise UnknownValue(f"no protocol run {id_!r} was started by you here")
        return ProtocolResult(id_, [client.device(name).plan(plan) for _, name, plan in rows])


class ProtocolResult:
    """What comes of one run; ``id`` finds it again from another process."""

    def __init__(self, id_: str, pointers: Sequence[PointerPlan]) -> None:
        self.id = id_
        self.hops = [list(plans) for _, plans in groupby(pointers, key=lambda p: p.device)]

    def __repr__(self) -> str:
        at = self._at()
        return f"ProtocolResult({self.id}, hop {at + 1} of {len(self.hops)}, on {self.hops[at][0].device.name})"

    def get(self, timeout_s: float | None = None, *, on_wait: OnWait | None = None) -> Any:
        """Send on what came, hop by hop, and get the last value; taken away from its device.

        Raises:
            TimedOut, WaitingForApproval: a hop's value did not come in time; get again later.
            Failed, and others: what went wrong at a hop.
        """
        return self._get(timeout_s, on_wait, copy=False)

    def copy(self, timeout_s: float | None = None, *, on_wait: OnWait | None = None) -> Any:
        """As `get`, and the value stays on the last device."""
        return self._get(timeout_s, on_wait, copy=True)

    def _get(self, timeout_s: float | None, on_wait: OnWait | None, *, copy: bool) -> Any:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        last = self.pointers(timeout_s, on_wait=on_wait)
        values = gather(last, _left(until), copy=copy)
        return unflatten(self.hops[-1][-1].graph.outputs, iter(values))

    def pointers(self, timeout_s: float | None = None, *, on_wait: OnWait | None = None) -> list[PointerTensor]:
        """Send on what came, hop by hop; pointers to the values of the last hop."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for n in range(self._at(), len(self.hops) - 1):
            made = self._made(n)
            came = fetch.outcomes(made, _left(until), on_wait=on_wait)
            for outcome in came:
                if isinstance(outcome, FedqError):
                    raise outcome
            self.send(n + 1, [o.value if isinstance(o, Number) else o for o in came])
            device = self.hops[n][0].device
            device.take(made, set(device.ask(made).values()))
        return self._made(len(self.hops) - 1)

    # -- hops

    def note(self) -> None:
        """Record the steps, so that another process can go on; devices of different clients have no such record."""
        first = self.hops[0][0].device.client
        if all(hop[0].device.client is first for hop in self.hops):
            first.history.add_run(_steps_id(self.id), [(p.device.number, p.id) for hop in self.hops for p in hop])

    def send(self, n: int, inputs: Sequence[Any]) -> None:
        """Send a hop: its plans run one after another in one message, and the last one's values are asked for.

        Doing it again with the same values sends nothing: the hop's ids come from the run's.
        """
        device, values = self.hops[n][0].device, list(inputs)
        with device.once(f"protocol {self.id} hop {n}"):
            for k, plan in enumerate(self.hops[n], 1):
                values = plan.run(values, release=k == len(self.hops[n]))
        device.client.name_run(values, self._hop_id(n))

    def _hop_id(self, n: int) -> str:
        return self.id if n == len(self.hops) - 1 else ids.derive("hop", self.id, n)

    def _at(self) -> int:
        """The last hop that was sent."""
        return next(n for n in range(len(self.hops) - 1, -1, -1) if n == 0 or self._rows(n))

    def _rows(self, n: int) -> Sequence[tuple[str, str, str]]:
        return self.hops[n][0].device.client.history.run(self._hop_id(n)).get(self._hop_id(n), ())

    def _made(self, n: int) -> list[PointerTensor]:
        rows = self._rows(n)
        if not rows:
            raise UnknownValue(f"protocol run {self.id} was not started", hint="protocol.run(...) ended in an error")
        return [self.hops[n][0].device.find(value) for _, _, value in rows]


def _step(n: int, step: Any) -> tuple[str, PlanFile]:
    match step:
        case (str(role), PlanFile() as plan):
            return role, plan
        case (str(role), plan) if hasattr(plan, "is_built"):
            if not plan.is_built:
                raise NotBuilt(f"plan {plan.name!r} of {role!r} is not built")
            return role, plan.file()
    raise UsageError(f"step {n} is not (role, plan)", hint='fq.Protocol([("hospital", plan), ("lab", another)])')


def _told(plan: PlanFile) -> str:
    return plan.about.name or "plan"


def _steps_id(run: str) -> str:
    return ids.derive("protocol", run)


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
