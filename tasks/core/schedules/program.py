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
    """What a program prints. Raises QuernError with its last words when it fails."""
    done = call(*command, given=given)
    if done.returncode:
        raise QuernError(f"{' '.join(command)}: {last_words(done)}")
    return done.stdout


def last_words(done: "subprocess.CompletedProcess[bytes]") -> str:
    """The last line a program said, or its exit status."""
    lines = (done.stderr or done.stdout).decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"exit status {done.returncode}"
