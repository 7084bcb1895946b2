"""Runs one command, and ends it and all it started when the run that asked for it is gone.

Run by file name and without site, so that it starts in milliseconds: `guardian.py LOCK COMMAND…`.
Standard input is the lifeline, one end of a socket that only the run holds the other end of: a
byte on it asks for a gentle end, its end (the run died, however) means kill. The guardian holds
the project's lock (file descriptor LOCK, or -1) too: no next run starts beside what it ends.
"""

import os
import select
import signal
import sys
import time

GRACE_SECONDS = 3.0
RESTORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def main() -> int:
    """Run the command in a process group of its own; its status, or 128 + the signal's number."""
    lock, command = int(sys.argv[1]), sys.argv[2:]
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the lifeline alone ends us
    if lock >= 0:
        os.set_inheritable(lock, False)
    try:
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigdef=RESTORED,
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    deadline = None
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        ready, _, _ = select.select([0, woken], [], [], left)
        if woken in ready:
            os.read(woken, 4096)
        if 0 in ready:
            if not os.read(0, 1):
                break
            end_group(child, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
    end_group(child, signal.SIGKILL)  # before it is waited for: its number is still taken
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def end_group(group: int, number: signal.Signals) -> None:
    """Signal the command and all below it that did not leave its group."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # macOS: EPERM when only zombies are left


if __name__ == "__main__":
    os._exit(main())
