"""A file's bytes through OpenSSH's own `ssh` program: the least work for this machine's cores.

The program writes what comes into the file itself, or is fed through a pipe.
"""

import os
import subprocess
import tempfile
import threading
from typing import IO

from tasks.core import lifeline
from tasks.core.errors import QuernError
from tasks.hosts.ssh import READ_SCRIPT, Connection, OutOfReach, RemoteFailed, script_text

BLOCK_BYTES = 256 << 10
CONNECTION_FAILED = 255  # ssh(1), "EXIT STATUS"
PULL = 'if [ "$2" = 1 ]; then exec cat <"$1"; else exec tail -c "+$2" <"$1"; fi'
# One byte says that all of the script was read, and that what comes next is for cat.
PUSH = 'exec 3>&1 >>"$1" && printf . >&3 && exec cat'


class NoConnection(OutOfReach):
    """The program's own connection failed, or was cut."""


class _Program:
    """A running ssh program."""

    def __init__(self, connection: Connection, standard_input: int, standard_output: int) -> None:
        self._connection = connection
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # read by check()
        ssh = connection.settings.openssh()
        if ssh is None:
            raise QuernError("ssh: not found in PATH")
        # lifeline's commands have no standard input: it is handed over under another number.
        give = ["/bin/sh", "-c", 'exec "$@" <"$0"', f"/dev/fd/{standard_input}"]
        self._process = lifeline.start(
            [*give, *ssh, READ_SCRIPT],
            stdout=standard_output,
            stderr=self._said,
            pass_fds=(standard_input,),
        )

    def ended_within(self, seconds: float) -> bool:
        """Whether the program has ended; waits so long for it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """End the program, if it still runs."""
        lifeline.end(self._process)
        self._said.close()

    def check(self) -> None:
        """Raise NoConnection or RemoteFailed if it ended with a fault."""
        status = self._process.wait()
        if not status:
            return
        self._said.seek(0)
        lines = self._said.read(1 << 16).decode(errors="replace").strip().splitlines()
        words = f"{self._connection.name}: {lines[-1] if lines else f'ssh: status {status}'}"
        if status == CONNECTION_FAILED or status < 0:
            raise NoConnection(words[:300])
        raise RemoteFailed(words[:300], status)


class Pull(_Program):
    """Brings a remote file from byte `offset` into the open file `descriptor`, at its position."""

    def __init__(self, connection: Connection, path: str, offset: int, descriptor: int) -> None:
        with tempfile.TemporaryFile() as script:
            script.write(script_text(PULL, path, str(offset + 1)))
            script.flush()
            script.seek(0)
            super().__init__(connection, script.fileno(), descriptor)


class Push(_Program):
    """Appends bytes `offset` to `size` of the open file `descriptor` to a remote file; `done` is
    how far it is."""

    def __init__(
        self, connection: Connection, path: str, offset: int, size: int, descriptor: int
    ) -> None:
        self.done = offset
        self._fault: OSError | None = None
        reader, self._feed = os.pipe()
        self._ready, writer = os.pipe()
        try:
            super().__init__(connection, reader, writer)
        finally:
            os.close(reader)
            os.close(writer)
        text = script_text(PUSH, path)
        self._thread = threading.Thread(target=self._send, args=(text, descriptor, size))
        self._thread.start()

    def stop(self) -> None:
        """End the program, if it still runs, and the thread that feeds it."""
        super().stop()
        self._thread.join()

    def check(self) -> None:
        """As above; raises OSError when the local file can't be read."""
        super().check()
        if self._fault is not None:
            raise self._fault

    def _send(self, script: bytes, descriptor: int, size: int) -> None:
        try:
            os.write(self._feed, script)
            if os.read(self._ready, 1):
                while block := os.pread(descriptor, min(BLOCK_BYTES, size - self.done), self.done):
                    self.done += os.write(self._feed, block)
        except BrokenPipeError:
            pass  # the program has ended; check() knows why
        except OSError as error:
            self._fault = error
        finally:
            os.close(self._feed)
            os.close(self._ready)
