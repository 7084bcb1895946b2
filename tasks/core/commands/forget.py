"""`doit forget`, `doit ignore`: doit's own commands on Quern's records."""

from doit.cmd_forget import Forget as DoitForget
from doit.cmd_ignore import Ignore as DoitIgnore

from tasks.core.commands.project_command import ProjectCommand


class Forget(ProjectCommand, DoitForget):  # type: ignore[misc]
    """Forget recorded successes; the store is not touched."""

    name = "forget"
    takes_lock = True


class Ignore(ProjectCommand, DoitIgnore):  # type: ignore[misc]
    """Skip tasks until they are forgotten."""

    name = "ignore"
    takes_lock = True
