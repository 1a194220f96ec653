"""Files as a hostile holder of a good key might write them: good ones, some of them drawn, bent at every level.

What is bent: the values of the JSON body, its text, the safetensors header, the bytes; before signing or after.
Good files are the golden ones and those that a grammar makes of the dataclasses in `fedq.queue`, field by field, so a
new field needs a line in `WORDS` at most. The same seed and number give the same file.
"""

import dataclasses
import json
import random
import struct
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fedq.plan import optable
from fedq.plan.codec import RawTensor, encode
from fedq.plan.file import PlanFile, encode_plan
from fedq.plan.graph import About, Action, Dtype, Format, Graph, Param, Subgraph, Type, Var
from fedq.plan.types import FORMATS, ITEMSIZE, NUMBERS
from fedq.queue import message as messages
from fedq.queue.message import Address, Message, Reply
from fedq.queue.pair import Card, Catalog, Heartbeat, seal_json
from fedq.trust.keys import Key
from tests.golden.contents import ALICE, DEVICE, TO_ALICE, TO_DEVICE

GOLDEN = Path(__file__).parent / "golden"
STRANGER = Key.from_seed(b"s" * 32)
SEALED = {c.KIND: c for c in (Card, Catalog, Heartbeat)}
KINDS = ("message", "message", "reply", "plan", *SEALED)
MOST_PLACES = 20_000
"""Of so many values of a tree, one is bent next."""
PARTS = (".safetensors", ".json")

HEX = "0123456789abcdef"
ODD = ("", " ", "a/b", "..", "~x", "__x__", "\u202eabc", "\x1b[31mred\x1b[0m", "\x00", "\ud7ff", "é" * 150,
       "²", "١", "a" * 301,
       "'",
       '"', "\\", "-", "#", "%", "⁠", "\U000e0041", "pаy")  # fmt: skip
LEAVES = (
    None, True, False, 0, 1, -1, 2, 255, 1 << 31, 1 << 53, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64,
    10**30,
    10**400, -(1 << 63), -(10**400), 0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, 1e18, 253402300800.0, "0" * 32, "0" * 64,
    "%0", "%1",
    "%9999999", "nan", {"f": "nan"}, {"f": "inf"}, {"v": "0" * 32}, {"o": "0" * 32}, {"t": "t0"}, {"s": "x"},
    {"d": "f32"}, {"g": 0},
    {"m": "contiguous"}, {"c": [0.0, 1.0]}, {"tuple": ["%0"]}, {"dict": [["k", "%0"]]}, {"dict": [[1, "%0"], [True,
    "%0"]]}, [], {}, [[]],
    "f32[n]", "f32[]", "f32[1152921504606846975,0]", "f32[n*(m+1)//2]", "f32[min(n,m)]", "f32[floor(n/0)]",
    "i64[n%0]", "int=3",
    "float=nan", "str=\"x\"", "bool=true", ["==", "n", 2], ["<=", ["//", "n", 0], ["floor", ["/", "n", 0.0]]],
    ["==", ["%", "n", "m"], ["*", 1 << 62, 1 << 62]], {"e": ["failed", "x", {}]}, {"n": 1}, ["e", "x"], *ODD,
)  # fmt: skip
TOKENS = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "0123", "1" * 5000, "\\ud800", "\\udc00\\ud800", '"v":1,',
          "[", "{", "}", "]",
          ",", ":", "null", "[" * 40, '{"a":' * 40, "[" * 100_000, "\\u0000", "tru", "/**/", "\ufeff", '"', "\\",
          "1e-999", "\n", "\t", "'",
          "-", "1.", ".5", "+1", "0x1", "\\u202e", "\\x41", "é")  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Good:
    """A file taken apart: what was signed as which kind; ``header`` and ``body`` are JSON."""

    kind: str
    header: str
    body: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Hostile:
    """A file to be read; ``kind``: as what; ``id``, ``value``: under which id, as a reply with which value."""

    kind: str
    raw: bytes
    id: str
    value: str


def taken_apart(kind: str, raw: bytes) -> Good:
    if kind in SEALED:
        body = json.loads(raw)
        for key in ("v", "kind", "sig"):
            del body[key]
        return Good(kind, "{}", json.dumps(body), b"")
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    body = header.pop("__metadata__")["fedq"]
    del header["~fedq.sig"]
    return Good(kind, json.dumps(header), body, raw[8 + size : -96])


@cache
def golden() -> Mapping[str, list[Good]]:
    """Kind -> the golden files of it."""
    found: dict[str, list[Good]] = {}
    for path in sorted(GOLDEN.iterdir()):
        if path.suffix in PARTS:
            raw = path.read_bytes()
            whole = json.loads(raw) if path.suffix == ".json" else json.loads(taken_apart("", raw).body)
            found.setdefault(whole["kind"], []).append(taken_apart(whole["kind"], raw))
    return found


@cache
def said(kind: str) -> dict[str, typing.Any]:
    """The body of a golden file: names, keys and roots that belong together."""
    return json.loads(golden()[kind][0].body)


WORDS = {
    "id": "id", "message": "id", "reply": "id", "results": "id", "values": "id", "owners": "id", "after": "id",
    "messages": "id",
    "replies": "id", "waiting": "id", "running": "id", "plan": "plan", "tensor": "tensor", "tensors": "tensor",
    "name": "tensor",
    "refused": "word", "trouble": "word", "code": "word", "held": "id", "progress": "id", "release": "release",
    "state": "state", "metrics": "metrics",
    "nonfinite": "nonfinite", "sender": "from", "device": "device", "key": "key", "run": "run",
}  # fmt: skip
"""What a text is by its field's name; of other fields any text."""


class Grammar:
    """Draws good files, by the types of the dataclasses' fields."""

    def __init__(self, r: random.Random) -> None:
        self.r = r
        self.made: type | None = None
        self.ids = [self.hex(32) for _ in range(6)]
        self.plans = [self.hex(64), json.loads(golden()["plan"][0].body)["plan"][1]]

    def hex(self, n: int) -> str:
        return f"{self.r.getrandbits(4 * n):0{n}x}"

    def word(self, name: str) -> str:
        r, kind = self.r, WORDS.get(name, "")
        known = {**said("card"), **said("message")}.get(kind)
        if isinstance(known, str) and r.random() < 0.95:
            return known
        choices = {
            "id": lambda: self.hex(32) if r.random() < 0.9 else r.choice(self.ids),
            "plan": lambda: r.choice(self.plans),
            "tensor": lambda: f"t{r.randrange(4)}", "state": lambda: r.choice(("up", "down")),
            "word": lambda: r.choice(("x", "failed")), "run": lambda: self.hex(16),
            "release": lambda: r.choice(("open", "review", "own", "aggregate")),
            "metrics": lambda: r.choice(("steps", "mean", "last")),
            "nonfinite": lambda: r.choice(("keep", "stop", "error")),
        }  # fmt: skip
        made = choices.get(kind, lambda: r.choice((*ODD, "x", "tour.py:9", "failed", self.hex(32), "batch['x']")))
        return made()

    def of(self, hint: typing.Any, name: str = "") -> typing.Any:
        """A value of a type; ``name`` is the field's."""
        r, origin, inner = self.r, typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self.of(r.choice(inner), name)
        if origin is tuple and inner[-1] is ...:
            return tuple(self.of(inner[0], name) for _ in range(r.choice((0, 1, 1, 2, 3))))
        if origin is tuple:
            return tuple(self.of(h, name) for h in inner)
        if origin is frozenset:
            return frozenset(self.of(inner[0], name) for _ in range(r.choice((0, 0, 1))))
        if origin is not None:
            return {self.of(inner[0], name): self.of(inner[1], name) for _ in range(r.choice((0, 1, 2)))}
        if hint is Graph:
            return self.graph()
        if hint is Type:
            return self.type()
        if hint is Address and r.random() < 0.95:
            return TO_DEVICE if self.made is Message else TO_ALICE
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint)
        if hint is str:
            return self.word(name)
        simple = {int: self.int, float: self.float, bool: lambda: r.random() < 0.5, type(None): lambda: None}
        return simple.get(hint, self.arg)()

    def dataclass(self, cls: type) -> typing.Any:
        hints = _hints(cls)
        fields = [f for f in dataclasses.fields(cls) if f.init and (not _optional(f) or self.r.random() < 0.5)]
        return cls(**{f.name: self.of(hints[f.name], f.name) for f in fields})

    def int(self) -> int:
        return self.r.choice((0, 1, 1, 2, 3, 30, 1 << 40, self.r.randrange(1 << 63)))

    def float(self) -> float:
        return self.r.choice((0.0, 0.5, 1.0, 30.0, 1_795_300_000.0, 1e11))

    def type(self, *, numbers: bool = True) -> Type:
        if numbers and self.r.random() < 0.2:
            return Type(self.r.choice(NUMBERS))
        dims = (0, 1, 2, 3, "n", "m", "n", "2*n+1", "n//2", "min(n,m)", "n%m", "floor(n*1.5)")
        return Type(
            self.r.choice(("f32", "f32", "i64", *ITEMSIZE)), tuple(self.r.choices(dims, k=self.r.choice((0, 1, 1, 2))))
        )

    def graph(self, depth: int = 1) -> Graph:
        """Ops are of the table, with arguments of their kinds, so many a one is allowed."""
        r = self.r
        inputs = tuple(self.type() for _ in range(r.choice((1, 1, 2, 3))))
        inputs = tuple(
            t if not t.shape else Type(t.dtype, tuple(d if d in ("n", "m") else 2 for d in t.shape)) for t in inputs
        )
        state = tuple((f"s{i}", Type("f32", (2,))) for i in range(r.choice((0, 0, 1))))
        last, actions = len(inputs) + len(state), []
        for _ in range(r.choice((0, 1, 2, 4))):
            op = optable.find(r.choice(_OPS))
            args = [self.arg_of(p.kind, last) for p in op.params if not p.keyword]
            kept = len(args) if r.random() < 0.7 else r.randrange(len(args) + 1)
            made = tuple(self.type(numbers=False) if k != "Scalar" else Type("int") for k in op.returns)
            actions.append(Action(op.name, tuple(args[:kept]), {}, made))
            last += len(made)
        outputs = self.tree(lambda: Var(r.randrange(last)))
        bodies = tuple(self.graph(depth - 1) for _ in range(int(depth and r.random() < 0.1)))
        params = tuple(Param(f"p{i}", Var(i)) for i in range(len(inputs))) if r.random() < 0.3 else ()
        row = tuple("f64" if t.is_tensor else t.dtype for t in inputs) + ("f64",) * len(
            Graph((), (), outputs).output_vars
        )
        letters = {d for t in inputs for d in t.shape or ()}
        guards = (
            ()
            if {"n", "m"} - letters
            else (r.choice((("==", ("%", "n", 2), 0), ("<=", "n", "m"), ("!=", ("floor", ("*", "n", 0.5)), 3))),)
        )
        return Graph(
            inputs, tuple(actions), outputs, sizes={"m": r.randrange(3), "n": r.randrange(3)},
            guards=guards[: r.randrange(2)],
            dtypes=(row,) if r.random() < 0.3 else (), state=state, graphs=bodies, params=params,
        )  # fmt: skip

    def arg_of(self, kind: str, last: int) -> typing.Any:
        r = self.r
        if kind.endswith("?"):
            return None if r.random() < 0.5 else self.arg_of(kind[:-1], last)
        if kind.endswith("[]"):
            return [self.arg_of(kind[:-2], last) for _ in range(r.randrange(3))]
        return {
            "Tensor": lambda: Var(r.randrange(last)), "int": lambda: r.choice((0, 1, -1, 2, 1 << 40)),
            "float": self.float,
            "bool": lambda: r.random() < 0.5, "Scalar": self.float, "str": lambda: r.choice(("mean", "constant",
            "x")), "none": lambda: None,
            "dtype": lambda: Dtype(r.choice(tuple(ITEMSIZE))), "format": lambda: Format(r.choice(FORMATS)),
        }.get(kind, self.int)()  # fmt: skip

    def arg(self) -> typing.Any:
        r = self.r
        return r.choice(
            (None, Var(r.randrange(5)), 1, 0.5, True, "x", Dtype("f32"), Subgraph(0), [Var(0), 1], 1 + 2j, float("nan"))
        )

    def tree(self, leaf: typing.Any, depth: int = 2) -> typing.Any:
        r = self.r
        if not depth or r.random() < 0.6:
            return leaf()
        some = [self.tree(leaf, depth - 1) for _ in range(r.randrange(3))]
        return r.choice((some, tuple(some), {f"k{i}": x for i, x in enumerate(some)}))

    def tensor(self, type_: Type | None = None) -> RawTensor:
        shape = tuple(self.r.choices((0, 1, 2, 3), k=self.r.randrange(3)))
        type_ = type_ or Type(self.r.choice(tuple(ITEMSIZE)), shape)
        return RawTensor(type_.dtype, type_.shape, bytes(RawTensor(type_.dtype, type_.shape, b"").size_bytes))

    def good(self, kind: str) -> Good:
        """A file of a kind; most of them are taken."""
        while True:
            try:
                return taken_apart(kind, self.file(kind))
            except Exception:  # what can not even be written down is no file
                continue

    def file(self, kind: str) -> bytes:
        if kind in SEALED:
            return seal_json(kind, self.dataclass(SEALED[kind]).to_json(), DEVICE)
        if kind == "plan":
            graph = self.graph()
            state = {name: self.tensor(type_) for name, type_ in graph.state}
            return b"".join(encode_plan(PlanFile(graph, state, self.of(About)), ALICE))
        self.made = Message if kind == "message" else Reply
        made = self.dataclass(self.made)
        names, body = (
            (messages.message_tensors(made), messages.message_to_json(made))
            if kind == "message"
            else (messages.reply_tensors(made), messages.reply_to_json(made))
        )
        return b"".join(encode(kind, body, {name: self.tensor() for name in sorted(names)}, ALICE))


_OPS = optable.names()
_hints = cache(typing.get_type_hints)
POOL = 300
"""Files that are drawn of each kind for a seed; each is bent many times."""


@cache
def drawn(seed: int, kind: str, number: int) -> Good:
    """One of them."""
    return Grammar(random.Random(f"{seed} {kind} {number}")).good(kind)


def _optional(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


# -- bending ---------------------------------------------------------------------------------


class Bender:
    """Bends one file, by a seed of its own."""

    def __init__(self, seed: int, number: int) -> None:
        self.seed, self.r = seed, random.Random(f"{seed} {number}")

    def file(self) -> Hostile:
        r = self.r
        kind = r.choice(KINDS)
        good = r.choice(golden()[kind]) if r.random() < 0.5 else drawn(self.seed, kind, r.randrange(POOL))
        tree, header = json.loads(good.body), good.header
        for _ in range(r.choice((0, 1, 1, 1, 2, 3, 6))):
            self.value(tree)
        body = _written(tree) or good.body
        if r.random() < 0.08:
            body = self.text(body)
        if r.random() < 0.12:
            entries = json.loads(header)
            self.value(entries)
            header = _written(entries) or header
        raw = self.sealed(good, body) if kind in SEALED else self.packed(good, body, header)
        return Hostile(kind, self.bytes(raw) if r.random() < 0.1 else raw, str(tree.get("id")), _first(tree))

    def value(self, tree: typing.Any) -> None:
        """Bend one of the values of a tree."""
        r, places = self.r, _places(tree)
        if not places:
            return
        where, key = r.choice(places)
        old = where[key]
        match r.randrange(12):
            case 0 | 1 | 2:
                where[key] = self.leaf()
            case 3:
                other, at = r.choice(places)
                where[key] = _copy(other[at])
            case 4:
                other, at = r.choice(_places(json.loads(r.choice(golden()[r.choice(KINDS)]).body)))
                where[key] = other[at]
            case 5:
                del where[key]
            case 6 if isinstance(where, list):
                where.insert(key, _copy(old))
            case 6 | 7 if isinstance(where, dict):
                where[str(r.choice((*where, *ODD, "kind", "v", "sig")))] = self.leaf()
            case 7:
                r.shuffle(where)
            case 8:
                where[key] = r.choice(
                    (
                        [old],
                        {"t": old},
                        {"v": old},
                        {"tuple": [old]},
                        [old, 0],
                        {key if isinstance(key, str) else "x": old},
                    )
                )
            case 9 if isinstance(old, list):
                where[key] = old * r.choice((2, 2, 3, 50, 12_000 if r.random() < 0.03 else 5))
            case 9 | 10 if isinstance(old, str):
                where[key] = self.bent(old)
            case 9 | 10 if type(old) in (int, float):
                where[key] = r.choice(
                    (old + 1, old - 1, -old, old * 2, 1.0 if abs(old) > 1e300 else float(old), 1e305, 1 << 70)
                )
            case 11 if r.random() < 0.3:
                for _ in range(r.choice((3, 20, 31, 33, 200))):
                    where[key] = [where[key]]

    def leaf(self) -> typing.Any:
        return _copy(self.r.choice(LEAVES))

    def bent(self, old: str) -> str:
        r = self.r
        at = r.randrange(len(old) + 1)
        return r.choice(
            (
                old[:at],
                old[at:],
                old + r.choice(ODD),
                old[:at] + r.choice(HEX) + old[at + 1 :],
                old.upper(),
                old * 2,
                old[::-1],
            )
        )

    def text(self, text: str) -> str:
        r = self.r
        for _ in range(r.choice((1, 1, 2, 4))):
            at, cut = r.randrange(len(text) + 1), r.choice((0, 0, 1, 3))
            text = text[:at] + r.choice((*TOKENS, text[at : at + r.randrange(40)])) + text[at + cut :]
        return text

    def key(self, good: Good) -> Key:
        theirs = ALICE if good.kind == "message" else DEVICE
        return self.r.choice((STRANGER, ALICE, DEVICE)) if self.r.random() < 0.03 else theirs

    def signed_as(self, good: Good) -> str:
        return self.r.choice(KINDS) if self.r.random() < 0.03 else good.kind

    def sealed(self, good: Good, body: str) -> bytes:
        """As `seal_json` writes it, whatever the body is; its version and kind are there unless they are bent,
        too."""
        from fedq.plan.codec import sha256

        r, key = self.r, self.key(good)
        head = f'{{"v":1,"kind":"{good.kind}",{body[1:-1]}' if r.random() < 0.97 else body[:-1]
        raw = head.encode("utf-8", "surrogatepass")
        return b'%b,"sig":"%b"}\n' % (raw, (key.public + key.sign(self.signed_as(good), sha256([raw]))).hex().encode())

    def packed(self, good: Good, body: str, header: str) -> bytes:
        """A safetensors file with any body and header, rightly signed."""
        from fedq.plan.codec import sha256

        r, data = self.r, good.data
        if r.random() < 0.03:
            data = data[: r.randrange(len(data) + 1)] + r.randbytes(r.choice((0, 1, 8, 100)))
        meta = (
            {"fedq": body}
            if r.random() < 0.99
            else r.choice((None, {}, {"fedq": body, "x": ""}, {"fedq": 3}, [body], body))
        )
        end = len(data) + (0 if r.random() < 0.99 else r.choice((-1, 1, 8)))
        tail = {"dtype": "U8", "shape": [96], "data_offsets": [end, end + 96]}
        text = json.dumps({"__metadata__": meta, "~fedq.sig": tail})
        inner = header.strip()[1:-1]
        text = text[:-1] + (f", {inner}}}" if inner else "}")
        text = self.text(text) if r.random() < 0.03 else text
        head = text.encode("utf-8", "surrogatepass")
        head += b" " * (-len(head) % 8 if r.random() < 0.97 else r.choice((1, 3, 8, 5000)))
        size = (
            len(head)
            if r.random() < 0.98
            else r.choice((0, 1, len(head) - 1, len(head) + 1, 1 << 22, 1 << 63, (1 << 64) - 1))
        )
        key = self.key(good)
        front = struct.pack("<Q", size) + head + data + key.public
        return front + key.sign(self.signed_as(good), sha256([front]))

    def bytes(self, raw: bytes) -> bytes:
        """What anybody can do to a file, without a key."""
        r = self.r
        at = r.randrange(len(raw))
        match r.randrange(6):
            case 0:
                return raw[:at]
            case 1:
                return raw + r.randbytes(r.choice((1, 96, 1000)))
            case 2:
                return raw[:at] + bytes([raw[at] ^ (1 << r.randrange(8))]) + raw[at + 1 :]
            case 3:
                return raw[at:]
            case 4:
                return r.randbytes(r.choice((0, 1, 8, 95, 96, 97, 104, 211, 1000)))
        return raw[:at] + r.randbytes(r.randrange(20)) + raw[at:]


def _copy(tree: typing.Any) -> typing.Any:
    """So that what is bent later is bent in one place."""
    return json.loads(json.dumps(tree)) if isinstance(tree, (list, dict)) else tree


def _written(tree: typing.Any) -> str:
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):  # a number of too many digits; a tree in itself
        return ""


def _first(tree: Mapping[str, typing.Any]) -> str:
    """The first value of a reply."""
    match tree.get("values"):
        case [[str(id_), *_], *_]:
            return id_
    return "0" * 32


def _places(tree: typing.Any) -> list[tuple[typing.Any, typing.Any]]:
    """Every value in a tree, as where it stands: (list, index) or (dict, key)."""
    found, waiting = [], [tree]
    while waiting and len(found) < MOST_PLACES:
        inner = waiting.pop()
        for key, value in (
            inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        ):
            found.append((inner, key))
            if isinstance(value, (dict, list)):
                waiting.append(value)
    return found


def hostile(seed: int, number: int) -> Hostile:
    """The file of this number."""
    return Bender(seed, number).file()
