"""The one door: may a value be given to a worker, may it leave. Rules of owners' values, and what follows from them.

What may happen to a result follows from the rules of *all* the owner's values it came from: they add
up, and are not ranked. A rule that is not known, or that this version cannot enforce, opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedq.errors import UsageError

OPEN, REVIEW = "open", "review"
"""``open``: whoever is trusted may compute on it and have the results. ``review``: the owner is asked each time."""
PLANNED = ("aggregate", "dp", "update")
ENFORCED = (OPEN, REVIEW)
DEFAULT = REVIEW

LOOK, APPROVE = "look", "approve"
"""What an owner may say to a question: run it and show me the outcome; run it and release it."""


def is_open(rules: Sequence[str]) -> bool:
    """Whether nobody need be asked: every source is open. A requester's own values have no source."""
    return rules.count(OPEN) == len(rules)


def may_be_given(rules: Sequence[str], word: str) -> bool:
    """Whether values that come from sources with these rules may be handed to a worker.

    Args:
        word: the owner's, for a question that needs this call; "" if nothing was said.
    """
    return is_open(rules) or (word in (LOOK, APPROVE) and _are_enforced(rules))


def may_leave(rules: Sequence[str], word: str) -> bool:
    """Whether a value that comes from sources with these rules may be put into the reply that ``word`` is about."""
    return is_open(rules) or (word == APPROVE and _are_enforced(rules))


def _are_enforced(rules: Iterable[str]) -> bool:
    """Whether a word is enough: for a rule that this version cannot enforce, none is."""
    return all(rule in ENFORCED for rule in rules)


def check_rule(rule: str) -> str:
    """The rule itself, if this version can enforce it."""
    if rule not in ENFORCED:
        known = " (planned, not there yet)" if rule in PLANNED else ""
        raise UsageError(f"release rule {rule!r}{known}", hint=f"use one of: {', '.join(ENFORCED)}")
    return rule
