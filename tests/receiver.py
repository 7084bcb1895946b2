"""A server that is sent notifications by apprise's json:// addresses."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = ("us3rname", "pa55word", "t0ken-in-the-path")  # parts of every address


class Receiver:
    """An HTTP server that keeps what it is sent; it may refuse, or never answer."""

    def __init__(self, port: int = 0) -> None:
        self.messages: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        self.hangs = False
        self.ended = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.hangs:
                    receiver.ended.wait(120)
                    return
                receiver.paths.append(self.path)
                if receiver.status == 200:
                    receiver.messages.append(json.loads(data))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return address_of(self.server.server_port)

    def texts(self) -> list[str]:
        return [message["message"] for message in self.messages]

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


def address_of(port: int) -> str:
    user, password, path = SECRETS
    return f"json://{user}:{password}@127.0.0.1:{port}/{path}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
