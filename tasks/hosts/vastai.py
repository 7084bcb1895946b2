"""Where an instance rented on vast.ai is reached: their own command line program says so
(vast.ai/docs/cli, `vastai ssh-url`)."""

import re
import subprocess
from functools import lru_cache

from tasks.core.errors import QuernError, TryAgainLater

ANSWER_SECONDS = 60


@lru_cache
def address_of(instance: int) -> str:
    """`ssh://user@host:port` of an instance; asked once in a run.

    Raises QuernError when the program is missing or refuses, TryAgainLater when it doesn't answer.
    """
    command = ["vastai", "ssh-url", str(instance)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except FileNotFoundError:
        raise QuernError(
            f"vastai {instance}: there is no program vastai; pip install vastai, then "
            "vastai set api-key"
        ) from None
    except subprocess.TimeoutExpired:
        raise TryAgainLater(f"{' '.join(command)}: no answer for {ANSWER_SECONDS} s") from None
    found = re.findall(r"^ssh://[\w.@:-]+$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1][:200]
        raise QuernError(f"{' '.join(command)}: it prints no address; it says: {said}")
    return str(found[-1])
