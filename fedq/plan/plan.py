"""Plan: a Python function or nn.Module, its recorded graph and its state.

A plan is built once and sent anywhere; its state (parameters, buffers, constants) is read when it
is sent, saved or identified, so training between two sends needs no building. A plan that holds
its Python function calls that when used here, so autograd works; one from a file replays.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from fedq import fs
from fedq.errors import CannotRecord, NotBuilt, SpecMismatch, UsageError
from fedq.plan import graph as ir
from fedq.plan import held as holding
from fedq.plan import nesting, params, replay, tensors
from fedq.plan.codec import Signer
from fedq.plan.file import PlanFile, encode_plan
from fedq.plan.graph import About, Action, Graph, Type, show
from fedq.plan.held import State as State
from fedq.plan.spec import match
from fedq.plan.verify import verify

Shapes = Sequence[Sequence[int]]
Example = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments of a call, by position and by name."""
_EXAMPLES: ContextVar[MutableMapping[Plan, Example] | None] = ContextVar("examples", default=None)
_ANY = 5
"""What a free size is in an example."""


class Receiver(Protocol):
    """A device, seen from a plan."""

    def send_plan(self, plan: Plan) -> Any: ...


class Plan(nn.Module):
    """A function to record and send; also a base class: layers in ``__init__``, then ``forward``.

    Attributes:
        is_built: whether it was recorded.
        graph, about: what was recorded, and where it came from.
    """

    def __init__(
        self,
        source: Callable[..., Any] | None = None,
        *,
        state: Sequence[torch.Tensor] = (),
        built: tuple[Graph, About, tuple[torch.Tensor, ...]] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(source, type):
            name = source.__name__
            raise UsageError(f"{name} is a class: a plan is made of one of its instances", hint=f"write {name}(...)")
        self._source = (source,)  # in a tuple, so that a module is not registered under this name
        self._given = tuple(state)
        self._built = built
        self._fast: Callable[..., Any] | None = None
        self._as_written = False
        self._inner: tuple[nesting.Inner, ...] = ()
        self._attributes = holding.Attributes()
        self._lent = False

    # -- building

    @property
    def is_built(self) -> bool:
        return self._built is not None

    def build(self, *args: Any, check: bool = False, **kwargs: Any) -> Plan:
        """Record it on these examples: their sizes, dtypes and structure count, not their values.

        Args:
            args, kwargs: as the function takes them: tensors, numbers, and lists, tuples and
                dicts of them. None and texts are part of the structure: they are fixed.
            check: also replay it on these examples in a worker that is started for it, and demand
                what the function gives. Takes about three seconds.

        Raises:
            CannotRecord: it does what a plan cannot hold; names the line and what to write instead.
        """
        if not isinstance(self, Plan):
            raise _built_on_the_class()
        return self._build(*args, **kwargs)._tried(lambda: (args, kwargs), check=check)

    def build_shapes(self, args_shape: Shapes, *, check: bool = False) -> Plan:
        """Record it on float32 tensors of these shapes; -1 is any size, a number is tried as any size.

        Args:
            check: as of `build`, on random numbers.
        """
        if not isinstance(self, Plan):
            raise _built_on_the_class()
        self._build(*(Type("f32", _shape(s)) for s in args_shape))
        return self._tried(lambda: (_random(args_shape), {}), check=check)

    def _tried(self, example: Callable[[], Example], *, check: bool) -> Plan:
        """Check it on an example, or keep that for whoever collects them."""
        kept = _EXAMPLES.get()
        if kept is not None:
            kept[self] = example()
        if check:
            import fedq  # the door: workers are above plans

            fedq.check(self, *example())
        return self

    def eager(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, seed: int) -> Any:
        """What its Python function gives, on copies of its arguments and state; random ops draw from ``seed``.

        With updates, ``(result, {name: new value})``, as a replay.
        """
        from fedq.plan.untouched import Kept

        function, state = self._function()
        held = [holding.own_copy(t) for _, t in state]
        args, kwargs = tree_map_only(torch.Tensor, holding.own_copy, (tuple(args), dict(kwargs)))
        self._lent = True
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                out = Kept(function).around(function)(held, *args, **kwargs)
        finally:
            self._lent = False
        new = {name: t for (name, _), t in zip(state, held, strict=True)}
        return (out, {name: new[name] for name in self.about.updates}) if self.about.updates else out

    @classmethod
    def from_exported(cls, program: torch.export.ExportedProgram) -> Plan:
        """A built plan of what ``torch.export.export`` gave, in memory, with its weights.

        Raises:
            UsageError: it is no such program. Files (``.pt2``) are not read: loading one runs code in it.
            CannotRecord: it does what a plan cannot hold.
        """
        if not isinstance(program, torch.export.ExportedProgram):
            raise UsageError(
                f"{program!r} is no exported program",
                hint="give what torch.export.export returned; loading a .pt2 file runs code from it",
            )
        if program.example_inputs is None:
            raise UsageError(
                "the exported program has no example inputs", hint="export it with examples, and build anew"
            )
        args, kwargs = program.example_inputs
        return cls(program.module(check_guards=False)).build(*args, **kwargs)

    def _build(self, *args: Any, **kwargs: Any) -> Plan:
        before = self._inner, self._attributes
        self._inner = ()
        self._take_attributes()
        try:
            while not self._all_known(args, kwargs):
                pass
        except CannotRecord as error:
            self._inner, self._attributes = before
            raise _with_line(error) from error.__cause__
        except BaseException:
            self._inner, self._attributes = before
            raise
        return self

    def _all_known(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Record it with the state that is known so far: whether that was all of it, and no more."""
        try:
            self._record(*args, **kwargs)
        except nesting.NeedsState as needs:
            name = nesting.unique(needs.name, self._inner)
            self._inner = (*self._inner, nesting.Inner(needs.plan, name))
            if not needs.plan.is_built:
                needs.plan._take_attributes()
            return False
        except holding.Outgrown as outgrown:
            plans: list[Plan] = [self, *(inner.plan for inner in self._inner)]
            next(p for p in plans if p._module() is outgrown.module)._attributes.leave({outgrown.name})
            return False
        unused = self._unused_attributes()
        self._attributes.leave(unused)
        return not unused

    def _take_attributes(self) -> None:
        """Plain tensors that its module has as attributes are state, too, if they turn out to be used."""
        module = self._module()
        self._attributes = holding.Attributes(() if module is None else tuple(holding.attributes_of(module)))

    def _unused_attributes(self) -> set[str]:
        used = {v.number for g in (self.graph, *self.graph.variants) for v in self._vars_of(g)}
        names = [name for name, _ in self.graph.state]
        return {name for name in self._attributes.names if len(self.graph.inputs) + names.index(name) not in used}

    def _vars_of(self, graph: Graph) -> Iterator[ir.Var]:
        """What its actions and its result need, new values of state aside."""
        outputs = graph.outputs[0] if self.about.updates else graph.outputs
        yield from (v for a in graph.actions for v in a.vars())
        yield from (v for v in ir.flatten(outputs) if isinstance(v, ir.Var))

    def _record(self, *args: Any, **kwargs: Any) -> Plan:
        from fedq.plan.trace import trace  # brings sympy and half of torch's compiler: only to build
        from fedq.plan.untouched import call_and_compare

        function, state = self._function()
        for name, tensor in state:
            _check_dtype(f"state {name!r}", tensor)
        taken = self._taken(args, kwargs)
        asked = [_asked(name, leaf) for name, leaf in zip(taken.names, taken.leaves, strict=True)]

        def plainly(held: list[Any], *leaves: Any) -> Any:
            args, kwargs = taken.again(leaves)
            return call_and_compare(function, held, args, kwargs)

        def called(held: list[Any], *leaves: Any) -> Any:
            return plainly(held, *(holding.like(e, leaf) for e, leaf in zip(taken.leaves, leaves, strict=True)))

        def recorded(function: Callable[..., Any]) -> tuple[Graph, About, tuple[torch.Tensor, ...]]:
            return trace(function, asked, state=state, name=self.name, params=taken.names, as_written=self._as_written)

        self._fast, self._lent = None, True
        try:
            graph, about, constants = recorded(called)
            if any(map(holding.is_special, taken.leaves)):
                _refuse_if_other(graph, about, lambda: recorded(plainly)[0])
        finally:
            self._lent = False
        graph, kept = params.settled(graph, taken)
        self._built = graph, replace(about, params=tuple(taken.names[n] for n in kept)), constants
        return self

    def _function(self) -> tuple[Callable[..., Any], list[tuple[str, torch.Tensor]]]:
        """What to record, as a function of state tensors and arguments, and the state by name."""
        return nesting.together(self, self._own_function(), self._inner)  # type: ignore[no-any-return]

    def parts(self) -> Iterator[nn.Module]:
        """The modules it is made of."""
        module = self._module()
        return iter(()) if module is None else nn.Module.modules(module)

    def inside(self) -> tuple[Callable[..., Any], list[tuple[str, torch.Tensor]]]:
        """The same for a plan that calls this one: its function if it has one, else what was recorded."""
        if self._source[0] is not None or self._module() is not None:
            return self._own_function()
        return (lambda held, *args, **kwargs: self._inline(held, args, kwargs)), list(self.state.items())

    def _inline(self, held: Sequence[torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        from fedq.plan.blame import Unrecordable

        try:
            inputs = params.bind(self.graph, args, kwargs, about=self.about)
            match(self.graph, [tensors.type_of(a) for a in inputs], about=self.about)
        except SpecMismatch as error:
            raise Unrecordable(f"it calls plan {self.name!r}, which does not admit this: {error}") from error
        return ir.unflatten(self.graph.outputs, iter(replay.compile(verify(self.graph)).fn(*inputs, *held)))

    def _own_function(self) -> tuple[Callable[..., Any], list[tuple[str, torch.Tensor]]]:
        module = self._module()
        if module is not None:
            return (
                lambda held, *args, **kwargs: self._call_module(module, held, args, kwargs),
                list(holding.named(module, self._attributes.names).items()),
            )
        if self._source[0] is None:
            raise UsageError(f"plan {self.name!r} came from a file: it can not be built again")
        given = [(f"state{i}", t) for i, t in enumerate(self._given)]
        return (lambda held, *args, **kwargs: self._call(held, args, kwargs)), given

    def _call_module(
        self, module: nn.Module, held: list[torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            out = holding.call(module, held, args, kwargs, self._attributes.names)
        except holding.Outgrown:
            if self._attributes.held:  # so it is these inputs
                raise CannotRecord("it changes the shape or dtype of its state") from None
            raise
        self._attributes.held = True
        return out

    def _call(self, held: Sequence[torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the function, with its state as its last argument."""
        source = self._source[0]
        assert source is not None
        if not self._given:
            return source(*args, **kwargs)
        last = list(inspect.signature(source).parameters.values())[-1]
        if last.kind in (last.POSITIONAL_OR_KEYWORD, last.KEYWORD_ONLY):
            return source(*args, **kwargs, **{last.name: State(held)})
        return source(*args, State(held), **kwargs)

    @property
    def is_module(self) -> bool:
        """Whether it is the module itself: a class plan."""
        return self._module() is self

    def _module(self) -> nn.Module | None:
        if isinstance(self._source[0], nn.Module):
            return self._source[0]
        return self if self._source[0] is None and type(self) is not Plan else None

    def _taken(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> params.Taken:
        signature = _signature(self._called())
        if self._given:
            *own, last = signature.parameters.values()
            own += [last] if last.kind is last.VAR_POSITIONAL else []
            signature = signature.replace(parameters=own)
        try:
            return params.taken(signature, args, kwargs)
        except TypeError as error:
            count = len(args) + len(kwargs)
            raise UsageError(f"{self.name} can not be called with {count} arguments: {error}") from None

    def _called(self) -> Callable[..., Any]:
        module = self._module()
        called = module.forward if module is not None else self._source[0]
        assert called is not None
        return called

    # -- what was built

    @property
    def name(self) -> str:
        if self._source[0] is None and self._built is not None and type(self) is Plan:
            return self._built[1].name
        source: Any = self._source[0]
        if source is None or isinstance(source, nn.Module):
            return type(source or self).__name__
        return getattr(source, "__name__", type(source).__name__)

    def _need(self) -> tuple[Graph, About, tuple[torch.Tensor, ...]]:
        if self._built is None:
            raise NotBuilt(f"plan {self.name!r} is not built")
        return self._built

    @property
    def graph(self) -> Graph:
        return self._need()[0]

    @property
    def about(self) -> About:
        return self._need()[1]

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.graph.actions

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What it holds, by name: parameters and buffers, or what ``state=`` gave, as they are now."""
        if self._source[0] is not None or self._module() is not None:
            return dict(self._function()[1])
        names = (name for name, _ in self.graph.state)
        return dict(zip(names, self._need()[2], strict=True))

    def state_tensors(self) -> list[torch.Tensor]:
        """The state as it is now, in the graph's order: parameters and buffers or ``state=``, then constants."""
        held = list(self.state.values())
        return held if len(held) == len(self.graph.state) else [*held, *self._need()[2]]

    def load_state(self, new: Mapping[str, torch.Tensor]) -> None:
        """Put new values into its state, or some of it: what a run of it gave as updates, or training made.

        Raises:
            UsageError: a name, shape or dtype is another; then nothing was changed.
        """
        holding.load(self.state, new)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Of the module it was made of, or its own; of a function, the tensors of ``state=``."""
        source, state = self._source[0], [(f"state{i}", t) for i, t in enumerate(self._given)]
        if isinstance(source, nn.Module):
            return source.named_parameters(*args, **kwargs)
        return iter(cast(Any, state)) if state else super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; of a plan from a file or with ``state=``: what it holds."""
        match self._module():
            case None:
                return {name: t.detach() for name, t in self.state.items()}
            case own if own is self:
                return super().state_dict(*args, **kwargs)
            case module:
                return module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch's; of a plan from a file or with ``state=``: as `load_state`."""
        match self._module():
            case None:
                return self.load_state(state_dict)
            case own if own is self:
                return super().load_state_dict(state_dict, *args, **kwargs)
            case module:
                return module.load_state_dict(state_dict, *args, **kwargs)

    def file(self) -> PlanFile:
        """The plan with a copy of its state as it is now."""
        names = (name for name, _ in self.graph.state)
        raw = (tensors.to_raw(t.detach().clone()) for t in self.state_tensors())
        return PlanFile(self.graph, dict(zip(names, raw, strict=True)), self.about)

    @property
    def id(self) -> str:
        """64 hex digits: of the graph and the state as it is now."""
        return self.file().id

    def __str__(self) -> str:
        return show(self.graph, self.about) if self.is_built else f"plan {self.name}: not built"

    __repr__ = __str__

    # -- using it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it here: its Python function if it has one, else what was recorded.

        What it would write into its state, it gives instead: ``(result, {name: new value})``.
        """
        lent = nesting.lent_for(self)
        if lent is not None:
            return lent.call(self, args, kwargs)
        if self._writes_here() and not nesting.runs_within(self):
            return self._apart(args, kwargs)
        if self._source[0] is not None:
            return self._call(self._given, args, kwargs)
        if type(self) is not Plan:
            return super().__call__(*args, **kwargs)
        return self._replay(params.bind(self.graph, args, kwargs, about=self._need()[1]))

    def _writes_here(self) -> bool:
        """Whether calling its function would write to its state, which then it must not."""
        own = self._source[0] is not None or self._module() is not None
        return self._built is not None and bool(self.about.updates) and own and not self._lent

    def _apart(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call its function on copies of what it writes to."""
        function, state = self._function()
        written = self.about.updates
        held = [holding.own_copy(t) if n in written else t for n, t in state]
        self._lent = True
        try:
            out = function(held, *args, **kwargs)
        finally:
            self._lent = False
        new = {name: t for (name, _), t in zip(state, held, strict=True)}
        return out, {name: new[name].detach() for name in written}

    def _replay(self, inputs: Sequence[Any]) -> Any:
        match(self.graph, [tensors.type_of(a) for a in inputs], about=self.about)
        if self._fast is None:
            self._fast = self._flat()
        return self._fast(*inputs)

    def compiled(self) -> Callable[..., Any]:
        """The function a device replays, with the state of now bound: sizes and dtypes are not checked."""
        call, graph, about = self._flat(), self.graph, self.about
        return (lambda *args, **kwargs: call(*params.bind(graph, args, kwargs, about=about))) if graph.params else call

    def _flat(self) -> Callable[..., Any]:
        """Inputs in, perhaps some by name; outputs in their structure out. As few calls as can be: of small plans
        they are what replaying costs."""
        state, graph, about = self.state_tensors(), self.graph, self.about
        call, outputs = replay.compile(verify(graph)).fn, graph.outputs

        def one(*inputs: Any, **named: Any) -> Any:
            if named or state:
                return call(*(params.bind(graph, inputs, named, about=about) if named else inputs), *state)[0]
            return call(*inputs)[0]

        def several(*inputs: Any, **named: Any) -> Any:
            given = params.bind(graph, inputs, named, about=about) if named else inputs
            return ir.unflatten(outputs, iter(call(*given, *state)))

        if not isinstance(outputs, ir.Var):
            return several
        return _of_one(call, one) if len(graph.inputs) == 1 and not state else one

    def copy(self) -> Plan:
        """Another plan like it, as it is now: training one leaves the other alone."""
        memo = {id(part): part for part in (self._built or ())[:2]}  # frozen
        made = copy.deepcopy(self, memo)
        made._fast = None
        return made

    def save(self, path: str | Path, *, signer: Signer | None = None) -> None:
        """Write it as a signed file, in place of what was there; signed by this user's own key if none is given."""
        import fedq  # the door: keys are above plans

        fs.replace(Path(path), encode_plan(self.file(), signer or fedq.own_key()))

    def send(self, *devices: Receiver) -> Any:
        """Send it: a pointer, or for several devices a list of them that can be called, too.

        Raises:
            NotBuilt: it was not recorded yet.
        """
        if not devices:
            raise UsageError(f"plan {self.name!r} is sent to no device", hint="plan.send(device_1, device_2)")
        self._need()
        pointers = [device.send_plan(self) for device in devices]
        return pointers[0] if len(pointers) == 1 else pointers[0].together(pointers)


def func2plan(
    args_shape: Shapes | None = None, state: Sequence[torch.Tensor] = ()
) -> Callable[[Callable[..., Any]], Plan]:
    """Make a plan of a function or nn.Module; with ``args_shape`` it is built at once.

    Args:
        args_shape: one shape per argument, float32; -1 is any size.
        state: tensors that travel with the plan; the function gets them as its last argument,
            ``state``, and reads them with ``state.read()``.
    """

    def make(source: Callable[..., Any]) -> Plan:
        plan = Plan(source, state=state)
        return plan if args_shape is None else plan.build_shapes(args_shape)

    return make


@contextmanager
def examples() -> Iterator[MutableMapping[Plan, Example]]:
    """What the plans that are built inside were built on."""
    kept: MutableMapping[Plan, Example] = WeakKeyDictionary()
    token = _EXAMPLES.set(kept)
    try:
        yield kept
    finally:
        _EXAMPLES.reset(token)


def _random(shapes: Shapes) -> tuple[torch.Tensor, ...]:
    with torch.random.fork_rng(devices=[]):
        return tuple(torch.rand([_ANY if n == -1 else n for n in shape]) for shape in shapes)


def from_file(file: PlanFile) -> Plan:
    """A plan that replays what a file holds; the file was checked, and its graph verified."""
    held = tuple(tensors.from_raw(raw) for raw in file.state.values())
    return Plan(built=(file.graph, file.about, held))


def _built_on_the_class() -> UsageError:
    return UsageError(
        "build was called on a class, not on a plan made of it", hint="make one first: Net().build(...), for class Net"
    )


def _signature(called: Callable[..., Any]) -> inspect.Signature:
    """Of a function; any arguments for one of torch's own, which tells none."""
    try:
        return inspect.signature(called)
    except ValueError:
        kinds = {"x": inspect.Parameter.VAR_POSITIONAL, "named": inspect.Parameter.VAR_KEYWORD}
        return inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds.items()])


def _of_one(call: Callable[..., Any], general: Callable[..., Any]) -> Callable[..., Any]:
    """The same for one input: a call that spells its arguments out costs 0.1 µs less, of a plan of 4."""

    def one(given: Any = _NOTHING, /, *more: Any, **named: Any) -> Any:
        if given is _NOTHING or more or named:
            return general(*(() if given is _NOTHING else (given,)), *more, **named)
        return call(given)[0]

    return one


_NOTHING = object()


def _refuse_if_other(graph: Graph, about: About, plainly: Callable[[], Graph]) -> None:
    """Refuse a function that does something else to plain tensors: a device has no others.

    Raises:
        CannotRecord: names a line that only one of the two comes to.
    """
    from fedq.plan.blame import shown

    try:
        other = plainly()
    except CannotRecord:
        return  # it takes a gradient of what it is given: that is what was meant
    if graph.id == other.id:
        return
    actions = zip(graph.actions, other.actions, strict=False)
    number = next((i for i, (ours, theirs) in enumerate(actions) if ours != theirs), len(other.actions))
    line = about.line(number) if number < len(graph.actions) else ""
    raise CannotRecord(
        "it does something else to an argument that requires a gradient or is a parameter, as the example is and a "
        f"device's values are not{shown(line)}",
        hint="give x.detach() as the example; where the function takes a gradient: x = x.detach().requires_grad_()",
        line=line,
    )


def _with_line(error: CannotRecord) -> CannotRecord:
    """The refusal with a line of the user's: where no line of the function is to blame, the one that builds it."""
    from fedq.plan.blame import calling_line, shown

    line = error.fields.get("line") or calling_line()
    if error.fields.get("line") or not line:
        return error
    return CannotRecord(f"{error.args[0]}{shown(line)}", hint=error.hint, line=line)


def _check_dtype(what: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in tensors.NAMES:
        hint = f"use one of {', '.join(tensors.DTYPES)}"
        raise CannotRecord(f"{what} is of {tensor.dtype}, which a file can not hold", hint=hint)


def _asked(name: str, value: Any) -> Type:
    if isinstance(value, Type):
        return value
    if isinstance(value, torch.Tensor):
        _check_dtype(f"argument {name!r}", value)
        type_ = tensors.type_of(value)
        return Type(type_.dtype, tuple(value.shape))
    if isinstance(value, (bool, int, float)):
        return Type(type(value).__name__, None, value)
    raise UsageError(
        f"argument {name!r} is a {type(value).__name__}: a plan takes tensors and numbers",
        hint="or lists, tuples and dicts of them",
    )


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else None
    if sizes is None or not all(type(n) is int and n >= -1 for n in sizes):
        raise UsageError(f"{shape!r} in args_shape is not a shape", hint="give tuples of sizes, -1 for any: [(-1, 2)]")
    return sizes
