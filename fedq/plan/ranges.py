"""Numbers that a plan takes above 0 only: it was recorded so, where torch would else go another way. Knows no torch.

What an `About` refuses names them: ``given['momentum'] <= 0``. A plan holds no condition on values;
whoever knows a value looks here before it is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedq.errors import SpecMismatch
from fedq.plan.graph import About
from fedq.plan.spec import place

_TO_ZERO = " <= 0"


def refusal(path: str) -> str:
    """How it is written that an input must be above 0."""
    return f"{path}{_TO_ZERO}"


def above_zero(about: About) -> list[int]:
    """The inputs that must be above 0."""
    return [i for i, path in enumerate(about.params) if refusal(path) in about.refused]


def shown(about: About) -> Iterator[str]:
    """Each of them as a condition: ``given['momentum'] > 0``."""
    return (f"{about.params[i]} > 0" for i in above_zero(about))


def check(about: About, values: Sequence[Any]) -> None:
    """SpecMismatch for a value that is not above 0; those that are not known are None.

    The message does not tell the value: it may be a private one.
    """
    for i in above_zero(about):
        value = values[i]
        if value is not None and not value > 0:
            raise SpecMismatch(
                f"{place(about, i)}: a number above 0 expected",
                hint="the plan was recorded for numbers above 0: build another one, with it left out of given",
            )
