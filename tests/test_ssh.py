"""SSH as people have it: configurations, keys, agents, jumps; and everything that goes wrong."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.errors import QuernError
from tasks.hosts import ssh
from tasks.hosts.ssh import NotTrusted, OutOfReach, RemoteFailed, connect
from tasks.hosts.ssh_settings import settings_of
from tests.ssh_world import Machine

HOSTILE = [
    "a b",
    "it's",
    '"',
    "$(touch evil)",
    "`touch evil`",
    "-rf",
    "a\nb",
    "\\",
    "*",
    "é",
    "",
    "~",
]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "edge").start()
    yield machine
    machine.remove()


def fingerprint(machine: Machine) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-lf", machine.folder / "host_key.pub"], capture_output=True, text=True
    )
    return shown.stdout.split()[1]


def exchange_host_key(machine: Machine) -> None:
    machine.stop()
    for name in ("host_key", "host_key.pub"):
        (machine.folder / name).unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", machine.folder / "host_key"],
        check=True,
    )
    machine.start()


def test_a_script_gets_its_arguments_whatever_they_hold(machine: Machine):
    connection = connect("edge", str(machine.config))
    printed = connection.run('printf "%s\\0" "$@"', *HOSTILE)
    assert printed.decode().split("\0")[:-1] == HOSTILE
    assert not list(machine.home.glob("evil")) and not Path("evil").exists()
    with pytest.raises(RemoteFailed, match="edge: no good") as failed:
        connection.run("echo no good >&2; exit 7")
    assert failed.value.status == 7
    connection.close()


def test_an_unknown_key_is_refused_with_its_fingerprint(machine: Machine):
    (machine.folder / "known_hosts").unlink()
    with pytest.raises(NotTrusted) as refused:
        connect("edge", str(machine.config))
    assert fingerprint(machine) in str(refused.value) and "ssh edge" in str(refused.value)


def test_a_changed_key_is_refused(machine: Machine):
    before = fingerprint(machine)
    exchange_host_key(machine)
    with pytest.raises(NotTrusted, match="has changed") as refused:
        connect("edge", str(machine.config))
    assert before in str(refused.value) and fingerprint(machine) in str(refused.value)
    assert "ssh-keygen -R" in str(refused.value)
    machine.trust()
    connect("edge", str(machine.config)).close()


def test_known_hosts_files_as_they_are(machine: Machine):
    known = machine.folder / "known_hosts"
    key = known.read_text().split()[1:]
    where = f"[{machine.address}]:{machine.port}"
    others = "# a comment\n\n@cert-authority *.example.com ssh-ed25519 AAAA\nbroken\n"
    known.write_text(f"{others}{where} {' '.join(key)} a comment\n")
    connect("edge", str(machine.config)).close()
    known.write_text(f"{where} {' '.join(key)}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "|1|" in known.read_text()
    connect("edge", str(machine.config)).close()
    known.write_text(f"[127.0.0.*]:{machine.port},!other {' '.join(key)}\n")
    connect("edge", str(machine.config)).close()
    known.write_text(f"[127.0.0.*]:{machine.port},!{where} {' '.join(key)}\n")
    with pytest.raises(NotTrusted, match="not known"):
        connect("edge", str(machine.config))
    known.write_text(f"{where} {' '.join(key)}\n@revoked * {' '.join(key)}\n")
    with pytest.raises(NotTrusted, match="revoked"):
        connect("edge", str(machine.config))


def test_a_key_under_an_alias(machine: Machine):
    key = " ".join((machine.folder / "known_hosts").read_text().split()[1:])
    (machine.folder / "known_hosts").write_text(f"the-box {key}\n")
    machine.write_config("  HostKeyAlias the-box\n")
    connect("edge", str(machine.config)).close()


def test_include_match_and_tokens(machine: Machine, tmp_path: Path):
    config = tmp_path / "with_include"
    config.write_text(
        f"Include {machine.config}\n"
        f"Match originalhost attic\n  HostName {machine.address}\n  HostKeyAlias x\n"
    )
    connect("edge", str(config)).close()
    found = settings_of("attic", str(config))
    assert (found.hostname, found.known_as) == (machine.address, "x")


def test_through_jump_hosts(machine: Machine, tmp_path: Path):
    first = Machine(tmp_path / "first", "first").start()
    second = Machine(tmp_path / "second", "second").start()
    try:
        config = tmp_path / "config"
        machine.write_config("  ProxyJump first,second\n")
        config.write_text("".join(m.config.read_text() for m in (machine, first, second)))
        connection = connect("edge", str(config))
        assert connection.run("echo $HOME").decode().strip() == str(machine.home)
        assert first.sessions() and second.sessions()
        connection.close()
        second.stop()
        with pytest.raises(OutOfReach, match="first can't reach it"):
            connect("edge", str(config))
        machine.write_config("  ProxyJump edge\n")
        with pytest.raises(QuernError, match="circle"):
            connect("edge", str(machine.config))
    finally:
        first.remove()
        second.remove()


def test_through_a_proxy_command(machine: Machine):
    shutil.copy(machine.config, machine.folder / "plain")
    machine.write_config(f"  ProxyCommand ssh -F {machine.folder}/plain -W %h:%p edge\n")
    connection = connect("edge", str(machine.config))
    assert connection.run("echo yes") == b"yes\n"
    connection.close()


def test_keys_with_a_passphrase_and_the_agent(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    key = machine.folder / "user_key"
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", key], check=True)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(QuernError, match=r"needs a passphrase.*ssh-add"):
        connect("edge", str(machine.config))
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", machine.folder / "agent"], stdout=subprocess.DEVNULL
    )
    try:
        ask = machine.folder / "ask"
        ask.write_text("#!/bin/sh\necho secret\n")
        ask.chmod(0o755)
        while not (machine.folder / "agent").exists():
            assert agent.poll() is None
        environment = {
            "SSH_AUTH_SOCK": str(machine.folder / "agent"),
            "SSH_ASKPASS": str(ask),
            "SSH_ASKPASS_REQUIRE": "force",
        }
        subprocess.run(
            ["ssh-add", "-q", key], env={**os.environ, **environment}, check=True, timeout=30
        )
        machine.write_config(f"  IdentityAgent {machine.folder}/agent\n")
        connect("edge", str(machine.config)).close()
        assert "SSH_AUTH_SOCK" not in os.environ
    finally:
        agent.kill()
        agent.wait()


def test_a_refused_login_and_a_password_that_is_never_asked_for(machine: Machine):
    (machine.folder / "authorized_keys").write_text("")
    with pytest.raises(QuernError, match="refuses root") as refused:
        connect("edge", str(machine.config))
    assert not isinstance(refused.value, OutOfReach)


def test_without_the_ssh_program(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    found = settings_of("edge", str(machine.config))
    assert found.openssh() is None
    assert (found.port, found.user) == (machine.port, "root")
    connect("edge", str(machine.config)).close()
    by_url = settings_of(f"ssh://me@{machine.address}:{machine.port}", str(machine.config))
    assert (by_url.hostname, by_url.port, by_url.user) == (machine.address, machine.port, "me")


@pytest.mark.parametrize("destination", ["-oProxyCommand=evil", "a b", "x;y", "$(x)", ""])
def test_what_is_no_destination(destination: str):
    with pytest.raises(QuernError, match="not a host to connect to"):
        settings_of(destination)


def test_a_cut_connection_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Packets are lost without a word: nothing waits for ever."""
    monkeypatch.setattr(ssh, "CUT_AFTER_SECONDS", 2)
    monkeypatch.setattr(ssh, "CHANNEL_SECONDS", 2)
    machine = Machine(tmp_path / "edge", namespaced=True)
    machine.write_config("  ConnectTimeout 2\n")
    machine.start()
    try:
        connection = connect("edge", str(machine.config))
        machine.cut_link()
        with pytest.raises(OutOfReach):
            connection.run("echo hello", timeout=2)
        with pytest.raises(OutOfReach, match="out of reach"):
            connect("edge", str(machine.config))
        machine.mend_link()
        connect("edge", str(machine.config)).close()
    finally:
        machine.remove()


def test_one_connection_a_host_made_anew_when_it_was_cut(machine: Machine):
    known = ssh.Connections()
    first = known.to("edge", str(machine.config))
    assert known.to("edge", str(machine.config)) is first
    machine.kill_sessions()
    with pytest.raises(OutOfReach):
        first.run("true")
    second = known.to("edge", str(machine.config))
    assert second is not first and second.run("echo yes") == b"yes\n"
    known.close()


def test_a_channel_of_a_connection_that_has_just_gone_is_closed_without_a_fault(machine: Machine):
    connection = connect("edge", str(machine.config))
    channel = connection.start(["cat"])
    transport = channel.get_transport()
    transport.sock.shutdown(socket.SHUT_WR)  # nobody knows it yet
    with pytest.raises(EOFError):
        channel.shutdown_write()
    connection = connect("edge", str(machine.config))
    channel = connection.start(["cat"])
    channel.get_transport().sock.shutdown(socket.SHUT_WR)
    ssh.end(channel)
    with pytest.raises(OutOfReach):
        connection.run("true")
