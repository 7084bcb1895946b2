"""Commands that never outlive the run that started them, however it ends.

Each leads a process group of its own. A guardian (`tasks.core.guardian`), one per run and started
with the first command, kills the groups that are left when we die.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

from doit.action import CmdAction
from doit.exceptions import BaseFail, TaskError, TaskFailed

from tasks.core.lock import ProjectLock

GRACE_SECONDS = 3.0
GUARDIAN = str(Path(__file__).with_name("guardian.py"))
# The command starts when its group is known to the guardian; if we die before, it never does.
WAIT_FOR_WORD = 'read -r word && exec "$@" </dev/null'

Process = subprocess.Popen[bytes]

_running: set[Process] = set()
_guardian: Process | None = None
_lock = threading.RLock()


def start(command: list[str], **popen: Any) -> Process:
    """Start `command` without standard input; the caller ends it with end(). Raises OSError."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", WAIT_FOR_WORD, command[0], *command],
        stdin=subprocess.PIPE,
        start_new_session=True,  # no terminal: what would ask a question fails instead
        **popen,
    )
    with _lock:
        _running.add(process)
        _tell_guardian(f"+{process.pid}\n")
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"\n")
    return process


def end(process: Process) -> None:
    """End a command and all below it that did not leave its group: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    with _lock:
        _running.discard(process)
        _tell_guardian(f"-{process.pid}\n")


def end_all() -> None:
    """End every command that still runs, and the guardian; for the end of a run."""
    global _guardian
    with _lock:
        processes = list(_running)
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    for process in processes:
        end(process)
    with _lock:
        guardian, _guardian = _guardian, None
    if guardian is not None:
        guardian.communicate()


def _tell_guardian(word: str) -> None:
    global _guardian
    if _guardian is None:
        held = ProjectLock.held
        _guardian = subprocess.Popen(
            [sys.executable, "-IS", GUARDIAN],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if held is None else (held,),
        )
    assert _guardian.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        _guardian.stdin.write(word.encode())
        _guardian.stdin.flush()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _let_go() -> None:
    # A process forked off this one may live longer than it.
    global _guardian
    if _guardian is not None and _guardian.stdin is not None:
        os.close(_guardian.stdin.fileno())
        _guardian = None


os.register_at_fork(after_in_child=_let_go)


class GuardedCommand(CmdAction):  # type: ignore[misc]
    """doit's shell command, ended with the run."""

    @classmethod
    def guard(cls, action: Any) -> None:
        """Turn a plain CmdAction into a guarded one; those with more options of Popen stay."""
        if type(action) is CmdAction and not set(action.pkwargs) - {"cwd", "env"}:
            action.__class__ = cls

    def execute(self, out: Any = None, err: Any = None) -> BaseFail | None:
        """Run the command: its output to `out` and `err`, and kept. See doit's CmdAction."""
        try:
            action = self.expand_action()
        except (KeyError, IndexError, ValueError) as error:
            return TaskFailed(f"its command can't be filled in: {type(error).__name__} {error}")
        command = ["/bin/sh", "-c", action] if isinstance(action, str) else action
        try:
            process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **self.pkwargs)
        except OSError as error:
            return TaskFailed(f"{error.filename or command[0]}: {error.strerror}")
        try:
            captured = StringIO(), StringIO()
            readers = [
                threading.Thread(
                    target=self._print_process_output, args=(process, pipe, text, stream)
                )
                for pipe, text, stream in zip(
                    (process.stdout, process.stderr), captured, (out, err), strict=True
                )
            ]
            for reader in readers:
                reader.start()
            status = process.wait()
        finally:
            end(process)
        for reader in readers:
            reader.join(GRACE_SECONDS)  # a daemon that left the group may hold the pipe for ever
        self.out, self.err = (text.getvalue() for text in captured)
        self.result = self.out + self.err
        if status:
            shown = " ".join((action if isinstance(action, str) else " ".join(action)).split())
            shown = shown if len(shown) <= 200 else f"{shown[:199]}…"
            kind = TaskFailed if 0 < status <= 125 else TaskError
            return kind(f"command {shown!r} {how_it_ended(status)}")
        if self.save_out:
            self.values[self.save_out] = self.out
        return None


def how_it_ended(status: int) -> str:
    """A non-zero exit status (negative: a signal's number) in words."""
    if status == 127:
        return "ended with status 127 (program not found)"
    if status >= 0:
        return f"ended with status {status}"
    hint = " (out of memory?)" if status == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{hint}"
