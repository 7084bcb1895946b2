"""A line of the user's crontab. All other lines stay as they are, byte for byte."""

import os
import pwd
import shlex
import shutil
import sys
import time
from pathlib import Path

from tasks.core.errors import QuernError
from tasks.core.schedules.job import Job, Marker, in_words, name_of
from tasks.core.schedules.program import call, in_one_line, must

MINUTE, HOUR, DAY, WEEK = 60, 3600, 86400, 604800


def available() -> bool:
    """Whether there is a crontab program."""
    return shutil.which("crontab") is not None


def place(project: Path) -> str:
    """Whose crontab it is."""
    return f"the crontab of {pwd.getpwuid(os.getuid()).pw_name}"


def installed(project: Path) -> Marker | None:
    """The marker beside our line, None if either is missing or commented out."""
    own = [line for line in _lines() if _is_own(line, project)] if available() else []
    if not any(not line.startswith(b"#") for line in own):
        return None
    found = (Marker.read(line.decode(errors="replace").strip(), project) for line in own)
    return next(filter(None, found), None)


def install(job: Job) -> bool:
    """Put our two lines at the end of the crontab. Raises QuernError."""
    name = name_of(job.project)
    environment = [f"{key}={shlex.quote(value)}" for key, value in job.environment.items()]
    words = [*environment, *map(shlex.quote, job.arguments(jitter=True))]
    command = f"cd {shlex.quote(str(job.project))} && {' '.join(words)} # {name}"
    # To cron a bare % is the end of the command.
    line = f"{times(job.every)} " + command.replace("%", "\\%")
    own = [f"# {name}: {job.marker}\n".encode(), f"{line}\n".encode()]
    before = _lines()
    if [each for each in before if _is_own(each, job.project)] == own:
        return False
    others = [each for each in before if not _is_own(each, job.project)]
    if others and not others[-1].endswith(b"\n"):
        others[-1] += b"\n"
    must("crontab", "-", given=b"".join([*others, *own]))
    return True


def remove(project: Path) -> bool:
    """Take our lines out, and the crontab away if they were all of it. Raises QuernError."""
    before = _lines() if available() else []
    others = [line for line in before if not _is_own(line, project)]
    if len(others) == len(before):
        return False
    if others:
        must("crontab", "-", given=b"".join(others))
    else:
        must("crontab", "-r")
    return True


def next_run(project: Path) -> float | None:
    """The next minute that the line names."""
    marker = installed(project)
    if marker is None:
        return None
    minute = time.time() // MINUTE * MINUTE + MINUTE
    return next((m for m in _minutes(minute, WEEK) if _is_due(m, marker.every)), None)


def notes() -> list[str]:
    """That no cron daemon runs, where that can be seen."""
    if sys.platform != "linux" or any(_is_cron(path) for path in Path("/proc").glob("[0-9]*/comm")):
        return []
    return ["no cron daemon is running here; start it (Debian: service cron start)"]


def times(every: int) -> str:
    """The five fields for an interval in seconds. Raises QuernError for one that cron lacks."""
    if every == MINUTE:
        return "* * * * *"
    if every < HOUR and every % MINUTE == 0 and HOUR % every == 0:
        return f"*/{every // MINUTE} * * * *"
    if every == HOUR:
        return "0 * * * *"
    if every < DAY and every % HOUR == 0 and DAY % every == 0:
        return f"0 */{every // HOUR} * * *"
    if every in (DAY, WEEK):
        return "0 0 * * *" if every == DAY else "0 0 * * 0"
    raise QuernError(
        f"--every {in_words(every)}: cron can't express it; take minutes that divide an hour, "
        "hours that divide a day, 1d or 7d"
    )


def _lines() -> list[bytes]:
    done = call("crontab", "-l")
    if done.returncode == 0:
        return done.stdout.splitlines(keepends=True)
    if b"no crontab for" in done.stderr:
        return []
    raise QuernError(f"crontab -l: {in_one_line(done)}")


def _is_own(line: bytes, project: Path) -> bool:
    name = name_of(project).encode()
    return line.startswith(b"# " + name + b": ") or line.rstrip().endswith(b" # " + name)


def _minutes(first: float, span: int) -> list[float]:
    return [first + MINUTE * n for n in range(span // MINUTE + 1)]


def _is_due(moment: float, every: int) -> bool:
    now = time.localtime(moment)
    if every < HOUR:
        return now.tm_min % (every // MINUTE) == 0
    if every < DAY:
        return now.tm_min == 0 and now.tm_hour % (every // HOUR) == 0
    return now.tm_min == now.tm_hour == 0 and (every == DAY or now.tm_wday == 6)


def _is_cron(path: Path) -> bool:
    try:
        return path.read_text().strip() in ("cron", "crond", "fcron")
    except OSError:
        return False
