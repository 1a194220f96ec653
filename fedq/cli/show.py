"""Draw what commands found: tensors as torch prints them, tables, sizes and times.

Gives text; only `app` prints. Knows numpy, not torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedq import spelling
from fedq.errors import FedqError
from fedq.plan.codec import RawTensor
from fedq.plan.graph import Type
from fedq.queue.message import Number

if TYPE_CHECKING:
    import numpy as np

Outcome = RawTensor | Number | FedqError

ENDS = 3
SHORTEN_ABOVE = 1000
LINE = 80

_TORCH = {
    "f64": "float64", "f16": "float16", "bf16": "bfloat16", "f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
    "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8",
}  # fmt: skip


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows with their columns aligned, two spaces apart; nothing for no rows."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in texts)


def when(time: float | None) -> str:
    """A time as UTC, to the second."""
    return "never" if time is None else spelling.time(time)


def ago(seconds: float) -> str:
    """``3 s``, ``12 min``, ``5 h``, ``9 days``."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def devices(rows: Sequence[Mapping[str, Any]]) -> str:
    """``fedq device ls``."""
    head = ("device", "state", "last seen", "values", "waiting", "running", "held")
    body = [
        (r["device"], r["state"], when(r["last_seen"]), r["values"], r["waiting"], _running(r), r["held"]) for r in rows
    ]
    return table([head, *body]) if rows else ""


def _running(row: Mapping[str, Any]) -> str:
    """``2``, ``1: step 120 of 450``."""
    steps = ", ".join(f"step {step} of {steps}" for _, step, steps in row["progress"])
    return f"{row['running']}: {steps}" if steps else str(row["running"])


def status(rows: Sequence[Mapping[str, Any]]) -> str:
    """``fedq device status``."""
    keys = ("waiting", "running", "held", "failed", "refused", "trouble")
    body = [
        (r["device"], r["state"], when(r["last_seen"]), *("" if r[k] is None else r[k] for k in keys)) for r in rows
    ]
    return table([("device", "state", "last seen", *keys), *body]) if rows else ""


def tensor(raw: RawTensor) -> str:
    """The values as torch prints them: ``tensor([2., 4.])``; above 1,000 three from each end."""
    from fedq.plan.arrays import to_numpy

    array = to_numpy(raw)
    suffixes = [f"size={raw.shape!r}"] if not array.size and array.ndim != 1 else []
    if raw.dtype in _TORCH and (raw.dtype != "i64" or not array.size):
        suffixes.append(f"dtype=torch.{_TORCH[raw.dtype]}")
    text = "tensor(" + (_draw(array) if array.size else "[]")
    for suffix in suffixes:
        fits = len(text) - text.rfind("\n") + 1 + len(suffix) + 2 <= LINE
        text += f", {suffix}" if fits else f",\n       {suffix}"
    return text + ")"


def outcomes(named: Sequence[tuple[str, Outcome]]) -> str:
    """Values that came, each under its name if there are several; failures are not drawn here."""
    texts = [(name, outcome(value)) for name, value in named if not isinstance(value, FedqError)]
    return "\n".join(f"{name}\n{text}" if len(named) > 1 else text for name, text in texts)


def outcome(value: RawTensor | Number) -> str:
    return tensor(value) if isinstance(value, RawTensor) else str(value.value)


def outcome_json(name: str, value: Outcome) -> dict[str, Any]:
    """A value that came, or why it did not; numbers JSON has no word for are text: ``"nan"``.

    Of a tensor without elements the type says the shape: a trillion empty rows take no room where they come from.
    """
    from fedq.plan.arrays import to_numpy

    device, _, id_ = name.partition(":")
    head = {"device": device, "id": id_}
    if isinstance(value, FedqError):
        return {**head, "error_code": value.code, "message": str(value)}
    raw = as_raw(value)
    kind = str(Type(raw.dtype, raw.shape)) if isinstance(value, RawTensor) else type(value.value).__name__
    array = to_numpy(raw)
    return {**head, "type": kind, "value": _plain(array.tolist()) if array.size else []}


def _plain(value: Any) -> Any:
    match value:
        case list():
            return [_plain(v) for v in value]
        case complex():
            return [_plain(value.real), _plain(value.imag)]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def as_raw(value: Outcome) -> RawTensor:
    """A value as a tensor: a Python number has no size."""
    if isinstance(value, FedqError):
        raise value
    if isinstance(value, RawTensor):
        return value
    import numpy as np

    from fedq.plan.arrays import from_numpy

    return from_numpy(np.asarray(value.value))


Cell = tuple[Callable[[Any], str], int]
"""How to print one value, and the width that takes."""


def _draw(array: np.ndarray[Any, Any]) -> str:
    short = array.size > SHORTEN_ABOVE
    shown = _ends(array) if short else array
    cell = _complex(shown) if array.dtype.kind == "c" else _number(shown)
    return _nested(array, cell, len("tensor("), short)


def _ends(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    for axis, size in enumerate(array.shape):
        if size > 2 * ENDS:
            array = array.take([*range(ENDS), *range(size - ENDS, size)], axis)
    return array


def _complex(shown: np.ndarray[Any, Any]) -> Cell:
    (real, width), (imag, more) = _number(shown.real), _number(shown.imag)

    def cell(value: complex) -> str:
        right = (imag(value.imag) + "j").lstrip()
        return real(value.real) + ("" if right[0] in "+-" else "+") + right

    return cell, width + more + 1


def _number(shown: np.ndarray[Any, Any]) -> Cell:
    if shown.dtype.kind != "f":
        width = max(len(str(v)) for v in shown.reshape(-1).tolist())
        return lambda value: f"{value!s:>{width}}", width
    values = [v for v in shown.reshape(-1).tolist() if math.isfinite(v) and v]
    least, most = min(map(abs, values), default=1.0), max(map(abs, values), default=1.0)
    whole = all(v == math.ceil(v) for v in values)
    power = most / least > 1000 or most > 1e8 or least < 1e-4
    form, dot = (".4e", "") if power else (".0f", ".") if whole else (".4f", "")
    width = max((len(f"{v:{form}}{dot}") for v in values), default=1)
    return lambda value: f"{value:{form}}{dot if math.isfinite(value) else ''}".rjust(width), width


def _nested(array: np.ndarray[Any, Any], cell: Cell, indent: int, short: bool) -> str:
    if array.ndim == 0:
        return cell[0](array.item())
    cut = short and len(array) > 2 * ENDS
    parts = [*array[:ENDS], *array[-ENDS:]] if cut else list(array)
    if array.ndim > 1:
        rows = [_nested(part, cell, indent + 1, short) for part in parts]
        rows[ENDS:ENDS] = ["..."] if cut else []
        return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(rows) + "]"
    cells = [cell[0](part.item()) for part in parts]
    cells[ENDS:ENDS] = [" ..."] if cut else []
    per_line = max(1, (LINE - indent) // (cell[1] + 2))
    lines = [", ".join(cells[i : i + per_line]) for i in range(0, len(cells), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"
