"""Whether values are finite. Needs torch.

Most are: so first a sum is looked at, which is one op and not finite if any element is not. A sum
can overflow, too; only where it is not finite, each element is looked at.
"""

from __future__ import annotations

import cmath
from collections.abc import Iterable
from typing import Any

import torch

_SMALL = (torch.float8_e4m3fn, torch.float8_e5m2)


def all_of(values: Iterable[Any]) -> bool:
    """Whether all are finite; integers and bools always are."""
    values = [x for x in values if _can_be_otherwise(x)]
    return cmath.isfinite(sum(map(_sum, values))) or all(map(is_finite, values))


def is_finite(value: Any) -> bool:
    """Whether a tensor or number is finite in every element."""
    if not _can_be_otherwise(value) or cmath.isfinite(_sum(value)):
        return True
    return isinstance(value, torch.Tensor) and bool(torch.isfinite(_wide(value)).all())


def _can_be_otherwise(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, float)


def _sum(value: Any) -> complex:
    return _wide(value).sum().item() if isinstance(value, torch.Tensor) else value


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in _SMALL else value
