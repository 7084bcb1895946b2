"""Marks on releases of one model on one host: `failed` its probe, or `withdrawn` by a rollback.

<root>/<model>/quarantine/<id>.json    {"mark", "why", "who", "at"}
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.core.provenance import user
from tasks.hosts.host import Host

FAILED, WITHDRAWN = "failed", "withdrawn"


def who() -> str:
    """The user and process at work, for records."""
    return f"{user()} (process {os.getpid()})"


class Marks:
    """The marks on the releases of `model`."""

    def __init__(self, host: Host, model: str) -> None:
        self.host, self.model = host, model

    def put(self, release_id: str, mark: str, why: str) -> None:
        """Mark a release; it is not put live again until the mark is lifted."""
        told = {"mark": mark, "why": why, "who": who(), "at": time.time()}
        self.host.write(self._path(release_id), json.dumps(told, ensure_ascii=False).encode())

    def lift(self, release_id: str) -> None:
        """Take the mark off a release, if it has one."""
        self.host.remove_file(self._path(release_id))

    def read(self, release_id: str) -> dict[str, Any] | None:
        """The mark of a release, None if it has none."""
        recorded = self.host.read(self._path(release_id))
        return None if recorded is None else dict(json.loads(recorded))

    def is_withdrawn(self, release_id: str) -> bool:
        """Whether a rollback took the release off."""
        mark = self.read(release_id)
        return mark is not None and mark["mark"] == WITHDRAWN

    def check(self, release_id: str, retry: bool) -> None:
        """Raises QuernError for a release that failed before; `retry` lifts that mark instead. A
        withdrawn one keeps its mark until it is live."""
        mark = self.read(release_id)
        if mark is not None and mark["mark"] == FAILED:
            if retry:
                self.lift(release_id)
                return
            raise QuernError(
                f"release {release_id} failed before ({mark['why']}); what served still serves; "
                f"change it, or try it again: doit deploy:{self.model} --retry"
            )

    def _path(self, release_id: str) -> Path:
        return self.host.root / self.model / "quarantine" / f"{release_id}.json"
