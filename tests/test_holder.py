"""quern-holder with real servers: what a deploy does, under clients that never pause."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.native_build import Binaries, programs
from tests.server_world import (
    PNG,
    Hammer,
    Running,
    alive,
    ask,
    expected_logits,
    listening_port,
    parameters,
    png,
    post_json,
    running,
    small_image,
    wait,
    weights_bytes,
    write_release,
)


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    return programs()


class Channel:
    """A channel directory with its releases; the holder runs while `holding` is open."""

    def __init__(self, root: Path, binaries: Binaries) -> None:
        self.binaries = binaries
        self.directory = root / "channel"
        self.directory.mkdir(parents=True)
        self.releases = root / "releases"
        self.releases.mkdir()
        self.control = self.directory / "holder.sock"
        self.run: Running
        self.runs = 0

    def release(self, variant: int, **changes: Any) -> Path:
        return write_release(self.releases, self.binaries.server, variant, **changes)

    def point_current_at(self, release: Path) -> None:
        link = self.directory / "current.new"
        link.symlink_to(release)
        link.rename(self.directory / "current")

    @contextlib.contextmanager
    def holding(self, *options: str, binary: Path | None = None) -> Iterator[Channel]:
        command = [
            str(binary or self.binaries.holder),
            "--directory",
            str(self.directory),
            "--port",
            "0",
            *options,
        ]
        self.runs += 1
        with running(command, self.directory / f"log-{self.runs}") as self.run:
            listening_port(self.run)
            if (self.directory / "current").exists():
                self.answers((self.directory / "current").resolve().name)
            yield self

    @property
    def port(self) -> int:
        return self.run.port

    def answers(self, release: str) -> None:
        def look() -> bool:
            try:
                return bool(ask(self.port, "GET", "/health").json()["release"] == release)
            except OSError:
                return False

        wait(look, f"release {release} to answer\n{self.run.log()}")

    def status(self) -> Any:
        return ask(self.control, "GET", "/status").json()

    def children(self, state: str = "") -> list[Any]:
        return [c for c in self.status()["children"] if not state or c["state"] == state]

    def start(self, release: Path) -> tuple[int, Path]:
        """Starts a standby server and waits for its admin socket."""
        answer = post_json(self.control, "/start", {"release": str(release)})
        assert answer.status == 200, answer.body
        admin = self.directory / answer.json()["admin"]
        wait(lambda: ready(admin), f"{admin} to answer\n{self.run.log()}")
        return answer.json()["pid"], admin

    def switch_to(self, release: Path) -> int:
        """A deploy of a new binary: start, prove, activate, promote."""
        pid, admin = self.start(release)
        assert ask(admin, "POST", "/predict", png(small_image()), PNG).status == 200
        assert post_json(admin, "/activate", {"release": release.name}).status == 200
        self.point_current_at(release)
        assert post_json(self.control, "/promote", {"pid": pid}).status == 200
        return pid


def gone(pid: int) -> bool:
    return not alive(pid)


def ready(admin: Path) -> bool:
    try:
        return ask(admin, "GET", "/status").status == 200
    except OSError:
        return False


@pytest.fixture
def channel(binaries: Binaries, tmp_path: Path) -> Channel:
    return Channel(tmp_path, binaries)


def live_admin(channel: Channel) -> Path:
    (child,) = channel.children("live")
    return channel.directory / str(child["admin"])


def through(binaries: Binaries, address: str, request: bytes) -> bytes:
    done = subprocess.run(
        [str(binaries.holder), "--connect", address], input=request, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_connect_joins_to_a_port_and_to_a_unix_socket(channel: Channel, binaries: Binaries) -> None:
    request = b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    channel.point_current_at(channel.release(1))
    with channel.holding():
        answer = through(binaries, str(channel.control), request % b"status")
        assert answer.startswith(b"HTTP/1.1 200") and b'"holder"' in answer
        live = through(binaries, f"127.0.0.1:{channel.port}", request % b"health")
        assert live.startswith(b"HTTP/1.1 ")


def test_connect_passes_on_much_in_both_directions(binaries: Binaries) -> None:
    data = os.urandom(3 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            peer, _ = listener.accept()
            with peer:
                received = b"".join(iter(lambda: peer.recv(1 << 16), b""))
                peer.sendall(received[::-1])

        thread = threading.Thread(target=echo)
        thread.start()
        assert through(binaries, f"127.0.0.1:{listener.getsockname()[1]}", data) == data[::-1]
        thread.join()


# ---- a release and its server --------------------------------------------------------------------


def test_current_is_started_live(channel: Channel, binaries: Binaries) -> None:
    release = channel.release(1)
    channel.point_current_at(release)
    with channel.holding():
        health = ask(channel.port, "GET", "/health").json()
        assert health == {
            "status": "ok",
            "model": "Cycle 1",
            "release": release.name,
            "weights": xxhash.xxh3_128(weights_bytes(1)).hexdigest(),
        }
        status = channel.status()
        assert status["pid"] == channel.run.process.pid
        assert status["address"] == f"127.0.0.1:{channel.port}"
        assert status["holder"] == xxhash.xxh3_128(binaries.holder.read_bytes()).hexdigest()
        assert status["exited"] == []
        (child,) = status["children"]
        assert child["state"] == "live"
        assert child["release"] == str(release)
        assert child["restarts"] == 0
        assert child["started"] == pytest.approx(time.time(), abs=600)
        info = ask(channel.port, "GET", "/models/info").json()
        assert (info["pid"], info["model"], info["label"]) == (child["pid"], "digits", "Cycle 1")
        for name in ("holder.sock", child["admin"]):
            assert (channel.directory / name).stat().st_mode & 0o777 == 0o600
        admin = ask(live_admin(channel), "GET", "/status").json()
        assert admin == {
            "state": "live",
            "release": release.name,
            "candidate": None,
            "pid": child["pid"],
            "server": xxhash.xxh3_128(binaries.server.read_bytes()).hexdigest(),
            "weights": xxhash.xxh3_128(weights_bytes(1)).hexdigest(),
            "classes": xxhash.xxh3_128((release / "classes.json").read_bytes()).hexdigest(),
        }
    assert channel.run.process.returncode == 0
    assert not list(channel.directory.glob("*.sock"))


def test_standby_does_not_accept_until_activated(channel: Channel) -> None:
    release = channel.release(1)
    with channel.holding():
        assert "no release yet" in channel.run.log()
        pid, admin = channel.start(release)
        assert ask(admin, "GET", "/status").json()["state"] == "standby"
        with pytest.raises(TimeoutError):  # connected to the holder's socket, accepted by nobody
            ask(channel.port, "GET", "/health", timeout=0.5)
        assert post_json(admin, "/activate", {"release": "0" * 16}).status == 409
        answer = post_json(admin, "/activate", {"release": release.name})
        assert answer.json() == {"release": release.name}
        assert ask(channel.port, "GET", "/health").json()["release"] == release.name
        assert post_json(admin, "/activate", {"release": release.name}).status == 409
        assert post_json(channel.control, "/promote", {"pid": pid}).status == 200
        assert [c["pid"] for c in channel.children("live")] == [pid]


def test_admin_predict_answers_logits_of_the_candidate(channel: Channel) -> None:
    first, second = channel.release(1), channel.release(2)
    channel.point_current_at(first)
    image = small_image(7)
    with channel.holding():
        admin = live_admin(channel)

        def logits() -> Any:
            return ask(admin, "POST", "/predict", png(image), PNG).json()["logits"]

        assert logits() == pytest.approx(expected_logits(image, 1), rel=1e-4, abs=1e-4)
        answer = post_json(admin, "/load", {"release": str(second)})
        assert answer.json() == {
            "release": second.name,
            "label": "Cycle 2",
            "weights": xxhash.xxh3_128(weights_bytes(2)).hexdigest(),
            "classes": xxhash.xxh3_128((second / "classes.json").read_bytes()).hexdigest(),
        }
        assert logits() == pytest.approx(expected_logits(image, 2), rel=1e-4, abs=1e-4)
        public = ask(channel.port, "POST", "/predict", png(image), PNG).json()
        assert public["release"] == first.name and "logits" not in public
        assert ask(admin, "GET", "/status").json()["candidate"] == second.name
        assert ask(admin, "POST", "/discard", b"").status == 200
        assert ask(admin, "GET", "/status").json()["candidate"] is None
        assert logits() == pytest.approx(expected_logits(image, 1), rel=1e-4, abs=1e-4)
        assert post_json(admin, "/activate", {"release": second.name}).status == 409
        weight, _ = parameters(1)
        assert len(logits()) == len(weight)


@pytest.mark.parametrize("role", ["weights", "classes"])
def test_a_wrong_digest_is_not_loaded(channel: Channel, role: str) -> None:
    good, bad = channel.release(1), channel.release(2, changed={role: "0" * 32})
    channel.point_current_at(good)
    with channel.holding():
        admin = live_admin(channel)
        answer = post_json(admin, "/load", {"release": str(bad)})
        assert answer.status == 422
        assert "0" * 32 in answer.json()["error"]
        assert ask(admin, "GET", "/status").json()["candidate"] is None
        assert ask(channel.port, "GET", "/health").json()["release"] == good.name


def test_bad_admin_requests(channel: Channel) -> None:
    good = channel.release(1)
    few = channel.release(2, classes=["only", "two"])
    channel.point_current_at(good)
    with channel.holding():
        admin = live_admin(channel)
        for value, status in [
            ({}, 400),
            ([], 400),
            ({"release": 3}, 400),
            ({"release": ""}, 400),
            ({"release": "relative"}, 400),
            ({"release": "/nothing"}, 422),
            ({"release": str(few)}, 422),
        ]:
            answer = post_json(admin, "/load", value)
            assert (answer.status, set(answer.json())) == (status, {"error"})
        assert ask(admin, "POST", "/load", b"{").status == 400
        assert ask(admin, "GET", "/load").status == 405
        assert ask(admin, "GET", "/health").status == 404


def test_reload_reads_the_same_release_again(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERN_ADMIN_KEY", "k")
    release = channel.release(1)
    channel.point_current_at(release)
    with channel.holding():
        answer = ask(channel.port, "POST", "/models/reload", b"", {"X-API-Key": "k"})
        assert answer.json()["release"] == release.name
        (release / "model_weights.bin").write_bytes(weights_bytes(2))
        answer = ask(channel.port, "POST", "/models/reload", b"", {"X-API-Key": "k"})
        assert answer.status == 422
        assert ask(channel.port, "GET", "/health").json()["release"] == release.name


# ---- switching under load ------------------------------------------------------------------------


def test_swap_inside_the_process_loses_nothing(channel: Channel) -> None:
    releases = [channel.release(variant) for variant in range(3)]
    channel.point_current_at(releases[0])
    with channel.holding(), Hammer(channel.port) as hammer:
        admin = live_admin(channel)
        image = small_image()
        for turn in range(1, 10):
            release = releases[turn % 3]
            assert post_json(admin, "/load", {"release": str(release)}).status == 200
            answer = ask(admin, "POST", "/predict", png(image), PNG).json()
            assert answer["release"] == release.name
            assert answer["logits"] == pytest.approx(
                expected_logits(image, turn % 3), rel=1e-4, abs=1e-4
            )
            assert post_json(admin, "/activate", {"release": release.name}).status == 200
            assert ask(channel.port, "GET", "/health").json()["release"] == release.name
            hammer.wait_for(release.name)
    assert hammer.failures == []
    assert set(hammer.releases) == {release.name for release in releases}


def test_blue_green_loses_nothing(channel: Channel) -> None:
    releases = [channel.release(variant) for variant in range(3)]
    channel.point_current_at(releases[0])
    with channel.holding():
        with Hammer(channel.port) as hammer:
            for turn in range(1, 6):
                release = releases[turn % 3]
                old = [child["pid"] for child in channel.children("live")]
                pid = channel.switch_to(release)
                hammer.wait_for(release.name)
                wait(lambda: len(channel.children()) == 1, "the old server to leave")
                assert channel.children("live")[0]["pid"] == pid
                assert not any(alive(one) for one in old)
        assert hammer.failures == []
        assert set(hammer.releases) == {release.name for release in releases}
        assert {entry["status"] for entry in channel.status()["exited"]} == {"exit 0"}


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_live_server_that_dies_is_restarted_from_current(channel: Channel) -> None:
    first, second = channel.release(1), channel.release(2)
    channel.point_current_at(first)
    with channel.holding():
        (child,) = channel.children()
        channel.point_current_at(second)
        os.kill(child["pid"], signal.SIGKILL)
        channel.answers(second.name)
        (new,) = channel.children("live")
        assert new["restarts"] == 1
        assert new["release"] == str(second)
        (exited,) = channel.status()["exited"]
        assert exited["pid"] == child["pid"] and exited["status"] == "signal 9"
        assert not (channel.directory / child["admin"]).exists()


def test_restarts_wait_longer_and_go_on(channel: Channel) -> None:
    release = channel.release(1)
    channel.point_current_at(release)
    with channel.holding():
        weights = (release / "model_weights.bin").read_bytes()
        (release / "model_weights.bin").write_bytes(b"broken")
        os.kill(channel.children()[0]["pid"], signal.SIGKILL)
        wait(lambda: len(channel.status()["exited"]) >= 4, "restarts to fail")
        assert {e["status"] for e in channel.status()["exited"][1:]} == {"exit 1"}
        for delay in ("0.2", "0.4"):
            assert f"restarting in {delay}" in channel.run.log()
        (release / "model_weights.bin").write_bytes(weights)
        channel.answers(release.name)
        assert channel.children("live")[0]["restarts"] >= 4


def test_a_missing_current_is_tried_again(channel: Channel) -> None:
    release = channel.release(1)
    channel.point_current_at(release)
    with channel.holding():
        (channel.directory / "current").unlink()
        os.kill(channel.children()[0]["pid"], signal.SIGKILL)
        wait(lambda: "not restarted: cannot resolve current" in channel.run.log(), "a failure")
        channel.point_current_at(release)
        channel.answers(release.name)


def test_standby_that_dies_is_only_recorded(channel: Channel) -> None:
    with channel.holding():
        pid, admin = channel.start(channel.release(1))
        os.kill(pid, signal.SIGKILL)
        wait(lambda: channel.status()["exited"], "the record")
        assert channel.status()["exited"][0]["status"] == "signal 9"
        assert channel.children() == []
        assert not admin.exists()


def test_standby_not_confirmed_is_stopped(channel: Channel) -> None:
    live = channel.release(1)
    channel.point_current_at(live)
    with channel.holding("--confirm-seconds", "1"):
        pid, _ = channel.start(channel.release(2))
        wait(lambda: not alive(pid), "the unconfirmed server to leave")
        wait(lambda: channel.status()["exited"], "the record")
        assert channel.status()["exited"][0]["status"] == "exit 0"
        assert "not promoted" in channel.run.log()
        assert ask(channel.port, "GET", "/health").json()["release"] == live.name


def test_confirmed_in_time_stays(channel: Channel) -> None:
    release = channel.release(1)
    with channel.holding("--confirm-seconds", "2"):
        pid = channel.switch_to(release)
        time.sleep(2.5)
        assert alive(pid)
        assert channel.children("live")[0]["pid"] == pid


def test_holder_killed_leaves_no_orphan(channel: Channel) -> None:
    live, other = channel.release(1), channel.release(2)
    channel.point_current_at(live)
    with channel.holding():
        standby, _ = channel.start(other)
        pids = [child["pid"] for child in channel.children()]
        assert standby in pids and len(pids) == 2
        channel.run.process.kill()
        for pid in pids:
            wait(functools.partial(gone, pid), "the orphans to leave")
        with pytest.raises(ConnectionRefusedError):
            ask(channel.port, "GET", "/health")
    with channel.holding():  # and the next one finds no obstacle
        assert [child["release"] for child in channel.children()] == [str(live)]


def test_second_holder_is_refused(channel: Channel, binaries: Binaries) -> None:
    with channel.holding():
        done = subprocess.run(
            [str(binaries.holder), "--directory", str(channel.directory), "--port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "another holder" in done.stderr
        assert channel.status()["pid"] == channel.run.process.pid


def test_holder_on_a_taken_port(channel: Channel, binaries: Binaries, tmp_path: Path) -> None:
    with channel.holding():
        other = tmp_path / "other"
        other.mkdir()
        done = subprocess.run(
            [str(binaries.holder), "--directory", str(other), "--port", str(channel.port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"127.0.0.1:{channel.port}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--directory"),
        (["--directory", "/nowhere", "--port", "0"], "/nowhere"),
        (["--directory", ".", "--port", "x"], "--port"),
        (["--confirm-seconds", "0"], "--confirm"),
        (["--bogus"], "--bogus"),
        (["--connect"], "--connect"),
        (["--connect", "/nowhere/x.sock"], "/nowhere"),
        (["--connect", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--connect", "nowhere"], "nowhere"),
    ],
)
def test_bad_command_lines(binaries: Binaries, arguments: list[str], word: str) -> None:
    done = subprocess.run(
        [str(binaries.holder), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_bad_control_requests(channel: Channel) -> None:
    release = channel.release(1)
    broken = channel.release(2)
    (broken / "quern-server").chmod(0o644)
    with channel.holding():
        for path, value, status in [
            ("/start", {}, 400),
            ("/start", {"release": "relative"}, 400),
            ("/start", {"release": "/nothing"}, 422),
            ("/start", {"release": str(broken)}, 422),
            ("/promote", {"pid": "x"}, 400),
            ("/promote", {"pid": os.getpid()}, 409),
            ("/promote", [], 400),
            ("/stop", {"pid": os.getpid()}, 409),
            ("/stop", None, 400),
            ("/upgrade", {"holder": "/nothing"}, 422),
            ("/upgrade", {"holder": "x"}, 400),
        ]:
            answer = post_json(channel.control, path, value)
            assert (answer.status, set(answer.json())) == (status, {"error"}), path
        assert ask(channel.control, "POST", "/start", b"{").status == 400
        assert ask(channel.control, "GET", "/start").status == 405
        assert ask(channel.control, "GET", "/nothing").status == 404
        assert channel.children() == []
        manifest = (release / "manifest.json").read_text()
        (release / "manifest.json").write_text(manifest.replace("quern-server", "../escape"))
        answer = post_json(channel.control, "/start", {"release": str(release)})
        assert answer.status == 422 and "name of a file" in answer.json()["error"]


def test_stop_and_shutdown(channel: Channel) -> None:
    live = channel.release(1)
    channel.point_current_at(live)
    with channel.holding():
        pid, _ = channel.start(channel.release(2))
        assert post_json(channel.control, "/stop", {"pid": pid}).status == 200
        wait(lambda: len(channel.children()) == 1, "the stopped server to leave")
        (child,) = channel.children()
        assert ask(channel.control, "POST", "/shutdown", b"").json() == {"stopping": 1}
        assert channel.run.process.wait(60) == 0
        assert not alive(child["pid"])
        with pytest.raises(ConnectionRefusedError):
            ask(channel.port, "GET", "/health")


def test_a_stopped_live_server_is_not_restarted(channel: Channel) -> None:
    channel.point_current_at(channel.release(1))
    with channel.holding():
        post_json(channel.control, "/stop", {"pid": channel.children()[0]["pid"]})
        wait(lambda: channel.children() == [], "the server to leave")
        time.sleep(0.5)
        assert channel.children() == []


def test_stale_sockets_are_removed(channel: Channel) -> None:
    for name in ("server-7.sock", "holder.sock"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
            here = os.open(".", os.O_RDONLY)
            os.chdir(channel.directory)
            stale.bind(name)
            os.fchdir(here)
            os.close(here)
    with channel.holding():
        assert [path.name for path in channel.directory.glob("*.sock")] == ["holder.sock"]


def test_long_directory_names(binaries: Binaries, tmp_path: Path) -> None:
    channel = Channel(tmp_path / ("long" * 30) / ("name" * 30), binaries)
    assert len(str(channel.control)) > 108
    first, second = channel.release(1), channel.release(2)
    channel.point_current_at(first)
    with channel.holding():
        channel.switch_to(second)
        channel.answers(second.name)


def descriptors(pid: int) -> set[str]:
    """What a process has open besides its standard streams; a connection may just be closing."""
    targets = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if int(name) > 2:
                targets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {one for one in targets if one.startswith(("socket:", "pipe:", "/"))}


def test_children_inherit_only_what_they_should(channel: Channel) -> None:
    channel.point_current_at(channel.release(1))
    with channel.holding():
        pid = channel.children()[0]["pid"]
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"LISTEN_FDS=1" in environment
        assert f"LISTEN_PID={pid}".encode() in environment
        (shared,) = descriptors(pid) & descriptors(channel.run.process.pid)
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        (listener,) = [row for row in rows if f"socket:[{row[9]}]" == shared]
        assert int(listener[1].rpartition(":")[2], 16) == channel.port


# ---- upgrade -------------------------------------------------------------------------------------


def test_upgrade_under_load_keeps_children_and_requests(
    channel: Channel, binaries: Binaries, tmp_path: Path
) -> None:
    first, second = channel.release(1), channel.release(2)
    channel.point_current_at(first)
    new = tmp_path / "quern-holder-new"
    shutil.copy(binaries.holder, new)
    with new.open("ab") as file:
        file.write(b"\0another digest")
    digest = xxhash.xxh3_128(new.read_bytes()).hexdigest()
    with channel.holding(), Hammer(channel.port) as hammer:
        hammer.wait_for(first.name)
        standby, _ = channel.start(second)
        before = channel.status()
        assert before["holder"] != digest
        answer = post_json(channel.control, "/upgrade", {"holder": str(new)})
        assert answer.json() == {"pid": before["pid"], "holder": digest}
        wait(lambda: channel.status()["holder"] == digest, "the new holder")
        after = channel.status()
        assert after["children"] == before["children"]
        assert after["address"] == before["address"]
        assert after["pid"] == before["pid"]
        hammer.wait_for(first.name)

        # The new holder goes on with everything: the lock, promotion, restarts, new servers.
        done = subprocess.run(
            [str(binaries.holder), "--directory", str(channel.directory), "--port", "0"],
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 1
        admin = channel.directory / next(
            c["admin"] for c in after["children"] if c["pid"] == standby
        )
        assert post_json(admin, "/activate", {"release": second.name}).status == 200
        channel.point_current_at(second)
        assert post_json(channel.control, "/promote", {"pid": standby}).status == 200
        hammer.wait_for(second.name)
        wait(lambda: len(channel.children()) == 1, "the old server to leave")
        channel.switch_to(first)
        hammer.wait_for(first.name)
        again = post_json(channel.control, "/upgrade", {"holder": str(binaries.holder)})
        assert again.status == 200
        wait(lambda: channel.status()["holder"] == again.json()["holder"], "the old holder again")
        hammer.wait_for(first.name)
    assert hammer.failures == []
    assert channel.run.process.returncode == 0


def test_upgraded_holder_restarts_and_confirms(channel: Channel, binaries: Binaries) -> None:
    live, other = channel.release(1), channel.release(2)
    channel.point_current_at(live)
    with channel.holding("--confirm-seconds", "3"):
        standby, _ = channel.start(other)
        post_json(channel.control, "/upgrade", {"holder": str(binaries.holder)})
        wait(lambda: "took over" in channel.run.log(), "the new holder")
        os.kill(channel.children("live")[0]["pid"], signal.SIGKILL)
        channel.answers(live.name)
        wait(lambda: not alive(standby), "the unconfirmed server to leave")
        pids = [child["pid"] for child in channel.children()]
        channel.run.process.kill()
        for pid in pids:
            wait(functools.partial(gone, pid), "no orphan of an upgraded holder")


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false", "/bin/sh", "text"])
def test_upgrade_to_something_else_is_refused(
    channel: Channel, tmp_path: Path, program: str
) -> None:
    channel.point_current_at(channel.release(1))
    if program == "text":
        program = str(tmp_path / "text")
        Path(program).write_text("not a program")
        Path(program).chmod(0o755)
    with channel.holding():
        before = channel.status()
        answer = post_json(channel.control, "/upgrade", {"holder": program})
        assert answer.status == 422
        assert program in answer.json()["error"]
        assert channel.status() == before
        assert ask(channel.port, "GET", "/health").status == 200


def test_upgrade_to_a_holder_that_lacks_an_option_is_refused(
    channel: Channel, binaries: Binaries, tmp_path: Path
) -> None:
    """It would be given the same command line, and die of it with the port and the servers."""
    older = tmp_path / "older"
    older.write_text(
        f'#!/bin/sh\ncase "$*" in *--kill-seconds*) exit 1;; esac\nexec {binaries.holder} "$@"\n'
    )
    older.chmod(0o755)
    channel.point_current_at(channel.release(1))
    with channel.holding("--kill-seconds", "40"):
        before = channel.status()
        assert post_json(channel.control, "/upgrade", {"holder": str(older)}).status == 422
        assert channel.status() == before
