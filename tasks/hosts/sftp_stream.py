"""The bytes of a remote file by SFTP, many requests in flight.

SFTP version 3, draft-ietf-secsh-filexfer-02, as OpenSSH speaks it. paramiko's own reads wait for
one 32 KiB answer after the other, or hold the whole file in memory; its channels carry ours.
"""

import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import paramiko

from tasks.core.errors import QuernError
from tasks.hosts.ssh import Connection

# What OpenSSH's server reads and writes at once; a server that does less says so by short answers.
REQUEST_BYTES = 255 << 10
OUTSTANDING = 64

INIT, VERSION, OPEN, CLOSE, READ = 1, 2, 3, 4, 5
STATUS, HANDLE, DATA = 101, 102, 103
OPEN_TO_READ = 0x01
END_OF_FILE = 1


class Session:
    """An SFTP session on a channel of its own. `silence` is how many seconds it may be silent."""

    def __init__(self, connection: Connection, silence: float) -> None:
        self.connection = connection
        self._number = 0
        self._channel = connection.open_session()
        self._channel.settimeout(silence)
        self._received = b""
        with connection.told():
            try:
                self._channel.invoke_subsystem("sftp")
            except paramiko.SSHException:
                if not connection.is_alive:
                    raise
                raise QuernError(f"{connection.name}: its SSH server offers no SFTP") from None
            self._send(INIT, struct.pack(">I", 3))
            self.receive()

    def request(self, kind: int, body: bytes) -> int:
        """Send a request; returns the number its answer will have."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._send(kind, struct.pack(">I", self._number) + body)
        return self._number

    def receive(self) -> tuple[int, int, bytes]:
        """The next answer: kind, number of its request, the rest."""
        (length,) = struct.unpack(">I", self._take(4))
        if not 5 <= length <= 1 << 20:
            raise QuernError(f"{self.connection.name}: its SFTP server speaks nonsense")
        kind, number = struct.unpack(">BI", self._take(5))
        return kind, number, self._take(length - 5)

    def answer(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer: kind, the rest."""
        number = self.request(kind, body)
        kind, answered, rest = self.receive()
        if answered != number:
            raise QuernError(f"{self.connection.name}: its SFTP server speaks nonsense")
        return kind, rest

    def close(self) -> None:
        """End the session; the server drops what it was doing."""
        self._channel.close()

    def _send(self, kind: int, body: bytes) -> None:
        self._channel.sendall(struct.pack(">IB", len(body) + 1, kind) + body)

    def _take(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._channel.recv(count)
            if not piece:
                raise EOFError
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def text(value: str | bytes) -> bytes:
    """SFTP's string: its length, then the bytes."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data


def said(body: bytes) -> tuple[int, str]:
    """Code and words of a STATUS answer."""
    (code,) = struct.unpack_from(">I", body)
    words = body[8 : 8 + struct.unpack_from(">I", body, 4)[0]] if len(body) >= 8 else b""
    return code, words.decode(errors="replace") or f"SFTP status {code}"


@contextmanager
def session(connection: Connection, silence: float) -> Iterator[Session]:
    """An SFTP session that is closed at the end. Raises OutOfReach, also within the block."""
    opened = Session(connection, silence)
    try:
        with connection.told():
            yield opened
    finally:
        opened.close()


def read(connection: Connection, path: str, offset: int, silence: float) -> Iterator[bytes]:
    """The bytes of a remote file from `offset` to its end, in order, a quarter MiB at a time.

    Raises QuernError when the host refuses, OutOfReach when no byte came for `silence` seconds.
    """
    with session(connection, silence) as sftp:
        kind, body = sftp.answer(OPEN, text(path) + struct.pack(">II", OPEN_TO_READ, 0))
        if kind != HANDLE:
            raise QuernError(f"{connection.name}:{path}: {said(body)[1]}")
        handle, step = body, REQUEST_BYTES
        asked: deque[tuple[int, int, int]] = deque()  # request's number, offset, bytes
        arrived: dict[int, tuple[int, bytes]] = {}

        def ask(start: int, count: int) -> tuple[int, int, int]:
            return sftp.request(READ, handle + struct.pack(">QI", start, count)), start, count

        while True:
            while len(asked) < OUTSTANDING:
                asked.append(ask(offset, step))
                offset += step
            number, start, count = asked.popleft()
            while number not in arrived:
                kind, answered, body = sftp.receive()
                arrived[answered] = kind, body
            kind, body = arrived.pop(number)
            if kind == DATA:
                data = body[4:]
                yield data
                if len(data) < count:
                    # A server that reads less at once, or the end of the file.
                    step = max(len(data), 4096)
                    asked.appendleft(ask(start + len(data), count - len(data)))
            elif kind == STATUS and said(body)[0] == END_OF_FILE:
                return
            else:
                raise QuernError(f"{connection.name}:{path}: {said(body)[1]}")
