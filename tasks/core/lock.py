"""One run at a time per project directory.

An flock on `.quern/lock`: the kernel lets go of it however its holder dies, so it is never
stale. The file says who holds it. Children don't inherit the descriptor.
"""

import fcntl
import json
import os
import time
from pathlib import Path

from tasks.core.errors import QuernError, TryAgainLater


class ProjectLock:
    """Held from acquire() to release() or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting at most `wait_seconds`.

        Raises TryAgainLater, saying who holds it; QuernError when the folder can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise QuernError(
                f"{self.path}: can't be written ({error.strerror}); check the folder's permissions"
            ) from None
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = self._holder(descriptor)
                    os.close(descriptor)
                    raise TryAgainLater(f"another doit is at work here: {holder}") from None
                time.sleep(0.05)
        holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.time()}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise QuernError(f"{self.path}: can't be written ({error.strerror})") from None
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the lock go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _holder(descriptor: int) -> str:
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
            return f"process {holder['pid']} on {holder['host']} since {since}"
        except (ValueError, KeyError, TypeError):
            return "a process that has just started"
