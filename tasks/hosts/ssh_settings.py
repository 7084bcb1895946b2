"""How a machine is reached by SSH, as its user has set it up, and which host keys are known.

OpenSSH's own `ssh -G` answers with Include, Match, ProxyJump and tokens resolved (ssh(1)); where
the program is missing, paramiko reads the file, without Include.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys

from tasks.core.errors import QuernError

DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Settings:
    """Where and as whom to connect; `jumps` are destinations on the way, `known_as` is the name
    that known_hosts files have the host under."""

    destination: str
    config: str | None
    hostname: str
    port: int
    user: str | None
    identities: tuple[str, ...]
    agent: str | None
    jumps: tuple[str, ...]
    proxy_command: str | None
    known_as: str
    known_hosts: tuple[str, ...]
    connect_seconds: float

    def openssh(self) -> list[str] | None:
        """The local `ssh` program with the options that make it as strict as we are; the command
        to run there is appended. None where the program is missing."""
        program = shutil.which("ssh")
        if program is None:
            return None
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": f"{self.connect_seconds:.0f}",
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
            "Ciphers": "^aes128-gcm@openssh.com",
            "Compression": "no",
            # What else the user's configuration has for a session is not for this one.
            "ControlPath": "none",
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
        }
        command = [program, "-T", *(["-F", self.config] if self.config else [])]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        return [*command, "--", self.destination]


def settings_of(destination: str, config: str | None = None) -> Settings:
    """The settings for `destination` (alias, user@host, ssh://user@host:port) by the user's SSH
    configuration, or by the file `config` alone. Raises QuernError."""
    if destination.startswith("-") or not re.fullmatch(r"[\w.@:/\[\]%+-]+", destination):
        raise QuernError(f"{destination!r}: not a host to connect to by SSH; user@host is")
    if config is not None and not os.path.isfile(config):
        raise QuernError(f"{config}: no such SSH configuration; correct ssh_config in models.yaml")
    found = _asked(destination, config) if shutil.which("ssh") else _read(destination, config)

    def first(name: str, otherwise: str = "") -> str:
        return (found.get(name) or [otherwise])[0]

    hostname, port = first("hostname", destination), int(first("port", "22"))
    alias = first("hostkeyalias")
    jumps, proxy = first("proxyjump", "none"), first("proxycommand", "none")
    agent = first("identityagent")
    timeout = first("connecttimeout", "none")
    files = [
        os.path.expanduser(file)
        for name in ("userknownhostsfile", "globalknownhostsfile")
        for line in found.get(name, [])
        for file in shlex.split(line)
    ]
    return Settings(
        destination=destination,
        config=config,
        hostname=hostname,
        port=port,
        user=first("user") or None,
        identities=tuple(os.path.expanduser(name) for name in found.get("identityfile", [])),
        agent=os.path.expanduser(agent) if agent not in ("", "SSH_AUTH_SOCK") else None,
        jumps=() if jumps == "none" else tuple(jumps.split(",")),
        proxy_command=None if proxy == "none" else _expanded(proxy, found, destination),
        known_as=alias or (hostname if port == 22 else f"[{hostname}]:{port}"),
        known_hosts=tuple(files),
        connect_seconds=float(timeout) if timeout.isdigit() and int(timeout) else 10.0,
    )


def _expanded(command: str, found: dict[str, list[str]], destination: str) -> str:
    """ProxyCommand's tokens (ssh_config(5), TOKENS)."""
    values = {
        "h": (found.get("hostname") or [destination])[0],
        "p": (found.get("port") or ["22"])[0],
        "r": (found.get("user") or [""])[0],
        "n": destination,
        "%": "%",
    }
    return re.sub(r"%([hprn%])", lambda token: values[token[1]], command)


def _asked(destination: str, config: str | None) -> dict[str, list[str]]:
    command = ["ssh", "-G", *(["-F", config] if config else []), "--", destination]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        raise QuernError(f"{destination}: ssh refuses its settings: {_last_line(done.stderr)}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name.lower(), []).append(value)
    return found


def _read(destination: str, config: str | None) -> dict[str, list[str]]:
    path = Path(config).expanduser() if config else Path("~/.ssh/config").expanduser()
    url = re.fullmatch(r"ssh://(?:([^@]+)@)?([^:/]+)(?::(\d+))?/?", destination)
    user, _, host = destination.rpartition("@")
    user, host, port = (url[1] or "", url[2], url[3]) if url else (user, host, None)
    try:
        known = paramiko.SSHConfig.from_path(str(path)) if path.exists() else paramiko.SSHConfig()
        raw = known.lookup(host)
    except (paramiko.SSHException, OSError) as error:
        raise QuernError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
    found = {k: list(v) if isinstance(v, list) else [v] for k, v in raw.items()}
    folder = Path("~/.ssh").expanduser()
    found.setdefault("identityfile", [str(folder / name) for name in DEFAULT_IDENTITIES])
    found.setdefault("userknownhostsfile", [str(folder / "known_hosts")])
    found.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts"])
    if user:
        found["user"] = [user]
    if port:
        found["port"] = [port]
    return found


def known_keys(settings: Settings) -> tuple[list[paramiko.PKey], list[paramiko.PKey]]:
    """The host's keys by the known_hosts files, and the revoked ones (sshd(8), "SSH_KNOWN_HOSTS
    FILE FORMAT"). Certificate authorities are passed over: paramiko doesn't check certificates.
    """
    known: list[paramiko.PKey] = []
    revoked: list[paramiko.PKey] = []
    for file in settings.known_hosts:
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if not words or words[0].startswith("#") or words[0] == "@cert-authority":
                continue
            is_revoked = words[0] == "@revoked"
            names = words[1 if is_revoked else 0]
            if not _names(names, settings.known_as):
                continue
            try:
                entry = HostKeyEntry.from_line(" ".join(words[1 if is_revoked else 0 :]))
            except (paramiko.SSHException, ValueError):
                continue
            if entry is not None and entry.key is not None:
                (revoked if is_revoked else known).append(entry.key)
    return known, revoked


def _names(names: str, wanted: str) -> bool:
    """Whether the names of a known_hosts line (patterns, negated ones, a hash) mean `wanted`."""
    if names.startswith("|1|"):
        try:
            return HostKeys.hash_host(wanted, names) == names
        except (AssertionError, ValueError, IndexError):
            return False
    matches = False
    for name in names.split(","):
        pattern = name.removeprefix("!").lower()
        # Of fnmatch's specials only * and ? are known_hosts's; [host]:port is literal.
        literal = re.sub(r"[\[\]]", lambda found: f"[{found[0]}]", pattern)
        if fnmatch.fnmatchcase(wanted.lower(), literal):
            if name.startswith("!"):
                return False
            matches = True
    return matches


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
