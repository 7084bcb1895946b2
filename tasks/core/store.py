"""The content-addressed store, `.quern/store/`: every artifact a recipe made, by digest.

`objects/ab/cdef…` are the bytes, read-only; `results/ab/cdef….json` are what each recipe key
gave: a manifest of output name → digest. Both are plain files, so a lost database loses nothing.
"""

import contextlib
import json
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.atomic import sync_directory, write_atomically
from tasks.core.digest import DigestIndex, canonical_json, digest_of_bytes, read_digests
from tasks.core.errors import QuernError


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file a recipe made: its digest and whether it is a program."""

    digest: str
    executable: bool = False


class Store:
    """Artifacts by digest, and recipe results by key."""

    def __init__(self, root: Path, index: DigestIndex) -> None:
        self.root = root
        self._index = index

    def object_path(self, digest: str) -> Path:
        """Where the bytes of `digest` lie, or would."""
        return self.root / "objects" / digest[:2] / digest[2:]

    def take(self, path: Path) -> Artifact:
        """Move a finished file into the store (the file is gone from `path` afterwards)."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise QuernError(f"its output {path.name} is not a regular file")
        if status.st_nlink > 1:  # an edit through its other name would reach the store
            alone = path.with_name(f"{path.name}.alone")
            _clone(path, alone)
            os.replace(alone, path)
        _, digest, _ = read_digests(path, progress=self._index.progress)
        destination = self.object_path(digest)
        if self._is_whole(destination, digest):
            path.unlink()
        else:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as file:
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            os.replace(path, destination)
            sync_directory(destination.parent)
            self._index.remember(str(destination), digest)
        return Artifact(digest, bool(status.st_mode & stat.S_IXUSR))

    def place(self, artifact: Artifact, target: Path, large: bool = False) -> None:
        """Put a copy of the artifact at `target` by rename; nothing to do if it is there already.

        The copy shares its blocks with the store where the file system can (reflink). Elsewhere a
        `large` one is a second name of the store's own file, read-only: an edit in place, by root
        or after chmod, reaches the store, which then notices the damage and lets it be made anew.
        """
        for parent in target.parents:
            if parent.is_file():
                raise QuernError(f"{parent}: is a file where a directory belongs; move it away")
        if target.is_dir():
            raise QuernError(f"{target}: is a directory where a file belongs; move it away")
        temporary = target.with_name(f".{target.name}.partial")
        with contextlib.suppress(FileNotFoundError):
            if self._index.digest(str(target)) == artifact.digest:
                temporary.unlink(missing_ok=True)  # a killed run may have left it
                return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            linked = _clone(
                self.object_path(artifact.digest), temporary, link=large and not artifact.executable
            )
            if not linked:
                os.chmod(temporary, 0o755 if artifact.executable else 0o644)
            os.replace(temporary, target)
            if linked:  # the link moved the file's ctime
                self._index.remember(str(self.object_path(artifact.digest)), artifact.digest)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
        self._index.remember(str(target), artifact.digest)

    def discard(self, digest: str) -> None:
        """Remove an artifact; a result that names it has to be made again."""
        self.object_path(digest).unlink(missing_ok=True)

    def result(self, key: str) -> dict[str, Artifact] | None:
        """The outputs recorded under a recipe key, if all their bytes are still whole here."""
        try:
            recorded = json.loads(self._result_path(key).read_bytes())
            outputs = {
                name: Artifact(output["digest"], output["executable"])
                for name, output in recorded["outputs"].items()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        whole = all(self._is_whole(self.object_path(a.digest), a.digest) for a in outputs.values())
        return outputs if whole else None

    def has_result(self, key: str) -> bool:
        """Whether a recipe key has a recorded result (its bytes not yet checked)."""
        return self._result_path(key).exists()

    def record_result(
        self, key: str, outputs: dict[str, Artifact], provenance: dict[str, Any]
    ) -> None:
        """Remember what a recipe key gave; `provenance` says of what it was made, for people."""
        listed = {
            name: {"digest": artifact.digest, "executable": artifact.executable}
            for name, artifact in outputs.items()
        }
        write_atomically(
            self._result_path(key), canonical_json({"outputs": listed, **provenance}) + b"\n"
        )

    def _result_path(self, key: str) -> Path:
        return self.root / "results" / key[:2] / f"{key[2:]}.json"

    def _is_whole(self, path: Path, digest: str) -> bool:
        try:
            if self._index.digest(str(path)) == digest:
                return True
        except FileNotFoundError:
            return False
        path.unlink()
        sys.stderr.write(f"{path}: damaged in the store; removed, it will be made again\n")
        return False


def recipe_key(name: str, components: dict[str, str]) -> str:
    """The key of a recipe: the digest of its name and of all that its result depends on."""
    return digest_of_bytes(canonical_json({"recipe": name, "components": components}))


def _clone(source: Path, destination: Path, link: bool = False) -> bool:
    """Copy by reflink if the file system can, else by a hard link if `link` allows it, else by
    content; synced to disk. Returns whether it is a hard link."""
    with open(source, "rb") as reader, open(destination, "wb") as writer:
        if not _reflink(reader.fileno(), writer.fileno()):
            if link and _hard_link(source, destination):
                return True
            shutil.copyfileobj(reader, writer, 4 << 20)
            writer.flush()
        os.fsync(writer.fileno())
    return False


def _hard_link(source: Path, destination: Path) -> bool:
    link = destination.with_name(f"{destination.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError:  # another file system, or one without links
        return False
    os.replace(link, destination)
    return True


def _reflink(source: int, destination: int) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    FICLONE = 0x40049409  # linux/fs.h
    try:
        fcntl.ioctl(destination, FICLONE, source)
    except OSError:
        return False
    return True
