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
from tasks.core.digest import DigestIndex, canonical_json, digest_of_bytes


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
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise IsADirectoryError(f"{path}: an output must be a regular file")
        digest = self._index.digest(str(path))
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
        return Artifact(digest, bool(mode & stat.S_IXUSR))

    def place(self, artifact: Artifact, target: Path) -> None:
        """Put a copy of the artifact at `target` by rename; nothing to do if it is there already.

        The copy shares its blocks with the store where the file system can (reflink). It is
        never a hard link: an edit in place of the target would reach the store.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._index.digest(str(target)) == artifact.digest:
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(f"{target}: is a directory where a file belongs; move it away")
        temporary = target.with_name(f".{target.name}.partial")
        try:
            _clone(self.object_path(artifact.digest), temporary)
            os.chmod(temporary, 0o755 if artifact.executable else 0o644)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
        self._index.remember(str(target), artifact.digest)

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


def _clone(source: Path, destination: Path) -> None:
    """Copy by reflink if the file system can, else by content; synced to disk."""
    with open(source, "rb") as reader, open(destination, "wb") as writer:
        if not _reflink(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 4 << 20)
            writer.flush()
        os.fsync(writer.fileno())


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
