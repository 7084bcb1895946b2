"""Pins: releases of one model on one host that are kept, however old they are.

<root>/<model>/pinned.json    {id: {"why", "who", "at"}}
"""

import json
import time
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts.host import Host
from tasks.hosts.marks import who


class Pins:
    """The pins of `model`."""

    def __init__(self, host: Host, model: str) -> None:
        self.host, self.model = host, model
        self.path = host.root / model / "pinned.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Release id → {"why", "who", "at"}. Raises QuernError for a damaged file."""
        data = self.host.read(self.path)
        try:
            return dict(json.loads(data)) if data else {}
        except (ValueError, TypeError):
            raise QuernError(
                f"{self.host.name}: {self.path}: can't be read; mend or remove it"
            ) from None

    def put(self, release_id: str, why: str) -> None:
        """Keep a release. Raises QuernError when the host doesn't have it."""
        if release_id not in self.host.directories(self.host.root / self.model / "releases"):
            raise QuernError(f"{self.model} has no release {release_id} on {self.host.name}")
        pin = {"why": why, "who": who(), "at": time.time()}
        self._write({**self.read(), release_id: pin})

    def remove(self, release_id: str) -> bool:
        """Keep it no longer; returns whether it was pinned."""
        pins = self.read()
        if pins.pop(release_id, None) is None:
            return False
        self._write(pins)
        return True

    def _write(self, pins: dict[str, dict[str, Any]]) -> None:
        self.host.write(self.path, json.dumps(pins, ensure_ascii=False).encode())
