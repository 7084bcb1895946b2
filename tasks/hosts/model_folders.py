"""Programs that read models from a folder: LM Studio and Ollama. A release goes there as a file.

<folder>/models/<publisher>/<model>/<file>.gguf     LM Studio's layout; it sees files nowhere else
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts import history
from tasks.hosts.local import LocalHost
from tasks.hosts.marks import Marks
from tasks.hosts.releases import Release, install

CREATE_SECONDS = 3600


@dataclass
class FolderDeployment:
    """One release on its way into a folder channel: `lmstudio` or `ollama`."""

    host: LocalHost
    release: Release
    channel: str
    settings: dict[str, Any]
    told: str = ""

    def make_live(self, files: dict[str, str], retry: bool) -> None:
        """Install the release, put its file where the program looks, and note which it is."""
        Marks(self.host, self.release.model).check(self.release.id, retry)
        directory = self.host.root / self.release.model / self.channel
        current = directory / "current"
        previous = self.host.link_target(current)
        start = time.monotonic()
        self.host.make_directory(directory)
        try:
            installed = install(self.host, self.release, files)
            place = self._to_lmstudio if self.channel == "lmstudio" else self._to_ollama
            place(installed, directory / "placed.json")
            self.host.point(current, installed)
        except (QuernError, OSError) as error:
            seconds = {"place": time.monotonic() - start}
            self._record("failed", previous, seconds, error=str(error))
            raise
        self._record("live", previous, {"place": time.monotonic() - start})

    def drift(self, digest: Any) -> str:
        """Why what is there is not this release, "" if it is; `digest` is that of a path."""
        directory = self.host.root / self.release.model / self.channel
        current = self.host.link_target(directory / "current")
        if current is None or current.name != self.release.id:
            return f"{self.channel} has {current.name if current else 'nothing'} yet"
        placed = json.loads(self.host.read(directory / "placed.json") or b"{}")
        for path in placed.get("files", []):
            try:
                if digest(path) != self.release.digest("weights"):
                    return f"{path} is not the release's file"
            except OSError:
                return f"{path} is gone"
        waits = placed.get("waits_for")
        if waits and shutil.which(waits):
            return f"{waits} is there now"
        return ""

    def _record(
        self, outcome: str, previous: Path | None, seconds: dict[str, float], **more: Any
    ) -> None:
        history.record(self.host, self.release, self.channel, outcome, previous, seconds, **more)

    def _to_lmstudio(self, installed: Path, placed: Path) -> None:
        source = installed / self.release.file("weights")
        folder = Path(self.settings["folder"]).expanduser().absolute()
        target = folder / "models" / self.settings["publisher"] / self.release.model / source.name
        how = put_beside(source, target, self.settings["by"])
        before = json.loads(self.host.read(placed) or b"{}").get("files", [])
        for path in before:
            if path != str(target):
                Path(path).unlink(missing_ok=True)
        self.host.write(placed, json.dumps({"files": [str(target)]}).encode())
        self.told = f"{self.release.name} is in LM Studio's folder ({how}): {target}"

    def _to_ollama(self, installed: Path, placed: Path) -> None:
        name = self.settings.get("name") or self.release.model
        program = shutil.which("ollama")
        if program is None:
            self.host.write(placed, json.dumps({"waits_for": "ollama"}).encode())
            self.told = (
                f"ollama is not installed on {self.host.name}; its Modelfile is ready: "
                f"cd {installed} && ollama create {name} -f Modelfile"
            )
            return
        done = subprocess.run(
            [program, "create", name, "-f", "Modelfile"],
            cwd=installed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=CREATE_SECONDS,
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise QuernError(f"ollama create {name}: status {done.returncode}: {last}")
        self.host.write(placed, b"{}")
        self.told = f"{self.release.name} is in Ollama: ollama run {name}"


def put_beside(source: Path, target: Path, by: str) -> str:
    """Put `source` at `target` by rename; returns how: copy, hard-link or symbolic-link.

    `automatic` is a hard link where one file system holds both, else a copy. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        if by == "symbolic-link":
            temporary.symlink_to(source)
            os.replace(temporary, target)
            return by
        if by in ("automatic", "hard-link"):
            with contextlib.suppress(OSError) if by == "automatic" else contextlib.nullcontext():
                os.link(source, temporary)
                if target.exists() and target.samefile(temporary):
                    temporary.unlink()  # rename() does nothing between two names of one file
                else:
                    os.replace(temporary, target)
                return "hard-link"
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        return "copy"
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
