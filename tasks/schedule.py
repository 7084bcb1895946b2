"""`doit schedule install|show|remove`: `doit --cron` at regular times, by the platform's means."""

import json as json_format
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks.core import run_log
from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.errors import QuernError
from tasks.core.schedules import crontab, launchd, systemd
from tasks.core.schedules.job import Job, in_words, name_of, seconds
from tasks.core.schedules.program import call, in_one_line

WAYS = {"systemd": systemd, "launchd": launchd, "crontab": crontab}
# What decides which build a run is, and no schedule sets by itself.
KEPT_VARIABLES = ("QUERN_MODELS", "PYTHONPATH")
SHORTEST_INTERVAL = 60
LOG_LINES = 5


class Schedule(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Has `doit --cron` run regularly with nobody watching (docs/unattended.md)."""

    name = "schedule"
    doc_purpose = "run doit at regular times: install, show or remove that"
    doc_usage = "install|show|remove"
    doc_description = None
    cmd_options = (
        {
            "name": "every",
            "long": "every",
            "default": "30m",
            "help": "how long from run to run: 30m, 6h, 1d [default: %(default)s]",
        },
        {
            "name": "jitter",
            "long": "jitter",
            "default": "0s",
            "help": "wait a random part of this before each run [default: %(default)s]",
        },
        {
            "name": "by",
            "long": "by",
            "default": "",
            "help": "systemd, launchd or crontab [default: what the platform has]",
        },
        option_json,
    )

    def _with_project(self, params: Any, args: list[str]) -> int:
        # No tasks are loaded: a fault in models.yaml must not keep a schedule from being removed.
        project = Path.cwd()
        if args == ["install"]:
            return self._install(project, params["every"], params["jitter"], params["by"])
        if args == ["show"]:
            return self._show(project, params["json"])
        if args == ["remove"]:
            return self._remove(project)
        raise QuernError("schedule: say install, show or remove; see: doit help schedule")

    def _install(self, project: Path, every: str, jitter: str, by: str) -> int:
        job = Job(
            project,
            Path(sys.executable).with_name("doit"),
            seconds("--every", every),
            seconds("--jitter", jitter),
            {name: os.environ[name] for name in KEPT_VARIABLES if os.environ.get(name)},
        )
        if job.every < SHORTEST_INTERVAL:
            raise QuernError(f"--every {every}: must be a minute or more")
        if job.jitter >= job.every:
            raise QuernError(f"--jitter {jitter}: must be less than --every {every}")
        chosen = way_of_the_platform(by)
        way = WAYS[chosen]
        refuse_what_would_not_start(job)
        before = way.installed(project)
        changed = way.install(job)
        for other in WAYS.values():
            if other is not way:
                changed = other.remove(project) or changed
        verb = "nothing changed" if not changed else "replaced" if before else "installed"
        self._say(f"{verb}: {described(project, way, chosen)}", *way.notes())
        return 0

    def _show(self, project: Path, json: bool) -> int:
        found = [(name, way) for name, way in WAYS.items() if way.installed(project)]
        told = state(project, *found[0]) if found else {"installed": False}
        if json:
            self._say(json_format.dumps(told, indent=1, ensure_ascii=False))
        elif found:
            self._say(described(project, found[0][1], found[0][0]), *lines(told))
        else:
            self._say("no schedule is installed here: doit schedule install --every 30m")
        return 0 if found else 1

    def _remove(self, project: Path) -> int:
        removed = [name for name, way in WAYS.items() if way.remove(project)]
        self._say(f"removed: {name_of(project)}, by {', '.join(removed)}" if removed else NOTHING)
        return 0

    def _say(self, *texts: str) -> None:
        self.outstream.writelines(f"{text}\n" for text in texts)


NOTHING = "nothing to remove: no schedule of this project is installed"


def way_of_the_platform(asked: str) -> str:
    """systemd where the user has one, launchd on a Mac, else crontab; or the one asked for.

    Raises QuernError.
    """
    if asked and asked not in WAYS:
        raise QuernError(f"--by {asked}: is not known; take {', '.join(WAYS)}")
    if asked and not WAYS[asked].available():
        raise QuernError(f"--by {asked}: this machine has none that answers; leave --by out")
    if asked:
        return asked
    for name, way in WAYS.items():
        if way.available():
            return name
    raise QuernError(
        "schedule: here is neither a systemd of your own, nor launchd, nor crontab; "
        "install cron (Debian: apt install cron)"
    )


def refuse_what_would_not_start(job: Job) -> None:
    """Start doit as cron will, without the shell's variables. Raises QuernError if it can't."""
    if not job.program.exists():
        raise QuernError(f"{job.program}: not found; run doit schedule by the project's own doit")
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **job.environment}
    done = call(str(job.program), "list", cwd=job.project, env=bare)
    if done.returncode:
        raise QuernError(f"not installed, doit would not start there: {in_one_line(done)}")


def described(project: Path, way: ModuleType, by: str) -> str:
    """`quern-digits-1a2b3c4d every 30m by crontab (the crontab of ada)`."""
    marker = way.installed(project)
    jitter = f", jitter {in_words(marker.jitter)}," if marker.jitter else ""
    return (
        f"{name_of(project)} every {in_words(marker.every)}{jitter} by {by} ({way.place(project)})"
    )


def state(project: Path, by: str, way: ModuleType) -> dict[str, Any]:
    """All that is known; times are seconds since 1970."""
    marker = way.installed(project)
    return {
        "installed": True,
        "name": name_of(project),
        "by": by,
        "where": way.place(project),
        "every_seconds": marker.every,
        "jitter_seconds": marker.jitter,
        "last_run": run_log.last_run(),
        "next_run": way.next_run(project),
        "notes": way.notes(),
        "log": run_log.last_lines(LOG_LINES),
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The state for people."""
    last, following, log = told["last_run"], told["next_run"], told["log"]
    said = ["last run: none yet"]
    if last:
        took = last["ended"] - last["started"]
        said = [f"last run: {_moment(last['started'])}, {took:.1f} s, exit status {last['status']}"]
    said.append(f"next run: {_moment(following)}" if following else "next run: not known")
    said += told["notes"]
    return [*said, f"{run_log.LOG}:", *(f"  {line}" for line in log)] if log else said


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
