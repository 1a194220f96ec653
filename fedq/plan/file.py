"""A plan as a file: graph, state and where it came from. Knows no torch.

The plan id is SHA-256 of the graph's id and the digests of the state tensors; names, files and
lines are outside it. Format: docs/format.md, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedq import ids
from fedq.errors import BadFile
from fedq.plan.codec import VERSION, Buffer, File, RawTensor, Signer, check_version, encode, sha256
from fedq.plan.graph import About, Graph, Type, about_from_json, about_to_json, graph_from_json, graph_to_json

KIND = "plan"


@dataclass(frozen=True)
class PlanFile:
    """A graph with the bytes of its state, name -> tensor, in the graph's order."""

    graph: Graph
    state: Mapping[str, RawTensor] = field(default_factory=dict)
    about: About = field(default_factory=About)

    @cached_property
    def id(self) -> str:
        """64 hex digits; the same graph with the same state has the same id."""
        tensors = [self.state[name] for name, _ in self.graph.state]
        parts = (str(Type(t.dtype, t.shape)).encode() + sha256([t.data]) for t in tensors)
        return ids.digest(b"plan", self.graph.id.encode(), *parts)


def encode_plan(plan: PlanFile, signer: Signer) -> list[Buffer]:
    """The plan as a signed file, in chunks."""
    names = [name for name, _ in plan.graph.state]
    row = ["plan", plan.id, graph_to_json(plan.graph), names, about_to_json(plan.about)]
    body = {"v": VERSION, "kind": KIND, "plan": row}
    return encode(KIND, body, plan.state, signer)


def decode_plan(file: File) -> PlanFile:
    """Read a plan file whose signature was checked; the graph is not verified yet."""
    check_version(file.body)
    match file.body:
        case {"kind": "plan", "plan": ["plan", str(id_), graph, list(names), about], **rest} if rest.keys() == {"v"}:
            plan = checked(id_, graph_from_json(graph), names, about_from_json(about), file.tensors)
            if len(set(names)) == len(file.tensors):
                return plan
            raise BadFile("a plan file holds tensors that are not its state")
    raise BadFile("not a plan file")


def checked(id_: str, graph: Graph, names: Sequence[Any], about: About, tensors: Mapping[str, RawTensor]) -> PlanFile:
    """The plan made of a graph and named tensors, if they fit each other and the id."""
    if len(names) != len(graph.state) or not all(isinstance(n, str) and n in tensors for n in names):
        raise BadFile("a plan's state tensors are not in the file")
    state = {name: tensors[t] for (name, _), t in zip(graph.state, names, strict=True)}
    for name, type_ in graph.state:
        if (type_.dtype, type_.shape) != (state[name].dtype, state[name].shape):
            raise BadFile(f"state {name[:60]!r} is not {type_}")
    plan = PlanFile(graph, state, about)
    if plan.id != id_:
        raise BadFile("a plan's id is not that of its content")
    return plan
