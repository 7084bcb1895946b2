"""Signatures by SSH keys: real keys, the real ssh-keygen and ssh-agent."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.errors import QuernError
from tasks.core.signing import BadSignature, sign, signer, signing_key
from tests.ssh_world import keygen

DATA = b'{"some": "statement"}\n'


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keygen(tmp_path / "key")
    return tmp_path / "key"


def public(key: Path) -> str:
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


def fingerprint(key: Path) -> str:
    told = subprocess.run(
        ["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True
    )
    return told.stdout.split()[1]


def with_passphrase(key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch) -> Iterator[None]:
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    while not socket.exists():
        time.sleep(0.01)
    yield
    process.terminate()
    process.wait()


def test_only_the_signed_bytes_and_only_the_allowed_signer(key, tmp_path):
    signature = sign(str(key), DATA)
    assert signing_key(DATA, signature) == fingerprint(key)
    assert signer(DATA, signature, f"ann@example.com {public(key)}\n".encode()) == "ann@example.com"
    for other in (DATA + b" ", b""):
        with pytest.raises(BadSignature):
            signing_key(other, signature)
        assert signer(other, signature, f"ann {public(key)}".encode()) is None
    with pytest.raises(BadSignature):
        signing_key(DATA, b"no signature")
    keygen(tmp_path / "other")
    assert signer(DATA, signature, f"bob {public(tmp_path / 'other')}".encode()) is None
    assert signer(DATA, signature, b"") is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ('namespaces="quern-release"', "ann"),
        ('namespaces="git"', None),
        ('valid-before="20200101"', None),
        ('valid-after="20200101"', "ann"),
    ],
)
def test_a_file_of_signers_may_limit_a_key(key, options, name):
    signature = sign(str(key), DATA)
    assert signer(DATA, signature, f"ann {options} {public(key)}\n".encode()) == name


def test_a_line_that_does_not_allow_it_hides_none_that_does(key):
    lines = (
        f'# signers\n\nann namespaces="git" {public(key)}\nbob nonsense\nann,eve {public(key)}\n'
    )
    assert signer(DATA, sign(str(key), DATA), lines.encode()) == "ann"


def test_a_signature_for_another_purpose_does_not_count(key, tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    command = ["ssh-keygen", "-Y", "sign", "-f", key, "-n", "git", tmp_path / "data"]
    subprocess.run(command, check=True, capture_output=True)
    signature = (tmp_path / "data.sig").read_bytes()
    with pytest.raises(BadSignature):
        signing_key(DATA, signature)
    assert signer(DATA, signature, f"ann {public(key)}".encode()) is None


def refused(key: Path) -> str:
    with pytest.raises(QuernError) as caught:
        sign(str(key), DATA)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_passphrase_is_never_asked_for(key, monkeypatch, tmp_path):
    with_passphrase(key)
    asked = tmp_path / "asked"
    askpass = tmp_path / "askpass"
    askpass.write_text(f"#!/bin/sh\ntouch {asked}\necho secret\n")
    askpass.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(askpass))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.setenv("DISPLAY", ":0")
    assert "has a passphrase, which is never asked for" in refused(key)
    assert not asked.exists()


def test_ssh_agent_signs_for_what_has_a_passphrase_or_is_not_here(key, agent):
    subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True)
    with_passphrase(key)
    allowed = f"ann {public(key)}".encode()
    assert signer(DATA, sign(str(key), DATA), allowed) == "ann"
    key.unlink()
    assert signer(DATA, sign(f"{key}.pub", DATA), allowed) == "ann"
    subprocess.run(["ssh-add", "-q", "-D"], check=True, capture_output=True)
    assert "neither beside it nor in ssh-agent" in refused(Path(f"{key}.pub"))


def test_a_key_that_is_missing_or_none(key, tmp_path):
    assert "not there; ssh-keygen -t ed25519 -f" in refused(tmp_path / "missing")
    (tmp_path / "none").write_text("no key")
    assert f"sign.key: {tmp_path / 'none'}: can't sign: " in refused(tmp_path / "none")


def test_the_home_directory_may_be_short(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert signing_key(DATA, sign("~/key", DATA)) == fingerprint(key)


def test_without_ssh_keygen(key, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ssh-keygen is missing" in refused(key)
