"""One project directory: its state, digest index, store, logs and work directories."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.core.digest import DigestIndex, digest_of_bytes
from tasks.core.intermediates import Intermediates
from tasks.core.lock import ProjectLock
from tasks.core.logs import rotated
from tasks.core.report import Announcement
from tasks.core.shared_store import SharedStore
from tasks.core.state import State
from tasks.core.store import Store


class Project:
    """Everything under `.quern/` of the directory doit runs in."""

    def __init__(self, root: Path) -> None:
        self.root, self.started = root, time.time()
        self.private = root / ".quern"
        self.lock = ProjectLock(self.private / "lock")
        self.announcements: list[Announcement] = []
        self.event: Callable[[str, dict[str, Any]], None] = _unattended

    def open(self) -> None:
        """Open the database, and the digest index and the store on it. Raises QuernError."""
        self.state = State(self.private / "state.db")
        self.index = DigestIndex(self.state)
        self.store = Store(self.private / "store", self.index)
        self.shared_store = SharedStore(self.store, self.state, self.warn)
        self.intermediates = Intermediates(self)

    def remove_leftovers(self) -> None:
        """Remove the work directories of killed runs; only for the holder of the lock."""
        shutil.rmtree(self.private / "work", ignore_errors=True)

    def work_directory(self, task: str) -> Path:
        """A fresh, empty directory for one run of a task."""
        work = self.private / "work" / file_name(task)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def log_path(self, task: str) -> Path:
        """Where a task's log is."""
        return self.private / "logs" / f"{file_name(task)}.log"

    def open_log(self, task: str) -> Path:
        """The task's log, ready to be appended to: rotated when over 1 MiB, five kept."""
        return rotated(self.log_path(task))

    def announce(self, task: str, kind: str, text: str) -> None:
        """Have one line told to those whom models.yaml's `notify` names, when the run is over."""
        self.hear(task, {"announce": {"kind": kind, "text": text}})

    def warn(self, text: str) -> None:
        """Have one line said on stderr that no task is to blame for, from any thread."""
        self.event("", {"warning": text})

    def hear(self, task: str, event: dict[str, Any]) -> None:
        """Something a task's process says, from any thread."""
        if "announce" in event:
            self.announcements.append(Announcement(task, **event["announce"]))
        self.event(task, event)

    def close(self) -> None:
        """Save the digest index and close the database."""
        try:
            self.index.save()
        finally:
            self.state.close()


def _unattended(task: str, event: dict[str, Any]) -> None:
    """What is told where no reporter of ours listens (`doit -r console`)."""
    if "warning" in event:
        sys.stderr.write(f"{event['warning']}\n")


def file_name(task: str) -> str:
    """A task's name as a file name of its own: `weights:digits` → `weights.digits`."""
    plain = "-_@"
    name = "".join(
        "." if c == ":" else c if c.isascii() and (c.isalnum() or c in plain) else f"%{ord(c):x}"
        for c in task
    )
    return name if len(name) <= 200 else f"{name[:160]}{digest_of_bytes(task.encode())}"
