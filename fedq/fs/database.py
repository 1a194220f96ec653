"""Private SQLite files whose statements are steps, and whose troubles are those of any other file."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from fedq.errors import DiskFull, Unreachable
from fedq.fs.steps import FAILPOINTS, KEPT, AnyPath, Folder, step, sync


def database(path: AnyPath, *, durable: bool = True) -> sqlite3.Connection:
    """Open or make a private SQLite file, WAL; a commit that returned is on the disk, if durable.

    Transactions are the caller's own BEGIN and COMMIT; statements are steps named after the
    file: ``journal.begin``, ``journal.insert``, ``journal.commit``.
    """
    with Folder(path, None) as (at, name):
        os.close(step("database.open", os.open, name, KEPT, 0o600, dir_fd=at))
        step("database.sync_folder", sync, at)
    try:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False, factory=_Database)
    except sqlite3.Error as error:
        raise Unreachable(f"{Path(path).absolute()}: {error}") from error
    db.path = Path(path).absolute()
    _write_ahead(db)
    db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Two processes that open a new file at the same time: SQLite does not wait here by itself."""
    for wait_s in (0.01,) * 500:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except Unreachable as error:
            if "locked" not in str(error):
                raise
        time.sleep(wait_s)
    db.execute("PRAGMA journal_mode=WAL")


class _Database(sqlite3.Connection):
    path = Path()

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        try:
            return step(self._step(sql), super().execute, sql, *args) if FAILPOINTS else super().execute(sql, *args)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        many = super().executemany
        try:
            return step(self._step(sql), many, sql, *args) if FAILPOINTS else many(sql, *args)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executescript(self, sql: str) -> sqlite3.Cursor:
        try:
            return step(f"{self.path.stem}.script", super().executescript, sql)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def _step(self, sql: str) -> str:
        return f"{self.path.stem}.{sql.split(maxsplit=1)[0].lower()}"

    def _told(self, error: sqlite3.DatabaseError) -> Exception:
        """What the disk did, as of any other file; what the caller did wrong stays as it is."""
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return error
        if "full" in str(error):
            return DiskFull(f"{self.path}: {error}", hint="free some space there, then try again")
        return Unreachable(f"{self.path}: {error}")
