"""SFTP for fsspec over our own connections, whose host keys are checked (tasks/hosts/ssh.py).

`sftp://[user@]host[:port]/path`; `host` may be an alias of the SSH configuration, and `/~/path` is
below the home directory there.
"""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import paramiko
from fsspec import AbstractFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK

from tasks.core.errors import QuernError
from tasks.hosts.sftp_stream import Pull, Push
from tasks.hosts.ssh import Connection, config_path, connections

SILENCE_SECONDS = 30.0
LOOK_SECONDS = 0.05


class SftpFiles(AbstractFileSystem):  # type: ignore[misc]
    """A file system of fsspec's; `ssh_config` is a file to use in place of ~/.ssh/config. Raises
    OutOfReach, NotTrusted, QuernError as connections do, and OSError as the host answers."""

    protocol = ("sftp", "ssh")

    def __init__(self, destination: str, ssh_config: str | None = None, **more: Any) -> None:
        super().__init__(**more)
        self._destination, self._config = destination, config_path(ssh_config)
        self._using = threading.RLock()
        self._client: paramiko.SFTPClient | None = None
        self._of: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection, made anew if it was cut."""
        return connections.to(self._destination, self._config)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if "://" in path:
            path = unquote(urlsplit(path).path)
        path = path.rstrip("/") or "/"
        return path.removeprefix("/~/") if path.startswith("/~/") else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        url = urlsplit(path)
        if url.password:
            raise QuernError("a password in an sftp:// URL is not used; log in with a key")
        where = url.netloc.rpartition("@")
        if not where[2]:
            raise QuernError("an sftp:// URL needs a host: sftp://host/path")
        return {"destination": f"ssh://{url.netloc}" if url.port else url.netloc}

    # -- what there is -------------------------------------------------------------------------

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        """Name, size in bytes and type. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        with self._session(path) as sftp:
            return _described(path, sftp.stat(path))

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[Any]:
        """What a directory holds."""
        path = self._strip_protocol(path)
        with self._session(path) as sftp:
            found = [_described(f"{path}/{a.filename}", a) for a in sftp.listdir_attr(path)]
        return found if detail else [entry["name"] for entry in found]

    # -- changing it ---------------------------------------------------------------------------

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and its parents."""
        path = self._strip_protocol(path)
        if self.isdir(path):
            if not exist_ok:
                raise FileExistsError(path)
            return
        parent = os.path.dirname(path)
        if parent:
            self.makedirs(parent, exist_ok=True)
        with self._session(path) as sftp:
            try:
                sftp.mkdir(path)
            except OSError:
                if not self.isdir(path):  # another writer may have made it meanwhile
                    raise

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        """Rename; what had the name is gone."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        with self._session(path2) as sftp:
            sftp.posix_rename(path1, path2)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        path = self._strip_protocol(path)
        with self._session(path) as sftp:
            sftp.remove(path)

    # -- bytes ---------------------------------------------------------------------------------

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        """A small file's bytes. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        with self._session(path) as sftp, sftp.open(path, "rb") as file:
            return file.read()[start:end]

    def get_file(
        self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **more: Any
    ) -> None:
        """Bring a file here, with many requests in flight. Raises FileNotFoundError."""
        size = self.info(rpath)["size"]
        with open(lpath, "wb") as file:
            work = Pull(
                self.connection,
                self._strip_protocol(rpath),
                0,
                size,
                file.fileno(),
                SILENCE_SECONDS,
            )
            _finish(work, size, callback)

    def put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, **more: Any
    ) -> None:
        """Send a file; what was there is overwritten."""
        rpath = self._strip_protocol(rpath)
        with self._session(rpath) as sftp, sftp.open(rpath, "w"):
            pass  # emptied: Push writes in place
        with open(lpath, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            work = Push(self.connection, rpath, 0, size, file.fileno(), SILENCE_SECONDS)
            _finish(work, size, callback)

    @contextmanager
    def _session(self, path: str) -> Iterator[paramiko.SFTPClient]:
        """An SFTP session of our own, one thread's at a time: paramiko's takes another thread's
        answers, and the connection's is the deploys'."""
        with self._using:
            connection = self.connection
            with connection.told():
                if self._client is None or self._of is not connection:
                    channel = connection.open_session()
                    channel.invoke_subsystem("sftp")
                    self._client, self._of = paramiko.SFTPClient(channel), connection
                    channel.settimeout(SILENCE_SECONDS)
                try:
                    yield self._client
                except OSError as error:
                    if error.filename is None and error.errno is not None:
                        error.filename = path
                    raise


def _finish(work: Pull | Push, size: int, callback: Any) -> None:
    callback.set_size(size)
    try:
        while not work.ended_within(LOOK_SECONDS):
            callback.absolute_update(work.done)
        work.check()
        callback.absolute_update(work.done)
    finally:
        work.stop()


def _described(path: str, found: paramiko.SFTPAttributes) -> dict[str, Any]:
    is_directory = stat.S_ISDIR(found.st_mode or 0)
    kind = "directory" if is_directory else "file"
    return {"name": path, "size": 0 if is_directory else found.st_size, "type": kind}
