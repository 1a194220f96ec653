"""Messages and replies to files and back. Reads strictly: BadFile, BadVersion.

Every tensor of the file is named in the body, every named one is in the file, and no id is
promised twice. Format: docs/format.md, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedq import ids
from fedq.errors import BadFile
from fedq.plan.codec import (
    MAX_TENSORS,
    VERSION,
    Buffer,
    File,
    RawTensor,
    Signer,
    check_version,
    encode,
    is_tensor_name,
)
from fedq.plan.fold import MAX_BATCH, MAX_EPOCHS, METRICS, NONFINITE, Batches
from fedq.plan.graph import about_from_json, about_to_json, graph_from_json, graph_to_json
from fedq.plan.graphjson import MAX_ACTIONS, need, number_from_json, number_to_json, pairs
from fedq.queue.verbs import (
    Ack,
    Address,
    Cancel,
    Drop,
    Failure,
    Fold,
    Get,
    Inline,
    Message,
    Number,
    OwnerRef,
    Put,
    Ref,
    Reply,
    Run,
    RunArg,
    SendPlan,
    Verb,
)

__all__ = [
    "MAX_ACTIONS", "Ack", "Address", "Cancel", "Drop", "Failure", "Fold", "Get", "Inline", "Message", "Number",
    "OwnerRef", "Put", "Ref", "Reply", "Run", "RunArg", "SendPlan", "Verb", "address_from_json", "address_to_json",
    "check_kind", "decode_message", "decode_reply", "encode_message", "encode_reply", "is_time", "message_from_json",
    "message_tensors", "message_to_json", "reply_from_json", "reply_tensors", "reply_to_json",
]  # fmt: skip

_CALLS = (Run, Fold)

MAX_TEXT = 1000
"""Characters of an error's text."""


def encode_message(message: Message, tensors: Mapping[str, RawTensor], signer: Signer) -> list[Buffer]:
    """The message as a signed file, in chunks; ``tensors`` are exactly those it names."""
    _check_names(message_tensors(message), tensors)
    return encode("message", message_to_json(message), tensors, signer)


def decode_message(file: File) -> Message:
    """Read a message whose signature was checked; BadVersion, BadFile."""
    message = message_from_json(file.body)
    _check_names(message_tensors(message), file.tensors)
    return message


def encode_reply(reply: Reply, tensors: Mapping[str, RawTensor], signer: Signer) -> list[Buffer]:
    """The reply as a signed file, in chunks; ``tensors`` are exactly those it names."""
    _check_names(reply_tensors(reply), tensors)
    return encode("reply", reply_to_json(reply), tensors, signer)


def decode_reply(file: File) -> Reply:
    """Read a reply whose signature was checked; BadVersion, BadFile."""
    reply = reply_from_json(file.body)
    _check_names(reply_tensors(reply), file.tensors)
    return reply


def message_tensors(message: Message) -> set[str]:
    """The names of the tensors that travel with a message."""
    names: set[str] = set()
    for verb in message.actions:
        if isinstance(verb, _CALLS):
            names.update([a.name for a in verb.given if type(a) is Inline])
        elif isinstance(verb, Put):
            names.add(verb.tensor)
        elif isinstance(verb, SendPlan):
            names.update(verb.tensors)
    return names


def reply_tensors(reply: Reply) -> set[str]:
    return {name for name in reply.values.values() if isinstance(name, str)}


def _check_names(named: set[str], tensors: Mapping[str, RawTensor]) -> None:
    odd = sorted(named ^ tensors.keys())
    need(not odd, f"tensor {odd[0] if odd else ''!r} is named but not there, or there but not named")


# -- JSON ------------------------------------------------------------------------------------


def message_to_json(m: Message) -> dict[str, Any]:
    return {
        "v": VERSION, "kind": "message", "id": m.id, "from": m.sender, "to": address_to_json(m.to),
        "created": float(m.created), "expires": float(m.expires), "seed": m.seed, "token": m.token,
        "actions": [_verb_to_json(a) for a in m.actions],
    }  # fmt: skip


def _verb_to_json(verb: Verb) -> list[Any]:
    if isinstance(verb, Run):
        kwargs = {k: _arg_to_json(v) for k, v in sorted(verb.kwargs.items())} if verb.kwargs else {}
        return ["run", verb.plan, _args_to_json(verb.args), kwargs, list(verb.results)]
    match verb:
        case Put():
            need(verb.tag is None or ids.is_text(verb.tag), f"a tag can not be {verb.tag!r}")
            more = {} if verb.tag is None else {"tag": verb.tag}
            return ["put", verb.id, {"t": verb.tensor}, more | ({"note": verb.note} if verb.note else {})]
        case SendPlan():
            return ["plan", verb.id, graph_to_json(verb.graph), list(verb.tensors), about_to_json(verb.about)]
        case Fold():
            carry, data = _args_to_json(verb.carry), _args_to_json(verb.data)
            return ["fold", verb.plan, carry, data, _options_to_json(verb), list(verb.results)]
        case Get():
            return ["get", verb.reply, [{"o": v} if v in verb.owners else v for v in verb.values], {}]
        case Drop():
            return ["drop", list(verb.values), {"after": list(verb.after)} if verb.after else {}]
        case Cancel():
            return ["cancel", list(verb.messages)]
        case Ack():
            return ["ack", list(verb.replies)]


def _options_to_json(fold: Fold) -> dict[str, Any]:
    b = fold.batches
    options: dict[str, Any] = {"batch_size": b.size, "epochs": b.epochs}
    options |= {"shuffle": b.shuffle, "drop_last": b.drop_last}
    options |= {"args": _args_to_json(fold.args)} if fold.args else {}
    options |= {"metrics": fold.metrics} if fold.metrics != METRICS[0] else {}
    return options | ({"nonfinite": fold.nonfinite} if fold.nonfinite != NONFINITE[-1] else {})


def _args_to_json(args: Sequence[RunArg]) -> list[Any]:
    return [_arg_to_json(a) for a in args]


def _arg_to_json(arg: RunArg) -> Any:
    match arg:
        case Ref():
            return {"v": arg.id}
        case OwnerRef():
            return {"o": arg.id}
        case Inline():
            return {"t": arg.name}
        case bool() | int() | float():
            return number_to_json(arg)
    return arg


def message_from_json(body: Mapping[str, Any]) -> Message:
    """Read a message's body; BadVersion or BadFile says what is malformed."""
    check_kind(body, "message")
    keys = {"v", "kind", "id", "from", "to", "created", "expires", "seed", "token", "actions"}
    need(body.keys() == keys, "a message has other keys")
    created, expires, seed, token, actions = (body[k] for k in ("created", "expires", "seed", "token", "actions"))
    need(ids.is_id(body["id"]), "a message's id")
    need(ids.is_name(body["from"]), "a message's from")
    need(is_time(created) and is_time(expires), "a message's times")
    need(type(seed) is int and 0 <= seed < 1 << 63, "a message's seed")
    need(token is None or ids.is_text(token), "a message's token")
    need(isinstance(actions, list) and len(actions) <= MAX_ACTIONS, f"actions: a list of at most {MAX_ACTIONS}")
    verbs = tuple(_verb_from_json(a) for a in actions)
    _check_promises(verbs)
    to = address_from_json(body["to"])
    return Message(body["id"], body["from"], to, float(created), float(expires), seed, verbs, token)


def _check_promises(verbs: Sequence[Verb]) -> None:
    """Every id is promised once: of a value by a put, run or fold, of a reply by a get."""
    values = [id_ for v in verbs if isinstance(v, _CALLS) for id_ in v.results]
    values += [v.id for v in verbs if isinstance(v, Put)]
    replies = [v.reply for v in verbs if isinstance(v, Get)]
    need(len(set(values)) == len(values), "two actions promise the same value")
    need(len(set(replies)) == len(replies), "two actions promise the same reply")


def check_kind(body: Mapping[str, Any], kind: str) -> None:
    """BadVersion if the body is of a version this code can not read, BadFile if of another kind."""
    check_version(body)
    need(body.get("kind") == kind, f"not a {kind}")


def is_time(value: Any) -> bool:
    """Seconds since 1970 that a calendar has: up to the year 9999."""
    return type(value) in (int, float) and 0 <= value < 253_402_214_400


def address_to_json(to: Address) -> list[str]:
    return [to.name, to.key, to.root]


def address_from_json(row: Any) -> Address:
    """To whom a file goes; BadFile."""
    match row:
        case [str(name), str(key), str(root)] if ids.is_name(name) and ids.is_plan_id(key) and ids.is_id(root):
            return Address(name, key, root)
    raise BadFile("malformed file: to whom it goes")


def _id(value: str) -> str:
    need(ids.is_id(value), "an id")
    return value


def _plan_id(value: str) -> str:
    need(ids.is_plan_id(value), "a plan's id")
    return value


def _name(value: str) -> str:
    need(is_tensor_name(value), "a tensor's name")
    return value


def _ids(value: Any) -> tuple[str, ...]:
    need(isinstance(value, list) and all(map(ids.is_id, value)), "a list of ids")
    need(len(set(value)) == len(value), "an id stands twice")
    return tuple(value)


def _run_from_json(row: list[Any]) -> Run:
    """Of runs there may be thousands: no patterns here, which take three times as long."""
    _, plan, args, kwargs, results = row
    need(type(args) is list and type(kwargs) is dict, "action 'run'")
    named = {}
    for key, value in kwargs.items():
        need(key.isidentifier() and len(key) <= 100, "a keyword of run")
        named[key] = _arg_from_json(value)
    return Run(_plan_id(plan), tuple([_arg_from_json(a) for a in args]), named, _ids(results))


def _verb_from_json(row: Any) -> Verb:
    if type(row) is list and len(row) == 5 and row[0] == "run":
        return _run_from_json(row)
    match row:
        case ["fold", str(plan), list(carry), list(data), dict(options), list(results)]:
            batches, args = _batches_from_json(options), options.get("args", [])
            need(isinstance(args, list) and (args or "args" not in options), "args of fold")
            first, whole, each = (tuple(map(_arg_from_json, some)) for some in (carry, data, args))
            more = _word_of(options, "metrics", METRICS), _word_of(options, "nonfinite", NONFINITE[::-1])
            return Fold(_plan_id(plan), first, whole, batches, _ids(results), each, *more)
        case ["get", str(reply), [str(plan)], dict(options)] if not options and ids.is_plan_id(plan):
            return Get(_id(reply), (plan,))
        case ["get", str(reply), list(values), dict(options)] if not options and values:
            return _get_from_json(reply, values)
        case ["put", str(id_), {"t": str(name), **rest}, dict(more)] if not rest and more.keys() <= {"tag", "note"}:
            need(ids.is_text(more.get("tag", "tag")), "a tag")
            need(ids.is_text(more.get("note", "note"), most=MAX_TEXT), "a note")
            return Put(_id(id_), _name(name), more.get("tag"), more.get("note", ""))
        case ["plan", str(id_), graph, list(tensors), about]:
            need(all(map(is_tensor_name, tensors)), "a tensor's name")
            return SendPlan(_plan_id(id_), graph_from_json(graph), tuple(tensors), about_from_json(about))
        case ["drop", list(values), dict(options)] if options.keys() <= {"after"}:
            return Drop(_ids(values), _ids(options.get("after", [])))
        case ["cancel", list(messages)]:
            return Cancel(_ids(messages))
        case ["ack", list(replies)]:
            return Ack(_ids(replies))
    name = row[0] if isinstance(row, list) and row and isinstance(row[0], str) else "?"
    raise BadFile(f"malformed file: action {name[:20]!r}")


def _get_from_json(reply: str, values: list[Any]) -> Get:
    need(len(values) <= MAX_TENSORS, f"get: at most {MAX_TENSORS} values")
    need(all(v.keys() == {"o"} for v in values if type(v) is dict), "a value of get")
    owners = _ids([v["o"] for v in values if type(v) is dict])
    return Get(_id(reply), _ids([v["o"] if type(v) is dict else v for v in values]), frozenset(owners))


def _batches_from_json(options: Mapping[str, Any]) -> Batches:
    match options:
        case {"batch_size": int(size), "epochs": int(epochs), "shuffle": bool(shuffle), "drop_last": bool(drop_last),
              **rest} if rest.keys() <= _MORE and type(size) is int and type(epochs) is int:  # fmt: skip
            need(0 < size <= MAX_BATCH and 0 < epochs <= MAX_EPOCHS, "batch_size or epochs of fold")
            return Batches(size, epochs, shuffle, drop_last)
    raise BadFile("malformed file: options of fold")


_MORE = {"args", "metrics", "nonfinite"}


def _word_of(options: Mapping[str, Any], key: str, words: Sequence[str]) -> str:
    """One of the words; the first is meant, and not written, where there is none."""
    word = options.get(key, words[0])
    need(word in words and (key not in options or word != words[0]), f"{key} of fold")
    return str(word)


def _arg_from_json(value: Any) -> RunArg:
    if type(value) is dict and len(value) == 1:
        ((kind, text),) = value.items()
        if kind == "v":
            return Ref(_id(text))
        if kind == "o":
            return OwnerRef(_id(text))
        if kind == "t":
            return Inline(_name(text))
    if value is None or type(value) is str:
        return value
    return number_from_json(value)


def reply_to_json(r: Reply) -> dict[str, Any]:
    return {
        "v": VERSION, "kind": "reply", "id": r.id, "from": r.device, "to": address_to_json(r.to), "message": r.message,
        "values": [[id_, _value_to_json(v)] for id_, v in r.values.items()],
    }  # fmt: skip


def _value_to_json(value: str | Number | Failure) -> Any:
    if isinstance(value, str):
        return {"t": value}
    if isinstance(value, Number):
        return {"n": number_to_json(value.value)}
    facts = {k: _fact_to_json(v) for k, v in sorted(value.fields.items())}
    return {"e": [value.code, ids.as_text(value.text, most=MAX_TEXT), facts]}


def _fact_to_json(value: Any) -> Any:
    return ids.as_text(value) if isinstance(value, str) else number_to_json(value)


def reply_from_json(body: Mapping[str, Any]) -> Reply:
    """Read a reply's body; BadVersion or BadFile says what is malformed."""
    check_kind(body, "reply")
    need(body.keys() == {"v", "kind", "id", "from", "to", "message", "values"}, "a reply has other keys")
    need(ids.is_id(body["id"]) and ids.is_id(body["message"]), "a reply's id")
    need(ids.is_name(body["from"]), "a reply's from")
    rows = pairs(body["values"])
    names = _ids([row[0] for row in rows])
    values = {id_: _value_from_json(row[1]) for id_, row in zip(names, rows, strict=True)}
    return Reply(body["id"], body["from"], address_from_json(body["to"]), body["message"], values)


def _value_from_json(value: Any) -> str | Number | Failure:
    if type(value) is dict and len(value) == 1 and "t" in value:
        return _name(value["t"])
    match value:
        case {"n": number, **rest} if not rest:
            return Number(number_from_json(number))
        case {"e": [str(code), str(text), dict(fields)], **rest} if not rest:
            need(ids.is_text(code) and (text == "" or ids.is_text(text, most=MAX_TEXT)), "text of an error")
            return Failure(code, text, {_word(k): _fact(v) for k, v in fields.items()})
    raise BadFile("malformed file: a value of a reply")


def _word(key: str) -> str:
    need(key.isidentifier() and len(key) <= 100, "a field of an error")
    return key


def _fact(value: Any) -> Any:
    if value is None or value == "" or ids.is_text(value):
        return value
    return number_from_json(value)
