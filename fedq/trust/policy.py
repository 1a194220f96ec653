"""What may leave: the release rules of values, and how results inherit them.

A result inherits the strictest rule of what it was computed from; what a requester sent itself
is its own, so ``open`` to it. A rule this version can not enforce is refused where it is given,
never treated as a weaker one.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedq.errors import UsageError

RULES = ("open", "aggregate", "dp", "update", "review")
"""From the weakest to the strictest: ``review`` asks a person."""
ENFORCED = ("open", "review")
DEFAULT = "review"


def strictest(rules: Iterable[str]) -> str:
    """The rule of a result made from values with these rules; of nothing private: ``open``."""
    return max(rules, key=RULES.index, default="open")


def check_rule(rule: str) -> str:
    """The rule itself, if this version can enforce it."""
    if rule not in ENFORCED:
        known = " (planned, not there yet)" if rule in RULES else ""
        raise UsageError(f"release rule {rule!r}{known}", hint=f"use one of: {', '.join(ENFORCED)}")
    return rule
