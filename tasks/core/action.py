"""The child's side of `tasks.core.child`: runs one function.

Run as `python -m tasks.core.action REQUEST EVENTS`, two file descriptors: the request is one JSON
object, events go back as JSON lines.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

from tasks.core.errors import QuernError, TryAgainLater, in_one_line

_events: int | None = None
_last_progress = 0.0
_sending = threading.Lock()


def progress(label: str, done: float, total: float, unit: str = "B") -> None:
    """Tell the user how far a step is: `done` of `total` in `unit` ("B" for bytes)."""
    global _last_progress
    now = time.monotonic()
    if done < total and now - _last_progress < 0.1:
        return
    _last_progress = now
    _send({"progress": {"label": label, "done": done, "total": total, "unit": unit}})


def note(text: str) -> None:
    """Say one line to the user about what was done differently than they may expect."""
    _send({"note": text})


def _send(event: dict[str, Any]) -> None:
    if _events is None:
        return
    with _sending:
        line = json.dumps(event).encode() + b"\n"
        while line:
            line = line[os.write(_events, line) :]


def main() -> int:
    """Run the requested function; returns the process's exit status."""
    global _events
    _events = int(sys.argv[2])
    os.set_inheritable(_events, False)
    with open(int(sys.argv[1]), "rb") as reader:
        request = json.load(reader)
    sys.path.insert(0, os.getcwd())
    try:
        module, _, name = request["function"].partition(":")
        result = getattr(importlib.import_module(module), name)(**request["arguments"])
        sys.stdout.flush()
        _send({"result": result})
        return 0
    except BaseException as error:
        later = isinstance(error, TryAgainLater)
        _send({"error": in_one_line(error), "try_again_later": later})
        if not isinstance(error, QuernError):
            with contextlib.suppress(OSError):  # the disk may be full
                traceback.print_exc()
    return 1


if __name__ == "__main__":
    # Functions import this module by its real name: events must be sent from that one.
    from tasks.core import action

    status = action.main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # torch's and numpy's thread pools need no farewell
