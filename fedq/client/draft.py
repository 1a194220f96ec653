"""A message while it is put together: its actions, their tensors, and what it promises.

Pure: ids, keys and times come in, signed bytes and the outbox's record come out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fedq import fs, ids
from fedq.client.content import Content, content
from fedq.client.pending import Step
from fedq.errors import BadFile
from fedq.plan.codec import MAX_TENSORS, Buffer, RawTensor, Signer, encode
from fedq.plan.graph import Type, about_to_json, canonical, graph_to_json
from fedq.queue.message import (
    Ack,
    Address,
    Drop,
    Fold,
    Get,
    Inline,
    Message,
    Put,
    Ref,
    Run,
    SendPlan,
    Verb,
    message_to_json,
)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A plan at a device: graph and about as canonical JSON."""

    id: str
    name: str
    graph_id: str
    graph: bytes
    about: bytes


@dataclass(slots=True)
class Sent:
    """All that one message promises.

    Attributes:
        digest: of its bytes; chunks: the bytes.
        values: id -> type as text, if known.
        private: id -> the owner's values that are not open and that it comes from.
        replies: value id -> reply id.
        uses: values of this requester that its calls read. Neither they nor those in ``replies`` are
            dropped before it is done.
        drops, acks: values and replies it tells the device to forget.
    """

    id: str
    digest: str
    created: float
    expires: float
    chunks: Sequence[Buffer]
    values: dict[str, str | None] = field(default_factory=dict)
    private: dict[str, frozenset[str]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    uses: set[str] = field(default_factory=set)
    plans: list[PlanRow] = field(default_factory=list)
    drops: Collection[str] = ()
    acks: Collection[str] = ()

    @property
    def size_bytes(self) -> int:
        return fs.size_bytes(self.chunks)


AGAIN = "\n\n"
"""Between a token and the number of times it was asked for again, as the outbox knows it."""


@dataclass(slots=True)
class Draft:
    """What goes into one message.

    Attributes:
        id: of the message; everything else that is new gets its id from `new_id`.
        token: the user's name for this very block; ids are then derived from it.
        block: the id of the block's first message; section: how many of its messages came before.
        times: how often the block was asked for again, under new ids.
        lasting: whether the block can be done again, so that what it made must stay.
        types: of the values promised here, where known.
        private: of those that come from the owner's values that are not open: from which.
        replies: values asked for here, and in sections before -> reply id.
        operations: on pointers, that became calls here; merged: the first results of these calls.
        begun: whether a part of it was sent, or promised.
    """

    id: str
    fresh: ids.NewId
    token: str | None = None
    block: str = ""
    section: int = 0
    times: int = 0
    lasting: bool = False
    actions: list[Verb] = field(default_factory=list)
    tensors: dict[str, RawTensor] = field(default_factory=dict)
    types: dict[str, Type | None] = field(default_factory=dict)
    private: dict[str, frozenset[str]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    operations: list[Step] = field(default_factory=list)
    merged: set[str] = field(default_factory=set)
    count: int = 0
    inlined: int = 0
    begun: bool = False

    def new_id(self) -> str:
        """A fresh id, or the next one that the token gives."""
        self.count += 1
        return self.fresh() if self.token is None else ids.derive("result", self.id, self.count)

    @property
    def name(self) -> str:
        """The token, and which of its block's messages this is: no token holds a line feed."""
        token = f"{self.token}{AGAIN}{self.times}" if self.times else self.token or ""
        return f"{token}\n{self.section}" if self.section else token

    def following(self) -> Draft:
        """The next message of the same block: it begins where a value was waited for."""
        section = self.section + 1
        id_ = ids.derive("section", self.block, section)
        return Draft(id_, self.fresh, self.token, self.block, section, self.times, self.lasting, replies=self.replies)

    def inline(self, raw: RawTensor) -> Inline:
        """Take a tensor along."""
        name = f"t{self.inlined}"
        self.inlined += 1
        self.tensors[name] = raw
        return Inline(name)

    def ask(self, values: Sequence[str], owners: Collection[str] = ()) -> None:
        """Ask for values, of which some are the owner's, with one action; the reply to one made here has its id."""
        reply = values[0] if len(values) == 1 and values[0] in self.types else self.new_id()
        self.actions.append(Get(reply, tuple(values), frozenset(owners).intersection(values)))
        self.replies.update(dict.fromkeys(values, reply))

    def comes_from(self, results: Iterable[str], private: frozenset[str]) -> None:
        """Note of which of the owner's values, those that are not open, results are made."""
        if private:
            self.private.update(dict.fromkeys(results, private))

    @property
    def asks(self) -> bool:
        """Whether anything is asked for; that a plan must be sent first is no request by itself."""
        return bool(self.operations) or not all(isinstance(a, SendPlan) for a in self.actions)

    def content(self) -> Content:
        """What is asked for: the same again under the same token is the same request."""
        return content(self._written, self.tensors, self.operations)

    @property
    def _written(self) -> Iterator[Verb]:
        """The actions, without those that operations became."""
        return (a for a in self.actions if not (isinstance(a, Run) and a.results and a.results[0] in self.merged))


PART_ACTIONS = 4000
"""More actions are sent as several messages: the device works on the first while the next is read."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all messages of one sending share."""

    sender: str
    to: Address
    created: float
    expires: float
    key: Signer


def seal(draft: Draft, envelope: Envelope) -> Iterator[tuple[Message, Sent]]:
    """The draft as one message, or as several where one would be too large, one after the other.

    Raises:
        BadFile: a single action is too large for any message.
    """
    count, waiting, seed = 0, [_gets_early(draft.actions)], seed_of(draft.id)
    while waiting:
        actions = waiting.pop()
        names = [n for a in actions for n in tensor_names(a)] if draft.tensors else []
        half = len(actions) // 2
        if half and (len(actions) > PART_ACTIONS or len(names) > MAX_TENSORS):
            waiting += [actions[half:], actions[:half]]
            continue
        id_ = ids.following(draft.id, count)
        made = message(id_, draft.token, actions, envelope, seed)
        try:
            chunks = encode("message", message_to_json(made), {n: draft.tensors[n] for n in names}, envelope.key)
        except BadFile:
            if not half:
                raise
            waiting += [actions[half:], actions[:half]]
            continue
        sent = Sent(id_, bytes(chunks[-1]).hex(), envelope.created, envelope.expires, chunks)
        count += 1
        _promise(sent, actions, draft)
        yield made, sent


def _gets_early(actions: Sequence[Verb]) -> tuple[Verb, ...]:
    """Where a message will be cut: each get right behind the last action that makes one of its values."""
    if len(actions) <= PART_ACTIONS:
        return tuple(actions)
    made = {id_: n for n, verb in enumerate(actions) if isinstance(verb, Run) for id_ in verb.results}
    places = [
        max(made.get(id_, n) for id_ in verb.values) if isinstance(verb, Get) and verb.values[0] in made else n
        for n, verb in enumerate(actions)
    ]
    return tuple(verb for _, verb in sorted(zip(places, actions, strict=True), key=lambda row: row[0]))


def seed_of(id_: str) -> int:
    """The seed of a draft's messages, all of them: how it is cut, and what rides along, changes no call's."""
    return int(ids.derive("seed", id_)[:15], 16)


def message(id_: str, token: str | None, actions: tuple[Verb, ...], e: Envelope, seed: int) -> Message:
    return Message(id_, e.sender, e.to, e.created, e.expires, seed, actions, token)


def tensor_names(verb: Verb) -> Iterator[str]:
    """The tensors of the file that an action names."""
    match verb:
        case Put():
            yield verb.tensor
        case SendPlan():
            yield from verb.tensors
        case Run() | Fold():
            yield from (a.name for a in verb.given if isinstance(a, Inline))


def _promise(sent: Sent, actions: Sequence[Verb], draft: Draft) -> None:
    """Note what the actions promise, and the values they read."""
    for verb in actions:
        match verb:
            case Run() | Fold():
                for id_ in verb.results:
                    sent.values[id_] = _text(draft.types.get(id_))
                    if id_ in draft.private:
                        sent.private[id_] = draft.private[id_]
                for arg in verb.given:
                    if isinstance(arg, Ref):
                        sent.uses.add(arg.id)
            case Get():
                sent.replies.update(dict.fromkeys(verb.values, verb.reply))
            case Put():
                tensor = draft.tensors[verb.tensor]
                sent.values[verb.id] = str(Type(tensor.dtype, tensor.shape))
            case SendPlan():
                sent.plans.append(plan_row(verb))
            case Drop():
                sent.drops = verb.values
            case Ack():
                sent.acks = verb.replies


def _text(type_: Type | None) -> str | None:
    return None if type_ is None else str(type_)


def plan_row(verb: SendPlan) -> PlanRow:
    graph = canonical(graph_to_json(verb.graph))
    return PlanRow(verb.id, verb.about.name, verb.graph.id, graph, canonical(about_to_json(verb.about)))
