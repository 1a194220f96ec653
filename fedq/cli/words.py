"""Read what users write: references, durations, shapes, numbers, lists.

Every refusal is a UsageError that quotes the word and gives one that would do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from fedq import ids
from fedq.errors import UsageError

TENSOR_SUFFIXES = (".safetensors", ".npy", ".npz", ".csv")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds: ``10s``, ``90``, ``2h``, ``1d``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration", hint="write 10s, 5min, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def reference(text: str) -> tuple[str, str]:
    """``device:tag`` or ``device:id`` as its two parts; a ``#`` before the tag is left out."""
    device, colon, rest = text.partition(":")
    rest = rest.removeprefix("#")
    if not colon or not rest or not ids.is_name(device):
        raise UsageError(
            f"{text!r} is not a reference", hint="write DEVICE:TAG or DEVICE:ID, such as device_1:input_data"
        )
    return device, rest


def key(text: str) -> str:
    """A public key: 64 hex digits."""
    if not ids.is_plan_id(text):
        raise UsageError(f"{text[:80]!r} is not a public key", hint="64 hex digits, as 'fedq whoami' prints them")
    return text


def requester(name: str | None, public: str | None) -> tuple[str, str]:
    """A requester's name, without the digits of its key, and the key."""
    if name is None or public is None:
        raise UsageError("--requester and --key go together", hint="'fedq whoami' prints both")
    public = key(public)
    name = name.removesuffix(f"-{public[:8]}")
    if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", name):
        raise UsageError(f"{name[:80]!r} is not the name of a requester", hint="letters, digits and '_'")
    return name, public


def names(text: str) -> list[str]:
    """``a,b`` as a list without blanks or repeats."""
    return list(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))


def items(text: str) -> list[str]:
    """``a,b,a`` as a list without blanks."""
    return [item.strip() for item in text.split(",") if item.strip()]


def number(text: str) -> int | float | bool | None:
    """The number this writes, None if it writes none."""
    if text in ("true", "True", "false", "False"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def named(text: str) -> tuple[str, str]:
    """``rate=0.1`` as its two parts; a name may be a path such as ``batch['x']``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UsageError(f"{text!r} names no argument", hint="write NAME=VALUE, such as rate=0.1")
    return name.strip(), value.strip()


def by_name(texts: Sequence[str]) -> dict[str, str]:
    """Arguments by their names, each once."""
    found: dict[str, str] = {}
    for name, value in map(named, texts):
        if name in found:
            raise UsageError(f"argument {name!r} is given twice, as {found[name]} and {value}", hint="give it once")
        found[name] = value
    return found


def is_tensor_file(text: str) -> bool:
    return tensor_file(text)[0].suffix in TENSOR_SUFFIXES


def tensor_file(text: str) -> tuple[Path, str | None]:
    """``file.npz`` or ``file.npz:name`` as path and name."""
    path, _, name = text.rpartition(":")
    return (Path(path), name) if path.endswith(TENSOR_SUFFIXES) else (Path(text), None)


def shapes(text: str) -> list[tuple[int, ...]]:
    """``(-1,1)`` or ``(-1,1), (3,)`` as shapes, one per input; -1 is a free size."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if isinstance(value, (tuple, list)):
        found = [tuple(value)] if all(type(v) is int for v in value) else list(value)
        if all(isinstance(s, (tuple, list)) and _sizes(s) for s in found):
            return [tuple(s) for s in found]
    raise UsageError(f"{text!r} is not a shape", hint='write "(-1,1)", or "(-1,1),(3,)" for two inputs')


def _sizes(shape: Sequence[object]) -> bool:
    return all(type(n) is int and n >= -1 for n in shape)


def file_and_name(text: str) -> tuple[Path, str]:
    """``tour.py:double_abs`` as its two parts."""
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise UsageError(
            f"{text!r} is not a name in a Python file", hint="write FILE.py:NAME, such as tour.py:double_abs"
        )
    return Path(path), name


def file_name(text: str) -> str:
    """A name that somebody else chose, as the name of a file here: letters, digits and ``_``."""
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:60] or "plan"
