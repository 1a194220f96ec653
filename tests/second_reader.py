"""A second implementation of reading, from docs/format.md alone: the standard library and PyNaCl.

Short, not fast: it checks signatures, layouts and ids, and gives plain Python data.
"""

import hashlib
import json
import math
import re
import struct

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "I64": 8, "I32": 4, "I16": 2,
         "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip
ORDER = ("params", "inputs", "sizes", "guards", "dtypes", "state", "graphs", "actions", "outputs", "variants")
NEEDED = ("inputs", "actions", "outputs")


class Refused(Exception):
    pass


def need(condition, why):
    if not condition:
        raise Refused(why)


def digest(*parts):
    """D of the page."""
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).hexdigest()


def check_signature(kind, signed, public, signature):
    type_ = b"fedq/v1/" + kind.encode()
    pae = b"DSSEv1 " + str(len(type_)).encode() + b" " + type_ + b" 32 " + hashlib.sha256(signed).digest()
    try:
        VerifyKey(public).verify(pae, signature)
    except (BadSignatureError, ValueError):
        raise Refused("signature") from None


def load(text):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    def refuse(_):
        raise Refused("a number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Refused("JSON") from None


def read_file(kind, raw):
    """Section 1: (public key, body, {name: (dtype, shape, bytes)})."""
    need(len(raw) >= 8 + 96, "too short")
    public = raw[-96:-64]
    check_signature(kind, raw[:-64], public, raw[-64:])
    (size,) = struct.unpack("<Q", raw[:8])
    need(size <= min(4 << 20, len(raw) - 8) and raw[8:9] == b"{", "header")
    header, data = load(raw[8 : 8 + size]), raw[8 + size :]
    need(list(header.pop("__metadata__", {}).keys()) == ["fedq"], "metadata")
    end = len(data) - 96
    need(header.pop("~fedq.sig", None) == {"dtype": "U8", "shape": [96], "data_offsets": [end, end + 96]}, "not last")
    tensors, spans = {}, []
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        need(stop - start == BYTES[entry["dtype"]] * math.prod(entry["shape"]), "size of a tensor")
        tensors[name] = (entry["dtype"].lower(), tuple(entry["shape"]), data[start:stop])
        spans.append((start, stop))
    at = 0
    for start, stop in sorted(spans):
        need(start == at, "overlap or hole")
        at = stop
    need(at == end, "hole")
    body = load(load(raw[8 : 8 + size])["__metadata__"]["fedq"])
    need(body.get("v") == 1 and type(body["v"]) is int, "version")
    need(body["kind"] == kind, "kind")
    return public.hex(), body, tensors


def canonical(value):
    return json.dumps(value, separators=(",", ":"))


def in_order(graph):
    """The graph with keys as in section 3, sorted where the page says so."""
    need(set(NEEDED) <= graph.keys() <= set(ORDER), "keys of a graph")
    made = {k: graph[k] for k in ORDER if k in graph and (graph[k] or k in NEEDED)}
    if "sizes" in made:
        made["sizes"] = dict(sorted(made["sizes"].items()))
    for key in {"graphs", "variants"} & made.keys():
        made[key] = [in_order(g) for g in made[key]]
    made["actions"] = [[op, args, dict(sorted(kwargs.items())), types] for op, args, kwargs, types in made["actions"]]
    return made


def graph_id(graph):
    return digest(b"graph", canonical(in_order(graph)).encode())


def plan_id(graph, state):
    parts = []
    for dtype, shape, data in state:
        type_ = f"{dtype}[{','.join(map(str, shape))}]"
        parts.append(type_.encode() + hashlib.sha256(data).digest())
    return digest(b"plan", graph_id(graph).encode(), *parts)


def check_plan(row, tensors):
    verb, id_, graph, names, _about = row
    need(verb == "plan" and plan_id(graph, [tensors[n] for n in names]) == id_, "plan id")
    need(len(names) == len(graph.get("state", [])), "state")


def named(actions):
    """The tensors that actions name."""
    for verb, *rest in actions:
        if verb == "put":
            yield rest[1]["t"]
        elif verb == "plan":
            yield from rest[2]
        elif verb == "run":
            yield from (a["t"] for a in (*rest[1], *rest[2].values()) if isinstance(a, dict) and "t" in a)
        elif verb == "fold":
            args = (*rest[1], *rest[2], *rest[3].get("args", []))
            yield from (a["t"] for a in args if isinstance(a, dict) and "t" in a)


def check_arguments(row):
    """The owner's values are {"o": id}, the requester's own {"v": id}; in a get the own ones are ids."""
    lists = {"run": row[2:3], "fold": row[2:4]}.get(row[0], [])
    for arg in (a for args in lists for a in args if isinstance(a, dict)):
        need(len(arg) == 1, "argument")
    if row[0] == "get":
        for value in row[2]:
            need(isinstance(value, str) or value.keys() == {"o"}, "value of a get")


def read_plan(raw):
    public, body, tensors = read_file("plan", raw)
    check_plan(body["plan"], tensors)
    need(set(body["plan"][3]) == tensors.keys(), "tensors")
    return public, body, tensors


def read_message(raw):
    public, body, tensors = read_file("message", raw)
    need(re.fullmatch(r"[0-9a-f]{32}", body["id"]), "id")
    need(set(named(body["actions"])) == tensors.keys(), "tensors")
    for row in body["actions"]:
        check_arguments(row)
        if row[0] == "plan":
            check_plan(row, tensors)
    return public, body, tensors


def read_reply(raw):
    public, body, tensors = read_file("reply", raw)
    need({v["t"] for _, v in body["values"] if "t" in v} == tensors.keys(), "tensors")
    return public, body, tensors


def read_sealed(kind, raw):
    """Section 6: (public key, body)."""
    signed, comma, rest = raw.rpartition(b',"sig":"')
    need(comma and len(rest) == 192 + 3 and rest.endswith(b'"}\n'), "seal")
    sig = bytes.fromhex(rest[:192].decode())
    check_signature(kind, signed, sig[:32], sig[32:])
    body = load(signed + b"}")
    need(body["v"] == 1 and body["kind"] == kind, "version or kind")
    return sig[:32].hex(), body


def seed_of(seed, part):
    return int(digest(b"seed", str(seed).encode(), str(part).encode())[:16], 16) >> 1


def call_seed(seed, results):
    return seed_of(seed, results[0] if results else "")
