"""Log files that stay small: rotated when over 1 MiB, five kept."""

from pathlib import Path

LOG_BYTES = 1 << 20
LOGS_KEPT = 5


def rotated(path: Path) -> Path:
    """The log, ready to be appended to. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        import logging.handlers  # slow to import, and seldom needed

        handler = logging.handlers.RotatingFileHandler(path, backupCount=LOGS_KEPT)
        handler.doRollover()
        handler.close()
    return path
