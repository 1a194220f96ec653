"""What a graph admits: its inputs' types, letters and guards against what is given. Knows no torch.

A letter takes the size it first meets; from then on it must be that. Sizes computed from letters
are evaluated as small trees of integers, never as code.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from fedq.errors import SpecMismatch
from fedq.plan.graph import About, Graph, Type, parse_size, show_guard

_BOUND = 1 << 63
_UNKNOWN = About()


def place(about: About, i: int) -> str:
    """What an input is called in messages: ``carry.params.0.weight``; ``input 1`` where no argument is a structure.

    Beside a structure a number would not say which argument is meant: it counts what is in the structure.
    """
    return argument(about, i) or f"input {i}" if any("[" in path for path in about.params) else f"input {i}"


def argument(about: About, i: int) -> str:
    """An input's own name, ``x``, or its path in a structure; "" if it is not known."""
    path = about.params[i] if i < len(about.params) else ""
    return _KEY.sub(r".\1", path) if "[" in path else path


_KEY = re.compile(r"\['((?:[^'\\]|\\.)*)'\]")


def match(graph: Graph, given: Sequence[Type], *, about: About = _UNKNOWN) -> dict[str, int]:
    """The size of each letter, if the graph (or one of its variants) admits inputs of these types.

    Raises:
        SpecMismatch: names the first input that does not fit, and the line that fixed it if
            ``about`` knows one.
    """
    return choose(graph, given, about=about)[1]


def choose(graph: Graph, given: Sequence[Type], *, about: About = _UNKNOWN) -> tuple[int, dict[str, int]]:
    """Which graph is run on inputs of these types (0 itself, i its i-th variant), and its letters.

    Raises:
        SpecMismatch: as `match`; of the graph itself if none fits.
    """
    try:
        return 0, _match(graph, given, about)
    except SpecMismatch:
        for i, variant in enumerate(graph.variants, 1):
            with contextlib.suppress(SpecMismatch):
                return i, _match(variant, given, _UNKNOWN)
        raise


def _match(graph: Graph, given: Sequence[Type], about: About) -> dict[str, int]:
    expected = graph.inputs
    if len(given) != len(expected):
        raise SpecMismatch(f"requires {_count(len(expected))}, received {len(given)}")
    letters: dict[str, int] = {}
    same = True
    for i, want in enumerate(expected):
        got = given[i]
        if want.shape is None or got.shape is None:
            if want.shape is not got.shape or (want.value is not None and want.value != got.value):
                _refuse(graph, given, i, about)
        elif want.shape != got.shape:
            if len(want.shape) != len(got.shape):
                _refuse(graph, given, i, about)
            for dim, size in zip(want.shape, got.shape, strict=True):
                if dim != size and (type(dim) is int or letters.setdefault(dim, size) != size):  # type: ignore[arg-type]
                    _refuse(graph, given, i, about, letters)
        same = same and want.dtype == got.dtype
    if not same:
        _row(graph, given, about)
    for letter, size in letters.items():
        if size < graph.sizes[letter]:
            _too_small(graph, letter, size, about)
    for guard in graph.guards:
        if not _holds(guard, letters):
            text = show_guard(guard)
            raise SpecMismatch(f"the plan holds for {text} only; given {_sizes(letters)}{_because(about, text)}")
    return letters


def output_types(graph: Graph, given: Sequence[Type]) -> tuple[Type, ...]:
    """The type of each output for inputs of these types; raises as `match` does."""
    number, letters = choose(graph, given)
    graph = (graph, *graph.variants)[number]
    row = _row(graph, given, _UNKNOWN)
    types = [graph.types[var.number] for var in graph.output_vars]
    dtypes = row[len(given) :] if row else [t.dtype for t in types]
    return tuple(
        Type(dtype, None if t.shape is None else tuple(_size(d, letters) for d in t.shape))
        for t, dtype in zip(types, dtypes, strict=True)
    )


def _row(graph: Graph, given: Sequence[Type], about: About) -> tuple[str, ...]:
    """The row of dtypes that is given; empty for those the graph was built with."""
    dtypes = tuple(t.dtype for t in given)
    if dtypes == tuple(t.dtype for t in graph.inputs):
        return ()
    for row in graph.dtypes:
        if row[: len(dtypes)] == dtypes:
            return row
    i = next((i for i, d in enumerate(dtypes) if d not in _admitted(graph, i)), None)
    if i is None:
        message = f"inputs of {', '.join(dtypes)} do not go together in this plan"
        raise SpecMismatch(message, hint="rebuild with examples of these dtypes, or convert the inputs")
    dtype = dtypes[i]
    wanted = "|".join(_admitted(graph, i))
    raise SpecMismatch(
        f"{place(about, i)}: {wanted} expected, {given[i]} given{_because(about, dtype)}",
        hint=_other_dtype(dtype, graph.inputs[i].dtype),
    )


def _other_dtype(given: str, built: str) -> str:
    if _is_float(built) and not _is_float(given):
        return "convert the input: x.float()"
    return f"rebuild with an example of {given}, or convert the input"


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("f", "bf", "c"))


def _admitted(graph: Graph, i: int) -> list[str]:
    return list(dict.fromkeys((graph.inputs[i].dtype, *(row[i] for row in graph.dtypes))))


def _refuse(graph: Graph, given: Sequence[Type], i: int, about: About, letters: Mapping[str, int] = {}) -> NoReturn:
    want, got = graph.inputs[i], given[i]
    known = {d: letters[d] for d in want.shape or () if isinstance(d, str) and d in letters}
    where = f" with {_sizes(known)}" if known else ""
    name = place(about, i)
    hint = _rebuild(graph, given, i, about) if name == f"input {i}" else _AS_BUILT
    raise SpecMismatch(f"{name}: {want} expected, {got} given{where}", hint=_agree(want, got, letters) or hint)


_AS_BUILT = "give it with the shape it was built with, or build another plan with an example like this"


def _agree(want: Type, got: Type, letters: Mapping[str, int]) -> str:
    """A hint where sizes that are one letter differ: no other plan would take them, unless it has no such letter."""
    if want.shape is None or got.shape is None or len(want.shape) != len(got.shape):
        return ""
    odd = [d for d, size in zip(want.shape, got.shape, strict=True) if letters.get(str(d), d) != size]
    if not odd or any(isinstance(d, int) or d not in letters for d in odd):
        return ""
    letter = str(odd[0])
    return f"{letter} is one size in all arguments: give it with {letter} = {letters[letter]}"


def _rebuild(graph: Graph, given: Sequence[Type], i: int, about: About) -> str:
    """A hint that can be pasted and would admit what was given."""
    if given[i].shape is None and graph.inputs[i].is_tensor:
        return f"give a tensor there, such as torch.tensor(...), of {graph.inputs[i]}"
    fixed = next((w for w, g in zip(graph.inputs, given, strict=True) if w.value not in (None, g.value)), None)
    if fixed is not None:
        return f"the plan was built with {fixed.value!r} there: build another plan for the other value"
    pairs = list(zip(graph.inputs, given, strict=True))
    if graph.params or any(w.dtype != "f32" or w.shape is None or g.shape is None for w, g in pairs):
        return f"rebuild with plan.build({', '.join(_examples(pairs, about))})"
    return f"rebuild with args_shape=[{', '.join(_shape(w.shape or (), g.shape or ()) for w, g in pairs)}]"


def _shape(want: Sequence[int | str], got: Sequence[int | str]) -> str:
    """A shape of ``args_shape``: what the plan takes in any size stays free; a number is tried as any size."""
    dims = list(got)
    if len(want) == len(got):
        dims = [d if isinstance(w, int) else -1 for w, d in zip(want, got, strict=True)]
    elif got and not any(isinstance(w, int) for w in want):
        dims[0] = -1
    return f"({','.join(map(str, dims))}{',' if len(dims) == 1 else ''})"


def _examples(pairs: Sequence[tuple[Type, Type]], about: About) -> list[str]:
    """What to build with, as it is written; by name, which some functions ask for, where names are known."""
    written = [_example(want, got) for want, got in pairs]
    named = len(about.params) == len(written) and all(map(str.isidentifier, about.params))
    return [f"{name}={text}" for name, text in zip(about.params, written, strict=True)] if named else written


def _example(want: Type, got: Type) -> str:
    """A number of the kind that is given, not its value, which may be private; a tensor of the dtype built with."""
    if got.shape is None:
        return repr(want.value if want.value is not None else _NUMBERS.get(got.dtype, 1))
    dtype = got.dtype if want.shape is None else want.dtype
    more = "" if dtype == "f32" else f", dtype=torch.{_TORCH.get(dtype, dtype)}"
    return f"torch.zeros({', '.join(map(str, got.shape)) or '()'}{more})"


_NUMBERS: Mapping[str, int | float | bool] = {"bool": True, "int": 1, "float": 0.5}
_TORCH = {
    "f64": "float64", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i16": "int16",
    "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "c64": "complex64",
    "c128": "complex128", "f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2",
}  # fmt: skip


def _too_small(graph: Graph, letter: str, size: int, about: About) -> NoReturn:
    reason = _because(about, f"{letter}={size}")
    name = next((place(about, i) for i, t in enumerate(graph.inputs) if letter in (t.shape or ())), "input")
    where = "" if name.startswith("input") else f"{name}: "
    raise SpecMismatch(
        f"{where}{letter} >= {graph.sizes[letter]} expected, {letter} = {size} given{reason}",
        hint=f"give {graph.sizes[letter]} or more; or build another plan with an example of this size, "
        "if the function takes it",
    )


def _because(about: About, key: str) -> str:
    return f" ({about.refused[key]})" if about.refused.get(key) else ""


def _sizes(letters: Mapping[str, int]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in letters.items())


def _count(n: int) -> str:
    return f"{n} argument{'' if n == 1 else 's'}"


# -- sizes ------------------------------------------------------------------------------------

_tree = lru_cache(maxsize=4096)(parse_size)


def _size(dim: int | str, letters: Mapping[str, int]) -> int:
    size: int = dim if isinstance(dim, int) else evaluate(_tree(dim), letters)
    if size < 0:
        raise SpecMismatch(f"a result would have size {dim} = {size} for {_sizes(letters)}")
    return size


_COMPUTE: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "/": operator.truediv, "min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "round": round,
    "trunc": math.trunc,
}  # fmt: skip
_DIVIDING = ("/", "//", "%")


def evaluate(size: Any, letters: Mapping[str, int]) -> Any:
    """A tree of sizes as a number; SpecMismatch for division by zero, or beyond 64 bits."""
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return letters[size]
    op, *operands = size
    numbers = [operand if isinstance(operand, float) else evaluate(operand, letters) for operand in operands]
    if op in _DIVIDING and numbers[1] == 0:
        raise SpecMismatch(f"{show_guard(size)} divides by zero for {_sizes(letters)}")
    value = _COMPUTE[op](*numbers)
    if not -_BOUND <= value < _BOUND:
        raise SpecMismatch(f"{show_guard(size)} is too large for {_sizes(letters)}")
    return value


def _holds(guard: Any, letters: Mapping[str, int]) -> bool:
    op, left, right = guard
    a, b = evaluate(left, letters), evaluate(right, letters)
    return bool(a == b if op == "==" else a != b if op == "!=" else a < b if op == "<" else a <= b)
