"""A device's private record: messages seen, values, plans, replies, approvals. SQLite, WAL.

One file per device on its own disk, never on the share. Keys of everything a requester names
are (sender, id); the owner's own values have the scope ``""``. A row that stands is a promise
kept over crashes: callers group what must appear together in ``with journal.transaction()``.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.device.calls import GATE_ENDS, Ends
from fedq.errors import FedqError
from fedq.plan import typed
from fedq.plan.graph import Type
from fedq.queue.message import Failure
from fedq.trust import policy

NOTHING = Type("str")
"""The type of a value that is a failure."""
OWNER = ""
"""The scope of the owner's values: every trusted requester may refer to them."""

REMOVED = Failure("removed", "its owner removed a value that it reads")
KEEPING = ("look", "approve")
"""Words that keep the versions of all that a question reads, to its end."""

MOST_FORESEEN, MOST_FORESEEN_TEXT = 2000, 1 << 16
"""Graphs whose types are kept for the owner's next look, and characters of each."""

MOST_EVENTS = 100_000
"""A failure is remembered until so much happened after it."""

VALUE_BYTES = 100
"""Of a value besides its data, about."""

CACHED = 100_000
"""Ids remembered at most between transactions."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages(
  sender TEXT, id TEXT, digest TEXT NOT NULL, received REAL NOT NULL, expires REAL NOT NULL,
  state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, file BLOB, PRIMARY KEY(sender, id));
CREATE INDEX IF NOT EXISTS open_messages ON messages(state) WHERE state != 'done';
CREATE TABLE IF NOT EXISTS vals(
  scope TEXT, id TEXT, tag TEXT, type TEXT NOT NULL, release TEXT NOT NULL, message TEXT, created REAL NOT NULL,
  data BLOB, failure TEXT, dropped INTEGER NOT NULL DEFAULT 0, sources TEXT NOT NULL DEFAULT '', gone TEXT,
  PRIMARY KEY(scope, id));
CREATE INDEX IF NOT EXISTS tagged ON vals(scope, tag) WHERE tag IS NOT NULL;
CREATE TABLE IF NOT EXISTS plans(
  scope TEXT, id TEXT, name TEXT NOT NULL, file BLOB, failure TEXT, PRIMARY KEY(scope, id));
CREATE TABLE IF NOT EXISTS replies(
  sender TEXT, id TEXT, message TEXT NOT NULL, ids TEXT NOT NULL, state TEXT NOT NULL, allowed TEXT,
  PRIMARY KEY(sender, id));
CREATE INDEX IF NOT EXISTS open_replies ON replies(state) WHERE state NOT IN ('published', 'acked');
CREATE TABLE IF NOT EXISTS published(
  sender TEXT, id TEXT, digest TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY(sender, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops(
  sender TEXT, message TEXT, ids TEXT NOT NULL, after TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cancels(
  sender TEXT, message TEXT, expires REAL NOT NULL, PRIMARY KEY(sender, message)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS drops_of ON drops(sender, message);
CREATE INDEX IF NOT EXISTS done_messages ON messages(expires) WHERE state = 'done';
CREATE INDEX IF NOT EXISTS vals_of ON vals(scope, message);
CREATE INDEX IF NOT EXISTS replies_of ON replies(sender, message);
CREATE INDEX IF NOT EXISTS unacknowledged ON replies(sender) WHERE state = 'published';
CREATE TABLE IF NOT EXISTS uses(
  scope TEXT, plan TEXT, until REAL NOT NULL, PRIMARY KEY(scope, plan)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS started(batch INTEGER PRIMARY KEY, sender TEXT NOT NULL, calls TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ends(
  sender TEXT, message TEXT, action INTEGER, workers INTEGER NOT NULL DEFAULT 0, gates INTEGER NOT NULL DEFAULT 0,
  time REAL NOT NULL DEFAULT 0, kind TEXT NOT NULL DEFAULT '', why TEXT NOT NULL DEFAULT '',
  PRIMARY KEY(sender, message, action)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failed(
  sender TEXT, id TEXT, time REAL NOT NULL, reason TEXT NOT NULL, PRIMARY KEY(sender, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten(sender TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS time(high REAL NOT NULL, leapt REAL NOT NULL);
CREATE TABLE IF NOT EXISTS counts(one INTEGER PRIMARY KEY CHECK(one = 1), boot INTEGER NOT NULL, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS fence(time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS spared(sender TEXT, id TEXT, PRIMARY KEY(sender, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes(
  scope TEXT, id TEXT, note TEXT NOT NULL, allowed TEXT, PRIMARY KEY(scope, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS made(
  sender TEXT, id TEXT, message TEXT NOT NULL, action INTEGER NOT NULL, about TEXT NOT NULL,
  PRIMARY KEY(sender, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS made_of ON made(sender, message);
CREATE TABLE IF NOT EXISTS questions(
  sender TEXT, reply TEXT, received REAL NOT NULL, until REAL NOT NULL, state TEXT NOT NULL, about TEXT NOT NULL,
  bound TEXT NOT NULL, word TEXT NOT NULL DEFAULT '', why TEXT NOT NULL DEFAULT '', decided REAL,
  PRIMARY KEY(sender, reply)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events(
  n INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, sender TEXT NOT NULL, ref TEXT NOT NULL,
  by TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS again(
  sender TEXT, same TEXT, word TEXT NOT NULL, why TEXT NOT NULL, time REAL NOT NULL, by TEXT NOT NULL,
  PRIMARY KEY(sender, same)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS foreseen(key TEXT PRIMARY KEY, types TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shares(
  sender TEXT, id TEXT, bytes INTEGER NOT NULL, repeated INTEGER NOT NULL, PRIMARY KEY(sender, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS open_questions ON questions(state) WHERE state != 'ended';
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A row of the store. ``data`` is None when the bytes are in a file (or there are none).

    Attributes:
        release: of an owner's value, its rule; of a requester's own, "".
        sources: the owner's values, by id, that a requester's value came from.
    """

    scope: str
    id: str
    tag: str | None
    type: Type
    release: str = ""
    data: bytes | None = None
    failure: Failure | None = None
    sources: frozenset[str] = frozenset()

    @property
    def in_file(self) -> bool:
        """Whether its bytes are not here."""
        return self.data is None and self.failure is None and self.type.is_tensor


def failed(scope: str, id_: str, failure: Failure, sources: frozenset[str] = frozenset()) -> Value:
    """A value that is a failure; without sources if public facts alone tell of it."""
    return Value(scope, id_, None, NOTHING, "", None, failure, sources)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ``get`` that has not been answered: which values under which reply id.

    Attributes:
        owners: those of the values that are the owner's.
        allowed: once that was decided, what may leave: of each value its digest, or the failure told instead.
    """

    sender: str
    id: str
    message: str
    ids: tuple[str, ...]
    state: str
    owners: frozenset[str] = frozenset()
    allowed: Mapping[str, str | Failure] | None = None


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question as recorded.

    Attributes:
        received, until: seconds since 1970.
        state: ``waits``, ``looked`` when its outcome is there for a second word, or ``ended``.
        about: what it is about, for people; see `device.questions`.
        bound: a digest of all that a word is for.
        word: what was said last: "", ``look``, ``approve``, ``deny``, ``replaced``, ``removed``, or ``expired``.
    """

    sender: str
    reply: str
    received: float
    until: float
    state: str
    about: Mapping[str, Any]
    bound: str
    word: str = ""
    why: str = ""
    decided: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: when (seconds since 1970), of which kind, about whose message or reply, by whom."""

    time: float
    kind: str
    sender: str
    ref: str
    by: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that was published; ``ids``: an owner's value has a ``@`` before it."""

    sender: str
    reply: str
    time: float
    ids: tuple[str, ...]
    allowed: Mapping[str, str | Failure]


@dataclass(frozen=True, slots=True)
class Taken:
    """A message as recorded. ``file`` is None when its bytes are in the spool; ``attempts`` is not used any more."""

    sender: str
    id: str
    digest: str
    received: float
    expires: float
    state: str
    attempts: int
    file: bytes | None


@dataclass(frozen=True, slots=True)
class Gone:
    """What was let go of: keys of messages, replies whose files may still be out, and values."""

    messages: list[tuple[str, str]]
    replies: list[tuple[str, str]]
    values: list[tuple[str, str]]


_COLLECTABLE = """
SELECT sender, id, expires FROM messages m WHERE state = 'done' AND expires < ? AND received < ?
AND NOT EXISTS (
  SELECT 1 FROM replies r LEFT JOIN published p ON p.sender=r.sender AND p.id=r.id
  WHERE r.sender=m.sender AND r.message=m.id AND r.state != 'acked' AND (r.state != 'published' OR p.time > ?))
AND NOT EXISTS (SELECT 1 FROM drops d WHERE d.sender=m.sender AND d.message=m.id) LIMIT ?
"""
_VALUE = "scope, id, tag, type, release, data, failure, sources"
_QUESTION = "sender, reply, received, until, state, about, bound, word, why, decided"


class Journal:
    """All statements on one device's record; values are cached until another process writes."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._db = fs.database(path, durable=durable)
        self._db.executescript(_SCHEMA)
        self._known: dict[tuple[str, str], Value | None] = {}
        self._dropped: set[tuple[str, str]] = set()
        self._allowed: dict[str, frozenset[str]] | None = None
        self._rules: dict[str, str] = {}
        self._open: dict[frozenset[str], bool] = {}
        self._added: list[tuple[Any, ...]] = []
        self._until: dict[str, float] = {}
        self._uses: dict[tuple[str, str], float] = {}
        self._cancels: dict[str, bool] = {}
        self._fence: float | None = None
        self._version = self._data_version()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable when it ends."""
        if len(self._known) > CACHED:
            self._forget()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._write_added()
            self._db.execute("COMMIT")
        except BaseException:
            self._added.clear()
            self._forget()
            if self._db.in_transaction:
                with suppress(FedqError):
                    self._db.execute("ROLLBACK")
            raise

    def _forget(self) -> None:
        self._allowed = None
        self._rules.clear()
        self._open.clear()
        self._known.clear()
        self._dropped.clear()
        self._until.clear()
        self._uses.clear()
        self._cancels.clear()
        self._fence = None

    def _data_version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def changed_elsewhere(self) -> bool:
        """Whether another process wrote since the last call; forgets what was cached if so."""
        version, self._version = self._version, self._data_version()
        if version != self._version:
            self._forget()
        return version != self._version

    # -- messages

    def message(self, sender: str, id_: str) -> Taken | None:
        row = self._db.execute("SELECT * FROM messages WHERE sender=? AND id=?", (sender, id_)).fetchone()
        return Taken(*row) if row else None

    def seen(self, sender: str, id_: str) -> str | None:
        """The digest of the message taken under this id."""
        row = self._db.execute("SELECT digest FROM messages WHERE sender=? AND id=?", (sender, id_)).fetchone()
        return row[0] if row else None

    def take(self, message: Taken) -> None:
        row = (message.sender, message.id, message.digest, message.received, message.expires, message.state)
        self._db.execute("INSERT INTO messages VALUES(?,?,?,?,?,?,?,?)", (*row, message.attempts, message.file))

    def open_messages(self) -> list[Taken]:
        return [Taken(*r) for r in self._db.execute("SELECT * FROM messages WHERE state != 'done' ORDER BY rowid")]

    def set_back(self, now: float) -> None:
        """No open message came later than now: a clock that was set back would let it wait for years."""
        self._db.execute("UPDATE messages SET received=? WHERE state != 'done' AND received > ?", (now, now))
        sql = "SELECT sender, message FROM replies WHERE state NOT IN ('published', 'acked')"
        self._db.execute(f"UPDATE messages SET received=? WHERE received > ? AND (sender, id) IN ({sql})", (now, now))

    def done(self, keys: Iterable[tuple[str, str]]) -> None:
        """These messages are finished; their bytes are forgotten, their ids and digests stay.

        The bytes stay, too, of a message that made private values: they show an owner what those were made of.
        """
        made = "SELECT 1 FROM made WHERE made.sender=messages.sender AND made.message=messages.id"
        sql = f"UPDATE messages SET state='done', file=CASE WHEN EXISTS ({made}) THEN file END WHERE sender=? AND id=?"
        self._db.executemany(sql, keys)

    def set_made(self, sender: str, message: str, action: int, about: Mapping[str, Any]) -> None:
        """How private values came to be, for whoever is asked for them later."""
        rows = [(sender, id_, message, action, json.dumps(about)) for id_ in about["results"]]
        self._db.executemany("INSERT OR REPLACE INTO made VALUES(?,?,?,?,?)", rows)

    def made(self, sender: str, id_: str) -> tuple[str, int, dict[str, Any]] | None:
        """Message, action and what is told of the call that gave a private value."""
        sql = "SELECT message, action, about FROM made WHERE sender=? AND id=?"
        row = self._db.execute(sql, (sender, id_)).fetchone()
        return (row[0], row[1], json.loads(row[2])) if row else None

    # -- attempts

    def start(self, sender: str, calls: Iterable[tuple[str, int]]) -> int:
        """Calls, (message, action), are about to be handed to a worker; the number of the batch.

        Written before they start: what is found here after a restart, the gate's end interrupted.
        """
        row = self._db.execute("INSERT INTO started(sender, calls) VALUES(?,?)", (sender, _calls_text(calls)))
        return int(row.lastrowid or 0)

    def ended(self, batches: Iterable[int]) -> None:
        """These batches came to an end, with or without answers."""
        self._db.executemany("DELETE FROM started WHERE batch=?", ((n,) for n in batches))

    def charge_gate(self, now: float) -> None:
        """The gate ended while these were running: count that, for each call; `forget_started` is to follow."""
        rows = self._db.execute("SELECT sender, calls FROM started").fetchall()
        calls = [(sender, *call, now) for sender, text in rows for call in _calls(text)]
        sql = "INSERT INTO ends(sender, message, action, gates, time) VALUES(?,?,?,1,?) "
        self._db.executemany(sql + "ON CONFLICT DO UPDATE SET gates=gates+1, time=excluded.time", calls)
        if calls:
            self.record("restarted", "", "", f"{len(calls)} under way when the last gate ended", now=now)
        for (sender, message, action), ends in self.ends().items() if calls else ():
            if ends.gates == GATE_ENDS and ends.time == now:
                self.record("held", sender, f"{message}:{action}", "the gate ended five times while it ran", now=now)

    def forget_started(self) -> None:
        """Nothing is running any more."""
        self._db.execute("DELETE FROM started")

    def set_ends(self, sender: str, message: str, action: int, ends: Ends) -> None:
        row = (sender, message, action, ends.workers, ends.gates, ends.time, ends.kind, ends.why)
        self._db.execute("INSERT OR REPLACE INTO ends VALUES(?,?,?,?,?,?,?,?)", row)

    def ends(self) -> dict[tuple[str, str, int], Ends]:
        """By (sender, message, action), of calls in whose time something ended."""
        return {tuple(row[:3]): Ends(*row[3:]) for row in self._db.execute("SELECT * FROM ends ORDER BY time")}

    def forget_ends(self, sender: str, message: str, action: int | None = None) -> None:
        """Of a call that is done; without an action, of all calls of a message."""
        sql = "DELETE FROM ends WHERE sender=? AND message=? AND ifnull(? = action, 1)"
        self._db.execute(sql, (sender, message, action))

    def stopped(self) -> dict[tuple[str, str, int], Ends]:
        """Calls that are held because the gate ended too often while they ran, the oldest first."""
        return {key: ends for key, ends in self.ends().items() if ends.gates >= GATE_ENDS}

    def resume(self, sender: str, message: str) -> None:
        """The owner lets the held calls of a message go on."""
        sql = "UPDATE ends SET gates=0 WHERE sender=? AND message=? AND gates >= ?"
        self._db.execute(sql, (sender, message, GATE_ENDS))

    # -- values

    def value(self, scope: str, id_: str) -> Value | None:
        """What stands under (scope, id), unless dropped."""
        key = (scope, id_)
        if key not in self._known:
            self.look_up(scope, [id_])
        return self._known[key]

    def created(self, scope: str, id_: str) -> float:
        """When a value was recorded, seconds since 1970; 0 if it was not."""
        self._write_added()
        row = self._db.execute("SELECT created FROM vals WHERE scope=? AND id=?", (scope, id_)).fetchone()
        return float(row[0]) if row else 0.0

    def exists(self, scope: str, id_: str) -> bool:
        """Whether the id was ever given a content, dropped or not."""
        return self.value(scope, id_) is not None or (scope, id_) in self._dropped

    def look_up(self, scope: str, ids: Iterable[str]) -> None:
        """Learn of many ids at once, of those that are not there too."""
        new = [i for i in ids if (scope, i) not in self._known]
        self._known.update(((scope, i), None) for i in new)
        for start in range(0, len(new), 500):
            some = new[start : start + 500]
            sql = f"SELECT dropped, {_VALUE} FROM vals WHERE scope=? AND id IN ({','.join('?' * len(some))})"
            for dropped, *row in self._db.execute(sql, (scope, *some)):
                if dropped:
                    self._dropped.add((scope, row[1]))
                else:
                    self._known[scope, row[1]] = _value(row)

    def standing(self, scope: str, ids: Iterable[str]) -> set[str]:
        """Those of the ids that were ever given a content, dropped or not."""
        ids = dict.fromkeys(ids)
        self.look_up(scope, ids)
        known, dropped = self._known, self._dropped
        return {i for i in ids if known[scope, i] is not None or (scope, i) in dropped}

    def add(self, values: Iterable[Value], *, message: str | None, now: float) -> list[Value]:
        """Record values whose ids are new, with the commit, and tell which; an id that stands keeps its content."""
        fresh, known, dropped = [], self._known, self._dropped
        for v in values:
            key = v.scope, v.id
            if key not in known:
                self.look_up(v.scope, [v.id])
            if known[key] is None and key not in dropped:
                known[key] = v
                told = _failure_text(v.failure), _names(v.sources)
                row = (*key, v.tag, str(v.type), v.release, message, now, v.data, *told)
                self._added.append(row)
                fresh.append(v)
        return fresh

    def _write_added(self) -> None:
        sql = (
            "INSERT INTO vals(scope, id, tag, type, release, message, created, data, failure, sources) "
            "VALUES(?,?,?,?,?,?,?,?,?,?)"
        )
        if self._added:
            self._db.executemany(sql, self._added)
            self._added.clear()

    def tagged(self, scope: str, tag: str | None = None) -> list[Value]:
        """Values of a scope that carry a tag (this one, if given), oldest first."""
        where = "tag IS NOT NULL" if tag is None else "tag = ?"
        sql = f"SELECT {_VALUE} FROM vals WHERE scope=? AND {where} AND NOT dropped ORDER BY created, id"
        return [_value(r) for r in self._db.execute(sql, (scope,) if tag is None else (scope, tag))]

    def annotate(self, scope: str, id_: str, note: str, allowed: Iterable[str] | None = None) -> None:
        """A note to a value, and the requesters who alone may know of it, if not all may."""
        row = (scope, id_, note, None if allowed is None else " ".join(allowed))
        self._db.execute("INSERT OR REPLACE INTO notes VALUES(?,?,?,?)", row)
        self._allowed = None

    def note(self, scope: str, id_: str) -> str:
        row = self._db.execute("SELECT note FROM notes WHERE scope=? AND id=?", (scope, id_)).fetchone()
        return row[0] if row else ""

    def may_see(self, requester: str, id_: str) -> bool:
        """Whether a requester may know of an owner's value: it is for all, or for it by name."""
        if self._allowed is None:
            rows = self._db.execute("SELECT id, allowed FROM notes WHERE scope=? AND allowed IS NOT NULL", (OWNER,))
            self._allowed = {value: frozenset(names.split()) for value, names in rows}
        return id_ not in self._allowed or requester in self._allowed[id_]

    def find(self, prefix: str) -> list[Value]:
        """Values of any scope whose id begins with the prefix."""
        sql = f"SELECT {_VALUE} FROM vals WHERE substr(id, 1, ?) = ? AND NOT dropped LIMIT 20"
        return [_value(r) for r in self._db.execute(sql, (len(prefix), prefix))]

    def drop(self, scope: str, ids: Iterable[str]) -> None:
        """Forget these values' contents; their ids stay taken."""
        self._write_added()
        keys = [(scope, id_) for id_ in ids]
        for key in keys:
            self._known.pop(key, None)
        self._db.executemany("UPDATE vals SET dropped=1, data=NULL, tag=NULL WHERE scope=? AND id=?", keys)

    # -- plans

    def add_plan(self, scope: str, id_: str, name: str, file: bytes | None, failure: Failure | None) -> None:
        text = _failure_text(failure)
        self._db.execute("INSERT OR IGNORE INTO plans VALUES(?,?,?,?,?)", (scope, id_, name, file, text))

    def plan(self, scope: str, id_: str) -> tuple[bytes | None, Failure | None] | None:
        row = self._db.execute("SELECT file, failure FROM plans WHERE scope=? AND id=?", (scope, id_)).fetchone()
        return (row[0], _failure(row[1])) if row else None

    def plans(self, scope: str) -> list[tuple[str, str]]:
        """(id, name) of the plans a requester sent that passed verification."""
        sql = "SELECT id, name FROM plans WHERE scope=? AND failure IS NULL ORDER BY rowid"
        return list(self._db.execute(sql, (scope,)))

    # -- replies

    def want(self, wanted: Wanted) -> bool:
        """Whether it was not known."""
        names = " ".join(_OWNERS + i if i in wanted.owners else i for i in wanted.ids)
        row = (wanted.sender, wanted.id, wanted.message, names, wanted.state)
        return self._db.execute("INSERT OR IGNORE INTO replies VALUES(?,?,?,?,?,NULL)", row).rowcount == 1

    def wanted(self) -> list[Wanted]:
        """Replies that are not published yet, oldest first."""
        sql = "SELECT * FROM replies WHERE state NOT IN ('published', 'acked') ORDER BY rowid"
        return [_wanted(row) for row in self._db.execute(sql)]

    def allow(self, sender: str, id_: str, allowed: Mapping[str, str | Failure]) -> None:
        """What leaves in a reply, once this is committed: digests of values, failures in the place of others."""
        row = _allowed_text(allowed), sender, id_
        self._db.execute("UPDATE replies SET state='allowed', allowed=? WHERE sender=? AND id=?", row)

    def reply(self, sender: str, id_: str) -> Wanted | None:
        row = self._db.execute("SELECT * FROM replies WHERE sender=? AND id=?", (sender, id_)).fetchone()
        return _wanted(row) if row else None

    def published(self, sender: str, id_: str) -> str | None:
        """The digest of the reply that was published under this id: it has no other content, ever."""
        row = self._db.execute("SELECT digest FROM published WHERE sender=? AND id=?", (sender, id_)).fetchone()
        return row[0] if row else None

    def set_published(self, rows: Sequence[tuple[str, str, str]], *, now: float) -> None:
        """Note (sender, reply, digest) of replies that are out."""
        self._db.executemany("INSERT OR IGNORE INTO published VALUES(?,?,?,?)", ((*row, now) for row in rows))
        self.set_reply([row[:2] for row in rows], "published")

    def set_reply(self, keys: Iterable[tuple[str, str]], state: str) -> None:
        self._db.executemany("UPDATE replies SET state=? WHERE sender=? AND id=?", ((state, *key) for key in keys))

    # -- room

    def set_shares(self, rows: Iterable[tuple[str, str, int, int]]) -> None:
        """What replies take: (sender, reply, bytes, bytes of values that are in another reply)."""
        self._db.executemany("INSERT OR REPLACE INTO shares VALUES(?,?,?,?)", rows)

    def free_shares(self, keys: Iterable[tuple[str, str]]) -> None:
        """These (sender, reply) take nothing any more."""
        self._db.executemany("DELETE FROM shares WHERE sender=? AND id=?", keys)

    def shares(self, sender: str) -> list[tuple[str, int, int, tuple[str, ...]]]:
        """Reply, bytes, repeated bytes and values, of what a requester did not acknowledge."""
        sql = "SELECT s.id, bytes, repeated, ifnull(ids, '') FROM shares s LEFT JOIN replies r "
        rows = self._db.execute(f"{sql} ON r.sender=s.sender AND r.id=s.id WHERE s.sender=?", (sender,))
        return [
            (id_, size, again, tuple(i.removeprefix(_OWNERS) for i in ids.split())) for id_, size, again, ids in rows
        ]

    def stored_bytes(self, scope: str) -> int:
        """Bytes of a requester's values that come from nothing private; each counts a little besides."""
        self._write_added()
        stand = "scope=? AND failure IS NULL AND NOT dropped"
        rows = self._db.execute(f"SELECT type, sources, count(*) FROM vals WHERE {stand} GROUP BY 1, 2", (scope,))
        open_ = [row for row in rows.fetchall() if policy.is_open(self.rules(row[1].split()))]
        return sum(count * (VALUE_BYTES + _bytes(type_)) for type_, _, count in open_)

    def private_bytes(self) -> int:
        """Bytes of all requesters' values that come from something private."""
        self._write_added()
        stand = "sources != '' AND failure IS NULL AND NOT dropped"
        rows = self._db.execute(f"SELECT type, sources, count(*) FROM vals WHERE {stand} GROUP BY 1, 2").fetchall()
        return sum(n * _bytes(type_) for type_, names, n in rows if not policy.is_open(self.rules(names.split())))

    def plans_size(self, scope: str) -> tuple[int, int]:
        """How many plans a requester has here, and their bytes; refused ones count."""
        sql = "SELECT count(*), ifnull(sum(length(file)), 0) FROM plans WHERE scope=?"
        count, size = self._db.execute(sql, (scope,)).fetchone()
        return int(count), int(size)

    def forget_plan(self, scope: str, id_: str) -> None:
        """A plan that was refused may be sent again."""
        self._db.execute("DELETE FROM plans WHERE scope=? AND id=? AND file IS NULL", (scope, id_))

    def add_drop(self, sender: str, message: str, ids: Iterable[str], after: Iterable[str]) -> int:
        """Record a drop still to do; its row. A message's drop is recorded once."""
        row, there = (sender, message, " ".join(ids), " ".join(after)), "sender=? AND message=? AND ids=? AND after=?"
        sql = f"INSERT INTO drops SELECT ?,?,?,? WHERE NOT EXISTS (SELECT 1 FROM drops WHERE {there})"
        made = self._db.execute(sql, (*row, *row))
        if made.rowcount == 1:
            return int(made.lastrowid or 0)
        return int(self._db.execute(f"SELECT rowid FROM drops WHERE {there}", row).fetchone()[0])

    def drops(self) -> list[tuple[int, str, list[str], list[str], float]]:
        """Drops still to do: row, sender, ids, messages to wait for, and till when."""
        sql = "SELECT d.rowid, d.sender, ids, after, m.expires FROM drops d LEFT JOIN messages m"
        rows = self._db.execute(f"{sql} ON m.sender=d.sender AND m.id=d.message")
        return [(n, sender, ids.split(), after.split(), expires or 0.0) for n, sender, ids, after, expires in rows]

    def dropped(self, row: int) -> None:
        self._db.execute("DELETE FROM drops WHERE rowid=?", (row,))

    def cancel(self, sender: str, messages: Iterable[str], expires: float) -> None:
        """Messages that did not come yet are not to be done when they do."""
        self._cancels.pop(sender, None)
        rows = ((sender, message, expires) for message in messages)
        self._db.executemany("INSERT OR IGNORE INTO cancels VALUES(?,?,?)", rows)

    def cancelled(self, sender: str, message: str) -> bool:
        """Whether it was cancelled before it came; of most senders nothing ever was."""
        if sender not in self._cancels:
            found = self._db.execute("SELECT 1 FROM cancels WHERE sender=? LIMIT 1", (sender,)).fetchone()
            self._cancels[sender] = found is not None
        row = (sender, message)
        sql = "SELECT 1 FROM cancels WHERE sender=? AND message=?"
        return self._cancels[sender] and self._db.execute(sql, row).fetchone() is not None

    # -- time, and what it takes away

    def time(self) -> tuple[float, float]:
        """The time as it was believed last, and the reading that was not believed yet."""
        found = self._db.execute("SELECT high, leapt FROM time").fetchone()
        return (found[0], found[1]) if found else (0.0, 0.0)

    def set_time(self, high: float, leapt: float) -> None:
        self._db.execute("DELETE FROM time")
        self._db.execute("INSERT INTO time VALUES(?,?)", (high, leapt))

    # -- starts, and what is written to pairs

    def count(self) -> tuple[int, int]:
        """The number of the last start, and of the card or catalog that was written last."""
        found = self._db.execute("SELECT boot, n FROM counts").fetchone()
        return tuple(found) if found else (0, 0)

    def begin_boot(self) -> int:
        """One more start: its number."""
        return self.set_boot(self.count()[0] + 1)

    def set_boot(self, boot: int) -> int:
        """The number of the last start is this, or greater."""
        sql = "INSERT INTO counts VALUES(1,?,0) ON CONFLICT DO UPDATE SET boot=max(boot, excluded.boot)"
        self._db.execute(sql, (boot,))
        return self.count()[0]

    def next_count(self) -> tuple[int, int]:
        """The count of a card or catalog that is to be written."""
        sql = "INSERT INTO counts VALUES(1,0,1) ON CONFLICT DO UPDATE SET n=n+1 RETURNING boot, n"
        return tuple(self._db.execute(sql).fetchone())

    def set_fence(self, time: float, spared: Iterable[tuple[str, str]]) -> None:
        """Messages of before this time may have been done before a restore, but for these."""
        self._db.execute("INSERT INTO fence VALUES(?)", (time,))
        self._db.executemany("INSERT OR IGNORE INTO spared VALUES(?,?)", spared)
        self._fence = None

    def fenced(self, sender: str, id_: str, created: float) -> bool:
        """Whether a message may have been done before this device was restored."""
        if self._fence is None:
            self._fence = float(self._db.execute("SELECT coalesce(max(time), -1) FROM fence").fetchone()[0])
        if created > self._fence:
            return False
        return not self._db.execute("SELECT 1 FROM spared WHERE sender=? AND id=?", (sender, id_)).fetchone()

    def forgotten(self, sender: str) -> float:
        """Messages of this sender that expire till then and are not known may have been: they have no effect."""
        if sender not in self._until:
            found = self._db.execute("SELECT until FROM forgotten WHERE sender=?", (sender,)).fetchone()
            self._until[sender] = found[0] if found else 0.0
        return self._until[sender]

    def collect(self, before: float, answered: float, needed: Container[tuple[str, str]], limit: int) -> Gone:
        """Let go of finished messages that expired before a time, and of what they made.

        That they were there is remembered in one number per sender, so that none is revived,
        whatever the clock says later. Questions to which an owner said a word, or time did, stay on record.

        Args:
            answered: replies that nobody acknowledged stay out if they were published after this.
            needed: (sender, value) of values that are still to be read.
        """
        gone = Gone([], [], [])
        self._until.clear()
        for sender, message, expires in self._db.execute(_COLLECTABLE, (before, before, answered, limit)).fetchall():
            key, made = (sender, message), "scope=? AND message=? AND tag IS NULL"
            values = [(sender, r[0]) for r in self._db.execute(f"SELECT id FROM vals WHERE {made}", key)]
            if any(v in needed for v in values):
                continue
            replies = self._db.execute("SELECT id, state FROM replies WHERE sender=? AND message=?", key).fetchall()
            gone.messages.append(key)
            gone.values.extend(values)
            gone.replies.extend((sender, id_) for id_, state in replies if state == "published")
            self._db.execute(f"DELETE FROM vals WHERE {made}", key)
            self._db.executemany("DELETE FROM published WHERE sender=? AND id=?", [(sender, r[0]) for r in replies])
            self.free_shares([(sender, r[0]) for r in replies])
            self._db.execute("DELETE FROM replies WHERE sender=? AND message=?", key)
            over = "DELETE FROM questions WHERE sender=? AND reply=? AND state='ended' AND word IN ('', 'cancelled')"
            self._db.executemany(over, [(sender, r[0]) for r in replies])
            self._db.execute("DELETE FROM messages WHERE sender=? AND id=?", key)
            self._db.execute("DELETE FROM made WHERE sender=? AND message=?", key)
            self.forget_ends(*key)
            self._db.execute(
                "INSERT INTO forgotten VALUES(?,?) ON CONFLICT DO UPDATE SET until=max(until, excluded.until)",
                (sender, expires),
            )
        self._db.execute("DELETE FROM cancels WHERE expires < ?", (before,))
        for value in gone.values:
            self._known.pop(value, None)
            self._dropped.discard(value)
        return gone

    def uses_plan(self, scope: str, plan: str, until: float) -> None:
        """A message that may come to be done until then needs the plan."""
        if until <= self._uses.get((scope, plan), 0.0) + 3600:
            return
        self._uses[scope, plan] = until
        self._db.execute(
            "INSERT INTO uses VALUES(?,?,?) ON CONFLICT DO UPDATE SET until=excluded.until "
            "WHERE excluded.until > until + 3600",
            (scope, plan, until),
        )

    def collect_plans(self, before: float, needed: Container[tuple[str, str]]) -> None:
        """Let go of plans that nothing needs since then, and of owners' values dropped before it."""
        self._uses.clear()
        for row in self._db.execute("SELECT scope, plan FROM uses WHERE until < ? LIMIT 1000", (before,)).fetchall():
            if row not in needed:
                self._db.execute("DELETE FROM plans WHERE scope=? AND id=?", row)
                self._db.execute("DELETE FROM uses WHERE scope=? AND plan=?", row)
        self._db.execute(
            "DELETE FROM vals WHERE dropped AND message IS NOT NULL AND NOT EXISTS "
            "(SELECT 1 FROM messages m WHERE m.sender=scope AND m.id=message)"
        )

    def unacknowledged(self, sender: str) -> list[Wanted]:
        """Replies that are out, as far as is known."""
        sql = "SELECT * FROM replies INDEXED BY unacknowledged WHERE sender=? AND state='published'"
        return [_wanted(row) for row in self._db.execute(sql, (sender,))]

    # -- what was given up

    def add_failed(self, sender: str, id_: str, time: float, reason: str) -> None:
        """A message that ended its worker too often."""
        self._db.execute("INSERT OR REPLACE INTO failed VALUES(?,?,?,?)", (sender, id_, time, reason))

    def failed(self) -> list[tuple[str, str, float, str]]:
        """Sender, message, time and reason; oldest first."""
        return list(self._db.execute("SELECT sender, id, time, reason FROM failed ORDER BY time"))

    def collect_failed(self, before: float) -> list[tuple[str, str]]:
        rows = self._db.execute("SELECT sender, id FROM failed WHERE time < ?", (before,)).fetchall()
        self._db.execute("DELETE FROM failed WHERE time < ?", (before,))
        return rows

    def count_open(self) -> int:
        """Messages that are not done."""
        return int(self._db.execute("SELECT count(*) FROM messages WHERE state != 'done'").fetchone()[0])

    # -- sources, and the owner's word

    def rules(self, sources: Iterable[str]) -> list[str]:
        """The release rules of owner's values, gone ones too; "" for one that never was."""
        known = self._rules
        return [known[id_] if id_ in known else self._rule(id_) for id_ in sources]

    def are_open(self, sources: frozenset[str]) -> bool:
        """Whether all of these owner's values are open, gone ones too."""
        if sources not in self._open:
            self._open[sources] = policy.is_open(self.rules(sources))
        return self._open[sources]

    def _rule(self, id_: str) -> str:
        row = self._db.execute("SELECT release FROM vals WHERE scope=? AND id=?", (OWNER, id_)).fetchone()
        self._rules[id_] = row[0] if row else ""
        return self._rules[id_]

    def gone(self, id_: str) -> str:
        """What became of an owner's value that is gone: ``removed``, or the id of the one in its place; else ""."""
        row = self._db.execute("SELECT gone FROM vals WHERE scope=? AND id=? AND dropped", (OWNER, id_)).fetchone()
        return (row[0] or "removed") if row else ""

    def kept(self, id_: str) -> Value | None:
        """An owner's value, also one that was replaced and is kept for questions that are decided."""
        sql = f"SELECT {_VALUE} FROM vals WHERE scope=? AND id=? AND dropped != 1"
        row = self._db.execute(sql, (OWNER, id_)).fetchone()
        return _value(row) if row else None

    def once(self, scope: str, id_: str) -> Value | None:
        """A value as it stands, or stood."""
        self._write_added()
        row = self._db.execute(f"SELECT {_VALUE} FROM vals WHERE scope=? AND id=?", (scope, id_)).fetchone()
        return _value(row) if row else None

    def replace(self, ids: Iterable[str], by: str, *, now: float) -> list[str]:
        """Another owner's value is in the place of these; those that no decided question needs: their bytes may go."""
        needed = self._needed_versions()
        ids = list(ids)
        self._end_owners(ids, by, needed)
        for question in self.questions():
            if not question.word and set(question.about["reads"]).intersection(ids):
                self.say(question, "replaced", by, now=now)
        return [i for i in ids if i not in needed]

    def remove(self, ids: Iterable[str], *, now: float) -> list[tuple[str, str]]:
        """These owner's values are gone, and with them what came from them; (scope, id) of all."""
        gone = list(ids)
        self._end_owners(gone, "removed", ())
        for question in self.questions():
            if set(question.about["reads"]).intersection(gone):
                self.say(question, "removed", now=now)
        made = [
            (scope, id_)
            for scope, id_, sources in self._db.execute("SELECT scope, id, sources FROM vals WHERE sources != ''")
            if not set(sources.split()).isdisjoint(gone)
        ]
        self.spoil(made, REMOVED)
        return [*((OWNER, id_) for id_ in gone), *made]

    def _end_owners(self, ids: Sequence[str], gone: str, needed: Container[str]) -> None:
        self._write_added()
        for id_ in ids:
            self._known.pop((OWNER, id_), None)
        rows = [(2 if id_ in needed else 1, gone, OWNER, id_) for id_ in ids]
        self._db.executemany("UPDATE vals SET dropped=?, tag=NULL, gone=? WHERE scope=? AND id=?", rows)

    def _needed_versions(self) -> set[str]:
        """Owner's values that decided questions read, and those that may leave and are not out yet."""
        leaving = {i for wanted in self.wanted() if wanted.allowed is not None for i in wanted.owners}
        return leaving | {i for q in self.questions() if q.word in KEEPING for i in q.about["reads"]}

    def let_versions_go(self) -> list[str]:
        """Of the replaced values that were kept for decided questions, those that none needs any more."""
        rows = self._db.execute("SELECT id FROM vals WHERE scope=? AND dropped=2", (OWNER,)).fetchall()
        needed = self._needed_versions() if rows else set()
        gone = [id_ for (id_,) in rows if id_ not in needed]
        self._db.executemany("UPDATE vals SET dropped=1 WHERE scope=? AND id=?", [(OWNER, i) for i in gone])
        return gone

    def spoil(self, keys: Iterable[tuple[str, str]], failure: Failure) -> None:
        """Put a failure, which public facts tell of, in the place of values that nobody saw."""
        self._write_added()
        keys = list(keys)
        for key in keys:
            self._known.pop(key, None)
        rows = [(str(NOTHING), _failure_text(failure), *key) for key in keys]
        sql = "UPDATE vals SET data=NULL, type=?, failure=?, sources='' WHERE scope=? AND id=? AND NOT dropped"
        self._db.executemany(sql, rows)

    def set_question(self, row: QuestionRow) -> None:
        """Record a question, or what is known of it now; its word stays."""
        about = json.dumps(row.about, ensure_ascii=False)
        sql = f"INSERT INTO questions({_QUESTION}) VALUES(?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET "
        sql += "until=excluded.until, state=excluded.state, about=excluded.about, bound=excluded.bound"
        rest = (row.bound, row.word, row.why, row.decided)
        self._db.execute(sql, (row.sender, row.reply, row.received, row.until, row.state, about, *rest))

    def question(self, sender: str, reply: str) -> QuestionRow | None:
        sql = f"SELECT {_QUESTION} FROM questions WHERE sender=? AND reply=?"
        row = self._db.execute(sql, (sender, reply)).fetchone()
        return _question(row) if row else None

    def forget_question(self, row: QuestionRow) -> None:
        self._db.execute("DELETE FROM questions WHERE sender=? AND reply=?", (row.sender, row.reply))

    def questions(self, *, ended: bool = False) -> list[QuestionRow]:
        """Those that are open, or all that are remembered, the oldest first."""
        where = "" if ended else "WHERE state != 'ended'"
        rows = self._db.execute(f"SELECT {_QUESTION} FROM questions {where} ORDER BY received, reply")
        return [_question(row) for row in rows]

    def say(self, question: QuestionRow, word: str, why: str = "", *, now: float | None = None) -> None:
        """Record the owner's word, or what took its place."""
        row = (word, why, now, question.sender, question.reply)
        self._db.execute("UPDATE questions SET word=?, why=?, decided=? WHERE sender=? AND reply=?", row)

    def set_state(self, sender: str, reply: str, state: str) -> None:
        """``waits``, ``looked`` or ``ended``."""
        self._db.execute("UPDATE questions SET state=? WHERE sender=? AND reply=?", (state, sender, reply))

    # -- the record of what was decided and what happened

    def record(self, kind: str, sender: str, ref: str, text: str = "", *, now: float, by: str = "") -> None:
        """Write down what happened, for `fedq device log`. Of failures, which requesters cause, the newest stay."""
        row = (now, kind, sender, ref, by, text)
        made = self._db.execute("INSERT INTO events(time, kind, sender, ref, by, text) VALUES(?,?,?,?,?,?)", row)
        if (number := made.lastrowid or 0) % 1000 == 0:
            old = "DELETE FROM events WHERE n <= ? AND kind IN ('failed', 'worker ended', 'refused')"
            self._db.execute(old, (number - MOST_EVENTS,))

    def events(self, *, since: float = 0.0) -> list[Event]:
        """What happened, the oldest first."""
        sql = "SELECT time, kind, sender, ref, by, text FROM events WHERE time >= ? ORDER BY n"
        return [Event(*row) for row in self._db.execute(sql, (since,))]

    def set_again(self, question: QuestionRow, word: str, why: str, *, now: float, by: str) -> None:
        """The word for the next question on the same."""
        row = (question.sender, question.about["same"], word, why, now, by)
        self._db.execute("INSERT OR REPLACE INTO again VALUES(?,?,?,?,?,?)", row)

    def take_again(self, question: QuestionRow) -> tuple[str, str, str] | None:
        """Word, reason and by whom, if a word was said for this question before it was asked: once."""
        where = "WHERE sender=? AND same=? AND time <= ?"
        key = (question.sender, question.about["same"], question.received)
        row = self._db.execute(f"SELECT word, why, by FROM again {where}", key).fetchone()
        self._db.execute(f"DELETE FROM again {where}", key)
        return tuple(row) if row else None

    def answers(self, *, since: float = 0.0) -> list[Answer]:
        """What was published and is remembered: of questions and of open values, the oldest first."""
        sql = "SELECT r.sender, r.id, p.time, r.ids, r.allowed FROM replies r JOIN published p ON p.sender=r.sender "
        rows = self._db.execute(f"{sql} AND p.id=r.id WHERE p.time >= ? ORDER BY p.time, r.id", (since,))
        return [
            Answer(sender, id_, time, tuple(ids.split()), _allowed(text) or {}) for sender, id_, time, ids, text in rows
        ]

    def last_heard(self, sender: str) -> float | None:
        """When the newest message of a requester's that is remembered came."""
        found = self._db.execute("SELECT max(received) FROM messages WHERE sender=?", (sender,)).fetchone()
        return None if found[0] is None else float(found[0])

    # -- what was found out for the owner

    def foreseen(self, key: str) -> Any:
        """Types that were found for a graph and given types, as JSON; None if nothing was kept."""
        row = self._db.execute("SELECT types FROM foreseen WHERE key=?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_foreseen(self, found: Mapping[str, Any]) -> None:
        """Keep them; when there are many, those from before are let go."""
        if self._db.execute("SELECT count(*) FROM foreseen").fetchone()[0] > MOST_FORESEEN:
            self._db.execute("DELETE FROM foreseen")
        rows = ((key, text) for key, types in found.items() if len(text := json.dumps(types)) < MOST_FORESEEN_TEXT)
        self._db.executemany("INSERT OR REPLACE INTO foreseen VALUES(?,?)", rows)


def _bytes(type_: str) -> int:
    return typed.size_bytes(Type.parse(type_)) or 0


def _value(row: Sequence[Any]) -> Value:
    scope, id_, tag, type_, release, data, failure, sources = row
    return Value(scope, id_, tag, Type.parse(type_), release, data, _failure(failure), frozenset(sources.split()))


def _names(ids: Iterable[str]) -> str:
    return " ".join(sorted(ids)) if ids else ""


def _wanted(row: Sequence[Any]) -> Wanted:
    sender, id_, message, names, state, allowed = row
    ids = tuple(name.removeprefix(_OWNERS) for name in names.split())
    owners = frozenset(name[1:] for name in names.split() if name.startswith(_OWNERS))
    return Wanted(sender, id_, message, ids, state, owners, _allowed(allowed))


_OWNERS = "@"
"""Marks the owner's values among those of a reply."""


def _allowed(text: str | None) -> Mapping[str, str | Failure] | None:
    if text is None:
        return None
    return {id_: found if isinstance(found, str) else Failure(*found) for id_, found in json.loads(text).items()}


def _allowed_text(allowed: Mapping[str, str | Failure]) -> str:
    rows = {i: f if isinstance(f, str) else [f.code, f.text, dict(f.fields)] for i, f in allowed.items()}
    return json.dumps(rows)


def _question(row: Sequence[Any]) -> QuestionRow:
    sender, reply, received, until, state, about, *rest = row
    return QuestionRow(sender, reply, received, until, state, json.loads(about), *rest)


def _calls_text(calls: Iterable[tuple[str, int]]) -> str:
    """``message:0,1 message:4``: a batch in a few bytes per call."""
    actions: dict[str, list[str]] = {}
    for message, action in calls:
        actions.setdefault(message, []).append(str(action))
    return " ".join(f"{message}:{','.join(numbers)}" for message, numbers in actions.items())


def _calls(text: str) -> Iterator[tuple[str, int]]:
    for part in text.split():
        message, _, numbers = part.partition(":")
        yield from ((message, int(n)) for n in numbers.split(","))


def _failure_text(failure: Failure | None) -> str | None:
    return json.dumps([failure.code, failure.text, dict(failure.fields)]) if failure else None


def _failure(text: str | None) -> Failure | None:
    return Failure(*json.loads(text)) if text else None
