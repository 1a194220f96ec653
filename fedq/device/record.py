"""Who asked for what on which data, what was decided by whom, what left, what failed: `fedq device log`.

Questions, words, what left by them, failures and ends are remembered (`journal.events`, `questions`); what left
of open values is told as long as the device keeps the replies. Only reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq.device import review
from fedq.device.home import Home
from fedq.device.journal import OWNER, Answer, Event, QuestionRow
from fedq.plan import typed
from fedq.plan.graph import Type
from fedq.queue.message import Failure


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Attributes:
        time: seconds since 1970.
        what: ``asked``, a word (``look``, ``approve``, ``deny``), ``left``, ``failed``, ``held``, ``restarted``, ...
        requester, ref: whose, and which reply or call.
        by: the owner's Unix user, of a word.
        tags: of the owner's values that it is about.
        text: for people; may have lines.
        facts: for programs.
    """

    time: float
    what: str
    requester: str
    ref: str
    by: str = ""
    tags: tuple[str, ...] = ()
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def entries(home: Home, *, requester: str = "", tag: str = "", since: float = 0.0) -> list[Entry]:
    """All that is remembered, the oldest first.

    Args:
        requester: only of this one, by name or the beginning of it; tag: only about values with this tag.
        since: seconds since 1970.
    """
    rows = home.journal.questions(ended=True)
    questions = {(row.sender, row.reply): row for row in rows}
    calls = {(row.sender, f"{m}:{a}"): row for row in rows for m, a, *_ in row.about["calls"]}
    found = [
        *map(_asked, rows),
        *(e for row in rows for e in _ended(row)),
        *_happened(home.journal.events(), questions, calls),
        *_left_open(home, home.journal.answers(), questions),
    ]
    kept = (e for e in found if e.time >= since and review.is_of(e.requester, requester) and tag in (*e.tags, ""))
    return sorted(kept, key=lambda e: e.time)


def _tags(row: QuestionRow | None) -> tuple[str, ...]:
    """Tags, or ids where there are none, of what a question reads."""
    return tuple(row.about.get("tags", {}).get(i, i) for i in row.about["reads"]) if row is not None else ()


def _asked(row: QuestionRow) -> Entry:
    graphs = row.about.get("graphs", {})
    facts = {"values": row.about["values"], "plans": {p: {"name": n, "graph": g} for p, (n, g) in graphs.items()}}
    return Entry(row.received, "asked", row.sender, row.reply, "", _tags(row), "; ".join(row.about["chain"]), facts)


_ENDS = {"expired": "its owner said nothing", "replaced": "a value that it reads was replaced by {why}",
         "removed": "a value that it reads was removed", "cancelled": "by its sender"}  # fmt: skip


def _ended(row: QuestionRow) -> Iterator[Entry]:
    """What took the place of a word."""
    if row.word in _ENDS:
        text = _ENDS[row.word].format(why=row.why)
        yield Entry(row.decided or row.until, row.word, row.sender, row.reply, "", _tags(row), text)


def _happened(
    events: Iterable[Event],
    questions: Mapping[tuple[str, str], QuestionRow],
    calls: Mapping[tuple[str, str], QuestionRow],
) -> Iterator[Entry]:
    for e in events:
        row = questions.get((e.sender, e.ref)) or calls.get((e.sender, e.ref))
        if e.kind == "left":
            id_, _, kind = e.text.partition(" ")
            yield _left(e.time, e.sender, e.ref, id_, kind, _tags(row))
        elif e.kind.startswith("data "):
            tag, text = json.loads(e.text)
            yield Entry(e.time, e.kind, e.sender, e.ref, e.by, (tag,), text)
        else:
            yield Entry(e.time, e.kind, e.sender, e.ref, e.by, _tags(row), e.text)


def _left(time: float, sender: str, reply: str, id_: str, kind: str, tags: tuple[str, ...]) -> Entry:
    """``kind``: a type, or the code of a failure that was told instead."""
    size = typed.size_bytes(Type.parse(kind)) if "[" in kind else 8 if kind in ("int", "float", "bool") else None
    facts = {"id": id_, "type": kind, "bytes": size} if size is not None else {"id": id_, "failure": kind}
    text = f"{id_} {kind}" + (f" {size} B" if size is not None else ", a failure")
    return Entry(time, "left", sender, reply, "", tags, text, facts)


def _left_open(
    home: Home, answers: Sequence[Answer], questions: Mapping[tuple[str, str], QuestionRow]
) -> Iterator[Entry]:
    """What left without a word: open values, and what came of them."""
    for answer in (a for a in answers if (a.sender, a.reply) not in questions):
        for name in answer.ids:
            id_, scope = name.removeprefix("@"), OWNER if name.startswith("@") else answer.sender
            allowed, value = answer.allowed.get(id_), home.journal.once(scope, id_)
            kind = allowed.code if isinstance(allowed, Failure) else str(value.type).partition("=")[0] if value else "?"
            sources = [id_] if scope == OWNER else sorted(value.sources) if value else []
            tags = (v.tag or i for i in sources if (v := home.journal.once(OWNER, i)) is not None)
            if allowed is not None:
                yield _left(answer.time, answer.sender, answer.reply, id_, kind, tuple(tags))
