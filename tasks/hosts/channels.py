"""Channels: the named places of a host that a model's release goes to, by models.yaml."""

from pathlib import Path
from typing import Any

import msgspec

from tasks.core.configuration import Classifier, Configuration, LanguageModel, LmStudio, Ollama
from tasks.core.errors import QuernError
from tasks.hosts.deployment import LISTEN_HOST, Deployment
from tasks.hosts.local import LocalHost
from tasks.hosts.marks import Marks
from tasks.hosts.model_folders import FolderDeployment
from tasks.hosts.releases import Release

# Where a release goes: {"host", "root", "channel", "port"} for a server,
# {"host", "root", "channel", "settings"} for a folder.
Channel = dict[str, Any]


def channels_of(model: Classifier | LanguageModel, configuration: Configuration) -> list[Channel]:
    """Every channel that the model goes to, servers before folders: they prove it first."""
    channels = []
    for host, wanted in model.deploy.items():
        root = configuration.hosts[host].root if host in configuration.hosts else None
        place = {"host": host, "root": root}
        if isinstance(wanted, dict):
            channels += [{**place, "channel": c, "port": port} for c, port in wanted.items()]
            continue
        if wanted.chat:
            channels.append({**place, "channel": "chat", "port": wanted.chat})
        folders = {"lmstudio": _lmstudio(wanted.lmstudio), "ollama": _ollama(wanted.ollama)}
        for name, settings in folders.items():
            if settings:
                plain = msgspec.to_builtins(settings)
                channels.append({**place, "channel": name, "settings": plain})
    return channels


def _lmstudio(wanted: LmStudio | str | None) -> LmStudio | None:
    return LmStudio(folder=wanted) if isinstance(wanted, str) else wanted


def _ollama(wanted: Ollama | bool | None) -> Ollama | None:
    return (Ollama() if wanted else None) if isinstance(wanted, bool) else wanted


def in_words(channel: Channel) -> str:
    """`stable on local, port 8891`."""
    port = f", port {channel['port']}" if "port" in channel else ""
    return f"{channel['channel']} on {channel['host']}{port}"


def host_of(project: Path, channel: Channel) -> LocalHost:
    """The host of a channel."""
    if channel["host"] != "local":
        raise QuernError(
            f"models.yaml: host {channel['host']}: only the local host can be deployed to yet"
        )
    return LocalHost(project / (channel["root"] or ".quern/hosts/local"))


def deployment_of(
    host: LocalHost, channel: Channel, release: Release
) -> Deployment | FolderDeployment:
    """How `release` gets into a channel."""
    if "port" in channel:
        address = f"{LISTEN_HOST}:{channel['port']}"
        return Deployment(host, release, channel["channel"], address)
    return FolderDeployment(host, release, channel["channel"], channel["settings"])


def wanted_release(host: LocalHost, channel: Channel, release: Release) -> Release:
    """The release that a channel should have: `release`, unless a rollback withdrew it; then the
    one that is there."""
    if Marks(host, release.model).is_withdrawn(release.id):
        link = host.link_target(host.root / release.model / channel["channel"] / "current")
        if link is not None:
            return Release.read(link / "manifest.json")
    return release


def installed_files(host: LocalHost, release: Release) -> dict[str, str]:
    """Role → path on the host, of a release that is installed there."""
    folder = host.root / release.model / "releases" / release.id
    return {role: str(folder / entry["file"]) for role, entry in release.manifest["roles"].items()}
