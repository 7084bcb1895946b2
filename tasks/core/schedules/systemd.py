"""A service and a timer of the user's own systemd."""

import json
import os
import pwd
import shutil
from pathlib import Path

from tasks.core.atomic import write_atomically
from tasks.core.errors import QuernError
from tasks.core.schedules.job import Job, Marker, name_of, not_ours
from tasks.core.schedules.program import call, must

LONGEST_RUN = "12h"

# KillMode: a deploy starts the server that must go on when the run is over.
# The shell: systemd takes no program with a quote in its path. The colon: systemd itself expands
# no `$`. 75 is "try again later", no failure.
SERVICE = """\
# {marker}
[Unit]
Description=Quern in {project}

[Service]
Type=oneshot
WorkingDirectory={project}
{environment}ExecStart=:/bin/sh -c 'exec "$0" "$@"' {command}
TimeoutStartSec={longest}
KillMode=process
SuccessExitStatus=75
"""
TIMER = """\
# {marker}
[Unit]
Description=Quern in {project}

[Timer]
OnBootSec=5min
OnUnitInactiveSec={every}s
RandomizedDelaySec={jitter}s

[Install]
WantedBy=timers.target
"""


def available() -> bool:
    """Whether a systemd of the user's answers: the program alone says nothing."""
    return bool(shutil.which("systemctl")) and _systemctl("show-environment")


def place(project: Path) -> str:
    """The timer's file."""
    return str(_files(project)[1])


def installed(project: Path) -> Marker | None:
    """The timer's marker."""
    markers = [Marker.read(_text(path) or "", project) for path in _files(project)]
    return markers[1] if all(markers) else None


def install(job: Job) -> bool:
    """Write both units, enable and start the timer. Raises QuernError."""
    environment = [f"Environment={_word(f'{k}={v}')}\n" for k, v in job.environment.items()]
    values = {
        "marker": job.marker,
        "project": str(job.project).replace("%", "%%"),
        "environment": "".join(environment),
        "command": " ".join(map(_word, job.arguments(jitter=False))),
        "longest": LONGEST_RUN,
        "every": job.every,
        "jitter": job.jitter,
    }
    wanted = [SERVICE.format(**values), TIMER.format(**values)]
    paths = _files(job.project)
    timer = paths[1].name
    before = [_text(path) for path in paths]
    for path, text in zip(paths, before, strict=True):
        if text is not None and Marker.read(text, job.project) is None:
            raise not_ours(path)
    same = before == wanted
    if same and _systemctl("is-enabled", timer) and _systemctl("is-active", timer):
        return False
    for path, text in zip(paths, wanted, strict=True):
        write_atomically(path, text.encode())
    try:
        must("systemctl", "--user", "daemon-reload")
        must("systemctl", "--user", "enable", timer)
        must("systemctl", "--user", "restart", timer)  # a running one keeps its old times else
    except QuernError:
        remove(job.project)  # files alone would look installed
        raise
    return True


def remove(project: Path) -> bool:
    """Stop the timer and remove both units; a run at work ends by itself. Raises QuernError."""
    own = [path for path in _files(project) if Marker.read(_text(path) or "", project)]
    if not own:
        return False
    if shutil.which("systemctl"):
        _systemctl("disable", "--now", _files(project)[1].name)
    for path in own:
        path.unlink(missing_ok=True)
    if shutil.which("systemctl"):
        _systemctl("daemon-reload")
    return True


def next_run(project: Path) -> float | None:
    """What `systemctl list-timers` says."""
    if not shutil.which("systemctl"):
        return None
    timer = _files(project)[1].name
    done = call("systemctl", "--user", "list-timers", "--all", "--output=json", timer)
    try:
        return float(json.loads(done.stdout)[0]["next"]) / 1e6 or None
    except (ValueError, LookupError, TypeError):
        return None


def notes() -> list[str]:
    """That nothing runs while the user is logged out."""
    if not shutil.which("loginctl"):
        return []
    user = pwd.getpwuid(os.getuid()).pw_name
    done = call("loginctl", "show-user", user, "--property=Linger", "--value")
    if done.stdout.strip() == b"yes":
        return []
    return ["lingering is off: nothing runs while you are logged out; run: loginctl enable-linger"]


def _systemctl(*arguments: str) -> bool:
    return call("systemctl", "--user", *arguments).returncode == 0


def _files(project: Path) -> list[Path]:
    """The service's and the timer's."""
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    folder = Path(configuration) / "systemd" / "user"
    return [folder / f"{name_of(project)}.{kind}" for kind in ("service", "timer")]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _word(text: str) -> str:
    """One word of a unit's command line or environment."""
    return '"' + text.replace('"', '\\"').replace("%", "%%") + '"'
