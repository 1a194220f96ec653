"""How large replies will be, before what they say is there: from declared types, which tell nothing of private bytes.

What a graph declares of its results is its sender's claim; when a reply is made its real size counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedq import ids
from fedq.device.calls import Call
from fedq.device.journal import OWNER, Value, Wanted
from fedq.device.room import content_bytes, size_of
from fedq.errors import FedqError
from fedq.plan import fold, spec
from fedq.plan.graph import Graph, Type
from fedq.queue.message import Inline, OwnerRef, Ref, RunArg

if TYPE_CHECKING:
    from fedq.device.peer import Peer

MOST_CACHED = 1000


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    if len(cache) >= MOST_CACHED:
        cache.clear()
    cache[key] = value


class Expected:
    """The sizes of what one requester asks for."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self._journal = peer, peer.journal
        self._outputs: dict[tuple[str, tuple[Type, ...]], tuple[Type | None, ...]] = {}
        self._of_owners: dict[tuple[str, tuple[str, ...]] | None, tuple[Type | None, ...]] = {}
        """Of calls on owner's values alone, by these."""

    def sizes(self, wanted: Wanted) -> dict[str, int | None]:
        """Bytes of each value that a reply is to have; None where no declared type tells."""
        if ids.is_plan_id(plan := wanted.ids[0]):
            return {plan: self._plan(plan)}
        return {i: size_of(self._owners(i) if i in wanted.owners else self._own(i)) for i in wanted.ids}

    def decided(self, wanted: Wanted) -> dict[str, int | None]:
        """The same once it is decided what leaves: real sizes."""
        if ids.is_plan_id(plan := wanted.ids[0]):
            return {plan: self._plan(plan)}
        allowed = wanted.allowed or {}
        return {i: self._real(i, wanted) if isinstance(allowed.get(i), str) else 0 for i in wanted.ids}

    def _plan(self, id_: str) -> int | None:
        found = self._journal.plan(self._peer.name, id_)
        return len(found[0]) if found and found[0] else None

    def _real(self, id_: str, wanted: Wanted) -> int:
        value = self._journal.kept(id_) if id_ in wanted.owners else self._journal.value(self._peer.name, id_)
        return 0 if value is None or value.failure is not None else content_bytes(value)

    def _owners(self, id_: str) -> Type | None:
        value = self._peer.owners_value(id_)
        return value.type if value is not None else None

    def _own(self, id_: str) -> Type | None:
        """The type of a value of the requester's; of what is private and stands, the declared one if that is known."""
        maker = self._peer.questions.asleep.get(id_) or self._peer.coming.get(id_)
        if maker is not None:
            if not maker.types:
                self._infer(maker)
            return maker.types[maker.results.index(id_)] if maker.types else None
        value = self._journal.value(self._peer.name, id_)
        return value.type if value is not None and self._is_open(value) else None

    def _is_open(self, value: Value) -> bool:
        return self._journal.are_open(value.sources)

    def _infer(self, call: Call) -> None:
        """Find the types of a call's results, those of the calls whose results it reads first."""
        if not call.refs:
            call.types = self._types(call)
            return
        stack, seen = [call], set[tuple[str, int]]()
        while stack:
            top = stack[-1]
            makers = [m for ref in top.refs if (m := self._peer.coming.get(ref)) and not m.types]
            if top.types or top.key in seen or not makers:
                top.types = top.types or self._types(top)
                stack.pop()
            else:
                seen.add(top.key)
                stack += makers

    def _types(self, call: Call) -> tuple[Type | None, ...]:
        of_owners = (call.plan, call.owners) if call.loop is None and len(call.owners) == len(call.args) else None
        if of_owners in self._of_owners:
            return self._of_owners[of_owners]
        unknown: tuple[Type | None, ...] = (None,) * len(call.results)
        plan, given = self._peer.plan(call.plan), [self._given(arg, call) for arg in call.args]
        types = tuple(t for t in given if t is not None)
        if not isinstance(plan, tuple) or len(types) != len(given):
            return unknown
        try:
            if call.loop is not None:
                return fold.fit(plan[0].graph, call.loop, list(types), about=plan[0].about).outputs
            found = self._outputs_of(call.plan, plan[0].graph, types)
        except FedqError:
            return unknown
        found = found if len(found) == len(call.results) else unknown
        if of_owners is not None:  # an id's type stays as it is
            _keep(self._of_owners, of_owners, found)
        return found

    def _outputs_of(self, plan: str, graph: Graph, types: tuple[Type, ...]) -> tuple[Type | None, ...]:
        if (plan, types) not in self._outputs:
            _keep(self._outputs, (plan, types), tuple(spec.output_types(graph, types)))
        return self._outputs[plan, types]

    def _given(self, arg: RunArg, call: Call) -> Type | None:
        match arg:
            case Ref(id_) if (maker := self._peer.coming.get(id_)) is not None:
                return maker.types[maker.results.index(id_)] if maker.types else None
            case Ref(id_):
                value = self._journal.value(self._peer.name, id_)
                return value.type if value and not value.failure and self._is_open(value) else None
            case OwnerRef(id_):
                owners = self._journal.value(OWNER, id_)
                return owners.type if owners is not None else None
            case Inline(name):
                raw = self._peer.file(call.message).tensors[name]
                return Type(raw.dtype, raw.shape)
            case bool() | int() | float():
                return Type(type(arg).__name__, None, arg)
        return None
