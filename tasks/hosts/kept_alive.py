"""One connection to a server for many requests, as a client asks that has much to ask."""

import contextlib
import json
import socket
import time
from typing import Any

from tasks.hosts.unix_http import Refused, Unreachable, in_words, understood


class KeptAlive:
    """Requests to "address:port", one after the other, each with `timeout` seconds to be answered.
    The connection is made again when the server closed it while nothing was asked."""

    def __init__(self, address: str, timeout: float, key: str | None = None) -> None:
        self.where, self._address, self._timeout = address, address, timeout
        self._key = key
        self._joined: Any = None

    def ask(self, method: str, target: str, body: Any = None, media: str = "") -> dict[str, Any]:
        """The answer's JSON object; a `bytes` body goes as `media`, any other as JSON. Raises
        Unreachable, Refused with the server's own sentence, and what connecting raises."""
        return understood(*self._exchange(method, target, body, media))

    def timed(
        self, method: str, target: str, body: Any = None, media: str = ""
    ) -> tuple[dict[str, Any], float]:
        """ask(), and the milliseconds from the request's first byte to the answer's last."""
        start = time.perf_counter()
        status, data = self._exchange(method, target, body, media)
        milliseconds = (time.perf_counter() - start) * 1000
        return understood(status, data), milliseconds

    def text(self, target: str) -> str:
        """The answer to a GET as it is. Raises as ask()."""
        status, data = self._exchange("GET", target, None, "")
        if status != 200:
            raise Refused(status, f"{target}: status {status}")
        return data.decode(errors="replace")

    def close(self) -> None:
        """Hang up."""
        joined, self._joined = self._joined, None
        if joined is not None:
            with contextlib.suppress(OSError, EOFError):
                joined.close()

    def __enter__(self) -> "KeptAlive":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _exchange(self, method: str, target: str, body: Any, media: str) -> tuple[int, bytes]:
        import http.client  # 15 ms, which `doit list` need not pay

        if not isinstance(body, bytes):
            body, media = b"" if body is None else json.dumps(body).encode(), "application/json"
        key = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: {self._address}\r\n{key}"
            f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        while True:
            was_open = self._joined is not None
            try:
                if not was_open:
                    self._joined = self._connect()
                # In one piece: the body shall not wait until the head's arrival is confirmed.
                self._joined.sendall(head.encode() + body)
                response = http.client.HTTPResponse(self._joined, method=method)
                response.begin()
                data = response.read()
            except (OSError, EOFError, http.client.HTTPException) as error:
                silence = f"{self.where}: no answer to {method} {target}: {in_words(error)}"
                closed_before = was_open and not isinstance(error, TimeoutError)
                fault = None if closed_before else self._lost(Unreachable(silence))
                self.close()
                if fault:
                    raise fault from None
                continue
            if response.will_close:
                self.close()
            return response.status, data

    def _connect(self) -> Any:
        """Something with sendall() and makefile()."""
        host, _, port = self._address.rpartition(":")
        joined = socket.create_connection((host.strip("[]"), int(port)), self._timeout)
        joined.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return joined

    def _lost(self, silence: Unreachable) -> Exception:
        """What is to be said of a connection that gave no answer."""
        return silence
