"""Release directories on a host: immutable, complete, named by the digest of their manifest.

<root>/store/ab/cdef…                  every file once, by digest, read-only
<root>/<model>/releases/<id>/          a manifest, the files it names, and its provenance
<root>/<model>/<channel>/current       → the release that is live
<root>/<model>/history.jsonl           append-only
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.core.digest import digest_of_bytes
from tasks.core.errors import QuernError
from tasks.hosts.attestation import Attestation
from tasks.hosts.host import Host

Progress = Callable[[str, int, int], None]  # file, bytes done, bytes in all

RELEASE_ID_DIGITS = 16
PROGRAMS = ("server", "holder", "engine")


def nothing(file: str, done: int, total: int) -> None:
    """Nobody looks on."""


@dataclass(frozen=True)
class Release:
    """A manifest and its id; `roles` maps role → {file, size, xxh3_128, sha256}. `changed`: the
    manifest isn't the one that its directory is named by."""

    data: bytes
    id: str
    manifest: dict[str, Any]
    changed: bool = False

    @classmethod
    def read(cls, path: Path) -> "Release":
        """The release whose manifest is at `path` here. Raises FileNotFoundError, QuernError."""
        return cls.of(path.read_bytes(), str(path))

    @classmethod
    def on(cls, host: Host, directory: Path) -> "Release":
        """The release installed in `directory` of a host. Raises FileNotFoundError, QuernError."""
        data = host.read(directory / "manifest.json")
        if data is None:
            raise FileNotFoundError(str(directory / "manifest.json"))
        found = cls.of(data, f"{host.name}: {directory / 'manifest.json'}")
        return replace(found, id=directory.name, changed=directory.name != found.id)

    @classmethod
    def of(cls, data: bytes, where: str) -> "Release":
        """The release whose manifest is `data`, found at `where`. Raises QuernError."""
        try:
            manifest = json.loads(data)
            assert manifest["format"] == 1 and manifest["roles"] and manifest["kind"]
        except (ValueError, KeyError, AssertionError, TypeError):
            raise QuernError(f"{where}: is not a release manifest; remove it, run again") from None
        return cls(data, digest_of_bytes(data)[:RELEASE_ID_DIGITS], manifest)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest["model"])

    @property
    def kind(self) -> str:
        """classifier or llm."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Its label, else its id."""
        return self.label or self.id

    @property
    def label(self) -> str:
        """What people call it: "Cycle 13 (Epoch 27, 62.60%)"."""
        return str(self.manifest["label"])

    def digest(self, role: str) -> str:
        """xxh3_128 of the role's file."""
        return str(self.manifest["roles"][role]["xxh3_128"])

    def file(self, role: str) -> str:
        """The role's file name in the release's directory."""
        return str(self.manifest["roles"][role]["file"])


def install(
    host: Host,
    release: Release,
    files: dict[str, str],
    progress: Progress = nothing,
    attestation: Attestation | None = None,
) -> Path:
    """Send what the host's store lacks and make the release's directory; returns the directory.

    `files` maps role → path here, {} if the release is there only. A directory that is there
    already is checked by digest, and made anew if a byte differs; `attestation` is put beside its
    manifest. Raises QuernError, OSError.
    """
    directory = host.root / release.model / "releases" / release.id
    installed = host.read(directory / "manifest.json")
    if installed == release.data and _is_whole(host, directory, release):
        if attestation and attestation != Attestation.on(host, directory):
            attestation.write(host, directory)
        return directory
    if not files:
        raise QuernError(
            f"{host.name}: release {release.id} is damaged ({directory}), and can't be mended "
            f"from here; doit deploy:{release.model} sends the newest one"
        )
    if installed is not None:
        host.remove_directory(directory)
    building = directory.with_name(f".{release.id}.partial")
    host.remove_directory(building)
    host.make_directory(building)
    for role, entry in release.manifest["roles"].items():
        stored = host.root / "store" / entry["xxh3_128"][:2] / entry["xxh3_128"][2:]
        if not host.holds(stored, entry):
            host.put_file(
                Path(files[role]), stored, entry, role in PROGRAMS, partial(progress, entry["file"])
            )
        host.link_file(stored, building / entry["file"])
    host.write(building / "manifest.json", release.data)
    if attestation:
        attestation.write(host, building)
    host.rename_directory(building, directory)
    return directory


def live_releases(host: Host, model: str) -> set[str]:
    """Ids of the releases that the model's channels have."""
    folder = host.root / model
    links = [host.link_target(folder / name / "current") for name in host.directories(folder)]
    return {link.name for link in links if link}


def _is_whole(host: Host, directory: Path, release: Release) -> bool:
    return all(
        host.holds(directory / entry["file"], entry) for entry in release.manifest["roles"].values()
    )
