"""JSON over HTTP to a server's Unix socket, to a port, and over SSH; short, bounded calls."""

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError

# The shorter of Linux's 108 and macOS's 104 bytes, less the final zero.
LONGEST_SOCKET_PATH = 103


class Unreachable(QuernError):
    """No answer: nothing listens there, or it took too long."""


class Refused(QuernError):
    """The server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def ask_socket(
    path: Path, method: str, target: str, body: Any = None, timeout: float = 10.0
) -> dict[str, Any]:
    """One request over the Unix socket at `path`; a `bytes` body goes as it is, else as JSON.

    Raises Unreachable, or Refused with the server's own sentence.
    """
    try:
        connected = _connect(path, timeout)
    except OSError as error:
        raise Unreachable(f"{path}: no answer to {method} {target}: {in_words(error)}") from None
    return ask_connected(connected, f"{path}", timeout, method, target, body)


def ask_port(
    address: str, target: str, timeout: float = 5.0, method: str = "GET", body: Any = None
) -> dict[str, Any]:
    """Ask "host:port", on a connection of its own. Raises Unreachable, Refused."""
    key = os.environ.get("QUERN_READ_KEY")
    return _ask(address, None, timeout, method, target, body, address, key)


def ask_connected(
    connected: Any,
    where: str,
    timeout: float,
    method: str,
    target: str,
    body: Any,
    key: str | None = None,
) -> dict[str, Any]:
    """One request over `connected`, a socket or an SSH channel. Raises Unreachable, Refused."""
    return _ask("localhost", connected, timeout, method, target, body, where, key)


def _connect(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            connection.connect(str(path))
            return connection
        # A socket's address is bounded, a directory's depth is not: go through a short link.
        with tempfile.TemporaryDirectory(prefix="quern-") as folder:
            link = os.path.join(folder, "d")
            os.symlink(path.parent.absolute(), link)
            connection.connect(os.path.join(link, path.name))
        return connection
    except OSError:
        connection.close()
        raise


def _ask(
    address: str,
    connected: Any,
    timeout: float,
    method: str,
    target: str,
    body: Any,
    where: str,
    key: str | None = None,
) -> dict[str, Any]:
    import http.client  # 15 ms, which `doit list` need not pay

    connection = http.client.HTTPConnection(address, timeout=timeout)
    if connected is not None:
        connection.sock = connected
    if isinstance(body, bytes):
        headers = {"Content-Type": "application/octet-stream"}
    else:
        headers = {"Content-Type": "application/json"}
        body = None if body is None else json.dumps(body)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, target, body, {**headers, "Connection": "close"})
        response = connection.getresponse()
        data = response.read()
    except (OSError, EOFError, http.client.HTTPException) as error:
        raise Unreachable(f"{where}: no answer to {method} {target}: {in_words(error)}") from None
    finally:
        connection.close()
    return understood(response.status, data)


def understood(status: int, data: bytes) -> dict[str, Any]:
    """An answer's JSON object. Raises Refused."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"error": data[:200].decode(errors="replace")}
    if not isinstance(answer, dict):
        raise Refused(status, f"answered {data[:80]!r}, not a JSON object")
    if status != 200:
        raise Refused(status, str(answer.get("error", f"status {status}")))
    return answer


def in_words(error: Exception) -> str:
    """Why there was no answer."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or "it hung up"
