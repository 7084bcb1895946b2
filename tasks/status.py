"""`doit status [MODEL ...]`: what is live, and whether it is what it should be: one screen."""

import json as json_format
import time
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import TRY_AGAIN_LATER, ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.errors import QuernError, TryAgainLater
from tasks.core.project import Project
from tasks.hosts.channels import (
    Channel,
    built_for_host,
    channels_of,
    deployment_of,
    host_of,
    how_it_gets_a_release,
    wanted_release,
)
from tasks.hosts.history import live_since
from tasks.hosts.host import Host
from tasks.hosts.releases import Release
from tasks.models.layout import manifest_file

AS_IT_SHOULD_BE, OTHERWISE, OUT_OF_REACH = "as it should be", "otherwise", "out of reach"


class Status(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Asks the servers themselves. Exit status: 0 all is as it should be, 1 something isn't, 75 a
    host is out of reach and that is all."""

    name = "status"
    doc_purpose = "say what is live, and whether it is what it should be"
    doc_usage = "[MODEL ...]"
    doc_description = None
    cmd_options = (option_json,)

    def _execute(self, pos_args: list[str], json: bool) -> int:
        configuration = load_configuration()
        told = [
            channel_status(self.project, model, channel)
            for model in configuration.chosen(pos_args)
            for channel in channels_of(configuration.models[model], configuration)
        ]
        if json:
            self.outstream.write(json_format.dumps(told, indent=1, ensure_ascii=False) + "\n")
        else:
            self.outstream.writelines(f"{line}\n" for line in table(told))
        found = {row["status"] for row in told}
        if OTHERWISE in found:
            return 1
        return TRY_AGAIN_LATER if OUT_OF_REACH in found else 0


def channel_status(project: Project, model: str, channel: Channel) -> dict[str, Any]:
    """One channel: {"model", "channel", "host", "release", "label", "since", "status", "why"};
    `since` in seconds since 1970."""
    row: dict[str, Any] = {
        "model": model,
        "channel": channel["channel"],
        "host": channel["host"],
        "release": None,
        "label": None,
        "since": None,
        "status": OTHERWISE,
        "why": "",
    }
    try:
        host = host_of(project.root, channel, project.index.digest)
        link = host.link_target(host.root / model / channel["channel"] / "current")
        if link is None:
            how = how_it_gets_a_release(model, channel)
            return {**row, "why": f"nothing is live yet: {how}"}
        live = Release.on(host, link)
        row |= {
            "release": live.id,
            "label": live.name,
            "since": live_since(host, live, channel["channel"]),
        }
        why = difference(host, live, channel)
        return {**row, "status": OTHERWISE if why else AS_IT_SHOULD_BE, "why": why}
    except TryAgainLater as error:
        return {**row, "status": OUT_OF_REACH, "why": str(error)}
    except (QuernError, OSError) as error:
        return {**row, "why": str(error)}


def difference(host: Host, live: Release, channel: Channel) -> str:
    """How what serves differs from what was built here last, or where nothing was, from its own
    release; "" if it doesn't."""
    model = load_configuration().models[live.model]
    built = Path(manifest_file(live.model, built_for_host(model, channel)))
    wanted = wanted_release(host, channel, Release.read(built)) if built.exists() else live
    return deployment_of(host, channel, wanted or live).drift()


def table(told: list[dict[str, Any]]) -> list[str]:
    """A line per channel, in columns."""
    rows = [
        (
            row["model"],
            f"{row['channel']} on {row['host']}",
            row["label"] or "-",
            row["release"] or "-",
            moment(row["since"]),
            row["why"] or row["status"],
        )
        for row in told
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def moment(seconds: float | None) -> str:
    """Local time, `-` if unknown."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"
