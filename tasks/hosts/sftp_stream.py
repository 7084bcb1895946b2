"""A file's bytes by SFTP through paramiko, many requests in flight, in a thread beside.

SFTP version 3 as OpenSSH speaks it: draft-ietf-secsh-filexfer-02, and PROTOCOL in OpenSSH's
sources. paramiko's own get() and put() wait for one 32 KiB answer after the other, or hold the
whole file in memory.
"""

import os
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import paramiko
from paramiko.buffered_pipe import BufferedPipe, PipeTimeout

from tasks.core.errors import QuernError
from tasks.hosts.ssh import PACKET_BYTES, Connection, OutOfReach, end

# What OpenSSH's server reads or writes at once; a server that reads less answers with less.
REQUEST_BYTES = 255 << 10
# What every server must take (draft, section 3); those with `limits@openssh.com` take more.
PLAIN_REQUEST_BYTES = 32 << 10
# 16 MB on the way fill 1 Gbit/s at 130 ms. On a short line 2 MB do: 4 to 32 requests measure alike.
OUTSTANDING_NEAR, OUTSTANDING_FAR = 8, 64
# glibc gives the memory of each packet back to the kernel and fetches it page by page again, until
# something larger was freed once (mallopt(3), "dynamic mmap threshold"): a fifth of the time.
LARGER_THAN_A_PACKET_BYTES = 4 << 20
# A round trip from which the line, not the processor, is what holds a transfer up.
LONG_LINE_SECONDS = 0.005
CHANNELS_FAR = 4
UNSURE_BYTES = 64 << 20

INIT, OPEN, CLOSE, READ, WRITE = 1, 3, 4, 5, 6
STATUS, HANDLE, DATA = 101, 102, 103
FOR_READING, FOR_WRITING, MADE_IF_MISSING = 0x01, 0x02, 0x08
OK, END_OF_FILE = 0, 1


class NoSftp(QuernError):
    """The host's SSH server has no SFTP subsystem."""


class _Pieces(BufferedPipe):  # type: ignore[type-arg]  # the stubs alone have one
    """What has come and was not read yet, in the pieces in which it came. paramiko's own copies
    each byte thrice more: a fifth of the time."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces = deque[bytes]()
        self._over = False
        self._changed = threading.Condition()

    def feed(self, data: bytes) -> None:
        """Take what came, from paramiko's thread."""
        with self._changed:
            self._pieces.append(data)
            self._changed.notify_all()

    def close(self) -> None:
        """There will be no more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        """The next piece, or what of it fits into `nbytes`; nothing when there will be no more.
        Raises PipeTimeout when none has come within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._over, timeout):
                raise PipeTimeout
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if len(piece) > nbytes:
                self._pieces.appendleft(piece[nbytes:])
            return piece[:nbytes]


class Session:
    """An SFTP session on a channel of its own; silent for `silence` seconds, it is given up."""

    def __init__(self, connection: Connection, silence: float) -> None:
        self.connection = connection
        self.outstanding = (
            OUTSTANDING_FAR if connection.round_trip >= LONG_LINE_SECONDS else OUTSTANDING_NEAR
        )
        self._number = 0
        self._received = memoryview(b"")
        self._channel = connection.open_session()
        self._channel.in_buffer = _Pieces()  # nothing was asked yet, so nothing can have come
        self._channel.settimeout(silence)
        try:
            with connection.told():
                try:
                    self._channel.invoke_subsystem("sftp")
                    self._send(INIT, struct.pack(">I", 3))
                    _, _, extensions = self.receive()
                except (paramiko.SSHException, EOFError):
                    if not connection.is_alive:
                        raise
                    raise NoSftp(f"{connection.name}: its SSH server offers no SFTP") from None
        except BaseException:
            end(self._channel)
            raise
        self.takes_large_writes = b"limits@openssh.com" in extensions

    def open(self, path: str, flags: int) -> bytes:
        """The handle of a remote file. Raises QuernError when the host refuses."""
        kind, body = self.answer(OPEN, _string(path) + struct.pack(">II", flags, 0))
        if kind != HANDLE:
            raise self.refused(path, body)
        return body

    def request(self, kind: int, *body: bytes) -> int:
        """Send a request; returns the number its answer will have."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._send(kind, struct.pack(">I", self._number), *body)
        return self._number

    def receive(self) -> tuple[int, int, bytes]:
        """The next answer: its kind, its request's number, the rest."""
        (length,) = struct.unpack(">I", self._take(4))
        if not 5 <= length <= 1 << 20:
            raise self.nonsense()
        kind, number = struct.unpack(">BI", self._take(5))
        return kind, number, self._take(length - 5)

    def answer(self, kind: int, body: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer: its kind, the rest."""
        number = self.request(kind, body)
        kind, answered, rest = self.receive()
        if answered != number:
            raise self.nonsense()
        return kind, rest

    def refused(self, path: str, status: bytes) -> QuernError:
        """What a STATUS answer says about `path`, as one line."""
        words = status[8 : 8 + int.from_bytes(status[4:8])].decode(errors="replace")
        shown = f"{self.connection.name}:{path}"
        return QuernError(f"{shown}: {words or f'SFTP status {_code(status)}'}")

    def nonsense(self) -> QuernError:
        """For answers that are none."""
        return QuernError(f"{self.connection.name}: its SFTP server speaks nonsense")

    def close(self) -> None:
        """End the session; the server drops what it was doing, whoever waits for it hears."""
        end(self._channel)

    def _send(self, kind: int, *body: bytes) -> None:
        head = struct.pack(">IB", sum(map(len, body)) + 1, kind)
        self._channel.sendall(b"".join((head, *body)))

    def _take(self, count: int) -> bytes:
        pieces = []
        while count:
            if not self._received:
                self._received = memoryview(self._channel.recv(PACKET_BYTES))
                if not self._received:
                    raise EOFError
            pieces.append(self._received[:count])
            self._received = self._received[count:]
            count -= len(pieces[-1])
        return b"".join(pieces)


class _Transfer:
    """Work in a thread beside, on an SFTP session of its own."""

    def __init__(
        self, connection: Connection, path: str, offset: int, size: int, fd: int, silence: float
    ) -> None:
        self.path, self.done, self.size, self.descriptor = path, offset, size, fd
        self.session = Session(connection, silence)
        bytearray(LARGER_THAN_A_PACKET_BYTES)  # freed at once
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def work(self) -> None:
        """Move the bytes from `done` to `size`."""
        raise NotImplementedError

    def ended_within(self, seconds: float) -> bool:
        """Whether the work has ended; waits so long for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the work, if it still goes on."""
        self.session.close()
        self._thread.join()

    def check(self) -> None:
        """Raise what it ended with: OutOfReach, QuernError, OSError of the local file."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self.session.connection.told():
                self.work()
        except BaseException as error:
            self._error = error
        finally:
            with suppress(Exception):
                self.session.close()


class Pull(_Transfer):
    """Brings bytes `offset` to `size` of a remote file into the open file `fd`, in order."""

    def work(self) -> None:
        """Write what comes to the file."""
        for block in self._blocks():
            while block:
                written = os.pwrite(self.descriptor, block, self.done)
                self.done += written
                block = block[written:]

    def _blocks(self) -> Iterator[memoryview]:
        sftp, step, offset = self.session, REQUEST_BYTES, self.done
        handle = sftp.open(self.path, FOR_READING)
        asked: deque[tuple[int, int, int]] = deque()  # request's number, offset, bytes
        arrived: dict[int, tuple[int, bytes]] = {}

        def ask(start: int, count: int) -> tuple[int, int, int]:
            return sftp.request(READ, handle, struct.pack(">QI", start, count)), start, count

        while asked or offset < self.size:
            while len(asked) < sftp.outstanding and offset < self.size:
                count = min(step, self.size - offset)
                asked.append(ask(offset, count))
                offset += count
            number, start, count = asked.popleft()
            while number not in arrived:
                kind, answered, body = sftp.receive()
                arrived[answered] = kind, body
            kind, body = arrived.pop(number)
            if kind == DATA and len(body) > 4:
                yield memoryview(body)[4:]
                if (got := len(body) - 4) < count:
                    # This server reads less at once, or the file ends here.
                    step = max(got, 4096)
                    asked.appendleft(ask(start + got, count - got))
            elif kind == STATUS and _code(body) == END_OF_FILE:
                return
            else:
                raise sftp.refused(self.path, body)


class Push:
    """Writes bytes `offset` to `size` of the open file `fd` at their place in a remote file;
    `done` is how many the host has written. Over a long line by several channels, as the host's
    window of 2 MiB bounds each: what a cut leaves may have gaps in its last UNSURE_BYTES."""

    def __init__(
        self, connection: Connection, path: str, offset: int, size: int, fd: int, silence: float
    ) -> None:
        channels = CHANNELS_FAR if connection.round_trip >= LONG_LINE_SECONDS else 1
        places = _Places(offset, size)
        self._offset, self._lanes = offset, list[_Lane]()
        for _ in range(channels):
            try:
                self._lanes.append(_Lane(connection, path, places, fd, silence))
            except OutOfReach:
                # A host lets only so many channels be open (sshd_config(5), MaxSessions).
                if not self._lanes:
                    raise
                break

    @property
    def done(self) -> int:
        """Bytes of the file that the host has written."""
        return self._offset + sum(lane.done for lane in self._lanes)

    def ended_within(self, seconds: float) -> bool:
        """Whether the work has ended; waits so long for it."""
        return all(lane.ended_within(seconds) for lane in self._lanes)

    def stop(self) -> None:
        """End the work, if it still goes on."""
        for lane in self._lanes:
            lane.stop()

    def check(self) -> None:
        """Raise what it ended with: OutOfReach, QuernError, OSError of the local file."""
        for lane in self._lanes:
            lane.check()


class _Places:
    """The pieces of a file, each handed out once."""

    def __init__(self, offset: int, size: int) -> None:
        self._offset, self._size, self._lock = offset, size, threading.Lock()

    def take(self, most: int) -> tuple[int, int]:
        """The next piece of `most` bytes or fewer: offset and length; none is left at length 0."""
        with self._lock:
            start, count = self._offset, min(most, self._size - self._offset)
            self._offset += count
            return start, count


class _Lane(_Transfer):
    """One of the channels of a Push; `done` counts its own bytes."""

    def __init__(
        self, connection: Connection, path: str, places: _Places, fd: int, silence: float
    ) -> None:
        self._places = places
        super().__init__(connection, path, 0, 0, fd, silence)

    def work(self) -> None:
        """Send pieces, and count those that the host has written."""
        sftp, unanswered = self.session, deque[int]()
        handle = sftp.open(self.path, FOR_WRITING | MADE_IF_MISSING)
        step = REQUEST_BYTES if sftp.takes_large_writes else PLAIN_REQUEST_BYTES

        def hear() -> None:
            kind, _, body = sftp.receive()
            if kind != STATUS or _code(body) != OK:
                raise sftp.refused(self.path, body)
            self.done += unanswered.popleft()

        while (piece := self._places.take(step))[1]:
            block = os.pread(self.descriptor, piece[1], piece[0])
            sftp.request(WRITE, handle, struct.pack(">QI", piece[0], len(block)), block)
            unanswered.append(len(block))
            if len(unanswered) == sftp.outstanding:
                hear()
        while unanswered:
            hear()
        sftp.answer(CLOSE, handle)


def _string(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack(">I", len(data)) + data


def _code(status: bytes) -> int:
    return int.from_bytes(status[:4])
