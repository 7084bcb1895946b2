"""A Python function run in a process of its own, which never outlives the run that started it.

Its output goes to the task's log; what it has to say to the user comes back as JSON lines:
progress, notes, the result and the one-line error.
"""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.core.errors import LeftForLater, QuernError, TryAgainLater
from tasks.core.lifeline import Process, end, how_it_ended, start

LAST_WORDS_BYTES = 4096


def call_in_child(
    function: str,
    arguments: Mapping[str, Any],
    log: Path,
    on_event: Callable[[dict[str, Any]], None],
    limit_seconds: float = math.inf,
) -> Any:
    """Call `module:function` with keyword `arguments` (JSON values) and return its result.

    Raises QuernError (one line) when the function raises one, fails otherwise, is killed, or takes
    longer than the limit.
    """
    deadline = time.monotonic() + limit_seconds
    request = json.dumps({"function": function, "arguments": dict(arguments)}).encode()
    request_read, request_write = os.pipe()
    events_read, events_write = os.pipe()
    failure, result = None, None
    logged = log.stat().st_size if log.exists() else 0
    with os.fdopen(events_read, "rb", buffering=0) as events:
        with open(log, "ab") as output, _closed(request_read, events_write):
            child = [
                sys.executable,
                "-m",
                "tasks.core.action",
                str(request_read),
                str(events_write),
            ]
            process = start(
                child,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(request_read, events_write),
            )
        try:
            with contextlib.suppress(BrokenPipeError), os.fdopen(request_write, "wb") as writer:
                writer.write(request)
            for event in _events(events.fileno(), process, deadline):
                if "error" in event:
                    failure = _kind(event.get("kinds"))(str(event["error"]))
                elif "result" in event:
                    result = event["result"]
                else:
                    on_event(event)
            status = process.wait()
        finally:
            end(process)
    if failure is not None:
        raise failure
    if status:
        raise QuernError(f"its process {how_it_ended(status)}{_last_words(log, logged)}")
    return result


def _kind(names: Any) -> type[QuernError]:
    known = (LeftForLater, TryAgainLater)
    return next((kind for kind in known if kind.__name__ in (names or [])), QuernError)


def _last_words(log: Path, start: int) -> str:
    """The last lines that were logged from byte `start` on, for the end of a sentence."""
    with open(log, "rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
        text = file.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return f"; its last words: {' | '.join(lines[-3:])[-300:]} (in full: {log})" if lines else ""


def _events(descriptor: int, process: Process, deadline: float) -> Iterator[dict[str, Any]]:
    """The child's events, until it is gone; lines that aren't events are passed over."""
    rest = bytearray()
    while True:
        if time.monotonic() > deadline:
            raise QuernError("it took too long and was ended")
        # A daemon forked off by the child may hold the pipe for ever: its end alone won't do.
        ready, _, _ = select.select([descriptor], [], [], 0.2)
        if not ready:
            if process.poll() is not None:
                return
            continue
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return
        rest += piece
        if b"\n" in piece:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and event:
                        yield event


@contextlib.contextmanager
def _closed(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
