"""Connections by SSH: host keys are checked, everything has a time limit, a fault is one line.

Of the remote nothing is asked but an SSH server and a POSIX shell.
"""

import contextlib
import logging
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import paramiko

from tasks.core.errors import QuernError, TryAgainLater
from tasks.hosts.ssh_settings import Settings, known_keys, settings_of

HANDSHAKE_SECONDS = 20.0
CHANNEL_SECONDS = 20.0
KEEPALIVE_SECONDS = 10
CUT_AFTER_SECONDS = 30
REMEMBERED_SECONDS = 60.0
MOST_SESSIONS_SECONDS = 1.0
CONNECT_FAILED = 2  # RFC 4254, section 5.1: SSH_OPEN_CONNECT_FAILED
# A channel's window bounds what is on its way: at 50 ms of round trip the usual 2 MiB are
# 40 MB/s, however wide the line.
WINDOW_BYTES = 64 << 20
# What paramiko costs is by the packet: with the usual 32 KiB a transfer takes a fifth longer.
PACKET_BYTES = 256 << 10
# The command that runs any script, whatever the user's login shell is: it is told nothing else.
READ_SCRIPT = "exec /bin/sh -s"
# It tells its caller; what it logs besides is tracebacks.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


NO_STATUS = -1  # paramiko's word for a command that ended without one: with its connection


class OutOfReach(TryAgainLater):
    """No connection, or it was cut: the next run tries again."""


class NotTrusted(QuernError):
    """The host's key is unknown, changed or revoked."""


class RemoteFailed(QuernError):
    """A command on the host ended with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def script_text(script: str, *arguments: str) -> bytes:
    """What READ_SCRIPT reads to run `script` with `arguments` ($1, $2 …), which may hold any
    character but NUL. The shell has read all of it before the script begins."""
    for argument in arguments:
        if "\0" in argument:
            raise QuernError(f"{argument!r}: a name can't hold a zero byte")
    text = f"set -- {shlex.join(arguments)}\n{{ {script}\nexit; }}\n"
    return text.encode("utf-8", "surrogateescape")


def end(channel: paramiko.Channel) -> None:
    """Close a channel. If its connection has just gone, paramiko tells of that by an EOFError,
    which must not take the place of what is being told already."""
    with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
        channel.close()


class Connection:
    """One connection to `destination`; its channels may be used from several threads."""

    def __init__(self, settings: Settings, client: paramiko.SSHClient, jump: "Connection | None"):
        self.settings, self._client, self._jump = settings, client, jump
        self._sftp: paramiko.SFTPClient | None = None
        self._lock = threading.Lock()
        self._round_trip: float | None = None

    @property
    def name(self) -> str:
        """The destination, for messages."""
        return self.settings.destination

    @property
    def is_alive(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    @property
    def round_trip(self) -> float:
        """Seconds to the host and back, measured once."""
        if self._round_trip is None:
            end(self.open_session())
            start = time.monotonic()
            end(self.open_session())
            self._round_trip = time.monotonic() - start
        return self._round_trip

    def open_session(self) -> paramiko.Channel:
        """A channel for a command or a subsystem. Raises OutOfReach."""
        with self.told():
            transport = self._client.get_transport()
            if transport is None:
                raise OutOfReach(f"{self.name}: the connection was closed")
            deadline = time.monotonic() + MOST_SESSIONS_SECONDS
            while True:
                try:
                    channel = transport.open_session(timeout=CHANNEL_SECONDS)
                    break
                except paramiko.ChannelException as refused:
                    # sshd_config's MaxSessions: one that has ended may count for a moment yet.
                    if refused.code != CONNECT_FAILED or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            channel.settimeout(CUT_AFTER_SECONDS)
            return channel

    def start(self, command: list[str], timeout: float = CUT_AFTER_SECONDS) -> paramiko.Channel:
        """Start a program; its input and output are the channel's. Raises OutOfReach.

        The user's login shell reads the command: its words must be of our own making.
        """
        with self.told():
            channel = self.open_session()
            channel.settimeout(timeout)
            channel.exec_command(f"exec {shlex.join(command)}")
            return channel

    def start_script(
        self, script: str, *arguments: str, timeout: float = CUT_AFTER_SECONDS
    ) -> paramiko.Channel:
        """Start a POSIX shell script with `arguments` ($1, $2 …), which may hold any character
        but NUL; what is sent on the channel later is the script's standard input."""
        text = script_text(script, *arguments)
        with self.told():
            channel = self.open_session()
            channel.settimeout(timeout)
            channel.exec_command(READ_SCRIPT)
            channel.sendall(text)
            return channel

    def run(self, script: str, *arguments: str, timeout: float = CUT_AFTER_SECONDS) -> bytes:
        """Run a POSIX shell script; returns what it printed. `timeout` is how long it may be
        silent. Raises RemoteFailed with its last words, OutOfReach."""
        with self.told():
            channel = self.start_script(script, *arguments, timeout=timeout)
            try:
                channel.shutdown_write()
                printed = b"".join(iter(lambda: channel.recv(1 << 18), b""))
                said = b"".join(iter(lambda: channel.recv_stderr(1 << 18), b""))
                if not channel.status_event.wait(timeout):
                    raise OutOfReach(f"{self.name}: no answer for {timeout:.0f} s")
                status = channel.recv_exit_status()
            finally:
                end(channel)
        if status == NO_STATUS:
            raise OutOfReach(f"{self.name}: the connection was cut")
        if status:
            words = said.decode(errors="replace").strip().splitlines() or [f"status {status}"]
            raise RemoteFailed(f"{self.name}: {words[-1][:300]}", status)
        return printed

    @property
    def sftp(self) -> paramiko.SFTPClient:
        """The connection's SFTP session. Raises OutOfReach."""
        with self._lock, self.told():
            transport = self._client.get_transport()
            if transport is None:
                raise OutOfReach(f"{self.name}: the connection was closed")
            if self._sftp is None:
                # Not our large window: paramiko moves all that it holds at each of its small reads.
                session = paramiko.SFTPClient.from_transport(transport, window_size=2 << 20)
                if session is None:
                    raise QuernError(f"{self.name}: its SSH server offers no SFTP")
                channel = session.get_channel()
                if channel is not None:
                    channel.settimeout(CUT_AFTER_SECONDS)
                self._sftp = session
            return self._sftp

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn the faults of a broken connection into OutOfReach."""
        try:
            yield
        except TimeoutError:
            raise OutOfReach(f"{self.name}: no answer for too long; the link may be cut") from None
        except (paramiko.SSHException, EOFError, ConnectionError) as error:
            said = " ".join(str(error).split()) or "the connection was cut"
            raise OutOfReach(f"{self.name}: {said}") from None
        except OSError as error:
            # paramiko: "Socket is closed". SFTP's own answers are OSErrors too, and pass.
            if not self.is_alive or str(error) == "Socket is closed":
                raise OutOfReach(f"{self.name}: the connection was cut") from None
            raise

    def close(self) -> None:
        """End the connection and the one it goes through."""
        self._client.close()
        if self._jump is not None:
            self._jump.close()


def connect(destination: str, config: str | None = None) -> Connection:
    """Connect to `destination` (an alias, user@host, ssh://user@host:port) as the user's SSH
    configuration says, or the file `config` alone.

    Raises OutOfReach, NotTrusted with the key's fingerprint, QuernError for a refused login.
    """
    return _connect(settings_of(destination, config))


def _connect(settings: Settings, within: tuple[str, ...] = ()) -> Connection:
    if settings.destination in within:
        raise QuernError(f"{settings.destination}: its ProxyJump leads in a circle")
    jump = None
    if settings.jumps:
        *before, last = settings.jumps
        by = settings_of(last, settings.config)
        if before:
            by = replace(by, jumps=tuple(before))
        jump = _connect(by, (*within, settings.destination))
    try:
        return _through(settings, jump)
    except BaseException:
        if jump is not None:
            jump.close()
        raise


def _through(settings: Settings, jump: Connection | None) -> Connection:
    name = settings.destination
    known, revoked = known_keys(settings)
    client = paramiko.SSHClient()
    for key in known:
        client.get_host_keys().add(settings.known_as, key.get_name(), key)
    client.set_missing_host_key_policy(_Refuse(settings, known))
    sock = _socket(settings, jump)
    identities = [file for file in settings.identities if os.path.exists(file)]
    try:
        with _agent(settings.agent):
            client.connect(
                settings.known_as,
                22,  # known_as has the port, if it is another
                username=settings.user,
                key_filename=identities,  # type: ignore[arg-type]  # a list will do
                allow_agent=settings.agent != "none",
                look_for_keys=False,
                sock=sock,
                timeout=settings.connect_seconds,
                banner_timeout=HANDSHAKE_SECONDS,
                auth_timeout=HANDSHAKE_SECONDS,
                channel_timeout=CHANNEL_SECONDS,
                transport_factory=_transport,  # type: ignore[arg-type]
            )
        transport = client.get_transport()
        assert transport is not None
        if transport.get_remote_server_key() in revoked:
            raise NotTrusted(f"{name}: its host key is marked @revoked in known_hosts")
        transport.set_keepalive(KEEPALIVE_SECONDS)
        return Connection(settings, client, jump)
    except paramiko.BadHostKeyException as error:
        client.close()
        raise NotTrusted(
            f"{name}: its host key has changed: {_fingerprint(error.key)} is offered, known_hosts "
            f"has {_fingerprint(error.expected_key)}; if that is as it should be: "
            f"ssh-keygen -R {shlex.quote(settings.known_as)}, then ssh {name}"
        ) from None
    except paramiko.PasswordRequiredException:
        client.close()
        raise QuernError(
            f"{name}: the key needs a passphrase; give it to ssh-agent (ssh-add), "
            "or use a key without one"
        ) from None
    except paramiko.AuthenticationException as error:
        client.close()
        if "transport shut down" in str(error):  # paramiko's word for a connection that ended
            raise OutOfReach(
                f"{name}: the connection ended during the login: it was cut, or too many keys "
                "were offered (IdentitiesOnly in ~/.ssh/config offers fewer)"
            ) from None
        raise QuernError(
            f"{name}: it refuses {settings.user or 'the user'}: no key that we have is accepted; "
            f"ssh {name} must work without a password"
        ) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        # paramiko: a login without any key to offer.
        if "No authentication methods" in str(error):
            raise QuernError(
                f"{name}: there is no key to log in with; ssh {name} must work without a password"
            ) from None
        said = " ".join(str(error).split()) or "it hung up"
        raise OutOfReach(f"{name}: out of reach: {said}") from None
    except BaseException:
        client.close()
        raise


class _Refuse(paramiko.MissingHostKeyPolicy):
    def __init__(self, settings: Settings, known: list[paramiko.PKey]) -> None:
        self.settings, self.known = settings, known

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        name = self.settings.destination
        raise NotTrusted(
            f"{name}: its host key is not known: {key.get_name()} {_fingerprint(key)}; "
            f"compare it with the host's own, then accept it: ssh {name}"
        )


def _fingerprint(key: paramiko.PKey) -> str:
    return str(key.fingerprint)


def _transport(sock: socket.socket, **more: object) -> paramiko.Transport:
    transport = paramiko.Transport(
        sock,
        default_window_size=WINDOW_BYTES,
        default_max_packet_size=PACKET_BYTES,
        disabled_algorithms=more.get("disabled_algorithms"),  # type: ignore[arg-type]
    )
    # paramiko puts the cheapest ciphers last.
    options = transport.get_security_options()
    others = [cipher for cipher in options.ciphers if cipher not in GCM]
    options.ciphers = [*(cipher for cipher in GCM if cipher in options.ciphers), *others]
    return transport


def _socket(settings: Settings, jump: Connection | None) -> socket.socket:
    """Something to speak SSH over: a TCP connection, a jump host's channel or a proxy command."""
    target = (settings.hostname, settings.port)
    if jump is not None:
        with jump.told():
            transport = jump._client.get_transport()
            if transport is None:
                raise OutOfReach(f"{jump.name}: the connection was closed")
            try:
                return transport.open_channel(  # type: ignore[return-value]
                    "direct-tcpip", target, ("127.0.0.1", 0), timeout=settings.connect_seconds
                )
            except paramiko.ChannelException as error:
                raise OutOfReach(
                    f"{settings.destination}: {jump.name} can't reach it: {error.text}"
                ) from None
    if settings.proxy_command:
        # Not paramiko's ProxyCommand, which turns round and round when the command has ended.
        ours, its = socket.socketpair()
        command = ["/bin/sh", "-c", f"exec {settings.proxy_command}"]
        subprocess.Popen(
            command, stdin=its.fileno(), stdout=its.fileno(), stderr=subprocess.DEVNULL
        )
        its.close()
        return ours
    try:
        connected = socket.create_connection(target, settings.connect_seconds)
    except OSError as error:
        said = error.strerror or str(error)
        raise OutOfReach(f"{settings.destination}: out of reach: {said}") from None
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # a cut link is noticed, not waited for
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CUT_AFTER_SECONDS * 1000)
    return connected


_environment = threading.Lock()


@contextmanager
def _agent(path: str | None) -> Iterator[None]:
    """IdentityAgent: paramiko looks for an agent in the environment only."""
    if path in (None, "none"):
        yield
        return
    with _environment:
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = str(path)
        try:
            yield
        finally:
            os.environ.pop("SSH_AUTH_SOCK")
            if before is not None:
                os.environ["SSH_AUTH_SOCK"] = before


class Connections:
    """One connection per destination and process, opened when first asked for; a host that was
    out of reach is not tried again for a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, str | None], threading.Lock] = {}
        self._open: dict[tuple[str, str | None], Connection] = {}
        self._failed: dict[tuple[str, str | None], tuple[float, OutOfReach]] = {}

    def to(self, destination: str, config: str | None = None) -> Connection:
        """The connection to `destination`, made anew if it was cut. Raises as connect() does."""
        key = (destination, config)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            known = self._open.get(key)
            if known is not None and known.is_alive:
                return known
            when, failure = self._failed.get(key, (0.0, None))
            if failure is not None and time.monotonic() - when < REMEMBERED_SECONDS:
                raise failure
            try:
                self._open[key] = connect(destination, config)
            except OutOfReach as error:
                self._failed[key] = (time.monotonic(), error)
                raise
            return self._open[key]

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            for connection in self._open.values():
                with contextlib.suppress(Exception):
                    connection.close()
            self._open.clear()


connections = Connections()


def config_path(file: str | None) -> str | None:
    """models.yaml's `ssh_config` as a path; None means the user's own configuration."""
    return str(Path(file).expanduser().absolute()) if file else None
