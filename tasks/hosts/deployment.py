"""A release on its way into a channel: proved first, switched with no request lost; or nothing
is changed, and what served before still serves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.errors import QuernError
from tasks.hosts import llm_probe, probe
from tasks.hosts.history import Journal
from tasks.hosts.holder import Holder, Server, ServerEnded, Times
from tasks.hosts.host import Host, Platform
from tasks.hosts.marks import FAILED, Marks
from tasks.hosts.probe import ProbeFailed
from tasks.hosts.releases import Release, install, nothing
from tasks.hosts.unix_http import Refused, Unreachable

if TYPE_CHECKING:
    from tasks.hosts.attestor import Attestor

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


class OtherPlatform(QuernError):
    """The release's programs don't run on the host."""


class Deployment:
    """One release on its way into one channel of one host."""

    def __init__(
        self,
        host: Host,
        release: Release,
        channel: str,
        listens_at: str,
        asked_at: str = "",
        journal: Journal | None = None,
        signers: str | None = None,
    ) -> None:
        self.journal = journal or Journal()
        self.host, self.release, self.channel = host, release, channel
        self.listens_at, self.address = listens_at, asked_at or listens_at
        self.directory = host.root / release.model / channel
        self.current = self.directory / "current"
        self.marks = Marks(host, release.model)
        self.kind = KINDS[release.kind]
        self.holder = Holder(host, self.directory, self.kind.times)
        self.seconds: dict[str, float] = {}
        self.proof: Any = None
        self.told = ""
        self.progress = nothing
        self.signers = signers
        self.attestor: Attestor | None = None

    def make_live(self, files: dict[str, str], retry: bool) -> None:
        """Install, start beside the old, probe, switch, confirm; or leave the old as it was."""
        from tasks.hosts.admission import Admission  # `doit list` need not pay for it

        attestor = self.attestor if files else None  # what is there only was made elsewhere
        self.admission = Admission(self.host, self.release, self.signers, attestor)
        previous = self.host.link_target(self.current)
        self.marks.check(self.release.id, retry)
        try:
            self._refuse_other_platform()
            attestation = self._timed("attest", self.admission.attestation)
            installed = self._timed(
                "install", install, self.host, self.release, files, self.progress, attestation
            )
            self._timed("verify", self.admission.confirm)
            self.host.ask_through(installed / self.release.file("holder"))
            self._timed("holder", self.holder.ensure, installed, self.release, self.listens_at)
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
        if retry:
            self.marks.lift(self.release.id)
        elsewhere = "" if self.host.name == "local" else f" of {self.host.name}"
        self.told = (
            f"{self.release.name} is live on http://{self.address}{elsewhere} "
            f"after {sum(self.seconds.values()):.1f} s, try{' there' if elsewhere else ''}:\n"
            f"  {self.kind.example.format(address=self.address)}"
        )

    def _refuse_other_platform(self) -> None:
        known = self.release.manifest.get("platform")
        built_for, host = Platform.of(known) if known else None, self.host.platform()
        if built_for and not host.runs_programs_of(built_for):
            raise OtherPlatform(
                f"{self.host.name} is {host}; the programs of release {self.release.id} are for "
                f"{built_for}: nothing was sent"
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
                self.host.remove_file(self.current)
            raise

    def _confirm(self) -> None:
        """The port itself must answer with this release, three times on new connections."""
        deadline, agreed, seen = time.monotonic() + CONFIRM_SECONDS, 0, ""
        while agreed < 3:
            try:
                health = self.host.ask_port(self.address, "/health")
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
        self.journal.record(
            self.host,
            self.release,
            self.channel,
            outcome,
            previous,
            self.seconds,
            address=self.address,
            error=error,
            probe=self.proof.as_data() if self.proof else None,
            **self.admission.told(),
        )

    def _timed(self, step: str, function: Any, *arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self.seconds[step] = time.monotonic() - start

    def drift(self) -> str:
        """Why what serves is not this release, "" if it is: the server itself is asked, and the
        link that a restarted one would go by."""
        if self.release.changed:
            return f"{self.channel} has a release whose manifest was changed"
        try:
            health = self.host.ask_port(self.address, "/health")
        except (Unreachable, Refused) as error:
            return f"{self.channel} does not serve: {error}"
        if health.get("release") != self.release.id:
            served = health.get("release") or "something else"
            return f"{self.channel} serves {served}, not release {self.release.id}"
        if health.get("weights") != self.release.digest("weights"):
            return f"{self.channel} serves other weights than its release has"
        link = self.host.link_target(self.current)
        if link is None or link.name != self.release.id:
            return f"{self.channel} would start {link.name if link else 'nothing'} after a reboot"
        return ""
