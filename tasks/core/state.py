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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tasks.core.errors import QuernError

T = TypeVar("T")

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
# Came later: a database without them stays good.
LATER = """
create table if not exists look (name text primary key, at real not null, told text not null)
  without rowid;
create table if not exists remote_file (
  machine text, path text, signature text not null, sha256 text not null, fault text not null,
  primary key (machine, path)) without rowid;
create table if not exists shared (remote text, key text, primary key (remote, key)) without rowid;
"""


class StateError(QuernError):
    """Nothing can be recorded: the run ends."""


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
                if not _is_damage(error):
                    raise
                self._start_anew(error)
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
        for statement in LATER.split(";"):
            connection.execute(statement)
        return connection

    def load(self, read: Callable[[], T]) -> T:
        """What `read` makes of the rows; of an empty database's if they are damaged."""
        try:
            return read()
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            if not _is_damage(error):
                raise QuernError(f"{self.path}: can't be read ({error})") from None
            self._start_anew(error)
            return read()

    def _start_anew(self, error: Exception) -> None:
        """Set the damaged database aside and open an empty one."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        sys.stderr.write(
            f"{self.path}: damaged ({error}); set aside as {aside.name}, "
            "a new one is filled from the files and the store\n"
        )
        self._connection = self._open()

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
                raise StateError(
                    f"{self.path}: can't be written ({error}); "
                    "check free space and permissions, then run again"
                ) from None

    def close(self) -> None:
        """Close the connection; the write-ahead log is folded in."""
        with self._lock:
            self._connection.close()


def _is_damage(error: Exception) -> bool:
    """Whether the file is to blame, and not the disk, the permissions or another process."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    return str(error).startswith(("no such table", "no such column", "Could not decode"))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        connection.execute("begin immediate")
        yield
        connection.execute("commit")
    except BaseException:  # an interrupt comes at any line
        if connection.in_transaction:
            connection.execute("rollback")
        raise
