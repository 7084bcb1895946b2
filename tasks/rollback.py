"""`doit rollback MODEL [RELEASE]`: bring an earlier release back, as it is on the host."""

import sys

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.project_command import TRY_AGAIN_LATER, ProjectCommand
from tasks.core.configuration import configuration_file, load_configuration
from tasks.core.errors import QuernError, TryAgainLater
from tasks.core.project import Project
from tasks.core.provenance import provenance
from tasks.hosts.channels import Channel, channels_of, deployment_of, host_of
from tasks.hosts.history import Journal, went_live
from tasks.hosts.host import Host
from tasks.hosts.marks import WITHDRAWN, Marks, who
from tasks.hosts.releases import Release


class Rollback(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Puts the release that was live before, or a named one, back into every channel of a model,
    with the same proof as a deploy. What was live is marked: `doit` doesn't put it back."""

    name = "rollback"
    doc_purpose = "bring the previous or a named release of a model back, without rebuilding"
    doc_usage = "MODEL [RELEASE]"
    doc_description = None
    takes_lock = True
    cmd_options = ()

    def _execute(self, pos_args: list[str]) -> int:
        if not 1 <= len(pos_args) <= 2:
            raise QuernError("rollback: name a model, and a release if not the previous one")
        model, wanted = pos_args[0], pos_args[1] if pos_args[1:] else None
        faults = []
        for channel in channels_to_roll_back(model):
            try:
                told = roll_back(self.project, channel, model, wanted)
                self.outstream.write(f"{told}\n")
            except QuernError as error:  # the other channels shall not wait for it
                sys.stderr.write(f"{error}\n")
                faults.append(error)
        if faults and all(isinstance(fault, TryAgainLater) for fault in faults):
            return TRY_AGAIN_LATER
        return 1 if faults else 0


def channels_to_roll_back(model: str) -> list[Channel]:
    """Every channel of `model`. Raises QuernError."""
    configuration = load_configuration()
    configuration.chosen([model])
    channels = channels_of(configuration.models[model], configuration)
    if not channels:
        raise QuernError(f"{configuration_file()}: models.{model} is deployed nowhere")
    return channels


def roll_back(project: Project, channel: Channel, model: str, wanted: str | None) -> str:
    """Roll one channel back to release `wanted`, or to its previous one; returns what was done.

    Raises QuernError.
    """
    host = host_of(project.root, channel)
    with host.lock(host.root / model / "lock"):
        link = host.link_target(host.root / model / channel["channel"] / "current")
        live = link.name if link else None
        release = _release(host, model, wanted or _previous(host, model, channel, live))
        if release.id == live:
            return f"{channel['channel']} already has {release.name}"
        marks = Marks(host, model)
        journal = Journal(project.private / "history.jsonl", provenance(project.root))
        deployment = deployment_of(host, channel, release, journal)
        deployment.make_live({}, retry=True)
        if live:
            marks.put(live, WITHDRAWN, f"rolled back to {release.id} by {who()}")
        return deployment.told


def _previous(host: Host, model: str, channel: Channel, live: str | None) -> str:
    """The last release that was live in the channel before `live`, and is still kept."""
    kept = host.directories(host.root / model / "releases")
    marks = Marks(host, model)
    for release in reversed(went_live(host, model, channel["channel"])):
        if release != live and release in kept and not marks.read(release):
            return release
    raise QuernError(f"{model} has no earlier release in {channel['channel']} that is still kept")


def _release(host: Host, model: str, release_id: str) -> Release:
    folder = host.root / model / "releases"
    try:
        return Release.on(host, folder / release_id)
    except FileNotFoundError:
        kept = ", ".join(reversed(host.directories(folder))) or "none"
        raise QuernError(
            f"{model} has no release {release_id} on {host.name}; kept: {kept}"
        ) from None
