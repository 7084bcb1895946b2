"""A launchd agent of the user's, on macOS."""

import os
import plistlib
import shutil
import time
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.errors import QuernError
from tasks.core.run_log import last_run
from tasks.core.schedules.job import Job, Marker, name_of, not_ours
from tasks.core.schedules.program import call, must

BOOTSTRAP_TRIES = 10
FOLDERS = "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def available() -> bool:
    """Whether there is a launchctl: on a Mac."""
    return shutil.which("launchctl") is not None


def place(project: Path) -> str:
    """The agent's file."""
    return str(_file(project))


def installed(project: Path) -> Marker | None:
    """The marker in the agent's environment."""
    try:
        agent = plistlib.loads(_file(project).read_bytes())
        return Marker.read(agent["EnvironmentVariables"]["QUERN_SCHEDULE"], project)
    except (OSError, ValueError, KeyError, TypeError, plistlib.InvalidFileException):
        return None


def install(job: Job) -> bool:
    """Write the agent and load it. Raises QuernError."""
    path, wanted = _file(job.project), plistlib.dumps(agent(job))
    before = path.read_bytes() if path.exists() else None
    if before is not None and installed(job.project) is None:
        raise not_ours(path)
    service = f"{_domain()}/{path.stem}"
    loaded = call("launchctl", "print", service).returncode == 0
    if loaded and before == wanted:
        return False
    (job.project / ".quern" / "logs").mkdir(parents=True, exist_ok=True)  # launchd makes none
    write_atomically(path, wanted)
    try:
        if loaded:
            must("launchctl", "bootout", service)
        _bootstrap(path)
    except QuernError:
        remove(job.project)  # a file alone would look installed
        raise
    return True


def agent(job: Job) -> dict[str, Any]:
    """The property list. No `Nice`: the server that a deploy starts would inherit it."""
    log = str(job.project / ".quern" / "logs" / "launchd.log")
    return {
        "Label": name_of(job.project),
        "ProgramArguments": job.arguments(jitter=True),
        "WorkingDirectory": str(job.project),
        "StartInterval": job.every,
        "EnvironmentVariables": {
            "PATH": f"{job.program.parent}:{FOLDERS}",
            **job.environment,
            "QUERN_SCHEDULE": str(job.marker),
        },
        "StandardOutPath": log,
        "StandardErrorPath": log,
        # A deploy starts the server that must go on when the run is over.
        "AbandonProcessGroup": True,
    }


def remove(project: Path) -> bool:
    """Unload the agent and remove its file. Raises QuernError."""
    if installed(project) is None:
        return False
    path = _file(project)
    call("launchctl", "bootout", f"{_domain()}/{path.stem}")
    path.unlink(missing_ok=True)
    return True


def next_run(project: Path) -> float | None:
    """One interval after the last run began; launchd itself doesn't say."""
    marker, last = installed(project), last_run()
    return float(last["started"]) + marker.every if marker and last else None


def notes() -> list[str]:
    """None."""
    return []


def _bootstrap(path: Path) -> None:
    # For a moment after a bootout launchd refuses the same label.
    for _ in range(BOOTSTRAP_TRIES - 1):
        if call("launchctl", "bootstrap", _domain(), str(path)).returncode == 0:
            return
        time.sleep(0.5)
    must("launchctl", "bootstrap", _domain(), str(path))


def _domain() -> str:
    return f"gui/{os.getuid()}"


def _file(project: Path) -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"{name_of(project)}.plist"
