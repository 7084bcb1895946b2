"""Channels: the named places of a host that a model's release goes to, by models.yaml."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from tasks.core.configuration import (
    Classifier,
    Configuration,
    LanguageModel,
    LmStudio,
    ModelDeploy,
    Ollama,
    channel_ports,
    promotion_policy,
)
from tasks.core.configuration import (
    Host as HostSection,
)
from tasks.hosts.deployment import Deployment
from tasks.hosts.history import Journal
from tasks.hosts.host import Host
from tasks.hosts.local import LocalHost, read_digest
from tasks.hosts.marks import Marks
from tasks.hosts.model_folders import FolderDeployment
from tasks.hosts.releases import Release

LOOPBACK = "127.0.0.1"
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "[::1]", "[::]": "[::1]"}

# Where a release goes: {"host", "ssh", "ssh_config", "root", "listen", "keep", "signers",
# "channel", "promoted"}, and "port" for a server, "settings" for a folder. A channel that is
# `promoted` gets its releases from the candidate's.
Channel = dict[str, Any]


def channels_of(model: Classifier | LanguageModel, configuration: Configuration) -> list[Channel]:
    """Every channel that the model goes to, servers before folders: they prove it first."""
    policy = promotion_policy(model)
    channels: list[Channel] = []
    for host, wanted in model.deploy.items():
        known = configuration.hosts.get(host, HostSection())
        of_host = {**host_settings(host, configuration), "signers": known.signers}
        if isinstance(wanted, ModelDeploy):
            of_host["keep"] = wanted.keep
        channels += [
            {**of_host, "channel": channel, "port": port}
            for channel, port in channel_ports(wanted).items()
        ]
        if not isinstance(wanted, ModelDeploy):
            continue
        folders = {"lmstudio": _lmstudio(wanted.lmstudio), "ollama": _ollama(wanted.ollama)}
        for name, settings in folders.items():
            if settings:
                plain = msgspec.to_builtins(settings)
                channels.append({**of_host, "channel": name, "settings": plain})
    for channel in channels:
        channel["promoted"] = policy is not None and channel["channel"] != policy.candidate
    return channels


def host_settings(host: str, configuration: Configuration) -> Channel:
    """What a channel has from its host."""
    known = configuration.hosts.get(host, HostSection())
    return {
        "host": host,
        "ssh": known.ssh,
        "ssh_config": configuration.ssh_config,
        "root": known.root or ("~/quern" if known.ssh else f".quern/hosts/{host}"),
        "listen": known.listen,
        "keep": known.keep,
    }


def _lmstudio(wanted: LmStudio | str | None) -> LmStudio | None:
    return LmStudio(folder=wanted) if isinstance(wanted, str) else wanted


def _ollama(wanted: Ollama | bool | None) -> Ollama | None:
    return (Ollama() if wanted else None) if isinstance(wanted, bool) else wanted


def built_for_host(model: Classifier | LanguageModel, channel: Channel) -> str:
    """The host whose programs a channel's release has, for tasks.models.layout: "" is this
    machine."""
    return channel["host"] if channel["ssh"] and isinstance(model, Classifier) else ""


def how_it_gets_a_release(model: str, channel: Channel) -> str:
    """`doit promote dogs` or `doit deploy:dogs`."""
    return f"doit promote {model}" if channel["promoted"] else f"doit deploy:{model}"


def in_words(channel: Channel) -> str:
    """`stable on local, port 8891`."""
    port = f", port {channel['port']}" if "port" in channel else ""
    return f"{channel['channel']} on {channel['host']}{port}"


def host_of(project: Path, channel: Channel, digest: Callable[[str], str] | None = None) -> Host:
    """The host of a channel, or of host_settings(); `digest` is used for files of this
    machine, in place of reading them anew."""
    if channel["ssh"]:
        return _remote(channel["host"], channel["ssh"], channel["root"], channel["ssh_config"])
    root = project / Path(channel["root"]).expanduser()
    return LocalHost(root, channel["host"], digest or read_digest)


def platform_known(host: str) -> Path:
    """Where it is kept what a host runs, once it was asked."""
    return Path(f".quern/hosts/{host}.platform.json")


@lru_cache
def _remote(name: str, ssh: str, root: str, config: str | None) -> Host:
    from tasks.hosts.remote import RemoteHost  # paramiko, which `doit list` need not pay
    from tasks.hosts.ssh import config_path

    return RemoteHost(name, ssh, root, config_path(config))


def listens_at(channel: Channel) -> str:
    """The "address:port" that a channel's server listens on."""
    return f"{channel['listen']}:{channel['port']}"


def asked_at(channel: Channel) -> str:
    """The "address:port" at which a channel's server is asked on its own host."""
    return f"{EVERYWHERE.get(channel['listen'], channel['listen'])}:{channel['port']}"


def deployment_of(
    host: Host, channel: Channel, release: Release, journal: Journal | None = None
) -> Deployment | FolderDeployment:
    """How `release` gets into a channel; what becomes of it is written to `journal`."""
    journal = journal or Journal()
    if "port" in channel:
        return Deployment(
            host,
            release,
            channel["channel"],
            listens_at(channel),
            asked_at(channel),
            journal,
            channel["signers"],
        )
    return FolderDeployment(
        host, release, channel["channel"], channel["settings"], journal, channel["signers"]
    )


def live_release(host: Host, model: str, channel: Channel) -> Release | None:
    """The release that a channel has; None if it has none. Raises QuernError, FileNotFoundError."""
    link = host.link_target(host.root / model / channel["channel"] / "current")
    return Release.on(host, link) if link else None


def wanted_release(host: Host, channel: Channel, built: Release) -> Release | None:
    """The release that a channel should have: the one that was `built` last; or the one that is
    there, where a promotion decides or a rollback withdrew the other. None: none yet."""
    if channel["promoted"]:
        return live_release(host, built.model, channel)
    if Marks(host, built.model).is_withdrawn(built.id):
        return live_release(host, built.model, channel) or built
    return built
