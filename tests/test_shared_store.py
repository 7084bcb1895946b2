"""The shared store: what one machine has made, another builds not again; whatever is wrong with the
shared store costs a line and no build."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.core.configuration import load_configuration
from tasks.core.digest import digest_of_bytes, listing_of
from tasks.core.errors import QuernError
from tasks.core.remote_files import why, without_secrets
from tasks.core.tools import compiler_platform
from tests.build_project import BuildProject, fill
from tests.deploy_project import DeployProject
from tests.shared_world import (
    RECIPES,
    S3,
    TARGETS,
    FolderPlace,
    S3Place,
    SftpPlace,
    checkout,
    files_in,
    made,
    s3_server,
)
from tests.ssh_world import Machine, free_port
from tests.test_build_intermediates import CHAIN


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "machine").start()
    yield machine
    machine.remove()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("s3", "sftp")]


@pytest.fixture(params=["file", *SLOW])
def place(request, tmp_path: Path, monkeypatch) -> FolderPlace | S3Place:
    """Somewhere to share a store in."""
    if request.param == "file":
        return FolderPlace(tmp_path / "shared")
    if request.param == "sftp":
        return SftpPlace(request.getfixturevalue("machine"))
    server = request.getfixturevalue("s3")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return S3Place(server, f"b{time.time_ns()}")


@pytest.fixture
def folder(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "shared")


def object_name(project: BuildProject, target: str) -> str:
    digest = digest_of_bytes((project.root / target).read_bytes())
    return f"objects/{digest[:2]}/{digest[2:]}"


def result_name(place: FolderPlace | S3Place, recipe: str, word: str = "") -> str:
    """The result of a recipe; `word` tells several of them apart."""
    found = [
        name
        for name in place.names()
        if name.startswith("results/")
        and json.loads(data := place.read(name))["recipe"] == recipe
        and word in data.decode()
    ]
    assert len(found) == 1, found
    return found[0]


def is_whole(place: FolderPlace | S3Place) -> bool:
    """Whether every object has its digest, and every result only names what is there."""
    names = place.names()
    for name in names:
        kind, two, rest = name.split("/")
        if kind == "objects" and digest_of_bytes(place.read(name)) != two + rest:
            return False
        if kind == "results":
            for output in json.loads(place.read(name))["outputs"].values():
                if f"objects/{output['digest'][:2]}/{output['digest'][2:]}" not in names:
                    return False
    return True


# -- sharing -----------------------------------------------------------------------------------


def test_a_second_checkout_builds_nothing(tmp_path, place):
    first = checkout(tmp_path / "first", place.url, place.more)
    assert made(first.built().ran) == RECIPES
    assert place.names() == files_in(first.root / ".quern" / "store")
    assert is_whole(place)
    second = checkout(tmp_path / "second", place.url, place.more)
    outcome = second.built()
    assert (made(outcome.ran), outcome.err) == (set(), "")
    assert outcome.out.count("restored from the shared store") == len(RECIPES)
    for target in TARGETS:
        assert second.read(target) == first.read(target)
    assert subprocess.check_output(second.root / "out/program") == b"it runs\n"
    assert not (second.root / "out/top").stat().st_mode & stat.S_IXUSR
    assert second.built().text == ""
    # What came is the local store's own: it restores without anybody's help.
    second.write("models.yaml", "models: {}\n")
    shutil.rmtree(second.root / "out")
    assert made(second.built().ran) == set()


def test_side_by_side(tmp_path, place):
    checkout(tmp_path / "first", place.url, place.more).built("-n", "4")
    assert is_whole(place)
    second = checkout(tmp_path / "second", place.url, place.more)
    assert made(second.built("-n", "4").ran) == set()


def test_only_what_differs_is_built(tmp_path, folder):
    checkout(tmp_path / "first", folder.url).built()
    second = checkout(tmp_path / "second", folder.url)
    second.write("in/three", "THREE\n")
    assert made(second.built().ran) == {"right", "top"}


def test_json_tells_what_was_restored(tmp_path, folder):
    checkout(tmp_path / "first", folder.url).built()
    second = checkout(tmp_path / "second", folder.url)
    done = [event for event in second.events() if event["event"] == "done"]
    assert {e["outcome"] for e in done if e["task"] != "copy"} == {"restored"}


def test_objects_that_are_there_are_not_sent_again(tmp_path, folder):
    first = checkout(tmp_path / "first", folder.url)
    first.built()
    objects = [folder.folder / n for n in folder.names() if n.startswith("objects/")]
    before = {path: path.stat().st_ino for path in objects}
    assert made(first.built("--always-execute").ran) == RECIPES
    assert {path: path.stat().st_ino for path in objects} == before


def test_what_was_made_before_it_was_configured_is_sent_with_the_next(tmp_path, folder):
    project = checkout(tmp_path / "first", folder.url)
    project.write("models.yaml", "models: {}\n")
    project.built()
    project.write("models.yaml", f"models: {{}}\nstore: {{remote: '{folder.url}'}}\n")
    assert project.built().text == ""
    assert not folder.folder.exists()  # nothing was to do: nothing was asked
    project.write("in/three", "THREE\n")
    project.built()
    second = checkout(tmp_path / "second", folder.url)
    second.write("in/three", "THREE\n")
    assert made(second.built().ran) == set()


def test_nothing_to_do_asks_nothing(tmp_path, folder):
    project = checkout(tmp_path / "first", folder.url)
    project.built()
    away = f"s3://127.0.0.1:{free_port()}/x"
    project.write("models.yaml", f"models: {{}}\nstore: {{remote: '{away}'}}\n")
    assert project.built().text == ""


@pytest.mark.parametrize("remote", ["", "store: {remote: 'file:///nowhere'}"])
def test_fsspec_is_not_imported_when_there_is_nothing_to_ask(tmp_path, built_once, remote):
    project = built_once.copy(tmp_path)
    project.write("models.yaml", f"models: {{}}\n{remote}\n")
    script = (
        "import sys\n"
        "from doit.doit_cmd import DoitMain\n"
        "status = DoitMain().run(sys.argv[1:])\n"
        "print(sorted({'fsspec', 's3fs', 'paramiko', 'tasks.core.remote_files'} & {*sys.modules}))"
    )
    for command in ("run", "list"):
        process = project.start(command, program=[sys.executable, "-c", script])
        out, err = process.communicate(timeout=60)
        assert out.splitlines()[-1] == "[]", out + err


def test_a_dropped_intermediate_is_fetched_when_it_is_needed(tmp_path, folder):
    two = CHAIN.replace("NAMES", "['a', 'b']")
    assert checkout(tmp_path / "first", folder.url, dodo=two).built().ran == ["middle", "a", "b"]
    second = checkout(tmp_path / "second", folder.url, dodo=two)
    assert second.built().ran == []
    assert not (second.root / "out/middle").exists()
    second.write("dodo.py", CHAIN.replace("NAMES", "['a', 'b', 'c']"))
    assert second.built().ran == ["c"]


@pytest.mark.slow
def test_a_second_machine_deploys_what_the_first_has_built(tmp_path, checkpoints):
    folder = FolderPlace(tmp_path / "shared")
    projects = []
    for name in ("first", "second"):
        project = DeployProject(tmp_path / name, checkpoints)
        with open(project.root / "models.yaml", "a") as file:
            file.write(f"store: {{remote: '{folder.url}'}}\n")
        project.use_checkpoint(0)
        projects.append(project)
    first, second = projects
    first.doit()
    shutil.rmtree(second.root / ".quern")
    try:
        events = [json.loads(line) for line in second.doit("--json").stdout.splitlines()]
        done = {e["task"]: e["outcome"] for e in events if e["event"] == "done"}
        assert {task for task, outcome in done.items() if outcome == "ran"} == {"deploy:digits"}
        assert {"fetch:digits", "weights:digits", "native:server", "native:python"} <= done.keys()
        assert second.health()["release"] == first.health()["release"]
        assert second.doit().stdout == ""
    finally:
        for project in projects:
            project.stop()


# -- damage --------------------------------------------------------------------------------------


def damaged(place: FolderPlace | S3Place, what: str, first: BuildProject) -> str:
    """Damage what belongs to `top`; returns what the line must say of it."""
    name = object_name(first, "out/top")
    data = place.read(name)
    result = result_name(place, "join", "input out/left")
    if what == "another byte":
        place.write(name, data[:-2] + b"X\n")
        return "is damaged"
    if what == "truncated":
        place.write(name, data[:3])
        return "is damaged"
    if what == "missing":
        place.remove(name)
        return "is missing"
    if what == "another's result":
        place.write(result, place.read(result_name(place, "program")))
    else:
        place.write(result, place.read(result)[:-20])
    return "is damaged"


@pytest.mark.parametrize(
    "what", ["another byte", "truncated", "missing", "half a result", "another's result"]
)
def test_what_is_damaged_is_made_here_and_mended_there(tmp_path, place, what):
    first = checkout(tmp_path / "first", place.url, place.more)
    first.built()
    said = damaged(place, what, first)
    second = checkout(tmp_path / "second", place.url, place.more)
    outcome = second.built()
    assert made(outcome.ran) == {"top"}
    (line,) = outcome.err.splitlines()
    assert said in line and line.endswith("what it belongs to is made here")
    assert second.read("out/copy") == "one\ntwo\nthree\n"
    assert is_whole(place)
    third = checkout(tmp_path / "third", place.url, place.more)
    outcome = third.built()
    assert (made(outcome.ran), outcome.err) == (set(), "")


def name_as_folder(place: FolderPlace, data: bytes) -> None:
    """Have the result of `folder` name an object with these bytes."""
    digest = digest_of_bytes(data)
    path = place.folder / "objects" / digest[:2] / digest[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    result = result_name(place, "folder")
    told = json.loads(place.read(result))
    told["outputs"]["out"]["digest"] = digest
    place.write(result, json.dumps(told).encode())


@pytest.mark.parametrize("data", [b"some text\n", b"\xff\xfe"])
def test_a_directory_has_to_be_one(tmp_path, folder, data):
    checkout(tmp_path / "first", folder.url).built()
    name_as_folder(folder, data)
    outcome = checkout(tmp_path / "second", folder.url).built()
    assert made(outcome.ran) == {"folder"}
    assert "is no directory; what it belongs to is made here" in outcome.err


@pytest.mark.parametrize("name", ["../../../outside", "/outside"])
def test_a_directory_has_no_files_outside_of_itself(tmp_path, folder, name):
    first = checkout(tmp_path / "first", folder.url)
    first.built()
    top = digest_of_bytes((first.root / "out/top").read_bytes())
    name_as_folder(folder, listing_of({name: top}))
    second = checkout(tmp_path / "second" / "below", folder.url)
    outcome = second.built()
    assert made(outcome.ran) == {"folder"}
    assert "outside of its directory" in outcome.err
    assert not list(tmp_path.rglob("outside"))


# -- out of reach --------------------------------------------------------------------------------


def builds_here(project: BuildProject, *words: str) -> str:
    """The project builds all by itself, ends well and says one line with these words."""
    outcome = project.built()
    assert made(outcome.ran) == RECIPES
    (line,) = outcome.err.splitlines()
    assert line.startswith("store.remote ") and all(word in line for word in words), line
    assert project.built().text == ""
    return line


@pytest.mark.parametrize("remote", ["s3://bucket/prefix", "sftp://127.0.0.1:{port}/shared"])
def test_a_refused_connection_costs_one_line(tmp_path, monkeypatch, remote):
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
    line = builds_here(
        checkout(tmp_path / "first", remote.format(port=port)),
        remote.format(port=port),
        "can't be used",
        "this run goes on without it",
    )
    assert "the-secret-key" not in line


@pytest.mark.slow
@pytest.mark.parametrize("remote", ["s3://bucket/prefix", "sftp://127.0.0.1:{port}/shared"])
def test_a_server_that_never_answers_costs_one_line(tmp_path, monkeypatch, remote):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
        builds_here(checkout(tmp_path / "first", remote.format(port=port)), "can't be used")


def test_credentials_that_are_refused_cost_one_line(tmp_path, monkeypatch):
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-key")
        builds_here(checkout(tmp_path / "first", "s3://bucket/prefix"), "can't be used")
        server.shutdown()


@pytest.mark.slow
def test_a_bucket_that_is_not_there_costs_one_line(tmp_path, s3, monkeypatch):
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    builds_here(checkout(tmp_path / "first", "s3://nobodys-bucket/x"), "bucket does not exist")


def test_an_unknown_host_key_is_refused(tmp_path, machine):
    (machine.folder / "known_hosts").write_text("")
    place = SftpPlace(machine)
    builds_here(checkout(tmp_path / "first", place.url, place.more), "host key is not known")
    assert not place.folder.exists()


def test_a_changed_host_key_is_refused_under_the_other_name_of_sftp_too(tmp_path, machine):
    key = (machine.folder / "user_key.pub").read_text().split()[:2]
    where = f"[{machine.address}]:{machine.port}"
    (machine.folder / "known_hosts").write_text(f"{where} {' '.join(key)}\n")
    place = SftpPlace(machine)
    url = place.url.replace("sftp://", "ssh://")
    builds_here(checkout(tmp_path / "first", url, place.more), "host key has changed")
    assert not place.folder.exists()


def test_a_scheme_that_nobody_knows_costs_one_line(tmp_path):
    builds_here(checkout(tmp_path / "first", "gopher://host/x"), "gopher")


def test_doits_own_reporters_keep_the_line(tmp_path):
    project = checkout(tmp_path / "first", "gopher://host/x")
    outcome = project.built("--reporter", "console", "-n", "3")
    assert len(outcome.err.splitlines()) == 1 and "gopher" in outcome.err


@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    project = checkout(tmp_path / "first", "s3://bucket/prefix")
    project.write(f"without/{package}.py", f"raise ModuleNotFoundError('no {package}')\n")
    given = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project.root / "without"), given]))
    builds_here(project, package, "pip install -e '.[store]'")


def test_a_password_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2%21")
    line = builds_here(checkout(tmp_path / "first", "sftp://me:${SECRET}@127.0.0.1:1/x"), "key")
    assert "hunter2" not in line and "sftp://me@127.0.0.1:1/x" in line
    assert without_secrets("az://box/x?sas=abc") == "az://box/x"
    assert without_secrets("sftp://me:p/a@b@box/x") == "sftp://me@box/x"
    assert why(ValueError("odd"), "sftp://[me:secret@x") == "ValueError: odd"
    remote = "s3://me:p%2Fw@box/x"
    assert "p/w" not in why(ValueError(f"p/w and {remote}"), remote)
    assert "p%2Fw" not in why(ValueError(f"p/w and {remote}"), remote)


def test_what_was_made_while_it_was_away_is_sent_later(tmp_path, folder):
    folder.folder.write_text("a file where the folder belongs")
    first = checkout(tmp_path / "first", folder.url)
    builds_here(first)
    folder.folder.unlink()
    first.write("in/three", "THREE\n")
    assert first.built().err == ""
    second = checkout(tmp_path / "second", folder.url)
    second.write("in/three", "THREE\n")
    assert made(second.built().ran) == set()


def test_what_can_only_be_read_is_read(tmp_path, small_disk):
    place = FolderPlace(small_disk)
    checkout(tmp_path / "first", place.url).built()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = place.names()
    second = checkout(tmp_path / "second", place.url)
    second.write("in/three", "THREE\n")
    outcome = second.built()
    assert made(outcome.ran) == {"right", "top"}  # the others came from there
    (line,) = outcome.err.splitlines()
    assert "can't be added to" in line and "Read-only file system" in line
    assert place.names() == before


def test_a_full_one_keeps_nothing_in_part(tmp_path, small_disk):
    place = FolderPlace(small_disk)
    (small_disk / "objects").mkdir()
    (small_disk / "results").mkdir()
    filling = fill(small_disk)
    first = checkout(tmp_path / "first", place.url)
    builds_here(first, "can't be added to", "No space left")
    filling.unlink()
    assert all(name.startswith("results/") or "objects/" in name for name in place.names())
    assert not [name for name in place.names() if name.endswith(".partial")]
    assert is_whole(place)


# -- killed --------------------------------------------------------------------------------------


LARGE = """
from tasks.core.recipe import Recipe

def task_large():
    yield Recipe(
        name="large", version=1, function="work:large", outputs={"out": "out/large"},
    ).task("large", "Make a large file.")
"""


@pytest.mark.slow
def test_killed_while_it_sends_it_leaves_nothing_in_part_under_a_final_name(tmp_path, machine):
    place = SftpPlace(machine)
    first = checkout(tmp_path / "first", place.url, place.more, LARGE)
    with open(first.root / "work.py", "a") as file:
        file.write(
            "\n\ndef large(out):\n    count('large')\n"
            "    with open(out, 'wb') as file:\n"
            "        for number in range(200):\n"
            "            file.write(number.to_bytes(4, 'big') * (1 << 18))\n"
        )
    work = first.read("work.py")
    process = first.start()
    deadline = time.monotonic() + 60
    while not [p for p in place.folder.rglob("*.partial") if p.stat().st_size]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    machine.kill_sessions()
    assert [name.endswith(".partial") for name in place.names()] == [True]
    outcome = first.built()
    assert outcome.ran == []  # the local store has it
    assert is_whole(place)
    assert not [name for name in place.names() if name.endswith(".partial")]
    second = checkout(tmp_path / "second", place.url, place.more, LARGE)
    second.write("work.py", work)
    assert second.built().ran == []
    assert (second.root / "out/large").stat().st_size == 200 << 20


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store: {remote: no-url}", "models.yaml:2: store.remote"),
        ("store: {limit_gb: 0}", "models.yaml:2: store.limit_gb"),
        ("store: {bucket: x}", "unknown key 'bucket'"),
    ],
)
def test_faults_of_the_configuration_are_told(tmp_path, text, words):
    path = tmp_path / "models.yaml"
    path.write_text(f"models: {{}}\n{text}\n")
    with pytest.raises(QuernError) as fault:
        load_configuration(str(path))
    assert words in str(fault.value)


def test_programs_of_one_kind_of_mac_are_not_those_of_another():
    intel = os.uname_result(("Darwin", "mac", "23.1.0", "v", "x86_64"))
    arm = os.uname_result(("Darwin", "mac", "23.1.0", "v", "arm64"))
    linux = os.uname_result(("Linux", "box", "6.1", "v", "x86_64"))
    assert compiler_platform(intel) != compiler_platform(arm)
    assert compiler_platform(linux) == {}  # its compiler is a program for one processor
