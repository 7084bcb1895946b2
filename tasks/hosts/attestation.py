"""What lies beside a release's manifest: its provenance as an in-toto statement, and the signature
of that. Neither is part of the release's id: who built it where may differ while no byte does.

<root>/<model>/releases/<id>/provenance.json        the statement (tasks/hosts/statement.py)
<root>/<model>/releases/<id>/provenance.json.sig    as `ssh-keygen -Y sign` makes it
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.hosts.host import Host

STATEMENT, SIGNATURE = "provenance.json", "provenance.json.sig"


@dataclass(frozen=True)
class Attestation:
    """A statement, and its signature if it has one."""

    statement: bytes
    signature: bytes | None = None

    @classmethod
    def on(cls, host: Host, directory: Path) -> "Attestation | None":
        """That of the release in `directory` of a host; None if it has none."""
        statement = host.read(directory / STATEMENT)
        if statement is None:
            return None
        return cls(statement, host.read(directory / SIGNATURE))

    def write(self, host: Host, directory: Path) -> None:
        """Put it into a release's directory."""
        host.remove_file(directory / SIGNATURE)  # a cut must not leave it beside another statement
        host.write(directory / STATEMENT, self.statement)
        if self.signature is not None:
            host.write(directory / SIGNATURE, self.signature)

    @property
    def sha256(self) -> str:
        """The statement's digest."""
        return hashlib.sha256(self.statement).hexdigest()
