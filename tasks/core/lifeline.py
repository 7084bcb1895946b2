"""Commands that never outlive the run that started them, however it ends.

Each runs under a guardian (`tasks.core.guardian`) that holds the other end of a socket of ours:
when we die the kernel closes our end, and the guardian kills the command and all below it.
"""

import contextlib
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any

from doit.action import CmdAction
from doit.exceptions import BaseFail

from tasks.core.guardian import GRACE_SECONDS
from tasks.core.lock import ProjectLock

GUARDIAN = str(Path(__file__).with_name("guardian.py"))

_tied: set["Lifeline"] = set()
_tied_lock = threading.Lock()


class Lifeline:
    """Ties one command to this process, from its creation to end()."""

    def __init__(self) -> None:
        import socket  # slow to import, and a run that has nothing to do needs none

        self._ours, self._theirs = socket.socketpair()
        with _tied_lock:
            _tied.add(self)

    def command(self, command: list[str]) -> list[str]:
        """The command line that runs `command` under a guardian."""
        lock = -1 if ProjectLock.held is None else ProjectLock.held
        return [sys.executable, "-IS", GUARDIAN, str(lock), *command]

    def popen_arguments(self, *pass_fds: int) -> dict[str, Any]:
        """What subprocess.Popen needs to start it."""
        lock = () if ProjectLock.held is None else (ProjectLock.held,)
        return {
            "stdin": self._theirs,
            "start_new_session": True,  # no terminal: what would ask a question fails instead
            "pass_fds": (*lock, *pass_fds),
        }

    def ask_to_end(self) -> None:
        """SIGTERM to the command and all below it; SIGKILL to what is left after a while."""
        with contextlib.suppress(OSError):
            self._ours.send(b".")

    def end(self) -> None:
        """End the command if it still runs; returns when it is gone."""
        self.ask_to_end()
        with contextlib.suppress(OSError, ValueError):
            self._theirs.close()
            select.select([self._ours], [], [], GRACE_SECONDS + 1)  # readable: the guardian left
        self._ours.close()
        with _tied_lock:
            _tied.discard(self)


def end_all() -> None:
    """End every command still running; for the end of an interrupted run."""
    with _tied_lock:
        lifelines = list(_tied)
    for lifeline in lifelines:
        lifeline.ask_to_end()
    for lifeline in lifelines:
        lifeline.end()


class GuardedCommand(CmdAction):  # type: ignore[misc]
    """doit's shell command, run under a guardian."""

    @classmethod
    def guard(cls, action: Any) -> None:
        """Turn a plain CmdAction into a guarded one; those with a stdin of their own stay."""
        if type(action) is CmdAction and not set(action.pkwargs) - {"cwd", "env"}:
            action.__class__ = cls

    def execute(self, out: Any = None, err: Any = None) -> BaseFail | None:
        """Run the command; see doit's CmdAction.execute."""
        self._lifeline = Lifeline()
        self._shown = ""
        shell, pkwargs = self.shell, self.pkwargs
        self.shell, self.pkwargs = False, {**pkwargs, **self._lifeline.popen_arguments()}
        try:
            failure: BaseFail | None = super().execute(out, err)
        finally:
            self.shell, self.pkwargs = shell, pkwargs
            self._lifeline.end()
        if failure is not None and self._shown:
            status = failure.message.rpartition(" ")[2]
            failure.message = f"command {self._shown!r} ended with status {status}"
        return failure

    def expand_action(self) -> list[str]:
        """The command with doit's values filled in, behind its guardian."""
        action = super().expand_action()
        self._shown = " ".join((action if isinstance(action, str) else " ".join(action)).split())
        if len(self._shown) > 200:
            self._shown = f"{self._shown[:197]}…"
        return self._lifeline.command(
            ["/bin/sh", "-c", action] if isinstance(action, str) else action
        )


def _let_go() -> None:
    # In a process forked off this one, which may live longer than it.
    for lifeline in _tied:
        with contextlib.suppress(OSError):
            os.close(lifeline._ours.fileno())


os.register_at_fork(after_in_child=_let_go)
