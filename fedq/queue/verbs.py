"""Message, Reply and the verbs in them, as frozen data.

A message is a list of device actions in order, with tensors beside them; a reply is what came
of one ``get``. Their files are `queue.message`. Format: docs/format.md, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedq.plan.fold import Batches, Loop
from fedq.plan.graph import About, Graph


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value of the requester's own, on the device: its id."""

    id: str


@dataclass(frozen=True, slots=True)
class OwnerRef:
    """An argument that is a value of the device's owner: its id. It never means one of the requester's."""

    id: str


@dataclass(frozen=True, slots=True)
class Inline:
    """An argument that is a tensor of this message: its name in the file."""

    name: str


RunArg = Ref | OwnerRef | Inline | int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Put:
    """Store the message's tensor ``tensor`` under ``id``, perhaps with a tag and a note."""

    id: str
    tensor: str
    tag: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Store a plan. ``tensors``: the file's tensor names of its state, in the graph's order."""

    id: str
    graph: Graph
    tensors: tuple[str, ...] = ()
    about: About = field(default_factory=About)


@dataclass(frozen=True, slots=True)
class Run:
    """Replay a plan; ``results``: one id per output, chosen by the sender."""

    plan: str
    args: tuple[RunArg, ...]
    kwargs: Mapping[str, RunArg]
    results: tuple[str, ...]

    @property
    def given(self) -> tuple[RunArg, ...]:
        return (*self.args, *self.kwargs.values()) if self.kwargs else self.args


@dataclass(frozen=True, slots=True)
class Fold:
    """Replay a plan over mini-batches of ``data``, carrying the first of its outputs on.

    ``args`` are the same in every step. ``results``: the last carry, then the metrics. ``metrics``,
    ``nonfinite``: as in `plan.fold.Loop`; these values are what a message without such options means.
    """

    plan: str
    carry: tuple[RunArg, ...]
    data: tuple[RunArg, ...]
    batches: Batches
    results: tuple[str, ...]
    args: tuple[RunArg, ...] = ()
    metrics: str = "steps"
    nonfinite: str = "keep"

    @property
    def given(self) -> tuple[RunArg, ...]:
        return (*self.carry, *self.data, *self.args)

    @property
    def loop(self) -> Loop:
        return Loop(len(self.carry), len(self.data), self.batches, self.metrics, self.nonfinite)


@dataclass(frozen=True, slots=True)
class Get:
    """Release values under a reply id; or one plan, by its id: its file is the reply.

    ``owners``: those of the values that are the owner's, not the requester's own.
    """

    reply: str
    values: tuple[str, ...]
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget values, once the messages ``after`` are done."""

    values: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """Do not do these messages, if they have not been done yet."""

    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ack:
    """The requester has stored these replies."""

    replies: tuple[str, ...]


Verb = Put | SendPlan | Run | Fold | Get | Drop | Cancel | Ack


@dataclass(frozen=True, slots=True)
class Address:
    """To whom a file goes: a name, the whole public key behind it (hex), and the queue root (its id) it lies in.

    A copy of the file is for nobody else: not for another of the same name, nor in another root.
    """

    name: str
    key: str
    root: str


@dataclass(frozen=True, slots=True)
class Message:
    """One file from a requester to a device.

    Attributes:
        id: names the file; the same id always has the same content.
        sender: the requester's name and key, ``alice-3f9a1c2e``.
        to: the device, its key, and the queue root.
        created, expires: seconds since 1970, by the sender's clock.
        seed: where the seeds of its actions come from.
        actions: in order.
        token: the user's name for "this very request", or None.
    """

    id: str
    sender: str
    to: Address
    created: float
    expires: float
    seed: int
    actions: tuple[Verb, ...]
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no value: a code of `fedq.errors` and facts; never text of torch, never values.

    Attributes:
        code: ``failed``, ``spec_mismatch``, ``missing_value``, ...
        text: one line made by fedq from the facts.
        fields: the facts: ``action`` (number in the graph), ``op``, ``line``, ``id``.
    """

    code: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Number:
    """A result that is a Python number."""

    value: int | float | bool


@dataclass(frozen=True, slots=True)
class Reply:
    """One file from a device to a requester: what came of one ``get``.

    ``values``: id -> the name of its tensor in the file, a Number, or a Failure. Holds no
    time of day: doing a message again gives the same bytes.
    """

    id: str
    device: str
    to: Address
    message: str
    values: Mapping[str, str | Number | Failure]
