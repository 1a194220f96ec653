"""What runs in ``make test``, and what only in ``make test-more``: rows of one kind beyond the first few."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

more = pytest.mark.more
scaled = pytest.mark.scaled
MORE = bool(os.environ.get("FEDQ_MORE"))
"""Whether tests marked ``scaled`` are to do all that they know."""


def rows(all_: Iterable[Any], few: Collection[Any]) -> list[Any]:
    """Parameters of a test; those that are not among the few run in ``make test-more``."""
    return [row if row in few else pytest.param(row, marks=more) for row in all_]


def share(all_: Iterable[Any], each: int) -> Sequence[Any]:
    """Every ``each``-th of them, or all where ``make test-more`` runs; for tests marked ``scaled``."""
    return list(all_)[:: 1 if MORE else each]
