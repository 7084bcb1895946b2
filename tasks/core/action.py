"""The child's side of `tasks.core.child`: runs one function, ends with its parent.

Run as `python -m tasks.core.action FD`; the request is one JSON line on standard input, which
then stays open as the lifeline; events go to file descriptor FD as JSON lines.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from tasks.core.errors import QuernError, TryAgainLater

_events: int | None = None
_last_progress = 0.0
_parent_is_gone = False


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
    if _events is not None:
        os.write(_events, json.dumps(event).encode() + b"\n")


def _end_with_parent() -> None:
    global _parent_is_gone
    while os.read(0, 4096):
        pass
    _parent_is_gone = True
    # The lifeline closed: the parent is gone. Compilers and such below us go with us.
    os.killpg(0, signal.SIGTERM)
    time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _on_terminate(number: int, frame: object) -> None:
    if not _parent_is_gone:  # else the watching thread goes on to SIGKILL the group
        os._exit(128 + number)


def main() -> int:
    """Run the requested function; returns the process's exit status."""
    global _events
    _events = int(sys.argv[1])
    os.set_inheritable(_events, False)
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return 1
        line += piece
    request = json.loads(line)
    signal.signal(signal.SIGTERM, _on_terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path.insert(0, os.getcwd())
    try:
        module, _, name = request["function"].partition(":")
        result = getattr(importlib.import_module(module), name)(**request["arguments"])
        sys.stdout.flush()
        _send({"result": result})
        return 0
    except QuernError as error:
        _send({"error": str(error), "try_again_later": isinstance(error, TryAgainLater)})
    except OSError as error:
        traceback.print_exc()
        _send({"error": f"{error.filename or 'a file'}: {error.strerror or error}"})
    except BaseException as error:
        traceback.print_exc()
        summary = " ".join(str(error).split())[:300]
        _send({"error": f"unexpected {type(error).__name__}: {summary}"})
    return 1


if __name__ == "__main__":
    # Functions import this module by its real name: events must be sent from that one.
    from tasks.core import action

    status = action.main()
    sys.stdout.flush()
    os._exit(status)  # torch's and numpy's thread pools need no farewell
