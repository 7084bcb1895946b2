"""Programs that read models from a folder: LM Studio and Ollama. A release goes there as a file.

<folder>/models/<publisher>/<model>/<file>.gguf     LM Studio's layout; it sees files nowhere else
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.errors import QuernError
from tasks.hosts.history import Journal
from tasks.hosts.host import Host
from tasks.hosts.marks import Marks
from tasks.hosts.releases import Progress, Release, install, nothing

if TYPE_CHECKING:
    from tasks.hosts.attestor import Attestor

CREATE_SECONDS = 3600


@dataclass
class FolderDeployment:
    """One release on its way into a folder channel: `lmstudio` or `ollama`."""

    host: Host
    release: Release
    channel: str
    settings: dict[str, Any]
    journal: Journal
    signers: str | None = None
    attestor: "Attestor | None" = None
    told: str = ""
    progress: Progress = nothing

    def make_live(self, files: dict[str, str], retry: bool) -> None:
        """Install the release, put its file where the program looks, and note which it is."""
        from tasks.hosts.admission import Admission  # `doit list` need not pay for it

        attestor = self.attestor if files else None
        self.admission = Admission(self.host, self.release, self.signers, attestor)
        marks = Marks(self.host, self.release.model)
        marks.check(self.release.id, retry)
        directory = self.host.root / self.release.model / self.channel
        current = directory / "current"
        previous = self.host.link_target(current)
        start = time.monotonic()
        self.host.make_directory(directory)
        try:
            attestation = self.admission.attestation()
            installed = install(self.host, self.release, files, self.progress, attestation)
            self.admission.confirm()
            place = self._to_lmstudio if self.channel == "lmstudio" else self._to_ollama
            place(installed, directory / "placed.json")
            self.host.point(current, installed)
        except (QuernError, OSError) as error:
            seconds = {"place": time.monotonic() - start}
            self._record("failed", previous, seconds, error=str(error))
            raise
        self._record("live", previous, {"place": time.monotonic() - start})
        if retry:
            marks.lift(self.release.id)

    def drift(self) -> str:
        """Why what is there is not this release, "" if it is."""
        if self.release.changed:
            return f"{self.channel} has a release whose manifest was changed"
        directory = self.host.root / self.release.model / self.channel
        current = self.host.link_target(directory / "current")
        if current is None or current.name != self.release.id:
            return f"{self.channel} has {current.name if current else 'nothing'} yet"
        placed = json.loads(self.host.read(directory / "placed.json") or b"{}")
        for path, signature in placed.get("files", {}).items():
            found = self.host.signature(Path(path))
            if found is None:
                return f"{path} is gone"
            entry = self.release.manifest["roles"]["weights"]
            if found != signature and not self.host.holds(Path(path), entry):
                return f"{path} is not the release's file"
        waits = placed.get("waits_for")
        if waits and self.host.has_program(waits):
            return f"{waits} is there now"
        return ""

    def _record(
        self, outcome: str, previous: Path | None, seconds: dict[str, float], **more: Any
    ) -> None:
        self.journal.record(
            self.host,
            self.release,
            self.channel,
            outcome,
            previous,
            seconds,
            **more,
            **self.admission.told(),
        )

    def _to_lmstudio(self, installed: Path, placed: Path) -> None:
        source = installed / self.release.file("weights")
        folder = self.host.expand(self.settings["folder"])
        target = folder / "models" / self.settings["publisher"] / self.release.model / source.name
        how = self.host.place(source, target, self.settings["by"])
        for path in json.loads(self.host.read(placed) or b"{}").get("files", {}):
            if path != str(target):
                self.host.remove_file(Path(path))
        files = {str(target): self.host.signature(target)}
        self.host.write(placed, json.dumps({"files": files}).encode())
        self.told = f"{self.release.name} is in LM Studio's folder ({how}): {target}"

    def _to_ollama(self, installed: Path, placed: Path) -> None:
        name = self.settings.get("name") or self.release.model
        create = ["ollama", "create", name, "-f", "Modelfile"]
        if not self.host.has_program("ollama"):
            self.host.write(placed, json.dumps({"waits_for": "ollama"}).encode())
            self.told = (
                f"ollama is not installed on {self.host.name}; its Modelfile is ready: "
                f"cd {installed} && {' '.join(create)}"
            )
            return
        status, printed = self.host.run(create, installed, CREATE_SECONDS)
        if status:
            last = (printed.strip().splitlines() or ["it said nothing"])[-1]
            raise QuernError(f"ollama create {name}: status {status}: {last}")
        self.host.write(placed, b"{}")
        self.told = f"{self.release.name} is in Ollama: ollama run {name}"
