"""Message and Reply: what travels, as frozen data, and its JSON body.

A message is a list of device actions in order, with tensors beside them; a reply is what came
of one ``get``. Format: docs/format.md, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedq import ids
from fedq.errors import BadFile, BadVersion
from fedq.plan.codec import VERSION
from fedq.plan.graph import About, Graph, about_from_json, about_to_json, graph_from_json, graph_to_json

MAX_ACTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value on the device: its id."""

    id: str


@dataclass(frozen=True, slots=True)
class Inline:
    """An argument that is a tensor of this message: its name in the file."""

    name: str


RunArg = Ref | Inline | int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Put:
    """Store the message's tensor ``tensor`` under ``id``, perhaps with a tag."""

    id: str
    tensor: str
    tag: str | None = None


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


@dataclass(frozen=True, slots=True)
class Get:
    """Release values under a reply id."""

    reply: str
    values: tuple[str, ...]


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


Verb = Put | SendPlan | Run | Get | Drop | Cancel | Ack


@dataclass(frozen=True, slots=True)
class Message:
    """One file from a requester to a device.

    Attributes:
        id: names the file; the same id always has the same content.
        sender: the requester's name and key, ``alice-3f9a1c2e``.
        to: the device.
        created, expires: seconds since 1970, by the sender's clock.
        seed: where the seeds of its actions come from.
        actions: in order.
        token: the user's name for "this very request", or None.
    """

    id: str
    sender: str
    to: str
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
    to: str
    message: str
    values: Mapping[str, str | Number | Failure]


# -- JSON ------------------------------------------------------------------------------------


def message_to_json(m: Message) -> dict[str, Any]:
    return {
        "v": VERSION, "kind": "message", "id": m.id, "from": m.sender, "to": m.to,
        "created": m.created, "expires": m.expires, "seed": m.seed, "token": m.token,
        "actions": [_verb_to_json(a) for a in m.actions],
    }  # fmt: skip


def _verb_to_json(verb: Verb) -> list[Any]:
    match verb:
        case Put():
            return ["put", verb.id, {"t": verb.tensor}, {"tag": verb.tag} if verb.tag else {}]
        case SendPlan():
            return ["plan", verb.id, graph_to_json(verb.graph), list(verb.tensors), about_to_json(verb.about)]
        case Run():
            kwargs = {k: _arg_to_json(v) for k, v in sorted(verb.kwargs.items())}
            return ["run", verb.plan, [_arg_to_json(a) for a in verb.args], kwargs, list(verb.results)]
        case Get():
            return ["get", verb.reply, list(verb.values), {}]
        case Drop():
            return ["drop", list(verb.values), {"after": list(verb.after)} if verb.after else {}]
        case Cancel():
            return ["cancel", list(verb.messages)]
        case Ack():
            return ["ack", list(verb.replies)]


def _arg_to_json(arg: RunArg) -> Any:
    match arg:
        case Ref():
            return {"v": arg.id}
        case Inline():
            return {"t": arg.name}
    return arg


def message_from_json(body: Mapping[str, Any]) -> Message:
    """Read a message's body; BadVersion or BadFile says what is malformed."""
    check_kind(body, "message")
    keys = {"v", "kind", "id", "from", "to", "created", "expires", "seed", "token", "actions"}
    _need(body.keys() == keys, "a message has other keys")
    created, expires, seed, token, actions = (body[k] for k in ("created", "expires", "seed", "token", "actions"))
    _need(ids.is_id(body["id"]), "a message's id is malformed")
    _need(ids.is_name(body["from"]) and ids.is_name(body["to"]), "a message's from or to is malformed")
    _need(_is_time(created) and _is_time(expires), "a message's times are malformed")
    _need(type(seed) is int and 0 <= seed < 1 << 63, "a message's seed is malformed")
    _need(token is None or (isinstance(token, str) and len(token) <= 200), "a message's token is malformed")
    _need(isinstance(actions, list) and len(actions) <= MAX_ACTIONS, f"actions: a list of at most {MAX_ACTIONS}")
    verbs = tuple(_verb_from_json(a) for a in actions)
    return Message(body["id"], body["from"], body["to"], float(created), float(expires), seed, verbs, token)


def check_kind(body: Mapping[str, Any], kind: str) -> None:
    """BadVersion if the body is of a version this code can not read, BadFile if of another kind."""
    if body.get("v") != VERSION:
        raise BadVersion(f"format version {str(body.get('v'))[:20]} is not {VERSION}")
    _need(body.get("kind") == kind, f"not a {kind}")


def _need(condition: object, message: str) -> None:
    if not condition:
        raise BadFile(f"malformed file: {message}")


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _id(value: str) -> str:
    _need(ids.ID.fullmatch(value), "an id")
    return value


def _ids(value: Any) -> tuple[str, ...]:
    _need(isinstance(value, list) and all(ids.ID.fullmatch(v) for v in value if isinstance(v, str)), "a list of ids")
    _need(all(isinstance(v, str) for v in value), "a list of ids")
    return tuple(value)


def _verb_from_json(row: Any) -> Verb:
    match row:
        case ["put", str(id_), {"t": str(name), **rest}, {**options}] if not rest and options.keys() <= {"tag"}:
            tag = options.get("tag")
            if tag is None or (isinstance(tag, str) and 0 < len(tag) <= 200):
                return Put(_id(id_), name, tag)
        case ["plan", str(id_), graph, list(tensors), about]:
            _need(len(id_) == 64 and all(c in "0123456789abcdef" for c in id_), "plan's id")
            _need(all(isinstance(t, str) for t in tensors), "plan's tensors")
            return SendPlan(id_, graph_from_json(graph), tuple(tensors), about_from_json(about))
        case ["run", str(plan), list(args), {**kwargs}, list(results)]:
            named = {str(k): _arg_from_json(v) for k, v in kwargs.items()}
            return Run(plan, tuple(_arg_from_json(a) for a in args), named, _ids(results))
        case ["get", str(reply), list(values), {**options}] if not options:
            return Get(_id(reply), _ids(values))
        case ["drop", list(values), {**options}] if options.keys() <= {"after"}:
            return Drop(_ids(values), _ids(options.get("after", [])))
        case ["cancel", list(messages)]:
            return Cancel(_ids(messages))
        case ["ack", list(replies)]:
            return Ack(_ids(replies))
    name = row[0] if isinstance(row, list) and row and isinstance(row[0], str) else "?"
    raise BadFile(f"malformed file: action {name[:20]!r}")


def _arg_from_json(value: Any) -> RunArg:
    match value:
        case {"v": str(id_), **rest} if not rest:
            return Ref(_id(id_))
        case {"t": str(name), **rest} if not rest:
            return Inline(name)
        case None | bool() | int() | float() | str():
            return value
    raise BadFile("malformed file: an argument of run")


def reply_to_json(r: Reply) -> dict[str, Any]:
    return {
        "v": VERSION, "kind": "reply", "id": r.id, "from": r.device, "to": r.to, "message": r.message,
        "values": [[id_, _value_to_json(v)] for id_, v in r.values.items()],
    }  # fmt: skip


def _value_to_json(value: str | Number | Failure) -> Any:
    match value:
        case Number():
            return {"n": value.value}
        case Failure():
            return {"e": [value.code, value.text, dict(value.fields)]}
    return {"t": value}


def reply_from_json(body: Mapping[str, Any]) -> Reply:
    check_kind(body, "reply")
    _need(body.keys() == {"v", "kind", "id", "from", "to", "message", "values"}, "a reply has other keys")
    _need(ids.is_id(body["id"]) and ids.is_id(body["message"]), "a reply's id is malformed")
    _need(ids.is_name(body["from"]) and ids.is_name(body["to"]), "a reply's from or to is malformed")
    rows = body["values"]
    _need(isinstance(rows, list) and all(isinstance(r, list) and len(r) == 2 for r in rows), "a reply's values")
    names = _ids([row[0] for row in rows])
    values = {id_: _value_from_json(row[1]) for id_, row in zip(names, rows, strict=True)}
    return Reply(body["id"], body["from"], body["to"], body["message"], values)


def _value_from_json(value: Any) -> str | Number | Failure:
    match value:
        case {"t": str(name), **rest} if not rest:
            return name
        case {"n": (bool() | int() | float()) as number, **rest} if not rest:
            return Number(number)
        case {"e": [str(code), str(text), {**fields}], **rest} if not rest:
            return Failure(code, text, {str(k): v for k, v in fields.items()})
    raise BadFile("malformed file: a value of a reply")
