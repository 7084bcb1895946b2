"""What is to run when: the same for every way of doing it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from tasks.core.digest import digest_of_bytes
from tasks.core.errors import QuernError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Marker:
    """The line in all that Quern writes, by which it knows its own. Times are in seconds."""

    every: int
    jitter: int
    project: str

    def __str__(self) -> str:
        return (
            f"Quern runs every {in_words(self.every)} (jitter {in_words(self.jitter)}) "
            f"in {self.project}"
        )

    @classmethod
    def read(cls, text: str, project: Path) -> "Marker | None":
        """The marker in `text` if it is this project's."""
        found = re.search(r"Quern runs every (\w+) \(jitter (\w+)\) in (.*)", text)
        if not found or found[3] != str(project):
            return None
        return cls(seconds("--every", found[1]), seconds("--jitter", found[2]), found[3])


@dataclass(frozen=True)
class Job:
    """`program --cron` in `project`; times in seconds; `environment` is what no platform sets."""

    project: Path
    program: Path
    every: int
    jitter: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (str(self.project), str(self.program), *self.environment.values()):
            # None of the three formats holds these in a way that all its readers agree on.
            if not text.isprintable() or "\\" in text or text != text.strip():
                raise QuernError(
                    f"{text!r}: can't be scheduled; a path with line ends, backslashes or spaces "
                    "at its ends has no place in a schedule, move the project"
                )

    @property
    def marker(self) -> Marker:
        """The line that says whose this is."""
        return Marker(self.every, self.jitter, str(self.project))

    def arguments(self, jitter: bool) -> list[str]:
        """The command, with the jitter if the platform has none of its own."""
        wait = ["--jitter", str(self.jitter)] if jitter and self.jitter else []
        return [str(self.program), "--cron", *wait]


def name_of(project: Path) -> str:
    """The project's name on this machine: `quern-digits-1a2b3c4d`."""
    folder = re.sub(r"[^A-Za-z0-9]+", "-", project.name).strip("-")[:40]
    return f"quern-{folder or 'project'}-{digest_of_bytes(str(project).encode())[:8]}"


def seconds(option: str, text: str) -> int:
    """`30m` in seconds. Raises QuernError, naming the option."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        raise QuernError(f"{option} {text}: is not a time; write 90s, 30m, 6h or 1d")
    return int(found[1]) * UNITS[found[2]]


def in_words(duration: int) -> str:
    """Seconds as `30m`, in the largest unit that leaves no rest."""
    unit = next(u for u in ("d", "h", "m", "s") if duration % UNITS[u] == 0)
    return f"{duration // UNITS[unit]}{unit}" if duration else "0s"


def not_ours(path: Path) -> QuernError:
    """The refusal to overwrite a file that somebody else wrote."""
    return QuernError(f"{path}: was not written by doit schedule for this project; move it away")
