"""What unattended runs leave behind: their output in `.quern/logs/run.log`, each line with its
time, and how the last one ended in `.quern/last-run.json`."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from tasks.core.atomic import write_atomically
from tasks.core.logs import rotated

LOG = Path(".quern/logs/run.log")
LAST_RUN = Path(".quern/last-run.json")


def append(text: str, path: Path = LOG) -> None:
    """Append a line with its time; a log that can't be written (a full disk) fails nothing."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
    with contextlib.suppress(OSError), open(rotated(path), "a", encoding="utf-8") as log:
        log.write(line)


def last_lines(count: int, path: Path = LOG) -> list[str]:
    """The last lines of the log, none if there is no log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def last_run(path: Path = LAST_RUN) -> dict[str, Any] | None:
    """{"started", "ended" (seconds since 1970), "status"} of the last unattended run."""
    try:
        run = json.loads(path.read_bytes())
        return {key: run[key] for key in ("started", "ended", "status")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class RunLog:
    """One unattended run: its streams, copied to the log, and its end."""

    def __init__(self) -> None:
        self.started = time.time()
        self.lines = 0
        self.dropped = False
        self._lock = threading.Lock()

    def copy(self, stream: TextIO) -> "CopiedStream":
        """The stream, which then also writes to the log."""
        return CopiedStream(stream, self)

    def drop(self) -> None:
        """Leave no trace: another run is at work, and this one did nothing."""
        self.dropped = True

    def line(self, text: str) -> None:
        """One line that was said."""
        if not self.dropped:
            with self._lock:
                self.lines += 1
                append(text)

    def end(self, status: int) -> None:
        """The run is over; one that had nothing to say stays out of the log."""
        if self.dropped:
            return
        ended = time.time()
        if self.lines:
            self.line(f"exit status {status} after {ended - self.started:.1f} s")
        run = {"started": self.started, "ended": ended, "status": status}
        with contextlib.suppress(OSError):
            write_atomically(LAST_RUN, json.dumps(run).encode() + b"\n")


class CopiedStream:
    """A text stream whose whole lines also go to the log. Never a terminal: no bars."""

    def __init__(self, stream: TextIO, log: RunLog) -> None:
        self._stream, self._log = stream, log
        self._rest = ""

    def write(self, text: str) -> int:
        """Write to the log, then to the stream, which may be closed at its other end."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log.line(line)
        return self._stream.write(text)

    def isatty(self) -> bool:
        """False."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
