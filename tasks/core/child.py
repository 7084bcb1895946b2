"""A Python function run in a process of its own, which never outlives the run that started it.

The child leads a process group and holds the read end of a pipe whose write end only we have:
when we die, however, the pipe closes and the child ends its group (see `tasks.core.action`).
When the child dies, we end what is left of its group. Its output goes to the task's log; what
it has to say to the user comes back as JSON lines: progress, notes, and the one-line error.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError, TryAgainLater

GRACE_SECONDS = 3.0

_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()


def call_in_child(
    function: str,
    arguments: Mapping[str, Any],
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    directory: Path | None = None,
) -> Any:
    """Call `module:function` with keyword `arguments` (JSON values) and return its result.

    Raises QuernError (one line) when the function raises one, fails otherwise, or is killed.
    """
    read_end, write_end = os.pipe()
    failure, result = None, None
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.core.action", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            start_new_session=True,
            cwd=directory,
        )
    os.close(write_end)
    with _running_lock:
        _running.add(process)
    try:
        assert process.stdin is not None
        request = json.dumps({"function": function, "arguments": dict(arguments)})
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        with os.fdopen(read_end, "rb") as events:
            for line in events:
                event = json.loads(line)
                if "error" in event:
                    kind = TryAgainLater if event.get("try_again_later") else QuernError
                    failure = kind(event["error"])
                elif "result" in event:
                    result = event["result"]
                else:
                    on_event(event)
        status = process.wait()
    finally:
        end_group(process)
        with _running_lock:
            _running.discard(process)
    if failure is not None:
        raise failure
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        raise QuernError(f"its process was ended by {name}{hint}")
    if status:
        raise QuernError(f"its process ended with status {status}")
    return result


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything in its process group: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def end_all_children() -> None:
    """End every child still running; for the end of an interrupted run."""
    with _running_lock:
        processes = list(_running)
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    for process in processes:
        end_group(process)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
