"""Who deploys: the name in a host's lock, in marks and in the history."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.core.errors import Busy
from tasks.core.provenance import user


@dataclass(frozen=True)
class Deployer:
    """A user's process on a machine; `since` in seconds since 1970, by that machine's clock."""

    user: str
    process: int
    machine: str
    since: float

    @classmethod
    def here(cls) -> "Deployer":
        """This process."""
        return cls(user(), os.getpid(), os.uname().nodename, time.time())

    def as_line(self) -> bytes:
        """As JSON, for a lock file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{self.user} (process {self.process} on {self.machine}) since {since}"


class HostBusy(Busy):
    """Another deployer holds the lock `path` of host `name`; `line` is what it wrote there."""

    def __init__(self, name: str, path: Path, line: bytes) -> None:
        try:
            holder = str(Deployer(**json.loads(line)))
        except (ValueError, TypeError):
            holder = "a deployer that has just started"
        super().__init__(f"{name}: {path.parent.name} is being deployed by {holder}")
