"""`doit pin MODEL RELEASE`: keep a release on its hosts, however many come after it."""

import sys

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.project_command import TRY_AGAIN_LATER, ProjectCommand
from tasks.core.configuration import load_configuration
from tasks.core.errors import QuernError, TryAgainLater
from tasks.hosts.channels import channels_of, host_of
from tasks.hosts.pins import Pins

option_remove = {
    "name": "remove",
    "long": "remove",
    "type": bool,
    "default": False,
    "help": "take the pin out: the release goes when its turn comes",
}
option_reason = {
    "name": "reason",
    "long": "reason",
    "type": str,
    "default": "",
    "help": "what it is kept for",
}


class Pin(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Pins a release on every host that has it; without one, says which are pinned."""

    name = "pin"
    doc_purpose = "keep a release on its hosts, however many come after it"
    doc_usage = "MODEL [RELEASE]"
    doc_description = None
    takes_lock = True
    cmd_options = (option_remove, option_reason)

    def _execute(self, pos_args: list[str], remove: bool, reason: str) -> int:
        if not 1 <= len(pos_args) <= 2 or (remove and len(pos_args) == 1):
            raise QuernError("pin: name a model and a release")
        model, release_id = pos_args[0], pos_args[1] if pos_args[1:] else ""
        configuration = load_configuration()
        configuration.chosen([model])
        channels = channels_of(configuration.models[model], configuration)
        done, faults = 0, []
        for channel in {channel["host"]: channel for channel in channels}.values():
            try:
                pins = Pins(host_of(self.project.root, channel), model)
                lines = self._on(pins, release_id, remove, reason)
                done += bool(lines)
                self.outstream.writelines(f"{line}\n" for line in lines)
            except QuernError as error:
                faults.append(error)
        for fault in faults:
            if not done or isinstance(fault, TryAgainLater):
                sys.stderr.write(f"{fault}\n")
        if any(isinstance(fault, TryAgainLater) for fault in faults):
            return TRY_AGAIN_LATER
        return 1 if faults and not done else 0

    @staticmethod
    def _on(pins: Pins, release_id: str, remove: bool, reason: str) -> list[str]:
        host, model = pins.host, pins.model
        if not release_id:
            return [
                f"{model} {name} is pinned on {host.name} by {pin['who']}"
                + (f": {pin['why']}" if pin["why"] else "")
                for name, pin in pins.read().items()
            ]
        with host.lock(host.root / model / "lock"):
            if remove:
                was = pins.remove(release_id)
                return [
                    f"{model} {release_id} is {'no longer' if was else 'not'} pinned on {host.name}"
                ]
            pins.put(release_id, reason)
            return [f"{model} {release_id} is pinned on {host.name}"]
