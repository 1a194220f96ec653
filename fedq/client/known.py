"""What a process knows of a pair without asking its outbox: of what other processes did, as of its start.

Pure memory. What it holds and the outbox's file does not is nothing that a crash may not take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from fedq.client.draft import Sent

MANY = 200_000
"""Ids remembered of each kind: 50 MB. Of others the file is asked."""


@dataclass(slots=True)
class Known:
    """One pair.

    Attributes:
        taken: values that the device is still to be told to drop -> their message, if known.
        acks: replies that it is still to be told of.
        unsaid, untaken: those of ``acks`` and ``taken`` that the file does not know of.
        read: replies that were taken away, which the file still knows.
        made: values promised here that were not taken away -> their message.
        asked: values that were asked for here and not taken away.
        asked_as: the replies to them, of messages of this process.
        lasting: values made, and replies asked for, that are never taken away.
        foreign: values that are not this requester's.
    """

    taken: dict[str, str | None]
    acks: set[str]
    unsaid: set[str] = field(default_factory=set)
    untaken: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    made: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    asked_as: set[str] = field(default_factory=set)
    lasting: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)

    def promised(self, part: Sent, *, lasting: bool = False) -> None:
        """A message stands in the file."""
        if max(len(self.made), len(self.asked), len(self.asked_as)) > MANY:
            for some in (self.made, self.asked, self.asked_as, self.lasting):
                some.clear()
        if lasting:
            self.lasting.update(part.values, part.replies.values())
        self.made.update(dict.fromkeys(part.values, part.id))
        self.asked_as.update(part.replies.values())
        self.foreign.difference_update(part.values)
        self.asked.update(part.replies)
        for value in part.drops:
            self.taken.pop(value, None)
        self.untaken.difference_update(part.drops)
        self.acks.difference_update(part.acks)

    def taken_back(self, part: Sent) -> None:
        """A message does not stand there any more: it could not be put."""
        for value in part.values:
            self.made.pop(value, None)

    def take(self, values: Iterable[str]) -> dict[str, str | None]:
        """The requester has these values; their messages, where known."""
        made = {value: self.made.pop(value, None) for value in values}
        self.taken.update(made)
        self.untaken.update(made)
        self.asked.difference_update(made)
        return made

    def acknowledge(self, reply: str) -> None:
        self.acks.add(reply)
        self.unsaid.add(reply)

    def written(self, *, everything: bool) -> None:
        """The file knows what it did not: what rides in a commit, or all of it."""
        self.unsaid.clear()
        if everything:
            self.read.clear()
            self.untaken.clear()

    def note_foreign(self, ids: Collection[str]) -> None:
        """These are not this requester's."""
        if len(self.foreign) > MANY:
            self.foreign.clear()
        self.foreign.update(ids)
