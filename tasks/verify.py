"""`doit verify`: read everything again, here and on the hosts, and say what differs."""

import json as json_format
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import TRY_AGAIN_LATER, ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.digest import digest_of_bytes, files_below, listing_of, read_digests
from tasks.core.errors import QuernError, TryAgainLater
from tasks.hosts.admission import Admission
from tasks.hosts.channels import Channel, channels_of, host_of
from tasks.hosts.releases import Release, live_releases


@dataclass(frozen=True)
class Difference:
    """Something that isn't what it was: `where` is store, a task or a host. `passing`: it couldn't
    be looked at now."""

    where: str
    what: str
    passing: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Verify(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Re-reads the store, what tasks made, and every release on every host, whatever their stat
    says. Changes nothing. Exit status: 0 all is as recorded, 1 something differs, 75 a host is out
    of reach and that is all."""

    name = "verify"
    doc_purpose = "read everything again and say what differs from what was recorded"
    doc_usage = ""
    doc_description = None
    cmd_options = (option_json,)
    takes_lock = True  # what is being made would differ

    def _execute(self, json: bool) -> int:
        self.read = 0
        found = [*self._in_store(), *self._of_tasks(), *self._on_hosts()]
        if json:
            told = {"read": self.read, "differences": [asdict(item) for item in found]}
            self.outstream.write(json_format.dumps(told, indent=1, ensure_ascii=False) + "\n")
        else:
            self.outstream.writelines(f"{item}\n" for item in found)
            if not found:
                self.outstream.write(f"all is as it was recorded: {self.read} files were read\n")
        if any(not item.passing for item in found):
            return 1
        return TRY_AGAIN_LATER if found else 0

    def _in_store(self) -> Iterator[Difference]:
        for path in sorted((self.project.store.root / "objects").glob("??/*")):
            if path.name.startswith("."):
                continue
            self.read += 1
            if read_digests(path)[1] != path.parent.name + path.name:
                shown = path.relative_to(self.project.root)
                yield Difference("store", f"{shown} is damaged; the next doit makes it anew")

    def _of_tasks(self) -> Iterator[Difference]:
        for task in self.task_list:
            recorded = self.dep_manager.recorded(task.name) or {"targets": {}}
            for target, digest in recorded["targets"].items():
                if os.path.exists(target):
                    if self._digest(target) != digest:
                        yield Difference(task.name, f"{target} is not what it made")
                elif not self._is_dropped(target):
                    yield Difference(task.name, f"{target} is gone")

    def _digest(self, target: str) -> str:
        if not os.path.isdir(target):
            self.read += 1
            return read_digests(target)[1]
        files = list(files_below(target))
        self.read += len(files)
        return digest_of_bytes(
            listing_of({os.path.relpath(file, target): read_digests(file)[1] for file in files})
        )

    def _is_dropped(self, target: str) -> bool:
        """Whether it was removed on purpose, to be made again when it is needed."""
        try:
            self.project.intermediates.digest(target)
        except OSError:
            return False
        return True

    def _on_hosts(self) -> Iterator[Difference]:
        configuration = load_configuration()
        for name, model in configuration.models.items():
            channels = channels_of(model, configuration)
            for place in {channel["host"]: channel for channel in channels}.values():
                try:
                    yield from self._of_releases(place, name)
                except QuernError as error:
                    passing = isinstance(error, TryAgainLater)
                    yield Difference(place["host"], str(error), passing)

    def _of_releases(self, place: Channel, model: str) -> Iterator[Difference]:
        host = host_of(self.project.root, place)
        folder = host.root / model / "releases"
        live = live_releases(host, model)
        for release_id in host.directories(folder):
            what = f"release {release_id} of {model}"
            try:
                release = Release.on(host, folder / release_id)
            except FileNotFoundError:
                yield Difference(host.name, f"{what} has no manifest")
                continue
            if release.changed:
                yield Difference(host.name, f"{what} has another release's manifest")
                continue
            for entry in release.manifest["roles"].values():
                self.read += 1
                if not host.holds(Path(folder / release_id / entry["file"]), entry):
                    yield Difference(host.name, f"{what}: {entry['file']} is not the release's")
            admission = Admission(host, release, place["signers"])
            fault = admission.difference(release_id in live)
            if fault:
                yield Difference(host.name, f"{what} {fault}")
