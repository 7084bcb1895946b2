"""The platform's own programs (crontab, systemctl, launchctl), called with a time limit."""

import subprocess
from typing import Any

from tasks.core.errors import QuernError

LIMIT_SECONDS = 60


def call(
    *command: str, given: bytes | None = None, **more: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program to its end. Raises QuernError when it isn't there or doesn't end."""
    try:
        return subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            **more,
        )
    except OSError as error:
        raise QuernError(f"{command[0]}: {error.strerror}; is it installed?") from None
    except subprocess.TimeoutExpired:
        raise QuernError(f"{command[0]}: no answer after {LIMIT_SECONDS} s") from None


def must(*command: str, given: bytes | None = None) -> bytes:
    """What a program prints. Raises QuernError with what it said when it fails."""
    done = call(*command, given=given)
    if done.returncode:
        raise QuernError(f"{' '.join(command)}: {in_one_line(done)}")
    return done.stdout


def in_one_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What a program said, or else its exit status."""
    said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
    return said[:300] or f"exit status {done.returncode}"
