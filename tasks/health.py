"""`doit health [MODEL ...]`: healthy, degraded or unhealthy, and why."""

import json as json_format
from dataclasses import replace
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import (
    Classifier,
    Health,
    LanguageModel,
    load_configuration,
)
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.hosts import health
from tasks.hosts.channels import Channel, channels_of, host_of, how_it_gets_a_release, live_release


class HealthCommand(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Asks the live servers and looks at the files they serve. Exit status: 0 all are healthy,
    1 one is degraded, 2 one is unhealthy."""

    name = "health"
    doc_purpose = "say whether what is deployed is healthy, and why not"
    doc_usage = "[MODEL ...]"
    doc_description = None
    cmd_options = (option_json,)

    def _execute(self, pos_args: list[str], json: bool) -> int:
        told = [look_at(self.project, name) for name in load_configuration().chosen(pos_args)]
        if json:
            self.outstream.write(json_format.dumps(told, indent=1, ensure_ascii=False) + "\n")
        else:
            self.outstream.writelines(line for model in told for line in lines(model))
        return max((health.ORDER.index(model["status"]) for model in told), default=0)


def look_at(project: Project, name: str) -> dict[str, Any]:
    """All findings about one model: {"model", "status", "channels", "system"}."""
    configuration = load_configuration()
    model = configuration.models[name]
    limits = model.health if isinstance(model, LanguageModel) else Health()
    channels = channels_of(model, configuration)
    told = []
    for channel in channels:
        try:
            findings = channel_findings(project, name, model, channel, limits)
        except QuernError as error:  # the host is out of reach
            findings = [health.Finding("host", health.UNHEALTHY, str(error))]
        told.append(
            {
                "channel": channel["channel"],
                "host": channel["host"],
                "status": health.verdict(findings),
                "findings": [finding.as_data() for finding in findings],
            }
        )
    system = [
        finding
        for channel in {c["host"]: c for c in channels}.values()
        for finding in system_findings(project, channel, limits)
    ]
    levels = [*(channel["status"] for channel in told), *(finding.level for finding in system)]
    return {
        "model": name,
        "status": max(levels, key=health.ORDER.index, default=health.HEALTHY),
        "channels": told,
        "system": [finding.as_data() for finding in system],
    }


def system_findings(project: Project, channel: Channel, limits: Health) -> list[health.Finding]:
    """What is found of a channel's host; of one out of reach its channels tell."""
    try:
        found = health.system_findings(host_of(project.root, channel), limits.min_free_gb)
    except QuernError:
        return []
    named = f"{channel['host']}: " if channel["ssh"] else ""
    return [replace(finding, text=f"{named}{finding.text}") for finding in found]


def channel_findings(
    project: Project,
    name: str,
    model: Classifier | LanguageModel,
    channel: Channel,
    limits: Health,
) -> list[health.Finding]:
    """What is found of one channel; nothing more is asked where nothing was deployed."""
    host = host_of(project.root, channel, project.index.digest)
    try:
        release = live_release(host, name, channel)
    except FileNotFoundError as missing:
        return [health.Finding("release", health.UNHEALTHY, f"{missing.args[0]} is missing")]
    if release is None:
        how = how_it_gets_a_release(name, channel)
        text = f"nothing was deployed to {channel['channel']} yet: {how}"
        return [health.Finding("release", health.UNHEALTHY, text)]
    found = health.file_findings(host, name, channel, release)
    if "port" not in channel:
        return found
    found += health.api_findings(host, channel, release, limits.max_latency_ms)
    if isinstance(model, LanguageModel) and found[-1].level != health.UNHEALTHY:
        found += health.answer_findings(
            host, channel, limits.prompts, limits.min_length, limits.min_tokens_per_second
        )
    return found


def lines(model: dict[str, Any]) -> list[str]:
    """The verdict, and what is not as it should be, for people."""
    found = [
        f"  {channel['channel']} on {channel['host']}, {finding['check']}: {finding['text']}\n"
        for channel in model["channels"]
        for finding in channel["findings"]
        if finding["level"] != health.HEALTHY
    ]
    found += [
        f"  {finding['check']}: {finding['text']}\n"
        for finding in model["system"]
        if finding["level"] != health.HEALTHY
    ]
    return [f"{model['model']}: {model['status']}\n", *found]
