"""A way to a TCP port that does something when so many bytes have passed, such as cutting it."""

import contextlib
import socket
import threading
from collections.abc import Callable

DOWN, UP = "down", "up"  # from the port, to the port


class Gate:
    """Listens at `port` and passes everything on to `target`, both on loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._left, self._direction, self._action = -1, DOWN, lambda: None
        threading.Thread(target=self._accept, daemon=True).start()

    def after(self, count: int, direction: str, action: Callable[[], None]) -> None:
        """Do `action` when `count` more bytes have gone in `direction`; none passes meanwhile."""
        with self._lock:
            self._left, self._direction, self._action = count, direction, action

    def cut(self) -> None:
        """End every connection."""
        for end in self._ends:
            _shut(end)

    def cut_newest(self) -> None:
        """End the connection that was made last."""
        for end in self._ends[-2:]:
            _shut(end)

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._ends += [near, far]
            for source, sink, way in ((near, far, UP), (far, near, DOWN)):
                threading.Thread(target=self._carry, args=(source, sink, way), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while piece := source.recv(1 << 14):
                self._count(len(piece), way)
                sink.sendall(piece)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(sink)

    def _count(self, count: int, way: str) -> None:
        with self._lock:
            if self._left < 0 or way != self._direction:
                return
            self._left -= count
            if self._left < 0:
                self._action()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
