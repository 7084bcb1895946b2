"""Machines to reach by SSH: OpenSSH's own sshd, on loopback or in a network namespace of its own.

A namespaced machine has its own addresses, ports and processes: ending its first process ends
all of them, as a power cut does. Making one needs root.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

SSHD = "/usr/sbin/sshd"
SSHD_CONFIG = """
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PrintMotd no
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
Subsystem sftp internal-sftp
SetEnv HOME={home}{environment}
"""
SSH_CONFIG = """
Host {name}
  HostName {address}
  Port {port}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
  User root
"""
# /24 networks of their own for namespaced machines, one a process and machine.
_numbers = itertools.count(1)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@dataclass
class Machine:
    """A machine with an sshd; `home` is its home directory, `config` an SSH configuration that
    knows it by `name`."""

    folder: Path
    name: str = "edge"
    namespaced: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        os.makedirs("/run/sshd", exist_ok=True)
        keygen(self.folder / "host_key")
        keygen(self.folder / "user_key")
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        if self.namespaced:
            self._make_namespace()
            self.port = 22
        else:
            self.port = self.port or free_port()
        self.config = self.folder / "ssh_config"
        self.write_config()
        self.trust()

    def write_config(self, more: str = "") -> None:
        """The SSH configuration that knows this machine, with `more` lines for it."""
        text = SSH_CONFIG.format(
            name=self.name, address=self.address, port=self.port, folder=self.folder
        )
        self.config.write_text(text + more)

    def trust(self) -> None:
        """Put the machine's key into known_hosts."""
        key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        where = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        (self.folder / "known_hosts").write_text(f"{where} {key}\n")

    def _make_namespace(self) -> None:
        number = next(_numbers)
        self.namespace = f"quern{os.getpid()}-{number}"
        link = f"qn{os.getpid() % 100000}-{number}"
        # 10.x.y.0/24 from the pid and the number, so that test runs side by side don't meet.
        self.network = f"10.{os.getpid() % 250 + 1}.{number % 250 + 1}"
        self.link = link
        self.address = f"{self.network}.2"
        for command in (
            f"ip netns add {self.namespace}",
            f"ip link add {link} type veth peer name eth0 netns {self.namespace}",
            f"ip addr add {self.network}.1/24 dev {link}",
            f"ip link set {link} up",
            f"ip -n {self.namespace} addr add {self.address}/24 dev eth0",
            f"ip -n {self.namespace} link set eth0 up",
            f"ip -n {self.namespace} link set lo up",
        ):
            subprocess.run(command.split(), check=True)

    def start(self) -> "Machine":
        """Start its sshd."""
        environment = "".join(f' "{k}={v}"' for k, v in self.environment.items())
        (self.folder / "sshd_config").write_text(
            SSHD_CONFIG.format(
                address=self.address,
                port=self.port,
                folder=self.folder,
                home=self.home,
                environment=environment,
            )
        )
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        if self.namespaced:
            command = [
                *("ip", "netns", "exec", self.namespace),
                *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command),
            ]
        with open(self.folder / "sshd.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self.address, self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise AssertionError((self.folder / "sshd.log").read_text()) from None
                time.sleep(0.02)

    def cut_link(self) -> None:
        """Packets are lost from now on (namespaced)."""
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)

    def mend_link(self) -> None:
        subprocess.run(["ip", "link", "set", self.link, "up"], check=True)

    def sessions(self) -> list[int]:
        """Process ids of sshd's children, one or two a connection."""
        assert self.process is not None
        found = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True)
        rows = [line.split(None, 2) for line in found.stdout.splitlines()]
        below = {self.process.pid}
        for _ in range(6):
            below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
        first = {int(pid) for pid, parent, comm in rows if int(pid) in below and "sshd" in comm}
        listeners = {
            int(pid) for pid, parent, comm in rows if int(pid) in first and int(parent) not in first
        }
        return sorted(first - listeners)

    def kill_sessions(self) -> None:
        """Kill sshd's children: every connection is cut at once."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End sshd; of a namespaced machine every process, as a power cut does."""
        if self.process is None:
            return
        if not self.namespaced:
            self.kill_sessions()
        self.process.kill()
        self.process.wait()
        self.process = None
        deadline = time.monotonic() + 20
        while self.namespaced and self._processes():  # its first one's end ends them, in a moment
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _processes(self) -> bytes:
        """Process ids in the machine's namespace."""
        listing = ["ip", "netns", "pids", self.namespace]
        return subprocess.run(listing, capture_output=True, check=True).stdout

    def remove(self) -> None:
        self.stop()
        if self.namespaced:
            subprocess.run(["ip", "netns", "del", self.namespace], check=False)
            subprocess.run(["ip", "link", "del", self.link], check=False, capture_output=True)
