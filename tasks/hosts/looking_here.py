"""The same looks (tasks.hosts.looking) at this machine's files, without a shell.

Digests come from the project's index, which reads each content once.
"""

import glob
import os
import stat
from collections.abc import Sequence

from tasks.core.digest import DigestIndex, files_below, signature_of
from tasks.core.errors import QuernError
from tasks.hosts.looking import RANKING_BYTES, TAIL_BYTES, Look, Match, Read, Seen


def look(patterns: Sequence[str], directories: bool = False, ranking: str = "") -> Look:
    """Look for `patterns` (relative to the project, absolute, or `~/…`)."""
    seen = Look([], home=os.path.expanduser("~"))
    for pattern in patterns:
        matches = []
        for path in sorted(glob.glob(os.path.expanduser(pattern))):
            if directories and os.path.isdir(path):
                matches.append(Match(path, _files_of(path)))
            elif not directories and os.path.isfile(path):
                matches.append(Match(path, [_seen(path, "")]))
        seen.matches.append(matches)
    if ranking:
        try:
            with open(os.path.expanduser(ranking), "rb") as file:
                seen.ranking = file.read(RANKING_BYTES)
        except OSError:
            seen.ranking = None
    return seen


def read(index: DigestIndex, match: Match, names: Sequence[str]) -> dict[str, Read]:
    """Read the files `names` of a match; those that are gone are left out."""
    found = {}
    for name in names:
        path = os.path.join(match.path, name) if name else match.path
        try:
            before = _seen(path, name)
            try:
                _, sha256 = index.digests(path)
            except QuernError:  # it changes while it is read
                sha256 = ""
            with open(path, "rb") as file:
                head = file.read(8)
                if path.endswith(".safetensors"):
                    tail = file.read(min(int.from_bytes(head, "little"), RANKING_BYTES))
                    tail = head + tail
                else:
                    file.seek(max(0, before.size - TAIL_BYTES))
                    tail = file.read(TAIL_BYTES)
            after = _seen(path, name)
        except FileNotFoundError:
            continue
        steady = bool(sha256) and before.signature == after.signature
        found[name] = Read(after, sha256, head, tail, steady, now=None)
    return found


def _files_of(directory: str) -> list[Seen]:
    """The files below, without hidden ones, links and training's own checkpoints."""
    found = []
    for path in files_below(directory):
        name = os.path.relpath(path, directory)
        folders = name.split(os.sep)[:-1]
        regular = stat.S_ISREG(os.lstat(path).st_mode)
        if regular and not any(folder.startswith("checkpoint-") for folder in folders):
            found.append(_seen(path, name))
    return found


def _seen(path: str, name: str) -> Seen:
    status = os.stat(path)
    signature = " ".join(str(number) for number in signature_of(status))
    return Seen(name, status.st_size, status.st_mtime, status.st_ctime, signature)
