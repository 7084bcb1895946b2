"""What comes from the environment: which models.yaml, and what its `${NAME}` stands for, by
`.quern/environment` where no shell has set it."""

import os
import re
from pathlib import Path

from tasks.core.errors import QuernError

FILE = Path(".quern/environment")


def configuration_file() -> str:
    """The file that says what to build: `QUERN_MODELS`, by default models.yaml."""
    return os.environ.get("QUERN_MODELS") or "models.yaml"


def load_environment(path: Path) -> None:
    """Set what the file's NAME=value lines name and the environment lacks.

    Raises QuernError, which never shows a value: they may be secrets.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().decode().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise QuernError(f"{path}: can't be read: {why}") from None
    if mode & 0o077:
        raise QuernError(f"{path}: others than its owner may read it; run: chmod 600 {path}")
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise QuernError(f"{path}:{number}: is not a NAME=value line")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        os.environ.setdefault(name, value)
