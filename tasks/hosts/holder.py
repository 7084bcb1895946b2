"""The holder of a channel: the process that owns its listening socket and keeps its server alive.

Protocol: docs/server.md. No pid files: the holder answers on its Unix socket, or it is not there.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts.host import Host, Program
from tasks.hosts.releases import Release
from tasks.hosts.unix_http import Unreachable

HOLDER_SECONDS = 10.0


@dataclass(frozen=True)
class Times:
    """Seconds that a server may take: to `start`, from there to be confirmed, and to end (`kill`)
    before it is killed."""

    start: float = 10.0
    confirm: int = 60
    kill: int = 30


@dataclass(frozen=True)
class Server:
    """A server process under a holder; `state` is standby, live or draining. `loaded` are the
    release and digests that a live one read to load another release beside its own."""

    host: Host
    channel: Path
    pid: int
    release: Path
    admin: str
    state: str
    loaded: dict[str, Any] = field(default_factory=dict)

    def ask(self, method: str, target: str, body: Any = None, timeout: float = 30) -> Any:
        """One request on the server's admin socket. Raises Unreachable, Refused."""
        return self.host.ask_socket(self.channel / self.admin, method, target, body, timeout)


class Holder:
    """The holder of the channel directory `channel`."""

    def __init__(self, host: Host, channel: Path, times: Times | None = None) -> None:
        self.host = host
        self.channel = channel
        self.times = times or Times()

    def ask(self, method: str, target: str, body: Any = None) -> dict[str, Any]:
        """One request to the holder. Raises Unreachable, Refused."""
        return self.host.ask_socket(self.channel / "holder.sock", method, target, body)

    def ensure(self, directory: Path, release: Release, address: str) -> None:
        """See that a holder of this release's digest listens on `address` ("host:port")."""
        try:
            status = self.ask("GET", "/status")
        except Unreachable:
            self._start(directory, release, address)
            return
        if status["address"] != address:
            self.ask("POST", "/shutdown")
            self._wait_until_gone()
            self._start(directory, release, address)
        elif status["holder"] != release.digest("holder"):
            self.ask("POST", "/upgrade", {"holder": str(directory / release.file("holder"))})
            self._wait_until_answers()

    def servers(self) -> list[Server]:
        """The servers it holds. Raises Unreachable."""
        return [
            Server(self.host, self.channel, c["pid"], Path(c["release"]), c["admin"], c["state"])
            for c in self.ask("GET", "/status")["children"]
        ]

    def live(self) -> Server | None:
        """The server that is live, if one is."""
        return next((server for server in self.servers() if server.state == "live"), None)

    def start_beside(self, directory: Path) -> Server:
        """Start the release's server in standby; waits until its admin socket answers.

        Raises QuernError when it ends instead, with its last words.
        """
        started = self.ask("POST", "/start", {"release": str(directory)})
        server = Server(
            self.host, self.channel, started["pid"], directory, started["admin"], "standby"
        )
        deadline = time.monotonic() + self.times.start
        while True:
            try:
                server.ask("GET", "/status", timeout=2)
                return server
            except Unreachable as silence:
                ended = self._end_of(server.pid)
                if ended:
                    raise ServerEnded(ended, self.last_words()) from None
                if time.monotonic() > deadline:
                    self.stop(server)
                    raise QuernError(f"the new server does not answer: {silence}") from None
            time.sleep(0.02)

    def promote(self, server: Server) -> None:
        """Make `server` the live one; the others drain and leave."""
        self.ask("POST", "/promote", {"pid": server.pid})

    def stop(self, server: Server) -> None:
        """End a server that was not promoted."""
        self.ask("POST", "/stop", {"pid": server.pid})

    def last_words(self) -> str:
        """The last line that a server logged, else the holder's own."""
        data = self.host.read(self.channel / "holder.log", last=4096) or b""
        lines = data.decode(errors="replace").strip().splitlines()
        by_servers = [line for line in lines[-8:] if " quern-holder[" not in line]
        return next(iter([*by_servers[-1:], *lines[-1:]]), "it said nothing")

    def _end_of(self, pid: int) -> str:
        for ended in self.ask("GET", "/status")["exited"]:
            if ended["pid"] == pid:
                return str(ended["status"])
        return ""

    def _start(self, directory: Path, release: Release, address: str) -> None:
        listen_host, _, port = address.rpartition(":")
        self.host.make_directory(self.channel)
        process = self.host.spawn(
            [
                str(directory / release.file("holder")),
                "--directory",
                str(self.channel),
                "--host",
                listen_host,
                "--port",
                port,
                "--confirm-seconds",
                str(self.times.confirm),
                "--kill-seconds",
                str(self.times.kill),
            ],
            self.channel / "holder.log",
        )
        self._wait_until_answers(process)

    def _wait_until_answers(self, process: Program | None = None) -> None:
        deadline = time.monotonic() + HOLDER_SECONDS
        while True:
            try:
                self.ask("GET", "/status")
                return
            except Unreachable as silence:
                if process is not None and process.poll() is not None:
                    raise QuernError(f"the holder did not start: {self.last_words()}") from None
                if time.monotonic() > deadline:
                    raise QuernError(f"the holder does not answer: {silence}") from None
            time.sleep(0.02)

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            try:
                self.ask("GET", "/status")
            except Unreachable:
                return
            time.sleep(0.05)
        raise QuernError(f"{self.channel}: the old holder does not leave")


class ServerEnded(QuernError):
    """A server ended before it answered; `status` is "exit 3" or "signal 9"."""

    def __init__(self, status: str, last_words: str) -> None:
        super().__init__(f"the new server ended at its start ({status}): {last_words}")
        self.status = status
