"""Deploy: make a release live on a host, proved first, with no request lost; or change nothing."""

import glob
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tasks.core.choice import OPTIONS
from tasks.core.configuration import Classifier, LanguageModel, load_configuration
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.provenance import provenance
from tasks.core.recipe import FunctionAction
from tasks.hosts.attestation import Attestation
from tasks.hosts.channels import (
    Channel,
    built_for_host,
    channels_of,
    deployment_of,
    host_of,
    in_words,
    live_release,
    platform_known,
    wanted_release,
)
from tasks.hosts.deployment import OtherPlatform
from tasks.hosts.history import Journal
from tasks.hosts.host import Host
from tasks.hosts.lineage import lineage_in_words
from tasks.hosts.marks import Marks
from tasks.hosts.prune import prune
from tasks.hosts.releases import Release
from tasks.models.label import percent
from tasks.models.layout import files_of_release, manifest_file

PARAMETERS = [
    *OPTIONS,
    {
        "name": "retry",
        "long": "retry",
        "type": bool,
        "default": False,
        "help": "try a release again that failed its probe or was rolled back, or isn't signed yet",
    },
]


def task_deploy() -> Iterator[dict[str, Any]]:
    """Make each model's release live where models.yaml says, proved by its golden set.

    `deploy:MODEL` is the task itself where there is one host, else a group of one task a host.
    """
    configuration = load_configuration()
    yield {"name": None, "doc": task_deploy.__doc__, "params": OPTIONS}
    for name, model in configuration.models.items():
        channels = channels_of(model, configuration)
        hosts = list(dict.fromkeys(channel["host"] for channel in channels))
        names = {host: name if len(hosts) == 1 else f"{name}@{host}" for host in hosts}
        if len(hosts) > 1:
            yield {
                "name": name,
                "doc": f"Make the release of {name} live on {', '.join(hosts)}.",
                "actions": None,
                "task_dep": [f"deploy:{task}" for task in names.values()],
                "params": OPTIONS,
            }
        for host, task in names.items():
            there = [channel for channel in channels if channel["host"] == host]
            yield {"name": task, **deploy_to(name, model, there)}


def side_by_side() -> int:
    """How many tasks run side by side: as many as there are machines to deploy to over SSH, 0 (one
    after the other) where there is one or none."""
    configuration = load_configuration()
    hosts = {
        host
        for model in configuration.models.values()
        for host in model.deploy
        if host in configuration.hosts and configuration.hosts[host].ssh
    }
    return len(hosts) if len(hosts) > 1 else 0


def deploy_to(
    name: str, model: Classifier | LanguageModel, channels: list[Channel]
) -> dict[str, Any]:
    """The task that makes the release of `name` live in the channels of one host."""
    host = built_for_host(model, channels[0])
    files, manifest = files_of_release(name, model, host), manifest_file(name, host)
    probes = (model.probes or "") if isinstance(model, Classifier) else ""
    return {
        "doc": f"Make the release of {name} live: {', '.join(map(in_words, channels))}.",
        "actions": [
            FunctionAction(
                deploy,
                manifest=manifest,
                files=files,
                channels=channels,
                probes=probes,
                keep=channels[0]["keep"],
            )
        ],
        "file_dep": [manifest, *files.values()],
        "uptodate": [Live(manifest, channels)],
        "meta": {
            "stands": partial(stands, name, channels),
            "lineage": partial(lineage_in_words, name, channels),
        },
        "params": PARAMETERS,
    }


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
    """Make the release of `manifest` live in every channel of one host; of earlier ones, keep
    `keep`. The options of a `choice` were seen to before the run. Raises QuernError; what was live
    serves then, and if it had ended, it is started again.
    """
    from tasks.hosts.attestor import attestor_of  # `doit list` need not pay for it

    release = Release.read(Path(manifest))
    host = host_of(project.root, channels[0])
    journal = Journal(project.private / "history.jsonl", provenance(project.root))
    faults: list[QuernError] = []
    attestor = attestor_of(project, journal.run)
    with host.lock(host.root / release.model / "lock"):
        for channel in channels:
            start = time.monotonic()
            wanted = wanted_release(host, channel, release)
            if retry and not channel["promoted"]:
                wanted = release
            if wanted is None:
                continue
            deployment = deployment_of(host, channel, wanted, journal)
            if channel["promoted"] and not deployment.drift():
                continue
            deployment.progress = partial(sending, project, task)
            deployment.attestor = attestor
            try:
                deployment.make_live(files if wanted is release else {}, retry)
            except QuernError as error:  # the other channels shall not wait for it
                faults.append(error)
                bring_back(host, channel, wanted, journal)
                continue
            seconds = time.monotonic() - start
            told = f"{in_short(wanted, channel)}, after {seconds:.1f} s"
            project.announce(task, "deployed", told)
            image = next(iter(sorted(glob.glob(probes))), "IMAGE")
            project.event(task, {"note": deployment.told.replace("IMAGE", image)})
        if not faults:
            prune(host, release.model, keep)
    for fault in faults:
        if isinstance(fault, OtherPlatform):
            platform_known(host.name).unlink(missing_ok=True)
            raise QuernError(f"{fault}; run doit again, which asks it anew")
        raise fault


def bring_back(host: Host, channel: Channel, failed: Release, journal: Journal) -> None:
    """See that what is live serves, though another release failed: after a reboot, nothing does."""
    try:
        live = live_release(host, failed.model, channel)
        if live is not None and live.id != failed.id:
            deployment = deployment_of(host, channel, live, journal)
            if deployment.drift():
                deployment.make_live({}, retry=True)
    except (QuernError, OSError):
        pass  # it is the first fault that matters


def sending(project: Project, task: str, file: str, done: int, total: int) -> None:
    """Show how much of a file is on the host."""
    label = {"label": f"sending {file}", "unit": "B"}
    project.event(task, {"progress": {**label, "done": done, "total": total}})


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
        live = Release.on(host, link).name if link else "nothing yet"
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
        if task.options["retry"] and any(self._may_be_retried(c, release) for c in self.channels):
            self.reason = f"release {release.id} is to be tried again"
            return False
        self.reason = next(filter(None, (self._drift(c, release) for c in self.channels)), "")
        return not self.reason

    @staticmethod
    def _may_be_retried(channel: Channel, release: Release) -> bool:
        host = host_of(Path.cwd(), channel)
        if Marks(host, release.model).read(release.id) is not None:
            return True
        if not load_configuration().sign:
            return False
        there = Attestation.on(host, host.root / release.model / "releases" / release.id)
        return there is None or there.signature is None

    @staticmethod
    def _drift(channel: Channel, release: Release) -> str:
        host = host_of(Path.cwd(), channel)
        wanted = wanted_release(host, channel, release)
        return deployment_of(host, channel, wanted).drift() if wanted else ""
