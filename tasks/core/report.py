"""What a run came to, for those who didn't watch it."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """A task that failed; `passing`: trying again later is all there is to do; `busy`: somebody
    else is at work on the same thing."""

    task: str
    text: str
    passing: bool = False
    busy: bool = False


@dataclass(frozen=True)
class Announcement:
    """What a task wants told: its kind ("deployed") and a line."""

    task: str
    kind: str
    text: str


@dataclass
class Report:
    """What a run came to. `well`: tasks done or up to date; `known`: all there are; `stands` says
    what still serves, and is asked only when a failure is told."""

    faults: list[Fault] = field(default_factory=list)
    well: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    announcements: list[Announcement] = field(default_factory=list)
    stands: Callable[[], list[str]] = list
