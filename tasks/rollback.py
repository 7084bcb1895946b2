"""`doit rollback MODEL [RELEASE]`: bring an earlier release back, as it is on the host."""

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import configuration_file, load_configuration
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.provenance import provenance
from tasks.hosts.channels import Channel, channels_of, deployment_of, host_of
from tasks.hosts.history import Journal, went_live
from tasks.hosts.host import Host
from tasks.hosts.marks import WITHDRAWN, Marks
from tasks.hosts.releases import Release

option_channel = {
    "name": "channel",
    "long": "channel",
    "type": str,
    "default": "",
    "help": "roll back this channel only; by default all, but a candidate's only if it is alone",
}
option_reason = {
    "name": "reason",
    "long": "reason",
    "type": str,
    "default": "",
    "help": "what is wrong with the release, for its mark and the history",
}
option_allow = {
    "name": "allow",
    "long": "allow",
    "type": str,
    "default": "",
    "help": "take the mark off this release instead: it may go live again",
}


class Rollback(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Puts the release that was live before, or a named one, back into the channels of a model,
    with the same proof as a deploy. What was live is marked: `doit` doesn't put it back, nor does
    a promotion, until `--allow`."""

    name = "rollback"
    doc_purpose = "bring the previous or a named release of a model back, without rebuilding"
    doc_usage = "MODEL [RELEASE]"
    doc_description = None
    takes_lock = True
    cmd_options = (option_channel, option_reason, option_allow)

    def _execute(self, pos_args: list[str], channel: str, reason: str, allow: str) -> int:
        if not 1 <= len(pos_args) <= 2:
            raise QuernError("rollback: name a model, and a release if not the previous one")
        if allow and pos_args[1:]:
            raise QuernError("rollback: --allow takes a mark off, it rolls nothing back")
        model, wanted = pos_args[0], pos_args[1] if pos_args[1:] else None

        def act(place: Channel) -> str:
            if allow:
                return lift_mark(self.project, place, model, allow)
            return roll_back(self.project, place, model, wanted, reason)

        return self.one_by_one(channels_to_roll_back(model, channel, bool(allow)), act)


def channels_to_roll_back(model: str, named: str, one_a_host: bool) -> list[Channel]:
    """The channels of `model` called `named`; by default all, of a candidate and others the others.
    Raises QuernError."""
    configuration = load_configuration()
    configuration.chosen([model])
    channels = channels_of(configuration.models[model], configuration)
    if not channels:
        raise QuernError(f"{configuration_file()}: models.{model} is deployed nowhere")
    if one_a_host:
        return list({channel["host"]: channel for channel in channels}.values())
    if named:
        chosen = [channel for channel in channels if channel["channel"] == named]
        known = ", ".join(dict.fromkeys(channel["channel"] for channel in channels))
        if not chosen:
            raise QuernError(f"{model} has no channel {named}; its channels are {known}")
        return chosen
    return [channel for channel in channels if channel["promoted"]] or channels


def lift_mark(project: Project, channel: Channel, model: str, release_id: str) -> str:
    """Take the mark off a release on the channel's host; returns what was done. Raises
    QuernError."""
    host = host_of(project.root, channel)
    with host.lock(host.root / model / "lock"):
        marks = Marks(host, model)
        mark = marks.read(release_id)
        if mark is None:
            return f"{model} {release_id} has no mark on {host.name}"
        marks.lift(release_id)
        return (
            f"{model} {release_id} may go live again on {host.name}: it was marked as "
            f"{mark['mark']} by {mark['who']}: {mark['why']}"
        )


def roll_back(
    project: Project, channel: Channel, model: str, wanted: str | None, reason: str = ""
) -> str:
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
        run = provenance(project.root) | ({"reason": reason} if reason else {})
        journal = Journal(project.private / "history.jsonl", run)
        deployment = deployment_of(host, channel, release, journal)
        marked_before = live is None or marks.read(live) is not None
        if live and not marked_before:  # first: killed in between, the next doit must know
            marks.put(live, WITHDRAWN, reason or f"rolled back to {release.id}")
        try:
            deployment.make_live({}, retry=True)
        except BaseException:
            if live and not marked_before:
                marks.lift(live)
            raise
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
