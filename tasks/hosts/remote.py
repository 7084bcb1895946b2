"""A host reached by SSH, as a Host (tasks/hosts/host.py): files by SFTP, programs by POSIX shell
scripts, its servers asked through quern-holder's `--connect`, which a release brings along.
"""

import contextlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko

from tasks.core.errors import QuernError
from tasks.hosts.deployer import Deployer, HostBusy
from tasks.hosts.host import LOG_BYTES, Entry, Platform
from tasks.hosts.kept_alive import KeptAlive
from tasks.hosts.remote_digest import remote_digests, remote_sha256
from tasks.hosts.ssh import NO_STATUS, Connection, OutOfReach, RemoteFailed, connections, end
from tasks.hosts.transfer import upload
from tasks.hosts.unix_http import Unreachable, ask_connected

HEARTBEAT_SECONDS = 20.0
ENDING_SECONDS = 5.0
NOT_THERE = (126, 127)  # of a shell: no such program
# What servers and holders read from their environment; it comes from the deployer's.
PASSED_ON = ("QUERN_READ_KEY", "QUERN_ADMIN_KEY")

PLATFORM = """
uname -s; uname -m; (getconf GNU_LIBC_VERSION || true) 2>/dev/null | sed -n 's/^glibc //p'
"""
SIGNATURE = """
stat -c '%d:%i:%s:%.Y:%.Z' -- "$1" 2>/dev/null || stat -f '%d:%i:%z:%Fm:%Fc' -- "$1" 2>/dev/null ||
stat -c '%d:%i:%s:%Y:%Z' -- "$1"
"""
# cp, ln and mv onto a name beside the target, then rename: mv of a file onto another name of
# itself fails, where there is nothing to do.
PLACE = """
source=$1 target=$2 by=$3
folder=$(dirname -- "$target")
mkdir -p -- "$folder" || exit
part=$folder/.$(basename -- "$target").partial
rm -f -- "$part"
how=copy
case $by in
  symbolic-link) ln -s -- "$source" "$part" && how=symbolic-link ;;
  hard-link) ln -- "$source" "$part" && how=hard-link ;;
  copy) cp -- "$source" "$part" ;;
  *) if ln -- "$source" "$part" 2>/dev/null; then how=hard-link; else cp -- "$source" "$part"; fi ;;
esac || { rm -f -- "$part"; exit 1; }
if [ "$how" = hard-link ] && [ "$part" -ef "$target" ]; then rm -f -- "$part"
else mv -f -- "$part" "$target" || exit; fi
echo "$how"
"""
APPEND = """
mkdir -p -- "$(dirname -- "$1")" && printf '%s\\n' "$2" >>"$1"
"""
# A program that outlives this session. `count` environment variables come first.
SPAWN = """
log=$1 most=$2 count=$3
shift 3
while [ "$count" -gt 0 ]; do export "$1"; shift; count=$((count - 1)); done
cd -- "$(dirname -- "$log")" || exit
if [ "$(wc -c 2>/dev/null <"$log" || echo 0)" -gt "$most" ]; then mv -f -- "$log" "$log.1"; fi
if command -v setsid >/dev/null; then
  setsid "$@" >>"$log" 2>&1 </dev/null &
else
  nohup "$@" >>"$log" 2>&1 </dev/null &
fi
echo $!
"""
RUN = """
cd -- "$1" || exit
shift
"$@" 2>&1 </dev/null
echo "
$?"
"""
# An flock that lives as long as this script: until its input ends with the connection, or nothing
# has come for two minutes because the line is cut. The last watcher is waited for: one that is
# killed as it starts may not have closed its own copy of the lock.
LOCK = """
mkdir -p -- "$(dirname -- "$1")" || exit
exec 9>>"$1" || exit
if command -v flock >/dev/null; then flock -n 9
elif command -v perl >/dev/null; then
  perl -e 'use Fcntl ":flock"; open(my $f, ">>&=", 9) or exit 1; exit !flock($f, LOCK_EX|LOCK_NB)'
elif command -v python3 >/dev/null; then
  python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null
else echo nothing; exit; fi || { echo busy; cat -- "$1"; exit; }
printf '%s' "$2" >"$1" || exit
echo held
watch() { (sleep 120; kill $$) >/dev/null 2>&1 9>&- & watcher=$!; }
watch
while read -r beat; do kill $watcher; watch; done
kill $watcher
wait $watcher
"""


class RemoteHost:
    """Operations below `root` on the machine that `ssh` reaches."""

    def __init__(self, name: str, ssh: str, root: str, config: str | None = None) -> None:
        self.name, self._ssh, self._config = name, ssh, config
        self._given_root = root
        self._home: Path | None = None

    @property
    def connection(self) -> Connection:
        """The connection, made when first asked for. Raises as connect() does."""
        return connections.to(self._ssh, self._config)

    @property
    def root(self) -> Path:
        """The folder for releases, absolute."""
        return self.expand(self._given_root)

    def expand(self, path: str) -> Path:
        """`path` with `~` as the host's user has it; relative ones are below the home."""
        if path.startswith("/"):
            return Path(path)
        if self._home is None:
            self._home = Path(os.fsdecode(self.run_script('printf %s "$HOME"')))
        return self._home / path.removeprefix("~/").removeprefix("~")

    def platform(self) -> Platform:
        """What programs it runs."""
        system, machine, *libc = self.run_script(PLATFORM).decode().splitlines()
        return Platform(system, machine, tuple(map(int, libc[0].split("."))) if libc else ())

    def run_script(self, script: str, *arguments: str, timeout: float = 30.0) -> bytes:
        """Run a POSIX shell script; returns what it printed. Raises QuernError, OutOfReach."""
        try:
            return self.connection.run(script, *arguments, timeout=timeout)
        except RemoteFailed as error:
            raise QuernError(str(error).replace(self._ssh, self.name, 1)) from None

    @contextmanager
    def _sftp(self) -> Iterator[paramiko.SFTPClient]:
        """The SFTP session, with its faults told."""
        connection = self.connection
        with connection.told():
            try:
                yield connection.sftp
            except FileNotFoundError:
                raise
            except OSError as error:
                if not connection.is_alive or (error.errno is None and str(error) != "Failure"):
                    raise
                # OpenSSH's sftp-server says no more than "Failure" of a full disk.
                said = os.strerror(error.errno) if error.errno else "failed; is its disk full?"
                raise QuernError(f"{self.name}: {said}") from None

    # -- files ---------------------------------------------------------------------------------

    def holds(self, path: Path, entry: Entry) -> bool:
        """Whether `path` has the entry's bytes, by SHA-256, which hosts have a program for."""
        with self._sftp() as sftp:
            try:
                if sftp.stat(str(path)).st_size != entry["size"]:
                    return False
            except FileNotFoundError:
                return False
        return bool(remote_sha256(self.connection, str(path)) == entry["sha256"])

    def sha256(self, paths: list[Path]) -> dict[Path, str]:
        """SHA-256 in hex of each of the files that is there, read there in one go."""
        found = remote_digests(self.connection, [str(path) for path in paths])
        return {Path(path): digest for path, digest in found.items()}

    def signature(self, path: Path) -> str | None:
        """Device, inode, size and times of a file, None if there is none."""
        try:
            return self.run_script(SIGNATURE, str(path)).decode().strip()
        except OutOfReach:
            raise
        except QuernError:
            return None

    def put_file(
        self,
        source: Path,
        destination: Path,
        entry: Entry,
        executable: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """Send `source`, verified by SHA-256, by rename; a cut one is gone on with."""
        upload(
            self.connection,
            source,
            entry["size"],
            entry["sha256"],
            str(destination),
            executable,
            progress,
        )

    def link_file(self, source: Path, destination: Path) -> None:
        """A second name for a file that never changes."""
        with self._sftp() as sftp:
            with contextlib.suppress(FileNotFoundError):
                sftp.remove(str(destination))
            _extended(sftp, "hardlink@openssh.com", str(source), str(destination))

    def place(self, source: Path, target: Path, by: str) -> str:
        """Put the host's file `source` at `target` by rename; returns how."""
        return self.run_script(PLACE, str(source), str(target), by, timeout=3600).decode().strip()

    def read(self, path: Path, first: int | None = None, last: int | None = None) -> bytes | None:
        """A file's bytes, or its `first` or `last` ones; None if there is none."""
        with self._sftp() as sftp:
            try:
                with sftp.open(str(path), "rb") as file:
                    if first is not None:
                        return file.read(first)
                    if last is not None:
                        file.seek(max(0, (file.stat().st_size or 0) - last))
                    # To the end, as files of /proc have no size. Not by prefetch(): its thread
                    # ends with a traceback when the line is cut.
                    return b"".join(iter(lambda: file.read(file.MAX_REQUEST_SIZE), b""))
            except FileNotFoundError:
                return None

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        temporary = f"{path.with_name(f'.{path.name}.partial')}"
        self.make_directory(path.parent)
        with self._sftp() as sftp:
            with sftp.open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                _extended(sftp, "fsync@openssh.com", file.handle)
            sftp.posix_rename(temporary, str(path))

    def append_line(self, path: Path, record: dict[str, Any]) -> None:
        """Append one JSON line."""
        self.run_script(APPEND, str(path), json.dumps(record, ensure_ascii=False))

    def remove_file(self, path: Path) -> None:
        """Remove a file or symbolic link, if it is there."""
        with self._sftp() as sftp, contextlib.suppress(FileNotFoundError):
            sftp.remove(str(path))

    def remove_stale_partials(self, folder: Path) -> None:
        """Remove what was left by uploads that nobody went on with for two weeks."""
        script = """
        [ -d "$1" ] || exit 0
        find "$1" -name '*.partial' -type f -mtime +14 -exec rm -f -- {} +
        """
        self.run_script(script, str(folder))

    def files_below(self, folder: Path) -> dict[str, int]:
        """Relative path → bytes of every file below `folder`."""
        script = """
        cd -- "$1" 2>/dev/null || exit 0
        find . -type f ! -name '*.partial' -exec sh -c '
            for file; do wc -c <"$file" && echo "$file"; done' sh {} +
        """
        lines = iter(self.run_script(script, str(folder)).decode(errors="replace").splitlines())
        return {path.removeprefix("./"): int(size) for size, path in zip(lines, lines, strict=True)}

    def size(self, path: Path) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        with self._sftp() as sftp:
            return sftp.stat(str(path)).st_size or 0

    # -- directories and links -------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        """Make a directory and its parents."""
        self.run_script('mkdir -p -- "$1"', str(path))

    def directories(self, path: Path) -> list[str]:
        """Names of the directories in `path`, the oldest first; temporary ones are left out."""
        with self._sftp() as sftp:
            try:
                found = sftp.listdir_attr(str(path))
            except FileNotFoundError:
                return []
        kept = [f for f in found if stat.S_ISDIR(f.st_mode or 0) and not f.filename.startswith(".")]
        return [f.filename for f in sorted(kept, key=lambda f: (f.st_mtime or 0, f.filename))]

    def rename_directory(self, source: Path, destination: Path) -> None:
        """Give a finished directory its name."""
        with self._sftp() as sftp:
            sftp.posix_rename(str(source), str(destination))

    def remove_directory(self, path: Path) -> None:
        """Remove a directory and what is in it, if it is there."""
        self.run_script('rm -rf -- "$1"', str(path))

    def link_target(self, link: Path) -> Path | None:
        """Where a symbolic link points, None if there is none."""
        with self._sftp() as sftp:
            try:
                target = sftp.readlink(str(link))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno is not None or not self.connection.is_alive:
                    raise
                return None  # something else than a link is there
        return Path(target) if target else None

    def point(self, link: Path, target: Path) -> None:
        """Make `link` point at `target`, by rename: a reader sees the old or the new."""
        temporary = f"{link.with_name(f'.{link.name}.partial')}"
        with self._sftp() as sftp:
            with contextlib.suppress(FileNotFoundError):
                sftp.remove(temporary)
            sftp.symlink(str(target), temporary)
            sftp.posix_rename(temporary, str(link))

    # -- programs --------------------------------------------------------------------------------

    def spawn(self, command: list[str], log: Path) -> "RemoteProgram":
        """Start a program that outlives the connection."""
        keys = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]
        printed = self.run_script(SPAWN, str(log), str(LOG_BYTES), str(len(keys)), *keys, *command)
        return RemoteProgram(self, int(printed))

    def run(self, command: list[str], cwd: Path, timeout: float) -> tuple[int, str]:
        """Run a program to its end; returns its status and what it printed."""
        printed = self.run_script(RUN, str(cwd), *command, timeout=timeout).decode(errors="replace")
        text, _, status = printed.rstrip("\n").rpartition("\n")
        return int(status), text

    def has_program(self, name: str) -> bool:
        """Whether a program of this name is on the host's PATH."""
        return bool(self.run_script('command -v -- "$1" || true', name).strip())

    def ask_through(self, holder: Path) -> None:
        """Keep a second name of this quern-holder, to ask servers through."""
        temporary = self._relay.with_name(f".{self._relay.name}.partial")
        self.link_file(holder, temporary)
        with self._sftp() as sftp:
            sftp.posix_rename(str(temporary), str(self._relay))

    @property
    def _relay(self) -> Path:
        return self.root / "quern-holder"

    def ask_socket(
        self, path: Path, method: str, target: str, body: Any = None, timeout: float = 10.0
    ) -> dict[str, Any]:
        """One request over a Unix socket of the host. Raises Unreachable, Refused, OutOfReach."""
        return self._ask(str(path), method, target, body, timeout, None)

    def ask_port(
        self, address: str, target: str, timeout: float = 5.0, method: str = "GET", body: Any = None
    ) -> dict[str, Any]:
        """One request to "address:port", asked there."""
        key = os.environ.get("QUERN_READ_KEY")
        return self._ask(address, method, target, body, timeout, key)

    def _ask(
        self, address: str, method: str, target: str, body: Any, timeout: float, key: str | None
    ) -> dict[str, Any]:
        connection = self.connection
        channel = connection.start([str(self._relay), "--connect", address], timeout)
        try:
            where = f"{self.name} {address}"
            return ask_connected(_Joined(channel), where, timeout, method, target, body, key)
        except Unreachable as silence:
            raise self._lost(channel, silence) from None
        finally:
            end(channel)

    def _lost(self, channel: paramiko.Channel, silence: Unreachable) -> QuernError:
        """What is to be said of `silence` on a channel to quern-holder: was it the server's, or
        the connection's?"""
        if not channel.status_event.wait(ENDING_SECONDS) or not channel.exit_status:
            return silence
        if channel.exit_status == NO_STATUS:
            return OutOfReach(f"{self.name}: the connection was cut")
        if channel.exit_status in NOT_THERE:
            return Unreachable(f"{self.name}: nothing was deployed there yet")
        said = channel.recv_stderr(1 << 12).decode(errors="replace").strip()
        return Unreachable(f"{self.name}: {said.rpartition(']: ')[2]}")

    def kept_alive(self, address: str, timeout: float) -> "KeptAliveThere":
        """A connection to "address:port", from there, for many requests."""
        return KeptAliveThere(self, address, timeout, os.environ.get("QUERN_READ_KEY"))

    # -- the machine -----------------------------------------------------------------------------

    def free_disk(self) -> int | None:
        """Bytes free below `root`."""
        table = self.run_script(
            'df -Pk -- "$1" 2>/dev/null || df -Pk "$HOME"', str(self.root)
        ).decode()
        return int(table.splitlines()[1].split()[3]) * 1024

    def free_memory(self) -> int | None:
        """Bytes of memory available, None where there is no /proc/meminfo."""
        found = re.search(rb"MemAvailable:\s*(\d+) kB", self.read(Path("/proc/meminfo")) or b"")
        return int(found[1]) * 1024 if found else None

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """One deployer at a time, whichever machine it is on. Raises HostBusy."""
        connection = self.connection
        channel = connection.start_script(LOCK, str(path), Deployer.here().as_line().decode())
        try:
            with connection.told():
                answer = channel.makefile("rb")
                word = answer.readline().strip()
                if word == b"busy":
                    raise HostBusy(self.name, path, answer.readline())
                if not word and not channel.status_event.wait(ENDING_SECONDS):
                    raise OutOfReach(f"{self.name}: no answer")
                if not word and channel.exit_status == NO_STATUS:
                    raise OutOfReach(f"{self.name}: the connection was cut")
                if word != b"held":
                    why = "needs flock, perl or python3 for a lock" if word else "can't be locked"
                    raise QuernError(f"{self.name}: {path}: {why}")
            with _heartbeats(lambda: channel.sendall(b"\n")):
                yield
        finally:
            # The next one to ask shall find it free: the script is waited for.
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                channel.shutdown_write()
                channel.status_event.wait(ENDING_SECONDS)
            end(channel)


class _Joined:
    """A channel as http.client's socket; it stays open, for how its command ended."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.sendall, self.makefile = channel.sendall, channel.makefile

    def close(self) -> None:
        """Not yet."""


class KeptAliveThere(KeptAlive):
    """A connection that quern-holder makes on its host, asked through one SSH channel."""

    def __init__(self, host: RemoteHost, address: str, timeout: float, key: str | None) -> None:
        super().__init__(address, timeout, key)
        self.where, self._host = f"{host.name} {address}", host

    def _connect(self) -> paramiko.Channel:
        command = [str(self._host._relay), "--connect", self._address]
        return self._host.connection.start(command, self._timeout)

    def _lost(self, silence: Unreachable) -> Exception:
        return self._host._lost(self._joined, silence)


class RemoteProgram:
    """A program started on a host, by its process id."""

    def __init__(self, host: RemoteHost, pid: int) -> None:
        self._host, self.pid = host, pid

    def poll(self) -> int | None:
        """None while it runs, then -1: its status is not known."""
        status, _ = self._host.run(["kill", "-0", str(self.pid)], Path("/"), 30)
        return None if status == 0 else -1


def _extended(sftp: paramiko.SFTPClient, name: str, *arguments: Any) -> None:
    """One of OpenSSH's own requests (its PROTOCOL file), as paramiko's posix_rename() makes it."""
    sftp._request(paramiko.sftp.CMD_EXTENDED, name, *arguments)  # type: ignore[attr-defined]


@contextmanager
def _heartbeats(beat: Callable[[], None]) -> Iterator[None]:
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                beat()
            except (OSError, EOFError, paramiko.SSHException):
                return  # the connection is gone; whatever needs it says so

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
