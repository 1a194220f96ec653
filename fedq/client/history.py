"""What a requester sent and what came of it: copies of replies, lists, and what may be forgotten.

Rows of the outbox seen from behind: nothing here is needed to send. A reply is kept before it is
acknowledged, in the same commit, so that it can be read again when the device has let go of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedq import fs
from fedq.client.draft import PlanRow
from fedq.plan.codec import Buffer

if TYPE_CHECKING:
    from fedq.client.outbox import Outbox

KEPT_INLINE_BYTES = 64 << 10
"""Copies of larger replies are files beside the outbox."""
GRACE_S = 30 * 86_400.0
"""How long after its expiry a message is listed, and its results can be read again."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A value that was promised, and the message that makes it.

    Attributes:
        state: ``""``, ``taken`` or ``dropped``.
        reply: under which it was asked for, None if it was not.
        kept: whether a copy of that reply is here.
        code: of an error in it.
    """

    pair: int
    root: str
    device: str
    value: str
    type: str | None
    state: str
    message: str
    created: float
    expires: float
    put: bool
    reply: str | None
    kept: bool
    code: str | None


_SENT = """
SELECT v.pair, p.root, p.device, v.id, v.type, v.state, m.id, m.created, m.expires, m.put, r.reply, k.reply, k.code
FROM vals v JOIN messages m ON m.pair=v.pair AND m.id=v.message JOIN pairs p ON p.n=v.pair
LEFT JOIN replies r ON r.pair=v.pair AND r.value=v.id LEFT JOIN kept k ON k.pair=v.pair AND k.reply=r.reply
"""


def _sent(row: tuple[Any, ...]) -> Sent:
    pair, root, device, value, type_, state, message, created, expires, put, reply, kept, code = row
    return Sent(
        pair, root, device, value, type_, state, message, created, expires, bool(put), reply, kept is not None, code
    )


class History:
    """The same record as the outbox's, for those who look back."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._folder = outbox.folder / "replies"

    # -- replies

    def keep(self, pair: int, reply: str, raw: Buffer, *, code: str | None, durable: bool) -> None:
        """Keep a copy, and acknowledge the reply with a later message; recorded with the next commit.

        Args:
            code: of the error that it holds, if it does; the message is then kept, too, to be sent anew.
        """
        inline = len(raw) <= KEPT_INLINE_BYTES
        if not inline:
            fs.make_dir(self._folder)
            fs.replace(self._folder / f"{pair}-{reply}", [raw], durable=durable)
        row = (pair, reply, bytes(raw) if inline else None, code)
        self._outbox.put_off("INSERT OR IGNORE INTO kept VALUES(?,?,?,?)", row, next_commit=True)
        self._outbox.acknowledge(pair, reply)
        if code is None:
            self._outbox.answered(pair, reply)

    def kept(self, pair: int, reply: str) -> Buffer | None:
        """The copy of a reply, if there is one."""
        found = self._outbox.first("SELECT file FROM kept WHERE pair=? AND reply=?", (pair, reply))
        if found is None or found[0] is not None:
            return found and bytes(found[0])
        try:
            return fs.map_private(self._folder / f"{pair}-{reply}")
        except FileNotFoundError:
            return None

    # -- what was sent

    def sent(self, root: str, *, most: int, everything: bool = False) -> list[Sent]:
        """Values promised below a root, the newest first; ``everything``: also those taken away or dropped."""
        where = "WHERE p.root=?" + ("" if everything else " AND v.state=''")
        rows = self._outbox.all(f"{_SENT} {where} ORDER BY m.created DESC, v.id LIMIT ?", (root, most))
        return list(map(_sent, rows))

    def of(self, pair: int, value: str) -> Sent | None:
        """One of them."""
        rows = self._outbox.all(f"{_SENT} WHERE v.pair=? AND v.id=?", (pair, value))
        return next(map(_sent, rows), None)

    def file(self, pair: int, message: str) -> bytes | None:
        """The bytes of a message, while they are kept."""
        found = self._outbox.first("SELECT file FROM messages WHERE pair=? AND id=?", (pair, message))
        return bytes(found[0]) if found and found[0] is not None else None

    # -- plans and runs

    def plan(self, pair: int, id_: str) -> PlanRow | None:
        rows = self._plans("p.id=?", (pair, id_))
        return rows[0] if rows else None

    def plans(self, pair: int, text: str) -> list[PlanRow]:
        """Plans sent to a device with this name, or whose id begins so; the newest first."""
        return self._plans("(p.name=? OR substr(p.id, 1, ?)=?)", (pair, text, max(len(text), 6), text))

    def _plans(self, where: str, row: tuple[Any, ...]) -> list[PlanRow]:
        sql = "SELECT p.id, p.name, p.graph, g.graph, p.about FROM plans p JOIN graphs g ON g.id=p.graph"
        return [PlanRow(*r) for r in self._outbox.all(f"{sql} WHERE p.pair=? AND {where} ORDER BY p.rowid DESC", row)]

    def add_run(self, run: str, results: Sequence[tuple[int, str]]) -> None:
        """Name results at several pairs by one id; the same again is a no-op."""
        rows = [(run, pair, value, n) for n, (pair, value) in enumerate(results)]
        with self._outbox.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO runs VALUES(?,?,?,?)", rows)

    def run(self, prefix: str) -> Mapping[str, list[tuple[str, str, str]]]:
        """Runs whose id begins with the prefix -> (root, device, value id) of each result."""
        sql = "SELECT run, root, device, value FROM runs r JOIN pairs p ON p.n=pair WHERE run>=? AND run<? ORDER BY r.n"
        found: dict[str, list[tuple[str, str, str]]] = {}
        for run, root, device, value in self._outbox.all(sql, (prefix, prefix + "g")):
            found.setdefault(run, []).append((root, device, value))
        return found

    # -- forgetting

    def due(self, now: float) -> bool:
        """Whether there is something to forget, and a day has passed since the last time."""
        oldest = self._outbox.first("SELECT expires FROM messages ORDER BY rowid LIMIT 1", ())
        found = self._outbox.first("SELECT time FROM collected", ())
        return bool(oldest and oldest[0] < now - GRACE_S and not (found and 0 <= now - found[0] < 86_400))

    def collect(self, now: float, *, grace_s: float = GRACE_S) -> int:
        """Forget messages that expired a while ago, and all that belongs to them; how many."""
        before, fresh = now - grace_s, "SELECT 1 FROM messages m WHERE m.pair={0}.pair AND m.id={0}.message"
        with self._outbox.transaction() as db:
            gone = db.execute("DELETE FROM messages WHERE expires < ?", (before,)).rowcount
            for table in ("vals", "replies", "uses", "tokens", "repeats"):
                db.execute(f"DELETE FROM {table} WHERE NOT EXISTS ({fresh.format(table)})")
            asked = "SELECT 1 FROM replies r WHERE r.pair=kept.pair AND r.reply=kept.reply"
            made = "SELECT 1 FROM vals v WHERE v.pair=runs.pair AND v.id=runs.value"
            db.execute(f"DELETE FROM kept WHERE NOT EXISTS ({asked})")
            db.execute(f"DELETE FROM runs WHERE NOT EXISTS ({made})")
            db.execute("DELETE FROM collected")
            db.execute("INSERT INTO collected VALUES(?)", (now,))
        kept = {f"{p}-{r}" for p, r in self._outbox.all("SELECT pair, reply FROM kept WHERE file IS NULL", ())}
        for name in fs.names(self._folder):
            if name not in kept:
                fs.delete(self._folder / name)
        return gone

    def forget_plan(self, pair: int, id_: str) -> None:
        with self._outbox.transaction() as db:
            db.execute("DELETE FROM plans WHERE pair=? AND id=?", (pair, id_))

    def forget_plans(self, pair: int, there: Collection[str], now: float) -> None:
        """Plans that the device does not have any more, by its catalog, are sent again when they are needed."""
        sql = "SELECT p.id FROM plans p LEFT JOIN messages m ON m.pair=p.pair AND m.id=p.message WHERE p.pair=?"
        old = self._outbox.all(f"{sql} AND (m.id IS NULL OR m.expires < ?)", (pair, now))
        with self._outbox.transaction() as db:
            for (id_,) in old:
                if id_ not in there:
                    db.execute("DELETE FROM plans WHERE pair=? AND id=?", (pair, id_))
            db.execute("DELETE FROM graphs WHERE NOT EXISTS (SELECT 1 FROM plans p WHERE p.graph=graphs.id)")
