"""What runs in ``make test``, and what only in ``make test-more``: rows of one kind beyond the first few."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

more = pytest.mark.more


def rows(all_: Iterable[Any], few: Collection[Any]) -> list[Any]:
    """Parameters of a test; those that are not among the few run in ``make test-more``."""
    return [row if row in few else pytest.param(row, marks=more) for row in all_]
