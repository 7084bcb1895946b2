"""Kills what a run has started when the run itself is gone, however it ended.

Run by file name and without site, so that it starts in milliseconds. Standard input is a pipe
whose other end only the run holds: it says `+N` when the process group N starts and `-N` when it
has ended; when the pipe ends, the groups still there are killed. The guardian also holds the
project's lock open, so that no next run starts beside what it is about to kill.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Follow the run to its end, then kill what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone ends us
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        if line.endswith(b"\n"):
            change = groups.add if line.startswith(b"+") else groups.discard
            change(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)  # macOS: EPERM when only zombies are left


if __name__ == "__main__":
    main()
