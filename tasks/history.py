"""`doit history [MODEL ...]`: what went live where, when, by whom and from what; what failed."""

import json as json_format
import sys
import time

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.hosts.channels import channels_of, host_of
from tasks.hosts.history import COMPARED, LIVE, Record, by, in_project, on_host
from tasks.hosts.promotion import figures

option_last = {
    "name": "last",
    "long": "last",
    "type": int,
    "default": 20,
    "help": "how many, the newest ones; 0: all [default: %(default)s]",
}


class History(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Asks every host for its own history; of one out of reach, tells what this project did there.
    The newest is last."""

    name = "history"
    doc_purpose = "say what went live where, when and from what, and what didn't"
    doc_usage = "[MODEL ...]"
    doc_description = None
    cmd_options = (option_last, option_json)

    def _execute(self, pos_args: list[str], last: int, json: bool) -> int:
        if last < 0:
            raise QuernError(f"--last {last}: must not be negative")
        records = [
            record
            for model in load_configuration().chosen(pos_args)
            for record in records_of(self.project, model)
        ]
        records = sorted(records, key=lambda record: record["at"])[-last:]
        if json:
            self.outstream.write(json_format.dumps(records, indent=1, ensure_ascii=False) + "\n")
        else:
            # A comparison of releases on two hosts is in the history of both.
            self.outstream.writelines(f"{line}\n" for line in dict.fromkeys(map(in_words, records)))
        return 0


def records_of(project: Project, model: str) -> list[Record]:
    """Every record of a model on all its hosts; a host that can't be asked is told on stderr."""
    configuration = load_configuration()
    channels = channels_of(configuration.models[model], configuration)
    found: list[Record] = []
    for name, channel in {channel["host"]: channel for channel in channels}.items():
        try:
            there = on_host(host_of(project.root, channel), model)
        except QuernError as error:
            sys.stderr.write(f"{error}; shown is what this project did there\n")
            there = in_project(project.private / "history.jsonl", model, name)
        # Another deployer may know the host by another name.
        found += [{**record, "host": name, "model": model} for record in there]
    return found


def in_words(record: Record) -> str:
    """`2026-11-28 20:19:59 dogs: Cycle 2 (…) (9e358456…) live in stable on edge after 0.2 s, …`."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    what = f"{record['label'] or record['release']} ({record['release']})"
    where = f"{record['channel']} on {record['host']}"
    outcome = f"failed for {where}: {record['error']}"
    if record["outcome"] == LIVE:
        outcome = f"live in {where} after {sum(record['seconds'].values()):.1f} s"
    if record["outcome"] == COMPARED:
        against = record["against"]
        named = f"{against['label'] or against['release']} ({against['release']})"
        outcome = f"compared with {named}: {figures(record['comparison'])}"
    return f"{at} {record['model']}: {what} {outcome}, by {by(record)}"
