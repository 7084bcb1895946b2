"""The content-addressed store, `.quern/store/`: every artifact a recipe made, by digest.

`objects/ab/cdef…` are the bytes, read-only, of a directory its listing; `results/ab/cdef….json` are
what each recipe key gave: a manifest of output name → digest. Both are plain files, so a lost
database loses nothing.
"""

import contextlib
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.atomic import sync_directory, write_atomically
from tasks.core.digest import (
    DigestIndex,
    canonical_json,
    digest_of_bytes,
    files_below,
    listing_of,
    read_digests,
)
from tasks.core.errors import QuernError


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or directory a recipe made: its digest and whether it is a program."""

    digest: str
    executable: bool = False
    directory: bool = False


class Store:
    """Artifacts by digest, and recipe results by key."""

    def __init__(self, root: Path, index: DigestIndex) -> None:
        self.root = root
        self._index = index
        self._recording = threading.Lock()  # two tasks side by side may come to the same result
        self.used = False  # whether this process has kept a result, or looked one up and found it

    def object_path(self, digest: str) -> Path:
        """Where the bytes of `digest` lie, or would."""
        return self.root / "objects" / digest[:2] / digest[2:]

    def take(self, path: Path) -> Artifact:
        """Move a finished file or directory into the store (it is gone from `path` afterwards)."""
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return self._take_directory(path)
        if not stat.S_ISREG(status.st_mode):
            raise QuernError(f"its output {path.name} is not a regular file")
        if status.st_nlink > 1:  # an edit through its other name would reach the store
            alone = path.with_name(f"{path.name}.alone")
            _clone(path, alone)
            os.replace(alone, path)
        _, digest, _ = read_digests(path, progress=self._index.progress)
        self._keep(path, digest)
        return Artifact(digest, bool(status.st_mode & stat.S_IXUSR))

    def receive(self, path: Path, digest: str) -> bool:
        """Move a file that came from elsewhere into the store, if its bytes have this digest;
        returns whether they have."""
        if read_digests(path, progress=self._index.progress)[1] != digest:
            return False
        self._keep(path, digest)
        return True

    def _keep(self, path: Path, digest: str) -> None:
        destination = self.object_path(digest)
        if self._is_whole(destination, digest):
            path.unlink()
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as file:
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        os.replace(path, destination)
        sync_directory(destination.parent)
        self._index.remember(str(destination), digest)

    def _take_directory(self, path: Path) -> Artifact:
        listing = listing_of(
            {
                os.path.relpath(file, path): self.take(Path(file)).digest
                for file in files_below(path)
            }
        )
        shutil.rmtree(path)
        write_atomically(path, listing)
        return Artifact(self.take(path).digest, directory=True)

    def listing(self, digest: str) -> dict[str, str]:
        """Relative name → digest, for the files of a directory in the store."""
        text = self.object_path(digest).read_bytes().decode()
        return dict(re.findall(r"(.+?)\0([0-9a-f]{32})\n", text))

    def digests_of(self, artifact: Artifact) -> list[str]:
        """The artifact's objects: of a directory its listing and, if that is here, its files."""
        files: Iterable[str] = ()
        if artifact.directory:
            with contextlib.suppress(FileNotFoundError):
                files = self.listing(artifact.digest).values()
        return [artifact.digest, *files]

    def place(self, artifact: Artifact, target: Path, large: bool = False) -> None:
        """Put a copy of the artifact at `target` by rename; nothing to do if it is there already.

        The copy shares its blocks with the store where the file system can (reflink). Elsewhere a
        `large` one is a second name of the store's own file, read-only: an edit in place, by root
        or after chmod, reaches the store, which then notices the damage and lets it be made anew.
        """
        if artifact.directory:
            self._place_directory(artifact, target, large)
            return
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

    def _place_directory(self, artifact: Artifact, target: Path, large: bool) -> None:
        """A directory under a name of its own, and a symbolic link to it renamed to `target`: a
        reader finds the one before or this one, never a part."""
        if target.exists() and not target.is_symlink():
            raise QuernError(f"{target}: is not a link that Quern has made; move it away")
        with contextlib.suppress(FileNotFoundError):
            if self._index.digest(str(target)) == artifact.digest:
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.with_name(f".{target.name}-{time.time_ns()}")
        try:
            for name, digest in self.listing(artifact.digest).items():
                self.place(Artifact(digest), folder / name, large)
            link = target.with_name(f".{target.name}.partial")
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
            os.replace(link, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_directory(target.parent)
        for other in target.parent.glob(f".{target.name}-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def discard(self, digest: str) -> None:
        """Remove an artifact; a result that names it has to be made again."""
        self.object_path(digest).unlink(missing_ok=True)

    def result(self, key: str) -> dict[str, Artifact] | None:
        """The outputs recorded under a recipe key, if all their bytes are still whole here."""
        try:
            outputs = outputs_in(self.result_path(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not all(self.holds(artifact) for artifact in outputs.values()):
            return None
        self.used = True
        os.utime(self.result_path(key))  # of those that nothing needs, the oldest goes first
        return outputs

    def results(self) -> Iterator[tuple[Path, dict[str, Artifact] | None]]:
        """Every recorded result: its file and outputs; None for one that can't be read."""
        for path in (self.root / "results").glob("??/[!.]*.json"):
            try:
                yield path, outputs_in(path.read_bytes())
            except ValueError:
                yield path, None

    def objects(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every object: its digest and stat."""
        for path in (self.root / "objects").glob("??/[!.]*"):
            yield path.parent.name + path.name, path.stat()

    def has_result(self, key: str) -> bool:
        """Whether a recipe key has a recorded result that is still here (not yet read)."""
        try:
            outputs = outputs_in(self.result_path(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        return all(
            self.object_path(d).exists() for a in outputs.values() for d in self.digests_of(a)
        )

    def record_result(
        self, key: str, outputs: dict[str, Artifact], provenance: dict[str, Any]
    ) -> None:
        """Remember what a recipe key gave; `provenance` says of what it was made, for people."""
        listed = {
            name: {
                "digest": artifact.digest,
                "executable": artifact.executable,
                **({"directory": True} if artifact.directory else {}),
            }
            for name, artifact in outputs.items()
        }
        self.keep_result(key, canonical_json({"outputs": listed, **provenance}) + b"\n")

    def keep_result(self, key: str, result: bytes) -> None:
        """Remember a result as record_result() has written it, here or on another machine."""
        with self._recording:
            write_atomically(self.result_path(key), result)
        self.used = True

    def result_path(self, key: str) -> Path:
        """Where the result of `key` lies, or would."""
        return self.root / "results" / key[:2] / f"{key[2:]}.json"

    def holds(self, artifact: Artifact) -> bool:
        """Whether all the artifact's bytes are here, and whole."""
        if not self._is_whole(self.object_path(artifact.digest), artifact.digest):
            return False
        files = self.listing(artifact.digest).values() if artifact.directory else ()
        return all(self._is_whole(self.object_path(digest), digest) for digest in files)

    def _is_whole(self, path: Path, digest: str) -> bool:
        try:
            if self._index.digest(str(path)) == digest:
                return True
        except FileNotFoundError:
            return False
        path.unlink()
        sys.stderr.write(f"{path}: damaged in the store; removed, it will be made again\n")
        return False


def outputs_in(result: bytes) -> dict[str, Artifact]:
    """The outputs that a recorded result names. Raises ValueError for what is none."""
    try:
        outputs = {
            name: Artifact(o["digest"], o["executable"], o.get("directory", False))
            for name, o in json.loads(result)["outputs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a recorded result: {error}") from None
    for artifact in outputs.values():
        if not re.fullmatch(r"[0-9a-f]{32}", str(artifact.digest)):
            raise ValueError(f"not a digest: {artifact.digest!r}")
    return outputs


def names_in(directory: str) -> set[str]:
    """Relative names of the files of a directory that was placed; of none, none."""
    return {os.path.relpath(file, directory) for file in files_below(directory)}


def remove_directory(target: str) -> None:
    """Remove a directory that was placed, and the link to it."""
    shutil.rmtree(os.path.realpath(target), ignore_errors=True)
    os.remove(target)


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
