"""Files in a place that fsspec reaches: s3://, sftp://, file://. Read whole, written whole.

A file gets its name only when all its bytes are there. Every wait has an end.
"""

import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from tasks.core.atomic import sync_directory
from tasks.core.digest import digest_of_bytes
from tasks.core.errors import QuernError

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes done, bytes in all

FIRST_ANSWER_SECONDS = 20.0
S3_CONNECT_SECONDS, S3_SILENCE_SECONDS, S3_ATTEMPTS, S3_PARTS = 5, 20, 2, 2
PASSWORD = re.compile(r"://([^/:@]*):(.*)@")
LOCAL = ("file", "local")
BY_SSH = ("sftp", "ssh")
# Here a file is seen while it is written, and a rename takes the place of what was there. What S3
# and its like are sent appears when it is whole.
RENAMING = (*LOCAL, *BY_SSH)


class RemoteFiles:
    """The files below `remote`, a URL; safe for several threads. `writer` tells its own unfinished
    files from those of others."""

    def __init__(self, remote: str, ssh_config: str | None, writer: str) -> None:
        import fsspec

        self._protocol = remote.partition("://")[0].lower()
        if self._protocol in BY_SSH:
            # fsspec's own accepts any host key. By name: core knows nothing of hosts.
            ours = import_module("tasks.hosts.sftp_files").SftpFiles
            fsspec.register_implementation(self._protocol, ours, clobber=True)
        self._files, self._root = fsspec.url_to_fs(remote, **_options(self._protocol, ssh_config))
        if self._protocol == "s3":
            self._files.retries = S3_ATTEMPTS
        self._writer = digest_of_bytes(f"{socket.gethostname()}:{writer}".encode())[:8]
        self.size("results")  # is anybody there?

    def read(self, name: str) -> bytes | None:
        """A small file's bytes, None if there is none."""
        try:
            data: bytes = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def size(self, name: str) -> int | None:
        """A file's bytes, None if there is none."""
        try:
            return int(self._files.info(self._path(name))["size"] or 0)
        except FileNotFoundError:
            return None

    def get(self, name: str, path: Path, progress: Progress) -> None:
        """Bring a file to `path`. Raises FileNotFoundError."""
        self._files.get_file(self._path(name), str(path), callback=_callback(progress))

    def put(self, path: Path, name: str, progress: Progress) -> None:
        """Send the file `path`; it takes the place of what has the name. One at a time."""
        there, callback = self._path(name), _callback(progress)
        if self._protocol not in RENAMING:
            self._files.put_file(str(path), there, callback=callback)
            return
        folder, _, last = there.rpartition("/")
        unfinished = f"{folder}/.{last}.{self._writer}.partial"
        self._files.makedirs(folder, exist_ok=True)
        try:
            self._files.put_file(str(path), unfinished, callback=callback)
            if self._protocol in LOCAL:
                _sync(unfinished)
            self._files.mv(unfinished, there)
            if self._protocol in LOCAL:
                sync_directory(Path(folder))
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(unfinished)
            raise

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def connect(remote: str, ssh_config: str | None, writer: str) -> RemoteFiles:
    """The files below `remote`, which has answered. Raises whatever its library raises, and
    TimeoutError."""
    return _within(FIRST_ANSWER_SECONDS, lambda: RemoteFiles(remote, ssh_config, writer))


def why(error: Exception, remote: str) -> str:
    """What went wrong, in one line without secrets."""
    if isinstance(error, ImportError):
        return f"{error}; pip install -e '.[store]' brings fsspec and s3fs"
    said = error.strerror if isinstance(error, OSError) else None
    text = " ".join(str(said or error).split())[:300] or type(error).__name__
    if not isinstance(error, QuernError | OSError):
        text = f"{type(error).__name__}: {text}"
    for secret in secrets_in(remote):
        text = text.replace(secret, "***").replace(unquote(secret), "***")
    return text


def secrets_in(remote: str) -> list[str]:
    """The password and the query of a URL, also of one that is none by the rules."""
    found = PASSWORD.search(remote.partition("?")[0])
    return [secret for secret in (found and found[2], remote.partition("?")[2]) if secret]


def without_secrets(remote: str) -> str:
    """A URL without its password and its query."""
    return PASSWORD.sub(r"://\1@", remote.partition("?")[0])


def _options(protocol: str, ssh_config: str | None) -> dict[str, Any]:
    # Cached instances and listings would outlive what they say.
    common = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in BY_SSH:
        return {**common, "ssh_config": ssh_config}
    if protocol == "s3":
        limits = {"connect_timeout": S3_CONNECT_SECONDS, "read_timeout": S3_SILENCE_SECONDS}
        config = {**limits, "retries": {"max_attempts": 1}}
        # Each part that is on its way is 50 MB in memory.
        return {**common, "config_kwargs": config, "max_concurrency": S3_PARTS}
    return common


def _callback(progress: Progress) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"progress": lambda size, value, **_: progress(value, size or 0)})


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises, in a thread that is left to itself when it takes too long:
    not every file system has time limits of its own. Raises TimeoutError."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer for {seconds:.0f} s")
    return answers[0]
