"""Deploy: make a release live on a host, proved first, with no request lost; or change nothing."""

import getpass
import glob
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.core.configuration import load_configuration
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.recipe import FunctionAction
from tasks.hosts.holder import Holder, Server, ServerEnded
from tasks.hosts.local import LocalHost
from tasks.hosts.probe import ProbeFailed, ProbeResult, probe
from tasks.hosts.releases import Release, install
from tasks.hosts.unix_http import Refused, Unreachable, ask_port
from tasks.models.layout import artifact, release_files

LISTEN_HOST = "127.0.0.1"
CONFIRM_SECONDS = 10.0


def task_deploy() -> Iterator[dict[str, Any]]:
    """Make each model's release live where models.yaml says, proved by its golden set."""
    configuration = load_configuration()
    for name, model in configuration.classifiers().items():
        if not model.deploy:
            continue
        files = release_files(name, model.classes)
        manifest = artifact(name, "manifest.json")
        channels = [
            (host, configuration.hosts[host].root if host in configuration.hosts else None, c, port)
            for host, ports in model.deploy.items()
            for c, port in ports.items()
        ]
        where = ", ".join(f"{c} on {host}, port {port}" for host, _, c, port in channels)
        yield {
            "name": name,
            "doc": f"Make the release of {name} live: {where}.",
            "actions": [
                FunctionAction(
                    deploy,
                    manifest=manifest,
                    files=files,
                    channels=channels,
                    probes=model.probes or "",
                )
            ],
            "file_dep": [manifest, *files.values()],
            "uptodate": [Live(manifest, channels)],
            "params": [
                {
                    "name": "retry",
                    "long": "retry",
                    "type": bool,
                    "default": False,
                    "help": "try a release again that failed its probe before",
                }
            ],
        }


def deploy(
    project: Project,
    task: str,
    manifest: str,
    files: dict[str, str],
    channels: list[tuple[str, str | None, str, int]],
    probes: str,
    retry: bool = False,
) -> None:
    """Make the release of `manifest` live in every channel. Raises QuernError."""
    release = Release.read(Path(manifest))
    for host_name, root, channel, port in channels:
        host = host_of(project, host_name, root)
        with host.lock(host.root / release.model / "lock"):
            deployment = Deployment(host, release, channel, f"{LISTEN_HOST}:{port}")
            deployment.make_live(files, retry)
            image = next(iter(sorted(glob.glob(probes))), "IMAGE")
            project.event(task, {"note": deployment.told.replace("IMAGE", image)})


def host_of(project: Project, name: str, root: str | None) -> LocalHost:
    """The host of that name in models.yaml."""
    if name != "local":
        raise QuernError(f"models.yaml: host {name}: only the local host can be deployed to yet")
    return LocalHost(project.root / (root or ".quern/hosts/local"))


class Deployment:
    """One release on its way into one channel of one host."""

    def __init__(self, host: LocalHost, release: Release, channel: str, address: str) -> None:
        self.host, self.release, self.address, self.channel = host, release, address, channel
        self.directory = host.root / release.model / channel
        self.current = self.directory / "current"
        self.quarantine = host.root / release.model / "quarantine" / f"{release.id}.json"
        self.holder = Holder(host, self.directory)
        self.seconds: dict[str, float] = {}
        self.proof: ProbeResult | None = None
        self.told = ""

    def make_live(self, files: dict[str, str], retry: bool) -> None:
        """Install, start beside the old, probe, switch, confirm; or leave the old as it was."""
        previous = self.host.link_target(self.current)
        self._refuse_quarantined(retry)
        try:
            installed = self._timed("install", install, self.host, self.release, files)
            self._timed("holder", self.holder.ensure, installed, self.release, self.address)
            candidate = self._timed("load", self._load_beside, installed)
            try:
                self.proof = self._timed("probe", probe, candidate, installed, self.release)
                self._timed("switch", self._switch, candidate, installed, previous)
            except BaseException:
                self._discard(candidate)
                raise
        except (QuernError, OSError) as error:
            self._failed(error, previous)
            raise
        self._record("live", previous)
        total = sum(self.seconds.values())
        self.told = (
            f"{self.release.label or self.release.id} is live on http://{self.address} "
            f"after {total:.1f} s, try:\n"
            f"  curl -F image=@IMAGE http://{self.address}/predict"
        )

    def _load_beside(self, installed: Path) -> Server:
        """Load the release where it answers the admin socket only: in the live process if its
        program is the release's own, else in a new process on the same socket."""
        live = None
        for server in self.holder.servers():
            if server.state == "standby":  # left by a deploy that died
                self.holder.stop(server)
            elif server.state == "live":
                live = server
        if live:
            try:
                if live.ask("GET", "/status")["server"] == self.release.digest("server"):
                    loaded = live.ask("POST", "/load", {"release": str(installed)})
                    return replace(live, loaded=loaded)
            except Unreachable:
                pass  # a server that doesn't answer is replaced
        return self.holder.start_beside(installed)

    def _switch(self, candidate: Server, installed: Path, previous: Path | None) -> None:
        """The point of no return is the link: what it names has passed its probe."""
        self.host.point(self.current, installed)
        try:
            candidate.ask("POST", "/activate", {"release": self.release.id})
            self.holder.promote(candidate)
            self._confirm()
        except BaseException:
            if previous is not None:
                self.host.point(self.current, previous)
            else:
                self.host.remove_link(self.current)
            raise

    def _confirm(self) -> None:
        """The port itself must answer with this release, three times on new connections."""
        deadline, agreed, seen = time.monotonic() + CONFIRM_SECONDS, 0, ""
        while agreed < 3:
            try:
                health = ask_port(self.address, "/health")
                seen = f"release {health.get('release')}"
                agreed = agreed + 1 if health.get("release") == self.release.id else 0
            except (Unreachable, Refused) as error:
                seen, agreed = str(error), 0
            if time.monotonic() > deadline:
                raise QuernError(f"{self.address} does not answer with the new release: {seen}")

    def _discard(self, candidate: Server) -> None:
        try:
            if candidate.state == "standby":
                self.holder.stop(candidate)
            else:
                candidate.ask("POST", "/discard")
        except QuernError:
            pass  # it is gone, or its holder ends it by itself

    def _refuse_quarantined(self, retry: bool) -> None:
        recorded = self.host.read(self.quarantine)
        if recorded is None or retry:
            return
        told = json.loads(recorded)
        raise QuernError(
            f"release {self.release.id} failed before ({told['error']}); what served still serves; "
            f"change it, or try it again: doit deploy:{self.release.model} --retry"
        )

    def _failed(self, error: Exception, previous: Path | None) -> None:
        wrong_by_itself = isinstance(error, ProbeFailed | Refused) or (
            isinstance(error, ServerEnded) and error.status.startswith("exit")
        )
        if wrong_by_itself:
            self.host.write(
                self.quarantine, json.dumps({"error": str(error), "at": time.time()}).encode()
            )
        self._record("failed", previous, str(error))

    def _record(self, outcome: str, previous: Path | None, error: str = "") -> None:
        self.host.append_line(
            self.host.root / self.release.model / "history.jsonl",
            {
                "at": time.time(),
                "who": f"{getpass.getuser()} (process {os.getpid()})",
                "channel": self.channel,
                "address": self.address,
                "release": self.release.id,
                "label": self.release.label,
                "previous": previous.name if previous else None,
                "outcome": outcome,
                "error": error,
                "checkpoint": self.release.manifest["checkpoint"],
                "digests": {r: e["xxh3_128"] for r, e in self.release.manifest["roles"].items()},
                "probe": self.proof.as_data() if self.proof else None,
                "seconds": {step: round(seconds, 4) for step, seconds in self.seconds.items()},
            },
        )

    def _timed(self, step: str, function: Any, *arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self.seconds[step] = time.monotonic() - start


class Live:
    """doit's question whether a deploy is up to date: is what serves what should?"""

    def __init__(self, manifest: str, channels: list[tuple[str, str | None, str, int]]) -> None:
        self.manifest, self.channels = manifest, channels
        self.reason = ""

    def __call__(self) -> bool:
        """Ask the servers themselves; `reason` says what is wrong."""
        try:
            release = Release.read(Path(self.manifest))
        except (FileNotFoundError, QuernError):
            return True  # there is nothing yet to compare with; the inputs say why it runs
        self.reason = self._drift(release)
        return not self.reason

    def _drift(self, release: Release) -> str:
        for _, _, channel, port in self.channels:
            address = f"{LISTEN_HOST}:{port}"
            try:
                health = ask_port(address, "/health")
            except (Unreachable, Refused) as error:
                return f"{channel} does not serve: {error}"
            if health.get("release") != release.id:
                served = health.get("release") or "something else"
                return f"{channel} serves {served}, not release {release.id}"
            if health.get("weights") != release.digest("weights"):
                return f"{channel} serves other weights than its release has"
        return ""
