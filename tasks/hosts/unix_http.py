"""JSON over HTTP to a server's Unix socket, and to a port; short, bounded calls."""

import http.client
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


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        if len(os.fsencode(self._path)) <= LONGEST_SOCKET_PATH:
            self.sock.connect(str(self._path))
            return
        # A socket's address is bounded, a directory's depth is not: go through a short link.
        with tempfile.TemporaryDirectory(prefix="quern-") as folder:
            link = os.path.join(folder, "d")
            os.symlink(self._path.parent.absolute(), link)
            self.sock.connect(os.path.join(link, self._path.name))


def ask_socket(
    path: Path, method: str, target: str, body: Any = None, timeout: float = 10.0
) -> dict[str, Any]:
    """One request over the Unix socket at `path`; a `bytes` body goes as it is, else as JSON.

    Raises Unreachable, or Refused with the server's own sentence.
    """
    return _ask(_UnixConnection(path, timeout), method, target, body, f"{path}")


def ask_port(address: str, target: str, timeout: float = 5.0) -> dict[str, Any]:
    """GET from "host:port", on a connection of its own. Raises Unreachable, Refused."""
    return _ask(http.client.HTTPConnection(address, timeout=timeout), "GET", target, None, address)


def _ask(
    connection: http.client.HTTPConnection, method: str, target: str, body: Any, where: str
) -> dict[str, Any]:
    if isinstance(body, bytes):
        headers = {"Content-Type": "application/octet-stream"}
    else:
        headers = {"Content-Type": "application/json"}
        body = None if body is None else json.dumps(body)
    try:
        connection.request(method, target, body, {**headers, "Connection": "close"})
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{where}: no answer to {method} {target}: {_words(error)}") from None
    finally:
        connection.close()
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"error": data[:200].decode(errors="replace")}
    if response.status != 200:
        raise Refused(response.status, str(answer.get("error", f"status {response.status}")))
    if not isinstance(answer, dict):
        raise Refused(response.status, f"answered {data[:80]!r}, not a JSON object")
    return answer


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or "it hung up"
