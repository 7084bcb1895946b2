"""The project's database, `.quern/state.db`: what was read, built and decided.

SQLite in WAL mode, committed when each task ends, so a kill costs at most the task it hit. It
holds nothing that cannot be worked out again from the files and the store: a damaged database
is set aside and a new one filled from them.
"""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.core.errors import QuernError

SCHEMA_VERSION = 1
SCHEMA = """
create table digest (
  path text primary key, device integer, inode integer, size integer, mtime_ns integer,
  ctime_ns integer, settled integer, xxh3 text not null, sha256 text) without rowid;
create table task (name text primary key, record text not null) without rowid;
create table running (name text primary key, since real not null) without rowid;
create table run (id integer primary key, started real not null, ended real, up_to_date text);
create table decision (
  name text primary key, run integer not null, at real not null, outcome text not null,
  seconds real, message text, reasons text not null) without rowid;
"""


class State:
    """One connection, shared by the threads of a run under one lock.

    Raises QuernError when the folder can't be written or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside(error)
                self._connection = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise QuernError(
                f"{path}: can't be written ({error}); check the folder's permissions and free space"
            ) from None

    def _open(self) -> sqlite3.Connection:
        # Transactions are begun and ended by hand: a task's result is one transaction.
        connection = sqlite3.connect(
            self.path, timeout=30, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        version = connection.execute("pragma user_version").fetchone()[0]
        if version == 0:
            with _transaction(connection):
                if connection.execute("pragma user_version").fetchone()[0] == 0:
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"pragma user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version}, this Quern writes {SCHEMA_VERSION}")
        elif connection.execute("pragma quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("failed its integrity check")
        return connection

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        sys.stderr.write(
            f"{self.path}: damaged ({error}); set aside as {aside.name}, "
            "a new one is filled from the files and the store\n"
        )

    def rows(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        """All rows of `query`."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, committed at the end of the block, rolled back on an error."""
        with self._lock:
            try:
                with _transaction(self._connection):
                    yield self._connection
            except sqlite3.DatabaseError as error:
                raise QuernError(
                    f"{self.path}: can't be written ({error}); "
                    "check free space and permissions, then run again"
                ) from None

    def close(self) -> None:
        """Close the connection; the write-ahead log is folded in."""
        with self._lock:
            self._connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")
