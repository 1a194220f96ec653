"""Python's cycle collector rests while many records are made or read.

They hold no cycles, and it would go over all of them again and again: half of the time of a
sending of 20,000 calls, more in a large program. Where it is off already it stays off.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


class Rest:
    """The collector's rest from `begin` to `end`; each may be called again."""

    __slots__ = ("_ours",)

    def __init__(self) -> None:
        self._ours = False

    def begin(self) -> None:
        if gc.isenabled():
            gc.disable()
            self._ours = True

    def end(self) -> None:
        if self._ours:
            gc.enable()
            self._ours = False


@contextmanager
def collector_rests() -> Iterator[None]:
    """Also usable as a decorator. Short: never around a wait."""
    rest = Rest()
    rest.begin()
    try:
        yield
    finally:
        rest.end()
