"""Deploy: make a release live on a host, proved first, with no request lost; or change nothing."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doit.globals import Globals

from tasks.core.choice import OPTIONS
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
from tasks.models.layout import artifact, language_release_files, release_files


def task_deploy() -> Iterator[dict[str, Any]]:
    """Make each model's release live where models.yaml says, proved by its golden set."""
    configuration = load_configuration()
    yield {"name": None, "doc": task_deploy.__doc__, "params": OPTIONS}
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
            "params": [
                *OPTIONS,
                {
                    "name": "retry",
                    "long": "retry",
                    "type": bool,
                    "default": False,
                    "help": "try a release again that failed its probe or was rolled back",
                },
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
    **choice: Any,
) -> None:
    """Make the release of `manifest` live in every channel; of earlier ones, keep `keep` (0: all).
    `choice` (--cycle and its like) has been seen to by tasks.core.choice.

    Raises QuernError.
    """
    release = Release.read(Path(manifest))
    for channel in channels:
        host = host_of(project.root, channel)
        with host.lock(host.root / release.model / "lock"):
            wanted = release if retry else wanted_release(host, channel, release)
            deployment = deployment_of(host, channel, wanted)
            deployment.make_live(
                files if wanted is release else installed_files(host, wanted), retry
            )
            image = next(iter(sorted(glob.glob(probes))), "IMAGE")
            project.event(task, {"note": deployment.told.replace("IMAGE", image)})
            if keep:
                prune(host, release.model, keep)


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
