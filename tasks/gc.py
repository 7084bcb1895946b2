"""`doit gc`: remove from the store what nothing needs any more."""

import json as json_format
import sys
from dataclasses import asdict

from doit.cmd_base import DoitCmdBase

from tasks.core.collecting import Collected, collect, of_history, of_tasks, remove_leftovers
from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.digest import digest_of_bytes
from tasks.core.errors import QuernError
from tasks.hosts.channels import channels_of, host_of
from tasks.hosts.host import Host
from tasks.hosts.releases import Release

option_dry_run = {
    "name": "dry_run",
    "long": "dry-run",
    "type": bool,
    "default": False,
    "help": "say what would go, change nothing",
}


class Gc(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Needed is what tasks made last, and what the releases kept on hosts consist of; of a host out
    of reach, all that this project ever brought there. The rest goes, with what runs that were
    killed have left. Exit status: 0, also when a host is out of reach."""

    name = "gc"
    doc_purpose = "remove from the store what nothing needs any more"
    doc_usage = ""
    doc_description = None
    cmd_options = (option_dry_run, option_json)
    takes_lock = True

    def _execute(self, dry_run: bool, json: bool) -> int:
        needed = of_tasks(self.project, [task.name for task in self.task_list])
        needed |= self._of_releases()
        gone = collect(self.project.store, needed, dry_run)
        left = remove_leftovers(self.project, dry_run)
        both = Collected(gone.objects, gone.results, left.leftovers, gone.bytes + left.bytes)
        if json:
            told = {"dry_run": dry_run, **asdict(both)}
            self.outstream.write(json_format.dumps(told, indent=1) + "\n")
        else:
            self.outstream.write(f"{in_words(both, dry_run)}\n")
        return 0

    def _of_releases(self) -> set[str]:
        configuration = load_configuration()
        hosts = {
            channel["host"]: channel
            for model in configuration.models.values()
            for channel in channels_of(model, configuration)
        }
        digests: set[str] = set()
        for name, channel in hosts.items():
            try:
                digests |= released_on(host_of(self.project.root, channel))
            except (QuernError, OSError) as error:
                kept = "all that went there from here is kept"
                sys.stderr.write(f"{' '.join(str(error).split())}; {kept}\n")
                digests |= of_history(self.project, name)
        return digests


def released_on(host: Host) -> set[str]:
    """Digests of every release on a host: of its files, and of its manifest. Raises QuernError."""
    digests: set[str] = set()
    for model in host.directories(host.root):
        folder = host.root / model / "releases"
        for release_id in host.directories(folder):
            data = host.read(folder / release_id / "manifest.json")
            if data is not None:
                release = Release.of(data, f"{host.name}: {folder / release_id / 'manifest.json'}")
                digests.update(release.digest(role) for role in release.manifest["roles"])
                digests.add(digest_of_bytes(data))
    return digests


def in_words(collected: Collected, dry_run: bool) -> str:
    """`freed 1.2 GB: 12 objects, 5 results, 1 leftover`, or what would be."""
    if not (collected.objects or collected.results or collected.leftovers):
        return "nothing to free: all that is in the store is needed"
    counts = [
        f"{count} {name if count == 1 else f'{name}s'}"
        for name, count in (
            ("object", collected.objects),
            ("result", collected.results),
            ("leftover", collected.leftovers),
        )
        if count
    ]
    verb = "would free" if dry_run else "freed"
    return f"{verb} {amount(collected.bytes)}: {', '.join(counts)}"


def amount(count: int) -> str:
    """Bytes as people say them: `1.2 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
