"""Makes this project's statements of releases, and signs them if models.yaml says with what."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.configuration import load_configuration
from tasks.core.lineage import Lineage, Material
from tasks.core.project import Project
from tasks.core.provenance import repository
from tasks.core.signing import sign
from tasks.hosts.attestation import Attestation
from tasks.hosts.releases import Release
from tasks.hosts.statement import statement


@dataclass(frozen=True)
class Attestor:
    """`run` is what tasks.core.provenance says of it; `key` is models.yaml's sign.key."""

    project: Project
    run: Mapping[str, Any]
    key: str | None = None

    def attest(self, release: Release, host: str) -> Attestation:
        """The statement of a release, for a host, signed if there is a key; a copy is kept in
        `.quern/provenance/`. Raises QuernError."""
        project = self.project
        made = statement(
            release,
            self.run,
            repository(project.root),
            Lineage(project.store),
            self._sha256,
            project.started,
        )
        attestation = Attestation(made, sign(self.key, made) if self.key else None)
        copy = project.private / "provenance" / release.model / release.id / f"{host}.json"
        write_atomically(copy, made)
        signature = Path(f"{copy}.sig")
        if attestation.signature is None:
            signature.unlink(missing_ok=True)
        else:
            write_atomically(signature, attestation.signature)
        return attestation

    def _sha256(self, material: Material) -> str | None:
        """The file's, if it still is what it was made from."""
        try:
            fast, strong = self.project.index.digests(material.path)
        except OSError:  # gone, or a directory
            return None
        return strong if fast == material.digest else None


def attestor_of(project: Project, run: Mapping[str, Any]) -> Attestor:
    """Who makes the releases' statements in this run, with models.yaml's key if it names one."""
    sign = load_configuration().sign
    return Attestor(project, run, sign.key if sign else None)
