"""What a transfer takes beside rsync, scp and plain paramiko, interleaved, through a real sshd.

    python -m benchmarks.transfer [--rounds N] [--quick] [--json FILE]

Ratios, medians of the ratios round by round: the peer's seconds ÷ ours, so higher is better.
  rsync           a download of 1 GB over loopback; rsync goes through the same ssh and cipher
  rsync_synced    the same with rsync --fsync, which leaves the file on the disk as ours does
  rsync_upload    upwards
  paramiko_alone  rsync ÷ ours without the ssh program
  scp_50ms        a download of 200 MB over a line with a round trip of 50 ms
  scp_50ms_upload the same upwards
Figures: resident_mb is our whole process at its peak during the gigabyte, which is also what 50 GB
take; *_cpu_s are processor seconds of the client's side, which a busy machine disturbs less.

Ours moves the bytes, takes their SHA-256, and syncs file and name to the disk; scp and rsync
connect and move. Left out of ours are the start of Python and the first connection, by which a
run has already asked what there is to bring; the ssh program's own connection counts. The bytes
are random.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ssh_world import Machine

ROOT = Path(__file__).parent.parent.parent
CIPHER = "aes128-gcm@openssh.com"
MILLISECONDS = 50

# Prints its seconds and its peak memory in bytes.
TIMED = """
import sys, time
from pathlib import Path
from tasks.hosts import ssh, transfer
from tasks.hosts.ssh_settings import settings_of

def plain():
    global start
    settings = settings_of("edge", config)
    client = ssh.paramiko.SSHClient()
    client.load_host_keys(settings.known_hosts[0])
    client.connect(settings.hostname, settings.port, settings.user,
                   key_filename=list(settings.identities), allow_agent=False)
    start = time.perf_counter()
    client.open_sftp().get(source, to)
    client.close()

def ours():
    global start
    connection = ssh.connect("edge", config)
    connection.run(":")
    known = int(size), sha256
    start = time.perf_counter()
    if kind == "upload":
        transfer.upload(connection, Path(source), *known, to)
    else:
        partials = Path(to).parent / "partials"
        transfer.download(connection, source, *known, Path(to), partials)
    connection.close()

kind, config, source, size, sha256, to = sys.argv[1:]
if kind == "alone":
    transfer.WORTH_A_PROGRAM_BYTES = float("inf")
plain() if kind == "plain" else ours()
print(time.perf_counter() - start)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) << 10)
"""


@dataclass
class Way:
    """One way to move a file, and what its runs took."""

    run: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Subject:
    """A file of random bytes, moved between two folders through `machine` as it is reached now."""

    def __init__(self, folder: Path, machine: Machine, size: int) -> None:
        self.folder, self.machine, self.size = folder, machine, size
        self.source, self.destination = folder / f"source-{size}", folder / "destination"
        if not self.source.exists():
            with open(self.source, "wb") as file:
                for _ in range(size >> 20):
                    file.write(os.urandom(1 << 20))
        printed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-r", self.source], capture_output=True, check=True
        )
        self.sha256 = printed.stdout[:64].decode()
        self.resident: dict[str, int] = {}

    def ours(self, kind: str) -> float:
        """Our seconds: kind is download, alone, upload or plain (paramiko's own get())."""
        size = str(self.size)
        arguments = [kind, self.machine.config, self.source, size, self.sha256, self.destination]
        done = subprocess.run(
            [sys.executable, "-c", TIMED, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"benchmarks.transfer: {kind} failed:\n{done.stderr[-2000:]}")
        seconds, resident = done.stdout.split()
        self.resident[kind] = max(self.resident.get(kind, 0), int(resident))
        return float(seconds)

    def scp(self, up: bool = False) -> float:
        return self._program(["scp", "-q", "-F", str(self.machine.config), "-c", CIPHER], up)

    def rsync(self, up: bool = False, synced: bool = False) -> float:
        shell = f"ssh -T -F {self.machine.config} -c {CIPHER} -o Compression=no"
        return self._program(["rsync", *(["--fsync"] if synced else []), "-e", shell], up)

    def _program(self, command: list[str], up: bool) -> float:
        files = [str(self.source), str(self.destination)]
        files[1 if up else 0] = f"edge:{files[1 if up else 0]}"
        start = time.perf_counter()
        subprocess.run([*command, *files], check=True)
        return time.perf_counter() - start

    def measure(self, ways: dict[str, Way], rounds: int) -> None:
        """Each in turn, `rounds` times, after one round that isn't counted."""
        for turn in range(rounds + 1):
            for name, way in ways.items():
                self.destination.unlink(missing_ok=True)
                os.sync()
                before = os.times()
                seconds = way.run()
                after = os.times()
                if self.destination.stat().st_size != self.size:
                    sys.exit(f"benchmarks.transfer: {name}: not all bytes came")
                if turn:
                    way.seconds.append(seconds)
                    way.cpu.append(
                        after.children_user
                        + after.children_system
                        - before.children_user
                        - before.children_system
                    )


@contextmanager
def long_line(machine: Machine, milliseconds: float) -> Iterator[None]:
    """The machine as it is reached over a line with this round trip."""
    command = [sys.executable, "-m", "benchmarks.transfer.line"]
    near = machine.port
    line = subprocess.Popen(
        [*command, str(near), str(milliseconds)], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert line.stdout is not None
        machine.port = int(line.stdout.readline())
        machine.write_config()
        machine.trust()
        yield
    finally:
        line.kill()
        line.wait()
        machine.port = near
        machine.write_config()
        machine.trust()


def ratio(peer: Way, ours: Way) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(peer.seconds, ours.seconds, strict=True))


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """All ratios and figures; `quick` takes small files, whose figures mean little."""
    with tempfile.TemporaryDirectory(prefix="quern-transfer-") as name:
        machine = Machine(Path(name) / "machine").start()
        try:
            near = Subject(Path(name), machine, (80 if quick else 1000) << 20)
            close = {
                "ours": Way(lambda: near.ours("download")),
                "ours_paramiko_alone": Way(lambda: near.ours("alone")),
                "rsync": Way(near.rsync),
                "rsync_synced": Way(lambda: near.rsync(synced=True)),
                "scp": Way(near.scp),
                "paramiko_get": Way(lambda: near.ours("plain")),
                "ours_upload": Way(lambda: near.ours("upload")),
                "rsync_upload": Way(lambda: near.rsync(up=True)),
                "scp_upload": Way(lambda: near.scp(up=True)),
            }
            near.measure(close, rounds)
            with long_line(machine, MILLISECONDS):
                away = Subject(Path(name), machine, (20 if quick else 200) << 20)
                far = {
                    "ours_50ms": Way(lambda: away.ours("download")),
                    "scp_50ms": Way(away.scp),
                    "ours_50ms_upload": Way(lambda: away.ours("upload")),
                    "scp_50ms_upload": Way(lambda: away.scp(up=True)),
                }
                away.measure(far, max(1, rounds // 2))
        finally:
            machine.stop()
    ways = {**close, **far}
    return {
        "quick": quick,
        "ratios": {
            "rsync": ratio(ways["rsync"], ways["ours"]),
            "rsync_synced": ratio(ways["rsync_synced"], ways["ours"]),
            "rsync_upload": ratio(ways["rsync_upload"], ways["ours_upload"]),
            "paramiko_alone": ratio(ways["rsync"], ways["ours_paramiko_alone"]),
            "scp_50ms": ratio(ways["scp_50ms"], ways["ours_50ms"]),
            "scp_50ms_upload": ratio(ways["scp_50ms_upload"], ways["ours_50ms_upload"]),
        },
        "figures": {
            "resident_mb": max(near.resident[k] for k in ("download", "alone", "upload")) / 1e6,
            "resident_50ms_mb": max(away.resident.values()) / 1e6,
            "resident_paramiko_get_mb": near.resident["plain"] / 1e6,
            **{f"{name}_s": statistics.median(way.seconds) for name, way in ways.items()},
            **{f"{name}_cpu_s": statistics.median(way.cpu) for name, way in ways.items()},
        },
    }


def table(results: dict[str, Any]) -> str:
    figures = results["figures"]
    lines = [f"  {'':20} seconds  client's CPU s"]
    for name in figures:
        if name.endswith("_s") and not name.endswith("_cpu_s"):
            way = name.removesuffix("_s")
            lines.append(f"  {way:20} {figures[name]:7.2f} {figures[f'{way}_cpu_s']:15.2f}")
    lines += ["", "the peer's seconds ÷ ours"]
    lines += [f"  {name:20} {value:7.2f}" for name, value in results["ratios"].items()]
    lines += ["", "peak memory, MB"]
    lines += [f"  {name:26} {figures[name]:.0f}" for name in figures if name.endswith("_mb")]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and keep the results if asked."""
    parser = argparse.ArgumentParser("python -m benchmarks.transfer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small files, one round: a test")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = measure(1 if options.quick else options.rounds, options.quick)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
