"""What a release must show before it goes live on a host that demands signatures.

Two files can demand them, each as ssh-keygen(1) has it under ALLOWED SIGNERS: `signers` of the host
in models.yaml, a file here, and `<root>/allowed_signers` on the host. Where both are, both count.
"""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.core.configuration import configuration_file
from tasks.core.errors import QuernError
from tasks.core.signing import BadSignature, signer, signing_key
from tasks.hosts.attestation import STATEMENT, Attestation
from tasks.hosts.attestor import Attestor
from tasks.hosts.host import Host
from tasks.hosts.releases import Release
from tasks.hosts.statement import is_of

ALLOWED_SIGNERS = "allowed_signers"


@dataclass(frozen=True)
class Demand:
    """A file of signers, and its name in messages."""

    where: str
    signers: bytes


class Admission:
    """Of one release to one host. `attestor` makes its statement where it has no good one; without
    one (a rollback) it must have it. `known` is the statement it goes live with."""

    def __init__(
        self, host: Host, release: Release, signers: str | None, attestor: Attestor | None = None
    ) -> None:
        self.host, self.release, self.attestor = host, release, attestor
        self._signers = signers
        self.directory = host.root / release.model / "releases" / release.id
        self.known: Attestation | None = None
        self._signed_by: str | None = None

    @cached_property
    def demands(self) -> list[Demand]:
        """The files that say whose signature is needed; without one, none is. Raises QuernError."""
        found = []
        if self._signers:
            path = Path(self._signers).expanduser()
            if not path.is_file():
                key = f"hosts.{self.host.name}.signers"
                raise QuernError(
                    f"{configuration_file()}: {key}: {path}: not there; write it as ssh-keygen(1) "
                    "has it under ALLOWED SIGNERS"
                )
            found.append(Demand(self._signers, path.read_bytes()))
        there = self.host.read(self.host.root / ALLOWED_SIGNERS)
        if there is not None:
            where = f"{self.host.name}:{self.host.root / ALLOWED_SIGNERS}"
            found.append(Demand(where, there))
        return found

    def attestation(self) -> Attestation | None:
        """What has to lie beside the manifest: what is there, or where that won't do, one made now.

        Raises QuernError when the release must not go live; nothing was sent then.
        """
        if self.release.changed:
            raise self._refusal("has another manifest than it was installed with")
        self.known = Attestation.on(self.host, self.directory)
        fault = self._fault(self.known)
        if fault and self.attestor:
            self.known = self.attestor.attest(self.release, self.host.name)
            fault = self._fault(self.known)
        if fault and self.demands:
            raise self._refusal(fault)
        return self.known

    def confirm(self) -> None:
        """Read all of the installed release again and hold it against the signature, if one is
        demanded. Raises QuernError."""
        if not self.demands:
            return
        if self.host.read(self.directory / "manifest.json") != self.release.data:
            raise self._refusal("has another manifest than it was installed with")
        fault = self._fault(Attestation.on(self.host, self.directory))
        if fault:
            raise self._refusal(fault)
        entries = self.release.manifest["roles"].values()
        files = {self.directory / entry["file"]: entry["sha256"] for entry in entries}
        found = self.host.sha256(list(files))
        for path, sha256 in files.items():
            if found.get(path) != sha256:
                raise self._refusal(f"has a file with other bytes than it was signed with: {path}")

    def difference(self, live: bool) -> str:
        """What is wrong with the statement of an installed release, "" if nothing. Only a live one
        must have what is demanded: others may be from before."""
        there = Attestation.on(self.host, self.directory)
        if live and self.demands:
            return self._fault(there)
        if there is None:
            return ""
        return self._fault(there, signed=there.signature is not None)

    def told(self) -> dict[str, Any]:
        """For the history: the statement's SHA-256, and who signed it, where that is known."""
        if self.known is None:
            return {}
        told: dict[str, Any] = {"statement": self.known.sha256}
        if self.known.signature is not None:
            with contextlib.suppress(QuernError):  # no ssh-keygen here, and none was needed
                key = signing_key(self.known.statement, self.known.signature)
                told["signed_by"] = {"key": key, "name": self._signed_by}
        return told

    def _fault(self, attestation: Attestation | None, signed: bool | None = None) -> str:
        """Why it won't do, "" if it will. It must be signed if a signature is demanded or can be
        made here, unless `signed` says otherwise."""
        if attestation is None:
            return f"has no statement ({STATEMENT})"
        if not is_of(attestation.statement, self.release):
            return f"has a statement of other files than its own ({STATEMENT})"
        if signed is None:
            signed = bool(self.demands or (self.attestor and self.attestor.key))
        if not signed:
            return ""
        if attestation.signature is None:
            return "is not signed"
        try:
            key = signing_key(attestation.statement, attestation.signature)
        except BadSignature:
            return f"has a statement that was changed after it was signed ({STATEMENT})"
        for demand in self.demands:
            name = signer(attestation.statement, attestation.signature, demand.signers)
            if name is None:
                return f"is signed by {key}, which {demand.where} does not allow"
            self._signed_by = name
        return ""

    def _refusal(self, fault: str) -> QuernError:
        if self.attestor is None:
            what = f"doit deploy:{self.release.model} --retry signs the newest one and sends it"
        elif self.attestor.key is None:
            what = f"set sign.key in {configuration_file()}, and run it again"
        else:
            what = "sign with a key that is allowed there (sign.key), or allow this one"
        return QuernError(
            f"{self.host.name}: release {self.release.id} {fault}; what served still serves; {what}"
        )
