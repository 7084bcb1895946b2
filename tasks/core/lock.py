"""One run at a time per project directory.

An flock on `.quern/lock`: the kernel lets go of it however its holder dies, so it is never
stale. The file says who holds it. Of our children only the guardian keeps it open, for the
moment in which it kills what a killed run left (`tasks.core.guardian`).
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from tasks.core.errors import Busy, QuernError

LEFTOVERS_SECONDS = 5.0


class ProjectLock:
    """Held from acquire() to release() or the end of the process."""

    held: ClassVar[int | None] = None  # the descriptor, for the guardian

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting at most `wait_seconds`.

        Raises Busy, saying who holds it; QuernError when the folder can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise QuernError(
                f"{self.path}: can't be written ({error.strerror}); check the folder's permissions"
            ) from None
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = self._holder(descriptor)
                wait = wait_seconds if _is_alive(holder) else max(wait_seconds, LEFTOVERS_SECONDS)
                if time.monotonic() - started >= wait:
                    os.close(descriptor)
                    raise Busy(f"another doit is at work here: {_named(holder)}") from None
                time.sleep(0.05)
        holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.time()}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise QuernError(f"{self.path}: can't be written ({error.strerror})") from None
        self._descriptor = ProjectLock.held = descriptor
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Let the lock go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = ProjectLock.held = None

    @staticmethod
    def _holder(descriptor: int) -> dict[str, Any]:
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            return {"pid": int(holder["pid"]), "host": holder["host"], "since": holder["since"]}
        except (ValueError, KeyError, TypeError):
            return {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder lives; if not, the guardian is killing what it left."""
    if not holder or holder["host"] != os.uname().nodename:
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has just started"
    since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} since {since}"
