"""Numbers that a plan takes above 0 only: it was recorded so, where torch would else go another way. Knows no torch.

What an `About` refuses names them: ``given['momentum'] <= 0``. A plan holds no condition on values;
whoever knows a value looks here before it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedq.errors import SpecMismatch
from fedq.plan.graph import About
from fedq.plan.spec import place

HINT = "the plan was recorded for numbers above 0: build another one, with it left out of given"


def refusal(path: str) -> str:
    """How it is written that an input must be above 0."""
    return f"{path} <= 0"


def check(about: About, values: Sequence[Any]) -> None:
    """SpecMismatch for a value that is not above 0; those that are not known are None.

    The message does not tell the value: it may be a private one.
    """
    for i in about.above_zero:
        value = values[i]
        if value is not None and not value > 0:
            raise SpecMismatch(
                f"{place(about, i)}: a number above 0 expected",
                hint=HINT,
            )
