"""Class labels, in the order of the network's outputs, from the user's classes.json."""

import json
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError

FORMS = 'an array of strings or objects, or an object keyed "0", "1", …'


def read_classes(path: Path) -> list[str]:
    """One label a class: the string itself, else the entry's "name", else its first string.

    Raises QuernError where the file is missing, not JSON, or in none of the accepted forms.
    """
    try:
        return classes_of(path.read_bytes(), path)
    except FileNotFoundError:
        raise QuernError(f"{path}: no such file; classes must name a JSON file") from None


def classes_of(data: bytes, path: Path) -> list[str]:
    """The same of a classes.json's bytes, which were found at `path`. Raises QuernError."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise QuernError(f"{path}: not JSON: {error}") from None
    if isinstance(found, dict):
        missing = next((str(i) for i in range(len(found)) if str(i) not in found), None)
        if missing is not None:
            raise QuernError(f'{path}: has {len(found)} entries but none under "{missing}"')
        found = [found[str(i)] for i in range(len(found))]
    if not isinstance(found, list) or not found:
        raise QuernError(f"{path}: must be {FORMS}, and not empty")
    return [_label(path, index, entry) for index, entry in enumerate(found)]


def _label(path: Path, index: int, entry: Any) -> str:
    if isinstance(entry, dict):
        candidates = [entry.get("name"), *entry.values(), str(index)]
        entry = next(value for value in candidates if isinstance(value, str))
    if not isinstance(entry, str):
        raise QuernError(f"{path}: class {index} is {entry!r}; it must be a string or an object")
    try:
        entry.encode()
    except UnicodeEncodeError:
        raise QuernError(f"{path}: class {index} holds half a character (a lone surrogate)") from (
            None
        )
    return entry
