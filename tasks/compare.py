"""`doit compare MODEL`: a candidate held against what is stable, on live servers, on what people
labelled."""

import json as json_format
import sys
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks.comparison.compare import NothingToCompare, compare, set_to_compare_on
from tasks.core.commands.plan import option_json
from tasks.core.commands.project_command import ProjectCommand, status_of
from tasks.core.configuration import configuration_file, load_configuration
from tasks.core.errors import QuernError, in_one_line
from tasks.hosts.channels import Channel, channels_of

option_images = {
    "name": "images",
    "long": "images",
    "type": str,
    "default": "",
    "help": "compare on these: a folder with a folder per class, or a CSV file (image,class)",
}
option_questions = {
    "name": "questions",
    "long": "questions",
    "type": str,
    "default": "",
    "help": "compare on these: JSON lines with category, prompt, answer",
}


class Compare(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Asks the candidate's live server and the stable one's the same, in turns, and says which is
    more accurate, by how much, and how surely. Exit status: 0 compared, or they have the same
    release; 1 the comparison is void; 75 a host is out of reach and that is all."""

    name = "compare"
    doc_purpose = "hold a candidate's live server against the stable one's"
    doc_usage = "MODEL"
    doc_description = None
    cmd_options = (option_images, option_questions, option_json)

    def _execute(self, pos_args: list[str], images: str, questions: str, json: bool) -> int:
        if len(pos_args) != 1:
            raise QuernError("compare: name one model")
        [name] = pos_args
        chosen = set_to_compare_on(name, images, questions)
        compared = []
        faults: list[QuernError] = []
        for candidate, stable in pairs_to_compare(name):
            try:
                with Bar(None if json else self.outstream, f"compare:{name}") as bar:
                    told = compare(self.project, name, candidate, stable, chosen, bar.show)
            except NothingToCompare as same:
                sys.stderr.write(f"{same}\n")
            except QuernError as error:  # another stable host shall not wait for it
                sys.stderr.write(f"{in_one_line(error)}\n")
                faults.append(error)
            else:
                compared.append(told)
                if not json:
                    self._show(told)
        if json:
            self.outstream.write(json_format.dumps(compared, indent=1, ensure_ascii=False) + "\n")
        return status_of(faults)

    def _show(self, told: dict[str, Any]) -> None:
        from tasks.models.comparison_report import table

        self.outstream.writelines(f"{line}\n" for line in table(told))


class Bar:
    """How far a comparison is, where `stream` is a terminal."""

    def __init__(self, stream: Any, name: str) -> None:
        self.name, self.bars = name, None
        if stream is not None and stream.isatty():
            from tasks.core.progress_bars import ProgressBars

            self.bars = ProgressBars(stream)

    def show(self, done: int, total: int) -> None:
        """`done` of `total` were asked."""
        if self.bars is not None:
            self.bars.show(self.name, "asking", done, total, "")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bars is not None:
            self.bars.stop()


def pairs_to_compare(name: str) -> list[tuple[Channel, Channel]]:
    """Each candidate's server with the stable ones of its host, or where that has none, with all
    there are. Raises QuernError."""
    configuration = load_configuration()
    channels = [c for c in channels_of(configuration.models[name], configuration) if "port" in c]
    stable = [channel for channel in channels if channel["promoted"]]
    pairs = [
        (candidate, other)
        for candidate in channels
        if not candidate["promoted"]
        for other in [c for c in stable if c["host"] == candidate["host"]] or stable
    ]
    if not pairs:
        raise QuernError(
            f"{configuration_file()}: models.{name}.deploy has no candidate's server beside a "
            "stable one to compare it with (docs/channels.md)"
        )
    return pairs
