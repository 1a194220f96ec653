"""What a device bears of one requester: ``limits`` in its ``device.json``. Pure.

They count what is the requester's own, and open values; so what they say tells nothing of private bytes. What
private calls made counts against the device's own limit, of which its owner alone is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedq.errors import UsageError
from fedq.queue.message import Failure

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Most of what there may be of one requester.

    Attributes:
        message_bytes: of one message's file.
        messages: messages and replies that wait; further files stay in ``in/``.
        stored_bytes: of its values, and of its messages that are not done.
        published_bytes: of replies that are asked for, or out and not acknowledged.
        repeated_bytes: of these, of values that are in another such reply, too.
        plans, plan_bytes: its plans.
        private_bytes: of what private calls made, of all requesters: more of them wait for room.
    """

    message_bytes: int = GIB
    messages: int = 200_000
    stored_bytes: int = 16 * GIB
    published_bytes: int = GIB
    repeated_bytes: int = 64 << 20
    plans: int = 20_000
    plan_bytes: int = 4 * GIB
    private_bytes: int = 64 * GIB

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Limits:
        """What ``device.json`` says; UsageError for a word or number that is none."""
        told = dict(said.get("limits", {}))
        if "most_waiting" in said:
            told.setdefault("messages", said["most_waiting"])
        names = [field.name for field in fields(cls)]
        for name, most in told.items():
            if name not in names:
                raise UsageError(f"device.json: unknown limit {name!r}", hint=f"known limits: {', '.join(names)}")
            if type(most) is not int or most < 1:
                raise UsageError(f"device.json: limit {name!r} is a whole number, 1 or more")
        return cls(**told)


FREES = {
    "stored_bytes": "drop values that you do not need",
    "published_bytes": "read replies that came, or drop their values: what is acknowledged frees room",
    "repeated_bytes": "read replies that came: one reply of a value is enough",
    "plans": "the device lets go of plans a month after their last use",
    "plan_bytes": "the device lets go of plans a month after their last use",
}
"""Of each limit that a requester can pass, what frees room."""
_WHAT = {
    "stored_bytes": "bytes of your values and messages on the device",
    "published_bytes": "bytes of replies that were not acknowledged",
    "repeated_bytes": "bytes of values that are in several of your replies",
    "plans": "plans of yours",
    "plan_bytes": "bytes of your plans",
}


def refused(which: str, most: int, there: int, more: int) -> Failure:
    """There is no room for so much more."""
    text = f"no room: {there:,} + {more:,} {_WHAT[which]}, of at most {most:,}"
    hint = FREES[which] if more <= most else f"that is more than all room: its owner sets limits.{which} in device.json"
    return Failure("quota", text, {"which": which, "most": most, "there": there, "more": more, "hint": hint})
