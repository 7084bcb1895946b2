"""The child's side of `tasks.core.notifications`: hands messages to apprise, which is imported
only here."""

import logging
import re
import threading
import time
from typing import Any
from urllib.parse import unquote


def send(letters: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Send each address its messages, the addresses side by side, for at most `seconds`.

    A letter is {"position", "address", "messages": [{"title", "body", "tone"}]}. Returns for each
    {"position", "service", "taken": how many of the first messages were, "why": not all of them}.
    """
    late = f"no answer within {seconds:g} s"
    results = [{"position": e["position"], "service": "", "taken": 0, "why": late} for e in letters]
    threads = [
        threading.Thread(target=_send, args=(letter, result), daemon=True)
        for letter, result in zip(letters, results, strict=True)
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [dict(result) for result in results]


def _send(letter: dict[str, Any], result: dict[str, Any]) -> None:
    try:
        import apprise

        service = apprise.Apprise.instantiate(letter["address"])
        if service is None:
            result["why"] = "is no address that apprise knows"
            return
        result["service"] = str(service.service_name)
        said = Said()
        service.logger = said.logger  # in place of the one that all services share
        sender = apprise.Apprise(service)
        for message in letter["messages"]:
            taken = sender.notify(
                title=message["title"],
                body=message["body"],
                notify_type=message["tone"],
                body_format=apprise.NotifyFormat.TEXT,
            )
            if not taken:
                result["why"] = redacted(said.last, letter["address"]) or "it gave no reason"
                return
            result["taken"] += 1
        result["why"] = ""
    except Exception as error:  # a plugin's fault is the address's, not the others'
        result["why"] = f"unexpected {type(error).__name__} in apprise"


def redacted(text: str, address: str) -> str:
    """The text without any part of the address: each may be a password or a token."""
    words = re.split(r"[^\w.-]+", f"{address} {unquote(address)}".partition("://")[2])
    for word in sorted({word for word in words if word}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "…", text)
    return " ".join(text.split())[:200]


class Said(logging.Handler):
    """What one service logged last as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self.logger = logging.Logger("notify")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.last = record.getMessage()
