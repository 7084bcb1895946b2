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
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from types import CodeType
from typing import Any

from tasks.core.errors import QuernError, in_one_line

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


def announce(kind: str, text: str) -> None:
    """Have one line told to those whom models.yaml's `notify` names, when the run is over."""
    _send({"announce": {"kind": kind, "text": text}})


def _send(event: dict[str, Any]) -> None:
    if _events is None:
        return
    with _sending:
        line = json.dumps(event).encode() + b"\n"
        while line:
            line = line[os.write(_events, line) :]


class FromSource(SourceFileLoader):
    """Compiles a module from its source each time.

    Python trusts a .pyc by whole seconds and size: an edit that keeps both would run the old
    code under the new source's digest, and its result would stay in the store.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The code of the source as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _own_folder(path: str) -> FileFinder:
    """An entry of sys.path_hooks for the project's own folders."""
    own = os.path.abspath(path).startswith(os.getcwd()) and "site-packages" not in path
    if not own:
        raise ImportError(path)
    return FileFinder(
        path, (FromSource, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)
    )


def main() -> int:
    """Run the requested function; returns the process's exit status."""
    global _events
    _events = int(sys.argv[2])
    os.set_inheritable(_events, False)
    with open(int(sys.argv[1]), "rb") as reader:
        request = json.load(reader)
    sys.path.insert(0, os.getcwd())
    sys.path_hooks.insert(0, _own_folder)
    sys.path_importer_cache.clear()
    try:
        module, _, name = request["function"].partition(":")
        result = getattr(importlib.import_module(module), name)(**request["arguments"])
        sys.stdout.flush()
        _send({"result": result})
        return 0
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        _send({"error": in_one_line(error), "kinds": kinds})
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
