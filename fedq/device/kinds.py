"""Why a call failed, as one word of a closed list: told to the requester instead of the engine's text.

The engine's text echoes values. The worker derives the word from it and from the exception's type;
the gate, which believes no worker, lets only words of the list pass. Pure; knows no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

KINDS: Mapping[str, str] = MappingProxyType({
    "index_out_of_range": "index out of range",
    "out_of_memory": "out of memory",
    "not_finite": "not finite",
    "shape": "sizes do not fit",
    "dtype": "not made for this dtype",
    "value": "a value that it does not take",
    "contract": "its arguments do not belong together",
    "killed": "its process was killed",
    "deadline": "it took too long",
    "other": "",
})  # fmt: skip
"""Each kind, in words."""

HINTS: Mapping[str, str] = MappingProxyType({
    "index_out_of_range": "an index, label or target must be at least 0 and less than the size it counts in",
    "out_of_memory": "it needs more memory than the device has: take fewer rows at a time, or fold over small batches",
    "not_finite": "an input or a result is inf or nan: look at the data, or take a smaller learning rate",
    "shape": "build the plan with examples of the sizes that the device has: fedq search",
    "dtype": "convert the argument in the plan, with .float() for one",
    "value": "see what values PyTorch's documentation allows there, and clamp the argument in the plan",
    "contract": "see what PyTorch's documentation says of the arguments: indices must come from the tensor they index",
    "killed": "perhaps for want of memory: take fewer rows at a time; the owner's 'fedq device log' may say more",
    "deadline": "send it in parts; how long one call may take is the owner's: fedq device init NAME --deadline 2h",
})  # fmt: skip
"""What a requester can do about it."""
MOST_TEXT = 16_000
"""Characters of one failure's text that are written to the owner's log."""
MOST_LINES = 200
LINE = 60
"""What a line takes beside its text: time and name."""
HOURLY = 1_000_000
"""Characters of such texts that one device's log takes in an hour: who fails on purpose fills no disk."""

_PATTERNS = (
    ("out_of_memory", r"not enough memory|DefaultCPUAllocator|allocate memory|out of memory|bad_alloc"
                      r"|Storage size calculation overflowed"),
    ("shape", r"^Dimension out of range"),
    ("index_out_of_range", r"out of (range|bounds)|not in the valid range|Class values must be|invalid max index"
                           r"|exceeds dimension size"),
    ("value", r"or element < 0"),
    ("not_finite", r"not finite|non-finite|\binfs? (or|and) nan|`inf`, `nan`|float (nan|infinity) to integer"),
    ("dtype", r"not implemented for|same (data ?|d)type|expected (scalar |target d)type|found dtype"),
    ("value", r"ZeroDivisionError|singular|positive-definite|ill-conditioned|non-negative|can ?not be negative"
              r"|between 0 and 1|p_in|elements? of std|range \[0, 1\]|sum of probabilities"),
    ("shape", r"\bshapes?\b|\bsizes?\b|\bdimensions?\b|\bdim\b|\d-d\b|1D vector|must match|same length"
              r"|channels?\b"),
)  # fmt: skip
_COMPILED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _PATTERNS)


def of_error(error: BaseException) -> str:
    """The kind of what an action raised, by its type and its text."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "ZeroDivisionError" in names:
        return "value"
    if names & {"MemoryError", "OutOfMemoryError"}:
        return "out_of_memory"
    text = str(error)[:2000]
    found = next((kind for kind, pattern in _COMPILED if pattern.search(text)), "other")
    if "Broken" in names:
        return found if found == "index_out_of_range" else "contract"
    if found == "other" and "IndexError" in names:
        return "index_out_of_range"
    return found


class Scribe:
    """What the owner is told of a failure: the worker's whole text, as lines that can do a terminal no harm."""

    def __init__(self) -> None:
        self._hour, self._left = 0.0, HOURLY

    def lines(self, text: object, now: float) -> Iterator[str]:
        """The text's lines, its last ones if there are too many; none of it if there was too much of late."""
        if not 0 <= now - self._hour < 3600:
            self._hour, self._left = now, HOURLY
        if not isinstance(text, str) or not text:
            return
        if self._left <= 0:
            yield "(more of this than a log should hold in an hour)"
            return
        kept = text[-MOST_TEXT:].splitlines()[-MOST_LINES:]
        self._left -= sum(len(line) + LINE for line in kept)
        yield from map(printable, kept)


def printable(line: str) -> str:
    """The line with what a terminal would not print escaped as Python would."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def checked(kind: object) -> str:
    """The kind, if it is one that a worker may name."""
    return kind if isinstance(kind, str) and kind in KINDS.keys() - {"killed", "deadline"} else "other"
