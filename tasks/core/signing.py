"""Signatures by SSH keys, made and checked by OpenSSH's own `ssh-keygen -Y` (ssh-keygen(1)).

The format is https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tasks.core.errors import QuernError

NAMESPACE = "quern-release"  # a signature made for something else doesn't count
SECONDS = 60  # a security key waits for a touch


class BadSignature(QuernError):
    """The bytes aren't those that were signed, or it is no signature at all."""


def sign(key: str, data: bytes) -> bytes:
    """The signature of `data` by the key in file `key`: a private key without a passphrase, or any
    whose private half is in ssh-agent. Nobody is asked for anything. Raises QuernError."""
    path = os.path.abspath(os.path.expanduser(key))
    if not os.path.exists(path):
        raise QuernError(f"sign.key: {key}: not there; ssh-keygen -t ed25519 -f {key} makes one")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data"
        file.write_bytes(data)
        done = _ssh_keygen("sign", "-f", path, "-n", NAMESPACE, str(file))
        if done.returncode:
            raise QuernError(f"sign.key: {key}: {_why_not_signed(done)}")
        return file.with_name("data.sig").read_bytes()


def _why_not_signed(done: "subprocess.CompletedProcess[bytes]") -> str:
    told = done.stderr.decode(errors="replace").strip()
    if "passphrase" in told:
        return "has a passphrase, which is never asked for; put the key into ssh-agent: ssh-add"
    if "No private key found" in told:
        return "its private half is neither beside it nor in ssh-agent; ssh-add puts it there"
    return f"can't sign: {told.splitlines()[-1] if told else f'status {done.returncode}'}"


def signing_key(data: bytes, signature: bytes) -> str:
    """The fingerprint of the key that signed `data`, `SHA256:…`, whoever's it is.

    Raises BadSignature, QuernError.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _written(folder, "signature", signature)
        done = _ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", file, data=data)
    found = re.search(r"SHA256:\S+", done.stdout.decode(errors="replace"))
    if done.returncode or not found:
        raise BadSignature("the signature is not of these bytes")
    return found[0]


def signer(data: bytes, signature: bytes, allowed_signers: bytes) -> str | None:
    """Who signed `data`, by a file as ssh-keygen(1) has it under ALLOWED SIGNERS, which may limit a
    key to namespaces and times; None if nobody whom it names. Raises QuernError."""
    with tempfile.TemporaryDirectory() as folder:
        file = _written(folder, "signature", signature)
        for line in allowed_signers.splitlines():
            # Alone: of several lines with one key, ssh-keygen goes by the first.
            allowed = _written(folder, "allowed_signers", line + b"\n")
            found = _ssh_keygen("find-principals", "-s", file, "-f", allowed)
            for name in found.stdout.decode(errors="replace").splitlines():
                options = ("-f", allowed, "-I", name, "-n", NAMESPACE, "-s", file)
                if not _ssh_keygen("verify", *options, data=data).returncode:
                    return name
    return None


def _written(folder: str, name: str, data: bytes) -> str:
    path = Path(folder) / name
    path.write_bytes(data)
    return str(path)


def _ssh_keygen(
    operation: str, *arguments: str, data: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    asking = {"SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY"}
    environment = {name: value for name, value in os.environ.items() if name not in asking}
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", operation, *arguments],
            input=data,
            capture_output=True,
            env={**environment, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"},
            start_new_session=True,  # no terminal to ask on
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise QuernError("ssh-keygen is missing, which signatures need; install OpenSSH") from None
    except subprocess.TimeoutExpired:
        raise QuernError(
            f"ssh-keygen -Y {operation} took over {SECONDS} s; try it by hand"
        ) from None
