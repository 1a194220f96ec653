"""Pointers to plans: call them with pointers, numbers and tensors. Knows no torch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fedq import spelling
from fedq.client.pointers import PointerTensor, PointerTensors, raw_tensor
from fedq.errors import SpecMismatch, UsageError
from fedq.plan import fold, params, ranges, spec
from fedq.plan.codec import RawTensor
from fedq.plan.fold import Loop
from fedq.plan.graph import About, Graph, Type, unflatten
from fedq.queue.message import Fold, Ref, Run, RunArg

if TYPE_CHECKING:
    from fedq.client.device import Device
    from fedq.client.draft import Draft
    from fedq.plan.plan import Plan

UNKNOWN = Type("?")
"""Of an argument that only the device knows enough of."""


class Origin(Protocol):
    """The plan that was sent, if it has more to say than its graph: one of a training step."""

    def check_unchanged(self) -> None:
        """UsageError if what it was built from is not what it was."""

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All that is given to each step: these, and for the others what is so now."""


class PointerPlan:
    """A plan on a device: call it with pointers, numbers and tensors."""

    def __init__(self, device: Device, id_: str, graph: Graph, about: About, origin: Origin | None = None) -> None:
        self.device, self.id, self.graph, self.about, self.origin = device, id_, graph, about, origin
        self._checked: dict[tuple[Type | None, ...], tuple[Type | None, ...]] = {}
        self._above_zero = bool(about.above_zero)

    @property
    def name(self) -> str:
        return self.about.name or "plan"

    @property
    def location(self) -> Device:
        """The device; PySyft's word."""
        return self.device

    def __repr__(self) -> str:
        return f"PointerPlan({self.device.name}:{self.id[:12]}, {spelling.name(self.name)})"

    def get(self, timeout_s: float | None = None) -> Plan:
        """The plan, as the device holds it; it stays there, so that sending it again sends nothing.

        Raises:
            UnknownPlan: the device let go of it. TimedOut: nothing came in time.
        """
        from fedq.client import pull
        from fedq.plan.plan import from_file

        return from_file(pull.plan(self.device, self.id, timeout_s))

    copy = get

    @staticmethod
    def together(pointers: Sequence[PointerPlan]) -> PointerPlans:
        """The pointers of a plan that was sent to several devices."""
        return PointerPlans(pointers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay it there; returns at once.

        Args:
            args, kwargs: in the structure it was built with: pointers of the same device, numbers,
                or tensors, which are sent along. Numbers that have a default may be left out.

        Returns:
            the plan's structure of outputs, of pointers.

        Raises:
            SpecMismatch: the plan does not admit these arguments; nothing was sent.
        """
        inputs = params.bind(self.graph, *self._with_given(args, kwargs), about=self.about)
        return unflatten(self.graph.outputs, iter(self.run(inputs)))

    def of(self, origin: Origin) -> PointerPlan:
        """The same, which looks at the plan that it is of before each call."""
        return PointerPlan(self.device, self.id, self.graph, self.about, origin)

    def _with_given(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """A call's arguments, with all of ``given`` if the plan takes it; UsageError if the plan's origin changed."""
        if self.origin is not None:
            self.origin.check_unchanged()
        at, tree = next(((i, p.tree) for i, p in enumerate(self.graph.params) if p.name == "given"), (0, None))
        if not isinstance(tree, dict):
            return args, named
        some = args[at] if at < len(args) else named.get("given")
        if self.origin is None and some is None:
            keys = ", ".join(map(repr, tree))
            raise SpecMismatch(f"the plan is given {keys} with each call", hint="given={name: value, ...}")
        if self.origin is None:
            return args, named
        return args[:at], {**named, "given": self.origin.filled({} if some is None else some)}

    def run(self, args: Sequence[Any], *, release: bool = False) -> list[PointerTensor]:
        """Replay it there on flat inputs; the results, flat. ``release``: ask for each of them in the same message."""
        return self._call(args, None, release)

    def fold(
        self,
        carry: Sequence[Any],
        data: Sequence[Any],
        args: Sequence[Any] = (),
        *,
        batch_size: int,
        epochs: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        given: Mapping[str, Any] | None = None,
        metrics: str = "steps",
        nonfinite: str = "stop",
    ) -> Any:
        """Replay it there over mini-batches of stored tensors, once per batch; returns at once.

        The plan is one step: it takes the carry, a batch and ``args``, and gives the next carry and
        perhaps metrics. The data is read by slices: it may be larger than the device's memory.

        Args:
            carry: what its first arguments are in the first step, in their structure; then its first outputs.
            data: its next arguments: tensors that are cut together along their first dimension.
            args: the rest; the same in every step.
            shuffle: in a new order each epoch, given by the message's seed.
            drop_last: leave out what does not fill a batch at an epoch's end.
            given: the plan's argument of this name: of a training plan, its numbers and structures.
                What is left out is as it is now, if this is the pointer that ``plan.send`` gave.
            metrics: of each metric ``"steps"``, one row per step; ``"last"``, the last step's; ``"sum"``;
                ``"mean"``, each step weighted by its rows; ``"epochs"``, such a mean of each epoch.
            nonfinite: at the first step whose carry or metrics are not finite, ``"stop"``: the carry is
                then what that step was given, and each metric raises NotFinite, which names the step. The carry
                alone does not tell: get a metric, too;
                ``"error"``: all results raise it; ``"keep"``: go on.

        Returns:
            the plan's structure of outputs, of pointers: the last carry; of each metric what ``metrics`` says.

        Raises:
            SpecMismatch: the plan does not admit these arguments, the last batch's size, or its own
                outputs as the next carry; nothing was sent.
            UsageError: what the plan was built from was changed; nothing was sent.
        """
        first, whole = _several(carry), _several(data)
        rest, named = self._with_given([*first, *whole, *_several(args)], {} if given is None else {"given": given})
        inputs = params.bind(self.graph, rest, named, about=self.about)
        batches = fold.batches(batch_size, epochs, shuffle=shuffle, drop_last=drop_last)
        loop = fold.loop(self.graph, len(first), len(whole), batches, metrics=metrics, nonfinite=nonfinite)
        return unflatten(self.graph.outputs, iter(self.fold_flat(inputs, loop)))

    def fold_flat(self, args: Sequence[Any], loop: Loop, *, release: bool = False) -> list[PointerTensor]:
        """The same on flat inputs: the carry's, the data's, the rest; the results, flat."""
        return self._call(args, loop, release)

    def _call(self, args: Sequence[Any], loop: Loop | None, release: bool) -> list[PointerTensor]:
        waiting = self.device.pending.made
        if waiting and any(isinstance(a, PointerTensor) and a.address in waiting for a in args):
            with self.device.batch():
                self.device.settle()
                return self._call(args, loop, release)
        if (draft := self.device.draft) is not None:
            return self._add(draft, args, loop, release)
        with self.device.drafting() as draft:
            return self._add(draft, args, loop, release)

    def _add(self, draft: Draft, args: Sequence[Any], loop: Loop | None, release: bool) -> list[PointerTensor]:
        given, types = [], []
        for n, arg in enumerate(args):
            run_arg, type_ = self._argument(arg if isinstance(arg, PointerTensor) else self._as_given(arg, n), n)
            given.append(run_arg)
            types.append(type_)
        if self._above_zero:
            ranges.check(self.about, [_number(arg) for arg in given])
        made = self._output_types(tuple(types)) if loop is None else self._folded_types(tuple(types), loop)
        private = frozenset[str]().union(*(a.private for a in args if isinstance(a, PointerTensor)))
        mine = draft.token is None
        results = [PointerTensor(self.device, draft.new_id(), t, mine=mine, private=private) for t in made]
        for p in results:
            draft.types[p.address] = p.type
        draft.comes_from([p.address for p in results], private)
        sent = tuple([draft.inline(self.device.hold(a)) if isinstance(a, RawTensor) else a for a in given])
        draft.actions.append(self._verb(sent, loop, tuple([p.address for p in results])))
        for p in results if release else ():
            draft.ask([p.address])
        return results

    def _verb(self, given: tuple[RunArg, ...], loop: Loop | None, results: tuple[str, ...]) -> Run | Fold:
        if loop is None:
            return Run(self.id, given, {}, results)
        k, end = loop.carry, loop.carry + loop.data
        words = loop.metrics, loop.nonfinite
        return Fold(self.id, given[:k], given[k:end], loop.batches, results, given[end:], *words)

    def run_as(
        self,
        args: Sequence[PointerTensor | RawTensor | str],
        results: Sequence[str],
        private: frozenset[str] = frozenset(),
    ) -> None:
        """Replay it under these ids, on arguments that are known to fit; text is the id of a value."""
        with self.device.drafting() as draft:
            given = [
                draft.inline(a) if isinstance(a, RawTensor) else Ref(a) if isinstance(a, str) else a.reference
                for a in args
            ]
            draft.comes_from(results, private)
            types = (self.graph.types[v.number] for v in self.graph.output_vars)
            draft.types.update(zip(results, types, strict=True))
            draft.actions.append(Run(self.id, tuple(given), {}, tuple(results)))

    def type_of(self, arg: Any) -> Type:
        """What an argument is, as far as is known here; UsageError for what can not be one."""
        return _if_known(self._argument(arg, len(self.about.params))[1])

    def _as_given(self, arg: Any, n: int) -> Any:
        """A number where the plan has a tensor without dimensions is that tensor."""
        if isinstance(arg, bool | int | float) and n < len(self.graph.inputs):
            return _scalar(arg, self.graph.inputs[n]) or arg
        return arg

    def _argument(self, arg: Any, n: int) -> tuple[RunArg | RawTensor, Type | None]:
        if isinstance(arg, PointerTensor):
            if arg.device != self.device:
                name = spec.argument(self.about, n)
                raise UsageError(
                    f"the plan is on {self.device.name}, argument {name or arg.address[:12]} on {arg.device.name}",
                    hint="send the plan there, or get the value and pass it as a tensor",
                )
            if arg.taken:
                arg.check_not_taken(spec.argument(self.about, n))
            return arg.reference, arg.type
        if isinstance(arg, (bool, int, float)):
            return arg, Type(type(arg).__name__, None, arg)
        raw = raw_tensor(arg, spec.argument(self.about, n))
        return raw, Type(raw.dtype, raw.shape)

    def _output_types(self, types: tuple[Type | None, ...]) -> tuple[Type | None, ...]:
        """Check the arguments, unless the device must; what the results will be, where that is known."""
        found: tuple[Type | None, ...] | None = self._checked.get(types)
        if found is None:
            given = tuple(map(_if_known, types))
            if UNKNOWN in given and len(given) == len(self.graph.inputs):
                return (None,) * len(self.graph.output_vars)
            spec.match(self.graph, given, about=self.about)
            found = spec.output_types(self.graph, given)
            if len(self._checked) < 1000:
                self._checked[types] = found
        return found

    def _folded_types(self, types: tuple[Type | None, ...], loop: Loop) -> tuple[Type | None, ...]:
        given = tuple(map(_if_known, types))
        if UNKNOWN in given:
            return (None,) * len(self.graph.output_vars)
        return fold.fit(self.graph, loop, given, about=self.about).outputs


_PACKED = {
    "bool": "?", "f64": "d", "f32": "f", "f16": "e",
    "i64": "q", "i32": "i", "i16": "h", "i8": "b", "u64": "Q", "u32": "I", "u16": "H", "u8": "B",
}  # fmt: skip


def _scalar(number: float, wanted: Type) -> RawTensor | None:
    """The number as a tensor of this type, if that has no dimensions and holds such numbers: no 0.5 as an integer."""
    if wanted.shape != () or wanted.dtype not in _PACKED or isinstance(number, bool) is not (wanted.dtype == "bool"):
        return None
    if isinstance(number, float) and not wanted.dtype.startswith("f"):
        return None
    try:
        return RawTensor(wanted.dtype, (), struct.pack(f"<{_PACKED[wanted.dtype]}", number))
    except (struct.error, OverflowError):
        return None


def _number(arg: RunArg | RawTensor) -> float | None:
    """The number that an argument is, or a tensor without dimensions holds; None if it is not known here."""
    if isinstance(arg, RawTensor) and arg.shape == () and arg.dtype in _PACKED:
        return float(struct.unpack(f"<{_PACKED[arg.dtype]}", arg.data)[0])
    return float(arg) if isinstance(arg, (bool, int, float)) else None


def _several(values: Any) -> Sequence[Any]:
    """Arguments as a sequence; a single one is one."""
    return values if isinstance(values, (list, tuple)) else (values,)


class PointerPlans(list[PointerPlan]):
    """One plan at several devices, in the order it was sent to them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay it where the arguments are.

        Args:
            args, kwargs: with a PointerTensors (as ``x.send(d1, d2)`` gives) among them, it runs on
                each device, with that device's pointer; else on the device that the pointers are
                of. Numbers and tensors alone run on each.

        Returns:
            one result, or a list with one per device.

        Raises:
            UsageError: a pointer is of a device that the plan was not sent to.
        """
        leaves = _leaves([args, kwargs])
        there = next((p.device for p in leaves if isinstance(p, PointerTensor)), None)
        if there is not None:
            return self.on(there)(*args, **kwargs)
        return [plan(*_own(plan, args), **_own(plan, kwargs)) for plan in self]

    def on(self, device: Device) -> PointerPlan:
        """The plan at this device."""
        for plan in self:
            if plan.device == device:
                return plan
        names = ", ".join(plan.device.name for plan in self)
        raise UsageError(f"the plan was sent to {names}, the argument is on {device.name}", hint="send the plan there")


def _leaves(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            yield from _leaves(list(value.values()))
        case list() | tuple() if not isinstance(value, PointerTensors):
            for part in value:
                yield from _leaves(part)
        case _:
            yield value


def _own(plan: PointerPlan, value: Any) -> Any:
    """The arguments of one device: of each PointerTensors, its pointer."""
    match value:
        case PointerTensors():
            for p in value:
                if p.device == plan.device:
                    return p
            raise UsageError(f"the plan is on {plan.device.name}, and none of these values", hint="send it there, too")
        case dict():
            return {k: _own(plan, v) for k, v in value.items()}
        case list() | tuple():
            return type(value)(_own(plan, v) for v in value)
    return value


def _if_known(type_: Type | None) -> Type:
    """The type if every size is a number."""
    known = type_ and (type_.shape is None or all(isinstance(d, int) for d in type_.shape))
    return type_ if type_ and known else UNKNOWN
