"""Two live servers asked the same, as users ask them, in turns: neither has the warmer moment."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts.channels import Channel, asked_at, in_words
from tasks.hosts.host import Host
from tasks.hosts.kept_alive import KeptAlive
from tasks.hosts.releases import Release
from tasks.hosts.unix_http import Refused

ANSWER_SECONDS = 30.0
CHAT_SECONDS = 600.0
TOP = 5


class Void(QuernError):
    """A server died, answered with an error, or was given another release meanwhile."""


@dataclass
class Live:
    """A channel's server with the release that it must go on serving; `identity` is what changes
    when it is started again, `answers` are what it said, `milliseconds` how long each took."""

    host: Host
    channel: Channel
    release: Release
    connection: KeptAlive = field(init=False)
    identity: dict[str, Any] = field(init=False)
    answers: list[dict[str, Any]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """Where the release lies on the host."""
        return self.host.root / self.release.model / "releases" / self.release.id

    def look(self) -> dict[str, Any]:
        """Who answers now. Raises Void unless it serves the release."""
        info = self.connection.ask("GET", "/models/info")
        self.check(info.get("release"))
        return {key: info.get(key) for key in ("pid", "engine_pid", "engine_restarts")}

    def check(self, release: Any) -> None:
        """Raises Void if an answer is another release's."""
        if release != self.release.id:
            raise Void(f"{in_words(self.channel)} serves {release}, no longer {self.release.id}")

    def memory_bytes(self) -> int | None:
        """Resident memory of the server, and of the engine that it runs; None if unknown."""
        pattern = r"^quern_resident_bytes (\d+)$"
        found = re.search(pattern, self.connection.text("/metrics"), re.MULTILINE)
        if found is None or self.identity["engine_pid"] is None:
            return int(found[1]) if found else None
        status = self.host.read(Path(f"/proc/{self.identity['engine_pid']}/status")) or b""
        engine = re.search(rb"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) + 1024 * int(engine[1]) if engine else None


Ask = Callable[[Live], None]  # puts one question to a server and keeps what it says


def ask_both(
    pair: tuple[Live, Live],
    questions: Sequence[tuple[str, Ask]],
    timeout: float,
    progress: Callable[[int, int], None],
) -> list[int | None]:
    """Put every question (where it stands, how it is asked) to both servers, the first one first,
    then the second one first, and so on; returns the memory of each, in bytes. Raises Void,
    Unreachable, OutOfReach."""
    with ExitStack() as stack:
        for live in pair:
            address = asked_at(live.channel)
            live.connection = stack.enter_context(live.host.kept_alive(address, timeout))
            live.identity = live.look()
        for index, (place, ask) in enumerate(questions):
            for live in pair if index % 2 == 0 else reversed(pair):
                try:
                    ask(live)
                except Refused as refusal:
                    raise Void(f"{place}: {in_words(live.channel)} answers: {refusal}") from None
            progress(index + 1, len(questions))
        for live in pair:
            if live.look() != live.identity:
                raise Void(f"{in_words(live.channel)} was started again")
        return [live.memory_bytes() for live in pair]


def ask_class(read: Callable[[], bytes], live: Live) -> None:
    """POST /predict?top=5 of the image that `read` gives. Raises Refused, Unreachable, Void."""
    answer, milliseconds = live.connection.timed(
        "POST", f"/predict?top={TOP}", read(), "application/octet-stream"
    )
    live.check(answer.get("release"))
    live.answers.append(answer)
    live.milliseconds.append(milliseconds)


def ask_chat(prompt: str, max_tokens: int, live: Live) -> None:
    """POST /v1/chat/completions, the likeliest token taken each time. Raises Refused,
    Unreachable."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    answer, milliseconds = live.connection.timed("POST", "/v1/chat/completions", body)
    live.answers.append(answer)
    live.milliseconds.append(milliseconds)
