"""Type, and what may stand as an argument of an op: the leaves of a graph.

Every parsed text has one spelling: what reads back differently is refused. Knows no torch.
Format: docs/format.md, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedq.errors import BadFile

ITEMSIZE = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8_e4m3": 1, "f8_e5m2": 1, "c64": 8,
    "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2, "u8": 1, "bool": 1,
}  # fmt: skip
"""Our dtype names and their bytes per element."""
NUMBERS = ("int", "float", "bool", "str")
"""Types of Python values, which have no shape."""
FORMATS = ("contiguous", "preserve", "channels_last", "channels_last_3d")
MAX_SIZE = 1 << 60
"""Sizes of dimensions and least sizes stay below this."""

LETTER = re.compile(r"[a-z][a-z0-9]{0,15}")
_TYPE = re.compile(r"([a-z0-9_]+)(?:\[([a-z0-9+*/()%,.-]*)\]|=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_REAL = r"(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}"
_OPERAND = rf"(?:{_NUMBER.pattern}|{LETTER.pattern}|@)"
_FLAT = rf"{_OPERAND}(?:(?://|[-+*%]){_OPERAND})*"
_REAL_OPERAND = rf"(?:{_REAL}|{_OPERAND}|#)"
_REAL_FLAT = rf"{_REAL_OPERAND}(?:(?://|[-+*/%]){_REAL_OPERAND})*"
_IS_FLAT = re.compile(_FLAT)
_BRACKET = re.compile(
    rf"(?P<whole>(?:floor|ceil|round|trunc)\({_REAL_FLAT}\)|(?:min|max)\({_FLAT},{_FLAT}\)|\({_FLAT}\))|\({_REAL_FLAT}\)"
)
_TOKEN = re.compile(rf"{_REAL}|{_NUMBER.pattern}|{LETTER.pattern}|//|[-+*/%(),]")


@dataclass(frozen=True, slots=True)
class Var:
    """The ``number``-th value of a graph, written ``%number``."""

    number: int

    def __str__(self) -> str:
        return f"%{self.number}"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype as an argument of an op: ``f32``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Format:
    """A memory format as an argument of an op: ``contiguous``, ``preserve``, ``channels_last``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Subgraph:
    """The ``number``-th graph in ``Graph.graphs`` as an argument: a branch or loop body."""

    number: int

    def __str__(self) -> str:
        return f"@{self.number}"


Arg = Any
"""Var | Dtype | Format | Subgraph | int | float | complex | bool | str | None | list[Arg]"""
Tree = Any
"""A structure of outputs: Var | None | list | tuple | dict of the same."""
Size = Any
"""A size: int, letter, ``(op, left, right)`` with op one of ``+ - * // % min max``, or ``(op, real)`` with op one of
``floor ceil round trunc``. A real is a size, a float, or ``(op, left, right)`` of reals, where ``/`` is an op too."""


@dataclass(frozen=True, slots=True)
class Type:
    """What a value is: dtype and shape of a tensor, or the kind of a Python number.

    A dimension is a number, or text: a letter where free (``n``), an expression of letters in
    results (``2*n+1``). ``shape`` is None for Python values; ``value`` then may fix it: ``int=3``.
    """

    dtype: str
    shape: tuple[int | str, ...] | None = None
    value: int | float | bool | str | None = None

    def __str__(self) -> str:
        if self.shape is not None:
            return f"{self.dtype}[{','.join(map(str, self.shape))}]"
        if self.value is None:
            return self.dtype
        return f"{self.dtype}={repr(self.value) if type(self.value) is float else json.dumps(self.value)}"

    @property
    def is_tensor(self) -> bool:
        return self.shape is not None

    @classmethod
    def parse(cls, text: object) -> Type:
        """Read ``f32[n,3]``, ``i64[]``, ``int``, ``int=3``; BadFile for anything else."""
        if not isinstance(text, str) or len(text) > 1000:
            raise BadFile("a type is a text of at most 1000 characters")
        return _parse(text)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Type:
    match = _TYPE.fullmatch(text)
    dtype, dims, value = match.groups() if match else ("", None, None)
    if dims is not None and dtype in ITEMSIZE:
        return Type(dtype, tuple(_dim(d) for d in _split(dims)) if dims else ())
    if dims is None and dtype in NUMBERS:
        made = Type(dtype, None, None if value is None else _fixed(dtype, value))
        if str(made) == text:
            return made
    raise BadFile(f"{text[:60]!r} is not a type")


def _split(dims: str) -> list[str]:
    """Sizes apart; the commas of ``min(n,m)`` are their own."""
    if "(" not in dims:
        return dims.split(",")
    made, depth = [""], 0
    for c in dims:
        depth += (c == "(") - (c == ")")
        if c == "," and not depth:
            made.append("")
        else:
            made[-1] += c
    return made


def _dim(text: str) -> int | str:
    if _NUMBER.fullmatch(text):
        return int(text)
    if is_size(text):
        return text
    raise BadFile(f"{text[:60]!r} is not a size")


def _fixed(dtype: str, text: str) -> int | float | bool | str | None:
    try:
        value = float(text) if dtype == "float" else json.loads(text)
    except (ValueError, RecursionError):
        return None
    fits = type(value).__name__ == dtype and (dtype != "int" or is_int(value))
    return value if fits else None


def is_int(value: object) -> bool:
    """Whether this is an integer a tensor could hold: ``-2**63`` to ``2**64 - 1``, and no bool."""
    return type(value) is int and -(1 << 63) <= value < 1 << 64


def is_size(text: str) -> bool:
    """Whether `parse_size` can read it; much faster, since types come in thousands from strangers."""
    if len(text) > 200 or text.count("(") > 8 or "@" in text or "#" in text:
        return False
    flat = text
    while "(" in flat and (shorter := _BRACKET.sub(_closed, flat)) != flat:
        flat = shorter
    return _IS_FLAT.fullmatch(flat) is not None


def _closed(bracket: re.Match[str]) -> str:
    """What stands for a bracket that was read: ``@`` for an integer, ``#`` for a real."""
    return "@" if bracket["whole"] else "#"


def parse_size(text: str) -> Size:
    """Read ``3``, ``n``, ``2*(n+1)//m`` as 3, ``"n"``, ``("//", ("*", 2, ("+", "n", 1)), "m")``.

    ``* / // %`` bind tighter than ``+ -``, and all go from left to right, rounding as Python does. ``min(n,m)`` is
    ``("min", "n", "m")``, ``floor(n*1.5)`` is ``("floor", ("*", "n", 1.5))``; reals stand inside such a bracket only.
    """
    if not is_size(text):
        raise BadFile(f"{text[:60]!r} is not a size")
    rest = iter([*_TOKEN.findall(text), ""])
    return _sum(next(rest), rest)[0]


def _sum(token: str, rest: Iterator[str]) -> tuple[Size, str]:
    left, token = _product(token, rest)
    while token in ("+", "-"):
        right, after = _product(next(rest), rest)
        left, token = (token, left, right), after
    return left, token


def _product(token: str, rest: Iterator[str]) -> tuple[Size, str]:
    left, token = _factor(token, rest)
    while token in ("*", "/", "//", "%"):
        right, after = _factor(next(rest), rest)
        left, token = (token, left, right), after
    return left, token


def _factor(token: str, rest: Iterator[str]) -> tuple[Size, str]:
    if token == "(":
        return _sum(next(rest), rest)[0], next(rest)
    if token[0].isdigit():
        return (float(token) if "." in token else int(token)), next(rest)
    after = next(rest)
    if after != "(":
        return token, after
    operands, closed = [], ","
    while closed == ",":
        operand, closed = _sum(next(rest), rest)
        operands.append(operand)
    return (token, *operands), next(rest)
