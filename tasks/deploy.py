"""Deploy: make a release live on a host, proved first, with no request lost; or change nothing."""

import glob
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doit.globals import Globals

from tasks.core.configuration import Classifier, LanguageModel, load_configuration
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.recipe import FunctionAction
from tasks.hosts.channels import (
    Channel,
    channels_of,
    deployment_of,
    host_of,
    in_words,
    installed_files,
    wanted_release,
)
from tasks.hosts.deployment import Deployment
from tasks.hosts.marks import Marks
from tasks.hosts.releases import Release, prune
from tasks.models.label import percent
from tasks.models.layout import artifact, language_release_files, release_files


def task_deploy() -> Iterator[dict[str, Any]]:
    """Make each model's release live where models.yaml says, proved by its golden set."""
    configuration = load_configuration()
    for name, model in configuration.models.items():
        channels = channels_of(model, configuration)
        if not channels:
            continue
        if isinstance(model, Classifier):
            files, keep, probes = release_files(name, model.classes), 0, model.probes or ""
        else:
            files, keep, probes = language_release_files(name, model), keep_of(model), ""
        manifest = artifact(name, "manifest.json")
        where = ", ".join(in_words(channel) for channel in channels)
        yield {
            "name": name,
            "doc": f"Make the release of {name} live: {where}.",
            "actions": [
                FunctionAction(
                    deploy,
                    manifest=manifest,
                    files=files,
                    channels=channels,
                    probes=probes,
                    keep=keep,
                )
            ],
            "file_dep": [manifest, *files.values()],
            "uptodate": [Live(manifest, channels)],
            "meta": {"stands": partial(stands, name, channels)},
            "params": [
                {
                    "name": "retry",
                    "long": "retry",
                    "type": bool,
                    "default": False,
                    "help": "try a release again that failed its probe or was rolled back",
                }
            ],
        }


def keep_of(model: LanguageModel) -> int:
    """How many earlier releases are kept."""
    return max(wanted.keep for wanted in model.deploy.values())


def deploy(
    project: Project,
    task: str,
    manifest: str,
    files: dict[str, str],
    channels: list[Channel],
    probes: str,
    keep: int,
    retry: bool = False,
) -> None:
    """Make the release of `manifest` live in every channel; of earlier ones, keep `keep` (0: all).

    Raises QuernError.
    """
    release = Release.read(Path(manifest))
    for channel in channels:
        host = host_of(project.root, channel)
        with host.lock(host.root / release.model / "lock"):
            start = time.monotonic()
            wanted = release if retry else wanted_release(host, channel, release)
            deployment = deployment_of(host, channel, wanted)
            deployment.make_live(
                files if wanted is release else installed_files(host, wanted), retry
            )
            seconds = time.monotonic() - start
            project.announce(
                task, "deployed", f"{in_short(wanted, channel)}, after {seconds:.1f} s"
            )
            image = next(iter(sorted(glob.glob(probes))), "IMAGE")
            project.event(task, {"note": deployment.told.replace("IMAGE", image)})
            if keep:
                prune(host, release.model, keep)


def in_short(release: Release, channel: Channel) -> str:
    """`Cycle 13 (Epoch 27, 62.60%) in stable on local, port 8891, accuracy 62.60%`."""
    accuracy = release.manifest.get("checkpoint", {}).get("val_acc")
    told = f", accuracy {percent(accuracy):.2f}%" if accuracy is not None else ""
    return f"{release.name} in {in_words(channel)}{told}"


def stands(model: str, channels: list[Channel]) -> list[str]:
    """What each channel goes on serving. Raises QuernError, OSError."""
    told = []
    for channel in channels:
        host = host_of(Path.cwd(), channel)
        link = host.link_target(host.root / model / channel["channel"] / "current")
        live = Release.read(link / "manifest.json").name if link else "nothing yet"
        told.append(f"{model}: {in_words(channel)} still serves {live}")
    return told


class Live:
    """doit's question whether a deploy is up to date: is what serves what should?"""

    def __init__(self, manifest: str, channels: list[Channel]) -> None:
        self.manifest, self.channels = manifest, channels
        self.reason = ""

    def __call__(self, task: Any) -> bool:
        """Ask the servers themselves; `reason` says what is wrong."""
        try:
            release = Release.read(Path(self.manifest))
        except (FileNotFoundError, QuernError):
            return True  # there is nothing yet to compare with; the inputs say why it runs
        task.init_options()
        if task.options["retry"] and any(self._is_marked(c, release) for c in self.channels):
            self.reason = f"release {release.id} is to be tried again"
            return False
        self.reason = next(filter(None, (self._drift(c, release) for c in self.channels)), "")
        return not self.reason

    @staticmethod
    def _is_marked(channel: Channel, release: Release) -> bool:
        return Marks(host_of(Path.cwd(), channel), release.model).read(release.id) is not None

    @staticmethod
    def _drift(channel: Channel, release: Release) -> str:
        host = host_of(Path.cwd(), channel)
        deployment = deployment_of(host, channel, wanted_release(host, channel, release))
        if isinstance(deployment, Deployment):
            return deployment.drift()
        return deployment.drift(Globals.dep_manager.project.index.digest)
