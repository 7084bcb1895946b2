"""A long line to a TCP port here: every byte arrives later, at whatever rate it was sent.

    python -m benchmarks.transfer.line PORT MILLISECONDS

Prints the port it listens at. Both ways are delayed by half the round trip of MILLISECONDS.
"""

import queue
import socket
import sys
import threading
import time

BLOCK_BYTES = 1 << 20
BUFFER_BYTES = 8 << 20


def carry(source: socket.socket, sink: socket.socket, seconds: float) -> None:
    """Send on what comes from `source`, each piece `seconds` after it came, until its end."""
    on_the_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def receive() -> None:
        piece = b"."
        while piece:
            try:
                piece = source.recv(BLOCK_BYTES)
            except OSError:
                piece = b""
            on_the_way.put((time.monotonic() + seconds, piece))

    threading.Thread(target=receive, daemon=True).start()
    while True:
        due, piece = on_the_way.get()
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            if not piece:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(piece)
        except OSError:
            return


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2]) / 2000
    listener = socket.socket()
    # Set before listening: what is accepted inherits it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    print(listener.getsockname()[1], flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=carry, args=(source, sink, seconds), daemon=True).start()


if __name__ == "__main__":
    main()
