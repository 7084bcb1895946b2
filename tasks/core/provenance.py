"""What a run was made of, for records: the project's commit, its configuration, who started it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tasks.core.digest import digest_of_bytes
from tasks.core.environment import configuration_file


def provenance(root: Path) -> dict[str, Any]:
    """{"commit", "dirty", "configuration", "command", "user", "machine"} of this run in the project
    `root`. `commit` is None outside a git checkout; `dirty` says whether files that git tracks
    differ from it; `configuration` is models.yaml's digest.
    """
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(_git(root, "status", "--porcelain", "-uno")),
        "configuration": digest_of_bytes((root / configuration_file()).read_bytes()),
        "command": " ".join(["doit", *sys.argv[1:]]),
        "user": user(),
        "machine": os.uname().nodename,
    }


def repository(root: Path) -> str | None:
    """Where the commit can be had, as SPDX's download locations have it (`git+https://…`): git's
    `origin` without user and password, else the checkout itself; None outside one.

    https://spdx.github.io/spdx-spec/v2.3/package-information/#77-package-download-location-field
    """
    checkout = _git(root, "rev-parse", "--show-toplevel")
    if checkout is None:
        return None
    origin = _git(root, "remote", "get-url", "origin") or checkout
    by_ssh = re.fullmatch(r"(?:[^/@]+@)?([^/:@]+):(.+)", origin)  # user@host:path
    if "://" in origin:
        url = urlsplit(origin)
        host = url.netloc.rpartition("@")[2]
        return f"git+{url.scheme}://{host}{url.path}"
    if by_ssh:
        return f"git+ssh://{by_ssh[1]}/{by_ssh[2].lstrip('/')}"
    return f"git+file://{quote(os.path.abspath(os.path.join(checkout, origin)))}"


def user() -> str:
    """The user's name, or number where it has none."""
    import getpass  # what it brings along would cost `doit list` milliseconds

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
