"""`doit gc`: remove what nothing needs any more, from the store and from the hosts."""

import json as json_format
import sys
from dataclasses import asdict

from doit.cmd_base import DoitCmdBase

from tasks.core.collecting import Collected, collect, of_history, of_tasks, remove_leftovers
from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.errors import Busy, QuernError
from tasks.core.lineage import Lineage
from tasks.core.project import Project
from tasks.hosts.channels import channels_of, host_of
from tasks.hosts.prune import Pruned
from tasks.hosts.prune import collect as collect_host
from tasks.hosts.prune import needed as needed_on

option_dry_run = {
    "name": "dry_run",
    "long": "dry-run",
    "type": bool,
    "default": False,
    "help": "say what would go, change nothing",
}


class Gc(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Needed is what tasks made last, and what the releases kept on hosts consist of and came from;
    of a host out of reach, all that this project ever brought there. The rest goes, with what runs
    that were killed have left; so does, on each host, what no release that is live, running, pinned
    or kept names. Exit status: 0, also when a host is out of reach."""

    name = "gc"
    doc_purpose = "remove what nothing needs any more, from the store and from the hosts"
    doc_usage = ""
    doc_description = None
    cmd_options = (option_dry_run, option_json)
    takes_lock = True

    def _execute(self, dry_run: bool, json: bool) -> int:
        on_hosts = self._on_hosts(dry_run)
        needed = of_tasks(self.project, [task.name for task in self.task_list])
        needed |= self._of_releases()
        gone = collect(self.project.store, needed, dry_run)
        left = remove_leftovers(self.project, dry_run)
        both = Collected(gone.objects, gone.results, left.leftovers, gone.bytes + left.bytes)
        if json:
            hosts = {name: asdict(pruned) for name, pruned in on_hosts.items()}
            told = {"dry_run": dry_run, **asdict(both), "hosts": hosts}
            self.outstream.write(json_format.dumps(told, indent=1) + "\n")
        else:
            self.outstream.write(f"{in_words(both, dry_run)}\n")
            self.outstream.writelines(
                f"{name}: {on_host_in_words(pruned, dry_run)}\n"
                for name, pruned in on_hosts.items()
                if pruned.releases or pruned.files
            )
        return 0

    def _on_hosts(self, dry_run: bool) -> dict[str, Pruned]:
        """What went, or would, from each host that can be asked now."""
        configuration = load_configuration()
        keep: dict[str, dict[str, int]] = {}
        places = {}
        for name, model in configuration.models.items():
            for channel in channels_of(model, configuration):
                places[channel["host"]] = channel
                keep.setdefault(channel["host"], {})[name] = channel["keep"]
        found = {}
        for host, channel in places.items():
            try:
                found[host] = collect_host(host_of(self.project.root, channel), keep[host], dry_run)
            except Busy as error:
                sys.stderr.write(f"{error}; nothing is removed there\n")
            except (QuernError, OSError):
                pass  # told when its releases can't be read either
        return found

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
                digests |= needed_on(host_of(self.project.root, channel))
            except (QuernError, OSError) as error:
                kept = "nothing is removed there, all that went there from here is kept"
                sys.stderr.write(f"{' '.join(str(error).split())}; {kept}\n")
                digests |= of_history(self.project, name)
        return digests | of_what_they_were_made(self.project, digests)


def of_what_they_were_made(project: Project, digests: set[str]) -> set[str]:
    """Digests of the checkpoints, adapters and files that artifacts came from: with them, `doit
    reproduce` can build the artifacts again."""
    lineage = Lineage(project.store)
    inputs = {material.digest for step in lineage.steps(digests) for material in step.inputs}
    return {
        digest
        for digest in inputs
        if not lineage.made(digest) or any(made.recipe == "fetch" for made in lineage.made(digest))
    }


def on_host_in_words(pruned: Pruned, dry_run: bool) -> str:
    """`freed 1.2 GB: 2 releases, 7 files`, or what would be."""
    counts = {"release": len(pruned.releases), "file": pruned.files}
    return freed(pruned.bytes, counts, dry_run)


def in_words(collected: Collected, dry_run: bool) -> str:
    """`freed 1.2 GB: 12 objects, 5 results, 1 leftover`, or what would be."""
    counts = {
        "object": collected.objects,
        "result": collected.results,
        "leftover": collected.leftovers,
    }
    if not any(counts.values()):
        return "nothing to free: all that is in the store is needed"
    return freed(collected.bytes, counts, dry_run)


def freed(bytes: int, counts: dict[str, int], dry_run: bool) -> str:
    """What went, or would: bytes, and how many of each."""
    told = [f"{n} {what if n == 1 else f'{what}s'}" for what, n in counts.items() if n]
    return f"{'would free' if dry_run else 'freed'} {amount(bytes)}: {', '.join(told)}"


def amount(count: int) -> str:
    """Bytes as people say them: `1.2 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
