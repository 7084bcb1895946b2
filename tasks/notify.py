"""`doit notify --test`: a message to each address of models.yaml's `notify`, to see it arrive."""

import time

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import configuration_file, load_configuration
from tasks.core.errors import QuernError
from tasks.core.lifeline import end_all
from tasks.core.notifications import Message, apprise_is_installed, in_words, letter, send


class Notify(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Tries every address; names them by position and service, as they are secrets. Exit status:
    1 if one didn't take its message."""

    name = "notify"
    doc_purpose = "send a test message to each address of models.yaml's notify"
    doc_usage = "--test"
    doc_description = None
    cmd_options = (
        {
            "name": "test",
            "long": "test",
            "type": bool,
            "default": False,
            "help": "send the test message",
        },
    )

    def _execute(self, test: bool) -> int:
        if not test:
            raise QuernError("notify: say --test to send a message; runs send their own")
        addresses = load_configuration().notify
        if not addresses:
            raise QuernError(
                f"{configuration_file()}: notify: names no address; see docs/unattended.md"
            )
        if not apprise_is_installed():
            raise QuernError("notify: apprise is not installed: pip install -e '.[notify]'")
        title = f"Quern {self.project.root.name}: a test"
        message = Message(time.time(), title, "Messages arrive here.", "info", [])
        try:
            results = send([letter(n, a, [message]) for n, a in enumerate(addresses)])
        finally:
            end_all()
        for result in results:
            self.outstream.write(f"{in_words(result)}\n")
        return int(any(result["why"] for result in results))
