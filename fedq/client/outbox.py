"""A requester's private record: what was sent, under which ids, and what was asked for. SQLite, WAL.

Committed before a send: a message that stands here and was not put yet is put, with the same
bytes, by the next client that starts. Rows belong to a pair, that is (queue root, device, its
key): the same device name under another root, or made anew, is another device.
What need not outlive a crash (put, taken) is written while a reply is waited for, or rides in
a later commit.
"""

from __future__ import annotations

import heapq
import sqlite3
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedq import fs
from fedq.client.draft import AGAIN, Sent
from fedq.client.known import Known
from fedq.errors import Conflict, DiskFull, Unreachable
from fedq.plan.codec import Buffer

SPOOL_ABOVE_BYTES = 1 << 20
"""Messages larger than this wait beside the outbox as files, not in it."""
REMEMBER_BYTES = 64 << 10
"""Messages up to this size are kept until their results came, so that they can be sent anew."""
SIGNATURE_BYTES = 64
"""The end of a message; its digest is made of them."""
MANY = 20
"""Rows that need not outlive a crash wait till there are so many, if nobody waits for a reply."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pairs(
  n INTEGER PRIMARY KEY, root TEXT NOT NULL, device TEXT NOT NULL, key TEXT NOT NULL, UNIQUE(root, device, key));
CREATE TABLE IF NOT EXISTS messages(
  pair INTEGER, id TEXT, digest TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
  put INTEGER NOT NULL DEFAULT 0, file BLOB, PRIMARY KEY(pair, id));
CREATE INDEX IF NOT EXISTS unput ON messages(pair) WHERE NOT put;
CREATE TABLE IF NOT EXISTS vals(
  pair INTEGER, id TEXT, message TEXT NOT NULL, type TEXT, state TEXT NOT NULL DEFAULT '',
  private TEXT NOT NULL DEFAULT '', PRIMARY KEY(pair, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS taken ON vals(pair) WHERE state = 'taken';
CREATE TABLE IF NOT EXISTS replies(
  pair INTEGER, value TEXT, reply TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY(pair, value)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS asked ON replies(pair, reply);
CREATE TABLE IF NOT EXISTS uses(
  pair INTEGER, value TEXT, message TEXT, PRIMARY KEY(pair, value, message)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS acks(pair INTEGER, reply TEXT, PRIMARY KEY(pair, reply)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS graphs(id TEXT PRIMARY KEY, graph BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS plans(
  pair INTEGER, id TEXT, name TEXT NOT NULL, graph TEXT NOT NULL, about BLOB NOT NULL, message TEXT NOT NULL,
  PRIMARY KEY(pair, id));
CREATE TABLE IF NOT EXISTS tokens(
  pair INTEGER, token TEXT, content TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY(pair, token));
CREATE TABLE IF NOT EXISTS repeats(pair INTEGER, message TEXT, PRIMARY KEY(pair, message)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept(pair INTEGER, reply TEXT, file BLOB, code TEXT, PRIMARY KEY(pair, reply)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latest(
  pair INTEGER, kind TEXT, boot INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(pair, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS collected(time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS runs(
  run TEXT, pair INTEGER, value TEXT, n INTEGER, PRIMARY KEY(run, n)) WITHOUT ROWID;
"""
_KEPT = "EXISTS (SELECT 1 FROM kept k WHERE k.pair=r.pair AND k.reply=r.reply)"
_FORGET_FILES = "UPDATE messages SET file=NULL WHERE put AND file IS NOT NULL AND pair=? AND id"


@dataclass(frozen=True, slots=True)
class Promised:
    """An id this requester chose; ``state``: ``""``, ``taken`` or ``dropped``; ``private``: as of a pointer."""

    id: str
    message: str
    type: str | None
    state: str
    private: frozenset[str]


_Statements = list[tuple[str, list[tuple[Any, ...]]]]


class Outbox:
    """All statements on one requester's record; safe between threads and processes."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        fs.make_dir(path.parent)
        self._durable = durable
        self.folder = path.parent
        self._spool = path.parent / "spool"
        self._db = fs.database(path, durable=durable)
        self._db.executescript(_SCHEMA)
        self._lock = threading.RLock()
        self._next: _Statements = []
        self._sometime: _Statements = []
        self._known: dict[int, Known] = {}
        self._gone: deque[tuple[int, str]] = deque()

    def close(self) -> None:
        with self._lock:
            self.take_gone()
            self.settle()
            self._db.close()

    def settle(self) -> None:
        """Record now what was put off; not fsynced, since nothing is lost with it."""
        with self._lock:
            unsaid = any(known.unsaid or known.untaken for known in self._known.values())
            if not (self._next or self._sometime or unsaid):
                return
            self._synchronous("NORMAL")
            try:
                with self.transaction(everything=True):
                    pass
            finally:
                self._synchronous("FULL")

    def _synchronous(self, level: str) -> None:
        if self._durable:
            self._db.execute(f"PRAGMA synchronous={level}")

    @contextmanager
    def transaction(self, acked: Collection[str] = (), *, everything: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it ends; carries what was put off to it.

        Args:
            acked: replies of which the device is told in this one.
            everything: also what was put off to no certain time.
        """
        with self._lock, _explained():
            everything |= sum(len(rows) for _, rows in self._sometime) > MANY
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, rows in [*self._next, *(self._sometime if everything else ())]:
                    self._db.executemany(sql, rows)
                self._write_known(acked, everything)
                yield self._db
                self._db.execute("COMMIT")
                self._written(everything)
            except BaseException:
                if self._db.in_transaction:  # a full disk rolls back by itself
                    self._db.execute("ROLLBACK")
                raise

    def _write_known(self, acked: Collection[str], everything: bool) -> None:
        for pair, known in self._known.items():
            if unsaid := known.unsaid.difference(acked):
                self._db.executemany("INSERT OR IGNORE INTO acks VALUES(?,?)", ((pair, reply) for reply in unsaid))
            if everything and known.untaken:
                taken = "UPDATE vals SET state='taken' WHERE pair=? AND id=? AND state=''"
                self._db.executemany(taken, ((pair, value) for value in known.untaken))

    def _written(self, everything: bool) -> None:
        self._next.clear()
        for known in self._known.values():
            known.written(everything=everything)
        if everything:
            self._sometime.clear()

    def all(self, sql: str, row: Sequence[Any]) -> list[Any]:
        with self._lock, _explained():
            return self._db.execute(sql, row).fetchall()

    def first(self, sql: str, row: Sequence[Any]) -> Any:
        with self._lock, _explained():
            return self._db.execute(sql, row).fetchone()

    # -- sending

    def pair(self, root: str, device: str, key: str) -> int:
        """The number of a pair, for all other calls."""
        where, row = "SELECT n FROM pairs WHERE root=? AND device=? AND key=?", (root, device, key)
        if (found := self.first(where, row)) is None:
            with self.transaction() as db:
                db.execute("INSERT OR IGNORE INTO pairs(root, device, key) VALUES(?,?,?)", row)
            found = self.first(where, row)
        return int(found[0])

    def latest(self, pair: int, kind: str) -> tuple[int, int]:
        """Which card, catalog or heartbeat of a device was the latest that was read here: its count."""
        found = self.first("SELECT boot, n FROM latest WHERE pair=? AND kind=?", (pair, kind))
        return tuple(found) if found else (0, 0)

    def saw(self, pair: int, kind: str, count: tuple[int, int]) -> None:
        """A later one was read. Not fsynced: what a power cut takes of it was hardly acted on."""
        sql = "INSERT INTO latest VALUES(?,?,?,?) ON CONFLICT DO UPDATE SET boot=excluded.boot, n=excluded.n "
        sql += "WHERE (excluded.boot, excluded.n) > (boot, n)"
        with self._lock, _explained():
            self._synchronous("NORMAL")
            try:
                self._db.execute(sql, (pair, kind, *count))
            finally:
                self._synchronous("FULL")

    def commit(
        self, pair: int, parts: Sequence[Sent], *, token: tuple[str, str, str] | None = None, lasting: bool = False
    ) -> None:
        """Promise these messages.

        Args:
            token: the user's name for them, their content as text, and the id of the first.
            lasting: what they make and ask for is never taken away, since the same may be asked for again.

        Raises:
            Conflict: an id or the token stands already.
        """
        for part in parts:
            if part.size_bytes > SPOOL_ABOVE_BYTES:
                fs.make_dir(self._spool)
                fs.replace(self._spooled(part.id, part.digest), part.chunks, durable=self._durable)
        known = self._of(pair)
        with self.transaction([r for part in parts for r in part.acks]) as db:
            try:
                for part in parts:
                    self._insert(db, pair, part, known)
                if token:
                    db.execute("INSERT INTO tokens VALUES(?,?,?,?)", (pair, *token))
                if lasting:
                    db.executemany("INSERT INTO repeats VALUES(?,?)", [(pair, part.id) for part in parts])
            except sqlite3.IntegrityError:
                name = parts[0].id if parts else token
                for part in parts:
                    fs.delete(self._spooled(part.id, part.digest))
                raise Conflict(f"message or result ids of {name} were promised before") from None
        for part in parts:
            known.promised(part, lasting=lasting)

    def _insert(self, db: sqlite3.Connection, pair: int, s: Sent, known: Known) -> None:
        file = None if s.size_bytes > SPOOL_ABOVE_BYTES else b"".join(s.chunks)
        db.execute("INSERT INTO messages VALUES(?,?,?,?,?,0,?)", (pair, s.id, s.digest, s.created, s.expires, file))
        if s.values:
            made = ((pair, i, s.id, type_, " ".join(sorted(s.private.get(i, ())))) for i, type_ in s.values.items())
            db.executemany("INSERT INTO vals(pair, id, message, type, private) VALUES(?,?,?,?,?)", made)
        if s.replies:
            rows = ((pair, value, reply, s.id) for value, reply in s.replies.items())
            db.executemany("INSERT OR REPLACE INTO replies VALUES(?,?,?,?)", rows)
        if s.uses:
            db.executemany("INSERT INTO uses VALUES(?,?,?)", ((pair, value, s.id) for value in s.uses))
        for plan in s.plans:
            db.execute("INSERT OR IGNORE INTO graphs VALUES(?,?)", (plan.graph_id, plan.graph))
            row = (pair, plan.id, plan.name, plan.graph_id, plan.about, s.id)
            db.execute("INSERT OR REPLACE INTO plans VALUES(?,?,?,?,?,?)", row)
        if s.drops:
            db.executemany("UPDATE vals SET state='dropped' WHERE pair=? AND id=?", ((pair, v) for v in s.drops))
            db.executemany("DELETE FROM uses WHERE pair=? AND value=?", ((pair, v) for v in s.drops))
        if acks := [(pair, r) for r in s.acks if r not in known.unsaid]:
            db.executemany("DELETE FROM acks WHERE pair=? AND reply=?", acks)

    def _spooled(self, id_: str, digest: str) -> Path:
        """Where a large message waits: another process that asks for the same at the same time has its own there."""
        return self._spool / f"{id_}-{digest[:16]}"

    def was_put(self, pair: int, id_: str, chunks: Sequence[Buffer] = ()) -> None:
        """The message lies in the pair; recorded some time. ``chunks``: its bytes, if it may be spooled."""
        size_bytes = fs.size_bytes(chunks)
        if size_bytes > SPOOL_ABOVE_BYTES:
            with suppress(Unreachable):  # it was put all the same; what stays is swept
                fs.delete(self._spooled(id_, bytes(chunks[-1][-SIGNATURE_BYTES:]).hex()))
        also = "" if size_bytes <= REMEMBER_BYTES else ", file=NULL"
        self.put_off(f"UPDATE messages SET put=1{also} WHERE pair=? AND id=?", (pair, id_))

    def put_off(self, sql: str, *rows: tuple[Any, ...], next_commit: bool = False) -> None:
        """Do this when nobody waits for it, or with the next commit, once for each row."""
        with self._lock:
            statements = self._next if next_commit else self._sometime
            if statements and statements[-1][0] == sql:
                statements[-1][1].extend(rows)
            else:
                statements.append((sql, list(rows)))

    def interrupted(self, root: str, now: float) -> list[str]:
        """Devices below this root with messages that may not have been put."""
        sql = "SELECT DISTINCT device FROM messages JOIN pairs ON n=pair WHERE NOT put AND root=? AND expires>?"
        return [row[0] for row in self.all(sql, (root, now))]

    def unput(self, pair: int, now: float) -> list[tuple[str, Buffer]]:
        """Messages, oldest first, that may not have been put: id and bytes."""
        self.settle()
        where = "INDEXED BY unput WHERE pair=? AND NOT put AND expires>? ORDER BY rowid"
        found = []
        for id_, digest, file in self.all(f"SELECT id, digest, file FROM messages {where}", (pair, now)):
            try:
                spooled = self._spooled(id_, digest)
                found.append((id_, file if file is not None else fs.read(spooled, limit_bytes=1 << 40)))
            except FileNotFoundError:  # spooled, put, and deleted just before the end
                self.was_put(pair, id_)
        return found

    def sweep(self, *, before: float) -> int:
        """Delete files that a crash left beside the outbox, last written before a time; how many."""
        unput = {
            self._spooled(*row).name
            for row in self.all("SELECT id, digest FROM messages WHERE NOT put AND file IS NULL", ())
        }
        swept = fs.sweep(self.folder, before=before) + fs.sweep(self.folder / "replies", before=before)
        return swept + fs.sweep(self._spool, before=before, also=lambda name: name not in unput)

    def forget(self, pair: int, parts: Sequence[Sent]) -> None:
        """Take back promises: their messages could not be put."""
        with self.transaction() as db:
            for part in parts:
                fs.delete(self._spooled(part.id, part.digest))
                db.execute("DELETE FROM messages WHERE pair=? AND id=?", (pair, part.id))
                for table in ("vals", "replies", "uses", "plans"):
                    db.execute(f"DELETE FROM {table} WHERE pair=? AND message=?", (pair, part.id))
        for part in parts:
            self._of(pair).taken_back(part)

    def times(self, pair: int, token: str) -> int:
        """How often what stands under a token was asked for again."""
        sql = "SELECT token FROM tokens WHERE pair=? AND substr(token, 1, ?)=?"
        head = token + AGAIN
        rest = [row[0][len(head) :].partition("\n")[0] for row in self.all(sql, (pair, len(head), head))]
        return max((int(n) for n in rest if n.isdecimal()), default=0)

    def token(self, pair: int, token: str) -> str | None:
        """The content, as text, of what was asked under a token."""
        found = self.first("SELECT content FROM tokens WHERE pair=? AND token=?", (pair, token))
        return found and str(found[0])

    def lasting(self, pair: int, values: Collection[str], replies: Collection[str]) -> tuple[set[str], set[str]]:
        """Those of the values made, and of the replies asked for, in a block that may be done again: they stay."""
        known = self._of(pair)
        value = "SELECT v.id FROM vals v JOIN repeats t ON t.pair=v.pair AND t.message=v.message"
        reply = "SELECT r.reply FROM replies r JOIN repeats t ON t.pair=r.pair AND t.message=r.message"
        unsure = [v for v in values if v not in known.lasting and v not in known.made]
        stay = known.lasting.intersection(values)
        stay.update(row[0] for row in self._among(f"{value} WHERE v.pair=? AND v.id IN", (pair,), unsure))
        kept = known.lasting.intersection(replies)
        unsure = [r for r in replies if r not in known.lasting and r not in known.asked_as]
        kept.update(row[0] for row in self._among(f"{reply} WHERE r.pair=? AND r.reply IN", (pair,), unsure))
        return stay, kept

    # -- ids

    def promised(self, pair: int, prefix: str) -> list[Promised]:
        """Values this requester made whose id begins with the prefix; at most 20."""
        sql = "SELECT id, message, type, state, private FROM vals WHERE pair=? AND id>=? AND id<? LIMIT 20"
        rows, taken = self.all(sql, (pair, prefix, prefix + "g")), self._of(pair).taken
        return [Promised(i, m, t, "taken" if i in taken else state, frozenset(p.split())) for i, m, t, state, p in rows]

    def own(self, pair: int, ids: Collection[str]) -> set[str]:
        """Those of the ids that this requester made and did not take away."""
        known = self._of(pair)
        found = {i for i in ids if i in known.made}
        rest = [i for i in ids if i not in found and i not in known.taken]
        rows = self._among("SELECT id FROM vals WHERE state='' AND pair=? AND id IN", (pair,), rest)
        return found.union(row[0] for row in rows)

    def used(self, pair: int, ids: Collection[str]) -> set[str]:
        """Those of the ids that this requester made, as arguments: the owner's values are remembered not to be."""
        known = self._of(pair)
        new = [i for i in ids if i not in known.foreign]
        found = self.own(pair, new)
        known.note_foreign([i for i in new if i not in found and i not in known.taken])
        return found

    def replies(
        self, pair: int, ids: Collection[str], now: float, *, asked: Collection[str] = (), since: float = 0.0
    ) -> dict[str, str]:
        """Values that were asked for -> reply id, while that message has not expired or the reply is here.

        Args:
            asked: those that wait for an owner; ``since``: questions of messages before that are over.
        """
        sql = "SELECT r.value, r.reply FROM replies r JOIN messages m ON m.pair=r.pair AND m.id=r.message"
        where = f"WHERE (m.expires > ? OR {_KEPT}) AND r.pair=? AND r.value IN"
        known = self._of(pair)
        ids = [i for i in ids if i in known.asked or i not in known.made]
        rows = [*self._among(f"{sql} {where}", (now, pair), ids)]
        if asked:
            waits = "WHERE m.created > ? AND r.pair=? AND r.value IN"
            rows += self._among(f"{sql} {waits}", (since, pair), [i for i in ids if i in asked])
        return {value: reply for value, reply in rows if reply not in known.read}

    def ask_again(self, pair: int, ids: Collection[str]) -> None:
        """The replies to these values are of no use any more."""
        with self.transaction() as db:
            db.executemany("DELETE FROM replies WHERE pair=? AND value=?", ((pair, id_) for id_ in ids))

    def asked_in(self, pair: int, reply: str) -> set[str]:
        """The values that come in a reply."""
        return {r[0] for r in self.all("SELECT value FROM replies WHERE pair=? AND reply=?", (pair, reply))}

    def messages_of(self, pair: int, value: str, reply: str) -> set[str]:
        """The messages that make a value and that asked for it."""
        sql = (
            "SELECT message FROM vals WHERE pair=? AND id=? UNION SELECT message FROM replies WHERE pair=? AND reply=?"
        )
        return {r[0] for r in self.all(sql, (pair, value, pair, reply))}

    def _among(self, sql: str, row: tuple[Any, ...], ids: Collection[str]) -> Iterator[Any]:
        ids = list(ids)
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            yield from self.all(f"{sql} ({','.join('?' * len(some))})", (*row, *some))

    # -- what was taken away

    def take(self, pair: int, values: Collection[str], replies: Collection[str]) -> None:
        """The requester has these; recorded with the next commit, dropped and acknowledged by a later message."""
        with self._lock:
            if values:
                made = self._of(pair).take(values)
                self.put_off(f"{_FORGET_FILES}=?", *((pair, m) for m in set(made.values()) if m is not None))
                others = [(pair, pair, value) for value, message in made.items() if message is None]
                self.put_off(f"{_FORGET_FILES}=(SELECT message FROM vals WHERE pair=? AND id=?)", *others)
            self._of(pair).read.update(replies)
            for reply in replies:
                self.acknowledge(pair, reply)
                self.put_off("DELETE FROM replies WHERE pair=? AND reply=?", (pair, reply))

    def answered(self, pair: int, reply: str) -> None:
        """The bytes of the messages that asked for this reply are not needed any more."""
        asked = "SELECT message FROM replies INDEXED BY asked WHERE pair=? AND reply=?"
        self.put_off(f"{_FORGET_FILES} IN ({asked})", (pair, pair, reply))

    def acknowledge(self, pair: int, reply: str) -> None:
        """A later message tells the device that this reply is here."""
        with self._lock:
            self._of(pair).acknowledge(reply)

    def _of(self, pair: int) -> Known:
        if pair not in self._known:
            taken = self.all("SELECT id, message FROM vals INDEXED BY taken WHERE pair=? AND state='taken'", (pair,))
            acks = self.all("SELECT reply FROM acks WHERE pair=?", (pair,))
            self._known[pair] = Known(dict(taken), {row[0] for row in acks})
        return self._known[pair]

    @property
    def has_let_go(self) -> bool:
        return bool(self._gone)

    def let_go(self, pair: int, value: str) -> None:
        """Nobody refers to this value any more. No lock and no IO: called whenever memory is freed, in any thread."""
        self._gone.append((pair, value))

    def take_gone(self, keep: Collection[str] = ()) -> None:
        """Take away what was let go, but for what is in use (``keep``): that is looked at again next time."""
        with self._lock:
            gone = [self._gone.popleft() for _ in range(len(self._gone))]
            self._gone.extend(row for row in gone if row[1] in keep)
            for pair in {pair for pair, _ in gone}:
                self.take(pair, self.own(pair, [v for p, v in gone if p == pair and v not in keep]), ())

    def to_forget(self, pair: int, limit: int) -> tuple[list[str], list[str], list[str]]:
        """Values to drop, the messages that must be done before, and replies to acknowledge."""
        with self._lock:
            known = self._of(pair)
            values, replies = (heapq.nsmallest(limit, some) for some in (known.taken, known.acks))
        after = {known.taken[v] for v in values}
        both = "SELECT pair, value, message FROM uses UNION ALL SELECT pair, value, message FROM replies"
        after |= {r[0] for r in self._among(f"SELECT message FROM ({both}) WHERE pair=? AND value IN", (pair,), values)}
        unknown = [v for v in values if known.taken[v] is None]
        after |= {r[0] for r in self._among("SELECT message FROM vals WHERE pair=? AND id IN", (pair,), unknown)}
        return values, sorted(message for message in after if message is not None), replies


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except DiskFull as error:
        raise DiskFull(f"the outbox can not be written: {error}", hint=error.hint) from None
    except (Unreachable, sqlite3.OperationalError) as error:
        raise Unreachable(f"the outbox can not be used: {error}", hint="is FEDQ_HOME a private local disk?") from None
