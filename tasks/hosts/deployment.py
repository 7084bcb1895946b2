"""A release on its way into a channel: proved first, switched with no request lost; or nothing
is changed, and what served before still serves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts import history, llm_probe, probe
from tasks.hosts.holder import Holder, Server, ServerEnded, Times
from tasks.hosts.local import LocalHost
from tasks.hosts.marks import FAILED, Marks
from tasks.hosts.probe import ProbeFailed
from tasks.hosts.releases import Release, install
from tasks.hosts.unix_http import Refused, Unreachable, ask_port

LISTEN_HOST = "127.0.0.1"
CONFIRM_SECONDS = 10.0


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of models: the proof, how long a server may take, and how it is
    asked, to be tried."""

    probe: Callable[[Server, Path, Release], Any]
    times: Times
    example: str


KINDS = {
    "classifier": Kind(
        probe=probe.probe,
        times=Times(),
        example="curl -F image=@IMAGE http://{address}/predict",
    ),
    "llm": Kind(
        probe=llm_probe.probe,
        times=Times(start=660.0, confirm=1800, kill=630),
        example="curl http://{address}/v1/chat/completions -H 'Content-Type: application/json' "
        """-d '{{"messages":[{{"role":"user","content":"Hello"}}]}}'""",
    ),
}


class Deployment:
    """One release on its way into one channel of one host."""

    def __init__(self, host: LocalHost, release: Release, channel: str, address: str) -> None:
        self.host, self.release, self.address, self.channel = host, release, address, channel
        self.directory = host.root / release.model / channel
        self.current = self.directory / "current"
        self.marks = Marks(host, release.model)
        self.kind = KINDS[release.kind]
        self.holder = Holder(host, self.directory, self.kind.times)
        self.seconds: dict[str, float] = {}
        self.proof: Any = None
        self.told = ""

    def make_live(self, files: dict[str, str], retry: bool) -> None:
        """Install, start beside the old, probe, switch, confirm; or leave the old as it was."""
        previous = self.host.link_target(self.current)
        self.marks.check(self.release.id, retry)
        try:
            installed = self._timed("install", install, self.host, self.release, files)
            self._timed("holder", self.holder.ensure, installed, self.release, self.address)
            candidate = self._timed("load", self._load_beside, installed)
            try:
                self.proof = self._timed(
                    "probe", self.kind.probe, candidate, installed, self.release
                )
                self._timed("switch", self._switch, candidate, installed, previous)
            except BaseException:
                self._discard(candidate)
                raise
        except (QuernError, OSError) as error:
            self._failed(error, previous)
            raise
        self._record("live", previous)
        total = sum(self.seconds.values())
        self.told = (
            f"{self.release.name} is live on http://{self.address} "
            f"after {total:.1f} s, try:\n  {self.kind.example.format(address=self.address)}"
        )

    def _load_beside(self, installed: Path) -> Server:
        """Load the release where it answers the admin socket only: in the live process if its
        program is the release's own, else in a new process on the same socket."""
        live = None
        for server in self.holder.servers():
            if server.state == "standby":  # left by a deploy that died
                self.holder.stop(server)
            elif server.state == "live":
                live = server
        if live:
            try:
                if live.ask("GET", "/status")["server"] == self.release.digest("server"):
                    loaded = live.ask(
                        "POST", "/load", {"release": str(installed)}, self.kind.times.start
                    )
                    return replace(live, loaded=loaded)
            except Unreachable:
                pass  # a server that doesn't answer is replaced
        return self.holder.start_beside(installed)

    def _switch(self, candidate: Server, installed: Path, previous: Path | None) -> None:
        """The point of no return is the link: what it names has passed its probe."""
        self.host.point(self.current, installed)
        try:
            candidate.ask("POST", "/activate", {"release": self.release.id})
            self.holder.promote(candidate)
            self._confirm()
        except BaseException:
            if previous is not None:
                self.host.point(self.current, previous)
            else:
                self.host.remove_link(self.current)
            raise

    def _confirm(self) -> None:
        """The port itself must answer with this release, three times on new connections."""
        deadline, agreed, seen = time.monotonic() + CONFIRM_SECONDS, 0, ""
        while agreed < 3:
            try:
                health = ask_port(self.address, "/health")
                seen = f"release {health.get('release')}"
                agreed = agreed + 1 if health.get("release") == self.release.id else 0
            except (Unreachable, Refused) as error:
                seen, agreed = str(error), 0
            if time.monotonic() > deadline:
                raise QuernError(f"{self.address} does not answer with the new release: {seen}")

    def _discard(self, candidate: Server) -> None:
        try:
            if candidate.state == "standby":
                self.holder.stop(candidate)
            else:
                candidate.ask("POST", "/discard")
        except QuernError:
            pass  # it is gone, or its holder ends it by itself

    def _failed(self, error: Exception, previous: Path | None) -> None:
        wrong_by_itself = isinstance(error, ProbeFailed | Refused) or (
            isinstance(error, ServerEnded) and error.status.startswith("exit")
        )
        if wrong_by_itself:
            self.marks.put(self.release.id, FAILED, str(error))
        self._record("failed", previous, str(error))

    def _record(self, outcome: str, previous: Path | None, error: str = "") -> None:
        history.record(
            self.host,
            self.release,
            self.channel,
            outcome,
            previous,
            self.seconds,
            address=self.address,
            error=error,
            probe=self.proof.as_data() if self.proof else None,
        )

    def _timed(self, step: str, function: Any, *arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self.seconds[step] = time.monotonic() - start

    def drift(self) -> str:
        """Why what serves is not this release, "" if it is: the server itself is asked."""
        try:
            health = ask_port(self.address, "/health")
        except (Unreachable, Refused) as error:
            return f"{self.channel} does not serve: {error}"
        if health.get("release") != self.release.id:
            served = health.get("release") or "something else"
            return f"{self.channel} serves {served}, not release {self.release.id}"
        if health.get("weights") != self.release.digest("weights"):
            return f"{self.channel} serves other weights than its release has"
        return ""
