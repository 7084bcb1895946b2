"""Whatever is done in whatever order, and wherever it is cut short: what is live is a whole release
that passed its probe, and nothing that serves is lost.

Hypothesis draws the operations; each runs in a process of its own against real holders and servers,
and may be killed before any of its steps on the host.
"""

import base64
import itertools
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import tasks.deploy
import tasks.hosts.attestor
import tasks.rollback
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError
from tasks.hosts.channels import Channel, live_release
from tasks.hosts.history import LIVE, Journal, on_host, went_live
from tasks.hosts.local import LocalHost
from tasks.hosts.marks import FAILED, WITHDRAWN, Marks
from tasks.hosts.pins import Pins
from tasks.hosts.promotion import Place, Promotion
from tasks.hosts.prune import collect
from tasks.hosts.releases import Release
from tasks.hosts.unix_http import ask_port
from tests.deploy_project import DeployProject, free_port

pytestmark = pytest.mark.slow

KEEP = 1
KILLED = 9
STEPS = (
    *("put_file", "link_file", "write", "append_line", "remove_file", "make_directory"),
    *("rename_directory", "remove_directory", "point", "spawn", "ask_socket", "ask_port"),
)


@dataclass
class Built:
    """A release as the build leaves it, in a folder of its own."""

    release: Release
    files: dict[str, str]
    manifest: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, checkpoints: list[Path]) -> list[Built]:
    """Three releases, and a fourth whose golden set says what its server will not."""
    folder = tmp_path_factory.mktemp("built")
    project = DeployProject(folder / "project", checkpoints)
    found = []
    for number in range(3):
        project.use_checkpoint(number)
        project.doit("release")
        data = (project.root / "weights/digits/manifest.json").read_bytes()
        found.append(laid_out(folder / str(number), data, project.root, {}))
    golden = json.loads(Path(found[0].files["golden"]).read_bytes())
    golden["probes"][0]["logits"][0] += 5
    wrong = folder / "golden.json"
    wrong.write_text(json.dumps(golden))
    found.append(laid_out(folder / "3", found[0].release.data, project.root, {"golden": wrong}))
    return found


def comparison(difference: float) -> dict[str, Any]:
    return {
        "accuracy": {"candidate": 0.9 + difference, "stable": 0.9},
        "difference": difference,
        "interval": [difference - 0.02, difference + 0.02],
        "p": 0.5,
        "set": {"path": "held_out", "count": 100},
    }


def laid_out(folder: Path, data: bytes, project: Path, instead: dict[str, Path]) -> Built:
    folder.mkdir()
    manifest = json.loads(data)
    files = {}
    for role, entry in manifest["roles"].items():
        objects = project / ".quern/store/objects"
        source = objects / entry["xxh3_128"][:2] / entry["xxh3_128"][2:]
        if role == "classes":
            source = project / "examples/digits/classes.json"
        source = instead.get(role, source)
        target = folder / entry["file"]
        target.write_bytes(source.read_bytes())
        target.chmod(0o755)
        signature, xxh3, sha256 = read_digests(target, sha256=True)
        manifest["roles"][role] |= {"size": signature[2], "xxh3_128": xxh3, "sha256": sha256}
        files[role] = str(target)
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, sort_keys=True))
    return Built(Release.read(path), files, str(path))


class DyingHost(LocalHost):
    """This machine, on which the deployer is killed before its `steps_left`-th step from now."""

    steps_left = -1

    def __getattribute__(self, name: str) -> Any:
        if name in STEPS:
            if DyingHost.steps_left == 0:
                os._exit(KILLED)
            DyingHost.steps_left -= 1
        return super().__getattribute__(name)


def in_a_process(work: Callable[[], str | None], dies_before_step: int | None) -> tuple[int, str]:
    """Status and what was said: 0 done, 1 refused, KILLED."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        status, said = 0, ""
        try:
            DyingHost.steps_left = -1 if dies_before_step is None else dies_before_step
            said = work() or ""
        except QuernError as error:
            status, said = 1, str(error)
        except BaseException:
            status, said = 2, traceback.format_exc()
        os.write(writer, said.encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, 1, KILLED), said
    return status, said


class World:
    """A candidate and a stable channel on one host: each operation, and what must be true after
    it. `death`: the operation is killed before so many steps of it."""

    def __init__(self, built: list[Built]) -> None:
        self.built = built
        self.folder = tempfile.TemporaryDirectory(prefix="quern-releases-")
        root = Path(self.folder.name)
        self.host = DyingHost(root / "host")
        self.project = SimpleNamespace(
            root=root, private=root, announce=lambda *told: None, event=lambda *told: None
        )
        common = {"host": "local", "ssh": None, "ssh_config": None, "root": str(root / "host")}
        common |= {"listen": "127.0.0.1", "keep": KEEP, "signers": None}
        self.candidate: Channel = {**common, "channel": "candidate", "promoted": False}
        self.stable: Channel = {**common, "channel": "stable", "promoted": True}
        for channel in (self.candidate, self.stable):
            channel["port"] = free_port()
        self.serving: dict[str, str | None] = {"candidate": None, "stable": None}
        self.served: set[str] = set()  # the channels that a deploy came to its end in
        self.history: list[bytes] = []
        self.manifests: dict[str, bytes] = {}
        self.newest = 0

    def close(self) -> None:
        self.power_off()
        self.folder.cleanup()

    def power_off(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if any(self.folder.name in part for part in process.info["cmdline"] or ()):
                process.send_signal(signal.SIGKILL)
                process.wait()

    # -- operations ------------------------------------------------------------------------------

    def deploy_all(self, number: int, retry: bool) -> None:
        """What the task does."""
        built = self.built[number]
        tasks.deploy.host_of = lambda project, channel: self.host  # type: ignore[assignment]
        tasks.deploy.provenance = lambda root: {}  # type: ignore[assignment]
        tasks.hosts.attestor.attestor_of = lambda project, run: None  # type: ignore[assignment]
        tasks.deploy.deploy(
            self.project,  # type: ignore[arg-type]
            "deploy:digits",
            built.manifest,
            built.files,
            [self.candidate, self.stable],
            "",
            KEEP,
            retry,
        )

    def deploy(self, number: int, retry: bool = False, death: int | None = None) -> bool:
        release = self.built[number].release
        marked = self.mark(release.id)
        before = self.live(self.candidate)
        status, said = in_a_process(partial(self.deploy_all, number, retry), death)
        self.newest = number
        after = self.live(self.candidate)
        if status == KILLED:
            self.follow("candidate", {release.id})
            self.follow("stable", set())
            return False
        if number == 3:
            assert after == before
            assert status == 1 or marked == WITHDRAWN, said
        elif marked == WITHDRAWN and not retry:
            assert status == 0 and after == (before or release.id), said
        elif marked and not retry:
            assert status == 1 and after == before and "failed before" in said
        else:
            assert status == 0 and after == release.id, said
            assert self.mark(release.id) is None
        self.follow("candidate", {after} if after else set())
        self.served |= {"candidate"} if status == 0 else set()
        return True

    def promote(self, worse: bool = False, death: int | None = None) -> bool:
        before, candidate = self.live(self.stable), self.live(self.candidate)

        def work() -> str | None:
            with self.host.lock(self.host.root / "digits" / "lock"):
                promotion = Promotion(
                    "digits",
                    Place(self.host, self.candidate),
                    Place(self.host, self.stable),
                    0.0,
                    Path("none"),
                )
                release = promotion.release()
                if release is None:
                    return "already"
                promotion.refuse_marked(release)
                if before is not None:
                    promotion.refuse_worse(comparison(-0.01 if worse else 0.0))
                return promotion.make_live(release, {}, Journal())

        status, said = in_a_process(work, death)
        after = self.live(self.stable)
        if status == KILLED:
            assert candidate is not None
            self.follow("stable", {candidate})
            return False
        is_other = candidate != before
        is_worse = before is not None and worse
        if candidate is None or (is_other and (self.mark(candidate) or is_worse)):
            assert status == 1 and after == before, said
        else:
            assert status == 0 and after == candidate, said
        self.follow("stable", {after} if after else set())
        self.served |= {"stable"} if status == 0 else set()
        return True

    def roll_back(self, named: int | None = None, death: int | None = None) -> bool:
        before = self.live(self.stable)
        wanted = None if named is None else self.built[named].release.id
        kept = self.host.directories(self.host.root / "digits" / "releases")
        lived = [
            record["release"]
            for record in on_host(self.host, "digits")
            if (record["outcome"], record["channel"]) == (LIVE, "stable")
        ]
        possible = [r for r in lived if r != before and r in kept and not self.mark(r)]

        def work() -> str:
            tasks.rollback.host_of = lambda project, channel: self.host  # type: ignore[assignment]
            tasks.rollback.provenance = lambda root: {}  # type: ignore[assignment]
            return tasks.rollback.roll_back(self.project, self.stable, "digits", wanted, "a test")

        status, said = in_a_process(work, death)
        after = self.live(self.stable)
        good = {b.release.id for b in self.built[:3]}
        if status == KILLED:
            self.follow("stable", {wanted} & good if wanted else set(possible))
            return False
        expected = wanted or (possible[-1] if possible else None)
        if expected in kept and expected in good:
            assert status == 0 and after == expected, said
            if before and before != expected:
                assert self.mark(before) == WITHDRAWN
        else:
            assert status == 1 and after == before, said
        self.follow("stable", {after} if after else set())
        self.served |= {"stable"} if status == 0 else set()
        return True

    def allow(self, number: int) -> None:
        Marks(self.host, "digits").lift(self.built[number].release.id)

    def pin(self, number: int, remove: bool) -> None:
        pins, release = Pins(self.host, "digits"), self.built[number].release.id
        if remove:
            pins.remove(release)
        elif release in self.host.directories(self.host.root / "digits" / "releases"):
            pins.put(release, "")

    def gc(self, death: int | None = None) -> bool:
        def work() -> None:
            collect(self.host, {"digits": KEEP}, dry_run=False)

        pinned = set(Pins(self.host, "digits").read())
        status, said = in_a_process(work, death)
        assert status in (0, KILLED), said
        kept = set(self.host.directories(self.host.root / "digits" / "releases"))
        assert pinned <= kept
        if status == 0:
            alive = {release for release in self.serving.values() if release}
            assert len(kept - alive - pinned) <= KEEP
        return status == 0

    def reboot(self) -> None:
        """The machine loses its power; the next run brings back what was live, whether the newest
        build is good or not."""
        self.power_off()
        before = {c["channel"]: self.live(c) for c in (self.candidate, self.stable)}
        status, said = in_a_process(partial(self.deploy_all, self.newest, False), None)
        newest = self.built[self.newest].release.id
        assert status == 0 or self.newest == 3 or self.mark(newest) == FAILED, said
        assert self.live(self.stable) == before["stable"]
        self.follow("candidate", {newest} if status == 0 else set())

    # -- what must be true -----------------------------------------------------------------------

    def check(self) -> None:
        """All that must be true at any time."""
        self.what_is_live_is_whole_and_proved()
        self.what_was_live_serves_with_the_answers_of_its_release()
        self.history_only_grows_and_ids_never_repeat()

    def live(self, channel: Channel) -> str | None:
        link = self.host.link_target(self.host.root / "digits" / channel["channel"] / "current")
        return link.name if link else None

    def mark(self, release_id: str) -> str | None:
        mark = Marks(self.host, "digits").read(release_id)
        return mark["mark"] if mark else None

    def follow(self, channel: str, to: set[str]) -> None:
        """The channel may have gone to one of these, and has else what it had."""
        link = self.live({"channel": channel})
        assert link in {*to, self.serving[channel]}
        self.serving[channel] = link

    def what_is_live_is_whole_and_proved(self) -> None:
        good = {b.release.id: b.release for b in self.built[:3]}
        for channel in (self.candidate, self.stable):
            release = live_release(self.host, "digits", channel)
            if release is None:
                continue
            assert release.id in good
            directory = self.host.root / "digits" / "releases" / release.id
            for entry in release.manifest["roles"].values():
                assert self.host.holds(directory / entry["file"], entry)

    def what_was_live_serves_with_the_answers_of_its_release(self) -> None:
        for channel in (self.candidate, self.stable):
            name = channel["channel"]
            if name not in self.served:
                continue
            address = f"127.0.0.1:{channel['port']}"
            served = ask_port(address, "/health")["release"]
            known = {b.release.id: b for b in self.built[:3]}
            assert served in known
            golden = json.loads(Path(known[served].files["golden"]).read_bytes())["probes"][0]
            image = base64.b64decode(golden["image"])
            answer = ask_port(address, "/predict?top=1", method="POST", body=image)
            assert answer["release"] == served
            assert answer["predictions"][0]["class_id"] == golden["class_id"]

    def history_only_grows_and_ids_never_repeat(self) -> None:
        data = self.host.read(self.host.root / "digits" / "history.jsonl") or b""
        lines = data.splitlines()
        assert lines[: len(self.history)] == self.history
        self.history = lines
        for name in self.host.directories(self.host.root / "digits" / "releases"):
            manifest = self.host.root / "digits" / "releases" / name / "manifest.json"
            held = self.host.read(manifest)
            assert held is not None
            assert self.manifests.setdefault(name, held) == held


class Releases(RuleBasedStateMachine):
    """Operations as hypothesis draws them, one in four killed on its way."""

    built: list[Built]
    deaths = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 30))

    @initialize()
    def begin(self) -> None:
        self.world = World(self.built)
        for number in (0, 1):
            self.world.deploy(number)
            self.world.promote()
        self.world.deploy(3)
        self.world.check()

    def teardown(self) -> None:
        self.world.close()

    @rule(number=st.integers(0, 3), retry=st.booleans(), death=deaths)
    def deploy(self, number: int, retry: bool, death: int | None) -> None:
        self.world.deploy(number, retry, death)

    @rule(worse=st.booleans(), death=deaths)
    def promote(self, worse: bool, death: int | None) -> None:
        self.world.promote(worse, death)

    @rule(named=st.one_of(st.none(), st.integers(0, 3)), death=deaths)
    def roll_back(self, named: int | None, death: int | None) -> None:
        self.world.roll_back(named, death)

    @rule(number=st.integers(0, 2))
    def allow(self, number: int) -> None:
        self.world.allow(number)

    @rule(number=st.integers(0, 2), remove=st.booleans())
    def pin(self, number: int, remove: bool) -> None:
        self.world.pin(number, remove)

    @rule(death=deaths)
    def gc(self, death: int | None) -> None:
        self.world.gc(death)

    @rule()
    def reboot(self) -> None:
        self.world.reboot()

    @invariant()
    def all_is_well(self) -> None:
        self.world.check()


def test_operations_in_any_order(built: list[Built]):
    Releases.built = built
    Releases.TestCase.settings = settings(
        max_examples=int(os.environ.get("QUERN_EXAMPLES", "4")),
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Releases.TestCase().runTest()


@pytest.fixture
def world(built: list[Built]) -> Iterator[World]:
    world = World(built)
    yield world
    world.close()


def test_killed_before_each_step_of_a_deploy(world: World):
    world.deploy(0)
    world.promote()
    for step in itertools.count():
        done = world.deploy(1, death=step)
        world.check()
        world.deploy(1)
        world.check()
        assert went_live(world.host, "digits", "candidate")[-1] == world.built[1].release.id
        if done:
            break
        world.gc()  # so that it has to be sent again
        world.deploy(0)
    assert step > 8


def test_killed_before_each_step_of_a_promotion_and_of_a_rollback(world: World):
    world.deploy(0)
    world.promote()
    world.deploy(1)
    done = [False, False]
    for step in itertools.count():
        done[0] = world.promote(death=step)
        world.check()
        world.promote()
        done[1] = world.roll_back(0, death=step)
        world.check()
        world.roll_back(0)
        world.check()
        world.allow(1)
        if all(done):
            break
    assert step > 8


def test_killed_before_each_step_of_the_first_deploy(built: list[Built]):
    for step in itertools.count(step=3):
        world = World(built)
        try:
            done = world.deploy(0, death=step)
            world.check()
            world.deploy(0)
            world.check()
        finally:
            world.close()
        if done:
            break
    assert step > 15
